package weir_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/accept"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// shelf is what readers of a receiver see: a list of values that only grows.
type shelf struct {
	mu     sync.Mutex
	values []string
	moved  chan struct{} // closed and made anew at each change
}

func newShelf() *shelf { return &shelf{moved: make(chan struct{})} }

// put appends values. It is called with mu held.
func (s *shelf) put(values []string) {
	s.values = append(s.values, values...)
	close(s.moved)
	s.moved = make(chan struct{})
}

func (s *shelf) list() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.values)
}

// await waits until n values are there.
func (s *shelf) await(t *testing.T, n int) {
	t.Helper()
	timeout := time.After(deadline)
	for {
		s.mu.Lock()
		have, moved := len(s.values), s.moved
		s.mu.Unlock()
		if have >= n {
			return
		}
		select {
		case <-moved:
		case <-timeout:
			t.Fatalf("%d values are there, want %d", have, n)
		}
	}
}

// receiver is what a write-ahead sink writes to: a list of values and, moved in the same
// atomic step as the values, a marker. It outlives every app.
type receiver struct {
	*shelf
	marker marker
}

// marker says which log was applied last.
type marker struct {
	lineage    string
	checkpoint int64
}

func newReceiver() *receiver { return &receiver{shelf: newShelf()} }

// apply appends the values of log m, unless it has them.
func (r *receiver) apply(m marker, values []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m.checkpoint <= r.marker.checkpoint {
		return
	}
	r.put(values)
	r.marker = m
}

func (r *receiver) at() marker {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.marker
}

// target is what a write-ahead sink needs of a receiver.
type target interface {
	apply(marker, []string)
	at() marker
}

// ahead is a write-ahead sink of strings. Its fields are hooks for tests, and what it
// was told; nil hooks do nothing. It may be used by several apps.
type ahead struct {
	to     target
	retain int64 // for how many checkpoints logs are kept after they were applied

	step    func(ctx context.Context, step string, l sink.Log) error // "read", "apply", "applied": before, between and after
	handed  func(l sink.Log)                                         // in Committed
	opening func(sink.ApplierEnv) error
	refuses func(restored int64) error // in Recover
	drained func()
	full    int    // how many logs may be pending; 0: any number
	waiting func() // called when it waits for room

	mu        sync.Mutex
	recovered []string // "restored: checkpoint after ..., ..." of each Recover
	envs      []sink.ApplierEnv
	closed    int
}

func (*ahead) Check() error   { return nil }
func (*ahead) String() string { return "values ahead" }

func (s *ahead) Open(env sink.Env) (sink.Writer[string], error) {
	if env.Applier() == nil || env.Context().Err() != nil {
		return nil, errors.New("the writer has no applier")
	}
	return &aheadWriter{}, nil
}

func (s *ahead) Applier(env sink.ApplierEnv) (sink.Applier, error) {
	if s.opening != nil {
		if err := s.opening(env); err != nil {
			return nil, err
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.envs = append(s.envs, env)
	return &aheadApplier{sink: s, env: env, more: make(chan struct{}, 1), idle: make(chan struct{}, 1)}, nil
}

type aheadWriter struct{ log []byte }

func (w *aheadWriter) Write(v string) error {
	w.log = append(append(w.log, v...), '\n')
	return nil
}

func (w *aheadWriter) Log() ([]byte, error) {
	l := w.log
	w.log = nil
	return l, nil
}

type aheadApplier struct {
	sink *ahead
	env  sink.ApplierEnv
	more chan struct{} // capacity 1
	idle chan struct{} // capacity 1: all was applied

	mu      sync.Mutex
	queue   []sink.Log
	applied []int64 // checkpoints with logs, for Keep
	last    int64   // newest that was heard of
}

// errLost says that the receiver lost more than the logs hold.
var errLost = errors.New("the receiver lost what is not kept any more")

func (a *aheadApplier) Recover(_ context.Context, restored int64, logs []sink.Log) error {
	var told []string
	for _, l := range logs {
		told = append(told, fmt.Sprintf("%d after %d", l.Checkpoint, l.After))
	}
	a.sink.mu.Lock()
	a.sink.recovered = append(a.sink.recovered, fmt.Sprintf("%d: %s", restored, strings.Join(told, ", ")))
	a.sink.mu.Unlock()
	if a.sink.refuses != nil {
		if err := a.sink.refuses(restored); err != nil {
			return err
		}
	}
	if n := len(logs); n > 0 && logs[n-1].Checkpoint > restored {
		return fmt.Errorf("checkpoint %d is restored, and there is a log of %d", restored, logs[n-1].Checkpoint)
	}
	at := a.sink.to.at()
	if len(logs) > 0 && at.checkpoint < logs[0].After {
		return errLost
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = restored
	for _, l := range logs {
		if l.Checkpoint > at.checkpoint {
			a.queue = append(a.queue, l)
		} else {
			a.applied = append(a.applied, l.Checkpoint)
		}
	}
	a.wake()
	return nil
}

func (a *aheadApplier) wake() {
	select {
	case a.more <- struct{}{}:
	default:
	}
}

func (a *aheadApplier) Committed(l sink.Log) {
	if a.sink.handed != nil {
		a.sink.handed(l)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if l.Checkpoint <= a.last || l.Lineage != a.env.Lineage() {
		panic(fmt.Sprintf("checkpoint %d of %s was handed over after %d of %s", l.Checkpoint, l.Lineage, a.last, a.env.Lineage()))
	}
	a.last = l.Checkpoint
	if l.Bytes > 0 {
		a.queue = append(a.queue, l)
	}
	a.wake()
}

func (a *aheadApplier) next() (l sink.Log, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 {
		return l, false
	}
	return a.queue[0], true
}

func (a *aheadApplier) Run(ctx context.Context) error {
	for {
		l, ok := a.next()
		if !ok {
			select {
			case <-a.more:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		if err := a.applyOne(ctx, l); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return err
		}
		a.mu.Lock()
		a.queue = a.queue[1:]
		a.applied = append(a.applied, l.Checkpoint)
		if len(a.queue) == 0 {
			select {
			case a.idle <- struct{}{}:
			default:
			}
		}
		a.mu.Unlock()
	}
}

func (a *aheadApplier) applyOne(ctx context.Context, l sink.Log) error {
	step := func(s string) error {
		if a.sink.step == nil {
			return nil
		}
		return a.sink.step(ctx, s, l)
	}
	if err := step("read"); err != nil {
		return err
	}
	parts, err := l.Read(ctx)
	if err != nil {
		return err
	}
	var values []string
	var bytes int64
	for _, p := range parts {
		bytes += int64(len(p))
		values = append(values, strings.Split(strings.TrimSuffix(string(p), "\n"), "\n")...)
	}
	if bytes != l.Bytes {
		return fmt.Errorf("the log has %d bytes, %d were said", bytes, l.Bytes)
	}
	if err := step("apply"); err != nil {
		return err
	}
	a.sink.to.apply(marker{l.Lineage, l.Checkpoint}, values)
	return step("applied")
}

func (a *aheadApplier) Drain(ctx context.Context) error {
	if a.sink.drained != nil {
		a.sink.drained()
	}
	for {
		if _, ok := a.next(); !ok {
			return nil
		}
		select {
		case <-a.idle:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *aheadApplier) Room(ctx context.Context) error {
	for a.sink.full > 0 {
		a.mu.Lock()
		pending := len(a.queue)
		a.mu.Unlock()
		if pending < a.sink.full {
			return nil
		}
		if a.sink.waiting != nil {
			a.sink.waiting()
		}
		select {
		case <-a.idle:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

func (a *aheadApplier) Keep() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	keep := a.last + 1
	if len(a.queue) > 0 {
		keep = a.queue[0].Checkpoint
	}
	for _, id := range slices.Backward(a.applied) {
		if id > a.last-a.sink.retain {
			keep = min(keep, id)
		}
	}
	return keep
}

func (a *aheadApplier) Close() error {
	a.sink.mu.Lock()
	defer a.sink.mu.Unlock()
	a.sink.closed++
	return nil
}

// sumsTo keeps the sum of the numbers "key:n" of each key and writes "key:sum" to a sink.
func sumsTo(to sink.Sink[string]) func(*weir.App) { return slowSumsTo(to, 0) }

// slowSumsTo is sumsTo with a pause before each record.
func slowSumsTo(to sink.Sink[string], pause time.Duration) func(*weir.App) {
	return func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		byKey := weir.KeyBy(in, "by-key", func(s string) string { k, _, _ := strings.Cut(s, ":"); return k }, codec.String, weir.ValueCodec(codec.String))
		out := weir.Process(byKey, "sum", func(s *weir.Setup) weir.Handler[string, string, string] {
			total := state.Value(s, "total", codec.Int64)
			return weir.OnRecord(func(c *weir.Context[string, string], v string) error {
				time.Sleep(pause)
				_, digits, _ := strings.Cut(v, ":")
				n, err := strconv.ParseInt(digits, 10, 64)
				if err != nil {
					return err
				}
				total.Set(total.Get() + n)
				c.Emit(c.Key() + ":" + strconv.FormatInt(total.Get(), 10))
				return nil
			})
		})
		weir.To(out, "ahead", to)
	}
}

// ones returns n records "key:1" of each key.
func ones(n int, keys ...string) []string {
	var vs []string
	for range n {
		for _, k := range keys {
			vs = append(vs, k+":1")
		}
	}
	return vs
}

// wantSums checks that the receiver has each sum from 1 to n of each key, once and in
// order.
func wantSums(t *testing.T, r interface{ list() []string }, n int, keys ...string) {
	t.Helper()
	last := map[string]int{}
	for _, v := range r.list() {
		key, digits, _ := strings.Cut(v, ":")
		sum, _ := strconv.Atoi(digits)
		if sum != last[key]+1 {
			t.Fatalf("%s follows %s:%d", v, key, last[key])
		}
		last[key] = sum
	}
	for _, k := range keys {
		if last[k] != n {
			t.Fatalf("the receiver has %d values of %s, want %d", last[k], k, n)
		}
	}
}

var fast = weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 1000, Quiet: time.Hour})

// life runs an app with a write-ahead sink until its input is drained.
func life(t *testing.T, brokers []string, to *ahead, opts ...weir.Option) *running {
	t.Helper()
	r := start(t, "app", brokers, sumsTo(to), append([]weir.Option{weir.Drain(), fast}, opts...)...)
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	return r
}

// inBothModes runs a test with checkpoints that are aligned and with unaligned ones.
func inBothModes(t *testing.T, test func(t *testing.T, mode weir.Option)) {
	t.Run("aligned", func(t *testing.T) { test(t, weir.KafkaOptions()) })
	t.Run("unaligned", func(t *testing.T) { test(t, weir.Unaligned()) })
}

var letters = []string{"a", "b", "c", "d", "e", "f", "g"}

// TestS34_WriteAheadSinkAppliesEachOperationOnce fails the applier at every step of many
// logs, in several lives of an app with other parallelism.
func TestS34_WriteAheadSinkAppliesEachOperationOnce(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		brokers := broker(t, 4, "in")
		store := checkpoint.NewMem()
		to := newReceiver()
		for round, parallelism := range []int{2, 5, 1} {
			produce(t, brokers, "in", ones(300, letters...)...)
			var mu sync.Mutex
			steps := 0
			sink := &ahead{to: to, retain: int64(round * 2), step: func(_ context.Context, step string, _ sink.Log) error {
				mu.Lock()
				defer mu.Unlock()
				if steps++; slices.Contains([]int{1, 3, 5, 8}, steps) { // each step of the first log
					return errors.New("the connection broke before step " + step)
				}
				return nil
			}}
			r := life(t, brokers, sink, mode, weir.Store(store), weir.Parallelism(parallelism), weir.CheckpointEvery(time.Millisecond), weir.AfterRecords(100))
			wantSums(t, to, 300*(round+1), letters...)
			for _, step := range []string{"read", "apply", "applied"} {
				await(r, 1, func(e event.Restarting) bool {
					return strings.Contains(e.Err.Error(), "the connection broke before step "+step)
				})
			}
			if len(sink.envs) != sink.closed || len(sink.recovered) != 5 {
				t.Errorf("%d appliers, %d closed; recovered %q", len(sink.envs), sink.closed, sink.recovered)
			}
		}
	})
}

// TestS03_LogOfACheckpointWhoseCompletionWasLostIsAppliedOnce ends a process at the
// instant at which its sink learns of a commit.
func TestS03_LogOfACheckpointWhoseCompletionWasLostIsAppliedOnce(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		for _, applied := range []bool{false, true} { // it was applied, and nobody knows
			t.Run(fmt.Sprint(applied), func(t *testing.T) {
				brokers := broker(t, 2, "in")
				store := checkpoint.NewMem()
				to := newReceiver()
				produce(t, brokers, "in", ones(3, letters...)...)
				var network severed
				var lost int64
				dead := make(chan struct{})
				dying := &ahead{to: to}
				dying.handed = func(l sink.Log) {
					if lost == 0 && l.Bytes > 0 {
						lost = l.Checkpoint
						network.sever()
						if applied {
							parts, err := l.Read(t.Context())
							if err != nil {
								t.Error(err)
							}
							to.apply(marker{l.Lineage, l.Checkpoint}, strings.Fields(string(slices.Concat(parts...))))
						}
						close(dead)
					}
				}
				dying.step = func(context.Context, string, sink.Log) error { <-dead; return errors.New("killed") }
				start(t, "app", brokers, sumsTo(dying), mode, weir.Store(store), weir.KafkaOptions(kgo.Dialer(network.dial)))
				<-dead
				produce(t, brokers, "in", ones(2, letters...)...)
				next := &ahead{to: to}
				life(t, brokers, next, mode, weir.Store(store))
				wantSums(t, to, 5, letters...)
				if want := fmt.Sprintf("%d: %d after 0", lost, lost); next.recovered[0] != want {
					t.Errorf("recovered %q, want %q", next.recovered, want)
				}
				if a, b := dying.envs[0].Lineage(), next.envs[0].Lineage(); a != b || len(a) != 16 {
					t.Errorf("lineage %q went on as %q", a, b)
				}
			})
		}
	})
}

// TestLogsAreAppliedOnlyAfterTheCommit cuts a process off between a durable checkpoint
// and its commit.
func TestLogsAreAppliedOnlyAfterTheCommit(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		brokers := broker(t, 2, "in")
		store := checkpoint.NewMem()
		to := newReceiver()
		produce(t, brokers, "in", ones(3, letters...)...)
		var network severed
		var mu sync.Mutex
		var told []string
		tell := func(what string, id int64) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, fmt.Sprint(what, " ", id))
		}
		var cut int64
		durable := make(chan struct{})
		first := &ahead{to: to, handed: func(l sink.Log) { tell("handed over", l.Checkpoint) }}
		start(t, "app", brokers, sumsTo(first), mode, weir.Store(store), weir.KafkaOptions(kgo.Dialer(network.dial)), weir.Listen(weir.Listener{
			CheckpointPersisted: func(e event.CheckpointPersisted) {
				if len(to.list()) > 0 && cut == 0 {
					cut = e.Checkpoint
					network.sever()
					close(durable)
				}
			},
			CheckpointCommitted: func(e event.CheckpointCommitted) { tell("committed", e.Checkpoint) },
		}))
		to.await(t, 1)
		produce(t, brokers, "in", ones(2, letters...)...)
		<-durable
		// Of the checkpoint that was not committed the sink sees nothing. Its id comes again
		// with another cut.
		produce(t, brokers, "in", ones(2, letters...)...)
		life(t, brokers, &ahead{to: to}, mode, weir.Store(store))
		wantSums(t, to, 7, letters...)
		mu.Lock()
		defer mu.Unlock()
		for i, what := range told {
			id, handed := strings.CutPrefix(what, "handed over ")
			if handed && (i == 0 || told[i-1] != "committed "+id) {
				t.Fatalf("in this order: %q", told)
			}
		}
	})
}

// TestS38_LogsOfCheckpointsThatWereGivenUpAreAppliedWithTheNext lets checkpoints fail
// while they are made durable, and time out while a subtask is held up.
func TestS38_LogsOfCheckpointsThatWereGivenUpAreAppliedWithTheNext(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		t.Run("store", func(t *testing.T) {
			for _, object := range []string{"ckpt/", "log/"} {
				brokers := broker(t, 4, "in")
				mem := checkpoint.NewMem()
				store := faultstore.Wrap(mem)
				var mu sync.Mutex
				writes, healed := 0, false
				store.Before(func(_ context.Context, op faultstore.Op, name string) error {
					mu.Lock()
					defer mu.Unlock()
					if op != faultstore.Put || !strings.HasPrefix(name, object) {
						return nil
					}
					if writes++; writes%3 != 0 && !healed {
						return errors.New("not now")
					}
					return nil
				})
				to := newReceiver()
				var keys []string // large enough for logs of their own
				for _, l := range letters {
					keys = append(keys, strings.Repeat(l, 4<<10))
				}
				values := ones(200, keys...)
				produce(t, brokers, "in", values...)
				r := start(t, "app", brokers, sumsTo(&ahead{to: to}), mode, weir.Store(store), weir.TolerableFailures(1000))
				await(r, 2, any1[event.CheckpointFailed])
				mu.Lock()
				healed = true
				mu.Unlock()
				to.await(t, len(values))
				r.stop()
				if err := r.wait(); err != nil {
					t.Fatal(err)
				}
				wantSums(t, to, 200, keys...)
			}
		})
		t.Run("alignment", func(t *testing.T) {
			brokers := broker(t, 4, "in")
			to := newReceiver()
			produce(t, brokers, "in", ones(5, letters...)...)
			held, failed := &ahead{to: to}, make(chan struct{})
			var once sync.Once
			var given atomic.Bool
			topology := func(app *weir.App) {
				in := weir.From(app, "in", source.Values("in", codec.String))
				byKey := weir.KeyBy(in, "by-key", func(s string) string { k, _, _ := strings.Cut(s, ":"); return k }, codec.String, weir.ValueCodec(codec.String))
				out := weir.Process(byKey, "sum", func(s *weir.Setup) weir.Handler[string, string, string] {
					total := state.Value(s, "total", codec.Int64)
					return weir.OnRecord(func(c *weir.Context[string, string], v string) error {
						total.Set(total.Get() + 1)
						c.Emit(c.Key() + ":" + strconv.FormatInt(total.Get(), 10))
						if c.Key() == "a" && total.Get() == 3 {
							<-failed // the barrier is behind this record
						}
						return nil
					})
				})
				weir.To(out, "ahead", held)
			}
			r := start(t, "app", brokers, topology, mode, weir.Store(checkpoint.NewMem()), weir.Parallelism(4),
				weir.CheckpointTimeout(50*time.Millisecond), weir.TolerableFailures(1000),
				weir.Listen(weir.Listener{
					CheckpointFailed: func(event.CheckpointFailed) { given.Store(true) },
					// The subtask goes on when the next one has begun: its part of the first comes late.
					CheckpointBegun: func(event.CheckpointBegun) {
						if given.Load() {
							once.Do(func() { close(failed) })
						}
					},
				}))
			<-failed
			to.await(t, 5*len(letters))
			r.stop()
			if err := r.wait(); err != nil {
				t.Fatal(err)
			}
			wantSums(t, to, 5, letters...)
		})
	})
}

// stuck is a step hook that holds the applier up until it is released.
type stuck struct {
	once    sync.Once
	reached chan struct{}
	release chan struct{}
}

func newStuck() *stuck { return &stuck{reached: make(chan struct{}), release: make(chan struct{})} }

func (s *stuck) step(ctx context.Context, step string, _ sink.Log) error {
	if step == "apply" {
		s.once.Do(func() { close(s.reached) })
		select {
		case <-s.release:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return nil
}

// TestPendingLogsOutliveTheRetentionOfCheckpoints takes many checkpoints while the
// receiver is down, and goes on in another process.
func TestPendingLogsOutliveTheRetentionOfCheckpoints(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		for _, size := range []int{1, 100} { // logs in manifests, and logs of their own
			t.Run(fmt.Sprint(size), func(t *testing.T) {
				brokers := broker(t, 2, "in")
				store := checkpoint.NewMem()
				to := newReceiver()
				down := newStuck()
				var network severed
				dying := &ahead{to: to, step: down.step}
				r := start(t, "app", brokers, sumsTo(dying), mode, weir.Store(store), weir.KafkaOptions(kgo.Dialer(network.dial)), weir.Retain(1),
					weir.CheckpointEvery(0), weir.AfterRecords(int64(size*15*len(letters))))
				rounds := 12
				if size == 1 {
					rounds = 3 * checkpoint.DefaultPackLogs // most of them in packs
				}
				for i := range rounds {
					produce(t, brokers, "in", ones(size*15, letters...)...)
					await(r, i+1, any1[event.CheckpointCommitted])
				}
				<-down.reached
				network.sever()
				next := &ahead{to: to}
				life(t, brokers, next, mode, weir.Store(store), weir.Retain(1))
				wantSums(t, to, size*15*rounds, letters...)
				if n := strings.Count(next.recovered[0], "after"); n < rounds/2 {
					t.Errorf("recovered %d logs: %q", n, next.recovered[0])
				}
				// What the process does that was cut off and still runs changes nothing.
				close(down.release)
				life(t, brokers, next, mode, weir.Store(store), weir.Retain(1))
				wantSums(t, to, size*15*rounds, letters...)
			})
		}
	})
}

// TestReceiverThatIsDownHoldsTheInputAndNoCheckpoint leaves a receiver down for many
// times the checkpoint timeout.
func TestReceiverThatIsDownHoldsTheInputAndNoCheckpoint(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		brokers := broker(t, 2, "in", "out")
		to, down := newReceiver(), newStuck()
		held := make(chan struct{})
		s := &ahead{to: to, step: down.step, full: 2, waiting: sync.OnceFunc(func() { close(held) })}
		const timeout = time.Second
		r := start(t, "app", brokers, sumsTo(s), mode, weir.Store(checkpoint.NewMem()), weir.CheckpointTimeout(timeout), weir.TolerableFailures(1))
		n := 0
		for waits := false; !waits; n += 100 {
			produce(t, brokers, "in", ones(100, letters...)...)
			select {
			case <-held:
				waits = true
			case <-r.done:
				t.Fatalf("the app ended: %v", r.wait())
			default:
			}
		}
		// Time passes, while more input comes.
		for begun := time.Now(); time.Since(begun) < 4*timeout; n += 100 {
			produce(t, brokers, "in", ones(100, letters...)...)
			if err := start(t, fmt.Sprint("other-", n), brokers, sums(same), weir.Store(checkpoint.NewMem()), weir.Drain(), weir.Parallelism(1)).wait(); err != nil {
				t.Fatal(err)
			}
		}
		close(down.release)
		to.await(t, n*len(letters))
		r.stop()
		if err := r.wait(); err != nil {
			t.Fatal(err)
		}
		wantSums(t, to, n, letters...)
	})
}

func TestS04_DamagedLogStopsTheAppByName(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		brokers := broker(t, 2, "in")
		store := checkpoint.NewMem()
		to, down := newReceiver(), newStuck()
		var network severed
		r := start(t, "app", brokers, sumsTo(&ahead{to: to, step: down.step}), mode, weir.Store(store), weir.KafkaOptions(kgo.Dialer(network.dial)),
			weir.CheckpointEvery(0), weir.AfterRecords(int64(3000*len(letters))))
		// What an unaligned checkpoint overtakes is logged for a later one.
		var large checkpoint.LogRef
		n := 0
		for large.Object == "" {
			produce(t, brokers, "in", ones(3000, letters...)...)
			n += 3000
			await(r, n/3000, any1[event.CheckpointCommitted])
			if n > 10*3000 {
				t.Fatalf("no log is an object of its own: %+v", newestManifest(t, store).Logs)
			}
			for _, sink := range newestManifest(t, store).Logs {
				for _, l := range sink.Logs {
					if !l.Inline() {
						large = l
					}
				}
			}
		}
		<-down.reached
		network.sever()
		defer close(down.release)
		to = newReceiver() // it lost everything
		if err := faultstore.FlipBit(store, large.Object, 99); err != nil {
			t.Fatal(err)
		}
		wantError(t, start(t, "app", brokers, sumsTo(&ahead{to: to}), mode, weir.Store(store), fast).wait(), `sink "ahead"`, large.Object, "damaged")
		if err := faultstore.FlipBit(store, large.Object, 99); err != nil {
			t.Fatal(err)
		}
		life(t, brokers, &ahead{to: to}, mode, weir.Store(store))
		wantSums(t, to, n, letters...)
	})
}

// newestManifest reads the manifest with the highest checkpoint id.
func newestManifest(t *testing.T, store checkpoint.Store) *checkpoint.Manifest {
	t.Helper()
	list, err := checkpoint.ListManifests(t.Context(), store)
	if err != nil || len(list) == 0 {
		t.Fatal(list, err)
	}
	m, _, err := checkpoint.Inspect(t.Context(), store, list[len(list)-1].Name)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestStopWaitsUntilWhatIsCommittedIsApplied(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		brokers := broker(t, 2, "in")
		store := checkpoint.NewMem()
		to := newReceiver()
		down := newStuck()
		s := &ahead{to: to, step: down.step, drained: sync.OnceFunc(func() { close(down.release) })}
		r := start(t, "app", brokers, sumsTo(s), mode, weir.Store(store))
		produce(t, brokers, "in", ones(3, letters...)...)
		<-down.reached
		r.stop()
		if err := r.wait(); err != nil {
			t.Fatal(err)
		}
		last := await(r, 1, func(e event.CheckpointCommitted) bool { return e.Records > 0 })
		if to.at().checkpoint < last.Checkpoint {
			t.Errorf("the app stopped with %v applied after %v", to.at(), last)
		}
		life(t, brokers, &ahead{to: to}, mode, weir.Store(store))
		wantSums(t, to, 3, letters...)
	})
}

func TestStopThatCannotWaitForASinkSaysWhatIsLeft(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		for _, how := range []string{"stop", "drain"} {
			t.Run(how, func(t *testing.T) {
				brokers := broker(t, 2, "in")
				store := checkpoint.NewMem()
				to := newReceiver()
				down := newStuck()
				produce(t, brokers, "in", ones(3, letters...)...)
				opts := []weir.Option{mode, weir.Store(store), weir.StopTimeout(200 * time.Millisecond)}
				if how == "drain" {
					opts = append(opts, weir.Drain())
				}
				s := &ahead{to: to, step: down.step}
				r := start(t, "app", brokers, sumsTo(s), opts...)
				<-down.reached
				if how == "stop" {
					committedRecords(r, int64(3*len(letters))) // an idle app has nothing to do for the stop
					r.stop()
				}
				err := r.wait()
				wantError(t, err, `sink "ahead" has not applied everything`, "nothing is lost", "weir.StopTimeout")
				if ue, ok := errors.AsType[*weir.UnappliedError](err); !ok || ue.Operator != "ahead" || ue.Checkpoint < 1 {
					t.Errorf("%+v", ue)
				}
				life(t, brokers, &ahead{to: to}, mode, weir.Store(store))
				wantSums(t, to, 3, letters...)
			})
		}
	})
}

// TestS34_SavepointHasWhatItsSinkHadYetToDo takes a savepoint while the receiver is
// down, ends the app, and starts from it elsewhere: in a store without history.
func TestS34_SavepointHasWhatItsSinkHadYetToDo(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		brokers := broker(t, 2, "in")
		to := newReceiver()
		down := newStuck()
		app := weir.New("wordcount", weir.Brokers(brokers...), weir.InstanceID("a"), mode, weir.Store(checkpoint.NewMem()), weir.CheckpointEvery(5*time.Millisecond), weir.StopTimeout(time.Second))
		dying := &ahead{to: to, step: down.step}
		sumsTo(dying)(app)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- app.Run(ctx) }()
		defer cancel()
		produce(t, brokers, "in", ones(3, letters...)...)
		<-down.reached
		produce(t, brokers, "in", ones(2, letters...)...)
		dir := t.TempDir()
		if _, err := app.Savepoint(t.Context(), dir, "x"); err != nil {
			t.Fatal(err)
		}
		cancel()
		wantError(t, <-done, "has not applied everything")
		forget(t, brokers)
		produce(t, brokers, "in", ones(2, letters...)...)
		store := checkpoint.NewMem()
		// The first attempt dies before it has committed anything, with part of it applied.
		var failed bool
		next := &ahead{to: to, step: func(_ context.Context, step string, l sink.Log) error {
			if step == "applied" && !failed {
				failed = true
				return errors.New("killed")
			}
			return nil
		}}
		r := start(t, "wordcount", brokers, sumsTo(next), mode, weir.Store(store), weir.FromSavepoint(dir, "x"), weir.Drain(), fast)
		if err := r.wait(); err != nil {
			t.Fatal(err)
		}
		wantSums(t, to, 7, letters...)
		if !failed || len(next.recovered) < 2 || !strings.Contains(next.recovered[0], "after 0") {
			t.Errorf("failed %v, recovered %q", failed, next.recovered)
		}
		if next.envs[0].Lineage() == dying.envs[0].Lineage() || to.at().lineage == dying.envs[0].Lineage() {
			t.Errorf("the lineage went on: %v", to.at())
		}
	})
}

// TestStartFromASavepointThatASinkRefusesMayBeAccepted has a sink that goes by the number of
// what is restored, as that of package redis does: each start that it refuses has left a
// checkpoint in the store when the next one begins.
func TestStartFromASavepointThatASinkRefusesMayBeAccepted(t *testing.T) {
	for name, another := range map[string]bool{"another store": true, "the same store, in which the app went on": false} {
		t.Run(name, func(t *testing.T) {
			brokers := broker(t, 2, "in")
			to := newReceiver()
			store, dir := checkpoint.Store(checkpoint.NewMem()), t.TempDir()
			app := weir.New("wordcount", weir.Brokers(brokers...), weir.InstanceID("a"), weir.Store(store), weir.CheckpointEvery(5*time.Millisecond))
			sumsTo(&ahead{to: to, retain: 1000})(app)
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan error, 1)
			go func() { done <- app.Run(ctx) }()
			defer cancel()
			produce(t, brokers, "in", ones(3, letters...)...)
			to.await(t, 3*len(letters))
			if _, err := app.Savepoint(t.Context(), dir, "x"); err != nil {
				t.Fatal(err)
			}
			sums := 3
			if !another {
				produce(t, brokers, "in", ones(2, letters...)...)
				sums += 2
				to.await(t, sums*len(letters))
			}
			cancel()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
			forget(t, brokers)
			if another {
				store = checkpoint.NewMem()
			}
			*to = *newReceiver()
			bad := errors.New("this is another receiver")
			var told []int64
			again := func(opts ...weir.Option) error {
				s := &ahead{to: to, refuses: func(restored int64) error {
					told = append(told, restored)
					if !accept.Given("WEIR_TEST_ACCEPT", "ahead", restored) {
						return bad
					}
					return nil
				}}
				return start(t, "wordcount", brokers, sumsTo(s), append(opts, weir.Store(store), weir.FromSavepoint(dir, "x"), weir.Drain(), fast)...).wait()
			}
			for range 3 {
				wantError(t, again(), `sink "ahead"`, bad.Error())
			}
			if len(told) != 3 || told[1] != told[0] || told[2] != told[0] {
				t.Fatalf("the sink was told %d", told)
			}
			accepted := fmt.Sprintf("ahead@%d", told[0])
			t.Setenv("WEIR_TEST_ACCEPT", accepted)
			produce(t, brokers, "in", ones(1, letters...)...)
			if err := again(); err != nil {
				t.Fatal(err)
			}
			wantSums(t, to, sums+1, letters...)
			// What was accepted is over when something was committed: another start from the same
			// savepoint is another matter.
			if _, err := adminOf(t, brokers).DeleteGroup(t.Context(), "wordcount"); err != nil {
				t.Fatal(err)
			}
			told = nil
			for range 2 {
				wantError(t, again(weir.OnMismatch(weir.RecoverSavepoint)), `sink "ahead"`, bad.Error())
			}
			if told[0] != told[1] {
				t.Errorf("the sink was told %d", told)
			}
			t.Setenv("WEIR_TEST_ACCEPT", fmt.Sprintf("%s,ahead@%d", accepted, told[0]))
			if err := again(weir.OnMismatch(weir.RecoverSavepoint)); err != nil {
				t.Fatal(err)
			}
		})
	}
}

func TestS31_RemovedSinkIsRefusedUntilItsLogsMayBeDropped(t *testing.T) {
	brokers := broker(t, 2, "in", "out")
	store := checkpoint.NewMem()
	to := newReceiver()
	produce(t, brokers, "in", ones(3, letters...)...)
	// Without retain nothing is left of what is applied when the last checkpoint is cut.
	life(t, brokers, &ahead{to: to, retain: 1000}, weir.Store(store))
	wantError(t, start(t, "app", brokers, sums(same), weir.Store(store)).wait(), `write-ahead sink "ahead"`, `weir.AllowDroppedState("ahead")`)
	if err := start(t, "app", brokers, sums(same), weir.Store(store), weir.AllowDroppedState("ahead"), weir.Drain()).wait(); err != nil {
		t.Fatal(err)
	}
	produce(t, brokers, "in", "a:1")
	if err := start(t, "app", brokers, sums(same), weir.Store(store), weir.AllowDroppedState("ahead"), weir.Drain()).wait(); err != nil {
		t.Fatal(err)
	}
	// It is gone, and needs no leave any more.
	if err := start(t, "app", brokers, sums(same), weir.Store(store), weir.Drain()).wait(); err != nil {
		t.Fatal(err)
	}
}

// TestS36_ReceiverThatLostMoreThanIsKeptStopsTheApp takes the receiver back to the
// begin, once within what is kept and once beyond it.
func TestS36_ReceiverThatLostMoreThanIsKeptStopsTheApp(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		for retain, lost := range map[int64]bool{1000: false, 1: true} {
			brokers := broker(t, 2, "in")
			store := checkpoint.NewMem()
			to := newReceiver()
			for range 3 {
				produce(t, brokers, "in", ones(2, letters...)...)
				life(t, brokers, &ahead{to: to, retain: retain}, mode, weir.Store(store), weir.Retain(1))
			}
			*to = *newReceiver()
			produce(t, brokers, "in", ones(1, letters...)...)
			r := start(t, "app", brokers, sumsTo(&ahead{to: to, retain: retain}), mode, weir.Store(store), weir.Drain(), fast)
			err := r.wait()
			if lost {
				wantError(t, err, `sink "ahead"`, errLost.Error())
				continue
			}
			if err != nil {
				t.Fatal(err)
			}
			wantSums(t, to, 7, letters...)
		}
	})
}

func TestApplierThatCannotBeginStopsOrRestartsTheApp(t *testing.T) {
	brokers := broker(t, 1, "in")
	produce(t, brokers, "in", ones(3, letters...)...)
	bad := errors.New("no receiver")
	wantError(t, start(t, "stop", brokers, sumsTo(&ahead{to: newReceiver(), opening: func(sink.ApplierEnv) error { return bad }}), weir.Store(checkpoint.NewMem())).wait(), `sink "ahead"`, bad.Error())
	to, tries := newReceiver(), 0
	r := start(t, "again", brokers, sumsTo(&ahead{to: to, opening: func(env sink.ApplierEnv) error {
		if env.App() != "again" || env.Operator() != "ahead" || env.Instance() != "a" || env.Logger() == nil || env.Context().Err() != nil {
			t.Errorf("%+v", env)
		}
		if tries++; tries < 3 {
			return weir.Retry(bad)
		}
		return nil
	}}), weir.Store(checkpoint.NewMem()), weir.Drain(), fast)
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	wantSums(t, to, 3, letters...)
	if tries != 3 {
		t.Errorf("%d tries", tries)
	}
}

// onlyAhead is a write-ahead sink whose writers log nothing.
type onlyAhead struct{ ahead }

func (*onlyAhead) Open(sink.Env) (sink.Writer[string], error) {
	return &flushedWriter{sink: &flushed{}}, nil
}

// onlyLogs is a sink whose writers log, but nobody applies it.
type onlyLogs struct{ flushed }

func (*onlyLogs) Open(sink.Env) (sink.Writer[string], error) { return &aheadWriter{}, nil }

func TestSinkThatIsHalfWriteAheadIsRefused(t *testing.T) {
	brokers := broker(t, 1, "in")
	produce(t, brokers, "in", "a:1")
	for name, s := range map[string]sink.Sink[string]{"no-logs": &onlyAhead{}, "no-applier": &onlyLogs{}} {
		wantError(t, start(t, name, brokers, sumsTo(s), weir.Store(checkpoint.NewMem())).wait(), `sink "ahead"`, "sink.WriteAhead", "sink.Logger")
	}
}
