package blob

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/url"
	"regexp"
	"strings"
	"syscall"

	"gocloud.dev/gcerrors"

	"github.com/weirstream/weir/checkpoint"
)

// Kind says what an error of a service means to a store.
type Kind int

// The kinds.
const (
	// Unclassified leaves it to package gcerrors, and to what is known of networks.
	Unclassified Kind = iota
	// NotFound: there is no such object.
	NotFound
	// Exists: the object was not put because there is one.
	Exists
	// NoBucket: there is no such bucket, or not there.
	NoBucket
	// Denied: credentials are missing, wrong, or lack a right.
	Denied
	// Unsupported: the service lacks a feature that was used.
	Unsupported
	// Refused: the same will never work.
	Refused
	// Transient: it is worth another attempt.
	Transient
	// Unreachable: who gives out credentials does not answer. It is Transient if an
	// operation worked before, else Denied.
	Unreachable
	// Kept: a rule of the service keeps the object as it is, so there is one.
	Kept
)

func (s *Store) kind(err error) Kind {
	if errors.Is(err, errSilent) || s.reached.Load() && unreachable(err) {
		return Transient
	}
	if s.o.Classify != nil {
		switch k := s.o.Classify(err); {
		case k == Unreachable && s.reached.Load():
			return Transient
		case k == Unreachable:
			return Denied
		case k != Unclassified:
			return k
		}
	}
	switch gcerrors.Code(err) {
	case gcerrors.NotFound:
		return NotFound
	case gcerrors.FailedPrecondition, gcerrors.AlreadyExists:
		return Exists
	case gcerrors.PermissionDenied:
		return Denied
	case gcerrors.Unimplemented:
		return Unsupported
	case gcerrors.InvalidArgument:
		return Refused
	case gcerrors.ResourceExhausted, gcerrors.DeadlineExceeded:
		return Transient
	}
	return networkKind(err)
}

// unreachable tells that a name was not known, or that nobody answered: of the service, or
// of who gives out credentials for it. That is a mistake, unless it worked before; then
// somebody is being restarted.
func unreachable(err error) bool {
	var dns *net.DNSError
	return errors.As(err, &dns) || networkKind(err) == Transient
}

// brokenConn is what net/http says of a connection that broke, in errors without a
// type.
var brokenConn = regexp.MustCompile(`http2: |connection broken|server closed idle connection|malformed HTTP`)

// networkKind tells a network that may work again from a mistake.
func networkKind(err error) Kind {
	var (
		certificate *tls.CertificateVerificationError
		record      tls.RecordHeaderError
		dns         *net.DNSError
		ofURL       *url.Error
		ofNet       *net.OpError
		timeout     net.Error
	)
	switch {
	case errors.As(err, &certificate), errors.As(err, &record):
		return Refused
	case errors.As(err, &dns) && dns.IsNotFound:
		return Refused
	case errors.As(err, &ofURL) && (errors.Is(ofURL, io.EOF) || brokenConn.MatchString(ofURL.Err.Error())):
		return Transient
	case errors.As(err, &ofNet), errors.As(err, &timeout) && timeout.Timeout(), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, net.ErrClosed), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return Transient
	}
	return Refused
}

// StatusKind is the Kind of a response by its HTTP status: for drivers, where the
// service's own code says no more.
func StatusKind(status int) Kind {
	switch status {
	case 401, 403:
		return Denied
	case 404:
		return NotFound
	case 412:
		return Exists
	case 501:
		return Unsupported
	case 408, 429, 500, 502, 503, 504:
		return Transient
	}
	if status >= 400 {
		return Refused
	}
	return Unclassified
}

// cause is an error of a service in a form that is fit for a log.
type cause struct {
	text string
	is   error // of package checkpoint, or nil
	err  error // nil where it would be taken for something that it isn't
}

func (c *cause) Error() string { return c.text }

func (c *cause) Unwrap() []error {
	var list []error
	for _, err := range []error{c.is, c.err} {
		if err != nil {
			list = append(list, err)
		}
	}
	return list
}

// err describes what went wrong with an operation; ctx is the operation's.
func (s *Store) err(ctx context.Context, op, name string, err error) error {
	if !errors.Is(err, errOwn) {
		err = s.cause(ctx, err)
	}
	return &checkpoint.StoreError{Op: op, Object: name, Store: s.o.URL, Err: err}
}

func (s *Store) cause(ctx context.Context, err error) error {
	c := &cause{err: err}
	if done := ctx.Err(); done != nil {
		c.is, c.text = done, done.Error()
		if !errors.Is(err, done) {
			c.text += "; the last attempt: " + withoutSecrets(err.Error())
		}
		return c
	}
	kind := s.kind(err)
	c.text = withoutSecrets(err.Error())
	switch kind {
	case NotFound:
		c.is, c.text = checkpoint.ErrNotFound, checkpoint.ErrNotFound.Error()
	case Exists:
		c.is, c.text = checkpoint.ErrExists, checkpoint.ErrExists.Error()
	case NoBucket:
		c.text += "; create the bucket, or correct its name and place in the URL of the checkpoint store"
	case Denied:
		c.text += "; the rights to get, put, delete and list objects are needed; " + s.o.Credentials
	case Kept:
		c.text += "; weir deletes what it no longer needs: remove the retention rules, locks, holds, leases and snapshots from the bucket and the objects"
	case Unsupported:
		c.text += "; if the service has no conditional writes, add " + paramConditional + "=false to the URL; if it has no checksums and is spoken to by the S3 protocol, add request_checksum_calculation=when_required"
	case Transient:
		if !errors.Is(err, errSilent) {
			c.text += "; it was tried for " + s.o.RetryFor.String()
		}
		c.text += ": look at the service and at the network to it"
	}
	if errors.Is(err, io.ErrUnexpectedEOF) {
		// To callers that would say that the object is short.
		c.err = nil
	}
	return c
}

var (
	secretParam = regexp.MustCompile(`(?i)\b((?:sig|[a-z-]*signature|[a-z-]*security-token|[a-z-]*credential|[a-z_-]*token|[a-z_]*secret[a-z_]*|[a-z_]*password|(?:account|access|secret|private|api)_?key(?:_id)?)(?:=|%3D))[^&\s"';]+`)
	secretUser  = regexp.MustCompile(`://[^/@\s"]*@`)
	rule        = regexp.MustCompile(`^[-=\s]*$`)
)

// withoutSecrets is text on one line without what looks like credentials in a URL or
// in a connection string.
func withoutSecrets(text string) string {
	var lines []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); !rule.MatchString(line) {
			lines = append(lines, line)
		}
	}
	text = strings.Join(lines, "; ")
	return secretParam.ReplaceAllString(secretUser.ReplaceAllString(text, "://"), "${1}xxxxx")
}
