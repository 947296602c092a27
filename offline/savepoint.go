package offline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

// pieceBytes is how much of a savepoint, before compression, becomes one object.
const pieceBytes = 32 << 20

func openSavepoint(ctx context.Context, store checkpoint.Store, name string) (*Snapshot, error) {
	m, view, err := checkpoint.OpenSavepoint(ctx, store, name)
	var missing *checkpoint.MissingError
	if errors.As(err, &missing) {
		return nil, &NotFoundError{Store: store.String(), What: "savepoint " + name, Hint: savepointHint(ctx, store)}
	}
	if err != nil {
		return nil, err
	}
	return &Snapshot{store: view, manifest: m, ref: offsets.ManifestRef{Checkpoint: m.Checkpoint, Incarnation: m.Incarnation}, name: name}, nil
}

func savepointHint(ctx context.Context, store checkpoint.Store) string {
	list, err := checkpoint.ListSavepoints(ctx, store)
	var names []string
	for _, s := range list {
		if s.Complete {
			names = append(names, s.Name)
		}
	}
	switch {
	case err != nil:
		return err.Error()
	case len(names) == 0:
		return "it has no savepoints; a checkpoint is given by its id, or as " + Latest
	}
	return "its savepoints are " + strings.Join(names, ", ")
}

// Verify reads every byte that the snapshot refers to and compares it with what the
// manifest says, see checkpoint.Verify.
func (s *Snapshot) Verify(ctx context.Context, progress func(checkpoint.Progress)) error {
	return checkpoint.Verify(ctx, s.store, s.manifest, progress)
}

// Save copies the snapshot into a savepoint, see checkpoint.CreateSavepoint.
func (s *Snapshot) Save(ctx context.Context, to checkpoint.Store, name string, progress func(checkpoint.Progress)) (checkpoint.SavepointInfo, error) {
	return checkpoint.CreateSavepoint(ctx, s.store, s.manifest, to, name, progress)
}

// Write merges what was put with the snapshot, if there is one, into a savepoint. An
// entry that was deleted is not in it, nor is what the snapshot holds of states that were
// dropped; elements of lists move up into gaps, see [ListOf]. It may be called again, for
// another savepoint.
func (b *Builder) Write(ctx context.Context, to checkpoint.Store, name string) (checkpoint.SavepointInfo, error) {
	if err := b.checkInFlight(); err != nil {
		return checkpoint.SavepointInfo{}, fmt.Errorf("build savepoint %s: %w", name, err)
	}
	sp, err := checkpoint.BuildSavepoint(ctx, to, name)
	if err != nil {
		return checkpoint.SavepointInfo{}, err
	}
	w := pieces{ctx: ctx, sp: sp, limit: min(pieceBytes, b.cfg.MemoryBytes)}
	err = b.merged(ctx, w.add)
	if err == nil {
		err = w.flush()
	}
	if err != nil {
		sp.Abort(ctx)
		return checkpoint.SavepointInfo{}, fmt.Errorf("build savepoint %s: %w", name, err)
	}
	m := checkpoint.Manifest{
		App: b.app, Instance: "offline", Checkpoint: 1, KeyGroups: b.keyGroups, Watermark: b.watermark, EventTime: b.eventTime,
		Positions: b.positions, TopicIDs: b.topicIDs, States: b.liveStates(),
	}
	if b.base != nil && b.keyGroups != b.base.manifest.KeyGroups {
		m.EventTime.KeyGroups = nil // keys of several are together now
	}
	if b.cfg.Now != nil {
		m.Created = b.cfg.Now().UTC().Round(0)
	}
	if b.base != nil {
		was := b.base.manifest
		m.Instance, m.Checkpoint, m.Incarnation, m.Sinks = was.Instance, was.Checkpoint, was.Incarnation, was.Sinks
		if m.Logs, err = sp.Logs(ctx, b.base.store, was); err == nil {
			err = sp.InFlight(ctx, b.base.store, b.flights(), b.keyGroups, b.keyGroups != was.KeyGroups, b.eventTime)
		}
		if err != nil {
			sp.Abort(ctx)
			return checkpoint.SavepointInfo{}, err
		}
	}
	return sp.Complete(ctx, m)
}

// flights returns what is to be in flight in the savepoint. With other positions these are no
// records, see checkInFlight, and the times behind what the old positions were are not taken
// along: what is read again would be late.
func (b *Builder) flights() []checkpoint.InFlight {
	if !b.moved {
		return b.inFlight
	}
	refs := slices.Clone(b.inFlight)
	for i := range refs {
		f := &refs[i]
		f.Object, f.Offset, f.Length, f.CRC32C = "", 0, 0, 0
	}
	return refs
}

// checkInFlight tells what speaks against taking the records in flight along.
func (b *Builder) checkInFlight() error {
	records := int64(0)
	for _, f := range b.inFlight {
		records += f.Records
	}
	if records == 0 || !b.moved {
		return nil
	}
	return fmt.Errorf("%v was unaligned and holds %d records in flight, which were read before its positions: with other positions they would be missing or be there twice; leave the positions as they are, or leave the records out (DropInFlight, --drop-in-flight), or edit a savepoint that the running app takes: it holds none", b.base, records)
}

// pieces cuts sorted entries into segments.
type pieces struct {
	ctx   context.Context
	sp    *checkpoint.SavepointBuilder
	limit int
	b     segment.Builder
	first []byte
	last  []byte
	buf   bytes.Buffer
}

func (w *pieces) add(e segment.Entry) error {
	if w.b.Bytes() >= w.limit {
		if err := w.flush(); err != nil {
			return err
		}
	}
	w.last = segment.AppendKey(w.last[:0], e.KeyGroup, e.State, e.Key)
	if w.b.Len() == 0 {
		w.first = bytes.Clone(w.last)
	}
	dst := append(w.b.BeginPut(e.KeyGroup, e.State), e.Key...)
	w.b.ValueDone(append(w.b.KeyDone(dst), e.Value...))
	return nil
}

func (w *pieces) flush() error {
	if w.b.Len() == 0 {
		return nil
	}
	run := w.b.Finish()
	defer run.Release()
	w.buf.Reset()
	info, err := segment.Write(&w.buf, run)
	if err != nil {
		return err
	}
	return w.sp.Add(w.ctx, segment.Merged{Info: info, MinKey: w.first, MaxKey: bytes.Clone(w.last)}, w.buf.Bytes())
}
