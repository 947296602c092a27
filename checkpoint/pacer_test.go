package checkpoint

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// On a busy machine a merge that yields gets its turn late. If that counted as work it would
// rest for it as well, and fall behind where it is needed most.
func TestMergeDoesNotRestForItsWaitsForATurn(t *testing.T) {
	defer func(f func()) { yield = f }(yield)
	yield = func() { time.Sleep(10 * time.Millisecond) }
	synctest.Test(t, func(t *testing.T) {
		p, begun := newPacer(t.Context(), func() float64 { return 0.5 }, &limiter{}), time.Now()
		for _, computes := range []time.Duration{0, 20 * time.Millisecond} {
			time.Sleep(computes)
			if err := p.work(); err != nil {
				t.Fatal(err)
			}
		}
		if took := time.Since(begun); took != (10+20+10+20)*time.Millisecond {
			t.Errorf("two turns late by 10 ms, work of 20 ms and its rest took %v", took)
		}
	})
}

func TestMergesShareTheBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		limit, begun := &limiter{bytesPerSecond: 1 << 20}, time.Now()
		var wg sync.WaitGroup
		for range 2 {
			p := newPacer(t.Context(), func() float64 { return 1 }, limit)
			wg.Go(func() {
				for range 10 {
					p.transferred(t.Context(), 1<<20)
				}
			})
		}
		wg.Wait()
		if took := time.Since(begun); took != 20*time.Second {
			t.Errorf("two merges transferred 20 MiB at 1 MiB a second in %v", took)
		}
	})
}
