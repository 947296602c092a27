// Package lookup is what weir.Lookup asks: a [Source] that answers keys with values, from
// Redis, a database or another service.
//
// Who calls what, in order:
//
//  1. The user describes a source: with package sink/redis, with [Each] or [Batch] of a
//     function, or with a [Source] of its own. [Decode] turns its values into others.
//  2. At the start of each incarnation the runtime calls [Source.Open] once for each
//     operator, however many subtasks it has.
//  3. A subtask collects the keys of the records that come to it. When a batch is full, or
//     when it has nothing else to do, it has [Client.Fetch] called in a goroutine of its
//     own, and goes on. It has at most [InFlight] calls under way. Records leave it in the
//     order in which they came, each as soon as it and those before it are answered.
//  4. At a barrier a subtask completes the look-ups of all records that came before it.
//     So a checkpoint never holds a record that waits for an answer.
//  5. At the end of the incarnation [Client.Close] follows, when no Fetch runs any more.
//
// # What it has to do with exactly-once
//
// A look-up reads what is there when it reads. After a failure records since the last
// checkpoint are looked up again, and may find something else. What came of the first time
// was never committed, so results are still committed once, with state and positions, and
// all results of an epoch are those of one run. But they are no function of the input.
package lookup
