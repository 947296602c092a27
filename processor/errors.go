package processor

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/txn"
)

// Skip marks an error after which the input record is dropped and counted.
type Skip struct{ Err error }

func (e *Skip) Error() string { return "skip: " + e.Err.Error() }
func (e *Skip) Unwrap() error { return e.Err }

// DeadLetter marks an error after which the input record goes to the dead-letter
// topic, in the transaction of its epoch.
type DeadLetter struct{ Err error }

func (e *DeadLetter) Error() string { return "dead-letter: " + e.Err.Error() }
func (e *DeadLetter) Unwrap() error { return e.Err }

// Retriable marks an error after which the job restarts from its last checkpoint
// under the restart policy.
type Retriable = sink.Retriable

// Undecodable is the error of a record that its source could not decode.
type Undecodable struct{ Err error }

func (e *Undecodable) Error() string { return "decoding: " + e.Err.Error() }
func (e *Undecodable) Unwrap() error { return e.Err }

// HandlerError is a user function's error or panic, or the panic of a codec, with the place
// where it happened.
type HandlerError struct {
	App       string
	Operator  string
	Partition offsets.Partition
	Offset    int64
	// Barrier is the checkpoint at whose barrier it happened, in a sink; zero if it was a
	// record or a timer. Partition and Offset say nothing then.
	Barrier int64
	// Timer is the time of the timer on which it happened, or which emitted what it
	// happened on; zero if that was a record. TimerOperator is whose timer it was, Key
	// its key unless it happened on another subtask or behind a look-up. Partition and
	// Offset say nothing then.
	Timer         time.Time
	TimerOperator string
	Key           string
	// Doing is what a codec of the operator, or a sink, was called for when it panicked, such
	// as "encoding state \"total\" for checkpoint 7"; empty if the error or panic is that of a
	// function. Partition and Offset say nothing then.
	Doing string
	// Checkpoint is the last committed checkpoint; 0 if there is none. Attempted is one after
	// it whose commit may or may not have happened; 0 if nothing after it was published.
	Checkpoint, Attempted int64
	// Panic tells that the function panicked; Stack is where.
	Panic bool
	Stack string
	Err   error
}

func (e *HandlerError) Error() string {
	var b strings.Builder
	verb := "failed"
	if e.Panic {
		verb = "panicked"
	}
	switch {
	case e.Doing != "":
		fmt.Fprintf(&b, "operator %q %s while %s: %v", e.Operator, verb, e.Doing, e.Err)
	case e.Barrier != 0:
		fmt.Fprintf(&b, "sink %q %s at the barrier of checkpoint %d: %v", e.Operator, verb, e.Barrier, e.Err)
	case e.Timer.IsZero():
		fmt.Fprintf(&b, "operator %q %s on %s at offset %d: %v", e.Operator, verb, e.Partition, e.Offset, e.Err)
	default:
		fmt.Fprintf(&b, "operator %q %s on %s: %v", e.Operator, verb, e.describeTimer(e.TimerOperator), e.Err)
	}
	b.WriteString("\n  " + published(e.Checkpoint, e.Attempted))
	var (
		undecodable *Undecodable
		outage      *sink.Outage
		again       *Retriable
	)
	switch {
	case errors.As(e.Err, &outage):
		b.WriteString("\n  there is no record to skip: see to what the sink writes to, and start again")
		if errors.As(e.Err, &again) {
			b.WriteString("; weir.Restart sets how often the app tries by itself")
		}
	case e.Doing != "":
		b.WriteString("\n  there is no record to skip: mend what panicked, and start again")
	case e.Barrier != 0:
		// There is nothing to skip.
	case errors.As(e.Err, &undecodable) && !e.Panic && e.Timer.IsZero():
		fmt.Fprintf(&b, "\n  to skip such records, or dead-letter them: weir.OnUndecodable at the source; to skip this one: start with WEIR_SKIP=%s@%d", e.Partition, e.Offset)
	case e.Timer.IsZero():
		fmt.Fprintf(&b, "\n  to skip this record: return weir.Skip(err) from the handler, or start with WEIR_SKIP=%s@%d", e.Partition, e.Offset)
	default:
		b.WriteString("\n  to skip this timer: return weir.Skip(err) from the handler")
	}
	if e.Stack != "" {
		b.WriteString("\n" + e.Stack)
	}
	return b.String()
}

func (e *HandlerError) Unwrap() error { return e.Err }

// published says what readers of outputs can see; last is the last committed checkpoint, 0
// if there is none, and attempted one whose commit is in doubt, 0 if none is.
func published(last, attempted int64) string {
	if attempted != 0 {
		return txn.Doubt(attempted)
	}
	if last == 0 {
		return "no checkpoint is committed yet; nothing was published"
	}
	return fmt.Sprintf("the last committed checkpoint is %d; nothing after it was published", last)
}

// withOutcome returns err with what became of the commit that was under way when it happened:
// who made it knew only of the one before. It is called when the committer has ended.
func (inc *incarnation) withOutcome(err error) error {
	last := inc.outcome
	unknown := inDoubt(last.err)
	if err == nil || last.id == 0 || last.err != nil && !unknown {
		return err // there was none, or it did not happen
	}
	is, final := err, false
	if f, ok := err.(fatalError); ok {
		is, final = f.error, true
	}
	// What it says of checkpoints is changed in a copy: others may have it by now.
	note := func(committed, attempted *int64) {
		if unknown {
			*attempted = last.id
		} else {
			*committed = max(*committed, last.id)
		}
	}
	switch e := is.(type) {
	case *HandlerError:
		c := *e
		note(&c.Checkpoint, &c.Attempted)
		is = &c
	case *LookupError:
		c := *e
		note(&c.Checkpoint, &c.Attempted)
		is = &c
	case *txn.Error:
		if e.Attempted >= 0 {
			return err // it is about this commit
		}
		c := *e
		note(&c.LastCommitted, &c.Attempted)
		is = &c
	default:
		if unknown && !inDoubt(err) && !errors.Is(err, ErrKilled) {
			is = errors.Join(is, last.err)
		}
	}
	if final {
		return fatal(is)
	}
	return is
}

// inDoubt tells whether err says of a checkpoint that it may or may not be committed.
func inDoubt(err error) bool {
	switch e := err.(type) {
	case *txn.Error:
		if e.Attempted >= 0 {
			return true
		}
	case *HandlerError:
		if e.Attempted != 0 {
			return true
		}
	case *LookupError:
		if e.Attempted != 0 {
			return true
		}
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		return inDoubt(e.Unwrap())
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), inDoubt)
	}
	return false
}

// RestartsError says that the restart policy gave up.
type RestartsError struct {
	Restarts int
	Err      error
}

func (e *RestartsError) Error() string {
	return fmt.Sprintf("gave up after %d restarts in a row (weir.Restart sets the limit); the last failure: %v", e.Restarts, e.Err)
}

func (e *RestartsError) Unwrap() error { return e.Err }

// errHandedOver ends an incarnation whose partitions went to another member in an
// orderly way. It is not a failure.
var errHandedOver = errors.New("partitions were handed over")

// fatalError marks an error that a restart cannot mend.
type fatalError struct{ error }

func (e fatalError) Unwrap() error { return e.error }

// fatal marks err as one that a restart cannot mend.
func fatal(err error) error {
	if err == nil {
		return nil
	}
	return fatalError{err}
}
