package processor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/barrier"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/segment"
)

// item is one record on a hash edge.
type item[K comparable, T any] struct {
	raw *kgo.Record
	key K
	val T
	at  int64 // event time in milliseconds since 1970, or noWatermark
	kg  uint16
}

// batch is what one subtask hands to another: records and, after them, where event time
// stands and perhaps a barrier. It belongs to one edge and goes back to home when it was processed.
type batch[K comparable, T any] struct {
	input   int
	items   []item[K, T]
	casts   []cast // broadcast records; an edge has either these or items
	time    mark
	barrier int64
	home    chan *batch[K, T]
}

// cast is one record of a broadcast stream, on its way to every subtask of a stage.
type cast struct {
	raw *kgo.Record
	at  int64 // event time, as in item
	to  int   // which of the stage's handlers
	val any
}

// empty tells whether there is no record in the batch.
func (b *batch[K, T]) empty() bool { return len(b.items)+len(b.casts) == 0 }

const (
	batchSize     = 512 // records in a full batch
	batchesInEdge = 4   // batches of one edge: the bound of its queue
)

// KeyedStage is the stage behind a KeyBy: subtasks that own contiguous ranges of
// key-groups and run the operators on the keyed stream.
type KeyedStage[K comparable, T any] struct {
	id        string
	key       func(T) K
	codec     codec.Codec[K]
	operators []KeyedOperator[K, T]
	casts     int // handlers of broadcast records
}

// KeyedOperator builds an operator's chain on one subtask of a keyed stage. The
// keyspace's current key is that of the value whenever the returned function is
// called.
type KeyedOperator[K comparable, T any] struct {
	ID    string
	Build func(s *Subtask, ks *state.Keyspace[K]) (scope *state.Scope, next func(T))
}

// NewKeyedStage returns the stage of a KeyBy with this operator ID.
func NewKeyedStage[K comparable, T any](id string, key func(T) K, c codec.Codec[K]) *KeyedStage[K, T] {
	return &KeyedStage[K, T]{id: id, key: key, codec: c}
}

// Add appends an operator to the stage.
func (st *KeyedStage[K, T]) Add(op KeyedOperator[K, T]) { st.operators = append(st.operators, op) }

// StageID implements [Stage].
func (st *KeyedStage[K, T]) StageID() string { return st.id }

// Idle tells whether nothing consumes the keyed stream.
func (st *KeyedStage[K, T]) Idle() bool { return len(st.operators) == 0 }

// Send returns the function that routes a value of subtask s to the stage. It
// makes one edge from s to each of the stage's subtasks.
func (st *KeyedStage[K, T]) Send(s *Subtask) func(T) { return st.sender(s).send }

// Hear gives the stage one more handler of broadcast records and returns its number. On
// each subtask it is set by [Operator.Hears].
func (st *KeyedStage[K, T]) Hear() int {
	st.casts++
	return st.casts - 1
}

// Cast returns the function that sends a value of subtask s to the handler with that
// number on every subtask of the stage. All of them get the values of s in one order.
func (st *KeyedStage[K, T]) Cast(s *Subtask, to int) func(any) {
	snd := st.sender(s)
	return func(v any) { snd.cast(to, v) }
}

// sender makes one edge from s to each of the stage's subtasks.
func (st *KeyedStage[K, T]) sender(s *Subtask) *sender[K, T] {
	sh := st.shuffle(s.inc)
	snd := &sender[K, T]{
		sub: s, op: s.Operator(st.id), stage: st,
		keyGroups: s.inc.cfg.KeyGroups, parallelism: len(sh.boxes),
		boxes: sh.boxes, open: make([]*batch[K, T], len(sh.boxes)), free: make([]chan *batch[K, T], len(sh.boxes)),
		now: mark{watermark: noWatermark}, told: make([]mark, len(sh.boxes)),
	}
	for i := range snd.told {
		snd.told[i] = snd.now
	}
	input := sh.inputs
	sh.inputs++
	for i := range snd.free {
		snd.free[i] = make(chan *batch[K, T], batchesInEdge)
		for range batchesInEdge {
			snd.free[i] <- &batch[K, T]{input: input, home: snd.free[i], items: make([]item[K, T], 0, batchSize)}
		}
	}
	s.outgoing = append(s.outgoing, snd)
	return snd
}

// shuffle is the stage's part of one incarnation: a mailbox for each subtask.
type shuffle[K comparable, T any] struct {
	boxes  []*mailbox[K, T]
	inputs int
}

// mailbox is the queue before one subtask, shared by its inputs. It has room for
// every batch of every edge, so a send never blocks: what blocks a fast sender is
// that it runs out of its own empty batches, which holds no other input back.
type mailbox[K comparable, T any] struct {
	ch chan *batch[K, T]
}

// maxInputs bounds the edges into one subtask, for the mailbox's capacity.
const maxInputs = 1024

func (st *KeyedStage[K, T]) shuffle(inc *incarnation) *shuffle[K, T] {
	if sh, ok := inc.shuffles[st.id]; ok {
		return sh.(*shuffle[K, T])
	}
	sh := &shuffle[K, T]{}
	for range inc.cfg.Parallelism {
		sh.boxes = append(sh.boxes, &mailbox[K, T]{make(chan *batch[K, T], maxInputs*batchesInEdge)})
	}
	inc.shuffles[st.id] = sh
	return sh
}

// Build implements [Stage].
func (st *KeyedStage[K, T]) Build(inc *incarnation) ([]runner, error) {
	sh := st.shuffle(inc)
	if sh.inputs > maxInputs {
		return nil, fmt.Errorf("%q has %d input subtasks, more than %d: lower weir.Parallelism", st.id, sh.inputs, maxInputs)
	}
	var rs []runner
	for i, box := range sh.boxes {
		s := inc.newSubtask(st.id, i)
		lo, hi := keygroup.Range(i, len(sh.boxes), inc.cfg.KeyGroups)
		cfg := inc.keyspaceConfig(len(sh.boxes) * inc.keyedStages())
		cfg.FirstKeyGroup, cfg.KeyGroups = lo, hi-lo
		r := &keyedRunner[K, T]{sub: s, box: box, aligner: barrier.NewAligner(sh.inputs), keys: state.NewKeyspace(st.codec, cfg), hashable: hashable(reflect.TypeFor[K]())}
		r.restoreTime(sh.inputs)
		s.hearing = make([]func(any), st.casts)
		for _, op := range st.operators {
			scope, next := op.Build(s, r.keys)
			if scope != nil {
				ids, err := inc.stateIDs(scope)
				if err != nil {
					return nil, err
				}
				r.keys.Attach(scope, ids)
			}
			r.chain = append(r.chain, next)
		}
		inc.spaces = append(inc.spaces, ownedSpace{stage: st.id, lo: lo, hi: hi, space: r.keys})
		rs = append(rs, r)
	}
	return rs, nil
}

// sender is the sending side of the edges from one subtask to a keyed stage.
type sender[K comparable, T any] struct {
	sub         *Subtask
	op          *Operator
	stage       *KeyedStage[K, T]
	keyGroups   int
	parallelism int
	boxes       []*mailbox[K, T]
	open        []*batch[K, T]
	free        []chan *batch[K, T]
	scratch     []byte

	now  mark   // goes with the next batch
	told []mark // what went to each receiver last
}

func (e *sender[K, T]) send(v T) {
	outer := e.op.Enter()
	k := e.stage.key(v)
	e.op.Leave(outer)
	b, err := e.stage.codec.Append(e.scratch[:0], k)
	if err != nil {
		e.op.Fail(fmt.Errorf("encoding the key: %w", err))
		return
	}
	e.scratch = b
	kg := keygroup.Of(b, e.keyGroups)
	to := keygroup.Subtask(kg, e.parallelism, e.keyGroups)
	bt := e.open[to]
	if bt == nil {
		if bt = e.acquire(to); bt == nil {
			return
		}
	}
	bt.items = append(bt.items, item[K, T]{raw: e.sub.raw, key: k, val: v, at: e.sub.at, kg: uint16(kg)})
	if len(bt.items) == batchSize {
		e.hand(to)
	}
}

// cast sends a value to all receivers.
func (e *sender[K, T]) cast(to int, v any) {
	for i := range e.boxes {
		bt := e.open[i]
		if bt == nil {
			if bt = e.acquire(i); bt == nil {
				return
			}
		}
		bt.casts = append(bt.casts, cast{raw: e.sub.raw, at: e.sub.at, to: to, val: v})
		if len(bt.casts) == batchSize {
			e.hand(i)
		}
	}
}

// acquire waits for an empty batch to the receiver. It returns nil when the
// incarnation ends.
func (e *sender[K, T]) acquire(to int) *batch[K, T] {
	select {
	case e.open[to] = <-e.free[to]:
		return e.open[to]
	default:
	}
	// What the receivers wait for must not wait behind this one.
	for i, bt := range e.open {
		if bt != nil && !bt.empty() {
			e.hand(i)
		}
	}
	select {
	case e.open[to] = <-e.free[to]:
		return e.open[to]
	case <-e.sub.inc.ctx.Done():
		e.sub.err = context.Cause(e.sub.inc.ctx)
		return nil
	}
}

func (e *sender[K, T]) hand(to int) {
	bt := e.open[to]
	e.open[to] = nil
	bt.time, e.told[to] = e.now, e.now
	e.boxes[to].ch <- bt
}

// time sets where time stands behind what was sent so far. It goes with whatever is
// handed over next, and at the latest when there is nothing to wait for.
func (e *sender[K, T]) time(m mark) { e.now = m }

func (e *sender[K, T]) flush() {
	for i, bt := range e.open {
		if bt != nil && !bt.empty() {
			e.hand(i)
		}
	}
	for i := range e.told {
		if e.told[i] == e.now {
			continue
		}
		if e.open[i] == nil && e.acquire(i) == nil {
			return
		}
		e.hand(i)
	}
}

func (e *sender[K, T]) barrier(id int64) {
	for i := range e.open {
		bt := e.open[i]
		if bt == nil {
			if bt = e.acquire(i); bt == nil {
				return
			}
		}
		bt.barrier = id
		e.hand(i)
	}
}

// keyedRunner runs one subtask of a keyed stage.
type keyedRunner[K comparable, T any] struct {
	sub     *Subtask
	box     *mailbox[K, T]
	aligner *barrier.Aligner
	keys    *state.Keyspace[K]
	chain   []func(T)

	hashable bool // keys can be looked up outside a handler
	ahead    [state.LookAhead]state.Sought[K]

	stash []*batch[K, T] // batches of blocked inputs, in order of arrival

	inputs []mark // by input
	now    mark   // of the subtask
	finite int64  // its watermark before the end of time
	alarm  alarm

	freeze freeze
}

// freeze is the state of one checkpoint that a subtask encodes, a slice between
// batches.
type freeze struct {
	id        int64         // 0: nothing is being encoded
	held      time.Duration // the longest slice
	watermark int64         // at the barrier
}

const (
	// encodeSlice is how long a subtask encodes between two batches. It is enough for thousands
	// of cells, and a batch changes some hundreds, so encoding never falls behind.
	encodeSlice = time.Millisecond
	// encodeStep is how many cells are encoded between two looks at the clock.
	encodeStep = 256
)

func (r *keyedRunner[K, T]) subtask() *Subtask { return r.sub }

func (r *keyedRunner[K, T]) run(ctx context.Context) error {
	r.sub.time(r.now)
	defer r.alarm.set(r.sub.inc.clock, time.Time{}, nil)
	for {
		var bt *batch[K, T]
		select {
		case bt = <-r.box.ch:
		default:
			r.sub.idle()
			if r.freeze.id != 0 {
				if err := r.encode(encodeSlice); err != nil {
					return err
				}
				continue
			}
			if fired, err := r.tick(r.wall()); err != nil {
				return err
			} else if fired {
				continue
			}
			r.arm()
			select {
			case bt = <-r.box.ch:
			case <-r.sub.wake:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		wall := r.wall()
		if err := r.take(bt); err != nil {
			return err
		}
		if _, err := r.tick(wall); err != nil {
			return err
		}
		if r.freeze.id != 0 {
			if err := r.encode(encodeSlice); err != nil {
				return err
			}
		}
		if err := r.fitMemory(ctx); err != nil {
			return err
		}
	}
}

// fitMemory drops state that the local store has. Where what can't be dropped fills
// the memory it asks for a checkpoint, and at twice that it waits for the one that is
// on its way.
func (r *keyedRunner[K, T]) fitMemory(ctx context.Context) error {
	for r.keys.Evict() > 1 {
		inc := r.sub.inc
		if inc.memoryAsked.CompareAndSwap(false, true) {
			inc.send(memoryFull{})
		}
		// Without a checkpoint that this subtask has no more part in, nothing would end
		// the wait: its barrier may stand behind the batches that wait here.
		if r.freeze.id != 0 || r.keys.Pinned() == 0 || r.keys.Evict() < 2 {
			return nil
		}
		select {
		case <-r.sub.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// restoreTime begins where event time stood.
func (r *keyedRunner[K, T]) restoreTime(inputs int) {
	r.sub.key = func() any { return r.keys.Key() }
	at, ok := r.sub.inc.base.EventTime.Stages[r.sub.stage]
	if !ok {
		at = noWatermark
	}
	r.now, r.finite, r.sub.watermark = mark{watermark: at}, at, at
	r.inputs = make([]mark, inputs)
	for i := range r.inputs {
		r.inputs[i].watermark = noWatermark
	}
	r.keys.SetTime(segment.EventTime, at)
}

// wall looks at the clock.
func (r *keyedRunner[K, T]) wall() int64 {
	ms := r.sub.inc.clock.Now().UnixMilli()
	r.keys.SetTime(segment.ProcessingTime, ms)
	return ms
}

// cut begins to freeze the state for checkpoint id.
func (r *keyedRunner[K, T]) cut(id int64) error {
	begun := time.Now()
	// A checkpoint that was given up may still be here. What it encoded has to be with
	// the next one.
	if r.freeze.id != 0 {
		if err := r.encode(math.MaxInt64); err != nil {
			return err
		}
	}
	r.sub.barrier(id)
	r.keys.Cut(&r.sub.frozen, id)
	r.freeze = freeze{id: id, held: time.Since(begun), watermark: r.finite}
	return nil
}

// encode goes on to encode frozen state for about as long as said, and acknowledges
// the checkpoint when all is encoded.
func (r *keyedRunner[K, T]) encode(budget time.Duration) error {
	begun := time.Now()
	for {
		done, err := r.keys.Encode(encodeStep)
		if err != nil {
			return fatal(fmt.Errorf("freezing state for checkpoint %d: %w", r.freeze.id, err))
		}
		took := time.Since(begun)
		if !done && took < budget {
			continue
		}
		r.freeze.held = max(r.freeze.held, took)
		if !done {
			return nil
		}
		break
	}
	a := ack{subtask: r.sub.id, id: r.freeze.id, held: r.freeze.held, stage: r.sub.stage, watermark: r.freeze.watermark, logs: r.sub.takeLogged()}
	if crashpoint.Hit(crashpoint.InFreeze); r.sub.frozen.Len() > 0 {
		a.run, a.hasRun = r.sub.frozen.Finish(), true
	}
	r.freeze.id = 0
	r.sub.inc.send(a)
	return nil
}

// storeError returns what a handle could not tell its handler.
func (r *keyedRunner[K, T]) storeError() error {
	err := r.keys.Err()
	var read *state.ReadError
	if err == nil || errors.As(err, &read) {
		return err // what can't be read now may be read after a restart
	}
	return fatal(err)
}

// find looks up the keys of the next items, and returns how many. A key that can
// panic when it is hashed is left to its handler, so that the panic names its record.
func (r *keyedRunner[K, T]) find(items []item[K, T]) int {
	n := min(len(items), len(r.ahead))
	for i := range n {
		r.ahead[i].Key, r.ahead[i].Slot = items[i].key, state.NoSlot
	}
	if r.hashable {
		r.keys.Find(r.ahead[:n])
	}
	return n
}

// hashable tells whether every value of the type can be a map key: whether it
// holds no interface.
func hashable(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Interface:
		return false
	case reflect.Array:
		return hashable(t.Elem())
	case reflect.Struct:
		for f := range t.Fields() {
			if !hashable(f.Type) {
				return false
			}
		}
	}
	return true
}

// hear hands broadcast records to their handlers.
func (r *keyedRunner[K, T]) hear(casts []cast) {
	r.keys.Broadcasting(true)
	defer r.keys.Broadcasting(false)
	for done := 0; done < len(casts) && r.sub.err == nil; {
		r.sub.guarded(func() {
			for done < len(casts) && r.sub.err == nil {
				c := &casts[done]
				done++
				r.sub.raw, r.sub.at = c.raw, c.at
				r.sub.hearing[c.to](c.val)
				if r.keys.Err() != nil {
					r.sub.err = r.storeError()
				}
			}
		})
	}
}

// take processes a batch, or puts it aside while its input is blocked.
func (r *keyedRunner[K, T]) take(bt *batch[K, T]) error {
	if r.aligner.Blocked(bt.input) {
		r.stash = append(r.stash, bt)
		return nil
	}
	// The items from begin on have their keys looked up, up to found.
	for begin, done, found := 0, 0, 0; done < len(bt.items) && r.sub.err == nil; {
		r.sub.guarded(func() {
			for done < len(bt.items) && r.sub.err == nil {
				if done == found {
					begin, found = done, done+r.find(bt.items[done:])
				}
				it, slot := &bt.items[done], r.ahead[done-begin].Slot
				done++
				r.sub.raw, r.sub.at = it.raw, it.at
				r.keys.UseAt(it.key, it.kg, slot)
				for _, next := range r.chain {
					next(it.val)
				}
				if r.keys.Err() != nil {
					r.sub.err = r.storeError()
				}
			}
		})
	}
	if len(bt.casts) > 0 {
		r.hear(bt.casts)
	}
	if r.sub.err != nil {
		return r.sub.err
	}
	id, input, at := bt.barrier, bt.input, bt.time
	clear(bt.items) // a batch at rest must not keep fetched records alive
	clear(bt.casts)
	clear(r.ahead[:])
	bt.items, bt.casts, bt.barrier = bt.items[:0], bt.casts[:0], 0
	bt.home <- bt
	if err := r.advance(input, at); err != nil || id == 0 {
		return err
	}
	eff, err := r.aligner.Barrier(input, id)
	if err != nil {
		return fmt.Errorf("%s/%d: %w", r.sub.stage, r.sub.index, err)
	}
	if eff.Snapshot != 0 {
		if err := r.cut(eff.Snapshot); err != nil {
			return err
		}
		if r.sub.err != nil {
			return r.sub.err
		}
	}
	if !eff.Unblock {
		return nil
	}
	stash := r.stash
	r.stash = nil
	for _, bt := range stash {
		if err := r.take(bt); err != nil {
			return err
		}
	}
	return nil
}
