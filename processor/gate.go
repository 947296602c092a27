package processor

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/internal/guard"
)

// gate says which epoch's outputs may go into the open transaction. The epoch of
// a record is the id of the barrier that ends it, so while checkpoint N is being
// committed the gate stands at N and what belongs to N+1 waits. It also bounds
// the bytes that wait, over all subtasks.
type gate struct {
	open  atomic.Int64
	held  atomic.Int64 // bytes
	limit int64        // bytes

	mu    sync.Mutex
	moved chan struct{} // closed and replaced whenever the gate moves, or who waits should look again
}

func newGate(epoch, limit int64) *gate {
	g := &gate{limit: limit, moved: make(chan struct{})}
	g.open.Store(epoch)
	return g
}

// raise lets epochs up to and including epoch through.
func (g *gate) raise(epoch int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if epoch <= g.open.Load() {
		return
	}
	g.open.Store(epoch)
	g.stirLocked()
}

// stir makes whoever waits look again at what it waits for.
func (g *gate) stir() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.stirLocked()
}

func (g *gate) stirLocked() {
	close(g.moved)
	g.moved = make(chan struct{})
}

// moves returns a channel that is closed when the gate moves, or is stirred.
func (g *gate) moves() <-chan struct{} {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.moved
}

// wait blocks until epoch may pass, ctx is done, or the commit that epoch waits for needs
// the caller.
func (g *gate) wait(ctx context.Context, epoch int64, needed func() bool) {
	for {
		moved := g.moves()
		if epoch <= g.open.Load() || needed() {
			return
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return
		}
	}
}

// producer is the transaction that outputs go into.
type producer interface {
	// Produce adds r to the open transaction. Any goroutine may call it.
	Produce(r *kgo.Record)
}

// output is one subtask's way into the transaction. All sinks of the subtask
// share it, so their records keep their order. It is used by the subtask's
// goroutine only.
type output struct {
	ctx   context.Context
	gate  *gate
	to    producer
	epoch int64
	held  []*kgo.Record
	bytes int64
	// needed tells whether a checkpoint needs the subtask: to wait for its commit would be
	// to wait for oneself.
	needed func(checkpoint int64) bool
}

// recordOverhead is the memory of a held record beside its key, value and headers, bytes;
// headerOverhead that of a header beside its text.
const (
	recordOverhead = 200
	headerOverhead = 40
)

// heldBytes is the memory of a held record.
func heldBytes(r *kgo.Record) int64 {
	n := len(r.Key) + len(r.Value) + recordOverhead
	for _, h := range r.Headers {
		n += len(h.Key) + len(h.Value) + headerOverhead
	}
	return int64(n)
}

// Produce implements sink.Output.
func (o *output) Produce(r *kgo.Record) {
	if o.epoch <= o.gate.open.Load() || guard.Broken(guard.HeldOutputs) {
		if len(o.held) > 0 {
			o.release()
		}
		o.to.Produce(r)
		return
	}
	o.held = append(o.held, r)
	n := heldBytes(r)
	o.bytes += n
	if o.gate.held.Add(n) > o.gate.limit {
		o.gate.wait(o.ctx, o.epoch, func() bool { return o.needed(o.epoch - 1) })
		o.release()
	}
}

// release produces what was held, if its epoch may pass.
func (o *output) release() {
	if len(o.held) == 0 || o.epoch > o.gate.open.Load() {
		return
	}
	for i, r := range o.held {
		o.to.Produce(r)
		o.held[i] = nil
	}
	o.held = o.held[:0]
	o.gate.held.Add(-o.bytes)
	o.bytes = 0
}

// barrier ends the epoch of barrier id: what follows belongs to id+1.
//
// Nothing can be held at this point: one checkpoint is in flight at a time, so
// barrier id comes only after the gate was raised to id.
func (o *output) barrier(id int64) {
	o.release()
	o.epoch = id + 1
}
