package pebble

import (
	"time"

	"github.com/cockroachdb/pebble/v2"
	"go.uber.org/zap"
)

const (
	// downloadRetry is how long the copy of remote segments waits after a failure.
	downloadRetry    = time.Second
	downloadRetryMax = time.Minute
)

// download starts the copy of remote segments, if there are any.
func (h *handle) download() {
	total := h.remaining()
	if total == 0 {
		return
	}
	h.work.Go(func() {
		report := func(done bool, err error) {
			if h.store.opts.Progress == nil {
				return
			}
			left := h.remaining()
			h.store.opts.Progress(Progress{Objects: len(h.external()), Bytes: max(total-left, 0), Total: total, Done: done, Err: err})
		}
		report(false, nil)
		for retry := downloadRetry; ; retry = min(2*retry, downloadRetryMax) {
			result := make(chan error, 1)
			go func() {
				result <- h.db.Download(h.ctx, []pebble.DownloadSpan{{StartKey: []byte{0, 0}, EndKey: reservedStart, ViaBackingFileDownload: true}})
			}()
			var err error
			for going := true; going; {
				select {
				case err = <-result:
					going = false
				case <-h.compacted:
					report(false, nil)
				}
			}
			if h.ctx.Err() != nil {
				return
			}
			if err == nil {
				report(true, nil)
				return
			}
			h.log.Warn("copy remote segments", zap.Error(err), zap.Duration("retry", retry))
			report(false, err)
			if sleep(h.ctx, retry) != nil {
				return
			}
		}
	})
}

// external returns the remote segments that the present tables are in.
func (h *handle) external() map[place]struct{} {
	places := map[place]struct{}{}
	levels, err := h.db.SSTables()
	if err != nil {
		return places
	}
	for _, level := range levels {
		for _, t := range level {
			if p, ok := parsePlace(t.Locator); ok && t.BackingType == pebble.BackingTypeExternal {
				places[p] = struct{}{}
			}
		}
	}
	return places
}

// remaining returns the bytes of remote segments that are not copied.
func (h *handle) remaining() int64 {
	var n int64
	for p := range h.external() {
		n += p.length
	}
	return n
}
