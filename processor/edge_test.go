package processor

import (
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/state"
)

func TestKeysThatMayPanicAreNotLookedUpAhead(t *testing.T) {
	type plain struct {
		A [2]int32
		B string
	}
	type holds struct {
		A plain
		B [1]any
	}
	for _, c := range []struct {
		t    reflect.Type
		want bool
	}{
		{reflect.TypeFor[string](), true},
		{reflect.TypeFor[plain](), true},
		{reflect.TypeFor[*holds](), true}, // hashed by address
		{reflect.TypeFor[any](), false},
		{reflect.TypeFor[holds](), false},
	} {
		if got := hashable(c.t); got != c.want {
			t.Errorf("hashable(%v) = %v, want %v", c.t, got, c.want)
		}
	}
}

func TestPanicInAKeysHashNamesItsRecord(t *testing.T) {
	inc := newIncarnation(t.Context(), &Config{Parallelism: 1, KeyGroups: 1}, &Plan{}, nil, nil)
	inc.gate = newGate(1, 0)
	inc.states = []checkpoint.StateInfo{{ID: 1, Operator: "count", Name: "n"}}
	s := inc.newSubtask(SourcesID, 0)
	anyKey := codec.Func("any", 1,
		func(dst []byte, v any) ([]byte, error) { return fmt.Appendf(dst, "%s", v), nil },
		func(b []byte) (any, error) { return string(b), nil })
	st := NewKeyedStage("by-any", func(v any) any { return v }, anyKey)
	st.Add(KeyedOperator[any, any]{ID: "count", Build: func(s *Subtask, _ *state.Keyspace[any]) (*state.Scope, func(any)) {
		op, scope := s.Operator("count"), state.NewScope("count")
		n := state.Value(setup{scope}, "n", codec.Int64)
		return scope, func(any) {
			op.Enter()
			n.Set(n.Get() + 1)
		}
	}})
	send := st.Send(s)
	rs, err := st.Build(inc)
	if err != nil {
		t.Fatal(err)
	}
	r := rs[0].(*keyedRunner[any, any])
	for i, v := range []any{"a", "b", []byte("no map key"), "c"} {
		s.raw = &kgo.Record{Topic: "in", Offset: int64(i)}
		send(v)
	}
	s.idle()
	bt, err := r.next()
	if err != nil {
		t.Fatal(err)
	}
	err = r.take(bt)
	if err == nil || !strings.Contains(err.Error(), `"count" panicked on in/0 at offset 2`) {
		t.Fatalf("got %v, want a panic of operator count on in/0 at offset 2", err)
	}
}
