package state_test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/segment"
)

// one is a keyspace with some handles, and what it committed.
type one struct {
	t       *testing.T
	ks      *state.Keyspace[string]
	store   *committed
	builder segment.Builder
	id      int64
}

// newOne returns a keyspace of which declare declares the handles. It has a backing if
// there is a budget.
func newOne(t *testing.T, store *committed, budget int64, declare func(s state.Setup)) *one {
	t.Helper()
	cfg := state.Config{Spared: store.spared}
	if budget > 0 {
		cfg = state.Config{Backing: store, MemoryBytes: budget, KeyGroups: 1, Committed: func() int64 { return store.id }, Spared: store.spared}
	}
	o := &one{t: t, ks: state.NewKeyspace(codec.String, cfg), store: store, id: store.id}
	scope := state.NewScope("op")
	declare(setup{scope})
	if errs := scope.Errors(); len(errs) > 0 {
		t.Fatal(errs)
	}
	var ids []uint16
	for i := range scope.Descriptors() {
		ids = append(ids, uint16(i+1))
	}
	o.ks.Attach(scope, ids)
	o.ks.Use("k", 0)
	return o
}

// commit freezes and commits what changed, and returns how many entries that were.
func (o *one) commit() int {
	o.t.Helper()
	o.id++
	if err := o.ks.Freeze(&o.builder, o.id); err != nil {
		o.t.Fatal(err)
	}
	n := o.builder.Len()
	r := o.builder.Finish()
	o.store.apply(r)
	r.Release()
	o.store.id = o.id
	o.ks.Use("k", 0)
	if err := o.ks.Audit(); err != nil {
		o.t.Fatal(err)
	}
	return n
}

// restore applies what the store holds to a keyspace without a backing.
func (o *one) restore() {
	o.t.Helper()
	for k, v := range o.store.entries {
		if err := o.ks.Restore(binary.BigEndian.Uint16([]byte(k)), binary.BigEndian.Uint16([]byte(k[2:])), []byte(k[4:]), v); err != nil {
			o.t.Fatal(err)
		}
	}
}

func keysOf[K, V any](seq func(yield func(K, V) bool)) []K {
	var ks []K
	for k := range seq {
		ks = append(ks, k)
	}
	return ks
}

// bothWays runs a test in memory and with a backing that keeps nothing in memory.
func bothWays(t *testing.T, f func(t *testing.T, budget int64)) {
	t.Run("memory", func(t *testing.T) { f(t, 0) })
	t.Run("backing", func(t *testing.T) { f(t, 1) })
}

func TestOneChangedEntryIsOneEntryOfTheSegment(t *testing.T) {
	bothWays(t, func(t *testing.T, budget int64) {
		var m *state.OfMap[int64, string]
		var l *state.OfList[string]
		o := newOne(t, newCommitted(), budget, func(s state.Setup) {
			m, l = state.Map(s, "m", codec.Int64, codec.String), state.List(s, "l", codec.String)
		})
		for i := range int64(1000) {
			m.Put(i, "v")
			l.Append("v")
		}
		if n := o.commit(); n != 2000 {
			t.Fatalf("%d entries were encoded, want 2000", n)
		}
		o.ks.Evict()
		o.ks.Use("k", 0)
		gets, steps := o.store.gets, o.store.steps
		m.Put(500, "w")
		m.Delete(3)
		l.Append("w")
		if o.store.gets != gets || o.store.steps > steps+2 {
			t.Errorf("writing took %d reads and %d moves of an iterator, want none and 2 at most", o.store.gets-gets, o.store.steps-steps)
		}
		l.Set(4, "w")
		l.RemoveFirst(1)
		if n := o.commit(); n != 5 {
			t.Errorf("%d entries were encoded, want 5", n)
		}
		if m.Len() != 999 || l.Len() != 1000 || m.Get(500) != "w" {
			t.Errorf("lengths are %d and %d, want 999 and 1000", m.Len(), l.Len())
		}
	})
}

// A barrier must not wait for a map to be encoded as a whole.
func TestAHugeMapIsEncodedInSlices(t *testing.T) {
	var m *state.OfMap[int64, int64]
	o := newOne(t, newCommitted(), 0, func(s state.Setup) { m = state.Map(s, "m", codec.Int64, codec.Int64) })
	for i := range int64(1000) {
		m.Put(i, i)
	}
	o.ks.Cut(&o.builder, 1)
	for n := 0; ; n++ {
		before := o.builder.Len()
		done, err := o.ks.Encode(100)
		if err != nil {
			t.Fatal(err)
		}
		if o.builder.Len()-before > 100 {
			t.Fatalf("a slice of 100 encoded %d entries", o.builder.Len()-before)
		}
		if done {
			break
		}
		m.Put(999-int64(n), -1) // it is encoded first
	}
	if o.builder.Len() != 1000 {
		t.Errorf("%d entries were encoded, want 1000", o.builder.Len())
	}
	for e := range o.builder.Finish().All() {
		if v, err := codec.Int64.Decode(e.Value[1:]); err != nil || v < 0 {
			t.Fatalf("value %d of the next epoch is in the checkpoint, %v", v, err)
		}
	}
}

func TestMapsIterateInTheOrderOfTheirKeys(t *testing.T) {
	bothWays(t, func(t *testing.T, budget int64) {
		var ints *state.OfMap[int32, int64]
		var floats *state.OfMap[float64, int64]
		var words *state.OfMap[string, int64]
		var raw *state.OfMap[[]byte, int64]
		o := newOne(t, newCommitted(), budget, func(s state.Setup) {
			ints, floats = state.Map(s, "i", codec.Int32, codec.Int64), state.Map(s, "f", codec.Float64, codec.Int64)
			words, raw = state.Map(s, "w", codec.String, codec.Int64), state.Map(s, "r", codec.Bytes, codec.Int64)
		})
		for i, n := range []int32{3, -1, 0, 256, -300, 255} {
			ints.Put(n, int64(i))
			floats.Put(float64(n)/2, int64(i))
			words.Put(fmt.Sprintf("%04d", n+500), int64(i))
			raw.Put([]byte{byte(n >> 8), byte(n)}, int64(i))
			if i == 3 {
				o.commit()
				o.ks.Evict()
				o.ks.Use("k", 0)
			}
		}
		if got := keysOf(ints.All()); !slices.Equal(got, []int32{-300, -1, 0, 3, 255, 256}) {
			t.Errorf("int32: %v", got)
		}
		if got := keysOf(floats.Range(-0.5, 128)); !slices.Equal(got, []float64{-0.5, 0, 1.5, 127.5}) {
			t.Errorf("float64: %v", got)
		}
		if got := keysOf(words.Backward()); !slices.IsSortedFunc(got, func(a, b string) int { return strings.Compare(b, a) }) || len(got) != 6 {
			t.Errorf("string: %v", got)
		}
		if got := keysOf(ints.Range(5, 5)); got != nil {
			t.Errorf("an empty range: %v", got)
		}
		// What is yielded belongs to the caller.
		for k := range raw.All() {
			clear(k)
		}
		if got := raw.Get([]byte{0, 3}); got != 0 || !raw.Has([]byte{1, 0}) {
			t.Error("writing into a key that was yielded changed the map")
		}
	})
}

// A queue that is drained from the front must not look at what it removed again and
// again, before the tombstones are committed.
func TestAQueueIsNotSearchedFromItsBegin(t *testing.T) {
	const n = 500
	var m *state.OfMap[int64, int64]
	o := newOne(t, newCommitted(), 1<<20, func(s state.Setup) { m = state.Map(s, "m", codec.Int64, codec.Int64) })
	for i := range int64(n) {
		m.Put(i, i)
	}
	o.commit()
	o.ks = nil
	o = newOne(t, o.store, 1<<20, func(s state.Setup) { m = state.Map(s, "m", codec.Int64, codec.Int64) })
	before := o.store.steps
	for want := range int64(n) {
		for k := range m.All() {
			if k != want {
				t.Fatalf("the first key is %d, want %d", k, want)
			}
			m.Delete(k)
			break
		}
	}
	if steps := o.store.steps - before; steps > 12*n {
		t.Errorf("draining %d entries took %d moves of an iterator", n, steps)
	}
	if got := m.Len(); got != 0 {
		t.Errorf("%d entries are left", got)
	}
}

// What a scan remembers of the begin of a map holds only while it is in memory, and
// only if the scan began at the begin.
func TestWhatAScanRemembersHoldsNoLongerThanItIsTrue(t *testing.T) {
	fill := func(t *testing.T) (*one, *state.OfMap[int64, int64]) {
		var m *state.OfMap[int64, int64]
		declare := func(s state.Setup) { m = state.Map(s, "m", codec.Int64, codec.Int64) }
		o := newOne(t, newCommitted(), 1, declare)
		for i := range int64(50) {
			m.Put(i, i)
		}
		o.commit()
		o = newOne(t, o.store, 1, declare)
		return o, m
	}
	expect := func(t *testing.T, m *state.OfMap[int64, int64], first int64, n int) {
		t.Helper()
		got := keysOf(m.All())
		if len(got) != n || got[0] != first {
			t.Errorf("the map has %v, want %d keys from %d on", got, n, first)
		}
	}
	t.Run("put again, committed and evicted", func(t *testing.T) {
		o, m := fill(t)
		for i := range int64(20) {
			m.Delete(i)
		}
		expect(t, m, 20, 30)
		o.commit()
		m.Put(5, 5)
		expect(t, m, 5, 31)
		o.commit()
		m.Put(49, 0) // keeps the key, but not its entries
		o.ks.Evict()
		o.ks.Use("k", 0)
		expect(t, m, 5, 31)
	})
	t.Run("read from the middle", func(t *testing.T) {
		_, m := fill(t)
		for i := range int64(20) {
			m.Delete(10 + i)
		}
		if got := keysOf(m.Range(10, 100)); len(got) != 20 {
			t.Errorf("the range has %v", got)
		}
		expect(t, m, 0, 30)
	})
	t.Run("one left before", func(t *testing.T) {
		_, m := fill(t)
		for i := range int64(49) {
			m.Delete(1 + i)
		}
		expect(t, m, 0, 1)
		expect(t, m, 0, 1)
	})
}

// One key may hold a map that is larger than all memory: what is clean goes, although
// the key is in use.
func TestAMapOfOneKeyStaysInTheBudget(t *testing.T) {
	const budget = 100_000
	var m *state.OfMap[int64, int64]
	o := newOne(t, newCommitted(), budget, func(s state.Setup) { m = state.Map(s, "m", codec.Int64, codec.Int64) })
	peak := int64(0)
	for i := range int64(50_000) {
		m.Put(i, i)
		m.Get(i / 2)
		m.Has(-i)
		if i%256 == 0 {
			o.commit()
			m.Put(i, -i) // something of the key is dirty whenever it is evicted
			o.ks.Evict()
			peak = max(peak, o.ks.Memory())
			o.ks.Use("k", 0)
		}
	}
	if peak > budget {
		t.Errorf("%d bytes were in memory after eviction, the budget is %d", peak, budget)
	}
	if got := m.Len(); got != 50_000 {
		t.Errorf("the map has %d entries", got)
	}
	if full := o.ks.Evict(); full > 1 {
		t.Errorf("counting the map filled the memory: %v", full)
	}
}

// Of a map that does not fit, what is used again and again stays in memory.
func TestEntriesInUseStayInMemory(t *testing.T) {
	const hot = 100
	var m *state.OfMap[int64, int64]
	o := newOne(t, newCommitted(), 40_000, func(s state.Setup) { m = state.Map(s, "m", codec.Int64, codec.Int64) })
	for i := range int64(20_000) {
		m.Put(i, i)
	}
	o.commit()
	o.ks.Evict()
	missed := 0
	for i := range int64(10_000) {
		o.ks.Use("k", 0)
		before := o.store.gets
		m.Get(i % hot)
		missed += o.store.gets - before
		m.Get(hot + i*7919%19_000)
		if i%32 == 31 {
			o.ks.Evict()
		}
	}
	if missed > 2*hot {
		t.Errorf("%d of 10000 reads of %d entries in use missed", missed, hot)
	}
}

// What can't be dropped, the keys of timers here, fills the budget. What is read beside it
// can, and as nothing changes no checkpoint comes that would let Evict look again.
func TestReadsStayInTheBudgetBesideWhatCannotBeDropped(t *testing.T) {
	const budget = 100_000
	var v *state.OfValue[int64]
	var timers *state.Timers
	o := newOne(t, newCommitted(), budget, func(s state.Setup) {
		v, timers = state.Value(s, "v", codec.Int64), state.ProcessingTimers(s)
	})
	for i := range 2000 {
		o.ks.Use(fmt.Sprint("timer-", i), 0)
		timers.Set(time.UnixMilli(int64(i)))
	}
	o.commit()
	o.commit()
	if full := o.ks.Evict(); full < 1 {
		t.Fatalf("the timers take %v of the budget, want more than all of it", full)
	}
	begin := o.ks.Memory()
	for i := range 10_000 {
		o.ks.Use(fmt.Sprint("key-", i), 0)
		v.Get()
		o.ks.Evict()
		if n := o.ks.Memory(); n > begin+budget/4 {
			t.Fatalf("%d reads take %d bytes, the budget is %d", i+1, n-begin, budget)
		}
	}
	if o.ks.Pending() {
		t.Error("reads changed something")
	}
}

// What is on its way to the backing is counted as such.
func TestPinnedEntriesAreCounted(t *testing.T) {
	var m *state.OfMap[int64, int64]
	o := newOne(t, newCommitted(), 1, func(s state.Setup) { m = state.Map(s, "m", codec.Int64, codec.Int64) })
	for i := range int64(1000) {
		m.Put(i, i)
	}
	if err := o.ks.Freeze(&o.builder, 1); err != nil {
		t.Fatal(err)
	}
	if p, all := o.ks.Pinned(), o.ks.Memory(); p < all/2 || p > 2*all {
		t.Errorf("%d bytes are pinned of %d", p, all)
	}
	if o.ks.Evict(); o.ks.Memory() < 1000*16 {
		t.Error("what is not committed was dropped")
	}
	o.store.apply(o.builder.Finish())
	o.store.id = 1
	if p := o.ks.Pinned(); p != 0 {
		t.Errorf("%d bytes are pinned after the commit", p)
	}
	if o.ks.Evict(); o.ks.Memory() != 0 {
		t.Errorf("%d bytes are left in memory", o.ks.Memory())
	}
	if err := o.ks.Audit(); err != nil {
		t.Error(err)
	}
}

// In memory, what expires is reclaimed as fast as more comes.
func TestExpiredStateIsReclaimed(t *testing.T) {
	const perCut, live = 5_000, 4 // entries per cut; cuts until they expire
	var seen *state.OfMap[int64, codec.Empty]
	var last *state.OfValue[int64]
	var log *state.OfList[int64]
	o := newOne(t, newCommitted(), 0, func(s state.Setup) {
		seen = state.Map(s, "seen", codec.Int64, codec.Unit, state.TTL(live*time.Second))
		last = state.Value(s, "last", codec.Int64, state.TTL(live*time.Second))
		log = state.List(s, "log", codec.Int64, state.TTL(live*time.Second))
	})
	size := func() int64 {
		o.ks.Use("k", 0)
		return o.ks.Memory()
	}
	peak, usual := int64(0), int64(0)
	for cut := range 60 {
		o.ks.SetTime(segment.ProcessingTime, int64(cut)*1000)
		for i := range perCut {
			n := int64(cut*perCut + i)
			o.ks.Use("k", 0)
			seen.Put(n, codec.Nothing)
			log.Append(n)
			o.ks.Use(fmt.Sprint(n), 0)
			last.Set(n)
		}
		o.commit()
		if cut == live {
			usual = size()
		}
		peak = max(peak, size())
	}
	if peak > 3*usual {
		t.Errorf("%d bytes are in memory, where %d bytes have not expired", peak, usual)
	}
	o.ks.SetTime(segment.ProcessingTime, 1e9)
	for range 200 {
		o.commit()
	}
	if o.ks.Len() != 0 || seen.Len() != 0 || log.Len() != 0 {
		t.Errorf("%d keys are left when all has expired", o.ks.Len())
	}
}

// An entry that expired while the program was down is not restored.
func TestExpiredEntriesAreNotRestored(t *testing.T) {
	var m *state.OfMap[int64, int64]
	declare := func(s state.Setup) { m = state.Map(s, "m", codec.Int64, codec.Int64, state.TTL(time.Second)) }
	o := newOne(t, newCommitted(), 0, declare)
	o.ks.SetTime(segment.ProcessingTime, 0)
	m.Put(1, 1)
	o.ks.SetTime(segment.ProcessingTime, 500)
	m.Put(2, 2)
	o.commit()
	o = newOne(t, o.store, 0, declare)
	o.ks.SetTime(segment.ProcessingTime, 1000)
	for k, v := range o.store.entries {
		if err := o.ks.Restore(0, 1, []byte(k[4:]), v); err != nil {
			t.Fatal(err)
		}
	}
	if got := keysOf(m.All()); !slices.Equal(got, []int64{2}) {
		t.Errorf("the map has %v", got)
	}
	o.ks.SetTime(segment.ProcessingTime, 1499)
	if !m.Has(2) {
		t.Error("the entry expired too early")
	}
	o.ks.SetTime(segment.ProcessingTime, 1500)
	if m.Has(2) || m.Len() != 0 || keysOf(m.All()) != nil {
		t.Error("the entry did not expire")
	}
}

// What is written before there is a watermark must not be gone with the first one, and
// what is written before the handle had a time to live not with that.
func TestTimeToLiveBeginsWhenTimeIsKnown(t *testing.T) {
	const ttl, now = 1000, 1_700_000_000_000
	bothWays(t, func(t *testing.T, budget int64) {
		for name, before := range map[string][]state.Option{
			"no watermark":    {state.TTL(ttl*time.Millisecond, state.InEventTime)},
			"no time to live": nil,
		} {
			var v *state.OfValue[int64]
			var m *state.OfMap[int64, int64]
			declare := func(opts ...state.Option) func(s state.Setup) {
				return func(s state.Setup) {
					v = state.Value(s, "v", codec.Int64, opts...)
					m = state.Map(s, "m", codec.Int64, codec.Int64, opts...)
				}
			}
			start := func(store *committed, at int64) *one {
				o := newOne(t, store, budget, declare(state.TTL(ttl*time.Millisecond, state.InEventTime)))
				for k, e := range store.entries {
					if budget == 0 {
						if err := o.ks.Restore(0, uint16(k[3]), []byte(k[4:]), e); err != nil {
							t.Fatal(err)
						}
					}
				}
				o.ks.SetTime(segment.EventTime, at)
				return o
			}
			expect := func(what string, want bool) {
				t.Helper()
				_, ok := v.Lookup()
				if ok != want || m.Has(1) != want || (m.Len() == 1) != want || (keysOf(m.All()) != nil) != want {
					t.Errorf("%s: %s: the value is there: %v, the entry: %v, want %v", name, what, ok, m.Has(1), want)
				}
			}
			o := newOne(t, newCommitted(), budget, declare(before...))
			v.Set(1)
			m.Put(1, 1)
			expect("written", true)
			o.commit()
			o = start(o.store, now)
			expect("read when there is a watermark", true)
			if n := o.commit(); n != 2 {
				t.Errorf("%s: the first read changed %d entries, want 2", name, n)
			}
			o = start(o.store, now+ttl-1)
			expect("just before", true)
			if n := o.commit(); n != 0 {
				t.Errorf("%s: another read changed %d entries", name, n)
			}
			o = start(o.store, now+ttl)
			expect("when it is over", false)
			_ = start(o.store, now)
			expect("before", true)
		}
	})
}

// A new version of the app takes the time to live away, or counts it by another clock. What
// has expired stays away, and what is read stays, over restarts and merges.
func TestTimeToLiveIsTakenAwayWithTheFirstRead(t *testing.T) {
	const ttl, now = 1000, 1_700_000_000_000
	for name, opts := range map[string][]state.Option{
		"none":          nil,
		"another clock": {state.TTL(ttl*time.Millisecond, state.InEventTime)},
	} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, budget int64) {
				var v *state.OfValue[int64]
				var m *state.OfMap[int64, int64]
				start := func(store *committed, at int64, opts ...state.Option) *one {
					o := newOne(t, store, budget, func(s state.Setup) {
						v = state.Value(s, "v", codec.Int64, opts...)
						m = state.Map(s, "m", codec.Int64, codec.Int64, opts...)
					})
					o.ks.SetTime(segment.ProcessingTime, at)
					o.ks.SetTime(segment.EventTime, now) // stands still
					if budget == 0 {
						o.restore()
					}
					return o
				}
				expect := func(what string, want ...int64) {
					t.Helper()
					_, ok := v.Lookup()
					if got := keysOf(m.All()); !ok || !slices.Equal(got, want) || m.Len() != len(want) || m.Has(0) {
						t.Errorf("%s: the value is there: %v, the map has %v, want %v", what, ok, got, want)
					}
				}
				o := start(newCommitted(), now, state.TTL(ttl*time.Millisecond))
				m.Put(0, 0)
				o.ks.SetTime(segment.ProcessingTime, now+ttl/2)
				v.Set(1)
				m.Put(1, 1)
				m.Put(2, 2)
				o.commit()
				o = start(o.store, now+ttl, opts...)
				expect("the first read", 1, 2)
				if n := o.commit(); n != 3 {
					t.Errorf("the first read wrote %d entries, want 3", n)
				}
				o.ks.Evict()
				o.ks.SetTime(segment.ProcessingTime, now+10*ttl)
				expect("later", 1, 2)
				if n := o.commit(); n != 0 {
					t.Errorf("another read wrote %d entries", n)
				}
				start(o.store, now+10*ttl, opts...)
				expect("after a restart", 1, 2)
				for k, b := range o.store.entries {
					if h, _, err := segment.CutHeader(b); err != nil || h.Domain == segment.ProcessingTime && h.Expires > now+ttl {
						t.Errorf("%x is stored with %+v, which a merge would drop: %v", k, h, err)
					}
				}
			})
		})
	}
}

// What was to expire while a state had no time to live is there when a new version brings it
// back, and counts as written when it is read first.
func TestTimeToLiveThatComesBackBeginsWithTheFirstRead(t *testing.T) {
	const ttl, now = 1000, 1_700_000_000_000
	bothWays(t, func(t *testing.T, budget int64) {
		var v *state.OfValue[int64]
		var m *state.OfMap[int64, int64]
		start := func(store *committed, at int64) *one {
			o := newOne(t, store, budget, func(s state.Setup) {
				v = state.Value(s, "v", codec.Int64, state.TTL(ttl*time.Millisecond))
				m = state.Map(s, "m", codec.Int64, codec.Int64, state.TTL(ttl*time.Millisecond))
			})
			o.ks.SetTime(segment.ProcessingTime, at)
			if budget == 0 {
				o.restore()
			}
			return o
		}
		expect := func(what string, want bool) {
			t.Helper()
			_, ok := v.Lookup()
			if got := keysOf(m.All()); ok != want || slices.Contains(got, 1) != want || m.Has(0) {
				t.Errorf("%s: the value is there: %v, the map has %v", what, ok, got)
			}
		}
		o := start(newCommitted(), now-1)
		m.Put(0, 0) // expires when the time to live is taken away
		o.ks.SetTime(segment.ProcessingTime, now)
		v.Set(1)
		m.Put(1, 1)
		o.commit()
		span := segment.Spans{{Clock: segment.ProcessingTime, After: now + ttl - 1, Until: now + 5*ttl}}
		o.store.spared = map[uint16]segment.Spans{1: span, 2: span}
		o = start(o.store, now+5*ttl)
		expect("when it comes back", true)
		if n := o.commit(); n != 2 {
			t.Errorf("the first read wrote %d entries, want 2", n)
		}
		start(o.store, now+6*ttl-1)
		expect("before it is over", true)
		start(o.store, now+6*ttl)
		expect("when it is over", false)
	})
}

// What is removed stays away, also if it had expired when it was: timers that fire in a
// drain are ahead of event time, which goes on where the records left it.
func TestWhatIsRemovedAfterItExpiredStaysAwayWhenTimeGoesBack(t *testing.T) {
	bothWays(t, func(t *testing.T, budget int64) {
		var v *state.OfValue[int64]
		var m *state.OfMap[int64, int64]
		var l *state.OfList[int64]
		start := func(store *committed, at int64) *one {
			ttl := state.TTL(time.Second, state.InEventTime)
			o := newOne(t, store, budget, func(s state.Setup) {
				v = state.Value(s, "v", codec.Int64, ttl)
				m = state.Map(s, "m", codec.Int64, codec.Int64, ttl)
				l = state.List(s, "l", codec.Int64, ttl)
			})
			o.ks.SetTime(segment.EventTime, at)
			if budget == 0 {
				o.restore()
			}
			return o
		}
		for name, remove := range map[string]func(){
			"cleared": func() { v.Clear(); m.Clear(); l.Clear() },
			"deleted": func() { v.Clear(); m.Delete(1); m.Delete(2); l.Clear() },
			"set and cleared": func() {
				v.Set(2)
				m.Put(1, 2)
				v.Clear()
				m.Clear()
				l.Append(3)
				l.Clear()
			},
		} {
			o := start(newCommitted(), 0)
			v.Set(1)
			m.Put(1, 1)
			m.Put(2, 1)
			l.AppendAll(1, 2)
			o.commit()
			o = start(o.store, 100)
			o.ks.SetTime(segment.EventTime, 5000)
			if _, ok := v.Lookup(); ok || m.Has(1) || m.Len() != 0 || l.Len() != 0 {
				t.Fatalf("%s: what expired is there", name)
			}
			for range l.All() {
				t.Fatalf("%s: an element that expired is there", name)
			}
			remove()
			o.ks.SetTime(segment.EventTime, 100)
			o.commit()
			start(o.store, 100)
			if _, ok := v.Lookup(); ok || m.Len() != 0 || l.Len() != 0 {
				t.Errorf("%s: the value is there: %v, so are %d entries and %d elements", name, ok, m.Len(), l.Len())
			}
		}
	})
}

// So it is with what memory forgot of it: what a loop passed over before the list began, and
// what was looked at and dropped.
func TestWhatIsRemovedAfterItExpiredIsFoundAgain(t *testing.T) {
	bothWays(t, func(t *testing.T, budget int64) {
		const entries = 20
		var v *state.OfValue[int64]
		var m *state.OfMap[int64, int64]
		var l *state.OfList[int64]
		start := func(store *committed, at int64) *one {
			ttl := state.TTL(time.Second, state.InEventTime)
			o := newOne(t, store, budget, func(s state.Setup) {
				v, m, l = state.Value(s, "v", codec.Int64), state.Map(s, "m", codec.Int64, codec.Int64, ttl), state.List(s, "l", codec.Int64, ttl)
			})
			o.ks.SetTime(segment.EventTime, at)
			if budget == 0 {
				o.restore()
			}
			return o
		}
		o := start(newCommitted(), 0)
		l.AppendAll(1, 2)
		for i := range int64(entries) {
			m.Put(i, i)
		}
		o.ks.SetTime(segment.EventTime, 900)
		l.AppendAll(3, 4)
		o.commit()
		o = start(o.store, 900)
		v.Set(1) // the key stays in memory
		o.ks.SetTime(segment.EventTime, 1500)
		for i := range int64(entries) {
			if m.Has(i) {
				t.Fatalf("entry %d is there", i)
			}
		}
		if a, b := len(keysOf(m.All())), len(keysOf(l.All())); a != 0 || b != 2 {
			t.Fatalf("there are %d entries and %d elements, want 0 and 2", a, b)
		}
		o.ks.Evict()
		o.ks.Use("k", 0)
		m.Clear()
		l.Clear()
		o.ks.SetTime(segment.EventTime, 900)
		o.commit()
		start(o.store, 900)
		if m.Len() != 0 || l.Len() != 0 {
			t.Errorf("%d entries and %d elements are there", m.Len(), l.Len())
		}
	})
}

// Event time is at 20, and was at 100 for the key k before the key-groups came together.
func TestTimeOfAKeyIsNotBeforeTheFloorOfItsKeyGroup(t *testing.T) {
	bothWays(t, func(t *testing.T, budget int64) {
		var v *state.OfValue[int64]
		var m *state.OfMap[int64, int64]
		var l *state.OfList[int64]
		var b *state.OfBroadcast[int64, int64]
		start := func(store *committed, at int64, floors []int64) *one {
			ttl := state.TTL(80*time.Millisecond, state.InEventTime)
			o := newOne(t, store, budget, func(s state.Setup) {
				v = state.Value(s, "v", codec.Int64, ttl)
				m = state.Map(s, "m", codec.Int64, codec.Int64, ttl)
				l = state.List(s, "l", codec.Int64, ttl)
				b = state.Broadcast(s, "b", codec.Int64, codec.Int64, ttl)
			})
			o.ks.SetTime(segment.EventTime, at)
			o.ks.SetFloors(floors, floors)
			if budget == 0 {
				o.restore()
			} else if err := o.ks.LoadBroadcast(); err != nil {
				t.Fatal(err)
			}
			return o
		}
		has := func(want bool) {
			t.Helper()
			if _, ok := v.Lookup(); ok != want || m.Has(1) != want || len(keysOf(m.All())) > 0 != want || len(keysOf(l.All())) > 0 != want {
				t.Errorf("there are the value: %v, the entry: %v, %d entries and %d elements, want %v", ok, m.Has(1), m.Len(), l.Len(), want)
			}
		}
		set := func() {
			v.Set(1)
			m.Put(1, 1)
			l.Append(1)
		}
		o := start(newCommitted(), 10, nil)
		o.ks.Broadcasting(true)
		b.Put(1, 1)
		o.ks.Broadcasting(false)
		for kg, key := range []string{"k", "other"} {
			o.ks.Use(key, uint16(kg))
			set()
		}
		o.commit()

		o = start(o.store, 20, []int64{100, 20})
		if o.ks.Floor() != 100 {
			t.Errorf("the floor is %d, want 100", o.ks.Floor())
		}
		has(false)
		if b.Has(1) {
			t.Error("a broadcast entry is there that had expired for the key")
		}
		set()
		has(true)
		o.ks.Use("other", 1)
		has(true)
		if !b.Has(1) {
			t.Error("a broadcast entry expired by the time of another key")
		}
		o.ks.SetTime(segment.EventTime, 150)
		o.ks.SetFloors(nil, nil)
		has(false)
		o.ks.Use("k", 0)
		has(true)
		o.commit()
		start(o.store, 179, nil)
		has(true)
		start(o.store, 180, nil)
		has(false)
		if err := o.ks.Err(); err != nil {
			t.Error(err)
		}
	})
}

// A timer for the last millisecond that there is fires at the end of the input.
func TestWhatIsWrittenAtTheEndOfTimeIsThere(t *testing.T) {
	bothWays(t, func(t *testing.T, budget int64) {
		var v *state.OfValue[int64]
		var m *state.OfMap[int64, int64]
		o := newOne(t, newCommitted(), budget, func(s state.Setup) {
			ttl := state.TTL(50*time.Millisecond, state.InEventTime, state.OnRead)
			v = state.Value(s, "v", codec.Int64, ttl)
			m = state.Map(s, "m", codec.Int64, codec.Int64, ttl)
		})
		for _, at := range []int64{math.MinInt64 + 1, 0, math.MaxInt64 - 60, math.MaxInt64 - 1, 0} {
			o.ks.SetTime(segment.EventTime, at)
			o.ks.Use("k", 0)
			v.Set(at)
			m.Put(at, at)
			for range 2 {
				if v.Get() != at || m.Get(at) != at {
					t.Errorf("at %d there are %d and %d", at, v.Get(), m.Get(at))
				}
			}
		}
		if err := o.ks.Err(); err != nil {
			t.Error(err)
		}
	})
}

// While timers of one moment fire, event time goes back and forth. What has expired for one
// of them is still there for the next, also if a checkpoint is taken between the two.
func TestWhatHasExpiredForATimerIsThereForAnEarlierOne(t *testing.T) {
	bothWays(t, func(t *testing.T, budget int64) {
		var v *state.OfValue[int64]
		var m *state.OfMap[int64, int64]
		var l *state.OfList[int64]
		o := newOne(t, newCommitted(), budget, func(s state.Setup) {
			ttl := state.TTL(50*time.Millisecond, state.InEventTime)
			v = state.Value(s, "v", codec.Int64, ttl)
			m = state.Map(s, "m", codec.Int64, codec.Int64, ttl)
			l = state.List(s, "l", codec.Int64, ttl)
		})
		has := func(want bool) {
			t.Helper()
			o.ks.Use("k", 0)
			if _, ok := v.Lookup(); ok != want || m.Has(1) != want || len(keysOf(l.All())) > 0 != want {
				t.Errorf("there are the value: %v, the entry: %v, %d elements, want %v", ok, m.Has(1), l.Len(), want)
			}
		}
		o.ks.SetTime(segment.EventTime, 10)
		o.ks.Use("k", 0)
		v.Set(1)
		m.Put(1, 1)
		l.Append(1)
		o.commit()
		o.ks.SetTimeOfTimer(95)
		has(false)
		o.commit()
		o.ks.SetTimeOfTimer(40)
		has(true)
		o.ks.SetTime(segment.EventTime, 100)
		has(false)
		o.commit()
		if n := o.ks.Len(); budget == 0 && n != 0 {
			t.Errorf("%d keys are in memory, want none: all has expired", n)
		}
		if err := o.ks.Err(); err != nil {
			t.Error(err)
		}
	})
}

// A list whose elements have expired goes on behind them, also when a merge of segments
// has dropped what the list still knew of.
func TestAListGoesOnWhenItsExpiredElementsWereMergedAway(t *testing.T) {
	var l *state.OfList[int64]
	start := func(store *committed) *one {
		o := newOne(t, store, 100_000, func(s state.Setup) {
			l = state.List(s, "l", codec.Int64, state.TTL(time.Second, state.InEventTime))
		})
		o.ks.SetTime(segment.EventTime, 0)
		return o
	}
	o := start(newCommitted())
	l.Append(0)
	o.commit()
	o.ks.SetTime(segment.EventTime, 900)
	l.AppendAll(1, 2)
	o.commit()
	o = start(o.store)
	o.ks.SetTime(segment.EventTime, 1500)
	if n := len(keysOf(l.All())); n != 2 { // from here on it is known where the list begins
		t.Fatalf("%d elements, want 2", n)
	}
	o.ks.SetTime(segment.EventTime, 5000)
	for k := range o.store.entries { // as a merge does
		delete(o.store.entries, k)
	}
	o.store.keys = nil
	l.AppendAll(3, 4)
	var got []int64
	for _, v := range l.All() {
		got = append(got, v)
	}
	first, ok := l.PopFront()
	if !slices.Equal(got, []int64{3, 4}) || !ok || first != 3 || l.Len() != 1 {
		t.Errorf("the list has %v, the first is %d, %v, and %d are left", got, first, ok, l.Len())
	}
}

func TestWhatWasWrittenBeforeTimeWasKnownIsReclaimed(t *testing.T) {
	var v *state.OfValue[int64]
	var m *state.OfMap[int64, int64]
	declare := func(s state.Setup) {
		v = state.Value(s, "v", codec.Int64, state.TTL(time.Second, state.InEventTime))
		m = state.Map(s, "m", codec.Int64, codec.Int64, state.TTL(time.Second, state.InEventTime))
	}
	for at, want := range map[int64]int{5000: 1, 5999: 1, 6000: 0} {
		o := newOne(t, newCommitted(), 0, declare)
		v.Set(1)
		m.Put(1, 1)
		o.commit()
		for _, at := range []int64{5000, at} {
			o.ks.SetTime(segment.EventTime, at)
			o.commit()
			o.commit() // to free the key
		}
		if o.ks.Len() != want {
			t.Errorf("%d keys are there at %d, want %d", o.ks.Len(), at, want)
		}
	}
}

func TestOnlyTheOwnerFreezesABroadcastState(t *testing.T) {
	store := newCommitted()
	type part struct {
		ks    *state.Keyspace[string]
		rules *state.OfBroadcast[string, int64]
	}
	start := func(backed bool) (parts []part) {
		for i := range 2 {
			p := part{}
			cfg := state.Config{FirstKeyGroup: i * 2, KeyGroups: 2}
			if backed {
				cfg.Backing, cfg.MemoryBytes, cfg.Committed = store, 1, func() int64 { return store.id }
			}
			p.ks = state.NewKeyspace(codec.String, cfg)
			scope := state.NewScope("op")
			p.rules = state.Broadcast(setup{scope}, "rules", codec.String, codec.Int64)
			p.ks.Attach(scope, []uint16{7})
			if err := p.ks.LoadBroadcast(); err != nil {
				t.Fatal(err)
			}
			if !backed {
				for k, v := range store.entries {
					if err := p.ks.Restore(uint16(k[0])<<8|uint16(k[1]), uint16(k[2])<<8|uint16(k[3]), []byte(k[4:]), v); err != nil {
						t.Fatal(err)
					}
				}
			}
			parts = append(parts, p)
		}
		return parts
	}
	for round, backed := range []bool{false, true, false} {
		var frozen segment.Run
		for i, p := range start(backed) {
			if p.rules.Len() != round {
				t.Errorf("round %d: subtask %d starts with %d rules", round, i, p.rules.Len())
			}
			p.ks.Broadcasting(true)
			p.rules.Put(fmt.Sprint("rule", round), int64(round))
			p.rules.Put("passing", 0)
			p.rules.Delete("passing")
			p.ks.Broadcasting(false)
			var b segment.Builder
			if err := p.ks.Freeze(&b, 1); err != nil {
				t.Fatal(err)
			}
			if want := 1 - i; b.Len() != want {
				t.Errorf("round %d: subtask %d froze %d entries, want %d", round, i, b.Len(), want)
			}
			if err := errors.Join(p.ks.Audit(), p.ks.Err()); err != nil {
				t.Error(err)
			}
			if i == 0 {
				frozen = b.Finish()
			}
		}
		store.apply(frozen)
	}
}

func TestABroadcastStateIsWrittenByItsStreamOnly(t *testing.T) {
	var rules *state.OfBroadcast[string, int64]
	o := newOne(t, newCommitted(), 0, func(s state.Setup) { rules = state.Broadcast(s, "rules", codec.String, codec.Int64) })
	rules.Put("a", 1)
	if err := o.ks.Err(); err == nil || !strings.Contains(err.Error(), `operator "op": state "rules": a broadcast state is written only`) {
		t.Errorf("the error is %v", err)
	}
	if rules.Has("a") {
		t.Error("it was written")
	}
}

var errDisk = errors.New("the disk is gone")

// A read that fails gives zero values; the keyspace keeps the first error for whoever
// drives it.
func TestAFailedReadSurfacesOnce(t *testing.T) {
	store := newCommitted()
	var v *state.OfValue[int64]
	var m *state.OfMap[int64, int64]
	var l *state.OfList[int64]
	declare := func(s state.Setup) {
		v, m, l = state.Value(s, "v", codec.Int64), state.Map(s, "m", codec.Int64, codec.Int64), state.List(s, "l", codec.Int64)
	}
	o := newOne(t, store, 1, declare)
	v.Set(1)
	m.Put(1, 1)
	l.AppendAll(1, 2)
	o.commit()
	for name, read := range map[string]func() bool{
		"v": func() bool { return v.Get() == 0 },
		"m": func() bool { return !m.Has(1) && m.Get(1) == 0 && m.Len() == 0 && keysOf(m.All()) == nil },
		"l": func() bool {
			_, ok := l.PopFront()
			return !ok && l.Len() == 0 && keysOf(l.All()) == nil
		},
	} {
		store.fail = nil
		o := newOne(t, store, 1, declare)
		store.fail = errDisk
		if !read() {
			t.Errorf("%s: what can't be read is not zero", name)
		}
		m.Clear()
		var read *state.ReadError
		if err := o.ks.Err(); !errors.As(err, &read) || read.State != name || !errors.Is(err, errDisk) {
			t.Errorf("%s: the error is %v", name, err)
		}
	}
}

// A value that can't be decoded is not one that can't be read: a restart won't help.
func TestDamagedEntriesAreReported(t *testing.T) {
	for name, entry := range map[string][2]string{
		"header": {"\x00\x00\x00\x01k\x00\x01\x80\x00\x00\x00\x00\x00\x00\x01", ""},
		"value":  {"\x00\x00\x00\x01k\x00\x01\x80\x00\x00\x00\x00\x00\x00\x01", "\x04xy"},
		"key":    {"\x00\x00\x00\x01k\x00\x01\x80", "\x04\x00\x00\x00\x00\x00\x00\x00\x01"},
	} {
		store := newCommitted()
		store.entries[entry[0]] = []byte(entry[1])
		store.keys = nil
		var m *state.OfMap[int64, int64]
		o := newOne(t, store, 1, func(s state.Setup) { m = state.Map(s, "m", codec.Int64, codec.Int64) })
		if keysOf(m.All()); o.ks.Err() == nil || !strings.HasPrefix(o.ks.Err().Error(), `operator "op": state "m": `) {
			t.Errorf("%s: the error is %v", name, o.ks.Err())
		}
	}
	var l *state.OfList[int64]
	o := newOne(t, newCommitted(), 0, func(s state.Setup) { l = state.List(s, "l", codec.Int64) })
	if err := o.ks.Restore(0, 1, []byte("k\x00\x01\x00"), []byte{4}); err == nil || !strings.Contains(err.Error(), "is not the key of a list state") {
		t.Errorf("a list with an index of one byte: %v", err)
	}
	_ = l
}

func TestMistakesInDeclarationsAreFound(t *testing.T) {
	for want, declare := range map[string]func(s state.Setup){
		`state "m": map key: codec int64: state_test.cents embeds a codec.int64Codec`: func(s state.Setup) { state.Map(s, "m", codec.Codec[int64](cents{codec.Int64}), codec.Int64) },
		`state "b": map key: codec int64: state_test.cents embeds a codec.int64Codec`: func(s state.Setup) { state.Broadcast(s, "b", codec.Codec[int64](cents{codec.Int64}), codec.Int64) },
		`state "m": map key: codec for string is nil`:                                 func(s state.Setup) { state.Map(s, "m", codec.Codec[string](nil), codec.Int64) },
		`state "m": codec for int64 is nil`:                                           func(s state.Setup) { state.Map(s, "m", codec.String, codec.Codec[int64](nil)) },
		`state "l": codec for int64 is nil`:                                           func(s state.Setup) { state.List(s, "l", codec.Codec[int64](nil)) },
		`state "l": the time to live must be`:                                         func(s state.Setup) { state.List(s, "l", codec.Int64, state.TTL(time.Microsecond)) },
		`state "r": the function that reduces is nil`:                                 func(s state.Setup) { state.Reducing(s, "r", nil, codec.Int64) },
		`state "a": the aggregator needs Zero`: func(s state.Setup) {
			state.Aggregating(s, "a", state.Aggregator[int, int64, int]{Codec: codec.Int64})
		},
		`state "b": the time to live of a broadcast state can't count from reads`: func(s state.Setup) {
			state.Broadcast(s, "b", codec.String, codec.Int64, state.TTL(time.Hour, state.OnRead))
		},
		`state name "x" used twice`: func(s state.Setup) {
			state.Value(s, "x", codec.Int64)
			state.List(s, "x", codec.Int64)
		},
	} {
		scope := state.NewScope("op")
		declare(setup{scope})
		if got := fmt.Sprint(scope.Errors()); !strings.Contains(got, `operator "op": `+want) {
			t.Errorf("errors are %s, want %s", got, want)
		}
		scope.Descriptors() // must not panic
	}
}

func TestDescriptorsTellKindCodecsAndClock(t *testing.T) {
	scope := state.NewScope("op")
	s := setup{scope}
	state.Map(s, "m", codec.String, codec.Int64)
	state.List(s, "l", codec.Bool, state.TTL(time.Hour))
	state.Reducing(s, "r", func(a, b int64) int64 { return a }, codec.Int64)
	state.Aggregating(s, "a", state.Aggregator[int, int64, int]{Codec: codec.Int64})
	state.Broadcast(s, "b", codec.Int32, codec.String, state.TTL(time.Hour, state.InEventTime))
	want := []state.Descriptor{
		{Operator: "op", Name: "m", Kind: "map", SubCodec: "string", ValueCodec: "int64", ValueVersion: 1, Clock: "none"},
		{Operator: "op", Name: "l", Kind: "list", ValueCodec: "bool", ValueVersion: 1, Clock: "processing"},
		{Operator: "op", Name: "r", Kind: "reducing", ValueCodec: "int64", ValueVersion: 1, Clock: "none"},
		{Operator: "op", Name: "a", Kind: "aggregating", ValueCodec: "int64", ValueVersion: 1, Clock: "none"},
		{Operator: "op", Name: "b", Kind: "broadcast", SubCodec: "int32", ValueCodec: "string", ValueVersion: 1, Clock: "event"},
	}
	if got := scope.Descriptors(); !slices.Equal(got, want) {
		t.Errorf("descriptors are\n%+v, want\n%+v", got, want)
	}
}

// The layout is part of the format of checkpoints.
func TestLayoutOfEntries(t *testing.T) {
	var write func(ks *state.Keyspace[string])
	o := newOne(t, newCommitted(), 0, func(s state.Setup) {
		m := state.Map(s, "m", codec.Int64, codec.Bool)
		l := state.List(s, "l", codec.String)
		b := state.Broadcast(s, "b", codec.String, codec.Bool)
		r := state.Reducing(s, "r", func(a, b bool) bool { return b }, codec.Bool)
		write = func(ks *state.Keyspace[string]) {
			ks.Use("k\x00", 3)
			m.Put(-1, true)
			l.AppendAll("a", "b")
			r.Add(true)
			ks.Broadcasting(true)
			b.Put("x", true)
		}
	})
	write(o.ks)
	o.commit()
	want := map[string]string{
		"\x00\x03\x00\x01k\x00\xff\x00\x01\x7f\xff\xff\xff\xff\xff\xff\xff": "\x04\x01",
		"\x00\x03\x00\x02k\x00\xff\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00": "\x04a",
		"\x00\x03\x00\x02k\x00\xff\x00\x01\x00\x00\x00\x00\x00\x00\x00\x01": "\x04b",
		"\x00\x00\x00\x03x":     "\x04\x01",
		"\x00\x03\x00\x04k\x00": "\x04\x01",
	}
	got := map[string]string{}
	for k, v := range o.store.entries {
		got[k] = string(v)
	}
	if !maps.Equal(got, want) {
		t.Errorf("entries are\n%q, want\n%q", got, want)
	}
}

// What is removed and set again between two cuts, and changed once more before it was
// encoded, is written as it was at the cut.
func TestWhatIsRemovedAndSetAgainIsWrittenAsItIs(t *testing.T) {
	bothWays(t, func(t *testing.T, budget int64) {
		var m *state.OfMap[int64, string]
		var l *state.OfList[string]
		var b *state.OfBroadcast[int64, string]
		declare := func(s state.Setup) {
			m, l = state.Map(s, "m", codec.Int64, codec.String), state.List(s, "l", codec.String)
			b = state.Broadcast(s, "b", codec.Int64, codec.String)
		}
		o := newOne(t, newCommitted(), budget, declare)
		if err := o.ks.LoadBroadcast(); err != nil {
			t.Fatal(err)
		}
		set := func(v string) {
			o.ks.Broadcasting(true)
			b.Put(1, v)
			o.ks.Broadcasting(false)
			o.ks.Use("k", 0)
			m.Put(1, v)
			if l.Len() == 0 {
				l.Append(v)
			}
			l.Set(0, v)
		}
		remove := func() {
			o.ks.Broadcasting(true)
			b.Delete(1)
			o.ks.Broadcasting(false)
			o.ks.Use("k", 0)
			m.Delete(1)
			l.Clear()
		}
		set("before")
		o.commit()
		remove()
		set("at the cut")
		o.id++
		o.ks.Cut(&o.builder, o.id)
		set("after it")
		remove()
		if _, err := o.ks.Encode(1000); err != nil {
			t.Fatal(err)
		}
		r := o.builder.Finish()
		defer r.Release()
		o.store.apply(r)
		o.store.id = o.id

		o = newOne(t, o.store, budget, declare)
		if budget == 0 {
			o.restore()
		}
		if err := o.ks.LoadBroadcast(); err != nil {
			t.Fatal(err)
		}
		o.ks.Use("k", 0)
		first, _ := l.At(0)
		if got, want := []string{m.Get(1), first, b.Get(1)}, slices.Repeat([]string{"at the cut"}, 3); !slices.Equal(got, want) {
			t.Errorf("map, list and broadcast state hold %q, want %q", got, want)
		}
	})
}

// A read of what is not in memory names the newest checkpoint for which any such thing was
// written, so that what was committed since need not be asked.
func TestReadNamesTheNewestCheckpointOfWhatIsNotInMemory(t *testing.T) {
	var v *state.OfValue[string]
	var m *state.OfMap[int64, string]
	store := newCommitted()
	store.id = 3 // restored
	o := newOne(t, store, 1000, func(s state.Setup) {
		v, m = state.Value(s, "v", codec.String), state.Map(s, "m", codec.Int64, codec.String)
	})
	named := func(key string) int64 {
		t.Helper()
		o.ks.Use(key, 0)
		v.Get()
		return o.store.newest
	}
	if got := named("before a cut"); got != math.MaxInt64 {
		t.Errorf("before the first cut a read names checkpoint %d, want none", got)
	}
	o.ks.Use("old", 0)
	v.Set("1")
	o.commit() // 4
	if got := named("a"); got != 3 {
		t.Errorf("with all in memory that was written, a read names checkpoint %d, want that of the restore, 3", got)
	}
	for range 3 { // 5 to 7
		o.ks.Use("young", 0)
		v.Set(strings.Repeat("x", 100))
		o.commit()
	}
	if got := named("b"); got != 3 {
		t.Errorf("after commits a read names checkpoint %d, want 3", got)
	}
	o.ks.Use("many", 0)
	for i := range int64(100) {
		m.Put(i, strings.Repeat("y", 10))
	}
	o.commit() // 8
	o.ks.Use("young", 0)
	v.Set("z") // can't go
	o.ks.Use("many", 0)
	m.Put(0, "z") // only its other entries can
	o.ks.Evict()
	if got := named("c"); got != 8 {
		t.Errorf("after what was written for checkpoint 8 was evicted, a read names %d", got)
	}
	o.commit() // 9
	o.commit() // 10
	if got := named("d"); got != 8 {
		t.Errorf("after further commits a read names checkpoint %d, want 8", got)
	}

	o = newOne(t, newCommitted(), 1, func(s state.Setup) { v = state.Value(s, "v", codec.String) })
	for range 4 {
		v.Set("1")
		o.commit()
	}
	o.ks.Evict()
	if got := named("k"); got != 4 || v.Get() != "1" {
		t.Errorf("after a key that was written for checkpoint 4 was evicted, a read names %d and gets %q", got, v.Get())
	}
}

// What was written before the handle had a time to live, or before there was a watermark,
// counts as written when it is read first. A loop is a read.
func TestALoopBeginsTheTimeToLive(t *testing.T) {
	const ttl, now = 1000, 1_700_000_000_000
	expires := state.TTL(ttl*time.Millisecond, state.InEventTime)
	for name, before := range map[string][]state.Option{"no watermark": {expires}, "no time to live": nil} {
		t.Run(name, func(t *testing.T) {
			bothWays(t, func(t *testing.T, budget int64) {
				var m *state.OfMap[int64, int64]
				declare := func(opts ...state.Option) func(s state.Setup) {
					return func(s state.Setup) { m = state.Map(s, "m", codec.Int64, codec.Int64, opts...) }
				}
				o := newOne(t, newCommitted(), budget, declare(before...))
				m.Put(1, 1)
				o.commit()
				o = newOne(t, o.store, budget, declare(expires))
				if budget == 0 {
					o.restore()
				}
				for i, at := range []int64{now, now + ttl, now + 100*ttl} {
					o.ks.SetTime(segment.EventTime, at)
					o.ks.Use("k", 0)
					want := 0
					if i == 0 {
						want = 1
					}
					if got := len(keysOf(m.All())); got != want {
						t.Errorf("%d ms later there are %d entries, want %d", at-now, got, want)
					}
					o.commit()
					o.ks.Evict()
				}
			})
		})
	}
}

// cents hides the order of the codec that it embeds.
type cents struct{ codec.Codec[int64] }

func TestCodecThatHidesAnOrderIsGoodForValues(t *testing.T) {
	scope := state.NewScope("op")
	state.Value(setup{scope}, "v", codec.Codec[int64](cents{codec.Int64}))
	state.Map(setup{scope}, "m", codec.String, codec.Codec[int64](cents{codec.Int64}))
	if errs := scope.Errors(); len(errs) > 0 {
		t.Error(errs)
	}
}
