package checkpoint_test

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/state/segment"
)

// BenchmarkPersist is a checkpoint of a few changed keys, with everything that
// happens in the background.
func BenchmarkPersist(b *testing.B) {
	for _, kind := range []string{"mem", "dir"} {
		b.Run(kind, func(b *testing.B) {
			var s checkpoint.Store = checkpoint.NewMem()
			if kind == "dir" {
				d, err := checkpoint.OpenDir(b.TempDir())
				if err != nil {
					b.Fatal(err)
				}
				s = d
			}
			r := newRig(b, s, func(c *checkpoint.Config) { c.MergeFanIn = 0 })
			c := changes{}
			for i := range 100 {
				c[fmt.Sprintf("%d/key-%d", i%keyGroups, i)] = "value"
			}
			b.ReportAllocs()
			id := int64(0)
			for b.Loop() {
				id++
				r.commit(id, c)
			}
		})
	}
}

// BenchmarkMergingKeepsUp persists epochs of 50,000 dirty keys among five million, as
// fast as merging can follow, and tells what merging costs for each.
func BenchmarkMergingKeepsUp(b *testing.B) {
	const dirty, keys = 50_000, 5_000_000
	var mu sync.Mutex
	var busy time.Duration
	var written int64
	r := newRig(b, checkpoint.NewMem(), func(c *checkpoint.Config) {
		c.KeyGroups, c.MergeFanIn, c.MergeCPU = 128, 0, 1
		c.Listener.Merged = func(i event.Merged) {
			mu.Lock()
			defer mu.Unlock()
			busy += i.Took
			written += i.Written
		}
	})
	rng := rand.New(rand.NewPCG(1, 2))
	var builder segment.Builder
	id := int64(0)
	var persisted int64
	for b.Loop() {
		for range dirty {
			k := rng.Uint64() % keys
			dst := append(builder.BeginPut(uint16(k%128), 1), "account-"...)
			dst = builder.KeyDone(binary.BigEndian.AppendUint64(dst, k))
			dst = segment.AppendHeader(dst, segment.Header{Version: 1})
			for range 6 {
				dst = binary.LittleEndian.AppendUint64(dst, rng.Uint64())
			}
			builder.ValueDone(append(dst, "the same text stands in each of these values ......"...))
		}
		id++
		snap := snapshot(id, nil)
		snap.Runs = []segment.Run{builder.Finish()}
		_, stats, err := r.Persist(b.Context(), snap)
		if err != nil {
			b.Fatal(err)
		}
		persisted += stats.SegmentBytes
		r.Committed(id)
		r.Settle()
	}
	m, _ := r.Base()
	b.ReportMetric(float64(busy.Milliseconds())/float64(b.N), "merge-ms/epoch")
	b.ReportMetric(float64(written)/float64(persisted), "rewrites/byte")
	b.ReportMetric(float64(len(m.Levels(0, 128))), "levels")
}
