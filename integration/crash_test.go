package integration

import (
	"fmt"
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
	for _, point := range crashpoint.All {
		t.Run(string(point), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, []string{addr}, 200)
			// Enough state that a segment doesn't fit into its manifest.
			w.args = []string{"-ballast", "600", "-interval", "30ms"}
			w.feedNow(1000)
			p := w.launch()
			p.await("committed", 1, progressTime)
			w.settleWith(p)
			p.kill()

			w.feedNow(500)
			nth := 3
			if point == crashpoint.InRestore || point == crashpoint.AfterRestore {
				nth = 1 // passed once in a life
			}
			if point == crashpoint.BeforeGC || point == crashpoint.InGC || point == crashpoint.InMerge {
				nth = 1
			}
			w.feedOn(200, 20*time.Millisecond)
			p = w.launch(fmt.Sprintf("%s=%s:%d", crashEnv, point, nth))
			p.diesOfItself(point, progressTime)
			p = w.launch()
			p.next("committed", progressTime)
			w.quench()
			w.finish(p)
		})
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
		kills   = 70
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
