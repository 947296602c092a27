package pebble

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestFiltersAreKeptWithinTheirShareOfTheCache makes more segments than there is room for
// filters, asks for keys that each of them has and lacks, and drops the segments.
func TestFiltersAreKeptWithinTheirShareOfTheCache(t *testing.T) {
	const segments, keys = 40, 2000
	b := newDirBucket(t, vfs.Default, t.TempDir())
	s := open(t, vfs.Default, Options{CacheBytes: segments * keys * 10 / 8 * 2})
	h := newHistory(t, b, "aa")
	h.attach(s)
	name := func(n, k int) string { return fmt.Sprintf("%03d-%05d", n, k) }
	for n := range segments {
		var changes []change
		for k := range keys {
			changes = append(changes, set(7, name(n, k), name(n, k)))
		}
		h.ingest(s, changes...)
	}
	ask := func() {
		t.Helper()
		for n := range segments {
			for k := 0; k < keys; k += 100 {
				v, ok, err := s.Get(nil, keyOf(7, name(n, k)))
				if err != nil || !ok || string(v) != name(n, k) {
					t.Fatalf("got %q, %v, %v of %s", v, ok, err, name(n, k))
				}
				if _, ok, err := s.Get(nil, keyOf(7, name(n, k)+"x")); err != nil || ok {
					t.Fatal("a key that was never written", ok, err)
				}
			}
		}
	}
	ask()
	pinned := 0
	for _, tb := range s.current.Load().tables {
		if p := tb.filter.pinned.Load(); p != nil {
			pinned++
			if tb.filter.excludes(keyOf(7, name(0, 0))) == tb.filter.excludes(keyOf(7, "nobody")) && !tb.filter.excludes(keyOf(7, "nobody")) {
				t.Errorf("the filter of %s excludes nothing", tb.seg.Object)
			}
		}
	}
	if kept := s.cache.pinned; pinned == 0 || pinned == segments || kept == 0 || kept*pinnedShare > s.opts.CacheBytes {
		t.Errorf("%d filters of %d are kept, %d bytes; want some, within a quarter of %d", pinned, segments, kept, s.opts.CacheBytes)
	}
	ask()

	var gone []change
	for n := range segments {
		for k := range keys {
			gone = append(gone, del(7, name(n, k)))
		}
	}
	h.ingest(s, gone...)
	h.merge(0, len(h.chain))
	h.ingest(s, set(7, "last", "1"))
	if kept := s.cache.pinned; kept != 0 {
		t.Errorf("%d bytes of filters are kept of segments that are closed", kept)
	}
	if _, ok, err := s.Get(nil, keyOf(7, name(1, 0))); err != nil || ok {
		t.Fatal("a key that was deleted", ok, err)
	}
}
