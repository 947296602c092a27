package weir_test

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
	"github.com/weirstream/weir/weirtest"
)

// sighting is "key@ms": a key seen at an event time.
type sighting struct {
	key string
	ms  int64
}

func parseSighting(b []byte) (sighting, error) {
	k, v, _ := strings.Cut(string(b), "@")
	ms, err := strconv.ParseInt(v, 10, 64)
	return sighting{k, ms}, err
}

func (s sighting) at() time.Time { return time.UnixMilli(s.ms) }

// after is how long after a sighting its timer fires, in milliseconds of event time.
const after = 100

// reminders sets a timer for each sighting and emits "key fired ms" when it fires, and
// "late key@ms" for a late one at once. Records may be 10 ms out of order. onTimer, if
// not nil, is asked first.
func reminders(onTimer func(key string) error, opts ...weir.EventTimeOption) func(*weir.App) {
	return func(app *weir.App) {
		src := source.Source[sighting]{Topic: "in", Decode: func(r *kgo.Record) (sighting, error) { return parseSighting(r.Value) }}
		in := weir.From(app, "in", src, weir.EventTime(sighting.at, append(opts, weir.OutOfOrder(10*time.Millisecond))...))
		byKey := weir.KeyBy(in, "by-key", func(s sighting) string { return s.key }, codec.String)
		out := weir.Process(byKey, "remind", func(s *weir.Setup) weir.Handler[string, sighting, string] {
			timers := state.EventTimers(s)
			return weir.OnRecord(func(c *weir.Context[string, string], v sighting) error {
				if v.key == "boom" {
					return onTimer(v.key)
				}
				if !c.EventTime().Equal(v.at()) {
					return fmt.Errorf("event time is %v, want %v", c.EventTime(), v.at())
				}
				if c.Late() {
					c.Emit(fmt.Sprintf("late %s@%d", v.key, v.ms))
					return nil
				}
				timers.Set(v.at().Add(after * time.Millisecond))
				return nil
			}).OnTimer(func(c *weir.Context[string, string], t weir.Timer) error {
				if onTimer != nil {
					if err := onTimer(c.Key()); err != nil {
						return err
					}
				}
				if wm, ok := c.Watermark(); !ok || wm.Before(t.At) || !c.EventTime().Equal(t.At) || !t.EventTime {
					return fmt.Errorf("%+v fires at watermark %v, event time %v", t, wm, c.EventTime())
				}
				c.Emit(fmt.Sprintf("%s fired %d", c.Key(), t.At.UnixMilli()))
				return nil
			})
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
}

// produceTo writes values to a partition and waits for them.
func produceTo(t *testing.T, brokers []string, partition int32, values ...string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for _, v := range values {
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Partition: partition, Value: []byte(v)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// committedRecords waits until n input records are part of committed checkpoints.
func committedRecords(r *running, n int64) {
	r.t.Helper()
	seen := map[int64]bool{}
	await(r, 1, func(c event.CheckpointCommitted) bool {
		if !seen[c.Checkpoint] {
			seen[c.Checkpoint] = true
			n -= c.Records
		}
		return n <= 0
	})
}

func stop(t *testing.T, r *running) {
	t.Helper()
	r.stop()
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
}

func TestS32_TimersAndWatermarksSurviveARestartWithOtherParallelism(t *testing.T) {
	t.Run("in memory", func(t *testing.T) { timersSurvive(t, pebble.Backend{}, pebble.Backend{}) })
	disk := pebble.Dir(t.TempDir())
	t.Run("on disk", func(t *testing.T) { timersSurvive(t, disk, disk) })
	t.Run("from memory to disk", func(t *testing.T) { timersSurvive(t, pebble.Backend{}, pebble.Dir(t.TempDir())) })
}

func timersSurvive(t *testing.T, before, after pebble.Backend) {
	brokers := broker(t, 1, "in", "out")
	store := checkpoint.NewMem()
	produce(t, brokers, "in", "a@1000", "b@1050")
	start := func(t *testing.T, name string, brokers []string, topology func(*weir.App), opts ...weir.Option) *running {
		return start(t, name, brokers, topology, append([]weir.Option{weir.StateBackend(after)}, opts...)...)
	}
	r := start(t, "app", brokers, reminders(nil), weir.Store(store), weir.StateBackend(before))
	committedRecords(r, 2)
	stop(t, r) // fires nothing: time goes on later

	// The first record after the restore is late, by the watermark of before.
	produce(t, brokers, "in", "d@1000")
	r = start(t, "app", brokers, reminders(nil), weir.Store(store), weir.Parallelism(3))
	committedRecords(r, 1)
	produce(t, brokers, "in", "c@1120")
	wantValues(t, brokers, "out", "late d@1000", "a fired 1100")
	stop(t, r)

	// A drain brings time to its end, before the last checkpoint. The next run goes on
	// where records left time.
	r = start(t, "app", brokers, reminders(nil), weir.Store(store), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	wantValues(t, brokers, "out", "late d@1000", "a fired 1100", "b fired 1150", "c fired 1220")
	produce(t, brokers, "in", "e@1110", "f@1109")
	r = start(t, "app", brokers, reminders(nil), weir.Store(store), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	wantValues(t, brokers, "out", "late d@1000", "a fired 1100", "b fired 1150", "c fired 1220", "e fired 1210", "late f@1109")
}

func TestS32_TimersOfAnEpochThatWasRolledBackFireAgain(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	var fired, failed atomic.Int64
	topology := reminders(func(key string) error {
		if key != "boom" {
			fired.Add(1)
			return nil
		}
		if failed.Add(1) == 1 {
			return weir.Retry(errors.New("asked to"))
		}
		return nil
	})
	produce(t, brokers, "in", "a@1000", "b@1001")
	r := start(t, "app", brokers, topology, weir.Store(checkpoint.NewMem()), weir.CheckpointEvery(5*time.Minute), weir.AfterRecords(2), weir.Parallelism(1),
		weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 1, Quiet: time.Hour}))
	committedRecords(r, 2)
	produce(t, brokers, "in", "c@2000") // the epoch is open: both timers fire in it
	for timeout := time.After(deadline); fired.Load() < 2; {
		select {
		case <-timeout:
			t.Fatalf("%d timers fired, want 2", fired.Load())
		case <-time.After(time.Millisecond):
		}
	}
	produce(t, brokers, "in", "boom@2001")
	await(r, 1, any1[event.Restarting])
	wantValues(t, brokers, "out", "a fired 1100", "b fired 1101")
	stop(t, r)
	if fired.Load() != 4 {
		t.Errorf("timers fired %d times, want 4: 2 before the rollback and 2 after it", fired.Load())
	}
	wantValues(t, brokers, "out", "a fired 1100", "b fired 1101")
}

func TestS32_IdlePartitionHoldsTimeBackUntilItIsIdleAlsoAfterARestore(t *testing.T) {
	const idle = time.Minute
	brokers := broker(t, 2, "in", "out")
	store, now := checkpoint.NewMem(), clock.NewManual(time.Unix(1_000_000, 0))
	var fired atomic.Int64
	topology := reminders(func(string) error { fired.Add(1); return nil }, weir.Idle(idle))
	begin := func() *running { return start(t, "app", brokers, topology, weir.Store(store), weir.UseClock(now)) }
	r := begin()
	produceTo(t, brokers, 0, "a@1000", "b@1500")
	committedRecords(r, 2)
	now.Advance(idle - time.Second)
	produceTo(t, brokers, 0, "b@1501")
	committedRecords(r, 3)
	if n := fired.Load(); n != 0 {
		t.Fatalf("%d timers fired while a partition that may have older records was not idle", n)
	}
	// Partition 1 becomes idle, and 0 does not: it is heard of again and again.
	n := int64(0)
	for timeout := time.After(deadline); fired.Load() == 0; {
		now.Advance(idle / 4)
		n++
		produceTo(t, brokers, 0, "b@1501")
		committedRecords(r, 3+n)
		select {
		case <-timeout:
			t.Fatal("no timer fired")
		default:
		}
	}
	wantValues(t, brokers, "out", "a fired 1100")
	stop(t, r)

	r = begin() // the clock stands: what is idle was idle before
	produceTo(t, brokers, 0, "c@3000")
	wantValues(t, brokers, "out", "a fired 1100", "b fired 1600", "b fired 1601")
	// Records of the idle partition count again, and don't turn time back.
	produceTo(t, brokers, 1, "late@2900", "d@2995")
	produceTo(t, brokers, 0, "e@9000")
	committedRecords(r, 4)
	stop(t, r)
	wantValues(t, brokers, "out", "a fired 1100", "b fired 1600", "b fired 1601", "late late@2900")
}

// A partition that was idle when the app stopped counts again for one that knows no idleness.
func TestPartitionThatWasIdleCountsOnceIdleIsTakenAway(t *testing.T) {
	h := weirtest.New(t, reminders(nil, weir.Idle(time.Minute)))
	send := func(values ...string) {
		for _, v := range values {
			weirtest.In[sighting](h, "in").SendRecords(&kgo.Record{Value: []byte(v)})
		}
	}
	send("a@1000")
	h.Advance(time.Minute)
	h.Upgrade(reminders(nil))
	send("b@2000", "b@3000")
	weirtest.Out[string](h, "out").Want("a fired 1100", "b fired 2100")
}

func TestTheLeastEventTimeMovesNoWatermark(t *testing.T) {
	h := weirtest.New(t, reminders(nil))
	in := weirtest.In[sighting](h, "in")
	in.SendRecords(&kgo.Record{Value: []byte("a@1000")}, &kgo.Record{Value: []byte("b@-9223372036854775807")})
	h.Restart()
	in.SendRecords(&kgo.Record{Value: []byte("c@-9223372036854775807")}, &kgo.Record{Value: []byte("d@1000")})
	weirtest.Out[string](h, "out").Want("late b@-9223372036854775807", "late c@-9223372036854775807")
}

// A partition that has no records after a restore counts with the watermark it had.
func TestS32_WatermarkOfAPartitionSurvivesARestart(t *testing.T) {
	brokers := broker(t, 2, "in", "out")
	store := checkpoint.NewMem()
	produceTo(t, brokers, 1, "b@5000")
	produceTo(t, brokers, 0, "a@1000")
	r := start(t, "app", brokers, reminders(nil), weir.Store(store))
	committedRecords(r, 2)
	stop(t, r)
	r = start(t, "app", brokers, reminders(nil), weir.Store(store))
	produceTo(t, brokers, 0, "c@4000")
	wantValues(t, brokers, "out", "a fired 1100")
	stop(t, r)
}

// alarms sets a processing-time timer for an hour ahead, by the clock, and emits the key
// when it fires.
func alarms(now clock.Clock) func(*weir.App) {
	return func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		byKey := weir.KeyBy(in, "by-key", func(s string) string { return s }, codec.String)
		out := weir.Process(byKey, "alarm", func(s *weir.Setup) weir.Handler[string, string, string] {
			timers := state.ProcessingTimers(s)
			return weir.OnRecord(func(c *weir.Context[string, string], _ string) error {
				timers.Set(now.Now().Add(time.Hour))
				return nil
			}).OnTimer(func(c *weir.Context[string, string], t weir.Timer) error {
				c.Emit(c.Key())
				return nil
			})
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
}

func TestS32_ProcessingTimersFireWithoutInputAndAreCommitted(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	store, now := checkpoint.NewMem(), clock.NewManual(time.Unix(1_000_000, 0))
	produce(t, brokers, "in", "a", "b")
	r := start(t, "app", brokers, alarms(now), weir.Store(store), weir.UseClock(now))
	committedRecords(r, 2)
	for timeout := time.After(deadline); now.Waiting() == 0; {
		select {
		case <-timeout:
			t.Fatal("nobody waits for the time of the timers")
		case <-time.After(time.Millisecond):
		}
	}
	now.Advance(time.Hour)
	wantValues(t, brokers, "out", "a", "b")
	produce(t, brokers, "in", "c")
	committedRecords(r, 3)
	stop(t, r)
	now.Advance(time.Hour)
	r = start(t, "app", brokers, alarms(now), weir.Store(store), weir.UseClock(now))
	wantValues(t, brokers, "out", "a", "b", "c") // was due while nobody ran
	stop(t, r)
	r = start(t, "app", brokers, alarms(now), weir.Store(store), weir.UseClock(now), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	wantValues(t, brokers, "out", "a", "b", "c") // and fired once
}

func TestErrorOfATimerNamesOperatorKeyAndTime(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a@1000", "b@2000")
	for name, c := range map[string]struct {
		err  func() error
		want []string
	}{
		"stop":  {func() error { return errors.New("asked to") }, []string{`operator "remind" failed on its timer at 1970-01-01T00:00:01.100Z of key a: asked to`, "return weir.Skip(err)"}},
		"panic": {func() error { panic("asked to") }, []string{`operator "remind" panicked on its timer at 1970-01-01T00:00:01.100Z of key a: asked to`, "time_test.go:"}},
		"dead":  {func() error { return weir.DeadLetter(errors.New("asked to")) }, []string{"there is no input record to dead-letter: asked to"}},
	} {
		r := start(t, name, brokers, reminders(func(string) error { return c.err() }), weir.Store(checkpoint.NewMem()))
		err := r.wait()
		wantError(t, err, c.want...)
		var he *weir.HandlerError
		if !errors.As(err, &he) || he.Operator != "remind" || he.Key != "a" || he.Timer.UnixMilli() != 1100 {
			t.Errorf("%s: got %#v", name, he)
		}
	}
	r := start(t, "skip", brokers, reminders(func(key string) error {
		if key == "a" {
			return weir.Skip(errors.New("asked to"))
		}
		return nil
	}), weir.Store(checkpoint.NewMem()), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	if s := await(r, 1, any1[event.Skipped]); s.Key != "a" || s.Timer.UnixMilli() != 1100 || s.Operator != "remind" {
		t.Errorf("got %+v", s)
	}
	wantValues(t, brokers, "out", "b fired 2100")
}

func TestErrorOnWhatATimerEmittedNamesTheTimer(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a@1000")
	r := start(t, "app", brokers, func(app *weir.App) {
		src := source.Source[sighting]{Topic: "in", Decode: func(r *kgo.Record) (sighting, error) { return parseSighting(r.Value) }}
		in := weir.From(app, "in", src, weir.EventTime(sighting.at))
		out := weir.Process(weir.KeyBy(in, "by-key", func(s sighting) string { return s.key }, codec.String), "first",
			func(s *weir.Setup) weir.Handler[string, sighting, string] {
				timers := state.EventTimers(s)
				return weir.OnRecord(func(c *weir.Context[string, string], v sighting) error {
					timers.Set(v.at())
					return nil
				}).OnTimer(func(c *weir.Context[string, string], _ weir.Timer) error {
					c.Emit(c.Key())
					return nil
				})
			})
		again := weir.Process(weir.KeyBy(out, "again", func(s string) string { return s }, codec.String), "second",
			func(s *weir.Setup) weir.Handler[string, string, string] {
				return weir.OnRecord(func(c *weir.Context[string, string], v string) error {
					if got := c.Meta().Timestamp(); got.UnixMilli() != 1000 {
						return fmt.Errorf("timestamp %v", got)
					}
					return errors.New("asked to")
				})
			})
		weir.To(again, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}, weir.Store(checkpoint.NewMem()), weir.Drain())
	wantError(t, r.wait(), `operator "second" failed on what the timer of operator "first" at 1970-01-01T00:00:01.000Z emitted: asked to`)
}

func TestMistakesWithTimeAreFoundBeforeTheFirstRecord(t *testing.T) {
	process := func(name string, in weir.Stream[string], setup func(s *weir.Setup) weir.Handler[string, string, string]) {
		out := weir.Process(weir.KeyBy(in, name+"-key", func(s string) string { return s }, codec.String), name, setup)
		weir.To(out, name+"-out", kafka.Values("out", kafka.NoKey, codec.String))
	}
	onRecord := weir.OnRecord(func(*weir.Context[string, string], string) error { return nil })
	onTimer := onRecord.OnTimer(func(*weir.Context[string, string], weir.Timer) error { return nil })
	app := weir.New("app", weir.Brokers("localhost:1"), weir.CheckpointStore("mem://"), weir.InstanceID("a"))
	plain := weir.From(app, "plain", source.Values("plain", codec.String))
	wrong := weir.From(app, "wrong", source.Values("wrong", codec.String), weir.EventTime(func(int) time.Time { return time.Time{} }, weir.OutOfOrder(-1)))
	typed := weir.From(app, "typed", source.Values("typed", codec.String), weir.EventTime(func(int) time.Time { return time.Time{} }))
	idle := weir.From(app, "idle", source.Values("idle", codec.String), weir.RecordTime(weir.Idle(time.Microsecond)))
	process("never", plain, func(s *weir.Setup) weir.Handler[string, string, string] { state.EventTimers(s); return onTimer })
	process("nobody", weir.Merge("all", wrong, typed, idle), func(s *weir.Setup) weir.Handler[string, string, string] { state.EventTimers(s); return onRecord })
	process("none", plain, func(s *weir.Setup) weir.Handler[string, string, string] { return onTimer })
	process("twice", idle, func(s *weir.Setup) weir.Handler[string, string, string] {
		state.EventTimers(s)
		state.EventTimers(s)
		return onTimer
	})
	err := app.Validate()
	wantError(t, err,
		`operator "wrong": weir.OutOfOrder(-1ns): want 0 or more`,
		`operator "typed": weir.EventTime takes a int, the source has values of type string`,
		`operator "idle": weir.Idle(1µs): want at least a millisecond`,
		`operator "never": its event-time timers would never fire`,
		`operator "nobody": declares timers and has no function for them`,
		`operator "none": has an OnTimer function and no timers`,
		`operator "twice": state name "event-timers" used twice`)
	var be *weir.BuildError
	if !errors.As(err, &be) || len(be.Errs) != 7 {
		t.Errorf("%v", err)
	}
}

func TestARecordWithinABoundBelowAMillisecondIsNotLate(t *testing.T) {
	h := weirtest.New(t, func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.Int64), weir.EventTime(time.UnixMicro, weir.OutOfOrder(1500*time.Microsecond)))
		all := weir.KeyBy(in, "all", func(int64) string { return "all" }, codec.String)
		weir.To(weir.Process(all, "late", func(*weir.Setup) weir.Handler[string, int64, bool] {
			return weir.OnRecord(func(c *weir.Context[string, bool], _ int64) error { c.Emit(c.Late()); return nil })
		}), "out", kafka.Values("out", kafka.NoKey, codec.Bool))
	})
	weirtest.In[int64](h, "in").Send(1000200, 998800)
	weirtest.Out[bool](h, "out").Want(false, false)
}
