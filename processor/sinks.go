package processor

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"time"

	"go.uber.org/zap"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/record"
	"github.com/weirstream/weir/sink"
)

// A write-ahead sink has writers on subtasks, and one applier in the incarnation. What
// the writers log at barrier N goes with their subtask's acknowledgement to the loop,
// from there into checkpoint N, and after the commit point, from the loop, to the
// applier. The loop keeps what was logged for a checkpoint that was given up, and the
// checkpoint.Writer what is part of one that was not committed: either way it joins the
// next. So at any instant each thing that was logged is in one place, and a checkpoint
// that is committed has all that was logged before it and was in none before.
//
// The applier is told of a log only by the loop and only after the commit point. What it
// has not applied when the process dies is in the checkpoint that the pointer names, and
// the next incarnation's applier is given it before the first record.

// WriteAhead is a write-ahead sink of the topology.
type WriteAhead struct {
	ID   string // operator ID
	Sink sink.WriteAhead
}

// applier applies the logs of one sink.
type applier struct {
	id string
	sink.Applier
}

// applierEnv is what an applier may use.
type applierEnv struct {
	inc *incarnation
	id  string
}

func (e applierEnv) App() string              { return e.inc.cfg.App }
func (e applierEnv) Operator() string         { return e.id }
func (e applierEnv) Instance() string         { return e.inc.cfg.Instance }
func (e applierEnv) Lineage() string          { return e.inc.lineage }
func (e applierEnv) Context() context.Context { return e.inc.ctx }
func (e applierEnv) Logger() *zap.Logger      { return e.inc.cfg.Logger }

func (e applierEnv) Confirm(ctx context.Context) error { return e.inc.sess.Confirm(ctx) }

func (e applierEnv) Applied(i event.Applied) {
	i.App, i.Operator = e.inc.cfg.App, e.id
	e.inc.cfg.Listener.Applied(i)
}

// openAppliers makes the applier of each sink. The chains, which are built after it,
// refer to them.
func (inc *incarnation) openAppliers(at recovered) error {
	if at.manifest != nil {
		if err := inc.checkLogs(at.manifest); err != nil {
			return err
		}
	}
	inc.mu.Lock()
	defer inc.mu.Unlock()
	if inc.ctx.Err() != nil {
		return context.Cause(inc.ctx) // too late to be closed
	}
	for _, s := range inc.plan.WriteAhead {
		a, err := s.Sink.Applier(applierEnv{inc, s.ID})
		if err != nil {
			return inc.sinkError(s.ID, "opening it", err)
		}
		inc.appliers = append(inc.appliers, applier{s.ID, a})
	}
	inc.show(inc.appliers)
	inc.oweNot(at, nil)
	return nil
}

// show tells which appliers the status asks.
func (inc *incarnation) show(all []applier) {
	inc.shownMu.Lock()
	defer inc.shownMu.Unlock()
	inc.shown = all
}

// oweNot notes which sink may still have something to apply of the checkpoint that is being
// restored: the first of those that it lists logs of, but for those that applied all.
func (inc *incarnation) oweNot(at recovered, applied map[string]bool) {
	for _, a := range inc.appliers {
		if at.manifest != nil && len(logsOf(at.manifest, a.id).Logs) > 0 && !applied[a.id] {
			inc.owed.Store(&UnappliedError{Operator: a.id, Checkpoint: at.ref.Checkpoint, Err: errStopped})
			return
		}
	}
	inc.owed.Store(nil)
}

// checkLogs makes sure that whoever the checkpoint's logs are for is there.
func (inc *incarnation) checkLogs(m *checkpoint.Manifest) error {
	inc.keepNone = map[string]int64{}
	var errs []error
	for _, s := range m.Logs {
		switch {
		case len(s.Logs) == 0 || slices.ContainsFunc(inc.plan.WriteAhead, func(w WriteAhead) bool { return w.ID == s.Operator }):
		case inc.cfg.AllowDropped[s.Operator]:
			inc.keepNone[s.Operator] = checkpoint.KeepNone
		default:
			errs = append(errs, fmt.Errorf("checkpoint %d holds %d logs of write-ahead sink %q, which the topology lacks; some may not be applied yet: bring the sink back, or drop them with weir.AllowDroppedState(%q)", m.Checkpoint, len(s.Logs), s.Operator, s.Operator))
		}
	}
	return fatal(errors.Join(errs...))
}

// recoverAppliers gives each applier what the checkpoint holds for it.
func (inc *incarnation) recoverAppliers(ctx context.Context, at recovered) error {
	if err := inc.finishAppliers(ctx, at.leaves); err != nil {
		return err
	}
	applied := map[string]bool{}
	for _, a := range inc.appliers {
		var logs []sink.Log
		if at.manifest != nil {
			var err error
			if logs, err = inc.storedLogs(ctx, at.manifest, a.id); err != nil {
				return inc.sinkError(a.id, "finding out what is to be applied", err)
			}
		}
		err := inc.blaming(func() error { return a.Recover(ctx, cmp.Or(at.told, at.ref.Checkpoint), logs) }, func() (operator, doing string) {
			return a.id, "finding out what is to be applied"
		})
		if err != nil {
			return inc.sinkError(a.id, "finding out what is to be applied", err)
		}
		r, ok := a.Applier.(sink.Reporter)
		applied[a.id] = ok && r.Progress().PendingCheckpoints == 0
		inc.oweNot(at, applied)
	}
	return nil
}

// finishAppliers gives appliers that want to finish it what the newest committed checkpoint
// holds for them, which this start gives up. What can't be read any more stands in nobody's way.
func (inc *incarnation) finishAppliers(ctx context.Context, leaves offsets.ManifestRef) error {
	if leaves == (offsets.ManifestRef{}) {
		return nil
	}
	for _, a := range inc.appliers {
		f, ok := a.Applier.(sink.Finisher)
		if !ok {
			continue
		}
		logs, err := inc.soundLogs(ctx, leaves, a.id)
		if err != nil {
			return inc.sinkError(a.id, "finding out what was committed", err)
		}
		err = inc.blaming(func() error { return f.Finish(ctx, logs) }, func() (operator, doing string) {
			return a.id, "finishing what was committed"
		})
		if err != nil {
			return inc.sinkError(a.id, "finishing what was committed", err)
		}
	}
	return nil
}

// soundLogs reads the logs of a sink that a checkpoint lists, and says which it can't.
func (inc *incarnation) soundLogs(ctx context.Context, ref offsets.ManifestRef, id string) (sound []sink.Log, err error) {
	lost := func(err error) error {
		if !isFatal(classifyStore(err)) {
			return err
		}
		inc.cfg.Logger.Sugar().Warnf("sink %q: what was committed and not yet done at the receiver is lost: this start gives up checkpoint %d, which holds it and can't be read: %v", id, ref.Checkpoint, err)
		return nil
	}
	m, err := checkpoint.Load(ctx, inc.cfg.Store, ref)
	if err != nil {
		return nil, lost(err)
	}
	logs, err := inc.storedLogs(ctx, m, id)
	if err != nil {
		return nil, lost(err)
	}
	for _, l := range logs {
		parts, err := l.Read(ctx)
		if err != nil {
			if err := lost(err); err != nil {
				return nil, err
			}
			continue
		}
		l.Read = func(context.Context) ([][]byte, error) { return parts, nil }
		sound = append(sound, l)
	}
	return sound, nil
}

var errStopped = errors.New("the app was stopped while it started, before the sink had applied what the checkpoint lists, or had found out that it is applied")

// storedLogs are the logs of a sink that a manifest in the store lists.
func (inc *incarnation) storedLogs(ctx context.Context, m *checkpoint.Manifest, id string) ([]sink.Log, error) {
	s, err := checkpoint.ExpandLogs(ctx, inc.cfg.Store, logsOf(m, id))
	if err != nil {
		return nil, err
	}
	logs := make([]sink.Log, 0, len(s.Logs))
	after := s.Before
	for _, l := range s.Logs {
		logs = append(logs, sink.Log{
			Checkpoint: l.Checkpoint, Lineage: l.Lineage, After: after, Created: l.Created, Bytes: l.Bytes,
			Read: func(ctx context.Context) ([][]byte, error) { return checkpoint.ReadLog(ctx, inc.cfg.Store, l) },
		})
		after = l.Checkpoint
	}
	return logs, nil
}

func logsOf(m *checkpoint.Manifest, id string) checkpoint.SinkLogs {
	for _, s := range m.Logs {
		if s.Operator == id {
			return s
		}
	}
	return checkpoint.SinkLogs{Operator: id}
}

// keep asks the sinks which logs the next checkpoint has to list.
func (inc *incarnation) keep() map[string]int64 {
	if len(inc.appliers) == 0 {
		return inc.keepNone
	}
	keep := map[string]int64{}
	for id, none := range inc.keepNone {
		keep[id] = none
	}
	for _, a := range inc.appliers {
		keep[a.id] = a.Keep()
	}
	return keep
}

// waitForRoom waits until no sink has too much to apply, or ctx ends. Subtasks that wait
// for room would hold up barriers; what is processed must be able to be committed.
func (inc *incarnation) waitForRoom(ctx context.Context) error {
	for _, a := range inc.appliers {
		t, ok := a.Applier.(sink.Throttler)
		if !ok {
			continue
		}
		if err := t.Room(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("sink %q: waiting for room: %w", a.id, err)
		}
	}
	return nil
}

// handOver tells the appliers what is to be done after a checkpoint.
func (inc *incarnation) handOver(m *checkpoint.Manifest, parts map[string][][]byte) {
	for _, a := range inc.appliers {
		l := sink.Log{Checkpoint: m.Checkpoint, Lineage: m.Lineage, Created: m.Created}
		s := logsOf(m, a.id)
		l.After = s.Before
		for _, was := range s.Logs {
			if was.Checkpoint == m.Checkpoint {
				l.Bytes = was.Bytes // a log that was just made is in no pack
			} else {
				l.After = was.Checkpoint
			}
		}
		mine := parts[a.id]
		l.Read = func(context.Context) ([][]byte, error) { return mine, nil }
		a.Committed(l)
	}
}

// runApplier applies what is handed over until the incarnation ends.
func (inc *incarnation) runApplier(a applier) error {
	err := inc.blaming(func() error { return a.Run(inc.ctx) }, func() (operator, doing string) { return a.id, "applying what was committed" })
	if inc.ctx.Err() != nil {
		return nil
	}
	if he := (*HandlerError)(nil); errors.As(err, &he) {
		return err // it says all
	}
	if err == nil {
		err = errors.New("it ended although nothing asked it to")
	}
	// A restart may find a receiver that is well again, but no log that is not damaged.
	err = fmt.Errorf("sink %q: applying what was committed: %w", a.id, err)
	if f := (*sink.Fatal)(nil); errors.As(err, &f) {
		return fatal(err)
	}
	return classifyStore(err)
}

// progress is how far the sinks are that tell it.
func (inc *incarnation) progress() []SinkStatus {
	inc.shownMu.Lock()
	defer inc.shownMu.Unlock()
	var all []SinkStatus
	for _, a := range inc.shown {
		if r, ok := a.Applier.(sink.Reporter); ok {
			all = append(all, SinkStatus{a.id, r.Progress()})
		}
	}
	return all
}

// closeAppliers releases what the appliers hold, once nothing runs any more.
func (inc *incarnation) closeAppliers() {
	inc.show(nil)
	inc.mu.Lock()
	defer inc.mu.Unlock()
	for _, a := range inc.appliers {
		if err := a.Close(); err != nil {
			inc.cfg.Logger.Sugar().Warnf("closing sink %q: %v", a.id, err)
		}
	}
	inc.appliers = nil
}

// sinkError classifies what a sink said before the first record.
func (inc *incarnation) sinkError(id, doing string, err error) error {
	if he := (*HandlerError)(nil); errors.As(err, &he) {
		return err // it says all
	}
	err = fmt.Errorf("sink %q: %s: %w", id, doing, err)
	var (
		again *Retriable
		store *checkpoint.StoreError
	)
	if classified := classifyStore(err); isFatal(classified) {
		return classified
	}
	if f := (*sink.Fatal)(nil); errors.As(err, &f) {
		return fatal(err)
	}
	if inc.ctx.Err() != nil || errors.As(err, &again) || errors.As(err, &store) {
		return err
	}
	return fatal(err)
}

// UnappliedError says that a clean stop could not wait until a write-ahead sink had
// applied everything. Nothing is lost: the last checkpoint is committed and has it.
type UnappliedError struct {
	Operator   string
	Checkpoint int64 // the last committed one
	Err        error
}

func (e *UnappliedError) Error() string {
	return fmt.Sprintf("sink %q has not applied everything that is committed: %v\n  nothing is lost: it is part of checkpoint %d, and the next start applies it; weir.StopTimeout sets how long a stop waits", e.Operator, e.Err, e.Checkpoint)
}

func (e *UnappliedError) Unwrap() error { return e.Err }

// drainSinks waits, until the time given at most, until what was handed over is applied.
func (inc *incarnation) drainSinks(until time.Time) error {
	ctx, cancel := context.WithDeadline(inc.ctx, until)
	defer cancel()
	for _, a := range inc.appliers {
		err := a.Drain(ctx)
		if err == nil {
			continue
		}
		failed := context.Cause(inc.ctx)
		err = &UnappliedError{Operator: a.id, Checkpoint: inc.committed.Load(), Err: cmp.Or(failed, err)}
		if failed == nil && ctx.Err() != nil {
			return fatal(err) // the time is over: a restart would only wait again
		}
		return err
	}
	return nil
}

// logged is what a subtask's writers logged at the barrier of a checkpoint.
type logged struct {
	id      int64
	subtask int
	parts   []checkpoint.LogPart
}

// inOrder puts parts in the order in which they are to be read: by epoch, then by
// subtask.
func inOrder(ls []logged) []checkpoint.LogPart {
	slices.SortStableFunc(ls, func(a, b logged) int { return cmp.Or(cmp.Compare(a.id, b.id), cmp.Compare(a.subtask, b.subtask)) })
	var parts []checkpoint.LogPart
	for _, l := range ls {
		parts = append(parts, l.parts...)
	}
	return parts
}

// applyEarly tells whether the guard is taken out that appliers hear of a checkpoint
// only after its commit point.
func applyEarly() bool { return guard.Broken(guard.ApplyAfterCommit) }

// env is what a sink's writer sees of its subtask.
type env struct{ op *Operator }

// SinkEnv returns the environment of the sink with this operator ID.
func (s *Subtask) SinkEnv(id string) sink.Env { return env{s.Operator(id)} }

func (e env) Operator() string         { return e.op.ID }
func (e env) Subtask() int             { return e.op.sub.index }
func (e env) Meta() record.Meta        { return e.op.sub.Meta() }
func (e env) Output() sink.Output      { return &e.op.sub.out }
func (e env) Context() context.Context { return e.op.sub.inc.ctx }

func (e env) Applier() sink.Applier {
	for _, a := range e.op.sub.inc.appliers {
		if a.id == e.op.ID {
			return a.Applier
		}
	}
	return nil
}

// participant is a writer that takes part in barriers.
type participant struct {
	op    *Operator
	flush sink.Flusher // nil: it has nothing to flush
	log   sink.Logger  // nil: it logs nothing
}

// Barriers makes the writer of the operator's sink take part in barriers, as far as it
// wants to. Writers do so in the order of the calls.
func (o *Operator) Barriers(writer any) {
	p := participant{op: o}
	p.flush, _ = writer.(sink.Flusher)
	p.log, _ = writer.(sink.Logger)
	if p.flush != nil || p.log != nil {
		o.sub.participants = append(o.sub.participants, p)
	}
}

// sinksAtBarrier flushes the subtask's sinks at barrier id and takes what they logged.
func (s *Subtask) sinksAtBarrier(id int64) {
	for _, p := range s.participants {
		if p.flush != nil {
			p.op.atBarrier(id, func() error { return p.flush.Flush(s.inc.ctx) })
		}
		if p.log != nil {
			p.op.atBarrier(id, func() error {
				b, err := p.log.Log()
				if err == nil && len(b) > 0 {
					s.logged = append(s.logged, checkpoint.LogPart{Operator: p.op.ID, Bytes: b})
				}
				return err
			})
		}
	}
}

// takeLogged returns what was logged at the last barrier, for its acknowledgement.
func (s *Subtask) takeLogged() []checkpoint.LogPart {
	l := s.logged
	s.logged = nil
	return l
}

// atBarrier calls a function of a sink's writer at barrier id, and makes its error or
// panic the subtask's.
func (o *Operator) atBarrier(id int64, f func() error) {
	s := o.sub
	if s.err != nil {
		return
	}
	he := &HandlerError{App: s.inc.cfg.App, Operator: o.ID, Barrier: id, Checkpoint: s.inc.committed.Load()}
	defer func() {
		if p := recover(); p != nil {
			he.Err, he.Panic, he.Stack = asError(p), true, string(debug.Stack())
			s.err = fatal(he)
		}
	}()
	he.Err = f()
	if he.Err == nil {
		return
	}
	if err := context.Cause(s.inc.ctx); err != nil {
		s.err = err // the incarnation ended already: this follows from it
		return
	}
	var again *Retriable
	if s.err = fatal(he); errors.As(he.Err, &again) {
		s.err = he
	}
}

// asError returns what a function panicked with as an error.
func asError(p any) error {
	if err, ok := p.(error); ok {
		return err
	}
	return fmt.Errorf("%v", p)
}
