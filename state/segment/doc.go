// Package segment is the file format of state: an immutable, sorted set of state
// changes.
//
// It owns the encoding of frozen state into sorted runs, of runs into a segment,
// the merging of segments and the reading of them. It knows nothing of checkpoints,
// stores or Kafka, and starts no goroutine that outlives a call.
//
// A segment is a Pebble table (format [TableFormat], bytewise order), with every
// sequence number zero, so that Pebble can ingest the file as it is. A key is
//
//	[key-group uint16 BE][state id uint16 BE][user key]
//
// and carries a value, or is a tombstone that hides the key in older segments.
// Because key-groups come first, what one subtask owns is one range of the file,
// and so is what a restore wants.
//
// The order in which it is used:
//
//  1. In a freeze, the subtask feeds its [Builder]: BeginPut, KeyDone, ValueDone for
//     each dirty entry (the encoder appends right into the arena), BeginDelete and
//     DeleteDone for each removed one. Finish sorts and hands out a [Run].
//  2. The checkpoint writer turns the runs of all subtasks into one segment with
//     [Write], and gives their memory back with [Run.Release].
//  3. In the background, segments of the chain are merged with [MergeLevels], which
//     writes pieces of a wanted size that have no key in common.
//  4. A restore, or a reader of state that is not running, opens segments with
//     [Open] or, without having them in memory, with [OpenAt], and reads them, newest
//     over oldest, with [Scan] or, piece by piece, with [ScanLevels].
//
// Every block and the footer are checksummed; the checksum over the whole file is
// in [Info], is stored by whoever refers to the segment and is checked before
// Open parses anything.
package segment
