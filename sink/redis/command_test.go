package redis

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/weirstream/weir/internal/redistest"
)

// TestCommandsThatNoServerRunsInAScriptAreKnown asks each kind of server which commands
// those are.
func TestCommandsThatNoServerRunsInAScriptAreKnown(t *testing.T) {
	for _, image := range []string{redistest.Redis, redistest.Redis7, redistest.Valkey} {
		t.Run(image, func(t *testing.T) {
			cl := redisClient(t, server(t, image).Addr)
			commands, err := cl.Command(t.Context()).Result()
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for name, info := range commands {
				if !slices.Contains(info.Flags, "noscript") {
					continue
				}
				n++
				if !slices.Contains(unscripted, strings.ToUpper(name)) {
					t.Errorf("%s is not allowed in scripts", name)
				}
				w := &Batch{}
				if err := w.record(func() { w.Do(name, Key("k")) }); !errors.Is(err, ErrNotInScript) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if n < 10 {
				t.Errorf("only %d such commands", n)
			}
		})
	}
}

// TestRecordWhoseFunctionPanicsLeavesNothing: the runtime skips such a record, and keeps
// what the others of the epoch added.
func TestRecordWhoseFunctionPanicsLeavesNothing(t *testing.T) {
	b := &Batch{}
	add := func(f func()) {
		defer func() { _ = recover() }()
		if err := b.record(f); err != nil {
			t.Fatal(err)
		}
	}
	add(func() { b.IncrBy("before", 1) })
	want, count := slices.Clone(b.buf), b.count
	add(func() { b.IncrBy("n", 1); panic("bug") })
	add(func() { b.Transaction(func() { b.IncrBy("n", 1); panic("bug") }) })
	if b.count != count || !slices.Equal(b.buf, want) {
		t.Errorf("%d commands, want %d", b.count, count)
	}
	add(func() { b.Transaction(func() { b.IncrBy("after", 1); b.IncrBy("after", 2) }) })
	if p, err := decodePart(appendPart(nil, nil, b.buf, b.count)); err != nil || p.count != count+2 {
		t.Errorf("%d operations, %v", p.count, err)
	}
}

func TestTransactionWhoseFunctionPanicsLeavesNothing(t *testing.T) {
	b := &Batch{}
	err := b.record(func() {
		b.IncrBy("before", 1)
		func() {
			defer func() { _ = recover() }()
			b.Transaction(func() { b.IncrBy("n", 1); panic("bug") })
		}()
		b.IncrBy("after", 1)
		b.Transaction(func() { b.IncrBy("a", 1); b.IncrBy("b", 1) })
	})
	if err != nil {
		t.Fatal(err)
	}
	p, err := decodePart(appendPart(nil, nil, b.buf, b.count))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	if err := eachOperation([]part{p}, func(op *operation) {
		got = append(got, fmt.Sprintf("%s %v", op.args()[1], op.flags&flagJoined != 0))
	}); err != nil {
		t.Fatal(err)
	}
	if want := []string{"before false", "after false", "a true", "b false"}; !slices.Equal(got, want) {
		t.Errorf("operations %q, want %q", got, want)
	}
}

func TestUpsertsRefuseWhatAddsUp(t *testing.T) {
	for _, c := range []struct {
		args []any
		want error
	}{
		{[]any{"INCR", Key("k")}, ErrNotIdempotent},
		{[]any{"lrem", Key("k"), 1, "x"}, ErrNotIdempotent},
		{[]any{"LREM", Key("k"), "0", "x"}, nil},
		{[]any{"LREM", Key("k"), int64(0), "x"}, nil},
		{[]any{"ZADD", Key("k"), "xx", "incr", 1, "m"}, ErrNotIdempotent},
		{[]any{"ZADD", Key("k"), "XX", 1, "INCR"}, nil},
		{[]any{"ZADD", Key("k"), "1", "INCR"}, nil},
		{[]any{"ZREMRANGEBYRANK", Key("k"), 0, 0}, ErrNotIdempotent},
		{[]any{"ZREMRANGEBYSCORE", Key("k"), 0, 0}, nil},
		{[]any{"ZUNIONSTORE", Key("k"), 2, Key("j"), Key("k")}, ErrNotIdempotent},
		{[]any{"ZUNIONSTORE", Key("k"), 2, Key("i"), Key("j")}, nil},
		{[]any{"BITOP", "NOT", Key("k"), Key("k")}, ErrNotIdempotent},
		{[]any{"BITOP", "NOT", Key("k"), Key("j")}, nil},
		{[]any{"MOVE", Key("k"), 1}, ErrNotIdempotent},
		{[]any{"JSON.NUMINCRBY", Key("k"), "$", 1}, ErrNotIdempotent},
		{[]any{"JSON.SET", Key("k"), "$", "1"}, nil},
		{[]any{"TS.INCRBY", Key("k"), 1}, ErrNotIdempotent},
		{[]any{"CMS.INCRBY", Key("k"), "a", 1}, ErrNotIdempotent},
		{[]any{"LREM", Key("k"), []byte("0"), "x"}, nil},
		{[]any{"ZADD", Key("k"), []byte("Incr"), 1, "m"}, ErrNotIdempotent},
		{[]any{"ZADD", Key("k"), []byte("xx"), "INCR", 1, "m"}, ErrNotIdempotent},
		{[]any{"TS.ADD", Key("k"), "*", 1}, ErrNotIdempotent},
		{[]any{"TS.ADD", Key("k"), []byte("*"), 1}, ErrNotIdempotent},
		{[]any{"TS.ADD", Key("k"), 1000, 1, "on_duplicate", "sum"}, ErrNotIdempotent},
		{[]any{"TS.ADD", Key("k"), 1000, 1, "DUPLICATE_POLICY", "SUM"}, ErrNotIdempotent},
		{[]any{"TS.ADD", Key("k"), 1000, 1, "DUPLICATE_POLICY", "SUM", "ON_DUPLICATE", "LAST"}, nil},
		{[]any{"TS.ADD", Key("k"), 1000, 1, "ON_DUPLICATE", "LAST"}, nil},
		{[]any{"TS.MADD", Key("k"), 1000, 1, Key("j"), "*", 1}, ErrNotIdempotent},
		{[]any{"TS.MADD", Key("k"), 1000, 1, Key("j"), 1000, "*"}, nil},
		{[]any{"FT.SUGADD", Key("k"), "a", 1, "incr"}, ErrNotIdempotent},
		{[]any{"FT.SUGADD", Key("k"), "a", 1, "PAYLOAD", "p", []byte("INCR")}, ErrNotIdempotent},
		{[]any{"FT.SUGADD", Key("k"), "INCR", 1, "PAYLOAD", "INCR"}, nil},
		{[]any{"JSON.DEL", Key("k"), "$.a[0]"}, ErrNotIdempotent},
		{[]any{"JSON.FORGET", Key("k"), []byte(".a[ -1 ]")}, ErrNotIdempotent},
		{[]any{"JSON.DEL", Key("k"), "$.a[?(@.id==7)]"}, nil},
		{[]any{"JSON.DEL", Key("k"), `$["a"].b`}, nil},
		{[]any{"JSON.DEL", Key("k")}, nil},
		{[]any{"BF.ADD", Key("k"), "a"}, nil},
		{[]any{"SDIFFSTORE", Key("k"), Key("j"), Key("k")}, ErrNotIdempotent},
		{[]any{"SDIFFSTORE", Key("k"), Key("k"), Key("j")}, nil},
		{[]any{"ZDIFFSTORE", Key("k"), 2, Key("j"), Key("k")}, ErrNotIdempotent},
		{[]any{"GEOSEARCHSTORE", Key("k"), Key("k"), "STOREDIST"}, ErrNotIdempotent},
		{[]any{"SORT", Key("k"), "LIMIT", 1, 2, "STORE", Key("k")}, ErrNotIdempotent},
		{[]any{"SORT", Key("k"), "STORE", Key("j")}, nil},
		{[]any{"INCREX", Key("k")}, ErrNotIdempotent},
		{[]any{"ARINSERT", Key("k"), "a"}, ErrNotIdempotent},
		{[]any{"ARRING", Key("k"), 10, "a"}, ErrNotIdempotent},
		{[]any{"ARSET", Key("k"), 1, "a"}, nil},
		{[]any{"ZMOVE", Key("k"), Key("j"), "MIN"}, ErrNotIdempotent},
		{[]any{"LMOVEM", Key("k"), Key("j"), "LEFT", "LEFT"}, ErrNotIdempotent},
		{[]any{"MIGRATE", "host", 6379, Key("k"), 0, 1000}, ErrNotIdempotent},
	} {
		u := &Upserts{}
		if err := u.record(func() { u.Do(c.args[0].(string), c.args[1:]...) }); !errors.Is(err, c.want) {
			t.Errorf("%v: %v, want %v", c.args, err, c.want)
		}
	}
}
