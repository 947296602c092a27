package offline

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

// Builder makes a savepoint: from nothing, or from a snapshot that it changes. It is
// not safe for concurrent use. Close removes its files and must be called.
//
// Call what changes the registry first, then put and delete entries, then Write. What
// is put twice counts as it was put last.
type Builder struct {
	cfg       BuildOptions
	base      *Snapshot // nil: from nothing
	app       string
	keyGroups int
	positions map[offsets.Partition]offsets.Position
	topicIDs  map[string]checkpoint.TopicID // of those topics of which no position was changed
	watermark int64
	eventTime checkpoint.EventTime
	states    []checkpoint.StateInfo
	dropped   map[uint16]bool // states of base that are left out
	inFlight  []checkpoint.InFlight
	moved     bool // positions were changed
	edits     *sorter
	used      bool // an entry was put: the registry is fixed
}

// BuildOptions are the options of a [Builder].
type BuildOptions struct {
	// Dir is where sorted runs are kept until Write; default os.TempDir().
	Dir string
	// MemoryBytes is how much is sorted at a time; default 64 MiB. Write needs about as
	// much once more.
	MemoryBytes int
	// Now is what time the savepoint says that it was created; default time.Now.
	Now func() time.Time
	// Progress is called now and then while entries are read from the snapshot and
	// written to the savepoint.
	Progress func(Progress)
}

// New returns a builder for a savepoint of app that holds nothing yet. keyGroups must
// be the key-group count that the app is configured with.
func New(app string, keyGroups int, o BuildOptions) (*Builder, error) {
	if app == "" {
		return nil, errors.New("build savepoint: the app's name is missing")
	}
	if keyGroups < 1 || keyGroups > keygroup.Max {
		return nil, fmt.Errorf("build savepoint: %d key-groups, want 1 to %d", keyGroups, keygroup.Max)
	}
	return newBuilder(&Builder{cfg: o, app: app, keyGroups: keyGroups, watermark: checkpoint.NoWatermark}), nil
}

// Edit returns a builder for a savepoint that begins as a copy of s, with its
// positions and event time, and with its records in flight if it is an unaligned checkpoint or was made of one.
func Edit(s *Snapshot, o BuildOptions) *Builder {
	m := s.manifest
	return newBuilder(&Builder{
		cfg: o, base: s, app: m.App, keyGroups: m.KeyGroups, watermark: m.Watermark,
		eventTime: checkpoint.EventTime{
			Partitions: maps.Clone(m.EventTime.Partitions), Stages: maps.Clone(m.EventTime.Stages), KeyGroups: slices.Clone(m.EventTime.KeyGroups),
			Firing: maps.Clone(m.EventTime.Firing),
		},
		positions: maps.Clone(m.Positions), topicIDs: maps.Clone(m.TopicIDs), states: slices.Clone(m.States), inFlight: cloneInFlight(m.InFlight),
	})
}

func newBuilder(b *Builder) *Builder {
	if b.positions == nil {
		b.positions = map[offsets.Partition]offsets.Position{}
	}
	b.dropped = map[uint16]bool{}
	if b.cfg.MemoryBytes <= 0 {
		b.cfg.MemoryBytes = defaultSortBytes
	}
	b.edits = newSorter(b.cfg.Dir, b.cfg.MemoryBytes)
	return b
}

// Close removes the builder's files.
func (b *Builder) Close() error { return b.edits.close() }

// SetPosition makes the app go on reading p at pos when it starts from the savepoint.
// Event time stays where it is: records from before it are late, see [Builder.SetWatermark].
func (b *Builder) SetPosition(p offsets.Partition, pos offsets.Position) {
	if b.positions[p] != pos {
		b.moved = true
		delete(b.topicIDs, p.Topic)
	}
	b.positions[p] = pos
}

// ClearPositions forgets all positions, so that the app begins where its options say, and
// event time, by which all that is read again would be late. Records in flight have to be
// left out, see [Builder.DropInFlight].
func (b *Builder) ClearPositions() {
	b.moved = b.moved || len(b.positions) > 0
	clear(b.positions)
	clear(b.topicIDs)
	b.watermark, b.eventTime = checkpoint.NoWatermark, checkpoint.EventTime{}
	// Where nothing but marks was in flight, that is event time as well.
	b.inFlight = slices.DeleteFunc(b.inFlight, func(f checkpoint.InFlight) bool { return f.Records == 0 })
}

// DropInFlight leaves out the records that were in flight in the snapshot. They were read
// before its positions, and will not be processed unless the positions are set back.
func (b *Builder) DropInFlight() { b.inFlight = nil }

// cloneInFlight copies refs, with what an edit may change.
func cloneInFlight(refs []checkpoint.InFlight) []checkpoint.InFlight {
	refs = slices.Clone(refs)
	for i := range refs {
		refs[i].Heard = slices.Clone(refs[i].Heard)
	}
	return refs
}

// SetApp makes it a savepoint of another app, for a copy of one.
func (b *Builder) SetApp(app string) { b.app = app }

// SetWatermark sets event time, in milliseconds since 1970: of the keyed stages that the
// snapshot knows, and of the partitions that have a position by now. What is in flight
// advances it as it did, unless positions were changed.
func (b *Builder) SetWatermark(ms int64) {
	b.watermark = ms
	b.eventTime.KeyGroups, b.eventTime.Firing = nil, nil
	for stage := range b.eventTime.Stages {
		b.eventTime.Stages[stage] = ms
	}
	if b.eventTime.Partitions == nil {
		b.eventTime.Partitions = map[offsets.Partition]checkpoint.PartitionTime{}
	}
	for p := range b.positions {
		b.eventTime.Partitions[p] = checkpoint.PartitionTime{Watermark: ms, Idle: b.eventTime.Partitions[p].Idle}
	}
	if b.eventTime.Stages == nil {
		b.eventTime.Stages = map[string]int64{}
	}
	for i := range b.inFlight {
		if f := &b.inFlight[i]; !f.Broadcast() {
			f.Watermark = &ms
			b.eventTime.Stages[f.Stage] = ms // which had none if nothing was known of it on some subtask
		}
	}
}

var errUsed = errors.New("entries were put or deleted already: change the registry first")

func (b *Builder) registryError(what string, err error) error {
	if err == nil && b.used {
		err = errUsed
	}
	if err == nil {
		return nil
	}
	return fmt.Errorf("build savepoint: %s: %w", what, err)
}

// find returns the index of a state in the registry.
func (b *Builder) find(operator, name string) (int, error) {
	live := []checkpoint.StateInfo{}
	for i, s := range b.states {
		if s.Kind == kindDropped {
			continue
		}
		if s.Operator == operator && s.Name == name {
			return i, nil
		}
		live = append(live, s)
	}
	e := &UnknownStateError{Operator: operator, Name: name, States: live}
	if b.base != nil {
		e.Checkpoint = b.base.manifest.Checkpoint
	}
	return 0, e
}

// SetKeyGroups changes the key-group count: every entry of the snapshot moves to the
// key-group that its key has among n. The app must be configured with n as well. Keys for
// which event time stood later than for others of their stage begin where the others do.
func (b *Builder) SetKeyGroups(n int) error {
	var err error
	if n < 1 || n > keygroup.Max {
		err = fmt.Errorf("%d key-groups, want 1 to %d", n, keygroup.Max)
	}
	if err := b.registryError("set key-groups", err); err != nil {
		return err
	}
	b.keyGroups = n
	return nil
}

// RenameOperator gives all states of an operator, its event time and the records in flight
// to it to another ID, for an operator whose ID changed in the topology.
func (b *Builder) RenameOperator(from, to string) error {
	return b.RenameOperators(map[string]string{from: to})
}

// RenameOperators renames as [Builder.RenameOperator] does, all at a time: names has the
// new ID by the one that an operator has, so that two can change theirs.
func (b *Builder) RenameOperators(names map[string]string) error {
	found := map[string]bool{}
	renamed := func(id string) string {
		to, ok := names[id]
		if !ok {
			return id
		}
		found[id] = true
		return to
	}
	states := slices.Clone(b.states)
	for i, s := range states {
		if s.Kind != kindDropped {
			states[i].Operator = renamed(s.Operator)
		}
	}
	inFlight := cloneInFlight(b.inFlight)
	for i := range inFlight {
		inFlight[i].Stage = renamed(inFlight[i].Stage)
		for j := range inFlight[i].Heard {
			h := &inFlight[i].Heard[j]
			h.Operator, h.Stream = renamed(h.Operator), renamed(h.Stream)
		}
	}
	keyGroups := slices.Clone(b.eventTime.KeyGroups)
	for i := range keyGroups {
		keyGroups[i].Stage = renamed(keyGroups[i].Stage)
	}
	stages, joined := renameTimes(b.eventTime.Stages, renamed)
	keyGroups = slices.DeleteFunc(keyGroups, func(t checkpoint.KeyGroupTime) bool { return joined[t.Stage] })
	firing, _ := renameTimes(b.eventTime.Firing, renamed)
	for _, from := range slices.Sorted(maps.Keys(names)) {
		var err error
		if names[from] == "" {
			err = errors.New("the new ID is empty")
		} else if !found[from] {
			_, err = b.find(from, "")
		}
		if err := b.registryError(fmt.Sprintf("rename operator %q", from), err); err != nil {
			return err
		}
	}
	if i, err := b.clash(states); err != nil {
		return b.registryError(fmt.Sprintf("rename operator %q", b.states[i].Operator), err)
	}
	b.states, b.inFlight = states, inFlight
	b.eventTime.Stages, b.eventTime.KeyGroups, b.eventTime.Firing = stages, keyGroups, firing
	return nil
}

// renameTimes gives the times of stages their new names: the least where several are one now,
// which joined names.
func renameTimes(times map[string]int64, renamed func(string) string) (least map[string]int64, joined map[string]bool) {
	least, joined = map[string]int64{}, map[string]bool{}
	for stage, at := range times {
		to := renamed(stage)
		if other, ok := least[to]; ok {
			at, joined[to] = min(at, other), true
		}
		least[to] = at
	}
	return least, joined
}

// RenameState gives a state another name.
func (b *Builder) RenameState(operator, from, to string) error {
	return b.RenameStates(operator, map[string]string{from: to})
}

// RenameStates gives states of an operator other names, all at a time: names has the new
// one by the one that a state has.
func (b *Builder) RenameStates(operator string, names map[string]string) error {
	states := slices.Clone(b.states)
	for _, from := range slices.Sorted(maps.Keys(names)) {
		i, err := b.find(operator, from)
		if err == nil && names[from] == "" {
			err = errors.New("the new name is empty")
		}
		if err := b.registryError(fmt.Sprintf("rename state %q of operator %q", from, operator), err); err != nil {
			return err
		}
		states[i].Name = names[from]
	}
	if i, err := b.clash(states); err != nil {
		return b.registryError(fmt.Sprintf("rename state %q of operator %q", b.states[i].Name, operator), err)
	}
	b.states = states
	return nil
}

// clash tells whether two states, which are those of b renamed, have one name, and the
// index of one that got it.
func (b *Builder) clash(states []checkpoint.StateInfo) (int, error) {
	at := map[[2]string]int{}
	for i, s := range states {
		if s.Kind == kindDropped {
			continue
		}
		name := [2]string{s.Operator, s.Name}
		j, ok := at[name]
		if !ok {
			at[name] = i
			continue
		}
		if b.states[i].Operator == s.Operator && b.states[i].Name == s.Name {
			i = j // it had the name before
		}
		return i, fmt.Errorf("operator %q has a state %q already", s.Operator, s.Name)
	}
	return 0, nil
}

// Drop leaves a state out.
func (b *Builder) Drop(operator, name string) error {
	i, err := b.find(operator, name)
	if err := b.registryError(fmt.Sprintf("drop state %q of operator %q", name, operator), err); err != nil {
		return err
	}
	b.dropped[b.states[i].ID] = true
	b.states = slices.Delete(b.states, i, i+1)
	return nil
}

// Declare finds a state or adds one to the registry, and returns how it is laid out. A
// state that there is must be of the same kind and codecs: else the error is a
// *CodecError. The ID in info is ignored.
func (b *Builder) Declare(info checkpoint.StateInfo) (Layout, error) {
	l, err := b.declare(info)
	if err != nil {
		return l, fmt.Errorf("build savepoint: declare state %q of operator %q: %w", info.Name, info.Operator, err)
	}
	return l, nil
}

func (b *Builder) declare(info checkpoint.StateInfo) (Layout, error) {
	switch info.Kind {
	case kindValue, kindReducing, kindAggregating, kindMap, kindList, kindTimers, kindBroadcast:
	default:
		return Layout{}, fmt.Errorf("kind %q is not one of value, reducing, aggregating, map, list, timers, broadcast", info.Kind)
	}
	if info.Operator == "" || info.Name == "" {
		return Layout{}, errors.New("operator and name must be given")
	}
	i, err := b.find(info.Operator, info.Name)
	if err == nil {
		was := b.states[i]
		wrong := func(what, stored, asked string) error {
			return &CodecError{Operator: info.Operator, Name: info.Name, What: what, Stored: stored, Asked: asked}
		}
		switch {
		case was.Kind != info.Kind:
			return Layout{}, wrong("kind", was.Kind, info.Kind)
		case was.KeyCodec != info.KeyCodec:
			return Layout{}, wrong("key codec", was.KeyCodec, info.KeyCodec)
		case was.SubCodec != info.SubCodec:
			return Layout{}, wrong("map key codec", was.SubCodec, info.SubCodec)
		case was.ValueCodec != info.ValueCodec:
			return Layout{}, wrong("value codec", was.ValueCodec, info.ValueCodec)
		}
		if info.Kind != kindTimers {
			b.states[i].ValueVersion = max(was.ValueVersion, info.ValueVersion)
		}
		return LayoutOf(b.states[i]), nil
	}
	// IDs are given once: those of dropped states of the snapshot stay taken.
	id := uint16(1)
	for _, s := range b.states {
		id = max(id, s.ID+1)
	}
	for d := range b.dropped {
		id = max(id, d+1)
	}
	info.ID, info.Spared = id, nil
	info.ValueVersion = max(info.ValueVersion, 1)
	if info.Kind == kindTimers {
		info.ValueVersion = timerVersion
	}
	b.states = append(b.states, info)
	return LayoutOf(info), nil
}

// PutRow sets an entry of a state that was declared, from the Raw of the row's parts
// and its Meta, which a timer has none of; its KeyGroup is computed. A Version of zero is that of the registry, one
// above that is refused: an app that knows the registry's only could start and not read it.
func (b *Builder) PutRow(l Layout, r Row) error {
	kg, key, err := l.userKey(r, b.keyGroups)
	if err != nil {
		return b.entryError(l.State, err)
	}
	if r.HasTime() {
		return b.put(l.State, kg, key, Meta{Version: timerVersion}, func(dst []byte) ([]byte, error) { return dst, nil })
	}
	m, newest := r.Meta, max(l.State.ValueVersion, 1)
	if m.Version == 0 {
		m.Version = newest
	}
	if m.Version < 1 || m.Version > newest {
		return b.entryError(l.State, fmt.Errorf("it has version %d, and codec %q of the state versions up to %d: leave the version out, or declare the state with that one (--value-version, if it is new)", m.Version, l.State.ValueCodec, newest))
	}
	return b.put(l.State, kg, key, m, func(dst []byte) ([]byte, error) { return append(dst, r.Value.Raw...), nil })
}

// DeleteRow removes the entry that a row stands for, if there is one.
func (b *Builder) DeleteRow(l Layout, r Row) error {
	kg, key, err := l.userKey(r, b.keyGroups)
	if err != nil {
		return b.entryError(l.State, err)
	}
	return b.delete(kg, l.State.ID, key)
}

func (b *Builder) entryError(info checkpoint.StateInfo, err error) error {
	return fmt.Errorf("build savepoint: entry of state %q of operator %q: %w", info.Name, info.Operator, err)
}

func (b *Builder) put(info checkpoint.StateInfo, kg int, key []byte, m Meta, value func(dst []byte) ([]byte, error)) error {
	b.used = true
	into := &b.edits.b
	dst := append(into.BeginPut(uint16(kg), info.ID), key...)
	dst = segment.AppendHeader(into.KeyDone(dst), segment.Header{Version: m.Version, Domain: m.Clock, Expires: m.Expires})
	dst, err := value(dst)
	if err != nil {
		into.Abandon()
		return b.entryError(info, err)
	}
	into.ValueDone(dst)
	return b.edits.spill()
}

func (b *Builder) delete(kg int, id uint16, key []byte) error {
	b.used = true
	b.edits.b.DeleteDone(append(b.edits.b.BeginDelete(uint16(kg), id), key...))
	return b.edits.spill()
}

// ValuesOf writes a value state; see [ValueState].
type ValuesOf[K, V any] struct {
	b      *Builder
	l      Layout
	keys   codec.Codec[K]
	values codec.Codec[V]
	buf    []byte
}

// ValueState declares a value state to write.
func ValueState[K, V any](b *Builder, operator, name string, keys codec.Codec[K], values codec.Codec[V]) (*ValuesOf[K, V], error) {
	if err := checkCodecs(codec.Check(keys), codec.Check(values)); err != nil {
		return nil, err
	}
	info := checkpoint.StateInfo{Operator: operator, Name: name, Kind: kindValue, KeyCodec: keys.Name(), ValueCodec: values.Name(), ValueVersion: values.Version()}
	// A reducing or aggregating state is laid out alike.
	if i, err := b.find(operator, name); err == nil && isValue(b.states[i].Kind) {
		info.Kind = b.states[i].Kind
	}
	l, err := b.Declare(info)
	return &ValuesOf[K, V]{b: b, l: l, keys: keys, values: values}, err
}

// Put sets the entry of a key. m is the zero Meta for an entry that never expires; only
// Clock and Expires of it are used.
func (s *ValuesOf[K, V]) Put(key K, value V, m Meta) error {
	var err error
	if s.buf, err = s.keys.Append(s.buf[:0], key); err != nil {
		return s.b.entryError(s.l.State, err)
	}
	m.Version = s.values.Version()
	return s.b.put(s.l.State, keygroup.Of(s.buf, s.b.keyGroups), s.buf, m, func(dst []byte) ([]byte, error) { return s.values.Append(dst, value) })
}

// Delete removes the entry of a key, if there is one.
func (s *ValuesOf[K, V]) Delete(key K) error {
	var err error
	if s.buf, err = s.keys.Append(s.buf[:0], key); err != nil {
		return s.b.entryError(s.l.State, err)
	}
	return s.b.delete(keygroup.Of(s.buf, s.b.keyGroups), s.l.State.ID, s.buf)
}

// MapOf writes a map state; see [MapState].
type MapOf[K, M, V any] struct {
	b       *Builder
	l       Layout
	keys    codec.Codec[K]
	mapKeys codec.Codec[M]
	values  codec.Codec[V]
}

// MapState declares a map state to write.
func MapState[K, M, V any](b *Builder, operator, name string, keys codec.Codec[K], mapKeys codec.Codec[M], values codec.Codec[V]) (*MapOf[K, M, V], error) {
	if err := checkCodecs(codec.Check(keys), checkMapKeys(operator, name, mapKeys), codec.Check(values)); err != nil {
		return nil, err
	}
	l, err := b.Declare(checkpoint.StateInfo{Operator: operator, Name: name, Kind: kindMap, KeyCodec: keys.Name(), SubCodec: mapKeys.Name(), ValueCodec: values.Name(), ValueVersion: values.Version()})
	return &MapOf[K, M, V]{b, l, keys, mapKeys, values}, err
}

func (s *MapOf[K, M, V]) userKey(key K, mapKey M) (kg int, k []byte, err error) {
	enc, err := s.keys.Append(nil, key)
	if err == nil {
		k, err = appendOrdered(s.mapKeys, segment.AppendEscaped(nil, enc), mapKey)
	}
	if err != nil {
		return 0, nil, s.b.entryError(s.l.State, err)
	}
	return keygroup.Of(enc, s.b.keyGroups), k, nil
}

// Put sets the entry of a key and map key. m is as with [ValuesOf.Put].
func (s *MapOf[K, M, V]) Put(key K, mapKey M, value V, m Meta) error {
	kg, k, err := s.userKey(key, mapKey)
	if err != nil {
		return err
	}
	m.Version = s.values.Version()
	return s.b.put(s.l.State, kg, k, m, func(dst []byte) ([]byte, error) { return s.values.Append(dst, value) })
}

// Delete removes the entry of a key and map key, if there is one.
func (s *MapOf[K, M, V]) Delete(key K, mapKey M) error {
	kg, k, err := s.userKey(key, mapKey)
	if err != nil {
		return err
	}
	return s.b.delete(kg, s.l.State.ID, k)
}

// ListOf writes a list state; see [ListState]. Where the indexes of a key's elements do not
// follow each other in the end, because some in the midst were deleted or some left out,
// [Builder.Write] moves those behind the gap up, unless they expire. Until then an index is
// the one that the snapshot has, whatever was deleted before it.
type ListOf[K, V any] struct {
	b      *Builder
	l      Layout
	keys   codec.Codec[K]
	values codec.Codec[V]
}

// ListState declares a list state to write.
func ListState[K, V any](b *Builder, operator, name string, keys codec.Codec[K], values codec.Codec[V]) (*ListOf[K, V], error) {
	if err := checkCodecs(codec.Check(keys), codec.Check(values)); err != nil {
		return nil, err
	}
	l, err := b.Declare(checkpoint.StateInfo{Operator: operator, Name: name, Kind: kindList, KeyCodec: keys.Name(), ValueCodec: values.Name(), ValueVersion: values.Version()})
	return &ListOf[K, V]{b, l, keys, values}, err
}

// Put sets the element of a key at index. m is as with [ValuesOf.Put].
func (s *ListOf[K, V]) Put(key K, index uint64, value V, m Meta) error {
	enc, err := s.keys.Append(nil, key)
	if err != nil {
		return s.b.entryError(s.l.State, err)
	}
	m.Version = s.values.Version()
	return s.b.put(s.l.State, keygroup.Of(enc, s.b.keyGroups), appendElement(nil, enc, index), m, func(dst []byte) ([]byte, error) { return s.values.Append(dst, value) })
}

// Delete removes the element of a key at index, if there is one.
func (s *ListOf[K, V]) Delete(key K, index uint64) error {
	enc, err := s.keys.Append(nil, key)
	if err != nil {
		return s.b.entryError(s.l.State, err)
	}
	return s.b.delete(keygroup.Of(enc, s.b.keyGroups), s.l.State.ID, appendElement(nil, enc, index))
}

// BroadcastOf writes a broadcast state; see [BroadcastState].
type BroadcastOf[M, V any] struct {
	b       *Builder
	l       Layout
	mapKeys codec.Codec[M]
	values  codec.Codec[V]
}

// BroadcastState declares a broadcast state to write.
func BroadcastState[M, V any](b *Builder, operator, name string, mapKeys codec.Codec[M], values codec.Codec[V]) (*BroadcastOf[M, V], error) {
	if err := checkCodecs(checkMapKeys(operator, name, mapKeys), codec.Check(values)); err != nil {
		return nil, err
	}
	info := checkpoint.StateInfo{Operator: operator, Name: name, Kind: kindBroadcast, SubCodec: mapKeys.Name(), ValueCodec: values.Name(), ValueVersion: values.Version()}
	if i, err := b.find(operator, name); err == nil {
		info.KeyCodec = b.states[i].KeyCodec // of no meaning in one that there is
	}
	l, err := b.Declare(info)
	return &BroadcastOf[M, V]{b, l, mapKeys, values}, err
}

// Put sets the entry of a map key. m is as with [ValuesOf.Put].
func (s *BroadcastOf[M, V]) Put(mapKey M, value V, m Meta) error {
	k, err := appendOrdered(s.mapKeys, nil, mapKey)
	if err != nil {
		return s.b.entryError(s.l.State, err)
	}
	m.Version = s.values.Version()
	return s.b.put(s.l.State, 0, k, m, func(dst []byte) ([]byte, error) { return s.values.Append(dst, value) })
}

// Delete removes the entry of a map key, if there is one.
func (s *BroadcastOf[M, V]) Delete(mapKey M) error {
	k, err := appendOrdered(s.mapKeys, nil, mapKey)
	if err != nil {
		return s.b.entryError(s.l.State, err)
	}
	return s.b.delete(0, s.l.State.ID, k)
}

// timerVersion is what apps write, in the registry and in entries: timers have no value.
const timerVersion = 0

// TimersOf writes timers; see [TimerState].
type TimersOf[K any] struct {
	b    *Builder
	l    Layout
	keys codec.Codec[K]
}

// TimerState declares the timers of an operator to write. name is [EventTimers] or
// [ProcessingTimers].
func TimerState[K any](b *Builder, operator, name string, keys codec.Codec[K]) (*TimersOf[K], error) {
	if err := codec.Check(keys); err != nil {
		return nil, err
	}
	if name != EventTimers && name != ProcessingTimers {
		return nil, fmt.Errorf("build savepoint: timers of operator %q: their name is %q, not %q or %q", operator, name, EventTimers, ProcessingTimers)
	}
	info := checkpoint.StateInfo{Operator: operator, Name: name, Kind: kindTimers, KeyCodec: keys.Name()}
	if i, err := b.find(operator, name); err == nil {
		info.ValueCodec = b.states[i].ValueCodec // of no meaning
	}
	l, err := b.Declare(info)
	return &TimersOf[K]{b, l, keys}, err
}

// Put sets a timer of a key, in milliseconds since 1970.
func (s *TimersOf[K]) Put(key K, at int64) error {
	enc, err := s.keys.Append(nil, key)
	if err != nil {
		return s.b.entryError(s.l.State, err)
	}
	return s.b.put(s.l.State, keygroup.Of(enc, s.b.keyGroups), appendTimer(nil, at, enc), Meta{Version: timerVersion}, func(dst []byte) ([]byte, error) { return dst, nil })
}

// Delete removes a timer of a key, if there is one.
func (s *TimersOf[K]) Delete(key K, at int64) error {
	enc, err := s.keys.Append(nil, key)
	if err != nil {
		return s.b.entryError(s.l.State, err)
	}
	return s.b.delete(keygroup.Of(enc, s.b.keyGroups), s.l.State.ID, appendTimer(nil, at, enc))
}

// checkCodecs makes one error of what is wrong with the codecs of a state.
func checkCodecs(errs ...error) error {
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("build savepoint: %w", err)
	}
	return nil
}

// merged calls visit for each entry of the savepoint, in order. An entry is valid until
// visit returns.
func (b *Builder) merged(ctx context.Context, visit func(e segment.Entry) error) (err error) {
	if err := b.edits.flush(); err != nil {
		return err
	}
	var parts []part
	if b.base != nil {
		if b.keyGroups == b.base.manifest.KeyGroups {
			parts = stored(b.base.store, b.base.manifest.Segments)
		} else {
			moved, merr := b.rehash(ctx)
			defer func() { err = errors.Join(err, moved.close()) }()
			if merr != nil {
				return merr
			}
			parts = moved.parts()
		}
	}
	c := newChain(ctx, append(parts, b.edits.parts()...))
	defer c.close()
	if err := c.seek(nil); err != nil {
		return err
	}
	gone, lists := b.gone(), newCloser(b.states)
	for n := int64(1); ; n++ {
		e, ok, err := c.next()
		if err != nil || !ok {
			return err
		}
		if gone[e.State] {
			continue
		}
		if n%progressEntries == 0 && b.cfg.Progress != nil {
			b.cfg.Progress(Progress{Entries: n, KeyGroup: int(e.KeyGroup), KeyGroups: b.keyGroups})
		}
		if err := visit(lists.close(e)); err != nil {
			return err
		}
	}
}

// gone are the states of the snapshot that have no place in the savepoint.
func (b *Builder) gone() map[uint16]bool {
	gone := maps.Clone(b.dropped)
	for _, s := range b.states {
		if s.Kind == kindDropped {
			gone[s.ID] = true
		}
	}
	return gone
}

// rehash sorts the entries of the snapshot by their new key-groups.
func (b *Builder) rehash(ctx context.Context) (*sorter, error) {
	moved := newSorter(b.cfg.Dir, b.cfg.MemoryBytes)
	kinds := map[uint16]checkpoint.StateInfo{}
	for _, s := range b.states {
		kinds[s.ID] = s
	}
	gone := b.gone()
	o := b.base.options([]Option{OnProgress(b.cfg.Progress)})
	for e, err := range b.base.entries(ctx, o, nil) {
		if err != nil {
			return moved, err
		}
		info, ok := kinds[e.State]
		if !ok || gone[e.State] {
			continue
		}
		kg := 0
		if info.Kind != kindBroadcast {
			key, err := ownerOf(info.Kind, e.Key)
			if err != nil {
				return moved, b.base.entryError(info, e, fmt.Errorf("%w: drop the state to change the key-group count", err))
			}
			kg = keygroup.Of(key, b.keyGroups)
		}
		dst := append(moved.b.BeginPut(uint16(kg), e.State), e.Key...)
		moved.b.ValueDone(append(moved.b.KeyDone(dst), e.Value...))
		if err := moved.spill(); err != nil {
			return moved, err
		}
	}
	return moved, moved.flush()
}

// liveStates is the registry of the savepoint: what was dropped before has no entries
// left, and its number is free again.
func (b *Builder) liveStates() []checkpoint.StateInfo {
	return slices.DeleteFunc(slices.Clone(b.states), func(s checkpoint.StateInfo) bool { return s.Kind == kindDropped })
}
