package offline

import (
	"bytes"
	"encoding/binary"
	"math"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/state/segment"
)

// closer closes the gaps that an edit leaves in lists: an app finds the n-th element of a
// list, and its length, by the indexes, which follow each other. Entries come in order.
type closer struct {
	lists map[uint16]bool
	of    []byte // the list that the last element was of
	next  uint64 // the index behind it
	key   []byte
}

// indexBytes is the length of an index, which ends the user key of an element.
const indexBytes = 8

func newCloser(states []checkpoint.StateInfo) *closer {
	c := &closer{lists: map[uint16]bool{}}
	for _, s := range states {
		if s.Kind == kindList {
			c.lists[s.ID] = true
		}
	}
	return c
}

// close gives an element the index that it has to have. What it returns is valid until
// the next call.
func (c *closer) close(e segment.Entry) segment.Entry {
	n := len(e.Key) - indexBytes
	if n < 0 || !c.lists[e.State] {
		return e
	}
	index := binary.BigEndian.Uint64(e.Key[n:])
	c.key = segment.AppendKey(c.key[:0], e.KeyGroup, e.State, e.Key[:n])
	first := !bytes.Equal(c.key, c.of)
	if first {
		c.of, c.next = append(c.of[:0], c.key...), 0
	}
	// A list begins anywhere: its front was removed. One whose elements expire has gaps
	// where they did, and the app knows that. But there must be room behind the last one.
	h, _, err := segment.CutHeader(e.Value)
	if index > math.MaxInt64 || err == nil && h.Domain == segment.Forever && !first && index != c.next {
		index = c.next
		c.key = binary.BigEndian.AppendUint64(append(c.key[:0], e.Key[:n]...), index)
		e.Key = c.key
	}
	c.next = index + 1
	return e
}
