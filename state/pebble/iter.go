package pebble

import (
	"bytes"
	"fmt"

	"github.com/cockroachdb/pebble/v2/sstable"
)

// Iterator walks keys in order. It sees the store as it was when it was made, however
// often Ingest is called. It is for one goroutine; Close it, or the store cannot be
// closed.
type Iterator struct {
	v      *version
	lo, hi []byte // nil is no bound

	cursors []cursor
	// heap holds the cursors that stand on a key: the one with the first key at the top
	// (the last key, on the way back), and of those with one key the newest.
	heap []*cursor
	back bool   // the way it goes
	on   bool   // it stands on heap[0]
	key  []byte // a copy of the key it stood on last
	err  error
}

// cursor walks one table, tombstones included.
type cursor struct {
	t       *table
	it      sstable.Iterator
	age     int // higher is newer
	k, v    []byte
	deleted bool
}

// Iter returns an iterator over the keys [lo, hi), which are as segment.AppendKey
// makes them; nil is the begin, or the end. It stands nowhere yet, and keeps lo and hi.
//
// Errors are those of [Store.Get].
func (s *Store) Iter(lo, hi []byte) (*Iterator, error) {
	v, err := s.acquire()
	if err != nil {
		return nil, err
	}
	i := &Iterator{v: v, lo: lo, hi: hi}
	first, last := 0, 1<<16
	if len(lo) >= groupBytes {
		first = group(lo)
	}
	if len(hi) >= groupBytes {
		last = group(hi)
	}
	for age, t := range v.tables {
		if int(t.seg.MaxKG) < first || int(t.seg.MinKG) > last {
			continue
		}
		o := t.opts
		o.Lower, o.Upper = lo, hi
		var it sstable.Iterator
		err := guarded(func() (err error) {
			it, err = t.r.NewPointIter(s.ctx, o)
			return err
		})
		if err != nil {
			i.err = t.failed(err)
			return nil, i.Close()
		}
		i.cursors = append(i.cursors, cursor{t: t, it: it, age: age})
	}
	i.heap = make([]*cursor, 0, len(i.cursors))
	return i, nil
}

// First moves to the first key. Like all moves it tells whether the iterator stands on
// a key then; if it does not, Error tells whether that was the end.
func (i *Iterator) First() bool { return i.seek(i.lo, false) }

// Last moves to the last key.
func (i *Iterator) Last() bool { return i.seek(i.hi, true) }

// SeekGE moves to the first key >= key.
func (i *Iterator) SeekGE(key []byte) bool {
	if i.lo != nil && bytes.Compare(key, i.lo) < 0 {
		key = i.lo
	}
	return i.seek(key, false)
}

// SeekLT moves to the last key < key.
func (i *Iterator) SeekLT(key []byte) bool {
	if i.hi != nil && bytes.Compare(key, i.hi) > 0 {
		key = i.hi
	}
	if len(key) == 0 {
		i.on = false // nothing is less
		return false
	}
	return i.seek(key, true)
}

// Next moves to the next key. It may be called only on a key.
func (i *Iterator) Next() bool {
	if !i.on {
		return false
	}
	i.key = append(i.key[:0], i.heap[0].k...)
	if i.back {
		return i.seek(append(i.key, 0), false)
	}
	return i.leave() && i.settle()
}

// Prev moves to the key before. It may be called only on a key.
func (i *Iterator) Prev() bool {
	if !i.on {
		return false
	}
	i.key = append(i.key[:0], i.heap[0].k...)
	if !i.back {
		return i.seek(i.key, true)
	}
	return i.leave() && i.settle()
}

// Key returns the key that the iterator stands on. It is valid until it moves.
func (i *Iterator) Key() []byte { return i.heap[0].k }

// Value returns the value there. It is valid until the iterator moves.
func (i *Iterator) Value() []byte { return i.heap[0].v }

// seek puts all cursors on the first key >= key, or, on the way back, on the last key
// < key; a key of nil is the begin, or the end.
func (i *Iterator) seek(key []byte, back bool) bool {
	i.on, i.back, i.heap = false, back, i.heap[:0]
	if i.err != nil {
		return false
	}
	for n := range i.cursors {
		c := &i.cursors[n]
		ok, err := c.seek(key, back)
		if err != nil {
			i.err = err
			return false
		}
		if ok {
			i.heap = append(i.heap, c)
		}
	}
	for n := len(i.heap)/2 - 1; n >= 0; n-- {
		i.down(n)
	}
	return i.settle()
}

// settle moves on from deleted keys.
func (i *Iterator) settle() bool {
	for len(i.heap) > 0 {
		if !i.heap[0].deleted {
			i.on = true
			return true
		}
		i.key = append(i.key[:0], i.heap[0].k...)
		if !i.leave() {
			return false
		}
	}
	i.on = false
	return false
}

// leave moves all cursors that stand on i.key.
func (i *Iterator) leave() bool {
	i.on = false
	for len(i.heap) > 0 && bytes.Equal(i.heap[0].k, i.key) {
		ok, err := i.heap[0].move(i.back)
		if err != nil {
			i.err = err
			return false
		}
		if !ok {
			last := len(i.heap) - 1
			i.heap[0] = i.heap[last]
			i.heap = i.heap[:last]
		}
		i.down(0)
	}
	return true
}

func (i *Iterator) before(a, b *cursor) bool {
	c := bytes.Compare(a.k, b.k)
	if i.back {
		c = -c
	}
	return c < 0 || c == 0 && a.age > b.age
}

func (i *Iterator) down(n int) {
	for {
		c := 2*n + 1
		if c >= len(i.heap) {
			return
		}
		if c+1 < len(i.heap) && i.before(i.heap[c+1], i.heap[c]) {
			c++
		}
		if !i.before(i.heap[c], i.heap[n]) {
			return
		}
		i.heap[n], i.heap[c] = i.heap[c], i.heap[n]
		n = c
	}
}

// Error returns what went wrong, as with [Store.Get].
func (i *Iterator) Error() error { return i.err }

// Close ends the use of the iterator and returns what Error does.
func (i *Iterator) Close() error {
	if i.v == nil {
		return i.err
	}
	for n := range i.cursors {
		if err := i.cursors[n].it.Close(); err != nil && i.err == nil {
			i.err = i.cursors[n].t.failed(err)
		}
	}
	i.on, i.cursors, i.heap = false, nil, nil
	i.v.release()
	i.v = nil
	return i.err
}

// seek puts the cursor where [Iterator.seek] says.
func (c *cursor) seek(key []byte, back bool) (bool, error) {
	switch {
	case key != nil && back:
		return c.to(seekLT, key)
	case key != nil:
		return c.to(seekGE, key)
	case back:
		return c.to(last, nil)
	}
	return c.to(first, nil)
}

func (c *cursor) move(back bool) (bool, error) {
	if back {
		return c.to(prev, nil)
	}
	return c.to(next, nil)
}

type step uint8

const (
	first step = iota
	last
	seekGE
	seekLT
	next
	prev
)

// to takes a step and tells whether the cursor stands on a key.
func (c *cursor) to(step step, key []byte) (ok bool, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %v", errUnreadable, p)
		}
		if err != nil {
			ok, err = false, c.t.failed(err)
		}
	}()
	kv := nothing(c.it.Next)
	switch step {
	case first:
		kv = c.it.First()
	case last:
		kv = c.it.Last()
	case seekGE:
		kv = c.it.SeekGE(key, 0)
	case seekLT:
		kv = c.it.SeekLT(key, 0)
	case next:
		kv = c.it.Next()
	case prev:
		kv = c.it.Prev()
	}
	if kv == nil {
		return false, c.it.Error()
	}
	c.k, c.v, c.deleted = kv.K.UserKey, nil, kv.K.Kind() == sstable.InternalKeyKindDelete
	if !c.deleted {
		c.v, _, err = kv.Value(nil)
	}
	return true, err
}

// nothing returns the zero of what f returns, a type of Pebble that has no name
// outside of it.
func nothing[T any](func() T) (zero T) { return zero }
