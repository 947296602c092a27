package sink

import (
	"context"
	"time"

	"go.uber.org/zap"

	"github.com/weirstream/weir/event"
)

// Flusher is implemented by a [Writer] that talks to its receiver itself, such as that
// of an idempotent sink. Such a writer writes before the commit, so a replay writes
// again what was written since the last committed checkpoint: the receiver must bear it.
type Flusher interface {
	// Flush is called at every barrier, after the last Write of the epoch and before the
	// subtask acknowledges the barrier, from the subtask's goroutine. It returns when
	// everything written so far is acknowledged by the receiver. ctx ends with the
	// incarnation. The time that it takes holds up the subtask and is part of
	// event.CheckpointPersisted.Held.
	//
	// An error ends the app as a handler's does, with the operator's ID but without a
	// record: there is none to skip or to dead-letter. A [Retriable] one restarts the app
	// from its last checkpoint. A barrier is not flushed twice.
	Flush(ctx context.Context) error
}

// Logger is implemented by the [Writer] of a [WriteAhead] sink.
type Logger interface {
	// Log is called at every barrier, after Flush if the writer is also a [Flusher], from
	// the subtask's goroutine. It returns what is to be done once the checkpoint is
	// committed: the writer's part of the checkpoint's [Log]; nothing if it is empty. The
	// bytes belong to the runtime from then on. Errors are treated as those of Flush.
	Log() ([]byte, error)
}

// WriteAhead is implemented by a [Sink] whose effects follow the commit of the
// checkpoint: a write-ahead log, as in database recovery, whose records are applied when
// the commit point is behind them and applied again after a crash.
//
// Every writer of such a sink is a [Logger]. What the writers log becomes part of the
// checkpoint and is durable before the commit point. After it the [Applier] applies it.
// For exactly-once it must notice, at the receiver, what it applied before: with a marker
// that moves in the same atomic step as the effects.
type WriteAhead interface {
	// Applier makes the part that applies logs: one for each sink and incarnation, before
	// the sink's writers are opened. It should not wait for the receiver. An error stops
	// the app, a [Retriable] one restarts it.
	Applier(env ApplierEnv) (Applier, error)
}

// ApplierEnv is what an [Applier] may use.
type ApplierEnv interface {
	// App is the app's name.
	App() string
	// Operator is the sink's operator ID.
	Operator() string
	// Instance is the stable name of the process.
	Instance() string
	// Lineage names the line of checkpoints that this incarnation makes: 16 hexadecimal
	// digits. Within a lineage each checkpoint id is committed once. It is made anew where a
	// job starts from nothing, from a savepoint, or from positions that a person chose;
	// and again if such a start ends before its first commit.
	Lineage() string
	// Context ends with the incarnation.
	Context() context.Context
	// Logger is the app's.
	Logger() *zap.Logger
	// Confirm asks Kafka whether this incarnation is still the app's active one. If it
	// returns nil no successor had begun when it was called, so what was at the receiver
	// before the call is not a successor's. Whoever clears away what it finds there needs
	// that: it may have been stopped since it read the committed checkpoint, and replaced.
	// An error says that it was replaced, or that Kafka can't be asked; a restart finds out.
	Confirm(ctx context.Context) error
	// Applied tells the app's listeners that something was applied. App and operator are
	// filled in.
	Applied(i event.Applied)
}

// Log is what a sink's writers logged in one checkpoint.
type Log struct {
	// Checkpoint is the id of the checkpoint. Ids grow, also where the lineage changes.
	Checkpoint int64
	// Lineage is that of the checkpoint. It is the env's, or, of logs that [Applier.Recover]
	// gets, an earlier one: that of the savepoint, for example, that the app starts from. A
	// marker names lineage and checkpoint of the log that it stands for.
	Lineage string
	// After is the checkpoint of the sink's log before this one, 0 if this is its first: who
	// has applied all up to After may apply this one; who has not has lost something that is
	// not kept any more, unless it is among the logs.
	After int64
	// Created is when the checkpoint was made, by this machine's clock.
	Created time.Time
	// Bytes is the size of all parts together; 0 if nothing was logged.
	Bytes int64
	// Read returns the parts: by epoch, if the checkpoint took over those of checkpoints
	// that were given up; within an epoch by subtask, and within a subtask in the order in
	// which the writers were opened. A log that was just committed is read from memory, so
	// keep it no longer than needed; one that was restored is read from the store and
	// verified, with errors of package checkpoint. Read may be called from any goroutine
	// and more than once. The parts must not be changed.
	Read func(ctx context.Context) ([][]byte, error)
}

// Applier applies the logs of one sink in one incarnation.
//
// The runtime calls Recover first, then Run in a goroutine of its own and, beside it,
// Committed from another one; Keep from any, also beside the others; at a clean stop
// Drain while Run still runs; and Close last. If Recover was not reached or failed, only
// Close follows.
type Applier interface {
	// Recover is called once, before the first record and before Run, with the logs that
	// the restored checkpoint holds, oldest first, the newest perhaps that of the
	// checkpoint itself; none if nothing was logged, or nothing is kept. restored is the
	// checkpoint's id, 0 if the app starts empty. Recover decides what is to be applied
	// again and queues it: the process may have ended at any instant after the commit.
	// restored is above the ids of the logs or that of the newest, and below those to come.
	//
	// An app that starts from a savepoint gets the savepoint's logs, with the lineage that
	// made them: the app that the savepoint was taken from may have been killed before it
	// applied them. If the receiver has a marker of that lineage, it tells what was
	// applied. What the app applied after the savepoint was taken is not taken back, and
	// what the new app does to the receiver comes on top of it. A checkpoint is made of the
	// savepoint anew at each such start. restored is no later than that, and the same at all
	// of them until the app has committed something; from then on it is higher, as long as
	// the commit topic has its record. So an operator may tell an applier that refused to
	// start to go on, by that number.
	//
	// An error stops the app, for example if the receiver lost more than the logs hold; a
	// [Retriable] one, for what may be over at the next try, restarts it. ctx ends with the
	// incarnation.
	Recover(ctx context.Context, restored int64, logs []Log) error
	// Committed hands over the log of a checkpoint whose commit point is behind us. Calls
	// come in order, one for each checkpoint, also for one without operations (Bytes 0). It
	// must not block.
	Committed(l Log)
	// Run applies what Recover and Committed handed over until ctx ends, and returns nil
	// then. An error ends the incarnation; the next one calls Recover on an applier of its
	// own. A [Fatal] one stops the app.
	Run(ctx context.Context) error
	// Drain returns when everything that was handed over is applied. Nothing is handed over
	// while it runs. It is called at a clean stop, and before partitions go to another
	// instance, after the last commit. ctx ends when the time for it is over.
	Drain(ctx context.Context) error
	// Keep returns the oldest checkpoint whose log must stay part of later checkpoints:
	// that is what is not applied, and what retention keeps. Logs of checkpoints before it
	// are left out of the next checkpoint and never seen again. It is asked when a
	// checkpoint is made, and must return fast.
	Keep() int64
	// Close releases connections. Nothing of the incarnation runs any more.
	Close() error
}

// Finisher is implemented by an [Applier] that has to finish what is committed also where the
// app does not go on from there.
type Finisher interface {
	// Finish is called once before Recover if the app starts empty or from a savepoint by
	// somebody's choice, although something was committed: with the logs that the newest
	// committed checkpoint holds, which this start gives up, oldest first, as far as they can
	// be read. They may be finished already. Errors and ctx are as with Recover.
	Finish(ctx context.Context, logs []Log) error
}

// Throttler is implemented by an [Applier] that may have too much to apply, because its
// receiver is slow or down.
type Throttler interface {
	// Room returns when there is room for more, or with an error when ctx ends. It is called
	// before input is handed to the subtasks, from the goroutine that polls, after Recover.
	// While it waits nothing new is processed; what was processed is still committed and
	// handed over. So a receiver may be down for as long as it takes, and what waits for
	// it is bounded by what is on its way to the subtasks, and by what timers emit that follow
	// the wall clock: they go on. Any other error ends the incarnation.
	Room(ctx context.Context) error
}

// Reporter is implemented by an [Applier] that tells how far it is, for the app's status.
type Reporter interface {
	// Progress is called from any goroutine, at any time before Close.
	Progress() Progress
}

// Progress is how far an applier is.
type Progress struct {
	PendingCheckpoints int           // committed, with operations that are not all applied
	PendingBytes       int64         // of their logs
	Oldest             time.Time     // when the oldest of them was made; zero if there is none
	Applied            int64         // the newest checkpoint of which everything is applied; 0: none, or not known yet
	Latency            time.Duration // from the making of that checkpoint until it was applied; 0: nothing was applied yet
	Err                error         // why the receiver takes nothing at the moment; nil if it does
}

// Retriable marks an error that may be over at the next try: the app restarts from its
// last checkpoint under its restart policy. weir.Retry makes one.
type Retriable struct{ Err error }

func (e *Retriable) Error() string { return e.Err.Error() }
func (e *Retriable) Unwrap() error { return e.Err }

// Outage marks an error of [Writer.Write] that is the receiver's and not the value's, so that
// no record is skipped or dead-lettered for it, whatever was asked for: the app stops, or
// restarts if the error is [Retriable] as well.
type Outage struct{ Err error }

func (e *Outage) Error() string { return e.Err.Error() }
func (e *Outage) Unwrap() error { return e.Err }

// Fatal marks an error of [Applier.Run] that no restart mends: the app stops.
type Fatal struct{ Err error }

func (e *Fatal) Error() string { return e.Err.Error() }
func (e *Fatal) Unwrap() error { return e.Err }
