package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// barrierModes are the ways in which a checkpoint can be cut.
var barrierModes = []struct {
	name string
	opts []weir.Option
}{
	{"aligned", nil},
	{"unaligned", []weir.Option{weir.Unaligned()}},
	{"timeout", []weir.Option{weir.AlignmentTimeout(barrierTimeout)}},
}

const barrierTimeout = 200 * time.Millisecond

// barrierSubtasks are the numbers of subtasks of each stage; figures of the first one have
// no suffix.
var barrierSubtasks = []int{4, 32}

func barrierFigure(mode string, subtasks int, what string) string {
	if subtasks != barrierSubtasks[0] {
		mode = fmt.Sprintf("%s%d", mode, subtasks)
	}
	return fmt.Sprintf("barrier.%s.%s", mode, what)
}

func init() {
	var figures []figure
	for _, subtasks := range barrierSubtasks {
		for _, m := range barrierModes {
			add := func(what, unit, meaning string) {
				figures = append(figures, figure{barrierFigure(m.name, subtasks, what), unit, fmt.Sprintf("%s, %s checkpoints, %d subtasks a stage", meaning, m.name, subtasks)})
			}
			add("p50", "ms", "time from barrier to commit, median")
			add("p99", "ms", "time from barrier to commit, 99th percentile")
			add("throughput", "records/s", "records through the slow operator")
		}
	}
	register(command{
		name:    "barrier",
		summary: "checkpoints under backpressure of an operator that is 10 times slower than the one before it",
		figures: figures,
		run: func(ctx context.Context, fs *flag.FlagSet, args []string, r *report) error {
			b := barrierBench{}
			brokersFlag(fs, &b.brokers)
			fs.DurationVar(&b.lasts, "duration", 15*time.Second, "how long each of the apps runs")
			fs.DurationVar(&b.interval, "interval", 100*time.Millisecond, "checkpoint interval")
			if err := parse(fs, args); err != nil {
				return err
			}
			return b.run(ctx, r)
		},
	})
}

type barrierBench struct {
	brokers         string
	lasts, interval time.Duration
}

// barrierRecords is the input, more than any of the apps can process while it runs.
const barrierRecords = 600_000

func (b *barrierBench) run(ctx context.Context, r *report) error {
	addrs, stop, err := brokersOf(b.brokers, 0)
	if err != nil {
		return err
	}
	defer stop()
	in := fmt.Sprintf("bench-barrier-%d", os.Getpid())
	if err := b.prepare(ctx, addrs, in); err != nil {
		return err
	}
	r.notef("checkpoints every %v for %v; a call of the slow handler takes about 1ms; timeout is weir.AlignmentTimeout(%v)", b.interval, b.lasts, barrierTimeout)
	r.notef("a checkpoint that is not committed at the end counts with its age")
	r.columns("mode", "subtasks", "checkpoints", "p50 ms", "p99 ms", "records/s", "most in flight")
	for _, subtasks := range barrierSubtasks {
		for i, m := range barrierModes {
			g, err := b.measure(ctx, addrs, in, fmt.Sprintf("%s-%d-%d", in, subtasks, i), subtasks, m.opts)
			if err != nil {
				return fmt.Errorf("%s with %d subtasks: %w", m.name, subtasks, err)
			}
			p50, p99 := g.percentile(0.50), g.percentile(0.99)
			r.row(m.name, subtasks, len(g.took), p50, p99, g.rate, g.inFlight)
			r.figure(barrierFigure(m.name, subtasks, "p50"), p50)
			r.figure(barrierFigure(m.name, subtasks, "p99"), p99)
			r.figure(barrierFigure(m.name, subtasks, "throughput"), g.rate)
		}
	}
	return nil
}

// prepare makes the topics that the apps read and write, and the input.
func (b *barrierBench) prepare(ctx context.Context, addrs []string, in string) error {
	c, err := connect(addrs)
	if err != nil {
		return err
	}
	defer c.close()
	if err := c.create(ctx, in+"-out", 8); err != nil {
		return err
	}
	return c.load(ctx, in, input{records: barrierRecords, partitions: 8, keys: 20_000, valueBytes: 50})
}

// barrierGauge is what one app showed.
type barrierGauge struct {
	mu       sync.Mutex
	begun    map[int64]time.Time
	took     []float64 // ms, ascending at the end
	inFlight int64
	rate     float64 // records/s
}

// percentile returns the time that a share of the checkpoints took at most.
func (g *barrierGauge) percentile(share float64) float64 {
	return g.took[min(int(share*float64(len(g.took))), len(g.took)-1)]
}

var errBenchOver = errors.New("the bench has seen enough")

func (b *barrierBench) measure(ctx context.Context, addrs []string, in, name string, subtasks int, opts []weir.Option) (*barrierGauge, error) {
	dir, err := os.MkdirTemp("", "weir-bench-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	g := &barrierGauge{begun: map[int64]time.Time{}}
	// Only what the full queues see counts: time begins with the first record that is
	// through, and a tenth of the run later.
	var through atomic.Int64
	var counting, over atomic.Bool
	listener := weir.Listener{
		CheckpointBegun: func(i event.CheckpointBegun) {
			if counting.Load() {
				g.mu.Lock()
				g.begun[i.Checkpoint] = time.Now()
				g.mu.Unlock()
			}
		},
		CheckpointPersisted: func(i event.CheckpointPersisted) {
			g.mu.Lock()
			g.inFlight = max(g.inFlight, i.InFlight)
			g.mu.Unlock()
		},
		CheckpointCommitted: func(i event.CheckpointCommitted) {
			g.mu.Lock()
			if _, ok := g.begun[i.Checkpoint]; ok {
				g.took = append(g.took, ms(i.Total))
				delete(g.begun, i.Checkpoint)
			}
			g.mu.Unlock()
		},
	}
	app := weir.New(name, append([]weir.Option{
		weir.Brokers(addrs...), weir.CheckpointStore("file://" + dir), weir.InstanceID("bench"),
		weir.Parallelism(subtasks), weir.CheckpointEvery(b.interval), weir.CheckpointTimeout(10 * time.Minute), weir.Listen(listener),
		weir.Restart(weir.RestartPolicy{Initial: time.Second, Max: time.Second}),
	}, opts...)...)
	barrierTopology(app, in, &through, &over)
	done := make(chan error, 1)
	go func() { done <- app.Run(ctx) }()
	for through.Load() == 0 {
		select {
		case err := <-done:
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
	wait := func(d time.Duration) error {
		select {
		case err := <-done:
			return fmt.Errorf("the app ended: %w", err)
		case <-time.After(d):
			return nil
		}
	}
	if err := wait(b.lasts / 10); err != nil {
		return nil, err
	}
	counting.Store(true)
	from, at := through.Load(), time.Now()
	if err := wait(b.lasts); err != nil {
		return nil, err
	}
	g.rate = float64(through.Load()-from) / time.Since(at).Seconds()
	over.Store(true) // a clean stop would have to process all that is queued
	if err := <-done; !errors.Is(err, errBenchOver) {
		return nil, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, begun := range g.begun {
		g.took = append(g.took, ms(time.Since(begun)))
	}
	if len(g.took) == 0 { // one that began before hangs until now
		g.took = append(g.took, ms(time.Since(at)))
	}
	slices.Sort(g.took)
	return g, nil
}

// barrierTopology has a quick operator, of which ten records take 1ms, and a slow one, of
// which each does.
func barrierTopology(app *weir.App, in string, through *atomic.Int64, over *atomic.Bool) {
	type pair = weir.KV[string, []byte]
	pairs := codec.Func("pair", 1,
		func(dst []byte, p pair) ([]byte, error) {
			return append(append(append(dst, byte(len(p.Key))), p.Key...), p.Value...), nil
		},
		func(b []byte) (pair, error) {
			if len(b) == 0 || len(b) <= int(b[0]) {
				return pair{}, errors.New("no pair")
			}
			return pair{Key: string(b[1 : 1+b[0]]), Value: b[1+b[0]:]}, nil
		})
	byKey := func(p pair) string { return p.Key }
	counting := func(every int, count *atomic.Int64) func(*weir.Setup) weir.Handler[string, pair, pair] {
		return func(s *weir.Setup) weir.Handler[string, pair, pair] {
			n, calls := state.Value(s, "n", codec.Int64), 0
			return weir.OnRecord(func(c *weir.Context[string, pair], p pair) error {
				if over.Load() {
					return errBenchOver
				}
				if calls++; calls%every == 0 {
					time.Sleep(time.Millisecond)
				}
				count.Add(1)
				n.Set(n.Get() + 1)
				c.Emit(p)
				return nil
			})
		}
	}
	read := weir.From(app, "in", source.KeyValues(in, codec.String, codec.Bytes))
	quick := weir.Process(weir.KeyBy(read, "to-quick", byKey, codec.String, weir.ValueCodec(pairs)), "quick", counting(10, new(atomic.Int64)))
	slow := weir.Process(weir.KeyBy(quick, "to-slow", byKey, codec.String, weir.ValueCodec(pairs)), "slow", counting(1, through))
	weir.To(slow, "out", kafka.Sink(in+"-out", codec.String, codec.Bytes))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
