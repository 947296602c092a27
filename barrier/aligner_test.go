package barrier

import (
	"errors"
	"fmt"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
)

// alignerScript drives an Aligner:
//
//	new inputs=N
//	barrier input=I id=N
//	end input=I
//	cancel id=N
//	unalign id=N
//
// Each prints the effect, then what the aligner waits for and which inputs it holds, or
// captures.
type alignerScript struct{ a *Aligner }

func (s *alignerScript) run(t *testing.T, d *datadriven.TestData) string {
	var e Effect
	var err error
	switch d.Cmd {
	case "new":
		s.a = NewAligner(int(scanInt(t, d, "inputs")))
		return ""
	case "barrier":
		e, err = s.a.Barrier(int(scanInt(t, d, "input")), scanInt(t, d, "id"))
	case "end":
		e, err = s.a.EndOfInput(int(scanInt(t, d, "input")))
	case "cancel":
		e, err = s.a.Cancel(scanInt(t, d, "id"))
	case "unalign":
		e, err = s.a.Unalign(scanInt(t, d, "id"))
	default:
		d.Fatalf(t, "no such command: %s", d.Cmd)
	}
	var b strings.Builder
	if err != nil {
		if e != (Effect{}) {
			t.Errorf("%s: an error with effect %+v", d.Cmd, e)
		}
		fmt.Fprintf(&b, "error: %v\n", err)
	} else {
		fmt.Fprintln(&b, effectString(e))
	}
	if id, ok := s.a.Pending(); ok {
		what, which := "aligning %d, held:", s.a.Blocked
		if s.a.capturing {
			what, which = "capturing %d, from:", s.a.Capturing
		}
		fmt.Fprintf(&b, what, id)
		for i := range s.a.came {
			if which(i) {
				fmt.Fprintf(&b, " %d", i)
			}
		}
		fmt.Fprintln(&b)
	}
	return b.String()
}

func effectString(e Effect) string {
	var parts []string
	if e.Abandoned != 0 {
		parts = append(parts, fmt.Sprintf("abandoned %d", e.Abandoned))
	}
	if e.Snapshot != 0 {
		parts = append(parts, fmt.Sprintf("snapshot %d", e.Snapshot))
	}
	if e.Captured != 0 {
		parts = append(parts, fmt.Sprintf("captured %d", e.Captured))
	}
	if e.Unblock {
		parts = append(parts, "unblock")
	}
	if e.Done {
		parts = append(parts, "done")
	}
	if parts == nil {
		return "nothing"
	}
	return strings.Join(parts, ", ")
}

func TestAlignerWithoutInputsRefusesEveryEvent(t *testing.T) {
	for _, inputs := range []int{0, -1} {
		a := NewAligner(inputs)
		_, barrier := a.Barrier(0, 1)
		_, end := a.EndOfInput(0)
		for _, err := range []error{barrier, end} {
			if !errors.Is(err, ErrNoSuchInput) || !errors.Is(err, ErrProtocol) {
				t.Errorf("%d inputs: got %v, want ErrNoSuchInput", inputs, err)
			}
		}
	}
}

// alignRound passes barrier id through a, asking Blocked as a subtask would.
func alignRound(a *Aligner, inputs int, id int64) (snapshots int) {
	for i := range inputs {
		if a.Blocked(i) {
			return -1
		}
		e, err := a.Barrier(i, id)
		if err != nil {
			return -1
		}
		if e.Snapshot == id {
			snapshots++
		}
	}
	return snapshots
}

func TestAlignerAllocatesNothing(t *testing.T) {
	const inputs = 4
	a := NewAligner(inputs)
	id := int64(0)
	allocs := testing.AllocsPerRun(100, func() {
		id++
		if alignRound(a, inputs, id) != 1 {
			t.Fatalf("barrier %d was not aligned once", id)
		}
		id++
		if _, err := a.Barrier(0, id); err != nil {
			t.Fatal(err)
		}
		if _, err := a.Cancel(id); err != nil {
			t.Fatal(err)
		}
		id++
		if _, err := a.Unalign(id); err != nil {
			t.Fatal(err)
		}
		if alignRound(a, inputs, id) != 0 || a.Capturing(0) {
			t.Fatalf("barrier %d was not captured on every input", id)
		}
	})
	if allocs != 0 {
		t.Errorf("%v allocations for an aligned checkpoint, a cancelled and an unaligned one, want none", allocs)
	}
}

// BenchmarkAligner aligns one checkpoint over four inputs per round.
func BenchmarkAligner(b *testing.B) {
	const inputs = 4
	a := NewAligner(inputs)
	b.ReportAllocs()
	id := int64(0)
	for b.Loop() {
		id++
		if alignRound(a, inputs, id) != 1 {
			b.Fatalf("barrier %d was not aligned once", id)
		}
	}
}
