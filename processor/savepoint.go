package processor

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offsets"
)

// ErrNotRunning says that a job was asked for something that only a running one has.
var ErrNotRunning = errors.New("the app is not running")

// SavepointStart says from which savepoint a job begins that has committed nothing yet.
type SavepointStart struct {
	Store checkpoint.Store // nil, and Err too: from none
	Err   error            // why there is no store; a job that does not begin there can do without
	Name  string           // empty: the store itself is the savepoint
	// DropPositions takes the state alone and reads the input from its beginning.
	DropPositions bool
	// AnyApp takes a savepoint of an app with another name.
	AnyApp bool
	// AnyTopics takes positions although the input topics are others of the same names:
	// copies that kept the offsets.
	AnyTopics bool
}

// savepointRequest asks the loop for a committed checkpoint that was cut after the
// request.
type savepointRequest struct{ reply chan held }

// held is a checkpoint that stays where it is until release is called.
type held struct {
	manifest *checkpoint.Manifest
	release  func()
	err      error
}

// life is what is known of the job's present incarnation.
type life struct {
	inc     *incarnation  // nil: none now
	changed chan struct{} // closed when it is another one
	over    bool          // there will be none any more
}

// live notes the present incarnation.
func (j *Job) live(inc *incarnation, over bool) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.now.changed != nil {
		close(j.now.changed)
	}
	if j.now.inc != nil {
		j.status = j.now.inc.report(j.status)
	}
	j.now = life{inc, make(chan struct{}), over}
	if inc != nil && j.killed {
		inc.cancel(ErrKilled)
	}
}

func (j *Job) present() life {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.now
}

// Store is the job's checkpoint store.
func (j *Job) Store() checkpoint.Store { return j.cfg.Store }

// Savepoint takes a checkpoint of the running job and copies it to a savepoint. The job
// goes on meanwhile. An incarnation that fails before the checkpoint is committed, or
// copied, does no harm: the next one is asked. It may be called from any goroutine. Errors are
// ErrNotRunning and those of [checkpoint.CreateSavepoint].
func (j *Job) Savepoint(ctx context.Context, to checkpoint.Store, name string) (checkpoint.SavepointInfo, error) {
	if err := checkpoint.CheckSavepointName(name); err != nil {
		return checkpoint.SavepointInfo{}, err
	}
	for {
		l := j.present()
		if l.over || l.changed == nil {
			return checkpoint.SavepointInfo{}, ErrNotRunning
		}
		h, ok, err := l.ask(ctx)
		if err != nil {
			return checkpoint.SavepointInfo{}, err
		}
		if !ok {
			continue
		}
		if h.err != nil {
			return checkpoint.SavepointInfo{}, h.err
		}
		info, err := checkpoint.CreateSavepoint(ctx, j.cfg.Store, h.manifest, to, name, nil)
		h.release()
		var missing *checkpoint.MissingError
		if errors.As(err, &missing) && l.isOver() {
			continue // the checkpoint was held by an incarnation that has ended: the next one collected it
		}
		return info, err
	}
}

// isOver tells whether there is another incarnation by now, or none.
func (l life) isOver() bool {
	select {
	case <-l.changed:
		return true
	default:
		return false
	}
}

// ask asks the incarnation for a checkpoint; ok is false if it ended before it answered.
func (l life) ask(ctx context.Context) (h held, ok bool, err error) {
	var started, ended <-chan struct{}
	if l.inc != nil {
		started, ended = l.inc.started, l.inc.ctx.Done()
	}
	select {
	case <-started:
	case <-l.changed:
		return held{}, false, nil
	case <-ctx.Done():
		return held{}, false, ctx.Err()
	}
	r := savepointRequest{make(chan held, 1)}
	select {
	case l.inc.events <- r:
	case <-ended:
	case <-ctx.Done():
		return held{}, false, ctx.Err()
	}
	select {
	case h := <-r.reply:
		return h, true, nil
	case <-ended:
	case <-ctx.Done():
		l.inc.forsake(r)
		return held{}, false, ctx.Err()
	}
	select {
	case h := <-r.reply:
		return h, true, nil
	case <-l.changed:
		return held{}, false, nil
	case <-ctx.Done():
		l.inc.forsake(r)
		return held{}, false, ctx.Err()
	}
}

// forsake gives back what a request gets that nobody waits for any more.
func (inc *incarnation) forsake(r savepointRequest) {
	go func() {
		select {
		case h := <-r.reply:
			if h.err == nil {
				h.release()
			}
		case <-inc.ctx.Done():
		}
	}()
}

// StopWithSavepoint stops the job and makes a savepoint of its last checkpoint. Another
// instance of the app must not be waiting to take over: it would go on from there. Run
// returns as after any clean stop. If the job stops in another way the error says so. It
// goes on if there is a savepoint of that name, or if the store can't tell. The savepoint is
// made after Run has returned, see [Job.AwaitSavepoint].
func (j *Job) StopWithSavepoint(ctx context.Context, to checkpoint.Store, name string) (checkpoint.SavepointInfo, error) {
	if err := checkpoint.CheckSavepointName(name); err != nil {
		return checkpoint.SavepointInfo{}, err
	}
	j.mu.Lock()
	stop := j.stop
	j.mu.Unlock()
	if stop == nil {
		return checkpoint.SavepointInfo{}, ErrNotRunning
	}
	select {
	case <-j.ended:
		// Since then others may have gone on from its last checkpoint.
		return checkpoint.SavepointInfo{}, ErrNotRunning
	default:
	}
	if err := checkpoint.CheckSavepointFree(ctx, to, name); err != nil && ctx.Err() == nil {
		return checkpoint.SavepointInfo{}, fmt.Errorf("create savepoint %s in %s: %w; the app was not stopped", name, to, err)
	}
	j.mu.Lock()
	over := j.now.over
	if !over {
		j.copies.Add(1)
		defer j.copies.Done()
	}
	j.mu.Unlock()
	if over { // meanwhile
		return checkpoint.SavepointInfo{}, ErrNotRunning
	}
	stop()
	select {
	case <-j.ended:
	case <-ctx.Done():
		return checkpoint.SavepointInfo{}, ctx.Err()
	}
	if j.result != nil {
		return checkpoint.SavepointInfo{}, fmt.Errorf("no savepoint %s: the app did not stop cleanly: %w", name, j.result)
	}
	if j.head == (offsets.ManifestRef{}) {
		return checkpoint.SavepointInfo{}, fmt.Errorf("no savepoint %s: the app stopped before it had committed anything, or stood by for another instance", name)
	}
	return j.copyHead(ctx, to, name)
}

// forsakeTimeout bounds the wait for a savepoint that was given up. It is longer than what is
// there of it takes to be deleted.
const forsakeTimeout = 15 * time.Second

// copyHead makes a savepoint of the last checkpoint. When ctx ends, a store that is deaf to
// that is left alone after forsakeTimeout: Run would wait for it.
func (j *Job) copyHead(ctx context.Context, to checkpoint.Store, name string) (checkpoint.SavepointInfo, error) {
	type savepoint struct {
		info checkpoint.SavepointInfo
		err  error
	}
	made := make(chan savepoint, 1)
	go func() {
		var s savepoint
		var m *checkpoint.Manifest
		if m, s.err = checkpoint.Load(ctx, j.cfg.Store, j.head); s.err == nil {
			s.info, s.err = checkpoint.CreateSavepoint(ctx, j.cfg.Store, m, to, name, nil)
		}
		made <- s
	}()
	var late <-chan time.Time
	end := ctx.Done()
	for {
		select {
		case s := <-made:
			return s.info, s.err
		case <-end:
			end, late = nil, time.After(forsakeTimeout)
		case <-late:
			return checkpoint.SavepointInfo{}, fmt.Errorf("create savepoint %s: store %s does not answer, and is left alone: %w", name, to, ctx.Err())
		}
	}
}

// AwaitSavepoint waits, when Run has returned, until every [Job.StopWithSavepoint] that
// stopped the job has its savepoint or has given it up: the process must not end before.
// None begins any more. One that was killed waits for nothing.
func (j *Job) AwaitSavepoint() {
	if !errors.Is(j.result, ErrKilled) {
		j.copies.Wait()
	}
}

// answer gives the savepoints that wait for the checkpoint that was just committed what
// they wait for.
func (d *driver) answer() {
	for _, r := range d.cut {
		var h held
		h.manifest, h.release, h.err = d.inc.writer.Hold(d.ref)
		r.reply <- h
	}
	d.cut = nil
}

// given tells whether a savepoint is named.
func (sp SavepointStart) given() bool { return sp.Store != nil || sp.Err != nil }

// missing says that there is no such savepoint, and which there are.
func (sp SavepointStart) missing(ctx context.Context) error {
	list, err := checkpoint.ListSavepoints(ctx, sp.Store)
	if err != nil {
		return classifyStore(err)
	}
	has := "no savepoints"
	var names []string
	for _, s := range list {
		if s.Complete {
			names = append(names, s.Name)
		}
	}
	if len(names) > 0 {
		has = "savepoints " + strings.Join(names, ", ")
	}
	what := fmt.Sprintf("does not have savepoint %q", sp.Name)
	if sp.Name == "" {
		what = "is no savepoint itself, and none of it is named"
	}
	return fatal(fmt.Errorf("start from a savepoint: store %s %s; it has %s: give the store and the name by weir.FromSavepoint, or WEIR_FROM as url#name", sp.Store, what, has))
}

// fromSavepoint begins with the state of a savepoint.
func (inc *incarnation) fromSavepoint(ctx context.Context, committed map[offsets.Partition]offsets.Committed) (recovered, error) {
	sp := inc.cfg.From
	if sp.Err != nil {
		return recovered{}, fatal(fmt.Errorf("start from a savepoint (weir.FromSavepoint, WEIR_FROM): %w", sp.Err))
	}
	m, view, err := checkpoint.OpenSavepoint(ctx, sp.Store, sp.Name)
	if errors.Is(err, checkpoint.ErrNotFound) {
		return recovered{}, sp.missing(ctx)
	}
	if err != nil {
		return recovered{}, classifyStore(err)
	}
	if recreated := inc.recreated(m); len(recreated) > 0 && !sp.DropPositions && !sp.AnyTopics {
		for _, e := range recreated {
			e.Savepoint = view.String()
		}
		return recovered{}, fatal(joined(recreated))
	}
	leaves, _, err := inc.newestRef(ctx, committed)
	if err != nil {
		return recovered{}, err
	}
	last := leaves.Checkpoint
	stored, err := checkpoint.ListManifests(ctx, inc.cfg.Store)
	if err != nil {
		return recovered{}, classifyStore(err)
	}
	spare := last
	if spare == 0 {
		if spare, err = inc.newestOfOthers(ctx, stored); err != nil {
			return recovered{}, err
		}
	}
	last = max(last, m.Checkpoint) // logs to come are newer than those in the savepoint
	// Each start that a sink refuses leaves a checkpoint in the store, and the next one makes
	// another of a higher id. What somebody accepts at one start is meant for the next, so sinks
	// are told an id that stays until something is committed.
	told := last + 1
	last = max(last, highest(stored))
	adopted, ref, err := checkpoint.AdoptSavepoint(ctx, view, m, inc.cfg.Store, checkpoint.AdoptOptions{
		App: inc.cfg.App, Instance: inc.cfg.Instance, KeyGroups: inc.cfg.KeyGroups, AnyApp: sp.AnyApp,
		Checkpoint: last + 1, Incarnation: newNonce(), DropPositions: sp.DropPositions,
	}, nil)
	if err != nil {
		var (
			app *checkpoint.WrongAppError
			kgs *checkpoint.KeyGroupsError
		)
		if errors.As(err, &app) || errors.As(err, &kgs) || errors.Is(err, checkpoint.ErrNotFound) {
			return recovered{}, fatal(err)
		}
		return recovered{}, classifyStore(err)
	}
	inc.cfg.Logger.Sugar().Infof("starting from savepoint %s, checkpoint %d of app %s", view, m.Checkpoint, m.App)
	// Also those of partitions that the group did not assign: Restore waits for them.
	r := recovered{manifest: adopted, ref: ref, last: ref.Checkpoint, told: told, spare: spare, leaves: leaves, mended: true, positions: maps.Clone(adopted.Positions)}
	return r, inc.addNew(ctx, committed, r.positions)
}

// newestOfOthers is the newest of the stored checkpoints for a group that has committed nothing:
// of whom the store was taken from. It has a parent, unlike what starts from savepoints leave
// that were refused.
func (inc *incarnation) newestOfOthers(ctx context.Context, stored []checkpoint.ManifestInfo) (int64, error) {
	for _, s := range slices.Backward(stored) {
		m, _, err := checkpoint.Inspect(ctx, inc.cfg.Store, s.Name)
		if err == nil && m.Parent != (offsets.ManifestRef{}) {
			return s.Checkpoint, nil
		}
		var damaged *checkpoint.DamagedError
		if err != nil && !errors.Is(err, checkpoint.ErrNotFound) && !errors.As(err, &damaged) {
			return 0, classifyStore(err)
		}
	}
	return 0, nil
}
