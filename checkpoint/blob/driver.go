package blob

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"gocloud.dev/blob"

	"github.com/weirstream/weir/checkpoint"
)

// Driver connects a service to checkpoint.OpenStore.
type Driver struct {
	// Scheme is what the service's URLs begin with: scheme://bucket/prefix?query.
	Scheme string
	// Open opens the bucket that u names. The path and the parameters of this
	// package are cut off from u. It sends nothing.
	Open func(ctx context.Context, u *url.URL) (*blob.Bucket, error)
	// Upload, BeforeWrite, BeforeList and Directory are those of Options.
	Upload      bool
	BeforeWrite func(as func(any) bool) error
	BeforeList  func(as func(any) bool) error
	Directory   func(as func(any) bool) bool
	// Classify says what an error of the service means; see Options.
	Classify func(error) Kind
	// Credentials tells an operator where credentials are taken from.
	Credentials string
	// Shown are the parameters that Store.String may show.
	Shown []string
}

// The parameters that Open takes out of a URL.
const (
	// paramConditional=false is for services without conditional writes; see
	// Options.NoConditionalWrites.
	paramConditional = "conditional_writes"
	// paramPartSize is Options.PartSize.
	paramPartSize = "part_size"
)

// Register makes checkpoint.OpenStore open URLs of d.Scheme. It is called by the
// init function of a driver package, and panics if the scheme is taken.
func Register(d Driver) {
	checkpoint.RegisterScheme(d.Scheme, func(url string) (checkpoint.Store, error) {
		s, err := Open(context.Background(), d, url)
		if err != nil {
			return nil, err
		}
		return s, nil
	})
}

// Open opens the store at rawURL, whose path is the prefix of its objects. The query
// may hold conditional_writes (see Options.NoConditionalWrites), part_size
// (Options.PartSize) and what the driver takes. ctx is only for opening. Errors name
// no secrets.
func Open(ctx context.Context, d Driver, rawURL string) (*Store, error) {
	u, err := url.Parse(rawURL)
	if err != nil {
		// What url.Parse says repeats all of the URL.
		if e := (*url.Error)(nil); errors.As(err, &e) {
			err = e.Err
		}
		return nil, fmt.Errorf("open checkpoint store %s://: the URL is malformed: %s", d.Scheme, withoutSecrets(err.Error()))
	}
	q, badQuery := url.ParseQuery(u.RawQuery) // it leaves out what it can't read
	prefix := strings.Trim(u.Path, "/")
	shown := shownURL(u, prefix, d.Shown)
	fail := func(format string, args ...any) (*Store, error) {
		return nil, fmt.Errorf("open checkpoint store %s: %w", shown, fmt.Errorf(format, args...))
	}
	switch {
	case u.Scheme != d.Scheme:
		return fail("want a URL that begins with %s://", d.Scheme)
	case badQuery != nil:
		return fail("the query is malformed: %w: write %%25 for %% and %%3B for ;", badQuery)
	case u.Fragment != "":
		return fail("what follows a # is not used: write %%23 for a # in the path")
	case u.User != nil:
		return fail("credentials in the URL end up in logs and are not used; %s", d.Credentials)
	case u.Host == "":
		return fail("the URL names no bucket; use %s://bucket/prefix", d.Scheme)
	case prefix != "" && !fs.ValidPath(prefix):
		return fail("the path is the prefix of the objects, and must have no empty element, . or ..")
	}
	o := Options{URL: shown, Upload: d.Upload, BeforeWrite: d.BeforeWrite, BeforeList: d.BeforeList, Directory: d.Directory, Classify: d.Classify, Credentials: d.Credentials}
	for _, p := range slices.Sorted(maps.Keys(q)) {
		if len(q[p]) > 1 {
			return fail("parameter %s is given twice", p)
		}
	}
	if v := q.Get(paramConditional); v != "" {
		yes, err := strconv.ParseBool(v)
		if err != nil {
			return fail("parameter %s is %q: want true or false", paramConditional, v)
		}
		o.NoConditionalWrites = !yes
	}
	if v := q.Get(paramPartSize); v != "" {
		n, err := strconv.Atoi(v)
		if err != nil || n < minPartSize {
			return fail("parameter %s is %q: want a number of bytes, at least %d", paramPartSize, v, minPartSize)
		}
		o.PartSize = n
	}
	q.Del(paramConditional)
	q.Del(paramPartSize)
	bucket, err := d.Open(ctx, &url.URL{Scheme: u.Scheme, Host: u.Host, RawQuery: q.Encode()})
	if err != nil {
		return fail("%w", &cause{text: withoutSecrets(err.Error()), err: err})
	}
	if prefix != "" {
		bucket = blob.PrefixedBucket(bucket, prefix+"/")
	}
	return New(bucket, o), nil
}

// shownURL is u with the parameters in which nobody puts a secret.
func shownURL(u *url.URL, prefix string, params []string) string {
	show := url.URL{Scheme: u.Scheme, Host: u.Host}
	if prefix != "" {
		show.Path = "/" + prefix
	}
	q := url.Values{}
	for _, p := range append([]string{paramConditional, paramPartSize}, params...) {
		if v := u.Query().Get(p); v != "" {
			q.Set(p, withoutSecrets(v))
		}
	}
	// Of an endpoint only where it is: a user or a query of its own may be a secret.
	if e, err := url.Parse(q.Get("endpoint")); err == nil && e.Host != "" {
		q.Set("endpoint", e.Scheme+"://"+e.Host+e.Path)
	} else {
		q.Del("endpoint")
	}
	// A URL is shown for reading: nothing in it is escaped that need not be.
	show.RawQuery = strings.NewReplacer("%3A", ":", "%2F", "/").Replace(q.Encode())
	return show.String()
}
