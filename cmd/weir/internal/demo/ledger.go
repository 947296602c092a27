package demo

import "encoding/binary"

// ledger compares outputs with what should come out. It is not safe for concurrent use.
type ledger struct {
	want  map[string]int64 // by word
	total int64            // sum of want
	words map[string]*entry

	outputs    int64 // all that were seen
	seen       int64 // outputs that are right, each counted once
	gaps       int64 // counts that were passed over and have not come yet
	duplicated int64
	outOfOrder int64
	malformed  int64
}

// entry is one word's page.
type entry struct {
	high    int64 // highest count seen
	missing map[int64]bool
}

func newLedger(want map[string]int64) *ledger {
	l := &ledger{want: want, words: map[string]*entry{}}
	for w, n := range want {
		l.total += n
		l.words[w] = &entry{missing: map[int64]bool{}}
	}
	return l
}

// add enters one output: a word and its count in eight bytes, big endian.
func (l *ledger) add(key, value []byte) {
	l.outputs++
	if len(value) != 8 {
		l.malformed++
		return
	}
	e, n := l.words[string(key)], int64(binary.BigEndian.Uint64(value))
	switch {
	case n < 1:
		l.malformed++
	case e == nil || n > l.want[string(key)]:
		// More than the text holds: an input was counted twice.
		l.duplicated++
	case n > e.high:
		for m := e.high + 1; m < n; m++ {
			e.missing[m] = true
			l.gaps++
		}
		e.high = n
		l.seen++
	case e.missing[n]:
		delete(e.missing, n)
		l.gaps--
		l.outOfOrder++
		l.seen++
	default:
		l.duplicated++
	}
}

// lost is how many outputs never came.
func (l *ledger) lost() int64 { return l.total - l.seen }
