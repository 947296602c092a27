package codec

import (
	"testing"

	"google.golang.org/protobuf/types/known/wrapperspb"
)

func BenchmarkAppendAndDecode(b *testing.B) {
	bench(b, String, "a key of usual length")
	bench(b, Bytes, []byte("a value of usual length"))
	bench(b, Int64, 1<<40)
	bench(b, Float64, 1.5)
	bench(b, Bool, true)
	bench(b, JSON[point](), point{1, 2})
	bench(b, Proto[*wrapperspb.StringValue](), wrapperspb.String("a value of usual length"))
}

func bench[T any](b *testing.B, c Codec[T], v T) {
	b.Run(c.Name(), func(b *testing.B) {
		b.ReportAllocs()
		var buf []byte
		for b.Loop() {
			var err error
			if buf, err = c.Append(buf[:0], v); err != nil {
				b.Fatal(err)
			}
			if _, err = c.Decode(buf); err != nil {
				b.Fatal(err)
			}
		}
	})
}
