package weir_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/sink/file"
	"github.com/weirstream/weir/sink/twophase"
	"github.com/weirstream/weir/source"
)

// treasury is a receiver with prepared transactions that outlives every app.
type treasury struct {
	*shelf    // of committed transactions, in the order of their commits
	next      int
	pending   map[string][]string // open or prepared, by id
	prepared  map[string]bool
	committed map[string]bool
	aborted   []string
}

func newTreasury() *treasury {
	return &treasury{shelf: newShelf(), pending: map[string][]string{}, prepared: map[string]bool{}, committed: map[string]bool{}}
}

// waiting returns the transactions that are prepared and neither committed nor rolled back.
func (to *treasury) waiting() []string {
	to.mu.Lock()
	defer to.mu.Unlock()
	var ids []string
	for id := range to.pending {
		if to.prepared[id] {
			ids = append(ids, id)
		}
	}
	slices.Sort(ids)
	return ids
}

// deposits is a participant that writes to a treasury. before is called before each call
// and may fail or hold it; nil does nothing.
type deposits struct {
	to     *treasury
	before func(ctx context.Context, call, id string) error
}

func (*deposits) Check() error   { return nil }
func (*deposits) String() string { return "a treasury" }

func (p *deposits) Connect(twophase.Env) (twophase.Receiver[string], error) { return p, nil }

func (p *deposits) call(ctx context.Context, call, id string) error {
	if p.before == nil {
		return nil
	}
	return p.before(ctx, call, id)
}

func (p *deposits) Begin(ctx context.Context, subtask int) (twophase.Transaction[string], error) {
	if err := p.call(ctx, "begin", ""); err != nil {
		return nil, err
	}
	p.to.mu.Lock()
	defer p.to.mu.Unlock()
	p.to.next++
	tx := &depositTransaction{p, fmt.Sprintf("%d/%d", subtask, p.to.next)}
	p.to.pending[tx.id] = nil
	return tx, nil
}

func (p *deposits) Commit(ctx context.Context, handle []byte) error {
	id := string(handle)
	if err := p.call(ctx, "commit", id); err != nil {
		return err
	}
	p.to.mu.Lock()
	defer p.to.mu.Unlock()
	if p.to.committed[id] {
		return nil
	}
	values, ok := p.to.pending[id]
	if !ok || !p.to.prepared[id] {
		return fmt.Errorf("transaction %s: %w", id, twophase.ErrGone)
	}
	delete(p.to.pending, id)
	p.to.committed[id] = true
	p.to.put(values)
	return nil
}

func (p *deposits) Leftovers(ctx context.Context, named [][]byte) ([][]byte, error) {
	if err := p.call(ctx, "leftovers", ""); err != nil {
		return nil, err
	}
	p.to.mu.Lock()
	defer p.to.mu.Unlock()
	var left [][]byte
	for _, id := range slices.Sorted(maps.Keys(p.to.pending)) {
		if !slices.ContainsFunc(named, func(h []byte) bool { return string(h) == id }) {
			left = append(left, []byte(id))
		}
	}
	return left, nil
}

func (p *deposits) Abort(ctx context.Context, leftover []byte) error {
	id := string(leftover)
	if err := p.call(ctx, "abort", id); err != nil {
		return err
	}
	p.to.mu.Lock()
	defer p.to.mu.Unlock()
	if _, ok := p.to.pending[id]; ok && p.to.prepared[id] {
		p.to.aborted = append(p.to.aborted, id)
	}
	delete(p.to.pending, id)
	return nil
}

func (*deposits) Close() error { return nil }

type depositTransaction struct {
	p  *deposits
	id string
}

func (tx *depositTransaction) Write(v string) error {
	tx.p.to.mu.Lock()
	defer tx.p.to.mu.Unlock()
	if values, ok := tx.p.to.pending[tx.id]; ok { // else somebody rolled it back
		tx.p.to.pending[tx.id] = append(values, v)
	}
	return nil
}

func (tx *depositTransaction) Prepare(ctx context.Context) ([]byte, error) {
	if err := tx.p.call(ctx, "prepare", tx.id); err != nil {
		return nil, err
	}
	tx.p.to.mu.Lock()
	defer tx.p.to.mu.Unlock()
	tx.p.to.prepared[tx.id] = true
	return []byte(tx.id), nil
}

func (tx *depositTransaction) Rollback(context.Context) {
	tx.p.to.mu.Lock()
	defer tx.p.to.mu.Unlock()
	delete(tx.p.to.pending, tx.id)
}

// twoPhaseLife runs an app that writes to a treasury until its input is drained.
func twoPhaseLife(t *testing.T, brokers []string, to *deposits, opts ...weir.Option) *running {
	t.Helper()
	r := start(t, "app", brokers, sumsTo(twophase.To(to)), append([]weir.Option{weir.Drain(), fast}, opts...)...)
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	return r
}

// at holds the first call of that name until release is called, which a test defers: a call
// that is held holds up the end of its app. reached tells of the call.
func at(call string) (before func(context.Context, string, string) error, reached <-chan string, release func()) {
	var once sync.Once
	came, held := make(chan string, 1), make(chan struct{})
	return func(_ context.Context, c, id string) error {
		if c == call {
			once.Do(func() {
				came <- id
				<-held
			})
		}
		return nil
	}, came, sync.OnceFunc(func() { close(held) })
}

// TestS38_PreparedTransactionThatNoCheckpointNamesIsRolledBack cuts a process off between
// prepare and commit point: before the manifest is there, and behind it.
func TestS38_PreparedTransactionThatNoCheckpointNamesIsRolledBack(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		for _, behind := range []bool{false, true} {
			t.Run(fmt.Sprintf("durable=%v", behind), func(t *testing.T) {
				brokers := broker(t, 2, "in")
				store := faultstore.Wrap(checkpoint.NewMem())
				to := newTreasury()
				produce(t, brokers, "in", ones(3, letters...)...)
				var network severed
				cut, once := make(chan struct{}), sync.Once{}
				die := func() {
					once.Do(func() {
						network.sever()
						close(cut)
					})
				}
				var mu sync.Mutex
				var told []string // what happened to transactions and checkpoints, in this order
				tell := func(what string) {
					mu.Lock()
					defer mu.Unlock()
					told = append(told, what)
				}
				first := &deposits{to: to, before: func(_ context.Context, call, id string) error {
					if call == "prepare" || call == "commit" {
						tell(call + " " + id)
					}
					return nil
				}}
				store.Before(func(_ context.Context, op faultstore.Op, name string) error {
					if op == faultstore.Put && strings.HasPrefix(name, "ckpt/") && !behind && len(to.list()) > 0 && len(to.waiting()) > 0 {
						die()
					}
					return nil
				})
				r := start(t, "app", brokers, sumsTo(twophase.To(first)), mode, weir.Store(store), weir.KafkaOptions(kgo.Dialer(network.dial)), weir.Listen(weir.Listener{
					CheckpointPersisted: func(e event.CheckpointPersisted) {
						tell("durable")
						if behind && len(to.list()) > 0 && len(to.waiting()) > 0 {
							die()
						}
					},
					CheckpointCommitted: func(e event.CheckpointCommitted) { tell("committed") },
				}))
				to.await(t, 1)
				for n := 3; ; n++ { // until a barrier cuts a transaction off
					produce(t, brokers, "in", ones(1, letters...)...)
					select {
					case <-cut:
					case <-time.After(20 * time.Millisecond):
						continue
					}
					r.stop()
					_ = r.wait() // it could not commit
					prepared := to.waiting()
					if len(prepared) == 0 {
						t.Fatal("nothing was prepared when it was cut off")
					}
					produce(t, brokers, "in", ones(1, letters...)...)
					twoPhaseLife(t, brokers, &deposits{to: to}, mode, weir.Store(store))
					wantSums(t, to, n+2, letters...)
					for _, id := range prepared {
						if !slices.Contains(to.aborted, id) {
							t.Errorf("transaction %s was prepared and not named, and was not rolled back; those were: %q", id, to.aborted)
						}
					}
					if left := to.waiting(); len(left) > 0 {
						t.Errorf("prepared in the end: %q", left)
					}
					break
				}
				mu.Lock()
				defer mu.Unlock()
				// What is prepared is the next checkpoint's that is committed, if it is.
				for i, what := range told {
					id, is := strings.CutPrefix(what, "commit ")
					if prepared := slices.Index(told[:i], "prepare "+id); is && (prepared < 0 || !slices.Contains(told[prepared:i], "committed")) {
						t.Fatalf("a transaction was committed before its checkpoint: %q", told)
					}
				}
			})
		}
	})
}

// TestS38_NamedTransactionIsCommittedByTheNextProcess cuts a process off between the commit
// point and the commit of the transaction, before it and behind it.
func TestS38_NamedTransactionIsCommittedByTheNextProcess(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		for _, done := range []bool{false, true} {
			t.Run(fmt.Sprintf("done=%v", done), func(t *testing.T) {
				brokers := broker(t, 2, "in")
				store := checkpoint.NewMem()
				to := newTreasury()
				produce(t, brokers, "in", ones(3, letters...)...)
				var network severed
				hold, reached, release := at("commit")
				defer release()
				first := &deposits{to: to, before: hold}
				r := start(t, "app", brokers, sumsTo(twophase.To(first)), mode, weir.Store(store), weir.KafkaOptions(kgo.Dialer(network.dial)))
				id := <-reached
				network.sever()
				if done {
					if err := (&deposits{to: to}).Commit(t.Context(), []byte(id)); err != nil {
						t.Fatal(err)
					}
				}
				produce(t, brokers, "in", ones(2, letters...)...)
				twoPhaseLife(t, brokers, &deposits{to: to}, mode, weir.Store(store))
				wantSums(t, to, 5, letters...)
				// The first process goes on with what it was about to do.
				release()
				r.stop()
				_ = r.wait() // it was cut off
				wantSums(t, to, 5, letters...)
				twoPhaseLife(t, brokers, &deposits{to: to}, mode, weir.Store(store))
				wantSums(t, to, 5, letters...)
			})
		}
	})
}

// TestS38_TransactionThatExpiredIsALoudStop lets the receiver roll a transaction back that
// a committed checkpoint names.
func TestS38_TransactionThatExpiredIsALoudStop(t *testing.T) {
	// expire is what the receiver does with the transaction that is to be committed.
	expire := func(to *treasury, id string) {
		to.mu.Lock()
		defer to.mu.Unlock()
		delete(to.pending, id)
	}
	loud := func(t *testing.T, r *running, id string) *twophase.GoneError {
		t.Helper()
		err := r.wait()
		var gone *twophase.GoneError
		if !errors.As(err, &gone) || string(gone.Handle) != id || gone.Sink != "ahead" || gone.Checkpoint == 0 {
			t.Fatalf("the app ended with %v", err)
		}
		wantError(t, err, `sink "ahead"`, fmt.Sprintf("%q", id), "a treasury", fmt.Sprint("checkpoint ", gone.Checkpoint), fmt.Sprint("WEIR_TWOPHASE_ACCEPT=ahead@", gone.Checkpoint))
		for _, e := range r.list() {
			if again, ok := e.(event.Restarting); ok {
				t.Errorf("it was tried again: %v", again)
			}
		}
		return gone
	}
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		brokers := broker(t, 2, "in")
		store := checkpoint.NewMem()
		to := newTreasury()
		produce(t, brokers, "in", ones(3, letters...)...)
		// While the app runs.
		hold, reached, release := at("commit")
		defer release()
		r := start(t, "app", brokers, sumsTo(twophase.To(&deposits{to: to, before: hold})), mode, weir.Store(store), fast)
		id := <-reached
		expire(to, id)
		release()
		first := loud(t, r, id)
		// At each start, before anything is rolled back or processed.
		for again := range 2 {
			r = start(t, "app", brokers, sumsTo(twophase.To(&deposits{to: to, before: func(_ context.Context, call, what string) error {
				if call != "commit" {
					t.Errorf("%s was called although a transaction is gone", call)
				}
				if again > 0 && what == id {
					return weir.Retry(twophase.ErrGone) // gone is gone, whatever else it says
				}
				return nil
			}})), mode, weir.Store(store), fast)
			if again := loud(t, r, id); again.Checkpoint != first.Checkpoint {
				t.Errorf("it is said of checkpoint %d, and then of %d", first.Checkpoint, again.Checkpoint)
			}
		}
	})
	t.Run("accepted", func(t *testing.T) {
		brokers := broker(t, 2, "in")
		store := checkpoint.NewMem()
		to := newTreasury()
		produce(t, brokers, "in", ones(3, letters...)...)
		hold, reached, release := at("commit")
		defer release()
		r := start(t, "app", brokers, sumsTo(twophase.To(&deposits{to: to, before: hold})), weir.Parallelism(1), weir.Store(store), fast)
		id := <-reached
		to.mu.Lock()
		lost := len(to.pending[id])
		to.mu.Unlock()
		expire(to, id)
		release()
		gone := loud(t, r, id)
		t.Setenv("WEIR_TWOPHASE_ACCEPT", fmt.Sprint("ahead@", gone.Checkpoint))
		produce(t, brokers, "in", ones(1, letters...)...)
		twoPhaseLife(t, brokers, &deposits{to: to}, weir.Parallelism(1), weir.Store(store))
		if got, want := len(to.list()), 4*len(letters)-lost; got != want {
			t.Errorf("%d values are there, want %d: all but those of the transaction", got, want)
		}
	})
}

// TestS38_TransactionsOfCheckpointsThatWereGivenUpAreCommittedWithTheNext lets checkpoints
// fail while they are made durable.
func TestS38_TransactionsOfCheckpointsThatWereGivenUpAreCommittedWithTheNext(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		brokers := broker(t, 4, "in")
		store := faultstore.Wrap(checkpoint.NewMem())
		var healed atomic.Bool
		store.Before(func(_ context.Context, op faultstore.Op, name string) error {
			if op == faultstore.Put && strings.HasPrefix(name, "ckpt/") && !healed.Load() {
				return errors.New("not now")
			}
			return nil
		})
		to := newTreasury()
		r := start(t, "app", brokers, sumsTo(twophase.To(&deposits{to: to})), mode, weir.Store(store), weir.TolerableFailures(1000), weir.RetryPause(time.Millisecond))
		n := 0
		for failed := 1; failed <= 3; failed, n = failed+1, n+1 {
			produce(t, brokers, "in", ones(1, letters...)...)
			await(r, failed, any1[event.CheckpointFailed])
		}
		healed.Store(true)
		to.await(t, n*len(letters))
		r.stop()
		if err := r.wait(); err != nil {
			t.Fatal(err)
		}
		wantSums(t, to, n, letters...)
		if len(to.aborted) > 0 {
			t.Errorf("rolled back: %q", to.aborted)
		}
	})
}

// TestS38_ReceiverThatIsDownHoldsTheInputAndStopsNothing lets the receiver be down while
// transactions are to be committed, and at a start.
func TestS38_ReceiverThatIsDownHoldsTheInputAndStopsNothing(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		brokers := broker(t, 2, "in")
		store := checkpoint.NewMem()
		to := newTreasury()
		var mu sync.Mutex
		down, refused := true, 0
		first := &deposits{to: to, before: func(_ context.Context, call, _ string) error {
			mu.Lock()
			defer mu.Unlock()
			if call == "commit" && down {
				refused++
				return weir.Retry(errors.New("out of reach"))
			}
			return nil
		}}
		app := weir.New("app", weir.Brokers(brokers...), weir.InstanceID("a"), mode, weir.Store(store), weir.CheckpointEvery(5*time.Millisecond), weir.StopTimeout(100*time.Millisecond), fast)
		sumsTo(twophase.To(first, twophase.MaxPending(3)))(app)
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- app.Run(ctx) }()
		defer stop()
		n := 0
		pending := func() (n int) {
			for _, s := range app.Status().Sinks {
				if n += s.PendingCheckpoints; n > 0 && s.Error == "" {
					n = 0 // it is not known yet that it is down
				}
			}
			return n
		}
		for timeout := time.After(deadline); pending() < 3; n++ {
			produce(t, brokers, "in", ones(1, letters...)...)
			select {
			case <-timeout:
				t.Fatalf("status: %+v", app.Status())
			case err := <-done:
				t.Fatal(err)
			case <-time.After(5 * time.Millisecond):
			}
		}
		// More comes, and is not processed: what is pending stays what it is, but for what was
		// on its way.
		for range 20 {
			produce(t, brokers, "in", ones(1, letters...)...)
			n++
		}
		if p := pending(); p > 6 || len(to.list()) > 0 {
			t.Errorf("%d checkpoints are pending, %d values there", p, len(to.list()))
		}
		stop()
		wantError(t, <-done, `sink "ahead" has not applied everything`, "out of reach")
		// It is down at the start, too.
		var once sync.Once
		starting := make(chan struct{})
		var tries atomic.Int64
		r := start(t, "app", brokers, sumsTo(twophase.To(&deposits{to: to, before: func(_ context.Context, call, _ string) error {
			if tries.Add(1) < 4 {
				once.Do(func() { close(starting) })
				return weir.Retry(errors.New("out of reach"))
			}
			return nil
		}})), mode, weir.Store(store), weir.Drain(), weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 0, Quiet: time.Hour}))
		<-starting
		if err := r.wait(); err != nil {
			t.Fatal(err)
		}
		wantSums(t, to, n, letters...)
		if refused < 2 {
			t.Errorf("it was tried %d times", refused)
		}
	})
}

// TestS38_SavepointNamesWhatItsAppCommittedLater takes a savepoint while a transaction is to
// be committed, lets the app commit it, and starts from the savepoint.
func TestS38_SavepointNamesWhatItsAppCommittedLater(t *testing.T) {
	inBothModes(t, func(t *testing.T, mode weir.Option) {
		brokers := broker(t, 2, "in")
		to := newTreasury()
		hold, reached, release := at("commit")
		defer release()
		app := weir.New("wordcount", weir.Brokers(brokers...), weir.InstanceID("a"), mode, weir.Store(checkpoint.NewMem()), weir.CheckpointEvery(5*time.Millisecond))
		sumsTo(twophase.To(&deposits{to: to, before: hold}))(app)
		ctx, stop := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- app.Run(ctx) }()
		defer stop()
		produce(t, brokers, "in", ones(3, letters...)...)
		<-reached
		dir := t.TempDir()
		if _, err := app.Savepoint(t.Context(), dir, "x"); err != nil {
			t.Fatal(err)
		}
		release()
		to.await(t, 3*len(letters))
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		forget(t, brokers)
		produce(t, brokers, "in", ones(2, letters...)...)
		var again []string
		next := &deposits{to: to, before: func(_ context.Context, call, id string) error {
			if call == "commit" {
				to.mu.Lock()
				defer to.mu.Unlock()
				if to.committed[id] {
					again = append(again, id)
				}
			}
			return nil
		}}
		r := start(t, "wordcount", brokers, sumsTo(twophase.To(next)), mode, weir.Store(checkpoint.NewMem()), weir.FromSavepoint(dir, "x"), weir.Drain(), fast)
		if err := r.wait(); err != nil {
			t.Fatal(err)
		}
		wantSums(t, to, 5, letters...)
		if len(again) == 0 {
			t.Error("the savepoint named nothing that was committed: this shows nothing")
		}
	})
}

// TestS38_ProcessThatWasReplacedRollsNothingBack holds a process up while it starts, lets
// another one take its place and prepare, and lets the first go on.
func TestS38_ProcessThatWasReplacedRollsNothingBack(t *testing.T) {
	brokers := broker(t, 2, "in")
	store := checkpoint.NewMem()
	to := newTreasury()
	produce(t, brokers, "in", ones(3, letters...)...)
	twoPhaseLife(t, brokers, &deposits{to: to}, weir.Store(store))
	list, listing, release := at("leftovers")
	defer release()
	first := start(t, "app", brokers, sumsTo(twophase.To(&deposits{to: to, before: list})), weir.Store(store), fast)
	<-listing
	// The second one gets as far as the commit of a transaction that a checkpoint names.
	hold, reached, goOn := at("commit")
	defer goOn()
	second := start(t, "app", brokers, sumsTo(twophase.To(&deposits{to: to, before: func(ctx context.Context, call, id string) error {
		if !slices.Contains(to.waiting(), id) {
			return nil // it was committed before
		}
		return hold(ctx, call, id)
	}})), weir.Store(store), fast)
	await(second, 1, any1[event.Restored])
	produce(t, brokers, "in", ones(2, letters...)...)
	id := <-reached
	if !slices.Contains(to.waiting(), id) {
		t.Fatalf("transaction %s is not prepared: %q", id, to.waiting())
	}
	release() // the first one lists what there is now
	wantError(t, first.wait(), "instance id")
	goOn()
	to.await(t, 5*len(letters))
	second.stop()
	if err := second.wait(); err != nil {
		t.Fatal(err)
	}
	wantSums(t, to, 5, letters...)
	if len(to.aborted) > 0 {
		t.Errorf("rolled back: %q", to.aborted)
	}
}

// directory is a directory that files are written to.
type directory string

// list returns the lines of all files, in the order of their names, which begin with a
// time.
func (d directory) list() []string {
	entries, err := os.ReadDir(string(d))
	if err != nil && !os.IsNotExist(err) {
		panic(err)
	}
	var lines []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(string(d), e.Name()))
		if err != nil {
			panic(err)
		}
		lines = append(lines, strings.Split(strings.TrimSuffix(string(b), "\n"), "\n")...)
	}
	return lines
}

// sink is a sink that writes to a directory.
func (d directory) sink() *twophase.Sink[string] {
	return file.Lines(file.Options{Dir: string(d)}, func(dst []byte, v string) ([]byte, error) { return append(dst, v...), nil })
}

// Behind a merge of a source and a keyed stream the source's subtask and the keyed one
// prepare in any order, so the files of each are counted for themselves.
func TestPanicOfAReceiverIsAnErrorThatNamesItsSink(t *testing.T) {
	for _, at := range []string{"commit", "leftovers"} {
		t.Run(at, func(t *testing.T) {
			brokers := broker(t, 1, "in")
			produce(t, brokers, "in", ones(1, letters...)...)
			to := &deposits{to: newTreasury(), before: func(_ context.Context, call, _ string) error {
				if call == at {
					panic("oops")
				}
				return nil
			}}
			wantError(t, start(t, "app", brokers, sumsTo(twophase.To(to)), weir.Store(checkpoint.NewMem())).wait(),
				`operator "ahead" panicked while`, "oops", "mend what panicked")
		})
	}
}

func TestRecordIsNotSkippedBecauseItsReceiverIsOutOfReach(t *testing.T) {
	t.Setenv("WEIR_SKIP", "in/0@0")
	for name, tc := range map[string]struct {
		err  error
		want []string
	}{
		"for good":    {errors.New("out of reach"), nil},
		"for a while": {weir.Retry(errors.New("out of reach")), []string{"gave up after 1 restarts", "weir.Restart sets how often the app tries by itself"}},
		"skipped":     {weir.Skip(errors.New("out of reach")), nil},
	} {
		t.Run(name, func(t *testing.T) {
			brokers := broker(t, 1, "in")
			produce(t, brokers, "in", "a:1")
			to := &deposits{to: newTreasury(), before: func(_ context.Context, call, _ string) error {
				if call == "begin" {
					return tc.err
				}
				return nil
			}}
			err := start(t, "app", brokers, sumsTo(twophase.To(to)), weir.Store(checkpoint.NewMem()), weir.Drain(),
				weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 1, Quiet: time.Hour})).wait()
			wantError(t, err, append(tc.want, `operator "ahead" failed`, "beginning a transaction: ", "out of reach", "see to what the sink writes to")...)
			if strings.Contains(err.Error(), "WEIR_SKIP") {
				t.Errorf("to skip the record would not help: %v", err)
			}
		})
	}
}

func TestFilesOfMergedStreamsAreCountedApart(t *testing.T) {
	brokers := broker(t, 1, "in")
	produce(t, brokers, "in", "a", "b")
	dir := directory(t.TempDir())
	r := start(t, "app", brokers, func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		byValue := weir.KeyBy(in, "by-value", func(v string) string { return v }, codec.String)
		keyed := weir.Process(byValue, "keyed", func(*weir.Setup) weir.Handler[string, string, string] {
			return weir.OnRecord(func(c *weir.Context[string, string], v string) error { c.Emit("keyed " + v); return nil })
		})
		weir.To(weir.Merge("all", in, keyed), "files", dir.sink())
	}, weir.Store(checkpoint.NewMem()), weir.Parallelism(1), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(filepath.Join(string(dir), "*-000001"))
	if err != nil || len(files) != 2 || len(dir.list()) != 4 {
		t.Fatalf("files %q, %v; they hold %q", files, err, dir.list())
	}
}

// TestS38_TwoPhaseSinkIsExactAfterAKillAtEachPoint kills a process that writes files at each
// crash point between the barrier and the commit of the files, and right after a restore.
func TestS38_TwoPhaseSinkIsExactAfterAKillAtEachPoint(t *testing.T) {
	points := []crashpoint.Point{
		crashpoint.InFreeze, crashpoint.InCapture, crashpoint.BeforeManifest, crashpoint.AfterManifest,
		crashpoint.AfterOffsets, crashpoint.AfterCommit, crashpoint.AfterSinks, crashpoint.AfterRestore,
	}
	for _, unaligned := range []bool{false, true} {
		t.Run(fmt.Sprintf("unaligned=%v", unaligned), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			files := filepath.Join(dir, "files")
			killedAtEachPoint(t, dir, directory(files), points, unaligned, processFiles+"="+files)
		})
	}
}

// TestS38_WhatACheckpointThatIsGivenUpNamesIsCommitted begins a life anew although a committed
// checkpoint names a transaction that its receiver did not take: the outputs of that checkpoint
// stay, and so does this one.
func TestS38_WhatACheckpointThatIsGivenUpNamesIsCommitted(t *testing.T) {
	for name, tc := range map[string]struct {
		choice  []weir.Option
		damaged bool
	}{
		"empty":                {choice: []weir.Option{weir.OnMismatch(weir.RecoverNothing)}},
		"savepoint":            {choice: []weir.Option{weir.OnMismatch(weir.RecoverSavepoint)}},
		"empty, store is lost": {choice: []weir.Option{weir.OnMismatch(weir.RecoverNothing)}, damaged: true},
	} {
		t.Run(name, func(t *testing.T) {
			brokers, url := broker(t, 2, "in"), "file://"+t.TempDir()
			store, err := checkpoint.OpenStore(url)
			if err != nil {
				t.Fatal(err)
			}
			to := newTreasury()
			produce(t, brokers, "in", ones(1, letters...)...)
			twoPhaseLife(t, brokers, &deposits{to: to}, weir.Store(store))
			m, _, err := checkpoint.Inspect(t.Context(), store, newest(t, store).Name)
			if err == nil {
				_, err = checkpoint.CreateSavepoint(t.Context(), store, m, store, "x", nil)
			}
			if err != nil {
				t.Fatal(err)
			}
			produce(t, brokers, "in", ones(1, letters...)...)
			refused := map[string]bool{} // what else is prepared need not be named
			var mu sync.Mutex
			r := start(t, "app", brokers, sumsTo(twophase.To(&deposits{to: to, before: func(_ context.Context, call, id string) error {
				if call == "commit" && slices.Contains(to.waiting(), id) {
					mu.Lock()
					defer mu.Unlock()
					refused[id] = true
					return errors.New("not now")
				}
				return nil
			}})), weir.Store(store), fast)
			wantError(t, r.wait(), "not now")
			if _, err := adminOf(t, brokers).DeleteGroup(t.Context(), "app"); err != nil {
				t.Fatal(err)
			}
			core, logs := observer.New(zap.WarnLevel)
			opts := append(tc.choice, weir.FromSavepoint(url, "x"), weir.Log(zap.New(core)))
			if tc.damaged {
				store, opts = checkpoint.NewMem(), append(tc.choice, weir.Log(zap.New(core)))
			}
			twoPhaseLife(t, brokers, &deposits{to: to}, append(opts, weir.Store(store))...)
			lost := logs.FilterMessageSnippet("this start gives up checkpoint").Len()
			if was := lost == 1; was != tc.damaged {
				t.Errorf("it was said %d times that something is lost", lost)
			}
			for id := range refused {
				if to.committed[id] == tc.damaged || slices.Contains(to.aborted, id) != tc.damaged {
					t.Errorf("%s is committed: %v; rolled back are %q", id, to.committed[id], to.aborted)
				}
			}
		})
	}
}
