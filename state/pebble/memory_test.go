package pebble

import (
	"errors"
	"math"
	"runtime/debug"
	"testing"
)

func TestDefaultsFitIntoTheMemoryOfTheProcess(t *testing.T) {
	defer debug.SetMemoryLimit(debug.SetMemoryLimit(-1))
	if machineMemory() < 4<<30 {
		t.Logf("on a machine of %d bytes the defaults are smaller in any case", machineMemory())
	} else if debug.SetMemoryLimit(math.MaxInt64); DefaultMemoryBytes() != 256<<20 || DefaultCacheBytes() != 128<<20 {
		t.Errorf("defaults are %d and %d bytes on a machine of %d", DefaultMemoryBytes(), DefaultCacheBytes(), machineMemory())
	}
	debug.SetMemoryLimit(200 << 20)
	if DefaultMemoryBytes() != 50<<20 || DefaultCacheBytes() != 25<<20 {
		t.Errorf("defaults are %d and %d bytes in 200 MiB", DefaultMemoryBytes(), DefaultCacheBytes())
	}
	if got := (Options{}).withDefaults().CacheBytes; got != 25<<20 {
		t.Errorf("options take %d bytes of cache", got)
	}
	if got := Dir("x").MemoryBytes; got != 50<<20 {
		t.Errorf("a directory takes %d bytes of memory", got)
	}
}

func TestMemoryIsTheLeastThatIsKnown(t *testing.T) {
	is := func(n uint64, err error) func() (uint64, error) { return func() (uint64, error) { return n, err } }
	unknown := is(5, errors.New("no such limit"))
	for _, c := range []struct {
		limits []func() (uint64, error)
		want   int64
	}{
		{nil, math.MaxInt64},
		{[]func() (uint64, error){unknown, is(0, nil)}, math.MaxInt64},
		{[]func() (uint64, error){is(300, nil), unknown, is(200, nil)}, 200},
		{[]func() (uint64, error){is(math.MaxUint64, nil)}, math.MaxInt64},
	} {
		if got := leastKnown(c.limits...); got != c.want {
			t.Errorf("got %d, want %d", got, c.want)
		}
	}
}
