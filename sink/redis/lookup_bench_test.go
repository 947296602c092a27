package redis_test

import (
	"fmt"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/processor"
	"github.com/weirstream/weir/sink/redis"
)

// BenchmarkLookup compares a record that is looked up by GET, in a chain as a source
// subtask runs it, with the same GET in pipelines of the bare client, one after another
// and four at a time.
func BenchmarkLookup(b *testing.B) {
	const keys, slice, batch = 10_000, 1 << 14, lookup.DefaultBatchSize
	s := redistest.Shared(b)
	cl := s.Client(b)
	var names []string
	for i := range keys {
		names = append(names, fmt.Sprint("bench:", i))
		if err := cl.Set(b.Context(), names[i], "a value of some length", 0).Err(); err != nil {
			b.Fatal(err)
		}
	}
	pipeline := func(b *testing.B, from int) {
		pipe := cl.Pipeline()
		cmds := make([]*goredis.StringCmd, batch)
		for i := range cmds {
			cmds[i] = pipe.Get(b.Context(), names[(from+i)%keys])
		}
		if _, err := pipe.Exec(b.Context()); err != nil {
			b.Error(err)
		}
		for _, c := range cmds {
			if c.Val() == "" {
				b.Error("empty")
			}
		}
	}
	b.Run("bare/1", func(b *testing.B) {
		b.ReportAllocs()
		for n := 0; n < b.N; n += batch {
			pipeline(b, n)
		}
	})
	b.Run("bare/4", func(b *testing.B) {
		b.ReportAllocs()
		turns, done := make(chan int), make(chan struct{})
		for range 4 {
			go func() {
				for n := range turns {
					pipeline(b, n)
				}
				done <- struct{}{}
			}()
		}
		for n := 0; n < b.N; n += batch {
			turns <- n
		}
		close(turns)
		for range 4 {
			<-done
		}
	})
	for _, how := range []struct {
		name string
		opts []lookup.Option
	}{
		{"lookup", nil},
		{"lookup/cached", []lookup.Option{lookup.Cache(keys, time.Hour)}},
	} {
		b.Run(how.name, func(b *testing.B) {
			var st processor.Sources
			joined := 0
			l := processor.Lookup[string, string, string]{ID: "ask", Key: func(s string) string { return s }, How: lookup.NewSettings(how.opts),
				From: redis.Get(redis.Options{Addrs: []string{s.Addr}}, func(s string) string { return s }, codec.String)}
			st.Add("in", "in", func(s *processor.Subtask) func(*kgo.Record) {
				take := l.Build(s, func(*processor.Subtask, *processor.Operator) func(string, string, bool) {
					return func(_, v string, found bool) {
						if found && v != "" {
							joined++
						}
					}
				})
				return func(r *kgo.Record) { take(string(r.Value)) }
			})
			chain := st.Chain("in", func(*kgo.Record) {})
			var rs []*kgo.Record
			for i := range slice {
				rs = append(rs, &kgo.Record{Topic: "in", Offset: int64(i), Value: []byte(names[i%keys])})
			}
			if err := chain(rs); err != nil { // connect, and fill the cache
				b.Fatal(err)
			}
			joined = 0
			b.ReportAllocs()
			b.ResetTimer()
			n := 0
			for ; n < b.N; n += slice {
				if err := chain(rs); err != nil {
					b.Fatal(err)
				}
			}
			if joined != n {
				b.Errorf("%d of %d were found", joined, n)
			}
			b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/record")
		})
	}
}
