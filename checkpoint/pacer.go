package checkpoint

import (
	"context"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// pacer keeps a merge within its budgets: it measures how long the merge computes, and
// lets it rest in proportion. A nil pacer does nothing.
type pacer struct {
	ctx   context.Context
	share func() float64 // of a core that this merge may take now; 1 or more: all
	limit *limiter

	begun  time.Time    // of what is measured
	waited atomic.Int64 // nanoseconds since then that went into waiting for the store
}

// limiter keeps what all merges transfer together within a bandwidth.
type limiter struct {
	bytesPerSecond int64 // 0: no limit

	mu   sync.Mutex
	free time.Time // when what was transferred so far is within the bandwidth
}

// take counts n bytes, and returns how long to wait until they are within the bandwidth.
func (l *limiter) take(n int64) time.Duration {
	if l.bytesPerSecond <= 0 {
		return 0
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	if l.free.Before(now) {
		l.free = now
	}
	l.free = l.free.Add(time.Duration(float64(n) / float64(l.bytesPerSecond) * float64(time.Second)))
	return l.free.Sub(now)
}

// minRest is the shortest rest: shorter ones are put off until they add up.
const minRest = 2 * time.Millisecond

func newPacer(ctx context.Context, share func() float64, limit *limiter) *pacer {
	return &pacer{ctx: ctx, share: share, limit: limit, begun: time.Now()}
}

// pause and resume enclose a wait for the store, on the merging goroutine or on one
// that works for it.
func (p *pacer) pause() time.Time {
	if p == nil {
		return time.Time{}
	}
	return time.Now()
}

func (p *pacer) resume(begin time.Time) {
	if p != nil {
		p.waited.Add(int64(time.Since(begin)))
	}
}

// yield lets other goroutines have their turn; tests replace it.
var yield = runtime.Gosched

// work is called by the merge now and then.
func (p *pacer) work() error {
	if err := p.ctx.Err(); err != nil {
		return err
	}
	// On few cores a merge would keep a subtask from going on for the 10 ms that Go's
	// scheduler gives a goroutine. To wait for its turn is no work.
	begin := p.pause()
	yield()
	p.resume(begin)
	share := p.share()
	busy := time.Since(p.begun) - time.Duration(p.waited.Load())
	if share >= 1 || busy <= 0 {
		p.restart()
		return nil
	}
	rest := time.Duration(float64(busy) * (1/share - 1))
	if rest < minRest {
		return nil
	}
	err := sleep(p.ctx, rest)
	p.restart()
	return err
}

func (p *pacer) restart() {
	p.begun = time.Now()
	p.waited.Store(0)
}

// transferred counts bytes from or to the store and waits until they are within the
// bandwidth.
func (p *pacer) transferred(ctx context.Context, n int64) {
	if p == nil {
		return
	}
	wait := p.limit.take(n)
	if wait < minRest {
		return
	}
	begin := p.pause()
	_ = sleep(ctx, wait) // whoever called it looks at the context himself
	p.resume(begin)
}

func sleep(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
