// Package pebble is the local store of keyed state: one for each process, shared by
// its subtasks.
//
// Its invariant: the store always equals the last committed checkpoint; everything
// newer is in memory, in the cache above it. So it needs no log, no memtable and no
// flush. And it needs no compaction of its own: a checkpoint is a chain of segments
// (package segment), which are Pebble tables, and the writer of checkpoints merges
// them anyway, size-tiered, to keep the chain short. The store is that chain. It takes
// part in a commit by a hard link to the new segment, and in a merge by a hard link to
// its result, and reads through Pebble's table readers, filters and block cache. A look
// for one key reads its block of data beside that cache where this is the only read
// (buffers.go).
//
// A Pebble database that ingests the segments was tried first, and does all that too.
// But it cannot put the result of a merge in the place of its inputs, below what came
// later; so it merges what it ingested a second time, by itself, level by level. At
// ten segments a second of 5,000 keys over ten million entries that took 16 µs of
// processor time for each key, at 50,000 keys it fell behind. BenchmarkIngest has what
// is left of it.
//
// What is on the disk is a directory of files, each a segment, named after the object
// that it is a copy or a link of, and its checksum. It says nothing about checkpoints:
// [Store.Attach] is told the chain, keeps the files that are in it, fetches those that
// are missing and removes the rest. So there is nothing to tear: a crash at any point
// leaves whole files, of which the next start uses what it can.
//
// The order in which it is used:
//
//  1. At start: [Open]; then [Store.Attach] with the checkpoint that the pointer
//     names.
//  2. Any number of goroutines call [Store.Get], [Store.Iter] and [Store.Snapshot].
//  3. After each commit the committer calls [Store.Ingest].
//  4. After a failed commit nothing is to be done: the store is still what it was.
//  5. [Store.Close].
//
// A file is linked where the checkpoint store is a directory on the same file system.
// Otherwise small segments are copied and large ones are read where they are at first,
// through the block cache, so that attaching costs time for each segment and not for
// each byte; one goroutine of the store, which [Open] starts and Close ends, copies
// them. [Store.Needs] names the objects that must not be deleted until then.
//
// Expired entries are dropped by the merging of segments, and are absent for who reads
// them before that.
package pebble
