package checkpoint

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/offsets"
)

// A log is what a write-ahead sink is to do once its checkpoint is committed. It is part
// of the checkpoint in which it was logged, inline in the manifest if it is small, and
// later manifests list it as long as the sink wants it kept: until it is applied, and for
// as long after that as the receiver may lose what it was given. So the manifest that a
// pointer names has every log that may have to be applied, whoever was to apply it.
//
// Quick checkpoints make many small logs, each of which would be named by every manifest
// and keep the manifest that it is in. So the writer puts those of one sink together, as
// soon as there are some dozens, or some in front of a large one, into one object with an
// index: a pack, which manifests name as one. [ExpandLogs] reads the index. Only logs whose
// bytes the writer still has in memory are packed, so nothing is read for it; those of
// earlier incarnations fall out of the list by themselves.
//
// What holds for segments holds for logs: they are immutable, carry the id of their
// checkpoint in their names, are verified when they are read, are inherited by reference,
// and are deleted by the rules in collect.go.

// SinkLogs lists the logs of one sink.
type SinkLogs struct {
	Operator string
	// Before is the checkpoint of the newest log that is not listed any more, 0 if all that
	// there ever were are listed.
	Before int64
	// From is set if the first of Logs is a pack of which not all is kept: logs of
	// checkpoints before From are to be passed over.
	From int64
	// Logs are those that are kept, oldest first; at most one for each checkpoint.
	Logs []LogRef
}

// LogRef says where a log is, or a pack of several: a part of an object, or of a manifest.
type LogRef struct {
	// Count is how many logs are in a pack, and First the checkpoint of its first; both are
	// zero for a single log.
	Count      int
	First      int64
	Checkpoint int64     // of the log; of a pack, the last one
	Lineage    string    // of the checkpoint, of all of a pack
	Created    time.Time // the last one of a pack
	Object     string    // in the encoded manifest, empty is this manifest
	Offset     int64     // bytes
	Length     int64     // bytes
	CRC32C     uint32    // of these bytes
	Bytes      int64     // of all parts together, without their lengths
}

// Pack tells that it is a pack.
func (l LogRef) Pack() bool { return l.Count > 0 }

// Span returns how many logs it is, and their first and last checkpoints.
func (l LogRef) Span() (n int, first, last int64) {
	if !l.Pack() {
		return 1, l.Checkpoint, l.Checkpoint
	}
	return l.Count, l.First, l.Checkpoint
}

// Inline tells that the log is a part of a manifest object.
func (l LogRef) Inline() bool { return strings.HasPrefix(l.Object, manifestPrefix) }

// LogPart is what one writer of a sink logged between two barriers.
type LogPart struct {
	Operator string
	Bytes    []byte
}

// KeepNone as what a sink keeps says that it left the topology: its logs are left out,
// and that there were any.
const KeepNone = math.MaxInt64

// LogBytes returns the size of all logs together.
func (m *Manifest) LogBytes() int64 {
	var n int64
	for _, l := range m.logs {
		n += l.Length
	}
	return n
}

// logs yields the logs of all sinks, to read or to change.
func (m *Manifest) logs(yield func(int, *LogRef) bool) {
	n := 0
	for i := range m.Logs {
		for j := range m.Logs[i].Logs {
			if !yield(n, &m.Logs[i].Logs[j]) {
				return
			}
			n++
		}
	}
}

// cloneLogs copies what changes when logs are added, left out or moved.
func cloneLogs(sinks []SinkLogs) []SinkLogs {
	sinks = slices.Clone(sinks)
	for i := range sinks {
		sinks[i].Logs = slices.Clone(sinks[i].Logs)
	}
	return sinks
}

// keptLogs returns the logs that are still wanted. A sink that keep doesn't name keeps
// all of its.
func keptLogs(sinks []SinkLogs, keep map[string]int64) []SinkLogs {
	var kept []SinkLogs
	for _, s := range cloneLogs(sinks) {
		from, ok := keep[s.Operator]
		if from == KeepNone {
			continue
		}
		for ok && len(s.Logs) > 0 && s.Logs[0].Checkpoint < from {
			s.Before = s.Logs[0].Checkpoint
			s.Logs = s.Logs[1:]
		}
		if len(s.Logs) == 0 {
			s.Logs = nil
		}
		if len(s.Logs) == 0 || !s.Logs[0].Pack() {
			s.From = 0
		} else if ok && s.Logs[0].First < from {
			s.From = max(s.From, from)
		}
		kept = append(kept, s)
	}
	return kept
}

// addLog appends a log to those of its sink.
func addLog(sinks []SinkLogs, operator string, l LogRef) []SinkLogs {
	i, ok := slices.BinarySearchFunc(sinks, operator, func(s SinkLogs, op string) int { return strings.Compare(s.Operator, op) })
	if !ok {
		sinks = slices.Insert(sinks, i, SinkLogs{Operator: operator})
	}
	sinks[i].Logs = append(sinks[i].Logs, l)
	return sinks
}

// An encoded log is its parts, in order: length (uvarint), bytes.

// encodedLog is one sink's log of a checkpoint, to be written.
type encodedLog struct {
	operator string
	parts    [][]byte
	data     []byte
	bytes    int64
}

// encodeLogs gathers the parts of each sink, by operator ID.
func encodeLogs(parts []LogPart) []encodedLog {
	bySink := map[string]*encodedLog{}
	for _, p := range parts {
		l := bySink[p.Operator]
		if l == nil {
			l = &encodedLog{operator: p.Operator}
			bySink[p.Operator] = l
		}
		l.parts = append(l.parts, p.Bytes)
		l.data = append(binary.AppendUvarint(l.data, uint64(len(p.Bytes))), p.Bytes...)
		l.bytes += int64(len(p.Bytes))
	}
	var logs []encodedLog
	for _, op := range slices.Sorted(maps.Keys(bySink)) {
		logs = append(logs, *bySink[op])
	}
	return logs
}

func decodeLog(b []byte) (parts [][]byte, err error) {
	for len(b) > 0 {
		n, w := binary.Uvarint(b)
		if w <= 0 || n > uint64(len(b)-w) {
			return nil, errors.New("a part of the log does not fit into it")
		}
		parts = append(parts, b[w:w+int(n):w+int(n)])
		b = b[w+int(n):]
	}
	return parts, nil
}

// An encoded pack is its logs, in order: checkpoint (uvarint), time of creation in
// milliseconds since 1970 (uvarint), bytes of its parts together (uvarint), length
// (uvarint), CRC-32C (4 bytes), encoded log.

// encodePack puts single logs together.
func encodePack(logs []LogRef, data [][]byte) ([]byte, LogRef) {
	var b []byte
	last := logs[len(logs)-1]
	pack := LogRef{Count: len(logs), First: logs[0].Checkpoint, Checkpoint: last.Checkpoint, Lineage: last.Lineage, Created: last.Created}
	for i, l := range logs {
		b = binary.AppendUvarint(b, uint64(l.Checkpoint))
		b = binary.AppendUvarint(b, uint64(l.Created.UnixMilli()))
		b = binary.AppendUvarint(b, uint64(l.Bytes))
		b = binary.AppendUvarint(b, uint64(len(data[i])))
		b = binary.BigEndian.AppendUint32(b, l.CRC32C)
		b = append(b, data[i]...)
		pack.Bytes += l.Bytes
	}
	pack.Length, pack.CRC32C = int64(len(b)), crc32.Checksum(b, castagnoli)
	return b, pack
}

// decodePack returns references to the logs in a pack.
func decodePack(b []byte, pack LogRef) ([]LogRef, error) {
	bad := errors.New("it is no pack of logs as the manifest says")
	var logs []LogRef
	var bytes int64
	for at := 0; at < len(b); {
		var fields [4]uint64
		for i := range fields {
			v, w := binary.Uvarint(b[at:])
			if w <= 0 || v > math.MaxInt64 {
				return nil, bad
			}
			fields[i] = v
			at += w
		}
		if len(b)-at < 4 || fields[3] > uint64(len(b)-at-4) {
			return nil, bad
		}
		l := LogRef{
			Checkpoint: int64(fields[0]), Lineage: pack.Lineage, Created: time.UnixMilli(int64(fields[1])).UTC(), Bytes: int64(fields[2]),
			Object: pack.Object, Offset: pack.Offset + int64(at) + 4, Length: int64(fields[3]), CRC32C: binary.BigEndian.Uint32(b[at:]),
		}
		if n := len(logs); n > 0 && l.Checkpoint <= logs[n-1].Checkpoint || l.Bytes > l.Length {
			return nil, bad
		}
		logs = append(logs, l)
		bytes += l.Bytes
		at += 4 + int(l.Length)
	}
	if n := len(logs); n != pack.Count || n == 0 || logs[0].Checkpoint != pack.First || logs[n-1].Checkpoint != pack.Checkpoint || bytes != pack.Bytes {
		return nil, bad
	}
	return logs, nil
}

// ExpandLogs replaces the packs of a sink by the logs in them that are kept. It reads
// packs, verified, and nothing else. Errors are as with ReadLog.
func ExpandLogs(ctx context.Context, store Store, s SinkLogs) (SinkLogs, error) {
	all := SinkLogs{Operator: s.Operator, Before: s.Before}
	for _, l := range s.Logs {
		if !l.Pack() {
			all.Logs = append(all.Logs, l)
			continue
		}
		logs, err := readPack(ctx, store, l)
		if err != nil {
			return SinkLogs{}, fmt.Errorf("read logs of checkpoints %d to %d: %w", l.First, l.Checkpoint, err)
		}
		for _, l := range logs {
			if l.Checkpoint < s.From {
				all.Before = l.Checkpoint
			} else {
				all.Logs = append(all.Logs, l)
			}
		}
	}
	return all, nil
}

func readPack(ctx context.Context, store Store, pack LogRef) ([]LogRef, error) {
	b, err := readLog(ctx, store, pack)
	if err != nil {
		return nil, err
	}
	logs, err := decodePack(b, pack)
	if err != nil {
		return nil, &DamagedError{Object: pack.Object, Store: store.String(), What: err.Error(), Err: err}
	}
	return logs, nil
}

// ReadLog returns the parts of a single log, verified. Errors are *MissingError, *DamagedError
// and, if the store itself failed, *StoreError.
func ReadLog(ctx context.Context, store Store, l LogRef) ([][]byte, error) {
	b, err := readLog(ctx, store, l)
	if err != nil {
		return nil, fmt.Errorf("read log of checkpoint %d: %w", l.Checkpoint, err)
	}
	parts, err := decodeLog(b)
	if err != nil {
		err = &DamagedError{Object: l.Object, Store: store.String(), What: err.Error(), Err: err}
		return nil, fmt.Errorf("read log of checkpoint %d: %w", l.Checkpoint, err)
	}
	return parts, nil
}

func readLog(ctx context.Context, store Store, l LogRef) ([]byte, error) {
	b, err := getRange(ctx, store, l.Object, l.Offset, l.Length)
	if err != nil {
		return nil, err
	}
	if got := crc32.Checksum(b, castagnoli); got != l.CRC32C && !guard.Broken(guard.Checksum) {
		return nil, &DamagedError{Object: l.Object, Store: store.String(), What: fmt.Sprintf("the checksum of bytes %d to %d, the log of checkpoint %d, is %08x, the manifest says %08x", l.Offset, l.Offset+l.Length, l.Checkpoint, got, l.CRC32C)}
	}
	return b, nil
}

// verifyLog reads a log, or all of a pack, and compares it with what the manifest says.
func verifyLog(ctx context.Context, store Store, l LogRef) error {
	if l.Pack() {
		logs, err := readPack(ctx, store, l)
		if err != nil {
			return err
		}
		for _, l := range logs {
			if err := verifyLog(ctx, store, l); err != nil {
				return err
			}
		}
		return nil
	}
	parts, err := ReadLog(ctx, store, l)
	if err != nil {
		return err
	}
	var n int64
	for _, p := range parts {
		n += int64(len(p))
	}
	if n != l.Bytes {
		return &DamagedError{Object: l.Object, Store: store.String(), What: fmt.Sprintf("the log of checkpoint %d has %d bytes, the manifest says %d", l.Checkpoint, n, l.Bytes)}
	}
	return nil
}

// logChunk is about how many bytes of logs are copied into one object.
const logChunk = 16 << 20

// copyLogs gathers the logs of m, which are in from, into few objects: put writes the
// n-th and returns its name. m refers to these afterwards.
func copyLogs(ctx context.Context, from Store, m *Manifest, put func(n int, data []byte) (string, error)) error {
	m.Logs = cloneLogs(m.Logs)
	var data []byte
	var open []*LogRef
	objects := 0
	flush := func() error {
		if len(open) == 0 {
			return nil
		}
		object, err := put(objects, data)
		if err != nil {
			return err
		}
		objects++
		for _, l := range open {
			l.Object = object
		}
		data, open = nil, nil
		return nil
	}
	for _, l := range m.logs {
		b, err := readLog(ctx, from, *l)
		if err != nil {
			return err
		}
		l.Offset = int64(len(data))
		data, open = append(data, b...), append(open, l)
		if len(data) >= logChunk {
			if err := flush(); err != nil {
				return err
			}
		}
	}
	return flush()
}

const (
	logPrefix = "log/"
	logSuffix = ".log"
)

func logObject(ref offsets.ManifestRef, n int) string {
	return logPrefix + ref.Object() + "-" + strconv.Itoa(n) + logSuffix
}

// sinkLogsJSON is the JSON form of SinkLogs.
type sinkLogsJSON struct {
	Operator string       `json:"operator"`
	Before   int64        `json:"before,omitempty"`
	From     int64        `json:"from,omitempty"`
	Logs     []logRefJSON `json:"logs"`
}

type logRefJSON struct {
	Count      int    `json:"count,omitempty"`
	First      int64  `json:"first,omitempty"`
	Checkpoint int64  `json:"checkpoint"`
	Lineage    string `json:"lineage,omitempty"` // empty: that of the manifest
	Created    int64  `json:"created"`           // milliseconds since 1970
	Object     string `json:"object,omitempty"`
	Offset     int64  `json:"offset,omitempty"`
	Length     int64  `json:"length"`
	CRC32C     uint32 `json:"crc32c"`
	Bytes      int64  `json:"bytes"`
}

func encodeSinkLogs(m *Manifest) []sinkLogsJSON {
	var js []sinkLogsJSON
	for _, s := range m.Logs {
		j := sinkLogsJSON{Operator: s.Operator, Before: s.Before, From: s.From, Logs: make([]logRefJSON, 0, len(s.Logs))}
		for _, l := range s.Logs {
			r := logRefJSON{l.Count, l.First, l.Checkpoint, l.Lineage, l.Created.UnixMilli(), l.Object, l.Offset, l.Length, l.CRC32C, l.Bytes}
			if r.Lineage == m.Lineage {
				r.Lineage = ""
			}
			j.Logs = append(j.Logs, r)
		}
		js = append(js, j)
	}
	return js
}

func decodeSinkLogs(m *Manifest, js []sinkLogsJSON, inline int64) error {
	for i, j := range js {
		if i > 0 && j.Operator <= js[i-1].Operator {
			return fmt.Errorf("header: the logs of sink %q are listed twice or out of order", j.Operator)
		}
		s := SinkLogs{Operator: j.Operator, Before: j.Before, From: j.From}
		last := j.Before
		for _, r := range j.Logs {
			l := LogRef{r.Count, r.First, r.Checkpoint, r.Lineage, time.UnixMilli(r.Created).UTC(), r.Object, r.Offset, r.Length, r.CRC32C, r.Bytes}
			if l.Lineage == "" {
				l.Lineage = m.Lineage
			}
			_, first, _ := l.Span()
			switch {
			case l.Count < 0 || l.Pack() && (l.First >= l.Checkpoint || l.Object == "") || !l.Pack() && l.First != 0:
				return fmt.Errorf("header: pack of logs up to checkpoint %d of sink %q makes no sense", l.Checkpoint, j.Operator)
			case first <= last || l.Checkpoint > m.Checkpoint || l.Offset < 0 || l.Length < 0 || l.Offset > math.MaxInt64-l.Length || l.Bytes < 0 || l.Bytes > l.Length:
				return fmt.Errorf("header: log of checkpoint %d of sink %q makes no sense", l.Checkpoint, j.Operator)
			case l.Object == "" && l.Offset+l.Length > inline:
				return fmt.Errorf("header: inline log of bytes %d to %d, there are %d", l.Offset, l.Offset+l.Length, inline)
			case l.Object != "" && (!validName(l.Object) || !l.Inline() && !strings.HasPrefix(l.Object, logPrefix)):
				return fmt.Errorf("header: log of checkpoint %d of sink %q has the object name %q", l.Checkpoint, j.Operator, l.Object)
			}
			last = l.Checkpoint
			s.Logs = append(s.Logs, l)
		}
		m.Logs = append(m.Logs, s)
	}
	return nil
}
