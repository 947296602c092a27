package sim

import (
	"slices"
	"testing"
	"time"
)

// shrink looks for few faults of a script that fails with which it still does. It leaves
// out half of them, then a quarter, and so on down to single ones, and keeps what is left
// whenever that fails, too. A script that failed by a race in the scheduling of goroutines
// may not fail again, so each try is made a few times. It gives up when its time is over
// and returns the best that it found.
func shrink(t *testing.T, sc script, tries int, within time.Duration) (faults []int, res *result) {
	deadline := time.Now().Add(within)
	for i := range sc.faults() {
		faults = append(faults, i)
	}
	fails := func(faults []int) *result {
		for range tries {
			if time.Now().After(deadline) {
				return nil
			}
			if r := play(t, sc.only(func(i int) bool { return slices.Contains(faults, i) })); r.failed() {
				return r
			}
		}
		return nil
	}
	for size := (len(faults) + 1) / 2; size > 0; {
		shorter := false
		for at := 0; at < len(faults); {
			without := slices.Concat(faults[:at], faults[min(len(faults), at+size):])
			if r := fails(without); r != nil {
				faults, res, shorter = without, r, true
				continue
			}
			at += size
		}
		if size == 1 && !shorter {
			break
		}
		if !shorter || size > len(faults) {
			size = size / 2
		}
		if size == 0 && len(faults) > 0 && shorter {
			size = 1
		}
	}
	return faults, res
}
