package txn

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/weirstream/weir/internal/cutafter"
	"github.com/weirstream/weir/offsets"
)

// asError returns err as *Error of the kind wanted.
func asError(t *testing.T, err error, kind Kind) *Error {
	t.Helper()
	var e *Error
	if !errors.As(err, &e) {
		t.Fatalf("error %v (%T), want an *Error of kind %v", err, err, kind)
	}
	if e.Kind != kind {
		t.Fatalf("error of kind %v, want %v: %v", e.Kind, kind, e)
	}
	return e
}

func TestCommitPublishesOutputsOffsetsAndRecordTogether(t *testing.T) {
	for name, opts := range map[string]struct {
		broker []kfake.Opt
		client []kgo.Opt
	}{
		"transaction version 2": {},
		"transaction version 1": {broker: []kfake.Opt{kfake.MaxVersions(kversion.V3_9_0())}},
		// Then TxnOffsetCommit does not add the group by itself, whatever the brokers can do.
		"transaction version 2 with a client of 1": {client: []kgo.Opt{kgo.MaxVersions(kversion.V3_9_0())}},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				as := func(c *Config, _ *worker) { c.Opts = append(c.Opts, opts.client...) }
				r.feed(0, 4)
				w := r.start("a", as).up()
				w.take(4)
				if len(r.committed(outTopic)) != 0 || len(r.groupOffsets()) != 0 {
					t.Error("something is visible before the commit")
				}
				w.mustCommit(1)
				r.want(outTopic, "0", "1", "2", "3")
				r.wantOffsets(2, 2)
				rec, ok, err := LastCommitRecord(t.Context(), r.opts(), commitTopic, testApp)
				if err != nil || !ok || rec.Manifest.Checkpoint != 1 || rec.Instance != "a" || len(rec.Positions) != 2 {
					t.Errorf("commit record %+v, %v, %v", rec, ok, err)
				}

				r.feed(4, 2)
				w.take(2)
				w.mustCommit(2)
				r.wantOffsets(3, 3)
				w.die()

				// The next incarnation finds the pointers.
				w = r.start("a", as).up()
				for p, c := range w.committed {
					ptr, err := offsets.ParsePointer(c.Metadata)
					if err != nil || ptr.Manifest.Checkpoint != 2 || ptr.Offset != c.Offset || ptr.Instance != "a" || c.Offset != 3 {
						t.Errorf("%v committed %+v, pointer %+v, %v", p, c, ptr, err)
					}
				}
				r.feed(6, 1)
				w.take(1)
				w.mustCommit(3)
				r.want(outTopic, "0", "1", "2", "3", "4", "5", "6")
			}, opts.broker...)
		})
	}
}

func TestCommitWithNothingProducedMovesTheOffsets(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		w := r.start("a").up()
		c := w.checkpoint(1)
		for p := range c.Positions {
			c.Positions[p] = offsets.Position{Offset: 1, LeaderEpoch: 0}
		}
		if err := w.Commit(t.Context(), c); err != nil {
			t.Fatal(err)
		}
		r.wantOffsets(1, 1)
		if got, err := w.unstable(t.Context(), w.Owned()); err != nil || len(got) != 0 {
			t.Errorf("undecided after the commit: %v, %v", got, err)
		}
	})
}

func TestCommitRefusesPositionsOfOthers(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		w := r.start("a").up()
		c := w.checkpoint(1)
		c.Positions[offsets.Partition{Topic: inTopic, Partition: 7}] = offsets.Position{Offset: 1}
		if err := w.Commit(t.Context(), c); !errors.Is(asError(t, err, Rejected), ErrNotOwned) {
			t.Error(err)
		}
		w = r.start("a").up()
		asError(t, w.Commit(t.Context(), Commit{}), Rejected)
	})
}

func TestS01_KilledBetweenOffsetsAndEndIsAbortedByTheNext(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 4)
		w := r.start("a").up()
		w.take(2)
		w.mustCommit(1)
		before := r.groupOffsets()
		w.take(2)
		w.stage(2)
		w.die()

		start := time.Now()
		w = r.start("a").up()
		if took := time.Since(start); took > 2*time.Second {
			t.Errorf("the restart took %v, a static member that ends its own transaction waits for nobody", took)
		}
		for p, c := range w.committed {
			if c.Offset != before[p] && (c.Exists || before[p] > 0) {
				t.Errorf("%v restored at %d, want %d", p, c.Offset, before[p])
			}
		}
		w.take(2)
		w.mustCommit(2)
		r.want(outTopic, "0", "1", "2", "3")
		r.wantOffsets(2, 2)
	})
}

func TestS02_EndAppliedButEveryAnswerLostIsReadBack(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 4)
		cut := cutafter.New(r.net.DialContext, kmsg.EndTxn)
		cut.Lose(-1)
		w := r.start("a", func(c *Config, _ *worker) { c.Opts = append(c.Opts, kgo.Dialer(cut.Dial)) }).up()
		w.take(4)
		e := asError(t, w.commit(1), Unknown)
		if e.Attempted != 1 || !strings.Contains(e.Error(), "unknown") {
			t.Errorf("the error doesn't say that checkpoint 1 is in doubt: %v", e)
		}
		if cut.Lost() == 0 {
			t.Fatal("no answer was lost")
		}
		if err := w.commit(2); err == nil {
			t.Error("the session went on after an unknown outcome")
		}
		w.Close()

		w = r.start("a").up()
		for p, c := range w.committed {
			if c.Offset != 2 {
				t.Errorf("%v restored at %d, want 2: the commit had happened", p, c.Offset)
			}
		}
		r.want(outTopic, "0", "1", "2", "3")
	})
}

func TestS21_EndRefusedAndOneAnswerLostGoesThrough(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		cut := cutafter.New(r.net.DialContext, kmsg.EndTxn)
		cut.Lose(1)
		w := r.start("a", func(c *Config, _ *worker) { c.Opts = append(c.Opts, kgo.Dialer(cut.Dial)) }).up()
		w.take(2)
		// The client repeats the request, and the broker knows that it was applied; an
		// error must not be mistaken for an abort, nor a success be invented.
		err := w.commit(1)
		if err != nil {
			asError(t, err, Unknown)
		}
		w.Close()
		r.start("a").up()
		r.want(outTopic, "0", "1")
		r.wantOffsets(1, 1)
	})
}

func TestS21_FencedIsFatalAndNothingIsPublished(t *testing.T) {
	fence := func(r *rig) {
		r.t.Helper()
		req := kmsg.NewPtrInitProducerIDRequest()
		id := TransactionalID(testApp, "a")
		req.TransactionalID, req.TransactionTimeoutMillis = &id, 20000
		req.ProducerID, req.ProducerEpoch = -1, -1
		for {
			resp, err := req.RequestWith(r.t.Context(), r.cl)
			if err != nil {
				r.t.Fatal(err)
			}
			if err = kerr.ErrorForCode(resp.ErrorCode); err == nil {
				return
			} else if !errors.Is(err, kerr.ConcurrentTransactions) {
				r.t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
		}
	}
	steps := map[string]func(r *rig, w *worker) error{
		"at produce": func(r *rig, w *worker) error {
			fence(r)
			w.take(2)
			return w.commit(1)
		},
		"at TxnOffsetCommit": func(r *rig, w *worker) error {
			w.take(2)
			w.betweenChecks = func() { fence(r) }
			return w.commit(1)
		},
		"at EndTxn": func(r *rig, w *worker) error {
			w.take(2)
			r.c.ControlKey(int16(kmsg.EndTxn), func(kmsg.Request) (kmsg.Response, error, bool) {
				// The broker can't be asked to fence from in here; it answers as if.
				resp := kmsg.NewPtrEndTxnResponse()
				resp.Version = 5
				resp.ErrorCode = kerr.ProducerFenced.Code
				return resp, nil, true
			})
			return w.commit(1)
		},
	}
	for name, step := range steps {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.feed(0, 2)
				w := r.start("a").up()
				e := asError(t, step(r, w), Fenced)
				if !strings.Contains(e.Error(), `"a"`) || !strings.Contains(e.Error(), "WEIR_INSTANCE_ID") {
					t.Errorf("the error names no instance or remedy: %v", e)
				}
				if unknown := e.Attempted >= 0; unknown != (name == "at EndTxn") {
					t.Errorf("attempted %d: %v", e.Attempted, e)
				}
				if w.Err() == nil {
					t.Error("the session didn't fail")
				}
				w.Close()
				w = r.start("a").up()
				w.take(2)
				w.mustCommit(1)
				r.want(outTopic, "0", "1")
			})
		})
	}
}

func TestS21_RetriableBurstsAreRetried(t *testing.T) {
	for _, tc := range []struct {
		key kmsg.Key
		err *kerr.Error
	}{
		{kmsg.TxnOffsetCommit, kerr.IllegalGeneration},
		{kmsg.TxnOffsetCommit, kerr.RebalanceInProgress},
		{kmsg.TxnOffsetCommit, kerr.StaleMemberEpoch},
		{kmsg.TxnOffsetCommit, kerr.ConcurrentTransactions},
		{kmsg.TxnOffsetCommit, kerr.NotCoordinator},
		{kmsg.TxnOffsetCommit, kerr.CoordinatorLoadInProgress},
		{kmsg.TxnOffsetCommit, kerr.CoordinatorNotAvailable},
		{kmsg.TxnOffsetCommit, kerr.UnknownTopicOrPartition}, // it has not heard yet of an added partition
		{kmsg.EndTxn, kerr.ConcurrentTransactions},
		{kmsg.EndTxn, kerr.NotCoordinator},
		{kmsg.Produce, kerr.NotLeaderForPartition},
	} {
		t.Run(tc.key.Name()+" "+tc.err.Message, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.feed(0, 2)
				w := r.start("a").up()
				for n := int64(1); n <= 3; n++ {
					if n > 1 {
						r.feed(int(n)*2-2, 2)
					}
					h := r.c.Fault(kfake.Fault{Keys: []kmsg.Key{tc.key}, Err: tc.err, Count: 3})
					w.take(2)
					w.mustCommit(n)
					if h.Hits() != 3 {
						t.Errorf("checkpoint %d: %d faults hit", n, h.Hits())
					}
				}
				r.want(outTopic, "0", "1", "2", "3", "4", "5")
				r.wantOffsets(3, 3)
			})
		})
	}
}

func TestCommitGivesUpAtHalfTheTransactionTimeout(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		w := r.start("a").up()
		w.take(2)
		start := time.Now()
		r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.IllegalGeneration, Count: -1})
		err := w.commit(1)
		var d *DeadlineError
		if !errors.As(err, &d) || !errors.Is(err, kerr.IllegalGeneration) {
			t.Fatalf("error %v (%T), want a *DeadlineError that says what the last try said", err, err)
		}
		if took := time.Since(start); took < 9*time.Second || took > 11*time.Second {
			t.Errorf("given up after %v of a timeout of 20s", took)
		}
		r.want(outTopic)
	})
}

func TestCommitThatGivesUpNamesTheQuotaThatHeldItUp(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		w := r.start("a").up()
		w.take(2)
		r.c.ControlKey(int16(kmsg.TxnOffsetCommit), func(kreq kmsg.Request) (kmsg.Response, error, bool) {
			r.c.KeepControl()
			resp := kreq.ResponseKind().(*kmsg.TxnOffsetCommitResponse)
			resp.ThrottleMillis = 1500
			for _, t := range kreq.(*kmsg.TxnOffsetCommitRequest).Topics {
				rt := kmsg.TxnOffsetCommitResponseTopic{Topic: t.Topic, TopicID: t.TopicID}
				for _, p := range t.Partitions {
					rt.Partitions = append(rt.Partitions, kmsg.TxnOffsetCommitResponseTopicPartition{Partition: p.Partition, ErrorCode: kerr.ConcurrentTransactions.Code})
				}
				resp.Topics = append(resp.Topics, rt)
			}
			return resp, nil, true
		})
		var d *DeadlineError
		if err := w.commit(1); !errors.As(err, &d) || d.Throttled < 3*time.Second || !strings.Contains(err.Error(), "quota") || !strings.Contains(err.Error(), "producer_byte_rate") {
			t.Fatalf("error %v (%T), want a *DeadlineError that tells of the quota", err, err)
		}
	})
}

func TestCommitToATopicThatStaysUnknownIsRejected(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		w := r.start("a", func(c *Config, _ *worker) { c.TransactionTimeout = time.Minute }).up()
		w.take(2)
		r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Topic: inTopic, Partitions: []int32{1}, Err: kerr.UnknownTopicOrPartition, Count: -1})
		if e := asError(t, w.commit(1), Rejected); !strings.Contains(e.Error(), "in/1") || !strings.Contains(e.Error(), "is gone or was recreated") || strings.Contains(e.Error(), "create the topic") {
			t.Errorf("the error names no partition or remedy: %v", e)
		}
		r.want(outTopic)
	})
}

func TestCommitThatIsCancelledWhileATopicIsUnknownIsNotRejected(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		w := r.start("a").up()
		w.take(2)
		ctx, cancel := context.WithCancel(t.Context())
		r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Err: kerr.UnknownTopicOrPartition, Count: -1})
		time.AfterFunc(time.Second, cancel) // between two tries
		asError(t, w.Commit(ctx, w.checkpoint(1)), Transient)
	})
}

func TestS07_ExpiredTransactionIsReplayed(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 2)
		w := r.start("a").up()
		w.take(2)
		// Processing stalls for longer than the transaction may last; heartbeats go on.
		if err := w.Client().Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		err := w.commit(1)
		var d *DeadlineError
		if !errors.As(err, &d) {
			asError(t, err, Expired)
		}
		if !strings.Contains(err.Error(), "transaction timeout") {
			t.Errorf("the error names no remedy: %v", err)
		}
		w.Close()
		r.want(outTopic)
		w = r.start("a").up()
		w.take(2)
		w.mustCommit(1)
		r.want(outTopic, "0", "1")
	})
}

func TestS07_BrokerThatAbortedTheTransactionIsUnderstood(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 4)
		w := r.start("a").up()
		w.take(2)
		if err := w.Client().Flush(t.Context()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		w.take(2) // fails at the producer
		select {
		case <-w.Failed():
		case <-time.After(time.Minute):
			t.Fatal("nobody noticed that the broker aborted the transaction")
		}
		asError(t, w.Err(), Expired)
	})
}

func TestOnePartitionRefusedFailsTheCommit(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		r.feed(0, 4)
		w := r.start("a").up()
		w.take(4)
		r.c.Fault(kfake.Fault{Keys: []kmsg.Key{kmsg.TxnOffsetCommit}, Topic: inTopic, Partitions: []int32{1}, Err: kerr.OffsetMetadataTooLarge})
		e := asError(t, w.commit(1), Rejected)
		if !strings.Contains(e.Error(), "in/1") {
			t.Errorf("the error doesn't name the partition: %v", e)
		}
		w.Close()
		r.start("a").up()
		r.want(outTopic)
	})
}

func TestAnswerMustNameEachPartitionOnce(t *testing.T) {
	partition := func(p int32, code int16) kmsg.TxnOffsetCommitResponseTopicPartition {
		return kmsg.TxnOffsetCommitResponseTopicPartition{Partition: p, ErrorCode: code}
	}
	req := &kmsg.TxnOffsetCommitRequest{Topics: []kmsg.TxnOffsetCommitRequestTopic{{
		Topic: "t", TopicID: [16]byte{1}, Partitions: []kmsg.TxnOffsetCommitRequestTopicPartition{{Partition: 0}, {Partition: 1}},
	}}}
	for name, tc := range map[string]struct {
		answer []kmsg.TxnOffsetCommitResponseTopicPartition
		want   string
	}{
		"all":          {[]kmsg.TxnOffsetCommitResponseTopicPartition{partition(0, 0), partition(1, 0)}, ""},
		"one left out": {[]kmsg.TxnOffsetCommitResponseTopicPartition{partition(0, 0)}, "leaves out t/1"},
		"one twice":    {[]kmsg.TxnOffsetCommitResponseTopicPartition{partition(0, 0), partition(0, 0)}, "named twice"},
		"one not sent": {[]kmsg.TxnOffsetCommitResponseTopicPartition{partition(0, 0), partition(1, 0), partition(2, 0)}, "not asked for"},
		"fatal goes first": {[]kmsg.TxnOffsetCommitResponseTopicPartition{
			partition(0, kerr.OffsetMetadataTooLarge.Code), partition(1, kerr.IllegalGeneration.Code)}, "OFFSET_METADATA_TOO_LARGE"},
	} {
		t.Run(name, func(t *testing.T) {
			resp := &kmsg.TxnOffsetCommitResponse{Topics: []kmsg.TxnOffsetCommitResponseTopic{{TopicID: [16]byte{1}, Partitions: tc.answer}}}
			err := checkOffsets(req, resp)
			if tc.want == "" && err != nil || tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want)) {
				t.Errorf("error %v, want %q", err, tc.want)
			}
		})
	}
}

func TestS23_RefusedRecordFailsByName(t *testing.T) {
	for name, tc := range map[string]struct {
		rec  *kgo.Record
		want string
	}{
		"topic missing":     {&kgo.Record{Topic: "nowhere", Value: []byte("x")}, "nowhere"},
		"message too large": {&kgo.Record{Topic: outTopic, Value: []byte(strings.Repeat("x", 2<<20))}, "max.message.bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				w := r.start("a").up()
				w.Produce(tc.rec)
				e := asError(t, w.commit(1), Rejected)
				if !strings.Contains(e.Error(), tc.want) {
					t.Errorf("error %v doesn't say %q", e, tc.want)
				}
				if err := w.Err(); !errors.As(err, &e) {
					t.Errorf("Err is %v", err)
				}
				r.want(commitTopic)
			})
		})
	}
}

func TestCommitOfALostGroupIsRefused(t *testing.T) {
	for name, nextGen := range map[string]bool{"classic": false, "next generation": true} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, func(t *testing.T, r *rig) {
				r.feed(0, 2)
				w := r.start("a", func(c *Config, _ *worker) { c.NextGen = nextGen }).up()
				w.take(2)
				key, code := kmsg.Heartbeat, kerr.UnknownMemberID
				if nextGen {
					key, code = kmsg.ConsumerGroupHeartbeat, kerr.FencedMemberEpoch
				}
				w.betweenChecks = func() {
					// The group throws us out just after the membership was read.
					w.betweenChecks = nil
					r.c.Fault(kfake.Fault{Keys: []kmsg.Key{key}, Err: code, TopLevel: true})
					waitFor(t, w.lost.Load)
				}
				asError(t, w.commit(1), Lost)
				if len(w.lostParts) != 2 {
					t.Errorf("handler was told of %v", w.lostParts)
				}
				w.Close()
				r.want(outTopic)
				if got := r.groupOffsets(); len(got) != 0 {
					t.Errorf("offsets %v were committed for partitions that were lost", got)
				}
			})
		})
	}
}

// waitFor polls in virtual time.
func waitFor(t *testing.T, cond func() bool) {
	t.Helper()
	for range 6000 {
		if cond() {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Fatal("never happened")
}

func TestCancelledCommitIsAnError(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		w := r.start("a").up()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if err := w.Commit(ctx, w.checkpoint(1)); !errors.Is(err, context.Canceled) || w.Err() == nil {
			t.Errorf("commit %v, session %v", err, w.Err())
		}
	})
}

func TestLastCommitRecordReadsBackwards(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		other := kgo.Record{Topic: commitTopic, Key: []byte("other"), Value: []byte("x")}
		if _, ok, err := LastCommitRecord(t.Context(), r.opts(), commitTopic, testApp); ok || err != nil {
			t.Fatalf("empty topic: %v, %v", ok, err)
		}
		if _, ok, err := LastCommitRecord(t.Context(), r.opts(), "nowhere", testApp); ok || err != nil {
			t.Fatalf("no topic: %v, %v", ok, err)
		}
		for _, n := range []int64{1, 2} {
			rec := offsets.CommitRecord{App: testApp, Instance: "a", Manifest: offsets.ManifestRef{Checkpoint: n}}
			r.cl.ProduceSync(t.Context(), &kgo.Record{Topic: commitTopic, Key: []byte(testApp), Value: rec.Append(nil)})
		}
		var many []*kgo.Record
		for range 1500 {
			c := other
			many = append(many, &c)
		}
		if err := r.cl.ProduceSync(t.Context(), many...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		rec, ok, err := LastCommitRecord(t.Context(), r.opts(), commitTopic, testApp)
		if err != nil || !ok || rec.Manifest.Checkpoint != 2 {
			t.Errorf("got %+v, %v, %v", rec, ok, err)
		}
	})
}

// TestLastCommitRecordWaitsForAQuota lets a broker answer as one whose quota is used up.
func TestLastCommitRecordWaitsForAQuota(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		rec := offsets.CommitRecord{App: testApp, Instance: "a", Manifest: offsets.ManifestRef{Checkpoint: 1}}
		if err := r.cl.ProduceSync(t.Context(), &kgo.Record{Topic: commitTopic, Key: []byte(testApp), Value: rec.Append(nil)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		const throttle = 3 * time.Second
		r.c.ControlKey(int16(kmsg.Fetch), func(kreq kmsg.Request) (kmsg.Response, error, bool) { // once
			resp := kreq.ResponseKind().(*kmsg.FetchResponse)
			resp.ThrottleMillis = int32(throttle.Milliseconds())
			return resp, nil, true
		})
		begun := time.Now()
		got, ok, err := LastCommitRecord(t.Context(), r.opts(), commitTopic, testApp)
		if err != nil || !ok || got.Manifest.Checkpoint != 1 {
			t.Errorf("got %+v, %v, %v", got, ok, err)
		}
		if took := time.Since(begun); took < throttle {
			t.Errorf("asked again after %v, before the quota had room", took)
		}
	})
}

// TestLastCommitRecordIsTheNewestOfAllPartitions reads topics that somebody made with three
// partitions, or to which some were added when the app had committed.
func TestLastCommitRecordIsTheNewestOfAllPartitions(t *testing.T) {
	inBubble(t, func(t *testing.T, r *rig) {
		for newest := range int32(3) {
			topic := "commits-" + strconv.Itoa(int(newest))
			if _, err := r.adm.CreateTopic(t.Context(), 3, 1, nil, topic); err != nil {
				t.Fatal(err)
			}
			cl := r.plainManual()
			defer cl.Close()
			for n := range int32(2) { // into the partition of the newest, and into the one in front of it
				p := (newest + 2 + n) % 3
				rec := offsets.CommitRecord{App: testApp, Instance: "a", Manifest: offsets.ManifestRef{Checkpoint: int64(n + 1)}}
				if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: topic, Partition: p, Key: []byte(testApp), Value: rec.Append(nil)}).FirstErr(); err != nil {
					t.Fatal(err)
				}
			}
			rec, ok, err := LastCommitRecord(t.Context(), r.opts(), topic, testApp)
			if err != nil || !ok || rec.Manifest.Checkpoint != 2 {
				t.Errorf("newest in partition %d: got %+v, %v, %v", newest, rec, ok, err)
			}
		}
	})
}

func TestCommitWithoutAMemberIDIsNeverSent(t *testing.T) {
	cl, err := kgo.NewClient() // in no group, so its member id is empty
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	s := &Session{cl: cl}
	if _, _, err := s.membership(); !errors.Is(err, kerr.UnknownMemberID) {
		t.Errorf("error %v, want UNKNOWN_MEMBER_ID: brokers accept an empty member", err)
	}
}
