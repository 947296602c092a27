// Package demo shows, on one machine and within a minute, that a word count that is
// killed again and again loses and doubles nothing.
//
// # Parts
//
//   - [Run]: the director. It starts an embedded broker, the feeder and the verifier
//     in this process, and then one worker process after the other.
//   - [Worker]: the word count, in a process of its own that is this program started
//     again. It stops when its standard input says so, and dies when its standard
//     input ends: a demo that is killed leaves no worker behind.
//   - text: the words, made from a seed. What should come out is counted from it
//     without any part of weir.
//   - feeder: writes the text, a share for each life of the worker, so that each has
//     something to do.
//   - verifier: a read_committed consumer that puts every output into a ledger.
//   - ledger: compares the outputs with what should come out.
//   - screen: one status line that is rewritten, or plain lines.
//
// # A run
//
//	director  starts a worker, releases a share of the text, waits for a random
//	          moment, kills; the verifier says when the first new output was there
//	...       the last worker gets the rest, and lives until every output was seen
//	          or nothing comes any more; it is stopped in an orderly way
//	verifier  reads to the end of the topic, so that what came too much is seen, too
//	director  makes the report
package demo
