package state

import (
	"fmt"
	"hash/maphash"
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
	index index
	seed  maphash.Seed
	keys  [][]slotKey[K]
	free  []uint32
	next  uint32

	columns []attached
	byID    map[uint16]column

	cur     K
	curKG   uint16
	curSlot uint32
	curOK   bool // curSlot is cur's slot

	touched uint64 // of no meaning: keeps reads ahead from being optimised away

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
	return &Keyspace[K]{codec: c, index: newIndex(), seed: maphash.MakeSeed(), byID: map[uint16]column{}}
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

// NoSlot is what [Keyspace.Find] finds for a key that holds no state.
const NoSlot = math.MaxUint32

// LookAhead is how many keys [Keyspace.Find] takes at most: enough to hide the
// latency of memory, few enough that what it found is still in the first-level cache
// when it is used.
const LookAhead = 32

// Sought is a key to be found.
type Sought[K comparable] struct {
	Key  K
	Slot uint32 // where Find found its state, for UseAt, or NoSlot

	hash, next uint32
}

// Find finds where the state of keys is. The answer stands until the next Freeze.
// It goes over all keys step by step, and no step of one key waits for that of
// another, so all wait for memory together; one by one between handlers each of them
// would wait alone.
func (ks *Keyspace[K]) Find(sought []Sought[K]) {
	if len(ks.columns) == 0 {
		for i := range sought {
			sought[i].Slot = NoSlot
		}
		return
	}
	touched := ks.touched
	for i := range sought {
		s := &sought[i]
		s.hash = hashOf(ks.seed, s.Key)
		touched ^= ks.index.touch(s.hash)
	}
	for i := range sought {
		s := &sought[i]
		s.Slot, s.next = ks.index.first(s.hash)
		if s.Slot == NoSlot {
			continue
		}
		touched ^= uint64(ks.at(s.Slot).kg)
		for _, c := range ks.columns {
			touched ^= uint64(c.touch(s.Slot))
		}
	}
	for i := range sought {
		s := &sought[i]
		for s.Slot != NoSlot && ks.at(s.Slot).key != s.Key {
			s.Slot, s.next = ks.index.next(s.hash, s.next)
		}
	}
	ks.touched = touched
}

// UseAt is Use for a key of which Find told the slot.
func (ks *Keyspace[K]) UseAt(k K, keyGroup uint16, slot uint32) {
	ks.cur, ks.curKG, ks.curSlot, ks.curOK = k, keyGroup, slot, slot != NoSlot
}

// Key is the current key.
func (ks *Keyspace[K]) Key() K { return ks.cur }

// Len is the number of keys that hold state.
func (ks *Keyspace[K]) Len() int { return ks.index.len }

func (ks *Keyspace[K]) capacity() uint32 { return ks.next }

func (ks *Keyspace[K]) slot(create bool) (uint32, bool) {
	if ks.curOK {
		return ks.curSlot, true
	}
	hash := hashOf(ks.seed, ks.cur)
	slot := ks.find(hash, ks.cur)
	if slot == NoSlot {
		if !create {
			return 0, false
		}
		slot = ks.insert(hash, codec.Clone(ks.codec, ks.cur), ks.curKG)
	}
	ks.curSlot, ks.curOK = slot, true
	return slot, true
}

// find returns k's slot, or NoSlot.
func (ks *Keyspace[K]) find(hash uint32, k K) uint32 {
	slot, next := ks.index.first(hash)
	for slot != NoSlot && ks.at(slot).key != k {
		slot, next = ks.index.next(hash, next)
	}
	return slot
}

// insert gives k, which must own its memory, a slot.
func (ks *Keyspace[K]) insert(hash uint32, k K, kg uint16) uint32 {
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
	ks.index.insert(hash, slot)
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
	hash := hashOf(ks.seed, k)
	slot := ks.find(hash, k)
	if slot == NoSlot {
		slot = ks.insert(hash, codec.Clone(ks.codec, k), keyGroup)
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
	if !ks.index.delete(hashOf(ks.seed, k.key), slot) {
		return // freed already, through another column's entry
	}
	*k = slotKey[K]{}
	ks.free = append(ks.free, slot)
}

func (ks *Keyspace[K]) keyGroup(slot uint32) uint16 { return ks.at(slot).kg }

func (ks *Keyspace[K]) appendKey(dst []byte, slot uint32) ([]byte, error) {
	return ks.codec.Append(dst, ks.at(slot).key)
}

func (ks *Keyspace[K]) emptied(slot uint32) { ks.maybeEmpty = append(ks.maybeEmpty, slot) }
