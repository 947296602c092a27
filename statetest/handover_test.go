package statetest_test

import (
	"crypto/sha512"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/txn"
)

// chief is a member of an app's group that leads it, owns nothing, and says which instance
// has all partitions. Left to themselves, instances take nothing from one that lives.
type chief struct {
	kgo.GroupBalancer
	active atomic.Value // string: an instance ID
	blind  atomic.Bool  // it does not see the last partition of each topic
	sees   atomic.Int64 // nor does it until the group was balanced that often
	asked  atomic.Int64 // how often the group was balanced
	client *kgo.Client
	leads  chan struct{} // closed when it does
	once   sync.Once
}

// lead joins the group of the app of these tests before anybody else does.
func lead(t *testing.T, brokers []string, active string, topics ...string) *chief {
	t.Helper()
	c := &chief{GroupBalancer: txn.SingleActive(), leads: make(chan struct{})}
	c.active.Store(active)
	c.client = client(t, brokers, kgo.ConsumerGroup(appName), kgo.ConsumeTopics(topics...), kgo.Balancers(c),
		kgo.DisableAutoCommit(), kgo.HeartbeatInterval(20*time.Millisecond))
	select {
	case <-c.leads:
	case <-time.After(deadline):
		t.Fatal("the group was not joined")
	}
	return c
}

// hand makes another instance the active one.
func (c *chief) hand(to string) {
	c.active.Store(to)
	c.client.ForceRebalance()
}

// MemberBalancer implements kgo.GroupBalancer.
func (c *chief) MemberBalancer(members []kmsg.JoinGroupResponseMember) (kgo.GroupMemberBalancer, map[string]struct{}, error) {
	c.once.Do(func() { close(c.leads) })
	b, err := kgo.NewConsumerBalancer(c, members)
	return b, b.MemberTopics(), err
}

// Balance implements kgo.ConsumerBalancerBalance.
func (c *chief) Balance(b *kgo.ConsumerBalancer, topics map[string]int32) kgo.IntoSyncAssignment {
	blind := c.asked.Add(1) <= c.sees.Load() || c.blind.Load()
	plan := b.NewPlan()
	b.EachMember(func(m *kmsg.JoinGroupResponseMember, _ *kmsg.ConsumerMemberMetadata) {
		if m.InstanceID == nil || *m.InstanceID != c.active.Load() {
			return
		}
		for topic, n := range topics {
			if blind {
				n--
			}
			for p := range n {
				plan.AddPartition(m, topic, p)
			}
		}
	})
	plan.AdjustCooperative(b)
	return plan
}

// TestPartitionsThatAreTakenAwayAreHandedOverWithWhatIsInFlight moves all partitions between
// two instances again and again, in the midst of checkpoints of handlers that are slow.
func TestPartitionsThatAreTakenAwayAreHandedOverWithWhatIsInFlight(t *testing.T) {
	for _, mode := range []struct {
		name     string
		opts     []weir.Option
		inFlight bool
	}{
		{"aligned", nil, false},
		{"unaligned", []weir.Option{weir.Unaligned()}, true},
		{"timeout", []weir.Option{weir.AlignmentTimeout(time.Millisecond)}, true},
	} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			const moves = 3
			f := newFlow(t, 60, 100, false)
			parts := slices.Collect(slices.Chunk(f.input, (len(f.input)+moves)/(moves+1)))
			c := lead(t, f.brokers, "first", "left", "right")
			var instances []*voyage
			for i, id := range []string{"first", "second"} {
				r := &river{}
				r.slow.Store(mode.inFlight) // else a barrier would wait for all that there is
				v := f.life(r, 2+3*i, append(mode.opts, weir.InstanceID(id), weir.SessionTimeout(3*time.Second))...)
				v.start(t)
				instances = append(instances, v)
			}
			flown, last := 0, int64(-1) // checkpoint of the newest restore
			for i := range moves + 1 {
				v := instances[i%2]
				before := v.awaitRestore(t, last)
				produce(t, f.brokers, parts[i]...)
				v.until(t, func(_ int64, commits int) bool {
					return commits > before && (!mode.inFlight || v.inFlight.Load() > 0)
				})
				if v.restoredInFlight() > 0 {
					flown++
				}
				v.mu.Lock()
				last = v.restored.Checkpoint
				v.mu.Unlock()
				if i < moves {
					c.hand([]string{"second", "first"}[i%2])
				}
			}
			for _, v := range instances {
				v.slow.Store(false)
				v.stop()
			}
			for _, v := range instances {
				if err := v.wait(t); err != nil {
					t.Fatal(err)
				}
			}
			c.client.Close()
			f.life(&river{}, 4, append(mode.opts, weir.InstanceID("first"))...).mustDrain(t)
			f.check(t)
			if want := map[bool]int{true: moves - 1, false: 0}[mode.inFlight]; flown < want || !mode.inFlight && flown > 0 {
				t.Errorf("%d of %d hand-overs were with records in flight", flown, moves)
			}
		})
	}
}

// awaitRestore waits until the app was restored from a checkpoint newer than last, and
// returns how many commits it made by then.
func (v *voyage) awaitRestore(t *testing.T, last int64) (commits int) {
	t.Helper()
	v.until(t, func(_ int64, n int) bool {
		commits = n
		return v.restored.Partitions > 0 && v.restored.Checkpoint > last
	})
	return commits
}

// TestRestoreThatIsInterruptedGoesByWhatOthersCommitMeanwhile takes the partitions from an
// instance in the midst of its restore, has another one commit, and gives them back.
func TestRestoreThatIsInterruptedGoesByWhatOthersCommitMeanwhile(t *testing.T) {
	t.Parallel()
	const keys = 500
	brokers := broker(t, 2, "in", "out")
	_, store := newDir(t)
	slow := faultstore.Wrap(store)
	held, release := make(chan struct{}), make(chan struct{})
	var once sync.Once
	var restoring atomic.Bool
	slow.Before(faultstore.Hang(func(op faultstore.Op, name string) bool {
		if !restoring.Load() || op != faultstore.Get && op != faultstore.GetRange || strings.HasSuffix(name, ".manifest") {
			return false
		}
		once.Do(func() { close(held) })
		return true
	}, release))
	// So much that doesn't compress that a segment is an object of its own.
	ballast := func(key string) string {
		var b strings.Builder
		for i := range 4 {
			fmt.Fprintf(&b, "%x", sha512.Sum512([]byte(fmt.Sprint(i, key))))
		}
		return b.String()
	}
	topology := func(app *weir.App) {
		in := weir.From(app, "in", source.KeyValues("in", codec.String, codec.String))
		byKey := weir.KeyBy(in, "by-key", func(v weir.KV[string, string]) string { return v.Key }, codec.String)
		out := weir.Process(byKey, "count", func(s *weir.Setup) weir.Handler[string, weir.KV[string, string], weir.KV[string, string]] {
			seen := state.Value(s, "seen", codec.String)
			return weir.OnRecord(func(c *weir.Context[string, weir.KV[string, string]], v weir.KV[string, string]) error {
				all := strings.TrimSuffix(seen.Get(), ballast(v.Key)) + v.Value
				seen.Set(all + ballast(v.Key))
				c.Emit(weir.KV[string, string]{Key: v.Key, Value: all})
				return nil
			})
		})
		weir.To(out, "out", kafka.Sink("out", codec.String, codec.String))
	}
	instance := func(id string, store checkpoint.Store) *life {
		return &life{brokers: brokers, topology: topology, store: store, opts: []weir.Option{
			weir.InstanceID(id), weir.SessionTimeout(3 * time.Second),
		}}
	}
	c := lead(t, brokers, "first", "in")
	first, second := instance("first", store), instance("second", slow)
	first.start(t)
	second.start(t)
	want := map[string][]string{}
	feed := func(v string) {
		var rs []*kgo.Record
		for k := range keys {
			key := fmt.Sprintf("key-%03d", k)
			rs = append(rs, record("in", key, v))
			all := v
			if n := len(want[key]); n > 0 {
				all = want[key][n-1] + v
			}
			want[key] = append(want[key], all)
		}
		produce(t, brokers, rs...)
	}
	feed("a")
	first.until(t, func(records int64, _ int) bool { return records == keys })
	restoring.Store(true)
	c.hand("second")
	select {
	case <-held:
	case <-time.After(deadline):
		t.Fatal("the second instance restores nothing")
	}
	c.hand("first")
	feed("b")
	first.until(t, func(records int64, _ int) bool { return records == 2*keys })
	first.mu.Lock()
	interrupted := first.restored.Checkpoint // it began from what the second one was restoring
	first.mu.Unlock()
	close(release)
	c.hand("second")
	second.until(t, func(_ int64, commits int) bool { return second.restored.Checkpoint > interrupted || commits > 0 })
	feed("c")
	second.until(t, func(records int64, _ int) bool { return records >= keys })
	for _, l := range []*life{first, second} {
		l.stop()
		if err := l.wait(t); err != nil {
			t.Fatal(err)
		}
	}
	compareMaps(t, "output", committed(t, brokers, "out"), want, slices.Equal[[]string])
}

// countKeys counts the records of each key.
func countKeys(app *weir.App) {
	in := weir.From(app, "in", source.KeyValues("in", codec.String, codec.String))
	byKey := weir.KeyBy(in, "by-key", func(v weir.KV[string, string]) string { return v.Key }, codec.String)
	weir.To(weir.Aggregate(byKey, "count", weir.Count[weir.KV[string, string]]()), "out", kafka.Sink("out", codec.String, codec.JSON[int64]()))
}

// feedKeys gives countKeys one record of each key.
func feedKeys(t *testing.T, brokers []string, keys int) {
	t.Helper()
	var rs []*kgo.Record
	for k := range keys {
		rs = append(rs, record("in", fmt.Sprint("key-", k), "v"))
	}
	produce(t, brokers, rs...)
}

// wantCountedTwice wants that countKeys has counted what feedKeys fed twice.
func wantCountedTwice(t *testing.T, brokers []string, keys int) {
	t.Helper()
	want := map[string][]string{}
	for k := range keys {
		want[fmt.Sprint("key-", k)] = []string{"1", "2"}
	}
	compareMaps(t, "output", committed(t, brokers, "out"), want, slices.Equal[[]string])
}

// TestS17_InstanceBeginsWithAllPartitionsOfItsCheckpointOrWaits hands the partitions to
// another instance when the leader of the group does not see one of them: as one does whose
// client has not looked since it was added.
func TestS17_InstanceBeginsWithAllPartitionsOfItsCheckpointOrWaits(t *testing.T) {
	t.Parallel()
	const keys = 100
	brokers := broker(t, 3, "in", "out")
	_, store := newDir(t)
	instance := func(id string) *life {
		return &life{brokers: brokers, topology: countKeys, store: store, opts: []weir.Option{weir.InstanceID(id), weir.SessionTimeout(3 * time.Second)}}
	}
	c := lead(t, brokers, "first", "in")
	first, second := instance("first"), instance("second")
	first.start(t)
	second.start(t)
	feedKeys(t, brokers, keys)
	first.until(t, func(records int64, _ int) bool { return records == keys })
	c.blind.Store(true)
	// One rebalance takes the partitions from the first instance, the next one gives them to
	// the second, and who has to wait asks for more of them.
	const taken, waits = 2, 4
	before := c.asked.Load()
	c.hand("second")
	fed := false
	for begun := time.Now(); c.asked.Load() < before+waits; time.Sleep(time.Millisecond) {
		if !fed && c.asked.Load() >= before+taken {
			feedKeys(t, brokers, keys)
			fed = true
		}
		if time.Since(begun) > deadline {
			t.Fatalf("the group was balanced %d times", c.asked.Load()-before)
		}
		second.mu.Lock()
		commits := second.commits
		second.mu.Unlock()
		if commits > 0 {
			t.Fatalf("%d commits without a partition of the checkpoint", commits)
		}
	}
	c.blind.Store(false)
	second.until(t, func(records int64, _ int) bool { return records == keys })
	for _, l := range []*life{first, second} {
		l.stop()
		if err := l.wait(t); err != nil {
			t.Fatal(err)
		}
	}
	wantCountedTwice(t, brokers, keys)
}

// A drain is over when all partitions were read that the input had when it began, also those
// that the leader of the group does not see at first.
func TestDrainWaitsForAPartitionThatTheGroupDidNotAssign(t *testing.T) {
	t.Parallel()
	brokers := broker(t, 3, "in", "out")
	_, store := newDir(t)
	cl := client(t, brokers, kgo.RecordPartitioner(kgo.ManualPartitioner()))
	r := record("in", "key", "v")
	r.Partition = 2
	if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
		t.Fatal(err)
	}
	c := lead(t, brokers, "a", "in")
	c.sees.Store(3) // that it joined, that the app did, and that the app noticed and asks for the first time
	l := &life{brokers: brokers, topology: countKeys, store: store, opts: []weir.Option{weir.SessionTimeout(3 * time.Second), weir.Restart(weir.RestartPolicy{Limit: 0, Initial: 1, Max: 1, Quiet: time.Hour})}}
	l.mustDrain(t)
	compareMaps(t, "output", committed(t, brokers, "out"), map[string][]string{"key": {"1"}}, slices.Equal[[]string])
}

// An instance that goes on from a checkpoint or a savepoint because its operator said so
// waits for the partitions of it that it was not assigned: it would take them for new ones
// later, and read them again from their beginning.
func TestS17_InstanceThatRecoversWaitsForAllPartitions(t *testing.T) {
	t.Parallel()
	const keys = 100
	for mode, from := range map[weir.Recovery]bool{weir.RecoverCheckpoint: false, weir.RecoverOffsets: false, weir.RecoverSavepoint: true} {
		t.Run(string(mode), func(t *testing.T) {
			t.Parallel()
			brokers := broker(t, 3, "in", "out")
			dir, store := newDir(t)
			first := &life{brokers: brokers, topology: countKeys, store: store}
			feedKeys(t, brokers, keys)
			first.start(t)
			first.until(t, func(records int64, _ int) bool { return records == keys })
			if _, err := first.app.StopWithSavepoint(t.Context(), dir, "saved"); err != nil {
				t.Fatal(err)
			}
			if err := first.wait(t); err != nil {
				t.Fatal(err)
			}
			// The position stays: it is the checkpoint that the pointer no longer names.
			adm := kadm.NewClient(client(t, brokers))
			leave(t, adm)
			was, err := adm.FetchOffsets(t.Context(), appName)
			if err != nil {
				t.Fatal(err)
			}
			at, _ := was.Lookup("in", 0)
			moved := kadm.Offsets{}
			moved.AddOffset("in", 0, at.At, at.LeaderEpoch)
			if err := adm.CommitAllOffsets(t.Context(), appName, moved); err != nil {
				t.Fatal(err)
			}

			c := lead(t, brokers, "second", "in")
			c.blind.Store(true)
			second := &life{brokers: brokers, topology: countKeys, store: store, opts: []weir.Option{weir.InstanceID("second"), weir.OnMismatch(mode)}}
			if from {
				second.opts = append(second.opts, weir.FromSavepoint(dir, "saved"))
			}
			before := c.asked.Load()
			second.start(t)
			const waits = 3 // joins, and asks for more
			for begun := time.Now(); c.asked.Load() < before+waits; time.Sleep(time.Millisecond) {
				second.mu.Lock()
				commits := second.commits
				second.mu.Unlock()
				if commits > 0 {
					t.Fatalf("%d commits without a partition of the checkpoint", commits)
				}
				if time.Since(begun) > deadline {
					t.Fatalf("the group was balanced %d times", c.asked.Load()-before)
				}
			}
			c.blind.Store(false)
			feedKeys(t, brokers, keys)
			second.until(t, func(records int64, _ int) bool { return records == keys })
			second.stop()
			if err := second.wait(t); err != nil {
				t.Fatal(err)
			}
			wantCountedTwice(t, brokers, keys)
		})
	}
}
