package pebble

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/weirstream/weir/state/segment"
)

const benchGroups = 128

// benchEntry puts an entry of a 16-byte key and a 100-byte value, half of which
// repeats.
func benchEntry(b *segment.Builder, id uint64, rng *rand.Rand) {
	dst := b.BeginPut(uint16(id%benchGroups), 1)
	dst = append(dst, "account-"...)
	dst = b.KeyDone(binary.BigEndian.AppendUint64(dst, id))
	dst = segment.AppendHeader(dst, segment.Header{Version: 1})
	for range 6 {
		dst = binary.LittleEndian.AppendUint64(dst, rng.Uint64())
	}
	b.ValueDone(append(dst, "the same text stands in each of these values ........"[:51]...))
}

func benchKey(dst []byte, id uint64) []byte {
	dst = segment.AppendKey(dst, uint16(id%benchGroups), 1, []byte("account-"))
	return binary.BigEndian.AppendUint64(dst, id)
}

// benchBase writes the entries [0, n) to files of the bucket, as a merge does: pieces
// of some ten megabytes.
func benchBase(b *testing.B, bk *bucket, n int) (chain []Segment) {
	b.Helper()
	rng := rand.New(rand.NewPCG(1, 2))
	var builder segment.Builder
	const groupsAtOnce = 16
	for lo := 0; lo < benchGroups; lo += groupsAtOnce {
		for id := range n {
			if g := id % benchGroups; g >= lo && g < lo+groupsAtOnce {
				benchEntry(&builder, uint64(id), rng)
			}
		}
		run := builder.Finish()
		chain = append(chain, benchWrite(b, bk, fmt.Sprintf("base-%d.sst", lo), run))
		run.Release()
	}
	return chain
}

func benchWrite(b *testing.B, bk *bucket, name string, runs ...segment.Run) Segment {
	b.Helper()
	path := filepath.Join(bk.dir, name)
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	info, err := segment.Write(f, runs...)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		b.Fatal(err)
	}
	return refOf(name, info)
}

func cpu() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// benchPlan writes n segments of keys entries each, and merges them as a writer of
// checkpoints does, eight of a size at a time. It returns for each checkpoint its own
// segment and its chain, and the processor time that the merging took.
func benchPlan(b *testing.B, bk *bucket, base []Segment, n, keys, entries int) (own []Segment, chains [][]Segment, merging time.Duration) {
	b.Helper()
	const fanIn = 8
	rng := rand.New(rand.NewPCG(3, 4))
	var builder segment.Builder
	levels := make([][]Segment, 8) // the lowest first, each oldest first
	merges := 0
	for i := range n {
		for range keys {
			benchEntry(&builder, rng.Uint64N(uint64(entries)), rng)
		}
		run := builder.Finish()
		seg := benchWrite(b, bk, fmt.Sprintf("own-%d.sst", i), run)
		run.Release()
		own = append(own, seg)
		levels[0] = append(levels[0], seg)
		chain := slices.Clone(base)
		for _, l := range slices.Backward(levels) {
			chain = append(chain, l...)
		}
		chains = append(chains, chain)
		for l := 0; len(levels[l]) == fanIn; l++ {
			before := cpu()
			var in []segment.Level
			for _, s := range levels[l] {
				in = append(in, segment.Level{{MaxKG: benchGroups, Entries: -1, Open: func() (*segment.Reader, error) {
					data, err := os.ReadFile(filepath.Join(bk.dir, s.Object))
					if err != nil {
						return nil, err
					}
					return segment.Open(data)
				}}})
			}
			var out Segment
			err := segment.MergeLevels(segment.MergeOptions{KeyGroups: benchGroups}, func(m segment.Merged, data []byte) error {
				out = refOf(fmt.Sprintf("merged-%d.sst", merges), m.Info)
				merges++
				return os.WriteFile(filepath.Join(bk.dir, out.Object), data, 0o644)
			}, in...)
			if err != nil {
				b.Fatal(err)
			}
			merging += cpu() - before
			levels[l], levels[l+1] = nil, append(levels[l+1], out)
		}
	}
	return own, chains, merging
}

// BenchmarkAttach attaches a remote state of one and of ten million entries, in pieces
// of about 80 MB, to an empty store, and gets one key.
//
// On two cores: 9 to 12 reads, some hundred KiB and 10 to 30 ms, for both. An object
// store adds the latency of two reads, one after the other, and those of the Get.
func BenchmarkAttach(b *testing.B) {
	for _, entries := range []int{1_000_000, 10_000_000} {
		b.Run(fmt.Sprintf("entries=%d", entries), func(b *testing.B) {
			bk := newDirBucket(b, vfs.Default, b.TempDir())
			chain := benchBase(b, bk, entries)
			remote := newRemoteBucket()
			for _, seg := range chain {
				data, err := os.ReadFile(bk.path(seg.Object))
				if err != nil {
					b.Fatal(err)
				}
				remote.objects[seg.Object] = data
			}
			remote.before(func(_ string, _, n int64) error {
				if n >= chunkBytes {
					return errors.New("not now") // what is measured is reading it where it is
				}
				return nil
			})
			for b.Loop() {
				s := open(b, vfs.Default, Options{})
				if _, err := s.Attach(b.Context(), ID{Lineage: "aa", Checkpoint: 1}, chain, remote); err != nil {
					b.Fatal(err)
				}
				if _, ok, err := s.Get(nil, benchKey(nil, uint64(entries)/2), math.MaxInt64); err != nil || !ok {
					b.Fatal(ok, err)
				}
				closeStore(b, s)
			}
			b.ReportMetric(float64(remote.bytes.Load())/float64(b.N)/1024, "KiB-read")
			b.ReportMetric(float64(remote.gets.Load())/float64(b.N), "gets")
		})
	}
}

// BenchmarkIngest ingests ten segments a second over a store of ten million entries,
// while a reader gets a thousand keys a second, uniformly. Each iteration is one
// segment. merge-ns/key is what the writer of checkpoints spends on merging, and would
// without the store.
//
// On two cores, 400 segments:
//
//	keys   ingest      ingest p50, p99   get p50, p99     depth   merge
//	5000   158 ns/key  0.34 ms, 1.2 ms   37 µs, 301 µs    21      1193 ns/key
//	50000   13 ns/key  0.32 ms, 1.6 ms   32 µs, 428 µs    21      1464 ns/key
//
// A get of a key at random reads a block of 32 KiB that is not in the cache.
func BenchmarkIngest(b *testing.B) {
	const entries = 10_000_000
	for _, keys := range []int{5_000, 50_000} {
		b.Run(fmt.Sprintf("keys=%d", keys), func(b *testing.B) {
			bk := newDirBucket(b, vfs.Default, b.TempDir())
			base := benchBase(b, bk, entries)
			own, chains, merging := benchPlan(b, bk, base, b.N, keys, entries)
			s := open(b, vfs.Default, Options{})
			at := ID{Lineage: "aa", Checkpoint: 1}
			if _, err := s.Attach(b.Context(), at, base, bk); err != nil {
				b.Fatal(err)
			}
			for _, reads := range []bool{false, true} {
				latencies := make(chan []time.Duration, 1)
				stop := make(chan struct{})
				go func() { latencies <- benchReads(b, s, reads, entries, stop) }()
				var took []time.Duration
				depth := 0
				half := own[:len(own)/2]
				if reads {
					half = own[len(own)/2:]
				}
				before := cpu()
				tick := time.NewTicker(100 * time.Millisecond)
				for range half {
					<-tick.C
					i := int(at.Checkpoint) - 1
					next := ID{Lineage: "aa", Checkpoint: at.Checkpoint + 1}
					start := time.Now()
					if err := s.Ingest(b.Context(), next, at, &own[i], nil, chains[i]); err != nil {
						b.Fatal(err)
					}
					took = append(took, time.Since(start))
					at = next
					depth = max(depth, s.Metrics().Depth)
				}
				tick.Stop()
				used := cpu() - before
				close(stop)
				lat := <-latencies
				if !reads {
					b.ReportMetric(float64(used.Nanoseconds())/float64(keys*max(len(half), 1)), "ingest-ns/key")
					continue
				}
				b.ReportMetric(quantile(lat, 50)/1e3, "get-p50-µs")
				b.ReportMetric(quantile(lat, 99)/1e3, "get-p99-µs")
				b.ReportMetric(quantile(took, 50)/1e6, "ingest-p50-ms")
				b.ReportMetric(quantile(took, 99)/1e6, "ingest-p99-ms")
				b.ReportMetric(float64(depth), "depth-max")
			}
			b.ReportMetric(float64(merging.Nanoseconds())/float64(keys*b.N), "merge-ns/key")
			b.Logf("%+v", s.Metrics())
		})
	}
}

func quantile(d []time.Duration, percent int) float64 {
	if len(d) == 0 {
		return 0
	}
	slices.Sort(d)
	return float64(d[len(d)*percent/100].Nanoseconds())
}

func benchReads(b *testing.B, s *Store, reads bool, entries uint64, stop chan struct{}) (took []time.Duration) {
	if !reads {
		return nil
	}
	rng := rand.New(rand.NewPCG(5, 6))
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	var key, value []byte
	for {
		select {
		case <-stop:
			return took
		case <-tick.C:
		}
		for range 10 {
			key = benchKey(key[:0], rng.Uint64N(entries))
			start := time.Now()
			v, ok, err := s.Get(value[:0], key, math.MaxInt64)
			took = append(took, time.Since(start))
			if err != nil || !ok {
				b.Error(ok, err)
			}
			value = v
		}
	}
}

// BenchmarkGet gets keys at random that only the oldest of many segments has, with a
// cache that has room for filters and indexes and little else.
func BenchmarkGet(b *testing.B) {
	const entries, young = 2_000_000, 20_000
	for _, depth := range []int{1, 8, 16, 32} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			bk := newDirBucket(b, vfs.Default, b.TempDir())
			chain := benchBase(b, bk, entries)
			rng := rand.New(rand.NewPCG(5, 6))
			for i := 1; i < depth; i++ {
				var builder segment.Builder
				for range young {
					benchEntry(&builder, entries+rng.Uint64N(entries), rng)
				}
				run := builder.Finish()
				chain = append(chain, benchWrite(b, bk, fmt.Sprintf("own-%d.sst", i), run))
				run.Release()
			}
			s := open(b, vfs.Default, Options{CacheBytes: 32 << 20})
			if _, err := s.Attach(b.Context(), ID{Lineage: "aa", Checkpoint: 1}, chain, bk); err != nil {
				b.Fatal(err)
			}
			var key, value []byte
			get := func() {
				key = benchKey(key[:0], rng.Uint64N(entries))
				v, ok, err := s.Get(value[:0], key, math.MaxInt64)
				if err != nil || !ok {
					b.Fatal(ok, err)
				}
				value = v
			}
			for range 10_000 {
				get()
			}
			b.ReportAllocs()
			for b.Loop() {
				get()
			}
		})
	}
}
