package checkpoint

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/offsets"
)

// Garbage collection deletes an object if
//
//	(1) the checkpoint id in its name is lower than that of the oldest retained
//	    checkpoint, and
//	(2) no retained manifest, no pending one and no merge refers to it, and
//	(3) something was committed on a base that wasn't, or the id is higher than what was
//	    committed before (Config.Spare).
//
// Why a zombie can't harm its successor. Let Z be a writer that still runs although
// its instance was replaced, and N the writer of the new owner. Let z be the last
// checkpoint that Z knows to be committed; Z retains it. Z can commit no more, so the
// checkpoint c that N restored is z or a later one: later only if others committed
// in between, or Z itself and it hasn't heard of it. Take any object x that N's
// manifests refer to, now or ever:
//
//   - x is of c's chain and was inherited through z: then z refers to it, or is it,
//     and Z spares it by (2).
//   - x came after z, in c's chain or by N's own hand: segments, logs and manifests carry
//     the id of their checkpoint, higher than z's, and merged segments the id of the
//     checkpoint that they were merged on, z's or a higher one. As the oldest that Z
//     retains is not younger than z, Z spares x by (1).
//
// It rests on ids that only grow, and on names that nobody writes twice. What Z may
// delete is a fallback that N retains because it is configured to retain more. A
// person who restores an older checkpoint by force must stop all processes first.
//
// A store holds one lineage: one writer at a time, and its successors.
//
// Listing a store is slow and costs money. So it happens once per incarnation, to
// find what crashes left behind; from then on garbage is what manifests that fall
// out of retention name and what failed attempts wrote.

// collectState is guarded by Writer.mu.
type collectState struct {
	wanted   bool
	recover  bool             // the store is to be listed and base's ancestors to be found
	retained []retained       // committed checkpoints, oldest first; the last one is base
	held     []*retained      // what somebody copies
	garbage  map[string]int64 // objects to look at, with the checkpoint id in their name
}

type retained struct {
	manifest *Manifest
	ref      offsets.ManifestRef
}

// named returns the reference whose checkpoint id and incarnation a merged segment
// made now has in its name. It is called with w.mu held.
func (w *Writer) named() offsets.ManifestRef {
	return offsets.ManifestRef{Checkpoint: w.baseRef.Checkpoint, Incarnation: w.cfg.Incarnation}
}

// retain makes a committed checkpoint the newest of those kept. It is called with
// w.mu held.
func (w *Writer) retain(m *Manifest, ref offsets.ManifestRef) {
	w.collect.retained = append(w.collect.retained, retained{m, ref})
	w.dropExpired()
}

// dropExpired turns what fell out of retention into garbage. It is called with w.mu
// held.
func (w *Writer) dropExpired() {
	c := &w.collect
	for len(c.retained) > w.cfg.Retain {
		old := c.retained[0]
		c.retained = slices.Delete(c.retained, 0, 1)
		c.garbage[manifestObject(old.ref)] = old.ref.Checkpoint
		for name := range old.manifest.objects {
			if id, _, ok := parseObject(name); ok {
				c.garbage[name] = id
			}
		}
	}
}

// inUse returns the names of all objects that must stay. It is called with w.mu held.
func (w *Writer) inUse() map[string]bool {
	used := map[string]bool{}
	add := func(m *Manifest, ref offsets.ManifestRef) {
		used[manifestObject(ref)] = true
		for name := range m.objects {
			used[name] = true
		}
	}
	for _, r := range w.collect.retained {
		add(r.manifest, r.ref)
	}
	for _, r := range w.collect.held {
		add(r.manifest, r.ref)
	}
	if w.pending != nil {
		add(w.pending.manifest, w.pending.ref)
	}
	for _, m := range w.merge.merges {
		for _, s := range m.inputs {
			used[s.Object] = true
		}
		for _, name := range m.names {
			used[name] = true
		}
	}
	return used
}

func (w *Writer) runCollector() { w.background(&w.collect.wanted, w.collectOnce) }

func (w *Writer) collectOnce(ctx context.Context) {
	w.mu.Lock()
	deferred := w.deferred
	w.deferred = nil
	recover := w.collect.recover
	w.mu.Unlock()
	err := w.putDeferred(ctx, deferred)
	if recover {
		if d, ok := w.cfg.Store.(*Dir); ok {
			_, terr := d.removeTemps(ctx, w.cfg.Now())
			err = errors.Join(err, terr)
		}
		// If the store can't be read now, the next checkpoint tries again; without
		// the ancestors nothing may be deleted.
		if rerr := w.recoverGarbage(ctx); rerr != nil {
			w.collected(ctx, 0, errors.Join(err, rerr))
			return
		}
	}
	n, derr := w.deleteGarbage(ctx)
	w.collected(ctx, n, errors.Join(err, derr))
}

func (w *Writer) collected(ctx context.Context, n int, err error) {
	if l := w.cfg.Listener.Collected; l != nil && ctx.Err() == nil && (n > 0 || err != nil) {
		l(event.Collected{App: w.cfg.App, Deleted: n, Err: err})
	}
}

// deleteGarbage deletes what may go, manifests first: a manifest that is there, and can be
// deleted, should have its segments.
func (w *Writer) deleteGarbage(ctx context.Context) (int, error) {
	var pinned []string
	if w.cfg.Pinned != nil {
		pinned = w.cfg.Pinned()
	}
	w.mu.Lock()
	c := &w.collect
	var names []string
	if len(c.retained) > 0 {
		oldest := c.retained[0].ref.Checkpoint
		spare := int64(0)
		if w.base == w.cfg.Base {
			spare = w.cfg.Spare
		}
		used := w.inUse()
		for _, name := range pinned {
			used[name] = true
		}
		for name, id := range c.garbage {
			if id < oldest && id > spare && (!used[name] || guard.Broken(guard.InUse)) {
				names = append(names, name)
			}
		}
	}
	w.mu.Unlock()
	if len(names) == 0 {
		return 0, nil
	}
	slices.SortFunc(names, deletedBefore)
	crashpoint.Hit(crashpoint.BeforeGC)
	n := 0
	err := deleteAll(ctx, w.cfg.Store, names, func(i int) {
		if n++; n == 1 {
			crashpoint.Hit(crashpoint.InGC)
		}
		w.mu.Lock()
		delete(c.garbage, names[i])
		w.mu.Unlock()
	})
	return n, wrap("collect garbage", err) // what could not be deleted stays garbage
}

// maxDeleteErrors is how many of the objects that can't be deleted are named.
const maxDeleteErrors = 8

// deleteAll deletes objects and says which ones it deleted. One that can't be deleted, as it
// may be locked, does not keep the others; a store that is away ends it.
func deleteAll(ctx context.Context, store Store, names []string, deleted func(i int)) error {
	var errs []error
	more := 0
	for i, name := range names {
		err := store.Delete(ctx, name)
		switch {
		case err == nil:
			deleted(i)
		case !answers(ctx, store, name):
			return errors.Join(append(errs, err)...)
		case len(errs) < maxDeleteErrors:
			errs = append(errs, err)
		default:
			more++
		}
	}
	if more > 0 {
		errs = append(errs, fmt.Errorf("%d more objects in %s could not be deleted", more, store))
	}
	return errors.Join(errs...)
}

// answers tells whether a store can be read.
func answers(ctx context.Context, store Store, object string) bool {
	_, err := store.GetRange(ctx, object, 0, 1)
	return err == nil || errors.Is(err, ErrNotFound) || errors.Is(err, io.ErrUnexpectedEOF)
}

// recoverGarbage finds the checkpoints that are retained before base, by way of
// their parents, and everything else in the store.
func (w *Writer) recoverGarbage(ctx context.Context) error {
	ancestors, err := w.ancestors(ctx)
	if err != nil {
		return err
	}
	found := map[string]int64{}
	for _, prefix := range []string{manifestPrefix, segmentPrefix, logPrefix, inFlightPrefix} {
		for o, err := range w.cfg.Store.List(ctx, prefix) {
			if err != nil {
				return fmt.Errorf("collect garbage: %w", err)
			}
			// Among them is what we made ourselves since we began, and what a writer
			// that we replaced makes: rules (1) and (2) hold for all of it.
			if id, _, ok := parseObject(o.Name); ok {
				found[o.Name] = id
			}
		}
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	c := &w.collect
	c.retained = append(ancestors, c.retained...)
	for name, id := range found {
		c.garbage[name] = id
	}
	c.recover = false
	w.dropExpired()
	return nil
}

// ancestors loads the committed checkpoints before the base, oldest first, as many as
// are retained. The line ends where one was collected.
func (w *Writer) ancestors(ctx context.Context) ([]retained, error) {
	return ancestors(ctx, w.cfg.Store, w.cfg.Base.Parent, w.cfg.Retain-1)
}

func ancestors(ctx context.Context, store Store, parent offsets.ManifestRef, n int) ([]retained, error) {
	var line []retained
	for len(line) < n && parent != (offsets.ManifestRef{}) {
		m, err := Load(ctx, store, parent)
		var missing *MissingError
		var damaged *DamagedError
		if errors.As(err, &missing) || errors.As(err, &damaged) {
			break // it can't be restored, so nothing is kept for its sake
		}
		if err != nil {
			return nil, fmt.Errorf("collect garbage: %w", err)
		}
		line = append(line, retained{m, parent})
		parent = m.Parent
	}
	slices.Reverse(line)
	return line, nil
}

// CollectOptions says what [Collect] must leave alone.
type CollectOptions struct {
	// Live are the checkpoints that committed offsets name: of each pointer of the group
	// that owns the store, see [CheckOwner], read stably, the manifest. There must be at
	// least one, and all must be there. The pointers of a topic that the app does not read any
	// more stay in the group: leave one out when its checkpoint is gone and the newest has no
	// positions of the topic.
	Live []offsets.ManifestRef
	// Retain is how many committed checkpoints are kept for each of them, as in Config.
	Retain int
	// Grace is how old an object must be, as in Config: at least as long as that of any
	// writer of the store.
	Grace time.Duration
	// Pinned names objects that stay in any case.
	Pinned []string
	DryRun bool // report only
	// Now is the clock of the store, with which the age of objects is told. Default is what
	// the store says of an object that Collect writes and deletes: the clock of this machine
	// may be ahead. If the store is full it is when the newest object was written. With DryRun,
	// which writes nothing, it is the clock of this machine.
	Now func() time.Time
}

// CollectReport says what [Collect] deleted, or would delete.
type CollectReport struct {
	Deleted []Object
	Bytes   int64 // of them
	Kept    int   // objects that are of use, or may be
	Temps   int   // temporary files of a directory store that crashes left behind
}

// Collect deletes the garbage of a store from outside, also beside running writers: what
// crashes left behind of instances that never come back. A writer collects its own.
//
// It deletes what a writer would, by rules (1) and (2) above, with the retained
// checkpoints of all live pointers in place of its own. It doesn't know what a writer is
// about to name. That are results of merges, whose id may be lower than that of the
// oldest retained checkpoint if the merge took long; what else is not yet named has a
// higher id. So
//
//	(4) it leaves alone what is younger than the grace period, and what manifests
//	    refer to that are younger or that aren't older than the retained ones,
//
// and a writer names no result of a merge that began to be written more than half the
// grace period ago. As segments are listed before manifests, what a manifest names that
// was written after they were listed is younger than the grace period when it is looked
// at; the same goes for logs. Half a grace period is also how long a writer may be paused between choosing the
// chain of a checkpoint and committing it; brokers end a transaction long before.
//
// Savepoints are never touched. Errors are those of [Load] and *StoreError. An object that
// can't be deleted doesn't keep the others; the report says what was deleted beside it.
func Collect(ctx context.Context, store Store, o CollectOptions) (CollectReport, error) {
	r, err := collect(ctx, store, o)
	return r, wrap("collect garbage in "+store.String(), err)
}

func collect(ctx context.Context, store Store, o CollectOptions) (r CollectReport, err error) {
	o.Retain, o.Grace = cmp.Or(o.Retain, DefaultRetain), cmp.Or(o.Grace, DefaultGrace)
	if len(o.Live) == 0 {
		return r, errors.New("no live checkpoint is named, so nothing can be called garbage: does the group have committed offsets?")
	}
	if o.Retain < 0 || o.Grace < 0 {
		return r, fmt.Errorf("retain %d checkpoints, grace %v: want more than nothing, or 0 for %d and %v", o.Retain, o.Grace, DefaultRetain, DefaultGrace)
	}
	now, err := o.now(ctx, store)
	full := errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT)
	if err != nil && !full {
		return r, err
	}
	used := map[string]bool{}
	for _, name := range o.Pinned {
		used[name] = true
	}
	use := func(m *Manifest, object string) {
		used[object] = true
		for name := range m.objects {
			used[name] = true
		}
	}
	oldest := int64(math.MaxInt64)
	for _, ref := range o.Live {
		m, err := Load(ctx, store, ref)
		if err != nil {
			return r, err
		}
		line, err := ancestors(ctx, store, m.Parent, o.Retain-1)
		if err != nil {
			return r, err
		}
		for _, a := range append(line, retained{m, ref}) {
			use(a.manifest, manifestObject(a.ref))
			oldest = min(oldest, a.ref.Checkpoint)
		}
	}
	var found []Object
	for _, prefix := range []string{segmentPrefix, logPrefix, inFlightPrefix, manifestPrefix} { // the manifests last, see above
		for object, err := range store.List(ctx, prefix) {
			if err != nil {
				return r, err
			}
			found = append(found, object)
			if full && object.Modified.After(now) {
				now = object.Modified // it is that late at least, so fewer objects pass for old
			}
		}
	}
	old := func(object Object) bool { return now.Sub(object.Modified) > o.Grace }
	for _, object := range found {
		id, _, ok := parseObject(object.Name)
		if !ok || !strings.HasPrefix(object.Name, manifestPrefix) || id < oldest && old(object) {
			continue
		}
		m, _, err := Inspect(ctx, store, object.Name)
		var missing *MissingError
		var damaged *DamagedError
		switch {
		case errors.As(err, &missing): // its writer was faster
		case errors.As(err, &damaged): // it can't be restored, so nothing is kept for its sake
			used[object.Name] = true
		case err != nil:
			return r, err
		default:
			use(m, object.Name)
		}
	}
	var garbage []Object
	for _, object := range found {
		id, _, ok := parseObject(object.Name)
		if ok && id < oldest && old(object) && !used[object.Name] {
			garbage = append(garbage, object)
			continue
		}
		r.Kept++
	}
	slices.SortFunc(garbage, func(a, b Object) int { return deletedBefore(a.Name, b.Name) })
	deleted := func(i int) {
		r.Deleted = append(r.Deleted, garbage[i])
		r.Bytes += garbage[i].Size
	}
	if o.DryRun {
		for i := range garbage {
			deleted(i)
		}
		return r, nil
	}
	names := make([]string, len(garbage))
	for i, object := range garbage {
		names[i] = object.Name
	}
	err = deleteAll(ctx, store, names, deleted)
	if d, ok := store.(*Dir); ok {
		var terr error
		r.Temps, terr = d.removeTemps(ctx, now)
		err = errors.Join(err, terr)
	}
	return r, err
}

// now returns what time it is by the clock of the store.
func (o *CollectOptions) now(ctx context.Context, store Store) (time.Time, error) {
	switch {
	case o.Now != nil:
		return o.Now(), nil
	case o.DryRun:
		return time.Now(), nil
	}
	return storeTime(ctx, store)
}

// deletedBefore orders names so that manifests come first: a manifest that is there
// should have its segments.
func deletedBefore(a, b string) int {
	if am, bm := strings.HasPrefix(a, manifestPrefix), strings.HasPrefix(b, manifestPrefix); am != bm {
		if am {
			return -1
		}
		return 1
	}
	return strings.Compare(a, b)
}
