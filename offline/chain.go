package offline

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/state/segment"
)

// progressEntries is after how many entries progress is told and the context is looked
// at.
const progressEntries = 4096

// chain reads the segments of a snapshot as the one state that they make up. Segments
// are opened when their first key comes up and closed after their last one.
type chain struct {
	ctx   context.Context
	heap  []*link // the smallest key first; of equal keys the newest first
	all   []*link
	last  []byte // the key that next yielded
	steps int64  // entries read
}

// link is one segment of a chain.
type link struct {
	part
	age  int    // position in the chain: higher is newer
	key  []byte // of the entry that it stands on, or the least that it can have
	r    *segment.Reader
	it   *segment.Iter // nil if it is not open
	done bool          // there is nothing left
}

// part is a segment that has not been opened.
type part struct {
	min   []byte // no key is less
	max   []byte // no key begins with more; nil if nothing is known
	open  func(ctx context.Context) (*segment.Reader, error)
	wrong func(err error) error // says of which segment an error is
}

// stored returns the parts of a chain in a store.
func stored(store checkpoint.Store, refs []checkpoint.SegmentRef) []part {
	parts := make([]part, len(refs))
	for i, ref := range refs {
		parts[i] = part{
			min: binary.BigEndian.AppendUint16(nil, ref.MinKG), max: binary.BigEndian.AppendUint16(nil, ref.MaxKG),
			open: func(ctx context.Context) (*segment.Reader, error) { return checkpoint.OpenSegment(ctx, store, ref) },
			wrong: func(err error) error {
				if errors.Is(err, segment.ErrCorrupt) {
					return &checkpoint.DamagedError{Object: ref.Object, Store: store.String(), What: err.Error(), Err: err}
				}
				return err
			},
		}
		if k, err := hex.DecodeString(ref.MinKey); err == nil && len(k) > 0 {
			parts[i].min = k
		}
		if k, err := hex.DecodeString(ref.MaxKey); err == nil && len(k) > 0 {
			parts[i].max = k
		}
	}
	return parts
}

func newChain(ctx context.Context, parts []part) *chain {
	c := &chain{ctx: ctx}
	for age, p := range parts {
		c.all = append(c.all, &link{part: p, age: age, key: slices.Clone(p.min)})
	}
	return c
}

// seek moves to the first key that is not less than key. There is no way back.
func (c *chain) seek(key []byte) error {
	c.heap = c.heap[:0]
	for _, l := range c.all {
		if l.done {
			continue
		}
		if l.beyond(key) {
			c.leave(l)
			continue
		}
		if bytes.Compare(l.key, key) < 0 {
			if l.it == nil {
				if err := c.enter(l); err != nil {
					return err
				}
			}
			if err := c.settle(l, l.it.Seek(key)); err != nil {
				return err
			}
			if l.done {
				continue
			}
		}
		c.heap = append(c.heap, l)
	}
	for i := len(c.heap)/2 - 1; i >= 0; i-- {
		c.down(i)
	}
	c.last = c.last[:0]
	return nil
}

// beyond tells that all keys of a segment are less than key.
func (p part) beyond(key []byte) bool {
	return p.max != nil && bytes.Compare(key[:min(len(key), len(p.max))], p.max) > 0
}

// next returns the next key that has a value, false if there is none. The entry is
// valid until the next call.
func (c *chain) next() (segment.Entry, bool, error) {
	for len(c.heap) > 0 {
		l := c.heap[0]
		if l.it == nil {
			// Its first key is known to be here or behind; where it is, it tells itself.
			if err := c.enter(l); err != nil {
				return segment.Entry{}, false, err
			}
			if err := c.move(l, l.it.Seek(l.key)); err != nil {
				return segment.Entry{}, false, err
			}
			continue
		}
		if len(c.last) > 0 && bytes.Equal(l.key, c.last) {
			// The key that was yielded, or an older value of it.
			if err := c.move(l, l.it.Next()); err != nil {
				return segment.Entry{}, false, err
			}
			continue
		}
		c.last = append(c.last[:0], l.key...)
		if c.steps++; c.steps%progressEntries == 0 {
			if err := c.ctx.Err(); err != nil {
				return segment.Entry{}, false, err
			}
		}
		if e := l.it.Entry(); !e.Deleted {
			return e, true, nil
		}
	}
	return segment.Entry{}, false, nil
}

// move takes note of where the top of the heap went and restores the order.
func (c *chain) move(l *link, ok bool) error {
	if err := c.settle(l, ok); err != nil {
		return err
	}
	if l.done {
		n := len(c.heap) - 1
		c.heap[0] = c.heap[n]
		c.heap = c.heap[:n]
	}
	c.down(0)
	return nil
}

// settle takes note of where a link went.
func (c *chain) settle(l *link, ok bool) error {
	if ok {
		l.key = append(l.key[:0], l.it.Key()...)
		return nil
	}
	if err := l.it.Err(); err != nil {
		return l.wrong(err)
	}
	c.leave(l)
	return nil
}

func (c *chain) enter(l *link) error {
	r, err := l.open(c.ctx)
	if err != nil {
		return l.wrong(err)
	}
	it, err := r.Iter()
	if err != nil {
		return errors.Join(l.wrong(err), r.Close())
	}
	l.r, l.it = r, it
	return nil
}

func (c *chain) leave(l *link) {
	l.done = true
	if l.it != nil {
		l.it.Close()
		_ = l.r.Close() // it reads only
		l.it, l.r = nil, nil
	}
}

func (c *chain) close() {
	for _, l := range c.all {
		c.leave(l)
	}
}

func (l *link) before(o *link) bool {
	if n := bytes.Compare(l.key, o.key); n != 0 {
		return n < 0
	}
	return l.age > o.age
}

func (c *chain) down(i int) {
	for {
		n := 2*i + 1
		if n >= len(c.heap) {
			return
		}
		if n+1 < len(c.heap) && c.heap[n+1].before(c.heap[n]) {
			n++
		}
		if !c.heap[n].before(c.heap[i]) {
			return
		}
		c.heap[i], c.heap[n] = c.heap[n], c.heap[i]
		i = n
	}
}

// entries yields the entries of the wanted key-groups that live, in order: of the
// states in ids only, which are sorted, or of all if that is nil. An entry is valid
// until the next step. An error comes last.
func (s *Snapshot) entries(ctx context.Context, o *options, ids []uint16) iter.Seq2[segment.Entry, error] {
	return func(yield func(segment.Entry, error) bool) {
		if o.lo >= o.hi || (ids != nil && len(ids) == 0) {
			return
		}
		c := newChain(ctx, stored(s.store, s.manifest.Segments))
		defer c.close()
		from := uint16(0)
		if ids != nil {
			from = ids[0]
		}
		err := c.seek(segment.AppendKey(nil, uint16(o.lo), from, nil))
		for n := int64(0); err == nil; {
			var e segment.Entry
			var ok bool
			if e, ok, err = c.next(); err != nil || !ok || int(e.KeyGroup) >= o.hi {
				break
			}
			if ids != nil {
				if kg, id, wanted := skip(ids, e); !wanted {
					err = c.seek(segment.AppendKey(nil, kg, id, nil))
					continue
				}
			}
			if n++; n%progressEntries == 0 && o.progress != nil {
				o.progress(Progress{Entries: n, KeyGroup: int(e.KeyGroup) - o.lo, KeyGroups: o.hi - o.lo})
			}
			if !yield(e, nil) {
				return
			}
		}
		if err != nil {
			yield(segment.Entry{}, fmt.Errorf("read checkpoint %d: %w", s.manifest.Checkpoint, err))
		}
	}
}

// skip tells whether e is of one of the states, and if not, where the next one of
// them can begin.
func skip(ids []uint16, e segment.Entry) (kg, id uint16, wanted bool) {
	for _, id := range ids {
		if id == e.State {
			return 0, 0, true
		}
		if id > e.State {
			return e.KeyGroup, id, false
		}
	}
	return e.KeyGroup + 1, ids[0], false
}

// entryError says which entry could not be read.
func (s *Snapshot) entryError(info checkpoint.StateInfo, e segment.Entry, err error) error {
	return fmt.Errorf("checkpoint %d, state %q of operator %q, key-group %d, key %x: %w", s.manifest.Checkpoint, info.Name, info.Operator, e.KeyGroup, e.Key, err)
}
