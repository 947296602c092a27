// Package sink is the contract between the runtime and whatever a stream is
// written to.
//
// # Who drives it
//
// A [Sink] is a description made by the user. At build time the runtime calls
// Check. For each subtask whose chain ends in the sink it calls Open once, before
// the first record, and then Write on the [Writer] for every value, from that
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
// [WriteAhead] is for receivers that must see nothing before the commit and nothing
// twice. The runtime of this build does not drive it yet: weir.To refuses such a sink.
package sink
