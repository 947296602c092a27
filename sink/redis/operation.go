package redis

import (
	"encoding/binary"
	"errors"
	"fmt"
	"sort"
)

// Limits of one command. The scripts hand a command's arguments over on Lua's stack, which
// holds 8,000; Redis itself takes strings of up to 512 MiB.
const (
	maxArgs         = 4000
	maxCommandBytes = 64 << 20
)

// Flags of an operation.
const (
	flagJoined  = 1 << 0 // applied in one step with the operation that follows
	flagGuarded = 1 << 1 // has a version
	knownFlags  = flagJoined | flagGuarded
)

// operation is a command with what has to be known to apply it.
type operation struct {
	flags   byte
	slot    uint16
	version int64  // if flagGuarded
	keys    []int  // which arguments are keys; the command's name is argument 0
	command []byte // MessagePack array of strings
}

// malformedError says that bytes are no operation.
type malformedError struct{ reason string }

func (e *malformedError) Error() string { return "malformed operation: " + e.reason }

func malformed(format string, args ...any) error {
	return &malformedError{fmt.Sprintf(format, args...)}
}

// reader takes numbers from bytes and remembers that there were none.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

func (r *reader) bytes(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return nil
	}
	b := r.b[:n:n]
	r.b = r.b[n:]
	return b
}

// decode decodes an operation, which aliases b, verifies it, and returns what follows.
func (o *operation) decode(b []byte) ([]byte, error) {
	rest, err := o.next(b)
	if err != nil {
		return nil, err
	}
	args, left, err := readArrayHeader(o.command)
	if err != nil || args < 1 || args > maxArgs {
		return nil, malformed("command")
	}
	for range args {
		if _, left, err = readString(left); err != nil {
			return nil, malformed("command")
		}
	}
	if len(left) > 0 || !sort.IntsAreSorted(o.keys) || o.keys[0] < 1 || o.keys[len(o.keys)-1] >= args {
		return nil, malformed("command")
	}
	return rest, nil
}

// next is decode of an operation that was verified before: it doesn't look into the command.
func (o *operation) next(b []byte) ([]byte, error) {
	if len(b) < 3 {
		return nil, malformed("truncated")
	}
	o.flags, o.slot = b[0], binary.LittleEndian.Uint16(b[1:])
	if o.flags&^knownFlags != 0 || o.slot >= slots {
		return nil, malformed("flags %#x, slot %d", o.flags, o.slot)
	}
	b = b[3:]
	if o.flags&flagGuarded != 0 {
		if len(b) < 8 {
			return nil, malformed("truncated")
		}
		o.version, b = int64(binary.LittleEndian.Uint64(b)), b[8:]
	}
	r := reader{b: b}
	n := r.uvarint()
	if n == 0 || n > maxArgs {
		return nil, malformed("%d keys", n)
	}
	o.keys = o.keys[:0]
	for range n {
		o.keys = append(o.keys, int(min(r.uvarint(), maxArgs)))
	}
	o.command = r.bytes(r.uvarint())
	if r.bad {
		return nil, malformed("truncated")
	}
	return r.b, nil
}

// args returns the arguments of the command, which alias it.
func (o *operation) args() [][]byte {
	args, err := commandArgs(o.command)
	if err != nil {
		panic(errors.Join(errors.New("redis: a command that was verified"), err))
	}
	return args
}
