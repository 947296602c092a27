package redis

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/weirstream/weir/sink"
)

// The applier keeps these rules. Each is there because breaking it loses or doubles
// operations.
//
//   - A batch is applied by one script, which does nothing unless the marker of its lane
//     says exactly what came before the batch, and which moves the marker in the same
//     step. So a batch may be sent any number of times, by anybody, at any time: a retry
//     with an unknown outcome, a restart and a process that was replaced repeat nothing.
//   - What a position in a lane means never changes: it is a number of operations in the
//     log of a committed checkpoint, which is immutable. How operations are cut into
//     batches is not part of it.
//   - A marker that is behind what was applied means that Redis lost its tail, and with it
//     the operations, since both are written in one step. The applier goes back to the
//     logs.
//   - While a batch is applied it is on the list of open ones, by a command before its first
//     and one behind its last. So a part of a batch that is done by itself, as Redis may do
//     at a start, is there to be seen, see [PartError]: what Redis did then it can't be kept
//     from.
//   - A log is given up only when a base is part of a later log that is kept: the base
//     says where each lane must be at least. A marker behind that is a loss that the logs
//     cannot mend.

// applier applies the logs of one sink in one incarnation.
type applier struct {
	opts   Options
	set    settings
	env    sink.ApplierEnv
	layout layout
	cl     goredis.UniversalClient

	// Run's, after Recover.
	restored int64
	restore  []sink.Log        // what Recover was given, until it was looked through
	planned  bool              // it was
	at       map[lane]position // what the marker of a lane is, or will be when all that was sent is applied
	recent   []lane            // written last, the newest first

	pending atomic.Int64 // bytes that were handed over and are not applied

	mu      sync.Mutex
	changed chan struct{} // closed and replaced when something was applied
	queue   []sink.Log    // to be applied, oldest first
	arrived chan struct{} // capacity 1
	base    base          // where the lanes are, when all logs before queue are applied
	based   bool          // base is known
	since   int64         // bytes that were logged since the base was logged
	kept    []keptLog     // all that the next checkpoint will have, oldest first
	bases   []loggedBase  // of applied logs, oldest first
	keep    int64
	status  Status
}

// keptLog is what is remembered of a log.
type keptLog struct {
	checkpoint int64
	bytes      int64
	applied    time.Time // zero: it is not, or nothing is known of it yet
}

// loggedBase is a base that can be read back: that of checkpoint, in the log of a later one.
type loggedBase struct{ checkpoint, in int64 }

func newApplier(o Options, set settings, env sink.ApplierEnv) *applier {
	return &applier{
		opts: o, set: set, env: env, layout: o.layout(), cl: o.client(),
		changed: make(chan struct{}), arrived: make(chan struct{}, 1),
	}
}

// recoverWait bounds how long Recover waits for Redis. After that the app starts without
// it, and Run goes on.
const recoverWait = 5 * time.Second

// Recover implements [sink.Applier]. It does not wait long for Redis: while that is down an
// app can start, and runs until too much is pending.
func (a *applier) Recover(ctx context.Context, restored int64, logs []sink.Log) error {
	a.restored, a.restore = restored, logs
	a.mu.Lock()
	for _, l := range logs {
		a.keeps(l)
	}
	a.mu.Unlock()
	within, cancel := context.WithTimeout(ctx, recoverWait)
	defer cancel()
	err := a.plan(within)
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case unavailable(err) || passing(err) || within.Err() != nil:
		a.env.Logger().Warn("Redis can't be reached; starting without it", zap.String("sink", a.env.Operator()), zap.Error(err))
		// The queue is not known yet. What is pending is at most all that is kept.
		return nil
	}
	return err
}

// Committed implements [sink.Applier].
func (a *applier) Committed(l sink.Log) {
	a.mu.Lock()
	a.keeps(l)
	a.queue = append(a.queue, l)
	a.pending.Add(l.Bytes)
	a.mu.Unlock()
	select {
	case a.arrived <- struct{}{}:
	default:
	}
}

// keeps notes a log that checkpoints will have.
func (a *applier) keeps(l sink.Log) {
	if l.Bytes > 0 {
		a.kept = append(a.kept, keptLog{checkpoint: l.Checkpoint, bytes: l.Bytes})
	}
}

// roundBytes bounds the logs that are read and decoded at once; one may be larger.
const roundBytes = 8 << 20

// Run implements [sink.Applier].
func (a *applier) Run(ctx context.Context) error {
	err := a.run(ctx)
	switch {
	case ctx.Err() != nil:
		return nil
	case lasting(err):
		return &sink.Fatal{Err: err}
	}
	// The next incarnation compares Redis and the logs anew. What is wrong with it then stops
	// the app.
	return err
}

// lasting tells whether an error of run is none that a restart mends, or finds again before
// the first record.
func lasting(err error) bool {
	var (
		command *CommandError
		answer  *serverError
		log     *LogError
	)
	return errors.As(err, &command) || errors.As(err, &answer) || errors.As(err, &log)
}

// run applies until it can't any more, and says why.
func (a *applier) run(ctx context.Context) error {
	again := a.patience()
	for !a.planned {
		err := a.plan(ctx)
		if err == nil {
			break
		}
		a.note(err)
		if err := again.again(ctx, err); err != nil {
			return err
		}
	}
	for {
		logs, err := a.next(ctx)
		if err != nil {
			return err
		}
		if err := a.apply(ctx, logs); err != nil {
			return err
		}
	}
}

func (a *applier) patience() *patience {
	return &patience{giveUp: a.set.giveUp, unreachable: a.set.unreachable, log: a.env.Logger(), sink: a.env.Operator()}
}

// next waits for logs and returns those to apply in one round. Meanwhile it looks whether
// Redis still has what it was given.
func (a *applier) next(ctx context.Context) ([]sink.Log, error) {
	for {
		a.mu.Lock()
		n, bytes := 0, int64(0)
		for n < len(a.queue) && (n == 0 || bytes+a.queue[n].Bytes <= roundBytes) {
			bytes += a.queue[n].Bytes
			n++
		}
		logs := a.queue[:n:n]
		a.mu.Unlock()
		if n > 0 {
			return logs, nil
		}
		timer := time.NewTimer(a.set.lookEvery)
		select {
		case <-a.arrived:
			timer.Stop()
		case <-timer.C:
			if err := a.look(ctx); err != nil {
				return nil, err
			}
		case <-ctx.Done():
			timer.Stop()
			return nil, context.Cause(ctx)
		}
	}
}

// mostRecent bounds the lanes that are looked at while there is nothing to do.
const mostRecent = 1024

// touch notes which lanes were written last.
func (a *applier) touch(batches []*batch) {
	seen := map[lane]bool{}
	var recent []lane
	add := func(n lane) {
		if !seen[n] && len(recent) < mostRecent {
			seen[n] = true
			recent = append(recent, n)
		}
	}
	for i := len(batches) - 1; i >= 0; i-- {
		add(batches[i].lane)
	}
	for _, n := range a.recent {
		add(n)
	}
	a.recent = recent
}

// look compares the markers of the lanes that were written last with what they should say,
// and looks for batches that were not ended: an app that has nothing to write would not
// notice otherwise that Redis lost its tail, or did a part of a batch twice. If Redis can't
// be reached it is asked again later.
func (a *applier) look(ctx context.Context) error {
	marks, err := a.marksOf(ctx, a.recent)
	if err == nil {
		err = a.openOf(ctx, a.recent)
	}
	if err != nil {
		if unavailable(err) || passing(err) {
			a.note(err)
			return nil
		}
		return err
	}
	a.note(nil)
	for _, n := range a.recent {
		if m := marks[n]; m.compare(a.at[n]) < 0 {
			return &tailError{a.env.Operator(), a.marker(n), m.position, a.at[n]}
		}
	}
	return nil
}

// applied notes that the oldest logs of the queue are applied: ends says where they left
// the lanes, found which bases they have.
func (a *applier) applied(logs []sink.Log, ends []map[lane]position, found []loggedBase) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for i, l := range logs {
		for n, p := range ends[i] {
			a.base.lanes[n] = p
		}
		a.base.checkpoint = l.Checkpoint
		a.queue[i] = sink.Log{} // a log that was just committed holds its memory
		a.pending.Add(-l.Bytes)
		a.status.Applied = l.Checkpoint
		a.status.Latency = time.Since(l.Created)
	}
	a.queue = a.queue[len(logs):]
	a.bases = append(a.bases, found...)
	a.stamp()
	a.trim()
	close(a.changed)
	a.changed = make(chan struct{})
}

// stamp notes when the logs up to the base were applied. Of those that were applied before
// the start it is not known: they count from the start.
func (a *applier) stamp() {
	now := a.set.now()
	for i := len(a.kept) - 1; i >= 0; i-- {
		l := &a.kept[i]
		if l.checkpoint > a.base.checkpoint {
			continue
		}
		if !l.applied.IsZero() {
			break // and so are those before it
		}
		l.applied = now
	}
}

// trim gives up logs that retention needs no more. Time counts from when a log was applied:
// what was applied a moment ago may be lost, however long ago it was made.
func (a *applier) trim() {
	var (
		newest time.Time // of applied
		after  int64     // bytes of the logs behind
	)
	droppable := int64(-1)
	for i := len(a.kept) - 1; i >= 0; i-- {
		l := a.kept[i]
		if newest.IsZero() {
			newest = l.applied
		}
		if after > a.set.keepBytes || !l.applied.IsZero() && newest.Sub(l.applied) > a.set.keep {
			droppable = min(l.checkpoint, a.base.checkpoint)
			break
		}
		after += l.bytes
	}
	for len(a.bases) > 0 && a.bases[0].checkpoint <= droppable {
		a.keep = a.bases[0].checkpoint + 1
		a.bases = a.bases[1:]
	}
	for len(a.kept) > 0 && a.kept[0].checkpoint < a.keep {
		a.kept = a.kept[1:]
	}
}

// Keep implements [sink.Applier].
func (a *applier) Keep() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.keep
}

// baseFor returns the base if the log to which n bytes are added is to have it: where that
// costs a quarter of the bytes logged since the last one at most.
func (a *applier) baseFor(n int) *base {
	const (
		share     = 4
		laneBytes = 12 // of a lane in a base
		fixBytes  = 24
	)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.since += int64(n)
	if !a.based || a.since < share*(fixBytes+laneBytes*int64(len(a.base.lanes))) {
		return nil
	}
	a.since = 0
	b := a.base.clone()
	return &b
}

// Drain implements [sink.Applier].
func (a *applier) Drain(ctx context.Context) error {
	for {
		a.mu.Lock()
		left, changed, err := len(a.queue), a.changed, a.status.Err
		done := left == 0 && a.based
		a.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("%d logs are not applied: %w", left, context.Cause(ctx)), err)
		}
	}
}

// state is what Status tells.
func (a *applier) state() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	s := a.status
	for _, l := range a.queue {
		if l.Bytes == 0 {
			continue
		}
		if s.PendingCheckpoints == 0 {
			s.Oldest = l.Created
		}
		s.PendingCheckpoints++
		s.PendingBytes += l.Bytes
	}
	for _, l := range a.kept {
		s.KeptBytes += l.bytes
	}
	s.KeptBytes -= s.PendingBytes
	return s
}

// note keeps why Redis takes nothing, or nil.
func (a *applier) note(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.Err = err
}

// count counts what was applied.
func (a *applier) count(commands, aside int64) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status.Commands += commands
	a.status.PutAside += aside
}

// counted returns what was counted so far.
func (a *applier) counted() Status {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.status
}

// Progress implements [sink.Reporter].
func (a *applier) Progress() sink.Progress {
	s := a.state()
	return sink.Progress{
		PendingCheckpoints: s.PendingCheckpoints, PendingBytes: s.PendingBytes, Oldest: s.Oldest,
		Applied: s.Applied, Latency: s.Latency, Err: s.Err,
	}
}

// Close implements [sink.Applier].
func (a *applier) Close() error { return a.cl.Close() }
