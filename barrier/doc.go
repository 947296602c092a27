// Package barrier decides when a checkpoint is taken, when a subtask may take its
// part of it, and what becomes of it. It holds three state machines and nothing
// else: no I/O, no clock, no goroutine, no lock. Events go in as method calls, what
// is to be done comes out as values, and the same events give the same values, so
// that every interleaving can be written down as a text file in testdata.
//
//   - [Aligner]: one per subtask that has inputs. It says which inputs must wait
//     for the barrier of the others, when the subtask takes its snapshot, and what
//     is captured where the snapshot is taken ahead of a barrier.
//   - [Trigger]: when the next checkpoint is due, by time, records, bytes or
//     because somebody asked.
//   - [Coordinator]: one per incarnation of a job. It owns the life of a checkpoint
//     from the barrier to the commit, counts failures, and ends the job: with
//     [Stopped] after a shutdown or when the input has ended, else with [Fail].
//
// Barrier decides, package checkpoint stores, package txn commits.
//
// # The life of a checkpoint
//
//	          Inject            Persist             Commit             Completed
//	(idle) ----------> Aligning ---------> Persisting --------> Committing -------> (idle)
//	                      |                    |                    |
//	                      | timeout            | timeout, error     | error
//	                      v                    v                    v
//	                   Cancel               Cancel                 Fail
//
// One checkpoint is in flight at a time. While checkpoint N is made durable and
// committed, epoch N+1 is processed already. After every Inject comes exactly one
// of Completed, Cancel or Fail for its id. After a Cancel the epoch stays open: the
// next checkpoint covers both, under a new id.
//
// # Contract for whoever drives an Aligner
//
//  1. All calls come from the goroutine of the subtask.
//  2. Ask Blocked before an input is read, and don't read it when it says true:
//     what lies behind the barrier belongs to the next epoch. An end of input lies
//     behind the barrier as well.
//  3. Hand over what was read in the order in which it lay in the input: Barrier
//     for a barrier, EndOfInput for the end. Cancel and Unalign may come from an
//     input or out of band, more than once, before or after the barrier that they
//     speak of.
//  4. Carry out an Effect before the next element is read, in this order:
//     Abandoned (forget whatever was kept for the checkpoint, such as the time at
//     which it began or what was captured), Snapshot (freeze the state, forward the
//     barrier on every output), Unblock (ask Blocked again for inputs that were set
//     aside), Captured (nothing more is captured), Done (flush, forward the end, and
//     report SubtaskFinished). In due course acknowledge to the coordinator: after
//     the Snapshot of an aligned checkpoint, after Captured for an unaligned one.
//  5. An error is a bug in whoever drives the Aligner or feeds it. The Aligner did
//     not change; the incarnation must roll back, because an epoch may be mixed.
//  6. A subtask that froze its state for a checkpoint and then hears that it was
//     cancelled joins the frozen part to the open epoch. The Aligner has no part in
//     that, its work for the id was over.
//
// For a checkpoint that is unaligned, which is one that is still pending after the
// Effect that held its Snapshot:
//
//  7. Each record that comes on an input while Capturing says true of it is kept with
//     the checkpoint, in the order of the input, and processed all the same: its
//     effects belong to the next epoch. What was received before and is not processed
//     yet counts as well, also what was set aside, and the rest of what is in work.
//  8. To get to the barriers soon, look ahead of what is processed on inputs of which
//     Capturing says true: capture what is found, and call Barrier for a barrier when
//     it is found; it is not to be handed over again when processing comes there. Don't
//     look behind the barrier of the checkpoint that is captured. Where instead of it
//     a newer one is found, call Cancel for the one that is captured, and leave the
//     newer one for when processing comes there. An end is not told ahead either.
//  9. Forwarded barriers of an unaligned checkpoint must not wait for anything that is
//     queued behind this subtask, or the point of it is lost.
//
// # Contract for whoever drives a Coordinator
//
//  1. All calls come from one goroutine. The time passed in never goes backwards.
//  2. After every call carry out the returned actions in order, then set one timer
//     to Next and call Tick when it fires. The returned slice is good until the
//     next call. Carrying out an action may take long (Persist, Commit): do it
//     elsewhere and report the outcome as an event; call nothing from within it.
//  3. Report with Observe what a source emitted, after it was emitted. Then a count
//     that is reported before an Inject is always in front of its barrier; one that
//     comes late costs at most a checkpoint too many. What changes state or outputs
//     without input (timers, a sink) is reported with MarkDirty.
//  4. Inject: every source cuts its position and emits the barrier. If Requests
//     holds Shutdown the sources emit nothing behind that barrier. Who waits for a
//     request that Requests lists is answered when this id is Completed; on Cancel
//     the same requests come again with the next Inject.
//  5. Unalign: call Unalign for this id on every Aligner. It may come there before
//     the barrier does.
//  6. Ack: a subtask has frozen its part for this id and the part can be
//     persisted. SubtaskFinished: the same for this and every later checkpoint, so
//     its last part must have been handed over before (see 4 of the Aligner). A
//     subtask that finished acknowledges nothing more.
//  7. Persist: make segment and manifest durable, then call Persisted, or
//     PersistFailed. Commit: only now may the commit be started; then call
//     Committed, or CommitFailed. CommitFailed also stands for "outcome unknown".
//  8. Cancel: the sources, the subtasks and a persist under way are told. What
//     subtasks froze for that id is part of the open epoch again. Results that come
//     in later are ignored here; whoever wrote objects for the cancelled id may
//     delete only those that carry that id, nothing that is shared.
//  9. Completed: the checkpoint is the last committed one. Tell the sinks, ingest,
//     answer the requests.
//  10. Fail: stop everything, drop everything since the last commit, recover by
//     read-back. This is the path that a crash takes. Stopped: everything that was
//     to be committed is; close. Requests made after the last Inject are answered
//     with the end of the job. After either of them every event is ignored.
//  11. The next incarnation starts at the LastID of this one: an id that was used,
//     committed or not, may name objects in the store.
//
// # Why a commit never times out here
//
// The timeout runs from Inject to Commit. A checkpoint that hangs in alignment or in
// the store can be given up: nothing of it is visible to anybody. Once Commit was
// handed out the transaction may have been decided at any instant, also when no
// answer came. Giving it up and committing the same epoch again under the next id
// would double it if it was decided. So its outcome alone ends it; package txn bounds
// how long that takes, and an unknown outcome is reported as CommitFailed and cleared
// up by read-back.
//
// # Aligned, unaligned, and one after the other
//
// An Aligner knows no mode: each checkpoint begins aligned and turns unaligned when
// somebody says so. The Coordinator says so at once (unaligned), after a while (aligned
// with a timeout) or never (aligned), for all subtasks; who sees the barrier of an
// unaligned checkpoint ahead of what is queued may say so as well. A savepoint and the
// last checkpoint before a shutdown stay aligned in any case: nothing is in flight in
// them, so they can be restored by a build whose edges changed.
package barrier
