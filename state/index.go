package state

import "hash/maphash"

// index finds the slot of a key. It stores no keys, only 32 bits of each key's hash
// beside its slot, so it is small and the garbage collector has nothing to look for
// in it; the caller compares the keys.
//
// It is an extendible hash: a directory over the high bits of the hash leads to
// parts, which are open-addressed by the low bits. A part that is full is split in
// two, so that growing never moves more than one part, however many keys there are.
// The hash is seeded: who chooses the keys can't choose where they collide.
type index struct {
	dir   []part // of 1<<depth; neighbours with the same high bits share a part
	shift uint8  // 32 - depth
	len   int
}

type part struct {
	entries *[partSize]uint64
	load    *load
}

// load says how full a part is.
type load struct {
	n     int
	depth uint8 // how many high bits all hashes in the part share
}

// An entry is the hash in the high half, the slot plus one in the low half; 0 is
// none. Behind the place where its hash belongs an entry stands with no gap between.
const (
	partSize = 4096
	partMask = partSize - 1
	partFull = partSize * 3 / 4

	maxDepth = 20 // then the high bits meet the low ones
)

func newIndex() index {
	return index{dir: []part{{new([partSize]uint64), &load{}}}, shift: 32}
}

func indexEntry(hash, slot uint32) uint64 { return uint64(hash)<<32 | uint64(slot+1) }

func (x *index) part(hash uint32) *part { return &x.dir[uint64(hash)>>x.shift] }

// touch reads where hash belongs, to have it in the cache soon.
func (x *index) touch(hash uint32) uint64 {
	return x.part(hash).entries[hash&partMask]
}

// first returns the first slot whose key may be the one with this hash, and where
// to look for the next one.
func (x *index) first(hash uint32) (slot, at uint32) { return x.next(hash, hash) }

func (x *index) next(hash, at uint32) (slot, then uint32) {
	p := x.part(hash).entries
	for {
		e := p[at&partMask]
		at++
		if uint32(e>>32) == hash && e != 0 {
			return uint32(e) - 1, at
		}
		if e == 0 {
			return NoSlot, at
		}
	}
}

// insert adds a slot whose key is in no other.
func (x *index) insert(hash, slot uint32) {
	p := x.part(hash)
	for p.load.n >= partFull && p.load.depth < maxDepth {
		x.split(hash)
		p = x.part(hash)
	}
	if p.load.n == partSize-1 {
		panic("keyspace: more keys than 32 bits of hash can tell apart") // some thousand million
	}
	p.put(indexEntry(hash, slot))
	x.len++
}

func (p *part) put(e uint64) {
	at := uint32(e >> 32)
	for p.entries[at&partMask] != 0 {
		at++
	}
	p.entries[at&partMask] = e
	p.load.n++
}

// split makes two parts of the one that hash belongs to.
func (x *index) split(hash uint32) {
	old := *x.part(hash)
	depth := old.load.depth
	if 32-x.shift == depth {
		dir := make([]part, 2*len(x.dir))
		for i, p := range x.dir {
			dir[2*i], dir[2*i+1] = p, p
		}
		x.dir, x.shift = dir, x.shift-1
	}
	halves := [2]part{
		{new([partSize]uint64), &load{depth: depth + 1}},
		{new([partSize]uint64), &load{depth: depth + 1}},
	}
	for _, e := range old.entries {
		if e != 0 {
			halves[e>>(63-depth)&1].put(e)
		}
	}
	span := len(x.dir) >> depth // of the directory that led to the old part
	lo := int(uint64(hash)>>x.shift) &^ (span - 1)
	for i := range span {
		x.dir[lo+i] = halves[i/(span/2)]
	}
}

// delete removes a slot and tells whether it was there.
func (x *index) delete(hash, slot uint32) bool {
	p := x.part(hash)
	at, want := hash, indexEntry(hash, slot)
	for {
		e := p.entries[at&partMask]
		if e == want {
			break
		}
		if e == 0 {
			return false
		}
		at++
	}
	// What stands behind moves up, unless it would come before where it belongs.
	gap := at
	for {
		at++
		e := p.entries[at&partMask]
		if e == 0 {
			break
		}
		if home := uint32(e >> 32); (at-home)&partMask >= (at-gap)&partMask {
			p.entries[gap&partMask] = e
			gap = at
		}
	}
	p.entries[gap&partMask] = 0
	p.load.n--
	x.len--
	return true
}

// hashOf is the hash of a key.
func hashOf[K comparable](seed maphash.Seed, k K) uint32 {
	return uint32(maphash.Comparable(seed, k) >> 32)
}
