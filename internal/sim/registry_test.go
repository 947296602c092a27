package sim

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/sink"
)

// registry is the service that tells the branch of a transfer. The app looks it up before
// it does anything else with one. What it knows never changes.
type registry struct {
	mu    sync.Mutex
	rng   *rand.Rand
	until time.Time // of the fault
	fault step
}

var errRegistry = errors.New("the registry has no time")

// branchKey is what a transfer is looked up by.
func branchKey(t transfer) string { return fmt.Sprint(t.from, "/", t.id%8) }

// branchOf is what the registry knows.
func branchOf(key string) (branch int64, found bool) {
	h := fnv.New32a()
	_, _ = h.Write([]byte(key))
	n := int64(h.Sum32())
	return 1 + n%1000, n%16 > 0
}

// begin makes a fault last from now on.
func (g *registry) begin(s step) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.fault, g.until = s, time.Now().Add(s.dur)
}

func (g *registry) heal() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.until = time.Time{}
}

// trouble says how much longer than usual a call takes now, and whether it fails.
func (g *registry) trouble() (more time.Duration, fails bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	left := time.Until(g.until)
	if left <= 0 {
		return 0, false
	}
	switch g.fault.mode {
	case "hang":
		return left, false
	case "fail":
		return 0, g.rng.IntN(100) < g.fault.n
	default: // each call by its own time, so that answers overtake each other
		return time.Duration(g.rng.IntN(g.fault.n+1)) * time.Millisecond, false
	}
}

// lookUp is the source of a life. Every other one asks for one key at a time.
func (l *life) lookUp() lookup.Source[string, int64] {
	ask := func(ctx context.Context) error {
		more, fails := l.in.w.registry.trouble()
		err := l.store.wait(ctx, more, false)
		if err == nil && fails {
			err = errRegistry
		}
		if err != nil && ctx.Err() == nil {
			return &sink.Retriable{Err: err}
		}
		return err
	}
	if l.n%2 == 0 {
		return lookup.Each("registry", func(ctx context.Context, key string) (int64, bool, error) {
			if err := ask(ctx); err != nil {
				return 0, false, err
			}
			branch, found := branchOf(key)
			return branch, found, nil
		})
	}
	return lookup.Batch("registry", func(ctx context.Context, keys []string, answers []lookup.Answer[int64]) error {
		if err := ask(ctx); err != nil {
			return err
		}
		for i, key := range keys {
			answers[i].Value, answers[i].Found = branchOf(key)
		}
		return nil
	})
}
