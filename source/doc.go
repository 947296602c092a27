// Package source describes what a topology reads: a Kafka topic and how its
// records become values.
//
// A [Source] is a description; package processor polls the topic as a member of
// the app's consumer group and calls Decode on the source subtask that owns the
// record's partition, in offset order.
package source
