package demo

import (
	"encoding/binary"
	"testing"
)

// entered returns a ledger of a text with three times "a" and twice "b", after
// these outputs; each is a word and its count.
func entered(outputs ...output) *ledger {
	l := newLedger(map[string]int64{"a": 3, "b": 2})
	for _, o := range outputs {
		l.add([]byte(o.word), binary.BigEndian.AppendUint64(nil, uint64(o.n)))
	}
	return l
}

type output struct {
	word string
	n    int64
}

func TestLedgerNoticesWhatIsWrong(t *testing.T) {
	type verdict struct{ lost, duplicated, outOfOrder, malformed int64 }
	for _, tc := range []struct {
		name    string
		outputs []output
		want    verdict
	}{
		{"nothing is wrong", []output{{"a", 1}, {"b", 1}, {"a", 2}, {"b", 2}, {"a", 3}}, verdict{}},
		{"the last one lost", []output{{"a", 1}, {"b", 1}, {"a", 2}, {"b", 2}}, verdict{lost: 1}},
		{"one in the middle lost", []output{{"a", 1}, {"b", 1}, {"a", 3}, {"b", 2}}, verdict{lost: 1}},
		{"a word lost", []output{{"a", 1}, {"a", 2}, {"a", 3}}, verdict{lost: 2}},
		{"everything lost", nil, verdict{lost: 5}},
		{"one twice in a row", []output{{"a", 1}, {"a", 1}, {"b", 1}, {"a", 2}, {"b", 2}, {"a", 3}}, verdict{duplicated: 1}},
		{"an epoch replayed", []output{{"a", 1}, {"b", 1}, {"a", 2}, {"b", 1}, {"a", 2}, {"b", 2}, {"a", 3}}, verdict{duplicated: 2}},
		{"an input counted twice", []output{{"a", 1}, {"b", 1}, {"a", 2}, {"b", 2}, {"a", 3}, {"a", 4}}, verdict{duplicated: 1}},
		{"a word that is not in the text", []output{{"a", 1}, {"b", 1}, {"a", 2}, {"b", 2}, {"a", 3}, {"c", 1}}, verdict{duplicated: 1}},
		{"two swapped", []output{{"a", 2}, {"a", 1}, {"b", 1}, {"b", 2}, {"a", 3}}, verdict{outOfOrder: 1}},
		{"swapped and doubled", []output{{"a", 2}, {"a", 1}, {"a", 1}, {"b", 1}, {"b", 2}, {"a", 3}}, verdict{outOfOrder: 1, duplicated: 1}},
		{"one lost and another doubled", []output{{"a", 1}, {"a", 1}, {"b", 1}, {"b", 2}, {"a", 3}}, verdict{lost: 1, duplicated: 1}},
		{"no count at all", []output{{"a", 0}, {"a", 1}, {"b", 1}, {"a", 2}, {"b", 2}, {"a", 3}}, verdict{malformed: 1}},
	} {
		l := entered(tc.outputs...)
		got := verdict{l.lost(), l.duplicated, l.outOfOrder, l.malformed}
		if got != tc.want {
			t.Errorf("%s: %+v, want %+v", tc.name, got, tc.want)
		}
		if good := (Report{Lost: got.lost, Duplicated: got.duplicated, OutOfOrder: got.outOfOrder, Malformed: got.malformed}).Err() == nil; good != (tc.want == verdict{}) {
			t.Errorf("%s: the report says good: %v", tc.name, good)
		}
	}
}

func TestLedgerCountsWhatIsTorn(t *testing.T) {
	l := entered()
	l.add([]byte("a"), []byte{1})
	if l.malformed != 1 || l.seen != 0 {
		t.Errorf("%d malformed, %d seen; want 1 and 0", l.malformed, l.seen)
	}
}

func TestTextIsMadeFromItsSeedAlone(t *testing.T) {
	a, b, c := newText(1), newText(1), newText(2)
	same := true
	for range 100 {
		line := a.line()
		if other := b.line(); other != line {
			t.Fatalf("one seed, two lines: %q and %q", line, other)
		}
		same = same && c.line() == line
	}
	if same {
		t.Error("two seeds, one text")
	}
}
