// Package txn commits. It owns the one Kafka client of an incarnation, which is
// group member and transactional producer in one, and with it the fencing of
// zombies, the read-back of the committed offsets, and the commit point.
//
// It knows nothing of state, operators or sinks. It stores nothing: what a
// checkpoint is, and that it is durable, is its caller's business, and recovery is
// always a new [Session] that reads what is committed.
//
// # Contract for whoever drives a session
//
//  1. Once per process: [ValidateOptions] when the app is built, [Check] when it
//     starts, [EnsureCommitTopic] before the first session.
//  2. [Open]. The client joins the group and calls the [Handler], from its own
//     goroutines, one call at a time.
//  3. [Handler.Restore] is called with newly assigned partitions and what is committed
//     for them. Before that, the session ended what a predecessor with the same
//     transactional id left open, and waited until the offsets were decided. Where
//     nothing is committed, [LastCommitRecord] tells a new group from a forgotten one.
//     The partitions are fetched from when Restore has returned nil.
//  4. Poll with [Session.Client]. Skip control records after advancing past them;
//     surface OFFSET_OUT_OF_RANGE and unknown topics: nothing is reset silently.
//  5. [Session.Produce] what belongs to the current checkpoint, from any goroutine.
//     Outputs that belong after the barrier are the caller's to hold.
//  6. When the manifest is durable, one goroutine calls [Session.Commit] with the
//     positions at the barrier of every owned partition, and nobody calls Produce
//     meanwhile. When it returns nil the checkpoint is committed.
//  7. [Handler.Revoke] blocks until a last Commit that covers the partitions is done.
//     The committer must not be the goroutine that Revoke runs on.
//  8. [Handler.Lost] drops state and returns; nothing may be committed after it.
//  9. Any error of Commit, and anything that closes [Session.Failed], ends the session:
//     stop the committer, [Session.Close], restore from what is committed in a new
//     session. There is no way to go on with the old one, and no error is believed:
//     only the committed offsets tell what happened. [Error.Kind] says whether a new
//     session has a chance.
//  10. A clean stop is a last Commit, then [Session.Leave], so that others take over at
//     once, then Close. A restart of the same instance leaves out Leave and finds its
//     place again. [Session.Abort] before Close frees the readers of what was produced
//     and is not to be committed.
//
// # What fences whom
//
// Two processes with one instance id: the newer one's join fences the older one's
// membership, and its InitProducerId the older one's producer. A partition that
// moved to another instance: TxnOffsetCommit carries member and generation, and the
// group refuses it. A paused instance that has offsets staged for partitions that
// moved: after half a second the new owner fences it by the transactional id in the
// pointer. An instance that stands by can be fenced at any time, also long after it handed
// over ([Session.Fence]); so it takes its producer id only when it gets partitions.
package txn
