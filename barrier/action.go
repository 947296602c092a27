package barrier

import (
	"fmt"
	"time"
)

// Action is something that a Coordinator wants done: one of Inject, Unalign, Persist,
// Commit, Cancel, Completed, Fail and Stopped. The package's contract says what each asks for.
// New kinds of action only come with configuration that asks for them; a driver that
// meets one it doesn't know must fail.
type Action interface {
	fmt.Stringer
	action()
}

// Inject starts checkpoint ID: sources emit its barrier.
type Inject struct {
	ID int64
	// Reason is the most pressing of the reasons for which the checkpoint is taken.
	Reason Reason
	// Requests are all the reasons that were asked for and that this checkpoint serves,
	// each once. If it is cancelled they come again with the next.
	Requests []Reason
}

// Unalign makes checkpoint ID, which was injected, unaligned: barriers overtake. It comes
// at most once for a checkpoint, before its Persist, and only if the configuration has
// Unaligned.
type Unalign struct{ ID int64 }

// Persist makes checkpoint ID durable. Every subtask acknowledged it.
type Persist struct{ ID int64 }

// Commit commits checkpoint ID. It is durable.
type Commit struct{ ID int64 }

// Cancel gives up checkpoint ID: its epoch stays open.
type Cancel struct {
	ID int64
	// Err is a *TimeoutError or what PersistFailed reported.
	Err error
}

// Completed says that checkpoint ID is committed.
type Completed struct {
	ID int64
	// Requests are the reasons of its Inject.
	Requests []Reason
}

// Fail ends the incarnation: roll back to the last commit.
type Fail struct {
	// Err is a *FailedError, a *CommitError, or wraps ErrProtocol.
	Err error
}

// Stopped ends the incarnation: all that was to be committed is.
type Stopped struct{}

func (Inject) action()    {}
func (Unalign) action()   {}
func (Persist) action()   {}
func (Commit) action()    {}
func (Cancel) action()    {}
func (Completed) action() {}
func (Fail) action()      {}
func (Stopped) action()   {}

func (a Inject) String() string {
	if len(a.Requests) == 0 {
		return fmt.Sprintf("inject %d: %s", a.ID, a.Reason)
	}
	return fmt.Sprintf("inject %d: %s, requests %s", a.ID, a.Reason, join(a.Requests))
}
func (a Unalign) String() string { return fmt.Sprintf("unalign %d", a.ID) }
func (a Persist) String() string { return fmt.Sprintf("persist %d", a.ID) }
func (a Commit) String() string  { return fmt.Sprintf("commit %d", a.ID) }
func (a Cancel) String() string  { return fmt.Sprintf("cancel %d: %v", a.ID, a.Err) }
func (a Completed) String() string {
	if len(a.Requests) == 0 {
		return fmt.Sprintf("completed %d", a.ID)
	}
	return fmt.Sprintf("completed %d: requests %s", a.ID, join(a.Requests))
}
func (a Fail) String() string  { return fmt.Sprintf("fail: %v", a.Err) }
func (Stopped) String() string { return "stopped" }

// TimeoutError says why a checkpoint was given up: it was not durable in time.
type TimeoutError struct {
	Checkpoint int64
	Phase      Phase         // Aligning or Persisting
	Limit      time.Duration // CoordinatorConfig.Timeout
	Missing    []int         // subtasks that had not acknowledged, in order
}

func (e *TimeoutError) Error() string {
	if e.Phase == Aligning {
		return fmt.Sprintf("checkpoint %d: timed out after %s while aligning: no acknowledgement of subtasks %v; look for backpressure there or raise the checkpoint timeout", e.Checkpoint, e.Limit, e.Missing)
	}
	return fmt.Sprintf("checkpoint %d: timed out after %s while %s: look at the checkpoint store or raise the checkpoint timeout", e.Checkpoint, e.Limit, e.Phase)
}

// FailedError ends a job whose checkpoints fail: too many in a row, or the last one before
// a shutdown.
type FailedError struct {
	Checkpoint int64 // the one that failed last
	Failures   int   // failed in a row, with that one
	Limit      int   // CoordinatorConfig.TolerableFailures
	Final      bool  // it was the last one before a shutdown, where no failure is tolerated
	Err        error // why it failed
}

func (e *FailedError) Error() string {
	if e.Final {
		return fmt.Sprintf("checkpoint %d, the last before shutdown: %v; what came after the last commit is replayed at the next start", e.Checkpoint, e.Err)
	}
	return fmt.Sprintf("checkpoint %d: %d failed in a row, %d are tolerated: %v; nothing of them was committed, their input is replayed", e.Checkpoint, e.Failures, e.Limit, e.Err)
}

func (e *FailedError) Unwrap() error { return e.Err }

// CommitError ends a job whose commit failed or had an unknown outcome.
type CommitError struct {
	Checkpoint int64
	Err        error
}

func (e *CommitError) Error() string {
	return fmt.Sprintf("commit checkpoint %d: %v; whether it was committed is read back at recovery", e.Checkpoint, e.Err)
}

func (e *CommitError) Unwrap() error { return e.Err }
