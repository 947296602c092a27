package codec

import (
	"encoding/json"
	"fmt"
	"reflect"
)

// JSON returns a codec that uses encoding/json. Fields may come and go as
// encoding/json allows; unknown fields are ignored. Bytes in strings that are not
// UTF-8 are replaced, and numbers decoded into an any become float64. Its name is
// "json" for every T.
func JSON[T any]() Codec[T] { return jsonCodec[T]{} }

type jsonCodec[T any] struct{}

func (jsonCodec[T]) Append(dst []byte, v T) ([]byte, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return dst, fmt.Errorf("codec json: encode %s: %w", reflect.TypeFor[T](), err)
	}
	return append(dst, b...), nil
}

func (jsonCodec[T]) Decode(b []byte) (T, error) {
	var v T
	if err := json.Unmarshal(b, &v); err != nil {
		var zero T
		return zero, fmt.Errorf("codec json: decode %s: %w", reflect.TypeFor[T](), err)
	}
	return v, nil
}
func (jsonCodec[T]) Name() string { return "json" }
func (jsonCodec[T]) Version() int { return 1 }
