// Package twophase writes a stream to receivers that have transactions of their own: a
// database with prepared transactions, another Kafka cluster, files that are renamed at
// commit. It is two-phase commit (Gray) in which the app's checkpoint is the coordinator's
// log.
//
// A user describes such a receiver as a [Participant]; [To] makes a sink of it. Package
// sink/file is one. The suite conformance.TwoPhase checks the participant's part of the
// contract.
//
// # Who calls what
//
// In an incarnation of the app the sink
//
//  1. makes the [Receiver] (Connect);
//  2. commits again every transaction that the restored checkpoint names (Commit);
//  3. rolls back everything else that was left at the receiver: lists it (Leftovers), makes
//     sure that no successor of this incarnation can have begun yet, and ends it (Abort).
//     None of this incarnation's own transactions is open yet;
//  4. begins a transaction with the first value of an epoch, on each subtask (Begin), and
//     writes to it (Write);
//  5. prepares it at the barrier (Prepare). The handle becomes part of the checkpoint, and
//     so is durable before the commit point. The next transaction may begin at once;
//  6. commits it after the commit point (Commit), in the order of the checkpoints. Every
//     checkpoint names the handle until that is done;
//  7. rolls back at its end what is open and not prepared (Rollback), and closes the
//     receiver (Close).
//
// Steps 2 and 3 wait for a receiver that is down, for as long as it takes, and so does
// step 6; while too much waits to be committed no more input is processed.
//
// # Why nothing is lost or doubled
//
// A handle is in a checkpoint that is committed, or nothing of its epoch is: then input is
// read again from before it, and the transaction is rolled back. The process may die at any
// instant after the commit point: the next one finds the handle in the checkpoint. A handle
// of a checkpoint that was given up is part of the next one.
//
// A process that was replaced and does not know it can do three things. It may commit what
// a checkpoint names: so may its successor, and Commit bears it. It may prepare more: no
// checkpoint will name that, and the next start rolls it back. And it may be about to roll
// back what it found: it asks Kafka first whether it was replaced, after it has made the
// list, so the list has nothing of a successor.
//
// A transaction that can no longer be committed is a loss that nobody can mend from here:
// [ErrGone] stops the app with a [GoneError], before anything behind it is committed. So each
// start finds it again, whatever the receiver remembers, until somebody accepts the loss.
package twophase
