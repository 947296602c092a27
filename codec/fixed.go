package codec

import (
	"encoding/binary"
	"fmt"
	"math"

	"github.com/weirstream/weir/internal/exact"
)

// Sizes of encoded values, in bytes.
const (
	size32   = 4
	size64   = 8
	sizeBool = 1
)

// Codecs of fixed size, big-endian. Int32, Int64, Float32 and Float64 write what
// Kafka's IntegerSerializer, LongSerializer, FloatSerializer and DoubleSerializer
// write. Floats keep every bit, so 0 and -0 have different bytes, and so have two NaNs of
// different bits. That makes them bad keys of a stream: to Go 0 and -0 are one key, which
// then has two encodings, and each NaN is another key, so that its state is refused.
var (
	Int32   Codec[int32]   = int32Codec{}
	Int64   Codec[int64]   = int64Codec{}
	Uint32  Codec[uint32]  = uint32Codec{}
	Uint64  Codec[uint64]  = uint64Codec{}
	Float32 Codec[float32] = float32Codec{}
	Float64 Codec[float64] = float64Codec{}
)

// Bool encodes false as byte 0 and true as byte 1, like Kafka's BooleanSerializer.
// Any other byte is an error.
var Bool Codec[bool] = boolCodec{}

// Empty is the type of a value that says nothing: a stream of bare keys, a set.
type Empty struct{}

// Nothing is the value of type Empty.
var Nothing Empty

// Unit encodes Nothing as no bytes.
var Unit Codec[Empty] = unitCodec{}

type int32Codec struct{ exact.Marker }

func (int32Codec) Append(dst []byte, v int32) ([]byte, error) {
	return binary.BigEndian.AppendUint32(dst, uint32(v)), nil
}

func (int32Codec) Decode(b []byte) (int32, error) {
	if len(b) != size32 {
		return 0, wrongSize("int32", size32, b)
	}
	return int32(binary.BigEndian.Uint32(b)), nil
}
func (int32Codec) Name() string { return "int32" }
func (int32Codec) Version() int { return 1 }

type int64Codec struct{ exact.Marker }

func (int64Codec) Append(dst []byte, v int64) ([]byte, error) {
	return binary.BigEndian.AppendUint64(dst, uint64(v)), nil
}

func (int64Codec) Decode(b []byte) (int64, error) {
	if len(b) != size64 {
		return 0, wrongSize("int64", size64, b)
	}
	return int64(binary.BigEndian.Uint64(b)), nil
}
func (int64Codec) Name() string { return "int64" }
func (int64Codec) Version() int { return 1 }

type uint32Codec struct{ exact.Marker }

func (uint32Codec) Append(dst []byte, v uint32) ([]byte, error) {
	return binary.BigEndian.AppendUint32(dst, v), nil
}

func (uint32Codec) Decode(b []byte) (uint32, error) {
	if len(b) != size32 {
		return 0, wrongSize("uint32", size32, b)
	}
	return binary.BigEndian.Uint32(b), nil
}
func (uint32Codec) Name() string { return "uint32" }
func (uint32Codec) Version() int { return 1 }

type uint64Codec struct{ exact.Marker }

func (uint64Codec) Append(dst []byte, v uint64) ([]byte, error) {
	return binary.BigEndian.AppendUint64(dst, v), nil
}

func (uint64Codec) Decode(b []byte) (uint64, error) {
	if len(b) != size64 {
		return 0, wrongSize("uint64", size64, b)
	}
	return binary.BigEndian.Uint64(b), nil
}
func (uint64Codec) Name() string { return "uint64" }
func (uint64Codec) Version() int { return 1 }

type float32Codec struct{}

func (float32Codec) Append(dst []byte, v float32) ([]byte, error) {
	return binary.BigEndian.AppendUint32(dst, math.Float32bits(v)), nil
}

func (float32Codec) Decode(b []byte) (float32, error) {
	if len(b) != size32 {
		return 0, wrongSize("float32", size32, b)
	}
	return math.Float32frombits(binary.BigEndian.Uint32(b)), nil
}
func (float32Codec) Name() string { return "float32" }
func (float32Codec) Version() int { return 1 }

type float64Codec struct{}

func (float64Codec) Append(dst []byte, v float64) ([]byte, error) {
	return binary.BigEndian.AppendUint64(dst, math.Float64bits(v)), nil
}

func (float64Codec) Decode(b []byte) (float64, error) {
	if len(b) != size64 {
		return 0, wrongSize("float64", size64, b)
	}
	return math.Float64frombits(binary.BigEndian.Uint64(b)), nil
}
func (float64Codec) Name() string { return "float64" }
func (float64Codec) Version() int { return 1 }

type boolCodec struct{ exact.Marker }

func (boolCodec) Append(dst []byte, v bool) ([]byte, error) {
	if v {
		return append(dst, 1), nil
	}
	return append(dst, 0), nil
}

func (boolCodec) Decode(b []byte) (bool, error) {
	if len(b) != sizeBool {
		return false, wrongSize("bool", sizeBool, b)
	}
	if b[0] > 1 {
		return false, fmt.Errorf("codec bool: want byte 0 or 1, got %d", b[0])
	}
	return b[0] == 1, nil
}
func (boolCodec) Name() string { return "bool" }
func (boolCodec) Version() int { return 1 }

type unitCodec struct{ exact.Marker }

func (unitCodec) Append(dst []byte, _ Empty) ([]byte, error) { return dst, nil }

func (unitCodec) Decode(b []byte) (Empty, error) {
	if len(b) != 0 {
		return Nothing, wrongSize("unit", 0, b)
	}
	return Nothing, nil
}
func (unitCodec) Name() string { return "unit" }
func (unitCodec) Version() int { return 1 }
