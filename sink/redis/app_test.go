package redis_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
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

// countWithReplays counts words into Redis, by an app that fails and replays again and
// again, and returns the right counts.
func countWithReplays(t *testing.T, name, addr string, f func(u *redis.Upserts, kv weir.KV[string, int64])) map[string]int {
	t.Helper()
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
	app := weir.New(name, weir.Brokers(brokers...), weir.Store(checkpoint.NewMem()), weir.InstanceID("a"),
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
	o := redis.Options{Addrs: []string{addr}, Prefix: name + ":"}
	weir.To(failing, "out", redis.Upsert(o, f, redis.BatchSize(100, 1<<20)))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := app.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if replays == 0 {
		t.Error("nothing was replayed")
	}
	return want
}

// wantCounts compares the hash of counts.
func wantCounts(t *testing.T, cl *goredis.Client, key string, want map[string]int) {
	t.Helper()
	got, err := cl.HGetAll(t.Context(), key).Result()
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

func TestCountsInRedisAreRightAfterReplays(t *testing.T) {
	s := redistest.Shared(t)
	want := countWithReplays(t, "upserts", s.Addr, func(u *redis.Upserts, kv weir.KV[string, int64]) {
		u.HSet("counts", kv.Key, strconv.FormatInt(kv.Value, 10))
	})
	wantCounts(t, s.Client(t), "upserts:counts", want)
}

// monitor has Redis show all commands from now on, one a line.
func monitor(t *testing.T, addr string) *bufio.Scanner {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	if _, err := io.WriteString(conn, "MONITOR\r\n"); err != nil {
		t.Fatal(err)
	}
	conn.SetReadDeadline(time.Now().Add(2 * time.Minute))
	lines := bufio.NewScanner(conn)
	lines.Buffer(nil, 1<<20) // a batch of commands is one line
	if !lines.Scan() || lines.Text() != "+OK" {
		t.Fatalf("%q, %v", lines.Text(), lines.Err())
	}
	return lines
}

// TestS37_AppThatReplaysNeverShowsAnOlderValueUnderTheGuard watches what readers see while
// an app replays. Redis tells of every write, so nothing is missed.
func TestS37_AppThatReplaysNeverShowsAnOlderValueUnderTheGuard(t *testing.T) {
	s := redistest.Start(t)
	for _, guarded := range []bool{true, false} {
		name := fmt.Sprint("guarded-", guarded)
		cl := s.Client(t)
		shown := monitor(t, s.Addr)
		want := countWithReplays(t, name, s.Addr, func(u *redis.Upserts, kv weir.KV[string, int64]) {
			if guarded {
				u.Guard(kv.Value)
			}
			u.Set("count:"+kv.Key, strconv.FormatInt(kv.Value, 10))
		})
		cl.Get(t.Context(), name+":end")
		highest, back, writes := map[string]int{}, 0, 0
		for {
			if !shown.Scan() {
				t.Fatalf("the monitor does not show the end: %v", shown.Err())
			}
			line := shown.Text()
			if strings.Contains(line, name+":end") {
				break
			}
			// +1700000000.000000 [0 lua] "SET" "guarded-true:count:w1" "17"
			words := strings.Split(line, `"`)
			if len(words) < 6 || !strings.EqualFold(words[1], "set") || !strings.HasPrefix(words[3], name+":count:") {
				continue
			}
			v, err := strconv.Atoi(words[5])
			if err != nil {
				t.Fatalf("%q: %v", line, err)
			}
			writes++
			if v < highest[words[3]] {
				back++
			}
			highest[words[3]] = max(v, highest[words[3]])
		}
		if guarded && back > 0 {
			t.Errorf("under the guard an older value was written %d times", back)
		}
		if !guarded && back == 0 {
			t.Error("without the guard nothing went back: the test shows nothing")
		}
		for w, n := range want {
			if got := cl.Get(t.Context(), name+":count:"+w).Val(); got != strconv.Itoa(n) {
				t.Errorf("%s was counted %s times, want %d", w, got, n)
			}
		}
		t.Logf("guarded %v: %d writes, %d of them of an older value", guarded, writes, back)
	}
}

// TestAppStartsFromASavepointOnAnotherRedisWhenThatIsAccepted brings an app back where only a
// savepoint is left of it. Redis refuses as long as nobody says that it is meant to be empty,
// and what to say for that stays the same.
func TestAppStartsFromASavepointOnAnotherRedisWhenThatIsAccepted(t *testing.T) {
	dir := t.TempDir()
	run := func(brokers []string, addr string, store weir.Option, opts ...weir.Option) *weir.App {
		app := weir.New("back", append(opts, weir.Brokers(brokers...), store, weir.InstanceID("a"), weir.CheckpointEvery(5*time.Millisecond))...)
		in := weir.From(app, "in", source.Values("words", codec.String))
		weir.To(in, "out", redis.WriteAhead(redis.Options{Addrs: []string{addr}, Prefix: "back:"}, func(b *redis.Batch, w string) {
			b.HIncrBy("counts", w, 1)
		}))
		return app
	}
	first := broker(t, 1, "words")
	produce(t, first, "words", []string{"a", "b", "a"})
	committed := make(chan event.CheckpointCommitted, 1000)
	app := run(first, redistest.Start(t).Addr, weir.Store(checkpoint.NewMem()), weir.Listen(event.Listener{CheckpointCommitted: func(e event.CheckpointCommitted) { committed <- e }}))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- app.Run(ctx) }()
	for n := int64(0); n < 3; {
		select {
		case c := <-committed:
			n += c.Records
		case err := <-done:
			t.Fatal(err)
		}
	}
	if _, err := app.Savepoint(t.Context(), dir, "kept"); err != nil {
		t.Fatal(err)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}

	brokers, other := broker(t, 1, "words"), redistest.Start(t)
	produce(t, brokers, "words", []string{"a", "b", "a", "c"})
	store := weir.Store(checkpoint.NewMem())
	start := func() error {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		return run(brokers, other.Addr, store, weir.FromSavepoint(dir, "kept", weir.AnyTopics()), weir.Drain()).Run(ctx)
	}
	var said int64
	for range 3 {
		err := start()
		var no *redis.NoMarkerError
		if !errors.As(err, &no) || no.Found != "" || said != 0 && no.Restored != said {
			t.Fatalf("want the same NoMarkerError at each start, of checkpoint %d: %v", said, err)
		}
		said = no.Restored
	}
	t.Setenv("WEIR_REDIS_ACCEPT", fmt.Sprintf("out@%d", said))
	if err := start(); err != nil {
		t.Fatal(err)
	}
	wantCounts(t, other.Client(t), "back:counts", map[string]int{"a": 2, "b": 1, "c": 1})
}
