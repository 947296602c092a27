package redis

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
	goredis "github.com/redis/go-redis/v9"

	"github.com/weirstream/weir/internal/redistest"
)

// The committed logs of a sink are one sequence of operations, which is fixed by the
// commits. So the object that a lane's marker, lists and counters make up has one number as
// its state: how many operations of the sequence are applied. A history is linearizable if
// every attempt to apply a batch and every read can be put at one instant between its call
// and its return so that
//
//   - an attempt that was answered "applied" moved the state from the batch's begin to its
//     end, and one that was answered "refused" found the position that the answer names, which
//     is not the batch's begin;
//   - an attempt without an answer did what the state at some instant after its call
//     demanded, perhaps long after its client was gone, or never happened;
//   - a read saw exactly the lists, counters and marker of the state.
//
// A repeated, lost or reordered operation leaves no such order.

// attempt is the application of operations [from, to) by one request.
type attempt struct{ from, to int }

// attempted is how an attempt was answered.
type attempted struct {
	answer answer
	at     int // where the marker was, if refused
}

type answer int

const (
	unknown answer = iota // no answer: it happened, will happen, or never will
	applied
	refused
)

// look reads a key: its list, its counter, the marker, or all of them in one transaction.
type look struct{ key string }

// seen is what a read saw, each as a number of operations or elements; unread if it was not
// read, and impossible if it is nothing that the sequence ever leads to.
type seen struct{ list, count, marker int }

const (
	unread     = -1
	impossible = -2
)

// sequence is the committed operations: a push and an increment for each value, which are
// 0, 1, 2 and so on, so value v is operations 2v and 2v+1.
type sequence struct {
	keys  map[string][]int // the values of each key, ascending
	total int              // operations
}

// elements is how many values of a key have an operation of a kind (0: push, 1: increment)
// among the first p.
func (s sequence) elements(key string, kind, p int) int {
	vs := s.keys[key]
	return sort.Search(len(vs), func(i int) bool { return 2*vs[i]+kind >= p })
}

func (s sequence) model() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return 0 },
		Step: func(state, input, output any) (bool, any) {
			p := state.(int)
			switch in := input.(type) {
			case attempt:
				switch out := output.(attempted); {
				case out.answer == applied:
					return p == in.from, in.to
				case out.answer == refused:
					return p == out.at && p != in.from, p
				case p == in.from:
					return true, in.to
				}
				return true, p
			case look:
				out := output.(seen)
				ok := (out.list == unread || out.list == s.elements(in.key, 0, p)) &&
					(out.count == unread || out.count == s.elements(in.key, 1, p)) &&
					(out.marker == unread || out.marker == p)
				return ok, p
			}
			panic(fmt.Sprintf("%T", input))
		},
		DescribeOperation: func(in, out any) string { return fmt.Sprintf("%T%+v: %+v", in, in, out) },
	}
}

// decisionTime bounds the search for an order. It takes milliseconds.
const decisionTime = 30 * time.Second

// linearizable says why a history is not.
func (s sequence) linearizable(ops []porcupine.Operation) error {
	switch porcupine.CheckOperationsTimeout(s.model(), ops, decisionTime) {
	case porcupine.Ok:
		return nil
	case porcupine.Unknown:
		return fmt.Errorf("undecided after %v", decisionTime)
	}
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return sign(a.Call - b.Call) })
	var text strings.Builder
	for _, op := range ops {
		fmt.Fprintf(&text, "\n  client %d [%d, %d] %s", op.ClientId, op.Call, op.Return, s.model().DescribeOperation(op.Input, op.Output))
	}
	return errors.New("there is no order in which this could have happened once:" + text.String())
}

// history records operations. Its clock orders calls and returns as they happened.
type history struct {
	clock atomic.Int64
	mu    sync.Mutex
	ops   []porcupine.Operation
	raw   []func(s sequence, bases map[int64]int) // turn what was recorded into operations
}

func (h *history) tick() int64 { return h.clock.Add(1) }

// never is later than everything: the return of an operation without an answer.
const never = 1 << 62

func (h *history) add(client int, call, ret int64, op func(s sequence, bases map[int64]int) (in, out any)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.raw = append(h.raw, func(s sequence, bases map[int64]int) {
		in, out := op(s, bases)
		h.ops = append(h.ops, porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: ret})
	})
}

// operations are those that were recorded. bases says where the log of a checkpoint begins
// in the sequence.
func (h *history) operations(s sequence, bases map[int64]int) []porcupine.Operation {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, f := range h.raw {
		f(s, bases)
	}
	h.raw = nil
	return h.ops
}

// positionOf is where in the sequence a marker stands.
func positionOf(text string, bases map[int64]int) int {
	if text == "" {
		return 0
	}
	m, err := ParseMarker("", text)
	base, ok := bases[m.Checkpoint]
	if err != nil || !ok {
		return impossible
	}
	return base + int(m.Operations)
}

// recorder is a hook of an applier's client that records its attempts.
type recorder struct {
	h        *history
	client   int
	underWay *atomic.Int64 // pipelines
}

func (r recorder) DialHook(next goredis.DialHook) goredis.DialHook          { return next }
func (r recorder) ProcessHook(next goredis.ProcessHook) goredis.ProcessHook { return next }

func (r recorder) ProcessPipelineHook(next goredis.ProcessPipelineHook) goredis.ProcessPipelineHook {
	return func(ctx context.Context, cmds []goredis.Cmder) error {
		var tries []attempt
		var of []int // which commands answer an attempt
		var loose []string
		for i, c := range cmds {
			args := c.Args()
			switch name := strings.ToUpper(fmt.Sprint(args[0])); name {
			case "EVALSHA":
				tries, of = append(tries, packed(args[len(args)-1].([]byte))), append(of, i)
			case "RPUSH", "INCRBY": // the guard that puts them into a script is out
				loose = append(loose, name, args[2].(string))
			}
		}
		if len(loose) > 0 {
			tries, of = append(tries, rangeOf(loose)), append(of, len(cmds)-1)
		}
		r.underWay.Add(1)
		defer r.underWay.Add(-1)
		call := r.h.tick()
		err := next(ctx, cmds)
		for i, a := range tries {
			r.record(a, cmds[of[i]].(*goredis.Cmd), call, len(loose) > 0)
		}
		return err
	}
}

func (r recorder) record(a attempt, c *goredis.Cmd, call int64, loose bool) {
	ret := r.h.tick()
	var reply goredis.Error
	switch {
	case errors.As(c.Err(), &reply):
		return // Redis said that it did nothing
	case c.Err() != nil || c.Val() == nil:
		r.h.add(r.client, call, never, func(sequence, map[int64]int) (any, any) { return a, attempted{answer: unknown} })
		return
	case loose:
		r.h.add(r.client, call, ret, func(sequence, map[int64]int) (any, any) { return a, attempted{answer: applied} })
		return
	}
	vs := c.Val().([]any)
	r.h.add(r.client, call, ret, func(_ sequence, bases map[int64]int) (any, any) {
		if vs[0].(int64) == 0 {
			return a, attempted{refused, positionOf(vs[1].(string), bases)}
		}
		return a, attempted{answer: applied}
	})
}

// packed is the range of a batch's commands.
func packed(commands []byte) attempt {
	var words []string
	for rest := commands; len(rest) > 0; {
		n, left, err := readArrayHeader(rest)
		if err != nil {
			panic(err)
		}
		for i := range n {
			var arg []byte
			if arg, left, err = readString(left); err != nil {
				panic(err)
			}
			if i == 0 || i == 2 {
				words = append(words, string(arg))
			}
		}
		rest = left
	}
	return rangeOf(words)
}

// rangeOf is the range of commands, given as names and last arguments: pushes of values and
// increments in turn, a push first.
func rangeOf(words []string) attempt {
	v, err := strconv.Atoi(words[1])
	if words[0] != "RPUSH" || err != nil {
		panic(fmt.Sprintf("the batch begins with %q", words[:2]))
	}
	return attempt{2 * v, 2*v + len(words)/2}
}

// readable is where readers look.
type readable struct{ prefix, marker string }

// reader reads keys until stop is closed, in a way of its own.
func (h *history) reader(client int, cl *goredis.Client, at readable, keys []string, how int, rng *rand.Rand, stop <-chan struct{}) {
	for {
		select {
		case <-stop:
			return
		default:
		}
		h.read(client, cl, at, keys[rng.IntN(len(keys))], how)
		time.Sleep(time.Duration(rng.IntN(2000)) * time.Microsecond) // so that reads spread over the history; nothing waits for it
	}
}

// read reads a key. A read that fails tells nothing and is forgotten.
func (h *history) read(client int, cl *goredis.Client, at readable, key string, how int) {
	const asList, asCounter = 0, 1
	var list *goredis.StringSliceCmd
	var count, marker *goredis.StringCmd
	call := h.tick()
	_, err := cl.TxPipelined(context.Background(), func(tx goredis.Pipeliner) error {
		if how != asCounter {
			list = tx.LRange(context.Background(), at.prefix+"l"+key, 0, -1)
		}
		if how != asList {
			count = tx.Get(context.Background(), at.prefix+"n"+key)
		}
		if how != asList && how != asCounter {
			marker = tx.Get(context.Background(), at.marker)
		}
		return nil
	})
	ret := h.tick()
	if err != nil && !errors.Is(err, goredis.Nil) {
		return
	}
	h.add(client, call, ret, func(s sequence, bases map[int64]int) (any, any) {
		out := seen{unread, unread, unread}
		if list != nil {
			out.list = len(list.Val())
			for i, e := range list.Val() {
				if vs := s.keys[key]; i >= len(vs) || strconv.Itoa(vs[i]) != e {
					out.list = impossible
				}
			}
		}
		if count != nil {
			out.count = 0
			if count.Val() != "" {
				n, err := strconv.Atoi(count.Val())
				if out.count = n; err != nil {
					out.count = impossible
				}
			}
		}
		if marker != nil {
			out.marker = positionOf(marker.Val(), bases)
		}
		return look{key}, out
	})
}

// TestMarkedKeysAreLinearizable records short histories: two processes apply the same logs,
// the first of which was replaced while its requests were held up and wakes up late, over
// connections that are cut in the middle of an answer, while others read.
func TestMarkedKeysAreLinearizable(t *testing.T) {
	for name, addr := range map[string]func(t *testing.T) string{
		"redis":  func(t *testing.T) string { return redistest.Shared(t).Addr },
		"redis7": func(t *testing.T) string { return server(t, redistest.Redis7).Addr },
		"valkey": func(t *testing.T) string { return server(t, redistest.Valkey).Addr },
	} {
		t.Run(name, func(t *testing.T) {
			const histories = 15
			total, lost := 0, 0
			for seed := range uint64(histories) {
				ops := recordHistory(t, addr(t), rand.New(rand.NewPCG(7, seed)))
				for _, op := range ops {
					if op.Return == never {
						lost++
					}
				}
				total += len(ops)
			}
			if lost == 0 {
				t.Error("every attempt was answered: the histories show little")
			}
			t.Logf("%d operations in %d histories, %d of them without an answer", total, histories, lost)
		})
	}
}

func recordHistory(t *testing.T, addr string, rng *rand.Rand) []porcupine.Operation {
	t.Helper()
	const zombieClient, successorClient, firstReader, most = 0, 1, 2, 6
	keys := []string{"a", "b", "c"} // of equal length: one subtask writes them all
	h := &history{}
	s := sequence{keys: map[string][]int{}}
	bases := map[int64]int{} // of the logs of checkpoints, in the sequence
	w := newWorld(t, options(addr))
	at := readable{w.opts.Prefix, w.opts.layout().marker(0, w.app, "out")}
	f := func(b *Batch, p push) {
		b.RPush("l"+p.key, p.value)
		b.IncrBy("n"+p.key, 1)
	}
	begin := func(client int, addr string, timeout time.Duration) (*life, *atomic.Int64) {
		var underWay atomic.Int64
		w.opts.Addrs, w.opts.Timeout = []string{addr}, timeout
		w.onApplier = func(a *applier) { a.cl.AddHook(recorder{h, client, &underWay}) }
		// Batches begin with a push.
		l, err := w.beginWith(f, BatchSize(2*(1+rng.IntN(4)), 1<<20), InFlight(1+rng.IntN(3)))
		if err != nil {
			t.Fatal(err)
		}
		return l, &underWay
	}
	commit := func(l *life) {
		var ps []push
		for range 1 + rng.IntN(most) {
			p := push{keys[rng.IntN(len(keys))], strconv.Itoa(w.n)}
			s.keys[p.key] = append(s.keys[p.key], w.n)
			w.n++
			ps = append(ps, p)
		}
		bases[w.last+1] = s.total
		s.total += 2 * len(ps)
		l.checkpoint(ps...)
	}
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for how := range 3 {
		cl := redisClient(t, addr)
		seed := rng.Uint64()
		readers.Go(func() {
			h.reader(firstReader+how, cl, at, keys, how, rand.New(rand.NewPCG(seed, 0)), stop)
		})
	}
	slow := redistest.StartProxy(t, addr)
	cut := redistest.StartProxy(t, addr)

	// The first process gives up on answers soon, or waits for them.
	timeout := soon
	if rng.IntN(2) == 0 {
		timeout = 50 * time.Millisecond
	}
	zombie, underWay := begin(zombieClient, slow.Addr, timeout)
	// A process that waits so shortly may have begun without Redis. It asks for markers later
	// then, and must have them before its requests are held up: else it sends no batch.
	zombie.drain()
	for range 1 + rng.IntN(2) {
		commit(zombie)
	}
	if rng.IntN(2) == 0 {
		zombie.drain()
	}
	slow.Hold(true)
	for range 1 + rng.IntN(2) {
		commit(zombie)
	}
	redistest.Eventually(t, soon, func() error {
		if underWay.Load() == 0 {
			return fmt.Errorf("the first process sends nothing: %+v", zombie.applier.(*applier).state())
		}
		return nil
	})
	successor, _ := begin(successorClient, cut.Addr, soon)
	var waking sync.WaitGroup
	delay := time.Duration(rng.Int64N(int64(8 * time.Millisecond)))
	waking.Go(func() {
		time.Sleep(delay) // when it wakes up; nothing waits for it
		slow.Hold(false)
	})
	for range 3 + rng.IntN(3) {
		if rng.IntN(2) == 0 {
			cut.CutAfter(rng.Int64N(60))
		}
		commit(successor)
		if rng.IntN(3) == 0 {
			successor.drain()
		}
	}
	successor.drain()
	waking.Wait()
	zombie.drain()
	close(stop)
	readers.Wait()
	for how := range 3 {
		for _, k := range keys {
			h.read(firstReader+3, redisClient(t, addr), at, k, how)
		}
	}
	zombie.kill()
	successor.kill()
	ops := h.operations(s, bases)
	if err := s.linearizable(ops); err != nil {
		t.Fatal(err)
	}
	if n := s.elements("a", 0, s.total) + s.elements("b", 0, s.total) + s.elements("c", 0, s.total); 2*n != s.total {
		t.Fatalf("%d values in %d operations", n, s.total)
	}
	return ops
}

func TestLinearizabilityCheckFindsWhatIsWrong(t *testing.T) {
	// Values 0 and 2 of key a, 1 of key b: operations 0 to 5.
	s := sequence{keys: map[string][]int{"a": {0, 2}, "b": {1}}, total: 6}
	op := func(call, ret int64, in, out any) porcupine.Operation {
		return porcupine.Operation{Input: in, Call: call, Output: out, Return: ret}
	}
	done, lost := attempted{answer: applied}, attempted{answer: unknown}
	list := func(n int) seen { return seen{n, unread, unread} }
	for name, c := range map[string]struct {
		ok  bool
		ops []porcupine.Operation
	}{
		"in order": {true, []porcupine.Operation{op(1, 2, attempt{0, 4}, done), op(3, 4, look{"a"}, seen{1, 1, 4}), op(5, 6, attempt{4, 6}, done), op(7, 8, look{"a"}, seen{2, 2, 6})}},
		"without an answer, happened late": {true, []porcupine.Operation{
			op(1, never, attempt{0, 4}, lost), op(2, 3, look{"a"}, list(0)), op(4, 5, look{"a"}, list(1)), op(6, 7, attempt{0, 4}, attempted{refused, 4})}},
		"without an answer, never happened": {true, []porcupine.Operation{
			op(1, never, attempt{0, 4}, lost), op(2, 3, look{"a"}, list(0)), op(4, 5, attempt{0, 4}, done), op(6, 7, look{"a"}, list(1))}},
		"beside each other": {true, []porcupine.Operation{op(1, 9, attempt{0, 4}, attempted{refused, 4}), op(2, 8, attempt{0, 4}, done)}},

		"applied twice":                       {false, []porcupine.Operation{op(1, 2, attempt{0, 4}, done), op(3, 4, attempt{0, 4}, done)}},
		"seen twice":                          {false, []porcupine.Operation{op(1, 2, attempt{0, 4}, done), op(3, 4, look{"a"}, seen{impossible, unread, unread})}},
		"counted twice":                       {false, []porcupine.Operation{op(1, 2, attempt{0, 4}, done), op(3, 4, look{"a"}, seen{unread, 2, unread})}},
		"acknowledged and lost":               {false, []porcupine.Operation{op(1, 2, attempt{0, 4}, done), op(3, 4, look{"a"}, list(0))}},
		"seen and lost":                       {false, []porcupine.Operation{op(1, never, attempt{0, 4}, lost), op(3, 4, look{"a"}, list(1)), op(5, 6, look{"a"}, list(0))}},
		"out of order":                        {false, []porcupine.Operation{op(1, 9, attempt{0, 4}, done), op(2, 8, attempt{4, 6}, done), op(3, 4, look{"a"}, list(2)), op(5, 6, look{"b"}, list(0))}},
		"half of a batch":                     {false, []porcupine.Operation{op(1, 9, attempt{0, 4}, done), op(2, 3, look{"a"}, seen{1, 0, unread})}},
		"refused although it was next":        {false, []porcupine.Operation{op(1, 2, attempt{0, 4}, attempted{refused, 0})}},
		"the marker is not where the data is": {false, []porcupine.Operation{op(1, 2, attempt{0, 4}, done), op(3, 4, look{"a"}, seen{1, 1, 0})}},
	} {
		if err := s.linearizable(c.ops); (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
	}
}
