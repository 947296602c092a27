package conformance_test

import (
	"cmp"
	"testing"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/weirtest/conformance"
)

var (
	t        *testing.T                        // of the test
	receiver conformance.Transactional[string] // under test
)

func ExampleStore() {
	conformance.Store{Open: func(testing.TB) checkpoint.Store { return checkpoint.NewMem() }}.Run(t)
}

func ExampleCodec() {
	conformance.Codec[int64]{Codec: codec.Int64, Values: []int64{0, 1, -1}, Key: true, Compare: cmp.Compare[int64]}.Run(t)
}

func ExampleTwoPhase() {
	conformance.TwoPhase[string]{
		Values: []string{"a", "b", "c", "d", "e", "f"},
		New:    func(testing.TB) conformance.Transactional[string] { return receiver },
	}.Run(t)
}

func ExampleSink() {
	conformance.Sink[string]{
		Values: []string{"a", "b", "c", "d"},
		New: func(testing.TB) conformance.Receiver[string] {
			return conformance.Receiver[string]{Sink: func() sink.Sink[string] { return kafka.Values("out", kafka.NoKey, codec.String) }}
		},
	}.Run(t)
}
