package integration

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/weirstream/weir/internal/crashpoint"
)

// crashEnv arms a crash point of the service: NAME or NAME:N.
const crashEnv = "WEIR_CRASHPOINT"

// alignment is how checkpoints deal with what is queued in front of subtasks.
type alignment string

const (
	aligned   alignment = "aligned"
	unaligned alignment = "unaligned"
	// timed checkpoints begin aligned and turn unaligned.
	timed alignment = "aligned with a timeout"
)

// words returns the words of a launch with such checkpoints.
func (c alignment) words() []string {
	return map[alignment][]string{unaligned: {"-unaligned"}, timed: {"-alignment-timeout", "1ms"}}[c]
}

// slow makes the service slower than its input, so that records are in flight.
var slow = []string{"-slow", "1ms"}

// killedAt kills the service at a crash point, with output of the current and of the next
// epoch on its way, and has its successor judged. It returns how many records were in
// flight in what the successor restored.
func killedAt(t *testing.T, addr string, point crashpoint.Point, b backend, c alignment) (inFlight int64) {
	// comes is how a local store that could link everything comes to the state after a
	// death between commit and ingest, and after the ingest.
	comes := map[crashpoint.Point]string{crashpoint.BeforeIngest: "caught up", crashpoint.AfterIngest: "reused"}
	if b == copied && comes[point] != "" {
		b = linked
	}
	w := newWorld(t, []string{addr}, 200)
	// Enough state that a segment doesn't fit into its manifest.
	w.args = append(append(w.at(b), "-ballast", "600", "-interval", "30ms"), c.words()...)
	w.feedNow(1000)
	p := w.launch()
	p.await("committed", 1, progressTime)
	w.settleWith(p)
	p.kill()

	var pace []string
	if c == aligned {
		w.feedNow(500)
	} else {
		// The life that dies begins with records in flight, and has some when it dies.
		pace = slow
		w.feedNow(8000) // for seconds, if the test should be held up
		p = w.launch(pace...)
		p.inFlight(progressTime)
		p.kill()
	}
	nth := 3
	if slices.Contains(crashpoint.Rare, point) {
		nth = 1
	}
	w.feedOn(100, 20*time.Millisecond)
	p = w.launch(append(pace, fmt.Sprintf("%s=%s:%d", crashEnv, point, nth))...)
	p.diesOfItself(point, progressTime)
	how := comes[point]
	if persisted := p.all("persisted"); how == "caught up" && persisted[len(persisted)-1].Entries == 0 {
		how = "reused" // there was no input just then, and there is nothing to catch up with
	}
	p = w.launch()
	restored := p.await("restored", 1, progressTime)
	got := restored.How
	if got == "reused" && slices.ContainsFunc(p.all("followed"), func(f happened) bool { return f.Segments > 0 }) {
		got = "caught up" // while it had no partitions it stood by
	}
	if b != inMemory && how != "" && got != how {
		t.Errorf("the state was %s, want %s\n%s", got, how, p.story())
	}
	p.next("committed", progressTime)
	w.quench()
	w.finish(p)
	return restored.InFlight
}

// killedAtEach runs a test for each crash point there is, with each backend and each of
// the cuts that pick returns.
func killedAtEach(t *testing.T, pick func(i int, b backend) []alignment, test func(t *testing.T, point crashpoint.Point, b backend, c alignment)) {
	for i, point := range crashpoint.All {
		for _, b := range []backend{inMemory, []backend{linked, copied}[i%2]} {
			for _, c := range pick(i, b) {
				if c == aligned && slices.Contains(crashpoint.Unaligned, point) {
					continue
				}
				t.Run(fmt.Sprintf("%s, %s, %s", point, b, c), func(t *testing.T) {
					t.Parallel()
					test(t, point, b, c)
				})
			}
		}
	}
}

// TestS01_KilledAtEachDurableStep kills the service at each crash point there is, on a
// broker that is real.
func TestS01_KilledAtEachDurableStep(t *testing.T) {
	addr := needBroker(t)
	killedAtEach(t, func(i int, b backend) []alignment {
		if slices.Contains(crashpoint.Unaligned, crashpoint.All[i]) {
			return []alignment{unaligned}
		}
		return []alignment{aligned}
	}, func(t *testing.T, point crashpoint.Point, b backend, c alignment) { killedAt(t, addr, point, b, c) })
}

// TestS01_CrashPointMatrix kills the service at each crash point there is, with each backend
// and each kind of checkpoint, on embedded brokers.
func TestS01_CrashPointMatrix(t *testing.T) {
	var mu sync.Mutex
	cases, flown := map[alignment]int{}, map[alignment]int{}
	t.Cleanup(func() { // when all cases are over
		t.Logf("cases: %v; restored with records in flight: %v", cases, flown)
		for _, c := range []alignment{unaligned, timed} {
			if !t.Failed() && flown[c] < cases[c]/2 {
				t.Errorf("only %d of %d %s cases were restored with records in flight", flown[c], cases[c], c)
			}
		}
	})
	killedAtEach(t, func(i int, b backend) []alignment {
		if (i%2 == 0) == (b == inMemory) {
			return []alignment{aligned, unaligned, timed}
		}
		return []alignment{aligned, unaligned}
	}, func(t *testing.T, point crashpoint.Point, b backend, c alignment) {
		n := killedAt(t, embedded(t), point, b, c)
		mu.Lock()
		defer mu.Unlock()
		if cases[c]++; n > 0 {
			flown[c]++
		}
	})
}

// TestS03_KilledRightAfterTheCommitBeforeAnyoneIsTold kills after the commit point
// again and again, before what follows it happened.
func TestS03_KilledRightAfterTheCommitBeforeAnyoneIsTold(t *testing.T) {
	t.Parallel()
	w := newWorld(t, []string{needBroker(t)}, 50)
	w.feedOn(50, 10*time.Millisecond)
	for i := range 3 {
		for _, point := range []crashpoint.Point{crashpoint.AfterCommit, crashpoint.BeforeSinks, crashpoint.AfterSinks} {
			p := w.launch(fmt.Sprintf("%s=%s:%d", crashEnv, point, i+1))
			p.diesOfItself(point, progressTime)
		}
	}
	w.quench()
	w.finish(w.launch())
}

// TestS05_KilledAtRandomWhileInputFlows kills soon after each start, in other places
// of the checkpoint cycle each time, and restarts with another parallelism.
func TestS05_KilledAtRandomWhileInputFlows(t *testing.T) {
	t.Parallel()
	const (
		kills   = 50
		longest = 300 * time.Millisecond // from the first commit to the kill
	)
	w := newWorld(t, []string{needBroker(t)}, 100)
	w.args = []string{"-interval", "20ms", "-ballast", "100"}
	w.feedOn(40, 10*time.Millisecond)
	for i := range kills {
		p := w.launch("-parallelism", fmt.Sprint(1+i%4))
		p.next("committed", progressTime)
		p.killAtRandom(longest)
	}
	w.quench()
	w.finish(w.launch())
}

// TestS05_KilledAtRandomWithALocalStore is the same with state of which memory holds a
// part. Between lives the local store is kept, deleted, or replaced by what it was
// some lives ago. A second one, on another file system, is used now and then, and so
// is old each time.
func TestS05_KilledAtRandomWithALocalStore(t *testing.T) {
	t.Parallel()
	const (
		kills   = 40
		keys    = 1000
		longest = 300 * time.Millisecond
	)
	w := newWorld(t, []string{needBroker(t)}, keys)
	w.args = []string{"-interval", "20ms", "-ballast", "4000", "-memory", tiny(linked)} // 4 MB in 1 or 2 MiB, once in 7
	w.feedNow(2 * keys)
	w.feedOn(30, 10*time.Millisecond)
	old := filepath.Join(t.TempDir(), "old")
	hows := map[string]int{}
	for i := range kills {
		b := linked
		if i%4 == 3 {
			b = copied
		}
		switch {
		case i%10 == 2:
			w.replace(old, w.local(linked))
		case i%10 == 6:
			w.replace(w.local(linked), old)
		case i%10 == 8, i%20 == 15:
			w.remove(w.local(b))
		}
		p := w.launch(append(w.at(b), "-parallelism", fmt.Sprint([]int{1, 2, 1, 7, 1}[i%5]))...)
		p.next("committed", progressTime)
		if i > 0 { // the first one has nothing
			hows[p.all("restored")[0].How]++
		}
		if i%10 == 9 { // some value was read, dropped and read again: memory does not hold all
			p.untilCommitted(fmt.Sprintf("more than %d values read", keys), progressTime, func(c happened) bool { return c.Decoded > keys })
		}
		p.killAtRandom(longest)
	}
	w.quench()
	w.finish(w.launch(w.at(linked)...))
	t.Logf("how the state came: %v", hows)
	for _, how := range []string{"reused", "caught up", "rebuilt"} {
		if hows[how] == 0 {
			t.Errorf("in no life the state was %s: %v", how, hows)
		}
	}
}

// TestS05_KilledWhileRecordsWaitForLookups kills a service whose records wait for look-ups,
// in front of state and behind it: at crash points and at random.
func TestS05_KilledWhileRecordsWaitForLookups(t *testing.T) {
	for _, c := range []alignment{aligned, unaligned, timed} {
		t.Run(string(c), func(t *testing.T) {
			t.Parallel()
			const longest = 150 * time.Millisecond // from the first commit to the kill
			w := newWorld(t, []string{embedded(t)}, 100)
			w.args = append([]string{"-interval", "20ms", "-ballast", "100", "-look-up", "3ms"}, c.words()...)
			w.feedNow(2000)
			w.feedOn(50, 10*time.Millisecond)
			for i, point := range crashpoint.All {
				parallelism := []string{"-parallelism", fmt.Sprint(1 + i%3)}
				if slices.Contains(crashpoint.Rare, point) || slices.Contains(crashpoint.Unaligned, point) || i%3 == 2 {
					p := w.launch(parallelism...)
					p.next("committed", progressTime)
					p.killAtRandom(longest)
					continue
				}
				p := w.launch(append(parallelism, fmt.Sprintf("%s=%s:%d", crashEnv, point, 1+i%3))...)
				p.diesOfItself(point, progressTime)
			}
			w.quench()
			w.finish(w.launch("-parallelism", "5"))
		})
	}
}

// TestS25_KilledAtRandomUnderBackpressureAndRescaled kills a service that is slower than
// its input at random, with records in flight, and restarts it with another parallelism
// each time; some lives end before their first commit.
func TestS25_KilledAtRandomUnderBackpressureAndRescaled(t *testing.T) {
	for _, c := range []alignment{unaligned, timed} {
		onEachBackend(t, string(c), func(t *testing.T, b backend) {
			t.Parallel()
			const (
				lives   = 12
				longest = 200 * time.Millisecond // from the first commit, or from the restore, to the kill
			)
			w := newWorld(t, []string{needBroker(t)}, 100)
			w.args = append(append(w.at(b), "-interval", "20ms", "-ballast", "100"), c.words()...)
			w.feedNow(8000)
			w.feedOn(40, 10*time.Millisecond)
			flown, rescaled := 0, map[string]bool{}
			for i := range lives {
				parallelism := []int{1, 2, 3, 7, 2, 1}[i%6]
				words := append([]string{"-parallelism", fmt.Sprint(parallelism)}, slow...)
				if i%4 == 3 {
					words = append(words, "-interval", "5m")
				}
				p := w.launch(words...)
				if p.await("restored", 1, progressTime).InFlight > 0 {
					flown++
					rescaled[fmt.Sprint([]int{1, 2, 3, 7, 2, 1}[(i+5)%6], "→", parallelism)] = true
				}
				if i%4 != 3 {
					p.inFlight(progressTime)
				}
				p.killAtRandom(longest)
			}
			w.quench()
			w.finish(w.launch("-parallelism", "5"))
			t.Logf("%d of %d lives began with records in flight; rescaled with some: %v", flown, lives, slices.Sorted(maps.Keys(rescaled)))
			if flown < lives-2 {
				t.Errorf("only %d of %d lives began with records in flight", flown, lives)
			}
		})
	}
}
