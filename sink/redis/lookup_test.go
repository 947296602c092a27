package redis_test

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/sink/redis"
	"github.com/weirstream/weir/source"
)

// fetch looks up keys once.
func fetch[K comparable, V any](t testing.TB, s lookup.Source[K, V], keys ...K) ([]lookup.Answer[V], error) {
	t.Helper()
	if err := s.Check(); err != nil {
		t.Fatal(err)
	}
	c, err := s.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answers := make([]lookup.Answer[V], len(keys))
	return answers, c.Fetch(t.Context(), keys, answers)
}

// wantAnswers compares; an answer that is not found is "-", an error "!".
func wantAnswers[K comparable, V any](t *testing.T, s lookup.Source[K, V], keys []K, want ...string) {
	t.Helper()
	answers, err := fetch(t, s, keys...)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range answers {
		switch {
		case a.Err != nil:
			got = append(got, "!")
		case !a.Found:
			got = append(got, "-")
		default:
			got = append(got, fmt.Sprint(a.Value))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("%v: got %q, want %q", s, got, want)
	}
}

func itself(k string) string { return k }

func TestLookupsReadWhatTheirNamesSay(t *testing.T) {
	redis.Everywhere(t, func(t *testing.T, o redis.Options, cl goredis.UniversalClient) {
		type user struct{ Name string }
		for _, args := range [][]any{
			{"SET", o.Prefix + "s", "1"}, {"SET", o.Prefix + "empty", ""}, {"SET", o.Prefix + "json", `{"Name":"alice"}`}, {"SET", o.Prefix + "bad", "{"},
			{"HSET", o.Prefix + "h", "a", "1", "b", "2"}, {"ZADD", o.Prefix + "z", "1.5", "m"}, {"SADD", o.Prefix + "set", "x"},
		} {
			if err := cl.Do(t.Context(), args...).Err(); err != nil {
				t.Fatal(err)
			}
		}
		wantAnswers(t, redis.Get(o, itself, codec.String), []string{"s", "none", "empty", "h"}, "1", "-", "", "!")
		wantAnswers(t, redis.Get(o, itself, codec.JSON[user]()), []string{"json", "bad", "none"}, "{alice}", "!", "-")
		wantAnswers(t, redis.HGet(o, func(f string) (string, string) { return "h", f }, codec.String), []string{"a", "c"}, "1", "-")
		wantAnswers(t, redis.HGet(o, func(k string) (string, string) { return k, "a" }, codec.String), []string{"h", "none", "s"}, "1", "-", "!")
		wantAnswers(t, redis.HGetAll(o, itself), []string{"h", "none", "s"}, "map[a:1 b:2]", "-", "!")
		wantAnswers(t, redis.HMGet(o, itself, "a", "c"), []string{"h", "none", "s"}, "map[a:1]", "-", "!")
		wantAnswers(t, redis.HMGet(o, itself, "c"), []string{"h"}, "-")
		score := redis.Read(o, func(m string) []any { return []any{"zscore", redis.Key("z"), m} }, func(reply any) (float64, bool, error) {
			f, ok := reply.(float64)
			if !ok {
				return 0, false, fmt.Errorf("a %T", reply)
			}
			return f, true, nil
		})
		wantAnswers(t, score, []string{"m", "n"}, "1.5", "-")
		member := redis.Read(o, func(m string) []any { return []any{"SISMEMBER", redis.Key("set"), m} }, func(reply any) (bool, bool, error) { return reply == int64(1), true, nil })
		wantAnswers(t, member, []string{"x", "y"}, "true", "false")
		name := lookup.Decode(redis.HGetAll(o, itself), func(m map[string]string) (string, error) {
			return strings.Join(slices.Sorted(maps.Keys(m)), "+"), nil
		})
		wantAnswers(t, name, []string{"h", "none"}, "a+b", "-")
		// Keys of all slots in one batch.
		var keys, want []string
		for i := range 200 {
			keys, want = append(keys, fmt.Sprint("n", i)), append(want, fmt.Sprint(i))
			if err := cl.Set(t.Context(), o.Prefix+keys[i], want[i], 0).Err(); err != nil {
				t.Fatal(err)
			}
		}
		wantAnswers(t, redis.Get(o, itself, codec.String), keys, want...)
	})
}

func TestMistakesOfLookupsAreNamed(t *testing.T) {
	o := redis.Options{Addrs: []string{redistest.Shared(t).Addr}, Prefix: "mistakes:"}
	for want, args := range map[string][]any{
		"INCR changes what it finds":   {"incr", redis.Key("k")},
		"SET changes what it finds":    {"SET", redis.Key("k"), "v"},
		"GET names no key":             {"GET", "k"},
		"no arguments":                 {},
		"command refused":              {"NOSUCH", redis.Key("k")},
		"wrong type at a key":          {"HGET", redis.Key("s"), "f"},
		"decoding the reply":           {"GET", redis.Key("s")},
		`GET "mistakes:s": decoding`:   {"GET", redis.Key("s")},
		`HGET "mistakes:s": wrong typ`: {"HGET", redis.Key("s"), "f"},
	} {
		s := redis.Read(o, func(string) []any { return args }, func(any) (string, bool, error) { return "", false, errors.New("no such thing") })
		if err := redistest.Shared(t).Client(t).Set(t.Context(), "mistakes:s", "x", 0).Err(); err != nil {
			t.Fatal(err)
		}
		answers, err := fetch(t, s, "k")
		if err != nil || answers[0].Err == nil || !strings.Contains(answers[0].Err.Error(), want) {
			t.Errorf("%v: got %v (%v), want %q", args, answers[0].Err, err, want)
		}
	}
	cluster := redis.Options{Addrs: []string{"127.0.0.1:1"}, Cluster: true}
	answers, err := fetch(t, redis.Read(cluster, func(string) []any { return []any{"MGET", redis.Key("a"), redis.Key("b")} },
		func(any) (int, bool, error) { return 0, true, nil }), "k")
	if err != nil || !errors.Is(answers[0].Err, redis.ErrCrossSlot) {
		t.Errorf("keys across slots: got %v (%v)", answers[0].Err, err)
	}

	// What is about all of it is no key's error.
	wrong := o
	wrong.Username, wrong.Password = "nobody", "wrong"
	if _, err := fetch(t, redis.Get(wrong, itself, codec.String), "k"); !errors.Is(err, redis.ErrAuth) || lookup.Passing(err) {
		t.Errorf("with a wrong password: got %v", err)
	}
	nobody := redis.Options{Addrs: []string{"127.0.0.1:1"}}
	if _, err := fetch(t, redis.Get(nobody, itself, codec.String), "k"); !errors.Is(err, redis.ErrUnavailable) || !lookup.Passing(err) {
		t.Errorf("where nobody is: got %v", err)
	}

	err = redis.Get[string, string](redis.Options{}, nil, nil).Check()
	for _, want := range []string{"no address", "command or key of what is looked up is nil", "codec for string is nil"} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if err := errors.Join(redis.HMGet(o, itself).Check(), redis.HGet[string, string](o, nil, codec.String).Check(), redis.Read[string, int](o, nil, nil).Check()); err == nil ||
		strings.Count(err.Error(), "is nil") != 3 || !strings.Contains(err.Error(), "HMGet of no field") {
		t.Errorf("got %v", err)
	}
	if got, want := redis.Get(o, itself, codec.String).String(), "redis "+o.Addrs[0]+" by GET"; got != want {
		t.Errorf("it is called %q, want %q", got, want)
	}
}

// TestLookupsSurviveConnectionsThatAreCut runs an app whose connections to Redis are cut
// in the midst of answers: it repeats what was not answered, and stays exact.
func TestLookupsSurviveConnectionsThatAreCut(t *testing.T) {
	s := redistest.Shared(t)
	p := redistest.StartProxy(t, s.Addr)
	cl := s.Client(t)
	var in, want []string
	for i := range 20_000 {
		v := fmt.Sprint("k", i*i%501)
		in, want = append(in, v), append(want, v+" is "+v+"!")
	}
	for i := range 501 {
		k := fmt.Sprint("k", i)
		if err := cl.Set(t.Context(), "cut:"+k, k+"!", 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", in)
	app := weir.New("lookups", weir.Brokers(brokers...), weir.Store(checkpoint.NewMem()), weir.InstanceID("a"), weir.CheckpointEvery(20*time.Millisecond), weir.Drain())
	o := redis.Options{Addrs: []string{p.Addr}, Prefix: "cut:", Timeout: time.Second}
	calls := 0
	values := weir.Map(weir.From(app, "in", source.Values("in", codec.String)), "cut", func(k string) (string, error) {
		if calls++; calls%500 == 0 {
			p.CutAfter(int64(calls % 700))
		}
		return k, nil
	})
	out := weir.Lookup(values, "ask", redis.Get(o, itself, codec.String), itself, func(k, v string, found bool) (string, error) {
		if !found {
			return "", fmt.Errorf("%s is not there", k)
		}
		return k + " is " + v, nil
	})
	weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if err := app.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if p.Cuts() < 5 {
		t.Errorf("only %d connections were cut", p.Cuts())
	}
	var got []string
	reader, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics("out"), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer reader.Close()
	for len(got) < len(want) && ctx.Err() == nil {
		reader.PollFetches(ctx).EachRecord(func(r *kgo.Record) { got = append(got, string(r.Value)) })
	}
	if !slices.Equal(got, want) {
		t.Errorf("%d values, want %d, or others", len(got), len(want))
	}
}

func TestLookupsWaitForARedisThatIsStartedAgain(t *testing.T) {
	s := redistest.Start(t)
	cl := s.Client(t)
	if err := cl.Set(t.Context(), "k", "1", 0).Err(); err != nil {
		t.Fatal(err)
	}
	c, err := redis.Get(redis.Options{Addrs: []string{s.Addr}, Timeout: 30 * time.Second}, itself, codec.String).Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	answers := make([]lookup.Answer[string], 1)
	if err := c.Fetch(t.Context(), []string{"k"}, answers); err != nil || answers[0].Value != "1" {
		t.Fatalf("%+v, %v", answers, err)
	}
	s.Kill(t)
	if err := c.Fetch(t.Context(), []string{"k"}, answers); !lookup.Passing(err) || !errors.Is(err, redis.ErrUnavailable) {
		t.Fatalf("got %v from a server that is down", err)
	}
	s.Restart(t)
	clear(answers)
	if err := c.Fetch(t.Context(), []string{"k"}, answers); err != nil || answers[0].Found {
		t.Fatalf("%+v, %v", answers, err)
	}
}
