package pebble

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"slices"
	"sync"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

const (
	// copyBytes is up to what size a remote segment is copied before use, in one read,
	// instead of being read where it is.
	copyBytes = 1 << 20
	// chunkBytes is how much of a segment is in memory while it is copied.
	chunkBytes = 4 << 20
	// readAhead is how many segments are fetched at once: enough to hide the latency of
	// an object store.
	readAhead = 8
	// footerMagic is what every table ends with.
	footerMagic = "\xf0\x9f\xaa\xb3\xf0\x9f\xaa\xb3"
)

// Attach makes the store equal the checkpoint want, whose segments are chain, oldest
// first, in src. The zero ID with no chain makes it empty.
//
// If it equals want already, nothing is done. If it equals an older checkpoint of the
// same lineage, it ingests the segments that came since, unless tombstones were
// dropped from what it lacks. Otherwise it is emptied and ingests all. Reads give
// [ErrDetached] until it is done. It may wait for reads that go on: the calling
// goroutine must not have an iterator open.
//
// After an error the store is what it was, or holds nothing. Errors are *DamagedError,
// which names a segment, and *StoreError.
func (s *Store) Attach(ctx context.Context, want ID, chain []Segment, src Objects) (Attached, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	start := time.Now()
	if s.closed.Load() {
		return Attached{}, ErrClosed
	}
	for _, seg := range chain {
		if err := seg.check(); err != nil {
			return Attached{}, s.failed("attach", "", err)
		}
	}
	if want == (ID{}) && len(chain) > 0 {
		return Attached{}, s.failed("attach", "", errors.New("a chain of segments that has no ID"))
	}
	s.src = src
	s.attaching.Store(true)
	defer s.attaching.Store(false)
	a, err := s.attach(ctx, want, chain)
	if err != nil {
		return Attached{}, err
	}
	a.Took = time.Since(start)
	s.handle.Load().download()
	return a, nil
}

func (s *Store) attach(ctx context.Context, want ID, chain []Segment) (Attached, error) {
	have := s.ID()
	why := s.discard
	if h := s.handle.Load(); h == nil {
		why = "an attach before it failed"
	} else if err := h.failure(); err != nil {
		why = err.Error()
		var d *DamagedError
		s.verify = s.verify || errors.As(err, &d)
	} else if why == "" {
		h.remote.set(s.src)
		if err := s.present(ctx, h); err != nil {
			why = err.Error()
		}
	}
	if why == "" {
		if have == want {
			return Attached{How: Reused}, nil
		}
		var newer []Segment
		if newer, why = since(have, want, chain); why == "" {
			a, err := s.ingestChain(ctx, want, newer, true)
			a.How = CaughtUp
			if err == nil || ctx.Err() != nil {
				return a, err
			}
			var d *DamagedError
			if errors.As(err, &d) && d.File == "" {
				return a, err // a new database would meet the same segment
			}
			why = err.Error()
		}
	}
	if s.handle.Load() == nil || have != (ID{}) || s.handle.Load().failure() != nil {
		if err := s.reset(); err != nil {
			_ = s.drop()
			return Attached{}, s.failed("empty", "", err)
		}
	}
	s.handle.Load().remote.set(s.src)
	a, err := s.ingestChain(ctx, want, chain, false)
	if err != nil {
		return a, err
	}
	if s.verify {
		if err := s.fs.Remove(s.path(damagedName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return a, s.failed("attach", "", err)
		}
	}
	s.verify, s.discard = false, ""
	a.How, a.Why = Rebuilt, why
	return a, nil
}

// since returns the segments of the chain of want that a store which equals have
// lacks, or why ingesting them would not do.
func since(have, want ID, chain []Segment) (newer []Segment, why string) {
	switch {
	case have == (ID{}):
		return nil, "the local store was empty"
	case have.Lineage != want.Lineage || want == (ID{}):
		return nil, fmt.Sprintf("the local store is of lineage %s", have.Lineage)
	case have.Checkpoint >= want.Checkpoint:
		return nil, fmt.Sprintf("the local store is at %v", have)
	}
	for _, s := range chain {
		if s.Last <= have.Checkpoint {
			continue
		}
		// What was deleted since, and is in a segment without tombstones, is not to be
		// seen; not even the key-groups that it was in, if nothing else is left of them.
		if s.Base {
			return nil, fmt.Sprintf("segment %s, which is newer than the local store, has no tombstones", s.Object)
		}
		newer = append(newer, s)
	}
	// A merge of the oldest segments of which nothing remained is in no chain. It shows
	// in that the chain begins later than the store does.
	oldest := want.Checkpoint + 1
	for _, s := range chain {
		oldest = min(oldest, s.First)
	}
	if oldest > have.Checkpoint {
		return nil, fmt.Sprintf("the chain begins after checkpoint %d, at which the local store is", have.Checkpoint)
	}
	return newer, ""
}

// present makes sure that the remote segments that the store needs are there.
func (s *Store) present(ctx context.Context, h *handle) error {
	for p := range h.external() {
		if err := s.checkRemote(ctx, p); err != nil {
			return err
		}
	}
	return nil
}

// checkRemote reads the end of a remote segment.
func (s *Store) checkRemote(ctx context.Context, p place) error {
	n := int64(len(footerMagic))
	if p.length < n {
		return s.damaged(p.object, fmt.Errorf("%d bytes are less than any segment has", p.length))
	}
	b, err := s.src.GetRange(ctx, p.object, p.offset+p.length-n, n)
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return s.damaged(p.object, fmt.Errorf("it ends before byte %d: %w", p.offset+p.length, err))
	case err != nil:
		return s.failed("attach", p.object, err)
	case string(b) != footerMagic:
		return s.damaged(p.object, fmt.Errorf("it does not end as a segment does at byte %d", p.offset+p.length))
	}
	return nil
}

func (s *Store) failed(op, object string, err error) error {
	return &StoreError{Op: op, Dir: s.dir, Object: object, Err: err}
}

func (s *Store) damaged(object string, err error) error {
	return &DamagedError{Dir: s.dir, Object: object, Err: err}
}

// arrival is a segment on its way into the database.
type arrival struct {
	seg    Segment
	path   string // of a file in tmpName; empty if it is read where it is
	linked bool
}

// ingestChain ingests segments, oldest first, and with the last one the ID. If it
// fails after the first one went in, the database holds nothing that can be used, and
// is dropped.
func (s *Store) ingestChain(ctx context.Context, want ID, chain []Segment, old bool) (a Attached, err error) {
	arrivals, err := s.bringAll(ctx, chain)
	defer func() {
		for _, r := range arrivals {
			s.removeTmp(r.path)
		}
	}()
	if err != nil {
		return a, err
	}
	for i, r := range arrivals {
		a.Segments++
		a.Bytes += r.seg.Length
		if r.linked {
			a.Linked++
		}
		if r.path == "" {
			a.Remote++
		}
		var id *ID
		switch {
		case i == len(arrivals)-1:
			id = &want
		case i == 0 && old:
			id = &ID{} // from here on it equals no checkpoint
		}
		if err = ctx.Err(); err == nil {
			err = s.ingest(ctx, &r, id)
		}
		if err != nil {
			if i > 0 {
				_ = s.drop()
			}
			return a, err
		}
	}
	if len(arrivals) == 0 && want != (ID{}) {
		return a, s.ingest(ctx, nil, &want)
	}
	return a, nil
}

// bringAll fetches segments, some at a time, in the same order.
func (s *Store) bringAll(ctx context.Context, chain []Segment) ([]arrival, error) {
	arrivals := make([]arrival, len(chain))
	errs := make([]error, len(chain))
	slots := make(chan struct{}, readAhead)
	var wg sync.WaitGroup
	for i, seg := range chain {
		arrivals[i] = arrival{seg: seg}
		name := s.path(tmpName, s.newName()+".sst")
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			if s.byReference(seg) {
				errs[i] = s.checkRemote(ctx, place{seg.Object, seg.Offset, seg.Length})
				return
			}
			arrivals[i].path = name
			arrivals[i].linked, errs[i] = s.bring(ctx, name, seg, nil)
		})
	}
	wg.Wait()
	return arrivals, errors.Join(errs...)
}

// byReference tells whether a segment is read where it is.
func (s *Store) byReference(seg Segment) bool {
	_, local := s.src.Path(seg.Object)
	return !local && seg.Length > copyBytes && !s.verify
}

// bring makes the file name of a segment: from data if there is any, by hard link, or
// by copy.
func (s *Store) bring(ctx context.Context, name string, seg Segment, data []byte) (linked bool, err error) {
	if data != nil {
		if int64(len(data)) != seg.Length || crc32.Checksum(data, castagnoli) != seg.CRC32C {
			return false, s.damaged(seg.Object, fmt.Errorf("%d bytes with checksum %08x, %d with %08x were written", len(data), crc32.Checksum(data, castagnoli), seg.Length, seg.CRC32C))
		}
		if err := s.writePath(name, data); err != nil {
			return false, s.failed("copy", seg.Object, err)
		}
		return false, nil
	}
	read := func(off, n int64) ([]byte, error) { return s.src.GetRange(ctx, seg.Object, seg.Offset+off, n) }
	if path, ok := s.src.Path(seg.Object); ok && seg.Offset == 0 {
		info, err := s.fs.Stat(path)
		if err != nil {
			return false, s.failed("link", seg.Object, err)
		}
		if info.Size() != seg.Length {
			return false, s.damaged(seg.Object, fmt.Errorf("%d bytes, %d were written", info.Size(), seg.Length))
		}
		f, err := s.fs.Open(path)
		if err != nil {
			return false, s.failed("copy", seg.Object, err)
		}
		defer func() { _ = f.Close() }()
		read = func(off, n int64) ([]byte, error) {
			b := make([]byte, n)
			_, err := f.ReadAt(b, off)
			return b, err
		}
		if s.fs.Link(path, name) == nil {
			if s.verify {
				err = s.copySegment(ctx, nil, seg, read)
			}
			return true, err
		}
		// Another file system, or one that has no links.
	}
	f, err := s.fs.Create(name, vfs.WriteCategoryUnspecified)
	if err != nil {
		return false, s.failed("copy", seg.Object, err)
	}
	err = s.copySegment(ctx, f, seg, read)
	if err == nil {
		if err = f.Sync(); err != nil {
			err = s.failed("copy", seg.Object, err)
		}
	}
	return false, errors.Join(err, f.Close())
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// copySegment reads a segment, checks it as a whole, and writes it to w if there is
// one.
func (s *Store) copySegment(ctx context.Context, w io.Writer, seg Segment, read func(off, n int64) ([]byte, error)) error {
	var sum uint32
	for off := int64(0); off < seg.Length; off += chunkBytes {
		if err := ctx.Err(); err != nil {
			return s.failed("copy", seg.Object, err)
		}
		n := min(chunkBytes, seg.Length-off)
		b, err := read(off, n)
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || err == nil && int64(len(b)) != n {
			return s.damaged(seg.Object, fmt.Errorf("it ends before byte %d", seg.Offset+off+n))
		}
		if err != nil {
			return s.failed("copy", seg.Object, err)
		}
		sum = crc32.Update(sum, castagnoli, b)
		if w != nil {
			if _, err := w.Write(b); err != nil {
				return s.failed("copy", seg.Object, err)
			}
		}
	}
	if sum != seg.CRC32C {
		return s.damaged(seg.Object, fmt.Errorf("its checksum is %08x, %08x was written", sum, seg.CRC32C))
	}
	return nil
}

func (s *Store) removeTmp(path string) {
	if path != "" {
		_ = s.fs.Remove(path) // Pebble removed it if it took it; else Open does
	}
}

// ingest puts one segment into the database, and with it the ID, in one step. Either
// may be nil.
func (s *Store) ingest(ctx context.Context, r *arrival, id *ID) error {
	h := s.handle.Load()
	object := ""
	var paths []string
	var external []pebble.ExternalFile
	if r != nil {
		object = r.seg.Object
		if r.path != "" {
			paths = append(paths, r.path)
		} else {
			p := place{r.seg.Object, r.seg.Offset, r.seg.Length}
			external = append(external, pebble.ExternalFile{
				Locator: p.locator(), ObjName: placeName, Size: uint64(p.length), HasPointKey: true,
				StartKey: groupKey(r.seg.MinKG), EndKey: groupKey(r.seg.MaxKG + 1),
			})
		}
	}
	var err error
	if r != nil && r.path != "" {
		h.ingesting = object
		defer func() { h.ingesting = "" }()
	}
	if id == nil {
		if len(external) > 0 {
			_, err = h.db.IngestExternalFiles(ctx, external)
		} else {
			err = h.db.Ingest(ctx, paths)
		}
	} else {
		marker := s.path(tmpName, s.newName()+".id.sst")
		defer s.removeTmp(marker)
		if err := s.writeMarker(marker, *id); err != nil {
			return s.failed("ingest", object, err)
		}
		// The marker before this one is cut out in the same step, so that there is never
		// more than one, at the bottom, where no compaction has to do with it.
		_, err = h.db.IngestAndExcise(ctx, slices.Concat(paths, []string{marker}), nil, external, pebble.KeyRange{Start: reservedStart, End: reservedEnd})
	}
	if err != nil {
		if broken := h.failure(); broken != nil {
			return broken
		}
		if r != nil && !environment(err) && ctx.Err() == nil {
			// Footer or properties could not be parsed.
			return s.damaged(object, err)
		}
		return s.failed("ingest", object, err)
	}
	if id != nil {
		s.id.Store(id)
	}
	return h.failure()
}

func groupKey(kg uint16) []byte { return []byte{byte(kg >> 8), byte(kg)} }

// writeMarker writes the table that holds the ID.
func (s *Store) writeMarker(path string, id ID) error {
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	w := sstable.NewWriter(objstorageprovider.NewFileWritable(f), sstable.WriterOptions{
		TableFormat: sstable.TableFormatPebblev6, Compression: sstable.NoCompression, DisableValueBlocks: true,
	})
	err = w.Set(markerKey, id.encode())
	return errors.Join(err, w.Close()) // syncs
}

// Ingest takes over the changes of the checkpoint want, which was committed and whose
// parent is prev: seg, or nil if nothing changed. Its bytes are data, or, if that is
// nil, where [Store.Attach] was told that segments are.
//
// After an error the store equals prev as before, or cannot be read until it is
// attached again, as each call says then. Errors are *MismatchError, *DamagedError and
// *StoreError.
func (s *Store) Ingest(ctx context.Context, want, prev ID, seg *Segment, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.handle.Load()
	switch {
	case s.closed.Load():
		return ErrClosed
	case h == nil:
		return ErrDetached
	case h.failure() != nil:
		return h.failure()
	}
	if have := s.ID(); have != prev || want.Checkpoint <= prev.Checkpoint || prev != (ID{}) && want.Lineage != prev.Lineage {
		return &MismatchError{Dir: s.dir, Have: have, Want: want, Prev: prev}
	}
	if seg == nil {
		return s.ingest(ctx, nil, &want)
	}
	if err := seg.check(); err != nil {
		return s.failed("ingest", "", err)
	}
	if data == nil && s.src == nil {
		return s.failed("ingest", seg.Object, ErrDetached)
	}
	r := arrival{seg: *seg, path: s.path(tmpName, s.newName()+".sst")}
	defer s.removeTmp(r.path)
	var err error
	if r.linked, err = s.bring(ctx, r.path, *seg, data); err != nil {
		return err
	}
	return s.ingest(ctx, &r, &want)
}
