package redis

import (
	"context"
	"errors"
	"fmt"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/sink"
)

// batch is what one script applies: operations of one lane in one log.
type batch struct {
	lane       lane
	prev       position // where the marker is before
	log        position // lineage and checkpoint of the log; operations: those before the batch
	commands   []byte   // one after another
	ends       []int    // of each command in commands
	keys       []string // of the commands, on a cluster
	transacted bool     // the last operation goes with the next
}

// next is where the marker is after the batch.
func (b *batch) next() position {
	p := b.log
	p.operations += int64(len(b.ends))
	return p
}

// trim takes out the first n operations, which are applied.
func (b *batch) trim(n int) {
	cut := b.ends[n-1]
	b.commands, b.ends = b.commands[cut:], b.ends[n:]
	for i := range b.ends {
		b.ends[i] -= cut
	}
	b.log.operations += int64(n)
	b.prev = b.log
}

// readParts reads and decodes the parts of a log.
func readParts(ctx context.Context, l sink.Log) ([]part, error) {
	if l.Bytes == 0 {
		return nil, nil
	}
	raw, err := l.Read(ctx)
	if err != nil {
		return nil, fmt.Errorf("reading the log of checkpoint %d: %w", l.Checkpoint, err)
	}
	var parts []part
	for _, b := range raw {
		if len(b) == 0 {
			continue
		}
		p, err := decodePart(b)
		if err != nil {
			return nil, fmt.Errorf("log of checkpoint %d: %w", l.Checkpoint, err)
		}
		parts = append(parts, p)
	}
	return parts, nil
}

// eachOperation calls f for the operations of parts, which were verified when they were
// read, in order.
func eachOperation(parts []part, f func(op *operation)) error {
	var op operation
	for _, p := range parts {
		for rest := p.operations; len(rest) > 0; {
			var err error
			if rest, err = op.next(rest); err != nil {
				return err
			}
			f(&op)
		}
	}
	return nil
}

// lanesOf reads where a log leaves the lanes that it has operations for.
func lanesOf(ctx context.Context, lay layout, l sink.Log) (map[lane]position, []part, error) {
	parts, err := readParts(ctx, l)
	if err != nil {
		return nil, nil, err
	}
	ends := map[lane]position{}
	err = eachOperation(parts, func(op *operation) {
		n := lay.lane(op.slot)
		ends[n] = position{l.Lineage, l.Checkpoint, ends[n].operations + 1}
	})
	return ends, parts, err
}

// apply applies logs, which are the oldest of the queue, and notes that they are.
func (a *applier) apply(ctx context.Context, logs []sink.Log) error {
	begun, before := time.Now(), a.counted()
	var (
		batches []*batch
		found   []loggedBase
	)
	ends := make([]map[lane]position, len(logs))
	for i, l := range logs {
		parts, err := readParts(ctx, l)
		if err != nil {
			return err
		}
		for _, p := range parts {
			if p.base != nil {
				found = append(found, loggedBase{p.base.checkpoint, l.Checkpoint})
			}
		}
		if ends[i], err = a.cut(l, parts, &batches); err != nil {
			return err
		}
	}
	a.touch(batches)
	if err := a.send(ctx, batches); err != nil {
		return err
	}
	i := event.Applied{}
	var oldest time.Time
	for _, l := range logs { // applied drops them
		if l.Bytes > 0 {
			if i.Logs++; i.Logs == 1 {
				oldest = l.Created
			}
			i.Checkpoint = l.Checkpoint
			i.Bytes += l.Bytes
		}
	}
	a.applied(logs, ends, found)
	if i.Logs == 0 {
		return nil
	}
	now := a.counted()
	i.Operations, i.PutAside = now.Commands-before.Commands, now.PutAside-before.PutAside
	i.Took, i.Latency, i.Pending = time.Since(begun), time.Since(oldest), a.pending.Load()
	if i.PutAside > 0 {
		a.env.Logger().Warn("Redis refused commands; they are on the list of dead letters", zap.String("sink", a.env.Operator()), zap.Int64("commands", i.PutAside), zap.Int64("checkpoint", i.Checkpoint))
	}
	a.env.Applied(i)
	return nil
}

// course is how far a lane is while a log is cut.
type course struct {
	operations int64    // of the log, so far
	at         position // of the marker, once all that was cut before open is applied
	open       *batch   // the next operation may be added to it; nil: none
}

// cut cuts what is to be applied of a log into batches, and returns where the log leaves its
// lanes.
func (a *applier) cut(l sink.Log, parts []part, batches *[]*batch) (map[lane]position, error) {
	size, count := 0, 0
	for _, p := range parts {
		size += len(p.operations)
		count += p.count
	}
	// What a full batch has, more or less; only where there is one lane.
	ops := min(count, a.set.batchOps)
	bytes := min(size/max(count, 1)*ops, a.set.batchBytes)
	courses := map[lane]*course{}
	var (
		c  *course
		of lane // of c
	)
	err := eachOperation(parts, func(op *operation) {
		n := a.layout.lane(op.slot)
		if c == nil || n != of {
			if c, of = courses[n], n; c == nil {
				c = &course{at: a.at[n]}
				courses[n] = c
			}
		}
		before := position{l.Lineage, l.Checkpoint, c.operations}
		c.operations++
		after := before
		after.operations++
		if c.at.compare(after) >= 0 {
			return // Redis has it
		}
		b := c.open
		if b != nil && !b.transacted && (len(b.ends) >= a.set.batchOps || len(b.commands)+len(op.command) > a.set.batchBytes) {
			c.at, b = b.next(), nil
		}
		if b == nil {
			b = &batch{lane: n, prev: c.at, log: before}
			if !a.layout.cluster { // else it is one of many
				b.commands, b.ends = make([]byte, 0, bytes), make([]int, 0, ops)
			}
			c.open = b
			*batches = append(*batches, b)
		}
		b.commands = append(b.commands, op.command...)
		b.ends = append(b.ends, len(b.commands))
		b.transacted = op.flags&flagJoined != 0
		if a.layout.cluster {
			for _, k := range op.keys {
				b.keys = append(b.keys, string(op.args()[k]))
			}
		}
	})
	if err != nil {
		return nil, err
	}
	ends := make(map[lane]position, len(courses))
	for n, c := range courses {
		if c.open != nil {
			c.at = c.open.next()
			a.at[n] = c.at
		}
		end := position{l.Lineage, l.Checkpoint, c.operations}
		ends[n] = end
		if m := c.at; m.checkpoint == l.Checkpoint && m.compare(end) > 0 {
			e := &ForeignError{Sink: a.env.Operator(), Restored: a.restored, Key: a.marker(n), Marker: m.String() + fmt.Sprintf(", and its log has %d operations", end.operations), Lanes: 1}
			return nil, &sink.Fatal{Err: e} // a start sees it only when it reads the log
		}
	}
	return ends, nil
}

// mostIdle is how many attempts may get nowhere before there is a pause.
const mostIdle = 8

var errNoProgress = errors.New("the script is forgotten again and again, or others apply the same logs")

// send applies batches, in the order of each lane. It tries until all are applied, or
// there is no use.
func (a *applier) send(ctx context.Context, batches []*batch) error {
	again := a.patience()
	idle := 0 // attempts in a row that got nowhere without an error
	for len(batches) > 0 {
		// What goes in one pipeline.
		n, ops, bytes := 0, 0, 0
		for n < len(batches) && (n == 0 || ops+len(batches[n].ends) <= a.set.inFlight*a.set.batchOps && bytes+len(batches[n].commands) <= a.set.inFlight*a.set.batchBytes) {
			ops, bytes = ops+len(batches[n].ends), bytes+len(batches[n].commands)
			n++
		}
		left, err := a.attempt(ctx, batches[:n])
		if len(left) < n {
			idle = 0
			again.progress()
		}
		if err == nil && len(left) == 0 {
			a.note(nil)
			batches = batches[n:]
			continue
		}
		batches = append(left, batches[n:]...)
		if err == nil {
			// Batches were cut, or the script was loaded. A server that forgets it at once is
			// not to be asked without a pause.
			if idle++; idle <= mostIdle {
				continue
			}
			err = &serverError{kind: ErrUnavailable, err: errNoProgress}
		}
		a.note(err)
		if err := again.again(ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// attempt sends batches in one pipeline and returns those that are left.
func (a *applier) attempt(ctx context.Context, batches []*batch) (left []*batch, failed error) {
	if guard.Broken(guard.MarkerInScript) {
		return a.attemptWithoutScript(ctx, batches)
	}
	author := author(a.env.App(), a.env.Operator(), a.env.Instance(), time.Now())
	cmds := make([]*goredis.Cmd, len(batches))
	for i, b := range batches {
		cmds[i] = a.command(ctx, b, author)
	}
	answers := execute(ctx, a.cl, cmds)
	stuck := map[lane]bool{} // what follows in the lane could not be applied either
	unloaded := false
	for i, b := range batches {
		if stuck[b.lane] {
			left = append(left, b)
			continue
		}
		done, err := false, answers[i]
		switch {
		case err == nil:
			done, err = a.judgeReply(b, cmds[i].Val())
		case noScript(err):
			unloaded, err = true, nil
		default:
			err = classify(err)
		}
		if done {
			continue
		}
		stuck[b.lane] = true
		left = append(left, b)
		if err != nil && (failed == nil || unavailable(failed)) {
			failed = err
		}
	}
	if failed == nil && unloaded {
		failed = loadScript(ctx, a.cl, applyScript)
	}
	return left, failed
}

// command is the script with a batch.
func (a *applier) command(ctx context.Context, b *batch, author string) *goredis.Cmd {
	aside := "0"
	if a.set.deadLetters {
		aside = "1"
	}
	args := make([]any, 0, 13+len(b.keys))
	args = append(args, "EVALSHA", applyScript.sha, 3+len(b.keys), a.marker(b.lane), a.layout.dead(b.lane, a.env.App(), a.env.Operator()), a.openBatches(b.lane))
	for i := range b.keys {
		args = append(args, &b.keys[i])
	}
	args = append(args, b.prev.text(), b.log.log(), b.log.operations, author, aside, b.commands)
	cmd := goredis.NewCmd(ctx, args...)
	cmd.SetFirstKeyPos(3)
	return cmd
}

// judgeReply says whether a batch is applied, by what the script answered. If a part of it
// is, that part is taken out.
func (a *applier) judgeReply(b *batch, reply any) (done bool, err error) {
	vs, _ := reply.([]any)
	number := func(i int) int64 {
		if i < len(vs) {
			if n, ok := vs[i].(int64); ok {
				return n
			}
		}
		return -1
	}
	text := func(i int) string {
		if i < len(vs) {
			if s, ok := vs[i].(string); ok {
				return s
			}
		}
		return ""
	}
	switch number(0) {
	case 1:
		a.count(int64(len(b.ends)), max(0, number(1)))
		return true, nil
	case 2:
		n := int(number(1))
		if n < 0 || n >= len(b.ends) {
			break
		}
		if n > 0 {
			b.trim(n)
			a.count(int64(n), 0)
		} else {
			b.prev = b.log
		}
		err := classifyText(text(2), nil)
		if blamed(err) {
			err = &CommandError{Sink: a.env.Operator(), Checkpoint: b.log.checkpoint, Command: describe(b.commands[:b.ends[0]]), Err: err}
		}
		return false, err
	case 3:
		return false, a.partError(b.lane, text(1))
	case 0:
		var has position
		if s := text(1); s != "" {
			m, err := ParseMarker(a.marker(b.lane), s)
			if err != nil {
				return false, err
			}
			has = m.position()
		}
		switch next := b.next(); {
		case has.lineage == next.lineage && has.compare(next) >= 0:
			return true, nil // an earlier attempt, or somebody else, applied it
		case has.lineage == next.lineage && has.checkpoint == next.checkpoint && has.operations >= b.log.operations && has != b.prev:
			if n := int(has.operations - b.log.operations); n > 0 {
				b.trim(n)
			} else {
				b.prev = b.log
			}
			return false, nil
		case has.compare(b.prev) < 0:
			return false, &tailError{a.env.Operator(), a.marker(b.lane), has, b.prev}
		default:
			return false, &ForeignError{Sink: a.env.Operator(), Restored: a.restored, Key: a.marker(b.lane), Marker: has.String(), Lanes: 1}
		}
	}
	return false, fmt.Errorf("redis: the script answered %v", reply)
}

// attemptWithoutScript is attempt without the guard that it stands on: data first, then the
// marker.
func (a *applier) attemptWithoutScript(ctx context.Context, batches []*batch) ([]*batch, error) {
	for i, b := range batches {
		var cmds []*goredis.Cmd
		begin := 0
		for _, end := range b.ends {
			args, err := commandArgs(b.commands[begin:end])
			if err != nil {
				return batches[i:], err
			}
			boxed := make([]any, len(args))
			for j, arg := range args {
				boxed[j] = arg
			}
			cmds = append(cmds, goredis.NewCmd(ctx, boxed...))
			begin = end
		}
		for _, err := range execute(ctx, a.cl, cmds) {
			if err != nil {
				return batches[i:], classify(err)
			}
		}
		marker := []*goredis.Cmd{goredis.NewCmd(ctx, "SET", a.marker(b.lane), b.next().text()+a.author())}
		if err := execute(ctx, a.cl, marker)[0]; err != nil {
			return batches[i:], classify(err)
		}
		a.count(int64(len(b.ends)), 0)
	}
	return nil, nil
}
