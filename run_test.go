package weir_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/txn"
	"github.com/weirstream/weir/weirtest"
)

// deadline bounds every wait in these tests.
const deadline = 30 * time.Second

// running is an app that runs beside the test.
type running struct {
	t    *testing.T
	stop context.CancelFunc
	done chan struct{}
	err  error // after done

	mu     sync.Mutex
	events []fmt.Stringer
	seen   chan struct{} // capacity 1: an event came
}

// start runs an app with a topology until the test ends.
func start(t *testing.T, name string, brokers []string, topology func(*weir.App), opts ...weir.Option) *running {
	t.Helper()
	r := &running{t: t, done: make(chan struct{}), seen: make(chan struct{}, 1)}
	base := []weir.Option{
		weir.Brokers(brokers...), weir.InstanceID("a"), weir.Parallelism(2), weir.CheckpointEvery(10 * time.Millisecond),
		weir.Listen(r.listener()),
	}
	app := weir.New(name, append(base, opts...)...)
	topology(app)
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() {
		defer close(r.done)
		r.err = app.Run(ctx)
	}()
	t.Cleanup(func() {
		cancel()
		<-r.done
	})
	return r
}

func (r *running) listener() weir.Listener {
	return weir.Listener{
		CheckpointBegun:     func(i event.CheckpointBegun) { r.add(i) },
		CheckpointCommitted: func(i event.CheckpointCommitted) { r.add(i) },
		CheckpointFailed:    func(i event.CheckpointFailed) { r.add(i) },
		Restored:            func(i event.Restored) { r.add(i) },
		Followed:            func(i event.Followed) { r.add(i) },
		Restarting:          func(i event.Restarting) { r.add(i) },
		DeadLettered:        func(i event.DeadLettered) { r.add(i) },
		Skipped:             func(i event.Skipped) { r.add(i) },
		Fenced:              func(i event.Fenced) { r.add(i) },
	}
}

func (r *running) add(e fmt.Stringer) {
	r.mu.Lock()
	r.events = append(r.events, e)
	r.mu.Unlock()
	select {
	case r.seen <- struct{}{}:
	default:
	}
}

// wait waits for the app to end and returns its error.
func (r *running) wait() error {
	r.t.Helper()
	select {
	case <-r.done:
		return r.err
	case <-time.After(deadline):
		r.t.Fatalf("the app still runs; events: %v", r.list())
		return nil
	}
}

func (r *running) list() []fmt.Stringer {
	r.mu.Lock()
	defer r.mu.Unlock()
	return slices.Clone(r.events)
}

// await waits until n events of type E came for which ok holds, and returns the n-th.
func await[E fmt.Stringer](r *running, n int, ok func(E) bool) E {
	r.t.Helper()
	timeout := time.After(deadline)
	for {
		count := 0
		for _, e := range r.list() {
			if e, is := e.(E); is && ok(e) {
				if count++; count == n {
					return e
				}
			}
		}
		select {
		case <-r.seen:
		case <-r.done:
			// The last events may have come before the end was noticed.
			select {
			case <-r.seen:
				continue
			default:
			}
			r.t.Fatalf("the app ended with %v; events: %v", r.err, r.list())
		case <-timeout:
			r.t.Fatalf("no such event; events: %v", r.list())
		}
	}
}

func any1[E any](E) bool { return true }

// sums keeps the sum of the numbers "key:n" of each key and emits "key:sum". A value
// that is no such pair goes to fail.
func sums(fail func(error) error) func(*weir.App) {
	return func(app *weir.App) {
		type pair struct {
			key string
			n   int64
		}
		in := weir.From(app, "in", source.Values("in", codec.String))
		pairs := weir.Map(in, "parse", func(s string) (pair, error) {
			k, v, _ := strings.Cut(s, ":")
			n, err := strconv.ParseInt(v, 10, 64)
			if err != nil {
				return pair{}, fail(err)
			}
			return pair{k, n}, nil
		})
		byKey := weir.KeyBy(pairs, "by-key", func(p pair) string { return p.key }, codec.String)
		out := weir.Process(byKey, "sum", func(s *weir.Setup) weir.Handler[string, pair, string] {
			total := state.Value(s, "total", codec.Int64)
			return weir.OnRecord(func(c *weir.Context[string, string], p pair) error {
				if p.key == "panic" {
					var zero int64
					total.Set(p.n / zero)
				}
				if p.key == "fail" {
					return fail(errors.New("asked to"))
				}
				total.Set(total.Get() + p.n)
				c.Emit(c.Key() + ":" + strconv.FormatInt(total.Get(), 10))
				return nil
			})
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
}

// values returns the values of records, sorted.
func values(rs []*kgo.Record) []string {
	var vs []string
	for _, r := range rs {
		vs = append(vs, string(r.Value))
	}
	slices.Sort(vs)
	return vs
}

func wantValues(t *testing.T, brokers []string, topic string, want ...string) {
	t.Helper()
	slices.Sort(want)
	if got := values(consume(t, brokers, topic, len(want))); !slices.Equal(got, want) {
		t.Errorf("topic %s holds %v, want %v", topic, got, want)
	}
}

func wantError(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the error lacks %q:\n%v", text, err)
		}
	}
}

func same(err error) error { return err }

func TestHandlerErrorStopsTheAppAndNamesTheRecord(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a:1", "a:2", "fail:1")
	store := checkpoint.NewMem()
	r := start(t, "app", brokers, sums(same), weir.Store(store))
	err := r.wait()
	wantError(t, err, `weir: app: operator "sum" failed on in/0 at offset 2: asked to`, "WEIR_SKIP=in/0@2", "nothing")
	var he *weir.HandlerError
	if !errors.As(err, &he) || he.Operator != "sum" || he.Offset != 2 {
		t.Errorf("got %#v", he)
	}

	t.Setenv("WEIR_SKIP", "in/0@2")
	r = start(t, "app", brokers, sums(same), weir.Store(store), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	await(r, 1, any1[event.Skipped])
	wantValues(t, brokers, "out", "a:1", "a:3")
}

func TestRecordThatCannotBeDecodedStopsTheAppAndNamesTheWaysOn(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "no number")
	numbers := func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.Int64))
		weir.To(in, "out", kafka.Values("out", kafka.NoKey, codec.Int64))
	}
	err := start(t, "app", brokers, numbers, weir.Store(checkpoint.NewMem())).wait()
	wantError(t, err, `operator "in" failed on in/0 at offset 0: decoding: `, "weir.OnUndecodable at the source", "WEIR_SKIP=in/0@0")
	if strings.Contains(err.Error(), "from the handler") {
		t.Errorf("there is no handler: %v", err)
	}
}

func TestPanicOfAHandlerIsAnErrorWithItsPlace(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a:1", "panic:1")
	r := start(t, "app", brokers, sums(same), weir.Store(checkpoint.NewMem()))
	wantError(t, r.wait(), `operator "sum" panicked on in/0 at offset 1: runtime error: integer divide by zero`, "WEIR_SKIP=in/0@1", "run_test.go:")
}

func TestPanicOfACodecIsAnErrorThatNamesOperatorAndState(t *testing.T) {
	var unreadable bool
	moody := codec.Func("moody", 1, func(dst []byte, v string) ([]byte, error) {
		if v == "bad" {
			panic("it can't be written")
		}
		return append(dst, v...), nil
	}, func(b []byte) (string, error) {
		if unreadable {
			panic("it can't be read")
		}
		return string(b), nil
	})
	self := func(s string) string { return s }
	seen := func(keys codec.Codec[string]) func(*weir.App) {
		return func(app *weir.App) {
			byKey := weir.KeyBy(weir.From(app, "in", source.Values("in", codec.String)), "by-key", self, keys)
			weir.To(weir.Process(byKey, "remember", func(s *weir.Setup) weir.Handler[string, string, string] {
				last := state.Value(s, "last", codec.String)
				all := state.Map(s, "all", codec.String, moody)
				return weir.OnRecord(func(_ *weir.Context[string, string], v string) error {
					last.Set(v)
					all.Put("x", v)
					return nil
				})
			}), "out", kafka.Values("out", kafka.NoKey, codec.String))
		}
	}
	for name, c := range map[string]struct {
		keys codec.Codec[string]
		fail func(h *weirtest.Harness)
		want string
	}{
		"of state when it is written": {codec.String, func(h *weirtest.Harness) {
			weirtest.In[string](h, "in").Send("bad")
			h.Checkpoint()
		}, `operator "remember" panicked while encoding state "all" for checkpoint 1: it can't be written`},
		"of state when it is read": {codec.String, func(h *weirtest.Harness) {
			weirtest.In[string](h, "in").Send("good")
			h.Checkpoint()
			unreadable = true
			h.Crash()
		}, `operator "remember" panicked while decoding state "all" of checkpoint 1: it can't be read`},
		"of keys": {moody, func(h *weirtest.Harness) { weirtest.In[string](h, "in").Send("good", "bad") },
			`operator "by-key" panicked on in/0 at offset 1: it can't be written`},
	} {
		t.Run(name, func(t *testing.T) {
			unreadable = false
			h := weirtest.New(t, seen(c.keys))
			err := h.Fails(func() { c.fail(h) })
			wantError(t, err, c.want, "run_test.go:")
			if he, ok := errors.AsType[*weir.HandlerError](err); !ok || !he.Panic || he.Doing != "" && strings.Contains(err.Error(), "WEIR_SKIP") {
				t.Errorf("got %#v", err)
			}
		})
	}
}

func TestSkippedRecordIsDroppedAndReported(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a:1", "a:x", "fail:1", "a:2")
	r := start(t, "app", brokers, sums(weir.Skip), weir.Store(checkpoint.NewMem()), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	if s := await(r, 2, any1[event.Skipped]); s.Offset != 2 || s.Operator != "sum" {
		t.Errorf("got %+v", s)
	}
	wantValues(t, brokers, "out", "a:1", "a:3")
}

func TestS39_DeadLetteredRecordKeepsItsBytesAndSaysWhereItCameFrom(t *testing.T) {
	brokers := broker(t, 1, "in", "out", "dead")
	produce(t, brokers, "in", "a:1", "a:x", "fail:1", "a:2")
	r := start(t, "app", brokers, sums(weir.DeadLetter), weir.Store(checkpoint.NewMem()), weir.DeadLetters("dead"), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	wantValues(t, brokers, "out", "a:1", "a:3")
	dead := consume(t, brokers, "dead", 2)
	i := slices.IndexFunc(dead, func(r *kgo.Record) bool { return string(r.Value) == "fail:1" })
	if i < 0 {
		t.Fatalf("dead letters: %v", values(dead))
	}
	got := map[string]string{}
	for _, h := range dead[i].Headers {
		got[h.Key] = string(h.Value)
	}
	want := map[string]string{"weir-app": "app", "weir-operator": "sum", "weir-topic": "in", "weir-partition": "0", "weir-offset": "2", "weir-error": "asked to"}
	for k, v := range want {
		if got[k] != v {
			t.Errorf("header %s is %q, want %q", k, got[k], v)
		}
	}
	if string(dead[i].Key) != "fail:1" {
		t.Errorf("key is %q", dead[i].Key)
	}
}

func TestDeadLetterWithoutATopicStopsTheApp(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a:x")
	r := start(t, "app", brokers, sums(weir.DeadLetter), weir.Store(checkpoint.NewMem()))
	wantError(t, r.wait(), `operator "parse" failed on in/0 at offset 0`, "no dead-letter topic (set weir.DeadLetters(topic))")
}

func TestRetriableErrorRestartsUntilItSucceeds(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a:1", "fail:1", "a:2")
	var mu sync.Mutex
	left := 2
	flaky := func(err error) error {
		mu.Lock()
		defer mu.Unlock()
		if left--; left >= 0 {
			return weir.Retry(err)
		}
		return weir.Skip(err)
	}
	r := start(t, "app", brokers, sums(flaky), weir.Store(checkpoint.NewMem()), weir.Drain(),
		weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 3, Quiet: time.Hour}))
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	if e := await(r, 2, any1[event.Restarting]); e.Attempt != 2 {
		t.Errorf("got %+v", e)
	}
	wantValues(t, brokers, "out", "a:1", "a:3")
}

func TestRestartsEndAtTheirLimit(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "fail:1")
	r := start(t, "app", brokers, sums(weir.Retry), weir.Store(checkpoint.NewMem()),
		weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 2, Quiet: time.Hour}))
	wantError(t, r.wait(), "gave up after 2 restarts in a row", "asked to")
}

func TestUndecodableRecordFollowsThePolicyOfItsSource(t *testing.T) {
	topology := func(opts ...weir.SourceOption) func(*weir.App) {
		return func(app *weir.App) {
			in := weir.From(app, "in", source.Values("in", codec.JSON[int]()), opts...)
			weir.To(in, "out", kafka.Values("out", kafka.NoKey, codec.JSON[int]()))
		}
	}
	brokers := broker(t, 1, "in", "out", "dead")
	produce(t, brokers, "in", "1", "{", "2")
	r := start(t, "stop", brokers, topology(), weir.Store(checkpoint.NewMem()))
	wantError(t, r.wait(), `operator "in" failed on in/0 at offset 1: decoding:`, "WEIR_SKIP=in/0@1")
	r = start(t, "skip", brokers, topology(weir.OnUndecodable(weir.Skip)), weir.Store(checkpoint.NewMem()), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	r = start(t, "letter", brokers, topology(weir.OnUndecodable(weir.DeadLetter)), weir.Store(checkpoint.NewMem()), weir.Drain(), weir.DeadLetters("dead"))
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	wantValues(t, brokers, "out", "1", "2", "1", "2")
	wantValues(t, brokers, "dead", "{")
}

func TestStopTakesALastCheckpoint(t *testing.T) {
	brokers := broker(t, 2, "in", "out")
	produce(t, brokers, "in", "a:1", "b:1", "c:1")
	store := checkpoint.NewMem()
	var once sync.Once
	first := make(chan struct{})
	topology := func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		seen := weir.Map(in, "see", func(s string) (string, error) {
			once.Do(func() { close(first) })
			return s, nil
		})
		weir.To(seen, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
	// Nothing but the stop triggers a checkpoint.
	r := start(t, "app", brokers, topology, weir.Store(store), weir.CheckpointEvery(0), weir.AfterRecords(1e9))
	<-first
	r.stop()
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	if e := await(r, 1, any1[event.CheckpointBegun]); e.Reason != "shutdown" {
		t.Errorf("got %+v", e)
	}
	r = start(t, "app", brokers, topology, weir.Store(store), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	wantValues(t, brokers, "out", "a:1", "b:1", "c:1")
}

func TestRecordsAndBytesTriggerCheckpoints(t *testing.T) {
	for name, opt := range map[string]weir.Option{"records": weir.AfterRecords(3), "bytes": weir.AfterBytes(18)} {
		t.Run(name, func(t *testing.T) {
			brokers := broker(t, 1, "in", "out")
			r := start(t, "app", brokers, sums(same), weir.Store(checkpoint.NewMem()), weir.CheckpointEvery(0), opt)
			produce(t, brokers, "in", "a:1", "b:1", "c:1")
			if e := await(r, 1, any1[event.CheckpointBegun]); e.Reason != name {
				t.Errorf("reason %q", e.Reason)
			}
			wantValues(t, brokers, "out", "a:1", "b:1", "c:1")
		})
	}
}

// The last record of a drain fails: its partition was not read to the end.
func TestDrainIsNotOverAtARecordThatFails(t *testing.T) {
	const times = 30
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a:1")
	var tries, begun atomic.Int64
	topology := func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		out := weir.Map(in, "fail", func(s string) (string, error) {
			if tries.Add(1) <= times {
				return s, weir.Retry(errors.New("not yet"))
			}
			return s, nil
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
	drained(t, "app", brokers, topology, fast, weir.CheckpointEvery(time.Minute), weir.Listen(weir.Listener{
		CheckpointBegun: func(event.CheckpointBegun) {
			if tries.Load() <= times {
				begun.Add(1)
			}
		},
	}))
	if n := begun.Load(); n > 0 {
		t.Errorf("%d of %d failures began the last checkpoint", n, times)
	}
	wantValues(t, brokers, "out", "a:1")
}

func TestIdleAppCommitsNothing(t *testing.T) {
	brokers := broker(t, 2, "in", "out")
	produce(t, brokers, "in", "a:1")
	r := start(t, "app", brokers, sums(same), weir.Store(checkpoint.NewMem()), weir.CheckpointEvery(time.Millisecond))
	// One that is cut in front of the record may be first.
	await(r, 1, func(c event.CheckpointCommitted) bool { return c.Records == 1 })
	idle := len(r.list())
	// A hundred intervals pass while another app works on the same broker.
	other := start(t, "other", brokers, sums(same), weir.Store(checkpoint.NewMem()), weir.Drain())
	if err := other.wait(); err != nil {
		t.Fatal(err)
	}
	for _, e := range r.list()[idle:] {
		if c, ok := e.(event.CheckpointCommitted); ok {
			t.Errorf("an epoch without input was committed: %v", c)
		}
	}
}

func TestStandbyTakesOverWhenTheActiveLeaves(t *testing.T) {
	brokers := broker(t, 3, "in", "out")
	store := checkpoint.NewMem()
	active := start(t, "app", brokers, sums(same), weir.Store(store), weir.InstanceID("first"))
	produce(t, brokers, "in", "a:1", "b:1", "c:1")
	await(active, 1, any1[event.CheckpointCommitted])
	standby := start(t, "app", brokers, sums(same), weir.Store(store), weir.InstanceID("second"))
	awaitMembers(t, brokers, "app", 2)
	produce(t, brokers, "in", "a:2", "b:2", "c:2")
	await(active, 2, any1[event.CheckpointCommitted])
	for _, e := range standby.list() {
		if _, ok := e.(event.Restored); ok {
			t.Error("the standby was given partitions while the active one lives")
		}
	}
	wantValues(t, brokers, "out", "a:1", "b:1", "c:1", "a:3", "b:3", "c:3")
	active.stop()
	if err := active.wait(); err != nil {
		t.Fatal(err)
	}
	if e := await(standby, 1, any1[event.Restored]); e.Checkpoint == 0 || e.Entries != 3 {
		t.Errorf("restored %+v", e)
	}
	produce(t, brokers, "in", "a:3")
	wantValues(t, brokers, "out", "a:1", "b:1", "c:1", "a:3", "b:3", "c:3", "a:6")
}

// TestEndOfAnAppWaitsForOneRecordAndNotForABatch fails on one subtask while the other has
// a whole batch before it, and handlers are slow.
func TestEndOfAnAppWaitsForOneRecordAndNotForABatch(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	const batch = 500
	const good = "good"
	owner := func(key string) int {
		return keygroup.Subtask(keygroup.Of([]byte(key), weir.DefaultKeyGroups), 2, weir.DefaultKeyGroups)
	}
	bad := good
	for owner(bad) == owner(good) {
		bad += "!"
	}
	produce(t, brokers, "in", append(slices.Repeat([]string{good}, batch), bad)...)
	begun := make(chan struct{})
	var once sync.Once
	var handled atomic.Int64
	r := start(t, "app", brokers, func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		byKey := weir.KeyBy(in, "by-key", func(s string) string { return s }, codec.String)
		out := weir.Process(byKey, "handle", func(*weir.Setup) weir.Handler[string, string, string] {
			return weir.OnRecord(func(c *weir.Context[string, string], v string) error {
				if v == bad {
					<-begun // the other subtask is in the midst of its batch
					return errors.New("it is bad")
				}
				once.Do(func() { close(begun) })
				handled.Add(1)
				time.Sleep(20 * time.Millisecond) // as slow as it is
				return nil
			})
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}, weir.Store(checkpoint.NewMem()), weir.CheckpointEvery(5*time.Minute))
	wantError(t, r.wait(), "it is bad")
	if n := handled.Load(); n > batch/2 {
		t.Errorf("%d records of %d were handled before the app ended", n, batch)
	}
}

// awaitMembers waits until the group is stable with n members.
func awaitMembers(t *testing.T, brokers []string, group string, n int) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for {
		gs, err := kadm.NewClient(cl).DescribeGroups(ctx, group)
		if err != nil {
			t.Fatal(err)
		}
		if g := gs[group]; g.State == "Stable" && len(g.Members) == n {
			return
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			t.Fatalf("group %s: %+v", group, gs[group])
		}
	}
}

func TestBadInputNamesTheThingAndTheRemedy(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	mem := func() weir.Option { return weir.Store(checkpoint.NewMem()) }
	t.Run("unknown topic", func(t *testing.T) {
		topology := func(app *weir.App) {
			weir.To(weir.From(app, "in", source.Values("nowhere", codec.String)), "out", kafka.Values("neither", kafka.NoKey, codec.String))
		}
		wantError(t, start(t, "app", brokers, topology, mem()).wait(), "nowhere", "neither", "--create")
	})
	t.Run("unreachable broker", func(t *testing.T) {
		wantError(t, start(t, "app", []string{"127.0.0.1:1"}, sums(same), mem()).wait(), "127.0.0.1:1")
	})
	t.Run("session timeout", func(t *testing.T) {
		wantError(t, start(t, "app", brokers, sums(same), mem(), weir.SessionTimeout(time.Second)).wait(), "group.min.session.timeout.ms")
	})
	t.Run("unwritable store", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		wantError(t, start(t, "app", brokers, sums(same), weir.CheckpointStore(filepath.Join(file, "store"))).wait(), file)
	})
	t.Run("store of another app", func(t *testing.T) {
		dir := t.TempDir()
		if err := start(t, "first", brokers, sums(same), weir.CheckpointStore(dir), weir.Drain()).wait(); err != nil {
			t.Fatal(err)
		}
		wantError(t, start(t, "second", brokers, sums(same), weir.CheckpointStore(dir)).wait(), dir, `"first"`, `"second"`)
	})
	t.Run("key-group count changed", func(t *testing.T) {
		dir := t.TempDir()
		if err := start(t, "groups", brokers, sums(same), weir.CheckpointStore(dir), weir.Drain()).wait(); err != nil {
			t.Fatal(err)
		}
		wantError(t, start(t, "groups", brokers, sums(same), weir.CheckpointStore(dir), weir.KeyGroups(64)).wait(), "128", "64")
	})
}

func TestS31_RemovedOperatorIsRefusedUntilItsStateMayBeDropped(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	store := checkpoint.NewMem()
	produce(t, brokers, "in", "a:1")
	if err := start(t, "app", brokers, sums(same), weir.Store(store), weir.Drain()).wait(); err != nil {
		t.Fatal(err)
	}
	counts := func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		byKey := weir.KeyBy(in, "by-key", func(s string) string { return s }, codec.String)
		weir.To(weir.Aggregate(byKey, "count", weir.Count[string]()), "out", kafka.Sink("out", codec.String, codec.Int64))
	}
	wantError(t, start(t, "app", brokers, counts, weir.Store(store)).wait(), `state "total" of operator "sum"`, "weir savepoint edit --rename-operator", `weir.AllowDroppedState("sum")`)
	produce(t, brokers, "in", "a:1")
	if err := start(t, "app", brokers, counts, weir.Store(store), weir.AllowDroppedState("sum"), weir.Drain()).wait(); err != nil {
		t.Fatal(err)
	}
	// What was dropped stays dropped when the operator comes back.
	produce(t, brokers, "in", "a:1")
	if err := start(t, "app", brokers, sums(same), weir.Store(store), weir.AllowDroppedState("count"), weir.Drain()).wait(); err != nil {
		t.Fatal(err)
	}
	wantValues(t, brokers, "out", "a:1", "\x00\x00\x00\x00\x00\x00\x00\x01", "a:1")
}

func TestS15_SecondProcessWithTheSameInstanceIDStopsOneOfThem(t *testing.T) {
	brokers := broker(t, 2, "in", "out")
	store := checkpoint.NewMem()
	first := start(t, "app", brokers, sums(same), weir.Store(store), weir.InstanceID("twin"))
	produce(t, brokers, "in", "a:1")
	await(first, 1, any1[event.CheckpointCommitted])
	second := start(t, "app", brokers, sums(same), weir.Store(store), weir.InstanceID("twin"))
	await(second, 1, any1[event.Restored])
	produce(t, brokers, "in", "a:1", "b:1")
	wantError(t, first.wait(), `"twin"`, "WEIR_INSTANCE_ID")
	wantValues(t, brokers, "out", "a:1", "a:2", "b:1")
	second.stop()
	if err := second.wait(); err != nil {
		t.Errorf("the second one: %v", err)
	}
}

func TestCommittedPositionIsThatOfTheBarrierNotThatOfThePoll(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	var input []string
	for i := range 3000 {
		input = append(input, strconv.Itoa(i))
	}
	produce(t, brokers, "in", input...)
	begun, committed := make(chan struct{}), make(chan struct{})
	var onceBegun, onceCommitted, failed sync.Once
	topology := func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		out := weir.Map(in, "stumble", func(s string) (string, error) {
			var err error
			switch s {
			case "600": // polled with the rest; the first 512 made a checkpoint due
				<-begun
			case "2000": // long behind the barrier, and far below what was polled
				<-committed
				failed.Do(func() { err = weir.Retry(errors.New("stumbled")) })
			}
			return s, err
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
	r := start(t, "app", brokers, topology, weir.Store(checkpoint.NewMem()), weir.CheckpointEvery(0), weir.AfterRecords(500), weir.Parallelism(1), weir.Drain(),
		weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 3, Quiet: time.Hour}),
		weir.Listen(weir.Listener{
			CheckpointBegun:     func(event.CheckpointBegun) { onceBegun.Do(func() { close(begun) }) },
			CheckpointCommitted: func(event.CheckpointCommitted) { onceCommitted.Do(func() { close(committed) }) },
		}))
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	await(r, 1, any1[event.Restarting])
	wantValues(t, brokers, "out", input...)
}

// wantNoOpenTransaction checks that no transaction is ongoing in the cluster.
func wantNoOpenTransaction(t *testing.T, brokers []string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	txns, err := kadm.NewClient(cl).ListTransactions(t.Context(), nil, []string{"Ongoing"})
	if err != nil {
		t.Fatal(err)
	}
	if len(txns) > 0 {
		t.Errorf("transactions are left open: %+v", txns)
	}
}

func TestEndOfARunLeavesNoTransactionOpen(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	store := checkpoint.NewMem()
	// The outputs before the failure are in the open transaction when the app stops.
	var input []string
	for i := range 2000 {
		input = append(input, "a:"+strconv.Itoa(i))
	}
	produce(t, brokers, "in", input...)
	r := start(t, "app", brokers, sums(same), weir.Store(store), weir.CheckpointEvery(0), weir.AfterRecords(1e9), weir.Parallelism(1))
	consumeAt(t, kgo.ReadUncommitted(), brokers, "out", 1)
	produce(t, brokers, "in", "fail:1")
	wantError(t, r.wait(), "asked to")
	wantNoOpenTransaction(t, brokers)

	t.Setenv("WEIR_SKIP", "in/0@2000")
	r = start(t, "app", brokers, sums(same), weir.Store(store), weir.CheckpointEvery(0), weir.AfterRecords(1e9), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	wantNoOpenTransaction(t, brokers)
	consume(t, brokers, "out", 2000)
}

func TestHandlerThatFailsDuringACommitLeavesNoTransactionOpen(t *testing.T) {
	c := cluster(t, 1, "in", "out")
	committing := make(chan struct{})
	var once sync.Once
	c.ControlKey(int16(kmsg.TxnOffsetCommit), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		once.Do(func() { close(committing) })
		return nil, errors.New("no answer"), true
	})
	produce(t, c.ListenAddrs(), "in", "a:1")
	r := start(t, "app", c.ListenAddrs(), sums(same), weir.Store(checkpoint.NewMem()), weir.Parallelism(1))
	select {
	case <-committing:
	case <-time.After(deadline):
		t.Fatal("nothing is committed")
	}
	produce(t, c.ListenAddrs(), "in", "fail:1")
	wantError(t, r.wait(), "asked to")
	wantNoOpenTransaction(t, c.ListenAddrs())
}

func TestRefusedOutputLeavesNoTransactionOpen(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	r := start(t, "app", brokers, func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		out := weir.Map(in, "repeat", func(s string) (string, error) {
			n, err := strconv.Atoi(s)
			return strings.Repeat("x", n), err
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}, weir.Store(checkpoint.NewMem()), weir.Parallelism(1), weir.CheckpointEvery(0), weir.AfterRecords(1e9))
	produce(t, brokers, "in", "1")
	consumeAt(t, kgo.ReadUncommitted(), brokers, "out", 1)
	produce(t, brokers, "in", strconv.Itoa(2<<20))
	wantError(t, r.wait(), "MESSAGE_TOO_LARGE")
	wantNoOpenTransaction(t, brokers)
}

func TestInputOfLongAgoIsProcessedAndKeepsItsTimestamp(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	at := time.UnixMilli(1_000_000_000_000) // in 2001
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Value: []byte("a:1"), Timestamp: at}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	r := start(t, "app", brokers, sums(same), weir.Store(checkpoint.NewMem()), weir.Drain(),
		weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond}))
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	if got := consume(t, brokers, "out", 1)[0]; !got.Timestamp.Equal(at) {
		t.Errorf("the output has timestamp %v, the input %v", got.Timestamp, at)
	}
}

func TestS18_OffsetsMovedByHandAreRefusedAndMendedAsAsked(t *testing.T) {
	for mode, want := range map[weir.Recovery][]string{
		// The state holds a=3 and b=1; "a:2" is read again where the offsets say so.
		weir.RecoverCheckpoint: {"a:1", "a:3", "b:1"},
		weir.RecoverOffsets:    {"a:1", "a:3", "b:1", "a:5", "b:2"},
		weir.RecoverNothing:    {"a:1", "a:3", "b:1", "a:2", "b:1"},
	} {
		t.Run(string(mode), func(t *testing.T) {
			brokers := broker(t, 1, "in", "out")
			store := checkpoint.NewMem()
			produce(t, brokers, "in", "a:1", "a:2", "b:1")
			if err := start(t, "app", brokers, sums(same), weir.Store(store), weir.Drain()).wait(); err != nil {
				t.Fatal(err)
			}
			moveOffset(t, brokers, "app", "in", 0, 1)
			wantError(t, start(t, "app", brokers, sums(same), weir.Store(store)).wait(), "in/0", "WEIR_RECOVER")
			// The input is drained at the checkpoint's positions, so nothing but the
			// mending itself calls for a commit.
			r := start(t, "app", brokers, sums(same), weir.Store(store), weir.OnMismatch(mode))
			await(r, 1, any1[event.CheckpointCommitted])
			r.stop()
			if err := r.wait(); err != nil {
				t.Fatal(err)
			}
			if err := start(t, "app", brokers, sums(same), weir.Store(store), weir.Drain()).wait(); err != nil {
				t.Fatalf("after the mending: %v", err)
			}
			wantValues(t, brokers, "out", want...)
		})
	}
}

// The input is deleted and created again while a commit is under way. Brokers of that time
// know topics by name in a commit, and take the offsets of the old one.
func TestS19_InputThatIsRecreatedDuringACommitIsRefusedByTheNextProcess(t *testing.T) {
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "in", "out"), kfake.MaxVersions(kversion.V3_9_0()))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	brokers := c.ListenAddrs()
	adm := adminOf(t, brokers)
	recreate := func() {
		_, err := adm.DeleteTopics(t.Context(), "in")
		if err == nil {
			_, err = adm.CreateTopic(t.Context(), 1, 1, nil, "in")
		}
		if err != nil {
			t.Error(err)
		}
	}
	store := checkpoint.NewMem()
	produce(t, brokers, "in", "a:1", "a:2", "a:3")
	c.ControlKey(int16(kmsg.TxnOffsetCommit), func(kmsg.Request) (kmsg.Response, error, bool) {
		c.SleepControl(recreate)
		return nil, nil, false
	})
	r := start(t, "app", brokers, sums(same), weir.Store(store), weir.CheckpointEvery(0), weir.AfterRecords(3))
	await(r, 1, any1[event.CheckpointCommitted])
	r.stop()
	_ = r.wait() // whether it has seen that already does not matter
	produce(t, brokers, "in", "a:10", "a:20", "a:30", "a:40")
	for range 2 {
		wantError(t, start(t, "app", brokers, sums(same), weir.Store(store), weir.Drain()).wait(),
			`input topic "in"`, "deleted and created again", "--delete-offsets --group app --topic in", "WEIR_RECOVER=nothing", "is lost")
	}
}

// An upgrade: brokers, or the build, that wrote the checkpoint noted no topic ids.
func TestCheckpointWithoutTopicIDsIsTakenUp(t *testing.T) {
	old, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "in", "out"), kfake.MaxVersions(kversion.V2_7_0()))
	if err != nil {
		t.Fatal(err)
	}
	defer old.Close()
	brokers, store := broker(t, 1, "in", "out"), checkpoint.NewMem()
	drain := func(brokers []string) {
		t.Helper()
		if err := start(t, "app", brokers, sums(same), weir.Store(store), weir.Drain()).wait(); err != nil {
			t.Fatal(err)
		}
	}
	produce(t, old.ListenAddrs(), "in", "a:1")
	drain(old.ListenAddrs())
	produce(t, brokers, "in", "a:1", "a:2")
	committed, err := adminOf(t, old.ListenAddrs()).FetchOffsets(t.Context(), "app")
	if err == nil {
		err = adminOf(t, brokers).CommitAllOffsets(t.Context(), "app", committed.Offsets())
	}
	if err != nil {
		t.Fatal(err)
	}
	drain(brokers)
	wantValues(t, brokers, "out", "a:3")
}

// adminOf returns an admin client for as long as the test runs.
func adminOf(t *testing.T, brokers []string) *kadm.Client {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

// moveOffset commits an offset for a group that nobody is in, as a person would.
func moveOffset(t *testing.T, brokers []string, group, topic string, partition int32, to int64) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var os kadm.Offsets
	os.AddOffset(topic, partition, to, -1)
	if err := kadm.NewClient(cl).CommitAllOffsets(t.Context(), group, os); err != nil {
		t.Fatal(err)
	}
}

func TestUndecodableRecordWithoutAReasonIsSkipped(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "1", "{", "2")
	topology := func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.JSON[int]()), weir.OnUndecodable(func(error) error { return nil }))
		weir.To(in, "out", kafka.Values("out", kafka.NoKey, codec.JSON[int]()))
	}
	r := start(t, "app", brokers, topology, weir.Store(checkpoint.NewMem()), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	await(r, 1, any1[event.Skipped])
	wantValues(t, brokers, "out", "1", "2")
}

// severed is a network that can be cut, also for good.
type severed struct {
	mu    sync.Mutex
	conns []net.Conn
	gone  bool
}

func (s *severed) dial(ctx context.Context, network, host string) (net.Conn, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.gone {
		return nil, errors.New("the network is cut")
	}
	c, err := new(net.Dialer).DialContext(ctx, network, host)
	if err == nil {
		s.conns = append(s.conns, c)
	}
	return c, err
}

func (s *severed) sever() {
	s.mu.Lock()
	s.gone = true
	s.mu.Unlock()
	s.cut()
}

// cut ends the connections that there are.
func (s *severed) cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.conns {
		c.Close()
	}
	s.conns = nil
}

func TestTakeOverAfterAKillEndsTheTransactionOfTheDead(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	store := checkpoint.NewMem()
	var network severed
	slow := []weir.Option{weir.Store(store), weir.CheckpointEvery(0), weir.AfterRecords(3), weir.SessionTimeout(6 * time.Second), weir.TransactionTimeout(10 * time.Minute)}
	active := start(t, "app", brokers, sums(same), append(slow, weir.InstanceID("first"), weir.KafkaOptions(kgo.Dialer(network.dial)))...)
	produce(t, brokers, "in", "a:1", "a:2", "a:3")
	await(active, 1, any1[event.CheckpointCommitted])
	start(t, "app", brokers, sums(same), append(slow, weir.InstanceID("second"))...)
	awaitMembers(t, brokers, "app", 2)
	produce(t, brokers, "in", "a:4") // not enough for a checkpoint
	consumeAt(t, kgo.ReadUncommitted(), brokers, "out", 4)
	network.sever()
	produce(t, brokers, "in", "a:5", "a:6")
	wantValues(t, brokers, "out", "a:1", "a:3", "a:6", "a:10", "a:15", "a:21")
}

// firstCheckpoint lets handlers wait for the first checkpoint of an app, so that its barrier
// is cut between two records of one slice.
type firstCheckpoint struct {
	begun, committed         chan struct{}
	onceBegun, onceCommitted sync.Once
}

func newFirstCheckpoint() *firstCheckpoint {
	return &firstCheckpoint{begun: make(chan struct{}), committed: make(chan struct{})}
}

func (f *firstCheckpoint) listen() weir.Option {
	return weir.Listen(weir.Listener{
		CheckpointBegun:     func(event.CheckpointBegun) { f.onceBegun.Do(func() { close(f.begun) }) },
		CheckpointCommitted: func(event.CheckpointCommitted) { f.onceCommitted.Do(func() { close(f.committed) }) },
	})
}

func (f *firstCheckpoint) waitBegun() error     { return f.wait("begun", f.begun) }
func (f *firstCheckpoint) waitCommitted() error { return f.wait("committed", f.committed) }

func (f *firstCheckpoint) wait(what string, c <-chan struct{}) error {
	select {
	case <-c:
		return nil
	case <-time.After(deadline):
		return errors.New("no checkpoint was " + what + " before the slice was through")
	}
}

// Nothing says how long a handler takes: the loop hears of the first record before it runs,
// and the barrier is cut before the next one.
func TestSlowHandlersAtASourceHoldUpNoCheckpoint(t *testing.T) {
	for name, opts := range map[string][]weir.Option{"aligned": nil, "unaligned": {weir.Unaligned()}} {
		t.Run(name, func(t *testing.T) {
			brokers := broker(t, 1, "in", "out")
			produce(t, brokers, "in", "1", "2", "3", "4", "5")
			first := newFirstCheckpoint()
			slow := func(app *weir.App) {
				in := weir.From(app, "in", source.Values("in", codec.String))
				out := weir.Map(in, "slow", func(s string) (string, error) {
					switch s {
					case "2":
						return s, first.waitBegun()
					case "3":
						return s, first.waitCommitted()
					}
					return s, nil
				})
				weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
			}
			r := start(t, "app", brokers, slow, append(opts, weir.Store(checkpoint.NewMem()), weir.Drain(), first.listen())...)
			<-r.done
			if r.err != nil {
				t.Error(r.err)
			}
		})
	}
}

// A barrier in the middle of a slice: what its checkpoint says of time covers each record in
// front of it.
func TestTimeAtABarrierCoversEveryRecordBeforeIt(t *testing.T) {
	const at = 3_600_000
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", strconv.Itoa(at), "0", "0")
	first := newFirstCheckpoint()
	records := 0
	app := func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String), weir.EventTime(func(s string) time.Time {
			ms, _ := strconv.ParseInt(s, 10, 64)
			return time.UnixMilli(ms)
		}))
		out := weir.Map(in, "slow", func(s string) (string, error) {
			switch records++; records {
			case 2:
				return s, first.waitBegun()
			case 3:
				return s, first.waitCommitted()
			}
			return s, nil
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
	store := checkpoint.NewMem()
	r := start(t, "app", brokers, app, weir.Store(store), weir.Parallelism(1), weir.Drain(), first.listen())
	await(r, 1, any1[event.CheckpointCommitted])
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	stored, err := checkpoint.ListManifests(t.Context(), store)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, s := range stored {
		m, _, err := checkpoint.Inspect(t.Context(), store, s.Name)
		if err != nil {
			t.Fatal(err)
		}
		for p, pos := range m.Positions {
			if pos.Offset == 0 {
				continue // cut before the first record, which may wait for its turn
			}
			if seen++; m.EventTime.Partitions[p].Watermark != at-1 {
				t.Errorf("checkpoint %d stands at offset %d and says %v of time, want %d", m.Checkpoint, pos.Offset, m.EventTime.Partitions[p], at-1)
			}
		}
	}
	if seen < 2 {
		t.Fatalf("%d checkpoints were stored, want one in the middle and one at the end", seen)
	}
}

// An incarnation that waits for undecided offsets lives longer than a quiet minute, so that
// no count of restarts would ever end it.
func TestOffsetsThatStayUndecidedStopTheApp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, cl, kafkaOptions := inVirtualTime(t, "in", "out")
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Value: []byte("a:1")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		store := checkpoint.NewMem()
		run := func(ctx context.Context, opts ...weir.Option) error {
			app := weir.New("app", append(opts, weir.Brokers(c.ListenAddrs()...), weir.InstanceID("a"), weir.Store(store), weir.KafkaOptions(kafkaOptions...))...)
			sums(same)(app)
			return app.Run(ctx)
		}
		if err := run(t.Context(), weir.Drain()); err != nil {
			t.Fatal(err)
		}
		c.Fault(kfake.Fault{
			Keys: []kmsg.Key{kmsg.OffsetFetch}, Topic: "in", Err: kerr.UnstableOffsetCommit, Count: -1,
			When: func(req kmsg.Request) bool { return req.(*kmsg.OffsetFetchRequest).RequireStable },
		})
		ctx, cancel := context.WithTimeout(t.Context(), 24*time.Hour)
		defer cancel()
		var unstable *txn.UnstableError
		if err := run(ctx); ctx.Err() != nil || !errors.As(err, &unstable) {
			t.Errorf("Run returned %v, within a day: %v; want an UnstableError", err, ctx.Err() == nil)
		}
	})
}

func TestRestartDelaysDoubleUpToTheLongest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, cl, kafkaOptions := inVirtualTime(t, "in", "out")
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Value: []byte("fail:1")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		const restarts, longest = 40, time.Minute
		var delays []time.Duration
		app := weir.New("app", weir.Brokers(c.ListenAddrs()...), weir.InstanceID("a"), weir.Store(checkpoint.NewMem()), weir.KafkaOptions(kafkaOptions...),
			weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: longest, Limit: restarts, Quiet: 24 * time.Hour}),
			weir.Listen(weir.Listener{Restarting: func(i event.Restarting) { delays = append(delays, i.After) }}))
		sums(weir.Retry)(app)
		wantError(t, app.Run(t.Context()), "gave up after 40 restarts")
		if len(delays) != restarts {
			t.Fatalf("%d restarts, want %d", len(delays), restarts)
		}
		for i, d := range delays {
			want := min(time.Millisecond<<min(i, 30), longest) // and half of it more or less
			if d < want/2 || d > min(want+want/2, longest) {
				t.Errorf("restart %d after %v, want about %v, at most %v", i+1, d, want, longest)
			}
		}
	})
}

// sendingTo returns a function that writes a value to a topic.
func sendingTo(t *testing.T, cl *kgo.Client, topic string) func(v string) {
	return func(v string) {
		t.Helper()
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Value: []byte(v)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// inVirtualTime starts an embedded broker for a test in a bubble, and a client beside the
// app, whose client options it returns.
func inVirtualTime(t *testing.T, topics ...string) (*kfake.Cluster, *kgo.Client, []kgo.Opt) {
	t.Helper()
	vnet := &kfake.VirtualNetwork{}
	c, err := kfake.NewCluster(kfake.ListenFn(vnet.Listen), kfake.Ports(9092), kfake.SeedTopics(1, topics...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	opts := []kgo.Opt{kgo.Dialer(func(ctx context.Context, network, host string) (net.Conn, error) {
		c, err := vnet.DialContext(ctx, network, host)
		return distant{c}, err
	}), kgo.DisableClientMetrics()}
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(c.ListenAddrs()...))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return c, cl, opts
}

// distant is a connection on which a request takes its time: the client repeats at once a
// fetch that is refused at once, and virtual time would stand.
type distant struct{ net.Conn }

func (d distant) Write(b []byte) (int, error) {
	time.Sleep(10 * time.Millisecond)
	return d.Conn.Write(b)
}

// The client keeps quiet about a topic that is missing while it has another one to read.
func TestIdleAppNoticesThatOneOfItsInputsIsGone(t *testing.T) {
	for name, tc := range map[string]struct {
		hurt func(ctx context.Context, c *kfake.Cluster, adm *kadm.Client) error
		want []string // nil: it goes on
	}{
		"deleted": {
			hurt: func(ctx context.Context, _ *kfake.Cluster, adm *kadm.Client) error {
				_, err := adm.DeleteTopics(ctx, "more")
				return err
			},
			want: []string{"input more is gone or was recreated", "UNKNOWN_TOPIC_OR_PARTITION", "WEIR_RECOVER=nothing", `group "app"`},
		},
		"replaced": {
			hurt: func(ctx context.Context, _ *kfake.Cluster, adm *kadm.Client) error {
				if _, err := adm.DeleteTopics(ctx, "more"); err != nil {
					return err
				}
				_, err := adm.CreateTopic(ctx, 1, 1, nil, "more")
				return err
			},
			want: []string{"input more/0 is gone or was recreated", "UNKNOWN_TOPIC_ID", "WEIR_RECOVER=nothing", `group "app"`},
		},
		"unknown to a broker for a moment": {hurt: func(_ context.Context, c *kfake.Cluster, _ *kadm.Client) error {
			c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "more", Err: kerr.UnknownTopicOrPartition})
			return nil
		}},
		"hidden": {hurt: func(_ context.Context, c *kfake.Cluster, _ *kadm.Client) error {
			c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: "more", Err: kerr.TopicAuthorizationFailed, Count: -1})
			return nil
		}},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, cl, kafkaOptions := inVirtualTime(t, "in", "more", "out")
				committed := make(chan struct{})
				app := weir.New("app", weir.Brokers(c.ListenAddrs()...), weir.InstanceID("a"), weir.Store(checkpoint.NewMem()), weir.KafkaOptions(kafkaOptions...),
					weir.Listen(weir.Listener{CheckpointCommitted: func(event.CheckpointCommitted) { close(committed) }}))
				in := weir.From(app, "in", source.Values("in", codec.String))
				more := weir.From(app, "more", source.Values("more", codec.String))
				weir.To(weir.Merge("all", in, more), "out", kafka.Values("out", kafka.NoKey, codec.String))
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				ended := make(chan error, 1)
				go func() { ended <- app.Run(ctx) }()
				if err := cl.ProduceSync(ctx, &kgo.Record{Topic: "in", Value: []byte("x")}).FirstErr(); err != nil {
					t.Fatal(err)
				}
				<-committed
				if err := tc.hurt(ctx, c, kadm.NewClient(cl)); err != nil {
					t.Fatal(err)
				}
				time.AfterFunc(time.Minute, stop)
				err := <-ended
				switch {
				case tc.want != nil:
					wantError(t, err, tc.want...)
				case err != nil:
					t.Fatal(err)
				case ctx.Err() == nil:
					t.Fatal("it stopped by itself")
				}
			})
		})
	}
}

func TestInputsThatWereAllReplacedAreNamed(t *testing.T) {
	brokers, store := broker(t, 1, "old", "older", "new", "out"), checkpoint.NewMem()
	counts := func(topic string, others ...string) func(*weir.App) {
		return func(app *weir.App) {
			from := func(topic string) weir.Stream[string] {
				return weir.From(app, topic, source.Values(topic, codec.String))
			}
			var more []weir.Stream[string]
			for _, topic := range others {
				more = append(more, from(topic))
			}
			byWord := weir.KeyBy(weir.Merge("all", from(topic), more...), "by-word", func(w string) string { return w }, codec.String)
			total := weir.Map(weir.Aggregate(byWord, "count", weir.Count[string]()), "total", func(c weir.KV[string, int64]) (string, error) {
				return fmt.Sprintf("%s:%d", c.Key, c.Value), nil
			})
			weir.To(total, "out", kafka.Values("out", kafka.NoKey, codec.String))
		}
	}
	produce(t, brokers, "old", "a")
	produce(t, brokers, "older", "a")
	if err := start(t, "app", brokers, counts("old", "older"), weir.Store(store), weir.Drain()).wait(); err != nil {
		t.Fatal(err)
	}
	produce(t, brokers, "new", "a")
	err := start(t, "app", brokers, counts("new"), weir.Store(store), weir.Drain()).wait()
	wantError(t, err, `["new"]`, `["old" "older"]`, "all inputs were replaced", "WEIR_RECOVER=checkpoint")
	if strings.Contains(err.Error(), "expired") {
		t.Errorf("no offset expired: %v", err)
	}
	if err := start(t, "app", brokers, counts("new"), weir.Store(store), weir.Drain(), weir.OnMismatch(weir.RecoverCheckpoint)).wait(); err != nil {
		t.Fatal(err)
	}
	wantValues(t, brokers, "out", "a:1", "a:2", "a:3")
}
