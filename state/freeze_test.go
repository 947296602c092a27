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

// A handler may change in place what it was given, and set that again. A checkpoint that was
// cut before and is not encoded yet holds it as it was.
func TestWhatIsChangedInPlaceIsFrozenAsItWasAtTheCut(t *testing.T) {
	type counts = map[string]int
	ks := NewKeyspace(codec.String, Config{})
	scope := NewScope("op")
	value := Value(benchSetup{scope}, "value", codec.JSON[counts]())
	byKey := Map(benchSetup{scope}, "map", codec.String, codec.JSON[counts]())
	acc := Aggregating(benchSetup{scope}, "acc", Aggregator[string, counts, int]{
		Zero:   func() counts { return counts{} },
		Add:    func(m counts, v string) counts { m[v]++; return m },
		Result: func(m counts) int { return m["x"] },
		Codec:  codec.JSON[counts](),
	})
	list := List(benchSetup{scope}, "list", codec.JSON[counts]())
	ks.Attach(scope, []uint16{1, 2, 3, 4})
	handle := func() {
		ks.Use("k", 0)
		if v, ok := list.At(0); ok {
			v["x"]++
			list.Set(0, v)
		} else {
			list.Append(counts{"x": 1})
		}
		v := value.Get()
		if v == nil {
			v = counts{}
		}
		v["x"]++
		value.Set(v)
		if v = byKey.Get("sub"); v == nil {
			v = counts{}
		}
		v["x"]++
		byKey.Put("sub", v)
		acc.Add("x")
	}
	handle()
	for checkpoint := range int64(3) {
		var b segment.Builder
		ks.Cut(&b, checkpoint)
		handle() // of the next one
		if _, err := ks.Encode(1 << 30); err != nil {
			t.Fatal(err)
		}
		run := b.Finish()
		entries, want := 0, fmt.Sprintf(`{"x":%d}`, checkpoint+1)
		for e := range run.All() {
			entries++
			if got := string(e.Value[1:]); got != want {
				t.Errorf("checkpoint %d holds %s, want %s", checkpoint, got, want)
			}
		}
		if entries != 4 {
			t.Errorf("checkpoint %d holds %d entries, want 4", checkpoint, entries)
		}
	}
}
