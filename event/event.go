package event

import (
	"fmt"
	"time"

	"github.com/weirstream/weir/offsets"
)

// CheckpointBegun says that a barrier was injected.
type CheckpointBegun struct {
	App        string
	Checkpoint int64
	Reason     string // interval, records, bytes, drain, memory, requested, revoke, shutdown
}

func (i CheckpointBegun) String() string {
	return fmt.Sprintf("checkpoint %d begun (%s)", i.Checkpoint, i.Reason)
}

// CheckpointPersisted says that segment and manifest are durable.
type CheckpointPersisted struct {
	App        string
	Checkpoint int64
	Aligned    time.Duration // barrier injected until the last subtask acknowledged
	Held       time.Duration // the longest time for which a subtask did nothing but complete look-ups, freeze its state and flush its sinks
	Took       time.Duration // writing segment and manifest
	Entries    int64         // changed state entries
	Bytes      int64         // bytes written to the store
	Segments   int           // segments that the manifest names
	// Unaligned says that a barrier overtook records, and InFlight how many records are
	// stored that were in flight.
	Unaligned bool
	InFlight  int64
}

func (i CheckpointPersisted) String() string {
	cut := "aligned"
	if i.Unaligned {
		cut = fmt.Sprintf("%d records in flight, unaligned", i.InFlight)
	}
	return fmt.Sprintf("checkpoint %d persisted: %d entries, %d bytes, %d segments, %s in %v, written in %v",
		i.Checkpoint, i.Entries, i.Bytes, i.Segments, cut, i.Aligned.Round(time.Microsecond), i.Took.Round(time.Microsecond))
}

// CheckpointCommitted says that the commit point of a checkpoint is behind us.
type CheckpointCommitted struct {
	App        string
	Checkpoint int64
	Took       time.Duration // the Kafka commit alone
	Total      time.Duration // barrier injected until committed
	Records    int64         // input records of the epoch
}

func (i CheckpointCommitted) String() string {
	return fmt.Sprintf("checkpoint %d committed: %d records, commit %v, total %v",
		i.Checkpoint, i.Records, i.Took.Round(time.Microsecond), i.Total.Round(time.Microsecond))
}

// CheckpointFailed says that a checkpoint was given up. Nothing of it was committed, unless
// Err is a *barrier.CommitError, whose outcome recovery reads back.
type CheckpointFailed struct {
	App        string
	Checkpoint int64
	Err        error
}

func (i CheckpointFailed) String() string {
	return fmt.Sprintf("checkpoint %d failed: %v", i.Checkpoint, i.Err)
}

// Restored says that state was loaded and processing begins.
type Restored struct {
	App        string
	Checkpoint int64 // 0: started without a checkpoint
	Partitions int
	Segments   int
	Entries    int64 // of all segments together
	InFlight   int64 // records that were in flight and are processed before new input
	// How the state came: "read" into memory, or into a local store that was "reused",
	// "caught up" or "rebuilt": it had all, some or none of the segments. Attached is how
	// many came in, and Bytes what all of them hold.
	How      string
	Attached int
	Bytes    int64
	Took     time.Duration
}

func (i Restored) String() string {
	if i.Checkpoint == 0 {
		return fmt.Sprintf("started empty on %d partitions", i.Partitions)
	}
	flying := ""
	if i.InFlight > 0 {
		flying = fmt.Sprintf(" and %d records in flight", i.InFlight)
	}
	return fmt.Sprintf("restored checkpoint %d: %d entries in %d segments, %s%s, for %d partitions in %v",
		i.Checkpoint, i.Entries, i.Segments, i.How, flying, i.Partitions, i.Took.Round(time.Microsecond))
}

// Restarting says that the incarnation ended and another one begins.
type Restarting struct {
	App     string
	Attempt int // consecutive restarts so far
	After   time.Duration
	Err     error // nil: partitions were handed over in an orderly way
}

func (i Restarting) String() string {
	if i.Err == nil {
		return "partitions handed over, waiting for the next assignment"
	}
	return fmt.Sprintf("restart %d in %v after: %v", i.Attempt, i.After.Round(time.Millisecond), i.Err)
}

// Rebalanced says that partitions came or went.
type Rebalanced struct {
	App      string
	Assigned []offsets.Partition
	Revoked  []offsets.Partition
	Lost     []offsets.Partition
}

func (i Rebalanced) String() string {
	return fmt.Sprintf("rebalance: %d partitions assigned, %d revoked, %d lost", len(i.Assigned), len(i.Revoked), len(i.Lost))
}

// Fenced says that another process took this one's place.
type Fenced struct {
	App string
	Err error
}

func (i Fenced) String() string { return fmt.Sprintf("fenced: %v", i.Err) }

// DeadLettered says that an input record went to the dead-letter topic.
type DeadLettered struct {
	App       string
	Operator  string
	Partition offsets.Partition
	Offset    int64
	Err       error
}

func (i DeadLettered) String() string {
	return fmt.Sprintf("operator %q sent %s at offset %d to the dead-letter topic: %v", i.Operator, i.Partition, i.Offset, i.Err)
}

// Skipped says that an input record was dropped on the handler's word, or a timer.
type Skipped struct {
	App       string
	Operator  string
	Partition offsets.Partition
	Offset    int64
	Timer     time.Time // zero for a record; else Partition and Offset say nothing
	Key       string    // of the timer
	Err       error
}

func (i Skipped) String() string {
	if !i.Timer.IsZero() {
		return fmt.Sprintf("operator %q skipped a timer at %s of key %q: %v", i.Operator, i.Timer.UTC().Format(time.RFC3339Nano), i.Key, i.Err)
	}
	return fmt.Sprintf("operator %q skipped %s at offset %d: %v", i.Operator, i.Partition, i.Offset, i.Err)
}

// Collected says that garbage in the checkpoint store was deleted, or not.
type Collected struct {
	App     string
	Deleted int
	Err     error
}

func (i Collected) String() string {
	if i.Err != nil {
		return fmt.Sprintf("garbage collection: %d objects deleted, then: %v", i.Deleted, i.Err)
	}
	return fmt.Sprintf("garbage collection: %d objects deleted", i.Deleted)
}

// Merged says that segments in the store became fewer, or why they did not.
type Merged struct {
	App      string
	Segments int   // that were merged
	Pieces   int   // that they became
	Bytes    int64 // read
	Written  int64 // bytes
	Expired  int64 // entries whose time was over
	Took     time.Duration
	Err      error // it is tried again later
}

func (i Merged) String() string {
	if i.Err != nil {
		return fmt.Sprintf("merging %d segments: %v", i.Segments, i.Err)
	}
	return fmt.Sprintf("merged %d segments of %d bytes into %d of %d bytes in %v", i.Segments, i.Bytes, i.Pieces, i.Written, i.Took.Round(time.Microsecond))
}

// Followed says that an instance that stands by brought a checkpoint of the active one
// into its local store.
type Followed struct {
	App        string
	Checkpoint int64
	Attached   int // segments that came in
	Took       time.Duration
}

func (i Followed) String() string {
	return fmt.Sprintf("following checkpoint %d: %d segments in %v", i.Checkpoint, i.Attached, i.Took.Round(time.Microsecond))
}

// StateCopied tells how far the copy of restored state into the local store is, which
// goes on in the background while the state is in use already.
type StateCopied struct {
	App     string
	Objects int   // that are still read from the checkpoint store
	Bytes   int64 // copied
	Left    int64 // bytes to copy
	Done    bool
	Err     error // the last try failed; it is tried again
}

func (i StateCopied) String() string {
	if i.Err != nil {
		return fmt.Sprintf("copying state into the local store: %d of %d bytes: %v; trying again", i.Bytes, i.Bytes+i.Left, i.Err)
	}
	return fmt.Sprintf("copying state into the local store: %d of %d bytes", i.Bytes, i.Bytes+i.Left)
}

// Applied says that a write-ahead sink applied at its receiver what was committed.
type Applied struct {
	App        string
	Operator   string
	Checkpoint int64         // the newest of which everything is applied
	Logs       int           // how many checkpoints' logs were applied together
	Operations int64         // that were applied; others were at the receiver already
	PutAside   int64         // of these, that the receiver refused and that are kept as dead letters
	Bytes      int64         // of the logs
	Took       time.Duration // reading the logs and applying them
	Latency    time.Duration // from the making of the oldest of these checkpoints until it was applied
	Pending    int64         // bytes of logs that are committed and still to be applied
}

func (i Applied) String() string {
	return fmt.Sprintf("sink %q applied checkpoint %d: %d logs, %d operations, %d bytes in %v, %v after the checkpoint; %d bytes are pending",
		i.Operator, i.Checkpoint, i.Logs, i.Operations, i.Bytes, i.Took.Round(time.Microsecond), i.Latency.Round(time.Microsecond), i.Pending)
}

// Listener receives events. Nil functions are skipped.
type Listener struct {
	CheckpointBegun     func(CheckpointBegun)
	CheckpointPersisted func(CheckpointPersisted)
	CheckpointCommitted func(CheckpointCommitted)
	CheckpointFailed    func(CheckpointFailed)
	Restored            func(Restored)
	Restarting          func(Restarting)
	Rebalanced          func(Rebalanced)
	Fenced              func(Fenced)
	DeadLettered        func(DeadLettered)
	Skipped             func(Skipped)
	Collected           func(Collected)
	Merged              func(Merged)
	StateCopied         func(StateCopied)
	Followed            func(Followed)
	Applied             func(Applied)
}

// Tee returns a listener that calls each of ls in turn, with every function set.
func Tee(ls ...Listener) Listener {
	return Listener{
		CheckpointBegun:     tee(ls, func(l Listener) func(CheckpointBegun) { return l.CheckpointBegun }),
		CheckpointPersisted: tee(ls, func(l Listener) func(CheckpointPersisted) { return l.CheckpointPersisted }),
		CheckpointCommitted: tee(ls, func(l Listener) func(CheckpointCommitted) { return l.CheckpointCommitted }),
		CheckpointFailed:    tee(ls, func(l Listener) func(CheckpointFailed) { return l.CheckpointFailed }),
		Restored:            tee(ls, func(l Listener) func(Restored) { return l.Restored }),
		Restarting:          tee(ls, func(l Listener) func(Restarting) { return l.Restarting }),
		Rebalanced:          tee(ls, func(l Listener) func(Rebalanced) { return l.Rebalanced }),
		Fenced:              tee(ls, func(l Listener) func(Fenced) { return l.Fenced }),
		DeadLettered:        tee(ls, func(l Listener) func(DeadLettered) { return l.DeadLettered }),
		Skipped:             tee(ls, func(l Listener) func(Skipped) { return l.Skipped }),
		Collected:           tee(ls, func(l Listener) func(Collected) { return l.Collected }),
		Merged:              tee(ls, func(l Listener) func(Merged) { return l.Merged }),
		StateCopied:         tee(ls, func(l Listener) func(StateCopied) { return l.StateCopied }),
		Followed:            tee(ls, func(l Listener) func(Followed) { return l.Followed }),
		Applied:             tee(ls, func(l Listener) func(Applied) { return l.Applied }),
	}
}

func tee[I any](ls []Listener, pick func(Listener) func(I)) func(I) {
	var fs []func(I)
	for _, l := range ls {
		if f := pick(l); f != nil {
			fs = append(fs, f)
		}
	}
	return func(i I) {
		for _, f := range fs {
			f(i)
		}
	}
}
