package record

import (
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// KV is a value with its key.
type KV[K, V any] struct {
	Key   K
	Value V
}

// Meta tells where the record that is being processed came from. It is valid
// until the handler returns.
type Meta struct {
	raw *kgo.Record
}

// MetaOf wraps a consumed record.
func MetaOf(r *kgo.Record) Meta { return Meta{r} }

// Topic is the input topic.
func (m Meta) Topic() string { return m.raw.Topic }

// Partition is the partition of the input topic.
func (m Meta) Partition() int32 { return m.raw.Partition }

// Offset is the record's offset in its partition.
func (m Meta) Offset() int64 { return m.raw.Offset }

// Timestamp is the record's Kafka timestamp, in milliseconds precision.
func (m Meta) Timestamp() time.Time { return m.raw.Timestamp }

// Header returns the last header of that name.
func (m Meta) Header(name string) ([]byte, bool) {
	for i := len(m.raw.Headers) - 1; i >= 0; i-- {
		if m.raw.Headers[i].Key == name {
			return m.raw.Headers[i].Value, true
		}
	}
	return nil, false
}

// RawKey is the record's key as it was consumed. It must not be changed.
func (m Meta) RawKey() []byte { return m.raw.Key }

// RawValue is the record's value as it was consumed. It must not be changed.
func (m Meta) RawValue() []byte { return m.raw.Value }
