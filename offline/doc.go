// Package offline reads the state in checkpoints and savepoints, and makes savepoints,
// without running an app.
//
// It owns the view of stored state by operator and name: typed, with the codecs that
// the app uses, or untyped, with those that the registry in the manifest names. It
// talks to a store only, never to Kafka: which checkpoint is committed, the pointer in
// the committed offsets says, and [Open] takes its id. The command-line tool and
// tests use it.
//
// The order in which it is used:
//
//  1. [Open] finds a checkpoint or a savepoint; [OpenManifest] takes one that was
//     loaded already.
//  2. [Values], [Lists], [Maps], [Broadcast] and [Timers] read a state with the
//     user's codecs; [Get], [GetList] and [GetMap] read one key. [Snapshot.Rows] and
//     [Snapshot.Find] read any state with the built-in codecs. [Snapshot.Measure]
//     counts. [Diff] compares two snapshots.
//  3. [New] starts a savepoint from nothing and [Edit] one from a snapshot. What goes
//     in is sorted in files on the local disk, so it may be larger than memory;
//     [Builder.Write] merges it with the snapshot into the store.
//
// Everything is streamed: a scan holds a block or so of each segment that overlaps
// others at that key, and reads of a large segment only what it looks at. Blocks are
// checksummed one by one, and short segments are compared with the checksum in the
// manifest as a whole. checkpoint.Verify reads everything.
package offline
