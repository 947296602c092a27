// Package keygroup maps an encoded key to the key-group that owns it.
//
// A key-group is the unit in which keyed state is owned, moved and restored. Its
// number is the hash that Kafka's default partitioner applies to a record key
// (murmur2 with Kafka's seed, sign bit cleared), modulo the app's key-group
// count. So a topic with that many partitions, written by any Kafka client with
// the default partitioner, has each key in the partition of the same number.
package keygroup
