package weir

import (
	"net/http"

	"github.com/weirstream/weir/internal/clock"
)

// UseClock makes an app go by another wall clock.
func UseClock(c clock.Clock) Option { return option(func(o *options) { o.clock = c }) }

// AdminAddr is where Run listens, or empty.
func (a *App) AdminAddr() string {
	if addr := a.adminAddr.Load(); addr != nil {
		return *addr
	}
	return ""
}

// AdminServer is what Run serves with.
func AdminServer(h http.Handler) *http.Server { return adminServer(h) }
