package processor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/segment"
)

// timedEdge is a keyed subtask with timers and several senders, run by the test.
type timedEdge struct {
	t       *testing.T
	senders []*Subtask
	send    []func(int64)
	r       *keyedRunner[int64, int64]
	log     []string
	fires   func() // called by a timer that fires, if not nil
}

// newTimedEdge begins at a stage watermark. A value is its own key and the time of its
// timer.
func newTimedEdge(t *testing.T, senders int, watermark int64) *timedEdge {
	base := checkpoint.Manifest{}
	if watermark != noWatermark {
		base.EventTime.Stages = map[string]int64{"stage": watermark}
	}
	return restoreTimedEdge(t, senders, base)
}

// restoreTimedEdge begins where event time stood.
func restoreTimedEdge(t *testing.T, senders int, base checkpoint.Manifest) *timedEdge {
	return timedEdgeWith(state.EventTimers, t, senders, base)
}

func timedEdgeWith(declare func(state.Setup) *state.Timers, t *testing.T, senders int, base checkpoint.Manifest) *timedEdge {
	e := &timedEdge{t: t}
	inc := newIncarnation(t.Context(), &Config{Parallelism: 1, KeyGroups: 1, Unaligned: true}, &Plan{}, nil, nil)
	inc.gate = newGate(1, 0)
	inc.states = []checkpoint.StateInfo{{ID: 1, Operator: "op", Name: state.EventTimersName}, {ID: 2, Operator: "op", Name: state.ProcessingTimersName}}
	inc.base = base
	st := NewKeyedStage("stage", func(v int64) int64 { return v }, codec.Int64)
	st.InFlight(codec.Int64)
	st.Add(KeyedOperator[int64, int64]{ID: "op", Build: func(s *Subtask, ks *state.Keyspace[int64]) (*state.Scope, func(int64)) {
		scope, op := state.NewScope("op"), s.Operator("op")
		timers := declare(setup{scope})
		op.Fires(timers, func(at state.Timer) error {
			e.log = append(e.log, fmt.Sprintf("fires %d", ks.Key()))
			if e.fires != nil {
				e.fires()
			}
			return nil
		})
		return scope, func(v int64) {
			e.log = append(e.log, fmt.Sprintf("value %d", v))
			timers.Set(time.UnixMilli(v))
		}
	}})
	for range senders {
		s := inc.newSubtask(SourcesID, 0)
		s.raw = &kgo.Record{Topic: "in"}
		e.senders = append(e.senders, s)
		e.send = append(e.send, st.Send(s))
	}
	rs, err := st.Build(inc)
	if err != nil {
		t.Fatal(err)
	}
	e.r = rs[0].(*keyedRunner[int64, int64])
	return e
}

// soleEdge builds the only stage of an incarnation, and a sender to it.
func soleEdge(t *testing.T, inc *incarnation, st *KeyedStage[int64, int64]) (from *Subtask, send func(int64), r *keyedRunner[int64, int64]) {
	t.Helper()
	from = inc.newSubtask(SourcesID, 0)
	from.raw = &kgo.Record{Topic: "in"}
	send = st.Send(from)
	rs, err := st.Build(inc)
	if err != nil {
		t.Fatal(err)
	}
	return from, send, rs[0].(*keyedRunner[int64, int64])
}

// take lets the subtask take what was handed over, and expects what it did.
func (e *timedEdge) take(want ...string) {
	e.t.Helper()
	for _, s := range e.senders {
		s.idle()
	}
	takeAll(e.t, e.r)
	if !slices.Equal(e.log, want) {
		e.t.Fatalf("it did %v, want %v", e.log, want)
	}
	e.log = nil
}

func TestWatermarkIsTheLeastOfTheInputsAndNeverFalls(t *testing.T) {
	e := newTimedEdge(t, 2, noWatermark)
	a, b := e.senders[0], e.senders[1]
	for _, v := range []int64{10, 20, 30, 40} {
		e.send[0](v)
	}
	a.time(mark{watermark: 100})
	e.take("value 10", "value 20", "value 30", "value 40") // nothing is known of b
	b.time(mark{watermark: 10})
	e.take("fires 10")
	b.time(mark{watermark: 25})
	e.take("fires 20")
	b.time(mark{watermark: 25, idle: true}) // holds nothing back
	e.take("fires 30", "fires 40")
	b.time(mark{watermark: 26})
	e.send[1](90)
	e.take("value 90", "fires 90")
	if ms, _ := e.r.sub.Watermark(); ms != 100 {
		t.Errorf("the watermark is %d, want 100", ms)
	}
	a.time(mark{watermark: 100, idle: true})
	b.time(mark{watermark: 26, idle: true})
	e.take()
	if ms, _ := e.r.sub.Watermark(); ms != 100 || !e.r.now.idle {
		t.Errorf("while all inputs are idle the watermark is %d, want 100", ms)
	}
}

func TestTimersFireBetweenTheRecordsBeforeAWatermarkAndThoseBehindIt(t *testing.T) {
	e := newTimedEdge(t, 1, noWatermark)
	e.send[0](10)
	e.senders[0].time(mark{watermark: 15})
	e.senders[0].idle()
	e.send[0](20)
	e.senders[0].time(mark{watermark: 30})
	e.take("value 10", "fires 10", "value 20", "fires 20")
}

// A timer that fires sets one for an earlier time. For the operator's state time doesn't go
// back: what had expired would be there again.
func TestTimeOfStateDoesNotGoBackBetweenTimers(t *testing.T) {
	inc := newIncarnation(t.Context(), &Config{Parallelism: 1, KeyGroups: 1}, &Plan{}, nil, nil)
	inc.gate = newGate(1, 0)
	inc.states = []checkpoint.StateInfo{{ID: 1, Operator: "op", Name: state.EventTimersName}, {ID: 2, Operator: "op", Name: "v"}}
	inc.base.EventTime.Stages = map[string]int64{"stage": 0}
	st := NewKeyedStage("stage", func(v int64) int64 { return v }, codec.Int64)
	var log []string
	st.Add(KeyedOperator[int64, int64]{ID: "op", Build: func(s *Subtask, ks *state.Keyspace[int64]) (*state.Scope, func(int64)) {
		scope, op := state.NewScope("op"), s.Operator("op")
		timers := state.EventTimers(setup{scope})
		v := state.Value(setup{scope}, "v", codec.Int64, state.TTL(100*time.Millisecond, state.InEventTime))
		op.Fires(timers, func(at state.Timer) error {
			_, ok := v.Lookup()
			log = append(log, fmt.Sprint(at.At.UnixMilli(), " ", ok))
			if at.At.UnixMilli() == 200 {
				timers.Set(time.UnixMilli(60))
			}
			return nil
		})
		return scope, func(n int64) {
			v.Set(n)
			timers.Set(time.UnixMilli(50))
			timers.Set(time.UnixMilli(200))
		}
	}})
	from, send, r := soleEdge(t, inc, st)
	send(1)
	from.time(mark{watermark: 300})
	from.idle()
	takeAll(t, r)
	if want := []string{"50 true", "200 false", "60 false"}; !slices.Equal(log, want) {
		t.Errorf("the timers fired with %q, want %q", log, want)
	}
}

// Time that is stored did not come nearer to the end because one input came to it before
// another one did.
func TestInputsThatEndOneByOneDoNotTakeTimeOn(t *testing.T) {
	for _, unaligned := range []bool{false, true} {
		e := newTimedEdge(t, 2, noWatermark)
		e.send[0](15)
		e.senders[0].time(mark{watermark: 10})
		e.senders[1].time(mark{watermark: 20})
		e.take("value 15")
		e.senders[0].time(mark{watermark: endOfTime})
		e.senders[0].barrier(1)
		inc := e.r.sub.inc
		if unaligned {
			inc.unaligned.Store(1)
			inc.callAttention()
			e.take()
		} else {
			e.take()
		}
		e.senders[1].time(mark{watermark: endOfTime})
		e.senders[1].barrier(1)
		e.take("fires 15")
		if err := e.r.encode(time.Hour); err != nil {
			t.Fatal(err)
		}
		a := (<-inc.events).(ack)
		if a.watermark != 10 || a.fired != 10 {
			t.Errorf("unaligned %v: time is stored as %d, and timers have fired up to %d, want 10", unaligned, a.watermark, a.fired)
		}
		for _, p := range a.inFlight {
			if *p.Watermark != 10 || p.Length > 0 || len(p.Data) > 0 {
				t.Errorf("in flight is %+v, with %d bytes", p.InFlight, len(p.Data))
			}
		}
	}
}

// Also where the next record is there already, and a batch of a test kit has one only.
func TestTimerForATimeThatHasPassedFiresRightAfterItsHandler(t *testing.T) {
	e := newTimedEdge(t, 1, 100)
	for _, v := range []int64{10, 100, 101, 20} {
		e.send[0](v)
	}
	e.take("value 10", "fires 10", "value 100", "fires 100", "value 101", "value 20", "fires 20")

	e = timedEdgeWith(state.ProcessingTimers, t, 1, checkpoint.Manifest{})
	now := e.r.wall()
	for _, v := range []int64{now + time.Hour.Milliseconds(), now, 20} {
		e.send[0](v)
	}
	e.take(fmt.Sprint("value ", now+time.Hour.Milliseconds()), fmt.Sprint("value ", now), fmt.Sprint("fires ", now), "value 20", "fires 20")
}

// A timer that follows the clock sets one for an event time that has passed.
func TestEventTimerThatAClockTimerSetsFiresBeforeTheNextRecord(t *testing.T) {
	inc := newIncarnation(t.Context(), &Config{Parallelism: 1, KeyGroups: 1}, &Plan{}, nil, nil)
	inc.gate, inc.base.EventTime.Stages = newGate(1, 0), map[string]int64{"stage": 100}
	inc.states = []checkpoint.StateInfo{{ID: 1, Operator: "op", Name: state.EventTimersName}, {ID: 2, Operator: "op", Name: state.ProcessingTimersName}}
	var log []string
	st := NewKeyedStage("stage", func(v int64) int64 { return v }, codec.Int64)
	st.Add(KeyedOperator[int64, int64]{ID: "op", Build: func(s *Subtask, ks *state.Keyspace[int64]) (*state.Scope, func(int64)) {
		scope, op := state.NewScope("op"), s.Operator("op")
		event, clock := state.EventTimers(setup{scope}), state.ProcessingTimers(setup{scope})
		fires := func(at state.Timer) error {
			log = append(log, fmt.Sprint("fires ", at.EventTime, " of ", ks.Key()))
			if !at.EventTime {
				event.Set(time.UnixMilli(50))
			}
			return nil
		}
		op.Fires(event, fires)
		op.Fires(clock, fires)
		return scope, func(v int64) {
			log = append(log, fmt.Sprint("value ", v))
			clock.Set(time.UnixMilli(v))
		}
	}})
	s, send, r := soleEdge(t, inc, st)
	send(1)
	send(2)
	s.idle()
	takeAll(t, r)
	want := []string{"value 1", "fires false of 1", "fires true of 1", "value 2", "fires false of 2", "fires true of 2"}
	if !slices.Equal(log, want) {
		t.Errorf("it did %q, want %q", log, want)
	}
}

// It may have passed for the key alone.
func TestTimerUpToTheFloorOfItsKeyFiresRightAfterItsHandler(t *testing.T) {
	b := uint16(keygroup.Of([]byte("b"), noteKeyGroups))
	a := newAging(t, 1, checkpoint.Manifest{EventTime: checkpoint.EventTime{
		Stages: map[string]int64{"stage": 10}, KeyGroups: []checkpoint.KeyGroupTime{{Stage: "stage", MinKG: b, MaxKG: b, Watermark: 100}},
	}}, nil, map[string]segment.Entry{})
	for _, at := range []int64{50, 60} {
		a.senders[0].at = at
		a.send[0](visit{"b", "set"})
	}
	a.senders[0].idle()
	a.want("b: 50 at 100, late", "b: timer 50 at 100", "b: 60 at 100, late", "b: timer 60 at 100")
}

// Who ends the incarnation waits for the timer that fires, not for all that are due.
func TestEndOfTheIncarnationIsNoticedBetweenTwoTimers(t *testing.T) {
	e := newTimedEdge(t, 1, noWatermark)
	for _, v := range []int64{10, 20, 30} {
		e.send[0](v)
	}
	e.take("value 10", "value 20", "value 30")
	inc := e.r.sub.inc
	e.fires = func() {
		inc.over.Store(true)
		inc.cancel(errHandedOver)
	}
	if _, err := e.r.fire(true, 100, 0); !errors.Is(err, errHandedOver) {
		t.Errorf("fire returned %v, want why the incarnation ends", err)
	}
	if !slices.Equal(e.log, []string{"fires 10"}) {
		t.Errorf("it did %v, want only the first timer to fire", e.log)
	}
}

// tell is an edge that notes where time stands.
type tell struct{ e *timedEdge }

func (tell) flush()        {}
func (tell) barrier(int64) {}
func (tell) refill() bool  { return true }
func (o tell) time(m mark) { o.e.log = append(o.e.log, fmt.Sprintf("time %d", m.watermark)) }

// A checkpoint that is taken between two timers of one moment has those that are left. They
// go first when it is restored, also if that is interrupted in the same way, and receivers
// are not told the time before.
func TestUnalignedCutFallsBetweenTwoTimers(t *testing.T) {
	timers := map[string][]byte{}
	// cutAfter takes checkpoint id after the first timers, and returns what is restored from it.
	cutAfter := func(e *timedEdge, id int64, fired int, want ...string) *timedEdge {
		t.Helper()
		inc := e.r.sub.inc
		e.r.sub.outgoing = []outgoing{tell{e}}
		e.fires = func() {
			if len(e.log) == fired {
				inc.unaligned.Store(id)
				inc.callAttention()
			}
		}
		e.r.begin()
		for worked, err := true, error(nil); worked; {
			if worked, err = e.r.step(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		if !slices.Equal(e.log, want) {
			t.Fatalf("it did %q, want %q", e.log, want)
		}
		a := (<-inc.events).(ack)
		if a.id != id || !a.unaligned || a.watermark != 100 || len(a.inFlight) != 1 || a.inFlight[0].Records != 1 {
			t.Fatalf("got %+v, want checkpoint %d, unaligned, at 100, with one record in flight", a, id)
		}
		for entry := range a.run.All() {
			if delete(timers, string(entry.Key)); !entry.Deleted {
				timers[string(entry.Key)] = entry.Value
			}
		}
		again := restoreTimedEdge(t, 2, checkpoint.Manifest{InFlight: []checkpoint.InFlight{a.inFlight[0].InFlight}})
		for k, v := range timers {
			if err := again.r.keys.Restore(0, 1, []byte(k), v); err != nil {
				t.Fatal(err)
			}
		}
		if err := again.r.restoreInFlight(a.inFlight[0].InFlight, a.inFlight[0].Data); err != nil {
			t.Fatal(err)
		}
		return again
	}
	e := newTimedEdge(t, 2, noWatermark)
	for _, v := range []int64{10, 20, 30, 40} {
		e.send[0](v)
	}
	e.senders[1].time(mark{watermark: 100})
	e.take("value 10", "value 20", "value 30", "value 40")
	e.senders[0].time(mark{watermark: 100})
	e.senders[0].barrier(1) // with the time that makes them fire
	e.send[0](200)          // of the next epoch
	e.senders[0].idle()
	e.send[1](300)
	e.senders[1].barrier(1)
	e = cutAfter(e, 1, 3, "time -9223372036854775808", "fires 10", "fires 20", "fires 30", "fires 40", "time 100", "value 200", "value 300")
	for _, s := range e.senders {
		s.barrier(2)
	}
	e = cutAfter(e, 2, 1, "fires 30", "fires 40", "time 100", "value 300")
	for _, s := range e.senders {
		s.barrier(3)
	}
	cutAfter(e, 3, 1, "fires 40", "time 100", "value 300")
}

// What is at the barrier is the watermark that went before it, on every subtask.
func TestBarrierCarriesTheWatermarkBeforeIt(t *testing.T) {
	e := newTimedEdge(t, 2, 5)
	for i, s := range e.senders {
		s.time(mark{watermark: int64(10 + i)})
		s.barrier(1)
		s.time(mark{watermark: 50})
	}
	e.take()
	if e.r.freeze.id != 1 || e.r.freeze.watermark != 10 {
		t.Errorf("barrier %d is at watermark %d, want 1 at 10", e.r.freeze.id, e.r.freeze.watermark)
	}
	if ms, _ := e.r.sub.Watermark(); ms != 50 {
		t.Errorf("behind the barrier the watermark is %d, want 50", ms)
	}
}

func TestS32_StageBeginsAtItsWatermarkBeforeItsInputsTellTheirs(t *testing.T) {
	e := newTimedEdge(t, 2, 100)
	if ms, ok := e.r.sub.Watermark(); !ok || ms != 100 {
		t.Errorf("the watermark is %d, %v, want 100", ms, ok)
	}
	e.senders[0].time(mark{watermark: 30})
	e.senders[1].time(mark{watermark: 40})
	e.take()
	if ms, _ := e.r.sub.Watermark(); ms != 100 {
		t.Errorf("the watermark fell to %d", ms)
	}
}

// A partition counts as idle by the time for which it was listened to, not by that for
// which the poller could not get rid of records.
func TestPartitionIsNotIdleWhileNobodyListens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := clock.NewManual(time.Unix(0, 0))
		st := &Sources{}
		st.Add("in", "in", func(*Subtask) func(*kgo.Record) { return func(*kgo.Record) {} })
		st.Watermarks("in", Watermarks{Idle: time.Minute})
		inc := newIncarnation(t.Context(), &Config{Parallelism: 1, KeyGroups: 1, Clock: now}, &Plan{Sources: st}, nil, nil)
		inc.gate = newGate(1, 0)
		r := st.build(inc)[0]
		p := &partition{id: offsets.Partition{Topic: "in"}, owner: r, time: partitionTime{newest: noWatermark, watermark: noWatermark}}
		r.chains["in"].parts = []*partition{p}
		r.chains["in"].begin(true)
		step := func(d time.Duration, want bool) {
			t.Helper()
			now.Advance(d)
			if r.idleness(); p.time.idle != want {
				t.Fatalf("idle is %v, want %v", p.time.idle, want)
			}
		}
		step(time.Hour, false) // the poller does not poll
		inc.watch.start()
		step(30*time.Second, false)
		inc.watch.stop()
		step(time.Hour, false)
		inc.watch.start()
		p.polled.Store(1)
		step(31*time.Second, false) // a record is on its way
		p.polled.Store(0)
		step(0, true)
		r.awake(r.chains["in"], p)
		step(59*time.Second, false)
		step(time.Second, true)
	})
}

// What a standby waited before partitions were its own is not time for which they had no
// records.
func TestPartitionIsNotIdleForTheTimeBeforeItWasAssigned(t *testing.T) {
	now := clock.NewManual(time.Unix(0, 0))
	st := &Sources{}
	st.Add("in", "in", func(*Subtask) func(*kgo.Record) { return func(*kgo.Record) {} })
	st.Watermarks("in", Watermarks{Idle: time.Minute})
	inc := newIncarnation(t.Context(), &Config{Parallelism: 1, KeyGroups: 1, Clock: now}, &Plan{Sources: st}, nil, nil)
	inc.gate = newGate(1, 0)
	inc.sources = st.build(inc)
	inc.watch.start()
	now.Advance(time.Hour)
	id := offsets.Partition{Topic: "in"}
	inc.assign(map[offsets.Partition]offsets.Position{id: {}})
	r, p := inc.sources[0], inc.parts[id]
	r.chains["in"].begin(true)
	for _, want := range []bool{false, true} {
		if r.idleness(); p.time.idle != want {
			t.Fatalf("%v after the assignment idle is %v", now.Now().Sub(time.Unix(0, 0))-time.Hour, p.time.idle)
		}
		now.Advance(time.Minute)
	}
}

// Behind the end of time there are no records: those that still come are the next run's.
func TestRecordsBehindTheEndOfADrainAreLeftAlone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		processed := 0
		st := &Sources{}
		st.Add("in", "in", func(*Subtask) func(*kgo.Record) { return func(*kgo.Record) { processed++ } })
		ctx, cancel := context.WithCancel(t.Context())
		inc := newIncarnation(ctx, &Config{Parallelism: 1, KeyGroups: 1}, &Plan{Sources: st}, nil, nil)
		inc.gate = newGate(1, 0)
		r := st.build(inc)[0]
		p := &partition{id: offsets.Partition{Topic: "in"}, owner: r, end: -1}
		go r.run(ctx)
		r.queue <- slice{p, []*kgo.Record{{Topic: "in", Offset: 0}}}
		synctest.Wait()
		inc.inputEnded.Store(true)
		r.inject(1)
		synctest.Wait()
		r.queue <- slice{p, []*kgo.Record{{Topic: "in", Offset: 1}}}
		synctest.Wait()
		cancel()
		synctest.Wait()
		if processed != 1 || p.next != 1 {
			t.Errorf("%d records were processed, up to offset %d, want 1", processed, p.next)
		}
	})
}

// setClock is a clock that somebody sets. What waits for a time waits for as long as it took
// when it began to.
type setClock struct {
	*clock.Manual
	ahead time.Duration
}

func (c *setClock) Now() time.Time { return c.Manual.Now().Add(c.ahead) }

func (c *setClock) At(at time.Time, f func()) func() { return c.Manual.At(at.Add(-c.ahead), f) }

func TestAlarmOfAClockThatWasSetBackRingsAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		now := &setClock{Manual: clock.NewManual(time.Unix(1000, 0))}
		var a alarm
		rang := 0
		set := func() { a.set(now, time.Unix(1060, 0), func() { rang++ }) }
		wait := func(d time.Duration, want int) {
			t.Helper()
			now.Advance(d)
			if synctest.Wait(); rang != want {
				t.Fatalf("at %v it rang %d times, want %d", now.Now(), rang, want)
			}
		}
		set()
		now.ahead = -30 * time.Second
		wait(time.Minute, 1) // half a minute early, by the clock
		set()
		set()
		wait(29*time.Second, 1)
		wait(time.Second, 2)
	})
}

// visit is a value of [aging], with what its handler does.
type visit struct {
	Key string
	Do  string // "mark" what expires after 50 ms, "set" a timer for the visit's time, "set first" that of an operator before
}

// aging is a keyed stage that does all that goes by event time, run by the test. It lives on
// in the checkpoints that it takes.
type aging struct {
	t       *testing.T
	inc     *incarnation
	senders []*Subtask
	send    []func(visit)
	runners []*keyedRunner[string, visit]
	log     []string
	fires   func() // called by a timer that fires, if not nil
	earlier int64  // this timer of op sets one for 25 ms before it
	stored  map[string]segment.Entry
	last    int64
}

func newAging(t *testing.T, parallelism int, base checkpoint.Manifest, parts []checkpoint.InFlightData, stored map[string]segment.Entry) *aging {
	t.Helper()
	a := &aging{t: t, stored: stored, last: base.Checkpoint}
	a.inc = newIncarnation(t.Context(), &Config{Parallelism: parallelism, KeyGroups: noteKeyGroups, Unaligned: true}, &Plan{}, nil, nil)
	a.inc.gate, a.inc.base = newGate(1, 0), base
	a.inc.states = []checkpoint.StateInfo{{ID: 1, Operator: "op", Name: "marked"}, {ID: 2, Operator: "op", Name: state.EventTimersName}, {ID: 3, Operator: "first", Name: state.EventTimersName}}
	st := NewKeyedStage("stage", func(v visit) string { return v.Key }, codec.String)
	st.InFlight(codec.JSON[visit]())
	st.Add(KeyedOperator[string, visit]{ID: "first", Build: func(s *Subtask, ks *state.Keyspace[string]) (*state.Scope, func(visit)) {
		scope, op := state.NewScope("first"), s.Operator("first")
		timers := state.EventTimers(setup{scope})
		op.Fires(timers, func(at state.Timer) error {
			a.log = append(a.log, fmt.Sprintf("%s: first timer %d", ks.Key(), at.At.UnixMilli()))
			if a.fires != nil {
				a.fires()
			}
			return nil
		})
		return scope, func(v visit) {
			if v.Do == "set first" {
				timers.Set(s.Time())
			}
		}
	}})
	st.Add(KeyedOperator[string, visit]{ID: "op", Build: func(s *Subtask, ks *state.Keyspace[string]) (*state.Scope, func(visit)) {
		scope, op := state.NewScope("op"), s.Operator("op")
		marked := state.Value(setup{scope}, "marked", codec.Bool, state.TTL(50*time.Millisecond, state.InEventTime))
		timers := state.EventTimers(setup{scope})
		op.Fires(timers, func(at state.Timer) error {
			wm, _ := s.Watermark()
			line := fmt.Sprintf("%s: timer %d at %d", ks.Key(), at.At.UnixMilli(), wm)
			if marked.Get() {
				line += ", marked"
			}
			a.log = append(a.log, line)
			if at.At.UnixMilli() == a.earlier {
				timers.Set(at.At.Add(-25 * time.Millisecond))
			}
			if a.fires != nil {
				a.fires()
			}
			return nil
		})
		return scope, func(v visit) {
			wm, _ := s.Watermark()
			line := fmt.Sprintf("%s: %d at %d", v.Key, s.at, wm)
			if s.at <= wm {
				line += ", late"
			}
			if marked.Get() {
				line += ", marked"
			}
			a.log = append(a.log, line)
			switch v.Do {
			case "mark":
				marked.Set(true)
			case "set":
				timers.Set(s.Time())
			}
		}
	}})
	for i := range 2 {
		s := a.inc.newSubtask(SourcesID, i)
		s.raw = &kgo.Record{Topic: "in"}
		a.senders, a.send = append(a.senders, s), append(a.send, st.Send(s))
	}
	rs, err := st.Build(a.inc)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		r := r.(*keyedRunner[string, visit])
		a.runners = append(a.runners, r)
		for _, e := range stored {
			if kg := int(e.KeyGroup); kg >= r.lo && kg < r.hi {
				err = errors.Join(err, r.keys.Restore(e.KeyGroup, e.State, e.Key, e.Value))
			}
		}
		for _, p := range parts {
			err = errors.Join(err, r.restoreInFlight(p.InFlight, p.Data))
		}
		r.begin()
	}
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// visit sends a visit at a time.
func (a *aging) visit(key string, at int64, do string) {
	a.senders[0].at = at
	a.send[0](visit{key, do})
	a.senders[0].idle()
}

// time says on both inputs that no visit up to ms is expected any more.
func (a *aging) time(ms int64) {
	for _, s := range a.senders {
		s.time(mark{watermark: ms})
		s.idle()
	}
}

// run lets subtasks, by default all, do what there is to do.
func (a *aging) run(subtasks ...int) {
	a.t.Helper()
	for i, r := range a.runners {
		for worked := len(subtasks) == 0 || slices.Contains(subtasks, i); worked; {
			var err error
			if worked, err = r.step(a.t.Context()); err != nil {
				a.t.Fatal(err)
			}
		}
	}
}

// want runs all subtasks and expects what they did.
func (a *aging) want(log ...string) {
	a.t.Helper()
	a.run()
	if !slices.Equal(a.log, log) {
		a.t.Fatalf("it did %q, want %q", a.log, log)
	}
	a.log = nil
}

// restored takes a checkpoint and begins anew with what it holds. What was done behind it is
// forgotten.
func (a *aging) restored(unaligned bool, parallelism int) *aging {
	a.t.Helper()
	id := a.last + 1
	d := &driver{inc: a.inc, watermarks: map[string]int64{}}
	if unaligned {
		a.inc.unaligned.Store(id)
		a.inc.callAttention()
		for _, r := range a.runners {
			if err := r.settle(); err != nil {
				a.t.Fatal(err)
			}
		}
	}
	for _, s := range a.senders {
		s.barrier(id)
	}
	done := len(a.log)
	if a.run(); !unaligned {
		done = len(a.log)
	}
	stored := maps.Clone(a.stored)
	for range a.runners {
		e := (<-a.inc.events).(ack)
		d.addParts(e)
		if !e.hasRun {
			continue
		}
		for e := range e.run.All() {
			key := string(segment.AppendKey(nil, e.KeyGroup, e.State, e.Key))
			if delete(stored, key); !e.Deleted {
				stored[key] = segment.Entry{KeyGroup: e.KeyGroup, State: e.State, Key: slices.Clone(e.Key), Value: slices.Clone(e.Value)}
			}
		}
	}
	s := d.snapshot(id)
	base := checkpoint.Manifest{Checkpoint: id, EventTime: s.EventTime}
	for _, p := range s.InFlight {
		base.InFlight = append(base.InFlight, p.InFlight)
	}
	next := newAging(a.t, parallelism, base, s.InFlight, stored)
	next.log = a.log[:done]
	return next
}

// newPair returns a stage with two subtasks, for the keys b and a, which were marked at 10.
func newPair(t *testing.T) *aging {
	a := newAging(t, 2, checkpoint.Manifest{}, nil, map[string]segment.Entry{})
	a.time(10)
	a.visit("b", 20, "mark")
	a.visit("a", 20, "mark")
	a.want("b: 20 at 10", "a: 20 at 10")
	return a
}

// newApart returns a pair for whose key b time has come to 100, and for a to 10: an input is
// idle while the subtask of b hears of it, and no more when that of a does.
func newApart(t *testing.T) *aging {
	a := newPair(t)
	a.senders[0].time(mark{watermark: 100})
	a.senders[0].idle()
	a.senders[1].time(mark{watermark: 10, idle: true})
	a.senders[1].at = 120
	a.send[1](visit{"b", ""})
	a.senders[1].outgoing[0].(*sender[string, visit]).handAll()
	a.senders[1].time(mark{watermark: 10})
	a.want("b: 120 at 10, marked")
	if b, a := a.runners[0].now.watermark, a.runners[1].now.watermark; b != 100 || a != 10 {
		t.Fatalf("time stands at %d and %d, want 100 and 10", b, a)
	}
	return a
}

// Time has come further for b, also at an aligned barrier.
func TestTimeOfAKeyStandsWhereItStoodUntilItsSubtaskHasPassedIt(t *testing.T) {
	for name, restored := range map[string]func(*aging) *aging{
		"aligned":                       func(a *aging) *aging { return a.restored(false, 2) },
		"aligned, other parallelism":    func(a *aging) *aging { return a.restored(false, 1) },
		"unaligned":                     func(a *aging) *aging { return a.restored(true, 2) },
		"unaligned, other parallelism":  func(a *aging) *aging { return a.restored(true, 1) },
		"again":                         func(a *aging) *aging { return a.restored(true, 1).restored(true, 1) },
		"again, aligned":                func(a *aging) *aging { return a.restored(true, 1).restored(false, 1) },
		"again, with parallelism of 16": func(a *aging) *aging { return a.restored(false, 1).restored(true, 16).restored(false, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			a := newApart(t)

			a = restored(a)
			a.visit("b", 90, "set")
			a.run()
			a.visit("a", 90, "set")
			a.want("b: 90 at 100, late", "b: timer 90 at 100", "a: 90 at 10, marked")
			a.visit("b", 110, "mark")
			a.time(100)
			a.want("b: 110 at 100", "a: timer 90 at 100")
			for _, r := range a.runners {
				if r.floors != nil || r.sub.floor != nil {
					t.Error("floors are kept that time has passed")
				}
			}
			a.time(149)
			a.visit("b", 200, "")
			a.want("b: 200 at 149, marked")
			a.time(150)
			a.visit("b", 200, "")
			a.want("b: 200 at 150")
		})
	}
}

// Time had come to 100 for b, and to 10 for a. Each of the lives that follow processes one
// batch of what was in flight, and the next one begins behind it.
func TestTimeOfAKeyDoesNotFallWhileWhatWasInFlightIsProcessed(t *testing.T) {
	a := newPair(t)
	a.time(100)
	a.run(0)
	a.visit("b", 90, "set")
	a.visit("a", 90, "set")
	for range 3 {
		a = a.restored(true, 1)
		if _, err := a.runners[0].step(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	a.restored(true, 1).want("b: 90 at 100, late", "b: timer 90 at 100", "a: 90 at 100, late", "a: timer 90 at 100")
}

// The cut fell between two timers of b, whose subtask had come further than that of a.
func TestTimersThatACutLeftFireFirstWithAnotherParallelism(t *testing.T) {
	a := newPair(t)
	a.visit("b", 50, "set")
	a.visit("b", 60, "set")
	a.run()
	a.cutAtTimers()
	a.time(100)
	a.visit("b", 110, "")
	a.run(0)
	a.log = nil
	a.restored(true, 1).want("b: timer 60 at 100", "b: 110 at 100")
}

// cutAtTimers lets each timer that fires ask for an unaligned checkpoint.
func (a *aging) cutAtTimers() {
	a.fires = func() {
		a.inc.unaligned.Store(a.last + 1)
		a.inc.callAttention()
	}
}

// What has expired when time jumps was there for timers that are due before: also for those
// that a cut between them left, and if it happens to these as well.
func TestTimersThatACutLeftSeeWhatExpiredBehindThem(t *testing.T) {
	for _, parallelism := range []int{2, 1, 16} {
		a := newPair(t)
		for _, at := range []int64{30, 40, 50, 70} {
			a.visit("b", at, "set")
		}
		a.run()
		a.cutAtTimers()
		a.time(100)
		a.run(0)
		a.log = nil
		for _, want := range []string{"b: timer 40 at 100, marked", "b: timer 50 at 100, marked"} {
			a = a.restored(true, parallelism)
			a.cutAtTimers()
			a.run()
			if a.log[0] != want {
				t.Fatalf("with parallelism %d it did %q, want %q first", parallelism, a.log, want)
			}
			a.log = nil
		}
		a = a.restored(true, parallelism)
		a.visit("b", 110, "")
		a.want("b: timer 70 at 100", "b: 110 at 100")
		a = a.restored(true, parallelism)
		if a.inc.base.EventTime.Firing != nil {
			t.Errorf("timers are said to be firing: %v", a.inc.base.EventTime.Firing)
		}
	}
}

// A timer that fires sets one for an earlier time, and state doesn't go back to that: no cut
// falls between them, as what is restored could not tell.
func TestUnalignedCutFallsBehindATimerThatALaterOneSet(t *testing.T) {
	a := newPair(t)
	a.visit("b", 75, "set")
	a.visit("b", 80, "set")
	a.run()
	a.log, a.earlier = nil, 75
	a.cutAtTimers()
	a.time(100)
	a.visit("b", 110, "")
	a.run(0)
	if want := "b: timer 50 at 100"; a.log[1] != want {
		t.Errorf("it did %q, want %q second", a.log, want)
	}
	a.log = nil
	a.restored(true, 1).want("b: timer 80 at 100", "b: 110 at 100")
}

// Each operator's timers have their own time. What is removed when a cut falls between those
// of one is what has expired for all.
func TestTimersOfAnOperatorDoNotEndWhatThoseOfTheNextSee(t *testing.T) {
	a := newPair(t)
	a.visit("b", 40, "set")
	a.visit("b", 95, "set first")
	a.visit("b", 96, "set first")
	a.run()
	a = a.restored(false, 2)
	a.log = nil
	a.cutAtTimers()
	a.time(100)
	a.want("b: first timer 95", "b: first timer 96", "b: timer 40 at 100, marked")
}

// The subtask of a had nothing in flight, and was where its stage stood. So the checkpoint
// says nothing of it, and what was in flight to b does not take a to the time of b.
func TestWhatWasInFlightToOthersDoesNotTakeAKeyToTheirTime(t *testing.T) {
	for _, again := range []bool{false, true} {
		a := newApart(t)
		a.senders[0].at = 120
		a.send[0](visit{"b", ""})
		a.senders[0].time(mark{watermark: 500})
		a.senders[0].idle()
		a = a.restored(true, 1)
		if again {
			a = a.restored(true, 1)
		}
		if n := len(a.inc.base.InFlight); n != 1 {
			t.Fatalf("%d parts were in flight, want that of b alone", n)
		}
		a.visit("a", 50, "")
		a.want("b: 120 at 100", "a: 50 at 10, marked")
	}
}

// Merges and tools remove what has expired for all who could see it: what expires by another
// clock says nothing, and where timers fire those that are left count.
func TestEventTimeOfACheckpointIsThatOfWhatExpiresByIt(t *testing.T) {
	plan := func(stages ...string) (p Plan) {
		for i, clock := range []string{"event", "processing", "none"} {
			for _, stage := range stages[min(i, len(stages)):min(i+1, len(stages))] {
				p.States = append(p.States, DeclaredState{Stage: stage, Descriptor: state.Descriptor{Clock: clock}})
			}
		}
		return p
	}
	for _, c := range []struct {
		name   string
		plan   Plan
		stages map[string]int64
		firing map[string]int64
		want   int64
	}{
		{"nothing expires", plan(), map[string]int64{"a": 100, "b": 50}, nil, 50},
		{"no stage", plan(), nil, nil, noWatermark},
		{"a stage without time that does not expire", plan("a", "b"), map[string]int64{"a": 100, "b": noWatermark}, nil, 100},
		{"a stage that expires and has no time yet", plan("a", "b"), map[string]int64{"a": noWatermark, "b": 100}, nil, noWatermark},
		{"timers fire", plan("a"), map[string]int64{"a": 100}, map[string]int64{"a": 10}, 10},
		{"timers fire on one that is ahead", plan("a"), map[string]int64{"a": 100}, map[string]int64{"a": 150}, 100},
		{"timers fire where nothing expires", plan("a", "b"), map[string]int64{"a": 100, "b": 100}, map[string]int64{"b": 10}, 100},
		{"timers fire for the first time", plan("a"), map[string]int64{"a": 100}, map[string]int64{"a": noWatermark}, noWatermark},
	} {
		if got := c.plan.expired(eventTime(nil, c.stages, c.firing, nil), c.stages); got != c.want {
			t.Errorf("%s: it is %d, want %d", c.name, got, c.want)
		}
	}
}

// They are interrupted as they were at first: what is left of them is due by the floor of
// their key alone.
func TestUnalignedCutFallsBetweenTwoTimersThatACutLeft(t *testing.T) {
	a := newPair(t)
	for at := int64(50); at <= 80; at += 10 {
		a.visit("b", at, "set")
	}
	a.run()
	a.cutAtTimers()
	a.time(100)
	a.visit("b", 110, "")
	a.run(0)
	for range 2 {
		a = a.restored(true, 1)
		a.cutAtTimers()
		a.run()
	}
	a = a.restored(true, 1)
	a.log = nil
	a.want("b: timer 80 at 100", "b: 110 at 100")
}

func TestQueryGoesByTheTimeOfTheKey(t *testing.T) {
	store := checkpoint.NewMem()
	w, err := checkpoint.NewWriter(checkpoint.Config{Store: store, App: "app", Instance: "i", KeyGroups: noteKeyGroups})
	if err != nil {
		t.Fatal(err)
	}
	states := []checkpoint.StateInfo{{ID: 1, Operator: "op", Name: "v", Kind: state.KindValue}}
	var b segment.Builder
	for _, key := range []string{"b", "a"} {
		dst := append(b.BeginPut(uint16(keygroup.Of([]byte(key), noteKeyGroups)), 1), key...)
		b.ValueDone(segment.AppendHeader(b.KeyDone(dst), segment.Header{Version: 1, Domain: segment.EventTime, Expires: 50}))
	}
	ref, _, err := w.Persist(t.Context(), checkpoint.Snapshot{
		Checkpoint: 1, Watermark: 10, States: states, Runs: []segment.Run{b.Finish()},
		EventTime: checkpoint.EventTime{Stages: map[string]int64{"stage": 10}, KeyGroups: []checkpoint.KeyGroupTime{{Stage: "stage", MaxKG: 7, Watermark: 100}}},
	})
	if err != nil {
		t.Fatal(err)
	}
	w.Committed(1)
	inc := newIncarnation(t.Context(), &Config{KeyGroups: noteKeyGroups}, &Plan{}, nil, nil)
	inc.writer, inc.points, inc.states = w, checkpoint.NewPoints(t.Context(), store), states
	inc.head.Store(&ref)
	defer inc.points.Close()
	for key, want := range map[string]bool{"b": false, "a": true} {
		a, err := inc.query(t.Context(), DeclaredState{Descriptor: state.Descriptor{Operator: "op", Name: "v"}, Stage: "stage"}, []byte(key))
		if err != nil || a.OK != want {
			t.Errorf("the value of %s is there: %v, want %v (%v)", key, a.OK, want, err)
		}
	}
}
