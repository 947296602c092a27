package segment

import (
	"bytes"
	"testing"

	"pgregory.net/rapid"
)

// Keys with zeros, ones and 0xff are where an escape goes wrong.
var trickyBytes = rapid.SliceOfN(rapid.OneOf(rapid.SampledFrom([]byte{0, 1, 0xff}), rapid.Byte()), 0, 8)

func TestEscapedKeysSortAsKeysDoWhateverFollows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a, b := trickyBytes.Draw(t, "a"), trickyBytes.Draw(t, "b")
		x, y := trickyBytes.Draw(t, "x"), trickyBytes.Draw(t, "y")
		ea := append(AppendEscaped(nil, a), x...)
		eb := append(AppendEscaped(nil, b), y...)
		if want := bytes.Compare(a, b); want != 0 && bytes.Compare(ea, eb) != want {
			t.Fatalf("%x and %x compare as %d, escaped as %x and %x", a, b, want, ea, eb)
		}
		key, rest, ok := CutEscaped(ea)
		if !ok || !bytes.Equal(key, a) || !bytes.Equal(rest, x) {
			t.Fatalf("%x, then %x, became %x and was read as %x, then %x (%v)", a, x, ea, key, rest, ok)
		}
	})
}

func TestWhatIsNotEscapedIsRefused(t *testing.T) {
	for _, b := range [][]byte{nil, {}, {0}, {1}, {1, 2}, {0, 0xff}, {0, 2}, {1, 0}, {0, 0xff, 0}} {
		if key, _, ok := CutEscaped(b); ok {
			t.Errorf("%x was read as key %x", b, key)
		}
	}
}

func TestHeadersAreReadAsWritten(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := Header{Version: rapid.IntRange(0, 1<<31).Draw(t, "version"), Domain: rapid.SampledFrom([]Domain{Forever, ProcessingTime, EventTime}).Draw(t, "domain")}
		if want.Domain != Forever {
			want.Expires = rapid.Int64().Draw(t, "expires")
		}
		value := trickyBytes.Draw(t, "value")
		got, rest, err := CutHeader(append(AppendHeader(nil, want), value...))
		if err != nil || got != want || !bytes.Equal(rest, value) {
			t.Fatalf("%+v was read as %+v, %x: %v", want, got, rest, err)
		}
	})
}

func TestDamagedHeadersAreRefused(t *testing.T) {
	expiring := AppendHeader(nil, Header{Version: 1, Domain: EventTime, Expires: 1})
	for _, b := range [][]byte{nil, {0x80}, {1<<domainBits | 3}, expiring[:len(expiring)-1]} {
		if h, _, err := CutHeader(b); err == nil {
			t.Errorf("%x was read as %+v", b, h)
		}
	}
}

func TestAnEntryExpiresByItsOwnClock(t *testing.T) {
	for _, c := range []struct {
		h                 Header
		processing, event int64
		want              bool
	}{
		{Header{}, 1 << 62, 1 << 62, false},
		{Header{Domain: ProcessingTime, Expires: 10}, 9, 99, false},
		{Header{Domain: ProcessingTime, Expires: 10}, 10, 0, true},
		{Header{Domain: EventTime, Expires: 10}, 99, 9, false},
		{Header{Domain: EventTime, Expires: 10}, 0, 10, true},
	} {
		if got := c.h.Expired(c.processing, c.event); got != c.want {
			t.Errorf("%+v at %d, %d: expired %v, want %v", c.h, c.processing, c.event, got, c.want)
		}
	}
}
