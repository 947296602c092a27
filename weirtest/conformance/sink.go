package conformance

import (
	"context"
	"errors"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/weirstream/weir/sink"
)

// Sink checks a [sink.Sink] that is no [sink.WriteAhead]: one whose writers talk to their
// receiver themselves and are [sink.Flusher]s, or one that writes to topics. Writers are
// used as the runtime does it: each by one goroutine, Write for Write, with a flush at each
// barrier.
type Sink[T any] struct {
	// New returns a receiver that is empty and used for one rule.
	New func(t testing.TB) Receiver[T]
	// Values are samples to write, at least four. They are not changed.
	Values []T
}

// Receiver is what a sink writes to.
type Receiver[T any] struct {
	// Sink returns a sink that writes to the receiver. Each call stands for another process.
	Sink func() sink.Sink[T]
	// Contents returns what the receiver holds, of which reflect.DeepEqual tells whether it
	// is the same. Nil: the sink writes to topics only.
	Contents func() any
	// Want returns what the receiver holds when these values were written to it, each once
	// and in this order. It goes with Contents.
	Want func(values []T) any
}

// Run runs the suite, each rule as a subtest.
func (s Sink[T]) Run(t *testing.T) { run(t, s.rules()) }

func (s Sink[T]) rules() []rule {
	of := func(check func(t testing.TB, r Receiver[T])) func(t testing.TB) {
		return func(t testing.TB) {
			if len(s.Values) < 4 {
				t.Fatalf("the suite has %d sample values, and needs at least four", len(s.Values))
			}
			r := s.New(t)
			if r.Sink == nil || (r.Contents == nil) != (r.Want == nil) {
				t.Fatal("the suite needs the Sink of its receiver, and Contents and Want both or neither")
			}
			check(t, r)
		}
	}
	return []rule{
		{"TheDescriptionIsFit", of(s.fit)},
		{"NothingIsWrittenByItself", of(s.silent)},
		{"TopicsAreNamed", of(s.topics)},
		{"RecordsAreNotTouchedAfterwards", of(s.untouched)},
		{"RecordsKeepTheirOrder", of(s.ordered)},
		{"WhatIsFlushedIsThere", of(s.flushed)},
		{"AnEmptyFlushDoesNothing", of(s.emptyFlush)},
		{"WritersOfSeveralSubtasks", of(s.subtasks)},
		{"WritersOfSeveralSubtasksAtOnce", of(s.atOnce)},
		{"AReplayEndsInTheSame", of(s.replay)},
		{"AFlushEndsWithTheIncarnation", of(s.cancelled)},
	}
}

// open makes the writers of a process.
func open[T any](t testing.TB, ctx context.Context, to sink.Sink[T], n int, a sink.Applier) (ws []sink.Writer[T], envs []*writerEnv) {
	t.Helper()
	return openAs(t, ctx, operator, to, n, a)
}

func openAs[T any](t testing.TB, ctx context.Context, operator string, to sink.Sink[T], n int, a sink.Applier) (ws []sink.Writer[T], envs []*writerEnv) {
	t.Helper()
	for i := range n {
		env := newWriterEnv(ctx, operator, i, a)
		w, err := to.Open(env)
		if err != nil {
			t.Fatalf("Open on subtask %d: %v", i, err)
		}
		if w == nil {
			t.Fatalf("Open on subtask %d returned no writer", i)
		}
		ws, envs = append(ws, w), append(envs, env)
	}
	return ws, envs
}

func write[T any](t testing.TB, w sink.Writer[T], vs ...T) {
	t.Helper()
	for i, v := range vs {
		if err := w.Write(v); err != nil {
			t.Fatalf("Write of value %d, %+v: %v", i, v, err)
		}
	}
}

// flush does what the runtime does at a barrier.
func flush[T any](t testing.TB, ctx context.Context, w sink.Writer[T]) {
	t.Helper()
	f, ok := any(w).(sink.Flusher)
	if !ok {
		return
	}
	var err error
	within(t, "Flush", func() { err = f.Flush(ctx) })
	if err != nil {
		t.Fatalf("Flush: %v", err)
	}
}

func (s Sink[T]) fit(t testing.TB, r Receiver[T]) {
	to := r.Sink()
	for range 2 {
		if err := to.Check(); err != nil {
			t.Fatalf("Check of a sink that is right: %v", err)
		}
	}
	if strings.TrimSpace(to.String()) == "" {
		t.Error("String says nothing: plans and messages show it")
	}
	if _, ok := to.(sink.WriteAhead); ok {
		t.Error("the sink is a sink.WriteAhead: conformance.WriteAhead is for those")
	}
	ws, _ := open(t, t.Context(), to, 1, nil)
	if _, ok := ws[0].(sink.Logger); ok {
		t.Error("the writer is a sink.Logger and its sink no sink.WriteAhead: the runtime refuses that")
	}
	_, flushes := ws[0].(sink.Flusher)
	if _, ok := to.(sink.Topics); r.Contents == nil && !ok {
		t.Error("the sink names no topics and its receiver has no Contents: nothing that it writes can be checked")
	}
	if r.Contents != nil && !flushes {
		t.Error("the writer talks to a receiver and is no sink.Flusher: nobody would know whether what it wrote is there before the commit")
	}
}

func (s Sink[T]) same(t testing.TB, r Receiver[T], when string, values ...T) {
	t.Helper()
	if r.Contents == nil {
		return
	}
	if got, want := r.Contents(), r.Want(values); !reflect.DeepEqual(got, want) {
		t.Fatalf("%s the receiver holds\n    %+v, want\n    %+v", when, got, want)
	}
}

func (s Sink[T]) silent(t testing.TB, r Receiver[T]) {
	to := r.Sink()
	_ = to.Check()
	_ = to.String()
	s.same(t, r, "after Check")
	_, envs := open(t, t.Context(), to, 2, nil)
	s.same(t, r, "after Open")
	for _, e := range envs {
		if len(e.out.produced) > 0 {
			t.Errorf("Open produced %d records", len(e.out.produced))
		}
	}
}

// all writes and flushes the samples on one subtask.
func (s Sink[T]) all(t testing.TB, to sink.Sink[T]) *outbox {
	t.Helper()
	ws, envs := open(t, t.Context(), to, 1, nil)
	for _, v := range s.Values {
		write(t, ws[0], v)
	}
	flush(t, t.Context(), ws[0])
	return envs[0].out
}

func (s Sink[T]) topics(t testing.TB, r Receiver[T]) {
	to := r.Sink()
	var named []string
	if n, ok := to.(sink.Topics); ok {
		named = n.Topics()
	}
	if slices.Contains(named, "") {
		t.Error("a topic has no name")
	}
	for _, rec := range s.all(t, to).produced {
		if !slices.Contains(named, rec.Topic) {
			t.Fatalf("a record went to topic %q, and Topics names %q: the runtime could not check it", rec.Topic, named)
		}
	}
}

func (s Sink[T]) untouched(t testing.TB, r Receiver[T]) {
	ws, envs := open(t, t.Context(), r.Sink(), 1, nil)
	for range 300 { // beyond the size of what a writer may use again
		for _, v := range s.Values {
			write(t, ws[0], v)
		}
	}
	flush(t, t.Context(), ws[0])
	out := envs[0].out
	out.unchanged(t)
	for i, rec := range out.produced[:min(len(out.produced), 1000)] {
		if slices.Contains(out.produced[:i], rec) {
			t.Fatalf("record %d was produced twice: it belongs to the runtime once it was", i)
		}
	}
}

func (s Sink[T]) ordered(t testing.TB, r Receiver[T]) {
	var apart []string
	for _, v := range s.Values {
		ws, envs := open(t, t.Context(), s.New(t).Sink(), 1, nil)
		write(t, ws[0], v)
		flush(t, t.Context(), ws[0])
		apart = append(apart, texts(envs[0].out)...)
	}
	if together := texts(s.all(t, r.Sink())); !slices.Equal(together, apart) {
		t.Errorf("the records of the samples are\n    %q, and one by one they are\n    %q", together, apart)
	}
}

func texts(o *outbox) (all []string) {
	for _, r := range o.asProduced {
		all = append(all, r.Topic+" "+string(r.Key)+": "+string(r.Value))
	}
	return all
}

func (s Sink[T]) flushed(t testing.TB, r Receiver[T]) {
	ws, _ := open(t, t.Context(), r.Sink(), 1, nil)
	for i, v := range s.Values {
		write(t, ws[0], v)
		if i%2 == 1 || i == len(s.Values)-1 {
			flush(t, t.Context(), ws[0])
			s.same(t, r, "after a flush", s.Values[:i+1]...)
		}
	}
}

func (s Sink[T]) emptyFlush(t testing.TB, r Receiver[T]) {
	ws, envs := open(t, t.Context(), r.Sink(), 1, nil)
	flush(t, t.Context(), ws[0])
	s.same(t, r, "after a flush of nothing")
	write(t, ws[0], s.Values[0])
	flush(t, t.Context(), ws[0])
	n := len(envs[0].out.produced)
	for range 2 {
		flush(t, t.Context(), ws[0])
		s.same(t, r, "after a flush that had nothing new", s.Values[0])
	}
	if len(envs[0].out.produced) != n {
		t.Errorf("a flush that had nothing new produced %d records", len(envs[0].out.produced)-n)
	}
}

func (s Sink[T]) subtasks(t testing.TB, r Receiver[T]) {
	ws, _ := open(t, t.Context(), r.Sink(), 2, nil)
	half := len(s.Values) / 2
	write(t, ws[0], s.Values[:half]...)
	flush(t, t.Context(), ws[0])
	s.same(t, r, "after the flush of one subtask", s.Values[:half]...)
	write(t, ws[1], s.Values[half:]...)
	flush(t, t.Context(), ws[1])
	s.same(t, r, "after the flush of both subtasks", s.Values...)
}

func (s Sink[T]) atOnce(t testing.TB, r Receiver[T]) {
	const n = 3
	ws, _ := open(t, t.Context(), r.Sink(), n, nil)
	errs := make([]error, n)
	var all sync.WaitGroup
	for i, w := range ws {
		all.Go(func() {
			for range 20 {
				err := w.Write(s.Values[i])
				if f, ok := w.(sink.Flusher); ok && err == nil {
					err = f.Flush(t.Context())
				}
				errs[i] = errors.Join(errs[i], err)
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatalf("Write and Flush of several subtasks at once: %v", err)
	}
}

// replay is what follows a crash between a barrier and its commit, again and again: the
// receiver must bear that what was flushed is written once more, because its sink is at
// least once.
func (s Sink[T]) replay(t testing.TB, r Receiver[T]) {
	for _, flushedBefore := range []int{len(s.Values), len(s.Values) / 2, 0} {
		ctx, kill := context.WithCancel(t.Context())
		ws, _ := open(t, ctx, r.Sink(), 1, nil)
		write(t, ws[0], s.Values[:flushedBefore]...)
		flush(t, ctx, ws[0])
		write(t, ws[0], s.Values[flushedBefore:]...) // of which nobody knows whether it arrives
		kill()
	}
	ws, _ := open(t, t.Context(), r.Sink(), 1, nil)
	write(t, ws[0], s.Values...)
	flush(t, t.Context(), ws[0])
	s.same(t, r, "after replays", s.Values...)
}

func (s Sink[T]) cancelled(t testing.TB, r Receiver[T]) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ws, _ := open(t, ctx, r.Sink(), 1, nil)
	f, ok := ws[0].(sink.Flusher)
	if !ok {
		return
	}
	write(t, ws[0], s.Values...)
	cancel()
	var err error
	within(t, "Flush with a context that has ended", func() { err = f.Flush(ctx) })
	if err == nil {
		s.same(t, r, "after Flush with a context that had ended, which returned nil,", s.Values...)
	}
}
