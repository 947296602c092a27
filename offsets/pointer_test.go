package offsets

import (
	"errors"
	"math"
	"os"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"pgregory.net/rapid"
)

var goldenPointer = Pointer{App: "wordcount", Instance: "host-a", Offset: 90211, Manifest: goldenManifest}

var goldenManifest = ManifestRef{
	Checkpoint:  4711,
	Incarnation: 0xa1b2c3d4,
	Hash:        [16]byte{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15},
}

func TestGoldenPointerV1(t *testing.T) {
	b, err := os.ReadFile("testdata/pointer-v1.txt")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.TrimSuffix(string(b), "\n")
	if got, err := ParsePointer(text); err != nil || got != goldenPointer {
		t.Errorf("ParsePointer = %+v, %v, want %+v", got, err, goldenPointer)
	}
	if got := mustEncode(t, goldenPointer); got != text {
		t.Errorf("Encode = %q, want %q", got, text)
	}
	doc, err := os.ReadFile("doc.go")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(doc), text) {
		t.Errorf("doc.go does not show the pointer %s", text)
	}
}

func TestPointerIsReadBackAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := drawPointer(t)
		text, err := p.Encode()
		if err != nil {
			t.Fatal(err)
		}
		if len(text) > MaxPointer || !utf8.ValidString(text) {
			t.Fatalf("pointer %q has %d bytes, UTF-8: %t", text, len(text), utf8.ValidString(text))
		}
		if got, err := ParsePointer(text); err != nil || got != p {
			t.Fatalf("ParsePointer(%q) = %+v, %v, want %+v", text, got, err, p)
		}
	})
}

func TestPointerWithOneByteChangedIsRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text, err := drawPointer(t).Encode()
		if err != nil {
			t.Fatal(err)
		}
		i := rapid.IntRange(0, len(text)-1).Draw(t, "at")
		b := []byte(text)
		b[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		if got, err := ParsePointer(string(b)); err == nil {
			t.Fatalf("ParsePointer(%q) = %+v, want an error", b, got)
		}
		if got, err := ParsePointer(text[:i]); err == nil {
			t.Fatalf("ParsePointer(%q) = %+v, want an error", text[:i], got)
		}
	})
}

func TestParsePointerTellsWhatItFound(t *testing.T) {
	text := mustEncode(t, goldenPointer)
	other := resum(strings.Replace(text, "90211", "090211", 1))
	for metadata, want := range map[string]error{
		"":                          ErrNoPointer,
		"host-a":                    ErrForeign,
		"AAAAAQ==":                  ErrForeign, // as Kafka Streams writes
		`{"app":"x"}`:               ErrForeign,
		"weird":                     ErrForeign,
		"weir":                      ErrForeign,
		"weir|1":                    ErrForeign,
		"weir1":                     ErrDamaged,
		"weir1|":                    ErrDamaged,
		"weir0|x":                   ErrDamaged,
		strings.ToUpper(text):       ErrForeign,
		text[:len(text)-1]:          ErrDamaged,
		text + " ":                  ErrDamaged,
		text + "|":                  ErrDamaged,
		"weir0" + text[5:]:          ErrDamaged,
		"weir01" + text[5:]:         ErrDamaged,
		text[:5] + text[6:]:         ErrDamaged,
		other:                       ErrDamaged, // right sum, wrong spelling
		resum("weir1||i|1|2|0|00|"): ErrDamaged,
		resum(strings.Replace(text, "wordcount", "", 1)):               ErrDamaged,
		resum(strings.Replace(text, "host-a", "host\x00a", 1)):         ErrDamaged,
		resum(strings.Replace(text, "4711", "-4711", 1)):               ErrDamaged,
		resum(strings.Replace(text, "4711", "9223372036854775808", 1)): ErrDamaged,
		resum(strings.Replace(text, "0d0e0f", "0d0e0f10", 1)):          ErrDamaged,
		strings.Replace(text, "90211", "90212", 1):                     ErrDamaged,
	} {
		p, err := ParsePointer(metadata)
		if !errors.Is(err, want) {
			t.Errorf("ParsePointer(%q) = %v, want %v", metadata, err, want)
		}
		if p != (Pointer{}) {
			t.Errorf("ParsePointer(%q) = %+v besides an error", metadata, p)
		}
	}
	for metadata, version := range map[string]int{"weir2": 2, "weir2|x": 2, "weir2{}": 2, "weir31" + text[5:]: 31} {
		_, err := ParsePointer(metadata)
		var v *VersionError
		if !errors.As(err, &v) || *v != (VersionError{What: "pointer", Version: version, Known: 1}) {
			t.Errorf("ParsePointer(%q) = %v, want a VersionError for version %d", metadata, err, version)
		}
		if errors.Is(err, ErrDamaged) || errors.Is(err, ErrForeign) {
			t.Errorf("ParsePointer(%q) = %v, which is damaged or foreign besides", metadata, err)
		}
	}
}

// resum replaces the checksum of a pointer by the right one.
func resum(text string) string {
	f := strings.Split(text, "|")
	return withSum(strings.Join(f[:len(f)-1], "|"))
}

func TestLongestPointerFitsExactly(t *testing.T) {
	p := Pointer{
		App:      strings.Repeat("a", 64),
		Instance: strings.Repeat("i", MaxNames()-64),
		Offset:   math.MaxInt64,
		Manifest: ManifestRef{Checkpoint: math.MaxInt64, Incarnation: math.MaxUint32, Hash: [16]byte(slices.Repeat([]byte{0xff}, 16))},
	}
	if text := mustEncode(t, p); len(text) != MaxPointer {
		t.Errorf("the longest pointer has %d bytes, want %d: %s", len(text), MaxPointer, text)
	}
	p.Instance += "i"
	_, err := p.Encode()
	if err == nil {
		t.Fatalf("names of %d bytes were accepted, room is for %d", len(p.App)+len(p.Instance), MaxNames())
	}
	for _, want := range []string{"app name (64 bytes)", "instance id (39 bytes)", "room for 102", "choose a shorter"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
}

func TestNamesThatBreakAPointerAreRefused(t *testing.T) {
	for _, bad := range []string{"", "a|b", "a\nb", "a\x00", "\x7f", "\u0085", "\xff", "a\xc3"} {
		if ValidateNames(bad, "i") == nil {
			t.Errorf("app name %q was accepted", bad)
		}
		if ValidateNames("a", bad) == nil {
			t.Errorf("instance id %q was accepted", bad)
		}
		if text, err := (Pointer{App: "a", Instance: bad}).Encode(); err == nil {
			t.Errorf("pointer %q was encoded", text)
		}
	}
	err := ValidateNames("a|b", strings.Repeat("i", MaxPointer))
	if err == nil || !strings.Contains(err.Error(), "'|'") || !strings.Contains(err.Error(), "shorter") {
		t.Errorf("ValidateNames = %v, want both violations", err)
	}
	for _, good := range []string{"a", "word count", "zähler-é", "10.0.0.1:9092", "a/b"} {
		if err := ValidateNames(good, good); err != nil {
			t.Errorf("name %q: %v", good, err)
		}
	}
}

func TestNegativeNumbersAreNotEncoded(t *testing.T) {
	for _, p := range []Pointer{
		{App: "a", Instance: "i", Offset: -1},
		{App: "a", Instance: "i", Manifest: ManifestRef{Checkpoint: -1}},
	} {
		if text, err := p.Encode(); err == nil {
			t.Errorf("pointer %q was encoded", text)
		}
	}
}

func TestObjectNamesSortByCheckpoint(t *testing.T) {
	if got, want := (ManifestRef{Checkpoint: 0x1267, Incarnation: 0xa1b2c3d4}).Object(), "0000000000001267-a1b2c3d4"; got != want {
		t.Errorf("Object() = %s, want %s", got, want)
	}
	ids := []int64{0, 1, 9, 10, 15, 16, 255, 1 << 20, 1 << 40, math.MaxInt64}
	var names []string
	for _, id := range ids {
		names = append(names, ManifestRef{Checkpoint: id, Incarnation: uint32(-id)}.Object())
	}
	if !slices.IsSorted(names) {
		t.Errorf("names %v of checkpoints %v are not sorted", names, ids)
	}
}

func TestPartitionsSortByTopicThenNumber(t *testing.T) {
	want := []Partition{{"a", 2}, {"a", 10}, {"b", 0}}
	got := []Partition{{"b", 0}, {"a", 10}, {"a", 2}}
	slices.SortFunc(got, Partition.Compare)
	if !slices.Equal(got, want) {
		t.Errorf("sorted: %v, want %v", got, want)
	}
	if got := want[1].String(); got != "a/10" {
		t.Errorf("String() = %s, want a/10", got)
	}
}

func FuzzParsePointer(f *testing.F) {
	text := mustEncode(f, goldenPointer)
	for _, s := range []string{"", text, text[:40], "weir1|", "weir2|x", resum("weir1|a|i|0|0|00000000|" + strings.Repeat("0", 32) + "|"), "weir1|a|i|1|2|3|4|5", "consumer-1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, metadata string) {
		p, err := ParsePointer(metadata)
		if err != nil {
			var v *VersionError
			if !errors.Is(err, ErrNoPointer) && !errors.Is(err, ErrForeign) && !errors.Is(err, ErrDamaged) && !errors.As(err, &v) {
				t.Fatalf("ParsePointer(%q): unclassified error %v", metadata, err)
			}
			return
		}
		if got := mustEncode(t, p); got != metadata {
			t.Fatalf("ParsePointer(%q) = %+v, which is written as %q", metadata, p, got)
		}
	})
}

func mustEncode(t testing.TB, p Pointer) string {
	t.Helper()
	text, err := p.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return text
}

func drawPointer(t *rapid.T) Pointer {
	name := func(label string) string {
		return rapid.StringMatching(`[a-zA-Z0-9._/ éß世-]{1,24}`).Filter(func(s string) bool { return len(s) <= MaxNames()/2 }).Draw(t, label)
	}
	return Pointer{
		App:      name("app"),
		Instance: name("instance"),
		Offset:   rapid.Int64Min(0).Draw(t, "offset"),
		Manifest: drawManifest(t),
	}
}

func drawManifest(t *rapid.T) ManifestRef {
	return ManifestRef{
		Checkpoint:  rapid.Int64Min(0).Draw(t, "checkpoint"),
		Incarnation: rapid.Uint32().Draw(t, "incarnation"),
		Hash:        [16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, "hash")),
	}
}
