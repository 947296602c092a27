package checkpoint_test

import (
	"bytes"

	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"

	ctx "context"
)

// job makes some checkpoints, with inline segments and such of their own, and returns
// the last one, which is held.
func job(t testing.TB, s checkpoint.Store) (*rig, *checkpoint.Manifest, model) {
	t.Helper()
	r := newRig(t, s, func(c *checkpoint.Config) { c.InlineLimit = 1200; c.Listener = checkpoint.Listener{} })
	want := model{}
	for id := int64(1); id <= 4; id++ {
		c := changes{fmt.Sprintf("%d/k", id): fmt.Sprint(id), "0/all": fmt.Sprint(id)}
		if id == 2 {
			c["5/long"] = strings.Repeat("abcdefghijklm", 100)
			for i := range 40 {
				c[fmt.Sprintf("%d/%d", i%keyGroups, i)] = "x"
			}
		}
		if id == 4 {
			c["1/k"] = ""
		}
		want.apply(c)
		r.commit(id, c)
	}
	_, ref := r.Base()
	m, release, err := r.Hold(ref)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(release)
	inline := 0
	for _, s := range m.Segments {
		if s.Inline() {
			inline++
		}
	}
	if inline == 0 || inline == len(m.Segments) {
		t.Fatalf("want inline segments and others: %+v", m.Segments)
	}
	return r, m, want
}

func savepointState(t testing.TB, view checkpoint.Store, m *checkpoint.Manifest) model {
	t.Helper()
	got := model{}
	for e, err := range m.Scan(context(), view, 0, m.KeyGroups) {
		if err != nil {
			t.Fatal(err)
		}
		got[fmt.Sprintf("%d/%s", e.KeyGroup, e.Key)] = string(e.Value)
	}
	return got
}

func expectSavepoint(t testing.TB, s checkpoint.Store, name string, want model) (*checkpoint.Manifest, checkpoint.Store) {
	t.Helper()
	m, view, err := checkpoint.OpenSavepoint(context(), s, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := checkpoint.Verify(context(), view, m, nil); err != nil {
		t.Fatal(err)
	}
	if err := checkLogs(view, m); err != nil {
		t.Fatalf("savepoint %s: %v", name, err)
	}
	if got := savepointState(t, view, m); !maps.Equal(got, want) {
		t.Fatalf("savepoint %s restores\n%v, want\n%v", name, got, want)
	}
	return m, view
}

func TestSavepointOutlivesItsCheckpointAndCanBeMoved(t *testing.T) {
	stores(t, func(t *testing.T, s checkpoint.Store) {
		r, m, want := job(t, s)
		var last checkpoint.Progress
		info, err := checkpoint.CreateSavepoint(t.Context(), s, m, s, "before-upgrade", func(p checkpoint.Progress) { last = p })
		if err != nil {
			t.Fatal(err)
		}
		if !info.Complete || info.Name != "before-upgrade" || last.Segments != len(m.Segments) || m.LogBytes() == 0 || last.Bytes != m.Bytes()+m.LogBytes() || last.BytesTotal != last.Bytes {
			t.Errorf("info %+v, progress %+v", info, last)
		}
		if _, err := checkpoint.CreateSavepoint(t.Context(), s, m, s, "before-upgrade", nil); !errors.Is(err, checkpoint.ErrSavepointExists) {
			t.Errorf("the name is taken: %v", err)
		}
		for _, o := range names(t, s) { // as if the checkpoint were gone
			if !strings.HasPrefix(o, "savepoint/") {
				if err := s.Delete(t.Context(), o); err != nil {
					t.Fatal(err)
				}
			}
		}
		r.Settle()
		got, _ := expectSavepoint(t, s, "before-upgrade", want)
		if got.Lineage != m.Lineage || got.Checkpoint != 4 || !maps.Equal(got.Positions, m.Positions) || !reflect.DeepEqual(got.States, m.States) || string(got.Sinks["redis"]) != `{"at":4}` || got.Parent != (offsets.ManifestRef{}) {
			t.Errorf("%+v", got)
		}
		list, err := checkpoint.ListSavepoints(t.Context(), s)
		if err != nil || len(list) != 1 || !list[0].Complete || list[0].Bytes != info.Bytes || list[0].Objects != info.Objects || list[0].Created.IsZero() {
			t.Errorf("list %+v, %v", list, err)
		}

		// Into another store, with the library and as an administrator would.
		other := checkpoint.NewMem()
		if _, err := checkpoint.CopySavepoint(t.Context(), s, "before-upgrade", other, "copy", nil); err != nil {
			t.Fatal(err)
		}
		expectSavepoint(t, other, "copy", want)
		if d, ok := s.(*checkpoint.Dir); ok {
			moved := t.TempDir() + "/anywhere"
			if err := os.CopyFS(moved, os.DirFS(d.Path()+"/savepoint/before-upgrade")); err != nil {
				t.Fatal(err)
			}
			if err := os.RemoveAll(d.Path()); err != nil {
				t.Fatal(err)
			}
			at, err := checkpoint.OpenDir(moved)
			if err != nil {
				t.Fatal(err)
			}
			expectSavepoint(t, at, "", want)
		}
		if err := checkpoint.DeleteSavepoint(t.Context(), other, "copy"); err != nil {
			t.Fatal(err)
		}
		if left := names(t, other); len(left) != 0 {
			t.Errorf("left: %v", left)
		}
		if err := checkpoint.DeleteSavepoint(t.Context(), other, "copy"); !errors.Is(err, checkpoint.ErrNotFound) {
			t.Errorf("deleted twice: %v", err)
		}
		var missing *checkpoint.MissingError
		if _, _, err := checkpoint.OpenSavepoint(t.Context(), other, "copy"); !errors.As(err, &missing) {
			t.Errorf("open what is not there: %v", err)
		}
	})
}

func TestSavepointNames(t *testing.T) {
	for name, good := range map[string]bool{"a": true, "2026-11-21_v1.2": true, "": false, ".x": false, "-x": false, "a/b": false, "..": false, "a b": false, "ä": false, strings.Repeat("a", 100): true, strings.Repeat("a", 101): false} {
		if err := checkpoint.CheckSavepointName(name); (err == nil) != good {
			t.Errorf("%q: %v", name, err)
		}
	}
	s := checkpoint.NewMem()
	if _, err := checkpoint.CreateSavepoint(t.Context(), s, &checkpoint.Manifest{}, s, "../x", nil); err == nil {
		t.Error("created")
	}
	if err := checkpoint.DeleteSavepoint(t.Context(), s, "../x"); err == nil {
		t.Error("deleted")
	}
	if _, _, err := checkpoint.OpenSavepoint(t.Context(), s, "../x"); err == nil {
		t.Error("opened")
	}
}

// TestHeldCheckpointStaysUntilReleased takes a savepoint of a checkpoint that fell out of
// retention long ago.
func TestHeldCheckpointStaysUntilReleased(t *testing.T) {
	s := checkpoint.NewMem()
	r := newRig(t, s, func(c *checkpoint.Config) { c.Retain, c.MergeFanIn, c.InlineLimit = 1, 2, -1 })
	ref := r.commit(1, changes{"1/a": "1"})
	m, release, err := r.Hold(ref)
	if err != nil {
		t.Fatal(err)
	}
	goOn := func(from int64) {
		for id := from; id < from+10; id++ {
			r.commit(id, changes{"1/a": fmt.Sprint(id)})
			r.Settle()
		}
	}
	goOn(2)
	if _, err := checkpoint.CreateSavepoint(t.Context(), s, m, s, "x", nil); err != nil {
		t.Fatal(err)
	}
	expectSavepoint(t, s, "x", model{"1/a": "1"})
	if _, _, err := r.Hold(ref); err != nil {
		t.Error("it is held, so it can be held again:", err)
	}
	release()
	_, _, err = r.Hold(offsets.ManifestRef{Checkpoint: 99})
	if err == nil {
		t.Error("a checkpoint that is not there was held")
	}
}

// TestPinnedObjectsStay makes sure that a store which reads objects in place keeps them.
func TestPinnedObjectsStay(t *testing.T) {
	s := checkpoint.NewMem()
	pinned := []string{"seg/0000000000000001-000000a1.sst"}
	r := newRig(t, s, func(c *checkpoint.Config) {
		c.Retain, c.MergeFanIn, c.InlineLimit = 1, 2, -1
		c.Pinned = func() []string { return pinned }
	})
	commit := func(id int64) {
		r.commit(id, changes{"1/a": fmt.Sprint(id)})
		r.Settle()
	}
	for id := int64(1); id < 8; id++ {
		commit(id)
	}
	if _, err := s.Get(t.Context(), pinned[0]); err != nil {
		t.Error(err)
	}
	name := pinned[0]
	pinned = nil
	commit(8)
	if _, err := s.Get(t.Context(), name); !errors.Is(err, checkpoint.ErrNotFound) {
		t.Errorf("it is pinned no more, and still there: %v", err)
	}
}

// TestCrashInAnOperationOnSavepoints kills at each operation of the store, with and
// without its effect. What is called complete afterwards must be.
func TestCrashInAnOperationOnSavepoints(t *testing.T) {
	mem := checkpoint.NewMem()
	_, m, want := job(t, mem)
	if _, err := checkpoint.CreateSavepoint(t.Context(), mem, m, mem, "source", nil); err != nil {
		t.Fatal(err)
	}
	sp, view, err := checkpoint.OpenSavepoint(t.Context(), mem, "source")
	if err != nil {
		t.Fatal(err)
	}
	for what, do := range map[string]func(s checkpoint.Store) error{
		"create": func(s checkpoint.Store) error {
			_, err := checkpoint.CreateSavepoint(context(), mem, m, s, "x", nil)
			return err
		},
		"copy": func(s checkpoint.Store) error {
			_, err := checkpoint.CopySavepoint(context(), mem, "source", s, "x", nil)
			return err
		},
		"delete": func(s checkpoint.Store) error { return checkpoint.DeleteSavepoint(context(), s, "x") },
		"rewrite": func(s checkpoint.Store) error {
			_, err := checkpoint.RewriteSavepoint(context(), view, keyed(t, mem, sp), s, "x", checkpoint.RewriteOptions{KeyGroups: keyGroups, TargetBytes: 1})
			return err
		},
	} {
		for _, effect := range []bool{false, true} {
			for k, died := 1, true; died; k++ {
				target := checkpoint.NewMem()
				if what == "delete" {
					if _, err := checkpoint.CreateSavepoint(t.Context(), mem, m, target, "x", nil); err != nil {
						t.Fatal(err)
					}
				}
				s := faultstore.Wrap(target)
				s.Kill(k, effect)
				err := do(s)
				if died = err != nil; died && !errors.Is(err, faultstore.ErrDead) {
					t.Fatalf("%s, dead at %d (%v): %v", what, k, effect, err)
				}
				list, err := checkpoint.ListSavepoints(t.Context(), target)
				if err != nil {
					t.Fatal(err)
				}
				complete := len(list) == 1 && list[0].Complete
				if complete && what != "rewrite" {
					expectSavepoint(t, target, "x", want)
				}
				if !died && complete != (what != "delete") {
					t.Fatalf("%s is done: %+v", what, list)
				}
				if what == "delete" || complete {
					continue
				}
				if _, err := checkpoint.CreateSavepoint(t.Context(), mem, m, target, "x", nil); err != nil {
					t.Fatalf("%s, dead at %d (%v), then created: %v", what, k, effect, err)
				}
				expectSavepoint(t, target, "x", want)
				if err := checkpoint.DeleteSavepoint(t.Context(), target, "x"); err != nil || len(names(t, target)) > 0 {
					t.Fatalf("%v, left: %v", err, names(t, target))
				}
			}
		}
	}
}

func TestSavepointThatFailedLeavesNothing(t *testing.T) {
	mem := checkpoint.NewMem()
	_, m, _ := job(t, mem)
	for k, failed := 1, true; failed; k++ {
		target := checkpoint.NewMem()
		s, puts := faultstore.Wrap(target), 0
		s.After(func(_ ctx.Context, op faultstore.Op, name string) error {
			if op == faultstore.Put {
				puts++
			}
			if op == faultstore.Put && puts == k && !strings.HasSuffix(name, ".manifest") {
				return errors.New("no answer came")
			}
			return nil
		})
		_, err := checkpoint.CreateSavepoint(t.Context(), mem, m, s, "x", nil)
		if failed = err != nil; failed && len(names(t, target)) > 0 {
			t.Errorf("the answer to put %d was lost, and there is %v", k, names(t, target))
		}
	}
}

func TestSavepointIsGivenUpInTimeOnAStoreThatHangs(t *testing.T) {
	mem := checkpoint.NewMem()
	_, m, _ := job(t, mem)
	synctest.Test(t, func(t *testing.T) {
		c, cancel := ctx.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s, puts := faultstore.Wrap(checkpoint.NewMem()), 0
		s.Before(faultstore.Hang(func(op faultstore.Op, _ string) bool {
			if op == faultstore.Put {
				puts++
			}
			return puts > 1
		}, nil))
		if _, err := checkpoint.CreateSavepoint(c, mem, m, s, "x", nil); !errors.Is(err, ctx.DeadlineExceeded) {
			t.Errorf("the error is %v", err)
		}
	})
}

// keyed makes the entries of a test's savepoint, whose keys are in key-groups that the
// test chose, ones of a state without keys.
func keyed(t testing.TB, s checkpoint.Store, m *checkpoint.Manifest) *checkpoint.Manifest {
	t.Helper()
	c := *m
	c.States = []checkpoint.StateInfo{{ID: 1, Operator: "count", Name: "count", Kind: "broadcast"}}
	return &c
}

func TestJobStartsFromASavepoint(t *testing.T) {
	stores(t, func(t *testing.T, s checkpoint.Store) {
		_, m, want := job(t, s)
		if _, err := checkpoint.CreateSavepoint(t.Context(), s, m, s, "x", nil); err != nil {
			t.Fatal(err)
		}
		sp, view, err := checkpoint.OpenSavepoint(t.Context(), s, "x")
		if err != nil {
			t.Fatal(err)
		}
		o := checkpoint.AdoptOptions{App: app, Instance: "host-b", KeyGroups: keyGroups, Checkpoint: 100, Incarnation: 0xc3}
		base, ref, err := checkpoint.AdoptSavepoint(t.Context(), view, sp, s, o, nil)
		if err != nil {
			t.Fatal(err)
		}
		if base.Lineage == m.Lineage || base.Lineage == "" || base.Checkpoint != 100 || !maps.Equal(base.Positions, m.Positions) || base.Instance != "host-b" {
			t.Errorf("%+v", base)
		}
		expect(t, s, ref, want)
		// The savepoint is needed no more, and what is collected later is not of it.
		if err := checkpoint.DeleteSavepoint(t.Context(), s, "x"); err != nil {
			t.Fatal(err)
		}
		r := newRig(t, s, func(c *checkpoint.Config) {
			c.Base, c.BaseRef, c.Incarnation, c.MergeFanIn, c.Retain = base, ref, 0xc3, 2, 1
		})
		if r.Lineage() != base.Lineage {
			t.Error("the writer makes another lineage than the checkpoint that the savepoint became")
		}
		for id := int64(101); id < 110; id++ {
			c := changes{"1/n": fmt.Sprint(id)}
			want.apply(c)
			ref = r.commit(id, c)
			r.Settle()
			expect(t, s, ref, want)
		}
		for _, name := range names(t, s) {
			if strings.Contains(name, "/000000000000000") || strings.HasPrefix(name, "savepoint/") {
				if !strings.Contains(name, "/000000000000006") { // ids from 100 on
					t.Errorf("%s is left", name)
				}
			}
		}

		var wrong *checkpoint.WrongAppError
		other := o
		other.App, other.Checkpoint = "other", 200
		if _, _, err := checkpoint.AdoptSavepoint(t.Context(), view, sp, s, other, nil); !errors.As(err, &wrong) {
			t.Errorf("another app: %v", err)
		}
	})
}

// TestSavepointThatIsRemovedWhileItIsMade is removed at the last moment, and made at the last
// moment of its removal.
func TestSavepointThatIsRemovedWhileItIsMade(t *testing.T) {
	mem := checkpoint.NewMem()
	_, m, _ := job(t, mem)
	before := names(t, mem)
	const manifest = "savepoint/x/savepoint.manifest"
	s := faultstore.Wrap(mem)
	s.Before(func(c ctx.Context, op faultstore.Op, name string) error {
		if op == faultstore.Put && name == manifest {
			return checkpoint.DeleteSavepoint(c, mem, "x")
		}
		return nil
	})
	if _, err := checkpoint.CreateSavepoint(t.Context(), s, m, s, "x", nil); err == nil || !strings.Contains(err.Error(), "removed") {
		t.Errorf("its segments are gone: %v", err)
	}
	if left := names(t, mem); !slices.Equal(left, before) {
		t.Errorf("left %v, want %v", left, before)
	}

	s.Before(nil)
	if _, err := checkpoint.CreateSavepoint(t.Context(), s, m, s, "x", nil); err != nil {
		t.Fatal(err)
	}
	b, err := mem.Get(t.Context(), manifest)
	if err != nil {
		t.Fatal(err)
	}
	s.Before(func(c ctx.Context, op faultstore.Op, name string) error {
		if op == faultstore.Delete && strings.HasPrefix(name, "savepoint/x/seg/") {
			if err := mem.Put(c, manifest, b); !errors.Is(err, checkpoint.ErrExists) {
				return err
			}
		}
		return nil
	})
	if err := checkpoint.DeleteSavepoint(t.Context(), s, "x"); err != nil {
		t.Fatal(err)
	}
	if left := names(t, mem); !slices.Equal(left, before) {
		t.Errorf("left %v, want %v", left, before)
	}
}

// TestWhatWasCommittedStaysUntilTheSavepointIs begins from a savepoint in the store in which
// something newer was committed.
func TestWhatWasCommittedStaysUntilTheSavepointIs(t *testing.T) {
	s := checkpoint.NewMem()
	r, m, want := job(t, s)
	if _, err := checkpoint.CreateSavepoint(t.Context(), s, m, s, "x", nil); err != nil {
		t.Fatal(err)
	}
	sp, view := expectSavepoint(t, s, "x", want)
	newer := changes{"0/newer": "5"}
	want.apply(newer)
	last := r.commit(5, newer)
	r.Settle()
	r.close()
	var left []offsets.ManifestRef
	for try := range uint32(3) { // the first two starts come to nothing
		o := checkpoint.AdoptOptions{App: app, KeyGroups: keyGroups, Checkpoint: 6 + int64(try), Incarnation: 0xc0 + try}
		base, ref, err := checkpoint.AdoptSavepoint(t.Context(), view, sp, s, o, nil)
		if err != nil {
			t.Fatal(err)
		}
		left = append(left, ref)
		r = newRig(t, s, func(c *checkpoint.Config) {
			c.Base, c.BaseRef, c.Incarnation, c.Retain, c.Spare = base, ref, o.Incarnation, 1, last.Checkpoint
		})
		r.Settle()
		expect(t, s, last, want)
		if try < 2 {
			r.close()
		}
	}
	for _, ref := range left[:2] {
		if _, err := tryRestore(s, ref); !errors.As(err, new(*checkpoint.MissingError)) {
			t.Errorf("what start %v left: %v", ref, err)
		}
	}
	r.commit(9, newer)
	r.Settle()
	if _, err := tryRestore(s, last); !errors.As(err, new(*checkpoint.MissingError)) {
		t.Errorf("what was committed before: %v", err)
	}
}

func TestAdoptedSavepointForgetsPositionsWhenAsked(t *testing.T) {
	s := checkpoint.NewMem()
	_, m, want := job(t, s)
	if _, err := checkpoint.CreateSavepoint(t.Context(), s, m, s, "x", nil); err != nil {
		t.Fatal(err)
	}
	sp, view := expectSavepoint(t, s, "x", want)
	m, ref, err := checkpoint.AdoptSavepoint(t.Context(), view, sp, checkpoint.NewMem(), checkpoint.AdoptOptions{
		App: "fork", AnyApp: true, KeyGroups: keyGroups, Checkpoint: 5, DropPositions: true,
	}, nil)
	if err != nil || len(m.Positions) != 0 || m.Watermark != checkpoint.NoWatermark || m.App != "fork" || ref.Checkpoint != 5 {
		t.Errorf("%+v, %v", m, err)
	}
	if _, _, err := checkpoint.AdoptSavepoint(t.Context(), view, sp, checkpoint.NewMem(), checkpoint.AdoptOptions{App: app, KeyGroups: keyGroups, Checkpoint: 4}, nil); err == nil || !strings.Contains(err.Error(), "logs are older") {
		t.Errorf("with an id that its logs have: %v", err)
	}
	var groups *checkpoint.KeyGroupsError
	if _, _, err := checkpoint.AdoptSavepoint(t.Context(), view, sp, s, checkpoint.AdoptOptions{App: app, KeyGroups: 9, Checkpoint: 9}, nil); !errors.As(err, &groups) {
		t.Errorf("%v", err)
	}
}

// TestCrashWhileASavepointIsAdopted kills at each operation; the next start adopts it
// under a higher id, and what the first one left is collected.
func TestCrashWhileASavepointIsAdopted(t *testing.T) {
	from := checkpoint.NewMem()
	_, m, want := job(t, from)
	if _, err := checkpoint.CreateSavepoint(t.Context(), from, m, from, "x", nil); err != nil {
		t.Fatal(err)
	}
	sp, view := expectSavepoint(t, from, "x", want)
	for _, effect := range []bool{false, true} {
		for k, died := 1, true; died; k++ {
			mem := checkpoint.NewMem()
			s := faultstore.Wrap(mem)
			s.Kill(k, effect)
			o := checkpoint.AdoptOptions{App: app, KeyGroups: keyGroups, Checkpoint: 10, Incarnation: 1}
			_, _, err := checkpoint.AdoptSavepoint(t.Context(), view, sp, s, o, nil)
			if died = err != nil; !died {
				continue
			}
			o.Checkpoint, o.Incarnation = 11, 2
			base, ref, err := checkpoint.AdoptSavepoint(t.Context(), view, sp, mem, o, nil)
			if err != nil {
				t.Fatal(err)
			}
			r := newRig(t, mem, func(c *checkpoint.Config) { c.Base, c.BaseRef, c.Incarnation, c.Retain = base, ref, 2, 1 })
			ref = r.commit(12, nil)
			r.Settle()
			expect(t, mem, ref, want)
			for _, name := range names(t, mem) {
				if strings.Contains(name, "000000000000000a-") {
					t.Errorf("dead at %d (%v): %s is left", k, effect, name)
				}
			}
			r.close()
		}
	}
}

// TestRewriteMovesEveryKindOfStateToItsKeyGroup writes entries of each kind under their
// keys and looks for them after a rewrite.
func TestRewriteMovesEveryKindOfStateToItsKeyGroup(t *testing.T) {
	const from = 16
	s := checkpoint.NewMem()
	r := newRig(t, s, func(c *checkpoint.Config) { c.KeyGroups, c.InlineLimit = from, -1 })
	rng := rand.New(rand.NewPCG(1, 2))
	type entry struct {
		state uint16
		key   string // user key
		owner string // key; "-" has none
		value string
	}
	var all []entry
	for n := range 3000 {
		key := fmt.Sprintf("key\x00%d", n)
		if n == 0 {
			key = ""
		}
		at := binary.BigEndian.AppendUint64(nil, uint64(n)^1<<63)
		for id, user := range [][]byte{
			[]byte(key),
			append(segment.AppendEscaped(nil, []byte(key)), "map key"...),
			binary.BigEndian.AppendUint64(segment.AppendEscaped(nil, []byte(key)), uint64(n)),
			append(at, key...),
		} {
			all = append(all, entry{uint16(id + 1), string(user), key, value(rng, segment.Header{}, 24)})
		}
	}
	all = append(all, entry{5, "broadcast", "-", value(rng, segment.Header{}, 8)})
	place := func(e entry, groups int) uint16 {
		if e.owner == "-" {
			return 0
		}
		return uint16(keygroup.Of([]byte(e.owner), groups))
	}
	var b segment.Builder
	for _, e := range append(all, entry{6, "dead", "dead", "x"}) {
		b.ValueDone(append(b.KeyDone(append(b.BeginPut(place(e, from), e.state), e.key...)), e.value...))
	}
	snap := snapshot(1, nil)
	snap.States = nil
	for id, kind := range []string{"value", "map", "list", "timers", "broadcast", "dropped"} {
		snap.States = append(snap.States, checkpoint.StateInfo{ID: uint16(id + 1), Operator: "o", Name: kind, Kind: kind})
	}
	snap.Runs = []segment.Run{b.Finish()}
	snap.EventTime = checkpoint.EventTime{Stages: map[string]int64{"o": 1}, KeyGroups: []checkpoint.KeyGroupTime{{Stage: "o", MaxKG: 3, Watermark: 2}}}
	_, stats, err := r.Persist(t.Context(), snap)
	if err != nil {
		t.Fatal(err)
	}
	r.Committed(1)
	m := stats.Manifest
	for _, to := range []int{1, 7, 16, 100} {
		name := fmt.Sprint("to-", to)
		dir := t.TempDir()
		steps := 0
		_, err := checkpoint.RewriteSavepoint(t.Context(), s, m, s, name, checkpoint.RewriteOptions{
			KeyGroups: to, TempDir: dir, MemoryBytes: 100_000, TargetBytes: 40_000, Progress: func(checkpoint.Progress) { steps++ },
		})
		if err != nil {
			t.Fatal(err)
		}
		got, view, err := checkpoint.OpenSavepoint(t.Context(), s, name)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkpoint.Verify(t.Context(), view, got, nil); err != nil {
			t.Fatal(err)
		}
		if at := got.Watermarks("o", 0, to); slices.Max(at) != 1 {
			t.Errorf("time of keys whose key-groups are mixed stands at %v", at)
		}
		want := map[string]string{}
		for _, e := range all {
			want[string(segment.AppendKey(nil, place(e, to), e.state, []byte(e.key)))] = e.value
		}
		found := map[string]string{}
		for e, err := range got.Scan(t.Context(), view, 0, to) {
			if err != nil {
				t.Fatal(err)
			}
			found[string(segment.AppendKey(nil, e.KeyGroup, e.State, e.Key))] = string(e.Value)
		}
		if !maps.Equal(found, want) || got.KeyGroups != to || steps == 0 {
			t.Errorf("%d key-groups: %d entries, want %d; %d steps", to, len(found), len(want), steps)
		}
		if n := len(got.Levels(0, to)); n != 1 || to > 1 && len(got.Segments) < 3 {
			t.Errorf("%d key-groups: %d segments in %d levels", to, len(got.Segments), n)
		}
		if left, _ := os.ReadDir(dir); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
	m.States[0].Kind = "of the future"
	if _, err := checkpoint.RewriteSavepoint(t.Context(), s, m, s, "x", checkpoint.RewriteOptions{KeyGroups: 3}); err == nil || !strings.Contains(err.Error(), "of the future") {
		t.Errorf("unknown kind: %v", err)
	}
	m.States[0].Kind = "map" // its keys are not escaped
	if _, err := checkpoint.RewriteSavepoint(t.Context(), s, m, s, "x", checkpoint.RewriteOptions{KeyGroups: 3}); err == nil || !strings.Contains(err.Error(), "does not fit") {
		t.Errorf("wrong kind: %v", err)
	}
}

// TestVerifyNamesEveryDamage damages a savepoint in several places at once.
func TestVerifyNamesEveryDamage(t *testing.T) {
	s := checkpoint.NewMem()
	_, m, want := job(t, s)
	if _, err := checkpoint.CreateSavepoint(t.Context(), s, m, s, "x", nil); err != nil {
		t.Fatal(err)
	}
	sp, view := expectSavepoint(t, s, "x", want)
	if err := faultstore.FlipBit(s, "savepoint/x/"+sp.Segments[0].Object, 99); err != nil {
		t.Fatal(err)
	}
	if err := faultstore.Remove(s, "savepoint/x/"+sp.Segments[2].Object); err != nil {
		t.Fatal(err)
	}
	steps := 0
	err := checkpoint.Verify(t.Context(), view, sp, func(checkpoint.Progress) { steps++ })
	var damaged *checkpoint.DamagedError
	var missing *checkpoint.MissingError
	if !errors.As(err, &damaged) || !errors.As(err, &missing) || damaged.Object != sp.Segments[0].Object || missing.Object != sp.Segments[2].Object || steps != len(sp.Segments)+len(sp.Logs[0].Logs) {
		t.Errorf("%d steps: %v", steps, err)
	}
	// Sound bytes that are not what the manifest says.
	for what, change := range map[string]func(*checkpoint.SegmentRef){
		"entries":    func(s *checkpoint.SegmentRef) { s.Entries++ },
		"tombstones": func(s *checkpoint.SegmentRef) { s.Tombstones++ },
		"key-group":  func(s *checkpoint.SegmentRef) { s.MaxKG-- },
		"key":        func(s *checkpoint.SegmentRef) { s.MinKey, s.MaxKey = "0007", "0008" },
		"length":     func(s *checkpoint.SegmentRef) { s.Length-- },
	} {
		bad := *sp
		bad.Segments = []checkpoint.SegmentRef{sp.Segments[1]}
		change(&bad.Segments[0])
		if err := checkpoint.Verify(t.Context(), view, &bad, nil); !errors.As(err, &damaged) || damaged.Object != sp.Segments[1].Object {
			t.Errorf("another %s: %v", what, err)
		}
	}
	bad := *sp
	bad.Segments, bad.States = sp.Segments[1:2], nil
	if err := checkpoint.Verify(t.Context(), view, &bad, nil); !errors.As(err, &damaged) {
		t.Errorf("unknown state: %v", err)
	}
}

func FuzzDecodeSavepoint(f *testing.F) {
	s := checkpoint.NewMem()
	_, m, _ := job(f, s)
	if _, err := checkpoint.CreateSavepoint(f.Context(), s, m, s, "x", nil); err != nil {
		f.Fatal(err)
	}
	b, err := s.Get(f.Context(), "savepoint/x/savepoint.manifest")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b, true)
	f.Add(b[:len(b)/2], false)
	f.Add(bytes.Replace(b, []byte(`"object":"seg/`), []byte(`"object":"ckpt`), 1), true)
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		if mend {
			b = seal(b)
		}
		m, err := checkpoint.DecodeSavepoint(b)
		if err != nil {
			return
		}
		for _, s := range m.Segments {
			if !strings.HasPrefix(s.Object, "seg/") || strings.Contains(s.Object, "..") {
				t.Fatalf("a segment outside of the savepoint was taken: %+v", s)
			}
		}
		m.Levels(0, 1<<16) // whatever stands in it
	})
}
