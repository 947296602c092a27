package pebble

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	pebbleremote "github.com/cockroachdb/pebble/v2/objstorage/remote"
)

// place is where a remote segment is. It is what Pebble's catalog keeps of it: one
// locator for each segment, so that its name can be told from it.
type place struct {
	object         string
	offset, length int64
}

// placeName is the name that each segment has at its locator.
const placeName = "segment"

func (p place) locator() pebbleremote.Locator {
	return pebbleremote.Locator(fmt.Sprintf("%d+%d@%s", p.offset, p.length, p.object))
}

func parsePlace(l pebbleremote.Locator) (p place, ok bool) {
	span, object, ok := strings.Cut(string(l), "@")
	if !ok {
		return p, false
	}
	off, length, ok := strings.Cut(span, "+")
	if !ok {
		return p, false
	}
	var err1, err2 error
	p.object = object
	p.offset, err1 = strconv.ParseInt(off, 10, 64)
	p.length, err2 = strconv.ParseInt(length, 10, 64)
	return p, err1 == nil && err2 == nil
}

// remote gives Pebble the remote segments. Pebble reads some of them as soon as it is
// open, for its statistics; such reads wait until the store is attached.
type remote struct {
	ctx      context.Context // of the handle
	attached chan struct{}
	mu       sync.Mutex
	src      Objects
	rate     rate
	read     atomic.Int64 // bytes
}

func newRemote(ctx context.Context, bytesPerSecond int64) *remote {
	return &remote{ctx: ctx, attached: make(chan struct{}), rate: rate{bytesPerSecond: bytesPerSecond}}
}

func (r *remote) set(src Objects) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.src == nil {
		close(r.attached)
	}
	r.src = src
}

func (r *remote) objects(ctx context.Context) (Objects, error) {
	select {
	case <-r.attached:
		r.mu.Lock()
		defer r.mu.Unlock()
		return r.src, nil
	case <-r.ctx.Done():
		return nil, ErrDetached
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// CreateStorage implements Pebble's remote.StorageFactory.
func (r *remote) CreateStorage(l pebbleremote.Locator) (pebbleremote.Storage, error) {
	p, ok := parsePlace(l)
	if !ok {
		return nil, fmt.Errorf("locator %q of a remote segment makes no sense", l)
	}
	return &remoteSegment{r: r, place: p}, nil
}

// remoteSegment is Pebble's remote.Storage of one segment, and its only object.
type remoteSegment struct {
	r *remote
	place
	failures atomic.Int32 // in a row
}

var errReadOnly = errors.New("segments are not written by the local store")

func (s *remoteSegment) Close() error { return nil }
func (s *remoteSegment) ReadObject(context.Context, string) (pebbleremote.ObjectReader, int64, error) {
	return s, s.length, nil
}
func (s *remoteSegment) CreateObject(string) (io.WriteCloser, error) { return nil, errReadOnly }
func (s *remoteSegment) List(string, string) ([]string, error)       { return nil, errReadOnly }
func (s *remoteSegment) Delete(string) error                         { return errReadOnly }
func (s *remoteSegment) Size(string) (int64, error)                  { return s.length, nil }
func (s *remoteSegment) IsNotExistError(error) bool                  { return false }

const (
	// bulkBytes is from how many bytes on a read counts as one of the background copy,
	// a compaction or a long scan, which the rate holds back. A block is smaller.
	bulkBytes = 128 << 10
	// readPause is how long a read that failed takes at least, for each failure before
	// it: some of Pebble's background work tries again at once.
	readPause    = 20 * time.Millisecond
	readPauseMax = time.Second
)

// ReadAt implements Pebble's remote.ObjectReader.
func (s *remoteSegment) ReadAt(ctx context.Context, p []byte, off int64) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.r.ctx, cancel)()
	src, err := s.r.objects(ctx)
	if err != nil {
		return err
	}
	if off < 0 || off+int64(len(p)) > s.length {
		return fmt.Errorf("read %d bytes at %d of segment %s, which has %d: %w", len(p), off, s.object, s.length, io.ErrUnexpectedEOF)
	}
	if err := s.r.rate.take(ctx, len(p)); err != nil {
		return err
	}
	b, err := src.GetRange(ctx, s.object, s.offset+off, int64(len(p)))
	if err == nil && len(b) != len(p) {
		err = fmt.Errorf("read %d bytes at %d of segment %s: got %d: %w", len(p), off, s.object, len(b), io.ErrUnexpectedEOF)
	}
	if err != nil {
		n := s.failures.Add(1)
		_ = sleep(ctx, min(time.Duration(n)*readPause, readPauseMax))
		return err
	}
	s.failures.Store(0)
	s.r.read.Add(int64(len(b)))
	copy(p, b)
	return nil
}

// rate bounds bytes a second. Reads that are not held back count too.
type rate struct {
	bytesPerSecond int64
	mu             sync.Mutex
	free           time.Time // when what was taken is paid for
}

func (r *rate) take(ctx context.Context, n int) error {
	if r.bytesPerSecond == 0 {
		return nil
	}
	now := time.Now()
	r.mu.Lock()
	if r.free.Before(now) {
		r.free = now
	}
	wait := r.free.Sub(now)
	r.free = r.free.Add(time.Duration(float64(n) / float64(r.bytesPerSecond) * float64(time.Second)))
	r.mu.Unlock()
	if n < bulkBytes {
		return nil
	}
	return sleep(ctx, wait)
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}
