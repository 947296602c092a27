// Package guard lets a test take out one of the guards that exactly-once stands
// on, to prove that the suite notices.
//
// A guard is a constant of type [Guard], listed in [All]. The code that is the
// guard asks [Broken] whether it is taken out. In an ordinary build Broken is the
// constant false and the question vanishes. Under the build tag "weirbroken" the
// environment variable WEIR_BREAK=NAME takes out that one guard. A binary built
// with that tag says so on standard error at start: it must never serve anybody.
package guard
