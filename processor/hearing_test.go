package processor

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
)

// choirHearings are two broadcast streams, the second of which is heard twice.
func choirHearings() []Hearing {
	text := NewCastValues(codec.String)
	return []Hearing{{Operator: "op", Stream: "rules", Values: text}, {Operator: "op", Stream: "rates", Values: NewCastValues(codec.Int64)}, {Operator: "op", Stream: "rules", Values: text}}
}

// newChoir is a keyed stage that hears the streams of choirHearings.
func newChoir(t testing.TB, senders, parallelism int, parts []checkpoint.InFlightData) *notes {
	t.Helper()
	return buildNotes(t, senders, parallelism, nil, parts, choirHearings())
}

// cast sends values to a hearing, each as a number of the stream.
func (n *notes) cast(sender, hearing int, values ...any) {
	for _, v := range values {
		n.casts[sender*len(choirHearings())+hearing](v)
	}
	n.senders[sender].idle()
}

// castsOf decodes the broadcast records of parts.
func castsOf(t testing.TB, parts []checkpoint.InFlightData) (said []string) {
	t.Helper()
	st := NewKeyedStage("stage", func(v note) string { return v.Key }, codec.String)
	for _, h := range choirHearings() {
		st.Hear(h)
	}
	for _, p := range parts {
		if !p.Broadcast() {
			continue
		}
		casts, err := st.castsInFlight(p.InFlight, p.Data)
		if err != nil {
			t.Fatal(err)
		}
		if int64(len(casts)) != p.Records {
			t.Errorf("a part says that it has %d records, and has %d", p.Records, len(casts))
		}
		for _, c := range casts {
			said = append(said, fmt.Sprint(c.to, " ", c.val))
		}
	}
	return said
}

// captured has every subtask take unaligned checkpoint id, with the barrier behind what
// was sent, and returns what is in flight.
func (n *notes) captured(id int64) (parts []checkpoint.InFlightData) {
	n.t.Helper()
	n.unalign(id)
	n.look()
	for _, s := range n.senders {
		s.barrier(id)
	}
	n.look()
	n.freeze()
	acks := n.acks()
	if len(acks) != len(n.runners) {
		n.t.Fatalf("%d acknowledgements, want %d", len(acks), len(n.runners))
	}
	for _, a := range acks {
		parts = append(parts, a.inFlight...)
	}
	return parts
}

// TestBroadcastRecordsInFlightAreHeardOnceByEverySubtask lets subtasks get ahead of each
// other, and restores with other numbers of them: what the subtask has not heard whose
// state is stored is heard by all, before everything else.
func TestBroadcastRecordsInFlightAreHeardOnceByEverySubtask(t *testing.T) {
	for _, scale := range [][2]int{{1, 2}, {3, 7}, {7, 2}} {
		n := newChoir(t, 2, scale[0], nil)
		n.cast(0, 0, "a", "b")
		n.cast(1, 1, int64(5))
		for i := range n.runners {
			if i != 1 { // this one hears nothing before its snapshot
				takeAll(t, n.runners[i])
			}
		}
		n.cast(0, 2, "c")
		for i := 2; i < scale[0]; i++ { // these have heard it all
			takeAll(t, n.runners[i])
		}
		for i := range 24 {
			n.emit(i%2, fmt.Sprintf("key-%d", i), 1)
		}
		n.cast(0, 0, "d")
		parts := n.captured(1)
		if got, want := castsOf(t, parts), []string{"2 c", "0 d"}; !slices.Equal(got, want) {
			t.Fatalf("%v: in flight are %q, want what the first subtask lacks: %q", scale, got, want)
		}

		n = newChoir(t, 1, scale[1], parts)
		n.cast(0, 0, "e")
		for i, r := range n.runners {
			n.log = nil
			takeAll(t, r)
			if want := []string{"rules c", "rules d", "rules e"}; !slices.Equal(n.heard[i], want) {
				t.Errorf("%v: subtask %d heard %q, want %q", scale, i, n.heard[i], want)
			}
			if len(n.log) < 3 || n.log[0] != "rules c" || n.log[1] != "rules d" || n.log[len(n.log)-1] != "rules e" {
				t.Errorf("%v: subtask %d processed %q, want what was broadcast first", scale, i, n.log)
			}
		}
	}
}

// TestBroadcastRecordsInFlightAreInFlightOnceMore cuts a subtask in the midst of the
// broadcast records that it was restored with.
func TestBroadcastRecordsInFlightAreInFlightOnceMore(t *testing.T) {
	n := newChoir(t, 1, 2, nil)
	n.cast(0, 0, "a", "b", "c")
	n.emit(0, "k", 1)
	parts := n.captured(1)

	n = newChoir(t, 1, 2, parts)
	n.cast(0, 1, int64(7))
	n.between = func() {
		if len(n.heard[0]) == 1 {
			n.between = nil
			n.unalign(2)
			n.senders[0].barrier(2)
		}
	}
	n.all()
	n.freeze()
	parts = nil
	for _, a := range n.acks() {
		parts = append(parts, a.inFlight...)
	}
	if got, want := castsOf(t, parts), []string{"0 b", "0 c", "1 7"}; !slices.Equal(got, want) {
		t.Fatalf("in flight are %q, want %q", got, want)
	}
	for i, heard := range n.heard {
		if want := []string{"rules a", "rules b", "rules c", "rates 7"}; !slices.Equal(heard, want) {
			t.Errorf("subtask %d heard %q, want %q", i, heard, want)
		}
	}
}

// TestS30_GoldenBroadcastRecordsInFlightStayReadable reads what an earlier build captured.
func TestS30_GoldenBroadcastRecordsInFlightStayReadable(t *testing.T) {
	const golden = "testdata/broadcast-v5.bin"
	raw := &kgo.Record{Topic: "in", Partition: 3, Offset: 77, LeaderEpoch: 5, Timestamp: time.UnixMilli(1234), Key: []byte("k"), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("x")}}}
	casts := []cast{{raw: raw, at: 5, to: 1, val: int64(9)}, {raw: raw, at: noWatermark, to: 0, val: "a"}, {raw: timerRecord("op", time.UnixMilli(99)), at: 99, to: 2, val: "b"}}
	var w castWriter
	if err := w.add(choirHearings(), casts); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(golden)
	if *update && os.IsNotExist(err) {
		b, err = w.buf, os.WriteFile(golden, w.buf, 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	st := NewKeyedStage("stage", func(v note) string { return v.Key }, codec.String)
	for _, h := range choirHearings() {
		st.Hear(h)
	}
	got, err := st.castsInFlight(w.part("stage", choirHearings()).InFlight, b)
	if err != nil || len(got) != len(casts) {
		t.Fatalf("%+v, %v", got, err)
	}
	for i, c := range got {
		if want := casts[i]; c.to != want.to || c.val != want.val || c.at != want.at || !sameRecord(c.raw, want.raw) {
			t.Errorf("got %+v, want %+v", c, want)
		}
	}
	for n := 1; n < len(b); n++ {
		if got, err := st.castsInFlight(w.part("stage", choirHearings()).InFlight, b[:n]); err == nil && len(got) == len(casts) {
			t.Errorf("%d of %d bytes were read as the whole", n, len(b))
		}
	}
}

// TestBroadcastRecordsNobodyCanHearAreRefused restores into stages that hear other things.
func TestBroadcastRecordsNobodyCanHearAreRefused(t *testing.T) {
	n := newChoir(t, 1, 1, nil)
	n.cast(0, 0, "a")
	n.cast(0, 2, "b")
	parts := n.captured(1)
	all := choirHearings()
	for _, c := range []struct {
		name     string
		hearings []Hearing
		want     string // "": it is restored
	}{
		{"reordered", []Hearing{all[1], all[0], all[2]}, ""},
		{"heard once", all[:2], `operator "op": checkpoint 1 holds broadcast records of operator "rules" in flight to it, and it does not hear them any more`},
		{"no codec", []Hearing{all[0], all[1], {Operator: "op", Stream: "rules"}}, "pass it to weir.Broadcast as weir.ValueCodec"},
		{"another codec", []Hearing{{Operator: "op", Stream: "rules", Values: NewCastValues(codec.Bytes)}, all[1], all[2]}, `written by codec "string", the topology uses "bytes"`},
		{"another operator", []Hearing{{Operator: "other", Stream: "rules", Values: all[0].Values}}, `weir.AllowDroppedState("op")`},
	} {
		st := NewKeyedStage("stage", func(v note) string { return v.Key }, codec.String)
		st.InFlight(codec.JSON[note]())
		for _, h := range c.hearings {
			st.Hear(h)
		}
		inc := newIncarnation(t.Context(), &Config{Parallelism: 1, KeyGroups: noteKeyGroups}, &Plan{}, nil, nil)
		inc.base = checkpoint.Manifest{Checkpoint: 1}
		for _, p := range parts {
			inc.base.InFlight = append(inc.base.InFlight, p.InFlight)
		}
		err := st.checkInFlight(inc)
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%s: got %v, want %q", c.name, err, c.want)
		}
	}
}

// FuzzBroadcastRecordsInFlight reads any bytes: what can be read is written as it was read.
func FuzzBroadcastRecordsInFlight(f *testing.F) {
	var w castWriter
	raw := &kgo.Record{Topic: "in", Key: []byte("k"), Timestamp: time.UnixMilli(5)}
	if err := w.add(choirHearings(), []cast{{raw: raw, at: 5, to: 1, val: int64(3)}, {raw: raw, at: noWatermark, val: "a"}}); err != nil {
		f.Fatal(err)
	}
	f.Add(w.buf)
	f.Add([]byte{})
	f.Add([]byte{1, 0})
	st := NewKeyedStage("stage", func(v note) string { return v.Key }, codec.String)
	var listed checkpoint.InFlight
	for _, h := range choirHearings() {
		st.Hear(h)
		listed.Heard = append(listed.Heard, checkpoint.Heard{Operator: h.Operator, Stream: h.Stream, Codec: h.Values.Codec, Version: h.Values.Version})
	}
	listed.Heard[2].Nth = 1
	f.Fuzz(func(t *testing.T, b []byte) {
		casts, err := st.castsInFlight(listed, b)
		if err != nil {
			return
		}
		var w castWriter
		if err := w.add(choirHearings(), casts); err != nil {
			t.Fatal(err)
		}
		again, err := st.castsInFlight(w.part("stage", choirHearings()).InFlight, w.buf)
		if err != nil || len(again) != len(casts) {
			t.Fatalf("%d records of %d, %v", len(again), len(casts), err)
		}
		for i, c := range again {
			if was := casts[i]; c.to != was.to || c.val != was.val || c.at != was.at || !sameRecord(c.raw, was.raw) {
				t.Fatalf("record %d is %+v, was %+v", i, c, was)
			}
		}
	})
}
