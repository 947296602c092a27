package weirtest

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/weirstream/weir/processor"
	"github.com/weirstream/weir/state"
)

// Value returns what the state of an operator holds for a key now, committed or not, and
// whether it holds anything: a state made by state.Value or state.Reducing, the accumulator
// of state.Aggregating, and as "acc" that of weir.Aggregate and weir.Reduce. V is the type
// of the value. Looking does not count as reading for a time to live.
func Value[V any, K comparable](h *Harness, operator, name string, key K) (v V, ok bool) {
	h.t.Helper()
	for _, ks := range spaces[K](h, operator, name) {
		found, set, err := state.LookValue[V](ks, operator, name, key)
		if err != nil {
			h.t.Fatalf("weirtest: %v", err)
			return v, false
		}
		if set {
			return found, true
		}
	}
	return v, false
}

// Map returns what a state made by state.Map holds for a key now. It is never nil.
func Map[MK comparable, MV any, K comparable](h *Harness, operator, name string, key K) map[MK]MV {
	h.t.Helper()
	m := map[MK]MV{}
	for _, ks := range spaces[K](h, operator, name) {
		all, err := state.LookMap[MK, MV](ks, operator, name, key)
		if err != nil {
			h.t.Fatalf("weirtest: %v", err)
			return m
		}
		for k, v := range all {
			m[k] = v
		}
	}
	return m
}

// List returns what a state made by state.List holds for a key now.
func List[V any, K comparable](h *Harness, operator, name string, key K) (vs []V) {
	h.t.Helper()
	for _, ks := range spaces[K](h, operator, name) {
		found, err := state.LookList[V](ks, operator, name, key)
		if err != nil {
			h.t.Fatalf("weirtest: %v", err)
			return nil
		}
		vs = append(vs, found...)
	}
	return vs
}

// Broadcast returns what a state made by state.Broadcast holds now. It fails the test if
// the subtasks don't hold the same.
func Broadcast[MK comparable, MV any](h *Harness, operator, name string) map[MK]MV {
	h.t.Helper()
	var first map[MK]MV
	for i, space := range untyped(h, operator, name) {
		all, err := state.LookBroadcast[MK, MV](space, operator, name)
		if err != nil {
			h.t.Fatalf("weirtest: %v", err)
			return nil
		}
		m := map[MK]MV{}
		for k, v := range all {
			m[k] = v
		}
		if i == 0 {
			first = m
		} else if !reflect.DeepEqual(m, first) {
			h.t.Fatalf("weirtest: operator %q, broadcast state %q: subtask %d holds %+v, subtask 0 %+v: its handler must write the same everywhere", operator, name, i, m, first)
		}
	}
	return first
}

// Timers returns the timers that are set for a key of an operator, in the order of their
// times.
func Timers[K comparable](h *Harness, operator string, key K) (set []state.Timer) {
	h.t.Helper()
	for _, name := range []string{state.EventTimersName, state.ProcessingTimersName} {
		if _, ok := declared(h, operator, name); !ok {
			continue
		}
		for _, ks := range spaces[K](h, operator, name) {
			found, err := state.LookTimers(ks, operator, key)
			if err != nil {
				h.t.Fatalf("weirtest: %v", err)
				return nil
			}
			set = append(set, found...)
		}
		return set // those of the other clock are among them
	}
	var known []string
	for _, d := range h.app.Plan.States {
		if (d.Name == state.EventTimersName || d.Name == state.ProcessingTimersName) && !slices.Contains(known, d.Operator) {
			known = append(known, d.Operator)
		}
	}
	has := "no operator of the topology has any"
	if len(known) > 0 {
		has = "there are those of " + strings.Join(known, ", ")
	}
	h.t.Fatalf("weirtest: operator %q has no timers; %s", operator, has)
	return nil
}

func declared(h *Harness, operator, name string) (processor.DeclaredState, bool) {
	for _, d := range h.app.Plan.States {
		if d.Operator == operator && d.Name == name {
			return d, true
		}
	}
	return processor.DeclaredState{}, false
}

// untyped returns the keyspaces that hold a state.
func untyped(h *Harness, operator, name string) (found []any) {
	h.t.Helper()
	d, ok := declared(h, operator, name)
	if !ok {
		var known []string
		for _, d := range h.app.Plan.States {
			known = append(known, d.Operator+"/"+d.Name)
		}
		has := "it keeps no state"
		if len(known) > 0 {
			has = "it has " + strings.Join(known, ", ")
		}
		h.t.Fatalf("weirtest: the topology has no state %q of operator %q; %s", name, operator, has)
		return nil
	}
	h.must(fmt.Sprintf("look at state %q of operator %q", name, operator), func(s *processor.Stepper) error {
		found = s.Spaces(d.Stage)
		return nil
	})
	return found
}

func spaces[K comparable](h *Harness, operator, name string) (typed []*state.Keyspace[K]) {
	h.t.Helper()
	for _, space := range untyped(h, operator, name) {
		ks, ok := space.(*state.Keyspace[K])
		if !ok {
			keys := strings.TrimSuffix(strings.TrimPrefix(fmt.Sprintf("%T", space), "*state.Keyspace["), "]")
			h.t.Fatalf("weirtest: operator %q has keys of type %s, not %s", operator, keys, reflect.TypeFor[K]())
			return nil
		}
		typed = append(typed, ks)
	}
	return typed
}
