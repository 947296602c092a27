package offsets

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"slices"
	"time"
)

const (
	recordMagic   = "WEIRC"
	recordVersion = 1
	crcSize       = 4 // bytes

	minTopic     = 2 // bytes of the shortest topic: empty name, no partitions
	minPartition = 3 // bytes of the shortest partition
)

// CommitRecord is what the compacted topic <app>-checkpoints holds under the app's
// name: the last commit.
type CommitRecord struct {
	App       string
	Instance  string // the instance's part of the transactional id that committed
	Manifest  ManifestRef
	At        time.Time // wall time of the commit, to the millisecond
	Positions map[Partition]Position
}

// Append appends the encoding of r to dst and returns the extended slice. Equal
// records have equal encodings.
func (r CommitRecord) Append(dst []byte) []byte {
	start := len(dst)
	dst = append(dst, recordMagic...)
	dst = append(dst, recordVersion)
	dst = appendString(dst, r.App)
	dst = appendString(dst, r.Instance)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.Manifest.Checkpoint))
	dst = binary.BigEndian.AppendUint32(dst, r.Manifest.Incarnation)
	dst = append(dst, r.Manifest.Hash[:]...)
	dst = binary.BigEndian.AppendUint64(dst, uint64(r.At.UnixMilli()))

	topics := map[string][]Partition{}
	for p := range r.Positions {
		topics[p.Topic] = append(topics[p.Topic], p)
	}
	dst = binary.AppendUvarint(dst, uint64(len(topics)))
	for _, topic := range slices.Sorted(maps.Keys(topics)) {
		partitions := topics[topic]
		slices.SortFunc(partitions, Partition.Compare)
		dst = appendString(dst, topic)
		dst = binary.AppendUvarint(dst, uint64(len(partitions)))
		for _, p := range partitions {
			pos := r.Positions[p]
			dst = binary.AppendVarint(dst, int64(p.Partition))
			dst = binary.AppendVarint(dst, pos.Offset)
			dst = binary.AppendVarint(dst, int64(pos.LeaderEpoch))
		}
	}
	return binary.BigEndian.AppendUint32(dst, crc32.Checksum(dst[start:], castagnoli))
}

func appendString(dst []byte, s string) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(s))), s...)
}

// ParseCommitRecord reads what Append wrote. Otherwise the error is ErrForeign for
// a value of somebody else or none at all, ErrDamaged, or a *VersionError for a record of another
// version. Positions is never nil, At is in UTC.
func ParseCommitRecord(b []byte) (CommitRecord, error) {
	rest, ok := bytes.CutPrefix(b, []byte(recordMagic))
	if !ok {
		return CommitRecord{}, fmt.Errorf("parse commit record of %d bytes: %w", len(b), ErrForeign)
	}
	if len(rest) > 0 && rest[0] > recordVersion {
		return CommitRecord{}, fmt.Errorf("parse commit record of %d bytes: %w", len(b), &VersionError{What: "commit record", Version: int(rest[0]), Known: recordVersion})
	}
	r, err := parseRecordV1(b)
	if err != nil {
		return CommitRecord{}, fmt.Errorf("parse commit record of %d bytes: %w: %w", len(b), ErrDamaged, err)
	}
	return r, nil
}

func parseRecordV1(b []byte) (CommitRecord, error) {
	end := len(b) - crcSize
	if end < len(recordMagic)+1 {
		return CommitRecord{}, errShort
	}
	if crc32.Checksum(b[:end], castagnoli) != binary.BigEndian.Uint32(b[end:]) {
		return CommitRecord{}, errors.New("its checksum is off")
	}
	in := reader{b: b[len(recordMagic)+1 : end]}
	r := CommitRecord{App: in.string(), Instance: in.string(), Positions: map[Partition]Position{}}
	r.Manifest.Checkpoint = int64(in.uint64())
	r.Manifest.Incarnation = in.uint32()
	copy(r.Manifest.Hash[:], in.take(uint64(len(r.Manifest.Hash))))
	r.At = time.UnixMilli(int64(in.uint64())).UTC()
	for range in.count(minTopic) {
		topic := in.string()
		for range in.count(minPartition) {
			p := Partition{Topic: topic, Partition: in.int32()}
			r.Positions[p] = Position{Offset: in.varint(), LeaderEpoch: in.int32()}
		}
	}
	if in.err != nil {
		return CommitRecord{}, in.err
	}
	// One comparison finds all that Append would have written otherwise: surplus
	// bytes, long varints, topics and partitions that are unsorted, double or empty.
	if !bytes.Equal(r.Append(nil), b) {
		return CommitRecord{}, errors.New("it is not as weir writes it")
	}
	return r, nil
}

var errShort = errors.New("it is cut short")

// reader takes values off the front of b. After the first error it returns zeros.
type reader struct {
	b   []byte
	err error
}

func (r *reader) fail(err error) {
	if r.err == nil {
		r.b, r.err = nil, err
	}
}

func (r *reader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.fail(errShort)
		return nil
	}
	out := r.b[:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) uint32() uint32 {
	if b := r.take(4); b != nil {
		return binary.BigEndian.Uint32(b)
	}
	return 0
}

func (r *reader) uint64() uint64 {
	if b := r.take(8); b != nil {
		return binary.BigEndian.Uint64(b)
	}
	return 0
}

func (r *reader) string() string { return string(r.take(r.uvarint())) }

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.fail(errShort)
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) varint() int64 {
	v, n := binary.Varint(r.b)
	if n <= 0 {
		r.fail(errShort)
		return 0
	}
	r.b = r.b[n:]
	return v
}

// int32 keeps the low bits of a larger number, which then differs from what Append
// writes.
func (r *reader) int32() int32 { return int32(r.varint()) }

// count reads the number of items of at least size bytes each. One that the rest
// has no room for is refused before anybody loops over it.
func (r *reader) count(size int) uint64 {
	n := r.uvarint()
	if n > uint64(len(r.b)/size) {
		r.fail(errShort)
		return 0
	}
	return n
}
