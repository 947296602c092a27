package kafka

import (
	"errors"
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/recycle"
	"github.com/weirstream/weir/record"
	"github.com/weirstream/weir/sink"
)

// KeyFunc appends the record key of a value to dst; has is false for a record
// without a key.
type KeyFunc[T any] func(dst []byte, v T) (key []byte, has bool, err error)

// KeyBy takes the record key from the value. Without a function, or with a codec that
// [codec.Check] refuses, it is nil, which [Values] reports.
func KeyBy[T, K any](key func(T) K, c codec.Codec[K]) KeyFunc[T] {
	if key == nil || codec.Check(c) != nil {
		return nil // reported by Values
	}
	return func(dst []byte, v T) ([]byte, bool, error) {
		b, err := c.Append(dst, key(v))
		return b, true, err
	}
}

// NoKey writes records without a key: they are spread over the partitions.
func NoKey[T any](dst []byte, _ T) ([]byte, bool, error) { return dst, false, nil }

// Sink writes key-value pairs to a topic. A value without bytes is empty, and not null:
// who deletes keys of a compacted topic takes [Records].
func Sink[K, V any](topic string, kc codec.Codec[K], vc codec.Codec[V]) sink.Sink[record.KV[K, V]] {
	s := &encoded[record.KV[K, V]]{topic: topic}
	if err := errors.Join(codec.Check(kc), codec.Check(vc)); err != nil {
		s.bad = fmt.Errorf("kafka sink for topic %q: %w", topic, err)
		return s
	}
	s.key = func(dst []byte, kv record.KV[K, V]) ([]byte, bool, error) {
		b, err := kc.Append(dst, kv.Key)
		return b, true, err
	}
	s.value = func(dst []byte, kv record.KV[K, V]) ([]byte, error) { return vc.Append(dst, kv.Value) }
	return s
}

// Values writes values to a topic under the key that key makes: [KeyBy] or [NoKey]. One
// without bytes is empty, and not null.
func Values[T any](topic string, key KeyFunc[T], c codec.Codec[T]) sink.Sink[T] {
	s := &encoded[T]{topic: topic, key: key}
	err := codec.Check(c)
	switch {
	case err != nil:
		s.bad = fmt.Errorf("kafka sink for topic %q: %w", topic, err)
	case key == nil:
		s.bad = fmt.Errorf("kafka sink for topic %q: the key function is nil, or kafka.KeyBy was given no function, no codec or one that codec.Check refuses; use kafka.NoKey for records without a key", topic)
	default:
		s.value = c.Append
	}
	return s
}

// Records writes records as they are, key, value, headers and timestamp, to a topic. One
// without a timestamp gets that of the input record.
func Records(topic string) sink.Sink[*kgo.Record] { return copied{topic} }

// encoded is a sink that encodes what it writes.
type encoded[T any] struct {
	topic string
	key   KeyFunc[T]
	value func(dst []byte, v T) ([]byte, error)
	bad   error
}

func (s *encoded[T]) Check() error {
	if s.topic == "" {
		return errors.New("kafka sink without a topic")
	}
	return s.bad
}

func (s *encoded[T]) Topics() []string { return []string{s.topic} }
func (s *encoded[T]) String() string   { return "kafka topic " + s.topic }

func (s *encoded[T]) Open(env sink.Env) (sink.Writer[T], error) {
	return &writer[T]{sink: s, env: env, out: env.Output()}, nil
}

// writer encodes into memory that comes back when the record was acknowledged.
type writer[T any] struct {
	sink    *encoded[T]
	env     sink.Env
	out     sink.Output
	scratch []byte
	records recycle.Source
}

func (w *writer[T]) Write(v T) error {
	b, has, err := w.sink.key(w.scratch[:0], v)
	if err != nil {
		return fmt.Errorf("encoding the key for topic %q: %w", w.sink.topic, err)
	}
	keyLen := len(b)
	if b, err = w.sink.value(b, v); err != nil {
		return fmt.Errorf("encoding the value for topic %q: %w", w.sink.topic, err)
	}
	w.scratch = b
	r, b := w.records.Record(b)
	r.Topic = w.sink.topic
	if has {
		r.Key = b[:keyLen:keyLen]
	}
	r.Value = b[keyLen:]
	r.Timestamp = w.env.Meta().Timestamp()
	w.out.Produce(r)
	return nil
}

// copied is the sink of [Records].
type copied struct{ topic string }

func (s copied) Check() error {
	if s.topic == "" {
		return errors.New("kafka sink without a topic")
	}
	return nil
}

func (s copied) Topics() []string { return []string{s.topic} }
func (s copied) String() string   { return "kafka topic " + s.topic }

func (s copied) Open(env sink.Env) (sink.Writer[*kgo.Record], error) {
	return &copyWriter{topic: s.topic, env: env, out: env.Output()}, nil
}

type copyWriter struct {
	topic   string
	env     sink.Env
	out     sink.Output
	records recycle.Source
}

func (w *copyWriter) Write(v *kgo.Record) error {
	r, _ := w.records.Record(nil)
	r.Topic, r.Key, r.Value, r.Headers, r.Timestamp = w.topic, v.Key, v.Value, v.Headers, v.Timestamp
	if r.Timestamp.IsZero() { // or the client would take the time of the writing
		r.Timestamp = w.env.Meta().Timestamp()
	}
	w.out.Produce(r)
	return nil
}
