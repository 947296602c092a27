package pebble

import (
	"bytes"
	"errors"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"os"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/objstorage/objstorageprovider"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/weirstream/weir/state/segment"
)

// lookRig is a store at one segment of many blocks. Its filter was asked, so it is at hand.
type lookRig struct {
	t    *testing.T
	s    *Store
	h    *history
	keys []string
}

func newLookRig(t *testing.T) *lookRig {
	r := &lookRig{t: t, s: open(t, vfs.Default, Options{CacheBytes: 8 << 20})}
	r.h = newHistory(t, newDirBucket(t, vfs.Default, t.TempDir()), "aa")
	r.h.bigCommit(1)
	r.h.attach(r.s)
	r.keys = slices.Sorted(maps.Keys(r.want()))
	r.get(r.keys[0])
	if r.table().filter.pinned.Load() == nil {
		t.Fatal("the filter is not kept")
	}
	return r
}

func (r *lookRig) want() content { return r.h.states[r.h.at] }

func (r *lookRig) table() *table {
	tables := r.s.current.Load().tables
	return tables[len(tables)-1]
}

func (r *lookRig) get(key string) {
	if v, ok, err := r.s.Get(nil, []byte(key), math.MaxInt64); err != nil || !ok || string(v) != r.want()[key] {
		r.t.Errorf("%x: %d bytes %v %v", key, len(v), ok, err)
	}
}

func TestALookReadsDataBesideTheBlockCache(t *testing.T) {
	r := newLookRig(t)
	before := r.s.Metrics().CacheBytes
	if before == 0 {
		t.Fatal("not even the index is in the cache")
	}
	for _, key := range r.keys {
		r.get(key)
	}
	if after := r.s.Metrics().CacheBytes; after != before {
		t.Errorf("%d bytes in the cache, %d after a look for each key", before, after)
	}
}

func TestAnIndexThatIsNotInTheBlockCacheComesBackByALook(t *testing.T) {
	r := newLookRig(t)
	r.s.cache.evict(r.table().num)
	if n := r.s.Metrics().CacheBytes; n != 0 {
		t.Fatalf("%d bytes are still in the cache", n)
	}
	r.get(r.keys[0])
	before := r.s.Metrics()
	if before.CacheBytes == 0 {
		t.Error("the index stayed outside")
	}
	r.get(r.keys[0])
	if after := r.s.Metrics(); after.CacheHits == before.CacheHits {
		t.Error("the index was read again")
	}
}

func TestLooksOfManyGoroutinesHaveBuffersOfTheirOwn(t *testing.T) {
	r := newLookRig(t)
	const readers = 8
	var wg sync.WaitGroup
	for n := range readers {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(n), 1))
			for range 2000 {
				r.get(r.keys[rng.IntN(len(r.keys))])
			}
		})
	}
	wg.Wait()
	if n := len(r.s.buffers.idle); n == 0 || n > readers {
		t.Errorf("%d buffers are kept of %d readers", n, readers)
	}
	kept := slices.Clone(r.s.buffers.idle)
	closeStore(t, r.s)
	for _, b := range kept {
		if n := blocksOf(b); n != 0 {
			t.Errorf("%d blocks are in memory behind the end of the store", n)
		}
	}
}

// blocksOf returns how many blocks b has memory for.
func blocksOf(b *blockBuffers) int { return reflect.ValueOf(&b.pool).Elem().FieldByName("pool").Len() }

func TestBuffersOfAHugeValueAreGivenBack(t *testing.T) {
	r := newLookRig(t)
	huge := make([]byte, 1<<20)
	rng := rand.New(rand.NewPCG(1, 1))
	for i := range huge {
		huge[i] = byte(rng.Uint32())
	}
	r.h.ingest(r.s, set(7, "huge", string(huge)), set(7, "little", "1"))
	held := func() int { return blocksOf(r.s.buffers.idle[0]) }
	r.get(string(keyOf(7, "little"))) // through the cache, for the filter
	r.get(r.keys[len(r.keys)/2])
	if held() == 0 {
		t.Error("a look for a little value keeps no memory")
	}
	r.get(string(keyOf(7, "huge")))
	if n := held(); n != 0 {
		t.Errorf("%d buffers of a huge value are kept", n)
	}
}

func TestDamageThatALookMeetsBesideTheCacheIsNamed(t *testing.T) {
	r := newLookRig(t)
	seg := r.h.chain[0]
	f, err := os.OpenFile(fileOf(r.s, seg), os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	at := int(seg.Length) / 3
	if _, err := f.WriteAt(flipped(r.h.data[seg.Object][at:at+1], 0), int64(at)); err != nil {
		t.Fatal(err)
	}
	met := false
	for _, key := range r.keys {
		_, _, err := r.s.Get(nil, []byte(key), math.MaxInt64)
		var d *DamagedError
		if err != nil && (!errors.As(err, &d) || d.Object != seg.Object) {
			t.Fatal(err)
		}
		met = met || err != nil
	}
	if !met {
		t.Fatal("nobody met the damage")
	}
	closeStore(t, r.s)
}

// TestALookGoesThroughTheCacheWhereMoreThanABlockOfDataIsToBeRead has looks that a filter, a
// part of an index or a store far away have to be read for: each would be read every time.
func TestALookGoesThroughTheCacheWhereMoreThanABlockOfDataIsToBeRead(t *testing.T) {
	check := func(t *testing.T, s *Store, h *history) {
		t.Helper()
		h.attach(s)
		for range 2 {
			h.holds(s, h.at)
		}
		if len(s.buffers.idle) > 0 {
			t.Error("looks went around the cache")
		}
	}
	t.Run("filter", func(t *testing.T) {
		fs := vfs.NewMem()
		h := newHistory(t, newDirBucket(t, fs, "bucket"), "aa")
		h.bigCommit(1)
		check(t, open(t, fs, Options{CacheBytes: 4 << 10}), h)
	})
	t.Run("remote", func(t *testing.T) {
		b := newRemoteBucket()
		h := newHistory(t, b, "aa")
		h.bigCommit(1)
		b.before(func(object string, off, n int64) error { // it can't be copied
			if n > copyBytes {
				return errors.New("no")
			}
			return nil
		})
		check(t, open(t, vfs.NewMem(), Options{CacheBytes: 8 << 20}), h)
	})
	t.Run("index of two levels", func(t *testing.T) {
		fs := vfs.NewMem()
		h := newHistory(t, newDirBucket(t, fs, "bucket"), "aa")
		h.bigCommit(1)
		h.chain[0] = h.writeTwoLevels("two-levels.sst")
		s := open(t, fs, Options{CacheBytes: 8 << 20})
		check(t, s, h)
		if tb := s.current.Load().tables[0]; !tb.r.Attributes.Has(sstable.AttributeTwoLevelIndex) || tb.filter.pinned.Load() == nil {
			t.Error("the index has one level, or the filter is not kept")
		}
	})
}

type nopCloser struct{ io.Writer }

func (nopCloser) Close() error { return nil }

// writeTwoLevels writes what h holds as a segment with an index of two levels, as those of
// huge segments are.
func (h *history) writeTwoLevels(object string) Segment {
	h.t.Helper()
	var buf bytes.Buffer
	w := sstable.NewWriter(objstorageprovider.NewRemoteWritable(nopCloser{&buf}), sstable.WriterOptions{
		TableFormat: segment.TableFormat, FilterPolicy: filterPolicy, IndexBlockSize: 1 << 10, DisableValueBlocks: true,
	})
	for _, key := range slices.Sorted(maps.Keys(h.states[h.at])) {
		if err := w.Set([]byte(key), []byte(h.states[h.at][key])); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		h.t.Fatal(err)
	}
	h.b.put(h.t, object, buf.Bytes())
	h.data[object] = buf.Bytes()
	return Segment{Object: object, Length: int64(buf.Len()), CRC32C: segment.Checksum(buf.Bytes()), MaxKG: 127}
}
