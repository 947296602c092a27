package statetest_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/state/pebble"
)

// The tests of this file show what docs/capabilities.md says of unaligned checkpoints: that
// records in flight survive, or that what would lose them is refused by name.

// startFrom lets the app of a flow begin with a savepoint of its store, in a new store, as
// if it were elsewhere.
func (f *flow) startFrom(t *testing.T, name string, r *river, opts ...weir.Option) *voyage {
	t.Helper()
	forget(t, f.brokers)
	from := f.dir
	f.dir, f.store = newDir(t)
	return f.life(r, 2, append([]weir.Option{weir.FromSavepoint(from, name)}, opts...)...)
}

// lastInFlight opens the newest committed checkpoint, which must have records in flight.
func (f *flow) lastInFlight(t *testing.T) (s *offline.Snapshot, records int64) {
	t.Helper()
	s = open(t, f.store, pointed(t, f.brokers).Object()) // a killed app may have left a newer one
	m, _ := s.Manifest()
	if records = m.RecordsInFlight(); records == 0 {
		t.Fatal("nothing is in flight")
	}
	return s, records
}

func TestUnalignedCheckpointIsRestoredWithTheOtherBackend(t *testing.T) {
	for _, to := range []string{"memory", "pebble"} {
		t.Run(to, func(t *testing.T) {
			t.Parallel()
			f := newFlow(t, 100, 20, true)
			local := []weir.Option{weir.Unaligned(), weir.StateBackend(pebble.Dir(t.TempDir()))}
			before, after := local, local[:1]
			if to == "pebble" {
				before, after = after, before
			}
			f.backlog(t, 3, 200, before...)
			v := f.life(&river{}, 2, after...)
			v.mustDrain(t)
			if v.restoredInFlight() == 0 {
				t.Error("nothing was in flight")
			}
			f.check(t)
		})
	}
}

// stepsV2 reads what codec.JSON wrote as version 1, under its name, and writes something else.
type stepsV2 struct {
	codec.Codec[step]
	migrated *int
}

func (stepsV2) Version() int { return 2 }

func (stepsV2) Append(dst []byte, s step) ([]byte, error) {
	return fmt.Appendf(dst, "%s %d %s", s.Key, s.N, s.From), nil
}

func (stepsV2) Decode(b []byte) (s step, err error) {
	key, rest, _ := strings.Cut(string(b), " ")
	n, from, _ := strings.Cut(rest, " ")
	s.Key, s.From = key, from
	s.N, err = strconv.ParseInt(n, 10, 64)
	return s, err
}

func (c stepsV2) DecodeVersion(version int, b []byte) (s step, err error) {
	*c.migrated++
	return s, json.Unmarshal(b, &s)
}

// TestRecordsInFlightAreMigratedToALaterVersionOfTheirCodec changes the codec of values that
// are in flight, forth, and back, which is refused.
func TestRecordsInFlightAreMigratedToALaterVersionOfTheirCodec(t *testing.T) {
	f := newFlow(t, 100, 20, true)
	f.backlog(t, 3, 200, weir.Unaligned())
	_, records := f.lastInFlight(t)
	migrated := 0
	v2 := stepsV2{codec.JSON[step](), &migrated}
	slow := &river{steps: v2}
	slow.slow.Store(true)
	v := f.life(slow, 1, weir.Unaligned())
	v.start(t)
	v.until(t, func(_ int64, commits int) bool { return commits > 0 && v.inFlight.Load() > 0 })
	v.kill(t)
	if n := v.restoredInFlight(); n != records || migrated == 0 {
		t.Errorf("%d records were restored and %d migrated, %d were in flight", n, migrated, records)
	}
	wantError(t, f.life(&river{}, 2, weir.Unaligned()).drain(t), "in flight", `version 2 of codec "json"`, "run the newer program")
	f.life(&river{steps: v2}, 2, weir.Unaligned()).mustDrain(t)
	f.check(t)
}

// TestTopologyIsRebuiltAroundRecordsInFlight adds an operator and a sink behind the KeyBy
// that records are in flight to. It sees them, too.
func TestTopologyIsRebuiltAroundRecordsInFlight(t *testing.T) {
	f := newFlow(t, 100, 20, true)
	f.backlog(t, 3, 200, weir.Unaligned())
	_, records := f.lastInFlight(t)
	r := &river{more: func(byKey weir.Keyed[string, step]) {
		counts := weir.Aggregate(byKey, "count", weir.Count[step]())
		texts := weir.Map(counts, "text", func(c weir.KV[string, int64]) (weir.KV[string, string], error) {
			return weir.KV[string, string]{Key: c.Key, Value: fmt.Sprint(c.Value)}, nil
		})
		weir.To(texts, "counts", kafka.Sink("counts", codec.String, codec.String))
	}}
	v := f.life(r, 2, weir.Unaligned())
	v.mustDrain(t)
	if n := v.restoredInFlight(); n != records {
		t.Errorf("%d records in flight were restored, the checkpoint has %d", n, records)
	}
	f.check(t)
	// Of each key it saw what had not come through the KeyBy: what was in flight to it and
	// what followed.
	some := false
	for key, counts := range committed(t, f.brokers, "counts") {
		for i, c := range counts {
			if c != fmt.Sprint(i+1) {
				t.Fatalf("key %s has the counts %v", key, counts)
			}
		}
		some = true
	}
	if !some {
		t.Error("nothing was counted")
	}
}

// TestASnapshotWithRecordsInFlightIsEdited renames operators, the KeyBys among them, changes
// an entry and the number of key-groups of a checkpoint with records in flight.
func TestASnapshotWithRecordsInFlightIsEdited(t *testing.T) {
	f := newFlow(t, 100, 20, true)
	f.backlog(t, 3, 200, weir.Unaligned())
	s, records := f.lastInFlight(t)
	b := offline.Edit(s, offline.BuildOptions{Dir: t.TempDir()})
	defer b.Close()
	ids := map[string]string{"by-key": "by-name", "see": "look", "by-end": "by-last", "check": "recheck"}
	var errs []error
	for from, to := range ids {
		errs = append(errs, b.RenameOperator(from, to))
	}
	errs = append(errs, b.SetKeyGroups(96))
	last, err := offline.MapState(b, "look", "last", codec.String, codec.String, codec.Int64)
	if err := errors.Join(append(errs, err, last.Put("nobody", "nobody", 77, offline.Meta{}))...); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write(t.Context(), f.store, "edited"); err != nil {
		t.Fatal(err)
	}
	if m, _ := open(t, f.store, "edited").Manifest(); m.RecordsInFlight() != records || m.KeyGroups != 96 {
		t.Errorf("the edited savepoint has %d records in flight of %d, and %d key-groups", m.RecordsInFlight(), records, m.KeyGroups)
	}
	v := f.startFrom(t, "edited", &river{ids: ids}, weir.KeyGroups(96), weir.Unaligned())
	v.mustDrain(t)
	if n := v.restoredInFlight(); n != records {
		t.Errorf("%d records in flight were restored, the checkpoint has %d", n, records)
	}
	f.check(t)
	found := false
	for e, err := range offline.Maps(t.Context(), open(t, f.store, offline.Latest), "look", "last", codec.String, codec.String, codec.Int64) {
		if err != nil {
			t.Fatal(err)
		}
		found = found || e.Key == "nobody" && e.Value == 77
	}
	if !found {
		t.Error("the entry that was put is not there")
	}
}

// TestEditThatWouldLoseOrDoubleRecordsInFlightIsRefused changes the positions that records
// in flight lie behind.
func TestEditThatWouldLoseOrDoubleRecordsInFlightIsRefused(t *testing.T) {
	f := newFlow(t, 100, 20, true)
	f.backlog(t, 3, 200, weir.Unaligned())
	s, records := f.lastInFlight(t)
	b := offline.Edit(s, offline.BuildOptions{Dir: t.TempDir()})
	defer b.Close()
	b.ClearPositions()
	_, err := b.Write(t.Context(), f.store, "cleared")
	wantError(t, err, fmt.Sprint(records, " records in flight"), "DropInFlight", "--drop-in-flight", "take")
	for _, state := range []struct{ operator, name string }{{"see", "last"}, {"check", "last"}} {
		if err := b.Drop(state.operator, state.name); err != nil {
			t.Fatal(err)
		}
	}
	b.DropInFlight()
	if _, err := b.Write(t.Context(), f.store, "cleared"); err != nil {
		t.Fatal(err)
	}
	if m, _ := open(t, f.store, "cleared").Manifest(); m.RecordsInFlight() != 0 || len(m.Positions) != 0 {
		t.Errorf("%d records are in flight, %d positions are there", m.RecordsInFlight(), len(m.Positions))
	}
}

// TestStateOfAnUnalignedCheckpointIsReadOffline reads state, which is that of what was
// processed: records in flight are not part of it.
func TestStateOfAnUnalignedCheckpointIsReadOffline(t *testing.T) {
	const keys, each = 100, 20
	f := newFlow(t, keys, each, true)
	f.backlog(t, 3, 200, weir.Unaligned())
	s, records := f.lastInFlight(t)
	processed, n := int64(0), 0
	for e, err := range offline.Maps(t.Context(), s, "see", "last", codec.String, codec.String, codec.Int64) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Key != e.MapKey || e.Value < 1 || e.Value > each {
			t.Errorf("%+v", e)
		}
		processed += e.Value
		n++
	}
	if read := f.read(t, s); n == 0 || processed >= read || processed+records < read {
		t.Errorf("%d records were processed and %d are in flight, to both stages, of %d that were read", processed, records, read)
	}
}

// read returns how many records lie before the positions of a snapshot.
func (f *flow) read(t *testing.T, s *offline.Snapshot) (n int64) {
	t.Helper()
	m, _ := s.Manifest()
	for _, p := range m.Positions {
		n += p.Offset
	}
	return n
}

func TestStoreWithAnUnalignedCheckpointIsMovedAsAWhole(t *testing.T) {
	f := newFlow(t, 100, 20, true)
	f.backlog(t, 3, 200, weir.Unaligned())
	_, records := f.lastInFlight(t)
	moved := filepath.Join(t.TempDir(), "moved")
	if err := os.Rename(f.dir, moved); err != nil {
		t.Fatal(err)
	}
	var err error
	if f.store, err = checkpoint.OpenDir(moved); err != nil {
		t.Fatal(err)
	}
	v := f.life(&river{}, 2, weir.Unaligned())
	v.mustDrain(t)
	if n := v.restoredInFlight(); n != records {
		t.Errorf("%d records in flight were restored, the checkpoint has %d", n, records)
	}
	f.check(t)
}

// TestKeyGroupCountChangedWithRecordsInFlightIsRefused starts with another number of
// key-groups from the checkpoint itself.
func TestKeyGroupCountChangedWithRecordsInFlightIsRefused(t *testing.T) {
	f := newFlow(t, 100, 20, true)
	f.backlog(t, 3, 200, weir.Unaligned())
	wantError(t, f.life(&river{}, 2, weir.Unaligned(), weir.KeyGroups(96)).drain(t), "128", "96")
	f.life(&river{}, 2, weir.Unaligned()).mustDrain(t)
	f.check(t)
}
