package segment

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"runtime"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/objstorage"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/block"
)

// ErrCorrupt is wrapped by every error that says that a segment's bytes are not
// what was written.
var ErrCorrupt = errors.New("segment is damaged")

// Reader reads one segment. It may be used by many goroutines, and by many scans, at
// once. One that [Open] opened holds nothing but the bytes and need not be closed.
type Reader struct {
	table *sstable.Reader
	in    *readable // nil if the segment is in memory
}

const (
	footerMagic = "\xf0\x9f\xaa\xb3\xf0\x9f\xaa\xb3"
	// footerBytes of the table format: checksum kind, two block handles, checksum,
	// version, magic.
	footerBytes   = 1 + 2*20 + 4 + 4 + 8
	footerVersion = 6
)

// Open opens the segment in b, which must not change any more. An error wraps
// [ErrCorrupt]. It checks footer and index, and each block is checked when it is
// read; only [OpenVerified] checks the bytes as a whole.
func Open(b []byte) (r *Reader, err error) {
	defer recovered("open segment", &err)
	if err := checkFooter(b, int64(len(b))); err != nil {
		return nil, err
	}
	t, err := sstable.NewMemReader(b, tableOptions)
	if err != nil {
		return nil, corrupt("open segment", err)
	}
	return &Reader{table: t}, nil
}

// OpenAt opens the segment of size bytes that from reads, and reads of it what is
// asked for: a scan needs little memory, whatever the size. from may be used by
// several goroutines; if it is an [io.Closer] it is closed by [Reader.Close]. An error
// of from comes back as it is, any other wraps [ErrCorrupt].
func OpenAt(from io.ReaderAt, size int64) (r *Reader, err error) {
	defer recovered("open segment", &err)
	footer := make([]byte, min(size, footerBytes))
	if err := readFullAt(from, footer, size-int64(len(footer))); err != nil {
		return nil, fmt.Errorf("open segment: %w", err)
	}
	if err := checkFooter(footer, size); err != nil {
		return nil, err
	}
	in := &readable{from: from, size: size}
	t, err := sstable.NewReader(context.Background(), in, tableOptions)
	if err != nil {
		if cause := in.cause(); cause != nil {
			return nil, fmt.Errorf("open segment: %w", cause)
		}
		return nil, corrupt("open segment", err)
	}
	return &Reader{table: t, in: in}, nil
}

// Close releases what the segment is read from. No scan may be under way.
func (r *Reader) Close() error {
	if r.in == nil {
		return nil
	}
	return r.table.Close()
}

var tableOptions = sstable.ReaderOptions{
	ReaderOptions: block.ReaderOptions{},
	Filters:       map[string]sstable.FilterPolicy{bloom.FilterPolicy(DefaultBloomBits).Name(): bloom.FilterPolicy(DefaultBloomBits)},
}

// checkFooter looks at the end of a segment of size bytes. The formats before this
// one have no checksum in the footer: their lengths and offsets could not be believed,
// so a file that says it is one of them is not looked at.
func checkFooter(end []byte, size int64) error {
	if len(end) < footerBytes || string(end[len(end)-8:]) != footerMagic {
		return corrupt("open segment", fmt.Errorf("no table footer at the end of %d bytes", size))
	}
	if v := binary.LittleEndian.Uint32(end[len(end)-12:]); v != footerVersion {
		return corrupt("open segment", fmt.Errorf("table version %d, want %d", v, footerVersion))
	}
	return nil
}

// readable is what Pebble reads a segment from. It keeps the first error of from,
// which Pebble would call by another name.
type readable struct {
	from io.ReaderAt
	size int64
	err  atomic.Pointer[error]
}

func (r *readable) cause() error {
	if err := r.err.Load(); err != nil {
		return *err
	}
	return nil
}

func (r *readable) ReadAt(_ context.Context, p []byte, off int64) error {
	if off < 0 || off > r.size || int64(len(p)) > r.size-off {
		return fmt.Errorf("bytes %d to %d of a segment of %d", off, off+int64(len(p)), r.size)
	}
	err := readFullAt(r.from, p, off)
	if err != nil {
		r.err.CompareAndSwap(nil, &err)
	}
	return err
}

func readFullAt(from io.ReaderAt, p []byte, off int64) error {
	n, err := from.ReadAt(p, off)
	if n == len(p) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (r *readable) Size() int64 { return r.size }

func (r *readable) Close() error {
	if c, ok := r.from.(io.Closer); ok {
		return c.Close()
	}
	return nil
}

func (r *readable) NewReadHandle(objstorage.ReadBeforeSize) objstorage.ReadHandle {
	h := objstorage.MakeNoopReadHandle(r)
	return &h
}

// OpenVerified is [Open] after a check of the whole segment against the checksum
// that [Write] or [Merge] returned.
func OpenVerified(b []byte, crc32c uint32) (*Reader, error) {
	if got := Checksum(b); got != crc32c {
		return nil, corrupt("open segment", fmt.Errorf("crc32c of %d bytes is %08x, want %08x", len(b), got, crc32c))
	}
	return Open(b)
}

// Changes yields the entries of the key-groups [lo, hi) of this segment alone, in
// order, tombstones included: what to do to a state that equals the segments before
// it. The entry is valid until the next step. After an error nothing follows.
func (r *Reader) Changes(lo, hi int) iter.Seq2[Entry, error] {
	return scan(lo, hi, []*Reader{r}, true)
}

// Scan yields the state that readers, oldest first, make up together: of each key
// in the key-groups [lo, hi) the newest value, in order of key-group, state and
// key; deleted keys are left out. The entry is valid until the next step. An error
// comes last, with a zero entry, and wraps [ErrCorrupt].
func Scan(lo, hi int, readers ...*Reader) iter.Seq2[Entry, error] {
	return scan(lo, hi, readers, false)
}

func scan(lo, hi int, readers []*Reader, tombstones bool) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		lower, upper, some := bounds(lo, hi)
		if !some {
			return
		}
		m, err := openMerger(lower, upper, readers)
		if err != nil {
			yield(Entry{}, err)
			return
		}
		defer m.close()
		for {
			ok, err := m.next()
			if err != nil {
				yield(Entry{}, err)
				return
			}
			if !ok {
				return
			}
			if m.deleted && !tombstones {
				continue
			}
			if !yield(entryOf(m.key, m.value, m.deleted), nil) {
				return
			}
		}
	}
}

// bounds returns the keys [lower, upper) of the key-groups [lo, hi); an upper of nil
// is the end. some is false if there are none.
func bounds(lo, hi int) (lower, upper []byte, some bool) {
	lo = max(lo, 0)
	if lo >= hi || lo > 0xffff {
		return nil, nil, false
	}
	lower = binary.BigEndian.AppendUint16(nil, uint16(lo))
	if hi <= 0xffff {
		upper = binary.BigEndian.AppendUint16(nil, uint16(hi))
	}
	return lower, upper, true
}

// cursorBlocks is how many blocks a cursor holds at a time: one of data, one or two of
// the index, and one compressed.
const cursorBlocks = 5

// tableCursor walks the point keys of one table.
type tableCursor struct {
	r       *Reader
	it      sstable.Iterator
	blocks  block.BufferPool // the memory of blocks, used again and again
	lower   []byte           // where to begin; nil is before every key
	started bool
	k, v    []byte
	del     bool
}

func newTableCursor(r *Reader, lower, upper []byte) (*tableCursor, error) {
	c := &tableCursor{r: r, lower: lower}
	c.blocks.Init(cursorBlocks)
	it, err := r.table.NewPointIter(context.Background(), sstable.IterOptions{
		Lower: lower, Upper: upper,
		FilterBlockSizeLimit: sstable.NeverUseFilterBlock,
		Env:                  sstable.ReadEnv{Block: block.ReadEnv{BufferPool: &c.blocks}},
		ReaderProvider:       sstable.MakeTrivialReaderProvider(r.table),
		BlobContext:          sstable.AssertNoBlobHandles,
	})
	if err != nil {
		c.blocks.Release()
		return nil, r.fault(err)
	}
	c.it = it
	return c, nil
}

func (c *tableCursor) next() (bool, error) {
	if !c.started {
		c.started = true
		if kv := c.it.SeekGE(c.lower, 0); kv != nil {
			v, _, err := kv.Value(nil)
			return c.load(kv.K, v, err)
		}
	} else if kv := c.it.Next(); kv != nil {
		v, _, err := kv.Value(nil)
		return c.load(kv.K, v, err)
	}
	if err := c.it.Error(); err != nil {
		return false, c.r.fault(err)
	}
	return false, nil
}

func (c *tableCursor) load(k sstable.InternalKey, v []byte, err error) (bool, error) {
	if err != nil {
		return false, c.r.fault(err)
	}
	if len(k.UserKey) < headerLen {
		return false, fmt.Errorf("key of %d bytes is too short", len(k.UserKey))
	}
	c.k = k.UserKey
	switch kind := k.Kind(); kind {
	case sstable.InternalKeyKindSet:
		c.v, c.del = v, false
	case sstable.InternalKeyKindDelete:
		c.v, c.del = nil, true
	default:
		return false, fmt.Errorf("key of kind %s", kind)
	}
	return true, nil
}

func (c *tableCursor) key() []byte   { return c.k }
func (c *tableCursor) value() []byte { return c.v }
func (c *tableCursor) deleted() bool { return c.del }

func (c *tableCursor) close() {
	_ = c.it.Close()
	c.blocks.Release()
}

// fault is what went wrong in reading: what it is read from failed, or its bytes are
// not what was written.
func (r *Reader) fault(err error) error {
	if r.in != nil {
		if cause := r.in.cause(); cause != nil {
			return unreadable{cause}
		}
	}
	return err
}

// unreadable is an error of what a segment is read from.
type unreadable struct{ error }

func (e unreadable) Unwrap() error { return e.error }

// corrupt says that bytes are not what was written, unless err says that they could not
// be read.
func corrupt(op string, err error) error {
	if u, ok := errors.AsType[unreadable](err); ok {
		return fmt.Errorf("%s: %w", op, u.error)
	}
	return wrong(op, err)
}

func wrong(op string, err error) error { return fmt.Errorf("%s: %w: %w", op, ErrCorrupt, err) }

// recovered turns a panic of the table reader into an error. It is written for its
// own files and panics on some that no writer wrote; a file that cannot be read is
// news for the operator and no reason to die without saying which file.
func recovered(op string, err *error) {
	p := recover()
	if p == nil {
		return
	}
	if re, ok := p.(runtime.Error); ok {
		*err = corrupt(op, re)
		return
	}
	*err = corrupt(op, fmt.Errorf("%v", p))
}
