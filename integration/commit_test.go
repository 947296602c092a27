package integration

import (
	"errors"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir/txn"
)

// TestS02_EndTxnAppliedAndEveryAnswerLost commits at the broker and loses what it
// says, until the service gives up and reads back. It does so in one process and
// across a kill.
func TestS02_EndTxnAppliedAndEveryAnswerLost(t *testing.T) {
	t.Parallel()
	addr := needBroker(t)
	px := startProxy(t, addr)
	w := newWorld(t, []string{addr}, 50)
	w.args = append(px.dialArgs(), "-transaction", "8s", "-restarts", "-1")
	w.feedOn(50, 10*time.Millisecond)
	p := w.launch()
	p.await("committed", 3, progressTime)

	var lost atomic.Int64
	again := p.count("restored")
	px.set(lose(&lost, kmsg.EndTxn))
	p.next("restarting", progressTime)
	px.set(func(exchange) fate { return relay })
	p.await("restored", again+1, progressTime)
	p.next("committed", progressTime)
	inProcess := lost.Load()

	lost.Store(0)
	px.set(lose(&lost, kmsg.EndTxn))
	eventually(t, progressTime, func() error {
		if lost.Load() == 0 {
			return errNotYet
		}
		return nil
	})
	p.killAtRandom(50 * time.Millisecond)
	px.set(func(exchange) fate { return relay })
	p = w.launch()
	p.next("committed", progressTime)
	w.quench()
	w.finish(p)
	t.Logf("lost %d answers of EndTxn before the service read back, %d before it was killed", inProcess, lost.Load())
}

// TestS10_FencedCommitRollsBackAndRestoresInTheSameProcess takes the transactional
// id away in the middle of a transaction.
func TestS10_FencedCommitRollsBackAndRestoresInTheSameProcess(t *testing.T) {
	t.Parallel()
	addr := needBroker(t)
	w := newWorld(t, []string{addr}, 50)
	w.args = []string{"-interval", "100ms"}
	w.feedOn(50, 10*time.Millisecond)
	p := w.launch()
	cl := w.producer()
	for i := range 3 {
		p.next("committed", progressTime)
		fencedSoFar, restored := p.count("fenced"), p.count("restored")
		w.fence(cl)
		fenced := p.await("fenced", fencedSoFar+1, progressTime)
		again := p.await("restored", restored+1, progressTime)
		p.next("committed", progressTime)
		t.Logf("fenced %d times: restored checkpoint %d %v later", i+1, again.Checkpoint, again.at.Sub(fenced.at).Round(time.Millisecond))
	}
	w.quench()
	w.finish(p) // the process that was fenced ends as asked
}

// fence takes the transactional id of instance "one" away.
func (w *world) fence(cl *kgo.Client) {
	w.t.Helper()
	req := kmsg.NewPtrInitProducerIDRequest()
	id := txn.TransactionalID(w.app, "one")
	req.TransactionalID, req.TransactionTimeoutMillis = &id, 60_000
	eventually(w.t, progressTime, func() error {
		resp, err := req.RequestWith(w.t.Context(), cl)
		if err == nil {
			err = kerr.ErrorForCode(resp.ErrorCode)
		}
		return err
	})
}

// TestS21_ConnectionsCutInBurstsAndThirtyPercentOfTheTime cuts the connection at the
// requests of a commit, before they arrive or before their answer does.
func TestS21_ConnectionsCutInBurstsAndThirtyPercentOfTheTime(t *testing.T) {
	t.Parallel()
	addr := needBroker(t)
	px := startProxy(t, addr)
	w := newWorld(t, []string{addr}, 50)
	w.args = append(px.dialArgs(), "-restarts", "-1")
	w.feedOn(30, 10*time.Millisecond)
	p := w.launch()
	p.await("committed", 2, progressTime)

	commit := []kmsg.Key{kmsg.Produce, kmsg.InitProducerID, kmsg.TxnOffsetCommit, kmsg.EndTxn}
	is := func(x exchange) bool {
		for _, k := range commit {
			if x.key == k {
				return true
			}
		}
		return false
	}
	var cuts atomic.Int64
	// The client waits twice as long after each try in a row, up to 5 s.
	const bursts, burst = 8, 4
	for i := range bursts {
		key := commit[i%len(commit)]
		var left atomic.Int64
		left.Store(burst)
		before := i%2 == 0 // the request is lost, else the answer
		px.set(func(x exchange) fate {
			if x.key == key && (x.answer == nil) == before && left.Add(-1) >= 0 {
				cuts.Add(1)
				return cut
			}
			return relay
		})
		p.next("committed", progressTime)
		p.next("committed", progressTime)
	}
	px.set(func(x exchange) fate {
		// An exchange is asked about twice: together 30 in 100 break.
		const each = 0.163
		if is(x) && rand.Float64() < each {
			cuts.Add(1)
			return cut
		}
		return relay
	})
	for range 10 {
		p.next("committed", progressTime)
	}
	px.set(func(exchange) fate { return relay })
	w.quench()
	w.finish(p)
	t.Logf("%d connections cut, %d restarts inside the process, %d commits", cuts.Load(), p.count("restarting"), p.count("committed"))
}

// TestS08_StoreFailsBetweenBarrierAndCommit takes the store away from a running
// service.
func TestS08_StoreFailsBetweenBarrierAndCommit(t *testing.T) {
	addr := needBroker(t)
	// The store is a link, which is turned round at one instant: the service makes a store
	// anew that it finds missing for a moment.
	turn := func(w *world, to string) {
		link := w.store + ".link"
		if err := errors.Join(os.Symlink(to, link), os.Rename(link, w.store)); err != nil {
			t.Fatal(err)
		}
	}
	bringBack := func(w *world) { turn(w, w.store+".there") }
	atHand := func(w *world) {
		if err := os.Mkdir(w.store+".there", 0o755); err != nil {
			t.Fatal(err)
		}
		bringBack(w)
	}
	takeAway := func(w *world) {
		gone := w.store + ".gone"
		if err := os.WriteFile(gone, []byte("not a directory"), 0o600); err != nil {
			t.Fatal(err)
		}
		turn(w, gone)
	}
	onEachBackend(t, "within what is tolerated the epoch goes on", func(t *testing.T, b backend) {
		t.Parallel()
		w := newWorld(t, []string{addr}, 50)
		atHand(w)
		w.args = append(w.at(b), "-tolerable", "1000000")
		w.feedOn(30, 10*time.Millisecond)
		p := w.launch()
		p.await("committed", 3, progressTime)
		failed, restarted := p.count("failed"), p.count("restarting") // a start has its own reasons
		takeAway(w)
		p.await("failed", failed+1, progressTime)
		committed := p.count("committed")
		p.await("failed", failed+6, progressTime)
		if n := p.count("committed"); n != committed {
			t.Fatalf("%d checkpoints were committed without a store", n-committed)
		}
		bringBack(w)
		p.next("committed", progressTime)
		if n := p.count("restarting") - restarted; n != 0 {
			t.Fatalf("restarted %d times, want none", n)
		}
		w.quench()
		w.finish(p)
	})
	onEachBackend(t, "one more than is tolerated stops the app", func(t *testing.T, b backend) {
		t.Parallel()
		const tolerable = 3
		w := newWorld(t, []string{addr}, 50)
		atHand(w)
		w.args = append(w.at(b), "-tolerable", "3")
		w.feedOn(30, 10*time.Millisecond)
		p := w.launch()
		p.await("committed", 3, progressTime)
		failed := p.count("failed")
		takeAway(w)
		p.refuses("put ", w.store, "a part of the path is a file")
		if n := p.count("failed") - failed; n != tolerable+1 {
			t.Fatalf("stopped after %d failed checkpoints, want %d", n, tolerable+1)
		}
		last := p.all("committed")
		bringBack(w)
		if m, _ := w.pointed(); m.Checkpoint != last[len(last)-1].Checkpoint {
			t.Fatalf("the offsets name checkpoint %d, the last one committed is %d", m.Checkpoint, last[len(last)-1].Checkpoint)
		}
		p = w.launch()
		p.next("committed", progressTime)
		w.quench()
		w.finish(p)
	})
}
