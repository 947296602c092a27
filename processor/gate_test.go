package processor

import (
	"context"
	"slices"
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

func rec(v string) *kgo.Record { return &kgo.Record{Value: []byte(v)} }

func TestOutputsOfTheNextEpochWaitForTheCommitAndKeepTheirOrder(t *testing.T) {
	var p produced
	g := newGate(1, 1<<20)
	o := output{ctx: t.Context(), gate: g, to: &p, epoch: 1}
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
	o := output{ctx: t.Context(), gate: g, to: &p, epoch: 1}
	o.barrier(1)
	o.Produce(rec("a"))
	g.raise(2)
	o.release()
	p.want(t, "a")
}

func TestHeldBytesAreBounded(t *testing.T) {
	var p produced
	g := newGate(1, 3*recordOverhead)
	o := output{ctx: t.Context(), gate: g, to: &p, epoch: 2}
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

func TestWaitingForTheGateEndsWithTheIncarnation(t *testing.T) {
	var p produced
	ctx, cancel := context.WithCancel(t.Context())
	o := output{ctx: ctx, gate: newGate(1, 0), to: &p, epoch: 2}
	done := make(chan struct{})
	go func() {
		defer close(done)
		o.Produce(rec("a"))
	}()
	cancel()
	<-done
	p.want(t)
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
