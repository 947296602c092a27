package processor

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/state"
)

const (
	edgeKeys  = 1024
	edgeBatch = batchSize
)

// edge is one sender and the subtasks of a keyed stage that counts, all run by the
// test's goroutine.
type edge struct {
	inc     *incarnation
	sub     *Subtask
	send    func(string)
	runners []*keyedRunner[string, string]
	keys    []string
	counted int
}

func newEdge(t testing.TB, parallelism int, withState bool) *edge {
	e := &edge{}
	e.inc = newIncarnation(t.Context(), &Config{Parallelism: parallelism, KeyGroups: 128}, &Plan{}, nil, nil)
	e.inc.gate = newGate(1, 0)
	e.inc.states = []checkpoint.StateInfo{{ID: 1, Operator: "count", Name: "n"}}
	e.sub = e.inc.newSubtask(SourcesID, 0)
	e.sub.raw = &kgo.Record{Topic: "in"}
	st := NewKeyedStage("by-word", func(s string) string { return s }, codec.String)
	st.Add(KeyedOperator[string, string]{ID: "count", Build: func(s *Subtask, ks *state.Keyspace[string]) (*state.Scope, func(string)) {
		op := s.Operator("count")
		if !withState {
			return nil, func(string) { op.Enter(); e.counted++ }
		}
		scope := state.NewScope("count")
		n := state.Value(setup{scope}, "n", codec.Int64)
		return scope, func(string) {
			outer := op.Enter()
			n.Set(n.Get() + 1)
			e.counted++
			op.Leave(outer)
		}
	}})
	e.send = st.Send(e.sub)
	rs, err := st.Build(e.inc)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		e.runners = append(e.runners, r.(*keyedRunner[string, string]))
	}
	for i := range edgeKeys {
		e.keys = append(e.keys, fmt.Sprintf("key-%012d", i))
	}
	return e
}

type setup struct{ scope *state.Scope }

func (s setup) StateScope() *state.Scope { return s.scope }

// batch sends as many values as a full batch holds and lets the receivers take
// what was handed over.
func (e *edge) batch(t testing.TB, from int) {
	for i := range edgeBatch {
		e.send(e.keys[(from+i)%edgeKeys])
	}
	e.sub.idle()
	for _, r := range e.runners {
		takeAll(t, r)
	}
}

// BenchmarkEdge hashes a key, sends the value to the subtask that owns it, and
// hands it to an operator there.
func BenchmarkEdge(b *testing.B) {
	for _, bb := range []struct {
		name        string
		parallelism int
		state       bool
	}{{"subtasks=1", 1, false}, {"subtasks=4", 4, false}, {"subtasks=4/count", 4, true}} {
		b.Run(bb.name, func(b *testing.B) {
			e := newEdge(b, bb.parallelism, bb.state)
			e.batch(b, 0)
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += edgeBatch {
				e.batch(b, n)
			}
		})
	}
}

// TestEdgesHaveMemoryForWhatGoesOverThem has many receivers: of n subtasks to n there are n
// times n edges, and few records go over each.
func TestEdgesHaveMemoryForWhatGoesOverThem(t *testing.T) {
	e := newEdge(t, 64, false)
	for i := 0; i < edgeKeys; i += edgeBatch {
		e.batch(t, i)
	}
	items := 0
	for _, free := range e.sub.outgoing[0].(*sender[string, string]).free {
		for range batchesInEdge {
			items += cap((<-free).items)
		}
	}
	if items > 4*edgeKeys {
		t.Errorf("64 edges have memory for %d records after %d", items, edgeKeys)
	}
}

func TestEdgeAndKeyedUpdateAllocateNothingPerRecord(t *testing.T) {
	const parallelism = 4
	e := newEdge(t, parallelism, true)
	for i := 0; i < edgeKeys; i += edgeBatch {
		e.batch(t, i) // every key is known from here on
	}
	before, from := e.counted, 0
	perBatch := testing.AllocsPerRun(100, func() {
		e.batch(t, from)
		from += edgeBatch
	})
	if got, want := e.counted-before, 101*edgeBatch; got != want {
		t.Fatalf("%d values arrived, want %d", got, want)
	}
	// The function under guard holds its loop's variables: a few for each receiver.
	if perBatch > 2*parallelism {
		t.Errorf("%d values make %v allocations, want at most %d", edgeBatch, perBatch, 2*parallelism)
	}
}

// takeAll makes r process what was handed over to it.
func takeAll[K comparable, T any](t testing.TB, r *keyedRunner[K, T]) {
	t.Helper()
	for {
		bt, err := r.next()
		if err != nil {
			t.Fatal(err)
		}
		if bt == nil {
			return
		}
		if err := r.take(bt); err != nil {
			t.Fatal(err)
		}
	}
}
