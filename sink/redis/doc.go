// Package redis writes a stream to Redis or Valkey, and looks up in it.
//
// It owns two sinks. [Upsert] is idempotent: it writes commands that may be repeated as
// they come, and has everything acknowledged at each barrier. [WriteAhead] takes any
// command, INCR and LPUSH included, and applies each once: the commands of an epoch are
// part of its checkpoint, and go to Redis after the commit.
//
// Who calls what, in order:
//
//  1. The user describes a sink with [Options] and a function that adds the commands of a
//     value to an [Upserts] or a [Batch]. Which arguments are keys is known of each
//     command, so a prefix can be added, and the hash slot of each command is known.
//  2. For each value the runtime calls Write of the subtask's writer, which collects the
//     commands in the form that a log has.
//  3. At a barrier the runtime calls Flush of an idempotent sink's writer, and waits until
//     Redis has acknowledged everything; or Log of a write-ahead sink's, whose bytes become
//     part of the checkpoint.
//  4. After the commit the applier of a write-ahead sink gets the log. It applies logs in
//     order, in batches; each is one script that moves a [Marker] in the same step.
//
// On a cluster a script sees the keys of one hash slot, so each slot is a lane of its own,
// with its own marker, whose name has a hash tag that puts it there.
//
// [Get], [HGet], [HGetAll], [HMGet] and [Read] are sources for weir.Lookup. They share
// nothing with the sinks but [Options] and the classes of errors.
package redis
