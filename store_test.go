package weir_test

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/event"
)

// burning returns a store whose next n puts of manifests fail.
func burning() (*faultstore.Store, *atomic.Int64) {
	var left atomic.Int64
	store := faultstore.Wrap(checkpoint.NewMem())
	store.Before(func(_ context.Context, op faultstore.Op, name string) error {
		if op == faultstore.Put && strings.HasSuffix(name, ".manifest") && left.Add(-1) >= 0 {
			return errors.New("the disk is on fire")
		}
		return nil
	})
	return store, &left
}

func TestS08_TolerableFailuresLoseNothingAndTheirCountIsExact(t *testing.T) {
	brokers := broker(t, 2, "in", "out")
	store, failures := burning()
	opts := []weir.Option{weir.Store(store), weir.TolerableFailures(3), weir.RetryPause(time.Millisecond)}
	r := start(t, "app", brokers, sums(same), opts...)
	await(r, 1, any1[event.Restored])
	failures.Store(3)
	produce(t, brokers, "in", "a:1", "b:1")
	await(r, 3, any1[event.CheckpointFailed])
	await(r, 1, any1[event.CheckpointCommitted])
	produce(t, brokers, "in", "a:1", "c:1")
	wantValues(t, brokers, "out", "a:1", "b:1", "a:2", "c:1")
	r.stop()
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}

	r = start(t, "app", brokers, sums(same), opts...)
	if e := await(r, 1, any1[event.Restored]); e.Entries != 3 {
		t.Errorf("restored %+v", e)
	}
	failures.Store(4)
	produce(t, brokers, "in", "a:1")
	wantError(t, r.wait(), "the disk is on fire", "4")

	// Nothing of the failed epoch was published; the next start replays it.
	r = start(t, "app", brokers, sums(same), append(opts, weir.Drain())...)
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	wantValues(t, brokers, "out", "a:1", "b:1", "a:2", "c:1", "a:3")
}

func TestS08_StoreThatHangsFailsTheCheckpointAtItsTimeout(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	release := make(chan struct{})
	var armed atomic.Bool
	store := faultstore.Wrap(checkpoint.NewMem())
	store.Before(faultstore.Hang(func(op faultstore.Op, name string) bool {
		return op == faultstore.Put && strings.HasSuffix(name, ".manifest") && armed.Swap(false)
	}, release))
	defer close(release)
	r := start(t, "app", brokers, sums(same), weir.Store(store), weir.CheckpointTimeout(50*time.Millisecond), weir.RetryPause(time.Millisecond))
	await(r, 1, any1[event.Restored])
	armed.Store(true)
	produce(t, brokers, "in", "a:1")
	if e := await(r, 1, any1[event.CheckpointFailed]); e.Checkpoint != 1 {
		t.Errorf("got %+v", e)
	}
	await(r, 1, any1[event.CheckpointCommitted])
	produce(t, brokers, "in", "a:1")
	wantValues(t, brokers, "out", "a:1", "a:2")
}

// pointed returns the name of the newest manifest in the store.
func pointed(t *testing.T, store checkpoint.Store) string {
	t.Helper()
	name := ""
	for o, err := range store.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		if strings.HasSuffix(o.Name, ".manifest") && o.Name > name {
			name = o.Name
		}
	}
	if name == "" {
		t.Fatal("the store holds no manifest")
	}
	return name
}

func TestS04_DamagedCheckpointIsRefusedByName(t *testing.T) {
	for name, damage := range map[string]func(checkpoint.Store, string) error{
		"torn":    func(s checkpoint.Store, name string) error { return faultstore.Truncate(s, name, 100) },
		"flipped": func(s checkpoint.Store, name string) error { return faultstore.FlipBit(s, name, 999) },
		"deleted": faultstore.Remove,
	} {
		t.Run(name, func(t *testing.T) {
			brokers := broker(t, 1, "in", "out")
			store := checkpoint.NewMem()
			produce(t, brokers, "in", "a:1")
			if err := start(t, "app", brokers, sums(same), weir.Store(store), weir.Drain()).wait(); err != nil {
				t.Fatal(err)
			}
			object := pointed(t, store)
			if err := damage(store, object); err != nil {
				t.Fatal(err)
			}
			produce(t, brokers, "in", "a:1")
			wantError(t, start(t, "app", brokers, sums(same), weir.Store(store)).wait(), object)
			wantValues(t, brokers, "out", "a:1")
		})
	}
}
