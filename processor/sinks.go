package processor

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/weirstream/weir/record"
	"github.com/weirstream/weir/sink"
)

// env is what a sink's writer sees of its subtask.
type env struct{ op *Operator }

// SinkEnv returns the environment of the sink with this operator ID.
func (s *Subtask) SinkEnv(id string) sink.Env { return env{s.Operator(id)} }

func (e env) Operator() string         { return e.op.ID }
func (e env) Subtask() int             { return e.op.sub.index }
func (e env) Meta() record.Meta        { return e.op.sub.Meta() }
func (e env) Output() sink.Output      { return &e.op.sub.out }
func (e env) Context() context.Context { return e.op.sub.inc.ctx }
func (e env) Applier() sink.Applier    { return nil }

// flusher is a writer that is to be flushed at barriers.
type flusher struct {
	op *Operator
	w  sink.Flusher
}

// Barriers makes the writer of the operator's sink take part in barriers, as far as it
// wants to. Writers do so in the order of the calls.
func (o *Operator) Barriers(writer any) {
	if f, ok := writer.(sink.Flusher); ok {
		o.sub.flushers = append(o.sub.flushers, flusher{o, f})
	}
}

// flushSinks flushes the subtask's sinks at barrier id.
func (s *Subtask) flushSinks(id int64) {
	if len(s.flushers) == 0 {
		return
	}
	begun := time.Now()
	defer func() { s.flushed = time.Since(begun) }()
	for _, f := range s.flushers {
		f.op.atBarrier(id, func() error { return f.w.Flush(s.inc.ctx) })
	}
}

// atBarrier calls a function of a sink's writer at barrier id, and makes its error or
// panic the subtask's.
func (o *Operator) atBarrier(id int64, f func() error) {
	s := o.sub
	if s.err != nil {
		return
	}
	he := &HandlerError{App: s.inc.cfg.App, Operator: o.ID, Barrier: id, Checkpoint: s.inc.committed.Load()}
	defer func() {
		if p := recover(); p != nil {
			he.Err, he.Panic, he.Stack = asError(p), true, string(debug.Stack())
			s.err = fatal(he)
		}
	}()
	he.Err = f()
	if he.Err == nil {
		return
	}
	if err := context.Cause(s.inc.ctx); err != nil {
		s.err = err // the incarnation ended already: this follows from it
		return
	}
	var again *Retriable
	if s.err = fatal(he); errors.As(he.Err, &again) {
		s.err = he
	}
}

// asError returns what a function panicked with as an error.
func asError(p any) error {
	if err, ok := p.(error); ok {
		return err
	}
	return fmt.Errorf("%v", p)
}
