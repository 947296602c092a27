package state

import (
	"fmt"
	"iter"
	"reflect"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/state/segment"
)

// OfMap is a handle to a map for each key. Each entry is stored on its own: a change
// costs one entry, and with a backing a map is never in memory as a whole.
type OfMap[MK, MV any] struct {
	entryTable[MV]
	subkeys[MK]
}

// Map declares a state that holds a map for each key, with map keys encoded by
// keyCodec and values encoded by valueCodec. The map keys are in the order of their
// encoding, or of their ordered encoding if keyCodec is a [codec.Ordered]: numbers and
// strings are in their own order.
//
// A [TTL] is that of each entry.
func Map[MK, MV any](s Setup, name string, keyCodec codec.Codec[MK], valueCodec codec.Codec[MV], opts ...Option) *OfMap[MK, MV] {
	scope := s.StateScope()
	h := &OfMap[MK, MV]{newEntryTable(scope, KindMap, name, valueCodec, opts), newSubkeys(scope, name, keyCodec)}
	scope.add(h)
	return h
}

func (h *OfMap[MK, MV]) describe() Descriptor {
	d := h.entryTable.describe()
	d.SubCodec = h.subkeys.name()
	return d
}

// Get returns what the current key's map holds for k, or the zero value if that is
// nothing. See [OfMap.Put] for what may be done with it.
func (h *OfMap[MK, MV]) Get(k MK) MV {
	v, _ := h.Lookup(k)
	return v
}

// Lookup returns what the current key's map holds for k, and whether that is anything.
func (h *OfMap[MK, MV]) Lookup(k MK) (v MV, ok bool) {
	sub, ok := h.encodeKey(h.keys, k)
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

// Has tells whether the current key's map holds something for k.
func (h *OfMap[MK, MV]) Has(k MK) bool {
	sub, ok := h.encodeKey(h.keys, k)
	return ok && h.lookup(sub) != nil
}

// Put makes v what the current key's map holds for k. What they point to must not be
// changed afterwards: v is encoded after the next barrier. What Get or Lookup returned may
// be changed by the handler that asked, if it calls Put with it before it returns. That is
// not so for what All and its like yield.
func (h *OfMap[MK, MV]) Put(k MK, v MV) {
	if sub, ok := h.encodeKey(h.keys, k); ok {
		h.put(sub, v, false)
	}
}

// Delete removes what the current key's map holds for k.
func (h *OfMap[MK, MV]) Delete(k MK) {
	if sub, ok := h.encodeKey(h.keys, k); ok {
		h.del(sub)
	}
}

// Clear empties the current key's map. It writes one tombstone for each entry that was
// committed; with a backing it has to look which these are, and holds the tombstones in
// memory until they are committed. For a map of millions of entries, a [TTL] is cheaper.
func (h *OfMap[MK, MV]) Clear() { h.clear() }

// Len counts the entries of the current key's map. In memory and without a [TTL] that is
// known; otherwise it takes as long as going through them.
func (h *OfMap[MK, MV]) Len() int { return h.count() }

// All yields the entries of the current key's map in the order of the map keys.
//
// The map may be changed meanwhile, also by the loop itself. Each entry is seen as it
// is when its turn comes: what is put behind the entry that the loop is at is seen,
// what is deleted there is not, and what happens before it is not seen any more.
//
// With a backing, entries that are only read here are not kept in memory.
func (h *OfMap[MK, MV]) All() iter.Seq2[MK, MV] { return h.seq(span{}) }

// Backward is All from the last entry to the first.
func (h *OfMap[MK, MV]) Backward() iter.Seq2[MK, MV] { return h.seq(span{desc: true}) }

// Range is All for the map keys from the first one, included, to the second one, not
// included.
func (h *OfMap[MK, MV]) Range(from, to MK) iter.Seq2[MK, MV] {
	return h.span(from, to, false)
}

// RangeBackward is Range from its last entry to its first.
func (h *OfMap[MK, MV]) RangeBackward(from, to MK) iter.Seq2[MK, MV] {
	return h.span(from, to, true)
}

func (h *OfMap[MK, MV]) span(from, to MK, desc bool) iter.Seq2[MK, MV] {
	return func(yield func(MK, MV) bool) {
		lo, ok := h.encodeKey(h.keys, from)
		if !ok {
			return
		}
		s := span{from: string(append([]byte(nil), lo...)), bounded: true, desc: desc}
		hi, ok := h.encodeKey(h.keys, to)
		if !ok {
			return
		}
		s.to = string(append([]byte(nil), hi...))
		h.seq(s)(yield)
	}
}

func (h *OfMap[MK, MV]) seq(s span) iter.Seq2[MK, MV] {
	return func(yield func(MK, MV) bool) { rangeOver(&h.entryTable, &h.subkeys, s, yield) }
}

// rangeOver yields the decoded entries of a span.
func rangeOver[MK, MV any](h *entryTable[MV], keys *subkeys[MK], s span, yield func(MK, MV) bool) {
	h.each(s, func(key string, stable bool, v MV) bool {
		k, err := keys.decodeKey(key, stable)
		if err != nil {
			h.keys.fail(h.errorf("map key %x: %w", key, err))
			return false
		}
		return yield(k, v)
	})
}

// each visits the decoded values of a span of the current key. The key is valid until
// visit returns, or for ever if it is stable.
func (h *entryTable[V]) each(s span, visit func(key string, stable bool, v V) bool) {
	slot, ok := h.slot(false)
	if !ok {
		return
	}
	h.scan(slot, s, func(key string, e *entry[V], raw []byte) bool {
		if e != nil {
			if h.seen != nil && !s.peek {
				h.look(e)
			}
			return visit(key, true, e.v)
		}
		_, v, ok, err := h.decodeValue(slot, raw)
		if err != nil {
			h.keys.fail(err)
			return false
		}
		return !ok || visit(key, false, v)
	})
}

// count counts the current key's entries.
func (h *entryTable[V]) count() (n int) {
	slot, ok := h.slot(false)
	if !ok {
		return 0
	}
	if h.back == nil && h.opts.domain == segment.Forever {
		if g := h.at(slot); g != nil {
			n = g.live.n
		}
		return n
	}
	h.scan(slot, span{peek: true}, func(string, *entry[V], []byte) bool {
		n++
		return true
	})
	return n
}

// subkeys encodes the keys of a map.
type subkeys[MK any] struct {
	codec   codec.Codec[MK]
	ordered codec.Ordered[MK] // nil if the codec's own order will do
	where   string
	text    bool // MK is a string: what aliases a string is as good as a copy
	buf     []byte
}

func newSubkeys[MK any](scope *Scope, name string, c codec.Codec[MK]) subkeys[MK] {
	k := subkeys[MK]{codec: c, where: fmt.Sprintf("operator %q: state %q: map key", scope.operator, name), text: reflect.TypeFor[MK]().Kind() == reflect.String}
	if err := codec.CheckMapKeys(c); err != nil {
		scope.errs = append(scope.errs, fmt.Errorf("%s: %w", k.where, err))
		return k
	}
	k.ordered, _ = c.(codec.Ordered[MK])
	return k
}

func (k *subkeys[MK]) name() string {
	if k.codec == nil {
		return ""
	}
	return k.codec.Name()
}

// encodeKey returns the encoding of a map key, which is valid until the next call. ok is
// false after an error.
func (k *subkeys[MK]) encodeKey(keys slots, v MK) (sub string, ok bool) {
	var b []byte
	var err error
	if k.ordered != nil {
		b, err = k.ordered.AppendOrdered(k.buf[:0], v)
	} else {
		b, err = k.codec.Append(k.buf[:0], v)
	}
	if err != nil {
		keys.fail(fmt.Errorf("%s: %w", k.where, err))
		return "", false
	}
	k.buf = b
	return view(b), true
}

// decodeKey returns a map key that shares no memory with what may change.
func (k *subkeys[MK]) decodeKey(sub string, stable bool) (v MK, err error) {
	b := bytesOf(sub)
	if k.ordered != nil {
		v, err = k.ordered.DecodeOrdered(b)
	} else {
		v, err = k.codec.Decode(b)
	}
	if err != nil || stable && k.text {
		return v, err
	}
	return codec.Clone(k.codec, v), nil
}
