package weirtest_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/processor"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/weirtest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// recorder is a test of which it is asked whether it failed.
type recorder struct {
	failed   []string
	cleanups []func()
}

func (r *recorder) Helper() {}
func (r *recorder) Errorf(f string, args ...any) {
	r.failed = append(r.failed, fmt.Sprintf(f, args...))
}
func (r *recorder) Fatalf(f string, args ...any) { r.Errorf(f, args...); runtime.Goexit() }
func (r *recorder) Cleanup(f func())             { r.cleanups = append(r.cleanups, f) }

// failureOf runs f as a test and returns what it failed with.
func failureOf(f func(t weirtest.TB)) string {
	r := &recorder{}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			for _, c := range slices.Backward(r.cleanups) {
				c()
			}
		}()
		f(r)
	}()
	<-done
	return strings.Join(r.failed, "\n")
}

func wantFailure(t *testing.T, f func(t weirtest.TB), texts ...string) {
	t.Helper()
	got := failureOf(f)
	for _, text := range texts {
		if !strings.Contains(got, text) {
			t.Errorf("the failure lacks %q:\n%s", text, got)
		}
	}
}

type payment struct {
	ID, Account string
	Cents       int64
}

type balance struct {
	Account string
	Cents   int64
}

func accounts(app *weir.App) {
	payments := weir.From(app, "payments", source.Values("payments", codec.JSON[payment]()))
	byAccount := weir.KeyBy(payments, "by-account", func(p payment) string { return p.Account }, codec.String)
	overdrawn := weir.Side[payment]("overdrawn")
	balances := weir.Process(byAccount, "balance", func(s *weir.Setup) weir.Handler[string, payment, balance] {
		total := state.Value(s, "total", codec.Int64)
		seen := state.Map(s, "seen", codec.String, codec.Int64, state.TTL(24*time.Hour))
		last := state.List(s, "last", codec.String)
		return weir.OnRecord(func(c *weir.Context[string, balance], p payment) error {
			switch {
			case p.Cents == 0:
				return weir.DeadLetter(errors.New("a payment of nothing"))
			case p.Account == "":
				return weir.Skip(errors.New("a payment of nobody"))
			case p.ID == "bad":
				return errors.New("a bad payment")
			case p.ID == "panic":
				panic("a panic")
			case seen.Has(p.ID):
				return nil
			}
			seen.Put(p.ID, p.Cents)
			sum := total.Get() + p.Cents
			if sum < 0 {
				overdrawn.Emit(c, p)
				return nil
			}
			total.Set(sum)
			last.Append(p.ID)
			c.Emit(balance{c.Key(), sum})
			return nil
		})
	})
	weir.To(balances, "balances", kafka.Values("balances", kafka.KeyBy(func(b balance) string { return b.Account }, codec.String), codec.JSON[balance]()))
	weir.To(overdrawn.From(balances), "alarms", kafka.Values("alarms", kafka.NoKey, codec.JSON[payment]()))
}

func TestACrashGoesBackToTheCheckpointAndReplays(t *testing.T) {
	h := weirtest.New(t, accounts)
	in, out := weirtest.In[payment](h, "payments"), weirtest.Out[balance](h, "balances")
	in.Send(payment{"1", "alice", 500})
	out.Want(balance{"alice", 500})
	out.WantCommitted()
	if id := h.Checkpoint(); id != 1 {
		t.Errorf("the first checkpoint is %d", id)
	}
	in.Send(payment{"2", "alice", -200}, payment{"2", "alice", -200})
	h.Crash()
	out.WantCommitted(balance{"alice", 500})
	h.Rescale(4)
	in.Send(payment{"3", "alice", -400})
	out.Want(balance{"alice", 500}, balance{"alice", 300})
	weirtest.Side[payment](h, "overdrawn").Want(payment{"3", "alice", -400})
	weirtest.Out[payment](h, "alarms").Want(payment{"3", "alice", -400})
	if v, ok := weirtest.Value[int64](h, "balance", "total", "alice"); !ok || v != 300 {
		t.Errorf("the total is %d, %v", v, ok)
	}
	if _, ok := weirtest.Value[int64](h, "balance", "total", "bob"); ok {
		t.Error("bob has a total")
	}
	if seen := weirtest.Map[string, int64](h, "balance", "seen", "alice"); len(seen) != 3 || seen["2"] != -200 {
		t.Errorf("seen are %v", seen)
	}
	if last := weirtest.List[string](h, "balance", "last", "alice"); !slices.Equal(last, []string{"1", "2"}) {
		t.Errorf("the last are %v", last)
	}
	h.Stop()
	out.WantCommitted(balance{"alice", 500}, balance{"alice", 300})
	if rs := h.CommittedRecords("balances"); len(rs) != 2 || string(rs[1].Key) != "alice" || string(rs[1].Value) != `{"Account":"alice","Cents":300}` {
		t.Errorf("the records are %v", rs)
	}
}

func TestEveryCutAndParallelismGivesTheSame(t *testing.T) {
	var want []balance
	for cut := range 12 {
		for _, p := range []int{1, 2, 5} {
			h := weirtest.New(t, accounts, weir.Parallelism(p), weirtest.Partitions(3))
			in, out := weirtest.In[payment](h, "payments"), weirtest.Out[balance](h, "balances")
			for i := range 12 {
				if i == cut {
					h.Checkpoint()
				}
				in.Partition(int32(i % 3)).Send(payment{fmt.Sprint(i), fmt.Sprint("account", i%4), int64(i + 1)})
				if i == cut+2 {
					h.Crash()
				}
				if i == cut+4 {
					h.Rescale(1 + (p+i)%6)
				}
			}
			h.Stop()
			if want == nil {
				want = out.Committed()
			}
			out.WantCommitted(want...)
		}
	}
	if len(want) != 12 {
		t.Errorf("%d balances", len(want))
	}
}

func TestWhatHandlersReturnIsDealtWithAsInAService(t *testing.T) {
	h := weirtest.New(t, accounts, weir.DeadLetters("dead"))
	in, out := weirtest.In[payment](h, "payments"), weirtest.Out[balance](h, "balances")
	in.Send(payment{"1", "alice", 1}, payment{"2", "alice", 0}, payment{"3", "", 1})
	dead := h.DeadLetters()
	if len(dead) != 1 || string(dead[0].Value) != `{"ID":"2","Account":"alice","Cents":0}` {
		t.Fatalf("the dead letters are %v", dead)
	}
	if i := slices.IndexFunc(dead[0].Headers, func(r kgo.RecordHeader) bool { return r.Key == processor.HeaderError }); i < 0 || string(dead[0].Headers[i].Value) != "a payment of nothing" {
		t.Errorf("its headers are %v", dead[0].Headers)
	}
	if sk := h.Skipped(); len(sk) != 1 || sk[0].Operator != "balance" || sk[0].Offset != 2 {
		t.Errorf("skipped are %+v", sk)
	}
	for _, id := range []string{"bad", "panic"} {
		err := h.Fails(func() { in.Send(payment{id, "alice", 5}) })
		var he *weir.HandlerError
		if !errors.As(err, &he) || he.Operator != "balance" || he.Panic != (id == "panic") {
			t.Errorf("%s: %v", id, err)
		}
		in.Send(payment{"after-" + id, "alice", 1}) // waits in the topic
		h.Start(weir.SkipRecords(fmt.Sprintf("payments/0@%d", he.Offset)))
		h.Checkpoint()
	}
	out.Want(balance{"alice", 1}, balance{"alice", 2}, balance{"alice", 3})
}

func TestARetryGoesBackToTheCheckpoint(t *testing.T) {
	for limit, ok := range map[int]bool{3: true, 2: false} {
		left := 3
		h := weirtest.New(t, func(app *weir.App) {
			lines := weir.From(app, "lines", source.Values("lines", codec.String))
			weir.To(weir.Map(lines, "try", func(s string) (string, error) {
				if s == "later" && left > 0 {
					left--
					return "", weir.Retry(errors.New("not yet"))
				}
				return s, nil
			}), "out", kafka.Values("out", kafka.NoKey, codec.String))
		}, weir.Restart(weir.RestartPolicy{Initial: 1, Max: 1, Limit: limit, Quiet: time.Minute}))
		in, out := weirtest.In[string](h, "lines"), weirtest.Out[string](h, "out")
		in.Send("now")
		if ok {
			in.Send("later")
			out.Want("now", "later")
			continue
		}
		err := h.Fails(func() { in.Send("later") })
		var gaveUp *processor.RestartsError
		if !errors.As(err, &gaveUp) || gaveUp.Restarts != 2 {
			t.Errorf("the error is %v", err)
		}
		out.Want()
	}
}

type reading struct {
	Sensor string
	At     time.Time
	Value  int64
}

// quietSensors emits the sum of each sensor at each full minute of event time, and "quiet"
// when nothing came from it for an hour of the wall clock.
func quietSensors(app *weir.App) {
	readings := weir.From(app, "readings", source.Values("readings", codec.JSON[reading]()),
		weir.EventTime(func(r reading) time.Time { return r.At }, weir.OutOfOrder(10*time.Second), weir.Idle(time.Minute)))
	bySensor := weir.KeyBy(readings, "by-sensor", func(r reading) string { return r.Sensor }, codec.String)
	out := weir.Process(bySensor, "sum", func(s *weir.Setup) weir.Handler[string, reading, string] {
		sum := state.Value(s, "sum", codec.Int64, state.TTL(2*time.Hour, state.OnRead))
		heard := state.Value(s, "heard", codec.Int64)
		minute, alarm := state.EventTimers(s), state.ProcessingTimers(s)
		return weir.OnRecord(func(c *weir.Context[string, string], r reading) error {
			if c.Late() {
				c.Emit("late " + r.Sensor)
				return nil
			}
			sum.Set(sum.Get() + r.Value)
			minute.Set(r.At.Truncate(time.Minute).Add(time.Minute))
			if at, ok := heard.Lookup(); ok {
				alarm.Delete(time.UnixMilli(at))
			}
			at := c.Timestamp().Add(time.Hour)
			heard.Set(at.UnixMilli())
			alarm.Set(at)
			return nil
		}).OnTimer(func(c *weir.Context[string, string], t weir.Timer) error {
			if t.EventTime {
				c.Emit(fmt.Sprintf("%s %s %d", t.At.UTC().Format("15:04"), c.Key(), sum.Get()))
			} else {
				c.Emit(fmt.Sprintf("quiet %s at %s", c.Key(), t.At.UTC().Format("15:04")))
				heard.Clear()
			}
			return nil
		})
	})
	weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
}

func TestTimersFireByWatermarkAndByClock(t *testing.T) {
	h := weirtest.New(t, quietSensors, weirtest.Partitions(2), weir.Parallelism(3))
	in, out := weirtest.In[reading](h, "readings"), weirtest.Out[string](h, "out")
	at := func(m, s int) time.Time {
		return weirtest.Begin.Add(time.Duration(m)*time.Minute + time.Duration(s)*time.Second)
	}
	in.Send(reading{"a", at(0, 30), 5})
	in.Send(reading{"a", at(2, 0), 5}) // the other partition holds the watermark back
	out.WantNext()
	if set := weirtest.Timers(h, "sum", "a"); len(set) != 3 || !set[0].At.Equal(at(1, 0)) || !set[0].EventTime || set[2].EventTime {
		t.Errorf("the timers are %v", set)
	}
	h.Advance(30 * time.Second)
	in.Send(reading{"a", at(2, 0), 0})
	h.Advance(30 * time.Second) // until it is idle, and this one is not
	out.WantNext("00:01 a 10")
	h.Checkpoint()
	h.Crash()
	in.Partition(1).Send(reading{"b", at(1, 55), 1}, reading{"b", at(2, 20), 1})
	in.Send(reading{"a", at(2, 59), 1}, reading{"a", at(3, 30), 0}, reading{"b", at(2, 0), 1})
	out.WantNext("00:02 b 2", "late b")
	in.Watermark(at(3, 0))
	out.WantNext("00:03 a 11", "00:03 b 2")
	h.Rescale(2)
	h.Advance(55 * time.Minute)
	out.WantNext()
	h.Advance(6 * time.Minute)
	out.WantNext("quiet a at 01:01", "quiet b at 01:01")
	if h.Now() != at(62, 0) {
		t.Errorf("it is %v", h.Now())
	}
}

// The clock outlives what it is to wake: all that an app had in memory would stay with it.
func TestAnAppThatIsDownWaitsForNoTime(t *testing.T) {
	h := weirtest.New(t, quietSensors, weirtest.Partitions(2), weir.Parallelism(3))
	weirtest.In[reading](h, "readings").Send(reading{"a", weirtest.Begin, 5})
	if weirtest.Waiting(h) < 2 {
		t.Fatal("a source and a timer should wait")
	}
	h.Kill()
	if n := weirtest.Waiting(h); n > 0 {
		t.Errorf("%d wait", n)
	}
}

func TestAWatermarkIsPartOfTheInput(t *testing.T) {
	h := weirtest.New(t, quietSensors, weirtest.Partitions(2))
	in, out := weirtest.In[reading](h, "readings"), weirtest.Out[string](h, "out")
	in.Send(reading{"a", weirtest.Begin, 5})
	h.Advance(2 * time.Minute) // both partitions are idle
	h.Checkpoint()
	in.Watermark(weirtest.Begin.Add(time.Minute))
	in.Send(reading{"a", weirtest.Begin.Add(30 * time.Second), 5})
	want := []string{"00:01 a 5", "late a"}
	out.Want(want...)
	h.Crash()
	out.Want(want...)
	h.Checkpoint()
	h.Crash()
	out.WantCommitted(want...)
}

func TestTheClockStopsWhereSomethingIsDue(t *testing.T) {
	h := weirtest.New(t, func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		out := weir.Process(weir.KeyBy(in, "by", func(s string) string { return s }, codec.String), "tick", func(s *weir.Setup) weir.Handler[string, string, string] {
			within := state.Value(s, "within", codec.Int64, state.TTL(30*time.Second))
			timer := state.ProcessingTimers(s)
			return weir.OnRecord(func(c *weir.Context[string, string], _ string) error {
				timer.Set(c.Timestamp().Add(time.Minute))
				return nil
			}).OnTimer(func(c *weir.Context[string, string], t weir.Timer) error {
				_, fresh := within.Lookup() // set a minute ago, it is gone
				c.Emit(fmt.Sprint(t.At.Minute(), fresh))
				within.Set(1)
				timer.Set(t.At.Add(time.Minute))
				return nil
			})
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	})
	weirtest.In[string](h, "in").Send("x")
	h.Advance(4 * time.Minute)
	weirtest.Out[string](h, "out").Want("1 false", "2 false", "3 false", "4 false")
}

// remembered keeps what comes for an hour since it was read or written.
func remembered(app *weir.App) {
	in := weir.From(app, "in", source.Values("in", codec.String))
	out := weir.Process(weir.KeyBy(in, "by", func(s string) string { return s }, codec.String), "keep", func(s *weir.Setup) weir.Handler[string, string, string] {
		ttl := state.TTL(time.Hour, state.OnRead)
		value, list := state.Value(s, "value", codec.String, ttl), state.List(s, "list", codec.String, ttl)
		all := state.Map(s, "map", codec.String, codec.String, ttl)
		return weir.OnRecord(func(_ *weir.Context[string, string], v string) error {
			value.Set(v)
			list.Append(v)
			all.Put(v, v)
			return nil
		})
	})
	weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
}

func TestLookingDoesNotCountAsReading(t *testing.T) {
	h := weirtest.New(t, remembered)
	weirtest.In[string](h, "in").Send("a")
	held := func() string {
		v, _ := weirtest.Value[string](h, "keep", "value", "a")
		return fmt.Sprintf("%q %v %v", v, weirtest.List[string](h, "keep", "list", "a"), weirtest.Map[string, string](h, "keep", "map", "a"))
	}
	for _, want := range []string{`"a" [a] map[a:a]`, `"a" [a] map[a:a]`, `"a" [a] map[a:a]`, `"" [] map[]`} {
		if got := held(); got != want {
			t.Errorf("at %v there is %s, want %s", h.Now(), got, want)
		}
		h.Advance(20 * time.Minute)
	}
}

// One goroutine has nobody who takes what is too much for an edge.
func TestOneRecordMayEmitMoreThanAnEdgeHolds(t *testing.T) {
	const many = 10_000
	for _, opts := range [][]weir.Option{nil, {weir.Unaligned()}} {
		h := weirtest.New(t, func(app *weir.App) {
			in := weir.FlatMap(weir.From(app, "in", source.Values("in", codec.Int64)), "many", func(n int64, emit func(int64)) error {
				for i := range n {
					emit(i)
				}
				return nil
			})
			by := weir.KeyBy(in, "by", func(n int64) int64 { return n % 10 }, codec.Int64, weir.ValueCodec(codec.Int64))
			weir.To(weir.Aggregate(by, "count", weir.Count[int64]()), "out", kafka.Sink("out", codec.Int64, codec.Int64))
		}, append(opts, weir.Parallelism(2))...)
		weirtest.In[int64](h, "in").Send(many)
		h.Checkpoint()
		if n := len(weirtest.Out[weir.KV[int64, int64]](h, "out").Committed()); n != many {
			t.Errorf("%d of %d came", n, many)
		}
	}
}

func TestBroadcastStateThatDiffersIsFound(t *testing.T) {
	wantFailure(t, func(t weirtest.TB) {
		written := int64(0)
		h := weirtest.New(t, func(app *weir.App) {
			rules := weir.Broadcast(weir.From(app, "rules", source.Values("rules", codec.String)))
			by := weir.KeyBy(weir.From(app, "in", source.Values("in", codec.String)), "by", func(s string) string { return s }, codec.String)
			out := weir.Process(by, "check", func(s *weir.Setup) weir.Handler[string, string, string] {
				held := state.Broadcast(s, "held", codec.String, codec.Int64)
				rules.On(s, func(v string) error {
					written++ // not the same on every subtask
					held.Put(v, written)
					return nil
				})
				return weir.OnRecord(func(*weir.Context[string, string], string) error { return nil })
			})
			weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
		}, weir.Parallelism(2))
		weirtest.In[string](h, "rules").Send("a")
		weirtest.Broadcast[string, int64](h, "check", "held")
	}, `broadcast state "held": subtask 1 holds map[a:2], subtask 0 map[a:1]`)
}

func TestAStoreOfAnotherAppIsRefused(t *testing.T) {
	store := checkpoint.NewMem()
	weirtest.New(t, accounts, weir.Store(store))
	wantFailure(t, func(t weirtest.TB) { weirtest.New(t, accounts, weir.Store(store), weir.KeyGroups(64)) }, "key-groups")
}

// A checkpoint that is not durable fails the test, and the app goes on.
func TestACheckpointThatFailsKeepsItsEpochOpen(t *testing.T) {
	store := faultstore.Wrap(checkpoint.NewMem())
	h := weirtest.New(t, accounts, weir.Store(store))
	in, out := weirtest.In[payment](h, "payments"), weirtest.Out[balance](h, "balances")
	in.Send(payment{"1", "alice", 500})
	store.Before(func(context.Context, faultstore.Op, string) error { return errors.New("the disk is full") })
	err := h.Fails(func() { h.Checkpoint() })
	store.Before(nil)
	if err == nil || !strings.Contains(err.Error(), "the checkpoint was given up") {
		t.Errorf("the error is %v", err)
	}
	out.WantCommitted()
	in.Send(payment{"2", "alice", 1})
	h.Checkpoint()
	out.WantCommitted(balance{"alice", 500}, balance{"alice", 501})
}

func TestDrainBringsTimeToItsEnd(t *testing.T) {
	h := weirtest.New(t, quietSensors)
	in, out := weirtest.In[reading](h, "readings"), weirtest.Out[string](h, "out")
	in.Send(reading{"a", weirtest.Begin, 5})
	h.Drain()
	out.WantCommitted("00:01 a 5")
	h.Start()
	in.Send(reading{"a", weirtest.Begin.Add(3 * time.Minute), 5})
	out.Want("00:01 a 5")
}

// rules is a topology with a broadcast stream.
func rules(app *weir.App) {
	limits := weir.Broadcast(weir.From(app, "limits", source.KeyValues("limits", codec.String, codec.Int64)))
	orders := weir.From(app, "orders", source.KeyValues("orders", codec.String, codec.Int64))
	by := weir.KeyBy(orders, "by", func(kv weir.KV[string, int64]) string { return kv.Key }, codec.String)
	out := weir.Process(by, "check", func(s *weir.Setup) weir.Handler[string, weir.KV[string, int64], string] {
		limit := state.Broadcast(s, "limit", codec.String, codec.Int64)
		limits.On(s, func(l weir.KV[string, int64]) error {
			limit.Put(l.Key, l.Value)
			return nil
		})
		return weir.OnRecord(func(c *weir.Context[string, string], o weir.KV[string, int64]) error {
			if max, ok := limit.Lookup(o.Key); ok && o.Value > max {
				c.Emit(o.Key)
			}
			return nil
		})
	})
	weir.To(out, "too-much", kafka.Values("too-much", kafka.NoKey, codec.String))
}

func TestBroadcastStateIsTheSameEverywhere(t *testing.T) {
	h := weirtest.New(t, rules, weir.Parallelism(4))
	kv := func(k string, v int64) weir.KV[string, int64] { return weir.KV[string, int64]{Key: k, Value: v} }
	weirtest.In[weir.KV[string, int64]](h, "limits").Send(kv("a", 5), kv("b", 7), kv("a", 6))
	weirtest.In[weir.KV[string, int64]](h, "orders").Send(kv("a", 6), kv("a", 7), kv("b", 8), kv("c", 9))
	weirtest.Out[string](h, "too-much").Want("a", "b")
	h.Rescale(3)
	if m := weirtest.Broadcast[string, int64](h, "check", "limit"); len(m) != 2 || m["a"] != 6 {
		t.Errorf("the limits are %v", m)
	}
}

func TestAnUpgradeTakesOverState(t *testing.T) {
	count := func(id string) func(*weir.App) {
		return func(app *weir.App) {
			in := weir.From(app, "in", source.Values("in", codec.String))
			counts := weir.Aggregate(weir.KeyBy(in, "by", func(s string) string { return s }, codec.String), id, weir.Count[string]())
			weir.To(counts, "out", kafka.Sink("out", codec.String, codec.Int64))
		}
	}
	h := weirtest.New(t, count("count"))
	in := weirtest.In[string](h, "in")
	in.Send("a", "b", "a")
	if n, _ := weirtest.Value[int64](h, "count", "acc", "a"); n != 2 {
		t.Errorf("a was counted %d times", n)
	}
	err := h.Fails(func() { h.Upgrade(count("renamed")) })
	if !strings.Contains(err.Error(), `AllowDroppedState("count")`) {
		t.Errorf("the error is %v", err)
	}
	h.Start(weir.AllowDroppedState("count"))
	in.Send("a")
	weirtest.Out[weir.KV[string, int64]](h, "out").Want(
		weir.KV[string, int64]{Key: "a", Value: 1}, weir.KV[string, int64]{Key: "b", Value: 1}, weir.KV[string, int64]{Key: "a", Value: 2}, weir.KV[string, int64]{Key: "a", Value: 1})
}

// nowhere is a sink that can't be opened.
type nowhere[T any] struct{}

func (nowhere[T]) Check() error   { return nil }
func (nowhere[T]) String() string { return "nowhere" }
func (nowhere[T]) Open(sink.Env) (sink.Writer[T], error) {
	return nil, errors.New("there is nothing")
}

func TestSinksWithoutTopicsAreNotOpened(t *testing.T) {
	h := weirtest.New(t, func(app *weir.App) {
		weir.To(weir.From(app, "in", source.Values("in", codec.String)), "out", nowhere[string]{})
	})
	weirtest.In[string](h, "in").Send("a")
	h.Checkpoint()
	weirtest.Out[string](h, "out").WantCommitted("a")
}

func TestFailuresSayWhatIsWrong(t *testing.T) {
	with := func(f func(h *weirtest.Harness, in *weirtest.Input[payment])) func(t weirtest.TB) {
		return func(t weirtest.TB) {
			h := weirtest.New(t, accounts)
			f(h, weirtest.In[payment](h, "payments"))
		}
	}
	type input = weirtest.Input[payment]
	wantFailure(t, with(func(h *weirtest.Harness, _ *input) { weirtest.In[payment](h, "orders") }), `no source "orders"; it has "payments"`)
	wantFailure(t, with(func(h *weirtest.Harness, _ *input) { weirtest.In[string](h, "payments") }), `source "payments" has values of type weirtest_test.payment, not string`)
	wantFailure(t, with(func(h *weirtest.Harness, _ *input) { weirtest.Out[balance](h, "balence") }), `no operator "balence"`, `"balances" (to)`)
	wantFailure(t, with(func(h *weirtest.Harness, _ *input) { weirtest.Out[payment](h, "balances") }), `has values of type weirtest_test.balance, not weirtest_test.payment`)
	wantFailure(t, with(func(h *weirtest.Harness, _ *input) { weirtest.Side[payment](h, "late") }), `no side output "late"`)
	wantFailure(t, with(func(h *weirtest.Harness, _ *input) { weirtest.Value[int64](h, "balance", "sum", "a") }), `no state "sum" of operator "balance"; it has balance/total, balance/seen, balance/last`)
	wantFailure(t, with(func(h *weirtest.Harness, _ *input) { weirtest.Value[string](h, "balance", "total", "a") }), "it is a *state.OfValue[int64], not a *state.OfValue[string]")
	wantFailure(t, with(func(h *weirtest.Harness, _ *input) { weirtest.Value[int64](h, "balance", "total", 7) }), `operator "balance" has keys of type string, not int`)
	wantFailure(t, with(func(h *weirtest.Harness, _ *input) { weirtest.Timers(h, "balance", "a") }), `operator "balance" has no timers; no operator of the topology has any`)
	wantFailure(t, with(func(h *weirtest.Harness, in *input) { in.Watermark(h.Now()) }), `source "payments" tells no event time: give it weir.EventTime`)
	wantFailure(t, with(func(h *weirtest.Harness, in *input) { in.Partition(1) }), "partition 1 of 1")
	wantFailure(t, with(func(h *weirtest.Harness, in *input) { h.AdvanceTo(h.Now().Add(-1)) }), "can't go back")
	wantFailure(t, with(func(h *weirtest.Harness, in *input) { h.Stop(); h.Checkpoint() }), "can't take a checkpoint: the app is down")
	wantFailure(t, with(func(h *weirtest.Harness, in *input) { h.Start() }), "the app runs")
	wantFailure(t, with(func(h *weirtest.Harness, in *input) { h.Fails(func() { in.Send(payment{"1", "a", 1}) }) }), "was expected to fail and goes on")
	wantFailure(t, with(func(h *weirtest.Harness, in *input) { h.Fails(h.Stop) }), "was expected to fail: it has not, because it is down")
	wantFailure(t, with(func(h *weirtest.Harness, in *input) {
		h.Fails(func() { in.Send(payment{"bad", "a", 1}) })
		h.Fails(func() { in.Send(payment{"2", "a", 1}) })
	}), "it is down since it failed: weir: weirtest: operator", "a bad payment")
	wantFailure(t, with(func(h *weirtest.Harness, in *input) { in.Send(payment{"bad", "a", 1}) }), `weir: weirtest: operator "balance" failed on payments/0 at offset 0: a bad payment`)
	wantFailure(t, with(func(h *weirtest.Harness, in *input) {
		left := make(chan struct{})
		go func() { // a subtest
			defer close(left)
			h.Fails(runtime.Goexit)
		}()
		<-left
		in.Send(payment{"bad", "a", 1})
	}), "a bad payment")
	wantFailure(t, with(func(h *weirtest.Harness, in *input) { weirtest.Side[payment](h, "drawn") }), `no side output "drawn"`)
	wantFailure(t, func(t weirtest.TB) {
		h := weirtest.New(t, func(app *weir.App) {
			in := weir.From(app, "in", source.Values("in", codec.String))
			none := func(*weir.Setup) weir.Handler[string, string, string] {
				return weir.OnRecord(func(*weir.Context[string, string], string) error { return nil })
			}
			out := weir.Process(weir.KeyBy(in, "by", func(s string) string { return s }, codec.String), "sort", none)
			weir.To(weir.Side[int64]("too.late").From(out), "late", nowhere[int64]{})
		})
		weirtest.Side[int64](h, "too.late").Want()
		weirtest.Side[int64](h, "late")
	}, `no side output "late"`)
	wantFailure(t, with(func(h *weirtest.Harness, in *input) { h.DeadLetters() }), "weir.DeadLetters(topic)")
	wantFailure(t, with(func(h *weirtest.Harness, in *input) { h.Records("balence") }), `the app writes to no topic "balence"; it writes to ["alarms" "balances"]`)
	wantFailure(t, func(t weirtest.TB) {
		weirtest.Timers(weirtest.New(t, quietSensors), "sums", "a")
	}, `operator "sums" has no timers; there are those of sum`)
	wantFailure(t, func(t weirtest.TB) {
		h := weirtest.New(t, func(app *weir.App) {
			in := weir.From(app, "in", source.Values("in", codec.JSON[*payment]()))
			weir.To(weir.Map(in, "list", func(p *payment) ([]*payment, error) { return []*payment{p}, nil }), "out", nowhere[[]*payment]{})
		})
		weirtest.In[*payment](h, "in").Send(&payment{"1", "a", 5})
		weirtest.Out[[]*payment](h, "out").Want([]*payment{{"1", "a", 6}})
	}, `> 0  got [{"ID":"1","Account":"a","Cents":5}], want [{"ID":"1","Account":"a","Cents":6}]`)
	wantFailure(t, with(func(h *weirtest.Harness, in *input) {
		in.Send(payment{"1", "a", 1}, payment{"2", "a", 2})
		weirtest.Out[balance](h, "balances").Want(balance{"a", 1}, balance{"a", 2}, balance{"a", 4})
	}), `output of "balances":`, "got 2 values, want 3; they differ from number 1 on", "    0  {Account:a Cents:1}", "> 1  got {Account:a Cents:3}, want {Account:a Cents:2}", "> 2  got -, want {Account:a Cents:4}")
	wantFailure(t, func(t weirtest.TB) { weirtest.New(t, func(*weir.App) {}) }, "cannot build", "it has no weir.From")
}

// lines is a topology that maps lines.
func lines(f func(string) (string, error)) func(*weir.App) {
	return func(app *weir.App) {
		in := weir.From(app, "lines", source.Values("lines", codec.String))
		weir.To(weir.Map(in, "map", f), "copies", kafka.Values("copies", kafka.NoKey, codec.String))
	}
}

// A sink has encoded a value when the handler goes on, and changes what it points to.
func TestValuesAreShownAsTheyWereEmitted(t *testing.T) {
	type page struct {
		Hits map[string]int
		Last []*string
		Any  any
	}
	h := weirtest.New(t, func(app *weir.App) {
		by := weir.KeyBy(weir.From(app, "in", source.Values("in", codec.String)), "by", func(string) int32 { return 0 }, codec.Int32)
		pages := weir.Aggregate(by, "page", weir.Aggregator[string, *page, *page]{
			Zero: func() *page { return &page{Hits: map[string]int{}} },
			Add: func(p *page, v string) (*page, error) {
				p.Hits[v]++
				p.Last, p.Any = append(p.Last, &v), p.Hits
				*p.Last[0] = v
				return p, nil
			},
			Result: func(p *page) *page { return p },
			Codec:  codec.JSON[*page](),
		})
		weir.To(pages, "out", kafka.Sink("out", codec.Int32, codec.JSON[*page]()))
	})
	weirtest.In[string](h, "in").Send("a", "b", "c")
	text := func(s string) *string { return &s }
	hits := []map[string]int{{"a": 1}, {"a": 1, "b": 1}, {"a": 1, "b": 1, "c": 1}}
	want := []weir.KV[int32, *page]{
		{Value: &page{hits[0], []*string{text("a")}, hits[0]}},
		{Value: &page{hits[1], []*string{text("b"), text("b")}, hits[1]}},
		{Value: &page{hits[2], []*string{text("c"), text("b"), text("c")}, hits[2]}},
	}
	weirtest.Out[weir.KV[int32, *page]](h, "page").Want(want...)
	weirtest.Out[weir.KV[int32, *page]](h, "out").Want(want...)
}

// What is sent is in Kafka, out of the reach of the test and of handlers.
func TestAReplayBringsRecordsAsTheyWereSent(t *testing.T) {
	h := weirtest.New(t, func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.Bytes))
		next := weir.Map(in, "next", func(b []byte) ([]byte, error) {
			b[0]++
			return b, nil
		})
		weir.To(next, "out", kafka.Values("out", kafka.NoKey, codec.Bytes))
	})
	value := []byte("abc")
	weirtest.In[[]byte](h, "in").SendRecords(&kgo.Record{Value: value})
	clear(value)
	for range 2 {
		weirtest.Out[[]byte](h, "out").Want([]byte("bbc"))
		h.Crash()
	}
}

func TestTimestampsAreMilliseconds(t *testing.T) {
	h := weirtest.New(t, func(app *weir.App) {
		by := weir.KeyBy(weir.From(app, "in", source.Values("in", codec.String)), "by", func(s string) string { return s }, codec.String)
		out := weir.Process(by, "when", func(*weir.Setup) weir.Handler[string, string, time.Time] {
			return weir.OnRecord(func(c *weir.Context[string, time.Time], _ string) error {
				c.Emit(c.Timestamp())
				return nil
			})
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.JSON[time.Time]()))
	})
	in, out := weirtest.In[string](h, "in"), weirtest.Out[time.Time](h, "out")
	h.Advance(1_999_999)
	in.Send("a")
	in.At(weirtest.Begin.Add(7_000_001)).Send("a")
	out.Want(weirtest.Begin.Add(time.Millisecond), weirtest.Begin.Add(7*time.Millisecond))
}

// A replay writes the same bytes, so a record that has no timestamp gets that of its input,
// not the time at which it is written.
func TestRecordsWithoutATimestampGetThatOfTheirInput(t *testing.T) {
	own := weirtest.Begin.Add(-time.Hour)
	h := weirtest.New(t, func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		made := weir.Map(in, "make", func(s string) (*kgo.Record, error) {
			r := &kgo.Record{Value: []byte(s)}
			if s == "own" {
				r.Timestamp = own
			}
			return r, nil
		})
		weir.To(made, "out", kafka.Records("out"))
	})
	in, at := weirtest.In[string](h, "in"), weirtest.Begin.Add(time.Minute)
	in.At(at).Send("none", "own")
	h.Drain()
	for i, want := range []time.Time{at, own} {
		if rs := h.Records("out"); len(rs) != 2 || !rs[i].Timestamp.Equal(want) {
			t.Errorf("record %d of %v, want 2, and %v", i, rs, want)
		}
	}
}

func TestFailsReturnsWhatCannotBeBuilt(t *testing.T) {
	same := lines(func(s string) (string, error) { return s, nil })
	h := weirtest.New(t, same)
	in := weirtest.In[string](h, "lines")
	in.Send("a")
	err := h.Fails(func() {
		h.Upgrade(func(app *weir.App) {
			same(app)
			same(app)
		})
	})
	if !strings.Contains(err.Error(), "ID used twice") {
		t.Errorf("the error is %v", err)
	}
	in.Send("b") // waits
	h.Upgrade(same)
	weirtest.Out[string](h, "copies").Want("a", "b")
}

func TestAHandlerDoesNotDriveItsHarness(t *testing.T) {
	for name, f := range map[string]func(h *weirtest.Harness){
		"checkpoint": func(h *weirtest.Harness) { h.Checkpoint() },
		"send":       func(h *weirtest.Harness) { weirtest.In[string](h, "lines").Send("again") },
		"crash":      (*weirtest.Harness).Crash,
		"advance":    func(h *weirtest.Harness) { h.Advance(time.Second) },
		"stop":       (*weirtest.Harness).Stop,
	} {
		t.Run(name, func(t *testing.T) {
			wantFailure(t, func(t weirtest.TB) {
				var h *weirtest.Harness
				h = weirtest.New(t, lines(func(s string) (string, error) {
					f(h)
					return s, nil
				}))
				weirtest.In[string](h, "lines").Send("a")
			}, "can't drive the harness that has called it")
		})
	}
}

// account is a key that JSON does not tell from another.
type account struct{ tenant, user string }

func TestRecordWhoseKeyItsCodecDoesNotGiveBackIsNamed(t *testing.T) {
	h := weirtest.New(t, func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		byAccount := weir.KeyBy(in, "by-account", func(s string) (k account) {
			k.tenant, k.user, _ = strings.Cut(s, "/")
			return k
		}, codec.JSON[account]())
		counts := weir.Process(byAccount, "count", func(s *weir.Setup) weir.Handler[account, string, string] {
			n := state.Value(s, "n", codec.Int64)
			return weir.OnRecord(func(c *weir.Context[account, string], s string) error {
				n.Set(n.Get() + 1)
				c.Emit(fmt.Sprint(s, " ", n.Get()))
				return nil
			})
		})
		weir.To(counts, "out", kafka.Values("out", kafka.NoKey, codec.String))
	})
	in, out := weirtest.In[string](h, "in"), weirtest.Out[string](h, "out")
	in.Send("")
	h.Checkpoint()
	err := h.Fails(func() { in.Send("acme/alice", "", "acme/bob") })
	var he *weir.HandlerError
	if !errors.As(err, &he) || he.Operator != "count" || he.Offset != 1 || he.Panic || !strings.Contains(err.Error(), "{tenant:acme user:alice} can hold no state") {
		t.Fatalf("got %v", err)
	}
	h.Start(weir.SkipRecords("in/0@1,in/0@3"))
	h.Checkpoint()
	out.WantCommitted(" 1", " 2")
	if sk := h.Skipped(); len(sk) != 2 || sk[0].Operator != "count" {
		t.Errorf("skipped are %+v", sk)
	}
}
