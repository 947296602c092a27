package weir

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/weirstream/weir/admin"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/processor"
)

// Admin makes Run serve [App.AdminHandler] at addr, "host:port", as long as it runs. There
// is no authentication: bind it to localhost, as "localhost:8471". That nothing can listen
// there is an error of Run. Default: none. Also: WEIR_ADMIN.
func Admin(addr string) Option { return option(func(o *options) { o.admin = addr }) }

// Status is where an app stands, see package admin.
type Status = admin.Status

// Status tells where the app stands. It may be called from any goroutine at any time.
func (a *App) Status() Status {
	instance, _ := a.opts.instanceID() // if there is none, Run does not begin
	s := Status{
		App: a.name, Instance: instance, State: string(processor.Idle),
		Parallelism: a.opts.parallelism, KeyGroups: a.opts.keyGroups, Backend: "memory", Store: a.opts.store,
	}
	if a.opts.backend.Dir != "" {
		s.Backend = "pebble"
	}
	job := a.job.Load()
	if job == nil {
		return s
	}
	now := job.Status()
	s.State, s.Checkpoint, s.Restarts = string(now.Phase), now.Checkpoint, max(now.Incarnations-1, 0)
	if !now.CommittedAt.IsZero() {
		s.CommittedAt, s.Age = &now.CommittedAt, max(time.Since(now.CommittedAt).Seconds(), 0)
	}
	if r := now.Restored; r != nil {
		s.Restored = &admin.Restored{Checkpoint: r.Checkpoint, How: r.How, Segments: r.Segments, Entries: r.Entries, Took: r.Took.Seconds()}
	}
	for _, p := range now.Sinks {
		to := admin.Sink{Operator: p.Operator, Applied: p.Applied, Latency: p.Latency.Seconds(), PendingCheckpoints: p.PendingCheckpoints, PendingBytes: p.PendingBytes}
		if !p.Oldest.IsZero() {
			to.PendingAge = max(time.Since(p.Oldest).Seconds(), 0)
		}
		if p.Err != nil {
			to.Error = p.Err.Error()
		}
		s.Sinks = append(s.Sinks, to)
	}
	return s
}

// AdminHandler answers questions about the app, and takes savepoints of it, as package
// admin says: for a server of the service's own, and without authentication. It may be
// used before, while and after Run runs. A request that stops the app is answered when Run
// is about to return: let the server finish ([http.Server.Shutdown]) before the process ends.
func (a *App) AdminHandler() http.Handler { return admin.Handler(&adminApp{app: a}) }

// adminApp shows an app to package admin.
type adminApp struct{ app *App }

func (a *adminApp) Status() admin.Status { return a.app.Status() }

func (a *adminApp) Savepoint(ctx context.Context, r admin.SavepointRequest) (admin.Savepoint, error) {
	if err := checkpoint.CheckSavepointName(r.Name); err != nil {
		return admin.Savepoint{}, admin.Refuse(http.StatusBadRequest, err)
	}
	job := a.app.job.Load()
	if job == nil {
		return admin.Savepoint{}, a.notRunning(r.Name)
	}
	to, take := job.Store(), job.Savepoint
	if r.To != "" {
		var err error
		if to, err = checkpoint.OpenStore(r.To); err != nil {
			return admin.Savepoint{}, admin.Refuse(http.StatusBadRequest, err)
		}
		defer closeStore(to)
	}
	if r.Stop {
		take = job.StopWithSavepoint
	}
	info, err := take(ctx, to, r.Name)
	switch {
	case errors.Is(err, checkpoint.ErrSavepointExists):
		err = admin.Refuse(http.StatusConflict, err)
	case errors.Is(err, ErrNotRunning):
		err = a.notRunning(r.Name)
	case ctx.Err() != nil && err != nil:
		err = admin.Refuse(http.StatusServiceUnavailable, err)
	}
	if err != nil {
		return admin.Savepoint{}, err
	}
	return admin.Savepoint{Name: info.Name, Store: to.String(), Objects: info.Objects, Bytes: info.Bytes, Created: info.Created}, nil
}

func (a *adminApp) notRunning(savepoint string) error {
	return admin.Refuse(http.StatusServiceUnavailable, fmt.Errorf("app %s: savepoint %s: %w: weir savepoint create makes one from its store", a.app.name, savepoint, ErrNotRunning))
}

// adminGrace is how long a request that is being answered may take when Run is about to
// return. One that stopped the app has the time that it needs.
const adminGrace = 2 * time.Second

// adminServer bounds how long a client may take to ask. How long the answer takes is not
// bounded: a savepoint may need hours.
func adminServer(h http.Handler) *http.Server {
	return &http.Server{Handler: h, ReadTimeout: 10 * time.Second, IdleTimeout: time.Minute}
}

// serveAdmin listens at addr and serves until end is called. end returns when nobody is
// answered any more.
func (a *App) serveAdmin(cfg processor.Config) (end func(), err error) {
	l, err := net.Listen("tcp", a.opts.admin)
	if err != nil {
		return nil, fmt.Errorf("admin endpoint: %w: choose another address with weir.Admin or WEIR_ADMIN", err)
	}
	log := cfg.Logger.Sugar()
	if at, ok := l.Addr().(*net.TCPAddr); ok && !at.IP.IsLoopback() {
		log.Warnf("admin endpoint on %s can be reached from other machines, and asks nobody who they are", l.Addr())
	} else {
		log.Infof("admin endpoint on %s", l.Addr())
	}
	addr := l.Addr().String()
	a.adminAddr.Store(&addr)
	srv := adminServer(a.AdminHandler())
	served := make(chan struct{})
	go func() {
		defer close(served)
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Warnf("admin endpoint on %s: %v", addr, err)
		}
	}()
	return func() {
		ctx, cancel := context.WithCancel(context.Background())
		defer cancel()
		waited := make(chan struct{})
		go func() {
			defer close(waited)
			a.job.Load().AwaitSavepoint()
			defer time.AfterFunc(adminGrace, cancel).Stop()
			<-ctx.Done()
		}()
		if srv.Shutdown(ctx) != nil {
			_ = srv.Close()
		}
		cancel()
		<-waited
		<-served
	}, nil
}
