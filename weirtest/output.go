package weirtest

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/internal/inside"
	"github.com/weirstream/weir/processor"
)

// Output is what came out of an operator of the topology, of whatever is committed and of
// the open epoch. What a crash takes back is not in it. T is the type of its values. They
// are as they were when they were emitted, with all that they point to but for what is
// behind fields that are not exported.
type Output[T any] struct {
	h     *Harness
	id    string
	taken int
}

// Out returns the output of an operator: what a sink was given, or what any other operator
// emitted. id is the operator's ID; that of a side output is the operator's and its own
// name, as "balance.overdrawn".
func Out[T any](h *Harness, id string) *Output[T] {
	h.t.Helper()
	var known []string
	for _, o := range h.app.Outputs {
		if o.ID != id {
			known = append(known, fmt.Sprintf("%q (%s)", o.ID, o.Kind))
			continue
		}
		if want := reflect.TypeFor[T](); o.Type != want {
			h.t.Fatalf("weirtest: operator %q has values of type %s, not %s", id, o.Type, want)
		}
		return &Output[T]{h: h, id: id}
	}
	h.t.Fatalf("weirtest: the topology has no operator %q whose values could be seen; it has %s", id, strings.Join(known, ", "))
	return &Output[T]{h: h, id: id}
}

// Side returns what was emitted to the side output of that name.
func Side[T any](h *Harness, name string) *Output[T] {
	h.t.Helper()
	var ids []string
	for _, o := range h.app.Outputs {
		operator, ok := strings.CutSuffix(o.ID, "."+name)
		// A name may have dots in it.
		if o.Kind == "side" && ok && slices.ContainsFunc(h.app.Outputs, func(p inside.Output) bool { return p.ID == operator && p.Kind != "side" }) {
			ids = append(ids, o.ID)
		}
	}
	switch len(ids) {
	case 1:
		return Out[T](h, ids[0])
	case 0:
		h.t.Fatalf("weirtest: the topology reads no side output %q: SideOutput.From makes a stream of one", name)
	default:
		h.t.Fatalf("weirtest: %d operators have a side output %q; use weirtest.Out with one of %s", len(ids), name, strings.Join(ids, ", "))
	}
	return &Output[T]{h: h}
}

// Values returns all values, in the order in which they came.
func (o *Output[T]) Values() []T {
	return append(o.Committed(), of[T](o.h.topics.Open(), o.id)...)
}

// Committed returns the values that are part of a committed checkpoint: of a Kafka sink,
// what a read_committed reader sees.
func (o *Output[T]) Committed() []T { return of[T](o.h.topics.Committed(), o.id) }

func of[T any](rs []*kgo.Record, id string) []T {
	var vs []T
	for _, r := range rs {
		if by, v, ok := processor.Shown(r); ok && by == id {
			t, _ := v.(T) // a nil of an interface type is no T
			vs = append(vs, t)
		}
	}
	return vs
}

// Take returns the values that came since it was called last, as far as a crash has not
// taken them back.
func (o *Output[T]) Take() []T {
	vs := o.Values()
	news := vs[min(o.taken, len(vs)):]
	o.taken = len(vs)
	return news
}

// Want fails the test unless the values are these, in this order.
func (o *Output[T]) Want(values ...T) {
	o.h.t.Helper()
	o.compare("", o.Values(), values)
}

// WantCommitted is Want for what is committed.
func (o *Output[T]) WantCommitted(values ...T) {
	o.h.t.Helper()
	o.compare(", committed", o.Committed(), values)
}

// WantNext is Want for what came since it, or Take, was called last.
func (o *Output[T]) WantNext(values ...T) {
	o.h.t.Helper()
	o.compare(", since the last look", o.Take(), values)
}

func (o *Output[T]) compare(which string, got, want []T) {
	o.h.t.Helper()
	if d := difference(got, want); d != "" {
		o.h.t.Errorf("weirtest: output of %q%s:\n%s", o.id, which, d)
	}
}

// aroundDifference is how many equal values are shown in front of the first difference.
const aroundDifference = 3

// shownValues is how many values are shown from there on.
const shownValues = 20

// difference tells how two lists differ; it is empty if they don't.
func difference[T any](got, want []T) string {
	n := max(len(got), len(want))
	at := 0
	for at < n && at < len(got) && at < len(want) && reflect.DeepEqual(got[at], want[at]) {
		at++
	}
	if at == n {
		return ""
	}
	var b strings.Builder
	fmt.Fprintf(&b, "  got %d values, want %d; they differ from number %d on", len(got), len(want), at)
	text := func(vs []T, i int) string {
		if i >= len(vs) {
			return "-"
		}
		return plain(vs[i])
	}
	begin, end := max(0, at-aroundDifference), min(n, at+shownValues)
	for i := begin; i < end; i++ {
		g, w := text(got, i), text(want, i)
		switch {
		case i < len(got) && i < len(want) && reflect.DeepEqual(got[i], want[i]):
			fmt.Fprintf(&b, "\n    %d  %s", i, g)
		case g == w: // they look the same
			fmt.Fprintf(&b, "\n  > %d  got %#v, want %#v", i, got[i], want[i])
		default:
			fmt.Fprintf(&b, "\n  > %d  got %s, want %s", i, g, w)
		}
	}
	if end < n {
		fmt.Fprintf(&b, "\n    and %d more", n-end)
	}
	return b.String()
}

// address is how a pointer is printed.
var address = regexp.MustCompile(`\b0x[0-9a-f]{6,}\b`)

// plain is a value as messages show it: with what it points to, if JSON can tell.
func plain(v any) string {
	text := fmt.Sprintf("%+v", v)
	if address.MatchString(text) {
		if b, err := json.Marshal(v); err == nil {
			return string(b)
		}
	}
	return text
}
