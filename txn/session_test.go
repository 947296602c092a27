package txn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir/offsets"
)

func nextGen(c *Config, _ *worker)   { c.NextGen = true }
func oneActive(c *Config, _ *worker) { c.SingleActive = true }

func TestRestoreDecidesWhereFetchingStarts(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 6)
		w := r.start("a", func(_ *Config, w *worker) {
			w.onRestore = func(_ context.Context, c map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Position, error) {
				if len(c) != 2 {
					t.Errorf("restore of %v, want both partitions at once", c)
				}
				return map[offsets.Partition]offsets.Position{{Topic: inTopic, Partition: 0}: {Offset: 2, LeaderEpoch: -1}}, nil
			}
		}).up()
		w.take(4)
		w.mustCommit(1)
		r.want(outTopic, "1", "3", "4", "5")
	})
}

func TestIdlePartitionDoesNotHoldUpTheOthersAtStart(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		const patient = 30 * time.Second // far more than a start may take
		r.feed(0, 1)                     // partition 1 stays idle
		patiently := func(c *Config, w *worker) {
			c.Opts = append(c.Opts, kgo.FetchMaxWait(patient))
			w.onRestore = func(_ context.Context, c map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Position, error) {
				starts := map[offsets.Partition]offsets.Position{}
				for p, cm := range c {
					starts[p] = offsets.Position{LeaderEpoch: -1}
					if cm.Exists {
						starts[p] = cm.Position
					}
				}
				return starts, nil
			}
		}
		w := r.start("a", patiently).up()
		w.take(1)
		w.mustCommit(1)
		w.die()
		r.feed(2, 1)

		w = r.start("a", patiently).up()
		if e := w.at[offsets.Partition{Topic: inTopic, Partition: 0}].LeaderEpoch; e < 0 {
			t.Fatalf("leader epoch %d was committed for the busy partition: the test proves nothing", e)
		}
		begun := time.Now()
		w.take(1)
		if took := time.Since(begun); took > patient/10 {
			t.Errorf("the busy partition's record came after %v", took)
		}
		w.mustCommit(2)
		r.want(outTopic, "0", "2")
	})
}

// Whoever has restored may have nothing to do before its first checkpoint.
func TestCommitMayComeBeforeRestoreReturned(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		done, opened := make(chan error, 1), make(chan struct{})
		w := r.start("a", func(_ *Config, w *worker) {
			w.onRestore = func(_ context.Context, c map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Position, error) {
				w.mu.Lock()
				for p := range c {
					w.at[p] = offsets.Position{LeaderEpoch: -1}
				}
				w.mu.Unlock()
				<-opened
				done <- w.commit(1)
				return nil, nil
			}
		})
		close(opened)
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		w.up()
		r.wantOffsets(0, 0)
	})
}

func TestRestoreErrorFailsTheSession(t *testing.T) {
	boom := errors.New("manifest 7 is damaged")
	for name, err := range map[string]error{"own error": boom, "wrapped cancellation": errors.Join(boom, context.Canceled)} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				w := r.start("a", func(_ *Config, w *worker) {
					w.onRestore = func(context.Context, map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Position, error) {
						return nil, err
					}
				})
				select {
				case <-w.Failed():
				case <-time.After(time.Minute):
					t.Fatal("the session didn't fail")
				}
				if !errors.Is(w.Err(), boom) {
					t.Error(w.Err())
				}
				waitFor(t, func() bool { return w.told() > 0 })
				if len(w.revoked) > 0 {
					t.Errorf("asked for a last commit of %v, which were never restored", w.revoked)
				}
			})
		})
	}
}

func TestCloseCancelsARestore(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		running := make(chan struct{})
		w := r.start("a", func(_ *Config, w *worker) {
			w.onRestore = func(ctx context.Context, _ map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Position, error) {
				close(running)
				<-ctx.Done()
				return nil, ctx.Err()
			}
		})
		<-running
		w.Close()
		w.Close()
		if w.Err() != nil {
			t.Errorf("closing is no failure: %v", w.Err())
		}
	})
}

func TestCloseCancelsARevoke(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		running := make(chan struct{})
		var a *worker
		a = r.start("a", func(_ *Config, w *worker) {
			w.onRevoke = func([]offsets.Partition) {
				close(running)
				<-a.ctx.Done()
			}
		}).up()
		r.start("b")
		<-running
		a.Close()
	})
}

func TestCloseWithoutBrokersEndsSoon(t *testing.T) {
	for name, with := range map[string]setup{"classic": func(*Config, *worker) {}, "next generation": nextGen} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.feed(0, 2)
				w := r.start("a", with).up()
				w.take(2)
				r.c.Close()
				start := time.Now()
				w.Produce(&kgo.Record{Topic: outTopic})
				w.Close()
				if took := time.Since(start); took > 5*time.Second {
					t.Errorf("took %v", took)
				}
			})
		})
	}
}

func TestGroupPartitionIsJavasHash(t *testing.T) {
	for group, want := range map[string]int32{"test": 48, "hello": 22, "": 0} {
		if got := groupPartition(group, 50); got != want {
			t.Errorf("%q on partition %d, want %d", group, got, want)
		}
	}
}

func TestOrphanedTransactionIsNamedWithoutAnAbort(t *testing.T) {
	e := &UnstableError{Group: "g", Blocking: []BlockingTransaction{
		{TransactionalID: "app/a", ProducerID: 7, State: "CompleteCommit", Pending: true},
		{TransactionalID: "app/b", ProducerID: 8, State: "Ongoing", Pending: true},
	}}
	if !e.Blocking[0].Orphaned() || e.Blocking[1].Orphaned() {
		t.Error("only the decided one is orphaned")
	}
	for _, want := range []string{`"app/a", producer id 7, state "CompleteCommit": decided, but its markers were never written`, "KAFKA-20734", "do not run 'kafka-transactions abort'"} {
		if !strings.Contains(e.Error(), want) {
			t.Errorf("error doesn't say %q: %v", want, e)
		}
	}
}

func TestS16_PositionOfATransactionalInputCountsItsMarkers(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		p := r.plain(kgo.TransactionalID("upstream"), kgo.RecordPartitioner(kgo.ManualPartitioner()))
		if err := p.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := p.ProduceSync(t.Context(), &kgo.Record{Topic: inTopic, Value: []byte("x")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		if err := p.EndTransaction(t.Context(), kgo.TryCommit); err != nil {
			t.Fatal(err)
		}
		w := r.start("a").up()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for p0 := (offsets.Partition{Topic: inTopic}); w.at[p0].Offset < 2; {
			w.takeFetches(w.Client().PollFetches(ctx)) // fails when the time is up
		}
		w.mustCommit(1)
		r.want(outTopic, "x")
		r.wantOffsets(2, 0)
	})
}

func TestS14_RebalanceCancelsARestoreThatIsCalledAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		first := make(chan struct{}, 10)
		a := r.start("a", func(_ *Config, w *worker) {
			n := 0
			w.onRestore = func(ctx context.Context, _ map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Position, error) {
				if n++; n == 1 {
					first <- struct{}{}
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return nil, nil
			}
		})
		<-first
		b := r.start("b").up()
		a.up()
		waitFor(t, func() bool { return len(a.Owned()) == 1 && len(b.Owned()) == 1 })
		r.feed(0, 2)
		a.take(1)
		b.take(1)
		a.mustCommit(1)
		b.mustCommit(1)
		r.want(outTopic, "0", "1")
	})
}

func TestRevokeCommitsALastTime(t *testing.T) {
	for name, with := range map[string]setup{"classic": func(*Config, *worker) {}, "next generation": nextGen} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.feed(0, 4)
				a := r.start("a", with, func(_ *Config, w *worker) {
					w.onRevoke = func([]offsets.Partition) { w.mustCommit(1) }
				}).up()
				a.take(4)
				b := r.start("b", with).up()
				waitFor(t, func() bool { return len(a.Owned()) == 1 && len(b.Owned()) == 1 })
				for p, c := range b.committed {
					ptr, _ := offsets.ParsePointer(c.Metadata)
					if c.Offset != 2 || ptr.Instance != "a" {
						t.Errorf("%v handed over at %+v", p, c)
					}
				}
				if len(b.infos) > 0 {
					t.Errorf("a hand-over in good order fenced somebody: %v", b.infos)
				}
				r.feed(4, 2)
				a.take(1)
				b.take(1)
				a.mustCommit(2)
				b.mustCommit(2)
				r.want(outTopic, "0", "1", "2", "3", "4", "5")
				r.wantOffsets(3, 3)
			})
		})
	}
}

func TestS13_KilledStaticMemberComesBackWithoutWaiting(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		a := r.start("a").up()
		b := r.start("b").up()
		waitFor(t, func() bool { return len(a.Owned()) == 1 && len(b.Owned()) == 1 })
		restores := b.restores
		own := a.Owned()
		a.die()
		start := time.Now()
		a = r.start("a").up()
		if took := time.Since(start); took > time.Second {
			t.Errorf("took %v", took)
		}
		if !slices.Equal(a.Owned(), own) || b.restores != restores || len(b.revoked) != 0 {
			t.Errorf("a owned %v and now %v; b restored %d times more and gave up %v", own, a.Owned(), b.restores-restores, b.revoked)
		}
	})
}

func TestS15_SecondProcessWithTheSameInstanceIDStopsTheFirst(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		first := r.start("a").up()
		first.take(2)
		if err := first.Client().Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		second := r.start("a").up()
		select {
		case <-first.Failed():
		case <-time.After(time.Minute):
			t.Fatal("the first was told nothing")
		}
		e := asError(t, first.Err(), Fenced)
		if !errors.Is(e, kerr.FencedInstanceID) || !strings.Contains(e.Error(), `instance id "a"`) || !strings.Contains(e.Error(), "WEIR_INSTANCE_ID") {
			t.Errorf("the error doesn't name the instance id and the remedy: %v", e)
		}
		if err := first.commit(1); err == nil {
			t.Error("the first could commit")
		}
		second.take(2)
		second.mustCommit(1)
		r.want(outTopic, "0", "1")
	})
}

func TestGroupOfOtherConsumersIsNamed(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 1)
		other := r.plain(kgo.ConsumerGroup(testGroup), kgo.ConsumeTopics(inTopic))
		other.PollRecords(t.Context(), 1)
		w := r.start("a", oneActive)
		<-w.Failed()
		if err := w.Err(); !strings.Contains(err.Error(), "a group of its own") || strings.Contains(err.Error(), "silent") {
			t.Errorf("error %v", err)
		}
	})
}

func TestLeaveHandsOverAtOnce(t *testing.T) {
	for name, with := range map[string]setup{"classic": func(*Config, *worker) {}, "next generation": nextGen, "single active": oneActive} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.feed(0, 2)
				a := r.start("a", with).up()
				a.take(2)
				a.mustCommit(1)
				if err := a.Leave(t.Context()); err != nil {
					t.Fatal(err)
				}
				a.Close()
				start := time.Now()
				b := r.start("b", with).up()
				if took := time.Since(start); took > 3*time.Second {
					t.Errorf("b waited %v for the leaver", took)
				}
				if len(b.Owned()) != 2 || a.Err() != nil {
					t.Errorf("b owns %v, a %v", b.Owned(), a.Err())
				}
				r.wantOffsets(1, 1)
			})
		})
	}
}

func TestS11_PausedCommitterIsFencedByTheNewOwner(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 4)
		a := r.start("a", func(c *Config, _ *worker) { c.TransactionTimeout = 10 * time.Minute }).up()
		a.take(2)
		a.mustCommit(1)
		a.take(2)
		a.stage(2)
		// a stands still past its session: the group gives its partitions away while
		// its offsets are staged, and its transaction has minutes left.
		still := make(chan struct{})
		silence(r, "a", still)
		waitGone(t, r)
		start := time.Now()
		b := r.start("b", func(c *Config, _ *worker) { c.TransactionTimeout = 10 * time.Minute }).up()
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("b waited %v", took)
		}
		if len(b.infos) != 1 || !slices.Equal(b.infos[0].Fenced, []string{"app/a"}) || b.infos[0].Waited < fenceAfter {
			t.Errorf("fenced: %v", b.infos)
		}
		for p, c := range b.committed {
			if c.Exists && c.Offset != a.checkpoint(1).Positions[p].Offset && c.Offset > 2 {
				t.Errorf("%v restored at %+v", p, c)
			}
		}
		b.take(2)
		b.mustCommit(2)

		// a wakes and tries to finish.
		close(still)
		err := a.Client().EndTransaction(t.Context(), kgo.TryCommit)
		if err == nil {
			t.Error("the paused instance could commit")
		}
		r.want(outTopic, "0", "1", "2", "3")
		r.wantOffsets(2, 2)
	})
}

// pausedBeforeItsFirstCommit has instance a stop with offsets staged before it committed
// anything, so that no pointer names it, with a transaction that may be open for two minutes.
func pausedBeforeItsFirstCommit(t *testing.T, r *rig, with ...setup) {
	r.feed(0, 2)
	a := r.start("a", append(with, func(c *Config, _ *worker) { c.TransactionTimeout = 2 * time.Minute })...).up()
	a.take(2)
	a.stage(1)
	silence(r, "a", make(chan struct{}))
	waitGone(t, r)
}

func TestS11_CommitterThatNoPointerNamesIsFencedByTheNewOwner(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		pausedBeforeItsFirstCommit(t, r, oneActive)
		start := time.Now()
		b := r.start("b", oneActive).up()
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("b waited %v", took)
		}
		if len(b.infos) != 1 || !slices.Equal(b.infos[0].Fenced, []string{"app/a"}) {
			t.Errorf("fenced: %v", b.infos)
		}
		b.take(2)
		b.mustCommit(1)
	})
}

func TestFailedQuestionForOffsetsKeepsNobodyFromFencing(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		pausedBeforeItsFirstCommit(t, r, oneActive)
		r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Err: kerr.UnknownServerError})
		start := time.Now()
		b := r.start("b", oneActive).up()
		if took := time.Since(start); took > 3*time.Second {
			t.Errorf("b waited %v", took)
		}
		if len(b.infos) != 1 || b.infos[0].Waited > 2*fenceAfter {
			t.Errorf("fenced: %v", b.infos)
		}
	})
}

// A broker that died with the instance is not there, or is not ready, when its transaction
// is to be ended.
func TestBrokerThatIsNotReadyPutsFencingOff(t *testing.T) {
	for name, fault := range map[string]kfake.Fault{
		"asked for transactions":  {Keys: []kmsg.Key{kmsg.ListTransactions}, Err: kerr.CoordinatorLoadInProgress},
		"asked for a transaction": {Keys: []kmsg.Key{kmsg.DescribeTransactions}, Err: kerr.CoordinatorNotAvailable},
		"told to end it":          {Keys: []kmsg.Key{kmsg.InitProducerID}, TxnID: TransactionalID(testApp, "a"), Err: kerr.CoordinatorLoadInProgress},
	} {
		for _, down := range []time.Duration{time.Second, 20 * time.Second, time.Minute} { // the client has patience of its own
			t.Run(fmt.Sprintf("%s, %v", name, down), func(t *testing.T) {
				inBubble(t, func(t *testing.T, r *rig) {
					pausedBeforeItsFirstCommit(t, r, oneActive)
					fault.Count = -1
					h := r.c.Fault(fault)
					start := time.Now()
					time.AfterFunc(down+fenceAfter, h.Remove)
					b := r.start("b", oneActive).up()
					if h.Hits() == 0 {
						t.Error("nobody asked")
					}
					if took := time.Since(start); took > down+8*time.Second {
						t.Errorf("b waited %v", took)
					}
					b.take(2)
					b.mustCommit(1)
					fenced := 0
					for _, i := range b.infos {
						fenced += len(i.Fenced)
					}
					if fenced != 1 || len(b.infos) > 2 {
						t.Errorf("told %v, want that app/a was fenced, once", b.infos)
					}
				})
			})
		}
	}
}

func TestWhoWasFencedIsNotFencedAgainForOthersThatCouldNotBe(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		a := r.start("a", oneActive).up()
		a.take(2)
		a.mustCommit(1)
		a.Close() // a member for 10 s more
		undecided := r.c.Fault(kfake.Fault{
			Keys: []kmsg.Key{kmsg.OffsetFetch}, Topic: inTopic, Err: kerr.UnstableOffsetCommit, Count: -1,
			When: func(req kmsg.Request) bool { return req.(*kmsg.OffsetFetchRequest).RequireStable },
		})
		list := r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListTransactions}, Err: kerr.CoordinatorLoadInProgress, Count: -1})
		fences := r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, TxnID: TransactionalID(testApp, "a"), Observe: true, Count: -1})
		time.AfterFunc(20*time.Second, list.Remove)
		time.AfterFunc(25*time.Second, undecided.Remove)
		r.start("b", oneActive).up()
		if list.Hits() < 2 || fences.Hits() != 1 {
			t.Errorf("asked for open transactions %d times in vain, and fenced a %d times; want several, and once", list.Hits(), fences.Hits())
		}
	})
}

func TestSlowBrokerKeepsNobodyFromFencing(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		pausedBeforeItsFirstCommit(t, r, oneActive)
		const slow = stableWait + time.Second
		var over atomic.Bool
		r.c.ControlKey(int16(kmsg.OffsetFetch), func(kmsg.Request) (kmsg.Response, error, bool) {
			if !over.Load() {
				r.c.SleepControl(func() { time.Sleep(slow) })
			}
			return nil, nil, false
		})
		// A broker that is closed while a request wakes up in it may never end.
		defer time.Sleep(2 * slow)
		defer over.Store(true)
		start := time.Now()
		b := r.start("b", oneActive).up()
		if took := time.Since(start); took > 30*time.Second {
			t.Errorf("b waited %v", took)
		}
		if len(b.infos) != 1 {
			t.Errorf("fenced: %v", b.infos)
		}
	})
}

// Without one active instance, the open transactions of others are none of our business.
func TestTransactionOfAnInstanceWithALongerTimeoutIsWaitedFor(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		pausedBeforeItsFirstCommit(t, r)
		b := r.start("b").up()
		if len(b.infos) != 1 || len(b.infos[0].Fenced) != 0 {
			t.Errorf("fenced: %v", b.infos)
		}
		b.take(2)
		b.mustCommit(1)
	})
}

func TestCommitOfAMemberThatWasReplacedIsRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 4)
		a := r.start("a", func(c *Config, _ *worker) { c.TransactionTimeout = 10 * time.Minute }).up()
		a.take(2)
		// a hears nothing of it, but the group goes on without it. Nothing of a's is staged,
		// so b has no reason to fence it.
		silence(r, "a", make(chan struct{}))
		waitGone(t, r)
		b := r.start("b").up()
		b.take(4)
		b.mustCommit(1)
		if err := a.commit(1); err == nil {
			t.Error("who is no member any more could commit")
		}
		r.wantOffsets(2, 2)
	})
}

// TestMemberThatJoinedAnewHasLostWhatItHad has the group give up the active member just
// before its JoinGroup arrives. The client joins under another member id then, with what it
// had, and is told to hand that over, which somebody else has by now.
func TestMemberThatJoinedAnewHasLostWhatItHad(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 4)
		b := r.start("b", oneActive).up()
		a := r.start("a", oneActive)
		waitFor(t, func() bool { return stableGroup(r, 2) })
		b.take(2)
		b.mustCommit(1)
		b.take(2)
		held := make(chan struct{})
		var once sync.Once
		r.c.ControlKey(int16(kmsg.JoinGroup), func(req kmsg.Request) (kmsg.Response, error, bool) {
			if id := req.(*kmsg.JoinGroupRequest).InstanceID; id == nil || *id != "b" {
				r.c.KeepControl()
				return nil, nil, false
			}
			once.Do(func() { close(held) })
			r.c.SleepControl(func() { waitFor(t, func() bool { return len(a.Owned()) == 2 }) })
			return nil, nil, false
		})
		c := r.start("c", oneActive) // a rebalance
		<-held
		if _, err := r.adm.LeaveGroup(t.Context(), kadm.LeaveGroup(testGroup).InstanceIDs("b")); err != nil {
			t.Fatal(err)
		}
		select {
		case <-b.Failed():
		case <-time.After(time.Minute):
			t.Fatalf("b was told to hand over %v, and goes on", b.revoked)
		}
		asError(t, b.Err(), Lost)
		if len(b.revoked) > 0 || len(b.lostParts) != 2 {
			t.Errorf("b was told to hand over %v, and that it lost %v", b.revoked, b.lostParts)
		}
		if err := b.commit(2); err == nil {
			t.Error("who lost its partitions could commit")
		}
		b.Close()
		a.take(2)
		a.mustCommit(2)
		r.start("b", oneActive) // its transaction of before ends
		waitFor(t, func() bool { return len(r.committed(outTopic)) == 4 })
		r.want(outTopic, "0", "1", "2", "3")
		r.wantOffsets(2, 2)
		c.Close()
	})
}

// silence drops the heartbeats of an instance until still is closed.
func silence(r *rig, instance string, still <-chan struct{}) {
	r.c.ControlKey(int16(kmsg.Heartbeat), func(req kmsg.Request) (kmsg.Response, error, bool) {
		r.c.KeepControl()
		hb := req.(*kmsg.HeartbeatRequest)
		select {
		case <-still:
			return nil, nil, false
		default:
		}
		if hb.InstanceID == nil || *hb.InstanceID != instance {
			return nil, nil, false
		}
		resp := kmsg.NewPtrHeartbeatResponse() // answered by nobody who knows
		resp.Version = hb.Version
		return resp, nil, true
	})
}

// waitGone waits until the group is empty.
func waitGone(t *testing.T, r *rig) {
	t.Helper()
	waitFor(t, func() bool {
		groups, err := r.adm.DescribeGroups(t.Context(), testGroup)
		return err == nil && len(groups[testGroup].Members) == 0
	})
}

func TestUnstableOffsetsThatNothingExplainsAreAnError(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		w := r.start("a").up()
		w.take(2)
		w.mustCommit(1)
		w.Close()
		r.c.Fault(kfake.Fault{
			Keys: []kmsg.Key{kmsg.OffsetFetch}, Topic: inTopic, Partitions: []int32{1}, Err: kerr.UnstableOffsetCommit, Count: -1,
			When: func(req kmsg.Request) bool { return req.(*kmsg.OffsetFetchRequest).RequireStable },
		})
		start := time.Now()
		w = r.start("a")
		select {
		case <-w.Failed():
		case <-time.After(10 * time.Minute):
			t.Fatal("waits for ever")
		}
		var u *UnstableError
		if !errors.As(w.Err(), &u) {
			t.Fatalf("error %v (%T)", w.Err(), w.Err())
		}
		if took := time.Since(start); took < 35*time.Second || took > 40*time.Second {
			t.Errorf("after %v, want transaction timeout, scan and margin: 35s", took)
		}
		for _, want := range []string{"in/1", "KAFKA-20734", "WriteTxnMarkers"} {
			if !strings.Contains(u.Error(), want) {
				t.Errorf("error doesn't say %q: %v", want, u)
			}
		}
		if len(w.infos) != 1 || len(w.infos[0].Fenced) != 0 {
			t.Errorf("the pointer names this very instance, fencing it would end ourselves: %v", w.infos)
		}
		if w.restores != 0 {
			t.Error("something was restored from undecided offsets")
		}
	})
}

func TestUnstableOffsetsThatCannotBeInspectedAreWaitedForAsLongAsBrokersAllow(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Topic: inTopic, Err: kerr.UnstableOffsetCommit, Count: -1})
		r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.ListTransactions}, Err: kerr.ClusterAuthorizationFailed, Count: -1})
		start := time.Now()
		w := r.start("a")
		<-w.Failed()
		var u *UnstableError
		if !errors.As(w.Err(), &u) || u.Inspect == nil {
			t.Fatalf("error %v (%T)", w.Err(), w.Err())
		}
		if took := time.Since(start); took < brokerMaxTimeout {
			t.Errorf("gave up after %v", took)
		}
	})
}

// A transaction that is decided, but whose markers can't be written, can't be ended by anybody:
// the leader of an output is down.
func TestTransactionThatCannotBeEndedHoldsNobodyUpForEver(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		pausedBeforeItsFirstCommit(t, r, oneActive)
		r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, TxnID: TransactionalID(testApp, "a"), Err: kerr.ConcurrentTransactions, Count: -1})
		r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Topic: inTopic, Err: kerr.UnstableOffsetCommit, Count: -1})
		b := r.start("b", oneActive)
		select {
		case <-b.Failed():
		case <-time.After(10 * time.Minute):
			t.Fatal("waits for ever, and says nothing")
		}
		var u *UnstableError
		if !errors.As(b.Err(), &u) {
			t.Errorf("error %v (%T)", b.Err(), b.Err())
		}
		if err := b.Fence(t.Context(), "a"); !errors.Is(err, kerr.ConcurrentTransactions) {
			t.Errorf("fencing it: %v", err)
		}
	})
}

func TestTakeoverOfATransactionThatCannotBeEndedIsGivenUpByName(t *testing.T) {
	for _, active := range []bool{true, false} {
		inBubble(t, func(t *testing.T, r *rig) {
			if !active {
				r.start("b", oneActive).up()
			}
			r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.InitProducerID}, TxnID: TransactionalID(testApp, "a"), Err: kerr.ConcurrentTransactions, Count: -1})
			a := r.start("a", oneActive)
			select {
			case <-a.Failed():
			case <-time.After(10 * time.Minute):
				t.Fatal("waits for ever, and says nothing")
			}
			var e *Error
			if !errors.As(a.Err(), &e) || e.Kind != Transient || !errors.Is(e, kerr.ConcurrentTransactions) {
				t.Fatalf("error %v (%T)", a.Err(), a.Err())
			}
			for _, want := range []string{"app/a", "within 10s", "no leader", "--unavailable-partitions"} {
				if !strings.Contains(e.Error(), want) {
					t.Errorf("error doesn't say %q: %v", want, e)
				}
			}
		})
	}
}

func TestUnstableOffsetsThatSettleAreWaitedFor(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		h := r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Topic: inTopic, Err: kerr.UnstableOffsetCommit, Count: 10})
		start := time.Now()
		w := r.start("a").up()
		if took := time.Since(start); took > 400*time.Millisecond || h.Hits() != 10 {
			t.Errorf("took %v for %d tries", took, h.Hits())
		}
		if len(w.infos) != 0 {
			t.Errorf("%v", w.infos)
		}
	})
}

func TestOffsetFetchErrorOfOnePartitionFailsTheSession(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Topic: inTopic, Partitions: []int32{1}, Err: kerr.TopicAuthorizationFailed, Count: -1})
		w := r.start("a")
		select {
		case <-w.Failed():
		case <-time.After(time.Minute):
			t.Fatal("goes on without a partition")
		}
		if e := asError(t, w.Err(), Rejected); !strings.Contains(e.Error(), "in/1") {
			t.Error(e)
		}
	})
}

func TestBrokerThatHasNotHeardOfANewTopicIsAskedAgain(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		h := r.unknownWhileAssigned(3)
		w := r.start("a").up()
		w.take(2)
		w.mustCommit(1)
		if h.Hits() != 3 {
			t.Errorf("%d faults hit", h.Hits())
		}
	})
}

func TestTopicThatStaysUnknownFailsTheSession(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.unknownWhileAssigned(-1)
		w := r.start("a")
		select {
		case <-w.Failed():
		case <-time.After(time.Minute):
			t.Fatal("goes on without the topic")
		}
		if e := asError(t, w.Err(), Rejected); !strings.Contains(e.Error(), "topic in") || !strings.Contains(e.Error(), "create the topic") {
			t.Error(e)
		}
	})
}

// unknownWhileAssigned lets the broker not know the input when a member of the group asks
// for its id, so often.
func (r *rig) unknownWhileAssigned(count int) *kfake.FaultHandle {
	var joined atomic.Bool
	r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.SyncGroup}, Observe: true, Count: -1, When: func(kmsg.Request) bool {
		joined.Store(true)
		return true
	}})
	return r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.Metadata}, Topic: inTopic, Err: kerr.UnknownTopicOrPartition, Count: count, When: func(kmsg.Request) bool { return joined.Load() }})
}

func TestSingleActiveStandbyTakesOver(t *testing.T) {
	end := map[string]func(*worker) time.Duration{
		"when the active leaves": func(a *worker) time.Duration {
			if err := a.Leave(a.r.t.Context()); err != nil {
				a.r.t.Fatal(err)
			}
			a.Close()
			return 3 * time.Second
		},
		"when the active dies": func(a *worker) time.Duration { a.die(); return 15 * time.Second },
	}
	for name, end := range end {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.feed(0, 4)
				b := r.start("b", oneActive).up() // first, and last in order: it stays active
				b.take(2)
				a := r.start("a", oneActive)
				c := r.start("c", oneActive)
				waitFor(t, func() bool { return stableGroup(r, 3) })
				if len(a.Owned())+len(c.Owned()) != 0 || len(b.Owned()) != 2 || len(b.revoked) != 0 {
					t.Fatalf("a %v, b %v, c %v; b gave up %v", a.Owned(), b.Owned(), c.Owned(), b.revoked)
				}
				b.take(2)
				b.mustCommit(1)
				limit := end(b)
				start := time.Now()
				next, other := a, c
				waitFor(t, func() bool { return len(a.Owned())+len(c.Owned()) == 2 })
				if took := time.Since(start); took > limit {
					t.Errorf("take-over took %v", took)
				}
				if len(c.Owned()) > 0 {
					next, other = c, a
				}
				if len(next.Owned()) != 2 || len(other.Owned()) != 0 {
					t.Fatalf("a %v, c %v", a.Owned(), c.Owned())
				}
				r.feed(4, 2)
				next.take(2)
				next.mustCommit(2)
				r.want(outTopic, "0", "1", "2", "3", "4", "5")
				r.wantOffsets(3, 3)
			})
		})
	}
}

// TestStandbyThatWasFencedTakesOver fences an instance that stands by, as its successor does
// with one that handed over, and may do late: it has nothing to lose by it.
func TestStandbyThatWasFencedTakesOver(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		b := r.start("b", oneActive).up()
		b.take(2)
		a := r.start("a", oneActive)
		waitFor(t, func() bool { return stableGroup(r, 2) })
		b.mustCommit(1)
		if err := b.Fence(t.Context(), "a"); err != nil {
			t.Fatal(err)
		}
		if err := b.Leave(t.Context()); err != nil {
			t.Fatal(err)
		}
		b.Close()
		r.feed(2, 2)
		a.up().take(2)
		a.mustCommit(2)
		r.want(outTopic, "0", "1", "2", "3")
		r.wantOffsets(2, 2)
	})
}

// TestStandbyEndsTheTransactionOfItsPredecessor starts an instance that stands by where a
// process with its id was killed in a transaction: readers wait for that no longer.
func TestStandbyEndsTheTransactionOfItsPredecessor(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		r.start("b", oneActive).up()
		id := TransactionalID(testApp, "a")
		dead := r.plain(kgo.TransactionalID(id), kgo.TransactionTimeout(time.Minute))
		if err := dead.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := dead.ProduceSync(t.Context(), &kgo.Record{Topic: outTopic, Value: []byte("lost")}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		state := func() string {
			ts, err := r.adm.DescribeTransactions(t.Context(), id)
			if err != nil {
				t.Fatal(err)
			}
			return ts[id].State
		}
		if s := state(); s != "Ongoing" {
			t.Fatalf("the transaction of the dead is %s", s)
		}
		r.start("a", oneActive)
		waitFor(t, func() bool { return state() != "Ongoing" })
	})
}

// A broker gives a restarted static member its assignment back without a rebalance;
// the fake one rebalances. Then nobody claims anything, and one must be active.
func TestSingleActiveRestartLeavesOneActive(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		b := r.start("b", oneActive).up()
		a := r.start("a", oneActive)
		waitFor(t, func() bool { return stableGroup(r, 2) })
		b.take(2)
		b.mustCommit(1)
		b.die()
		b = r.start("b", oneActive)
		waitFor(t, func() bool { return stableGroup(r, 2) && len(a.Owned())+len(b.Owned()) == 2 })
		if len(a.Owned()) != 2 && len(b.Owned()) != 2 {
			t.Fatalf("a %v, b %v", a.Owned(), b.Owned())
		}
		active := a
		if len(b.Owned()) == 2 {
			active = b
		}
		r.feed(2, 2)
		active.take(2)
		active.mustCommit(2)
		r.want(outTopic, "0", "1", "2", "3")
	})
}

// A static member gets its old assignment back without a rebalance, and its client knows
// of no partition count but the newest one: nobody sees that there are more.
func TestS17_PartitionsThatWereAddedWhileAStaticMemberWasAwayAreAssigned(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		a := r.start("a", oneActive).up()
		a.take(2)
		a.mustCommit(1)
		a.die()
		rs, err := r.adm.CreatePartitions(t.Context(), 1, inTopic)
		if err := errors.Join(err, rs.Error()); err != nil {
			t.Fatal(err)
		}
		a = r.start("a", oneActive)
		waitFor(t, func() bool { return len(a.Owned()) == 3 })
	})
}

func TestWhatAnOldAssignmentLacksIsNoticed(t *testing.T) {
	part := func(topic string, p int32) offsets.Partition { return offsets.Partition{Topic: topic, Partition: p} }
	s := &Session{
		cfg: Config{Topics: []string{"old", "new"}, SingleActive: true}, assigned: map[offsets.Partition]bool{},
		epochs: map[offsets.Partition]int32{part("old", 0): 1, part("old", 1): 1, part("new", 0): 1, part("other", 0): 1},
	}
	if s.lacksPartitions() {
		t.Error("a standby lacks nothing")
	}
	s.assigned[part("old", 0)], s.assigned[part("old", 1)] = true, true
	if !s.lacksPartitions() {
		t.Error("the new topic is missing")
	}
	s.assigned[part("new", 0)] = true
	if s.lacksPartitions() {
		t.Error("nothing is missing")
	}
	s.epochs[part("old", 2)] = 1
	if !s.lacksPartitions() {
		t.Error("a partition is missing")
	}
}

func stableGroup(r *rig, members int) bool {
	groups, err := r.adm.DescribeGroups(r.t.Context(), testGroup)
	return err == nil && groups[testGroup].State == "Stable" && len(groups[testGroup].Members) == members
}

func TestProduceAllocatesNothingOfItsOwn(t *testing.T) {
	s := &Session{epoch: time.Now().Add(-1)}
	s.promise = s.onProduced
	cl, err := kgo.NewClient()
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithCancel(t.Context())
	s.ctx, s.cl = ctx, cl
	cancel() // the client fails each record at once
	r := &kgo.Record{Topic: "t"}
	own := testing.AllocsPerRun(1000, func() { s.Produce(r) })
	bare := testing.AllocsPerRun(1000, func() { cl.Produce(ctx, r, s.promise) })
	if own > bare {
		t.Errorf("%v allocations per record, the client alone has %v", own, bare)
	}
}

func TestConfirmIsRefusedToWhoMayHaveASuccessor(t *testing.T) {
	confirm := func(w *worker) error {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		return w.Confirm(ctx)
	}
	t.Run("silent for too long", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			a := r.start("a").up()
			if err := confirm(a); err != nil {
				t.Fatal(err)
			}
			still := make(chan struct{})
			silence(r, "a", still)
			waitGone(t, r)
			close(still) // it is heard again
			if err := confirm(a); err == nil || !strings.Contains(err.Error(), `instance "a"`) {
				t.Fatalf("confirmed although the group has given its partitions away: %v", err)
			}
		})
	})
	t.Run("replaced under its instance id", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			a := r.start("a").up()
			next := r.start("a").up()
			if err := confirm(a); !errors.Is(err, kerr.FencedInstanceID) && !errors.Is(err, errLost) {
				t.Fatalf("confirmed although another process has its place: %v", err)
			}
			if err := confirm(next); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("gave partitions up", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			a := r.start("a").up()
			b := r.start("b").up()
			waitFor(t, func() bool { return len(a.Owned()) == 1 && len(b.Owned()) == 1 })
			if err := confirm(a); err == nil {
				t.Fatal("confirmed although others have partitions that it had")
			}
			if err := confirm(b); err != nil {
				t.Fatal(err)
			}
		})
	})
	t.Run("while it restores, and a rebalance begins", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			opened, restoring, confirmed := make(chan struct{}), make(chan struct{}), make(chan error, 1)
			a := r.start("a", oneActive, func(_ *Config, w *worker) {
				w.onRestore = func(context.Context, map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Position, error) {
					close(restoring)
					time.Sleep(5 * time.Second) // of heartbeats that tell of the other one
					<-opened
					confirmed <- confirm(w)
					return nil, nil
				}
			})
			close(opened)
			<-restoring
			r.start("b", oneActive)
			if err := <-confirmed; err != nil {
				t.Fatal(err)
			}
			a.up()
		})
	})
	t.Run("next generation", func(t *testing.T) {
		inBubble(t, func(t *testing.T, r *rig) {
			if err := confirm(r.start("a", nextGen).up()); err == nil {
				t.Fatal("confirmed by nobody")
			}
		})
	})
}

func TestGoneTellsATopicThatIsNotThereFromAnotherOne(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		w := r.start("a").up()
		want := func(when string, want error) {
			t.Helper()
			if gone, err := w.Gone(t.Context()); err != nil || !errors.Is(gone[inTopic], want) || (want == nil) != (len(gone) == 0) {
				t.Errorf("%s: %v, %v", when, gone, err)
			}
		}
		want("at first", nil)
		if _, err := r.adm.DeleteTopics(t.Context(), inTopic); err != nil {
			t.Fatal(err)
		}
		want("deleted", kerr.UnknownTopicOrPartition)
		if _, err := r.adm.CreateTopic(t.Context(), 2, 1, nil, inTopic); err != nil {
			t.Fatal(err)
		}
		want("made again", kerr.InconsistentTopicID)
	})
}

// TestRightToReadIsNamedWhereOffsetsAreRefused is about a topic that is only read.
func TestRightToReadIsNamedWhereOffsetsAreRefused(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.OffsetFetch}, Topic: inTopic, Err: kerr.TopicAuthorizationFailed, Count: -1})
		w := r.start("a")
		<-w.Failed()
		if e := asError(t, w.Err(), Rejected); !strings.Contains(e.Error(), "grant Read on the topic") {
			t.Error(e)
		}
	})
}
