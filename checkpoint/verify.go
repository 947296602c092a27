package checkpoint

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/weirstream/weir/state/segment"
)

// Verify reads every byte of a checkpoint or savepoint and compares it with what the
// manifest says: checksums, numbers of entries, ranges of keys, and that each entry can
// be read, and the logs. It goes on after an error and returns all of them; each names its object.
// They are *MissingError, *DamagedError and *StoreError. progress may be nil. It takes
// the memory of one segment.
func Verify(ctx context.Context, store Store, m *Manifest, progress func(Progress)) error {
	states := map[uint16]bool{}
	for _, s := range m.States {
		states[s.ID] = true
	}
	var errs []error
	p := Progress{SegmentsTotal: len(m.Segments), BytesTotal: m.Bytes() + m.LogBytes()}
	for _, s := range m.Segments {
		if err := verifySegment(ctx, store, m, states, s); err != nil {
			errs = append(errs, err)
		}
		if ctx.Err() != nil {
			break
		}
		p.Segments++
		p.Bytes += s.Length
		report(progress, p)
	}
	for _, l := range m.logs {
		if ctx.Err() != nil {
			break
		}
		if err := verifyLog(ctx, store, *l); err != nil {
			errs = append(errs, err)
		}
		p.Bytes += l.Length
		report(progress, p)
	}
	for _, f := range m.InFlight {
		if ctx.Err() != nil {
			break
		}
		if _, err := readInFlight(ctx, store, f); err != nil {
			errs = append(errs, err)
		}
	}
	return wrap(fmt.Sprintf("verify checkpoint %d", m.Checkpoint), errors.Join(errs...))
}

func verifySegment(ctx context.Context, store Store, m *Manifest, states map[uint16]bool, s SegmentRef) error {
	b, err := readSegment(ctx, store, s)
	if err != nil {
		return err
	}
	r, err := segment.Open(b)
	if err != nil {
		return segmentFault(store, s, err)
	}
	damaged := func(format string, args ...any) error {
		return &DamagedError{Object: s.Object, Store: store.String(), What: fmt.Sprintf(format, args...)}
	}
	var entries, tombstones int64
	var last, k []byte
	for e, err := range r.Changes(0, 1<<16) {
		if err != nil {
			return segmentFault(store, s, err)
		}
		k = segment.AppendKey(k[:0], e.KeyGroup, e.State, e.Key)
		switch {
		case e.KeyGroup < s.MinKG || e.KeyGroup > s.MaxKG || int(e.KeyGroup) >= m.KeyGroups:
			return damaged("an entry is in key-group %d, the manifest says %d to %d of %d", e.KeyGroup, s.MinKG, s.MaxKG, m.KeyGroups)
		case s.MinKey != "" && (hex.EncodeToString(k) < s.MinKey || hex.EncodeToString(k) > s.MaxKey):
			return damaged("it has the key %x, the manifest says %s to %s", k, s.MinKey, s.MaxKey)
		case last != nil && bytes.Compare(last, k) >= 0:
			return damaged("the key %x comes after %x", k, last)
		case !states[e.State]:
			return damaged("an entry in key-group %d is of state %d, which the manifest does not describe", e.KeyGroup, e.State)
		case e.Deleted:
			tombstones++
		default:
			entries++
		}
		last = append(last[:0], k...)
	}
	if entries != s.Entries || tombstones != s.Tombstones {
		return damaged("%d entries and %d tombstones, the manifest says %d and %d", entries, tombstones, s.Entries, s.Tombstones)
	}
	return nil
}
