// Package weirtest is the test kit for apps: it runs a topology without Kafka, one step at
// a time, or against a broker that lives in the test's process.
//
// # Step by step
//
// [New] starts a topology under a [Harness]. Values go into its sources with [Input.Send],
// which returns when everything that follows from them has happened. The clock stands
// until [Harness.Advance] moves it. Nothing is committed until [Harness.Checkpoint] says
// so. The app can be killed, stopped, rescaled and upgraded anywhere in between. What it
// emits and what it remembers can be looked at after each step: [Out], [Value], [Map].
//
//	h := weirtest.New(t, Topology)
//	in := weirtest.In[Payment](h, "payments")
//	in.Send(Payment{"1", "alice", 500})
//	h.Checkpoint()
//	in.Send(Payment{"2", "alice", -200})
//	h.Crash() // back to the checkpoint, and on with what came after it
//	weirtest.Out[Balance](h, "balances").Want(Balance{"alice", 500}, Balance{"alice", 300})
//
// That is no second implementation of the runtime. Subtasks, key-groups, state, timers,
// watermarks, barriers, checkpoints and restores are those of a service; only Kafka and
// the goroutines are missing. One subtask after the other makes a step until none has
// anything to do. So a test gives the same result each time, and a handler runs on the
// test's goroutine. A stored value that a handler changes in place and does not set ends
// the app after that record, with a [state.ChangedError]: a service would lose the change
// or not, as it happens. Look-ups ask what the topology gives them, so give it something that
// answers in a test; they are complete when Send returns.
//
// What it does not have: sinks that write to something else than Kafka topics are not
// opened, and what they would have been given is what [Out] shows; a topic that the app
// writes and reads as well gives it only what the test sends; state is in memory; no
// checkpoint is taken by itself, and none is in flight while records are processed, so
// aligned and unaligned checkpoints are the same.
//
// # With a broker
//
// [StartBroker] starts an embedded broker, on which an app runs as it does in production:
// goroutines, transactions, a consumer group and all. It is slower, and records of
// different keys have no order.
//
// Package weirtest/conformance has suites for stores, sinks and codecs of your own.
//
// A Harness is used by one goroutine. Mistakes in its use, and whatever ends the app, fail
// the test at once; see [Harness.Fails].
package weirtest
