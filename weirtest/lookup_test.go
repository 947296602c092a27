package weirtest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/weirtest"
)

// Look-ups of a step are answered in that step, in front of and behind a keyed operator.
func TestLookupsAreAnsweredInTheirStep(t *testing.T) {
	names, asked, fails := map[string]string{"a": "alice", "b": "bob"}, 0, 0
	from := lookup.Each("names", func(_ context.Context, k string) (string, bool, error) {
		if fails > 0 {
			fails--
			return "", false, weir.Retry(errors.New("not now"))
		}
		asked++
		name, ok := names[k]
		return name, ok, nil
	})
	h := weirtest.New(t, func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		self := func(s string) string { return s }
		known := weir.Lookup(in, "name", from, self, func(k, name string, found bool) (string, error) {
			if !found {
				return "", weir.Skip(fmt.Errorf("nobody is called %s", k))
			}
			return name, nil
		}, lookup.Cache(10, time.Minute), lookup.GiveUpAfter(0))
		counts := weir.Aggregate(weir.KeyBy(known, "by-name", self, codec.String), "count", weir.Count[string]())
		length := lookup.Batch("lengths", func(_ context.Context, keys []string, answers []lookup.Answer[int]) error {
			for i, k := range keys {
				answers[i] = lookup.Answer[int]{Value: len(k), Found: true}
			}
			return nil
		})
		out := weir.Lookup(counts, "length", length, func(kv weir.KV[string, int64]) string { return kv.Key }, func(kv weir.KV[string, int64], n int, _ bool) (string, error) {
			return fmt.Sprint(kv.Key, n, kv.Value), nil
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	})
	in, out := weirtest.In[string](h, "in"), weirtest.Out[string](h, "out")
	in.Send("a", "b", "nobody", "a")
	out.Want("alice5 1", "bob3 1", "alice5 2")
	h.Checkpoint()
	names["a"] = "anna"
	h.Advance(time.Minute - 1)
	in.Send("a")
	h.Advance(1)
	in.Send("a")
	out.Want("alice5 1", "bob3 1", "alice5 2", "alice5 3", "anna4 1")
	if asked != 4 {
		t.Errorf("asked %d times, want 4", asked)
	}
	fails = 1 // it is given up at once, and the app goes back to its checkpoint
	h.Crash()
	out.Want("alice5 1", "bob3 1", "alice5 2", "anna4 1", "anna4 2")
}

func TestErrorOfALookupBehindAKeyedOperatorComesInItsStep(t *testing.T) {
	h := weirtest.New(t, func(app *weir.App) {
		self := func(s string) string { return s }
		counts := weir.Aggregate(weir.KeyBy(weir.From(app, "in", source.Values("in", codec.String)), "by", self, codec.String), "count", weir.Count[string]())
		refused := lookup.Each("refused", func(context.Context, string) (string, bool, error) { return "", false, errors.New("wrong type") })
		out := weir.Lookup(counts, "ask", refused, func(kv weir.KV[string, int64]) string { return kv.Key },
			func(_ weir.KV[string, int64], v string, _ bool) (string, error) { return v, nil })
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	})
	err := h.Fails(func() { weirtest.In[string](h, "in").Send("a") })
	var he *weir.HandlerError
	if !errors.As(err, &he) || he.Operator != "ask" {
		t.Errorf("the error is %v", err)
	}
}
