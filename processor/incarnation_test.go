package processor

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/barrier"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/txn"
)

func TestNothingBeginsOnceAnIncarnationIsWaitedFor(t *testing.T) {
	inc := &incarnation{}
	inc.ctx, inc.cancel = context.WithCancelCause(t.Context())
	defer inc.cancel(nil)
	var begun, over, late atomic.Int64
	spawned := make(chan struct{})
	go func() { // a restore
		defer close(spawned)
		for range 10_000 {
			inc.spawn(func() error {
				begun.Add(1)
				late.Add(over.Load())
				return nil
			})
		}
	}()
	for begun.Load() == 0 {
		runtime.Gosched()
	}
	inc.end()
	inc.group.Wait()
	over.Store(1)
	<-spawned
	inc.group.Wait()
	if n := late.Load(); n > 0 {
		t.Errorf("%d goroutines began after that", n)
	}
}

// TestPersistedThatComesLateIsToldWithItsOwnNumbers gives a checkpoint up while it is being
// written, and begins the next one before the write ends after all.
func TestPersistedThatComesLateIsToldWithItsOwnNumbers(t *testing.T) {
	var told []event.CheckpointPersisted
	listener := event.Tee(event.Listener{CheckpointPersisted: func(i event.CheckpointPersisted) { told = append(told, i) }})
	inc := newIncarnation(t.Context(), &Config{App: "app", Listener: listener}, &Plan{}, nil, nil)
	inc.gate = newGate(1, 1)
	now := time.Unix(0, 0)
	co, err := barrier.NewCoordinator(barrier.CoordinatorConfig{Subtasks: 1, Timeout: time.Minute, TolerableFailures: 1}, now)
	if err != nil {
		t.Fatal(err)
	}
	d := &driver{inc: inc, co: co}
	do := func(acts []barrier.Action) {
		t.Helper()
		if over, err := d.do(now, acts); over || err != nil {
			t.Fatal(over, err)
		}
	}
	do(co.Request(now, barrier.Requested))
	now = now.Add(time.Second)
	do(d.event(now, ack{id: 1, held: 3 * time.Millisecond, unaligned: true}))
	j := <-inc.commits
	now = now.Add(time.Minute)
	do(co.Tick(now))
	if id, _, ok := co.Pending(); !ok {
		do(co.Request(now, barrier.Requested))
	} else if id != 2 {
		t.Fatalf("checkpoint %d is in flight", id)
	}
	d.event(now, persisted{id: j.id, cut: j.cut})
	if len(told) != 1 || told[0].Checkpoint != 1 || told[0].Aligned != time.Second || told[0].Held != 3*time.Millisecond || !told[0].Unaligned {
		t.Errorf("told: %+v", told)
	}
}

// TestWriteThatEndsWithItsIncarnationIsNoFailedCheckpoint lets the loop hear of the write
// before it hears of the end: it is what ended the incarnation that is to be told.
func TestWriteThatEndsWithItsIncarnationIsNoFailedCheckpoint(t *testing.T) {
	for _, failed := range []error{nil, errors.New("a handler")} {
		inc := newIncarnation(t.Context(), &Config{App: "app", Listener: event.Tee(event.Listener{})}, &Plan{}, nil, nil)
		inc.gate = newGate(1, 1)
		now := time.Unix(0, 0)
		co, err := barrier.NewCoordinator(barrier.CoordinatorConfig{Subtasks: 1, Timeout: time.Minute}, now) // tolerates none
		if err != nil {
			t.Fatal(err)
		}
		d := &driver{inc: inc, co: co}
		for _, acts := range [][]barrier.Action{co.Request(now, barrier.Requested), d.event(now, ack{id: 1})} {
			if over, err := d.do(now, acts); over || err != nil {
				t.Fatal(over, err)
			}
		}
		if failed != nil {
			inc.cancel(failed)
		}
		over, err := d.do(now, d.event(now, persisted{id: 1, err: &checkpoint.StoreError{Op: "put", Err: context.Canceled}}))
		if over != (failed == nil) {
			t.Errorf("the incarnation ended by %v: the loop is over: %v, %v", failed, over, err)
		}
	}
}

func TestOffsetsThatGoBeyondWhatAnIncarnationCommitted(t *testing.T) {
	const own, other = 7, 8
	head := offsets.ManifestRef{Checkpoint: 20, Incarnation: other}
	for name, c := range map[string]struct {
		checkpoint  int64
		incarnation uint32
		want        bool
	}{
		"what it began from":                         {20, other, false},
		"its own commit, the answer to it under way": {21, own, false},
		"what others committed on top of it":         {21, other, true},
		"a partition that is not read any more":      {3, other, false},
	} {
		p := offsets.Pointer{App: "app", Instance: "a", Manifest: offsets.ManifestRef{Checkpoint: c.checkpoint, Incarnation: c.incarnation}}
		metadata, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if got := goesBeyond(metadata, head, own); got != c.want {
			t.Errorf("%s: %v", name, got)
		}
	}
	if goesBeyond("", head, own) || goesBeyond("set by hand", head, own) {
		t.Error("offsets without a pointer are nobody's commit")
	}
}

func TestAnErrorSaysWhatBecameOfTheCommitUnderWay(t *testing.T) {
	bad := errors.New("bad")
	handler, lookup := &HandlerError{Operator: "sum", Checkpoint: 6, Err: bad}, &LookupError{Operator: "ask", Checkpoint: 6, Err: bad}
	lost := &txn.Error{Op: "x", Kind: txn.Lost, LastCommitted: 6, Attempted: -1, Err: bad}
	unknown := &txn.Error{Op: "commit checkpoint 7", Kind: txn.Unknown, LastCommitted: 6, Attempted: 7, Err: context.Canceled}
	refused := &txn.Error{Op: "commit checkpoint 7", Kind: txn.Transient, LastCommitted: 6, Attempted: -1, Err: bad}
	for _, err := range []error{handler, fatal(handler), lookup, fatal(lookup), lost, fatal(lost), bad, fatal(bad)} {
		_, final := errors.AsType[fatalError](err)
		for what, c := range map[string]struct {
			outcome     committed
			doubt, deny bool
		}{
			"none":      {outcome: committed{}, deny: true},
			"before":    {outcome: committed{id: 6}, deny: true},
			"refused":   {outcome: committed{id: 7, err: refused}, deny: true},
			"in doubt":  {outcome: committed{id: 7, err: unknown}, doubt: true},
			"committed": {outcome: committed{id: 7}},
		} {
			inc := &incarnation{outcome: c.outcome}
			got := inc.withOutcome(err)
			if !errors.Is(got, bad) {
				t.Errorf("%v, %s: it became %v", err, what, got)
			}
			if _, is := errors.AsType[fatalError](got); is != final {
				t.Errorf("%v, %s: fatal is %v", err, what, is)
			}
			text := got.Error()
			if doubt := strings.Contains(text, "whether checkpoint 7 was committed is unknown"); doubt != c.doubt || inDoubt(got) != c.doubt {
				t.Errorf("%s, in doubt %v: %s", what, inDoubt(got), text)
			}
			if err == bad || err == fatal(bad) {
				continue // it says nothing of checkpoints
			}
			if deny := strings.Contains(text, "checkpoint is 6; nothing after it was published"); deny != c.deny {
				t.Errorf("%s: %s", what, text)
			}
			if strings.Contains(text, "checkpoint is 7;") != (what == "committed") {
				t.Errorf("%s: %s", what, text)
			}
			if stop := stopError(got).Error(); c.doubt && strings.Contains(stop, "was not committed") {
				t.Errorf("%s: %s", what, stop)
			}
		}
	}
	if handler.Attempted != 0 || lookup.Attempted != 0 || lost.Attempted != -1 || handler.Checkpoint != 6 {
		t.Error("others may read the errors that are there already")
	}
}

func TestFetchErrorThatNoRestartMends(t *testing.T) {
	inc := &incarnation{cfg: &Config{Group: "g"}}
	p := offsets.Partition{Topic: "in", Partition: 3}
	err := inc.fetchError(t.Context(), p, &kgo.ErrDataLoss{Topic: "in", Partition: 3, ConsumedTo: 120, ResetTo: 97})
	if err == nil || !isFatal(err) {
		t.Fatalf("a restart would find the same: %v", err)
	}
	for _, want := range []string{p.String(), "120", "97", "WEIR_RECOVER=offsets"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q is missing in: %v", want, err)
		}
	}
	if err := inc.fetchError(t.Context(), p, kerr.NotLeaderForPartition); err != nil {
		t.Errorf("the client deals with that: %v", err)
	}
	if err := inc.fetchError(t.Context(), p, errors.New("else")); err == nil || isFatal(err) {
		t.Errorf("a restart may help: %v", err)
	}
}
