package state

import (
	"math/bits"

	"github.com/weirstream/weir/state/segment"
)

// Descriptor says what a handle stores. It is recorded in every manifest.
type Descriptor struct {
	Operator     string
	Name         string
	Kind         string // KindValue and so on
	ValueCodec   string
	ValueVersion int
	// SubCodec is the codec of a map's keys, or empty.
	SubCodec string
	// Clock is that of the time to live: none, processing or event. It is empty for timers.
	Clock string
}

// Kinds of states.
const (
	KindValue       = "value"
	KindReducing    = "reducing"    // stored as a value
	KindAggregating = "aggregating" // stored as a value
	KindMap         = "map"
	KindList        = "list"
	KindBroadcast   = "broadcast"
	KindTimers      = "timers"
)

// column is the typed table of one handle: one cell for each slot of the keyspace.
//
// A change marks the cell as dirty. cut makes all that is dirty frozen, at a cost that
// does not depend on how much that is; encode then writes the frozen cells into the
// builder, some at a time. A handle that is about to change a frozen cell writes it
// first. Between a cut and the next one, every frozen cell is encoded.
//
// With a [Backing] a column holds a part of the state only. The cell of a slot that
// was made for a key is unknown until it was read or set, and a cell of which nothing
// is dirty, frozen or on its way to the backing may be dropped.
type column interface {
	describe() Descriptor
	// attach gives the column its place in a keyspace, and its number there.
	attach(ks slots, id uint16)
	// grow makes room for slots below n.
	grow(n uint32)
	// unknown says that the backing may hold more about the slot than the empty cell.
	unknown(slot uint32)
	// used tells whether the slot's cell holds a value or a change not yet encoded.
	used(slot uint32) bool
	// busy tells whether the slot's cell holds a change not yet encoded.
	busy(slot uint32) bool
	// drop forgets what the slot's cell, which is not busy, holds.
	drop(slot uint32)
	// touch reads something of the slot's cell, to have it in the cache soon.
	touch(slot uint32) uint8
	// split divides the user key of an entry into the encoded key and the rest.
	split(userKey []byte) (key, rest []byte, ok bool)
	// restore applies an entry of a checkpoint to a cell.
	restore(slot uint32, rest, value []byte) error
	// pending tells whether anything is dirty.
	pending() bool
	// cut makes everything that is dirty frozen.
	cut()
	// encode writes up to n frozen cells into the keyspace's builder. It returns how
	// many it looked at: fewer than n if none is left.
	encode(n int) (int, error)
	// sweep gives the column a chance to remove a few expired entries.
	sweep()
	// cost returns the bytes of memory that a cell needs on average.
	cost() int
	// extra returns the bytes of memory that the column needs beside that.
	extra() int64
}

// trimmer is a column whose cells hold so much that they are dropped in parts.
type trimmer interface {
	column
	// trim looks at up to n of the entries of a slot, and drops those that the backing
	// has as of the committed checkpoint and that were not used since it looked at them
	// before. It tells whether there are more to look at before it begins again.
	trim(slot, committed uint32, n int) (more bool)
}

// slots is the part of a Keyspace that its columns see.
type slots interface {
	// slot returns the current key's slot; ok is false if the key has none, and thus
	// no state, and create is false.
	slot(create bool) (slot uint32, ok bool)
	// capacity is the number of slots in use or free.
	capacity() uint32
	keyGroup(slot uint32) uint16
	appendKey(dst []byte, slot uint32) ([]byte, error)
	// touchKeys reads something of the keys of slots, to have them in the cache soon.
	touchKeys(slots []uint32)
	// use makes the key of a slot the current one.
	use(slot uint32)
	// slotOf returns the slot of an encoded key, which gets one if it has none.
	slotOf(key []byte, keyGroup uint16) (uint32, error)
	// keyGroups are those that the keyspace owns, [lo, hi).
	keyGroups() (lo, hi int)
	// checkpoint is the one for which there was a cut last, committed the newest one
	// that the backing has.
	checkpoint() int64
	committed() int64
	// spared tells whether an entry of a state does not expire, whatever its header says.
	spared(state uint16, h segment.Header) bool
	// newest is the newest checkpoint for which something was written that is not in
	// memory.
	newest() int64
	// evicted is told, while Evict goes on, of each entry that is dropped: the low bits of
	// the last checkpoint for which it was written.
	evicted(cut uint32)
	// frozen is told of each slot of which something went into the builder.
	frozen(slot uint32)
	// pin is told how many bytes of memory hold something, beside the cells of a slot,
	// that went into the builder.
	pin(bytes int)
	// emptied is told of each slot whose cell holds nothing any more, so that a slot
	// that no column uses is freed.
	emptied(slot uint32)
	builder() *segment.Builder
	// backing is nil if all state is in memory.
	backing() Backing
	// now is the time of a clock for the key of a slot, in milliseconds since 1970, here
	// that for the current key, if there is one. What has expired at removes may be removed.
	now(d segment.Domain, slot uint32) int64
	here(d segment.Domain) int64
	removes(d segment.Domain) int64
	// time is that of a clock apart from floors; passing says that a timer was set for it or
	// before.
	time(d segment.Domain) int64
	passing()
	// floor is the event time that the keys of a key-group have come to at least, floorOf
	// that of the key of a slot.
	floor(keyGroup uint16) int64
	floorOf(slot uint32) int64
	// fail reports an error that no handler can do anything about; failed is the first.
	fail(err error)
	failed() error
	// watch is nil unless values that are set and read are watched.
	watch() *watch
	// keyAt is the key of a slot.
	keyAt(slot uint32) any
	// scratch is memory for one encoded key or value. Whoever uses it puts it back.
	scratch() *[]byte
}

// chunkBits makes a table grow by pieces of 1024 cells, so that growing never
// copies what is there.
const (
	chunkBits = 10
	chunkSize = 1 << chunkBits
	chunkMask = chunkSize - 1
)

// changes knows the slots that changed, in two generations: those that changed since
// the last cut, and those that were cut and are not encoded yet. Slots come out chunk
// by chunk and in order within a chunk, so that encoding walks through the tables of
// cells and keys instead of jumping about in them.
type changes struct {
	chunks []*marks
	marked [2][]uint32 // chunks with marks, in the order in which they got the first
	live   uint8       // the generation to which changes go; the other one is frozen

	chunk, word int // where the walk through the frozen ones stands
}

type marks struct {
	bits [2][chunkSize / 64]uint64
	any  [2]bool
}

func (c *changes) grow(n uint32) {
	for uint32(len(c.chunks))<<chunkBits < n {
		c.chunks = append(c.chunks, new(marks))
	}
}

// mark notes that a slot changed. Marking it again does nothing.
func (c *changes) mark(slot uint32) {
	m := c.chunks[slot>>chunkBits]
	if !m.any[c.live] {
		m.any[c.live] = true
		c.marked[c.live] = append(c.marked[c.live], slot>>chunkBits)
	}
	m.bits[c.live][slot&chunkMask/64] |= 1 << (slot % 64)
}

// pending tells whether anything is marked since the last cut.
func (c *changes) pending() bool { return len(c.marked[c.live]) > 0 }

// cut freezes what is marked. Everything that was frozen before has been walked.
func (c *changes) cut() { c.live ^= 1 }

// next returns the next frozen slot.
func (c *changes) next() (slot uint32, ok bool) {
	g := c.live ^ 1
	list := c.marked[g]
	for c.chunk < len(list) {
		n := list[c.chunk]
		m := c.chunks[n]
		for c.word < len(m.bits[g]) {
			if w := m.bits[g][c.word]; w != 0 {
				m.bits[g][c.word] = w & (w - 1)
				return n<<chunkBits | uint32(c.word*64+bits.TrailingZeros64(w)), true
			}
			c.word++
		}
		m.any[g] = false
		c.chunk, c.word = c.chunk+1, 0
	}
	c.chunk, c.marked[g] = 0, list[:0]
	return 0, false
}

// Flags of a cell. A cell whose change was made in generation g has the flag
// cellDirty<<g until it is encoded.
const (
	cellSet     uint8 = 1 << iota // the cell holds the key's value
	cellStored                    // a segment holds a value for the key, so deleting needs a tombstone
	cellUnknown                   // the backing has to be asked
	cellDirty
	_

	cellBusy = cellDirty | cellDirty<<1
)

// dirty is the flag of a change made now.
func (c *changes) dirty() uint8 { return cellDirty << c.live }

// frozen is the flag of a change that was cut and is not encoded.
func (c *changes) frozen() uint8 { return cellDirty << (c.live ^ 1) }
