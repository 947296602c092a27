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

	mu     sync.Mutex
	opened chan struct{} // closed and replaced whenever the gate moves
}

func newGate(epoch, limit int64) *gate {
	g := &gate{limit: limit, opened: make(chan struct{})}
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
	close(g.opened)
	g.opened = make(chan struct{})
}

// wait blocks until epoch may pass or ctx is done.
func (g *gate) wait(ctx context.Context, epoch int64) {
	for {
		g.mu.Lock()
		opened := g.opened
		g.mu.Unlock()
		if epoch <= g.open.Load() {
			return
		}
		select {
		case <-opened:
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
	// owing says that the subtask has not acknowledged the checkpoint whose barrier it
	// met last. To wait for the commit of that would be to wait for oneself.
	owing bool
}

// recordOverhead is the memory of a held record beside its key and value, bytes.
const recordOverhead = 200

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
	n := int64(len(r.Key)+len(r.Value)) + recordOverhead
	o.bytes += n
	if o.gate.held.Add(n) > o.gate.limit && !o.owing {
		o.gate.wait(o.ctx, o.epoch)
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
