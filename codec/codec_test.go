package codec

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"unsafe"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/dynamicpb"
	"google.golang.org/protobuf/types/known/structpb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// keyBy stands for the functions that infer a key's type from its codec.
func keyBy[K any](c Codec[K]) (zero K) { _ = c.Name(); return zero }

// These lines prove by compiling that the type is inferred.
var (
	_ string                  = keyBy(String)
	_ []byte                  = keyBy(Bytes)
	_ int32                   = keyBy(Int32)
	_ int64                   = keyBy(Int64)
	_ uint32                  = keyBy(Uint32)
	_ uint64                  = keyBy(Uint64)
	_ float32                 = keyBy(Float32)
	_ float64                 = keyBy(Float64)
	_ bool                    = keyBy(Bool)
	_ Empty                   = keyBy(Unit)
	_ point                   = keyBy(JSON[point]())
	_ *wrapperspb.StringValue = keyBy(Proto[*wrapperspb.StringValue]())
)

type point struct{ X, Y int }

// TestEncodingsStayAsTheyAre holds what is stored and shared with other clients:
// names, versions and bytes. The bytes of numbers are those of Kafka's Java
// serializers.
func TestEncodingsStayAsTheyAre(t *testing.T) {
	stays(t, String, "string", "äx", "\xc3\xa4x")
	stays(t, String, "string", "", "")
	stays(t, Bytes, "bytes", []byte{0, 255}, "\x00\xff")
	stays(t, Int32, "int32", -2, "\xff\xff\xff\xfe")
	stays(t, Int64, "int64", 0x0102030405060708, "\x01\x02\x03\x04\x05\x06\x07\x08")
	stays(t, Int64, "int64", math.MinInt64, "\x80\x00\x00\x00\x00\x00\x00\x00")
	stays(t, Uint32, "uint32", math.MaxUint32-1, "\xff\xff\xff\xfe")
	stays(t, Uint64, "uint64", 1, "\x00\x00\x00\x00\x00\x00\x00\x01")
	stays(t, Float32, "float32", -1.5, "\xbf\xc0\x00\x00")
	stays(t, Float64, "float64", 1, "\x3f\xf0\x00\x00\x00\x00\x00\x00")
	stays(t, Bool, "bool", true, "\x01")
	stays(t, Bool, "bool", false, "\x00")
	stays(t, Unit, "unit", Nothing, "")
	stays(t, JSON[point](), "json", point{1, -2}, `{"X":1,"Y":-2}`)
	stays(t, Proto[*wrapperspb.StringValue](), "proto:google.protobuf.StringValue", wrapperspb.String("ab"), "\x0a\x02ab")
}

func stays[T any](t *testing.T, c Codec[T], name string, v T, encoded string) {
	t.Helper()
	if c.Name() != name || c.Version() != 1 {
		t.Errorf("codec has name %q and version %d, want %q and 1", c.Name(), c.Version(), name)
	}
	if err := Check(c); err != nil {
		t.Error(err)
	}
	if b, err := c.Append([]byte("before"), v); err != nil || string(b) != "before"+encoded {
		t.Errorf("codec %s: Append of %v = %q, %v, want %q behind what was there", name, v, b, err, encoded)
	}
	got, err := c.Decode([]byte(encoded))
	if m, ok := any(v).(proto.Message); ok && err == nil {
		if !proto.Equal(m, any(got).(proto.Message)) {
			t.Errorf("codec %s: Decode(%q) = %v, want %v", name, encoded, got, v)
		}
		return
	}
	if err != nil || fmt.Sprint(got) != fmt.Sprint(v) {
		t.Errorf("codec %s: Decode(%q) = %v, %v, want %v", name, encoded, got, err, v)
	}
}

func TestDecodeErrorsNameCodecAndCause(t *testing.T) {
	fails(t, Int32, "", "codec int32: want 4 bytes, got 0")
	fails(t, Int64, "abc", "codec int64: want 8 bytes, got 3")
	fails(t, Int64, "123456789", "codec int64: want 8 bytes, got 9")
	fails(t, Uint32, "12345", "codec uint32: want 4 bytes, got 5")
	fails(t, Uint64, "1", "codec uint64: want 8 bytes, got 1")
	fails(t, Float32, "12345678", "codec float32: want 4 bytes, got 8")
	fails(t, Float64, "1234", "codec float64: want 8 bytes, got 4")
	fails(t, Bool, "", "codec bool: want 1 byte, got 0")
	fails(t, Bool, "\x02", "codec bool: want byte 0 or 1, got 2")
	fails(t, Unit, "x", "codec unit: want 0 bytes, got 1")
	fails(t, JSON[point](), "{", "codec json: decode codec.point: unexpected end of JSON input")
	fails(t, JSON[point](), `{"X":"a"}`, "codec json: decode codec.point: ")
	fails(t, JSON[point](), `{"X":1,"Y":"a"}`, "codec json: decode codec.point: ")
	fails(t, JSON[*point](), `{}x`, "codec json: decode *codec.point: ")
	fails(t, Proto[*wrapperspb.StringValue](), "\xff", "codec proto:google.protobuf.StringValue: decode: ")
}

func fails[T any](t *testing.T, c Codec[T], encoded, want string) {
	t.Helper()
	v, err := c.Decode([]byte(encoded))
	if err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("codec %s: Decode(%q) = %v, %v, want the error %s", c.Name(), encoded, v, err, want)
	}
	var zero T
	if fmt.Sprint(v) != fmt.Sprint(zero) {
		t.Errorf("codec %s: Decode(%q) = %v besides an error", c.Name(), encoded, v)
	}
}

func TestEncodeErrorsNameTypeAndKeepWhatWasThere(t *testing.T) {
	b, err := JSON[func()]().Append([]byte("before"), nil)
	if err == nil || !strings.Contains(err.Error(), "encode func()") || string(b) != "before" {
		t.Errorf("Append = %q, %v", b, err)
	}
	b, err = Proto[*wrapperspb.StringValue]().Append([]byte("before"), wrapperspb.String("\xff"))
	if err == nil || !strings.Contains(err.Error(), "codec proto:google.protobuf.StringValue: encode") || string(b) != "before" {
		t.Errorf("Append = %q, %v", b, err)
	}
}

func TestStringAndBytesAliasUntilCloned(t *testing.T) {
	b := []byte("value")
	s, _ := String.Decode(b)
	v, _ := Bytes.Decode(b)
	if unsafe.StringData(s) != &b[0] || &v[0] != &b[0] {
		t.Error("Decode copied")
	}
	cs, cv := Clone(String, s), Clone(Bytes, v)
	if unsafe.StringData(cs) == &b[0] || &cv[0] == &b[0] {
		t.Error("Clone did not copy")
	}
	copy(b, "other")
	if cs != "value" || string(cv) != "value" {
		t.Errorf("clones are %q and %q after the buffer was reused", cs, cv)
	}
}

func TestAppendingToDecodedBytesSparesTheirNeighbours(t *testing.T) {
	batch := []byte("onetwo")
	v, _ := Bytes.Decode(batch[:3])
	_ = append(v, "XXX"...)
	if string(batch) != "onetwo" {
		t.Errorf("the batch is %q after an append to its first value", batch)
	}
}

func TestCloneReturnsValuesOfOtherCodecsAsTheyAre(t *testing.T) {
	p := &point{1, 2}
	if Clone(JSON[*point](), p) != p {
		t.Error("Clone copied a value whose codec does not alias")
	}
}

func TestFloatsKeepEveryBit(t *testing.T) {
	for _, bits := range []uint64{0, 1 << 63, 0x7ff8000000000001, 0x7ff4000000000000, 0xfff0000000000000, 1} {
		b, _ := Float64.Append(nil, math.Float64frombits(bits))
		v, err := Float64.Decode(b)
		if err != nil || math.Float64bits(v) != bits {
			t.Errorf("%x came back as %x, %v", bits, math.Float64bits(v), err)
		}
	}
}

// migrating has version 3 and reads version 2.
type migrating struct{ Codec[int64] }

func (migrating) Name() string { return "grown" }
func (migrating) Version() int { return 3 }
func (migrating) DecodeVersion(version int, b []byte) (int64, error) {
	if version != 2 {
		return 0, fmt.Errorf("version %d is unknown", version)
	}
	v, err := Int32.Decode(b)
	return int64(v), err
}

// aged is a codec of version 3 that reads no other.
type aged struct{ Codec[int64] }

func (aged) Name() string { return "aged" }
func (aged) Version() int { return 3 }

func TestS31_OldVersionIsMigratedOnRead(t *testing.T) {
	c := migrating{Int64}
	if v, err := DecodeVersion[int64](c, 3, []byte{0, 0, 0, 0, 0, 0, 0, 7}); v != 7 || err != nil {
		t.Errorf("version 3: %d, %v, want 7", v, err)
	}
	if v, err := DecodeVersion[int64](c, 2, []byte{0, 0, 0, 7}); v != 7 || err != nil {
		t.Errorf("version 2: %d, %v, want 7", v, err)
	}
	_, err := DecodeVersion[int64](c, 1, nil)
	if want := "codec grown: migrate version 1 to 3: version 1 is unknown"; err == nil || err.Error() != want {
		t.Errorf("version 1: %v, want %s", err, want)
	}
}

func TestS31_UnreadableVersionIsRefusedWithRemedy(t *testing.T) {
	for written, remedy := range map[int]string{
		2: "DecodeVersion (codec.Migrator) that reads the old version",
		4: "run the newer build that wrote it",
	} {
		v, err := DecodeVersion[int64](aged{Int64}, written, []byte{0, 0, 0, 0, 0, 0, 0, 7})
		var ve *VersionError
		if !errors.As(err, &ve) || *ve != (VersionError{"aged", written, 3}) || v != 0 {
			t.Fatalf("version %d: %d, %v, want a VersionError", written, v, err)
		}
		prefix := fmt.Sprintf("codec aged: data was written by version %d, this build has version 3: ", written)
		if !strings.HasPrefix(err.Error(), prefix) || !strings.Contains(err.Error(), remedy) {
			t.Errorf("version %d: %q, want it to say %q", written, err, remedy)
		}
	}
}

func TestFuncUsesItsFunctions(t *testing.T) {
	c := Func("hex", 2,
		func(dst []byte, v int) ([]byte, error) { return fmt.Appendf(dst, "%x", v), nil },
		func(b []byte) (v int, err error) { _, err = fmt.Sscanf(string(b), "%x", &v); return v, err })
	if err := Check(c); err != nil {
		t.Error(err)
	}
	b, err := c.Append([]byte("x"), 255)
	if string(b) != "xff" || err != nil || c.Name() != "hex" || c.Version() != 2 {
		t.Errorf("codec %s version %d: Append = %q, %v", c.Name(), c.Version(), b, err)
	}
	if v, err := c.Decode([]byte("ff")); v != 255 || err != nil {
		t.Errorf("Decode = %d, %v", v, err)
	}
	if _, err := c.Decode([]byte("z")); err == nil {
		t.Error("Decode of nonsense gave no error")
	}
}

func TestCheckFindsUnusableCodecs(t *testing.T) {
	append := func(dst []byte, v int) ([]byte, error) { return dst, nil }
	decode := func([]byte) (int, error) { return 0, nil }
	unusable(t, Codec[int](nil), "codec for int is nil")
	unusable(t, Func("x", 0, append, decode), "version is 0")
	unusable(t, Func("", 1, append, decode), "name is empty")
	unusable(t, Func("", 0, append, decode), "version is 0") // besides the name
	unusable(t, Func("x", math.MaxInt32+1, append, decode), "version is 2147483648, more than 2147483647")
	unusable(t, Func("a\nb", 1, append, decode), `codec "a\nb"`)
	unusable(t, Func("\xff", 1, append, decode), "UTF-8")
	unusable(t, Func("x", 1, nil, decode), `codec "x" for int: it needs`)
	unusable(t, Func("x", 1, append, nil), `codec "x" for int: it needs`)
	unusable(t, Proto[proto.Message](), "no generated message type")
	unusable(t, Proto[*dynamicpb.Message](), "no generated message type")
	unusable[int](t, hides[int]{Func("x", 1, append, nil)}, `codec "x" for int: it needs`)
	unusable[int](t, &hides[int]{hides[int]{Func("x", 1, append, nil)}}, `codec "x" for int: it needs`)
	unusable[string](t, hidesDeep{&hides[string]{Func[string]("x", 1, nil, nil)}}, `codec "x" for string: it needs`)
	unusable[proto.Message](t, hides[proto.Message]{Proto[proto.Message]()}, "no generated message type")
	for _, err := range []error{Check(Func("x", 1, append, decode)), Check[int](hides[int]{Func("x", math.MaxInt32, append, decode)})} {
		if err != nil {
			t.Error(err)
		}
	}
}

// sorts has the other encoding of the codec that it embeds.
type sorts struct{ Codec[int64] }

func (c sorts) AppendOrdered(dst []byte, v int64) ([]byte, error) {
	return c.Codec.(Ordered[int64]).AppendOrdered(dst, v)
}

func (c sorts) DecodeOrdered(b []byte) (int64, error) {
	return c.Codec.(Ordered[int64]).DecodeOrdered(b)
}

// holds has a codec in a field with a name.
type holds struct{ of Codec[int64] }

func (c holds) Append(dst []byte, v int64) ([]byte, error) { return c.of.Append(dst, v) }
func (c holds) Decode(b []byte) (int64, error)             { return c.of.Decode(b) }
func (c holds) Name() string                               { return c.of.Name() }
func (c holds) Version() int                               { return c.of.Version() }

func TestCodecThatHidesAnOrderIsNoneForMapKeys(t *testing.T) {
	for _, c := range []Codec[int64]{hides[int64]{Int64}, &hides[int64]{Int64}, hides[int64]{hides[int64]{sorts{Int64}}}, migrating{Int64}} {
		if err := CheckMapKeys(c); err == nil || !strings.Contains(err.Error(), "methods AppendOrdered and DecodeOrdered") {
			t.Errorf("%T: %v", c, err)
		}
	}
	if err := CheckMapKeys[int64](nil); err == nil {
		t.Error("no codec is one for map keys")
	}
	for _, err := range []error{CheckMapKeys(Int64), CheckMapKeys[int64](sorts{Int64}), CheckMapKeys(String), CheckMapKeys[string](clones{String}), CheckMapKeys[uint64](hides[uint64]{Uint64}),
		CheckMapKeys[int64](holds{of: Int64})} {
		if err != nil {
			t.Error(err)
		}
	}
}

// hides embeds a codec and nothing else.
type hides[T any] struct{ Codec[T] }

// hidesDeep embeds one that does.
type hidesDeep struct{ *hides[string] }

// clones has its own Clone.
type clones struct{ Codec[string] }

func (c clones) Clone(s string) string { return Clone(c.Codec, s) }

func TestCheckFindsCodecsThatHideAClone(t *testing.T) {
	unusable[string](t, hides[string]{String}, "codec string: codec.hides[string] embeds a codec.stringCodec, whose values alias the bytes that they are decoded from, but not its method Clone")
	unusable[string](t, &hides[string]{String}, "give *codec.hides[string] a method Clone")
	unusable[[]byte](t, hides[[]byte]{Bytes}, "embeds a codec.bytesCodec")
	unusable[string](t, hidesDeep{&hides[string]{String}}, "codec.hidesDeep embeds a codec.stringCodec")
	unusable[string](t, hides[string]{hides[string]{clones{String}}}, "embeds a codec.clones")
	for _, err := range []error{Check[string](clones{String}), Check[string](hides[string]{JSON[string]()}), Check[int64](hides[int64]{Int64}), Check[int64](migrating{Int64})} {
		if err != nil {
			t.Error(err)
		}
	}
}

func unusable[T any](t *testing.T, c Codec[T], want string) {
	t.Helper()
	err := Check(c)
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("Check = %v, want %q", err, want)
	}
	if b, ok := c.(checker); ok && b.Check() != nil {
		var zero T
		if _, got := c.Append(nil, zero); got == nil || got.Error() != err.Error() {
			t.Errorf("Append = %v, want %v", got, err)
		}
		if _, got := c.Decode(nil); got == nil || got.Error() != err.Error() {
			t.Errorf("Decode = %v, want %v", got, err)
		}
	}
}

func TestProtoIsDeterministic(t *testing.T) {
	c := Proto[*structpb.Struct]()
	fields := map[string]any{}
	for i := range 50 {
		fields[fmt.Sprint(i)] = i
	}
	var first []byte
	for range 20 { // map order changes from one marshalling to the next
		s, err := structpb.NewStruct(fields)
		if err != nil {
			t.Fatal(err)
		}
		b, err := c.Append(nil, s)
		if err != nil {
			t.Fatal(err)
		}
		if first == nil {
			first = b
		}
		if !bytes.Equal(b, first) {
			t.Fatal("one message has two encodings")
		}
	}
}

func TestProtoDecodesNilAndEmptyAlike(t *testing.T) {
	c := Proto[*wrapperspb.Int64Value]()
	b, err := c.Append(nil, nil)
	if err != nil || len(b) != 0 {
		t.Fatalf("Append of nil = %q, %v", b, err)
	}
	if v, err := c.Decode(b); err != nil || v == nil || v.Value != 0 {
		t.Errorf("Decode of nothing = %v, %v", v, err)
	}
}

func TestNoAllocationPerValue(t *testing.T) {
	free(t, String, "some value that is not small")
	free(t, Bytes, []byte("some value that is not small"))
	free(t, Int32, 1<<30)
	free(t, Int64, 1<<40)
	free(t, Uint32, 1<<30)
	free(t, Uint64, 1<<40)
	free(t, Float32, 1.5)
	free(t, Float64, 1.5)
	free(t, Bool, true)
	free(t, Unit, Nothing)
}

func free[T any](t *testing.T, c Codec[T], v T) {
	t.Helper()
	buf, err := c.Append(nil, v)
	if err != nil {
		t.Fatal(err)
	}
	var got T
	n := testing.AllocsPerRun(100, func() {
		buf, err = c.Append(buf[:0], v)
		got, err = c.Decode(buf)
		got, err = DecodeVersion(c, 1, buf)
	})
	if n != 0 || err != nil {
		t.Errorf("codec %s: %v allocations per value, want none (%v, %v)", c.Name(), n, got, err)
	}
}
