package codec

import (
	"fmt"
	"reflect"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// Proto returns a codec for a generated protobuf message; T is its pointer type,
// as in Proto[*orders.Order](). Its name is "proto:" and the message's full name.
// Marshalling is deterministic within one build, though protobuf promises the same
// bytes for ever only for messages without maps and unknown fields: use no others
// as keys. A nil message is encoded as an empty one.
func Proto[T proto.Message]() Codec[T] {
	var nilMessage T
	if reflect.TypeFor[T]().Kind() != reflect.Pointer {
		return &protoCodec[T]{err: fmt.Errorf("codec proto: %s is no generated message type: use a type such as *orders.Order", reflect.TypeFor[T]())}
	}
	t, err := messageType(nilMessage)
	if err != nil {
		return &protoCodec[T]{err: err}
	}
	return &protoCodec[T]{t: t, name: "proto:" + string(t.Descriptor().FullName())}
}

// messageType returns the type of a nil message. Generated messages know it;
// dynamic ones panic.
func messageType(m proto.Message) (t protoreflect.MessageType, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("codec proto: %T is no generated message type: its descriptor is unknown before a message exists (%v)", m, r)
		}
	}()
	return m.ProtoReflect().Type(), nil
}

type protoCodec[T proto.Message] struct {
	t    protoreflect.MessageType
	name string
	err  error // T is unusable
}

func (c *protoCodec[T]) Append(dst []byte, v T) ([]byte, error) {
	if c.err != nil {
		return dst, c.err
	}
	b, err := proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, v)
	if err != nil {
		return dst, fmt.Errorf("codec %s: encode: %w", c.name, err)
	}
	return b, nil
}

func (c *protoCodec[T]) Decode(b []byte) (T, error) {
	var zero T
	if c.err != nil {
		return zero, c.err
	}
	v := c.t.New().Interface().(T)
	if err := proto.Unmarshal(b, v); err != nil {
		return zero, fmt.Errorf("codec %s: decode: %w", c.name, err)
	}
	return v, nil
}
func (c *protoCodec[T]) Name() string { return c.name }
func (c *protoCodec[T]) Version() int { return 1 }
func (c *protoCodec[T]) Check() error { return c.err }
