package segment

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"testing"
)

const benchEntries = 50_000

// fill freezes entries of a 16-byte key and a 100-byte value that compresses about
// as well as a small struct does: half of it repeats.
func fill(b *Builder, n int, rng *rand.Rand) {
	for range n {
		id := rng.Uint64() % 5_000_000
		dst := b.BeginPut(uint16(id%128), 1)
		dst = append(dst, "account-"...)
		dst = binary.BigEndian.AppendUint64(dst, id)
		dst = AppendHeader(b.KeyDone(dst), Header{Version: 1})
		for range 6 {
			dst = binary.LittleEndian.AppendUint64(dst, rng.Uint64())
		}
		dst = append(dst, "the same text stands in each of these values ........"[:51]...)
		b.ValueDone(dst)
	}
}

func BenchmarkBuilderFreeze(b *testing.B) {
	var builder Builder
	rng := rand.New(rand.NewPCG(1, 2))
	for range 2 {
		fill(&builder, benchEntries, rng)
		builder.Finish().Release()
	}
	b.ReportAllocs()
	for b.Loop() {
		fill(&builder, benchEntries, rng)
		b.SetBytes(int64(builder.Bytes()))
		builder.Finish().Release()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchEntries, "ns/entry")
}

// BenchmarkRunSort sorts what two busy subtasks freeze at a time, and what one does after a
// long interval.
func BenchmarkRunSort(b *testing.B) {
	for _, n := range []int{7_500, benchEntries} {
		b.Run(fmt.Sprintf("entries=%d", n), func(b *testing.B) {
			var builder Builder
			fill(&builder, n, rand.New(rand.NewPCG(1, 2)))
			benchmarkSort(b, &builder)
		})
	}
}

func benchmarkSort(b *testing.B, builder *Builder) {
	frozen := slices.Clone(builder.entries)
	run := builder.Finish()
	b.ReportAllocs()
	for b.Loop() {
		run.d.entries = append(run.d.entries[:0], frozen...)
		run.d.sort()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(frozen)), "ns/entry")
}

// BenchmarkRunSortMaps sorts entries of large maps, whose keys begin alike with that of the map.
func BenchmarkRunSortMaps(b *testing.B) {
	for _, maps := range []int{1, 20, 200, 2000} {
		b.Run(fmt.Sprintf("maps=%d", maps), func(b *testing.B) {
			var builder Builder
			rng := rand.New(rand.NewPCG(1, 2))
			for range benchEntries {
				id := rng.IntN(maps)
				dst := fmt.Appendf(builder.BeginPut(uint16(id%128), 1), "%08x-account", id*2654435761)
				dst = builder.KeyDone(binary.BigEndian.AppendUint64(dst, rng.Uint64()))
				builder.ValueDone(append(dst, make([]byte, 60)...))
			}
			benchmarkSort(b, &builder)
		})
	}
}

func BenchmarkSegmentWrite(b *testing.B) {
	for _, subtasks := range []int{1, 4} {
		b.Run(fmt.Sprintf("runs=%d", subtasks), func(b *testing.B) {
			var builder Builder
			fill(&builder, benchEntries, rand.New(rand.NewPCG(1, 2)))
			run := builder.Finish()
			runs := []Run{run}
			if subtasks > 1 {
				runs = nil
				for i := range subtasks {
					n := run.Len() / subtasks
					runs = append(runs, Run{&runData{arena: run.d.arena, entries: run.d.entries[i*n : (i+1)*n], pool: run.d.pool}})
				}
			}
			var info Info
			b.SetBytes(int64(run.Bytes()))
			b.ReportAllocs()
			for b.Loop() {
				var err error
				if info, err = Write(io.Discard, runs...); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/benchEntries, "ns/entry")
			b.ReportMetric(float64(info.Bytes)/benchEntries, "B/entry")
		})
	}
}

func BenchmarkScan(b *testing.B) {
	var builder Builder
	fill(&builder, benchEntries, rand.New(rand.NewPCG(1, 2)))
	var buf bytes.Buffer
	if _, err := Write(&buf, builder.Finish()); err != nil {
		b.Fatal(err)
	}
	for _, n := range []int{1, 4} {
		b.Run(fmt.Sprintf("segments=%d", n), func(b *testing.B) {
			r, err := Open(buf.Bytes())
			if err != nil {
				b.Fatal(err)
			}
			readers := make([]*Reader, n)
			for i := range readers {
				readers[i] = r
			}
			b.ReportAllocs()
			for b.Loop() {
				for _, err := range Scan(0, 1<<16, readers...) {
					if err != nil {
						b.Fatal(err)
					}
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(benchEntries*n), "ns/entry")
		})
	}
}

// BenchmarkMerge merges segments of 50,000 entries, as many as are dirty in an epoch of a
// busy app, of which few have the same key.
func BenchmarkMerge(b *testing.B) {
	for _, fanIn := range []int{8, 64} {
		b.Run(fmt.Sprintf("segments=%d", fanIn), func(b *testing.B) { benchmarkMerge(b, fanIn) })
	}
}

func benchmarkMerge(b *testing.B, fanIn int) {
	var files [][]byte
	rng := rand.New(rand.NewPCG(1, 2))
	for range fanIn {
		var builder Builder
		fill(&builder, benchEntries, rng)
		var buf bytes.Buffer
		if _, err := Write(&buf, builder.Finish()); err != nil {
			b.Fatal(err)
		}
		files = append(files, buf.Bytes())
	}
	levels := make([]Level, fanIn)
	for i, f := range files {
		levels[i] = Level{{MaxKG: 0xffff, Entries: -1, Open: func() (*Reader, error) { return OpenAt(bytes.NewReader(f), int64(len(f))) }}}
	}
	var buffer bytes.Buffer
	b.ReportAllocs()
	for b.Loop() {
		err := MergeLevels(MergeOptions{KeyGroups: 128, TargetBytes: 64 << 20, Buffer: &buffer}, func(Merged, []byte) error { return nil }, levels...)
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(benchEntries*fanIn), "ns/entry")
}
