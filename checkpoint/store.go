package checkpoint

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"strings"
	"sync"
	"time"
)

// Store holds objects that are immutable and never overwritten. It is safe for
// concurrent use, also by several processes.
//
// Errors are *StoreError. A name is a slash-separated relative path; none of its
// elements begins with a dot.
type Store interface {
	// Put makes data durable under name. When it returns nil the object is complete
	// and survives a crash; whatever it returns, a part of an object is never
	// visible. It gives ErrExists if the name is taken, and keeps no reference to
	// data. After another error the object may exist or not.
	Put(ctx context.Context, name string, data []byte) error
	// Get returns an object, or ErrNotFound.
	Get(ctx context.Context, name string) ([]byte, error)
	// GetRange returns n bytes from offset off, or ErrNotFound. If the object is
	// shorter than that the error wraps io.ErrUnexpectedEOF.
	GetRange(ctx context.Context, name string, off, n int64) ([]byte, error)
	// List yields the objects whose name begins with prefix, by name.
	List(ctx context.Context, prefix string) iter.Seq2[Object, error]
	// Delete removes an object. It is no error if there is none.
	Delete(ctx context.Context, name string) error
	// String returns the URL, for messages.
	String() string
}

// Object describes an object in a store.
type Object struct {
	Name     string
	Size     int64 // bytes
	Modified time.Time
}

// supportedSchemes is what OpenStore tells an operator.
const supportedSchemes = "file:///absolute/path, a plain path, or mem:// for tests; an object store needs its driver package"

// drivers are the packages that register a scheme when they are imported.
var drivers = map[string]string{
	"s3":     "github.com/weirstream/weir/checkpoint/blob/s3",
	"gs":     "github.com/weirstream/weir/checkpoint/blob/gcs",
	"azblob": "github.com/weirstream/weir/checkpoint/blob/azure",
}

var registered = struct {
	sync.RWMutex
	open map[string]func(url string) (Store, error)
}{open: map[string]func(url string) (Store, error){}}

// RegisterScheme makes OpenStore call open for URLs of a scheme. A store that is an
// io.Closer may be closed by whoever opened it. RegisterScheme is for the init function
// of a driver package, and panics if open is nil or the scheme is taken. It is safe for
// concurrent use.
func RegisterScheme(scheme string, open func(url string) (Store, error)) {
	registered.Lock()
	defer registered.Unlock()
	if scheme == "" || open == nil {
		panic("checkpoint: RegisterScheme needs a scheme and a function that opens it")
	}
	if _, ok := registered.open[scheme]; ok || scheme == "file" || scheme == "mem" {
		panic("checkpoint: RegisterScheme was called twice for the scheme " + scheme)
	}
	registered.open[scheme] = open
}

var named = struct {
	sync.Mutex
	mem map[string]*Mem
}{mem: map[string]*Mem{}}

// OpenStore opens the store at url: file:///absolute/path or a plain path is a
// directory, which is made if it is missing, and the path is taken as it is, without
// escapes such as %20; mem:// is a new store in memory, and
// mem://name is one that all who name it in this process share. Other schemes are
// those of RegisterScheme.
func OpenStore(url string) (Store, error) {
	scheme, rest, ok := strings.Cut(url, "://")
	switch {
	case url == "":
		return nil, fmt.Errorf("open checkpoint store: the URL is empty; use %s", supportedSchemes)
	case !ok:
		return openDir(url)
	case scheme == "file":
		if !strings.HasPrefix(rest, "/") {
			return nil, fmt.Errorf("open checkpoint store %s: a file URL has an empty host and an absolute path; use file:///%s", url, rest)
		}
		return openDir(rest)
	case scheme == "mem":
		if rest == "" {
			return NewMem(), nil
		}
		named.Lock()
		defer named.Unlock()
		m := named.mem[rest]
		if m == nil {
			m = newMem(url)
			named.mem[rest] = m
		}
		return m, nil
	}
	registered.RLock()
	open := registered.open[scheme]
	registered.RUnlock()
	switch driver := drivers[scheme]; {
	case open != nil:
		return open(url)
	case driver != "":
		return nil, fmt.Errorf("open checkpoint store %s: the driver of scheme %q is not linked into this program; add import _ %q to it", withoutSecrets(url), scheme, driver)
	default:
		return nil, fmt.Errorf("open checkpoint store %s: scheme %q is not supported; use %s", withoutSecrets(url), scheme, supportedSchemes)
	}
}

// withoutSecrets cuts from a URL the parts in which people put secrets.
func withoutSecrets(raw string) string {
	scheme, rest, _ := strings.Cut(raw, "://")
	rest, _, _ = strings.Cut(rest, "?")
	host, path, slash := strings.Cut(rest, "/")
	host = host[strings.LastIndexByte(host, '@')+1:]
	if slash {
		path = "/" + path
	}
	return scheme + "://" + host + path
}

// openDir keeps a nil *Dir out of the interface.
func openDir(path string) (Store, error) {
	d, err := OpenDir(path)
	if err != nil {
		return nil, err
	}
	return d, nil
}

// Probe writes, reads back and deletes an object, so that a store that can't do its
// work is found at start and not at the first checkpoint.
func Probe(ctx context.Context, store Store) error {
	name := probeObject()
	data := []byte("weir writes, reads back and deletes this object at start\n")
	if err := store.Put(ctx, name, data); err != nil {
		return fmt.Errorf("probe checkpoint store: %w", err)
	}
	got, err := store.Get(ctx, name)
	if err == nil && !bytes.Equal(got, data) {
		err = &DamagedError{Object: name, Store: store.String(), What: fmt.Sprintf("%d bytes were written, other %d read back", len(data), len(got))}
	}
	return wrap("probe checkpoint store", errors.Join(err, store.Delete(ctx, name)))
}

const probePrefix = "probe/"

func probeObject() string {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	return probePrefix + hex.EncodeToString(id[:])
}

// storeTime returns what time it is by the clock with which a store tells when objects were
// written: it writes one and deletes it.
func storeTime(ctx context.Context, store Store) (at time.Time, err error) {
	name := probeObject()
	if err := store.Put(ctx, name, []byte("weir writes and deletes this object to learn the time of the store\n")); err != nil {
		return at, fmt.Errorf("ask the store what time it is: %w", err)
	}
	for o, lerr := range store.List(ctx, name) {
		if err = lerr; err == nil {
			at = o.Modified
		}
	}
	if err == nil && at.IsZero() {
		err = &StoreError{Op: "list", Object: name, Store: store.String(), Err: errors.New("it was just written and is not listed, or without a time: this store can't be collected, as the age of objects can't be told")}
	}
	return at, wrap("ask the store what time it is", errors.Join(err, store.Delete(ctx, name)))
}

func wrap(what string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s: %w", what, err)
}

// ValidName tells whether a store may take name: see Store. It is for packages that
// implement one.
func ValidName(name string) bool { return validName(name) }

func validName(name string) bool {
	if !fs.ValidPath(name) || name == "." {
		return false
	}
	return !strings.HasPrefix(name, ".") && !strings.Contains(name, "/.")
}
