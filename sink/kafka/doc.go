// Package kafka writes a stream to a Kafka topic as part of the app's transaction:
// a read_committed reader sees each result once, in per-key order.
//
// Records carry the timestamp of the input record that caused them, unless [Records] was
// given one with another, so a replay writes the same bytes. Partitions are chosen by the
// producer's partitioner: by default Kafka's hash of the key.
package kafka
