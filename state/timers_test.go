package state

import (
	"bytes"
	"cmp"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/state/segment"
)

const timerKeyGroups = 4

// timerRig is a keyspace with timers, and what is stored of it.
type timerRig struct {
	ks      *Keyspace[string]
	timers  *Timers
	value   *OfValue[int64]
	builder segment.Builder
}

// committedTable is what committed runs add up to, by segment key. It is a Backing, too.
type committedTable struct {
	entries   map[string][]byte
	committed int64
}

func (b *committedTable) apply(r segment.Run) {
	for e := range r.All() {
		k := string(segment.AppendKey(nil, e.KeyGroup, e.State, e.Key))
		if e.Deleted {
			delete(b.entries, k)
		} else {
			b.entries[k] = bytes.Clone(e.Value)
		}
	}
}

func (b *committedTable) Get(dst, key []byte, _ int64) ([]byte, bool, error) {
	v, ok := b.entries[string(key)]
	return append(dst, v...), ok, nil
}

func (b *committedTable) Iter(lo, hi []byte) (Iterator, error) {
	it := &tableIter{b: b}
	for k := range maps.Keys(b.entries) {
		if k >= string(lo) && k < string(hi) {
			it.keys = append(it.keys, k)
		}
	}
	slices.Sort(it.keys)
	return it, nil
}

type tableIter struct {
	b    *committedTable
	keys []string
	at   int
}

func (it *tableIter) valid() bool { return it.at >= 0 && it.at < len(it.keys) }
func (it *tableIter) First() bool { it.at = 0; return it.valid() }
func (it *tableIter) Last() bool  { it.at = len(it.keys) - 1; return it.valid() }
func (it *tableIter) SeekGE(k []byte) bool {
	it.at, _ = slices.BinarySearch(it.keys, string(k))
	return it.valid()
}
func (it *tableIter) SeekLT(k []byte) bool { it.SeekGE(k); it.at--; return it.valid() }
func (it *tableIter) Next() bool           { it.at++; return it.valid() }
func (it *tableIter) Prev() bool           { it.at--; return it.valid() }
func (it *tableIter) Key() []byte          { return []byte(it.keys[it.at]) }
func (it *tableIter) Value() []byte        { return it.b.entries[it.keys[it.at]] }
func (it *tableIter) Err() error           { return nil }
func (it *tableIter) Close() error         { return nil }

func newTimerRig(b *committedTable, backed bool, window int, floors ...int64) *timerRig {
	r := &timerRig{}
	cfg := Config{}
	if backed {
		cfg = Config{Backing: b, MemoryBytes: 1, Committed: func() int64 { return b.committed }, KeyGroups: timerKeyGroups}
	}
	r.ks = NewKeyspace(codec.String, cfg)
	scope := NewScope("op")
	r.timers, r.value = EventTimers(benchSetup{scope}), Value(benchSetup{scope}, "v", codec.Int64)
	r.timers.window = window
	r.ks.Attach(scope, []uint16{1, 2})
	r.ks.SetFloors(floors, floors)
	if !backed {
		for k, v := range b.entries {
			kg, id := uint16(k[0])<<8|uint16(k[1]), uint16(k[2])<<8|uint16(k[3])
			if err := r.ks.Restore(kg, id, []byte(k[4:]), v); err != nil {
				panic(err)
			}
		}
	}
	return r
}

func (r *timerRig) use(k string) {
	r.ks.Use(k, uint16(keygroup.Of([]byte(k), timerKeyGroups)))
}

// Time of the key early was at 100, that of late and of the timers as a whole is at 10.
func TestTimersUpToTheFloorOfTheirKeyAreDue(t *testing.T) {
	at := func(ms int64) time.Time { return time.UnixMilli(ms) }
	for _, backed := range []bool{false, true} {
		stored := &committedTable{entries: map[string][]byte{}}
		r := newTimerRig(stored, backed, windowTimers)
		for _, key := range []string{"early", "late"} {
			r.use(key)
			for _, ms := range []int64{50, 100, 150} {
				r.timers.Set(at(ms))
			}
		}
		if err := r.ks.Freeze(&r.builder, 1); err != nil {
			t.Fatal(err)
		}
		stored.apply(r.builder.Finish())
		stored.committed = 1

		floors := make([]int64, timerKeyGroups)
		floors[keygroup.Of([]byte("early"), timerKeyGroups)] = 100
		r = newTimerRig(stored, backed, windowTimers, floors...)
		var fired []string
		fires := func(tm Timer) bool {
			fired = append(fired, fmt.Sprint(r.ks.Key(), " ", tm.At.UnixMilli()))
			if tm.At.UnixMilli() == 70 {
				r.timers.Set(at(60))
			}
			return true
		}
		want := func(want ...string) {
			t.Helper()
			if !slices.Equal(fired, want) {
				t.Fatalf("backed %v: fired %q, want %q", backed, fired, want)
			}
			fired = nil
		}
		r.timers.FirePassed(fires)
		want("early 50", "early 100")
		for _, key := range []string{"early", "late"} {
			r.use(key)
			for _, ms := range []int64{101, 100, 80, 70} {
				r.timers.Set(at(ms))
			}
			r.timers.Delete(at(80))
		}
		r.timers.FirePassed(fires)
		want("early 70", "early 60", "early 100")
		r.timers.Fire(60, fires)
		want("late 50")
		r.timers.Fire(200, fires)
		want("late 70", "late 60", "late 100", "early 101", "late 101", "early 150", "late 150")
		r.timers.FirePassed(fires)
		want()
		if err := r.ks.Err(); err != nil {
			t.Error(err)
		}
	}
}

// More timers are due by a floor than are kept in memory, and a checkpoint is between two.
func TestTimersUpToAFloorAreDueAlsoAfterTheyLeftTheMemory(t *testing.T) {
	const timers, window = 100, 4
	stored := &committedTable{entries: map[string][]byte{}}
	r := newTimerRig(stored, true, window)
	r.use("k")
	for i := range timers {
		r.timers.Set(time.UnixMilli(int64(i)))
	}
	if err := r.ks.Freeze(&r.builder, 1); err != nil {
		t.Fatal(err)
	}
	stored.apply(r.builder.Finish())
	stored.committed = 1

	r = newTimerRig(stored, true, window, timers, timers, timers, timers)
	var fired []int64
	for checkpoint := int64(2); ; checkpoint++ {
		n := r.timers.FirePassed(func(tm Timer) bool {
			fired = append(fired, tm.At.UnixMilli())
			return len(fired)%10 != 0
		})
		if n == 0 {
			break
		}
		if err := r.ks.Freeze(&r.builder, checkpoint); err != nil {
			t.Fatal(err)
		}
		stored.apply(r.builder.Finish())
		stored.committed = checkpoint
	}
	if len(fired) != timers || !slices.IsSorted(fired) {
		t.Errorf("fired %d of %d timers: %d", len(fired), timers, fired)
	}
	if err := r.ks.Err(); err != nil {
		t.Error(err)
	}
}

// modelTimer is a timer of the naive model.
type modelTimer struct {
	ms  int64
	key string
}

func byTimeThenKey(a, b modelTimer) int {
	return cmp.Or(cmp.Compare(a.ms, b.ms), cmp.Compare(a.key, b.key))
}

// Timers must behave as a sorted list of time and key does, whatever is encoded,
// committed, dropped from memory and restored in between.
func TestTimersAreASortedList(t *testing.T) {
	for _, backed := range []bool{false, true} {
		for seed := range uint64(12) {
			t.Run(fmt.Sprintf("backed=%v/seed=%d", backed, seed), func(t *testing.T) { modelTimers(t, backed, seed) })
		}
	}
}

func modelTimers(t *testing.T, backed bool, seed uint64) {
	const keys, steps = 200, 6000
	rng := rand.New(rand.NewPCG(seed, 1))
	span := []int64{50, 2000}[seed%2] // many timers at one time, or few
	stored := &committedTable{entries: map[string][]byte{}}
	window := 20
	r := newTimerRig(stored, backed, window)
	want := map[modelTimer]bool{}
	durable := maps.Clone(want) // of the last commit
	type cut struct {
		id   int64
		want map[modelTimer]bool
		run  segment.Run
	}
	var cuts []cut   // encoded and not in the backing, oldest first
	var current *cut // is being encoded
	now, checkpoint := int64(0), int64(0)
	key := func() string { return fmt.Sprint("k", rng.IntN(keys)) }
	set := func(k string, not int64) {
		ms := now - 5 + rng.Int64N(span)
		if ms == not {
			return // would come behind all others of its time
		}
		r.timers.Set(time.UnixMilli(ms))
		want[modelTimer{ms, k}] = true
	}
	remove := func(k string) {
		ms := now + rng.Int64N(span)
		for m := range want { // one that is there, if there is one
			if m.key == k {
				ms = m.ms
				break
			}
		}
		r.timers.Delete(time.UnixMilli(ms))
		delete(want, modelTimer{ms, k})
	}
	again := func(k string) { // what is set is set again, and then removed
		for m := range want {
			if m.key == k {
				r.timers.Set(time.UnixMilli(m.ms))
				remove(k)
				return
			}
		}
	}
	finish := func() {
		if done, err := r.ks.Encode(1 << 30); err != nil || !done {
			t.Fatal(done, err)
		}
		current.run = r.builder.Finish()
		cuts, current = append(cuts, *current), nil
	}
	check := func() {
		t.Helper()
		var got []modelTimer
		for k := range stored.entries {
			if k[3] == 1 {
				got = append(got, modelTimer{cutTime([]byte(k[4:12])), k[12:]})
			}
		}
		slices.SortFunc(got, byTimeThenKey)
		if all := slices.SortedFunc(maps.Keys(durable), byTimeThenKey); !slices.Equal(got, all) {
			t.Fatalf("checkpoint %d: %d timers are stored, want %d", stored.committed, len(got), len(all))
		}
	}
	freeze := func() {
		if current == nil {
			checkpoint++
			r.ks.Cut(&r.builder, checkpoint)
			current = &cut{id: checkpoint, want: maps.Clone(want)}
		} else if done, err := r.ks.Encode(1 + rng.IntN(20)); err != nil {
			t.Fatal(err)
		} else if done {
			finish()
		}
	}
	for step := range steps {
		k := key()
		r.use(k)
		switch p := rng.IntN(100); {
		case p < 55:
			set(k, -1)
		case p < 66:
			remove(k)
		case p < 70:
			again(k)
		case p < 74:
			r.value.Set(int64(step))
		case p < 84:
			now += rng.Int64N(span / 5)
			for stopped := true; stopped; {
				stopped = false
				r.timers.Fire(now, func(tm Timer) bool {
					got := modelTimer{tm.At.UnixMilli(), r.ks.Key()}
					if least := slices.MinFunc(slices.Collect(maps.Keys(want)), byTimeThenKey); got != least {
						t.Fatalf("step %d: %v fires, want %v", step, got, least)
					}
					delete(want, got)
					switch rng.IntN(6) {
					case 0:
						set(got.key, got.ms)
					case 1:
						remove(got.key)
					}
					stopped = rng.IntN(8) == 0
					return !stopped
				})
				if stopped {
					freeze()
				}
			}
			for m := range want {
				if m.ms <= now {
					t.Fatalf("step %d: %v did not fire at %d", step, m, now)
				}
			}
		case p < 90:
			freeze()
		case p < 96 && len(cuts) > 0:
			for range 1 + rng.IntN(len(cuts)) { // those before it were given up
				stored.apply(cuts[0].run)
				stored.committed, durable, cuts = cuts[0].id, cuts[0].want, cuts[1:]
			}
			check()
		case p < 98 && current == nil:
			r.ks.Evict()
		case p == 99 && rng.IntN(4) == 0:
			r = newTimerRig(stored, backed, window)
			want, cuts, current = maps.Clone(durable), nil, nil
		}
		if err := r.ks.Err(); err != nil {
			t.Fatal(err)
		}
		if step%50 == 0 {
			first := int64(NoTimer)
			for m := range want {
				first = min(first, m.ms)
			}
			if got := r.timers.Earliest(); got != first {
				t.Fatalf("step %d: the earliest timer is at %d, want %d", step, got, first)
			}
		}
	}
}

// With a backing the timers in memory are a window of the earliest ones.
func TestTimersInMemoryAreBoundedWithABacking(t *testing.T) {
	const timers, window = 20_000, 64
	stored := &committedTable{entries: map[string][]byte{}}
	r := newTimerRig(stored, true, window)
	for i := range timers {
		r.use(fmt.Sprint("k", i))
		r.timers.Set(time.UnixMilli(int64(i)))
	}
	for range 2 { // the second cut finds the first one committed
		stored.committed++
		if err := r.ks.Freeze(&r.builder, stored.committed); err != nil {
			t.Fatal(err)
		}
		stored.apply(r.builder.Finish())
	}
	r.ks.Cut(&r.builder, stored.committed+1)
	if _, err := r.ks.Encode(1); err != nil {
		t.Fatal(err)
	}
	r.ks.Evict()
	bounded := func(when string) {
		t.Helper()
		if n := r.timers.live.Len() + r.timers.gone.Len(); n > 4*window {
			t.Fatalf("%d timers are in memory %s, want %d at most", n, when, 4*window)
		}
		if n := r.ks.Len(); n > 4*window {
			t.Fatalf("%d keys are in memory %s, want %d at most", n, when, 4*window)
		}
	}
	bounded("after all were committed")
	r = newTimerRig(stored, true, window)
	for i := range int64(10) {
		if got := r.timers.Earliest(); got != i {
			t.Fatalf("the earliest timer is at %d, want %d", got, i)
		}
		if n := r.timers.Fire(i, func(Timer) bool { return true }); n != 1 {
			t.Fatalf("%d timers fire at %d, want 1", n, i)
		}
	}
	bounded("after a restore")
}

func TestTimersOfOneTimeFireInTheOrderOfTheirKeys(t *testing.T) {
	r := newTimerRig(&committedTable{}, false, 0)
	var want []string
	for i := range 50 {
		k := fmt.Sprint(i * 7919 % 50)
		want = append(want, k)
		r.use(k)
		r.timers.Set(time.UnixMilli(5))
		r.timers.Set(time.UnixMilli(5)) // is the same one
	}
	slices.Sort(want)
	var got []string
	r.timers.Fire(5, func(Timer) bool { got = append(got, r.ks.Key()); return true })
	if !slices.Equal(got, want) {
		t.Errorf("fired %v, want %v", got, want)
	}
}

func TestTimersNeverFireEarly(t *testing.T) {
	r := newTimerRig(&committedTable{}, false, 0)
	r.use("k")
	at := time.UnixMilli(5).Add(time.Nanosecond)
	r.timers.Set(at)
	if n := r.timers.Fire(5, func(Timer) bool { return true }); n != 0 {
		t.Errorf("a timer of %v fired at %v", at, time.UnixMilli(5))
	}
	r.timers.Delete(at)
	if got := r.timers.Earliest(); got != NoTimer {
		t.Errorf("the timer is still there: %d", got)
	}
}

func TestTheLastFiringTakesEveryTimerOnce(t *testing.T) {
	r := newTimerRig(&committedTable{entries: map[string][]byte{}}, false, 0)
	r.use("k")
	for ms := range int64(3) {
		r.timers.Set(time.UnixMilli(ms))
	}
	fired := r.timers.FireLast(func(tm Timer) bool {
		r.timers.Set(tm.At.Add(10 * time.Millisecond)) // for ever, if it were not for the end
		r.timers.Set(time.UnixMilli(2))                // is set, or was the last one
		return true
	})
	if fired != 3 {
		t.Fatalf("%d timers fired, want 3", fired)
	}
	var left []int64
	r.timers.Fire(100, func(tm Timer) bool { left = append(left, tm.At.UnixMilli()); return true })
	if want := []int64{2, 10, 11, 12}; !slices.Equal(left, want) {
		t.Errorf("left are %v, want %v", left, want)
	}
}

// To set a timer again that the backing has, and that is not in memory, changes nothing either.
// One that fired or was deleted before is new.
func TestTheLastFiringTakesTimersThatWereSetAgain(t *testing.T) {
	const timers = 100
	stored := &committedTable{entries: map[string][]byte{}}
	r := newTimerRig(stored, true, 4)
	r.use("k")
	for ms := range int64(timers) {
		r.timers.Set(time.UnixMilli(ms))
	}
	if err := r.ks.Freeze(&r.builder, 1); err != nil {
		t.Fatal(err)
	}
	stored.apply(r.builder.Finish())
	stored.committed = 1

	r = newTimerRig(stored, true, 4)
	var fired []int64
	r.timers.FireLast(func(tm Timer) bool {
		if fired = append(fired, tm.At.UnixMilli()); len(fired) == 1 {
			r.timers.Set(time.UnixMilli(97))
			r.timers.Delete(time.UnixMilli(98))
			r.timers.Set(time.UnixMilli(98))
			r.timers.Set(time.UnixMilli(99))
			r.timers.Delete(time.UnixMilli(99))
			r.timers.Set(time.UnixMilli(99))
			r.timers.Set(time.UnixMilli(0))
		}
		return true
	})
	if len(fired) != timers-2 || fired[timers-3] != 97 {
		t.Errorf("%d timers fired, up to %d, want all but 98 and 99", len(fired), fired[len(fired)-1])
	}
	fired = nil
	r.timers.Fire(timers, func(tm Timer) bool { fired = append(fired, tm.At.UnixMilli()); return true })
	if want := []int64{0, 98, 99}; !slices.Equal(fired, want) {
		t.Errorf("left were %v, want %v", fired, want)
	}
	if err := r.ks.Err(); err != nil {
		t.Error(err)
	}
}

// The memory that many timers of one epoch took is not taken for ever, nor counted.
func TestABurstOfTimersIsOver(t *testing.T) {
	stored := &committedTable{entries: map[string][]byte{}}
	r := newTimerRig(stored, true, 1<<20)
	commit := func(checkpoint int64) {
		t.Helper()
		if err := r.ks.Freeze(&r.builder, checkpoint); err != nil {
			t.Fatal(err)
		}
		stored.apply(r.builder.Finish())
		stored.committed = checkpoint
	}
	commit(1)
	before := r.ks.Memory()
	r.use("k")
	for ms := range int64(30_000) {
		r.timers.Set(time.UnixMilli(ms))
	}
	commit(2)
	r.timers.Fire(30_000, func(Timer) bool { return true })
	for checkpoint := int64(3); checkpoint < 8; checkpoint++ {
		commit(checkpoint)
	}
	if after := r.ks.Memory(); after > before+100_000 {
		t.Errorf("the memory is %d bytes, and was %d before", after, before)
	}
}

// A timer that was set and fired between two barriers costs no checkpoint anything.
func TestTimersOfOneEpochLeaveNoTrace(t *testing.T) {
	r := newTimerRig(&committedTable{}, false, 0)
	for i := range 1000 {
		r.use(fmt.Sprint(i))
		r.timers.Set(time.UnixMilli(int64(i)))
	}
	r.timers.Fire(1000, func(Timer) bool { return true })
	if err := r.ks.Freeze(&r.builder, 1); err != nil {
		t.Fatal(err)
	}
	if r.builder.Len() != 0 || r.ks.Len() != 0 || r.timers.live.Len()+r.timers.gone.Len() != 0 {
		t.Errorf("%d entries, %d keys, %d and %d timers are left", r.builder.Len(), r.ks.Len(), r.timers.live.Len(), r.timers.gone.Len())
	}
}

// A tombstone that is on its way hides the timer until it is in the backing, also when
// the checkpoint before it comes in meanwhile.
func TestDeletedTimerDoesNotComeBackFromTheBacking(t *testing.T) {
	stored := &committedTable{entries: map[string][]byte{}}
	r := newTimerRig(stored, true, 10)
	freeze := func(checkpoint int64) segment.Run {
		t.Helper()
		if err := r.ks.Freeze(&r.builder, checkpoint); err != nil {
			t.Fatal(err)
		}
		return r.builder.Finish()
	}
	r.use("k")
	r.timers.Set(time.UnixMilli(1000))
	set := freeze(1)
	r.use("k")
	r.timers.Delete(time.UnixMilli(1000))
	freeze(2)
	stored.apply(set)
	stored.committed = 1
	freeze(3)
	if got := r.timers.Earliest(); got != NoTimer {
		t.Errorf("the timer of %d is back", got)
	}
}
