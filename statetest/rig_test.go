package statetest_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/goleak"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/state/pebble"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// deadline bounds every wait in these tests.
const deadline = 60 * time.Second

// broker starts an embedded broker with topics of that many partitions. It allows short
// sessions, whose members hear soon that they have to rejoin. It throws nobody out: a machine
// that stands still for a session does not make the members' heartbeats come in time.
func broker(t *testing.T, partitions int32, topics ...string) []string {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.GroupMinSessionTimeout(time.Second), kfake.SeedTopics(partitions, topics...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	c.ControlKey(int16(kmsg.JoinGroup), func(r kmsg.Request) (kmsg.Response, error, bool) {
		c.KeepControl()
		r.(*kmsg.JoinGroupRequest).SessionTimeoutMillis = int32((5 * time.Minute).Milliseconds())
		return nil, nil, false
	})
	return c.ListenAddrs()
}

func client(t *testing.T, brokers []string, opts ...kgo.Opt) *kgo.Client {
	t.Helper()
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(brokers...))...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return cl
}

// record is an input record; its partition follows from its key.
func record(topic, key, value string) *kgo.Record {
	return &kgo.Record{Topic: topic, Key: []byte(key), Value: []byte(value)}
}

func produce(t *testing.T, brokers []string, rs ...*kgo.Record) {
	t.Helper()
	if err := client(t, brokers).ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// pairs makes records of "key:value" texts.
func pairs(topic string, texts ...string) []*kgo.Record {
	var rs []*kgo.Record
	for _, text := range texts {
		k, v, _ := strings.Cut(text, ":")
		rs = append(rs, record(topic, k, v))
	}
	return rs
}

// committed returns all that a read_committed reader sees in a topic, up to its end as it
// is now: the values by key, in the order of the partition that the key is in.
func committed(t *testing.T, brokers []string, topic string) map[string][]string {
	t.Helper()
	cl := client(t, brokers, kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.KeepControlRecords())
	ctx, cancel := context.WithTimeout(t.Context(), deadline)
	defer cancel()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	m := map[string][]string{}
	for len(left) > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatalf("topic %s, %v left: %v", topic, left, err)
		}
		for _, r := range fs.Records() {
			if !r.Attrs.IsControl() {
				m[string(r.Key)] = append(m[string(r.Key)], string(r.Value))
			}
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
		}
	}
	return m
}

// life is one run of an app.
type life struct {
	brokers  []string
	topology func(*weir.App)
	store    checkpoint.Store
	backend  pebble.Backend
	opts     []weir.Option

	app  *weir.App
	stop context.CancelFunc
	done chan struct{}
	err  error // after done

	mu       sync.Mutex
	records  int64 // of input, in committed checkpoints
	commits  int
	flown    int64 // records in flight, in persisted checkpoints
	restored event.Restored
	changed  chan struct{} // capacity 1
}

const appName = "statetest"

// tell wakes who waits for something of the app.
func (l *life) tell() {
	select {
	case l.changed <- struct{}{}:
	default:
	}
}

// start runs the app until the test ends or stop is called.
func (l *life) start(t *testing.T) {
	t.Helper()
	l.done, l.changed = make(chan struct{}), make(chan struct{}, 1)
	l.app = weir.New(appName, append([]weir.Option{
		weir.Brokers(l.brokers...), weir.InstanceID("a"), weir.Store(l.store), weir.StateBackend(l.backend),
		weir.Parallelism(2), weir.CheckpointEvery(10 * time.Millisecond), weir.MergeFanIn(16), // merges within dozens of checkpoints
		weir.Listen(weir.Listener{
			Restored:            func(i event.Restored) { l.mu.Lock(); l.restored = i; l.mu.Unlock(); l.tell() },
			CheckpointPersisted: func(i event.CheckpointPersisted) { l.mu.Lock(); l.flown += i.InFlight; l.mu.Unlock() },
			CheckpointCommitted: func(i event.CheckpointCommitted) {
				l.mu.Lock()
				l.records += i.Records
				l.commits++
				l.mu.Unlock()
				l.tell()
			},
		})}, l.opts...)...)
	l.topology(l.app)
	ctx, cancel := context.WithCancel(context.Background())
	l.stop = cancel
	go func() {
		defer close(l.done)
		l.err = l.app.Run(ctx)
	}()
	t.Cleanup(func() { cancel(); <-l.done })
}

// wait returns what Run returned.
func (l *life) wait(t *testing.T) error {
	t.Helper()
	select {
	case <-l.done:
		return l.err
	case <-time.After(deadline):
		t.Fatal("the app still runs")
		return nil
	}
}

// until waits until what is committed and restored satisfies ok, which is called with l.mu
// held.
func (l *life) until(t *testing.T, ok func(records int64, commits int) bool) {
	t.Helper()
	timeout := time.After(deadline)
	for {
		l.mu.Lock()
		enough := ok(l.records, l.commits)
		l.mu.Unlock()
		if enough {
			return
		}
		select {
		case <-l.changed:
		case <-l.done:
			t.Fatalf("the app ended: %v", l.err)
		case <-timeout:
			t.Fatalf("%d records in %d commits", l.records, l.commits)
		}
	}
}

// endOr waits until the app ends, or else stops it when the records that are committed
// satisfy ok. It returns what Run returned.
func (l *life) endOr(t *testing.T, ok func(records int64) bool) error {
	t.Helper()
	timeout := time.After(deadline)
	for {
		l.mu.Lock()
		enough := ok(l.records)
		l.mu.Unlock()
		if enough {
			l.stop()
			return l.wait(t)
		}
		select {
		case <-l.changed:
		case <-l.done:
			return l.err
		case <-timeout:
			t.Fatalf("%d records in %d commits", l.records, l.commits)
		}
	}
}

// drain runs the app over what is in its input and returns what Run returned.
func (l *life) drain(t *testing.T) error {
	t.Helper()
	l.opts = append(l.opts, weir.Drain())
	l.start(t)
	return l.wait(t)
}

func (l *life) mustDrain(t *testing.T) {
	t.Helper()
	if err := l.drain(t); err != nil {
		t.Fatal(err)
	}
}

// leave takes instance a out of the group. A start that was refused, or whose goodbye came too
// late, leaves its static member until the session is over.
func leave(t *testing.T, adm *kadm.Client) {
	t.Helper()
	if _, err := adm.LeaveGroup(t.Context(), kadm.LeaveGroup(appName).InstanceIDs("a")); err != nil {
		t.Fatal(err)
	}
}

// forget deletes all that Kafka knows of the app, as for one that starts elsewhere.
func forget(t *testing.T, brokers []string) {
	t.Helper()
	adm := kadm.NewClient(client(t, brokers))
	leave(t, adm)
	if r, err := adm.DeleteGroup(t.Context(), appName); err != nil || r.Err != nil {
		t.Fatal(err, r.Err)
	}
	if r, err := adm.DeleteTopics(t.Context(), appName+"-checkpoints"); err != nil || r.Error() != nil {
		t.Fatal(err, r.Error())
	}
}

// open finds a snapshot, by default the newest checkpoint.
func open(t *testing.T, store checkpoint.Store, which string) *offline.Snapshot {
	t.Helper()
	s, err := offline.Open(t.Context(), store, which)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// wantError checks that err says all of texts.
func wantError(t *testing.T, err error, texts ...string) {
	t.Helper()
	if err == nil {
		t.Fatal("no error")
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the error lacks %q:\n%v", text, err)
		}
	}
}

func newDir(t *testing.T) (string, checkpoint.Store) {
	t.Helper()
	dir := t.TempDir()
	store, err := checkpoint.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	return dir, store
}
