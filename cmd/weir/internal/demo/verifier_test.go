package demo

import (
	"context"
	"encoding/binary"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// TestVerifierReadsWhatIsCommittedAndNothingElse doctors the output topic: what a
// transaction that was aborted wrote doesn't count, everything else does.
func TestVerifierReadsWhatIsCommittedAndNothingElse(t *testing.T) {
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, countsTopic))
	if err != nil {
		t.Fatal(err)
	}
	defer cluster.Close()
	client := func(opts ...kgo.Opt) *kgo.Client {
		cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(cluster.ListenAddrs()...))...)
		if err != nil {
			t.Fatal(err)
		}
		return cl
	}
	producer := client(kgo.TransactionalID("doctor"))
	defer producer.Close()
	transaction := func(end kgo.TransactionEndTry, outputs ...output) {
		t.Helper()
		if err := producer.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		for _, o := range outputs {
			r := &kgo.Record{Topic: countsTopic, Key: []byte(o.word), Value: binary.BigEndian.AppendUint64(nil, uint64(o.n))}
			if err := producer.ProduceSync(t.Context(), r).FirstErr(); err != nil {
				t.Fatal(err)
			}
		}
		if err := producer.EndTransaction(t.Context(), end); err != nil {
			t.Fatal(err)
		}
	}
	consumer := client(consumeCounts()...)
	defer consumer.Close()
	v := &verifier{cl: consumer, adm: kadm.NewClient(consumer), position: map[int32]int64{},
		ledger: newLedger(map[string]int64{"a": 3, "b": 2, "c": 2})}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- v.run(ctx) }()
	defer func() { cancel(); <-done }()

	transaction(kgo.TryCommit, output{"a", 1}, output{"b", 2})
	if err := v.finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	first, err := v.first(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	transaction(kgo.TryAbort, output{"a", 2}, output{"c", 2})
	committing := time.Now()
	transaction(kgo.TryCommit, output{"a", 2}, output{"b", 1}, output{"a", 2}, output{"c", 1})
	if err := v.finish(t.Context()); err != nil {
		t.Fatal(err)
	}
	select {
	case at := <-first:
		if at.Before(committing) {
			t.Error("an output of an aborted transaction passed for the first new one")
		}
	case <-time.After(finishPatience):
		t.Error("the first new output was not noticed")
	}

	l := v.ledger // finish saw all of it, and nothing more comes
	if l.outputs != 6 || l.lost() != 2 || l.duplicated != 1 || l.outOfOrder != 1 || l.gaps != 0 || l.malformed != 0 {
		t.Errorf("%d outputs, %d lost, %d duplicated, %d out of order, %d gaps, %d malformed; want 6, 2 (a 3, c 2), 1 (a 2), 1 (b 1), 0, 0",
			l.outputs, l.lost(), l.duplicated, l.outOfOrder, l.gaps, l.malformed)
	}
}
