package weir

import (
	"cmp"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/processor"
	"github.com/weirstream/weir/state"
)

// Aggregator folds the values of a key into an accumulator of type A, and makes a
// result of type R from it.
type Aggregator[T, A, R any] struct {
	// Zero makes the accumulator of a key that is seen for the first time.
	Zero func() A
	// Add folds a value in and returns the new accumulator. It must not change the
	// one that it was given in place unless it returns it.
	Add func(acc A, v T) (A, error)
	// Result makes the value that is emitted after each Add. If Add changes the accumulator
	// in place, it must share no memory with it.
	Result func(acc A) R
	// Codec encodes the accumulator in checkpoints.
	Codec codec.Codec[A]
}

// Count counts the values of each key.
func Count[T any]() Aggregator[T, int64, int64] {
	return Aggregator[T, int64, int64]{
		Zero:   func() int64 { return 0 },
		Add:    func(n int64, _ T) (int64, error) { return n + 1, nil },
		Result: func(n int64) int64 { return n },
		Codec:  codec.Int64,
	}
}

// Sum adds up what of returns for the values of each key.
func Sum[T any](of func(T) int64) Aggregator[T, int64, int64] {
	a := Count[T]()
	if of == nil {
		a.Add = nil // reported by Aggregate
		return a
	}
	a.Add = func(n int64, v T) (int64, error) { return n + of(v), nil }
	return a
}

// Max keeps the greatest of what of returns for the values of each key.
func Max[T any, A cmp.Ordered](of func(T) A, c codec.Codec[A]) Aggregator[T, *A, A] {
	return extreme(of, c, func(a, b A) A { return max(a, b) })
}

// Min keeps the least of what of returns for the values of each key.
func Min[T any, A cmp.Ordered](of func(T) A, c codec.Codec[A]) Aggregator[T, *A, A] {
	return extreme(of, c, func(a, b A) A { return min(a, b) })
}

// extreme folds with pick; a nil accumulator has seen nothing.
func extreme[T any, A cmp.Ordered](of func(T) A, c codec.Codec[A], pick func(a, b A) A) Aggregator[T, *A, A] {
	a := Aggregator[T, *A, A]{
		Zero: func() *A { return nil },
		Add: func(acc *A, v T) (*A, error) {
			x := of(v)
			if acc != nil {
				x = pick(*acc, x)
			}
			return &x, nil
		},
		Result: func(acc *A) A { return *acc },
		Codec:  pointer(c),
	}
	if of == nil {
		a.Add = nil // reported by Aggregate
	}
	return a
}

// pointer encodes what a pointer that is not nil points to.
func pointer[A any](c codec.Codec[A]) codec.Codec[*A] {
	if c == nil {
		return nil // reported by Aggregate
	}
	p := pointerTo[A]{c}
	if m, ok := c.(codec.Migrator[A]); ok {
		return migratingPointer[A]{p, m}
	}
	return p
}

type pointerTo[A any] struct{ to codec.Codec[A] }

func (c pointerTo[A]) Append(dst []byte, v *A) ([]byte, error) { return c.to.Append(dst, *v) }

func (c pointerTo[A]) Decode(b []byte) (*A, error) {
	v, err := c.to.Decode(b)
	v = codec.Clone(c.to, v)
	return &v, err
}

func (c pointerTo[A]) Name() string { return c.to.Name() }
func (c pointerTo[A]) Version() int { return c.to.Version() }

// Check reports what makes the codec unusable, for codec.Check.
func (c pointerTo[A]) Check() error { return codec.Check(c.to) }

// migratingPointer also reads what other versions wrote.
type migratingPointer[A any] struct {
	pointerTo[A]
	from codec.Migrator[A]
}

func (c migratingPointer[A]) DecodeVersion(version int, b []byte) (*A, error) {
	v, err := c.from.DecodeVersion(version, b)
	v = codec.Clone(c.to, v)
	return &v, err
}

// stateName is the name under which Aggregate and Reduce keep their accumulator.
const stateName = "acc"

// Aggregate folds the values of each key and emits key and result after each value.
func Aggregate[K comparable, T, A, R any](in Keyed[K, T], id string, agg Aggregator[T, A, R]) Stream[KV[K, R]] {
	st := newStream[KV[K, R]](in.app, in.app.add("aggregate", id, "", in.node))
	if agg.Zero == nil || agg.Add == nil || agg.Result == nil || agg.Codec == nil {
		in.app.errorf("operator %q: the aggregator needs Zero, Add, Result and Codec; weir.Sum, Max and Min need a function (%s)", id, st.node.where)
		return st
	}
	fold(in, id, st, agg.Codec, func(acc A, has bool, v T) (A, error) {
		if !has {
			acc = agg.Zero()
		}
		return agg.Add(acc, v)
	}, agg.Result)
	return st
}

// Reduce combines the values of each key into one, starting from the first, and
// emits key and value after each. f must change neither acc nor v in place: acc was emitted,
// and v is what other uses of the stream have.
func Reduce[K comparable, T any](in Keyed[K, T], id string, f func(acc, v T) (T, error), c codec.Codec[T]) Stream[KV[K, T]] {
	st := newStream[KV[K, T]](in.app, in.app.add("reduce", id, "", in.node))
	if f == nil || c == nil {
		in.app.errorf("operator %q: needs a function and a codec (%s)", id, st.node.where)
		return st
	}
	fold(in, id, st, c, func(acc T, has bool, v T) (T, error) {
		if !has {
			return v, nil
		}
		return f(acc, v)
	}, func(acc T) T { return acc })
	return st
}

// fold is the operator behind Aggregate and Reduce.
func fold[K comparable, T, A, R any](in Keyed[K, T], id string, st Stream[KV[K, R]], c codec.Codec[A],
	add func(acc A, has bool, v T) (A, error), result func(A) R) {
	declareStates(in, st.node, func(sc *state.Scope) { state.Value(&Setup{scope: sc}, stateName, c) })
	in.stage.Add(processor.KeyedOperator[K, T]{ID: id, Build: func(s *processor.Subtask, ks *state.Keyspace[K]) (*state.Scope, func(T)) {
		scope := state.NewScope(id)
		acc := state.Value(&Setup{scope: scope}, stateName, c)
		op, next := s.Operator(id), st.out.build(s)
		return scope, func(v T) {
			outer := op.Enter()
			old, has := acc.Lookup()
			now, err := add(old, has, v)
			if err != nil {
				op.Leave(outer)
				op.Fail(err)
				return
			}
			acc.Set(now)
			r := result(now)
			op.Leave(outer)
			next(KV[K, R]{Key: ks.Key(), Value: r})
		}
	}})
}
