// Package redis writes a stream to Redis or Valkey.
//
// It owns the idempotent sink, [Upsert]: commands that may be repeated are written as they
// come, and everything is acknowledged at each barrier.
//
// Who calls what, in order:
//
//  1. The user describes a sink with [Options] and a function that adds the commands of a
//     value to an [Upserts]. Which arguments are keys is known of each command, so a prefix
//     can be added, and the hash slot of each command is known.
//  2. For each value the runtime calls Write of the subtask's writer, which collects the
//     commands and hands full batches to a goroutine of its own.
//  3. At a barrier the runtime calls Flush, which waits until Redis has acknowledged
//     everything. A failure of Redis is reported there.
package redis
