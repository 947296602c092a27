package weir_test

import (
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// TestTwoStagesMergesAndSideOutputsAgreeWithAModel runs a topology with every
// operator, through several drains with different parallelism and with restarts
// in between, and compares with a model of the input.
func TestTwoStagesMergesAndSideOutputsAgreeWithAModel(t *testing.T) {
	brokers := broker(t, 5, "left", "right", "sums", "big", "rekeyed", "least")
	store := checkpoint.NewMem()
	type kv = weir.KV[string, int64]
	topology := func(app *weir.App) {
		parse := func(s string) (kv, error) {
			k, v, _ := strings.Cut(s, ":")
			n, err := strconv.ParseInt(v, 10, 64)
			return kv{Key: k, Value: n}, err
		}
		left := weir.Map(weir.From(app, "left", source.Values("left", codec.String)), "parse-left", parse)
		right := weir.Map(weir.From(app, "right", source.Values("right", codec.String)), "parse-right", parse)
		both := weir.Merge("both", left, weir.Filter(right, "even", func(p kv) bool { return p.Value%2 == 0 }))
		byKey := weir.KeyBy(both, "by-key", func(p kv) string { return p.Key }, codec.String)

		big := weir.Side[int64]("big")
		sums := weir.Process(byKey, "sum", func(s *weir.Setup) weir.Handler[string, kv, kv] {
			total := state.Value(s, "total", codec.Int64)
			return weir.OnRecord(func(c *weir.Context[string, kv], p kv) error {
				now := total.Get() + p.Value
				if now > 1000 {
					total.Clear() // the key starts again
					big.Emit(c, now)
					return nil
				}
				total.Set(now)
				c.Emit(kv{Key: c.Key(), Value: now})
				return nil
			})
		})
		weir.To(sums, "sums", kafka.Sink("sums", codec.String, codec.Int64))
		weir.To(big.From(sums), "big", kafka.Values("big", kafka.NoKey, codec.Int64))

		// A second stage that is fed by the first one and by a source.
		mixed := weir.Merge("mixed", sums, left)
		byLetter := weir.KeyBy(mixed, "by-letter", func(p kv) string { return p.Key[:1] }, codec.String)
		counts := weir.Aggregate(byLetter, "count", weir.Count[kv]())
		weir.To(counts, "rekeyed", kafka.Sink("rekeyed", codec.String, codec.Int64))
		least := weir.Reduce(byLetter, "least", func(a, b kv) (kv, error) {
			if b.Value < a.Value {
				a = b
			}
			return a, nil
		}, codec.JSON[kv]())
		weir.To(weir.Map(least, "value", func(p weir.KV[string, kv]) (kv, error) { return kv{Key: p.Key, Value: p.Value.Value}, nil }),
			"least-out", kafka.Sink("least", codec.String, codec.Int64))
	}

	// The model: order within a key is order within a partition, since producers
	// choose the partition by the key, and each key lives in one topic.
	totals, sums, bigs := map[string]int64{}, map[string]int{}, 0
	counts, least := map[string]int64{}, map[string]int64{}
	second := func(k string, v int64) {
		l := k[:1]
		counts[l]++
		if old, ok := least[l]; !ok || v < old {
			least[l] = v
		}
	}
	rng := rand.New(rand.NewPCG(7, 7))
	for round, parallelism := range []int{1, 3, 7, 2} {
		var in [2][]string
		for range 2000 {
			side := rng.IntN(2)
			k, n := fmt.Sprintf("%c%d", 'a'+rune(rng.IntN(5)), side+2*rng.IntN(50)), int64(rng.IntN(100))
			in[side] = append(in[side], fmt.Sprintf("%s:%d", k, n))
			if side == 1 && n%2 == 1 {
				continue
			}
			if side == 0 {
				second(k, n)
			}
			now := totals[k] + n
			if now > 1000 {
				delete(totals, k)
				bigs++
				continue
			}
			totals[k] = now
			sums[fmt.Sprintf("%s:%d", k, now)]++
			second(k, now)
		}
		produceByKey(t, brokers, "left", in[0])
		produceByKey(t, brokers, "right", in[1])
		r := start(t, "app", brokers, topology, weir.Store(store), weir.Parallelism(parallelism), weir.AfterRecords(300), weir.Drain())
		if err := r.wait(); err != nil {
			t.Fatalf("round %d: %v", round, err)
		}
	}

	got := map[string]int{}
	for _, r := range consume(t, brokers, "sums", sum(sums)) {
		n, _ := codec.Int64.Decode(r.Value)
		got[fmt.Sprintf("%s:%d", r.Key, n)]++
	}
	if !maps.Equal(got, sums) {
		t.Errorf("the sums differ from the model's")
	}
	consume(t, brokers, "big", bigs)
	for topic, want := range map[string]map[string]int64{"rekeyed": counts, "least": least} {
		last := map[string]int64{}
		n := 0
		for _, c := range counts {
			n += int(c)
		}
		for _, r := range consume(t, brokers, topic, n) {
			v, _ := codec.Int64.Decode(r.Value)
			if topic == "rekeyed" && v != last[string(r.Key)]+1 {
				t.Fatalf("count %d of %s follows %d", v, r.Key, last[string(r.Key)])
			}
			last[string(r.Key)] = v
		}
		if !maps.Equal(last, want) {
			t.Errorf("topic %s ends in %v, want %v", topic, last, want)
		}
	}
}

// produceByKey writes "key:n" strings under their key, so that order within a key is
// kept.
func produceByKey(t *testing.T, brokers []string, topic string, pairs []string) {
	t.Helper()
	produceKeyed(t, brokers, topic, pairs, func(s string) string { k, _, _ := strings.Cut(s, ":"); return k })
}

func sum(m map[string]int) int {
	n := 0
	for _, v := range slices.Collect(maps.Values(m)) {
		n += v
	}
	return n
}

// TestRollbacksAtRandomRecordsLeaveNoTrace fails at random records while checkpoints
// follow each other as fast as they can: each failure rolls state, positions and
// outputs back to the last commit.
func TestRollbacksAtRandomRecordsLeaveNoTrace(t *testing.T) {
	brokers := broker(t, 6, "in", "out")
	const records, keys, failures, work = 100000, 40, 5, 10 * time.Microsecond
	var pairs []string
	want := map[string]int{}
	totals := map[string]int{}
	rng := rand.New(rand.NewPCG(3, 4))
	for range records {
		k, n := "k"+strconv.Itoa(rng.IntN(keys)), rng.IntN(10)
		pairs = append(pairs, fmt.Sprintf("%s:%d", k, n))
		totals[k] += n
		want[fmt.Sprintf("%s:%d", k, totals[k])]++
	}
	produceByKey(t, brokers, "in", pairs)
	var failed, commits, stumbledAt atomic.Int64
	topology := func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		byKey := weir.KeyBy(in, "by-key", func(s string) string { k, _, _ := strings.Cut(s, ":"); return k }, codec.String)
		out := weir.Process(byKey, "sum", func(s *weir.Setup) weir.Handler[string, string, string] {
			total := state.Value(s, "total", codec.Int64)
			return weir.OnRecord(func(c *weir.Context[string, string], v string) error {
				// Some commits must lie between two failures, or there is nothing to roll
				// back to.
				if n, at := commits.Load(), stumbledAt.Load(); n >= at+2 && failed.Load() < failures && stumbledAt.CompareAndSwap(at, n) {
					failed.Add(1)
					return weir.Retry(errors.New("stumbled"))
				}
				// The work keeps the input ahead of the app, so that barriers and commits
				// always fall between records.
				for begun := time.Now(); time.Since(begun) < work; {
				}
				_, num, _ := strings.Cut(v, ":")
				n, err := strconv.ParseInt(num, 10, 64)
				total.Set(total.Get() + n)
				c.Emit(c.Key() + ":" + strconv.FormatInt(total.Get(), 10))
				return err
			})
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}
	start(t, "app", brokers, topology, weir.Store(checkpoint.NewMem()), weir.Parallelism(3), weir.CheckpointEvery(time.Millisecond),
		weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: -1}),
		weir.Listen(weir.Listener{CheckpointCommitted: func(event.CheckpointCommitted) { commits.Add(1) }}))
	got := map[string]int{}
	for _, rec := range consume(t, brokers, "out", records) {
		got[string(rec.Value)]++
	}
	if failed.Load() < 2 {
		t.Fatalf("stumbled %d times: this shows nothing", failed.Load())
	}
	if !maps.Equal(got, want) {
		t.Error("the outputs differ from the model's")
	}
	t.Logf("%d failures", failed.Load())
}
