package segment

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// Keys that are alike for long, that end where others go on with zeros, that differ within a
// word of their codes and at its ends, or so late that codes don't tell them apart.
func TestMergerYieldsTheNewestOfEachKeyInOrder(t *testing.T) {
	far := strings.Repeat("far", codeWord*codeWords/3+100)
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 500 {
		prefixes := []string{"", "\x00", "\xff\xff", "a common begin"}
		if round%100 == 0 {
			prefixes = append(prefixes, far[:codeWord*codeWords-headerLen-2], far)
		}
		key := func() string {
			k := []byte(prefixes[rng.IntN(len(prefixes))])
			for range rng.IntN(10) {
				k = append(k, []byte{0, 1, 'a', 0xff}[rng.IntN(4)])
			}
			return string(k)
		}
		want := map[string]string{}
		m := &merger{}
		for i := range rng.IntN(9) {
			var b Builder
			for range rng.IntN(12) {
				k, v := key(), fmt.Sprint(i)
				put(&b, 0xffff, 0xffff, k, v)
				want["\xff\xff\xff\xff"+k] = v
			}
			m.sources = append(m.sources, source{cursor: &runCursor{run: b.Finish()}})
		}
		if err := m.open(); err != nil {
			t.Fatal(err)
		}
		for _, k := range slices.Sorted(maps.Keys(want)) {
			if ok, err := m.next(); err != nil || !ok || string(m.key) != k || string(m.value) != want[k] {
				t.Fatalf("round %d: got %.60q=%s (%v, %v), want %.60q=%s", round, m.key, m.value, ok, err, k, want[k])
			}
		}
		if ok, err := m.next(); ok || err != nil {
			t.Fatalf("round %d: %.60q at the end (%v)", round, m.key, err)
		}
	}
}

// What the tournament relies on: the smaller of two codes is that of the smaller key, and the
// other one is the same against that key.
func TestCodesSayWhichKeyIsSmaller(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 4))
	key := func(begin []byte) []byte {
		k := bytes.Clone(begin[:rng.IntN(len(begin)+1)])
		for range rng.IntN(16) {
			k = append(k, byte(rng.IntN(3)))
		}
		return k
	}
	if codeOf([]byte("ab"), []byte("abc")) == sameKey { // of a table whose keys are not in order
		t.Error("a key is taken for a longer one")
	}
	told := 0
	for range 200_000 {
		base := key(nil)
		x, y := key(base), key(base)
		if bytes.Compare(x, y) > 0 {
			x, y = y, x
		}
		if bytes.Compare(base, x) > 0 {
			continue
		}
		cx, cy := codeOf(x, base), codeOf(y, base)
		if (cx == sameKey) != bytes.Equal(x, base) || cx > cy {
			t.Fatalf("base %q: the code of %q is %x, that of %q %x", base, x, cx, y, cy)
		}
		if cx == cy {
			continue
		}
		told++
		if got := codeOf(y, x); got != cy {
			t.Fatalf("the code of %q is %x against %q and %x against %q", y, cy, base, got, x)
		}
	}
	if told < 1000 {
		t.Fatalf("only %d pairs are told apart", told)
	}
}
