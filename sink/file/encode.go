package file

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/twophase"
)

// Lines makes a sink of text files: each value is a line, which line appends to dst, without
// the line break. A line that has a line break of its own is refused.
func Lines[T any](o Options, line func(dst []byte, v T) ([]byte, error), opts ...twophase.Option) *twophase.Sink[T] {
	return twophase.To(lines(o, line), opts...)
}

func lines[T any](o Options, line func(dst []byte, v T) ([]byte, error)) *participant[T] {
	p := &participant[T]{o: o, what: "lines"}
	if line == nil {
		p.bad = errors.New("file: the function that makes a line of a value is nil")
		return p
	}
	p.encode = func(dst []byte, v T) ([]byte, error) {
		start := len(dst)
		dst, err := line(dst, v)
		if err != nil {
			return dst, err
		}
		if len(dst) >= start && bytes.IndexByte(dst[start:], '\n') >= 0 {
			return dst, fmt.Errorf("file: the line %.100q has a line break: escape it, as JSON does, or use file.Records", dst[start:])
		}
		return append(dst, '\n'), nil
	}
	return p
}

// Records makes a sink of files of encoded values, which [Read] reads. A file begins with
// the codec's name and version.
func Records[T any](o Options, c codec.Codec[T], opts ...twophase.Option) *twophase.Sink[T] {
	return twophase.To(records(o, c), opts...)
}

func records[T any](o Options, c codec.Codec[T]) *participant[T] {
	p := &participant[T]{o: o, what: "records"}
	if p.bad = codec.Check(c); p.bad != nil {
		return p
	}
	p.header = fmt.Appendf(nil, "%s%s %d\n", magic, c.Name(), c.Version())
	p.encode = func(dst []byte, v T) ([]byte, error) {
		b, err := c.Append(nil, v)
		if err != nil {
			return dst, err
		}
		if n := uint64(len(b)); n > mostRecord {
			return dst, fmt.Errorf("file: the value has %d bytes, the most are %d", n, mostRecord)
		}
		return append(binary.AppendUvarint(dst, uint64(len(b))), b...), nil
	}
	return p
}

// magic begins a file of records. The codec's name, its version and a line break follow,
// then each value: its length as uvarint, and its bytes.
const (
	magicName = "weir-records "
	magic     = magicName + "1 "
)

// mostHeader bounds the first line of a file of records.
const mostHeader = 4 << 10

// mostRecord bounds a value. It is a variable for a test.
var mostRecord uint64 = 1 << 30

// Read reads what [Records] wrote, with a codec of the same name, until the end or the first
// error, which is the reader's own if that fails. Values of an older version are read if the
// codec is a codec.Migrator.
func Read[T any](r io.Reader, c codec.Codec[T]) iter.Seq2[T, error] {
	return func(yield func(T, error) bool) {
		var zero T
		in := bufio.NewReaderSize(r, mostHeader)
		version, err := readHeader(in, c.Name())
		if err != nil {
			yield(zero, err)
			return
		}
		for n := 0; ; n++ {
			v, err := readRecord(in, c, version)
			if err == io.EOF {
				return
			}
			if err != nil {
				err = fmt.Errorf("record %d: %w", n, err)
			}
			if !yield(v, err) || err != nil {
				return
			}
		}
	}
}

func readHeader(in *bufio.Reader, name string) (version int, err error) {
	line, err := in.ReadSlice('\n')
	if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF && err != bufio.ErrBufferFull {
		return 0, fmt.Errorf("reading the first line: %w", err)
	}
	if rest, ok := strings.CutPrefix(string(line), magicName); ok {
		format, _, _ := strings.Cut(rest, " ")
		if n, err := strconv.ParseUint(format, 10, 31); err == nil && n > 1 {
			return 0, fmt.Errorf("the file has version %d of the format, this build reads version 1: run the build that wrote it", n)
		}
	}
	if err != nil || !strings.HasPrefix(string(line), magic) {
		return 0, fmt.Errorf("this is no file of records: it begins with %.40q, not with %q", line, magic)
	}
	said := strings.TrimSuffix(strings.TrimPrefix(string(line), magic), "\n")
	at := strings.LastIndexByte(said, ' ')
	if at < 0 {
		return 0, fmt.Errorf("the first line %q names no codec and version", said)
	}
	if version, err = strconv.Atoi(said[at+1:]); err != nil {
		return 0, fmt.Errorf("the first line %q has no version: %w", said, err)
	}
	if said[:at] != name {
		return 0, fmt.Errorf("codec %s wrote it, and codec %s was given to read it", said[:at], name)
	}
	return version, nil
}

// readRecord returns io.EOF at the end.
func readRecord[T any](in *bufio.Reader, c codec.Codec[T], version int) (v T, err error) {
	n, err := binary.ReadUvarint(in)
	if err != nil {
		return v, err // io.EOF only if there was nothing
	}
	if n > mostRecord {
		return v, fmt.Errorf("its length is %d bytes: the file is damaged", n)
	}
	var b bytes.Buffer // grows with what is there, whatever the length says
	switch _, err := io.CopyN(&b, in, int64(n)); err {
	case nil:
	case io.EOF, io.ErrUnexpectedEOF:
		return v, fmt.Errorf("it ends early: %w", io.ErrUnexpectedEOF)
	default:
		return v, fmt.Errorf("reading it: %w", err)
	}
	if v, err = codec.DecodeVersion(c, version, b.Bytes()); err == io.EOF {
		err = io.ErrUnexpectedEOF // it is the value that ends, and not the file
	}
	return v, err
}
