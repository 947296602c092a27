package weir

import (
	"context"
	"fmt"
	"io"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/processor"
)

// SavepointInfo describes a savepoint.
type SavepointInfo = checkpoint.SavepointInfo

// ErrNotRunning is what [App.Savepoint] and [App.StopWithSavepoint] give while Run does
// not run.
var ErrNotRunning = processor.ErrNotRunning

// Savepoint takes a checkpoint of the running app and copies it to a savepoint of the
// store at url, or of the app's own store if url is empty. A savepoint is complete in
// itself, can be copied anywhere, and is never deleted by Weir. Processing goes on
// meanwhile. It may be called from any goroutine while Run runs, but for those of handlers
// and listeners, which would wait for themselves. While the app starts, restarts or stands by
// it waits until it is active, or ctx ends. A name that is taken gives
// checkpoint.ErrSavepointExists.
func (a *App) Savepoint(ctx context.Context, url, name string) (SavepointInfo, error) {
	return a.savepoint(ctx, url, name, (*processor.Job).Savepoint)
}

// StopWithSavepoint stops the app as a cancelled context does, and makes a savepoint of
// its last checkpoint, which then holds all that was ever committed. An instance that
// stands by would take over and go on: stop it before. Run returns nil, and not before the
// savepoint is complete or given up. The app goes on if there is a savepoint of that name
// already, or the store gives an error when asked. If ctx ends, the savepoint is given up and
// the app stops all the same. An instance that stands by stops and makes none, which is an
// error. Call it beside the app: a handler or a
// listener that waits for it holds up the stop that it waits for.
func (a *App) StopWithSavepoint(ctx context.Context, url, name string) (SavepointInfo, error) {
	return a.savepoint(ctx, url, name, (*processor.Job).StopWithSavepoint)
}

func (a *App) savepoint(ctx context.Context, url, name string,
	take func(*processor.Job, context.Context, checkpoint.Store, string) (SavepointInfo, error)) (SavepointInfo, error) {
	job := a.job.Load()
	if job == nil {
		return SavepointInfo{}, fmt.Errorf("weir: %s: savepoint %q: %w", a.name, name, ErrNotRunning)
	}
	to := job.Store()
	if url != "" {
		var err error
		if to, err = checkpoint.OpenStore(url); err != nil {
			return SavepointInfo{}, fmt.Errorf("weir: %s: savepoint %q: %w", a.name, name, err)
		}
		defer closeStore(to)
	}
	info, err := take(job, ctx, to, name)
	if err != nil {
		return SavepointInfo{}, fmt.Errorf("weir: %s: savepoint %q: %w", a.name, name, err)
	}
	return info, nil
}

// closeStore gives back what a store that was opened for a savepoint holds, such as
// connections.
func closeStore(s checkpoint.Store) {
	if c, ok := s.(io.Closer); ok {
		_ = c.Close() // what was put is durable
	}
}
