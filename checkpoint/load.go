package checkpoint

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"

	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

// Load reads and verifies the manifest that ref names. Errors are *MissingError,
// *DamagedError, *VersionError and, if the store itself failed, *StoreError.
func Load(ctx context.Context, store Store, ref offsets.ManifestRef) (*Manifest, error) {
	object := manifestObject(ref)
	b, err := get(ctx, store, object)
	if err != nil {
		return nil, fmt.Errorf("load checkpoint %d: %w", ref.Checkpoint, err)
	}
	m, err := decodeNamed(store, object, b)
	// The hash comes second, because decoding can say what is wrong; it comes in any
	// case, because a manifest may be sound and still another one.
	if got := hashOf(b); err == nil && got != ref.Hash && !guard.Broken(guard.Checksum) {
		err = &DamagedError{Object: object, Store: store.String(), What: fmt.Sprintf("its hash is %s, the pointer says %s", hex.EncodeToString(got[:]), hex.EncodeToString(ref.Hash[:]))}
	}
	if err != nil {
		return nil, fmt.Errorf("load checkpoint %d: %w", ref.Checkpoint, err)
	}
	return m, nil
}

// Inspect reads a manifest by the name of its object, as [ListManifests] gives it,
// and returns the reference to it. It is for tools: that a manifest is there and
// sound doesn't say that it was ever committed.
func Inspect(ctx context.Context, store Store, object string) (*Manifest, offsets.ManifestRef, error) {
	b, err := get(ctx, store, object)
	if err != nil {
		return nil, offsets.ManifestRef{}, fmt.Errorf("inspect checkpoint: %w", err)
	}
	m, err := decodeNamed(store, object, b)
	if err != nil {
		return nil, offsets.ManifestRef{}, fmt.Errorf("inspect checkpoint: %w", err)
	}
	return m, offsets.ManifestRef{Checkpoint: m.Checkpoint, Incarnation: m.Incarnation, Hash: hashOf(b)}, nil
}

func decodeNamed(store Store, object string, b []byte) (*Manifest, error) {
	m, err := decodeManifest(b, object)
	var v unknownVersion
	if errors.As(err, &v) {
		return nil, &VersionError{Object: object, Store: store.String(), Version: int(v), Known: manifestVersion}
	}
	if err != nil {
		return nil, &DamagedError{Object: object, Store: store.String(), What: err.Error(), Err: err}
	}
	id, incarnation, ok := parseObject(object)
	if !ok || m.Checkpoint != id || m.Incarnation != incarnation {
		return nil, &DamagedError{Object: object, Store: store.String(), What: fmt.Sprintf("it is the manifest of checkpoint %d of incarnation %08x", m.Checkpoint, m.Incarnation)}
	}
	return m, nil
}

func get(ctx context.Context, store Store, object string) ([]byte, error) {
	b, err := store.Get(ctx, object)
	if errors.Is(err, ErrNotFound) {
		return nil, &MissingError{Object: object, Store: store.String(), Err: err}
	}
	return b, err
}

// ReadSegment returns the bytes of a segment, verified. They are a Pebble table and
// can be ingested as they are. Errors are *MissingError, *DamagedError and, if the
// store itself failed, *StoreError.
func ReadSegment(ctx context.Context, store Store, s SegmentRef) ([]byte, error) {
	b, err := readSegment(ctx, store, s)
	if err != nil {
		return nil, fmt.Errorf("read segment: %w", err)
	}
	return b, nil
}

func readSegment(ctx context.Context, store Store, s SegmentRef) ([]byte, error) {
	damaged := func(what string, err error) error {
		return &DamagedError{Object: s.Object, Store: store.String(), What: what, Err: err}
	}
	verify := !guard.Broken(guard.Checksum)
	var b []byte
	var err error
	if s.Inline() {
		b, err = store.GetRange(ctx, s.Object, s.Offset, s.Length)
	} else {
		b, err = store.Get(ctx, s.Object)
	}
	switch {
	case errors.Is(err, ErrNotFound):
		return nil, &MissingError{Object: s.Object, Store: store.String(), Err: err}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return nil, damaged(fmt.Sprintf("truncated: it ends before byte %d", s.Offset+s.Length), err)
	case err != nil:
		return nil, err
	case int64(len(b)) < s.Length:
		return nil, damaged(fmt.Sprintf("truncated: %d of %d bytes", len(b), s.Length), nil)
	case int64(len(b)) > s.Length:
		return nil, damaged(fmt.Sprintf("%d bytes, %d were written", len(b), s.Length), nil)
	}
	if got := segment.Checksum(b); got != s.CRC32C && verify {
		return nil, damaged(fmt.Sprintf("the checksum of the segment at byte %d is %08x, the manifest says %08x", s.Offset, got, s.CRC32C), nil)
	}
	return b, nil
}

// openSegment reads, verifies and opens a segment.
func openSegment(ctx context.Context, store Store, s SegmentRef) (*segment.Reader, error) {
	b, err := ReadSegment(ctx, store, s)
	if err != nil {
		return nil, err
	}
	r, err := segment.Open(b)
	if err != nil {
		return nil, &DamagedError{Object: s.Object, Store: store.String(), What: err.Error(), Err: err}
	}
	return r, nil
}

// readAhead is how many segments are fetched at once: enough to hide the latency of
// an object store.
const readAhead = 8

// openSegments opens segments, some at a time, and returns them in the same order.
func openSegments(ctx context.Context, store Store, refs []SegmentRef) ([]*segment.Reader, error) {
	readers := make([]*segment.Reader, len(refs))
	errs := make([]error, len(refs))
	slots := make(chan struct{}, readAhead)
	var wg sync.WaitGroup
	for i, s := range refs {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			readers[i], errs[i] = openSegment(ctx, store, s)
		})
	}
	wg.Wait()
	return readers, errors.Join(errs...)
}

// Scan yields the state of the key-groups [lo, hi) at this checkpoint, in order of
// key-group, state and key. All segments that have to do with them are read and
// verified before the first entry comes. An entry is valid until the next step. An
// error comes last, with a zero entry; what came before it is then not to be used.
// Errors are as with ReadSegment.
func (m *Manifest) Scan(ctx context.Context, store Store, lo, hi int) iter.Seq2[segment.Entry, error] {
	return func(yield func(segment.Entry, error) bool) {
		refs := slices.Clone(m.Segments)
		refs = slices.DeleteFunc(refs, func(s SegmentRef) bool { return !s.overlaps(lo, hi) })
		readers, err := openSegments(ctx, store, refs)
		if err != nil {
			yield(segment.Entry{}, fmt.Errorf("restore checkpoint %d: %w", m.Checkpoint, err))
			return
		}
		for e, err := range segment.Scan(lo, hi, readers...) {
			if err != nil {
				// The bytes are those that were written, so this is a segment that
				// was wrong from the beginning, or a broken guard.
				names := make([]string, len(refs))
				for i, s := range refs {
					names[i] = s.Object
				}
				yield(segment.Entry{}, fmt.Errorf("restore checkpoint %d from %v in %s: %w", m.Checkpoint, names, store, err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// ManifestInfo describes a manifest in the store, without having read it.
type ManifestInfo struct {
	Object
	Checkpoint  int64
	Incarnation uint32
}

// ListManifests returns the manifests in the store, oldest first. Not each of them
// was committed.
func ListManifests(ctx context.Context, store Store) ([]ManifestInfo, error) {
	var list []ManifestInfo
	for o, err := range store.List(ctx, manifestPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list checkpoints: %w", err)
		}
		if id, incarnation, ok := parseObject(o.Name); ok {
			list = append(list, ManifestInfo{o, id, incarnation})
		}
	}
	return list, nil
}
