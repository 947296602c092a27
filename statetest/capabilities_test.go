package statetest_test

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
)

var (
	testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(`)
	testName = regexp.MustCompile("`(Test\\w+)`")
	// A cell begins with one of these.
	yesCell = regexp.MustCompile("^yes, .*`Test\\w+`")
	noCell  = regexp.MustCompile("^no: .{20,}")
)

// testsOfTheModule are the names of all test functions, with how many there are.
func testsOfTheModule(t *testing.T) map[string]int {
	t.Helper()
	names := map[string]int{}
	err := filepath.WalkDir("..", func(path string, e fs.DirEntry, err error) error {
		if err == nil && e.IsDir() && len(path) > len("..") && strings.HasPrefix(e.Name(), ".") {
			return fs.SkipDir // git's files come and go
		}
		if err != nil || e.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		b, err := os.ReadFile(path)
		for _, m := range testFunc.FindAllSubmatch(b, -1) {
			names[string(m[1])]++
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return names
}

func TestEveryCapabilityNamesTestsThatThereAre(t *testing.T) {
	b, err := os.ReadFile("../docs/capabilities.md")
	if err != nil {
		t.Fatal(err)
	}
	tests := testsOfTheModule(t)
	rows := map[string]map[string]bool{} // by table
	var columns []string                 // of the table
	for line := range strings.Lines(string(b)) {
		cells := strings.Split(strings.TrimSpace(line), "|")
		if len(cells) < 2 || strings.HasPrefix(cells[1], "---") {
			continue
		}
		cells = cells[1 : len(cells)-1]
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		name := cells[0]
		if name == "Capability" {
			columns = cells[1:]
			rows[columns[0]] = map[string]bool{}
			continue
		}
		if len(cells)-1 != len(columns) {
			t.Errorf("row %q has %d columns, want %d", name, len(cells), len(columns)+1)
			continue
		}
		if rows[columns[0]][name] {
			t.Errorf("row %q is there twice", name)
		}
		rows[columns[0]][name] = true
		for i, of := range columns {
			cell := cells[1+i]
			if !yesCell.MatchString(cell) && !noCell.MatchString(cell) {
				t.Errorf("%s, %s: %q is neither \"yes, `Test...`\" nor \"no: why\"", name, of, cell)
			}
			for _, m := range testName.FindAllStringSubmatch(cell, -1) {
				if tests[m[1]] == 0 {
					t.Errorf("%s, %s: there is no %s", name, of, m[1])
				}
			}
		}
	}
	for _, table := range []string{"Retained checkpoint", "With records in flight"} {
		for _, name := range []string{"Backend change", "Offline read", "Offline write", "Relocatable", "Schema evolution",
			"Arbitrary topology change", "Library upgrade", "Rescaling"} {
			if !rows[table][name] {
				t.Errorf("the table %q has no row %q", table, name)
			}
		}
	}
}

func TestTopologyIsRebuiltAroundTheStateThatStays(t *testing.T) {
	// The counter is the only thing that both topologies have: its stage has another
	// name, there is another stage and a map in front of it, another source feeds it as
	// well, and its output goes through another operator.
	after := func(app *weir.App) {
		first := weir.KeyBy(read(app), "by-value", func(i input) string { return i.Value }, codec.String)
		passed := weir.Process(first, "pass", func(s *weir.Setup) weir.Handler[string, input, input] {
			seen := state.Map(s, "seen", codec.String, codec.Bool)
			return weir.OnRecord(func(c *weir.Context[string, input], i input) error {
				seen.Put(i.Key, true)
				c.Emit(i)
				return nil
			})
		})
		extra := weir.From(app, "extra", source.KeyValues("counts", codec.String, codec.String))
		all := weir.Merge("all", passed, extra)
		byKey := weir.KeyBy(all, "renamed-stage", func(i input) string { return i.Key }, codec.String)
		counts := weir.Aggregate(byKey, "n", weir.Count[input]())
		text := weir.Map(counts, "other-text", func(c weir.KV[string, int64]) (input, error) {
			return input{Key: c.Key, Value: "after" + strconv.FormatInt(c.Value, 10)}, nil
		})
		weir.To(weir.Filter(text, "all-but-z", func(i input) bool { return i.Key != "z" }), "results", kafka.Sink("out", codec.String, codec.String))
	}
	evolve(t, counting("n"), []string{"a:1", "a:2", "b:1", "z:1"}, []string{"a:1", "z:1"}, func(t *testing.T, u *upgrade) {
		produce(t, u.brokers, pairs("counts", "b:1")...)
		u.mustStart(t, after)
		u.wantOut(t, map[string][]string{"a": {"n1", "n2", "after3"}, "b": {"n1", "after2"}, "z": {"n1"}})
	})
}

func TestKeysChangeTypeThroughASavepointBuiltOffline(t *testing.T) {
	number := func(k string) int64 { n, _ := strconv.ParseInt(k, 10, 64); return n }
	after := keyedAs(number, codec.Int64, codec.Int64, total)
	evolve(t, keyed(codec.Int64, total), []string{"1:1", "1:2", "2:5"}, []string{"1:10", "3:7"}, func(t *testing.T, u *upgrade) {
		u.startFrom(t, func(to checkpoint.Store, name string) error {
			b, err := offline.New(appName, weir.DefaultKeyGroups, offline.BuildOptions{Dir: t.TempDir()})
			if err != nil {
				return err
			}
			defer b.Close()
			for p, at := range u.last.Info().Positions {
				b.SetPosition(p, at)
			}
			v, err := offline.ValueState(b, "op", "v", codec.Int64, codec.Int64)
			if err != nil {
				return err
			}
			for e, err := range offline.Values(t.Context(), u.last, "op", "v", codec.String, codec.Int64) {
				if err != nil {
					return err
				}
				if err := v.Put(number(e.Key), e.Value, offline.Meta{}); err != nil {
					return err
				}
			}
			_, err = b.Write(t.Context(), to, name)
			return err
		})
		u.mustStart(t, after)
		u.wantOut(t, map[string][]string{"1": {"1", "3", "13"}, "2": {"5"}, "3": {"7"}})
	})
}

func TestAnAppStartsFromTimersThatWereBuiltOffline(t *testing.T) {
	remind := func(app *weir.App) {
		byKey := weir.KeyBy(read(app), "by-key", func(i input) string { return i.Key }, codec.String)
		out := weir.Process(byKey, "op", func(s *weir.Setup) weir.Handler[string, input, input] {
			state.ProcessingTimers(s)
			return weir.OnRecord(func(c *weir.Context[string, input], i input) error {
				c.Emit(i)
				return nil
			}).OnTimer(func(*weir.Context[string, input], weir.Timer) error { return nil })
		})
		weir.To(out, "results", kafka.Sink("out", codec.String, codec.String))
	}
	evolve(t, remind, []string{"a:1"}, []string{"a:2"}, func(t *testing.T, u *upgrade) {
		u.startFrom(t, func(to checkpoint.Store, name string) error {
			b, err := offline.New(appName, weir.DefaultKeyGroups, offline.BuildOptions{Dir: t.TempDir()})
			if err != nil {
				return err
			}
			defer b.Close()
			for p, at := range u.last.Info().Positions {
				b.SetPosition(p, at)
			}
			timers, err := offline.TimerState(b, "op", offline.ProcessingTimers, codec.String)
			if err != nil {
				return err
			}
			if err := timers.Put("b", math.MaxInt64-1); err != nil {
				return err
			}
			_, err = b.Write(t.Context(), to, name)
			return err
		})
		u.mustStart(t, remind)
		u.wantOut(t, map[string][]string{"a": {"1", "2"}})
		n := 0
		for e, err := range offline.Timers(t.Context(), open(t, u.next.store, offline.Latest), "op", offline.ProcessingTimers, codec.String) {
			if n++; err != nil || e.Key != "b" {
				t.Errorf("%+v, %v", e, err)
			}
		}
		if n != 1 {
			t.Errorf("%d timers", n)
		}
	})
}

// stateOf reads all rows of all states, and the positions, as text.
func stateOf(t *testing.T, s *offline.Snapshot) map[string]string {
	t.Helper()
	m := map[string]string{}
	for p, at := range s.Info().Positions {
		m[fmt.Sprint("position ", p)] = fmt.Sprint(at)
	}
	for _, st := range s.States() {
		for r, err := range s.Rows(t.Context(), st.Operator, st.Name) {
			if err != nil {
				t.Fatal(err)
			}
			m[fmt.Sprintf("%s/%s %d %s/%s/%d/%d", st.Operator, st.Name, r.KeyGroup, r.Key.Text(), r.MapKey.Text(), r.Index, r.Time)] = r.Value.Text()
		}
	}
	return m
}

func TestCheckpointAndSavepointAreReadOfflineAlike(t *testing.T) {
	brokers := broker(t, 2, "in", "totals", "asides", "reminded", "counts", "buckets", "dead")
	store := checkpoint.NewMem()
	orders := randomOrders(rand.New(rand.NewPCG(5, 6)), 400, 20)
	var rs []*kgo.Record
	for _, o := range orders {
		rs = append(rs, record("in", o.key, o.String()))
	}
	produce(t, brokers, rs...)
	l := &life{brokers: brokers, topology: everyKind, store: store, opts: []weir.Option{weir.DeadLetters("dead")}}
	l.start(t)
	l.until(t, func(records int64, _ int) bool { return records == int64(len(orders)) })
	l.stop() // event time does not end: timers are left
	if err := l.wait(t); err != nil {
		t.Fatal(err)
	}
	_, elsewhere := newDir(t)
	before := open(t, store, offline.Latest)
	if _, err := before.Save(t.Context(), elsewhere, "copy", nil); err != nil {
		t.Fatal(err)
	}
	after := open(t, elsewhere, "copy")
	compareMaps(t, "the savepoint's", stateOf(t, after), stateOf(t, before), func(a, b string) bool { return a == b })
	for c, err := range offline.Diff(t.Context(), before, after, nil) {
		t.Errorf("differs: %+v, %v", c, err)
	}
	sizes, err := after.Measure(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	kinds := map[string]bool{}
	for _, s := range sizes {
		if s.Entries > 0 {
			kinds[s.Kind] = true
		}
	}
	if len(kinds) < 6 { // value, reducing, aggregating, map, list, timers
		t.Errorf("only these kinds of state have entries: %v", slices.Sorted(maps.Keys(kinds)))
	}
}

func TestCheckpointStoreIsMovedAsAWhole(t *testing.T) {
	for _, backend := range []string{"memory", "pebble"} {
		t.Run(backend, func(t *testing.T) {
			brokers := broker(t, 2, "in", "out")
			var b pebble.Backend
			if backend == "pebble" {
				b = pebble.Dir(t.TempDir())
			}
			dir, store := newDir(t)
			produce(t, brokers, pairs("in", "a:1", "b:2")...)
			(&life{brokers: brokers, topology: counting("n"), store: store, backend: b}).mustDrain(t)
			moved := filepath.Join(t.TempDir(), "moved")
			if err := os.Rename(dir, moved); err != nil {
				t.Fatal(err)
			}
			produce(t, brokers, pairs("in", "a:1")...)
			elsewhere, err := checkpoint.OpenDir(moved)
			if err != nil {
				t.Fatal(err)
			}
			(&life{brokers: brokers, topology: counting("n"), store: elsewhere, backend: b}).mustDrain(t)
			if got, want := fmt.Sprint(committed(t, brokers, "out")), "map[a:[n1 n2] b:[n1]]"; got != want {
				t.Errorf("the outputs are %s, want %s", got, want)
			}
		})
	}
}

func TestAppGoesBackToARetainedCheckpointThroughASavepoint(t *testing.T) {
	for _, backend := range []string{"memory", "pebble"} {
		t.Run(backend, func(t *testing.T) {
			brokers := broker(t, 1, "in", "out")
			var b pebble.Backend
			if backend == "pebble" {
				b = pebble.Dir(t.TempDir())
			}
			dir, store := newDir(t)
			for range 3 { // each run ends with a checkpoint
				produce(t, brokers, pairs("in", "a:1", "b:1")...)
				(&life{brokers: brokers, topology: counting("n"), store: store, backend: b}).mustDrain(t)
			}
			// The one after the first run is retained.
			var which string
			found, err := checkpoint.ListManifests(t.Context(), store)
			if err != nil {
				t.Fatal(err)
			}
			for _, m := range found {
				if a, _, err := offline.Get(t.Context(), open(t, store, fmt.Sprint(m.Checkpoint)), "n", "acc", codec.String, codec.Int64, "a"); err == nil && a.Value == 1 {
					which = fmt.Sprint(m.Checkpoint)
				}
			}
			if which == "" {
				t.Fatalf("none of %v is that of the first run", found)
			}
			if _, err := open(t, store, which).Save(t.Context(), store, "back", nil); err != nil {
				t.Fatal(err)
			}
			forget(t, brokers)
			// The app's own store and local state are those of a future that is given up.
			l := &life{brokers: brokers, topology: counting("n"), store: store, backend: b,
				opts: []weir.Option{weir.FromSavepoint(dir, "back"), weir.OnMismatch(weir.RecoverSavepoint)}}
			l.mustDrain(t)
			if got, want := fmt.Sprint(committed(t, brokers, "out")), "map[a:[n1 n2 n3 n2 n3] b:[n1 n2 n3 n2 n3]]"; got != want {
				t.Errorf("the outputs are %s, want %s", got, want)
			}
		})
	}
}

// kept checks that a snapshot is whole and holds exactly the input before its positions.
func kept(t *testing.T, s *offline.Snapshot) (records int64) {
	t.Helper()
	if err := s.Verify(t.Context(), nil); err != nil {
		t.Error(err)
	}
	want := int64(0)
	for _, at := range s.Info().Positions {
		want += at.Offset
	}
	for e, err := range offline.Values(t.Context(), s, "n", "acc", codec.String, codec.Int64) {
		if err != nil {
			t.Fatal(err)
		}
		records += e.Value
	}
	if records != want {
		t.Errorf("%v counted %d records, its positions say %d", s, records, want)
	}
	return records
}

// pointed is the checkpoint that the committed offsets name.
func pointed(t *testing.T, brokers []string) offsets.ManifestRef {
	t.Helper()
	found, err := kadm.NewClient(client(t, brokers)).FetchOffsets(t.Context(), appName)
	if err != nil {
		t.Fatal(err)
	}
	var ref offsets.ManifestRef
	found.Each(func(o kadm.OffsetResponse) {
		p, err := offsets.ParsePointer(o.Metadata)
		if err != nil {
			t.Fatal(err)
		}
		ref = p.Manifest
	})
	return ref
}

// An incremental chain over many checkpoints: the oldest are deleted, the newest, the
// retained ones and savepoints are whole all the time, and an app restores while
// garbage is collected beside it.
func TestS29_RetainedCheckpointsAndSavepointsSurviveMergingAndCollection(t *testing.T) {
	for _, backend := range []string{"memory", "pebble"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			brokers := broker(t, 2, "in", "out")
			dir, store := newDir(t)
			next := 0
			more := func(n int) {
				var rs []*kgo.Record
				for range n {
					rs = append(rs, record("in", fmt.Sprint("k", next*7%150), "x"))
					next++
				}
				produce(t, brokers, rs...)
			}
			life := func(retain int) *life {
				l := &life{brokers: brokers, topology: counting("n"), store: store, opts: []weir.Option{weir.Retain(retain)}}
				if backend == "pebble" {
					l.backend = pebble.Dir(t.TempDir())
				}
				return l
			}
			l := life(3)
			l.start(t)
			// At least: merging and collecting go on beside it, as fast as the machine lets them.
			const rounds = 40
			oldest := func() int64 {
				all, err := checkpoint.ListManifests(t.Context(), store)
				if err != nil {
					t.Fatal(err)
				}
				least := int64(math.MaxInt64)
				for _, m := range all {
					least = min(least, m.Checkpoint)
				}
				return least
			}
			begun := time.Now()
			for round := 0; round < rounds || oldest() <= 3 && time.Since(begun) < deadline; round++ {
				more(20)
				l.until(t, func(records int64, _ int) bool { return records >= int64(next) })
				switch {
				case round == 4:
					if _, err := l.app.Savepoint(t.Context(), "", "early"); err != nil {
						t.Fatal(err)
					}
				case round%5 == 0: // beside the app, which merges and collects
					if n := kept(t, open(t, store, offline.Latest)); n <= int64(next)-40 || n > int64(next) {
						t.Errorf("the newest checkpoint holds %d records of %d", n, next)
					}
				}
			}
			l.stop()
			if err := l.wait(t); err != nil {
				t.Fatal(err)
			}
			retained, err := checkpoint.ListManifests(t.Context(), store)
			if err != nil {
				t.Fatal(err)
			}
			if len(retained) < 3 {
				t.Fatalf("%d checkpoints are in the store", len(retained))
			}
			for _, m := range retained {
				if m.Checkpoint <= 3 {
					t.Errorf("checkpoint %d was not deleted", m.Checkpoint)
				}
			}
			// Older manifests may be there for the segments inside them.
			slices.SortFunc(retained, func(a, b checkpoint.ManifestInfo) int { return cmp.Compare(b.Checkpoint, a.Checkpoint) })
			for _, m := range retained[:3] {
				kept(t, open(t, store, fmt.Sprint(m.Checkpoint)))
			}
			early := kept(t, open(t, store, "savepoint:early"))
			if early != 5*20 {
				t.Errorf("the savepoint holds %d records, want 100", early)
			}

			// What there is is old now, so that collecting leaves only what it must.
			old := time.Now().Add(-3 * time.Hour)
			if err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
				if err == nil && !e.IsDir() {
					err = os.Chtimes(path, old, old)
				}
				return err
			}); err != nil {
				t.Fatal(err)
			}
			live := pointed(t, brokers)
			more(100)
			again := life(1)
			again.opts = append(again.opts, weir.Drain())
			again.start(t)
			deleted := 0
			for over := false; !over; {
				select {
				case <-again.done:
					over = true
				default:
				}
				at := pointed(t, brokers)
				r, err := checkpoint.Collect(t.Context(), store, checkpoint.CollectOptions{Live: []offsets.ManifestRef{at}, Retain: 1})
				var missing *checkpoint.MissingError
				if errors.As(err, &missing) && pointed(t, brokers) != at {
					continue // the app has committed another one since, and deleted this one
				}
				if err != nil {
					t.Fatal(err)
				}
				deleted += len(r.Deleted)
			}
			if again.err != nil {
				t.Fatal(again.err)
			}
			again.mu.Lock()
			if again.restored.Checkpoint != live.Checkpoint {
				t.Errorf("restored %+v, want checkpoint %d", again.restored, live.Checkpoint)
			}
			again.mu.Unlock()
			if n := kept(t, open(t, store, offline.Latest)); n != int64(next) {
				t.Errorf("the newest checkpoint holds %d records of %d", n, next)
			}
			if n := kept(t, open(t, store, "savepoint:early")); n != early {
				t.Errorf("the savepoint holds %d records, want %d", n, early)
			}
			for key, values := range committed(t, brokers, "out") {
				for i, v := range values {
					if v != fmt.Sprint("n", i+1) {
						t.Fatalf("output %d of key %s is %s", i, key, v)
					}
				}
			}
			t.Logf("%d checkpoints, %d objects collected during the restart", l.commits, deleted)
		})
	}
}
