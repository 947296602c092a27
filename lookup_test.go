package weir_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// beforeColon is the key of a value "key:rest".
func beforeColon(s string) string {
	k, _, _ := strings.Cut(s, ":")
	return k
}

// joined is what a value becomes: "key:rest=found", or "key:rest=?".
func joined(s, v string, found bool) (string, error) {
	if !found {
		v = "?"
	}
	return s + "=" + v, nil
}

// asks looks up each value of topic "in" and writes what comes of it to "out".
func asks(from lookup.Source[string, string], opts ...lookup.Option) func(*weir.App) {
	return func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		out := weir.Lookup(in, "ask", from, beforeColon, joined, opts...)
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
}

// upper is a source that knows all keys.
func upper(f func()) lookup.Source[string, string] {
	return lookup.Batch("upper case", func(ctx context.Context, keys []string, answers []lookup.Answer[string]) error {
		f()
		for i, k := range keys {
			answers[i] = lookup.Answer[string]{Value: strings.ToUpper(k), Found: true}
		}
		return nil
	})
}

// drained runs a topology until its input is drained.
func drained(t *testing.T, name string, brokers []string, topology func(*weir.App), opts ...weir.Option) *running {
	t.Helper()
	r := start(t, name, brokers, topology, append([]weir.Option{weir.Store(checkpoint.NewMem()), weir.Drain()}, opts...)...)
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	return r
}

// committedValues are all committed values of a topic, by partition and then in order.
func committedValues(t *testing.T, brokers []string, topic string) []string {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListCommittedOffsets(t.Context(), topic)
	if err != nil {
		t.Fatal(err)
	}
	left := int64(0)
	at := map[int32]kgo.Offset{}
	end := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		at[o.Partition], end[o.Partition] = kgo.NewOffset().At(0), o.Offset
		if o.Offset > 0 {
			left++
		}
	})
	reader, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: at}),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords())
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	byPartition := map[int32][]string{}
	for left > 0 {
		fs := reader.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatalf("reading %s: %v", topic, err)
		}
		fs.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				byPartition[r.Partition] = append(byPartition[r.Partition], string(r.Value))
			}
			if r.Offset == end[r.Partition]-1 {
				left--
			}
		})
	}
	var all []string
	for p := range int32(len(end)) {
		all = append(all, byPartition[p]...)
	}
	return all
}

func TestLookupJoinsInTheOrderOfTheInput(t *testing.T) {
	var in, want []string
	for i := range 2000 {
		v := fmt.Sprintf("k%d:%d", i%300, i)
		in = append(in, v)
		want = append(want, v+"=K"+strconv.Itoa(i%300))
	}
	for name, opts := range map[string][]lookup.Option{
		"batches":  {lookup.BatchSize(7), lookup.InFlight(5)},
		"default":  nil,
		"one":      {lookup.BatchSize(1), lookup.InFlight(1)},
		"cached":   {lookup.BatchSize(10), lookup.Cache(100, time.Hour)},
		"few wait": {lookup.BatchSize(10), lookup.Waiting(3)},
	} {
		t.Run(name, func(t *testing.T) {
			brokers := broker(t, 1, "in", "out")
			produce(t, brokers, "in", in...)
			// Calls are answered out of order.
			jitter := func() { time.Sleep(rand.N(200 * time.Microsecond)) }
			drained(t, "app", brokers, asks(upper(jitter), opts...))
			if got := committedValues(t, brokers, "out"); !slices.Equal(got, want) {
				t.Errorf("%d values, want %d, or in another order", len(got), len(want))
			}
		})
	}
}

func TestCallsUnderWayAreBounded(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	var in []string
	for i := range 100 {
		in = append(in, fmt.Sprint("k", i))
	}
	produce(t, brokers, "in", in...)
	const allowed = 3
	var under, most atomic.Int64
	full := make(chan struct{}) // closed when as many are under way as may be
	var once sync.Once
	from := lookup.Each("a slow service", func(ctx context.Context, k string) (string, bool, error) {
		n := under.Add(1)
		defer under.Add(-1)
		raise(&most, n)
		if n == allowed {
			once.Do(func() { close(full) })
		}
		select {
		case <-full:
		case <-ctx.Done():
		}
		return k, true, ctx.Err()
	})
	drained(t, "app", brokers, asks(from, lookup.InFlight(allowed)))
	if most.Load() != allowed {
		t.Errorf("%d calls were under way at once, want %d", most.Load(), allowed)
	}
	if got := committedValues(t, brokers, "out"); len(got) != len(in) {
		t.Errorf("%d values, want %d", len(got), len(in))
	}
}

// A source that does not answer holds the input: no more records are taken than may wait.
func TestSlowLookupsHoldTheInput(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	var in []string
	for i := range 3000 {
		in = append(in, fmt.Sprint("k", i))
	}
	produce(t, brokers, "in", in...)
	const waiting = 50
	var taken, most atomic.Int64
	crowd := make(chan struct{})
	from := lookup.Batch("a slow service", func(ctx context.Context, keys []string, answers []lookup.Answer[string]) error {
		select {
		case <-crowd: // the first calls wait until all that may wait do
		case <-ctx.Done():
			return ctx.Err()
		}
		for i, k := range keys {
			answers[i] = lookup.Answer[string]{Value: k, Found: true}
		}
		return nil
	})
	var left atomic.Int64
	topology := func(app *weir.App) {
		vs := weir.From(app, "in", source.Values("in", codec.String))
		key := func(s string) string {
			n := taken.Add(1) - left.Load()
			if n == waiting {
				select {
				case <-crowd:
				default:
					close(crowd)
				}
			}
			if n > most.Load() {
				most.Store(n)
			}
			return s
		}
		out := weir.Lookup(vs, "ask", from, key, func(s, v string, found bool) (string, error) {
			left.Add(1)
			return joined(s, v, found)
		}, lookup.BatchSize(8), lookup.InFlight(10), lookup.Waiting(waiting))
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
	drained(t, "app", brokers, topology, weir.Parallelism(1), weir.CheckpointEvery(0), weir.AfterRecords(1e9))
	if most.Load() != waiting {
		t.Errorf("%d waited, want %d", most.Load(), waiting)
	}
	if got := committedValues(t, brokers, "out"); len(got) != len(in) {
		t.Errorf("%d values, want %d", len(got), len(in))
	}
}

func TestCachedAnswersExpireByTheClock(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	m := clock.NewManual(time.Now())
	var mu sync.Mutex
	table, calls := map[string]string{"a": "1"}, 0
	from := lookup.Each("a table", func(_ context.Context, k string) (string, bool, error) {
		mu.Lock()
		defer mu.Unlock()
		calls++
		v, ok := table[k]
		return v, ok, nil
	})
	set := func(k, v string) {
		mu.Lock()
		defer mu.Unlock()
		table[k] = v
	}
	start(t, "app", brokers, asks(from, lookup.Cache(100, time.Minute)), weir.Store(checkpoint.NewMem()), weir.UseClock(m))
	seen := 0
	send := func(want ...string) {
		t.Helper()
		var in []string
		for _, w := range want {
			in = append(in, beforeColon(strings.ReplaceAll(w, "=", ":")))
		}
		produce(t, brokers, "in", in...)
		seen += len(want)
		rs := consume(t, brokers, "out", seen)
		for i, w := range want {
			if got := string(rs[seen-len(want)+i].Value); got != w {
				t.Errorf("got %q, want %q", got, w)
			}
		}
	}
	send("a=1", "b=?")
	set("a", "2")
	set("b", "2")
	m.Advance(time.Minute - time.Nanosecond)
	send("a=1", "b=?")
	if mu.Lock(); calls != 2 {
		t.Errorf("%d calls, want 2", calls)
	}
	mu.Unlock()
	m.Advance(time.Nanosecond)
	send("a=2", "b=2")
}

// answersLate is a source whose first call takes its whole time.
func answersLate() lookup.Source[string, string] {
	var first sync.Once
	return lookup.Batch("a source that is slow at first", func(ctx context.Context, keys []string, answers []lookup.Answer[string]) error {
		first.Do(func() { <-ctx.Done() })
		if ctx.Err() != nil {
			return ctx.Err()
		}
		for i, k := range keys {
			answers[i] = lookup.Answer[string]{Value: strings.ToUpper(k), Found: true}
		}
		return nil
	})
}

// The app fails on the first record that has its answer. If a checkpoint was committed
// while the records waited, they must have been complete before; if not, they come again.
func TestWaitingRecordsAreCompleteBeforeTheBarrier(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a", "b", "c")
	var failed sync.Once
	topology := func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		asked := weir.Lookup(in, "ask", answersLate(), beforeColon, joined, lookup.Timeout(time.Second))
		out := weir.Map(asked, "fail", func(s string) (string, error) {
			var err error
			failed.Do(func() { err = weir.Retry(errors.New("once")) })
			return s, err
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
	drained(t, "app", brokers, topology)
	want := []string{"a=A", "b=B", "c=C"}
	if got := committedValues(t, brokers, "out"); !slices.Equal(got, want) {
		t.Errorf("committed %q, want %q", got, want)
	}
}

// Event time must not pass a record that waits: behind the look-up it would be late.
func TestWatermarkDoesNotOvertakeRecordsThatWait(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a@1", "a@1000", "a@2000")
	topology := func(app *weir.App) {
		src := source.Source[sighting]{Topic: "in", Decode: func(r *kgo.Record) (sighting, error) { return parseSighting(r.Value) }}
		in := weir.From(app, "in", src, weir.EventTime(sighting.at))
		asked := weir.Lookup(in, "ask", answersLate(), func(s sighting) string { return s.key }, func(s sighting, v string, _ bool) (sighting, error) {
			return sighting{v, s.ms}, nil
		}, lookup.Timeout(500*time.Millisecond))
		byKey := weir.KeyBy(asked, "by-key", func(s sighting) string { return s.key }, codec.String)
		out := weir.Process(byKey, "remind", func(s *weir.Setup) weir.Handler[string, sighting, string] {
			timers := state.EventTimers(s)
			return weir.OnRecord(func(c *weir.Context[string, string], v sighting) error {
				if !c.EventTime().Equal(v.at()) {
					return fmt.Errorf("event time is %v, want %v", c.EventTime(), v.at())
				}
				timers.Set(v.at().Add(after * time.Millisecond))
				c.Emit(fmt.Sprintf("%s@%d late %v", v.key, v.ms, c.Late()))
				return nil
			}).OnTimer(func(c *weir.Context[string, string], tm weir.Timer) error {
				c.Emit(fmt.Sprintf("%s fired %d", c.Key(), tm.At.UnixMilli()))
				return nil
			})
		})
		// Timers emit as well, behind what waits.
		again := weir.Lookup(out, "ask-again", upper(func() {}), beforeColon, func(s, _ string, _ bool) (string, error) { return s, nil })
		weir.To(again, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
	drained(t, "app", brokers, topology, weir.CheckpointEvery(5*time.Minute))
	want := []string{"A@1 late false", "A@1000 late false", "A@2000 late false", "A fired 101", "A fired 1100", "A fired 2100"}
	if got := committedValues(t, brokers, "out"); !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestStopCompletesWhatWaits(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a", "b", "c")
	asked, answer := make(chan struct{}), make(chan struct{})
	var keys atomic.Int64
	from := lookup.Each("a slow service", func(ctx context.Context, k string) (string, bool, error) {
		if keys.Add(1) == 3 {
			close(asked)
		}
		select {
		case <-answer:
		case <-ctx.Done():
		}
		return k, true, ctx.Err()
	})
	r := start(t, "app", brokers, asks(from), weir.Store(checkpoint.NewMem()), weir.CheckpointEvery(0), weir.AfterRecords(1e9))
	<-asked
	r.stop()
	await(r, 1, any1[event.CheckpointBegun])
	close(answer)
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	if got := committedValues(t, brokers, "out"); !slices.Equal(got, []string{"a=a", "b=b", "c=c"}) {
		t.Errorf("committed %q", got)
	}
}

func TestErrorsOfKeysFollowTheirPolicy(t *testing.T) {
	from := lookup.Each("a table", func(_ context.Context, k string) (string, bool, error) {
		if k == "bad" {
			return "", false, errors.New("of the wrong type")
		}
		return strings.ToUpper(k), true, nil
	})
	for name, c := range map[string]struct {
		opts []lookup.Option
		want []string // that are committed
		dead []string
		err  string
	}{
		"stop":        {err: `operator "ask" failed on in/0 at offset 1: looking up in a table: of the wrong type`},
		"skip":        {opts: []lookup.Option{lookup.OnError(weir.Skip)}, want: []string{"a=A", "c=C"}},
		"nothing":     {opts: []lookup.Option{lookup.OnError(func(error) error { return nil })}, want: []string{"a=A", "c=C"}},
		"dead letter": {opts: []lookup.Option{lookup.OnError(weir.DeadLetter)}, want: []string{"a=A", "c=C"}, dead: []string{"bad:1"}},
		"and cached":  {opts: []lookup.Option{lookup.OnError(weir.DeadLetter), lookup.Cache(10, time.Hour)}, want: []string{"a=A", "c=C"}, dead: []string{"bad:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			brokers := broker(t, 1, "in", "out", "dead")
			produce(t, brokers, "in", "a", "bad:1", "c")
			r := start(t, "app", brokers, asks(from, c.opts...), weir.Store(checkpoint.NewMem()), weir.Drain(), weir.DeadLetters("dead"))
			err := r.wait()
			if c.err != "" {
				wantError(t, err, c.err, "WEIR_SKIP=in/0@1")
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := committedValues(t, brokers, "out"); !slices.Equal(got, c.want) {
				t.Errorf("committed %q, want %q", got, c.want)
			}
			if len(c.dead) > 0 {
				wantValues(t, brokers, "dead", c.dead...)
			}
		})
	}
}

func TestJoinDecidesWhatBecomesOfAKeyThatIsNotThere(t *testing.T) {
	brokers := broker(t, 1, "in", "out", "dead")
	produce(t, brokers, "in", "a:1", "nobody:2", "b:3", "nobody:4")
	from := lookup.Each("a table", func(_ context.Context, k string) (string, bool, error) { return k, k != "nobody", nil })
	topology := func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		out := weir.Lookup(in, "ask", from, beforeColon, func(s, v string, found bool) (string, error) {
			if !found {
				return "", weir.DeadLetter(errors.New("nobody of that name"))
			}
			return s, nil
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
	drained(t, "app", brokers, topology, weir.DeadLetters("dead"))
	if got := committedValues(t, brokers, "out"); !slices.Equal(got, []string{"a:1", "b:3"}) {
		t.Errorf("committed %q", got)
	}
	dead := consume(t, brokers, "dead", 2)
	for i, want := range []string{"1 nobody:2", "3 nobody:4"} {
		offset := ""
		for _, h := range dead[i].Headers {
			if h.Key == "weir-offset" {
				offset = string(h.Value)
			}
		}
		if got := offset + " " + string(dead[i].Value); got != want {
			t.Errorf("dead letter %q, want %q", got, want)
		}
	}
}

func TestSourceThatCannotBeReachedRestartsTheApp(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a", "b")
	var left atomic.Int64
	left.Store(20)
	from := lookup.Batch("a service", func(_ context.Context, keys []string, answers []lookup.Answer[string]) error {
		if left.Add(-1) >= 0 {
			return weir.Retry(errors.New("unreachable"))
		}
		for i := range keys {
			answers[i] = lookup.Answer[string]{Value: "x", Found: true}
		}
		return nil
	})
	policy := weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 100, Quiet: time.Hour})
	r := drained(t, "app", brokers, asks(from, lookup.GiveUpAfter(50*time.Millisecond)), policy)
	if e := await(r, 1, any1[event.Restarting]); !strings.Contains(e.Err.Error(), `operator "ask": looking up in a service failed: given up after`) {
		t.Errorf("restarted with %v", e.Err)
	}
	if got := committedValues(t, brokers, "out"); !slices.Equal(got, []string{"a=x", "b=x"}) {
		t.Errorf("committed %q", got)
	}

	// Where no restart is allowed the error is returned, and it is no record's.
	left.Store(1000)
	none := weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Quiet: time.Hour})
	r = start(t, "other", brokers, asks(from, lookup.GiveUpAfter(time.Millisecond)), weir.Store(checkpoint.NewMem()), none)
	err := r.wait()
	wantError(t, err, "unreachable", "nothing was published")
	var le *weir.LookupError
	if !errors.As(err, &le) || le.Operator != "ask" || le.Source != "a service" {
		t.Errorf("got %#v", err)
	}
}

func TestErrorOfTheSourceStopsTheApp(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a")
	from := lookup.Batch("a service", func(context.Context, []string, []lookup.Answer[string]) error { return errors.New("who are you?") })
	// No policy for records applies.
	r := start(t, "app", brokers, asks(from, lookup.OnError(weir.Skip)), weir.Store(checkpoint.NewMem()))
	wantError(t, r.wait(), `weir: app: operator "ask": looking up in a service failed: who are you?`)
}

// closing counts clients that were opened and closed. The first can't be opened.
type closing struct {
	lookup.Source[string, string]
	opened, closed *atomic.Int64
}

func (c closing) Open(ctx context.Context) (lookup.Client[string, string], error) {
	if c.opened.Add(1) == 1 {
		return nil, weir.Retry(errors.New("not yet"))
	}
	cl, err := c.Source.Open(ctx)
	return closingClient{cl, c.closed}, err
}

type closingClient struct {
	lookup.Client[string, string]
	closed *atomic.Int64
}

func (c closingClient) Close() error {
	c.closed.Add(1)
	return c.Client.Close()
}

func TestEachIncarnationOpensOneClientAndClosesIt(t *testing.T) {
	brokers := broker(t, 4, "in", "out")
	produce(t, brokers, "in", "a", "b", "c", "d")
	var opened, closed atomic.Int64
	from := closing{upper(func() {}), &opened, &closed}
	var failed sync.Once
	topology := func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		out := weir.Lookup(in, "ask", from, beforeColon, func(s, v string, found bool) (string, error) {
			var err error
			failed.Do(func() { err = weir.Retry(errors.New("once")) })
			return s, err
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
	r := drained(t, "app", brokers, topology, weir.Parallelism(4))
	await(r, 1, func(e event.Restarting) bool {
		return strings.Contains(e.Err.Error(), `operator "ask": opening upper case: not yet`)
	})
	if opened.Load() != 3 || closed.Load() != 2 {
		t.Errorf("%d clients were opened, %d closed, want 3 and, without the one that failed, 2; events: %v", opened.Load(), closed.Load(), r.list())
	}
}

func TestMistakesOfALookupAreReportedTogether(t *testing.T) {
	app := weir.New("app", weir.Brokers("b:1"), weir.Store(checkpoint.NewMem()), weir.InstanceID("a"), weir.CheckpointTimeout(10*time.Second))
	in := weir.From(app, "in", source.Values("in", codec.String))
	weir.To(weir.Lookup[string, string, string, string](in, "nil", nil, nil, nil), "out-1", kafka.Values("out", kafka.NoKey, codec.String))
	weir.To(weir.Lookup(in, "options", lookup.Each[string, string]("", nil), beforeColon, joined,
		lookup.BatchSize(0), lookup.InFlight(-1), lookup.Waiting(0), lookup.Timeout(0), lookup.GiveUpAfter(-1), lookup.Cache(0, time.Second), lookup.OnError(nil), nil),
		"out-2", kafka.Values("out", kafka.NoKey, codec.String))
	weir.To(weir.Lookup(in, "long", upper(func() {}), beforeColon, joined, lookup.GiveUpAfter(6*time.Second)), "out-3", kafka.Values("out", kafka.NoKey, codec.String))
	weir.Lookup(in, "unused", upper(func() {}), beforeColon, joined, lookup.GiveUpAfter(0))
	wantError(t, app.Validate(),
		`operator "nil": what it looks up in is nil`, `operator "nil": the key function is nil`, `operator "nil": the function that joins`,
		`operator "options": lookup: the source has no name`, "the function that looks up is nil",
		"lookup.BatchSize(0)", "lookup.InFlight(-1)", "lookup.Waiting(0)", "lookup.Timeout(0s)", "lookup.GiveUpAfter(-1ns)", "lookup.Cache(0, 1s)", "lookup.OnError(nil)",
		"lookup: option 8 is nil", `operator "long": lookup.GiveUpAfter(6s) and lookup.Timeout(5s): barriers wait for look-ups, and a checkpoint may take 10s`,
		`operator "unused": nothing uses its output`, "lookup_test.go:")
}

func TestDescribeShowsWhatIsLookedUp(t *testing.T) {
	app := weir.New("app", weir.Brokers("b:1"), weir.Store(checkpoint.NewMem()), weir.InstanceID("a"))
	asks(lookup.Decode(upper(func() {}), func(s string) (string, error) { return s, nil }), lookup.Cache(1000, time.Minute), lookup.InFlight(9))(app)
	if got, want := app.Describe(), "  lookup     ask [upper case, 1000 cached for 1m0s, 9 in flight] <- in\n"; !strings.Contains(got, want) {
		t.Errorf("%s\nlacks %q", got, want)
	}
}

// chained is a topology with look-ups in front of and behind a keyed operator, one behind
// another, and in branches that meet again. Each value "key:n" is counted, as
// "KEY key:n count".
func chained(from lookup.Source[string, string], fail func() error, opts ...lookup.Option) func(*weir.App) {
	return func(app *weir.App) {
		type counted struct {
			value string
			n     int64
		}
		in := weir.From(app, "in", source.Values("in", codec.String))
		keep := func(s, v string, found bool) (string, error) {
			if !found || v != strings.ToUpper(beforeColon(s)) {
				return "", fmt.Errorf("%q was answered by %q", s, v)
			}
			return s, nil
		}
		odd := func(s string) bool { return len(s)%2 == 1 }
		first := weir.Lookup(in, "first", from, beforeColon, keep, opts...)
		one := weir.Filter(first, "odd", odd)
		two := weir.Lookup(weir.Filter(first, "even", func(s string) bool { return !odd(s) }), "second", from, beforeColon, keep, opts...)
		failing := weir.Map(weir.Merge("both", one, two), "fail", func(s string) (string, error) { return s, fail() })
		byKey := weir.KeyBy(failing, "by-key", beforeColon, codec.String, weir.ValueCodec(codec.String))
		counts := weir.Process(byKey, "count", func(s *weir.Setup) weir.Handler[string, string, counted] {
			n := state.Value(s, "n", codec.Int64)
			return weir.OnRecord(func(c *weir.Context[string, counted], v string) error {
				n.Set(n.Get() + 1)
				c.Emit(counted{v, n.Get()})
				return nil
			})
		})
		out := weir.Lookup(counts, "third", from, func(c counted) string { return beforeColon(c.value) }, func(c counted, v string, _ bool) (string, error) {
			return fmt.Sprintf("%s %s %d", v, c.value, c.n), nil
		}, opts...)
		weir.To(weir.Map(out, "fail-too", func(s string) (string, error) { return s, fail() }), "out",
			kafka.Values("out", kafka.KeyBy(func(s string) string { return strings.Fields(s)[0] }, codec.String), codec.String))
	}
}

// TestLookupsAreExactThroughFailures fails at random places: in front of and behind
// look-ups and in their calls. State and output are as if nothing had been, since what the
// look-ups find does not change.
func TestLookupsAreExactThroughFailures(t *testing.T) {
	for name, opts := range map[string][]weir.Option{
		"aligned":   nil,
		"unaligned": {weir.Unaligned()},
		"timeout":   {weir.AlignmentTimeout(time.Millisecond)},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			brokers := broker(t, 3, "in", "out")
			var in []string
			for i := range 6000 {
				in = append(in, fmt.Sprintf("k%d:%d", i*i%37, i))
			}
			produceKeyed(t, brokers, "in", in, beforeColon)
			seed := rand.Uint64()
			t.Logf("seed %d", seed)
			var mu sync.Mutex
			rng := rand.New(rand.NewPCG(seed, 0))
			failures, calls := 0, 0
			fail := func() error {
				mu.Lock()
				defer mu.Unlock()
				calls++
				if calls == 1500 || failures < 12 && rng.IntN(2000) == 0 { // once at least
					failures++
					return weir.Retry(errors.New("at random"))
				}
				return nil
			}
			from := upper(func() {
				mu.Lock()
				wait := time.Duration(rng.IntN(3)) * time.Millisecond
				mu.Unlock()
				time.Sleep(wait)
			})
			flaky := lookup.Batch("a flaky service", func(ctx context.Context, keys []string, answers []lookup.Answer[string]) error {
				mu.Lock()
				what := rng.IntN(60)
				mu.Unlock()
				if what == 0 {
					return weir.Retry(errors.New("unreachable"))
				}
				cl, err := from.Open(ctx)
				if err != nil {
					return err
				}
				return cl.Fetch(ctx, keys, answers)
			})
			policy := weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 100, Quiet: time.Hour})
			r := drained(t, "app", brokers, chained(flaky, fail, lookup.BatchSize(20), lookup.InFlight(3), lookup.Waiting(200), lookup.GiveUpAfter(30*time.Millisecond)),
				append(opts, policy, weir.CheckpointEvery(5*time.Millisecond))...)
			await(r, 1, any1[event.Restarting])
			await(r, 3, any1[event.CheckpointCommitted])

			// By key, counts grow by one. The values of one length came in order.
			got := committedValues(t, brokers, "out")
			if len(got) != len(in) {
				t.Errorf("%d values, want %d", len(got), len(in))
			}
			count, last, seen := map[string]int{}, map[string]int{}, map[string]bool{}
			for _, s := range got {
				f := strings.Fields(s)
				k, number, _ := strings.Cut(f[1], ":")
				if f[0] != strings.ToUpper(k) {
					t.Fatalf("%q", s)
				}
				if count[k]++; f[2] != strconv.Itoa(count[k]) {
					t.Fatalf("%q is number %d of its key", s, count[k])
				}
				n, _ := strconv.Atoi(number)
				branch := k + strconv.Itoa(len(f[1])%2)
				if old, ok := last[branch]; ok && n <= old {
					t.Fatalf("%q comes after %d", s, old)
				}
				if last[branch] = n; seen[f[1]] {
					t.Fatalf("%q came twice", s)
				}
				seen[f[1]] = true
			}
		})
	}
}

// A barrier waits for look-ups, but an unaligned one not for the handlers behind them,
// also if nothing of what waited has room on the edge.
func TestUnalignedBarrierDoesNotWaitForRoomBehindALookup(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	var in []string
	for i := range 9000 {
		in = append(in, fmt.Sprint("k:", i))
	}
	produce(t, brokers, "in", in...)
	committed := make(chan struct{})
	var once sync.Once
	var handled, atCommit, taken atomic.Int64
	all := make(chan struct{})
	answer := sync.OnceFunc(func() { close(all) }) // when all wait
	topology := func(app *weir.App) {
		vs := weir.From(app, "in", source.Values("in", codec.String))
		asked := weir.Lookup(vs, "ask", upper(func() { <-all }), func(s string) string {
			if taken.Add(1) == int64(len(in)) {
				answer()
			}
			return s
		}, func(s, _ string, _ bool) (string, error) { return s, nil }, lookup.Waiting(2*len(in)), lookup.BatchSize(len(in)/4))
		byKey := weir.KeyBy(asked, "by-key", beforeColon, codec.String, weir.ValueCodec(codec.String))
		out := weir.Process(byKey, "slow", func(*weir.Setup) weir.Handler[string, string, string] {
			return weir.OnRecord(func(c *weir.Context[string, string], v string) error {
				handled.Add(1)
				select { // slow until something is committed
				case <-committed:
				case <-time.After(20 * time.Millisecond):
				}
				c.Emit(v)
				return nil
			})
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
	start(t, "app", brokers, topology, weir.Store(checkpoint.NewMem()), weir.Unaligned(), weir.Parallelism(1), weir.CheckpointEvery(300*time.Millisecond), weir.Listen(weir.Listener{
		CheckpointBegun: func(event.CheckpointBegun) { answer() }, // it may come before all wait, and waits for the answers
		CheckpointCommitted: func(event.CheckpointCommitted) {
			once.Do(func() {
				atCommit.Store(handled.Load())
				close(committed)
			})
		},
	}))
	var got []string
	for _, r := range consume(t, brokers, "out", len(in)) {
		got = append(got, string(r.Value))
	}
	// Four batches and what is being processed would be some 2000 records.
	if n := atCommit.Load(); n > 1000 {
		t.Errorf("%d records were handled before the first checkpoint was committed", n)
	}
	if !slices.Equal(got, in) {
		t.Errorf("%d values, want %d, or in another order", len(got), len(in))
	}
}
