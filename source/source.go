package source

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/record"
)

// Source describes one input topic and how its records are decoded.
type Source[T any] struct {
	// Topic is the Kafka topic. A topic may be read by one source of an app.
	Topic string
	// Decode turns a record into a value. It is called by one goroutine at a time
	// for a partition, and by several for the topic. The value may alias the
	// record's bytes, which are never reused.
	Decode func(*kgo.Record) (T, error)
	// Encode makes a record that Decode turns into the value. Only tests need it: package
	// weirtest feeds a source with values.
	Encode func(T) (*kgo.Record, error)

	bad error
}

// Check reports codecs that can't be used.
func (s Source[T]) Check() error { return s.bad }

// Values reads the values of a topic and ignores its keys. A record with a null
// value is decoded from no bytes.
func Values[T any](topic string, c codec.Codec[T]) Source[T] {
	return Source[T]{
		bad:    codec.Check(c),
		Topic:  topic,
		Decode: func(r *kgo.Record) (T, error) { return c.Decode(r.Value) },
		Encode: func(v T) (*kgo.Record, error) {
			b, err := c.Append(nil, v)
			return &kgo.Record{Value: b}, err
		},
	}
}

// KeyValues reads keys and values of a topic.
func KeyValues[K, V any](topic string, kc codec.Codec[K], vc codec.Codec[V]) Source[record.KV[K, V]] {
	return Source[record.KV[K, V]]{
		bad:   errors.Join(codec.Check(kc), codec.Check(vc)),
		Topic: topic,
		Decode: func(r *kgo.Record) (kv record.KV[K, V], err error) {
			if kv.Key, err = kc.Decode(r.Key); err != nil {
				return kv, fmt.Errorf("key: %w", err)
			}
			if kv.Value, err = vc.Decode(r.Value); err != nil {
				return kv, fmt.Errorf("value: %w", err)
			}
			return kv, nil
		},
		Encode: func(kv record.KV[K, V]) (*kgo.Record, error) {
			k, err := kc.Append(nil, kv.Key)
			if err != nil {
				return nil, fmt.Errorf("key: %w", err)
			}
			v, err := vc.Append(nil, kv.Value)
			if err != nil {
				return nil, fmt.Errorf("value: %w", err)
			}
			return &kgo.Record{Key: k, Value: v}, nil
		},
	}
}

// Records reads the records of a topic as they are, headers and all. They must
// not be changed.
func Records(topic string) Source[*kgo.Record] {
	same := func(r *kgo.Record) (*kgo.Record, error) { return r, nil }
	return Source[*kgo.Record]{Topic: topic, Decode: same, Encode: same}
}
