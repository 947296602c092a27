package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Config describes a run.
type Config struct {
	Seed    uint64
	Kills   int
	Records int  // lines of text
	Plain   bool // no live display, even on a terminal

	// Worker makes the command that runs a [Worker] with these arguments.
	Worker func(args ...string) *exec.Cmd

	// maxLife is the longest time from a worker's first output to its end.
	maxLife  time.Duration
	interval time.Duration // between checkpoints
}

// Defaults returns the configuration of a run that takes about 25 seconds.
func Defaults() Config {
	return Config{Seed: 1, Kills: 30, Records: 300_000, maxLife: 1400 * time.Millisecond, interval: 50 * time.Millisecond}
}

func (c Config) validate() error {
	var errs []error
	if c.Kills < 0 {
		errs = append(errs, fmt.Errorf("-kills %d: want 0 or more", c.Kills))
	}
	if c.Records <= c.Kills {
		errs = append(errs, fmt.Errorf("-records %d: want more than the %d kills, so that each life of the word count has something to do", c.Records, c.Kills))
	}
	return errors.Join(errs...)
}

const (
	partitions = 4

	// earlyKills of all kills come while the process starts, restores and catches up.
	earlyKills = 0.25
	earlyLife  = 250 * time.Millisecond

	// burst is the part of a life's share of the text that is let go at once before the
	// kill, which follows within burstLife. A worker that keeps up with its input has
	// nothing in flight that a kill could lose.
	burst     = 0.5
	burstLife = 100 * time.Millisecond

	// recoveryPatience is how long a worker may take to its first output.
	recoveryPatience = 20 * time.Second
	// stallPatience is after what silence the rest of the outputs counts as lost.
	stallPatience = 15 * time.Second
)

// director drives a run.
type director struct {
	cfg    Config
	screen *screen
	worker Worker
	rng    *rand.Rand
	report Report
	begun  time.Time

	feeder      *feeder
	verifier    *verifier
	kills       atomic.Int64
	checkpoints atomic.Int64
}

// Run runs the demo and shows it on out. An error says that it could not be carried
// out; whether the outputs were right is for [Report.Err]. When ctx ends, Run stops
// everything that it started and returns the error of ctx.
func Run(ctx context.Context, cfg Config, out io.Writer) (Report, error) {
	if err := cfg.validate(); err != nil {
		return Report{}, err
	}
	dir, err := os.MkdirTemp("", "weir-demo-")
	if err != nil {
		return Report{}, fmt.Errorf("make a directory for the checkpoints: %w", err)
	}
	defer os.RemoveAll(dir)
	cluster, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(partitions, linesTopic, countsTopic))
	if err != nil {
		return Report{}, fmt.Errorf("start the embedded broker: %w", err)
	}
	defer cluster.Close()
	broker := cluster.ListenAddrs()[0]

	d := &director{
		cfg: cfg, screen: newScreen(out, cfg.Plain), begun: time.Now(),
		worker: Worker{brokers: broker, store: filepath.Join(dir, "checkpoints"), interval: cfg.interval},
		// A stream of its own, so that the number of kills doesn't change the text.
		rng: rand.New(rand.NewPCG(cfg.Seed, 1)),
	}
	defer d.screen.close()
	want := count(cfg.Seed, cfg.Records)
	producer, err := kgo.NewClient(kgo.SeedBrokers(broker))
	if err != nil {
		return Report{}, fmt.Errorf("open the feeder's client: %w", err)
	}
	defer producer.Close()
	consumer, err := kgo.NewClient(append(consumeCounts(), kgo.SeedBrokers(broker))...)
	if err != nil {
		return Report{}, fmt.Errorf("open the verifier's client: %w", err)
	}
	defer consumer.Close()
	d.feeder = &feeder{cl: producer, text: newText(cfg.Seed), records: int64(cfg.Records)}
	d.verifier = &verifier{cl: consumer, adm: kadm.NewClient(consumer), ledger: newLedger(want), position: map[int32]int64{}}

	d.screen.line("weir demo: counting the words of %s lines; the count is killed %d times (seed %d)", grouped(int64(cfg.Records)), cfg.Kills, cfg.Seed)
	d.screen.line("embedded broker at %s, checkpoints every %v in %s", broker, cfg.interval, dir)
	if err := d.direct(ctx); err != nil {
		return d.report, err
	}
	d.conclude(len(want))
	return d.report, nil
}

// direct runs feeder, verifier and display beside the lives of the worker.
func (d *director) direct(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	var group sync.WaitGroup
	defer group.Wait()
	defer cancel(nil)
	spawn := func(f func(context.Context) error) {
		group.Go(func() {
			if err := f(ctx); err != nil {
				cancel(err)
			}
		})
	}
	spawn(d.feeder.run)
	spawn(d.verifier.run)
	spawn(d.display)

	err := d.lives(ctx)
	if err == nil {
		err = d.verifier.finish(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx) // of the end, of which err is but a consequence
	}
	return err
}

// lives starts and kills the worker, and lets the last one finish.
func (d *director) lives(ctx context.Context) error {
	share := func(life int) int64 { return int64(d.cfg.Records) * int64(life) / int64(d.cfg.Kills+1) }
	for kill := range d.cfg.Kills {
		if err := d.shortLife(ctx, kill+1, share(kill+1)); err != nil {
			return err
		}
	}
	return d.lastLife(ctx)
}

// shortLife starts a worker, lets the text up to upto go, and kills the worker.
func (d *director) shortLife(ctx context.Context, kill int, upto int64) error {
	l, first, err := d.begin(ctx)
	if err != nil {
		return err
	}
	defer l.kill()
	early := d.rng.Float64() < earlyKills
	// Drawn in any case, so that the moment of one kill doesn't depend on the others.
	life, thick := d.rng.Float64(), d.rng.Float64()

	recovered := "killed before its first output"
	come := func(at time.Time) {
		took := at.Sub(l.started)
		d.report.Recoveries = append(d.report.Recoveries, took)
		recovered = fmt.Sprintf("first new committed output after %s", millis(took))
	}
	if early {
		d.feeder.release(upto, 0)
		if err := d.pass(ctx, l, part(life, earlyLife), first, come); err != nil {
			return err
		}
	} else {
		d.feeder.release(upto-int64(burst*float64(upto-d.feeder.written.Load())), d.cfg.maxLife)
		if err := d.await(ctx, l, first, come); err != nil {
			return err
		}
		if err := d.pass(ctx, l, part(life, d.cfg.maxLife), nil, nil); err != nil {
			return err
		}
		d.feeder.release(upto, 0)
		if err := d.pass(ctx, l, part(thick, burstLife), nil, nil); err != nil {
			return err
		}
	}
	lived := l.kill()
	d.kills.Add(1)
	d.report.Kills++
	d.screen.line("kill %*d of %d at %5.1f s: lived %4d ms, checkpoint %4d; %s", len(fmt.Sprint(d.cfg.Kills)), kill, d.cfg.Kills,
		time.Since(d.begun).Seconds(), lived.Milliseconds(), l.checkpoint.Load(), recovered)
	return nil
}

// part returns that part of whole.
func part(f float64, whole time.Duration) time.Duration { return time.Duration(f * float64(whole)) }

// pass lets a worker live on for that time.
func (d *director) pass(ctx context.Context, l *life, span time.Duration, first <-chan time.Time, come func(time.Time)) error {
	end := time.NewTimer(span)
	defer end.Stop()
	for {
		select {
		case at := <-first:
			come(at)
			first = nil
		case <-end.C:
			return nil
		case <-l.done:
			return l.died()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// lastLife starts a worker that lives until everything came out.
func (d *director) lastLife(ctx context.Context) error {
	l, first, err := d.begin(ctx)
	if err != nil {
		return err
	}
	defer l.kill()
	d.feeder.release(int64(d.cfg.Records), d.cfg.maxLife/2)
	err = d.await(ctx, l, first, func(at time.Time) {
		took := at.Sub(l.started)
		d.report.Recoveries = append(d.report.Recoveries, took)
		d.screen.line("the last one may live: first new committed output after %s", millis(took))
	})
	if err != nil {
		return err
	}
	tick := time.NewTicker(liveEvery)
	defer tick.Stop()
	moved, seen := time.Now(), int64(0)
	for {
		s := d.verifier.standing()
		if s.seen == s.total {
			break
		}
		if s.seen != seen {
			moved, seen = time.Now(), s.seen
		}
		if time.Since(moved) > stallPatience {
			d.screen.line("nothing came for %v: %s outputs are missing", stallPatience, grouped(s.total-s.seen))
			break
		}
		select {
		case <-tick.C:
		case <-l.done:
			return l.died()
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	return l.stop()
}

// begin starts a worker. The channel gets the time of its first output.
func (d *director) begin(ctx context.Context) (*life, <-chan time.Time, error) {
	first, err := d.verifier.first(ctx)
	if err != nil {
		return nil, nil, err
	}
	l, err := begin(d.cfg.Worker(d.worker.args()...), &d.checkpoints)
	return l, first, err
}

// await waits for a worker's first output.
func (d *director) await(ctx context.Context, l *life, first <-chan time.Time, come func(time.Time)) error {
	select {
	case at := <-first:
		come(at)
		return nil
	case <-l.done:
		return l.died()
	case <-time.After(recoveryPatience):
		return fmt.Errorf("the worker committed nothing within %v of its start%s", recoveryPatience, l.stderr.quote())
	case <-ctx.Done():
		return ctx.Err()
	}
}

// display shows where the run stands until ctx ends.
func (d *director) display(ctx context.Context) error {
	tick := time.NewTicker(d.screen.every)
	defer tick.Stop()
	// Rates are taken over a second, so that they can be read.
	type sample struct {
		at          time.Time
		in, outputs int64
	}
	var samples []sample
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		s := d.verifier.standing()
		now := sample{time.Now(), d.feeder.written.Load(), s.outputs}
		samples = append(samples, now)
		for len(samples) > 2 && now.at.Sub(samples[1].at) >= time.Second {
			samples = samples[1:]
		}
		rate := func(n int64) string {
			return grouped(int64(float64(n) / max(now.at.Sub(samples[0].at).Seconds(), liveEvery.Seconds())))
		}
		// What matters most comes first: a narrow terminal cuts the end off.
		d.screen.status(fmt.Sprintf("%s %3d%%  kills %d/%d  missing %d  wrong %d  %s lines/s in  %s counts/s out  %d checkpoints",
			bar(s.seen, s.total), s.seen*100/max(s.total, 1), d.kills.Load(), d.cfg.Kills, s.gaps, s.wrong,
			rate(now.in-samples[0].in), rate(now.outputs-samples[0].outputs), d.checkpoints.Load()))
	}
}

// conclude fills in the report and shows it.
func (d *director) conclude(words int) {
	l, r := d.verifier.ledger, &d.report
	r.Inputs, r.Outputs, r.Words = d.feeder.written.Load(), l.outputs, words
	r.Lost, r.Duplicated, r.OutOfOrder, r.Malformed = l.lost(), l.duplicated, l.outOfOrder, l.malformed
	r.Checkpoints, r.Took = d.checkpoints.Load(), time.Since(d.begun)
	d.screen.close()
	d.screen.line("")
	r.write(d.screen.w)
	if r.Err() == nil {
		d.screen.line("\nexactly once: every word was counted 1, 2, 3, ..., each number once and in order.")
	}
}
