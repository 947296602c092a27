package weir

import (
	"testing"
	"time"
)

// A member that was silent for a whole rebalance must have lost its session by then, or it
// commits where others own.
func TestRebalanceTimeoutIsAboveThatOfTheSession(t *testing.T) {
	for _, c := range []struct {
		opts []Option
		want time.Duration
	}{
		{nil, time.Minute},
		{[]Option{StopTimeout(2 * time.Minute)}, 2 * time.Minute},
		{[]Option{SessionTimeout(10 * time.Second)}, time.Minute},
		{[]Option{SessionTimeout(2 * time.Minute)}, 2*time.Minute + rebalanceMargin},
		{[]Option{SessionTimeout(2 * time.Minute), StopTimeout(5 * time.Minute)}, 5 * time.Minute},
	} {
		o := defaults()
		for _, opt := range c.opts {
			opt.apply(&o)
		}
		cfg, _ := o.config("app")
		if cfg.RebalanceTimeout != c.want || cfg.RebalanceTimeout <= cfg.SessionTimeout {
			t.Errorf("session timeout %v, stop timeout %v: rebalance timeout %v, want %v", cfg.SessionTimeout, cfg.StopTimeout, cfg.RebalanceTimeout, c.want)
		}
	}
}
