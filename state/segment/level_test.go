package segment

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"testing"

	"pgregory.net/rapid"
)

// piece makes a piece of a level that is read at need. open counts the pieces that are
// open.
func pieceOf(data []byte, info Info, open *int) Piece {
	return Piece{
		MinKG: info.MinKG, MaxKG: info.MaxKG, Entries: info.Entries + info.Tombstones,
		Open: func() (*Reader, error) {
			*open++
			return OpenAt(&counted{bytes.NewReader(data), open}, int64(len(data)))
		},
	}
}

type counted struct {
	io.ReaderAt
	open *int
}

func (c *counted) Close() error { *c.open--; return nil }

// TestMergedPiecesEqualModel merges parts of random chains into many small pieces.
func TestMergedPiecesEqualModel(t *testing.T) {
	const keyGroups = 8
	rapid.Check(t, func(rt *rapid.T) {
		var b Builder
		all := model{}
		var levels []Level
		open := 0
		for range rapid.IntRange(1, 4).Draw(rt, "levels") {
			for range rapid.IntRange(0, 60).Draw(rt, "entries") {
				kg := rapid.Uint16Range(0, keyGroups-1).Draw(rt, "kg")
				key := rapid.StringMatching(`[a-c]{0,4}`).Draw(rt, "key")
				full := string(AppendKey(nil, kg, 1, []byte(key)))
				if rapid.IntRange(0, 3).Draw(rt, "op") == 0 {
					del(&b, kg, 1, key)
					all[full] = nil
					continue
				}
				h := Header{Version: 1}
				if rapid.Bool().Draw(rt, "expires") {
					h.Domain = rapid.SampledFrom([]Domain{ProcessingTime, EventTime}).Draw(rt, "domain")
					h.Expires = rapid.Int64Range(0, 20).Draw(rt, "at")
				}
				v := string(AppendHeader(nil, h)) + "x"
				put(&b, kg, 1, key, v)
				all[full] = &v
			}
			var buf bytes.Buffer
			info, err := Write(&buf, b.Finish())
			if err != nil {
				rt.Fatal(err)
			}
			levels = append(levels, Level{pieceOf(buf.Bytes(), info, &open)})
		}
		from := rapid.IntRange(0, len(levels)-1).Draw(rt, "from")
		to := rapid.IntRange(from+1, len(levels)).Draw(rt, "to")
		shards := rapid.SampledFrom([]int{0, 1, 2, 4, 8}).Draw(rt, "shards")
		o := MergeOptions{
			Base: from == 0, KeyGroups: keyGroups, Shards: shards,
			Processing:  rapid.SampledFrom([]int64{math.MinInt64, 10}).Draw(rt, "processing"),
			Event:       rapid.SampledFrom([]int64{math.MinInt64, 5}).Draw(rt, "event"),
			TargetBytes: rapid.SampledFrom([]int64{0, 1, 1 << 20}).Draw(rt, "target"),
		}
		var merged Level
		var last []byte
		err := MergeLevels(o, func(p Merged, data []byte) error {
			data = bytes.Clone(data)
			if p.CRC32C != Checksum(data) || p.Bytes != int64(len(data)) || p.Empty() || o.Base && p.Tombstones > 0 {
				rt.Fatalf("%+v says something else than %d bytes", p, len(data))
			}
			if last != nil && bytes.Compare(last, p.MinKey) >= 0 || bytes.Compare(p.MinKey, p.MaxKey) > 0 {
				rt.Fatalf("a piece from %x to %x after one to %x", p.MinKey, p.MaxKey, last)
			}
			if shards > 1 && int(p.MinKG)*shards/keyGroups != int(p.MaxKG)*shards/keyGroups {
				rt.Fatalf("key-groups %d to %d cross one of %d shards", p.MinKG, p.MaxKG, shards)
			}
			last = p.MaxKey
			merged = append(merged, pieceOf(data, p.Info, &open))
			return nil
		}, levels[from:to]...)
		if err != nil {
			rt.Fatal(err)
		}
		if open != 0 {
			rt.Fatalf("%d readers are open", open)
		}
		chain := append(append(append([]Level{}, levels[:from]...), merged), levels[to:]...)
		keep := func(value []byte) bool {
			h, _, err := CutHeader(value)
			return err == nil && !h.Expired(o.Processing, o.Event)
		}
		for k, v := range all {
			if v != nil && !keep([]byte(*v)) {
				all[k] = nil
			}
		}
		some := [2]int{rapid.IntRange(0, keyGroups).Draw(rt, "lo"), rapid.IntRange(0, keyGroups).Draw(rt, "hi")}
		for _, r := range [][2]int{some, {0, keyGroups}} {
			var got []string
			for e, err := range ScanLevels(r[0], r[1], chain...) {
				if err != nil {
					rt.Fatal(err)
				}
				if open > len(chain) {
					rt.Fatalf("%d readers are open for %d levels", open, len(chain))
				}
				if keep(e.Value) {
					got = append(got, dump(e))
				}
			}
			if want := all.dump(r[0], r[1]); fmt.Sprint(got) != fmt.Sprint(want) {
				rt.Fatalf("key-groups %d to %d: got %q, want %q", r[0], r[1], got, want)
			}
			if open != 0 {
				rt.Fatalf("%d readers are open", open)
			}
		}
	})
}

// TestMergeMakesTombstonesOfWhatExpired makes sure that an expired value does not
// uncover an older one.
func TestMergeMakesTombstonesOfWhatExpired(t *testing.T) {
	open := 0
	level := func(h Header) Level {
		var b Builder
		put(&b, 1, 1, "k", string(AppendHeader(nil, h))+"x")
		put(&b, 1, 1, "raw", "")
		data, info := write(t, b.Finish())
		return Level{pieceOf(data, info, &open)}
	}
	old, young := level(Header{}), level(Header{Domain: EventTime, Expires: 10})
	for event, tombstones := range map[int64]int64{9: 0, 10: 1} {
		n := 0
		err := MergeLevels(MergeOptions{Processing: 100, Event: event, KeyGroups: 8}, func(p Merged, _ []byte) error {
			n++
			if p.Tombstones != tombstones || p.Expired != tombstones || p.Entries != 2-tombstones {
				t.Errorf("at %d: %+v", event, p)
			}
			return nil
		}, young)
		if n != 1 || err != nil {
			t.Errorf("%d pieces, %v", n, err)
		}
		err = MergeLevels(MergeOptions{Base: true, Processing: 100, Event: event, KeyGroups: 8}, func(p Merged, _ []byte) error {
			if p.Tombstones != 0 || p.Expired != tombstones || p.Entries != 2-tombstones {
				t.Errorf("base at %d: %+v", event, p)
			}
			return nil
		}, old, young)
		if err != nil {
			t.Error(err)
		}
	}
}

// failing serves bytes until told to fail.
type failing struct {
	*bytes.Reader
	fail bool
}

func (f *failing) ReadAt(p []byte, off int64) (int, error) {
	if f.fail {
		return 0, errDisk
	}
	return f.Reader.ReadAt(p, off)
}

func TestErrorOfTheSourceIsNotCalledDamage(t *testing.T) {
	data := sample(t)
	f := &failing{Reader: bytes.NewReader(data), fail: true}
	if _, err := OpenAt(f, int64(len(data))); !errors.Is(err, errDisk) || errors.Is(err, ErrCorrupt) {
		t.Errorf("open: %v", err)
	}
	f.fail = false
	r, err := OpenAt(f, int64(len(data)))
	if err != nil {
		t.Fatal(err)
	}
	f.fail = true
	for _, err := range Scan(0, 1<<16, r) {
		if !errors.Is(err, errDisk) || errors.Is(err, ErrCorrupt) {
			t.Errorf("scan: %v", err)
		}
	}
	if err := MergeLevels(MergeOptions{KeyGroups: 8}, nil, Level{{MaxKG: 9, Entries: -1, Open: func() (*Reader, error) { return nil, errDisk }}}); !errors.Is(err, errDisk) || errors.Is(err, ErrCorrupt) {
		t.Errorf("merge: %v", err)
	}
}

func TestStreamedDamageIsRefused(t *testing.T) {
	data := sample(t)
	for n := range len(data) {
		if _, err := OpenAt(bytes.NewReader(data[:n]), int64(n)); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("%d of %d bytes: %v", n, len(data), err)
		}
	}
	if _, err := OpenAt(bytes.NewReader(data[:50]), int64(len(data))); err == nil {
		t.Error("a file that is shorter than it should be was opened")
	}
	bad := bytes.Clone(data)
	bad[100] ^= 4
	open := 0
	read := func(b []byte, entries int64) error {
		p := pieceOf(b, Info{MaxKG: 1000}, &open)
		p.Entries = entries
		for _, err := range ScanLevels(0, 1<<16, Level{p}) {
			if err != nil {
				return err
			}
		}
		return nil
	}
	if err := read(bad, -1); !errors.Is(err, ErrCorrupt) {
		t.Errorf("flipped bit: %v", err)
	}
	if err := read(data, 701); err != nil {
		t.Errorf("sound: %v", err)
	}
	if err := read(data, 702); !errors.Is(err, ErrCorrupt) {
		t.Errorf("another number of entries: %v", err)
	}
	if open != 0 {
		t.Errorf("%d readers are open", open)
	}
}

func TestMergeEndsWithItsPace(t *testing.T) {
	open := 0
	var b Builder
	for i := range 3 * PaceEntries {
		put(&b, 1, 1, fmt.Sprintf("%06d", i), "")
	}
	data, info := write(t, b.Finish())
	n := 0
	err := MergeLevels(MergeOptions{KeyGroups: 8, Pace: func() error {
		if n++; n == 2 {
			return errDisk
		}
		return nil
	}}, func(Merged, []byte) error { return nil }, Level{pieceOf(data, info, &open)})
	if !errors.Is(err, errDisk) || n != 2 || open != 0 {
		t.Errorf("%v after %d calls, %d readers open", err, n, open)
	}
	err = MergeLevels(MergeOptions{KeyGroups: 8}, func(Merged, []byte) error { return errDisk }, Level{pieceOf(data, info, &open)})
	if !errors.Is(err, errDisk) || open != 0 {
		t.Errorf("out: %v, %d readers open", err, open)
	}
}

func TestLargeKeyGroupIsCutAtAKey(t *testing.T) {
	var b Builder
	rng := rand.New(rand.NewPCG(1, 2))
	const entries = 5000
	for i := range entries {
		put(&b, 3, 1, fmt.Sprintf("%06d", i), fmt.Sprintf("%x%x%x%x", rng.Uint64(), rng.Uint64(), rng.Uint64(), rng.Uint64()))
	}
	data, info := write(t, b.Finish())
	open := 0
	var merged Level
	err := MergeLevels(MergeOptions{KeyGroups: 8, Shards: 8, TargetBytes: 32 << 10}, func(p Merged, data []byte) error {
		merged = append(merged, pieceOf(bytes.Clone(data), p.Info, &open))
		return nil
	}, Level{pieceOf(data, info, &open)})
	if err != nil {
		t.Fatal(err)
	}
	if len(merged) < 2 || len(merged) > int(info.Bytes/(64<<10))+1 {
		t.Errorf("%d bytes became %d pieces", info.Bytes, len(merged))
	}
	n := 0
	for _, err := range ScanLevels(0, 8, merged) {
		if err != nil {
			t.Fatal(err)
		}
		n++
	}
	if n != entries {
		t.Errorf("%d entries", n)
	}
}
