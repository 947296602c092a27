package checkpoint_test

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/offsets"
)

// logged is a snapshot with nothing but logs, "sink=text".
func logged(id int64, keep map[string]int64, parts ...string) checkpoint.Snapshot {
	s := withoutLogs(snapshot(id, nil))
	for _, p := range parts {
		sink, text, _ := strings.Cut(p, "=")
		s.Logs = append(s.Logs, checkpoint.LogPart{Operator: sink, Bytes: []byte(text)})
	}
	s.Keep = keep
	return s
}

// readLogs returns all logs of a manifest: sink, checkpoint and, in brackets, parts;
// before them what came before.
func readLogs(t testing.TB, s checkpoint.Store, m *checkpoint.Manifest) []string {
	t.Helper()
	var got []string
	for _, sink := range m.Logs {
		sink, err := checkpoint.ExpandLogs(context(), s, sink)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, fmt.Sprintf("%s after %d", sink.Operator, sink.Before))
		for _, l := range sink.Logs {
			parts, err := checkpoint.ReadLog(context(), s, l)
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, fmt.Sprintf("%s %d %s", sink.Operator, l.Checkpoint, parts))
		}
	}
	return got
}

func TestLogsAreListedAsLongAsTheyAreKept(t *testing.T) {
	for _, inline := range []int64{-1, 0} {
		s := checkpoint.NewMem()
		r := newRig(t, s, func(c *checkpoint.Config) { c.InlineLimit, c.Retain = inline, 1 })
		step := func(id int64, keep map[string]int64, parts []string, want ...string) {
			t.Helper()
			ref, stats, err := r.Persist(t.Context(), logged(id, keep, parts...))
			if err != nil {
				t.Fatal(err)
			}
			r.Committed(id)
			r.Settle()
			m, err := checkpoint.Load(t.Context(), s, ref)
			if err != nil {
				t.Fatal(err)
			}
			if got := readLogs(t, s, m); !slices.Equal(got, want) {
				t.Errorf("checkpoint %d has the logs\n%q, want\n%q", id, got, want)
			}
			if !reflect.DeepEqual(m.Logs, stats.Manifest.Logs) {
				t.Errorf("checkpoint %d was written with\n%+v, reads as\n%+v", id, stats.Manifest.Logs, m.Logs)
			}
			if err := checkpoint.Verify(t.Context(), s, m, nil); err != nil {
				t.Error(err)
			}
			for op, parts := range stats.Parts {
				l := m.Logs[slices.IndexFunc(m.Logs, func(s checkpoint.SinkLogs) bool { return s.Operator == op })].Logs
				if got, err := checkpoint.ReadLog(t.Context(), s, l[len(l)-1]); err != nil || !slices.EqualFunc(got, parts, bytes.Equal) {
					t.Errorf("the log of %s reads as %q, %v, was %q", op, got, err, parts)
				}
			}
		}
		step(1, nil, nil)
		step(2, nil, []string{"b=1", "a=2", "b=3", "b="}, "a after 0", "a 2 [2]", "b after 0", "b 2 [1 3 ]")
		step(3, map[string]int64{"a": 2, "b": 2}, []string{"b=4"}, "a after 0", "a 2 [2]", "b after 0", "b 2 [1 3 ]", "b 3 [4]")
		// A sink that says nothing keeps all; what is not kept any more is remembered.
		step(4, map[string]int64{"b": 3}, nil, "a after 0", "a 2 [2]", "b after 2", "b 3 [4]")
		step(5, map[string]int64{"a": 3, "b": 9}, nil, "a after 2", "b after 3")
		step(6, map[string]int64{"a": 3, "b": 9}, []string{"b=6"}, "a after 2", "b after 3", "b 6 [6]")
		step(7, map[string]int64{"a": checkpoint.KeepNone}, nil, "b after 3", "b 6 [6]")
		for _, name := range names(t, s) {
			if strings.HasPrefix(name, "log/") && (inline == 0 || !strings.Contains(name, "/0000000000000006-")) {
				t.Errorf("%s is left", name)
			}
		}
	}
}

// TestLogsOfACheckpointThatWasGivenUpJoinTheNext fails and abandons checkpoints in each
// way; what was logged in them is part of the next one, once and in order.
func TestLogsOfACheckpointThatWasGivenUpJoinTheNext(t *testing.T) {
	for _, inline := range []int64{-1, 0} {
		s := faultstore.Wrap(checkpoint.NewMem())
		r := newRig(t, s, func(c *checkpoint.Config) { c.InlineLimit = inline })
		persist := func(id int64, fails bool, parts ...string) *checkpoint.Manifest {
			t.Helper()
			_, stats, err := r.Persist(t.Context(), logged(id, nil, parts...))
			if fails != (err != nil) {
				t.Fatal(err)
			}
			return stats.Manifest
		}
		m := persist(1, false, "a=1")
		if got, want := readLogs(t, s, m), []string{"a after 0", "a 1 [1]"}; !slices.Equal(got, want) {
			t.Errorf("%q", got)
		}
		// Never committed.
		s.Before(on(faultstore.Put, "ckpt/*", errStore))
		persist(2, true, "a=2", "b=2")
		s.Before(nil)
		persist(3, false, "b=3")
		m = persist(4, false, "a=4")
		r.Committed(4)
		if got, want := readLogs(t, s, m), []string{"a after 0", "a 4 [1 2 4]", "b after 0", "b 4 [2 3]"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
		m = persist(5, false, "b=5")
		if got, want := readLogs(t, s, m), []string{"a after 0", "a 4 [1 2 4]", "b after 0", "b 4 [2 3]", "b 5 [5]"}; !slices.Equal(got, want) {
			t.Errorf("%q, want %q", got, want)
		}
	}
}

// TestSmallLogsArePacked takes many checkpoints of one that logs little, one that logs
// much now and then, and one that seldom logs, over several incarnations, and compares
// with what was kept.
func TestSmallLogsArePacked(t *testing.T) {
	s := checkpoint.NewMem()
	var base *checkpoint.Manifest
	var ref offsets.ManifestRef
	type log struct {
		id   int64
		text string
	}
	model := map[string][]log{}
	before := map[string]int64{}
	id := int64(0)
	rng := rand.New(rand.NewPCG(7, 7))
	for incarnation := range uint32(5) {
		r := newRig(t, s, func(c *checkpoint.Config) {
			c.Base, c.BaseRef, c.Incarnation, c.InlineLimit, c.Retain, c.PackLogs = base, ref, incarnation, 50, 2, 5
		})
		for range 60 {
			id++
			var parts []string
			for sink, chance := range map[string]int{"often": 100, "large": 90, "seldom": 5} {
				if rng.IntN(100) < chance {
					text := fmt.Sprintf("%d", id)
					if sink == "large" && rng.IntN(8) == 0 {
						text += strings.Repeat("x", 60)
					}
					parts = append(parts, sink+"="+text)
				}
			}
			keep := map[string]int64{"often": id - 33, "large": id - 20}
			_, stats, err := r.Persist(t.Context(), logged(id, keep, parts...))
			if err != nil {
				t.Fatal(err)
			}
			if rng.IntN(10) == 0 {
				// It is not committed: the next one has it all, under its own name.
				id++
				if ref, stats, err = r.Persist(t.Context(), logged(id, keep)); err != nil {
					t.Fatal(err)
				}
			}
			r.Committed(id)
			for _, p := range parts {
				sink, text, _ := strings.Cut(p, "=")
				model[sink] = append(model[sink], log{id, text})
			}
			for sink, from := range keep {
				for len(model[sink]) > 0 && model[sink][0].id < from {
					before[sink] = model[sink][0].id
					model[sink] = model[sink][1:]
				}
			}
			var want []string
			for _, sink := range slices.Sorted(maps.Keys(model)) {
				want = append(want, fmt.Sprintf("%s after %d", sink, before[sink]))
				for _, l := range model[sink] {
					want = append(want, fmt.Sprintf("%s %d [%s]", sink, l.id, l.text))
				}
			}
			m := stats.Manifest
			if got := readLogs(t, s, m); !slices.Equal(got, want) {
				t.Fatalf("checkpoint %d has the logs\n%q, want\n%q", id, got, want)
			}
			if id%10 == 0 {
				if err := checkpoint.Verify(t.Context(), s, m, nil); err != nil {
					t.Fatal(err)
				}
				r.Settle()
			}
			for _, sink := range m.Logs {
				if sink.Operator == "often" && len(sink.Logs) > 5+34/5+1+4 { // single, packed, and left by another incarnation
					t.Fatalf("checkpoint %d lists %d logs of %s", id, len(sink.Logs), sink.Operator)
				}
			}
		}
		r.Settle()
		base, ref = r.Base()
		if list, _ := checkpoint.ListManifests(t.Context(), s); len(list) > 2+2*5+20 {
			t.Errorf("%d manifests are left", len(list))
		}
		r.close()
		var err error
		if base, err = checkpoint.Load(t.Context(), s, ref); err != nil {
			t.Fatal(err)
		}
	}
}

// The receiver is away, so all logs are kept; one of the first is too large to be packed.
func TestSmallLogsBehindALargeOneArePacked(t *testing.T) {
	packsBetween(t, 5, 200/5+10, func(id int64) bool { return id == 3 || id == 100 })
}

// Here so many are too large that there is no row as long as a pack is otherwise.
func TestSmallLogsBetweenLargeOnesArePacked(t *testing.T) {
	packsBetween(t, 16, 200/10*2+10, func(id int64) bool { return id%10 == 0 })
}

// packsBetween commits 200 logs, all of which are kept, and checks that at most some are
// listed on their own or as packs.
func packsBetween(t *testing.T, packLogs, most int, large func(id int64) bool) {
	s := checkpoint.NewMem()
	r := newRig(t, s, func(c *checkpoint.Config) { c.InlineLimit, c.PackLogs, c.Retain = 50, packLogs, 1 })
	defer r.close()
	const checkpoints = 200
	var m *checkpoint.Manifest
	want := []string{"sink after 0"}
	for id := int64(1); id <= checkpoints; id++ {
		text := "x"
		if large(id) {
			text = strings.Repeat("x", 60)
		}
		_, stats, err := r.Persist(t.Context(), logged(id, map[string]int64{"sink": 0}, "sink="+text))
		if err != nil {
			t.Fatal(err)
		}
		r.Committed(id)
		m = stats.Manifest
		want = append(want, fmt.Sprintf("sink %d [%s]", id, text))
	}
	r.Settle()
	if n := len(m.Logs[0].Logs); n > most {
		t.Errorf("%d logs are listed, want %d at most", n, most)
	}
	if got := readLogs(t, s, m); !slices.Equal(got, want) {
		t.Errorf("the logs are\n%q, want\n%q", got, want)
	}
}

func TestPacksOutOfPlaceAreRefused(t *testing.T) {
	s := checkpoint.NewMem()
	r := newRig(t, s, nil)
	for id := int64(1); id <= 4; id++ {
		r.commit(id, nil)
	}
	m, _ := r.Base()
	sink := m.Logs[0]
	if !sink.Logs[0].Pack() || sink.Logs[0].Count != 3 {
		t.Fatalf("want a pack: %+v", sink)
	}
	for what, change := range map[string]func(*checkpoint.LogRef){
		"count": func(l *checkpoint.LogRef) { l.Count++ },
		"first": func(l *checkpoint.LogRef) { l.First++ },
		"last":  func(l *checkpoint.LogRef) { l.Checkpoint-- },
		"bytes": func(l *checkpoint.LogRef) { l.Bytes++ },
		"sum":   func(l *checkpoint.LogRef) { l.CRC32C++ },
	} {
		bad := sink
		bad.Logs = slices.Clone(sink.Logs)
		change(&bad.Logs[0])
		_, err := checkpoint.ExpandLogs(t.Context(), s, bad)
		if damaged, ok := errors.AsType[*checkpoint.DamagedError](err); !ok || damaged.Object != bad.Logs[0].Object {
			t.Errorf("%s: %v", what, err)
		}
		if err := checkpoint.Verify(t.Context(), s, &checkpoint.Manifest{Logs: []checkpoint.SinkLogs{bad}}, nil); err == nil {
			t.Errorf("%s: verified", what)
		}
	}
	// Every byte of it counts.
	whole, err := s.Get(t.Context(), sink.Logs[0].Object)
	if err != nil {
		t.Fatal(err)
	}
	for i := range whole {
		if err := faultstore.FlipBit(s, sink.Logs[0].Object, i*8+3); err != nil {
			t.Fatal(err)
		}
		if _, err := checkpoint.ExpandLogs(t.Context(), s, sink); err == nil {
			t.Errorf("byte %d flipped", i)
		}
		if err := faultstore.FlipBit(s, sink.Logs[0].Object, i*8+3); err != nil {
			t.Fatal(err)
		}
	}
}

// FuzzDecodePack looks for bytes that make decoding a pack panic.
func FuzzDecodePack(f *testing.F) {
	b, pack := checkpoint.EncodePack([]checkpoint.LogRef{{Checkpoint: 1, Length: 2, Bytes: 1}, {Checkpoint: 3, Length: 2, Bytes: 1}}, [][]byte{{1, 'a'}, {1, 'b'}})
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		logs, err := checkpoint.DecodePack(b, pack)
		if err != nil {
			return
		}
		for _, l := range logs {
			if l.Offset < 0 || l.Length < 0 || l.Offset+l.Length > int64(len(b)) {
				t.Fatalf("a log outside of its pack was taken: %+v", l)
			}
		}
	})
}

func TestLogsKeepTheLineageThatMadeThem(t *testing.T) {
	s := checkpoint.NewMem()
	r := newRig(t, s, nil)
	old := r.Lineage()
	r.commit(1, nil)
	base, ref := r.Base()
	r.close()
	r = newRig(t, s, func(c *checkpoint.Config) { c.Base, c.BaseRef, c.Lineage = base, ref, checkpoint.NewLineage() })
	m, err := checkpoint.Load(t.Context(), s, r.commit(2, nil))
	if err != nil {
		t.Fatal(err)
	}
	l := m.Logs[0].Logs
	if len(l) != 2 || l[0].Lineage != old || l[1].Lineage != r.Lineage() || m.Lineage == old {
		t.Errorf("%+v", m.Logs)
	}
}

func TestLogsOutOfPlaceAreRefused(t *testing.T) {
	good := func() *checkpoint.Manifest {
		l := checkpoint.LogRef{Checkpoint: 3, Created: time.UnixMilli(5).UTC(), Object: "log/x-0.log", Length: 10, Bytes: 9}
		return &checkpoint.Manifest{App: app, Checkpoint: 4, Lineage: "ab", Logs: []checkpoint.SinkLogs{{Operator: "a", Before: 2, Logs: []checkpoint.LogRef{l}}, {Operator: "b"}}}
	}
	for what, change := range map[string]func(*checkpoint.Manifest, *checkpoint.LogRef){
		"":                  func(*checkpoint.Manifest, *checkpoint.LogRef) {},
		"not newer":         func(_ *checkpoint.Manifest, l *checkpoint.LogRef) { l.Checkpoint = 2 },
		"of the future":     func(_ *checkpoint.Manifest, l *checkpoint.LogRef) { l.Checkpoint = 5 },
		"of another kind":   func(_ *checkpoint.Manifest, l *checkpoint.LogRef) { l.Object = "seg/x.sst" },
		"outside":           func(_ *checkpoint.Manifest, l *checkpoint.LogRef) { l.Object = "log/../x" },
		"behind the end":    func(_ *checkpoint.Manifest, l *checkpoint.LogRef) { l.Object = "" },
		"negative":          func(_ *checkpoint.Manifest, l *checkpoint.LogRef) { l.Offset = -1 },
		"larger than it is": func(_ *checkpoint.Manifest, l *checkpoint.LogRef) { l.Bytes = 11 },
		"pack of none":      func(_ *checkpoint.Manifest, l *checkpoint.LogRef) { l.Count, l.First = 2, 3 },
		"single with first": func(_ *checkpoint.Manifest, l *checkpoint.LogRef) { l.First = 3 },
		"sinks twice":       func(m *checkpoint.Manifest, _ *checkpoint.LogRef) { m.Logs[1].Operator = "a" },
	} {
		m := good()
		change(m, &m.Logs[0].Logs[0])
		b, err := checkpoint.EncodeManifest(m)
		if err != nil {
			t.Fatal(err)
		}
		got, err := checkpoint.DecodeManifest(b, "ckpt/x.manifest")
		if (what == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), "log") {
			t.Errorf("%s: %v", what, err)
		}
		if err == nil && got.Logs[0].Logs[0].Lineage != "ab" {
			t.Errorf("%+v", got.Logs)
		}
		if err == nil && b[11] != 2 {
			t.Errorf("a manifest with logs has version %d", b[11])
		}
		if what == "" {
			m.Logs[0].Logs[0].Count, m.Logs[0].Logs[0].First, m.Logs[0].Before = 2, 2, 1
			p, err := checkpoint.EncodeManifest(m)
			if err != nil || p[11] != 3 {
				t.Fatalf("a manifest with a pack has version %d: %v", p[11], err)
			}
			if _, err := checkpoint.DecodeManifest(p, "ckpt/x.manifest"); err != nil {
				t.Error(err)
			}
			p[11] = 2
			if _, err := checkpoint.DecodeManifest(seal(p), "ckpt/x.manifest"); err == nil {
				t.Error("a pack in version 2 was taken")
			}
		}
		b[11] = 1 // as if a build that knows none had written it
		if _, err := checkpoint.DecodeManifest(seal(b), "ckpt/x.manifest"); err == nil {
			t.Errorf("%s: logs in version 1 were taken", what)
		}
	}
}

// TestS30_GoldenLogsStayReadable reads the logs that an earlier build wrote: one in its
// manifest, one in an older manifest, one of its own, in a store and in a savepoint.
func TestS30_GoldenLogsStayReadable(t *testing.T) {
	const dir = "testdata/store-v2"
	if _, err := os.Stat(dir); *update && errors.Is(err, os.ErrNotExist) {
		d, err := checkpoint.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		at := func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6000000, time.UTC) }
		var base *checkpoint.Manifest
		var ref offsets.ManifestRef
		for i, parts := range [][]string{{"redis=gone"}, {"redis=one", "redis=two"}, {"redis=three"}, {"leaders=four", "redis="}} {
			id := int64(i + 1)
			r := newRig(t, d, func(c *checkpoint.Config) {
				c.Base, c.BaseRef, c.Incarnation, c.Now, c.Retain = base, ref, uint32(id), at, 9
				if id == 2 {
					c.InlineLimit = -1
				}
				if id == 4 {
					c.Lineage = "00112233445566bb"
				}
			})
			if id == 1 {
				checkpoint.SetLineage(r.Writer, "00112233445566aa")
			}
			snap := snapshot(id, changes{"0/a": fmt.Sprint(id)})
			s := logged(id, map[string]int64{"redis": 2}, parts...)
			snap.Logs, snap.Keep = s.Logs, s.Keep
			if ref, _, err = r.Persist(t.Context(), snap); err != nil {
				t.Fatal(err)
			}
			r.Committed(id)
			base, _ = r.Base()
			r.close()
		}
		if _, err := checkpoint.CreateSavepoint(t.Context(), d, base, d, "golden", nil); err != nil {
			t.Fatal(err)
		}
		writeGolden(t, dir, ref)
	}
	var ref offsets.ManifestRef
	d := readGolden(t, dir, &ref)
	m, err := checkpoint.Load(t.Context(), d, ref)
	if err != nil {
		t.Fatal(err)
	}
	sp, view, err := checkpoint.OpenSavepoint(t.Context(), d, "golden")
	if err != nil {
		t.Fatal(err)
	}
	for store, m := range map[checkpoint.Store]*checkpoint.Manifest{d: m, view: sp} {
		want := []string{"leaders after 0", "leaders 4 [four]", "redis after 1", "redis 2 [one two]", "redis 3 [three]", "redis 4 []"}
		if got := readLogs(t, store, m); !slices.Equal(got, want) {
			t.Errorf("%s holds the logs %q, want %q", store, got, want)
		}
		for _, l := range m.Logs[1].Logs {
			want := "00112233445566aa"
			if l.Checkpoint == 4 {
				want = "00112233445566bb"
			}
			if l.Lineage != want || !l.Created.Equal(time.Date(2026, 1, 2, 3, 4, 5, 6000000, time.UTC)) {
				t.Errorf("%+v", l)
			}
		}
		if err := checkpoint.Verify(t.Context(), store, m, nil); err != nil {
			t.Error(err)
		}
	}
}

// TestS30_GoldenPacksStayReadable reads packs of logs that an earlier build wrote, one of
// them kept in part.
func TestS30_GoldenPacksStayReadable(t *testing.T) {
	const dir = "testdata/store-v3"
	if _, err := os.Stat(dir); *update && errors.Is(err, os.ErrNotExist) {
		d, err := checkpoint.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		at := func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6000000, time.UTC) }
		r := newRig(t, d, func(c *checkpoint.Config) { c.Now, c.Retain = at, 1 })
		checkpoint.SetLineage(r.Writer, "00112233445566aa")
		var ref offsets.ManifestRef
		for id := int64(1); id <= 8; id++ {
			if ref, _, err = r.Persist(t.Context(), logged(id, map[string]int64{"redis": id - 6}, fmt.Sprintf("redis=log %d", id), "redis=")); err != nil {
				t.Fatal(err)
			}
			r.Committed(id)
			r.Settle()
		}
		writeGolden(t, dir, ref)
	}
	var ref offsets.ManifestRef
	d := readGolden(t, dir, &ref)
	m, err := checkpoint.Load(t.Context(), d, ref)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{"redis after 1", "redis 2 [log 2 ]", "redis 3 [log 3 ]", "redis 4 [log 4 ]", "redis 5 [log 5 ]", "redis 6 [log 6 ]", "redis 7 [log 7 ]", "redis 8 [log 8 ]"}
	if got := readLogs(t, d, m); !slices.Equal(got, want) || m.Logs[0].From != 2 || !m.Logs[0].Logs[1].Pack() {
		t.Errorf("logs %q, want %q: %+v", got, want, m.Logs)
	}
	if err := checkpoint.Verify(t.Context(), d, m, nil); err != nil {
		t.Error(err)
	}
}
