package weir_test

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
	"github.com/weirstream/weir/weirtest"
)

// rawText is a codec whose values take what they are long, for state that fills memory.
var rawText = codec.Func("raw-text", 1,
	func(dst []byte, v string) ([]byte, error) { return append(dst, v...), nil },
	func(b []byte) (string, error) { return string(b), nil })

// slowCount takes so long to encode that a subtask is at it for many batches of records.
var slowCount = codec.Func("slow-count", 1,
	func(dst []byte, v int64) ([]byte, error) {
		for begun := time.Now(); time.Since(begun) < 10*time.Microsecond; {
		}
		return codec.Int64.Append(dst, v)
	},
	codec.Int64.Decode)

// countedByDigits counts by value, and sends the counts on by their first digits.
func countedByDigits(app *weir.App) weir.Keyed[string, weir.KV[string, int64]] {
	in := weir.From(app, "in", source.Values("in", codec.String))
	count := weir.Count[string]()
	count.Codec = slowCount
	counts := weir.Aggregate(weir.KeyBy(in, "by-value", func(s string) string { return s }, codec.String), "count", count)
	return weir.KeyBy(counts, "by-digits", func(kv weir.KV[string, int64]) string { return kv.Key[:min(3, len(kv.Key))] }, codec.String)
}

// runUnderPressure counts many keys, several times each, and fails the test if a checkpoint
// doesn't come to an end.
func runUnderPressure(t *testing.T, keys int, top func(*weir.App), opts ...weir.Option) {
	t.Helper()
	const rounds = 6
	b := weirtest.StartBroker(t, 1, "in", "out")
	var vs []string
	for i := range rounds * keys {
		vs = append(vs, strconv.Itoa(i%keys))
	}
	weirtest.ProduceValues(b, "in", codec.String, vs...)
	err := b.Start(top, append([]weir.Option{
		weir.Parallelism(1), weir.CheckpointEvery(50 * time.Millisecond), weir.CheckpointTimeout(30 * time.Second), weir.Drain(),
		weir.Listen(weir.Listener{CheckpointFailed: func(i event.CheckpointFailed) {
			if !errors.Is(i.Err, errOnce) {
				t.Errorf("checkpoint %d failed: %v", i.Checkpoint, i.Err)
			}
		}}),
	}, opts...)...).Wait()
	if err != nil {
		t.Error(err)
	}
}

var errOnce = errors.New("once")

// The second subtask acknowledges at once, and holds all the outputs that may wait while
// the first one, which sends to it, still encodes.
func TestBoundOfHeldOutputsLetsACheckpointComplete(t *testing.T) {
	runUnderPressure(t, 20_000, func(app *weir.App) {
		out := weir.Process(countedByDigits(app), "pass", func(*weir.Setup) weir.Handler[string, weir.KV[string, int64], string] {
			return weir.OnRecord(func(c *weir.Context[string, string], kv weir.KV[string, int64]) error {
				c.Emit(kv.Key)
				return nil
			})
		})
		weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	}, weir.HeldBytes(64<<10))
}

// setLarge keeps a large value for each key.
func setLarge[T any](s weir.Keyed[string, T]) {
	large := strings.Repeat("x", 40_000)
	out := weir.Process(s, "large", func(s *weir.Setup) weir.Handler[string, T, string] {
		v := state.Value(s, "v", rawText)
		return weir.OnRecord(func(*weir.Context[string, string], T) error {
			v.Set(large)
			return nil
		})
	})
	weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
}

// Likewise, with memory for state that can't be dropped before the commit.
func TestFullMemoryLetsACheckpointComplete(t *testing.T) {
	backend := pebble.Dir(t.TempDir())
	backend.MemoryBytes = 24 << 20
	runUnderPressure(t, 20_000, func(app *weir.App) { setLarge(countedByDigits(app)) }, weir.StateBackend(backend))
}

// What was to be dropped after a checkpoint that failed waits for the next one, whose
// barrier stands behind the records.
func TestFullMemoryLetsTheCheckpointAfterAFailedOneBegin(t *testing.T) {
	store := faultstore.Wrap(checkpoint.NewMem())
	var manifests atomic.Int64
	var failed atomic.Bool
	store.Before(func(_ context.Context, op faultstore.Op, name string) error {
		if op == faultstore.Put && strings.HasPrefix(name, "ckpt/") && manifests.Add(1) == 2 {
			failed.Store(true)
			return errOnce
		}
		return nil
	})
	backend := pebble.Dir(t.TempDir())
	backend.MemoryBytes = 4 << 20
	runUnderPressure(t, 1000, func(app *weir.App) {
		var n int
		in := weir.Filter(weir.From(app, "in", source.Values("in", codec.String)), "wait", func(string) bool {
			if n++; n > 3000 && !failed.Load() {
				time.Sleep(time.Millisecond) // the rest is for after that
			}
			return true
		})
		setLarge(weir.KeyBy(in, "by-value", func(s string) string { return s }, codec.String))
	}, weir.StateBackend(backend), weir.Store(store), weir.RetryPause(10*time.Millisecond))
	if manifests.Load() < 3 {
		t.Errorf("only %d manifests were written: the test shows nothing", manifests.Load())
	}
}
