package offline

import (
	"cmp"
	"context"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offsets"
)

// Latest names the newest checkpoint in a store, for [Open].
const Latest = "latest"

// Snapshot is the state of an app at a checkpoint or savepoint. It is immutable and
// safe for concurrent use, and needs no closing.
type Snapshot struct {
	store    checkpoint.Store
	manifest *checkpoint.Manifest
	ref      offsets.ManifestRef
	name     string // of the savepoint, or empty
}

// Info describes a snapshot as its manifest does, without looking at the state.
type Info struct {
	Store       string
	App         string
	Instance    string
	Savepoint   string // name; empty for a checkpoint
	Checkpoint  int64
	Incarnation uint32
	Lineage     string
	Created     time.Time
	Watermark   int64 // milliseconds since 1970; checkpoint.NoWatermark if there was none
	KeyGroups   int
	Positions   map[offsets.Partition]offsets.Position
	Segments    int
	Bytes       int64 // of all segments together
	Changes     int64 // entries and tombstones in them: at least the entries that live
}

// Open finds a snapshot. which is [Latest], the decimal id of a checkpoint, the name
// of a manifest as offsets.ManifestRef.Object writes it, or the name of a savepoint;
// "savepoint:" before it says that a name like 4711 is that of a savepoint.
//
// Latest is the newest checkpoint in the store. It need not be committed: only the
// pointer in Kafka tells. Errors are *NotFoundError, *AmbiguousError and those of
// checkpoint.Load.
func Open(ctx context.Context, store checkpoint.Store, which string) (*Snapshot, error) {
	s, err := open(ctx, store, which)
	if err != nil {
		return nil, fmt.Errorf("open snapshot %q: %w", which, err)
	}
	return s, nil
}

// OpenManifest is Open for a manifest that was loaded.
func OpenManifest(store checkpoint.Store, m *checkpoint.Manifest, ref offsets.ManifestRef) *Snapshot {
	return &Snapshot{store: store, manifest: m, ref: ref}
}

const savepointMark = "savepoint:"

// manifestName is how offsets.ManifestRef.Object writes a name. A savepoint may be called so
// too, and is then found behind the mark.
var manifestName = regexp.MustCompile(`^[0-9a-f]{16}-[0-9a-f]{8}$`)

func open(ctx context.Context, store checkpoint.Store, which string) (*Snapshot, error) {
	if name, ok := strings.CutPrefix(which, savepointMark); ok {
		return openSavepoint(ctx, store, name)
	}
	id, numErr := strconv.ParseInt(which, 10, 64)
	isObject := manifestName.MatchString(which)
	if which != Latest && numErr != nil && !isObject {
		return openSavepoint(ctx, store, which)
	}
	list, err := checkpoint.ListManifests(ctx, store)
	if err != nil {
		return nil, err
	}
	if len(list) == 0 && which == Latest {
		// A savepoint that was copied out of a store stands alone.
		if s, err := openSavepoint(ctx, store, ""); err == nil {
			return s, nil
		}
		return nil, &NotFoundError{Store: store.String(), What: "a checkpoint", Hint: "is this the store that the app writes to?"}
	}
	if which == Latest {
		id = list[len(list)-1].Checkpoint
	}
	found := slices.DeleteFunc(slices.Clone(list), func(m checkpoint.ManifestInfo) bool {
		if isObject {
			return refOf(m).Object() != which
		}
		return m.Checkpoint != id
	})
	switch {
	case len(found) == 0:
		return nil, &NotFoundError{Store: store.String(), What: "checkpoint " + which, Hint: heldHint(list)}
	case len(found) > 1 && which != Latest:
		e := &AmbiguousError{Store: store.String(), Checkpoint: id}
		for _, m := range found {
			e.Objects = append(e.Objects, refOf(m).Object())
		}
		return nil, e
	}
	var newest *Snapshot
	for _, f := range found {
		m, ref, err := checkpoint.Inspect(ctx, store, f.Name)
		if err != nil {
			return nil, err
		}
		// Of two attempts at one checkpoint the later one is the one that went on.
		if newest == nil || m.Created.After(newest.manifest.Created) {
			newest = OpenManifest(store, m, ref)
		}
	}
	return newest, nil
}

func refOf(m checkpoint.ManifestInfo) offsets.ManifestRef {
	return offsets.ManifestRef{Checkpoint: m.Checkpoint, Incarnation: m.Incarnation}
}

// hinted is how many of the checkpoints that there are an error names.
const hinted = 5

func heldHint(list []checkpoint.ManifestInfo) string {
	if len(list) == 0 {
		return "it has no checkpoints at all: is this the store that the app writes to?"
	}
	var ids []string
	for i := len(list) - 1; i >= 0 && len(ids) < hinted; i-- {
		ids = append(ids, strconv.FormatInt(list[i].Checkpoint, 10))
	}
	more := ""
	if len(list) > hinted {
		more = fmt.Sprintf(" and %d older ones", len(list)-hinted)
	}
	return "it holds " + strings.Join(ids, ", ") + more
}

// NotFoundError says that a store has no such checkpoint or savepoint.
type NotFoundError struct {
	Store string
	What  string
	Hint  string // what there is instead
}

func (e *NotFoundError) Error() string {
	return fmt.Sprintf("%s does not have %s; %s", e.Store, e.What, e.Hint)
}

// AmbiguousError says that a checkpoint id was tried more than once, so that several
// manifests have it. At most one of them was committed.
type AmbiguousError struct {
	Store      string
	Checkpoint int64
	Objects    []string // names that Open takes
}

func (e *AmbiguousError) Error() string {
	return fmt.Sprintf("%s has %d manifests of checkpoint %d, of which the pointer names one at most; choose one of %s",
		e.Store, len(e.Objects), e.Checkpoint, strings.Join(e.Objects, ", "))
}

// Info describes the snapshot.
func (s *Snapshot) Info() Info {
	m := s.manifest
	i := Info{
		Store: s.store.String(), App: m.App, Instance: m.Instance, Savepoint: s.name, Checkpoint: m.Checkpoint, Incarnation: m.Incarnation,
		Lineage: m.Lineage, Created: m.Created, Watermark: m.Watermark, KeyGroups: m.KeyGroups, Positions: m.Positions,
		Segments: len(m.Segments), Bytes: m.Bytes(),
	}
	for _, seg := range m.Segments {
		i.Changes += seg.Entries + seg.Tombstones
	}
	return i
}

// String names the snapshot for people: "checkpoint 4711", "savepoint before-v2".
func (s *Snapshot) String() string {
	if s.name != "" {
		return "savepoint " + s.name
	}
	return fmt.Sprintf("checkpoint %d", s.manifest.Checkpoint)
}

// Manifest returns the manifest, which must not be changed, and the reference to it.
func (s *Snapshot) Manifest() (*checkpoint.Manifest, offsets.ManifestRef) { return s.manifest, s.ref }

// States returns the registry without states that were dropped, by operator and name.
func (s *Snapshot) States() []checkpoint.StateInfo {
	states := slices.DeleteFunc(slices.Clone(s.manifest.States), func(i checkpoint.StateInfo) bool { return i.Kind == kindDropped })
	slices.SortFunc(states, func(a, b checkpoint.StateInfo) int {
		return cmp.Or(cmp.Compare(a.Operator, b.Operator), cmp.Compare(a.Name, b.Name))
	})
	return states
}

// State finds a state of the registry. The error is an *UnknownStateError.
func (s *Snapshot) State(operator, name string) (checkpoint.StateInfo, error) {
	states := s.States()
	for _, i := range states {
		if i.Operator == operator && i.Name == name {
			return i, nil
		}
	}
	return checkpoint.StateInfo{}, &UnknownStateError{Operator: operator, Name: name, Checkpoint: s.manifest.Checkpoint, States: states}
}

// UnknownStateError says that a snapshot has no such state.
type UnknownStateError struct {
	Operator, Name string
	Checkpoint     int64
	States         []checkpoint.StateInfo // those that there are
}

func (e *UnknownStateError) Error() string {
	if len(e.States) == 0 {
		return fmt.Sprintf("checkpoint %d has no %s: it has no keyed state at all", e.Checkpoint, e.what())
	}
	names := make([]string, len(e.States))
	for i, s := range e.States {
		names[i] = s.Operator + "/" + s.Name
	}
	return fmt.Sprintf("checkpoint %d has no %s; it has (operator/state): %s", e.Checkpoint, e.what(), strings.Join(names, ", "))
}

// what was looked for: one of the names may be of no matter.
func (e *UnknownStateError) what() string {
	switch {
	case e.Name == "":
		return fmt.Sprintf("state of operator %q", e.Operator)
	case e.Operator == "":
		return fmt.Sprintf("state %q", e.Name)
	}
	return fmt.Sprintf("state %q of operator %q", e.Name, e.Operator)
}

// CodecError says that a state was written by another codec than the one it was to be
// read with, or is of another kind.
type CodecError struct {
	Operator, Name string
	What           string // kind, key codec, value codec, map key codec
	Stored, Asked  string
}

func (e *CodecError) Error() string {
	return fmt.Sprintf("state %q of operator %q: its %s is %q, not %q; read it with what wrote it", e.Name, e.Operator, e.What, e.Stored, e.Asked)
}

// Kinds of states, as the registry names them.
const (
	kindValue       = "value"
	kindReducing    = "reducing"
	kindAggregating = "aggregating"
	kindMap         = "map"
	kindList        = "list"
	kindTimers      = "timers"
	kindBroadcast   = "broadcast"
	kindDropped     = "dropped"
)

// Names of the states in which an operator's timers are.
const (
	EventTimers      = "event-timers"
	ProcessingTimers = "processing-timers"
)

// isValue tells whether a kind has one entry for each key, under the key alone.
func isValue(kind string) bool {
	return kind == kindValue || kind == kindReducing || kind == kindAggregating
}

// Size is what a state takes.
type Size struct {
	checkpoint.StateInfo
	Entries   int64
	Bytes     int64 // keys and values as they were encoded, without compression
	Expired   int64 // entries that have expired and are not counted otherwise
	KeyGroups []GroupSize
}

// GroupSize is what a state takes in one key-group.
type GroupSize struct {
	KeyGroup int
	Entries  int64
	Bytes    int64
}

// Measure reads the whole state and returns what each state takes, by operator and
// name. Key-groups without entries are left out. Options are [At], [KeyGroups],
// [IncludeExpired] and [OnProgress].
func (s *Snapshot) Measure(ctx context.Context, opts ...Option) ([]Size, error) {
	o := s.options(opts)
	states := s.States()
	sizes := make([]Size, len(states))
	byID := make(map[uint16]*Size, len(states))
	for i, info := range states {
		sizes[i].StateInfo = info
		byID[info.ID] = &sizes[i]
	}
	for e, err := range s.entries(ctx, o, nil) {
		if err != nil {
			return nil, fmt.Errorf("measure state: %w", err)
		}
		size := byID[e.State]
		if size == nil {
			continue // dropped from the topology
		}
		_, _, expired, err := o.header(e)
		if err != nil {
			return nil, fmt.Errorf("measure state: %w", s.entryError(size.StateInfo, e, err))
		}
		if expired && !o.expired {
			size.Expired++
			continue
		}
		bytes := int64(len(e.Key) + len(e.Value))
		size.Entries++
		size.Bytes += bytes
		if n := len(size.KeyGroups); n == 0 || size.KeyGroups[n-1].KeyGroup != int(e.KeyGroup) {
			size.KeyGroups = append(size.KeyGroups, GroupSize{KeyGroup: int(e.KeyGroup)})
		}
		g := &size.KeyGroups[len(size.KeyGroups)-1]
		g.Entries++
		g.Bytes += bytes
	}
	return sizes, nil
}
