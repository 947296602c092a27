package codec

import (
	"bytes"
	"math"
	"testing"
)

// Values in their order must have encodings in that order, and come back as they were.
func TestOrderedEncodingsSortAsTheirValues(t *testing.T) {
	sorted(t, Int32, math.MinInt32, -256, -2, -1, 0, 1, 255, 256, math.MaxInt32)
	sorted(t, Int64, math.MinInt64, math.MinInt32, -2, -1, 0, 1, math.MaxInt32, math.MaxInt64)
	sorted(t, Float32, float32(math.Inf(-1)), -math.MaxFloat32, -1.5, -1, -math.SmallestNonzeroFloat32,
		float32(math.Copysign(0, -1)), 0, math.SmallestNonzeroFloat32, 1, 1.5, math.MaxFloat32, float32(math.Inf(1)))
	sorted(t, Float64, math.Float64frombits(0xfff8000000000001), math.Inf(-1), -math.MaxFloat64, -1.5, -1, -math.SmallestNonzeroFloat64,
		math.Copysign(0, -1), 0, math.SmallestNonzeroFloat64, 1, 1.5, math.MaxFloat64, math.Inf(1), math.Float64frombits(0x7ff8000000000001))
}

func sorted[T any](t *testing.T, c Codec[T], values ...T) {
	t.Helper()
	o, ok := c.(Ordered[T])
	if !ok {
		t.Fatalf("codec %s is not Ordered", c.Name())
	}
	var last []byte
	for i, v := range values {
		b, err := o.AppendOrdered([]byte("before"), v)
		if err != nil || !bytes.HasPrefix(b, []byte("before")) {
			t.Fatalf("codec %s: AppendOrdered of %v = %x, %v", c.Name(), v, b, err)
		}
		b = b[len("before"):]
		if i > 0 && bytes.Compare(last, b) >= 0 {
			t.Errorf("codec %s: %v is encoded as %x, which does not sort behind %x of %v", c.Name(), v, b, last, values[i-1])
		}
		last = b
		got, err := o.DecodeOrdered(b)
		if err != nil {
			t.Fatalf("codec %s: DecodeOrdered(%x): %v", c.Name(), b, err)
		}
		want, _ := c.Append(nil, v)
		if again, _ := c.Append(nil, got); !bytes.Equal(again, want) { // bits: NaNs don't equal themselves
			t.Errorf("codec %s: %v came back as %v", c.Name(), v, got)
		}
	}
	if _, err := o.DecodeOrdered(last[1:]); err == nil {
		t.Errorf("codec %s: DecodeOrdered of %d bytes gave no error", c.Name(), len(last)-1)
	}
}

func TestUnsignedSortByTheirPlainEncoding(t *testing.T) {
	for _, pair := range [][2]uint64{{0, 1}, {255, 256}, {math.MaxInt64, math.MaxUint64}} {
		a, _ := Uint64.Append(nil, pair[0])
		b, _ := Uint64.Append(nil, pair[1])
		if bytes.Compare(a, b) >= 0 {
			t.Errorf("%d does not sort before %d", pair[0], pair[1])
		}
	}
}
