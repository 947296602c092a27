package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/redistest"
)

// soon bounds what takes milliseconds on a quiet machine.
const soon = 30 * time.Second

// flusher is a writer of Upsert.
type flusher[T any] interface {
	Write(v T) error
	Flush(ctx context.Context) error
}

func openUpsert[T any](t *testing.T, ctx context.Context, s *UpsertSink[T]) flusher[T] {
	t.Helper()
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	w, err := s.Open(writerEnv{ctx: ctx, name: "out"})
	if err != nil {
		t.Fatal(err)
	}
	return w.(flusher[T])
}

// write writes values and flushes.
func write[T any](t *testing.T, w flusher[T], vs ...T) error {
	t.Helper()
	for _, v := range vs {
		if err := w.Write(v); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	return w.Flush(ctx)
}

func mustWrite[T any](t *testing.T, w flusher[T], vs ...T) {
	t.Helper()
	if err := write(t, w, vs...); err != nil {
		t.Fatal(err)
	}
}

type pair struct{ key, value string }

func setPair(u *Upserts, p pair) { u.Set(p.key, p.value) }

// manyPairs are n writes to a few keys, and what is there in the end.
func manyPairs(n, keys int) (vs []pair, last map[string]string) {
	last = map[string]string{}
	for i := range n {
		p := pair{fmt.Sprint("k", i%keys), strconv.Itoa(i)}
		vs, last[p.key] = append(vs, p), p.value
	}
	return vs, last
}

// wantStrings compares strings in Redis.
func wantStrings(t *testing.T, o Options, want map[string]string) {
	t.Helper()
	cl := rawClient(t, o)
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if got, err := cl.Get(t.Context(), o.Prefix+k).Result(); err != nil || got != want[k] {
			t.Fatalf("%s is %q (%v), want %q", k, got, err, want[k])
		}
	}
}

// everywhere runs a test against one server of Redis 7, of Redis 8 and of Valkey, and
// against a cluster.
func everywhere(t *testing.T, f func(t *testing.T, o Options)) {
	t.Run("redis7", func(t *testing.T) { f(t, options(server(t, redistest.Redis7).Addr)) })
	t.Run("valkey", func(t *testing.T) { f(t, options(server(t, redistest.Valkey).Addr)) })
	t.Run("server", func(t *testing.T) { f(t, options(redistest.Shared(t).Addr)) })
	t.Run("cluster", func(t *testing.T) { f(t, clusterOptions(t)) })
}

func TestFlushedWritesAreThereInOrder(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		vs, last := manyPairs(5000, 17)
		w := openUpsert(t, t.Context(), Upsert(o, setPair, BatchSize(64, 1<<20)))
		mustWrite(t, w, vs...)
		wantStrings(t, o, last)
	})
}

func TestWritesOfAnEmptyKeyAreInOrder(t *testing.T) {
	o := Options{Addrs: []string{redistest.Shared(t).Addr}}
	mustWrite(t, openUpsert(t, t.Context(), Upsert(o, setPair)), pair{"", "1"}, pair{"", "2"})
	wantStrings(t, o, map[string]string{"": "2"})
	// On a cluster where something else leads the client to the node.
	o = clusterOptions(t)
	o.Prefix = ""
	mustWrite(t, openUpsert(t, t.Context(), Upsert(o, func(u *Upserts, p pair) { u.Guard(1); setPair(u, p) })), pair{"", "1"}, pair{"", "2"})
	wantStrings(t, o, map[string]string{"": "2"})
}

func TestTypedCommandsDoWhatTheirNamesSay(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		type user struct{ Name string }
		w := openUpsert(t, t.Context(), Upsert(o, func(u *Upserts, _ int) {
			u.Set("s", "1")
			u.SetFor("f", "2", time.Hour)
			u.HSet("h", "a", "1", "b", "2")
			u.HDel("h", "a")
			u.SAdd("set", "x", "y")
			u.SRem("set", "x")
			u.ZAdd("z", 1.5, "m")
			u.ZAdd("z", -2e300, "n")
			u.ZRem("z", "o")
			u.PFAdd("p", "x")
			u.Set("{d}1", "")
			u.Set("{d}2", "")
			u.Del("{d}1", "{d}2")
			u.Set("e", "1")
			u.Expire("e", time.Hour)
			u.Set("at", "1")
			u.ExpireAt("at", time.Now().Add(time.Hour))
			u.Do("setrange", Key("r"), 2, []byte("xy"))
			Put(u, "json", codec.JSON[user](), user{"alice"})
		}))
		mustWrite(t, w, 1)
		cl := rawClient(t, o)
		got := map[string]any{}
		for name, v := range map[string]goredis.Cmder{
			"s": cl.Get(t.Context(), o.Prefix+"s"), "f": cl.Get(t.Context(), o.Prefix+"f"), "h": cl.HGetAll(t.Context(), o.Prefix+"h"),
			"set": cl.SMembers(t.Context(), o.Prefix+"set"), "z": cl.ZRangeWithScores(t.Context(), o.Prefix+"z", 0, -1), "p": cl.PFCount(t.Context(), o.Prefix+"p"),
			"d": cl.Exists(t.Context(), o.Prefix+"{d}1", o.Prefix+"{d}2"), "r": cl.Get(t.Context(), o.Prefix+"r"), "json": cl.Get(t.Context(), o.Prefix+"json"),
		} {
			if v.Err() != nil {
				t.Errorf("%s: %v", name, v.Err())
			}
			_, text, _ := strings.Cut(v.String(), ": ")
			got[name] = text
		}
		want := map[string]any{"s": "1", "f": "2", "h": "map[b:2]", "set": "[y]", "z": "[{-2e+300 n} {1.5 m}]", "p": "1", "d": "0", "r": "\x00\x00xy", "json": `{"Name":"alice"}`}
		if !maps.Equal(got, want) {
			t.Errorf("got  %q\nwant %q", got, want)
		}
		for _, k := range []string{"f", "e", "at"} {
			if ttl := cl.TTL(t.Context(), o.Prefix+k).Val(); ttl < 59*time.Minute || ttl > time.Hour {
				t.Errorf("%s expires in %v", k, ttl)
			}
		}
	})
}

func TestFlushReturnsOnlyWhenRedisHasAcknowledged(t *testing.T) {
	p := redistest.StartProxy(t, redistest.Shared(t).Addr)
	o := options(p.Addr)
	o.Timeout = 200 * time.Millisecond
	w := openUpsert(t, t.Context(), Upsert(o, setPair))
	mustWrite(t, w, pair{"k", "0"})
	p.Deaf(true)
	if err := w.Write(pair{"k", "1"}); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := w.Flush(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("Flush returned %v without an acknowledgement", err)
	}
	p.Deaf(false)
	p.Break()
	mustWrite(t, w)
	wantStrings(t, o, map[string]string{"k": "1"})
}

func TestWriteWaitsWhileTooMuchIsUnderWay(t *testing.T) {
	p := redistest.StartProxy(t, redistest.Shared(t).Addr)
	o := options(p.Addr)
	const size, inFlight = 10, 3
	w := openUpsert(t, t.Context(), Upsert(o, setPair, BatchSize(size, 1<<20), InFlight(inFlight)))
	mustWrite(t, w, pair{"k", "0"})
	p.Deaf(true)
	var written atomic.Int64
	done := make(chan error, 1)
	const writes = 100
	go func() {
		for i := range writes {
			if err := w.Write(pair{"k", strconv.Itoa(i)}); err != nil {
				done <- err
				return
			}
			written.Add(1)
		}
		done <- nil
	}()
	// The batches under way, and one less a value that is being collected.
	const most = (inFlight+1)*size - 1
	redistest.Eventually(t, soon, func() error {
		if n := written.Load(); n < most {
			return fmt.Errorf("%d values are taken", n)
		}
		return nil
	})
	select {
	case err := <-done:
		t.Fatalf("everything was taken (%v), although nothing is acknowledged", err)
	case <-time.After(100 * time.Millisecond):
	}
	if n := written.Load(); n != most {
		t.Errorf("%d values are taken, want %d", n, most)
	}
	p.Deaf(false)
	p.Break()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	mustWrite(t, w)
	wantStrings(t, o, map[string]string{"k": strconv.Itoa(writes - 1)})
}

func TestConnectionsCutInTheMiddleOfAnAnswerLoseNothing(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		if o.Cluster {
			t.Skip("a cluster tells clients its nodes' own addresses, past the proxy")
		}
		p := redistest.StartProxy(t, o.Addrs[0])
		direct := o
		o.Addrs = []string{p.Addr}
		w := openUpsert(t, t.Context(), Upsert(o, setPair, BatchSize(50, 1<<20)))
		last := map[string]string{}
		for round := range 40 {
			p.CutAfter(int64(round * 37 % 900))
			var vs []pair
			for i := range 300 {
				q := pair{fmt.Sprint("k", i%13), fmt.Sprint(round, "-", i)}
				vs, last[q.key] = append(vs, q), q.value
			}
			mustWrite(t, w, vs...)
			wantStrings(t, direct, last)
		}
		if p.Cuts() < 30 {
			t.Errorf("only %d connections were cut", p.Cuts())
		}
	})
}

func TestRedisThatIsKilledIsWaitedFor(t *testing.T) {
	s := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "always")
	o := options(s.Addr)
	w := openUpsert(t, t.Context(), Upsert(o, setPair))
	mustWrite(t, w, pair{"a", "1"})
	s.Kill(t)
	done := make(chan error, 1)
	go func() { done <- write(t, w, pair{"a", "2"}, pair{"b", "1"}) }()
	s.Restart(t)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantStrings(t, o, map[string]string{"a": "2", "b": "1"})
}

// versioned is a value with its version.
type versioned struct {
	key     string
	version int64
}

func setVersioned(u *Upserts, v versioned) {
	u.Guard(v.version)
	u.Set(v.key, strconv.FormatInt(v.version, 10))
}

func TestS37_GuardedReplayNeverShowsAnOlderValue(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		cl := rawClient(t, o)
		var vs []versioned
		for i := range int64(2000) {
			// Far apart, so that a double can't tell neighbours from each other.
			vs = append(vs, versioned{fmt.Sprint("k", i%7), 1<<62 + i - 1000})
		}
		// A reader sees versions grow, whatever is replayed and by whom.
		ctx, stop := context.WithCancel(t.Context())
		watched := make(chan error, 1)
		go func() {
			watched <- func() error {
				seen := map[string]int64{}
				for n := 0; ; n++ {
					k := fmt.Sprint("k", n%7)
					text, err := cl.Get(t.Context(), o.Prefix+k).Result()
					if ctx.Err() != nil {
						return nil
					}
					if err == goredis.Nil {
						continue
					}
					if err != nil {
						return err
					}
					v, err := strconv.ParseInt(text, 10, 64)
					if err != nil || v < seen[k] {
						return fmt.Errorf("%s shows %s after %d (%v)", k, text, seen[k], err)
					}
					seen[k] = v
				}
			}()
		}()
		zombie := openUpsert(t, t.Context(), Upsert(o, setVersioned, BatchSize(10, 1<<20)))
		mustWrite(t, zombie, vs[:500]...)
		w := openUpsert(t, t.Context(), Upsert(o, setVersioned, BatchSize(100, 1<<20)))
		mustWrite(t, w, vs...)
		mustWrite(t, w, vs[1000:]...) // a replay
		err := eachServer(t.Context(), cl, func(ctx context.Context, c *goredis.Client) error { return c.ScriptFlush(ctx).Err() })
		if err != nil {
			t.Fatal(err)
		}
		mustWrite(t, zombie, vs[500:]...) // a process that was replaced
		stop()
		if err := <-watched; err != nil {
			t.Error(err)
		}
		want := map[string]string{}
		for _, v := range vs {
			want[v.key] = strconv.FormatInt(v.version, 10)
		}
		wantStrings(t, o, want)
		// Negative versions are smaller, the same version is written again.
		w2 := openUpsert(t, t.Context(), Upsert(o, func(u *Upserts, v versioned) { u.Guard(v.version); u.HSet("h", "v", v.key) }))
		mustWrite(t, w2, versioned{"first", 0}, versioned{"second", 0}, versioned{"third", -1})
		if got := cl.HGet(t.Context(), o.Prefix+"h", "v").Val(); got != "second" {
			t.Errorf("got %q, want the last value of version 0", got)
		}
	})
}

func TestVersionsExpire(t *testing.T) {
	o := options(redistest.Shared(t).Addr)
	w := openUpsert(t, t.Context(), Upsert(o, setVersioned, VersionsFor(time.Hour)))
	mustWrite(t, w, versioned{"k", 1})
	if ttl := rawClient(t, o).PTTL(t.Context(), o.Prefix+versionKind+o.Prefix+"k").Val(); ttl <= 59*time.Minute || ttl > time.Hour {
		t.Errorf("the version expires in %v, want an hour", ttl)
	}
}

func TestRefusedRecordsWriteNothing(t *testing.T) {
	o := clusterOptionsOffline()
	f := func(u *Upserts, kind string) {
		u.Set("a", kind)
		switch kind {
		case "incr":
			u.Do("incr", Key("n"))
		case "slots":
			u.Del("a", "b")
		case "no key":
			u.Do("PING")
		case "type":
			u.Do("SET", Key("k"), struct{}{})
		case "pairs":
			u.HSet("h", "a")
		case "args":
			u.SAdd("s", make([]string, maxArgs)...)
		case "empty key":
			u.Set("", "x")
		case "far key":
			u.Do("X", append(slices.Repeat([]any{"x"}, 127), Key("k"))...)
		case "own":
			u.Fail(errOwn)
		}
	}
	for kind, want := range map[string]error{"incr": ErrNotIdempotent, "slots": ErrCrossSlot, "no key": ErrCommand, "type": ErrCommand, "pairs": ErrCommand, "args": ErrCommand, "empty key": ErrCommand, "far key": ErrCommand, "own": errOwn} {
		t.Run(kind, func(t *testing.T) {
			var refused error
			s := Upsert(o, f, OnRefused(func(err error) error { refused = err; return nil }))
			w := openUpsert(t, t.Context(), s).(*upserter[string])
			if err := w.Write(kind); err != nil {
				t.Fatalf("the policy said nil, Write returned %v", err)
			}
			if !errors.Is(refused, want) {
				t.Errorf("refused with %v, want %v", refused, want)
			}
			if w.count != 0 || len(w.buf) != 0 {
				t.Errorf("%d commands of it are to be written", w.count)
			}
			if err := openUpsert(t, t.Context(), Upsert(o, f)).Write(kind); !errors.Is(err, want) {
				t.Errorf("without a policy: %v, want %v", err, want)
			}
		})
	}
}

var errOwn = errors.New("own")

func TestNamedErrorsStopTheSink(t *testing.T) {
	for _, c := range []struct {
		name string
		args []string // of the server
		prep func(t *testing.T, cl *goredis.Client, o *Options)
		f    func(u *Upserts)
		want error
		says string
	}{
		{"wrong type", nil, func(t *testing.T, cl *goredis.Client, o *Options) { cl.RPush(t.Context(), o.Prefix+"k", "x") },
			func(u *Upserts) { u.HSet("k", "f", "v") }, ErrWrongType, `HSET`},
		{"unknown command", nil, nil, func(u *Upserts) { u.Do("NOSUCH", Key("k")) }, ErrRefused, "NOSUCH"},
		{"arguments", nil, nil, func(u *Upserts) { u.Do("SET", Key("k")) }, ErrRefused, "SET"},
		{"group that is there", nil, func(t *testing.T, cl *goredis.Client, o *Options) {
			cl.XGroupCreateMkStream(t.Context(), o.Prefix+"k", "g", "$")
		}, func(u *Upserts) { u.Do("XGROUP", "CREATE", Key("k"), "g", "$") }, ErrRefused, "BUSYGROUP"},
		{"key that is there", nil, func(t *testing.T, cl *goredis.Client, o *Options) { cl.Set(t.Context(), o.Prefix+"k", "x", 0) },
			func(u *Upserts) { u.Do("RESTORE", Key("k"), 0, "") }, ErrRefused, "BUSYKEY"},
		{"memory", redistest.Full, nil, func(u *Upserts) { u.Set("k", "v") }, ErrMemory, "maxmemory"},
		{"no password", []string{"--requirepass", "secret"}, nil, func(u *Upserts) { u.Set("k", "v") }, ErrAuth, "Options.Password"},
		{"wrong password", []string{"--requirepass", "secret"}, func(t *testing.T, cl *goredis.Client, o *Options) { o.Password = "guess" },
			func(u *Upserts) { u.Set("k", "v") }, ErrAuth, "Options.Password"},
		{"no permission", nil, limited("~other:*", "+@all"),
			func(u *Upserts) { u.Set("k", "v") }, ErrPermission, "operations.md"},
		{"no permission, guarded", nil, limited("~*", "+@all", "-set"),
			func(u *Upserts) { u.Guard(1); u.Set("k", "v") }, ErrPermission, "operations.md"},
		{"read-only replica", []string{"--replicaof", "127.0.0.1 1"}, nil, func(u *Upserts) { u.Set("k", "v") }, ErrReadOnly, "primary"},
		{"too few replicas", []string{"--min-replicas-to-write", "1"}, nil, func(u *Upserts) { u.Set("k", "v") }, ErrPersistence, "replicas"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := redistest.Shared(t)
			if c.args != nil {
				s = redistest.Start(t, c.args...)
			}
			o := options(s.Addr)
			if c.prep != nil {
				c.prep(t, s.Client(t), &o)
			}
			w := openUpsert(t, t.Context(), Upsert(o, func(u *Upserts, _ int) { c.f(u) }, GiveUpAfter(50*time.Millisecond)))
			err := write(t, w, 1)
			if !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
				t.Errorf("got %v\nwant %v, saying %q", err, c.want, c.says)
			}
			if blamed(c.want) {
				if ce, ok := errors.AsType[*CommandError](err); !ok || ce.Sink != "out" {
					t.Errorf("%#v does not name the command", err)
				}
			}
			// It stays what it is: the app stops at this barrier or at the next.
			if again := write(t, w, 1); again != err {
				t.Errorf("then: %v", again)
			}
		})
	}
}

// limited makes a user with these rights, and the options use it.
func limited(rules ...string) func(t *testing.T, cl *goredis.Client, o *Options) {
	return func(t *testing.T, cl *goredis.Client, o *Options) {
		o.Username, o.Password = fresh(), "pw"
		if err := cl.ACLSetUser(t.Context(), o.Username, append([]string{"on", ">pw"}, rules...)...).Err(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestBatchThatTakesLongerThanTheTimeoutIsWritten has Redis sleep in each command, and no
// time to answer them all.
func TestBatchThatTakesLongerThanTheTimeoutIsWritten(t *testing.T) {
	s := redistest.Start(t, "--enable-debug-command", "yes")
	o := Options{Addrs: []string{s.Addr}, Timeout: 400 * time.Millisecond}
	sleep := func(u *Upserts, seconds string) { u.Do("DEBUG", "SLEEP", Key(seconds)) }
	var naps []string
	for range 60 {
		naps = append(naps, "0.02")
	}
	mustWrite(t, openUpsert(t, t.Context(), Upsert(o, sleep)), naps...)

	o.Timeout = 10 * time.Millisecond
	w := openUpsert(t, t.Context(), Upsert(o, sleep, UnreachableFor(time.Millisecond)))
	if err := write(t, w, "5"); !errors.Is(err, ErrUnavailable) || !strings.Contains(err.Error(), "DEBUG") || !strings.Contains(err.Error(), "Options.Timeout") {
		t.Errorf("a command that takes longer by itself: %v", err)
	}
}

func TestMemoryThatIsFreedInTimeIsWaitedFor(t *testing.T) {
	s := redistest.Start(t, redistest.Full...)
	cl := s.Client(t)
	o := options(s.Addr)
	w := openUpsert(t, t.Context(), Upsert(o, setPair))
	done := make(chan error, 1)
	go func() { done <- write(t, w, pair{"k", "v"}) }()
	if err := cl.ConfigSet(t.Context(), "maxmemory", "0").Err(); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	wantStrings(t, o, map[string]string{"k": "v"})
}

func TestCommandsThatFailArePutAside(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		cl := rawClient(t, o)
		cl.RPush(t.Context(), o.Prefix+"list", "x")
		w := openUpsert(t, t.Context(), Upsert(o, setField, DeadLetters()))
		mustWrite(t, w, pair{"a", "1"}, pair{"list", "2"}, pair{"b", "3"})
		for k, want := range map[string]string{"a": "1", "b": "3"} {
			if got := cl.HGet(t.Context(), o.Prefix+k, "f").Val(); got != want {
				t.Errorf("%s is %q, want %q", k, got, want)
			}
		}
		l := o.layout()
		list, err := cl.LRange(t.Context(), l.dead(l.lane(slotOf([]byte(o.Prefix+"list"))), "", "out"), 0, -1).Result()
		if err != nil || len(list) != 1 {
			t.Fatalf("%q, %v", list, err)
		}
		d, err := ParseDeadLetter(list[0])
		if err != nil {
			t.Fatal(err)
		}
		if !strings.HasPrefix(d.Err, "WRONGTYPE") || !slices.Equal(d.Command, []string{"HSET", o.Prefix + "list", "f", "2"}) || d.Sink != "out" {
			t.Errorf("%+v", d)
		}
	})
}

func setField(u *Upserts, p pair) { u.HSet(p.key, "f", p.value) }

func TestNewIncarnationWritesAfterTheLastOneHasEnded(t *testing.T) {
	p := redistest.StartProxy(t, redistest.Shared(t).Addr)
	o := options(p.Addr)
	o.Timeout = 500 * time.Millisecond
	s := Upsert(o, setPair)
	ctx, end := context.WithCancel(t.Context())
	old := openUpsert(t, ctx, s).(*upserter[pair])
	mustWrite(t, old, pair{"k", "0"})
	p.Deaf(true) // the next write waits for its answer
	if err := old.Write(pair{"k", "old"}); err != nil {
		t.Fatal(err)
	}
	old.send(ctx)
	end()
	w := openUpsert(t, t.Context(), s)
	select {
	case <-old.out.ended:
	default:
		t.Fatal("a new writer was opened while the last incarnation's still writes")
	}
	p.Deaf(false)
	p.Break()
	mustWrite(t, w, pair{"k", "new"})
	wantStrings(t, o, map[string]string{"k": "new"})
}

func TestDescriptionsAreChecked(t *testing.T) {
	for _, c := range []struct {
		o    Options
		says string
	}{
		{Options{}, "no address"},
		{Options{Addrs: []string{"h:1"}, Username: "shop"}, `user "shop" without a password`},
		{Options{Addrs: []string{"localhost"}}, "no port"},
		{Options{Addrs: []string{"a:1", "b:1"}}, "2 addresses"},
		{Options{Addrs: []string{"a:1"}, Cluster: true, Master: "m"}, "no sentinels"},
		{Options{Addrs: []string{"a:1"}, Cluster: true, DB: 1}, "database 1"},
		{Options{Addrs: []string{"a:1"}, Prefix: "a{b"}, "hash tag"},
		{Options{Addrs: []string{"a:1"}, Prefix: "{}x"}, "hash tag"},
	} {
		if err := Upsert(c.o, setPair).Check(); err == nil || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%+v: %v, want %q", c.o, err, c.says)
		}
	}
	err := Upsert[pair](Options{Addrs: []string{"a:1"}, Password: "hidden"}, nil, BatchSize(0, 1), InFlight(0), GiveUpAfter(-1), OnRefused(nil), VersionsFor(0), UnreachableFor(-1)).Check()
	for _, want := range []string{"is nil", "BatchSize", "InFlight", "GiveUpAfter", "OnRefused", "VersionsFor", "UnreachableFor"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v lacks %q", err, want)
		}
	}
	if s := Upsert(Options{Addrs: []string{"a:1"}, Password: "hidden"}, setPair).String(); s != "redis a:1, idempotent" {
		t.Errorf("described as %q", s)
	}
}
