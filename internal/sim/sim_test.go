package sim

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"reflect"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// leftBehind says that goroutines of a run that was given up are still there.
var leftBehind atomic.Bool

func TestMain(m *testing.M) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(400) // a world is small, and makes a lot of garbage
	}
	code := m.Run()
	if code == 0 && !leftBehind.Load() {
		if err := goleak.Find(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			code = 1
		}
	}
	os.Exit(code)
}

var (
	seedFlag     = flag.Uint64("seed", 1, "the first seed")
	seedsFlag    = flag.Int("seeds", 0, "how many seeds, from the first one on; by default 20, and 5 with -short")
	stepsFlag    = flag.Int("steps", 30, "how many steps a script has")
	onlyFlag     = flag.String("only", "", "the numbers of the faults that happen, by commas; by default all")
	scriptFlag   = flag.String("script", "", "a file with a script to run instead of seeds")
	triesFlag    = flag.Int("tries", 1, "how often each script is run")
	shrinkFlag   = flag.Duration("shrink", time.Minute, "for how long to look for fewer faults with which a script still fails; 0: not at all")
	clientFlag   = flag.String("client", "", "the instance whose Kafka client's debug log goes into the history")
	simulateFlag = flag.Duration("simulate", 0, "how much virtual time TestS41 simulates; by default what comes of 20 seconds, 5 with -short")
	progressFlag = flag.String("progress", "", "a file to which a line is added every 100 seeds, and what happened whenever one fails")
	forFlag      = flag.Duration("for", 0, "after what time to begin no further seed; by default never")
)

// TestSim runs seeds, or the script that -script names.
func TestSim(t *testing.T) {
	if *scriptFlag != "" {
		text, err := os.ReadFile(*scriptFlag)
		if err != nil {
			t.Fatal(err)
		}
		sc, err := parse(string(text))
		if err != nil {
			t.Fatal(err)
		}
		simulate(t, sc, "-script="+*scriptFlag)
		return
	}
	seeds := *seedsFlag
	if seeds == 0 {
		if seeds = 20; testing.Short() {
			seeds = 5
		}
	}
	begin := time.Now()
	runSeeds(t, *seedFlag, func(done int, _ time.Duration) bool {
		return done < seeds && (*forFlag == 0 || time.Since(begin) < *forFlag)
	})
}

// TestS41_SimulatedSecondsOverRandomSeeds runs seeds that no other test runs, until they
// took -simulate of virtual time together. Each of them ends without faults, and has to be
// done with its input within a bound then.
func TestS41_SimulatedSecondsOverRandomSeeds(t *testing.T) {
	budget := 20 * time.Second // of real time
	if testing.Short() {
		budget = 5 * time.Second
	}
	begin := time.Now()
	simulated := runSeeds(t, 1<<40+*seedFlag, func(done int, simulated time.Duration) bool {
		if *simulateFlag > 0 {
			return simulated < *simulateFlag
		}
		return done < 3 || time.Since(begin) < budget
	})
	t.Logf("%.0f simulated seconds", simulated.Seconds())
}

// runSeeds runs seeds from first on for as long as more says, which is told how many were
// run and what virtual time they took.
func runSeeds(t *testing.T, first uint64, more func(done int, simulated time.Duration) bool) (simulated time.Duration) {
	begin, done, frozen := time.Now(), 0, 0
	var sum result
	summary := func() string {
		return fmt.Sprintf("%v: %d seeds from %d on, %d steps each: %.0f simulated seconds, %d processes, %d commits, %d records in %v; %d checkpoints with records in flight, %d restored; %d runs were given up",
			time.Now().UTC().Format(time.TimeOnly), done, first, *stepsFlag, sum.took.Seconds(), sum.lives, sum.commits, sum.records, time.Since(begin).Round(time.Second), sum.inFlight, sum.replays, frozen)
	}
	for seed := first; more(done, sum.took); seed++ {
		t.Run(fmt.Sprint("seed=", seed), func(t *testing.T) {
			sc := generate(seed, *stepsFlag)
			if *onlyFlag != "" {
				sc = sc.only(chosen(t))
			}
			res := simulate(t, sc, fmt.Sprintf("-seed=%d -seeds=1 -steps=%d", seed, *stepsFlag))
			sum.took += res.took
			sum.lives += res.lives
			sum.commits += res.commits
			sum.records += res.records
			sum.inFlight += res.inFlight
			sum.replays += res.replays
			if res.frozen {
				frozen++
			}
			if res.failed() {
				progress(t, "seed %d fails: %s\n%v\n%s", seed, strings.Join(res.violations, "\n"), sc, strings.Join(res.history, "\n"))
			}
		})
		if done++; done%100 == 0 {
			progress(t, "%v", summary())
		}
	}
	progress(t, "%v", summary())
	t.Log(summary())
	if frozen > 2+done/20 {
		t.Errorf("%d of %d runs were given up because virtual time stood still", frozen, done)
	}
	return sum.took
}

// progress adds to the file that -progress names.
func progress(t *testing.T, format string, args ...any) {
	if *progressFlag == "" {
		return
	}
	f, err := os.OpenFile(*progressFlag, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err == nil {
		_, err = fmt.Fprintf(f, format+"\n", args...)
		err = errors.Join(err, f.Close())
	}
	if err != nil {
		t.Error(err)
	}
}

// chosen reads -only.
func chosen(t *testing.T) func(int) bool {
	var faults []int
	for f := range strings.SplitSeq(*onlyFlag, ",") {
		n, err := strconv.Atoi(f)
		if err != nil {
			t.Fatalf("-only=%s: %v", *onlyFlag, err)
		}
		faults = append(faults, n)
	}
	return func(i int) bool { return slices.Contains(faults, i) }
}

// simulate runs a script and reports it, with as few faults as it takes, if it fails.
func simulate(t *testing.T, sc script, how string) *result {
	t.Helper()
	var res *result
	for range max(1, *triesFlag) {
		if res = play(t, sc); res.failed() {
			break
		}
	}
	if res.frozen {
		t.Logf("given up: virtual time stands still")
		return res
	}
	t.Logf("%v of virtual time, %d processes, %d commits, %d records", res.took.Round(time.Millisecond), res.lives, res.commits, res.records)
	if !res.failed() {
		if testing.Verbose() {
			t.Logf("the script:\n%v\nwhat happened:\n%s", sc, strings.Join(res.history, "\n"))
		}
		return res
	}
	if *shrinkFlag > 0 && *onlyFlag == "" {
		faults, few := shrink(t, sc, 2, *shrinkFlag)
		if few != nil {
			var ns []string
			for _, f := range faults {
				ns = append(ns, strconv.Itoa(f))
			}
			t.Logf("it also fails with %d of its %d faults:", len(faults), sc.faults())
			sc, res = sc.only(func(i int) bool { return slices.Contains(faults, i) }), few
			how += " -only=" + strings.Join(ns, ",")
		}
	}
	t.Logf("the script:\n%v\nwhat happened:\n%s", sc, strings.Join(res.history, "\n"))
	for _, v := range res.violations {
		t.Error(v)
	}
	t.Errorf("to run it again: go test ./internal/sim -run 'TestSim$' -tries=20 %s", how)
	return res
}

func TestScriptsReadBackAsWritten(t *testing.T) {
	for seed := range uint64(200) {
		want := generate(seed, 30)
		got, err := parse(want.String())
		if err != nil {
			t.Fatal(err)
		}
		if got.String() != want.String() || !reflect.DeepEqual(got, want) {
			t.Fatalf("seed %d: read back\n%v\nwritten\n%v", seed, got, want)
		}
	}
	for _, bad := range []string{"", "world seed=1", "at 1s", "at soon kill", "life parallelism=x", "world color=red", "hello"} {
		if _, err := parse(bad); err == nil {
			t.Errorf("%q is a script", bad)
		}
	}
}
