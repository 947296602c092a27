package redis

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"unicode/utf8"
)

// A part of a log is what one subtask wrote in one epoch:
//
//	"WRL" and the version, 4 bytes
//	number of operations, uvarint
//	length of the base in bytes, uvarint; the base
//	operations
//	CRC-32C of all that, 4 bytes, little-endian
//
// An operation is flags (1 byte), hash slot of the first key (2 bytes, little-endian), with
// flagGuarded a version (8 bytes), the number of keys and their argument numbers (uvarints),
// the length of the command (uvarint), and the command.
//
// A base says how far each lane had come when all logs up to a checkpoint were applied. It
// is what tells, when older logs are gone, that Redis lost more than the logs that are left
// can mend. It is the checkpoint (uvarint), the lineages (number, then length and text of
// each), and the lanes (number, then lane, index of the lineage, checkpoint and operations
// of each), lanes ascending. All numbers are uvarints.
const (
	logMagic   = "WRL"
	logVersion = 1
)

// LogError says that a part of a write-ahead log can't be read. The checkpoint store
// verifies what it reads, so the part was written like that, or by a newer build.
type LogError struct{ Reason string }

func (e *LogError) Error() string { return "write-ahead log of a Redis sink: " + e.Reason }

func logError(format string, args ...any) error {
	return &LogError{fmt.Sprintf(format, args...)}
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// base is where the lanes were when all logs up to a checkpoint were applied. A lane that
// it lacks had no operation ever.
type base struct {
	checkpoint int64
	lanes      map[lane]position
}

func (b base) clone() base { return base{b.checkpoint, maps.Clone(b.lanes)} }

func appendBase(dst []byte, b base) []byte {
	index := map[string]uint64{}
	var lineages []string
	order := slices.Sorted(maps.Keys(b.lanes))
	for _, l := range order {
		if lin := b.lanes[l].lineage; !slices.Contains(lineages, lin) {
			index[lin] = uint64(len(lineages))
			lineages = append(lineages, lin)
		}
	}
	dst = binary.AppendUvarint(dst, uint64(b.checkpoint))
	dst = binary.AppendUvarint(dst, uint64(len(lineages)))
	for _, l := range lineages {
		dst = append(binary.AppendUvarint(dst, uint64(len(l))), l...)
	}
	dst = binary.AppendUvarint(dst, uint64(len(order)))
	for _, l := range order {
		p := b.lanes[l]
		dst = binary.AppendUvarint(dst, uint64(l))
		dst = binary.AppendUvarint(dst, index[p.lineage])
		dst = binary.AppendUvarint(dst, uint64(p.checkpoint))
		dst = binary.AppendUvarint(dst, uint64(p.operations))
	}
	return dst
}

// appendPart encodes a part. b is nil for a part without a base.
func appendPart(dst []byte, b *base, operations []byte, count int) []byte {
	from := len(dst)
	dst = append(dst, logMagic...)
	dst = append(dst, logVersion)
	dst = binary.AppendUvarint(dst, uint64(count))
	if b == nil {
		dst = append(dst, 0)
	} else {
		enc := appendBase(nil, *b)
		dst = append(binary.AppendUvarint(dst, uint64(len(enc))), enc...)
	}
	dst = append(dst, operations...)
	return binary.LittleEndian.AppendUint32(dst, crc32.Checksum(dst[from:], castagnoli))
}

// part is a decoded part; it aliases what it was decoded from.
type part struct {
	base       *base
	count      int
	operations []byte
}

// decodePart decodes a part and verifies all of it.
func decodePart(b []byte) (part, error) {
	const head, tail = len(logMagic) + 1, 4
	if len(b) < head+tail || string(b[:len(logMagic)]) != logMagic {
		return part{}, logError("not a log")
	}
	if v := b[len(logMagic)]; v != logVersion {
		return part{}, logError("its format has version %d, this build reads version %d: run the build that wrote it", v, logVersion)
	}
	body, sum := b[:len(b)-tail], binary.LittleEndian.Uint32(b[len(b)-tail:])
	if crc32.Checksum(body, castagnoli) != sum {
		return part{}, logError("damaged: the checksum of %d bytes differs", len(b))
	}
	r := reader{b: body[head:]}
	var p part
	count := r.number()
	enc := r.bytes(r.uvarint())
	if r.bad {
		return part{}, logError("malformed header")
	}
	if len(enc) > 0 {
		bs, err := decodeBase(enc)
		if err != nil {
			return part{}, err
		}
		p.base = &bs
	}
	p.operations = r.b
	var n int64
	var op operation
	for rest := p.operations; len(rest) > 0; n++ {
		var err error
		if rest, err = op.decode(rest); err != nil {
			return part{}, logError("operation %d: %v", n, err)
		}
		if len(rest) == 0 && op.flags&flagJoined != 0 {
			return part{}, logError("ends in the middle of a transaction")
		}
	}
	if n != count {
		return part{}, logError("has %d operations, its header says %d", n, count)
	}
	p.count = int(count)
	return p, nil
}

func decodeBase(enc []byte) (base, error) {
	r := reader{b: enc}
	b := base{checkpoint: r.number(), lanes: map[lane]position{}}
	lineages := make([]string, 0, 1)
	for n := r.uvarint(); n > 0 && !r.bad; n-- {
		l := r.bytes(r.uvarint())
		if !utf8.Valid(l) {
			r.bad = true
		}
		lineages = append(lineages, string(l))
	}
	last := int64(-1)
	for n := r.uvarint(); n > 0 && !r.bad; n-- {
		l, i := r.number(), r.uvarint()
		p := position{checkpoint: r.number(), operations: r.number()}
		if l <= last || l >= slots || i >= uint64(len(lineages)) || p.checkpoint > b.checkpoint {
			r.bad = true
			break
		}
		p.lineage, last = lineages[i], l
		b.lanes[lane(l)] = p
	}
	if r.bad || len(r.b) > 0 {
		return base{}, logError("malformed base")
	}
	return b, nil
}

// number takes a number that fits into an int64.
func (r *reader) number() int64 {
	v := r.uvarint()
	if v > 1<<63-1 {
		r.bad = true
		return 0
	}
	return int64(v)
}
