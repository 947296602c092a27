package weir_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
	"github.com/weirstream/weir/weirtest"
)

// rated emits each event with the rate that the rules name, from a table that is fed by
// a broadcast stream. The KeyBy comes before the rules are read.
func rated(app *weir.App) {
	events := weir.From(app, "events", source.Values("events", codec.String))
	byKey := weir.KeyBy(events, "by-key", func(s string) string { return s }, codec.String)
	lines := weir.From(app, "rules", source.Values("rules", codec.String))
	rules := weir.Broadcast(weir.Map(lines, "trim", func(s string) (string, error) { return strings.TrimSpace(s), nil }))
	out := weir.Process(byKey, "rate", func(s *weir.Setup) weir.Handler[string, string, string] {
		table := state.Broadcast(s, "table", codec.String, codec.String)
		seen := state.Value(s, "seen", codec.Int64)
		rules.On(s, func(r string) error {
			k, v, ok := strings.Cut(r, "=")
			if !ok {
				return weir.Skip(fmt.Errorf("%q is no rule", r))
			}
			if v == "" {
				table.Delete(k)
			} else {
				table.Put(k, v)
			}
			return nil
		})
		return weir.OnRecord(func(c *weir.Context[string, string], v string) error {
			seen.Set(seen.Get() + 1)
			c.Emit(fmt.Sprintf("%s %d %s/%d", v, seen.Get(), table.Get("rate"), table.Len()))
			return nil
		})
	})
	weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
}

func TestBroadcastReachesEverySubtaskAndSurvives(t *testing.T) {
	brokers := broker(t, 2, "events", "rules", "out")
	store, dir := checkpoint.NewMem(), t.TempDir()
	keys := make([]string, 40)
	for i := range keys {
		keys[i] = fmt.Sprintf("key-%02d", i)
	}
	want := map[string]int{}
	seen := 0
	for i, c := range []struct {
		backend     pebble.Backend
		parallelism int
		rules       []string
		table       string // what every event is rated with from the next run on
	}{
		{pebble.Backend{}, 3, []string{"rate=1", "fee=2", " rate=3 ", "nonsense"}, "3/2"},
		{pebble.Dir(dir), 4, nil, "3/2"},
		{pebble.Dir(dir), 2, []string{"fee="}, "3/1"},
		{pebble.Backend{}, 5, []string{"rate=4"}, "4/1"},
		{pebble.Dir(dir), 1, nil, "4/1"},
	} {
		// What the events of this run see is what the runs before left, or what this one
		// adds: so rules and events take turns.
		for _, input := range [][2]any{{"rules", c.rules}, {"events", keys}} {
			values := input[1].([]string)
			if len(values) == 0 {
				continue
			}
			// All rules have one key, so they are in one partition.
			produceKeyed(t, brokers, input[0].(string), values, func(v string) string {
				if input[0] == "rules" {
					return ""
				}
				return v
			})
			app := weir.New("rated", weir.Brokers(brokers...), weir.Store(store), weir.InstanceID("a"), weir.StateBackend(c.backend),
				weir.Parallelism(c.parallelism), weir.CheckpointEvery(5*time.Millisecond), weir.Drain())
			rated(app)
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			err := app.Run(ctx)
			cancel()
			if err != nil {
				t.Fatalf("run %d, %s: %v", i, input[0], err)
			}
		}
		seen++
		for _, k := range keys {
			want[fmt.Sprintf("%s %d %s", k, seen, c.table)]++
		}
		got := map[string]int{}
		for _, r := range consume(t, brokers, "out", seen*len(keys)) {
			got[string(r.Value)]++
		}
		for v := range want {
			if got[v] != 1 {
				t.Fatalf("run %d: %q came %d times; all of it: %v", i, v, got[v], got)
			}
		}
	}
}

// A broadcast state has no keys, so one that was built without an app names no codec of theirs.
func TestAnAppStartsFromABroadcastStateThatWasBuiltOffline(t *testing.T) {
	url := "file://" + t.TempDir()
	store, err := checkpoint.OpenStore(url)
	if err != nil {
		t.Fatal(err)
	}
	b, err := offline.New("rated", weir.DefaultKeyGroups, offline.BuildOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	table, err := offline.BroadcastState(b, "rate", "table", codec.String, codec.String)
	if err == nil {
		err = table.Put("rate", "7", offline.Meta{})
	}
	if err == nil {
		_, err = b.Write(t.Context(), store, "rules")
	}
	if err != nil {
		t.Fatal(err)
	}
	brokers := broker(t, 1, "events", "rules", "out")
	produce(t, brokers, "events", "a")
	if err := start(t, "rated", brokers, rated, weir.Store(checkpoint.NewMem()), weir.FromSavepoint(url, "rules"), weir.Drain(), fast).wait(); err != nil {
		t.Fatal(err)
	}
	if got := string(consume(t, brokers, "out", 1)[0].Value); got != "a 1 7/1" {
		t.Errorf("got %q", got)
	}
}

func TestBroadcastMisuseIsNamed(t *testing.T) {
	build := func(topology func(app *weir.App)) error {
		app := weir.New("app", weir.Brokers("localhost:1"), weir.Store(checkpoint.NewMem()), weir.InstanceID("a"))
		topology(app)
		return app.Validate()
	}
	handler := func(c *weir.Context[string, string], v string) error { return nil }
	setup := func(prepare func(s *weir.Setup)) func(s *weir.Setup) weir.Handler[string, string, string] {
		return func(s *weir.Setup) weir.Handler[string, string, string] {
			prepare(s)
			return weir.OnRecord(handler)
		}
	}
	key := func(s string) string { return s }
	for _, c := range []struct {
		name     string
		topology func(app *weir.App)
		want     string
	}{
		{"itself", func(app *weir.App) {
			byKey := weir.KeyBy(weir.From(app, "in", source.Values("in", codec.String)), "by-key", key, codec.String)
			first := weir.Process(byKey, "first", setup(func(*weir.Setup) {}))
			rules := weir.Broadcast(first)
			second := weir.Process(byKey, "second", setup(func(s *weir.Setup) { rules.On(s, func(string) error { return nil }) }))
			weir.To(second, "out", kafka.Values("out", kafka.NoKey, codec.String))
		}, `operator "second": hears operator "first", which is behind the same KeyBy "by-key": it would feed itself`},
		{"nil", func(app *weir.App) {
			in := weir.From(app, "in", source.Values("in", codec.String))
			rules := weir.Broadcast(weir.From(app, "rules", source.Values("rules", codec.String)))
			out := weir.Process(weir.KeyBy(in, "by-key", key, codec.String), "rate", setup(func(s *weir.Setup) { rules.On(s, nil) }))
			weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
		}, `operator "rate": the function that hears operator "rules" is nil`},
		{"unheard", func(app *weir.App) {
			in := weir.From(app, "in", source.Values("in", codec.String))
			weir.Broadcast(weir.From(app, "rules", source.Values("rules", codec.String)))
			weir.To(in, "out", kafka.Values("out", kafka.NoKey, codec.String))
		}, `operator "rules": nothing uses its output`},
	} {
		t.Run(c.name, func(t *testing.T) {
			if err := build(c.topology); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
	for _, c := range []struct {
		name string
		bad  func(total *state.OfValue[int64], table *state.OfBroadcast[string, string]) (hear, record func())
		want string
	}{
		{"state of a key in the broadcast handler", func(total *state.OfValue[int64], table *state.OfBroadcast[string, string]) (func(), func()) {
			return func() { total.Set(1) }, func() {}
		}, "no key is current"},
		{"broadcast state written for a record", func(total *state.OfValue[int64], table *state.OfBroadcast[string, string]) (func(), func()) {
			return func() {}, func() { table.Put("a", "b") }
		}, "written only by the handler of the broadcast stream"},
	} {
		t.Run(c.name, func(t *testing.T) {
			brokers := broker(t, 1, "in", "rules", "out")
			produce(t, brokers, "in", "x")
			produce(t, brokers, "rules", "y")
			app := weir.New("app", weir.Brokers(brokers...), weir.Store(checkpoint.NewMem()), weir.InstanceID("a"), weir.Drain())
			in := weir.From(app, "in", source.Values("in", codec.String))
			rules := weir.Broadcast(weir.From(app, "rules", source.Values("rules", codec.String)))
			out := weir.Process(weir.KeyBy(in, "by-key", key, codec.String), "rate", func(s *weir.Setup) weir.Handler[string, string, string] {
				hear, record := c.bad(state.Value(s, "total", codec.Int64), state.Broadcast(s, "table", codec.String, codec.String))
				rules.On(s, func(string) error { hear(); return nil })
				return weir.OnRecord(func(*weir.Context[string, string], string) error { record(); return nil })
			})
			weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
			if err := app.Run(t.Context()); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("got %v, want %s", err, c.want)
			}
		})
	}
}

func TestWhatABroadcastHandlerSkipsIsReportedOnce(t *testing.T) {
	key := func(string) string { return "k" }
	topology := func(hear func(string) error) func(*weir.App) {
		return func(app *weir.App) {
			// Each value goes to who hears it, and so does one that a timer emits.
			byKey := weir.KeyBy(weir.From(app, "in", source.Values("in", codec.String)), "by-key", key, codec.String)
			rules := weir.Broadcast(weir.Process(byKey, "rules", func(s *weir.Setup) weir.Handler[string, string, string] {
				timers := state.ProcessingTimers(s)
				return weir.OnRecord(func(c *weir.Context[string, string], v string) error {
					c.Emit(v)
					timers.Set(time.UnixMilli(0))
					return nil
				}).OnTimer(func(c *weir.Context[string, string], _ weir.Timer) error {
					c.Emit("of a timer")
					return nil
				})
			}))
			events := weir.KeyBy(weir.From(app, "events", source.Values("events", codec.String)), "by-event", key, codec.String)
			weir.To(weir.Process(events, "rate", func(s *weir.Setup) weir.Handler[string, string, string] {
				rules.On(s, hear)
				return weir.OnRecord(func(*weir.Context[string, string], string) error { return nil })
			}), "out", kafka.Values("out", kafka.NoKey, codec.String))
		}
	}
	for name, c := range map[string]struct {
		hear func(string) error
		want int
	}{
		"an error": {func(string) error { return weir.Skip(errors.New("no")) }, 2},
		"a panic of a record to skip": {func(v string) error {
			if v == "of a timer" {
				return nil
			}
			panic("no")
		}, 1},
	} {
		t.Run(name, func(t *testing.T) {
			h := weirtest.New(t, topology(c.hear), weir.Parallelism(3), weir.SkipRecords("in/0@0"))
			weirtest.In[string](h, "in").Send("rule")
			if got := h.Skipped(); len(got) != c.want {
				t.Errorf("%d reports, want %d", len(got), c.want)
			}
		})
	}
}
