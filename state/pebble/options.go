package pebble

import (
	"cmp"
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.uber.org/zap"
)

// Options are those of [Open]. The zero Options are right for a machine of a few
// cores and some gigabytes of memory.
type Options struct {
	// CacheBytes is the size of the cache of uncompressed blocks, in bytes. It is
	// memory beside the Go heap. 128 MiB by default: state that is hot lives in the
	// typed cache above, this one is for the indexes and filters of all tables and for
	// what is read again soon.
	CacheBytes int64
	// MaxOpenFiles is how many tables are open at a time. 1000 by default.
	MaxOpenFiles int
	// Compactions is how many compactions run at a time. 1 by default: on a small
	// machine a second one takes the processor from the job itself.
	Compactions int
	// BloomBits is the size of the filters that compactions write, in bits for each
	// key. 10 by default, which is what segments have: one miss in a hundred reads a
	// block for nothing.
	BloomBits int
	// DownloadRate bounds how fast remote segments are copied in the background, in
	// bytes a second. Reads of single keys are never held back. Zero is no bound.
	DownloadRate int64
	// Logger is for what the database says. By default nothing is logged.
	Logger *zap.Logger
	// Progress is called by the background copy of remote segments, from its own
	// goroutine: at its begin, as segments arrive, and at its end. It must not call the
	// store.
	Progress func(Progress)

	// fs is what tests put in place of the file system.
	fs vfs.FS
}

const (
	defaultCacheBytes   = 128 << 20
	defaultMaxOpenFiles = 1000
	defaultCompactions  = 1
	defaultBloomBits    = 10
)

func (o Options) withDefaults() Options {
	o.CacheBytes = cmp.Or(o.CacheBytes, defaultCacheBytes)
	o.MaxOpenFiles = cmp.Or(o.MaxOpenFiles, defaultMaxOpenFiles)
	o.Compactions = cmp.Or(o.Compactions, defaultCompactions)
	o.BloomBits = cmp.Or(o.BloomBits, defaultBloomBits)
	if o.Logger == nil {
		o.Logger = zap.NewNop()
	}
	if o.fs == nil {
		o.fs = vfs.Default
	}
	return o
}

func (o Options) validate() error {
	for _, v := range []struct {
		name  string
		value int64
	}{
		{"CacheBytes", o.CacheBytes}, {"MaxOpenFiles", int64(o.MaxOpenFiles)}, {"Compactions", int64(o.Compactions)},
		{"BloomBits", int64(o.BloomBits)}, {"DownloadRate", o.DownloadRate},
	} {
		if v.value < 0 {
			return fmt.Errorf("option %s of the local store is %d: it must not be negative", v.name, v.value)
		}
	}
	return nil
}

// Progress tells how far the background copy of remote segments is.
type Progress struct {
	Objects int   // that are still read where they are
	Bytes   int64 // that were copied since the copy began
	Total   int64 // bytes to copy in all
	Done    bool
	Err     error // the last try failed; it is tried again
}
