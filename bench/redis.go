package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/record"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/redis"
)

func init() {
	register(command{
		name:    "redis",
		summary: "writes to Redis by a bare pipeline, the idempotent sink and the write-ahead sink, without Kafka",
		figures: []figure{
			{"redis.idempotent.ratio", "x", "commands per second of the idempotent sink over a bare pipeline, median of the rounds"},
			{"redis.writeahead.ratio", "x", "commands per second of the write-ahead sink over a bare pipeline, median of the rounds"},
			{"redis.idempotent.cpu_ratio", "x", "commands per client CPU-second of the idempotent sink over a bare pipeline"},
			{"redis.writeahead.cpu_ratio", "x", "commands per client CPU-second of the write-ahead sink over a bare pipeline"},
			{"redis.bare.rate", "1/s", "commands per second of the bare pipeline"},
			{"redis.bare.cpu", "us", "client CPU of the bare pipeline for each command"},
			{"redis.idempotent.cpu", "us", "client CPU of the idempotent sink for each command"},
			{"redis.writeahead.cpu", "us", "client CPU of the write-ahead sink for each command"},
		},
		run: func(ctx context.Context, fs *flag.FlagSet, args []string, r *report) error {
			b := redisBench{}
			fs.StringVar(&b.addr, "redis", "", "`address` of a server, which is emptied (default: one in a container)")
			fs.IntVar(&b.n, "commands", 500_000, "commands that each contender writes in a round")
			fs.IntVar(&b.keys, "keys", 100_000, "distinct keys")
			fs.IntVar(&b.epoch, "epoch", 20_000, "commands from one barrier to the next")
			fs.IntVar(&b.batch, "batch", 512, "commands of a pipeline or script")
			fs.IntVar(&b.rounds, "rounds", 5, "rounds, each contender once in each")
			valueBytes := fs.Int("value", 64, "`bytes` of a value")
			if err := parse(fs, args); err != nil {
				return err
			}
			b.value = strings.Repeat("x", *valueBytes)
			return b.run(ctx, r)
		},
	})
}

// redisBench has three contenders do the same work: SET of values to keys in turn.
type redisBench struct {
	addr                          string
	n, keys, epoch, batch, rounds int
	value                         string
}

func (b *redisBench) run(ctx context.Context, r *report) error {
	if b.addr == "" {
		s, stop, err := redistest.Run()
		if err != nil {
			return fmt.Errorf("a Redis is needed: give -redis, or have Docker: %w", err)
		}
		defer stop()
		b.addr = s.Addr
	}
	cl := goredis.NewClient(&goredis.Options{Addr: b.addr})
	defer cl.Close()
	r.notef("redis: %d SETs of %d bytes to %d keys, a barrier every %d, %d in a pipeline or script; one server at %s; sinks driven without Kafka, logs in memory",
		b.n, len(b.value), b.keys, b.epoch, b.batch, b.addr)
	r.columns("round", "bare/s", "idempotent/s", "writeahead/s", "bare µs", "idempotent µs", "writeahead µs")
	contenders := []struct {
		name string
		run  func(ctx context.Context) error
	}{{"bare", b.bare}, {"idempotent", b.idempotent}, {"writeahead", b.writeAhead}}
	rates, cpus, ratios := map[string][]float64{}, map[string][]float64{}, map[string][]float64{}
	for round := range b.rounds {
		rate, cpu := map[string]float64{}, map[string]float64{}
		for i := range contenders {
			c := contenders[(i+round)%len(contenders)]
			if err := cl.FlushAll(ctx).Err(); err != nil {
				return err
			}
			used, begun := cpuTime(), time.Now()
			if err := c.run(ctx); err != nil {
				return fmt.Errorf("%s: %w", c.name, err)
			}
			rate[c.name] = float64(b.n) / time.Since(begun).Seconds()
			cpu[c.name] = float64((cpuTime() - used).Nanoseconds()) / 1e3 / float64(b.n)
			if err := b.check(ctx, cl, c.name); err != nil {
				return err
			}
		}
		for _, c := range contenders {
			rates[c.name] = append(rates[c.name], rate[c.name])
			cpus[c.name] = append(cpus[c.name], cpu[c.name])
			ratios[c.name] = append(ratios[c.name], rate[c.name]/rate["bare"])
			ratios[c.name+".cpu"] = append(ratios[c.name+".cpu"], cpu["bare"]/cpu[c.name])
		}
		r.row(round+1, float64(int(rate["bare"])), float64(int(rate["idempotent"])), float64(int(rate["writeahead"])), cpu["bare"], cpu["idempotent"], cpu["writeahead"])
	}
	for _, name := range []string{"idempotent", "writeahead"} {
		r.figure("redis."+name+".ratio", median(ratios[name]))
		r.figure("redis."+name+".cpu_ratio", median(ratios[name+".cpu"]))
		r.figure("redis."+name+".cpu", median(cpus[name]))
	}
	r.figure("redis.bare.rate", median(rates["bare"]))
	r.figure("redis.bare.cpu", median(cpus["bare"]))
	return nil
}

// check makes sure that all was written.
func (b *redisBench) check(ctx context.Context, cl *goredis.Client, name string) error {
	keys, err := cl.DBSize(ctx).Result()
	if err != nil {
		return err
	}
	if name == "writeahead" {
		keys-- // the marker
	}
	if want := int64(min(b.n, b.keys)); keys != want {
		return fmt.Errorf("%s: %d keys are in Redis, want %d", name, keys, want)
	}
	return nil
}

func (b *redisBench) key(i int) string { return "key:" + strconv.Itoa(i%b.keys) }

func (b *redisBench) options() redis.Options { return redis.Options{Addrs: []string{b.addr}} }

// bare is what one writes by hand: pipelines, one after another.
func (b *redisBench) bare(ctx context.Context) error {
	cl := goredis.NewClient(&goredis.Options{Addr: b.addr})
	defer cl.Close()
	for i := 0; i < b.n; {
		pipe := cl.Pipeline()
		for range min(b.batch, b.n-i) {
			pipe.Set(ctx, b.key(i), b.value, 0)
			i++
		}
		if _, err := pipe.Exec(ctx); err != nil {
			return err
		}
	}
	return nil
}

// idempotent drives the sink as a subtask does.
func (b *redisBench) idempotent(ctx context.Context) error {
	ctx, end := context.WithCancel(ctx)
	defer end()
	w, err := redis.Upsert(b.options(), func(u *redis.Upserts, i int) { u.Set(b.key(i), b.value) }, redis.BatchSize(b.batch, 1<<20)).Open(benchEnv{ctx: ctx})
	if err != nil {
		return err
	}
	for i := range b.n {
		if err := w.Write(i); err != nil {
			return err
		}
		if (i+1)%b.epoch == 0 || i+1 == b.n {
			if err := w.(sink.Flusher).Flush(ctx); err != nil {
				return err
			}
		}
	}
	return nil
}

// writeAhead drives the sink as the runtime does, with a checkpoint that costs nothing.
func (b *redisBench) writeAhead(ctx context.Context) (err error) {
	ctx, end := context.WithCancel(ctx)
	s := redis.WriteAhead(b.options(), func(batch *redis.Batch, i int) { batch.Set(b.key(i), b.value) }, redis.BatchSize(b.batch, 1<<20))
	env := benchEnv{ctx: ctx}
	a, err := s.Applier(env)
	if err != nil {
		end()
		return err
	}
	env.applier = a
	ran := make(chan error, 1)
	if err := a.Recover(ctx, 0, nil); err != nil {
		end()
		return err
	}
	go func() { ran <- a.Run(ctx) }()
	defer func() {
		end()
		err = errors.Join(err, <-ran, a.Close())
	}()
	w, err := s.Open(env)
	if err != nil {
		return err
	}
	var id int64
	for i := range b.n {
		if err := w.Write(i); err != nil {
			return err
		}
		if (i+1)%b.epoch != 0 && i+1 != b.n {
			continue
		}
		part, err := w.(sink.Logger).Log()
		if err != nil {
			return err
		}
		id++
		a.Committed(sink.Log{Checkpoint: id, Lineage: env.Lineage(), After: id - 1, Created: time.Now(), Bytes: int64(len(part)),
			Read: func(context.Context) ([][]byte, error) { return [][]byte{part}, nil }})
	}
	return a.Drain(ctx)
}

// benchEnv is what the runtime gives a sink.
type benchEnv struct {
	ctx     context.Context
	applier sink.Applier
}

func (e benchEnv) App() string              { return "bench" }
func (e benchEnv) Operator() string         { return "out" }
func (e benchEnv) Instance() string         { return strconv.Itoa(os.Getpid()) }
func (e benchEnv) Lineage() string          { return "00000000000000a1" }
func (e benchEnv) Subtask() int             { return 0 }
func (e benchEnv) Meta() record.Meta        { return record.Meta{} }
func (e benchEnv) Output() sink.Output      { return nil }
func (e benchEnv) Context() context.Context { return e.ctx }
func (e benchEnv) Applier() sink.Applier    { return e.applier }
func (e benchEnv) Logger() *zap.Logger      { return zap.NewNop() }
func (e benchEnv) Applied(event.Applied)    {}

func (e benchEnv) Confirm(context.Context) error { return nil }
