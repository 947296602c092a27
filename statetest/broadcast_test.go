package statetest_test

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
)

// hall is an app whose handlers are slow when the test says so. It counts rules, which are
// broadcast, and tells what it knows of them with each event.
type hall struct {
	river
	pace time.Duration // of a slow handler
}

const badRule = 5 // every number of a rule that it divides is dead-lettered

func (h *hall) topology(app *weir.App) {
	text := codec.String
	rules := weir.Broadcast(weir.From(app, "rules", source.Values("rules", text)), weir.ValueCodec(text))
	events := weir.From(app, "events", source.KeyValues("events", text, text))
	byKey := weir.KeyBy(events, "by-key", func(kv weir.KV[string, string]) string { return kv.Key }, text, weir.ValueCodec(codec.JSON[weir.KV[string, string]]()))
	out := weir.Process(byKey, "tell", func(s *weir.Setup) weir.Handler[string, weir.KV[string, string], weir.KV[string, string]] {
		counts := state.Broadcast(s, "counts", text, codec.Int64)
		seen := state.Value(s, "seen", codec.Int64)
		known := func() (n int64, all string) {
			for k, c := range counts.All() {
				n += c
				all += fmt.Sprintf(" %s=%d", k, c)
			}
			return n, all
		}
		rules.On(s, func(rule string) error {
			if h.dead.Load() {
				return errRiver
			}
			if h.slow.Load() {
				time.Sleep(50 * time.Millisecond) // the other rules are in flight meanwhile
			}
			name, digits, _ := strings.Cut(rule, ":")
			n, err := strconv.ParseInt(digits, 10, 64)
			if err != nil {
				return err
			}
			if was := counts.Get(name); n != was+1 {
				return fmt.Errorf("number %d of rule %s comes after number %d", n, name, was)
			}
			counts.Put(name, n)
			if n%badRule == 0 {
				return weir.DeadLetter(errors.New("bad"))
			}
			return nil
		})
		return weir.OnRecord(func(c *weir.Context[string, weir.KV[string, string]], e weir.KV[string, string]) error {
			if err := h.pass(h.pace); err != nil {
				return err
			}
			n, all := known()
			if n < seen.Get() {
				return fmt.Errorf("an event of key %s sees %d rules, one before it saw %d", e.Key, n, seen.Get())
			}
			seen.Set(n)
			if e.Value == "probe" {
				c.Emit(weir.KV[string, string]{Key: e.Key, Value: strings.TrimSpace(all)})
			} else {
				c.Emit(e)
			}
			return nil
		})
	})
	weir.To(out, "out", kafka.Sink("out", text, text))
}

// TestS25_BroadcastRecordsInFlightReachEverySubtaskOnce kills an app with broadcast records
// in flight, restores it with another number of subtasks, kills it again before its first
// new checkpoint, and then asks every subtask what it knows.
func TestS25_BroadcastRecordsInFlightReachEverySubtaskOnce(t *testing.T) {
	for _, backend := range []string{"memory", "pebble"} {
		for _, scale := range [][2]int{{1, 2}, {3, 7}, {7, 2}} {
			t.Run(fmt.Sprintf("%s/%dto%d", backend, scale[0], scale[1]), func(t *testing.T) {
				t.Parallel()
				if testing.Short() && (backend == "pebble" || scale[0] != 3) {
					t.Skip("what is slow here is slower with the race detector; -short was given")
				}
				f := &flow{brokers: broker(t, 4, "rules", "events", "out", "dead"), want: map[string][]string{}, dead: map[string][]string{}}
				f.dir, f.store = newDir(t)
				var local pebble.Backend
				if backend == "pebble" {
					local = pebble.Dir(t.TempDir())
				}
				voyage := func(h *hall, parallelism int, opts ...weir.Option) *voyage {
					v := f.life(&h.river, parallelism, append([]weir.Option{weir.Unaligned()}, opts...)...)
					v.life.topology, v.backend = h.topology, local
					return v
				}
				const keys, each, rules, names = 60, 60, 30, 3
				for i := range each {
					for k := range keys {
						e := record("events", fmt.Sprintf("key-%02d", k), fmt.Sprint(i))
						f.input = append(f.input, e)
						f.want[string(e.Key)] = append(f.want[string(e.Key)], fmt.Sprint(i))
					}
				}
				before, after := f.input[:keys*each/2], f.input[keys*each/2:]
				produce(t, f.brokers, before...)

				slow := &hall{pace: time.Duration(scale[0]) * time.Millisecond}
				slow.slow.Store(true)
				v := voyage(slow, scale[0])
				v.start(t)
				v.until(t, func(int64, int) bool { return v.inFlight.Load() > 0 })
				var table []string
				var fed []*kgo.Record
				for name := range names {
					key := fmt.Sprint("rule-", name)
					for i := range rules { // of one name, all are in one partition
						rule := record("rules", key, fmt.Sprint(key, ":", i+1))
						fed = append(fed, rule)
						if (i+1)%badRule == 0 {
							f.dead[key] = append(f.dead[key], string(rule.Value))
						}
					}
					table = append(table, fmt.Sprint(key, "=", rules))
				}
				produce(t, f.brokers, append(fed, after...)...)
				v.until(t, func(int64, int) bool { return v.casts.Load() > 0 && v.inFlight.Load() > v.casts.Load() })
				v.kill(t)
				if v.casts.Load() == 0 {
					t.Fatal("the broadcast records were processed before the end of this life")
				}

				again := &hall{}
				again.stopAt.Store(100)
				v = voyage(again, scale[1], weir.CheckpointEvery(5*time.Minute))
				v.start(t)
				if err := v.wait(t); !errors.Is(err, errRiver) || v.commits > 0 {
					t.Fatalf("got %v after %d commits, want the end of this life before the first", err, v.commits)
				}
				if v.restoredInFlight() == 0 {
					t.Fatal("nothing was in flight")
				}

				voyage(&hall{}, scale[1]).mustDrain(t)
				for k := range keys {
					key := fmt.Sprintf("key-%02d", k)
					produce(t, f.brokers, record("events", key, "probe"))
					f.want[key] = append(f.want[key], strings.Join(table, " "))
				}
				voyage(&hall{}, scale[1]).mustDrain(t)
				compareMaps(t, "output", committed(t, f.brokers, "out"), f.want, slices.Equal[[]string])
				compareMaps(t, "dead letters", committed(t, f.brokers, "dead"), f.dead, slices.Equal[[]string])
			})
		}
	}
}
