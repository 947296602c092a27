package twophase

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/weirstream/weir/sink"
)

// Sink writes to a [Participant]; [To] makes one.
type Sink[T any] struct {
	to  Participant[T]
	set settings
}

// To makes a sink that writes each value once, in transactions that are committed after
// the checkpoint that names them; see the package comment.
func To[T any](p Participant[T], opts ...Option) *Sink[T] {
	s := &Sink[T]{to: p, set: settings{maxPending: DefaultMaxPending}}
	for _, o := range opts {
		o.apply(&s.set)
	}
	return s
}

// Option changes a default of [To].
type Option interface{ apply(*settings) }

type option func(*settings)

func (f option) apply(s *settings) { f(s) }

type settings struct{ maxPending int }

// DefaultMaxPending is how many checkpoints may wait to be committed at the receiver.
const DefaultMaxPending = 8

// MaxPending sets how many checkpoints may wait to be committed at the receiver, because it
// is down or slow, before no more input is processed. Each of them is a prepared
// transaction for each subtask. The default is [DefaultMaxPending].
func MaxPending(checkpoints int) Option {
	return option(func(s *settings) { s.maxPending = checkpoints })
}

// Check implements [sink.Sink].
func (s *Sink[T]) Check() error {
	var errs []error
	if s.set.maxPending < 1 {
		errs = append(errs, fmt.Errorf("twophase: MaxPending is %d, the least is 1", s.set.maxPending))
	}
	if s.to == nil {
		return errors.Join(append(errs, errors.New("twophase: the participant is nil"))...)
	}
	return errors.Join(append(errs, s.to.Check())...)
}

func (s *Sink[T]) String() string {
	if s.to == nil {
		return "nothing"
	}
	return s.to.String()
}

// Applier implements [sink.WriteAhead].
func (s *Sink[T]) Applier(env sink.ApplierEnv) (sink.Applier, error) {
	r, err := s.to.Connect(Env{App: env.App(), Operator: env.Operator(), Instance: env.Instance(), Logger: env.Logger()})
	if err != nil {
		return nil, err
	}
	return &applier[T]{to: r, name: s.to.String(), set: s.set, env: env, changed: make(chan struct{}), arrived: make(chan struct{}, 1)}, nil
}

// Open implements [sink.Sink].
func (s *Sink[T]) Open(env sink.Env) (sink.Writer[T], error) {
	a, ok := env.Applier().(*applier[T])
	if !ok {
		return nil, errors.New("twophase: the runtime gives the sink no applier")
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	w := &writer[T]{a: a, env: env, number: len(a.writers)}
	a.writers = append(a.writers, w)
	return w, nil
}

// writer is that of a subtask.
type writer[T any] struct {
	a      *applier[T]
	env    sink.Env
	number int            // subtasks of several operators may have the same index
	open   Transaction[T] // nil: nothing was written since the last barrier
	handle []byte         // of what was prepared at this barrier
}

// Write implements [sink.Writer]. The transaction begins with the first value, which comes
// after Recover: so nothing that Recover finds is ours.
func (w *writer[T]) Write(v T) error {
	if w.open == nil {
		tx, err := w.a.to.Begin(w.env.Context(), w.number)
		if err != nil {
			return &sink.Outage{Err: fmt.Errorf("beginning a transaction: %w", err)}
		}
		w.open = tx
	}
	return w.open.Write(v)
}

// Flush implements [sink.Flusher].
func (w *writer[T]) Flush(ctx context.Context) error {
	if w.open == nil {
		return nil
	}
	handle, err := w.open.Prepare(ctx)
	if err != nil { // it is rolled back by Close
		err = fmt.Errorf("preparing a transaction: %w", err)
		if again := (*sink.Retriable)(nil); errors.As(err, &again) || ctx.Err() != nil {
			return err
		}
		return w.a.unlessReplaced(ctx, err)
	}
	w.open, w.handle = nil, handle
	return nil
}

// Log implements [sink.Logger].
func (w *writer[T]) Log() ([]byte, error) {
	if len(w.handle) == 0 {
		return nil, nil
	}
	part := appendPart(nil, w.handle)
	w.handle = nil
	return part, nil
}

// partVersion is the version of what a writer logs: the version as uvarint, and the handle.
const partVersion = 1

func appendPart(dst, handle []byte) []byte {
	return append(binary.AppendUvarint(dst, partVersion), handle...)
}

func handleOf(part []byte) ([]byte, error) {
	version, n := binary.Uvarint(part)
	switch {
	case n <= 0 || len(part) == n:
		return nil, fmt.Errorf("a logged transaction of %d bytes is none", len(part))
	case version != partVersion:
		return nil, fmt.Errorf("a transaction was logged in version %d, this build has version %d: run the build that wrote it, or the kind of sink if it was another one; then give this sink a new ID, and start with weir.AllowDroppedState for the old one", version, partVersion)
	}
	return part[n:], nil
}

var _ interface {
	sink.Sink[int]
	sink.WriteAhead
} = (*Sink[int])(nil)

var _ interface {
	sink.Writer[int]
	sink.Flusher
	sink.Logger
} = (*writer[int])(nil)
