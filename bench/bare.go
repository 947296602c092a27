package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// bareLoop is what a good engineer writes by hand: poll, transform, produce, and
// every interval commit outputs and offsets in one transaction. transform makes the
// output of each record of a poll, in order, in outs, which has one record for each.
//
// Outputs of one poll are one allocation, and the client's buffer is as large as
// Weir's, so that neither wins by a setting.
func bareLoop(ctx context.Context, j job, transform func(ins []*kgo.Record, outs []kgo.Record)) error {
	sess, err := kgo.NewGroupTransactSession(
		kgo.SeedBrokers(j.Brokers...),
		kgo.TransactionalID(j.Name),
		kgo.ConsumerGroup(j.Name),
		kgo.ConsumeTopics(j.In),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ProducerLinger(5*time.Millisecond),
		kgo.MaxBufferedRecords(1<<18),
		kgo.MaxBufferedBytes(64<<20),
	)
	if err != nil {
		return err
	}
	defer sess.Close()
	if err := sess.Begin(); err != nil {
		return err
	}
	var failed error
	promise := func(_ *kgo.Record, err error) {
		if err != nil && failed == nil {
			failed = err // promises run one at a time, End waits for them
		}
	}
	const maxPoll = 16384
	var ins []*kgo.Record
	last := time.Now()
	for done := 0; done < j.Records; {
		fs := sess.PollRecords(ctx, maxPoll)
		if err := fs.Err(); err != nil {
			return fmt.Errorf("poll: %w", err)
		}
		ins = ins[:0]
		fs.EachPartition(func(p kgo.FetchTopicPartition) { ins = append(ins, p.Records...) })
		outs := make([]kgo.Record, len(ins))
		transform(ins, outs)
		for i := range outs {
			sess.Produce(ctx, &outs[i], promise)
		}
		done += len(ins)
		if time.Since(last) < j.Interval && done < j.Records {
			continue
		}
		committed, err := sess.End(ctx, kgo.TryCommit)
		switch {
		case err != nil:
			return fmt.Errorf("commit: %w", err)
		case failed != nil:
			return fmt.Errorf("produce: %w", failed)
		case !committed:
			return errors.New("the transaction was aborted")
		}
		last = time.Now()
		if done < j.Records {
			if err := sess.Begin(); err != nil {
				return err
			}
		}
	}
	return nil
}
