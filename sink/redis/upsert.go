package redis

import (
	"context"
	"errors"
	"fmt"
	"math"
	"strings"
	"sync"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/weirstream/weir/sink"
)

// UpsertSink is an idempotent sink; [Upsert] makes one.
type UpsertSink[T any] struct {
	opts Options
	set  settings
	f    func(u *Upserts, v T)

	mu        sync.Mutex
	pipelines []*pipeline // of this incarnation, and of the one before until they ended
}

// Upsert makes a sink that writes each value by the commands that f adds, which may be
// repeated without harm. Commands of a subtask are written in order, on a cluster those of
// each hash slot. At each barrier
// everything that was written is acknowledged by Redis before the checkpoint is made, so
// what is committed is in Redis.
//
// Redis shows results before they are committed, and after a failure the ones since the
// last checkpoint are written again: for a while a reader may see an older value again,
// unless it is guarded ([Upserts.Guard]). On a cluster the first key of a command must not
// be empty, nor stand behind its 127th argument.
func Upsert[T any](o Options, f func(u *Upserts, v T), opts ...Option) *UpsertSink[T] {
	return &UpsertSink[T]{opts: o, set: newSettings(opts), f: f}
}

// Check implements [sink.Sink].
func (s *UpsertSink[T]) Check() error {
	errs := append([]error{s.opts.check()}, s.set.errs...)
	if s.f == nil {
		errs = append(errs, errors.New("redis: the function that turns a value into commands is nil"))
	}
	return errors.Join(errs...)
}

func (s *UpsertSink[T]) String() string { return s.opts.String() + ", idempotent" }

// Open implements [sink.Sink].
func (s *UpsertSink[T]) Open(env sink.Env) (sink.Writer[T], error) {
	w := &upserter[T]{sink: s, env: env}
	w.prefix, w.cluster, w.direct = s.opts.Prefix, s.opts.Cluster, true
	s.mu.Lock()
	defer s.mu.Unlock()
	// What the last incarnation still writes is older than what this one will.
	live := s.pipelines[:0]
	for _, p := range s.pipelines {
		if p.ctx.Err() != nil {
			<-p.ended
		} else {
			live = append(live, p)
		}
	}
	w.out = newPipeline(env.Context(), s.opts, s.set, env.Operator())
	s.pipelines = append(live, w.out)
	return w, nil
}

// upserter is the writer of a subtask.
type upserter[T any] struct {
	Upserts
	sink *UpsertSink[T]
	env  sink.Env
	out  *pipeline
}

// Write implements [sink.Writer].
func (w *upserter[T]) Write(v T) error {
	if err := w.record(func() { w.sink.f(&w.Upserts, v) }); err != nil {
		return w.sink.set.refused(err)
	}
	if w.count < w.sink.set.batchOps && len(w.buf) < w.sink.set.batchBytes {
		return nil
	}
	w.send(w.env.Context())
	return nil
}

// send hands what was collected to the pipeline.
func (w *upserter[T]) send(ctx context.Context) {
	if w.count == 0 {
		return
	}
	buf, count := w.buf, w.count
	w.buf = w.out.memory()
	w.reset()
	w.out.send(ctx, upsertBatch{buf, count})
}

// Flush implements [sink.Flusher].
func (w *upserter[T]) Flush(ctx context.Context) error {
	w.send(ctx)
	return w.out.wait(ctx)
}

// upsertBatch is operations that go in one pipeline.
type upsertBatch struct {
	operations []byte
	count      int
}

// pipeline writes the batches of one subtask, one after another, in a goroutine of its
// own that ends with the incarnation. So the commands of a subtask are in order whatever
// keys they have, and the subtask goes on meanwhile.
type pipeline struct {
	opts Options
	set  settings
	sink string
	ctx  context.Context

	atOnce int // how many commands of a batch are sent together; run's own

	batches chan upsertBatch
	failed  chan struct{} // closed after err is set
	err     error
	ended   chan struct{} // closed when nothing is written any more

	mu      sync.Mutex
	sent    int64
	written int64
	moved   chan struct{} // closed and replaced whenever written grows
	free    [][]byte      // memory of batches that were written
}

func newPipeline(ctx context.Context, o Options, set settings, name string) *pipeline {
	p := &pipeline{
		opts: o, set: set, sink: name, ctx: ctx, atOnce: math.MaxInt,
		batches: make(chan upsertBatch, set.inFlight-1), failed: make(chan struct{}), ended: make(chan struct{}), moved: make(chan struct{}),
	}
	go p.run()
	return p
}

// memory returns memory to collect operations in.
func (p *pipeline) memory() []byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	if n := len(p.free); n > 0 {
		b := p.free[n-1]
		p.free = p.free[:n-1]
		return b
	}
	return nil
}

// send queues a batch; it waits while too many are under way. After a failure it drops the
// batch: wait reports the failure at the barrier, and the epoch is never committed. The
// record that happens to be written next is not to blame.
func (p *pipeline) send(ctx context.Context, b upsertBatch) {
	p.mu.Lock()
	p.sent++
	p.mu.Unlock()
	select {
	case p.batches <- b:
	case <-p.failed:
	case <-ctx.Done():
	}
}

// wait returns when everything that was sent is acknowledged.
func (p *pipeline) wait(ctx context.Context) error {
	for {
		p.mu.Lock()
		done, moved := p.written == p.sent, p.moved
		p.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-moved:
		case <-p.failed:
			return p.err
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

func (p *pipeline) run() {
	defer close(p.ended)
	cl := p.opts.client()
	defer cl.Close()
	for {
		select {
		case <-p.ctx.Done():
			return
		case b := <-p.batches:
			if err := p.write(cl, b); err != nil {
				p.err = err
				close(p.failed)
				return
			}
			p.mu.Lock()
			p.written++
			p.free = append(p.free, b.operations[:0])
			close(p.moved)
			p.moved = make(chan struct{})
			p.mu.Unlock()
		}
	}
}

// write writes a batch until all of it is acknowledged. What has an unknown outcome is
// written again, from its first command on, so that the last one on each key wins.
//
// If Redis needs longer for the commands than the client waits for an answer, sending the
// same ones again would never end: fewer go together then, and more again when they are
// answered in time.
func (p *pipeline) write(cl goredis.UniversalClient, b upsertBatch) error {
	cmds, err := p.commands(b)
	if err != nil {
		return err
	}
	again := patience{giveUp: p.set.giveUp, unreachable: p.set.unreachable, sink: p.sink}
	for len(cmds) > 0 {
		n := min(p.atOnce, len(cmds))
		done, err := p.attempt(cl, cmds[:n])
		switch {
		case done:
			if n == p.atOnce {
				p.atOnce += (p.atOnce + 3) / 4
			}
			cmds = cmds[n:]
			again.progress()
			continue
		case err == nil:
			continue // the script was loaded
		case timedOut(err) && n > 1:
			p.atOnce = n / 2
		case timedOut(err):
			err = fmt.Errorf("%w; if Redis needs that long for %s, raise Options.Timeout", err, describe(cmds[0].raw))
		}
		if err = again.again(p.ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// attempt writes commands once and tells whether all of them are acknowledged. If they are
// not and there is no error, they are to be sent again at once.
func (p *pipeline) attempt(cl goredis.UniversalClient, cmds []upsertCommand) (done bool, err error) {
	sent := make([]*goredis.Cmd, len(cmds))
	for i := range cmds {
		sent[i] = cmds[i].command()
	}
	answers := execute(p.ctx, cl, sent)
	unloaded, all := false, true
	aside := 0
	for i, e := range answers {
		if e == nil {
			continue
		}
		if noScript(e) {
			unloaded, all = true, false
			continue
		}
		e = classify(e)
		if blamed(e) {
			if !p.set.deadLetters {
				return false, &CommandError{Sink: p.sink, Command: describe(cmds[i].raw), Err: e}
			}
			aside++
			continue
		}
		if all = false; err == nil || unavailable(err) {
			err = e
		}
	}
	if all && aside > 0 {
		err = p.putAside(cl, cmds, answers)
		all = err == nil
	}
	if err == nil && unloaded {
		err = loadScript(p.ctx, cl, guardScript)
	}
	return all, err
}

// putAside appends the commands that failed to the list of dead letters.
func (p *pipeline) putAside(cl goredis.UniversalClient, cmds []upsertCommand, answers []error) error {
	l := p.opts.layout()
	var pushes []*goredis.Cmd
	for i, e := range answers {
		if e == nil {
			continue
		}
		head := position{lineage: "-"}.text() + author("", p.sink, "", time.Now())
		element := head + "\n" + strings.ReplaceAll(e.Error(), "\n", " ") + "\n" + string(cmds[i].raw)
		pushes = append(pushes, goredis.NewCmd(p.ctx, "RPUSH", l.dead(l.lane(cmds[i].slot), "", p.sink), element))
	}
	for _, e := range execute(p.ctx, cl, pushes) {
		if e != nil {
			return fmt.Errorf("putting a command aside: %w", classify(e))
		}
	}
	return nil
}

// upsertCommand is a command to send, any number of times.
type upsertCommand struct {
	args     []any
	firstKey int8
	slot     uint16
	raw      []byte // the user's command
}

func (c *upsertCommand) command() *goredis.Cmd {
	cmd := goredis.NewCmd(context.Background(), c.args...)
	cmd.SetFirstKeyPos(c.firstKey)
	return cmd
}

// commands decodes a batch.
func (p *pipeline) commands(b upsertBatch) ([]upsertCommand, error) {
	const fewArgs = 4 // that a command has, more or less
	l := p.opts.layout()
	cmds := make([]upsertCommand, 0, b.count)
	// All arguments of the batch are in one string, and the client takes pointers to its
	// pieces, so that they cost no allocation each.
	text := string(b.operations)
	pieces := make([]string, 0, fewArgs*b.count)
	boxes := make([]any, 0, fewArgs*b.count)
	box := func(s string) {
		pieces = append(pieces, s)
		boxes = append(boxes, &pieces[len(pieces)-1])
	}
	var op operation
	for rest := b.operations; len(rest) > 0; {
		var err error
		if rest, err = op.decode(rest); err != nil {
			return nil, fmt.Errorf("sink %q: %w", p.sink, err)
		}
		begin := len(text) - len(rest) - len(op.command)
		n, left, err := readArrayHeader(op.command)
		if err != nil {
			return nil, fmt.Errorf("sink %q: %w", p.sink, err)
		}
		first := len(boxes)
		for range n {
			var arg []byte
			if arg, left, err = readString(left); err != nil {
				return nil, fmt.Errorf("sink %q: %w", p.sink, err)
			}
			end := begin + len(op.command) - len(left)
			box(text[end-len(arg) : end])
		}
		c := upsertCommand{args: boxes[first:len(boxes):len(boxes)], firstKey: int8(min(op.keys[0], maxFirstKey)), slot: op.slot, raw: op.command}
		if op.flags&flagGuarded != 0 {
			keys := []any{l.version(op.slot, *c.args[op.keys[0]].(*string))}
			if p.opts.Cluster {
				for _, k := range op.keys {
					keys = append(keys, c.args[k])
				}
			}
			c.firstKey = 3
			c.args = append([]any{"EVALSHA", guardScript.sha, len(keys)}, keys...)
			// Fixed length, and in the order of the numbers: Lua's numbers lose digits.
			c.args = append(c.args, fmt.Sprintf("%020d", uint64(op.version)^1<<63), p.set.versionsFor.Milliseconds(), op.command)
		}
		cmds = append(cmds, c)
	}
	return cmds, nil
}
