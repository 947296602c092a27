package state

import (
	"fmt"
	"math"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/state/segment"
)

// Space is a keyspace without its key type, as the runtime stores it.
type Space interface {
	// Attach makes the scope's handles part of the space; ids are the registry
	// numbers of its handles in order.
	Attach(s *Scope, ids []uint16)
	// Restore applies one entry of a checkpoint: key-group, state id, encoded key
	// and value. The bytes may be reused afterwards.
	Restore(keyGroup, id uint16, key, value []byte) error
	// Freeze encodes what changed since the last call.
	Freeze(b *segment.Builder) error
	// Len is the number of keys that hold state.
	Len() int
}

// Keyspace maps the keys of one keyed subtask to slots. Every handle of the
// subtask's operators is a column over the same slots, so a record costs one
// look-up however many handles its handler touches.
type Keyspace[K comparable] struct {
	codec codec.Codec[K]
	index map[K]uint32
	keys  [][]slotKey[K]
	free  []uint32
	next  uint32

	columns []attached
	byID    map[uint16]column

	cur     K
	curKG   uint16
	curSlot uint32
	curOK   bool // curSlot is cur's slot

	touched uint8 // of no meaning: keeps the reads of touch from being optimised away

	maybeEmpty []uint32 // slots that a column froze as empty
}

type slotKey[K comparable] struct {
	key K
	kg  uint16
}

type attached struct {
	column
	id uint16
}

// NewKeyspace returns an empty keyspace whose keys are encoded by c.
func NewKeyspace[K comparable](c codec.Codec[K]) *Keyspace[K] {
	return &Keyspace[K]{codec: c, index: map[K]uint32{}, byID: map[uint16]column{}}
}

var _ Space = (*Keyspace[string])(nil)

// Attach implements [Space].
func (ks *Keyspace[K]) Attach(s *Scope, ids []uint16) {
	s.keys = ks
	for i, c := range s.columns {
		ks.columns = append(ks.columns, attached{c, ids[i]})
		ks.byID[ids[i]] = c
		c.grow(ks.capacity())
	}
}

// Use makes k, which belongs to the key-group, the current key.
func (ks *Keyspace[K]) Use(k K, keyGroup uint16) {
	ks.cur, ks.curKG, ks.curOK = k, keyGroup, false
}

// NoSlot is what [Keyspace.Find] returns for a key that holds no state.
const NoSlot = math.MaxUint32

// Find returns where k's state is, for [Keyspace.UseAt], or NoSlot. The answer
// stands until the next Freeze. Look-ups of several keys in a row wait for memory
// together; one by one between handlers each of them waits alone.
func (ks *Keyspace[K]) Find(k K) (slot uint32) {
	if len(ks.columns) > 0 {
		if slot, ok := ks.index[k]; ok {
			for _, c := range ks.columns {
				ks.touched ^= c.touch(slot)
			}
			return slot
		}
	}
	return NoSlot
}

// UseAt is Use for a key of which Find told the slot.
func (ks *Keyspace[K]) UseAt(k K, keyGroup uint16, slot uint32) {
	ks.cur, ks.curKG, ks.curSlot, ks.curOK = k, keyGroup, slot, slot != NoSlot
}

// Key is the current key.
func (ks *Keyspace[K]) Key() K { return ks.cur }

// Len is the number of keys that hold state.
func (ks *Keyspace[K]) Len() int { return len(ks.index) }

func (ks *Keyspace[K]) capacity() uint32 { return ks.next }

func (ks *Keyspace[K]) slot(create bool) (uint32, bool) {
	if ks.curOK {
		return ks.curSlot, true
	}
	slot, ok := ks.index[ks.cur]
	if !ok {
		if !create {
			return 0, false
		}
		slot = ks.insert(codec.Clone(ks.codec, ks.cur), ks.curKG)
	}
	ks.curSlot, ks.curOK = slot, true
	return slot, true
}

// insert gives k, which must own its memory, a slot.
func (ks *Keyspace[K]) insert(k K, kg uint16) uint32 {
	var slot uint32
	if n := len(ks.free); n > 0 {
		slot, ks.free = ks.free[n-1], ks.free[:n-1]
	} else {
		slot = ks.next
		ks.next++
		if slot&chunkMask == 0 {
			ks.keys = append(ks.keys, make([]slotKey[K], chunkSize))
			for _, c := range ks.columns {
				c.grow(ks.next)
			}
		}
	}
	*ks.at(slot) = slotKey[K]{k, kg}
	ks.index[k] = slot
	return slot
}

func (ks *Keyspace[K]) at(slot uint32) *slotKey[K] {
	return &ks.keys[slot>>chunkBits][slot&chunkMask]
}

// Restore implements [Space].
func (ks *Keyspace[K]) Restore(keyGroup, id uint16, key, value []byte) error {
	c, ok := ks.byID[id]
	if !ok {
		return fmt.Errorf("state id %d belongs to no operator of this topology", id)
	}
	k, err := ks.codec.Decode(key)
	if err != nil {
		return fmt.Errorf("key of %q: %w", c.describe().Operator, err)
	}
	slot, ok := ks.index[k]
	if !ok {
		slot = ks.insert(codec.Clone(ks.codec, k), keyGroup)
	}
	return c.restore(slot, value)
}

// Freeze implements [Space].
func (ks *Keyspace[K]) Freeze(b *segment.Builder) error {
	for _, c := range ks.columns {
		if err := c.freeze(b, c.id, ks); err != nil {
			return err
		}
	}
	for _, slot := range ks.maybeEmpty {
		ks.release(slot)
	}
	ks.maybeEmpty = ks.maybeEmpty[:0]
	ks.curOK = false
	return nil
}

// release frees a slot that no column uses any more.
func (ks *Keyspace[K]) release(slot uint32) {
	for _, c := range ks.columns {
		if c.used(slot) {
			return
		}
	}
	k := ks.at(slot)
	if at, ok := ks.index[k.key]; !ok || at != slot {
		return // freed already, through another column's entry
	}
	delete(ks.index, k.key)
	*k = slotKey[K]{}
	ks.free = append(ks.free, slot)
}

func (ks *Keyspace[K]) keyGroup(slot uint32) uint16 { return ks.at(slot).kg }

func (ks *Keyspace[K]) appendKey(dst []byte, slot uint32) ([]byte, error) {
	return ks.codec.Append(dst, ks.at(slot).key)
}

func (ks *Keyspace[K]) emptied(slot uint32) { ks.maybeEmpty = append(ks.maybeEmpty, slot) }
