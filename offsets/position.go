package offsets

import (
	"cmp"
	"fmt"
	"strconv"
)

// Partition names a partition of a Kafka topic.
type Partition struct {
	Topic     string
	Partition int32
}

// String returns "topic/3".
func (p Partition) String() string { return p.Topic + "/" + strconv.Itoa(int(p.Partition)) }

// Compare orders partitions by topic, then by number.
func (p Partition) Compare(q Partition) int {
	return cmp.Or(cmp.Compare(p.Topic, q.Topic), cmp.Compare(p.Partition, q.Partition))
}

// Position is a place in a partition.
type Position struct {
	Offset      int64 // of the next record to read
	LeaderEpoch int32 // of the record before it, -1 if unknown
}

// Committed is what OffsetFetch returned for one partition.
type Committed struct {
	Position
	Metadata string
	Exists   bool // false: there is no committed offset, and Position means nothing
}

// ManifestRef names a manifest and says what it must contain.
type ManifestRef struct {
	Checkpoint  int64    // checkpoint id; it only grows for a partition
	Incarnation uint32   // distinguishes two runs that tried the same checkpoint id
	Hash        [16]byte // of the manifest's bytes
}

// Object returns the manifest's name in the store, such as
// "0000000000001267-a1b2c3d4": checkpoint id and incarnation, in hexadecimal of
// fixed width, so that names sort by checkpoint id.
func (r ManifestRef) Object() string {
	return fmt.Sprintf("%016x-%08x", uint64(r.Checkpoint), r.Incarnation)
}
