package weir_test

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/admin"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/processor"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state/pebble"
)

// liveCount is a word count that runs until it is stopped.
type liveCount struct {
	app       *weir.App
	committed chan int64
	done      chan error
	stop      context.CancelFunc
}

func startCount(t *testing.T, brokers []string, store string, opts ...weir.Option) *liveCount {
	t.Helper()
	r := &liveCount{committed: make(chan int64, 1024), done: make(chan error, 1)}
	r.app = weir.New("wordcount", append([]weir.Option{weir.Brokers(brokers...), weir.CheckpointStore(store), weir.InstanceID("a"),
		weir.Parallelism(2), weir.CheckpointEvery(10 * time.Millisecond),
		weir.Listen(weir.Listener{CheckpointCommitted: func(i event.CheckpointCommitted) {
			select {
			case r.committed <- i.Checkpoint:
			default: // nobody waits
			}
		}})}, opts...)...)
	wordCount(r.app)
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	r.stop = cancel
	ended := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-ended // before its directories are removed
	})
	go func() {
		r.done <- r.app.Run(ctx)
		close(ended)
	}()
	return r
}

func (r *liveCount) waitCommit(t *testing.T) {
	t.Helper()
	select {
	case <-r.committed:
	case err := <-r.done:
		t.Fatalf("the app stopped: %v", err)
	}
}

// forget deletes all that Kafka knows of the app, as one who starts it elsewhere.
func forget(t *testing.T, brokers []string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	if _, err := adm.DeleteGroup(t.Context(), "wordcount"); err != nil {
		t.Fatal(err)
	}
	if _, err := adm.DeleteTopics(t.Context(), "wordcount-checkpoints"); err != nil {
		t.Fatal(err)
	}
}

// Positions of a topic that is no more say nothing about the one that has its name now.
func TestSavepointOfARecreatedInputIsRefusedWithItsPositions(t *testing.T) {
	brokers, dir := broker(t, 1, "lines", "counts"), t.TempDir()
	produce(t, brokers, "lines", "a", "b", "c")
	r := startCount(t, brokers, t.TempDir())
	consume(t, brokers, "counts", 3)
	if _, err := r.app.StopWithSavepoint(t.Context(), dir, "old"); err != nil {
		t.Fatal(err)
	}
	forget(t, brokers)
	adm := adminOf(t, brokers)
	_, err := adm.DeleteTopics(t.Context(), "lines")
	if err == nil {
		_, err = adm.CreateTopic(t.Context(), 1, 1, nil, "lines")
	}
	if err != nil {
		t.Fatal(err)
	}
	produce(t, brokers, "lines", "d", "e", "f", "g")
	from := func(opts ...weir.SavepointOption) error {
		return <-startCount(t, brokers, t.TempDir(), weir.FromSavepoint(dir, "old", opts...), weir.Drain()).done
	}
	err = from()
	wantError(t, err, `input topic "lines"`, "savepoint/old", "weir.DropPositions()", "weir.AnyTopics()")
	if e := (*processor.RecreatedError)(nil); !errors.As(err, &e) {
		t.Errorf("error %T", err)
	}
	if err := from(weir.DropPositions()); err != nil {
		t.Fatal(err)
	}
	if got := counted(t, brokers, 7); !maps.Equal(got, map[string]int64{"a": 1, "b": 1, "c": 1, "d": 1, "e": 1, "f": 1, "g": 1}) {
		t.Errorf("counts %v of the state with all of the new input", got)
	}
	forget(t, brokers)
	if err := from(weir.AnyTopics()); err != nil {
		t.Error(err)
	}
	if got := len(consume(t, brokers, "counts", 8)); got != 8 {
		t.Errorf("%d counts with what comes after the positions", got)
	}
}

// A savepoint of a running app, moved to another directory, is where an app with
// another backend and parallelism goes on, with its offsets.
func TestS28_SavepointIsMovedAndRestoredElsewhere(t *testing.T) {
	brokers := broker(t, 4, "lines", "counts")
	first, second := words(2000, 300), words(1000, 400)
	produce(t, brokers, "lines", first...)
	r := startCount(t, brokers, t.TempDir())
	consume(t, brokers, "counts", len(first))
	dir := t.TempDir()
	info, err := r.app.Savepoint(t.Context(), dir, "before-v2")
	if err != nil {
		t.Fatal(err)
	}
	if !info.Complete || info.Name != "before-v2" {
		t.Fatalf("the savepoint is %+v", info)
	}
	if _, err := r.app.Savepoint(t.Context(), dir, "before-v2"); !errors.Is(err, checkpoint.ErrSavepointExists) {
		t.Errorf("a second savepoint of that name: %v", err)
	}
	r.stop()
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	forget(t, brokers)
	moved := filepath.Join(t.TempDir(), "elsewhere")
	if err := os.Rename(filepath.Join(dir, "savepoint", "before-v2"), moved); err != nil {
		t.Fatal(err)
	}

	produce(t, brokers, "lines", second...)
	life := &keyedLife{brokers: brokers, store: checkpoint.NewMem(), backend: pebble.Dir(t.TempDir()), parallelism: 3,
		opts: []weir.Option{weir.FromSavepoint(moved, "")}}
	life.run(t)
	if got := counted(t, brokers, len(first)+len(second)); !maps.Equal(got, wordCounts(first, second)) {
		t.Fatal("the counts differ from those of the input")
	}
	// Once something is committed the option does nothing.
	third := words(500, 100)
	produce(t, brokers, "lines", third...)
	life.run(t)
	if got := counted(t, brokers, len(first)+len(second)+len(third)); !maps.Equal(got, wordCounts(first, second, third)) {
		t.Fatal("the counts differ from those of the input after another start")
	}
}

func TestStopWithSavepointHoldsAllThatWasCommitted(t *testing.T) {
	brokers := broker(t, 4, "lines", "counts")
	lines := words(2000, 300)
	produce(t, brokers, "lines", lines...)
	store := t.TempDir()
	r := startCount(t, brokers, store)
	r.waitCommit(t)
	if _, err := r.app.StopWithSavepoint(t.Context(), "", "last"); err != nil {
		t.Fatal(err)
	}
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	if _, err := r.app.Savepoint(t.Context(), "", "late"); !errors.Is(err, weir.ErrNotRunning) {
		t.Errorf("a savepoint of an app that stopped: %v", err)
	}
	forget(t, brokers)
	life := &keyedLife{brokers: brokers, store: checkpoint.NewMem(), opts: []weir.Option{weir.FromSavepoint(store, "last")}}
	life.run(t)
	if got := counted(t, brokers, len(lines)); !maps.Equal(got, wordCounts(lines)) {
		t.Fatal("the counts differ from those of the input")
	}
}

// Without its offsets a savepoint gives its state to an input that is read anew.
func TestSavepointWithoutPositionsReadsTheInputAnew(t *testing.T) {
	brokers := broker(t, 4, "lines", "counts")
	lines := words(500, 50)
	produce(t, brokers, "lines", lines...)
	store := t.TempDir()
	r := startCount(t, brokers, store)
	consume(t, brokers, "counts", len(lines))
	if _, err := r.app.StopWithSavepoint(t.Context(), "", "state"); err != nil {
		t.Fatal(err)
	}
	<-r.done
	forget(t, brokers)
	life := &keyedLife{brokers: brokers, store: checkpoint.NewMem(), opts: []weir.Option{weir.FromSavepoint(store, "state", weir.DropPositions())}}
	life.run(t)
	if got := counted(t, brokers, 2*len(lines)); !maps.Equal(got, wordCounts(lines, lines)) {
		t.Fatal("the counts are not those of the input read twice")
	}
}

func TestSavepointThatCannotBeUsedIsRefused(t *testing.T) {
	brokers := broker(t, 4, "lines", "counts")
	produce(t, brokers, "lines", words(100, 10)...)
	store := t.TempDir()
	r := startCount(t, brokers, store)
	r.waitCommit(t)
	if _, err := r.app.StopWithSavepoint(t.Context(), "", "ok"); err != nil {
		t.Fatal(err)
	}
	<-r.done
	gone := filepath.Join(t.TempDir(), "gone")
	for _, c := range []struct {
		name string
		app  string
		opts []weir.Option
		want []string
	}{
		{"missing", "other", []weir.Option{weir.FromSavepoint(store, "none")}, []string{`does not have savepoint "none"; it has savepoints ok`}},
		{"no name", "other", []weir.Option{weir.FromSavepoint(store, "")}, []string{"is no savepoint itself", "it has savepoints ok"}},
		{"no directory", "other", []weir.Option{weir.FromSavepoint(gone, "ok")}, []string{"FromSavepoint", "there is no directory " + gone}},
		{"of another app", "other", []weir.Option{weir.FromSavepoint(store, "ok")}, []string{"wordcount", "other"}},
		{"key-groups", "other", []weir.Option{weir.FromSavepoint(store, "ok", weir.AnyApp()), weir.KeyGroups(64)}, []string{"128", "64"}},
		{"name", "other", []weir.Option{weir.FromSavepoint(store, "../x")}, []string{`savepoint name "../x"`}},
	} {
		t.Run(c.name, func(t *testing.T) {
			app := weir.New(c.app, append([]weir.Option{weir.Brokers(brokers...), weir.Store(checkpoint.NewMem()), weir.InstanceID("a"), weir.Drain()}, c.opts...)...)
			wordCount(app)
			err := app.Run(t.Context())
			if err == nil {
				t.Fatal("it started")
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("the error does not say %q: %v", w, err)
				}
			}
		})
	}
}

// A savepoint that an app has begun from is not needed again.
func TestSavepointMayBeGoneWhenTheAppHasCommitted(t *testing.T) {
	brokers := broker(t, 4, "lines", "counts")
	lines := words(100, 10)
	produce(t, brokers, "lines", lines...)
	store, gone := checkpoint.NewMem(), filepath.Join(t.TempDir(), "gone")
	(&keyedLife{brokers: brokers, store: store}).run(t)
	produce(t, brokers, "lines", lines...)
	(&keyedLife{brokers: brokers, store: store, opts: []weir.Option{weir.FromSavepoint(gone, "last")}}).run(t)
	if got := counted(t, brokers, 2*len(lines)); !maps.Equal(got, wordCounts(lines, lines)) {
		t.Fatal("the counts differ from those of the input")
	}
	if _, err := os.Stat(gone); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the directory was made: %v", err)
	}
}

// A start that is refused leaves the group, so that an operator can act on its offsets.
func TestRefusedStartLeavesTheGroup(t *testing.T) {
	brokers := broker(t, 4, "lines", "counts")
	produce(t, brokers, "lines", words(100, 10)...)
	store := t.TempDir()
	r := startCount(t, brokers, store)
	consume(t, brokers, "counts", 100)
	r.stop()
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	refused := startCount(t, brokers, store, weir.KeyGroups(64))
	if err := <-refused.done; err == nil {
		t.Fatal("another number of key-groups was taken")
	}
	// Without the operator the topology lacks the state.
	app := weir.New("wordcount", weir.Brokers(brokers...), weir.CheckpointStore(store), weir.InstanceID("a"))
	lines := weir.From(app, "lines", source.Values("lines", codec.String))
	weir.To(lines, "counts", kafka.Values("counts", kafka.NoKey, codec.String))
	if err := app.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "AllowDroppedState") {
		t.Fatalf("state that the topology lacks: %v", err)
	}
	wantNoMembers(t, brokers, "wordcount") // after a refused start
}

// closingStore counts how often what was opened for a savepoint was closed.
type closingStore struct {
	checkpoint.Store
	closed *atomic.Int64
}

func (s closingStore) Close() error {
	s.closed.Add(1)
	return nil
}

func TestStoreThatIsOpenedForASavepointIsClosed(t *testing.T) {
	var opened, closed atomic.Int64
	mem := checkpoint.NewMem()
	scheme := "closing" + strings.ToLower(rand.Text())
	checkpoint.RegisterScheme(scheme, func(string) (checkpoint.Store, error) {
		opened.Add(1)
		return closingStore{mem, &closed}, nil
	})
	brokers := broker(t, 4, "lines", "counts")
	produce(t, brokers, "lines", words(100, 10)...)
	r := startCount(t, brokers, t.TempDir())
	r.waitCommit(t)
	if _, err := r.app.Savepoint(t.Context(), scheme+"://there", "a"); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r.app.AdminHandler())
	defer srv.Close()
	c, err := admin.NewClient(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"b", "a"} { // the second is there already
		_, err := c.Savepoint(t.Context(), admin.SavepointRequest{Name: name, To: scheme + "://there"})
		if (err == nil) != (name == "b") {
			t.Fatal(err)
		}
	}
	if opened.Load() != 3 || closed.Load() != 3 {
		t.Errorf("%d stores were opened, %d closed", opened.Load(), closed.Load())
	}
}

// The incarnation that holds the checkpoint ends while it is copied, and the next one
// collects it.
func TestSavepointThatWasOvertakenByARestartIsTakenAnew(t *testing.T) {
	copying, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	target := faultstore.Wrap(checkpoint.NewMem())
	target.Before(func(context.Context, faultstore.Op, string) error {
		once.Do(func() {
			close(copying)
			<-goOn
		})
		return nil
	})
	scheme := "slow" + strings.ToLower(rand.Text())
	checkpoint.RegisterScheme(scheme, func(string) (checkpoint.Store, error) { return target, nil })
	brokers := broker(t, 1, "lines", "counts")
	store := checkpoint.NewMem()
	app := weir.New("wordcount", weir.Brokers(brokers...), weir.Store(store), weir.InstanceID("a"),
		weir.CheckpointEvery(5*time.Millisecond), weir.Retain(1), fast)
	stumblingCount(app, func(word string) bool { return word == "stumble" })
	ctx, stop := context.WithTimeout(t.Context(), 60*time.Second)
	defer stop()
	done, made := make(chan error, 1), make(chan error, 1)
	go func() { done <- app.Run(ctx) }()
	produce(t, brokers, "lines", "a")
	consume(t, brokers, "counts", 1)
	go func() {
		_, err := app.Savepoint(ctx, scheme+"://there", "x")
		made <- err
	}()
	<-copying
	held, err := checkpoint.ListManifests(ctx, store)
	if err != nil || len(held) == 0 {
		t.Fatal(held, err)
	}
	old, ref, err := checkpoint.Inspect(ctx, store, held[len(held)-1].Name)
	if err != nil {
		t.Fatal(err)
	}
	produce(t, brokers, "lines", "stumble")
	for n := 2; ; n++ { // until its segment was merged
		consume(t, brokers, "counts", n)
		if _, err := store.Get(ctx, old.Segments[0].Object); errors.Is(err, checkpoint.ErrNotFound) {
			break
		}
		if ctx.Err() != nil {
			t.Fatal("the checkpoint was not collected")
		}
		produce(t, brokers, "lines", "a")
	}
	close(goOn)
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	m, view, err := checkpoint.OpenSavepoint(ctx, target, "x")
	if err != nil || m.Checkpoint <= ref.Checkpoint {
		t.Fatal(m, err)
	}
	if err := checkpoint.Verify(ctx, view, m, nil); err != nil {
		t.Error(err)
	}
	stop()
	<-done
}

// TestStopWithSavepointOfAnAppThatEndedIsRefused: by then another process may have gone on.
func TestStopWithSavepointOfAnAppThatEndedIsRefused(t *testing.T) {
	brokers := broker(t, 4, "lines", "counts")
	store := t.TempDir()
	produce(t, brokers, "lines", words(100, 10)...)
	r := startCount(t, brokers, store, weir.Retain(50))
	r.waitCommit(t)
	r.stop()
	if err := <-r.done; err != nil {
		t.Fatal(err)
	}
	next := startCount(t, brokers, store, weir.Retain(50))
	produce(t, brokers, "lines", words(100, 10)...)
	next.waitCommit(t)
	if i, err := r.app.StopWithSavepoint(t.Context(), "", "last"); !errors.Is(err, weir.ErrNotRunning) {
		t.Errorf("a savepoint of what was committed before another process went on: %+v, %v", i, err)
	}
}

// Whoever gives up a savepoint gets away, also when so many ask that the loop, which is busy,
// does not hear of all.
func TestSavepointsThatNobodyHearsOfEndWithTheirContext(t *testing.T) {
	brokers := broker(t, 1, "lines", "counts")
	produce(t, brokers, "lines", "a")
	busy, goOn := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r := startCount(t, brokers, "mem://", weir.Listen(weir.Listener{CheckpointCommitted: func(event.CheckpointCommitted) {
		once.Do(func() {
			close(busy)
			<-goOn
		})
	}}))
	<-busy
	ctx, cancel := context.WithCancel(t.Context())
	const many = 1000
	ended := make(chan error, many)
	for i := range many {
		go func() {
			_, err := r.app.Savepoint(ctx, "", fmt.Sprint("s", i))
			ended <- err
		}()
	}
	cancel()
	timeout := time.After(deadline / 3)
	for n := range many {
		select {
		case err := <-ended:
			if !errors.Is(err, context.Canceled) {
				t.Errorf("the error is %v", err)
			}
		case <-timeout:
			t.Errorf("%d of %d ended", n, many)
			close(goOn)
			return
		}
	}
	close(goOn)
	r.stop()
	if err := <-r.done; err != nil {
		t.Error(err)
	}
}
