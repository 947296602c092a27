package processor

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/segment"
)

// Watermarks says how a source tells event time.
type Watermarks struct {
	OutOfOrder time.Duration // by how much a record may be older than one before it
	Idle       time.Duration // without records, after which a partition holds nothing back; 0: never
}

const (
	noWatermark = checkpoint.NoWatermark
	// endOfTime is the watermark after the last record of a drain. It is never stored:
	// the next run goes on where records left time.
	endOfTime = math.MaxInt64
)

// mark is where event time stands on an edge: no record up to the watermark is expected
// from it. One that is idle holds nobody back.
type mark struct {
	watermark int64 // milliseconds since 1970, or noWatermark
	idle      bool
}

// merge returns the mark of something with these inputs. While all are idle, time stands.
func merge(inputs []mark) mark {
	m := mark{endOfTime, true}
	for _, in := range inputs {
		if !in.idle {
			m = mark{min(m.watermark, in.watermark), false}
		}
	}
	if m.idle {
		m.watermark = noWatermark
	}
	return m
}

// partitionTime is the event time of a partition. It belongs to the partition's runner.
type partitionTime struct {
	newest    int64 // event time of the newest record, or noWatermark
	watermark int64
	idle      bool
	heard     time.Duration // on the poller's watch, when records came last
}

// sourceChain is the chain behind a source on one subtask.
type sourceChain struct {
	run      func(*kgo.Record)
	outgoing []outgoing
	how      *Watermarks // nil: the source has no part in event time
	parts    []*partition
	marks    []mark // scratch
	now      mark
}

// begin tells the receivers where time stands before the first record.
func (c *sourceChain) begin(timed bool) {
	c.now.watermark = noWatermark
	switch {
	case c.how != nil:
		c.update()
	case timed:
		c.send(mark{noWatermark, true}) // holds no other source back
	}
}

// update takes up what the partitions have come to.
func (c *sourceChain) update() {
	c.marks = c.marks[:0]
	bound := c.how.OutOfOrder.Milliseconds()
	if c.how.OutOfOrder%time.Millisecond > 0 {
		bound++
	}
	for _, p := range c.parts {
		t := &p.time
		if t.newest > noWatermark+bound { // less the bound, the least times would become the greatest
			t.watermark = max(t.watermark, t.newest-bound-1)
		}
		c.marks = append(c.marks, mark{t.watermark, t.idle})
	}
	m := merge(c.marks)
	m.watermark = max(m.watermark, c.now.watermark)
	c.send(m)
}

func (c *sourceChain) send(m mark) {
	if m == c.now {
		return
	}
	c.now = m
	for _, o := range c.outgoing {
		o.time(m)
	}
}

// idleness looks for partitions that had no records for long enough. It returns how
// long it takes until there may be one, or 0 if there is nothing to wait for.
func (r *sourceRunner) idleness() (wait time.Duration) {
	if !r.mayIdle {
		return 0
	}
	watched := r.sub.inc.watch.elapsed()
	for _, c := range r.chains {
		if c.how == nil || c.how.Idle == 0 {
			continue
		}
		changed := false
		for _, p := range c.parts {
			if p.time.idle {
				continue
			}
			left := c.how.Idle - (watched - p.time.heard)
			if left <= 0 && p.polled.Load() <= p.next {
				p.time.idle, changed = true, true
				continue
			}
			// Records that are on their way put it off in any case.
			if left = max(left, time.Millisecond); wait == 0 || left < wait {
				wait = left
			}
		}
		if changed {
			c.update()
		}
	}
	return wait
}

// awake is called when records of a partition come.
func (r *sourceRunner) awake(c *sourceChain, p *partition) {
	if c.how.Idle == 0 {
		return
	}
	p.time.heard = r.sub.inc.watch.elapsed()
	if p.time.idle {
		p.time.idle = false
		c.update()
	}
}

// end moves time to its end: no record follows.
func (r *sourceRunner) end() {
	r.ended = true
	for _, c := range r.chains {
		c.send(mark{watermark: endOfTime})
	}
}

// watch is a clock that runs while the poller waits for records and stands while it
// can't get rid of those it has: a partition is idle only if it was listened to.
type watch struct {
	clock clock.Clock
	mu    sync.Mutex
	ran   time.Duration
	since time.Time // zero while it stands
}

func (w *watch) start() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.since = w.clock.Now()
}

func (w *watch) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ran += w.clock.Now().Sub(w.since)
	w.since = time.Time{}
}

func (w *watch) elapsed() time.Duration {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.since.IsZero() {
		return w.ran
	}
	return w.ran + w.clock.Now().Sub(w.since)
}

// alarm wakes a subtask at a time.
type alarm struct {
	at     time.Time // zero: none is set
	cancel func()
	rang   *atomic.Bool
}

// set sets the alarm, and takes the one before it off. One that rang is set again also for
// the same time: it rings after a while, and the clock may have been set back since.
func (a *alarm) set(c clock.Clock, at time.Time, f func()) {
	if at.Equal(a.at) && (a.rang == nil || !a.rang.Load()) {
		return
	}
	if a.cancel != nil {
		a.cancel()
	}
	a.at, a.cancel, a.rang = at, nil, nil
	if !at.IsZero() {
		rang := new(atomic.Bool)
		a.rang, a.cancel = rang, c.At(at, func() {
			rang.Store(true)
			f()
		})
	}
}

// EventTime sets the event time of the record whose chain runs, in milliseconds since
// 1970. Sources with [Watermarks] call it for each record before its value goes on.
func (s *Subtask) EventTime(ms int64) {
	s.at = ms
	if s.part != nil && ms > s.part.time.newest {
		s.part.time.newest = ms
	}
}

// Time is the event time of what is being processed: a record, for which it is the Kafka
// timestamp unless its source says otherwise, or a timer.
func (s *Subtask) Time() time.Time {
	if s.at == noWatermark {
		return s.raw.Timestamp
	}
	return time.UnixMilli(s.at)
}

// Watermark is where event time stands on a keyed subtask for the current key; ok is false
// if nothing is known of it.
func (s *Subtask) Watermark() (ms int64, ok bool) {
	ms = s.watermark
	if s.floor != nil {
		ms = max(ms, s.floor())
	}
	return ms, ms != noWatermark
}

// firing is what an operator's timers call.
type firing struct {
	timers *state.Timers
	op     *Operator
	f      func(state.Timer) error
}

// Fires makes f the function that is called when a timer fires. The keyspace's current
// key is that of the timer then.
func (o *Operator) Fires(t *state.Timers, f func(state.Timer) error) {
	o.sub.firings = append(o.sub.firings, firing{t, o, f})
}

// timerRecord stands for the input record while a timer of the operator fires, and with
// what it emits.
func timerRecord(operator string, at time.Time) *kgo.Record {
	return &kgo.Record{Partition: -1, Offset: -1, Timestamp: at, Headers: []kgo.RecordHeader{{Key: HeaderOperator, Value: []byte(operator)}}}
}

// timerOf returns the operator of the timer that r stands for.
func timerOf(r *kgo.Record) (operator string, ok bool) {
	if r == nil || r.Topic != "" || r.Offset >= 0 || len(r.Headers) == 0 {
		return "", false
	}
	return string(r.Headers[0].Value), true
}

// advance takes up where time stands on an input: timers that are due by it fire, and
// then it goes on to the receivers, behind what the timers emitted.
func (r *keyedRunner[K, T]) advance(input int, in mark) error {
	if in.watermark == endOfTime {
		return r.endInput(input)
	}
	if r.inputs[input] == in {
		return nil
	}
	r.inputs[input] = in
	return r.rise(merge(r.inputs))
}

// endInput takes note that nothing follows on an input. It goes on to stand where it stood
// until all have come to their end: else time would be stored that has not come for it.
func (r *keyedRunner[K, T]) endInput(input int) error {
	if !r.ended[input] {
		r.ended[input] = true
		r.live--
	}
	if r.live > 0 {
		return nil
	}
	return r.rise(mark{watermark: endOfTime})
}

// rise takes up where time stands on all inputs together.
func (r *keyedRunner[K, T]) rise(m mark) error {
	m.watermark = max(m.watermark, r.now.watermark)
	if m.watermark > r.now.watermark {
		before := r.now.watermark
		r.sub.watermark = m.watermark
		if m.watermark < endOfTime {
			r.finite = m.watermark
		}
		if _, err := r.fire(true, m.watermark, before); err != nil {
			return err
		}
		if r.floors != nil && r.highest <= r.finite {
			r.floors, r.sub.floor = nil, nil
		}
		r.allFired()
	}
	if m != r.now {
		r.now = m
		r.sub.time(m)
	}
	return nil
}

// allFired says that the timers have fired that event time has come to.
func (r *keyedRunner[K, T]) allFired() {
	r.fired, r.left = r.finite, false
	r.keys.SetTime(segment.EventTime, r.finite)
	r.keys.SetFloors(r.floors, r.floors)
}

// tick fires the timers that are due: by the wall clock, or because they were set for a
// time that had passed.
func (r *keyedRunner[K, T]) tick(wall int64) (fired bool, err error) {
	if len(r.sub.firings) == 0 {
		return false, nil
	}
	for {
		r.keys.Passed()
		n := 0
		if r.now.watermark < endOfTime {
			if n, err = r.fire(true, r.now.watermark, r.now.watermark); err != nil {
				return false, err
			}
		}
		m, err := r.fire(false, wall, 0)
		fired = fired || n+m > 0
		if err != nil || m == 0 || !r.keys.Passed() {
			return fired, err
		}
		// One that follows the clock may have set one for an event time that has passed.
	}
}

// fire fires timers that follow event time or the wall clock up to now, and those that are
// due by the floor of their key. Event time was at before so far; while a timer fires it is
// the timer's, unless one for a later time of the operator fired already.
//
// Between two timers, as between two records, the subtask does what may not wait: so an
// unaligned checkpoint need not wait for all timers of one moment. What it stores is that
// time has come to now, and those that have not fired are left in the state; after a restore
// they are overdue. Only one that a timer set for a time before its own fires first. At the
// end of time it must wait: which timers were set since could not be told any more.
func (r *keyedRunner[K, T]) fire(event bool, now, before int64) (fired int, err error) {
	for i := range r.sub.firings {
		t := &r.sub.firings[i]
		passed := event && r.floors != nil
		if t.timers.EventTime() != event || t.timers.Earliest() > now && !passed {
			continue
		}
		reached := before
		call := func(at state.Timer) bool {
			reached = max(reached, at.At.UnixMilli())
			return r.call(t, at, reached)
		}
		if now == endOfTime {
			r.sub.guarded(func() { fired += t.timers.FireLast(call) })
			r.sub.firing = nil
		} else {
			fired += r.paused(func(f func(state.Timer) bool) int { return t.timers.Fire(now, f) }, call, func() bool {
				// After a restore it could not be told that time has been beyond these.
				return reached > before && t.timers.Earliest() < reached
			})
		}
		if passed && now < endOfTime && r.sub.err == nil {
			// Time of the other keys has not come there.
			fired += r.paused(t.timers.FirePassed, func(at state.Timer) bool { return r.call(t, at, max(reached, at.At.UnixMilli())) }, func() bool { return false })
			r.keys.SetTimeOfTimer(reached)
		}
		if r.sub.err != nil {
			return fired, r.sub.err
		}
	}
	if r.keys.Err() != nil {
		r.sub.err = r.storeError()
	}
	if fired > 0 {
		r.sub.inc.touch()
	}
	return fired, r.sub.err
}

// paused fires timers, and between two of them, unless the next one has to follow at once,
// does what is pressing.
func (r *keyedRunner[K, T]) paused(fire func(func(state.Timer) bool) int, call func(state.Timer) bool, atOnce func() bool) (fired int) {
	for more := true; more && r.sub.err == nil; {
		r.sub.guarded(func() { fired += fire(func(at state.Timer) bool { return call(at) && (!r.pressing() || atOnce()) }) })
		r.sub.firing = nil
		if more = r.sub.err == nil && r.pressing(); more {
			r.sub.err = r.pause()
		}
	}
	return fired
}

// pressing tells that something may not wait for the end of a batch, or of what is due.
func (r *keyedRunner[K, T]) pressing() bool { return r.sub.attend.Load() || r.freeze.due() }

// pause does what is pressing.
func (r *keyedRunner[K, T]) pause() error {
	if err := r.settle(); err != nil || !r.freeze.due() {
		return err
	}
	return r.encode(encodeSlice)
}

// dueAtOnce tells whether timers may be left that were due when the checkpoint was taken.
func (r *keyedRunner[K, T]) dueAtOnce() bool {
	return r.floors != nil || slices.ContainsFunc(r.sub.firings, func(t firing) bool {
		return t.timers.EventTime() && t.timers.Earliest() <= r.now.watermark
	})
}

// fireOverdue fires them, and then tells the receivers where time stands.
func (r *keyedRunner[K, T]) fireOverdue() error {
	r.overdue = false
	_, err := r.fire(true, r.now.watermark, r.fired)
	r.allFired()
	r.sub.time(r.now)
	return err
}

// call calls a timer's function.
func (r *keyedRunner[K, T]) call(t *firing, at state.Timer, reached int64) bool {
	s, ms := r.sub, at.At.UnixMilli()
	if s.inc.over.Load() {
		s.err = context.Cause(s.inc.ctx)
		return false
	}
	if s.firing != t || s.at != ms {
		s.raw = timerRecord(t.op.ID, at.At) // not used again: what is emitted keeps it
	}
	s.firing, s.at = t, ms
	if at.EventTime {
		r.keys.SetTimeOfTimer(reached)
	}
	outer := t.op.Enter()
	err := t.f(at)
	t.op.Leave(outer)
	if err != nil {
		t.op.Fail(err)
	}
	if r.keys.Err() != nil {
		s.err = r.storeError()
	}
	return s.err == nil
}

// arm sets the alarm for the first timer that is due by the wall clock.
func (r *keyedRunner[K, T]) arm() {
	first := int64(state.NoTimer)
	for i := range r.sub.firings {
		if t := r.sub.firings[i].timers; !t.EventTime() {
			first = min(first, t.Earliest())
		}
	}
	var at time.Time
	if first != state.NoTimer {
		at = time.UnixMilli(first)
	}
	r.alarm.set(r.sub.inc.clock, at, r.sub.notify)
}

// timed tells whether any source has a part in event time.
func (st *Sources) timed() bool {
	return slices.ContainsFunc(st.ops, func(op sourceOp) bool { return op.how != nil })
}

// Watermarks makes the source of a topic one that tells event time.
func (st *Sources) Watermarks(topic string, how Watermarks) {
	for i := range st.ops {
		if st.ops[i].topic == topic {
			st.ops[i].how = &how
		}
	}
}

// eventTimers tells whether there are timers that the end of input makes fire.
func (p *Plan) eventTimers() bool {
	return slices.ContainsFunc(p.States, func(d DeclaredState) bool {
		return d.Kind == state.KindTimers && d.Name == state.EventTimersName
	})
}

// touch says that something changed without input.
func (inc *incarnation) touch() {
	inc.touched.Store(true)
	if inc.quiet.Load() && inc.quiet.Swap(false) {
		select {
		case inc.observedC <- struct{}{}:
		default:
		}
	}
}

// eventTime collects where the subtasks' watermarks stood at a barrier: the least of each
// stage, and the key-groups that are ahead of it.
func eventTime(parts map[offsets.Partition]checkpoint.PartitionTime, stages, firing map[string]int64, times []checkpoint.KeyGroupTime) checkpoint.EventTime {
	times = slices.DeleteFunc(times, func(t checkpoint.KeyGroupTime) bool { return t.Watermark <= stages[t.Stage] })
	slices.SortFunc(times, func(a, b checkpoint.KeyGroupTime) int {
		return cmp.Or(strings.Compare(a.Stage, b.Stage), cmp.Compare(a.MinKG, b.MinKG))
	})
	known := maps.Clone(stages)
	maps.DeleteFunc(known, func(_ string, at int64) bool { return at == noWatermark })
	return checkpoint.EventTime{Partitions: parts, Stages: known, KeyGroups: times, Firing: firing}
}

// expired returns the event time by which entries are gone for all: it stood nowhere before
// it. Stages whose states do not expire by it say nothing: they may know none.
func (p *Plan) expired(e checkpoint.EventTime, stages map[string]int64) int64 {
	expiring := map[string]bool{}
	for _, d := range p.States {
		if d.Clock == segment.EventTime.Name() {
			expiring[d.Stage] = true
		}
	}
	least := int64(endOfTime)
	for stage, at := range stages {
		if upTo, ok := e.Firing[stage]; ok {
			at = min(at, upTo)
		}
		if len(expiring) == 0 || expiring[stage] {
			least = min(least, at)
		}
	}
	if least == endOfTime {
		return noWatermark // no such stage
	}
	return least
}

// describeTimer says what failed on a timer.
func (e *HandlerError) describeTimer(op string) string {
	at := e.Timer.UTC().Format("2006-01-02T15:04:05.000Z07:00")
	if e.Key != "" {
		return fmt.Sprintf("its timer at %s of key %s", at, e.Key)
	}
	return fmt.Sprintf("what the timer of operator %q at %s emitted", op, at)
}
