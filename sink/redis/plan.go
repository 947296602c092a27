package redis

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"go.uber.org/zap"

	"github.com/weirstream/weir/internal/accept"
	"github.com/weirstream/weir/sink"
)

// acceptEnv is the environment variable by which an operator takes Redis as it is.
const acceptEnv = "WEIR_REDIS_ACCEPT"

// LostError says that Redis lost more than the logs that are kept can bring back: the
// marker of a lane is behind the oldest of them, or gone.
type LostError struct {
	Sink     string
	Restored int64 // checkpoint
	Key      string
	Marker   string // how far Redis is
	Oldest   int64  // checkpoint of the oldest log that is kept
	Lanes    int    // how many have this trouble; the fields are those of the first
}

func (e *LostError) Error() string {
	return fmt.Sprintf("sink %q: Redis lost more than is kept: marker %s says %s (%d such markers), and the logs that are kept begin with checkpoint %d"+
		"\n  nothing was applied; restore Redis from a backup that is not older than those logs,"+
		"\n  or go on without what is lost: start once with %s=%s@%d; then what is kept is applied"+
		"\n  if the app had another name or another Options.Prefix before, %s"+
		"\n  redis.Keep sets how much is kept",
		e.Sink, e.Key, e.Marker, e.Lanes, e.Oldest, acceptEnv, e.Sink, e.Restored, renameMarkers)
}

// ForeignError says that a marker in Redis does not belong to the checkpoints of this app:
// another life of the app, begun anew or from another savepoint, applied operations that
// this one knows nothing of, or this one was set back to an older checkpoint.
type ForeignError struct {
	Sink     string
	Restored int64 // checkpoint
	Key      string
	Marker   string // how far Redis is
	Lanes    int    // how many have this trouble; the fields are those of the first
}

func (e *ForeignError) Error() string {
	return fmt.Sprintf("sink %q: Redis has results that checkpoint %d knows nothing of: marker %s says %s (%d such markers)"+
		"\n  the app was begun anew, started from a savepoint, or set back, and Redis was not; or two apps share name, sink and prefix"+
		"\n  to begin anew in Redis as well, delete the keys of the app and the markers and start again"+
		"\n  to apply what follows on top of what is there, start once with %s=%s@%d",
		e.Sink, e.Restored, e.Key, e.Marker, e.Lanes, acceptEnv, e.Sink, e.Restored)
}

// NoMarkerError says that Redis has no marker of the sink, and yet has applied its logs, or
// may have: the app has another name than the one whose savepoint it started from, or
// [Options.Prefix] was changed. It would apply them again.
type NoMarkerError struct {
	Sink     string
	Restored int64  // checkpoint
	Key      string // the marker that is missing
	Found    string // one under another prefix; empty: none, but the logs are of another life of the app
}

func (e *NoMarkerError) Error() string {
	why := "logs of before the app was begun from a savepoint or from positions that somebody chose are to be applied"
	if e.Found != "" {
		why = "Options.Prefix was changed: marker " + e.Found + " says how far these logs are applied"
	}
	return fmt.Sprintf("sink %q: Redis has no marker %s, but %s"+
		"\n  nothing was applied; if the app, or the one that the savepoint is of, used this Redis under another name or prefix, %s;"+
		"\n  if none of it was applied to this Redis, or Redis was emptied, start once with %s=%s@%d: then all that is kept is applied",
		e.Sink, e.Key, why, renameMarkers, acceptEnv, e.Sink, e.Restored)
}

// renameMarkers says how an app goes on with the markers of another name.
const renameMarkers = "stop that one and give its markers the names of this one: RENAME in Redis, \"weir redis markers\" lists them"

// PartError says that Redis did a part of a batch twice. It does so when it was killed while
// it wrote a transaction to its append-only file, so that the file ends in the middle of
// one of its commands. Redis then cuts the file in front of that command and leaves the
// begin of the transaction there. What is written next goes behind it, and a later start
// does the begin of the batch, and then the whole of it. "Redis that is killed" in
// docs/operations.md says how to start Redis so that this can't happen.
type PartError struct {
	Sink     string
	Restored int64  // checkpoint
	Key      string // the list that says it
	Batch    string // where the batch begins
	Lanes    int    // how many have this trouble; the fields are those of the first
}

func (e *PartError) Error() string {
	return fmt.Sprintf("sink %q: Redis did a part of a batch twice: list %s says that a batch was begun and not ended, behind %s (%d such lists)"+
		"\n  Redis was killed while it wrote its append-only file, and started with half of that batch in it; see \"Redis that is killed\" in docs/operations.md"+
		"\n  the first operations behind that one may have been done twice; nothing is applied any more"+
		"\n  mend the data, or restore Redis from a backup; to go on then, start once with %s=%s@%d",
		e.Sink, e.Key, e.Batch, e.Lanes, acceptEnv, e.Sink, e.Restored)
}

// tailError says that Redis lost its tail while the app ran. The next incarnation brings
// it back from the logs.
type tailError struct {
	sink, key  string
	has, wants position
}

func (e *tailError) Error() string {
	return fmt.Sprintf("sink %q: Redis lost what was applied: marker %s says %v, it was at %v; it is brought back from the logs", e.sink, e.key, e.has, e.wants)
}

// lanes lists the lanes that there can be.
func (l layout) lanes() []lane {
	if !l.cluster {
		return []lane{0}
	}
	if _, ok := hashTag([]byte(l.prefix)); ok {
		return []lane{lane(slotOf([]byte(l.prefix)))}
	}
	all := make([]lane, slots)
	for i := range all {
		all[i] = lane(i)
	}
	return all
}

// mark is a marker as it stands in Redis.
type mark struct {
	position
	text string
}

// markers reads the markers of all lanes.
func (a *applier) markers(ctx context.Context) (map[lane]mark, error) {
	return a.marksOf(ctx, a.layout.lanes())
}

// marksOf reads the markers of some lanes.
func (a *applier) marksOf(ctx context.Context, lanes []lane) (map[lane]mark, error) {
	found := map[lane]mark{}
	err := a.ask(ctx, lanes, "reading marker", a.marker, func(n lane, reply any) error {
		text, ok := reply.(string)
		if !ok {
			return nil // there is none
		}
		m, err := ParseMarker(a.marker(n), text)
		found[n] = mark{m.position(), text}
		return err
	}, "GET")
	if err != nil {
		return nil, err
	}
	return found, nil
}

// openOf looks for batches of some lanes that were begun and not ended, and returns a
// [PartError] if there are any.
func (a *applier) openOf(ctx context.Context, lanes []lane) error {
	var part *PartError
	err := a.ask(ctx, lanes, "reading list", a.openBatches, func(n lane, reply any) error {
		if text, ok := reply.(string); ok {
			if part == nil {
				part = a.partError(n, text)
			} else {
				part.Lanes++
			}
		}
		return nil
	}, "LINDEX", 0)
	if err == nil && part != nil {
		return part
	}
	return err
}

// closeBatches forgets the batches that were begun and not ended.
func (a *applier) closeBatches(ctx context.Context) error {
	return a.ask(ctx, a.layout.lanes(), "deleting list", a.openBatches, func(lane, any) error { return nil }, "DEL")
}

// ask does a command on a key of each of some lanes, and gives the replies to use. doing
// says in an error what it was for.
func (a *applier) ask(ctx context.Context, lanes []lane, doing string, key func(lane) string, use func(n lane, reply any) error, command string, args ...any) error {
	const atOnce = 1024
	for some := range slices.Chunk(lanes, atOnce) {
		cmds := make([]*goredis.Cmd, len(some))
		for i, n := range some {
			cmds[i] = goredis.NewCmd(ctx, append([]any{command, key(n)}, args...)...)
		}
		for i, err := range execute(ctx, a.cl, cmds) {
			if err != nil {
				return fmt.Errorf("%s %s: %w", doing, key(some[i]), classify(err))
			}
			if err := use(some[i], cmds[i].Val()); err != nil {
				return err
			}
		}
	}
	return nil
}

func (a *applier) partError(n lane, batch string) *PartError {
	e := &PartError{Sink: a.env.Operator(), Restored: a.restored, Key: a.openBatches(n), Batch: batch, Lanes: 1}
	if s, ok := parseStamp(batch); ok {
		e.Batch = position{s.lineage, s.checkpoint, s.operations}.String()
	}
	return e
}

func (a *applier) openBatches(n lane) string {
	return a.layout.open(n, a.env.App(), a.env.Operator())
}

func (a *applier) marker(n lane) string { return a.layout.marker(n, a.env.App(), a.env.Operator()) }

// plan finds out where Redis is, and queues the logs from there on. It may be called again
// after an error.
func (a *applier) plan(ctx context.Context) error {
	if err := a.opts.verify(ctx, a.cl); err != nil {
		return err
	}
	if err := a.openOf(ctx, a.layout.lanes()); err != nil {
		if err := a.overruled(ctx, err); err != nil {
			return err
		}
		if err := a.closeBatches(ctx); err != nil {
			return err
		}
	}
	marks, err := a.markers(ctx)
	if err != nil {
		return err
	}
	b, logs, err := a.origin(ctx, marks)
	if err == nil {
		err = a.judge(ctx, b, logs, marks)
	}
	if err != nil {
		if err := a.overruled(ctx, err); err != nil {
			return err
		}
		if err := a.accept(ctx, marks); err != nil {
			return err
		}
		if marks, err = a.markers(ctx); err == nil {
			if b, logs, err = a.origin(ctx, marks); err == nil {
				err = a.judge(ctx, b, logs, marks)
			}
		}
		if err != nil {
			return err
		}
	}
	if len(marks) == 0 {
		if err := a.appliedElsewhere(ctx, logs); err != nil {
			if err := a.overruled(ctx, err); err != nil {
				return err
			}
		}
	}
	a.at = map[lane]position{}
	for n, m := range marks {
		a.at[n] = m.position
	}
	a.recent = newest(marks)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.base, a.based = b.clone(), true
	a.stamp()
	a.queue = append(logs[:len(logs):len(logs)], a.queue...)
	for _, l := range logs {
		a.pending.Add(l.Bytes)
	}
	a.status.Applied, a.status.Err = b.checkpoint, nil
	a.planned, a.restore = true, nil
	close(a.changed)
	a.changed = make(chan struct{})
	return nil
}

// newest lists the lanes whose markers are the newest, as many as are looked at while there
// is nothing to do.
func newest(marks map[lane]mark) []lane {
	lanes := slices.SortedFunc(maps.Keys(marks), func(x, y lane) int { return marks[y].compare(marks[x].position) })
	return lanes[:min(len(lanes), mostRecent)]
}

// origin finds the newest base that Redis is not behind, and the logs after it.
func (a *applier) origin(ctx context.Context, marks map[lane]mark) (base, []sink.Log, error) {
	for i := len(a.restore) - 1; i >= 0; i-- {
		bs, err := a.basesOf(ctx, a.restore[i])
		if err != nil {
			return base{}, nil, err
		}
		for _, b := range bs {
			if behind(b, marks) == 0 {
				return b, a.following(b), nil
			}
		}
	}
	first, err := a.first(ctx)
	if err != nil {
		return base{}, nil, err
	}
	if n := behind(first, marks); n > 0 {
		e := &LostError{Sink: a.env.Operator(), Restored: a.restored, Oldest: a.restore[0].Checkpoint, Lanes: n}
		for l, p := range first.lanes {
			if m := marks[l]; m.compare(p) < 0 {
				e.Key, e.Marker = a.marker(l), m.position.String()
				break
			}
		}
		return base{}, nil, e
	}
	return first, a.following(first), nil
}

// first is the oldest base that is known: that of the oldest log that has one, or the
// beginning if nothing was given up yet.
func (a *applier) first(ctx context.Context) (base, error) {
	none := base{lanes: map[lane]position{}}
	if len(a.restore) == 0 {
		none.checkpoint = a.restored
		return none, nil
	}
	if a.restore[0].After == 0 {
		none.checkpoint = a.restore[0].Checkpoint - 1
		return none, nil
	}
	for _, l := range a.restore {
		bs, err := a.basesOf(ctx, l)
		if err != nil {
			return base{}, err
		}
		if len(bs) > 0 {
			return bs[len(bs)-1], nil
		}
	}
	return base{}, logError("no log since checkpoint %d says what came before it", a.restore[0].Checkpoint)
}

// basesOf reads the bases of a log, newest first, as far as the logs after them are kept.
func (a *applier) basesOf(ctx context.Context, l sink.Log) ([]base, error) {
	parts, err := readParts(ctx, l)
	if err != nil {
		return nil, err
	}
	var bs []base
	for i := len(parts) - 1; i >= 0; i-- {
		if b := parts[i].base; b != nil && a.complete(*b) {
			bs = append(bs, *b)
		}
	}
	return bs, nil
}

// complete tells whether all logs after a base are there.
func (a *applier) complete(b base) bool {
	logs := a.following(b)
	return len(logs) == 0 || logs[0].After <= b.checkpoint
}

// following are the restored logs after a base.
func (a *applier) following(b base) []sink.Log {
	for i, l := range a.restore {
		if l.Checkpoint > b.checkpoint {
			return a.restore[i:]
		}
	}
	return nil
}

// behind counts the lanes in which Redis is behind a base.
func behind(b base, marks map[lane]mark) int {
	n := 0
	for l, p := range b.lanes {
		if marks[l].compare(p) < 0 {
			n++
		}
	}
	return n
}

// judge refuses markers that do not belong to the base and the logs after it.
func (a *applier) judge(_ context.Context, b base, logs []sink.Log, marks map[lane]mark) error {
	lineages := map[int64]string{}
	for _, l := range logs {
		if l.Bytes > 0 {
			lineages[l.Checkpoint] = l.Lineage
		}
	}
	var e *ForeignError
	for _, n := range a.layout.lanes() {
		m, ok := marks[n]
		if !ok || m.position == b.lanes[n] {
			continue
		}
		if m.checkpoint > b.checkpoint && m.lineage == lineages[m.checkpoint] {
			continue // in the log; how far is seen when it is read
		}
		if e == nil {
			e = &ForeignError{Sink: a.env.Operator(), Restored: a.restored, Key: a.marker(n), Marker: m.position.String()}
		}
		e.Lanes++
	}
	if e != nil {
		return e
	}
	return nil
}

// appliedElsewhere is asked if Redis has no marker. It returns a [NoMarkerError] if the logs
// to be applied may have been applied under a marker of another name. A Redis that is
// empty, or never had anything, has no such marker either.
func (a *applier) appliedElsewhere(ctx context.Context, logs []sink.Log) error {
	seen := map[lane]bool{}
	var (
		lanes  []lane // that the logs have operations for
		common []byte // what all their keys begin with
	)
	for _, l := range logs {
		parts, err := readParts(ctx, l)
		if err != nil {
			return err
		}
		err = eachOperation(parts, func(op *operation) {
			if n := a.layout.lane(op.slot); !seen[n] {
				seen[n] = true
				lanes = append(lanes, n)
			}
			args := op.args()
			if common == nil {
				common = args[op.keys[0]]
			}
			for _, k := range op.keys {
				common = commonPrefix(common, args[k])
			}
		})
		if err != nil {
			return err
		}
		if len(lanes) > 0 && l.Lineage != a.env.Lineage() {
			return &NoMarkerError{Sink: a.env.Operator(), Restored: a.restored, Key: a.marker(lanes[0])}
		}
	}
	// The keys have the prefix with which they were logged.
	for n := range len(common) + 1 {
		before := layout{string(common[:n]), a.layout.cluster}
		if before == a.layout {
			continue // another process may have begun meanwhile
		}
		marker := func(n lane) string { return before.marker(n, a.env.App(), a.env.Operator()) }
		var e *NoMarkerError
		err := a.ask(ctx, lanes, "reading marker", marker, func(n lane, reply any) error {
			if _, ok := reply.(string); ok {
				e = &NoMarkerError{Sink: a.env.Operator(), Restored: a.restored, Key: a.marker(n), Found: marker(n)}
			}
			return nil
		}, "GET")
		if e != nil {
			return e
		}
		// Who may not read it has not written there.
		if err != nil && !errors.Is(err, ErrPermission) {
			return err
		}
	}
	return nil
}

// commonPrefix returns what both begin with.
func commonPrefix(a, b []byte) []byte {
	n := 0
	for n < min(len(a), len(b)) && a[n] == b[n] {
		n++
	}
	return a[:n]
}

// overruled returns nil if err says that Redis does not fit, and the operator takes it as it
// is; else what plan ends with. To a process that was replaced, what its successor did
// looks like another life of the app, so it asks before it believes that.
func (a *applier) overruled(ctx context.Context, err error) error {
	var (
		lost    *LostError
		foreign *ForeignError
		missing *NoMarkerError
		part    *PartError
	)
	if !errors.As(err, &lost) && !errors.As(err, &foreign) && !errors.As(err, &missing) && !errors.As(err, &part) {
		return err
	}
	if replaced := a.env.Confirm(ctx); replaced != nil {
		return &sink.Retriable{Err: fmt.Errorf("%w; %v", replaced, err)}
	}
	if !a.accepted() {
		return err
	}
	a.env.Logger().Warn("taking Redis as it is, as asked", zap.String("sink", a.env.Operator()), zap.Error(err))
	return nil
}

// accepted tells whether the operator takes Redis as it is at this checkpoint.
func (a *applier) accepted() bool {
	return accept.Given(acceptEnv, a.env.Operator(), a.restored)
}

// accept moves the markers that don't fit. One that is behind the oldest base is moved up to
// it, so that all that is kept is applied. One that is foreign is moved to the end of the
// logs, so that nothing that is committed is applied on top of what it stands for.
func (a *applier) accept(ctx context.Context, marks map[lane]mark) error {
	first, err := a.first(ctx)
	if err != nil {
		return err
	}
	ends := first.clone()
	lineages := map[int64]string{}
	for _, l := range a.following(first) {
		end, _, err := lanesOf(ctx, a.layout, l)
		if err != nil {
			return err
		}
		for n, p := range end {
			ends.lanes[n] = p
		}
		if l.Bytes > 0 {
			lineages[l.Checkpoint] = l.Lineage
		}
	}
	for _, n := range a.layout.lanes() {
		m, p := marks[n], first.lanes[n]
		switch {
		case m.compare(p) < 0:
		case m.position == p, m.checkpoint > first.checkpoint && m.lineage == lineages[m.checkpoint]:
			continue
		default:
			p = ends.lanes[n]
		}
		text := ""
		if p != (position{}) {
			text = p.text() + a.author()
		}
		cmd := []*goredis.Cmd{goredis.NewCmd(ctx, "EVAL", moveScript, 1, a.marker(n), m.text, text)}
		if err := execute(ctx, a.cl, cmd)[0]; err != nil {
			return fmt.Errorf("moving marker %s: %w", a.marker(n), classify(err))
		}
		if moved, _ := cmd[0].Val().(int64); moved != 1 {
			return &sink.Retriable{Err: fmt.Errorf("moving marker %s: somebody else moved it", a.marker(n))}
		}
	}
	return nil
}

// author is the end of the text of markers that this incarnation moves now.
func (a *applier) author() string {
	return author(a.env.App(), a.env.Operator(), a.env.Instance(), time.Now())
}

// moveScript sets a marker, or deletes it, if it is what it was.
const moveScript = `
if (redis.call('GET', KEYS[1]) or '') ~= ARGV[1] then return 0 end
if ARGV[2] == '' then redis.call('DEL', KEYS[1]) else redis.call('SET', KEYS[1], ARGV[2]) end
return 1`
