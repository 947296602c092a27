package weir

import (
	"errors"
	"fmt"
	"reflect"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/internal/inside"
	"github.com/weirstream/weir/processor"
	"github.com/weirstream/weir/record"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/source"
)

// KV is a value with its key, as keyed aggregations emit it.
type KV[K, V any] = record.KV[K, V]

// Meta tells where an input record came from.
type Meta = record.Meta

// Stream is a stream of values of type T at one place of the topology. It may be
// used any number of times: each use sees every value. Values are not copied: all uses, and
// whatever is behind a [KeyBy] on another goroutine, have the same one. What it points to
// must not be changed once it was emitted. The zero Stream belongs to no app: an operator
// on it panics.
type Stream[T any] struct {
	app  *App
	node *node
	out  *outlet[T]
}

// outlet collects what consumes a stream. For every subtask that the stream's
// operator runs on, each consumer makes its own function.
type outlet[T any] struct {
	app       *App
	id        string
	consumers []func(s *processor.Subtask) func(T)
}

func (o *outlet[T]) add(c func(s *processor.Subtask) func(T)) { o.consumers = append(o.consumers, c) }

// build returns the function that hands a value to all consumers on subtask s.
func (o *outlet[T]) build(s *processor.Subtask) func(T) {
	var fs []func(T)
	if o.app.shown {
		fs = append(fs, func(v T) { s.Show(o.id, v) })
	}
	for _, c := range o.consumers {
		fs = append(fs, c(s))
	}
	switch len(fs) {
	case 0:
		return func(T) {}
	case 1:
		return fs[0]
	}
	return func(v T) {
		for _, f := range fs {
			f(v)
		}
	}
}

func newStream[T any](app *App, n *node) Stream[T] {
	n.values = reflect.TypeFor[T]()
	return Stream[T]{app: app, node: n, out: &outlet[T]{app: app, id: n.id}}
}

// SourceOption configures a source.
type SourceOption interface{ applySource(*sourceOptions) }

type sourceOption func(*sourceOptions)

func (f sourceOption) applySource(o *sourceOptions) { f(o) }

type sourceOptions struct {
	undecodable func(error) error
	eventTime   any // func(T) time.Time, or nil: the Kafka timestamp
	watermarks  *processor.Watermarks
	bad         error // an option of event time
}

// OnUndecodable sets what happens to a record that can't be decoded: [Skip],
// [DeadLetter], or any function that turns the decoder's error into the one that
// counts; where that returns nil the record is skipped. Default: the app stops and names the record.
func OnUndecodable(f func(error) error) SourceOption {
	return sourceOption(func(o *sourceOptions) { o.undecodable = f })
}

// From begins a stream with the records of a topic.
func From[T any](app *App, id string, src source.Source[T], opts ...SourceOption) Stream[T] {
	o := sourceOptions{undecodable: func(err error) error { return err }}
	st := newStream[T](app, app.add("from", id, "topic "+src.Topic))
	for i, opt := range opts {
		if opt == nil {
			app.errorf("operator %q: option %d of the source is nil (%s)", id, i+1, st.node.where)
			continue
		}
		opt.applySource(&o)
	}
	if o.undecodable == nil {
		app.errorf("operator %q: weir.OnUndecodable: the function is nil; without the option the app stops at a record that can't be decoded (%s)", id, st.node.where)
	}
	if src.Topic == "" {
		app.errorf("operator %q: the source has no topic (%s)", id, st.node.where)
	}
	timeOf, err := eventTimeOf[T](o)
	if err != nil {
		app.errorf("operator %q: %w (%s)", id, err, st.node.where)
	}
	st.node.timed = o.watermarks != nil
	if err := src.Check(); err != nil {
		app.errorf("operator %q: %w (%s)", id, err, st.node.where)
	} else if src.Decode == nil {
		app.errorf("operator %q: the source of topic %q cannot decode; use source.Values, source.KeyValues or source.Records (%s)", id, src.Topic, st.node.where)
	}
	app.inputs = append(app.inputs, inside.Input{ID: id, Topic: src.Topic, Type: st.node.values, Record: recordOf(src)})
	app.sources.Add(id, src.Topic, func(s *processor.Subtask) func(*kgo.Record) {
		op, next := s.Operator(id), st.out.build(s)
		return func(r *kgo.Record) {
			op.Enter()
			v, err := src.Decode(r)
			if err != nil {
				if err = o.undecodable(&processor.Undecodable{Err: err}); err == nil {
					err = Skip(errors.New("undecodable, and the source's policy gave no reason to keep it"))
				}
				op.Fail(err)
				return
			}
			if timeOf != nil {
				s.EventTime(timeOf(r, v).UnixMilli())
			}
			next(v)
		}
	})
	if o.watermarks != nil {
		app.sources.Watermarks(src.Topic, *o.watermarks)
	}
	return st
}

// Map turns each value into another one.
func Map[A, B any](in Stream[A], id string, f func(A) (B, error)) Stream[B] {
	st := newStream[B](in.app, in.app.add("map", id, "", in.node))
	if f == nil {
		in.app.errorf("operator %q: the function is nil (%s)", id, st.node.where)
	}
	in.out.add(func(s *processor.Subtask) func(A) {
		op, next := s.Operator(id), st.out.build(s)
		return func(a A) {
			outer := op.Enter()
			b, err := f(a)
			op.Leave(outer)
			if err != nil {
				op.Fail(err)
				return
			}
			next(b)
		}
	})
	return st
}

// FlatMap turns each value into any number of values, by calling emit for each
// before it returns. What was emitted before an error counts.
func FlatMap[A, B any](in Stream[A], id string, f func(a A, emit func(B)) error) Stream[B] {
	st := newStream[B](in.app, in.app.add("flatmap", id, "", in.node))
	if f == nil {
		in.app.errorf("operator %q: the function is nil (%s)", id, st.node.where)
	}
	in.out.add(func(s *processor.Subtask) func(A) {
		op, next := s.Operator(id), st.out.build(s)
		emit := func(b B) {
			next(b)
			op.Leave(op) // a panic from here on is f's again
		}
		return func(a A) {
			outer := op.Enter()
			err := f(a, emit)
			op.Leave(outer)
			if err != nil {
				op.Fail(err)
			}
		}
	})
	return st
}

// Filter keeps the values for which keep returns true.
func Filter[T any](in Stream[T], id string, keep func(T) bool) Stream[T] {
	st := newStream[T](in.app, in.app.add("filter", id, "", in.node))
	if keep == nil {
		in.app.errorf("operator %q: the function is nil (%s)", id, st.node.where)
	}
	in.out.add(func(s *processor.Subtask) func(T) {
		op, next := s.Operator(id), st.out.build(s)
		return func(v T) {
			outer := op.Enter()
			ok := keep(v)
			op.Leave(outer)
			if ok {
				next(v)
			}
		}
	})
	return st
}

// Merge unites streams of the same type. Values that came through different
// streams have no order among each other.
func Merge[T any](id string, first Stream[T], more ...Stream[T]) Stream[T] {
	var nodes []*node
	ins := append([]Stream[T]{first}, more...)
	for _, in := range ins {
		if in.app == first.app {
			nodes = append(nodes, in.node)
		}
	}
	st := newStream[T](first.app, first.app.add("merge", id, "", nodes...))
	for i, in := range ins {
		switch in.app {
		case first.app:
			in.out.add(st.out.build)
		case nil:
			first.app.errorf("operator %q: stream %d is the zero Stream: want one that weir.From or an operator returned (%s)", id, i+1, st.node.where)
		default:
			first.app.errorf("operator %q: merges streams of two apps (%s)", id, st.node.where)
		}
	}
	return st
}

// To ends a stream in a sink. A stream may end in several.
func To[T any](in Stream[T], id string, to sink.Sink[T]) {
	app := in.app
	if to == nil {
		n := app.add("to", id, "nothing", in.node)
		n.ends = true
		app.errorf("sink %q: is nil (%s)", id, n.where)
		return
	}
	n := app.add("to", id, to.String(), in.node)
	n.ends, n.values = true, reflect.TypeFor[T]()
	if err := to.Check(); err != nil {
		app.errorf("sink %q: %w (%s)", id, err, n.where)
	}
	t, isTopics := to.(sink.Topics)
	if isTopics {
		app.outputs = append(app.outputs, t.Topics()...)
	}
	ahead, isAhead := to.(sink.WriteAhead)
	if isAhead {
		app.ahead = append(app.ahead, processor.WriteAhead{ID: id, Sink: ahead})
	}
	in.out.add(func(s *processor.Subtask) func(T) {
		op := s.Operator(id)
		if app.shown && !isTopics {
			return func(v T) { s.Show(id, v) } // there is no receiver in a test that is stepped
		}
		w, err := to.Open(s.SinkEnv(id))
		if err != nil {
			s.Abort(fmt.Errorf("opening sink %q: %w", id, err))
			return func(T) {}
		}
		if _, logs := w.(sink.Logger); logs != isAhead {
			s.Abort(fmt.Errorf("sink %q: a sink is a sink.WriteAhead if and only if its writers are sink.Loggers: write-ahead %v, logs %v", id, isAhead, logs))
		}
		op.Barriers(w)
		return func(v T) {
			outer := op.Enter()
			err := w.Write(v)
			op.Leave(outer)
			if err != nil {
				op.Fail(err)
			} else if app.shown {
				s.Show(id, v)
			}
		}
	})
}
