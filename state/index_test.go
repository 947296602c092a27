package state

import (
	"math/rand/v2"
	"testing"
)

// indexed finds the slot of a hash under which only one slot may stand.
func indexed(x *index, hash, slot uint32) bool {
	for got, next := x.first(hash); got != NoSlot; got, next = x.next(hash, next) {
		if got == slot {
			return true
		}
	}
	return false
}

// The index must agree with a plain map over inserts and deletes, with many slots
// under one hash, with hashes that lie so close that they wrap around the end of a
// part, and across splits.
func TestIndexIsAMap(t *testing.T) {
	hashes := map[string]func(rng *rand.Rand) uint32{
		"spread":      func(rng *rand.Rand) uint32 { return rng.Uint32() },
		"few":         func(rng *rand.Rand) uint32 { return rng.Uint32N(300) * 0x9e3779b9 },
		"at the wrap": func(rng *rand.Rand) uint32 { return rng.Uint32()&^partMask | (partMask - rng.Uint32N(8)) },
		"one half":    func(rng *rand.Rand) uint32 { return rng.Uint32() >> 6 },
	}
	for name, hash := range hashes {
		t.Run(name, func(t *testing.T) {
			rng := rand.New(rand.NewPCG(1, 2))
			x := newIndex()
			of := map[uint32]uint32{} // hash of each slot
			var slots []uint32
			next := uint32(0)
			limit := 20 * partFull
			if name == "few" || name == "at the wrap" {
				limit = partFull / 2
			}
			for step := range 6 * limit {
				grow := step/limit%2 == 0
				if n := len(slots); n > 0 && (n >= limit || rng.IntN(4) == 0 == grow) {
					i := rng.IntN(n)
					slot := slots[i]
					if x.delete(of[slot]+1, slot) {
						t.Fatalf("slot %d was deleted under another hash", slot)
					}
					if !x.delete(of[slot], slot) {
						t.Fatalf("step %d: slot %d of hash %08x is not there to be deleted", step, slot, of[slot])
					}
					if indexed(&x, of[slot], slot) {
						t.Fatalf("step %d: slot %d is found after it was deleted", step, slot)
					}
					delete(of, slot)
					slots[i] = slots[n-1]
					slots = slots[:n-1]
				} else {
					of[next] = hash(rng)
					x.insert(of[next], next)
					slots = append(slots, next)
					next++
				}
				if step%limit == 0 || step == 6*limit-1 {
					for slot, h := range of {
						if !indexed(&x, h, slot) {
							t.Fatalf("step %d: slot %d of hash %08x is not found among %d", step, slot, h, len(of))
						}
					}
				}
				if x.len != len(of) {
					t.Fatalf("step %d: the index counts %d slots, there are %d", step, x.len, len(of))
				}
			}
			if name == "spread" && len(x.dir) < 16 {
				t.Errorf("the directory has %d entries: nothing was split", len(x.dir))
			}
		})
	}
}
