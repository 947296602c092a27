package pebble

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"strconv"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirstream/weir/internal/crashpoint"
)

const (
	// copyBytes is up to what size a segment that cannot be linked is copied before
	// use, instead of being read where it is.
	copyBytes = 1 << 20
	// chunkBytes is how much of a segment is in memory while it is copied.
	chunkBytes = 4 << 20
	// spareTables is how many tables, beyond two for each segment of the chain, may be there
	// because the chain is not at hand, before segments are read where they are.
	spareTables = 64
	// readAhead is how many segments are fetched at once: enough to hide the latency of
	// an object store where a chain has some hundreds of segments. Of those that are not
	// read where they are none is longer than copyBytes.
	readAhead = 32
)

// Attach makes the store equal the checkpoint want, whose segments are chain, oldest
// first, in src. What the store has of them it keeps. The zero ID with no chain makes
// it empty.
//
// After an error the store is what it was, unless it was damaged: then it is detached.
// Errors are *DamagedError, which names a segment, *StoreError and ErrClosed.
func (s *Store) Attach(ctx context.Context, want ID, chain []Segment, src Objects) (Attached, error) {
	start := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Load() {
		return Attached{}, ErrClosed
	}
	for _, seg := range chain {
		if err := seg.check(); err != nil {
			return Attached{}, s.failed("attach", "", err)
		}
	}
	s.src.Store(&src)
	if d := s.broken.Load(); d != nil {
		s.suspect = d.file
		s.drop()
	}
	if err := s.distrust(); err != nil {
		return Attached{}, s.failed("attach", "", err)
	}
	if s.current.Load() == nil {
		s.chain = chain
		s.sweep() // makes room
	}
	a, tables, err := s.openChain(ctx, chain)
	if err != nil {
		return Attached{}, err // what was taken is there for the next try
	}
	if len(chain) > 0 {
		crashpoint.Hit(crashpoint.InRestore)
	}
	for _, t := range tables {
		t.from.Store(0) // the checkpoints before may have been of another lineage
	}
	s.chain, s.behind = chain, false
	s.install(want, tables)
	unrefAll(tables)
	s.sweep()
	if s.suspect != "" {
		if err := s.fs.Remove(s.path(damagedName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return Attached{}, s.failed("attach", "", err)
		}
		s.suspect = ""
		s.broken.Store(nil)
	}
	s.wakeUp()
	switch {
	case a.Reused == a.Segments:
		a.How = Reused
	case a.Reused > 0:
		a.How = CaughtUp
	default:
		a.How = Rebuilt
	}
	a.Took = time.Since(start)
	return a, nil
}

// distrust removes the file in which damage was found.
func (s *Store) distrust() error {
	if s.suspect == "" {
		return nil
	}
	if t := s.pool[s.suspect]; t != nil {
		delete(s.pool, s.suspect)
		t.unref()
	}
	delete(s.files, s.suspect)
	if err := s.fs.Remove(s.path(segmentsName, s.suspect)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// openChain opens the segments of a chain, some at a time. The tables are in order,
// and each has a reference for the caller.
func (s *Store) openChain(ctx context.Context, chain []Segment) (a Attached, tables []*table, err error) {
	tables = make([]*table, len(chain))
	errs := make([]error, len(chain))
	from := make([]origin, len(chain))
	slots := make(chan struct{}, readAhead)
	var wg sync.WaitGroup
	for i, seg := range chain {
		a.Segments++
		a.Bytes += seg.Length
		name := s.name(seg)
		if t := s.pool[name]; t != nil {
			t.refs.Add(1)
			tables[i] = t
			continue
		}
		have := s.files[name]
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			tables[i], from[i], errs[i] = s.open(ctx, seg, name, have)
		})
	}
	wg.Wait()
	for i, t := range tables {
		if t == nil {
			continue
		}
		s.adopt(t)
		switch from[i] {
		case reused:
			a.Reused++
		case linked:
			a.Linked++
		case copied:
			a.Copied++
		case referred:
			a.Remote++
		}
	}
	if err := errors.Join(errs...); err != nil {
		unrefAll(tables)
		return a, nil, err
	}
	return a, tables, nil
}

// adopt puts a table into the pool, which takes a reference. It is called with s.mu
// held.
func (s *Store) adopt(t *table) {
	name := s.name(t.seg)
	if t.file != "" {
		s.files[name] = true
	} else {
		delete(s.files, name) // it was damaged, and removed
	}
	old := s.pool[name]
	if old == t {
		return
	}
	t.refs.Add(1)
	s.pool[name] = t
	if old != nil {
		old.unref()
	}
}

func unrefAll(tables []*table) {
	for _, t := range tables {
		if t != nil {
			t.unref()
		}
	}
}

// origin is where a table came from.
type origin uint8

const (
	reused origin = iota
	linked
	copied
	referred
)

// open opens a segment, which the store has already or takes first.
func (s *Store) open(ctx context.Context, seg Segment, name string, have bool) (*table, origin, error) {
	if have {
		t, err := s.openTable(ctx, seg, name)
		if d := (*DamagedError)(nil); !errors.As(err, &d) && !errors.Is(err, fs.ErrNotExist) {
			return t, reused, err
		}
		if err := s.fs.Remove(s.path(segmentsName, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, 0, s.failed("remove", seg.Object, err)
		}
	}
	from := linked
	ok, err := s.link(ctx, seg, name)
	if err == nil && !ok {
		if seg.Length > s.opts.copyFirst && name != s.suspect {
			t, err := s.openTable(ctx, seg, "")
			return t, referred, err
		}
		from = copied
		err = s.copy(ctx, seg, name, nil, nil)
	}
	if err != nil {
		return nil, 0, err
	}
	t, err := s.openTaken(ctx, seg, name)
	return t, from, err
}

// openTaken opens a file that was just linked or copied.
func (s *Store) openTaken(ctx context.Context, seg Segment, name string) (*table, error) {
	t, err := s.openTable(ctx, seg, name)
	if err != nil {
		_ = s.fs.Remove(s.path(segmentsName, name))
	}
	if d := (*DamagedError)(nil); errors.As(err, &d) {
		d.File = "" // it is the object that is damaged
	}
	return t, err
}

// link makes a hard link to a segment that is a file, and tells whether that went.
func (s *Store) link(ctx context.Context, seg Segment, name string) (ok bool, err error) {
	path, local := s.objects().Path(seg.Object)
	if !local || seg.Offset != 0 {
		return false, nil
	}
	info, err := s.fs.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil // who asks for the object is told that it is missing
	}
	if err != nil {
		return false, s.failed("link", seg.Object, err)
	}
	if info.Size() > seg.Length {
		return false, nil // it is a part of the object
	}
	to := s.path(segmentsName, name)
	if err := s.fs.Link(path, to); err != nil && !errors.Is(err, fs.ErrExist) {
		return false, nil // another file system, or one without links
	}
	if name == s.suspect {
		if err := s.check(ctx, seg, to); err != nil {
			return false, errors.Join(err, s.fs.Remove(to))
		}
	}
	return true, nil
}

func (s *Store) damaged(seg Segment, err error) error {
	return &DamagedError{Dir: s.dir, Object: seg.Object, Err: err}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// check reads a file as a whole.
func (s *Store) check(ctx context.Context, seg Segment, path string) error {
	f, err := s.fs.Open(path)
	if err != nil {
		return s.failed("read", seg.Object, err)
	}
	defer func() { _ = f.Close() }()
	sum := crc32.New(castagnoli)
	buf := make([]byte, min(chunkBytes, seg.Length))
	for off := int64(0); off < seg.Length; {
		if err := ctx.Err(); err != nil {
			return s.failed("read", seg.Object, err)
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), seg.Length-off)], off)
		if err != nil {
			return s.failed("read", seg.Object, err)
		}
		sum.Write(buf[:n])
		off += int64(n)
	}
	return s.compare(seg, sum.Sum32())
}

func (s *Store) compare(seg Segment, sum uint32) error {
	if sum == seg.CRC32C {
		return nil
	}
	return s.damaged(seg, fmt.Errorf("its checksum is %08x, %08x was written", sum, seg.CRC32C))
}

// copy makes the file name of a segment: of data, if there is any, or of what is in
// the checkpoint store. The file is there as a whole or not at all. paced is called
// before each read.
func (s *Store) copy(ctx context.Context, seg Segment, name string, data []byte, paced func(n int64) error) (err error) {
	tmp := s.path(tmpName, strconv.FormatUint(s.nums.Add(1), 10)+fileSuffix)
	f, err := s.fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return s.failed("copy", seg.Object, err)
	}
	defer func() {
		if f != nil {
			_ = f.Close()
		}
		if err != nil {
			_ = s.fs.Remove(tmp) // if that fails too, Open does it
		}
	}()
	if data != nil && int64(len(data)) != seg.Length {
		return s.damaged(seg, fmt.Errorf("%d bytes, %d were written", len(data), seg.Length))
	}
	var sum uint32
	var b []byte
	for off := int64(0); off < seg.Length; off += chunkBytes {
		n := min(chunkBytes, seg.Length-off)
		if data != nil {
			b = append(b[:0], data[off:off+n]...) // a file of vfs may overwrite what it is given
		} else {
			if paced != nil {
				if err := paced(n); err != nil {
					return err
				}
			}
			b, err = s.getRange(ctx, seg.Object, seg.Offset+off, n)
			if errors.Is(err, io.ErrUnexpectedEOF) || err == nil && int64(len(b)) != n {
				return s.damaged(seg, fmt.Errorf("it ends before byte %d", seg.Offset+off+n))
			}
			if err != nil {
				return s.failed("copy", seg.Object, err)
			}
		}
		sum = crc32.Update(sum, castagnoli, b)
		if _, err := f.Write(b); err != nil {
			return s.failed("copy", seg.Object, err)
		}
	}
	if err := s.compare(seg, sum); err != nil {
		return err
	}
	err = f.Sync()
	err = errors.Join(err, f.Close())
	f = nil
	if err == nil {
		err = s.fs.Rename(tmp, s.path(segmentsName, name))
	}
	if err != nil {
		return s.failed("copy", seg.Object, err)
	}
	return nil
}

// Ingest takes over the checkpoint want, which was committed and whose parent is prev.
// chain is that of its manifest; own is the segment of its own changes, a part of
// chain, or nil if nothing changed. The bytes of own are data if they are at hand; if
// that is nil they are read from where Attach was told that segments are.
//
// What merges put into the chain is taken over at once if it can be linked, otherwise
// when it was copied in the background, or, if copying is so slow that tables add up, read
// where it is until then.
//
// After an error the store equals prev as before. Errors are *MismatchError,
// *DamagedError, *StoreError, ErrDetached and ErrClosed.
func (s *Store) Ingest(ctx context.Context, want, prev ID, own *Segment, data []byte, chain []Segment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	v := s.current.Load()
	switch d := s.broken.Load(); {
	case s.closed.Load():
		return ErrClosed
	case d != nil:
		return d.err
	case v == nil:
		return ErrDetached
	}
	// A child may begin a lineage of its own: what follows a savepoint does.
	if v.id != prev || want.Lineage == prev.Lineage && want.Checkpoint <= prev.Checkpoint {
		return &MismatchError{Dir: s.dir, Have: v.id, Want: want, Prev: prev}
	}
	for _, seg := range chain {
		if err := seg.check(); err != nil {
			return s.failed("ingest", "", err)
		}
	}
	tables := v.tables[:len(v.tables):len(v.tables)]
	if own != nil {
		t, err := s.take(ctx, *own, data)
		if err != nil {
			return err
		}
		if want.Lineage == prev.Lineage {
			// What was written for a checkpoint that was given up is in the next one, which
			// is this one if those before it were given up.
			t.from.Store(prev.Checkpoint + 1)
		}
		s.adopt(t)
		t.unref() // it is in the pool
		tables = append(tables, t)
	}
	s.chain, s.behind = chain, true
	merged := s.atHand(ctx)
	inPlace := merged == nil && len(tables) > 2*len(chain)+spareTables
	if inPlace {
		// Merges are made faster than their results are copied. What can't be read now may be
		// at the next checkpoint.
		_, merged, _ = s.openChain(ctx, chain)
	}
	if merged != nil {
		tables, s.behind = merged, false
		defer unrefAll(merged)
	}
	s.install(want, tables)
	s.sweep()
	if s.behind || inPlace {
		s.wakeUp()
	}
	return nil
}

// take gets the segment of a checkpoint that was just committed.
func (s *Store) take(ctx context.Context, seg Segment, data []byte) (*table, error) {
	if err := seg.check(); err != nil {
		return nil, s.failed("ingest", "", err)
	}
	name := s.name(seg)
	if s.files[name] {
		return s.openTable(ctx, seg, name)
	}
	ok := false
	var err error
	if data == nil {
		ok, err = s.link(ctx, seg, name)
	}
	if err == nil && !ok {
		err = s.copy(ctx, seg, name, data, nil)
	}
	if err != nil {
		return nil, err
	}
	return s.openTaken(ctx, seg, name)
}

// atHand returns the tables of the chain, each with a reference, or nil if one of
// them can't be had at once.
func (s *Store) atHand(ctx context.Context) []*table {
	for _, seg := range s.chain {
		name := s.name(seg)
		if s.pool[name] != nil || s.files[name] {
			continue
		}
		// If the object can't be linked, for whatever reason, the copying goroutine has
		// to do with it and tells.
		ok, err := s.link(ctx, seg, name)
		if err != nil || !ok {
			return nil
		}
		s.files[name] = true
	}
	_, tables, err := s.openChain(ctx, s.chain)
	if err != nil {
		return nil
	}
	return tables
}
