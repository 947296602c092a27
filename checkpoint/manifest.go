package checkpoint

import (
	"cmp"
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

// Manifest is all that makes up one checkpoint. It is immutable once it was loaded
// or persisted.
type Manifest struct {
	App         string
	Instance    string
	Checkpoint  int64
	Incarnation uint32
	Created     time.Time
	KeyGroups   int

	// Lineage names the line of checkpoints that this one is of: within one, commits
	// follow each other, so lineage and checkpoint id together identify a state. It is
	// made anew where a job starts from nothing, from a savepoint or from positions
	// that a person chose. 16 hexadecimal digits; empty in manifests of builds that
	// knew no lineage.
	Lineage string
	// Watermark is the event time that stood behind the barrier everywhere where entries
	// expire by it, or anywhere if none do, in milliseconds since 1970, NoWatermark if there
	// was none: what had expired by then nobody sees.
	Watermark int64
	// EventTime is where the watermarks stood.
	EventTime EventTime
	// Parent is the checkpoint that this one was built on, zero for the first one.
	Parent offsets.ManifestRef
	// Positions are those at the barrier.
	Positions map[offsets.Partition]offsets.Position
	// TopicIDs tells which topics of these names the positions are of, as far as it is
	// known. Manifests of builds that didn't note it have none.
	TopicIDs map[string]TopicID
	// States is the registry of keyed states.
	States []StateInfo
	// Segments is the chain, oldest first: later ones win.
	Segments []SegmentRef
	// Sinks holds the state of sinks by operator ID.
	Sinks map[string]json.RawMessage
	// Logs lists the logs of write-ahead sinks that are kept, by operator ID.
	Logs []SinkLogs
	// InFlight are the records that were in flight to subtasks, if the checkpoint was
	// unaligned. Those of a stage are to be processed in this order.
	InFlight []InFlight
}

// TopicID is what a cluster tells a topic from an earlier one of the same name by.
type TopicID [16]byte

// String returns the id as Kafka's tools print it.
func (id TopicID) String() string { return base64.RawURLEncoding.EncodeToString(id[:]) }

// MarshalText implements [encoding.TextMarshaler].
func (id TopicID) MarshalText() ([]byte, error) { return []byte(id.String()), nil }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (id *TopicID) UnmarshalText(text []byte) error {
	b, err := base64.RawURLEncoding.DecodeString(string(text))
	if err != nil || len(b) != len(id) {
		return fmt.Errorf("topic id %q is not one", text)
	}
	copy(id[:], b)
	return nil
}

// NoWatermark is the watermark before any event time is known.
const NoWatermark = math.MinInt64

// StateInfo describes one keyed state. Its ID stands in the keys of segments, is
// given once and kept for the life of the app.
type StateInfo struct {
	ID           uint16 `json:"id"`
	Operator     string `json:"operator"`
	Name         string `json:"name"`
	Kind         string `json:"kind"` // value, list, map, timers, ...
	KeyCodec     string `json:"keyCodec"`
	SubCodec     string `json:"subCodec,omitempty"` // of the keys of a map
	ValueCodec   string `json:"valueCodec"`
	ValueVersion int    `json:"valueVersion"`
	// Clock says by which clock entries expire: none, processing or event. It is empty for
	// timers, and where a build wrote the manifest that didn't note it.
	Clock string `json:"clock,omitempty"`
	// Spared are expiries that do not count: those of entries that were written before the
	// state lost its time to live, or got another clock, and had not expired by then.
	Spared segment.Spans `json:"spared,omitempty"`
}

// Follow makes s what became of was, at the times at which the app starts with it, in
// milliseconds since 1970. Expiries by a clock that is not that of s any more count up to
// these times only, and those by a clock that is so again count from there on.
func (s *StateInfo) Follow(was StateInfo, processing, event int64) {
	s.ID, s.Spared = was.ID, slices.Clone(was.Spared)
	if s.Clock == "" {
		return
	}
	for clock := segment.ProcessingTime; clock <= segment.EventTime; clock++ {
		name, now := clock.Name(), processing
		if clock == segment.EventTime {
			now = event
		}
		open := slices.IndexFunc(s.Spared, func(sp segment.Span) bool { return sp.Clock == clock && sp.Until == math.MaxInt64 })
		switch {
		case s.Clock == name && open >= 0:
			s.Spared[open].Until = now
		case s.Clock != name && open < 0 && (was.Clock == name || was.Clock == ""):
			s.Spared = append(s.Spared, segment.Span{Clock: clock, After: now, Until: math.MaxInt64})
		}
	}
}

// Spared returns the expiries that do not count, by the ID of a state that has some.
func Spared(states []StateInfo) map[uint16]segment.Spans {
	spared := map[uint16]segment.Spans{}
	for _, s := range states {
		if len(s.Spared) > 0 {
			spared[s.ID] = s.Spared
		}
	}
	return spared
}

// SegmentRef says where a segment is and what it contains. A segment is a whole
// object, or a part of a manifest.
type SegmentRef struct {
	Object     string `json:"object,omitempty"` // in the encoded manifest, empty is this manifest
	Offset     int64  `json:"offset,omitempty"` // bytes
	Length     int64  `json:"length"`           // bytes
	CRC32C     uint32 `json:"crc32c"`           // of these bytes
	Entries    int64  `json:"entries"`
	Tombstones int64  `json:"tombstones"`
	MinKG      uint16 `json:"minKG"`
	MaxKG      uint16 `json:"maxKG"` // inclusive
	// The checkpoints whose changes it holds.
	FirstCheckpoint int64 `json:"first"`
	LastCheckpoint  int64 `json:"last"`

	// Base says that nothing older had keys in its range when it was merged, so its
	// tombstones were dropped: it stands for all that came before.
	Base bool `json:"base,omitempty"`
	// MinKey and MaxKey are its first and its last key, both inclusive, in
	// hexadecimal, which sorts as the keys do. Empty if only the key-groups are known.
	MinKey string `json:"minKey,omitempty"`
	MaxKey string `json:"maxKey,omitempty"`
	// Shards says into how many equal ranges of key-groups, a power of two, the merged
	// level was divided that this is a piece of. No piece crosses such a range. Zero
	// is one.
	Shards int `json:"shards,omitempty"`
	// Run is the size in bytes of the whole level that this is a piece of, estimated
	// from a range of it. Zero is Length.
	Run int64 `json:"run,omitempty"`
}

// Inline tells that the segment is a part of a manifest object.
func (s SegmentRef) Inline() bool { return strings.HasPrefix(s.Object, manifestPrefix) }

// overlaps tells whether the segment may have keys in [lo, hi).
func (s SegmentRef) overlaps(lo, hi int) bool { return int(s.MinKG) < hi && int(s.MaxKG) >= lo }

// Check makes sure that the manifest is one of app with keyGroups key-groups. Errors
// are *WrongAppError and *KeyGroupsError.
func (m *Manifest) Check(store Store, app string, keyGroups int) error {
	switch {
	case m.App != app:
		return &WrongAppError{Store: store.String(), Want: app, Got: m.App}
	case m.KeyGroups != keyGroups:
		return &KeyGroupsError{Store: store.String(), Want: keyGroups, Got: m.KeyGroups}
	}
	return nil
}

// Bytes returns the size of all segments together.
func (m *Manifest) Bytes() int64 {
	var n int64
	for _, s := range m.Segments {
		n += s.Length
	}
	return n
}

// objects yields the names of the objects that the checkpoint needs beside its own.
func (m *Manifest) objects(yield func(string) bool) {
	for _, s := range m.Segments {
		if !yield(s.Object) {
			return
		}
	}
	for _, l := range m.logs {
		if !yield(l.Object) {
			return
		}
	}
	for _, f := range m.InFlight {
		if !yield(f.Object) {
			return
		}
	}
}

const (
	manifestPrefix = "ckpt/"
	manifestSuffix = ".manifest"
	segmentPrefix  = "seg/"
	segmentSuffix  = ".sst"
)

// manifestObject returns the name of the object that ref names.
func manifestObject(ref offsets.ManifestRef) string {
	return manifestPrefix + ref.Object() + manifestSuffix
}

func segmentObject(ref offsets.ManifestRef) string {
	return segmentPrefix + ref.Object() + segmentSuffix
}

func mergedObject(ref offsets.ManifestRef, n int) string {
	return segmentPrefix + ref.Object() + "-m" + strconv.Itoa(n) + segmentSuffix
}

// cutAffixes returns what is between prefix and suffix of name.
func cutAffixes(name, prefix, suffix string) (between string, ok bool) {
	if between, ok = strings.CutPrefix(name, prefix); ok {
		between, ok = strings.CutSuffix(between, suffix)
	}
	return between, ok
}

// parseObject returns the checkpoint id and incarnation in the name of a manifest, of a
// segment, of a log or of records in flight.
func parseObject(name string) (id int64, incarnation uint32, ok bool) {
	if ref, is := cutAffixes(name, manifestPrefix, manifestSuffix); is {
		name = ref
	} else if ref, is := cutAffixes(name, inFlightPrefix, inFlightSuffix); is {
		name = ref
	} else if ref, is := cutAffixes(name, segmentPrefix, segmentSuffix); is {
		name = ref
		if base, n, merged := strings.Cut(name, "-m"); merged {
			if _, err := strconv.ParseUint(n, 10, 32); err != nil {
				return 0, 0, false
			}
			name = base
		}
	} else if ref, is := cutAffixes(name, logPrefix, logSuffix); is {
		i := strings.LastIndexByte(ref, '-')
		if i < 0 {
			return 0, 0, false
		}
		if _, err := strconv.ParseUint(ref[i+1:], 10, 32); err != nil {
			return 0, 0, false
		}
		name = ref[:i]
	} else {
		return 0, 0, false
	}
	c, i, ok := strings.Cut(name, "-")
	if !ok || len(c) != 16 || len(i) != 8 {
		return 0, 0, false
	}
	cp, err := strconv.ParseUint(c, 16, 63)
	if err != nil {
		return 0, 0, false
	}
	inc, err := strconv.ParseUint(i, 16, 32)
	if err != nil {
		return 0, 0, false
	}
	return int64(cp), uint32(inc), true
}

// An encoded manifest, versions 1 to 5; numbers are big-endian:
//
//	magic          "WEIRCKPT"
//	version        4 bytes
//	header length  4 bytes
//	total length   8 bytes  of everything, checksum included
//	header         JSON, for people and for fields to come; unknown ones are ignored
//	inline         the bytes of an inline segment, then those of inline logs, then those of
//	               records in flight; or nothing
//	crc32c         4 bytes  of everything before it
//
// Version 2 has logs. A build that doesn't know them must not restore it, or what they
// hold would never be applied. Version 3 has packs of logs. Version 4 has records in flight,
// which would be lost in the same way, and version 5 broadcast records among them. A
// manifest has the lowest version that does.
const (
	manifestMagic   = "WEIRCKPT"
	manifestVersion = 5
	fixedBytes      = 8 + 4 + 4 + 8
	trailerBytes    = 4
)

// header is the JSON form of a Manifest.
type header struct {
	App         string                     `json:"app"`
	Instance    string                     `json:"instance"`
	Checkpoint  int64                      `json:"checkpoint"`
	Incarnation uint32                     `json:"incarnation"`
	Created     time.Time                  `json:"created"`
	KeyGroups   int                        `json:"keyGroups"`
	Lineage     string                     `json:"lineage,omitempty"`
	Watermark   *int64                     `json:"watermark,omitempty"`
	EventTime   *eventTimeJSON             `json:"eventTime,omitempty"`
	Parent      *refJSON                   `json:"parent,omitempty"`
	Positions   []positionJSON             `json:"positions"`
	TopicIDs    map[string]TopicID         `json:"topicIDs,omitempty"`
	States      []StateInfo                `json:"states"`
	Segments    []SegmentRef               `json:"segments"`
	Sinks       map[string]json.RawMessage `json:"sinks,omitempty"`
	Logs        []sinkLogsJSON             `json:"logs,omitempty"`     // from version 2 on
	InFlight    []InFlight                 `json:"inFlight,omitempty"` // from version 4 on
}

type refJSON struct {
	Checkpoint  int64  `json:"checkpoint"`
	Incarnation uint32 `json:"incarnation"`
	Hash        string `json:"hash"`
}

type positionJSON struct {
	Topic       string `json:"topic"`
	Partition   int32  `json:"partition"`
	Offset      int64  `json:"offset"`
	LeaderEpoch int32  `json:"leaderEpoch"`
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// encode returns the manifest's bytes and the reference to them. Segments, logs and records
// in flight whose Object is empty refer to inline; in m they get the place that inline has
// in the encoded manifest.
func (m *Manifest) encode(inline []byte) ([]byte, offsets.ManifestRef, error) {
	h := header{
		App: m.App, Instance: m.Instance, Checkpoint: m.Checkpoint, Incarnation: m.Incarnation,
		Created: m.Created, KeyGroups: m.KeyGroups, Lineage: m.Lineage, States: m.States, Segments: m.Segments, Sinks: m.Sinks,
		Positions: make([]positionJSON, 0, len(m.Positions)), TopicIDs: m.TopicIDs, Logs: encodeSinkLogs(m), InFlight: m.InFlight,
	}
	version := uint32(1)
	if len(m.Logs) > 0 {
		version = 2
	}
	for _, l := range m.logs {
		if l.Pack() {
			version = 3
		}
	}
	if len(m.InFlight) > 0 {
		version = 4
	}
	if slices.ContainsFunc(m.InFlight, InFlight.Broadcast) {
		version = 5
	}
	if m.Watermark != NoWatermark {
		h.Watermark = &m.Watermark
	}
	h.EventTime = m.EventTime.json()
	if m.Parent != (offsets.ManifestRef{}) {
		h.Parent = &refJSON{m.Parent.Checkpoint, m.Parent.Incarnation, hex.EncodeToString(m.Parent.Hash[:])}
	}
	for p, pos := range m.Positions {
		h.Positions = append(h.Positions, positionJSON{p.Topic, p.Partition, pos.Offset, pos.LeaderEpoch})
	}
	slices.SortFunc(h.Positions, func(a, b positionJSON) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	text, err := json.Marshal(&h)
	if err != nil {
		return nil, offsets.ManifestRef{}, fmt.Errorf("encode manifest of checkpoint %d: %w", m.Checkpoint, err)
	}
	if len(text) > math.MaxUint32 {
		return nil, offsets.ManifestRef{}, fmt.Errorf("encode manifest of checkpoint %d: header of %d bytes is too long", m.Checkpoint, len(text))
	}
	total := fixedBytes + len(text) + len(inline) + trailerBytes
	b := make([]byte, 0, total)
	b = append(b, manifestMagic...)
	b = binary.BigEndian.AppendUint32(b, version)
	b = binary.BigEndian.AppendUint32(b, uint32(len(text)))
	b = binary.BigEndian.AppendUint64(b, uint64(total))
	b = append(b, text...)
	b = append(b, inline...)
	b = binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	ref := offsets.ManifestRef{Checkpoint: m.Checkpoint, Incarnation: m.Incarnation, Hash: hashOf(b)}
	m.place(manifestObject(ref), int64(fixedBytes+len(text)))
	return b, ref, nil
}

// place turns references to the manifest itself into references to its object.
func (m *Manifest) place(object string, inlineAt int64) {
	for i := range m.Segments {
		if s := &m.Segments[i]; s.Object == "" {
			s.Object = object
			s.Offset += inlineAt
		}
	}
	for _, l := range m.logs {
		if l.Object == "" {
			l.Object = object
			l.Offset += inlineAt
		}
	}
	for i := range m.InFlight {
		if f := &m.InFlight[i]; f.Object == "" {
			f.Object = object
			f.Offset += inlineAt
		}
	}
}

func hashOf(b []byte) (h [16]byte) {
	sum := sha256.Sum256(b)
	copy(h[:], sum[:])
	return h
}

// unknownVersion is turned into a *VersionError by who knows the object's name.
type unknownVersion int

func (v unknownVersion) Error() string { return fmt.Sprintf("unknown version %d", int(v)) }

// decodeManifest decodes an encoded manifest that stands in the store as object. An
// error says what is wrong with it; an unknownVersion is one.
func decodeManifest(b []byte, object string) (*Manifest, error) {
	verify := !guard.Broken(guard.Checksum)
	if len(b) < fixedBytes+trailerBytes {
		return nil, fmt.Errorf("truncated: %d bytes are less than any manifest has", len(b))
	}
	if string(b[:8]) != manifestMagic {
		return nil, errors.New("it does not begin as a manifest does")
	}
	version := binary.BigEndian.Uint32(b[8:])
	if version < 1 || version > manifestVersion {
		// The checksum has the same place in every version: a flipped bit is not
		// mistaken for a newer build.
		if verify && !sumMatches(b) {
			return nil, errors.New("its checksum does not match")
		}
		return nil, unknownVersion(version)
	}
	headerLen, total := uint64(binary.BigEndian.Uint32(b[12:])), binary.BigEndian.Uint64(b[16:])
	if total != uint64(len(b)) {
		if total > uint64(len(b)) {
			return nil, fmt.Errorf("truncated: %d of %d bytes", len(b), total)
		}
		return nil, fmt.Errorf("%d bytes, %d were written", len(b), total)
	}
	if verify && !sumMatches(b) {
		return nil, errors.New("its checksum does not match")
	}
	if headerLen > uint64(len(b)-fixedBytes-trailerBytes) {
		return nil, fmt.Errorf("header of %d bytes in a manifest of %d", headerLen, len(b))
	}
	var h header
	if err := json.Unmarshal(b[fixedBytes:fixedBytes+headerLen], &h); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	m := &Manifest{
		App: h.App, Instance: h.Instance, Checkpoint: h.Checkpoint, Incarnation: h.Incarnation,
		Created: h.Created, KeyGroups: h.KeyGroups, Lineage: h.Lineage, Watermark: NoWatermark, States: h.States, Segments: h.Segments, Sinks: h.Sinks, InFlight: h.InFlight,
		Positions: make(map[offsets.Partition]offsets.Position, len(h.Positions)), TopicIDs: h.TopicIDs,
	}
	if h.Watermark != nil {
		m.Watermark = *h.Watermark
	}
	var err error
	if m.EventTime, err = h.EventTime.decode(); err != nil {
		return nil, err
	}
	if h.Parent != nil {
		m.Parent = offsets.ManifestRef{Checkpoint: h.Parent.Checkpoint, Incarnation: h.Parent.Incarnation}
		if n, err := hex.Decode(m.Parent.Hash[:], []byte(h.Parent.Hash[:min(len(h.Parent.Hash), 32)])); err != nil || n != 16 || len(h.Parent.Hash) != 32 {
			return nil, fmt.Errorf("header: the parent's hash %q is not one", h.Parent.Hash)
		}
	}
	for _, p := range h.Positions {
		part := offsets.Partition{Topic: p.Topic, Partition: p.Partition}
		if _, dup := m.Positions[part]; dup {
			return nil, fmt.Errorf("header: two positions of %s", part)
		}
		m.Positions[part] = offsets.Position{Offset: p.Offset, LeaderEpoch: p.LeaderEpoch}
	}
	inline := int64(len(b)-fixedBytes-trailerBytes) - int64(headerLen)
	for i, s := range m.Segments {
		if s.Offset < 0 || s.Length < 0 || s.Offset > math.MaxInt64-s.Length || s.Entries < 0 || s.Tombstones < 0 || s.MinKG > s.MaxKG || s.Run < 0 || s.Shards < 0 || s.MinKey > s.MaxKey {
			return nil, fmt.Errorf("header: segment %d makes no sense", i)
		}
		if s.Object == "" && s.Offset+s.Length > inline {
			return nil, fmt.Errorf("header: inline segment of bytes %d to %d, there are %d", s.Offset, s.Offset+s.Length, inline)
		}
		if s.Object != "" && (!validName(s.Object) || !s.Inline() && !strings.HasPrefix(s.Object, segmentPrefix)) {
			return nil, fmt.Errorf("header: segment %d has the object name %q", i, s.Object)
		}
	}
	if version == 1 && len(h.Logs) > 0 {
		return nil, errors.New("header: it lists logs, which a manifest of version 1 does not have")
	}
	if err := decodeSinkLogs(m, h.Logs, inline); err != nil {
		return nil, err
	}
	for _, l := range m.logs {
		if version < 3 && l.Pack() {
			return nil, errors.New("header: it lists a pack of logs, which only a manifest of version 3 has")
		}
	}
	if version < 4 && len(m.InFlight) > 0 {
		return nil, errors.New("header: it lists records in flight, which only a manifest of version 4 has")
	}
	if version < 5 && slices.ContainsFunc(m.InFlight, InFlight.Broadcast) {
		return nil, errors.New("header: it lists broadcast records in flight, which only a manifest of version 5 has")
	}
	for i, f := range m.InFlight {
		if err := f.check(inline); err != nil {
			return nil, fmt.Errorf("header: records in flight, number %d: %w", i, err)
		}
	}
	m.place(object, int64(fixedBytes+headerLen))
	return m, nil
}

func sumMatches(b []byte) bool {
	n := len(b) - trailerBytes
	return crc32.Checksum(b[:n], castagnoli) == binary.BigEndian.Uint32(b[n:])
}
