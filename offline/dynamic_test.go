package offline

import (
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
)

func TestBuiltinCodecsReadWhatPackageCodecWrites(t *testing.T) {
	check := func(name string, b []byte, err error, text string) {
		t.Helper()
		c := CodecByName(name, nil)
		if err != nil || !c.Known {
			t.Fatalf("%s: known %t, %v", name, c.Known, err)
		}
		if d := c.Decode(1, b, false); d.Text() != text || d.Note != "" {
			t.Errorf("%s: %q (%s), want %q", name, d.Text(), d.Note, text)
		}
		if again, err := c.Parse(text, false); err != nil || string(again) != string(b) {
			t.Errorf("%s: %x from %q, want %x: %v", name, again, text, b, err)
		}
	}
	b, err := codec.String.Append(nil, "é")
	check(codec.String.Name(), b, err, "é")
	b, err = codec.Bytes.Append(nil, []byte{1, 255})
	check(codec.Bytes.Name(), b, err, "01ff")
	b, err = codec.Int32.Append(nil, -2)
	check(codec.Int32.Name(), b, err, "-2")
	b, err = codec.Int64.Append(nil, -3)
	check(codec.Int64.Name(), b, err, "-3")
	b, err = codec.Uint32.Append(nil, 1<<32-1)
	check(codec.Uint32.Name(), b, err, "4294967295")
	b, err = codec.Uint64.Append(nil, 1<<64-1)
	check(codec.Uint64.Name(), b, err, "18446744073709551615")
	b, err = codec.Float32.Append(nil, 0.1)
	check(codec.Float32.Name(), b, err, "0.1")
	b, err = codec.Float64.Append(nil, -0.1)
	check(codec.Float64.Name(), b, err, "-0.1")
	b, err = codec.Bool.Append(nil, true)
	check(codec.Bool.Name(), b, err, "true")
	b, err = codec.Unit.Append(nil, codec.Nothing)
	check(codec.Unit.Name(), b, err, "")
	b, err = codec.JSON[[]int]().Append(nil, []int{1, 2})
	check(codec.JSON[[]int]().Name(), b, err, "[1,2]")
}

func TestProtobufMessagesAreShownAsJSONIfTheirDescriptorIsGiven(t *testing.T) {
	c := codec.Proto[*wrapperspb.StringValue]()
	b, err := c.Append(nil, wrapperspb.String("hi"))
	if err != nil {
		t.Fatal(err)
	}
	if d := CodecByName(c.Name(), nil).Decode(1, b, false); d.Text() != "0a026869" || !strings.Contains(d.Note, "no descriptor set") || !d.Hex() {
		t.Errorf("%q %q", d.Text(), d.Note)
	}
	// As protoc writes it.
	set := &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{protodesc.ToFileDescriptorProto(wrapperspb.File_google_protobuf_wrappers_proto)}}
	encoded, err := proto.Marshal(set)
	if err != nil {
		t.Fatal(err)
	}
	var again descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(encoded, &again); err != nil {
		t.Fatal(err)
	}
	files, err := protodesc.NewFiles(&again)
	if err != nil {
		t.Fatal(err)
	}
	known := CodecByName(c.Name(), files)
	if d := known.Decode(1, b, false); d.Text() != `"hi"` || d.Note != "" {
		t.Errorf("%q %q", d.Text(), d.Note)
	}
	if raw, err := known.Parse(`"hi"`, false); err != nil || string(raw) != string(b) {
		t.Errorf("%x %v", raw, err)
	}
	if d := known.Decode(1, []byte{0xff}, false); d.Note == "" || d.Text() != "ff" {
		t.Errorf("%q %q", d.Text(), d.Note)
	}
	other := CodecByName("proto:"+string((&durationpb.Duration{}).ProtoReflect().Descriptor().FullName()), files)
	if d := other.Decode(1, nil, false); !strings.Contains(d.Note, "has no message google.protobuf.Duration") {
		t.Errorf("%q", d.Note)
	}
	// The name of something that is no message.
	if d := CodecByName("proto:"+string(protoreflect.FullName("google.protobuf.StringValue.value")), files).Decode(1, nil, false); d.Note == "" {
		t.Error("a field was taken for a message")
	}
}

func TestALargeSegmentIsReadInPieces(t *testing.T) {
	store := &counting{Store: checkpoint.NewMem()}
	a := newApp(t, store, testGroups)
	noise := uint64(1)
	value := make([]byte, 500)
	for n := range 20_000 {
		for i := range value {
			noise = noise*6364136223846793005 + 1442695040888963407
			value[i] = byte(noise >> 56)
		}
		a.history("k"+string(rune('a'+n%26)), uint64(n), string(value))
	}
	a.total("alice", 1)
	a.checkpoint()
	s := openLatest(t, store)
	size := s.Info().Bytes
	if size < 8<<20 {
		t.Fatalf("%d bytes: too little to tell", size)
	}
	store.bytes = 0
	if _, ok, err := Get(t.Context(), s, "balance", "total", codec.String, codec.Int64, "alice"); !ok || err != nil {
		t.Fatal(err)
	}
	if store.bytes > size/2 {
		t.Errorf("one key cost %d of %d bytes", store.bytes, size)
	}
	n := 0
	for _, err := range Lists(t.Context(), s, "balance", "history", codec.String, codec.Bytes) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != 20_000 {
		t.Errorf("%d elements", n)
	}
	if m := totals(t, s); len(m) != 1 {
		t.Errorf("%v", m)
	}
}
