package checkpoint_test

import (
	"testing"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offsets"
)

func TestLineageIsInheritedUnlessAskedOtherwise(t *testing.T) {
	s := checkpoint.NewMem()
	incarnation := uint32(0)
	begin := func(base *checkpoint.Manifest, ref offsets.ManifestRef, anew bool) *checkpoint.Manifest {
		t.Helper()
		incarnation++
		r := newRig(t, s, func(c *checkpoint.Config) {
			c.Base, c.BaseRef, c.Incarnation = base, ref, incarnation
			if anew {
				c.Lineage = checkpoint.NewLineage()
			}
		})
		r.commit(ref.Checkpoint+1, changes{"1/a": "1"})
		ref = r.commit(ref.Checkpoint+2, changes{"1/b": "1"})
		m, err := checkpoint.Load(t.Context(), s, ref)
		if err != nil {
			t.Fatal(err)
		}
		if m.Lineage != r.Lineage() || len(m.Lineage) != 16 {
			t.Fatalf("the manifest has lineage %q, the writer %q", m.Lineage, r.Lineage())
		}
		r.close()
		return m
	}
	ref := func(m *checkpoint.Manifest) offsets.ManifestRef {
		_, ref, err := checkpoint.Inspect(t.Context(), s, checkpoint.ManifestObject(offsets.ManifestRef{Checkpoint: m.Checkpoint, Incarnation: m.Incarnation}))
		if err != nil {
			t.Fatal(err)
		}
		return ref
	}
	first := begin(nil, offsets.ManifestRef{}, false)
	child := begin(first, ref(first), false)
	if child.Lineage != first.Lineage {
		t.Errorf("a child has lineage %q, its base %q", child.Lineage, first.Lineage)
	}
	if other := begin(child, ref(child), true); other.Lineage == first.Lineage {
		t.Error("a new lineage was asked for")
	}
	if other := begin(nil, offsets.ManifestRef{}, false); other.Lineage == first.Lineage {
		t.Error("two starts from nothing have one lineage")
	}
	// A manifest of a build that knew no lineage.
	old := *first
	old.Lineage = ""
	if m := begin(&old, ref(first), false); m.Lineage == "" {
		t.Error("no lineage after an old manifest")
	}
}

func TestWatermarkStandsInTheManifest(t *testing.T) {
	s := checkpoint.NewMem()
	r := newRig(t, s, nil)
	for i, watermark := range []int64{checkpoint.NoWatermark, 0, -5, 1_767_000_000_000} {
		snap := snapshot(int64(i+1), nil)
		snap.Watermark = watermark
		ref, _, err := r.Persist(t.Context(), snap)
		if err != nil {
			t.Fatal(err)
		}
		if m, err := checkpoint.Load(t.Context(), s, ref); err != nil || m.Watermark != watermark {
			t.Errorf("watermark %d, want %d: %v", m.Watermark, watermark, err)
		}
	}
}
