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
	dead   map[int64]bool // done, replaced or cancelled, with all that is older
	cut    map[int64]bool // snapshot ahead of its barriers
}

func newNaiveAligner(inputs int) *naiveAligner {
	return &naiveAligner{inputs: inputs, came: map[int64]map[int]bool{}, newest: map[int]int64{}, ended: map[int]bool{}, dead: map[int64]bool{}, cut: map[int64]bool{}}
}

func (m *naiveAligner) isDead(id int64) bool {
	for d := range m.dead {
		if id <= d {
			return true
		}
	}
	return false
}

// pending returns the checkpoint that is not dead of which a barrier came somewhere, or
// whose snapshot was taken. 0 if there is none.
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
	return p != 0 && !m.cut[p] && m.came[p][input]
}

func (m *naiveAligner) capturing(input int) bool {
	p := m.pending()
	return m.cut[p] && !m.came[p][input] && !m.ended[input]
}

// replace makes id the pending checkpoint.
func (m *naiveAligner) replace(id int64) (e Effect) {
	if p := m.pending(); p != 0 && p != id {
		m.dead[p] = true
		e.Abandoned, e.Unblock = p, !m.cut[p]
	}
	if m.came[id] == nil {
		m.came[id] = map[int]bool{}
	}
	return e
}

func (m *naiveAligner) unalign(id int64) (Effect, error) {
	switch {
	case id < 1:
		return Effect{}, ErrBarrierBackwards
	case m.isDead(id) || m.cut[id] || id < m.pending() || len(m.ended) == m.inputs:
		return Effect{}, nil
	}
	e := m.replace(id)
	e.Unblock = e.Unblock || len(m.came[id]) > 0
	m.cut[id] = true
	e.Snapshot = id
	return e, nil
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
	if m.isDead(id) || id < m.pending() {
		return Effect{}, nil
	}
	e := m.replace(id)
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
		return Effect{Abandoned: p, Unblock: !m.cut[p]}, nil
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
	if m.cut[p] {
		e.Captured = p
	} else {
		e.Snapshot, e.Unblock = p, true
	}
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
		case event == 2:
			got, err = a.Unalign(id)
			want, wantErr = m.unalign(id)
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
			if a.Capturing(i) != m.capturing(i) {
				t.Fatalf("input %d captured: got %v", i, a.Capturing(i))
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
// processes them in any order that Blocked allows, while checkpoints are cancelled and turn
// unaligned at any time. What a checkpoint has of an input, in its snapshot and captured,
// must be exactly what lies before its barrier there; and each checkpoint whose barrier is
// on every input must be taken unless it was cancelled.
func TestS24_EverySnapshotIsAConsistentCut(t *testing.T) { rapid.Check(t, checkAlignerCut) }

func FuzzAlignerCut(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkAlignerCut)) }

// cutDriver is a subtask that processes items, and looks ahead of what it processes while
// a checkpoint is captured.
type cutDriver struct {
	*rapid.T
	a         *Aligner
	queues    [][]item
	done      []int // items processed, by input
	seen      []int // items looked at, by input: at least those
	cancelled int64
	taken     map[int64]bool
	over      bool

	cut      int64   // being captured, 0 = none
	snapshot []int   // of cut: items processed, by input
	captured [][]int // of cut: indexes of records, by input
}

// before returns the indexes of the records that lie before barrier id, or before the end
// of a queue that ends before it.
func before(queue []item, id int64) (records []int, ok bool) {
	for i, it := range queue {
		switch {
		case it.barrier == id || it.end:
			return records, true
		case it.barrier > id:
			return nil, false
		case it.barrier == 0:
			records = append(records, i)
		}
	}
	return nil, false
}

// complete checks the cut of checkpoint id.
func (d *cutDriver) complete(id int64, snapshot []int, captured [][]int) {
	if d.taken[id] || id <= d.cancelled {
		d.Fatalf("checkpoint %d: taken before %v, cancelled up to %d", id, d.taken[id], d.cancelled)
	}
	d.taken[id] = true
	for i, q := range d.queues {
		want, ok := before(q, id)
		if !ok {
			d.Fatalf("checkpoint %d was taken, but input %d lacks its barrier: %+v", id, i, q)
		}
		var got []int
		for n, it := range q[:snapshot[i]] {
			if it.barrier == 0 && !it.end {
				got = append(got, n)
			}
		}
		if captured != nil {
			got = append(got, captured[i]...)
		}
		if !slices.Equal(got, want) {
			d.Fatalf("checkpoint %d has items %v of input %d, %v lie before its barrier: %+v", id, got, i, want, q)
		}
	}
}

func (d *cutDriver) apply(e Effect, err error) {
	if err != nil {
		d.Fatal(err)
	}
	if e.Abandoned != 0 {
		if d.taken[e.Abandoned] {
			d.Fatalf("%d was taken and abandoned", e.Abandoned)
		}
		if d.cut != 0 { // no input was held: what replaces it was injected after it was over
			d.cancelled = max(d.cancelled, d.cut)
		}
		d.cut = 0
	}
	if e.Snapshot != 0 {
		if d.cut != 0 {
			d.Fatalf("snapshot %d while %d is captured", e.Snapshot, d.cut)
		}
		for i := range d.queues {
			if d.a.Blocked(i) {
				d.Fatalf("input %d is held after snapshot %d", i, e.Snapshot)
			}
		}
		if id, ok := d.a.Pending(); ok && id == e.Snapshot {
			d.cut, d.snapshot, d.captured = id, slices.Clone(d.done), make([][]int, len(d.queues))
			for i := range d.queues { // what was looked at before, for another one
				for n := d.done[i]; n < d.seen[i]; n++ {
					d.capture(i, n)
				}
			}
		} else {
			d.complete(e.Snapshot, d.done, nil)
		}
	}
	if e.Captured != 0 {
		if e.Captured != d.cut {
			d.Fatalf("captured %d, not %d", e.Captured, d.cut)
		}
		d.complete(e.Captured, d.snapshot, d.captured)
		d.cut = 0
	}
	d.over = d.over || e.Done
}

func (d *cutDriver) capture(input, n int) {
	if it := d.queues[input][n]; d.a.Capturing(input) && it.barrier == 0 && !it.end {
		d.captured[input] = append(d.captured[input], n)
	}
}

// look looks at the next item of an input that was not looked at.
func (d *cutDriver) look(input int) {
	n := d.seen[input]
	d.capture(input, n)
	d.seen[input]++
	switch it := d.queues[input][n]; {
	case it.end:
		d.apply(d.a.EndOfInput(input))
	case it.barrier != 0:
		d.apply(d.a.Barrier(input, it.barrier))
	}
}

// process processes the next item of an input that is not held.
func (d *cutDriver) process(input int) {
	d.done[input]++
	if d.seen[input] < d.done[input] {
		d.done[input]--
		record := d.queues[input][d.seen[input]] == item{}
		if !record {
			d.done[input]++ // a snapshot that it brings about lies behind it
		}
		d.look(input)
		if record {
			d.done[input]++
		}
	}
}

// lookAhead looks at an item that is not processed yet. An end of input can't be told
// ahead, and a barrier of a newer checkpoint says that the one being captured is dead.
func (d *cutDriver) lookAhead(input int) {
	if !d.a.Capturing(input) {
		return
	}
	switch it := d.queues[input][d.seen[input]]; {
	case it.end:
	case it.barrier > d.cut:
		d.cancel(d.cut)
	default:
		d.look(input)
	}
}

func (d *cutDriver) cancel(id int64) {
	d.cancelled = max(d.cancelled, id)
	d.apply(d.a.Cancel(id))
}

func checkAlignerCut(t *rapid.T) {
	inputs := rapid.IntRange(1, 5).Draw(t, "inputs")
	checkpoints := int64(rapid.IntRange(0, 6).Draw(t, "checkpoints"))
	d := &cutDriver{T: t, a: NewAligner(inputs), queues: make([][]item, inputs), done: make([]int, inputs), seen: make([]int, inputs), taken: map[int64]bool{}}
	carries := make([]map[int64]bool, inputs) // barriers, by input
	newest := make([]int64, inputs)
	for i := range d.queues {
		carries[i] = map[int64]bool{}
		endsAfter := int64(rapid.IntRange(0, int(checkpoints)).Draw(t, "ends after"))
		records := func() {
			for range rapid.IntRange(0, 2).Draw(t, "records") {
				d.queues[i] = append(d.queues[i], item{})
			}
		}
		for id := int64(1); id <= endsAfter; id++ {
			records()
			if rapid.IntRange(0, 5).Draw(t, "skip") == 0 {
				continue // its source heard of the cancel first
			}
			d.queues[i] = append(d.queues[i], item{barrier: id})
			carries[i][id] = true
			newest[i] = id
		}
		records()
		d.queues[i] = append(d.queues[i], item{end: true})
	}
	for {
		var readable []int
		left := 0
		for i, q := range d.queues {
			if d.done[i] == len(q) {
				continue
			}
			left++
			if !d.a.Blocked(i) {
				readable = append(readable, i)
			}
		}
		if d.over != (left == 0) {
			t.Fatalf("done is %v with %d inputs left", d.over, left)
		}
		if left == 0 {
			break
		}
		if len(readable) == 0 {
			t.Fatalf("every input is held: %v of %+v", d.done, d.queues)
		}
		switch rapid.IntRange(0, 14).Draw(t, "event") {
		case 0:
			d.cancel(int64(rapid.IntRange(1, int(checkpoints)+1).Draw(t, "cancelled")))
		case 1, 2:
			if id := int64(rapid.IntRange(1, int(checkpoints)+1).Draw(t, "unaligned")); id <= checkpoints {
				// It was injected, so those before it are over.
				for before := range id {
					if !d.taken[before] {
						d.cancelled = max(d.cancelled, before)
					}
				}
				d.apply(d.a.Unalign(id))
			}
		case 3, 4, 5, 6:
			d.lookAhead(rapid.SampledFrom(readable).Draw(t, "ahead"))
		default:
			d.process(rapid.SampledFrom(readable).Draw(t, "process"))
		}
	}
	for id := int64(1); id <= checkpoints; id++ {
		complete := id <= slices.Max(newest)
		for i := range d.queues {
			complete = complete && (carries[i][id] || newest[i] < id) // it carries it or ends before
		}
		if complete && !d.taken[id] && id > d.cancelled {
			t.Fatalf("%d was not taken, though its barrier is on every input: %+v", id, d.queues)
		}
	}
}
