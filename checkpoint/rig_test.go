package checkpoint_test

import (
	ctx "context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
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
		Logs:       []checkpoint.LogPart{{Operator: "redis", Bytes: logPart(id, 0)}, {Operator: "redis", Bytes: logPart(id, 1)}},
		Keep:       map[string]int64{"redis": id - logsKept},
	}
}

// withoutLogs takes the logs out of a snapshot.
func withoutLogs(s checkpoint.Snapshot) checkpoint.Snapshot {
	s.Logs, s.Keep = nil, nil
	return s
}

// logsKept is for how many checkpoint ids the logs of snapshots are kept.
const logsKept = 4

func logPart(id int64, n int) []byte { return fmt.Appendf(nil, "%d/%d", id, n) }

// checkLogs reads the logs of a checkpoint whose snapshots come from snapshot, and
// tells what is wrong with them: the parts of each id that was tried must be there
// once, in order, from some id on up to that of the checkpoint.
func checkLogs(store checkpoint.Store, m *checkpoint.Manifest) error {
	if len(m.Logs) != 1 || m.Logs[0].Operator != "redis" {
		return fmt.Errorf("checkpoint %d has the logs %+v", m.Checkpoint, m.Logs)
	}
	sink, err := checkpoint.ExpandLogs(context(), store, m.Logs[0])
	if err != nil {
		return err
	}
	before := sink.Before
	last := before
	for _, l := range sink.Logs {
		parts, err := checkpoint.ReadLog(context(), store, l)
		if err != nil {
			return err
		}
		at := before
		for i, p := range parts {
			var id int64
			var n int
			if _, err := fmt.Sscanf(string(p), "%d/%d", &id, &n); err != nil || n != i%2 || n == 0 && id <= at || n == 1 && id != at || id > l.Checkpoint {
				return fmt.Errorf("the log of checkpoint %d, after that of %d, has the parts %q", l.Checkpoint, before, parts)
			}
			at = id
		}
		if at != l.Checkpoint || len(parts)%2 != 0 || l.Lineage == "" {
			return fmt.Errorf("the log %+v, after that of %d, has the parts %q", l, before, parts)
		}
		before, last = l.Checkpoint, l.Checkpoint
	}
	adopted := m.Parent == offsets.ManifestRef{} && len(sink.Logs) > 0 && sink.Logs[0].Lineage != m.Lineage // by a start from a savepoint
	if last != m.Checkpoint && !adopted {
		return fmt.Errorf("checkpoint %d has logs up to %d: %+v", m.Checkpoint, last, m.Logs)
	}
	return nil
}

// rig drives one writer.
type rig struct {
	testing.TB
	*checkpoint.Writer
	cfg checkpoint.Config
}

func newRig(t testing.TB, store checkpoint.Store, change func(*checkpoint.Config)) *rig {
	t.Helper()
	cfg := checkpoint.Config{Store: store, App: app, Instance: "host-a", KeyGroups: keyGroups, Incarnation: 0xa1, MergeFanIn: 1000, PackLogs: 3}
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
	if strings.Contains(store.String(), "/testdata/store-v1") {
		return got, nil // older than logs
	}
	return got, checkLogs(store, m)
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

// goldenRefs is where a golden store keeps the references that its test restores.
const goldenRefs = "ref.json"

// writeGolden keeps the reference of a golden store in dir, or several.
func writeGolden(t *testing.T, dir string, refs any) {
	t.Helper()
	text, err := json.Marshal(refs)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, goldenRefs), text, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// readGolden opens the golden store in dir and reads what writeGolden kept.
func readGolden(t *testing.T, dir string, refs any) *checkpoint.Dir {
	t.Helper()
	d, err := checkpoint.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	text, err := d.Get(t.Context(), goldenRefs)
	if err == nil {
		err = json.Unmarshal(text, refs)
	}
	if err != nil {
		t.Fatal(err)
	}
	return d
}
