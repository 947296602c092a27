package checkpoint_test

import (
	ctx "context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var errStore = errors.New("store is full")

// on returns a hook that fails operations on objects that match a pattern.
func on(op faultstore.Op, pattern string, err error) faultstore.Hook {
	return func(_ ctx.Context, o faultstore.Op, name string) error {
		if ok, _ := path.Match(pattern, name); ok && o == op {
			return err
		}
		return nil
	}
}

func matching(pattern string) func(faultstore.Op, string) bool {
	return func(op faultstore.Op, name string) bool {
		ok, _ := path.Match(pattern, name)
		return ok && op == faultstore.Put
	}
}

func TestEmptyEpochWritesNoSegment(t *testing.T) {
	s := checkpoint.NewMem()
	r := newRig(t, s, nil)
	r.commit(1, changes{"1/a": "1"})
	ref, stats, err := r.Persist(t.Context(), snapshot(2, nil))
	if err != nil || stats.Segment != nil || stats.Segments != 1 {
		t.Fatalf("%+v, %v", stats, err)
	}
	expect(t, s, ref, model{"1/a": "1"})
}

// TestS08_FailedPersistCarriesItsChangesOver fails each write of a checkpoint, before
// and after its effect, several times in a row; the next one has it all.
func TestS08_FailedPersistCarriesItsChangesOver(t *testing.T) {
	for _, inline := range []int64{-1, 0} {
		for _, pattern := range []string{"seg/*", "log/*", "ckpt/*"} {
			for _, effect := range []bool{false, true} {
				t.Run(fmt.Sprintf("inline=%d %s effect=%v", inline, pattern, effect), func(t *testing.T) {
					s := faultstore.Wrap(checkpoint.NewMem())
					r := newRig(t, s, func(c *checkpoint.Config) { c.InlineLimit, c.Retain = inline, 1 })
					want := model{"1/a": "1", "2/b": "2", "5/c": "3"}
					r.commit(1, changes(want))
					set := s.Before
					if effect {
						set = s.After
					}
					set(on(faultstore.Put, pattern, errStore))
					fails := pattern == "ckpt/*" || inline < 0
					id := int64(2)
					for _, c := range []changes{{"1/a": "11", "5/d": "4"}, {"1/a": "12", "2/b": ""}, {"5/d": "44"}} {
						_, _, err := r.Persist(t.Context(), snapshot(id, c))
						var se *checkpoint.StoreError
						if fails && (!errors.Is(err, errStore) || !errors.As(err, &se) || !strings.Contains(err.Error(), fmt.Sprintf("persist checkpoint %d", id))) {
							t.Fatalf("persist: %v", err)
						}
						want.apply(c)
						id++
					}
					set(nil)
					ref := r.commit(id, changes{"7/e": "5"})
					want.apply(changes{"7/e": "5"})
					expect(t, s, ref, want)
					// What the failed attempts left goes away.
					r.commit(id+1, nil)
					r.Settle()
					base, baseRef := r.Base()
					needed := []string{checkpoint.ManifestObject(baseRef)}
					for _, seg := range base.Segments {
						needed = append(needed, seg.Object)
					}
					for _, l := range base.Logs[0].Logs {
						needed = append(needed, l.Object)
					}
					slices.Sort(needed)
					if got := names(t, s); !slices.Equal(got, slices.Compact(needed)) {
						t.Errorf("the store holds %v, want %v", got, needed)
					}
				})
			}
		}
	}
}

func TestUncommittedCheckpointIsPartOfTheNext(t *testing.T) {
	s := checkpoint.NewMem()
	r := newRig(t, s, func(c *checkpoint.Config) { c.Retain = 1 })
	first := r.commit(1, changes{"1/a": "1"})
	// Persisted, but its transaction was aborted.
	if _, _, err := r.Persist(t.Context(), snapshot(2, changes{"1/a": "2", "3/b": "3"})); err != nil {
		t.Fatal(err)
	}
	ref := r.commit(3, changes{"3/c": "4"})
	expect(t, s, ref, model{"1/a": "2", "3/b": "3", "3/c": "4"})
	if m, _ := r.Base(); m.Parent != first {
		t.Errorf("built on %v, want the last committed %v", m.Parent, first)
	}
	r.commit(4, nil)
	r.Settle()
	for _, name := range names(t, s) {
		if strings.Contains(name, "0002-") {
			t.Errorf("%s of the abandoned checkpoint is left", name)
		}
	}
}

// TestS08_HangingStoreEndsWithTheContext hangs on a write: Persist gives up when its
// context is done, also if the store doesn't listen to it.
func TestS08_HangingStoreEndsWithTheContext(t *testing.T) {
	for name, hang := range map[string]func(func(faultstore.Op, string) bool, <-chan struct{}) faultstore.Hook{"hang": faultstore.Hang, "stall": faultstore.Stall} {
		t.Run(name, func(t *testing.T) {
			s := faultstore.Wrap(checkpoint.NewMem())
			r := newRig(t, s, nil)
			r.commit(1, changes{"1/a": "1"})
			release := make(chan struct{})
			entered := make(chan struct{})
			h := hang(matching("ckpt/*0002-*"), release)
			s.Before(func(c ctx.Context, op faultstore.Op, name string) error {
				if matching("ckpt/*0002-*")(op, name) {
					close(entered)
				}
				return h(c, op, name)
			})
			c, cancel := ctx.WithCancel(t.Context())
			go func() { <-entered; cancel() }()
			if _, _, err := r.Persist(c, snapshot(2, changes{"1/a": "2"})); !errors.Is(err, ctx.Canceled) {
				t.Fatal(err)
			}
			ref := r.commit(3, changes{"1/b": "3"})
			expect(t, s, ref, model{"1/a": "2", "1/b": "3"})
			close(release)
		})
	}
}

// deaf is a store whose writes go on when nobody waits for them any more.
type deaf struct{ checkpoint.Store }

func (d deaf) Put(_ ctx.Context, name string, data []byte) error {
	return d.Store.Put(context(), name, data)
}

// TestS06_LateWriteOfAnAbandonedCheckpointLeaksNothing lets writes that their Persist
// gave up long ago complete, after later checkpoints were committed and collected.
func TestS06_LateWriteOfAnAbandonedCheckpointLeaksNothing(t *testing.T) {
	for _, tc := range []struct {
		stuck    string
		response error // that comes after the effect
	}{{"seg/*0002-*", nil}, {"seg/*0002-*", errStore}, {"log/*0002-*", nil}, {"log/*0002-*", errStore}, {"ckpt/*0002-*", nil}, {"ckpt/*0002-*", errStore}} {
		t.Run(fmt.Sprint(tc.stuck, " ", tc.response), func(t *testing.T) {
			s := faultstore.Wrap(deaf{checkpoint.NewMem()})
			r := newRig(t, s, func(c *checkpoint.Config) { c.InlineLimit, c.Retain = -1, 1 })
			r.commit(1, changes{"1/a": "1"})

			release, entered, landed := make(chan struct{}), make(chan struct{}), make(chan struct{})
			s.Before(func(_ ctx.Context, op faultstore.Op, name string) error {
				if matching(tc.stuck)(op, name) {
					close(entered)
					<-release
				}
				return nil
			})
			s.After(func(_ ctx.Context, op faultstore.Op, name string) error {
				if !matching(tc.stuck)(op, name) {
					return nil
				}
				close(landed)
				return tc.response
			})
			c, cancel := ctx.WithCancel(t.Context())
			go func() { <-entered; cancel() }()
			if _, _, err := r.Persist(c, snapshot(2, changes{"1/a": "2"})); !errors.Is(err, ctx.Canceled) {
				t.Fatal(err)
			}
			r.commit(3, changes{"1/b": "3"})
			ref := r.commit(4, changes{"1/c": "4"})
			r.Settle()
			close(release)
			<-landed
			expect(t, s, ref, model{"1/a": "2", "1/b": "3", "1/c": "4"})
			// The writer hears of it in its own time: collections after that are clean.
			left := []string{"?"}
			for id := int64(5); id < 1000 && len(left) > 0; id++ {
				ref = r.commit(id, nil)
				r.Settle()
				left = slices.DeleteFunc(names(t, s), func(n string) bool { return !strings.Contains(n, "0002-") })
			}
			if len(left) > 0 {
				t.Errorf("left over: %v", left)
			}
			expect(t, s, ref, model{"1/a": "2", "1/b": "3", "1/c": "4"})
		})
	}
}

func TestCheckpointIDsOnlyGrow(t *testing.T) {
	r := newRig(t, checkpoint.NewMem(), nil)
	r.commit(5, nil)
	for _, id := range []int64{5, 4, 0} {
		var superseded *checkpoint.SupersededError
		if _, _, err := r.Persist(t.Context(), snapshot(id, nil)); !errors.As(err, &superseded) {
			t.Errorf("id %d: %v", id, err)
		}
	}
	r.Committed(5) // said twice: no harm
	r.Committed(9)
	if _, _, err := r.Persist(t.Context(), snapshot(10, nil)); err == nil || !strings.Contains(err.Error(), "checkpoint 9") {
		t.Errorf("after a commit that was never persisted: %v", err)
	}
}

func TestNewWriterReportsAllThatIsWrong(t *testing.T) {
	_, err := checkpoint.NewWriter(checkpoint.Config{Retain: -1, MergeFanIn: 1, BaseRef: offsets.ManifestRef{Checkpoint: 1}})
	for _, want := range []string{"store", "app", "key-groups", "retain", "fan-in", "base"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v doesn't speak of %s", err, want)
		}
	}
}

func TestRetentionKeepsTheLastCheckpointsRestorable(t *testing.T) {
	stores(t, func(t *testing.T, s checkpoint.Store) {
		r := newRig(t, s, func(c *checkpoint.Config) { c.MergeFanIn = 2; c.InlineLimit = -1 })
		type kept struct {
			ref  offsets.ManifestRef
			want model
		}
		var history []kept
		want := model{}
		for id := int64(1); id <= 30; id++ {
			c := changes{fmt.Sprintf("%d/k%d", id%keyGroups, id%5): fmt.Sprint(id), "0/always": fmt.Sprint(id)}
			want.apply(c)
			history = append(history, kept{r.commit(id, c), maps.Clone(want)})
			r.Settle()
			for _, k := range history[max(0, len(history)-checkpoint.DefaultRetain):] {
				expect(t, s, k.ref, k.want)
			}
			if list, _ := checkpoint.ListManifests(t.Context(), s); len(list) > checkpoint.DefaultRetain {
				t.Fatalf("%d manifests are kept", len(list))
			}
		}
		if n := len(names(t, s)); n > 20 {
			t.Errorf("%d objects are left: %v", n, names(t, s))
		}
	})
}

func TestRestartFindsRetainedAndOrphanedCheckpoints(t *testing.T) {
	s := checkpoint.NewMem()
	r := newRig(t, s, func(c *checkpoint.Config) { c.InlineLimit = -1 })
	refs := map[int64]offsets.ManifestRef{}
	for id := int64(1); id <= 4; id++ {
		refs[id] = r.commit(id, changes{"1/a": fmt.Sprint(id)})
	}
	base, ref := r.Base()
	if _, _, err := r.Persist(t.Context(), snapshot(5, changes{"1/a": "never committed"})); err != nil {
		t.Fatal(err)
	}
	r.close()
	// What crashes of earlier incarnations left behind, and what isn't ours.
	orphans := []string{"ckpt/0000000000000001-000000ff.manifest", "seg/0000000000000001-000000ff.sst", "log/0000000000000001-000000ff-0.log", "seg/0000000000000004-000000ff.sst"}
	strangers := []string{"seg/readme.txt", "ckpt/0000000000000001-000000ff.bak", "seg/0000000000000077-000000ff.sst", "other/x"}
	for _, name := range slices.Concat(orphans, strangers) {
		if err := s.Put(t.Context(), name, []byte("x")); err != nil {
			t.Fatal(err)
		}
	}
	lists := 0
	fs := faultstore.Wrap(s)
	fs.Before(func(_ ctx.Context, op faultstore.Op, _ string) error {
		if op == faultstore.List {
			lists++
		}
		return nil
	})
	r = newRig(t, fs, func(c *checkpoint.Config) { c.Base, c.BaseRef, c.Incarnation, c.InlineLimit = base, ref, 0xa2, -1 })
	r.Settle()
	for _, id := range []int64{2, 3, 4} {
		expect(t, s, refs[id], model{"1/a": fmt.Sprint(id)})
	}
	left := names(t, s)
	for _, name := range orphans[:3] { // of checkpoints older than what is retained
		if slices.Contains(left, name) {
			t.Errorf("%s is left", name)
		}
	}
	for id := int64(5); id < 12; id++ {
		r.commit(id, changes{"1/b": fmt.Sprint(id)})
		r.Settle()
	}
	left = names(t, s)
	for _, name := range strangers {
		if !slices.Contains(left, name) {
			t.Errorf("%s was deleted", name)
		}
	}
	for _, name := range []string{orphans[3], "ckpt/0000000000000005-000000a1.manifest", "seg/0000000000000005-000000a1.sst"} {
		if slices.Contains(left, name) {
			t.Errorf("%s is left", name)
		}
	}
	if lists != 4 {
		t.Errorf("the store was listed %d times, want once for each of four prefixes", lists)
	}
}

func TestCollectionGoesOnAfterTheStoreFailed(t *testing.T) {
	s := faultstore.Wrap(checkpoint.NewMem())
	var failed []event.Collected
	r := newRig(t, s, func(c *checkpoint.Config) {
		c.Retain = 1
		c.Listener.Collected = func(i event.Collected) {
			if i.Err != nil {
				failed = append(failed, i)
			}
		}
	})
	commit := func(id int64) { // without logs, which would keep the manifests that they are in
		t.Helper()
		if _, _, err := r.Persist(t.Context(), withoutLogs(snapshot(id, nil))); err != nil {
			t.Fatal(err)
		}
		r.Committed(id)
	}
	commit(1)
	r.Settle()
	s.Before(on(faultstore.Delete, "*/*", errStore))
	commit(2)
	r.Settle()
	if len(failed) != 1 || !errors.Is(failed[0].Err, errStore) || failed[0].App != app {
		t.Fatalf("heard of %v", failed)
	}
	s.Before(nil)
	commit(3)
	r.Settle()
	if got := names(t, s); len(got) != 1 {
		t.Errorf("left: %v", got)
	}
}

func TestAnObjectThatCannotBeDeletedDoesNotKeepTheOthers(t *testing.T) {
	s := faultstore.Wrap(checkpoint.NewMem())
	var failed error
	r := newRig(t, s, func(c *checkpoint.Config) {
		c.Retain = 1
		c.Listener.Collected = func(i event.Collected) { failed = errors.Join(failed, i.Err) }
	})
	locked := offsets.ManifestRef{Checkpoint: 1, Incarnation: r.cfg.Incarnation}
	s.Before(on(faultstore.Delete, checkpoint.ManifestObject(locked), errStore))
	var ref offsets.ManifestRef
	for id := int64(1); id <= 20; id++ {
		var err error
		if ref, _, err = r.Persist(t.Context(), withoutLogs(snapshot(id, nil))); err != nil {
			t.Fatal(err)
		}
		r.Committed(id)
	}
	r.Settle()
	want := []string{checkpoint.ManifestObject(locked), checkpoint.ManifestObject(ref)}
	if got := names(t, s); !slices.Equal(got, want) || !errors.Is(failed, errStore) {
		t.Errorf("left: %v, want %v; heard of %v", got, want, failed)
	}
	r.close()
	orphans := []string{"seg/0000000000000001-000000ff.sst", "seg/0000000000000002-000000ff.sst"}
	for _, name := range orphans {
		if err := s.Put(t.Context(), name, nil); err != nil {
			t.Fatal(err)
		}
	}
	o := checkpoint.CollectOptions{Live: []offsets.ManifestRef{ref}, Retain: 1, Now: later}
	report, err := checkpoint.Collect(t.Context(), s, o)
	if !errors.Is(err, errStore) || len(report.Deleted) != len(orphans) {
		t.Errorf("%+v, %v", report, err)
	}
	if got := names(t, s); !slices.Equal(got, want) {
		t.Errorf("left by Collect: %v, want %v", got, want)
	}
	for _, name := range orphans {
		if err := s.Put(t.Context(), name, nil); err != nil {
			t.Fatal(err)
		}
	}
	tried := 0
	s.Before(func(_ ctx.Context, op faultstore.Op, _ string) error {
		if op == faultstore.Delete {
			tried++
		}
		if tried > 0 {
			return errStore
		}
		return nil
	})
	if _, err := checkpoint.Collect(t.Context(), s, o); !errors.Is(err, errStore) || tried != 1 {
		t.Errorf("a store that went away was asked to delete %d objects: %v", tried, err)
	}
}

// TestS29_ChainStaysShortAndRestoresExactly runs thousands of checkpoints with merging
// and collection beside them.
func TestS29_ChainStaysShortAndRestoresExactly(t *testing.T) {
	const fanIn = 4
	s := checkpoint.NewMem()
	r := newRig(t, s, func(c *checkpoint.Config) { c.MergeFanIn = fanIn; c.InlineLimit = 400 })
	rng := rand.New(rand.NewPCG(7, 7))
	want := model{}
	longest := 0
	checkpoints := int64(3000)
	if testing.Short() {
		checkpoints = 500
	}
	var ref offsets.ManifestRef
	for id := int64(1); id <= checkpoints; id++ {
		c := changes{}
		for range rng.IntN(6) {
			k := fmt.Sprintf("%d/%d", rng.IntN(keyGroups), rng.IntN(200))
			c[k] = fmt.Sprint(id)
			if rng.IntN(3) == 0 {
				c[k] = ""
			}
		}
		want.apply(c)
		ref = r.commit(id, c)
		r.Settle()
		m, _ := r.Base()
		longest = max(longest, len(m.Segments))
		if id%250 == 0 {
			expect(t, s, ref, want)
		}
	}
	expect(t, s, ref, want)
	// All of it fits into the lowest level: what merging leaves there, the ones since.
	if longest > 2*fanIn {
		t.Errorf("the chain grew to %d segments", longest)
	}
	if n := len(names(t, s)); n > 40 {
		t.Errorf("%d objects for 3 checkpoints", n)
	}
}

// TestChainIsLogarithmicInTheStatesSize replays sizes only, over many levels.
func TestChainIsLogarithmicInTheStatesSize(t *testing.T) {
	const fanIn = 8
	rng := rand.New(rand.NewPCG(1, 1))
	var chain []checkpoint.SegmentRef
	var total, written int64
	longest := 0
	for range 200_000 {
		size := int64(1) << rng.IntN(20) // up to half a megabyte, in no order
		chain = append(chain, checkpoint.SegmentRef{Length: size})
		total += size
		if lo, hi, ok := checkpoint.PickMerge(chain, fanIn, 1<<62); ok {
			if hi-lo < fanIn {
				t.Fatalf("merges %d segments", hi-lo)
			}
			var sum int64
			for _, s := range chain[lo:hi] {
				sum += s.Length
			}
			written += sum
			chain = slices.Replace(chain, lo, hi, checkpoint.SegmentRef{Length: sum})
		}
		longest = max(longest, len(chain))
	}
	levels := 1
	for n := int64(checkpoint.DefaultInlineLimit); n < total; n *= fanIn {
		levels++
	}
	if longest > fanIn*levels {
		t.Errorf("%d segments, %d levels of %d", longest, levels, fanIn)
	}
	if amplification := float64(written) / float64(total); amplification > float64(levels+1) {
		t.Errorf("each byte was written %.1f times over %d levels", amplification, levels)
	}
}

// TestStateThatIsOverwrittenIsKeptAFewTimes replays the sizes of segments of a state that
// does not grow: of those that are merged no more is left than the state has.
func TestStateThatIsOverwrittenIsKeptAFewTimes(t *testing.T) {
	const (
		fanIn = 16
		state = int64(1) << 30
		epoch = int64(3) << 20
		least = int64(32) << 20
	)
	var chain []checkpoint.SegmentRef
	var total, written, most int64
	for range 20_000 {
		chain = append(chain, checkpoint.SegmentRef{Length: epoch})
		total += epoch
		for {
			lo, hi, ok := checkpoint.PickMerge(chain, fanIn, least)
			if !ok {
				break
			}
			var sum int64
			for _, s := range chain[lo:hi] {
				sum += s.Length
			}
			sum = min(sum, state)
			written += sum
			chain = slices.Replace(chain, lo, hi, checkpoint.SegmentRef{Length: sum})
		}
		var kept int64
		for _, s := range chain {
			kept += s.Length
		}
		if total > state { // else it is growing
			most = max(most, kept)
		}
	}
	if most > 5*state {
		t.Errorf("%.1f times the state is kept", float64(most)/float64(state))
	}
	if amplification := float64(written) / float64(total); amplification > 3 {
		t.Errorf("each byte was written %.1f times again", amplification)
	}
	t.Logf("at most %.1f times the state, each byte written %.1f times again", float64(most)/float64(state), float64(written)/float64(total))
}

func TestMergeKeepsTombstonesUnlessItHasTheOldestSegment(t *testing.T) {
	s := checkpoint.NewMem()
	r := newRig(t, s, func(c *checkpoint.Config) { c.MergeFanIn = 2; c.InlineLimit = -1 })
	// A first segment two levels up, which small ones don't get merged with.
	big := changes{}
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range 3000 {
		big[fmt.Sprintf("1/%d", i)] = fmt.Sprintf("%x%x%x%x%x", rng.Uint64(), rng.Uint64(), rng.Uint64(), rng.Uint64(), rng.Uint64())
	}
	want := model{}
	want.apply(big)
	r.commit(1, big)
	for id := int64(2); id < 8; id++ {
		c := changes{fmt.Sprintf("1/%d", id): ""}
		want.apply(c)
		expect(t, s, r.commit(id, c), want)
		r.Settle()
	}
	m, _ := r.Base()
	var tombstones int64
	for _, seg := range m.Segments {
		tombstones += seg.Tombstones
	}
	if len(m.Segments) > 4 || tombstones != 6 || m.Segments[0].FirstCheckpoint != 1 || m.Segments[len(m.Segments)-1].LastCheckpoint != 7 {
		t.Errorf("chain %+v", m.Segments)
	}
}

func TestFailedMergeIsReportedAndChangesNothing(t *testing.T) {
	s := faultstore.Wrap(checkpoint.NewMem())
	merges := make(chan event.Merged, 100)
	r := newRig(t, s, func(c *checkpoint.Config) {
		c.MergeFanIn = 2
		c.Listener.Merged = func(i event.Merged) { merges <- i }
	})
	s.Before(on(faultstore.Put, "seg/*-m*", errStore))
	want := model{}
	for id := int64(1); id <= 20; id++ {
		c := changes{fmt.Sprintf("1/%d", id): "x"}
		want.apply(c)
		ref := r.commit(id, c)
		r.Settle()
		expect(t, s, ref, want)
	}
	if i := <-merges; !errors.Is(i.Err, errStore) || i.Segments != 2 {
		t.Errorf("%+v", i)
	}
	if n := len(merges); n > 5 {
		t.Errorf("tried %d times in 20 checkpoints: it should wait longer and longer", n+1)
	}
	s.Before(nil)
	for id := int64(21); id <= 60; id++ {
		expect(t, s, r.commit(id, nil), want)
		r.Settle()
	}
	if m, _ := r.Base(); len(m.Segments) > 2 {
		t.Errorf("%d segments are left after the store came back", len(m.Segments))
	}
}

// TestS29_CollectionDuringRestoreNeverTearsIt restores the newest checkpoint while the
// writer goes on: either it is whole, or what is missing has a name.
func TestS29_CollectionDuringRestoreNeverTearsIt(t *testing.T) {
	s := faultstore.Wrap(checkpoint.NewMem())
	r := newRig(t, s, func(c *checkpoint.Config) { c.MergeFanIn = 2; c.InlineLimit = -1 })
	want := model{}
	id := int64(0)
	step := func() offsets.ManifestRef {
		id++
		c := changes{fmt.Sprintf("%d/%d", id%keyGroups, id): fmt.Sprint(id)}
		want.apply(c)
		ref := r.commit(id, c)
		r.Settle()
		return ref
	}
	for range 20 {
		step()
	}
	for commits := range 8 {
		ref := step()
		now := maps.Clone(want)
		m, err := checkpoint.Load(t.Context(), s, ref)
		if err != nil {
			t.Fatal(err)
		}
		for range commits {
			step() // between the manifest and its segments
		}
		got, err := model{}, error(nil)
		for e, serr := range m.Scan(t.Context(), s, 0, keyGroups) {
			if err = serr; err == nil {
				got[fmt.Sprintf("%d/%s", e.KeyGroup, e.Key)] = string(e.Value)
			}
		}
		var missing *checkpoint.MissingError
		switch {
		case err == nil && !maps.Equal(got, now):
			t.Fatalf("%d commits later: restored %v, want %v", commits, got, now)
		case err != nil && commits < checkpoint.DefaultRetain:
			t.Fatalf("%d commits later, within retention: %v", commits, err)
		case err != nil && !errors.As(err, &missing):
			t.Fatalf("%d commits later: %v", commits, err)
		}
	}
}

// TestZombieCollectsNothingOfItsSuccessor runs a writer whose place was taken, and
// that doesn't know, beside its successor, in all interleavings of a few steps.
func TestZombieCollectsNothingOfItsSuccessor(t *testing.T) {
	for heard := range 2 { // whether the zombie heard that its last commit went through
		for seed := range uint64(40) {
			rng := rand.New(rand.NewPCG(seed, 1))
			s := checkpoint.NewMem()
			config := func(c *checkpoint.Config) { c.MergeFanIn, c.Retain = 2, 2; c.InlineLimit = int64(rng.IntN(2) * 1500) }
			zombie := newRig(t, s, func(c *checkpoint.Config) {
				config(c)
				c.Listener = checkpoint.Listener{} // what it wants to merge its successor may have deleted
			})
			want := model{}
			id := int64(0)
			var ref offsets.ManifestRef
			next := func() (int64, changes) {
				id++
				c := changes{fmt.Sprintf("%d/%d", rng.IntN(keyGroups), rng.IntN(20)): fmt.Sprint(id)}
				return id, c
			}
			for range 3 + rng.IntN(12) {
				n, c := next()
				want.apply(c)
				ref = zombie.commit(n, c)
				if rng.IntN(2) == 0 {
					zombie.Settle()
				}
			}
			n, c := next()
			want.apply(c)
			ref, _, err := zombie.Persist(t.Context(), snapshot(n, c))
			if err != nil {
				t.Fatal(err)
			}
			// The transaction commits; the successor restores it.
			m, err := checkpoint.Load(t.Context(), s, ref)
			if err != nil {
				t.Fatal(err)
			}
			owner := newRig(t, s, func(c *checkpoint.Config) { config(c); c.Base, c.BaseRef, c.Incarnation = m, ref, 0xb1 })
			expect(t, s, ref, want)
			if heard == 1 {
				zombie.Committed(n)
			}
			zid := id
			for range 12 {
				n, c := next()
				want.apply(c)
				ref = owner.commit(n, c)
				if rng.IntN(2) == 0 {
					owner.Settle()
				}
				// The zombie computes on and persists what it can't commit.
				if rng.IntN(2) == 0 {
					zid++
					if _, _, err := zombie.Persist(t.Context(), snapshot(zid, changes{"0/zombie": "x"})); err != nil && !strings.Contains(err.Error(), "not the last") {
						t.Fatal(err)
					}
				}
				if rng.IntN(2) == 0 {
					zombie.Settle()
				}
				expect(t, s, ref, want)
			}
			zombie.Settle()
			owner.Settle()
			expect(t, s, ref, want)
			zombie.close()
			owner.close()
		}
	}
}

// TestCrashAtEveryStoreOperation stops the store at its k-th operation for every k,
// with and without the effect of that operation, and restores what was committed.
func TestCrashAtEveryStoreOperation(t *testing.T) {
	for _, effect := range []bool{false, true} {
		died := true
		for k := 1; died; k++ {
			died = false
			mem := checkpoint.NewMem()
			s := faultstore.Wrap(mem)
			s.Kill(k, effect)
			quiet := func(c *checkpoint.Config) {
				c.Listener = checkpoint.Listener{}
				c.MergeFanIn, c.InlineLimit, c.Retain = 2, 650, 2
			}
			want := model{}
			var base *checkpoint.Manifest
			var ref offsets.ManifestRef
			id := int64(0)
			for incarnation := range uint32(4) { // the first one dies, the others run on what it left
				store := checkpoint.Store(s)
				if incarnation > 0 {
					store = mem
				}
				r := newRig(t, store, func(c *checkpoint.Config) {
					quiet(c)
					c.Base, c.BaseRef, c.Incarnation = base, ref, incarnation
				})
				for step := range 12 {
					id++
					c := changes{"0/n": fmt.Sprint(id), fmt.Sprintf("%d/%d", id%keyGroups, step%3): fmt.Sprint(id, incarnation)}
					if step%4 == 3 {
						c["5/long"] = strings.Repeat(fmt.Sprint(id), 400)
					}
					if step%5 == 4 {
						c[fmt.Sprintf("%d/%d", (id-2)%keyGroups, (step-2)%3)] = ""
					}
					p, _, err := r.Persist(t.Context(), snapshot(id, c))
					if err != nil {
						if !errors.Is(err, faultstore.ErrDead) {
							t.Fatal(err)
						}
						died = true
						break
					}
					ref = p
					want.apply(c)
					r.Committed(id)
					r.Settle()
				}
				r.close()
				if ref.Checkpoint == 0 {
					continue // nothing was committed, so there is nothing to restore
				}
				if got := restore(t, mem, ref); !maps.Equal(got, want) {
					t.Fatalf("dead at operation %d (effect %v), incarnation %d: restored %v, want %v", k, effect, incarnation, got, want)
				}
				var err error
				if base, err = checkpoint.Load(t.Context(), mem, ref); err != nil {
					t.Fatal(err)
				}
				id = ref.Checkpoint
			}
			if n := len(names(t, mem)); n > 14 {
				t.Fatalf("dead at operation %d (effect %v): %d objects are left: %v", k, effect, n, names(t, mem))
			}
		}
	}
}

// TestWriterEqualsModel does random things to a writer and a map.
func TestWriterEqualsModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		mem := checkpoint.NewMem()
		s := faultstore.Wrap(mem)
		inline := rapid.SampledFrom([]int64{-1, 0, 800}).Draw(rt, "inline")
		fanIn := rapid.IntRange(2, 4).Draw(rt, "fan-in")
		retain := rapid.IntRange(1, 3).Draw(rt, "retain")
		var r *rig
		var ref offsets.ManifestRef
		incarnation := uint32(0)
		start := func() {
			incarnation++
			var base *checkpoint.Manifest
			if ref.Checkpoint > 0 {
				var err error
				if base, err = checkpoint.Load(context(), mem, ref); err != nil {
					rt.Fatal(err)
				}
			}
			r = newRig(t, s, func(c *checkpoint.Config) {
				c.Base, c.BaseRef, c.Incarnation = base, ref, incarnation
				c.InlineLimit, c.MergeFanIn, c.Retain = inline, fanIn, retain
				c.Listener = checkpoint.Listener{}
			})
		}
		start()
		defer func() { r.close() }()
		committed, live := model{}, model{}
		dirty := changes{}
		id := int64(0)
		change := func(rt *rapid.T) {
			k := fmt.Sprintf("%d/%d", rapid.IntRange(0, keyGroups-1).Draw(rt, "kg"), rapid.IntRange(0, 9).Draw(rt, "key"))
			v := rapid.StringMatching(`([a-z]{1,30})?`).Draw(rt, "value")
			dirty[k] = v
			live.apply(changes{k: v})
		}
		persist := func() (offsets.ManifestRef, error) {
			id++
			p, _, err := r.Persist(context(), snapshot(id, dirty))
			dirty = changes{}
			return p, err
		}
		rt.Repeat(map[string]func(*rapid.T){
			"change":  change,
			"change2": change,
			"commit": func(rt *rapid.T) {
				p, err := persist()
				if err != nil {
					rt.Fatal(err)
				}
				ref, committed = p, maps.Clone(live)
				r.Committed(id)
			},
			"persist without commit": func(rt *rapid.T) {
				if _, err := persist(); err != nil {
					rt.Fatal(err)
				}
			},
			"fail": func(rt *rapid.T) {
				set := rapid.SampledFrom([]func(faultstore.Hook){s.Before, s.After}).Draw(rt, "when")
				r.Settle() // the background work is to go on unharmed
				set(on(faultstore.Put, rapid.SampledFrom([]string{"seg/*", "ckpt/*"}).Draw(rt, "what"), errStore))
				_, _ = persist()
				set(nil)
			},
			"settle": func(*rapid.T) { r.Settle() },
			"crash": func(*rapid.T) {
				r.close()
				live, dirty, id = maps.Clone(committed), changes{}, ref.Checkpoint
				start()
			},
			"": func(rt *rapid.T) {
				if ref.Checkpoint == 0 {
					return
				}
				if got := restore(t, mem, ref); !maps.Equal(got, committed) {
					rt.Fatalf("checkpoint %d restores %v, want %v", ref.Checkpoint, got, committed)
				}
			},
		})
	})
}

// deafStore writes on when the context has ended.
type deafStore struct{ checkpoint.Store }

func (s deafStore) Put(c ctx.Context, name string, data []byte) error {
	return s.Store.Put(ctx.WithoutCancel(c), name, data)
}

func TestSegmentThatIsStillBeingWrittenIsNotOverwrittenByTheNext(t *testing.T) {
	s := faultstore.Wrap(deafStore{checkpoint.NewMem()})
	r := newRig(t, s, func(c *checkpoint.Config) { c.InlineLimit = -1 })
	until, cancel := ctx.WithCancel(t.Context())
	goOn, written := make(chan struct{}), make(chan []byte, 1)
	late := func(op faultstore.Op, name string) bool {
		return op == faultstore.Put && strings.HasPrefix(name, "seg/0000000000000001-")
	}
	s.Before(faultstore.Stall(func(op faultstore.Op, name string) bool {
		if !late(op, name) {
			return false
		}
		cancel()
		return true
	}, goOn))
	s.After(func(_ ctx.Context, op faultstore.Op, name string) error {
		if !late(op, name) {
			return nil
		}
		b, err := s.Store.Get(t.Context(), name)
		written <- b
		return err
	})
	if _, _, err := r.Persist(until, snapshot(1, changes{"0/a": "1"})); !errors.Is(err, ctx.Canceled) {
		t.Fatalf("the checkpoint whose segment is not durable: %v", err)
	}
	if _, _, err := r.Persist(t.Context(), snapshot(2, changes{"0/a": "2", "1/b": "2"})); err != nil {
		t.Fatal(err)
	}
	close(goOn)
	rd, err := segment.Open(<-written)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for e, err := range segment.Scan(0, 1<<16, rd) {
		if n++; err != nil || string(e.Value) != "1" {
			t.Fatalf("it has %q: %v", e.Value, err)
		}
	}
	if n != 1 {
		t.Fatalf("it has %d entries, want 1", n)
	}
}
