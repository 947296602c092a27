package state

import (
	"fmt"
	"iter"
	"slices"
	"time"

	"github.com/weirstream/weir/state/segment"
)

// The functions of this file let a test look at what is held for a key while no handler
// runs. They change nothing: what is looked at does not count as read. They are for state
// that is in memory as a whole.

// LookValue returns what a state of one value holds for a key: that of [Value] and
// [Reducing], and the accumulator of [Aggregating].
func LookValue[V any, K comparable](ks *Keyspace[K], operator, name string, k K) (v V, ok bool, err error) {
	h, err := find[*OfValue[V]](ks, operator, name)
	if err != nil {
		return v, false, err
	}
	ks.Use(k, 0)
	slot, ok := ks.slot(false)
	if !ok {
		return v, false, nil
	}
	c := h.at(slot)
	if c.flags&cellSet == 0 || h.opts.domain != segment.Forever && h.expires[slot>>chunkBits][slot&chunkMask] <= ks.now(h.opts.domain, slot) {
		return v, false, nil
	}
	return c.v, true, nil
}

// LookMap yields what a [Map] holds for a key, in the order of the map keys.
func LookMap[MK, MV any, K comparable](ks *Keyspace[K], operator, name string, k K) (iter.Seq2[MK, MV], error) {
	h, err := find[*OfMap[MK, MV]](ks, operator, name)
	if err != nil {
		return nil, err
	}
	ks.Use(k, 0)
	return h.seq(span{peek: true}), nil
}

// LookList returns what a [List] holds for a key.
func LookList[V any, K comparable](ks *Keyspace[K], operator, name string, k K) (vs []V, err error) {
	h, err := find[*OfList[V]](ks, operator, name)
	if err != nil {
		return nil, err
	}
	ks.Use(k, 0)
	h.each(span{peek: true}, func(_ string, _ bool, v V) bool {
		vs = append(vs, v)
		return true
	})
	return vs, nil
}

// LookBroadcast yields what a [Broadcast] state holds, in the order of the map keys.
func LookBroadcast[MK, MV any](space any, operator, name string) (iter.Seq2[MK, MV], error) {
	s, ok := space.(interface {
		column(operator, name string) column
	})
	if !ok {
		return nil, fmt.Errorf("%T is no keyspace", space)
	}
	h, err := typed[*OfBroadcast[MK, MV]](s.column(operator, name), operator, name)
	if err != nil {
		return nil, err
	}
	return func(yield func(MK, MV) bool) { rangeOver(&h.entryTable, &h.subkeys, span{peek: true}, yield) }, nil
}

// LookTimers returns the timers that are set for a key, in the order in which they fire.
func LookTimers[K comparable](ks *Keyspace[K], operator string, k K) (set []Timer, err error) {
	ks.Use(k, 0)
	slot, ok := ks.slot(false)
	if !ok {
		return nil, nil
	}
	for _, c := range ks.columns {
		t, ok := c.(*Timers)
		if !ok || t.operator != operator {
			continue
		}
		t.live.Scan(func(it timer) bool {
			if it.slot == slot {
				set = append(set, Timer{At: time.UnixMilli(it.ms), EventTime: t.EventTime()})
			}
			return true
		})
	}
	slices.SortStableFunc(set, func(a, b Timer) int { return a.At.Compare(b.At) })
	return set, nil
}

// column returns the column of a state, nil if there is none.
func (ks *Keyspace[K]) column(operator, name string) column {
	for _, c := range ks.columns {
		if d := c.describe(); d.Operator == operator && d.Name == name {
			return c
		}
	}
	return nil
}

func find[H column, K comparable](ks *Keyspace[K], operator, name string) (H, error) {
	return typed[H](ks.column(operator, name), operator, name)
}

func typed[H column](c column, operator, name string) (h H, err error) {
	if c == nil {
		return h, fmt.Errorf("operator %q has no state %q", operator, name)
	}
	h, ok := c.(H)
	if !ok {
		return h, fmt.Errorf("operator %q, state %q: it is a %T, not a %T", operator, name, c, h)
	}
	return h, nil
}
