package checkpoint_test

import (
	"fmt"
	"testing"

	"github.com/weirstream/weir/checkpoint"
)

// BenchmarkPersist is a checkpoint of a few changed keys, with everything that
// happens in the background.
func BenchmarkPersist(b *testing.B) {
	for _, kind := range []string{"mem", "dir"} {
		b.Run(kind, func(b *testing.B) {
			var s checkpoint.Store = checkpoint.NewMem()
			if kind == "dir" {
				d, err := checkpoint.OpenDir(b.TempDir())
				if err != nil {
					b.Fatal(err)
				}
				s = d
			}
			r := newRig(b, s, func(c *checkpoint.Config) { c.MergeFanIn = 0 })
			c := changes{}
			for i := range 100 {
				c[fmt.Sprintf("%d/key-%d", i%keyGroups, i)] = "value"
			}
			b.ReportAllocs()
			id := int64(0)
			for b.Loop() {
				id++
				r.commit(id, c)
			}
		})
	}
}
