package redis

import (
	"context"
	"errors"
	"sync/atomic"
	"time"

	"github.com/weirstream/weir/sink"
)

// WriteAheadSink is a write-ahead sink; [WriteAhead] makes one.
type WriteAheadSink[T any] struct {
	opts Options
	set  settings
	f    func(b *Batch, v T)

	applier atomic.Pointer[applier] // of the newest incarnation
}

// WriteAhead makes a sink that applies the commands that f adds for each value once, any
// command that Redis runs in scripts. What is written in an epoch is part of its
// checkpoint, and goes to Redis after the commit, in order; see the package comment. So
// Redis shows what is committed, and nothing else, a moment later.
//
// On one server, or with Sentinel, all commands of a checkpoint are applied in the order of
// the subtasks, and of each subtask in the order in which they were written. On a cluster
// that holds for the commands of each hash slot.
func WriteAhead[T any](o Options, f func(b *Batch, v T), opts ...Option) *WriteAheadSink[T] {
	return &WriteAheadSink[T]{opts: o, set: newSettings(opts), f: f}
}

// Check implements [sink.Sink].
func (s *WriteAheadSink[T]) Check() error {
	errs := append([]error{s.opts.check()}, s.set.errs...)
	if s.f == nil {
		errs = append(errs, errors.New("redis: the function that turns a value into commands is nil"))
	}
	return errors.Join(errs...)
}

func (s *WriteAheadSink[T]) String() string { return s.opts.String() + ", write-ahead" }

// Applier implements [sink.WriteAhead].
func (s *WriteAheadSink[T]) Applier(env sink.ApplierEnv) (sink.Applier, error) {
	a := newApplier(s.opts, s.set, env)
	s.applier.Store(a)
	return a, nil
}

// Open implements [sink.Sink].
func (s *WriteAheadSink[T]) Open(env sink.Env) (sink.Writer[T], error) {
	a, ok := env.Applier().(*applier)
	if !ok {
		return nil, errors.New("redis: the runtime gives the write-ahead sink no applier")
	}
	w := &logWriter[T]{sink: s, env: env, applier: a}
	w.prefix, w.cluster = s.opts.Prefix, s.opts.Cluster
	return w, nil
}

// Status says how far a write-ahead sink is. Any goroutine may ask.
func (s *WriteAheadSink[T]) Status() Status {
	if a := s.applier.Load(); a != nil {
		return a.state()
	}
	return Status{}
}

// Status is how far a write-ahead sink is in one process.
type Status struct {
	PendingCheckpoints int           // committed, with commands that are not all applied
	PendingBytes       int64         // of their logs
	Oldest             time.Time     // when the oldest of them was made; zero if there is none
	Applied            int64         // the newest checkpoint of which everything is applied; 0: none, or not known yet
	Latency            time.Duration // from the making of that checkpoint until it was applied
	Commands           int64         // applied by this incarnation
	PutAside           int64         // of those, put on the list of dead letters
	KeptBytes          int64         // of logs that are applied and kept
	Err                error         // why Redis does not take commands at the moment
}

// logWriter is the writer of a subtask.
type logWriter[T any] struct {
	Batch
	sink    *WriteAheadSink[T]
	env     sink.Env
	applier *applier
}

// Write implements [sink.Writer].
func (w *logWriter[T]) Write(v T) error {
	if err := w.record(func() { w.sink.f(&w.Batch, v) }); err != nil {
		return w.sink.set.refused(err)
	}
	return nil
}

// Log implements [sink.Logger].
func (w *logWriter[T]) Log() ([]byte, error) {
	if w.count == 0 {
		return nil, nil
	}
	b := w.applier.baseFor(len(w.buf))
	part := appendPart(make([]byte, 0, len(w.buf)+64), b, w.buf, w.count)
	w.reset()
	return part, nil
}

var _ interface {
	sink.Sink[int]
	sink.WriteAhead
} = (*WriteAheadSink[int])(nil)

var _ interface {
	sink.Writer[int]
	sink.Logger
} = (*logWriter[int])(nil)

var _ interface {
	sink.Writer[int]
	sink.Flusher
} = (*upserter[int])(nil)

var _ interface {
	sink.Applier
	sink.Throttler
	sink.Reporter
} = (*applier)(nil)

// Room implements [sink.Throttler]: it returns when less is pending than the bound.
func (a *applier) Room(ctx context.Context) error {
	for a.pending.Load() > a.set.pendingBytes {
		a.mu.Lock()
		changed := a.changed
		a.mu.Unlock()
		if a.pending.Load() <= a.set.pendingBytes {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
