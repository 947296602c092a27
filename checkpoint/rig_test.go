package checkpoint_test

import (
	ctx "context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

const (
	app       = "wordcount"
	keyGroups = 8
)

// stores runs a test on each kind of store.
func stores(t *testing.T, test func(t *testing.T, store checkpoint.Store)) {
	t.Run("mem", func(t *testing.T) { test(t, checkpoint.NewMem()) })
	t.Run("dir", func(t *testing.T) {
		d, err := checkpoint.OpenDir(t.TempDir() + "/store")
		if err != nil {
			t.Fatal(err)
		}
		test(t, d)
	})
}

// model is what state should be: "kg/key" to value.
type model map[string]string

// changes are state changes: "kg/key" to value, "" deletes.
type changes map[string]string

func (m model) apply(c changes) {
	for k, v := range c {
		if v == "" {
			delete(m, k)
		} else {
			m[k] = v
		}
	}
}

// freeze encodes changes as two subtasks would that own half of the key-groups each.
func freeze(c changes) []segment.Run {
	var subtasks [2]segment.Builder
	for k, v := range c {
		g, key, _ := strings.Cut(k, "/")
		var kg uint16
		fmt.Sscan(g, &kg)
		b := &subtasks[kg/(keyGroups/2)]
		if v == "" {
			b.DeleteDone(append(b.BeginDelete(kg, 1), key...))
			continue
		}
		dst := b.KeyDone(append(b.BeginPut(kg, 1), key...))
		b.ValueDone(append(dst, v...))
	}
	return []segment.Run{subtasks[0].Finish(), subtasks[1].Finish()}
}

func snapshot(id int64, c changes) checkpoint.Snapshot {
	return checkpoint.Snapshot{
		Checkpoint: id,
		Positions:  map[offsets.Partition]offsets.Position{{Topic: "lines", Partition: 3}: {Offset: id * 10, LeaderEpoch: 2}},
		States:     []checkpoint.StateInfo{{ID: 1, Operator: "count", Name: "count", Kind: "value", KeyCodec: "string", ValueCodec: "int64", ValueVersion: 1}},
		Sinks:      map[string]json.RawMessage{"redis": json.RawMessage(fmt.Sprintf(`{"at":%d}`, id))},
		Runs:       freeze(c),
	}
}

// rig drives one writer.
type rig struct {
	testing.TB
	*checkpoint.Writer
	cfg checkpoint.Config
}

func newRig(t testing.TB, store checkpoint.Store, change func(*checkpoint.Config)) *rig {
	t.Helper()
	cfg := checkpoint.Config{Store: store, App: app, Instance: "host-a", KeyGroups: keyGroups, Incarnation: 0xa1, MergeFanIn: 1000}
	cfg.Listener.Collected = func(i event.Collected) {
		if i.Err != nil {
			t.Errorf("collection: %v", i.Err)
		}
	}
	cfg.Listener.Merged = func(i event.Merged) {
		if i.Err != nil {
			t.Errorf("merge: %v", i.Err)
		}
	}
	if change != nil {
		change(&cfg)
	}
	w, err := checkpoint.NewWriter(cfg)
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{t, w, cfg}
	t.Cleanup(r.close)
	return r
}

func (r *rig) close() {
	// Not t.Context, which is done when cleanup functions run.
	if err := r.Writer.Close(context()); err != nil {
		r.Errorf("close: %v", err)
	}
}

// commit persists and commits.
func (r *rig) commit(id int64, c changes) offsets.ManifestRef {
	r.Helper()
	ref, _, err := r.Persist(r.Context(), snapshot(id, c))
	if err != nil {
		r.Fatal(err)
	}
	r.Committed(id)
	return ref
}

// restore reads a checkpoint back and fails the test if that doesn't work.
func restore(t testing.TB, store checkpoint.Store, ref offsets.ManifestRef) model {
	t.Helper()
	got, err := tryRestore(store, ref)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

func tryRestore(store checkpoint.Store, ref offsets.ManifestRef) (model, error) {
	m, err := checkpoint.Load(context(), store, ref)
	if err != nil {
		return nil, err
	}
	got := model{}
	for e, err := range m.Scan(context(), store, 0, keyGroups) {
		if err != nil {
			return nil, err
		}
		got[fmt.Sprintf("%d/%s", e.KeyGroup, e.Key)] = string(e.Value)
	}
	return got, nil
}

func expect(t testing.TB, store checkpoint.Store, ref offsets.ManifestRef, want model) {
	t.Helper()
	if got := restore(t, store, ref); !maps.Equal(got, want) {
		t.Fatalf("checkpoint %d restores\n%v, want\n%v", ref.Checkpoint, got, want)
	}
}

// names lists all objects.
func names(t testing.TB, store checkpoint.Store) []string {
	t.Helper()
	var list []string
	for o, err := range store.List(context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		list = append(list, o.Name)
	}
	slices.Sort(list)
	return list
}

// context is for what outlives a test's own context.
func context() ctx.Context { return ctx.Background() }
