package weirtest

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/internal/inside"
	"github.com/weirstream/weir/processor"
)

// TB is what the kit needs of a test. Every testing.TB is one.
type TB interface {
	Helper()
	Fatalf(format string, args ...any)
	Errorf(format string, args ...any)
	Cleanup(func())
}

// Begin is where the clock of a [Harness] stands at first, unless [StartAt] says otherwise.
var Begin = time.Date(2026, time.January, 1, 0, 0, 0, 0, time.UTC)

// AppName is the name of the app under a [Harness].
const AppName = "weirtest"

// Partitions sets how many partitions each input topic has under a [Harness]. Default 1. It
// counts for [New] only.
func Partitions(n int32) weir.Option { return setting(func(s *inside.Settings) { s.Partitions = n }) }

// StartAt sets where the clock stands at first. It counts for [New] only.
func StartAt(at time.Time) weir.Option { return setting(func(s *inside.Settings) { s.Start = at }) }

func setting(f func(*inside.Settings)) weir.Option { return inside.Option(f).(weir.Option) }

// Harness runs a topology step by step. Use [New].
type Harness struct {
	t        TB
	topology func(*weir.App)
	opts     []weir.Option
	app      *inside.App
	clock    *clock.Manual
	topics   *processor.Topics

	step    *processor.Stepper // nil: the app is down
	why     error              // it is down; nil: as it was told to
	busy    bool               // in a step
	expects bool               // in Fails
	failure error              // in Fails
	skipped []event.Skipped
	retries int
}

// New starts a topology with nothing committed. It has one subtask for each stage, so that
// outputs come in the order of the input, and a checkpoint store in memory; options change
// that as they do for weir.New. Those about Kafka, the state backend, when checkpoints are
// due and where an app begins (weir.FromSavepoint, weir.OnMismatch) have no effect. The app
// ends with the test.
func New(t TB, topology func(*weir.App), opts ...weir.Option) *Harness {
	t.Helper()
	h := &Harness{t: t, topology: topology}
	h.opts = append([]weir.Option{
		weir.Brokers("none:9092"), weir.InstanceID("test"), weir.Store(checkpoint.NewMem()), weir.Parallelism(1),
		weir.Listen(weir.Listener{Skipped: func(i event.Skipped) { h.skipped = append(h.skipped, i) }}),
	}, opts...)
	if err := h.build(); err != nil {
		t.Fatalf("%v", err)
		return h
	}
	s := h.app.Settings
	if s.Partitions == 0 {
		s.Partitions = 1
	}
	if s.Start.IsZero() {
		s.Start = Begin
	}
	if s.Partitions < 0 {
		t.Fatalf("weirtest.Partitions(%d): want at least 1", s.Partitions)
		return h
	}
	h.topics, h.clock = processor.NewTopics(s.Partitions), clock.NewManual(s.Start)
	t.Cleanup(h.Kill)
	h.Start()
	return h
}

// build makes the app anew: an app runs once.
func (h *Harness) build() error {
	app := weir.New(AppName, h.opts...)
	h.topology(app)
	in, err := inside.Open(app)
	if err == nil {
		h.app = in
	}
	return err
}

// Checkpoint takes a checkpoint, commits it, and returns its id: what was emitted so far is
// what a read_committed reader sees, and what a crash goes back to.
func (h *Harness) Checkpoint() int64 {
	h.t.Helper()
	var id int64
	h.must("take a checkpoint", func(s *processor.Stepper) (err error) {
		id, err = s.Checkpoint()
		return err
	})
	return id
}

// Now is what the clock says.
func (h *Harness) Now() time.Time { return h.clock.Now() }

// Advance moves the clock on. What is due in between happens at its time: timers of the
// wall clock, the idleness of partitions. Times to live pass. While the app is down only
// the clock moves.
func (h *Harness) Advance(d time.Duration) {
	h.t.Helper()
	h.AdvanceTo(h.Now().Add(d))
}

// AdvanceTo moves the clock on to a time, as Advance does.
func (h *Harness) AdvanceTo(at time.Time) {
	h.t.Helper()
	if at.Before(h.Now()) {
		h.t.Fatalf("weirtest: the clock stands at %s and can't go back to %s", stamp(h.Now()), stamp(at))
		return
	}
	if h.step == nil {
		h.clock.Advance(at.Sub(h.Now()))
		return
	}
	h.do(func(s *processor.Stepper) error { return s.Until(at) })
}

// Drain ends the input: time goes to its end, so that all event-time timers fire, a last
// checkpoint is committed, and the app is down. It is what weir.Drain does for an app.
func (h *Harness) Drain() {
	h.t.Helper()
	h.must("drain", (*processor.Stepper).Drain)
	h.step = nil
}

// Stop stops the app as a service is stopped: it takes a last checkpoint.
func (h *Harness) Stop() {
	h.t.Helper()
	h.must("stop", (*processor.Stepper).Stop)
	h.step = nil
}

// Kill ends the app where it stands. What is not committed is gone with it.
func (h *Harness) Kill() {
	h.t.Helper()
	if h.within() {
		return
	}
	if h.step != nil {
		h.step.Kill()
		h.step = nil
	}
}

// Start starts the app, which is down, from the last checkpoint, and lets it process what
// came after that. The options come on top of those that it had.
func (h *Harness) Start(opts ...weir.Option) {
	h.t.Helper()
	if h.within() {
		return
	}
	h.busy = true
	defer func() { h.busy = false }()
	if h.step != nil {
		h.t.Fatalf("weirtest: the app runs: Stop, Kill or Restart it")
		return
	}
	h.opts = append(h.opts, opts...)
	h.retries, h.why = 0, nil
	err := h.build()
	if err != nil {
		h.ended(err)
		return
	}
	if h.step, err = h.begin(); err == nil {
		err = h.step.Run()
	}
	h.settle(err, (*processor.Stepper).Run)
}

// Crash kills the app and starts it again: it goes back to the last checkpoint and
// processes again what came after it.
func (h *Harness) Crash() {
	h.t.Helper()
	h.Kill()
	h.Start()
}

// Restart stops the app, unless it is down, and starts it with further options, which stay.
func (h *Harness) Restart(opts ...weir.Option) {
	h.t.Helper()
	if h.step != nil {
		h.Stop()
	}
	h.Start(opts...)
}

// Rescale restarts the app with another number of subtasks for each stage.
func (h *Harness) Rescale(parallelism int) {
	h.t.Helper()
	h.Restart(weir.Parallelism(parallelism))
}

// Upgrade restarts the app with another topology: the next version of the service, which
// takes over the state of this one.
func (h *Harness) Upgrade(topology func(*weir.App), opts ...weir.Option) {
	h.t.Helper()
	if h.step != nil {
		h.Stop()
	}
	h.topology = topology
	h.Start(opts...)
}

// Fails calls f, in which the app must end with an error, and returns what App.Run would
// have returned. The app is down then: [Harness.Start] starts it again. An error that the
// app survives, as of a checkpoint that is not durable, is returned as well.
func (h *Harness) Fails(f func()) error {
	h.t.Helper()
	h.expects, h.failure = true, nil
	func() {
		defer func() { h.expects = false }() // f may be left by a t.Fatal of a subtest
		f()
	}()
	switch {
	case h.failure != nil:
	case h.step == nil:
		h.t.Fatalf("weirtest: the app was expected to fail: it has not, because it is down%s", h.since())
	default:
		h.t.Fatalf("weirtest: the app was expected to fail and goes on")
	}
	return h.failure
}

// Skipped are the records and timers that were dropped so far because of weir.Skip or
// weir.SkipRecords, also those that were dropped again after a crash.
func (h *Harness) Skipped() []event.Skipped { return slices.Clone(h.skipped) }

// Records are the records that the app wrote to a topic: those that are committed, and
// those of the open epoch. They must not be changed.
func (h *Harness) Records(topic string) []*kgo.Record {
	h.t.Helper()
	return append(h.CommittedRecords(topic), ofTopic(h.topics.Open(), topic)...)
}

// CommittedRecords are the records of a topic that a read_committed reader sees.
func (h *Harness) CommittedRecords(topic string) []*kgo.Record {
	h.t.Helper()
	rs := ofTopic(h.topics.Committed(), topic)
	known := h.app.Plan.OutputTopics
	if dead := h.app.Config.DeadLetterTopic; dead != "" {
		known = append(slices.Clone(known), dead)
	}
	if len(rs) == 0 && !slices.Contains(known, topic) { // an app before an upgrade may have written to others
		h.t.Fatalf("weirtest: the app writes to no topic %q; it writes to %q", topic, known)
	}
	return rs
}

// DeadLetters are the [Harness.Records] of the topic of weir.DeadLetters.
func (h *Harness) DeadLetters() []*kgo.Record {
	h.t.Helper()
	if h.app.Config.DeadLetterTopic == "" {
		h.t.Fatalf("weirtest: the app has no dead-letter topic: give weirtest.New the option weir.DeadLetters(topic)")
	}
	return h.Records(h.app.Config.DeadLetterTopic)
}

func ofTopic(rs []*kgo.Record, topic string) []*kgo.Record {
	var found []*kgo.Record
	for _, r := range rs {
		if _, _, shown := processor.Shown(r); !shown && r.Topic == topic {
			found = append(found, r)
		}
	}
	return found
}

// must is do for what can't be done while the app is down.
func (h *Harness) must(what string, f func(*processor.Stepper) error) {
	h.t.Helper()
	if h.step == nil {
		if !h.expects {
			h.t.Fatalf("weirtest: can't %s: the app is down%s", what, h.since())
		}
		return
	}
	h.do(f)
}

// since says why the app is down.
func (h *Harness) since() string {
	if h.why == nil {
		return ""
	}
	return fmt.Sprintf(" since it failed: %v", h.why)
}

// do makes a step, and deals with what comes of it.
func (h *Harness) do(f func(*processor.Stepper) error) {
	h.t.Helper()
	if h.within() {
		return
	}
	h.busy = true
	defer func() { h.busy = false }()
	h.retries = 0
	h.settle(f(h.step), f)
}

// within fails the test if a function of the topology, which a step calls, makes another one.
func (h *Harness) within() bool {
	h.t.Helper()
	if h.busy {
		h.t.Fatalf("weirtest: a handler, or another function of the topology, can't drive the harness that has called it")
	}
	return h.busy
}

// settle deals with the outcome of a step. What a restart can mend is followed by one, and
// the step is made again.
func (h *Harness) settle(err error, f func(*processor.Stepper) error) {
	h.t.Helper()
	for err != nil && processor.Mendable(err) {
		if limit := h.app.Config.Restart.Limit; limit >= 0 && h.retries >= limit {
			err = &processor.RestartsError{Restarts: h.retries, Err: err}
			break
		}
		h.retries++
		if h.step, err = h.begin(); err == nil {
			if err = h.step.Run(); err == nil {
				err = f(h.step)
			}
		}
	}
	if err == nil {
		return
	}
	err = &weir.RunError{App: AppName, Err: err}
	if processor.GivenUp(err) {
		h.tell(err)
		return
	}
	h.ended(err)
}

// ended notes what the app ended with.
func (h *Harness) ended(err error) {
	h.t.Helper()
	h.step, h.why = nil, err
	h.tell(err)
}

// tell fails the test, unless it waits for an error.
func (h *Harness) tell(err error) {
	h.t.Helper()
	if h.expects {
		h.failure = err
		return
	}
	h.t.Fatalf("%v", err)
}

func (h *Harness) begin() (*processor.Stepper, error) {
	return processor.NewStepper(context.Background(), h.app.Config, h.app.Plan, h.topics, h.clock)
}

// input finds a source by its operator's ID.
func (h *Harness) input(id string) (inside.Input, bool) {
	h.t.Helper()
	var known []string
	for _, in := range h.app.Inputs {
		if in.ID == id {
			return in, true
		}
		known = append(known, fmt.Sprintf("%q", in.ID))
	}
	h.t.Fatalf("weirtest: the topology has no source %q; it has %s", id, strings.Join(known, ", "))
	return inside.Input{}, false
}

// stamp is a time as messages show it.
func stamp(at time.Time) string { return at.UTC().Format("2006-01-02T15:04:05.000Z07:00") }
