package twophase

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"

	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/record"
	"github.com/weirstream/weir/sink"
)

// told is a participant that notes what it is told, and answers as the test says.
type told struct {
	mu     sync.Mutex
	calls  []string
	begun  int
	answer func(call string) error // nil: no error
	left   []string
}

func (p *told) Check() error   { return p.say("check") }
func (p *told) String() string { return "a recorder" }

func (p *told) Connect(env Env) (Receiver[string], error) {
	return toldReceiver{p}, p.say("connect " + env.App + " " + env.Operator)
}

func (p *told) say(call string) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.calls = append(p.calls, call)
	if p.answer != nil {
		return p.answer(call)
	}
	return nil
}

// heard returns the calls so far and forgets them.
func (p *told) heard() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	s := strings.Join(p.calls, "; ")
	p.calls = nil
	return s
}

type toldReceiver struct{ p *told }

func (r toldReceiver) Begin(_ context.Context, writer int) (Transaction[string], error) {
	r.p.mu.Lock()
	r.p.begun++
	tx := toldTransaction{r.p, fmt.Sprint("tx", r.p.begun)}
	r.p.mu.Unlock()
	return tx, r.p.say(fmt.Sprint("begin ", tx.id, " ", writer))
}

func (r toldReceiver) Commit(_ context.Context, h []byte) error {
	return r.p.say("commit " + string(h))
}

func (r toldReceiver) Leftovers(_ context.Context, named [][]byte) ([][]byte, error) {
	var left [][]byte
	for _, l := range r.p.left {
		left = append(left, []byte(l))
	}
	return left, r.p.say(fmt.Sprintf("leftovers but for %s", named))
}

func (r toldReceiver) Abort(_ context.Context, l []byte) error { return r.p.say("abort " + string(l)) }
func (r toldReceiver) Close() error                            { return r.p.say("close") }

type toldTransaction struct {
	p  *told
	id string
}

func (tx toldTransaction) Write(v string) error { return tx.p.say("write " + tx.id + " " + v) }

func (tx toldTransaction) Prepare(context.Context) ([]byte, error) {
	if err := tx.p.say("prepare " + tx.id); err != nil {
		return nil, err
	}
	if tx.id == "tx9" {
		return nil, nil
	}
	return []byte(tx.id), nil
}

func (tx toldTransaction) Rollback(context.Context) { _ = tx.p.say("rollback " + tx.id) }

// runtime is what a test is to an incarnation of the sink.
type runtime struct {
	t       *testing.T
	p       *told
	ctx     context.Context
	end     context.CancelFunc
	confirm error
	a       sink.Applier
	w       sink.Writer[string]
	applied []event.Applied
}

func begin(t *testing.T, p *told, opts ...Option) *runtime {
	t.Helper()
	r := &runtime{t: t, p: p}
	r.ctx, r.end = context.WithCancel(context.Background())
	t.Cleanup(r.end)
	s := To[string](p, opts...)
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	var err error
	if r.a, err = s.Applier(r); err != nil {
		t.Fatal(err)
	}
	if r.w, err = s.Open(writerEnv{runtime: r}); err != nil {
		t.Fatal(err)
	}
	p.heard()
	return r
}

func (r *runtime) App() string              { return "app" }
func (r *runtime) Operator() string         { return "out" }
func (r *runtime) Instance() string         { return "a" }
func (r *runtime) Lineage() string          { return "00000000000000a1" }
func (r *runtime) Context() context.Context { return r.ctx }
func (r *runtime) Logger() *zap.Logger      { return zap.NewNop() }
func (r *runtime) Applied(i event.Applied)  { r.applied = append(r.applied, i) }

func (r *runtime) Confirm(context.Context) error {
	_ = r.p.say("confirm")
	return r.confirm
}

type writerEnv struct{ *runtime }

func (writerEnv) Subtask() int            { return 3 }
func (writerEnv) Meta() record.Meta       { return record.Meta{} }
func (writerEnv) Output() sink.Output     { return nil }
func (e writerEnv) Applier() sink.Applier { return e.a }

// barrier does what the runtime does at one.
func (r *runtime) barrier(checkpoint int64) (l sink.Log, err error) {
	if err := r.w.(sink.Flusher).Flush(r.ctx); err != nil {
		return l, err
	}
	part, err := r.w.(sink.Logger).Log()
	if err != nil || part == nil {
		return logOf(checkpoint), err
	}
	return logOf(checkpoint, part), nil
}

func logOf(checkpoint int64, parts ...[]byte) sink.Log {
	l := sink.Log{Checkpoint: checkpoint, Lineage: (*runtime)(nil).Lineage(), Created: time.Now(), Read: func(context.Context) ([][]byte, error) { return parts, nil }}
	for _, p := range parts {
		l.Bytes += int64(len(p))
	}
	return l
}

// naming is the log of a checkpoint that names handles.
func naming(checkpoint int64, handles ...string) sink.Log {
	var parts [][]byte
	for _, h := range handles {
		parts = append(parts, appendPart(nil, []byte(h)))
	}
	return logOf(checkpoint, parts...)
}

func (r *runtime) write(vs ...string) {
	r.t.Helper()
	for _, v := range vs {
		if err := r.w.Write(v); err != nil {
			r.t.Fatal(err)
		}
	}
}

func (r *runtime) heard(want string) {
	r.t.Helper()
	if got := r.p.heard(); got != want {
		r.t.Fatalf("the participant was told\n    %s, want\n    %s", got, want)
	}
}

// run lets the applier run in a bubble and returns what it ended with.
func (r *runtime) run() <-chan error {
	ran := make(chan error, 1)
	go func() { ran <- r.a.Run(r.ctx) }()
	synctest.Wait()
	return ran
}

func TestOrderOfCalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &told{left: []string{"old1", "old2"}}
		r := begin(t, p)
		if err := r.a.Recover(r.ctx, 7, []sink.Log{naming(5, "a", "b"), naming(7, "c")}); err != nil {
			t.Fatal(err)
		}
		r.heard("commit a; commit b; commit c; leftovers but for [a b c]; confirm; abort old1; abort old2")
		ran := r.run()
		if keep := r.a.Keep(); keep != 8 {
			t.Errorf("Keep is %d after all that was named is committed", keep)
		}
		l, err := r.barrier(8)
		if err != nil || l.Bytes != 0 {
			t.Fatalf("a barrier without values: %v, %v", l, err)
		}
		r.a.Committed(l)
		r.heard("")
		r.write("x", "y")
		l, err = r.barrier(9)
		if err != nil {
			t.Fatal(err)
		}
		r.heard("begin tx1 0; write tx1 x; write tx1 y; prepare tx1")
		r.write("z")
		synctest.Wait()
		r.heard("begin tx2 0; write tx2 z") // nothing is committed before the commit point
		r.a.Committed(l)
		synctest.Wait()
		r.heard("commit tx1")
		if keep := r.a.Keep(); keep != 10 {
			t.Errorf("Keep is %d", keep)
		}
		if n := len(r.applied); n != 3 || r.applied[2].Checkpoint != 9 || r.applied[2].Operations != 1 {
			t.Errorf("applied: %v", r.applied)
		}
		r.end()
		if err := <-ran; err != nil {
			t.Fatal(err)
		}
		if err := r.a.Close(); err != nil {
			t.Fatal(err)
		}
		r.heard("rollback tx2; close")
	})
}

// Behind a merge of a source and a keyed stream two subtasks of the same index write, and
// neither knows of the other.
func TestWritersOfMergedStreamsHaveNumbersOfTheirOwn(t *testing.T) {
	p := &told{}
	r := begin(t, p)
	merged, err := To[string](p).Open(writerEnv{runtime: r})
	if err != nil {
		t.Fatal(err)
	}
	r.write("x")
	if err := merged.Write("y"); err != nil {
		t.Fatal(err)
	}
	r.heard("begin tx1 0; write tx1 x; begin tx2 1; write tx2 y")
}

func TestNothingIsRolledBackByWhoWasReplaced(t *testing.T) {
	p := &told{left: []string{"of a successor"}}
	r := begin(t, p)
	r.confirm = errors.New("replaced")
	err := r.a.Recover(r.ctx, 7, nil)
	var again *sink.Retriable
	if !errors.As(err, &again) || !errors.Is(err, r.confirm) {
		t.Fatalf("Recover: %v", err)
	}
	r.heard("leftovers but for []; confirm")
}

func TestReceiverThatIsDownIsWaitedFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var down, tries atomic.Int64
		p := &told{left: []string{"old"}, answer: func(string) error {
			if tries.Add(1); down.Load() == 1 {
				return fmt.Errorf("wrapped: %w", &sink.Retriable{Err: errors.New("down")})
			}
			return nil
		}}
		r := begin(t, p, MaxPending(2))
		down.Store(1)
		recovered := make(chan error, 1)
		go func() { recovered <- r.a.Recover(r.ctx, 7, []sink.Log{naming(7, "a")}) }()
		time.Sleep(time.Hour)
		if p := r.a.(sink.Reporter).Progress(); p.Err == nil || p.PendingCheckpoints != 1 || p.PendingBytes != 2 {
			t.Errorf("progress while it is down at the start: %+v", p)
		}
		if n := tries.Load(); n < 1000 || n > 10000 {
			t.Errorf("%d tries in an hour", n)
		}
		down.Store(0)
		if err := <-recovered; err != nil {
			t.Fatal(err)
		}
		ran := r.run()
		down.Store(1)
		for id := int64(8); id <= 9; id++ {
			if err := r.a.(sink.Throttler).Room(r.ctx); err != nil {
				t.Fatal(err)
			}
			r.a.Committed(naming(id, fmt.Sprint("tx", id)))
		}
		room := make(chan error, 1)
		go func() { room <- r.a.(sink.Throttler).Room(r.ctx) }()
		time.Sleep(time.Hour)
		select {
		case err := <-room:
			t.Fatalf("there is room for more while two checkpoints wait: %v", err)
		default:
		}
		if p := r.a.(sink.Reporter).Progress(); p.Err == nil || p.PendingCheckpoints != 2 || p.Applied != 7 || p.Oldest.IsZero() || r.a.Keep() != 8 {
			t.Errorf("progress while it is down: %+v, keep %d", p, r.a.Keep())
		}
		soon, cancel := context.WithTimeout(r.ctx, time.Second)
		defer cancel()
		if err := r.a.Drain(soon); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "2 checkpoints") || !strings.Contains(err.Error(), "down") {
			t.Errorf("Drain while it is down: %v", err)
		}
		down.Store(0)
		if err := errors.Join(<-room, r.a.Drain(r.ctx)); err != nil {
			t.Fatal(err)
		}
		if p := r.a.(sink.Reporter).Progress(); p.Err != nil || p.PendingCheckpoints != 0 || p.Applied != 9 || r.a.Keep() != 10 {
			t.Errorf("progress in the end: %+v, keep %d", p, r.a.Keep())
		}
		r.end()
		<-ran
	})
}

func TestWaitingEndsWithTheIncarnation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &told{}
		r := begin(t, p)
		p.answer = func(string) error { return &sink.Retriable{Err: errors.New("down")} } // before anybody else calls
		recovered := make(chan error, 1)
		go func() { recovered <- r.a.Recover(r.ctx, 7, nil) }()
		time.Sleep(time.Minute)
		r.a.Committed(naming(8, "a"))
		ran := r.run()
		r.end()
		if err := <-recovered; !errors.Is(err, context.Canceled) {
			t.Errorf("Recover: %v", err)
		}
		if err := <-ran; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// gone answers that those transactions are gone.
func gone(handles ...string) func(string) error {
	return func(call string) error {
		if h, ok := strings.CutPrefix(call, "commit "); ok && slices.Contains(handles, h) {
			return &sink.Retriable{Err: fmt.Errorf("expired: %w", ErrGone)} // gone is gone, whatever else it says
		}
		return nil
	}
}

func TestTransactionThatIsGoneIsALoudStop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &told{answer: gone("b", "c"), left: []string{"old"}}
		r := begin(t, p)
		logs := []sink.Log{naming(5, "a", "b", "c"), naming(7, "d")}
		err := r.a.Recover(r.ctx, 7, logs)
		var g *GoneError
		if !errors.As(err, &g) || !errors.Is(err, ErrGone) || g.Checkpoint != 5 || g.Sink != "out" || string(g.Handle) != "b" || g.Receiver != "a recorder" {
			t.Fatalf("Recover: %v", err)
		}
		for _, want := range []string{`sink "out"`, `"b"`, "1 more", "checkpoint 5", "WEIR_TWOPHASE_ACCEPT=out@5", "expired"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("the error lacks %s: %v", want, err)
			}
		}
		r.heard("commit a; commit b; confirm") // and nothing was rolled back
		t.Setenv(acceptEnv, "out@4")
		if err := begin(t, p).a.Recover(r.ctx, 7, logs); !errors.As(err, &g) {
			t.Fatalf("accepted for another checkpoint: %v", err)
		}
		t.Setenv(acceptEnv, "other@5, out@5")
		if err := begin(t, p).a.Recover(r.ctx, 7, logs); err != nil {
			t.Fatal(err)
		}
		r.heard("commit a; commit b; commit c; commit d; leftovers but for [a b c d]; confirm; abort old")
	})
}

// What was accepted once, and left set, must not count when the app is set back to that
// savepoint: its log has the same id again.
func TestLossInASavepointIsAcceptedForOneStart(t *testing.T) {
	r := begin(t, &told{answer: gone("b")})
	l := naming(12, "b")
	l.Lineage = "00000000000000b2"
	t.Setenv(acceptEnv, "out@12")
	var g *GoneError
	err := r.a.Recover(r.ctx, 20, []sink.Log{l})
	if !errors.As(err, &g) || g.Checkpoint != 12 || !strings.Contains(err.Error(), "WEIR_TWOPHASE_ACCEPT=out@20") {
		t.Fatalf("Recover: %v", err)
	}
	t.Setenv(acceptEnv, "out@20")
	if err := begin(t, r.p).a.Recover(r.ctx, 20, []sink.Log{l}); err != nil {
		t.Fatal(err)
	}
}

// A successor may have rolled back what a process began that was paused.
func TestWhoWasReplacedRejoinsIfNothingCanBePrepared(t *testing.T) {
	lost := errors.New("no such transaction")
	r := begin(t, &told{answer: func(call string) error {
		if strings.HasPrefix(call, "prepare") {
			return lost
		}
		return nil
	}})
	var again *sink.Retriable
	r.write("x")
	if _, err := r.barrier(1); errors.As(err, &again) || !errors.Is(err, lost) {
		t.Errorf("the active one: %v", err)
	}
	r.confirm = errors.New("replaced")
	if _, err := r.barrier(1); !errors.As(err, &again) || !errors.Is(err, r.confirm) {
		t.Errorf("one that was replaced: %v", err)
	}
}

// TestNothingBehindWhatIsGoneIsCommitted has a receiver that remembers how far it came, since
// the transactions of a writer are committed in order. To it one that is gone would be
// committed as soon as a later one is, so the next start would hear of no loss.
func TestNothingBehindWhatIsGoneIsCommitted(t *testing.T) {
	far := 0
	p := &told{answer: func(call string) error {
		n := 0
		if _, err := fmt.Sscanf(call, "commit tx%d", &n); err != nil || n <= far {
			return nil
		}
		if n == 2 {
			return ErrGone
		}
		far = n
		return nil
	}}
	// The handles of a checkpoint that was given up are part of the next one.
	logs := []sink.Log{naming(6, "tx1", "tx2", "tx3"), naming(7, "tx4")}
	for range 2 {
		r := begin(t, p)
		err := r.a.Recover(r.ctx, 7, logs)
		var g *GoneError
		if !errors.As(err, &g) || g.Checkpoint != 6 || string(g.Handle) != "tx2" {
			t.Fatalf("Recover: %v", err)
		}
		r.heard("commit tx1; commit tx2; confirm")
	}
	t.Setenv(acceptEnv, "out@6")
	r := begin(t, p)
	if err := r.a.Recover(r.ctx, 7, logs); err != nil {
		t.Fatal(err)
	}
	r.heard("commit tx1; commit tx2; commit tx3; commit tx4; leftovers but for [tx1 tx2 tx3 tx4]")
}

func TestTransactionThatIsGoneWhileTheAppRunsStopsIt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := begin(t, &told{answer: gone("b")})
		r.a.Committed(naming(8, "b"))
		err := <-r.run()
		var f *sink.Fatal
		var g *GoneError
		if !errors.As(err, &f) || !errors.As(err, &g) || g.Checkpoint != 8 {
			t.Fatalf("Run: %v", err)
		}
		if r.a.Keep() != 8 {
			t.Errorf("Keep is %d: the next start would not hear of it", r.a.Keep())
		}
		// Who was replaced stops nothing: to it a transaction may look gone that was committed.
		r = begin(t, &told{answer: gone("b")})
		r.confirm = errors.New("replaced")
		r.a.Committed(naming(8, "b"))
		err = <-r.run()
		if errors.As(err, &f) || errors.As(err, &g) || !errors.Is(err, r.confirm) {
			t.Fatalf("Run of who was replaced: %v", err)
		}
	})
}

func TestErrorsEndTheIncarnation(t *testing.T) {
	bad := errors.New("bad")
	for _, call := range []string{"commit a", "leftovers but for [a]", "abort old"} {
		p := &told{left: []string{"old"}}
		r := begin(t, p)
		p.answer = func(c string) error {
			if c == call {
				return bad
			}
			return nil
		}
		if err := r.a.Recover(r.ctx, 7, []sink.Log{naming(7, "a")}); !errors.Is(err, bad) {
			t.Errorf("Recover, %s fails: %v", call, err)
		}
	}
	for _, call := range []string{"begin tx1 0", "write tx1 v", "prepare tx1"} {
		p := &told{}
		r := begin(t, p)
		p.answer = func(c string) error {
			if c == call {
				return bad
			}
			return nil
		}
		err := r.w.Write("v")
		if err == nil {
			_, err = r.barrier(1)
		}
		if !errors.Is(err, bad) {
			t.Errorf("%s fails: %v", call, err)
		}
		p.heard()
		if err := r.a.Close(); err != nil {
			t.Error(err)
		}
		if want := "rollback tx1; close"; call != "begin tx1 0" && p.heard() != want {
			t.Errorf("%s failed, and the transaction was not rolled back", call)
		}
	}
}

func TestTransactionWithNothingToCommitIsNamedNowhere(t *testing.T) {
	p := &told{begun: 8}
	r := begin(t, p)
	r.write("nothing")
	l, err := r.barrier(1)
	if err != nil || l.Bytes != 0 {
		t.Fatalf("%+v, %v", l, err)
	}
}

func TestDescriptionIsChecked(t *testing.T) {
	for want, s := range map[string]*Sink[string]{
		"MaxPending is 0":        To[string](&told{}, MaxPending(0)),
		"the participant is nil": To[string](nil),
		"no such place":          To[string](&told{answer: func(string) error { return errors.New("no such place") }}),
	} {
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
		_ = s.String()
	}
	if _, err := To[string](&told{}).Open(writerEnv{runtime: &runtime{}}); err == nil {
		t.Error("a writer was opened without an applier")
	}
}

func TestS30_GoldenTransactionStaysReadable(t *testing.T) {
	b, err := os.ReadFile("testdata/transaction-v1.hex")
	if err != nil {
		t.Fatal(err)
	}
	part, err := hex.DecodeString(strings.TrimSpace(string(b)))
	if err != nil {
		t.Fatal(err)
	}
	h, err := handleOf(part)
	if err != nil || string(h) != "weir/app/17" {
		t.Fatalf("%q, %v", h, err)
	}
	if got := appendPart(nil, h); string(got) != string(part) {
		t.Errorf("it is written as %x now", got)
	}
	for _, damaged := range [][]byte{nil, {1}, {2, 'a'}, {0x80}} {
		if h, err := handleOf(damaged); err == nil {
			t.Errorf("%x is transaction %q", damaged, h)
		}
	}
}

func TestHandlesArePrintedForPeople(t *testing.T) {
	for want, h := range map[string][]byte{`"gid-1"`: []byte("gid-1"), "ff00": {0xff, 0}, "(400 bytes)": make([]byte, 400)} {
		if got := printable(h); !strings.Contains(got, want) || len(got) > 400 {
			t.Errorf("%q is printed as %s", h, got)
		}
	}
}
