package barrier

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// coordinatorScript drives a Coordinator on a clock of its own:
//
//	new subtasks=N [last-id=N] [timeout=D] [align=D] [tolerable=N] [every=D] [records=N] [bytes=N] [min-pause=D] [retry-pause=D]
//	observe [records=N] [bytes=N]
//	dirty
//	request reason=R
//	ack [subtask=I] id=N                 every subtask that has not finished, if none is named
//	finish [subtask=I]                   every subtask that has not finished, if none is named
//	persisted id=N | persist-failed id=N
//	committed id=N | commit-failed id=N
//	advance by=D                         the timer fires when it should
//	pass by=D                            time passes and nobody ticks
//	tick
//
// Each prints the actions, then the time, what is in flight, how many failed in a row, and
// when the timer fires.
type coordinatorScript struct {
	clock
	c *Coordinator
}

var (
	errStore  = errors.New("put segment: store is full")
	errCommit = errors.New("end transaction: connection reset")
)

func (s *coordinatorScript) run(t *testing.T, d *datadriven.TestData) string {
	var b strings.Builder
	do := func(actions []Action) {
		for _, a := range actions {
			fmt.Fprintln(&b, a)
		}
	}
	id := scanInt(t, d, "id")
	switch d.Cmd {
	case "new":
		s.now = epoch0
		c, err := NewCoordinator(CoordinatorConfig{
			Subtasks:          int(scanInt(t, d, "subtasks")),
			LastID:            scanInt(t, d, "last-id"),
			Timeout:           scanDuration(t, d, "timeout"),
			TolerableFailures: int(scanInt(t, d, "tolerable")),
			Unaligned:         d.HasArg("align"),
			AlignmentTimeout:  scanDuration(t, d, "align"),
			Trigger:           scanTrigger(t, d),
		}, s.now)
		if err != nil {
			return fmt.Sprintf("error: %v\n", err)
		}
		s.c = c
	case "observe":
		do(s.c.Observe(s.now, scanInt(t, d, "records"), scanInt(t, d, "bytes")))
	case "dirty":
		do(s.c.MarkDirty(s.now))
	case "request":
		do(s.c.Request(s.now, scanReason(t, d)))
	case "ack":
		for _, subtask := range s.subtasks(t, d) {
			do(s.c.Ack(s.now, subtask, id))
		}
	case "finish":
		for _, subtask := range s.subtasks(t, d) {
			do(s.c.SubtaskFinished(s.now, subtask))
		}
	case "persisted":
		do(s.c.Persisted(s.now, id))
	case "persist-failed":
		do(s.c.PersistFailed(s.now, id, errStore))
	case "committed":
		do(s.c.Committed(s.now, id))
	case "commit-failed":
		do(s.c.CommitFailed(s.now, id, errCommit))
	case "advance":
		until := s.now.Add(scanDuration(t, d, "by"))
		for {
			next, ok := s.c.Next(s.now)
			if !ok || next.After(until) {
				break
			}
			s.now = next
			do(s.c.Tick(s.now))
		}
		s.now = until
	case "pass":
		s.now = s.now.Add(scanDuration(t, d, "by"))
	case "tick":
		do(s.c.Tick(s.now))
	default:
		d.Fatalf(t, "no such command: %s", d.Cmd)
	}
	s.status(&b)
	return b.String()
}

func (s *coordinatorScript) status(b *strings.Builder) {
	fmt.Fprintf(b, "-- %s: ", s.since(s.now))
	id, phase, ok := s.c.Pending()
	switch {
	case s.c.Over():
		fmt.Fprintln(b, "over")
		return
	case ok:
		fmt.Fprintf(b, "%d %s", id, phase)
	default:
		fmt.Fprint(b, "idle")
	}
	if s.c.Dirty() {
		fmt.Fprint(b, ", dirty")
	}
	if n := s.c.Failures(); n > 0 {
		fmt.Fprintf(b, ", failures %d", n)
	}
	if next, ok := s.c.Next(s.now); ok {
		fmt.Fprintf(b, ", next %s", s.since(next))
	}
	fmt.Fprintln(b)
}

func (s *coordinatorScript) subtasks(t *testing.T, d *datadriven.TestData) []int {
	if d.HasArg("subtask") {
		return []int{int(scanInt(t, d, "subtask"))}
	}
	var all []int
	for i, finished := range s.c.finished {
		if !finished {
			all = append(all, i)
		}
	}
	return all
}

func TestCoordinatorConfigReportsEverythingThatIsWrong(t *testing.T) {
	_, err := NewCoordinator(CoordinatorConfig{LastID: -1, Timeout: -1, TolerableFailures: -1, AlignmentTimeout: -1, Trigger: TriggerConfig{Every: -1}}, epoch0)
	if err == nil {
		t.Fatal("accepted")
	}
	for _, part := range []string{"subtasks", "last checkpoint id", "checkpoint timeout", "tolerable", "alignment timeout", "interval"} {
		if !strings.Contains(err.Error(), part) {
			t.Errorf("%q is missing in: %v", part, err)
		}
	}
}

func newCoordinator(t *testing.T, cfg CoordinatorConfig) *Coordinator {
	t.Helper()
	c, err := NewCoordinator(cfg, epoch0)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func onlyFail(t *testing.T, actions []Action) error {
	t.Helper()
	if len(actions) != 1 {
		t.Fatalf("got %v, want one action", actions)
	}
	f, ok := actions[0].(Fail)
	if !ok {
		t.Fatalf("got %v, want a failure", actions[0])
	}
	return f.Err
}

func TestS08_FailureBeyondLimitNamesCheckpointCountAndCause(t *testing.T) {
	c := newCoordinator(t, CoordinatorConfig{Subtasks: 1, LastID: 40, TolerableFailures: 1, Trigger: TriggerConfig{Records: 1}})
	c.Observe(epoch0, 1, 1)
	c.Ack(epoch0, 0, 41)
	c.PersistFailed(epoch0, 41, errors.New("another"))
	c.Ack(epoch0, 0, 42)
	err := onlyFail(t, c.PersistFailed(epoch0, 42, errStore))
	var failed *FailedError
	if !errors.As(err, &failed) {
		t.Fatalf("got %T: %v", err, err)
	}
	if want := (FailedError{Checkpoint: 42, Failures: 2, Limit: 1, Err: errStore}); *failed != want {
		t.Errorf("got %+v, want %+v", *failed, want)
	}
	if !errors.Is(err, errStore) {
		t.Errorf("the cause is not in the chain of %v", err)
	}
}

func TestTimeoutNamesPhaseAndMissingSubtasks(t *testing.T) {
	c := newCoordinator(t, CoordinatorConfig{Subtasks: 4, Timeout: time.Second, Trigger: TriggerConfig{Records: 1}})
	c.SubtaskFinished(epoch0, 2)
	c.Observe(epoch0, 1, 1)
	c.Ack(epoch0, 1, 1)
	err := onlyFail(t, c.Tick(epoch0.Add(time.Second)))
	var timeout *TimeoutError
	if !errors.As(err, &timeout) {
		t.Fatalf("got %T: %v", err, err)
	}
	if timeout.Phase != Aligning || fmt.Sprint(timeout.Missing) != "[0 3]" {
		t.Errorf("got phase %s, missing %v; want aligning, [0 3]", timeout.Phase, timeout.Missing)
	}
}

func TestCommitFailureKeepsItsCause(t *testing.T) {
	c := newCoordinator(t, CoordinatorConfig{Subtasks: 1, TolerableFailures: 100, Trigger: TriggerConfig{Records: 1}})
	c.Observe(epoch0, 1, 1)
	c.Ack(epoch0, 0, 1)
	c.Persisted(epoch0, 1)
	err := onlyFail(t, c.CommitFailed(epoch0, 1, errCommit))
	var failed *CommitError
	if !errors.As(err, &failed) || failed.Checkpoint != 1 || !errors.Is(err, errCommit) {
		t.Errorf("got %T: %v", err, err)
	}
}

// TestViolationEndsTheIncarnation brings a coordinator to one point and then reports what
// cannot be true there.
func TestViolationEndsTheIncarnation(t *testing.T) {
	const second = 1
	aligning := func(c *Coordinator) { c.Observe(epoch0, 1, 1) }
	persisting := func(c *Coordinator) {
		aligning(c)
		c.Ack(epoch0, 0, 1)
		c.Ack(epoch0, second, 1)
	}
	committing := func(c *Coordinator) { persisting(c); c.Persisted(epoch0, 1) }
	for _, tc := range []struct {
		name  string
		reach func(*Coordinator)
		event func(*Coordinator) []Action
	}{
		{"ack of what was never injected", aligning, func(c *Coordinator) []Action { return c.Ack(epoch0, 0, 2) }},
		{"ack of no checkpoint", aligning, func(c *Coordinator) []Action { return c.Ack(epoch0, 0, 0) }},
		{"ack twice", aligning, func(c *Coordinator) []Action { c.Ack(epoch0, 0, 1); return c.Ack(epoch0, 0, 1) }},
		{"ack after finish", aligning, func(c *Coordinator) []Action { c.SubtaskFinished(epoch0, 0); return c.Ack(epoch0, 0, 1) }},
		{"finish twice", aligning, func(c *Coordinator) []Action { c.SubtaskFinished(epoch0, 0); return c.SubtaskFinished(epoch0, 0) }},
		{"ack of unknown subtask", aligning, func(c *Coordinator) []Action { return c.Ack(epoch0, 2, 1) }},
		{"finish of unknown subtask", aligning, func(c *Coordinator) []Action { return c.SubtaskFinished(epoch0, -1) }},
		{"persisted while aligning", aligning, func(c *Coordinator) []Action { return c.Persisted(epoch0, 1) }},
		{"persist failed while aligning", aligning, func(c *Coordinator) []Action { return c.PersistFailed(epoch0, 1, errStore) }},
		{"persisted what was never injected", persisting, func(c *Coordinator) []Action { return c.Persisted(epoch0, 2) }},
		{"persist failed of what was never injected", persisting, func(c *Coordinator) []Action { return c.PersistFailed(epoch0, 2, errStore) }},
		{"persisted twice", committing, func(c *Coordinator) []Action { return c.Persisted(epoch0, 1) }},
		{"persist failed after persisted", committing, func(c *Coordinator) []Action { return c.PersistFailed(epoch0, 1, errStore) }},
		{"committed while persisting", persisting, func(c *Coordinator) []Action { return c.Committed(epoch0, 1) }},
		{"commit failed while persisting", persisting, func(c *Coordinator) []Action { return c.CommitFailed(epoch0, 1, errCommit) }},
		{"committed another", committing, func(c *Coordinator) []Action { return c.Committed(epoch0, 2) }},
		{"committed twice", committing, func(c *Coordinator) []Action { c.Committed(epoch0, 1); return c.Committed(epoch0, 1) }},
		{"request of an interval", aligning, func(c *Coordinator) []Action { return c.Request(epoch0, Interval) }},
		{"request of a drain", aligning, func(c *Coordinator) []Action { return c.Request(epoch0, Drain) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCoordinator(t, CoordinatorConfig{Subtasks: 2, TolerableFailures: 100, Trigger: TriggerConfig{Records: 1}})
			tc.reach(c)
			if c.Over() {
				t.Fatal("over before the violation")
			}
			if err := onlyFail(t, tc.event(c)); !errors.Is(err, ErrProtocol) {
				t.Errorf("got %v, want ErrProtocol", err)
			}
			if !c.Over() {
				t.Error("not over")
			}
		})
	}
}

func TestNothingHappensAfterTheEnd(t *testing.T) {
	later := epoch0.Add(time.Hour)
	for _, tc := range []struct {
		name string
		end  func(*Coordinator) []Action
	}{
		{"stopped", func(c *Coordinator) []Action { return c.Request(epoch0, Shutdown) }},
		{"failed", func(c *Coordinator) []Action { return c.Ack(epoch0, 0, 9) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newCoordinator(t, CoordinatorConfig{Subtasks: 1, Timeout: time.Second, Trigger: TriggerConfig{Every: time.Second}})
			if got := tc.end(c); len(got) != 1 {
				t.Fatalf("got %v, want the end", got)
			}
			for name, event := range map[string]func() []Action{
				"observe":        func() []Action { return c.Observe(later, 1, 1) },
				"dirty":          func() []Action { return c.MarkDirty(later) },
				"tick":           func() []Action { return c.Tick(later) },
				"request":        func() []Action { return c.Request(later, Requested) },
				"shutdown":       func() []Action { return c.Request(later, Shutdown) },
				"bad request":    func() []Action { return c.Request(later, Interval) },
				"ack":            func() []Action { return c.Ack(later, 0, 1) },
				"ack unknown":    func() []Action { return c.Ack(later, 7, 1) },
				"finish":         func() []Action { return c.SubtaskFinished(later, 0) },
				"finish twice":   func() []Action { return c.SubtaskFinished(later, 0) },
				"finish unknown": func() []Action { return c.SubtaskFinished(later, 7) },
				"persisted":      func() []Action { return c.Persisted(later, 1) },
				"persist failed": func() []Action { return c.PersistFailed(later, 1, errStore) },
				"committed":      func() []Action { return c.Committed(later, 1) },
				"commit failed":  func() []Action { return c.CommitFailed(later, 1, errCommit) },
			} {
				if got := event(); len(got) != 0 {
					t.Errorf("%s: %v", name, got)
				}
			}
			if at, ok := c.Next(later); ok {
				t.Errorf("a timer at %v", at)
			}
			if id, phase, ok := c.Pending(); ok {
				t.Errorf("%d is still %s", id, phase)
			}
		})
	}
}

func TestObserveAllocatesNothing(t *testing.T) {
	c := newCoordinator(t, CoordinatorConfig{Subtasks: 1, Trigger: TriggerConfig{Every: time.Hour}})
	if allocs := testing.AllocsPerRun(100, func() { c.Observe(epoch0, 100, 10_000) }); allocs != 0 {
		t.Errorf("%v allocations per batch, want none", allocs)
	}
}
