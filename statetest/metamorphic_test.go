package statetest_test

import (
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
)

// The check: the same input gives the same state and the same committed outputs of each
// key, whatever the backend, the parallelism, the rhythm and the alignment of checkpoints
// are, and wherever the app was stopped, or died of its store, to go on with others. What it must be, a model says that
// is a loop over the input.

// order is a line of the input. Its index is its event time: times of a partition ascend,
// so nothing is late, and each timer fires once, after those of its key with earlier
// times.
type order struct {
	i   int64
	key string
	op  string
	n   int64
}

func (o order) String() string { return fmt.Sprintf("%d %s %s %d", o.i, o.key, o.op, o.n) }

func (o order) at() time.Time { return time.UnixMilli(1_000_000 + 10*o.i) }

// reminder is when the event-time timer fires that o sets.
func (o order) reminder() time.Time { return o.at().Add(700 * time.Millisecond) }

// alarm is when the processing-time timer fires that o sets: not in these tests.
func (o order) alarm() time.Time { return time.UnixMilli(7_000_000_000_000 + o.n) }

// blob is what o puts into a map.
func (o order) blob() string { return strings.Repeat(strconv.FormatInt(o.i, 10)+".", 300) }

func parseOrder(b []byte) (o order, err error) {
	_, err = fmt.Sscanf(string(b), "%d %s %s %d", &o.i, &o.key, &o.op, &o.n)
	return o, err
}

// orderCodec and totalCodec encode what may be in flight.
var orderCodec = codec.Func("order", 1,
	func(dst []byte, o order) ([]byte, error) { return append(dst, o.String()...), nil }, parseOrder)

var totalCodec = codec.Func("total", 1,
	func(dst []byte, v weir.KV[string, int64]) ([]byte, error) {
		return append(binary.AppendVarint(dst, v.Value), v.Key...), nil
	},
	func(b []byte) (v weir.KV[string, int64], err error) {
		n := 0
		if v.Value, n = binary.Varint(b); n <= 0 {
			return v, errors.New("no total")
		}
		v.Key = string(b[n:])
		return v, nil
	})

// recent is how many elements the lists keep.
const recent = 4

var orderOps = []string{"put", "put", "put", "del", "push", "push", "remind", "alarm", "calm", "side", "bad", "clear", "reset"}

func randomOrders(rng *rand.Rand, n, keys int) []order {
	orders := make([]order, n)
	for i := range orders {
		orders[i] = order{int64(i), fmt.Sprintf("key-%04d", rng.IntN(keys)), orderOps[rng.IntN(len(orderOps))], rng.Int64N(16)}
	}
	return orders
}

// meanAcc is the accumulator of an aggregating state, with a codec of its own.
type meanAcc struct{ sum, n int64 }

var meanCodec = codec.Func("mean", 1,
	func(dst []byte, a meanAcc) ([]byte, error) {
		return binary.AppendVarint(binary.AppendVarint(dst, a.sum), a.n), nil
	},
	func(b []byte) (a meanAcc, err error) {
		var k, l int
		a.sum, k = binary.Varint(b)
		a.n, l = binary.Varint(b[max(k, 0):])
		if k <= 0 || l <= 0 || k+l != len(b) {
			err = errors.New("no mean")
		}
		return a, err
	})

// everyKind is a topology with every kind of keyed state, timers of both clocks, a side
// output that is written by handler and timers, dead letters, and three keyed stages of
// which one is behind another.
func everyKind(app *weir.App) {
	src := source.Source[order]{Topic: "in", Decode: func(r *kgo.Record) (order, error) { return parseOrder(r.Value) }}
	in := weir.From(app, "in", src, weir.EventTime(order.at))
	byKey := weir.KeyBy(in, "by-key", func(o order) string { return o.key }, codec.String, weir.ValueCodec(orderCodec))
	asides := weir.Side[weir.KV[string, string]]("asides")
	reminded := weir.Side[weir.KV[string, string]]("reminded")
	totals := weir.Process(byKey, "track", func(s *weir.Setup) weir.Handler[string, order, weir.KV[string, int64]] {
		sum := state.Value(s, "sum", codec.Int64)
		blobs := state.Map(s, "blobs", codec.Int64, codec.String)
		last := state.List(s, "last", codec.Int64)
		most := state.Reducing(s, "most", func(a, b int64) int64 { return max(a, b) }, codec.Int64)
		mean := state.Aggregating(s, "mean", state.Aggregator[int64, meanAcc, int64]{
			Zero:   func() meanAcc { return meanAcc{} },
			Add:    func(a meanAcc, n int64) meanAcc { return meanAcc{a.sum + n, a.n + 1} },
			Result: func(a meanAcc) int64 { return a.sum },
			Codec:  meanCodec,
		})
		fired := state.Value(s, "fired", codec.Int64)
		reminders, alarms := state.EventTimers(s), state.ProcessingTimers(s)
		return weir.OnRecord(func(c *weir.Context[string, weir.KV[string, int64]], o order) error {
			if c.Late() {
				return fmt.Errorf("%v is late", o)
			}
			sum.Set(sum.Get() + o.n)
			most.Add(o.n)
			mean.Add(o.n)
			switch o.op {
			case "put":
				blobs.Put(o.n, o.blob())
			case "del":
				blobs.Delete(o.n)
			case "push":
				last.Append(o.i)
				if last.Len() > recent {
					last.PopFront()
				}
			case "remind":
				reminders.Set(o.reminder())
			case "alarm":
				alarms.Set(o.alarm())
			case "calm":
				alarms.Delete(o.alarm())
			case "side":
				asides.Emit(c, weir.KV[string, string]{Key: o.key, Value: o.String()})
			case "bad":
				return weir.DeadLetter(errors.New("bad"))
			case "clear":
				last.Clear()
			case "reset":
				sum.Clear()
				blobs.Clear()
			}
			c.Emit(weir.KV[string, int64]{Key: o.key, Value: sum.Get()})
			return nil
		}).OnTimer(func(c *weir.Context[string, weir.KV[string, int64]], t weir.Timer) error {
			fired.Set(fired.Get() + 1)
			reminded.Emit(c, weir.KV[string, string]{Key: c.Key(), Value: fmt.Sprint(t.At.UnixMilli(), t.EventTime)})
			return nil
		})
	})
	weir.To(totals, "totals", kafka.Sink("totals", codec.String, codec.Int64))
	weir.To(asides.From(totals), "asides", kafka.Sink("asides", codec.String, codec.String))
	weir.To(reminded.From(totals), "reminded", kafka.Sink("reminded", codec.String, codec.String))
	again := weir.KeyBy(in, "again", func(o order) string { return o.key }, codec.String, weir.ValueCodec(orderCodec))
	weir.To(weir.Aggregate(again, "count", weir.Count[order]()), "counts", kafka.Sink("counts", codec.String, codec.Int64))
	byBucket := weir.KeyBy(totals, "by-bucket", func(v weir.KV[string, int64]) string { return bucket(v.Key) }, codec.String, weir.ValueCodec(totalCodec))
	weir.To(weir.Aggregate(byBucket, "bucket", weir.Sum(func(v weir.KV[string, int64]) int64 { return v.Value })),
		"buckets", kafka.Sink("buckets", codec.String, codec.Int64))
}

func bucket(key string) string { return key[len(key)-1:] }

// outcome is all that an app has to show: each line of state and each key's outputs.
type outcome struct {
	state   map[string]string   // "operator/state/key/..." to value
	outputs map[string][]string // "topic/key" to values in order
}

func (want outcome) compare(t *testing.T, got outcome) {
	t.Helper()
	compareMaps(t, "state", got.state, want.state, func(a, b string) bool { return a == b })
	compareMaps(t, "output", got.outputs, want.outputs, slices.Equal[[]string])
}

func compareMaps[V any](t *testing.T, what string, got, want map[string]V, equal func(a, b V) bool) {
	t.Helper()
	bad := 0
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if g, ok := got[k]; !ok || !equal(g, want[k]) {
			if bad++; bad <= 5 {
				t.Errorf("%s %s: %s (%v), want %s", what, k, clip(g), ok, clip(want[k]))
			}
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[k]; !ok {
			if bad++; bad <= 5 {
				t.Errorf("%s %s: %s, want none", what, k, clip(got[k]))
			}
		}
	}
	if bad > 5 {
		t.Errorf("%d of %d lines of %s differ", bad, len(want), what)
	}
}

func clip(v any) string { return fmt.Sprintf("%.200v", v) }

// model is what must come of orders.
func model(orders []order) outcome {
	type keyState struct {
		sum, most, total, n, count, fired int64
		hasSum                            bool
		blobs                             map[int64]string
		last                              []int64
		alarms                            map[int64]bool
	}
	keys := map[string]*keyState{}
	out := outcome{map[string]string{}, map[string][]string{}}
	emit := func(topic, key string, v any) {
		out.outputs[topic+"/"+key] = append(out.outputs[topic+"/"+key], fmt.Sprint(v))
	}
	buckets := map[string]int64{}
	for _, o := range orders {
		s := keys[o.key]
		if s == nil {
			s = &keyState{blobs: map[int64]string{}, alarms: map[int64]bool{}}
			keys[o.key] = s
		}
		s.count++
		emit("counts", o.key, s.count)
		s.sum, s.hasSum = s.sum+o.n, true
		s.most, s.total, s.n = max(s.most, o.n), s.total+o.n, s.n+1
		switch o.op {
		case "put":
			s.blobs[o.n] = o.blob()
		case "del":
			delete(s.blobs, o.n)
		case "push":
			s.last = append(s.last, o.i)
			s.last = s.last[max(0, len(s.last)-recent):]
		case "remind":
			s.fired++
			emit("reminded", o.key, fmt.Sprint(o.reminder().UnixMilli(), true))
		case "alarm":
			s.alarms[o.alarm().UnixMilli()] = true
		case "calm":
			delete(s.alarms, o.alarm().UnixMilli())
		case "side":
			emit("asides", o.key, o)
		case "bad":
			emit("dead", o.key, o)
			continue
		case "clear":
			s.last = nil
		case "reset":
			s.sum, s.hasSum = 0, false
			clear(s.blobs)
		}
		emit("totals", o.key, s.sum)
		buckets[bucket(o.key)] += s.sum
	}
	set := func(operator, state, key string, v any) { out.state[operator+"/"+state+"/"+key] = fmt.Sprint(v) }
	for key, s := range keys {
		if s.hasSum {
			set("track", "sum", key, s.sum)
		}
		set("track", "most", key, s.most)
		set("track", "mean", key, meanAcc{s.total, s.n})
		if s.fired > 0 {
			set("track", "fired", key, s.fired)
		}
		for k, v := range s.blobs {
			set("track", "blobs", fmt.Sprint(key, "/", k), v)
		}
		for i, v := range s.last {
			set("track", "last", fmt.Sprint(key, "/", i), v)
		}
		for at := range s.alarms {
			set("track", offline.ProcessingTimers, fmt.Sprint(key, "/", at), "")
		}
		set("count", "acc", key, s.count)
	}
	for b, sum := range buckets {
		set("bucket", "acc", b, sum)
		out.outputs["buckets/"+b] = []string{fmt.Sprint(sum)}
	}
	return out
}

// observe reads what came of a run.
func observe(t *testing.T, brokers []string, store checkpoint.Store) outcome {
	t.Helper()
	out := outcome{map[string]string{}, map[string][]string{}}
	s := open(t, store, offline.Latest)
	set := func(err error, operator, state, key string, v any) {
		if err != nil {
			t.Fatal(err)
		}
		name := operator + "/" + state + "/" + key
		if _, twice := out.state[name]; twice {
			t.Errorf("%s is there twice", name)
		}
		out.state[name] = fmt.Sprint(v)
	}
	for _, v := range [][2]string{{"track", "sum"}, {"track", "most"}, {"track", "fired"}, {"count", "acc"}, {"bucket", "acc"}} {
		for e, err := range offline.Values(t.Context(), s, v[0], v[1], codec.String, codec.Int64) {
			set(err, v[0], v[1], e.Key, e.Value)
		}
	}
	for e, err := range offline.Values(t.Context(), s, "track", "mean", codec.String, meanCodec) {
		set(err, "track", "mean", e.Key, e.Value)
	}
	for e, err := range offline.Maps(t.Context(), s, "track", "blobs", codec.String, codec.Int64, codec.String) {
		set(err, "track", "blobs", fmt.Sprint(e.Key, "/", e.MapKey), e.Value)
	}
	at := map[string]int{}
	for e, err := range offline.Lists(t.Context(), s, "track", "last", codec.String, codec.Int64) {
		set(err, "track", "last", fmt.Sprint(e.Key, "/", at[e.Key]), e.Value)
		at[e.Key]++
	}
	for _, clock := range []string{offline.EventTimers, offline.ProcessingTimers} {
		for e, err := range offline.Timers(t.Context(), s, "track", clock, codec.String) {
			set(err, "track", clock, fmt.Sprint(e.Key, "/", e.At), "")
		}
	}
	for _, topic := range []string{"asides", "reminded", "dead"} {
		for key, values := range committed(t, brokers, topic) {
			out.outputs[topic+"/"+key] = values
		}
	}
	for _, topic := range []string{"totals", "counts", "buckets"} {
		for key, values := range committed(t, brokers, topic) {
			for i, v := range values {
				n, err := codec.Int64.Decode([]byte(v))
				if err != nil {
					t.Fatal(err)
				}
				values[i] = fmt.Sprint(n)
			}
			if topic == "buckets" { // made of several keys, which have no order among each other
				values = values[len(values)-1:]
			}
			out.outputs[topic+"/"+key] = values
		}
	}
	return out
}

// journey runs orders through several lives of an app, each with its own backend,
// parallelism and triggers, chosen by rng but for the first life.
type journey struct {
	rng         *rand.Rand
	backend     string
	parallelism int
	byRecords   bool
	alignment   int // index into alignments
}

// alignments are the ways in which checkpoints can be cut.
var alignments = []struct {
	name string
	opts []weir.Option
}{
	{"aligned", nil},
	{"unaligned", []weir.Option{weir.Unaligned()}},
	{"unaligned after a while", []weir.Option{weir.AlignmentTimeout(200 * time.Microsecond)}},
}

func (j *journey) triggers() []weir.Option {
	if j.byRecords {
		return []weir.Option{weir.CheckpointEvery(0), weir.AfterRecords(1 + j.rng.Int64N(200))}
	}
	return []weir.Option{weir.CheckpointEvery(time.Duration(1+j.rng.IntN(40)) * time.Millisecond)}
}

func (j *journey) run(t *testing.T, orders []order, lives int) outcome {
	brokers := broker(t, 4, "in", "totals", "asides", "reminded", "counts", "buckets", "dead")
	dir, store := newDir(t)
	local := t.TempDir()
	var from []weir.Option
	left := int64(0) // records of the input that are not in a committed checkpoint
	var path []string
	defer func() {
		if t.Failed() || testing.Verbose() {
			t.Logf("went %s", strings.Join(path, ", "))
		}
	}()
	for i := range lives {
		if i > 0 {
			j.backend, j.parallelism, j.byRecords = []string{"memory", "pebble"}[j.rng.IntN(2)], []int{1, 2, 3, 7}[j.rng.IntN(4)], j.rng.IntN(2) == 0
			j.alignment = j.rng.IntN(len(alignments))
		}
		l := &life{brokers: brokers, topology: everyKind, store: store,
			opts: slices.Concat([]weir.Option{weir.Parallelism(j.parallelism), weir.DeadLetters("dead"), weir.Retain(1 + j.rng.IntN(3))}, alignments[j.alignment].opts, j.triggers(), from)}
		if j.backend == "pebble" {
			if j.rng.IntN(3) == 0 {
				local = t.TempDir() // or else it may be that of an earlier life
			}
			l.backend = pebble.Dir(local)
			l.backend.MemoryBytes = 1 // the least there is
		}
		path = append(path, fmt.Sprintf("%s with %d subtasks, %s (by records: %v)", j.backend, j.parallelism, alignments[j.alignment].name, j.byRecords))
		part := orders
		if i < lives-1 {
			part = orders[:len(orders)/(lives-i)+j.rng.IntN(50)]
		}
		orders = orders[len(part):]
		left += int64(len(part))
		var rs []*kgo.Record
		for _, o := range part {
			rs = append(rs, record("in", o.key, o.String()))
		}
		if i == lives-1 {
			produce(t, brokers, rs...)
			l.mustDrain(t)
			path = append(path, fmt.Sprintf("with %d records in flight", l.flown))
			break
		}
		end := []string{"stop", "savepoint", "retained", "death"}[j.rng.IntN(4)]
		path = append(path, end)
		if end == "death" {
			l.store = dying(store, j.rng.IntN(12), j.rng.IntN(2) == 0)
			l.opts = append(l.opts, weir.TolerableFailures(0), weir.CheckpointEvery(time.Millisecond), weir.AfterRecords(0),
				weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 1, Quiet: time.Hour}))
			l.start(t)
			fed := feed(t, brokers, rs)
			err := l.endOr(t, func(records int64) bool { return records >= left })
			if err := <-fed; err != nil {
				t.Fatal(err)
			}
			if err != nil && !errors.Is(err, faultstore.ErrDead) {
				t.Fatal(err)
			} else if err != nil {
				path = append(path, fmt.Sprintf("after %d commits", l.commits))
			}
			path = append(path, fmt.Sprintf("with %d records in flight", l.flown))
			left -= l.records
			continue
		}
		// The app stops somewhere in this part: what it has not seen of it stays for
		// the next life.
		at := 1 + j.rng.Int64N(int64(len(part)))
		l.start(t)
		fed := feed(t, brokers, rs)
		l.until(t, func(records int64, commits int) bool { return commits > 0 && (records >= at || j.byRecords) })
		switch end {
		case "stop":
			l.stop()
			if err := l.wait(t); err != nil {
				t.Fatal(err)
			}
		default:
			name := fmt.Sprint("life-", i)
			if end == "savepoint" {
				if _, err := l.app.StopWithSavepoint(t.Context(), "", name); err != nil {
					t.Fatal(err)
				}
			} else {
				l.stop()
			}
			if err := l.wait(t); err != nil {
				t.Fatal(err)
			}
			if end == "retained" {
				if _, err := open(t, store, offline.Latest).Save(t.Context(), store, name, nil); err != nil {
					t.Fatal(err)
				}
			}
			forget(t, brokers)
			from = []weir.Option{weir.FromSavepoint(dir, name)}
			dir, store = newDir(t)
		}
		if err := <-fed; err != nil {
			t.Fatal(err)
		}
		path = append(path, fmt.Sprintf("with %d records in flight", l.flown))
		left -= l.records
	}
	return observe(t, brokers, store)
}

// feed produces beside an app that runs, a few records at a time, so that barriers fall
// between them. It says when it is done.
func feed(t *testing.T, brokers []string, rs []*kgo.Record) <-chan error {
	cl := client(t, brokers)
	done := make(chan error, 1)
	go func() {
		for part := range slices.Chunk(rs, 25) {
			if err := cl.ProduceSync(context.Background(), part...).FirstErr(); err != nil {
				done <- err
				return
			}
		}
		done <- nil
	}()
	return done
}

// dying returns a store in which a put fails after n others, and so does each that
// follows: before it happens, or after, so that it has happened and nobody knows.
func dying(inner checkpoint.Store, n int, after bool) checkpoint.Store {
	var puts atomic.Int64
	s := faultstore.Wrap(inner)
	hook := func(_ context.Context, op faultstore.Op, _ string) error {
		if op == faultstore.Put && puts.Add(1) > int64(n) {
			return faultstore.ErrDead
		}
		return nil
	}
	if after {
		s.After(hook)
	} else {
		s.Before(hook)
	}
	return s
}

var journeys = flag.Uint64("journeys", 0, "which journeys through backends, parallelisms and ends: another number, others")

func TestBackendParallelismTriggersAndRestoresChangeNoResult(t *testing.T) {
	orders := randomOrders(rand.New(rand.NewPCG(1, 2)), 1500, 120)
	want := model(orders)
	for _, backend := range []string{"memory", "pebble"} {
		for i, parallelism := range []int{1, 2, 3, 7} {
			for _, byRecords := range []bool{false, true} {
				trigger := map[bool]string{false: "interval", true: "records"}[byRecords]
				alignment := (i + len(trigger) + len(backend)) % len(alignments)
				t.Run(fmt.Sprintf("%s/%d/%s", backend, parallelism, trigger), func(t *testing.T) {
					t.Parallel()
					seed := *journeys<<16 | uint64(parallelism)<<1 | uint64(len(trigger)&1) | uint64(len(backend)&1)<<8
					j := &journey{rng: rand.New(rand.NewPCG(seed, 3)), backend: backend, parallelism: parallelism, byRecords: byRecords, alignment: alignment}
					want.compare(t, j.run(t, orders, 4))
				})
			}
		}
	}
}
