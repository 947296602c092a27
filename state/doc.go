// Package state holds keyed state: what an operator remembers for each key.
//
// An operator's setup declares handles ([Value], [Map], [List], [Reducing],
// [Aggregating], [Broadcast], [EventTimers], [ProcessingTimers]) on the [Scope] that
// the runtime gives it. A handle belongs to the current key: the subtask that owns the
// key sets it before it calls the handler, so a handle is used only from the handler
// that declared it, on that subtask's goroutine, while the handler runs. A broadcast
// state belongs to no key; each subtask has all of it.
//
// # Who drives it
//
// Package processor owns one [Keyspace] for each keyed subtask and calls, always
// from that subtask's goroutine:
//
//  1. [Keyspace.Attach] for the scope of each operator, and [Keyspace.SetTime];
//  2. without a [Backing] [Keyspace.Restore] for every entry of the checkpoint in the
//     subtask's key-groups, and for every entry of a broadcast state; with one
//     [Keyspace.LoadBroadcast];
//  3. [Keyspace.SetTime] whenever a clock moves, [Keyspace.Use] before each record, or
//     [Keyspace.Find] for some records and [Keyspace.UseAt] before each; for a record
//     of a broadcast stream [Keyspace.Broadcasting] before and after instead;
//     After each, [Keyspace.Passed] says whether timers are to fire at once;
//  4. [Keyspace.Cut] at each barrier and then [Keyspace.Encode], between records, until
//     it is done: what changed since the last cut becomes a segment run;
//  5. with a backing [Keyspace.Evict], between records.
//
// [Keyspace.Err] is looked at after each handler. For tests of handlers, [Config].Watch and
// [Keyspace.Changed] find values that were changed in place and not set.
//
// # Layers
//
// A handle is a column: a typed table with a cell for each key of the keyspace. In
// [OfValue] the cell is the value; maps and lists have a group of entries there, each
// with marks of its own. What changed is dirty; a cut makes it frozen; it is encoded in
// slices, and always before it is changed again. The committed segments are the store.
// There is no roll-back: after a failed commit the incarnation ends and the next one
// begins with what the pointer names.
//
// Without a backing the tables are all there is. With one they are a cache over it:
// what is not in memory is unknown and read when it is needed, what is to be removed
// unread gets a tombstone, and what is dirty, frozen or encoded for a checkpoint that
// the backing does not have stays.
package state
