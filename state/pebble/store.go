package pebble

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// What is in the directory of a store.
const (
	// aboutName says whose the directory is; it is there before anything else.
	aboutName = "weir-state.json"
	// ownerName says who has the lock, for the message to who wants it too.
	ownerName = "owner"
	// damagedName is there if the database is to be thrown away, and segments are to be
	// checked as a whole when it is built again.
	damagedName = "damaged"
	// dbName is Pebble's.
	dbName = "db"
	// tmpName is for files on their way into the database.
	tmpName = "tmp"
	// discardedPrefix is of databases that are being deleted.
	discardedPrefix = "discarded-"
)

// formatVersion is that of the directory. An older build refuses a newer one.
const formatVersion = 1

// about is the content of aboutName.
type about struct {
	Format int    `json:"format"`
	App    string `json:"app"`
}

// Store is a local store. Get, Iter, ID, Needs and Metrics may be called from any
// goroutine at any time; Attach, Ingest and Close exclude each other by themselves.
type Store struct {
	dir    string
	opts   Options
	fs     vfs.FS
	cache  *pebble.Cache
	lock   *pebble.Lock
	handle atomic.Pointer[handle] // nil if there is nothing to read
	id     atomic.Pointer[ID]

	attaching atomic.Bool
	closed    atomic.Bool

	mu      sync.Mutex // held by Attach, Ingest and Close
	src     Objects
	discard string // why the database was thrown away by Open; empty if it was not
	verify  bool   // segments are to be checked as a whole by the next Attach
	files   int    // made in tmpName and discardedPrefix
}

// Open opens the local store of app in dir, which it makes if there is none, and
// takes its lock. A database that is damaged or torn is discarded: the store is
// empty then.
//
// Errors are *InUseError, *WrongAppError, *VersionError, *DamagedError (it cannot be
// told whose the directory is) and *StoreError.
func Open(dir, app string, opts Options) (s *Store, err error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	s = &Store{dir: dir, opts: opts, fs: opts.fs}
	s.id.Store(&ID{})
	failed := func(err error) error { return &StoreError{Op: "open", Dir: dir, Err: err} }
	if err := s.fs.MkdirAll(dir, 0o755); err != nil {
		return nil, failed(err)
	}
	if s.lock, err = pebble.LockDirectory(dir, s.fs); err != nil {
		if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
			return nil, failed(err) // the file could not be made, so nobody was asked
		}
		owner, _ := s.readFile(ownerName)
		return nil, &InUseError{Dir: dir, Owner: string(owner), Err: err}
	}
	defer func() {
		if err != nil {
			_ = s.lock.Close()
		}
	}()
	if err := s.claim(app); err != nil {
		return nil, err
	}
	if err := s.tidy(); err != nil {
		return nil, failed(err)
	}
	s.cache = pebble.NewCache(opts.CacheBytes)
	defer func() {
		if err != nil {
			s.cache.Unref()
		}
	}()
	if _, err := s.fs.Stat(s.path(damagedName)); err == nil {
		s.verify, s.discard = true, "it was found damaged"
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, failed(err)
	}
	if s.discard == "" {
		h, id, err := s.openHandle()
		switch {
		case err == nil:
			s.install(h, id)
			return s, nil
		case environment(err):
			return nil, failed(err)
		}
		s.discard = err.Error()
	}
	s.opts.Logger.Warn("local store is discarded; it is built again from the checkpoint store",
		zap.String("dir", dir), zap.String("why", s.discard))
	if err := s.reset(); err != nil {
		return nil, failed(err)
	}
	return s, nil
}

// claim makes sure that the directory is a store of app, and makes it one if it is
// new.
func (s *Store) claim(app string) error {
	failed := func(err error) error { return &StoreError{Op: "open", Dir: s.dir, Err: err} }
	b, err := s.readFile(aboutName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if _, err := s.fs.Stat(s.path(dbName)); err == nil {
			return &DamagedError{Dir: s.dir, File: aboutName, Err: fmt.Errorf("it is missing beside %s: choose another directory, or delete this one", dbName)}
		}
		b, err := json.Marshal(about{formatVersion, app})
		if err == nil {
			err = s.writeFile(aboutName, b)
		}
		if err != nil {
			return failed(err)
		}
	case err != nil:
		return failed(err)
	default:
		var a about
		if err := json.Unmarshal(b, &a); err != nil || a.Format < 1 {
			return &DamagedError{Dir: s.dir, File: aboutName, Err: errors.Join(err, errors.New("delete the directory"))}
		}
		if a.Format > formatVersion {
			return &VersionError{Dir: s.dir, Version: a.Format, Known: formatVersion}
		}
		if a.App != app {
			return &WrongAppError{Dir: s.dir, Want: app, Got: a.App}
		}
	}
	host, _ := os.Hostname()
	if err := s.writeFile(ownerName, fmt.Appendf(nil, "process %d on host %q", os.Getpid(), host)); err != nil {
		return failed(err)
	}
	return nil
}

// tidy removes what a crash left.
func (s *Store) tidy() error {
	names, err := s.fs.List(s.dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		if n == tmpName || strings.HasPrefix(n, discardedPrefix) {
			if err := s.fs.RemoveAll(s.path(n)); err != nil {
				return err
			}
		}
	}
	return s.fs.MkdirAll(s.path(tmpName), 0o755)
}

func (s *Store) path(elem ...string) string {
	return s.fs.PathJoin(append([]string{s.dir}, elem...)...)
}

func (s *Store) readFile(name string) (_ []byte, err error) {
	f, err := s.fs.Open(s.path(name))
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return io.ReadAll(f)
}

// writeFile makes a file whole or not at all.
func (s *Store) writeFile(name string, b []byte) error {
	tmp := s.path(name + ".new")
	if err := s.writePath(tmp, b); err != nil {
		return err
	}
	if err := s.fs.Rename(tmp, s.path(name)); err != nil {
		return err
	}
	return s.syncDir()
}

func (s *Store) writePath(path string, b []byte) error {
	f, err := s.fs.Create(path, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

func (s *Store) syncDir() error {
	d, err := s.fs.OpenDir(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// newName returns a name that nothing in the directory has.
func (s *Store) newName() string {
	s.files++
	return strconv.Itoa(s.files)
}

func (s *Store) install(h *handle, id ID) {
	s.id.Store(&id)
	s.handle.Store(h)
}

// drop ends the use of the database: what reads it ends first, and what comes later
// is refused.
func (s *Store) drop() error {
	h := s.handle.Swap(nil)
	s.id.Store(&ID{})
	if h == nil {
		return nil
	}
	return h.close()
}

// reset makes the store an empty one. It is called with s.mu held, or from Open.
func (s *Store) reset() error {
	if err := s.drop(); err != nil {
		// What it could not do on its way out does no harm: it is deleted.
		s.opts.Logger.Warn("close the local store", zap.String("dir", s.dir), zap.Error(err))
	}
	gone := s.path(discardedPrefix + s.newName())
	if err := s.fs.Rename(s.path(dbName), gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := s.syncDir(); err != nil {
		return err
	}
	if err := s.fs.RemoveAll(gone); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	h, id, err := s.openHandle()
	if err != nil {
		return err
	}
	s.install(h, id)
	return nil
}

// ID returns the checkpoint that the store equals.
func (s *Store) ID() ID { return *s.id.Load() }

// acquire returns the database, for a read, and keeps it open until release.
func (s *Store) acquire() (*handle, error) {
	if s.attaching.Load() {
		return nil, ErrDetached
	}
	return s.inspect()
}

// inspect is acquire for what does not ask for content.
func (s *Store) inspect() (*handle, error) {
	h := s.handle.Load()
	if h == nil || !h.acquire() {
		if s.closed.Load() {
			return nil, ErrClosed
		}
		return nil, ErrDetached
	}
	if err := h.failure(); err != nil {
		h.release()
		return nil, err
	}
	return h, nil
}

// Get appends the value under key, which is as segment.AppendKey makes it, to dst,
// and tells whether there is one. Without one it returns dst.
//
// Errors are *DamagedError, *StoreError, ErrClosed and ErrDetached.
func (s *Store) Get(dst, key []byte) (value []byte, ok bool, err error) {
	h, err := s.acquire()
	if err != nil {
		return dst, false, err
	}
	defer h.release()
	v, closer, err := h.db.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return dst, false, h.failure()
	}
	if err != nil {
		return dst, false, h.failed("read", err)
	}
	dst = append(dst, v...)
	if err := closer.Close(); err != nil {
		return dst, false, h.failed("read", err)
	}
	return dst, true, h.failure()
}

// Close closes the store and gives its lock back. It waits for reads that go on,
// iterators included.
func (s *Store) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed.Swap(true) {
		return nil
	}
	err := s.drop()
	s.cache.Unref()
	if err = errors.Join(err, s.lock.Close()); err != nil {
		return &StoreError{Op: "close", Dir: s.dir, Err: err}
	}
	return nil
}

// Needs returns the objects that the store reads where they are, because they are not
// copied yet, by name. They must not be deleted.
func (s *Store) Needs() []string {
	h, err := s.inspect()
	if err != nil {
		return nil
	}
	defer h.release()
	var names []string
	for _, o := range h.db.ObjProvider().List() {
		if o.IsExternal() {
			if p, ok := parsePlace(o.Remote.Locator); ok {
				names = append(names, p.object)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Metrics are numbers for people who watch a job.
type Metrics struct {
	Bytes          int64 // of all tables, where they are read
	RemoteBytes    int64 // of segments that are not copied yet
	Tables         int64
	L0Sublevels    int // tables that a read may have to look at before the sorted levels
	ReadAmp        int // tables that a read may have to look at
	CompactionDebt int64
	Compactions    int64 // since Open
	Compacted      int64 // bytes that compactions wrote since Open
	CacheBytes     int64
	CacheHits      int64
	CacheMisses    int64
	RemoteReads    int64 // bytes read from remote segments since Open
}

// Metrics returns the present numbers; zeros if the store cannot be read.
func (s *Store) Metrics() Metrics {
	h, err := s.inspect()
	if err != nil {
		return Metrics{}
	}
	defer h.release()
	m := h.db.Metrics()
	total := m.Total()
	return Metrics{
		Bytes: total.TablesSize, RemoteBytes: h.remaining(), Tables: total.TablesCount,
		L0Sublevels: int(m.Levels[0].Sublevels), ReadAmp: m.ReadAmp(), CompactionDebt: int64(m.Compact.EstimatedDebt),
		Compactions: m.Compact.Count, Compacted: int64(total.TableBytesCompacted),
		CacheBytes: m.BlockCache.Size, CacheHits: m.BlockCache.Hits, CacheMisses: m.BlockCache.Misses,
		RemoteReads: h.remote.read.Load(),
	}
}
