package processor

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/record"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/segment"
)

// Subtask is one goroutine that runs a chain of operators. Everything in it is
// used by that goroutine only, but wake.
type Subtask struct {
	inc   *incarnation
	id    int // among all subtasks of the job
	stage string
	index int // within its stage

	raw *kgo.Record // the input record being processed
	at  int64       // its event time, or noWatermark: that of the raw record
	op  *Operator   // the operator whose function runs
	err error       // ends the incarnation

	part      *partition   // of the record, on a source subtask
	watermark int64        // on a keyed subtask
	floor     func() int64 // event time that the current key has come to at least; nil: watermark says all
	firings   []firing
	firing    *firing    // whose function runs
	key       func() any // the current key

	hearing []func(any) // handlers of broadcast records, by number
	echo    bool        // another subtask tells of an error with the same broadcast record

	askers    []asking // look-ups, each before those behind it
	finishing int      // what waits in them has to leave, whether there is room or not

	participants []participant        // sinks that take part in barriers
	flushed      time.Duration        // what that and look-ups took at the last barrier
	logged       []checkpoint.LogPart // at the last barrier

	frozen   segment.Builder // keeps the memory of runs that were written
	out      output
	outgoing []outgoing
	crowded  bool          // an edge has more batches on the way than it should
	wake     chan struct{} // capacity 1: the gate moved, or something waits
	attend   atomic.Bool   // something is to be looked at before the next record

	acked    atomic.Int64 // newest checkpoint that it has no more part in
	roomless atomic.Bool  // it waits for a receiver to give a batch back
}

// outgoing is the sending side of an edge, without its types.
type outgoing interface {
	// flush hands over open batches.
	flush()
	// barrier flushes and sends barrier id to every receiver.
	barrier(id int64)
	// time sets where event time stands behind what was sent so far.
	time(m mark)
	// refill waits until each receiver has given back an empty batch that was sent to
	// more than it should hold. It returns false if something woke the subtask first, or
	// the incarnation ended.
	refill() bool
}

// Operator is one operator of a subtask's chain.
type Operator struct {
	ID  string
	sub *Subtask
}

// Operator returns the subtask's instance of the operator.
func (s *Subtask) Operator(id string) *Operator { return &Operator{ID: id, sub: s} }

// Index is the subtask's number within its stage, from 0.
func (s *Subtask) Index() int { return s.index }

// Meta is the input record being processed.
func (s *Subtask) Meta() record.Meta { return record.MetaOf(s.raw) }

// Enter notes that the operator's function runs now, so that a panic is reported
// under its name, and returns the operator that ran before.
func (o *Operator) Enter() (outer *Operator) {
	outer = o.sub.op
	o.sub.op = o
	return outer
}

// Leave notes that outer's function goes on.
func (o *Operator) Leave(outer *Operator) { o.sub.op = outer }

// Hears makes f the stage's handler of broadcast records with that number on this
// subtask. No key is current while it runs. What it skips or dead-letters is told by the
// first subtask only, which is the one whose broadcast state and records in flight are stored.
func (o *Operator) Hears(number int, f func(any) error) {
	o.sub.hearing[number] = func(v any) {
		outer := o.Enter()
		o.sub.echo = o.sub.index > 0
		err := f(v)
		o.Leave(outer)
		if err != nil {
			o.Fail(err)
		}
		o.sub.echo = false // after a panic guarded does it
	}
}

// Fail deals with an error of the operator's function: skip, dead-letter, restart
// or stop, as its type says.
func (o *Operator) Fail(err error) {
	s := o.sub
	if s.err != nil {
		return
	}
	if _, ok := timerOf(s.raw); ok {
		s.failTimer(o.ID, err)
		return
	}
	at := offsets.Partition{Topic: s.raw.Topic, Partition: s.raw.Partition}
	var (
		skip   *Skip
		dead   *DeadLetter
		outage *sink.Outage
	)
	switch {
	case errors.As(err, &outage):
		s.failHard(s.handlerError(o.ID, err))
	case errors.As(err, &skip):
		if !s.echo {
			s.inc.skipped(o.ID, at, s.raw.Offset, skip.Err)
		}
	case s.inc.cfg.Skip[SkipRecord{at, s.raw.Offset}]:
		if !s.echo {
			s.inc.skipped(o.ID, at, s.raw.Offset, err)
		}
	case errors.As(err, &dead) && s.echo:
	case errors.As(err, &dead):
		if s.inc.cfg.DeadLetterTopic == "" {
			s.err = fatal(s.handlerError(o.ID, fmt.Errorf("the record was to be dead-lettered, but the app has no dead-letter topic (set weir.DeadLetters(topic)): %w", dead.Err)))
			return
		}
		s.deadLetter(o.ID, dead.Err)
	default:
		s.failHard(s.handlerError(o.ID, err))
	}
}

// failHard ends the incarnation: the app restarts, or stops.
func (s *Subtask) failHard(he *HandlerError) {
	var again *Retriable
	if s.err = fatal(he); errors.As(he.Err, &again) {
		s.err = he
	}
}

// failTimer deals with an error on a timer, or on what a timer emitted.
func (s *Subtask) failTimer(op string, err error) {
	var (
		skip   *Skip
		dead   *DeadLetter
		outage *sink.Outage
	)
	he := s.handlerError(op, err)
	switch {
	case errors.As(err, &outage):
		s.failHard(he)
	case errors.As(err, &skip) && s.echo:
	case errors.As(err, &skip):
		s.inc.cfg.Listener.Skipped(event.Skipped{App: he.App, Operator: op, Partition: he.Partition, Offset: he.Offset, Timer: he.Timer, Key: he.Key, Err: skip.Err})
	case errors.As(err, &dead):
		he.Err = fmt.Errorf("there is no input record to dead-letter: %w", dead.Err)
		s.err = fatal(he)
	default:
		s.failHard(he)
	}
}

func (s *Subtask) handlerError(op string, err error) *HandlerError {
	e := &HandlerError{App: s.inc.cfg.App, Operator: op, Checkpoint: s.inc.committed.Load(), Err: err}
	if s.raw != nil {
		e.Partition = offsets.Partition{Topic: s.raw.Topic, Partition: s.raw.Partition}
		e.Offset = s.raw.Offset
	}
	if from, ok := timerOf(s.raw); ok {
		e.Timer, e.TimerOperator = s.raw.Timestamp, from
		if s.firing != nil {
			e.Key = fmt.Sprint(s.key())
		}
	}
	return e
}

// Names of the headers that a dead-lettered record carries beside its own.
const (
	HeaderApp       = "weir-app"
	HeaderOperator  = "weir-operator"
	HeaderTopic     = "weir-topic"
	HeaderPartition = "weir-partition"
	HeaderOffset    = "weir-offset"
	HeaderError     = "weir-error"
)

func (s *Subtask) deadLetter(op string, cause error) {
	r := s.raw
	text := func(v string) []byte { return []byte(v) }
	headers := append(r.Headers[:len(r.Headers):len(r.Headers)],
		kgo.RecordHeader{Key: HeaderApp, Value: text(s.inc.cfg.App)},
		kgo.RecordHeader{Key: HeaderOperator, Value: text(op)},
		kgo.RecordHeader{Key: HeaderTopic, Value: text(r.Topic)},
		kgo.RecordHeader{Key: HeaderPartition, Value: text(strconv.Itoa(int(r.Partition)))},
		kgo.RecordHeader{Key: HeaderOffset, Value: text(strconv.FormatInt(r.Offset, 10))},
		kgo.RecordHeader{Key: HeaderError, Value: text(cause.Error())},
	)
	s.out.Produce(&kgo.Record{Topic: s.inc.cfg.DeadLetterTopic, Key: r.Key, Value: r.Value, Headers: headers, Timestamp: r.Timestamp})
	s.inc.cfg.Listener.DeadLettered(event.DeadLettered{App: s.inc.cfg.App, Operator: op,
		Partition: offsets.Partition{Topic: r.Topic, Partition: r.Partition}, Offset: r.Offset, Err: cause})
}

// guarded runs f and turns a panic of a user function into the subtask's error, and a
// [state.KeyError] into an error of the operator.
func (s *Subtask) guarded(f func()) {
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		if bad, ok := p.(*state.KeyError); ok && s.op != nil {
			s.op.Fail(bad)
			s.op, s.echo = nil, false
			return
		}
		op := "(runtime)"
		if s.op != nil {
			op = s.op.ID
		}
		he := s.handlerError(op, asError(p))
		he.Panic, he.Stack = true, string(debug.Stack())
		if s.raw != nil && s.inc.cfg.Skip[SkipRecord{he.Partition, he.Offset}] {
			if !s.echo {
				s.inc.skipped(op, he.Partition, he.Offset, he)
			}
			s.op, s.echo = nil, false
			return
		}
		s.err = fatal(he)
	}()
	f()
}

// blaming calls f, which calls a codec or a sink outside of an operator's functions, and makes
// a panic an error that says whose it is and what it was called for.
func (inc *incarnation) blaming(f func() error, what func() (operator, doing string)) (err error) {
	defer func() {
		if p := recover(); p != nil {
			he := &HandlerError{App: inc.cfg.App, Checkpoint: inc.committed.Load(), Panic: true, Stack: string(debug.Stack()), Err: asError(p)}
			he.Operator, he.Doing = what()
			err = fatal(he)
		}
	}()
	return f()
}

// idle is called before the subtask waits for input: what it has goes out.
func (s *Subtask) idle() {
	if s.inc.stepped {
		for _, a := range s.askers {
			a.finish() // nothing would wake it
		}
	}
	s.out.release()
	for _, o := range s.outgoing {
		o.flush()
	}
}

// refill waits until no edge is crowded, or something wakes the subtask.
func (s *Subtask) refill() {
	for _, o := range s.outgoing {
		if !o.refill() {
			return
		}
	}
	s.crowded = false
}

// needed tells whether a checkpoint can't complete while the subtask waits: it has a part
// in it, or one in front of it has that waits for room here.
func (s *Subtask) needed(checkpoint int64) bool {
	if s.acked.Load() < checkpoint {
		return true
	}
	return slices.ContainsFunc(s.inc.upstream[s.stage], func(u *Subtask) bool {
		return u.roomless.Load() && u.acked.Load() < checkpoint
	})
}

// awaitsRoom is called around a wait for room at a receiver, who may be waiting himself.
func (s *Subtask) awaitsRoom(yes bool) {
	s.roomless.Store(yes)
	if yes {
		s.inc.gate.stir()
	}
}

// time sets where event time stands behind what was sent so far.
func (s *Subtask) time(m mark) {
	for _, o := range s.outgoing {
		o.time(m)
	}
}

// barrier ends epoch id on this subtask: it forwards the barrier and moves the
// outputs to the next epoch.
func (s *Subtask) barrier(id int64) {
	if len(s.askers)+len(s.participants) > 0 {
		begun := time.Now()
		defer func() { s.flushed = time.Since(begun) }()
	}
	for _, o := range s.outgoing {
		if o.barrier(id); s.err != nil {
			return
		}
	}
	s.out.barrier(id)
	// Last, so that no receiver waits for its barrier while a sink flushes.
	s.sinksAtBarrier(id)
}

// notify wakes the subtask if it waits for input.
func (s *Subtask) notify() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// runner is a subtask's loop.
type runner interface {
	// run processes until ctx is done or the subtask fails, and returns why. It is begin,
	// and then one step after the other.
	run(ctx context.Context) error
	// begin tells the receivers where time stands before the first record.
	begin()
	// step does what can be done without waiting for anybody, a batch at most, and tells
	// whether that was anything.
	step(ctx context.Context) (worked bool, err error)
	// silence takes the alarm off. run does so at its end.
	silence()
	subtask() *Subtask
}

// Abort makes the incarnation fail before it starts. For what goes wrong while the
// chains are built.
func (s *Subtask) Abort(err error) {
	if s.err == nil {
		s.err = fatal(err)
	}
}
