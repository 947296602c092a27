package processor

import (
	"context"
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/barrier"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/internal/freeze"
	"github.com/weirstream/weir/internal/guard"
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
	home    chan *batch[K, T] // nil: nobody takes it back
	// restored says that it was in flight when the job was restored. Then input is the
	// part of what was in flight that it is of.
	restored bool
}

// empty tells whether there is no record in the batch.
func (b *batch[K, T]) empty() bool { return len(b.items)+len(b.casts) == 0 }

const (
	batchSize     = 512 // records in a full batch
	batchesInEdge = 4   // batches of one edge: the bound of its queue
	// overdraft is how many batches more a record may fill where checkpoints may be
	// unaligned: only between two records can positions and state be cut, so in the midst
	// of one a subtask does not wait for room if it can help it.
	overdraft = 8
)

// KeyedStage is the stage behind a KeyBy: subtasks that own contiguous ranges of
// key-groups and run the operators on the keyed stream.
type KeyedStage[K comparable, T any] struct {
	id        string
	key       func(T) K
	codec     codec.Codec[K]
	values    codec.Codec[T] // nil: what is in flight can't be stored
	operators []KeyedOperator[K, T]
	hearings  []Hearing // handlers of broadcast records
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

// InFlight sets the codec with which unaligned checkpoints store values that are in
// flight to the stage.
func (st *KeyedStage[K, T]) InFlight(c codec.Codec[T]) { st.values = c }

// Unaligned tells what keeps checkpoints from being unaligned in front of the stage.
func (st *KeyedStage[K, T]) Unaligned() error {
	if st.values == nil {
		return fmt.Errorf("unaligned checkpoints store what is in flight to it, and its values of type %s have no codec; pass weir.ValueCodec to weir.KeyBy", reflect.TypeFor[T]())
	}
	for _, h := range st.hearings {
		if h.Values == nil {
			return fmt.Errorf("unaligned checkpoints store what is in flight to it, and the broadcast stream %q that operator %q hears has no codec; pass weir.ValueCodec to weir.Broadcast", h.Stream, h.Operator)
		}
	}
	return nil
}

func (st *KeyedStage[K, T]) flightWriter() flightWriter[K, T] {
	return flightWriter[K, T]{keys: st.codec, values: st.values}
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

// sender makes one edge from s to each of the stage's subtasks.
func (st *KeyedStage[K, T]) sender(s *Subtask) *sender[K, T] {
	sh := st.shuffle(s.inc)
	s.inc.connect(s.stage, st.id)
	snd := &sender[K, T]{
		sub: s, op: s.Operator(st.id), stage: st,
		keyGroups: s.inc.cfg.KeyGroups, parallelism: len(sh.boxes),
		boxes: sh.boxes, open: make([]*batch[K, T], len(sh.boxes)), free: make([]chan *batch[K, T], len(sh.boxes)),
		short: make([]bool, len(sh.boxes)), overdraws: s.inc.cfg.Unaligned,
		now: mark{watermark: noWatermark}, told: make([]mark, len(sh.boxes)),
	}
	for i := range snd.told {
		snd.told[i] = snd.now
	}
	input := sh.inputs
	snd.input = input
	sh.inputs++
	for i := range snd.free {
		snd.free[i] = make(chan *batch[K, T], batchesInEdge)
		for range batchesInEdge { // memory for records comes with use: there are many edges
			snd.free[i] <- &batch[K, T]{input: input, home: snd.free[i]}
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

// mailbox is the queue before one subtask, shared by its inputs. A put never blocks: what
// blocks a fast sender is that it runs out of its own empty batches, which holds no other
// input back. The subtask takes all that is there at once into a queue of its own, where
// a barrier can overtake what lies in front of it.
type mailbox[K comparable, T any] struct {
	owner *Subtask // set before anything is put

	mu    sync.Mutex
	queue []*batch[K, T]
}

func (m *mailbox[K, T]) put(bt *batch[K, T]) {
	barrier := bt.barrier != 0
	m.mu.Lock()
	m.queue = append(m.queue, bt)
	m.mu.Unlock()
	if barrier {
		m.owner.attend.Store(true)
	}
	m.owner.notify()
}

// drain appends what is in the mailbox to queue.
func (m *mailbox[K, T]) drain(queue []*batch[K, T]) []*batch[K, T] {
	m.mu.Lock()
	defer m.mu.Unlock()
	queue = append(queue, m.queue...)
	clear(m.queue)
	m.queue = m.queue[:0]
	return queue
}

func (st *KeyedStage[K, T]) shuffle(inc *incarnation) *shuffle[K, T] {
	if sh, ok := inc.shuffles[st.id]; ok {
		return sh.(*shuffle[K, T])
	}
	sh := &shuffle[K, T]{}
	for range inc.cfg.Parallelism {
		sh.boxes = append(sh.boxes, &mailbox[K, T]{})
	}
	inc.shuffles[st.id] = sh
	return sh
}

// Build implements [Stage].
func (st *KeyedStage[K, T]) Build(inc *incarnation) ([]runner, error) {
	sh := st.shuffle(inc)
	if inc.cfg.Unaligned {
		if err := st.Unaligned(); err != nil {
			return nil, fmt.Errorf("operator %q: %w", st.id, err)
		}
	}
	if err := st.checkInFlight(inc); err != nil {
		return nil, err
	}
	var rs []runner
	for i, box := range sh.boxes {
		s := inc.newSubtask(st.id, i)
		lo, hi := keygroup.Range(i, len(sh.boxes), inc.cfg.KeyGroups)
		cfg := inc.keyspaceConfig(len(sh.boxes) * inc.keyedStages())
		cfg.FirstKeyGroup, cfg.KeyGroups, cfg.Spared = lo, hi-lo, checkpoint.Spared(inc.states)
		cfg.Watch = inc.stepped
		box.owner = s
		r := &keyedRunner[K, T]{sub: s, stage: st, lo: lo, hi: hi, box: box, aligner: barrier.NewAligner(sh.inputs), keys: state.NewKeyspace(st.codec, cfg), hashable: hashable(reflect.TypeFor[K]())}
		r.restoreTime(sh.inputs)
		s.hearing = make([]func(any), len(st.hearings))
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
	input       int // its number among the inputs of each receiver
	stage       *KeyedStage[K, T]
	keyGroups   int
	parallelism int
	boxes       []*mailbox[K, T]
	open        []*batch[K, T]
	free        []chan *batch[K, T]
	scratch     []byte

	now  mark   // goes with the next batch
	told []mark // what went to each receiver last

	overdraws bool   // it may fill more batches than an edge has
	short     []bool // by receiver: it did
	extra     int    // how many, since no receiver was short
}

func (e *sender[K, T]) send(v T) {
	outer := e.op.Enter()
	k := e.stage.key(v)
	b, err := e.stage.codec.Append(e.scratch[:0], k)
	e.op.Leave(outer)
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
	if e.sub.inc.stepped {
		// Who would make room has its turn later.
		e.open[to] = &batch[K, T]{input: e.input}
		return e.open[to]
	}
	if e.overdraws && (e.extra < overdraft || e.sub.finishing > 0) {
		return e.overdraw(to)
	}
	// What the receivers wait for must not wait behind this one.
	e.handAll()
	e.sub.awaitsRoom(true)
	defer e.sub.awaitsRoom(false)
	select {
	case e.open[to] = <-e.free[to]:
		return e.open[to]
	case <-e.sub.inc.ctx.Done():
		e.sub.err = context.Cause(e.sub.inc.ctx)
		return nil
	}
}

// overdraw makes a batch beyond those that the edge has, which nobody takes back. The
// subtask has to refill before its next record.
func (e *sender[K, T]) overdraw(to int) *batch[K, T] {
	e.extra++
	e.short[to], e.sub.crowded = true, true
	e.sub.attend.Store(true)
	e.open[to] = &batch[K, T]{input: e.input}
	return e.open[to]
}

// refill implements [outgoing].
func (e *sender[K, T]) refill() bool {
	for to := range e.short {
		if !e.short[to] {
			continue
		}
		var bt *batch[K, T]
		select {
		case bt = <-e.free[to]:
		default:
			if bt = e.awaitBack(to); bt == nil {
				return false
			}
		}
		if e.open[to] != nil { // the last one beyond
			e.hand(to)
		}
		e.open[to], e.short[to] = bt, false
	}
	e.extra = 0
	return true
}

// awaitBack waits until the receiver gave back a batch. It returns nil if something woke
// the subtask first, or the incarnation ended.
func (e *sender[K, T]) awaitBack(to int) *batch[K, T] {
	e.handAll()
	e.sub.awaitsRoom(true)
	defer e.sub.awaitsRoom(false)
	select {
	case bt := <-e.free[to]:
		return bt
	case <-e.sub.wake:
	case <-e.sub.inc.ctx.Done():
		e.sub.err = context.Cause(e.sub.inc.ctx)
	}
	return nil
}

// handAll hands over every open batch that holds records.
func (e *sender[K, T]) handAll() {
	for i, bt := range e.open {
		if bt != nil && !bt.empty() {
			e.hand(i)
		}
	}
}

func (e *sender[K, T]) hand(to int) {
	bt := e.open[to]
	e.open[to] = nil
	e.put(to, bt)
}

func (e *sender[K, T]) put(to int, bt *batch[K, T]) {
	bt.time, e.told[to] = e.now, e.now
	e.boxes[to].put(bt)
}

// time sets where time stands behind what was sent so far. It goes with whatever is
// handed over next, and at the latest when there is nothing to wait for.
func (e *sender[K, T]) time(m mark) { e.now = m }

func (e *sender[K, T]) flush() {
	e.handAll()
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
		if bt == nil || bt.empty() {
			// A barrier waits for nothing, and takes no room from records: where there is
			// little, one after the other would take all that comes back.
			e.put(i, &batch[K, T]{input: e.input, barrier: id})
			continue
		}
		bt.barrier = id
		e.hand(i)
	}
}

// keyedRunner runs one subtask of a keyed stage.
type keyedRunner[K comparable, T any] struct {
	sub     *Subtask
	stage   *KeyedStage[K, T]
	lo, hi  int // its key-groups
	box     *mailbox[K, T]
	aligner *barrier.Aligner
	keys    *state.Keyspace[K]
	chain   []func(T)

	hashable bool // keys can be looked up outside a handler
	ahead    [state.LookAhead]state.Sought[K]

	queue   []*batch[K, T] // taken out of the mailbox; from head on to be processed
	head    int
	stash   []*batch[K, T] // batches of blocked inputs, in order of arrival
	current *batch[K, T]   // being processed; nil: none
	done    int            // items or casts of it that were

	replay   []*batch[K, T] // what was in flight at the restore; it goes first
	replayed int            // how many of them were begun
	restored []mark         // where event time stands, by part of it

	inputs []mark // by input, without the end of time
	ended  []bool // by input: time is at its end
	live   int    // how many have not ended
	now    mark   // of the subtask
	finite int64  // its watermark before the end of time
	fired  int64  // up to where all timers fired: less than finite while those between do
	left   bool   // timers of the checkpoint that it began with may be between, of any key-group
	// Event time that key-groups had come to before the restore, from the first one on; nil
	// once the subtask has passed the highest.
	floors  []int64
	highest int64
	alarm   alarm
	looked  int64 // what the wall clock said last
	// overdue says that the checkpoint was taken between timers of one moment: those that are
	// left come before all else, and what they emit before the time that is known to have come.
	overdue bool

	freeze    frozen
	unaligned int64 // newest checkpoint that is to be unaligned
	capture   capture[K, T]
	// captureSize is how many bytes the last capture wrote: what grows is copied as often
	// as it doubles.
	captureSize int
}

// frozen is the state of one checkpoint that a subtask encodes, a slice between
// batches.
type frozen struct {
	id        int64         // 0: every checkpoint is acknowledged
	encoded   bool          // nothing is left to encode
	sliced    time.Time     // end of the last slice
	held      time.Duration // the longest slice
	watermark int64         // at the barrier
	times     []checkpoint.KeyGroupTime
	fired     int64
	firing    bool
	unaligned bool
	inFlight  []checkpoint.InFlightData
	abandoned bool // what was in flight was not captured to the end
}

// encoding tells whether there may be something left to encode.
func (f *frozen) encoding() bool { return f.id != 0 && !f.encoded }

// due tells whether processing has gone on for as long as a slice since the last one.
func (f *frozen) due() bool { return f.encoding() && time.Since(f.sliced) >= encodeSlice }

const (
	// encodeSlice is how long a subtask encodes between two batches. It is enough for about a
	// thousand cells, and a batch changes some hundreds, so encoding never falls behind. A
	// thread that the operating system takes off its core comes back after 4 ms or so: a
	// shorter slice keeps the whole below 5.
	encodeSlice = 250 * time.Microsecond
)

func (r *keyedRunner[K, T]) subtask() *Subtask { return r.sub }

func (r *keyedRunner[K, T]) begin() {
	if r.overdue = r.dueAtOnce(); !r.overdue {
		r.allFired()
		r.sub.time(r.now)
	}
}

func (r *keyedRunner[K, T]) run(ctx context.Context) error {
	r.begin()
	defer r.silence()
	for {
		worked, err := r.step(ctx)
		if err != nil {
			return err
		}
		if worked {
			continue
		}
		select {
		case <-r.sub.wake:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// step implements [runner].
func (r *keyedRunner[K, T]) step(ctx context.Context) (worked bool, err error) {
	if r.overdue {
		return true, r.fireOverdue()
	}
	bt, err := r.next()
	if err != nil {
		return false, err
	}
	if bt == nil {
		if r.sub.idle(); r.sub.err != nil {
			return false, r.sub.err // of a look-up, where the incarnation is stepped
		}
		if r.freeze.encoding() {
			return true, r.encode(encodeSlice)
		}
		if fired, err := r.tick(r.wall()); fired || err != nil {
			return fired, err
		}
		r.arm()
		return false, nil
	}
	wall := r.wall()
	if err := r.take(bt); err != nil {
		return false, err
	}
	if _, err := r.tick(wall); err != nil {
		return false, err
	}
	if r.freeze.encoding() {
		if err := r.encode(encodeSlice); err != nil {
			return false, err
		}
	}
	return true, r.fitMemory(ctx)
}

// next returns the next batch, nil if there is none now.
func (r *keyedRunner[K, T]) next() (bt *batch[K, T], err error) {
	r.sub.progress(true)
	if err := r.settle(); err != nil {
		return nil, err
	}
	newFirst := guard.Broken(guard.ReplayFirst)
	if r.replayed < len(r.replay) && !newFirst {
		r.replayed++
		return r.replay[r.replayed-1], nil
	}
	if r.head == len(r.queue) {
		r.queue, r.head = r.queue[:0], 0
		if err := r.fill(); err != nil {
			return nil, err
		}
	}
	if r.head < len(r.queue) {
		bt = r.queue[r.head]
		r.queue[r.head] = nil
		r.head++
		return bt, nil
	}
	if r.replayed < len(r.replay) {
		r.replayed++
		return r.replay[r.replayed-1], nil
	}
	return nil, nil
}

// settle deals with what may not wait for the end of a batch: with what the loop or a
// sender says, and with receivers that have no room for what the next record emits.
func (r *keyedRunner[K, T]) settle() error {
	for r.sub.err == nil {
		if r.sub.attend.Load() {
			if err := r.attend(); err != nil {
				return err
			}
		}
		r.sub.progress(false)
		if r.freeze.encoding() && (r.sub.crowded || r.current != nil && r.freeze.due()) {
			if err := r.encode(encodeSlice); err != nil {
				return err
			}
		}
		if !r.sub.crowded {
			break
		}
		if !r.freeze.encoding() {
			r.sub.out.release()
			r.sub.refill()
		}
	}
	return r.sub.err
}

// fitMemory drops state that the local store has. Where what can't be dropped fills
// the memory it asks for a checkpoint, if there is something that this would let it drop,
// and at twice that it waits for the one that is on its way.
func (r *keyedRunner[K, T]) fitMemory(ctx context.Context) error {
	for r.keys.Evict() > 1 {
		inc := r.sub.inc
		if r.keys.Pending() && inc.memoryAsked.CompareAndSwap(false, true) {
			inc.send(memoryFull{})
		}
		moved := inc.gate.moves()
		// Without a checkpoint on its way that does not need this subtask, nothing would
		// end the wait: its barrier may stand behind the batches that wait here.
		acked := r.sub.acked.Load()
		if r.freeze.id != 0 || acked <= inc.givenUp.Load() || r.sub.needed(acked) || r.keys.Pinned() == 0 || r.keys.Evict() < 2 {
			return nil
		}
		// Where checkpoints may be unaligned its barrier need not wait for them.
		if r.sub.attend.Load() {
			return nil
		}
		select {
		case <-r.sub.wake:
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// restoreTime begins where event time stood, and now: what has expired is not restored. It
// may have stood elsewhere for each key-group that came here. Then the subtask begins at the
// least of those times, and the others are floors. If the checkpoint was taken between timers
// of one moment, those that are left see what there was before it.
func (r *keyedRunner[K, T]) restoreTime(inputs int) {
	r.sub.key = func() any { return r.keys.Key() }
	stood := r.sub.inc.base.Watermarks(r.sub.stage, r.lo, r.hi)
	at := slices.Min(stood)
	r.now, r.finite, r.sub.watermark = mark{watermark: at}, at, at
	r.inputs, r.ended, r.live = make([]mark, inputs), make([]bool, inputs), inputs
	for i := range r.inputs {
		r.inputs[i].watermark = noWatermark
	}
	if r.highest = slices.Max(stood); r.highest > at && !guard.Broken(guard.KeyGroupTimes) {
		r.floors, r.sub.floor = stood, r.keys.Floor
	}
	fired := r.sub.inc.base.Fired(r.sub.stage, stood)
	r.fired, r.left = slices.Min(fired), !slices.Equal(fired, stood)
	r.keys.SetTime(segment.EventTime, r.fired)
	r.keys.SetFloors(r.floors, fired)
	r.wall()
	r.holdReplay(stood)
}

// holdReplay keeps what was in flight from taking time beyond where it stood for key-groups
// that have no part in that: their subtask had nothing in flight and was not ahead of its
// stage.
func (r *keyedRunner[K, T]) holdReplay(stood []int64) {
	parts := make([]bool, len(stood))
	for _, f := range r.sub.inc.base.InFlight {
		if f.Stage == r.sub.stage && !f.Broadcast() {
			for kg := max(int(f.MinKG), r.lo); kg < min(int(f.MaxKG)+1, r.hi); kg++ {
				parts[kg-r.lo] = true
			}
		}
	}
	held := int64(endOfTime)
	for i, at := range stood {
		if !parts[i] {
			held = min(held, at)
		}
	}
	if held < endOfTime && slices.Contains(parts, true) {
		r.restored = []mark{{watermark: held}}
	}
}

// times tells where event time stands for the subtask's key-groups: neighbours for which it
// stands at the same are told of together.
func (r *keyedRunner[K, T]) times() (ts []checkpoint.KeyGroupTime) {
	for kg := r.lo; kg < r.hi; kg++ {
		at := r.finite
		if r.floors != nil {
			at = max(at, r.floors[kg-r.lo])
		}
		if n := len(ts); n > 0 && ts[n-1].Watermark == at {
			ts[n-1].MaxKG = uint16(kg)
			continue
		}
		ts = append(ts, checkpoint.KeyGroupTime{Stage: r.sub.stage, MinKG: uint16(kg), MaxKG: uint16(kg), Watermark: at})
	}
	return ts
}

// wall looks at the clock.
func (r *keyedRunner[K, T]) wall() int64 {
	ms := r.sub.inc.clock.Now().UnixMilli()
	r.looked = ms
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
	r.freeze = frozen{id: id, held: time.Since(begun), watermark: r.finite, times: r.times(), fired: r.fired, firing: r.fired < r.finite || r.left}
	return nil
}

// encode goes on to encode frozen state for about as long as said, and acknowledges
// the checkpoint when all is encoded.
func (r *keyedRunner[K, T]) encode(budget time.Duration) error {
	begun := time.Now()
	err := r.sub.inc.blaming(func() error {
		for !r.freeze.encoded {
			done, err := r.keys.Encode(freeze.Step)
			if err != nil {
				return fatal(fmt.Errorf("freezing state for checkpoint %d: %w", r.freeze.id, err))
			}
			r.freeze.encoded = done
			if time.Since(begun) >= budget {
				break
			}
		}
		return nil
	}, func() (operator, doing string) {
		d := r.keys.Encoding()
		return d.Operator, fmt.Sprintf("encoding state %q for checkpoint %d", d.Name, r.freeze.id)
	})
	if err != nil {
		return err
	}
	r.freeze.sliced = time.Now()
	r.freeze.held = max(r.freeze.held, r.freeze.sliced.Sub(begun))
	r.acknowledge()
	return nil
}

// acknowledge acknowledges the checkpoint if nothing is left to encode and to capture.
func (r *keyedRunner[K, T]) acknowledge() {
	if r.freeze.id == 0 || !r.freeze.encoded || r.capture.id != 0 {
		return
	}
	f := r.freeze
	a := ack{subtask: r.sub.id, id: f.id, held: f.held, stage: r.sub.stage, watermark: f.watermark, times: f.times, fired: f.fired, firing: f.firing, logs: r.sub.takeLogged(), unaligned: f.unaligned, inFlight: f.inFlight, abandoned: f.abandoned}
	if crashpoint.Hit(crashpoint.InFreeze); r.sub.frozen.Len() > 0 {
		a.run, a.hasRun = r.sub.frozen.Finish(), true
	}
	r.freeze = frozen{}
	r.sub.acked.Store(f.id)
	r.sub.inc.send(a)
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

// take processes a batch, or puts it aside while its input is blocked.
func (r *keyedRunner[K, T]) take(bt *batch[K, T]) error {
	if !bt.restored && r.aligner.Blocked(bt.input) && !guard.Broken(guard.Alignment) {
		r.stash = append(r.stash, bt)
		return nil
	}
	r.current, r.done = bt, 0
	// The items from begin on have their keys looked up, up to found.
	for begin, found, late := 0, 0, false; r.done < len(bt.items) && r.sub.err == nil; {
		passed := false
		r.sub.guarded(func() {
			for r.done < len(bt.items) && r.sub.err == nil && !passed && !r.sub.attend.Load() {
				if r.done == found {
					if r.freeze.due() {
						return
					}
					rest := bt.items[r.done:]
					if late || r.freeze.unaligned && r.freeze.encoding() {
						rest = rest[:1] // a handler may be slow, and the checkpoint should not be
					}
					late = false
					begin, found = r.done, r.done+r.find(rest)
				}
				it, slot := &bt.items[r.done], r.ahead[r.done-begin].Slot
				r.done++
				r.sub.raw, r.sub.at = it.raw, it.at
				r.keys.UseAt(it.key, it.kg, slot)
				for _, next := range r.chain {
					next(it.val)
				}
				if r.keys.Err() != nil {
					r.sub.err = r.storeError()
				}
				passed = r.keys.Passed()
			}
		})
		if passed && r.sub.err == nil {
			if _, err := r.tick(r.looked); err != nil {
				return err
			}
			late = true // the next one may be, too, and what is found ahead is found anew then
		}
		if r.done < len(bt.items) {
			if err := r.settle(); err != nil {
				return err
			}
			begin, found = r.done, r.done // encoding may have moved state
		}
	}
	for r.done < len(bt.casts) && r.sub.err == nil {
		if r.hear(bt.casts); r.done < len(bt.casts) {
			if err := r.settle(); err != nil {
				return err
			}
		}
	}
	if r.sub.err != nil {
		return r.sub.err
	}
	if bt.restored {
		r.current, r.replay[r.replayed-1] = nil, nil
		crashpoint.Hit(crashpoint.InReplay)
		return r.advanceRestored(bt.input, bt.time)
	}
	// While timers fire the batch is still the current one: a checkpoint that is taken then
	// has to know that its input's barrier came.
	if err := r.advance(bt.input, bt.time); err != nil {
		return err
	}
	r.current = nil
	id, input := bt.barrier, bt.input
	clear(bt.items) // a batch at rest must not keep fetched records alive
	clear(bt.casts)
	clear(r.ahead[:])
	bt.items, bt.casts, bt.barrier = bt.items[:0], bt.casts[:0], 0
	if bt.home != nil {
		bt.home <- bt
	}
	if id == 0 {
		return nil
	}
	return r.apply(r.aligner.Barrier(input, id))
}
