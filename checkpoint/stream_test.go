package checkpoint

import (
	"bytes"
	"math/rand/v2"
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
	data := make([]byte, 3*chunkBytes+1000)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := range data {
		data[i] = byte(rng.Uint32())
	}
	store := NewMem()
	if err := store.Put(t.Context(), "seg/a", data); err != nil {
		t.Fatal(err)
	}
	for _, size := range []int64{minChunkBytes, 3 * minChunkBytes, chunkBytes} {
		const from = 77
		in := newStream(t.Context(), store, SegmentRef{Object: "seg/a", Offset: from, Length: int64(len(data)) - from}, nil, size)
		for range 200 {
			off := rng.IntN(len(data) - from)
			b := make([]byte, rng.IntN(min(2*chunkBytes, len(data)-from-off)+1))
			if n, err := in.ReadAt(b, int64(off)); err != nil || n != len(b) || !bytes.Equal(b, data[from+off:][:n]) {
				t.Fatalf("chunks of %d: %d of %d bytes at %d: %v", size, n, len(b), off, err)
			}
		}
		if err := in.Close(); err != nil {
			t.Error(err)
		}
	}
}
