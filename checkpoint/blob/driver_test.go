package blob_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"gocloud.dev/blob/driver"
	"gocloud.dev/gcerrors"
)

var (
	errAbsent = errors.New("no such key")
	errTaken  = errors.New("condition does not hold")
	errRange  = errors.New("range not satisfiable")
)

// memBucket is a driver in memory: that of memblob can't be wrapped.
type memBucket struct {
	mu      sync.Mutex
	objects map[string]memObject
}

type memObject struct {
	data []byte
	meta map[string]string
}

func memDriver(*testing.T) driver.Bucket { return &memBucket{objects: map[string]memObject{}} }

func (*memBucket) Close() error                  { return nil }
func (*memBucket) As(any) bool                   { return false }
func (*memBucket) ErrorAs(err error, i any) bool { return errors.As(err, i) }

func (*memBucket) ErrorCode(err error) gcerrors.ErrorCode {
	switch {
	case errors.Is(err, errAbsent):
		return gcerrors.NotFound
	case errors.Is(err, errTaken):
		return gcerrors.FailedPrecondition
	}
	return gcerrors.Unknown
}

func (b *memBucket) get(key string) (memObject, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	o, ok := b.objects[key]
	if !ok {
		return o, errAbsent
	}
	return o, nil
}

func (b *memBucket) Attributes(_ context.Context, key string) (*driver.Attributes, error) {
	o, err := b.get(key)
	if err != nil {
		return nil, err
	}
	return &driver.Attributes{Size: int64(len(o.data)), Metadata: o.meta, ModTime: time.Now()}, nil
}

func (b *memBucket) ListPaged(_ context.Context, o *driver.ListOptions) (*driver.ListPage, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	page := &driver.ListPage{}
	keys := slices.Sorted(maps.Keys(b.objects))
	slices.Reverse(keys) // there are services that don't list by name
	for _, key := range keys {
		if strings.HasPrefix(key, o.Prefix) {
			page.Objects = append(page.Objects, &driver.ListObject{Key: key, Size: int64(len(b.objects[key].data)), ModTime: time.Now()})
		}
	}
	return page, nil
}

type memReader struct {
	io.Reader
	size int64
}

func (*memReader) Close() error { return nil }
func (*memReader) As(any) bool  { return false }
func (r *memReader) Attributes() *driver.ReaderAttributes {
	return &driver.ReaderAttributes{Size: r.size}
}

func (b *memBucket) NewRangeReader(_ context.Context, key string, off, n int64, _ *driver.ReaderOptions) (driver.Reader, error) {
	o, err := b.get(key)
	if err != nil {
		return nil, err
	}
	size := int64(len(o.data))
	if off > 0 && off >= size {
		return nil, errRange
	}
	if n < 0 || n > size-off {
		n = size - off
	}
	return &memReader{bytes.NewReader(o.data[off : off+n]), size}, nil
}

type memWriter struct {
	bytes.Buffer
	ctx context.Context
	b   *memBucket
	key string
	o   *driver.WriterOptions
}

func (b *memBucket) NewTypedWriter(ctx context.Context, key, _ string, o *driver.WriterOptions) (driver.Writer, error) {
	return &memWriter{ctx: ctx, b: b, key: key, o: o}, nil
}

func (w *memWriter) Upload(r io.Reader) error {
	_, err := w.ReadFrom(r)
	return err
}

func (w *memWriter) Close() error {
	if err := w.ctx.Err(); err != nil {
		return err
	}
	w.b.mu.Lock()
	defer w.b.mu.Unlock()
	if _, ok := w.b.objects[w.key]; ok && w.o.IfNotExist {
		return errTaken
	}
	w.b.objects[w.key] = memObject{w.Bytes(), w.o.Metadata}
	return nil
}

func (b *memBucket) Delete(_ context.Context, key string, _ *driver.DeleteOptions) error {
	if _, err := b.get(key); err != nil {
		return err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.objects, key)
	return nil
}

func (*memBucket) Copy(context.Context, string, string, *driver.CopyOptions) error {
	return errors.ErrUnsupported
}

func (*memBucket) SignedURL(context.Context, string, *driver.SignedURLOptions) (string, error) {
	return "", errors.ErrUnsupported
}
