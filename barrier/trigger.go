package barrier

import (
	"errors"
	"fmt"
	"strings"
	"time"
)

// Reason says why a checkpoint is taken.
type Reason uint8

// The reasons. Memory, Requested, Revoke and Shutdown can be asked for; the others come
// from the stream itself.
const (
	Interval  Reason = iota + 1 // TriggerConfig.Every has passed
	Records                     // TriggerConfig.Records were observed
	Bytes                       // TriggerConfig.Bytes were observed
	Drain                       // every subtask has finished
	Memory                      // what changed since the last one fills the memory
	Requested                   // somebody asked for a savepoint or a checkpoint
	Revoke                      // partitions are taken away
	Shutdown                    // the job is to stop
)

var reasonNames = [...]string{Interval: "interval", Records: "records", Bytes: "bytes", Drain: "drain", Memory: "memory", Requested: "requested", Revoke: "revoke", Shutdown: "shutdown"}

func (r Reason) String() string {
	if r < Interval || r > Shutdown {
		return fmt.Sprintf("reason(%d)", uint8(r))
	}
	return reasonNames[r]
}

// requestable tells whether r may be passed to Request.
func (r Reason) requestable() bool { return r >= Memory && r <= Shutdown }

// reasonSet is a set of reasons, one bit each.
type reasonSet uint16

func (s reasonSet) has(r Reason) bool       { return s&(1<<r) != 0 }
func (s reasonSet) with(r Reason) reasonSet { return s | 1<<r }

// first returns the most pressing reason, which is the last of the constants.
func (s reasonSet) first() Reason {
	for r := Shutdown; r >= Interval; r-- {
		if s.has(r) {
			return r
		}
	}
	return 0
}

// requests returns what can be asked for, in the order of the constants.
func (s reasonSet) requests() []Reason {
	var rs []Reason
	for r := Memory; r <= Shutdown; r++ {
		if s.has(r) {
			rs = append(rs, r)
		}
	}
	return rs
}

func join(rs []Reason) string {
	names := make([]string, len(rs))
	for i, r := range rs {
		names[i] = r.String()
	}
	return strings.Join(names, ",")
}

// TriggerConfig says when checkpoints are due. A zero field takes no part; with all of
// Every, Records and Bytes zero only requests lead to checkpoints.
type TriggerConfig struct {
	// Every is the time from the start of a checkpoint to the start of the next. An
	// epoch without input is not due by it; the first input after a pause that was
	// longer than Every is due at once.
	Every time.Duration
	// Records and Bytes bound an epoch by what was observed in it.
	Records, Bytes int64
	// MinPause is the least time from the end of a checkpoint, whatever its outcome,
	// to the start of the next. Requests override it.
	MinPause time.Duration
	// RetryPause is the least time from the end of a failed checkpoint to the start
	// of the next. Without it a store that refuses at once uses up the tolerable
	// failures in no time when what was observed is beyond Records or Bytes. It also
	// holds back requests that were part of the failed checkpoint; a request that
	// came later overrides it, except for Memory: memory stays full for as long as
	// checkpoints fail, and would ask again at once.
	RetryPause time.Duration
}

// Validate reports every field that is negative.
func (c TriggerConfig) Validate() error {
	var errs []error
	for _, f := range []struct {
		name  string
		value int64
		text  string
	}{
		{"interval", int64(c.Every), c.Every.String()},
		{"record limit", c.Records, fmt.Sprint(c.Records)},
		{"byte limit", c.Bytes, fmt.Sprint(c.Bytes)},
		{"minimum pause", int64(c.MinPause), c.MinPause.String()},
		{"retry pause", int64(c.RetryPause), c.RetryPause.String()},
	} {
		if f.value < 0 {
			errs = append(errs, fmt.Errorf("checkpoint %s is %s: must not be negative, 0 turns it off", f.name, f.text))
		}
	}
	return errors.Join(errs...)
}

// epoch is what was observed and asked for since a barrier.
type epoch struct {
	records, bytes int64
	dirty          bool
	asked          reasonSet
}

func (e *epoch) add(o epoch) {
	e.records += o.records
	e.bytes += o.bytes
	e.dirty = e.dirty || o.dirty
	e.asked |= o.asked
}

// Trigger decides when the next checkpoint is due. While one is under way (between Begun
// and Ended or Failed) nothing is due; what is observed and asked for meanwhile belongs
// to the next.
//
// It is driven by one goroutine, as part of a Coordinator or alone. It allocates nothing.
type Trigger struct {
	cfg     TriggerConfig
	open    epoch // since the last Begun
	taken   epoch // in the checkpoint under way
	running bool
	fresh   bool      // somebody who waits asked since the last Begun
	begunAt time.Time // start of the last checkpoint, or of the Trigger
	pauseTo time.Time // MinPause
	retryAt time.Time // RetryPause
}

// NewTrigger returns a Trigger whose first interval starts now. See
// [TriggerConfig.Validate]; a negative field counts as zero.
func NewTrigger(cfg TriggerConfig, now time.Time) *Trigger {
	return &Trigger{cfg: cfg, begunAt: now}
}

// Observe adds records and bytes to the open epoch. Nothing of either changes nothing.
func (t *Trigger) Observe(records, bytes int64) {
	if records <= 0 && bytes <= 0 {
		return
	}
	t.open.add(epoch{records: max(records, 0), bytes: max(bytes, 0), dirty: true})
}

// MarkDirty says that the open epoch changed something without input, such as a timer
// that fired.
func (t *Trigger) MarkDirty() { t.open.dirty = true }

// Dirty tells whether the open epoch holds anything to commit. What is in the checkpoint
// under way doesn't count.
func (t *Trigger) Dirty() bool { return t.open.dirty }

// Request asks for a checkpoint, for one of the reasons Memory, Requested, Revoke and Shutdown;
// others are ignored. It is due at once, or right after the one under way, which may have
// been cut too early for whoever asks. Memory waits for the end of RetryPause. Equal requests
// become one.
func (t *Trigger) Request(r Reason) {
	if !r.requestable() {
		return
	}
	t.open.asked = t.open.asked.with(r)
	if r != Memory {
		t.fresh = true
	}
}

// drain asks for a checkpoint like Request, except that it never overrides RetryPause:
// nobody waits for it, and it is asked for again after a failure.
func (t *Trigger) drain() { t.open.asked = t.open.asked.with(Drain) }

// Due tells whether a checkpoint is to be taken now, and why.
func (t *Trigger) Due(now time.Time) (reason Reason, ok bool) {
	if at, ok := t.at(); !ok || now.Before(at) {
		return 0, false
	}
	switch {
	case t.open.asked != 0:
		return t.open.asked.first(), true
	case t.cfg.Records > 0 && t.open.records >= t.cfg.Records:
		return Records, true
	case t.cfg.Bytes > 0 && t.open.bytes >= t.cfg.Bytes:
		return Bytes, true
	}
	return Interval, true
}

// Next returns the time at which a checkpoint becomes due if nothing more is observed or
// asked for, at the earliest now. It returns false if time alone makes none due.
func (t *Trigger) Next(now time.Time) (time.Time, bool) {
	at, ok := t.at()
	if !ok {
		return time.Time{}, false
	}
	if at.Before(now) {
		at = now
	}
	return at, true
}

// at returns the time from which on a checkpoint is due.
func (t *Trigger) at() (at time.Time, ok bool) {
	if t.running {
		return time.Time{}, false
	}
	if t.open.asked != 0 {
		if t.fresh {
			return t.begunAt, true
		}
		return t.retryAt, true
	}
	if !t.open.dirty {
		return time.Time{}, false
	}
	full := t.cfg.Records > 0 && t.open.records >= t.cfg.Records || t.cfg.Bytes > 0 && t.open.bytes >= t.cfg.Bytes
	if !full {
		if t.cfg.Every <= 0 {
			return time.Time{}, false
		}
		at = t.begunAt.Add(t.cfg.Every)
	}
	return later(at, later(t.pauseTo, t.retryAt)), true
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// Begun says that a checkpoint was started: a new epoch begins.
func (t *Trigger) Begun(now time.Time) {
	t.taken.add(t.open)
	t.open = epoch{}
	t.fresh = false
	t.running = true
	t.begunAt = now
}

// Ended says that the checkpoint under way was committed.
func (t *Trigger) Ended(now time.Time) {
	t.taken = epoch{}
	t.running = false
	t.pauseTo = now.Add(max(t.cfg.MinPause, 0))
	t.retryAt = time.Time{}
}

// Failed says that the checkpoint under way was given up. What it held is part of the
// open epoch again: it stays observed, dirty and asked for.
func (t *Trigger) Failed(now time.Time) {
	t.open.add(t.taken)
	t.taken = epoch{}
	t.running = false
	t.pauseTo = now.Add(max(t.cfg.MinPause, 0))
	t.retryAt = now.Add(max(t.cfg.RetryPause, 0))
}
