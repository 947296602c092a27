package offline

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/weirstream/weir/state/segment"
)

const (
	// defaultSortBytes is how much is sorted in memory before it becomes a file.
	defaultSortBytes = 64 << 20
	// maxRuns is how many sorted files there may be before they become one: it bounds
	// the open files, and what a merge holds in memory.
	maxRuns = 64
)

// sorter sorts entries that come in any order, in files of a directory. Of entries
// with one key the last one counts.
type sorter struct {
	b     segment.Builder
	limit int
	in    string // where dir is made
	dir   string // empty until the first file
	files []string
	made  int
}

func newSorter(dir string, limit int) *sorter { return &sorter{in: dir, limit: limit} }

// spill writes what is in memory to a file if it is enough.
func (s *sorter) spill() error {
	if s.b.Bytes() < s.limit {
		return nil
	}
	return s.flush()
}

// flush writes what is in memory to a file.
func (s *sorter) flush() error {
	if s.b.Len() == 0 {
		return nil
	}
	run := s.b.Finish()
	defer run.Release()
	name, err := s.write(func(w *bufio.Writer) error {
		_, err := segment.Write(w, run)
		return err
	})
	if err != nil {
		return err
	}
	s.files = append(s.files, name)
	if len(s.files) < maxRuns {
		return nil
	}
	return s.compact()
}

// compact makes one file of all of them.
func (s *sorter) compact() (err error) {
	var readers []*segment.Reader
	defer func() {
		for _, r := range readers {
			err = errors.Join(err, r.Close())
		}
	}()
	for _, name := range s.files {
		r, err := openFile(name)
		if err != nil {
			return err
		}
		readers = append(readers, r)
	}
	name, err := s.write(func(w *bufio.Writer) error {
		_, err := segment.Merge(w, false, readers...)
		return err
	})
	if err != nil {
		return err
	}
	for _, old := range s.files {
		if err := os.Remove(old); err != nil {
			return fmt.Errorf("sort entries: %w", err)
		}
	}
	s.files = append(s.files[:0], name)
	return nil
}

func (s *sorter) write(fill func(w *bufio.Writer) error) (name string, err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("sort entries in %s: %w; choose another directory for temporary files if this one is full", s.dir, err)
		}
	}()
	if s.dir == "" {
		if s.dir, err = os.MkdirTemp(s.in, "weir-sort-"); err != nil {
			return "", err
		}
	}
	name = filepath.Join(s.dir, fmt.Sprintf("%06d.sst", s.made))
	s.made++
	f, err := os.Create(name)
	if err != nil {
		return "", err
	}
	w := bufio.NewWriterSize(f, 1<<20)
	err = fill(w)
	return name, errors.Join(err, w.Flush(), f.Close())
}

// parts returns the files as parts of a chain, oldest first. What is in memory is not
// among them: flush it first.
func (s *sorter) parts() []part {
	parts := make([]part, len(s.files))
	for i, name := range s.files {
		parts[i] = part{
			open:  func(context.Context) (*segment.Reader, error) { return openFile(name) },
			wrong: func(err error) error { return fmt.Errorf("sorted file %s: %w", name, err) },
		}
	}
	return parts
}

func openFile(name string) (*segment.Reader, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	r, err := segment.OpenAt(f, info.Size())
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return r, nil
}

// close removes the files.
func (s *sorter) close() error {
	if s.dir == "" {
		return nil
	}
	return os.RemoveAll(s.dir)
}
