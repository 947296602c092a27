package pebble

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"slices"
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
	// damagedName has the name of a file that was found damaged: it is to be taken
	// again, and checked as a whole then.
	damagedName = "damaged"
	// segmentsName is for segments; what is in it is whole.
	segmentsName = "segments"
	// tmpName is for segments that are being copied.
	tmpName = "tmp"
)

// formatVersion is that of the directory. An older build refuses a newer one.
const formatVersion = 1

// about is the content of aboutName.
type about struct {
	Format int    `json:"format"`
	App    string `json:"app"`
}

// Store is a local store. Get, Iter, Snapshot, ID, Needs and Metrics may be called from any
// goroutine at any time, and do not wait for anything but the disk, and the checkpoint store
// where a segment is still read there; Needs waits for an Attach or an Ingest that goes on.
// Attach, Ingest and Close exclude each other by themselves.
type Store struct {
	dir   string
	opts  Options
	fs    vfs.FS
	log   *zap.Logger
	lock  *pebble.Lock
	cache *blockCache

	buffers bufferStack // of looks
	strays  strays

	ctx    context.Context // ends when the store is closed
	cancel context.CancelFunc
	work   sync.WaitGroup // the copying goroutine
	alive  sync.WaitGroup // versions that are read

	nums       atomic.Uint64 // given to tables
	remote     sync.Map      // open tables that are read where they are
	remoteRead atomic.Int64  // bytes
	src        atomic.Pointer[Objects]
	current    atomic.Pointer[version] // nil before the first Attach, and after damage and Close
	broken     atomic.Pointer[damage]
	closed     atomic.Bool

	mu    lock              // held by Attach, Ingest, Close, and when a copy arrives
	files map[string]bool   // in segmentsName
	pool  map[string]*table // open, by what their file is called, or will be
	// names are what files of segments that are in use are called: each commit asks for all
	// of them.
	names map[Segment]string
	chain []Segment // of the checkpoint that the store equals
	// behind tells that the current version is not of chain but of an older one, and
	// what came since: results of merges in chain are not there yet.
	behind bool
	// suspect is the file in which damage was found; empty if there is none.
	suspect string

	wake chan struct{} // there may be something to copy
}

// lock is a mutex that may be held for as long as a checkpoint store takes to answer.
// Made of a channel, it lets the virtual time of a test pass for those who wait for it.
type lock chan struct{}

func (l lock) Lock()   { l <- struct{}{} }
func (l lock) Unlock() { <-l }

// Open opens the local store of app in dir, which it makes if there is none, and
// takes its lock. It can be read once it is attached.
//
// Errors are *InUseError, *WrongAppError, *VersionError, *NotAStoreError and
// *StoreError.
func Open(dir, app string, opts Options) (_ *Store, err error) {
	if err := opts.validate(); err != nil {
		return nil, err
	}
	opts = opts.withDefaults()
	s := &Store{
		dir: dir, opts: opts, fs: opts.fs, log: opts.Logger.With(zap.String("dir", dir)),
		mu: make(lock, 1), files: map[string]bool{}, pool: map[string]*table{}, names: map[Segment]string{}, wake: make(chan struct{}, 1),
	}
	if err := s.fs.MkdirAll(dir, 0o755); err != nil {
		return nil, s.failed("open", "", err)
	}
	if s.lock, err = pebble.LockDirectory(dir, s.fs); err != nil {
		if pe := (*fs.PathError)(nil); errors.As(err, &pe) {
			return nil, s.failed("open", "", err) // the file could not be made, so nobody was asked
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
	if err := s.list(); err != nil {
		return nil, s.failed("open", "", err)
	}
	s.cache = newBlockCache(opts.CacheBytes)
	s.ctx, s.cancel = context.WithCancel(context.Background()) // ends with Close
	s.work.Go(s.fetch)
	return s, nil
}

// claim makes sure that the directory is a store of app, and makes it one if it is
// new.
func (s *Store) claim(app string) error {
	b, err := s.readFile(aboutName)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		// What has these names is removed or written over, and may be somebody else's.
		for _, name := range []string{segmentsName, tmpName, ownerName, damagedName} {
			if _, err := s.fs.Stat(s.path(name)); err == nil {
				return &NotAStoreError{s.dir, fmt.Errorf("%s is missing beside %s", aboutName, name)}
			}
		}
		b, err := json.Marshal(about{formatVersion, app})
		if err == nil {
			err = s.writeFile(aboutName, b)
		}
		if err != nil {
			return s.failed("open", "", err)
		}
	case err != nil:
		return s.failed("open", "", err)
	default:
		var a about
		if err := json.Unmarshal(b, &a); err != nil || a.Format < 1 {
			return &NotAStoreError{s.dir, fmt.Errorf("%s says %q", aboutName, b)}
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
		return s.failed("open", "", err)
	}
	return nil
}

// list finds out what the store has, and removes what a crash left.
func (s *Store) list() error {
	if err := s.fs.RemoveAll(s.path(tmpName)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for _, d := range []string{tmpName, segmentsName} {
		if err := s.fs.MkdirAll(s.path(d), 0o755); err != nil {
			return err
		}
	}
	suspect, err := s.readFile(damagedName)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	s.suspect = string(suspect)
	names, err := s.fs.List(s.path(segmentsName))
	if err != nil {
		return err
	}
	for _, n := range names {
		s.files[n] = true
	}
	return nil
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
	f, err := s.fs.Create(tmp, vfs.WriteCategoryUnspecified)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := s.fs.Rename(tmp, s.path(name)); err != nil {
		return err
	}
	d, err := s.fs.OpenDir(s.dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func (s *Store) failed(op, object string, err error) error {
	return &StoreError{Op: op, Dir: s.dir, Object: object, Err: err}
}

// broke takes note of damage to a segment, for this process and the next, and returns
// what each read gives from now on.
func (s *Store) broke(d *DamagedError, seg Segment) error {
	if s.broken.CompareAndSwap(nil, &damage{d, seg.file()}) {
		s.log.Error("local store is damaged", zap.Error(d))
		if err := s.writeFile(damagedName, []byte(seg.file())); err != nil {
			s.log.Error("note that the local store is damaged", zap.Error(err))
		}
	}
	return s.broken.Load().err
}

// damage is what a read met.
type damage struct {
	err  *DamagedError
	file string // of the segment, also if it is read where it is
}

// objects returns where segments are; nil before the first Attach.
func (s *Store) objects() Objects {
	if src := s.src.Load(); src != nil {
		return *src
	}
	return nil
}

// acquire returns the current version and keeps what it reads open until its release.
func (s *Store) acquire() (*version, error) {
	for {
		if d := s.broken.Load(); d != nil {
			return nil, d.err
		}
		v := s.current.Load()
		switch {
		case v == nil && s.closed.Load():
			return nil, ErrClosed
		case v == nil:
			return nil, ErrDetached
		case v.acquire():
			return v, nil
		}
		// It was replaced, and not read any more, since it was loaded.
	}
}

// ID returns the checkpoint that the store equals; zero before the first Attach.
func (s *Store) ID() ID {
	if v := s.current.Load(); v != nil {
		return v.id
	}
	return ID{}
}

// Get appends the value under key, which is as segment.AppendKey makes it, to dst,
// and tells whether there is one. Without one it returns dst.
//
// Nothing was written under key for a checkpoint after newest, in the lineage that the
// store is at: what was ingested later is not asked. If that is not known, newest is
// math.MaxInt64.
//
// Errors are *DamagedError, *StoreError, ErrClosed and ErrDetached.
func (s *Store) Get(dst, key []byte, newest int64) (value []byte, ok bool, err error) {
	v, err := s.acquire()
	if err != nil {
		return dst, false, err
	}
	defer v.release()
	return v.get(s.ctx, dst, key, newest)
}

// get looks for key in the tables of a version, newest first.
func (v *version) get(ctx context.Context, dst, key []byte, newest int64) (value []byte, ok bool, err error) {
	if len(key) < groupBytes {
		return dst, false, nil
	}
	tables, hash := v.at(group(key)), bloomHash(key)
	for _, t := range tables {
		if t.from.Load() > newest || t.filter.excludes(hash) {
			continue
		}
		value, found, deleted, err := t.get(ctx, dst, key)
		switch {
		case err != nil:
			return dst, false, err
		case found:
			return value, true, nil
		case deleted:
			return dst, false, nil
		}
	}
	return dst, false, nil
}

// groupBytes is the length of the key-group that every key begins with.
const groupBytes = 2

func group(key []byte) int { return int(key[0])<<8 | int(key[1]) }

// install makes a version of tables the current one. It is called with s.mu held.
func (s *Store) install(id ID, tables []*table) {
	s.alive.Add(1)
	if old := s.current.Swap(newVersion(id, tables, s.alive.Done)); old != nil {
		old.release()
	}
}

// name is seg.file(). It is called with s.mu held.
func (s *Store) name(seg Segment) string {
	name, ok := s.names[seg]
	if !ok {
		name = seg.file()
		s.names[seg] = name
	}
	return name
}

// sweep closes and removes what neither the current version nor the chain has. It is
// called with s.mu held.
func (s *Store) sweep() {
	keep, names := map[string]bool{}, map[Segment]string{}
	use := func(seg Segment) {
		name := s.name(seg)
		keep[name], names[seg] = true, name
	}
	if v := s.current.Load(); v != nil {
		for _, t := range v.tables {
			use(t.seg)
		}
	}
	for _, seg := range s.chain {
		use(seg)
	}
	s.names = names
	for name, t := range s.pool {
		if !keep[name] {
			delete(s.pool, name)
			t.unref()
		}
	}
	for name := range s.files {
		if keep[name] {
			continue
		}
		// Who still reads it has it open.
		if err := s.fs.Remove(s.path(segmentsName, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			s.log.Warn("remove a segment", zap.String("file", name), zap.Error(err))
			continue
		}
		delete(s.files, name)
	}
}

// drop ends the use of all tables. It is called with s.mu held.
func (s *Store) drop() {
	if v := s.current.Swap(nil); v != nil {
		v.release()
	}
	for _, t := range s.pool {
		t.unref()
	}
	clear(s.pool)
	s.chain, s.behind = nil, false
}

// Close closes the store and gives its lock back. It waits for reads that go on,
// iterators included, but ends those of the checkpoint store.
func (s *Store) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.cancel()
	s.work.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drop()
	s.alive.Wait()
	s.buffers.close()
	s.cache.close()
	if err := s.lock.Close(); err != nil {
		return s.failed("close", "", err)
	}
	return nil
}

// Needs returns, in order, the objects that the store reads where they are, or still
// has to copy. They must not be deleted.
func (s *Store) Needs() []string {
	names := map[string]bool{}
	s.remote.Range(func(t, _ any) bool {
		names[t.(*table).seg.Object] = true
		return true
	})
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, seg := range s.chain {
		if !s.files[s.name(seg)] {
			names[seg.Object] = true
		}
	}
	return slices.Sorted(maps.Keys(names))
}

// Metrics are numbers for people who watch a job.
type Metrics struct {
	Segments    int   // that reads look at
	Depth       int   // of them over each other: what a read looks at in the worst case
	Bytes       int64 // of these segments
	RemoteBytes int64 // of those that are read where they are
	RemoteRead  int64 // bytes read of such since Open
	CacheBytes  int64 // in use
	CacheHits   int64 // since Open
	CacheMisses int64 // so; with the blocks of data that looks read beside the cache
}

// Metrics returns the present numbers; zeros if the store cannot be read.
func (s *Store) Metrics() Metrics {
	v, err := s.acquire()
	if err != nil {
		return Metrics{}
	}
	defer v.release()
	c := s.cache.cache.Metrics()
	m := Metrics{
		Segments: len(v.tables), Depth: v.depth(), RemoteRead: s.remoteRead.Load(),
		CacheBytes: c.Size, CacheHits: c.Hits, CacheMisses: c.Misses,
	}
	for _, t := range v.tables {
		m.Bytes += t.seg.Length
		if t.file == "" {
			m.RemoteBytes += t.seg.Length
		}
	}
	return m
}
