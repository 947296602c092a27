package checkpoint_test

import (
	"fmt"
	"testing"

	"github.com/weirstream/weir/checkpoint"
)

// The filter is as large as it was asked to be in what a checkpoint writes, and in what
// merging makes of it, and says nothing wrong whatever its size.
func TestFiltersHaveTheirSizeInCheckpointsAndAfterMerging(t *testing.T) {
	const keys, checkpoints = 20_000, 4
	size := func(bits int) (written, merged int64) {
		store := checkpoint.NewMem()
		r := newRig(t, store, func(c *checkpoint.Config) { c.BloomBits, c.MergeFanIn, c.Retain = bits, checkpoints, 1 })
		want := model{}
		for id := range int64(checkpoints) {
			c := changes{}
			for i := range keys {
				c[fmt.Sprintf("%d/%d-%d", i%keyGroups, id, i)] = "v"
			}
			want.apply(c)
			_, stats, err := r.Persist(t.Context(), snapshot(id+1, c))
			if err != nil {
				t.Fatal(err)
			}
			written += stats.SegmentBytes
			r.Committed(id + 1)
		}
		r.Settle()
		ref := r.commit(checkpoints+1, changes{"0/last": "v"})
		want["0/last"] = "v"
		expect(t, store, ref, want)
		m, err := checkpoint.Load(t.Context(), store, ref)
		if err != nil {
			t.Fatal(err)
		}
		if len(m.Segments) > checkpoints {
			t.Fatalf("%d segments were not merged", len(m.Segments))
		}
		for _, s := range m.Segments {
			merged += s.Length
		}
		return written, merged
	}
	few, fewMerged := size(2)
	many, manyMerged := size(26)
	// 24 bits more for each key are 3 bytes.
	for what, got := range map[string]int64{"checkpoints": many - few, "merging": manyMerged - fewMerged} {
		if want := int64(3 * keys * checkpoints); got < want*9/10 || got > want*11/10 {
			t.Errorf("%s: 24 bits more for each key take %d bytes, want %d", what, got, want)
		}
	}
}
