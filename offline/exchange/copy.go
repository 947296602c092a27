package exchange

import (
	"context"
	"fmt"
	"io"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offline"
)

// Export writes a state of a snapshot to w and returns how many entries. JSON lines
// take several states: none given is all of them.
func Export(ctx context.Context, w io.Writer, f Format, s *offline.Snapshot, states []checkpoint.StateInfo, opts ...offline.Option) (int64, error) {
	if len(states) == 0 {
		states = s.States()
	}
	if f != JSONLines && len(states) != 1 {
		return 0, fmt.Errorf("export %d states as %s: a %s file holds one state; choose one, or jsonl", len(states), f, f)
	}
	var l offline.Layout
	if len(states) == 1 {
		l = offline.LayoutOf(states[0], opts...)
	}
	out, err := NewWriter(w, f, l, opts...)
	if err != nil {
		return 0, err
	}
	var n int64
	for _, state := range states {
		for r, err := range s.Rows(ctx, state.Operator, state.Name, opts...) {
			if err == nil {
				err = out.Write(r)
			}
			if err != nil {
				return n, fmt.Errorf("export state %q of operator %q: %w", state.Name, state.Operator, err)
			}
			n++
		}
	}
	if err := out.Close(); err != nil {
		return n, fmt.Errorf("export: %w", err)
	}
	return n, nil
}

// Imported counts what an import did.
type Imported struct {
	Put     int64
	Deleted int64
}

// Import puts the records of a file into a builder, or deletes those that say so.
func Import(ctx context.Context, b *offline.Builder, r ReaderAt, size int64, f Format, layouts Layouts, progress func(Imported)) (Imported, error) {
	var n Imported
	for rec, err := range Read(r, size, f, layouts) {
		if err == nil {
			err = ctx.Err()
		}
		switch {
		case err != nil:
		case rec.Deleted:
			n.Deleted++
			err = place(n, b.DeleteRow(rec.Layout, rec.Row))
		default:
			n.Put++
			err = place(n, b.PutRow(rec.Layout, rec.Row))
		}
		if err != nil {
			return n, fmt.Errorf("import: %w", err)
		}
		if progress != nil && (n.Put+n.Deleted)%importStep == 0 {
			progress(n)
		}
	}
	return n, nil
}

// place says at which record an error is.
func place(n Imported, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("record %d: %w", n.Put+n.Deleted, err)
}

// importStep is after how many records progress is told.
const importStep = 4096
