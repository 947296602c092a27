package barrier

import (
	"errors"
	"fmt"
	"time"
)

// DefaultTolerableFailures is how many checkpoints may fail in a row where nothing else is
// configured.
const DefaultTolerableFailures = 3

// CoordinatorConfig configures a Coordinator.
type CoordinatorConfig struct {
	// Subtasks is the number of subtasks that acknowledge, at least 1: all of them,
	// sources and sinks included. They are numbered from 0.
	Subtasks int
	// LastID is the highest checkpoint id that was ever used as far as is known; the
	// first checkpoint is LastID+1.
	LastID int64
	// Timeout is the longest time from Inject to Commit, 0 for no limit. Without a
	// limit a store that hangs stops checkpoints for ever.
	Timeout time.Duration
	// TolerableFailures is how many checkpoints may fail in a row; one more ends the
	// job. 0 tolerates none.
	TolerableFailures int
	// Unaligned makes checkpoints that turn unaligned: with an Unalign for each, at its
	// Inject or after AlignmentTimeout. One that serves a savepoint or a shutdown, the
	// requests Requested and Shutdown, is always aligned: it has nothing in flight.
	Unaligned bool
	// AlignmentTimeout is for how long after Inject a checkpoint stays aligned, 0 for not
	// at all. It has no effect without Unaligned.
	AlignmentTimeout time.Duration
	// Trigger says when checkpoints are due.
	Trigger TriggerConfig
}

// Validate reports everything that is wrong with c.
func (c CoordinatorConfig) Validate() error {
	var errs []error
	if c.Subtasks < 1 {
		errs = append(errs, fmt.Errorf("number of subtasks is %d: at least one must acknowledge", c.Subtasks))
	}
	if c.LastID < 0 {
		errs = append(errs, fmt.Errorf("last checkpoint id is %d: must not be negative", c.LastID))
	}
	if c.Timeout < 0 {
		errs = append(errs, fmt.Errorf("checkpoint timeout is %s: must not be negative, 0 means no limit", c.Timeout))
	}
	if c.TolerableFailures < 0 {
		errs = append(errs, fmt.Errorf("tolerable checkpoint failures are %d: must not be negative, 0 tolerates none", c.TolerableFailures))
	}
	if c.AlignmentTimeout < 0 {
		errs = append(errs, fmt.Errorf("alignment timeout is %s: must not be negative, 0 means unaligned from the begin", c.AlignmentTimeout))
	}
	return errors.Join(append(errs, c.Trigger.Validate())...)
}

// Phase is where a checkpoint stands.
type Phase uint8

// The phases of a checkpoint in flight.
const (
	Aligning   Phase = iota + 1 // Inject was handed out, subtasks acknowledge
	Persisting                  // Persist was handed out
	Committing                  // Commit was handed out
)

var phaseNames = [...]string{"idle", Aligning: "aligning", Persisting: "persisting", Committing: "committing"}

func (p Phase) String() string {
	if int(p) >= len(phaseNames) {
		return fmt.Sprintf("phase(%d)", uint8(p))
	}
	return phaseNames[p]
}

// Coordinator owns the life of a job's checkpoints, one at a time, for one incarnation of
// the job. See the package's contract for who calls what and when.
//
// It is driven by one goroutine and not safe for use by others. The slice that a method
// returns is good until the next call.
type Coordinator struct {
	cfg     CoordinatorConfig
	trigger *Trigger
	actions []Action

	lastID   int64
	pending  int64 // in flight, 0 = none
	phase    Phase // of pending, 0 = none
	requests []Reason
	final    bool      // the newest checkpoint serves a shutdown: nothing follows it
	deadline time.Time // of pending, before Committing
	aligned  bool      // pending is aligned, and may turn unaligned at alignBy
	alignBy  time.Time

	acked    []int64 // by subtask: the newest id it acknowledged
	finished []bool  // by subtask
	running  int     // subtasks that have not finished
	missing  int     // running subtasks that have not acknowledged pending

	failures int // in a row
	over     bool
}

// NewCoordinator returns a Coordinator whose first interval starts now, or everything that
// is wrong with cfg.
func NewCoordinator(cfg CoordinatorConfig, now time.Time) (*Coordinator, error) {
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("configure checkpoints: %w", err)
	}
	return &Coordinator{
		cfg:      cfg,
		trigger:  NewTrigger(cfg.Trigger, now),
		lastID:   cfg.LastID,
		acked:    make([]int64, cfg.Subtasks),
		finished: make([]bool, cfg.Subtasks),
		running:  cfg.Subtasks,
	}, nil
}

// Pending returns the checkpoint in flight and where it stands.
func (c *Coordinator) Pending() (id int64, phase Phase, ok bool) {
	return c.pending, c.phase, c.pending != 0
}

// LastID returns the highest checkpoint id that was used.
func (c *Coordinator) LastID() int64 { return c.lastID }

// Failures returns how many checkpoints failed since one was last completed.
func (c *Coordinator) Failures() int { return c.failures }

// Dirty tells whether the open epoch holds anything to commit, apart from what the
// checkpoint in flight holds.
func (c *Coordinator) Dirty() bool { return c.trigger.Dirty() }

// Over tells whether Fail or Stopped was handed out.
func (c *Coordinator) Over() bool { return c.over }

// Next returns when Tick has to be called unless another event comes first, at the earliest
// now. It returns false if no time leads to anything.
func (c *Coordinator) Next(now time.Time) (time.Time, bool) {
	switch {
	case c.over || c.phase == Committing:
		return time.Time{}, false
	case c.pending == 0:
		return c.trigger.Next(now)
	case c.mayUnalign() && (c.cfg.Timeout == 0 || c.alignBy.Before(c.deadline)):
		return later(now, c.alignBy), true
	case c.cfg.Timeout == 0:
		return time.Time{}, false
	}
	return later(now, c.deadline), true
}

// mayUnalign tells whether time makes the checkpoint in flight unaligned.
func (c *Coordinator) mayUnalign() bool { return c.phase == Aligning && c.aligned }

// Observe adds records and bytes that a source emitted to the open epoch.
func (c *Coordinator) Observe(now time.Time, records, bytes int64) []Action {
	c.begin()
	c.trigger.Observe(records, bytes)
	return c.settle(now)
}

// MarkDirty says that something changed without input: a timer fired, a sink has something
// to keep.
func (c *Coordinator) MarkDirty(now time.Time) []Action {
	c.begin()
	c.trigger.MarkDirty()
	return c.settle(now)
}

// Tick says what time it is. Only a Tick gives up a checkpoint that has run out of time, or
// makes it unaligned: an event that came before it is still in time.
func (c *Coordinator) Tick(now time.Time) []Action {
	c.begin()
	if expiring := c.phase == Aligning || c.phase == Persisting; expiring && c.cfg.Timeout > 0 && !now.Before(c.deadline) {
		c.giveUp(now, &TimeoutError{Checkpoint: c.pending, Phase: c.phase, Limit: c.cfg.Timeout, Missing: c.unacknowledged()})
	}
	if c.mayUnalign() && !now.Before(c.alignBy) {
		c.unalign()
	}
	return c.settle(now)
}

// Request asks for a checkpoint, for one of the reasons Memory, Requested, Revoke and Shutdown. It
// starts at once, changed or not, or right after the one in flight, which may have been cut
// too early for whoever asks. Equal requests become one.
//
// Shutdown asks for the last checkpoint. If nothing is in flight, nothing dirty and nothing
// else asked for, the job stops at once.
func (c *Coordinator) Request(now time.Time, reason Reason) []Action {
	c.begin()
	switch {
	case c.over:
	case !reason.requestable():
		c.violation("request of a checkpoint for %s, which only the coordinator decides", reason)
	case reason == Shutdown && c.idle():
		c.stop()
	default:
		c.trigger.Request(reason)
	}
	return c.settle(now)
}

// Ack says that subtask has frozen its part of checkpoint id. What comes for a checkpoint
// that is no longer in flight is ignored.
func (c *Coordinator) Ack(now time.Time, subtask int, id int64) []Action {
	c.begin()
	if !c.known("acknowledgement", id) || !c.exists(subtask) {
		return c.settle(now)
	}
	switch {
	case id != c.pending:
	case c.finished[subtask]:
		c.violation("subtask %d acknowledged checkpoint %d after it had finished", subtask, id)
	case c.acked[subtask] == id:
		c.violation("subtask %d acknowledged checkpoint %d twice", subtask, id)
	default:
		c.acked[subtask] = id
		c.missing--
		c.persist()
	}
	return c.settle(now)
}

// SubtaskFinished says that subtask has no more data and has handed over the last part of
// its state. It counts as acknowledged for every checkpoint from the one in flight on.
func (c *Coordinator) SubtaskFinished(now time.Time, subtask int) []Action {
	c.begin()
	if c.over || !c.exists(subtask) {
		return c.settle(now)
	}
	if c.finished[subtask] {
		c.violation("subtask %d finished twice", subtask)
		return c.settle(now)
	}
	c.finished[subtask] = true
	c.running--
	if c.phase == Aligning && c.acked[subtask] != c.pending {
		c.missing--
		c.persist()
	}
	return c.settle(now)
}

// Persisted says that checkpoint id is durable.
func (c *Coordinator) Persisted(now time.Time, id int64) []Action {
	c.begin()
	if c.known("persisted", id) && id == c.pending {
		if c.phase == Persisting {
			c.phase = Committing
			c.do(Commit{ID: id})
		} else {
			c.violation("checkpoint %d was reported persisted while %s", id, c.phase)
		}
	}
	return c.settle(now)
}

// PersistFailed says that checkpoint id could not be made durable.
func (c *Coordinator) PersistFailed(now time.Time, id int64, err error) []Action {
	c.begin()
	if c.known("failure to persist", id) && id == c.pending {
		if c.phase == Persisting {
			c.giveUp(now, err)
		} else {
			c.violation("checkpoint %d was reported as not persisted while %s: %w", id, c.phase, err)
		}
	}
	return c.settle(now)
}

// Committed says that checkpoint id is committed.
func (c *Coordinator) Committed(now time.Time, id int64) []Action {
	c.begin()
	if c.committing(id) {
		c.failures = 0
		c.trigger.Ended(now)
		c.do(Completed{ID: id, Requests: c.requests})
		c.land()
		if c.final {
			c.stop()
		}
	}
	return c.settle(now)
}

// CommitFailed says that the commit of checkpoint id failed or has an unknown outcome. The
// incarnation is over either way; recovery reads back what happened.
func (c *Coordinator) CommitFailed(now time.Time, id int64, err error) []Action {
	c.begin()
	if c.committing(id) {
		c.fail(&CommitError{Checkpoint: id, Err: err})
	}
	return c.settle(now)
}

// begin starts an event.
func (c *Coordinator) begin() {
	clear(c.actions) // so that errors and requests are not kept alive
	c.actions = c.actions[:0]
}

// settle ends an event: if nothing is in flight it starts the checkpoint that is due, or
// stops when the input has ended and everything is committed.
func (c *Coordinator) settle(now time.Time) []Action {
	if !c.over && c.pending == 0 {
		if c.running == 0 && c.trigger.Dirty() {
			c.trigger.drain()
		}
		if reason, due := c.trigger.Due(now); due {
			c.inject(now, reason)
		} else if c.running == 0 && c.idle() {
			c.stop()
		}
	}
	return c.actions
}

// idle tells whether nothing is in flight and nothing is left to commit or was asked for.
func (c *Coordinator) idle() bool {
	return c.pending == 0 && !c.trigger.Dirty() && c.trigger.open.asked == 0
}

func (c *Coordinator) inject(now time.Time, reason Reason) {
	asked := c.trigger.open.asked
	c.trigger.Begun(now)
	c.lastID++
	c.pending = c.lastID
	c.phase = Aligning
	c.requests = asked.requests()
	c.final = asked.has(Shutdown)
	c.deadline = now.Add(c.cfg.Timeout)
	c.missing = c.running
	c.aligned = c.cfg.Unaligned && !asked.has(Requested) && !asked.has(Shutdown)
	c.alignBy = now.Add(c.cfg.AlignmentTimeout)
	c.do(Inject{ID: c.pending, Reason: reason, Requests: c.requests})
	if c.aligned && c.cfg.AlignmentTimeout == 0 && c.missing > 0 {
		c.unalign()
	}
	c.persist()
}

func (c *Coordinator) unalign() {
	c.aligned = false
	c.do(Unalign{ID: c.pending})
}

// persist goes on to the next phase once nobody's acknowledgement is missing.
func (c *Coordinator) persist() {
	if c.missing == 0 {
		c.phase = Persisting
		c.do(Persist{ID: c.pending})
	}
}

// giveUp ends the checkpoint in flight, of which nothing was committed, and keeps its epoch
// open; or ends the job if that was one failure too many.
func (c *Coordinator) giveUp(now time.Time, err error) {
	c.failures++
	if c.final || c.failures > c.cfg.TolerableFailures {
		c.fail(&FailedError{Checkpoint: c.pending, Failures: c.failures, Limit: c.cfg.TolerableFailures, Final: c.final, Err: err})
		return
	}
	c.trigger.Failed(now)
	c.do(Cancel{ID: c.pending, Err: err})
	c.land()
}

// land forgets the checkpoint in flight.
func (c *Coordinator) land() {
	c.pending = 0
	c.phase = 0
	c.requests = nil
	c.missing = 0
	c.aligned = false
}

func (c *Coordinator) stop() { c.end(Stopped{}) }

func (c *Coordinator) fail(err error) { c.end(Fail{Err: err}) }

func (c *Coordinator) violation(format string, args ...any) {
	c.fail(fmt.Errorf("%w: "+format, append([]any{ErrProtocol}, args...)...))
}

func (c *Coordinator) end(a Action) {
	c.land()
	c.over = true
	c.do(a)
}

func (c *Coordinator) do(a Action) { c.actions = append(c.actions, a) }

// known tells whether an event for checkpoint id can be looked at: the job is not over, and
// the id was used, here or by an incarnation before. One that never was is a violation.
func (c *Coordinator) known(what string, id int64) bool {
	if c.over {
		return false
	}
	if id < 1 || id > c.lastID {
		c.violation("%s for checkpoint %d, which was never injected: the newest is %d", what, id, c.lastID)
		return false
	}
	return true
}

func (c *Coordinator) exists(subtask int) bool {
	if subtask < 0 || subtask >= len(c.finished) {
		c.violation("subtask %d reported, there are %d", subtask, len(c.finished))
		return false
	}
	return true
}

// committing tells whether id is being committed, which is the only time at which the
// outcome of a commit can come. At any other time somebody committed what was cancelled or
// not durable.
func (c *Coordinator) committing(id int64) bool {
	if c.over {
		return false
	}
	if c.phase != Committing || id != c.pending {
		c.violation("outcome of the commit of checkpoint %d, which was not being committed", id)
		return false
	}
	return true
}

// unacknowledged returns the subtasks whose acknowledgement is missing.
func (c *Coordinator) unacknowledged() []int {
	var subtasks []int
	for s := range c.acked {
		if !c.finished[s] && c.acked[s] != c.pending {
			subtasks = append(subtasks, s)
		}
	}
	return subtasks
}
