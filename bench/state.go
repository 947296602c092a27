package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/google/pprof/profile"
	"github.com/twmb/franz-go/pkg/kgo"
	"golang.org/x/time/rate"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
)

func init() {
	register(command{name: stateWorkerCommand, hidden: true, run: stateWorker})
	register(command{
		name:    "state",
		summary: "updates random keys of a large state, and restarts after SIGKILL with the local store kept and lost",
		figures: []figure{
			{"state.updates", "1/cpu-s", "updates (a read and a write of a key's value) per CPU-second of the process"},
			{"state.stall_p50", "ms", "longest time that a subtask was held for a checkpoint, median of the checkpoints"},
			{"state.stall_p99", "ms", "99th percentile of it"},
			{"state.stall_max", "ms", "maximum of it"},
			{"state.stall_machine_p99", "ms", "99th percentile of the longest of as many stretches of computing that have nothing to do with a checkpoint: what the machine adds"},
			{"state.cpu_per_dirty_key", "ns", "CPU in freezing, writing, ingesting and merging, by profile, for each changed key in a checkpoint"},
			{"state.cpu_page_cache", "ns", "of that, in writes through the page cache: what it takes depends on the machine, much where a hypervisor takes free memory back"},
			{"state.write_amp_local", "x", "bytes written to disk beside the store, for each changed byte"},
			{"state.write_amp_store", "x", "bytes written to the store, for each changed byte"},
			{"state.restore_kept", "ms", "from exec after SIGKILL to the first processed record, local store kept, median"},
			{"state.restore_lost", "ms", "the same, local store lost"},
			{"state.rss", "MB", "peak memory of the process that updates"},
		},
		run: func(ctx context.Context, fs *flag.FlagSet, args []string, r *report) error {
			s := stateBench{job: stateJob{ValueBytes: 100}}
			brokersFlag(fs, &s.brokers)
			fs.IntVar(&s.keys, "keys", 10_000_000, "keys in the state")
			fs.IntVar(&s.job.ValueBytes, "value", 100, "`bytes` of a key's value, at least 8")
			fs.StringVar(&s.job.Backend, "backend", "pebble", "memory or pebble")
			fs.Int64Var(&s.job.MemoryBytes, "memory", pebble.DefaultMemoryBytes(), "`bytes` of memory for the pebble backend's typed state")
			fs.Int64Var(&s.limit, "limit", 1<<30, "`bytes` of memory for the process: the pebble backend's block cache, and GOMEMLIMIT for what is left of it")
			fs.IntVar(&s.updates, "updates", 0, "updates of random keys that are measured (default 2.4 for each key: less is not a whole cycle of merges, and the large one is in it or not)")
			fs.IntVar(&s.warmup, "warmup", 4_000_000, "updates before them, so that the merges that filling leaves to be done are not among what is measured")
			fs.IntVar(&s.rate, "rate", 0, "updates a second that are measured, of all subtasks together (default: as many as the process can; then stalls are those of a machine without a core to spare)")
			fs.IntVar(&s.restarts, "restarts", 3, "restarts of each kind")
			fs.IntVar(&s.job.Parallelism, "parallelism", 0, "subtasks of each stage (default: Weir's own)")
			fs.DurationVar(&s.job.Interval, "interval", 100*time.Millisecond, "from one checkpoint to the next")
			fs.StringVar(&s.dir, "dir", os.TempDir(), "`directory` for the checkpoint store and the local store")
			fs.StringVar(&s.cpuProfile, "cpuprofile", "", "keep the CPU profile of the updates in `file`")
			if err := parse(fs, args); err != nil {
				return err
			}
			if s.updates == 0 {
				s.updates = s.keys * 12 / 5
			}
			if s.job.ValueBytes < 8 || s.job.Backend != "memory" && s.job.Backend != "pebble" {
				return fmt.Errorf("-value %d -backend %s: want at least 8 bytes, and memory or pebble", s.job.ValueBytes, s.job.Backend)
			}
			if s.rate < 0 {
				return fmt.Errorf("-rate %d: want a number of updates a second, or 0 for as many as the process can", s.rate)
			}
			return s.run(ctx, r)
		},
	})
}

// stateJob is what a worker is to do. It travels to its process as JSON.
type stateJob struct {
	Brokers     []string
	Name        string // app and prefix of the topics
	ValueBytes  int
	Backend     string
	MemoryBytes int64
	Parallelism int
	Interval    time.Duration
	Dir         string
	Drain       bool
	Profile     string // file for a CPU profile; empty for none
	Rate        int    // updates a second; 0: as many as it can
}

// stateCost is what a worker that drained its input reports.
type stateCost struct {
	CPU     time.Duration
	Wall    time.Duration
	Held    []time.Duration // by checkpoint
	Machine []time.Duration // the same of stretches of computing, by interval
	Entries int64           // changed, over all checkpoints
	Store   int64           // bytes written to the store
	Disk    int64           // bytes written to any disk
}

type stateBench struct {
	job        stateJob
	brokers    string
	dir        string
	keys       int
	limit      int64
	updates    int
	warmup     int
	rate       int
	restarts   int
	cpuProfile string
}

// processed is the line by which a worker says that it processed its first record,
// with the time in nanoseconds since 1970 behind it.
const processed = "processed "

// paceStep is after how many records a subtask asks whether it is ahead of the rate.
const paceStep = 64

const stateWorkerCommand = "state-worker"

// countingStore counts the bytes that are put into a directory store.
type countingStore struct {
	*checkpoint.Dir
	written atomic.Int64
}

func (s *countingStore) Put(ctx context.Context, name string, data []byte) error {
	s.written.Add(int64(len(data)))
	return s.Dir.Put(ctx, name, data)
}

func stateWorker(ctx context.Context, fs *flag.FlagSet, args []string, _ *report) (err error) {
	if err := fs.Parse(args); err != nil {
		return err
	}
	var j stateJob
	if err := json.Unmarshal([]byte(fs.Arg(0)), &j); err != nil {
		return fmt.Errorf("reading the job: %w", err)
	}
	dir, err := checkpoint.OpenDir(filepath.Join(j.Dir, "store"))
	if err != nil {
		return err
	}
	store := &countingStore{Dir: dir}
	var (
		mu   sync.Mutex
		cost stateCost
		once sync.Once
	)
	opts := []weir.Option{
		weir.Brokers(j.Brokers...), weir.Store(store), weir.InstanceID("bench"), weir.CheckpointEvery(j.Interval),
		weir.Listen(weir.Listener{CheckpointPersisted: func(i event.CheckpointPersisted) {
			mu.Lock()
			defer mu.Unlock()
			cost.Held = append(cost.Held, i.Held)
			cost.Entries += i.Entries
		}}),
	}
	if j.Drain {
		opts = append(opts, weir.Drain())
	}
	if j.Parallelism > 0 {
		opts = append(opts, weir.Parallelism(j.Parallelism))
	}
	if j.Backend == "pebble" {
		b := pebble.Dir(filepath.Join(j.Dir, "local"))
		b.MemoryBytes = j.MemoryBytes
		opts = append(opts, weir.StateBackend(b))
	}
	pace := rate.NewLimiter(rate.Inf, paceStep)
	if j.Rate > 0 {
		pace.SetLimit(rate.Limit(j.Rate))
	}
	app := weir.New(j.Name, opts...)
	type update = weir.KV[string, []byte]
	in := weir.From(app, "in", source.KeyValues(j.Name+"-in", codec.String, codec.Bytes))
	byKey := weir.KeyBy(in, "by-key", func(u update) string { return u.Key }, codec.String)
	out := weir.Process(byKey, "update", func(s *weir.Setup) weir.Handler[string, update, int64] {
		value, calls := state.Value(s, "value", codec.Bytes), 0
		return weir.OnRecord(func(c *weir.Context[string, int64], u update) error {
			if calls++; calls%paceStep == 0 {
				if err := pace.WaitN(ctx, paceStep); err != nil {
					return err
				}
			}
			once.Do(func() { fmt.Println(processed + strconv.FormatInt(time.Now().UnixNano(), 10)) })
			v := make([]byte, j.ValueBytes)
			copy(v, u.Value)
			n := uint64(1)
			if old, ok := value.Lookup(); ok {
				copy(v, old)
				n += binary.BigEndian.Uint64(old)
			}
			binary.BigEndian.PutUint64(v, n)
			value.Set(v)
			return nil
		})
	})
	weir.To(out, "out", kafka.Values(j.Name+"-out", kafka.NoKey[int64], codec.Int64))
	if j.Profile != "" {
		f, err := os.Create(j.Profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
	}
	machine := make(chan []time.Duration, 1)
	computing, enough := context.WithCancel(ctx)
	go func() { machine <- computeInStretches(computing, j.Interval) }()
	used, begun, disk := cpuTime(), time.Now(), diskWrites()
	err = app.Run(ctx)
	enough()
	pprof.StopCPUProfile()
	if err != nil {
		return err
	}
	mu.Lock()
	defer mu.Unlock()
	cost.Machine = <-machine
	cost.CPU, cost.Wall, cost.Store, cost.Disk = cpuTime()-used, time.Since(begun), store.written.Load(), diskWrites()-disk
	return json.NewEncoder(os.Stdout).Encode(cost)
}

// Stretches are what a freeze takes of a subtask: that many in an interval, of that length.
const (
	stretches = 6
	stretch   = 250 * time.Microsecond
)

// computeInStretches computes as long and as often as a subtask freezes, until ctx ends. It
// returns the longest time that a stretch took, for each interval: more than a stretch is
// when the machine had something else to do, which happens to a subtask no less.
func computeInStretches(ctx context.Context, interval time.Duration) (longest []time.Duration) {
	tick := time.NewTicker(interval / stretches)
	defer tick.Stop()
	for n := 0; ; n++ {
		select {
		case <-ctx.Done():
			return longest
		case <-tick.C:
		}
		if n%stretches == 0 {
			longest = append(longest, 0)
		}
		begun := time.Now()
		took := time.Duration(0)
		for took < stretch {
			took = time.Since(begun)
		}
		last := &longest[len(longest)-1]
		*last = max(*last, took)
	}
}

// diskWrites is how many bytes this process has sent towards disks.
func diskWrites() int64 {
	b, err := os.ReadFile("/proc/self/io")
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "write_bytes: "); ok {
			n, _ := strconv.ParseInt(strings.TrimSpace(v), 10, 64)
			return n
		}
	}
	return 0
}

func (s *stateBench) run(ctx context.Context, r *report) error {
	addrs, stop, err := brokersOf(s.brokers, aside)
	if err != nil {
		return err
	}
	defer stop()
	cl, err := connect(addrs)
	if err != nil {
		return err
	}
	defer cl.close()
	if s.job.Dir, err = os.MkdirTemp(s.dir, "weir-bench-"); err != nil {
		return err
	}
	defer os.RemoveAll(s.job.Dir)
	s.job.Brokers, s.job.Name = addrs, fmt.Sprintf("bench-state-%x", time.Now().UnixMilli())
	in, out := s.job.Name+"-in", s.job.Name+"-out"
	for _, topic := range []string{in, out} {
		if err := cl.create(ctx, topic, 4); err != nil {
			return err
		}
	}
	defer cl.delete(context.WithoutCancel(ctx), in, out)
	atRate := ""
	if s.rate > 0 {
		atRate = fmt.Sprintf(", %d a second", s.rate)
	}
	r.notef("state: %d keys with values of %d bytes, backend %s; a checkpoint every %v; %d updates of random keys%s", s.keys, s.job.ValueBytes, s.job.Backend, s.job.Interval, s.updates, atRate)
	r.columns("phase", "records", "wall s", "µs CPU/record", "checkpoints", "changed keys", "store MB", "rss MB")

	order := rand.New(rand.NewPCG(seed, 1)).Perm(s.keys)
	if err := s.produce(ctx, cl, in, s.keys, func(i int) int { return order[i] }); err != nil {
		return err
	}
	if _, _, err := s.drain(ctx, r, "fill", s.keys, ""); err != nil {
		return err
	}
	rng := rand.New(rand.NewPCG(seed, 2))
	update := func(int) int { return rng.IntN(s.keys) }
	if s.warmup > 0 {
		if err := s.produce(ctx, cl, in, s.warmup, update); err != nil {
			return err
		}
		if _, _, err := s.drain(ctx, r, "warm-up", s.warmup, ""); err != nil {
			return err
		}
	}
	if err := s.produce(ctx, cl, in, s.updates, update); err != nil {
		return err
	}
	prof := s.cpuProfile
	if prof == "" {
		prof = filepath.Join(s.job.Dir, "cpu.prof")
	}
	cost, rss, err := s.drain(ctx, r, "update", s.updates, prof)
	if err != nil {
		return err
	}
	part, paging, err := checkpointShare(prof)
	if err != nil {
		return err
	}
	changed := float64(cost.Entries) * float64(s.job.ValueBytes+len(key(nil, 0)))
	held, machine := slices.Sorted(slices.Values(cost.Held)), slices.Sorted(slices.Values(cost.Machine))
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }
	r.figure("state.updates", float64(s.updates)/cost.CPU.Seconds())
	r.figure("state.stall_p50", ms(held[len(held)/2]))
	r.figure("state.stall_p99", ms(held[len(held)*99/100]))
	r.figure("state.stall_max", ms(held[len(held)-1]))
	r.figure("state.stall_machine_p99", ms(machine[len(machine)*99/100]))
	r.figure("state.cpu_per_dirty_key", float64(part.Nanoseconds())/float64(cost.Entries))
	r.figure("state.cpu_page_cache", float64(paging.Nanoseconds())/float64(cost.Entries))
	r.figure("state.write_amp_local", float64(max(cost.Disk-cost.Store, 0))/changed)
	r.figure("state.write_amp_store", float64(cost.Store)/changed)
	r.figure("state.rss", float64(rss>>20))
	return s.restore(ctx, cl, in, r)
}

// produce writes n records whose keys have the numbers that pick returns.
func (s *stateBench) produce(ctx context.Context, cl *cluster, topic string, n int, pick func(int) int) error {
	rng := rand.New(rand.NewPCG(seed, 3))
	var failed error
	for i := range n {
		rec := &kgo.Record{Topic: topic, Key: key(nil, pick(i)), Value: make([]byte, s.job.ValueBytes)}
		fill(rec.Value, rng)
		cl.cl.Produce(ctx, rec, func(_ *kgo.Record, err error) {
			if err != nil && failed == nil {
				failed = err // promises run one at a time, Flush waits for them
			}
		})
	}
	return errors.Join(cl.cl.Flush(ctx), failed)
}

// start starts a worker and returns what it prints.
func (s *stateBench) start(ctx context.Context, drain bool, prof string) (*exec.Cmd, *bufio.Reader, error) {
	j := s.job
	j.Drain, j.Profile = drain, prof
	if prof != "" { // it is measured
		j.Rate = s.rate
	}
	text, err := json.Marshal(j)
	if err != nil {
		return nil, nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, err
	}
	cmd := exec.CommandContext(ctx, self, stateWorkerCommand, string(text))
	cmd.Stderr = os.Stderr
	if heap := s.limit - pebble.DefaultCacheBytes() - besideHeap; s.job.Backend == "pebble" && heap > 0 {
		cmd.Env = append(os.Environ(), fmt.Sprintf("GOMEMLIMIT=%d", heap))
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, err
	}
	return cmd, bufio.NewReader(out), cmd.Start()
}

// besideHeap is memory for what neither GOMEMLIMIT nor the block cache counts: the
// program itself, and what the C allocator loses to fragmentation.
const besideHeap = 160 << 20

// drain runs a worker over what is in the topic.
func (s *stateBench) drain(ctx context.Context, r *report, phase string, records int, prof string) (cost stateCost, rss int64, err error) {
	cmd, out, err := s.start(ctx, true, prof)
	if err != nil {
		return cost, 0, err
	}
	text, err := io.ReadAll(out)
	if err = errors.Join(err, cmd.Wait()); err != nil {
		return cost, 0, fmt.Errorf("%s: %w", phase, err)
	}
	_, text, _ = cutLine(text)
	if err := json.Unmarshal(text, &cost); err != nil {
		return cost, 0, fmt.Errorf("%s: reading the cost from %q: %w", phase, text, err)
	}
	rss = cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss << 10 // Linux counts in KiB
	r.row(phase, records, cost.Wall.Seconds(), float64(cost.CPU.Microseconds())/float64(records), len(cost.Held), cost.Entries, cost.Store>>20, rss>>20)
	fmt.Fprintf(os.Stderr, "state: %s: %d records in %v\n", phase, records, cost.Wall.Round(time.Millisecond))
	return cost, rss, nil
}

func cutLine(b []byte) (line string, rest []byte, ok bool) {
	l, r, ok := strings.Cut(string(b), "\n")
	return l, []byte(r), ok
}

// restore kills a worker again and again and measures how long the next one takes to
// its first record.
func (s *stateBench) restore(ctx context.Context, cl *cluster, topic string, r *report) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	feeding := make(chan error, 1)
	go func() { // input never ends while processes come and go
		rng := rand.New(rand.NewPCG(seed, 4))
		tick := time.NewTicker(time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				feeding <- nil
				return
			case <-tick.C:
				if err := s.produce(ctx, cl, topic, 5, func(int) int { return rng.IntN(s.keys) }); err != nil && ctx.Err() == nil {
					feeding <- err
					return
				}
			}
		}
	}()
	for _, kind := range []string{"kept", "lost"} {
		var took []float64
		for round := range s.restarts + 1 {
			if kind == "lost" {
				if err := os.RemoveAll(filepath.Join(s.job.Dir, "local")); err != nil {
					return err
				}
			}
			begun := time.Now()
			cmd, out, err := s.start(ctx, false, "")
			if err != nil {
				return err
			}
			line, err := out.ReadString('\n')
			if err != nil {
				return fmt.Errorf("restart with the local store %s: %w", kind, errors.Join(err, cmd.Wait()))
			}
			at, err := strconv.ParseInt(strings.TrimSpace(strings.TrimPrefix(line, processed)), 10, 64)
			if err != nil {
				return fmt.Errorf("restart with the local store %s: %q is no time: %w", kind, line, err)
			}
			if round > 0 { // the first one follows a clean stop
				took = append(took, float64(time.Unix(0, at).Sub(begun).Microseconds())/1e3)
			}
			// It shall die with checkpoints behind it and one under way.
			select {
			case <-time.After(time.Second):
			case err := <-feeding:
				return err
			}
			if err := cmd.Process.Kill(); err != nil {
				return err
			}
			_ = cmd.Wait() // killed
		}
		fmt.Fprintf(os.Stderr, "state: restarts with the local store %s: %.0f ms\n", kind, took)
		r.figure("state.restore_"+kind, median(took))
	}
	cancel()
	return <-feeding
}

// checkpointShare is the CPU time in a profile that is spent on behalf of checkpoints, and
// the part of it that is spent in writing files through the page cache.
func checkpointShare(file string) (all, paging time.Duration, err error) {
	f, err := os.Open(file)
	if err != nil {
		return 0, 0, err
	}
	defer f.Close()
	p, err := profile.Parse(f)
	if err != nil {
		return 0, 0, fmt.Errorf("reading the CPU profile: %w", err)
	}
	for _, s := range p.Sample {
		ns := time.Duration(s.Value[len(s.Value)-1])
		if in(s, forCheckpoints) {
			all += ns
			if in(s, exactly("os.(*File).Write")) && !in(s, exactly("github.com/weirstream/weir/checkpoint.writeDirect")) {
				paging += ns
			}
		}
	}
	return all, paging, nil
}

// in tells whether one of the functions of a sample is as said.
func in(s *profile.Sample, is func(function string) bool) bool {
	return slices.ContainsFunc(s.Location, func(l *profile.Location) bool {
		return slices.ContainsFunc(l.Line, func(line profile.Line) bool { return is(line.Function.Name) })
	})
}

func exactly(name string) func(string) bool { return func(f string) bool { return f == name } }

// forCheckpoints tells whether what a function calls is work for checkpoints.
func forCheckpoints(function string) bool {
	for _, f := range []string{
		"weir/checkpoint.", "weir/state/segment.", "weir/state/pebble.(*Store).Ingest",
		"weir/processor.(*keyedRunner[...]).encode", "weir/processor.(*keyedRunner[...]).cut",
	} {
		if strings.Contains(function, f) {
			return true
		}
	}
	return false
}
