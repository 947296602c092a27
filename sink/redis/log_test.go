package redis

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"hash/crc32"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// samplePart is a part with some of everything.
func samplePart(t testing.TB) (*base, *Batch, []byte) {
	b := &Batch{commands{prefix: "p:", cluster: true}}
	err := b.record(func() {
		b.IncrBy("a", -5)
		b.LPush("list", "x", strings.Repeat("y", 300))
		b.Transaction(func() {
			b.Set("{t}1", "")
			b.XAdd("{t}2", "field", "value")
			b.Do("ZADD", Key("{t}3"), 1.25, []byte("m"))
		})
	})
	if err != nil {
		t.Fatal(err)
	}
	bs := &base{checkpoint: 4710, lanes: map[lane]position{3: {"00000000000000a1", 4709, 12}, 16383: {"00000000000000b2", 4710, 1}}}
	return bs, b, appendPart(nil, bs, b.buf, b.count)
}

func TestPartsComeBackAsTheyWereWritten(t *testing.T) {
	bs, b, enc := samplePart(t)
	p, err := decodePart(enc)
	if err != nil {
		t.Fatal(err)
	}
	if p.count != 5 || !bytes.Equal(p.operations, b.buf) || p.base.checkpoint != bs.checkpoint || !maps.Equal(p.base.lanes, bs.lanes) {
		t.Errorf("%+v", p)
	}
	var joined []bool
	if err := eachOperation([]part{p}, func(op *operation) { joined = append(joined, op.flags&flagJoined != 0) }); err != nil {
		t.Fatal(err)
	}
	if want := []bool{false, false, true, true, false}; !slices.Equal(joined, want) {
		t.Errorf("joined %v, want %v", joined, want)
	}
	if p, err = decodePart(appendPart(nil, nil, nil, 0)); err != nil || p.base != nil || p.count != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}

func TestDamagedPartsAreRefused(t *testing.T) {
	_, _, enc := samplePart(t)
	for i := range len(enc) * 8 {
		b := bytes.Clone(enc)
		b[i/8] ^= 1 << (i % 8)
		if _, err := decodePart(b); err == nil {
			t.Fatalf("bit %d is flipped, and nobody minds", i)
		}
	}
	for n := range enc {
		if _, err := decodePart(enc[:n]); err == nil {
			t.Fatalf("%d of %d bytes are enough", n, len(enc))
		}
	}
}

// sealed gives bytes a valid checksum.
func sealed(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(bytes.Clone(b), crc32.Checksum(b, castagnoli))
}

func TestPartOfALaterVersionIsNotCalledDamaged(t *testing.T) {
	_, err := decodePart(sealed([]byte("WRL\x02anything")))
	if err == nil || !strings.Contains(err.Error(), "version 2") || strings.Contains(err.Error(), "damaged") {
		t.Error(err)
	}
	if _, ok := errors.AsType[*LogError](err); !ok {
		t.Errorf("%T", err)
	}
}

func TestPartThatCutsATransactionIsRefused(t *testing.T) {
	_, b, _ := samplePart(t)
	var op operation
	rest, last := b.buf, 0
	for len(rest) > 0 {
		last = len(b.buf) - len(rest)
		rest, _ = op.decode(rest)
	}
	if _, err := decodePart(appendPart(nil, nil, b.buf[:last], 4)); err == nil || !strings.Contains(err.Error(), "transaction") {
		t.Error(err)
	}
}

func TestS30_GoldenLogStaysReadable(t *testing.T) {
	text, err := os.ReadFile("testdata/log-v1.hex")
	if err != nil {
		t.Fatal(err)
	}
	golden, err := hex.DecodeString(strings.Join(strings.Fields(string(text)), ""))
	if err != nil {
		t.Fatal(err)
	}
	bs, b, enc := samplePart(t)
	p, err := decodePart(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(p.operations, b.buf) || !maps.Equal(p.base.lanes, bs.lanes) || p.base.checkpoint != bs.checkpoint {
		t.Error("it says something else than when it was written")
	}
	if !bytes.Equal(golden, enc) {
		t.Error("this build writes version 1 in another way: a change needs a new version")
	}
}

func TestMarkersAreReadable(t *testing.T) {
	at := time.Date(2026, 11, 21, 18, 0, 0, 123e6, time.UTC)
	text := position{"00000000000000a1", 4711, 256}.text() + author("shop a", "board:1", "host-a", at)
	if want := "weir1 lineage=00000000000000a1 checkpoint=4711 operations=256 app=shop+a sink=board%3A1 instance=host-a at=2026-11-21T18:00:00.123Z"; text != want {
		t.Errorf("marker %q\nwant   %q", text, want)
	}
	m, err := ParseMarker("k", text)
	if want := (Marker{"k", "00000000000000a1", 4711, 256, "shop a", "board:1", "host-a", at}); err != nil || m != want {
		t.Errorf("%+v, %v", m, err)
	}
	later := strings.Replace(text, "weir1", "weir2", 1) + " since=then"
	if _, err := ParseMarker("k", later); err == nil || !strings.Contains(err.Error(), `"k" has a marker of version 2`) {
		t.Errorf("%q: %v", later, err)
	}
	for _, bad := range []string{"", "x", strings.Replace(text, "weir1", "weir0", 1), strings.Replace(text, "weir1", "weirs2", 1), text + " ", strings.Replace(text, "256", "-1", 1), strings.Replace(text, "checkpoint", "checkpoints", 1)} {
		if _, err := ParseMarker("k", bad); err == nil || !strings.Contains(err.Error(), "k") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestMarkersAndDataShareTheirSlot(t *testing.T) {
	for _, prefix := range []string{"", "p:", "{shop}:", "a{b}c"} {
		l := layout{prefix, true}
		for _, key := range []string{"a", "b", "{x}y", "long key with spaces", "}{"} {
			slot := slotOf([]byte(prefix + key))
			for _, own := range []string{l.marker(l.lane(slot), "app", "sink"), l.dead(l.lane(slot), "app", "sink"), l.open(l.lane(slot), "app", "sink"), l.version(slot, prefix+key)} {
				if slotOf([]byte(own)) != slot || !strings.HasPrefix(own, prefix) {
					t.Errorf("%q of %q is in slot %d, want %d", own, prefix+key, slotOf([]byte(own)), slot)
				}
			}
		}
	}
	if n := len((layout{"", true}).lanes()); n != slots {
		t.Errorf("%d lanes on a cluster", n)
	}
	for _, l := range []layout{{"{shop}:", true}, {"p:", false}} {
		if n := len(l.lanes()); n != 1 {
			t.Errorf("%d lanes with %+v", n, l)
		}
	}
	if (layout{}).marker(0, "a:b", "c") == (layout{}).marker(0, "a", "b:c") {
		t.Error("two sinks share a marker")
	}
}

func FuzzDecodePart(f *testing.F) {
	_, _, enc := samplePart(f)
	f.Add(enc[:len(enc)-4])
	f.Add([]byte("WRL\x01\x00\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := decodePart(sealed(b)) // past the checksum
		if err != nil {
			return
		}
		n := 0
		if err := eachOperation([]part{p}, func(op *operation) { op.args(); n++ }); err != nil || n != p.count {
			t.Fatalf("%d operations of %d: %v", n, p.count, err)
		}
		// What was decoded is written in one way.
		again, err := decodePart(appendPart(nil, p.base, p.operations, p.count))
		if err != nil || !bytes.Equal(again.operations, p.operations) || (again.base == nil) != (p.base == nil) {
			t.Fatalf("%+v, %v", again, err)
		}
	})
}

func FuzzParseMarker(f *testing.F) {
	f.Add(position{"00000000000000a1", 4711, 256}.text() + author("shop a", "board", "host-a", time.Unix(0, 0)))
	f.Fuzz(func(t *testing.T, s string) {
		m, err := ParseMarker("k", s)
		if err == nil && (m.Checkpoint < 0 || m.Operations < 0 || m.Lineage == "") {
			t.Fatalf("%+v", m)
		}
	})
}
