package clock_test

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/weirstream/weir/internal/clock"
)

// rings tells which alarms rang.
func rings(c clock.Clock, advance func(time.Duration)) (rang [4]bool) {
	begin := c.Now()
	for i := range rang {
		cancel := c.At(begin.Add(time.Duration(i)*time.Second), func() { rang[i] = true })
		if i == 1 {
			cancel()
		}
	}
	advance(2 * time.Second)
	synctest.Wait()
	return rang
}

func TestClocksRingAtTheirTimeUnlessCalledOff(t *testing.T) {
	want := [4]bool{true, false, true, false}
	synctest.Test(t, func(t *testing.T) {
		m := clock.NewManual(time.Unix(100, 0))
		if got := rings(m, m.Advance); got != want {
			t.Errorf("manual: rang %v, want %v", got, want)
		}
		if got := m.Now(); !got.Equal(time.Unix(102, 0)) {
			t.Errorf("manual: it is %v", got)
		}
		if got := rings(clock.System, time.Sleep); got != want {
			t.Errorf("system: rang %v, want %v", got, want)
		}
	})
}
