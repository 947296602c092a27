package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"runtime"

	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/block"
)

// ErrCorrupt is wrapped by every error that says that a segment's bytes are not
// what was written.
var ErrCorrupt = errors.New("segment is damaged")

// Reader reads one segment that is in memory. It may be used by many goroutines,
// and by many scans, at once. It holds nothing but the bytes: there is no Close.
type Reader struct {
	b     []byte
	table *sstable.Reader
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
	// The formats before this one have no checksum in the footer: their lengths and
	// offsets could not be believed, so a file that says it is one of them is not
	// looked at.
	if len(b) < footerBytes || string(b[len(b)-8:]) != footerMagic {
		return nil, corrupt("open segment", fmt.Errorf("no table footer at the end of %d bytes", len(b)))
	}
	if v := binary.LittleEndian.Uint32(b[len(b)-12:]); v != footerVersion {
		return nil, corrupt("open segment", fmt.Errorf("table version %d, want %d", v, footerVersion))
	}
	t, err := sstable.NewMemReader(b, sstable.ReaderOptions{
		ReaderOptions: block.ReaderOptions{},
		Filters:       map[string]sstable.FilterPolicy{bloom.FilterPolicy(bloomBitsPerKey).Name(): bloom.FilterPolicy(bloomBitsPerKey)},
	})
	if err != nil {
		return nil, corrupt("open segment", err)
	}
	return &Reader{b: b, table: t}, nil
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

// tableCursor walks the point keys of one table.
type tableCursor struct {
	it      sstable.Iterator
	lower   []byte // where to begin; nil is before every key
	started bool
	k, v    []byte
	del     bool
}

func newTableCursor(r *Reader, lower, upper []byte) (*tableCursor, error) {
	it, err := r.table.NewIter(sstable.NoTransforms, lower, upper, sstable.AssertNoBlobHandles)
	if err != nil {
		return nil, err
	}
	return &tableCursor{it: it, lower: lower}, nil
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
	return false, c.it.Error()
}

func (c *tableCursor) load(k sstable.InternalKey, v []byte, err error) (bool, error) {
	if err != nil {
		return false, err
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
func (c *tableCursor) close()        { _ = c.it.Close() }

func corrupt(op string, err error) error { return fmt.Errorf("%s: %w: %w", op, ErrCorrupt, err) }

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
