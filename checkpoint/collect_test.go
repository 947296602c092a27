package checkpoint_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"

	ctx "context"
)

// later is a clock by which everything that is in a store now is old.
func later() time.Time { return time.Now().Add(2 * checkpoint.DefaultGrace) }

func TestCollectDeletesOnlyOldGarbage(t *testing.T) {
	stores(t, func(t *testing.T, s checkpoint.Store) {
		r := newRig(t, s, func(c *checkpoint.Config) { c.InlineLimit = -1 })
		refs := map[int64]offsets.ManifestRef{}
		for id := int64(1); id <= 6; id++ {
			refs[id] = r.commit(id, changes{"1/a": fmt.Sprint(id)})
			r.Settle()
		}
		m, _ := r.Base()
		if _, err := checkpoint.CreateSavepoint(t.Context(), s, m, s, "x", nil); err != nil {
			t.Fatal(err)
		}
		r.close()
		keep := names(t, s)
		orphans := []string{"ckpt/0000000000000003-000000ff.manifest", "seg/0000000000000002-000000ff.sst", "seg/0000000000000003-000000ff-m7.sst", "log/0000000000000003-000000ff-1.log"}
		// What a writer may be about to name, and what is none of ours.
		keep = append(keep, "seg/0000000000000004-000000ff.sst", "log/0000000000000004-000000ff-0.log", "log/0000000000000001-000000ff-x.log", "seg/0000000000000009-000000ff.sst", "seg/x", "savepoint/half/seg/ab-000000.sst", "owner/0000000000000001.json", "probe/x")
		for _, name := range append(slices.Clone(orphans), keep[len(keep)-8:]...) {
			if err := s.Put(t.Context(), name, []byte("12345")); err != nil {
				t.Fatal(err)
			}
		}
		slices.Sort(keep)
		before := names(t, s)
		o := checkpoint.CollectOptions{Live: []offsets.ManifestRef{refs[6]}, Retain: 3}
		if report, err := checkpoint.Collect(t.Context(), s, o); err != nil || len(report.Deleted) != 0 || !slices.Equal(names(t, s), before) {
			t.Errorf("within the grace period: %+v, %v", report, err)
		}
		o.Now, o.DryRun = later, true
		o.Pinned = []string{orphans[2]}
		report, err := checkpoint.Collect(t.Context(), s, o)
		if err != nil || len(report.Deleted) != 3 || report.Bytes != 15 || !slices.Equal(names(t, s), before) {
			t.Errorf("dry run: %+v, %v", report, err)
		}
		o.DryRun, o.Pinned = false, nil
		report, err = checkpoint.Collect(t.Context(), s, o)
		if err != nil || len(report.Deleted) != len(orphans) || !strings.HasPrefix(report.Deleted[0].Name, "ckpt/") {
			t.Errorf("%+v, %v", report, err)
		}
		if left := names(t, s); !slices.Equal(left, keep) {
			t.Errorf("left\n%v, want\n%v", left, keep)
		}
		for id := int64(4); id <= 6; id++ {
			expect(t, s, refs[id], model{"1/a": fmt.Sprint(id)})
		}
		if _, err := checkpoint.Collect(t.Context(), s, checkpoint.CollectOptions{Now: later}); err == nil {
			t.Error("collected without a live checkpoint")
		}
		var missing *checkpoint.MissingError
		o.Live = append(o.Live, offsets.ManifestRef{Checkpoint: 5, Incarnation: 77})
		if _, err := checkpoint.Collect(t.Context(), s, o); !errors.As(err, &missing) {
			t.Errorf("a live checkpoint is missing: %v", err)
		}
	})
}

// TestCollectBesideAWriterHarmsNothing collects when the clock, which all share, has gone on
// by more than the grace period, between the steps of a writer that merges in the
// background, persists without committing, and is replaced.
func TestCollectBesideAWriterHarmsNothing(t *testing.T) {
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 3))
		mem := checkpoint.NewMem()
		var ahead atomic.Int64
		clock := func() time.Time { return time.Now().Add(time.Duration(ahead.Load())) }
		mem.SetClock(clock)
		want := model{}
		var live offsets.ManifestRef
		collect := func() {
			if live.Checkpoint == 0 {
				return
			}
			ahead.Add(int64(2 * checkpoint.DefaultGrace))
			if _, err := checkpoint.Collect(context(), mem, checkpoint.CollectOptions{Live: []offsets.ManifestRef{live}, Retain: 2, Now: clock}); err != nil {
				t.Fatal(err)
			}
		}
		var id int64
		for incarnation := range uint32(3) {
			var base *checkpoint.Manifest
			if live.Checkpoint > 0 {
				var err error
				if base, err = checkpoint.Load(t.Context(), mem, live); err != nil {
					t.Fatal(err)
				}
			}
			r := newRig(t, mem, func(c *checkpoint.Config) {
				c.Base, c.BaseRef, c.Incarnation = base, live, incarnation
				c.MergeFanIn, c.Retain, c.InlineLimit = 2, 2, int64(rng.IntN(2)*1500)
				c.Listener, c.Now = checkpoint.Listener{}, clock
			})
			for range 12 {
				id++
				c := changes{fmt.Sprintf("%d/%d", rng.IntN(keyGroups), rng.IntN(20)): fmt.Sprint(id)}
				if rng.IntN(4) == 0 {
					collect()
				}
				ref, _, err := r.Persist(t.Context(), snapshot(id, c))
				if err != nil {
					t.Fatal(err)
				}
				want.apply(c)
				if rng.IntN(3) == 0 {
					collect() // it is persisted, not committed
				}
				if rng.IntN(5) == 0 {
					continue
				}
				live = ref // the transaction commits
				r.Committed(id)
				if rng.IntN(2) == 0 {
					r.Settle()
				}
				expect(t, mem, live, want)
			}
			r.close()
			id, want = live.Checkpoint+1, restore(t, mem, live)
		}
	}
}

// TestCollectLeavesTheResultOfALongMerge holds a merge up until its id is old news, and
// collects before a checkpoint names the result.
func TestCollectLeavesTheResultOfALongMerge(t *testing.T) {
	for _, tooLate := range []bool{false, true} {
		mem := checkpoint.NewMem()
		s := faultstore.Wrap(mem)
		written := make(chan struct{}, 100)
		hold := make(chan struct{})
		release := sync.OnceFunc(func() { close(hold) })
		now := time.Now()
		r := newRig(t, s, func(c *checkpoint.Config) {
			c.MergeFanIn, c.InlineLimit, c.Retain, c.MergeTarget = 2, -1, 1, 100<<10
			c.Now = func() time.Time { return now }
			c.Listener = checkpoint.Listener{}
		})
		t.Cleanup(release)
		rng := rand.New(rand.NewPCG(1, 2))
		want := map[string]string{}
		id := int64(0)
		var ref offsets.ManifestRef
		commit := func(keys int) {
			t.Helper()
			id++
			e := epoch{}
			for range keys {
				k := key(rng.IntN(1 << 30))
				e[k] = value(rng, segment.Header{}, 96)
				want[k] = e[k]
			}
			snap := snapshot(id, nil)
			snap.Runs = []segment.Run{e.run(keyGroups)}
			var err error
			if ref, _, err = r.Persist(t.Context(), snap); err != nil {
				t.Fatal(err)
			}
			r.Committed(id)
		}
		s.After(faultstore.Stall(func(op faultstore.Op, name string) bool {
			if op != faultstore.Put || !strings.Contains(name, "-m") {
				return false
			}
			written <- struct{}{}
			return true
		}, hold))
		commit(3000)
		commit(3000)
		<-written // a piece of the merge is durable; its writer doesn't know
		for range 5 {
			commit(0)
		}
		options := checkpoint.CollectOptions{Live: []offsets.ManifestRef{ref}, Retain: 1, Grace: checkpoint.DefaultGrace}
		if tooLate {
			options.Now = later
		}
		report, err := checkpoint.Collect(t.Context(), mem, options)
		if err != nil || len(report.Deleted) > 0 != tooLate {
			t.Fatalf("too late %v: %+v, %v", tooLate, report, err)
		}
		if tooLate { // by the writer's clock as well
			now = now.Add(2 * checkpoint.DefaultGrace)
		}
		release()
		r.Settle()
		for range 3 {
			commit(0)
			r.Settle()
			m, err := checkpoint.Load(t.Context(), mem, ref)
			if err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(contents(t, mem, m), want) {
				t.Fatalf("too late %v: checkpoint %d is not what was written", tooLate, id)
			}
		}
	}
}

// The store's clock is behind, so by that of this machine all objects are old.
func TestCollectTellsAgeByTheClockOfTheStore(t *testing.T) {
	mem := checkpoint.NewMem()
	var ahead time.Duration
	mem.SetClock(func() time.Time { return time.Now().Add(ahead - 2*checkpoint.DefaultGrace) })
	r := newRig(t, mem, func(c *checkpoint.Config) { c.InlineLimit = -1 })
	r.commit(1, changes{"1/a": "1"})
	ref := r.commit(2, changes{"1/a": "2"})
	r.close()
	if err := mem.Put(t.Context(), "seg/0000000000000001-000000ff-m0.sst", nil); err != nil {
		t.Fatal(err)
	}
	before := names(t, mem)
	o := checkpoint.CollectOptions{Live: []offsets.ManifestRef{ref}, Retain: 1}
	if report, err := checkpoint.Collect(t.Context(), mem, o); err != nil || len(report.Deleted) > 0 || !slices.Equal(names(t, mem), before) {
		t.Errorf("what was just written: %+v, %v; left %v", report, err, names(t, mem))
	}
	ahead = 2 * checkpoint.DefaultGrace
	if report, err := checkpoint.Collect(t.Context(), mem, o); err != nil || len(report.Deleted) == 0 {
		t.Errorf("when it is old: %+v, %v", report, err)
	}
	expect(t, mem, ref, model{"1/a": "2"})
}

func TestCollectMakesRoomInAFullStore(t *testing.T) {
	mem := checkpoint.NewMem()
	var ahead time.Duration
	mem.SetClock(func() time.Time { return time.Now().Add(ahead) })
	r := newRig(t, mem, func(c *checkpoint.Config) { c.InlineLimit = -1 })
	r.commit(1, changes{"1/a": "1"})
	const left, young = "seg/0000000000000001-000000ff-m0.sst", "seg/0000000000000001-000000ff-m1.sst"
	if err := mem.Put(t.Context(), left, nil); err != nil {
		t.Fatal(err)
	}
	ahead = 2 * checkpoint.DefaultGrace
	ref := r.commit(2, changes{"1/a": "2"})
	r.close()
	if err := mem.Put(t.Context(), young, nil); err != nil {
		t.Fatal(err)
	}
	s := faultstore.Wrap(mem)
	s.Before(func(_ ctx.Context, op faultstore.Op, name string) error {
		if op == faultstore.Put {
			return &checkpoint.StoreError{Op: "put", Object: name, Store: "full", Err: syscall.ENOSPC}
		}
		return nil
	})
	o := checkpoint.CollectOptions{Live: []offsets.ManifestRef{ref}, Retain: 1}
	if _, err := checkpoint.Collect(t.Context(), s, o); err != nil {
		t.Fatal(err)
	}
	if there := names(t, mem); slices.Contains(there, left) || !slices.Contains(there, young) {
		t.Errorf("left %v", there)
	}
	expect(t, mem, ref, model{"1/a": "2"})
	o.Grace = -1
	if _, err := checkpoint.Collect(t.Context(), mem, o); err == nil || !strings.Contains(err.Error(), "grace") {
		t.Errorf("with a grace below nothing: %v", err)
	}
}

// TestCrashWhileCollecting kills at each operation.
func TestCrashWhileCollecting(t *testing.T) {
	for _, effect := range []bool{false, true} {
		for k, died := 1, true; died; k++ {
			mem := checkpoint.NewMem()
			r := newRig(t, mem, func(c *checkpoint.Config) { c.InlineLimit = -1; c.Retain = 10 })
			var ref offsets.ManifestRef
			want := model{}
			for id := int64(1); id <= 6; id++ {
				c := changes{fmt.Sprintf("1/%d", id): "x"}
				want.apply(c)
				ref = r.commit(id, c)
			}
			r.close()
			for _, name := range []string{"seg/0000000000000001-000000ff.sst", "seg/0000000000000002-000000ff.sst"} {
				if err := mem.Put(t.Context(), name, []byte("x")); err != nil {
					t.Fatal(err)
				}
			}
			s := faultstore.Wrap(mem)
			s.Kill(k, effect)
			o := checkpoint.CollectOptions{Live: []offsets.ManifestRef{ref}, Retain: 2, Now: later}
			_, err := checkpoint.Collect(t.Context(), s, o)
			died = err != nil
			expect(t, mem, ref, want)
			if _, err := checkpoint.Collect(t.Context(), mem, o); err != nil {
				t.Fatal(err)
			}
			expect(t, mem, ref, want)
			if left := names(t, mem); len(left) != 2+6+6 {
				t.Errorf("dead at %d (%v): left %v", k, effect, left)
			}
		}
	}
}
