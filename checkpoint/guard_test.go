//go:build weirbroken

package checkpoint_test

import (
	"testing"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/internal/guard"
)

// TestBrokenDurabilityWritesOnlyAfterTheCommit makes sure that taking out the guard
// does what the negative control counts on.
func TestBrokenDurabilityWritesOnlyAfterTheCommit(t *testing.T) {
	guard.Break(guard.DurableBeforeCommit)
	defer guard.Break("")
	s := checkpoint.NewMem()
	r := newRig(t, s, func(c *checkpoint.Config) { c.InlineLimit = -1 })
	ref, _, err := r.Persist(t.Context(), snapshot(1, changes{"1/a": "1"}))
	if err != nil {
		t.Fatal(err)
	}
	if got := names(t, s); len(got) > 0 {
		t.Fatalf("written before the commit: %v", got)
	}
	r.Committed(1)
	r.Settle()
	expect(t, s, ref, model{"1/a": "1"})
	ref, _, err = r.Persist(t.Context(), snapshot(2, changes{"1/a": "2"}))
	if err != nil {
		t.Fatal(err)
	}
	r.close()
	expect(t, s, ref, model{"1/a": "2"})
}

// TestBrokenChecksumServesDamage makes sure that a flipped bit gets through when the
// guard is out: the guard and nothing else is what refuses it.
func TestBrokenChecksumServesDamage(t *testing.T) {
	s := checkpoint.NewMem()
	r := newRig(t, s, nil)
	ref := r.commit(1, changes{"1/a": "1"})
	if err := faultstore.FlipBit(s, checkpoint.ManifestObject(ref), (24+len(`{"app":"w`))*8); err != nil {
		t.Fatal(err)
	}
	if _, err := checkpoint.Load(t.Context(), s, ref); err == nil {
		t.Fatal("the guard let a flipped bit through")
	}
	guard.Break(guard.Checksum)
	defer guard.Break("")
	if m, err := checkpoint.Load(t.Context(), s, ref); err != nil || m.App == app {
		t.Fatalf("loaded %+v, %v", m, err)
	}
}
