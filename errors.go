package weir

import (
	"errors"

	"github.com/weirstream/weir/processor"
)

// HandlerError is a user function's error or panic: operator, topic, partition and
// offset; or the panic of a codec, and for which state and checkpoint it was called.
// [App.Run] returns it wrapped.
type HandlerError = processor.HandlerError

// UnappliedError says that a clean stop could not wait until a write-ahead sink had
// applied everything that is committed. [App.Run] returns it wrapped. Nothing is lost: the
// next start applies it.
type UnappliedError = processor.UnappliedError

// Skip makes the runtime drop the value that failed, and report its input record as an
// event. What the handler did before it returned counts, and so does what other operators do
// with the record, and other values that came of it.
func Skip(err error) error { return &processor.Skip{Err: cause(err)} }

// DeadLetter makes the runtime send the input record, as it was read and with
// headers that say where it came from and why, to the topic of [DeadLetters], in
// the transaction of its epoch, once for each of its values that fails. What the handler did
// before it returned counts. Without [DeadLetters], or for a timer and what it emitted, the
// app stops.
func DeadLetter(err error) error { return &processor.DeadLetter{Err: cause(err)} }

// Retry makes the app restart from its last checkpoint under the policy of
// [Restart]: for what may succeed the next time.
func Retry(err error) error { return &processor.Retriable{Err: cause(err)} }

func cause(err error) error {
	if err == nil {
		return errors.New("no reason given")
	}
	return err
}
