package redis_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/redis"
	"github.com/weirstream/weir/source"
)

// numbered is an app whose input is "key:number", and which keeps the numbers of each key:
// with a write-ahead sink in a list, with an idempotent one as fields of a hash.
type numbered struct {
	t       *testing.T
	name    string // of app and prefix
	brokers []string
	store   checkpoint.Store
	want    map[string][]string
}

const (
	numberedKeys    = 10
	numberedRecords = 400
	deadTopic       = "dead"
)

func newNumbered(t *testing.T) *numbered {
	t.Helper()
	n := &numbered{t: t, name: redis.FreshForTest(), brokers: broker(t, 4, "in", deadTopic), store: checkpoint.NewMem(), want: map[string][]string{}}
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	var rs []*kgo.Record
	for i := range numberedRecords {
		key := fmt.Sprint("k", i*i%numberedKeys)
		n.want[key] = append(n.want[key], strconv.Itoa(i))
		rs = append(rs, &kgo.Record{Topic: "in", Key: []byte(key), Value: fmt.Appendf(nil, "%s:%d", key, i)})
	}
	if err := cl.ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
		t.Fatal(err)
	}
	return n
}

// lists are the commands of a value for a write-ahead sink.
func lists(b *redis.Batch, v string) {
	key, i, _ := strings.Cut(v, ":")
	b.RPush("of:"+key, i)
	b.IncrBy("n", 1)
}

// hashes are those for an idempotent sink.
func hashes(u *redis.Upserts, v string) {
	key, i, _ := strings.Cut(v, ":")
	u.HSet("of:"+key, i, "1")
}

// eachSink runs a test with both sinks.
func eachSink(t *testing.T, f func(t *testing.T, n *numbered, to func(o redis.Options, opts ...redis.Option) sink.Sink[string])) {
	t.Run("write-ahead", func(t *testing.T) {
		f(t, newNumbered(t), func(o redis.Options, opts ...redis.Option) sink.Sink[string] {
			return redis.WriteAhead(o, lists, opts...)
		})
	})
	t.Run("idempotent", func(t *testing.T) {
		f(t, newNumbered(t), func(o redis.Options, opts ...redis.Option) sink.Sink[string] { return redis.Upsert(o, hashes, opts...) })
	})
}

// run runs the app until it has processed its input, or stops.
func (n *numbered) run(to sink.Sink[string], opts ...weir.Option) error {
	app := weir.New(n.name, append([]weir.Option{
		weir.Brokers(n.brokers...), weir.Store(n.store), weir.InstanceID("a"), weir.CheckpointEvery(5 * time.Millisecond), weir.Parallelism(2), weir.Drain(),
		weir.DeadLetters(deadTopic),
		weir.Restart(weir.RestartPolicy{Limit: 20, Initial: time.Millisecond, Max: time.Millisecond, Quiet: time.Hour}),
	}, opts...)...)
	weir.To(weir.From(app, "in", source.Values("in", codec.String)), "out", to)
	ctx, cancel := context.WithTimeout(n.t.Context(), time.Minute)
	defer cancel()
	return app.Run(ctx)
}

// mustRun runs the app to the end of its input.
func (n *numbered) mustRun(to sink.Sink[string]) {
	n.t.Helper()
	if err := n.run(to); err != nil {
		n.t.Fatal(err)
	}
}

// wantStop demands that the app stops with a named error.
func (n *numbered) wantStop(to sink.Sink[string], want error, says string) {
	n.t.Helper()
	err := n.run(to)
	if !errors.Is(err, want) || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), `"out"`) {
		n.t.Fatalf("the app ended with %v\nwant %v of sink \"out\", saying %q", err, want, says)
	}
}

// verify compares Redis with the input, but for the keys of which something is wrong.
func (n *numbered) verify(cl goredis.UniversalClient, but ...string) {
	n.t.Helper()
	for key, want := range n.want {
		if slices.Contains(but, key) {
			continue
		}
		at := n.prefix() + "of:" + key
		switch kind := cl.Type(n.t.Context(), at).Val(); kind {
		case "list":
			if got := cl.LRange(n.t.Context(), at, 0, -1).Val(); !slices.Equal(got, want) {
				n.t.Errorf("%s is %q\nwant %q", at, got, want)
			}
		case "hash":
			got := slices.Collect(maps.Keys(cl.HGetAll(n.t.Context(), at).Val()))
			slices.Sort(got)
			want := slices.Clone(want)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				n.t.Errorf("%s is %q\nwant %q", at, got, want)
			}
		default:
			n.t.Errorf("%s is a %s", at, kind)
		}
	}
}

func (n *numbered) prefix() string { return n.name + ":" }

// at are options with the app's prefix.
func (n *numbered) at(addr ...string) redis.Options {
	return redis.Options{Addrs: addr, Prefix: n.prefix()}
}

// deadRecords reads the dead-letter topic: values, sorted.
func (n *numbered) deadRecords(want int) []string {
	n.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(n.brokers...), kgo.ConsumeTopics(deadTopic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		n.t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(n.t.Context(), 30*time.Second)
	defer cancel()
	var got []string
	for len(got) < want {
		fs := cl.PollFetches(ctx)
		if err := fs.Err0(); err != nil {
			n.t.Fatalf("%d of %d dead letters: %v", len(got), want, err)
		}
		for _, r := range fs.Records() {
			got = append(got, string(r.Value))
		}
	}
	slices.Sort(got)
	return got
}

func TestBadInput_WrongTypeAtAKeyStopsTheAppAndLosesNothing(t *testing.T) {
	s := redistest.Shared(t)
	eachSink(t, func(t *testing.T, n *numbered, to func(o redis.Options, opts ...redis.Option) sink.Sink[string]) {
		cl := s.Client(t)
		cl.Set(t.Context(), n.prefix()+"of:k4", "x", 0)
		for range 2 { // and again, while the cause is there
			n.wantStop(to(n.at(s.Addr)), redis.ErrWrongType, "of:k4")
		}
		cl.Del(t.Context(), n.prefix()+"of:k4")
		n.mustRun(to(n.at(s.Addr)))
		n.verify(cl)
	})
}

func TestBadInput_WrongTypeAtAKeyIsPutAside(t *testing.T) {
	s := redistest.Shared(t)
	eachSink(t, func(t *testing.T, n *numbered, to func(o redis.Options, opts ...redis.Option) sink.Sink[string]) {
		cl := s.Client(t)
		cl.Set(t.Context(), n.prefix()+"of:k4", "x", 0)
		n.mustRun(to(n.at(s.Addr), redis.DeadLetters()))
		n.verify(cl, "k4")
		keys := cl.Keys(t.Context(), n.prefix()+"weir:dead:*").Val()
		if len(keys) != 1 {
			t.Fatalf("lists of dead letters: %q", keys)
		}
		var got []string
		for _, e := range cl.LRange(t.Context(), keys[0], 0, -1).Val() {
			d, err := redis.ParseDeadLetter(e)
			if err != nil || d.Sink != "out" || d.Command[1] != n.prefix()+"of:k4" {
				t.Fatalf("%+v, %v", d, err)
			}
			got = append(got, d.Command[2])
		}
		if !slices.Equal(got, n.want["k4"]) {
			t.Errorf("put aside: %q\nwant %q", got, n.want["k4"])
		}
	})
}

// TestBadInput_CommandThatCannotBeInAScript has two policies: stop, and the record goes to
// the dead-letter topic in the transaction of its epoch.
func TestBadInput_CommandThatCannotBeInAScript(t *testing.T) {
	s := redistest.Shared(t)
	refusedRecords(t, s.Client(t), func(n *numbered) redis.Options { return n.at(s.Addr) }, redis.ErrNotInScript,
		func(b *redis.Batch) { b.Do("watch", redis.Key("n")) },
		func(u *redis.Upserts) { u.Guard(1); u.Do("watch", redis.Key("n")) })
}

func TestBadInput_KeysAcrossSlots(t *testing.T) {
	o := redis.ClusterForTest(t)
	cl := goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: o.Addrs})
	t.Cleanup(func() { cl.Close() })
	refusedRecords(t, cl, func(n *numbered) redis.Options {
		o := o
		o.Prefix = n.prefix()
		return o
	}, redis.ErrCrossSlot,
		func(b *redis.Batch) { b.Transaction(func() { b.IncrBy("n", 1); b.IncrBy("m", 1) }) },
		func(u *redis.Upserts) { u.Del("m", "n") })
}

// Redis refuses a script that touches a key on another node, which it finds only when the
// key is not named.
func TestBadInput_KeyOnAnotherNodeThatIsNotNamed(t *testing.T) {
	o := redis.ClusterForTest(t)
	cl := goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: o.Addrs})
	t.Cleanup(func() { cl.Close() })
	const here, elsewhere = "{foo}", "{bar}"
	sinks := map[string]func(o redis.Options, opts ...redis.Option) sink.Sink[string]{
		"write-ahead": func(o redis.Options, opts ...redis.Option) sink.Sink[string] {
			return redis.WriteAhead(o, func(b *redis.Batch, v string) {
				lists(b, v)
				if v == "k4:2" {
					b.Do("SET", elsewhere, redis.Key(here))
				}
			}, opts...)
		},
		"idempotent": func(o redis.Options, opts ...redis.Option) sink.Sink[string] {
			return redis.Upsert(o, func(u *redis.Upserts, v string) {
				hashes(u, v)
				if v == "k4:2" {
					u.Guard(1)
					u.Do("SET", elsewhere, redis.Key(here))
				}
			}, opts...)
		},
	}
	for name, to := range sinks {
		t.Run(name, func(t *testing.T) {
			n, o := newNumbered(t), o
			o.Prefix = n.prefix()
			n.wantStop(to(o, redis.UnreachableFor(time.Second)), redis.ErrCrossSlot, "name every key by redis.Key")
			n.mustRun(to(o, redis.UnreachableFor(time.Second), redis.DeadLetters()))
			n.verify(cl)
		})
	}
}

// refusedRecords gives records of key k4 a command that is refused before anything is sent.
func refusedRecords(t *testing.T, cl goredis.UniversalClient, at func(n *numbered) redis.Options, want error, bad func(*redis.Batch), badUpsert func(*redis.Upserts)) {
	sinks := map[string]func(o redis.Options, opts ...redis.Option) sink.Sink[string]{
		"write-ahead": func(o redis.Options, opts ...redis.Option) sink.Sink[string] {
			return redis.WriteAhead(o, func(b *redis.Batch, v string) {
				lists(b, v)
				if strings.HasPrefix(v, "k4:") {
					bad(b)
				}
			}, opts...)
		},
		"idempotent": func(o redis.Options, opts ...redis.Option) sink.Sink[string] {
			return redis.Upsert(o, func(u *redis.Upserts, v string) {
				hashes(u, v)
				if strings.HasPrefix(v, "k4:") {
					badUpsert(u)
				}
			}, opts...)
		},
	}
	for name, to := range sinks {
		t.Run(name, func(t *testing.T) {
			n := newNumbered(t)
			n.wantStop(to(at(n)), want, "in/") // the record is named
			n.mustRun(to(at(n), redis.OnRefused(weir.DeadLetter)))
			n.verify(cl, "k4")
			if cl.Exists(t.Context(), n.prefix()+"of:k4").Val() != 0 {
				t.Error("something of a refused record was written")
			}
			var dead []string
			for _, i := range n.want["k4"] {
				dead = append(dead, "k4:"+i)
			}
			slices.Sort(dead)
			if got := n.deadRecords(len(dead)); !slices.Equal(got, dead) {
				t.Errorf("dead letters %q\nwant %q", got, dead)
			}
		})
	}
}

func TestBadInput_MemoryLimitReached(t *testing.T) {
	eachSink(t, func(t *testing.T, n *numbered, to func(o redis.Options, opts ...redis.Option) sink.Sink[string]) {
		s := redistest.Start(t, redistest.Full...)
		cl := s.Client(t)
		n.wantStop(to(n.at(s.Addr), redis.GiveUpAfter(50*time.Millisecond)), redis.ErrMemory, "maxmemory")
		cl.ConfigSet(t.Context(), "maxmemory", "0")
		n.mustRun(to(n.at(s.Addr)))
		n.verify(cl)
	})
}

func TestBadInput_AuthenticationFailure(t *testing.T) {
	s := redistest.Start(t, "--requirepass", "right")
	cl := goredis.NewClient(&goredis.Options{Addr: s.Addr, Password: "right"})
	t.Cleanup(func() { cl.Close() })
	eachSink(t, func(t *testing.T, n *numbered, to func(o redis.Options, opts ...redis.Option) sink.Sink[string]) {
		o := n.at(s.Addr)
		for _, password := range []string{"", "wrong"} {
			o.Password = password
			n.wantStop(to(o), redis.ErrAuth, "Options.Password")
		}
		o.Password = "right"
		n.mustRun(to(o))
		n.verify(cl)
	})
}

func TestBadInput_ReadOnlyReplica(t *testing.T) {
	eachSink(t, func(t *testing.T, n *numbered, to func(o redis.Options, opts ...redis.Option) sink.Sink[string]) {
		s := redistest.Start(t, "--replicaof", "127.0.0.1 1")
		cl := s.Client(t)
		n.wantStop(to(n.at(s.Addr), redis.GiveUpAfter(50*time.Millisecond)), redis.ErrReadOnly, "primary")
		cl.ReplicaOf(t.Context(), "NO", "ONE")
		n.mustRun(to(n.at(s.Addr)))
		n.verify(cl)
	})
}

func TestUnreachableRedisStopsTheAppIfItIsToldTo(t *testing.T) {
	eachSink(t, func(t *testing.T, n *numbered, to func(o redis.Options, opts ...redis.Option) sink.Sink[string]) {
		s := redistest.Start(t)
		s.Kill(t)
		n.wantStop(to(n.at(s.Addr), redis.UnreachableFor(100*time.Millisecond)), redis.ErrUnavailable, s.Addr)
		s.Restart(t)
		n.mustRun(to(n.at(s.Addr), redis.UnreachableFor(time.Minute)))
		n.verify(s.Client(t))
	})
}
