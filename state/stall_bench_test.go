package state

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/state/segment"
)

// BenchmarkStall measures how long a subtask is kept from its input for a checkpoint: by
// the cut at the barrier, and by one step of the encoding, of which a slice has as many as
// fit into a millisecond. Neither may grow with the number of keys, nor with how many of
// them changed.
func BenchmarkStall(b *testing.B) {
	const step = 256 // cells between two looks at the clock, as in package processor
	for _, keys := range []int64{1_000, 1_000_000, 10_000_000} {
		// Built once: that takes longer than all that is measured.
		ks := NewKeyspace(codec.Int64, Config{})
		scope := NewScope("op")
		n := Value(benchSetup{scope}, "n", codec.Int64)
		ks.Attach(scope, []uint16{1})
		var encoded []byte
		update := func(k int64) {
			encoded, _ = codec.Int64.Append(encoded[:0], k)
			ks.Use(k, uint16(keygroup.Of(encoded, benchKeyGroups)))
			n.Set(n.Get() + 1)
		}
		for k := range keys {
			update(k)
		}
		var into segment.Builder
		checkpoint := int64(1)
		if err := ks.Freeze(&into, checkpoint); err != nil {
			b.Fatal(err)
		}
		into.Finish().Release()
		rng := rand.New(rand.NewPCG(1, 2))
		for _, dirty := range []int64{1_000, 100_000} {
			if dirty > keys {
				continue
			}
			b.Run(fmt.Sprintf("keys=%d/dirty=%d", keys, dirty), func(b *testing.B) {
				b.ReportAllocs()
				var cuts, steps []time.Duration
				for b.Loop() {
					b.StopTimer()
					for range dirty {
						update(rng.Int64N(keys))
					}
					checkpoint++
					b.StartTimer()
					begun := time.Now()
					ks.Cut(&into, checkpoint)
					cuts = append(cuts, time.Since(begun))
					for done := false; !done; {
						var err error
						begun = time.Now()
						if done, err = ks.Encode(step); err != nil {
							b.Fatal(err)
						}
						steps = append(steps, time.Since(begun))
					}
					into.Finish().Release()
				}
				b.ReportMetric(float64(percentile(cuts, 50).Nanoseconds()), "cut-p50-ns")
				b.ReportMetric(float64(percentile(cuts, 99).Nanoseconds()), "cut-p99-ns")
				b.ReportMetric(float64(percentile(steps, 50).Nanoseconds()), "step-p50-ns")
				b.ReportMetric(float64(percentile(steps, 99).Nanoseconds()), "step-p99-ns")
			})
		}
	}
}

func percentile(d []time.Duration, p int) time.Duration {
	slices.Sort(d)
	return d[min(len(d)*p/100, len(d)-1)]
}
