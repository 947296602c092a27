package pebble

import (
	"context"
	"time"

	"go.uber.org/zap"
)

const (
	// fetchRetry is how long copying waits after a failure, at first and at most.
	fetchRetry    = time.Second
	fetchRetryMax = time.Minute
)

func (s *Store) wakeUp() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// fetch copies what is not in the store, one segment after the other, until it is
// closed.
func (s *Store) fetch() {
	rate := rate{bytesPerSecond: s.opts.DownloadRate}
	var done int64 // bytes
	retry := fetchRetry
	for {
		seg, p := s.missing()
		p.Bytes = done
		if p.Segments == 0 {
			if done > 0 {
				p.Done = true
				s.report(p)
				done = 0
			}
			select {
			case <-s.wake:
				continue
			case <-s.ctx.Done():
				return
			}
		}
		s.report(p)
		err := s.copy(s.ctx, seg, seg.file(), nil, func(n int64) error { return rate.take(s.ctx, n) })
		if err == nil {
			err = s.arrived(seg)
		}
		if s.ctx.Err() != nil {
			return
		}
		if err == nil {
			done += seg.Length
			retry = fetchRetry
			continue
		}
		s.log.Warn("copy a segment into the local store", zap.Error(err), zap.Duration("retry", retry))
		p.Err = err
		s.report(p)
		if sleep(s.ctx, retry) != nil {
			return
		}
		retry = min(2*retry, fetchRetryMax)
	}
}

func (s *Store) report(p Progress) {
	if s.opts.Progress != nil {
		s.opts.Progress(p)
	}
}

// missing returns a segment of the chain that is not in the store, and how many there
// are. The newest one comes first: it is the smallest, and gets most reads.
func (s *Store) missing() (next Segment, p Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.broken.Load() != nil {
		return next, p
	}
	for _, seg := range s.chain {
		if !s.files[s.name(seg)] {
			next = seg
			p.Segments++
			p.Left += seg.Length
		}
	}
	return next, p
}

// arrived takes over a copy.
func (s *Store) arrived(seg Segment) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	name := s.name(seg)
	defer s.sweep() // it may not be wanted any more
	v := s.current.Load()
	old := s.pool[name]
	if v == nil || old == nil {
		s.files[name] = true
	} else {
		t, err := s.openTaken(s.ctx, seg, name)
		if err != nil {
			return err
		}
		s.adopt(t)
		t.unref() // it is in the pool
		tables := make([]*table, len(v.tables))
		for i, was := range v.tables {
			tables[i] = was
			if was == old {
				tables[i] = t
			}
		}
		s.install(v.id, tables)
	}
	if v == nil || !s.behind {
		return nil
	}
	if merged := s.atHand(s.ctx); merged != nil {
		s.behind = false
		s.install(v.id, merged)
		unrefAll(merged)
	}
	return nil
}

// rate bounds bytes a second.
type rate struct {
	bytesPerSecond int64
	free           time.Time // when what was taken is paid for
}

// take waits until n bytes may be read.
func (r *rate) take(ctx context.Context, n int64) error {
	if r.bytesPerSecond == 0 {
		return ctx.Err()
	}
	now := time.Now()
	if r.free.Before(now) {
		r.free = now
	}
	wait := r.free.Sub(now)
	r.free = r.free.Add(time.Duration(float64(n) / float64(r.bytesPerSecond) * float64(time.Second)))
	return sleep(ctx, wait)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
