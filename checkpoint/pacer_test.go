package checkpoint

import (
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
		p, begun := newPacer(t.Context(), func() float64 { return 0.5 }, 0), time.Now()
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
