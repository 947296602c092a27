package txn

import (
	"context"
	"errors"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
)

// ongoing returns how many transactions are open in the cluster.
func (r *rig) ongoing() int {
	r.t.Helper()
	txns, err := r.adm.ListTransactions(r.t.Context(), nil, []string{"Ongoing"})
	if err != nil {
		r.t.Fatal(err)
	}
	return len(txns)
}

// mute keeps the broker from answering requests of a kind: it closes the connection.
func (r *rig) mute(key kmsg.Key) *atomic.Int64 {
	var n atomic.Int64
	r.c.ControlKey(int16(key), func(kmsg.Request) (kmsg.Response, error, bool) {
		r.c.KeepControl()
		n.Add(1)
		return nil, errors.New("muted"), true
	})
	return &n
}

// TestAbortGoesByWhetherTheCommitWasTried lets commits fail in each of their steps.
func TestAbortGoesByWhetherTheCommitWasTried(t *testing.T) {
	// cancelled gives the commit up once it is at a request that is not answered.
	cancelled := func(key kmsg.Key) func(*rig, *worker) error {
		return func(r *rig, w *worker) error {
			asked := r.mute(key)
			ctx, cancel := context.WithCancel(r.t.Context())
			defer cancel()
			go func() {
				for asked.Load() == 0 && ctx.Err() == nil {
					time.Sleep(time.Millisecond) // virtual
				}
				cancel()
			}()
			return w.Commit(ctx, w.checkpoint(1))
		}
	}
	refused := func(err *kerr.Error) func(*rig, *worker) error {
		return func(r *rig, w *worker) error {
			r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: err, Count: -1})
			return w.commit(1)
		}
	}
	older := []kfake.Opt{kfake.MaxVersions(kversion.V3_9_0())}
	for name, c := range map[string]struct {
		fail   func(*rig, *worker) error
		broker []kfake.Opt
		open   int
	}{
		"a record is too large": {fail: func(r *rig, w *worker) error {
			w.Produce(&kgo.Record{Topic: outTopic, Value: []byte(strings.Repeat("x", 2<<20))})
			return w.commit(1)
		}},
		"a record is too large, transaction version 1": {broker: older, fail: func(r *rig, w *worker) error {
			w.Produce(&kgo.Record{Topic: outTopic, Value: []byte(strings.Repeat("x", 2<<20))})
			return w.commit(1)
		}},
		"the caller gives up while offsets are committed": {fail: cancelled(kmsg.TxnOffsetCommit)},
		"the offsets are refused":                         {fail: refused(kerr.OffsetMetadataTooLarge)},
		"the offsets are refused, transaction version 1":  {broker: older, fail: refused(kerr.OffsetMetadataTooLarge)},
		"out of time": {fail: refused(kerr.IllegalGeneration)},

		// They may come after the end of the transaction, and would be taken.
		"the caller gives up while offsets are committed, transaction version 1": {broker: older, fail: cancelled(kmsg.TxnOffsetCommit), open: 1},
		"the caller gives up while the transaction ends":                         {fail: cancelled(kmsg.EndTxn), open: 1},
		"others took over":           {fail: refused(kerr.FencedInstanceID), open: 1},
		"the group took us for gone": {fail: refused(kerr.UnknownMemberID), open: 1},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.feed(0, 2)
				w := r.start("a").up()
				w.take(2)
				if err := w.Client().Flush(t.Context()); err != nil {
					t.Fatal(err)
				}
				if n := r.ongoing(); n != 1 {
					t.Fatalf("%d transactions are open before", n)
				}
				if err := c.fail(r, w); err == nil || w.Err() == nil {
					t.Fatalf("commit: %v, session: %v", err, w.Err())
				}
				ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
				defer cancel()
				ends := r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.EndTxn}, Observe: true, Count: -1})
				if err := w.Abort(ctx); err != nil {
					t.Errorf("abort: %v", err)
				}
				if n := r.ongoing(); n != c.open {
					t.Errorf("%d transactions are open, want %d", n, c.open)
				}
				if c.open > 0 && ends.Hits() > 0 {
					t.Errorf("Abort sent EndTxn")
				}
				w.Close()
				r.want(outTopic)
				if got := r.groupOffsets(); len(got) > 0 {
					t.Errorf("offsets %v were committed", got)
				}
			}, c.broker...)
		})
	}
}
