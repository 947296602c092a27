package weir_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/localdisk"
	"github.com/weirstream/weir/state/pebble"
)

// What is wrong in the checkpoint store a restart cannot mend, so none is tried.
func TestS04_SegmentThatTheLocalStoreLacksIsRefusedByNameAtOnce(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"deleted":   os.Remove,
		"truncated": func(path string) error { return os.Truncate(path, 1000) },
	} {
		t.Run(name, func(t *testing.T) {
			brokers := broker(t, 4, "lines", "counts")
			dir, local := t.TempDir(), filepath.Join(t.TempDir(), "state")
			store, err := checkpoint.OpenDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			produce(t, brokers, "lines", words(20_000, 20_000)...)
			life := &keyedLife{brokers: brokers, store: store, backend: pebble.Dir(local), opts: []weir.Option{weir.CheckpointEvery(5 * time.Minute)}}
			life.run(t)
			segments, err := filepath.Glob(filepath.Join(dir, "seg", "*"))
			if err != nil || len(segments) != 1 {
				t.Fatalf("segments %q, %v; want one", segments, err)
			}
			if err := errors.Join(damage(segments[0]), os.RemoveAll(local)); err != nil {
				t.Fatal(err)
			}
			app := weir.New("wordcount", weir.Brokers(brokers...), weir.Store(store), weir.InstanceID("a"), weir.StateBackend(pebble.Dir(local)),
				weir.Drain(), weir.Listen(weir.Listener{Restarting: func(i event.Restarting) { t.Errorf("restarted: %v", i) }}))
			wordCount(app)
			if err := app.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "seg/"+filepath.Base(segments[0])) {
				t.Errorf("the error does not name %s: %v", segments[0], err)
			}
		})
	}
}

// block is longer than the blocks in which state is read, and shorter than what is copied or
// merged at a time.
const block = 16 << 10

// vanishing is a store of which segments are deleted while state is about to be read from them.
type vanishing struct {
	checkpoint.Store
	mu      sync.Mutex
	hold    chan struct{} // nil: reads go on
	waiting chan struct{} // capacity 1: a read waits
}

func (s *vanishing) GetRange(ctx context.Context, name string, off, n int64) ([]byte, error) {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold == nil || !strings.HasPrefix(name, "seg/") || n > block {
		return s.Store.GetRange(ctx, name, off, n)
	}
	select {
	case s.waiting <- struct{}{}:
	default:
	}
	<-hold
	return nil, fmt.Errorf("get %s: %w", name, checkpoint.ErrNotFound)
}

// holdUp lets reads of state wait until vanish is called, which may be called again.
func (s *vanishing) holdUp() (vanish func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	hold := make(chan struct{})
	s.hold, s.waiting = hold, make(chan struct{}, 1)
	return sync.OnceFunc(func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.hold = nil
		close(hold)
	})
}

// To a process that was stopped for a while, others may have committed, and deleted what it
// reads. It doesn't say then that the store lost it.
func TestSegmentThatOthersDeletedWhileItWasReadIsNotCalledLost(t *testing.T) {
	for name, overtaken := range map[string]bool{"others have committed": true, "nobody has committed": false} {
		t.Run(name, func(t *testing.T) {
			c := cluster(t, 1, "lines", "counts")
			brokers := c.ListenAddrs()
			mem := checkpoint.NewMem()
			old := words(20_000, 20_000)
			fresh := make([]string, len(old))
			for i, w := range old {
				fresh[i] = "new-" + w
			}
			life := &keyedLife{brokers: brokers, store: mem, backend: pebble.Dir(t.TempDir()), opts: []weir.Option{weir.CheckpointEvery(5 * time.Minute)}}
			for _, lines := range [][]string{old, fresh} {
				produce(t, brokers, "lines", lines...)
				life.run(t)
			}

			var deaf atomic.Bool // the instance doesn't hear that it is no member any more
			c.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
				c.KeepControl()
				if id := req.(*kmsg.HeartbeatRequest).InstanceID; id != nil && *id == "a" && deaf.Load() {
					return req.ResponseKind(), nil, true
				}
				return nil, nil, false
			})
			store := &vanishing{Store: mem}
			inPlace := localdisk.ReadInPlace(pebble.Dir(t.TempDir())).(pebble.Backend)
			inPlace.DownloadRate, inPlace.CacheBytes = 1, 1 // the newest segment is copied, the other one is not
			a := start(t, "wordcount", brokers, wordCount, weir.Store(store), weir.StateBackend(inPlace))
			await(a, 1, any1[event.Restored])
			deaf.Store(true)
			vanish := store.holdUp()
			t.Cleanup(vanish) // it would wait for ever
			produce(t, brokers, "lines", old[0])
			select {
			case <-store.waiting:
			case <-time.After(deadline):
				t.Fatalf("nothing is read in place; events: %v", a.list())
			}
			var b *running
			want := "is missing in checkpoint store"
			if overtaken {
				if _, err := adminOf(t, brokers).LeaveGroup(t.Context(), kadm.LeaveGroup("wordcount").InstanceIDs("a")); err != nil {
					t.Fatal(err)
				}
				b = start(t, "wordcount", brokers, wordCount, weir.Store(mem), weir.InstanceID("b"))
				await(b, 1, any1[event.CheckpointCommitted])
				want = "others have committed partition lines/0 meanwhile, and deleted object seg/"
			}
			vanish()
			if i := await(a, 1, any1[event.Restarting]); !strings.Contains(fmt.Sprint(i.Err), want) {
				t.Errorf("restarted because of %v, want that it says %q", i.Err, want)
			}
			deaf.Store(false)
			if overtaken {
				awaitMembers(t, brokers, "wordcount", 2)
				b.stop()
				if err := b.wait(); err != nil {
					t.Fatal(err)
				}
			}
			await(a, 2, any1[event.Restored])
			produce(t, brokers, "lines", old[0])
			if got, want := counted(t, brokers, len(old)+len(fresh)+2), wordCounts(old, fresh, old[:1], old[:1]); !reflect.DeepEqual(got, want) {
				t.Errorf("%d words were counted, want %d", len(got), len(want))
			}
		})
	}
}
