package codec

import (
	"encoding/binary"
	"math"
)

// Ordered is implemented by a codec whose encoding does not sort as its values do, and
// that has another one which does: compared byte by byte, the encodings of two values
// are in the order of the values. Keys of a map in state are stored in it, so that the
// map is iterated in the order of its keys. The keys of a codec that is not Ordered
// sort by the bytes that Append makes. A type that embeds a Codec[T] does not have these
// methods of what is in it: as the codec of map keys it needs its own.
type Ordered[T any] interface {
	// AppendOrdered is Append in the other encoding.
	AppendOrdered(dst []byte, v T) ([]byte, error)
	// DecodeOrdered decodes what AppendOrdered wrote, to the contract of Decode.
	DecodeOrdered(b []byte) (T, error)
}

// The sign bit is flipped, so that negative numbers come first. The other bits of a
// negative float are flipped as well: there the greater ones mean less.
const (
	sign32 = 1 << 31
	sign64 = 1 << 63
)

func (int32Codec) AppendOrdered(dst []byte, v int32) ([]byte, error) {
	return binary.BigEndian.AppendUint32(dst, uint32(v)^sign32), nil
}

func (int32Codec) DecodeOrdered(b []byte) (int32, error) {
	if len(b) != size32 {
		return 0, wrongSize("int32", size32, b)
	}
	return int32(binary.BigEndian.Uint32(b) ^ sign32), nil
}

func (int64Codec) AppendOrdered(dst []byte, v int64) ([]byte, error) {
	return binary.BigEndian.AppendUint64(dst, uint64(v)^sign64), nil
}

func (int64Codec) DecodeOrdered(b []byte) (int64, error) {
	if len(b) != size64 {
		return 0, wrongSize("int64", size64, b)
	}
	return int64(binary.BigEndian.Uint64(b) ^ sign64), nil
}

// Floats sort as numbers, -0 before 0, and NaNs at the ends.

func (float32Codec) AppendOrdered(dst []byte, v float32) ([]byte, error) {
	n := math.Float32bits(v)
	if n&sign32 != 0 {
		n = ^n
	} else {
		n ^= sign32
	}
	return binary.BigEndian.AppendUint32(dst, n), nil
}

func (float32Codec) DecodeOrdered(b []byte) (float32, error) {
	if len(b) != size32 {
		return 0, wrongSize("float32", size32, b)
	}
	n := binary.BigEndian.Uint32(b)
	if n&sign32 != 0 {
		n ^= sign32
	} else {
		n = ^n
	}
	return math.Float32frombits(n), nil
}

func (float64Codec) AppendOrdered(dst []byte, v float64) ([]byte, error) {
	n := math.Float64bits(v)
	if n&sign64 != 0 {
		n = ^n
	} else {
		n ^= sign64
	}
	return binary.BigEndian.AppendUint64(dst, n), nil
}

func (float64Codec) DecodeOrdered(b []byte) (float64, error) {
	if len(b) != size64 {
		return 0, wrongSize("float64", size64, b)
	}
	n := binary.BigEndian.Uint64(b)
	if n&sign64 != 0 {
		n ^= sign64
	} else {
		n = ^n
	}
	return math.Float64frombits(n), nil
}
