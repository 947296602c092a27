package pebble

import (
	"math"
	"runtime/debug"
	"sync"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	// What the defaults are on a machine of enough memory. A library doesn't take more by
	// itself: it can't know what else the process is for.
	maxDefaultMemory = 256 << 20
	maxDefaultCache  = 128 << 20

	// What they are at most of the memory that the process may use.
	memoryShare = 4
	cacheShare  = 8
)

// DefaultMemoryBytes is the default of [Backend.MemoryBytes]: 256 MiB, or a quarter of
// the memory that the process may use if that is less.
func DefaultMemoryBytes() int64 { return min(maxDefaultMemory, processMemory()/memoryShare) }

// DefaultCacheBytes is the default of [Options.CacheBytes]: 128 MiB, or an eighth of the
// memory that the process may use if that is less.
func DefaultCacheBytes() int64 { return min(maxDefaultCache, processMemory()/cacheShare) }

// processMemory is the least of GOMEMLIMIT, the limit of the control group and the
// machine's memory, as far as they are known.
func processMemory() int64 {
	return min(debug.SetMemoryLimit(-1), machineMemory())
}

var machineMemory = sync.OnceValue(func() int64 {
	return leastKnown(memlimit.FromCgroup, memlimit.FromSystem)
})

// leastKnown asks all and returns the least answer that is one.
func leastKnown(limits ...func() (uint64, error)) int64 {
	least := uint64(math.MaxInt64)
	for _, limit := range limits {
		if n, err := limit(); err == nil && n > 0 {
			least = min(least, n)
		}
	}
	return int64(least)
}
