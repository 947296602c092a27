// Package state holds keyed state: what an operator remembers for each key.
//
// An operator's setup declares handles ([Value]) on the [Scope] that the runtime
// gives it. A handle belongs to the current key: the subtask that owns the key
// sets it before it calls the handler, so a handle is used only from the handler
// that declared it, on that subtask's goroutine, while the handler runs.
//
// # Who drives it
//
// Package processor owns one [Keyspace] for each keyed subtask and calls, always
// from that subtask's goroutine:
//
//  1. [Keyspace.Restore] for every entry of the checkpoint in the subtask's
//     key-groups, before the first record;
//  2. [Keyspace.Use] before each record;
//  3. [Keyspace.Freeze] at each barrier, which encodes what changed since the last
//     one into a segment run.
//
// # Layers
//
// The in-memory backend keeps one typed table (live). Freeze encodes the dirty
// entries of the epoch into a run (frozen), which goes into the segment of the
// checkpoint; the committed segments are the store. There is no roll-back of the
// table: after a failed commit the incarnation ends and the next one is restored
// from the segments that the pointer names.
package state
