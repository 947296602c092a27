package processor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"reflect"
	"runtime/debug"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/lookup"
)

// A look-up stands in a chain as a function that takes a value, and, because what comes
// behind it comes later, also as the edge of everything behind it: watermarks and barriers
// of the chain go through it and queue up with the records.
//
//   - Order. Records leave in the order in which they came: what is waiting is one queue, and
//     only its head leaves. A watermark stands in the queue behind the records before it.
//   - Barriers. All that waits is completed before the barrier goes on. Waiting records could
//     be stored like records in flight; but they would need a codec, and what they wait for
//     takes milliseconds. An unaligned barrier overtakes what waits for handlers, not this.
//   - Goroutines. Calls run in goroutines of their own and touch nothing but their request.
//     Everything else happens on the subtask, between two of its records, so a record that
//     leaves is the current one as any other is: with its input record, its event time and
//     its errors. Only one that makes more values than may wait has to wait in its midst,
//     like one that has no room on an edge; others leave meanwhile.
//   - Batches. One is sent when it is full, when nothing is under way and the subtask has done
//     what it was handed, or when the subtask would wait. So batches grow with the load.

// Lookup is a look-up operator of a chain of values of type A.
type Lookup[A any, K comparable, V any] struct {
	ID   string
	From lookup.Source[K, V]
	Key  func(A) K
	How  lookup.Settings
}

// Build makes the operator on a subtask and returns the function that takes a value. next
// makes the chain behind it, whose function is called on the subtask for each value that
// is answered.
func (l Lookup[A, K, V]) Build(s *Subtask, next func(s *Subtask, op *Operator) func(a A, v V, found bool)) func(A) {
	op := s.Operator(l.ID)
	client, err := lookupClient(s.inc, l.ID, l.From)
	if err != nil {
		err = fmt.Errorf("operator %q: opening %s: %w", l.ID, l.From, err)
		if lookup.Passing(err) && s.err == nil {
			s.err = err
		}
		s.Abort(err)
		return func(A) {}
	}
	o := &asker[A, K, V]{
		sub: s, op: op, spec: l, client: client, batch: l.How.BatchSize, most: l.How.InFlight,
		flying: map[K]place[K, V]{}, cloneKeys: reflect.TypeFor[K]().Kind() == reflect.String,
	}
	_, single := client.(lookup.Single)
	if single {
		o.batch = 1
	}
	if o.most == 0 {
		if o.most = lookup.DefaultInFlight; single {
			o.most = lookup.DefaultSingleInFlight
		}
	}
	if l.How.CacheEntries > 0 {
		o.cache = newAnswerCache[K, V](l.How.CacheEntries)
	}
	o.done = make(chan *request[K, V], o.most)
	o.leaving = o.leave
	s.askers = append(s.askers, o)
	begin := len(s.outgoing)
	o.next = next(s, op)
	o.behind = append(o.behind, s.outgoing[begin:]...)
	s.outgoing = append(s.outgoing[:begin], o)
	return o.take
}

// asking is an asker without its types.
type asking interface {
	outgoing
	// progress lets go what is answered. At the end of what the subtask was handed it also
	// asks what was collected, if nothing is under way.
	progress(end bool)
	// finish waits until nothing waits any more.
	finish()
}

// progress lets go what was answered meanwhile.
func (s *Subtask) progress(end bool) {
	for _, a := range s.askers {
		if s.err == nil {
			a.progress(end)
		}
	}
}

// asker is a look-up on one subtask. It implements [outgoing] for what is behind it.
type asker[A any, K comparable, V any] struct {
	sub    *Subtask
	op     *Operator
	spec   Lookup[A, K, V]
	client lookup.Client[K, V]
	batch  int // keys of a request
	most   int // requests under way
	next   func(a A, v V, found bool)
	behind []outgoing

	queue ring[waiting[A, K, V]]
	open  *request[K, V]       // being collected; nil: none
	full  ring[*request[K, V]] // to be asked
	asked int                  // under way
	done  chan *request[K, V]  // answered; has room for all that are under way
	free  []*request[K, V]     // to be used again
	cache *answerCache[K, V]   // nil: none
	// flying tells where the answer of a key will be. Without a cache it has the keys of open.
	flying    map[K]place[K, V]
	cloneKeys bool // they are strings, and may be pieces of fetched batches

	leaving    func() // leave, made once
	regardless bool   // leave goes on although an edge is crowded
	stuck      bool   // leave came to something that is not answered
}

// waiting is a value that waits for its answer, or a mark behind such values.
type waiting[A any, K comparable, V any] struct {
	raw         *kgo.Record // nil: a mark
	at          int64       // event time, or that of the mark
	value       A
	place[K, V] // if from is nil the answer is known
	known       V
	found       bool // it is; or the mark is idle
}

// place is where the answer of a key is.
type place[K comparable, V any] struct {
	from *request[K, V]
	i    int
}

// request is a batch of keys that are asked in one call.
type request[K comparable, V any] struct {
	keys     []K
	answers  []lookup.Answer[V]
	began    int64 // when it was asked, in nanoseconds since 1970
	err      error
	answered bool
	users    int // how many values wait for it
}

// take takes a value of the chain.
func (o *asker[A, K, V]) take(a A) {
	outer := o.op.Enter()
	k := o.spec.Key(a)
	w := waiting[A, K, V]{raw: o.sub.raw, at: o.sub.at, value: a}
	known := false
	if o.cache != nil {
		w.known, w.found, known = o.cache.get(k, o.now())
	}
	if !known {
		w.place = o.ask(k)
	}
	o.op.Leave(outer)
	if known && o.queue.len() == 0 {
		o.next(a, w.known, w.found)
		return
	}
	o.queue.push(w)
	switch {
	case o.hasRoom():
	case o.queue.len() < 2*o.spec.How.Waiting:
		// The next record has to wait.
		o.sub.crowded = true
		o.sub.attend.Store(true)
	default:
		o.makeRoom()
	}
}

// hasRoom tells whether the subtask may take another record. Requests that can't be sent
// yet are bounded by as many as may be under way, so that a barrier waits for two rounds
// of calls, or a little more, however many records may wait.
func (o *asker[A, K, V]) hasRoom() bool {
	return o.queue.len() < o.spec.How.Waiting && o.full.len() <= o.most
}

// ask returns where the answer of a key will be.
func (o *asker[A, K, V]) ask(k K) place[K, V] {
	p, ok := o.flying[k]
	if !ok {
		if o.open == nil {
			o.open = o.request()
		}
		p = place[K, V]{o.open, len(o.open.keys)}
		if o.cloneKeys {
			cloneString(&k)
		}
		o.open.keys = append(o.open.keys, k)
		if k == k { // a NaN is never found again
			o.flying[k] = p
		}
	}
	p.from.users++
	if o.open != nil && len(o.open.keys) >= o.batch {
		o.close()
		o.send(false)
	}
	return p
}

// request returns an empty request.
func (o *asker[A, K, V]) request() *request[K, V] {
	if n := len(o.free); n > 0 {
		r := o.free[n-1]
		o.free = o.free[:n-1]
		return r
	}
	return &request[K, V]{}
}

// close ends the collection of a request.
func (o *asker[A, K, V]) close() {
	o.full.push(o.open)
	o.open = nil
	if o.cache == nil {
		clear(o.flying) // a record that comes later is answered by a call that begins later
	}
}

// send asks what was collected, as far as calls may be under way; the request that is not
// full only if rest says so.
func (o *asker[A, K, V]) send(rest bool) {
	for o.asked < o.most {
		if o.full.len() == 0 {
			if !rest || o.open == nil {
				return
			}
			o.close()
		}
		r := *o.full.front()
		o.full.pop()
		o.asked++
		r.began = o.now()
		r.answers = append(r.answers[:0], make([]lookup.Answer[V], len(r.keys))...)
		o.sub.inc.group.Go(func() {
			r.err = o.fetch(r.keys, r.answers)
			o.done <- r
			o.sub.attend.Store(true)
			o.sub.notify()
		})
	}
}

// collect takes what was answered meanwhile.
func (o *asker[A, K, V]) collect() {
	for o.asked > 0 {
		select {
		case r := <-o.done:
			o.answer(r)
		default:
			return
		}
	}
}

// answer takes the answers of a request.
func (o *asker[A, K, V]) answer(r *request[K, V]) {
	o.asked--
	r.answered = true
	if r.err != nil {
		if o.sub.err == nil {
			o.sub.err = o.failure(r.err)
		}
		return
	}
	if o.cache != nil {
		for i, k := range r.keys {
			delete(o.flying, k)
			if a := &r.answers[i]; a.Err == nil {
				o.cache.put(k, a.Value, a.Found, r.began+min(int64(o.spec.How.CacheTTL), math.MaxInt64-r.began))
			}
		}
	}
	o.send(false)
}

// release takes back a request whose last value has left.
func (o *asker[A, K, V]) release(r *request[K, V]) {
	if r.users--; r.users > 0 {
		return
	}
	clear(r.keys)
	clear(r.answers)
	r.keys, r.answers, r.err, r.answered = r.keys[:0], r.answers[:0], nil, false
	if len(o.free) < 2*o.most {
		o.free = append(o.free, r)
	}
}

// leaveAnswered lets go what is answered and has nothing in front of it that is not. Unless
// regardless it stops where an edge is crowded.
func (o *asker[A, K, V]) leaveAnswered(regardless bool) {
	s := o.sub
	if o.queue.len() == 0 {
		return
	}
	if w := o.queue.front(); w.raw != nil && w.from != nil && !w.from.answered {
		return
	}
	raw, at, op, firing, was := s.raw, s.at, s.op, s.firing, o.regardless
	s.firing = nil // its key is not the current one
	o.stuck, o.regardless = false, regardless
	for !o.stuck && s.err == nil {
		s.op = op
		s.guarded(o.leaving)
	}
	s.raw, s.at, s.op, s.firing, o.regardless = raw, at, op, firing, was
}

func (o *asker[A, K, V]) leave() {
	s := o.sub
	for s.err == nil {
		if s.inc.over.Load() {
			s.err = context.Cause(s.inc.ctx)
			return
		}
		if o.stuck = o.queue.len() == 0 || s.crowded && !o.regardless; o.stuck {
			return
		}
		w := o.queue.front()
		if w.raw == nil {
			m := mark{w.at, w.found}
			o.queue.pop()
			o.pass(m)
			continue
		}
		if o.stuck = w.from != nil && !w.from.answered; o.stuck {
			return
		}
		// It has left before its chain runs: after a panic that is skipped the next one follows.
		value, v, found, err := w.value, w.known, w.found, error(nil)
		if r := w.from; r != nil {
			a := &r.answers[w.i]
			v, found, err = a.Value, a.Found, a.Err
			o.release(r)
		}
		s.raw, s.at = w.raw, w.at
		o.queue.pop()
		if err != nil {
			o.refuse(err)
			continue
		}
		o.next(value, v, found)
	}
}

// refuse deals with a record whose key can't be looked up.
func (o *asker[A, K, V]) refuse(err error) {
	outer := o.op.Enter()
	if err = o.spec.How.OnError(fmt.Errorf("looking up in %s: %w", o.spec.From, err)); err == nil {
		err = &Skip{errors.New("it can't be looked up, and the policy gave no reason to keep it")}
	}
	o.op.Leave(outer)
	o.op.Fail(err)
}

// progress implements [asking].
func (o *asker[A, K, V]) progress(end bool) {
	if o.queue.len() == 0 {
		return
	}
	if o.collect(); !o.sub.crowded {
		o.leaveAnswered(false)
	}
	if end && o.asked == 0 {
		o.send(true)
	}
}

// await waits until a request is answered, or something wakes the subtask if it may be
// woken. It returns false if there is nothing to go on with.
func (o *asker[A, K, V]) await(wake <-chan struct{}) bool {
	select {
	case r := <-o.done:
		o.answer(r)
		return o.sub.err == nil
	case <-wake:
		return false
	case <-o.sub.inc.ctx.Done():
		o.sub.err = context.Cause(o.sub.inc.ctx)
		return false
	}
}

// finish implements [asking].
func (o *asker[A, K, V]) finish() {
	o.sub.finishing++
	for o.sub.err == nil {
		o.collect()
		if o.leaveAnswered(true); o.queue.len() == 0 || o.sub.err != nil {
			break
		}
		o.send(true)
		o.await(nil)
	}
	o.sub.finishing--
}

// makeRoom waits in the midst of a record that made more values than may wait.
func (o *asker[A, K, V]) makeRoom() {
	for o.queue.len() >= 2*o.spec.How.Waiting && o.sub.err == nil {
		o.collect()
		if o.leaveAnswered(true); o.queue.len() < 2*o.spec.How.Waiting {
			break
		}
		o.send(true)
		o.await(nil)
	}
}

// refill implements [outgoing].
func (o *asker[A, K, V]) refill() bool {
	s := o.sub
	for {
		for _, b := range o.behind {
			if !b.refill() {
				return false
			}
		}
		s.crowded = false
		o.collect()
		o.leaveAnswered(false)
		again := s.crowded
		s.crowded = true // until the subtask finds that nothing is
		if s.err != nil {
			return false
		}
		if again {
			continue
		}
		if o.hasRoom() {
			return true
		}
		o.send(true)
		if !o.await(s.wake) {
			return false
		}
	}
}

// flush implements [outgoing].
func (o *asker[A, K, V]) flush() {
	o.send(true)
	for _, b := range o.behind {
		b.flush()
	}
}

// barrier implements [outgoing].
func (o *asker[A, K, V]) barrier(id int64) {
	if !guard.Broken(guard.LookupBeforeBarrier) {
		o.finish()
	}
	if o.sub.err != nil {
		return
	}
	for _, b := range o.behind {
		b.barrier(id)
	}
}

// time implements [outgoing].
func (o *asker[A, K, V]) time(m mark) {
	if o.queue.len() == 0 || guard.Broken(guard.TimeBehindLookup) {
		o.pass(m)
		return
	}
	if last := o.queue.back(); last.raw == nil {
		last.at, last.found = m.watermark, m.idle
		return
	}
	o.queue.push(waiting[A, K, V]{at: m.watermark, found: m.idle})
}

func (o *asker[A, K, V]) pass(m mark) {
	for _, b := range o.behind {
		b.time(m)
	}
}

func (o *asker[A, K, V]) now() int64 {
	if o.cache == nil {
		return 0
	}
	return o.sub.inc.clock.Now().UnixNano()
}

// Pauses before a call is repeated.
const (
	firstLookupPause = 20 * time.Millisecond
	mostLookupPause  = 2 * time.Second
)

// fetch has keys looked up, again and again while the errors may pass. It runs in a
// goroutine of its own.
func (o *asker[A, K, V]) fetch(keys []K, answers []lookup.Answer[V]) error {
	ctx, begun := o.sub.inc.ctx, time.Now()
	for pause := firstLookupPause; ; pause = min(2*pause, mostLookupPause) {
		err := o.try(ctx, keys, answers)
		if err == nil || ctx.Err() != nil {
			return err
		}
		if !lookup.Passing(err) {
			return err
		}
		wait := pause/2 + rand.N(pause)
		if left := o.spec.How.GiveUpAfter - time.Since(begun); wait > left {
			return &Retriable{Err: fmt.Errorf("given up after %v: %w", time.Since(begun).Round(time.Millisecond), err)}
		}
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return err
		}
		clear(answers)
	}
}

// try makes one call.
func (o *asker[A, K, V]) try(ctx context.Context, keys []K, answers []lookup.Answer[V]) (err error) {
	ctx, cancel := context.WithTimeout(ctx, o.spec.How.Timeout)
	defer cancel()
	defer func() {
		if p := recover(); p != nil {
			err = &panicError{asError(p), string(debug.Stack())}
		}
	}()
	err = o.client.Fetch(ctx, keys, answers)
	for i := 0; err == nil && i < len(answers); i++ {
		// What is said of a key when the time is over may be due to that.
		if keys := answers[i].Err; keys != nil && (lookup.Passing(keys) || ctx.Err() != nil) {
			err = keys
		}
	}
	if err != nil && ctx.Err() != nil && !lookup.Passing(err) {
		err = &Retriable{Err: fmt.Errorf("no answer within %v: %w", o.spec.How.Timeout, err)}
	}
	return err
}

// panicError is what a function panicked with.
type panicError struct {
	error
	stack string
}

func (e *panicError) Unwrap() error { return e.error }

// failure says what ends the incarnation when a call failed.
func (o *asker[A, K, V]) failure(err error) error {
	inc := o.sub.inc
	if ended := context.Cause(inc.ctx); ended != nil {
		return ended // this follows from it
	}
	le := &LookupError{Operator: o.op.ID, Source: o.spec.From.String(), Checkpoint: inc.committed.Load(), Err: err}
	var (
		again *Retriable
		p     *panicError
	)
	if errors.As(err, &p) {
		le.Err, le.Panic, le.Stack = p.error, true, p.stack
		return fatal(le)
	}
	if errors.As(err, &again) {
		return le
	}
	return fatal(le)
}

// LookupError says that a look-up failed as a whole, so that no record is to blame.
type LookupError struct {
	Operator string
	Source   string // as it describes itself
	// Checkpoint is the last committed one; 0 if there is none. Attempted is one after it
	// whose commit may or may not have happened; 0 if nothing after it was published.
	Checkpoint, Attempted int64
	// Panic tells that its function panicked; Stack is where.
	Panic bool
	Stack string
	Err   error
}

func (e *LookupError) Error() string {
	var b strings.Builder
	verb := "failed"
	if e.Panic {
		verb = "panicked"
	}
	fmt.Fprintf(&b, "operator %q: looking up in %s %s: %v", e.Operator, e.Source, verb, e.Err)
	b.WriteString("\n  " + published(e.Checkpoint, e.Attempted))
	if e.Stack != "" {
		b.WriteString("\n" + e.Stack)
	}
	return b.String()
}

func (e *LookupError) Unwrap() error { return e.Err }

// lookupClient returns the client of an operator, which its subtasks share.
func lookupClient[K comparable, V any](inc *incarnation, id string, from lookup.Source[K, V]) (lookup.Client[K, V], error) {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	switch c := inc.clients[id].(type) {
	case lookup.Client[K, V]:
		return c, nil
	case unopened:
		return nil, c.error
	}
	if inc.ctx.Err() != nil {
		return nil, context.Cause(inc.ctx) // too late to be closed
	}
	if inc.clients == nil {
		inc.clients = map[string]io.Closer{}
	}
	c, err := from.Open(inc.ctx)
	if err != nil {
		inc.clients[id] = unopened{err}
		return nil, err
	}
	inc.clients[id] = c
	return c, nil
}

// unopened stands for a client that could not be opened. The other subtasks need not try.
type unopened struct{ error }

// Close implements [io.Closer].
func (unopened) Close() error { return nil }

// closeClients releases what look-ups hold, once nothing runs any more.
func (inc *incarnation) closeClients() {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	for id, c := range inc.clients {
		if err := c.Close(); err != nil {
			inc.cfg.Logger.Sugar().Warnf("closing what operator %q looks up in: %v", id, err)
		}
	}
	inc.clients = nil
}

// cloneString detaches a key of a string type from what it is a piece of.
func cloneString[K comparable](k *K) {
	v := reflect.ValueOf(k).Elem()
	v.SetString(strings.Clone(v.String()))
}

// ring is a queue.
type ring[T any] struct {
	items []T // its length is a power of two, or 0
	head  int
	n     int
}

func (q *ring[T]) len() int { return q.n }

func (q *ring[T]) push(v T) {
	if q.n == len(q.items) {
		items := make([]T, max(16, 2*len(q.items)))
		k := copy(items, q.items[q.head:])
		copy(items[k:], q.items[:q.head])
		q.items, q.head = items, 0
	}
	q.items[(q.head+q.n)&(len(q.items)-1)] = v
	q.n++
}

// front is the oldest item, back the newest. They must not be used after push and pop.
func (q *ring[T]) front() *T { return &q.items[q.head] }
func (q *ring[T]) back() *T  { return &q.items[(q.head+q.n-1)&(len(q.items)-1)] }

func (q *ring[T]) pop() {
	var zero T
	q.items[q.head] = zero
	q.head = (q.head + 1) & (len(q.items) - 1)
	q.n--
}

// answerCache keeps the answers that were used last. It belongs to one subtask.
type answerCache[K comparable, V any] struct {
	most           int
	index          map[K]int32
	slots          []cacheSlot[K, V]
	newest, oldest int32 // by use; -1: none
}

type cacheSlot[K comparable, V any] struct {
	key          K
	value        V
	until        int64 // nanoseconds since 1970
	newer, older int32 // -1: none
	found        bool
}

func newAnswerCache[K comparable, V any](most int) *answerCache[K, V] {
	return &answerCache[K, V]{most: most, index: map[K]int32{}, newest: -1, oldest: -1}
}

// get returns the answer of a key, if there is one that is not too old.
func (c *answerCache[K, V]) get(k K, now int64) (v V, found, known bool) {
	i, ok := c.index[k]
	if !ok {
		return v, false, false
	}
	s := &c.slots[i]
	if s.until <= now {
		return v, false, false // its place is for the answer that follows
	}
	if i != c.newest {
		c.unlink(i)
		c.link(i)
	}
	return s.value, s.found, true
}

// put keeps an answer.
func (c *answerCache[K, V]) put(k K, v V, found bool, until int64) {
	if k != k {
		return // a NaN is never found again
	}
	i, ok := c.index[k]
	switch {
	case ok:
		c.unlink(i)
	case len(c.slots) < c.most:
		i = int32(len(c.slots))
		c.slots = append(c.slots, cacheSlot[K, V]{})
	default:
		i = c.oldest
		delete(c.index, c.slots[i].key)
		c.unlink(i)
	}
	if !ok {
		c.index[k] = i
	}
	s := &c.slots[i]
	s.key, s.value, s.found, s.until = k, v, found, until
	c.link(i)
}

// link makes a slot the newest.
func (c *answerCache[K, V]) link(i int32) {
	s := &c.slots[i]
	s.newer, s.older = -1, c.newest
	if c.newest >= 0 {
		c.slots[c.newest].newer = i
	} else {
		c.oldest = i
	}
	c.newest = i
}

func (c *answerCache[K, V]) unlink(i int32) {
	s := &c.slots[i]
	if s.newer >= 0 {
		c.slots[s.newer].older = s.older
	} else {
		c.newest = s.older
	}
	if s.older >= 0 {
		c.slots[s.older].newer = s.newer
	} else {
		c.oldest = s.newer
	}
}
