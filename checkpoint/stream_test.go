package checkpoint

import (
	"bytes"
	"math/rand/v2"
	"sync"
	"testing"
)

// What is read ahead of many segments is bounded, and never so little that each read is a
// request of its own.
func TestChunksOfManySegmentsFitTogether(t *testing.T) {
	for n := range 2000 {
		c := chunkFor(n)
		if c < minChunkBytes || c > chunkBytes || c%minChunkBytes != 0 || c > minChunkBytes && int64(3*n)*c > maxAheadBytes {
			t.Fatalf("%d segments: chunks of %d bytes", n, c)
		}
	}
	if chunkFor(1) != chunkBytes || chunkFor(128) >= chunkBytes {
		t.Errorf("chunks of %d bytes of one segment, and of %d of 128", chunkFor(1), chunkFor(128))
	}
}

func TestStreamReadsTheSameInChunksOfEachSize(t *testing.T) {
	dir, err := OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Run("of a store", func(t *testing.T) { streamsReadTheSame(t, NewMem()) })
	// Its chunks are read into memory that others have left: to give it away too early is found
	// by the race detector.
	t.Run("of a directory", func(t *testing.T) { streamsReadTheSame(t, dir) })
}

func streamsReadTheSame(t *testing.T, store Store) {
	data := make([]byte, 3*chunkBytes+1000)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	if err := store.Put(t.Context(), "seg/a", data); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for i, size := range []int64{minChunkBytes, 3 * minChunkBytes, chunkBytes, minChunkBytes} {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(i), 3))
			for _, from := range []int{0, 77, 4096} {
				in := newStream(t.Context(), store, SegmentRef{Object: "seg/a", Offset: int64(from), Length: int64(len(data) - from)}, nil, size)
				read := func(off, n int) {
					b := make([]byte, n)
					if n, err := in.ReadAt(b, int64(off)); err != nil || n != len(b) || !bytes.Equal(b, data[from+off:][:n]) {
						t.Errorf("chunks of %d: %d of %d bytes at %d: %v", size, n, len(b), off, err)
					}
				}
				// In order, and each time the second one again, so that a chunk that is read
				// makes room for the next one.
				for n, off := int(size), 0; off+n <= len(data)-from; off += n {
					read(off, n)
					read(n, n)
				}
				for range 40 {
					off := rng.IntN(len(data) - from)
					read(off, rng.IntN(min(2*chunkBytes, len(data)-from-off)+1))
				}
				if err := in.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
}
