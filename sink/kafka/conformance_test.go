package kafka_test

import (
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/record"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/weirtest/conformance"
)

// to is a receiver of which only the records count.
func to[T any](s sink.Sink[T]) func(testing.TB) conformance.Receiver[T] {
	return func(testing.TB) conformance.Receiver[T] {
		return conformance.Receiver[T]{Sink: func() sink.Sink[T] { return s }}
	}
}

func TestSinksConform(t *testing.T) {
	var texts []string
	var pairs []record.KV[string, int64]
	var records []*kgo.Record
	for i := range 9 {
		text := fmt.Sprint("value ", i)
		texts = append(texts, text)
		pairs = append(pairs, record.KV[string, int64]{Key: text, Value: int64(i)})
		records = append(records, &kgo.Record{Key: []byte(text), Value: []byte{byte(i)}, Headers: []kgo.RecordHeader{{Key: "h", Value: []byte(text)}}})
	}
	t.Run("Sink", func(t *testing.T) {
		conformance.Sink[record.KV[string, int64]]{Values: pairs, New: to(kafka.Sink("out", codec.String, codec.Int64))}.Run(t)
	})
	t.Run("Values", func(t *testing.T) {
		key := kafka.KeyBy(func(s string) string { return s[:3] }, codec.String)
		conformance.Sink[string]{Values: texts, New: to(kafka.Values("out", key, codec.String))}.Run(t)
	})
	t.Run("Records", func(t *testing.T) {
		conformance.Sink[*kgo.Record]{Values: records, New: to(kafka.Records("out"))}.Run(t)
	})
}
