package admin

import (
	"context"
	"time"
)

// App is what the handler needs of an app. Its methods are called from many goroutines.
type App interface {
	// Status tells where the app stands.
	Status() Status
	// Savepoint takes a savepoint, and waits until it is complete. Errors that are an
	// *Error are answered with its code, others with 500.
	Savepoint(ctx context.Context, r SavepointRequest) (Savepoint, error)
}

// Status is where an app stands.
type Status struct {
	App      string `json:"app"`
	Instance string `json:"instance"`
	// State is one of: not started, starting, standby (another instance is active),
	// restoring, running, restarting, stopping, stopped.
	State string `json:"state"`
	// Checkpoint is the last one that this process knows to be committed; 0 if there is
	// none. CommittedAt is when that was, by this machine's clock or that of the one that
	// made it, and Age how long ago, in seconds.
	Checkpoint  int64      `json:"checkpoint"`
	CommittedAt *time.Time `json:"committedAt,omitempty"`
	Age         float64    `json:"ageSeconds,omitempty"`

	Parallelism int    `json:"parallelism"`
	KeyGroups   int    `json:"keyGroups"`
	Backend     string `json:"backend"` // memory or pebble
	Store       string `json:"store"`

	// Restarts is how often the app began anew inside its process.
	Restarts int `json:"restarts"`
	// Restored is how the state came at the last start; nil if it did not yet.
	Restored *Restored `json:"restored,omitempty"`
	// Sinks are the write-ahead sinks, as far as they tell how far they are.
	Sinks []Sink `json:"sinks,omitempty"`
}

// Sink is how far a write-ahead sink is with applying what is committed.
type Sink struct {
	Operator string `json:"operator"`
	// Applied is the newest checkpoint of which everything is applied; 0 if there is none, or
	// if it is not known yet. Latency is how long after its making that was, in seconds.
	Applied int64   `json:"applied"`
	Latency float64 `json:"latencySeconds"`
	// PendingCheckpoints are committed and not applied, PendingBytes is the size of their
	// logs, and PendingAge how long ago the oldest of them was made, in seconds.
	PendingCheckpoints int     `json:"pendingCheckpoints"`
	PendingBytes       int64   `json:"pendingBytes"`
	PendingAge         float64 `json:"pendingAgeSeconds"`
	// Error says why the receiver takes nothing at the moment.
	Error string `json:"error,omitempty"`
}

// Restored is how state came.
type Restored struct {
	Checkpoint int64   `json:"checkpoint"` // 0: empty
	How        string  `json:"how"`        // read into memory; or into a local store that was reused, caught up or rebuilt
	Segments   int     `json:"segments"`
	Entries    int64   `json:"entries"`
	Took       float64 `json:"seconds"`
}

// SavepointRequest asks for a savepoint.
type SavepointRequest struct {
	Name string `json:"name"`
	// To is the URL of the store to put it into; empty is the app's own.
	To string `json:"to,omitempty"`
	// Stop stops the app first, as a clean stop does.
	Stop bool `json:"stop,omitempty"`
}

// Savepoint is a savepoint that was made.
type Savepoint struct {
	Name    string    `json:"name"`
	Store   string    `json:"store"`
	Objects int       `json:"objects"`
	Bytes   int64     `json:"bytes"`
	Created time.Time `json:"created"`
}

// Error is an answer that is no success.
type Error struct {
	Code    int    `json:"code"` // HTTP status
	Message string `json:"error"`
	Err     error  `json:"-"` // on the server
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Err }

// Refuse makes err an answer with that code.
func Refuse(code int, err error) error { return &Error{Code: code, Message: err.Error(), Err: err} }
