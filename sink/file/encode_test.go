package file

import (
	"bytes"
	"errors"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/twophase"
)

// number is a codec that has changed once.
type number struct{}

func (number) Append(dst []byte, v int) ([]byte, error) {
	return strconv.AppendInt(dst, int64(v), 16), nil
}
func (number) Name() string { return "number of mine" }
func (number) Version() int { return 2 }

func (number) Decode(b []byte) (int, error) {
	n, err := strconv.ParseInt(string(b), 16, 0)
	return int(n), err
}

func (number) DecodeVersion(version int, b []byte) (int, error) {
	if version != 1 {
		return 0, errors.New("unknown")
	}
	return strconv.Atoi(string(b))
}

// all reads a file of records.
func all[T any](text string, c codec.Codec[T]) (vs []T, err error) {
	for v, err := range Read(strings.NewReader(text), c) {
		if err != nil {
			return vs, err
		}
		vs = append(vs, v)
	}
	return vs, nil
}

func TestRecordsAreReadAsTheyWereWritten(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	r, err := records(o, codec.String).Connect(twophase.Env{App: "a", Operator: "o"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	want := []string{"", "a\nb", strings.Repeat("long", 1<<19), "\x00\xff"}
	tx, err := r.Begin(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range want {
		if err := tx.Write(v); err != nil {
			t.Fatal(err)
		}
	}
	h, err := tx.Prepare(t.Context())
	if err == nil {
		err = r.Commit(t.Context(), h)
	}
	if err != nil {
		t.Fatal(err)
	}
	got, err := all(texts(visible(t, o.Dir))[0], codec.String)
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("read %d records, %v", len(got), err)
	}
}

func TestS30_GoldenRecordsStayReadable(t *testing.T) {
	b, err := os.ReadFile("testdata/records-v1.bin")
	if err != nil {
		t.Fatal(err)
	}
	got, err := all(string(b), number{})
	if want := []int{7, 42, -1}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v", got, err)
	}
}

func TestDamagedRecordsAreNotRead(t *testing.T) {
	good := "weir-records 1 string 1\n\x01a\x02bc"
	for text, want := range map[string]string{
		"":                                "no file of records",
		"lines\nof text\n":                "no file of records",
		strings.Repeat("x", 10_000):       "no file of records",
		"weir-records 1 string 1":         "no file of records",
		"weir-records 2 string 1\n":       "version 2 of the format",
		"weir-records 0 string 1\n":       "no file of records",
		"weir-records 1 string\n":         "codec and version",
		"weir-records 1 string x\n":       "no version",
		"weir-records 1 int64 1\n":        "codec int64 wrote it",
		"weir-records 1 string 2\n\x01a":  "version 2",
		good + "\x03de":                   "record 2: it ends early",
		good + "\x80":                     "record 2: unexpected EOF",
		good + "\xff\xff\xff\xff\xff\x01": "record 2: its length",
	} {
		if _, err := all(text, codec.String); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %s", text, err, want)
		}
	}
	if vs, err := all(good, codec.String); err != nil || len(vs) != 2 {
		t.Errorf("%q, %v", vs, err)
	}
	for range Read(strings.NewReader(good), codec.String) {
		break // a loop may end early
	}
}

func TestErrorOfTheReaderIsNoDamage(t *testing.T) {
	const header = "weir-records 1 string 1\n"
	for _, text := range []string{"", "weir-records 2", header[:5], header, header + "\x01a", header + "\x80", header + "\x03", header + "\x03ab"} {
		for _, err := range Read(io.MultiReader(strings.NewReader(text), iotest.ErrReader(syscall.EIO)), codec.String) {
			if err == nil {
				continue
			}
			if !errors.Is(err, syscall.EIO) || strings.Contains(err.Error(), "no file of records") || strings.Contains(err.Error(), "ends early") {
				t.Errorf("behind %q: %v", text, err)
			}
		}
	}
}

// short is a codec that says of a value what a reader says at the end.
type short struct{ codec.Codec[string] }

func (short) Decode([]byte) (string, error) { return "", io.EOF }

func TestValueThatEndsEarlyIsNotTheEnd(t *testing.T) {
	if _, err := all("weir-records 1 string 1\n\x01a\x01b", short{codec.String}); !errors.Is(err, io.ErrUnexpectedEOF) {
		t.Errorf("%v", err)
	}
}

func TestValueThatCannotBeReadIsNotWritten(t *testing.T) {
	defer func(most uint64) { mostRecord = most }(mostRecord)
	mostRecord = 3
	p := records(Options{Dir: "d"}, codec.String)
	b, err := p.encode(nil, "abc")
	if err != nil {
		t.Fatal(err)
	}
	if vs, err := all("weir-records 1 string 1\n"+string(b), codec.String); err != nil || !slices.Equal(vs, []string{"abc"}) {
		t.Errorf("the longest value is read as %q, %v", vs, err)
	}
	if b, err := p.encode([]byte("x"), "abcd"); err == nil || string(b) != "x" || !strings.Contains(err.Error(), "4 bytes") {
		t.Errorf("a value that is too long: %q, %v", b, err)
	}
}

func FuzzRead(f *testing.F) {
	f.Add([]byte("weir-records 1 string 1\n\x01a\x02bc"))
	f.Add([]byte("weir-records 1 string 1\n\xff\xff\xff\xff\x0fa"))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, err := range Read(bytes.NewReader(b), codec.String) {
			if errors.Is(err, io.EOF) {
				t.Error("the end is no error")
			}
		}
	})
}
