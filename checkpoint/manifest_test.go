package checkpoint_test

import (
	"errors"
	"flag"
	"fmt"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

var update = flag.Bool("update", false, "write golden files that are missing; existing ones are never changed")

// What a state had written by a clock that does not count any more is spared from the
// start on that took it away, up to the start that brings it back.
func TestStateThatLosesItsTimeToLiveSparesWhatIsThere(t *testing.T) {
	span := func(clock segment.Domain, after, until int64) segment.Span {
		return segment.Span{Clock: clock, After: after, Until: until}
	}
	const forever, processing = math.MaxInt64, segment.ProcessingTime
	for name, c := range map[string]struct {
		was, is string
		before  segment.Spans
		want    segment.Spans
	}{
		"the same clock":      {was: "processing", is: "processing"},
		"none as before":      {was: "none", is: "none"},
		"timers":              {},
		"taken away":          {was: "processing", is: "none", want: segment.Spans{span(processing, 10, forever)}},
		"another clock":       {was: "processing", is: "event", want: segment.Spans{span(processing, 10, forever)}},
		"gone for long":       {was: "none", is: "none", before: segment.Spans{span(processing, 5, forever)}, want: segment.Spans{span(processing, 5, forever)}},
		"brought back":        {was: "none", is: "processing", before: segment.Spans{span(processing, 5, forever)}, want: segment.Spans{span(processing, 5, 10)}},
		"taken away again":    {was: "processing", is: "none", before: segment.Spans{span(processing, 5, 7)}, want: segment.Spans{span(processing, 5, 7), span(processing, 10, forever)}},
		"of an earlier build": {is: "none", want: segment.Spans{span(processing, 10, forever), span(segment.EventTime, 20, forever)}},
	} {
		before := slices.Clone(c.before)
		s := checkpoint.StateInfo{Clock: c.is}
		s.Follow(checkpoint.StateInfo{ID: 3, Clock: c.was, Spared: c.before}, 10, 20)
		if s.ID != 3 || !slices.Equal(s.Spared, c.want) || !slices.Equal(c.before, before) {
			t.Errorf("%s: %+v, want %v; it followed %v", name, s, c.want, c.before)
		}
	}
}

func TestManifestComesBackAsItWas(t *testing.T) {
	stores(t, func(t *testing.T, s checkpoint.Store) {
		ids := map[string]checkpoint.TopicID{"lines": {1, 255}}
		r := newRig(t, s, func(c *checkpoint.Config) { c.TopicIDs = ids })
		first := r.commit(1, changes{"1/a": "1"})
		snap := snapshot(2, changes{"2/b": "2"})
		snap.Positions[offsets.Partition{Topic: "lines", Partition: 10}] = offsets.Position{Offset: 1 << 60, LeaderEpoch: -1}
		ref, stats, err := r.Persist(t.Context(), snap)
		if err != nil {
			t.Fatal(err)
		}
		m, err := checkpoint.Load(t.Context(), s, ref)
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(m, stats.Manifest) {
			t.Errorf("loaded\n%+v, persisted\n%+v", m, stats.Manifest)
		}
		if m.Parent != first || !maps.Equal(m.Positions, snap.Positions) || !maps.Equal(m.TopicIDs, ids) || !reflect.DeepEqual(m.States, snap.States) || string(m.Sinks["redis"]) != `{"at":2}` ||
			m.App != app || m.Instance != "host-a" || m.Incarnation != 0xa1 || m.KeyGroups != keyGroups || len(m.Segments) != 2 || time.Since(m.Created) > time.Hour {
			t.Errorf("loaded %+v", m)
		}
		if b, err := s.Get(t.Context(), checkpoint.ManifestObject(ref)); err != nil || !strings.Contains(string(b), `"topicIDs":{"lines":"Af8AAAAAAAAAAAAAAAAAAA"}`) {
			t.Errorf("the ids of topics are not written as Kafka's tools print them: %s, %v", b, err)
		}
		_, found, err := checkpoint.Inspect(t.Context(), s, checkpoint.ManifestObject(ref))
		if err != nil || found != ref {
			t.Errorf("inspect gives %v, %v", found, err)
		}
		list, err := checkpoint.ListManifests(t.Context(), s)
		if err != nil || len(list) != 2 || list[1].Checkpoint != 2 || list[1].Incarnation != 0xa1 || list[1].Name != checkpoint.ManifestObject(ref) {
			t.Errorf("list %+v, %v", list, err)
		}
		var wrong *checkpoint.WrongAppError
		if err := m.Check(s, "other", keyGroups); !errors.As(err, &wrong) {
			t.Errorf("another app: %v", err)
		}
		var groups *checkpoint.KeyGroupsError
		if err := m.Check(s, app, 9); !errors.As(err, &groups) {
			t.Errorf("other key-groups: %v", err)
		}
	})
}

// TestS04_DamageIsRefusedByName damages each object of a checkpoint in each way.
func TestS04_DamageIsRefusedByName(t *testing.T) {
	stores(t, func(t *testing.T, s checkpoint.Store) {
		r := newRig(t, s, func(c *checkpoint.Config) { c.InlineLimit = -1 })
		r.commit(1, changes{"1/a": "1", "2/b": "2"})
		r.Writer.Close(context())
		base, ref := r.Base()
		r = newRig(t, s, func(c *checkpoint.Config) { c.Base, c.BaseRef, c.InlineLimit = base, ref, 0 })
		ref = r.commit(2, changes{"1/a": "3"})
		m, _ := r.Base()
		r.close()

		segment, manifest := m.Segments[0].Object, checkpoint.ManifestObject(ref)
		if m.Segments[1].Object != manifest || segment == manifest {
			t.Fatalf("want a segment of its own and an inline one: %+v", m.Segments)
		}
		log := m.Logs[0].Logs[0].Object
		if !strings.HasPrefix(log, "log/") || m.Logs[0].Logs[1].Object != manifest {
			t.Fatalf("want a log of its own and an inline one: %+v", m.Logs)
		}
		for _, object := range []string{segment, log, manifest} {
			whole, err := s.Get(t.Context(), object)
			if err != nil {
				t.Fatal(err)
			}
			refused := func(how string) {
				t.Helper()
				_, err := tryRestore(s, ref)
				var damaged *checkpoint.DamagedError
				if !errors.As(err, &damaged) || damaged.Object != object || damaged.Store != s.String() || !strings.Contains(err.Error(), object) || !strings.Contains(err.Error(), "from a backup of the store") {
					t.Errorf("%s %s: %v", object, how, err)
				}
				if err := s.Delete(t.Context(), object); err != nil {
					t.Fatal(err)
				}
				if err := s.Put(t.Context(), object, whole); err != nil {
					t.Fatal(err)
				}
			}
			for n := 0; n < len(whole); n += 1 + len(whole)/40 {
				if err := faultstore.Truncate(s, object, n); err != nil {
					t.Fatal(err)
				}
				refused(fmt.Sprintf("cut to %d of %d bytes", n, len(whole)))
			}
			for i := range whole {
				if i > 32 && i < len(whole)-8 && i%11 != 0 {
					continue
				}
				if err := faultstore.FlipBit(s, object, i*8+i%8); err != nil {
					t.Fatal(err)
				}
				refused(fmt.Sprintf("bit %d of byte %d flipped", i%8, i))
			}
			if object == manifest {
				// A tool has no hash to compare with.
				for _, i := range []int{0, 11, 15, 23, 40, len(whole) - 1} {
					if err := faultstore.FlipBit(s, object, i*8); err != nil {
						t.Fatal(err)
					}
					var damaged *checkpoint.DamagedError
					if _, _, err := checkpoint.Inspect(t.Context(), s, object); !errors.As(err, &damaged) || damaged.Object != object {
						t.Errorf("inspect with byte %d flipped: %v", i, err)
					}
					if err := faultstore.FlipBit(s, object, i*8); err != nil {
						t.Fatal(err)
					}
				}
			}
			if err := faultstore.Remove(s, object); err != nil {
				t.Fatal(err)
			}
			var missing *checkpoint.MissingError
			if _, err := tryRestore(s, ref); !errors.As(err, &missing) || missing.Object != object || !strings.Contains(err.Error(), object) {
				t.Errorf("%s deleted: %v", object, err)
			}
			if object == log { // what stands behind a log is not read
				if err := s.Put(t.Context(), object, whole); err != nil {
					t.Fatal(err)
				}
				continue
			}
			if err := s.Put(t.Context(), object, append(whole[:len(whole):len(whole)], 0)); err != nil {
				t.Fatal(err)
			}
			refused("a byte longer")
		}
		expect(t, s, ref, model{"1/a": "3", "2/b": "2"})

		// A sound manifest that isn't the one of the pointer.
		other := ref
		other.Hash[3]++
		var damaged *checkpoint.DamagedError
		if _, err := checkpoint.Load(t.Context(), s, other); !errors.As(err, &damaged) || !strings.Contains(err.Error(), "hash") {
			t.Errorf("another hash: %v", err)
		}
	})
}

func TestManifestOfALaterVersionIsNotCalledDamaged(t *testing.T) {
	s := checkpoint.NewMem()
	b, err := os.ReadFile("testdata/manifest-v9.manifest")
	if err != nil {
		t.Fatal(err)
	}
	object := "ckpt/0000000000000001-000000a1.manifest"
	if err := s.Put(t.Context(), object, b); err != nil {
		t.Fatal(err)
	}
	var version *checkpoint.VersionError
	if _, _, err := checkpoint.Inspect(t.Context(), s, object); !errors.As(err, &version) || version.Version != 9 || version.Known != 5 {
		t.Errorf("%v", err)
	}
	if err := faultstore.FlipBit(s, object, 11*8); err != nil {
		t.Fatal(err)
	}
	var damaged *checkpoint.DamagedError
	if _, _, err := checkpoint.Inspect(t.Context(), s, object); !errors.As(err, &damaged) {
		t.Errorf("a bit of the version flipped: %v", err)
	}
}

// goldenState is what testdata/store-v1 holds.
var goldenState = model{"0/a": "1", "5/b": "22", "7/d": "4"}

// TestS30_GoldenStoreStaysRestorable restores what an earlier build wrote: a manifest
// with an inline segment, on top of one with a segment of its own.
func TestS30_GoldenStoreStaysRestorable(t *testing.T) {
	const dir = "testdata/store-v1"
	if _, err := os.Stat(dir); *update && errors.Is(err, os.ErrNotExist) {
		d, err := checkpoint.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		at := func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC) }
		r := newRig(t, d, func(c *checkpoint.Config) { c.InlineLimit, c.Now = -1, at })
		ref := r.commit(1, changes{"0/a": "1", "5/b": "2", "5/c": "3"})
		base, _ := r.Base()
		r.close()
		r = newRig(t, d, func(c *checkpoint.Config) { c.Base, c.BaseRef, c.Incarnation, c.Now = base, ref, 0xb2, at })
		ref = r.commit(2, changes{"5/b": "22", "5/c": "", "7/d": "4"})
		writeGolden(t, dir, ref)
	}
	var ref offsets.ManifestRef
	d := readGolden(t, dir, &ref)
	expect(t, d, ref, goldenState)
	m, err := checkpoint.Load(t.Context(), d, ref)
	if err != nil {
		t.Fatal(err)
	}
	if m.App != app || m.Parent.Checkpoint != 1 || m.Positions[offsets.Partition{Topic: "lines", Partition: 3}].Offset != 20 || m.States[0].Operator != "count" || string(m.Sinks["redis"]) != `{"at":2}` {
		t.Errorf("golden manifest: %+v", m)
	}
}

func FuzzDecodeManifest(f *testing.F) {
	files, err := filepath.Glob("testdata/store-v[12345]/ckpt/*")
	if err != nil || len(files) == 0 {
		f.Fatal("no golden manifests", err)
	}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b, true)
		f.Add(b[:len(b)/2], false)
	}
	f.Fuzz(func(t *testing.T, b []byte, mend bool) {
		if mend {
			b = seal(b) // so that the fuzzer gets behind the checksum
		}
		m, err := checkpoint.DecodeManifest(b, "ckpt/x.manifest")
		if err != nil {
			return
		}
		for _, s := range m.Segments {
			if s.Offset < 0 || s.Length < 0 || s.Object == "ckpt/x.manifest" && s.Offset+s.Length > int64(len(b)) {
				t.Fatalf("segment outside of its object was taken: %+v", s)
			}
		}
		for _, sink := range m.Logs {
			for _, l := range sink.Logs {
				if l.Offset < 0 || l.Length < 0 || l.Object == "ckpt/x.manifest" && l.Offset+l.Length > int64(len(b)) || l.Checkpoint <= sink.Before {
					t.Fatalf("log outside of its object was taken: %+v", l)
				}
			}
		}
	})
}

// goldenPieces is what testdata/store-v1-pieces and the savepoint in it hold.
func goldenPieces(t testing.TB, s checkpoint.Store, m *checkpoint.Manifest) {
	t.Helper()
	if err := checkpoint.Verify(t.Context(), s, m, nil); err != nil {
		t.Fatal(err)
	}
	got := contents(t, s, m)
	if len(got) != 1500 || m.Lineage != "00112233445566aa" || m.Watermark != 77 || len(m.Levels(0, keyGroups)) >= len(m.Segments) || !m.Segments[0].Base || m.Segments[0].MinKey == "" || m.Segments[0].Shards < 2 || m.Segments[0].Run == 0 {
		t.Errorf("%d entries, golden manifest: %+v", len(got), m)
	}
	for n := range 1500 {
		if v := got[key(n)]; !strings.HasSuffix(v, fmt.Sprint("value ", n)) {
			t.Fatalf("key %d has the value %q", n, v)
		}
	}
}

// TestS30_GoldenPiecesAndSavepointStayRestorable restores what an earlier build wrote: a
// merged level in pieces with changes on top, and a savepoint of it.
func TestS30_GoldenPiecesAndSavepointStayRestorable(t *testing.T) {
	const dir = "testdata/store-v1-pieces"
	if _, err := os.Stat(dir); *update && errors.Is(err, os.ErrNotExist) {
		d, err := checkpoint.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		at := func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC) }
		first := &checkpoint.Manifest{}
		r := newRig(t, d, func(c *checkpoint.Config) {
			c.Retain, c.MergeFanIn, c.MergeTarget, c.InlineLimit, c.Now = 1, 2, 4<<10, -1, at
		})
		checkpoint.SetLineage(r.Writer, "00112233445566aa")
		for id := range 4 {
			e := epoch{}
			for n := range 1500 {
				if id < 2 && n%2 == id || n%100 == id {
					e[key(n)] = string(segment.AppendHeader(nil, segment.Header{Version: 1})) + fmt.Sprint("value ", n)
				}
			}
			snap := snapshot(int64(id+1), nil)
			snap.Watermark, snap.Runs = 77, []segment.Run{e.run(keyGroups)}
			ref, stats, err := r.Persist(t.Context(), snap)
			if err != nil {
				t.Fatal(err)
			}
			r.Committed(int64(id + 1))
			if id < 2 {
				r.Settle()
			}
			first = stats.Manifest
			writeGolden(t, dir, ref)
		}
		if _, err := checkpoint.CreateSavepoint(t.Context(), d, first, d, "golden", nil); err != nil {
			t.Fatal(err)
		}
		_, ref := r.Base()
		r.close()
		if _, err := checkpoint.Collect(t.Context(), d, checkpoint.CollectOptions{Live: []offsets.ManifestRef{ref}, Retain: 1, Now: later}); err != nil {
			t.Fatal(err)
		}
	}
	var ref offsets.ManifestRef
	d := readGolden(t, dir, &ref)
	m, err := checkpoint.Load(t.Context(), d, ref)
	if err != nil {
		t.Fatal(err)
	}
	goldenPieces(t, d, m)
	m, view, err := checkpoint.OpenSavepoint(t.Context(), d, "golden")
	if err != nil {
		t.Fatal(err)
	}
	goldenPieces(t, view, m)
}
