package pebble

import (
	"testing"

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
		if v, ok, err := p.Get(nil, keyOf(1, key)); string(v) != want || ok != (want != "") || err != nil {
			t.Errorf("%s is %q (%t, %v), want %q", key, v, ok, err, want)
		}
	}
	if p.ID() != first || s.ID() == first {
		t.Errorf("the snapshot is of %v, the store at %v", p.ID(), s.ID())
	}
	closed := make(chan error)
	go func() { closed <- s.Close() }()
	if v, _, err := p.Get(nil, keyOf(1, "a")); string(v) != "1" || err != nil {
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
