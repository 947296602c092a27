package state

import (
	"errors"
	"fmt"
	"hash/maphash"
	"math"
	"reflect"
	"slices"
	"unsafe"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/exact"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/state/segment"
)

// Space is a keyspace without its key type, as the runtime stores it.
type Space interface {
	// Attach makes the scope's handles part of the space; ids are the registry
	// numbers of its handles in order.
	Attach(s *Scope, ids []uint16)
	// Restore applies one entry of a checkpoint: key-group, state id, user key and
	// value. The bytes may be reused afterwards.
	Restore(keyGroup, id uint16, userKey, value []byte) error
	// LoadBroadcast reads the broadcast states from the Backing, if there is one.
	LoadBroadcast() error
	// Cut freezes what changed since the last call, at a cost that does not depend on
	// how much that is. From then on Encode, and handlers that are about to change
	// something frozen, encode it into b. Until Encode has said that it is done, b
	// belongs to the space and Cut is not called again.
	Cut(b *segment.Builder, checkpoint int64)
	// Encode encodes up to about n frozen entries and tells whether none is left.
	Encode(n int) (done bool, err error)
	// Len is the number of keys that are in memory.
	Len() int
	// Err is the first error that a handle met.
	Err() error
	// Changed is an error if a value was changed in place, where the space watches them.
	Changed() error
}

// Config says where a keyspace keeps its state. The zero Config is all in memory.
type Config struct {
	// Backing is the committed state; the keyspace holds in memory what changed since,
	// and what was used lately. Nil keeps everything in memory.
	Backing Backing
	// MemoryBytes is what the keyspace may hold in memory, about, before it drops what
	// was not used for long and can be read again. Without a Backing it has no meaning.
	MemoryBytes int64
	// FirstKeyGroup and KeyGroups are the key-groups that the keyspace owns: the first
	// and how many. Without a Backing all that counts is whether the first one is 0: that
	// keyspace freezes the broadcast states.
	FirstKeyGroup, KeyGroups int
	// Committed returns the newest checkpoint that the Backing has. What was encoded
	// for a later one is not dropped.
	Committed func() int64
	// Spared, by state, are expiries in what is stored that do not count.
	Spared map[uint16]segment.Spans
	// Watch makes [Keyspace.Changed] find something, for tests of handlers: each value that
	// holds pointers is encoded whenever it is set or read. It is not for a keyspace with a
	// Backing.
	Watch bool
}

// Keyspace maps the keys of one keyed subtask to slots. Every handle of the
// subtask's operators is a column over the same slots, so a record costs one
// look-up however many handles its handler touches.
type Keyspace[K comparable] struct {
	cfg   Config
	codec codec.Codec[K]
	index index
	seed  maphash.Seed
	keys  [][]slotKey[K]
	free  []uint32
	next  uint32

	columns  []column
	byID     map[uint16]column
	trimmers []trimmer      // some of the columns
	shared   []sharedColumn // some of the columns

	cur     K
	curKG   uint16
	curSlot uint32
	curOK   bool // curSlot is cur's slot
	keyless bool // there is no current key

	exact   bool   // the codec is known to give every key back
	reach   reach  // what a K refers to
	touched uint64 // of no meaning: keeps reads ahead from being optimised away

	maybeEmpty []uint32 // slots that a column froze as empty

	into     *segment.Builder
	cutAt    int64  // the checkpoint that is being encoded
	cutID    uint32 // its low bits
	encoding int    // the column whose turn it is; len(columns) if all is encoded

	times   [segment.EventTime + 1]int64 // by clock
	removed [segment.EventTime + 1]int64 // by clock: what had expired by then may be removed
	// Event time by key-group from the first one on, for timers and for entries; nil: none is
	// above times.
	floors, entryFloors []int64
	passed              bool // a timer was set for a time that has come
	err                 error
	buf                 []byte

	seen *watch // nil unless cfg.Watch

	out int64 // nothing that is not in memory was written for a checkpoint after it

	pinned  []pinned // slots on their way to the backing, oldest first
	hand    uint32   // where evict goes on
	stuck   int64    // one more than the newest checkpoint for which there was not enough to drop
	stuckAt int64    // what was in memory then
	keySize mean
	flatKey bool
}

// pinned counts the slots of which a checkpoint wrote something.
type pinned struct {
	checkpoint int64
	slots      int
	bytes      int64 // beside those of the slots
}

type slotKey[K comparable] struct {
	key  K
	cut  uint32 // low bits of the last checkpoint that something was encoded for
	kg   uint16
	used bool // since the hand of evict came by
}

// KeyError says that a key can hold no state, because its codec does not give it back:
// after a restart its state would be that of another key, or lost. A handle that finds it
// panics with it, so that the handler does not go on; the runtime makes it the error of the
// record.
type KeyError struct {
	Key     any
	Codec   string
	Encoded string // what the codec made of it
	Decoded any    // what it made of that
	Err     error  // why it made nothing; may be nil
}

func (e *KeyError) Error() string {
	s := fmt.Sprintf("the key %+v can hold no state: codec %s ", e.Key, e.Codec)
	switch {
	case e.Err != nil && e.Encoded == "":
		return s + fmt.Sprintf("does not encode it: %v", e.Err)
	case e.Err != nil:
		return s + fmt.Sprintf("encodes it as %q, which it does not decode: %v", e.Encoded, e.Err)
	}
	return s + fmt.Sprintf("encodes it as %q and decodes that as %+v, which is another key: after a restart its state would be lost, or that of another key; give KeyBy a codec that gives each key back as it was, and keys that are == to themselves: with codec.JSON only exported fields count, and text must be UTF-8; a NaN is no key", e.Encoded, e.Decoded)
}

func (e *KeyError) Unwrap() error { return e.Err }

// NewKeyspace returns an empty keyspace whose keys are encoded by c.
func NewKeyspace[K comparable](c codec.Codec[K], cfg Config) *Keyspace[K] {
	t := reflect.TypeFor[K]()
	unknown := [segment.EventTime + 1]int64{segment.ProcessingTime: unknownTime, segment.EventTime: unknownTime}
	ks := &Keyspace[K]{cfg: cfg, codec: c, index: newIndex(), seed: maphash.MakeSeed(), byID: map[uint16]column{},
		times: unknown, removed: unknown, out: math.MaxInt64, flatKey: flat(t), exact: exact.Is(c), reach: reachOf(t)}
	if cfg.Watch {
		ks.seen = &watch{map[any]func() error{}}
	}
	return ks
}

var _ Space = (*Keyspace[string])(nil)

// Attach implements [Space].
func (ks *Keyspace[K]) Attach(s *Scope, ids []uint16) {
	for i, c := range s.columns {
		c.attach(ks, ids[i])
		ks.columns = append(ks.columns, c)
		if t, ok := c.(sharedColumn); ok {
			ks.shared = append(ks.shared, t)
		} else if t, ok := c.(trimmer); ok {
			ks.trimmers = append(ks.trimmers, t)
		}
		ks.byID[ids[i]] = c
		c.grow(ks.capacity())
	}
	ks.encoding = len(ks.columns)
}

// SetTime tells what time it is, in milliseconds since 1970: for entries that expire.
// Until then nothing is known of the time; math.MinInt64 says so, too.
func (ks *Keyspace[K]) SetTime(d segment.Domain, ms int64) {
	ks.times[d], ks.removed[d] = ms, ms
}

// SetTimeOfTimer tells that a timer fires, for which event time is ms, until SetTime is
// called. The next timer may be one for an earlier time: so nothing that has expired since
// the last SetTime is removed.
func (ks *Keyspace[K]) SetTimeOfTimer(ms int64) { ks.times[segment.EventTime] = ms }

// SetFloors tells that for the keys of some key-groups event time is not before a floor,
// whatever SetTime says: timers has that of each key-group that the keyspace owns, and
// entries has it for the entries that expire, which may be earlier while timers that are due
// have not fired. It is called before anything is restored, and again with nil when event
// time has passed all of them.
func (ks *Keyspace[K]) SetFloors(timers, entries []int64) {
	ks.floors, ks.entryFloors = timers, entries
}

// Passed tells whether a timer was set, since it was called last, for a time that has come:
// one that is to fire before the next record.
func (ks *Keyspace[K]) Passed() bool {
	if !ks.passed {
		return false
	}
	ks.passed = false
	return true
}

// Floor is the event time that the current key has come to at least, math.MinInt64 if
// nothing is known of it.
func (ks *Keyspace[K]) Floor() int64 {
	if ks.keyless {
		return unknownTime
	}
	return ks.floor(ks.curKG)
}

func (ks *Keyspace[K]) floor(keyGroup uint16) int64 { return ks.ofGroup(ks.floors, keyGroup) }

func (ks *Keyspace[K]) ofGroup(floors []int64, keyGroup uint16) int64 {
	i := int(keyGroup) - ks.cfg.FirstKeyGroup
	if i < 0 || i >= len(floors) {
		return unknownTime
	}
	return floors[i]
}

// Err implements [Space].
func (ks *Keyspace[K]) Err() error { return ks.err }

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
	if ks.curOK && ks.cfg.Backing != nil {
		ks.at(slot).used = true
	}
}

// Key is the current key.
func (ks *Keyspace[K]) Key() K { return ks.cur }

// LoadBroadcast reads the broadcast states from the Backing, which must be at the
// checkpoint that the keyspace begins with. It is called once, after Attach and SetTime.
// Without a Backing, Restore does it: every subtask is given all entries of these states.
func (ks *Keyspace[K]) LoadBroadcast() error {
	ks.keyless = true
	defer func() { ks.keyless = false }()
	for _, c := range ks.shared {
		if ks.cfg.Backing == nil {
			break
		}
		if err := c.loadShared(ks.cfg.Backing); err != nil {
			return err
		}
	}
	return nil
}

// Broadcasting says whether the handler that is called next is that of a record of a
// broadcast stream, which may write broadcast states. There is no current key then.
func (ks *Keyspace[K]) Broadcasting(on bool) {
	ks.keyless, ks.curOK = on, false
	for _, c := range ks.shared {
		c.allow(on)
	}
}

// Len is the number of keys that hold state.
func (ks *Keyspace[K]) Len() int { return ks.index.len }

func (ks *Keyspace[K]) capacity() uint32 { return ks.next }

func (ks *Keyspace[K]) slot(create bool) (uint32, bool) {
	if ks.curOK {
		return ks.curSlot, true
	}
	if ks.keyless {
		ks.fail(errors.New("state of a key was used in the handler of a broadcast stream, where no key is current: only broadcast states can be used there"))
	}
	hash := hashOf(ks.seed, ks.cur)
	slot := ks.find(hash, ks.cur)
	if slot == NoSlot {
		if !create && ks.cfg.Backing == nil {
			return 0, false
		}
		slot = ks.insert(hash, ks.own(ks.cur), ks.curKG)
		if ks.cfg.Backing != nil {
			for _, c := range ks.columns {
				c.unknown(slot)
			}
			if !ks.flatKey && slot%weighEvery == 0 {
				weigh(ks, ks.codec, ks.cur, &ks.keySize)
			}
		}
	}
	ks.at(slot).used = true
	ks.curSlot, ks.curOK = slot, true
	return slot, true
}

// own returns k in memory of its own, as the codec decodes it. If that is another key it
// panics with a [KeyError].
func (ks *Keyspace[K]) own(k K) K {
	if ks.exact || ks.keyless {
		return codec.Clone(ks.codec, k)
	}
	b, err := ks.codec.Append(nil, k) // not into memory that is used again: the key may alias it
	if err != nil {
		panic(&KeyError{Key: k, Codec: ks.codec.Name(), Err: err})
	}
	back, err := ks.codec.Decode(b)
	if err != nil || back != k {
		panic(&KeyError{Key: k, Codec: ks.codec.Name(), Encoded: string(b), Decoded: back, Err: err})
	}
	return back // all that it may alias is b
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
	*ks.at(slot) = slotKey[K]{key: k, kg: kg, cut: ks.cutID}
	ks.index.insert(hash, slot)
	return slot
}

func (ks *Keyspace[K]) at(slot uint32) *slotKey[K] {
	return &ks.keys[slot>>chunkBits][slot&chunkMask]
}

// Restore implements [Space].
func (ks *Keyspace[K]) Restore(keyGroup, id uint16, userKey, value []byte) error {
	c, ok := ks.byID[id]
	if !ok {
		return fmt.Errorf("state id %d belongs to no operator of this topology", id)
	}
	if s, ok := c.(sharedColumn); ok {
		ks.keyless = true // it is for all keys
		defer func() { ks.keyless = false }()
		return s.restoreShared(userKey, value)
	}
	key, rest, ok := c.split(userKey)
	if !ok {
		d := c.describe()
		return fmt.Errorf("operator %q: state %q: %x is not the key of a %s state", d.Operator, d.Name, userKey, d.Kind)
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
	return c.restore(slot, rest, value)
}

func (ks *Keyspace[K]) slotOf(key []byte, keyGroup uint16) (uint32, error) {
	k, err := ks.codec.Decode(key)
	if err != nil {
		return 0, fmt.Errorf("key %x: %w", key, err)
	}
	hash := hashOf(ks.seed, k)
	slot := ks.find(hash, k)
	if slot == NoSlot {
		slot = ks.insert(hash, codec.Clone(ks.codec, k), keyGroup)
		for _, c := range ks.columns {
			c.unknown(slot)
		}
	}
	return slot, nil
}

func (ks *Keyspace[K]) use(slot uint32) {
	k := ks.at(slot)
	ks.UseAt(k.key, k.kg, slot)
}

// Cut implements [Space].
func (ks *Keyspace[K]) Cut(b *segment.Builder, checkpoint int64) {
	if ks.encoding < len(ks.columns) {
		panic(fmt.Sprintf("state: cut for checkpoint %d before the one before was encoded", checkpoint))
	}
	ks.into, ks.cutAt, ks.cutID, ks.encoding = b, checkpoint, uint32(checkpoint), 0
	for _, c := range ks.columns {
		c.cut()
		c.sweep()
	}
	if ks.cfg.Backing != nil {
		ks.pinned = append(ks.pinned, pinned{checkpoint: checkpoint})
		// Before the first cut all that is committed was written for earlier checkpoints.
		ks.out = min(ks.out, checkpoint-1)
	}
}

// Encode implements [Space].
func (ks *Keyspace[K]) Encode(n int) (done bool, err error) {
	for ks.encoding < len(ks.columns) && n > 0 {
		looked, err := ks.columns[ks.encoding].encode(n)
		if err != nil {
			return false, err
		}
		if looked < n {
			ks.encoding++
		}
		n -= looked
	}
	if len(ks.maybeEmpty) > 0 {
		for _, slot := range ks.maybeEmpty {
			ks.release(slot)
		}
		ks.maybeEmpty = ks.maybeEmpty[:0]
		ks.curOK = false
	}
	if ks.encoding < len(ks.columns) {
		return false, nil
	}
	ks.into = nil
	return true, nil
}

// Encoding describes the state that Encode goes on with.
func (ks *Keyspace[K]) Encoding() Descriptor {
	if ks.encoding == len(ks.columns) {
		return Descriptor{}
	}
	return ks.columns[ks.encoding].describe()
}

// Freeze is Cut and Encode in one.
func (ks *Keyspace[K]) Freeze(b *segment.Builder, checkpoint int64) error {
	ks.Cut(b, checkpoint)
	_, err := ks.Encode(math.MaxInt)
	return err
}

// release frees a slot that no column uses any more.
func (ks *Keyspace[K]) release(slot uint32) {
	if ks.cfg.Backing != nil {
		return // the backing does not know yet that nothing is there
	}
	for _, c := range ks.columns {
		if c.used(slot) {
			return
		}
	}
	ks.remove(slot)
}

func (ks *Keyspace[K]) remove(slot uint32) {
	k := ks.at(slot)
	if !ks.index.delete(hashOf(ks.seed, k.key), slot) {
		return // removed already, through another column's entry
	}
	*k = slotKey[K]{}
	ks.free = append(ks.free, slot)
}

// Memory returns the bytes of memory that the state takes, about.
func (ks *Keyspace[K]) Memory() int64 {
	n := int64(ks.index.len) * ks.slotBytes()
	for _, c := range ks.columns {
		n += c.extra()
	}
	return n
}

// Pending tells whether anything changed since the last Cut.
func (ks *Keyspace[K]) Pending() bool {
	return slices.ContainsFunc(ks.columns, column.pending)
}

// Pinned returns how many bytes of it can't be dropped, about, because they were
// encoded for a checkpoint that is not committed.
func (ks *Keyspace[K]) Pinned() int64 {
	if len(ks.pinned) == 0 {
		return 0
	}
	committed := ks.cfg.Committed()
	for len(ks.pinned) > 0 && ks.pinned[0].checkpoint <= committed {
		ks.pinned = slices.Delete(ks.pinned, 0, 1)
	}
	n, bytes := 0, int64(0)
	for _, p := range ks.pinned {
		n += p.slots
		bytes += p.bytes
	}
	return int64(n)*ks.slotBytes() + bytes
}

// slotBytes is the memory of one slot.
func (ks *Keyspace[K]) slotBytes() int64 {
	n := int(unsafe.Sizeof(slotKey[K]{})) + 2*8 // in a part that was just split, half is free
	if !ks.flatKey {
		n += ks.keySize.get()
	}
	for _, c := range ks.columns {
		n += c.cost()
	}
	return int64(n)
}

// Evict drops state from memory that the backing has and that was not used for long,
// until what is there fits into the budget. It returns what is left as a multiple of
// the budget: more than 1 if there was not enough to drop. It is called between
// records; what Find found does not stand any more.
func (ks *Keyspace[K]) Evict() (full float64) {
	if ks.cfg.Backing == nil || ks.fits() {
		return 0
	}
	// Until another checkpoint is committed there is no point in looking again for what
	// changed. But what was only read since then can be dropped.
	if committed := ks.cfg.Committed(); ks.stuck != committed+1 || ks.Memory() > ks.stuckAt+ks.cfg.MemoryBytes/stuckGrowth {
		if ks.evict(uint32(committed)); ks.fits() {
			return 0
		}
		ks.stuck, ks.stuckAt = committed+1, ks.Memory()
	}
	return float64(ks.Memory()) / float64(ks.cfg.MemoryBytes)
}

// stuckGrowth is by which part of the budget memory grows before Evict looks again although
// no checkpoint was committed since it found too little to drop.
const stuckGrowth = 8

func (ks *Keyspace[K]) fits() bool { return ks.Memory() <= ks.cfg.MemoryBytes }

func (ks *Keyspace[K]) evict(committed uint32) {
	ks.curOK = false
	// Twice around: the first time may only find what was used.
	for looked := range 2 * ks.next {
		if looked%evictCheck == evictCheck-1 && ks.fits() {
			return
		}
		slot := ks.hand
		for _, c := range ks.trimmers {
			for c.trim(slot, committed, evictCheck) {
				if ks.fits() {
					return
				}
			}
		}
		if ks.hand++; ks.hand == ks.next {
			ks.hand = 0
		}
		k := ks.at(slot)
		if k.used {
			k.used = false
			continue
		}
		if int32(k.cut-committed) > 0 || slices.ContainsFunc(ks.columns, func(c column) bool { return c.busy(slot) }) {
			continue
		}
		if ks.find(hashOf(ks.seed, k.key), k.key) != slot {
			continue // it is free
		}
		for _, c := range ks.columns {
			c.drop(slot)
		}
		ks.evicted(k.cut)
		ks.remove(slot)
	}
}

func (ks *Keyspace[K]) evicted(cut uint32) {
	if guard.Broken(guard.AskUpToEviction) {
		return
	}
	// What is evicted is committed, so the last checkpoint that has these low bits is it.
	committed := ks.cfg.Committed()
	ks.out = max(ks.out, committed-int64(uint32(committed)-cut))
}

func (ks *Keyspace[K]) newest() int64 { return ks.out }

// evictCheck is after how many slots Evict looks whether it is enough.
const evictCheck = 64

func (ks *Keyspace[K]) keyGroup(slot uint32) uint16 { return ks.at(slot).kg }

func (ks *Keyspace[K]) appendKey(dst []byte, slot uint32) ([]byte, error) {
	at := len(dst)
	dst, err := ks.codec.Append(dst, ks.at(slot).key)
	if err == nil {
		ks.keySize.add(len(dst) - at)
	}
	return dst, err
}

func (ks *Keyspace[K]) touchKeys(slots []uint32) {
	touched := ks.touched
	for _, slot := range slots {
		touched ^= uint64(ks.at(slot).kg)
	}
	for _, slot := range slots {
		touched ^= uint64(ks.reach.touch(unsafe.Pointer(&ks.at(slot).key)))
	}
	ks.touched = touched
}

func (ks *Keyspace[K]) frozen(slot uint32) {
	if ks.cfg.Backing == nil {
		return
	}
	if k := ks.at(slot); k.cut != ks.cutID || ks.pinned[len(ks.pinned)-1].slots == 0 {
		k.cut = ks.cutID
		ks.pinned[len(ks.pinned)-1].slots++
	}
}

func (ks *Keyspace[K]) pin(bytes int) { ks.pinned[len(ks.pinned)-1].bytes += int64(bytes) }

func (ks *Keyspace[K]) emptied(slot uint32)       { ks.maybeEmpty = append(ks.maybeEmpty, slot) }
func (ks *Keyspace[K]) builder() *segment.Builder { return ks.into }
func (ks *Keyspace[K]) backing() Backing          { return ks.cfg.Backing }
func (ks *Keyspace[K]) scratch() *[]byte          { return &ks.buf }
func (ks *Keyspace[K]) checkpoint() int64         { return ks.cutAt }
func (ks *Keyspace[K]) committed() int64          { return ks.cfg.Committed() }
func (ks *Keyspace[K]) failed() error             { return ks.err }
func (ks *Keyspace[K]) watch() *watch             { return ks.seen }
func (ks *Keyspace[K]) keyAt(slot uint32) any     { return ks.at(slot).key }

func (ks *Keyspace[K]) time(d segment.Domain) int64    { return ks.times[d] }
func (ks *Keyspace[K]) passing()                       { ks.passed = true }
func (ks *Keyspace[K]) removes(d segment.Domain) int64 { return ks.removed[d] }

func (ks *Keyspace[K]) now(d segment.Domain, slot uint32) int64 {
	if ks.entryFloors == nil || d != segment.EventTime {
		return ks.times[d]
	}
	return max(ks.times[d], ks.ofGroup(ks.entryFloors, ks.at(slot).kg))
}

func (ks *Keyspace[K]) here(d segment.Domain) int64 {
	if ks.entryFloors == nil || d != segment.EventTime || ks.keyless {
		return ks.times[d]
	}
	return max(ks.times[d], ks.ofGroup(ks.entryFloors, ks.curKG))
}

func (ks *Keyspace[K]) floorOf(slot uint32) int64 {
	if ks.floors == nil {
		return unknownTime
	}
	return ks.floor(ks.at(slot).kg)
}

func (ks *Keyspace[K]) keyGroups() (lo, hi int) {
	return ks.cfg.FirstKeyGroup, ks.cfg.FirstKeyGroup + ks.cfg.KeyGroups
}

func (ks *Keyspace[K]) spared(state uint16, h segment.Header) bool {
	return len(ks.cfg.Spared) > 0 && ks.cfg.Spared[state].Has(h)
}

func (ks *Keyspace[K]) fail(err error) {
	if ks.err == nil {
		ks.err = err
	}
}
