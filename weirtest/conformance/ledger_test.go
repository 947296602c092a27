package conformance

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weirstream/weir/sink"
)

// ledger is a receiver in memory that keeps every value in the order in which it came, and
// a marker that moves with them.
type ledger struct {
	mu      sync.Mutex
	values  []string
	markers map[string]*marker // by app and operator
}

type marker struct {
	lineage    string
	checkpoint int64
	instance   string
}

func (a *ledgerApplier) marker() *marker {
	who := a.env.App() + " " + a.env.Operator()
	if a.broken == "AnotherSinkIsTakenForNoOther" {
		who = a.env.App()
	}
	if a.to.markers[who] == nil {
		a.to.markers[who] = &marker{}
	}
	return a.to.markers[who]
}

func (l *ledger) contents() any {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]string{}, l.values...)
}

// ledgerSink is a write-ahead sink to a ledger, right or with a mistake.
type ledgerSink struct {
	to     *ledger
	broken string
}

func (ledgerSink) Check() error { return nil }

func (s ledgerSink) String() string {
	if s.broken == "TheDescriptionIsFit" {
		return ""
	}
	return "a ledger"
}

func (s ledgerSink) Open(sink.Env) (sink.Writer[string], error) {
	return &ledgerWriter{ledgerSink: s}, nil
}

func (s ledgerSink) Applier(env sink.ApplierEnv) (sink.Applier, error) {
	return &ledgerApplier{ledgerSink: s, env: env, arrived: make(chan struct{}, 1), changed: make(chan struct{}), blocked: make(chan sink.Log)}, nil
}

type ledgerWriter struct {
	ledgerSink
	open []string
	buf  []byte
}

func (w *ledgerWriter) Write(v string) error {
	w.open = append(w.open, v)
	return nil
}

func (w *ledgerWriter) Log() ([]byte, error) {
	if len(w.open) == 0 {
		return nil, nil
	}
	b, err := json.Marshal(w.open)
	switch w.broken {
	case "NothingIsDoneBeforeTheCommit":
		w.to.mu.Lock()
		w.to.values = append(w.to.values, w.open...)
		w.to.mu.Unlock()
	case "ALogIsGivenOnce":
		return b, err
	case "ALogBelongsToTheRuntime":
		w.buf = append(w.buf[:0], b...)
		b = w.buf
	}
	w.open = w.open[:0]
	return b, err
}

type ledgerApplier struct {
	ledgerSink
	env     sink.ApplierEnv
	arrived chan struct{}
	blocked chan sink.Log

	mu        sync.Mutex
	recovered bool
	queue     []sink.Log
	newest    int64
	changed   chan struct{}
}

func (a *ledgerApplier) Recover(_ context.Context, _ int64, logs []sink.Log) error {
	a.recovered = true
	if a.broken == "ARestartAppliesWhatIsMissing" {
		if n := len(logs); n > 0 {
			a.to.mu.Lock()
			a.marker().lineage, a.marker().checkpoint = logs[n-1].Lineage, logs[n-1].Checkpoint
			a.to.mu.Unlock()
		}
		return nil
	}
	for _, l := range logs {
		a.add(l)
	}
	if a.broken == "ARestartRepeatsNothing" {
		a.to.mu.Lock()
		a.marker().checkpoint = 0
		a.to.mu.Unlock()
	}
	return nil
}

func (a *ledgerApplier) add(l sink.Log) {
	a.mu.Lock()
	a.queue = append(a.queue, l)
	a.newest = l.Checkpoint
	a.mu.Unlock()
	select {
	case a.arrived <- struct{}{}:
	default:
	}
}

func (a *ledgerApplier) Committed(l sink.Log) {
	a.add(l)
	if a.broken == "CommittedDoesNotBlock" {
		a.blocked <- l
	}
}

func (a *ledgerApplier) Run(ctx context.Context) error {
	for {
		a.mu.Lock()
		var next *sink.Log
		if len(a.queue) > 0 {
			l := a.queue[0]
			next = &l
		}
		a.mu.Unlock()
		if next == nil {
			select {
			case <-a.arrived:
			case <-a.blocked:
			case <-ctx.Done():
				return a.ended(ctx)
			}
			continue
		}
		if err := a.apply(ctx, *next); err != nil {
			if ctx.Err() != nil {
				return a.ended(ctx)
			}
			return err
		}
		a.mu.Lock()
		a.queue = a.queue[1:]
		close(a.changed)
		a.changed = make(chan struct{})
		a.mu.Unlock()
		if ctx.Err() != nil {
			return a.ended(ctx)
		}
	}
}

// ended is what Run returns when ctx has ended.
func (a *ledgerApplier) ended(ctx context.Context) error {
	if a.broken == "RunEndsWithItsContext" {
		return ctx.Err()
	}
	return nil
}

// apply applies a log in one atomic step.
func (a *ledgerApplier) apply(ctx context.Context, l sink.Log) error {
	if a.broken == "CheckpointsWithoutOperations" && l.Bytes == 0 {
		return errors.New("an empty log")
	}
	parts, err := l.Read(ctx)
	if err != nil && a.broken != "ALogThatCannotBeReadIsAnError" {
		return err
	}
	if a.broken == "LogsAreAppliedInOrder" {
		slices.Reverse(parts)
	}
	var values []string
	for _, p := range parts {
		var vs []string
		if err := json.Unmarshal(p, &vs); err != nil {
			return err
		}
		values = append(values, vs...)
		if a.broken == "ALogIsNotChanged" {
			clear(p)
		}
	}
	if a.broken == "WhatIsCommittedIsApplied" && len(values) > 0 {
		values = values[1:]
	}
	to := a.to
	to.mu.Lock()
	defer to.mu.Unlock()
	pause := func() {
		to.mu.Unlock()
		time.Sleep(time.Millisecond)
		to.mu.Lock()
	}
	at := a.marker()
	applied := at.checkpoint >= l.Checkpoint
	lineage := l.Lineage
	if a.broken == "ASavepointsLogsAreAppliedOnce" {
		lineage = a.env.Lineage()
		applied = applied && at.lineage == lineage
	}
	if a.broken == "the marker is an instance's" {
		applied = applied && at.instance == a.env.Instance()
		at.instance = a.env.Instance()
	}
	if applied {
		return nil
	}
	if at.checkpoint < l.After && a.broken != "ALossIsALoudStop" {
		return fmt.Errorf("the marker stands at %d, and the logs up to %d are gone", at.checkpoint, l.After)
	}
	if a.broken == "AZombieRepeatsNothing" {
		pause()
	}
	to.values = append(to.values, values...)
	if a.broken == "AKillAnywhereRepeatsAndLosesNothing" {
		if pause(); ctx.Err() != nil {
			return ctx.Err()
		}
	}
	at.lineage, at.checkpoint = lineage, l.Checkpoint
	return nil
}

func (a *ledgerApplier) Drain(ctx context.Context) error {
	for {
		a.mu.Lock()
		left, changed := len(a.queue), a.changed
		a.mu.Unlock()
		if left == 0 || a.broken == "DrainWaitsUntilAllIsApplied" {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *ledgerApplier) Keep() int64 {
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) > 0 && a.broken != "KeepHoldsWhatIsNotApplied" {
		return a.queue[0].Checkpoint
	}
	return a.newest + 1
}

func (a *ledgerApplier) Room(ctx context.Context) error {
	if a.broken == "RoomEndsWithItsContext" && ctx.Err() != nil {
		select {}
	}
	return ctx.Err()
}

func (a *ledgerApplier) Close() error {
	if a.broken == "CloseMayComeFirst" && !a.recovered {
		return errors.New("it was never used")
	}
	return nil
}

func TestEachRuleForWriteAheadSinksFindsWhatBreaksIt(t *testing.T) {
	suite := func(broken string) []rule {
		return WriteAhead[string]{Values: samples, New: func(testing.TB) Receiver[string] {
			to := &ledger{markers: map[string]*marker{}}
			return Receiver[string]{
				Sink:     func() sink.Sink[string] { return ledgerSink{to, broken} },
				Contents: to.contents,
				Want:     func(vs []string) any { return append([]string{}, vs...) },
			}
		}}.rules()
	}
	var controls []control
	for _, r := range suite("") {
		controls = append(controls, control{r.name, suite(r.name)})
	}
	controls = append(controls, control{"ARestartRepeatsNothing", suite("the marker is an instance's")})
	every(t, suite(""), controls)
}
