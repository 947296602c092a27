package segment

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/weirstream/weir/internal/guard"
)

// Piece is one segment of a level, not yet opened.
type Piece struct {
	MinKG, MaxKG uint16 // its key-groups, both inclusive
	// Entries is how many keys and tombstones it has. A scan of the whole piece that
	// finds another number says that it is damaged. Negative is not known.
	Entries int64
	// Open is called when the turn of the piece comes. The reader is closed when its
	// last entry was read, or when the scan ends.
	Open func() (*Reader, error)
	// Fault says what becomes of an error in reading the piece, one of Open excepted.
	// Nil leaves it as it is.
	Fault func(error) error
}

// Level is segments that have no key in common, in order of their keys. At any time a
// scan has at most one of them open.
type Level []Piece

// ScanLevels is [Scan] over levels, oldest first, which it opens piece by piece. An
// error of a piece's Open comes as it is.
func ScanLevels(lo, hi int, levels ...Level) iter.Seq2[Entry, error] {
	return func(yield func(Entry, error) bool) {
		lower, upper, some := bounds(lo, hi)
		if !some {
			return
		}
		m, err := openLevels(lower, upper, lo, hi, levels)
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
			if !m.deleted && !yield(entryOf(m.key, m.value, false), nil) {
				return
			}
		}
	}
}

// MergeOptions says what becomes of entries in a merge.
type MergeOptions struct {
	// Base says that nothing older is left for tombstones to hide, so they vanish.
	Base bool
	// Processing and Event are the two clocks, in milliseconds since 1970. What has
	// expired by them becomes a tombstone. math.MinInt64 is before everything.
	Processing, Event int64
	// Spared, by state, are expiries that do not count.
	Spared map[uint16]Spans

	// KeyGroups is the app's count. The key-groups are divided into Shards ranges of
	// equal size; a piece ends where one of them ends.
	KeyGroups, Shards int
	// TargetBytes is the size from which on a piece ends at the next key-group, and
	// twice that at the next key. Zero is no limit.
	TargetBytes int64

	// Pace is called once for each [PaceEntries] entries read; an error ends the merge
	// and comes back. Nil is not called.
	Pace func() error

	// BloomBits is how many bits the filter has for each key; 0 is the default.
	BloomBits int

	// Buffer is for the pieces, one after the other; nil is a new one. Pieces are large, and
	// new memory costs as much to clear as to fill, so it is worth keeping for the next merge.
	// It grows to the largest piece.
	Buffer *bytes.Buffer
}

// PaceEntries is how many entries a merge reads between two calls of Pace: some
// hundred microseconds of work.
const PaceEntries = 2048

// Merged describes a piece that a merge wrote.
type Merged struct {
	Info
	MinKey, MaxKey []byte // first and last key, with key-group and state
	Expired        int64  // entries dropped, or made tombstones, because of their time
}

// MergeLevels writes what levels, oldest first, say together, as pieces without a key
// in common. Each piece goes to out when it is complete; data is valid until out
// returns. It holds one piece in memory, and of each level what its readers hold. An
// error of out, of Pace and of a piece's Open comes back as it is.
func MergeLevels(o MergeOptions, out func(p Merged, data []byte) error, levels ...Level) error {
	m, err := openLevels(nil, nil, 0, 1<<16, levels)
	if err != nil {
		return err
	}
	defer m.close()
	c := cutter{o: o, out: out, buf: cmp.Or(o.Buffer, new(bytes.Buffer))}
	for n := 1; ; n++ {
		ok, err := m.next()
		if err == nil && o.Pace != nil && n%PaceEntries == 0 {
			err = o.Pace()
		}
		if err != nil {
			return c.abort(err)
		}
		if !ok {
			return c.end()
		}
		if err := c.add(m.key, m.value, m.deleted); err != nil {
			return c.abort(err)
		}
	}
}

// cutter writes entries that come in order as pieces.
type cutter struct {
	o   MergeOptions
	out func(Merged, []byte) error

	w     *writer // nil between pieces
	buf   *bytes.Buffer
	piece Merged
	last  []byte // the last key of the piece
}

func (c *cutter) add(key, value []byte, deleted bool) error {
	expired := false
	if !deleted {
		// A value that doesn't begin with a header is not for a merge to judge.
		if h, _, err := CutHeader(value); err == nil && h.Domain != Forever {
			expired = h.Expired(c.o.Processing, c.o.Event) && !c.o.Spared[binary.BigEndian.Uint16(key[2:])].Has(h)
		}
	}
	if (deleted || expired) && (c.o.Base || guard.Broken(guard.Tombstones)) {
		if expired {
			c.piece.Expired++
		}
		return nil
	}
	if c.w != nil && c.cutBefore(key) {
		if err := c.end(); err != nil {
			return err
		}
	}
	if c.w == nil {
		c.buf.Reset()
		c.w = newWriter(c.buf, c.o.BloomBits)
		c.piece.MinKey = bytes.Clone(key)
	}
	if expired {
		c.piece.Expired++
		deleted, value = true, nil
	}
	c.last = append(c.last[:0], key...)
	return c.w.add(key, value, deleted)
}

func (c *cutter) cutBefore(key []byte) bool {
	kg, before := int(key[0])<<8|int(key[1]), int(c.w.info.MaxKG)
	limited := c.o.TargetBytes > 0
	if kg == before {
		// Whole blocks only, because this is asked for each key.
		return limited && c.w.sink.n.Load() >= 2*c.o.TargetBytes
	}
	return limited && int64(c.w.table.Raw().EstimatedSize()) >= c.o.TargetBytes || c.o.Shards > 1 && kg*c.o.Shards/c.o.KeyGroups != before*c.o.Shards/c.o.KeyGroups
}

// end completes the piece that is being written, if there is one.
func (c *cutter) end() error {
	if c.w == nil {
		return nil
	}
	w := c.w
	c.w = nil
	info, err := w.finish()
	if err != nil {
		return err
	}
	c.piece.Info, c.piece.MaxKey = info, bytes.Clone(c.last)
	p := c.piece
	c.piece = Merged{}
	return c.out(p, c.buf.Bytes())
}

func (c *cutter) abort(cause error) error {
	if c.w != nil {
		_ = c.w.abort(cause)
	}
	return cause
}

// levelCursor walks the pieces of a level, one after the other.
type levelCursor struct {
	level        Level // those that are left
	lower, upper []byte
	lo, hi       int // the same as key-groups

	cur   *tableCursor
	r     *Reader
	n     int64 // entries read of it
	whole bool  // the scan is of all of the piece
}

func (c *levelCursor) next() (bool, error) {
	for {
		if c.cur == nil {
			if len(c.level) == 0 {
				return false, nil
			}
			if err := c.open(c.level[0]); err != nil {
				return false, err
			}
		}
		ok, err := c.cur.next()
		if err != nil {
			return false, c.fault(err)
		}
		if ok {
			c.n++
			return true, nil
		}
		if err := c.leave(); err != nil {
			return false, c.fault(err)
		}
	}
}

func (c *levelCursor) fault(err error) error {
	if f := c.level[0].Fault; f != nil {
		return unreadable{f(corrupt("read segment", err))}
	}
	return err
}

func (c *levelCursor) open(p Piece) error {
	r, err := p.Open()
	if err != nil {
		return unreadable{err}
	}
	cur, err := newTableCursor(r, c.lower, c.upper)
	if err != nil {
		return c.fault(errors.Join(err, r.Close()))
	}
	c.r, c.cur, c.n = r, cur, 0
	c.whole = int(p.MinKG) >= c.lo && int(p.MaxKG) < c.hi
	return nil
}

// Finisher is a source of a segment that can tell, when all of it was read, whether it
// was what it should be.
type Finisher interface{ Finish() error }

// leave closes a piece that was read to its end.
func (c *levelCursor) leave() error {
	p := c.level[0]
	if c.whole && p.Entries >= 0 && c.n != p.Entries {
		return fmt.Errorf("%d entries, %d were written", c.n, p.Entries)
	}
	if c.whole && c.r.in != nil {
		if f, ok := c.r.in.from.(Finisher); ok {
			if err := f.Finish(); err != nil {
				return unreadable{err}
			}
		}
	}
	if err := c.shut(); err != nil {
		return err
	}
	c.level = c.level[1:]
	return nil
}

func (c *levelCursor) shut() error {
	if c.cur == nil {
		return nil
	}
	c.cur.close()
	err := c.r.Close()
	c.cur, c.r = nil, nil
	if err != nil {
		return unreadable{err}
	}
	return nil
}

func (c *levelCursor) key() []byte   { return c.cur.k }
func (c *levelCursor) value() []byte { return c.cur.v }
func (c *levelCursor) deleted() bool { return c.cur.del }
func (c *levelCursor) close()        { _ = c.shut(); c.level = nil }

// openLevels opens the first piece of each level, oldest level first, that has to do
// with the key-groups [lo, hi), which are the keys [lower, upper).
func openLevels(lower, upper []byte, lo, hi int, levels []Level) (m *merger, err error) {
	m = &merger{}
	defer func() {
		if err != nil {
			m.close()
			m = nil
		}
	}()
	defer recovered("read segment", &err)
	for _, l := range levels {
		some := slices.DeleteFunc(slices.Clone(l), func(p Piece) bool { return int(p.MaxKG) < lo || int(p.MinKG) >= hi })
		if len(some) > 0 {
			m.sources = append(m.sources, source{cursor: &levelCursor{level: some, lower: lower, upper: upper, lo: lo, hi: hi}})
		}
	}
	if err := m.open(); err != nil {
		return m, corrupt("read segment", err)
	}
	return m, nil
}
