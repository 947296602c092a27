package redis

import (
	"context"
	"math/rand/v2"
	"time"

	"go.uber.org/zap"
)

// Pauses before Redis is tried again.
const (
	firstPause = 20 * time.Millisecond
	mostPause  = 2 * time.Second
)

// patience decides how often and how long something is tried again.
type patience struct {
	giveUp      time.Duration
	unreachable time.Duration // 0: no limit
	log         *zap.Logger   // nil: none
	sink        string

	pause time.Duration
	since time.Time // of the first refusal in a row
	away  time.Time // of the first failure to reach Redis in a row
}

// again waits and returns nil if what failed with err is to be tried again, or what it
// ends with.
func (p *patience) again(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	now := time.Now()
	switch {
	case unavailable(err):
		p.since = time.Time{}
		if p.away.IsZero() {
			p.away = now
		}
		if p.unreachable > 0 && now.Sub(p.away) >= p.unreachable {
			return err
		}
	case passing(err):
		p.away = time.Time{}
		if p.since.IsZero() {
			p.since = now
		}
		if now.Sub(p.since) >= p.giveUp {
			return err
		}
	default:
		return err
	}
	if p.pause == 0 {
		p.pause = firstPause
		if p.log != nil {
			p.log.Warn("Redis does not take writes; waiting", zap.String("sink", p.sink), zap.Error(err))
		}
	}
	wait := p.pause/2 + rand.N(p.pause)
	p.pause = min(2*p.pause, mostPause)
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// progress says that Redis took something.
func (p *patience) progress() { p.pause, p.since, p.away = 0, time.Time{}, time.Time{} }
