package txn

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/goleak"

	"github.com/weirstream/weir/offsets"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	testApp     = "app"
	testGroup   = "app-group"
	inTopic     = "in"
	outTopic    = "out"
	commitTopic = "app-checkpoints"
)

// rig is a fake broker on a virtual network, in a bubble of virtual time: no test
// waits for real seconds, and none ends with a goroutine left.
type rig struct {
	t   *testing.T
	c   *kfake.Cluster
	net *kfake.VirtualNetwork
	cl  *kgo.Client // plain
	adm *kadm.Client
}

// inBubble runs f with a rig whose input topic has two partitions.
func inBubble(t *testing.T, f func(t *testing.T, r *rig), opts ...kfake.Opt) {
	t.Helper()
	inBubbleAs(t, nil, f, opts...)
}

// inBubbleAs is inBubble for a rig that has to say who it is.
func inBubbleAs(t *testing.T, as []kgo.Opt, f func(t *testing.T, r *rig), opts ...kfake.Opt) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		r := &rig{t: t, net: &kfake.VirtualNetwork{}}
		ports := []int{9092}
		base := []kfake.Opt{
			kfake.ListenFn(r.net.Listen), kfake.Ports(ports...),
			kfake.SeedTopics(2, inTopic), kfake.SeedTopics(1, outTopic),
		}
		c, err := kfake.NewCluster(append(base, opts...)...)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(c.Close)
		r.c = c
		r.cl = r.plain(as...)
		r.adm = kadm.NewClient(r.cl)
		if err := EnsureCommitTopic(t.Context(), r.adm, commitTopic, -1); err != nil {
			t.Fatal(err)
		}
		f(t, r)
	})
}

func (r *rig) opts() []kgo.Opt {
	return []kgo.Opt{
		kgo.SeedBrokers(r.c.ListenAddrs()...), kgo.Dialer(r.net.DialContext),
		kgo.FetchMaxWait(100 * time.Millisecond), kgo.DisableClientMetrics(),
	}
}

func (r *rig) plain(opts ...kgo.Opt) *kgo.Client {
	r.t.Helper()
	cl, err := kgo.NewClient(append(r.opts(), opts...)...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(cl.Close)
	return cl
}

// feed writes n numbered records to the input, in turn to its partitions.
func (r *rig) feed(from, n int) {
	r.t.Helper()
	for i := from; i < from+n; i++ {
		rec := &kgo.Record{Topic: inTopic, Value: fmt.Appendf(nil, "%d", i), Partition: int32(i % 2)}
		cl := r.plainManual()
		if err := cl.ProduceSync(r.t.Context(), rec).FirstErr(); err != nil {
			r.t.Fatal(err)
		}
		cl.Close()
	}
}

func (r *rig) plainManual() *kgo.Client {
	cl, err := kgo.NewClient(append(r.opts(), kgo.RecordPartitioner(kgo.ManualPartitioner()))...)
	if err != nil {
		r.t.Fatal(err)
	}
	return cl
}

// committed returns the values that a read_committed reader finds in topic now.
func (r *rig) committed(topic string) []string {
	r.t.Helper()
	ends, err := r.adm.ListCommittedOffsets(r.t.Context(), topic)
	if err != nil {
		r.t.Fatal(err)
	}
	end, _ := ends.Lookup(topic, 0)
	if end.Offset == 0 {
		return nil
	}
	cl := r.plain(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{topic: {0: kgo.NewOffset().AtStart()}}))
	defer cl.Close()
	var got []string
	for next := int64(0); next < end.Offset; {
		fetches := cl.PollFetches(r.t.Context())
		if err := fetches.Err(); err != nil {
			r.t.Fatal(err)
		}
		fetches.EachRecord(func(rec *kgo.Record) {
			next = rec.Offset + 1
			if !rec.Attrs.IsControl() {
				got = append(got, string(rec.Value))
			}
		})
	}
	slices.Sort(got)
	return got
}

// groupOffsets returns the committed offsets of the group, stable or not.
func (r *rig) groupOffsets() map[offsets.Partition]int64 {
	r.t.Helper()
	resp, err := r.adm.FetchOffsets(r.t.Context(), testGroup)
	if err != nil {
		r.t.Fatal(err)
	}
	m := map[offsets.Partition]int64{}
	resp.Each(func(o kadm.OffsetResponse) {
		m[offsets.Partition{Topic: o.Topic, Partition: o.Partition}] = o.At
	})
	return m
}

// worker drives a session as the runtime would: it copies in to out.
type worker struct {
	*Session
	r        *rig
	instance string

	mu        sync.Mutex
	at        map[offsets.Partition]offsets.Position
	committed map[offsets.Partition]offsets.Committed // of all restores
	lostParts []offsets.Partition
	revoked   []offsets.Partition
	restores  int

	restored  chan struct{} // one per Restore
	onRestore func(ctx context.Context, c map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Position, error)
	onRevoke  func(parts []offsets.Partition)
	infos     []UnstableInfo
}

func (w *worker) Restore(ctx context.Context, c map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Position, error) {
	var starts map[offsets.Partition]offsets.Position
	if w.onRestore != nil {
		var err error
		if starts, err = w.onRestore(ctx, c); err != nil {
			return nil, err
		}
	}
	w.mu.Lock()
	maps.Copy(w.committed, c)
	w.restores++
	for p, cm := range c {
		if cm.Exists {
			w.at[p] = cm.Position
		} else {
			w.at[p] = offsets.Position{LeaderEpoch: -1}
		}
	}
	maps.Copy(w.at, starts)
	w.mu.Unlock()
	w.restored <- struct{}{}
	return starts, nil
}

func (w *worker) Revoke(_ context.Context, parts []offsets.Partition) {
	if w.onRevoke != nil {
		w.onRevoke(parts)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.revoked = append(w.revoked, parts...)
	for _, p := range parts {
		delete(w.at, p)
	}
}

func (w *worker) Lost(parts []offsets.Partition) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lostParts = append(w.lostParts, parts...)
}

type setup func(*Config, *worker)

func (r *rig) start(instance string, with ...setup) *worker {
	r.t.Helper()
	w := &worker{
		r: r, instance: instance, restored: make(chan struct{}, 100),
		at: map[offsets.Partition]offsets.Position{}, committed: map[offsets.Partition]offsets.Committed{},
	}
	cfg := Config{
		App: testApp, Group: testGroup, Instance: instance, Topics: []string{inTopic}, CommitTopic: commitTopic,
		Opts: r.opts(), TransactionTimeout: 20 * time.Second, SessionTimeout: 10 * time.Second, HeartbeatInterval: time.Second,
	}
	cfg.Events.Unstable = func(i UnstableInfo) {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.infos = append(w.infos, i)
	}
	for _, f := range with {
		f(&cfg, w)
	}
	s, err := Open(r.t.Context(), cfg, w)
	if err != nil {
		r.t.Fatal(err)
	}
	w.Session = s
	r.t.Cleanup(s.Close)
	return w
}

// up waits until w restored partitions.
func (w *worker) up() *worker {
	w.r.t.Helper()
	select {
	case <-w.restored:
	case <-w.Failed():
		w.r.t.Fatalf("%s failed instead of restoring: %v", w.instance, w.Err())
	case <-time.After(5 * time.Minute):
		w.r.t.Fatalf("%s restored nothing", w.instance)
	}
	return w
}

// take polls n records and copies them to the output.
func (w *worker) take(n int) {
	w.r.t.Helper()
	ctx, cancel := context.WithTimeout(w.r.t.Context(), time.Minute)
	defer cancel()
	for n > 0 {
		n -= w.takeFetches(w.Client().PollRecords(ctx, n))
	}
}

// takeFetches copies what was polled and returns how many records there were.
func (w *worker) takeFetches(fetches kgo.Fetches) (n int) {
	w.r.t.Helper()
	if err := fetches.Err(); err != nil {
		w.r.t.Fatalf("%s polls: %v", w.instance, err)
	}
	fetches.EachRecord(func(rec *kgo.Record) {
		w.mu.Lock()
		w.at[offsets.Partition{Topic: rec.Topic, Partition: rec.Partition}] = offsets.Position{Offset: rec.Offset + 1, LeaderEpoch: rec.LeaderEpoch}
		w.mu.Unlock()
		if rec.Attrs.IsControl() {
			return
		}
		n++
		w.Produce(&kgo.Record{Topic: outTopic, Value: rec.Value})
	})
	return n
}

// told returns how often the handler was told that partitions go.
func (w *worker) told() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.lostParts) + len(w.revoked)
}

func (w *worker) checkpoint(n int64) Commit {
	w.mu.Lock()
	defer w.mu.Unlock()
	return Commit{Manifest: offsets.ManifestRef{Checkpoint: n, Incarnation: 1}, Positions: maps.Clone(w.at)}
}

func (w *worker) commit(n int64) error { return w.Commit(w.r.t.Context(), w.checkpoint(n)) }

func (w *worker) mustCommit(n int64) {
	w.r.t.Helper()
	if err := w.commit(n); err != nil {
		w.r.t.Fatalf("%s commits %d: %v", w.instance, n, err)
	}
}

// stage does all of a commit but its end: what a kill between TxnOffsetCommit and
// EndTxn leaves behind.
func (w *worker) stage(n int64) {
	w.r.t.Helper()
	c := w.checkpoint(n)
	if err := w.flush(w.r.t.Context(), c); err != nil {
		w.r.t.Fatal(err)
	}
	if _, err := w.commitOffsets(w.r.t.Context(), c); err != nil {
		w.r.t.Fatal(err)
	}
}

// die ends the client without a word to anybody, as kill -9 does.
func (w *worker) die() {
	w.goneOnce.Do(func() { close(w.gone) })
	w.cancel()
	w.clCancel()
	w.Close()
}

func (r *rig) want(topic string, want ...string) {
	r.t.Helper()
	if got := r.committed(topic); !slices.Equal(got, want) {
		r.t.Errorf("%s holds %q, want %q", topic, got, want)
	}
}

func (r *rig) wantOffsets(p0, p1 int64) {
	r.t.Helper()
	want := map[offsets.Partition]int64{{Topic: inTopic, Partition: 0}: p0, {Topic: inTopic, Partition: 1}: p1}
	if got := r.groupOffsets(); !maps.Equal(got, want) {
		r.t.Errorf("committed offsets %v, want %v", got, want)
	}
}
