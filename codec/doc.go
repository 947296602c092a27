// Package codec turns typed values into bytes and back, append-style and with a
// version.
//
// It owns the [Codec] contract and the codecs that most apps need. Sources and
// sinks use them for record keys and values, the state backends for state keys
// and values, key-by for the bytes that are hashed into a key-group.
//
// Who calls what, in order:
//
//  1. When an app is built, [Check] looks at every codec of the topology.
//  2. Name and Version of a codec of values go into each manifest beside the state that
//     they wrote, of one of keys or map keys the name alone. At restore another name is
//     refused; values of an older version are read by [DecodeVersion], those of a newer
//     one are refused. What a codec of keys writes must never change: nobody would notice.
//  3. Per record, Decode turns the bytes of a Kafka record into a value, which may
//     alias them, and Append writes results. A value that outlives its record,
//     because it goes into state, passes [Clone] first.
//
// The numbers are encoded as Kafka's Java serializers do it, so that topics can be
// shared with other clients and keys hash into the same partitions.
package codec
