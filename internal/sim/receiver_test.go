package sim

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/sink"
)

// receiver is the database that the app's write-ahead sink writes to: a list for each
// account and a marker, which change in one step. It has a replica that lags: a failover
// takes the last steps back. It outlives every life of the app.
type receiver struct {
	mu    sync.Mutex
	steps []received // of which a failover may take back the last few
	most  int        // as many steps as there ever were
	lists map[string][]int64
	down  time.Time // until when it answers nobody
	lose  int       // so many answers get lost
	slow  time.Duration
}

// received is a log that was applied.
type received struct {
	before, marker int64
	values         []weir.KV[string, int64]
}

const (
	// keptLogs is how many logs the sink keeps after they were applied.
	keptLogs = 32
	// mostLost is how many steps failovers may take back, of all that there ever were.
	mostLost = 12
	// lookEvery is how often the sink looks whether the receiver lost something.
	lookEvery = time.Second
)

var (
	errDown     = errors.New("the receiver is down")
	errNoAnswer = errors.New("the receiver did not answer")
	errTail     = errors.New("the receiver lost its tail")
)

func newReceiver() *receiver { return &receiver{lists: map[string][]int64{}} }

// at returns the marker.
func (r *receiver) at() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.marker()
}

func (r *receiver) marker() int64 {
	if len(r.steps) == 0 {
		return 0
	}
	return r.steps[len(r.steps)-1].marker
}

// apply does what a log says, unless that was done. The marker moves in the same step, if
// it moves.
func (r *receiver) apply(l sink.Log, values []weir.KV[string, int64], move bool) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Now().Before(r.down) {
		return errDown
	}
	switch at := r.marker(); {
	case at >= l.Checkpoint:
		return nil
	case at < l.After:
		return errTail
	default:
		to := at
		if move {
			to = l.Checkpoint
		}
		r.steps = append(r.steps, received{at, to, values})
		r.most = max(r.most, len(r.steps))
		for _, v := range values {
			r.lists[v.Key] = append(r.lists[v.Key], v.Value)
		}
	}
	if r.lose > 0 {
		r.lose--
		return errNoAnswer
	}
	return nil
}

// failover makes the replica the primary, which lacks the last n steps.
func (r *receiver) failover(n int) (lost int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for ; lost < n && len(r.steps) > max(0, r.most-mostLost); lost++ {
		last := r.steps[len(r.steps)-1]
		r.steps = r.steps[:len(r.steps)-1]
		for _, v := range last.values {
			list := r.lists[v.Key]
			r.lists[v.Key] = list[:len(list)-1]
		}
	}
	return lost
}

// fault does what a step of a script says.
func (r *receiver) fault(s step) {
	if s.mode == "failover" {
		r.failover(s.n)
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	switch s.mode {
	case "down":
		r.down = time.Now().Add(s.dur)
	case "lose":
		r.lose = s.n
	case "slow":
		r.slow = s.dur
	}
}

func (r *receiver) heal() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.down, r.lose, r.slow = time.Time{}, 0, 0
}

func (r *receiver) latency() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.slow
}

// values returns what is in the receiver.
func (r *receiver) values() map[string][]int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return maps.Clone(r.lists)
}

// ahead is the write-ahead sink of a life.
type ahead struct{ l *life }

func (ahead) Check() error   { return nil }
func (ahead) String() string { return "the receiver" }

func (ahead) Open(sink.Env) (sink.Writer[weir.KV[string, int64]], error) { return &aheadWriter{}, nil }

func (s ahead) Applier(env sink.ApplierEnv) (sink.Applier, error) {
	return &applier{l: s.l, to: s.l.in.w.receiver, more: make(chan struct{}, 1), idle: make(chan struct{}, 1)}, nil
}

type aheadWriter struct{ values []weir.KV[string, int64] }

func (w *aheadWriter) Write(v weir.KV[string, int64]) error {
	w.values = append(w.values, v)
	return nil
}

func (w *aheadWriter) Log() ([]byte, error) {
	if len(w.values) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(w.values)
	w.values = nil
	return b, err
}

// applier applies logs in their order. It keeps the last ones, also in memory, for a
// receiver that loses its tail.
type applier struct {
	l    *life
	to   *receiver
	more chan struct{} // capacity 1: there is something to apply
	idle chan struct{} // capacity 1: all was applied

	mu   sync.Mutex
	logs []sink.Log // oldest first
	done int        // how many of them are applied
	last int64      // checkpoint that was heard of last
}

func poke(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Recover implements sink.Applier.
func (a *applier) Recover(ctx context.Context, restored int64, logs []sink.Log) error {
	at := a.to.at()
	if len(logs) > 0 && at < logs[0].After {
		return fmt.Errorf("%w: it is at %d, the logs begin after %d", errTail, at, logs[0].After)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.logs, a.last = slices.Clone(logs), restored
	a.rewind(at)
	return nil
}

// rewind begins behind what the receiver has. a.mu is held.
func (a *applier) rewind(at int64) {
	a.done = 0
	for a.done < len(a.logs) && a.logs[a.done].Checkpoint <= at {
		a.done++
	}
	poke(a.more)
}

// Committed implements sink.Applier.
func (a *applier) Committed(l sink.Log) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.last = l.Checkpoint
	if l.Bytes > 0 {
		a.logs = append(a.logs, l)
		poke(a.more)
	}
}

func (a *applier) next() (l sink.Log, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done == len(a.logs) {
		return l, false
	}
	return a.logs[a.done], true
}

// Run implements sink.Applier.
func (a *applier) Run(ctx context.Context) error {
	look := time.NewTicker(lookEvery)
	defer look.Stop()
	for {
		l, ok := a.next()
		if !ok {
			poke(a.idle)
			select {
			case <-a.more:
			case <-look.C:
				a.lookForLoss()
			case <-ctx.Done():
				return nil
			}
			continue
		}
		err := a.apply(ctx, l)
		switch {
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, errTail):
			a.mu.Lock()
			a.rewind(a.to.at())
			again := a.done < len(a.logs) && a.logs[a.done].Checkpoint < l.Checkpoint
			a.mu.Unlock()
			if !again {
				return err // nobody has what is missing
			}
		case errors.Is(err, errDown), errors.Is(err, errNoAnswer):
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
				return nil
			}
		case err != nil:
			return err
		default:
			a.mu.Lock()
			if a.done++; a.done > keptLogs {
				a.logs = slices.Delete(a.logs, 0, a.done-keptLogs)
				a.done = keptLogs
			}
			a.mu.Unlock()
		}
	}
}

func (a *applier) lookForLoss() {
	at := a.to.at()
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.done > 0 && at < a.logs[a.done-1].Checkpoint {
		a.rewind(at)
	}
}

func (a *applier) apply(ctx context.Context, l sink.Log) error {
	parts, err := l.Read(ctx)
	if err != nil {
		return err
	}
	var values []weir.KV[string, int64]
	for _, p := range parts {
		var vs []weir.KV[string, int64]
		if err := json.Unmarshal(p, &vs); err != nil {
			return err
		}
		values = append(values, vs...)
	}
	// It takes a while to get there; a process that is dead or stopped gets nowhere.
	if err := a.l.store.wait(ctx, a.to.latency(), false); err != nil {
		return err
	}
	if guard.Broken(guard.MarkerInScript) {
		if err := a.to.apply(l, values, false); err != nil {
			return err
		}
		if err := a.l.store.wait(ctx, a.to.latency(), false); err != nil {
			return err
		}
		values = nil
	}
	return a.to.apply(l, values, true)
}

// Drain implements sink.Applier.
func (a *applier) Drain(ctx context.Context) error {
	for {
		a.lookForLoss()
		if _, ok := a.next(); !ok {
			return nil
		}
		select {
		case <-a.idle:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// Keep implements sink.Applier.
func (a *applier) Keep() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.logs) == 0 {
		return a.last + 1
	}
	return a.logs[max(0, a.done-keptLogs)].Checkpoint
}

// Close implements sink.Applier.
func (a *applier) Close() error { return nil }
