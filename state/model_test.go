package state_test

import (
	"bytes"
	"cmp"
	"encoding/binary"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
	"github.com/weirstream/weir/state/segment"
)

const (
	modelKeyGroups = 4
	modelTTL       = 64 // milliseconds
	modelRounds    = 6  // of some thirty actions each
)

// committed is what committed runs add up to, by segment key. It is a Backing, too.
type committed struct {
	entries map[string][]byte
	// since is what the entries that changed since the last start held, oldest first.
	since  map[string][]written
	spared map[uint16]segment.Spans // by state
	keys   []string                 // sorted; nil if entries changed since
	id     int64
	fail   error // of every read
	gets   int
	newest int64 // that the last Get named
	steps  int   // moves of iterators
}

// written is what an entry holds that was written for checkpoint from or a later one.
type written struct {
	from  int64
	value []byte
	some  bool
}

func newCommitted() *committed {
	return &committed{entries: map[string][]byte{}, since: map[string][]written{}, keys: []string{}}
}

func (c *committed) apply(r segment.Run) {
	for e := range r.All() {
		k := string(segment.AppendKey(nil, e.KeyGroup, e.State, e.Key))
		if len(c.since[k]) == 0 {
			v, some := c.entries[k]
			c.since[k] = []written{{0, v, some}}
		}
		if e.Deleted {
			delete(c.entries, k)
		} else {
			c.entries[k] = bytes.Clone(e.Value)
		}
		c.since[k] = append(c.since[k], written{c.id + 1, c.entries[k], !e.Deleted})
	}
	c.keys = nil
}

// Get answers as if there were nothing of checkpoints after newest.
func (c *committed) Get(dst, key []byte, newest int64) ([]byte, bool, error) {
	c.gets++
	c.newest = newest
	v, ok := c.entries[string(key)]
	for _, w := range c.since[string(key)] {
		if w.from <= newest {
			v, ok = w.value, w.some
		}
	}
	return append(dst, v...), ok, c.fail
}

func (c *committed) Iter(lo, hi []byte) (state.Iterator, error) {
	if c.keys == nil {
		c.keys = slices.Sorted(maps.Keys(c.entries))
	}
	from, _ := slices.BinarySearch(c.keys, string(lo))
	to, _ := slices.BinarySearch(c.keys, string(hi))
	return &committedIter{c: c, keys: c.keys[from:max(from, to)], entries: c.entries}, nil
}

type committedIter struct {
	c       *committed
	keys    []string
	entries map[string][]byte
	at      int
	key     []byte // overwritten when the iterator moves, as that of a store is
	value   []byte
}

func (it *committedIter) move(to int) bool {
	it.c.steps++
	if it.at = to; it.at < 0 || it.at >= len(it.keys) || it.c.fail != nil {
		return false
	}
	clear(it.key)
	clear(it.value)
	it.key = append(it.key[:0], it.keys[to]...)
	it.value = append(it.value[:0], it.entries[it.keys[to]]...)
	return true
}

func (it *committedIter) First() bool { return it.move(0) }
func (it *committedIter) Last() bool  { return it.move(len(it.keys) - 1) }
func (it *committedIter) Next() bool  { return it.move(it.at + 1) }
func (it *committedIter) Prev() bool  { return it.move(it.at - 1) }
func (it *committedIter) SeekGE(k []byte) bool {
	at, _ := slices.BinarySearch(it.keys, string(k))
	return it.move(at)
}
func (it *committedIter) SeekLT(k []byte) bool {
	at, _ := slices.BinarySearch(it.keys, string(k))
	return it.move(at - 1)
}
func (it *committedIter) Key() []byte   { return it.key }
func (it *committedIter) Value() []byte { return it.value }
func (it *committedIter) Err() error    { return it.c.fail }
func (it *committedIter) Close() error  { return nil }

type setup struct{ scope *state.Scope }

func (s setup) StateScope() *state.Scope { return s.scope }

// mapHandle is a map with keys of some type, as one with keys of type int64.
type mapHandle interface {
	Lookup(int64) (int64, bool)
	Has(int64) bool
	Put(k, v int64)
	Delete(int64)
	Clear()
	Len() int
	// walk goes over the entries; from < to is a range.
	walk(from, to int64, desc bool, visit func(k, v int64) bool)
}

type intMap struct{ *state.OfMap[int64, int64] }

func (m intMap) walk(from, to int64, desc bool, visit func(k, v int64) bool) {
	switch {
	case from < to && desc:
		m.RangeBackward(from, to)(visit)
	case from < to:
		m.Range(from, to)(visit)
	case desc:
		m.Backward()(visit)
	default:
		m.All()(visit)
	}
}

// textMap has keys of various lengths, in the order of the numbers.
type textMap struct{ *state.OfMap[string, int64] }

func text(k int64) string {
	return string(binary.BigEndian.AppendUint64(nil, uint64(k)^1<<63)) + strings.Repeat("\x00\xff\x01", int(k&7))
}

func number(s string) int64 { return int64(binary.BigEndian.Uint64([]byte(s)) ^ 1<<63) }

func (m textMap) Lookup(k int64) (int64, bool) { return m.OfMap.Lookup(text(k)) }
func (m textMap) Has(k int64) bool             { return m.OfMap.Has(text(k)) }
func (m textMap) Put(k, v int64)               { m.OfMap.Put(text(k), v) }
func (m textMap) Delete(k int64)               { m.OfMap.Delete(text(k)) }
func (m textMap) walk(from, to int64, desc bool, visit func(k, v int64) bool) {
	seq := m.All()
	switch {
	case from < to && desc:
		seq = m.RangeBackward(text(from), text(to))
	case from < to:
		seq = m.Range(text(from), text(to))
	case desc:
		seq = m.Backward()
	}
	for k, v := range seq {
		if !visit(number(k), v) {
			return
		}
	}
}

// clock says how the entries of a handle expire.
type clock struct {
	domain segment.Domain
	onRead bool
}

func (c clock) options() []state.Option {
	var how []state.TTLOption
	switch {
	case c.domain == segment.Forever:
		return nil
	case c.domain == segment.EventTime:
		how = append(how, state.InEventTime)
	}
	if c.onRead {
		how = append(how, state.OnRead)
	}
	return []state.Option{state.TTL(modelTTL*time.Millisecond, how...)}
}

// Clocks of the values, maps and lists.
var clocks = []clock{
	{segment.Forever, false},
	{segment.ProcessingTime, true},
	{segment.EventTime, false},
	{segment.EventTime, true},
}

type handles struct {
	values  []*state.OfValue[string]
	maps    []mapHandle
	lists   []*state.OfList[string]
	sum     *state.OfReducing[int64]
	mean    *state.OfAggregating[int64, []byte, string]
	rules   *state.OfBroadcast[int64, string]
	listIDs map[uint16]bool // of lists with elements that expire: a list that is empty may begin anywhere
	states  int
}

func declare(scope *state.Scope) *handles {
	s := setup{scope}
	h := &handles{listIDs: map[uint16]bool{}}
	id := uint16(0)
	for i, c := range clocks {
		h.values = append(h.values, state.Value(s, fmt.Sprint("value", i), codec.String, c.options()...))
		if i%2 == 0 {
			h.maps = append(h.maps, intMap{state.Map(s, fmt.Sprint("map", i), codec.Int64, codec.Int64, c.options()...)})
		} else {
			h.maps = append(h.maps, textMap{state.Map(s, fmt.Sprint("map", i), codec.String, codec.Int64, c.options()...)})
		}
		h.lists = append(h.lists, state.List(s, fmt.Sprint("list", i), codec.String, c.options()...))
		id += 3
		h.listIDs[id] = c.domain != segment.Forever
	}
	h.sum = state.Reducing(s, "sum", func(a, b int64) int64 { return a + b }, codec.Int64)
	h.mean = state.Aggregating(s, "mean", state.Aggregator[int64, []byte, string]{
		Zero:   func() []byte { return []byte("<") },
		Add:    func(a []byte, v int64) []byte { return fmt.Append(a[:len(a):len(a)], v, ",") },
		Result: func(a []byte) string { return string(a) + ">" },
		Codec:  codec.Bytes,
	}, state.TTL(modelTTL*time.Millisecond, state.InEventTime))
	h.rules = state.Broadcast(s, "rules", codec.Int64, codec.String, state.TTL(modelTTL*time.Millisecond, state.InEventTime))
	h.states = len(scope.Descriptors())
	return h
}

// subject is a keyspace under test, with what is stored of it.
type subject struct {
	name    string
	backed  bool
	budget  int64
	store   *committed
	local   *localStore // holds the same, if not nil
	ks      *state.Keyspace[string]
	h       *handles
	builder segment.Builder
	cutting int64         // the checkpoint that is being encoded, or 0
	pending []segment.Run // encoded and not committed
	encoded int64         // the newest checkpoint in pending
}

func (s *subject) start(t *rapid.T, times [3]int64) {
	cfg := state.Config{}
	if s.backed {
		cfg = state.Config{Backing: s.store, MemoryBytes: s.budget, KeyGroups: modelKeyGroups, Committed: func() int64 { return s.store.id }}
	}
	clear(s.store.since)
	if s.local != nil {
		cfg.Backing = s.local
		s.local.attach(t)
	}
	s.ks = state.NewKeyspace(codec.String, cfg)
	scope := state.NewScope("op")
	s.h = declare(scope)
	if errs := scope.Errors(); len(errs) > 0 {
		t.Fatal(errs)
	}
	ids := make([]uint16, s.h.states)
	for i := range ids {
		ids[i] = uint16(i + 1)
	}
	s.ks.Attach(scope, ids)
	s.time(times)
	s.builder.Reset()
	s.cutting, s.pending = 0, nil
	if s.backed {
		if err := s.ks.LoadBroadcast(); err != nil {
			t.Fatal(err)
		}
		return
	}
	for k, v := range s.store.entries {
		b := []byte(k)
		if err := s.ks.Restore(binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:]), b[4:], v); err != nil {
			t.Fatal(err)
		}
		clear(b)
	}
}

func (s *subject) time(times [3]int64) {
	for d, ms := range times {
		if d > 0 {
			s.ks.SetTime(segment.Domain(d), ms)
		}
	}
}

func (s *subject) use(k string, ahead bool) {
	kg := uint16(keygroup.Of([]byte(k), modelKeyGroups))
	if !ahead {
		s.ks.Use(k, kg)
		return
	}
	sought := []state.Sought[string]{{Key: k}}
	s.ks.Find(sought)
	s.ks.UseAt(k, kg, sought[0].Slot)
}

func (s *subject) encode(t *rapid.T, n int) {
	if s.cutting == 0 {
		return
	}
	done, err := s.ks.Encode(n)
	if err != nil {
		t.Fatal(err)
	}
	if done {
		s.pending = append(s.pending, s.builder.Finish())
		s.encoded, s.cutting = s.cutting, 0
	}
}

// live returns what the store holds at some time. The elements of lists in which some
// may have expired are put in order without their indexes.
func (s *subject) live(times [3]int64) map[string]string {
	m := map[string]string{}
	for _, k := range slices.Sorted(maps.Keys(s.store.entries)) {
		v := s.store.entries[k]
		header, _, err := segment.CutHeader(v)
		if err != nil {
			panic(err)
		}
		if header.Expired(times[segment.ProcessingTime], times[segment.EventTime]) {
			continue
		}
		if s.h.listIDs[binary.BigEndian.Uint16([]byte(k)[2:])] {
			m[k[:len(k)-8]] += fmt.Sprintf("%x;", v)
			continue
		}
		m[k] = fmt.Sprintf("%x", v)
	}
	return m
}

// dated is a value of the model, which expires.
type dated[V any] struct {
	v       V
	expires int64
}

// model is what the handles should hold, by key.
type model struct {
	values []map[string]dated[string]
	maps   []map[string]map[int64]dated[int64]
	lists  []map[string][]dated[string]
	sum    map[string]int64
	mean   map[string]dated[string]
	rules  map[int64]dated[string]
	times  [3]int64
}

func newModel() *model {
	m := &model{sum: map[string]int64{}, mean: map[string]dated[string]{}, rules: map[int64]dated[string]{}}
	for range clocks {
		m.values = append(m.values, map[string]dated[string]{})
		m.maps = append(m.maps, map[string]map[int64]dated[int64]{})
		m.lists = append(m.lists, map[string][]dated[string]{})
	}
	m.times = [3]int64{segment.ProcessingTime: 1000, segment.EventTime: math.MinInt64 + 1000}
	return m
}

func (m *model) clone() *model {
	c := newModel()
	c.times = m.times
	for i := range clocks {
		c.values[i] = maps.Clone(m.values[i])
		for k, v := range m.maps[i] {
			c.maps[i][k] = maps.Clone(v)
		}
		for k, v := range m.lists[i] {
			c.lists[i][k] = slices.Clone(v)
		}
	}
	c.sum, c.mean, c.rules = maps.Clone(m.sum), maps.Clone(m.mean), maps.Clone(m.rules)
	return c
}

// stamp is the expiry of what is written now.
func (m *model) stamp(c clock) int64 {
	if c.domain == segment.Forever {
		return math.MaxInt64
	}
	return m.times[c.domain] + modelTTL
}

func (m *model) gone(c clock, expires int64) bool {
	return c.domain != segment.Forever && expires <= m.times[c.domain]
}

// read is the expiry of what is read now.
func (m *model) read(c clock, expires int64) int64 {
	if now := m.stamp(c); c.onRead && now-expires >= modelTTL/32 {
		return now
	}
	return expires
}

// purge forgets what has expired.
func (m *model) purge() {
	for i, c := range clocks {
		maps.DeleteFunc(m.values[i], func(_ string, d dated[string]) bool { return m.gone(c, d.expires) })
		for _, entries := range m.maps[i] {
			maps.DeleteFunc(entries, func(_ int64, d dated[int64]) bool { return m.gone(c, d.expires) })
		}
		for k, list := range m.lists[i] {
			m.lists[i][k] = slices.DeleteFunc(list, func(d dated[string]) bool { return m.gone(c, d.expires) })
		}
	}
	event := clock{domain: segment.EventTime}
	maps.DeleteFunc(m.mean, func(_ string, d dated[string]) bool { return m.gone(event, d.expires) })
	maps.DeleteFunc(m.rules, func(_ int64, d dated[string]) bool { return m.gone(event, d.expires) })
}

// world is a model and the subjects that should behave as it does.
type world struct {
	*rapid.T
	subjects []*subject
	model    *model
	cut      *model // at the cut of the checkpoint that is being encoded
	encoded  *model // at the cut of the newest checkpoint in pending
	stored   *model // at the cut of the newest committed one
	next     int64  // id of the next checkpoint
}

var modelKeys = []string{"", "\x00\x01", "a\x00"}

func (w *world) key() string  { return rapid.SampledFrom(modelKeys).Draw(w.T, "key") }
func (w *world) small() int64 { return rapid.Int64Range(-12, 12).Draw(w.T, "n") }

// each calls f for every subject, with k as the current key.
func (w *world) each(k string, f func(s *subject)) {
	ahead := rapid.Bool().Draw(w.T, "ahead")
	for _, s := range w.subjects {
		s.use(k, ahead)
		f(s)
		if err := s.ks.Err(); err != nil {
			w.Fatalf("%s: %v", s.name, err)
		}
	}
}

func equal[T any](w *world, s *subject, what string, got, want T) {
	w.Helper()
	if g, x := fmt.Sprintf("%q", fmt.Sprint(got)), fmt.Sprintf("%q", fmt.Sprint(want)); g != x {
		w.Fatalf("%s: %s: got %s, want %s", s.name, what, g, x)
	}
}

func (w *world) value() {
	k, i := w.key(), rapid.IntRange(0, len(clocks)-1).Draw(w.T, "handle")
	m, c := w.model.values[i], clocks[i]
	switch rapid.IntRange(0, 3).Draw(w.T, "op") {
	case 0, 1:
		d, ok := m[k]
		if ok {
			d.expires = w.model.read(c, d.expires)
			m[k] = d
		}
		w.each(k, func(s *subject) {
			v, has := s.h.values[i].Lookup()
			equal(w, s, "value of "+k, fmt.Sprint(v, has), fmt.Sprint(d.v, ok))
		})
	case 2:
		v := fmt.Sprint(w.small())
		m[k] = dated[string]{v, w.model.stamp(c)}
		w.each(k, func(s *subject) { s.h.values[i].Set(v) })
	case 3:
		delete(m, k)
		w.each(k, func(s *subject) { s.h.values[i].Clear() })
	}
}

func (w *world) aMap() {
	k, i := w.key(), rapid.IntRange(0, len(clocks)-1).Draw(w.T, "handle")
	for range rapid.IntRange(1, 8).Draw(w.T, "ops") {
		w.mapOp(k, i)
	}
}

func (w *world) mapOp(k string, i int) {
	c := clocks[i]
	m := w.model.maps[i][k]
	if m == nil {
		m = map[int64]dated[int64]{}
		w.model.maps[i][k] = m
	}
	switch op := rapid.IntRange(0, 13).Draw(w.T, "op"); op {
	case 12: // a queue
		n := w.small()
		maps.DeleteFunc(m, func(k int64, _ dated[int64]) bool { return k < n })
		w.each(k, func(s *subject) {
			for k := int64(-12); k < n; k++ {
				s.h.maps[i].Delete(k)
			}
		})
	case 13:
		from, v := w.small(), w.small()
		for n := from; n <= 12; n++ {
			m[n] = dated[int64]{v, w.model.stamp(c)}
		}
		w.each(k, func(s *subject) {
			for n := from; n <= 12; n++ {
				s.h.maps[i].Put(n, v)
			}
		})
	case 0, 1:
		n := w.small()
		d, ok := m[n]
		if ok {
			d.expires = w.model.read(c, d.expires)
			m[n] = d
		}
		w.each(k, func(s *subject) {
			if op == 1 {
				equal(w, s, "has", s.h.maps[i].Has(n), ok)
				return
			}
			v, has := s.h.maps[i].Lookup(n)
			equal(w, s, fmt.Sprintf("map %d of %q at %d", i, k, n), fmt.Sprint(v, has), fmt.Sprint(d.v, ok))
		})
	case 2, 3, 4:
		n, v := w.small(), w.small()
		m[n] = dated[int64]{v, w.model.stamp(c)}
		w.each(k, func(s *subject) { s.h.maps[i].Put(n, v) })
	case 5, 6:
		n := w.small()
		delete(m, n)
		w.each(k, func(s *subject) { s.h.maps[i].Delete(n) })
	case 7:
		if w.small() > 6 {
			clear(m)
			w.each(k, func(s *subject) { s.h.maps[i].Clear() })
		}
	case 8:
		w.each(k, func(s *subject) { equal(w, s, "length", s.h.maps[i].Len(), len(m)) })
	default:
		w.walk(k, i, m)
	}
}

// step is what a loop over a map does when it sees an entry.
type step struct {
	op   int
	k, v int64
}

// walk iterates over a map and changes it meanwhile.
func (w *world) walk(k string, i int, m map[int64]dated[int64]) {
	from, to := w.small(), w.small()
	desc := rapid.Bool().Draw(w.T, "backward")
	steps := rapid.SliceOfN(rapid.Custom(func(t *rapid.T) step {
		return step{rapid.IntRange(0, 6).Draw(t, "op"), rapid.Int64Range(-12, 12).Draw(t, "k"), rapid.Int64Range(-12, 12).Draw(t, "v")}
	}), 0, 30).Draw(w.T, "steps")
	c := clocks[i]
	before := maps.Clone(m)
	// What the model sees.
	var want []string
	after := maps.Clone(before)
	pos, begun := int64(0), false
	for n := 0; ; n++ {
		best, found := int64(0), false
		for x := range after {
			if from < to && (x < from || x >= to) || begun && (!desc && x <= pos || desc && x >= pos) {
				continue
			}
			if !found || !desc && x < best || desc && x > best {
				best, found = x, true
			}
		}
		if !found {
			break
		}
		pos, begun = best, true
		d := after[pos]
		d.expires = w.model.read(c, d.expires)
		after[pos] = d
		want = append(want, fmt.Sprint(pos, "=", d.v))
		if n < len(steps) {
			switch st := steps[n]; st.op {
			case 0:
				delete(after, pos)
			case 1:
				after[st.k] = dated[int64]{st.v, w.model.stamp(c)}
			case 2:
				delete(after, st.k)
			case 3:
				if st.k > 10 {
					clear(after)
				}
			}
		}
	}
	w.each(k, func(s *subject) {
		var got []string
		n := 0
		h := s.h.maps[i]
		h.walk(from, to, desc, func(k, v int64) bool {
			got = append(got, fmt.Sprint(k, "=", v))
			if n < len(steps) {
				switch st := steps[n]; st.op {
				case 0:
					h.Delete(k)
				case 1:
					h.Put(st.k, st.v)
				case 2:
					h.Delete(st.k)
				case 3:
					if st.k > 10 {
						h.Clear()
					}
				}
			}
			n++
			return true
		})
		equal(w, s, fmt.Sprintf("map %d of %q, range %d to %d, backward %v", i, k, from, to, desc), got, want)
	})
	clear(m)
	maps.Copy(m, after)
}

func (w *world) list() {
	k, i := w.key(), rapid.IntRange(0, len(clocks)-1).Draw(w.T, "handle")
	for range rapid.IntRange(1, 8).Draw(w.T, "ops") {
		w.listOp(k, i)
	}
}

func (w *world) listOp(k string, i int) {
	c := clocks[i]
	m := w.model.lists[i][k]
	read := func(n int) { m[n].expires = w.model.read(c, m[n].expires) }
	at := int(rapid.Int64Range(-1, 6).Draw(w.T, "at"))
	ok := at >= 0 && at < len(m)
	what := fmt.Sprintf("list %d of %q", i, k)
	switch rapid.IntRange(0, 9).Draw(w.T, "op") {
	case 0, 1, 2:
		v := fmt.Sprint(w.small())
		m = append(m, dated[string]{v, w.model.stamp(c)})
		w.each(k, func(s *subject) { s.h.lists[i].Append(v) })
	case 3:
		vs := []string{fmt.Sprint(w.small()), fmt.Sprint(w.small()), fmt.Sprint(w.small())}
		for _, v := range vs {
			m = append(m, dated[string]{v, w.model.stamp(c)})
		}
		w.each(k, func(s *subject) { s.h.lists[i].AppendAll(vs...) })
	case 4:
		want := ""
		if ok {
			read(at)
			want = m[at].v
		}
		w.each(k, func(s *subject) {
			v, has := s.h.lists[i].At(at)
			equal(w, s, what+" at "+fmt.Sprint(at), fmt.Sprint(v, has), fmt.Sprint(want, ok))
		})
	case 5:
		v := fmt.Sprint(w.small())
		if ok {
			m[at] = dated[string]{v, w.model.stamp(c)}
		}
		w.each(k, func(s *subject) { equal(w, s, what+" set", s.h.lists[i].Set(at, v), ok) })
	case 6:
		n := max(0, min(at, len(m)))
		m = slices.Delete(m, 0, n)
		w.each(k, func(s *subject) { equal(w, s, what+" removed", s.h.lists[i].RemoveFirst(at), n) })
	case 7:
		want, has := "", len(m) > 0
		if has {
			want = m[0].v
			m = slices.Delete(m, 0, 1)
		}
		w.each(k, func(s *subject) {
			v, ok := s.h.lists[i].PopFront()
			equal(w, s, what+" first", fmt.Sprint(v, ok), fmt.Sprint(want, has))
		})
	case 8:
		if at == 0 {
			m = nil
			w.each(k, func(s *subject) { s.h.lists[i].Clear() })
		}
	case 9:
		w.each(k, func(s *subject) { equal(w, s, what+" length", s.h.lists[i].Len(), len(m)) })
		var want []string
		for n := range m {
			read(n)
			want = append(want, fmt.Sprint(n, "=", m[n].v))
		}
		w.each(k, func(s *subject) {
			var got []string
			for n, v := range s.h.lists[i].All() {
				got = append(got, fmt.Sprint(n, "=", v))
			}
			equal(w, s, what, got, want)
		})
	}
	w.model.lists[i][k] = m
}

func (w *world) folds() {
	k, v := w.key(), w.small()
	switch rapid.IntRange(0, 3).Draw(w.T, "op") {
	case 0:
		w.model.sum[k] += v
		d, ok := w.model.mean[k]
		if !ok {
			d.v = "<"
		}
		w.model.mean[k] = dated[string]{d.v + fmt.Sprint(v, ","), w.model.stamp(clock{domain: segment.EventTime})}
		w.each(k, func(s *subject) { s.h.sum.Add(v); s.h.mean.Add(v) })
	case 1:
		delete(w.model.sum, k)
		delete(w.model.mean, k)
		w.each(k, func(s *subject) { s.h.sum.Clear(); s.h.mean.Clear() })
	default:
		d, ok := w.model.mean[k]
		w.each(k, func(s *subject) {
			equal(w, s, "sum", s.h.sum.Get(), w.model.sum[k])
			equal(w, s, "mean", s.h.mean.Get(), cmp.Or(d.v, "<")+">")
			_, has := s.h.mean.Lookup()
			equal(w, s, "has mean", has, ok)
		})
	}
}

func (w *world) rules() {
	n, m := w.small(), w.model.rules
	op := rapid.IntRange(0, 6).Draw(w.T, "op")
	v := fmt.Sprint(w.small())
	switch op {
	case 0, 1:
		m[n] = dated[string]{v, w.model.stamp(clock{domain: segment.EventTime})}
	case 2:
		delete(m, n)
	case 3:
		if n > 8 {
			clear(m)
		}
	}
	w.each(w.key(), func(s *subject) {
		h := s.h.rules
		s.ks.Broadcasting(true)
		switch op {
		case 0, 1:
			h.Put(n, v)
		case 2:
			h.Delete(n)
		case 3:
			if n > 8 {
				h.Clear()
			}
		}
		s.ks.Broadcasting(false)
		got, ok := h.Lookup(n)
		d, has := m[n]
		equal(w, s, "rule", fmt.Sprint(got, ok), fmt.Sprint(d.v, has))
		equal(w, s, "rules", h.Len(), len(m))
		var all, want []string
		for k, v := range h.All() {
			all = append(all, fmt.Sprint(k, "=", v))
		}
		for _, k := range slices.Sorted(maps.Keys(m)) {
			want = append(want, fmt.Sprint(k, "=", m[k].v))
		}
		equal(w, s, "all rules", all, want)
	})
}

func (w *world) tick() {
	m := w.model
	if rapid.Bool().Draw(w.T, "event time") {
		m.times[segment.EventTime] += rapid.Int64Range(0, modelTTL).Draw(w.T, "ms")
	} else {
		m.times[segment.ProcessingTime] += rapid.Int64Range(0, modelTTL).Draw(w.T, "ms")
	}
	m.purge()
	for _, s := range w.subjects {
		s.time(m.times)
	}
}

func (w *world) finish() {
	for _, s := range w.subjects {
		for s.cutting != 0 {
			s.encode(w.T, 1000)
		}
	}
	if w.cut != nil {
		w.encoded, w.cut = w.cut, nil
	}
}

func (w *world) checkpoint() {
	w.finish()
	w.next++
	w.cut = w.model.clone()
	for _, s := range w.subjects {
		s.ks.Cut(&s.builder, w.next)
		s.cutting = w.next
	}
}

func (w *world) slice() {
	n := rapid.IntRange(1, 6).Draw(w.T, "cells")
	for _, s := range w.subjects {
		s.encode(w.T, n)
	}
}

func (w *world) commit() {
	w.finish()
	if w.encoded == nil {
		return
	}
	w.stored, w.encoded = w.encoded, nil
	for _, s := range w.subjects {
		if s.local != nil {
			s.local.commit(w.T, s.encoded, s.pending)
		}
		for _, r := range s.pending {
			s.store.apply(r)
			r.Release()
		}
		s.pending, s.store.id = nil, s.encoded
	}
	times := w.model.times
	want := w.subjects[0].live(times)
	for _, s := range w.subjects[1:] {
		got := s.live(times)
		for k, v := range want {
			if got[k] != v {
				w.Fatalf("%s: the segments hold %q under %x, those of %s %q", s.name, got[k], k, w.subjects[0].name, v)
			}
		}
		for k, v := range got {
			if _, ok := want[k]; !ok {
				w.Fatalf("%s: the segments hold %q under %x, those of %s nothing", s.name, v, k, w.subjects[0].name)
			}
		}
	}
}

// audit is called after each step.
func (w *world) audit() {
	for _, s := range w.subjects {
		if err := s.ks.Audit(); err != nil {
			w.Fatalf("%s: %v", s.name, err)
		}
	}
}

func (w *world) evict() {
	for _, s := range w.subjects {
		s.ks.Evict()
	}
}

func (w *world) crash() {
	processing := w.model.times[segment.ProcessingTime]
	w.model = w.stored.clone()
	w.model.times[segment.ProcessingTime] = processing
	w.model.purge()
	w.cut, w.encoded = nil, nil
	for _, s := range w.subjects {
		s.start(w.T, w.model.times)
	}
}

// Whatever is done with handles, when state is frozen, committed, evicted and lost: a
// keyspace in memory and those with a backing do what plain maps and slices do, and what
// they commit adds up to the same.
func TestHandlesAreMapsAndSlices(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		drive(t, []*subject{
			{name: "in memory"},
			{name: "with a backing", backed: true, budget: 1},
			{name: "with a backing and some memory", backed: true, budget: 20_000},
		})
	})
}

// The same on the local store.
func TestHandlesOnTheLocalStoreAreMapsAndSlices(t *testing.T) {
	db, err := pebble.Open(t.TempDir(), "app", pebble.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	rapid.Check(t, func(t *rapid.T) {
		drive(t, []*subject{
			{name: "in memory"},
			{name: "with the local store", backed: true, budget: 1, local: newLocalStore(db)},
		})
	})
}

// drive does some hundred things with the subjects: as many as it takes to set
// something, commit it, evict it and ask for it.
func drive(t *rapid.T, subjects []*subject) {
	w := &world{T: t, model: newModel(), stored: newModel(), subjects: subjects}
	for _, s := range subjects {
		s.store = newCommitted()
		s.start(t, w.model.times)
	}
	actions := map[string]func(*rapid.T){"": func(t *rapid.T) { w.T = t; w.audit() }}
	for name, do := range map[string]func(){
		"value": w.value, "map": w.aMap, "list": w.list, "folds": w.folds, "rules": w.rules, "tick": w.tick,
		"cut": w.checkpoint, "slice": w.slice, "commit": w.commit, "evict": w.evict, "crash": w.crash,
	} {
		actions[name] = func(t *rapid.T) {
			w.T = t
			do()
		}
	}
	for range modelRounds {
		t.Repeat(actions)
	}
}
