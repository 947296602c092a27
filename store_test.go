package weir_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/weirtest"
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
	r := start(t, "app", brokers, sums(same), weir.Store(store), weir.CheckpointTimeout(50*time.Millisecond), weir.TolerableFailures(1000), weir.RetryPause(time.Millisecond))
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

// deafStore writes on when nobody waits any more, as a system call does.
type deafStore struct{ checkpoint.Store }

func (s deafStore) Put(ctx context.Context, name string, data []byte) error {
	return s.Store.Put(context.WithoutCancel(ctx), name, data)
}

// A write to a network file system that is gone ends with no context.
func TestS08_WriteThatIsStuckHoldsUpNoEnd(t *testing.T) {
	for name, tc := range map[string]struct {
		opts []weir.Option
		hurt string // the record that comes when the write is stuck
		stop bool   // then
		want string // in the error of Run; empty: the app goes on
	}{
		"of an app that gives up": {
			opts: []weir.Option{weir.TolerableFailures(0), weir.CheckpointTimeout(50 * time.Millisecond)},
			want: "1 failed in a row",
		},
		"of an app that is stopped": {opts: []weir.Option{weir.StopTimeout(50 * time.Millisecond)}, stop: true, want: "weir.StopTimeout"},
		"of an incarnation":         {hurt: "fail:1"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, cl, kafkaOptions := inVirtualTime(t, "in", "out")
				send := sendingTo(t, cl, "in")
				stuck, goOn, landed := make(chan string), make(chan struct{}), make(chan struct{})
				var puts, failures atomic.Int64
				store := faultstore.Wrap(deafStore{checkpoint.NewMem()})
				store.Before(func(_ context.Context, op faultstore.Op, object string) error {
					if op == faultstore.Put && strings.HasSuffix(object, ".manifest") && puts.Add(1) == 1 {
						stuck <- object
						<-goOn
					}
					return nil
				})
				var object string
				store.After(func(_ context.Context, op faultstore.Op, name string) error {
					if op == faultstore.Put && name == object {
						close(landed)
					}
					return nil
				})
				logged, logs := observer.New(zap.WarnLevel)
				committed := make(chan struct{}, 100)
				app := weir.New("app", append(tc.opts, weir.Brokers(c.ListenAddrs()...), weir.InstanceID("a"), weir.Store(store), weir.KafkaOptions(kafkaOptions...),
					weir.Log(zap.New(logged)), weir.Listen(weir.Listener{CheckpointCommitted: func(event.CheckpointCommitted) { committed <- struct{}{} }}))...)
				sums(func(err error) error {
					if failures.Add(1) > 1 {
						return weir.Skip(err)
					}
					return weir.Retry(err)
				})(app)
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				ended := make(chan error, 1)
				go func() { ended <- app.Run(ctx) }()
				send("a:1")
				object = <-stuck
				if tc.hurt != "" {
					send(tc.hurt)
				}
				if tc.stop {
					stop()
				}
				late := time.After(time.Minute)
				select {
				case err := <-ended:
					if ended <- err; tc.want == "" {
						t.Errorf("Run returned %v", err)
					}
				case <-committed:
					if tc.want != "" {
						t.Error("a checkpoint was committed")
					}
				case <-late:
					t.Error("nothing happens")
				}
				if !slices.ContainsFunc(logs.All(), func(e observer.LoggedEntry) bool { return strings.Contains(e.Message, object) }) {
					t.Errorf("nothing is said of %s: %v", object, logs.All())
				}
				close(goOn)
				<-landed
				if tc.want == "" {
					send("a:1")
					<-committed
				}
				stop()
				err := <-ended
				switch {
				case tc.want != "":
					wantError(t, err, tc.want)
				case err != nil:
					t.Error(err)
				}
			})
		})
	}
}

// As TestS08_WriteThatIsStuckHoldsUpNoEnd, of what is read while an app starts, and by a query.
func TestS08_ReadThatIsStuckHoldsUpNoStop(t *testing.T) {
	type read struct {
		op     faultstore.Op
		prefix string
		nth    int64 // that is stuck
	}
	for name, tc := range map[string]struct {
		read
		query bool // and not the start
	}{
		"of the owner":          {read: read{faultstore.Get, "owner/0000000000000002", 2}}, // the first is before anything begins
		"of a manifest":         {read: read{faultstore.Get, "ckpt/", 1}},
		"of a segment":          {read: read{faultstore.GetRange, "ckpt/", 1}},
		"of a segment, queried": {read{faultstore.GetRange, "ckpt/", 1}, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				c, cl, kafkaOptions := inVirtualTime(t, "in", "out")
				if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Value: []byte("a:1")}).FirstErr(); err != nil {
					t.Fatal(err)
				}
				store := faultstore.Wrap(checkpoint.NewMem())
				build := func(opts ...weir.Option) *weir.App {
					app := weir.New("app", append(opts, weir.Brokers(c.ListenAddrs()...), weir.InstanceID("a"), weir.Store(store), weir.KafkaOptions(kafkaOptions...))...)
					sums(same)(app)
					return app
				}
				if err := build(weir.Drain()).Run(t.Context()); err != nil {
					t.Fatal(err)
				}
				stuck, goOn := make(chan struct{}), make(chan struct{})
				var armed atomic.Bool
				var reads atomic.Int64
				armed.Store(!tc.query)
				store.Before(faultstore.Stall(func(op faultstore.Op, name string) bool {
					if !armed.Load() || op != tc.op || !strings.HasPrefix(name, tc.prefix) || reads.Add(1) != tc.nth {
						return false
					}
					close(stuck)
					return true
				}, goOn))
				restored := make(chan struct{})
				app := build(weir.Listen(weir.Listener{Restored: func(event.Restored) { close(restored) }}))
				ctx, stop := context.WithCancel(t.Context())
				defer stop()
				ended, answered := make(chan error, 1), make(chan error, 1)
				go func() { ended <- app.Run(ctx) }()
				if tc.query {
					<-restored
					synctest.Wait()
					armed.Store(true)
					go func() {
						_, err := weir.Query(t.Context(), app, "sum", "total", "a", codec.String, codec.Int64)
						answered <- err
					}()
				}
				<-stuck
				stop()
				late := time.After(time.Minute)
				select {
				case err := <-ended:
					if ended <- nil; err != nil {
						t.Errorf("Run returned %v", err)
					}
				case <-late:
					t.Error("Run does not return")
				}
				close(goOn)
				<-ended
				if tc.query {
					if err := <-answered; !errors.Is(err, weir.ErrNotActive) && !errors.Is(err, weir.ErrNotRunning) {
						t.Errorf("the query ended with %v", err)
					}
				}
			})
		})
	}
}

// A context that does not end stays a child of its incarnation's, which may live for months.
func TestTheContextOfACheckpointEndsWithIt(t *testing.T) {
	store := faultstore.Wrap(checkpoint.NewMem())
	var puts []context.Context
	store.Before(func(ctx context.Context, op faultstore.Op, name string) error {
		if op == faultstore.Put && strings.HasSuffix(name, ".manifest") {
			puts = append(puts, ctx)
		}
		return nil
	})
	h := weirtest.New(t, sums(same), weir.Store(store))
	const n = 100
	for range n {
		weirtest.In[string](h, "in").Send("a:1")
		h.Checkpoint()
	}
	if len(puts) != n {
		t.Fatalf("%d manifests were put", len(puts))
	}
	for i, ctx := range puts {
		if ctx.Err() == nil {
			t.Fatalf("the context of checkpoint %d has not ended", i+1)
		}
	}
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

// newest returns the checkpoint of the highest id in a store.
func newest(t *testing.T, store checkpoint.Store) checkpoint.ManifestInfo {
	t.Helper()
	infos, err := checkpoint.ListManifests(t.Context(), store)
	if err != nil || len(infos) == 0 {
		t.Fatalf("%d checkpoints, %v", len(infos), err)
	}
	return infos[len(infos)-1]
}

// TestStartFromASavepointThatIsRefusedLeavesAWayBack has a sink that refuses a start which
// may have begun to delete what was committed before.
func TestStartFromASavepointThatIsRefusedLeavesAWayBack(t *testing.T) {
	for name, tc := range map[string]struct {
		taken        bool
		refused, way []weir.Option
	}{
		"the offsets are gone": {
			refused: []weir.Option{weir.OnMismatch(weir.RecoverSavepoint)},
			way:     []weir.Option{weir.OnMismatch(weir.RecoverCheckpoint)},
		},
		"the store was taken over": {
			taken:   true,
			refused: []weir.Option{weir.Group("others"), weir.CommitTopic("others-checkpoints"), weir.TakeStore("app@here")},
			way:     []weir.Option{weir.TakeStore("others@here")},
		},
	} {
		t.Run(name, func(t *testing.T) {
			brokers, dir := clusterOf(t, "here"), "file://"+t.TempDir()
			store, err := checkpoint.OpenStore(dir)
			if err != nil {
				t.Fatal(err)
			}
			to := newReceiver()
			run := func(s *ahead, opts ...weir.Option) error {
				t.Helper()
				s.to, s.retain = to, 1000
				return start(t, "app", brokers, sumsTo(s), append(opts, weir.Store(store), weir.Retain(1), weir.Drain(), fast)...).wait()
			}
			for i := range 3 {
				produce(t, brokers, "in", ones(1, letters...)...)
				if err := run(&ahead{}); err != nil {
					t.Fatal(err)
				}
				if i > 0 {
					continue
				}
				m, _, err := checkpoint.Inspect(t.Context(), store, newest(t, store).Name)
				if err == nil {
					_, err = checkpoint.CreateSavepoint(t.Context(), store, m, store, "x", nil)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			last := newest(t, store).Checkpoint
			if !tc.taken {
				if _, err := adminOf(t, brokers).DeleteGroup(t.Context(), "app"); err != nil {
					t.Fatal(err)
				}
			}
			bad := errors.New("not this one")
			for range 5 {
				err := run(&ahead{refuses: func(int64) error { return bad }}, append(tc.refused, weir.FromSavepoint(dir, "x"))...)
				wantError(t, err, bad.Error())
			}
			produce(t, brokers, "in", ones(1, letters...)...)
			if err := run(&ahead{}, tc.way...); err != nil {
				t.Fatalf("back to checkpoint %d: %v", last, err)
			}
			wantSums(t, to, 4, letters...)
		})
	}
}

// Apps of one name that are on two clusters, or in two groups, take the checkpoints of each
// other for older than all that they retain.
func TestAStoreBelongsToOneGroupOnOneCluster(t *testing.T) {
	for name, tc := range map[string]struct {
		cluster string
		opts    []weir.Option
		owner   string
	}{
		"another group":   {"here", []weir.Option{weir.Group("others"), weir.CommitTopic("others-checkpoints")}, "others@here"},
		"another cluster": {"there", nil, "app@there"},
	} {
		t.Run(name, func(t *testing.T) {
			here := clusterOf(t, "here")
			other := here
			if tc.cluster != "here" {
				other = clusterOf(t, tc.cluster)
			}
			store := checkpoint.NewMem()
			drain := func(brokers []string, opts ...weir.Option) error {
				t.Helper()
				produce(t, brokers, "in", "a:1")
				return start(t, "app", brokers, sums(same), append(opts, weir.Store(store), weir.Retain(1), weir.Drain())...).wait()
			}
			refused := func(err error, want, got string) {
				t.Helper()
				if e := (*checkpoint.OwnerError)(nil); !errors.As(err, &e) || e.Want.String() != want || e.Got.String() != got {
					t.Errorf("the store of %s is refused to %s with %v", got, want, err)
				}
			}
			if err := drain(here); err != nil {
				t.Fatal(err)
			}
			before := objects(t, store)
			for range 3 { // it would begin to delete
				refused(drain(other, tc.opts...), tc.owner, "app@here")
			}
			refused(drain(other, append(tc.opts, weir.TakeStore("app@nowhere"))...), tc.owner, "app@here")
			if after := objects(t, store); !slices.Equal(after, before) {
				t.Errorf("the store had %v, it has %v", before, after)
			}
			if groups, err := adminOf(t, other).ListGroups(t.Context()); err != nil || slices.Contains(groups.Groups(), "others") || tc.cluster == "there" && len(groups) > 0 {
				t.Errorf("groups %v, %v", groups.Groups(), err)
			}
			if topics, err := adminOf(t, other).ListTopics(t.Context()); err != nil || topics.Has("others-checkpoints") || tc.cluster == "there" && topics.Has("app-checkpoints") {
				t.Errorf("topics %v, %v", topics.Names(), err)
			}
			if err := drain(here); err != nil {
				t.Errorf("the owner is kept from its checkpoint: %v", err)
			}

			for range 3 {
				last := newest(t, store).Checkpoint
				if err := drain(other, append(tc.opts, weir.TakeStore("app@here"))...); err != nil {
					t.Fatalf("the store is not taken over: %v", err)
				}
				// What is looked for in a store is its newest checkpoint.
				if now := newest(t, store).Checkpoint; now <= last {
					t.Errorf("the new owner begins with checkpoint %d after %d", now, last)
				}
			}
			refused(drain(here), "app@here", tc.owner)
			if err := drain(other, tc.opts...); err != nil {
				t.Errorf("the new owner is kept from its checkpoint: %v", err)
			}
		})
	}
}

func TestAStoreIsTakenOverAsTheEnvironmentSays(t *testing.T) {
	brokers, store := broker(t, 1, "in", "out"), checkpoint.NewMem()
	if err := checkpoint.ClaimOwner(t.Context(), store, "app", checkpoint.Owner{Group: "b@c", Cluster: "d"}); err != nil {
		t.Fatal(err)
	}
	t.Setenv("WEIR_TAKE_STORE", "b@c@d")
	if err := start(t, "app", brokers, sums(same), weir.Store(store), weir.TakeStore("x@y"), weir.Drain()).wait(); err != nil {
		t.Error(err)
	}
}

// Brokers may tell no id of their cluster, or not always.
func TestAClusterWithoutAnIDIsNotRefused(t *testing.T) {
	store := checkpoint.NewMem()
	for _, cluster := range []string{"", "here", ""} {
		brokers := clusterOf(t, cluster)
		produce(t, brokers, "in", "a:1")
		if err := start(t, "app", brokers, sums(same), weir.Store(store), weir.Drain()).wait(); err != nil {
			t.Errorf("cluster %q: %v", cluster, err)
		}
	}
	err := start(t, "app", clusterOf(t, "there"), sums(same), weir.Store(store), weir.Drain()).wait()
	wantError(t, err, "Kafka cluster here", "Kafka cluster there", "a prefix of its own", `weir.TakeStore("app@here")`, "WEIR_TAKE_STORE='app@here'")
}

// An instance that stands by may be the only one left where a store was taken over.
func TestAStandbyLeavesAStoreAloneThatWasTakenOver(t *testing.T) {
	brokers, store := broker(t, 1, "in", "out"), checkpoint.NewMem()
	active := start(t, "app", brokers, sums(same), weir.Store(store))
	produce(t, brokers, "in", "a:1")
	await(active, 1, any1[event.CheckpointCommitted])
	standby := start(t, "app", brokers, sums(same), weir.Store(store), weir.InstanceID("b"))
	awaitMembers(t, brokers, "app", 2)
	other := checkpoint.Owner{Group: "app", Cluster: "there"}
	if err := checkpoint.ClaimOwner(t.Context(), store, "app", other, checkpoint.Owner{Group: "app", Cluster: "kfake"}); err != nil {
		t.Fatal(err)
	}
	active.stop()
	if err := active.wait(); err != nil {
		t.Fatal(err)
	}
	if e := (*checkpoint.OwnerError)(nil); !errors.As(standby.wait(), &e) || e.Got != other {
		t.Errorf("the standby ended with %v", standby.err)
	}
}

func clusterOf(t *testing.T, id string) []string {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "in", "out"), kfake.ClusterID(id))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.ListenAddrs()
}

func objects(t *testing.T, store checkpoint.Store) []string {
	t.Helper()
	var names []string
	for o, err := range store.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, o.Name)
	}
	return names
}
