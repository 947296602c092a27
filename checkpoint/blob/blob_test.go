package blob_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	gocloud "gocloud.dev/blob"
	"gocloud.dev/blob/driver"
	"gocloud.dev/blob/fileblob"
	"gocloud.dev/blob/memblob"
	"gocloud.dev/gcerrors"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/blob"
	"github.com/weirstream/weir/weirtest/conformance"
)

func TestStoreContract(t *testing.T) {
	open := func(t testing.TB, bucket *gocloud.Bucket, o blob.Options) checkpoint.Store {
		s := blob.New(bucket, o)
		t.Cleanup(func() { _ = s.Close() })
		return s
	}
	t.Run("memblob", func(t *testing.T) {
		conformance.Store{Open: func(t testing.TB) checkpoint.Store {
			return open(t, memblob.OpenBucket(nil), blob.Options{URL: "memblob://"})
		}}.Run(t)
	})
	t.Run("memblob with a prefix", func(t *testing.T) {
		conformance.Store{Open: func(t testing.TB) checkpoint.Store {
			bucket := memblob.OpenBucket(nil)
			for _, key := range []string{"weir", "weir/dir/", "weirdo/x", "a"} {
				if err := bucket.WriteAll(t.Context(), key, nil, nil); err != nil {
					t.Fatal(err)
				}
			}
			return open(t, gocloud.PrefixedBucket(bucket, "weir/"), blob.Options{URL: "memblob:///weir"})
		}}.Run(t)
	})
	t.Run("without conditional writes", func(t *testing.T) {
		conformance.Store{Open: func(t testing.TB) checkpoint.Store {
			return open(t, memblob.OpenBucket(nil), blob.Options{URL: "memblob://", NoConditionalWrites: true})
		}}.Run(t)
	})
	t.Run("fileblob", func(t *testing.T) {
		conformance.Store{Open: func(t testing.TB) checkpoint.Store {
			bucket, err := fileblob.OpenBucket(t.TempDir(), nil) // temporary files in the bucket would be listed
			if err != nil {
				t.Fatal(err)
			}
			// Its condition is checked under a lock that each writer has for itself.
			return open(t, bucket, blob.Options{URL: "fileblob://", NoConditionalWrites: true})
		}}.Run(t)
	})
}

// faulty is a bucket in memory whose operations fail as hooks say.
type faulty struct {
	driver.Bucket

	mu sync.Mutex
	// before and after are asked about each operation; after has its effect.
	before, after func(op, key string) error
	// blind drops metadata, deaf drops the condition of a write.
	blind, deaf bool
	ops         []string
}

var errHTTP = map[int]error{503: errors.New("status 503"), 403: errors.New("status 403"), 404: errors.New("status 404, no bucket"), 501: errors.New("status 501")}

var (
	errNoToken = errors.New("nobody gives out a token")
	errHeld    = errors.New("the object is held")
)

func classify(err error) blob.Kind {
	switch {
	case errors.Is(err, errNoToken):
		return blob.Unreachable
	case errors.Is(err, errHeld):
		return blob.Kept
	}
	for status, e := range errHTTP {
		if errors.Is(err, e) {
			if status == 404 {
				return blob.NoBucket
			}
			return blob.StatusKind(status)
		}
	}
	return blob.Unclassified
}

// newFaulty returns a store in a faulty bucket.
func newFaulty(t *testing.T, o blob.Options) (*blob.Store, *faulty) {
	f := &faulty{Bucket: memDriver(t)}
	o.URL, o.Classify, o.Credentials = "faulty://bucket", classify, "credentials come from the test"
	s := blob.New(gocloud.NewBucket(f), o)
	t.Cleanup(func() { _ = s.Close() })
	return s, f
}

func (f *faulty) ask(op, key string) (err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.ops = append(f.ops, op)
	if f.before != nil {
		err = f.before(op, key)
	}
	return err
}

func (f *faulty) asked(op, key string, err error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	if err == nil && f.after != nil {
		err = f.after(op, key)
	}
	return err
}

// hooks sets the hooks and forgets what was done.
func (f *faulty) hooks(before, after func(op, key string) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.before, f.after, f.ops = before, after, nil
}

func (f *faulty) done() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.ops)
}

func (f *faulty) Attributes(ctx context.Context, key string) (*driver.Attributes, error) {
	if err := f.ask("attributes", key); err != nil {
		return nil, err
	}
	a, err := f.Bucket.Attributes(ctx, key)
	if err == nil && f.blind {
		a.Metadata = nil
	}
	return a, err
}

func (f *faulty) NewRangeReader(ctx context.Context, key string, off, n int64, o *driver.ReaderOptions) (driver.Reader, error) {
	if err := f.ask("read", key); err != nil {
		return nil, err
	}
	r, err := f.Bucket.NewRangeReader(ctx, key, off, n, o)
	if err != nil {
		return nil, err
	}
	if err := f.asked("read", key, nil); err != nil {
		return &tornReader{r, err}, nil
	}
	return r, nil
}

// tornReader breaks off at once.
type tornReader struct {
	driver.Reader
	err error
}

func (r *tornReader) Read([]byte) (int, error) { return 0, r.err }

func (f *faulty) NewTypedWriter(ctx context.Context, key, contentType string, o *driver.WriterOptions) (driver.Writer, error) {
	if err := f.ask("write", key); err != nil {
		return nil, err
	}
	if f.deaf {
		o.IfNotExist = false
	}
	w, err := f.Bucket.NewTypedWriter(ctx, key, contentType, o)
	return &faultyWriter{w, f, key}, err
}

type faultyWriter struct {
	driver.Writer
	f   *faulty
	key string
}

func (w *faultyWriter) Close() error { return w.f.asked("write", w.key, w.Writer.Close()) }

func (f *faulty) Delete(ctx context.Context, key string, o *driver.DeleteOptions) error {
	if err := f.ask("delete", key); err != nil {
		return err
	}
	return f.asked("delete", key, f.Bucket.Delete(ctx, key, o))
}

func (f *faulty) ListPaged(ctx context.Context, o *driver.ListOptions) (*driver.ListPage, error) {
	if err := f.ask("list", o.Prefix); err != nil {
		return nil, err
	}
	page, err := f.Bucket.ListPaged(ctx, o)
	return page, f.asked("list", o.Prefix, err)
}

// times returns a hook that gives err the first n times it is asked about op.
func times(n int, op string, err error) func(string, string) error {
	return func(o, _ string) error {
		if o == op && n > 0 {
			n--
			return err
		}
		return nil
	}
}

func TestPassingFaultsAreOvercome(t *testing.T) {
	reset := &url.Error{Op: "Put", URL: "http://x", Err: &net.OpError{Op: "read", Err: syscall.ECONNRESET}}
	for name, fault := range map[string]error{"503": errHTTP[503], "connection reset": reset, "torn": io.ErrUnexpectedEOF} {
		for _, effect := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, effect %v", name, effect), func(t *testing.T) {
				t.Parallel()
				s, f := newFaulty(t, blob.Options{})
				arm := func(op string) {
					if effect {
						f.hooks(nil, times(2, op, fault))
					} else {
						f.hooks(times(2, op, fault), nil)
					}
				}
				arm("write")
				if err := s.Put(t.Context(), "a", []byte("hello")); err != nil {
					t.Fatal(err)
				}
				arm("read")
				if b, err := s.Get(t.Context(), "a"); err != nil || string(b) != "hello" {
					t.Errorf("get: %q, %v", b, err)
				}
				arm("read")
				if b, err := s.GetRange(t.Context(), "a", 1, 3); err != nil || string(b) != "ell" {
					t.Errorf("get range: %q, %v", b, err)
				}
				arm("attributes")
				if b, err := s.GetRange(t.Context(), "a", 5, 0); err != nil || len(b) != 0 {
					t.Errorf("get range: %q, %v", b, err)
				}
				arm("list")
				n := 0
				for o, err := range s.List(t.Context(), "") {
					n++
					if o.Name != "a" || err != nil {
						t.Errorf("list: %v, %v", o, err)
					}
				}
				if n != 1 {
					t.Errorf("list: %d objects", n)
				}
				arm("delete")
				if err := s.Delete(t.Context(), "a"); err != nil {
					t.Errorf("delete: %v", err)
				}
				f.hooks(nil, nil)
				if _, err := s.Get(t.Context(), "a"); !errors.Is(err, checkpoint.ErrNotFound) {
					t.Errorf("after the delete: %v", err)
				}
			})
		}
	}
}

func TestPutWhoseResponseWasLostIsFoundOut(t *testing.T) {
	for name, set := range map[string]func(*faulty, *blob.Options){
		"marked":                     func(*faulty, *blob.Options) {},
		"service without metadata":   func(f *faulty, _ *blob.Options) { f.blind = true },
		"without conditional writes": func(_ *faulty, o *blob.Options) { o.NoConditionalWrites = true },
	} {
		t.Run(name, func(t *testing.T) {
			var o blob.Options
			set(&faulty{}, &o)
			s, f := newFaulty(t, o)
			set(f, &o)
			f.hooks(nil, times(1, "write", errHTTP[503]))
			if err := s.Put(t.Context(), "a", []byte("hello")); err != nil {
				t.Fatal(err)
			}
			if b, err := s.Get(t.Context(), "a"); string(b) != "hello" || err != nil {
				t.Fatalf("%q, %v", b, err)
			}
		})
	}
}

func TestPutFindsAnotherObjectAfterALostResponse(t *testing.T) {
	for _, blind := range []bool{false, true} {
		for _, data := range []string{"other", "theirs, and longer"} {
			s, f := newFaulty(t, blob.Options{})
			f.blind = blind
			other := blob.New(gocloud.NewBucket(f.Bucket), blob.Options{URL: "other"})
			f.hooks(func(op, key string) error {
				if op == "write" {
					f.before = nil
					if err := other.Put(context.Background(), key, []byte(data)); err != nil {
						t.Error(err)
					}
					return errHTTP[503]
				}
				return nil
			}, nil)
			if err := s.Put(t.Context(), "a", []byte("hello")); !errors.Is(err, checkpoint.ErrExists) {
				t.Errorf("blind %v: %v", blind, err)
			}
		}
	}
}

// A rule that keeps objects as they are may be what stands in the way of a put that is
// tried again.
func TestPutThatMeetsWhatIsHeldLooksWhoseItIs(t *testing.T) {
	s, f := newFaulty(t, blob.Options{})
	held := func(op, _ string) error {
		if op == "write" || op == "delete" {
			return errHeld
		}
		return nil
	}
	f.hooks(nil, func(op, _ string) error {
		f.before, f.after = held, nil
		return errHTTP[503]
	})
	if err := s.Put(t.Context(), "a", []byte("hello")); err != nil {
		t.Error(err)
	}
	if err := s.Put(t.Context(), "a", []byte("hello")); !errors.Is(err, checkpoint.ErrExists) {
		t.Errorf("another put: %v", err)
	}
	if err := s.Delete(t.Context(), "a"); err == nil || errors.Is(err, checkpoint.ErrExists) || !strings.Contains(err.Error(), "retention rules") {
		t.Errorf("delete: %v", err)
	}
}

func TestLastAttemptThatHadItsEffectCounts(t *testing.T) {
	s, f := newFaulty(t, blob.Options{RetryFor: time.Nanosecond})
	f.hooks(nil, times(1, "write", errHTTP[503]))
	if err := s.Put(t.Context(), "a", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	f.hooks(times(1, "write", errHTTP[503]), nil)
	err := s.Put(t.Context(), "b", []byte("hello"))
	if err == nil || !strings.Contains(err.Error(), "status 503") || !strings.Contains(err.Error(), "look at the service") {
		t.Fatalf("the other: %v", err)
	}
}

func TestOnlyWhatMayPassIsTriedAgain(t *testing.T) {
	unknownHost := &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}}
	for want, fault := range map[string]error{
		"rights to get, put, delete and list objects are needed; credentials come from the test": errHTTP[403],
		"create the bucket":        errHTTP[404],
		"conditional_writes=false": errHTTP[501],
		"no such host":             unknownHost,
		"a token; the rights to":   errNoToken,
		"out of order":             errors.New("out of order"),
	} {
		s, f := newFaulty(t, blob.Options{})
		f.hooks(func(string, string) error { return fault }, nil)
		_, get := s.Get(t.Context(), "a")
		_, getRange := s.GetRange(t.Context(), "a", 0, 0)
		_, list := firstOf(s.List(t.Context(), ""))
		for i, err := range []error{s.Put(t.Context(), "a", nil), get, getRange, s.Delete(t.Context(), "a"), list} {
			if err == nil || errors.Is(err, checkpoint.ErrNotFound) || errors.Is(err, checkpoint.ErrExists) || !strings.Contains(err.Error(), want) {
				t.Errorf("operation %d: %v, want it to say %s", i, err, want)
			}
		}
		if got := f.done(); len(got) != 5 {
			t.Errorf("%v: asked for %v", fault, got)
		}
	}
}

func TestServiceThatWasReachedMayGoAway(t *testing.T) {
	for name, fault := range map[string]error{
		"its name":    &net.OpError{Op: "dial", Err: &net.DNSError{Err: "no such host", Name: "x", IsNotFound: true}},
		"token":       errNoToken,
		"credentials": errors.Join(errHTTP[403], &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED}),
	} {
		s, f := newFaulty(t, blob.Options{})
		if _, err := s.Get(t.Context(), "a"); !errors.Is(err, checkpoint.ErrNotFound) {
			t.Fatal(err)
		}
		if err := s.Put(t.Context(), "a", []byte("x")); err != nil {
			t.Fatal(err)
		}
		f.hooks(times(2, "read", fault), nil)
		if b, err := s.Get(t.Context(), "a"); string(b) != "x" || err != nil {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
}

func firstOf(list func(func(checkpoint.Object, error) bool)) (checkpoint.Object, error) {
	for o, err := range list {
		return o, err
	}
	return checkpoint.Object{}, nil
}

func TestRetriesEndWithTheContext(t *testing.T) {
	s, f := newFaulty(t, blob.Options{RetryFor: time.Hour})
	ctx, cancel := context.WithCancel(t.Context())
	n := 0
	f.hooks(func(string, string) error {
		if n++; n == 2 {
			cancel()
		}
		return errHTTP[503]
	}, nil)
	err := s.Put(ctx, "a", []byte("x"))
	if !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "the last attempt: ") || !strings.Contains(err.Error(), "status 503") {
		t.Errorf("put: %v", err)
	}
	if n != 2 {
		t.Errorf("%d attempts", n)
	}
}

// hanging is a bucket whose operations end with their context.
type hanging struct{ driver.Bucket }

func (hanging) Attributes(ctx context.Context, _ string) (*driver.Attributes, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hanging) NewRangeReader(ctx context.Context, _ string, _, _ int64, _ *driver.ReaderOptions) (driver.Reader, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hanging) NewTypedWriter(ctx context.Context, _, _ string, _ *driver.WriterOptions) (driver.Writer, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

func (hanging) Delete(ctx context.Context, _ string, _ *driver.DeleteOptions) error {
	<-ctx.Done()
	return ctx.Err()
}

func (hanging) ListPaged(ctx context.Context, _ *driver.ListOptions) (*driver.ListPage, error) {
	<-ctx.Done()
	return nil, ctx.Err()
}

// hangingBody opens objects and gives nothing of them.
type hangingBody struct{ driver.Bucket }

func (b hangingBody) NewRangeReader(ctx context.Context, key string, off, n int64, o *driver.ReaderOptions) (driver.Reader, error) {
	r, err := b.Bucket.NewRangeReader(ctx, key, off, n, o)
	return &hangingReader{r, ctx}, err
}

type hangingReader struct {
	driver.Reader
	ctx context.Context
}

func (r *hangingReader) Read([]byte) (int, error) {
	<-r.ctx.Done()
	return 0, r.ctx.Err()
}

func TestNoOperationWaitsForEver(t *testing.T) {
	silent := func(t *testing.T, errs ...error) {
		t.Helper()
		for i, err := range errs {
			if err == nil || errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), "does not answer") || !strings.Contains(err.Error(), "look at the service") {
				t.Errorf("operation %d: %v", i, err)
			}
		}
	}
	for _, unconditional := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			s := blob.New(gocloud.NewBucket(hanging{memDriver(t)}), blob.Options{URL: "hanging://", NoConditionalWrites: unconditional})
			_, get := s.Get(t.Context(), "a")
			_, getRange := s.GetRange(t.Context(), "a", 1, 1)
			_, none := s.GetRange(t.Context(), "a", 0, 0)
			_, list := firstOf(s.List(t.Context(), ""))
			silent(t, s.Put(t.Context(), "a", make([]byte, 1<<20)), get, getRange, none, list, s.Delete(t.Context(), "a"))
		})
	}
	synctest.Test(t, func(t *testing.T) {
		bucket := memDriver(t)
		s := blob.New(gocloud.NewBucket(hangingBody{bucket}), blob.Options{URL: "hanging://"})
		if err := s.Put(t.Context(), "a", []byte("hello")); err != nil {
			t.Fatal(err)
		}
		_, get := s.Get(t.Context(), "a")
		_, getRange := s.GetRange(t.Context(), "a", 1, 1)
		silent(t, get, getRange)
	})
}

// slowPages takes a while for each page of a list, which has one object.
type slowPages struct{ driver.Bucket }

func (b slowPages) ListPaged(ctx context.Context, o *driver.ListOptions) (*driver.ListPage, error) {
	select {
	case <-time.After(50 * time.Second):
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	o.PageSize = 1
	return b.Bucket.ListPaged(ctx, o)
}

func TestLongListIsNotGivenUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := blob.New(gocloud.NewBucket(slowPages{memDriver(t)}), blob.Options{URL: "slow://"})
		for _, name := range []string{"a", "b", "c", "d"} {
			if err := s.Put(t.Context(), name, nil); err != nil {
				t.Fatal(err)
			}
		}
		n := 0
		for _, err := range s.List(t.Context(), "") {
			if n++; err != nil {
				t.Fatal(err)
			}
		}
		if n != 4 {
			t.Errorf("%d objects", n)
		}
	})
}

func TestConnectionThatBreaksIsNotAShortObject(t *testing.T) {
	s, f := newFaulty(t, blob.Options{RetryFor: time.Nanosecond})
	if err := s.Put(t.Context(), "a", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	f.hooks(nil, times(100, "read", io.ErrUnexpectedEOF))
	_, err := s.GetRange(t.Context(), "a", 0, 5)
	_, err2 := s.Get(t.Context(), "a")
	for _, err := range []error{err, err2} {
		if err == nil || errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("the error is %v", err)
		}
	}
}

func TestBodyThatEndsEarlyIsReadAgain(t *testing.T) {
	s, f := newFaulty(t, blob.Options{})
	if err := s.Put(t.Context(), "a", []byte("hello")); err != nil {
		t.Fatal(err)
	}
	f.hooks(nil, times(1, "read", io.EOF))
	if b, err := s.Get(t.Context(), "a"); err != nil || string(b) != "hello" {
		t.Errorf("get: %q, %v", b, err)
	}
}

func TestWithoutConditionalWritesPutsOfANameTakeTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := blob.New(gocloud.NewBucket(&slowWrites{Bucket: memDriver(t)}), blob.Options{URL: "slow://", NoConditionalWrites: true})
		var won atomic.Int32
		var wg sync.WaitGroup
		for i := range 4 {
			wg.Go(func() {
				switch err := s.Put(t.Context(), "a", []byte{byte(i)}); {
				case err == nil:
					won.Add(1)
				case !errors.Is(err, checkpoint.ErrExists):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if won.Load() != 1 {
			t.Errorf("%d puts of a name won", won.Load())
		}
	})
}

// slowWrites makes each write take longer than the one before.
type slowWrites struct {
	driver.Bucket
	n atomic.Int32
}

func (b *slowWrites) NewTypedWriter(ctx context.Context, key, contentType string, o *driver.WriterOptions) (driver.Writer, error) {
	w, err := b.Bucket.NewTypedWriter(ctx, key, contentType, o)
	return &slowWriter{w, time.Duration(b.n.Add(1)) * time.Second}, err
}

type slowWriter struct {
	driver.Writer
	takes time.Duration
}

func (w *slowWriter) Close() error {
	time.Sleep(w.takes)
	return w.Writer.Close()
}

func TestServiceThatOverwritesIsFoundOut(t *testing.T) {
	s, f := newFaulty(t, blob.Options{})
	f.deaf = true
	err := checkpoint.Probe(t.Context(), s)
	if err == nil || !strings.Contains(err.Error(), "overwrites objects") || !strings.Contains(err.Error(), "conditional_writes=false") {
		t.Fatalf("the probe says %v", err)
	}
	f.deaf = false
	f.hooks(nil, nil)
	for i, writes := range []int{2, 1} {
		f.hooks(nil, nil)
		if err := checkpoint.Probe(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		got := len(slices.DeleteFunc(f.done(), func(op string) bool { return op != "write" }))
		if got != writes {
			t.Errorf("probe %d wrote %d times, want %d", i, got, writes)
		}
	}
}

func TestWithoutConditionalWritesAnotherProcessIsNoticed(t *testing.T) {
	s, f := newFaulty(t, blob.Options{NoConditionalWrites: true})
	other := gocloud.NewBucket(f.Bucket)
	f.hooks(nil, func(op, key string) error {
		if op == "write" {
			return other.WriteAll(context.Background(), key, []byte("theirs"), nil)
		}
		return nil
	})
	if err := s.Put(t.Context(), "a", []byte("ours")); !errors.Is(err, checkpoint.ErrExists) {
		t.Errorf("put: %v", err)
	}
}

func TestAbortedWriteLeavesNothing(t *testing.T) {
	s, f := newFaulty(t, blob.Options{})
	f.Bucket = &cutWrites{f.Bucket, syscall.ENOSPC}
	if err := s.Put(t.Context(), "a", bytes.Repeat([]byte("x"), 1000)); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("put: %v", err)
	}
	if b, err := s.Get(t.Context(), "a"); !errors.Is(err, checkpoint.ErrNotFound) {
		t.Errorf("get: %d bytes, %v", len(b), err)
	}
}

// cutWrites writes half of the first write, then fails.
type cutWrites struct {
	driver.Bucket
	err error
}

func (b *cutWrites) NewTypedWriter(ctx context.Context, key, contentType string, o *driver.WriterOptions) (driver.Writer, error) {
	w, err := b.Bucket.NewTypedWriter(ctx, key, contentType, o)
	return &cutWriter{w, b.err}, err
}

type cutWriter struct {
	driver.Writer
	err error
}

func (w *cutWriter) Write(b []byte) (int, error) {
	n, _ := w.Writer.Write(b[:len(b)/2])
	return n, w.err
}

func TestURL(t *testing.T) {
	var opened *url.URL
	d := blob.Driver{Scheme: "test", Credentials: "credentials come from elsewhere", Shown: []string{"region", "endpoint"},
		Open: func(_ context.Context, u *url.URL) (*gocloud.Bucket, error) {
			opened = u
			if u.Query().Has("broken") {
				return nil, fmt.Errorf("open bucket %v: no", u)
			}
			return memblob.OpenBucket(nil), nil
		}}
	for raw, want := range map[string]struct{ shown, opened string }{
		"test://bucket":                                            {"test://bucket", "test://bucket"},
		"test://bucket/":                                           {"test://bucket", "test://bucket"},
		"test://bucket/a/b/":                                       {"test://bucket/a/b", "test://bucket"},
		"test://bucket/a?region=x&other=y":                         {"test://bucket/a?region=x", "test://bucket?other=y&region=x"},
		"test://bucket?api_key=hush":                               {"test://bucket", "test://bucket?api_key=hush"},
		"test://bucket?endpoint=http://h:9/":                       {"test://bucket?endpoint=http://h:9/", "test://bucket?endpoint=http%3A%2F%2Fh%3A9%2F"},
		"test://bucket?endpoint=http://u:hush@h:9/p%3Fsig=hush":    {"test://bucket?endpoint=http://h:9/p", "test://bucket?endpoint=http%3A%2F%2Fu%3Ahush%40h%3A9%2Fp%3Fsig%3Dhush"},
		"test://bucket?conditional_writes=false&part_size=9000000": {"test://bucket?conditional_writes=false&part_size=9000000", "test://bucket"},
	} {
		s, err := blob.Open(t.Context(), d, raw)
		if err != nil {
			t.Errorf("%s: %v", raw, err)
			continue
		}
		if s.String() != want.shown || opened.String() != want.opened {
			t.Errorf("%s: shown as %s, want %s; opened with %s, want %s", raw, s, want.shown, opened, want.opened)
		}
	}
	for raw, want := range map[string]string{
		"test://id:hush@bucket/x":                   "test://bucket/x: credentials in the URL",
		"test:///x":                                 "names no bucket",
		"test://bucket/a//b":                        "no empty element",
		"test://bucket/../b":                        "no empty element",
		"test://bucket/100%25x?part_size=1":         "at least 5242880",
		"test://bucket?part_size=much":              `"much"`,
		"test://bucket?conditional_writes=maybe":    `"maybe"`,
		"test://bucket?region=a&region=b":           "region is given twice",
		"test://bucket?conditional_writes=false%":   "the query is malformed",
		"test://bucket?region=a;password=hush":      "the query is malformed",
		"test://bucket/a#b":                         "%23",
		"test://bucket?broken=1&sig=hush&x=1":       "sig=xxxxx",
		"other://bucket":                            "test://",
		"test://u:hush@host/%zz?password=hush":      "malformed",
		"test://bucket?broken=&secret_key=hush%3D1": "xxxxx",
	} {
		s, err := blob.Open(t.Context(), d, raw)
		if s != nil || err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v, want it to say %s", raw, err, want)
		}
	}
}

func TestErrorsShowNoSecrets(t *testing.T) {
	fault := errors.New("Put \"https://a.blob.core.windows.net/c/x?se=2030&sig=hush%2B&sp=rw\": refused\n-----\nAccountKey=hush;\nhttps://u:hush@host/x?X-Amz-Signature=hush&X-Amz-Security-Token=hush")
	s, f := newFaulty(t, blob.Options{})
	f.hooks(func(string, string) error { return fault }, nil)
	_, err := s.Get(t.Context(), "a")
	if err == nil || strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "\n") || !strings.Contains(err.Error(), "sp=rw") {
		t.Errorf("the error is %v", err)
	}
}

func TestErrorsKeepTheirCause(t *testing.T) {
	s, f := newFaulty(t, blob.Options{})
	f.hooks(func(string, string) error { return errHTTP[403] }, nil)
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, errHTTP[403]) {
		t.Errorf("the error is %v", err)
	}
	f.hooks(nil, nil)
	if _, err := s.Get(t.Context(), "a"); gcerrors.Code(err) != gcerrors.NotFound {
		t.Errorf("the error is %v, code %v", err, gcerrors.Code(err))
	}
}

// A program that uses no object store links none.
func TestNoSDKIsLinkedUnlessItsDriverIsImported(t *testing.T) {
	const root, here = "github.com/weirstream/weir", "github.com/weirstream/weir/checkpoint/blob"
	sdks := []string{"github.com/aws/", "github.com/Azure/", "cloud.google.com/go/storage"}
	for pkg, allowed := range map[string]string{
		root:            "",
		here:            "",
		here + "/s3":    "github.com/aws/",
		here + "/gcs":   "cloud.google.com/go/storage",
		here + "/azure": "github.com/Azure/",
	} {
		cmd := exec.CommandContext(t.Context(), "go", "list", "-deps", pkg)
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("go list -deps %s: %v: %s", pkg, err, &stderr)
		}
		deps := strings.Fields(string(out))
		depends := func(prefix string) bool {
			return slices.ContainsFunc(deps, func(d string) bool { return strings.HasPrefix(d, prefix) })
		}
		for _, sdk := range sdks {
			if depends(sdk) != (sdk == allowed) {
				t.Errorf("that %s depends on %s is %v", pkg, sdk, depends(sdk))
			}
		}
		for _, prefix := range []string{"gocloud.dev/", "cloud.google.com/", "google.golang.org/api/"} {
			if pkg == root && depends(prefix) {
				t.Errorf("%s depends on %s", pkg, prefix)
			}
		}
	}
}
