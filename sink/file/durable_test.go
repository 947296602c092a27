package file

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// disk notes what is made durable, and in which order. One of these steps may fail.
type disk struct {
	r     *receiver[string]
	steps []string
	fail  int // the step, from 1; 0: none
}

// watch notes what is done to the directory of r.
func watch(t *testing.T, r *receiver[string]) *disk {
	d := &disk{r: r}
	file, dir, move := syncFile, syncDir, rename
	t.Cleanup(func() { syncFile, syncDir, rename = file, dir, move })
	syncFile = func(f *os.File) error {
		info, err := f.Stat()
		if err == nil {
			err = d.step("sync %s of %d bytes", d.name(f.Name()), info.Size())
		}
		if err != nil {
			return err
		}
		return file(f)
	}
	syncDir = func(path string) error {
		marks, err := filepath.Glob(filepath.Join(path, marked+"*"))
		what := "sync " + d.name(path)
		for _, m := range marks {
			what += " with " + d.name(m)
		}
		if err == nil {
			err = d.step("%s", what)
		}
		if err != nil {
			return err
		}
		return dir(path)
	}
	rename = func(from, to string) error {
		if err := d.step("rename %s to %s", d.name(from), d.name(to)); err != nil {
			return err
		}
		return move(from, to)
	}
	return d
}

// name is what a path is to the sink.
func (d *disk) name(path string) string {
	name := filepath.Base(path)
	_, number, isMark := parseMark(name)
	switch {
	case path == d.r.dir:
		return "directory"
	case path == d.r.folder():
		return "folder"
	case isMark:
		return fmt.Sprint("mark ", number)
	case strings.HasPrefix(name, "open-"):
		return "open"
	case filepath.Dir(path) == d.r.dir:
		return "visible"
	}
	return "prepared"
}

func (d *disk) step(format string, args ...any) error {
	d.steps = append(d.steps, fmt.Sprintf(format, args...))
	if len(d.steps) == d.fail {
		return syscall.EIO
	}
	return nil
}

// wants compares the steps since it was called last.
func (d *disk) wants(t *testing.T, what string, steps ...string) {
	t.Helper()
	if got, want := strings.Join(d.steps, "; "), strings.Join(steps, "; "); got != want {
		t.Errorf("%s: the steps were\n    %s, want\n    %s", what, got, want)
	}
	d.steps, d.fail = nil, 0
}

func TestWhatIsDurableWhen(t *testing.T) {
	r := connect(t, Options{Dir: t.TempDir()})
	d := watch(t, r)
	h := prepare(t, r, 0, "abc")
	d.wants(t, "Prepare", "sync open of 4 bytes", "rename open to prepared", "sync folder")
	commit(t, r, h)
	d.wants(t, "Commit", "sync folder with mark 1", "rename prepared to visible", "sync directory", "sync folder with mark 1")
	commit(t, r, h)
	d.wants(t, "Commit again", "sync directory", "sync folder with mark 1")
	take(t, r.dir)
	commit(t, r, h)
	d.wants(t, "Commit of what was taken away")
	h = prepare(t, r, 0, "de")
	d.wants(t, "the next Prepare", "sync open of 3 bytes", "rename open to prepared", "sync folder with mark 1")
	d.fail = 2
	if err := r.Commit(t.Context(), h); !errors.Is(err, syscall.EIO) {
		t.Errorf("Commit: %v", err)
	}
	d.wants(t, "Commit that fails", "sync folder with mark 1 with mark 2", "rename prepared to visible", "rename mark 2 to mark 1", "sync folder with mark 1")
	commit(t, r, h)
	d.wants(t, "the next Commit", "sync folder with mark 1 with mark 2", "rename prepared to visible", "sync directory", "sync folder with mark 1 with mark 2")
	if _, err := r.Leftovers(t.Context(), nil); err != nil {
		t.Error(err)
	}
	d.wants(t, "Leftovers", "sync folder with mark 2")
}

// What could not be made durable is not reported as done, and is done by the next call.
func TestStepThatFailsIsAnError(t *testing.T) {
	for step := 1; step <= 3; step++ {
		r := connect(t, Options{Dir: t.TempDir()})
		tx, err := r.Begin(t.Context(), 0)
		if err == nil {
			err = tx.Write("a")
		}
		if err != nil {
			t.Fatal(err)
		}
		watch(t, r).fail = step
		if h, err := tx.Prepare(t.Context()); h != nil || !errors.Is(err, syscall.EIO) {
			t.Errorf("step %d of Prepare fails: %q, %v", step, h, err)
		}
	}
	for step := 1; step <= 4; step++ {
		r := connect(t, Options{Dir: t.TempDir()})
		h := prepare(t, r, 0, "a")
		d := watch(t, r)
		d.fail = step
		if err := r.Commit(t.Context(), h); !errors.Is(err, syscall.EIO) {
			t.Errorf("step %d of Commit fails: %v", step, err)
		}
		commit(t, r, h)
		if got := texts(visible(t, r.dir)); len(got) != 1 {
			t.Errorf("step %d of Commit failed, visible: %q", step, got)
		}
		for step := 1; step <= 2; step++ {
			d.steps, d.fail = nil, step
			if err := r.Commit(t.Context(), h); !errors.Is(err, syscall.EIO) {
				t.Errorf("step %d of the second Commit fails: %v", step, err)
			}
		}
		d.steps, d.fail = nil, 1
		if _, err := r.Leftovers(t.Context(), nil); !errors.Is(err, syscall.EIO) {
			t.Errorf("Leftovers: %v", err)
		}
	}
}
