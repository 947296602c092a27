package checkpoint

import (
	"cmp"
	"fmt"
	"slices"
	"sort"

	"github.com/weirstream/weir/internal/keygroup"
)

// The chain of a manifest is a list, oldest first, but only segments with keys in
// common have an order among them: pieces of one merged level stand one after the
// other and none of them wins over another. Readers put the chain into levels.

// keyRange returns the first and the last key that a segment may have, in a form that
// sorts as keys do.
func (s SegmentRef) keyRange() (first, last string) {
	if s.MinKey != "" {
		return s.MinKey, s.MaxKey
	}
	// "g" comes after every hexadecimal digit, and so after every key of the group.
	return fmt.Sprintf("%04x", s.MinKG), fmt.Sprintf("%04xg", s.MaxKG)
}

// Levels returns the segments that have to do with the key-groups [lo, hi) as levels,
// oldest first. Segments of one level have no key in common and stand in order of
// their keys; where levels have a key in common the later one wins. There are as few
// levels as there can be.
func (m *Manifest) Levels(lo, hi int) [][]SegmentRef {
	return levelsOf(slices.DeleteFunc(slices.Clone(m.Segments), func(s SegmentRef) bool { return !s.overlaps(lo, hi) }))
}

func levelsOf(chain []SegmentRef) [][]SegmentRef {
	var out [][]SegmentRef
	for _, l := range layer(chain) {
		refs := make([]SegmentRef, len(l))
		for i, at := range l {
			refs[i] = chain[at]
		}
		out = append(out, refs)
	}
	return out
}

// layer puts a chain into levels and returns the places of segments in it.
func layer(chain []SegmentRef) [][]int {
	type span struct {
		first, last string
		at          int
	}
	var levels [][]span
	for at, s := range chain {
		n := span{at: at}
		n.first, n.last = s.keyRange()
		// It goes on top of the highest level in which it meets something.
		l, place := len(levels), 0
		for l > 0 {
			row := levels[l-1]
			i := sort.Search(len(row), func(i int) bool { return row[i].last >= n.first })
			if i < len(row) && row[i].first <= n.last {
				break
			}
			l, place = l-1, i
		}
		if l == len(levels) {
			levels = append(levels, nil)
			place = 0
		}
		levels[l] = slices.Insert(levels[l], place, n)
	}
	out := make([][]int, len(levels))
	for i, row := range levels {
		for _, n := range row {
			out[i] = append(out[i], n.at)
		}
	}
	return out
}

// mergePlan says what to merge.
type mergePlan struct {
	inputs []int // places in the chain, in order
	bytes  int64
	level  int
	full   int  // segments of that level in the stack, pieces of one run counted once
	base   bool // nothing older has to do with their key-groups
	lo, hi int  // the key-groups [lo, hi) that it is about
}

// maxMergeInputs times the fan-in is how many segments of one level are merged at most
// at once: each of them takes memory.
const maxMergeInputs = 2

// maxOverlay times the size of the oldest segment over a key-group is how much may lie over
// it: how many times the state a store has to hold, and to read when all of it is wanted.
const maxOverlay = 3

// territory returns the key-groups [lo, hi) that count as a segment's when merges are
// planned: those of its shard. Small segments count as having to do with all of them,
// or each key-group would collect small ones of its own.
func (s SegmentRef) territory(keyGroups int) (lo, hi int) {
	if s.Shards <= 1 {
		return 0, keyGroups
	}
	lo, _ = keygroup.Range(int(s.MinKG)*s.Shards/keyGroups, s.Shards, keyGroups)
	_, hi = keygroup.Range(int(s.MaxKG)*s.Shards/keyGroups, s.Shards, keyGroups)
	return lo, hi
}

// sameRun tells that two neighbours are pieces of one merge.
func (s SegmentRef) sameRun(o SegmentRef) bool {
	return s.Run > 0 && s.Run == o.Run && s.FirstCheckpoint == o.FirstCheckpoint && s.LastCheckpoint == o.LastCheckpoint
}

// pickMerge returns the merge to be done next: one on the lowest level on which some
// key-group has fanIn segments, or more than maxOverlay of the oldest one if that has at
// least overlay bytes; the smallest of them. Segments that busy holds are being merged
// already; plans of more than limit bytes, or not more than least, are left out.
func pickMerge(chain []SegmentRef, keyGroups int, busy map[segmentID]bool, fanIn int, overlay, least, limit int64) (best mergePlan, ok bool) {
	// Territories lie within each other or apart, so that where one begins the stack
	// is as high as anywhere in it.
	var begins []int
	for _, s := range chain {
		lo, _ := s.territory(keyGroups)
		begins = append(begins, lo)
	}
	slices.Sort(begins)
	begins = slices.Compact(begins)
	places := make([]int, len(chain))
	var stack [][]int // the segments over a key-group; pieces of one run are one element
	for _, kg := range begins {
		stack = stack[:0]
		n := 0
		for at, s := range chain {
			if lo, hi := s.territory(keyGroups); kg < lo || kg >= hi {
				continue
			}
			places[n] = at
			n++
			if top := len(stack) - 1; top >= 0 && s.sameRun(chain[stack[top][0]]) {
				stack[top] = places[n-len(stack[top])-1 : n]
				continue
			}
			stack = append(stack, places[n-1:n])
		}
		for _, set := range fullLevels(chain, stack, fanIn, overlay) {
			p, free := enclose(chain, keyGroups, set.inputs, busy)
			p.level, p.full = set.level, set.full
			if !free || p.bytes > limit || p.bytes <= least {
				continue
			}
			if !ok || cmp.Or(cmp.Compare(p.level, best.level), cmp.Compare(p.bytes, best.bytes), cmp.Compare(p.lo, best.lo)) < 0 {
				best, ok = p, true
			}
		}
	}
	return best, ok
}

// fullLevels returns the sets of segments, newest first, that are neighbours in a
// stack, of one level by their size, and at least fanIn; or the oldest ones, if they are
// more than maxOverlay times the oldest one and that has at least overlay bytes.
func fullLevels(chain []SegmentRef, stack [][]int, fanIn int, overlay int64) (sets []mergePlan) {
	size := func(at []int) int64 { return max(chain[at[0]].Run, chain[at[0]].Length) }
	overlaid := func(hi int) bool {
		var over int64
		for _, at := range stack[1:hi] {
			over += size(at)
		}
		return size(stack[0]) >= overlay && over >= maxOverlay*size(stack[0])
	}
	found := func(lo, hi, level int) {
		if hi-lo < fanIn && (lo > 0 || !overlaid(hi)) {
			return
		}
		full := hi - lo
		hi = min(hi, lo+maxMergeInputs*fanIn)
		sets = append(sets, mergePlan{inputs: slices.Concat(stack[lo:hi]...), level: level, full: full})
	}
	hi, top := len(stack), 0
	for lo := len(stack); lo > 0; lo-- {
		if l := max(top, level(size(stack[lo-1]), fanIn)); l > top {
			found(lo, hi, top)
			hi, top = lo, l
		}
	}
	found(0, hi, top)
	return sets
}

// enclose adds to a set all segments that stand between them and share key-groups with
// them: the result of a merge takes the place of the oldest, and nothing between may
// be older than a part of it and newer than another. free tells that busy holds none.
func enclose(chain []SegmentRef, keyGroups int, set []int, busy map[segmentID]bool) (p mergePlan, free bool) {
	first, last := slices.Min(set), slices.Max(set)
	p.lo, p.hi = chain[first].territory(keyGroups)
	for n := -1; n != len(p.inputs); {
		n = len(p.inputs)
		p.inputs, p.bytes = p.inputs[:0], 0
		for at := first; at <= last; at++ {
			lo, hi := chain[at].territory(keyGroups)
			if lo >= p.hi || hi <= p.lo {
				continue
			}
			if busy[chain[at].id()] {
				return p, false
			}
			p.inputs = append(p.inputs, at)
			p.bytes += chain[at].Length
			p.lo, p.hi = min(p.lo, lo), max(p.hi, hi)
		}
	}
	p.base = !slices.ContainsFunc(chain[:first], func(s SegmentRef) bool { return s.overlaps(p.lo, p.hi) })
	return p, true
}

// segmentID names a segment: an object is never written twice.
type segmentID struct {
	object string
	offset int64
}

func (s SegmentRef) id() segmentID { return segmentID{s.Object, s.Offset} }
