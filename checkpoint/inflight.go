package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

// Records in flight are what an unaligned checkpoint holds beside state: records that were
// queued in front of a subtask when it took its snapshot. They belong to one checkpoint
// alone. So they are no part of the chain of segments: the next checkpoint doesn't name
// them, nobody merges them, and they go with their manifest. They ride in it while they
// are small, or are an object of their own.

// inFlightPrefix is that of the objects that hold records in flight.
const (
	inFlightPrefix = "inflight/"
	inFlightSuffix = ".rec"
)

func inFlightObject(ref offsets.ManifestRef) string {
	return inFlightPrefix + ref.Object() + inFlightSuffix
}

// InFlight describes the records that were in flight to one subtask, in the order in
// which they are to be processed.
type InFlight struct {
	// Stage is the ID of the KeyBy in front of which they were queued.
	Stage string `json:"stage"`
	// MinKG and MaxKG are the key-groups that the subtask owned, both inclusive.
	MinKG uint16 `json:"minKG"`
	MaxKG uint16 `json:"maxKG"`
	// Watermark is where event time stood on the subtask, in milliseconds since 1970, nil
	// if nothing was known of it.
	Watermark *int64 `json:"watermark,omitempty"`
	Records   int64  `json:"records"`
	// The codecs of key and value, and the version that wrote the values.
	KeyCodec     string `json:"keyCodec,omitempty"`
	ValueCodec   string `json:"valueCodec,omitempty"`
	ValueVersion int    `json:"valueVersion,omitempty"`
	// Heard is set if the records are those of broadcast streams, which every subtask of
	// the stage is to hear before all else: who hears them. Key-groups, watermark and the
	// codecs above are not set then.
	Heard []Heard `json:"heard,omitempty"`
	// Where the bytes are; Object is empty in the encoded manifest that holds them itself.
	Object string `json:"object,omitempty"`
	Offset int64  `json:"offset,omitempty"` // bytes
	Length int64  `json:"length"`           // bytes
	CRC32C uint32 `json:"crc32c"`           // of these bytes
}

// Heard says who hears a broadcast record that was in flight.
type Heard struct {
	Operator string `json:"operator"`      // whose function hears it
	Stream   string `json:"stream"`        // the operator whose output is broadcast
	Nth      int    `json:"nth,omitempty"` // which of the operator's functions that hear the stream, from 0
	Codec    string `json:"codec"`         // of the values
	Version  int    `json:"version"`       // of the codec
}

// Broadcast tells whether the records are those of broadcast streams.
func (f InFlight) Broadcast() bool { return len(f.Heard) > 0 }

// Overlaps tells whether the subtask owned any of the key-groups [lo, hi).
func (f InFlight) Overlaps(lo, hi int) bool { return int(f.MinKG) < hi && int(f.MaxKG) >= lo }

// time returns where event time stood on the subtask, NoWatermark if nothing was known of it.
func (f InFlight) time() int64 {
	if f.Watermark == nil {
		return NoWatermark
	}
	return *f.Watermark
}

// InFlightData is what a subtask captured. Object, Offset, Length and CRC32C are set when
// it is written.
type InFlightData struct {
	InFlight
	Data []byte // as the subtask wrote it; it must not be changed
}

// RecordsInFlight returns how many records were in flight.
func (m *Manifest) RecordsInFlight() (n int64) {
	for _, f := range m.InFlight {
		n += f.Records
	}
	return n
}

// lay puts what was captured one behind the other, from offset on of object, and returns
// the references and the bytes.
func lay(parts []InFlightData, object string, offset int64) (refs []InFlight, data []byte) {
	size := 0
	for _, p := range parts {
		size += len(p.Data)
	}
	data = make([]byte, 0, size)
	for _, p := range parts {
		f := p.InFlight
		f.Object, f.Offset, f.Length, f.CRC32C = object, offset+int64(len(data)), int64(len(p.Data)), segment.Checksum(p.Data)
		refs = append(refs, f)
		data = append(data, p.Data...)
	}
	return refs, data
}

// ReadInFlight returns the bytes that f refers to, verified. Errors are as with
// [ReadSegment].
func ReadInFlight(ctx context.Context, store Store, f InFlight) ([]byte, error) {
	b, err := readInFlight(ctx, store, f)
	if err != nil {
		return nil, fmt.Errorf("read records in flight to %q: %w", f.Stage, err)
	}
	return b, nil
}

func readInFlight(ctx context.Context, store Store, f InFlight) ([]byte, error) {
	if f.Length == 0 {
		return nil, nil
	}
	b, err := getRange(ctx, store, f.Object, f.Offset, f.Length)
	if err != nil {
		return nil, err
	}
	if got := segment.Checksum(b); (got != f.CRC32C || int64(len(b)) != f.Length) && !guard.Broken(guard.Checksum) {
		return nil, &DamagedError{Object: f.Object, Store: store.String(), What: fmt.Sprintf("the checksum of the records in flight at byte %d is %08x, the manifest says %08x", f.Offset, got, f.CRC32C)}
	}
	return b, nil
}

// copyInFlight makes what refs name one object of another store, or of the same, and
// returns the references to it.
func copyInFlight(ctx context.Context, from Store, refs []InFlight, to Store, object string) ([]InFlight, error) {
	if len(refs) == 0 {
		return nil, nil
	}
	parts := make([]InFlightData, len(refs))
	for i, f := range refs {
		b, err := readInFlight(ctx, from, f)
		if err != nil {
			return nil, err
		}
		parts[i] = InFlightData{f, b}
	}
	copied, data := lay(parts, object, 0)
	return copied, to.Put(ctx, object, data)
}

// check tells what is wrong with a reference in a manifest with so many inline
// bytes.
func (f InFlight) check(inline int64) error {
	switch {
	case f.Stage == "" || f.Offset < 0 || f.Length < 0 || f.Offset > math.MaxInt64-f.Length || f.Records < 0 || f.MinKG > f.MaxKG:
		return errors.New("makes no sense")
	case slices.ContainsFunc(f.Heard, func(h Heard) bool { return h.Operator == "" || h.Stream == "" || h.Nth < 0 }):
		return errors.New("does not say who hears it")
	case f.Object == "" && f.Offset+f.Length > inline:
		return fmt.Errorf("is inline in bytes %d to %d, there are %d", f.Offset, f.Offset+f.Length, inline)
	case f.Object == "":
		return nil
	}
	if _, ok := cutAffixes(f.Object, inFlightPrefix, inFlightSuffix); !ok || !validName(f.Object) {
		return fmt.Errorf("has the object name %q", f.Object)
	}
	return nil
}

// wholeRange returns refs as those of subtasks that own all of n key-groups each: for who
// changes what a key-group is. at is where event time stood.
func wholeRange(refs []InFlight, n int, at EventTime) []InFlight {
	refs = slices.Clone(refs)
	least := map[string]int64{} // of the parts of each stage
	for i := range refs {
		f := &refs[i]
		if f.Broadcast() {
			continue
		}
		f.MinKG, f.MaxKG = 0, uint16(n-1)
		if t, ok := least[f.Stage]; !ok || f.time() < t {
			least[f.Stage] = f.time()
		}
	}
	for _, stage := range slices.Sorted(maps.Keys(least)) {
		// A subtask that had nothing in flight and was not ahead of its stage has no part. Its
		// keys have one with those of the others now, which would take them to later times.
		if stood := at.Stage(stage); stood < least[stage] {
			f := InFlight{Stage: stage, MaxKG: uint16(n - 1)}
			if stood != NoWatermark {
				f.Watermark = &stood
			}
			refs = append(refs, f)
		}
	}
	return refs
}
