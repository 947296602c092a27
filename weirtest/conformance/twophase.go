package conformance

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"sync"
	"testing"

	"go.uber.org/zap"

	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/twophase"
)

// TwoPhase checks a [twophase.Participant]: it prepares, commits and rolls back in every
// order that processes that die, and those that replace them, can lead to, and looks at
// what readers of the receiver see. The contract is that of package twophase.
type TwoPhase[T any] struct {
	// New returns a receiver that is empty and used for one rule.
	New func(t testing.TB) Transactional[T]
	// Values are samples to write, at least six. They are not changed.
	Values []T
}

// Transactional is a receiver with transactions.
type Transactional[T any] struct {
	// Participant returns a participant that writes to the receiver. Each call stands for
	// another process.
	Participant func() twophase.Participant[T]
	// Contents returns what readers of the receiver see, of which reflect.DeepEqual tells
	// whether it is the same.
	Contents func() any
	// Want returns what they see when transactions with these values were committed, each
	// once and in this order, and the values of each were written in this order.
	Want func(transactions [][]T) any
}

// Run runs the suite, each rule as a subtest.
func (s TwoPhase[T]) Run(t *testing.T) { run(t, s.rules()) }

func (s TwoPhase[T]) rules() []rule {
	of := func(check func(w *ledgers[T])) func(t testing.TB) {
		return func(t testing.TB) {
			r := s.New(t)
			if len(s.Values) < 6 || r.Participant == nil || r.Contents == nil || r.Want == nil {
				t.Fatalf("the suite has %d sample values and needs at least six; it needs Participant, Contents and Want of its receiver", len(s.Values))
			}
			check(&ledgers[T]{t: t, r: r, values: s.Values})
		}
	}
	return []rule{
		{"TheDescriptionIsFit", of((*ledgers[T]).fit)},
		{"NothingIsSeenBeforeTheCommit", of((*ledgers[T]).nothingEarly)},
		{"WhatIsCommittedIsSeen", of((*ledgers[T]).seen)},
		{"APreparedTransactionSurvivesItsProcess", of((*ledgers[T]).survives)},
		{"ACommitMayBeRepeated", of((*ledgers[T]).repeated)},
		{"TwoProcessesMayCommitAtOnce", of((*ledgers[T]).atOnce)},
		{"WhatIsGoneIsSaidToBe", of((*ledgers[T]).gone)},
		{"ATransactionBeginsBesideThosePrepared", of((*ledgers[T]).beside)},
		{"SubtasksHaveTransactionsOfTheirOwn", of((*ledgers[T]).subtasks)},
		{"SubtasksBeginAndPrepareBesideCommits", of((*ledgers[T]).together)},
		{"ATransactionMayHaveNoValues", of((*ledgers[T]).nothing)},
		{"AHandleIsOfOneTransaction", of((*ledgers[T]).handles)},
		{"LeftoversAreWhatIsOpenOrPrepared", of((*ledgers[T]).leftovers)},
		{"LeftoversHaveNothingThatIsNamed", of((*ledgers[T]).spared)},
		{"LeftoversHaveNothingThatIsCommitted", of((*ledgers[T]).past)},
		{"LeftoversAreOurs", of((*ledgers[T]).others)},
		{"AnotherInstanceTakesOver", of((*ledgers[T]).standby)},
		{"AnAbortMayBeRepeated", of((*ledgers[T]).aborts)},
		{"ARollbackLeavesNothing", of((*ledgers[T]).rollback)},
		{"AReplacedProcessDoesNoHarm", of((*ledgers[T]).replaced)},
		{"CallsEndWithTheirContext", of((*ledgers[T]).cancelled)},
		{"KillsRepeatAndLoseNothing", of((*ledgers[T]).kills)},
	}
}

// ledgers is what survives processes: the receiver, and what was committed there.
type ledgers[T any] struct {
	t         testing.TB
	r         Transactional[T]
	values    []T
	done      [][]T
	processes int
}

// connect starts a process.
func (w *ledgers[T]) connect() twophase.Receiver[T] {
	w.t.Helper()
	return w.connectAs("app", operator)
}

func (w *ledgers[T]) connectAs(app, operator string) twophase.Receiver[T] {
	w.t.Helper()
	r, err := w.r.Participant().Connect(twophase.Env{App: app, Operator: operator, Instance: instance(w.processes), Logger: zap.NewNop()})
	w.processes++
	if err != nil {
		w.t.Fatalf("Connect: %v", err)
	}
	w.t.Cleanup(sync.OnceFunc(func() { _ = r.Close() })) // it may be closed already
	return r
}

// killed ends a process.
func (w *ledgers[T]) killed(r twophase.Receiver[T]) {
	w.t.Helper()
	if err := r.Close(); err != nil {
		w.t.Fatalf("Close: %v", err)
	}
}

func (w *ledgers[T]) begin(r twophase.Receiver[T], subtask int, values ...T) twophase.Transaction[T] {
	w.t.Helper()
	tx, err := r.Begin(context.Background(), subtask)
	if err != nil {
		w.t.Fatalf("Begin on subtask %d: %v", subtask, err)
	}
	for i, v := range values {
		if err := tx.Write(v); err != nil {
			w.t.Fatalf("Write of value %d, %+v: %v", i, v, err)
		}
	}
	return tx
}

func (w *ledgers[T]) prepare(r twophase.Receiver[T], subtask int, values ...T) []byte {
	w.t.Helper()
	return w.prepared(w.begin(r, subtask, values...))
}

func (w *ledgers[T]) prepared(tx twophase.Transaction[T]) []byte {
	w.t.Helper()
	h, err := tx.Prepare(context.Background())
	if err != nil {
		w.t.Fatalf("Prepare: %v", err)
	}
	if len(h) == 0 {
		w.t.Fatal("Prepare of a transaction with values returned no handle: nobody could commit it")
	}
	return h
}

// commit commits what was prepared with these values, which readers see from then on.
func (w *ledgers[T]) commit(r twophase.Receiver[T], handle []byte, values ...T) {
	w.t.Helper()
	w.again(r, handle, "Commit")
	w.done = append(w.done, values)
}

// again commits what is committed.
func (w *ledgers[T]) again(r twophase.Receiver[T], handle []byte, what string) {
	w.t.Helper()
	if err := r.Commit(context.Background(), handle); err != nil {
		w.t.Fatalf("%s of %q: %v", what, handle, err)
	}
}

func (w *ledgers[T]) list(r twophase.Receiver[T], named ...[]byte) [][]byte {
	w.t.Helper()
	left, err := r.Leftovers(context.Background(), named)
	if err != nil {
		w.t.Fatalf("Leftovers: %v", err)
	}
	return left
}

// clear does what a start does.
func (w *ledgers[T]) clear(r twophase.Receiver[T], named ...[]byte) {
	w.t.Helper()
	w.abort(r, w.list(r, named...))
}

func (w *ledgers[T]) abort(r twophase.Receiver[T], left [][]byte) {
	w.t.Helper()
	for _, l := range left {
		if err := r.Abort(context.Background(), l); err != nil {
			w.t.Fatalf("Abort of %q: %v", l, err)
		}
	}
}

func (w *ledgers[T]) verify(when string) {
	w.t.Helper()
	if got, want := w.r.Contents(), w.r.Want(w.done); !reflect.DeepEqual(got, want) {
		w.t.Fatalf("%s readers see\n    %+v, want\n    %+v", when, got, want)
	}
}

func (w *ledgers[T]) fit() {
	p := w.r.Participant()
	for range 2 {
		if err := p.Check(); err != nil {
			w.t.Fatalf("Check of a participant that is right: %v", err)
		}
	}
	if p.String() == "" {
		w.t.Error("String says nothing: plans and messages show it")
	}
	w.verify("after Check")
	w.killed(w.connect())
	w.verify("after Connect and Close")
}

func (w *ledgers[T]) nothingEarly() {
	r := w.connect()
	tx := w.begin(r, 0, w.values[:3]...)
	w.verify("while a transaction is written")
	h := w.prepared(tx)
	w.verify("after Prepare")
	w.commit(r, h, w.values[:3]...)
	w.verify("after Commit")
}

func (w *ledgers[T]) seen() {
	r := w.connect()
	for i := range 5 {
		vs := slices.Concat(w.values[i:], w.values[:i])
		w.commit(r, w.prepare(r, 0, vs...), vs...)
		w.verify("after a commit")
	}
}

func (w *ledgers[T]) survives() {
	r := w.connect()
	a, b := w.prepare(r, 0, w.values[:2]...), w.prepare(r, 1, w.values[2:4]...)
	w.killed(r)
	w.verify("after the end of the process that prepared it")
	r = w.connect()
	w.clear(r, a, b)
	w.commit(r, a, w.values[:2]...)
	w.commit(r, b, w.values[2:4]...)
	w.verify("after Commit in the next process")
}

func (w *ledgers[T]) repeated() {
	r := w.connect()
	var hs [][]byte
	for i := range 3 {
		hs = append(hs, w.prepare(r, 0, w.values[i]))
		w.commit(r, hs[i], w.values[i])
		w.again(r, hs[i], "a second Commit")
	}
	for _, h := range hs {
		w.again(r, h, "Commit, after later ones,")
	}
	w.verify("after commits that were repeated")
	w.killed(r)
	for range 2 {
		r = w.connect()
		for _, h := range hs {
			w.again(r, h, "Commit in another process")
		}
		w.clear(r, hs[2])
		w.again(r, hs[2], "Commit after a start")
		w.verify("after commits that were repeated by another process")
		w.killed(r)
	}
	// An old savepoint names them, when no start has for long.
	r = w.connect()
	w.clear(r)
	w.killed(r)
	r = w.connect()
	for _, h := range hs {
		w.again(r, h, "Commit, after a start that did not name it,")
	}
	w.verify("after commits that an old savepoint names")
}

func (w *ledgers[T]) atOnce() {
	for i := range 20 {
		r, successor := w.connect(), w.connect()
		v := w.values[i%len(w.values)]
		h := w.prepare(r, 0, v)
		var errs [2]error
		var both sync.WaitGroup
		for j, p := range []twophase.Receiver[T]{r, successor} {
			both.Go(func() { errs[j] = p.Commit(context.Background(), h) })
		}
		both.Wait()
		if err := errors.Join(errs[:]...); err != nil {
			w.t.Fatalf("Commit by two processes at once: %v", err)
		}
		w.done = append(w.done, []T{v})
		w.verify("after a commit by two processes at once")
		w.killed(r)
		w.killed(successor)
	}
}

func (w *ledgers[T]) gone() {
	r := w.connect()
	h := w.prepare(r, 0, w.values[:2]...)
	w.killed(r)
	r = w.connect()
	w.clear(r)
	for _, p := range []twophase.Receiver[T]{r, w.connect()} {
		if err := p.Commit(context.Background(), h); !errors.Is(err, twophase.ErrGone) {
			w.t.Fatalf("Commit of a transaction that was rolled back: %v, want an error that wraps twophase.ErrGone: a loss must be a loud stop", err)
		}
	}
	w.verify("after the commit of a transaction that was rolled back")
	h = w.prepare(r, 0, w.values[2])
	w.commit(r, h, w.values[2])
	w.verify("after the next commit")
}

func (w *ledgers[T]) beside() {
	r := w.connect()
	var hs [][]byte
	var err error
	within(w.t, "what begins while others are prepared", func() {
		for _, v := range w.values[:4] {
			var tx twophase.Transaction[T]
			var h []byte
			if tx, err = r.Begin(context.Background(), 0); err == nil {
				err = tx.Write(v)
			}
			if err == nil {
				h, err = tx.Prepare(context.Background())
			}
			if err != nil {
				return
			}
			hs = append(hs, h)
		}
	})
	if err != nil {
		w.t.Fatalf("a transaction while others are prepared: %v", err)
	}
	open := w.begin(r, 0, w.values[4])
	for i, h := range hs {
		w.commit(r, h, w.values[i])
		w.verify("after Commit while others are open or prepared")
	}
	w.commit(r, w.prepared(open), w.values[4])
	w.verify("in the end")
}

func (w *ledgers[T]) subtasks() {
	r := w.connect()
	const n = 4
	hs := make([][]byte, n)
	errs := make([]error, n)
	var txs []twophase.Transaction[T]
	for i := range n {
		txs = append(txs, w.begin(r, i))
	}
	var all sync.WaitGroup
	for i, tx := range txs {
		all.Go(func() {
			var err error
			for range 50 {
				if err == nil {
					err = tx.Write(w.values[i])
				}
			}
			if err == nil {
				hs[i], err = tx.Prepare(context.Background())
			}
			errs[i] = err
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		w.t.Fatal(err)
	}
	for i, h := range hs {
		w.commit(r, h, slices.Repeat([]T{w.values[i]}, 50)...)
	}
	w.verify("after commits of several subtasks")
}

func (w *ledgers[T]) together() {
	r := w.connect()
	const n, rounds = 4, 3
	var hs [n][]byte // prepared in the round before
	for round := range rounds {
		var next [n][]byte
		errs := make([]error, n+1)
		var all sync.WaitGroup
		for i := range n {
			all.Go(func() {
				tx, err := r.Begin(context.Background(), i)
				if err == nil {
					err = tx.Write(w.values[i])
				}
				if err == nil {
					next[i], err = tx.Prepare(context.Background())
				}
				errs[i] = err
			})
		}
		if round > 0 {
			all.Go(func() {
				for _, h := range hs {
					errs[n] = errors.Join(errs[n], r.Commit(context.Background(), h))
				}
			})
		}
		all.Wait()
		if err := errors.Join(errs...); err != nil {
			w.t.Fatalf("subtasks that begin, write and prepare at once, beside commits: %v", err)
		}
		if round > 0 {
			for i := range n {
				w.done = append(w.done, w.values[i:i+1])
			}
		}
		hs = next
	}
	for i, h := range hs {
		w.commit(r, h, w.values[i])
	}
	w.verify("after subtasks that did all at once")
}

// nothing is what comes of a transaction all of whose values were skipped.
func (w *ledgers[T]) nothing() {
	r := w.connect()
	tx := w.begin(r, 0)
	var h []byte
	var err error
	within(w.t, "Prepare of a transaction without values", func() { h, err = tx.Prepare(context.Background()) })
	if err != nil {
		w.t.Fatalf("Prepare of a transaction without values: %v", err)
	}
	if len(h) == 0 {
		if left := w.list(w.connect()); len(left) > 0 {
			w.t.Fatalf("Prepare gave no handle, so the transaction is over, and there is left: %q", left)
		}
	} else {
		w.again(r, h, "Commit of a transaction without values")
		w.again(r, h, "a second Commit of a transaction without values")
	}
	// Whether readers see an empty transaction is the receiver's affair.
	if !reflect.DeepEqual(w.r.Contents(), w.r.Want(nil)) {
		w.done = [][]T{nil}
		w.verify("after a transaction without values")
	}
	w.commit(r, w.prepare(r, 0, w.values[0]), w.values[0])
	w.verify("after the next transaction")
}

func (w *ledgers[T]) handles() {
	r := w.connect()
	var hs, pending [][]byte
	var was []string
	for i := range 20 {
		h := w.prepare(r, 0, w.values[i%2])
		if slices.Contains(was, string(h)) {
			w.t.Fatalf("handle %q is that of two transactions", h)
		}
		hs, was, pending = append(hs, h), append(was, string(h)), append(pending, h)
		if i%5 == 1 {
			for _, p := range pending {
				w.again(r, p, "Commit")
			}
			pending = nil
		}
		if i%3 == 0 {
			w.killed(r)
			r = w.connect()
		}
		if i%6 == 0 {
			w.clear(r)
			pending = nil
		}
	}
	for i, h := range hs {
		if string(h) != was[i] {
			w.t.Fatalf("a handle changed after it was returned: it was %q, and is %q", was[i], h)
		}
	}
}

func (w *ledgers[T]) leftovers() {
	r := w.connect()
	w.commit(r, w.prepare(r, 0, w.values[0]), w.values[0])
	w.prepare(r, 0, w.values[1])
	w.begin(r, 0, w.values[2])
	w.prepare(r, 1, w.values[3])
	w.killed(r)
	r = w.connect()
	w.clear(r)
	w.verify("after everything that is left was rolled back")
	if left := w.list(r); len(left) > 0 {
		w.t.Fatalf("after everything that is left was rolled back there is left: %q", left)
	}
	if h := w.prepare(r, 0, w.values[4]); len(w.list(w.connect())) == 0 {
		w.t.Fatalf("transaction %q is prepared, and Leftovers of the next process has nothing", h)
	}
}

func (w *ledgers[T]) spared() {
	r := w.connect()
	a, b, c := w.prepare(r, 0, w.values[0]), w.prepare(r, 1, w.values[1]), w.prepare(r, 0, w.values[2])
	d := w.prepare(r, 0, w.values[3])
	w.killed(r)
	for range 2 {
		r = w.connect()
		w.clear(r, c, a)
		w.killed(r)
	}
	r = w.connect()
	w.commit(r, a, w.values[0])
	w.commit(r, c, w.values[2])
	w.verify("after the commit of what was named")
	for _, h := range [][]byte{b, d} {
		if err := r.Commit(context.Background(), h); !errors.Is(err, twophase.ErrGone) {
			w.t.Fatalf("Commit of what was not named and rolled back: %v, want an error that wraps twophase.ErrGone", err)
		}
	}
}

func (w *ledgers[T]) past() {
	r := w.connect()
	for _, v := range w.values {
		w.commit(r, w.prepare(r, 0, v), v)
	}
	w.killed(r)
	r = w.connect()
	w.clear(r)
	w.verify("after a start that names nothing")
}

func (w *ledgers[T]) others() {
	r := w.connect()
	h := w.prepare(r, 0, w.values[0])
	for _, who := range [][2]string{{"app", operator + "2"}, {"app2", operator}, {"app/" + operator, operator}} {
		other := w.connectAs(who[0], who[1])
		w.clear(other)
		theirs := w.prepare(other, 0, w.values[1])
		w.clear(r, h)
		w.commit(other, theirs, w.values[1])
		w.killed(other)
	}
	w.commit(r, h, w.values[0])
	w.verify("after starts of other apps and operators")
}

// standby is a process that stood by under a name of its own.
func (w *ledgers[T]) standby() {
	r := w.connect()
	named, unnamed := w.prepare(r, 0, w.values[0]), w.prepare(r, 1, w.values[1])
	w.killed(r)
	r = w.connect() // as another instance
	w.commit(r, named, w.values[0])
	w.verify("after the commit of what another instance prepared")
	w.clear(r, named)
	if err := r.Commit(context.Background(), unnamed); !errors.Is(err, twophase.ErrGone) {
		w.t.Fatalf("what another instance prepared, and no checkpoint names, was not rolled back: its Commit gives %v, want an error that wraps twophase.ErrGone", err)
	}
	w.verify("after the start of another instance")
}

func (w *ledgers[T]) aborts() {
	r := w.connect()
	w.prepare(r, 0, w.values[0])
	w.begin(r, 1, w.values[1])
	w.killed(r)
	r, second := w.connect(), w.connect()
	left := w.list(r)
	w.abort(r, left)
	w.abort(r, left)
	w.abort(second, left)
	w.verify("after aborts that were repeated")
}

func (w *ledgers[T]) rollback() {
	r := w.connect()
	tx := w.begin(r, 0, w.values...)
	within(w.t, "Rollback", func() { tx.Rollback(context.Background()) })
	w.verify("after Rollback")
	if left := w.list(w.connect()); len(left) > 0 {
		w.t.Fatalf("after Rollback there is left: %q", left)
	}
	w.commit(r, w.prepare(r, 0, w.values[0]), w.values[0])
	w.verify("after the next transaction")
}

func (w *ledgers[T]) replaced() {
	old := w.connect()
	named := w.prepare(old, 0, w.values[0])
	open := w.begin(old, 0, w.values[1])
	successor := w.connect()
	left := w.list(successor, named)
	w.commit(successor, named, w.values[0])
	w.abort(successor, left)
	mine := w.prepare(successor, 0, w.values[2])
	// The old process wakes up. What it still does may fail.
	w.again(old, named, "Commit by a process that was replaced")
	_ = open.Write(w.values[3])
	_, _ = open.Prepare(context.Background())
	if tx, err := old.Begin(context.Background(), 0); err == nil && tx.Write(w.values[4]) == nil {
		_, _ = tx.Prepare(context.Background())
	}
	w.killed(old)
	w.verify("after the end of a process that was replaced")
	w.commit(successor, mine, w.values[2])
	w.verify("after the commit of its successor")
	w.killed(successor)
	r := w.connect()
	w.clear(r, mine)
	w.verify("after the next start")
	if left := w.list(r, mine); len(left) > 0 {
		w.t.Fatalf("what a replaced process prepared is left after the next start: %q", left)
	}
}

func (w *ledgers[T]) cancelled() {
	r := w.connect()
	h := w.prepare(r, 0, w.values[0])
	tx := w.begin(r, 0, w.values[1])
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	// A call may do its work all the same. It must not say that it did if it has not.
	var prepared []byte
	var err error
	within(w.t, "Prepare with a context that has ended", func() { prepared, err = tx.Prepare(ctx) })
	if err == nil && len(prepared) == 0 {
		w.t.Fatal("Prepare with a context that has ended says that a transaction with a value has nothing to commit")
	}
	isPrepared := err == nil
	if !isPrepared {
		tx.Rollback(context.Background())
	}
	var other twophase.Transaction[T]
	within(w.t, "Begin with a context that has ended", func() { other, err = r.Begin(ctx, 1) })
	if err == nil && other == nil {
		w.t.Fatal("Begin with a context that has ended returns neither a transaction nor an error")
	}
	if err == nil {
		other.Rollback(context.Background())
	}
	within(w.t, "Commit with a context that has ended", func() { err = r.Commit(ctx, h) })
	if errors.Is(err, twophase.ErrGone) {
		w.t.Fatalf("Commit with a context that has ended says that the transaction is gone: %v", err)
	}
	if err == nil {
		w.done = append(w.done, w.values[:1])
		w.verify("after Commit with a context that had ended, which returned nil,")
		w.again(r, h, "a second Commit")
	} else {
		w.commit(r, h, w.values[0])
	}
	w.verify("after Commit")
	if isPrepared {
		w.commit(r, prepared, w.values[1])
		w.verify("after Commit of what was prepared with a context that had ended")
	}
	w.prepare(w.connect(), 0, w.values[2])
	r = w.connect()
	var left [][]byte
	within(w.t, "Leftovers with a context that has ended", func() { left, err = r.Leftovers(ctx, [][]byte{h}) })
	if err == nil && len(left) == 0 {
		w.t.Fatal("Leftovers with a context that has ended says that there are none")
	}
}

// kills runs the sink as the runtime does, and ends processes everywhere.
func (w *ledgers[T]) kills() {
	app := &world[T]{t: w.t, lineage: "00000000000000a1", values: w.values, r: Receiver[T]{
		Sink: func() sink.Sink[T] { return twophase.To(w.r.Participant()) },
	}}
	for i := range 24 {
		l := app.begin()
		l.drain() // what the checkpoint names
		w.verify(fmt.Sprintf("after start %d", i))
		for j := range 3 {
			a, b := w.values[(i+j)%len(w.values)], w.values[(i+j+1)%len(w.values)]
			parts := l.cut([]T{a}, []T{b, a})
			if i%4 == 0 && j == 1 { // the checkpoint is given up, and its parts join the next
				parts = append(parts, l.cut([]T{b})...)
				w.done = append(w.done, []T{a}, []T{b, a}, []T{b})
			} else if i%4 == 1 && j == 2 {
				break // killed between barrier and commit
			} else {
				w.done = append(w.done, []T{a}, []T{b, a})
			}
			log := l.commit(parts)
			if i%4 == 2 && j == 2 {
				break // killed at the commit point
			}
			l.applier.Committed(log)
		}
		if i%2 == 0 {
			write(w.t, l.writers[0], w.values[0]) // open at the end
		}
		l.kill()
	}
	app.begin().drain()
	w.verify("in the end")
}
