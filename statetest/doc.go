// Package statetest holds tests of state as an app and an operator see it, from the
// broker to the checkpoint store and back: that backend, parallelism and the rhythm of
// checkpoints change nothing about results, that an app may be stopped, moved, rescaled
// and evolved, and what of that is possible through a checkpoint and what through a
// savepoint (docs/capabilities.md). It has no code of its own; everything goes through
// the public API, the embedded broker, and package offline.
package statetest
