package guard

// Guard names a rule whose absence loses or doubles data.
type Guard string

// The guards. Each comment says what the rule is.
const (
	// DurableBeforeCommit: segment and manifest are durable before TxnOffsetCommit.
	DurableBeforeCommit Guard = "durable-before-commit"
	// ReadBack: a commit with an unknown outcome is not believed; recovery reads the pointer.
	ReadBack Guard = "read-back"
	// BarrierPosition: the positions committed are those at the barrier, not those polled.
	BarrierPosition Guard = "barrier-position"
	// LostAfterMember: member and generation are read first, then the lost flag is checked.
	LostAfterMember Guard = "lost-after-member"
	// CommitRecord: every transaction contains an acknowledged commit record.
	CommitRecord Guard = "commit-record"
	// KnownPartitions: a transaction ends after the client took note of the partitions it produced to.
	KnownPartitions Guard = "known-partitions"
	// Checksum: what is read from the store is verified.
	Checksum Guard = "checksum"
	// ApplyAfterCommit: what a write-ahead sink logged is applied after the commit point.
	ApplyAfterCommit Guard = "apply-after-commit"
	// MarkerInScript: the marker of a Redis write-ahead sink moves in the same step as the data.
	MarkerInScript Guard = "marker-in-script"
	// MarkerInSlot: that marker is in the hash slot of the data.
	MarkerInSlot Guard = "marker-in-slot"
	// LateCapture: what comes after the snapshot and before the barrier of an unaligned checkpoint is part of it.
	LateCapture Guard = "late-capture"
	// ReplayFirst: records that were in flight are processed before new input.
	ReplayFirst Guard = "replay-first"
	// RouteByKeyGroup: records that were in flight go to the subtask that owns their key-group now.
	RouteByKeyGroup Guard = "route-by-key-group"
	// ReplayToAll: broadcast records that were in flight are heard by every subtask.
	ReplayToAll Guard = "replay-to-all"
	// LookupBeforeBarrier: records that wait for a look-up are complete before the barrier goes on.
	LookupBeforeBarrier Guard = "lookup-before-barrier"
	// TimeBehindLookup: a watermark stays behind the records before it that wait for a look-up.
	TimeBehindLookup Guard = "time-behind-lookup"
	// CapturedAgain: records that are in flight since the restore are part of the next unaligned checkpoint.
	CapturedAgain Guard = "captured-again"
	// KeyGroupTimes: event time of a key does not fall behind where it stood for its key-group.
	KeyGroupTimes Guard = "key-group-times"
	// Alignment: what comes behind a barrier waits until the barrier came on all inputs.
	Alignment Guard = "alignment"
	// HeldOutputs: outputs of the next epoch wait for the commit of this one.
	HeldOutputs Guard = "held-outputs"
	// CarryOver: changes of a checkpoint that was given up are part of the next one.
	CarryOver Guard = "carry-over"
	// FrozenValues: what a barrier froze is encoded before it is changed.
	FrozenValues Guard = "frozen-values"
	// IngestAfterCommit: the local store takes what is committed and nothing else.
	IngestAfterCommit Guard = "ingest-after-commit"
	// AskUpToEviction: a read of what was evicted asks all segments that were written before it was.
	AskUpToEviction Guard = "ask-up-to-eviction"
	// InUse: objects that a retained checkpoint refers to are not deleted.
	InUse Guard = "in-use"
	// NewestWins: of several segments with a key the newest one says its value.
	NewestWins Guard = "newest-wins"
	// Tombstones: a merge keeps tombstones as long as they hide something older.
	Tombstones Guard = "tombstones"
	// Timers: timers that are set are restored.
	Timers Guard = "timers"
	// Membership: offsets are committed with member and generation.
	Membership Guard = "membership"
	// SingleOwner: one member of the group owns all partitions.
	SingleOwner Guard = "single-owner"
	// SameMember: a member that the group gave another id has lost what it had.
	SameMember Guard = "same-member"
	// WholeAssignment: an instance begins when it was assigned all partitions that its checkpoint is about.
	WholeAssignment Guard = "whole-assignment"
)

// All lists every guard.
var All = []Guard{
	DurableBeforeCommit, ReadBack, BarrierPosition, LostAfterMember, CommitRecord, KnownPartitions, Checksum,
	ApplyAfterCommit, MarkerInScript, MarkerInSlot, LateCapture, ReplayFirst, RouteByKeyGroup, ReplayToAll,
	LookupBeforeBarrier, TimeBehindLookup,
	CapturedAgain, KeyGroupTimes, Alignment, HeldOutputs, CarryOver, FrozenValues, IngestAfterCommit, AskUpToEviction, InUse, NewestWins, Tombstones, Timers, Membership,
	SingleOwner, SameMember, WholeAssignment,
}
