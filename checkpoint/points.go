package checkpoint

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"io"
	"sync"

	"github.com/weirstream/weir/state/segment"
)

// ErrPointsClosed is given by [Points] that were closed.
var ErrPointsClosed = errors.New("reading keys of checkpoints has ended")

// Points reads single keys of checkpoints out of a store. It keeps the segments that were
// asked last open: small ones as a whole, of large ones what was read of them. Segments
// don't change, so what it keeps serves every checkpoint that refers to them. It may be
// used by many goroutines at once.
type Points struct {
	store  Store
	ctx    context.Context
	cancel context.CancelFunc
	reads  chan struct{} // those of large segments under way

	mu     sync.Mutex
	closed bool
	open   map[segmentID]*list.Element // of *point
	order  *list.List                  // used last is first
	bytes  int64
	wg     sync.WaitGroup
}

const (
	// pointsBytes is the memory that Points may take for what it keeps.
	pointsBytes = 64 << 20
	// pointsOfSegment is what part of that one large segment may take: its index and
	// filter, which all reads need, and some blocks.
	pointsOfSegment = 4 << 20
	// pointsReads is how many reads of large segments are under way at once. Who asked may
	// have gone while the store hangs, and would ask again.
	pointsReads = 64
)

// point is one segment that is open, or being opened.
type point struct {
	id    segmentID
	cost  int64
	whole bool          // no read goes to the store any more
	done  chan struct{} // closed when r or err is set
	r     *segment.Reader
	err   error
}

// NewPoints returns a reader of keys. The context is for all that it reads.
func NewPoints(ctx context.Context, store Store) *Points {
	p := &Points{store: store, reads: make(chan struct{}, pointsReads), open: map[segmentID]*list.Element{}, order: list.New()}
	p.ctx, p.cancel = context.WithCancel(ctx)
	return p
}

// Get returns the value under key, as segment.AppendKey makes it, at the checkpoint m,
// and whether there is one. What m refers to must stay where it is until Get returns: see
// [Writer.Hold]. Segments are asked newest first, and those that can't have the key are
// left out by their ranges and filters. Errors are as with [ReadSegment], that of ctx,
// and ErrPointsClosed.
func (p *Points) Get(ctx context.Context, m *Manifest, key []byte) (value []byte, ok bool, err error) {
	if len(key) < 2 {
		return nil, false, nil
	}
	group := int(key[0])<<8 | int(key[1])
	hex := fmt.Sprintf("%x", key)
	for i := len(m.Segments) - 1; i >= 0; i-- {
		s := m.Segments[i]
		if !s.overlaps(group, group+1) || s.MinKey != "" && (hex < s.MinKey || hex > s.MaxKey) {
			continue
		}
		value, found, deleted, err := p.get(ctx, s, key)
		if err != nil {
			return nil, false, fmt.Errorf("read a key of checkpoint %d from %s: %w", m.Checkpoint, p.store, err)
		}
		if found {
			return value, !deleted, nil
		}
	}
	return nil, false, nil
}

// get looks for key in one segment.
func (p *Points) get(ctx context.Context, s SegmentRef, key []byte) (value []byte, found, deleted bool, err error) {
	o, err := p.segment(s)
	if err != nil {
		return nil, false, false, err
	}
	select {
	case <-o.done:
	case <-ctx.Done():
		return nil, false, false, ctx.Err()
	}
	if o.err != nil {
		return nil, false, false, o.err
	}
	if o.whole {
		value, found, deleted, err = o.r.Get(nil, key)
	} else {
		// The store may hang, and the one who asks need not.
		select {
		case p.reads <- struct{}{}:
		case <-ctx.Done():
			return nil, false, false, ctx.Err()
		case <-p.ctx.Done():
			return nil, false, false, ErrPointsClosed
		}
		read := make(chan struct{})
		var a struct {
			value          []byte
			found, deleted bool
			err            error
		}
		if !p.spawn(func() {
			defer func() { <-p.reads }()
			defer close(read)
			a.value, a.found, a.deleted, a.err = o.r.Get(nil, key)
		}) {
			<-p.reads
			return nil, false, false, ErrPointsClosed
		}
		select {
		case <-read:
			value, found, deleted, err = a.value, a.found, a.deleted, a.err
		case <-ctx.Done():
			return nil, false, false, ctx.Err()
		}
	}
	if err != nil {
		p.forget(o) // a later error of its reader would be taken for this one
		return nil, false, false, segmentFault(p.store, s, err)
	}
	return value, found, deleted, nil
}

// spawn runs f in a goroutine that Close waits for.
func (p *Points) spawn(f func()) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return false
	}
	p.wg.Go(f)
	return true
}

// segment returns a segment that is open or about to be.
func (p *Points) segment(s SegmentRef) (*point, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return nil, ErrPointsClosed
	}
	id := s.id()
	if e := p.open[id]; e != nil {
		p.order.MoveToFront(e)
		return e.Value.(*point), nil
	}
	o := &point{id: id, whole: s.Length <= chunkBytes, cost: min(s.Length, pointsOfSegment), done: make(chan struct{})}
	p.open[id] = p.order.PushFront(o)
	for p.bytes += o.cost; p.bytes > pointsBytes && p.order.Len() > 1; {
		p.drop(p.order.Back()) // who reads it goes on
	}
	p.wg.Go(func() {
		defer close(o.done)
		if o.r, o.err = p.read(s); o.err != nil {
			p.forget(o)
		}
	})
	return o, nil
}

func (p *Points) read(s SegmentRef) (r *segment.Reader, err error) {
	if s.Length <= chunkBytes {
		return openSegment(p.ctx, p.store, s, nil, chunkBytes)
	}
	r, err = segment.OpenAt(&ranges{ctx: p.ctx, store: p.store, s: s, kept: map[span][]byte{}}, s.Length)
	if err != nil {
		return nil, segmentFault(p.store, s, err)
	}
	return r, nil
}

// forget drops a segment that can't be read.
func (p *Points) forget(o *point) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.open[o.id]; e != nil && e.Value == o {
		p.drop(e)
	}
}

// drop is called with p.mu held. A reader holds memory alone, so it needs no closing.
func (p *Points) drop(e *list.Element) {
	o := p.order.Remove(e).(*point)
	delete(p.open, o.id)
	p.bytes -= o.cost
}

// Close ends all reads and waits for them. What the store is stuck with goes on alone.
func (p *Points) Close() {
	p.mu.Lock()
	p.closed = true
	clear(p.open)
	p.order.Init()
	p.mu.Unlock()
	p.cancel()
	p.wg.Wait()
}

// ranges reads of a large segment what is asked for, and keeps some of it:
// index and filter, which every read needs, are asked for again as they were.
type ranges struct {
	ctx   context.Context
	store Store
	s     SegmentRef

	mu   sync.Mutex
	kept map[span][]byte
	size int64
}

type span struct{ off, n int64 }

// ReadAt implements io.ReaderAt.
func (r *ranges) ReadAt(b []byte, off int64) (int, error) {
	if off < 0 || off > r.s.Length {
		return 0, io.EOF
	}
	at := span{off, min(int64(len(b)), r.s.Length-off)}
	r.mu.Lock()
	data := r.kept[at]
	r.mu.Unlock()
	if data == nil {
		var err error
		if data, err = getRange(r.ctx, r.store, r.s.Object, r.s.Offset+at.off, at.n); err != nil {
			return 0, err
		}
		r.keep(at, data)
	}
	n := copy(b, data)
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (r *ranges) keep(at span, data []byte) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.kept[at]; ok || at.n > pointsOfSegment {
		return
	}
	for old, b := range r.kept {
		if r.size+at.n <= pointsOfSegment {
			break
		}
		delete(r.kept, old)
		r.size -= int64(len(b))
	}
	r.kept[at] = data
	r.size += int64(len(data))
}
