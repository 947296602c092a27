package pebble

import (
	"cmp"
	"context"
	"sync"
)

// getRange reads from the checkpoint store. When ctx ends or the store is closed it returns,
// also if the checkpoint store hangs and is deaf to that: then the read goes on alone, as a
// stray, and what it gives is dropped.
func (s *Store) getRange(ctx context.Context, object string, off, n int64) ([]byte, error) {
	src := s.objects()
	if src == nil {
		return nil, ErrDetached
	}
	reading, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, cancel)()
	type result struct {
		b   []byte
		err error
	}
	got, left := make(chan result), make(chan struct{})
	go func() {
		b, err := src.GetRange(reading, object, off, n)
		select {
		case got <- result{b, err}:
		case <-left:
			s.strays.ended()
		}
	}()
	select {
	case r := <-got:
		return r.b, r.err
	case <-reading.Done():
		s.strays.begun()
		close(left)
		return nil, cmp.Or(ctx.Err(), ErrClosed)
	}
}

// maxStrays is how many reads may have been left to themselves when another query may read
// what is in the checkpoint store. Else those that are asked again and again, while that
// hangs, would leave more and more of them.
const maxStrays = 64

// strays are the reads that nobody waits for any more.
type strays struct {
	mu    sync.Mutex
	n     int
	fewer chan struct{} // closed when there are few; nil: nobody waits
}

func (s *strays) begun() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.n++
}

func (s *strays) ended() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.n--; s.n < maxStrays && s.fewer != nil {
		close(s.fewer)
		s.fewer = nil
	}
}

// few waits until there are few.
func (s *strays) few(ctx, open context.Context) error {
	for {
		s.mu.Lock()
		if s.n < maxStrays {
			s.mu.Unlock()
			return nil
		}
		if s.fewer == nil {
			s.fewer = make(chan struct{})
		}
		fewer := s.fewer
		s.mu.Unlock()
		select {
		case <-fewer:
		case <-ctx.Done():
			return ctx.Err()
		case <-open.Done():
			return ErrClosed
		}
	}
}
