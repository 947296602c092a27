package processor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"

	"github.com/weirstream/weir/barrier"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
	"github.com/weirstream/weir/state/segment"
	"github.com/weirstream/weir/txn"
)

// incarnation is one life of a job: one client, one restore, subtasks that run
// until something fails or the job stops. It is never reused.
type incarnation struct {
	cfg   *Config
	plan  *Plan
	ends  map[offsets.Partition]int64 // drain up to here; nil: never
	owner *checkpoint.Ownership       // of the store

	local   *pebble.Store // nil: state is in memory
	localAt pebble.ID     // what local equals; the committer's once subtasks run
	// Set before opened is closed: ends follow, which then closes followed.
	stopFollowing context.CancelFunc
	followed      chan struct{}
	ingested      atomic.Int64 // newest checkpoint in local

	ctx    context.Context // of everything that runs in the incarnation
	cancel context.CancelCauseFunc
	group  sync.WaitGroup

	spawning sync.Mutex
	ended    bool // spawn starts nothing any more; guarded by spawning

	sess      *txn.Session
	to        producer      // the transaction: sess, but where the incarnation is stepped
	stepped   bool          // by a Stepper: no subtask has a goroutine, and none may wait for another
	opened    chan struct{} // closed when sess is set; the client's hooks may be earlier
	events    chan any      // acks and outcomes for the loop
	observedC chan struct{} // capacity 1: input was processed
	drainedC  chan struct{} // closed when every partition reached its end
	started   chan struct{} // closed when the subtasks run
	commits   chan commitJob

	restore restoring // guarded by the client: its hooks never overlap

	// Set by start, before started is closed.
	writer  *checkpoint.Writer
	points  *checkpoint.Points // for queries; nil if there is a local store
	taken   taken              // by the local store
	gate    *gate
	runners []runner
	sources []*sourceRunner
	base    checkpoint.Manifest // what was restored
	states  []checkpoint.StateInfo

	nonce    uint32           // of the checkpoints to come, see offsets.ManifestRef
	lineage  string           // likewise
	keepNone map[string]int64 // sinks whose logs are dropped, as allowed
	appliers []applier        // of write-ahead sinks, in the order of the plan

	clients map[string]io.Closer // of look-ups, by operator ID; guarded by mu

	mu    sync.RWMutex
	parts map[offsets.Partition]*partition

	// The appliers that the status asks. It must not wait for mu, which is held while things
	// are opened and closed that may hang.
	shownMu sync.Mutex
	shown   []applier

	clock clock.Clock
	watch watch // runs while the poller waits

	head          atomic.Pointer[offsets.ManifestRef] // newest committed checkpoint, nil for none
	committed     atomic.Int64                        // its id, or that of what was used before
	outcome       committed                           // of the last commit; the committer's until it has ended
	records       atomic.Int64                        // processed since the loop looked last
	bytes         atomic.Int64
	quiet         atomic.Bool  // the loop waits for the first record of an epoch
	touched       atomic.Bool  // timers fired since the loop looked last
	processing    atomic.Int64 // source subtasks that process records not counted yet
	inputEnded    atomic.Bool  // the input was drained
	undrained     atomic.Int64
	handedOver    chan struct{} // closed when the checkpoint for a revoke is committed
	revokeStarted atomic.Bool
	memoryAsked   atomic.Bool // a checkpoint was asked for to free memory

	over      atomic.Bool  // the incarnation ends: no subtask begins another record
	unaligned atomic.Int64 // newest checkpoint that is to be unaligned
	givenUp   atomic.Int64 // newest checkpoint that was given up

	owed   atomic.Pointer[UnappliedError] // by a sink, before the incarnation has started
	member string                         // of the group, where a failed incarnation left its place; "": nowhere

	// For Status.
	last     atomic.Pointer[commitInfo]
	restored atomic.Pointer[event.Restored]
	duty     atomic.Int32

	// Used while the plan is built.
	shuffles map[string]any
	senders  map[string][]string // to a stage, by its ID

	upstream map[string][]*Subtask // by stage: all in front of it
	spaces   []ownedSpace
	subtasks []*Subtask
}

// ownedSpace is a keyspace with the key-groups [lo, hi) that its subtask owns.
type ownedSpace struct {
	stage  string
	lo, hi int
	space  state.Space
}

// ack is a subtask's part of a checkpoint.
type ack struct {
	subtask   int
	id        int64
	run       segment.Run
	hasRun    bool
	positions []position
	held      time.Duration             // the longest time that the subtask was held for it
	records   int64                     // input since the barrier before
	stage     string                    // of a keyed subtask
	watermark int64                     // of a keyed subtask, at the barrier
	times     []checkpoint.KeyGroupTime // likewise, of its key-groups
	fired     int64                     // up to where its timers had fired, if it was between two
	firing    bool
	logs      []checkpoint.LogPart
	unaligned bool // it did not wait for the barrier on all inputs
	inFlight  []checkpoint.InFlightData
	abandoned bool // only run and logs count: what was in flight was not captured to the end
}

// Outcomes that the committer reports to the loop.
type (
	persisted struct {
		id    int64
		cut   cutting
		ref   offsets.ManifestRef
		stats checkpoint.Stats
		took  time.Duration
		err   error
	}
	committed struct {
		id   int64
		took time.Duration
		err  error
	}
	revoke     struct{}
	memoryFull struct{}
)

// commitJob is work for the committer: make a checkpoint durable, or commit it.
type commitJob struct {
	ctx      context.Context
	cancel   context.CancelFunc // of a snapshot's: called when it is durable, or failed to be
	snapshot *checkpoint.Snapshot
	cut      cutting // of the snapshot
	commit   *txn.Commit
	id       int64
}

// cutting is how a checkpoint was cut. It goes with the checkpoint: one that was given up may
// be durable late, when the next one is being cut.
type cutting struct {
	aligned   time.Duration // after the barriers were injected
	held      time.Duration // the longest time that a subtask was held for it
	unaligned bool          // a subtask did not wait for the barrier on all its inputs
}

// commitQueue is how many jobs may wait behind the persist of a checkpoint that was
// given up while a store hangs. Tolerable failures end it long before.
const commitQueue = 64

func newIncarnation(ctx context.Context, cfg *Config, plan *Plan, local *pebble.Store, ends map[offsets.Partition]int64) *incarnation {
	inc := &incarnation{
		cfg: cfg, plan: plan, local: local, ends: ends,
		opened:     make(chan struct{}),
		events:     make(chan any, 64),
		observedC:  make(chan struct{}, 1),
		drainedC:   make(chan struct{}),
		started:    make(chan struct{}),
		commits:    make(chan commitJob, commitQueue),
		parts:      map[offsets.Partition]*partition{},
		handedOver: make(chan struct{}),
		shuffles:   map[string]any{},
		senders:    map[string][]string{},
		clock:      cfg.Clock,
	}
	if inc.clock == nil {
		inc.clock = clock.System
	}
	inc.watch.clock = inc.clock
	// The incarnation outlives the stop request by its last checkpoint.
	inc.ctx, inc.cancel = context.WithCancelCause(context.WithoutCancel(ctx))
	return inc
}

// run lives until the job is stopped (nil), the partitions were handed over
// (errHandedOver) or something failed.
func (inc *incarnation) run(stop context.Context) (err error) {
	inc.sess, err = txn.Open(inc.ctx, inc.sessionConfig(), inc)
	if err != nil {
		inc.cancel(err)
		return err
	}
	inc.to = inc.sess
	following, stopFollowing := context.WithCancel(inc.ctx)
	defer stopFollowing()
	inc.stopFollowing = stopFollowing
	inc.followed = make(chan struct{})
	if inc.local == nil {
		close(inc.followed)
	} else {
		inc.group.Go(func() {
			defer close(inc.followed)
			inc.follow(following)
		})
	}
	close(inc.opened)
	pollCtx, stopPolling := context.WithCancel(inc.ctx)
	inc.spawn(func() error { return inc.poll(pollCtx) })
	inc.spawn(func() error { return inc.watchInputs(pollCtx) })
	err = inc.live(stop, stopPolling)
	err = inc.overtakenAtWork(inc.twin(inc.reason(err)))
	inc.cancel(err)
	stopPolling()
	if killed := errors.Is(context.Cause(inc.ctx), ErrKilled); killed {
		err = ErrKilled
	} else {
		inc.abort()
		if err == nil || isFatal(err) || stop.Err() != nil {
			inc.leave()
		} else if !inc.thrownOut() {
			inc.member, _ = inc.sess.Client().GroupMetadata()
		}
	}
	inc.sess.Close()
	inc.dispose()
	return inc.withOutcome(err)
}

// dispose waits for the goroutines of an incarnation that was cancelled, and gives back what
// it holds beside the session. What the store is stuck with may never end: reads are left when
// their context ends, and the rest after closeTimeout, see [checkpoint.Writer.Close].
func (inc *incarnation) dispose() {
	inc.end()
	inc.group.Wait()
	if inc.points != nil {
		inc.points.Close()
	}
	if inc.writer != nil {
		ctx, cancel := context.WithTimeout(context.Background(), closeTimeout)
		if err := inc.writer.Close(ctx); err != nil {
			inc.cfg.Logger.Sugar().Warn(err)
		}
		cancel()
	}
	inc.closeAppliers()
	inc.closeClients()
}

// live waits for the first assignment and then drives checkpoints.
func (inc *incarnation) live(stop context.Context, stopPolling func()) error {
	select {
	case <-inc.started:
	case <-inc.sess.Failed():
		return inc.sess.Err()
	case <-inc.ctx.Done():
		return context.Cause(inc.ctx)
	case <-stop.Done():
		owed := inc.owed.Load() // that of now, if it has not started by then
		if inc.hasStarted() {
			break // at the same time: there is something to end
		}
		// Not a stop while state is half loaded: the loading is cancelled by Close.
		if owed != nil {
			return owed
		}
		return nil
	}
	return inc.loop(stop, stopPolling)
}

// hasStarted tells whether the subtasks run. Any goroutine may call it.
func (inc *incarnation) hasStarted() bool {
	select {
	case <-inc.started:
		return true
	default:
		return false
	}
}

// leave tells the group that this instance goes, so that a standby takes over at
// once, and offsets can be reset. Failing that, they wait for the session timeout. Who
// was thrown out has nothing to leave: its place may be another's.
func (inc *incarnation) leave() {
	if inc.thrownOut() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := inc.sess.Leave(ctx); err != nil {
		inc.cfg.Logger.Sugar().Warnf("leaving the consumer group: %v", err)
	}
}

// leaveLate is leave for an incarnation that failed, was closed, and is not followed by
// another one after all.
func (inc *incarnation) leaveLate() {
	if inc.member == "" {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	if err := txn.Leave(ctx, inc.sessionConfig(), inc.member); err != nil {
		inc.cfg.Logger.Sugar().Warnf("leaving the consumer group: %v", err)
	}
}

func (inc *incarnation) thrownOut() bool {
	var te *txn.Error
	return errors.As(inc.sess.Err(), &te) && (te.Kind == txn.Fenced || te.Kind == txn.Lost)
}

// abort ends the transaction that is open, where [txn.Session.Abort] may, so that it does
// not hold up readers until the next start. What can't be aborted in time stays open
// until then, or until the broker's timeout.
func (inc *incarnation) abort() {
	ctx, cancel := context.WithTimeout(context.Background(), abortTimeout)
	defer cancel()
	done := make(chan struct{})
	inc.end()
	go func() {
		inc.group.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		return // a subtask waits for the client, which only Close ends
	}
	if err := inc.sess.Abort(ctx); err != nil {
		inc.cfg.Logger.Sugar().Warnf("leaving a transaction open: %v", err)
	}
}

// abortTimeout bounds the end of a transaction that is not to be committed.
const abortTimeout = 2 * time.Second

// leaveTimeout bounds the farewell to the group coordinator.
const leaveTimeout = 5 * time.Second

// closeTimeout bounds the wait for a store that is deaf to the end of contexts.
const closeTimeout = 5 * time.Second

// reason is why the incarnation ended, if err only follows from that: what fails ends the
// commit that is under way, and the loop may hear of that first.
func (inc *incarnation) reason(err error) error {
	if te, ok := err.(*txn.Error); ok && errors.Is(te, context.Canceled) && inc.ctx.Err() != nil {
		return context.Cause(inc.ctx)
	}
	return err
}

// twin makes err fatal if it says that this process was fenced and another one holds
// its instance id: a restart would fence that one in turn, for ever. A process that
// was fenced for having been silent too long finds its id free.
func (inc *incarnation) twin(err error) error {
	var te *txn.Error
	if !errors.As(err, &te) || te.Kind != txn.Fenced {
		return err
	}
	if errors.Is(err, kerr.FencedInstanceID) {
		return fatal(err)
	}
	member, _ := inc.sess.Client().GroupMetadata()
	ctx, cancel := context.WithTimeout(inc.ctx, leaveTimeout)
	defer cancel()
	gs, derr := kadm.NewClient(inc.sess.Client()).DescribeGroups(ctx, inc.cfg.Group)
	if derr != nil {
		return err // a restart finds out
	}
	for _, m := range gs[inc.cfg.Group].Members {
		if m.InstanceID != nil && *m.InstanceID == inc.cfg.Instance && m.MemberID != member {
			return fatal(err)
		}
	}
	return err
}

// end keeps spawn from starting anything: a restore may be about to, while the first of what
// it started has failed already, and who waits for all of it would miss the rest.
func (inc *incarnation) end() {
	inc.spawning.Lock()
	defer inc.spawning.Unlock()
	inc.ended = true
}

// spawn runs f in a goroutine of the incarnation, unless that has ended; its error ends the
// incarnation.
func (inc *incarnation) spawn(f func() error) {
	inc.spawning.Lock()
	defer inc.spawning.Unlock()
	if inc.ended {
		return
	}
	inc.group.Go(func() {
		if err := f(); err != nil {
			inc.cancel(err)
		}
	})
}

// send hands an event to the loop.
func (inc *incarnation) send(e any) {
	select {
	case inc.events <- e:
	case <-inc.ctx.Done():
	}
}

// observe counts processed input.
func (inc *incarnation) observe(records, bytes int64) {
	inc.records.Add(records)
	inc.bytes.Add(bytes)
	if inc.quiet.Load() && inc.quiet.Swap(false) || inc.cfg.Trigger.Records > 0 || inc.cfg.Trigger.Bytes > 0 {
		inc.wakeLoop()
	}
}

// wakeLoop makes the loop look at what was observed, and at what is processed.
func (inc *incarnation) wakeLoop() {
	select {
	case inc.observedC <- struct{}{}:
	default:
	}
}

func (inc *incarnation) partitionDrained() {
	if inc.undrained.Add(-1) == 0 {
		close(inc.drainedC)
	}
}

func (inc *incarnation) partition(p offsets.Partition) *partition {
	inc.mu.RLock()
	defer inc.mu.RUnlock()
	return inc.parts[p]
}

func (inc *incarnation) skipped(op string, p offsets.Partition, offset int64, err error) {
	inc.cfg.Listener.Skipped(event.Skipped{App: inc.cfg.App, Operator: op, Partition: p, Offset: offset, Err: err})
}

func (inc *incarnation) newSubtask(stage string, index int) *Subtask {
	s := &Subtask{inc: inc, id: len(inc.subtasks), stage: stage, index: index, at: noWatermark, watermark: noWatermark, wake: make(chan struct{}, 1)}
	s.out = output{ctx: inc.ctx, gate: inc.gate, to: inc.to, epoch: inc.gate.open.Load(), needed: s.needed}
	inc.subtasks = append(inc.subtasks, s)
	return s
}

// connect notes that subtasks of one stage send to another.
func (inc *incarnation) connect(from, to string) {
	if !slices.Contains(inc.senders[to], from) {
		inc.senders[to] = append(inc.senders[to], from)
	}
}

// findUpstream finds for each stage the subtasks whose records may come to it, over other
// stages too.
func (inc *incarnation) findUpstream() {
	inc.upstream = map[string][]*Subtask{}
	for to := range inc.senders {
		seen := map[string]bool{}
		for next := inc.senders[to]; len(next) > 0; next = next[1:] {
			if !seen[next[0]] {
				seen[next[0]] = true
				next = append(slices.Clip(next), inc.senders[next[0]]...)
			}
		}
		for _, s := range inc.subtasks {
			if seen[s.stage] {
				inc.upstream[to] = append(inc.upstream[to], s)
			}
		}
	}
}

// loop drives the coordinator until the job stops or fails.
func (inc *incarnation) loop(stop context.Context, stopPolling func()) error {
	now := time.Now()
	d, err := inc.newDriver(now)
	if err != nil {
		return err
	}
	co := d.co
	if inc.restore.state.mended {
		// The committed offsets are still those that the operator had us pass over:
		// until they are replaced, the next start would refuse again.
		if over, err := d.do(now, co.MarkDirty(now)); over {
			return err
		}
	}
	if inc.base.RecordsInFlight() > 0 {
		// What they change and emit is to be committed, also if nothing follows them.
		if over, err := d.do(now, co.MarkDirty(now)); over {
			return err
		}
	}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var stopTimer <-chan time.Time
	stopC, drained, shutdown := stop.Done(), inc.drainedC, false
	var slowAt time.Time // when what is being processed is no longer waited for; zero: nothing is
	for {
		now = time.Now()
		if over, err := d.observe(now); over {
			return err
		}
		// Say that the next record must wake this loop, then look again: a record
		// counted in between has seen the old answer.
		inc.quiet.Store(!co.Dirty())
		if inc.records.Load() > 0 || inc.touched.Load() {
			continue
		}
		at, ok := co.Next(now)
		switch {
		case co.Dirty() || inc.processing.Load() == 0:
			slowAt = time.Time{}
		case slowAt.IsZero():
			slowAt = now.Add(slowAfter)
		case !now.Before(slowAt):
			slowAt = time.Time{}
			inc.touched.Store(true) // its handlers are slow: a barrier is due before it is through
			continue
		}
		if !slowAt.IsZero() && (!ok || slowAt.Before(at)) {
			at, ok = slowAt, true
		}
		if ok {
			timer.Reset(time.Until(at))
		} else {
			timer.Reset(time.Hour)
		}
		var acts []barrier.Action
		select {
		case e := <-inc.events:
			now = time.Now()
			acts = d.event(now, e)
		case <-timer.C:
			now = time.Now()
			acts = co.Tick(now)
		case <-inc.observedC:
			continue
		case <-drained:
			drained = nil
			inc.inputEnded.Store(true)
			if inc.plan.eventTimers() {
				inc.touched.Store(true) // they all fire before the last barrier
			}
			shutdown = true
		case <-stopC:
			stopC = nil
			stopPolling()
			stopTimer = time.After(inc.cfg.StopTimeout)
			d.stopBy = now.Add(inc.cfg.StopTimeout)
			shutdown = true
		case <-stopTimer:
			if id, phase, ok := co.Pending(); ok && phase == barrier.Committing {
				return fatal(inc.sess.InDoubt(id, fmt.Errorf("no answer within the stop timeout of %v (weir.StopTimeout)", inc.cfg.StopTimeout)))
			}
			return fatal(fmt.Errorf("the last checkpoint was not committed within the stop timeout of %v (weir.StopTimeout); nothing after checkpoint %d was published, the next start replays from there", inc.cfg.StopTimeout, inc.committed.Load()))
		case <-inc.sess.Failed():
			return inc.sess.Err()
		case <-inc.ctx.Done():
			return context.Cause(inc.ctx)
		}
		if over, err := d.do(now, acts); over {
			return err
		}
		if shutdown {
			shutdown = false
			now = time.Now()
			// What was processed until now has to count, or a dirty job looks idle.
			if inc.processing.Load() > 0 {
				inc.touched.Store(true)
			}
			if over, err := d.observe(now); over {
				return err
			}
			if over, err := d.do(now, co.Request(now, barrier.Shutdown)); over {
				return err
			}
		}
	}
}

// slowAfter is how long the loop waits for a slice of records to be through before it counts
// as slow: then a checkpoint may be due in the middle of it.
const slowAfter = 5 * time.Millisecond

// observe tells the coordinator what was processed since it was told last.
func (d *driver) observe(now time.Time) (over bool, err error) {
	if d.inc.touched.Swap(false) {
		if over, err := d.do(now, d.co.MarkDirty(now)); over {
			return over, err
		}
	}
	r, b := d.inc.records.Swap(0), d.inc.bytes.Swap(0)
	if r == 0 {
		return false, nil
	}
	return d.do(now, d.co.Observe(now, r, b))
}

// newDriver makes the coordinator of the incarnation.
func (inc *incarnation) newDriver(now time.Time) (*driver, error) {
	co, err := barrier.NewCoordinator(barrier.CoordinatorConfig{
		Subtasks:          len(inc.runners),
		LastID:            inc.committed.Load(),
		Timeout:           inc.cfg.CheckpointTimeout,
		TolerableFailures: inc.cfg.TolerableFailures,
		Unaligned:         inc.cfg.Unaligned,
		AlignmentTimeout:  inc.cfg.AlignmentTimeout,
		Trigger:           inc.cfg.Trigger,
	}, now)
	if err != nil {
		return nil, fatal(err)
	}
	return &driver{inc: inc, co: co}, nil
}

// driver carries out what the coordinator decides. It belongs to the loop.
type driver struct {
	inc *incarnation
	co  *barrier.Coordinator

	cutting             // of the one in flight
	pending       int64 // in flight
	begun         time.Time
	runs          []segment.Run // frozen and not yet with the writer, oldest first
	logs          []logged      // likewise, of sinks
	positions     map[offsets.Partition]offsets.Position
	times         map[offsets.Partition]checkpoint.PartitionTime
	watermarks    map[string]int64 // by stage, the least
	firing        map[string]int64 // by stage between whose timers the barrier fell: the least up to where they had fired
	keyGroups     []checkpoint.KeyGroupTime
	inFlight      []checkpoint.InFlightData
	ref           offsets.ManifestRef
	manifest      *checkpoint.Manifest // that ref names
	parts         map[string][][]byte  // of its logs, by sink
	cancelPersist context.CancelFunc
	epochRecords  int64
	asked, cut    []savepointRequest // for the next checkpoint, for the one in flight
	stopBy        time.Time          // when a stop must be over; zero if none was asked for
}

// event tells the coordinator what happened.
func (d *driver) event(now time.Time, e any) []barrier.Action {
	switch e := e.(type) {
	case ack:
		if e.hasRun {
			// Also for a checkpoint that was given up: its entries are not dirty any
			// more on the subtask, so the next checkpoint has to carry them.
			d.runs = append(d.runs, e.run)
		}
		if len(e.logs) > 0 { // as with runs
			d.logs = append(d.logs, logged{e.id, e.subtask, e.logs})
		}
		d.epochRecords += e.records // of one that was given up, too: the next one covers them
		if e.abandoned {
			return nil
		}
		var acts []barrier.Action
		if e.id == d.pending {
			d.held = max(d.held, e.held)
			for _, p := range e.positions {
				d.positions[p.part] = p.at
				if p.time.Watermark != noWatermark || p.time.Idle {
					d.times[p.part] = p.time
				}
			}
			d.addParts(e)
			if slices.ContainsFunc(e.inFlight, func(f checkpoint.InFlightData) bool { return f.Records > 0 }) {
				// They change and emit something in the next epoch, also if nothing follows.
				acts = slices.Clone(d.co.MarkDirty(now))
			}
		}
		return append(acts, d.co.Ack(now, e.subtask, e.id)...)
	case persisted:
		if e.err != nil {
			if d.inc.ctx.Err() != nil {
				return nil // it failed because the incarnation ends, and that is not for the store to explain
			}
			return d.co.PersistFailed(now, e.id, e.err)
		}
		if e.id == d.pending { // else it was given up and came late
			d.ref, d.manifest, d.parts = e.ref, e.stats.Manifest, e.stats.Parts
			if applyEarly() {
				d.inc.handOver(d.manifest, d.parts)
			}
		}
		d.inc.cfg.Listener.CheckpointPersisted(event.CheckpointPersisted{
			App: d.inc.cfg.App, Checkpoint: e.id, Aligned: e.cut.aligned, Held: e.cut.held, Took: e.took,
			Entries: e.stats.Entries, Bytes: written(e.stats), Segments: e.stats.Segments,
			Unaligned: e.cut.unaligned, InFlight: inFlight(e.stats),
		})
		return d.co.Persisted(now, e.id)
	case committed:
		if e.err != nil {
			return d.co.CommitFailed(now, e.id, e.err)
		}
		d.inc.cfg.Listener.CheckpointCommitted(event.CheckpointCommitted{
			App: d.inc.cfg.App, Checkpoint: e.id, Took: e.took, Total: now.Sub(d.begun), Records: d.epochRecords,
		})
		d.epochRecords = 0
		return d.co.Committed(now, e.id)
	case savepointRequest:
		d.asked = append(d.asked, e)
		return d.co.Request(now, barrier.Requested)
	case memoryFull:
		d.inc.memoryAsked.Store(false)
		return d.co.Request(now, barrier.Memory)
	case revoke:
		return d.co.Request(now, barrier.Revoke)
	}
	panic(fmt.Sprintf("unknown event %T", e))
}

// do carries out actions, in order. over tells that the loop ends.
func (d *driver) do(now time.Time, acts []barrier.Action) (over bool, err error) {
	inc := d.inc
	for _, a := range acts {
		switch a := a.(type) {
		case barrier.Inject:
			crashpoint.Hit(crashpoint.BeforeBarrier)
			d.pending, d.begun, d.cutting = a.ID, now, cutting{}
			d.positions = map[offsets.Partition]offsets.Position{}
			d.inFlight, d.keyGroups = nil, nil
			d.times, d.watermarks = map[offsets.Partition]checkpoint.PartitionTime{}, map[string]int64{}
			d.firing = nil
			d.cut, d.asked = append(d.cut, d.asked...), nil
			for _, s := range inc.sources {
				s.inject(a.ID)
			}
			inc.cfg.Listener.CheckpointBegun(event.CheckpointBegun{App: inc.cfg.App, Checkpoint: a.ID, Reason: a.Reason.String()})
		case barrier.Unalign:
			inc.unaligned.Store(a.ID)
			inc.callAttention()
		case barrier.Persist:
			d.aligned = now.Sub(d.begun)
			var ctx context.Context
			ctx, d.cancelPersist = context.WithCancel(inc.ctx)
			s := d.snapshot(a.ID)
			inc.hand(commitJob{ctx: ctx, cancel: d.cancelPersist, id: a.ID, snapshot: s, cut: d.cutting})
			d.runs, d.logs = nil, nil
		case barrier.Commit:
			inc.hand(commitJob{ctx: inc.ctx, id: a.ID, commit: &txn.Commit{Positions: d.positions, Manifest: d.ref}})
		case barrier.Cancel:
			if d.cancelPersist != nil {
				d.cancelPersist()
			}
			inc.cfg.Listener.CheckpointFailed(event.CheckpointFailed{App: inc.cfg.App, Checkpoint: a.ID, Err: a.Err})
			inc.givenUp.Store(a.ID)
			if inc.cfg.Unaligned {
				inc.callAttention()
			}
			// The epoch stays open: what was held for the next one joins it.
			inc.release(a.ID + 1)
		case barrier.Completed:
			// After the last checkpoint nothing may go out any more: it would sit in a
			// transaction that nobody commits and hold up every reader behind it.
			final := slices.Contains(a.Requests, barrier.Shutdown) || slices.Contains(a.Requests, barrier.Revoke)
			ref := d.ref
			inc.head.Store(&ref)
			inc.last.Store(&commitInfo{a.ID, inc.clock.Now()})
			d.completed(a.ID, final)
			d.answer()
			if slices.Contains(a.Requests, barrier.Revoke) {
				// Who takes over applies the rest, but not before it is there.
				if err := inc.drainSinks(d.drainBy()); err != nil {
					inc.cfg.Logger.Sugar().Warnf("handing partitions over: %v", err)
				}
				close(inc.handedOver)
				return true, errHandedOver
			}
		case barrier.Fail:
			inc.cfg.Listener.CheckpointFailed(event.CheckpointFailed{App: inc.cfg.App, Checkpoint: d.pending, Err: a.Err})
			var ce *barrier.CommitError
			if errors.As(a.Err, &ce) {
				return true, ce.Err // what happened to the commit decides, not that it was one
			}
			return true, fatal(a.Err)
		case barrier.Stopped:
			return true, inc.drainSinks(d.drainBy())
		}
	}
	return false, nil
}

// drainBy is until when sinks may apply what was committed, at the end.
func (d *driver) drainBy() time.Time {
	if d.stopBy.IsZero() {
		return time.Now().Add(d.inc.cfg.StopTimeout)
	}
	return d.stopBy
}

// callAttention makes every keyed subtask look at what the loop says, before its next
// record.
func (inc *incarnation) callAttention() {
	for _, s := range inc.subtasks {
		s.attend.Store(true)
		s.notify()
	}
}

// addParts takes what an acknowledgement of the checkpoint in flight says of event time, and
// what was captured.
func (d *driver) addParts(e ack) {
	if e.stage != "" {
		lower(&d.watermarks, e.stage, e.watermark)
		d.keyGroups = append(d.keyGroups, e.times...)
		if e.firing {
			lower(&d.firing, e.stage, e.fired)
		}
	}
	d.unaligned = d.unaligned || e.unaligned
	d.inFlight = append(d.inFlight, e.inFlight...)
}

// lower keeps the least time of a stage.
func lower(least *map[string]int64, stage string, at int64) {
	if *least == nil {
		*least = map[string]int64{}
	}
	if was, ok := (*least)[stage]; !ok || at < was {
		(*least)[stage] = at
	}
}

// snapshot is the checkpoint in flight when it was acknowledged by all.
func (d *driver) snapshot(id int64) *checkpoint.Snapshot {
	s := &checkpoint.Snapshot{Checkpoint: id, Positions: d.positions, States: d.inc.states, Runs: d.runs, Logs: inOrder(d.logs)}
	s.InFlight = d.worthKeeping()
	s.EventTime = eventTime(d.times, d.watermarks, d.firing, d.keyGroups)
	s.Watermark = d.inc.plan.expired(s.EventTime, d.watermarks)
	return s
}

// worthKeeping returns what was captured without the parts that say nothing.
func (d *driver) worthKeeping() []checkpoint.InFlightData {
	return slices.DeleteFunc(d.inFlight, func(f checkpoint.InFlightData) bool {
		ahead := f.Watermark != nil && *f.Watermark > d.watermarks[f.Stage]
		return len(f.Data) == 0 && !ahead
	})
}

// completed is what follows the commit point.
func (d *driver) completed(id int64, final bool) {
	inc := d.inc
	inc.committed.Store(id)
	crashpoint.Hit(crashpoint.BeforeSinks)
	if !applyEarly() {
		inc.handOver(d.manifest, d.parts)
	}
	d.manifest, d.parts = nil, nil
	if !final {
		inc.release(id + 1)
	}
	crashpoint.Hit(crashpoint.AfterSinks)
	inc.writer.Committed(id)
}

// release lets outputs up to the epoch into the open transaction.
func (inc *incarnation) release(epoch int64) {
	inc.gate.raise(epoch)
	for _, s := range inc.subtasks {
		s.notify()
	}
}

// hand gives the committer its next job. The coordinator has one checkpoint in
// flight; a job can wait only behind the persist of one that was given up.
func (inc *incarnation) hand(j commitJob) {
	select {
	case inc.commits <- j:
	case <-inc.ctx.Done():
	}
}

// commitLoop is the committer.
func (inc *incarnation) commitLoop() error {
	var last persisted // what a commit that follows is about
	for {
		select {
		case <-inc.ctx.Done():
			return nil
		case j := <-inc.commits:
			if j.snapshot != nil {
				last = inc.persist(j)
				inc.send(last)
				continue
			}
			begun := time.Now()
			if guard.Broken(guard.IngestAfterCommit) {
				if err := inc.ingest(j.id, last.ref, last.stats); err != nil {
					return err
				}
			}
			err := inc.sess.Commit(j.ctx, *j.commit)
			inc.outcome = committed{id: j.id, took: time.Since(begun), err: err}
			inc.send(inc.outcome)
			if err != nil {
				continue
			}
			crashpoint.Hit(crashpoint.BeforeIngest)
			if !guard.Broken(guard.IngestAfterCommit) {
				if err := inc.ingest(j.id, last.ref, last.stats); err != nil {
					return err
				}
			}
			crashpoint.Hit(crashpoint.AfterIngest)
		}
	}
}

// persist makes a checkpoint durable.
func (inc *incarnation) persist(j commitJob) persisted {
	// Nothing goes on under the context: a put that was left behind was left because it ended.
	defer j.cancel()
	begun := time.Now()
	p := persisted{id: j.id, cut: j.cut}
	j.snapshot.Keep = inc.keep()
	p.ref, p.stats, p.err = inc.writer.Persist(j.ctx, *j.snapshot)
	p.took = time.Since(begun)
	return p
}

// Revoke implements [txn.Handler]: one more checkpoint, then the partitions may go.
func (inc *incarnation) Revoke(ctx context.Context, parts []offsets.Partition) {
	<-inc.opened
	inc.cfg.Listener.Rebalanced(event.Rebalanced{App: inc.cfg.App, Revoked: parts})
	if !inc.hasStarted() {
		return // nothing was read from them
	}
	if inc.revokeStarted.CompareAndSwap(false, true) {
		inc.send(revoke{})
	}
	select {
	case <-inc.handedOver:
	case <-inc.ctx.Done():
	case <-ctx.Done():
	}
}

// Lost implements [txn.Handler]. The session fails by itself.
func (inc *incarnation) Lost(parts []offsets.Partition) {
	inc.cfg.Listener.Rebalanced(event.Rebalanced{App: inc.cfg.App, Lost: parts})
}

// sortedPartitions lists the keys of m in order.
func sortedPartitions[V any](m map[offsets.Partition]V) []offsets.Partition {
	return slices.SortedFunc(maps.Keys(m), offsets.Partition.Compare)
}

// written is the number of bytes that a checkpoint put into the store.
func written(s checkpoint.Stats) int64 {
	if s.Inline {
		return s.ManifestBytes + s.InFlightBytes // the manifest holds the segment
	}
	return s.ManifestBytes + s.SegmentBytes + s.InFlightBytes
}

// inFlight is the number of records in flight that a checkpoint stored.
func inFlight(s checkpoint.Stats) int64 {
	if s.Manifest == nil {
		return 0
	}
	return s.Manifest.RecordsInFlight()
}
