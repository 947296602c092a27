package lookup

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"slices"
	"strings"

	"github.com/weirstream/weir/sink"
)

// Source describes what is looked up. It only reads: after a failure, what was looked up
// since the last checkpoint is looked up again.
type Source[K comparable, V any] interface {
	// Check tells what is wrong with the description. It has no side effects.
	Check() error
	// Open makes the client of one incarnation. It should not wait for the other side. ctx
	// ends with the incarnation. An error stops the app, one that is [Passing] restarts it.
	Open(ctx context.Context) (Client[K, V], error)
	// String says what is asked, for plans and messages.
	String() string
}

// Client looks up keys.
type Client[K comparable, V any] interface {
	// Fetch sets answers[i] to what is known of keys[i]. The keys differ, and there is at
	// least one. Neither slice may be kept. Fetch is called from any goroutine, and any number
	// of times at once. It must return soon after ctx ends, which it does after [Timeout], and
	// with the incarnation.
	//
	// An error is about all of it, and no record is to blame. If it is [Passing] the call is
	// repeated until it succeeds or [GiveUpAfter] is over, and then the app restarts from its
	// last checkpoint. Any other one stops the app. What is wrong with one key belongs into
	// its answer.
	Fetch(ctx context.Context, keys []K, answers []Answer[V]) error
	// Close releases connections. No Fetch runs any more.
	Close() error
}

// Single is implemented by a [Client] that gains nothing by being asked for several keys
// at once. Each of its keys is a call of its own, and [InFlight] is higher by default.
type Single interface{ Single() }

// Answer is what is known of a key.
type Answer[V any] struct {
	Value V
	Found bool // without it Value is the zero value
	// Err is why nothing is known of this key. If it is [Passing], or the time of the call is
	// over ([Timeout]), the whole call is repeated. Otherwise it is the error of the records
	// that wait for the key, see [OnError].
	Err error
}

// Passing tells whether an error may be over at the next try: it comes from weir.Retry, it
// is a timeout, or it comes from the network: a *net.OpError, such as of a connection that is
// refused or reset, or a *net.DNSError, also of a host that is not found. A *url.Error, as
// package net/http returns it, is what is in it, and one of a connection that ended without
// an answer is passing, too. What is wrong with a certificate is not.
func Passing(err error) bool {
	var again *sink.Retriable
	return errors.As(err, &again) || errors.Is(err, context.DeadlineExceeded) || ofNetwork(err)
}

// ofNetwork tells whether err, or one that it wraps, is one of the network that may pass.
func ofNetwork(err error) bool {
	switch e := err.(type) {
	case *tls.CertificateVerificationError:
		return false
	case *net.DNSError:
		return true
	case *net.OpError:
		// So it is if the other side refuses the certificate, which TLS tells with an alert.
		return !strings.HasSuffix(e.Op, " error") || !strings.Contains(e.Err.Error(), "certificate")
	case *url.Error:
		return errors.Is(e.Err, io.EOF) || errors.Is(e.Err, io.ErrUnexpectedEOF) || ofNetwork(e.Err)
	case net.Error:
		if e.Timeout() {
			return true
		}
	}
	switch e := err.(type) {
	case interface{ Unwrap() error }:
		return ofNetwork(e.Unwrap())
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), ofNetwork)
	}
	return false
}

// Each makes a source of a function that looks up one key; found is false for one that
// isn't there. It is called from several goroutines at once. name says what is asked. An
// error that is not [Passing] is that of the key, unless the time of the call is over.
func Each[K comparable, V any](name string, f func(ctx context.Context, key K) (v V, found bool, err error)) Source[K, V] {
	if f == nil {
		return function[K, V]{name: name}
	}
	return each[K, V]{function[K, V]{name, func(ctx context.Context, keys []K, answers []Answer[V]) error {
		for i, k := range keys {
			a := &answers[i]
			a.Value, a.Found, a.Err = f(ctx, k)
		}
		return nil
	}}}
}

// Batch makes a source of a function that does what [Client.Fetch] does. name says what
// is asked.
func Batch[K comparable, V any](name string, f func(ctx context.Context, keys []K, answers []Answer[V]) error) Source[K, V] {
	return function[K, V]{name, f}
}

// function is a source that is a function, and its client.
type function[K comparable, V any] struct {
	name string
	f    func(ctx context.Context, keys []K, answers []Answer[V]) error
}

func (s function[K, V]) Check() error {
	var errs []error
	if s.name == "" {
		errs = append(errs, errors.New("lookup: the source has no name"))
	}
	if s.f == nil {
		errs = append(errs, errors.New("lookup: the function that looks up is nil"))
	}
	return errors.Join(errs...)
}

func (s function[K, V]) String() string { return s.name }

func (s function[K, V]) Open(context.Context) (Client[K, V], error) { return s, nil }

func (s function[K, V]) Fetch(ctx context.Context, keys []K, answers []Answer[V]) error {
	return s.f(ctx, keys, answers)
}

func (s function[K, V]) Close() error { return nil }

type each[K comparable, V any] struct{ function[K, V] }

func (s each[K, V]) Open(context.Context) (Client[K, V], error) { return s, nil }

// Single implements [Single].
func (s each[K, V]) Single() {}

// Decode makes a source whose values are made by f of those of another one, before they
// are cached. f is called for what was found, from several goroutines at once. Its error
// is that of the key.
func Decode[K comparable, V, W any](s Source[K, V], f func(V) (W, error)) Source[K, W] {
	return decoded[K, V, W]{s, f}
}

type decoded[K comparable, V, W any] struct {
	from Source[K, V]
	f    func(V) (W, error)
}

func (s decoded[K, V, W]) Check() error {
	switch {
	case s.from == nil:
		return errors.New("lookup: Decode of no source")
	case s.f == nil:
		return errors.Join(s.from.Check(), errors.New("lookup: the function that decodes is nil"))
	}
	return s.from.Check()
}

func (s decoded[K, V, W]) String() string {
	if s.from == nil {
		return "nothing"
	}
	return s.from.String()
}

func (s decoded[K, V, W]) Open(ctx context.Context) (Client[K, W], error) {
	c, err := s.from.Open(ctx)
	if err != nil {
		return nil, err
	}
	d := decoder[K, V, W]{c, s.f}
	if _, ok := c.(Single); ok {
		return singleDecoder[K, V, W]{d}, nil
	}
	return d, nil
}

type decoder[K comparable, V, W any] struct {
	from Client[K, V]
	f    func(V) (W, error)
}

func (d decoder[K, V, W]) Fetch(ctx context.Context, keys []K, answers []Answer[W]) error {
	raw := make([]Answer[V], len(keys))
	if err := d.from.Fetch(ctx, keys, raw); err != nil {
		return err
	}
	for i, r := range raw {
		a := &answers[i]
		if a.Found, a.Err = r.Found, r.Err; a.Err != nil || !a.Found {
			continue
		}
		if a.Value, a.Err = d.f(r.Value); a.Err != nil {
			a.Err = fmt.Errorf("decoding what was found: %w", a.Err)
		}
	}
	return nil
}

func (d decoder[K, V, W]) Close() error { return d.from.Close() }

type singleDecoder[K comparable, V, W any] struct{ decoder[K, V, W] }

// Single implements [Single].
func (singleDecoder[K, V, W]) Single() {}
