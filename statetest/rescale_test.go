package statetest_test

import (
	"fmt"
	"maps"
	"strconv"
	"sync"
	"testing"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
)

// whereabouts notes which keys each subtask saw. A subtask is told by the handler that
// it has for itself.
type whereabouts struct {
	mu   sync.Mutex
	seen []map[string]bool // by handler
}

func (w *whereabouts) topology(app *weir.App) {
	w.seen = nil
	byKey := weir.KeyBy(read(app), "by-key", func(i input) string { return i.Key }, codec.String)
	out := weir.Process(byKey, "op", func(s *weir.Setup) weir.Handler[string, input, input] {
		v := state.Value(s, "v", codec.Int64)
		timers := state.ProcessingTimers(s)
		w.mu.Lock()
		mine := map[string]bool{}
		w.seen = append(w.seen, mine)
		w.mu.Unlock()
		return weir.OnRecord(func(c *weir.Context[string, input], i input) error {
			w.mu.Lock()
			mine[i.Key] = true
			w.mu.Unlock()
			now, text := total(v.Get(), i.Value)
			v.Set(now)
			timers.Set(order{n: now}.alarm())
			c.Emit(input{Key: i.Key, Value: text})
			return nil
		}).OnTimer(func(c *weir.Context[string, input], t weir.Timer) error { return fmt.Errorf("%v fired", t) })
	})
	weir.To(out, "out", kafka.Sink("out", codec.String, codec.String))
}

// check checks that each key was on the subtask that owns its key-group.
func (w *whereabouts) check(t *testing.T, parallelism, keys int) {
	t.Helper()
	at, total := map[int]bool{}, 0
	for _, mine := range w.seen {
		subtask := -1
		for k := range mine {
			total++
			want := keygroup.Subtask(keygroup.Of([]byte(k), weir.DefaultKeyGroups), parallelism, weir.DefaultKeyGroups)
			if subtask < 0 {
				subtask = want
				if at[subtask] {
					t.Errorf("two handlers saw keys of subtask %d of %d", subtask, parallelism)
				}
				at[subtask] = true
			}
			if want != subtask {
				t.Errorf("key %s of subtask %d is on the same subtask of %d as keys of %d", k, want, parallelism, subtask)
			}
		}
	}
	if total != keys || len(at) != parallelism {
		t.Errorf("%d keys were seen on %d subtasks, want %d on %d", total, len(at), keys, parallelism)
	}
}

func TestS27_RescaledEachKeyIsOnTheSubtaskOfItsKeyGroupWithItsState(t *testing.T) {
	for _, backend := range []string{"memory", "pebble"} {
		for _, through := range []string{"checkpoint", "savepoint"} {
			t.Run(backend+"/"+through, func(t *testing.T) {
				t.Parallel()
				const keys = 400
				brokers := broker(t, 3, "in", "out")
				var b pebble.Backend
				if backend == "pebble" {
					b = pebble.Dir(t.TempDir())
				}
				dir, store := newDir(t)
				var from []weir.Option
				want := map[string]int64{}
				for i, parallelism := range []int{2, 7, 1, 5, 3} {
					var rs []*kgo.Record
					for k := range keys {
						key, n := fmt.Sprint("k", k), int64(k+i)
						want[key] += n
						rs = append(rs, record("in", key, fmt.Sprint(n)))
					}
					produce(t, brokers, rs...)
					w := &whereabouts{}
					l := &life{brokers: brokers, topology: w.topology, store: store, backend: b, opts: append(from, weir.Parallelism(parallelism))}
					l.mustDrain(t)
					w.check(t, parallelism, keys)
					got, timers := map[string]int64{}, map[string]int{}
					s := open(t, store, offline.Latest)
					for e, err := range offline.Values(t.Context(), s, "op", "v", codec.String, codec.Int64) {
						if err != nil {
							t.Fatal(err)
						}
						if kg := keygroup.Of([]byte(e.Key), weir.DefaultKeyGroups); e.KeyGroup != kg {
							t.Errorf("key %s is stored in key-group %d, want %d", e.Key, e.KeyGroup, kg)
						}
						got[e.Key] = e.Value
					}
					if !maps.Equal(got, want) {
						t.Fatalf("with %d subtasks the totals differ from those of the input", parallelism)
					}
					for e, err := range offline.Timers(t.Context(), s, "op", offline.ProcessingTimers, codec.String) {
						if err != nil {
							t.Fatal(err)
						}
						timers[e.Key]++
					}
					for k, n := range timers {
						if k != "k0" && n != i+1 { // k0 begins with a total of 0, and so does every other total differ
							t.Fatalf("with %d subtasks key %s has %d timers, want %d", parallelism, k, n, i+1)
						}
					}
					if len(timers) != keys {
						t.Fatalf("with %d subtasks %d keys have timers, want %d", parallelism, len(timers), keys)
					}
					if through == "savepoint" {
						name := fmt.Sprint("rescale-", i)
						if _, err := s.Save(t.Context(), store, name, nil); err != nil {
							t.Fatal(err)
						}
						forget(t, brokers)
						from = []weir.Option{weir.FromSavepoint(dir, name)}
						dir, store = newDir(t)
					}
				}
			})
		}
	}
}

// Inputs end at different times: a long topic, a short one, one of which a single
// partition has a record, and an empty one. What the others have after that is committed,
// and so are the positions of all; the next start goes on with whichever has more.
func TestS26_InputsThatFinishEarlyHoldNothingUpAndAreGoneOnWith(t *testing.T) {
	topics := []string{"long", "short", "one", "none"}
	topology := func(app *weir.App) {
		var ins []weir.Stream[input]
		for _, topic := range topics {
			ins = append(ins, weir.From(app, topic, source.KeyValues(topic, codec.String, codec.String)))
		}
		byKey := weir.KeyBy(weir.Merge("all", ins[0], ins[1:]...), "by-key", func(i input) string { return i.Key }, codec.String)
		weir.To(weir.Aggregate(byKey, "count", weir.Count[input]()), "out", kafka.Sink("out", codec.String, codec.Int64))
	}
	for _, backend := range []string{"memory", "pebble"} {
		t.Run(backend, func(t *testing.T) {
			t.Parallel()
			brokers := broker(t, 3, append(topics, "out")...)
			store := checkpoint.NewMem()
			var b pebble.Backend
			if backend == "pebble" {
				b = pebble.Dir(t.TempDir())
			}
			want := map[string]int64{}
			put := func(topic string, n int) {
				var rs []*kgo.Record
				for i := range n {
					key := strconv.Itoa(i % 50)
					want[key]++
					rs = append(rs, record(topic, key, "x"))
				}
				produce(t, brokers, rs...)
			}
			check := func() {
				t.Helper()
				got := map[string]int64{}
				for key, values := range committed(t, brokers, "out") {
					for i, v := range values {
						if n, err := codec.Int64.Decode([]byte(v)); err != nil || n != int64(i+1) {
							t.Fatalf("output %d of key %s is %d, %v", i, key, n, err)
						}
					}
					got[key] = int64(len(values))
				}
				if !maps.Equal(got, want) {
					t.Fatalf("counted %v, want %v", got, want)
				}
				adm := kadm.NewClient(client(t, brokers))
				offsets, err := adm.FetchOffsets(t.Context(), appName)
				if err != nil {
					t.Fatal(err)
				}
				ends, err := adm.ListEndOffsets(t.Context(), topics...)
				if err != nil {
					t.Fatal(err)
				}
				ends.Each(func(end kadm.ListedOffset) {
					if o, ok := offsets.Lookup(end.Topic, end.Partition); !ok || o.At != end.Offset {
						t.Errorf("%s/%d is committed at %d, %v; its end is %d", end.Topic, end.Partition, o.At, ok, end.Offset)
					}
				})
			}
			put("long", 3000)
			put("short", 20)
			put("one", 1)
			for _, next := range []struct {
				topic       string
				n           int
				parallelism int
			}{{"short", 100, 1}, {"none", 40, 4}, {"long", 500, 3}, {"one", 7, 2}} {
				l := &life{brokers: brokers, topology: topology, store: store, backend: b,
					opts: []weir.Option{weir.Parallelism(next.parallelism), weir.AfterRecords(100)}}
				l.mustDrain(t)
				check()
				put(next.topic, next.n)
			}
			l := &life{brokers: brokers, topology: topology, store: store, backend: b}
			l.mustDrain(t)
			check()
		})
	}
}
