package checkpoint

import (
	"context"
	"fmt"
	"time"

	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

// SavepointBuilder writes a savepoint whose state comes from elsewhere, piece by piece.
// It is not safe for concurrent use. It ends with Complete or Abort.
type SavepointBuilder struct {
	w  *savepointWriter
	to Store
}

// BuildSavepoint begins a savepoint. Errors are ErrSavepointExists and *StoreError.
func BuildSavepoint(ctx context.Context, to Store, name string) (*SavepointBuilder, error) {
	w, err := beginSavepoint(ctx, to, name)
	if err != nil {
		return nil, fmt.Errorf("build savepoint %s in %s: %w", name, to, err)
	}
	return &SavepointBuilder{w, to}, nil
}

// Add writes a segment. All its keys are behind those of the segments before it, and it
// has no tombstones.
func (b *SavepointBuilder) Add(ctx context.Context, p segment.Merged, data []byte) error {
	if err := b.w.put(ctx, p, data); err != nil {
		return fmt.Errorf("build savepoint %s in %s: %w", b.w.name, b.to, err)
	}
	b.w.segments[len(b.w.segments)-1].Base = true
	return nil
}

// Logs takes over the logs of the snapshot that the savepoint is made of: m, whose
// objects are in from. What it returns is for the manifest that Complete gets.
func (b *SavepointBuilder) Logs(ctx context.Context, from Store, m *Manifest) ([]SinkLogs, error) {
	taken := Manifest{Logs: m.Logs}
	if err := b.w.copyLogs(ctx, from, &taken); err != nil {
		return nil, fmt.Errorf("build savepoint %s in %s: %w", b.w.name, b.to, err)
	}
	return taken.Logs, nil
}

// InFlight takes over records in flight of the snapshot that the savepoint is made of,
// whose objects are in from. moved says that the savepoint has other key-groups; at is where
// its event time stands.
func (b *SavepointBuilder) InFlight(ctx context.Context, from Store, refs []InFlight, keyGroups int, moved bool, at EventTime) error {
	if moved {
		refs = wholeRange(refs, keyGroups, at)
	}
	if err := b.w.copyInFlight(ctx, from, refs); err != nil {
		return fmt.Errorf("build savepoint %s in %s: %w", b.w.name, b.to, err)
	}
	return nil
}

// Complete writes the manifest, which makes it a savepoint. Of m, the segments, records in
// flight, parent and lineage are set here, and the time of creation if there is none: it is a state of
// its own.
func (b *SavepointBuilder) Complete(ctx context.Context, m Manifest) (SavepointInfo, error) {
	m.Parent, m.Lineage = offsets.ManifestRef{}, NewLineage()
	if m.Created.IsZero() {
		m.Created = time.Now().UTC().Round(0)
	}
	for i := range b.w.segments {
		b.w.segments[i].FirstCheckpoint, b.w.segments[i].LastCheckpoint = m.Checkpoint, m.Checkpoint
	}
	info, err := b.w.complete(ctx, m)
	if err != nil {
		return info, fmt.Errorf("build savepoint %s in %s: %w", b.w.name, b.to, err)
	}
	return info, nil
}

// Abort deletes what was written, as far as that is possible.
func (b *SavepointBuilder) Abort(ctx context.Context) { _ = b.w.giveUp(ctx, nil) }
