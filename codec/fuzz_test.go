package codec

import (
	"bytes"
	"encoding/json"
	"math"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// FuzzRoundTrip writes values behind other bytes and reads them back.
func FuzzRoundTrip(f *testing.F) {
	f.Add("", []byte(nil), int64(0), 0.0, false)
	f.Add("\xff|ä", []byte{0}, int64(math.MinInt64), math.Copysign(0, -1), true)
	f.Add("key", []byte("value"), int64(math.MaxInt64), math.NaN(), true)
	f.Fuzz(func(t *testing.T, s string, b []byte, n int64, x float64, yes bool) {
		same := func(a, b string) bool { return a == b }
		returns(t, String, s, same)
		returns(t, Bytes, b, bytes.Equal)
		returns(t, Int32, int32(n), equal)
		returns(t, Int64, n, equal)
		returns(t, Uint32, uint32(n), equal)
		returns(t, Uint64, uint64(n), equal)
		returns(t, Float32, float32(x), func(a, b float32) bool { return math.Float32bits(a) == math.Float32bits(b) })
		returns(t, Float64, x, func(a, b float64) bool { return math.Float64bits(a) == math.Float64bits(b) })
		returns(t, Bool, yes, equal)
		returns(t, Unit, Nothing, equal)
		returns(t, JSON[int64](), n, equal)
		returns(t, JSON[[]byte](), b, bytes.Equal)
		returns(t, Proto[*wrapperspb.BytesValue](), wrapperspb.Bytes(b), func(a, b *wrapperspb.BytesValue) bool { return proto.Equal(a, b) })
	})
}

func equal[T comparable](a, b T) bool { return a == b }

func returns[T any](t *testing.T, c Codec[T], v T, same func(a, b T) bool) {
	t.Helper()
	const before = "before"
	b, err := c.Append([]byte(before), v)
	if err != nil || !bytes.HasPrefix(b, []byte(before)) {
		t.Fatalf("codec %s: Append of %v = %q, %v", c.Name(), v, b, err)
	}
	got, err := c.Decode(b[len(before):])
	if err != nil || !same(got, v) {
		t.Fatalf("codec %s: %v came back as %v, %v", c.Name(), v, got, err)
	}
	clone := Clone(c, got)
	clear(b)
	if !same(clone, v) {
		t.Fatalf("codec %s: the clone of %v is %v after its bytes were cleared", c.Name(), v, clone)
	}
}

// FuzzDecode gives arbitrary bytes to every codec. What a codec of fixed size
// accepts, it must also write.
func FuzzDecode(f *testing.F) {
	structure, err := proto.Marshal(structpb.NewStringValue("x"))
	if err != nil {
		f.Fatal(err)
	}
	for _, b := range [][]byte{nil, {0}, {1}, {2}, {1, 2, 3}, {1, 2, 3, 4}, {1, 2, 3, 4, 5, 6, 7, 8}, []byte(`{"X":1,"Y":[]}`), []byte(`[[[`), structure, {0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f}} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		survives(t, String, b, true)
		survives(t, Bytes, b, true)
		survives(t, Int32, b, true)
		survives(t, Int64, b, true)
		survives(t, Uint32, b, true)
		survives(t, Uint64, b, true)
		survives(t, Float32, b, true)
		survives(t, Float64, b, true)
		survives(t, Bool, b, true)
		survives(t, Unit, b, true)
		survives(t, JSON[any](), b, false)
		survives(t, JSON[point](), b, false)
		survives(t, JSON[json.RawMessage](), b, false)
		survives(t, Proto[*structpb.Value](), b, false)
	})
}

// survives decodes b; if exact, the value must be written as b again.
func survives[T any](t *testing.T, c Codec[T], b []byte, exact bool) {
	t.Helper()
	v, err := c.Decode(b)
	if err != nil || !exact {
		return
	}
	if again, err := c.Append(nil, v); err != nil || !bytes.Equal(again, b) {
		t.Fatalf("codec %s: Decode(%x) = %v, which is written as %x, %v", c.Name(), b, v, again, err)
	}
}
