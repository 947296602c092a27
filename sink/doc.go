// Package sink is the contract between the runtime and whatever a stream is
// written to.
//
// # Who drives it
//
// A [Sink] is a description made by the user. At build time the runtime calls
// Check. For each subtask whose chain ends in the sink it calls Open once (where streams
// are merged in front of the sink, once for each of them), before the first record, and then Write on the [Writer] for every value, from that
// subtask's goroutine.
//
// What a writer hands to [Output] becomes part of the Kafka transaction of the
// epoch in which Write was called, in the order of the calls: the runtime holds
// what belongs to the next epoch until the current one is committed. A writer
// never talks to the app's Kafka cluster by itself.
//
// A writer that talks to another receiver itself is a [Flusher]: at each barrier it is
// flushed before the barrier is acknowledged, so what was written in an epoch is there
// before the epoch is committed.
//
// # Write-ahead sinks
//
// [WriteAhead] is for receivers that must see nothing before the commit and nothing
// twice. In an incarnation the runtime
//
//  1. makes the sink's [Applier], then its writers;
//  2. gives the applier what the restored checkpoint holds (Recover), and runs it (Run);
//  3. at each barrier, on each subtask, asks the writer for its log ([Logger]), which
//     becomes part of the checkpoint;
//  4. when it makes the checkpoint, asks the applier which older logs must stay (Keep);
//  5. after the commit point hands the log to the applier (Committed);
//  6. hands no input to the subtasks while the applier has too much to do ([Throttler]), and
//     shows in the app's status how far it is ([Reporter]);
//  7. at a clean stop, after the last commit, waits until all is applied (Drain), and
//     closes the applier (Close).
//
// What was logged in a checkpoint that was given up is part of the next one.
package sink
