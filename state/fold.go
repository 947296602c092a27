package state

import (
	"fmt"

	"github.com/weirstream/weir/codec"
)

// OfReducing is a handle to one value for each key, into which values of the same type
// are combined.
type OfReducing[V any] struct {
	value  *OfValue[V]
	reduce func(acc, v V) V
}

// Reducing declares a state that holds one V for each key, encoded by c. reduce combines
// what is held with a value that is added.
func Reducing[V any](s Setup, name string, reduce func(acc, v V) V, c codec.Codec[V], opts ...Option) *OfReducing[V] {
	scope := s.StateScope()
	if reduce == nil {
		scope.errs = append(scope.errs, fmt.Errorf("operator %q: state %q: the function that reduces is nil", scope.operator, name))
	}
	h := &OfReducing[V]{newValue(scope, KindReducing, name, c, opts), reduce}
	scope.add(h.value)
	return h
}

// Add combines v into the current key's value; the first one becomes the value. Neither
// v nor what reduce returns must be changed afterwards if it holds pointers.
func (h *OfReducing[V]) Add(v V) {
	if acc, ok := h.value.Lookup(); ok {
		v = h.reduce(acc, v)
	}
	h.value.Set(v)
}

// Get returns the current key's value, or the zero value if nothing was added.
func (h *OfReducing[V]) Get() V { return h.value.Get() }

// Lookup returns the current key's value and whether anything was added.
func (h *OfReducing[V]) Lookup() (V, bool) { return h.value.Lookup() }

// Clear forgets what was added for the current key.
func (h *OfReducing[V]) Clear() { h.value.Clear() }

// Aggregator folds values of type T into an accumulator of type A, and makes a result
// of type R from it.
type Aggregator[T, A, R any] struct {
	// Zero makes the accumulator of a key to which nothing was added.
	Zero func() A
	// Add folds a value in and returns the new accumulator. It must not change the one
	// that it was given in place unless it returns it.
	Add func(acc A, v T) A
	// Result makes the result.
	Result func(acc A) R
	// Codec encodes the accumulator in checkpoints.
	Codec codec.Codec[A]
}

// OfAggregating is a handle to one accumulator for each key.
type OfAggregating[T, A, R any] struct {
	value *OfValue[A]
	agg   Aggregator[T, A, R]
}

// Aggregating declares a state that folds values of type T into one accumulator for each
// key, and holds only that.
func Aggregating[T, A, R any](s Setup, name string, agg Aggregator[T, A, R], opts ...Option) *OfAggregating[T, A, R] {
	scope := s.StateScope()
	if agg.Zero == nil || agg.Add == nil || agg.Result == nil {
		scope.errs = append(scope.errs, fmt.Errorf("operator %q: state %q: the aggregator needs Zero, Add and Result", scope.operator, name))
	}
	h := &OfAggregating[T, A, R]{newValue(scope, KindAggregating, name, agg.Codec, opts), agg}
	scope.add(h.value)
	return h
}

// Add folds v into the current key's accumulator.
func (h *OfAggregating[T, A, R]) Add(v T) {
	acc, ok := h.value.Lookup()
	if !ok {
		acc = h.agg.Zero()
	}
	h.value.Set(h.agg.Add(acc, v))
}

// Get returns the current key's result, which is that of the zero accumulator if nothing
// was added.
func (h *OfAggregating[T, A, R]) Get() R {
	r, ok := h.Lookup()
	if !ok {
		r = h.agg.Result(h.agg.Zero())
	}
	return r
}

// Lookup returns the current key's result and whether anything was added.
func (h *OfAggregating[T, A, R]) Lookup() (r R, ok bool) {
	acc, ok := h.value.Lookup()
	if !ok {
		return r, false
	}
	return h.agg.Result(acc), true
}

// Clear forgets what was added for the current key.
func (h *OfAggregating[T, A, R]) Clear() { h.value.Clear() }
