package conformance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/sink"
)

// WriteAhead checks a [sink.WriteAhead]: it plays the part of the runtime, with processes
// that are killed anywhere, and looks whether the receiver has each effect once. The
// contract is that of package sink.
type WriteAhead[T any] struct {
	// New returns a receiver that is empty and used for one rule. Its Contents and Want are
	// needed; they should tell in which order values came, and how often.
	New func(t testing.TB) Receiver[T]
	// Values are samples to write, at least six. They are not changed.
	Values []T
}

// Run runs the suite, each rule as a subtest.
func (s WriteAhead[T]) Run(t *testing.T) { run(t, s.rules()) }

func (s WriteAhead[T]) rules() []rule {
	of := func(check func(w *world[T])) func(t testing.TB) {
		return func(t testing.TB) {
			r := s.New(t)
			if len(s.Values) < 6 || r.Contents == nil || r.Want == nil {
				t.Fatalf("the suite has %d sample values and needs at least six; it needs Contents and Want of its receiver", len(s.Values))
			}
			check(&world[T]{t: t, r: r, values: s.Values, lineage: "00000000000000a1"})
		}
	}
	return []rule{
		{"TheDescriptionIsFit", of((*world[T]).fit)},
		{"NothingIsDoneBeforeTheCommit", of((*world[T]).nothingEarly)},
		{"WhatIsCommittedIsApplied", of((*world[T]).applied)},
		{"LogsAreAppliedInOrder", of((*world[T]).inOrder)},
		{"ALogIsGivenOnce", of((*world[T]).givenOnce)},
		{"ALogBelongsToTheRuntime", of((*world[T]).ownBytes)},
		{"ARestartAppliesWhatIsMissing", of((*world[T]).missing)},
		{"ARestartRepeatsNothing", of((*world[T]).repeats)},
		{"AKillAnywhereRepeatsAndLosesNothing", of((*world[T]).kills)},
		{"AZombieRepeatsNothing", of((*world[T]).zombie)},
		{"ASavepointsLogsAreAppliedOnce", of((*world[T]).savepoint)},
		{"AnotherSinkIsTakenForNoOther", of((*world[T]).others)},
		{"ALossIsALoudStop", of((*world[T]).loss)},
		{"ALogThatCannotBeReadIsAnError", of((*world[T]).unreadable)},
		{"ALogIsNotChanged", of((*world[T]).readsOnly)},
		{"KeepHoldsWhatIsNotApplied", of((*world[T]).keeps)},
		{"DrainWaitsUntilAllIsApplied", of((*world[T]).drains)},
		{"CommittedDoesNotBlock", of((*world[T]).noBlock)},
		{"CheckpointsWithoutOperations", of((*world[T]).empty)},
		{"RunEndsWithItsContext", of((*world[T]).ends)},
		{"RoomEndsWithItsContext", of((*world[T]).room)},
		{"CloseMayComeFirst", of((*world[T]).closes)},
	}
}

// world is what survives a process: the receiver, and the checkpoints with their logs.
type world[T any] struct {
	t       testing.TB
	r       Receiver[T]
	values  []T
	lineage string
	logs    []sink.Log // that the last checkpoint lists
	last    int64      // the last checkpoint
	after   int64      // that of the newest log with operations
	done    []T        // what is committed
	lives   int

	app, operator string // of the sink; empty: those of the suite
}

// life is a process.
type life[T any] struct {
	w       *world[T]
	ctx     context.Context
	end     context.CancelFunc
	sink    sink.Sink[T]
	applier sink.Applier
	writers []sink.Writer[T]
	runs    bool
	ran     chan error // what Run returned
	over    sync.Once
}

// writers of a life.
const subtasks = 2

// start makes applier and writers, and does not recover.
func (w *world[T]) start() *life[T] {
	w.t.Helper()
	l := &life[T]{w: w, sink: w.r.Sink(), ran: make(chan error, 1)}
	l.ctx, l.end = context.WithCancel(context.Background())
	ahead, ok := l.sink.(sink.WriteAhead)
	if !ok {
		w.t.Fatalf("%T is no sink.WriteAhead", l.sink)
	}
	var err error
	env := applierEnv{l.ctx, cmp.Or(w.app, "app"), cmp.Or(w.operator, operator), w.lineage, instance(w.lives)}
	if l.applier, err = ahead.Applier(env); err != nil {
		w.t.Fatalf("Applier: %v", err)
	}
	w.lives++
	w.t.Cleanup(l.kill)
	l.writers, _ = openAs(w.t, l.ctx, env.operator, l.sink, subtasks, l.applier)
	return l
}

// recover is what follows a restore.
func (l *life[T]) recover() error {
	var err error
	within(l.w.t, "Recover", func() { err = l.applier.Recover(l.ctx, l.w.last, slices.Clone(l.w.logs)) })
	return err
}

// run lets the applier run.
func (l *life[T]) run() {
	l.runs = true
	go func() { l.ran <- l.applier.Run(l.ctx) }()
}

// kill ends the process where it is.
func (l *life[T]) kill() {
	l.over.Do(func() {
		l.end()
		if l.runs {
			within(l.w.t, "Run whose context has ended", func() { l.ran <- <-l.ran })
		}
		if err := l.applier.Close(); err != nil {
			l.w.t.Errorf("Close: %v", err)
		}
	})
}

// begin starts a process as the runtime does it.
func (w *world[T]) begin() *life[T] {
	w.t.Helper()
	l := w.start()
	if err := l.recover(); err != nil {
		w.t.Fatalf("Recover: %v", err)
	}
	l.run()
	return l
}

// cut ends an epoch: it returns what the writers log.
func (l *life[T]) cut(perSubtask ...[]T) (parts [][]byte) {
	l.w.t.Helper()
	for i, vs := range perSubtask {
		write(l.w.t, l.writers[i], vs...)
	}
	for i, w := range l.writers {
		flush(l.w.t, l.ctx, w)
		log, ok := any(w).(sink.Logger)
		if !ok {
			l.w.t.Fatalf("writer %d is no sink.Logger", i)
		}
		b, err := log.Log()
		if err != nil {
			l.w.t.Fatalf("Log: %v", err)
		}
		if len(b) > 0 {
			parts = append(parts, b)
		}
	}
	return parts
}

// commit makes a checkpoint of what was logged, and commits it. Nobody is told.
func (l *life[T]) commit(parts [][]byte, values ...T) sink.Log {
	w := l.w
	keep := l.applier.Keep()
	w.logs = slices.DeleteFunc(slices.Clone(w.logs), func(l sink.Log) bool { return l.Checkpoint < keep })
	w.last++
	log := sink.Log{Checkpoint: w.last, Lineage: w.lineage, After: w.after, Created: time.Now(),
		Read: func(ctx context.Context) ([][]byte, error) { return parts, ctx.Err() }}
	for _, p := range parts {
		log.Bytes += int64(len(p))
	}
	if log.Bytes > 0 {
		w.logs = append(w.logs, log)
		w.after = log.Checkpoint
	}
	w.done = append(w.done, values...)
	return log
}

// checkpoint writes values on one subtask, commits them and hands them over.
func (l *life[T]) checkpoint(values ...T) {
	l.w.t.Helper()
	l.applier.Committed(l.commit(l.cut(values), values...))
}

func (l *life[T]) drain() {
	l.w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- l.applier.Drain(ctx) }()
	select {
	case err := <-drained:
		if err != nil {
			l.w.t.Fatalf("Drain: %v", err)
		}
	case err := <-l.ran:
		l.ran <- err
		l.w.t.Fatalf("Run ended: %v", err)
	}
}

// verify compares the receiver with what is committed.
func (w *world[T]) verify(when string) { w.t.Helper(); w.holds(when, w.done) }

func (w *world[T]) holds(when string, values []T) {
	w.t.Helper()
	if got, want := w.r.Contents(), w.r.Want(values); !reflect.DeepEqual(got, want) {
		w.t.Fatalf("%s the receiver holds\n    %+v, want\n    %+v", when, got, want)
	}
}

func (w *world[T]) fit() {
	to := w.r.Sink()
	if err := to.Check(); err != nil {
		w.t.Fatalf("Check of a sink that is right: %v", err)
	}
	if to.String() == "" {
		w.t.Error("String says nothing: plans and messages show it")
	}
	l := w.begin()
	for i, wr := range l.writers {
		if _, ok := wr.(sink.Logger); !ok {
			w.t.Errorf("writer %d is no sink.Logger: every writer of a sink.WriteAhead is one", i)
		}
	}
}

func (w *world[T]) nothingEarly() {
	l := w.begin()
	l.checkpoint(w.values[0])
	l.drain()
	w.verify("after a commit")
	l.cut(w.values[1:3], w.values[3:4])
	l.drain()
	w.verify("after a barrier whose checkpoint is not committed")
	l.kill()
	w.verify("after the end of a process that had logged more than was committed")
	l = w.begin()
	l.drain()
	w.verify("after the restart that followed")
}

func (w *world[T]) applied() {
	l := w.begin()
	for _, v := range w.values {
		l.checkpoint(v)
		l.drain()
		w.verify("after a commit and Drain")
	}
}

func (w *world[T]) inOrder() {
	l := w.begin()
	for range 20 {
		l.checkpoint(w.values...)
	}
	// Parts are in the order of subtasks.
	half := len(w.values) / 2
	l.applier.Committed(l.commit(l.cut(w.values[half:], w.values[:half]), append(slices.Clone(w.values[half:]), w.values[:half]...)...))
	l.drain()
	w.verify("after many commits")
}

func (w *world[T]) givenOnce() {
	l := w.begin()
	if parts := l.cut(); len(parts) != 0 {
		w.t.Fatalf("Log gives %d bytes although nothing was written", len(parts[0]))
	}
	l.applier.Committed(l.commit(l.cut(w.values[:1]), w.values[0]))
	if parts := l.cut(); len(parts) != 0 {
		w.t.Fatalf("Log gives %d bytes although nothing was written since it was called last", len(parts[0]))
	}
	l.drain()
	w.verify("in the end")
}

func (w *world[T]) ownBytes() {
	l := w.begin()
	parts := l.cut(w.values[:2])
	var before []string
	for _, p := range parts {
		before = append(before, string(p))
	}
	for i := range 50 {
		l.cut(w.values[i%4+1:i%4+3], w.values[:i%len(w.values)])
	}
	for i, p := range parts {
		if string(p) != before[i] {
			w.t.Fatalf("a log changed when more was written: it was %x, and is %x", before[i], p)
		}
	}
}

func (w *world[T]) missing() {
	l := w.begin()
	l.checkpoint(w.values[0])
	l.drain()
	l.commit(l.cut(w.values[1:3]), w.values[1:3]...) // killed at the commit point
	l.kill()
	l = w.begin()
	l.drain()
	w.verify("after a restart")
	l.checkpoint(w.values[3:]...)
	l.drain()
	w.verify("after the next commit")
}

func (w *world[T]) repeats() {
	l := w.begin()
	l.checkpoint(w.values[:2]...)
	l.checkpoint(w.values[2:3]...)
	l.drain()
	for i := range 4 {
		l.kill()
		l = w.begin()
		l.drain()
		w.verify(fmt.Sprintf("after restart %d with logs that were applied", i+1))
	}
	l.checkpoint(w.values[3:]...)
	l.drain()
	w.verify("after the next commit")
}

func (w *world[T]) kills() {
	for i := range 30 {
		l := w.begin()
		for j := range 3 {
			l.checkpoint(w.values[(i+j)%len(w.values)])
		}
		if i%3 == 0 {
			time.Sleep(time.Duration(i) * 100 * time.Microsecond) // for the applier to be anywhere
		}
		l.kill()
	}
	w.begin().drain()
	w.verify("after 30 kills")
}

func (w *world[T]) zombie() {
	for i := range 10 {
		old := w.start()
		if err := old.recover(); err != nil {
			w.t.Fatalf("Recover: %v", err)
		}
		// All of it is handed over, and nothing applied yet, when another process takes over.
		var logs []sink.Log
		for j := range 4 {
			v := w.values[(i+j)%len(w.values)]
			logs = append(logs, old.commit(old.cut([]T{v}), v))
		}
		for _, log := range logs {
			old.applier.Committed(log)
		}
		successor := w.start()
		if err := successor.recover(); err != nil {
			w.t.Fatalf("Recover: %v", err)
		}
		old.run()
		successor.run()
		successor.drain()
		w.verify("after a process and the one that replaced it applied the same logs")
		// It may find out that it was overtaken, and end; it may not change anything.
		old.kill()
		w.verify("after the end of the replaced process")
		successor.kill()
	}
}

func (w *world[T]) savepoint() {
	l := w.begin()
	l.checkpoint(w.values[0])
	l.drain()
	l.commit(l.cut(w.values[1:2]), w.values[1])
	l.kill()
	// An app starts from what this one left, in a lineage of its own.
	w.last += 100
	for _, lineage := range []string{"00000000000000b2", "00000000000000c3"} {
		w.lineage = lineage // made anew when a start ends before its first commit
		l = w.begin()
		l.drain()
		w.verify("after the start from a savepoint")
		l.kill()
	}
	l = w.begin()
	l.checkpoint(w.values[2])
	l.drain()
	w.verify("after the first commit of the new lineage")
	l.kill()
	l = w.begin()
	l.drain()
	w.verify("after a restart in the new lineage")
}

// others are another sink of the app, and one of another app, at the same receiver.
func (w *world[T]) others() {
	sinks := []*world[T]{w,
		{t: w.t, r: w.r, values: w.values, lineage: w.lineage, operator: operator + "2"},
		{t: w.t, r: w.r, values: w.values, lineage: "00000000000000b2", app: "app2"},
	}
	var all []T
	for i := range 3 {
		for j, of := range sinks {
			l := of.begin() // with logs that were applied, and the others' since then
			l.drain()
			w.holds("after a start beside other sinks", all)
			v := w.values[(i+j)%len(w.values)]
			all = append(all, v)
			l.checkpoint(v)
			l.drain()
			w.holds("after a commit beside other sinks", all)
			l.kill()
		}
	}
}

func (w *world[T]) loss() {
	l := w.begin()
	for _, v := range w.values[:4] {
		l.checkpoint(v)
	}
	l.drain()
	l.kill()
	// The receiver has not heard of the logs before the last one, and they are not kept.
	last := w.logs[len(w.logs)-1]
	fresh := &world[T]{t: w.t, r: w.r, values: w.values, lineage: w.lineage, last: w.last + 2}
	gone := sink.Log{Checkpoint: w.last + 2, Lineage: w.lineage, After: w.last + 1, Created: time.Now(), Bytes: last.Bytes, Read: last.Read}
	fresh.logs = []sink.Log{gone}
	err := fresh.refused()
	if err == nil {
		w.t.Fatalf("the log of checkpoint %d follows that of %d, of which the receiver has nothing and which is not kept: it was applied all the same, want an error of Recover or Run", gone.Checkpoint, gone.After)
	}
	if errors.Is(err, context.DeadlineExceeded) {
		w.t.Fatalf("the log of checkpoint %d can't be applied, and nobody says so: want an error of Recover or Run", gone.Checkpoint)
	}
	w.verify("after the refusal")
}

// refused starts a process that can't go on, and returns what it says.
func (w *world[T]) refused() error {
	w.t.Helper()
	l := w.start()
	if err := l.recover(); err != nil {
		return err
	}
	l.run()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	drained := make(chan error, 1)
	go func() { drained <- l.applier.Drain(ctx) }()
	select {
	case err := <-l.ran:
		l.ran <- err
		return err
	case err := <-drained:
		return err
	}
}

func (w *world[T]) unreadable() {
	l := w.begin()
	l.checkpoint(w.values[0])
	l.drain()
	l.commit(l.cut(w.values[1:3]), w.values[1:3]...)
	l.kill()
	was := slices.Clone(w.logs)
	damaged := &checkpoint.DamagedError{Object: "log", Store: "store", What: "it is not what was written"}
	w.logs[len(w.logs)-1].Read = func(context.Context) ([][]byte, error) { return nil, damaged }
	if err := w.refused(); err == nil || errors.Is(err, context.DeadlineExceeded) {
		w.t.Fatalf("the log of checkpoint %d can't be read, and nobody says so (%v): want an error of Recover or Run", w.last, err)
	}
	w.holds("after the refusal", w.values[:1])
	w.logs = was
	l = w.begin()
	l.drain()
	w.verify("after a start that could read it")
}

func (w *world[T]) readsOnly() {
	l := w.begin()
	parts := l.cut(w.values[:2], w.values[2:4])
	var before []string
	for _, p := range parts {
		before = append(before, string(p))
	}
	l.applier.Committed(l.commit(slices.Clone(parts), w.values[:4]...))
	l.drain()
	for i, p := range parts {
		if string(p) != before[i] {
			w.t.Fatalf("the applier changed part %d of a log from %x to %x: it is the runtime's, and read again", i, before[i], p)
		}
	}
	w.verify("in the end")
}

func (w *world[T]) keeps() {
	l := w.start()
	if err := l.recover(); err != nil {
		w.t.Fatalf("Recover: %v", err)
	}
	first := int64(0)
	for i, v := range w.values[:3] {
		log := l.commit(l.cut([]T{v}), v)
		if i == 0 {
			first = log.Checkpoint
		}
		l.applier.Committed(log)
		if k := l.applier.Keep(); k > first {
			w.t.Fatalf("Keep is %d while the log of checkpoint %d is not applied: it would be gone after a kill", k, first)
		}
	}
	l.kill()
	l = w.start()
	if err := l.recover(); err != nil {
		w.t.Fatalf("Recover: %v", err)
	}
	if k := l.applier.Keep(); k > first {
		w.t.Fatalf("Keep is %d after Recover, while the log of checkpoint %d is not applied", k, first)
	}
	l.run()
	l.drain()
	w.verify("in the end")
	if k := l.applier.Keep(); k > w.last+1 {
		w.t.Fatalf("Keep is %d, and the last checkpoint %d: it would leave out logs to come", k, w.last)
	}
}

func (w *world[T]) drains() {
	l := w.start()
	if err := l.recover(); err != nil {
		w.t.Fatalf("Recover: %v", err)
	}
	l.checkpoint(w.values...)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	var err error
	within(w.t, "Drain with a context that has ended", func() { err = l.applier.Drain(ctx) })
	if err == nil {
		w.t.Fatal("Drain returns nil although nothing is applied: want an error when ctx ends")
	}
	l.run()
	l.drain()
	w.verify("after Drain")
}

func (w *world[T]) noBlock() {
	l := w.start()
	if err := l.recover(); err != nil {
		w.t.Fatalf("Recover: %v", err)
	}
	within(w.t, "Committed, while nothing is applied,", func() {
		for i := range 300 {
			l.checkpoint(w.values[i%len(w.values)])
		}
	})
	l.run()
	l.drain()
	w.verify("in the end")
}

func (w *world[T]) empty() {
	l := w.begin()
	for i, v := range w.values {
		for range i % 3 {
			l.applier.Committed(l.commit(nil))
		}
		l.checkpoint(v)
	}
	l.applier.Committed(l.commit(nil))
	l.drain()
	w.verify("after checkpoints with and without operations")
	l.kill()
	l = w.begin()
	l.drain()
	w.verify("after a restart")
}

func (w *world[T]) ends() {
	l := w.begin()
	l.checkpoint(w.values...)
	l.drain()
	l.end()
	within(w.t, "Run whose context has ended", func() {
		err := <-l.ran
		l.ran <- err
		if err != nil {
			w.t.Errorf("Run returns %v when its context ends, want nil", err)
		}
	})
}

func (w *world[T]) room() {
	l := w.begin()
	th, ok := l.applier.(sink.Throttler)
	if !ok {
		return
	}
	var err error
	within(w.t, "Room, while nothing is to be applied,", func() { err = th.Room(context.Background()) })
	if err != nil {
		w.t.Errorf("Room, while nothing is to be applied: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	within(w.t, "Room with a context that has ended", func() { _ = th.Room(ctx) })
}

func (w *world[T]) closes() {
	l := w.start()
	l.kill()
	w.verify("after Applier and Close")
	l = w.begin()
	l.checkpoint(w.values...)
	l.drain()
	w.verify("in the end")
}
