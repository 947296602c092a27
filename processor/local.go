package processor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"go.uber.org/zap"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
	"github.com/weirstream/weir/txn"
)

// openLocal opens the local store, if the job has one. It outlives incarnations: what
// is committed stays right whatever happens to a run.
func (j *Job) openLocal() error {
	if j.cfg.Backend.Dir == "" {
		return nil
	}
	opts := j.cfg.Backend.Options
	if opts.Logger == nil {
		opts.Logger = j.cfg.Logger.WithOptions(zap.IncreaseLevel(zap.WarnLevel))
	}
	progress := opts.Progress
	opts.Progress = func(p pebble.Progress) {
		j.cfg.Listener.StateCopied(event.StateCopied{App: j.cfg.App, Objects: p.Segments, Bytes: p.Bytes, Left: p.Left, Done: p.Done, Err: p.Err})
		if progress != nil {
			progress(p)
		}
	}
	store, err := pebble.Open(j.cfg.Backend.Dir, j.cfg.App, opts)
	if err != nil {
		return err
	}
	j.local = store
	return nil
}

// localID names a checkpoint as the local store does.
func localID(lineage string, ref offsets.ManifestRef) pebble.ID {
	if ref == (offsets.ManifestRef{}) {
		return pebble.ID{}
	}
	return pebble.ID{Lineage: lineage, Checkpoint: ref.Checkpoint, Incarnation: ref.Incarnation, Hash: ref.Hash}
}

// localChain describes the segments of a checkpoint to the local store.
func localChain(m *checkpoint.Manifest) []pebble.Segment {
	chain := make([]pebble.Segment, len(m.Segments))
	for i, s := range m.Segments {
		chain[i] = pebble.Segment{Object: s.Object, Offset: s.Offset, Length: s.Length, CRC32C: s.CRC32C, MinKG: s.MinKG, MaxKG: s.MaxKG}
	}
	return chain
}

// objects shows the checkpoint store to the local store.
type objects struct{ checkpoint.Store }

// Path implements [pebble.Objects].
func (o objects) Path(object string) (string, bool) {
	if local, ok := o.Store.(interface {
		File(object string) (string, bool)
	}); ok {
		return local.File(object)
	}
	return "", false
}

// GetRange implements [pebble.Objects]. What is not there is missing for good: nobody
// deletes what a checkpoint that is restored needs.
func (o objects) GetRange(ctx context.Context, object string, offset, length int64) ([]byte, error) {
	b, err := o.Store.GetRange(ctx, object, offset, length)
	if errors.Is(err, checkpoint.ErrNotFound) {
		err = &checkpoint.MissingError{Object: object, Store: o.Store.String(), Err: err}
	}
	return b, err
}

// attach makes the local store equal the checkpoint that is restored.
func (inc *incarnation) attach(ctx context.Context, at recovered, info *event.Restored) error {
	var (
		want  pebble.ID
		chain []pebble.Segment
	)
	if at.manifest != nil {
		want, chain = localID(at.manifest.Lineage, at.ref), localChain(at.manifest)
		for _, s := range at.manifest.Segments {
			info.Entries += s.Entries
		}
	}
	a, err := inc.local.Attach(ctx, want, chain, objects{inc.cfg.Store})
	if err != nil {
		return classifyLocal(err)
	}
	info.How, info.Attached, info.Bytes = a.How.String(), a.Segments-a.Reused, a.Bytes
	inc.localAt = want
	inc.taken.add(takenAt{want, at.manifest != nil && !at.mended, &inc.base})
	inc.ingested.Store(at.last)
	for _, sp := range inc.spaces {
		err := inc.blaming(sp.space.LoadBroadcast, func() (operator, doing string) {
			return sp.stage, fmt.Sprintf("decoding the broadcast states behind it of checkpoint %d", at.ref.Checkpoint)
		})
		if err != nil {
			return fmt.Errorf("restoring checkpoint %d: %w", at.ref.Checkpoint, err)
		}
	}
	return nil
}

// ingest brings a checkpoint that was committed into the local store.
func (inc *incarnation) ingest(id int64, ref offsets.ManifestRef, stats checkpoint.Stats) error {
	if inc.local == nil {
		return nil
	}
	want := localID(stats.Manifest.Lineage, ref)
	chain := localChain(stats.Manifest)
	var own *pebble.Segment
	data := stats.Segment
	if stats.SegmentBytes > 0 {
		own = &chain[len(chain)-1]
		if _, ok := (objects{inc.cfg.Store}).Path(own.Object); ok && !stats.Inline {
			data = nil // the file is there already
		}
	}
	inc.taken.add(takenAt{want, true, stats.Manifest})
	// Also when the incarnation is ending: what is committed belongs into the store.
	if err := inc.local.Ingest(context.WithoutCancel(inc.ctx), want, inc.localAt, own, data, chain); err != nil {
		return classifyLocal(err)
	}
	inc.localAt = want
	inc.ingested.Store(id)
	for _, s := range inc.subtasks {
		s.notify() // it may wait for memory
	}
	return nil
}

// classifyLocal marks what a restart cannot mend among the errors of the local store.
func classifyLocal(err error) error {
	var (
		app     *pebble.WrongAppError
		version *pebble.VersionError
		missing *checkpoint.MissingError
		damaged *pebble.DamagedError
	)
	if errors.As(err, &app) || errors.As(err, &version) || errors.As(err, &missing) {
		return fatal(err)
	}
	// Damage to a file of the local store is mended by a restart; damage to an object isn't.
	if errors.As(err, &damaged) && damaged.File == "" {
		return fatal(err)
	}
	return err
}

// keyspaceConfig says where one of n keyspaces keeps its state.
func (inc *incarnation) keyspaceConfig(n int) state.Config {
	if inc.local == nil {
		return state.Config{}
	}
	return state.Config{
		Backing:     backing{inc.local},
		MemoryBytes: max(inc.cfg.Backend.MemoryBytes/int64(n), minKeyspace),
		Committed:   inc.ingested.Load,
	}
}

// minKeyspace is the least memory of a keyspace, in bytes.
const minKeyspace = 1 << 10

// backing shows the local store to keyspaces.
type backing struct{ *pebble.Store }

func (b backing) Iter(lo, hi []byte) (state.Iterator, error) {
	it, err := b.Store.Iter(lo, hi)
	return iterator{it}, err
}

type iterator struct{ *pebble.Iterator }

func (it iterator) Err() error { return it.Error() }

// keyedStages is the number of stages that keep state.
func (inc *incarnation) keyedStages() int { return max(len(inc.plan.Stages), 1) }

// followEvery is how often an instance that stands by looks for a new checkpoint.
const followEvery = time.Second

// follow brings what the active instance commits into the local store of one that
// stands by, so that little is missing when it takes over. It stops when partitions are
// assigned. What it fails to do the restore does.
func (inc *incarnation) follow(ctx context.Context) {
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	commits, err := txn.OpenCommits(inc.cfg.Kafka, inc.cfg.CommitTopic)
	if err != nil {
		inc.cfg.Logger.Sugar().Debugf("following the active instance: %v", err)
		return
	}
	defer commits.Close()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := inc.catchUp(ctx, commits); err != nil && ctx.Err() == nil {
			inc.cfg.Logger.Sugar().Debugf("following the active instance: %v", err)
		}
	}
}

// catchUp makes the local store equal the newest committed checkpoint.
func (inc *incarnation) catchUp(ctx context.Context, commits *txn.Commits) error {
	last, ok, err := commits.Last(ctx, inc.cfg.App)
	if err != nil || !ok {
		return err
	}
	if is := inc.local.ID(); is == localID(is.Lineage, last.Manifest) {
		return nil
	}
	m, err := checkpoint.Load(ctx, inc.cfg.Store, last.Manifest)
	if err != nil {
		return err
	}
	want := localID(m.Lineage, last.Manifest)
	a, err := inc.local.Attach(ctx, want, localChain(m), objects{inc.cfg.Store})
	if err == nil {
		inc.cfg.Listener.Followed(event.Followed{App: inc.cfg.App, Checkpoint: last.Manifest.Checkpoint, Attached: a.Segments - a.Reused, Took: a.Took})
	}
	return err
}
