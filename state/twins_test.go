package state_test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"hash/crc32"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
	"github.com/weirstream/weir/state/segment"
)

var (
	seedFlag  = flag.Uint64("seed", 1, "the first seed of TestPebbleShowsWhatMemoryShows")
	seedsFlag = flag.Int("seeds", 0, "how many seeds, from the first one on; by default 3, and 1 with -short")
	stepsFlag = flag.Int("steps", 3000, "how many steps a seed has")
	forFlag   = flag.Duration("for", 0, "after what time to begin no further seed; by default never")
)

// Whatever handlers do, and however often state is cut, committed, merged, evicted, lost,
// taken over by an instance that stood by, rescaled, moved through a savepoint or given
// other times to live: the Pebble backend shows what the one in memory shows. And a map
// without a time to live is one of Go's on both.
//
// A seed is a row of steps that are done to twins: the backend in memory, and Pebble over
// a store that is far away and over a directory. Each has a checkpoint writer of its own,
// which merges beside it. What a read gives is compared on the spot. The model of all that
// expires is the twin in memory, which TestHandlesAreMapsAndSlices compares with plain
// values.
//
// It turns red without the guards ask-up-to-eviction, carry-over, in-use, newest-wins and
// tombstones; if what is not committed is evicted or trimmed; if a merge goes by the wrong
// clock or drops tombstones of what expired; and if a merge or a read drops what a state that
// lost its time to live is spared. With some more seeds it does so without frozen-values. That
// a merge keeps what expired shows nowhere. For more seeds:
//
//	go test ./state -run TestPebbleShowsWhatMemoryShows -timeout 0 -seed=1000 -seeds=100000 -for=15m
func TestPebbleShowsWhatMemoryShows(t *testing.T) {
	seeds := *seedsFlag
	if seeds == 0 {
		if seeds = 3; testing.Short() {
			seeds = 1
		}
	}
	begin := time.Now()
	for seed := *seedFlag; seed < *seedFlag+uint64(seeds) && (*forFlag == 0 || time.Since(begin) < *forFlag); seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) { newTwins(t, seed).run(*stepsFlag) })
		if t.Failed() {
			return
		}
	}
}

// twins are backends to which the same is done.
type twins struct {
	*testing.T
	rng       *rand.Rand
	all       []*twin // the first one is in memory
	keys      []string
	keyGroups int
	subtasks  int
	now       atomic.Int64 // processing time; writers ask from goroutines of their own
	moment
	cut, stored moment // at the last cut, and at the last commit
	cutting     bool   // a checkpoint was cut and not given to the writers
	id          int64  // of the last one
	incarnation uint32
	step        int
}

// moment is what goes back in a crash.
type moment struct {
	ttls  twinTTLs
	away  [4]bool // whose was taken away
	event int64
	plain map[string]map[string]int64 // by key
}

func (m moment) clone() moment {
	plain := map[string]map[string]int64{}
	for k, entries := range m.plain {
		plain[k] = maps.Clone(entries)
	}
	return moment{m.ttls, m.away, m.event, plain}
}

// twin is a backend, with its checkpoint store.
type twin struct {
	name   string
	budget int64 // of each keyspace
	store  *faultstore.Store
	// local and standby are nil in memory.
	local, standby       *pebble.Store
	localDir, standbyDir string
	at                   pebble.ID // what local equals

	writer *checkpoint.Writer
	ref    offsets.ManifestRef // the last committed checkpoint, or none
	done   atomic.Int64        // its number
	spaces []*twinSpace        // by subtask
	states []checkpoint.StateInfo
}

// twinSpace is the state of one subtask.
type twinSpace struct {
	ks      *state.Keyspace[string]
	h       *twinHandles
	builder segment.Builder
	encoded bool // all of the last cut
	runs    []segment.Run
}

// twinTTLs says how value, map, queue and list expire: indexes of twinClocks.
type twinTTLs [4]int

var twinClocks = [][]state.Option{
	nil,
	{state.TTL(64 * time.Millisecond)},
	{state.TTL(200*time.Millisecond, state.OnRead)},
	{state.TTL(64*time.Millisecond, state.InEventTime)},
	{state.TTL(200*time.Millisecond, state.InEventTime, state.OnRead)},
}

type twinHandles struct {
	value  *state.OfValue[[]byte]
	byText *state.OfMap[string, []byte]
	queue  *state.OfMap[int64, int64]
	list   *state.OfList[[]byte]
	// What follows never expires.
	plain     *state.OfMap[string, []int64] // of one number each
	numbers   *state.OfList[int64]
	fold      *state.OfAggregating[int64, []int64, int]
	rules     *state.OfBroadcast[string, int64]
	onEvent   *state.Timers
	onClock   *state.Timers
	described []state.Descriptor
}

func declareTwin(scope *state.Scope, ttls twinTTLs) *twinHandles {
	s := setup{scope}
	h := &twinHandles{
		value:   state.Value(s, "value", codec.Bytes, twinClocks[ttls[0]]...),
		byText:  state.Map(s, "byText", codec.String, codec.Bytes, twinClocks[ttls[1]]...),
		queue:   state.Map(s, "queue", codec.Int64, codec.Int64, twinClocks[ttls[2]]...),
		list:    state.List(s, "list", codec.Bytes, twinClocks[ttls[3]]...),
		plain:   state.Map(s, "plain", codec.String, codec.JSON[[]int64]()),
		numbers: state.List(s, "numbers", codec.Int64),
		fold: state.Aggregating(s, "fold", state.Aggregator[int64, []int64, int]{
			Zero: func() []int64 { return nil },
			Add: func(a []int64, v int64) []int64 {
				if len(a) == 5 {
					a[0] += v // in place
					return a
				}
				return append(a, v)
			},
			Result: func(a []int64) (n int) {
				for i, v := range a {
					n += i * int(v)
				}
				return n
			},
			Codec: codec.JSON[[]int64](),
		}),
		rules: state.Broadcast(s, "rules", codec.String, codec.Int64),
	}
	h.onEvent, h.onClock = state.EventTimers(s), state.ProcessingTimers(s)
	h.described = scope.Descriptors()
	return h
}

// show tells all that there is under the current key.
func (h *twinHandles) show() string {
	var b strings.Builder
	v, ok := h.value.Lookup()
	fmt.Fprint(&b, "value=", brief(v), ok, " byText=")
	for k, v := range h.byText.All() {
		fmt.Fprintf(&b, "%q:%s,", k, brief(v))
	}
	fmt.Fprint(&b, h.byText.Len(), " queue=")
	for k, v := range h.queue.All() {
		fmt.Fprint(&b, k, ":", v, ",")
	}
	fmt.Fprint(&b, h.queue.Len(), " list=")
	for i, v := range h.list.All() {
		fmt.Fprint(&b, i, ":", brief(v), ",")
	}
	fmt.Fprint(&b, h.list.Len(), " numbers=")
	for i, v := range h.numbers.All() {
		fmt.Fprint(&b, i, ":", v, ",")
	}
	n, some := h.fold.Lookup()
	fmt.Fprint(&b, h.numbers.Len(), " fold=", n, some, " rules=")
	for k, v := range h.rules.All() {
		fmt.Fprintf(&b, "%q:%d,", k, v)
	}
	return b.String()
}

func brief(b []byte) string {
	return fmt.Sprintf("%.8x(%d,%08x)", b, len(b), crc32.ChecksumIEEE(b))
}

func newTwins(t *testing.T, seed uint64) *twins {
	r := &twins{T: t, rng: rand.New(rand.NewPCG(seed, 7)), keyGroups: 8, subtasks: 2}
	r.moment = moment{event: checkpoint.NoWatermark}.clone()
	for i := range r.ttls {
		r.ttls[i] = r.rng.IntN(len(twinClocks))
	}
	r.stored = r.clone()
	r.now.Store(1_700_000_000_000)
	r.keys = []string{"", "\x00", "\x00\x01", "\x00\xff", "a\x00", "\xff\xff\xff\xff", strings.Repeat("k", 3000)}
	for i := range 6 + r.rng.IntN(60) {
		r.keys = append(r.keys, fmt.Sprint("key", i))
	}
	tmp := t.TempDir()
	dir, err := checkpoint.OpenDir(filepath.Join(tmp, "store"))
	if err != nil {
		t.Fatal(err)
	}
	r.all = []*twin{
		{name: "memory", store: faultstore.Wrap(checkpoint.NewMem())},
		{name: "pebble", store: faultstore.Wrap(checkpoint.NewMem()), budget: 1},
		{name: "pebble over a directory", store: faultstore.Wrap(dir), budget: []int64{1, 2000, 20_000, 100_000}[seed%4]},
	}
	for i, w := range r.all[1:] {
		w.localDir, w.standbyDir = filepath.Join(tmp, fmt.Sprint("local", i)), filepath.Join(tmp, fmt.Sprint("standby", i))
		w.local, w.standby = r.open(w.localDir), r.open(w.standbyDir)
	}
	t.Cleanup(func() {
		for _, w := range r.all {
			r.must(w, "close", w.writer.Close(context.Background()))
			if w.local != nil {
				r.must(w, "close", errors.Join(w.local.Close(), w.standby.Close()))
			}
		}
	})
	r.start()
	return r
}

func (r *twins) open(dir string) *pebble.Store {
	s, err := pebble.Open(dir, "app", pebble.Options{CacheBytes: 1 << 20})
	if err != nil {
		r.Fatal(err)
	}
	return s
}

func (r *twins) must(w *twin, what string, err error) {
	r.Helper()
	if err != nil {
		r.Fatalf("step %d: %s: %s: %v", r.step, w.name, what, err)
	}
}

// same checks that every twin shows what the first one shows.
func (r *twins) same(what string, show func(*twin) string) {
	r.Helper()
	var want string
	for i, w := range r.all {
		got := show(w)
		if i == 0 {
			want = got
		} else if got != want {
			r.Fatalf("step %d: %s: %s: %.2000s\n%s: %.2000s", r.step, what, r.all[0].name, want, w.name, got)
		}
	}
}

func (r *twins) spaces(f func(w *twin, s *twinSpace)) {
	for _, w := range r.all {
		for _, s := range w.spaces {
			f(w, s)
			r.must(w, "state", s.ks.Err())
		}
	}
}

// with calls f with k as the current key.
func (r *twins) with(k string, f func(*twinHandles) string) {
	r.Helper()
	kg := keygroup.Of([]byte(k), r.keyGroups)
	ahead := r.rng.IntN(2) == 0
	r.same(fmt.Sprintf("key %q", k), func(w *twin) string {
		s := w.spaces[keygroup.Subtask(kg, r.subtasks, r.keyGroups)]
		if ahead {
			sought := []state.Sought[string]{{Key: k}}
			s.ks.Find(sought)
			s.ks.UseAt(k, uint16(kg), sought[0].Slot)
		} else {
			s.ks.Use(k, uint16(kg))
		}
		got := f(s.h)
		r.must(w, "state", s.ks.Err())
		return got
	})
}

func (r *twins) readAll() {
	for _, k := range r.keys {
		r.with(k, (*twinHandles).show)
		r.with(k, func(h *twinHandles) string {
			got := map[string]int64{}
			for sub, v := range h.plain.All() {
				got[sub] = v[0]
			}
			if !maps.Equal(got, r.plain[k]) {
				r.Fatalf("step %d: key %q: the plain map has %v, want %v", r.step, k, got, r.plain[k])
			}
			return ""
		})
	}
}

func (r *twins) run(steps int) {
	for r.step = range steps {
		switch p := r.rng.IntN(1000); {
		case p < 40:
			r.tick()
		case p < 80:
			r.cutAll()
		case p < 120:
			r.commit()
		case p < 200:
			n := 1 + r.rng.IntN(8)
			r.spaces(func(w *twin, s *twinSpace) { r.encode(w, s, n) })
		case p < 320:
			r.spaces(func(_ *twin, s *twinSpace) { s.ks.Evict() })
		case p < 330:
			r.crash()
		case p < 340:
			r.follow()
		case p < 360:
			r.rule()
		default:
			r.handle()
		}
		if r.step%10 == 0 {
			r.spaces(func(w *twin, s *twinSpace) { r.must(w, "audit", s.ks.Audit()) })
		}
	}
	r.readAll()
}

// text is a map key, often one that is hard to keep in order.
func (r *twins) text() string {
	long := strings.Repeat("long", 20)
	hard := []string{"", "\x00", "\x00\x00", "\xff", "\xff\xff", "a", "a\x00", "a\x01", "a\xff", "ab", "b", long, long + "\x00"}
	if r.rng.IntN(3) == 0 {
		return hard[r.rng.IntN(len(hard))]
	}
	return fmt.Sprint("s", r.rng.IntN(40))
}

// bytes is mostly short.
func (r *twins) bytes() []byte {
	n := r.rng.IntN(12)
	switch r.rng.IntN(400) {
	case 0:
		n = 100_000
	case 1, 2, 3:
		n = 3000
	}
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(r.rng.UintN(256))
	}
	return b
}

// handled is what a handler does to its current key, drawn once for all twins.
type handled struct {
	op           int
	n, m         int64 // keys and values of the queue, and others
	i            int   // an index of the lists
	a, b         string
	v            []byte
	rarely, desc bool
	event, clock time.Time // of timers
}

const handledOps = 25

func (r *twins) handle() {
	d := handled{
		op: r.rng.IntN(handledOps), n: r.rng.Int64N(30) - 10, m: r.rng.Int64N(30) - 10, i: r.rng.IntN(5),
		a: r.text(), b: r.text(), v: r.bytes(), rarely: r.rng.IntN(6) == 0, desc: r.rng.IntN(2) == 0,
	}
	d.event, d.clock = time.UnixMilli(max(r.event, 0)+d.m), time.UnixMilli(r.now.Load()+d.n)
	k := r.keys[r.rng.IntN(len(r.keys))]
	r.with(k, d.do)
	plain := r.plain[k]
	switch {
	case d.op < 2 && plain == nil:
		r.plain[k] = map[string]int64{d.a: d.n}
	case d.op < 2:
		plain[d.a] += d.n
	case d.op == 2 && d.rarely:
		delete(r.plain, k)
	case d.op == 2:
		delete(plain, d.a)
	}
}

// do returns what the handler was told.
func (d handled) do(h *twinHandles) (told string) {
	switch d.op {
	case 0, 1:
		v, ok := h.plain.Lookup(d.a)
		if !ok {
			v = []int64{0}
		}
		v[0] += d.n // in place
		h.plain.Put(d.a, v)
	case 2:
		if h.plain.Delete(d.a); d.rarely {
			h.plain.Clear()
		}
	case 3:
		h.value.Set(bytes.Clone(d.v))
	case 4:
		v, ok := h.value.Lookup()
		told = fmt.Sprint(brief(v), ok)
		if d.desc && len(v) > 0 {
			v[0]++
			h.value.Set(v)
		}
	case 5:
		h.value.Clear()
	case 6, 7:
		h.byText.Put(d.a, bytes.Clone(d.v))
	case 8:
		v, ok := h.byText.Lookup(d.a)
		told = fmt.Sprint(brief(v), ok)
		if d.desc && len(v) > 0 {
			v[0]++
			h.byText.Put(d.a, v)
		}
	case 9:
		if h.byText.Delete(d.a); d.rarely {
			h.byText.Clear()
		}
	case 10:
		seq := h.byText.Range(d.a, d.b)
		if d.desc {
			seq = h.byText.RangeBackward(d.a, d.b)
		}
		for k, v := range seq {
			told += fmt.Sprintf("%q:%s,", k, brief(v))
		}
	case 11, 12:
		h.queue.Put(d.n, d.m)
	case 13:
		for k := d.n; k < d.n+15; k++ {
			h.queue.Put(k, d.m)
		}
	case 14:
		h.queue.Delete(d.n)
	case 15: // changed in the loop
		seq := h.queue.Range(d.n, d.m)
		if d.desc {
			seq = h.queue.RangeBackward(d.n, d.m)
		}
		for k, v := range seq {
			told += fmt.Sprint(k, ":", v, ",")
			switch d.i {
			case 0, 1:
				h.queue.Delete(k)
			case 2:
				h.queue.Put(k*7%20, v+1)
			}
		}
	case 16, 17:
		h.list.Append(bytes.Clone(d.v))
		h.numbers.Append(d.n)
	case 18:
		x, ok := h.list.PopFront()
		y, some := h.numbers.PopFront()
		told = fmt.Sprint(brief(x), ok, y, some)
	case 19:
		x, ok := h.list.At(d.i)
		y, some := h.numbers.At(d.i)
		told = fmt.Sprint(brief(x), ok, y, some)
		if d.desc {
			told += fmt.Sprint(h.list.Set(d.i, bytes.Clone(d.v)), h.numbers.Set(d.i, d.n))
		}
	case 20:
		if d.rarely {
			h.list.Clear()
			h.numbers.Clear()
		}
		told = fmt.Sprint(h.list.RemoveFirst(d.i), h.numbers.RemoveFirst(d.i))
	case 21:
		told = fmt.Sprint(h.byText.Len(), h.queue.Len(), h.list.Len(), h.numbers.Len(), h.plain.Len())
	case 22:
		if h.fold.Add(d.m); d.rarely {
			h.fold.Clear()
		}
		told = fmt.Sprint(h.fold.Get())
	case 23:
		if d.rarely {
			h.onEvent.Delete(d.event)
			h.onClock.Delete(d.clock)
		} else {
			h.onEvent.Set(d.event)
			h.onClock.Set(d.clock)
		}
	case 24:
		told = h.show()
	}
	return told
}

// rule is a value of a broadcast stream, which each subtask hears.
func (r *twins) rule() {
	k, v, op := r.text(), r.rng.Int64N(30), r.rng.IntN(12)
	r.spaces(func(_ *twin, s *twinSpace) {
		s.ks.Broadcasting(true)
		defer s.ks.Broadcasting(false)
		switch {
		case op == 0:
			s.h.rules.Clear()
		case op < 4:
			s.h.rules.Delete(k)
		default:
			s.h.rules.Put(k, v)
		}
	})
}

// tick lets one of the clocks go on, and fires what is due.
func (r *twins) tick() {
	first := false
	switch by := r.rng.Int64N(40); {
	case r.rng.IntN(2) == 0:
		r.now.Add(by)
	case r.event == checkpoint.NoWatermark:
		r.event, first = 1000, true
	default:
		r.event += by
	}
	r.spaces(func(_ *twin, s *twinSpace) { r.setTime(s) })
	if first {
		r.readAll() // in memory a time to live begins now, with a backing when it is read
	}
	for i := range r.subtasks {
		r.same("timers", func(w *twin) string { return r.fire(w, w.spaces[i]) })
	}
}

func (r *twins) setTime(s *twinSpace) {
	s.ks.SetTime(segment.EventTime, r.event)
	s.ks.SetTime(segment.ProcessingTime, r.now.Load())
}

// fire tells which timers fire. A fifth of them sets the next one, some of these in the past.
func (r *twins) fire(w *twin, s *twinSpace) string {
	var told strings.Builder
	fired := func(tm state.Timer) bool {
		fmt.Fprintf(&told, "%q@%d%v,%d;", s.ks.Key(), tm.At.UnixMilli(), tm.EventTime, s.h.plain.Len())
		next := time.Duration(len(s.ks.Key())%3*20-3) * time.Millisecond
		if at := tm.At.UnixMilli(); at%5 != 0 || next < 0 && at%10 == 0 {
			return true
		}
		timers := s.h.onClock
		if tm.EventTime {
			timers = s.h.onEvent
		}
		timers.Set(tm.At.Add(next))
		return true
	}
	s.h.onEvent.Fire(r.event, fired)
	s.h.onClock.Fire(r.now.Load(), fired)
	r.must(w, "timers", s.ks.Err())
	return fmt.Sprint(told.String(), s.h.onEvent.Earliest(), s.h.onClock.Earliest())
}

// encode encodes some cells of what was cut.
func (r *twins) encode(w *twin, s *twinSpace, cells int) {
	if s.encoded {
		return
	}
	done, err := s.ks.Encode(cells)
	r.must(w, "encode", err)
	if done {
		s.encoded = true
		s.runs = append(s.runs, s.builder.Finish())
	}
}

func (r *twins) encodeAll() {
	r.spaces(func(w *twin, s *twinSpace) {
		for !s.encoded {
			r.encode(w, s, 1000)
		}
	})
}

// cutAll is a barrier. What a checkpoint before it cut, and did not persist, is part of it.
func (r *twins) cutAll() {
	r.encodeAll()
	r.id++
	r.cut, r.cutting = r.clone(), true
	r.spaces(func(_ *twin, s *twinSpace) {
		s.ks.Cut(&s.builder, r.id)
		s.encoded = false
	})
}

// commit persists what was cut, and commits it. Now and then the store fails, or the
// transaction does.
func (r *twins) commit() {
	if !r.cutting {
		return
	}
	r.encodeAll()
	r.cutting = false
	persisted, committed := true, true
	switch r.rng.IntN(6) {
	case 0:
		persisted, committed = false, false
	case 1:
		committed = false
	}
	for _, w := range r.all {
		if !persisted {
			w.store.Before(func(_ context.Context, op faultstore.Op, name string) error {
				if op == faultstore.Put && strings.HasSuffix(name, ".manifest") {
					return errors.New("full")
				}
				return nil
			})
		}
		ref, stats, err := w.writer.Persist(context.Background(), r.snapshot(w))
		w.store.Before(nil)
		if (err == nil) != persisted {
			r.Fatalf("step %d: %s: persist: %v, the store takes manifests: %v", r.step, w.name, err, persisted)
		}
		if committed {
			r.ingest(w, ref, stats)
			w.ref = ref
			w.writer.Committed(r.id)
			w.done.Store(r.id)
		}
	}
	if committed {
		r.stored = r.cut
	}
}

func (r *twins) snapshot(w *twin) checkpoint.Snapshot {
	snap := checkpoint.Snapshot{Checkpoint: r.id, Watermark: r.cut.event, States: w.states}
	for _, s := range w.spaces {
		snap.Runs = append(snap.Runs, s.runs...)
		s.runs = nil
	}
	return snap
}

// ingest brings what was committed into the local store, as package processor does.
func (r *twins) ingest(w *twin, ref offsets.ManifestRef, stats checkpoint.Stats) {
	if w.local == nil {
		return
	}
	want, chain := localID(stats.Manifest, ref), localChain(stats.Manifest)
	var own *pebble.Segment
	data := stats.Segment
	if stats.SegmentBytes > 0 {
		own = &chain[len(chain)-1]
		if _, ok := (twinObjects{w.store}).Path(own.Object); ok && !stats.Inline {
			data = nil
		}
	}
	r.must(w, "ingest", w.local.Ingest(context.Background(), want, w.at, own, data, chain))
	w.at = want
}

// follow is what an instance does that stands by.
func (r *twins) follow() {
	for _, w := range r.all[1:] {
		if w.ref == (offsets.ManifestRef{}) {
			continue
		}
		m := r.load(w)
		_, err := w.standby.Attach(context.Background(), localID(m, w.ref), localChain(m), twinObjects{w.store})
		r.must(w, "follow", err)
	}
}

func (r *twins) load(w *twin) *checkpoint.Manifest {
	m, err := checkpoint.Load(context.Background(), w.store, w.ref)
	r.must(w, "load", err)
	return m
}

// twinObjects shows a checkpoint store to a local store.
type twinObjects struct{ *faultstore.Store }

func (o twinObjects) Path(object string) (string, bool) {
	if dir, ok := o.Store.Store.(*checkpoint.Dir); ok {
		return dir.File(object)
	}
	return "", false
}

func localID(m *checkpoint.Manifest, ref offsets.ManifestRef) pebble.ID {
	return pebble.ID{Lineage: m.Lineage, Checkpoint: ref.Checkpoint, Incarnation: ref.Incarnation, Hash: ref.Hash}
}

func localChain(m *checkpoint.Manifest) (chain []pebble.Segment) {
	for _, s := range m.Segments {
		chain = append(chain, pebble.Segment{Object: s.Object, Offset: s.Offset, Length: s.Length, CRC32C: s.CRC32C, MinKG: s.MinKG, MaxKG: s.MaxKG})
	}
	return chain
}

// crash ends the incarnation. The next one begins with what was committed, perhaps with
// another parallelism, with other times to live, from a savepoint, on another machine.
func (r *twins) crash() {
	r.moment = r.stored.clone()
	r.id += r.rng.Int64N(3)
	r.incarnation++
	if r.rng.IntN(2) == 0 {
		r.subtasks = 1 + r.rng.IntN(4)
	}
	changed := r.changeTTLs()
	from := r.keyGroups
	saved := r.rng.IntN(5) == 0 && r.all[0].ref != offsets.ManifestRef{}
	if saved && r.rng.IntN(2) == 0 {
		r.keyGroups = 4 + r.rng.IntN(12)
	}
	how := r.rng.IntN(8)
	r.Logf("step %d: starts with %d subtasks, %d key-groups, times to live %v, from a savepoint: %v", r.step, r.subtasks, r.keyGroups, r.ttls, saved)
	for _, w := range r.all {
		r.must(w, "close", w.writer.Close(context.Background()))
		if saved {
			r.throughSavepoint(w, from)
		}
		if w.local == nil {
			continue
		}
		switch how {
		case 0, 1: // the instance that stood by
			w.local, w.standby, w.localDir, w.standbyDir = w.standby, w.local, w.standbyDir, w.localDir
		case 2, 3:
			r.must(w, "close", w.local.Close())
			if how == 2 {
				r.must(w, "remove", os.RemoveAll(w.localDir))
			}
			w.local = r.open(w.localDir)
		}
	}
	r.start()
	if changed {
		r.readAll() // a time to live begins, or goes by another clock, in memory at the start
	}
}

// changeTTLs is another version of the app. It tells whether that gave a state a clock that
// it did not have. Some versions only take times to live away, and these stay away: in memory
// what was there is written anew at the start, with the Pebble backend when it is read.
func (r *twins) changeTTLs() bool {
	switch r.rng.IntN(4) {
	case 0, 1:
		return false
	case 2:
		for i := range r.ttls[:3] { // a list keeps one
			if r.rng.IntN(2) == 0 {
				r.ttls[i], r.away[i] = 0, true
			}
		}
		return false
	}
	for i := range r.ttls {
		if !r.away[i] {
			r.ttls[i] = r.rng.IntN(len(twinClocks))
		}
	}
	r.ttls[3] = 1 + r.rng.IntN(len(twinClocks)-1)
	return true
}

// throughSavepoint puts a savepoint of what was committed, rewritten if it takes other
// key-groups, in its place.
func (r *twins) throughSavepoint(w *twin, from int) {
	ctx, name := context.Background(), fmt.Sprint("saved", r.incarnation)
	_, err := checkpoint.CreateSavepoint(ctx, w.store, r.load(w), w.store, name, nil)
	r.must(w, "savepoint", err)
	m, view, err := checkpoint.OpenSavepoint(ctx, w.store, name)
	r.must(w, "savepoint", err)
	if r.keyGroups != from {
		opts := checkpoint.RewriteOptions{KeyGroups: r.keyGroups, TempDir: r.TempDir(), MemoryBytes: 2000, TargetBytes: 3000}
		_, err := checkpoint.RewriteSavepoint(ctx, view, m, w.store, name+"r", opts)
		r.must(w, "rewrite", err)
		m, view, err = checkpoint.OpenSavepoint(ctx, w.store, name+"r")
		r.must(w, "savepoint", err)
	}
	_, w.ref, err = checkpoint.AdoptSavepoint(ctx, view, m, w.store, checkpoint.AdoptOptions{
		App: "app", Instance: "i", KeyGroups: r.keyGroups, Checkpoint: r.id + 10, Incarnation: r.incarnation,
	}, nil)
	r.must(w, "adopt", err)
}

// start begins an incarnation.
func (r *twins) start() {
	r.subtasks = min(r.subtasks, r.keyGroups)
	r.incarnation++
	for _, w := range r.all {
		r.id = max(r.id, w.ref.Checkpoint)
		var base *checkpoint.Manifest
		if w.ref != (offsets.ManifestRef{}) {
			base = r.load(w)
		}
		r.newWriter(w, base)
		r.register(w, base)
		r.newSpaces(w)
		if w.local != nil {
			r.attach(w, base)
		} else if base != nil {
			r.restore(w, base)
		}
	}
	r.cutting = false
}

// newWriter makes a writer that merges early, in various ways.
func (r *twins) newWriter(w *twin, base *checkpoint.Manifest) {
	n := int(r.incarnation)
	cfg := checkpoint.Config{
		Store: w.store, App: "app", Instance: "i", KeyGroups: r.keyGroups, Base: base, BaseRef: w.ref, Incarnation: r.incarnation,
		Retain: 1 + n%2, MergeFanIn: 2 + n%3, MergeTarget: []int64{500, 5000, 32 << 20}[n%3], MergeCPU: 1,
		InlineLimit: []int64{-1, 64 << 10}[n/2%2],
		Now:         func() time.Time { return time.UnixMilli(r.now.Load()) },
	}
	if w.local != nil {
		local, standby := w.local, w.standby
		cfg.Pinned = func() []string { return append(local.Needs(), standby.Needs()...) }
	}
	var err error
	w.writer, err = checkpoint.NewWriter(cfg)
	r.must(w, "writer", err)
	w.done.Store(w.ref.Checkpoint)
}

// register numbers the states, as package processor does.
func (r *twins) register(w *twin, base *checkpoint.Manifest) {
	scope := state.NewScope("op")
	declareTwin(scope, r.ttls)
	w.states = nil
	for i, d := range scope.Descriptors() {
		info := checkpoint.StateInfo{
			ID: uint16(i + 1), Operator: "op", Name: d.Name, Kind: d.Kind, Clock: d.Clock,
			KeyCodec: codec.String.Name(), SubCodec: d.SubCodec, ValueCodec: d.ValueCodec, ValueVersion: d.ValueVersion,
		}
		if base != nil {
			info.Follow(base.States[i], r.now.Load(), r.event)
		}
		w.states = append(w.states, info)
	}
}

func (r *twins) newSpaces(w *twin) {
	for _, s := range w.spaces {
		for _, run := range s.runs {
			run.Release()
		}
	}
	w.spaces = nil
	for i := range r.subtasks {
		lo, hi := keygroup.Range(i, r.subtasks, r.keyGroups)
		cfg := state.Config{FirstKeyGroup: lo, KeyGroups: hi - lo, Spared: map[uint16]segment.Spans{}}
		for _, info := range w.states {
			cfg.Spared[info.ID] = info.Spared
		}
		if w.local != nil {
			cfg.Backing, cfg.MemoryBytes, cfg.Committed = &localStore{db: w.local}, w.budget, w.done.Load
		}
		s := &twinSpace{ks: state.NewKeyspace(codec.String, cfg), encoded: true}
		scope := state.NewScope("op")
		s.h = declareTwin(scope, r.ttls)
		r.must(w, "scope", errors.Join(scope.Errors()...))
		var ids []uint16
		for i := range s.h.described {
			ids = append(ids, uint16(i+1))
		}
		s.ks.Attach(scope, ids)
		r.setTime(s)
		w.spaces = append(w.spaces, s)
	}
}

func (r *twins) attach(w *twin, base *checkpoint.Manifest) {
	var chain []pebble.Segment
	w.at = pebble.ID{}
	if base != nil {
		w.at, chain = localID(base, w.ref), localChain(base)
	}
	_, err := w.local.Attach(context.Background(), w.at, chain, twinObjects{w.store})
	r.must(w, "attach", err)
	for _, s := range w.spaces {
		r.must(w, "broadcast state", s.ks.LoadBroadcast())
	}
}

func (r *twins) restore(w *twin, base *checkpoint.Manifest) {
	rules := slices.IndexFunc(w.spaces[0].h.described, func(d state.Descriptor) bool { return d.Kind == state.KindBroadcast })
	for e, err := range base.Scan(context.Background(), w.store, 0, r.keyGroups) {
		r.must(w, "scan", err)
		owners := w.spaces
		if int(e.State) != rules+1 {
			i := keygroup.Subtask(int(e.KeyGroup), r.subtasks, r.keyGroups)
			owners = owners[i : i+1]
		}
		for _, s := range owners {
			r.must(w, "restore", s.ks.Restore(e.KeyGroup, e.State, e.Key, e.Value))
		}
	}
}
