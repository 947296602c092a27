package state

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/state/segment"
)

// nowhere is a backing that holds nothing.
type nowhere struct{}

func (nowhere) Get(dst, _ []byte, _ int64) ([]byte, bool, error) { return dst, false, nil }
func (nowhere) Iter(_, _ []byte) (Iterator, error)               { return nowhere{}, nil }
func (nowhere) First() bool                                      { return false }
func (nowhere) Last() bool                                       { return false }
func (nowhere) SeekGE([]byte) bool                               { return false }
func (nowhere) SeekLT([]byte) bool                               { return false }
func (nowhere) Next() bool                                       { return false }
func (nowhere) Prev() bool                                       { return false }
func (nowhere) Key() []byte                                      { return nil }
func (nowhere) Value() []byte                                    { return nil }
func (nowhere) Err() error                                       { return nil }
func (nowhere) Close() error                                     { return nil }

// benchHandles runs a benchmark in memory and with a backing.
func benchHandles(b *testing.B, f func(b *testing.B, ks *Keyspace[string], attach func(declare func(s Setup)))) {
	for _, backed := range []bool{false, true} {
		b.Run(fmt.Sprintf("backing=%v", backed), func(b *testing.B) {
			cfg := Config{}
			if backed {
				cfg = Config{Backing: nowhere{}, MemoryBytes: 1 << 40, KeyGroups: 1, Committed: func() int64 { return 0 }}
			}
			ks := NewKeyspace(codec.String, cfg)
			b.ReportAllocs()
			f(b, ks, func(declare func(s Setup)) {
				scope := NewScope("op")
				declare(benchSetup{scope})
				ids := make([]uint16, len(scope.columns))
				for i := range ids {
					ids[i] = uint16(i)
				}
				ks.Attach(scope, ids)
			})
		})
	}
}

const benchEntries = 100_000

// benchMap fills a map of one key, or small maps of many keys.
func benchMap(b *testing.B, ks *Keyspace[string], attach func(func(Setup)), perKey int) (m *OfMap[int64, int64], use func(i int) int64) {
	attach(func(s Setup) { m = Map(s, "m", codec.Int64, codec.Int64) })
	names := make([]string, benchEntries/perKey)
	for i := range names {
		names[i] = fmt.Sprintf("key-%012d", i)
	}
	order := rand.New(rand.NewPCG(1, 2)).Perm(benchEntries)
	use = func(i int) int64 {
		n := order[i%benchEntries]
		ks.Use(names[n/perKey], 0)
		return int64(n % perKey)
	}
	for i := range benchEntries {
		m.Put(use(i), 1)
	}
	b.ResetTimer()
	return m, use
}

func BenchmarkMapUpdate(b *testing.B) {
	for _, perKey := range []int{4, benchEntries} {
		b.Run(fmt.Sprintf("entries=%d", perKey), func(b *testing.B) {
			benchHandles(b, func(b *testing.B, ks *Keyspace[string], attach func(func(Setup))) {
				m, use := benchMap(b, ks, attach, perKey)
				for i := range b.N {
					k := use(i)
					m.Put(k, m.Get(k)+1)
				}
			})
		})
	}
}

// BenchmarkMapPutNew puts entries that were not there.
func BenchmarkMapPutNew(b *testing.B) {
	benchHandles(b, func(b *testing.B, ks *Keyspace[string], attach func(func(Setup))) {
		m, _ := benchMap(b, ks, attach, benchEntries)
		ks.Use("another", 0)
		rng := rand.New(rand.NewPCG(1, 2))
		for range b.N {
			m.Put(int64(rng.Uint64()), 1)
		}
	})
}

func BenchmarkMapIterate(b *testing.B) {
	benchHandles(b, func(b *testing.B, ks *Keyspace[string], attach func(func(Setup))) {
		m, use := benchMap(b, ks, attach, benchEntries)
		use(0)
		for n := 0; n < b.N; {
			for range m.All() {
				n++
			}
		}
	})
}

func BenchmarkMapFreeze(b *testing.B) {
	benchHandles(b, func(b *testing.B, ks *Keyspace[string], attach func(func(Setup))) {
		m, use := benchMap(b, ks, attach, 4)
		var builder segment.Builder
		at, id := 0, int64(0)
		for n := 0; n < b.N; n += benchEntries / 2 {
			b.StopTimer()
			for range benchEntries / 2 {
				m.Put(use(at), int64(n))
				at++
			}
			b.StartTimer()
			id++
			if err := ks.Freeze(&builder, id); err != nil {
				b.Fatal(err)
			}
			builder.Finish().Release()
		}
	})
}

func BenchmarkListAppend(b *testing.B) {
	benchHandles(b, func(b *testing.B, ks *Keyspace[string], attach func(func(Setup))) {
		var l *OfList[int64]
		attach(func(s Setup) { l = List(s, "l", codec.Int64) })
		ks.Use("k", 0)
		b.ResetTimer()
		for i := range b.N {
			l.Append(int64(i))
		}
	})
}

// BenchmarkListQueue appends an element and removes the first one of some hundred.
func BenchmarkListQueue(b *testing.B) {
	benchHandles(b, func(b *testing.B, ks *Keyspace[string], attach func(func(Setup))) {
		var l *OfList[int64]
		attach(func(s Setup) { l = List(s, "l", codec.Int64) })
		var builder segment.Builder
		ks.Use("k", 0)
		for range 300 {
			l.Append(1)
		}
		b.ResetTimer()
		for i := range b.N {
			l.Append(int64(i))
			l.PopFront()
			if i%10_000 == 9_999 {
				if err := ks.Freeze(&builder, int64(i)); err != nil {
					b.Fatal(err)
				}
				builder.Finish().Release()
				ks.Use("k", 0)
			}
		}
	})
}

func TestMapsInUseAllocateNothing(t *testing.T) {
	ks := NewKeyspace(codec.String, Config{})
	scope := NewScope("op")
	m := Map(benchSetup{scope}, "m", codec.String, codec.Int64)
	l := List(benchSetup{scope}, "l", codec.Int64)
	ks.Attach(scope, []uint16{1, 2})
	names := make([]string, 1000)
	for i := range names {
		names[i] = fmt.Sprintf("a name of more than a few bytes %d", i)
	}
	var builder segment.Builder
	var failed error
	epoch := func() {
		ks.Use("k", 0)
		for i, name := range names {
			m.Put(name, m.Get(name)+1)
			if l.Len() <= i {
				l.Append(0)
			}
			l.Set(i, 1)
		}
		if err := ks.Freeze(&builder, 1); err != nil || builder.Len() != 2*len(names) {
			failed = fmt.Errorf("%d entries were frozen, %w", builder.Len(), err)
		}
		builder.Finish().Release()
	}
	epoch()
	epoch()
	if n := testing.AllocsPerRun(20, epoch); n > 2 {
		t.Errorf("an epoch of %d updates makes %v allocations, want at most 2 for the run that it hands out", 2*len(names), n)
	}
	if failed != nil {
		t.Fatal(failed)
	}
}
