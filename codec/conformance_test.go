package codec_test

import (
	"bytes"
	"cmp"
	"math"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/weirtest/conformance"
)

type conforming struct {
	Name string
	Tags []string
	At   time.Time
	Of   map[string]int
}

func TestCodecsConform(t *testing.T) {
	t.Run("string", func(t *testing.T) {
		conformance.Codec[string]{Codec: codec.String, Values: []string{"", "a", "b", "ab", "ö\x00\xff", strings.Repeat("long ", 1000)}, Key: true, Compare: cmp.Compare[string]}.Run(t)
	})
	t.Run("bytes", func(t *testing.T) {
		conformance.Codec[[]byte]{Codec: codec.Bytes, Values: [][]byte{{}, {0}, {0, 0}, []byte("text"), bytes.Repeat([]byte{255}, 5000)}, Key: true, Compare: bytes.Compare, Equal: bytes.Equal}.Run(t)
	})
	t.Run("int32", func(t *testing.T) {
		conformance.Codec[int32]{Codec: codec.Int32, Values: []int32{0, 1, -1, math.MaxInt32, math.MinInt32, 256, -256}, Key: true, Compare: cmp.Compare[int32]}.Run(t)
	})
	t.Run("int64", func(t *testing.T) {
		conformance.Codec[int64]{Codec: codec.Int64, Values: []int64{0, 1, -1, math.MaxInt64, math.MinInt64, 1 << 40}, Key: true, Compare: cmp.Compare[int64]}.Run(t)
	})
	t.Run("uint32", func(t *testing.T) {
		conformance.Codec[uint32]{Codec: codec.Uint32, Values: []uint32{0, 1, 255, 256, math.MaxUint32}, Key: true, Compare: cmp.Compare[uint32]}.Run(t)
	})
	t.Run("uint64", func(t *testing.T) {
		conformance.Codec[uint64]{Codec: codec.Uint64, Values: []uint64{0, 1, 255, 256, math.MaxUint64}, Key: true, Compare: cmp.Compare[uint64]}.Run(t)
	})
	t.Run("float32", func(t *testing.T) {
		conformance.Codec[float32]{Codec: codec.Float32, Values: []float32{0, 1, -1, math.MaxFloat32, -math.SmallestNonzeroFloat32, float32(math.Inf(1)), float32(math.NaN())}, Key: true,
			Equal: func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) }}.Run(t)
	})
	t.Run("float64", func(t *testing.T) {
		conformance.Codec[float64]{Codec: codec.Float64, Values: []float64{0, math.Copysign(0, -1), 1, -1, -2, math.MaxFloat64, math.Inf(-1), math.Inf(1)}, Key: true, Compare: cmp.Compare[float64],
			Equal: func(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) }}.Run(t)
	})
	t.Run("bool", func(t *testing.T) {
		conformance.Codec[bool]{Codec: codec.Bool, Values: []bool{false, true}, Key: true}.Run(t)
	})
	t.Run("json", func(t *testing.T) {
		conformance.Codec[conforming]{Codec: codec.JSON[conforming](), Key: true, Values: []conforming{
			{}, {Name: "n", Tags: []string{"a", ""}, At: time.UnixMilli(1767225600000).UTC()}, {Of: map[string]int{"z": 1, "a": 2, "m": 3}},
		}}.Run(t)
	})
	t.Run("proto", func(t *testing.T) {
		conformance.Codec[*wrapperspb.StringValue]{Codec: codec.Proto[*wrapperspb.StringValue](), Key: true,
			Values: []*wrapperspb.StringValue{wrapperspb.String(""), wrapperspb.String("a"), wrapperspb.String(strings.Repeat("long", 500))},
			Equal:  func(a, b *wrapperspb.StringValue) bool { return proto.Equal(a, b) }}.Run(t)
	})
}
