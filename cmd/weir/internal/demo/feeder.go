package demo

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// feedEvery is the pause between two looks at how many lines are due.
const feedEvery = 5 * time.Millisecond

// feeder writes the text to the input topic, as fast as it is told to.
type feeder struct {
	cl      *kgo.Client
	text    *text
	records int64
	written atomic.Int64 // lines handed to the client

	mu    sync.Mutex
	from  int64 // the release that counts: lines from..upto are due from begun on,
	upto  int64 // the last of them after over
	begun time.Time
	over  time.Duration
}

// release lets lines up to upto go, spread over that time.
func (f *feeder) release(upto int64, over time.Duration) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.from, f.upto, f.begun, f.over = f.written.Load(), min(upto, f.records), time.Now(), over
}

// due is how many lines should be written by now.
func (f *feeder) due() int64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	elapsed := time.Since(f.begun)
	if elapsed >= f.over {
		return f.upto
	}
	return f.from + int64(float64(f.upto-f.from)*float64(elapsed)/float64(f.over))
}

// run writes until the whole text is acknowledged.
func (f *feeder) run(ctx context.Context) error {
	tick := time.NewTicker(feedEvery)
	defer tick.Stop()
	var (
		mu     sync.Mutex
		failed error
	)
	for f.written.Load() < f.records {
		for due := f.due(); f.written.Load() < due; f.written.Add(1) {
			f.cl.Produce(ctx, &kgo.Record{Topic: linesTopic, Value: []byte(f.text.line())}, func(_ *kgo.Record, err error) {
				if err != nil {
					mu.Lock()
					failed = err
					mu.Unlock()
				}
			})
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if err := f.cl.Flush(ctx); err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	if failed != nil {
		return fmt.Errorf("write the text to topic %s: %w", linesTopic, failed)
	}
	return nil
}
