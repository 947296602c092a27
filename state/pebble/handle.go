package pebble

import (
	"context"
	"errors"
	"fmt"
	"path"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"go.uber.org/zap"
)

// handle is one open database and those who read it.
type handle struct {
	db     *pebble.DB
	store  *Store
	log    *zap.Logger
	remote *remote

	ctx    context.Context // of background work; ends with the handle
	cancel context.CancelFunc
	work   sync.WaitGroup

	// refs counts the reads that go on; it is less than zero once the handle closes.
	refs    atomic.Int64
	drained chan struct{}

	// broken is why the database cannot be used any more, once that is known.
	broken atomic.Pointer[brokenError]
	// compacted is signalled when a compaction ended.
	compacted chan struct{}

	// ingesting is the segment that Ingest or Attach is about to link, if it is a file.
	// Pebble tells its number from the same goroutine.
	ingesting string

	mu    sync.Mutex
	names map[string]string // segments by the file that they are
}

type brokenError struct{ error }

const closing = -1 << 62

func (h *handle) acquire() bool {
	if h.refs.Add(1) > 0 {
		return true
	}
	h.release()
	return false
}

func (h *handle) release() {
	if h.refs.Add(-1) == closing {
		select {
		case h.drained <- struct{}{}:
		default:
		}
	}
}

// close waits for those who read and closes the database.
func (h *handle) close() error {
	h.cancel()
	h.work.Wait()
	if h.refs.Add(closing) != closing {
		for h.refs.Load() != closing {
			<-h.drained
		}
	}
	return h.db.Close()
}

func (h *handle) failure() error {
	if b := h.broken.Load(); b != nil {
		return b.error
	}
	return nil
}

// fail makes err what each later call gives.
func (h *handle) fail(err error) error {
	h.broken.CompareAndSwap(nil, &brokenError{err})
	return h.failure()
}

// failed returns what a read that gave err gives.
func (h *handle) failed(op string, err error) error {
	if b := h.failure(); b != nil {
		return b
	}
	if pebble.IsCorruptionError(err) {
		return h.damaged(pebble.ExtractDataCorruptionInfo(err), err)
	}
	return &StoreError{Op: op, Dir: h.store.dir, Err: err}
}

// damaged takes note that a file is damaged, for this process and the next.
func (h *handle) damaged(info *pebble.DataCorruptionInfo, err error) error {
	e := &DamagedError{Dir: h.store.dir, File: "a file", Err: err}
	if info != nil {
		if p, ok := parsePlace(info.Locator); info.IsRemote && ok {
			e.File, e.Object = "", p.object
		} else {
			e.File = path.Base(info.Path)
			h.mu.Lock()
			e.Object = h.names[e.File]
			h.mu.Unlock()
		}
	}
	if h.broken.CompareAndSwap(nil, &brokenError{e}) {
		h.log.Error("local store is damaged", zap.Error(e))
		if err := h.store.writePath(h.store.path(damagedName), nil); err != nil {
			h.log.Error("note that the local store is damaged", zap.Error(err))
		}
	}
	return h.failure()
}

// Sizes of a database that gets a segment ten times a second, of some thousand to
// some ten thousand entries, on a machine of two cores. BenchmarkIngest has what they
// lead to.
const (
	// l0Sublevels is how many segments lie over each other before they are compacted.
	// Fewer make reads cheaper, and compactions dearer: each of them rewrites what is
	// below.
	l0Sublevels = 12
	// lbaseBytes is the size of the level below them.
	lbaseBytes      = 256 << 20
	targetFileBytes = 16 << 20
	blockBytes      = 32 << 10
	indexBlockBytes = 256 << 10
	// memtableBytes is small, because nothing is ever written to one.
	memtableBytes     = 64 << 10
	manifestFileBytes = 4 << 20
)

func tableFile[N ~uint64](n N) string { return fmt.Sprintf("%06d.sst", uint64(n)) }

func (s *Store) dbOptions(h *handle) *pebble.Options {
	o := &pebble.Options{
		FS:                 s.fs,
		Cache:              s.cache,
		FormatMajorVersion: pebble.FormatTableFormatV6,
		Logger:             logger{h},
		DisableWAL:         true,
		MemTableSize:       memtableBytes,
		// Ingestion is not held back by these, but then a stop at them would be wrong.
		L0StopWritesThreshold:       1 << 20,
		MemTableStopWritesThreshold: 4,
		L0CompactionThreshold:       l0Sublevels,
		L0CompactionFileThreshold:   1 << 20, // only what a read has to look at counts
		LBaseMaxBytes:               lbaseBytes,
		MaxManifestFileSize:         manifestFileBytes,
		MaxOpenFiles:                s.opts.MaxOpenFiles,
		CompactionConcurrencyRange:  func() (int, int) { return s.opts.Compactions, s.opts.Compactions },
		MaxConcurrentDownloads:      func() int { return 1 },
		EventListener: &pebble.EventListener{
			BackgroundError: func(err error) { h.log.Warn("background work of the local store", zap.Error(err)) },
			DataCorruption:  func(info pebble.DataCorruptionInfo) { _ = h.damaged(&info, info.Details) },
			TableIngested: func(info pebble.TableIngestInfo) {
				if h.ingesting != "" && info.Err == nil && len(info.Tables) > 0 {
					h.mu.Lock()
					h.names[tableFile(info.Tables[0].FileNum)] = h.ingesting
					h.mu.Unlock()
				}
			},
			TableDeleted: func(info pebble.TableDeleteInfo) {
				h.mu.Lock()
				delete(h.names, path.Base(info.Path))
				h.mu.Unlock()
			},
			CompactionEnd: func(pebble.CompactionInfo) {
				select {
				case h.compacted <- struct{}{}:
				default:
				}
			},
		},
	}
	o.Experimental.RemoteStorage = h.remote
	for i := range o.Levels {
		l := &o.Levels[i]
		l.BlockSize, l.IndexBlockSize = blockBytes, indexBlockBytes
		l.FilterPolicy = bloom.FilterPolicy(s.opts.BloomBits)
		l.Compression = func() *sstable.CompressionProfile { return sstable.SnappyCompression }
		o.TargetFileSizes[i] = targetFileBytes
	}
	return o
}

// openHandle opens the database and tells which checkpoint it equals. An error that
// does not come from the environment says that it is to be discarded.
func (s *Store) openHandle() (_ *handle, _ ID, err error) {
	h := &handle{
		store: s, log: s.opts.Logger.Named("pebble"),
		drained: make(chan struct{}, 1), compacted: make(chan struct{}, 1), names: map[string]string{},
	}
	h.ctx, h.cancel = context.WithCancel(context.Background()) // background work outlives the call that began it
	h.remote = newRemote(h.ctx, s.opts.DownloadRate)
	if h.db, err = pebble.Open(s.path(dbName), s.dbOptions(h)); err != nil {
		h.cancel()
		return nil, ID{}, err
	}
	id, err := h.readID()
	if err == nil {
		err = h.failure()
	}
	if err != nil {
		_ = h.close()
		return nil, ID{}, err
	}
	if s.src != nil {
		h.remote.set(s.src)
	}
	return h, id, nil
}

var errTorn = errors.New("its content is between two checkpoints: an attach did not end")

// readID reads the marker. A database without one has to be empty.
func (h *handle) readID() (ID, error) {
	v, closer, err := h.db.Get(markerKey)
	if errors.Is(err, pebble.ErrNotFound) {
		if m := h.db.Metrics(); m.Total().TablesCount > 0 {
			return ID{}, errTorn
		}
		return ID{}, nil
	}
	if err != nil {
		return ID{}, err
	}
	id, err := decodeID(v)
	err = errors.Join(err, closer.Close())
	if err == nil && id == (ID{}) {
		err = errTorn
	}
	return id, err
}

// logger passes on what Pebble says.
type logger struct{ h *handle }

func (l logger) Infof(format string, args ...any)  { l.h.log.Sugar().Debugf(format, args...) }
func (l logger) Errorf(format string, args ...any) { l.h.log.Sugar().Warnf(format, args...) }

// Fatalf is how Pebble says that it does not know what is on the disk any more, for
// instance after a write of its own manifest failed. It wants the process to end
// then. What it would come back to is a cache: it is enough that nothing is read from
// it again before it was attached anew.
func (l logger) Fatalf(format string, args ...any) {
	err := fmt.Errorf(format, args...)
	for _, a := range args {
		if e, ok := a.(error); ok {
			err = fmt.Errorf("%s: %w", strings.TrimSuffix(fmt.Sprintf(format, args...), ": "+e.Error()), e)
		}
	}
	l.h.log.Error("local store cannot go on", zap.Error(err))
	_ = l.h.fail(&StoreError{Op: "update", Dir: l.h.store.dir, Err: err})
}
