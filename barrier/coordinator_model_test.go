package barrier

import (
	"errors"
	"slices"
	"testing"
	"time"

	"pgregory.net/rapid"
)

// ledger keeps book of what a driver reported and what a Coordinator asked for, and knows
// what may be asked for next. It is written from the rules, not from the Coordinator.
type ledger struct {
	*rapid.T
	cfg CoordinatorConfig
	now time.Time

	open, taken held // since the last barrier; in the checkpoint in flight

	id          int64 // newest that was injected
	phase       Phase // of id, 0 = landed
	final       bool
	mayUnalign  bool // id was aligned until now
	injectedAt  time.Time
	pausedUntil time.Time // nothing but a request may start before
	retryFrom   time.Time // what failed may not start before
	acked       map[int]bool
	finished    map[int]bool
	failures    int
	shutdown    bool // was asked for
	served      bool // a checkpoint for a shutdown completed
	over        Action

	event event // being handled
}

// held is what an epoch holds.
type held struct {
	records, bytes int64
	dirty          bool
	asked          map[Reason]bool
	fresh          bool // something in asked came after the last failure
}

func (h *held) join(o held) {
	h.records += o.records
	h.bytes += o.bytes
	h.dirty = h.dirty || o.dirty
	for r := range o.asked {
		h.ask(r)
	}
}

func (h *held) ask(r Reason) {
	if h.asked == nil {
		h.asked = map[Reason]bool{}
	}
	h.asked[r] = true
}

// event is the one thing that can justify an action.
type event struct {
	kind string
	id   int64
	err  error
}

func (l *ledger) handle(actions []Action) {
	for _, a := range actions {
		if l.over != nil {
			l.Fatalf("%v after %v", a, l.over)
		}
		switch a := a.(type) {
		case Inject:
			l.inject(a)
		case Unalign:
			l.in(a, a.ID, Aligning)
			if !l.mayUnalign || l.now.Before(l.injectedAt.Add(l.cfg.AlignmentTimeout)) || l.cfg.AlignmentTimeout > 0 && l.event.kind != "tick" {
				l.Fatalf("%v %s after its begin, by %+v", a, l.now.Sub(l.injectedAt), l.event)
			}
			l.mayUnalign = false
		case Persist:
			l.in(a, a.ID, Aligning)
			for s := range l.cfg.Subtasks {
				if !l.acked[s] && !l.finished[s] {
					l.Fatalf("%v without an acknowledgement of subtask %d", a, s)
				}
			}
			l.phase = Persisting
		case Commit:
			l.in(a, a.ID, Persisting)
			if l.event.kind != "persisted" || l.event.id != a.ID {
				l.Fatalf("%v by %+v", a, l.event)
			}
			l.phase = Committing
		case Completed:
			l.in(a, a.ID, Committing)
			if l.event.kind != "committed" || l.event.id != a.ID {
				l.Fatalf("%v by %+v", a, l.event)
			}
			if want := l.requests(l.taken); !slices.Equal(a.Requests, want) {
				l.Fatalf("%v, want requests %v", a, want)
			}
			l.served = l.taken.asked[Shutdown]
			l.taken = held{}
			l.failures = 0
			l.phase = 0
			l.pausedUntil = l.now.Add(l.cfg.Trigger.MinPause)
			l.retryFrom = time.Time{}
		case Cancel:
			l.failed(a, a.ID, a.Err)
			if l.final || l.failures > l.cfg.TolerableFailures {
				l.Fatalf("%v is failure %d of %d tolerable, final: %v", a, l.failures, l.cfg.TolerableFailures, l.final)
			}
			l.open.join(l.taken)
			l.taken = held{}
			l.phase = 0
			l.pausedUntil = l.now.Add(max(l.cfg.Trigger.MinPause, l.cfg.Trigger.RetryPause))
			l.retryFrom = l.now.Add(l.cfg.Trigger.RetryPause)
		case Fail:
			l.fail(a)
			l.over = a
		case Stopped:
			switch {
			case l.phase != 0:
				l.Fatalf("stopped while %d is %s", l.id, l.phase)
			case l.served:
			case l.open.dirty || len(l.open.asked) > 0:
				l.Fatalf("stopped with %+v open", l.open)
			case !l.shutdown && len(l.finished) < l.cfg.Subtasks:
				l.Fatalf("stopped for no reason")
			}
			l.over = a
		default:
			l.Fatalf("unknown action %v", a)
		}
	}
}

func (l *ledger) inject(a Inject) {
	drained := len(l.finished) == l.cfg.Subtasks
	t := l.cfg.Trigger
	full := t.Records > 0 && l.open.records >= t.Records || t.Bytes > 0 && l.open.bytes >= t.Bytes
	elapsed := t.Every > 0 && !l.now.Before(l.injectedAt.Add(t.Every))
	switch {
	case l.phase != 0:
		l.Fatalf("%v while %d is %s", a, l.id, l.phase)
	case a.ID != l.id+1:
		l.Fatalf("%v after %d", a, l.id)
	case l.served:
		l.Fatalf("%v after the last one", a)
	case len(l.open.asked) > 0 && l.open.fresh:
	case len(l.open.asked) > 0 || drained && l.open.dirty:
		if l.now.Before(l.retryFrom) {
			l.Fatalf("%v in the pause after a failure", a)
		}
	case !l.open.dirty:
		l.Fatalf("%v with nothing to commit", a)
	case l.now.Before(l.pausedUntil):
		l.Fatalf("%v in the pause", a)
	case !full && !elapsed:
		l.Fatalf("%v is not due: %+v since %s", a, l.open, l.now.Sub(l.injectedAt))
	}
	if want := l.requests(l.open); !slices.Equal(a.Requests, want) {
		l.Fatalf("%v, want requests %v", a, want)
	}
	l.id = a.ID
	l.phase = Aligning
	l.final = l.open.asked[Shutdown]
	l.mayUnalign = l.cfg.Unaligned && !l.final && !l.open.asked[Requested]
	l.injectedAt = l.now
	l.acked = map[int]bool{}
	l.taken, l.open = l.open, held{}
}

func (l *ledger) requests(h held) []Reason {
	var rs []Reason
	for r := range h.asked {
		rs = append(rs, r)
	}
	slices.Sort(rs)
	return rs
}

func (l *ledger) in(a Action, id int64, phase Phase) {
	if id != l.id || l.phase != phase {
		l.Fatalf("%v while %d is %s", a, l.id, l.phase)
	}
}

// failed counts a failure of the checkpoint in flight, for which there must be a cause.
func (l *ledger) failed(a Action, id int64, err error) {
	if id != l.id || l.phase != Aligning && l.phase != Persisting {
		l.Fatalf("%v while %d is %s", a, l.id, l.phase)
	}
	l.failures++
	var timeout *TimeoutError
	switch {
	case l.event.kind == "persist-failed" && l.event.id == id && errors.Is(err, l.event.err):
	case l.event.kind == "tick" && errors.As(err, &timeout) && l.expired():
		if timeout.Phase != l.phase || timeout.Checkpoint != id {
			l.Fatalf("%v while %d is %s", a, l.id, l.phase)
		}
		for s := range l.cfg.Subtasks {
			missing := l.phase == Aligning && !l.acked[s] && !l.finished[s]
			if missing != slices.Contains(timeout.Missing, s) {
				l.Fatalf("%v: subtask %d missing: %v", a, s, missing)
			}
		}
	default:
		l.Fatalf("%v by %+v", a, l.event)
	}
}

func (l *ledger) expired() bool {
	return l.cfg.Timeout > 0 && !l.now.Before(l.injectedAt.Add(l.cfg.Timeout))
}

func (l *ledger) fail(a Fail) {
	var commit *CommitError
	if errors.As(a.Err, &commit) {
		l.in(a, commit.Checkpoint, Committing)
		if l.event.kind != "commit-failed" {
			l.Fatalf("%v by %+v", a, l.event)
		}
		return
	}
	var failed *FailedError
	if !errors.As(a.Err, &failed) {
		l.Fatalf("%v, though no contract was broken", a)
	}
	l.failed(a, failed.Checkpoint, failed.Err)
	if failed.Failures != l.failures || failed.Limit != l.cfg.TolerableFailures || failed.Final != l.final {
		l.Fatalf("%v: got %+v, counted %d", a, failed, l.failures)
	}
	if !l.final && l.failures <= l.cfg.TolerableFailures {
		l.Fatalf("%v though failure %d is tolerable", a, l.failures)
	}
}

// ackOf is an acknowledgement that is under way.
type ackOf struct {
	subtask int
	id      int64
}

// drive is a driver that keeps the contract, in a world where anything can be late, fail or
// come in another order.
type drive struct {
	*ledger
	c        *Coordinator
	acks     []ackOf
	persists []int64
	commits  []int64
}

// happen tells c of an event and carries out what it asks for.
func (d *drive) happen(e event, call func() []Action) {
	d.event = e
	actions := slices.Clone(call())
	d.handle(actions)
	for _, a := range actions {
		switch a := a.(type) {
		case Inject:
			for s := range d.cfg.Subtasks {
				if !d.finished[s] {
					d.acks = append(d.acks, ackOf{s, a.ID})
				}
			}
		case Persist:
			d.persists = append(d.persists, a.ID)
		case Commit:
			d.commits = append(d.commits, a.ID)
		}
	}
	d.check()
}

// check compares what c tells about itself, and sees that it waits for nothing in vain.
func (d *drive) check() {
	if d.c.Over() != (d.over != nil) {
		d.Fatalf("over: got %v", d.c.Over())
	}
	next, ok := d.c.Next(d.now)
	if d.over != nil {
		if ok {
			d.Fatalf("a timer at %v after %v", next, d.over)
		}
		return
	}
	if got := d.c.Failures(); got != d.failures {
		d.Fatalf("failures: got %d, counted %d", got, d.failures)
	}
	if d.c.Dirty() != d.open.dirty {
		d.Fatalf("dirty: got %v", d.c.Dirty())
	}
	id, phase, pending := d.c.Pending()
	if pending != (d.phase != 0) || phase != d.phase || pending && id != d.id || d.c.LastID() != d.id {
		d.Fatalf("pending: got %d %s, %v; counted %d %s", id, phase, pending, d.id, d.phase)
	}
	switch d.phase {
	case 0:
		if ok && !next.After(d.now) {
			d.Fatalf("a checkpoint is due and was not injected")
		}
		drained := len(d.finished) == d.cfg.Subtasks
		waits := d.open.dirty && (d.cfg.Trigger.Every > 0 || drained) || len(d.open.asked) > 0
		if waits && !ok {
			d.Fatalf("nobody will ever commit %+v", d.open)
		}
		if drained && !waits {
			d.Fatalf("everybody has finished, nothing is open, and it goes on")
		}
	case Aligning, Persisting:
		if d.phase == Aligning && !slices.ContainsFunc(d.acks, func(a ackOf) bool { return a.id == d.id && !d.finished[a.subtask] }) {
			d.Fatalf("%d waits for acknowledgements and there are none", d.id)
		}
		unaligns := d.phase == Aligning && d.mayUnalign
		if unaligns && (d.cfg.AlignmentTimeout == 0 || d.event.kind == "tick" && !d.now.Before(d.injectedAt.Add(d.cfg.AlignmentTimeout))) {
			d.Fatalf("%d is still aligned %s after its begin", d.id, d.now.Sub(d.injectedAt))
		}
		first := d.cfg.Timeout
		if unaligns && (first == 0 || d.cfg.AlignmentTimeout < first) {
			first = d.cfg.AlignmentTimeout
		}
		if ok != (first > 0) || ok && !next.Equal(later(d.now, d.injectedAt.Add(first))) {
			d.Fatalf("timeout of %d at %v, %v, want %s after %v", d.id, next, ok, first, d.injectedAt)
		}
		if d.event.kind == "tick" && d.expired() {
			d.Fatalf("%d ran out of time and is still %s", d.id, d.phase)
		}
	case Committing:
		if ok {
			d.Fatalf("a timer at %v while %d is committed", next, d.id)
		}
	}
}

func (d *drive) tick() {
	d.happen(event{kind: "tick"}, func() []Action { return d.c.Tick(d.now) })
}

func (d *drive) observe(records, bytes int64) {
	d.open.join(held{records: records, bytes: bytes, dirty: records+bytes > 0})
	d.happen(event{kind: "observe"}, func() []Action { return d.c.Observe(d.now, records, bytes) })
}

func (d *drive) markDirty() {
	d.open.dirty = true
	d.happen(event{kind: "dirty"}, func() []Action { return d.c.MarkDirty(d.now) })
}

func (d *drive) request(r Reason) {
	d.shutdown = d.shutdown || r == Shutdown
	if r != Shutdown || d.phase != 0 || d.open.dirty || len(d.open.asked) > 0 {
		d.open.ask(r)
		d.open.fresh = d.open.fresh || r != Memory
	}
	d.happen(event{kind: "request"}, func() []Action { return d.c.Request(d.now, r) })
}

func (d *drive) ack(i int) {
	a := d.acks[i]
	d.acks = slices.Delete(d.acks, i, i+1)
	if a.id == d.id && d.finished[a.subtask] {
		return // it keeps the contract: its end said so already
	}
	if a.id == d.id {
		d.acked[a.subtask] = true
	}
	d.happen(event{kind: "ack", id: a.id}, func() []Action { return d.c.Ack(d.now, a.subtask, a.id) })
}

func (d *drive) finish(s int) {
	if d.finished[s] || d.over != nil {
		return
	}
	d.finished[s] = true
	d.happen(event{kind: "finish"}, func() []Action { return d.c.SubtaskFinished(d.now, s) })
}

func (d *drive) persisted(i int, ok bool) {
	id := d.persists[i]
	d.persists = slices.Delete(d.persists, i, i+1)
	if ok {
		d.happen(event{kind: "persisted", id: id}, func() []Action { return d.c.Persisted(d.now, id) })
		return
	}
	d.happen(event{"persist-failed", id, errStore}, func() []Action { return d.c.PersistFailed(d.now, id, errStore) })
}

func (d *drive) commit(ok bool) {
	id := d.commits[0]
	d.commits = nil
	if ok {
		d.happen(event{kind: "committed", id: id}, func() []Action { return d.c.Committed(d.now, id) })
		return
	}
	d.happen(event{"commit-failed", id, errCommit}, func() []Action { return d.c.CommitFailed(d.now, id, errCommit) })
}

// TestS08_CoordinatorKeepsItsRulesWhateverHappens drives a Coordinator through random events,
// late and failing ones included, and then to its end.
func TestS08_CoordinatorKeepsItsRulesWhateverHappens(t *testing.T) {
	rapid.Check(t, checkCoordinator)
}

func FuzzCoordinator(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkCoordinator)) }

func checkCoordinator(t *rapid.T) {
	cfg := CoordinatorConfig{
		Subtasks:          rapid.IntRange(1, 3).Draw(t, "subtasks"),
		LastID:            rapid.Int64Range(0, 100).Draw(t, "last id"),
		Timeout:           drawDuration(t, "timeout"),
		TolerableFailures: rapid.IntRange(0, 3).Draw(t, "tolerable"),
		Unaligned:         rapid.Bool().Draw(t, "unaligned"),
		AlignmentTimeout:  drawDuration(t, "alignment timeout"),
		Trigger:           drawTrigger(t),
	}
	c, err := NewCoordinator(cfg, epoch0)
	if err != nil {
		t.Fatal(err)
	}
	d := &drive{c: c, ledger: &ledger{T: t, cfg: cfg, now: epoch0, id: cfg.LastID, injectedAt: epoch0, finished: map[int]bool{}}}
	rare := func(label string) bool { return rapid.IntRange(0, 19).Draw(t, label) == 0 }
	for range rapid.IntRange(1, 120).Draw(t, "events") {
		switch rapid.IntRange(0, 11).Draw(t, "event") {
		case 0, 1:
			d.observe(rapid.Int64Range(0, 20).Draw(t, "records"), rapid.Int64Range(0, 200).Draw(t, "bytes"))
		case 2:
			if rare("dirty") {
				d.markDirty()
			}
		case 3:
			if rapid.IntRange(0, 3).Draw(t, "request") == 0 {
				d.request(rapid.SampledFrom([]Reason{Memory, Requested, Requested, Revoke}).Draw(t, "reason"))
			} else if rare("shutdown") {
				d.request(Shutdown)
			}
		case 4:
			if rare("finish") {
				d.finish(rapid.IntRange(0, cfg.Subtasks-1).Draw(t, "subtask"))
			}
		case 5, 6, 7:
			if len(d.acks) > 0 {
				d.ack(rapid.IntRange(0, len(d.acks)-1).Draw(t, "ack"))
			}
		case 8, 9:
			if len(d.commits) > 0 {
				d.commit(!rare("commit fails"))
			} else if len(d.persists) > 0 {
				d.persisted(rapid.IntRange(0, len(d.persists)-1).Draw(t, "persist"), rapid.IntRange(0, 3).Draw(t, "persist fails") > 0)
			}
		case 10: // the timer fires, in time or late
			if next, ok := c.Next(d.now); ok {
				d.now = next
				if rare("late") {
					d.now = d.now.Add(drawDuration(t, "by"))
				}
				d.tick()
			}
		case 11:
			d.now = d.now.Add(drawDuration(t, "passed"))
			if rapid.Bool().Draw(t, "tick") {
				d.tick()
			}
		}
	}
	d.bringToAnEnd(rapid.Bool().Draw(t, "drain"))
}

// bringToAnEnd lets nothing fail from here on. Then the job must stop, after it committed
// everything that was observed.
func (d *drive) bringToAnEnd(drain bool) {
	if d.over != nil {
		return // what it reported after that is nobody's concern
	}
	failed := func() bool { _, ok := d.over.(Fail); return ok }
	ending := d.shutdown
	if !ending && drain {
		for s := range d.cfg.Subtasks {
			d.finish(s)
		}
	} else if !ending {
		d.request(Shutdown)
	}
	for range 1000 {
		switch {
		case d.over != nil:
			if !failed() && !ending && (d.open.dirty || d.taken.dirty) {
				d.Fatalf("stopped with %+v and %+v not committed", d.open, d.taken)
			}
			return
		case len(d.acks) > 0:
			d.ack(0)
		case len(d.commits) > 0:
			d.commit(true)
		case len(d.persists) > 0:
			d.persisted(0, true)
		default:
			next, ok := d.c.Next(d.now)
			if !ok {
				d.Fatalf("it neither ends nor waits for anything")
			}
			d.now = next
			d.tick()
		}
	}
	d.Fatalf("it doesn't end")
}
