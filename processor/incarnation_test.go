package processor

import (
	"context"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirstream/weir/barrier"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/offsets"
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
