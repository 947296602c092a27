package barrier

import (
	"errors"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// naiveAligner says what an Aligner must do, from sets of everything that ever came.
type naiveAligner struct {
	inputs int
	came   map[int64]map[int]bool // by checkpoint: the inputs on which its barrier came
	newest map[int]int64          // by input
	ended  map[int]bool
	dead   map[int64]bool // snapshot, replaced or cancelled, with all that is older
}

func newNaiveAligner(inputs int) *naiveAligner {
	return &naiveAligner{inputs: inputs, came: map[int64]map[int]bool{}, newest: map[int]int64{}, ended: map[int]bool{}, dead: map[int64]bool{}}
}

func (m *naiveAligner) isDead(id int64) bool {
	for d := range m.dead {
		if id <= d {
			return true
		}
	}
	return false
}

// pending returns the checkpoint whose barrier came somewhere and that is not dead, 0 if
// there is none.
func (m *naiveAligner) pending() int64 {
	for id := range m.came {
		if !m.isDead(id) {
			return id
		}
	}
	return 0
}

func (m *naiveAligner) blocked(input int) bool {
	p := m.pending()
	return p != 0 && m.came[p][input]
}

func (m *naiveAligner) barrier(input int, id int64) (Effect, error) {
	switch {
	case input < 0 || input >= m.inputs:
		return Effect{}, ErrNoSuchInput
	case m.ended[input]:
		return Effect{}, ErrInputEnded
	case id == m.newest[input] && id > 0:
		return Effect{}, ErrDuplicateBarrier
	case id <= m.newest[input]:
		return Effect{}, ErrBarrierBackwards
	case m.blocked(input):
		return Effect{}, ErrInputBlocked
	}
	m.newest[input] = id
	p := m.pending()
	if m.isDead(id) || id < p {
		return Effect{}, nil
	}
	var e Effect
	if p != 0 && id > p {
		m.dead[p] = true
		e.Abandoned, e.Unblock = p, true
	}
	if m.came[id] == nil {
		m.came[id] = map[int]bool{}
	}
	m.came[id][input] = true
	return m.finish(e), nil
}

func (m *naiveAligner) end(input int) (Effect, error) {
	switch {
	case input < 0 || input >= m.inputs:
		return Effect{}, ErrNoSuchInput
	case m.ended[input]:
		return Effect{}, ErrInputEnded
	case m.blocked(input):
		return Effect{}, ErrInputBlocked
	}
	m.ended[input] = true
	e := m.finish(Effect{})
	e.Done = len(m.ended) == m.inputs
	return e, nil
}

func (m *naiveAligner) cancel(id int64) (Effect, error) {
	if id < 1 {
		return Effect{}, ErrBarrierBackwards
	}
	p := m.pending()
	m.dead[id] = true
	if p != 0 && m.isDead(p) {
		return Effect{Abandoned: p, Unblock: true}, nil
	}
	return Effect{}, nil
}

func (m *naiveAligner) finish(e Effect) Effect {
	p := m.pending()
	if p == 0 {
		return e
	}
	for i := range m.inputs {
		if !m.came[p][i] && !m.ended[i] {
			return e
		}
	}
	m.dead[p] = true
	e.Snapshot, e.Unblock = p, true
	return e
}

// TestAlignerDoesWhatTheNaiveModelDoes makes any calls, also such as break the contract.
func TestAlignerDoesWhatTheNaiveModelDoes(t *testing.T) { rapid.Check(t, checkAlignerModel) }

func FuzzAlignerModel(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkAlignerModel)) }

func checkAlignerModel(t *rapid.T) {
	inputs := rapid.IntRange(1, 4).Draw(t, "inputs")
	a, m := NewAligner(inputs), newNaiveAligner(inputs)
	for range rapid.IntRange(1, 60).Draw(t, "events") {
		event := rapid.IntRange(0, 9).Draw(t, "event")
		input := rapid.IntRange(-1, 4*inputs).Draw(t, "input")
		if input > inputs {
			input %= inputs // an index out of range is rare
		}
		id := int64(rapid.IntRange(0, 8).Draw(t, "id"))
		if newest := slices.Max(a.lastOrNone()); rapid.IntRange(0, 3).Draw(t, "near") > 0 {
			id = max(newest+id/3-1, 1) // mostly near what came last, so that alignments complete
		}
		var got, want Effect
		var err, wantErr error
		switch {
		case event == 0:
			got, err = a.EndOfInput(input)
			want, wantErr = m.end(input)
		case event == 1:
			got, err = a.Cancel(id)
			want, wantErr = m.cancel(id)
		default:
			got, err = a.Barrier(input, id)
			want, wantErr = m.barrier(input, id)
		}
		if got != want || !errors.Is(err, wantErr) || err != nil && !errors.Is(err, ErrProtocol) {
			t.Fatalf("input %d, id %d: got %+v, %v; want %+v, %v", input, id, got, err, want, wantErr)
		}
		for i := range inputs {
			if a.Blocked(i) != m.blocked(i) {
				t.Fatalf("input %d blocked: got %v", i, a.Blocked(i))
			}
		}
		if id, ok := a.Pending(); id != m.pending() || ok != (id != 0) {
			t.Fatalf("pending: got %d, %v; want %d", id, ok, m.pending())
		}
	}
}

func (a *Aligner) lastOrNone() []int64 { return append([]int64{0}, a.last...) }

// item is what lies in an input: a barrier, the end, or if neither a record.
type item struct {
	barrier int64
	end     bool
}

// TestS24_EverySnapshotIsAConsistentCut fills inputs with records, barriers and an end, and
// reads them in any order that Blocked allows, with cancel marks at any time. A snapshot
// must stand right behind its barrier on every input, and each checkpoint whose barrier is
// on every input must be taken unless it was cancelled.
func TestS24_EverySnapshotIsAConsistentCut(t *testing.T) { rapid.Check(t, checkAlignerCut) }

func FuzzAlignerCut(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkAlignerCut)) }

func checkAlignerCut(t *rapid.T) {
	inputs := rapid.IntRange(1, 5).Draw(t, "inputs")
	checkpoints := int64(rapid.IntRange(0, 6).Draw(t, "checkpoints"))
	queues := make([][]item, inputs)
	carries := make([]map[int64]bool, inputs) // barriers, by input
	newest := make([]int64, inputs)
	for i := range queues {
		carries[i] = map[int64]bool{}
		endsAfter := int64(rapid.IntRange(0, int(checkpoints)).Draw(t, "ends after"))
		records := func() {
			for range rapid.IntRange(0, 2).Draw(t, "records") {
				queues[i] = append(queues[i], item{})
			}
		}
		for id := int64(1); id <= endsAfter; id++ {
			records()
			if rapid.IntRange(0, 5).Draw(t, "skip") == 0 {
				continue // its source heard of the cancel first
			}
			queues[i] = append(queues[i], item{barrier: id})
			carries[i][id] = true
			newest[i] = id
		}
		records()
		queues[i] = append(queues[i], item{end: true})
	}
	cancelled := int64(0)
	a := NewAligner(inputs)
	read := make([]int, inputs) // items read, by input
	taken := map[int64]bool{}
	done := false
	apply := func(e Effect, err error) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Abandoned != 0 && (taken[e.Abandoned] || e.Snapshot == e.Abandoned) {
			t.Fatalf("%d was taken and abandoned", e.Abandoned)
		}
		if id := e.Snapshot; id != 0 {
			if taken[id] || id <= cancelled {
				t.Fatalf("snapshot %d: taken before %v, cancelled up to %d", id, taken[id], cancelled)
			}
			taken[id] = true
			for i, q := range queues {
				switch last := q[max(read[i]-1, 0)]; {
				case read[i] > 0 && last.end:
				case read[i] == 0 || last.barrier != id:
					t.Fatalf("snapshot %d while input %d stands at %d of %+v", id, i, read[i], q)
				}
			}
			for i := range queues {
				if a.Blocked(i) {
					t.Fatalf("input %d is held after snapshot %d", i, id)
				}
			}
		}
		done = done || e.Done
	}
	for {
		var readable []int
		left := 0
		for i, q := range queues {
			if read[i] == len(q) {
				continue
			}
			left++
			if !a.Blocked(i) {
				readable = append(readable, i)
			}
		}
		if done != (left == 0) {
			t.Fatalf("done is %v with %d inputs left", done, left)
		}
		if left == 0 {
			break
		}
		if len(readable) == 0 {
			t.Fatalf("every input is held: %v of %+v", read, queues)
		}
		if rapid.IntRange(0, 14).Draw(t, "cancel") == 0 {
			id := int64(rapid.IntRange(1, int(checkpoints)+1).Draw(t, "cancelled"))
			cancelled = max(cancelled, id)
			apply(a.Cancel(id))
			continue
		}
		i := rapid.SampledFrom(readable).Draw(t, "read")
		next := queues[i][read[i]]
		read[i]++
		switch {
		case next.end:
			apply(a.EndOfInput(i))
		case next.barrier != 0:
			apply(a.Barrier(i, next.barrier))
		}
	}
	for id := int64(1); id <= checkpoints; id++ {
		complete := id <= slices.Max(newest)
		for i := range queues {
			complete = complete && (carries[i][id] || newest[i] < id) // it carries it or ends before
		}
		if taken[id] && !complete {
			t.Fatalf("%d was taken, but an input lacks its barrier: %+v", id, queues)
		}
		if complete && !taken[id] && id > cancelled {
			t.Fatalf("%d was not taken, though its barrier is on every input: %+v", id, queues)
		}
	}
}
