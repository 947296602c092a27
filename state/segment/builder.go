package segment

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"math/bits"
	"slices"
	"sync"
)

// headerLen is the length of the key-group and the state id before the user key.
const headerLen = 4

// Builder collects the entries that one subtask freezes, in any order. Of several
// entries with one key the last one counts. It is not safe for concurrent use,
// except that Runs it handed out may be released from any goroutine.
//
// The zero Builder is ready for use.
type Builder struct {
	arena   []byte
	entries []entry
	common  []common // by state, whose numbers are small
	pool    *pool

	start int // offset of the entry that is being built
	klen  int
}

// entry describes arena[off : off+klen+vlen]: a key with its header, then the value.
type entry struct {
	prefix uint64 // the bytes of the user key that follow what all keys of its state begin with
	off    int
	klen   uint32
	vlen   int32 // tombstone for a delete
	group  uint32
}

const tombstone int32 = -1

// common is what all user keys of a state begin with ("user-", a tenant, the high bytes of a
// number), as far as they are known.
type common struct {
	at, n int // n bytes of the arena at at
	stale int // entries before this one have a prefix that was taken further on
	some  bool
}

func (c *common) of(arena []byte) []byte { return arena[c.at : c.at+c.n] }

// BeginPut starts an entry that sets a key. It returns the arena, to which the
// caller appends the user key; what it gets from append goes to KeyDone.
func (b *Builder) BeginPut(kg, state uint16) []byte {
	b.start = len(b.arena)
	return append(b.arena, byte(kg>>8), byte(kg), byte(state>>8), byte(state))
}

// KeyDone ends the user key. It returns the arena, to which the caller appends the
// value; what it gets from append goes to ValueDone.
func (b *Builder) KeyDone(dst []byte) []byte {
	b.klen = len(dst) - b.start
	return dst
}

// ValueDone ends the value and with it the entry.
func (b *Builder) ValueDone(dst []byte) {
	b.add(dst, int32(len(dst)-b.start-b.klen))
}

// BeginDelete starts an entry that deletes a key. It returns the arena, to which
// the caller appends the user key; what it gets from append goes to DeleteDone.
func (b *Builder) BeginDelete(kg, state uint16) []byte { return b.BeginPut(kg, state) }

// DeleteDone ends the user key and with it the entry.
func (b *Builder) DeleteDone(dst []byte) {
	b.klen = len(dst) - b.start
	b.add(dst, tombstone)
}

// Abandon drops the entry that is being built: an encoder gave an error.
func (b *Builder) Abandon() { b.arena = b.arena[:b.start] }

func (b *Builder) add(dst []byte, vlen int32) {
	b.arena = dst
	e := entry{
		off: b.start, klen: uint32(b.klen), vlen: vlen,
		group: binary.BigEndian.Uint32(dst[b.start:]),
	}
	// The prefix is taken while the key is at hand. In a few of them what all begin with is
	// found, and from then on it hardly ever becomes shorter.
	for int(e.state()) >= len(b.common) {
		b.common = append(b.common, common{})
	}
	key, c := userKeyOf(dst, &e), &b.common[e.state()]
	if !c.some {
		*c = common{at: b.start + headerLen, n: len(key), some: true}
	} else if begin := c.of(dst); !bytes.HasPrefix(key, begin) {
		c.n, c.stale = commonLen(key, begin), len(b.entries)
	}
	e.prefix = prefixOf(key[c.n:])
	b.entries = append(b.entries, e)
}

// Len returns the number of entries, those of one key counted apart.
func (b *Builder) Len() int { return len(b.entries) }

// Bytes returns the bytes of keys, headers and values collected.
func (b *Builder) Bytes() int { return len(b.arena) }

// Reset drops all entries and keeps the memory.
func (b *Builder) Reset() {
	b.arena, b.entries, b.common = b.arena[:0], b.entries[:0], b.common[:0]
}

// Finish hands out what was collected. It costs the same however much that is: who
// first reads the Run sorts it. The Builder is empty and ready for the next freeze
// afterwards; it takes memory that a Run gave back.
func (b *Builder) Finish() Run {
	if b.pool == nil {
		b.pool = &pool{}
	}
	d := &runData{arena: b.arena, entries: b.entries, common: b.common, pool: b.pool}
	b.arena, b.entries, b.common = b.pool.take()
	return Run{d}
}

// sort sorts by key and keeps the newest entry of each key.
//
// First a radix pass by key-group and state, of which a subtask has few. Then, in
// each of these groups, by the eight bytes that follow what all keys of the state begin
// with, so that nearly every comparison is one of integers, and few keys, which lie here
// and there in the arena, are looked at.
func (d *runData) sort() {
	es := d.entries
	if len(es) == 0 {
		return
	}
	scratch, order := d.pool.takeScratch()
	stale := 0
	for i := range d.common {
		stale = max(stale, d.common[i].stale)
	}
	for i := range es[:stale] {
		if c := &d.common[es[i].state()]; i < c.stale {
			es[i].prefix = prefixOf(userKeyOf(d.arena, &es[i])[c.n:])
		}
	}
	var differ uint32
	for i := range es {
		differ |= es[i].group ^ es[0].group
	}
	for shift := 0; shift < 32; shift += 8 {
		if byte(differ>>shift) != 0 {
			es, scratch = radixPass(es, scratch, shift)
		}
	}
	out := slices.Grow(scratch[:0], len(es))
	for lo := 0; lo < len(es); {
		hi := lo + 1
		for hi < len(es) && es[hi].group == es[lo].group {
			hi++
		}
		out, order = appendSorted(out, order, d.arena, es[lo:hi])
		lo = hi
	}
	d.entries = out
	d.pool.putScratch(es[:0], order)
}

// touchAhead is how many entries are read together before they are written: in the order
// of their keys they lie here and there in the arena.
const touchAhead = 16

// touch reads something of all of entries [lo, hi), to have it in the cache soon. The
// result has no meaning.
func (d *runData) touch(lo, hi int) (touched byte) {
	const cacheLine, furthest = 64, 256 // the processor itself reads ahead in what is longer
	for i := lo; i < hi; i++ {
		e := &d.entries[i]
		end := e.off + min(int(e.klen)+int(max(e.vlen, 0)), furthest)
		for at := e.off; at < end; at += cacheLine {
			touched ^= d.arena[at]
		}
		touched ^= d.arena[end-1]
	}
	return touched
}

// radixPass orders es by one byte of the group, stably, in the memory of scratch if
// that is enough, and returns the ordered slice and the other one.
func radixPass(es, scratch []entry, shift int) (ordered, other []entry) {
	var next [256]int
	for i := range es {
		next[byte(es[i].group>>shift)]++
	}
	sum := 0
	for i, n := range next {
		next[i] = sum
		sum += n
	}
	dst := slices.Grow(scratch[:0], len(es))[:len(es)]
	for i := range es {
		d := byte(es[i].group >> shift)
		dst[next[d]] = es[i]
		next[d]++
	}
	return dst, es[:0]
}

// appendSorted appends the entries of a group, which come in the order of their age, to out
// in the order of their keys, of each key the newest. order is memory to work in.
func appendSorted(out []entry, order []uint64, arena []byte, es []entry) ([]entry, []uint64) {
	// Numbers are sorted, each of which has as much of a prefix as its place among the
	// entries leaves room for. Where that does not tell keys apart the place does, so what is
	// left to sort there is in the order of its age.
	room := bits.Len(uint(len(es) - 1))
	takeFurther(arena, es, room)
	order = order[:0]
	for i := range es {
		order = append(order, es[i].prefix>>room<<room|uint64(i))
	}
	slices.Sort(order)
	for lo := 0; lo < len(order); {
		hi := lo + 1
		for hi < len(order) && order[hi]>>room == order[lo]>>room {
			hi++
		}
		begin := len(out)
		for i := lo; i < hi; i++ {
			out = append(out, es[order[i]&(1<<room-1)])
		}
		if hi-lo > 1 {
			out = out[:begin+sortAlike(arena, out[begin:])]
		}
		lo = hi
	}
	return out, order
}

// sortAlike sorts entries of one group whose keys have nearly the same prefix, and which are
// in the order of their age. It returns how many are left when of each key only the newest
// is kept.
func sortAlike(arena []byte, es []entry) int {
	takeFurther(arena, es, 0)
	slices.SortFunc(es, func(x, y entry) int {
		if c := cmp.Compare(x.prefix, y.prefix); c != 0 {
			return c
		}
		return cmp.Or(bytes.Compare(keyOf(arena, &x), keyOf(arena, &y)), cmp.Compare(x.off, y.off))
	})
	n := 1
	for _, e := range es[1:] {
		if last := &es[n-1]; e.prefix == last.prefix && bytes.Equal(keyOf(arena, &e), keyOf(arena, last)) {
			*last = e
			continue
		}
		es[n] = e
		n++
	}
	return n
}

// takeFurther takes the prefixes of entries again, behind what their keys have in common, if
// they are many and the prefixes, but for their last bits, are all alike: as of a key that has
// a large map.
func takeFurther(arena []byte, es []entry, but int) {
	const few = 8
	if len(es) <= few {
		return
	}
	for i := range es {
		if es[i].prefix>>but != es[0].prefix>>but {
			return
		}
	}
	first := keyOf(arena, &es[0])
	common := len(first)
	for i := range es {
		common = commonLen(first[:common], keyOf(arena, &es[i]))
	}
	for i := range es {
		es[i].prefix = prefixOf(keyOf(arena, &es[i])[common:])
	}
}

// commonLen returns the length of what both begin with.
func commonLen(x, y []byte) int {
	n := 0
	for n < len(x) && n < len(y) && x[n] == y[n] {
		n++
	}
	return n
}

// prefixOf returns the first eight bytes of k, padded with zeros, as a number that
// orders as they do.
func prefixOf(k []byte) uint64 {
	if len(k) >= 8 {
		return binary.BigEndian.Uint64(k)
	}
	var p uint64
	for i, c := range k {
		p |= uint64(c) << (56 - 8*i)
	}
	return p
}

func keyOf(arena []byte, e *entry) []byte { return arena[e.off : e.off+int(e.klen)] }

func userKeyOf(arena []byte, e *entry) []byte { return keyOf(arena, e)[headerLen:] }

func (e *entry) state() uint16 { return uint16(e.group) }

// pool keeps the memory of released runs for the builder that made them.
type pool struct {
	mu      sync.Mutex
	free    []spare
	scratch []entry
	order   []uint64
}

type spare struct {
	arena   []byte
	entries []entry
	common  []common
}

// maxSpares bounds what an idle subtask keeps: one run in the making, one on its
// way to the store.
const maxSpares = 2

func (p *pool) take() ([]byte, []entry, []common) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) == 0 {
		return nil, nil, nil
	}
	s := p.free[len(p.free)-1]
	p.free = p.free[:len(p.free)-1]
	return s.arena, s.entries, s.common
}

func (p *pool) put(arena []byte, entries []entry, common []common) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.free) < maxSpares {
		p.free = append(p.free, spare{arena[:0], entries[:0], common[:0]})
	}
}

// takeScratch returns memory for sorting.
func (p *pool) takeScratch() (scratch []entry, order []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	scratch, order = p.scratch, p.order
	p.scratch, p.order = nil, nil
	return scratch, order
}

func (p *pool) putScratch(scratch []entry, order []uint64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.scratch, p.order = scratch, order
}
