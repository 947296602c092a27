package state

import (
	"errors"
	"fmt"
	"math"
	"time"

	"github.com/weirstream/weir/state/segment"
)

// Setup is what a handle is declared on: the weir.Setup that an operator's setup
// function receives.
type Setup interface {
	// StateScope returns the scope of the operator being set up.
	StateScope() *Scope
}

// Scope is the state of one operator on one subtask. It is made by [NewScope] and
// used on that subtask's goroutine only.
type Scope struct {
	operator string
	columns  []column
	errs     []error
	timed    []string // states with a time to live in event time
}

// NewScope returns a scope for the operator's handles. Without a keyspace it only
// collects the declarations, for validation.
func NewScope(operator string) *Scope { return &Scope{operator: operator} }

// Descriptors lists the handles in the order of their declaration.
func (s *Scope) Descriptors() []Descriptor {
	ds := make([]Descriptor, len(s.columns))
	for i, c := range s.columns {
		ds[i] = c.describe()
	}
	return ds
}

// Errors lists what is wrong with the declarations.
func (s *Scope) Errors() []error { return s.errs }

// InEventTime lists the states whose time to live is in event time.
func (s *Scope) InEventTime() []string { return s.timed }

// add registers a column under its name.
func (s *Scope) add(c column) {
	d := c.describe()
	if d.Name == "" {
		s.errs = append(s.errs, fmt.Errorf("operator %q: a %s state has no name", s.operator, d.Kind))
	}
	for _, other := range s.columns {
		if other.describe().Name == d.Name {
			s.errs = append(s.errs, fmt.Errorf("operator %q: state name %q used twice", s.operator, d.Name))
		}
	}
	s.columns = append(s.columns, c)
}

// Option changes what a handle does.
type Option interface{ apply(*options) }

type option func(*options)

func (f option) apply(o *options) { f(o) }

type options struct {
	ttl    time.Duration
	domain segment.Domain
	onRead bool
	bad    error
}

// TTLOption changes how time to live is counted.
type TTLOption interface{ applyTTL(*options) }

type ttlOption func(*options)

func (f ttlOption) applyTTL(o *options) { f(o) }

// TTL makes an entry vanish when d has passed since it was written. By default it
// counts processing time, to the millisecond; that clock stands while a batch of records is
// processed. An expired entry reads as not set from
// that instant on; its memory and its place in checkpoints are reclaimed later.
//
// What was written before the handle had a time to live, or in event time before there
// was a watermark, counts as written when it is read first. Without a backing it need not
// be read for that.
//
// What was written when the handle had another time to live expires when it was to. If a
// new version of the app takes the time to live away, what had expired when that started
// first does not come back, and all else stays. So it is if it counts by another clock: then
// an entry counts as written when it is read first. Without a backing a start reads all. If a
// later version brings the old clock back, what would have expired in between counts as
// written when it is read first, and what was not read since expires when it was to.
func TTL(d time.Duration, how ...TTLOption) Option {
	return option(func(o *options) {
		o.ttl, o.domain = d, segment.ProcessingTime
		for i, h := range how {
			if h == nil {
				o.bad = fmt.Errorf("option %d of the time to live is nil", i+1)
				continue
			}
			h.applyTTL(o)
		}
	})
}

// InEventTime makes a [TTL] count event time: an entry expires when the watermark
// passes the watermark at which it was written by the time to live. A source that the
// operator reads from must tell event time.
var InEventTime TTLOption = ttlOption(func(o *options) { o.domain = segment.EventTime })

// OnRead makes a [TTL] count from the last time that the entry was read or written.
// A read that moves the expiry by less than a thirty-second of the time to live does
// not move it, so that not every read is a change.
var OnRead TTLOption = ttlOption(func(o *options) { o.onRead = true })

// minRefresh is the part of the time to live by which a read must move the expiry.
const minRefresh = 32

// unstamped is the expiry of an entry whose time to live has not begun: it was written
// before the time was known, or before the handle had a time to live. It is stored as
// one that never expires, and stamped when it is read or swept.
const unstamped = math.MaxInt64

// unknownTime is what a clock tells of which nothing is known.
const unknownTime = math.MinInt64

// stamp is the expiry of an entry that is written now.
func (o *options) stamp(now int64) int64 {
	if now == unknownTime {
		return unstamped
	}
	// A timer may be set for the last millisecond that there is, as one that fires at the end of
	// the input. When there is input again, time is before that.
	if ttl := o.ttl.Milliseconds(); now < unstamped-ttl {
		return now + ttl
	}
	return unstamped
}

// moves tells whether reading an entry changes its expiry.
func (o *options) moves(expires, now int64) bool {
	if now == unknownTime || expires == unstamped {
		return now != unknownTime
	}
	ttl := o.ttl.Milliseconds()
	return o.onRead && now >= expires-(ttl-ttl/minRefresh)
}

// header is what an entry is stored with.
func (o *options) header(version int, expires int64) segment.Header {
	if o.domain == segment.Forever || expires == unstamped {
		return segment.Header{Version: version}
	}
	return segment.Header{Version: version, Domain: o.domain, Expires: expires}
}

// expiry is the expiry of an entry that was stored with h.
func (o *options) expiry(h segment.Header, spared bool) int64 {
	if h.Domain != o.domain || spared {
		return unstamped // the handle got its time to live, or another clock, since then
	}
	return h.Expires
}

// outdated tells whether an entry was stored with h when the handle had a time to live by
// a clock that is not, or no more, its own. Reading it writes it anew, so that it counts as
// written then also after a restart.
func (o *options) outdated(h segment.Header) bool {
	return h.Domain != segment.Forever && h.Domain != o.domain
}

func (s *Scope) optionsOf(name string, opts []Option) (o options, err error) {
	for i, opt := range opts {
		if opt == nil {
			return o, fmt.Errorf("option %d is nil", i+1)
		}
		opt.apply(&o)
	}
	if o.bad != nil {
		return o, o.bad
	}
	if o.domain == segment.EventTime {
		s.timed = append(s.timed, name)
	}
	if o.domain != segment.Forever && o.ttl < time.Millisecond {
		err = errors.New("the time to live must be at least a millisecond")
	}
	return o, err
}
