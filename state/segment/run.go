package segment

import (
	"encoding/binary"
	"iter"
	"sync"
	"sync/atomic"
)

// Run is what one subtask froze: sorted, one entry a key, immutable. It may be read
// from any goroutine until it is released; the first to read it sorts it. The zero
// Run is empty.
type Run struct{ d *runData }

type runData struct {
	arena    []byte
	entries  []entry
	common   []common
	pool     *pool
	sorted   sync.Once
	released atomic.Bool
}

// Len returns the number of entries.
func (r Run) Len() int {
	if r.d == nil {
		return 0
	}
	r.d.sorted.Do(r.d.sort)
	return len(r.d.entries)
}

// Bytes returns the bytes of memory that the entries hold.
func (r Run) Bytes() int {
	if r.d == nil {
		return 0
	}
	return len(r.d.arena)
}

// All yields the entries in order, tombstones included. They point into the run and
// are valid until it is released.
func (r Run) All() iter.Seq[Entry] {
	return func(yield func(Entry) bool) {
		for i := range r.Len() {
			e := &r.d.entries[i]
			if !yield(entryOf(r.key(i), r.value(i), e.vlen == tombstone)) {
				return
			}
		}
	}
}

// Release gives the memory back to the builder that made the run. Nothing that came
// from the run may be used afterwards. Releasing twice does nothing.
func (r Run) Release() {
	if r.d == nil || r.d.released.Swap(true) {
		return
	}
	arena, entries, common := r.d.arena, r.d.entries, r.d.common
	r.d.arena, r.d.entries, r.d.common = nil, nil, nil
	r.d.pool.put(arena, entries, common)
}

func (r Run) key(i int) []byte { return keyOf(r.d.arena, &r.d.entries[i]) }

// value returns nil for a tombstone.
func (r Run) value(i int) []byte {
	e := &r.d.entries[i]
	if e.vlen == tombstone {
		return nil
	}
	v := e.off + int(e.klen)
	return r.d.arena[v : v+int(e.vlen)]
}

// Entry is one state change.
type Entry struct {
	KeyGroup uint16
	State    uint16
	Key      []byte // user key
	Value    []byte // nil if Deleted
	Deleted  bool   // a tombstone: the key has no value from here on
}

func entryOf(key, value []byte, deleted bool) Entry {
	return Entry{
		KeyGroup: binary.BigEndian.Uint16(key), State: binary.BigEndian.Uint16(key[2:]),
		Key: key[headerLen:], Value: value, Deleted: deleted,
	}
}

// AppendKey appends the key under which an entry is stored in a segment, and in a
// Pebble store that ingested it.
func AppendKey(dst []byte, kg, state uint16, key []byte) []byte {
	dst = append(dst, byte(kg>>8), byte(kg), byte(state>>8), byte(state))
	return append(dst, key...)
}
