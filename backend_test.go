package weir_test

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
)

// keyedLife is one run of the word count over what is in its topic.
type keyedLife struct {
	brokers     []string
	store       checkpoint.Store
	backend     pebble.Backend
	parallelism int
	opts        []weir.Option

	mu       sync.Mutex
	restored event.Restored
	followed bool
	reasons  map[string]int // of checkpoints begun
}

func (l *keyedLife) run(t *testing.T) {
	t.Helper()
	l.reasons, l.followed = map[string]int{}, false
	opts := append([]weir.Option{weir.Brokers(l.brokers...), weir.Store(l.store), weir.InstanceID("a"), weir.StateBackend(l.backend),
		weir.Parallelism(max(l.parallelism, 1)), weir.CheckpointEvery(20 * time.Millisecond), weir.Drain(),
		weir.Listen(weir.Listener{
			Restored:        func(i event.Restored) { l.mu.Lock(); l.restored = i; l.mu.Unlock() },
			Followed:        func(event.Followed) { l.mu.Lock(); l.followed = true; l.mu.Unlock() },
			CheckpointBegun: func(i event.CheckpointBegun) { l.mu.Lock(); l.reasons[i.Reason]++; l.mu.Unlock() },
		})}, l.opts...)
	app := weir.New("wordcount", opts...)
	wordCount(app)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := app.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if ctx.Err() != nil {
		t.Fatal("did not drain")
	}
}

// counted reads n outputs and checks that each word was counted 1, 2, 3, ... It
// returns how far.
func counted(t *testing.T, brokers []string, n int) map[string]int64 {
	t.Helper()
	last := map[string]int64{}
	for _, r := range consume(t, brokers, "counts", n) {
		v, err := codec.Int64.Decode(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		if v != last[string(r.Key)]+1 {
			t.Fatalf("%s was counted %d after %d", r.Key, v, last[string(r.Key)])
		}
		last[string(r.Key)] = v
	}
	return last
}

// words returns n lines of one word each, from keys different ones.
func words(n, keys int) []string {
	lines := make([]string, n)
	for i := range lines {
		lines[i] = fmt.Sprintf("word-%06d", i*7919%keys)
	}
	return lines
}

func wordCounts(lines ...[]string) map[string]int64 {
	m := map[string]int64{}
	for _, w := range slices.Concat(lines...) {
		m[w]++
	}
	return m
}

func TestS28_BackendIsSwitchedThroughACheckpointBothWays(t *testing.T) {
	for _, kind := range []string{"mem", "dir"} {
		t.Run(kind, func(t *testing.T) {
			brokers := broker(t, 4, "lines", "counts")
			var store checkpoint.Store = checkpoint.NewMem()
			if kind == "dir" {
				var err error
				if store, err = checkpoint.OpenDir(t.TempDir()); err != nil {
					t.Fatal(err)
				}
			}
			disk, other := pebble.Dir(t.TempDir()), pebble.Dir(t.TempDir())
			batch := words(3000, 500)
			var all [][]string
			for i, c := range []struct {
				backend     pebble.Backend
				parallelism int
				how         string
			}{
				{pebble.Backend{}, 2, "read"},
				{disk, 3, "rebuilt"},
				{disk, 1, "reused"},
				{pebble.Backend{}, 4, "read"},
				{disk, 2, "caught up"},
				{other, 2, "rebuilt"},
			} {
				produce(t, brokers, "lines", batch...)
				all = append(all, batch)
				life := &keyedLife{brokers: brokers, store: store, backend: c.backend, parallelism: c.parallelism}
				life.run(t)
				if got := counted(t, brokers, len(batch)*len(all)); !maps.Equal(got, wordCounts(all...)) {
					t.Fatalf("run %d: the counts differ from those of the input", i)
				}
				// On a slow machine the store may have followed before it was its turn.
				if how := life.restored.How; i > 0 && how != c.how && (how != "reused" || !life.followed) {
					t.Errorf("run %d: the state was %s, want %s", i, life.restored.How, c.how)
				}
			}
		})
	}
}

// With a budget of a fraction of the state, state is dropped from memory and read
// again, and checkpoints are taken because of memory alone.
func TestS33_StateAndChangesLargerThanTheirMemory(t *testing.T) {
	brokers := broker(t, 4, "lines", "counts")
	store, err := checkpoint.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	backend := pebble.Dir(t.TempDir())
	backend.MemoryBytes = 2 << 20
	const keys = 100_000
	first, second := words(keys, keys), words(keys/2, keys)
	produce(t, brokers, "lines", first...)
	life := &keyedLife{brokers: brokers, store: store, backend: backend, parallelism: 2, opts: []weir.Option{weir.CheckpointEvery(5 * time.Minute)}}
	life.run(t)
	if life.reasons["memory"] < 2 {
		t.Errorf("checkpoints were taken for these reasons: %v; what changed should have filled the memory more than once", life.reasons)
	}
	produce(t, brokers, "lines", second...)
	life.run(t)
	if got := counted(t, brokers, len(first)+len(second)); !maps.Equal(got, wordCounts(first, second)) {
		t.Fatal("the counts differ from those of the input")
	}
}

// What no checkpoint would let it drop, such as broadcast state, asks for none, however much
// larger than the budget it is.
func TestS33_FullMemoryAsksForCheckpointsOnlyWhereTheyFreeSome(t *testing.T) {
	brokers := broker(t, 2, "events", "rules", "out")
	backend := pebble.Dir(t.TempDir())
	backend.MemoryBytes = 1 // the least there is
	var app *weir.App
	r := start(t, "app", brokers, func(a *weir.App) { app = a; rated(a) }, weir.StateBackend(backend), weir.Store(checkpoint.NewMem()), weir.CheckpointEvery(5*time.Minute))
	for i := range 100 {
		produce(t, brokers, "rules", fmt.Sprintf("%d=%s", i, strings.Repeat("x", 200)))
	}
	produce(t, brokers, "events", "a")
	full := func(i event.CheckpointBegun) bool { return i.Reason == "memory" }
	await(r, 1, full)
	asked := func() (n int) {
		for _, e := range r.list() {
			if b, ok := e.(event.CheckpointBegun); ok && full(b) {
				n++
			}
		}
		return n
	}
	// A barrier is something that a subtask takes, too, and looks at its memory after.
	counts := []int{asked()}
	for i := range 20 {
		if _, err := app.Savepoint(t.Context(), "", fmt.Sprint("s", i)); err != nil {
			t.Fatal(err)
		}
		if n := asked(); n > counts[len(counts)-1] {
			counts = append(counts, n)
		}
	}
	// At most each of the 101 records asked for one, and the subtasks not at once.
	if n := asked(); n > 202 || len(counts) > 10 {
		t.Errorf("memory asked for %d checkpoints, at savepoints one after the other %v", n, counts)
	}
}

// An instance that stands by has what was committed before it takes over.
func TestStandbyFollowsIntoItsLocalStore(t *testing.T) {
	brokers := broker(t, 3, "in", "out")
	store := checkpoint.NewMem()
	active := start(t, "app", brokers, sums(same), weir.Store(store), weir.InstanceID("first"), weir.StateBackend(pebble.Dir(t.TempDir())))
	produce(t, brokers, "in", "a:1", "b:1", "c:1")
	await(active, 1, any1[event.CheckpointCommitted])
	standby := start(t, "app", brokers, sums(same), weir.Store(store), weir.InstanceID("second"), weir.StateBackend(pebble.Dir(t.TempDir())))
	awaitMembers(t, brokers, "app", 2)
	produce(t, brokers, "in", "a:2", "b:2", "c:2")
	wantValues(t, brokers, "out", "a:1", "b:1", "c:1", "a:3", "b:3", "c:3")
	committedRecords(active, 6) // told a moment after it can be seen
	committed := int64(0)
	for _, e := range active.list() { // the values may have come in several checkpoints
		if c, ok := e.(event.CheckpointCommitted); ok {
			committed = max(committed, c.Checkpoint)
		}
	}
	await(standby, 1, func(f event.Followed) bool { return f.Checkpoint >= committed })
	active.stop()
	if err := active.wait(); err != nil {
		t.Fatal(err)
	}
	if e := await(standby, 1, any1[event.Restored]); e.How != "reused" || e.Checkpoint < committed {
		t.Errorf("took over with %+v; want the local store reused at checkpoint %d", e, committed)
	}
	produce(t, brokers, "in", "a:3")
	wantValues(t, brokers, "out", "a:1", "b:1", "c:1", "a:3", "b:3", "c:3", "a:6")
}

// A new version of the app takes the time to live from a state. What had expired does not
// come back, and all else stays, read or not.
func TestTimeToLiveIsTakenAwayByANewVersion(t *testing.T) {
	backends(t, func(t *testing.T, backend pebble.Backend) {
		brokers := broker(t, 1, "in", "out")
		store, now := checkpoint.NewMem(), clock.NewManual(time.UnixMilli(1_000_000_000_000))
		life := func(key string, opts ...state.Option) {
			t.Helper()
			produce(t, brokers, "in", key)
			drained(t, "app", brokers, func(a *weir.App) {
				in := weir.From(a, "in", source.Values("in", codec.String))
				byKey := weir.KeyBy(in, "by-key", func(k string) string { return k }, codec.String)
				weir.To(weir.Process(byKey, "keep", func(s *weir.Setup) weir.Handler[string, string, string] {
					v := state.Value(s, "v", codec.Unit, opts...)
					return weir.OnRecord(func(c *weir.Context[string, string], k string) error {
						_, ok := v.Lookup()
						if !ok {
							v.Set(codec.Nothing)
						}
						c.Emit(fmt.Sprint(k, " ", ok))
						return nil
					})
				}), "out", kafka.Values("out", kafka.NoKey, codec.String))
			}, weir.Store(store), weir.UseClock(now), weir.StateBackend(backend))
		}
		ttl := state.TTL(time.Minute)
		life("old", ttl)
		now.Advance(30 * time.Second)
		life("young", ttl)
		life("unread", ttl)
		now.Advance(45 * time.Second)
		life("old")
		life("young")
		now.Advance(time.Hour)
		life("young")
		life("unread")
		var got []string
		for _, r := range consume(t, brokers, "out", 7) {
			got = append(got, string(r.Value))
		}
		if want := []string{"old false", "young false", "unread false", "old false", "young true", "young true", "unread true"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	})
}
