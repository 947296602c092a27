package integration

import (
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os/exec"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/offline"
)

var soakFlag = flag.Duration("soak", 15*time.Second, "how long the service is starved of CPU")

// starve leaves a process half of one core: it keeps to a core that it shares with one
// who never rests.
func starve(t *testing.T, p *process) {
	t.Helper()
	if out, err := exec.Command("taskset", "-a", "-c", "-p", "0", strconv.Itoa(p.cmd.Process.Pid)).CombinedOutput(); err != nil {
		p.mu.Lock()
		over := p.over
		p.mu.Unlock()
		if !over {
			t.Fatalf("taskset: %v\n%s", err, out)
		}
	}
}

// total adds up all balances of the newest committed checkpoint, and says which one it
// was. A checkpoint may be collected while it is read, when newer ones are committed.
func (w *world) total() (sum, id int64, err error) {
	w.t.Helper()
	store, err := checkpoint.OpenDir(w.store)
	if err != nil {
		return 0, 0, err
	}
	s, err := offline.Open(w.t.Context(), store, w.pointer().Object())
	if err != nil {
		return 0, 0, err
	}
	for e, err := range offline.Values(w.t.Context(), s, "book", "balance", codec.String, codec.Int64) {
		if err != nil {
			return 0, 0, err
		}
		sum += e.Value
	}
	return sum, s.Info().Checkpoint, nil
}

// TestS40_StarvedOfCPUTheTotalOfAllAccountsNeverMoves moves money between accounts in a
// service that has half a core and is killed again and again. In each checkpoint that was
// committed, and in what came out in the end, all balances add up to nothing.
func TestS40_StarvedOfCPUTheTotalOfAllAccountsNeverMoves(t *testing.T) {
	addr := needBroker(t)
	if _, err := exec.LookPath("taskset"); err != nil {
		t.Skipf("it takes taskset to starve a process: %v", err)
	}
	spinner := exec.Command("taskset", "-c", "0", "sh", "-c", "while :; do :; done")
	if err := spinner.Start(); err != nil {
		t.Fatal(err)
	}
	rest := sync.OnceFunc(func() {
		_ = spinner.Process.Kill()
		_ = spinner.Wait()
	})
	t.Cleanup(rest)

	w := newWorld(t, []string{addr}, 50)
	w.args = []string{"-transfers", "-interval", "20ms"}
	account := func() string { return fmt.Sprintf("acc-%02d", rand.IntN(w.keys)) }
	entries := map[string]int64{}
	stop, fed := make(chan struct{}), make(chan error, 1)
	go func() {
		cl := w.producer()
		defer cl.Close()
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				fed <- nil
				return
			case <-tick.C:
			}
			var rs []*kgo.Record
			for range 20 {
				from, to := account(), account()
				rs = append(rs, &kgo.Record{Topic: w.in, Key: []byte(from), Value: fmt.Appendf(nil, "%d %s", 1+rand.IntN(1000), to)})
				entries[from]++
				entries[to]++
			}
			if err := cl.ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
				fed <- err
				return
			}
		}
	}()

	looked, last := 0, int64(0)
	look := func() {
		t.Helper()
		var (
			missing  *checkpoint.MissingError
			notFound *offline.NotFoundError
		)
		sum, id, err := w.total()
		switch {
		case errors.As(err, &missing), errors.As(err, &notFound):
			return // it was collected while it was read
		case err != nil:
			t.Fatal(err)
		case sum != 0:
			t.Fatalf("the balances of checkpoint %d add up to %d", id, sum)
		case id < last:
			t.Fatalf("checkpoint %d was committed after checkpoint %d", id, last)
		}
		if id > last {
			looked++
		}
		last = id
	}
	kills := 0
	// However slow the machine is, fewer than two kills or three looks say nothing.
	for begin := time.Now(); time.Since(begin) < *soakFlag || kills < 2 || looked < 3; kills++ {
		p := w.launch("-parallelism", fmt.Sprint(1+kills%4))
		starve(t, p)
		p.await("committed", 1, progressTime)
		for until := time.Now().Add(rand.N(2 * time.Second)); time.Now().Before(until); {
			p.next("committed", progressTime)
			look()
		}
		p.kill()
		randomKills.Add(1)
		look()
	}
	close(stop)
	if err := <-fed; err != nil {
		t.Fatal(err)
	}
	rest()
	p := w.launch()
	w.settleWith(p)
	p.stop()
	look()

	var sum, booked int64
	counts, balances := map[string]int64{}, map[string]int64{}
	for _, r := range w.committedRecords(w.out) {
		var n, balance int64
		if _, err := fmt.Sscan(string(r.Value), &n, &balance); err != nil {
			t.Fatalf("output %q of %s: %v", r.Value, r.Key, err)
		}
		if counts[string(r.Key)]++; n != counts[string(r.Key)] {
			t.Fatalf("account %s: entry %d came as number %d", r.Key, n, counts[string(r.Key)])
		}
		balances[string(r.Key)] = balance
		booked++
	}
	for key, balance := range balances {
		sum += balance
		if counts[key] != entries[key] {
			t.Errorf("account %s has %d entries, want %d", key, counts[key], entries[key])
		}
	}
	if len(balances) != len(entries) {
		t.Errorf("%d accounts have entries, want %d", len(balances), len(entries))
	}
	if sum != 0 {
		t.Errorf("what came out adds up to %d", sum)
	}
	w.quiet()
	t.Logf("killed %d times in %v, %d checkpoints looked at, %d entries", kills, *soakFlag, looked, booked)
}
