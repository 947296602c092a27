package weir

import (
	"slices"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/processor"
)

// BroadcastStream is a stream of which every subtask sees every value: rules, prices, a
// small table that all keys need. A process function hears it with
// [BroadcastStream.On] and keeps what it says in a state.Broadcast.
type BroadcastStream[R any] struct {
	stream Stream[R]
	values codec.Codec[R] // nil: what is in flight can't be stored
}

// Broadcast makes a stream one that goes to every subtask of who hears it. The values of
// one input partition come in the same order everywhere; those of different partitions
// may not, so what belongs together should have one key.
func Broadcast[R any](s Stream[R], opts ...EdgeOption[R]) BroadcastStream[R] {
	if s.app == nil {
		noApp("broadcast", "")
	}
	return BroadcastStream[R]{s, edge(s.app, s.node, opts)}
}

// On makes the operator that is being set up call f for every value of the stream, on
// each of its subtasks. f writes broadcast states; no key is current, so it can't use
// other state, and it emits nothing. It must do the same on every subtask. v is one value
// for all of them: f must not change what it points to, nor later what it stored of it.
// Its errors are treated as those of handlers; what it skips is reported once, and a dead
// letter is sent once.
func (b BroadcastStream[R]) On(s *Setup, f func(v R) error) {
	h := hearing{app: b.stream.app, from: b.stream.node}
	if b.values != nil {
		h.values = processor.NewCastValues(b.values)
	}
	if f != nil {
		h.handle = func(v any) error { return f(v.(R)) }
	}
	h.connect = func(cast func(*processor.Subtask) func(any)) {
		b.stream.out.add(func(s *processor.Subtask) func(R) {
			send := cast(s)
			return func(v R) { send(v) }
		})
	}
	s.heard = append(s.heard, h)
}

// hearing is a call of On.
type hearing struct {
	app     *App
	from    *node
	values  *processor.CastValues
	handle  func(any) error
	connect func(cast func(*processor.Subtask) func(any))
}

// connect connects what an operator hears with the stage that it is on, and returns the
// numbers of the handlers.
func connect[K comparable, T any](in Keyed[K, T], n *node, heard []hearing) (numbers []int) {
	for _, h := range heard {
		switch {
		case h.from == nil || h.app != in.app:
			in.app.errorf("operator %q: hears a broadcast stream of another app, or of none (%s)", n.id, n.where)
			continue
		case h.handle == nil:
			in.app.errorf("operator %q: the function that hears operator %q is nil (%s)", n.id, h.from.id, n.where)
			continue
		case h.from.behind(in.node):
			in.app.errorf("operator %q: hears operator %q, which is behind the same KeyBy %q: it would feed itself (%s)", n.id, h.from.id, in.node.id, n.where)
			continue
		}
		number := in.stage.Hear(processor.Hearing{Operator: n.id, Stream: h.from.id, Values: h.values})
		h.connect(func(s *processor.Subtask) func(any) { return in.stage.Cast(s, number) })
		h.from.used = true
		n.inputs = append(n.inputs, h.from)
		in.node.hears = append(in.node.hears, h.from)
		numbers = append(numbers, number)
	}
	return numbers
}

// behind tells whether other is n, or something that n gets its values from.
func (n *node) behind(other *node) bool {
	return n == other || slices.ContainsFunc(n.inputs, func(in *node) bool { return in.behind(other) })
}

// feeds returns the stages in an order in which each comes after those that feed it.
func (a *App) feeds() []stage {
	var order []stage
	keyed := map[string]*node{}
	for _, n := range a.nodes {
		if n.kind == "keyby" {
			keyed[n.id] = n
		}
	}
	placed := map[string]bool{}
	var place func(st stage)
	place = func(st stage) {
		if placed[st.StageID()] {
			return
		}
		placed[st.StageID()] = true
		n := keyed[st.StageID()]
		for _, other := range a.stages {
			o := keyed[other.StageID()]
			if o != n && slices.ContainsFunc(append(n.hears, n.inputs...), func(in *node) bool { return in.behind(o) }) {
				place(other)
			}
		}
		order = append(order, st)
	}
	for _, st := range a.stages {
		place(st)
	}
	return order
}
