// Package checkpoint makes checkpoints durable, finds them again and clears away
// those that nobody needs.
//
// It owns the object store, the manifest, and which objects live and die. It does
// not decide when a checkpoint happens (package barrier) nor when it counts
// (package txn): it never talks to Kafka.
//
// What is in a store:
//
//	weir-store.json                                    whose store it is: app, key-groups
//	owner/<n>.json                                     in which consumer group on which Kafka cluster; the last one counts
//	ckpt/<checkpoint>-<incarnation>.manifest           one for each checkpoint
//	seg/<checkpoint>-<incarnation>.sst                 the changes of one checkpoint
//	log/<checkpoint>-<incarnation>-<n>.log             what a write-ahead sink is to do after it
//	seg/<checkpoint>-<incarnation>-m<n>.sst            a piece of several of them merged
//	inflight/<checkpoint>-<incarnation>.rec            records in flight of an unaligned one
//	savepoint/<name>/                                  a savepoint, complete in itself
//
// Objects are immutable and never overwritten. A [Manifest] names its segments,
// oldest first: their chain, which [Manifest.Levels] puts into levels. A small segment rides inline in its manifest, and
// later manifests refer to it there. Logs are treated alike, see logs.go.
//
// The order in which it is used:
//
//  1. At start: [OpenStore], [Probe], [Claim], [ClaimOwner]; and if a pointer names a checkpoint,
//     [Load] it and read its state with [Manifest.Scan], or segment by segment with
//     [ReadSegment].
//  2. Each incarnation has one [Writer], made by [NewWriter] on what was loaded.
//  3. At barrier N, the committer calls [Writer.Persist]: segment, logs, then manifest.
//     When it returns, they are durable and the reference can go into the pointer.
//  4. After the commit point it calls [Writer.Committed]. In the background the
//     writer then merges segments and deletes what fell out of retention.
//  5. [Writer.Close] ends the background work.
//
// Beside that, at any time: [Writer.Hold] and [CreateSavepoint]; the other functions
// on savepoints; [AdoptSavepoint] before NewWriter, to start from one; [Verify]; and
// [Collect], from another process.
//
// A Persist that fails, or one whose commit fails, loses nothing: the writer keeps
// the runs and the logs and puts them, oldest first, into the next one.
package checkpoint
