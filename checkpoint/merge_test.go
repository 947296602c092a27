package checkpoint_test

import (
	ctx "context"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/state/segment"
)

// epoch is the changes of one epoch, with their key-group: "" deletes.
type epoch map[string]string

func (e epoch) run(groups int) segment.Run {
	var b segment.Builder
	for k, v := range e {
		kg := uint16(k[0]) % uint16(groups)
		if v == "" {
			b.DeleteDone(append(b.BeginDelete(kg, 1), k...))
			continue
		}
		b.ValueDone(append(b.KeyDone(append(b.BeginPut(kg, 1), k...)), v...))
	}
	return b.Finish()
}

func key(n int) string { return string(binary.LittleEndian.AppendUint32(nil, uint32(n))) }

func value(rng *rand.Rand, h segment.Header, n int) string {
	b := segment.AppendHeader(nil, h)
	for range n / 8 {
		b = binary.LittleEndian.AppendUint64(b, rng.Uint64())
	}
	return string(b)
}

// contents reads the state of a manifest.
func contents(t testing.TB, s checkpoint.Store, m *checkpoint.Manifest) map[string]string {
	t.Helper()
	got := map[string]string{}
	for e, err := range m.Scan(context(), s, 0, m.KeyGroups) {
		if err != nil {
			t.Fatal(err)
		}
		got[string(e.Key)] = string(e.Value)
	}
	return got
}

// TestLargeStateIsMergedRangeByRange grows a state over many pieces and levels, with
// deletes, and looks at each commit whether it is complete and the chain short.
func TestLargeStateIsMergedRangeByRange(t *testing.T) {
	const (
		groups = 64
		fanIn  = 3
		target = 32 << 10
		keys   = 8000
	)
	s := checkpoint.NewMem()
	var mu sync.Mutex
	var written, largest int64
	r := newRig(t, s, func(c *checkpoint.Config) {
		c.KeyGroups, c.MergeFanIn, c.MergeTarget, c.InlineLimit, c.MergeCPU = groups, fanIn, target, -1, 1
		c.Listener.Merged = func(i event.Merged) {
			mu.Lock()
			defer mu.Unlock()
			if i.Err != nil {
				t.Errorf("merge: %v", i.Err)
			}
			written += i.Written
			largest = max(largest, i.Bytes)
		}
	})
	rng := rand.New(rand.NewPCG(4, 2))
	want := map[string]string{}
	var persisted int64
	levels, pieces := 0, 0
	epochs := 300
	if testing.Short() {
		epochs = 100
	}
	for id := range epochs {
		e := epoch{}
		for range 60 {
			k := key(rng.IntN(keys))
			e[k] = value(rng, segment.Header{Version: 1}, 96)
			if rng.IntN(5) == 0 {
				e[k] = ""
			}
		}
		for k, v := range e {
			if want[k] = v; v == "" {
				delete(want, k)
			}
		}
		snap := snapshot(int64(id+1), nil)
		snap.Runs = []segment.Run{e.run(groups)}
		_, stats, err := r.Persist(t.Context(), snap)
		if err != nil {
			t.Fatal(err)
		}
		persisted += stats.SegmentBytes
		r.Committed(int64(id + 1))
		if rng.IntN(3) > 0 { // otherwise merges run while the next is persisted
			r.Settle()
		}
		m := stats.Manifest
		levels, pieces = max(levels, len(m.Levels(0, groups))), max(pieces, len(m.Segments))
		if id%20 == 19 && !maps.Equal(contents(t, s, m), want) {
			t.Fatalf("checkpoint %d is not what was written", id+1)
		}
	}
	for id := epochs; id < epochs+5; id++ {
		r.commit(int64(id+1), nil)
		r.Settle()
	}
	m, _ := r.Base()
	if !maps.Equal(contents(t, s, m), want) {
		t.Fatal("the last checkpoint is not what was written")
	}
	depth := 1
	for n := int64(64 << 10); n < m.Bytes(); n *= fanIn {
		depth++
	}
	if n := len(m.Levels(0, groups)); n > depth*fanIn {
		t.Errorf("%d levels of %d bytes when merging has caught up", n, m.Bytes())
	}
	mu.Lock()
	defer mu.Unlock()
	t.Logf("%d bytes in %d segments and %d levels; at most %d segments, %d levels; %d bytes persisted, %d written by merges, the largest read %d", m.Bytes(), len(m.Segments), len(m.Levels(0, groups)), pieces, levels, persisted, written, largest)
	if largest > m.Bytes()/2 && !testing.Short() {
		t.Errorf("a merge read %d bytes of a state of %d: it should take one range", largest, m.Bytes())
	}
	if float64(written) > float64(persisted)*float64(depth+2) {
		t.Errorf("%d bytes were merged for %d persisted", written, persisted)
	}
	bases := 0
	for i, seg := range m.Segments {
		if seg.Length > 3*target {
			t.Errorf("a piece of %d bytes", seg.Length)
		}
		if !seg.Base {
			continue
		}
		bases++
		if seg.Tombstones > 0 {
			t.Errorf("tombstones in a base: %+v", seg)
		}
		for _, older := range m.Segments[:i] {
			if older.MinKG <= seg.MaxKG && older.MaxKG >= seg.MinKG && older.MaxKey >= seg.MinKey {
				t.Errorf("%+v is older than base %+v", older, seg)
			}
		}
	}
	if bases == 0 {
		t.Error("there is no base")
	}
}

func TestMergeDropsWhatExpired(t *testing.T) {
	s := checkpoint.NewMem()
	now := time.UnixMilli(1_000_000)
	var expired int64
	r := newRig(t, s, func(c *checkpoint.Config) {
		c.MergeFanIn, c.InlineLimit = 2, -1
		c.Now = func() time.Time { return now }
		c.Listener.Merged = func(i event.Merged) { expired += i.Expired }
	})
	rng := rand.New(rand.NewPCG(4, 2))
	at := func(d segment.Domain, ms int64) string {
		return value(rng, segment.Header{Version: 1, Domain: d, Expires: ms}, 8)
	}
	commit := func(id, watermark int64, e epoch) {
		t.Helper()
		snap := snapshot(id, nil)
		snap.Watermark, snap.Runs = watermark, []segment.Run{e.run(keyGroups)}
		if _, _, err := r.Persist(t.Context(), snap); err != nil {
			t.Fatal(err)
		}
		r.Committed(id)
		r.Settle()
	}
	commit(1, checkpoint.NoWatermark, epoch{
		"forever": value(rng, segment.Header{}, 8), "wall now": at(segment.ProcessingTime, 1_000_000), "wall later": at(segment.ProcessingTime, 1_000_001),
		"event 500": at(segment.EventTime, 500), "event 501": at(segment.EventTime, 501),
	})
	commit(2, checkpoint.NoWatermark, epoch{"x": value(rng, segment.Header{}, 8)})
	commit(3, 500, epoch{"y": value(rng, segment.Header{}, 8)})
	commit(4, 500, nil)
	commit(5, 500, nil)
	m, _ := r.Base()
	got := contents(t, s, m)
	if len(got) != 5 || got["forever"] == "" || got["wall later"] == "" || got["event 501"] == "" || expired != 2 {
		t.Errorf("%d expired, left: %q", expired, got)
	}
	for _, seg := range m.Segments {
		if seg.Tombstones > 0 {
			t.Errorf("%+v", seg)
		}
	}
}

// A state that lost its time to live keeps what had not expired by then.
func TestMergeKeepsWhatIsSpared(t *testing.T) {
	s := checkpoint.NewMem()
	r := newRig(t, s, func(c *checkpoint.Config) {
		c.MergeFanIn, c.InlineLimit, c.Now = 2, -1, func() time.Time { return time.UnixMilli(2000) }
	})
	entry := func(ms int64) string {
		return string(segment.AppendHeader(nil, segment.Header{Version: 1, Domain: segment.ProcessingTime, Expires: ms}))
	}
	for id, e := range []epoch{{"gone": entry(1000), "kept": entry(1001), "last": entry(1500), "later": entry(1501)}, {"x": entry(5000)}, {"y": entry(5000)}, nil, nil} {
		snap := snapshot(int64(id+1), nil)
		snap.Runs = []segment.Run{e.run(keyGroups)}
		snap.States[0].Spared = segment.Spans{{Clock: segment.ProcessingTime, After: 1000, Until: 1500}}
		if _, _, err := r.Persist(t.Context(), snap); err != nil {
			t.Fatal(err)
		}
		r.Committed(int64(id + 1))
		r.Settle()
	}
	m, _ := r.Base()
	if got := slices.Sorted(maps.Keys(contents(t, s, m))); !slices.Equal(got, []string{"kept", "last", "x", "y"}) {
		t.Errorf("left: %q", got)
	}
}

// TestResultOfAMergeGetsOldAndIsGivenUp makes sure that a result which Collect of
// another process may have deleted is not named any more.
func TestResultOfAMergeGetsOldAndIsGivenUp(t *testing.T) {
	for age, given := range map[time.Duration]bool{checkpoint.DefaultGrace/2 - time.Second: false, checkpoint.DefaultGrace / 2: true} {
		s := checkpoint.NewMem()
		now := time.UnixMilli(1_000_000)
		r := newRig(t, s, func(c *checkpoint.Config) {
			c.MergeFanIn, c.InlineLimit, c.Now = 2, -1, func() time.Time { return now }
		})
		r.commit(1, changes{"1/a": "1"})
		r.commit(2, changes{"1/b": "1"})
		r.Settle()
		now = now.Add(age)
		ref := r.commit(3, nil)
		m, _ := r.Base()
		if merged := len(m.Segments) == 1; merged == given {
			t.Errorf("%v old: %+v", age, m.Segments)
		}
		r.Settle()
		expect(t, s, ref, model{"1/a": "1", "1/b": "1"})
	}
}

// TestSmallMergesGoOnBesideALargeOne holds up a merge of large segments and looks
// whether the chain stays short.
func TestSmallMergesGoOnBesideALargeOne(t *testing.T) {
	mem := checkpoint.NewMem()
	s := faultstore.Wrap(mem)
	r := newRig(t, s, func(c *checkpoint.Config) {
		c.MergeFanIn, c.MergeTarget, c.InlineLimit = 2, 200<<10, -1
		c.Listener = checkpoint.Listener{}
	})
	rng := rand.New(rand.NewPCG(1, 2))
	want := map[string]string{}
	id := int64(0)
	commit := func(keys int) *checkpoint.Manifest {
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
		_, stats, err := r.Persist(t.Context(), snap)
		if err != nil {
			t.Fatal(err)
		}
		r.Committed(id)
		return stats.Manifest
	}
	release := make(chan struct{})
	letGo := sync.OnceFunc(func() { close(release) })
	t.Cleanup(letGo)
	begun := make(chan struct{})
	var once sync.Once
	s.Before(faultstore.Stall(func(op faultstore.Op, name string) bool {
		if op != faultstore.GetRange {
			return false // small segments are read whole
		}
		once.Do(func() { close(begun) })
		return true
	}, release))
	commit(6000)
	commit(6000)
	<-begun
	deadline := time.Now().Add(30 * time.Second)
	for n := 0; n < 40 || len(r.mustBase().Segments) > 12; n++ {
		commit(3)
		if time.Now().After(deadline) {
			t.Fatalf("the chain has %d segments while a large merge hangs", len(r.mustBase().Segments))
		}
		time.Sleep(time.Millisecond) // merges have no other time than that of the machine
	}
	letGo()
	r.Settle()
	for range 6 {
		commit(0)
		r.Settle()
	}
	m := r.mustBase()
	if len(m.Levels(0, keyGroups)) > 4 {
		t.Errorf("%d levels", len(m.Levels(0, keyGroups)))
	}
	if !maps.Equal(contents(t, mem, m), want) {
		t.Error("the last checkpoint is not what was written")
	}
}

func (r *rig) mustBase() *checkpoint.Manifest { m, _ := r.Base(); return m }

// TestDamageInALargeSegmentIsRefusedByName flips bits in a segment that is read as a
// stream, everywhere.
func TestDamageInALargeSegmentIsRefusedByName(t *testing.T) {
	s := checkpoint.NewMem()
	r := newRig(t, s, func(c *checkpoint.Config) { c.InlineLimit = -1 })
	rng := rand.New(rand.NewPCG(1, 2))
	e := epoch{}
	for n := range 16000 {
		e[key(n)] = value(rng, segment.Header{}, 96)
	}
	snap := snapshot(1, nil)
	snap.Runs = []segment.Run{e.run(keyGroups)}
	ref, stats, err := r.Persist(t.Context(), snap)
	if err != nil {
		t.Fatal(err)
	}
	if !maps.Equal(contents(t, s, stats.Manifest), e) {
		t.Fatal("another state than was written")
	}
	seg := stats.Manifest.Segments[0]
	refused := func(how string) {
		t.Helper()
		_, err := tryRestore(s, ref)
		var damaged *checkpoint.DamagedError
		if !errors.As(err, &damaged) || damaged.Object != seg.Object || damaged.Store != s.String() {
			t.Errorf("%s: %v", how, err)
		}
	}
	for n := range 16 {
		at := int(seg.Length) - 1 - n
		if n < 6 {
			at = rng.IntN(int(seg.Length))
		}
		if err := faultstore.FlipBit(s, seg.Object, at*8+n%8); err != nil {
			t.Fatal(err)
		}
		refused(fmt.Sprint("bit flipped in byte ", at))
		if err := faultstore.FlipBit(s, seg.Object, at*8+n%8); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := tryRestore(s, ref); err != nil {
		t.Fatal(err)
	}
	if err := faultstore.Truncate(s, seg.Object, int(seg.Length)-1); err != nil {
		t.Fatal(err)
	}
	refused("truncated")
	if err := faultstore.Remove(s, seg.Object); err != nil {
		t.Fatal(err)
	}
	var missing *checkpoint.MissingError
	if _, err := tryRestore(s, ref); !errors.As(err, &missing) || missing.Object != seg.Object {
		t.Errorf("missing: %v", err)
	}
}

// TestPiecesOfARunningMergeAreNotTakenForGarbage lists the store, as each incarnation
// does once, while a merge has written a piece and not the next, and goes on until the
// piece has a lower id than every retained checkpoint.
func TestPiecesOfARunningMergeAreNotTakenForGarbage(t *testing.T) {
	mem := checkpoint.NewMem()
	rng := rand.New(rand.NewPCG(1, 2))
	want := map[string]string{}
	id := int64(0)
	commit := func(r *rig, keys int) {
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
		if _, _, err := r.Persist(t.Context(), snap); err != nil {
			t.Fatal(err)
		}
		r.Committed(id)
	}
	r := newRig(t, mem, func(c *checkpoint.Config) { c.InlineLimit = -1 })
	commit(r, 3000)
	commit(r, 3000)
	base, ref := r.Base()
	r.close()

	s := faultstore.Wrap(mem)
	list, next := make(chan struct{}), make(chan struct{})
	letList, letNext := sync.OnceFunc(func() { close(list) }), sync.OnceFunc(func() { close(next) })
	t.Cleanup(letList)
	t.Cleanup(letNext)
	reached := make(chan struct{}, 100)
	s.Before(func(_ ctx.Context, op faultstore.Op, name string) error {
		switch {
		case op == faultstore.List:
			<-list
		case op == faultstore.Put && strings.HasSuffix(name, "-m1.sst"):
			reached <- struct{}{}
			<-next
		}
		return nil
	})
	r = newRig(t, s, func(c *checkpoint.Config) {
		c.Base, c.BaseRef, c.Incarnation = base, ref, 0xb2
		c.MergeFanIn, c.InlineLimit, c.Retain, c.MergeTarget = 2, -1, 1, 100<<10
	})
	commit(r, 0) // which wakes the mergers
	<-reached
	letList()
	for deadline := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		commit(r, 0) // until the collector has listed and deleted
		left := names(t, mem)
		if !slices.Contains(left, checkpoint.ManifestObject(ref)) && id > 10 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("nothing is collected")
		}
	}
	letNext()
	r.Settle()
	for range 3 {
		commit(r, 0)
		r.Settle()
	}
	if m := r.mustBase(); !maps.Equal(contents(t, mem, m), want) || m.Segments[0].MinKey == "" {
		t.Errorf("the last checkpoint is not what was written: %+v", m.Segments)
	}
}
