package gcs

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"time"

	"cloud.google.com/go/compute/metadata"
	"golang.org/x/oauth2"
)

// tokenTime is how long a request for a token may take. It is shorter than the patience of
// package blob, so that an operator is told who does not answer.
const tokenTime = 30 * time.Second

// authorized sends requests with a token. That of package oauth2 asks for a token without
// the context of the request, so a request would wait for it whoever has given it up.
type authorized struct {
	source   oauth2.TokenSource
	endpoint *endpoint // through which source goes, unless it is the metadata server
}

func (t *authorized) RoundTrip(r *http.Request) (*http.Response, error) {
	token, err := t.token(r.Context())
	if err != nil {
		if r.Body != nil {
			_ = r.Body.Close()
		}
		return nil, err
	}
	with := oauth2.Transport{Source: oauth2.StaticTokenSource(token), Base: t.endpoint.base}
	return with.RoundTrip(r)
}

// token returns a token that is valid. Whoever stops waiting leaves a goroutine behind,
// which ends when the endpoint has answered or tokenTime is over.
func (t *authorized) token(ctx context.Context) (*oauth2.Token, error) {
	type result struct {
		token *oauth2.Token
		err   error
	}
	got := make(chan result, 1)
	go func() {
		token, err := t.source.Token()
		if err != nil {
			err = t.endpoint.explain(err)
		}
		got <- result{token, err}
	}()
	select {
	case r := <-got:
		return r.token, r.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// unanswered is the status of an endpoint from which no answer came.
const unanswered = -1

// endpoint carries the requests for tokens and keeps the status of the last answer: sources
// of tokens tell of it, and of a network that fails, in texts only.
type endpoint struct {
	base   http.RoundTripper
	status atomic.Int64
}

func (e *endpoint) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := e.base.RoundTrip(r)
	if err != nil {
		e.status.Store(unanswered)
		return nil, err
	}
	e.status.Store(int64(resp.StatusCode))
	return resp, nil
}

func (e *endpoint) explain(err error) error {
	t := &tokenError{err: err, status: int(e.status.Load())}
	if m := (*metadata.Error)(nil); errors.As(err, &m) {
		t.status = m.Code
	}
	return t
}

// tokenError says that there is no token for a request. It is a net.Error.
type tokenError struct {
	err    error
	status int // of the answer; 0: nobody was asked
}

func (e *tokenError) Error() string   { return "get a token: " + e.err.Error() }
func (e *tokenError) Unwrap() error   { return e.err }
func (e *tokenError) Timeout() bool   { return e.status == unanswered }
func (e *tokenError) Temporary() bool { return false }

// pingAfter is for how long a connection may be silent before it is asked whether it lives,
// and how long it has for the answer. HTTP/2 keeps one on which requests were given up, so
// all others would go the same way until the kernel gives it up, after a quarter of an hour.
const pingAfter = 15 * time.Second

// transport returns the usual one, which finds out connections that are dead.
func transport(pingAfter time.Duration) http.RoundTripper {
	usual, ok := http.DefaultTransport.(*http.Transport)
	if !ok {
		return http.DefaultTransport
	}
	t := usual.Clone()
	t.HTTP2 = &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingAfter}
	return t
}
