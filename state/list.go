package state

import (
	"encoding/binary"
	"iter"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/state/segment"
)

// OfList is a handle to a list for each key. Each element is stored on its own: to
// append one or to remove one from the front costs that one, however long the list is.
type OfList[V any] struct {
	entryTable[V]
	buf [indexBytes]byte
}

// indexBytes is the length of an encoded index.
const indexBytes = 8

// List declares a state that holds a list for each key, with elements encoded by c.
//
// A [TTL] is that of each element. An element that has expired is not in the list any
// more, and those behind it move up; to find the n-th element of such a list, or its
// length, takes as long as going through it. If you take its time to live from a list,
// give it a new name.
func List[V any](s Setup, name string, c codec.Codec[V], opts ...Option) *OfList[V] {
	h := &OfList[V]{entryTable: newEntryTable(s.StateScope(), KindList, name, c, opts)}
	s.StateScope().add(h)
	return h
}

func (h *OfList[V]) split(userKey []byte) (key, rest []byte, ok bool) {
	key, rest, ok = h.entryTable.split(userKey)
	return key, rest, ok && len(rest) == indexBytes
}

// sub is the subkey of an index, valid until the next call.
func (h *OfList[V]) sub(index uint64) string {
	binary.BigEndian.PutUint64(h.buf[:], index)
	return view(h.buf[:])
}

func indexOf(sub string) uint64 { return binary.BigEndian.Uint64(bytesOf(sub)) }

// Append adds an element to the end of the current key's list. It must not be changed
// afterwards if it holds pointers: it is encoded after the next barrier.
func (h *OfList[V]) Append(v V) {
	slot, _ := h.slot(true)
	tail := h.tail(slot)
	h.put(h.sub(tail), v, true)
	if h.back != nil {
		g := h.at(slot)
		g.tail, g.hasTail = tail+1, true
	}
}

// AppendAll adds elements to the end of the current key's list.
func (h *OfList[V]) AppendAll(vs ...V) {
	for _, v := range vs {
		h.Append(v)
	}
}

// All yields the elements of the current key's list from first to last, counted from 0.
// The list may be changed meanwhile: elements that are appended are seen, those that are
// removed are not, and the count goes on.
func (h *OfList[V]) All() iter.Seq2[int, V] {
	return func(yield func(int, V) bool) {
		n := 0
		h.each(h.whole(), func(sub string, _ bool, v V) bool {
			if n == 0 && h.back != nil {
				h.begin(indexOf(sub))
			}
			n++
			return yield(n-1, v)
		})
	}
}

// Len counts the elements of the current key's list.
func (h *OfList[V]) Len() int {
	slot, ok := h.slot(false)
	if !ok {
		return 0
	}
	if h.opts.domain != segment.Forever {
		return h.count()
	}
	return int(h.tail(slot) - h.head(slot))
}

// At returns the i-th element of the current key's list, counted from 0, and whether
// there is one.
func (h *OfList[V]) At(i int) (v V, ok bool) {
	sub, ok := h.nth(i)
	if !ok {
		return v, false
	}
	e := h.lookup(sub)
	if e == nil {
		return v, false
	}
	if !h.flat {
		h.keep(e) // it may be changed in place
		if h.seen != nil {
			h.look(e)
		}
	}
	return e.v, true
}

// Set makes v the i-th element of the current key's list, counted from 0. It returns
// false and does nothing if there is none. What v points to must not be changed
// afterwards: it is encoded after the next barrier. What At returned may be changed by the
// handler that asked, if it calls Set with it before it returns. That is not so for what
// All yields.
func (h *OfList[V]) Set(i int, v V) bool {
	sub, ok := h.nth(i)
	if ok {
		h.put(sub, v, false)
	}
	return ok
}

// PopFront removes the first element of the current key's list and returns it. ok is
// false if there is none.
func (h *OfList[V]) PopFront() (v V, ok bool) {
	if v, ok = h.At(0); ok {
		h.RemoveFirst(1)
	}
	return v, ok
}

// RemoveFirst removes the first n elements of the current key's list, or all if there
// are fewer, and returns how many it removed.
func (h *OfList[V]) RemoveFirst(n int) int {
	slot, ok := h.slot(false)
	if !ok || n <= 0 {
		return 0
	}
	head, tail := h.head(slot), h.tail(slot)
	to, removed := head, 0
	if h.opts.domain == segment.Forever {
		removed = int(min(uint64(n), tail-head))
		to += uint64(removed)
	} else {
		s := h.whole()
		s.peek = true
		h.scan(slot, s, func(sub string, _ *entry[V], _ []byte) bool {
			if removed == n {
				return false
			}
			removed++
			to = indexOf(sub) + 1
			return true
		})
		if removed < n {
			to = tail // what has expired behind goes, too
		}
	}
	h.removeTo(slot, head, to, tail)
	return removed
}

// Clear empties the current key's list. It writes one tombstone for each element that
// was committed, and holds them in memory until they are.
func (h *OfList[V]) Clear() {
	if slot, ok := h.slot(false); ok {
		tail := h.tail(slot)
		h.removeTo(slot, h.head(slot), tail, tail)
	}
}

// removeTo removes the elements with the indexes [head, to). A list that is empty
// begins at 0 again.
func (h *OfList[V]) removeTo(slot uint32, head, to, tail uint64) {
	if g := h.at(slot); g != nil && g.passed && head < to {
		g.passed = false
		if first, ok := h.outermost(slot, false); ok {
			head = min(head, first) // time may go back
		}
	}
	for i := head; i < to; i++ {
		h.del(h.sub(i))
	}
	if h.back == nil {
		return // ends are what is there
	}
	g := h.ensure(slot)
	g.head, g.tail, g.hasHead, g.hasTail = to, tail, true, true
	if to == tail {
		g.head, g.tail = 0, 0
	}
}

// begin notes the index of the first element. What has expired before it is not looked
// at any more, until something is removed.
func (h *OfList[V]) begin(head uint64) {
	if slot, ok := h.slot(false); ok {
		g := h.ensure(slot)
		g.passed = g.passed || h.opts.domain != segment.Forever && (!g.hasHead || g.head < head)
		g.head, g.hasHead = head, true
	}
}

// whole is the span of all elements.
func (h *OfList[V]) whole() span {
	slot, ok := h.slot(false)
	if !ok {
		return span{}
	}
	if g := h.at(slot); g != nil && g.hasHead && g.head > 0 {
		return span{from: string(append([]byte(nil), h.sub(g.head)...))}
	}
	return span{}
}

// nth returns the subkey of the i-th element.
func (h *OfList[V]) nth(i int) (sub string, ok bool) {
	slot, ok := h.slot(false)
	if !ok || i < 0 {
		return "", false
	}
	head := h.head(slot)
	if h.opts.domain == segment.Forever {
		if uint64(i) >= h.tail(slot)-head {
			return "", false
		}
		return h.sub(head + uint64(i)), true
	}
	ok = false
	s := h.whole()
	s.peek = true
	h.scan(slot, s, func(key string, _ *entry[V], _ []byte) bool {
		if i--; i < 0 {
			head, ok = indexOf(key), true
		}
		return i >= 0
	})
	return h.sub(head), ok
}

// head returns the index of the first element, expired or not. It is that of the next
// one if there is none.
func (h *OfList[V]) head(slot uint32) uint64 {
	g := h.at(slot)
	if h.back == nil {
		if g == nil || g.live.n == 0 {
			return 0
		}
		return indexOf(g.live.first().key)
	}
	if g == nil || !g.hasHead {
		head, _ := h.outermost(slot, false)
		g = h.ensure(slot)
		g.head, g.hasHead = head, true
	}
	return g.head
}

// tail returns the index of the next element to be appended.
func (h *OfList[V]) tail(slot uint32) uint64 {
	g := h.at(slot)
	if h.back == nil {
		if g == nil || g.live.n == 0 {
			return 0
		}
		return indexOf(g.live.last().key) + 1
	}
	if g == nil || !g.hasTail {
		tail, _ := h.outermost(slot, true)
		g = h.ensure(slot)
		// What has expired may be gone by now, and what is appended before the known begin
		// would not be seen.
		g.tail, g.hasTail = max(tail, g.head), true
	}
	return g.tail
}

// outermost returns the index of the first element, or the one behind the last, expired or
// not; 0 and false if the list is empty.
func (h *OfList[V]) outermost(slot uint32, last bool) (index uint64, ok bool) {
	h.scan(slot, span{all: true, keys: true, desc: last}, func(key string, _ *entry[V], _ []byte) bool {
		if len(key) != indexBytes {
			h.keys.fail(h.errorf("%x is not an index", key))
			return false
		}
		if index, ok = indexOf(key), true; last {
			index++
		}
		return false
	})
	return index, ok
}
