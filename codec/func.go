package codec

import (
	"fmt"
	"reflect"
)

// Func makes a codec of two functions, to which the contract of [Codec] applies;
// decode must return a value that doesn't alias its input. For a codec that aliases
// or that reads older versions, write a type that implements [Cloner] or
// [Migrator]; it may embed the result of Func. What is wrong with the arguments is
// found by [Check], and returned by Append and Decode.
func Func[T any](name string, version int, append func(dst []byte, v T) ([]byte, error), decode func(b []byte) (T, error)) Codec[T] {
	c := &funcCodec[T]{name: name, version: version, append: append, decode: decode}
	if append == nil || decode == nil {
		c.err = fmt.Errorf("codec %q for %s: it needs an append function and a decode function", name, reflect.TypeFor[T]())
	}
	return c
}

type funcCodec[T any] struct {
	name    string
	version int
	append  func([]byte, T) ([]byte, error)
	decode  func([]byte) (T, error)
	err     error // a function is missing; see Check
}

func (c *funcCodec[T]) Append(dst []byte, v T) ([]byte, error) {
	if c.err != nil {
		return dst, c.err
	}
	return c.append(dst, v)
}

func (c *funcCodec[T]) Decode(b []byte) (T, error) {
	if c.err != nil {
		var zero T
		return zero, c.err
	}
	return c.decode(b)
}
func (c *funcCodec[T]) Name() string { return c.name }
func (c *funcCodec[T]) Version() int { return c.version }
func (c *funcCodec[T]) Check() error { return c.err }
