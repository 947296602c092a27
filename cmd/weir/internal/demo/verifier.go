package demo

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// verifier reads the output topic as a read_committed consumer.
type verifier struct {
	cl  *kgo.Client
	adm *kadm.Client

	mu       sync.Mutex
	ledger   *ledger
	position map[int32]int64 // the offset after the last one seen
	mark     *mark           // nil: nobody waits for a first output
}

// consumeCounts are the options of a verifier's client.
func consumeCounts() []kgo.Opt {
	return []kgo.Opt{
		kgo.ConsumeTopics(countsTopic),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Without the markers of transactions the end of the topic is never reached.
		kgo.KeepControlRecords(),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
	}
}

// mark waits for the first output that was written after the marked offsets.
type mark struct {
	ends map[int32]int64
	at   chan time.Time // capacity 1
}

// run puts every output into the ledger until ctx ends.
func (v *verifier) run(ctx context.Context) error {
	for {
		fs := v.cl.PollFetches(ctx)
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := fs.Err(); err != nil {
			return fmt.Errorf("read topic %s: %w", countsTopic, err)
		}
		v.take(fs, time.Now())
	}
}

func (v *verifier) take(fs kgo.Fetches, now time.Time) {
	v.mu.Lock()
	defer v.mu.Unlock()
	fs.EachRecord(func(r *kgo.Record) {
		v.position[r.Partition] = r.Offset + 1
		if r.Attrs.IsControl() {
			return
		}
		v.ledger.add(r.Key, r.Value)
		if m := v.mark; m != nil && r.Offset >= m.ends[r.Partition] {
			m.at <- now
			v.mark = nil
		}
	})
}

// first returns a channel that gets the time at which the first output arrived that
// is written from now on. Nobody may be writing.
func (v *verifier) first(ctx context.Context) (<-chan time.Time, error) {
	ends, err := v.adm.ListEndOffsets(ctx, countsTopic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, fmt.Errorf("read the end of topic %s: %w", countsTopic, err)
	}
	m := &mark{ends: map[int32]int64{}, at: make(chan time.Time, 1)}
	ends.Each(func(o kadm.ListedOffset) { m.ends[o.Partition] = o.Offset })
	v.mu.Lock()
	defer v.mu.Unlock()
	v.mark = m
	return m.at, nil
}

// finish waits until everything that is committed was read.
func (v *verifier) finish(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, finishPatience)
	defer cancel()
	ends, err := v.adm.ListCommittedOffsets(ctx, countsTopic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return fmt.Errorf("read the end of topic %s: %w", countsTopic, err)
	}
	tick := time.NewTicker(feedEvery)
	defer tick.Stop()
	for {
		behind := false
		v.mu.Lock()
		ends.Each(func(o kadm.ListedOffset) { behind = behind || v.position[o.Partition] < o.Offset })
		v.mu.Unlock()
		if !behind {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("read topic %s to its end: %w", countsTopic, ctx.Err())
		}
	}
}

// finishPatience bounds the reading of what is committed already.
const finishPatience = 15 * time.Second

// standing is what the status line shows of the ledger.
type standing struct{ outputs, seen, total, gaps, wrong int64 }

func (v *verifier) standing() standing {
	v.mu.Lock()
	defer v.mu.Unlock()
	l := v.ledger
	return standing{l.outputs, l.seen, l.total, l.gaps, l.duplicated + l.outOfOrder + l.malformed}
}
