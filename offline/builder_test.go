package offline

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

// write writes the builder's savepoint, checks every byte of it and opens it.
func write(t *testing.T, b *Builder, store checkpoint.Store, name string) *Snapshot {
	t.Helper()
	if _, err := b.Write(t.Context(), store, name); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(t.Context(), store, name)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Verify(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	for _, seg := range s.manifest.Segments {
		if seg.Tombstones != 0 {
			t.Errorf("segment %s has %d tombstones", seg.Object, seg.Tombstones)
		}
	}
	return s
}

func must[T any](v T, err error) func(t *testing.T) T {
	return func(t *testing.T) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func TestASavepointIsBootstrappedFromMoreThanFitsIntoMemory(t *testing.T) {
	store, dir := checkpoint.NewMem(), t.TempDir()
	b := must(New("payments", testGroups, BuildOptions{Dir: dir, MemoryBytes: 1 << 10}))(t)
	values := must(ValueState(b, "balance", "total", codec.String, codec.Int64))(t)
	maps := must(MapState(b, "balance", "by-currency", codec.String, codec.Int32, codec.Int64))(t)
	lists := must(ListState(b, "balance", "history", codec.String, codec.Bytes))(t)
	rates := must(BroadcastState(b, "rules", "rates", codec.String, codec.Float64))(t)
	timers := must(TimerState(b, "balance", ProcessingTimers, codec.String))(t)
	const n = 5000
	for i := range n {
		key := fmt.Sprint(i * 7919 % n)
		err := errors.Join(values.Put(key, -1, Meta{}), values.Put(key, int64(i), Meta{}), maps.Put("m", int32(i-n/2), int64(i), Meta{}))
		if i%10 == 0 {
			err = errors.Join(err, values.Delete(key), timers.Put(key, int64(-i)), lists.Put("l", uint64(i), []byte{byte(i)}, Meta{}))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(rates.Put("EUR", 1, Meta{}), rates.Put("USD", 2, Meta{}), rates.Delete("EUR")); err != nil {
		t.Fatal(err)
	}
	if files, err := os.ReadDir(dir); err != nil || len(files) != 1 {
		t.Fatalf("nothing was sorted on disk: %v %v", files, err)
	}
	b.SetPosition(offsets.Partition{Topic: "in"}, offsets.Position{Offset: 7})
	s := write(t, b, store, "boot")
	if files, _ := os.ReadDir(dir); len(files) != 0 {
		t.Errorf("files are left: %v", files)
	}
	if len(s.manifest.Segments) < 10 {
		t.Errorf("%d segments", len(s.manifest.Segments))
	}
	if i := s.Info(); i.App != "payments" || i.KeyGroups != testGroups || i.Savepoint != "boot" || i.Positions[offsets.Partition{Topic: "in"}].Offset != 7 || i.Lineage == "" {
		t.Errorf("%+v", i)
	}
	if m := totals(t, s); len(m) != n-n/10 || slices.Contains(slices.Collect(mapsValues(m)), -1) {
		t.Errorf("%d values", len(m))
	}
	i := int32(-n / 2)
	for e, err := range GetMap(t.Context(), s, "balance", "by-currency", codec.String, codec.Int32, codec.Int64, "m") {
		if err != nil || e.MapKey != i || e.Value != int64(i)+n/2 {
			t.Fatalf("map entry %+v at %d: %v", e, i, err)
		}
		i++
	}
	if i != n/2 {
		t.Errorf("the map ends at %d", i)
	}
	if l := collect(t, GetList(t.Context(), s, "balance", "history", codec.String, codec.Bytes, "l")); len(l) != n/10 || l[1].Index != 1 || !bytes.Equal(l[1].Value, []byte{10}) {
		t.Errorf("list of %d", len(l))
	}
	if ts := collect(t, Timers(t.Context(), s, "balance", ProcessingTimers, codec.String)); len(ts) != n/10 || ts[0].KeyGroup != keygroup.Of([]byte(ts[0].Key), testGroups) {
		t.Errorf("%d timers", len(ts))
	}
	// As an app writes them.
	if info, err := s.State("balance", ProcessingTimers); err != nil || info.ValueVersion != 0 {
		t.Errorf("timers are %+v, %v", info, err)
	}
	for _, r := range collect(t, s.Rows(t.Context(), "balance", ProcessingTimers)) {
		if r.Version != 0 {
			t.Fatalf("a timer has version %d", r.Version)
		}
	}
	if r := collect(t, Broadcast(t.Context(), s, "rules", "rates", codec.String, codec.Float64)); len(r) != 1 || r[0].MapKey != "USD" {
		t.Errorf("rates: %v", r)
	}
}

func mapsValues[K comparable, V any](m map[K]V) func(func(V) bool) {
	return func(yield func(V) bool) {
		for _, v := range m {
			if !yield(v) {
				return
			}
		}
	}
}

func TestManySortedFilesBecomeOne(t *testing.T) {
	b := must(New("a", 4, BuildOptions{Dir: t.TempDir(), MemoryBytes: 1}))(t)
	values := must(ValueState(b, "o", "s", codec.Int64, codec.Int64))(t)
	for i := range int64(3 * maxRuns) {
		if err := values.Put(i%50, i, Meta{}); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(b.edits.files); n >= maxRuns {
		t.Errorf("%d files", n)
	}
	s := write(t, b, checkpoint.NewMem(), "x")
	n := 0
	for e, err := range Values(t.Context(), s, "o", "s", codec.Int64, codec.Int64) {
		if err != nil || e.Value < 2*maxRuns+14 {
			t.Errorf("%+v %v", e, err)
		}
		n++
	}
	if n != 50 {
		t.Errorf("%d entries", n)
	}
}

func TestASnapshotIsEditedIntoASavepoint(t *testing.T) {
	store, _ := sample(t)
	base := openLatest(t, store)
	b := Edit(base, BuildOptions{Dir: t.TempDir()})
	if err := errors.Join(b.RenameOperator("balance", "account"), b.RenameState("account", "total", "sum"), b.Drop("custom", "blob")); err != nil {
		t.Fatal(err)
	}
	sums := must(ValueState(b, "account", "sum", codec.String, codec.Int64))(t)
	extra := must(ValueState(b, "account", "extra", codec.String, codec.Bool))(t)
	err := errors.Join(sums.Put("alice", 1, Meta{}), sums.Delete("carol"), sums.Delete("nobody"),
		sums.Put("soon", 2, Meta{Clock: segment.ProcessingTime, Expires: wallClock.UnixMilli() + 5}), extra.Put("alice", true, Meta{}))
	if err != nil {
		t.Fatal(err)
	}
	s := write(t, b, store, "edited")
	m := map[string]int64{}
	for _, e := range collect(t, Values(t.Context(), s, "account", "sum", codec.String, codec.Int64, At(wallClock))) {
		m[e.Key] = e.Value
		if e.Key == "soon" && e.Expires != wallClock.UnixMilli()+5 {
			t.Errorf("%+v", e)
		}
	}
	if len(m) != 53 || m["alice"] != 1 || m["soon"] != 2 || m["user-01"] != 1 {
		t.Errorf("%d: %v", len(m), m)
	}
	var names []string
	for _, i := range s.manifest.States {
		names = append(names, fmt.Sprintf("%d:%s/%s", i.ID, i.Operator, i.Name))
	}
	slices.Sort(names)
	if got, want := strings.Join(names, " "), "1:account/sum 2:account/by-currency 3:account/history 4:account/event-timers 5:rules/rates 8:account/extra"; got != want {
		t.Errorf("registry %s, want %s", got, want)
	}
	if i := s.Info(); i.Positions[offsets.Partition{Topic: "payments"}].Offset != 300 || i.Watermark != watermark || i.Lineage == base.Info().Lineage {
		t.Errorf("%+v", i)
	}
	// What sinks have yet to do is not lost, and keeps the lineage that it has.
	if len(s.manifest.Logs) != 1 || len(s.manifest.Logs[0].Logs) != 3 {
		t.Fatalf("logs %+v", s.manifest.Logs)
	}
	for i, l := range s.manifest.Logs[0].Logs {
		parts, err := checkpoint.ReadLog(t.Context(), s.store, l)
		if err != nil || len(parts) != 1 || string(parts[0]) != fmt.Sprintf("log %d", i+1) || l.Lineage != base.Info().Lineage {
			t.Errorf("log %+v: %q, %v", l, parts, err)
		}
	}
	// The snapshot is as it was.
	if m := totals(t, openLatest(t, store)); len(m) != 53 || m["alice"] != 300 {
		t.Errorf("the snapshot changed: %v", m)
	}
}

func TestAnEditedSavepointStandsWhereEventTimeStood(t *testing.T) {
	store, _ := sample(t)
	payments, refunds := offsets.Partition{Topic: "payments"}, offsets.Partition{Topic: "refunds"}
	for _, c := range []struct {
		name      string
		edit      func(b *Builder)
		watermark int64
		want      checkpoint.EventTime
	}{
		{"kept", func(*Builder) {}, watermark, testEventTime},
		{"renamed", func(b *Builder) {
			if err := errors.Join(b.RenameOperator("balance", "account"), b.RenameOperator("by-user", "by-name")); err != nil {
				t.Fatal(err)
			}
		}, watermark, checkpoint.EventTime{Partitions: testEventTime.Partitions, Stages: map[string]int64{"account": watermark, "by-name": watermark + 1},
			KeyGroups: []checkpoint.KeyGroupTime{{Stage: "by-name", MinKG: 1, MaxKG: 2, Watermark: watermark + 5}},
			Firing:    map[string]int64{"account": watermark - 1, "by-name": watermark + 2}}},
		{"renamed-to-one", func(b *Builder) {
			if err := b.RenameOperator("by-user", "balance"); err != nil {
				t.Fatal(err)
			}
		}, watermark, checkpoint.EventTime{Partitions: testEventTime.Partitions, Stages: map[string]int64{"balance": watermark},
			Firing: map[string]int64{"balance": watermark - 1}}},
		{"other-key-groups", func(b *Builder) {
			if err := b.SetKeyGroups(testGroups + 1); err != nil {
				t.Fatal(err)
			}
		}, watermark, checkpoint.EventTime{Partitions: testEventTime.Partitions, Stages: testEventTime.Stages, Firing: testEventTime.Firing}},
		{"set", func(b *Builder) {
			b.SetPosition(refunds, offsets.Position{Offset: 1})
			b.SetWatermark(7)
		}, 7, checkpoint.EventTime{
			Partitions: map[offsets.Partition]checkpoint.PartitionTime{payments: {Watermark: 7, Idle: true}, refunds: {Watermark: 7}},
			Stages:     map[string]int64{"balance": 7, "by-user": 7},
		}},
		{"from-the-begin", (*Builder).ClearPositions, checkpoint.NoWatermark, checkpoint.EventTime{}},
	} {
		b := Edit(openLatest(t, store), BuildOptions{Dir: t.TempDir()})
		c.edit(b)
		m := write(t, b, store, c.name).manifest
		if m.Watermark != c.watermark || !maps.Equal(m.EventTime.Partitions, c.want.Partitions) || !maps.Equal(m.EventTime.Stages, c.want.Stages) || !slices.Equal(m.EventTime.KeyGroups, c.want.KeyGroups) || !maps.Equal(m.EventTime.Firing, c.want.Firing) {
			t.Errorf("%s: watermark %d, %+v, want %d, %+v", c.name, m.Watermark, m.EventTime, c.watermark, c.want)
		}
	}
	if m := openLatest(t, store).manifest; !maps.Equal(m.EventTime.Stages, testEventTime.Stages) || !slices.Equal(m.EventTime.KeyGroups, testEventTime.KeyGroups) {
		t.Errorf("the snapshot changed: %+v", m.EventTime)
	}
}

// flight is what was in flight to the subtask of "by-user" with the key-groups minKG to maxKG,
// on which event time stood at a watermark.
func flight(minKG, maxKG uint16, watermark, records int64) checkpoint.InFlightData {
	return checkpoint.InFlightData{Data: []byte("marks and records"), InFlight: checkpoint.InFlight{
		Stage: "by-user", MinKG: minKG, MaxKG: maxKG, Watermark: &watermark, Records: records,
	}}
}

// TestWithoutPositionsNothingIsLeftOfEventTimeInFlight forgets where the input was read to. A
// subtask may have had no records in flight, but times.
func TestWithoutPositionsNothingIsLeftOfEventTimeInFlight(t *testing.T) {
	store := checkpoint.NewMem()
	a := newApp(t, store, testGroups)
	for _, records := range []int64{0, 3} {
		a.inFlight = []checkpoint.InFlightData{flight(0, 7, watermark+1, 0), flight(8, testGroups-1, watermark+9, records)}
		a.checkpoint()
		b := Edit(openLatest(t, store), BuildOptions{Dir: t.TempDir()})
		b.ClearPositions()
		if records > 0 {
			if _, err := b.Write(t.Context(), store, "refused"); err == nil || !strings.Contains(err.Error(), "3 records in flight") {
				t.Errorf("%v", err)
			}
			b.DropInFlight()
		}
		m := write(t, b, store, fmt.Sprint("with-", records)).manifest
		if at := m.Watermarks("by-user", 0, testGroups); slices.Max(at) != checkpoint.NoWatermark || len(m.InFlight) > 0 {
			t.Errorf("%d records: time stands at %v; in flight are %+v", records, at, m.InFlight)
		}
	}
}

// TestTimesInFlightAreThoseOfThePositions sets input and time back. What is read again is in
// time, so no mark of before takes time on.
func TestTimesInFlightAreThoseOfThePositions(t *testing.T) {
	store := checkpoint.NewMem()
	a := newApp(t, store, testGroups)
	a.inFlight = []checkpoint.InFlightData{flight(0, testGroups-1, watermark+9, 0)}
	a.checkpoint()
	for _, moved := range []bool{false, true} {
		b := Edit(openLatest(t, store), BuildOptions{Dir: t.TempDir()})
		if moved {
			b.SetPosition(offsets.Partition{Topic: "payments"}, offsets.Position{Offset: 1})
		}
		b.SetWatermark(7)
		m := write(t, b, store, fmt.Sprint("moved-", moved)).manifest
		if at := m.Watermarks("by-user", 0, testGroups); slices.Max(at) != 7 || slices.Min(at) != 7 {
			t.Errorf("time stands at %v", at)
		}
		if len(m.InFlight) != 1 || (m.InFlight[0].Length == 0) != moved {
			t.Errorf("positions changed: %v; in flight are %+v", moved, m.InFlight)
		}
	}
}

// TestOtherKeyGroupsBeginWhereTheKeysFurthestBehindStood edits a checkpoint in which a subtask
// was ahead and another one, which stood where the stage did, had nothing in flight.
func TestOtherKeyGroupsBeginWhereTheKeysFurthestBehindStood(t *testing.T) {
	store := checkpoint.NewMem()
	a := newApp(t, store, testGroups)
	a.inFlight = []checkpoint.InFlightData{flight(8, testGroups-1, watermark+9, 3)}
	unknown := flight(8, testGroups-1, watermark+9, 3)
	unknown.Stage = "unknown" // it has no time
	a.inFlight = append(a.inFlight, unknown)
	a.checkpoint()
	for name, c := range map[string]struct {
		edit            func(*Builder)
		byUser, unknown int64
	}{
		"kept": {func(*Builder) {}, watermark + 1, checkpoint.NoWatermark},
		"set":  {func(b *Builder) { b.SetWatermark(7) }, 7, 7},
	} {
		b := Edit(openLatest(t, store), BuildOptions{Dir: t.TempDir()})
		if err := b.SetKeyGroups(testGroups + 1); err != nil {
			t.Fatal(err)
		}
		c.edit(b)
		m := write(t, b, store, name).manifest
		for stage, want := range map[string]int64{"by-user": c.byUser, "unknown": c.unknown} {
			if at := m.Watermarks(stage, 0, testGroups+1); slices.Min(at) != want || slices.Max(at) != want {
				t.Errorf("%s: time of %s stands at %v, want %d", name, stage, at, want)
			}
		}
	}
}

func TestElementsMoveUpIntoTheGapsOfAList(t *testing.T) {
	store := checkpoint.NewMem()
	b := must(New("payments", testGroups, BuildOptions{Dir: t.TempDir()}))(t)
	lists := must(ListState(b, "balance", "history", codec.String, codec.String))(t)
	put := func(key string, index uint64, m Meta) {
		if err := lists.Put(key, index, fmt.Sprint(index), m); err != nil {
			t.Fatal(err)
		}
	}
	for i := range uint64(6) {
		put("alice", i+3, Meta{}) // three were removed from the front
		put("bob", i, Meta{})
		put("brief", i, Meta{Clock: segment.EventTime, Expires: 99})
	}
	b = Edit(write(t, b, store, "whole"), BuildOptions{Dir: t.TempDir()})
	lists = must(ListState(b, "balance", "history", codec.String, codec.String))(t)
	for _, i := range []uint64{1, 4} {
		if err := errors.Join(lists.Delete("alice", i+3), lists.Delete("bob", i-1), lists.Delete("brief", i)); err != nil {
			t.Fatal(err)
		}
	}
	put("alice", 900, Meta{})
	put("brief", math.MaxUint64, Meta{Clock: segment.EventTime, Expires: 99})
	put("last", math.MaxUint64, Meta{})
	s := write(t, b, store, "cut")
	for key, want := range map[string]string{
		"alice": "3:3 4:5 5:6 6:8 7:900", "bob": "1:1 2:2 3:4 4:5", "brief": "0:0 2:2 3:3 5:5 6:18446744073709551615", "last": "0:18446744073709551615",
	} {
		var got []string
		for _, e := range collect(t, GetList(t.Context(), s, "balance", "history", codec.String, codec.String, key)) {
			got = append(got, fmt.Sprintf("%d:%s", e.Index, e.Value))
		}
		if got := strings.Join(got, " "); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}

func TestChangingTheKeyGroupCountMovesEveryKey(t *testing.T) {
	store, _ := sample(t)
	b := Edit(openLatest(t, store), BuildOptions{Dir: t.TempDir(), MemoryBytes: 200})
	const n = 7
	if err := b.SetKeyGroups(n); err != nil {
		t.Fatal(err)
	}
	values := must(ValueState(b, "balance", "total", codec.String, codec.Int64))(t)
	if err := errors.Join(values.Put("alice", 5, Meta{}), values.Put("new", 6, Meta{})); err != nil {
		t.Fatal(err)
	}
	s := write(t, b, store, "seven")
	entries := 0
	for _, state := range s.States() {
		for _, r := range collect(t, s.Rows(t.Context(), state.Operator, state.Name, IncludeExpired())) {
			want := keygroup.Of(r.Key.Raw, n)
			if state.Kind == kindBroadcast {
				want = 0
			}
			if r.KeyGroup != want {
				t.Errorf("%s %s is in key-group %d, not %d", state.Name, r.Key.Text(), r.KeyGroup, want)
			}
			entries++
		}
	}
	if want := 50 + 2 + 3 + 1 + 3 + 2 + 2 + 1 + 1; entries != want {
		t.Errorf("%d entries, want %d", entries, want)
	}
	if e, ok, err := Get(t.Context(), s, "balance", "total", codec.String, codec.Int64, "alice"); !ok || err != nil || e.Value != 5 {
		t.Errorf("%+v %v", e, err)
	}
}

func TestBuilderRefusesWhatMakesNoSense(t *testing.T) {
	store, _ := sample(t)
	b := Edit(openLatest(t, store), BuildOptions{Dir: t.TempDir()})
	defer b.Close()
	_, kind := ListState(b, "balance", "total", codec.String, codec.Int64)
	_, value := ValueState(b, "balance", "total", codec.String, codec.Int32)
	_, timer := TimerState(b, "balance", "timers", codec.String)
	for want, err := range map[string]error{
		`has a state "history" already`:                       b.RenameState("balance", "total", "history"),
		`no state "sum"`:                                      b.RenameState("balance", "sum", "x"),
		`no state "x" of operator "y"`:                        b.Drop("y", "x"),
		"want 1 to":                                           b.SetKeyGroups(0),
		"the new ID is empty":                                 b.RenameOperator("balance", ""),
		`kind is "value", not "list"`:                         kind,
		`value codec is "int64", not "int32"`:                 value,
		`"timers", not "event-timers" or "processing-timers"`: timer,
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want %s", err, want)
		}
	}
	if _, err := New("", 1, BuildOptions{}); err == nil {
		t.Error("an app without name")
	}
	values := must(ValueState(b, "balance", "total", codec.String, codec.Int64))(t)
	if err := values.Put("x", 1, Meta{}); err != nil {
		t.Fatal(err)
	}
	if err := b.SetKeyGroups(3); !errors.Is(err, errUsed) {
		t.Errorf("key-groups after entries: %v", err)
	}
	if _, err := b.Write(t.Context(), store, "twice"); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Write(t.Context(), store, "twice"); !errors.Is(err, checkpoint.ErrSavepointExists) {
		t.Errorf("a name that is taken: %v", err)
	}
}

func TestS04_ABuilderDoesNotCopyDamage(t *testing.T) {
	store, _ := sample(t)
	s := openLatest(t, store)
	name := s.manifest.Segments[0].Object
	store.(*checkpoint.Mem).Tamper(name, func(b []byte) []byte { b[len(b)/3] ^= 4; return b })
	b := Edit(s, BuildOptions{Dir: t.TempDir()})
	defer b.Close()
	_, err := b.Write(t.Context(), store, "bad")
	var damaged *checkpoint.DamagedError
	if !errors.As(err, &damaged) || damaged.Object != name {
		t.Errorf("%v", err)
	}
	if list, err := checkpoint.ListSavepoints(t.Context(), store); err != nil || len(list) != 0 {
		t.Errorf("%v %v", list, err)
	}
}

func TestWhatABuilderWroteBeforeAnErrorIsDeleted(t *testing.T) {
	mem := checkpoint.NewMem()
	a := newApp(t, mem, testGroups)
	value := make([]byte, 8)
	a.put(1, 2, []byte("x"), forever, value)
	a.put(1, 3, []byte("y"), forever, value)
	a.checkpoint()
	a.put(1, 9, []byte("z"), forever, value)
	a.checkpoint()
	s := openLatest(t, mem)
	mem.Tamper(s.manifest.Segments[1].Object, func(b []byte) []byte { b[20] ^= 1; return b })
	store := &counting{Store: mem}
	b := Edit(s, BuildOptions{Dir: t.TempDir(), MemoryBytes: 1})
	defer b.Close()
	if _, err := b.Write(t.Context(), store, "bad"); err == nil {
		t.Error("damage was copied")
	}
	if store.puts == 0 {
		t.Error("nothing was written before the error: the test says nothing")
	}
	if list, err := checkpoint.ListSavepoints(t.Context(), mem); err != nil || len(list) != 0 {
		t.Errorf("left: %v %v", list, err)
	}
}

func TestDiffTellsWhatChanged(t *testing.T) {
	store, _ := sample(t)
	before, err := Open(t.Context(), store, "1")
	if err != nil {
		t.Fatal(err)
	}
	diff := func(a, b *Snapshot, opts ...Option) []string {
		t.Helper()
		var got []string
		for _, c := range collect(t, Diff(t.Context(), a, b, nil, append(opts, At(wallClock))...)) {
			r := c.Row()
			got = append(got, fmt.Sprintf("%s %s %s %s>%s", c.What, r.State.Name, r.Key.Text(), c.Before.Value.Text(), c.After.Value.Text()))
		}
		slices.Sort(got)
		return got
	}
	got := diff(before, openLatest(t, store))
	want := []string{"added blob k >0102", "added event-timers alice >", "added event-timers alice >", "added history alice >6200",
		"added total carol >-7", "added total long >2", "changed total alice 100>300", "removed total bob 50>"}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if n := len(diff(before, before)); n != 0 {
		t.Errorf("a snapshot differs from itself in %d entries", n)
	}
	// States are matched by name, whatever their numbers.
	b := must(New("payments", testGroups, BuildOptions{Dir: t.TempDir()}))(t)
	history := must(ListState(b, "balance", "history", codec.String, codec.Bytes))(t)
	values := must(ValueState(b, "balance", "total", codec.String, codec.Int64))(t)
	for n := range 50 {
		if err := values.Put(fmt.Sprintf("user-%02d", n), int64(n), Meta{}); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(values.Put("alice", 100, Meta{}), values.Put("bob", 51, Meta{}), history.Put("alice", 0, []byte("a"), Meta{})); err != nil {
		t.Fatal(err)
	}
	other := write(t, b, store, "other")
	got = diff(before, other)
	want = []string{`changed total bob 50>51`, `removed by-currency ali {"amount":3}>`, `removed by-currency alice {"amount":1}>`, `removed by-currency alice {"amount":2}>`, `removed rates  1.5>`}
	if !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	small := must(New("payments", 3, BuildOptions{}))(t)
	var e *KeyGroupsError
	if err := firstError(Diff(t.Context(), before, write(t, small, store, "small"), nil)); !errors.As(err, &e) {
		t.Errorf("%v", err)
	}
}

func TestASavepointThatWasCopiedOutIsOpened(t *testing.T) {
	store, _ := sample(t)
	if _, err := openLatest(t, store).Save(t.Context(), store, "before-v2", nil); err != nil {
		t.Fatal(err)
	}
	for _, open := range []struct {
		store checkpoint.Store
		which string
	}{{store, "before-v2"}, {store, "savepoint:before-v2"}, {checkpoint.Sub(store, "savepoint/before-v2"), Latest}} {
		s, err := Open(t.Context(), open.store, open.which)
		if err != nil {
			t.Fatal(err)
		}
		if m := totals(t, s); len(m) != 53 {
			t.Errorf("%s: %d entries", open.which, len(m))
		}
	}
	_, err := Open(t.Context(), store, "before-v3")
	var notFound *NotFoundError
	if !errors.As(err, &notFound) || !strings.Contains(err.Error(), "its savepoints are before-v2") {
		t.Errorf("%v", err)
	}
}

func TestAnEditedSavepointKnowsWhichTopicsItsPositionsAreOf(t *testing.T) {
	ctx, store := t.Context(), checkpoint.NewMem()
	a := newApp(t, store, testGroups)
	a.total("ada", 1)
	a.checkpoint()
	s, err := Open(ctx, store, Latest)
	if err != nil {
		t.Fatal(err)
	}
	payments := offsets.Partition{Topic: "payments"}
	for name, tc := range map[string]struct {
		edit func(*Builder)
		want map[string]checkpoint.TopicID
	}{
		"renamed":           {func(b *Builder) { _ = b.RenameOperator("balance", "account") }, map[string]checkpoint.TopicID{"payments": {1}}},
		"moved":             {func(b *Builder) { b.SetPosition(payments, offsets.Position{Offset: 1}) }, nil},
		"without-positions": {func(b *Builder) { b.ClearPositions() }, nil},
	} {
		t.Run(name, func(t *testing.T) {
			b := Edit(s, BuildOptions{Dir: t.TempDir()})
			defer b.Close()
			tc.edit(b)
			if _, err := b.Write(ctx, store, name); err != nil {
				t.Fatal(err)
			}
			m, _, err := checkpoint.OpenSavepoint(ctx, store, name)
			if err != nil {
				t.Fatal(err)
			}
			if !maps.Equal(m.TopicIDs, tc.want) {
				t.Errorf("topic ids %v, want %v", m.TopicIDs, tc.want)
			}
		})
	}
}
