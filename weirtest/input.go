package weirtest

import (
	"errors"
	"reflect"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/processor"
)

// Input is what a source of the topology reads. T is the type of its values.
type Input[T any] struct {
	h         *Harness
	id        string
	partition int32 // -1: as the record's key says
	at        time.Time
}

// In returns the input of the source with that operator ID.
func In[T any](h *Harness, id string) *Input[T] {
	h.t.Helper()
	in := &Input[T]{h: h, id: id, partition: -1}
	in.source()
	return in
}

// source finds the source, which may be another one after an upgrade.
func (in *Input[T]) source() (topic string, record func(any) (*kgo.Record, error), ok bool) {
	in.h.t.Helper()
	src, ok := in.h.input(in.id)
	if !ok {
		return "", nil, false
	}
	if want := reflect.TypeFor[T](); src.Type != want {
		in.h.t.Fatalf("weirtest: source %q has values of type %s, not %s", in.id, src.Type, want)
		return "", nil, false
	}
	return src.Topic, src.Record, true
}

// Partition returns the input with a partition of its topic to send to, from 0. Without it
// a record goes where Kafka's partitioner puts its key, and one without a key to
// partition 0.
func (in *Input[T]) Partition(p int32) *Input[T] {
	in.h.t.Helper()
	if n := in.h.topics.Partitions(); p < 0 || p >= n {
		in.h.t.Fatalf("weirtest: source %q: partition %d of %d: weirtest.Partitions sets how many there are", in.id, p, n)
	}
	c := *in
	c.partition = p
	return &c
}

// At returns the input with a timestamp for the records to send, of which Kafka keeps the
// milliseconds. Without it they have that of the clock.
func (in *Input[T]) At(at time.Time) *Input[T] {
	c := *in
	c.at = at
	return &c
}

// Send sends values, encoded as the source's codec does it. It returns when all of them are
// processed, one after the other, and everything that follows from them. While the app is
// down they wait for it in the topic.
func (in *Input[T]) Send(values ...T) {
	in.h.t.Helper()
	topic, record, ok := in.source()
	if !ok {
		return
	}
	if record == nil {
		in.h.t.Fatalf("weirtest: source %q of topic %q can't make records of values: set source.Source.Encode, or use SendRecords", in.id, topic)
		return
	}
	for i, v := range values {
		r, err := record(v)
		if err != nil {
			in.h.t.Fatalf("weirtest: source %q: encoding value %d, %+v: %v", in.id, i, v, err)
			return
		}
		in.SendRecords(r)
	}
}

// SendRecords sends records as they are: key, value, headers, and the timestamp unless it is
// zero. Topic, partition and offset are set.
func (in *Input[T]) SendRecords(records ...*kgo.Record) {
	in.h.t.Helper()
	topic, _, ok := in.source()
	if !ok {
		return
	}
	for _, r := range records {
		c := *r
		c.Topic, c.Partition = topic, in.partition
		if in.partition < 0 {
			c.Partition = 0
			if c.Key != nil {
				c.Partition = int32(keygroup.Of(c.Key, int(in.h.topics.Partitions())))
			}
		}
		if !in.at.IsZero() {
			c.Timestamp = in.at
		} else if c.Timestamp.IsZero() {
			c.Timestamp = in.h.Now()
		}
		c.Timestamp = c.Timestamp.Truncate(time.Millisecond) // as Kafka keeps it
		in.h.topics.Append(&c)
	}
	if in.h.step != nil {
		in.h.do((*processor.Stepper).Run)
	}
}

// Watermark says that no record up to a time is expected of the source any more, as records
// with a later time do: timers up to then fire, and records up to then are late. It holds
// for all partitions, and wakes those that are idle. A watermark that is ahead of it stays.
// It is part of the input, as a record is: after a crash it is said again.
func (in *Input[T]) Watermark(at time.Time) {
	in.h.t.Helper()
	topic, _, ok := in.source()
	if !ok {
		return
	}
	in.h.must("move the watermark", func(s *processor.Stepper) error {
		err := s.Watermark(topic, at.UnixMilli())
		if errors.Is(err, processor.ErrNoEventTime) {
			in.h.t.Fatalf("weirtest: source %q tells no event time: give it weir.EventTime or weir.RecordTime", in.id)
			return nil
		}
		return err
	})
}
