package docs_test

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/weirtest"
	"github.com/weirstream/weir/weirtest/conformance"
)

func TestMissed(t *testing.T) {
	h := weirtest.New(t, missed, weirtest.Partitions(2))
	visits, out := weirtest.In[Visit](h, "visits"), weirtest.Out[string](h, "missed-out")
	noon := weirtest.Begin.Add(12 * time.Hour)

	visits.Send(Visit{"ann", noon})
	if set := weirtest.Timers(h, "missed", "ann"); len(set) != 1 || !set[0].At.Equal(noon.Add(quiet)) {
		t.Errorf("timers of ann: %v", set)
	}
	visits.Send(Visit{"bob", noon.Add(30 * time.Hour)})
	out.Want() // the other partition holds time back
	h.Restart(weir.Parallelism(3))
	visits.Partition(1).Send(Visit{"eve", noon.Add(30 * time.Hour)})
	out.Want("ann was not seen for a day until 2026-01-02T12:00:00Z")

	visits.Watermark(noon.Add(54 * time.Hour)) // without a record
	out.WantNext("ann was not seen for a day until 2026-01-02T12:00:00Z",
		"bob was not seen for a day until 2026-01-03T18:00:00Z", "eve was not seen for a day until 2026-01-03T18:00:00Z")
}

func TestUndecodableOrdersAreDeadLettered(t *testing.T) {
	h := weirtest.New(t, shop, weir.DeadLetters("orders-bad"))
	weirtest.In[Order](h, "web").Send(Order{ID: "1", Cents: 5}) // of no customer
	if dead := h.DeadLetters(); len(dead) != 1 {
		t.Errorf("%d dead letters", len(dead))
	}
}

func TestAnErrorStopsTheApp(t *testing.T) {
	h := weirtest.New(t, missed)
	visits := weirtest.In[Visit](h, "visits")
	err := h.Fails(func() {
		visits.SendRecords(&kgo.Record{Value: []byte("no visit")})
	})
	var he *weir.HandlerError
	if !errors.As(err, &he) || he.Operator != "visits" || he.Offset != 0 {
		t.Errorf("the error is %v", err)
	}
	h.Start(weir.SkipRecords("visits/0@0"))
}

func TestWordcountOnABroker(t *testing.T) {
	b := weirtest.StartBroker(t, 2, "lines", "counts")
	weirtest.ProduceValues(b, "lines", codec.String, "to be or not", "to be")
	run := b.Start(wordcount)
	run.UntilRecords(2)
	run.Kill() // as the end of its process would
	weirtest.ProduceValues(b, "lines", codec.String, "be")
	b.Drain(wordcount) // goes on from the last checkpoint, and ends with the input

	got := map[string][]int64{}
	for _, count := range weirtest.Read(b, "counts", codec.String, codec.Int64) {
		got[count.Key] = append(got[count.Key], count.Value)
	}
	if fmt.Sprint(got["be"]) != "[1 2 3]" || len(got) != 4 {
		t.Errorf("counts: %v", got)
	}
}

// celsius is a temperature in thousandths of a degree.
type celsius int32

// temperatures is a codec of our own: it encodes a temperature so that bytes sort as
// temperatures do.
var temperatures = codec.Func("celsius", 1,
	func(dst []byte, v celsius) ([]byte, error) {
		return binary.BigEndian.AppendUint32(dst, uint32(v)^1<<31), nil
	},
	func(b []byte) (celsius, error) {
		if len(b) != 4 {
			return 0, fmt.Errorf("a temperature has 4 bytes, not %d", len(b))
		}
		return celsius(binary.BigEndian.Uint32(b) ^ 1<<31), nil
	})

func TestTemperaturesConform(t *testing.T) {
	conformance.Codec[celsius]{
		Codec:  temperatures,
		Values: []celsius{0, 1, -1, 36_600, -273_150},
		Key:    true, Compare: cmp.Compare[celsius],
	}.Run(t)
}
