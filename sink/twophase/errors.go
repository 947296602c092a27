package twophase

import (
	"fmt"
	"unicode/utf8"
)

// acceptEnv is the environment variable by which somebody takes it that transactions are
// gone.
const acceptEnv = "WEIR_TWOPHASE_ACCEPT"

// GoneError says that a transaction that a committed checkpoint names can't be committed.
// It stops the app.
type GoneError struct {
	Sink       string // operator ID
	Receiver   string
	Checkpoint int64
	Handle     []byte
	AcceptAt   int64 // checkpoint to accept the loss at: another one if the app starts from a savepoint
	Behind     int   // transactions of the checkpoint behind this one; none of them was tried
	Err        error // wraps [ErrGone]
}

func (e *GoneError) Error() string {
	behind := ""
	if e.Behind > 0 {
		behind = fmt.Sprintf("\n  %d more of that checkpoint were not tried: they may be gone as well", e.Behind)
	}
	return fmt.Sprintf("sink %q: transaction %s at %s, which checkpoint %d committed, can't be committed: %v%s\n  state, positions and outputs of that checkpoint are committed, and what the transaction held is not at the receiver\n  bring it back there (a backup, or by hand) and start again; or go on without it: %s=%s@%d",
		e.Sink, printable(e.Handle), e.Receiver, e.Checkpoint, e.Err, behind, acceptEnv, e.Sink, e.AcceptAt)
}

func (e *GoneError) Unwrap() error { return e.Err }

// printable is a handle for messages.
func printable(handle []byte) string {
	const most = 300 // bytes
	if len(handle) > most {
		return fmt.Sprintf("%x... (%d bytes)", handle[:most/2], len(handle))
	}
	if utf8.Valid(handle) {
		return fmt.Sprintf("%q", handle)
	}
	return fmt.Sprintf("%x", handle)
}
