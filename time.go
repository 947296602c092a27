package weir

import (
	"fmt"
	"reflect"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/processor"
	"github.com/weirstream/weir/state"
)

// EventTimeOption configures the watermarks of a source, see [EventTime].
type EventTimeOption interface{ applyEventTime(*processor.Watermarks) }

type eventTimeOption func(*processor.Watermarks)

func (f eventTimeOption) applyEventTime(w *processor.Watermarks) { f(w) }

// EventTime makes a source tell event time, and says which time a value has. T is the
// type of the source's values. Time counts in milliseconds.
//
// The watermark of a partition is the time of its newest record, less the bound of
// [OutOfOrder], less a millisecond: no older record is expected. An operator's
// watermark is the least of those of the partitions whose records may reach it. It
// makes event-time timers fire. A source without EventTime or [RecordTime] holds no
// watermark back.
//
// f is called once for each record. If it panics, that counts as a panic of the source.
func EventTime[T any](f func(T) time.Time, opts ...EventTimeOption) SourceOption {
	return sourceOption(func(o *sourceOptions) { o.tellTime(f, opts) })
}

// RecordTime is [EventTime] with the Kafka timestamp of each record.
func RecordTime(opts ...EventTimeOption) SourceOption {
	return sourceOption(func(o *sourceOptions) { o.tellTime(nil, opts) })
}

func (o *sourceOptions) tellTime(f any, opts []EventTimeOption) {
	o.eventTime, o.watermarks = f, &processor.Watermarks{}
	for i, opt := range opts {
		if opt == nil {
			o.bad = fmt.Errorf("option %d of event time is nil", i+1)
			continue
		}
		opt.applyEventTime(o.watermarks)
	}
}

// OutOfOrder sets by how much a record may be older than one that came before it in its
// partition. One that is older still is late. Default 0.
func OutOfOrder(d time.Duration) EventTimeOption {
	return eventTimeOption(func(w *processor.Watermarks) { w.OutOfOrder = d })
}

// Idle makes a partition that had no records for d hold the watermark back no longer,
// until records come again. Default: a partition without records holds it back for
// ever, also one that never had any.
func Idle(d time.Duration) EventTimeOption {
	return eventTimeOption(func(w *processor.Watermarks) { w.Idle = d })
}

// eventTimeOf returns what tells the event time of a record; nil is its Kafka timestamp
// without watermarks.
func eventTimeOf[T any](o sourceOptions) (func(*kgo.Record, T) time.Time, error) {
	if o.watermarks == nil {
		return nil, nil
	}
	if o.bad != nil {
		return nil, o.bad
	}
	if o.watermarks.OutOfOrder < 0 {
		return nil, fmt.Errorf("weir.OutOfOrder(%v): want 0 or more", o.watermarks.OutOfOrder)
	}
	if o.watermarks.Idle < 0 || o.watermarks.Idle > 0 && o.watermarks.Idle < time.Millisecond {
		return nil, fmt.Errorf("weir.Idle(%v): want at least a millisecond, or 0 for never", o.watermarks.Idle)
	}
	switch f := o.eventTime.(type) {
	case nil:
		return func(r *kgo.Record, _ T) time.Time { return r.Timestamp }, nil
	case func(T) time.Time:
		if f == nil {
			return nil, fmt.Errorf("weir.EventTime: the function is nil; use weir.RecordTime for the Kafka timestamp")
		}
		return func(_ *kgo.Record, v T) time.Time { return f(v) }, nil
	}
	return nil, fmt.Errorf("weir.EventTime takes a %s, the source has values of type %s", reflect.TypeOf(o.eventTime).In(0), reflect.TypeFor[T]())
}

// Timer is a timer that fires, see [Handler.OnTimer].
type Timer = state.Timer

// OnTimer adds a function that is called when a timer fires that was set with
// [state.EventTimers] or [state.ProcessingTimers], with the timer's key as the current
// one. It may do whatever a handler may do: read and change state, emit, set and delete
// timers. Its errors count as those of a handler, but there is no input record that
// could be dead-lettered. [Context.Meta] has no topic then, and as timestamp the time of
// the timer, which is also that of the records that a Kafka sink writes.
func (h Handler[K, T, O]) OnTimer(f func(c *Context[K, O], t Timer) error) Handler[K, T, O] {
	h.onTimer = f
	return h
}

// EventTime is the event time of the record that is handled, by its source's
// [EventTime], or else its Kafka timestamp. While a timer fires it is the timer's time.
func (c *Context[K, O]) EventTime() time.Time { return c.sub.Time() }

// Watermark is the time up to which no record is expected any more; ok is false while
// nothing is known of it.
func (c *Context[K, O]) Watermark() (at time.Time, ok bool) {
	ms, ok := c.sub.Watermark()
	if !ok {
		return time.Time{}, false
	}
	return time.UnixMilli(ms), true
}

// Late tells whether the record that is handled came behind the watermark: its event
// time is not after it.
func (c *Context[K, O]) Late() bool {
	ms, ok := c.sub.Watermark()
	return ok && c.sub.Time().UnixMilli() <= ms
}

// checkTimers reports timers that nothing handles or that nothing makes fire.
func checkTimers(app *App, n *node, timers []*state.Timers, handled bool) {
	if len(timers) == 0 && handled {
		app.errorf("operator %q: has an OnTimer function and no timers: declare state.EventTimers or state.ProcessingTimers in its setup (%s)", n.id, n.where)
	}
	if len(timers) > 0 && !handled {
		app.errorf("operator %q: declares timers and has no function for them: add OnTimer to its handler (%s)", n.id, n.where)
	}
	for _, t := range timers {
		if t.EventTime() && !n.hasEventTime() {
			app.errorf("operator %q: its event-time timers would never fire: no source that it reads from tells event time; give one of them weir.EventTime or weir.RecordTime (%s)", n.id, n.where)
		}
	}
}

// hasEventTime tells whether a source of the operator tells event time.
func (n *node) hasEventTime() bool {
	if n.timed {
		return true
	}
	for _, in := range n.inputs {
		if in.hasEventTime() {
			return true
		}
	}
	return false
}
