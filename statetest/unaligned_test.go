package statetest_test

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// step is a record of the tests of unaligned checkpoints: the n-th of its key.
type step struct {
	Key  string
	N    int64
	From string // where it was read, as the handler that saw it first was told
}

// river is an app whose handlers are slow, or fail, when the test says so: two topics are
// merged, and pass two keyed stages that check the order of each key.
type river struct {
	ids        map[string]string              // other IDs of operators
	steps      codec.Codec[step]              // nil: JSON
	more       func(weir.Keyed[string, step]) // something else behind the first KeyBy
	slow, dead atomic.Bool
	passed     atomic.Int64 // handler calls
	stopAt     atomic.Int64 // passed at which it fails; 0: never
}

var errRiver = errors.New("the test ends this life")

func (r *river) pass(pause time.Duration) error {
	if n := r.passed.Add(1); r.dead.Load() || r.stopAt.Load() > 0 && n >= r.stopAt.Load() {
		return errRiver
	}
	if r.slow.Load() {
		time.Sleep(pause)
	}
	return nil
}

// inOrder sees that values of a key come one after the other.
func inOrder(last *state.OfMap[string, int64], s step, gaps bool) error {
	before := last.Get(s.Key)
	if s.N <= before || !gaps && s.N != before+1 {
		return fmt.Errorf("number %d of key %s comes after number %d", s.N, s.Key, before)
	}
	last.Put(s.Key, s.N)
	return nil
}

const badStep = 7 // every number that it divides is dead-lettered

func (r *river) topology(app *weir.App) {
	steps := codec.JSON[step]()
	id := func(id string) string { return cmp.Or(r.ids[id], id) }
	flying := r.steps
	if flying == nil {
		flying = steps
	}
	left := weir.From(app, "left", source.Values("left", steps))
	right := weir.From(app, "right", source.Values("right", steps))
	byKey := weir.KeyBy(weir.Merge("both", left, right), id("by-key"), func(s step) string { return s.Key }, codec.String, weir.ValueCodec(flying))
	if r.more != nil {
		r.more(byKey)
	}
	seen := weir.Process(byKey, id("see"), func(s *weir.Setup) weir.Handler[string, step, step] {
		last := state.Map(s, "last", codec.String, codec.Int64)
		return weir.OnRecord(func(c *weir.Context[string, step], s step) error {
			if err := r.pass(time.Millisecond); err != nil {
				return err
			}
			if err := inOrder(last, s, false); err != nil {
				return err
			}
			m := c.Meta()
			mark, _ := m.Header("mark")
			if string(m.RawKey()) != s.Key || !strings.Contains(string(m.RawValue()), s.Key) || string(mark) != fmt.Sprint(s.N) {
				return fmt.Errorf("%v says that it comes from %q: %q with %q", s, m.RawKey(), m.RawValue(), mark)
			}
			if s.N%badStep == 0 {
				return weir.DeadLetter(errors.New("bad"))
			}
			s.From = fmt.Sprintf("%s/%d@%d at %d", m.Topic(), m.Partition(), m.Offset(), c.Timestamp().UnixMilli())
			c.Emit(s)
			return nil
		})
	})
	byEnd := weir.KeyBy(seen, id("by-end"), func(s step) string { return s.Key[len(s.Key)-1:] }, codec.String, weir.ValueCodec(flying))
	out := weir.Process(byEnd, id("check"), func(s *weir.Setup) weir.Handler[string, step, weir.KV[string, string]] {
		last := state.Map(s, "last", codec.String, codec.Int64)
		return weir.OnRecord(func(c *weir.Context[string, weir.KV[string, string]], s step) error {
			if err := r.pass(4 * time.Millisecond); err != nil {
				return err
			}
			if err := inOrder(last, s, true); err != nil {
				return err
			}
			m := c.Meta()
			if from := fmt.Sprintf("%s/%d@%d at %d", m.Topic(), m.Partition(), m.Offset(), c.Timestamp().UnixMilli()); from != s.From {
				return fmt.Errorf("%v says that it comes from %s", s, from)
			}
			c.Emit(weir.KV[string, string]{Key: s.Key, Value: strconv.FormatInt(s.N, 10)})
			return nil
		})
	})
	weir.To(out, "out", kafka.Sink("out", codec.String, codec.String))
}

// flow is the input of a river and what must come of it.
type flow struct {
	brokers []string
	store   checkpoint.Store
	dir     string
	input   []*kgo.Record
	want    map[string][]string // outputs by key
	dead    map[string][]string // values of dead letters by key
}

// newFlow makes an input of so many keys with so many records each. It is produced where
// all is true.
func newFlow(t *testing.T, keys, each int, all bool) *flow {
	f := &flow{brokers: broker(t, 4, "left", "right", "out", "dead", "counts"), want: map[string][]string{}, dead: map[string][]string{}}
	f.dir, f.store = newDir(t)
	steps := codec.JSON[step]()
	for n := int64(1); n <= int64(each); n++ {
		for k := range keys {
			s := step{Key: fmt.Sprintf("key-%03d", k), N: n}
			value, err := steps.Append(nil, s)
			if err != nil {
				t.Fatal(err)
			}
			rec := record([]string{"left", "right"}[k%2], s.Key, string(value))
			rec.Headers = []kgo.RecordHeader{{Key: "mark", Value: []byte(fmt.Sprint(n))}}
			f.input = append(f.input, rec)
			if n%badStep == 0 {
				f.dead[s.Key] = append(f.dead[s.Key], string(value))
			} else {
				f.want[s.Key] = append(f.want[s.Key], fmt.Sprint(n))
			}
		}
	}
	if all {
		produce(t, f.brokers, f.input...)
	}
	return f
}

// check compares what is committed with what must come of the input.
func (f *flow) check(t *testing.T) {
	t.Helper()
	compareMaps(t, "output", committed(t, f.brokers, "out"), f.want, slices.Equal[[]string])
	compareMaps(t, "dead letters", committed(t, f.brokers, "dead"), f.dead, slices.Equal[[]string])
}

// voyage is one life of a river's app, and what checkpoints held in it.
type voyage struct {
	*life
	*river
	inFlight atomic.Int64 // records in flight of the newest committed checkpoint
	most     atomic.Int64 // of any
	stages   atomic.Int64 // to which there were any in flight
	casts    atomic.Int64 // broadcast records among them
}

func (f *flow) life(r *river, parallelism int, opts ...weir.Option) *voyage {
	v := &voyage{river: r}
	persisted := map[int64]int64{} // used by the app's loop only
	v.life = &life{brokers: f.brokers, topology: r.topology, store: f.store, opts: append([]weir.Option{
		weir.Parallelism(parallelism), weir.DeadLetters("dead"), weir.CheckpointEvery(5 * time.Millisecond),
		weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond}),
		weir.Retain(50), // so that what is looked into is not collected meanwhile, however slow this is
		weir.Listen(weir.Listener{
			CheckpointPersisted: func(i event.CheckpointPersisted) { persisted[i.Checkpoint] = i.InFlight },
			CheckpointCommitted: func(i event.CheckpointCommitted) {
				v.inFlight.Store(persisted[i.Checkpoint])
				stages, casts := f.stagesInFlight()
				v.stages.Store(stages)
				v.casts.Store(casts)
				v.most.Store(max(v.most.Load(), persisted[i.Checkpoint]))
				v.tell() // the life's own listener did so before this was there
			},
		})}, opts...)}
	return v
}

// stagesInFlight returns to how many stages the newest checkpoint has records in flight,
// and how many of them are broadcast records.
func (f *flow) stagesInFlight() (stages, casts int64) {
	s, err := offline.Open(context.Background(), f.store, offline.Latest)
	if err != nil {
		return 0, 0 // it was collected meanwhile
	}
	m, _ := s.Manifest()
	any := map[string]bool{}
	for _, part := range m.InFlight {
		if part.Records > 0 {
			any[part.Stage] = true
		}
		if part.Broadcast() {
			casts += part.Records
		}
	}
	return int64(len(any)), casts
}

// kill ends the app without another checkpoint.
func (v *voyage) kill(t *testing.T) {
	t.Helper()
	v.dead.Store(true)
	if err := v.wait(t); !errors.Is(err, errRiver) {
		t.Fatalf("got %v, want the end of this life", err)
	}
}

// backlog runs a slow river until a checkpoint with so many records in flight, some to each
// stage, is committed, and kills it then.
func (f *flow) backlog(t *testing.T, parallelism int, least int64, opts ...weir.Option) {
	t.Helper()
	r := &river{}
	r.slow.Store(true)
	v := f.life(r, parallelism, opts...)
	v.start(t)
	v.until(t, func(int64, int) bool { return v.inFlight.Load() >= least && v.stages.Load() == 2 })
	v.kill(t)
	t.Logf("killed with %d records in flight after %d commits", v.inFlight.Load(), v.commits)
}

// restoredInFlight returns how many records in flight the app began with.
func (v *voyage) restoredInFlight() int64 {
	v.mu.Lock()
	defer v.mu.Unlock()
	return v.restored.InFlight
}

// TestS25_UnalignedCheckpointIsRestoredWithAnyParallelism kills an app with records in
// flight to two stages, restores it with another number of subtasks, kills it again before
// its first new checkpoint, and restores it once more.
func TestS25_UnalignedCheckpointIsRestoredWithAnyParallelism(t *testing.T) {
	for _, scale := range [][2]int{{1, 2}, {2, 3}, {3, 7}, {7, 2}, {20, 21}} {
		t.Run(fmt.Sprintf("%dto%d", scale[0], scale[1]), func(t *testing.T) {
			t.Parallel()
			f := newFlow(t, 100, 40, true)
			f.backlog(t, scale[0], 1000, weir.Unaligned())

			again := &river{}
			again.stopAt.Store(500)
			v := f.life(again, scale[1], weir.Unaligned(), weir.CheckpointEvery(5*time.Minute))
			v.start(t)
			if err := v.wait(t); !errors.Is(err, errRiver) || v.commits > 0 {
				t.Fatalf("got %v after %d commits, want the end of this life before the first", err, v.commits)
			}
			first := v.restoredInFlight()
			if first == 0 {
				t.Fatal("nothing was in flight")
			}

			v = f.life(&river{}, scale[1], weir.Unaligned())
			v.mustDrain(t)
			if n := v.restoredInFlight(); n != first {
				t.Errorf("%d records in flight were restored first and then %d", first, n)
			}
			f.check(t)
		})
	}
}

// TestS25_RecordsInFlightAreInFlightAgainBeforeTheyWereProcessed takes one unaligned
// checkpoint after the other while what an earlier one left is still being processed, with
// another parallelism each time.
func TestS25_RecordsInFlightAreInFlightAgainBeforeTheyWereProcessed(t *testing.T) {
	f := newFlow(t, 100, 40, true)
	least := int64(2500)
	for _, parallelism := range []int{3, 2, 7, 1, 4} {
		f.backlog(t, parallelism, least, weir.Unaligned())
		least = 1 // from now on what is left of it
	}
	v := f.life(&river{}, 5)
	v.mustDrain(t)
	if v.restoredInFlight() == 0 {
		t.Error("nothing was in flight in the end")
	}
	f.check(t)
}

// TestS24_BackpressureLosesDoublesAndReordersNothingInAnyMode runs a slow app in each mode
// through kills, and compares its outputs with the input.
func TestS24_BackpressureLosesDoublesAndReordersNothingInAnyMode(t *testing.T) {
	for _, mode := range []struct {
		name     string
		opts     []weir.Option
		inFlight bool
	}{
		{"aligned", nil, false},
		{"unaligned", []weir.Option{weir.Unaligned()}, true},
		{"timeout", []weir.Option{weir.AlignmentTimeout(time.Millisecond)}, true},
	} {
		t.Run(mode.name, func(t *testing.T) {
			t.Parallel()
			f := newFlow(t, 60, 60, false)
			sawInFlight := false
			for part := range slices.Chunk(f.input, len(f.input)/3) {
				r := &river{}
				r.slow.Store(true)
				r.stopAt.Store(int64(len(part)))
				v := f.life(r, 2, mode.opts...)
				v.start(t)
				fed := feed(t, f.brokers, part)
				if err := v.wait(t); !errors.Is(err, errRiver) {
					t.Fatal(err)
				}
				t.Logf("killed after %d commits", v.commits)
				sawInFlight = sawInFlight || v.most.Load() > 0
				if err := <-fed; err != nil {
					t.Fatal(err)
				}
			}
			f.life(&river{}, 3, mode.opts...).mustDrain(t)
			f.check(t)
			if sawInFlight != mode.inFlight {
				t.Errorf("checkpoints with records in flight: %v", sawInFlight)
			}
		})
	}
}

// TestOutputsOfWhatWasInFlightAreCommittedWhenNothingFollows lets the input end while
// records are in flight in a committed checkpoint: what they emit must be committed too,
// by the same life and by the next one.
func TestOutputsOfWhatWasInFlightAreCommittedWhenNothingFollows(t *testing.T) {
	for _, restart := range []bool{false, true} {
		t.Run(fmt.Sprintf("restart=%v", restart), func(t *testing.T) {
			t.Parallel()
			f := newFlow(t, 50, 20, true)
			r := &river{}
			r.slow.Store(true)
			v := f.life(r, 2, weir.Unaligned())
			v.start(t)
			v.until(t, func(int64, int) bool { return v.inFlight.Load() > 0 })
			if restart {
				v.kill(t)
				v = f.life(&river{}, 2, weir.Unaligned())
				v.start(t)
			} else {
				r.slow.Store(false)
			}
			want := 0
			for _, values := range f.want {
				want += len(values)
			}
			deadline := time.After(deadline)
			for got := 0; got != want; {
				got = 0
				for _, values := range committed(t, f.brokers, "out") {
					got += len(values)
				}
				select {
				case <-v.done:
					t.Fatalf("the app ended: %v", v.err)
				case <-deadline:
					t.Fatalf("%d of %d outputs are committed", got, want)
				default:
				}
			}
			f.check(t)
		})
	}
}

// TestSavepointsAndTheLastCheckpointOfAStopHoldNothingInFlight asks a slow app for a
// savepoint, stops it, and starts it again without the codecs that values in flight need.
func TestSavepointsAndTheLastCheckpointOfAStopHoldNothingInFlight(t *testing.T) {
	f := newFlow(t, 50, 10, true)
	r := &river{}
	r.slow.Store(true)
	v := f.life(r, 3, weir.Unaligned())
	v.start(t)
	v.until(t, func(int64, int) bool { return v.inFlight.Load() > 0 })
	if _, err := v.app.Savepoint(t.Context(), "", "slow"); err != nil {
		t.Fatal(err)
	}
	v.stop()
	if err := v.wait(t); err != nil {
		t.Fatal(err)
	}
	for _, which := range []string{"slow", offline.Latest} {
		m, _ := open(t, f.store, which).Manifest()
		if n := m.RecordsInFlight(); n != 0 {
			t.Errorf("%s holds %d records in flight", which, n)
		}
	}
	f.life(&river{}, 2).mustDrain(t)
	f.check(t)
}

// TestARetainedUnalignedCheckpointGoesOnAsASavepoint copies a checkpoint with records in
// flight into a savepoint, rewritten for other key-groups or as it is, and starts an app
// from it.
func TestARetainedUnalignedCheckpointGoesOnAsASavepoint(t *testing.T) {
	for _, keyGroups := range []int{weir.DefaultKeyGroups, 96} {
		t.Run(fmt.Sprint(keyGroups), func(t *testing.T) {
			f := newFlow(t, 100, 20, true)
			f.backlog(t, 3, 200, weir.Unaligned())
			s, inFlight := f.lastInFlight(t)
			if _, err := s.Save(t.Context(), f.store, "copy", nil); err != nil {
				t.Fatal(err)
			}
			name := "copy"
			if keyGroups != weir.DefaultKeyGroups {
				m, view, err := checkpoint.OpenSavepoint(t.Context(), f.store, name)
				if err != nil {
					t.Fatal(err)
				}
				name = "rewritten"
				if _, err := checkpoint.RewriteSavepoint(t.Context(), view, m, f.store, name, checkpoint.RewriteOptions{KeyGroups: keyGroups}); err != nil {
					t.Fatal(err)
				}
			}
			forget(t, f.brokers)
			from := f.dir
			f.dir, f.store = newDir(t)
			v := f.life(&river{}, 2, weir.FromSavepoint(from, name), weir.KeyGroups(keyGroups))
			v.mustDrain(t)
			if n := v.restoredInFlight(); n != inFlight {
				t.Errorf("%d records in flight were restored, the checkpoint has %d", n, inFlight)
			}
			f.check(t)
		})
	}
}

// TestATopologyThatCannotTakeWhatWasInFlightIsRefused starts an app whose topology does
// not fit the records in flight.
func TestATopologyThatCannotTakeWhatWasInFlightIsRefused(t *testing.T) {
	f := newFlow(t, 50, 20, true)
	f.backlog(t, 2, 100, weir.Unaligned())
	steps := codec.JSON[step]()
	topology := func(id string, opts ...weir.EdgeOption[step]) func(*weir.App) {
		return func(app *weir.App) {
			left := weir.From(app, "left", source.Values("left", steps))
			right := weir.From(app, "right", source.Values("right", steps))
			byKey := weir.KeyBy(weir.Merge("both", left, right), id, func(s step) string { return s.Key }, codec.String, opts...)
			weir.To(weir.Aggregate(byKey, "count", weir.Count[step]()), "out", kafka.Sink("out", codec.String, codec.Int64))
		}
	}
	other := codec.Func("other", 1, steps.Append, steps.Decode)
	for _, c := range []struct {
		topology func(*weir.App)
		want     []string
	}{
		{topology("by-key"), []string{`operator "by-key"`, "records in flight", `codec "json"`, "weir.ValueCodec"}},
		{topology("by-key", weir.ValueCodec(other)), []string{`operator "by-key"`, `codec "json"`, `"other"`, "after a clean stop"}},
		{topology("by-another", weir.ValueCodec(steps)), []string{`operator "by-key"`, "which the topology lacks", `weir.AllowDroppedState("by-key")`}},
	} {
		v := f.life(&river{}, 2, weir.AllowDroppedState("see", "check", "by-end"))
		v.life.topology = c.topology
		wantError(t, v.drain(t), c.want...)
	}
}
