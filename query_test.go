package weir_test

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/internal/localdisk"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
	"github.com/weirstream/weir/txn"
)

// committedPositions returns where the input stood at each checkpoint of app that was
// committed, as its commit records say. Events don't say it of a checkpoint whose commit
// was under way when the app restarted, and a manifest doesn't say that it was committed.
func committedPositions(t *testing.T, brokers []string, app string) map[int64]map[offsets.Partition]offsets.Position {
	t.Helper()
	topic := app + "-checkpoints"
	last, ok, err := txn.LastCommitRecord(t.Context(), []kgo.Opt{kgo.SeedBrokers(brokers...)}, topic, app)
	if err != nil || !ok {
		t.Fatalf("the last commit record: %v, %v", ok, err)
	}
	at := map[int64]map[offsets.Partition]offsets.Position{}
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for at[last.Manifest.Checkpoint] == nil {
		fetches := cl.PollFetches(t.Context())
		if err := fetches.Err(); err != nil {
			t.Fatal(err)
		}
		fetches.EachRecord(func(r *kgo.Record) {
			c, err := offsets.ParseCommitRecord(r.Value)
			if err != nil {
				t.Fatal(err)
			}
			at[c.Manifest.Checkpoint] = c.Positions
		})
	}
	return at
}

// backends runs a test with each backend.
func backends(t *testing.T, test func(t *testing.T, b pebble.Backend)) {
	t.Run("memory", func(t *testing.T) { test(t, pebble.Backend{}) })
	t.Run("pebble", func(t *testing.T) { test(t, pebble.Dir(t.TempDir())) })
}

func queryCount(ctx context.Context, app *weir.App, word string) (weir.Result[int64], error) {
	return weir.Query(ctx, app, "count", "acc", word, codec.String, codec.Int64)
}

// Queries run beside an app that processes, commits, merges, collects and restarts. What
// each of them says is compared with what the input says of its checkpoint.
func TestQueriesSeeCommittedCheckpointsOnly(t *testing.T) {
	backends(t, func(t *testing.T, backend pebble.Backend) {
		const keys, rounds, perRound = 60, 20, 200
		brokers := broker(t, 4, "lines", "counts")
		store := checkpoint.NewMem()
		var restarts atomic.Int32
		app := weir.New("wordcount", weir.Brokers(brokers...), weir.Store(store), weir.InstanceID("a"), weir.Parallelism(2),
			weir.CheckpointEvery(5*time.Millisecond), weir.Retain(1), weir.StateBackend(backend), fast,
			weir.Listen(weir.Listener{
				Restarting: func(event.Restarting) { restarts.Add(1) },
			}))
		var stumble atomic.Bool
		stumblingCount(app, func(string) bool { return stumble.Load() })
		ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
		defer stop()
		done := make(chan error, 1)
		go func() { done <- app.Run(ctx) }()

		type seen struct {
			word       string
			checkpoint int64
			value      int64
			ok         bool
		}
		var askers sync.WaitGroup
		answers := make([][]seen, 3)
		var newest atomic.Int64 // checkpoint that an answer was of
		asking, stopAsking := context.WithCancel(ctx)
		defer stopAsking()
		for i := range answers {
			askers.Go(func() {
				rng := rand.New(rand.NewPCG(uint64(i), 7))
				last := map[string]seen{}
				for asking.Err() == nil {
					word := fmt.Sprint("key-", rng.IntN(keys+5)) // some are in no record
					r, err := queryCount(asking, app, word)
					switch {
					case errors.Is(err, weir.ErrNotActive), errors.Is(err, weir.ErrNothingCommitted), errors.Is(err, weir.ErrNotRunning):
						continue
					case asking.Err() != nil:
						return
					case err != nil:
						t.Error(err)
						return
					}
					raise(&newest, r.Checkpoint)
					s := seen{word, r.Checkpoint, r.Value, r.OK}
					if before := last[word]; s.checkpoint < before.checkpoint || s.value < before.value {
						t.Errorf("%v was seen after %v", s, before)
					} else if s != before {
						answers[i] = append(answers[i], s)
					}
					last[word] = s
				}
			})
		}

		var words []string
		for round := range rounds {
			if round == rounds/2 {
				stumble.Store(true)
			}
			batch := make([]string, perRound)
			for i := range batch {
				batch[i] = fmt.Sprint("key-", rand.IntN(keys))
			}
			before := newest.Load()
			produce(t, brokers, "lines", batch...)
			words = append(words, batch...)
			for newest.Load() <= before { // else a slow machine takes one checkpoint of all rounds
				if ctx.Err() != nil {
					t.Fatalf("no answer is of a checkpoint after %d", before)
				}
				time.Sleep(time.Millisecond)
			}
		}
		want := wordCounts(words)
		for word, n := range want {
			for {
				r, err := queryCount(ctx, app, word)
				if err == nil && r.Value == n {
					break
				}
				if ctx.Err() != nil {
					t.Fatalf("%s is %+v (%v), want %d", word, r, err, n)
				}
				time.Sleep(time.Millisecond)
			}
		}
		stopAsking()
		askers.Wait()
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		if restarts.Load() == 0 {
			t.Error("the app did not restart")
		}
		if _, err := queryCount(t.Context(), app, "key-1"); !errors.Is(err, weir.ErrNotRunning) {
			t.Errorf("a query of an app that stopped: %v", err)
		}

		at := committedPositions(t, brokers, "wordcount")
		input := map[offsets.Partition][]string{}
		for _, r := range consumeAt(t, kgo.ReadUncommitted(), brokers, "lines", len(words)) {
			p := offsets.Partition{Topic: r.Topic, Partition: r.Partition}
			if int64(len(input[p])) != r.Offset {
				t.Fatalf("offset %d of %v came after %d records", r.Offset, p, len(input[p]))
			}
			input[p] = append(input[p], string(r.Value))
		}
		checkpoints, total := map[int64]bool{}, 0
		for _, list := range answers {
			for _, s := range list {
				total++
				checkpoints[s.checkpoint] = true
				if at[s.checkpoint] == nil {
					t.Fatalf("%v is of a checkpoint that was not committed", s)
				}
				n := int64(0)
				for p, pos := range at[s.checkpoint] {
					for _, w := range input[p][:pos.Offset] {
						if w == s.word {
							n++
						}
					}
				}
				if s.value != n || s.ok != (n > 0) {
					t.Fatalf("%v: the input up to that checkpoint says %d", s, n)
				}
			}
		}
		if total < 200 || len(checkpoints) < 10 {
			t.Errorf("%d answers of %d checkpoints: too few to tell anything", total, len(checkpoints))
		}
		t.Logf("%d different answers of %d checkpoints, %d committed", total, len(checkpoints), len(at))
	})
}

// A query doesn't see what was processed and is not committed.
func TestQueryDoesNotSeeWhatIsNotCommitted(t *testing.T) {
	backends(t, func(t *testing.T, backend pebble.Backend) {
		brokers := broker(t, 1, "in", "out")
		counted := make(chan int64, 16)
		committed := make(chan int64, 16)
		app := weir.New("app", weir.Brokers(brokers...), weir.Store(checkpoint.NewMem()), weir.InstanceID("a"), weir.Parallelism(1),
			weir.CheckpointEvery(5*time.Minute), weir.AfterRecords(3), weir.StateBackend(backend),
			weir.Listen(weir.Listener{CheckpointCommitted: func(i event.CheckpointCommitted) { committed <- i.Checkpoint }}))
		byKey := weir.KeyBy(weir.From(app, "in", source.Values("in", codec.String)), "by-key", func(w string) string { return w }, codec.String)
		weir.To(weir.Process(byKey, "count", func(s *weir.Setup) weir.Handler[string, string, string] {
			n := state.Value(s, "n", codec.Int64)
			return weir.OnRecord(func(c *weir.Context[string, string], v string) error {
				n.Set(n.Get() + 1)
				counted <- n.Get()
				return nil
			})
		}), "out", kafka.Values("out", kafka.NoKey, codec.String))
		query := func() (weir.Result[int64], error) {
			return weir.Query(t.Context(), app, "count", "n", "a", codec.String, codec.Int64)
		}
		if _, err := query(); !errors.Is(err, weir.ErrNotRunning) {
			t.Errorf("before Run: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- app.Run(ctx) }()
		produce(t, brokers, "in", "a", "a")
		<-counted
		<-counted
		if r, err := query(); !errors.Is(err, weir.ErrNothingCommitted) {
			t.Errorf("before the first commit: %+v, %v", r, err)
		}
		produce(t, brokers, "in", "a")
		<-counted
		first := <-committed
		for {
			r, err := query()
			if errors.Is(err, weir.ErrNothingCommitted) { // it is just being taken over
				continue
			}
			if err != nil || r.Value != 3 || !r.OK || r.Checkpoint != first {
				t.Errorf("after the commit: %+v, %v", r, err)
			}
			break
		}
		produce(t, brokers, "in", "a")
		if n := <-counted; n != 4 {
			t.Errorf("the handler has %d", n)
		}
		if r, err := query(); err != nil || r.Value != 3 || r.Checkpoint != first {
			t.Errorf("with a record that is not committed: %+v, %v", r, err)
		}
		if r, err := weir.Query(t.Context(), app, "count", "n", "never", codec.String, codec.Int64); err != nil || r.OK || r.Checkpoint != first {
			t.Errorf("a key without a value: %+v, %v", r, err)
		}
		cancelled, cancelQuery := context.WithCancel(t.Context())
		cancelQuery()
		if _, err := weir.Query(cancelled, app, "count", "n", "a", codec.String, codec.Int64); !errors.Is(err, context.Canceled) {
			t.Errorf("with a context that is done: %v", err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

func TestQueryDoesNotSeeACheckpointThatIsBeingCommitted(t *testing.T) {
	backends(t, func(t *testing.T, backend pebble.Backend) {
		c := cluster(t, 1, "lines", "counts")
		brokers := c.ListenAddrs()
		committed := make(chan int64, 16)
		app := weir.New("wordcount", weir.Brokers(brokers...), weir.Store(checkpoint.NewMem()), weir.InstanceID("a"), weir.Parallelism(1),
			weir.CheckpointEvery(5*time.Minute), weir.AfterRecords(1), weir.StateBackend(backend),
			weir.Listen(weir.Listener{CheckpointCommitted: func(i event.CheckpointCommitted) { committed <- i.Checkpoint }}))
		byWord := weir.KeyBy(weir.From(app, "lines", source.Values("lines", codec.String)), "by-word", func(w string) string { return w }, codec.String)
		weir.To(weir.Aggregate(byWord, "count", weir.Count[string]()), "counts", kafka.Sink("counts", codec.String, codec.Int64))
		ctx, cancel := context.WithTimeout(t.Context(), deadline)
		defer cancel()
		done := make(chan error, 1)
		go func() { done <- app.Run(ctx) }()
		count := func(want, checkpoint int64) {
			t.Helper()
			for {
				r, err := queryCount(ctx, app, "a")
				if err == nil && r.Checkpoint < checkpoint || errors.Is(err, weir.ErrNothingCommitted) {
					continue // it is just being taken over
				}
				if err != nil || r.Value != want || r.Checkpoint != checkpoint {
					t.Errorf("the count is %+v, %v; want %d of checkpoint %d", r, err, want, checkpoint)
				}
				return
			}
		}
		produce(t, brokers, "lines", "a")
		first := <-committed
		count(1, first)
		// The end of the transaction is asked for again and again, and not done.
		h := c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Err: kerr.ConcurrentTransactions, TopLevel: true, Count: -1})
		produce(t, brokers, "lines", "a")
		if err := h.Wait(ctx, 1); err != nil {
			t.Fatal(err)
		}
		count(1, first)
		h.Remove()
		count(2, <-committed)
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// A query for what is not there says what is.
func TestQueryNamesWhatItCannotAsk(t *testing.T) {
	brokers := broker(t, 1, "lines", "counts", "maps")
	app := weir.New("wordcount", weir.Brokers(brokers...), weir.Store(checkpoint.NewMem()), weir.InstanceID("a"), weir.Drain())
	wordCount(app)
	other := weir.KeyBy(weir.From(app, "maps", source.Values("maps", codec.String)), "by-line", func(w string) string { return w }, codec.String)
	weir.To(weir.Process(other, "maps-of", func(s *weir.Setup) weir.Handler[string, string, string] {
		state.Map(s, "m", codec.String, codec.Int64)
		return weir.OnRecord(func(*weir.Context[string, string], string) error { return nil })
	}), "out", kafka.Values("counts", kafka.NoKey, codec.String))
	if err := app.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	ask := func(op, name string) error {
		_, err := weir.Query(t.Context(), app, op, name, "k", codec.String, codec.Int64)
		return err
	}
	for _, c := range []struct {
		err   error
		is    error
		texts []string
	}{
		{ask("cuont", "acc"), weir.ErrNoSuchState, []string{`operator "cuont"`, "count/acc", "maps-of/m"}},
		{ask("count", "n"), weir.ErrNoSuchState, []string{`state "n"`, "count/acc"}},
		{ask("maps-of", "m"), errors.ErrUnsupported, []string{"map state"}},
		{func() error {
			_, err := weir.Query(t.Context(), app, "count", "acc", "k", codec.String, codec.String)
			return err
		}(), weir.ErrWrongCodec, []string{"values", `"int64"`, `"string"`}},
		{func() error {
			_, err := weir.Query(t.Context(), app, "count", "acc", int64(1), codec.Int64, codec.Int64)
			return err
		}(), weir.ErrWrongCodec, []string{"keys", `"int64"`, `"string"`}},
		{func() error {
			_, err := weir.Query[string, int64](t.Context(), app, "count", "acc", "k", codec.String, nil)
			return err
		}(), nil, []string{"value codec"}},
		{ask("count", "acc"), weir.ErrNotRunning, nil},
	} {
		if c.is != nil && !errors.Is(c.err, c.is) {
			t.Errorf("%v is not %v", c.err, c.is)
		}
		wantError(t, c.err, c.texts...)
	}
}

// What has expired is absent, by the clock and by the watermark of the checkpoint.
func TestQueryOfExpiredStateFindsNothing(t *testing.T) {
	backends(t, func(t *testing.T, backend pebble.Backend) {
		brokers := broker(t, 1, "in", "out")
		now := clock.NewManual(time.UnixMilli(1_000_000_000_000))
		var app *weir.App
		topology := func(a *weir.App) {
			app = a
			in := weir.From(a, "in", source.Values("in", codec.Int64), weir.EventTime(func(ms int64) time.Time { return time.UnixMilli(ms) }))
			byKey := weir.KeyBy(in, "by-key", func(ms int64) string { return fmt.Sprint("key-", ms) }, codec.String)
			weir.To(weir.Process(byKey, "keep", func(s *weir.Setup) weir.Handler[string, int64, int64] {
				byClock := state.Value(s, "by-clock", codec.Int64, state.TTL(time.Minute))
				byEvents := state.Value(s, "by-events", codec.Int64, state.TTL(time.Minute, state.InEventTime))
				return weir.OnRecord(func(c *weir.Context[string, int64], v int64) error {
					byClock.Set(v)
					byEvents.Set(v)
					return nil
				})
			}), "out", kafka.Values("out", kafka.NoKey, codec.Int64))
		}
		r := start(t, "app", brokers, topology, weir.Store(checkpoint.NewMem()), weir.UseClock(now), weir.StateBackend(backend),
			weir.CheckpointEvery(5*time.Millisecond))
		put := func(ms int64) {
			b, err := codec.Int64.Append(nil, ms)
			if err != nil {
				t.Fatal(err)
			}
			produce(t, brokers, "in", string(b))
		}
		// ask asks for the first key as of a checkpoint that has the last one.
		ask := func(last int64, name string) bool {
			t.Helper()
			for begun := time.Now(); time.Since(begun) < deadline; time.Sleep(time.Millisecond) {
				l, err := weir.Query(t.Context(), app, "keep", "by-clock", fmt.Sprint("key-", last), codec.String, codec.Int64)
				if err != nil || !l.OK {
					continue
				}
				got, err := weir.Query(t.Context(), app, "keep", name, "key-1000", codec.String, codec.Int64)
				if err != nil || got.Checkpoint < l.Checkpoint {
					t.Fatalf("%+v, %v", got, err)
				}
				return got.OK
			}
			t.Fatalf("%d was not committed; events: %v", last, r.list())
			return false
		}
		put(10) // from here on there is event time
		ask(10, "by-events")
		put(1000)
		if !ask(1000, "by-clock") || !ask(1000, "by-events") {
			t.Error("fresh state was not found")
		}
		put(59_000)
		if !ask(59_000, "by-events") {
			t.Error("state was not found before the watermark reached its expiry")
		}
		put(200_000)
		if ask(200_000, "by-events") {
			t.Error("state was found that had expired by the watermark")
		}
		if !ask(200_000, "by-clock") {
			t.Error("the watermark changed what counts by the clock")
		}
		now.Advance(2 * time.Minute)
		if q, err := weir.Query(t.Context(), app, "keep", "by-clock", "key-1000", codec.String, codec.Int64); err != nil || q.OK || q.Value != 0 || q.Checkpoint == 0 {
			t.Errorf("after its time: %+v, %v", q, err)
		}
	})
}

func TestQueryOfAStandbyIsRefused(t *testing.T) {
	brokers := broker(t, 2, "in", "out")
	store := checkpoint.NewMem()
	active := start(t, "app", brokers, sums(same), weir.Store(store), weir.InstanceID("first"))
	produce(t, brokers, "in", "a:7")
	await(active, 1, any1[event.CheckpointCommitted])
	var app *weir.App
	standby := start(t, "app", brokers, func(a *weir.App) { sums(same)(a); app = a }, weir.Store(store), weir.InstanceID("second"))
	awaitMembers(t, brokers, "app", 2)
	ask := func() (weir.Result[int64], error) {
		return weir.Query(t.Context(), app, "sum", "total", "a", codec.String, codec.Int64)
	}
	if r, err := ask(); !errors.Is(err, weir.ErrNotActive) {
		t.Errorf("a standby answers %+v, %v", r, err)
	}
	active.stop()
	restored := await(standby, 1, any1[event.Restored])
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		r, err := ask()
		if errors.Is(err, weir.ErrNotActive) && time.Since(begun) < deadline {
			continue // about to start
		}
		if err != nil || !r.OK || r.Value != 7 || r.Checkpoint != restored.Checkpoint {
			t.Errorf("after taking over: %+v, %v", r, err)
		}
		break
	}
}

// heldUp is a store of which reads wait while they are held up, and which tells of deletes.
type heldUp struct {
	checkpoint.Store
	mu      sync.Mutex
	hold    chan struct{} // nil: reads go on
	waiting chan string
	deleted map[string]bool
}

func (s *heldUp) wait(name string) {
	s.mu.Lock()
	hold := s.hold
	s.mu.Unlock()
	if hold != nil {
		s.waiting <- name
		<-hold
	}
}

func (s *heldUp) GetRange(ctx context.Context, name string, off, n int64) ([]byte, error) {
	s.wait(name)
	return s.Store.GetRange(ctx, name, off, n)
}

func (s *heldUp) Delete(ctx context.Context, name string) error {
	err := s.Store.Delete(ctx, name)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.deleted[name] = true
	return err
}

func (s *heldUp) deletedAny() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.deleted)
}

// What a query reads stays until it has read it, however long that takes.
func TestQueryHoldsTheCheckpointThatItReads(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	store := &heldUp{Store: checkpoint.NewMem(), waiting: make(chan string, 64), deleted: map[string]bool{}}
	var app *weir.App
	r := start(t, "app", brokers, func(a *weir.App) { sums(same)(a); app = a }, weir.Store(store), weir.Retain(1), weir.Parallelism(1))
	produce(t, brokers, "in", "a:7")
	with := await(r, 1, func(c event.CheckpointCommitted) bool { return c.Records == 1 }).Checkpoint
	for begun := time.Now(); app.Status().Checkpoint < with; time.Sleep(time.Millisecond) {
		if time.Since(begun) > deadline {
			t.Fatal("nothing is committed")
		}
	}
	hold := make(chan struct{})
	store.mu.Lock()
	store.hold = hold
	store.mu.Unlock()
	type answer struct {
		weir.Result[int64]
		err error
	}
	got := make(chan answer, 1)
	go func() {
		a, err := weir.Query(t.Context(), app, "sum", "total", "a", codec.String, codec.Int64)
		got <- answer{a, err}
	}()
	reads := <-store.waiting // the query is about to read
	store.mu.Lock()
	store.hold = nil
	store.mu.Unlock()
	// A merge makes what is being read superfluous, and collection comes by.
	for n := 2; store.deletedAny() < 8; n++ {
		if n > 200 {
			t.Fatal("nothing was collected")
		}
		produce(t, brokers, "in", "a:1")
		await(r, n, any1[event.CheckpointCommitted])
	}
	if store.mu.Lock(); store.deleted[reads] {
		t.Errorf("%s was deleted under a query", reads)
	}
	store.mu.Unlock()
	close(hold)
	if a := <-got; a.err != nil || a.Value != 7 || !a.OK || a.Checkpoint != with {
		t.Errorf("the query says %+v", a)
	}
}

// What a new process has not copied yet it reads in the store, and that may hang.
func TestQueryOfStateInPlaceEndsWithItsContext(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	store := &heldUp{Store: checkpoint.NewMem(), waiting: make(chan string, 64), deleted: map[string]bool{}}
	first := start(t, "app", brokers, sums(same), weir.Store(store), weir.Parallelism(1))
	produce(t, brokers, "in", "a:7")
	await(first, 1, any1[event.CheckpointCommitted])
	first.stop()
	if err := first.wait(); err != nil {
		t.Fatal(err)
	}

	goOn := make(chan struct{})
	backend := localdisk.ReadInPlace(pebble.Dir(t.TempDir())).(pebble.Backend)
	backend.Progress = func(pebble.Progress) { <-goOn } // nothing is copied
	var app *weir.App
	r := start(t, "app", brokers, func(a *weir.App) { sums(same)(a); app = a }, weir.Store(store), weir.Parallelism(1), weir.StateBackend(backend))
	t.Cleanup(sync.OnceFunc(func() { close(goOn) })) // before the app is stopped
	await(r, 1, any1[event.Restored])
	store.mu.Lock()
	store.hold = goOn
	store.mu.Unlock()
	query := func(ctx context.Context) (weir.Result[int64], error) {
		for {
			a, err := weir.Query(ctx, app, "sum", "total", "a", codec.String, codec.Int64)
			if !errors.Is(err, weir.ErrNotActive) { // about to start
				return a, err
			}
			time.Sleep(time.Millisecond)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	asked := make(chan error, 1)
	go func() {
		_, err := query(ctx)
		asked <- err
	}()
	select {
	case <-store.waiting:
	case err := <-asked:
		t.Fatalf("the query read nothing in the store: %v", err)
	}
	cancel()
	select {
	case err := <-asked:
		if !errors.Is(err, context.Canceled) {
			t.Errorf("the query ended with %v", err)
		}
	case <-time.After(deadline):
		t.Error("the query waits for the store")
	}
}
