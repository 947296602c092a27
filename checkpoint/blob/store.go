package blob

import (
	"bytes"
	"cmp"
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"gocloud.dev/blob"

	"github.com/weirstream/weir/checkpoint"
)

// Options are for New.
type Options struct {
	// URL is for messages. It must hold no secret.
	URL string
	// NoConditionalWrites is for services that can't be told to put an object only
	// if there is none. Then Put looks first, and looks again afterwards. Within
	// this process that is as good; but of several processes that put an object at
	// the same time, one may overwrite what another has put.
	NoConditionalWrites bool
	// PartSize is in how large parts objects are sent, in bytes. The default is the
	// driver's.
	PartSize int
	// RetryFor is for how long an operation is tried again if the context allows
	// it. The default is 30 s.
	RetryFor time.Duration
	// Upload sends objects with Bucket.Upload, which is for drivers that take an
	// object as a whole and check it in a way of their own. Without it an object
	// goes through a Writer, with its MD5 sum.
	Upload bool
	// BeforeWrite is that of gocloud.dev/blob.WriterOptions. It may be nil.
	BeforeWrite func(as func(any) bool) error
	// BeforeList is that of gocloud.dev/blob.ListOptions. It may be nil.
	BeforeList func(as func(any) bool) error
	// Directory tells of what was listed whether it stands for a directory, where that
	// can't be seen by its name. It may be nil.
	Directory func(as func(any) bool) bool
	// Classify says what an error of the service means. It may be nil, and may
	// return Unclassified.
	Classify func(error) Kind
	// Credentials tells an operator where credentials are taken from.
	Credentials string
}

const (
	retryFor  = 30 * time.Second
	firstWait = 100 * time.Millisecond // before the second attempt, then longer
	longWait  = 5 * time.Second

	// minPartSize is what S3 asks of all parts but the last.
	minPartSize = 5 << 20

	// patience is for how long a service may be silent: SDKs wait for ever. What is
	// sent or fetched may take longer, by what it takes at slowRate.
	patience = time.Minute
	slowRate = 64 << 10 // bytes a second

	// checkSize is up to how large an object may be that is put twice in order to
	// see that the service keeps the first.
	checkSize = 64 << 10

	contentType = "application/octet-stream"
	// putID is the name of the metadata that says which Put an object is of. Azure
	// takes only letters and digits as they are.
	putID = "weirput"
)

// Store keeps objects in a bucket. It implements checkpoint.Store.
//
// What fails for a reason that may pass is tried again, with growing waits. A service
// that is silent for a minute, and longer for a large object, has failed: no operation
// waits for it for ever. A Put whose outcome was lost on the way is found out: each Put
// marks its object, and the object that stands in its way may be its own.
//
// The first small object is put twice, to see that the service doesn't overwrite:
// some ignore the condition.
type Store struct {
	bucket *blob.Bucket
	o      Options

	conditional atomic.Bool // the service was seen to keep what is there
	reached     atomic.Bool // an operation has worked

	mu      sync.Mutex
	putting map[string]chan struct{} // without conditional writes: names; closed when put
}

var _ checkpoint.Store = (*Store)(nil)

// New returns the store in a bucket, which it takes over.
func New(bucket *blob.Bucket, o Options) *Store {
	o.RetryFor = cmp.Or(o.RetryFor, retryFor)
	return &Store{bucket: bucket, o: o, putting: map[string]chan struct{}{}}
}

// Close closes the bucket. No operation may be under way.
func (s *Store) Close() error { return s.bucket.Close() }

func (s *Store) String() string { return s.o.URL }

// errOwn marks errors that are not of the service.
var errOwn = errors.New("")

type ownError struct{ error }

func (e ownError) Is(target error) bool { return target == errOwn }
func (e ownError) Unwrap() error        { return e.error }

func own(err error) error { return ownError{err} }

// check is done before anything else.
func check(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return own(err)
	}
	if !checkpoint.ValidName(name) {
		return own(errors.New("not a valid object name"))
	}
	return nil
}

// retry does do until it works, fails for good, or the time is up. If it is the
// context that ended it, it returns what went wrong before that.
func (s *Store) retry(ctx context.Context, do func() error) error {
	wait := backoff.NewExponentialBackOff()
	wait.InitialInterval, wait.MaxInterval = firstWait, longWait
	var last, seen error
	_, _ = backoff.Retry(ctx, func() (struct{}, error) {
		last = do()
		if last == nil {
			s.reached.Store(true)
		}
		if last != nil && (errors.Is(last, errOwn) || s.kind(last) != Transient) {
			return struct{}{}, backoff.Permanent(last)
		}
		if last != nil && ctx.Err() == nil {
			seen = last
		}
		return struct{}{}, last
	}, backoff.WithBackOff(wait), backoff.WithMaxElapsedTime(s.o.RetryFor))
	if last != nil && ctx.Err() != nil {
		return cmp.Or(seen, last)
	}
	return last
}

// errSilent says that an attempt was given up. It wraps no error of the context, which
// would say that the caller did not want to wait any longer.
var errSilent = fmt.Errorf("the service does not answer: nothing came for %v", patience)

// request is the context of a request, or of several that follow each other.
type request struct {
	context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
}

// request begins one that sends n bytes.
func (s *Store) request(ctx context.Context, n int64) *request {
	r := &request{}
	r.Context, r.cancel = context.WithCancelCause(ctx)
	r.timer = time.AfterFunc(patienceFor(n), func() { r.cancel(errSilent) })
	return r
}

func patienceFor(n int64) time.Duration {
	return patience + time.Duration(n/slowRate)*time.Second
}

// answered says that the service has answered, and that n bytes are still to come.
func (r *request) answered(n int64) { r.timer.Reset(patienceFor(n)) }

// end returns what err, which the request ended with, means.
func (r *request) end(err error) error {
	r.timer.Stop()
	if err != nil && context.Cause(r) == errSilent {
		err = errSilent
	}
	r.cancel(nil)
	return err
}

// attributes asks what is known of an object.
func (s *Store) attributes(ctx context.Context, name string) (*blob.Attributes, error) {
	r := s.request(ctx, 0)
	a, err := s.bucket.Attributes(r, name)
	return a, r.end(err)
}

// delete deletes an object.
func (s *Store) delete(ctx context.Context, name string) error {
	r := s.request(ctx, 0)
	return r.end(s.bucket.Delete(r, name))
}

// Put implements checkpoint.Store.
func (s *Store) Put(ctx context.Context, name string, data []byte) error {
	err := check(ctx, name)
	if err == nil {
		err = s.put(ctx, name, data)
	}
	if err != nil {
		return s.err(ctx, "put", name, err)
	}
	return nil
}

// upload is one Put.
type upload struct {
	name string
	data []byte
	id   string
	// lost tells that an attempt failed in a way that leaves open whether the
	// object is there.
	lost bool
}

func (s *Store) put(ctx context.Context, name string, data []byte) error {
	var id [16]byte
	_, _ = rand.Read(id[:]) // never fails
	u := &upload{name: name, data: data, id: hex.EncodeToString(id[:])}
	try := s.putConditionally
	if s.o.NoConditionalWrites {
		unlock, err := s.lock(ctx, name)
		if err != nil {
			return err
		}
		defer unlock()
		try = s.putUnconditionally
	}
	err := s.retry(ctx, func() error { return try(ctx, u) })
	if err != nil && u.lost && !errors.Is(err, errOwn) && ctx.Err() == nil {
		if found, ferr := s.find(ctx, u); ferr == nil && found == mine {
			return nil
		}
	}
	if err == nil && !s.o.NoConditionalWrites && len(data) <= checkSize && !s.conditional.Load() {
		return s.checkConditional(ctx, u)
	}
	return err
}

func (s *Store) putConditionally(ctx context.Context, u *upload) error {
	err := s.write(ctx, u)
	if err == nil {
		return nil
	}
	kind := s.kind(err)
	if kind != Exists && kind != Kept {
		u.lost = u.lost || kind == Transient
		return s.ofPut(err)
	}
	// Maybe an earlier attempt worked, of ours or one within the SDK.
	switch found, ferr := s.find(ctx, u); {
	case ferr != nil:
		return ferr
	case found == mine:
		return nil
	case found == nothing && kind == Kept:
		return err
	default:
		return own(checkpoint.ErrExists)
	}
}

func (s *Store) putUnconditionally(ctx context.Context, u *upload) error {
	switch found, err := s.find(ctx, u); {
	case err != nil:
		return err
	case found == mine:
		return nil
	case found == others:
		return own(checkpoint.ErrExists)
	}
	if err := s.write(ctx, u); err != nil {
		u.lost = u.lost || s.kind(err) == Transient
		return s.ofPut(err)
	}
	switch found, err := s.find(ctx, u); {
	case err != nil:
		u.lost = true
		return err
	case found == mine:
		return nil
	default:
		return own(checkpoint.ErrExists)
	}
}

// ofPut corrects an error of a write: what is not found is not the object.
func (s *Store) ofPut(err error) error {
	if s.kind(err) == NotFound {
		return own(&cause{text: "there is no such bucket: " + withoutSecrets(err.Error()) + "; create it, or correct its name and place in the URL of the checkpoint store"})
	}
	return err
}

// write sends the object once.
func (s *Store) write(ctx context.Context, u *upload) error {
	o := &blob.WriterOptions{
		IfNotExist:  !s.o.NoConditionalWrites,
		BufferSize:  s.o.PartSize,
		ContentType: contentType,
		Metadata:    map[string]string{putID: u.id},
		BeforeWrite: s.o.BeforeWrite,
	}
	r := s.request(ctx, int64(len(u.data)))
	if s.o.Upload {
		return r.end(s.bucket.Upload(r, u.name, bytes.NewReader(u.data), o))
	}
	sum := md5.Sum(u.data)
	o.ContentMD5 = sum[:]
	w, err := s.bucket.NewWriter(r, u.name, o)
	if err != nil {
		return r.end(err)
	}
	if _, err := w.Write(u.data); err != nil {
		err = r.end(err)
		_ = w.Close() // it keeps what was written, unless the context is done
		return err
	}
	return r.end(w.Close())
}

type finding int

const (
	nothing finding = iota
	mine
	others
)

// find looks whose the object is that has the name of u.
func (s *Store) find(ctx context.Context, u *upload) (finding, error) {
	a, err := s.attributes(ctx, u.name)
	if err != nil && s.kind(err) == NotFound {
		return nothing, nil
	}
	if err != nil {
		return nothing, err
	}
	if a.Metadata[putID] == u.id {
		return mine, nil
	}
	if a.Metadata[putID] != "" || !u.lost || a.Size != int64(len(u.data)) {
		return others, nil
	}
	// The service keeps no metadata: what tells is the content.
	b, err := s.read(ctx, u.name, 0, -1)
	if err != nil && s.kind(err) == NotFound {
		return nothing, nil
	}
	if err != nil {
		return nothing, err
	}
	if bytes.Equal(b, u.data) {
		return mine, nil
	}
	return others, nil
}

// checkConditional puts what was put once more. A service that takes it is one that
// overwrites.
func (s *Store) checkConditional(ctx context.Context, u *upload) error {
	err := s.write(ctx, u)
	switch {
	case err == nil:
		_ = s.delete(ctx, u.name) // what failed to be put is better not there
		return own(&cause{text: "the service overwrites objects although it is told not to; use one that has conditional writes, or add " + paramConditional + "=false to the URL and run only one instance"})
	case s.kind(err) == Exists:
		s.conditional.Store(true)
	}
	// Whatever else it is, the object was put before, and the next Put checks again.
	return nil
}

// lock waits until no other Put of name is under way in this process.
func (s *Store) lock(ctx context.Context, name string) (unlock func(), err error) {
	done := make(chan struct{})
	for {
		s.mu.Lock()
		other := s.putting[name]
		if other == nil {
			s.putting[name] = done
		}
		s.mu.Unlock()
		if other == nil {
			return func() {
				s.mu.Lock()
				delete(s.putting, name)
				s.mu.Unlock()
				close(done)
			}, nil
		}
		select {
		case <-other:
		case <-ctx.Done():
			return nil, own(ctx.Err())
		}
	}
}

// Get implements checkpoint.Store.
func (s *Store) Get(ctx context.Context, name string) ([]byte, error) {
	var b []byte
	err := check(ctx, name)
	if err == nil {
		err = s.retry(ctx, func() (err error) {
			b, err = s.read(ctx, name, 0, -1)
			return err
		})
	}
	if err != nil {
		return nil, s.err(ctx, "get", name, err)
	}
	return b, nil
}

// GetRange implements checkpoint.Store.
func (s *Store) GetRange(ctx context.Context, name string, off, n int64) ([]byte, error) {
	var b []byte
	err := check(ctx, name)
	if err == nil {
		err = s.retry(ctx, func() (err error) {
			b, err = s.getRange(ctx, name, off, n)
			return err
		})
	}
	if err != nil {
		return nil, s.err(ctx, "get range", name, err)
	}
	return b, nil
}

func (s *Store) getRange(ctx context.Context, name string, off, n int64) ([]byte, error) {
	if off >= 0 && n > 0 && off+n > 0 {
		b, err := s.read(ctx, name, off, n)
		if err == nil {
			return b, nil
		}
		switch s.kind(err) {
		case NotFound, NoBucket, Denied, Transient:
			return nil, err
		}
		if errors.Is(err, errOwn) {
			return nil, err
		}
		// Services refuse a range that begins behind the end, each in its own way.
		if a, aerr := s.attributes(ctx, name); aerr != nil || off <= a.Size && n <= a.Size-off {
			return nil, err
		}
		return nil, own(io.ErrUnexpectedEOF)
	}
	a, err := s.attributes(ctx, name)
	if err != nil {
		return nil, err
	}
	if off < 0 || n != 0 || off > a.Size {
		return nil, own(io.ErrUnexpectedEOF)
	}
	return []byte{}, nil
}

// read reads n bytes from off on, or all if n is negative.
func (s *Store) read(ctx context.Context, name string, off, n int64) ([]byte, error) {
	req := s.request(ctx, 0)
	b, err := s.readIn(req, name, off, n)
	return b, req.end(err)
}

func (s *Store) readIn(req *request, name string, off, n int64) ([]byte, error) {
	r, err := s.bucket.NewRangeReader(req, name, off, n, nil)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	size := r.Size() // of the whole object
	switch {
	case size < 0:
		return nil, own(errors.New("the service does not tell how large it is, as it was stored with Content-Encoding: gzip and is decompressed on the way; put it back as it was, without compression"))
	case n < 0:
		n = size - off
	case off > size || n > size-off:
		return nil, own(io.ErrUnexpectedEOF)
	}
	req.answered(n)
	var b bytes.Buffer
	b.Grow(int(n) + bytes.MinRead)
	// Up to the end: that is where an SDK compares checksums.
	if _, err := b.ReadFrom(r); err != nil {
		return nil, err
	}
	if int64(b.Len()) != n {
		return nil, fmt.Errorf("%d of %d bytes came: %w", b.Len(), n, io.ErrUnexpectedEOF)
	}
	return b.Bytes(), nil
}

// List implements checkpoint.Store. It asks for all objects before it yields the
// first, because not every service lists by name.
func (s *Store) List(ctx context.Context, prefix string) iter.Seq2[checkpoint.Object, error] {
	return func(yield func(checkpoint.Object, error) bool) {
		var found []checkpoint.Object
		err := ctx.Err()
		if err == nil {
			err = s.retry(ctx, func() (err error) {
				found, err = s.list(ctx, prefix)
				return err
			})
		}
		if err != nil {
			yield(checkpoint.Object{}, s.err(ctx, "list", prefix, err))
			return
		}
		for _, o := range found {
			if !yield(o, nil) {
				return
			}
		}
	}
}

func (s *Store) list(ctx context.Context, prefix string) ([]checkpoint.Object, error) {
	req := s.request(ctx, 0)
	found, err := s.listIn(req, prefix)
	return found, req.end(err)
}

func (s *Store) listIn(req *request, prefix string) ([]checkpoint.Object, error) {
	var found []checkpoint.Object
	for it := s.bucket.List(&blob.ListOptions{Prefix: prefix, BeforeList: s.o.BeforeList}); ; {
		o, err := it.Next(req)
		if err == io.EOF { // a connection that ends gives another error that wraps it
			break
		}
		if err != nil {
			return nil, err
		}
		req.answered(0) // with a page at least
		// Consoles make objects that stand for directories, and so do some services.
		if !o.IsDir && checkpoint.ValidName(o.Key) && (s.o.Directory == nil || !s.o.Directory(o.As)) {
			found = append(found, checkpoint.Object{Name: o.Key, Size: o.Size, Modified: o.ModTime})
		}
	}
	slices.SortFunc(found, func(a, b checkpoint.Object) int { return strings.Compare(a.Name, b.Name) })
	return found, nil
}

// Delete implements checkpoint.Store.
func (s *Store) Delete(ctx context.Context, name string) error {
	err := check(ctx, name)
	if err == nil {
		err = s.retry(ctx, func() error {
			err := s.delete(ctx, name)
			if err != nil && s.kind(err) == NotFound {
				return nil
			}
			return err
		})
	}
	if err != nil {
		return s.err(ctx, "delete", name, err)
	}
	return nil
}
