package weir

import (
	"fmt"

	"github.com/weirstream/weir/processor"
)

// SideOutput is a second output of a process function, for values of another type
// or of another meaning than its main output.
type SideOutput[T any] struct{ name string }

// Side names a side output. It is used by a handler's [SideOutput.Emit] and read
// with [SideOutput.From].
func Side[T any](name string) *SideOutput[T] { return &SideOutput[T]{name} }

// Sided is a stream whose operator may have side outputs.
type Sided interface{ origin() (*App, *node) }

func (s Stream[T]) origin() (*App, *node) { return s.app, s.node }

// Sideways is the context of a handler that may emit to side outputs.
type Sideways interface{ sideFuncs() []sideFunc }

func (c *Context[K, O]) sideFuncs() []sideFunc { return c.side }

// sideOutlet connects a side output of an operator with what consumes it.
type sideOutlet struct {
	side  any // *SideOutput[T]
	build func(s *processor.Subtask) any
}

// sideFunc is a side output on one subtask; f is a func(T).
type sideFunc struct {
	side any
	f    any
}

func (n *node) buildSides(s *processor.Subtask) []sideFunc {
	var fs []sideFunc
	for _, o := range n.sides {
		fs = append(fs, sideFunc{o.side, o.build(s)})
	}
	return fs
}

// From returns the stream of what the operator behind s emits to the side output.
func (o *SideOutput[T]) From(s Sided) Stream[T] {
	app, parent := s.origin()
	if parent == nil {
		noApp("side", o.name)
	}
	st := newStream[T](app, app.add("side", parent.id+"."+o.name, "", parent))
	if parent.kind != "process" {
		app.errorf("side output %q: operator %q is a %s and emits to no side output; weir.Process does (%s)", o.name, parent.id, parent.kind, st.node.where)
	}
	parent.sides = append(parent.sides, sideOutlet{o, func(s *processor.Subtask) any { return st.out.build(s) }})
	return st
}

// Emit sends a value to the side output. A value is dropped where nothing reads
// the side output.
func (o *SideOutput[T]) Emit(c Sideways, v T) {
	for _, sf := range c.sideFuncs() {
		if sf.side == any(o) {
			sf.f.(func(T))(v)
		}
	}
}

// String returns the name.
func (o *SideOutput[T]) String() string { return fmt.Sprintf("side output %q", o.name) }
