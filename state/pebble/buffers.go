package pebble

import (
	"sync"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/sstable"
)

// blockBuffers is memory for the blocks that one look for a key reads beside the block
// cache, and what it read.
type blockBuffers struct {
	pool  sstable.BufferPool
	stats pebble.InternalIteratorStats
}

const (
	// blocksAtOnce is how many blocks are in memory at once: one as it was read, and what is
	// in it.
	blocksAtOnce = 2
	// maxKeptRead is how many bytes a look may have read for its buffers to be kept: those
	// of a huge value are given back.
	maxKeptRead = 64 << 10
)

// bufferStack has the buffers that nobody uses: at most as many as ever were used at once.
// Their memory is not the Go heap's.
type bufferStack struct {
	mu   sync.Mutex
	idle []*blockBuffers
}

func (s *bufferStack) take() *blockBuffers {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := len(s.idle) - 1; n >= 0 {
		b := s.idle[n]
		s.idle = s.idle[:n]
		return b
	}
	b := &blockBuffers{}
	b.pool.Init(blocksAtOnce)
	return b
}

// give takes buffers back, none of which is in use; nil is none.
func (s *bufferStack) give(b *blockBuffers) {
	if b == nil {
		return
	}
	if b.stats.BlockBytes-b.stats.BlockBytesInCache > maxKeptRead {
		b.pool.Release()
		b.pool.Init(blocksAtOnce)
	}
	b.stats = pebble.InternalIteratorStats{}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.idle = append(s.idle, b)
}

// close frees the memory. Nobody uses the stack any more.
func (s *bufferStack) close() {
	for _, b := range s.idle {
		b.pool.Release()
	}
	s.idle = nil
}
