package weir_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/cutafter"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/processor"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/twophase"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/txn"
)

// longPause is a restart policy whose first pause no test waits for.
var longPause = weir.Restart(weir.RestartPolicy{Initial: time.Hour, Max: time.Hour, Limit: 5, Quiet: time.Hour})

func TestStopBetweenRestartsIsNotCleanAndLeavesTheGroup(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "fail:1")
	r := start(t, "app", brokers, sums(weir.Retry), weir.Store(checkpoint.NewMem()), longPause)
	await(r, 1, any1[event.Restarting])
	r.stop()
	wantError(t, r.wait(), "the last checkpoint was not committed", "asked to")
	wantNoMembers(t, brokers, "app")
}

func TestStandbyThatStopsBetweenRestartsStopsCleanly(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a:1")
	store := checkpoint.NewMem()
	active := start(t, "app", brokers, sums(same), weir.Store(store), weir.InstanceID("first"))
	await(active, 1, any1[event.CheckpointCommitted])
	standby := start(t, "app", brokers, sums(same), weir.Store(store), weir.InstanceID("second"), longPause)
	awaitMembers(t, brokers, "app", 2)
	evict(t, brokers, "app", "second")
	await(standby, 1, any1[event.Restarting])
	standby.stop()
	if err := standby.wait(); err != nil {
		t.Error(err)
	}
}

// evict makes the group take an instance for gone.
func evict(t *testing.T, brokers []string, group, instance string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if _, err := kadm.NewClient(cl).LeaveGroup(t.Context(), kadm.LeaveGroup(group).InstanceIDs(instance)); err != nil {
		t.Fatal(err)
	}
}

func TestAppThatGivesUpRestartingLeavesTheGroup(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "fail:1")
	r := start(t, "app", brokers, sums(weir.Retry), weir.Store(checkpoint.NewMem()),
		weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 1, Quiet: time.Hour}))
	var gaveUp *processor.RestartsError
	if err := r.wait(); !errors.As(err, &gaveUp) {
		t.Fatal(err)
	}
	wantNoMembers(t, brokers, "app")
}

func TestAnAppRunsOnce(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a:1")
	var app *weir.App
	r := start(t, "app", brokers, func(a *weir.App) { app = a; sums(same)(a) }, weir.Store(checkpoint.NewMem()))
	consume(t, brokers, "out", 1)
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	wantError(t, app.Run(ended), "app", "Run was called before", "weir.New")
	produce(t, brokers, "in", "a:2")
	consume(t, brokers, "out", 2)
	if s := app.Status().State; s != "running" {
		t.Errorf("the status is %q, of the call that was refused", s)
	}
	r.stop()
	if err := r.wait(); err != nil {
		t.Error(err)
	}
	wantError(t, app.Run(ended), "Run was called before")
}

// wantNoMembers wants that nobody has to wait for the session timeout.
func wantNoMembers(t *testing.T, brokers []string, group string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	gs, err := kadm.NewClient(cl).DescribeGroups(t.Context(), group)
	if err != nil {
		t.Fatal(err)
	}
	if n := len(gs[group].Members); n > 0 {
		t.Errorf("%d members are left in the group", n)
	}
}

// The answer to a commit that happened is lost, and the stop comes before anybody has looked
// what became of it: a savepoint of the last checkpoint that is known would be too old.
func TestStopWithSavepointRefusesWhileACommitIsInDoubt(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a:1")
	cut := cutafter.New((&net.Dialer{}).DialContext, kmsg.EndTxn)
	var app *weir.App
	r := start(t, "app", brokers, func(a *weir.App) { app = a; sums(same)(a) }, weir.Store(checkpoint.NewMem()), longPause,
		weir.KafkaOptions(kgo.Dialer(cut.Dial), kgo.RequestRetries(1)))
	await(r, 1, any1[event.CheckpointCommitted])
	cut.Lose(-1)
	produce(t, brokers, "in", "a:1")
	await(r, 1, any1[event.Restarting])
	_, err := app.StopWithSavepoint(t.Context(), t.TempDir(), "last")
	var te *txn.Error
	if !errors.As(err, &te) || te.Kind != txn.Unknown || te.Attempted < 0 {
		t.Errorf("want an error that says which commit is in doubt: %v", err)
	}
	if err := r.wait(); err == nil || strings.Contains(err.Error(), "was not committed") {
		t.Errorf("Run denies what it does not know: %v", err)
	}
}

// Likewise, when those that were to look have failed before they could.
func TestStopAfterFurtherFailuresDoesNotDenyACommitInDoubt(t *testing.T) {
	for name, policy := range map[string]weir.RestartPolicy{
		"in a pause":  {Initial: 10 * time.Second, Max: 10 * time.Second, Limit: -1, Quiet: time.Hour},
		"at any time": {Initial: time.Microsecond, Max: time.Microsecond, Limit: -1, Quiet: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, cl, kafkaOptions := inVirtualTime(t, "in", "out")
				send := sendingTo(t, cl, "in")
				sent, release := heldCommit(t, c, 2)
				var down atomic.Bool
				store := faultstore.Wrap(checkpoint.NewMem())
				store.Before(func(_ context.Context, op faultstore.Op, _ string) error {
					if op == faultstore.Get && down.Load() {
						return errors.New("the store is down")
					}
					return nil
				})
				r := start(t, "app", c.ListenAddrs(), sums(weir.Retry), weir.Store(store), weir.KafkaOptions(kafkaOptions...), weir.Restart(policy))
				send("a:1")
				await(r, 1, any1[event.CheckpointCommitted])
				send("a:1")
				<-sent
				down.Store(true)
				send("fail:1")
				await(r, 2, any1[event.Restarting])
				r.stop()
				err := r.wait()
				release()
				wantError(t, err, "whether checkpoint 2 was committed is unknown", "the store is down")
				if strings.Contains(err.Error(), "was not committed") {
					t.Errorf("it denies what it does not know: %v", err)
				}
			})
		})
	}
}

// The stop timeout passes while the broker ends the transaction.
func TestStopTimeoutDoesNotDenyACommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c, cl, kafkaOptions := inVirtualTime(t, "in", "out")
		send := sendingTo(t, cl, "in")
		sent, release := heldCommit(t, c, 1)
		r := start(t, "app", c.ListenAddrs(), sums(same), weir.Store(checkpoint.NewMem()), weir.KafkaOptions(kafkaOptions...),
			weir.CheckpointEvery(0), weir.AfterRecords(1e9), weir.StopTimeout(100*time.Millisecond))
		await(r, 1, any1[event.Restored])
		send("a:1")
		synctest.Wait() // it is processed
		r.stop()
		<-sent
		err := r.wait()
		release()
		wantError(t, err, "StopTimeout", "unknown")
		if strings.Contains(err.Error(), "nothing after") || strings.Contains(err.Error(), "was not committed") {
			t.Errorf("it denies what it does not know: %v", err)
		}
	})
}

// heldCommit makes the broker keep the n-th commit of a transaction to itself, and all that
// comes after it on that connection, until release is called: sent is closed when it is there.
func heldCommit(t *testing.T, c *kfake.Cluster, n int) (sent <-chan struct{}, release func()) {
	there, answer, awake := make(chan struct{}), make(chan struct{}), make(chan struct{})
	c.ControlKey(int16(kmsg.EndTxn), func(req kmsg.Request) (kmsg.Response, error, bool) {
		if req.(*kmsg.EndTxnRequest).Commit {
			n--
		}
		if c.KeepControl(); n == 0 {
			n-- // the next one passes
			close(there)
			c.SleepControl(func() { <-answer })
			close(awake)
		}
		return nil, nil, false
	})
	release = sync.OnceFunc(func() {
		close(answer)
		select {
		case <-there:
			<-awake // a broker that is closed while a request wakes up in it may never end
		default:
		}
	})
	t.Cleanup(release)
	return there, release
}

// What fails for good while the broker ends a transaction says nothing against its commit.
func TestAFailureDoesNotDenyACommitUnderWay(t *testing.T) {
	lost := func(ctx context.Context, keys []string, answers []lookup.Answer[string]) error {
		for i, k := range keys {
			if k == "fail" {
				return errors.New("asked to")
			}
			answers[i] = lookup.Answer[string]{Value: "x", Found: true}
		}
		return nil
	}
	for what, topology := range map[string]func(*weir.App){
		"a handler": sums(same),
		"a panic":   sums(func(err error) error { panic(err) }),
		"a look-up": asks(lookup.Batch("what fails", lost)),
	} {
		for _, before := range []int{0, 1} {
			t.Run(fmt.Sprintf("%s after %d checkpoints", what, before), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					c, cl, kafkaOptions := inVirtualTime(t, "in", "out")
					send := sendingTo(t, cl, "in")
					sent, release := heldCommit(t, c, before+1)
					r := start(t, "app", c.ListenAddrs(), topology, weir.Store(checkpoint.NewMem()), weir.KafkaOptions(kafkaOptions...))
					for i := range before {
						send("a:1")
						await(r, i+1, any1[event.CheckpointCommitted])
					}
					send("a:1")
					<-sent
					send("fail:1")
					err := r.wait()
					release()
					wantError(t, err, "asked to", fmt.Sprintf("whether checkpoint %d was committed is unknown", before+1))
					if strings.Contains(err.Error(), "nothing after") || strings.Contains(err.Error(), "nothing was published") {
						t.Errorf("it denies what it does not know: %v", err)
					}
				})
			})
		}
	}
}

// outOfReach is what a receiver says that is down, and tells that it was tried.
func outOfReach(tried chan<- struct{}) error {
	select {
	case tried <- struct{}{}:
	default:
	}
	return weir.Retry(errors.New("out of reach"))
}

func TestStopDuringAStartSaysWhatIsNotApplied(t *testing.T) {
	brokers := broker(t, 1, "in")
	store := checkpoint.NewMem()
	to := newTreasury()
	tried := make(chan struct{}, 1)
	down := func() *deposits {
		return &deposits{to: to, before: func(_ context.Context, call, _ string) error {
			if call != "commit" {
				return nil
			}
			return outOfReach(tried)
		}}
	}
	stop := func(records int64, opts ...weir.Option) {
		t.Helper()
		for len(tried) > 0 {
			<-tried
		}
		r := start(t, "app", brokers, sumsTo(twophase.To(down())), append(opts, weir.Store(store), weir.StopTimeout(10*time.Millisecond), fast)...)
		select {
		case <-tried:
		case <-time.After(deadline):
			t.Fatal("nothing was applied")
		}
		if records > 0 {
			committedRecords(r, records) // else the stop has something to commit
		}
		r.stop()
		var u *weir.UnappliedError
		if err := r.wait(); !errors.As(err, &u) || len(to.list()) > 0 {
			t.Errorf("Run returned %v, and %d deposits were made", err, len(to.list()))
		}
	}
	produce(t, brokers, "in", ones(1, letters...)...)
	stop(int64(len(letters))) // while it runs
	stop(0)                   // while it starts
	if _, err := adminOf(t, brokers).DeleteGroup(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	stop(0, weir.OnMismatch(weir.RecoverCheckpoint)) // while it starts with what a person chose
}

// TestStopWhileOneSinkStartsSaysWhatAnotherHasNotApplied stops while a sink that has nothing to
// apply waits for its receiver: the one behind it has not had its turn.
func TestStopWhileOneSinkStartsSaysWhatAnotherHasNotApplied(t *testing.T) {
	brokers := broker(t, 1, "in")
	store := checkpoint.NewMem()
	to, none := newTreasury(), newTreasury()
	var waitFor atomic.Value
	waitFor.Store("commit")
	tried := make(chan struct{}, 1)
	down := func(_ context.Context, call, _ string) error {
		if call != waitFor.Load() {
			return nil
		}
		return outOfReach(tried)
	}
	stop := func(records int64) {
		t.Helper()
		topology := func(app *weir.App) {
			in := weir.From(app, "in", source.Values("in", codec.String))
			weir.To(weir.Filter(in, "none", func(string) bool { return false }), "idle", twophase.To(&deposits{to: none, before: down}))
			weir.To(in, "ahead", twophase.To(&deposits{to: to, before: down}))
		}
		r := start(t, "app", brokers, topology, weir.Store(store), weir.StopTimeout(10*time.Millisecond), fast)
		select {
		case <-tried:
		case <-time.After(deadline):
			t.Fatal("nothing was tried")
		}
		if records > 0 {
			committedRecords(r, records)
		}
		r.stop()
		var u *weir.UnappliedError
		if err := r.wait(); !errors.As(err, &u) || u.Operator != "ahead" || len(to.list()) > 0 {
			t.Errorf("Run returned %v, and %d deposits were made", err, len(to.list()))
		}
	}
	produce(t, brokers, "in", letters...)
	stop(int64(len(letters))) // while it runs
	for len(tried) > 0 {
		<-tried
	}
	waitFor.Store("leftovers") // of the sink in front
	stop(0)
}

// TestStopBetweenStartsSaysWhatIsNotApplied stops while the app waits to start again, with a
// checkpoint that a person chose and that has something to apply: nothing else was left behind.
func TestStopBetweenStartsSaysWhatIsNotApplied(t *testing.T) {
	brokers := broker(t, 1, "in")
	store := checkpoint.NewMem()
	to := newReceiver()
	produce(t, brokers, "in", ones(1, letters...)...)
	if err := start(t, "app", brokers, sumsTo(&ahead{to: to, retain: 1000}), weir.Store(store), weir.Drain(), fast).wait(); err != nil {
		t.Fatal(err)
	}
	if _, err := adminOf(t, brokers).DeleteGroup(t.Context(), "app"); err != nil {
		t.Fatal(err)
	}
	away := &ahead{to: to, retain: 1000, refuses: func(int64) error { return &sink.Retriable{Err: errors.New("away")} }}
	r := start(t, "app", brokers, sumsTo(away), weir.Store(store), weir.OnMismatch(weir.RecoverCheckpoint),
		weir.Restart(weir.RestartPolicy{Limit: -1, Initial: time.Hour, Max: time.Hour, Quiet: time.Hour}))
	await(r, 1, any1[event.Restarting])
	r.stop()
	err := r.wait()
	var u *weir.UnappliedError
	if !errors.As(err, &u) {
		t.Fatalf("Run returned %v", err)
	}
	wantError(t, err, "away")
	if strings.Contains(err.Error(), "was not committed") {
		t.Errorf("it denies a commit: %v", err)
	}
}
