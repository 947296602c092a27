package codec

import (
	"bytes"
	"strings"
	"unsafe"

	"github.com/weirstream/weir/internal/exact"
)

// String encodes a string as its bytes, like Kafka's StringSerializer. Decode
// doesn't copy: the string aliases the bytes, which must not be written again.
// Those of Kafka records never are, but a string that is kept holds the whole
// fetched batch in memory, so keep a [Clone]. The bytes need not be UTF-8.
var String Codec[string] = stringCodec{}

type stringCodec struct{ exact.Marker }

func (stringCodec) Append(dst []byte, v string) ([]byte, error) { return append(dst, v...), nil }
func (stringCodec) Decode(b []byte) (string, error) {
	return unsafe.String(unsafe.SliceData(b), len(b)), nil
}
func (stringCodec) Clone(v string) string { return strings.Clone(v) }
func (stringCodec) Name() string          { return "string" }
func (stringCodec) Version() int          { return 1 }

// Bytes passes bytes through, like Kafka's ByteArraySerializer. Decode doesn't
// copy: writing into the slice writes into the record; appending to it does not.
// A nil slice and an empty one have the same encoding.
var Bytes Codec[[]byte] = bytesCodec{}

type bytesCodec struct{}

func (bytesCodec) Append(dst, v []byte) ([]byte, error) { return append(dst, v...), nil }

// Decode cuts off the capacity: behind a record's value lie its neighbours in the
// fetched batch.
func (bytesCodec) Decode(b []byte) ([]byte, error) { return b[:len(b):len(b)], nil }
func (bytesCodec) Clone(v []byte) []byte           { return bytes.Clone(v) }
func (bytesCodec) Name() string                    { return "bytes" }
func (bytesCodec) Version() int                    { return 1 }
