package state_test

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"testing"
	"unsafe"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/segment"
)

// refused returns what a handler of a key panics with that sets a value, and how many keys
// hold state then.
func refused[K comparable](t *testing.T, c codec.Codec[K], backed bool, keys ...K) (bad *state.KeyError, held int) {
	t.Helper()
	cfg := state.Config{}
	if backed {
		store := newCommitted()
		cfg = state.Config{Backing: store, MemoryBytes: 1 << 20, KeyGroups: 1, Committed: func() int64 { return store.id }}
	}
	ks := state.NewKeyspace(c, cfg)
	scope := state.NewScope("op")
	n := state.Value(setup{scope}, "n", codec.Int64)
	ks.Attach(scope, []uint16{1})
	func() {
		defer func() {
			if p := recover(); p != nil {
				bad = p.(*state.KeyError)
			}
		}()
		for _, k := range keys {
			ks.Use(k, 0)
			n.Set(n.Get() + 1)
		}
	}()
	if err := ks.Err(); err != nil {
		t.Error(err)
	}
	return bad, ks.Len()
}

func TestKeyThatItsCodecDoesNotGiveBackHoldsNoState(t *testing.T) {
	type hidden struct{ tenant, user string }
	type shown struct{ Tenant, User string }
	type float struct{ F float64 }
	broken := errors.New("broken")
	floats := codec.Func("float", 1, func(dst []byte, v float) ([]byte, error) { return codec.Float64.Append(dst, v.F) },
		func(b []byte) (float, error) { f, err := codec.Float64.Decode(b); return float{f}, err })
	oneWay := codec.Func("one-way", 1, func(dst []byte, v int) ([]byte, error) { return append(dst, byte(v)), nil },
		func([]byte) (int, error) { return 0, broken })
	for _, backed := range []bool{false, true} {
		check := func(bad *state.KeyError, held, want int, texts ...string) {
			t.Helper()
			if bad == nil || held != want {
				t.Fatalf("got %v, and %d keys hold state, want %d", bad, held, want)
			}
			for _, text := range texts {
				if !strings.Contains(bad.Error(), text) {
					t.Errorf("%v: want it to say %q", bad, text)
				}
			}
		}
		bad, held := refused(t, codec.JSON[hidden](), backed, hidden{}, hidden{"acme", "alice"}, hidden{"acme", "bob"})
		check(bad, held, 1, "{tenant:acme user:alice}", `codec json encodes it as "{}"`, "{tenant: user:}", "only exported fields count")
		bad, held = refused(t, codec.JSON[string](), backed, "a", "\xff")
		check(bad, held, 1, `decodes that as`, "UTF-8")
		bad, held = refused(t, codec.Float64, backed, 1, math.NaN())
		check(bad, held, 1, "the key NaN")
		bad, held = refused(t, floats, backed, float{1}, float{math.NaN()})
		check(bad, held, 1, "a NaN is no key")
		bad, held = refused(t, oneWay, backed, 1)
		if check(bad, held, 0, `encodes it as "\x01", which it does not decode: broken`); !errors.Is(bad, broken) {
			t.Errorf("%v", bad)
		}
		if bad, held = refused(t, codec.JSON[shown](), backed, shown{"acme", "alice"}, shown{"acme", "bob"}); bad != nil || held != 2 {
			t.Errorf("%v, and %d keys hold state, want 2", bad, held)
		}
	}
}

// A key of which nothing is held is only looked for.
func TestKeyThatHoldsNothingIsNotTried(t *testing.T) {
	ks := state.NewKeyspace(codec.JSON[string](), state.Config{})
	scope := state.NewScope("op")
	n := state.Value(setup{scope}, "n", codec.Int64)
	ks.Attach(scope, []uint16{1})
	if ks.Use("\xff", 0); n.Get() != 0 || ks.Len() != 0 {
		t.Errorf("%d keys hold state", ks.Len())
	}
}

// tracked counts what is decoded.
type tracked struct {
	codec.Codec[string]
	decoded *int
}

func (c tracked) Decode(b []byte) (string, error) {
	*c.decoded++
	return c.Codec.Decode(b)
}

func (c tracked) Clone(v string) string { return codec.Clone(c.Codec, v) }

func TestKeptKeyIsNoPieceOfTheRecord(t *testing.T) {
	decoded := 0
	for _, c := range []codec.Codec[string]{codec.String, codec.JSON[string](), tracked{codec.String, &decoded},
		codec.Func("text", 1, func(dst []byte, v string) ([]byte, error) { return append(dst, v...), nil }, func(b []byte) (string, error) { return string(b), nil })} {
		ks := state.NewKeyspace(c, state.Config{})
		scope := state.NewScope("op")
		n := state.Value(setup{scope}, "n", codec.Int64)
		ks.Attach(scope, []uint16{1})
		batch := []byte(strings.Repeat("a fetched batch ", 100))
		for i := range 3 {
			ks.Use(unsafe.String(&batch[0], 15), 0)
			n.Set(int64(i))
		}
		clear(batch)
		var b segment.Builder
		if err := ks.Freeze(&b, 1); err != nil {
			t.Fatal(err)
		}
		want, _ := c.Append(nil, "a fetched batch")
		for e := range b.Finish().All() {
			if string(e.Key) != string(want) {
				t.Errorf("codec %T: the kept key is %q after its record is gone", c, e.Key)
			}
		}
	}
	if decoded != 1 {
		t.Errorf("a key was decoded %d times, want once", decoded)
	}
}

func BenchmarkNewKeys(b *testing.B) {
	for _, c := range []codec.Codec[string]{codec.String, codec.JSON[string]()} {
		b.Run(fmt.Sprint(c.Name()), func(b *testing.B) {
			ks := state.NewKeyspace(c, state.Config{})
			scope := state.NewScope("op")
			n := state.Value(setup{scope}, "n", codec.Int64)
			ks.Attach(scope, []uint16{1})
			keys := make([]string, b.N)
			for i := range keys {
				keys[i] = fmt.Sprint("user-", i)
			}
			b.ReportAllocs()
			b.ResetTimer()
			for _, k := range keys {
				ks.Use(k, 0)
				n.Set(1)
			}
		})
	}
}
