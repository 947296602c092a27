package pebble

import (
	"context"
	"errors"
	"math"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestSnapshotStaysAtItsCheckpoint(t *testing.T) {
	h := newHistory(t, newRemoteBucket(), "l")
	fs := vfs.NewMem()
	s := open(t, fs, Options{})
	if _, err := s.Snapshot(); err != ErrDetached {
		t.Errorf("before Attach: %v", err)
	}
	_, first, _ := h.commit(set(1, "a", "1"), set(1, "b", "1"))
	h.attach(s)
	p, err := s.Snapshot()
	if err != nil {
		t.Fatal(err)
	}
	h.ingest(s, set(1, "a", "2"), del(1, "b"), set(1, "c", "2"))
	for key, want := range map[string]string{"a": "1", "b": "1", "c": ""} {
		if v, ok, err := p.Get(t.Context(), nil, keyOf(1, key)); string(v) != want || ok != (want != "") || err != nil {
			t.Errorf("%s is %q (%t, %v), want %q", key, v, ok, err, want)
		}
	}
	if p.ID() != first || s.ID() == first {
		t.Errorf("the snapshot is of %v, the store at %v", p.ID(), s.ID())
	}
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	if v, _, err := p.Get(t.Context(), nil, keyOf(1, "a")); string(v) != "1" || err != nil {
		// Close waits for who reads; a read that it met may end with an error.
		t.Logf("while the store is closed: %q, %v", v, err)
	}
	select {
	case <-closed:
		t.Error("the store was closed under a snapshot")
	default:
	}
	p.Close()
	if err := <-closed; err != nil {
		t.Error(err)
	}
	if _, err := s.Snapshot(); err != ErrClosed {
		t.Errorf("after Close: %v", err)
	}
}

// deafStore returns a store that reads one segment in place, from where no read comes back
// until release is closed. Each tells that it begins.
func deafStore(t *testing.T) (s *Store, h *history, reading chan struct{}, release chan struct{}) {
	t.Helper()
	b := newRemoteBucket()
	h = newHistory(t, b, "aa")
	h.bigCommit(1)
	reading, release = make(chan struct{}, 3*maxStrays), make(chan struct{})
	var deaf atomic.Bool
	b.before(func(_ string, _, n int64) error {
		switch {
		case n > copyBytes:
			<-release // it is not copied
		case deaf.Load():
			reading <- struct{}{}
			<-release
		}
		return nil
	})
	s = open(t, vfs.NewMem(), Options{})
	h.attach(s)
	deaf.Store(true)
	return s, h, reading, release
}

// A read that does not come back keeps nobody: not who asked, nor who wants the same block
// next, nor who closes the store.
func TestReadInPlaceEndsWithItsContextAlsoIfTheStoreIsDeaf(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, reading, release := deafStore(t)
		p, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		asked, next := make(chan error, 1), make(chan error, 1)
		go func() {
			_, _, err := p.Get(ctx, nil, keyOf(5, "big-1"))
			p.Close()
			asked <- err
		}()
		<-reading
		go func() {
			_, _, err := s.Get(nil, keyOf(5, "big-1"), math.MaxInt64)
			next <- err
		}()
		synctest.Wait() // it waits for the first one
		cancel()
		if err := <-asked; !errors.Is(err, context.Canceled) {
			t.Errorf("the look ended with %v", err)
		}
		<-reading
		closeStore(t, s)
		if err := <-next; err == nil {
			t.Error("a look of a store that was closed has ended well")
		}
		close(release)
		if synctest.Wait(); s.strays.n != 0 {
			t.Errorf("%d reads are left", s.strays.n)
		}
	})
}

func TestReadsThatNobodyWaitsForAreBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, h, reading, release := deafStore(t)
		p, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		key := keyOf(0, "big-1")
		for kg := uint16(0); h.states[h.at][string(key)] == ""; kg++ {
			key = keyOf(kg, "big-1")
		}
		for range 2 * maxStrays {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			if _, _, err := p.Get(ctx, nil, key); !errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("the look ended with %v", err)
			}
			cancel()
		}
		if n := len(reading); n != maxStrays {
			t.Errorf("%d reads were left, want %d", n, maxStrays)
		}
		refused := make(chan error, 1)
		go func() {
			v, ok, err := p.Get(t.Context(), nil, key)
			if err == nil && (!ok || string(v) != h.states[h.at][string(key)]) {
				err = errors.New("another value")
			}
			refused <- err
		}()
		synctest.Wait() // it waits for one of them to end
		close(release)
		if err := <-refused; err != nil {
			t.Error(err)
		}
		p.Close()
		closeStore(t, s)
	})
}

func TestLookThatWaitsForOtherReadsToEndDoesNotHoldUpClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, _, _, release := deafStore(t)
		for range maxStrays {
			s.strays.begun()
		}
		p, err := s.Snapshot()
		if err != nil {
			t.Fatal(err)
		}
		asked := make(chan error, 1)
		go func() {
			_, _, err := p.Get(t.Context(), nil, keyOf(5, "big-1"))
			p.Close()
			asked <- err
		}()
		synctest.Wait()
		closeStore(t, s)
		if err := <-asked; !errors.Is(err, ErrClosed) {
			t.Errorf("the look ended with %v", err)
		}
		close(release)
	})
}
