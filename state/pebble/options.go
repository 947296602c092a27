package pebble

import (
	"cmp"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// Options are those of [Open]. The zero Options fit themselves to a small machine; on a
// large one that is there for the app alone, more cache makes reads cheaper.
type Options struct {
	// CacheBytes is the size of the cache of uncompressed blocks, in bytes. It is
	// memory beside the Go heap, but for filters, of which up to half of it is kept
	// on the heap. State that is hot lives in the typed cache above; this one is for
	// filters (10 bits for each key, unless the app says otherwise) and indexes, and for
	// what iterators read, and segments that are not on this machine yet. By default
	// [DefaultCacheBytes].
	CacheBytes int64
	// DownloadRate bounds how fast segments that are read where they are get copied, in
	// bytes a second. Reads of state are never held back. Zero is no bound.
	DownloadRate int64
	// Logger is for what happens in the background. By default nothing is logged.
	Logger *zap.Logger
	// Progress is called as segments get copied in the background, from the goroutine
	// that does it. It must not call the store.
	Progress func(Progress)

	// fs is what tests put in place of the file system.
	fs vfs.FS
	// copyFirst is copyBytes, unless a test says otherwise.
	copyFirst int64
}

func (o Options) withDefaults() Options {
	o.CacheBytes = cmp.Or(o.CacheBytes, DefaultCacheBytes())
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.fs == nil {
		o.fs = vfs.Default
	}
	o.copyFirst = cmp.Or(o.copyFirst, copyBytes)
	return o
}

func (o Options) validate() error {
	if o.CacheBytes < 0 {
		return fmt.Errorf("the local store's CacheBytes is %d: it must not be negative", o.CacheBytes)
	}
	if o.DownloadRate < 0 {
		return fmt.Errorf("the local store's DownloadRate is %d: it must not be negative", o.DownloadRate)
	}
	return nil
}

// Progress tells how far the copying of segments in the background is.
type Progress struct {
	Segments int   // that are still to be copied
	Bytes    int64 // that were copied since there was nothing to copy
	Left     int64 // bytes that are still to be copied
	Done     bool  // nothing is left: the store needs no object of the checkpoint store
	Err      error // the last try failed; it is tried again
}
