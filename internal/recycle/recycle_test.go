package recycle

import (
	"bytes"
	"context"
	"fmt"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"
)

// fill takes a whole slab of records whose key says which they are.
func fill(s *Source, name string) []*kgo.Record {
	var rs []*kgo.Record
	for i := range slabRecords {
		r, b := s.Record(fmt.Appendf(nil, "%s %d %s", name, i, bytes.Repeat([]byte{'x'}, 10*i)))
		r.Topic, r.Key = name, b
		rs = append(rs, r)
	}
	return rs
}

func intact(t *testing.T, rs []*kgo.Record, name string) {
	t.Helper()
	for i, r := range rs {
		if want := fmt.Sprintf("%s %d ", name, i); r.Topic != name || !bytes.HasPrefix(r.Key, []byte(want)) || len(r.Key) != len(want)+10*i {
			t.Fatalf("record %d of %s is of topic %q with key %.20q", i, name, r.Topic, r.Key)
		}
	}
}

func TestNothingIsReusedBeforeAllOfItsSlabIsDone(t *testing.T) {
	var s Source
	first := fill(&s, "first")
	for _, r := range first[1:] {
		Done(r)
	}
	intact(t, first, "first")
	second := fill(&s, "second")
	intact(t, first, "first")
	Done(first[0])
	if first[0].Topic != "" || first[5].Key != nil {
		t.Error("a slab all of whose records are done keeps what they refer to")
	}
	third := fill(&s, "third")
	intact(t, second, "second")
	intact(t, third, "third")
}

func TestASlabThatIsDoneBelongsToOneSource(t *testing.T) {
	// As often as it takes until the pool gives a slab to another source.
	for range 50 {
		var a, b Source
		for _, r := range fill(&a, "old") {
			Done(r)
		}
		half := func(s *Source, name string) (rs []*kgo.Record) {
			for i := range slabRecords / 2 {
				r, k := s.Record(fmt.Appendf(nil, "%s %d %s", name, i, bytes.Repeat([]byte{'x'}, 10*i)))
				r.Topic, r.Key = name, k
				rs = append(rs, r)
			}
			return rs
		}
		ofB, ofA := half(&b, "b"), half(&a, "a")
		intact(t, ofB, "b")
		intact(t, ofA, "a")
		if ofA[0].Context == ofB[0].Context {
			t.Fatal("two sources hand out records of one slab")
		}
	}
}

func TestACopyOfNothingIsEmptyNotNil(t *testing.T) {
	var s Source
	if _, b := s.Record([]byte{}); b == nil || len(b) > 0 {
		t.Errorf("the copy of no bytes is %#v", b)
	}
}

func TestRecordsOfOthersAreLeftAlone(t *testing.T) {
	r := &kgo.Record{Topic: "t"}
	Done(r)
	r.Context = context.Background()
	Done(r)
	if r.Topic != "t" {
		t.Error("a record that no source gave was cleared")
	}
}

func TestReuseAllocatesLittle(t *testing.T) {
	var s Source
	b := make([]byte, 30)
	rs := make([]*kgo.Record, slabRecords)
	round := func() {
		for i := range rs {
			rs[i], _ = s.Record(b)
		}
		for _, r := range rs {
			Done(r)
		}
	}
	round()
	// The pool may be emptied meanwhile, and under the race detector it loses some.
	if n := testing.AllocsPerRun(100, round); n > 3 {
		t.Errorf("%d records make %v allocations", slabRecords, n)
	}
}
