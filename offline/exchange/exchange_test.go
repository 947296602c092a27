package exchange

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/deprecated"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/types/descriptorpb"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/state/segment"
)

// codecs and texts of theirs that must survive.
var samples = map[string][]string{
	"string":  {"", "alice", "a,b\"c\n", "\r\n", "null", "0x1f", "<é>", "\xff\x00"},
	"bytes":   {"", "00ff", "616263"},
	"int32":   {"0", "-2147483648", "2147483647"},
	"int64":   {"0", "-9223372036854775808", "9223372036854775807"},
	"uint32":  {"0", "4294967295"},
	"uint64":  {"0", "18446744073709551615"},
	"float32": {"0", "-0", "1.5", "NaN", "+Inf", "3.4028235e+38"},
	"float64": {"0", "-0", "0.1", "NaN", "-Inf", "1e-320"},
	"bool":    {"true", "false"},
	"json":    {`{"a":"<b>","n":12345678901234567890}`, `[]`, `null`, `"x"`, `{ "spaced" : 1 }`, `"\u003c"`, "\"\xff\"", `"\ud800"`},
	"unit":    {""},
	"mine":    {"", "0102"},
}

// states is one of each kind for each codec as key, map key and value.
func states() []checkpoint.StateInfo {
	var all []checkpoint.StateInfo
	for name := range samples {
		for _, kind := range []string{"value", "map", "list", "timers", "broadcast", "reducing"} {
			i := checkpoint.StateInfo{ID: uint16(len(all) + 1), Operator: "op", Name: kind + "-" + name, Kind: kind, KeyCodec: name, ValueCodec: name, ValueVersion: 7}
			if kind == "map" || kind == "broadcast" {
				i.SubCodec = name
			}
			if kind == "timers" {
				i.ValueCodec, i.ValueVersion = "", 0
			}
			all = append(all, i)
		}
	}
	return all
}

func encode(t *testing.T, codec, text string, ordered bool) []byte {
	t.Helper()
	b, err := offline.CodecByName(codec, nil).Parse(text, ordered)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// filled returns a snapshot with all samples.
func filled(t *testing.T) (checkpoint.Store, *offline.Snapshot) {
	t.Helper()
	store := checkpoint.NewMem()
	b, err := offline.New("app", 8, offline.BuildOptions{Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	for _, i := range states() {
		l, err := b.Declare(i)
		if err != nil {
			t.Fatal(err)
		}
		for n, text := range samples[i.KeyCodec] {
			r := offline.Row{State: l.State, Index: math.MaxInt64 - uint64(n), Time: -int64(n)}
			r.Version = 1
			r.Key.Raw, r.MapKey.Raw, r.Value.Raw = encode(t, i.KeyCodec, text, false), encode(t, i.KeyCodec, text, true), encode(t, i.KeyCodec, text, false)
			if i.Kind == "broadcast" {
				r.Key.Raw = nil
			}
			if n == 1 && i.Kind != "timers" {
				r.Clock, r.Expires = segment.EventTime, math.MinInt64+1
			}
			if n == 2 && i.Kind != "timers" {
				r.Version = 7 // of a later build
			}
			if err := b.PutRow(l, r); err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := b.Write(t.Context(), store, "all"); err != nil {
		t.Fatal(err)
	}
	s, err := offline.Open(t.Context(), store, "all")
	if err != nil {
		t.Fatal(err)
	}
	return store, s
}

// dump is every entry of a snapshot, with all that is stored.
func dump(t *testing.T, s *offline.Snapshot) []string {
	t.Helper()
	var all []string
	for _, i := range s.States() {
		for r, err := range s.Rows(t.Context(), i.Operator, i.Name, offline.IncludeExpired()) {
			if err != nil {
				t.Fatal(err)
			}
			all = append(all, fmt.Sprintf("%s %d %x %x %d %d %x v%d %v %d", i.Name, r.KeyGroup, r.Key.Raw, r.MapKey.Raw, r.Index, r.Time, r.Value.Raw, r.Version, r.Clock, r.Expires))
		}
	}
	return all
}

func TestWhatIsExportedIsImportedAsItWas(t *testing.T) {
	store, s := filled(t)
	want := dump(t, s)
	if len(want) < 200 {
		t.Fatalf("%d entries", len(want))
	}
	for _, f := range []Format{JSONLines, CSV, Parquet} {
		t.Run(string(f), func(t *testing.T) {
			b, err := offline.New("app", 8, offline.BuildOptions{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			defer b.Close()
			groups := [][]checkpoint.StateInfo{}
			for _, i := range s.States() {
				groups = append(groups, []checkpoint.StateInfo{i})
			}
			if f == JSONLines {
				groups = [][]checkpoint.StateInfo{nil}
			}
			for _, g := range groups {
				var file bytes.Buffer
				exported, err := Export(t.Context(), &file, f, s, g, offline.IncludeExpired())
				if err != nil {
					t.Fatal(err)
				}
				if f != Parquet && !utf8.Valid(file.Bytes()) {
					t.Errorf("%v: the file is not UTF-8", g)
				}
				layouts := func(operator, state string) (offline.Layout, error) {
					if operator == "" {
						return b.Declare(g[0])
					}
					i, err := s.State(operator, state)
					if err != nil {
						return offline.Layout{}, err
					}
					return b.Declare(i)
				}
				n, err := Import(t.Context(), b, bytes.NewReader(file.Bytes()), int64(file.Len()), f, layouts, nil)
				if err != nil {
					t.Fatalf("%v: %v\n%q", g, err, file.Bytes())
				}
				if n.Put != exported || n.Deleted != 0 {
					t.Errorf("%d exported, %+v imported", exported, n)
				}
			}
			if _, err := b.Write(t.Context(), store, string(f)); err != nil {
				t.Fatal(err)
			}
			again, err := offline.Open(t.Context(), store, string(f))
			if err != nil {
				t.Fatal(err)
			}
			got := dump(t, again)
			if !slices.Equal(got, want) {
				for i := range min(len(got), len(want)) {
					if got[i] != want[i] {
						t.Fatalf("entry %d is\n%s, was\n%s", i, got[i], want[i])
					}
				}
				t.Errorf("%d entries, were %d", len(got), len(want))
			}
		})
	}
}

func TestMessagesComeBackWithAllTheirFields(t *testing.T) {
	set := &descriptorpb.FileDescriptorSet{File: []*descriptorpb.FileDescriptorProto{protodesc.ToFileDescriptorProto(wrapperspb.File_google_protobuf_wrappers_proto)}}
	files, err := protodesc.NewFiles(set)
	if err != nil {
		t.Fatal(err)
	}
	const message = "proto:google.protobuf.StringValue"
	info := checkpoint.StateInfo{Operator: "op", Name: "messages", Kind: "map", KeyCodec: message, SubCodec: message, ValueCodec: message}
	store := checkpoint.NewMem()
	write := func(name string, fill func(b *offline.Builder, l offline.Layout)) []string {
		b, err := offline.New("app", 8, offline.BuildOptions{Dir: t.TempDir()})
		if err != nil {
			t.Fatal(err)
		}
		defer b.Close()
		l, err := b.Declare(info)
		if err != nil {
			t.Fatal(err)
		}
		fill(b, offline.LayoutOf(l.State, offline.Messages(files)))
		if _, err := b.Write(t.Context(), store, name); err != nil {
			t.Fatal(err)
		}
		s, err := offline.Open(t.Context(), store, name)
		if err != nil {
			t.Fatal(err)
		}
		return dump(t, s)
	}
	want := write("all", func(b *offline.Builder, l offline.Layout) {
		for _, raw := range []string{"", "\x0a\x02hi", "\x0a\x02hi\x12\x03new", "\x0a\x01a\x0a\x01b", "\xff"} {
			for _, r := range []offline.Row{{Key: offline.Datum{Raw: []byte(raw)}}, {MapKey: offline.Datum{Raw: []byte(raw)}}, {Value: offline.Datum{Raw: []byte(raw)}}} {
				if err := b.PutRow(l, r); err != nil {
					t.Fatal(err)
				}
			}
		}
	})
	s, err := offline.Open(t.Context(), store, "all")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []Format{JSONLines, CSV, Parquet} {
		var file bytes.Buffer
		if _, err := Export(t.Context(), &file, f, s, s.States(), offline.Messages(files)); err != nil {
			t.Fatal(err)
		}
		if f == JSONLines && !strings.Contains(file.String(), `"key":"hi"`) {
			t.Errorf("not decoded: %s", file.String())
		}
		got := write(string(f), func(b *offline.Builder, l offline.Layout) {
			layouts := func(string, string) (offline.Layout, error) { return l, nil }
			if _, err := Import(t.Context(), b, bytes.NewReader(file.Bytes()), int64(file.Len()), f, layouts, nil); err != nil {
				t.Errorf("%s: %v", f, err)
			}
		})
		if !slices.Equal(got, want) {
			t.Errorf("%s: got\n%s\nwant\n%s", f, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
}

func TestParquetColumnsOfAnotherMeaningAreRefused(t *testing.T) {
	for _, c := range []struct {
		kind, column string
		node         parquet.Node
		value        parquet.Value
		want         string
	}{
		{"timers", "time", parquet.Int(64), parquet.Int64Value(5000), ""},
		{"timers", "time", parquet.Timestamp(parquet.Millisecond), parquet.Int64Value(5000), ""},
		{"timers", "time", parquet.Timestamp(parquet.Microsecond), parquet.Int64Value(5000), `column "time" has the type TIMESTAMP`},
		{"timers", "time", parquet.Date(), parquet.Int32Value(5000), `column "time" has the type DATE`},
		{"value", "value", parquet.Int(64), parquet.Int64Value(5000), ""},
		{"value", "value", parquet.Decimal(2, 18, parquet.Int64Type), parquet.Int64Value(5000), `column "value" has the type DECIMAL`},
		{"value", "value", parquet.Timestamp(parquet.Millisecond), parquet.Int64Value(5000), `column "value" has the type TIMESTAMP`},
		{"value", "value", parquet.Leaf(parquet.Int96Type), parquet.Int96Value(deprecated.Int96{1, 0, 0}), `column "value" has the type INT96`},
	} {
		var file bytes.Buffer
		w := parquet.NewGenericWriter[any](&file, parquet.NewSchema("state", parquet.Group{"key": parquet.String(), c.column: c.node}))
		if _, err := w.WriteRows([]parquet.Row{{parquet.ByteArrayValue([]byte("a")).Level(0, 0, 0), c.value.Level(0, 0, 1)}}); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		for rec, err := range Read(bytes.NewReader(file.Bytes()), int64(file.Len()), Parquet, layout(c.kind)) {
			switch {
			case c.want != "":
				if err == nil || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %v, want %s", c.node, err, c.want)
				}
			case err != nil || rec.Row.Time != 5000 && binary.BigEndian.Uint64(rec.Row.Value.Raw) != 5000:
				t.Errorf("%s: %+v, %v", c.node, rec, err)
			}
		}
	}
}

func layout(kind string) Layouts {
	return func(string, string) (offline.Layout, error) {
		return offline.LayoutOf(checkpoint.StateInfo{ID: 1, Operator: "o", Name: "s", Kind: kind, KeyCodec: "string", SubCodec: "int64", ValueCodec: "int64"}), nil
	}
}

func TestBadFilesAreRefusedWithTheirPlace(t *testing.T) {
	for _, c := range []struct {
		f          Format
		kind, file string
		want       string
	}{
		{JSONLines, "value", "{\"key\":\"a\",\"value\":1}\n{\"key\":\"b\",\"value\":\"x\"}\n", `line 2: "value": codec "int64": "x" is no int64`},
		{JSONLines, "value", `{"key":"a"}`, `line 1: "value" is missing`},
		{JSONLines, "value", `{"value":1}`, `line 1: "key" is missing`},
		{JSONLines, "value", `{"key":"a","value":1,"mapKey":3}`, `line 1: "mapKey": entries of a value state have none`},
		{JSONLines, "value", `{"key":"a","keyHex":"61","value":1}`, "both set"},
		{JSONLines, "value", `{"keyHex":"6","value":1}`, "not hexadecimal"},
		{JSONLines, "value", `{"kee":"a"}`, `line 1: json: unknown field "kee"`},
		{JSONLines, "value", `{"key":"a","value":1} {}`, "more than one"},
		{JSONLines, "value", `{"key":1,"value":1}`, "no JSON string"},
		{JSONLines, "value", `{"key":"a","value":1,"clock":"event"}`, "come together"},
		{JSONLines, "value", `{"key":"\ud83d\ude00\n","value":1}` + "\n" + `{"key":"\\ud800","value":1}` + "\n" + `{"key":"\ud800","value":1}`, `line 3: "key": codec "string": \ud800 is half of a character`},
		{JSONLines, "value", `{"key":"\udfff\ud800","value":1}`, `\udfff is half`},
		{JSONLines, "value", "{\"key\":\"\xff\",\"value\":1}", `line 1: it is not UTF-8`},
		{JSONLines, "list", `{"key":"a","value":1}`, `"index" is missing`},
		{JSONLines, "timers", `{"key":"a"}`, `"time" is missing`},
		{CSV, "value", "", "the file is empty"},
		{CSV, "value", "key,valu\na,1\n", `line 1: column "valu" is not one of a value state: key_group, key, value`},
		{CSV, "value", "key,key\na,1\n", "twice"},
		{CSV, "value", "key,value\na,1\nb,\n", `line 3: column value: codec "int64": "" is no int64`},
		{CSV, "value", "key\na\n", "line 2: column value is missing"},
		{CSV, "map", "key,value\na,1\n", "column map_key is missing"},
		{CSV, "value", "key,value\na,1,2\n", "wrong number of fields"},
		{CSV, "value", "key,value,expires\na,1,5\n", "say which clock"},
		{CSV, "value", "key,value,clock,expires\na,1,lunar,5\n", "neither processing nor event"},
		{CSV, "list", "key,index,value\na,-1,5\n", `"-1" is no index`},
		{Parquet, "value", "nonsense", "open Parquet file"},
		{Parquet, "value", "PAR1\x00\x00\x00\x00PAR1", "Parquet"},
	} {
		err := error(nil)
		for _, e := range Read(strings.NewReader(c.file), int64(len(c.file)), c.f, layout(c.kind)) {
			err = e
		}
		if err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s %q: %v, want %s", c.f, c.file, err, c.want)
		}
	}
}

func TestAVersionThatTheRegistryDoesNotHaveIsRefused(t *testing.T) {
	for f, file := range map[Format]string{
		JSONLines: "{\"key\":\"a\",\"value\":1,\"version\":2}\n{\"key\":\"b\",\"value\":1,\"version\":%d}\n",
		CSV:       "key,value,version\na,1,2\nb,1,%d\n",
	} {
		for _, version := range []int{3, -1, 1 << 62} {
			b, err := offline.New("app", 8, offline.BuildOptions{Dir: t.TempDir()})
			if err != nil {
				t.Fatal(err)
			}
			layouts := func(string, string) (offline.Layout, error) {
				return b.Declare(checkpoint.StateInfo{Operator: "o", Name: "s", Kind: "value", KeyCodec: "string", ValueCodec: "int64", ValueVersion: 2})
			}
			text := fmt.Sprintf(file, version)
			if n, err := Import(t.Context(), b, strings.NewReader(text), int64(len(text)), f, layouts, nil); err == nil || !strings.Contains(err.Error(), fmt.Sprint(version)) || n.Put > 2 {
				t.Errorf("%s: version %d: %+v, %v", f, version, n, err)
			}
			if err := b.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestRecordsCanDelete(t *testing.T) {
	for f, file := range map[Format]string{JSONLines: `{"key":"a","deleted":true}`, CSV: "key,deleted\na,true\n"} {
		n := 0
		for rec, err := range Read(strings.NewReader(file), int64(len(file)), f, layout("value")) {
			if err != nil || !rec.Deleted || string(rec.Row.Key.Raw) != "a" {
				t.Errorf("%s: %+v %v", f, rec, err)
			}
			n++
		}
		if n != 1 {
			t.Errorf("%s: %d records", f, n)
		}
	}
}

func TestADamagedParquetFileIsAnErrorAndNoPanic(t *testing.T) {
	_, s := filled(t)
	info, err := s.State("op", "value-string")
	if err != nil {
		t.Fatal(err)
	}
	var file bytes.Buffer
	if _, err := Export(t.Context(), &file, Parquet, s, []checkpoint.StateInfo{info}); err != nil {
		t.Fatal(err)
	}
	layouts := func(string, string) (offline.Layout, error) { return offline.LayoutOf(info), nil }
	const step = 7 // every byte takes too long with -race
	for at := 0; at < file.Len(); at += step {
		b := bytes.Clone(file.Bytes())
		b[at] ^= 0x55
		for range Read(bytes.NewReader(b), int64(len(b)), Parquet, layouts) {
		}
	}
	for n := 0; n < file.Len(); n += step {
		failed := false
		for _, err := range Read(bytes.NewReader(file.Bytes()[:n]), int64(n), Parquet, layouts) {
			failed = failed || err != nil
		}
		if !failed {
			t.Fatalf("the first %d bytes of %d were taken for a file", n, file.Len())
		}
	}
}

func TestFormatsHaveNames(t *testing.T) {
	for file, want := range map[string]Format{"a.jsonl": JSONLines, "b.CSV": CSV, "/x/c.parquet": Parquet, "d.ndjson": JSONLines} {
		if f, err := ParseFormat("", file); f != want || err != nil {
			t.Errorf("%s: %s %v", file, f, err)
		}
	}
	if _, err := ParseFormat("", "state.xls"); err == nil || !strings.Contains(err.Error(), "jsonl, csv, parquet") {
		t.Error(err)
	}
	_, s := filled(t)
	if _, err := Export(t.Context(), &bytes.Buffer{}, CSV, s, nil); err == nil || !strings.Contains(err.Error(), "one state") {
		t.Error(err)
	}
}
