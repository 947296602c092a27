package state

import "slices"

// sorted holds entries in the order of their keys, in leaves that are short enough to
// insert into. It is made for few entries as well as for some million: a key's first
// entry costs one leaf of one.
type sorted[V any] struct {
	leaves [][]*entry[V] // none is empty
	n      int
	// changed grows when an entry comes or goes: no place stands any more.
	changed uint32
}

// leafSize is how many entries a leaf holds at most.
const leafSize = 128

// place is where an entry stands, or belongs. Behind the last entry of a leaf is a
// place, too.
type place struct{ leaf, at int }

// seek returns the place of the first entry whose key is not below key, and whether it
// is the key's.
func (s *sorted[V]) seek(key string) (p place, found bool) {
	lo, hi := 0, len(s.leaves)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); s.leaves[mid][0].key <= key {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	if lo == 0 {
		return place{}, false
	}
	leaf := s.leaves[lo-1]
	p.leaf, lo, hi = lo-1, 0, len(leaf)
	for lo < hi {
		if mid := int(uint(lo+hi) >> 1); leaf[mid].key < key {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	p.at = lo
	return p, lo < len(leaf) && leaf[lo].key == key
}

// find returns the key's entry, or nil.
func (s *sorted[V]) find(key string) *entry[V] {
	if p, ok := s.seek(key); ok {
		return s.leaves[p.leaf][p.at]
	}
	return nil
}

// from returns the entry at p or the next one behind it, with its place.
func (s *sorted[V]) from(p place) (*entry[V], place) {
	if p.leaf < len(s.leaves) && p.at == len(s.leaves[p.leaf]) {
		p = place{p.leaf + 1, 0}
	}
	if p.leaf >= len(s.leaves) {
		return nil, p
	}
	return s.leaves[p.leaf][p.at], p
}

// before returns the entry before p, with its place.
func (s *sorted[V]) before(p place) (*entry[V], place) {
	if p.at == 0 {
		if p.leaf == 0 {
			return nil, p
		}
		p = place{p.leaf - 1, len(s.leaves[p.leaf-1])}
	}
	p.at--
	return s.leaves[p.leaf][p.at], p
}

func (s *sorted[V]) end() place { return place{len(s.leaves), 0} }

func (s *sorted[V]) first() *entry[V] {
	e, _ := s.from(place{})
	return e
}

func (s *sorted[V]) last() *entry[V] {
	e, _ := s.before(s.end())
	return e
}

// insert puts e, whose key is in no other entry, where seek found that it belongs.
func (s *sorted[V]) insert(p place, e *entry[V]) {
	s.n++
	s.changed++
	if len(s.leaves) == 0 {
		s.leaves = append(s.leaves, []*entry[V]{e})
		return
	}
	leaf := s.leaves[p.leaf]
	if len(leaf) < leafSize {
		s.leaves[p.leaf] = slices.Insert(leaf, p.at, e)
		return
	}
	half := leafSize / 2
	if p.at == leafSize && p.leaf == len(s.leaves)-1 { // keys that grow fill their leaves
		half = leafSize
	}
	right := append(make([]*entry[V], 0, leafSize), leaf[half:]...)
	clear(leaf[half:])
	leaf = leaf[:half]
	if p.at <= half && half < leafSize {
		leaf = slices.Insert(leaf, p.at, e)
	} else {
		right = slices.Insert(right, p.at-half, e)
	}
	s.leaves[p.leaf] = leaf
	s.leaves = slices.Insert(s.leaves, p.leaf+1, right)
}

// remove removes the entry at p. Then p is the place of the next one.
func (s *sorted[V]) remove(p place) {
	s.n--
	s.changed++
	leaf := slices.Delete(s.leaves[p.leaf], p.at, p.at+1)
	s.leaves[p.leaf] = leaf
	switch next := p.leaf + 1; {
	case len(leaf) == 0:
		s.leaves = slices.Delete(s.leaves, p.leaf, next)
	case next < len(s.leaves) && len(leaf)+len(s.leaves[next]) <= leafSize/2:
		s.leaves[p.leaf] = append(leaf, s.leaves[next]...)
		s.leaves = slices.Delete(s.leaves, next, next+1)
	}
}

// all yields the entries in order. Nothing may be inserted or removed meanwhile.
func (s *sorted[V]) all(yield func(*entry[V]) bool) {
	for _, leaf := range s.leaves {
		for _, e := range leaf {
			if !yield(e) {
				return
			}
		}
	}
}

// clear removes all entries.
func (s *sorted[V]) clear() {
	s.leaves, s.n = nil, 0
	s.changed++
}
