package redis

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
)

// Commands are kept as MessagePack arrays of strings, because the scripts can decode
// that with what every Redis has built in.

// appendArrayHeader appends the header of an array of n elements.
func appendArrayHeader(dst []byte, n int) []byte {
	switch {
	case n < 16:
		return append(dst, 0x90|byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, 0xdc), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, 0xdd), uint32(n))
}

// appendStringHeader appends the header of a string of n bytes.
func appendStringHeader(dst []byte, n int) []byte {
	switch {
	case n < 32:
		return append(dst, 0xa0|byte(n))
	case n <= math.MaxUint8:
		return append(dst, 0xd9, byte(n))
	case n <= math.MaxUint16:
		return binary.BigEndian.AppendUint16(append(dst, 0xda), uint16(n))
	}
	return binary.BigEndian.AppendUint32(append(dst, 0xdb), uint32(n))
}

var errMsgpack = errors.New("malformed command")

// readArrayHeader reads the header of an array, and returns what follows.
func readArrayHeader(b []byte) (n int, rest []byte, err error) {
	switch {
	case len(b) >= 1 && b[0]&0xf0 == 0x90:
		return int(b[0] & 0x0f), b[1:], nil
	case len(b) >= 3 && b[0] == 0xdc:
		return int(binary.BigEndian.Uint16(b[1:])), b[3:], nil
	case len(b) >= 5 && b[0] == 0xdd:
		return int(binary.BigEndian.Uint32(b[1:])), b[5:], nil
	}
	return 0, nil, errMsgpack
}

// readString reads a string, which aliases b, and returns what follows.
func readString(b []byte) (s, rest []byte, err error) {
	var n int
	switch {
	case len(b) >= 1 && b[0]&0xe0 == 0xa0:
		n, b = int(b[0]&0x1f), b[1:]
	case len(b) >= 2 && b[0] == 0xd9:
		n, b = int(b[1]), b[2:]
	case len(b) >= 3 && b[0] == 0xda:
		n, b = int(binary.BigEndian.Uint16(b[1:])), b[3:]
	case len(b) >= 5 && b[0] == 0xdb:
		n, b = int(binary.BigEndian.Uint32(b[1:])), b[5:]
	default:
		return nil, nil, errMsgpack
	}
	if n > len(b) {
		return nil, nil, errMsgpack
	}
	return b[:n], b[n:], nil
}

// commandArgs decodes a command; the arguments alias b.
func commandArgs(b []byte) ([][]byte, error) {
	n, b, err := readArrayHeader(b)
	if err != nil {
		return nil, err
	}
	if n == 0 || n > len(b) {
		return nil, errMsgpack
	}
	args := make([][]byte, n)
	for i := range args {
		if args[i], b, err = readString(b); err != nil {
			return nil, err
		}
	}
	if len(b) != 0 {
		return nil, fmt.Errorf("%w: %d bytes behind it", errMsgpack, len(b))
	}
	return args, nil
}
