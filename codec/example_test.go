package codec_test

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/weirstream/weir/codec"
)

func Example() {
	key, _ := codec.String.Append(nil, "orders")
	count, _ := codec.Int64.Append(nil, 258)
	fmt.Printf("%q %x\n", key, count)

	n, _ := codec.Int64.Decode(count)
	fmt.Println(n)

	_, err := codec.Int64.Decode(count[:3])
	fmt.Println(err)
	// Output:
	// "orders" 0000000000000102
	// 258
	// codec int64: want 8 bytes, got 3
}

func ExampleJSON() {
	type order struct {
		ID    string
		Cents int64
	}
	c := codec.JSON[order]()
	b, _ := c.Append(nil, order{"a-1", 995})
	fmt.Println(string(b))

	_, err := c.Decode([]byte(`{"Cents":"many"}`))
	fmt.Println(err != nil)
	// Output:
	// {"ID":"a-1","Cents":995}
	// true
}

// A codec for a type of the app, out of two functions.
func ExampleFunc() {
	type pixel struct{ X, Y uint16 }
	c := codec.Func("pixel", 1,
		func(dst []byte, p pixel) ([]byte, error) {
			dst = binary.BigEndian.AppendUint16(dst, p.X)
			return binary.BigEndian.AppendUint16(dst, p.Y), nil
		},
		func(b []byte) (pixel, error) {
			if len(b) != 4 {
				return pixel{}, errors.New("codec pixel: want 4 bytes")
			}
			return pixel{binary.BigEndian.Uint16(b), binary.BigEndian.Uint16(b[2:])}, nil
		})
	b, _ := c.Append(nil, pixel{1, 2})
	p, err := c.Decode(b)
	fmt.Printf("%x %v %v\n", b, p, err)
	// Output: 00010002 {1 2} <nil>
}

// amount was stored as whole euros by version 1 and as cents since version 2.
type amount struct{ Cents int64 }

// amountCodec writes version 2 and reads both.
type amountCodec struct{ codec.Codec[amount] }

func (amountCodec) DecodeVersion(version int, b []byte) (amount, error) {
	if version != 1 {
		return amount{}, fmt.Errorf("unknown version %d", version)
	}
	euros, err := codec.Int64.Decode(b)
	return amount{Cents: euros * 100}, err
}

var amounts codec.Codec[amount] = amountCodec{codec.Func("amount", 2,
	func(dst []byte, a amount) ([]byte, error) { return codec.Int64.Append(dst, a.Cents) },
	func(b []byte) (amount, error) {
		cents, err := codec.Int64.Decode(b)
		return amount{Cents: cents}, err
	})}

// State that an older build wrote is read through DecodeVersion of the codec.
func ExampleMigrator() {
	old, _ := codec.Int64.Append(nil, 7)
	a, err := codec.DecodeVersion(amounts, 1, old)
	fmt.Println(a.Cents, err)

	_, err = codec.DecodeVersion(codec.Int64, 2, old)
	fmt.Println(err)
	// Output:
	// 700 <nil>
	// codec int64: data was written by version 2, this build has version 1: run the newer build that wrote it, or give the codec a method DecodeVersion (codec.Migrator) that reads the newer version
}

// A decoded string shares memory with the record that it came from until it is
// cloned.
func ExampleClone() {
	record := []byte("value")
	s, _ := codec.String.Decode(record)
	kept := codec.Clone(codec.String, s)
	copy(record, "other")
	fmt.Println(kept)
	// Output: value
}
