package weir

import (
	"bytes"
	"context"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
)

// chainBatch is the number of records that the runtime hands to a chain at once.
const chainBatch = 512

// fusedChain builds From, Map, Filter and To, which run as nested calls. It drops
// one record of eight.
func fusedChain(t testing.TB) (chain func([]*kgo.Record) error, records []*kgo.Record, produced *int) {
	app := New("chain")
	in := From(app, "in", source.Values("in", codec.Int64))
	doubled := Map(in, "double", func(n int64) (int64, error) { return 2 * n, nil })
	kept := Filter(doubled, "keep", func(n int64) bool { return n%16 != 0 })
	To(kept, "out", kafka.Values("out", kafka.KeyBy(func(n int64) int64 { return n }, codec.Int64), codec.Int64))
	for i := range int64(chainBatch) {
		v, err := codec.Int64.Append(nil, i)
		if err != nil {
			t.Fatal(err)
		}
		records = append(records, &kgo.Record{Topic: "in", Value: v, Offset: i})
	}
	produced = new(int)
	return app.sources.Chain("in", func(*kgo.Record) { *produced++ }), records, produced
}

func BenchmarkChain(b *testing.B) {
	chain, records, _ := fusedChain(b)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += len(records) {
		if err := chain(records); err != nil {
			b.Fatal(err)
		}
	}
}

// What a sink hands to the Kafka client comes from allocations of many records, so
// a batch costs a few, and a record none.
func TestFusedChainAllocatesNothingPerRecord(t *testing.T) {
	chain, records, produced := fusedChain(t)
	var failed error
	perBatch := testing.AllocsPerRun(100, func() {
		if err := chain(records); err != nil {
			failed = err
		}
	})
	if failed != nil {
		t.Fatal(failed)
	}
	if want := 101 * chainBatch * 7 / 8; *produced != want {
		t.Fatalf("%d records came out, want %d", *produced, want)
	}
	const slabs, pieces, calls = 4, 1, 2
	if perBatch > slabs+pieces+calls {
		t.Errorf("a batch of %d records makes %v allocations, want at most %d", chainBatch, perBatch, slabs+pieces+calls)
	}
}

func TestFusedChainWithoutSinkAllocatesNothing(t *testing.T) {
	app := New("chain")
	in := From(app, "in", source.Values("in", codec.Bytes))
	upper := Map(in, "length", func(b []byte) (int, error) { return len(b), nil })
	sum := 0
	Filter(upper, "sum", func(n int) bool { sum += n; return false })
	chain := app.sources.Chain("in", func(*kgo.Record) {})
	records := make([]*kgo.Record, chainBatch)
	for i := range records {
		records[i] = &kgo.Record{Topic: "in", Value: bytes.Repeat([]byte{'x'}, i), Offset: int64(i)}
	}
	var failed error
	perBatch := testing.AllocsPerRun(100, func() {
		if err := chain(records); err != nil {
			failed = err
		}
	})
	if failed != nil || sum == 0 {
		t.Fatalf("sum %d, error %v", sum, failed)
	}
	// The function under guard holds its loop's variables: a few for a batch.
	if perBatch > 4 {
		t.Errorf("a batch of %d records makes %v allocations, want at most 4", chainBatch, perBatch)
	}
}

// lookupChain builds From, Lookup and a filter that drops everything.
func lookupChain(opts ...lookup.Option) (chain func([]*kgo.Record) error, joined *int) {
	app := New("chain")
	in := From(app, "in", source.Values("in", codec.String))
	from := lookup.Batch("a function", func(_ context.Context, keys []string, answers []lookup.Answer[int]) error {
		for i, k := range keys {
			answers[i] = lookup.Answer[int]{Value: len(k), Found: true}
		}
		return nil
	})
	joined = new(int)
	out := Lookup(in, "length", from, func(s string) string { return s }, func(_ string, n int, _ bool) (int, error) {
		*joined += n
		return n, nil
	}, opts...)
	Filter(out, "none", func(int) bool { return false })
	return app.sources.Chain("in", func(*kgo.Record) {}), joined
}

func lookupInput() (records []*kgo.Record) {
	for i := range chainBatch {
		records = append(records, &kgo.Record{Topic: "in", Value: fmt.Appendf(nil, "key %3d", i%100), Offset: int64(i)})
	}
	return records
}

func TestCachedLookupAllocatesNothing(t *testing.T) {
	chain, joined := lookupChain(lookup.Cache(1000, time.Hour))
	records := lookupInput()
	var failed error
	perBatch := testing.AllocsPerRun(100, func() {
		if err := chain(records); err != nil {
			failed = err
		}
	})
	if want := 101 * chainBatch * len("key   0"); failed != nil || *joined != want {
		t.Fatalf("sum %d, want %d, error %v", *joined, want, failed)
	}
	// The function under guard holds its loop's variables: a few for a batch.
	if perBatch > 4 {
		t.Errorf("a batch of %d records makes %v allocations, want at most 4", chainBatch, perBatch)
	}
}

func BenchmarkLookupChain(b *testing.B) {
	for name, opts := range map[string][]lookup.Option{"cached": {lookup.Cache(1000, time.Hour)}, "asked": nil} {
		b.Run(name, func(b *testing.B) {
			chain, _ := lookupChain(opts...)
			records := lookupInput()
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += len(records) {
				if err := chain(records); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
