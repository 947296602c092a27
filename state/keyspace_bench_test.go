package state

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/state/segment"
)

const (
	benchKeys      = 100_000
	benchKeyGroups = 128
	benchDirty     = 50_000 // keys that change between two barriers
)

// counter is the state of a count: one number for each key.
type counter struct {
	keys   *Keyspace[string]
	n      *OfValue[int64]
	names  []string
	groups []uint16
	order  []int // random, so that neither cache nor prefetcher helps more than in life
}

func newCounter(keys int) *counter {
	c := &counter{keys: NewKeyspace(codec.String, Config{})}
	scope := NewScope("count")
	c.n = Value(benchSetup{scope}, "n", codec.Int64)
	c.keys.Attach(scope, []uint16{1})
	for i := range keys {
		name := fmt.Sprintf("key-%012d", i)
		c.names = append(c.names, name)
		c.groups = append(c.groups, uint16(keygroup.Of([]byte(name), benchKeyGroups)))
	}
	c.order = rand.New(rand.NewPCG(1, 2)).Perm(keys)
	for _, k := range c.order { // in another order than the updates that follow
		c.keys.Use(c.names[k], c.groups[k])
		c.n.Set(0)
	}
	rand.New(rand.NewPCG(3, 4)).Shuffle(keys, func(i, j int) { c.order[i], c.order[j] = c.order[j], c.order[i] })
	return c
}

type benchSetup struct{ scope *Scope }

func (s benchSetup) StateScope() *Scope { return s.scope }

// add counts one value of some key.
func (c *counter) add(i int) {
	k := c.order[i%len(c.order)]
	c.keys.Use(c.names[k], c.groups[k])
	v, _ := c.n.Lookup()
	c.n.Set(v + 1)
}

func BenchmarkKeyedUpdate(b *testing.B) {
	c := newCounter(benchKeys)
	b.ReportAllocs()
	b.ResetTimer()
	for i := range b.N {
		c.add(i)
	}
}

// BenchmarkKeyedUpdateAhead finds the keys of some records before it updates them,
// as a keyed subtask does.
func BenchmarkKeyedUpdateAhead(b *testing.B) {
	const ahead = LookAhead
	c := newCounter(benchKeys)
	var sought [ahead]Sought[string]
	b.ReportAllocs()
	b.ResetTimer()
	for at := 0; at < b.N; at += ahead {
		for i := range sought {
			sought[i].Key = c.names[c.order[(at+i)%benchKeys]]
		}
		c.keys.Find(sought[:])
		for i, s := range sought {
			k := c.order[(at+i)%benchKeys]
			c.keys.UseAt(s.Key, c.groups[k], s.Slot)
			v, _ := c.n.Lookup()
			c.n.Set(v + 1)
		}
	}
}

// BenchmarkFreeze encodes and sorts the changes of one epoch, as a subtask does at
// a barrier, and counts an entry.
func BenchmarkFreeze(b *testing.B) {
	c := newCounter(benchKeys)
	var builder segment.Builder
	freeze := func() {
		if err := c.keys.Freeze(&builder, 1); err != nil {
			b.Fatal(err)
		}
		builder.Finish().Release()
	}
	freeze()
	b.ReportAllocs()
	b.ResetTimer()
	at := 0
	for n := 0; n < b.N; n += benchDirty {
		b.StopTimer()
		for range benchDirty {
			c.add(at)
			at++
		}
		b.StartTimer()
		freeze()
	}
}

func TestKeyedUpdateAllocatesNothing(t *testing.T) {
	const keys = 4096
	c := newCounter(keys)
	var builder segment.Builder
	var failed error
	epoch := func() {
		for i := range keys {
			c.add(i)
		}
		if err := c.keys.Freeze(&builder, 1); err != nil {
			failed = err
		}
		if builder.Len() != keys {
			failed = fmt.Errorf("%d entries were frozen, want %d", builder.Len(), keys)
		}
		builder.Finish().Release()
	}
	epoch()
	epoch() // the builder has its memory, and that of a run, from here on
	if n := testing.AllocsPerRun(20, epoch); n > 2 {
		t.Errorf("an epoch of %d updates makes %v allocations, want at most 2 for the run that it hands out", keys, n)
	}
	if failed != nil {
		t.Fatal(failed)
	}
}
