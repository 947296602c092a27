package redis

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

func TestOperationsComeBackAsTheyWereWritten(t *testing.T) {
	long := strings.Repeat("x", 1<<17)
	u := &Upserts{commands{prefix: "p:"}}
	if err := u.record(func() {
		u.Set("k", "")
		u.Set(long, strings.Repeat("y", 300))
		u.Guard(-7)
		u.Del("a", "b")
		u.SAdd("s", make([]string, 100)...)
	}); err != nil {
		t.Fatal(err)
	}
	var got []operation
	for rest := u.buf; len(rest) > 0; {
		var op operation
		var err error
		if rest, err = op.decode(rest); err != nil {
			t.Fatal(err)
		}
		got = append(got, op)
	}
	if len(got) != 4 || u.count != 4 {
		t.Fatalf("%d operations, count %d", len(got), u.count)
	}
	want := [][]string{
		{"SET", "p:k", ""}, {"SET", "p:" + long, strings.Repeat("y", 300)}, {"DEL", "p:a", "p:b"},
		append([]string{"SADD", "p:s"}, make([]string, 100)...),
	}
	for i, op := range got {
		var args []string
		for _, a := range op.args() {
			args = append(args, string(a))
		}
		if !slices.Equal(args, want[i]) {
			t.Errorf("operation %d is %.100q", i, args)
		}
		if op.slot != slotOf([]byte(want[i][1])) {
			t.Errorf("operation %d has slot %d", i, op.slot)
		}
		if guarded := i >= 2; (op.flags&flagGuarded != 0) != guarded || guarded && op.version != -7 {
			t.Errorf("operation %d: flags %x, version %d", i, op.flags, op.version)
		}
	}
	if !slices.Equal(got[2].keys, []int{1, 2}) {
		t.Errorf("keys of DEL are %v", got[2].keys)
	}
}

// seedOperations are some of each kind.
func seedOperations() []byte {
	u := &Upserts{commands{prefix: "p:"}}
	_ = u.record(func() {
		u.Set("k", strings.Repeat("v", 40))
		u.Guard(1 << 40)
		u.Del("a", "b")
	})
	return u.buf
}

func FuzzDecodeOperation(f *testing.F) {
	f.Add(seedOperations())
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		var op operation
		rest, err := op.decode(b)
		if err != nil {
			return
		}
		if !bytes.HasSuffix(b, rest) || len(rest) >= len(b) {
			t.Fatalf("%d bytes of %d are left", len(rest), len(b))
		}
		args := op.args() // panics if what was verified can't be decoded
		for _, k := range op.keys {
			_ = args[k]
		}
	})
}

func FuzzParseDeadLetter(f *testing.F) {
	f.Add("weir1 lineage=- checkpoint=0 operations=0 app= sink=out instance= at=2026-11-21T18:00:00.000Z\nWRONGTYPE x\n\x93\xa3SET\xa1k\xa1v")
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDeadLetter(s)
		if err == nil && len(d.Command) == 0 {
			t.Fatalf("%+v", d)
		}
	})
}
