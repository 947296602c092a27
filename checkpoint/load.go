package checkpoint

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"

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

// leaving reads from a store and returns when ctx ends, also if the store is deaf to that, as
// a system call on a network file system that is gone is. Then the read goes on alone, what it
// gives is dropped, and memory that it was given is left to it.
func leaving(ctx context.Context, store Store, op, object string, read func() ([]byte, error)) ([]byte, error) {
	type result struct {
		b   []byte
		err error
	}
	got := make(chan result, 1)
	go func() {
		b, err := read()
		got <- result{b, err}
	}()
	select {
	case r := <-got:
		return r.b, r.err
	case <-ctx.Done():
		return nil, &StoreError{Op: op, Object: object, Store: store.String(), Err: ctx.Err()}
	}
}

// getAll reads an object as a whole.
func getAll(ctx context.Context, store Store, object string) ([]byte, error) {
	return leaving(ctx, store, "get", object, func() ([]byte, error) { return store.Get(ctx, object) })
}

func get(ctx context.Context, store Store, object string) ([]byte, error) {
	b, err := getAll(ctx, store, object)
	if errors.Is(err, ErrNotFound) {
		return nil, &MissingError{Object: object, Store: store.String(), Err: err}
	}
	return b, err
}

// getRange reads a part of an object.
func getRange(ctx context.Context, store Store, object string, off, n int64) ([]byte, error) {
	b, err := leaving(ctx, store, "get range", object, func() ([]byte, error) { return store.GetRange(ctx, object, off, n) })
	return b, readError(store, object, off+n, err)
}

// readError says what an error of reading an object up to byte end means.
func readError(store Store, object string, end int64, err error) error {
	switch {
	case errors.Is(err, ErrNotFound):
		return &MissingError{Object: object, Store: store.String(), Err: err}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &DamagedError{Object: object, Store: store.String(), What: fmt.Sprintf("truncated: it ends before byte %d", end), Err: err}
	}
	return err
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
	damaged := func(what string) error {
		return &DamagedError{Object: s.Object, Store: store.String(), What: what}
	}
	var b []byte
	var err error
	if s.Inline() {
		b, err = getRange(ctx, store, s.Object, s.Offset, s.Length)
	} else {
		b, err = getAll(ctx, store, s.Object)
		err = readError(store, s.Object, s.Offset+s.Length, err)
	}
	switch {
	case err != nil:
		return nil, err
	case int64(len(b)) < s.Length:
		return nil, damaged(fmt.Sprintf("truncated: %d of %d bytes", len(b), s.Length))
	case int64(len(b)) > s.Length:
		return nil, damaged(fmt.Sprintf("%d bytes, %d were written", len(b), s.Length))
	}
	if got := segment.Checksum(b); got != s.CRC32C && !guard.Broken(guard.Checksum) {
		return nil, damaged(checksumsDiffer(s, got))
	}
	return b, nil
}

// Scan yields the state of the key-groups [lo, hi) at this checkpoint, in order of
// key-group, state and key. Of each level one segment is open at a time, and large ones
// are read as streams, so it takes little memory; everything is verified when it is
// read. An entry is valid until the next step. An error comes last, with a zero entry;
// what came before it is then not to be used. Errors are as with ReadSegment.
func (m *Manifest) Scan(ctx context.Context, store Store, lo, hi int) iter.Seq2[segment.Entry, error] {
	return func(yield func(segment.Entry, error) bool) {
		o := newOpener(ctx, store, nil)
		defer o.close()
		for e, err := range segment.ScanLevels(lo, hi, o.levels(m.Levels(lo, hi))...) {
			if err != nil {
				yield(segment.Entry{}, fmt.Errorf("restore checkpoint %d from %s: %w", m.Checkpoint, store, err))
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
