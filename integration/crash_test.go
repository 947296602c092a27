package integration

import (
	"fmt"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/weirstream/weir/internal/crashpoint"
)

// crashEnv arms a crash point of the service: NAME or NAME:N.
const crashEnv = "WEIR_CRASHPOINT"

// TestS01_KilledAtEachDurableStep kills the service at each crash point there is,
// with output of the current and of the next epoch on its way.
func TestS01_KilledAtEachDurableStep(t *testing.T) {
	addr := needBroker(t)
	// once are the points that a life passes not at all often.
	once := []crashpoint.Point{crashpoint.InRestore, crashpoint.AfterRestore, crashpoint.BeforeGC, crashpoint.InGC, crashpoint.InMerge}
	// comes is how a local store that could link everything comes to the state after a
	// death between commit and ingest, and after the ingest.
	comes := map[crashpoint.Point]string{crashpoint.BeforeIngest: "caught up", crashpoint.AfterIngest: "reused"}
	for i, point := range crashpoint.All {
		local := []backend{linked, copied}[i%2]
		if comes[point] != "" {
			local = linked
		}
		for _, b := range []backend{inMemory, local} {
			t.Run(fmt.Sprintf("%s, %s", point, b), func(t *testing.T) {
				t.Parallel()
				w := newWorld(t, []string{addr}, 200)
				// Enough state that a segment doesn't fit into its manifest.
				w.args = append(w.at(b), "-ballast", "600", "-interval", "30ms")
				w.feedNow(1000)
				p := w.launch()
				p.await("committed", 1, progressTime)
				w.settleWith(p)
				p.kill()

				w.feedNow(500)
				nth := 3
				if slices.Contains(once, point) {
					nth = 1
				}
				w.feedOn(200, 20*time.Millisecond)
				p = w.launch(fmt.Sprintf("%s=%s:%d", crashEnv, point, nth))
				p.diesOfItself(point, progressTime)
				p = w.launch()
				if how := p.await("restored", 1, progressTime).How; b != inMemory && comes[point] != "" && how != comes[point] {
					t.Errorf("the state was %s, want %s", how, comes[point])
				}
				p.next("committed", progressTime)
				w.quench()
				w.finish(p)
			})
		}
	}
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
	hows, again := map[string]int{}, 0
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
		hows[p.all("restored")[0].How]++
		p.killAtRandom(longest)
		committed := p.all("committed")
		if n := committed[len(committed)-1].Decoded; n > keys {
			again++ // some value was read, dropped and read again
		}
	}
	w.quench()
	w.finish(w.launch(w.at(linked)...))
	t.Logf("how the state came: %v; in %d lives values were read more than once", hows, again)
	if again == 0 {
		t.Errorf("in no life more than %d values were read: memory held all", keys)
	}
	for _, how := range []string{"reused", "caught up", "rebuilt"} {
		if hows[how] == 0 {
			t.Errorf("in no life the state was %s: %v", how, hows)
		}
	}
}
