package pebble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/objstorage"
	"github.com/cockroachdb/pebble/v2/sstable"
	"go.uber.org/zap"
)

// blockCache is Pebble's block cache, for readers of this store.
type blockCache struct {
	cache *pebble.Cache
	// options returns those of a reader whose blocks are kept under num.
	options func(num uint64) sstable.ReaderOptions
	evict   func(num uint64)
	close   func()

	mu     sync.Mutex
	pinned int64 // bytes of filters that are kept beside it
}

// newBlockCache deals with types of Pebble that cannot be named outside of it.
func newBlockCache(size int64) *blockCache {
	cache := pebble.NewCache(size)
	handle := cache.NewHandle()
	options := func(num uint64) (o sstable.ReaderOptions) {
		o.CacheOpts.CacheHandle = handle
		assign(&o.CacheOpts.FileNum, num)
		return o
	}
	return &blockCache{
		cache:   cache,
		options: options,
		evict:   func(num uint64) { handle.EvictFile(options(num).CacheOpts.FileNum) },
		close:   func() { handle.Close(); cache.Unref() },
	}
}

func assign[T ~uint64](dst *T, v uint64) { *dst = T(v) }

// table is a segment that can be read: a file of the store, or, if file is empty,
// where it is. It is closed when the last reference to it is given up.
type table struct {
	seg  Segment
	file string
	num  uint64 // in the block cache
	r    *sstable.Reader
	opts sstable.IterOptions
	// filter is asked before the reader, which leaves it out then.
	filter tableFilter
	store  *Store
	refs   atomic.Int32
	// from is the first checkpoint of which something may be in the table, as reads name
	// checkpoints; 0 if that is not known.
	from atomic.Int64
}

const (
	// filterShare is what part of the cache a filter may take. A larger one would push
	// out all else whenever it is asked, and is not.
	filterShare    = 32
	minFilterBytes = 1 << 20
)

// openTable opens a segment; it has one reference. The reader reads footer and
// properties.
func (s *Store) openTable(ctx context.Context, seg Segment, file string) (*table, error) {
	t := &table{seg: seg, file: file, num: s.nums.Add(1), store: s}
	t.refs.Store(1)
	t.filter.FilterPolicy, t.filter.store = filterPolicy, s
	var readable objstorage.Readable
	if file != "" {
		f, err := s.fs.Open(s.path(segmentsName, file))
		if err != nil {
			return nil, s.failed("open", seg.Object, err)
		}
		if readable, err = sstable.NewSimpleReadable(f); err != nil {
			return nil, s.failed("open", seg.Object, errors.Join(err, f.Close()))
		}
		if readable.Size() != seg.Length {
			_ = readable.Close()
			return nil, t.damage(fmt.Errorf("%d bytes, %d were written", readable.Size(), seg.Length))
		}
	} else {
		readable = remoteReader{t}
	}
	err := guarded(func() (err error) {
		o := s.cache.options(t.num)
		o.Filters = map[string]sstable.FilterPolicy{filterPolicy.Name(): &t.filter}
		t.r, err = sstable.NewReader(ctx, readable, o)
		return err
	})
	if err != nil {
		_ = readable.Close()
		return nil, t.classify(err)
	}
	t.opts = sstable.IterOptions{
		Transforms: sstable.NoTransforms, Env: sstable.NoReadEnv,
		ReaderProvider: sstable.MakeTrivialReaderProvider(t.r), BlobContext: sstable.AssertNoBlobHandles,
		FilterBlockSizeLimit: sstable.FilterBlockSizeLimit(max(s.opts.CacheBytes/filterShare, minFilterBytes)),
	}
	if file == "" {
		s.remote.Store(t, struct{}{})
	}
	return t, nil
}

func (t *table) unref() {
	if t.refs.Add(-1) > 0 {
		return
	}
	if err := t.r.Close(); err != nil {
		t.store.log.Warn("close a segment", zap.String("object", t.seg.Object), zap.Error(err))
	}
	if t.filter.release != nil {
		t.filter.release()
	}
	t.store.cache.evict(t.num)
	t.store.remote.Delete(t)
}

// errUnreadable is what a panic of the table reader is turned into: it panics on some
// files that no writer wrote.
var errUnreadable = errors.New("the table reader gave up")

func guarded(f func() error) (err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errUnreadable, p)
		}
	}()
	return f()
}

// classify tells damage from a failure to read.
func (t *table) classify(err error) error {
	if away := (*unreachable)(nil); errors.As(err, &away) {
		return t.store.failed("read", t.seg.Object, away.error)
	}
	if errors.Is(err, errUnreadable) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) ||
		pebble.IsCorruptionError(err) && !environment(err) {
		return t.damage(err)
	}
	return t.store.failed("read", t.seg.Object, err)
}

func (t *table) damage(err error) error {
	return &DamagedError{Dir: t.store.dir, Object: t.seg.Object, File: t.file, Err: err}
}

// failed returns what a read of state that met err gives. After damage nothing is
// served any more.
func (t *table) failed(err error) error {
	err = t.classify(err)
	if d := (*DamagedError)(nil); errors.As(err, &d) {
		return t.store.broke(d, t.seg)
	}
	return err
}

// get looks for key, which the filter does not exclude. deleted tells that the segment
// says that there is no value.
func (t *table) get(ctx context.Context, dst, key []byte) (value []byte, found, deleted bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = t.failed(fmt.Errorf("%w: %v", errUnreadable, p))
		}
	}()
	opts := t.opts
	var b *blockBuffers // nil: the look goes through the block cache
	if t.filter.pinned.Load() != nil {
		opts.FilterBlockSizeLimit = sstable.NeverUseFilterBlock // it was asked
		if t.oneRead() {
			b = t.store.buffers.take() // and not given back after a panic: it may be in use
		}
	}
	it, err := t.seeker(ctx, opts, b)
	if err != nil {
		t.store.buffers.give(b)
		return dst, false, false, t.failed(err)
	}
	kv := it.SeekPrefixGE(key, key, 0)
	if kv == nil {
		err = it.Error()
	} else if bytes.Equal(kv.K.UserKey, key) {
		switch kv.K.Kind() {
		case sstable.InternalKeyKindDelete:
			deleted = true
		default:
			var v []byte
			if v, _, err = kv.Value(nil); err == nil {
				dst, found = append(dst, v...), true
			}
		}
	}
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	t.store.buffers.give(b)
	if err != nil {
		return dst, false, false, t.failed(err)
	}
	return dst, found, deleted, nil
}

// oneRead tells that only a block of data is to be read, and from this machine, when filter
// and index are at hand. Then a look for one key leaves the block cache alone. Keys that are
// hot are in the typed cache above, so that block is hardly ever asked again before it is
// pushed out, and the system keeps its file in memory anyway.
func (t *table) oneRead() bool {
	return t.file != "" && !t.r.Attributes.Has(sstable.AttributeTwoLevelIndex)
}

// seeker returns an iterator that reads data into b, unless b is nil or the index is not in
// the block cache: only what reads through the cache brings it there.
func (t *table) seeker(ctx context.Context, opts sstable.IterOptions, b *blockBuffers) (sstable.Iterator, error) {
	if b == nil {
		return t.r.NewPointIter(ctx, opts)
	}
	opts.Env.Block.BufferPool, opts.Env.Block.Stats = &b.pool, &b.stats
	it, err := t.r.NewPointIter(ctx, opts)
	if err != nil || b.stats.BlockBytes == b.stats.BlockBytesInCache {
		return it, err
	}
	if err := it.Close(); err != nil {
		return nil, err
	}
	opts.Env = t.opts.Env
	return t.r.NewPointIter(ctx, opts)
}

// unreachable is an error of the checkpoint store.
type unreachable struct{ error }

func (e *unreachable) Unwrap() error { return e.error }

// remoteReader reads a segment where it is.
type remoteReader struct{ t *table }

func (r remoteReader) Close() error { return nil }
func (r remoteReader) Size() int64  { return r.t.seg.Length }

func (r remoteReader) NewReadHandle(before objstorage.ReadBeforeSize) objstorage.ReadHandle {
	return &remoteHandle{r: r, before: int64(before)}
}

// remoteHandle reads more than it is asked for: before its first read, where footer, index
// and filter stand, and behind reads that follow each other.
type remoteHandle struct {
	r      remoteReader
	before int64
	next   int64 // where the last read ended
	ahead  int64
	data   []byte
	off    int64 // of data
}

const maxReadAhead = 1 << 20

func (h *remoteHandle) Close() error                                 { h.data = nil; return nil }
func (h *remoteHandle) SetupForCompaction()                          {}
func (h *remoteHandle) RecordCacheHit(context.Context, int64, int64) { h.before = 0 }

func (h *remoteHandle) ReadAt(ctx context.Context, p []byte, off int64) error {
	n := int64(len(p))
	if off >= h.off && off+n <= h.off+int64(len(h.data)) {
		copy(p, h.data[off-h.off:])
		h.next = off + n
		return nil
	}
	begin, end := off, off+n
	switch {
	case h.before > n:
		begin = max(off+n-h.before, 0)
	case h.next == off && off > 0:
		h.ahead = min(max(2*h.ahead, 64<<10), maxReadAhead)
		end = min(max(end, off+h.ahead), h.r.Size())
	default:
		h.ahead = 0
	}
	h.before = 0
	data := make([]byte, end-begin)
	if err := h.r.ReadAt(ctx, data, begin); err != nil {
		return err
	}
	h.data, h.off, h.next = data, begin, off+n
	copy(p, data[off-begin:])
	return nil
}

func (r remoteReader) ReadAt(ctx context.Context, p []byte, off int64) error {
	if off < 0 || off+int64(len(p)) > r.t.seg.Length {
		return fmt.Errorf("%d bytes at %d of %d: %w", len(p), off, r.t.seg.Length, io.ErrUnexpectedEOF)
	}
	b, err := r.t.store.getRange(ctx, r.t.seg.Object, r.t.seg.Offset+off, int64(len(p)))
	if err == nil && len(b) != len(p) {
		err = fmt.Errorf("got %d of %d bytes at %d: %w", len(b), len(p), off, io.ErrUnexpectedEOF)
	}
	if err != nil {
		if !errors.Is(err, io.ErrUnexpectedEOF) {
			err = &unreachable{err} // what it wraps, io.EOF perhaps, says nothing of the segment
		}
		return err
	}
	r.t.store.remoteRead.Add(int64(len(b)))
	copy(p, b)
	return nil
}

// version is the state of the store at one checkpoint: immutable, and alive while it
// is the current one or is read.
type version struct {
	id      ID
	tables  []*table // oldest first
	inPlace bool     // some are read where they are
	refs    atomic.Int64
	done    func() // when it is not read any more

	// spans are the begins of ranges of key-groups, in order, each up to the next one;
	// owners are the tables that have keys in them, newest first.
	spans  []int
	owners [][]*table
}

// newVersion takes a reference to each table.
func newVersion(id ID, tables []*table, done func()) *version {
	v := &version{id: id, tables: tables, done: done}
	v.refs.Store(1)
	for _, t := range tables {
		t.refs.Add(1)
		v.inPlace = v.inPlace || t.file == ""
		v.spans = append(v.spans, int(t.seg.MinKG), int(t.seg.MaxKG)+1)
	}
	slices.Sort(v.spans)
	v.spans = slices.Compact(v.spans)
	v.owners = make([][]*table, len(v.spans))
	for _, t := range slices.Backward(tables) {
		i, _ := slices.BinarySearch(v.spans, int(t.seg.MinKG))
		for ; i < len(v.spans) && v.spans[i] <= int(t.seg.MaxKG); i++ {
			v.owners[i] = append(v.owners[i], t)
		}
	}
	return v
}

// at returns the tables that may have keys of a key-group, newest first.
func (v *version) at(kg int) []*table {
	i, found := slices.BinarySearch(v.spans, kg)
	if !found {
		i--
	}
	if i < 0 {
		return nil
	}
	return v.owners[i]
}

// depth returns how many tables a read may have to look at.
func (v *version) depth() int {
	n := 0
	for _, o := range v.owners {
		n = max(n, len(o))
	}
	return n
}

func (v *version) acquire() bool {
	for {
		n := v.refs.Load()
		if n == 0 {
			return false
		}
		if v.refs.CompareAndSwap(n, n+1) {
			return true
		}
	}
}

func (v *version) release() {
	if v.refs.Add(-1) > 0 {
		return
	}
	for _, t := range v.tables {
		t.unref()
	}
	v.done()
}
