package demo

import (
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
)

// Report is what came of a run.
type Report struct {
	Inputs  int64 // lines
	Outputs int64 // committed outputs that the consumer saw
	Words   int   // different ones in the text

	Lost       int64 // outputs that never came
	Duplicated int64 // outputs that came again, or that the text doesn't account for
	OutOfOrder int64 // outputs that came after a later one of their word
	Malformed  int64 // outputs that are no count

	Kills       int
	Checkpoints int64           // committed ones that the workers reported
	Recoveries  []time.Duration // process start to first new committed output
	Took        time.Duration
}

// Err returns nil if every output was there once and in order.
func (r Report) Err() error {
	var wrong []string
	for _, w := range []struct {
		n    int64
		what string
	}{{r.Lost, "lost"}, {r.Duplicated, "duplicated"}, {r.OutOfOrder, "out of order"}, {r.Malformed, "malformed"}} {
		if w.n != 0 {
			wrong = append(wrong, fmt.Sprintf("%d %s", w.n, w.what))
		}
	}
	if wrong == nil {
		return nil
	}
	return fmt.Errorf("not exactly once: of %d outputs %s", r.Outputs, strings.Join(wrong, ", "))
}

// write prints the report as a table.
func (r Report) write(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 3, ' ', 0)
	row := func(name, value, note string) { fmt.Fprintf(t, "  %s\t%s\t%s\n", name, value, note) }
	row("inputs", grouped(r.Inputs), "lines")
	row("outputs", grouped(r.Outputs), fmt.Sprintf("counts of %d words", r.Words))
	row("lost", grouped(r.Lost), "")
	row("duplicated", grouped(r.Duplicated), "")
	row("out of order", grouped(r.OutOfOrder), "")
	if r.Malformed != 0 {
		row("malformed", grouped(r.Malformed), "")
	}
	row("kills", strconv.Itoa(r.Kills), "with SIGKILL")
	row("checkpoints", grouped(r.Checkpoints), "")
	if n := len(r.Recoveries); n > 0 {
		s := slices.Sorted(slices.Values(r.Recoveries))
		row("recovery", millis(s[n/2]), fmt.Sprintf("median of %d; min %s, max %s; process start to first new committed output", n, millis(s[0]), millis(s[n-1])))
	}
	row("took", fmt.Sprintf("%.1f s", r.Took.Seconds()), "")
	t.Flush()
}

func millis(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }

// grouped writes n with its digits in groups of three.
func grouped(n int64) string {
	s := strconv.FormatInt(n, 10)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + " " + s[i:]
	}
	return s
}
