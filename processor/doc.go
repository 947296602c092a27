// Package processor is the runtime: it turns a validated plan into subtasks and
// edges, drives records and barriers through them, and runs the life cycle of the
// job: start, restore, checkpoint, commit, restart, stop.
//
// # Parts
//
//   - [Plan]: the stages of a topology. A stage is a group of subtasks: [Sources] is
//     the first, each KeyBy is another ([KeyedStage]). Everything between two
//     stages is fused into nested typed calls.
//   - [Subtask]: one goroutine that runs a chain of operators. It owns its state,
//     its outgoing edges and its [output]; nothing of it is shared.
//   - edge (shuffle.go): typed batches over a bounded queue between two subtasks.
//     A subtask that runs out of empty batches waits: that is the backpressure.
//   - records in flight (inflight.go): what an unaligned checkpoint captures of edges,
//     and what a restore does with it.
//   - time (time.go): watermarks, and the timers that they and the clock make fire.
//   - gate: which epoch's outputs may go into the open transaction.
//   - incarnation: one life of the job, from the first assignment to the first
//     failure. Its loop is the only goroutine that drives barrier.Coordinator.
//   - [Job]: restarts incarnations under the restart policy.
//   - [Stepper]: drives one incarnation step by step without Kafka, for tests.
//
// # Goroutines of an incarnation
//
//	poller      polls the client, hands slices of records to the source subtasks
//	subtasks    one each; the source subtasks cut positions at a barrier
//	loop        drives the coordinator: barriers out, acknowledgements in
//	committer   makes a checkpoint durable, then commits it; one at a time
//	client      franz-go's own; they call Restore, Revoke and Lost
//
// They end in the opposite order: the incarnation's context is cancelled, the
// client is closed, and the incarnation waits for all of them.
//
// # Event time
//
// A batch carries where event time stands behind its records, and then perhaps a
// barrier. A keyed subtask processes the records, takes the least watermark of its
// inputs, fires the timers that it makes due, and only then passes it on; last comes
// the barrier. Timers of the wall clock fire between batches, or when an alarm wakes
// the subtask. A timer that fires counts as input for the coordinator: it makes the
// epoch one that is to be committed.
//
// A subtask may be given key-groups for which time had come further before a restore. It
// keeps that of each as a floor until its own watermark has passed them all. The time of a
// key is the later of the two; what goes on to the receivers is the watermark.
//
// # One checkpoint
//
//	loop       Inject{N}: every source subtask is told
//	subtask    flushes its open batches, freezes its state, forwards barrier N,
//	           counts its outputs to epoch N+1 from here on, acknowledges
//	loop       all acknowledged: Persist{N}
//	committer  segment and manifest durable
//	loop       Commit{N}
//	committer  commit record, offsets with pointer, EndTxn
//	loop       Completed{N}: the gate opens for N+1, subtasks release what they held
//
// If N is unaligned ([Config.Unaligned]), the loop says so to all keyed subtasks with the
// number of the checkpoint and a flag that they look at before each record. Then
//
//	subtask    freezes its state between two records and forwards barrier N, wherever
//	           it comes from, counts its outputs to epoch N+1, captures what is queued
//	           here (inflight.go)
//	subtask    captures what comes on each input in front of barrier N, and acknowledges
//	           when it came on all of them
//
// and a restore gives what was captured to whoever owns its key-groups, to be processed
// first.
//
// Only between two records a barrier can be cut. So where checkpoints may be unaligned no
// subtask waits in the midst of a record: neither for room on its edges, which it overdraws,
// nor for the commit of a checkpoint that it has not acknowledged itself.
package processor
