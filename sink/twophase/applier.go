package twophase

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"go.uber.org/zap"

	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/accept"
	"github.com/weirstream/weir/sink"
)

// applier commits what checkpoints name, in one incarnation.
type applier[T any] struct {
	to   Receiver[T]
	name string
	set  settings
	env  sink.ApplierEnv

	restored int64 // as Recover was told

	mu      sync.Mutex
	writers []*writer[T]
	queue   []sink.Log    // with handles to be committed, oldest first
	newest  int64         // checkpoint that was heard of last
	changed chan struct{} // closed and replaced when the queue got shorter
	arrived chan struct{} // capacity 1
	status  sink.Progress // Applied, Latency and Err of it
}

// Pauses before the receiver is tried again.
const (
	firstPause = 20 * time.Millisecond
	mostPause  = 2 * time.Second
)

// Recover implements [sink.Applier]. All that is named is committed when it returns. That
// comes first: what is gone stops the app while everything else is as it was found.
func (a *applier[T]) Recover(ctx context.Context, restored int64, logs []sink.Log) error {
	a.restored = restored
	a.mu.Lock()
	a.queue, a.newest = slices.Clone(logs), restored
	a.mu.Unlock()
	var named [][]byte
	for _, l := range logs {
		handles, err := read(ctx, l)
		if err != nil {
			return err
		}
		named = append(named, handles...)
	}
	for range logs {
		if err := a.commitNext(ctx); err != nil {
			return err
		}
	}
	if err := a.clear(ctx, named); err != nil {
		return err
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.Applied = restored
	return nil
}

// Finish implements [sink.Finisher]. What a checkpoint names that is committed was promised
// together with its outputs, which stay as well. Somebody chose this start, perhaps because
// it can't be committed: so nothing but a receiver that is away stands in its way.
func (a *applier[T]) Finish(ctx context.Context, logs []sink.Log) error {
	for _, l := range logs {
		handles, err := read(ctx, l)
		for _, h := range handles {
			if err := a.retry(ctx, func() error { return a.to.Commit(ctx, h) }); ctx.Err() != nil {
				return context.Cause(ctx)
			} else if err != nil {
				a.forsake(l, fmt.Errorf("transaction %s: %w", printable(h), err))
			}
		}
		if err != nil {
			a.forsake(l, err)
		}
	}
	return nil
}

func (a *applier[T]) forsake(l sink.Log, err error) {
	a.env.Logger().Warn("what was committed can't be committed at the receiver, and this start gives it up", zap.String("sink", a.env.Operator()), zap.Int64("checkpoint", l.Checkpoint), zap.Error(err))
}

// clear rolls back what was left at the receiver, but for what is named. The list must be
// older than the question whether this incarnation was replaced: what a successor begins
// or prepares is not in it then. A pause at any place does no harm.
func (a *applier[T]) clear(ctx context.Context, named [][]byte) error {
	var left [][]byte
	err := a.retry(ctx, func() (err error) {
		left, err = a.to.Leftovers(ctx, named)
		return err
	})
	if err != nil {
		return fmt.Errorf("finding out what was left at the receiver: %w", err)
	}
	if len(left) == 0 {
		return nil
	}
	if err := a.env.Confirm(ctx); err != nil {
		return &sink.Retriable{Err: err} // a restart finds out who is the active one
	}
	for _, l := range left {
		if err := a.retry(ctx, func() error { return a.to.Abort(ctx, l) }); err != nil {
			return fmt.Errorf("rolling back %s, which no checkpoint names: %w", printable(l), err)
		}
	}
	a.env.Logger().Info("rolled back what no checkpoint names", zap.String("sink", a.env.Operator()), zap.Int("transactions", len(left)))
	return nil
}

// read returns the handles of a log.
func read(ctx context.Context, l sink.Log) ([][]byte, error) {
	parts, err := l.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the log of checkpoint %d: %w", l.Checkpoint, err)
	}
	var handles [][]byte
	for _, p := range parts {
		h, err := handleOf(p)
		if err != nil {
			return nil, fmt.Errorf("reading the log of checkpoint %d: %w", l.Checkpoint, err)
		}
		handles = append(handles, h)
	}
	return handles, nil
}

// Committed implements [sink.Applier].
func (a *applier[T]) Committed(l sink.Log) {
	a.mu.Lock()
	a.newest = l.Checkpoint
	switch {
	case l.Bytes > 0:
		a.queue = append(a.queue, l)
	case len(a.queue) == 0:
		a.status.Applied = l.Checkpoint
	}
	a.mu.Unlock()
	select {
	case a.arrived <- struct{}{}:
	default:
	}
}

// Run implements [sink.Applier].
func (a *applier[T]) Run(ctx context.Context) error {
	for {
		a.mu.Lock()
		left := len(a.queue)
		a.mu.Unlock()
		if left == 0 {
			select {
			case <-a.arrived:
				continue
			case <-ctx.Done():
				return nil
			}
		}
		if err := a.commitNext(ctx); ctx.Err() != nil {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// commitNext commits the transactions of the oldest log in the queue.
func (a *applier[T]) commitNext(ctx context.Context) error {
	a.mu.Lock()
	l := a.queue[0]
	a.mu.Unlock()
	begun := time.Now()
	handles, err := read(ctx, l)
	if err != nil {
		return err
	}
	var gone []error
	for i, h := range handles {
		err := a.retry(ctx, func() error { return a.to.Commit(ctx, h) })
		switch {
		case errors.Is(err, ErrGone):
			g := &GoneError{Sink: a.env.Operator(), Receiver: a.name, Checkpoint: l.Checkpoint, AcceptAt: a.acceptAt(l), Handle: h, Err: err}
			if !accept.Given(acceptEnv, a.env.Operator(), g.AcceptAt) {
				// Nothing behind it is committed: a receiver may remember how far each writer
				// has come, as they commit in order, and would say at the next start that this
				// one is committed.
				g.Behind = len(handles) - i - 1
				return a.unlessReplaced(ctx, &sink.Fatal{Err: g})
			}
			gone = append(gone, g)
		case err != nil:
			return fmt.Errorf("committing transaction %s of checkpoint %d: %w", printable(h), l.Checkpoint, err)
		}
	}
	if err := errors.Join(gone...); err != nil {
		a.env.Logger().Warn("going on without transactions that are gone, as "+acceptEnv+" says", zap.String("sink", a.env.Operator()), zap.Error(err))
	}
	now := time.Now()
	a.mu.Lock()
	a.queue[0] = sink.Log{} // it may hold memory
	a.queue = a.queue[1:]
	a.status.Applied, a.status.Latency = l.Checkpoint, now.Sub(l.Created)
	pending := a.pending()
	close(a.changed)
	a.changed = make(chan struct{})
	a.mu.Unlock()
	a.env.Applied(event.Applied{
		Checkpoint: l.Checkpoint, Logs: 1, Operations: int64(len(handles) - len(gone)), Bytes: l.Bytes,
		Took: now.Sub(begun), Latency: now.Sub(l.Created), Pending: pending,
	})
	return nil
}

// acceptAt is the checkpoint at which the loss of what a log names may be accepted. Within its
// lineage the log's own id comes once; from a savepoint it would come at each start.
func (a *applier[T]) acceptAt(l sink.Log) int64 {
	if l.Lineage == a.env.Lineage() {
		return l.Checkpoint
	}
	return a.restored
}

// unlessReplaced returns an error that ends the app, or one that lets a process rejoin that was
// replaced: its successor committed or rolled back what it does not find any more.
func (a *applier[T]) unlessReplaced(ctx context.Context, err error) error {
	if replaced := a.env.Confirm(ctx); replaced != nil {
		return &sink.Retriable{Err: fmt.Errorf("%w; %v", replaced, err)}
	}
	return err
}

// retry calls f until it ends otherwise than with a [sink.Retriable] error, or ctx ends.
func (a *applier[T]) retry(ctx context.Context, f func() error) error {
	pause := backoff.NewExponentialBackOff()
	pause.InitialInterval, pause.MaxInterval = firstPause, mostPause
	for told := false; ; told = true {
		err := f()
		var again *sink.Retriable
		if err == nil || errors.Is(err, ErrGone) || !errors.As(err, &again) {
			a.note(nil)
			return err
		}
		a.note(err)
		if !told {
			a.env.Logger().Warn("the receiver can't be used; waiting", zap.String("sink", a.env.Operator()), zap.String("receiver", a.name), zap.Error(err))
		}
		timer := time.NewTimer(pause.NextBackOff())
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return context.Cause(ctx)
		}
	}
}

// note keeps why the receiver takes nothing, or nil.
func (a *applier[T]) note(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.Err = err
}

// Drain implements [sink.Applier].
func (a *applier[T]) Drain(ctx context.Context) error {
	return a.until(ctx, func(left int) bool { return left == 0 })
}

// Room implements [sink.Throttler].
func (a *applier[T]) Room(ctx context.Context) error {
	return a.until(ctx, func(left int) bool { return left < a.set.maxPending })
}

// until waits until the length of the queue is right.
func (a *applier[T]) until(ctx context.Context, right func(left int) bool) error {
	for {
		a.mu.Lock()
		left, changed, err := len(a.queue), a.changed, a.status.Err
		a.mu.Unlock()
		if right(left) {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("the transactions of %d checkpoints are not committed at the receiver: %w", left, context.Cause(ctx)), err)
		}
	}
}

// Keep implements [sink.Applier].
func (a *applier[T]) Keep() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) > 0 {
		return a.queue[0].Checkpoint
	}
	return a.newest + 1
}

// Progress implements [sink.Reporter].
func (a *applier[T]) Progress() sink.Progress {
	a.mu.Lock()
	defer a.mu.Unlock()
	p := a.status
	p.PendingCheckpoints, p.PendingBytes = len(a.queue), a.pending()
	if len(a.queue) > 0 {
		p.Oldest = a.queue[0].Created
	}
	return p
}

// pending is the bytes of the logs in the queue. It is called with mu held.
func (a *applier[T]) pending() (bytes int64) {
	for _, l := range a.queue {
		bytes += l.Bytes
	}
	return bytes
}

// rollbackTimeout bounds the rollback of a transaction that is open at the end.
const rollbackTimeout = 2 * time.Second

// Close implements [sink.Applier].
func (a *applier[T]) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), rollbackTimeout)
	defer cancel()
	for _, w := range a.writers {
		if w.open != nil {
			w.open.Rollback(ctx)
			w.open = nil
		}
	}
	return a.to.Close()
}

var _ interface {
	sink.Applier
	sink.Finisher
	sink.Throttler
	sink.Reporter
} = (*applier[int])(nil)
