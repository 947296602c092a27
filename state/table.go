package state

import (
	"fmt"
	"reflect"
	"unsafe"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/state/segment"
)

// entryTable is the column behind handles that hold many entries for each key: the cell of
// a slot is a group of entries, each under a subkey of its own. One changed entry is
// one entry of the segment.
//
// Each entry has the flags of a cell, and what [column] says of cells goes for entries.
// Without a backing a group holds all entries of its key that are set, and, until their
// tombstones are written, as masks, those that were removed. With a backing it holds
// entries that changed or were used lately, and as masks entries that are not set, which
// hide what the backing may hold under their subkeys.
type entryTable[V any] struct {
	operator, name, kind string

	codec codec.Codec[V]
	opts  options
	id    uint16
	keys  slots   // nil while declarations are only collected
	back  Backing // nil if the table holds everything

	// A shared table has one group, which belongs to no key. Every subtask has it in
	// full; the one that owns it freezes it.
	shared, owner bool

	chunks [][]*group[V] // nil: nothing is in memory
	// changed are the entries that changed, by generation as in [changes]. An entry that
	// was encoded when it was touched is still in the list, without the flag.
	changed [2][]*entry[V]
	gen     uint8 // to which changes go; the other one is frozen
	walked  int   // how many of the frozen ones were looked at

	swept uint32 // slots below were looked at for expired entries

	entries, groups, keyBytes int // in memory
	flat                      bool
	mean                      mean   // bytes of an encoded value
	sets                      uint   // to measure some values before they are encoded
	seen                      *watch // nil: nobody asks
}

// group is what is in memory of the entries of one key.
type group[V any] struct {
	live, masks sorted[V]
	busy        int // entries with a change not yet encoded

	// All that the backing has below this subkey is in memory. So a queue of which the
	// first entries are removed again and again is not searched from its begin.
	known string

	hand  [2]string // where trim or sweep goes on, in live and in masks
	masky bool      // trim is at the masks

	// Of a list: the first index, and the one behind the last. With a backing only.
	head, tail       uint64
	hasHead, hasTail bool
	passed           bool // what has expired before head was passed over, and may be there
}

// entry is the value of one subkey.
type entry[V any] struct {
	key       string
	v         V
	expires   int64 // milliseconds since 1970, if entries expire
	slot, cut uint32
	flags     uint8
}

// Flags of an entry beside those of a cell.
const (
	entryPinned uint8 = 1 << (iota + 5) // encoded for checkpoint cut, of which the backing may not know
	entryUsed                           // since the hand of trim came by
)

// shortEntry is an entry with room for its key.
type shortEntry[V any] struct {
	entry[V]
	room [shortKey]byte
}

const shortKey = 16

func newEntryTable[V any](scope *Scope, kind, name string, c codec.Codec[V], opts []Option) entryTable[V] {
	h := entryTable[V]{operator: scope.operator, name: name, kind: kind, codec: c, flat: flat(reflect.TypeFor[V]())}
	err := codec.Check(c)
	if err == nil {
		h.opts, err = scope.optionsOf(name, opts)
	}
	if err != nil {
		scope.errs = append(scope.errs, h.errorf("%w", err))
	}
	return h
}

func (h *entryTable[V]) errorf(format string, args ...any) error {
	return fmt.Errorf("operator %q: state %q: %w", h.operator, h.name, fmt.Errorf(format, args...))
}

func (h *entryTable[V]) unreadable(err error) {
	h.keys.fail(&ReadError{Operator: h.operator, State: h.name, Err: err})
}

// view is b as a string that is good until b changes.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// bytesOf is the bytes of a string, which must not be written.
func bytesOf(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// slot returns the slot of the current key.
func (h *entryTable[V]) slot(create bool) (uint32, bool) {
	if h.shared {
		return 0, true
	}
	return h.keys.slot(create)
}

func (h *entryTable[V]) at(slot uint32) *group[V] { return h.chunks[slot>>chunkBits][slot&chunkMask] }

// ensure returns the group of a slot, which may be new.
func (h *entryTable[V]) ensure(slot uint32) *group[V] {
	g := &h.chunks[slot>>chunkBits][slot&chunkMask]
	if *g == nil {
		*g = new(group[V])
		h.groups++
	}
	return *g
}

// newEntry makes an entry, which is in no group yet. The key may be a view.
func (h *entryTable[V]) newEntry(slot uint32, key string, flags uint8) *entry[V] {
	h.entries++
	if len(key) > shortKey {
		h.keyBytes += len(key)
		return &entry[V]{key: string(append([]byte(nil), key...)), slot: slot, flags: flags}
	}
	s := &shortEntry[V]{}
	s.slot, s.flags = slot, flags
	s.key = view(s.room[:copy(s.room[:], key)])
	return &s.entry
}

// forget is called when an entry is not in memory any more.
func (h *entryTable[V]) forget(e *entry[V]) {
	h.entries--
	if len(e.key) > shortKey {
		h.keyBytes -= len(e.key)
	}
}

// entryBytes is the memory of an entry, without a long key.
func (h *entryTable[V]) entryBytes() int {
	n := int(unsafe.Sizeof(shortEntry[V]{})) + 3*8/2 // leaves are three quarters full, about
	if !h.flat {
		n += h.mean.get()
	}
	return n
}

func (h *entryTable[V]) dirty() uint8  { return cellDirty << h.gen }
func (h *entryTable[V]) frozen() uint8 { return cellDirty << (h.gen ^ 1) }

// lookup returns the entry of the current key under sub, or nil if none is set.
func (h *entryTable[V]) lookup(sub string) *entry[V] {
	slot, ok := h.slot(false)
	if !ok {
		return nil
	}
	var e *entry[V]
	g := h.at(slot)
	if g != nil {
		if e = g.live.find(sub); e == nil && g.masks.n > 0 {
			if m := g.masks.find(sub); m != nil {
				m.flags |= entryUsed
				return nil
			}
		}
	}
	if e == nil && h.back != nil {
		e = h.load(slot, sub)
	}
	if e == nil || !h.read(e) {
		return nil
	}
	return e
}

// read tells whether an entry that is set has not expired, and counts as reading it.
func (h *entryTable[V]) read(e *entry[V]) bool {
	e.flags |= entryUsed
	if h.opts.domain == segment.Forever {
		return true
	}
	now := h.now(h.opts.domain, e.slot)
	if e.expires <= now {
		return false
	}
	if h.opts.moves(e.expires, now) {
		h.change(e)
		h.renew(e)
	}
	return true
}

func (h *entryTable[V]) renew(e *entry[V]) {
	if h.opts.domain != segment.Forever {
		e.expires = h.opts.stamp(h.now(h.opts.domain, e.slot))
	}
}

// load asks the backing for an entry that is not in memory. What it says is in memory
// afterwards; nil is returned if nothing is set.
func (h *entryTable[V]) load(slot uint32, sub string) *entry[V] {
	buf := h.keys.scratch()
	k, err := h.appendPrefix((*buf)[:0], slot)
	if err != nil {
		h.keys.fail(err)
		return nil
	}
	k = append(k, sub...)
	b, ok, err := h.back.Get(k, k, h.keys.newest())
	if *buf = k[:0]; cap(b) > cap(k) {
		*buf = b[:0]
	}
	if err != nil {
		h.unreadable(err)
		return nil
	}
	var e *entry[V]
	var outdated bool
	if ok {
		if e, outdated, err = h.decode(slot, sub, b[len(k):]); err != nil {
			h.keys.fail(err)
			return nil
		}
	}
	g := h.ensure(slot)
	if e == nil {
		flags := entryUsed
		if ok { // it has expired; to remove it needs a tombstone, as time may go back
			flags |= cellStored
		}
		p, _ := g.masks.seek(sub)
		g.masks.insert(p, h.newEntry(slot, sub, flags))
		return nil
	}
	p, _ := g.live.seek(sub)
	g.live.insert(p, e)
	if outdated {
		h.change(e)
		h.renew(e)
	}
	return e
}

// decode makes an entry of what a segment holds, or none if it has expired. If it is
// outdated it is to be written anew.
func (h *entryTable[V]) decode(slot uint32, sub string, b []byte) (e *entry[V], outdated bool, err error) {
	header, v, ok, err := h.decodeValue(slot, b)
	if !ok || err != nil {
		return nil, false, err
	}
	e = h.newEntry(slot, sub, cellSet|cellStored|entryUsed)
	e.v = v
	e.expires = h.expiry(header)
	return e, h.opts.outdated(header), nil
}

// decodeValue decodes what a segment holds. ok is false if it has expired.
func (h *entryTable[V]) decodeValue(slot uint32, b []byte) (header segment.Header, v V, ok bool, err error) {
	header, b, err = segment.CutHeader(b)
	if err != nil {
		return header, v, false, h.errorf("%w", err)
	}
	if h.expired(header, slot) {
		return header, v, false, nil
	}
	if v, err = codec.DecodeVersion(h.codec, header.Version, b); err != nil {
		return header, v, false, h.errorf("%w", err)
	}
	h.mean.add(len(b))
	return header, codec.Clone(h.codec, v), true, nil
}

func (h *entryTable[V]) expired(header segment.Header, slot uint32) bool {
	return header.Domain != segment.Forever && header.Expires <= h.now(header.Domain, slot) && !h.keys.spared(h.id, header)
}

// now is the time of a clock for the entries of a slot: of a shared table that for who reads
// them.
func (h *entryTable[V]) now(d segment.Domain, slot uint32) int64 {
	if h.shared {
		return h.keys.here(d)
	}
	return h.keys.now(d, slot)
}

// expiry is the expiry of an entry that was stored with header.
func (h *entryTable[V]) expiry(header segment.Header) int64 {
	return h.opts.expiry(header, h.keys.spared(h.id, header))
}

// put sets the current key's entry under sub. fresh says that no segment holds one.
func (h *entryTable[V]) put(sub string, v V, fresh bool) {
	slot, _ := h.slot(true)
	g := h.ensure(slot)
	p, ok := g.live.seek(sub)
	var e *entry[V]
	if ok {
		e = g.live.leaves[p.leaf][p.at]
	} else {
		// Not a second entry of the same key: what is written of one for a checkpoint would
		// come in any order with what is written of the other.
		if g.masks.n > 0 {
			if mp, ok := g.masks.seek(sub); ok {
				e = g.masks.leaves[mp.leaf][mp.at]
				g.masks.remove(mp)
			}
		}
		if e == nil {
			e = h.newEntry(slot, sub, 0)
			if h.back != nil && !fresh {
				e.flags = cellStored // perhaps
			}
		}
		g.live.insert(p, e)
	}
	h.change(e)
	e.v = codec.Clone(h.codec, v)
	e.flags |= cellSet | entryUsed
	h.renew(e)
	if !h.flat && h.back != nil {
		if h.sets++; h.sets%weighEvery == 1 {
			weigh(h.keys, h.codec, v, &h.mean)
		}
	}
	if h.seen != nil {
		h.look(e)
	}
}

// del removes the current key's entry under sub.
func (h *entryTable[V]) del(sub string) {
	slot, ok := h.slot(false)
	if !ok {
		return
	}
	g := h.at(slot)
	if g != nil {
		if p, ok := g.live.seek(sub); ok {
			e := g.live.leaves[p.leaf][p.at]
			g.live.remove(p)
			h.unset(g, e)
			return
		}
	}
	if h.back == nil {
		return
	}
	g = h.ensure(slot)
	p, ok := g.masks.seek(sub)
	if ok {
		h.bury(g.masks.leaves[p.leaf][p.at])
		return
	}
	e := h.newEntry(slot, sub, cellStored) // perhaps
	g.masks.insert(p, e)
	h.change(e)
}

// bury sees to it that a mask gets a tombstone if the backing holds something under it.
func (h *entryTable[V]) bury(e *entry[V]) {
	if e.flags&(cellStored|cellBusy) == cellStored {
		h.change(e)
	}
}

// unset takes the value from an entry that is in live no more.
func (h *entryTable[V]) unset(g *group[V], e *entry[V]) {
	h.change(e)
	var zero V
	e.v = zero
	e.flags &^= cellSet
	if h.back == nil && e.flags&cellBusy == 0 {
		h.forget(e) // nobody will encode it
		return
	}
	p, _ := g.masks.seek(e.key)
	g.masks.insert(p, e)
}

// clear removes all entries of the current key. What only the backing has gets a
// tombstone for each.
func (h *entryTable[V]) clear() {
	slot, ok := h.slot(false)
	if !ok {
		return
	}
	if h.back != nil {
		h.scan(slot, span{all: true, keys: true}, func(key string, e *entry[V], _ []byte) bool {
			if e == nil {
				e = h.newEntry(slot, key, cellStored)
				g := h.ensure(slot)
				p, _ := g.masks.seek(key)
				g.masks.insert(p, e)
				h.change(e)
			}
			return true
		})
	}
	g := h.at(slot)
	if g == nil {
		return
	}
	for e := range g.masks.all {
		h.bury(e)
	}
	live := g.live
	g.live.clear()
	for e := range live.all {
		h.unset(g, e)
	}
}

// keep encodes an entry now if a checkpoint needs it as it is.
func (h *entryTable[V]) keep(e *entry[V]) {
	if e.flags&h.frozen() != 0 && !guard.Broken(guard.FrozenValues) {
		if err := h.encodeEntry(e); err != nil {
			h.keys.fail(err)
		}
	}
}

// change is called before an entry changes.
func (h *entryTable[V]) change(e *entry[V]) {
	if h.seen != nil {
		h.seen.forget(e)
	}
	if h.shared && !h.owner {
		return
	}
	h.keep(e)
	if e.flags&h.dirty() != 0 {
		return
	}
	if e.flags&cellBusy == 0 {
		h.at(e.slot).busy++
	}
	e.flags |= h.dirty()
	h.changed[h.gen] = append(h.changed[h.gen], e)
}

// appendPrefix appends what the keys of a slot's entries in segments begin with.
func (h *entryTable[V]) appendPrefix(dst []byte, slot uint32) ([]byte, error) {
	if h.shared {
		return segment.AppendKey(dst, sharedKeyGroup, h.id, nil), nil
	}
	return h.appendKey(segment.AppendKey(dst, h.keys.keyGroup(slot), h.id, nil), slot)
}

// appendKey appends what the user keys of a slot's entries begin with. The encoded key
// goes behind it first: there is room, and it is escaped from there.
func (h *entryTable[V]) appendKey(dst []byte, slot uint32) ([]byte, error) {
	if h.shared {
		return dst, nil
	}
	at := len(dst)
	dst, err := h.keys.appendKey(dst, slot)
	if err != nil {
		return dst, h.errorf("key: %w", err)
	}
	end := len(dst)
	dst = segment.AppendEscaped(dst, dst[at:end])
	return dst[:at+copy(dst[at:], dst[end:])], nil
}

// encodeEntry writes a frozen entry.
func (h *entryTable[V]) encodeEntry(e *entry[V]) error {
	b := h.keys.builder()
	keyGroup := uint16(sharedKeyGroup)
	if !h.shared {
		keyGroup = h.keys.keyGroup(e.slot)
	}
	written := true
	switch {
	case e.flags&cellSet != 0:
		dst, err := h.appendKey(b.BeginPut(keyGroup, h.id), e.slot)
		if err != nil {
			return err
		}
		dst = segment.AppendHeader(b.KeyDone(append(dst, e.key...)), h.opts.header(h.codec.Version(), e.expires))
		at := len(dst)
		if dst, err = h.codec.Append(dst, e.v); err != nil {
			return h.errorf("value: %w", err)
		}
		h.mean.add(len(dst) - at)
		b.ValueDone(dst)
		e.flags |= cellStored
	case e.flags&cellStored != 0:
		dst, err := h.appendKey(b.BeginDelete(keyGroup, h.id), e.slot)
		if err != nil {
			return err
		}
		b.DeleteDone(append(dst, e.key...))
		e.flags &^= cellStored
	default: // set and removed between two cuts
		written = false
	}
	e.flags &^= h.frozen()
	if h.back != nil && written {
		e.flags |= entryPinned
		e.cut = uint32(h.keys.checkpoint())
		h.keys.frozen(e.slot)
		h.keys.pin(h.entryBytes() + len(e.key))
	}
	if e.flags&cellBusy == 0 {
		h.at(e.slot).busy--
	}
	return nil
}

// removed is called when all is written of an entry, without a backing, that is not set.
func (h *entryTable[V]) removed(e *entry[V]) {
	g := h.at(e.slot)
	p, _ := g.masks.seek(e.key)
	g.masks.remove(p)
	h.forget(e)
	h.tidy(e.slot, g)
}

// tidy frees a group that holds nothing, where it is no loss.
func (h *entryTable[V]) tidy(slot uint32, g *group[V]) {
	if g.live.n > 0 || g.busy > 0 || h.shared {
		return
	}
	h.chunks[slot>>chunkBits][slot&chunkMask] = nil
	h.groups--
	h.keys.emptied(slot)
}

func (h *entryTable[V]) attach(ks slots, id uint16) {
	h.keys, h.id = ks, id
	if !h.shared {
		h.back = ks.backing()
	}
	if !h.flat {
		h.seen = ks.watch()
	}
}

func (h *entryTable[V]) grow(n uint32) {
	for uint32(len(h.chunks))<<chunkBits < n {
		h.chunks = append(h.chunks, make([]*group[V], chunkSize))
	}
}

func (h *entryTable[V]) unknown(slot uint32) { h.drop(slot) }

func (h *entryTable[V]) used(slot uint32) bool {
	g := h.at(slot)
	return g != nil && (g.live.n > 0 || g.busy > 0)
}

func (h *entryTable[V]) busy(slot uint32) bool {
	g := h.at(slot)
	return g != nil && g.busy > 0
}

func (h *entryTable[V]) drop(slot uint32) {
	g := h.at(slot)
	if g == nil {
		return
	}
	for e := range g.live.all {
		h.forget(e)
	}
	for e := range g.masks.all {
		h.forget(e)
	}
	h.chunks[slot>>chunkBits][slot&chunkMask] = nil
	h.groups--
}

func (h *entryTable[V]) touch(slot uint32) uint8 {
	if h.at(slot) == nil {
		return 0
	}
	return 1
}

func (h *entryTable[V]) split(userKey []byte) (key, rest []byte, ok bool) {
	return segment.CutEscaped(userKey)
}

func (h *entryTable[V]) restore(slot uint32, rest, value []byte) error {
	e, outdated, err := h.decode(slot, view(rest), value)
	if err != nil {
		return err
	}
	if e == nil {
		if !h.shared {
			h.keys.emptied(slot)
		}
		return nil
	}
	g := h.ensure(slot)
	p, ok := g.live.seek(e.key)
	if ok {
		h.forget(g.live.leaves[p.leaf][p.at])
		g.live.leaves[p.leaf][p.at] = e
	} else {
		g.live.insert(p, e)
	}
	if outdated {
		h.change(e)
		h.renew(e)
	}
	return nil
}

func (h *entryTable[V]) pending() bool { return len(h.changed[h.gen]) > 0 }

func (h *entryTable[V]) cut() { h.gen ^= 1 }

func (h *entryTable[V]) encode(n int) (int, error) {
	list := h.changed[h.gen^1]
	done := 0
	for ; h.walked < len(list) && done < n; done++ {
		e := list[h.walked]
		list[h.walked] = nil
		h.walked++
		if e.flags&h.frozen() != 0 { // else it was encoded when it was touched
			if err := h.encodeEntry(e); err != nil {
				return done, err
			}
			if h.back == nil && e.flags&(cellBusy|cellSet) == 0 {
				h.removed(e)
			}
		}
	}
	if h.walked == len(list) {
		if h.walked = 0; cap(list) > 4*len(list)+chunkSize {
			list = nil // a burst is over
		}
		h.changed[h.gen^1] = list[:0]
	}
	h.sweepSome(sweepPerChange * done)
	return done, nil
}

// trim implements [trimmer].
func (h *entryTable[V]) trim(slot, committed uint32, n int) (more bool) {
	g := h.at(slot)
	if g == nil || h.shared {
		return false
	}
	s, hand := &g.live, &g.hand[0]
	if g.masky {
		s, hand = &g.masks, &g.hand[1]
	}
	more = walk(s, hand, n, func(e *entry[V]) (remove bool) {
		if e.flags&entryUsed != 0 {
			e.flags &^= entryUsed
			return false
		}
		if e.flags&cellBusy != 0 || e.flags&entryPinned != 0 && int32(e.cut-committed) > 0 {
			return false
		}
		if e.flags&(cellSet|cellStored) != 0 && e.key < g.known {
			g.known = e.key
		}
		h.keys.evicted(e.cut)
		h.forget(e)
		return true
	})
	if more {
		return true
	}
	g.masky = !g.masky && g.masks.n > 0
	return g.masky
}

// walk visits up to n entries from hand on, moves hand, and tells whether there are
// more before the end.
func walk[V any](s *sorted[V], hand *string, n int, visit func(*entry[V]) (remove bool)) (more bool) {
	p, _ := s.seek(*hand)
	for range n {
		var e *entry[V]
		if e, p = s.from(p); e == nil {
			*hand = ""
			return false
		}
		if visit(e) {
			s.remove(p)
		} else {
			p.at++
		}
	}
	e, _ := s.from(p)
	if e == nil {
		*hand = ""
		return false
	}
	*hand = e.key
	return true
}

// How many entries are looked at, to see whether they have expired: at each cut, and
// for each that was encoded. As long as that is more than one, there is not more of what
// has expired than of what has not.
const (
	sweepPerCut    = 1024
	sweepPerChange = 2
)

func (h *entryTable[V]) sweep() { h.sweepSome(sweepPerCut) }

// sweepSome looks at some entries, or at slots without any. No tombstone is written for
// an entry that has expired: what segments hold of it has expired as well.
func (h *entryTable[V]) sweepSome(n int) {
	if h.opts.domain == segment.Forever || h.back != nil {
		return
	}
	slots := uint32(len(h.chunks)) << chunkBits
	if slots == 0 {
		return
	}
	now := h.keys.removes(h.opts.domain)
	for n = min(n, h.entries+int(slots)); n > 0; {
		if h.swept >= slots {
			h.swept = 0
		}
		slot := h.swept
		g := h.at(slot)
		if g == nil {
			h.swept++
			n--
			continue
		}
		looked := 1
		more := walk(&g.live, &g.hand[0], n, func(e *entry[V]) (remove bool) {
			looked++
			if e.flags&cellBusy != 0 {
				return false
			}
			if e.expires > now {
				if e.expires == unstamped && now != unknownTime {
					h.change(e)
					h.renew(e)
				}
				return false
			}
			h.forget(e)
			return true
		})
		if n -= looked; !more {
			h.tidy(slot, g)
			h.swept++
		}
		if h.shared {
			return
		}
	}
}

func (h *entryTable[V]) cost() int { return int(unsafe.Sizeof((*group[V])(nil))) }

func (h *entryTable[V]) extra() int64 {
	return int64(h.entries)*int64(h.entryBytes()) + int64(h.keyBytes) + int64(h.groups)*int64(unsafe.Sizeof(group[V]{}))
}

func (h *entryTable[V]) describe() Descriptor {
	d := Descriptor{Operator: h.operator, Name: h.name, Kind: h.kind, Clock: h.opts.domain.Name()}
	if h.codec != nil {
		d.ValueCodec, d.ValueVersion = h.codec.Name(), h.codec.Version()
	}
	return d
}
