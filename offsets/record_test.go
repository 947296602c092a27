package offsets

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"os"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"
)

var goldenRecord = CommitRecord{
	App:      "wordcount",
	Instance: "host-a",
	Manifest: goldenManifest,
	At:       time.UnixMilli(1700000000123).UTC(),
	Positions: map[Partition]Position{
		{"lines", 0}:  {90211, 3},
		{"lines", 1}:  {0, -1},
		{"lines", 10}: {7000000000, 12},
		{"users", 0}:  {5, 0},
	},
}

func TestGoldenCommitRecordV1(t *testing.T) {
	b, err := os.ReadFile("testdata/commit-record-v1.bin")
	if err != nil {
		t.Fatal(err)
	}
	got, err := ParseCommitRecord(b)
	if err != nil {
		t.Fatal(err)
	}
	if !sameRecord(got, goldenRecord) {
		t.Errorf("ParseCommitRecord = %+v, want %+v", got, goldenRecord)
	}
	if enc := goldenRecord.Append([]byte("before")); !bytes.Equal(enc, append([]byte("before"), b...)) {
		t.Errorf("Append = %x, want %x", enc, b)
	}
}

func TestCommitRecordIsReadBackAsItWasWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := drawRecord(t)
		b := r.Append(nil)
		got, err := ParseCommitRecord(b)
		if err != nil || !sameRecord(got, r) {
			t.Fatalf("ParseCommitRecord(%x) = %+v, %v, want %+v", b, got, err, r)
		}
		if again := (CommitRecord{r.App, r.Instance, r.Manifest, r.At, maps.Clone(r.Positions)}).Append(nil); !bytes.Equal(b, again) {
			t.Fatalf("equal records have the encodings %x and %x", b, again)
		}
	})
}

func TestCommitRecordWithOneByteChangedIsRefused(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		b := drawRecord(t).Append(nil)
		i := rapid.IntRange(0, len(b)-1).Draw(t, "at")
		if _, err := ParseCommitRecord(b[:i]); err == nil {
			t.Fatalf("%x, cut short, was accepted", b[:i])
		}
		b[i] ^= byte(rapid.IntRange(1, 255).Draw(t, "flip"))
		if got, err := ParseCommitRecord(b); err == nil {
			t.Fatalf("ParseCommitRecord(%x) = %+v, want an error", b, got)
		}
	})
}

func TestCommitRecordKeepsMillisecondsAndNoZone(t *testing.T) {
	r := CommitRecord{At: time.Date(2026, 3, 1, 12, 0, 0, 123_999_999, time.FixedZone("x", 3600))}
	got, err := ParseCommitRecord(r.Append(nil))
	if want := time.Date(2026, 3, 1, 11, 0, 0, 123_000_000, time.UTC); err != nil || got.At != want {
		t.Errorf("At = %v, %v, want %v", got.At, err, want)
	}
	if got.Positions == nil {
		t.Error("Positions is nil")
	}
}

func TestParseCommitRecordTellsWhatItFound(t *testing.T) {
	good := goldenRecord.Append(nil)
	const (
		short  = "it is cut short"
		sum    = "its checksum is off"
		unlike = "it is not as weir writes it"
	)
	for name, c := range map[string]struct {
		b    []byte
		want error
		says string
	}{
		"tombstone":   {nil, ErrForeign, ""},
		"text":        {[]byte("hello"), ErrForeign, ""},
		"magic only":  {good[:5], ErrDamaged, short},
		"no checksum": {good[:len(good)-4], ErrDamaged, sum},
		"version 0":   {seal(append([]byte(recordMagic), 0)), ErrDamaged, short},
		"empty":       {seal(append([]byte(recordMagic), 1)), ErrDamaged, short},
		"surplus":     {seal(append(bytes.Clone(good[:len(good)-4]), 0)), ErrDamaged, unlike},
		"many topics": {seal(withTopics(1 << 40)), ErrDamaged, short},
		"topic without partitions": {
			seal(append(withTopics(1), 1, 't', 0)), ErrDamaged, unlike},
		"many partitions": {
			seal(append(withTopics(1), append([]byte{1, 't'}, binary.AppendUvarint(nil, 1<<60)...)...)), ErrDamaged, short},
		"partitions unsorted": {
			seal(append(withTopics(1), 1, 't', 2, 2, 0, 0, 0, 0, 0)), ErrDamaged, unlike},
		"partition twice": {
			seal(append(withTopics(1), 1, 't', 2, 0, 0, 0, 0, 0, 0)), ErrDamaged, unlike},
		"topics unsorted": {
			seal(append(withTopics(2), 1, 'u', 1, 0, 0, 0, 1, 't', 1, 0, 0, 0)), ErrDamaged, unlike},
		"partition of 33 bits": {
			seal(append(withTopics(1), append(append([]byte{1, 't', 1}, binary.AppendVarint(nil, 1<<32)...), 0, 0)...)), ErrDamaged, unlike},
		"long varint": {
			seal(append(withTopics(1), 1, 't', 1, 0x80, 0, 0, 0)), ErrDamaged, unlike},
	} {
		if _, err := ParseCommitRecord(c.b); !errors.Is(err, c.want) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: ParseCommitRecord = %v, want %v: %s", name, err, c.want, c.says)
		}
	}
	newer := bytes.Clone(good)
	newer[len(recordMagic)] = 2
	var v *VersionError
	if _, err := ParseCommitRecord(newer); !errors.As(err, &v) || *v != (VersionError{"commit record", 2, 1}) {
		t.Errorf("version 2: ParseCommitRecord = %v, want a VersionError", err)
	}
	if sorted := seal(append(withTopics(1), 1, 't', 2, 0, 0, 0, 2, 0, 0)); !parses(sorted) {
		t.Error("the hand-made record is refused even when it is in order, so the cases above prove nothing")
	}
}

func parses(b []byte) bool { _, err := ParseCommitRecord(b); return err == nil }

// withTopics returns a record up to and with the number of topics.
func withTopics(n uint64) []byte {
	b := CommitRecord{}.Append(nil)
	return binary.AppendUvarint(b[:len(b)-crcSize-1], n)
}

// seal appends the checksum.
func seal(b []byte) []byte { return binary.BigEndian.AppendUint32(b, crc32.Checksum(b, castagnoli)) }

func TestCommitRecordOfManyPartitionsIsSmall(t *testing.T) {
	r := CommitRecord{App: "wordcount", Instance: "host-a", Manifest: goldenManifest, Positions: map[Partition]Position{}}
	for i := range int32(1000) {
		r.Positions[Partition{"lines", i}] = Position{Offset: 1 << 33, LeaderEpoch: 20}
	}
	const budget = 8 + 1 // bytes per partition, and 1 in all for names and header
	if n := len(r.Append(nil)); n > 1000*budget {
		t.Errorf("a record of 1000 partitions has %d bytes, want at most %d", n, 1000*budget)
	}
}

func FuzzParseCommitRecord(f *testing.F) {
	good := goldenRecord.Append(nil)
	for _, b := range [][]byte{nil, good, good[:len(good)/2], CommitRecord{}.Append(nil), seal(withTopics(1 << 40)), []byte(recordMagic + "\x02")} {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		// As found, and with the checksum made good, so that the fuzzer gets past it.
		for _, b := range [][]byte{b, seal(bytes.Clone(b))} {
			r, err := ParseCommitRecord(b)
			if err != nil {
				var v *VersionError
				if !errors.Is(err, ErrForeign) && !errors.Is(err, ErrDamaged) && !errors.As(err, &v) {
					t.Fatalf("ParseCommitRecord(%x): unclassified error %v", b, err)
				}
				continue
			}
			if got := r.Append(nil); !bytes.Equal(got, b) {
				t.Fatalf("ParseCommitRecord(%x) = %+v, which is written as %x", b, r, got)
			}
		}
	})
}

func BenchmarkCommitRecordAppend(b *testing.B) {
	for _, n := range []int32{1, 64, 1000} {
		b.Run(fmt.Sprintf("partitions=%d", n), func(b *testing.B) {
			r := CommitRecord{App: "wordcount", Instance: "host-a", Manifest: goldenManifest, Positions: map[Partition]Position{}}
			for i := range n {
				r.Positions[Partition{"lines", i}] = Position{Offset: 1 << 33}
			}
			var buf []byte
			b.ReportAllocs()
			for b.Loop() {
				buf = r.Append(buf[:0])
			}
		})
	}
}

func sameRecord(a, b CommitRecord) bool {
	return a.App == b.App && a.Instance == b.Instance && a.Manifest == b.Manifest && a.At.Equal(b.At) && maps.Equal(a.Positions, b.Positions)
}

func drawRecord(t *rapid.T) CommitRecord {
	r := CommitRecord{
		App:      rapid.String().Draw(t, "app"),
		Instance: rapid.String().Draw(t, "instance"),
		Manifest: drawManifest(t),
		At:       time.UnixMilli(rapid.Int64().Draw(t, "at")).UTC(),
	}
	r.Positions = rapid.MapOf(
		rapid.Custom(func(t *rapid.T) Partition {
			return Partition{rapid.SampledFrom([]string{"", "a", "ab", "b", "topic"}).Draw(t, "topic"), rapid.Int32().Draw(t, "partition")}
		}),
		rapid.Custom(func(t *rapid.T) Position {
			return Position{rapid.Int64().Draw(t, "offset"), rapid.Int32().Draw(t, "leader epoch")}
		}),
	).Draw(t, "positions")
	return r
}
