package checkpoint_test

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/offsets"
)

// flight is what a subtask captured, of which these tests know only the bytes.
func flight(stage string, minKG, maxKG uint16, data string) checkpoint.InFlightData {
	wm := int64(1000) + int64(minKG)
	return checkpoint.InFlightData{Data: []byte(data), InFlight: checkpoint.InFlight{
		Stage: stage, MinKG: minKG, MaxKG: maxKG, Watermark: &wm, Records: int64(len(data)), KeyCodec: "string", ValueCodec: "json", ValueVersion: 2}}
}

var flights = []checkpoint.InFlightData{flight("by-word", 0, 3, "first"), flight("by-word", 4, 7, ""), flight("by-word", 4, 7, "second and last"), flight("other", 0, 7, "x")}

// expectFlights reads back what was in flight.
func expectFlights(t *testing.T, store checkpoint.Store, m *checkpoint.Manifest, want []checkpoint.InFlightData) {
	t.Helper()
	if len(m.InFlight) != len(want) {
		t.Fatalf("%d parts are in flight, want %d", len(m.InFlight), len(want))
	}
	for i, f := range m.InFlight {
		data, err := checkpoint.ReadInFlight(t.Context(), store, f)
		if err != nil {
			t.Fatal(err)
		}
		w := want[i]
		if string(data) != string(w.Data) || f.Stage != w.Stage || f.MinKG != w.MinKG || f.MaxKG != w.MaxKG || (f.Watermark == nil) != (w.Watermark == nil) ||
			f.Watermark != nil && *f.Watermark != *w.Watermark || !slices.Equal(f.Heard, w.Heard) || f.Broadcast() != (len(w.Heard) > 0) ||
			f.Records != w.Records || f.KeyCodec != w.KeyCodec || f.ValueCodec != w.ValueCodec || f.ValueVersion != w.ValueVersion {
			t.Errorf("part %d: %q of %+v, want %q of %+v", i, data, f, w.Data, w.InFlight)
		}
	}
}

// inFlightModes are the limits up to which things are inline: for each of them records in
// flight, and a segment, are inline or not.
var inFlightModes = map[string]int64{"inline": 0, "apart": -1}

func TestRecordsInFlightBelongToOneCheckpointAlone(t *testing.T) {
	stores(t, func(t *testing.T, store checkpoint.Store) {
		for name, limit := range inFlightModes {
			t.Run(name, func(t *testing.T) {
				store := checkpoint.Sub(store, name)
				r := newRig(t, store, func(c *checkpoint.Config) { c.InlineLimit, c.Retain = limit, 2 })
				for id := int64(1); id <= 4; id++ {
					s := snapshot(id, changes{"0/a": "1", "5/b": strings.Repeat("2", int(id))})
					if id%2 == 1 {
						s.InFlight = flights
					}
					ref, _, err := r.Persist(t.Context(), s)
					if err != nil {
						t.Fatal(err)
					}
					r.Committed(id)
					expect(t, store, ref, model{"0/a": "1", "5/b": strings.Repeat("2", int(id))})
					m, err := checkpoint.Load(t.Context(), store, ref)
					if err != nil {
						t.Fatal(err)
					}
					if id%2 == 0 {
						expectFlights(t, store, m, nil)
						continue
					}
					expectFlights(t, store, m, flights)
					if n := m.RecordsInFlight(); n != int64(len("first")+len("second and last")+1) {
						t.Errorf("%d records are in flight", n)
					}
					if err := checkpoint.Verify(t.Context(), store, m, nil); err != nil {
						t.Error(err)
					}
				}
				// What is not retained any more is collected, whoever does it.
				r.Settle()
				var left []string
				for _, object := range names(t, store) {
					if strings.HasPrefix(object, "inflight/") {
						left = append(left, object)
					}
				}
				want := []string{"inflight/0000000000000003-000000a1.rec"}
				if name == "inline" {
					want = nil
				}
				if !slices.Equal(left, want) {
					t.Errorf("records in flight that are left: %v, want %v", left, want)
				}
			})
		}
	})
}

func TestRecordsInFlightOfFailedCheckpointsAreCollected(t *testing.T) {
	inner := checkpoint.NewMem()
	store := faultstore.Wrap(inner)
	store.Before(on(faultstore.Put, "ckpt/*", errStore))
	r := newRig(t, store, func(c *checkpoint.Config) { c.InlineLimit, c.Retain = -1, 1 })
	s := snapshot(1, changes{"0/a": "1"})
	s.InFlight = flights
	if _, _, err := r.Persist(t.Context(), s); !errors.Is(err, errStore) {
		t.Fatalf("got %v", err)
	}
	store.Before(nil)
	s = snapshot(2, nil)
	ref, _, err := r.Persist(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	r.Committed(2)
	r.Settle()
	m, err := checkpoint.Load(t.Context(), store, ref)
	if err != nil {
		t.Fatal(err)
	}
	expectFlights(t, store, m, nil) // the epoch stayed open, its records in flight were processed in it
	expect(t, store, ref, model{"0/a": "1"})
	for _, object := range names(t, inner) {
		if strings.HasPrefix(object, "inflight/") {
			t.Errorf("%s is left", object)
		}
	}
	// One that a crash left behind is found by the next incarnation.
	orphan := "inflight/0000000000000001-000000ff.rec"
	if err := inner.Put(t.Context(), orphan, []byte("x")); err != nil {
		t.Fatal(err)
	}
	base, baseRef := r.Base()
	r.close()
	r = newRig(t, inner, func(c *checkpoint.Config) { c.Base, c.BaseRef, c.Incarnation, c.Retain = base, baseRef, 0xb2, 1 })
	r.commit(3, changes{"0/a": "2"})
	r.Settle()
	if slices.Contains(names(t, inner), orphan) {
		t.Errorf("%s is left", orphan)
	}
}

func TestS04_DamagedRecordsInFlightAreRefusedByName(t *testing.T) {
	store := checkpoint.NewMem()
	r := newRig(t, store, func(c *checkpoint.Config) { c.InlineLimit = -1 })
	s := snapshot(1, nil)
	s.InFlight = flights
	ref, _, err := r.Persist(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	m, err := checkpoint.Load(t.Context(), store, ref)
	if err != nil {
		t.Fatal(err)
	}
	object := m.InFlight[0].Object
	if err := faultstore.FlipBit(store, object, 3); err != nil {
		t.Fatal(err)
	}
	var damaged *checkpoint.DamagedError
	if _, err := checkpoint.ReadInFlight(t.Context(), store, m.InFlight[0]); !errors.As(err, &damaged) || damaged.Object != object {
		t.Errorf("got %v, want damage to %s", err, object)
	}
	if err := checkpoint.Verify(t.Context(), store, m, nil); !errors.As(err, &damaged) || damaged.Object != object {
		t.Errorf("verify: got %v, want damage to %s", err, object)
	}
	if err := store.Delete(t.Context(), object); err != nil {
		t.Fatal(err)
	}
	var missing *checkpoint.MissingError
	if _, err := checkpoint.ReadInFlight(t.Context(), store, m.InFlight[2]); !errors.As(err, &missing) || missing.Object != object {
		t.Errorf("got %v, want that %s is missing", err, object)
	}
}

func TestRecordsInFlightGoWithTheirSavepoint(t *testing.T) {
	for name, limit := range inFlightModes {
		t.Run(name, func(t *testing.T) {
			store, other := checkpoint.NewMem(), checkpoint.NewMem()
			r := newRig(t, store, func(c *checkpoint.Config) { c.InlineLimit = limit })
			s := snapshot(1, changes{"0/a": "1"})
			s.InFlight = flights
			ref, _, err := r.Persist(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			m, err := checkpoint.Load(t.Context(), store, ref)
			if err != nil {
				t.Fatal(err)
			}
			info, err := checkpoint.CreateSavepoint(t.Context(), store, m, other, "sp", nil)
			if err != nil {
				t.Fatal(err)
			}
			if n := len(names(t, other)); n != info.Objects {
				t.Errorf("%d objects, said were %d", n, info.Objects)
			}
			sp, view, err := checkpoint.OpenSavepoint(t.Context(), other, "sp")
			if err != nil {
				t.Fatal(err)
			}
			expectFlights(t, view, sp, flights)

			home := checkpoint.NewMem()
			o := checkpoint.AdoptOptions{App: app, Instance: "b", KeyGroups: keyGroups, Checkpoint: 7, Incarnation: 9}
			adopted, ref, err := checkpoint.AdoptSavepoint(t.Context(), view, sp, home, o, nil)
			if err != nil {
				t.Fatal(err)
			}
			expectFlights(t, home, adopted, flights)
			expect(t, home, ref, model{"0/a": "1"})

			// Without its positions the state goes alone: the input is read again.
			o.DropPositions, o.Checkpoint = true, 8
			alone, _, err := checkpoint.AdoptSavepoint(t.Context(), view, sp, home, o, nil)
			if err != nil {
				t.Fatal(err)
			}
			expectFlights(t, home, alone, nil)
		})
	}
}

// TestOtherKeyGroupsBeginWhereTheStageStood rewrites checkpoints of which not all subtasks had
// something in flight, or were ahead of their stage, so that parts are missing.
func TestOtherKeyGroupsBeginWhereTheStageStood(t *testing.T) {
	const to, no = keyGroups - 1, checkpoint.NoWatermark
	part := func(minKG, maxKG uint16, watermark int64) checkpoint.InFlightData {
		f := checkpoint.InFlightData{Data: []byte("marks"), InFlight: checkpoint.InFlight{Stage: "count", MinKG: minKG, MaxKG: maxKG, Watermark: &watermark}}
		if watermark == no {
			f.Watermark = nil
		}
		return f
	}
	heard := checkpoint.InFlightData{Data: []byte("rules"), InFlight: checkpoint.InFlight{Stage: "other", Records: 5, Heard: heardFlight.Heard}}
	for name, tc := range map[string]struct {
		parts []checkpoint.InFlightData
		stage int64
		want  []int64 // of the parts, whose least is where all keys begin
	}{
		"one is missing":                    {[]checkpoint.InFlightData{part(4, 7, 500)}, 100, []int64{500, 100}},
		"one with broadcast records":        {[]checkpoint.InFlightData{heard, part(4, 7, 500)}, 100, []int64{no, 500, 100}},
		"none is missing":                   {[]checkpoint.InFlightData{part(0, 3, 100), part(4, 7, 500)}, 100, []int64{100, 500}},
		"nothing is known on the missing":   {[]checkpoint.InFlightData{part(4, 7, 500)}, no, []int64{500, no}},
		"nothing is known on one of them":   {[]checkpoint.InFlightData{part(0, 3, no), part(4, 7, 500)}, no, []int64{no, 500}},
		"nothing but broadcast, and a time": {[]checkpoint.InFlightData{heard}, 100, []int64{no}},
	} {
		t.Run(name, func(t *testing.T) {
			store := checkpoint.NewMem()
			s := snapshot(1, nil)
			s.InFlight = tc.parts
			if tc.stage != no {
				s.EventTime.Stages = map[string]int64{"count": tc.stage}
			}
			_, stats, err := newRig(t, store, nil).Persist(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := checkpoint.RewriteSavepoint(t.Context(), store, stats.Manifest, store, "sp", checkpoint.RewriteOptions{KeyGroups: to, TempDir: t.TempDir()}); err != nil {
				t.Fatal(err)
			}
			sp, view, err := checkpoint.OpenSavepoint(t.Context(), store, "sp")
			if err != nil {
				t.Fatal(err)
			}
			if at := sp.Watermarks("count", 0, to); slices.Min(at) != tc.stage || slices.Max(at) != tc.stage {
				t.Errorf("time stands at %v, want %d", at, tc.stage)
			}
			// What is missing holds time back until the marks of the others are through.
			var want []checkpoint.InFlightData
			for i, at := range tc.want {
				w := part(0, to-1, at)
				if w.Data = nil; i < len(tc.parts) {
					w.Data, w.Heard, w.Records, w.Stage = tc.parts[i].Data, tc.parts[i].Heard, tc.parts[i].Records, tc.parts[i].Stage
				}
				if len(w.Heard) > 0 {
					w.MaxKG = 0
				}
				want = append(want, w)
			}
			expectFlights(t, view, sp, want)
		})
	}
}

func TestManifestThatMisplacesRecordsInFlightIsRefused(t *testing.T) {
	for _, f := range []checkpoint.InFlight{
		{Stage: "s", Length: 1},
		{Stage: "s", Offset: -1},
		{Stage: "s", Records: -1},
		{Stage: "s", MinKG: 2, MaxKG: 1},
		{Stage: ""},
		{Stage: "s", Object: "seg/0000000000000001-000000a1.sst", Length: 1},
		{Stage: "s", Object: "inflight/../x.rec", Length: 1},
	} {
		m := checkpoint.Manifest{App: app, Checkpoint: 1, Incarnation: 0xa1, KeyGroups: keyGroups, InFlight: []checkpoint.InFlight{f}}
		b, err := checkpoint.EncodeManifest(&m)
		if err != nil {
			t.Fatal(err)
		}
		store := checkpoint.NewMem()
		object := "ckpt/0000000000000001-000000a1.manifest"
		if err := store.Put(t.Context(), object, b); err != nil {
			t.Fatal(err)
		}
		var damaged *checkpoint.DamagedError
		if _, _, err := checkpoint.Inspect(t.Context(), store, object); !errors.As(err, &damaged) {
			t.Errorf("%+v: got %v", f, err)
		}
	}
}

// TestS30_GoldenStoreWithRecordsInFlightStaysRestorable restores what an earlier build wrote:
// a manifest of version 4 with records in flight inside, and one with an object of them.
func TestS30_GoldenStoreWithRecordsInFlightStaysRestorable(t *testing.T) {
	goldenFlights(t, "testdata/store-v4", flights)
}

// TestS30_GoldenStoreWithBroadcastRecordsInFlightStaysRestorable is the same for version 5,
// with broadcast records among them.
func TestS30_GoldenStoreWithBroadcastRecordsInFlightStaysRestorable(t *testing.T) {
	goldenFlights(t, "testdata/store-v5", append(slices.Clip(flights), heardFlight))
}

// heardFlight is what a subtask captured of broadcast records.
var heardFlight = checkpoint.InFlightData{Data: []byte("rules"), InFlight: checkpoint.InFlight{Stage: "by-word", Records: 5, Heard: []checkpoint.Heard{
	{Operator: "count", Stream: "rules", Codec: "string", Version: 1}, {Operator: "count", Stream: "rules", Nth: 1, Codec: "json", Version: 3}}}}

func goldenFlights(t *testing.T, dir string, flights []checkpoint.InFlightData) {
	t.Helper()
	if _, err := os.Stat(dir); *update && errors.Is(err, os.ErrNotExist) {
		d, err := checkpoint.OpenDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		at := func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC) }
		var refs []offsets.ManifestRef
		for i, limit := range []int64{0, -1} {
			r := newRig(t, d, func(c *checkpoint.Config) { c.InlineLimit, c.Now, c.Incarnation = limit, at, uint32(i+1) })
			checkpoint.SetLineage(r.Writer, "00112233445566aa")
			s := snapshot(int64(i+1), changes{"0/a": "1", "5/b": "2"})
			s.InFlight = flights
			ref, _, err := r.Persist(t.Context(), s)
			if err != nil {
				t.Fatal(err)
			}
			refs = append(refs, ref)
			r.close()
		}
		writeGolden(t, dir, refs)
	}
	var refs []offsets.ManifestRef
	d := readGolden(t, dir, &refs)
	for _, ref := range refs {
		expect(t, d, ref, model{"0/a": "1", "5/b": "2"})
		m, err := checkpoint.Load(t.Context(), d, ref)
		if err != nil {
			t.Fatal(err)
		}
		expectFlights(t, d, m, flights)
	}
}
