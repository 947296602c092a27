package redis

import (
	"fmt"
	"testing"
	"time"

	"github.com/weirstream/weir/internal/redistest"
)

// networks are faults of toxiproxy. Those that end connections hit half of them, so that
// there is progress.
var networks = map[string][]string{
	"answers that end in the middle": {`{"type": "limit_data", "toxicity": 0.5, "attributes": {"bytes": 397}}`},
	"requests that end in the middle": {
		`{"type": "limit_data", "stream": "upstream", "toxicity": 0.5, "attributes": {"bytes": 4001}}`},
	"connections that are reset":         {`{"type": "reset_peer", "toxicity": 0.5, "attributes": {"timeout": 3}}`},
	"answers that never come":            {`{"type": "timeout", "toxicity": 0.4, "attributes": {"timeout": 0}}`},
	"connections that break while quiet": {`{"type": "timeout", "toxicity": 0.5, "attributes": {"timeout": 20}}`},
	late: {
		`{"type": "latency", "attributes": {"latency": 4, "jitter": 4}}`,
		`{"type": "slicer", "attributes": {"average_size": 5, "size_variation": 3, "delay": 10}}`,
		`{"type": "slicer", "stream": "upstream", "attributes": {"average_size": 200, "size_variation": 150, "delay": 10}}`},
}

const late = "late and in pieces"

// networkTimeout is how long a client waits on a network for an answer: not long where
// answers are lost, but for all the pieces of one where they are late.
func networkTimeout(name string) time.Duration {
	if name == late {
		return 10 * time.Second
	}
	return 50 * time.Millisecond
}

func TestS35_NetworksThatBreakRepeatNothing(t *testing.T) {
	direct := redistest.Shared(t).Addr
	for name, toxics := range networks {
		t.Run(name, func(t *testing.T) {
			o := options(redistest.StartToxiproxy(t, direct, toxics...))
			o.Timeout = networkTimeout(name)
			w := newWorld(t, o, BatchSize(10, 1<<20))
			for range 8 { // each with connections of its own
				l, err := w.begin()
				if err != nil {
					t.Fatal(err)
				}
				for range 3 {
					l.checkpoint(w.pushes(50)...)
				}
				if w.rng.IntN(2) == 0 {
					l.drain()
				}
				l.kill()
			}
			l := w.mustBegin()
			l.drain()
			w.verify(direct)
		})
	}
}

func TestNetworksThatBreakLoseNoUpsert(t *testing.T) {
	direct := redistest.Shared(t).Addr
	for name, toxics := range networks {
		t.Run(name, func(t *testing.T) {
			o := options(redistest.StartToxiproxy(t, direct, toxics...))
			o.Timeout = networkTimeout(name)
			last := map[string]string{}
			for life := range 6 {
				w := openUpsert(t, t.Context(), Upsert(o, setPair, BatchSize(20, 1<<20)))
				var vs []pair
				for i := range 100 {
					p := pair{fmt.Sprint("k", i%13), fmt.Sprint(life, "-", i)}
					vs, last[p.key] = append(vs, p), p.value
				}
				mustWrite(t, w, vs...)
			}
			looked := o
			looked.Addrs = []string{direct}
			wantStrings(t, looked, last)
		})
	}
}
