package redis

import (
	"fmt"
)

// compare orders positions of one lane. Checkpoint ids grow, also across lineages.
func (p position) compare(o position) int {
	if p.checkpoint != o.checkpoint {
		return sign(p.checkpoint - o.checkpoint)
	}
	return sign(p.operations - o.operations)
}

func sign(n int64) int {
	switch {
	case n < 0:
		return -1
	case n > 0:
		return 1
	}
	return 0
}

func (p position) String() string {
	if p == (position{}) {
		return "no marker"
	}
	return fmt.Sprintf("operation %d of checkpoint %d of lineage %s", p.operations, p.checkpoint, p.lineage)
}
