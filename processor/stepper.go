package processor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/barrier"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/txn"
)

// Stepper runs a plan one step at a time on the goroutine of its caller, for tests. It is
// an incarnation like any other: subtasks, keyspaces, aligners, coordinator and
// checkpoints are those of a [Job], and so is restoring. Only two things are different.
// [Topics] stand for Kafka. And subtasks have no goroutines: the Stepper lets one after the
// other make a step until none has anything to do. So the same calls always have the same
// effect.
//
// A call that returns an error has ended the incarnation, as Kill does. The next Stepper on
// the same Topics goes on from what they have committed.
type Stepper struct {
	topics *Topics
	clock  *clock.Manual
	inc    *incarnation
	loop   *driver
	last   persisted
	fed    int   // of Topics.input
	failed error // the last checkpoint that failed
	over   bool
}

// Topics stand for Kafka where there is none: input topics, the committed checkpoint, and
// the outputs. They outlive a [Stepper] as a broker outlives a service.
type Topics struct {
	partitions int32
	input      []inputItem // of all partitions, in the order in which they came
	next       map[offsets.Partition]int64
	open       []*kgo.Record // of the open transaction
	output     []*kgo.Record // committed
	commit     *txn.Commit   // the last one; nil: none
}

// inputItem is a record, or else the watermark of a topic.
type inputItem struct {
	record    *kgo.Record
	topic     string
	watermark int64 // milliseconds since 1970
}

// NewTopics returns topics with that many partitions, without records.
func NewTopics(partitions int32) *Topics {
	return &Topics{partitions: partitions, next: map[offsets.Partition]int64{}}
}

// Partitions is how many partitions an input topic has.
func (t *Topics) Partitions() int32 { return t.partitions }

// Append adds a record to the partition of the input that it names, and gives it its
// offset. It keeps no memory of the record.
func (t *Topics) Append(r *kgo.Record) {
	r = copyOf(r)
	p := offsets.Partition{Topic: r.Topic, Partition: r.Partition}
	r.Offset = t.next[p]
	t.next[p]++
	t.input = append(t.input, inputItem{record: r})
}

func copyOf(r *kgo.Record) *kgo.Record {
	c := *r
	c.Key, c.Value, c.Headers = bytes.Clone(r.Key), bytes.Clone(r.Value), slices.Clone(r.Headers)
	for i, h := range c.Headers {
		c.Headers[i].Value = bytes.Clone(h.Value)
	}
	return &c
}

// Committed are the outputs that a read_committed reader can see, in the order in which
// they were written.
func (t *Topics) Committed() []*kgo.Record { return t.output }

// Open are the outputs after those: they are part of no committed checkpoint yet.
func (t *Topics) Open() []*kgo.Record { return t.open }

// Produce implements producer.
func (t *Topics) Produce(r *kgo.Record) { t.open = append(t.open, r) }

// end commits the open transaction.
func (t *Topics) end(c txn.Commit) {
	t.commit = &txn.Commit{Manifest: c.Manifest, Positions: maps.Clone(c.Positions)}
	t.output = append(t.output, t.open...)
	t.open = nil
}

// NewStepper begins an incarnation with what the topics have committed. No checkpoint is
// due by itself: those of cfg.Trigger are not taken. State is in memory, whatever
// cfg.Backend says, there are no appliers of write-ahead sinks, and cfg.From and
// cfg.Recovery have no meaning.
func NewStepper(ctx context.Context, cfg Config, plan *Plan, topics *Topics, now *clock.Manual) (*Stepper, error) {
	s := &Stepper{topics: topics, clock: now}
	cfg.Clock, cfg.Trigger = now, barrier.TriggerConfig{RetryPause: noRetry}
	cfg.Listener = event.Tee(cfg.Listener, event.Listener{CheckpointFailed: func(i event.CheckpointFailed) { s.failed = i.Err }})
	p := *plan
	p.WriteAhead = nil
	s.inc = newIncarnation(ctx, &cfg, &p, nil, nil)
	s.inc.to, s.inc.stepped = topics, true
	if err := s.begin(); err != nil {
		s.end(err)
		return nil, err
	}
	return s, nil
}

// noRetry keeps a checkpoint that failed from being tried again by itself.
const noRetry = 100 * 365 * 24 * time.Hour

func (s *Stepper) begin() error {
	inc := s.inc
	if err := checkpoint.Claim(inc.ctx, inc.cfg.Store, inc.cfg.App, inc.cfg.KeyGroups); err != nil {
		return err
	}
	at, err := s.recover()
	if err != nil {
		return err
	}
	inc.restore.state = at
	if err := inc.prepare(at); err != nil {
		return err
	}
	if err := inc.load(inc.ctx, at, time.Now()); err != nil {
		return err
	}
	inc.assign(at.positions)
	inc.watch.start()
	for _, r := range inc.runners {
		r.begin()
	}
	if s.loop, err = inc.newDriver(s.clock.Now()); err != nil {
		return err
	}
	return s.settle()
}

// recover decides where to begin.
func (s *Stepper) recover() (recovered, error) {
	inc, t := s.inc, s.topics
	at := recovered{positions: map[offsets.Partition]offsets.Position{}}
	for _, topic := range inc.plan.Sources.Topics() {
		for i := range t.partitions {
			at.positions[offsets.Partition{Topic: topic, Partition: i}] = offsets.Position{LeaderEpoch: -1}
		}
	}
	if t.commit == nil {
		return at, nil
	}
	m, err := checkpoint.Load(inc.ctx, inc.cfg.Store, t.commit.Manifest)
	if err != nil {
		return at, err
	}
	at.manifest, at.ref, at.last = m, t.commit.Manifest, m.Checkpoint
	for p := range at.positions {
		if pos, ok := m.Positions[p]; ok {
			at.positions[p] = pos
		}
	}
	return at, nil
}

// Run processes what is in the input and was not processed, one record after the other,
// and what the time makes due.
func (s *Stepper) Run() error {
	if err := s.settle(); err != nil {
		return s.end(err)
	}
	for s.fed < len(s.topics.input) {
		in := s.topics.input[s.fed]
		s.fed++
		if in.record == nil {
			s.rise(in.topic, in.watermark)
			if err := s.settle(); err != nil {
				return s.end(err)
			}
			continue
		}
		r := in.record
		p := s.inc.partition(offsets.Partition{Topic: r.Topic, Partition: r.Partition})
		if p == nil || r.Offset < p.next {
			continue // the topic is not read any more, or the record is in the checkpoint
		}
		p.polled.Store(r.Offset + 1)
		p.owner.queue <- slice{p, []*kgo.Record{copyOf(r)}} // whoever fetches it again gets it as it was sent
		if err := s.settle(); err != nil {
			return s.end(err)
		}
	}
	return nil
}

// Until moves the clock on to a time, and stops wherever something is due.
func (s *Stepper) Until(to time.Time) error {
	for {
		at, ok := s.clock.Next()
		if !ok || at.After(to) {
			break
		}
		s.clock.Advance(at.Sub(s.clock.Now()))
		if err := s.settle(); err != nil {
			return s.end(err)
		}
	}
	s.clock.Advance(to.Sub(s.clock.Now()))
	return s.Run()
}

// Mendable tells whether a [Job] would begin another incarnation after an error that ended
// one, instead of returning it.
func Mendable(err error) bool { return !isFatal(err) && !GivenUp(err) }

// ErrNoEventTime says that a source has no part in event time.
var ErrNoEventTime = errors.New("the source tells no event time")

// Watermark says that no record up to a time, in milliseconds since 1970, is expected of a
// topic any more. A watermark that is ahead of it stays. As records that said so would be,
// it is part of the input, which a later Stepper goes through again. It is ErrNoEventTime if
// the topic's source tells no event time; then the incarnation goes on.
func (s *Stepper) Watermark(topic string, ms int64) error {
	for id, p := range s.inc.parts {
		if id.Topic == topic && p.owner.chains[topic].how == nil {
			return ErrNoEventTime
		}
	}
	s.topics.input = append(s.topics.input, inputItem{topic: topic, watermark: ms})
	return s.Run()
}

// rise moves the watermark of a topic. A partition whose watermark it moves is not idle.
func (s *Stepper) rise(topic string, ms int64) {
	for _, id := range sortedPartitions(s.inc.parts) {
		p := s.inc.parts[id]
		c := p.owner.chains[id.Topic]
		if id.Topic != topic || c.how == nil || ms <= p.time.watermark {
			continue
		}
		p.time.watermark = ms
		p.owner.awake(c, p)
		c.update()
	}
}

// Checkpoint takes a checkpoint of what was processed and commits it. If it is [GivenUp] the
// incarnation goes on.
func (s *Stepper) Checkpoint() (id int64, err error) {
	before := s.inc.committed.Load()
	s.failed = nil
	if err := s.ask(barrier.Requested); err != nil {
		return 0, s.end(err)
	}
	if id = s.inc.committed.Load(); id == before {
		return 0, &givenUpError{s.failed}
	}
	return id, nil
}

// GivenUp tells whether an error is about a checkpoint that failed and may fail. Its epoch
// stays open.
func GivenUp(err error) bool {
	var given *givenUpError
	return errors.As(err, &given)
}

type givenUpError struct{ err error }

func (e *givenUpError) Error() string { return fmt.Sprintf("the checkpoint was given up: %v", e.err) }
func (e *givenUpError) Unwrap() error { return e.err }

// Drain ends the input and the incarnation as a job does that is to drain its input: time
// goes to its end, and a last checkpoint is committed.
func (s *Stepper) Drain() error {
	s.inc.inputEnded.Store(true)
	if s.inc.plan.eventTimers() {
		s.inc.touched.Store(true)
	}
	return s.Stop()
}

// Stop ends the incarnation with a last checkpoint.
func (s *Stepper) Stop() error {
	err := s.ask(barrier.Shutdown)
	if err == nil && !s.over {
		err = &givenUpError{s.failed}
	}
	s.end(err)
	return err
}

// Kill ends the incarnation where it stands.
func (s *Stepper) Kill() { s.end(ErrKilled) }

// end ends the incarnation and returns err.
func (s *Stepper) end(err error) error {
	s.inc.cancel(err)
	for _, r := range s.inc.runners {
		r.silence() // the clock goes on, and would keep who is to be woken
	}
	s.inc.dispose()
	s.topics.open = nil
	return err
}

func (r *sourceRunner) silence()      { r.alarm.set(r.sub.inc.clock, time.Time{}, nil) }
func (r *keyedRunner[K, T]) silence() { r.alarm.set(r.sub.inc.clock, time.Time{}, nil) }

// ask asks for a checkpoint and does what it takes.
func (s *Stepper) ask(why barrier.Reason) error {
	now := s.clock.Now()
	over, err := s.loop.observe(now)
	if err == nil && !over {
		over, err = s.loop.do(now, s.loop.co.Request(now, why))
	}
	s.over = s.over || over
	if err != nil {
		return err
	}
	return s.settle()
}

// settle lets subtasks, loop and committer work until none has anything to do.
func (s *Stepper) settle() error {
	for !s.over {
		worked := false
		for _, r := range s.inc.runners {
			w, err := r.step(s.inc.ctx)
			if err != nil {
				return err
			}
			worked = worked || w
			if w, err = s.decide(); err != nil {
				return err
			}
			worked = worked || w
		}
		if !worked {
			break
		}
	}
	for _, sp := range s.inc.spaces {
		if err := sp.space.Changed(); err != nil {
			return fatal(err)
		}
	}
	return nil
}

// decide does what is up to the loop and the committer.
func (s *Stepper) decide() (worked bool, err error) {
	for !s.over {
		now := s.clock.Now()
		if s.over, err = s.loop.observe(now); err != nil || s.over {
			return true, err
		}
		var e any
		select {
		case e = <-s.inc.events:
		case j := <-s.inc.commits:
			if j.snapshot != nil {
				s.last = s.inc.persist(j)
				e = s.last
				break
			}
			s.topics.end(*j.commit)
			e = committed{id: j.id}
		default:
			return worked, nil
		}
		worked = true
		if s.over, err = s.loop.do(now, s.loop.event(now, e)); err != nil {
			return true, err
		}
	}
	return worked, nil
}

// Spaces returns the keyspaces of the subtasks of a stage, which are *state.Keyspace[K]. They
// may be looked into as long as the Stepper is not at work.
func (s *Stepper) Spaces(stage string) []any {
	var spaces []any
	for _, sp := range s.inc.spaces {
		if sp.stage == stage {
			spaces = append(spaces, sp.space)
		}
	}
	return spaces
}
