// Package event tells the outside what a running app does: one Info struct for
// each kind of event, and a listener of optional functions.
//
// The runtime calls a listener's functions from its own goroutines, one event at
// a time for each goroutine. A function must return quickly, must not call into
// the app and must be safe for concurrent use. Metrics and tracing libraries are
// adapters over [Listener]; the core imports none.
package event
