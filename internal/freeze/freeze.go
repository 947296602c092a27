// Package freeze says in what steps a subtask encodes the state that it froze for a
// checkpoint, for tests that stand outside of package processor: worlds of the simulator
// have so little state that one step would do for all of it.
package freeze

// Step is how many cells are encoded between two looks at the clock. It may be set before
// anything runs.
var Step = 256
