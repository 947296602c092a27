package state

import (
	"errors"
	"fmt"
	"iter"

	"github.com/weirstream/weir/codec"
)

// OfBroadcast is a handle to one map that belongs to no key: every subtask has it in
// full, and in memory. It is written from the records of a broadcast stream, and read from
// anywhere in the operator. Every subtask sees all of them: those of one input partition in
// the same order everywhere, those of different partitions maybe not. So what they write
// must not depend on that order: give what belongs together one key.
type OfBroadcast[MK, MV any] struct {
	entryTable[MV]
	subkeys[MK]
	writable bool
}

// sharedKeyGroup is where the entries of broadcast states are stored.
const sharedKeyGroup = 0

// sharedColumn is a column that belongs to no key.
type sharedColumn interface {
	column
	// restoreShared applies an entry of a checkpoint.
	restoreShared(userKey, value []byte) error
	// loadShared reads what a backing holds.
	loadShared(b Backing) error
	// allow says whether handlers may write.
	allow(write bool)
}

// Broadcast declares a state that holds one map for all keys, in the order of the map
// keys as with [Map]. It is made for rules and other small tables.
//
// A [TTL] is that of each entry. It can't be [OnRead]: what one subtask reads, the
// others don't know.
func Broadcast[MK, MV any](s Setup, name string, keyCodec codec.Codec[MK], valueCodec codec.Codec[MV], opts ...Option) *OfBroadcast[MK, MV] {
	scope := s.StateScope()
	h := &OfBroadcast[MK, MV]{entryTable: newEntryTable(scope, KindBroadcast, name, valueCodec, opts), subkeys: newSubkeys(scope, name, keyCodec)}
	h.shared = true
	h.entryTable.grow(1)
	if h.opts.onRead {
		scope.errs = append(scope.errs, h.errorf("%w", errors.New("the time to live of a broadcast state can't count from reads")))
	}
	scope.add(h)
	return h
}

func (h *OfBroadcast[MK, MV]) describe() Descriptor {
	d := h.entryTable.describe()
	d.SubCodec = h.subkeys.name()
	return d
}

// Get returns what the map holds for k, or the zero value if that is nothing.
func (h *OfBroadcast[MK, MV]) Get(k MK) MV {
	v, _ := h.Lookup(k)
	return v
}

// Lookup returns what the map holds for k, and whether that is anything. What it points to
// must not be changed, also not to be Put afterwards, because other subtasks may have the
// same value: put a changed copy. So it is with Get and All.
func (h *OfBroadcast[MK, MV]) Lookup(k MK) (v MV, ok bool) {
	sub, ok := h.encodeKey(h.keys, k)
	if !ok {
		return v, false
	}
	e := h.lookup(sub)
	if e == nil {
		return v, false
	}
	if h.seen != nil {
		h.look(e)
	}
	return e.v, true
}

// Has tells whether the map holds something for k.
func (h *OfBroadcast[MK, MV]) Has(k MK) bool {
	_, ok := h.Lookup(k)
	return ok
}

// Len counts the entries. With a [TTL] it takes as long as going through them.
func (h *OfBroadcast[MK, MV]) Len() int { return h.count() }

// All yields the entries in the order of the map keys.
func (h *OfBroadcast[MK, MV]) All() iter.Seq2[MK, MV] {
	return func(yield func(MK, MV) bool) { rangeOver(&h.entryTable, &h.subkeys, span{}, yield) }
}

// Put makes v what the map holds for k. Only the handler of the broadcast stream may call
// it, and it must write the same on every subtask: what it writes may depend on the
// record and on the map, and on nothing else. Neither k nor v must be changed afterwards
// if it holds pointers.
func (h *OfBroadcast[MK, MV]) Put(k MK, v MV) {
	if sub, ok := h.encodeKey(h.keys, k); ok && h.mayWrite() {
		h.put(sub, v, false)
	}
}

// Delete removes what the map holds for k, to the rules of Put.
func (h *OfBroadcast[MK, MV]) Delete(k MK) {
	if sub, ok := h.encodeKey(h.keys, k); ok && h.mayWrite() {
		h.del(sub)
	}
}

// Clear empties the map, to the rules of Put.
func (h *OfBroadcast[MK, MV]) Clear() {
	if h.mayWrite() {
		h.clear()
	}
}

func (h *OfBroadcast[MK, MV]) mayWrite() bool {
	if !h.writable {
		h.keys.fail(h.errorf("%w", errors.New("a broadcast state is written only by the handler of the broadcast stream: written by one subtask, the others would not know")))
	}
	return h.writable
}

func (h *OfBroadcast[MK, MV]) allow(write bool) { h.writable = write }

func (h *OfBroadcast[MK, MV]) attach(ks slots, id uint16) {
	h.entryTable.attach(ks, id)
	lo, _ := ks.keyGroups()
	h.owner = lo == sharedKeyGroup
}

func (h *OfBroadcast[MK, MV]) restoreShared(userKey, value []byte) error {
	return h.restore(0, userKey, value)
}

func (h *OfBroadcast[MK, MV]) loadShared(b Backing) (err error) {
	lo, err := h.appendPrefix(nil, 0)
	if err != nil {
		return err
	}
	hi, err := h.appendPrefix(nil, 0)
	if err != nil {
		return err
	}
	for i := len(hi) - 1; i >= 0; i-- { // the next state
		if hi[i]++; hi[i] != 0 {
			break
		}
	}
	unreadable := func(err error) error {
		if err == nil {
			return nil
		}
		return &ReadError{Operator: h.operator, State: h.entryTable.name, Err: err}
	}
	it, err := b.Iter(lo, hi)
	if err != nil {
		return unreadable(err)
	}
	defer func() {
		if closed := it.Close(); err == nil {
			err = unreadable(closed)
		}
	}()
	for ok := it.First(); ok; ok = it.Next() {
		value := it.Value()
		if it.Err() != nil {
			break
		}
		if err := h.restoreShared(it.Key()[len(lo):], value); err != nil {
			return fmt.Errorf("%x: %w", it.Key(), err)
		}
	}
	return unreadable(it.Err())
}

// No slot is the table's: it has one group, which is always there.

func (h *OfBroadcast[MK, MV]) grow(uint32)                         {}
func (h *OfBroadcast[MK, MV]) unknown(uint32)                      {}
func (h *OfBroadcast[MK, MV]) used(uint32) bool                    { return false }
func (h *OfBroadcast[MK, MV]) busy(uint32) bool                    { return false }
func (h *OfBroadcast[MK, MV]) drop(uint32)                         {}
func (h *OfBroadcast[MK, MV]) touch(uint32) uint8                  { return 0 }
func (h *OfBroadcast[MK, MV]) cost() int                           { return 0 }
func (h *OfBroadcast[MK, MV]) split([]byte) (_, _ []byte, ok bool) { return nil, nil, false }
