package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"sync"

	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/state/segment"
)

// chunkBytes is how much of a segment is fetched at once: enough to hide the latency
// of an object store, little enough that a merge of dozens of segments stays small. Of
// more of them, less is fetched at once. A segment that is not longer is read as a whole.
const (
	chunkBytes    = 512 << 10
	minChunkBytes = 64 << 10

	maxAheadBytes = 48 << 20 // in memory of all segments that are read at once, about
)

// chunkFor returns how much is fetched at once of each of some segments.
func chunkFor(segments int) int64 {
	n := int64(maxAheadBytes / (3 * max(segments, 1)))
	return min(max(n&^(minChunkBytes-1), minChunkBytes), chunkBytes)
}

// OpenSegment opens a segment. A short one is read and verified as a whole; of a long
// one what is asked for is fetched, a chunk ahead, and each block is verified when it
// is read, so that it takes little memory. The context is for all reads, and the reader
// must be closed. Errors are as with [ReadSegment].
func OpenSegment(ctx context.Context, store Store, s SegmentRef) (*segment.Reader, error) {
	r, err := openSegment(ctx, store, s, nil, chunkBytes)
	if err != nil {
		return nil, fmt.Errorf("open segment: %w", err)
	}
	return r, nil
}

func openSegment(ctx context.Context, store Store, s SegmentRef, p *pacer, chunk int64) (*segment.Reader, error) {
	var r *segment.Reader
	var err error
	if s.Length <= chunk {
		b, rerr := readSegment(ctx, store, s)
		if rerr != nil {
			return nil, rerr
		}
		p.transferred(ctx, int64(len(b)))
		r, err = segment.Open(b)
	} else {
		in := newStream(ctx, store, s, p, chunk)
		if r, err = segment.OpenAt(in, s.Length); err != nil {
			_ = in.Close()
		}
	}
	if err != nil {
		return nil, segmentFault(store, s, err)
	}
	return r, nil
}

// segmentFault gives an error in reading s its name.
func segmentFault(store Store, s SegmentRef, err error) error {
	if errors.Is(err, segment.ErrCorrupt) {
		return &DamagedError{Object: s.Object, Store: store.String(), What: err.Error(), Err: err}
	}
	return err
}

// stream reads a segment in chunks, one ahead of who reads in order. It keeps the last
// chunk of the segment, where the index is, and two others.
type stream struct {
	ctx    context.Context
	cancel context.CancelFunc
	store  Store
	s      SegmentRef
	size   int64 // bytes of a chunk
	last   int64 // number of the last chunk
	pacer  *pacer

	mu     sync.Mutex
	tail   *chunk
	recent [2]*chunk
	left   []*chunk // not among these any more
	crc    uint32   // of the chunks before summed
	summed int64
	wg     sync.WaitGroup
}

// chunk is complete, or failed, when done is closed.
type chunk struct {
	number int64
	done   chan struct{}
	data   []byte
	err    error
	ours   bool // nobody else has data
}

// chunkMemory is memory of chunks that are read no more, *[]byte. A merge reads as much as it
// writes, and new memory is cleared before it is read into.
var chunkMemory sync.Pool

// into is a store that reads into memory that it is given, if that will do.
type into interface {
	getRangeInto(ctx context.Context, name string, off, n int64, memory []byte) ([]byte, error)
}

func (c *chunk) fetch(in *stream) {
	off := c.number * in.size
	n := min(in.size, in.s.Length-off)
	off += in.s.Offset
	d, ok := in.store.(into)
	if !ok {
		c.data, c.err = getRange(in.ctx, in.store, in.s.Object, off, n)
		return
	}
	memory, ok := chunkMemory.Get().(*[]byte)
	if !ok {
		memory = new([]byte)
	}
	c.data, c.err = leaving(in.ctx, in.store, "get range", in.s.Object, func() ([]byte, error) {
		return d.getRangeInto(in.ctx, in.s.Object, off, n, *memory)
	})
	c.err = readError(in.store, in.s.Object, off+n, c.err)
	c.ours = true
}

// forget gives the memory of a chunk back, if it was fetched.
func (c *chunk) forget() {
	select {
	case <-c.done:
		if c.ours && c.data != nil {
			chunkMemory.Put(&c.data)
		}
	default:
	}
}

func newStream(ctx context.Context, store Store, s SegmentRef, p *pacer, chunk int64) *stream {
	in := &stream{store: store, s: s, size: chunk, last: (s.Length - 1) / chunk, pacer: p}
	in.ctx, in.cancel = context.WithCancel(ctx)
	return in
}

// ReadAt implements io.ReaderAt.
func (in *stream) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 || off > in.s.Length {
		return 0, io.EOF
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	n := 0
	for n < len(p) && off < in.s.Length {
		data, err := in.get(off / in.size)
		if err != nil {
			return n, err
		}
		c := copy(p[n:], data[off%in.size:])
		n += c
		off += int64(c)
	}
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// get returns a chunk, which is good until the next one is asked for. It is called with in.mu
// held.
func (in *stream) get(number int64) ([]byte, error) {
	in.forgetLeft()
	ahead := in.recent[1] != nil && in.recent[1].number == number
	c := in.begin(number)
	if number != in.last && (number == 0 || ahead || number == in.summed) {
		in.begin(min(number+1, in.last))
	}
	begin := in.pacer.pause()
	<-c.done
	in.pacer.resume(begin)
	if c.err != nil {
		return nil, c.err
	}
	if number == in.summed {
		in.crc = crc32.Update(in.crc, castagnoli, c.data)
		in.summed++
		in.pacer.transferred(in.ctx, int64(len(c.data)))
	}
	return c.data, nil
}

// begin finds a chunk or starts to fetch it. It is called with in.mu held.
func (in *stream) begin(number int64) *chunk {
	for _, c := range []*chunk{in.tail, in.recent[0], in.recent[1]} {
		if c != nil && c.number == number {
			return c
		}
	}
	c := &chunk{number: number, done: make(chan struct{})}
	if number == in.last {
		in.tail = c
	} else {
		in.left = append(in.left, in.recent[0])
		in.recent[0], in.recent[1] = in.recent[1], c
	}
	in.wg.Go(func() {
		defer close(c.done)
		c.fetch(in)
	})
	return c
}

func (in *stream) forgetLeft() {
	for _, c := range in.left {
		if c != nil {
			c.forget()
		}
	}
	in.left = in.left[:0]
}

// Finish compares the checksum of the whole segment. Who reads a segment from begin to
// end has read all but what stands behind the index.
func (in *stream) Finish() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	for in.summed <= in.last {
		if _, err := in.get(in.summed); err != nil {
			return err
		}
	}
	if in.crc != in.s.CRC32C && !guard.Broken(guard.Checksum) {
		return &DamagedError{Object: in.s.Object, Store: in.store.String(), What: checksumsDiffer(in.s, in.crc)}
	}
	return nil
}

// Close ends the fetches under way.
func (in *stream) Close() error {
	in.cancel()
	in.wg.Wait()
	in.mu.Lock()
	defer in.mu.Unlock()
	in.left = append(in.left, in.tail, in.recent[0], in.recent[1])
	in.tail, in.recent = nil, [2]*chunk{}
	in.forgetLeft()
	return nil
}

func checksumsDiffer(s SegmentRef, got uint32) string {
	return fmt.Sprintf("the checksum of the segment at byte %d is %08x, the manifest says %08x", s.Offset, got, s.CRC32C)
}

// openAhead is how many segments are opened at once.
const openAhead = 8

// opener opens the segments of levels: the first of each level at once, and each
// further one when the one before is opened.
type opener struct {
	ctx    context.Context
	cancel context.CancelFunc
	store  Store
	pacer  *pacer
	chunk  int64 // bytes of a segment to fetch at once
	slots  chan struct{}

	mu    sync.Mutex
	begun map[*opening]bool // and not taken
	wg    sync.WaitGroup
}

type opening struct {
	s    SegmentRef
	once sync.Once
	done chan struct{}
	r    *segment.Reader
	err  error
}

func newOpener(ctx context.Context, store Store, p *pacer) *opener {
	o := &opener{store: store, pacer: p, slots: make(chan struct{}, openAhead), begun: map[*opening]bool{}}
	o.ctx, o.cancel = context.WithCancel(ctx)
	return o
}

// levels returns layers in the form in which they are read. What is read must be
// closed before the opener is.
func (o *opener) levels(layers [][]SegmentRef) []segment.Level {
	o.chunk = chunkFor(len(layers)) // one segment of each is read at a time
	levels := make([]segment.Level, len(layers))
	for i, layer := range layers {
		pieces := make([]*opening, len(layer))
		for j, s := range layer {
			pieces[j] = &opening{s: s, done: make(chan struct{})}
		}
		for j, s := range layer {
			levels[i] = append(levels[i], segment.Piece{
				MinKG: s.MinKG, MaxKG: s.MaxKG, Entries: s.Entries + s.Tombstones,
				Open: func() (*segment.Reader, error) {
					o.begin(pieces[j])
					if j+1 < len(pieces) {
						o.begin(pieces[j+1])
					}
					return o.take(pieces[j])
				},
				Fault: func(err error) error { return segmentFault(o.store, s, err) },
			})
		}
		o.begin(pieces[0])
	}
	return levels
}

func (o *opener) begin(p *opening) {
	p.once.Do(func() {
		o.mu.Lock()
		o.begun[p] = true
		o.mu.Unlock()
		o.wg.Go(func() {
			defer close(p.done)
			o.slots <- struct{}{}
			defer func() { <-o.slots }()
			p.r, p.err = openSegment(o.ctx, o.store, p.s, o.pacer, o.chunk)
		})
	})
}

func (o *opener) take(p *opening) (*segment.Reader, error) {
	begin := o.pacer.pause()
	<-p.done
	o.pacer.resume(begin)
	o.mu.Lock()
	delete(o.begun, p)
	o.mu.Unlock()
	return p.r, p.err
}

func (o *opener) close() {
	o.cancel()
	o.wg.Wait()
	for p := range o.begun {
		if p.r != nil {
			_ = p.r.Close()
		}
	}
}
