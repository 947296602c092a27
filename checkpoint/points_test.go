package checkpoint_test

import (
	"bytes"
	ctx "context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/state/segment"
)

func pointKey(k string) []byte {
	g, key, _ := strings.Cut(k, "/")
	var kg uint16
	fmt.Sscan(g, &kg)
	return segment.AppendKey(nil, kg, 1, []byte(key))
}

// wantPoint compares one key with the model.
func wantPoint(t *testing.T, p *checkpoint.Points, m *checkpoint.Manifest, k string, want model) {
	t.Helper()
	v, ok, err := p.Get(t.Context(), m, pointKey(k))
	w, has := want[k]
	if err != nil || string(v) != w || ok != has {
		t.Errorf("checkpoint %d: %s is %q (%t, %v), want %q (%t)", m.Checkpoint, k, v, ok, err, w, has)
	}
}

// Keys are read out of a chain that grows, is merged and has tombstones, by several at once.
func TestPointsReadWhatARestoreWould(t *testing.T) {
	stores(t, func(t *testing.T, store checkpoint.Store) {
		r := newRig(t, store, func(c *checkpoint.Config) { c.MergeFanIn, c.InlineLimit = 3, 1000 })
		p := checkpoint.NewPoints(t.Context(), store)
		defer p.Close()
		rng := rand.New(rand.NewPCG(1, 2))
		want := model{}
		for id := range int64(40) {
			c := changes{}
			for range rng.IntN(60) {
				v := fmt.Sprint("value-", rng.IntN(1000))
				if rng.IntN(4) == 0 {
					v = ""
				}
				c[fmt.Sprintf("%d/key-%d", rng.IntN(keyGroups), rng.IntN(30))] = v
			}
			ref := r.commit(id+1, c)
			want.apply(c)
			if id%5 == 0 {
				r.Settle()
			}
			m, release, err := r.Hold(ref)
			if err != nil {
				t.Fatal(err)
			}
			var askers sync.WaitGroup
			for kg := range keyGroups {
				askers.Go(func() {
					for n := range 32 {
						wantPoint(t, p, m, fmt.Sprintf("%d/key-%d", kg, n), want)
					}
				})
			}
			askers.Wait()
			release()
		}
	})
}

// big is a checkpoint whose segment is too large to be read as a whole.
func big(t *testing.T, store checkpoint.Store) (*checkpoint.Manifest, model) {
	t.Helper()
	r := newRig(t, store, nil)
	rng := rand.New(rand.NewPCG(3, 4))
	c := changes{}
	for n := range 4000 {
		v := make([]byte, 500)
		for i := range v {
			v[i] = byte(rng.IntN(255) + 1)
		}
		c[fmt.Sprintf("%d/key-%d", n%keyGroups, n)] = string(v)
	}
	ref := r.commit(1, c)
	m, err := checkpoint.Load(t.Context(), store, ref)
	if err != nil {
		t.Fatal(err)
	}
	if m.Bytes() < 1<<20 {
		t.Fatalf("the segment has %d bytes", m.Bytes())
	}
	want := model{}
	want.apply(c)
	return m, want
}

// meter counts what is read, and fails when it is told to.
type meter struct {
	checkpoint.Store
	mu    sync.Mutex
	reads int
	bytes int64
	err   error
	hang  chan struct{}
}

func (s *meter) GetRange(c ctx.Context, name string, off, n int64) ([]byte, error) {
	s.mu.Lock()
	s.reads++
	s.bytes += n
	err, hang := s.err, s.hang
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	if hang != nil {
		select {
		case <-hang:
		case <-c.Done():
			return nil, c.Err()
		}
	}
	return s.Store.GetRange(c, name, off, n)
}

func (s *meter) set(err error, hang chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.err, s.hang = err, hang
}

func TestPointsReadLittleOfALargeSegment(t *testing.T) {
	store := &meter{Store: checkpoint.NewMem()}
	m, want := big(t, store)
	p := checkpoint.NewPoints(t.Context(), store)
	defer p.Close()
	wantPoint(t, p, m, "1/key-9", want)
	if store.bytes > m.Bytes()/4 {
		t.Errorf("%d of %d bytes were read for one key", store.bytes, m.Bytes())
	}
	first := store.reads
	wantPoint(t, p, m, "1/key-9", want)
	if store.reads != first {
		t.Errorf("%d reads for a key that was just read", store.reads-first)
	}
	for n := range 4100 {
		wantPoint(t, p, m, fmt.Sprintf("%d/key-%d", n%keyGroups, n), want)
	}
	if store.bytes > 2*m.Bytes() {
		t.Errorf("%d bytes were read of a segment of %d", store.bytes, m.Bytes())
	}
}

func TestPointsRecoverFromAStoreThatFailsOrHangs(t *testing.T) {
	store := &meter{Store: checkpoint.NewMem()}
	m, want := big(t, store)
	p := checkpoint.NewPoints(t.Context(), store)
	defer p.Close()
	down := errors.New("the store is down")
	for range 2 { // while it is opened, then while it is read
		store.set(down, nil)
		if _, _, err := p.Get(t.Context(), m, pointKey("5/key-1013")); !errors.Is(err, down) {
			t.Errorf("while the store is down: %v", err)
		}
		store.set(nil, nil)
		wantPoint(t, p, m, "1/key-9", want)
	}
	hang := make(chan struct{})
	store.set(nil, hang)
	c, cancel := ctx.WithCancel(t.Context())
	got := make(chan error)
	go func() {
		_, _, err := p.Get(c, m, pointKey("3/key-3003"))
		got <- err
	}()
	cancel()
	if err := <-got; !errors.Is(err, ctx.Canceled) {
		t.Errorf("a caller that gave up got %v", err)
	}
	close(hang)
	wantPoint(t, p, m, "3/key-3003", want)
	store.set(nil, make(chan struct{})) // for ever
	go func() {
		_, _, err := p.Get(t.Context(), m, pointKey("4/key-1004"))
		got <- err
	}()
	p.Close() // does not wait for it
	if err := <-got; err == nil {
		t.Error("a read that Close ended has no error")
	}
	if _, _, err := p.Get(t.Context(), m, pointKey("1/key-9")); !errors.Is(err, checkpoint.ErrPointsClosed) {
		t.Errorf("after Close: %v", err)
	}
}

// Who asked has gone, and asks again, while the store hangs: the reads do not become more and
// more.
func TestPointsLeaveFewReadsToAStoreThatHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const most, asked = 64, 100
		store := &meter{Store: checkpoint.NewMem()}
		m, want := big(t, store)
		p := checkpoint.NewPoints(t.Context(), store)
		defer p.Close()
		wantPoint(t, p, m, "1/key-9", want)
		hang, before := make(chan struct{}), store.reads
		store.set(nil, hang)
		for _, waits := range []bool{false, true} {
			c, cancel := ctx.WithCancel(t.Context())
			got := make(chan error, asked)
			for range asked {
				go func() {
					_, _, err := p.Get(c, m, pointKey("3/key-3003"))
					got <- err
				}()
			}
			synctest.Wait()
			if n := store.reads - before; n != most {
				t.Errorf("%d reads were begun, want %d", n, most)
			}
			if waits {
				close(hang)
			} else {
				cancel()
			}
			for range asked {
				if err := <-got; waits != (err == nil) || err != nil && !errors.Is(err, ctx.Canceled) {
					t.Errorf("the caller goes on waiting: %t, got %v", waits, err)
				}
			}
			cancel()
		}
	})
}

func TestS04_PointsRefuseADamagedSegmentByName(t *testing.T) {
	mem := checkpoint.NewMem()
	m, _ := big(t, mem)
	s := m.Segments[0]
	b, err := mem.Get(t.Context(), s.Object)
	if err != nil {
		t.Fatal(err)
	}
	b = bytes.Clone(b)
	for i := range len(b) / 2 {
		b[i] ^= 1
	}
	if err := errors.Join(mem.Delete(t.Context(), s.Object), mem.Put(t.Context(), s.Object, b)); err != nil {
		t.Fatal(err)
	}
	p := checkpoint.NewPoints(t.Context(), mem)
	defer p.Close()
	_, _, err = p.Get(t.Context(), m, pointKey("0/key-0"))
	var damaged *checkpoint.DamagedError
	if !errors.As(err, &damaged) || damaged.Object != s.Object {
		t.Errorf("a damaged segment: %v", err)
	}
	if err := mem.Delete(t.Context(), s.Object); err != nil {
		t.Fatal(err)
	}
	var missing *checkpoint.MissingError
	if _, _, err = p.Get(t.Context(), m, pointKey("0/key-0")); !errors.As(err, &missing) {
		t.Errorf("a segment that is gone: %v", err)
	}
}
