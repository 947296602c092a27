// Package crashpoint names the instants at which a process may die between two
// durable steps, and kills it there when a test asks for it.
//
// A point is a constant of type [Point], listed in [All]. The code that owns the
// step calls [Hit] with it. In an ordinary build Hit is an empty function that the
// compiler removes. Under the build tag "crashpoint" the environment variable
// WEIR_CRASHPOINT=NAME or NAME:N arms one point: the N-th time (default 1) that
// it is hit, the process sends itself SIGKILL, so no deferred function, no buffer
// flush and no goroutine runs on.
//
// A durable step gets a new Point, the point gets into All, and the tests that
// walk All then kill there. [All] is checked against the calls of Hit in the
// source, so a point that nobody hits, or a call that nobody enumerates, fails.
package crashpoint
