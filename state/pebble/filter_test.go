package pebble

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestFiltersAreKeptWithinTheirShareOfTheCache makes more segments than there is room for
// filters, asks for keys that each of them has and lacks, and drops the segments.
func TestFiltersAreKeptWithinTheirShareOfTheCache(t *testing.T) {
	const segments, keys = 40, 2000
	b := newDirBucket(t, vfs.Default, t.TempDir())
	s := open(t, vfs.Default, Options{CacheBytes: segments * keys * 10 / 8 * 2})
	h := newHistory(t, b, "aa")
	h.attach(s)
	name := func(n, k int) string { return fmt.Sprintf("%03d-%05d", n, k) }
	for n := range segments {
		var changes []change
		for k := range keys {
			changes = append(changes, set(7, name(n, k), name(n, k)))
		}
		h.ingest(s, changes...)
	}
	ask := func() {
		t.Helper()
		for n := range segments {
			for k := 0; k < keys; k += 100 {
				v, ok, err := s.Get(nil, keyOf(7, name(n, k)), math.MaxInt64)
				if err != nil || !ok || string(v) != name(n, k) {
					t.Fatalf("got %q, %v, %v of %s", v, ok, err, name(n, k))
				}
				if _, ok, err := s.Get(nil, keyOf(7, name(n, k)+"x"), math.MaxInt64); err != nil || ok {
					t.Fatal("a key that was never written", ok, err)
				}
			}
		}
	}
	ask()
	pinned := 0
	for _, tb := range s.current.Load().tables {
		if p := tb.filter.pinned.Load(); p != nil {
			pinned++
			if !tb.filter.excludes(bloomHash(keyOf(7, name(0, 0)))) && !tb.filter.excludes(bloomHash(keyOf(7, "nobody"))) {
				t.Errorf("the filter of %s excludes nothing", tb.seg.Object)
			}
		}
	}
	if kept := s.cache.pinned; pinned == 0 || pinned == segments || kept == 0 || kept*pinnedShare > s.opts.CacheBytes {
		t.Errorf("%d filters of %d are kept, %d bytes; want some, within half of %d", pinned, segments, kept, s.opts.CacheBytes)
	}
	ask()

	var gone []change
	for n := range segments {
		for k := range keys {
			gone = append(gone, del(7, name(n, k)))
		}
	}
	h.ingest(s, gone...)
	h.merge(0, len(h.chain))
	h.ingest(s, set(7, "last", "1"))
	if kept := s.cache.pinned; kept != 0 {
		t.Errorf("%d bytes of filters are kept of segments that are closed", kept)
	}
	if _, ok, err := s.Get(nil, keyOf(7, name(1, 0)), math.MaxInt64); err != nil || ok {
		t.Fatal("a key that was deleted", ok, err)
	}
}

// TestBloomFiltersAreReadAsTheirWriterMeantThem compares every answer with that of the
// library that writes the filters, for keys of all lengths and bytes of both signs.
func TestBloomFiltersAreReadAsTheirWriterMeantThem(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	random := func() []byte {
		b := make([]byte, rng.IntN(40))
		for i := range b {
			b[i] = byte(rng.Uint32())
		}
		return b
	}
	for _, keys := range []int{1, 2, 100, 30_000} {
		for _, bits := range []int{1, 4, 10, 32} {
			w := bloom.FilterPolicy(bits).NewWriter(sstable.TableFilter)
			var written [][]byte
			for range keys {
				written = append(written, random())
				w.AddKey(written[len(written)-1])
			}
			filter := w.Finish(nil)
			f, ok := parseBloom(filter)
			if !ok {
				t.Fatalf("%d keys of %d bits: a filter of %d bytes is not in the format", keys, bits, len(filter))
			}
			excluded := 0
			for i := range 2000 {
				key := random()
				if i%2 == 0 {
					key = written[rng.IntN(keys)]
				}
				got, want := f.mayContain(bloomHash(key)), filterPolicy.MayContain(sstable.TableFilter, filter, key)
				if got != want {
					t.Fatalf("%d keys of %d bits, key %x: %v, the writer says %v", keys, bits, key, got, want)
				}
				if !got {
					excluded++
				}
			}
			if excluded == 0 {
				t.Errorf("%d keys of %d bits exclude nothing", keys, bits)
			}
		}
	}
	for _, b := range [][]byte{nil, make([]byte, 5), make([]byte, 64), append(make([]byte, 64), 6, 2, 0, 0, 0), append(make([]byte, 64), 6, 0, 0, 0, 0)} {
		if _, ok := parseBloom(b); ok {
			t.Errorf("%x is taken for a filter", b)
		}
	}
}

// BenchmarkExclude asks the filters of tables for keys that none of them has.
func BenchmarkExclude(b *testing.B) {
	for _, depth := range []int{8, 16, 32, 64} {
		b.Run(fmt.Sprintf("depth=%d", depth), func(b *testing.B) {
			rng := rand.New(rand.NewPCG(1, 2))
			var tables []*table
			var key []byte
			for range depth {
				w := bloom.FilterPolicy(10).NewWriter(sstable.TableFilter)
				for range 300_000 {
					key = binary.LittleEndian.AppendUint64(key[:0], rng.Uint64())
					w.AddKey(key)
				}
				t := &table{}
				f, ok := parseBloom(w.Finish(nil))
				if !ok {
					b.Fatal("not in the format")
				}
				t.filter.pinned.Store(f)
				tables = append(tables, t)
			}
			b.ReportAllocs()
			for b.Loop() {
				key = append(binary.LittleEndian.AppendUint64(key[:0], rng.Uint64()), "more"...)
				hash := bloomHash(key)
				for _, t := range tables {
					t.filter.excludes(hash)
				}
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*depth), "ns/filter")
		})
	}
}
