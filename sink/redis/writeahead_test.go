package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/sink"
)

// world is what survives a process in a test: the checkpoints' logs and the oracle. It plays
// the runtime's part as package sink describes it.
type world struct {
	t       *testing.T
	opts    Options
	set     []Option
	app     string
	lineage string
	logs    []sink.Log    // of the last checkpoint
	last    int64         // its id
	after   int64         // checkpoint of the newest log
	later   time.Duration // by which checkpoints seem to be made later than they are
	rng     *rand.Rand

	n      int // pushes so far
	lists  map[string][]string
	counts map[string]int64

	replaced  error            // what Kafka says to a process that asks whether it was replaced
	onApplier func(a *applier) // before it is used; nil: nothing

	events *applications
}

// applications are the events of a world.
type applications struct {
	mu  sync.Mutex
	all []event.Applied
}

func (a *applications) add(i event.Applied) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all = append(a.all, i)
}

func newWorld(t *testing.T, o Options, set ...Option) *world {
	return &world{t: t, opts: o, set: set, app: fresh(), lineage: "00000000000000a1", rng: rand.New(rand.NewPCG(1, 2)), lists: map[string][]string{}, counts: map[string]int64{}, events: &applications{}}
}

// push is a value: an element of a list, which also counts.
type push struct{ key, value string }

func pushAndCount(b *Batch, p push) {
	b.RPush("l"+p.key, p.value)
	b.IncrBy("n"+p.key, 1)
	b.HIncrBy("h", p.key, 1)
}

// pushes makes n values and tells the oracle.
func (w *world) pushes(n int) []push {
	var ps []push
	for range n {
		p := push{strconv.Itoa(w.rng.IntN(30)), strconv.Itoa(w.n)}
		w.n++
		ps = append(ps, p)
		w.lists[p.key] = append(w.lists[p.key], p.value)
		w.counts[p.key]++
	}
	return ps
}

// verify compares Redis with the oracle, lists element by element.
func (w *world) verify(addr ...string) {
	w.t.Helper()
	o := w.opts
	if len(addr) > 0 {
		o.Addrs = addr
	}
	cl := rawClient(w.t, o)
	for _, k := range slices.Sorted(maps.Keys(w.lists)) {
		got, err := cl.LRange(w.t.Context(), o.Prefix+"l"+k, 0, -1).Result()
		if err != nil {
			w.t.Fatal(err)
		}
		if want := w.lists[k]; !slices.Equal(got, want) {
			i := 0
			for i < min(len(got), len(want)) && got[i] == want[i] {
				i++
			}
			w.t.Fatalf("list %s has %d elements, want %d; the first %d are equal, then %.80q, want %.80q", k, len(got), len(want), i, got[i:], want[i:])
		}
		if got, err := cl.Get(w.t.Context(), o.Prefix+"n"+k).Int64(); err != nil || got != w.counts[k] {
			w.t.Fatalf("counter %s is %d (%v), want %d", k, got, err, w.counts[k])
		}
		if got, err := cl.HGet(w.t.Context(), o.Prefix+"h", k).Int64(); err != nil || got != w.counts[k] {
			w.t.Fatalf("counter %s of the hash is %d (%v), want %d", k, got, err, w.counts[k])
		}
	}
}

// applierEnv is what the runtime gives an applier.
type applierEnv struct {
	w   *world
	ctx context.Context
}

func (e applierEnv) App() string              { return e.w.app }
func (e applierEnv) Operator() string         { return "out" }
func (e applierEnv) Instance() string         { return "host-a" }
func (e applierEnv) Lineage() string          { return e.w.lineage }
func (e applierEnv) Context() context.Context { return e.ctx }
func (e applierEnv) Logger() *zap.Logger      { return zap.NewNop() }
func (e applierEnv) Applied(i event.Applied)  { e.w.events.add(i) }

func (e applierEnv) Confirm(context.Context) error { return e.w.replaced }

// life is one process.
type life struct {
	w       *world
	sink    *WriteAheadSink[push]
	applier sink.Applier
	writers []*logWriter[push]
	ctx     context.Context
	end     context.CancelFunc
	done    chan error
}

// begin starts a process, or tells why it refuses.
func (w *world) begin(extra ...Option) (*life, error) {
	w.t.Helper()
	return w.beginWith(pushAndCount, extra...)
}

func (w *world) beginWith(f func(b *Batch, p push), extra ...Option) (*life, error) {
	w.t.Helper()
	l := &life{w: w, done: make(chan error, 1)}
	l.ctx, l.end = context.WithCancel(w.t.Context())
	l.sink = WriteAhead(w.opts, f, append(slices.Clone(w.set), extra...)...)
	if err := l.sink.Check(); err != nil {
		w.t.Fatal(err)
	}
	var err error
	if l.applier, err = l.sink.Applier(applierEnv{w, l.ctx}); err != nil {
		w.t.Fatal(err)
	}
	if w.onApplier != nil {
		w.onApplier(l.applier.(*applier))
	}
	for range 2 {
		wr, err := l.sink.Open(writerEnv{ctx: l.ctx, name: "out", applier: l.applier})
		if err != nil {
			w.t.Fatal(err)
		}
		l.writers = append(l.writers, wr.(*logWriter[push]))
	}
	if err := l.applier.Recover(l.ctx, w.last, slices.Clone(w.logs)); err != nil {
		l.end()
		l.applier.Close()
		return nil, err
	}
	go func() { l.done <- l.applier.Run(l.ctx) }()
	w.t.Cleanup(l.kill)
	return l, nil
}

func (w *world) mustBegin(extra ...Option) *life {
	w.t.Helper()
	l, err := w.begin(extra...)
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// refused returns the error of a life that can't go on: of its start, or, where Redis was too
// slow for that, of its end.
func (w *world) refused() error {
	w.t.Helper()
	l, err := w.begin()
	if err != nil {
		return err
	}
	defer l.kill()
	return l.ended()
}

// checkpoint writes values and commits them: the pushes of a key are one subtask's.
func (l *life) checkpoint(ps ...push) {
	l.w.t.Helper()
	for _, p := range ps {
		if err := l.writers[len(p.key)%2].Write(p); err != nil {
			l.w.t.Fatal(err)
		}
	}
	var parts [][]byte
	var bytes int64
	for _, wr := range l.writers {
		b, err := wr.Log()
		if err != nil {
			l.w.t.Fatal(err)
		}
		if len(b) > 0 {
			parts = append(parts, b)
			bytes += int64(len(b))
		}
	}
	w := l.w
	keep := l.applier.Keep()
	w.logs = slices.DeleteFunc(slices.Clone(w.logs), func(l sink.Log) bool { return l.Checkpoint < keep })
	w.last++
	log := sink.Log{Checkpoint: w.last, Lineage: w.lineage, After: w.after, Created: time.Now().Add(w.later), Bytes: bytes,
		Read: func(context.Context) ([][]byte, error) { return parts, nil }}
	if bytes > 0 {
		w.logs = append(w.logs, log)
		w.after = log.Checkpoint
	}
	l.applier.Committed(log)
	w.recoverable()
}

// recoverable makes sure that what is given up is accounted for: the logs that are kept
// begin with the first, or one of them says where the lanes were before them.
func (w *world) recoverable() {
	w.t.Helper()
	if len(w.logs) == 0 || w.logs[0].After == 0 {
		return
	}
	a := &applier{restore: w.logs}
	for _, l := range w.logs {
		bs, err := a.basesOf(w.t.Context(), l)
		if err != nil {
			w.t.Fatal(err)
		}
		if len(bs) > 0 {
			return
		}
	}
	w.t.Fatalf("checkpoint %d has logs from %d on, and no base", w.last, w.logs[0].Checkpoint)
}

// drain waits until everything is applied.
func (l *life) drain() {
	l.w.t.Helper()
	ctx, cancel := context.WithTimeout(l.w.t.Context(), soon)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- l.applier.Drain(ctx) }()
	select {
	case err := <-drained:
		if err != nil {
			l.w.t.Fatal(err)
		}
	case err := <-l.done:
		l.done <- err
		l.w.t.Fatalf("the applier ended: %v", err)
	}
}

// ended waits for the applier to end by itself.
func (l *life) ended() error {
	l.w.t.Helper()
	select {
	case err := <-l.done:
		l.done <- err
		return err
	case <-time.After(soon):
		l.w.t.Fatal("the applier did not end")
		return nil
	}
}

// kill ends the process wherever it is.
func (l *life) kill() {
	l.end()
	err := <-l.done
	l.done <- err
	l.applier.Close()
}

func TestOperationsAreAppliedOnceAndInOrder(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		w := newWorld(t, o, BatchSize(16, 1<<20))
		l := w.mustBegin()
		for range 20 {
			l.checkpoint(w.pushes(100)...)
			l.checkpoint()
		}
		l.drain()
		w.verify()
		if s := l.sink.Status(); s.PendingBytes != 0 || s.PendingCheckpoints != 0 || !s.Oldest.IsZero() || s.Applied != w.last || s.Commands != int64(3*w.n) || s.Err != nil {
			t.Errorf("status %+v", s)
		}
		l.kill()
		for range 3 { // restarts apply nothing again
			l = w.mustBegin()
			l.drain()
			l.kill()
		}
		w.verify()
	})
}

// TestS34_... : the process is killed wherever it is, often in the middle of an answer.
func TestS34_KilledBetweenBatchesAndInsideOfThem(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		direct := o.Addrs
		var p *redistest.Proxy
		if !o.Cluster {
			p = redistest.StartProxy(t, o.Addrs[0])
			o.Addrs = []string{p.Addr}
		}
		w := newWorld(t, o)
		kills := 0
		for kills < 120 {
			// The size of the batches differs from life to life.
			l := w.mustBegin(BatchSize(1+w.rng.IntN(40), 1<<20), InFlight(1+w.rng.IntN(4)))
			for range 1 + w.rng.IntN(3) {
				l.checkpoint(w.pushes(w.rng.IntN(120))...)
			}
			if p != nil && w.rng.IntN(2) == 0 {
				p.CutAfter(w.rng.Int64N(400))
			}
			// By the number of commands that are applied, and at random instants.
			if after := w.rng.Int64N(200); w.rng.IntN(2) == 0 {
				redistest.Eventually(t, soon, func() error {
					if s := l.sink.Status(); s.Commands < after && s.PendingCheckpoints > 0 {
						return errors.New("not that far")
					}
					return nil
				})
			} else {
				time.Sleep(time.Duration(w.rng.IntN(3000)) * time.Microsecond) // the instant of the kill; nothing waits for it
			}
			l.kill()
			kills++
		}
		if p != nil {
			p.CutAfter(-1)
		}
		l := w.mustBegin()
		l.drain()
		w.verify(direct...)
		t.Logf("%d kills, %d operations", kills, 3*w.n)
	})
}

func TestS35_AnswersThatNeverComeAndLateRequestsRepeatNothing(t *testing.T) {
	p := redistest.StartProxy(t, redistest.Shared(t).Addr)
	direct := redistest.Shared(t).Addr
	o := options(p.Addr)
	o.Timeout = 100 * time.Millisecond
	w := newWorld(t, o, BatchSize(10, 1<<20))
	l := w.mustBegin()
	for round := range 10 {
		switch round % 3 {
		case 0:
			p.Deaf(true)
		case 1:
			p.Hold(true) // what is sent arrives when it was sent again already
		case 2:
			p.CutAfter(int64(30 * round))
		}
		l.checkpoint(w.pushes(200)...)
		if round%3 != 2 {
			redistest.Eventually(t, soon, func() error {
				if l.sink.Status().Err == nil {
					return errors.New("no attempt failed yet")
				}
				return nil
			})
		}
		p.Deaf(false)
		p.Hold(false)
		p.Break()
		l.drain()
		w.verify(direct)
	}
}

func TestS35_ScriptsThatAreForgottenAreLoadedAgain(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		w := newWorld(t, o, BatchSize(10, 1<<20))
		l := w.mustBegin()
		cl := rawClient(t, o)
		for range 10 {
			l.checkpoint(w.pushes(100)...)
			err := eachServer(t.Context(), cl, func(ctx context.Context, c *goredis.Client) error { return c.ScriptFlush(ctx).Err() })
			if err != nil {
				t.Fatal(err)
			}
		}
		l.drain()
		w.verify()
	})
}

func TestS35_RedisThatRestartsWithItsDataGoesOn(t *testing.T) {
	s := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "everysec")
	w := newWorld(t, options(s.Addr), BatchSize(10, 1<<20))
	l := w.mustBegin()
	for range 4 {
		l.checkpoint(w.pushes(300)...)
		s.Kill(t)
		s.Restart(t)
		// What the last second of the log lacks ends the applier; the next one brings it back.
		l.checkpoint(w.pushes(10)...)
		l = w.settle(l)
		w.verify()
	}
}

// TestS35_AppendOnlyFileThatEndsInTheMiddleOfABatch: a server that was killed while it wrote
// a batch to its append-only file keeps the begin of it there, and does it at a later start,
// beside the whole batch.
func TestS35_AppendOnlyFileThatEndsInTheMiddleOfABatch(t *testing.T) {
	const (
		file = "appendonlydir/appendonly.aof.1.incr.aof"
		tail = "20" // bytes: EXEC, and the end of the command before it
	)
	// twice kills a server in the midst of a batch, lets the batch be applied again, and
	// kills it once more, under a process that lives on.
	twice := func(t *testing.T, image string, args ...string) (*world, *life) {
		// With "everysec" a busy disk puts writes off, and what is cut is then not the batch.
		s := redistest.StartImage(t, image, append([]string{"--appendonly", "yes", "--appendfsync", "always"}, args...)...)
		w := newWorld(t, options(s.Addr), BatchSize(10, 1<<20))
		l := w.mustBegin()
		l.checkpoint(w.pushes(25)...)
		l.drain()
		s.Exec(t, "truncate", "-s", "-"+tail, file) // what the kill that follows left unwritten
		s.Kill(t)
		s.Restart(t)
		l.checkpoint(w.pushes(1)...)
		l = w.settle(l)
		w.verify()
		s.Kill(t)
		s.Restart(t)
		return w, l
	}
	for _, image := range []string{redistest.Redis, redistest.Redis7, redistest.Valkey} {
		t.Run(image, func(t *testing.T) {
			t.Run("is a loud stop", func(t *testing.T) {
				w, l := twice(t, image, "--aof-load-truncated", "yes")
				l.checkpoint(w.pushes(1)...)
				ended := l.ended()
				l.kill()
				err := w.refused()
				for _, err := range []error{ended, err} {
					part, ok := errors.AsType[*PartError](err)
					if !ok || part.Lanes != 1 || !strings.Contains(err.Error(), "operation 70 of checkpoint 1 ") || !strings.Contains(err.Error(), acceptEnv+"=out@") {
						t.Fatalf("ends with %v", err)
					}
				}
				n := w.n - 1 // of these nothing was applied since
				cl := rawClient(t, w.opts)
				there := 0
				for k, want := range w.lists {
					key := w.opts.Prefix + "l" + k
					there += int(cl.LLen(t.Context(), key).Val())
					// Somebody mends what is there.
					want = slices.DeleteFunc(slices.Clone(want), func(v string) bool { return v == strconv.Itoa(n) })
					cl.Del(t.Context(), key)
					for _, v := range want {
						cl.RPush(t.Context(), key, v)
					}
					cl.Set(t.Context(), w.opts.Prefix+"n"+k, len(want), 0)
					cl.HSet(t.Context(), w.opts.Prefix+"h", k, len(want))
				}
				if there <= n {
					t.Errorf("%d values of %d are there: nothing was done twice", there, n)
				}
				t.Setenv(acceptEnv, fmt.Sprintf("out@%d", w.last))
				l = w.mustBegin()
				l.checkpoint(w.pushes(30)...)
				l.drain()
				w.verify()
				l.kill()
				t.Setenv(acceptEnv, "")
				w.mustBegin()
			})
			t.Run("is mended before the start", func(t *testing.T) {
				w, l := twice(t, image)
				l.checkpoint(w.pushes(1)...)
				w.settle(l)
				w.verify()
			})
		})
	}
}

// settle drains, through as many lives as it takes when Redis lost its tail.
func (w *world) settle(l *life) *life {
	w.t.Helper()
	for {
		ctx, cancel := context.WithTimeout(w.t.Context(), soon)
		drained := make(chan error, 1)
		go func() { drained <- l.applier.Drain(ctx) }()
		select {
		case err := <-drained:
			cancel()
			if err != nil {
				w.t.Fatal(err)
			}
			return l
		case err := <-l.done:
			cancel()
			<-drained
			l.done <- err
			var lost *tailError
			if !errors.As(err, &lost) {
				w.t.Fatalf("the applier ended: %v", err)
			}
			l.kill()
			l = w.mustBegin()
		}
	}
}

func TestS35_RedisThatRestartsEmptyIsFilledFromTheLogs(t *testing.T) {
	s := redistest.Start(t)
	w := newWorld(t, options(s.Addr), BatchSize(10, 1<<20))
	l := w.mustBegin()
	for range 3 {
		l.checkpoint(w.pushes(300)...)
		l.drain()
		s.Kill(t)
		s.Restart(t)
		l.checkpoint(w.pushes(10)...)
		if err := l.ended(); !strings.Contains(fmt.Sprint(err), "lost what was applied") {
			t.Fatalf("the applier ended with %v", err)
		}
		l.kill()
		l = w.settle(w.mustBegin())
		w.verify()
	}
}

func TestS35_LossIsNoticedWithoutNewInput(t *testing.T) {
	s := redistest.Start(t)
	often := option(func(s *settings) { s.lookEvery = 10 * time.Millisecond })
	w := newWorld(t, options(s.Addr), often)
	l := w.mustBegin()
	l.checkpoint(w.pushes(300)...)
	l.drain()
	s.Kill(t)
	s.Restart(t)
	var lost *tailError
	if err := l.ended(); !errors.As(err, &lost) {
		t.Fatalf("the applier ended with %v", err)
	}
	l.kill()
	l = w.mustBegin()
	l.drain()
	w.verify()
}

func TestS35_LossIsNoticedWithoutInputSinceTheStart(t *testing.T) {
	s := redistest.Start(t)
	often := option(func(s *settings) { s.lookEvery = 10 * time.Millisecond })
	w := newWorld(t, options(s.Addr), often)
	l := w.mustBegin()
	l.checkpoint(w.pushes(300)...)
	l.drain()
	l.kill()
	l = w.mustBegin()
	l.drain()
	s.Kill(t)
	s.Restart(t)
	if err := l.ended(); !strings.Contains(fmt.Sprint(err), "lost what was applied") {
		t.Fatalf("the applier ended with %v", err)
	}
	l.kill()
	w.mustBegin().drain()
	w.verify()
}

func TestS35_ReplicaThatLacksTheTailIsBroughtUp(t *testing.T) {
	primary := redistest.Start(t)
	host, port, _ := strings.Cut(primary.Addr, ":")
	p := redistest.StartProxy(t, primary.Addr)
	w := newWorld(t, options(p.Addr), BatchSize(10, 1<<20))
	l := w.mustBegin()
	for round := range 3 {
		replica := redistest.Start(t, "--replicaof", host+" "+port)
		rc := replica.Client(t)
		l.checkpoint(w.pushes(200)...)
		l.drain()
		primary.AwaitReplica(t)
		// From here on the replica hears nothing, and is promoted later.
		if err := rc.ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
			t.Fatal(err)
		}
		l.checkpoint(w.pushes(200)...)
		l.checkpoint(w.pushes(5)...)
		l.drain()
		primary.Kill(t)
		p.Retarget(replica.Addr)
		l.checkpoint(w.pushes(50)...)
		l = w.settle(l)
		w.verify(replica.Addr)
		primary = replica
		host, port, _ = strings.Cut(primary.Addr, ":")
		t.Logf("failover %d: %d operations", round+1, 3*w.n)
	}
}

func redisClient(t *testing.T, addr string) *goredis.Client {
	cl := goredis.NewClient(&goredis.Options{Addr: addr})
	t.Cleanup(func() { cl.Close() })
	return cl
}

func TestZombieThatWakesLateDoesNothing(t *testing.T) {
	s := redistest.Shared(t)
	p := redistest.StartProxy(t, s.Addr)
	w := newWorld(t, options(p.Addr), BatchSize(7, 1<<20))
	w.opts.Timeout = soon
	zombie := w.mustBegin()
	zombie.checkpoint(w.pushes(100)...)
	zombie.drain()
	p.Hold(true)
	zombie.checkpoint(w.pushes(100)...) // committed, and on its way
	w.opts.Addrs = []string{s.Addr}
	w.opts.Timeout = 0
	l := w.mustBegin(BatchSize(50, 1<<20)) // took over
	l.drain()
	w.verify()
	l.checkpoint(w.pushes(100)...)
	l.drain()
	w.verify()
	p.Hold(false)
	zombie.drain() // it finds everything applied
	w.verify()
	l.checkpoint(w.pushes(100)...)
	l.drain()
	w.verify()
}

// TestProcessThatWasReplacedWhileItStartedIsNotStopped has read the last checkpoint before
// its successor made others.
func TestProcessThatWasReplacedWhileItStartedIsNotStopped(t *testing.T) {
	w := newWorld(t, options(redistest.Shared(t).Addr))
	l := w.mustBegin()
	l.checkpoint(w.pushes(10)...)
	l.drain()
	zombie := *w
	l.checkpoint(w.pushes(10)...) // the successor
	l.drain()
	zombie.replaced = errors.New("another member has the partitions")
	for _, accepted := range []string{"", "out@1"} {
		t.Setenv(acceptEnv, accepted)
		err := zombie.refused()
		if _, ok := errors.AsType[*sink.Retriable](err); !ok || !errors.Is(err, zombie.replaced) {
			t.Errorf("%s=%s: started with %v", acceptEnv, accepted, err)
		}
	}
	l.checkpoint(w.pushes(10)...) // the markers are where they were
	l.drain()
	w.verify()
}

func TestTwoProcessesThatApplyTheSameLogsApplyThemOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		w := newWorld(t, o)
		first := w.mustBegin(BatchSize(5, 1<<20))
		first.checkpoint(w.pushes(1000)...)
		var others []*life
		for i := range 3 {
			others = append(others, w.mustBegin(BatchSize(3+2*i, 1<<20)))
		}
		for _, l := range append(others, first) {
			l.drain()
		}
		w.verify()
	})
}

func TestS36_LossOfMoreThanIsKeptIsALoudStop(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		w := newWorld(t, o, BatchSize(10, 1<<20), Keep(time.Hour, 2000))
		l := w.mustBegin()
		cl := rawClient(t, o)
		for range 30 {
			l.checkpoint(w.pushes(20)...)
			l.drain()
		}
		l.checkpoint(w.pushes(1)...)
		l.drain()
		if o.Cluster {
			// A table of thirty lanes costs more than such logs: it comes with some of them.
			for range 60 {
				l.checkpoint(w.pushes(20)...)
				l.drain()
			}
		}
		if n := len(w.logs); n > 40 || w.logs[0].After == 0 {
			t.Fatalf("%d logs are kept, the first after checkpoint %d", n, w.logs[0].After)
		}
		l.kill()
		wipe(t, cl, o)
		err := w.refused()
		lost, ok := errors.AsType[*LostError](err)
		if !ok {
			t.Fatalf("started with %v", err)
		}
		accept := fmt.Sprintf("out@%d", w.last)
		if lost.Oldest != w.logs[0].Checkpoint || lost.Marker != "no marker" || !strings.Contains(err.Error(), acceptEnv+"="+accept) {
			t.Errorf("%v", err)
		}
		// Another checkpoint's word is not this one's.
		t.Setenv(acceptEnv, fmt.Sprintf("out@%d", w.last-1))
		if err := w.refused(); !errors.As(err, &lost) {
			t.Fatalf("started with %v", err)
		}
		t.Setenv(acceptEnv, "other@1,"+accept)
		l = w.mustBegin()
		l.drain()
		// All that is kept was applied: the lists end right.
		tails(t, cl, w)
		l.checkpoint(w.pushes(50)...)
		l.drain()
		l.kill()
		t.Setenv(acceptEnv, "")
		l = w.mustBegin()
		l.drain()
		tails(t, cl, w)
	})
}

func TestLogsAreKeptForATimeAfterTheyWereApplied(t *testing.T) {
	var ahead atomic.Int64 // how much later than now it is
	clock := option(func(s *settings) {
		s.now = func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
	})
	w := newWorld(t, options(redistest.Shared(t).Addr), Keep(time.Minute, 1<<30), clock)
	l := w.mustBegin()
	apply := func(n int) {
		for range n {
			l.checkpoint(w.pushes(50)...)
			l.drain()
		}
	}
	const early, late = 10, 4
	w.later = -time.Hour // Redis was away for so long
	apply(early)
	w.later = 0
	apply(late)
	if len(w.logs) != early+late {
		t.Fatalf("%d logs are kept within the time, want %d", len(w.logs), early+late)
	}
	ahead.Store(int64(time.Hour))
	apply(late)
	if first := w.logs[0].Checkpoint; first < early+late || len(w.logs) > late+1 {
		t.Errorf("an hour later logs from checkpoint %d on are kept, %d of them", first, len(w.logs))
	}
	w.verify()
}

// wipe deletes everything under the prefix.
func wipe(t *testing.T, cl goredis.UniversalClient, o Options) {
	t.Helper()
	err := eachServer(t.Context(), cl, func(ctx context.Context, c *goredis.Client) error {
		it := c.Scan(ctx, 0, o.Prefix+"*", 1000).Iterator()
		for it.Next(ctx) {
			if err := c.Del(ctx, it.Val()).Err(); err != nil {
				return err
			}
		}
		return it.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
}

// tails makes sure that each list is the end of what it should be, and not empty.
func tails(t *testing.T, cl goredis.UniversalClient, w *world) {
	t.Helper()
	total := 0
	for k, want := range w.lists {
		got := cl.LRange(t.Context(), w.opts.Prefix+"l"+k, 0, -1).Val()
		total += len(got)
		if len(got) > len(want) || !slices.Equal(got, want[len(want)-len(got):]) {
			t.Fatalf("list %s is %q, no end of %q", k, got, want)
		}
	}
	if total == 0 {
		t.Fatal("nothing was applied")
	}
}

func TestRedisOlderThanTheTailButNotThanTheLogsIsBroughtUp(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		w := newWorld(t, o, BatchSize(10, 1<<20), Keep(time.Hour, 20000))
		cl := rawClient(t, o)
		l := w.mustBegin()
		for range 60 {
			l.checkpoint(w.pushes(30)...)
			l.drain()
		}
		saved := dump(t, cl, o)
		for range 3 {
			l.checkpoint(w.pushes(30)...)
			l.drain()
		}
		if w.logs[0].After == 0 {
			t.Fatal("nothing was given up: the test shows nothing")
		}
		l.kill()
		wipe(t, cl, o)
		restore(t, cl, saved)
		l = w.mustBegin()
		l.drain()
		w.verify()
	})
}

// dump copies all keys under the prefix.
func dump(t *testing.T, cl goredis.UniversalClient, o Options) map[string]string {
	t.Helper()
	saved := map[string]string{}
	err := eachServer(t.Context(), cl, func(ctx context.Context, c *goredis.Client) error {
		it := c.Scan(ctx, 0, o.Prefix+"*", 1000).Iterator()
		for it.Next(ctx) {
			v, err := c.Dump(ctx, it.Val()).Result()
			if err != nil {
				return err
			}
			saved[it.Val()] = v
		}
		return it.Err()
	})
	if err != nil {
		t.Fatal(err)
	}
	return saved
}

func restore(t *testing.T, cl goredis.UniversalClient, saved map[string]string) {
	t.Helper()
	for k, v := range saved {
		if err := cl.Restore(t.Context(), k, 0, v).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestAnotherLifeOfTheAppIsALoudStop(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		w := newWorld(t, o, BatchSize(10, 1<<20))
		l := w.mustBegin()
		l.checkpoint(w.pushes(200)...)
		l.drain()
		l.kill()
		old := *w
		// Begun anew.
		w.lineage, w.logs, w.last, w.after = "00000000000000b2", nil, 0, 0
		err := w.refused()
		if foreign, ok := errors.AsType[*ForeignError](err); !ok || !strings.Contains(err.Error(), acceptEnv+"=out@0") || foreign.Restored != 0 {
			t.Fatalf("started with %v", err)
		}
		t.Setenv(acceptEnv, "out@0")
		l = w.mustBegin()
		l.drain() // a start that Redis was too slow for looks again
		t.Setenv(acceptEnv, "")
		w.last = old.last // ids go on
		l.checkpoint(w.pushes(200)...)
		l.drain()
		w.verify() // on top of what is there, which the oracle knows
		// The old life is not dead after all, and has something to apply.
		zombie, err := old.begin()
		if err == nil {
			zombie.checkpoint(push{"1", "zombie"})
			err = zombie.ended()
		}
		if _, ok := errors.AsType[*ForeignError](err); !ok {
			t.Errorf("the old life ended with %v", err)
		}
		w.verify()
	})
}

func TestAppThatWasSetBackIsALoudStop(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		w := newWorld(t, o, BatchSize(10, 1<<20))
		l := w.mustBegin()
		l.checkpoint(w.pushes(100)...)
		old := *w
		l.checkpoint(w.pushes(100)...)
		l.drain()
		l.kill()
		if err := old.refused(); !strings.Contains(fmt.Sprint(err), "set back") {
			t.Fatalf("started with %v", err)
		}
		t.Setenv(acceptEnv, fmt.Sprintf("out@%d", old.last))
		old.t, old.lists, old.counts, old.n, old.rng = t, w.lists, w.counts, w.n, w.rng
		l = old.mustBegin()
		old.last = w.last
		l.checkpoint(old.pushes(100)...)
		l.drain()
		old.verify()
	})
}

func TestSavepointThatEverythingWasAppliedOfGoesOnInANewLineage(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		w := newWorld(t, o, BatchSize(10, 1<<20))
		l := w.mustBegin()
		l.checkpoint(w.pushes(100)...)
		l.drain()
		l.checkpoint(w.pushes(100)...) // perhaps applied, perhaps not
		l.kill()
		w.lineage = "00000000000000b2"
		l = w.mustBegin()
		l.checkpoint(w.pushes(100)...)
		l.drain()
		w.verify()
		l.kill()
		l = w.mustBegin()
		l.drain()
		w.verify()
	})
}

// TestLogsThatWereAppliedUnderAnotherMarkerAreALoudStop renames the app that starts from a
// savepoint, and changes the prefix.
func TestLogsThatWereAppliedUnderAnotherMarkerAreALoudStop(t *testing.T) {
	for name, change := range map[string]func(w *world, prefix string){
		"another name":   func(w *world, _ string) { w.app, w.lineage = fresh(), "00000000000000b2" },
		"another prefix": func(w *world, prefix string) { w.opts.Prefix = fresh() + ":" },
		"a part of the prefix": func(w *world, prefix string) {
			w.opts.Prefix = strings.TrimSuffix(prefix, "x:")
		},
	} {
		t.Run(name, func(t *testing.T) {
			everywhere(t, func(t *testing.T, o Options) {
				o.Prefix = fresh() + "x:"
				w := newWorld(t, o, BatchSize(10, 1<<20))
				l := w.mustBegin()
				l.checkpoint(w.pushes(100)...)
				l.drain()
				l.kill()
				cl := rawClient(t, o)
				was, app := dump(t, cl, o), w.app
				change(w, o.Prefix)
				err := w.refused()
				if missing, ok := errors.AsType[*NoMarkerError](err); !ok || missing.Restored != w.last || !strings.Contains(err.Error(), acceptEnv+"=out@1") {
					t.Fatalf("started with %v", err)
				}
				if !maps.Equal(dump(t, cl, o), was) {
					t.Error("something was applied")
				}
				// The remedy: the markers get the new name.
				now := w.opts.layout()
				for _, n := range now.lanes() {
					err := cl.Rename(t.Context(), o.layout().marker(n, app, "out"), now.marker(n, w.app, "out")).Err()
					if err != nil && !strings.Contains(err.Error(), "no such key") {
						t.Fatal(err)
					}
				}
				w.mustBegin().drain()
				checked := *w
				checked.opts = o
				checked.verify()
			})
		})
	}
}

func TestLogsWithoutAnyMarkerAreAppliedIfThatIsAccepted(t *testing.T) {
	w := newWorld(t, options(redistest.Shared(t).Addr))
	w.opts.Addrs = []string{"127.0.0.1:1"}
	l := w.mustBegin() // while Redis is down
	l.checkpoint(w.pushes(100)...)
	l.kill()
	w.opts.Addrs = []string{redistest.Shared(t).Addr}
	w.lineage = "00000000000000b2" // from a savepoint
	if err := w.refused(); err == nil {
		t.Fatal("it started")
	}
	t.Setenv(acceptEnv, "out@1")
	w.mustBegin().drain()
	w.verify()
}

func TestWrongCommandStopsAndTheNextStartGoesOnBehindWhatWasApplied(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		w := newWorld(t, o, BatchSize(10, 1<<20))
		cl := rawClient(t, o)
		l := w.mustBegin()
		l.checkpoint(w.pushes(100)...)
		l.drain()
		saved := cl.Dump(t.Context(), o.Prefix+"n7").Val()
		cl.Del(t.Context(), o.Prefix+"n7")
		cl.SAdd(t.Context(), o.Prefix+"n7", "x")
		l.checkpoint(w.pushes(100)...)
		err := l.ended()
		ce, ok := errors.AsType[*CommandError](err)
		if !ok || !errors.Is(err, ErrWrongType) || ce.Checkpoint != w.last || !strings.Contains(ce.Command, "INCRBY") || !strings.Contains(ce.Command, o.Prefix+"n7") {
			t.Fatalf("ended with %v", err)
		}
		l.kill()
		if _, ok := errors.AsType[*sink.Fatal](err); !ok {
			t.Errorf("the app would be restarted after %v", err)
		}
		for range 3 { // started again with the cause still there
			l = w.mustBegin(BatchSize(1+w.rng.IntN(20), 1<<20))
			if err := l.ended(); !errors.Is(err, ErrWrongType) {
				t.Fatalf("ended with %v", err)
			}
			l.kill()
		}
		cl.Del(t.Context(), o.Prefix+"n7")
		cl.Restore(t.Context(), o.Prefix+"n7", 0, saved)
		l = w.mustBegin()
		l.drain()
		w.verify()
	})
}

// TestErrorThatIsMendedDoesNotComeBack has a process wait for partitions, with the sink that
// failed, while another one goes on.
func TestErrorThatIsMendedDoesNotComeBack(t *testing.T) {
	w := newWorld(t, options(redistest.Shared(t).Addr))
	cl := rawClient(t, w.opts)
	cl.Set(t.Context(), w.opts.Prefix+"h", "x", 0)
	first := w.mustBegin()
	first.checkpoint(w.pushes(1)...)
	if err := first.ended(); !errors.Is(err, ErrWrongType) {
		t.Fatalf("ended with %v", err)
	}
	first.kill()
	cl.Del(t.Context(), w.opts.Prefix+"h")
	l := w.mustBegin()
	l.checkpoint(w.pushes(10)...)
	l.drain()
	l.kill()
	a, err := first.sink.Applier(applierEnv{w, t.Context()})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Recover(t.Context(), w.last, w.logs); err != nil {
		t.Error(err)
	}
	w.verify()
}

// TestStoreThatFailsForAMomentRestartsTheApp: the error is none that stops it.
func TestStoreThatFailsForAMomentRestartsTheApp(t *testing.T) {
	w := newWorld(t, options(redistest.Shared(t).Addr))
	l := w.mustBegin()
	failure := errors.New("the store fails")
	l.applier.Committed(sink.Log{Checkpoint: 1, Lineage: w.lineage, Created: time.Now(), Bytes: 1, Read: func(context.Context) ([][]byte, error) { return nil, failure }})
	err := l.ended()
	if _, ok := errors.AsType[*sink.Fatal](err); ok || !errors.Is(err, failure) {
		t.Errorf("ended with %v", err)
	}
	l.kill()
	a, err := l.sink.Applier(applierEnv{w, t.Context()})
	if err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if err := a.Recover(t.Context(), 0, nil); err != nil {
		t.Error(err)
	}
}

func TestWrongCommandsArePutAsideOnce(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		w := newWorld(t, o, BatchSize(10, 1<<20), DeadLetters())
		cl := rawClient(t, o)
		cl.SAdd(t.Context(), o.Prefix+"n7", "x")
		for range 20 {
			l := w.mustBegin(BatchSize(1+w.rng.IntN(30), 1<<20))
			l.checkpoint(w.pushes(100)...)
			time.Sleep(time.Duration(w.rng.IntN(2000)) * time.Microsecond) // the instant of the kill; nothing waits for it
			l.kill()
		}
		l := w.mustBegin()
		l.drain()
		want := w.counts["7"]
		lay := o.layout()
		list := cl.LRange(t.Context(), lay.dead(lay.lane(slotOf([]byte(o.Prefix+"n7"))), w.app, "out"), 0, -1).Val()
		if int64(len(list)) != want {
			t.Errorf("%d commands were put aside, want %d", len(list), want)
		}
		last := DeadLetter{Checkpoint: -1}
		for _, e := range list {
			d, err := ParseDeadLetter(e)
			if err != nil {
				t.Fatal(err)
			}
			if !slices.Equal(d.Command, []string{"INCRBY", o.Prefix + "n7", "1"}) || !strings.HasPrefix(d.Err, "WRONGTYPE") || d.Sink != "out" {
				t.Fatalf("%+v", d)
			}
			if d.Checkpoint < last.Checkpoint || d.Checkpoint == last.Checkpoint && d.Operation <= last.Operation {
				t.Fatalf("%+v after %+v", d, last)
			}
			last = d
		}
		cl.Del(t.Context(), o.Prefix+"n7")
		cl.Set(t.Context(), o.Prefix+"n7", want, 0)
		w.verify()
	})
}

func TestCommandsArePutAsideWhateverCodeTheirErrorHas(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		w := newWorld(t, o, DeadLetters())
		cl := rawClient(t, o)
		cl.XGroupCreateMkStream(t.Context(), o.Prefix+"stream", "g", "$")
		l, err := w.beginWith(func(b *Batch, p push) {
			b.Do("XGROUP", "CREATECONSUMER", Key("stream"), "other", "c")
			b.Do("XGROUP", "CREATE", Key("stream"), "g", "$")
			b.Do("RESTORE", Key("stream"), 0, "")
			b.IncrBy("stream", 1)
			b.Do("SET", Key("stream"))
		})
		if err != nil {
			t.Fatal(err)
		}
		l.checkpoint(push{})
		l.drain()
		lay := o.layout()
		var got []string
		for _, e := range cl.LRange(t.Context(), lay.dead(lay.lane(slotOf([]byte(o.Prefix+"stream"))), w.app, "out"), 0, -1).Val() {
			d, err := ParseDeadLetter(e)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, strings.Fields(d.Err)[0])
		}
		if want := []string{"NOGROUP", "BUSYGROUP", "BUSYKEY", "WRONGTYPE", "ERR"}; !slices.Equal(got, want) {
			t.Errorf("put aside: %q, want %q", got, want)
		}
	})
}

func TestTransactionsAreSeenWholeAndNeverCut(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		w := newWorld(t, o, BatchSize(3, 1<<20))
		cl := rawClient(t, o)
		l, err := w.beginWith(func(b *Batch, p push) {
			b.IncrBy("lone", 1)
			b.Transaction(func() {
				for i := range 7 {
					b.IncrBy(fmt.Sprint("{t}", i), 1)
				}
			})
			b.Transaction(func() {})
		})
		if err != nil {
			t.Fatal(err)
		}
		keys := []string{}
		for i := range 7 {
			keys = append(keys, fmt.Sprint(o.Prefix, "{t}", i))
		}
		ctx, stop := context.WithCancel(t.Context())
		var watching sync.WaitGroup
		watching.Go(func() {
			for ctx.Err() == nil {
				vs, err := cl.MGet(t.Context(), keys...).Result()
				if err != nil {
					t.Error(err)
					return
				}
				for _, v := range vs {
					if v != vs[0] {
						t.Errorf("a part of a transaction is seen: %v", vs)
						return
					}
				}
			}
		})
		for range 20 {
			l.checkpoint(make([]push, 50)...)
		}
		l.drain()
		stop()
		watching.Wait()
		if got := cl.Get(t.Context(), keys[6]).Val(); got != "1000" {
			t.Errorf("counted %s, want 1000", got)
		}
	})
}

func TestInputWaitsWhileTooMuchIsPending(t *testing.T) {
	p := redistest.StartProxy(t, redistest.Shared(t).Addr)
	direct := redistest.Shared(t).Addr
	w := newWorld(t, options(p.Addr), MaxPending(1000))
	w.opts.Timeout = 100 * time.Millisecond
	l := w.mustBegin()
	l.checkpoint(w.pushes(1)...)
	l.drain()
	p.Deaf(true)
	l.checkpoint(w.pushes(100)...)
	if s := l.sink.Status(); s.PendingBytes <= 1000 || s.PendingCheckpoints != 1 || s.Oldest.IsZero() {
		t.Errorf("status %+v", s)
	}
	room := make(chan error, 1)
	go func() { room <- l.applier.(sink.Throttler).Room(w.t.Context()) }()
	select {
	case err := <-room:
		t.Fatalf("there is room (%v) although %d bytes are pending", err, l.sink.Status().PendingBytes)
	case <-time.After(300 * time.Millisecond):
	}
	l.checkpoint(w.pushes(1)...) // what is on its way is written meanwhile
	p.Deaf(false)
	p.Break()
	if err := <-room; err != nil {
		t.Fatal(err)
	}
	l.drain()
	w.verify(direct)
	// And it ends with the incarnation.
	p.Deaf(true)
	l.checkpoint(w.pushes(100)...)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { room <- l.applier.(sink.Throttler).Room(ctx) }()
	cancel()
	if err := <-room; !errors.Is(err, context.Canceled) {
		t.Errorf("waiting for room ended with %v", err)
	}
	l.kill()
}

func TestAppStartsWhileRedisIsDown(t *testing.T) {
	s := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	w := newWorld(t, options(s.Addr))
	l := w.mustBegin()
	l.checkpoint(w.pushes(10)...)
	l.drain()
	l.kill()
	s.Kill(t)
	l = w.mustBegin()
	l.checkpoint(w.pushes(10)...)
	redistest.Eventually(t, soon, func() error {
		if !errors.Is(l.sink.Status().Err, ErrUnavailable) {
			return fmt.Errorf("status %+v", l.sink.Status())
		}
		return nil
	})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := l.applier.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrUnavailable) {
		t.Errorf("drained with %v", err)
	}
	s.Restart(t)
	l.drain()
	w.verify()
}

func TestServersThatDoNotFitAreRefused(t *testing.T) {
	evicting := redistest.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	for _, c := range []struct {
		o    Options
		says string
	}{
		{options(evicting.Addr), "maxmemory-policy allkeys-lru"},
		{Options{Addrs: clusterOptions(t).Addrs[:1]}, "set Options.Cluster"},
	} {
		err := newWorld(t, c.o).refused()
		if _, ok := errors.AsType[*ConfigError](err); !ok || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v, want %q", err, c.says)
		}
	}
}

func TestRefusalsOfTheWholeServerApplyNothingAndNameThemselves(t *testing.T) {
	for _, c := range []struct {
		name   string
		hurt   func(t *testing.T, cl *goredis.Client)
		mend   func(t *testing.T, cl *goredis.Client)
		want   error
		reacts bool // it may be over by itself
	}{
		{"memory", func(t *testing.T, cl *goredis.Client) { cl.ConfigSet(t.Context(), "maxmemory", "1") }, func(t *testing.T, cl *goredis.Client) { cl.ConfigSet(t.Context(), "maxmemory", "0") }, ErrMemory, true},
		{"replica", func(t *testing.T, cl *goredis.Client) { cl.ReplicaOf(t.Context(), "127.0.0.1", "1") }, func(t *testing.T, cl *goredis.Client) { cl.ReplicaOf(t.Context(), "NO", "ONE") }, ErrReadOnly, true},
		{"replicas", func(t *testing.T, cl *goredis.Client) { cl.ConfigSet(t.Context(), "min-replicas-to-write", "1") }, func(t *testing.T, cl *goredis.Client) { cl.ConfigSet(t.Context(), "min-replicas-to-write", "0") }, ErrPersistence, true},
		{"rights", func(t *testing.T, cl *goredis.Client) { cl.ACLSetUser(t.Context(), "default", "-incrby") }, func(t *testing.T, cl *goredis.Client) { cl.ACLSetUser(t.Context(), "default", "+@all") }, ErrPermission, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := redistest.Start(t, "--maxmemory-policy", "noeviction")
			cl := s.Client(t)
			w := newWorld(t, options(s.Addr), BatchSize(10, 1<<20))
			l := w.mustBegin()
			l.checkpoint(w.pushes(100)...)
			l.drain()
			if c.reacts {
				c.hurt(t, cl)
				l.checkpoint(w.pushes(100)...)
				redistest.Eventually(t, soon, func() error {
					if !errors.Is(l.sink.Status().Err, c.want) {
						return fmt.Errorf("status %v", l.sink.Status().Err)
					}
					return nil
				})
				c.mend(t, cl)
				l.drain()
				w.verify()
			}
			l.kill()
			l = w.mustBegin(GiveUpAfter(100 * time.Millisecond))
			c.hurt(t, cl)
			l.checkpoint(w.pushes(100)...)
			if err := l.ended(); !errors.Is(err, c.want) {
				t.Errorf("ended with %v, want %v", err, c.want)
			}
			l.kill()
			c.mend(t, cl)
			l = w.mustBegin()
			l.drain()
			w.verify()
		})
	}
}

func TestS35_SlotsThatMoveLoseNothing(t *testing.T) {
	nodes := redistest.StartCluster(t)
	o := Options{Prefix: "p:", Cluster: true}
	for _, n := range nodes {
		o.Addrs = append(o.Addrs, n.Addr)
	}
	w := newWorld(t, o, BatchSize(5, 1<<20))
	l := w.mustBegin()
	l.checkpoint(w.pushes(300)...)
	moved := make(chan error, 1)
	go func() {
		moved <- func() error {
			for k := range 30 {
				if err := redistest.MoveSlot(t.Context(), nodes, o.Prefix+"l"+strconv.Itoa(k)); err != nil {
					return err
				}
			}
			return nil
		}()
	}()
	for done := false; !done; {
		select {
		case err := <-moved:
			if err != nil {
				t.Fatal(err)
			}
			done = true
		default:
		}
		l.checkpoint(w.pushes(50)...)
		if w.last%10 == 0 {
			l.kill()
			l = w.mustBegin(BatchSize(1+w.rng.IntN(20), 1<<20))
		}
		l.drain()
	}
	w.verify()
	t.Logf("%d operations while 30 slots moved", 3*w.n)
}

func TestRightsOnAClusterAreEnough(t *testing.T) {
	o := clusterOptions(t)
	user := fresh()
	for _, n := range cluster.nodes {
		err := n.Client(t).ACLSetUser(t.Context(), user, "on", ">pw", "~"+o.Prefix+"*", "+rpush", "+incrby", "+hincrby",
			"+evalsha", "+script|load", "+get", "+set", "+rpop", "+lindex", "+info", "+cluster|slots", "+command").Err()
		if err != nil {
			t.Fatal(err)
		}
	}
	w := newWorld(t, o)
	w.opts.Username, w.opts.Password = user, "pw"
	l := w.mustBegin()
	l.checkpoint(w.pushes(100)...)
	l.drain()
	w.opts = o
	w.verify()
}

func TestS35_SentinelsFailoverLosesNothing(t *testing.T) {
	primary := redistest.Start(t)
	host, port, _ := strings.Cut(primary.Addr, ":")
	replica := redistest.Start(t, "--replicaof", host+" "+port)
	name := fresh()
	sentinel := redistest.StartSentinel(t, name, primary)
	sc := goredis.NewSentinelClient(&goredis.Options{Addr: sentinel.Addr})
	defer sc.Close()
	redistest.Eventually(t, soon, func() error { // until then it could promote nobody
		rs, err := sc.Replicas(t.Context(), name).Result()
		if err == nil && (len(rs) != 1 || rs[0]["master-link-status"] != "ok") {
			err = errors.New("the sentinel knows no replica")
		}
		return err
	})
	o := Options{Addrs: []string{sentinel.Addr}, Master: name, Prefix: fresh() + ":", Timeout: time.Second}
	w := newWorld(t, o, BatchSize(10, 1<<20))
	u := openUpsert(t, t.Context(), Upsert(o, setPair))
	l := w.mustBegin()
	l.checkpoint(w.pushes(300)...)
	l.drain()
	mustWrite(t, u, pair{"k", "1"})
	l.checkpoint(w.pushes(300)...)
	primary.Kill(t) // the replica has the tail, or not
	l.checkpoint(w.pushes(300)...)
	redistest.Eventually(t, 2*time.Minute, func() error { // a sentinel whose clock jumped does nothing for half a minute
		is, err := replica.Client(t).Do(t.Context(), "ROLE").Slice()
		if err == nil && is[0] != "master" {
			err = fmt.Errorf("the replica is %v: nothing failed over", is[0])
		}
		return err
	})
	w.settle(l)
	w.verify()
	mustWrite(t, u, pair{"k", "2"})
	wantStrings(t, o, map[string]string{"k": "2"})
}
