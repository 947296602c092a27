package weir

import (
	"reflect"
	"strings"
	"time"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/processor"
	"github.com/weirstream/weir/state"
)

// Keyed is a stream divided by key: the operators on it keep state for each key,
// and see the values of a key in order.
type Keyed[K comparable, T any] struct {
	app   *App
	node  *node
	stage *processor.KeyedStage[K, T]
	codec codec.Codec[K]
}

// EdgeOption configures a [KeyBy] or a [Broadcast] of values of type T.
type EdgeOption[T any] func(*edgeOptions[T])

type edgeOptions[T any] struct{ values codec.Codec[T] }

// ValueCodec sets the codec with which checkpoints store values that are in flight to the
// operators behind a [KeyBy], or to those that hear a [Broadcast]. [Unaligned] and
// [AlignmentTimeout] need it on every KeyBy, and on every broadcast stream that is heard.
// It is also needed to start from a checkpoint that holds such values.
func ValueCodec[T any](c codec.Codec[T]) EdgeOption[T] {
	return func(o *edgeOptions[T]) { o.values = c }
}

// edge applies options of the operator that n is.
func edge[T any](app *App, n *node, opts []EdgeOption[T]) codec.Codec[T] {
	var o edgeOptions[T]
	for i, opt := range opts {
		if opt == nil {
			app.errorf("operator %q: option %d is nil (%s)", n.id, i+1, n.where)
			continue
		}
		opt(&o)
	}
	if o.values != nil {
		if err := codec.Check(o.values); err != nil {
			app.errorf("operator %q: weir.ValueCodec: %w (%s)", n.id, err, n.where)
		}
	}
	return o.values
}

// KeyBy divides a stream by the key that key returns. c encodes the key, for the
// choice of the key-group and in state; the same key must always give the same
// bytes, and be decoded from them: if not, a record fails whose key is to get state. Keys
// that were read from a checkpoint are compared with those that key returns,
// by ==: so K must hold no pointer, channel, interface or time.Time.
func KeyBy[T any, K comparable](in Stream[T], id string, key func(T) K, c codec.Codec[K], opts ...EdgeOption[T]) Keyed[K, T] {
	app := in.app
	n := app.add("keyby", id, "", in.node)
	k := Keyed[K, T]{app: app, node: n, codec: c, stage: processor.NewKeyedStage(id, key, c)}
	if c == nil {
		app.errorf("operator %q: key type %s has no codec (%s)", id, reflect.TypeFor[K](), n.where)
	} else if err := codec.Check(c); err != nil {
		app.errorf("operator %q: %w (%s)", id, err, n.where)
	}
	if part := incomparable(reflect.TypeFor[K]()); part != nil {
		app.errorf("operator %q: keys of type %s: one that was read from a checkpoint is not == to the one that was written, because of %s; use what it stands for, such as UnixMilli of a time, a string, or the value that a pointer points to (%s)", id, reflect.TypeFor[K](), part, n.where)
	}
	if key == nil {
		app.errorf("operator %q: the key function is nil (%s)", id, n.where)
	}
	if values := edge(app, n, opts); values != nil {
		k.stage.InFlight(values)
	}
	app.stages = append(app.stages, k.stage)
	in.out.add(k.stage.Send)
	return k
}

// incomparable returns a part of a key type of which a value is not == to itself after it
// was encoded and decoded; nil if there is none.
func incomparable(t reflect.Type) reflect.Type {
	if t == reflect.TypeFor[time.Time]() {
		return t // it holds a pointer to its location
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.UnsafePointer, reflect.Chan, reflect.Interface, reflect.Func:
		return t
	case reflect.Array:
		return incomparable(t.Elem())
	case reflect.Struct:
		if t.PkgPath() == "unique" {
			return nil // a unique.Handle, as in a netip.Addr: equal values have one pointer
		}
		for i := range t.NumField() {
			if part := incomparable(t.Field(i).Type); part != nil {
				return part
			}
		}
	}
	return nil
}

// Setup is what a process function's setup declares its state on.
type Setup struct {
	scope *state.Scope
	heard []hearing
}

// StateScope implements [state.Setup].
func (s *Setup) StateScope() *state.Scope { return s.scope }

// Context is what a handler may use while it runs. It must not be kept.
type Context[K comparable, O any] struct {
	sub  *processor.Subtask
	op   *processor.Operator
	keys *state.Keyspace[K]
	emit func(O)
	side []sideFunc
}

// Key is the current key.
func (c *Context[K, O]) Key() K { return c.keys.Key() }

// Emit sends a value downstream. It is not copied, see [Stream].
func (c *Context[K, O]) Emit(v O) {
	c.emit(v)
	c.op.Leave(c.op)
}

// Meta tells where the input record came from.
func (c *Context[K, O]) Meta() Meta { return c.sub.Meta() }

// Timestamp is the Kafka timestamp of the input record; see also [Context.EventTime].
func (c *Context[K, O]) Timestamp() time.Time { return c.sub.Meta().Timestamp() }

// Handler is what a process function does.
type Handler[K comparable, T, O any] struct {
	onRecord func(*Context[K, O], T) error
	onTimer  func(*Context[K, O], Timer) error
}

// OnRecord returns a handler that calls f for every value.
func OnRecord[K comparable, T, O any](f func(c *Context[K, O], v T) error) Handler[K, T, O] {
	return Handler[K, T, O]{onRecord: f}
}

// Process runs a handler with state over a keyed stream. setup declares the state
// and returns the handler; it is called once for validation, and for each subtask at the
// start and at each restart inside Run. It must declare the same states each time.
func Process[K comparable, T, O any](in Keyed[K, T], id string, setup func(s *Setup) Handler[K, T, O]) Stream[O] {
	st := newStream[O](in.app, in.app.add("process", id, "", in.node))
	if setup == nil {
		in.app.errorf("operator %q: the setup function is nil (%s)", id, st.node.where)
		return st
	}
	var handler Handler[K, T, O]
	var hears []int
	declareStates(in, st.node, func(sc *state.Scope) {
		s := &Setup{scope: sc}
		handler = setup(s)
		hears = connect(in, st.node, s.heard)
		checkTimers(in.app, st.node, sc.Timers(), handler.onTimer != nil)
	})
	if handler.onRecord == nil {
		in.app.errorf("operator %q: setup returned a handler without a function; use weir.OnRecord (%s)", id, st.node.where)
		return st
	}
	in.stage.Add(processor.KeyedOperator[K, T]{ID: id, Build: func(s *processor.Subtask, ks *state.Keyspace[K]) (*state.Scope, func(T)) {
		scope := state.NewScope(id)
		su := &Setup{scope: scope}
		h := setup(su)
		c := &Context[K, O]{sub: s, op: s.Operator(id), keys: ks, emit: st.out.build(s), side: st.node.buildSides(s)}
		for i, number := range hears {
			if i < len(su.heard) {
				c.op.Hears(number, su.heard[i].handle)
			}
		}
		for _, t := range scope.Timers() {
			c.op.Fires(t, func(t Timer) error { return h.onTimer(c, t) })
		}
		return scope, func(v T) {
			outer := c.op.Enter()
			err := h.onRecord(c, v)
			c.op.Leave(outer)
			if err != nil {
				c.op.Fail(err)
			}
		}
	}})
	return st
}

// declareStates collects the states that an operator on a keyed stream declares.
func declareStates[K comparable, T any](in Keyed[K, T], n *node, setup func(*state.Scope)) {
	scope := state.NewScope(n.id)
	setup(scope)
	for _, err := range scope.Errors() {
		in.app.errorf("%w (%s)", err, n.where)
	}
	for _, name := range scope.InEventTime() {
		if !n.hasEventTime() {
			in.app.errorf("operator %q: state %q would never expire: its time to live is in event time, and no source that the operator reads from tells it; give one of them weir.EventTime or weir.RecordTime (%s)", n.id, name, n.where)
		}
	}
	keyCodec := ""
	if in.codec != nil {
		keyCodec = in.codec.Name()
	}
	for _, d := range scope.Descriptors() {
		n.states = append(n.states, strings.TrimSpace(d.Name+" "+d.ValueCodec))
		in.app.states = append(in.app.states, processor.DeclaredState{Descriptor: d, Stage: in.node.id, KeyCodec: keyCodec})
	}
}
