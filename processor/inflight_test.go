package processor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"pgregory.net/rapid"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/state"
)

// note is a value on the edges of these tests.
type note struct {
	Key string
	N   int
}

// notes is a keyed stage behind several senders, run by the test's goroutine.
type notes struct {
	t       testing.TB
	inc     *incarnation
	senders []*Subtask
	send    []func(note)
	runners []*keyedRunner[string, note]
	log     []string // "key number", with "late" if it was
	between func()   // called after each value, if set

	casts []func(any) // by sender; nil: the stage hears no broadcast stream
	heard [][]string  // values of the broadcast stream, by subtask
}

const noteKeyGroups = 16

func newNotes(t testing.TB, senders, parallelism int, base *checkpoint.Manifest, parts []checkpoint.InFlightData) *notes {
	t.Helper()
	return buildNotes(t, senders, parallelism, base, parts, nil)
}

// buildNotes is newNotes, with a stage that hears broadcast streams.
func buildNotes(t testing.TB, senders, parallelism int, base *checkpoint.Manifest, parts []checkpoint.InFlightData, hearings []Hearing) *notes {
	t.Helper()
	n := &notes{t: t, heard: make([][]string, parallelism)}
	n.inc = newIncarnation(t.Context(), &Config{Parallelism: parallelism, KeyGroups: noteKeyGroups, Unaligned: true}, &Plan{}, nil, nil)
	n.inc.gate = newGate(1, 0)
	n.inc.states = []checkpoint.StateInfo{{ID: 1, Operator: "op", Name: "n"}}
	if base != nil {
		n.inc.base = *base
	}
	st := NewKeyedStage("stage", func(v note) string { return v.Key }, codec.String)
	st.InFlight(codec.JSON[note]())
	for _, h := range hearings {
		st.Hear(h)
	}
	st.Add(KeyedOperator[string, note]{ID: "op", Build: func(s *Subtask, ks *state.Keyspace[string]) (*state.Scope, func(note)) {
		scope, op := state.NewScope("op"), s.Operator("op")
		for i, h := range hearings {
			op.Hears(i, func(v any) error {
				n.heard[s.Index()] = append(n.heard[s.Index()], fmt.Sprint(h.Stream, " ", v))
				n.log = append(n.log, fmt.Sprint(h.Stream, " ", v))
				if n.between != nil {
					n.between()
				}
				return nil
			})
		}
		count := state.Value(setup{scope}, "n", codec.Int64)
		return scope, func(v note) {
			outer := op.Enter()
			count.Set(count.Get() + 1)
			late := ""
			if wm, ok := s.Watermark(); ok && s.at != noWatermark && s.at <= wm {
				late = " late"
			}
			n.log = append(n.log, fmt.Sprintf("%s %d%s", v.Key, v.N, late))
			op.Leave(outer)
			if n.between != nil {
				n.between()
			}
		}
	}})
	for i := range senders {
		s := n.inc.newSubtask(SourcesID, i)
		s.raw = &kgo.Record{Topic: "in", Partition: int32(i)}
		n.senders = append(n.senders, s)
		n.send = append(n.send, st.Send(s))
		for h := range hearings {
			n.casts = append(n.casts, st.Cast(s, h))
		}
	}
	rs, err := st.Build(n.inc)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rs {
		n.runners = append(n.runners, r.(*keyedRunner[string, note]))
	}
	for _, p := range parts {
		for _, r := range n.runners {
			if err := r.restoreInFlight(p.InFlight, p.Data); err != nil {
				t.Fatal(err)
			}
		}
	}
	return n
}

// unalign says that checkpoint id is unaligned.
func (n *notes) unalign(id int64) {
	n.inc.unaligned.Store(id)
	n.inc.callAttention()
}

// emit sends notes of a key from a sender, and hands them over.
func (n *notes) emit(sender int, key string, numbers ...int) {
	for _, i := range numbers {
		n.send[sender](note{key, i})
	}
	n.senders[sender].idle()
}

// A subtask that never comes to the end of its queue keeps no more of it than there is.
func TestTheQueueOfASubtaskThatIsNeverDoneDoesNotGrow(t *testing.T) {
	n := newNotes(t, 1, 1, nil, nil)
	r := n.runners[0]
	n.emit(0, "a", 1)
	n.emit(0, "a", 2)
	for id := int64(1); id <= 1000; id++ {
		n.emit(0, "a", 3)
		n.senders[0].barrier(id)
		for range 2 {
			bt, err := r.next()
			if err == nil && bt != nil {
				err = r.take(bt)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
		n.freeze()
		n.acks()
	}
	if left := len(r.queue) - r.head; left == 0 || len(r.queue) > 100 {
		t.Errorf("the queue has %d places, and %d batches", len(r.queue), left)
	}
}

// look makes every subtask look at what it is told, without processing anything.
func (n *notes) look() {
	n.t.Helper()
	for _, r := range n.runners {
		if err := r.settle(); err != nil {
			n.t.Fatal(err)
		}
	}
}

// step processes the next batch of each subtask.
func (n *notes) step() {
	n.t.Helper()
	for _, r := range n.runners {
		bt, err := r.next()
		if err == nil && bt != nil {
			err = r.take(bt)
		}
		if err != nil {
			n.t.Fatal(err)
		}
	}
}

func (n *notes) all() {
	n.t.Helper()
	for _, r := range n.runners {
		takeAll(n.t, r)
	}
}

// freeze lets frozen state be encoded.
func (n *notes) freeze() {
	n.t.Helper()
	for _, r := range n.runners {
		if r.freeze.encoding() {
			if err := r.encode(time.Hour); err != nil {
				n.t.Fatal(err)
			}
		}
	}
}

// acks returns the acknowledgements that came.
func (n *notes) acks() (acks []ack) {
	for {
		select {
		case e := <-n.inc.events:
			acks = append(acks, e.(ack))
		default:
			return acks
		}
	}
}

func (n *notes) wantLog(want ...string) {
	n.t.Helper()
	if !slices.Equal(n.log, want) {
		n.t.Fatalf("processed %q, want %q", n.log, want)
	}
	n.log = nil
}

// inFlightOf decodes what was captured: "key number" of each record.
func inFlightOf(t testing.TB, parts []checkpoint.InFlightData) (records []string) {
	t.Helper()
	for _, p := range parts {
		if p.Broadcast() {
			continue
		}
		r := flightReader[string, note]{keys: codec.String, values: codec.JSON[note](), version: p.ValueVersion, keyGroups: noteKeyGroups, sourceReader: sourceReader{buf: p.Data}}
		batches, err := r.all(func(int) bool { return true })
		if err != nil {
			t.Fatal(err)
		}
		count := 0
		for _, b := range batches {
			for _, it := range b.items {
				records = append(records, fmt.Sprintf("%s %d", it.val.Key, it.val.N))
				if it.key != it.val.Key || keygroup.Of([]byte(it.key), noteKeyGroups) != int(it.kg) {
					t.Errorf("%v has the key %q in key-group %d", it.val, it.key, it.kg)
				}
			}
			count += len(b.items)
		}
		if int64(count) != p.Records {
			t.Errorf("a part says that it has %d records, and has %d", p.Records, count)
		}
	}
	return records
}

// oneAck expects one acknowledgement of checkpoint id, with such records in flight.
func (n *notes) oneAck(id int64, inFlight ...string) ack {
	n.t.Helper()
	acks := n.acks()
	if len(acks) != 1 || acks[0].id != id || acks[0].abandoned {
		n.t.Fatalf("got acknowledgements %+v, want one of %d", acks, id)
	}
	if got := inFlightOf(n.t, acks[0].inFlight); !slices.Equal(got, inFlight) {
		n.t.Fatalf("in flight are %q, want %q", got, inFlight)
	}
	return acks[0]
}

func TestLateRecordsArePartOfAnUnalignedCheckpoint(t *testing.T) {
	n := newNotes(t, 2, 1, nil, nil)
	n.emit(0, "a", 1, 2)
	n.step()
	n.wantLog("a 1", "a 2")
	n.emit(0, "a", 3)
	n.emit(1, "b", 1)
	n.unalign(1)
	n.look()
	n.freeze()
	if acks := n.acks(); len(acks) != 0 {
		t.Fatalf("acknowledged before the barriers came: %+v", acks)
	}
	n.senders[0].barrier(1) // right behind what was queued
	n.emit(0, "a", 4)       // of the next epoch
	n.emit(1, "b", 2, 3)    // late: the barrier of this input comes behind it
	n.senders[1].barrier(1)
	n.emit(1, "b", 4)
	n.look()
	a := n.oneAck(1, "a 3", "b 1", "b 2", "b 3")
	if !a.unaligned || !a.hasRun || a.run.Len() != 1 {
		t.Errorf("got %+v, want the state of one key", a)
	}
	n.wantLog() // nothing was processed since
	n.all()
	n.wantLog("a 3", "b 1", "a 4", "b 2", "b 3", "b 4")
}

func TestUnalignedCutFallsBetweenTwoRecordsOfABatch(t *testing.T) {
	n := newNotes(t, 1, 1, nil, nil)
	n.emit(0, "a", 1, 2, 3, 4)
	n.senders[0].barrier(1)
	n.between = func() {
		if len(n.log) == 2 {
			n.unalign(1)
		}
	}
	n.all()
	n.freeze()
	n.oneAck(1, "a 3", "a 4")
	n.wantLog("a 1", "a 2", "a 3", "a 4")
}

func TestPanicOfACodecOfWhatIsInFlightIsAnErrorThatNamesTheOperator(t *testing.T) {
	refuse := func([]byte, any) ([]byte, error) { panic("it can't be written") }
	broadcast := []Hearing{{Operator: "op", Stream: "rules", Values: &CastValues{Codec: "moody", Version: 1, Append: refuse}}}
	for name, emit := range map[string]func(n *notes){
		"a record":           func(n *notes) { n.emit(0, "a", 1) },
		"a broadcast record": func(n *notes) { n.casts[0]("rule"); n.senders[0].idle() },
	} {
		t.Run(name, func(t *testing.T) {
			n := buildNotes(t, 1, 1, nil, nil, broadcast)
			r := n.runners[0]
			r.stage.InFlight(codec.Func("moody", 1, func(b []byte, v note) ([]byte, error) { return refuse(b, v) }, func([]byte) (v note, err error) { return v, nil }))
			emit(n)
			n.unalign(1)
			n.senders[0].barrier(1)
			he, ok := errors.AsType[*HandlerError](r.settle())
			if !ok || !he.Panic || he.Operator != "stage" || he.Doing != "storing a record in flight to it with checkpoint 1" || !strings.Contains(he.Stack, "inflight_test.go") {
				t.Errorf("got %v", he)
			}
		})
	}
}

func TestAlignmentThatTurnsUnalignedReleasesWhatItHeld(t *testing.T) {
	n := newNotes(t, 2, 1, nil, nil)
	n.emit(0, "a", 1)
	n.senders[0].barrier(1)
	n.emit(0, "a", 2)
	n.all()
	n.wantLog("a 1") // input 0 is held
	n.emit(1, "b", 1)
	n.unalign(1)
	n.look()
	n.senders[1].barrier(1)
	n.look()
	n.freeze()
	n.oneAck(1, "b 1") // what lies behind the barrier of input 0 is of the next epoch
	n.all()
	n.wantLog("a 2", "b 1")
	// The next one is aligned, because nobody says otherwise.
	n.senders[0].barrier(2)
	n.emit(0, "a", 3)
	n.all()
	n.wantLog()
	n.senders[1].barrier(2)
	n.all()
	n.freeze()
	if a := n.oneAck(2); a.unaligned {
		t.Error("the aligned checkpoint says that it was unaligned")
	}
	n.wantLog("a 3")
}

func TestUnalignedCheckpointReplacesOneThatWasBeingAligned(t *testing.T) {
	n := newNotes(t, 2, 1, nil, nil)
	n.senders[0].barrier(1)
	n.emit(0, "a", 1)
	n.all()
	n.wantLog() // held for 1, which is given up
	n.inc.givenUp.Store(1)
	n.unalign(2)
	n.senders[0].barrier(2)
	n.senders[1].barrier(1)
	n.senders[1].barrier(2)
	n.look()
	n.freeze()
	n.oneAck(2, "a 1")
	n.all()
	n.wantLog("a 1")
}

func TestCaptureOfACheckpointThatWasGivenUpIsDroppedAndItsStateIsNot(t *testing.T) {
	n := newNotes(t, 2, 1, nil, nil)
	n.emit(0, "a", 1)
	n.all()
	n.emit(0, "a", 2)
	n.unalign(1)
	n.look()
	n.freeze()
	n.inc.givenUp.Store(1)
	n.inc.callAttention()
	n.look()
	acks := n.acks()
	if len(acks) != 1 || !acks[0].abandoned || !acks[0].hasRun || len(acks[0].inFlight) != 0 {
		t.Fatalf("got %+v, want the state alone", acks)
	}
	n.senders[0].barrier(1)
	n.all()
	n.senders[1].barrier(1)
	n.all()
	n.wantLog("a 1", "a 2")
	if acks := n.acks(); len(acks) != 0 {
		t.Fatalf("barriers of a checkpoint that was given up were acknowledged: %+v", acks)
	}
	n.emit(1, "b", 1)
	n.unalign(2)
	n.look()
	n.senders[0].barrier(2)
	n.senders[1].barrier(2)
	n.look()
	n.freeze()
	n.oneAck(2, "b 1")
}

func TestASenderThatSkippedTheCheckpointEndsItsCapture(t *testing.T) {
	n := newNotes(t, 2, 1, nil, nil)
	n.unalign(1)
	n.look()
	n.senders[0].barrier(1)
	n.emit(1, "b", 1)
	n.senders[1].barrier(2) // it heard of 2 before it had cut 1
	n.emit(1, "b", 2)
	n.look()
	n.freeze()
	if acks := n.acks(); len(acks) != 1 || !acks[0].abandoned {
		t.Fatalf("got %+v, want the state of 1 alone", acks)
	}
	n.all()
	n.wantLog("b 1") // aligning 2
	n.senders[0].barrier(2)
	n.all()
	n.freeze()
	n.oneAck(2)
	n.wantLog("b 2")
}

// capturedNotes returns what is in flight of three keys, none of which was processed.
func capturedNotes(t *testing.T, parallelism int) (keys []string, parts []checkpoint.InFlightData) {
	n := newNotes(t, 2, parallelism, nil, nil)
	for i := range 24 {
		key := fmt.Sprintf("key-%d", i)
		keys = append(keys, key)
		n.emit(i%2, key, 1, 2)
	}
	n.unalign(1)
	n.look()
	n.senders[0].barrier(1)
	n.senders[1].barrier(1)
	n.look()
	n.freeze()
	for _, a := range n.acks() {
		parts = append(parts, a.inFlight...)
	}
	n.wantLog()
	return keys, parts
}

func TestWhatWasInFlightIsProcessedBeforeNewInput(t *testing.T) {
	keys, parts := capturedNotes(t, 1)
	n := newNotes(t, 2, 1, nil, parts)
	var want []string
	for i, key := range keys {
		n.emit(i%2, key, 3)
	}
	for _, number := range []int{1, 3} {
		for _, key := range keys {
			want = append(want, fmt.Sprint(key, " ", number))
			if number == 1 {
				want = append(want, fmt.Sprint(key, " ", 2))
			}
		}
	}
	n.all()
	n.wantLog(want...)
}

func TestWhatWasInFlightGoesToTheOwnerOfItsKeyGroup(t *testing.T) {
	for _, scale := range [][2]int{{1, 3}, {3, 2}, {2, 5}, {16, 1}} {
		keys, parts := capturedNotes(t, scale[0])
		n := newNotes(t, 1, scale[1], nil, parts)
		var got []string
		for i, r := range n.runners {
			takeAll(t, r)
			for _, line := range n.log {
				key, _, _ := strings.Cut(line, " ")
				if owner := keygroup.Subtask(keygroup.Of([]byte(key), noteKeyGroups), scale[1], noteKeyGroups); owner != i {
					t.Errorf("%v: %s was processed by subtask %d, its owner is %d", scale, line, i, owner)
				}
			}
			got = append(got, n.log...)
			n.log = nil
		}
		var want []string
		for _, key := range keys {
			want = append(want, key+" 1", key+" 2")
		}
		slices.Sort(got)
		slices.Sort(want)
		if !slices.Equal(got, want) {
			t.Errorf("%v: processed %q, want %q", scale, got, want)
		}
	}
}

func TestWhatIsLeftOfARestoreIsInFlightOnceMoreInFrontOfAllElse(t *testing.T) {
	n := newNotes(t, 1, 1, nil, nil)
	n.emit(0, "a", 1, 2)
	n.emit(0, "b", 1)
	n.unalign(1)
	n.senders[0].barrier(1)
	n.look()
	n.freeze()
	parts := n.oneAck(1, "a 1", "a 2", "b 1").inFlight

	n = newNotes(t, 1, 1, nil, parts)
	n.emit(0, "a", 3)
	n.between = func() {
		if len(n.log) == 1 {
			n.unalign(2)
			n.senders[0].barrier(2)
		}
	}
	n.step()
	n.wantLog("a 1", "a 2") // the cut fell in between
	n.freeze()
	parts = n.oneAck(2, "a 2", "b 1", "a 3").inFlight

	n = newNotes(t, 1, 2, nil, parts)
	n.emit(0, "a", 4)
	n.all()
	slices.SortStableFunc(n.log, func(x, y string) int { return strings.Compare(x[:1], y[:1]) })
	n.wantLog("a 2", "a 3", "a 4", "b 1")
}

func TestTimeOfWhatWasInFlightGoesOnWhereItStood(t *testing.T) {
	at := func(n *notes, sender int, ms int64, key string, number int) {
		n.senders[sender].at = ms
		n.emit(sender, key, number)
	}
	tell := func(n *notes, sender int, ms int64) {
		n.senders[sender].time(mark{watermark: ms})
		n.senders[sender].idle()
	}
	n := newNotes(t, 2, 1, nil, nil)
	tell(n, 0, 10)
	tell(n, 1, 10)
	n.all()
	at(n, 0, 15, "a", 1)
	tell(n, 0, 50)
	at(n, 1, 20, "a", 2) // not late: input 1 is at 10
	tell(n, 1, 30)
	at(n, 0, 25, "a", 3) // late: both are past 25
	at(n, 0, 35, "a", 4) // not late: input 1 is at 30
	n.unalign(1)
	n.senders[0].barrier(1)
	n.senders[1].barrier(1)
	n.look()
	n.freeze()
	parts := n.oneAck(1, "a 1", "a 2", "a 3", "a 4").inFlight
	want := []string{"a 1", "a 2", "a 3 late", "a 4"}
	n.all()
	n.wantLog(want...)

	base := &checkpoint.Manifest{EventTime: checkpoint.EventTime{Stages: map[string]int64{"stage": 10}}}
	for _, p := range parts {
		base.InFlight = append(base.InFlight, p.InFlight)
	}
	n = newNotes(t, 2, 1, base, parts)
	if wm := n.runners[0].now.watermark; wm != 10 {
		t.Errorf("the subtask begins at %d, want 10", wm)
	}
	n.all()
	n.wantLog(want...)
	if wm := n.runners[0].now.watermark; wm != 30 {
		t.Errorf("the subtask is at %d, want 30", wm)
	}
	// From here on the inputs tell the time.
	tell(n, 0, 40)
	tell(n, 1, 60)
	n.all()
	at(n, 0, 40, "a", 5)
	at(n, 0, 41, "a", 6)
	n.all()
	n.wantLog("a 5 late", "a 6")
}

// What is in flight once more goes on with the time that it went on with before.
func TestTimeOfWhatIsInFlightOnceMoreGoesOnWhereItStood(t *testing.T) {
	n := newNotes(t, 1, 1, nil, nil)
	n.senders[0].time(mark{watermark: 10})
	n.senders[0].idle()
	n.all()
	n.senders[0].at = 60
	n.emit(0, "a", 1)
	n.senders[0].time(mark{watermark: 100})
	n.senders[0].idle()
	n.emit(0, "a", 2)
	var base *checkpoint.Manifest
	var parts []checkpoint.InFlightData
	for id := int64(1); id <= 2; id++ {
		n.unalign(id)
		n.senders[0].barrier(id)
		n.look()
		n.freeze()
		parts = n.oneAck(id, "a 1", "a 2").inFlight
		base = &checkpoint.Manifest{EventTime: checkpoint.EventTime{Stages: map[string]int64{"stage": 10}}}
		for _, p := range parts {
			base.InFlight = append(base.InFlight, p.InFlight)
		}
		n = newNotes(t, 1, 1, base, parts)
	}
	n.all()
	n.wantLog("a 1", "a 2 late")
}

// What was in flight to another subtask, where time stood elsewhere, holds no time back.
func TestTimeOfWhatWasInFlightIsThatOfItsOwnSubtask(t *testing.T) {
	n := newNotes(t, 1, 2, nil, nil)
	n.senders[0].time(mark{watermark: 10})
	n.emit(0, "a", 1)
	n.emit(0, "b", 1)
	n.all()
	n.wantLog("b 1", "a 1") // one on each subtask
	n.senders[0].at = 60
	n.emit(0, "a", 2)
	n.emit(0, "b", 2)
	n.senders[0].time(mark{watermark: 100})
	n.senders[0].idle()
	n.emit(0, "a", 3)
	n.emit(0, "b", 3)
	n.unalign(1)
	n.senders[0].barrier(1)
	n.look()
	n.freeze()
	base := &checkpoint.Manifest{EventTime: checkpoint.EventTime{Stages: map[string]int64{"stage": 10}}}
	var parts []checkpoint.InFlightData
	for _, a := range n.acks() {
		for _, p := range a.inFlight {
			base.InFlight, parts = append(base.InFlight, p.InFlight), append(parts, p)
		}
	}
	want := []string{"b 2", "b 3 late", "a 2", "a 3 late"}
	n.all()
	n.wantLog(want...)

	n = newNotes(t, 1, 2, base, parts)
	n.all()
	n.wantLog(want...)
}

func TestSubtasksBeginAtTheLeastWatermarkOfThoseTheyReplace(t *testing.T) {
	at := func(ms int64) *int64 { return &ms }
	base := &checkpoint.Manifest{
		EventTime: checkpoint.EventTime{Stages: map[string]int64{"stage": 5}},
		InFlight: []checkpoint.InFlight{
			{Stage: "stage", MinKG: 0, MaxKG: 3, Watermark: at(20)},
			{Stage: "stage", MinKG: 4, MaxKG: 7, Watermark: at(10)},
			{Stage: "stage", MinKG: 8, MaxKG: 11, Watermark: at(30)},
			{Stage: "other", MinKG: 0, MaxKG: 15, Watermark: at(1)},
		},
	}
	for _, c := range []struct {
		parallelism int
		want        []int64
	}{
		{4, []int64{20, 10, 30, 5}}, // of the last one nothing is known but the least of all
		{2, []int64{10, 5}},
		{1, []int64{5}},
	} {
		n := newNotes(t, 1, c.parallelism, base, nil)
		var got []int64
		for _, r := range n.runners {
			got = append(got, r.now.watermark)
		}
		if !slices.Equal(got, c.want) {
			t.Errorf("%d subtasks begin at %v, want %v", c.parallelism, got, c.want)
		}
	}
}

func TestEndOfTimeIsNotStored(t *testing.T) {
	n := newNotes(t, 1, 1, nil, nil)
	n.senders[0].time(mark{watermark: 10})
	n.emit(0, "a", 1)
	n.all()
	n.log = nil
	n.senders[0].time(mark{watermark: endOfTime})
	n.emit(0, "a", 2)
	n.unalign(1)
	n.senders[0].barrier(1)
	n.look()
	n.freeze()
	parts := n.oneAck(1, "a 2").inFlight
	r := flightReader[string, note]{keys: codec.String, values: codec.JSON[note](), version: 1, keyGroups: noteKeyGroups, sourceReader: sourceReader{buf: parts[0].Data}}
	batches, err := r.all(func(int) bool { return true })
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range batches {
		if b.time.watermark != 10 {
			t.Errorf("time stands at %d behind a record in flight, want 10", b.time.watermark)
		}
	}
}

// TestBarrierPassesASenderWhoseReceiverTakesNothing fills an edge and sees that a record is
// never cut in two: the sender waits between two records, and there a barrier gets through.
func TestBarrierPassesASenderWhoseReceiverTakesNothing(t *testing.T) {
	n := newNotes(t, 1, 1, nil, nil)
	s := n.senders[0]
	number := 0
	for !s.crowded {
		number++
		n.send[0](note{"a", number})
	}
	if want := batchesInEdge*batchSize + 1; number != want {
		t.Errorf("the edge is full after %d records, want %d", number, want)
	}
	s.notify() // as the loop does for a barrier
	s.refill()
	if !s.crowded {
		t.Fatal("there is room, though nothing was taken")
	}
	n.unalign(1)
	s.barrier(1)
	n.look()
	n.freeze()
	a := n.acks()
	if len(a) != 1 || len(a[0].inFlight) != 1 || a[0].inFlight[0].Records != int64(number) {
		t.Fatalf("got %+v, want one acknowledgement with %d records in flight", a, number)
	}
	n.step() // one batch comes back
	s.refill()
	if s.crowded || s.err != nil {
		t.Errorf("crowded %v, error %v", s.crowded, s.err)
	}
	n.all()
	// What it overdrew is forgotten each time.
	for range 2 * overdraft {
		for !s.crowded {
			number++
			n.send[0](note{"a", number})
		}
		n.all()
		s.refill()
		if s.crowded || s.err != nil {
			t.Fatalf("crowded %v, error %v", s.crowded, s.err)
		}
	}
	s.idle()
	n.all()
	if len(n.log) != number {
		t.Errorf("%d records arrived, want %d", len(n.log), number)
	}
}

// TestBarriersTakeNoRoomFromRecords has a receiver that gives back one batch while barriers
// come. If they took it, records would wait until there are no more barriers.
func TestBarriersTakeNoRoomFromRecords(t *testing.T) {
	n := newNotes(t, 1, 1, nil, nil)
	s := n.senders[0]
	fill := func() (records int) {
		for !s.crowded {
			records++
			n.send[0](note{"a", 1})
		}
		return records
	}
	fill()
	n.step() // one batch comes back
	s.refill()
	if s.crowded {
		t.Fatal("there is no room, though a batch came back")
	}
	s.barrier(1)
	s.barrier(2)
	if got := fill(); got != batchSize+1 {
		t.Errorf("there was room for %d records behind two barriers, want %d", got-1, batchSize)
	}
}

func TestACheckpointThatWasGivenUpIsNotBegunUnaligned(t *testing.T) {
	n := newNotes(t, 2, 1, nil, nil)
	n.senders[0].barrier(1)
	n.emit(0, "a", 1)
	n.inc.givenUp.Store(1)
	n.unalign(1)
	n.all()
	n.wantLog() // held: its barrier is not recalled
	n.senders[1].barrier(1)
	n.all()
	n.freeze()
	if a := n.oneAck(1); a.unaligned {
		t.Error("it turned unaligned after it was given up")
	}
	n.wantLog("a 1")
}

// TestOneRecordFillsBoundedlyManyBatches sends more in the midst of one record than may
// be on the way: then the sender waits after all.
func TestOneRecordFillsBoundedlyManyBatches(t *testing.T) {
	n := newNotes(t, 1, 1, nil, nil)
	ctx, cancel := context.WithCancelCause(n.inc.ctx)
	n.inc.ctx = ctx
	cancel(errors.New("the incarnation ends"))
	const most = (batchesInEdge + overdraft) * batchSize
	sent := 0
	for ; n.senders[0].err == nil && sent < 2*most; sent++ {
		n.send[0](note{"a", sent})
	}
	if sent != most+1 {
		t.Errorf("waited at record %d, want %d", sent, most+1)
	}
	// A barrier doesn't wait even then.
	n.senders[0].err = nil
	n.senders[0].barrier(1)
	if n.senders[0].err != nil {
		t.Errorf("the barrier waited: %v", n.senders[0].err)
	}
}

func TestOutputsOfWhoOwesAnAcknowledgementWaitForNobody(t *testing.T) {
	g := newGate(1, 100)
	o := output{ctx: t.Context(), gate: g, to: produceFunc(func(*kgo.Record) { t.Error("produced before the commit") }), epoch: 1,
		needed: func(int64) bool { return true }}
	o.barrier(1)
	for range 10 {
		o.Produce(&kgo.Record{Value: make([]byte, 50)}) // far more than may wait
	}
	if len(o.held) != 10 {
		t.Errorf("%d outputs are held, want 10", len(o.held))
	}
}

func TestRecordsInFlightKeepEverythingOfTheirInputRecord(t *testing.T) {
	full := &kgo.Record{Topic: "in", Partition: 3, Offset: 77, LeaderEpoch: 5, Timestamp: time.UnixMilli(1234),
		Key: []byte("k"), Value: []byte("v"), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("x")}, {Key: "h", Value: nil}, {Key: "", Value: []byte{}}}}
	bare := &kgo.Record{Topic: "other", Timestamp: time.UnixMilli(-5), LeaderEpoch: -1}
	empty := &kgo.Record{Topic: "in", Key: []byte{}, Value: []byte{}, Timestamp: time.UnixMilli(0)}
	timer := timerRecord("op", time.UnixMilli(99))
	w := flightWriter[string, note]{keys: codec.String, values: codec.JSON[note]()}
	items := []item[string, note]{
		{raw: full, key: "a", val: note{"a", 1}, at: 5}, {raw: full, key: "b", val: note{"b", 2}, at: noWatermark},
		{raw: bare, key: "", val: note{}, at: -1}, {raw: empty, key: "c", val: note{"c", 3}, at: 0}, {raw: timer, key: "a", val: note{"a", 4}, at: 99},
	}
	for i := range items {
		items[i].kg = uint16(keygroup.Of([]byte(items[i].key), noteKeyGroups))
	}
	marks := []mark{{watermark: 7}, {watermark: noWatermark, idle: true}}
	if err := errors.Join(w.batch(items[:2], marks[0]), w.batch(items[2:], marks[1])); err != nil {
		t.Fatal(err)
	}
	r := flightReader[string, note]{keys: codec.String, values: codec.JSON[note](), version: 1, keyGroups: noteKeyGroups, sourceReader: sourceReader{buf: w.buf}}
	batches, err := r.all(func(int) bool { return true })
	if err != nil || len(batches) != 2 {
		t.Fatalf("%d batches, %v", len(batches), err)
	}
	var got []item[string, note]
	for i, b := range batches {
		if b.time != marks[i] {
			t.Errorf("batch %d is at %+v, want %+v", i, b.time, marks[i])
		}
		got = append(got, b.items...)
	}
	for i, it := range got {
		want := items[i]
		if it.key != want.key || it.val != want.val || it.at != want.at || it.kg != want.kg {
			t.Errorf("got %+v, want %+v", it, want)
		}
		if !sameRecord(it.raw, want.raw) {
			t.Errorf("got record %+v, want %+v", it.raw, want.raw)
		}
	}
	if got[0].raw != got[1].raw {
		t.Error("two values of one record have two records")
	}
	if op, ok := timerOf(got[4].raw); !ok || op != "op" {
		t.Errorf("the record of a timer is that of %q, %v", op, ok)
	}
}

var update = flag.Bool("update", false, "write golden files that are missing")

// TestS30_GoldenRecordsInFlightStayReadable reads what an earlier build captured.
func TestS30_GoldenRecordsInFlightStayReadable(t *testing.T) {
	const golden = "testdata/inflight-v4.bin"
	raw := &kgo.Record{Topic: "in", Partition: 3, Offset: 77, LeaderEpoch: 5, Timestamp: time.UnixMilli(1234), Key: []byte("k"), Headers: []kgo.RecordHeader{{Key: "h", Value: []byte("x")}, {Key: "i"}}}
	items := []item[string, note]{
		{raw: raw, key: "a", val: note{"a", 1}, at: 5}, {raw: raw, key: "b", val: note{"b", 2}, at: noWatermark},
		{raw: timerRecord("op", time.UnixMilli(99)), key: "a", val: note{"a", 3}, at: 99},
	}
	w := flightWriter[string, note]{keys: codec.String, values: codec.JSON[note]()}
	if err := errors.Join(w.batch(items[:2], mark{watermark: 7}), w.batch(items[2:], mark{watermark: noWatermark, idle: true})); err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(golden)
	if *update && errors.Is(err, os.ErrNotExist) {
		err = os.MkdirAll("testdata", 0o755)
		b, err = w.buf, errors.Join(err, os.WriteFile(golden, w.buf, 0o644))
	}
	if err != nil {
		t.Fatal(err)
	}
	r := flightReader[string, note]{keys: codec.String, values: codec.JSON[note](), version: 1, keyGroups: noteKeyGroups, sourceReader: sourceReader{buf: b}}
	batches, err := r.all(func(int) bool { return true })
	if err != nil || len(batches) != 2 || batches[0].time != (mark{watermark: 7}) || batches[1].time != (mark{watermark: noWatermark, idle: true}) {
		t.Fatalf("%+v, %v", batches, err)
	}
	for i, it := range slices.Concat(batches[0].items, batches[1].items) {
		if want := items[i]; it.key != want.key || it.val != want.val || it.at != want.at || !sameRecord(it.raw, want.raw) {
			t.Errorf("got %+v, want %+v", it, want)
		}
	}
}

func sameRecord(a, b *kgo.Record) bool {
	same := func(x, y []byte) bool { return bytes.Equal(x, y) && (x == nil) == (y == nil) }
	return a.Topic == b.Topic && a.Partition == b.Partition && a.Offset == b.Offset && a.LeaderEpoch == b.LeaderEpoch &&
		a.Timestamp.Equal(b.Timestamp) && same(a.Key, b.Key) && same(a.Value, b.Value) &&
		slices.EqualFunc(a.Headers, b.Headers, func(x, y kgo.RecordHeader) bool { return x.Key == y.Key && same(x.Value, y.Value) })
}

// FuzzRecordsInFlight reads any bytes: what can be read is written as it was read.
func FuzzRecordsInFlight(f *testing.F) {
	w := flightWriter[string, string]{keys: codec.String, values: codec.String}
	raw := &kgo.Record{Topic: "in", Key: []byte("k"), Timestamp: time.UnixMilli(5), Headers: []kgo.RecordHeader{{Key: "h"}}}
	if err := w.batch([]item[string, string]{{raw: raw, key: "a", val: "x", at: 5}, {raw: raw, key: "b", val: "y", at: noWatermark}}, mark{watermark: 3, idle: true}); err != nil {
		f.Fatal(err)
	}
	f.Add(w.buf)
	f.Add([]byte{})
	f.Add([]byte{1, 0, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		read := func(b []byte) ([]*batch[string, string], error) {
			r := flightReader[string, string]{keys: codec.String, values: codec.String, version: 1, keyGroups: noteKeyGroups, sourceReader: sourceReader{buf: b}}
			return r.all(func(int) bool { return true })
		}
		batches, err := read(b)
		if err != nil {
			return
		}
		w := flightWriter[string, string]{keys: codec.String, values: codec.String}
		for _, bt := range batches {
			if err := w.batch(bt.items, bt.time); err != nil {
				t.Fatal(err)
			}
		}
		again, err := read(w.buf)
		if err != nil || len(again) != len(batches) {
			t.Fatalf("%d batches of %d, %v", len(again), len(batches), err)
		}
		for i := range again {
			if again[i].time != batches[i].time || len(again[i].items) != len(batches[i].items) {
				t.Fatalf("batch %d is %+v, was %+v", i, again[i], batches[i])
			}
			for j, it := range again[i].items {
				was := batches[i].items[j]
				if it.key != was.key || it.val != was.val || it.at != was.at || it.kg != was.kg || !sameRecord(it.raw, was.raw) {
					t.Fatalf("item %d of batch %d is %+v, was %+v", j, i, it, was)
				}
			}
		}
	})
}

func TestBrokenRecordsInFlightAreRefused(t *testing.T) {
	w := flightWriter[string, note]{keys: codec.String, values: codec.JSON[note]()}
	if err := w.batch([]item[string, note]{{raw: &kgo.Record{Topic: "in"}, key: "a", val: note{"a", 1}, at: 1}}, mark{watermark: 1}); err != nil {
		t.Fatal(err)
	}
	for n := 1; n < len(w.buf); n++ {
		r := flightReader[string, note]{keys: codec.String, values: codec.JSON[note](), version: 1, keyGroups: noteKeyGroups, sourceReader: sourceReader{buf: w.buf[:n]}}
		if _, err := r.all(func(int) bool { return true }); err == nil {
			t.Errorf("%d of %d bytes were read without an error", n, len(w.buf))
		}
	}
}

// TestEveryOrderOfEventsGivesAConsistentCut drives senders, barriers, unaligned requests and
// subtasks in random order, and restores each checkpoint that is acknowledged: state and
// what was in flight must make up exactly what was sent before its barriers.
func TestEveryOrderOfEventsGivesAConsistentCut(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) { checkCuts(t, rt) })
}

func checkCuts(t *testing.T, rt *rapid.T) {
	senders := rapid.IntRange(1, 3).Draw(rt, "senders")
	parallelism := rapid.IntRange(1, 3).Draw(rt, "parallelism")
	n := newNotes(t, senders, parallelism, nil, nil)
	keys := []string{"a", "b", "c", "d", "e"}
	sent := make([][]note, senders) // by sender
	cut := map[int64][]int{}        // by checkpoint: how much each sender had sent
	inFlight := map[int64][]checkpoint.InFlightData{}
	acks := map[int64]int{}
	at := make([]int64, senders) // newest barrier of each sender
	newest := int64(0)
	numbers := map[string]int{}
	state := map[string]int{} // values processed, by key and owner: what a snapshot would hold
	snapshots := map[[2]int64]map[string]int{}
	collect := func() {
		for _, line := range n.log {
			key, _, _ := strings.Cut(line, " ")
			state[key]++
		}
		n.log = nil
	}
	n.between = collect
	owner := func(key string) int {
		return keygroup.Subtask(keygroup.Of([]byte(key), noteKeyGroups), parallelism, noteKeyGroups)
	}
	// After each event: a subtask that cut a checkpoint did so with the state of now.
	noted := func() {
		for i, r := range n.runners {
			k := [2]int64{int64(i), r.freeze.id}
			if r.freeze.id != 0 && snapshots[k] == nil {
				s := map[string]int{}
				for key, c := range state {
					if owner(key) == i {
						s[key] = c
					}
				}
				snapshots[k] = s
			}
		}
	}
	barrier := func(s int) {
		if at[s] == newest {
			return
		}
		at[s] = newest
		if cut[newest] == nil {
			cut[newest] = make([]int, senders)
		}
		cut[newest][s] = len(sent[s])
		n.senders[s].barrier(newest)
	}
	step := func(i int) {
		r := n.runners[i]
		bt, err := r.next()
		noted()
		if err == nil && bt != nil {
			err = r.take(bt)
		}
		if err != nil {
			rt.Fatal(err)
		}
		collect()
		noted()
	}
	freeze := func() {
		for _, r := range n.runners {
			if r.freeze.encoding() {
				if err := r.encode(time.Hour); err != nil {
					rt.Fatal(err)
				}
			}
		}
		for _, a := range n.acks() {
			if !a.abandoned {
				acks[a.id]++
				inFlight[a.id] = append(inFlight[a.id], a.inFlight...)
			}
		}
	}
	complete := func() bool { return newest == 0 || acks[newest] == parallelism }
	for range rapid.IntRange(1, 60).Draw(rt, "events") {
		switch rapid.IntRange(0, 9).Draw(rt, "event") {
		case 0, 1, 2, 3:
			s := rapid.IntRange(0, senders-1).Draw(rt, "sender")
			if n.senders[s].crowded {
				n.senders[s].notify() // so that it doesn't wait
				n.senders[s].refill()
			}
			if n.senders[s].crowded {
				continue
			}
			key := keys[rapid.IntRange(0, len(keys)-1).Draw(rt, "key")]
			key = fmt.Sprint(key, s) // each key comes from one sender, so it has an order
			numbers[key]++
			sent[s] = append(sent[s], note{key, numbers[key]})
			n.send[s](note{key, numbers[key]})
			if rapid.Bool().Draw(rt, "flush") {
				n.senders[s].idle()
			}
		case 4:
			barrier(rapid.IntRange(0, senders-1).Draw(rt, "barrier"))
		case 5:
			if complete() {
				newest++
			}
		case 6:
			if newest > 0 && rapid.Bool().Draw(rt, "unalign") {
				n.unalign(newest)
				for _, r := range n.runners {
					if rapid.Bool().Draw(rt, "at once") {
						if err := r.settle(); err != nil {
							rt.Fatal(err)
						}
						noted()
					}
				}
			}
		case 7:
			freeze()
		default:
			step(rapid.IntRange(0, parallelism-1).Draw(rt, "step"))
		}
	}
	for s := range senders {
		barrier(s)
	}
	for range 200 {
		for i := range parallelism {
			step(i)
		}
		freeze()
	}
	for id := int64(1); id <= newest; id++ {
		if acks[id] != parallelism {
			rt.Fatalf("checkpoint %d has %d acknowledgements of %d", id, acks[id], parallelism)
		}
		want := map[string][]int{}
		for s := range senders {
			for _, v := range sent[s][:cut[id][s]] {
				want[v.Key] = append(want[v.Key], v.N)
			}
		}
		// Restored with another parallelism, what was in flight follows what was counted.
		got := map[string][]int{}
		for i := range parallelism {
			for key, c := range snapshots[[2]int64{int64(i), id}] {
				for k := range c {
					got[key] = append(got[key], k+1)
				}
			}
		}
		again := newNotes(t, 1, 1+int(id)%4, nil, inFlight[id])
		again.all()
		for _, line := range again.log {
			var key string
			var number int
			if _, err := fmt.Sscan(line, &key, &number); err != nil {
				rt.Fatal(err)
			}
			got[key] = append(got[key], number)
		}
		a, _ := json.Marshal(got)
		b, _ := json.Marshal(want)
		if !bytes.Equal(a, b) {
			rt.Fatalf("checkpoint %d restores %s, want %s", id, a, b)
		}
	}
}
