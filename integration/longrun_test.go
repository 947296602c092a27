package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// usage is what a process and its stores take.
type usage struct {
	goroutines, descriptors int
	resident                int64 // bytes
	storeFiles, localFiles  int
	storeBytes, localBytes  int64
}

func (u usage) String() string {
	return fmt.Sprintf("%d goroutines, %d descriptors, %d MB resident, checkpoint store %d files %d KB, local store %d files %d KB",
		u.goroutines, u.descriptors, u.resident>>20, u.storeFiles, u.storeBytes>>10, u.localFiles, u.localBytes>>10)
}

// used looks at a process that just committed something.
func (w *world) used(p *process, b backend) (u usage) {
	w.t.Helper()
	u.goroutines = p.next("committed", progressTime).Goroutines
	proc := filepath.Join("/proc", strconv.Itoa(p.cmd.Process.Pid))
	fds, err := os.ReadDir(filepath.Join(proc, "fd"))
	if err != nil {
		w.t.Fatal(err)
	}
	u.descriptors = len(fds)
	statm, err := os.ReadFile(filepath.Join(proc, "statm"))
	if err != nil {
		w.t.Fatal(err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(statm))[1], 10, 64)
	if err != nil {
		w.t.Fatal(err)
	}
	u.resident = pages * int64(os.Getpagesize())
	u.storeFiles, u.storeBytes = sizeOf(w.t, w.store)
	if b != inMemory {
		u.localFiles, u.localBytes = sizeOf(w.t, w.local(b))
	}
	return u
}

// TestS42_ManyCheckpointsAndRestartsLeaveNothingBehind has the service restart inside
// its process again and again, with state that stays of one size, and compares what it
// takes at the end with what it took early on.
func TestS42_ManyCheckpointsAndRestartsLeaveNothingBehind(t *testing.T) {
	if _, err := os.Stat("/proc/self/statm"); err != nil {
		t.Skipf("tells what a process takes by /proc: %v", err)
	}
	onEachBackend(t, "", func(t *testing.T, b backend) {
		t.Parallel()
		const (
			restarts = 100
			each     = 10 // checkpoints between them
			warm     = 5  // restarts until it is in its stride
			window   = 20 // restarts that are compared with as many others
		)
		w := newWorld(t, []string{needBroker(t)}, 500)
		w.args = append(w.at(b), "-restarts", "-1", "-restart-delay", "100ms", "-interval", "10ms", "-ballast", "600")
		w.feedOn(80, 20*time.Millisecond)
		p := w.launch()
		cl := w.producer()
		var us []usage
		for i := range restarts {
			p.await("committed", p.count("committed")+each, progressTime)
			us = append(us, w.used(p, b))
			restored := p.count("restored")
			w.fence(cl)
			p.await("restored", restored+1, progressTime)
			if i == 0 || i == restarts-1 {
				t.Logf("before restart %d: %v", i+1, us[i])
			}
		}
		t.Cleanup(func() {
			if t.Failed() {
				t.Logf("before each restart: %v", us)
			}
		})
		committed := p.count("committed")
		w.quench()
		w.finish(p)
		if committed < restarts*each {
			t.Fatalf("%d checkpoints, want %d", committed, restarts*each)
		}
		// How much there is just now depends on how far merging and collecting are, and on
		// what else the machine does. What leaks is there in the best moment, too.
		early, late := us[warm:warm+window], us[restarts-window:]
		flat := func(what string, of func(usage) int64, factor float64, slack int64) {
			t.Helper()
			least := func(us []usage) int64 {
				var all []int64
				for _, u := range us {
					all = append(all, of(u))
				}
				return slices.Min(all)
			}
			bound := int64(float64(least(early))*factor) + slack
			if got := least(late); got > bound {
				t.Errorf("%s: at least %d before restarts %d to %d, and %d before the last %d; want at most %d", what, least(early), warm+1, warm+window, got, window, bound)
			}
		}
		// What one more for each restart would make is several times the slack: 75 files, 2 MB of
		// segments, 75 goroutines.
		flat("goroutines", func(u usage) int64 { return int64(u.goroutines) }, 1, 4)
		flat("descriptors, with the segments of the local store", func(u usage) int64 { return int64(u.descriptors) }, 1, 20)
		flat("resident bytes", func(u usage) int64 { return u.resident }, 1.2, 16<<20)
		flat("files of the checkpoint store", func(u usage) int64 { return int64(u.storeFiles) }, 1, 20)
		flat("bytes of the checkpoint store", func(u usage) int64 { return u.storeBytes }, 1.2, 768<<10)
		flat("files of the local store", func(u usage) int64 { return int64(u.localFiles) }, 1, 20)
		flat("bytes of the local store", func(u usage) int64 { return u.localBytes }, 1.2, 768<<10)
	})
}
