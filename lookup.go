package weir

import (
	"errors"
	"fmt"

	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/processor"
)

// LookupError says that a look-up failed as a whole, so that no record is to blame: what
// it asks could not be reached for too long, or refused. [App.Run] returns it wrapped.
type LookupError = processor.LookupError

// Lookup looks up a key of each value elsewhere, in Redis for example, and joins the value
// with what was found. Many look-ups are under way at once, in batches and without holding
// up the stream; results leave in the order in which the values came, for each input
// partition and each key, as everywhere. See package lookup for sources and options.
//
// key and join are called by the subtask, like the function of [Map], and join's errors are
// treated like those of one: for a key that isn't there it can return [Skip] or
// [DeadLetter]. What was found may be shared by records of one subtask: join must not
// change it.
//
// A look-up is no part of exactly-once: it reads what is there at the time, and after a
// failure it reads again, perhaps something else. What came of it is committed once.
func Lookup[A, B any, K comparable, V any](in Stream[A], id string, from lookup.Source[K, V], key func(A) K,
	join func(a A, v V, found bool) (B, error), opts ...lookup.Option) Stream[B] {
	app, how := in.app, lookup.NewSettings(opts)
	detail := "nothing"
	if from != nil {
		detail = from.String()
	}
	if s := how.String(); s != "" {
		detail += ", " + s
	}
	st := newStream[B](app, app.add("lookup", id, detail, in.node))
	bad := func(err error) {
		if err != nil {
			app.errorf("operator %q: %w (%s)", id, err, st.node.where)
		}
	}
	if from == nil {
		bad(errors.New("what it looks up in is nil; use package sink/redis, lookup.Each or lookup.Batch"))
	} else {
		bad(from.Check())
	}
	if key == nil {
		bad(errors.New("the key function is nil"))
	}
	if join == nil {
		bad(errors.New("the function that joins a value with what was found is nil"))
	}
	bad(how.Check())
	st.node.asks = how
	l := processor.Lookup[A, K, V]{ID: id, From: from, Key: key, How: how}
	in.out.add(func(s *processor.Subtask) func(A) {
		return l.Build(s, func(s *processor.Subtask, op *processor.Operator) func(A, V, bool) {
			next := st.out.build(s)
			return func(a A, v V, found bool) {
				outer := op.Enter()
				b, err := join(a, v, found)
				op.Leave(outer)
				if err != nil {
					op.Fail(err)
					return
				}
				next(b)
			}
		})
	})
	return st
}

// checkLookups reports look-ups that may hold up a barrier for longer than a checkpoint
// may take.
func (a *App) checkLookups(cfg processor.Config) (errs []error) {
	for _, n := range a.nodes {
		// The last call may begin just before it is given up.
		if cfg.CheckpointTimeout > 0 && n.asks.GiveUpAfter >= cfg.CheckpointTimeout-n.asks.Timeout {
			errs = append(errs, fmt.Errorf("operator %q: lookup.GiveUpAfter(%v) and lookup.Timeout(%v): barriers wait for look-ups, and a checkpoint may take %v: want less, or a longer weir.CheckpointTimeout (%s)", n.id, n.asks.GiveUpAfter, n.asks.Timeout, cfg.CheckpointTimeout, n.where))
		}
	}
	return errs
}
