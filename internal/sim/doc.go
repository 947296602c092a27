// Package sim is a simulator: it runs whole apps against an embedded broker in virtual
// time, breaks everything around them at times that a seed decides, and holds what they
// did against an independent model. It has tests only.
//
// # A run
//
// A script (script_test.go) says all that is decided about a run: the size of the world,
// the options of each life of an instance, the input, and the faults, each with the time
// or the request at which it happens. generate makes the script of a seed. The world
// (world_test.go) plays it inside a testing/synctest bubble:
//
//  1. An embedded broker (kfake) with one to three nodes begins, and one to three
//     instances of the app of ledger_test.go, which move money between accounts. Each is
//     a real weir.App. A supervisor starts an instance again whenever it ended, each time
//     with other options: parallelism, backend, triggers, timeouts.
//  2. Input and faults happen as the script says (faults_test.go). An instance has a
//     network of its own (net_test.go), in which requests and answers can be lost, late
//     or held; a handle of its own on the store that all share (disk_test.go), whose
//     operations can fail, hang, or be done without anybody being told, and which is away
//     while local stores read what they have not copied yet; and a wall clock that may be set. The receiver of the app's write-ahead sink (receiver_test.go) can be
//     down, lose answers, and lose its tail in a failover; the vault of its two-phase sink
//     (vault_test.go) can be down, lose answers, and forget what is prepared, which is
//     brought back once an app stopped for it; the registry in which the app looks
//     something up (registry_test.go) can be slow, hang or fail. Rules come that every subtask
//     hears (rules_test.go). Partitions are added to the input, and what is committed of it is
//     deleted. The app moves (rehome_test.go): it is stopped with a savepoint, or killed and
//     one is made offline, and goes on from there, in its group without offsets, under
//     another name in another group and store, or with its operators renamed. The input is
//     deleted and made again, with commits under way; the app has to refuse to go on, until
//     the supervisor chooses to keep its state (weir.RecoverOffsets).
//  3. All faults end. The app has to be done with its input within a bound of virtual
//     time, then to process a little more as if nothing had been, and to stop cleanly.
//  4. The checkers (check_test.go) have their say.
//
// # What is checked
//
// State, as read offline from the checkpoint that the committed offsets name, every
// read_committed output, and what receiver and vault have, equal what a loop over the input
// gives; what was left in the vault is rolled back by the next start; entries of one sender keep their order within an account. Each alarm rang once,
// was called off once, or is still set and has its timer. Who never was active does not say
// at its stop that it lost a commit. Each subtask heard each rule once,
// no account was booked by an older rule than before, and broadcast state is that of the rules
// up to the positions. Savepoints equal a loop over the
// input up to their positions, that of a stop is of what was committed last, and what goes on
// from one begins at its positions. Of an input that was deleted, what was committed counts
// once, and no more. Queries were answered from checkpoints that were committed,
// and went forward. The commits, as the commit topic tells them, are one
// line: each checkpoint is made of the one that was committed before it, ids and positions
// only grow. So no two instances commit for the same key-groups. No life ends with an
// error that says that offsets, state and input don't fit together, that something is
// damaged or missing, or that there is a bug. No transaction is left open, and no
// goroutine.
//
// # How a process dies
//
// A process that is killed can't be taken out of the test's own process. Its world stops
// instead: its connections end, no new one is made, and its store does nothing more. What
// it had written into a connection before still gets to the broker; a put that was under
// way may have happened or not. Its goroutines run on until they notice, without effect on
// anything. The next life gets a copy of its local disk, which is in memory, as it was at
// that moment: with all that was written, as after kill -9, or without some or all of what
// was not synced, as when the power fails. A
// process that is stopped (SIGSTOP) and wakes later has its network, store, handlers and
// listeners held up; its timers run on, so it wakes to timeouts, and what it had sent
// arrives when it wakes.
//
// # What is deterministic
//
// A script is: a seed and a number of steps always give the same one. What comes of it is
// not wholly: which goroutine runs first in a bubble is up to the scheduler, the client and
// kfake choose at random in places, and instances name their checkpoints at random. Times
// are virtual, so most runs of a script are the same up to such choices. That is why
// -tries runs a script several times, and why a failure prints what happened. A world has
// one processor, which leaves less to chance and is twice as cheap; every fourth seed has
// all of them. GOMAXPROCS, if it is set, goes for all.
//
// # Running it
//
//	go test ./internal/sim -run 'TestSim$' -seed=1 -seeds=500 -steps=30
//
// A script that fails is shrunk first (shrink_test.go): faults are left out as long as it
// still fails. It is then printed with what happened, by time, and with the command that
// runs it again. -script=FILE runs a script from a file, -client=a puts the debug log of
// an instance's Kafka client into the history, -for bounds the time.
//
// RECORD.md tells what the simulator found, with the scripts in testdata/record that find
// it again. TestEveryGuardTakenOutIsFound takes out guards (package internal/guard) and
// demands that a seed notices. scenarios_test.go has scripts for scenarios, by their
// numbers; one may say which error it has to end with. A run of any length is
//
//	go test ./internal/sim -run TestS41 -timeout 0 -simulate=1000000s -seed=1 -progress=FILE
//
// # Runs that are given up
//
// A bubble's time passes when all its goroutines wait. One that waits for a mutex counts
// as being at work, so if the holder of the mutex waits for time to pass, both wait for
// ever. The Kafka client has such places. Real time never stands still, so such a run says
// nothing: it is given up and counted, and too many of them are a failure. If the mutex is
// one of this module the run fails.
//
// # What it leaves out
//
// kfake decides transactions at once, has no replication and keeps no log on disk: faults
// of brokers themselves are the matter of package integration. It also has a fault of its
// own that a world has to get around, see loosen. What alarms by event time
// ring is not held against watermarks.
package sim
