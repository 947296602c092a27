package weirtest_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/weirtest"
)

func counts(app *weir.App) {
	words := weir.From(app, "words", source.KeyValues("words", codec.String, codec.String))
	byWord := weir.KeyBy(words, "by-word", func(kv weir.KV[string, string]) string { return kv.Value }, codec.String)
	weir.To(weir.Aggregate(byWord, "count", weir.Count[weir.KV[string, string]]()), "counts", kafka.Sink("counts", codec.String, codec.Int64))
}

// words are n records of some words.
func words(n int) (rs []weir.KV[string, string]) {
	for i := range n {
		rs = append(rs, weir.KV[string, string]{Key: fmt.Sprint(i), Value: fmt.Sprint("word", i%7)})
	}
	return rs
}

// counted checks that what a read_committed reader sees counts each word up by one.
func counted(t *testing.T, b *weirtest.Broker, n int) {
	t.Helper()
	last, all := map[string]int64{}, 0
	for _, kv := range weirtest.Read(b, "counts", codec.String, codec.Int64) {
		if kv.Value != last[kv.Key]+1 {
			t.Fatalf("%s: %d follows %d", kv.Key, kv.Value, last[kv.Key])
		}
		last[kv.Key] = kv.Value
		all++
	}
	if all != n {
		t.Errorf("%d counts, want %d", all, n)
	}
}

func TestAnAppOnTheBrokerSurvivesKillsAndStops(t *testing.T) {
	b := weirtest.StartBroker(t, 3, "words")
	b.CreateTopic(2, "counts")
	weirtest.Produce(b, "words", codec.String, codec.String, words(500)...)
	run := b.Start(counts, weir.Parallelism(2))
	run.UntilRecords(1)
	run.Kill()
	if err := run.Wait(); err == nil || err.Error() != "weir: weirtest: killed" {
		t.Errorf("the killed run returned %v", err)
	}
	run = b.Start(counts, weir.Parallelism(3))
	weirtest.Produce(b, "words", codec.String, codec.String, words(200)...)
	run.Until(func() bool { return len(b.Records("counts")) == 700 })
	// The broker may have the last commit a moment before the app hears so.
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		v, err := weir.Query(t.Context(), run.App(), "count", "acc", "word0", codec.String, codec.Int64)
		if err == nil && v.Value == 72+29 {
			break
		}
		if time.Since(begun) > weirtest.Patience {
			t.Fatalf("word0 was counted %d times, %v", v.Value, err)
		}
	}
	run.Stop()
	weirtest.ProduceValues(b, "words", codec.String, "word0")
	b.Drain(counts)
	counted(t, b, 701)
	if vs := weirtest.ReadValues(b, "counts", codec.Int64); len(vs) != 701 {
		t.Errorf("%d values", len(vs))
	}
}

// What a killed process has not committed is not seen, and comes again.
func TestAKilledRunCommitsNothingMore(t *testing.T) {
	b := weirtest.StartBroker(t, 1, "words", "counts")
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs()...), kgo.ConsumeTopics("counts"), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	adm := kadm.NewClient(cl)
	end := func(of func(context.Context, ...string) (kadm.ListedOffsets, error)) int64 {
		t.Helper()
		all, err := of(t.Context(), "counts")
		if err != nil {
			t.Fatal(err)
		}
		o, _ := all.Lookup("counts", 0)
		return o.Offset
	}
	for i := range int64(4) {
		weirtest.Produce(b, "words", codec.String, codec.String, words(7)...)
		run := b.Start(counts, weir.CheckpointEvery(5*time.Minute), weir.AfterRecords(1000))
		// The first time 7, then 14 because those come again, and so on; a reader who does
		// not mind sees them all.
		for left := 7 * (i + 1); left > 0; {
			fs := cl.PollFetches(t.Context())
			if err := fs.Err(); err != nil {
				t.Fatal(err)
			}
			left -= int64(fs.NumRecords())
		}
		run.Kill()
		if stable, all := end(adm.ListCommittedOffsets), end(adm.ListEndOffsets); stable >= all {
			t.Errorf("the transaction of the killed run does not stay open: %d of %d records are decided", stable, all)
		}
	}
	if n := len(b.Records("counts")); n != 0 {
		t.Errorf("%d counts are committed", n)
	}
	b.Drain(counts)
	counted(t, b, 28)
}

// Nobody waits for what an app that has failed would have written.
func TestAwaitSaysWhyTheAppHasEnded(t *testing.T) {
	topology := lines(func(s string) (string, error) {
		if s == "bad" {
			return "", errors.New("a bad line")
		}
		return s, nil
	})
	b := weirtest.StartBroker(t, 1, "lines", "copies")
	weirtest.ProduceValues(b, "lines", codec.String, "a")
	run := b.Start(topology)
	run.UntilRecords(1)
	weirtest.ProduceValues(b, "lines", codec.String, "bad")
	if err := run.Wait(); err == nil {
		t.Fatal("the app goes on")
	}
	b.Await("copies", 1) // what has come is found all the same
	wantFailure(t, func(t weirtest.TB) {
		of := weirtest.StartBroker(t, 1, "lines", "copies")
		weirtest.ProduceValues(of, "lines", codec.String, "bad")
		of.Start(topology)
		of.Await("copies", 1)
	}, `the app has ended: weir: weirtest: operator "map" failed on lines/0 at offset 0: a bad line`, "0 of 1 records came to topic copies")
}

// What ends with an aborted transaction, whose marker comes behind an open one, can be read.
func TestRecordsAreReadUpToAnOpenTransaction(t *testing.T) {
	b := weirtest.StartBroker(t, 1, "lines")
	weirtest.ProduceValues(b, "lines", codec.String, "before")
	var cls []*kgo.Client
	for _, id := range []string{"aborted", "open"} {
		cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs()...), kgo.TransactionalID(id))
		if err != nil {
			t.Fatal(err)
		}
		defer cl.Close()
		if err := cl.BeginTransaction(); err != nil {
			t.Fatal(err)
		}
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "lines", Value: []byte(id)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
		cls = append(cls, cl)
	}
	if err := cls[0].EndTransaction(t.Context(), kgo.TryAbort); err != nil {
		t.Fatal(err)
	}
	if vs := weirtest.ReadValues(b, "lines", codec.String); len(vs) != 1 || vs[0] != "before" {
		t.Errorf("read %q", vs)
	}
}
