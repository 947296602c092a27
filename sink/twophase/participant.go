package twophase

import (
	"context"
	"errors"

	"go.uber.org/zap"
)

// Participant describes a receiver with transactions. Its methods have no side effects
// but for Connect.
type Participant[T any] interface {
	// Check tells what is wrong with the description.
	Check() error
	// String says what is written to, for plans and messages.
	String() string
	// Connect makes the receiver of an incarnation of the app. It should not wait for
	// what it connects to. An error stops the app, a sink.Retriable one restarts it.
	Connect(env Env) (Receiver[T], error)
}

// Env is who writes. Transactions are told apart by App and Operator: what another app or
// operator has at the same receiver is none of our business.
type Env struct {
	App      string // name of the app
	Operator string // the sink's operator ID
	Instance string // stable name of the process
	Logger   *zap.Logger
}

// Receiver is the connection to a receiver of one incarnation of an app. Begin is called
// by the goroutines of subtasks, Commit by another one beside them, Leftovers and Abort
// before the first Begin, and Close last.
//
// A sink.Retriable error says that the receiver is down, or that it may take the same
// call later: Commit, Leftovers and Abort are repeated then, at growing intervals and
// without a limit; after Begin, Write and Prepare the app restarts from its last
// checkpoint. Any other error stops the app; of Commit only if it is repeated when the app
// was restarted.
type Receiver[T any] interface {
	// Begin begins a transaction for one writer, its only open one. A subtask has a writer,
	// and one for each stream where several are merged in front of the sink; they are
	// numbered from 0 through all of them. The transactions of a writer are prepared and
	// committed in the order in which they began. Those that are prepared and not committed
	// yet stay beside the open one: it must not need anything that they hold, as locks of the
	// same rows.
	Begin(ctx context.Context, writer int) (Transaction[T], error)
	// Commit commits a prepared transaction, of this process or any earlier one. It is
	// idempotent: it is called again for what is committed already, in any later process,
	// also after a start from an old savepoint, and by two processes at once. If the
	// transaction can't be committed any more and was not committed the error wraps
	// [ErrGone]; to say so of one that was committed stops an app for nothing, to be silent
	// about one that was not loses it. Nothing behind one that is gone is committed before
	// somebody accepts the loss. From then on it counts as committed: so a receiver may
	// remember the last one of each writer that it committed instead of each one.
	Commit(ctx context.Context, handle []byte) error
	// Leftovers lists all transactions of this app and operator at the receiver that are
	// open or prepared, except those that are named, which are handles: those of the restored
	// checkpoint. What it lists is given to Abort.
	Leftovers(ctx context.Context, named [][]byte) ([][]byte, error)
	// Abort rolls back what Leftovers listed. There may be nothing left of it.
	Abort(ctx context.Context, leftover []byte) error
	// Close releases connections. What is open or prepared stays at the receiver, as if the
	// process was killed, or is rolled back by the receiver if it was not prepared.
	Close() error
}

// Transaction takes the values of one subtask in one epoch. It is used by one goroutine.
type Transaction[T any] interface {
	// Write adds a value, and keeps no reference to it. Errors are treated like those of a
	// handler; after one that skips the record, or puts it aside as a dead letter, the
	// transaction goes on. One that is the receiver's and not the value's is a sink.Outage:
	// then no record is skipped for it.
	Write(v T) error
	// Prepare makes what was written durable, so that nothing but Commit is left to do, in
	// whatever process, and shows nothing of it to readers. The handle is what Commit needs.
	// It is used for no other transaction, ever, and belongs to the runtime from then on.
	// Without a handle the transaction had nothing to commit, and is over. ctx ends with
	// the incarnation.
	Prepare(ctx context.Context) (handle []byte, err error)
	// Rollback ends a transaction that is not prepared, or whose Prepare failed, as far as
	// it can; the next start does the rest. It is called when the incarnation ends.
	Rollback(ctx context.Context)
}

// ErrGone is wrapped by the error of a Commit of a transaction that can't be committed any
// more, because it expired, somebody rolled it back, or what it consists of is missing.
var ErrGone = errors.New("the transaction is gone")
