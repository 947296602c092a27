//go:build weirbroken

package txn

import (
	"testing"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir/internal/cutafter"
	"github.com/weirstream/weir/internal/guard"
)

// These tests show what each guard prevents: with it taken out, data is doubled or
// lost.

func takeOut(t *testing.T, g guard.Guard) {
	guard.Break(g)
	t.Cleanup(func() { guard.Break("") })
}

func TestWithoutReadBackOutputsAreDoubled(t *testing.T) {
	takeOut(t, guard.ReadBack)
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		// As many answers are lost as the client sends the request.
		cut := cutafter.New(r.net.DialContext, kmsg.EndTxn)
		cut.Lose(2)
		w := r.start("a", func(c *Config, _ *worker) { c.Opts = append(c.Opts, kgo.Dialer(cut.Dial), kgo.RequestRetries(1)) }).up()
		w.take(2)
		w.mustCommit(1)
		if cut.Lost() != 2 {
			t.Fatal("the answers weren't lost")
		}
		r.want(outTopic, "0", "0", "1", "1")
	})
}

func TestWithoutTheCommitRecordTheNextCommitPublishesStagedOffsets(t *testing.T) {
	takeOut(t, guard.CommitRecord)
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		w := r.start("a").up()
		c := w.checkpoint(1)
		for p, pos := range c.Positions {
			pos.Offset = 1
			c.Positions[p] = pos
		}
		if err := w.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		if got := r.groupOffsets(); len(got) != 0 {
			t.Fatalf("the commit said done and published %v: the guard isn't out", got)
		}
		if got, err := w.unstable(t.Context(), w.Owned()); err != nil || len(got) != 2 {
			t.Errorf("undecided after a commit that said done: %v, %v", got, err)
		}
	})
}

func TestWithTheLostFlagReadFirstALateCommitGoesThrough(t *testing.T) {
	takeOut(t, guard.LostAfterMember)
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		w := r.start("a", nextGen).up()
		w.take(2)
		_, before := w.Client().GroupMetadata()
		w.betweenChecks = func() {
			w.betweenChecks = nil
			r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ConsumerGroupHeartbeat}, Err: kerr.UnknownMemberID, TopLevel: true})
			waitFor(t, w.lost.Load)
			waitFor(t, func() bool { m, now := w.Client().GroupMetadata(); return m != "" && now > before })
		}
		if err := w.commit(1); err != nil {
			t.Fatalf("the late commit was refused, so this shows nothing: %v", err)
		}
		r.wantOffsets(1, 1)
	})
}
