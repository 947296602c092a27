package processor

import (
	"context"
	"slices"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// produced collects what reaches the transaction.
type produced struct{ values []string }

func (p *produced) Produce(r *kgo.Record) { p.values = append(p.values, string(r.Value)) }

func (p *produced) want(t *testing.T, values ...string) {
	t.Helper()
	if !slices.Equal(p.values, values) {
		t.Fatalf("the transaction holds %v, want %v", p.values, values)
	}
}

func never(int64) bool { return false }

func rec(v string) *kgo.Record { return &kgo.Record{Value: []byte(v)} }

func TestOutputsOfTheNextEpochWaitForTheCommitAndKeepTheirOrder(t *testing.T) {
	var p produced
	g := newGate(1, 1<<20)
	o := output{ctx: t.Context(), gate: g, to: &p, epoch: 1, needed: never}
	o.Produce(rec("a"))
	o.barrier(1)
	o.Produce(rec("b"))
	o.Produce(rec("c"))
	o.release() // the gate still stands at 1
	p.want(t, "a")
	g.raise(2)
	o.Produce(rec("d")) // nobody called release: what was held goes first
	p.want(t, "a", "b", "c", "d")
	if n := g.held.Load(); n != 0 {
		t.Errorf("%d bytes count as held", n)
	}
}

func TestReleasedOutputsGoOutWithoutFurtherInput(t *testing.T) {
	var p produced
	g := newGate(1, 1<<20)
	o := output{ctx: t.Context(), gate: g, to: &p, epoch: 1, needed: never}
	o.barrier(1)
	o.Produce(rec("a"))
	g.raise(2)
	o.release()
	p.want(t, "a")
}

func TestHeldBytesAreBounded(t *testing.T) {
	var p produced
	g := newGate(1, 3*recordOverhead)
	o := output{ctx: t.Context(), gate: g, to: &p, epoch: 2, needed: never}
	blocked := make(chan struct{})
	go func() {
		defer close(blocked)
		for _, v := range []string{"a", "b", "c"} { // the third crosses the bound
			o.Produce(rec(v))
		}
	}()
	g.raise(1) // of no use to epoch 2
	select {
	case <-blocked:
		t.Fatal("the bound let everything through")
	default:
	}
	g.raise(2)
	<-blocked
	p.want(t, "a", "b", "c")
}

// Headers count: kafka.Records hands on those of the input, dead letters have the error.
func TestHeadersOfHeldRecordsCount(t *testing.T) {
	var p produced
	g := newGate(1, 1<<20)
	o := output{ctx: t.Context(), gate: g, to: &p, epoch: 2, needed: never}
	r := rec("a")
	r.Headers = []kgo.RecordHeader{{Key: "weir-error", Value: make([]byte, 1000)}}
	o.Produce(r)
	if n := g.held.Load(); n < 1000 {
		t.Errorf("a record with a header of 1000 bytes counts as %d bytes", n)
	}
	g.raise(2)
	o.release()
	if n := g.held.Load(); n != 0 {
		t.Errorf("%d bytes count as held", n)
	}
}

func TestWaitingForTheGateEndsWithTheIncarnation(t *testing.T) {
	var p produced
	ctx, cancel := context.WithCancel(t.Context())
	o := output{ctx: ctx, gate: newGate(1, 0), to: &p, epoch: 2, needed: never}
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.Produce(rec("a"))
	}()
	cancel()
	<-done
	p.want(t)
}

func TestHeldOutputsDoNotWaitForACheckpointThatNeedsThem(t *testing.T) {
	var p produced
	g := newGate(1, 0)
	var needs atomic.Bool
	o := output{ctx: t.Context(), gate: g, to: &p, epoch: 2, needed: func(checkpoint int64) bool { return checkpoint == 1 && needs.Load() }}
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.Produce(rec("a"))
	}()
	needs.Store(true) // while it waits, or before
	g.stir()
	<-done
	p.want(t)
	o.Produce(rec("b"))
	g.raise(2)
	o.release()
	p.want(t, "a", "b")
}

// A checkpoint needs a subtask that others wait for, over any number of stages.
func TestCheckpointNeedsWhoMakesRoomForItsSubtasks(t *testing.T) {
	inc := newIncarnation(t.Context(), &Config{}, &Plan{}, nil, nil)
	inc.gate = newGate(1, 0)
	source, first, second, beside := inc.newSubtask(SourcesID, 0), inc.newSubtask("first", 0), inc.newSubtask("second", 0), inc.newSubtask("beside", 0)
	inc.connect(SourcesID, "first")
	inc.connect("first", "second")
	inc.connect("first", "second")
	inc.connect(SourcesID, "beside")
	inc.findUpstream()
	want := func(s *Subtask, needed bool) {
		t.Helper()
		if got := s.needed(1); got != needed {
			t.Errorf("%s is needed for checkpoint 1: %v, want %v", s.stage, got, needed)
		}
	}
	want(second, true) // it has not acknowledged it
	second.acked.Store(1)
	first.acked.Store(1)
	beside.acked.Store(1)
	want(second, false) // the source may still get there
	beside.awaitsRoom(true)
	want(second, false)
	source.awaitsRoom(true)
	want(second, true)
	want(first, true)
	want(beside, true)
	want(source, true)
	source.acked.Store(1)
	want(second, false)
	want(source, false)
}

func TestGateNeverMovesBack(t *testing.T) {
	g := newGate(5, 1)
	g.raise(3)
	if g.open.Load() != 5 {
		t.Errorf("the gate fell to %d", g.open.Load())
	}
}

func TestParseSkip(t *testing.T) {
	m, err := ParseSkip("payments/3@90211, a/b/0@1")
	if err != nil || len(m) != 2 {
		t.Fatalf("got %v, %v", m, err)
	}
	for _, bad := range []string{"payments@1", "payments/x@1", "payments/1@y", "/1@2"} {
		if _, err := ParseSkip(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}
