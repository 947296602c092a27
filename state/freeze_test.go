package state

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"testing"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/state/segment"
)

// What the frozen runs say together must be the table, whether an epoch changed
// few keys or nearly all, and whether slots were freed and taken again.
func TestFrozenRunsAddUpToTheTable(t *testing.T) {
	const keys = 5000
	rng := rand.New(rand.NewPCG(3, 4))
	ks := NewKeyspace(codec.String, Config{})
	scope := NewScope("count")
	n := Value(benchSetup{scope}, "n", codec.Int64)
	ks.Attach(scope, []uint16{1})
	want, got := map[string]int64{}, map[string]int64{}
	var builder segment.Builder
	for epoch := range 40 {
		changes := []int{3, keys / 10, 2 * keys}[epoch%3]
		changed := map[string]bool{}
		for range changes {
			k := fmt.Sprint(rng.IntN(keys))
			changed[k] = true
			if rng.IntN(8) > 0 {
				sought := []Sought[string]{{Key: k}}
				ks.Find(sought)
				ks.UseAt(k, 0, sought[0].Slot)
			} else {
				ks.Use(k, 0)
			}
			if v, ok := n.Lookup(); ok != (want[k] != 0) || v != want[k] {
				t.Fatalf("epoch %d: key %s holds %d, want %d", epoch, k, v, want[k])
			}
			if rng.IntN(3) == 0 {
				n.Clear()
				delete(want, k)
				continue
			}
			want[k]++
			n.Set(want[k])
		}
		if err := ks.Freeze(&builder, int64(epoch)); err != nil {
			t.Fatal(err)
		}
		if builder.Len() > len(changed) {
			t.Fatalf("epoch %d: %d entries were frozen for %d changed keys", epoch, builder.Len(), len(changed))
		}
		run := builder.Finish()
		for e := range run.All() {
			if e.Deleted {
				delete(got, string(e.Key))
				continue
			}
			v, err := codec.Int64.Decode(e.Value[1:]) // behind the codec version
			if err != nil {
				t.Fatal(err)
			}
			got[string(e.Key)] = v
		}
		run.Release()
		if !maps.Equal(got, want) {
			t.Fatalf("epoch %d: the runs say %d keys, the table %d, or their values differ", epoch, len(got), len(want))
		}
		if ks.Len() != len(want) {
			t.Fatalf("epoch %d: the keyspace has %d keys, %d hold state", epoch, ks.Len(), len(want))
		}
	}
}
