package state

import (
	"fmt"
	"reflect"
	"unsafe"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/state/segment"
)

// OfValue is a handle to one value for each key.
type OfValue[V any] struct {
	operator, name string
	kind           string
	codec          codec.Codec[V]
	opts           options
	id             uint16
	keys           slots // nil while declarations are only collected

	chunks  [][]cell[V]
	expires [][]int64 // beside chunks if entries expire; milliseconds since 1970
	changes
	swept uint32 // slots below were looked at for expired entries

	flat  bool   // a V holds no pointers
	reach reach  // what a V refers to
	mean  mean   // bytes of an encoded value
	sets  uint   // calls of Set, to measure some values before they are encoded
	seen  *watch // nil: nobody asks

	touched uint8 // of no meaning: keeps reads ahead from being optimised away
}

// cell is one key's value.
type cell[V any] struct {
	v     V
	flags uint8
}

// Value declares a state that holds one V for each key, encoded by c.
func Value[V any](s Setup, name string, c codec.Codec[V], opts ...Option) *OfValue[V] {
	h := newValue(s.StateScope(), KindValue, name, c, opts)
	s.StateScope().add(h)
	return h
}

func newValue[V any](scope *Scope, kind, name string, c codec.Codec[V], opts []Option) *OfValue[V] {
	t := reflect.TypeFor[V]()
	h := &OfValue[V]{operator: scope.operator, name: name, kind: kind, codec: c, flat: flat(t), reach: reachOf(t)}
	err := codec.Check(c)
	if err == nil {
		h.opts, err = scope.optionsOf(name, opts)
	}
	if err != nil {
		scope.errs = append(scope.errs, fmt.Errorf("operator %q: state %q: %w", scope.operator, name, err))
	}
	return h
}

// Get returns the current key's value, or the zero value if none is set. See [OfValue.Set]
// for what may be done with it.
func (h *OfValue[V]) Get() V {
	v, _ := h.Lookup()
	return v
}

// Lookup returns the current key's value and whether one is set.
func (h *OfValue[V]) Lookup() (V, bool) {
	var zero V
	slot, ok := h.keys.slot(false)
	if !ok {
		return zero, false
	}
	c := h.at(slot)
	if c.flags&cellUnknown != 0 {
		h.load(slot, c)
	}
	if c.flags&cellSet == 0 {
		return zero, false
	}
	if !h.flat {
		h.keep(slot, c) // it may be changed in place
	}
	if h.opts.domain != segment.Forever {
		expires, now := h.expires[slot>>chunkBits][slot&chunkMask], h.keys.now(h.opts.domain, slot)
		if expires <= now {
			return zero, false
		}
		if h.opts.moves(expires, now) {
			h.change(slot, c)
			h.renew(slot)
		}
	}
	if h.seen != nil {
		h.look(slot, c)
	}
	return c.v, true
}

// Set makes v the current key's value. What v points to must not be changed afterwards: it
// is encoded after the next barrier. What Get or Lookup returned may be changed by the
// handler that asked, if it calls Set with it before it returns.
func (h *OfValue[V]) Set(v V) {
	slot, _ := h.keys.slot(true)
	c := h.at(slot)
	h.change(slot, c)
	c.v = codec.Clone(h.codec, v)
	c.flags |= cellSet
	if h.opts.domain != segment.Forever {
		h.renew(slot)
	}
	if !h.flat && h.keys.backing() != nil {
		if h.sets++; h.sets%weighEvery == 1 {
			weigh(h.keys, h.codec, v, &h.mean)
		}
	}
	if h.seen != nil {
		h.look(slot, c)
	}
}

// weighEvery is how often a value is measured when it is set. Without it what changes in
// the first epoch, of which nothing was encoded yet, would weigh nothing.
const weighEvery = 64

// weigh adds the encoded size of v to m. That v can't be encoded is found out later.
func weigh[V any](keys slots, c codec.Codec[V], v V, m *mean) {
	buf := keys.scratch()
	if b, err := c.Append((*buf)[:0], v); err == nil {
		m.add(len(b))
		*buf = b[:0]
	}
}

// Clear removes the current key's value.
func (h *OfValue[V]) Clear() {
	slot, ok := h.keys.slot(false)
	if !ok {
		return
	}
	c := h.at(slot)
	if c.flags&(cellSet|cellUnknown) == 0 && c.flags&(cellStored|cellBusy) != cellStored {
		return
	}
	h.change(slot, c)
	var zero V
	c.v = zero
	c.flags &^= cellSet
}

// keep encodes a cell now if a checkpoint needs it as it is.
func (h *OfValue[V]) keep(slot uint32, c *cell[V]) {
	if c.flags&h.frozen() != 0 && !guard.Broken(guard.FrozenValues) {
		if err := h.encodeCell(slot, c); err != nil {
			h.keys.fail(err)
		}
	}
}

// change is called before a cell changes.
func (h *OfValue[V]) change(slot uint32, c *cell[V]) {
	h.keep(slot, c)
	if h.seen != nil {
		h.seen.forget(c)
	}
	if c.flags&h.dirty() == 0 {
		h.mark(slot)
		c.flags |= h.dirty()
	}
	if c.flags&cellUnknown != 0 {
		c.flags = c.flags&^cellUnknown | cellStored // perhaps
	}
}

// renew sets the expiry of a cell that is written now.
func (h *OfValue[V]) renew(slot uint32) {
	h.expires[slot>>chunkBits][slot&chunkMask] = h.opts.stamp(h.keys.now(h.opts.domain, slot))
}

// load asks the backing for a cell.
func (h *OfValue[V]) load(slot uint32, c *cell[V]) {
	c.flags &^= cellUnknown
	buf := h.keys.scratch()
	k, err := h.keys.appendKey(segment.AppendKey((*buf)[:0], h.keys.keyGroup(slot), h.id, nil), slot)
	if err != nil {
		h.keys.fail(h.errorf("key: %w", err))
		return
	}
	b, ok, err := h.keys.backing().Get(k, k, h.keys.newest())
	if err != nil {
		h.keys.fail(&ReadError{Operator: h.operator, State: h.name, Err: err})
	} else if ok {
		if err := h.restore(slot, nil, b[len(k):]); err != nil {
			h.keys.fail(err)
		}
	}
	*buf = k[:0]
	if cap(b) > cap(k) {
		*buf = b[:0]
	}
}

func (h *OfValue[V]) errorf(format string, args ...any) error {
	return fmt.Errorf("operator %q: state %q: %w", h.operator, h.name, fmt.Errorf(format, args...))
}

func (h *OfValue[V]) at(slot uint32) *cell[V] {
	return &h.chunks[slot>>chunkBits][slot&chunkMask]
}

func (h *OfValue[V]) describe() Descriptor {
	d := Descriptor{Operator: h.operator, Name: h.name, Kind: h.kind, Clock: h.opts.domain.Name()}
	if h.codec != nil {
		d.ValueCodec, d.ValueVersion = h.codec.Name(), h.codec.Version()
	}
	return d
}

func (h *OfValue[V]) attach(ks slots, id uint16) {
	h.keys, h.id = ks, id
	if !h.flat {
		h.seen = ks.watch()
	}
}

func (h *OfValue[V]) grow(n uint32) {
	for uint32(len(h.chunks))<<chunkBits < n {
		h.chunks = append(h.chunks, make([]cell[V], chunkSize))
		if h.opts.domain != segment.Forever {
			h.expires = append(h.expires, make([]int64, chunkSize))
		}
	}
	h.changes.grow(n)
}

func (h *OfValue[V]) unknown(slot uint32)   { h.at(slot).flags = cellUnknown }
func (h *OfValue[V]) used(slot uint32) bool { return h.at(slot).flags&(cellSet|cellBusy) != 0 }
func (h *OfValue[V]) busy(slot uint32) bool { return h.at(slot).flags&cellBusy != 0 }
func (h *OfValue[V]) drop(slot uint32)      { *h.at(slot) = cell[V]{} }

func (h *OfValue[V]) touch(slot uint32) uint8 { return h.at(slot).flags }

func (h *OfValue[V]) split(userKey []byte) (key, rest []byte, ok bool) { return userKey, nil, true }

func (h *OfValue[V]) restore(slot uint32, _, b []byte) error {
	header, b, err := segment.CutHeader(b)
	if err != nil {
		return h.errorf("%w", err)
	}
	spared := h.keys.spared(h.id, header)
	if header.Domain != segment.Forever && header.Expires <= h.keys.now(header.Domain, slot) && !spared {
		if h.keys.backing() == nil {
			h.keys.emptied(slot)
		} else {
			h.at(slot).flags |= cellStored // to clear it needs a tombstone: time may go back
		}
		return nil
	}
	v, err := codec.DecodeVersion(h.codec, header.Version, b)
	if err != nil {
		return h.errorf("%w", err)
	}
	h.mean.add(len(b))
	c := h.at(slot)
	c.v, c.flags = codec.Clone(h.codec, v), cellSet|cellStored
	if h.opts.domain != segment.Forever {
		h.expires[slot>>chunkBits][slot&chunkMask] = h.opts.expiry(header, spared)
	}
	if h.opts.outdated(header) {
		h.change(slot, c)
		if h.opts.domain != segment.Forever {
			h.renew(slot)
		}
	}
	return nil
}

func (h *OfValue[V]) encode(n int) (int, error) {
	done := 0
	var ahead [encodeAhead]uint32
	for done < n {
		slots := ahead[:0]
		for len(slots) < min(encodeAhead, n-done) {
			slot, ok := h.next()
			if !ok {
				break
			}
			slots = append(slots, slot)
		}
		if len(slots) == 0 {
			break
		}
		h.touchAll(slots)
		for _, slot := range slots {
			if c := h.at(slot); c.flags&h.frozen() != 0 { // else it was encoded when it was touched
				if err := h.encodeCell(slot, c); err != nil {
					return done, err
				}
			}
			done++
		}
	}
	if h.opts.domain != segment.Forever {
		h.sweepSome(sweepPerChange * done)
	}
	return done, nil
}

// touchAll reads something of all that encoding some cells reads.
func (h *OfValue[V]) touchAll(slots []uint32) {
	var touched uint8
	for _, slot := range slots {
		touched ^= h.touch(slot)
	}
	h.keys.touchKeys(slots)
	for _, slot := range slots {
		touched ^= h.reach.touch(unsafe.Pointer(&h.at(slot).v))
	}
	h.touched ^= touched
}

// encodeCell writes a frozen cell.
func (h *OfValue[V]) encodeCell(slot uint32, c *cell[V]) error {
	b := h.keys.builder()
	switch {
	case c.flags&cellSet != 0:
		dst, err := h.keys.appendKey(b.BeginPut(h.keys.keyGroup(slot), h.id), slot)
		if err != nil {
			return h.errorf("key: %w", err)
		}
		expires := int64(unstamped)
		if h.opts.domain != segment.Forever {
			expires = h.expires[slot>>chunkBits][slot&chunkMask]
		}
		dst = segment.AppendHeader(b.KeyDone(dst), h.opts.header(h.codec.Version(), expires))
		at := len(dst)
		if dst, err = h.codec.Append(dst, c.v); err != nil {
			return h.errorf("value: %w", err)
		}
		h.mean.add(len(dst) - at)
		b.ValueDone(dst)
		c.flags = c.flags&^h.frozen() | cellStored
	case c.flags&cellStored != 0:
		dst, err := h.keys.appendKey(b.BeginDelete(h.keys.keyGroup(slot), h.id), slot)
		if err != nil {
			return h.errorf("key: %w", err)
		}
		b.DeleteDone(dst)
		c.flags &^= h.frozen() | cellStored
		h.keys.emptied(slot)
	default: // set and cleared between two cuts
		c.flags &^= h.frozen()
		h.keys.emptied(slot)
	}
	h.keys.frozen(slot)
	return nil
}

func (h *OfValue[V]) sweep() { h.sweepSome(sweepPerCut) }

// sweepSome looks at some cells. No tombstone is written for one that has expired: what
// segments hold of it has expired as well.
func (h *OfValue[V]) sweepSome(n int) {
	if h.opts.domain == segment.Forever || h.keys.backing() != nil || len(h.chunks) == 0 {
		return
	}
	now := h.keys.removes(h.opts.domain)
	for range min(n, len(h.chunks)<<chunkBits) {
		slot := h.swept
		if h.swept++; h.swept == uint32(len(h.chunks))<<chunkBits {
			h.swept = 0
		}
		c := h.at(slot)
		if c.flags&(cellSet|cellBusy) != cellSet {
			continue
		}
		switch expires := h.expires[slot>>chunkBits][slot&chunkMask]; {
		case expires <= now:
			*c = cell[V]{}
			h.keys.emptied(slot)
		case expires == unstamped && now != unknownTime:
			h.change(slot, c)
			h.renew(slot)
		}
	}
}

func (h *OfValue[V]) cost() int {
	n := int(unsafe.Sizeof(cell[V]{}))
	if h.opts.domain != segment.Forever {
		n += 8
	}
	if !h.flat {
		n += h.mean.get()
	}
	return n
}

func (h *OfValue[V]) extra() int64 { return 0 }

// mean is a moving average.
type mean struct{ scaled int }

const meanShift = 6 // of 1<<meanShift values, about

func (m *mean) add(n int) {
	if m.scaled == 0 {
		m.scaled = n << meanShift
	}
	m.scaled += n - m.scaled>>meanShift
}

func (m *mean) get() int { return m.scaled >> meanShift }

// flat tells whether values of a type hold no memory but their own.
func flat(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Bool, reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64, reflect.Uintptr,
		reflect.Float32, reflect.Float64, reflect.Complex64, reflect.Complex128:
		return true
	case reflect.Array:
		return flat(t.Elem())
	case reflect.Struct:
		for f := range t.Fields() {
			if !flat(f.Type) {
				return false
			}
		}
		return true
	}
	return false
}
