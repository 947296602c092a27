package redis_test

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/sink/redis"
	"github.com/weirstream/weir/source"
)

func TestMain(m *testing.M) {
	if os.Getenv(serviceEnv) != "" {
		os.Exit(serve())
	}
	os.Exit(redistest.Main(m, "sink/redis"))
}

// broker starts an embedded broker.
func broker(t *testing.T, partitions int32, topics ...string) []string {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, topics...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.ListenAddrs()
}

// produce writes values to a topic, each keyed by itself.
func produce(t *testing.T, brokers []string, topic string, values []string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var rs []*kgo.Record
	for _, v := range values {
		rs = append(rs, &kgo.Record{Topic: topic, Key: []byte(v), Value: []byte(v)})
	}
	if err := cl.ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

func TestCountsInRedisAreRightAfterReplays(t *testing.T) {
	s := redistest.Shared(t)
	brokers := broker(t, 4, "words")
	var words []string
	want := map[string]int{}
	for i := range 20_000 {
		w := fmt.Sprint("w", i*i%101)
		words = append(words, w)
		want[w]++
	}
	produce(t, brokers, "words", words)

	again := errors.New("once more")
	seen, replays := 0, 0
	app := weir.New("upserts", weir.Brokers(brokers...), weir.Store(checkpoint.NewMem()), weir.InstanceID("a"),
		weir.CheckpointEvery(20*time.Millisecond), weir.Restart(weir.RestartPolicy{Limit: 20, Initial: time.Millisecond, Max: time.Millisecond, Quiet: time.Hour}), weir.Parallelism(2), weir.Drain())
	in := weir.From(app, "in", source.Values("words", codec.String))
	byWord := weir.KeyBy(in, "by-word", func(w string) string { return w }, codec.String)
	counts := weir.Aggregate(byWord, "count", weir.Count[string]())
	failing := weir.Map(counts, "fail", func(kv weir.KV[string, int64]) (weir.KV[string, int64], error) {
		if kv.Key == "w1" { // of one subtask
			if seen++; seen%40 == 0 && replays < 8 {
				replays++
				return kv, weir.Retry(again)
			}
		}
		return kv, nil
	})
	o := redis.Options{Addrs: []string{s.Addr}, Prefix: "upserts:"}
	weir.To(failing, "out", redis.Upsert(o, func(u *redis.Upserts, kv weir.KV[string, int64]) {
		u.HSet("counts", kv.Key, strconv.FormatInt(kv.Value, 10))
	}, redis.BatchSize(100, 1<<20)))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := app.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if replays == 0 {
		t.Error("nothing was replayed")
	}
	got, err := s.Client(t).HGetAll(t.Context(), "upserts:counts").Result()
	if err != nil {
		t.Fatal(err)
	}
	for w, n := range want {
		if got[w] != strconv.Itoa(n) {
			t.Errorf("%s was counted %s times, want %d", w, got[w], n)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d words, want %d", len(got), len(want))
	}
}
