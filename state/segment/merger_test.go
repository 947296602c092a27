package segment

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"
)

// Keys that are alike for long, that end where others go on with zeros, and that differ early
// and late.
func TestMergerYieldsTheNewestOfEachKeyInOrder(t *testing.T) {
	far := strings.Repeat("far", 1<<17)
	rng := rand.New(rand.NewPCG(1, 2))
	for round := range 500 {
		prefixes := []string{"", "\x00", "\xff\xff", "a common begin"}
		if round%100 == 0 {
			prefixes = append(prefixes, far[:len(far)-6], far)
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
