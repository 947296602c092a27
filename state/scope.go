package state

import (
	"fmt"
	"math/bits"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/state/segment"
)

// Setup is what a handle is declared on: the weir.Setup that an operator's setup
// function receives.
type Setup interface {
	// StateScope returns the scope of the operator being set up.
	StateScope() *Scope
}

// Descriptor says what a handle stores. It is recorded in every manifest.
type Descriptor struct {
	Operator     string
	Name         string
	Kind         string // "value"
	ValueCodec   string
	ValueVersion int
}

// column is the typed table of one handle: one cell for each slot of the keyspace.
type column interface {
	// describe returns what the column stores.
	describe() Descriptor
	// grow makes room for slots below n.
	grow(n uint32)
	// used tells whether the slot's cell holds a value or a change not yet frozen.
	used(slot uint32) bool
	// touch reads something of the slot's cell, to have it in the cache soon.
	touch(slot uint32) uint8
	// restore sets a cell from the value of an entry.
	restore(slot uint32, b []byte) error
	// freeze encodes each dirty cell into b and forgets that it was dirty.
	freeze(b *segment.Builder, id uint16, key keyWriter) error
}

// keyWriter knows the keys of a keyspace in encoded form.
type keyWriter interface {
	keyGroup(slot uint32) uint16
	appendKey(dst []byte, slot uint32) ([]byte, error)
	// emptied is told of each slot whose cell holds nothing any more, so that a
	// slot that no column uses is freed.
	emptied(slot uint32)
}

// Scope is the state of one operator on one subtask. It is made by [NewScope] and
// used on that subtask's goroutine only.
type Scope struct {
	operator string
	columns  []column
	errs     []error
	keys     slots // nil in a scope that only collects declarations
}

// slots resolves the current key. It is the part of Keyspace that handles see.
type slots interface {
	// slot returns the current key's slot; ok is false if the key has none and
	// create is false.
	slot(create bool) (slot uint32, ok bool)
	// capacity is the number of slots in use or free.
	capacity() uint32
}

// NewScope returns a scope for the operator's handles. Without a keyspace it only
// collects the declarations, for validation.
func NewScope(operator string) *Scope { return &Scope{operator: operator} }

// Descriptors lists the handles in the order of their declaration.
func (s *Scope) Descriptors() []Descriptor {
	ds := make([]Descriptor, len(s.columns))
	for i, c := range s.columns {
		ds[i] = c.describe()
	}
	return ds
}

// Errors lists what is wrong with the declarations.
func (s *Scope) Errors() []error { return s.errs }

// add registers a column under its name.
func (s *Scope) add(c column) {
	d := c.describe()
	if d.Name == "" {
		s.errs = append(s.errs, fmt.Errorf("operator %q: a %s state has no name", s.operator, d.Kind))
	}
	for _, other := range s.columns {
		if other.describe().Name == d.Name {
			s.errs = append(s.errs, fmt.Errorf("operator %q: state name %q used twice", s.operator, d.Name))
		}
	}
	s.columns = append(s.columns, c)
}

// OfValue is a handle to one value for each key.
type OfValue[V any] struct {
	scope *Scope
	name  string
	codec codec.Codec[V]

	chunks [][]cell[V]
	dirty  []uint32
	marks  []uint64 // all zero but in sortDirty
}

// cell is one key's value.
type cell[V any] struct {
	v     V
	flags uint8
}

const (
	cellSet    = 1 << iota // v holds the key's value
	cellDirty              // changed since the last freeze, listed in dirty
	cellStored             // a segment holds a value for the key, so deleting needs a tombstone
)

// chunkBits makes a table grow by pieces of 1024 cells, so that growing never
// copies what is there.
const (
	chunkBits = 10
	chunkSize = 1 << chunkBits
	chunkMask = chunkSize - 1
)

// Value declares a state that holds one V for each key, encoded by c.
func Value[V any](s Setup, name string, c codec.Codec[V]) *OfValue[V] {
	scope := s.StateScope()
	h := &OfValue[V]{scope: scope, name: name, codec: c}
	if err := codec.Check(c); err != nil {
		scope.errs = append(scope.errs, fmt.Errorf("operator %q: state %q: %w", scope.operator, name, err))
	}
	scope.add(h)
	return h
}

// Get returns the current key's value, or the zero value if none is set.
func (h *OfValue[V]) Get() V {
	v, _ := h.Lookup()
	return v
}

// Lookup returns the current key's value and whether one is set.
func (h *OfValue[V]) Lookup() (V, bool) {
	slot, ok := h.scope.keys.slot(false)
	if !ok {
		var zero V
		return zero, false
	}
	c := h.at(slot)
	return c.v, c.flags&cellSet != 0
}

// Set makes v the current key's value. V must not be changed afterwards if it
// holds pointers: it is encoded at the next barrier.
func (h *OfValue[V]) Set(v V) {
	slot, _ := h.scope.keys.slot(true)
	c := h.at(slot)
	c.v = codec.Clone(h.codec, v)
	if c.flags&cellDirty == 0 {
		h.dirty = append(h.dirty, slot)
	}
	c.flags |= cellSet | cellDirty
}

// Clear removes the current key's value.
func (h *OfValue[V]) Clear() {
	slot, ok := h.scope.keys.slot(false)
	if !ok {
		return
	}
	c := h.at(slot)
	if c.flags&cellSet == 0 {
		return
	}
	var zero V
	c.v = zero
	if c.flags&cellDirty == 0 {
		h.dirty = append(h.dirty, slot)
	}
	c.flags = c.flags&^cellSet | cellDirty
}

func (h *OfValue[V]) at(slot uint32) *cell[V] {
	return &h.chunks[slot>>chunkBits][slot&chunkMask]
}

func (h *OfValue[V]) describe() Descriptor {
	d := Descriptor{Operator: h.scope.operator, Name: h.name, Kind: "value"}
	if h.codec != nil {
		d.ValueCodec, d.ValueVersion = h.codec.Name(), h.codec.Version()
	}
	return d
}

func (h *OfValue[V]) grow(n uint32) {
	for uint32(len(h.chunks))<<chunkBits < n {
		h.chunks = append(h.chunks, make([]cell[V], chunkSize))
	}
}

func (h *OfValue[V]) used(slot uint32) bool { return h.at(slot).flags&(cellSet|cellDirty) != 0 }

func (h *OfValue[V]) restore(slot uint32, b []byte) error {
	header, b, err := segment.CutHeader(b)
	if err != nil {
		return fmt.Errorf("operator %q: state %q: %w", h.scope.operator, h.name, err)
	}
	v, err := codec.DecodeVersion(h.codec, header.Version, b)
	if err != nil {
		return fmt.Errorf("operator %q: state %q: %w", h.scope.operator, h.name, err)
	}
	c := h.at(slot)
	c.v, c.flags = codec.Clone(h.codec, v), cellSet|cellStored
	return nil
}

func (h *OfValue[V]) touch(slot uint32) uint8 { return h.at(slot).flags }

// sortDirty puts the dirty slots in order, so that freezing walks through the
// tables of cells and keys instead of jumping about in them: with many dirty slots
// that costs more than everything else it does. With few the look at every mark
// would cost more.
func (h *OfValue[V]) sortDirty() {
	words := len(h.chunks) << chunkBits / 64
	if len(h.dirty) < words {
		return
	}
	if len(h.marks) < words {
		h.marks = make([]uint64, words)
	}
	for _, slot := range h.dirty {
		h.marks[slot/64] |= 1 << (slot % 64)
	}
	sorted := h.dirty[:0]
	for i, w := range h.marks {
		for ; w != 0; w &= w - 1 {
			sorted = append(sorted, uint32(i*64+bits.TrailingZeros64(w)))
		}
		h.marks[i] = 0
	}
	h.dirty = sorted
}

func (h *OfValue[V]) freeze(b *segment.Builder, id uint16, key keyWriter) error {
	header := segment.Header{Version: h.codec.Version()}
	h.sortDirty()
	for _, slot := range h.dirty {
		c := h.at(slot)
		switch {
		case c.flags&cellSet != 0:
			dst, err := key.appendKey(b.BeginPut(key.keyGroup(slot), id), slot)
			if err != nil {
				return fmt.Errorf("operator %q: state %q: key: %w", h.scope.operator, h.name, err)
			}
			dst = segment.AppendHeader(b.KeyDone(dst), header)
			if dst, err = h.codec.Append(dst, c.v); err != nil {
				return fmt.Errorf("operator %q: state %q: value: %w", h.scope.operator, h.name, err)
			}
			b.ValueDone(dst)
			c.flags = cellSet | cellStored
		case c.flags&cellStored != 0:
			dst, err := key.appendKey(b.BeginDelete(key.keyGroup(slot), id), slot)
			if err != nil {
				return fmt.Errorf("operator %q: state %q: key: %w", h.scope.operator, h.name, err)
			}
			b.DeleteDone(dst)
			c.flags = 0
			key.emptied(slot)
		default: // set and cleared within one epoch
			c.flags = 0
			key.emptied(slot)
		}
	}
	h.dirty = h.dirty[:0]
	return nil
}
