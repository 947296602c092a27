package offline

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"iter"
	"slices"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/state/segment"
)

// Change is an entry that is not the same in two snapshots.
type Change struct {
	What   What
	Before Row // the zero Row if What is Added
	After  Row // the zero Row if What is Removed
}

// What is the kind of a [Change].
type What string

// What may have become of an entry.
const (
	Added   What = "added"
	Removed What = "removed"
	Changed What = "changed" // another value, codec version or time of expiry
)

// Row returns the row that stands for the entry: the one after, if there is one.
func (c Change) Row() Row {
	if c.What == Removed {
		return c.Before
	}
	return c.After
}

// KeyGroupsError says that two snapshots keep their keys in different numbers of
// key-groups.
type KeyGroupsError struct{ Before, After int }

func (e *KeyGroupsError) Error() string {
	return fmt.Sprintf("compare snapshots: one has %d key-groups, the other %d; write a savepoint of one of them with the other's key-group count and compare that", e.Before, e.After)
}

// Diff yields what changed from before to after, by operator, state, key-group and
// stored key. States are matched by operator and name; one whose kind or key codec
// changed was removed and added. States that the want function refuses are left out; nil
// takes all. Options are [At], [KeyGroups], [IncludeExpired] and [Messages].
func Diff(ctx context.Context, before, after *Snapshot, want func(checkpoint.StateInfo) bool, opts ...Option) iter.Seq2[Change, error] {
	return func(yield func(Change, error) bool) {
		if b, a := before.manifest.KeyGroups, after.manifest.KeyGroups; b != a {
			yield(Change{}, &KeyGroupsError{b, a})
			return
		}
		for _, p := range pairs(before, after) {
			if want != nil && !want(p.info()) {
				continue
			}
			ok, err := diffState(ctx, before, after, p, opts, func(c Change) bool { return yield(c, nil) })
			if err != nil {
				yield(Change{}, err)
				return
			}
			if !ok {
				return
			}
		}
	}
}

// pair is a state in two snapshots, or in one of them.
type pair struct{ before, after *checkpoint.StateInfo }

func (p pair) info() checkpoint.StateInfo {
	if p.after != nil {
		return *p.after
	}
	return *p.before
}

func pairs(before, after *Snapshot) []pair {
	var ps []pair
	for _, s := range before.States() {
		ps = append(ps, pair{before: &s})
	}
	for _, s := range after.States() {
		i := slices.IndexFunc(ps, func(p pair) bool {
			return p.before != nil && p.before.Operator == s.Operator && p.before.Name == s.Name && p.before.Kind == s.Kind && p.before.KeyCodec == s.KeyCodec && p.before.SubCodec == s.SubCodec
		})
		if i >= 0 {
			ps[i].after = &s
		} else {
			ps = append(ps, pair{after: &s})
		}
	}
	slices.SortStableFunc(ps, func(a, b pair) int {
		return cmp.Or(cmp.Compare(a.info().Operator, b.info().Operator), cmp.Compare(a.info().Name, b.info().Name))
	})
	return ps
}

// side is one snapshot's entries of a state.
type side struct {
	s    *Snapshot
	o    *options
	info checkpoint.StateInfo
	row  Layout
	next func() (segment.Entry, error, bool)
	stop func()
	e    segment.Entry
	ok   bool
}

func newSide(ctx context.Context, s *Snapshot, info *checkpoint.StateInfo, opts []Option) *side {
	d := &side{s: s, o: s.options(opts), stop: func() {}}
	if info == nil {
		d.next = func() (e segment.Entry, err error, ok bool) { return e, nil, false }
		return d
	}
	d.info, d.row = *info, layoutOf(*info, d.o)
	d.next, d.stop = iter.Pull2(s.entries(ctx, d.o, []uint16{info.ID}))
	return d
}

// advance moves to the next entry that counts.
func (d *side) advance() error {
	for {
		e, err, ok := d.next()
		if !ok || err != nil {
			d.ok = false
			return err
		}
		_, _, expired, err := d.o.header(e)
		if err != nil {
			return d.s.entryError(d.info, e, err)
		}
		if !expired || d.o.expired {
			d.e, d.ok = e, true
			return nil
		}
	}
}

func (d *side) toRow() (Row, error) {
	r, err := d.row.row(d.e, d.o)
	if err != nil {
		err = d.s.entryError(d.info, d.e, err)
	}
	return r, err
}

// diffState yields the changes of one state. It returns false if yield wants no more.
func diffState(ctx context.Context, before, after *Snapshot, p pair, opts []Option, yield func(Change) bool) (bool, error) {
	b, a := newSide(ctx, before, p.before, opts), newSide(ctx, after, p.after, opts)
	defer b.stop()
	defer a.stop()
	if err := errors.Join(b.advance(), a.advance()); err != nil {
		return false, err
	}
	for b.ok || a.ok {
		var order int
		switch {
		case !a.ok:
			order = -1
		case !b.ok:
			order = 1
		default:
			order = cmp.Or(cmp.Compare(b.e.KeyGroup, a.e.KeyGroup), bytes.Compare(b.e.Key, a.e.Key))
		}
		c := Change{What: Changed}
		var err error
		switch {
		case order < 0:
			c.What = Removed
			c.Before, err = b.toRow()
		case order > 0:
			c.What = Added
			c.After, err = a.toRow()
		case bytes.Equal(b.e.Value, a.e.Value) && p.before.ValueCodec == p.after.ValueCodec:
			c.What = ""
		default:
			if c.Before, err = b.toRow(); err == nil {
				c.After, err = a.toRow()
			}
		}
		if err != nil {
			return false, err
		}
		if c.What != "" && !yield(c) {
			return false, nil
		}
		if order <= 0 {
			err = b.advance()
		}
		if order >= 0 && err == nil {
			err = a.advance()
		}
		if err != nil {
			return false, err
		}
	}
	return true, nil
}
