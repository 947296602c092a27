package main

import (
	"bytes"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"runtime/pprof"
	"syscall"
	"time"
)

// job is what a contender is to do. It travels to the contender's process as JSON.
type job struct {
	Brokers     []string
	Name        string // unique: app, group, transactional id
	In, Out     string // topics
	Records     int    // in the input
	Interval    time.Duration
	Parallelism int    // 0: the contender's default
	Dir         string // empty directory for what must be durable
}

// contender reads the whole input of a job and returns when its output is
// committed.
type contender func(ctx context.Context, j job) error

// contenders by name: "weir" and "bare" of each contest, as "copy.weir".
var contenders = map[string]contender{}

// cost is what a contender used.
type cost struct {
	CPU    time.Duration // user and system
	Wall   time.Duration
	Allocs uint64 // objects allocated
	MaxRSS int64  // bytes
}

const contendCommand = "contend"

func init() {
	register(command{name: contendCommand, hidden: true, run: contend})
}

// contend runs one contender in this process and prints its cost as JSON.
func contend(ctx context.Context, fs *flag.FlagSet, args []string, _ *report) error {
	cpu := fs.String("cpuprofile", "", "")
	mem := fs.String("memprofile", "", "")
	if err := fs.Parse(args); err != nil {
		return err
	}
	f, ok := contenders[fs.Arg(0)]
	if !ok {
		return fmt.Errorf("no contender %q", fs.Arg(0))
	}
	var j job
	if err := json.Unmarshal([]byte(fs.Arg(1)), &j); err != nil {
		return fmt.Errorf("reading the job: %w", err)
	}
	if *mem != "" {
		runtime.MemProfileRate = 16 << 10
	}
	if *cpu != "" {
		to, err := os.Create(*cpu)
		if err != nil {
			return err
		}
		defer to.Close()
		if err := pprof.StartCPUProfile(to); err != nil {
			return err
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	used, begun := cpuTime(), time.Now()
	err := f(ctx, j)
	c := cost{CPU: cpuTime() - used, Wall: time.Since(begun)}
	if err != nil {
		return fmt.Errorf("%s: %w", fs.Arg(0), err)
	}
	pprof.StopCPUProfile()
	runtime.ReadMemStats(&after)
	c.Allocs = after.Mallocs - before.Mallocs
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		return fmt.Errorf("getrusage: %w", err)
	}
	c.MaxRSS = ru.Maxrss << 10 // Linux counts in KiB
	if *mem != "" {
		to, err := os.Create(*mem)
		if err != nil {
			return err
		}
		defer to.Close()
		if err := pprof.Lookup("allocs").WriteTo(to, 0); err != nil {
			return err
		}
	}
	return json.NewEncoder(os.Stdout).Encode(c)
}

// cpuTime is the user and system time that this process has used.
func cpuTime() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		panic(err) // has no failure for RUSAGE_SELF
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// contest lets Weir and a bare loop do the same work in turn.
type contest struct {
	name  string // prefix of the contenders and figures
	input input

	brokers     string
	rounds      int
	interval    time.Duration
	parallelism int
	dir         string
	cpuProfile  string
	memProfile  string
	profiled    string
}

// flags declares the flags that all contests have. The fields of c are their
// defaults.
func (c *contest) flags(fs *flag.FlagSet) {
	brokersFlag(fs, &c.brokers)
	fs.IntVar(&c.input.records, "records", c.input.records, "records in the input")
	fs.IntVar(&c.input.partitions, "partitions", c.input.partitions, "partitions of input and output")
	fs.IntVar(&c.input.keys, "keys", c.input.keys, "distinct keys")
	fs.IntVar(&c.input.valueBytes, "value", c.input.valueBytes, "`bytes` in a record's value")
	fs.DurationVar(&c.input.age, "age", 0, "how old the input's timestamps are, as in a backfill")
	fs.IntVar(&c.rounds, "rounds", 5, "rounds, each contender once in each")
	fs.DurationVar(&c.interval, "interval", 100*time.Millisecond, "from one commit to the next")
	fs.IntVar(&c.parallelism, "parallelism", 0, "Weir's subtasks of each stage (default: its own)")
	fs.StringVar(&c.dir, "dir", os.TempDir(), "`directory` for Weir's checkpoint store")
	fs.StringVar(&c.cpuProfile, "cpuprofile", "", "write a CPU profile of the last round to `file`; costs some percent")
	fs.StringVar(&c.memProfile, "memprofile", "", "write an allocation profile of the last round to `file`; costs more")
	fs.StringVar(&c.profiled, "profiled", "weir", "`contender` to profile: weir or bare")
}

// run runs the rounds and reports.
func (c *contest) run(ctx context.Context, r *report) error {
	addrs, stop, err := brokersOf(c.brokers, 0)
	if err != nil {
		return err
	}
	defer stop()
	cl, err := connect(addrs)
	if err != nil {
		return err
	}
	defer cl.close()
	broker := "at " + c.brokers
	if c.brokers == "" {
		broker = "kfake"
	}
	// Topics of an earlier run on a broker that stays must not be in the way.
	run := fmt.Sprintf("bench-%s-%x", c.name, time.Now().UnixMilli())
	in := run + "-in"
	if err := cl.load(ctx, in, c.input); err != nil {
		return err
	}
	defer cl.delete(context.WithoutCancel(ctx), in)
	r.notef("%s: %d records of %d bytes, %d keys, %d partitions; commit every %v; broker %s; Weir's store: directory in %s",
		c.name, c.input.records, c.input.valueBytes, c.input.keys, c.input.partitions, c.interval, broker, c.dir)
	r.columns("round", "weir µs", "bare µs", "ratio", "weir rec/s", "bare rec/s", "weir allocs", "bare allocs", "weir MB", "bare MB")
	names := []string{"weir", "bare"}
	us := map[string][]float64{}
	allocs := map[string][]float64{}
	var ratios []float64
	for round := range c.rounds {
		// Who comes first changes, so that what the machine does meanwhile is shared.
		order := []string{names[round%2], names[1-round%2]}
		got := map[string]cost{}
		for _, who := range order {
			j := job{Brokers: addrs, Name: fmt.Sprintf("%s-%d-%s", run, round, who), In: in, Records: c.input.records, Interval: c.interval, Parallelism: c.parallelism}
			if got[who], err = c.one(ctx, cl, who, j); err != nil {
				return fmt.Errorf("round %d: %w", round+1, err)
			}
		}
		n := float64(c.input.records)
		per := func(who string) float64 { return float64(got[who].CPU.Nanoseconds()) / 1e3 / n }
		rate := func(who string) float64 { return float64(int(n / got[who].Wall.Seconds())) }
		each := func(who string) float64 { return float64(got[who].Allocs) / n }
		for _, who := range names {
			us[who] = append(us[who], per(who))
			allocs[who] = append(allocs[who], each(who))
		}
		ratio := per("bare") / per("weir")
		ratios = append(ratios, ratio)
		r.row(round+1, per("weir"), per("bare"), ratio, rate("weir"), rate("bare"), each("weir"), each("bare"),
			got["weir"].MaxRSS>>20, got["bare"].MaxRSS>>20)
		fmt.Fprintf(os.Stderr, "%s: round %d of %d: weir %s µs, bare %s µs of client CPU a record, ratio %s\n",
			c.name, round+1, c.rounds, number(per("weir")), number(per("bare")), number(ratio))
	}
	r.figure(c.name+".ratio", median(ratios))
	for _, who := range names {
		r.figure(c.name+"."+who+".cpu", median(us[who]))
		r.figure(c.name+"."+who+".allocs", median(allocs[who]))
	}
	return nil
}

// figures lists the figures of a contest with that name.
func contestFigures(name string) []figure {
	return []figure{
		{name + ".ratio", "x", "records per client CPU-second, Weir over the bare loop, median of the rounds"},
		{name + ".weir.cpu", "us/record", "client CPU of Weir"},
		{name + ".bare.cpu", "us/record", "client CPU of the bare loop"},
		{name + ".weir.allocs", "allocs/record", "objects that Weir's process allocates, Kafka client included"},
		{name + ".bare.allocs", "allocs/record", "objects that the bare loop's process allocates, Kafka client included"},
	}
}

// one runs a contender in a process of its own and checks its output.
func (c *contest) one(ctx context.Context, cl *cluster, who string, j job) (cost, error) {
	var got cost
	j.Out = j.Name + "-out"
	if err := cl.create(ctx, j.Out, int32(c.input.partitions)); err != nil {
		return got, err
	}
	defer cl.delete(context.WithoutCancel(ctx), j.Out)
	var err error
	if j.Dir, err = os.MkdirTemp(c.dir, "weir-bench-"); err != nil {
		return got, err
	}
	defer os.RemoveAll(j.Dir)
	text, err := json.Marshal(j)
	if err != nil {
		return got, err
	}
	self, err := os.Executable()
	if err != nil {
		return got, err
	}
	args := []string{contendCommand}
	if who == c.profiled && c.cpuProfile != "" {
		args = append(args, "-cpuprofile", c.cpuProfile)
	}
	if who == c.profiled && c.memProfile != "" {
		args = append(args, "-memprofile", c.memProfile)
	}
	cmd := exec.CommandContext(ctx, self, append(args, c.name+"."+who, string(text))...)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return got, fmt.Errorf("%s: %w", who, err)
	}
	if err := json.Unmarshal(bytes.TrimSpace(out), &got); err != nil {
		return got, fmt.Errorf("%s: reading its cost from %q: %w", who, out, err)
	}
	n, err := cl.committed(ctx, j.Out)
	if err != nil {
		return got, err
	}
	if n != c.input.records {
		return got, fmt.Errorf("%s: %d records are committed in its output, want %d", who, n, c.input.records)
	}
	return got, nil
}
