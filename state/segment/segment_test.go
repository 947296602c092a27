package segment

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"
)

var update = flag.Bool("update", false, "write golden files that are missing; existing ones are never changed")

func put(b *Builder, kg, state uint16, key, value string) {
	dst := b.KeyDone(append(b.BeginPut(kg, state), key...))
	b.ValueDone(append(dst, value...))
}

func del(b *Builder, kg, state uint16, key string) {
	b.DeleteDone(append(b.BeginDelete(kg, state), key...))
}

func write(t testing.TB, runs ...Run) ([]byte, Info) {
	t.Helper()
	var buf bytes.Buffer
	info, err := Write(&buf, runs...)
	if err != nil {
		t.Fatal(err)
	}
	if info.Bytes != int64(buf.Len()) || info.CRC32C != Checksum(buf.Bytes()) {
		t.Fatalf("info says %d bytes with checksum %08x, there are %d with %08x", info.Bytes, info.CRC32C, buf.Len(), Checksum(buf.Bytes()))
	}
	return buf.Bytes(), info
}

func open(t testing.TB, b []byte) *Reader {
	t.Helper()
	r, err := OpenVerified(b, Checksum(b))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// dump renders entries as "kg/state/key=value", a tombstone as "kg/state/key-".
func dump(e Entry) string {
	if e.Deleted {
		return fmt.Sprintf("%d/%d/%s-", e.KeyGroup, e.State, e.Key)
	}
	return fmt.Sprintf("%d/%d/%s=%s", e.KeyGroup, e.State, e.Key, e.Value)
}

func scanAll(t testing.TB, lo, hi int, readers ...*Reader) []string {
	t.Helper()
	var got []string
	for e, err := range Scan(lo, hi, readers...) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, dump(e))
	}
	return got
}

func equal(t testing.TB, what string, got, want []string) {
	t.Helper()
	if !slices.Equal(got, want) {
		t.Fatalf("%s:\n got %q\nwant %q", what, got, want)
	}
}

func TestRunIsSortedAndKeepsTheNewestOfAKey(t *testing.T) {
	var b Builder
	put(&b, 2, 1, "user-b", "1")
	put(&b, 2, 1, "user-a", "2")
	put(&b, 0, 7, "", "empty key")
	put(&b, 2, 0, "z", "")
	put(&b, 2, 1, "user-b", "3")
	del(&b, 2, 1, "user-a")
	put(&b, 300, 1, "user", "4")
	put(&b, 300, 1, "user\x00", "5")
	for i := range 40 { // more than are sorted by insertion
		put(&b, 4, 1, "again", fmt.Sprint(i))
		put(&b, 4, 1, fmt.Sprintf("again and again %d", i%2), fmt.Sprint(i))
	}
	b.BeginPut(1, 1)
	b.Abandon()
	if b.Len() != 88 {
		t.Fatalf("Len is %d", b.Len())
	}
	var got []string
	r := b.Finish()
	for e := range r.All() {
		got = append(got, dump(e))
	}
	equal(t, "run", got, []string{"0/7/=empty key", "2/0/z=", "2/1/user-a-", "2/1/user-b=3",
		"4/1/again=39", "4/1/again and again 0=38", "4/1/again and again 1=39", "300/1/user=4", "300/1/user\x00=5"})
	if b.Len() != 0 || b.Bytes() != 0 {
		t.Fatal("the builder is not empty after Finish")
	}
}

// Keys that begin alike for longer than a prefix: all of a group, or some of it, as of maps.
func TestRunOfManyAlikeKeysIsSorted(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	for range 200 {
		var b Builder
		newest := map[string]string{}
		names, groups := 1+rng.IntN(5), 1+rng.IntN(5)
		for i := range 300 {
			m := rng.IntN(names)
			key := fmt.Sprintf("%c-a long name of a map-%s", 'a'+m, strings.Repeat("\x00", rng.IntN(3))+fmt.Sprint(rng.IntN(100)))
			kg := uint16(m % groups)
			if rng.IntN(4) == 0 {
				del(&b, kg, 1, key)
				newest[fmt.Sprintf("%d/1/%s", kg, key)] = "-"
				continue
			}
			put(&b, kg, 1, key, fmt.Sprint(i))
			newest[fmt.Sprintf("%d/1/%s", kg, key)] = fmt.Sprintf("=%d", i)
		}
		var got, want []string
		for e := range b.Finish().All() {
			got = append(got, dump(e))
		}
		for _, k := range slices.Sorted(maps.Keys(newest)) {
			want = append(want, k+newest[k])
		}
		equal(t, "run", got, want)
	}
}

func TestReleasedMemoryIsUsedAgainAndOnlyOnce(t *testing.T) {
	var b Builder
	put(&b, 1, 1, "a", "1")
	r1 := b.Finish()
	r1.Release()
	r1.Release()
	if r1.Len() != 0 {
		t.Fatal("a released run has entries")
	}
	put(&b, 1, 1, "b", "2")
	r2 := b.Finish() // the builder takes r1's memory for what comes next
	put(&b, 1, 1, "c", "3")
	r1.Release()
	r3 := b.Finish()
	put(&b, 1, 1, "d", "4")
	for i, r := range []Run{r2, r3, b.Finish()} {
		if want := string(rune('b' + i)); string(r.key(0)[4:]) != want {
			t.Errorf("run %d has the key %q, want %q", i, r.key(0)[4:], want)
		}
	}
}

func TestFreezeDoesNotAllocatePerEntry(t *testing.T) {
	var b Builder
	rng := rand.New(rand.NewPCG(1, 2))
	const entries = 2000
	for range 3 {
		fill(&b, entries, rng)
		b.Finish().Release()
	}
	allocs := testing.AllocsPerRun(20, func() {
		fill(&b, entries, rng)
		b.Finish().Release()
	})
	if allocs > 3 {
		t.Errorf("%v allocations for %d entries", allocs, entries)
	}
}

// model is the naive counterpart of a chain of segments.
type model map[string]*string

func (m model) dump(lo, hi int) []string {
	var out []string
	for _, k := range slices.Sorted(maps.Keys(m)) {
		if v := m[k]; v != nil {
			if e := entryOf([]byte(k), []byte(*v), false); int(e.KeyGroup) >= lo && int(e.KeyGroup) < hi {
				out = append(out, dump(e))
			}
		}
	}
	return out
}

func TestChainOfSegmentsEqualsModel(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		var b Builder
		all := model{}
		var readers []*Reader
		kgs := rapid.Uint16Range(0, 6)
		prefix := rapid.SampledFrom([]string{"", "k", "key-", "key-with-a-long-prefix-"})
		for range rapid.IntRange(1, 5).Draw(rt, "segments") {
			var runs []Run
			for range rapid.IntRange(0, 3).Draw(rt, "runs") {
				for range rapid.IntRange(0, 40).Draw(rt, "entries") {
					kg, state := kgs.Draw(rt, "kg"), rapid.Uint16Range(0, 300).Draw(rt, "state")
					key := prefix.Draw(rt, "prefix") + rapid.StringMatching(`[a-c]{0,9}`).Draw(rt, "key")
					full := string(AppendKey(nil, kg, state, []byte(key)))
					if rapid.IntRange(0, 3).Draw(rt, "op") == 0 {
						del(&b, kg, state, key)
						all[full] = nil
					} else {
						v := rapid.StringMatching(`[x-z]{0,5}`).Draw(rt, "value")
						put(&b, kg, state, key, v)
						all[full] = &v
					}
				}
				runs = append(runs, b.Finish())
			}
			data, _ := write(t, runs...)
			readers = append(readers, open(t, data))
			for _, r := range runs {
				r.Release()
			}
		}
		lo, hi := rapid.IntRange(-1, 7).Draw(rt, "lo"), rapid.IntRange(-1, 8).Draw(rt, "hi")
		equal(t, "scan", scanAll(t, lo, hi, readers...), all.dump(lo, hi))

		// A merge of a part of the chain changes nothing; tombstones go only with
		// the oldest segment.
		from := rapid.IntRange(0, len(readers)-1).Draw(rt, "from")
		to := rapid.IntRange(from+1, len(readers)).Draw(rt, "to")
		var buf bytes.Buffer
		info, err := Merge(&buf, from == 0, readers[from:to]...)
		if err != nil {
			t.Fatal(err)
		}
		if from == 0 && info.Tombstones != 0 {
			t.Fatalf("%d tombstones are left", info.Tombstones)
		}
		merged := slices.Concat(readers[:from], []*Reader{open(t, buf.Bytes())}, readers[to:])
		equal(t, "scan after merge", scanAll(t, 0, 1<<16, merged...), all.dump(0, 1<<16))
	})
}

func TestDisjointRunsAreWrittenInKeyOrder(t *testing.T) {
	var hi, lo Builder
	put(&hi, 9, 1, "a", "1")
	put(&lo, 3, 1, "b", "2")
	del(&lo, 4, 1, "c")
	data, info := write(t, hi.Finish(), Run{}, lo.Finish())
	if want := (Info{Entries: 2, Tombstones: 1, Bytes: info.Bytes, MinKG: 3, MaxKG: 9, CRC32C: info.CRC32C}); info != want {
		t.Errorf("info is %+v, want %+v", info, want)
	}
	var got []string
	for e, err := range open(t, data).Changes(0, 1<<16) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, dump(e))
	}
	equal(t, "changes", got, []string{"3/1/b=2", "4/1/c-", "9/1/a=1"})
}

func TestEmptySegment(t *testing.T) {
	data, info := write(t)
	if !info.Empty() {
		t.Errorf("info is %+v", info)
	}
	equal(t, "scan", scanAll(t, 0, 1<<16, open(t, data)), nil)
}

func TestScanStopsWhenToldTo(t *testing.T) {
	var b Builder
	put(&b, 1, 1, "a", "1")
	put(&b, 1, 1, "b", "2")
	data, _ := write(t, b.Finish())
	for e, err := range Scan(0, 2, open(t, data), open(t, data)) {
		if err != nil || dump(e) != "1/1/a=1" {
			t.Fatal(dump(e), err)
		}
		break
	}
}

func TestPebbleIngestsSegments(t *testing.T) {
	mem := vfs.NewMem()
	db, err := pebble.Open("db", &pebble.Options{FS: mem, FormatMajorVersion: pebble.FormatTableFormatV6})
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close()
	var b Builder
	put(&b, 1, 1, "kept", "1")
	put(&b, 1, 1, "deleted", "1")
	put(&b, 2, 1, "changed", "1")
	first, _ := write(t, b.Finish())
	del(&b, 1, 1, "deleted")
	put(&b, 2, 1, "changed", "2")
	second, _ := write(t, b.Finish())
	for i, data := range [][]byte{first, second} {
		name := fmt.Sprintf("%d.sst", i)
		f, err := mem.Create(name, vfs.WriteCategoryUnspecified)
		if err != nil {
			t.Fatal(err)
		}
		// A copy, because Pebble may scribble over what it is given.
		if _, err := f.Write(bytes.Clone(data)); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			t.Fatal(err)
		}
		if err := db.Ingest(t.Context(), []string{name}); err != nil {
			t.Fatal(err)
		}
	}
	it, err := db.NewIter(nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	var got []string
	for it.First(); it.Valid(); it.Next() {
		got = append(got, dump(entryOf(it.Key(), it.Value(), false)))
	}
	if it.Error() != nil {
		t.Fatal(it.Error())
	}
	equal(t, "ingested", got, scanAll(t, 0, 1<<16, open(t, first), open(t, second)))
}

// sample returns a small segment with several data blocks.
func sample(t testing.TB) []byte {
	var b Builder
	rng := rand.New(rand.NewPCG(3, 4))
	fill(&b, 700, rng)
	del(&b, 5, 1, "gone")
	data, _ := write(t, b.Finish())
	return data
}

// TestS04_FlippedBitIsNeverServed flips one bit in each byte: a reader either says
// that the segment is damaged or, if the bit means nothing, gives the same entries.
func TestS04_FlippedBitIsNeverServed(t *testing.T) {
	data := sample(t)
	want := scanAll(t, 0, 1<<16, open(t, data))
	const blockStep = 997 // Pebble looks for the flipped bit of a block, which takes long
	for i := range data {
		bad := bytes.Clone(data)
		bad[i] ^= 1 << (i % 8)
		if _, err := OpenVerified(bad, Checksum(data)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("byte %d: OpenVerified gives %v", i, err)
		}
		if i%blockStep != 0 && i < len(data)-1500 { // index, filter, properties, footer: all
			continue
		}
		r, err := Open(bad)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("byte %d: %v", i, err)
			}
			continue
		}
		n := 0
		for e, err := range Scan(0, 1<<16, r) {
			if err != nil {
				if !errors.Is(err, ErrCorrupt) {
					t.Fatalf("byte %d: %v", i, err)
				}
				break
			}
			if n >= len(want) || dump(e) != want[n] {
				t.Fatalf("byte %d: entry %d is %s", i, n, dump(e))
			}
			n++
		}
	}
}

func TestS04_TruncatedSegmentIsRefused(t *testing.T) {
	data := sample(t)
	for n := range len(data) {
		if _, err := Open(data[:n]); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d of %d bytes: %v", n, len(data), err)
		}
	}
}

func TestDamagedSegmentFailsScanAndMerge(t *testing.T) {
	data := bytes.Clone(sample(t))
	data[100] ^= 4 // in the first data block; the index is sound
	r, err := Open(data)
	if err != nil {
		t.Fatal(err)
	}
	var last error
	for _, err := range Scan(0, 1<<16, r) {
		last = err
	}
	if !errors.Is(last, ErrCorrupt) {
		t.Errorf("scan: %v", last)
	}
	if _, err := Merge(io.Discard, false, r); !errors.Is(err, ErrCorrupt) {
		t.Errorf("merge: %v", err)
	}
}

type failingWriter struct{ left int }

var errDisk = errors.New("disk on fire")

func (w *failingWriter) Write(p []byte) (int, error) {
	if w.left -= len(p); w.left < 0 {
		return 0, errDisk
	}
	return len(p), nil
}

func TestWriteReportsTheWritersError(t *testing.T) {
	var b Builder
	fill(&b, 2000, rand.New(rand.NewPCG(1, 2)))
	run := b.Finish()
	_, info := write(t, run)
	for left := 0; left < int(info.Bytes); left += 20_000 {
		if _, err := Write(&failingWriter{left}, run); !errors.Is(err, errDisk) {
			t.Fatalf("after %d bytes: %v", left, err)
		}
	}
}

// TestS30_GoldenSegmentStaysReadable reads what earlier builds wrote.
func TestS30_GoldenSegmentStaysReadable(t *testing.T) {
	var b Builder
	for i := range 50 {
		put(&b, uint16(i%8), uint16(i%2), fmt.Sprintf("key-%d", i), fmt.Sprintf("value %d", i))
	}
	del(&b, 3, 1, "key-3")
	data, _ := write(t, b.Finish())
	golden := filepath.Join("testdata", "segment-v1.sst")
	if _, err := os.Stat(golden); *update && errors.Is(err, os.ErrNotExist) {
		if err := errors.Join(os.MkdirAll("testdata", 0o755), os.WriteFile(golden, data, 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	old, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	equal(t, golden, scanAll(t, 0, 1<<16, open(t, old)), scanAll(t, 0, 1<<16, open(t, data)))
	if len(scanAll(t, 0, 1<<16, open(t, old))) != 49 {
		t.Error("the golden segment should hold 49 entries")
	}
}

func FuzzOpenScan(f *testing.F) {
	var b Builder
	put(&b, 1, 1, "a", "1")
	del(&b, 2, 1, "b")
	var buf bytes.Buffer
	if _, err := Write(&buf, b.Finish()); err != nil {
		f.Fatal(err)
	}
	f.Add(buf.Bytes())
	f.Add(buf.Bytes()[:buf.Len()-10])
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := Open(data)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error without ErrCorrupt: %v", err)
			}
			return
		}
		for _, err := range Scan(0, 1<<16, r) {
			if err != nil && !errors.Is(err, ErrCorrupt) {
				t.Fatalf("error without ErrCorrupt: %v", err)
			}
		}
	})
}
