package redis

import (
	"fmt"
	"testing"

	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/weirtest/conformance"
)

func TestUpsertConforms(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		base := o.Prefix
		var values []pair
		for i := range 10 {
			values = append(values, pair{fmt.Sprint("k", i%4), fmt.Sprint(i)})
		}
		conformance.Sink[pair]{Values: values, New: func(tb testing.TB) conformance.Receiver[pair] {
			o := o
			o.Prefix = base + fresh() + ":"
			cl := rawClient(t, o)
			return conformance.Receiver[pair]{
				Sink: func() sink.Sink[pair] { return Upsert(o, setPair) },
				Contents: func() any {
					held := map[string]string{}
					for i := range 4 {
						k := fmt.Sprint("k", i)
						if v, err := cl.Get(tb.Context(), o.Prefix+k).Result(); err == nil {
							held[k] = v
						}
					}
					return held
				},
				Want: func(vs []pair) any {
					last := map[string]string{}
					for _, p := range vs {
						last[p.key] = p.value
					}
					return last
				},
			}
		}}.Run(t)
	})
}

func TestWriteAheadConforms(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		base := o.Prefix
		conformance.WriteAhead[string]{Values: []string{"a", "b", "c", "d", "e", "f"}, New: func(tb testing.TB) conformance.Receiver[string] {
			o := o
			o.Prefix = base + fresh() + ":"
			cl := rawClient(t, o)
			return conformance.Receiver[string]{
				Sink: func() sink.Sink[string] {
					return WriteAhead(o, func(b *Batch, v string) {
						b.RPush("list", v)
						b.IncrBy("count", 1)
					}, BatchSize(4, 1<<20))
				},
				// The list and the counter may be in different slots of a cluster.
				Contents: func() any {
					list, err := cl.LRange(tb.Context(), o.Prefix+"list", 0, -1).Result()
					if err != nil {
						tb.Fatal(err)
					}
					count, _ := cl.Get(tb.Context(), o.Prefix+"count").Int()
					return fmt.Sprint(list, count)
				},
				Want: func(vs []string) any { return fmt.Sprint(vs, len(vs)) },
			}
		}}.Run(t)
	})
}
