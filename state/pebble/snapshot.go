package pebble

import (
	"context"
	"math"
)

// Snapshot is the store as it was at one checkpoint. It may be used by many goroutines
// at once. Close it, or the store cannot be closed.
type Snapshot struct {
	s *Store
	v *version
}

// Snapshot returns the store as it is now, so that values can be read that belong
// together, and to one checkpoint.
//
// Errors are those of [Store.Get].
func (s *Store) Snapshot() (*Snapshot, error) {
	v, err := s.acquire()
	if err != nil {
		return nil, err
	}
	return &Snapshot{s, v}, nil
}

// ID returns the checkpoint that the snapshot is of.
func (p *Snapshot) ID() ID { return p.v.id }

// Get is [Store.Get] at the snapshot. It does not wait for the checkpoint store any more
// when ctx ends, and then gives its error.
func (p *Snapshot) Get(ctx context.Context, dst, key []byte) (value []byte, ok bool, err error) {
	if p.v.inPlace {
		if err := p.s.strays.few(ctx, p.s.ctx); err != nil {
			return dst, false, p.s.failed("read", "", err)
		}
	}
	return p.v.get(ctx, dst, key, math.MaxInt64)
}

// Close ends the use of the snapshot. It is called once, after everything else.
func (p *Snapshot) Close() { p.v.release() }
