package weir_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
)

// raise makes v at least n, whoever else does that.
func raise(v *atomic.Int64, n int64) {
	for old := v.Load(); n > old && !v.CompareAndSwap(old, n); old = v.Load() {
	}
}

// broker starts an embedded broker with topics of that many partitions.
func broker(t testing.TB, partitions int32, topics ...string) []string {
	t.Helper()
	return cluster(t, partitions, topics...).ListenAddrs()
}

// cluster is broker for who wants to hurt it.
func cluster(t testing.TB, partitions int32, topics ...string) *kfake.Cluster {
	t.Helper()
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, topics...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c
}

// produce writes values to a topic, keyed by themselves, and waits for them.
func produce(t testing.TB, brokers []string, topic string, values ...string) {
	t.Helper()
	produceKeyed(t, brokers, topic, values, func(v string) string { return v })
}

// produceKeyed writes values to a topic under the keys that key makes.
func produceKeyed(t testing.TB, brokers []string, topic string, values []string, key func(string) string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var rs []*kgo.Record
	for _, v := range values {
		rs = append(rs, &kgo.Record{Topic: topic, Key: []byte(key(v)), Value: []byte(v)})
	}
	if err := cl.ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
		t.Fatal(err)
	}
}

// consume reads n committed records of a topic.
func consume(t testing.TB, brokers []string, topic string, n int) []*kgo.Record {
	t.Helper()
	return consumeAt(t, kgo.ReadCommitted(), brokers, topic, n)
}

// consumeAt reads n records at an isolation level.
func consumeAt(t testing.TB, level kgo.IsolationLevel, brokers []string, topic string, n int) []*kgo.Record {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic),
		kgo.FetchIsolationLevel(level), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	var rs []*kgo.Record
	for len(rs) < n {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatalf("read %d of %d records of %s: %v", len(rs), n, topic, err)
		}
		rs = append(rs, fs.Records()...)
	}
	return rs
}

func wordCount(app *weir.App) {
	lines := weir.From(app, "lines", source.Values("lines", codec.String))
	words := weir.FlatMap(lines, "split", func(line string, emit func(string)) error {
		for w := range strings.FieldsSeq(line) {
			emit(w)
		}
		return nil
	})
	byWord := weir.KeyBy(words, "by-word", func(w string) string { return w }, codec.String)
	counts := weir.Aggregate(byWord, "count", weir.Count[string]())
	weir.To(counts, "counts", kafka.Sink("counts", codec.String, codec.Int64))
}

// stumblingCount is a word count of lines of one word each. It fails once, at a word of which
// stumbles says so, and goes on when it is restarted.
func stumblingCount(app *weir.App, stumbles func(word string) bool) {
	var stumbled atomic.Bool
	words := weir.Map(weir.From(app, "lines", source.Values("lines", codec.String)), "stumble", func(w string) (string, error) {
		if stumbles(w) && stumbled.CompareAndSwap(false, true) {
			return w, weir.Retry(errors.New("stumbled"))
		}
		return w, nil
	})
	byWord := weir.KeyBy(words, "by-word", func(w string) string { return w }, codec.String)
	weir.To(weir.Aggregate(byWord, "count", weir.Count[string]()), "counts", kafka.Sink("counts", codec.String, codec.Int64))
}

func TestWordCountDrainsAndContinuesFromItsCheckpoint(t *testing.T) {
	brokers := broker(t, 4, "lines", "counts")
	store := checkpoint.NewMem()
	run := func() {
		app := weir.New("wordcount", weir.Brokers(brokers...), weir.Store(store), weir.InstanceID("a"),
			weir.Parallelism(3), weir.CheckpointEvery(20*time.Millisecond), weir.Drain())
		wordCount(app)
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		if err := app.Run(ctx); err != nil {
			t.Fatal(err)
		}
		if ctx.Err() != nil {
			t.Fatal("did not drain")
		}
	}
	var lines []string
	for i := range 1000 {
		lines = append(lines, fmt.Sprintf("to be or not %d", i%7))
	}
	produce(t, brokers, "lines", lines...)
	run()
	produce(t, brokers, "lines", "to be", "be")
	run()
	last := map[string]int64{}
	for _, r := range consume(t, brokers, "counts", 5003) {
		n, err := codec.Int64.Decode(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		if last[string(r.Key)]+1 != n {
			t.Fatalf("%s: %d follows %d", r.Key, n, last[string(r.Key)])
		}
		last[string(r.Key)] = n
	}
	for w, want := range map[string]int64{"to": 1001, "be": 1002, "or": 1000, "not": 1000, "0": 143, "6": 142} {
		if last[w] != want {
			t.Errorf("%s was counted %d times, want %d", w, last[w], want)
		}
	}
}
