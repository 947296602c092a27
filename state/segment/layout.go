package segment

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// Layout of user keys and values. A state that has several entries for each key, as
// a map has, needs to know where in the user key the key ends, and all entries of a
// key should stand side by side: so the key is escaped. Values begin with a header.

const (
	escape     = 0x00
	escaped00  = 0xff // behind escape: the byte 0x00
	terminator = 0x01 // behind escape: the end
)

// AppendEscaped appends key in a form that tells where it ends and sorts as key does,
// also with anything appended to it.
func AppendEscaped(dst, key []byte) []byte {
	for _, c := range key {
		if dst = append(dst, c); c == escape {
			dst = append(dst, escaped00)
		}
	}
	return append(dst, escape, terminator)
}

// CutEscaped returns the key that AppendEscaped wrote at the begin of b, and what
// follows it. The key is part of b unless b escapes something. ok is false if b does
// not begin with an escaped key.
func CutEscaped(b []byte) (key, rest []byte, ok bool) {
	var plain []byte // once something was escaped
	begin := 0
	for i := 0; i+1 < len(b); i++ {
		if b[i] != escape {
			continue
		}
		switch b[i+1] {
		case terminator:
			if plain == nil {
				return b[:i:i], b[i+2:], true
			}
			return append(plain, b[begin:i]...), b[i+2:], true
		case escaped00:
			plain = append(plain, b[begin:i+1]...)
			i++
			begin = i + 1
		default:
			return nil, nil, false
		}
	}
	return nil, nil, false
}

// Domain says which clock makes an entry expire.
type Domain uint8

const (
	Forever        Domain = iota // the entry never expires
	ProcessingTime               // wall clock
	EventTime                    // watermark
)

func (d Domain) String() string {
	switch d {
	case Forever:
		return "never"
	case ProcessingTime:
		return "processing time"
	case EventTime:
		return "event time"
	}
	return fmt.Sprintf("domain %d", uint8(d))
}

// Name is what manifests call the clock: none, processing or event.
func (d Domain) Name() string { return [...]string{"none", "processing", "event"}[d] }

// Header is what every value begins with.
type Header struct {
	// Version is that of the codec which wrote the value: a segment may hold several,
	// and merging keeps them as they are.
	Version int
	Domain  Domain
	// Expires is when the entry ceases to be, in milliseconds since 1970. Zero if
	// Domain is Forever.
	Expires int64
}

// Expired tells whether an entry is gone at the given times, both in milliseconds
// since 1970.
func (h Header) Expired(processing, event int64) bool {
	switch h.Domain {
	case ProcessingTime:
		return h.Expires <= processing
	case EventTime:
		return h.Expires <= event
	}
	return false
}

// Span is expiries by a clock that do not count, those in (After, Until]: nothing expired by
// that clock then, because the state had no time to live by it.
type Span struct {
	Clock Domain `json:"clock"`
	// After and Until are in milliseconds since 1970. Until is math.MaxInt64 as long as the
	// state has no such time to live.
	After int64 `json:"after"`
	Until int64 `json:"until"`
}

// Spans are those of one state.
type Spans []Span

// Has tells whether an entry is one that does not expire, as far as its header says.
func (s Spans) Has(h Header) bool {
	for _, sp := range s {
		if sp.Clock == h.Domain && sp.After < h.Expires && h.Expires <= sp.Until {
			return true
		}
	}
	return false
}

const (
	domainBits = 2
	domainMask = 1<<domainBits - 1
)

// AppendHeader appends h.
func AppendHeader(dst []byte, h Header) []byte {
	dst = binary.AppendUvarint(dst, uint64(h.Version)<<domainBits|uint64(h.Domain))
	if h.Domain != Forever {
		dst = binary.BigEndian.AppendUint64(dst, uint64(h.Expires))
	}
	return dst
}

var errHeader = errors.New("the value does not begin with a header")

// CutHeader returns the header that b begins with, and what follows it.
func CutHeader(b []byte) (h Header, rest []byte, err error) {
	v, n := binary.Uvarint(b)
	if n <= 0 || v>>domainBits > 1<<31 {
		return h, nil, fmt.Errorf("%w: %d bytes", errHeader, len(b))
	}
	h.Version, h.Domain, b = int(v>>domainBits), Domain(v&domainMask), b[n:]
	switch {
	case h.Domain > EventTime:
		return h, nil, fmt.Errorf("%w: it expires in %v", errHeader, h.Domain)
	case h.Domain != Forever:
		if len(b) < 8 {
			return h, nil, fmt.Errorf("%w: it ends in the time of expiry", errHeader)
		}
		h.Expires, b = int64(binary.BigEndian.Uint64(b)), b[8:]
	}
	return h, b, nil
}
