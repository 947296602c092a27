package integration

import (
	"errors"
	"fmt"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir/internal/crashpoint"
)

// TestS13_StaticMemberKilledAndRestartedCausesNoRebalance also says how long it is
// from exec to the first new committed output that a reader sees.
func TestS13_StaticMemberKilledAndRestartedCausesNoRebalance(t *testing.T) {
	// Not parallel: it measures.
	addr := needBroker(t)
	px := startProxy(t, addr)
	var generation, joins atomic.Int64
	px.set(func(x exchange) fate {
		if x.key == kmsg.JoinGroup && x.answer != nil {
			if g := joined(x); g > 0 {
				generation.Store(int64(g))
				joins.Add(1)
			}
		}
		return relay
	})
	w := newWorld(t, []string{addr}, 100)
	w.args = append(px.dialArgs(), "-interval", "20ms")
	w.feedOn(20, 10*time.Millisecond)
	p := w.launch()
	p.next("committed", progressTime)
	first := generation.Load()

	const restarts = 10
	var took []time.Duration
	for range restarts {
		p.next("committed", progressTime)
		p.killAtRandom(50 * time.Millisecond)
		before := joins.Load()
		seen := w.firstNewOutput()
		p = w.launch()
		took = append(took, (<-seen).Sub(p.begun))
		p.next("committed", progressTime)
		if joins.Load() == before {
			t.Fatal("the restarted member did not join")
		}
		if g := generation.Load(); g != first {
			t.Fatalf("generation %d after a restart, want %d still: there was a rebalance", g, first)
		}
	}
	slices.Sort(took)
	t.Logf("from exec to the first new committed output after SIGKILL: median %v, best %v, worst %v of %d; generation %d all the time",
		took[restarts/2].Round(time.Millisecond), took[0].Round(time.Millisecond), took[restarts-1].Round(time.Millisecond), restarts, first)
	w.quench()
	w.finish(p)
}

// firstNewOutput reads the output from its present end on, as a read_committed
// reader, and tells when the first record came.
func (w *world) firstNewOutput() <-chan time.Time {
	w.t.Helper()
	// Everything before the open transaction is old; what is in it gets aborted.
	ends, err := w.adm.ListEndOffsets(w.t.Context(), w.out)
	if err != nil {
		w.t.Fatal(err)
	}
	at := map[int32]kgo.Offset{}
	ends.Each(func(o kadm.ListedOffset) { at[o.Partition] = kgo.NewOffset().At(o.Offset) })
	cl := w.producer(kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{w.out: at}), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.FetchMaxWait(100*time.Millisecond))
	seen := make(chan time.Time, 1)
	go func() {
		defer close(seen)
		for {
			fs := cl.PollFetches(w.t.Context())
			if fs.NumRecords() > 0 {
				seen <- time.Now()
				return
			}
			if fs.IsClientClosed() || w.t.Context().Err() != nil {
				return
			}
		}
	}()
	return seen
}

// TestS11_InstanceKilledInItsFirstCommitIsFencedByTheNextOne kills an instance with offsets
// staged before it committed anything: no pointer names it, and its transaction may be open
// for ten minutes.
func TestS11_InstanceKilledInItsFirstCommitIsFencedByTheNextOne(t *testing.T) {
	t.Parallel()
	w := newWorld(t, []string{needBroker(t)}, 50)
	w.args = []string{"-session", "12s", "-transaction", "10m"}
	w.feedOn(30, 10*time.Millisecond)
	p := w.launch()
	p.await("committed", 2, progressTime)
	p.kill()
	p = w.launch("WEIR_INSTANCE_ID=two", fmt.Sprintf("%s=%s:1", crashEnv, crashpoint.AfterOffsets))
	p.diesOfItself(crashpoint.AfterOffsets, progressTime)
	p = w.launch("WEIR_INSTANCE_ID=three")
	p.await("committed", 2, progressTime)
	w.quench()
	w.finish(p)
}

// TestS15_SecondProcessWithTheSameInstanceIDIsTold starts a twin.
func TestS15_SecondProcessWithTheSameInstanceIDIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, []string{needBroker(t)}, 50)
	w.feedOn(30, 10*time.Millisecond)
	first := w.launch()
	first.await("committed", 2, progressTime)
	second := w.launch()

	// Which of them stops is the group's affair; that just one does is ours.
	var stopped, goesOn *process
	eventually(t, progressTime, func() error {
		for _, p := range []*process{first, second} {
			p.mu.Lock()
			over := p.over
			p.mu.Unlock()
			if over {
				stopped = p
			}
		}
		if stopped == nil {
			return errNotYet
		}
		return nil
	})
	goesOn = first
	if stopped == first {
		goesOn = second
	}
	said := stopped.refuses(`instance id "one"`, "WEIR_INSTANCE_ID", "another process")
	t.Logf("%s stopped:\n%s", stopped.name, said)
	for range 5 {
		goesOn.next("committed", progressTime)
	}
	w.quench()
	w.finish(goesOn)
}

// TestS16_IdleAndEmptyPartitionsTakePartAndMarkersCount reads a transactional input
// that ends with an aborted transaction, over partitions of which most are empty.
func TestS16_IdleAndEmptyPartitionsTakePartAndMarkersCount(t *testing.T) {
	t.Parallel()
	w := newWorld(t, []string{needBroker(t)}, 20)
	cl := w.producer(kgo.TransactionalID(w.app+"/feeder"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	// Partition 0 holds committed and aborted transactions, 1 only aborted ones, 2
	// and 3 nothing.
	transaction := func(n int, partitions []int32, end kgo.TransactionEndTry) {
		t.Helper()
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		var fs []fed
		for _, p := range partitions {
			if end == kgo.TryCommit {
				fs = w.make(n)
			} else {
				fs = make([]fed, n) // of no key that is ever counted
				for i := range fs {
					fs[i] = fed{key: "aborted", seq: int64(i), amount: 1}
				}
			}
			rs := make([]*kgo.Record, n)
			for i, f := range fs {
				rs[i] = f.record(w.in)
				rs[i].Partition = p
			}
			if err := cl.ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
				t.Fatal(err)
			}
			if end == kgo.TryCommit {
				for i, r := range rs {
					fs[i].partition, fs[i].offset = r.Partition, r.Offset
				}
				w.mu.Lock()
				w.fed = append(w.fed, fs...)
				w.mu.Unlock()
			}
		}
		// Nothing is buffered. But the client notes a moment after it sent them that there are
		// records to commit, and this waits for that.
		if err := cl.AbortBufferedRecords(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := cl.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	round := func() {
		transaction(100, []int32{0}, kgo.TryCommit)
		transaction(50, []int32{0, 1}, kgo.TryAbort)
		transaction(30, []int32{0}, kgo.TryCommit)
		transaction(10, []int32{0, 1}, kgo.TryAbort)
		w.decided() // a drain ends where readers can read to when it begins
	}
	round()

	// Drained compares positions: there is no last record to wait for.
	w.launch("-drain").exits(0)
	w.settle(progressTime)
	w.judge(newModel().take(w.input()...))
	got, err := w.adm.FetchOffsets(t.Context(), w.app)
	if err != nil {
		t.Fatal(err)
	}
	for p, records := range []int64{190 + 4, 60 + 2, 0, 0} { // with the markers
		o, ok := got.Lookup(w.in, int32(p))
		if !ok || o.At != records || o.Metadata == "" {
			t.Errorf("partition %d: committed %d with %d bytes of metadata, want %d with a pointer", p, o.At, len(o.Metadata), records)
		}
	}
	w.launch("-drain").exits(0) // nothing to do

	round()
	p := w.launch()
	p.await("committed", 1, progressTime)
	p.killAtRandom(50 * time.Millisecond)
	round()
	w.launch("-drain").exits(0)
	w.decided()
	if err := w.behind(); err != nil {
		t.Fatalf("drained, but %v", err)
	}
	w.judge(newModel().take(w.input()...))
	w.quiet()
}

// TestS18_OffsetsMovedOrForgottenAreRefusedWithWaysOn moves and deletes the committed
// offsets while the service is down.
func TestS18_OffsetsMovedOrForgottenAreRefusedWithWaysOn(t *testing.T) {
	addr := needBroker(t)
	// begin makes a world that is settled and stopped, with more input than processed.
	begin := func(t *testing.T) *world {
		t.Parallel()
		w := newWorld(t, []string{addr}, 20)
		w.args = []string{"-session", "20s"} // so long is a member there whose goodbye was lost
		w.feedNow(500)
		p := w.launch()
		w.settleWith(p)
		p.stop()
		return w
	}
	// move commits another offset for a partition, as the broker's tools do.
	move := func(w *world, partition int32, by int64, keepMetadata bool) int64 {
		got, err := w.adm.FetchOffsets(w.t.Context(), w.app)
		if err != nil {
			w.t.Fatal(err)
		}
		o, _ := got.Lookup(w.in, partition)
		if o.At+by < 0 {
			w.t.Fatalf("partition %d: committed %d, too few records to go back by %d", partition, o.At, -by)
		}
		moved := kadm.Offset{Topic: w.in, Partition: partition, At: o.At + by, LeaderEpoch: -1}
		if keepMetadata {
			moved.Metadata = o.Metadata
		}
		eventually(w.t, progressTime, func() error { // the group may have a member for a while
			resp, err := w.adm.CommitOffsets(w.t.Context(), w.app, offsetsOf(moved))
			return errors.Join(err, resp.Error())
		})
		return moved.At
	}

	t.Run("reset by hand, on with the checkpoint", func(t *testing.T) {
		w := begin(t)
		move(w, 1, -5, false)
		w.feedNow(100)
		p := w.launch()
		said := p.refuses(w.in+"/1", "reset by hand", "WEIR_RECOVER", "checkpoint", "offsets", "nothing")
		t.Log(said)
		w.finish(w.launch("WEIR_RECOVER=checkpoint"))
	})
	t.Run("moved with its pointer, on with the offsets", func(t *testing.T) {
		w := begin(t)
		const back = 7
		at := move(w, 2, -back, true)
		input := w.input()
		w.feedNow(100)
		p := w.launch()
		said := p.refuses(w.in+"/2", "moved by hand", fmt.Sprint(at), "WEIR_RECOVER")
		t.Log(said)
		p = w.launch("WEIR_RECOVER=offsets")
		w.settleWith(p)
		p.stop()
		// As asked: the last records of the partition count again.
		m := newModel().take(input...)
		var again []fed
		for _, f := range input {
			if f.partition == 2 && f.offset >= at {
				again = append(again, f)
			}
		}
		if len(again) != back {
			t.Fatalf("%d records behind offset %d, want %d", len(again), at, back)
		}
		m.take(again...)
		m.take(w.since(input)...)
		w.judge(m)
		w.quiet()
	})
	t.Run("group deleted, on with the checkpoint", func(t *testing.T) {
		w := begin(t)
		w.deleteGroup()
		w.feedNow(100)
		p := w.launch()
		said := p.refuses("group", w.app, w.app+"-checkpoints", "deleted", "WEIR_RECOVER=checkpoint", "WEIR_RECOVER=nothing")
		t.Log(said)
		w.finish(w.launch("WEIR_RECOVER=checkpoint"))
	})
	t.Run("group deleted, on with nothing", func(t *testing.T) {
		w := begin(t)
		before := w.input()
		w.deleteGroup()
		w.feedNow(100)
		w.launch().refuses("WEIR_RECOVER=nothing")
		p := w.launch("WEIR_RECOVER=nothing")
		w.settleWith(p)
		p.stop()
		// As asked: everything from the beginning, with empty state.
		m := newModel().take(before...)
		m.tallies = map[string][3]int64{}
		w.judge(m.take(w.input()...))
		w.quiet()
		// From here on the flag has no effect.
		w.feedNow(100)
		p = w.launch("WEIR_RECOVER=nothing")
		w.settleWith(p)
		p.stop()
		m = newModel().take(before...)
		m.tallies = map[string][3]int64{}
		w.judge(m.take(w.input()...))
		w.quiet()
	})
}

// offsetsOf is a set of one offset.
func offsetsOf(o kadm.Offset) kadm.Offsets {
	var os kadm.Offsets
	os.Add(o)
	return os
}

// since is the input without what old has.
func (w *world) since(old []fed) []fed {
	had := map[string]bool{}
	at := func(f fed) string { return fmt.Sprintf("%d@%d", f.partition, f.offset) }
	for _, f := range old {
		had[at(f)] = true
	}
	return slices.DeleteFunc(w.input(), func(f fed) bool { return had[at(f)] })
}

func (w *world) deleteGroup() {
	w.t.Helper()
	eventually(w.t, progressTime, func() error {
		resp, err := w.adm.DeleteGroups(w.t.Context(), w.app)
		if err == nil {
			err = resp.Error()
		}
		if err != nil {
			return err
		}
		return nil
	})
}
