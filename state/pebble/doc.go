// Package pebble is the local store of keyed state: one Pebble database for each
// process, shared by its subtasks.
//
// Its invariant: the store always equals the last committed checkpoint; everything
// newer is in memory, in the cache above it. So there is no write-ahead log and
// nothing is ever written key by key. Data comes in as committed segments (package
// segment), which Pebble ingests as they are: by hard link where the checkpoint store
// is a directory on the same file system, by copy where it is on another, and by
// reference where it is remote. It knows nothing of manifests or Kafka: who drives it
// says what the chain of segments is and where objects are.
//
// The store is a cache. What is in it can always be built again from the checkpoint
// store, so whenever its content is in doubt (torn, damaged, of another lineage) it is
// thrown away, never mended.
//
// Which checkpoint the store equals is its [ID]. It stands in the database itself,
// under a key of the key-group 0xFFFF, which state never uses, in a table of its own
// that goes in with the segment in one atomic ingestion: a crash at any point leaves
// ID and content together. A chain of several segments takes several ingestions; the
// store has no ID while they go on, and what a crash leaves of them is discarded by
// the next [Open].
//
// The order in which it is used:
//
//  1. At start: [Open]; then [Store.Attach] with the checkpoint that the pointer
//     names. It reuses the content, catches up, or builds it anew.
//  2. Any number of goroutines call [Store.Get] and [Store.Iter].
//  3. After each commit the committer calls [Store.Ingest].
//  4. After a failed commit nothing is to be done: the store is still what it was.
//  5. [Store.Close].
//
// Segments of a remote store are first read where they are, through the block cache,
// so that attaching costs time for each segment and not for each byte. In the
// background they are copied into the store; [Store.Needs] names those that must not
// be deleted until then.
//
// Expired entries are not dropped by the database, whose compactions cannot ask for
// the time. They vanish when segments are merged, and with that from each store that
// is built from the result.
package pebble
