package offline

import (
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"
	"strings"
	"testing"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/state/segment"
)

// collect fails the test on an error.
func collect[R any](t *testing.T, seq iter.Seq2[R, error]) []R {
	t.Helper()
	var all []R
	for r, err := range seq {
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, r)
	}
	return all
}

func firstError[R any](seq iter.Seq2[R, error]) error {
	for _, err := range seq {
		if err != nil {
			return err
		}
	}
	return nil
}

func totals(t *testing.T, s *Snapshot, opts ...Option) map[string]int64 {
	t.Helper()
	m := map[string]int64{}
	for _, e := range collect(t, Values(t.Context(), s, "balance", "total", codec.String, codec.Int64, append(opts, At(wallClock))...)) {
		if _, ok := m[e.Key]; ok {
			t.Errorf("%s came twice", e.Key)
		}
		m[e.Key] = e.Value
		if e.KeyGroup != group(e.Key) {
			t.Errorf("%s is in key-group %d, not %d", e.Key, e.KeyGroup, group(e.Key))
		}
	}
	return m
}

func TestValuesAreThoseOfTheNewestSegment(t *testing.T) {
	store, _ := sample(t)
	m := totals(t, openLatest(t, store))
	if len(m) != 53 || m["alice"] != 300 || m["carol"] != -7 || m["user-49"] != 49 || m["long"] != 2 {
		t.Errorf("%d entries: %v", len(m), m)
	}
	if _, ok := m["bob"]; ok {
		t.Error("bob was deleted and is there")
	}
	s, err := Open(t.Context(), store, "1")
	if err != nil {
		t.Fatal(err)
	}
	if m := totals(t, s); len(m) != 52 || m["alice"] != 100 || m["bob"] != 50 {
		t.Errorf("checkpoint 1: %v", m)
	}
}

func TestExpiredEntriesAreLeftOutOrShownAsSuch(t *testing.T) {
	store, _ := sample(t)
	s := openLatest(t, store)
	if m := totals(t, s); len(m) != 53 {
		t.Errorf("%d entries live", len(m))
	}
	var expired []string
	for _, e := range collect(t, Values(t.Context(), s, "balance", "total", codec.String, codec.Int64, At(wallClock), IncludeExpired())) {
		if e.Expired {
			expired = append(expired, fmt.Sprintf("%s %v %d", e.Key, e.Clock, e.Expires))
		}
	}
	slices.Sort(expired)
	if want := []string{"early event time 5000", "short processing time 100000"}; !slices.Equal(expired, want) {
		t.Errorf("expired: %v, want %v", expired, want)
	}
	if _, ok, err := Get(t.Context(), s, "balance", "total", codec.String, codec.Int64, "short", At(wallClock)); ok || err != nil {
		t.Errorf("an expired entry was got (%v)", err)
	}
	if e, ok, err := Get(t.Context(), s, "balance", "total", codec.String, codec.Int64, "short", At(wallClock), IncludeExpired()); !ok || err != nil || !e.Expired {
		t.Errorf("%v %t %v", e, ok, err)
	}
}

// What was to expire after the state had lost its time to live never does.
func TestWhatIsSparedNeverExpires(t *testing.T) {
	store, _ := sample(t)
	s := openLatest(t, store)
	i := slices.IndexFunc(s.manifest.States, func(i checkpoint.StateInfo) bool { return i.Operator == "balance" && i.Name == "total" })
	at := wallClock.UnixMilli()
	s.manifest.States[i].Spared = segment.Spans{{Clock: segment.ProcessingTime, After: at - 1, Until: at}}
	e, ok, err := Get(t.Context(), s, "balance", "total", codec.String, codec.Int64, "short", At(wallClock))
	if !ok || err != nil || e.Expired || e.Clock != segment.Forever || e.Expires != 0 {
		t.Errorf("%+v %t %v", e, ok, err)
	}
	if m := totals(t, s); len(m) != 54 {
		t.Errorf("%d entries live", len(m))
	}
}

func TestKeyGroupsRestrictAScan(t *testing.T) {
	store, _ := sample(t)
	s := openLatest(t, store)
	all := totals(t, s)
	n := 0
	for kg := range testGroups {
		n += len(totals(t, s, KeyGroups(kg, kg+1)))
	}
	if n != len(all) {
		t.Errorf("%d entries in the key-groups one by one, %d in all", n, len(all))
	}
}

func TestGetFindsAKeyInAnySegment(t *testing.T) {
	store, _ := sample(t)
	s := openLatest(t, store)
	for key, want := range map[string]int64{"alice": 300, "carol": -7, "user-07": 7} {
		e, ok, err := Get(t.Context(), s, "balance", "total", codec.String, codec.Int64, key)
		if !ok || err != nil || e.Value != want || e.Key != key || e.Version != 1 || e.KeyGroup != group(key) {
			t.Errorf("%s: %+v %t %v", key, e, ok, err)
		}
	}
	for _, key := range []string{"bob", "user", "user-070", ""} {
		if e, ok, err := Get(t.Context(), s, "balance", "total", codec.String, codec.Int64, key); ok || err != nil {
			t.Errorf("%q: %+v %v", key, e, err)
		}
	}
}

func TestMapsListsTimersAndBroadcastsAreRead(t *testing.T) {
	store, _ := sample(t)
	s := openLatest(t, store)
	type doc struct{ Amount int }
	var got []string
	for _, e := range collect(t, GetMap(t.Context(), s, "balance", "by-currency", codec.String, codec.Int32, codec.JSON[doc](), "alice")) {
		got = append(got, fmt.Sprint(e.Key, " ", e.MapKey, " ", e.Value.Amount))
	}
	if len(got) != 2 || !slices.Contains(got, "alice -3 2") || !slices.Contains(got, "alice 10 1") {
		t.Errorf("map of alice: %v", got)
	}
	if n := len(collect(t, Maps(t.Context(), s, "balance", "by-currency", codec.String, codec.Int32, codec.JSON[doc]()))); n != 3 {
		t.Errorf("%d entries of maps", n)
	}
	list := collect(t, GetList(t.Context(), s, "balance", "history", codec.String, codec.Bytes, "alice"))
	if len(list) != 2 || string(list[0].Value) != "a" || string(list[1].Value) != "b\x00" || list[1].Index != 1 {
		t.Errorf("list of alice: %v", list)
	}
	if all := collect(t, Lists(t.Context(), s, "balance", "history", codec.String, codec.Bytes)); len(all) != 2 || all[0].Key != "alice" {
		t.Errorf("lists: %v", all)
	}
	timers := collect(t, Timers(t.Context(), s, "balance", EventTimers, codec.String))
	if len(timers) != 2 || timers[0].At != -5 || timers[1].At != 1000 || timers[0].Key != "alice" {
		t.Errorf("timers: %v", timers)
	}
	rates := collect(t, Broadcast(t.Context(), s, "rules", "rates", codec.String, codec.Float64))
	if len(rates) != 1 || rates[0].MapKey != "EUR" || rates[0].Value != 1.5 {
		t.Errorf("rates: %v", rates)
	}
}

func TestWhatIsYieldedMayBeKept(t *testing.T) {
	store, _ := sample(t)
	s := openLatest(t, store)
	var keys []string
	for _, e := range collect(t, Values(t.Context(), s, "balance", "total", codec.String, codec.Int64)) {
		keys = append(keys, e.Key)
	}
	slices.Sort(keys)
	if got := slices.Compact(slices.Clone(keys)); len(got) != len(keys) || !slices.Contains(keys, "alice") {
		t.Errorf("kept keys were overwritten: %v", keys)
	}
}

func TestAStateReadWithTheWrongCodecIsRefused(t *testing.T) {
	store, _ := sample(t)
	s := openLatest(t, store)
	for what, err := range map[string]error{
		"key codec":     firstError(Values(t.Context(), s, "balance", "total", codec.Bytes, codec.Int64)),
		"value codec":   firstError(Values(t.Context(), s, "balance", "total", codec.String, codec.Int32)),
		"kind":          firstError(Lists(t.Context(), s, "balance", "total", codec.String, codec.Int64)),
		"map key codec": firstError(Maps(t.Context(), s, "balance", "by-currency", codec.String, codec.String, codec.JSON[int]())),
	} {
		var e *CodecError
		if !errors.As(err, &e) || e.What != what {
			t.Errorf("wrong %s: %v", what, err)
		}
	}
}

func TestAnUnknownStateIsRefusedWithThoseThatThereAre(t *testing.T) {
	store, _ := sample(t)
	err := firstError(Values(t.Context(), openLatest(t, store), "balance", "sum", codec.String, codec.Int64))
	var e *UnknownStateError
	if !errors.As(err, &e) || !strings.Contains(err.Error(), "balance/total, custom/blob, rules/rates") || strings.Contains(err.Error(), "gone") {
		t.Errorf("%v", err)
	}
}

func TestS04_ADamagedSegmentIsRefusedByName(t *testing.T) {
	store, _ := sample(t)
	s := openLatest(t, store)
	m, _ := s.Manifest()
	name := m.Segments[1].Object
	if !store.(*checkpoint.Mem).Tamper(name, func(b []byte) []byte { b[len(b)/2] ^= 1; return b }) {
		t.Fatalf("no object %s", name)
	}
	err := firstError(Values(t.Context(), s, "balance", "total", codec.String, codec.Int64))
	var damaged *checkpoint.DamagedError
	if !errors.As(err, &damaged) || damaged.Object != name {
		t.Errorf("%v", err)
	}
	if err := store.Delete(t.Context(), name); err != nil {
		t.Fatal(err)
	}
	_, _, err = Get(t.Context(), s, "balance", "total", codec.String, codec.Int64, "short")
	var missing *checkpoint.MissingError
	if !errors.As(err, &missing) || missing.Object != name {
		t.Errorf("%v", err)
	}
}

func TestOpenSaysWhatThereIs(t *testing.T) {
	store, _ := sample(t)
	if s := openLatest(t, store); s.Info().Checkpoint != 3 || s.Info().App != "payments" || s.Info().KeyGroups != testGroups {
		t.Errorf("latest is %+v", s.Info())
	}
	_, err := Open(t.Context(), store, "9")
	if err == nil || !strings.Contains(err.Error(), "it holds 3, 2, 1") {
		t.Errorf("%v", err)
	}
	_, err = Open(t.Context(), checkpoint.NewMem(), Latest)
	var notFound *NotFoundError
	if !errors.As(err, &notFound) || !strings.Contains(err.Error(), "is this the store") {
		t.Errorf("%v", err)
	}
	if _, err = Open(t.Context(), store, "before-v2"); !errors.As(err, &notFound) || !strings.Contains(err.Error(), "before-v2") {
		t.Errorf("%v", err)
	}
}

func TestSavepointWithTheLengthOfAManifestsNameIsFound(t *testing.T) {
	store, _ := sample(t)
	const name = "nightly-20261121-payments"
	if _, err := openLatest(t, store).Save(t.Context(), store, name, nil); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(t.Context(), store, name); err != nil {
		t.Error(err)
	}
}

func TestOpenRefusesToChooseBetweenAttempts(t *testing.T) {
	store, a := sample(t)
	m, _, err := checkpoint.Inspect(t.Context(), store, "ckpt/"+fmt.Sprintf("%016x-a1b2c3d4", 2)+".manifest")
	if err != nil {
		t.Fatal(err)
	}
	base, ref := m, openRef(t, store, "2")
	w, err := checkpoint.NewWriter(checkpoint.Config{Store: store, App: "payments", Instance: "b", KeyGroups: testGroups, Incarnation: 0xffff, Base: base, BaseRef: ref})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close(t.Context())
	if _, _, err := w.Persist(t.Context(), checkpoint.Snapshot{Checkpoint: 3, States: testStates}); err != nil {
		t.Fatal(err)
	}
	_, err = Open(t.Context(), store, "3")
	var e *AmbiguousError
	if !errors.As(err, &e) || len(e.Objects) != 2 {
		t.Fatalf("%v", err)
	}
	for _, object := range e.Objects {
		if s, err := Open(t.Context(), store, object); err != nil || s.Info().Checkpoint != 3 {
			t.Errorf("%s: %v", object, err)
		}
	}
	_ = a
}

func TestMeasureCountsEachState(t *testing.T) {
	store, _ := sample(t)
	var last Progress
	sizes, err := openLatest(t, store).Measure(t.Context(), At(wallClock), OnProgress(func(p Progress) { last = p }))
	if err != nil {
		t.Fatal(err)
	}
	counts := map[string]int64{}
	for _, s := range sizes {
		counts[s.Operator+"/"+s.Name] = s.Entries
		var entries, bytes int64
		for _, g := range s.KeyGroups {
			entries, bytes = entries+g.Entries, bytes+g.Bytes
		}
		if entries != s.Entries || bytes != s.Bytes {
			t.Errorf("%s: key-groups have %d entries of %d bytes, the state %d of %d", s.Name, entries, bytes, s.Entries, s.Bytes)
		}
	}
	want := map[string]int64{"balance/total": 53, "balance/by-currency": 3, "balance/history": 2, "balance/event-timers": 2, "rules/rates": 1, "custom/blob": 1}
	for name, n := range want {
		if counts[name] != n {
			t.Errorf("%s: %d entries, want %d", name, counts[name], n)
		}
	}
	if len(counts) != len(want) {
		t.Errorf("states: %v", counts)
	}
	if sizes[3].Expired != 2 || sizes[3].Name != "total" {
		t.Errorf("%+v", sizes[3])
	}
	_ = last
}

func TestAScanEndsWithItsContext(t *testing.T) {
	store := checkpoint.NewMem()
	a := newApp(t, store, testGroups)
	for n := range 3 * progressEntries {
		a.total(fmt.Sprint(n), 1)
	}
	a.checkpoint()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	n := 0
	var progress []Progress
	for _, err := range Values(ctx, openLatest(t, store), "balance", "total", codec.String, codec.Int64, OnProgress(func(p Progress) { progress = append(progress, p) })) {
		if err != nil {
			if !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			break
		}
		if n++; n == progressEntries {
			cancel()
		}
	}
	if n > 2*progressEntries {
		t.Errorf("%d entries came", n)
	}
	if len(progress) == 0 || progress[0].Entries != progressEntries || progress[0].KeyGroups != testGroups || progress[0].KeyGroup == 0 {
		t.Errorf("progress: %v", progress)
	}
}

func TestRowsAreDecodedByTheCodecsInTheRegistry(t *testing.T) {
	store, _ := sample(t)
	s := openLatest(t, store)
	var got []string
	for _, state := range s.States() {
		for _, r := range collect(t, s.Rows(t.Context(), state.Operator, state.Name, At(wallClock))) {
			if !strings.HasPrefix(r.Key.Text(), "user-") {
				got = append(got, strings.Join([]string{state.Name, r.Key.Text(), r.MapKey.Text(), fmt.Sprint(r.Index, r.Time), r.Value.Text(), strings.Join(r.Notes(), "; ")}, "|"))
			}
		}
	}
	slices.Sort(got)
	want := []string{
		`blob|k||0 0|0102|codec "mine" is not built in: bytes in hexadecimal`,
		`by-currency|alice|-3|0 0|{"amount":2}|`,
		`by-currency|alice|10|0 0|{"amount":1}|`,
		`by-currency|ali|7|0 0|{"amount":3}|`,
		`event-timers|alice||0 -5||`,
		`event-timers|alice||0 1000||`,
		`history|alice||0 0|61|`,
		`history|alice||1 0|6200|`,
		`rates||EUR|0 0|1.5|`,
		`total|alice||0 0|300|`,
		`total|carol||0 0|-7|`,
		`total|long||0 0|2|`,
	}
	if !slices.Equal(got, want) {
		t.Errorf("rows:\n%s\nwant:\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

func TestFindLooksUpAnyKind(t *testing.T) {
	store, _ := sample(t)
	s := openLatest(t, store)
	for _, c := range []struct {
		operator, state, key string
		mapKey               []byte
		want                 int
	}{
		{"balance", "total", "alice", nil, 1}, {"balance", "total", "ali", nil, 0}, {"balance", "by-currency", "alice", nil, 2},
		{"balance", "by-currency", "ali", nil, 1}, {"balance", "history", "alice", nil, 2}, {"balance", "event-timers", "alice", nil, 2},
		{"balance", "event-timers", "alic", nil, 0}, {"rules", "rates", "EUR", nil, 1}, {"custom", "blob", "k", nil, 1},
	} {
		rows := collect(t, s.Find(t.Context(), c.operator, c.state, []byte(c.key), c.mapKey))
		if len(rows) != c.want {
			t.Errorf("%s/%s %s: %d rows, want %d", c.operator, c.state, c.key, len(rows), c.want)
		}
	}
	sub, err := CodecByName("int32", nil).Parse("10", true)
	if err != nil {
		t.Fatal(err)
	}
	rows := collect(t, s.Find(t.Context(), "balance", "by-currency", []byte("alice"), sub))
	if len(rows) != 1 || rows[0].MapKey.Text() != "10" {
		t.Errorf("one map entry: %v", rows)
	}
}

func TestWhatACodecDidNotWriteIsShownAsBytes(t *testing.T) {
	store := checkpoint.NewMem()
	a := newApp(t, store, testGroups)
	a.put(1, group("x"), []byte("x"), forever, []byte{1})
	a.put(1, group("\xff"), []byte("\xff"), segment.Header{Version: 2}, make([]byte, 8))
	a.checkpoint()
	rows := collect(t, openLatest(t, store).Rows(t.Context(), "balance", "total"))
	if len(rows) != 2 {
		t.Fatal(rows)
	}
	notes := strings.Join(append(rows[0].Notes(), rows[1].Notes()...), "; ")
	for _, want := range []string{"not what codec \"int64\" writes", "written by version 2", "not UTF-8"} {
		if !strings.Contains(notes, want) {
			t.Errorf("notes %q lack %q", notes, want)
		}
	}
}

func TestAValueWithoutHeaderIsAnError(t *testing.T) {
	store := checkpoint.NewMem()
	a := newApp(t, store, testGroups)
	dst := append(a.b.BeginPut(uint16(group("x")), 1), 'x')
	a.b.ValueDone(a.b.KeyDone(dst))
	a.checkpoint()
	s := openLatest(t, store)
	for what, err := range map[string]error{
		"values":  firstError(Values(t.Context(), s, "balance", "total", codec.String, codec.Int64)),
		"rows":    firstError(s.Rows(t.Context(), "balance", "total")),
		"measure": func() error { _, err := s.Measure(t.Context()); return err }(),
	} {
		if err == nil || !strings.Contains(err.Error(), `state "total" of operator "balance"`) || !strings.Contains(err.Error(), "header") {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// cents hides the order of the codec that it embeds.
type cents struct{ codec.Codec[int64] }

func TestMapKeysWhoseCodecHidesAnOrderAreRefused(t *testing.T) {
	store, _ := sample(t)
	s, c := openLatest(t, store), codec.Codec[int64](cents{codec.Int64})
	var errs []error
	for _, err := range Maps(t.Context(), s, "op", "m", codec.String, c, codec.Int64) {
		errs = append(errs, err)
	}
	for _, err := range GetMap(t.Context(), s, "op", "m", codec.String, c, codec.Int64, "k") {
		errs = append(errs, err)
	}
	for _, err := range Broadcast(t.Context(), s, "op", "m", c, codec.Int64) {
		errs = append(errs, err)
	}
	b, err := New("app", 8, BuildOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, err = MapState(b, "op", "m", codec.String, c, codec.Int64)
	errs = append(errs, err)
	_, err = BroadcastState(b, "op", "b", c, codec.Int64)
	if errs = append(errs, err); len(errs) != 5 {
		t.Errorf("got %v", errs)
	}
	for _, err := range errs {
		if err == nil || !strings.Contains(err.Error(), "map key: codec int64: offline.cents embeds a codec.int64Codec") {
			t.Errorf("got %v", err)
		}
	}
}
