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
// never talks to Kafka by itself.
package sink
