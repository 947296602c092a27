package redistest

import (
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// Proxy stands between a client and a server. It does what [StartToxiproxy] can't: it cuts
// one connection at a chosen byte of the answers, once; it holds requests back and lets
// them arrive late; it swallows answers; and it goes over to another server, all while
// connections are open.
type Proxy struct {
	Addr     string
	server   atomic.Pointer[string]
	listener net.Listener
	conns    sync.WaitGroup

	mu    sync.Mutex
	open  map[net.Conn]struct{}
	cutAt atomic.Int64 // bytes of answers until the next cut; negative: never
	cuts  atomic.Int64
	deaf  atomic.Bool
	held  atomic.Pointer[chan struct{}] // requests wait until it is closed; nil: they don't
}

// StartProxy starts a proxy in front of a server. It goes with the test.
func StartProxy(t testing.TB, server string) *Proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{Addr: l.Addr().String(), listener: l, open: map[net.Conn]struct{}{}}
	p.server.Store(&server)
	p.cutAt.Store(-1)
	p.conns.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			p.conns.Go(func() { p.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		p.Hold(false)
		p.Break()
		p.conns.Wait()
	})
	return p
}

// CutAfter breaks the connection whose answers exceed n bytes from now on, counted over all
// connections, once.
func (p *Proxy) CutAfter(n int64) { p.cutAt.Store(n) }

// Cuts is how many connections were cut in an answer.
func (p *Proxy) Cuts() int64 { return p.cuts.Load() }

// Deaf makes the proxy swallow answers, or relay them again. Those that it swallowed are
// gone, so break the connections afterwards.
func (p *Proxy) Deaf(on bool) { p.deaf.Store(on) }

// Hold keeps requests back, or lets them arrive late.
func (p *Proxy) Hold(on bool) {
	var next *chan struct{}
	if on {
		c := make(chan struct{})
		next = &c
	}
	if was := p.held.Swap(next); was != nil {
		close(*was)
	}
}

// Retarget relays new connections to another server, and breaks those that are open.
func (p *Proxy) Retarget(server string) {
	p.server.Store(&server)
	p.Break()
}

// Break breaks all connections.
func (p *Proxy) Break() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.open {
		c.Close()
	}
}

func (p *Proxy) track(c net.Conn, on bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if on {
		p.open[c] = struct{}{}
	} else {
		delete(p.open, c)
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", *p.server.Load())
	if err != nil {
		return
	}
	defer server.Close()
	p.track(client, true)
	defer p.track(client, false)
	var both sync.WaitGroup
	end := func() { client.Close(); server.Close() }
	both.Go(func() {
		defer end()
		relay(server, client, func(b []byte) ([]byte, bool) {
			if c := p.held.Load(); c != nil {
				<-*c
			}
			return b, true
		})
	})
	both.Go(func() {
		defer end()
		relay(client, server, func(b []byte) ([]byte, bool) {
			if p.deaf.Load() {
				return nil, true
			}
			if p.cutAt.Load() < 0 {
				return b, true
			}
			left := p.cutAt.Add(-int64(len(b)))
			if left >= 0 {
				return b, true
			}
			p.cutAt.Store(-1)
			p.cuts.Add(1)
			return b[:max(0, int64(len(b))+left)], false
		})
	})
	both.Wait()
}

// relay copies what pass lets through until it says no.
func relay(to, from net.Conn, pass func([]byte) ([]byte, bool)) {
	buf := make([]byte, 64<<10)
	for {
		n, err := from.Read(buf)
		if n > 0 {
			b, goOn := pass(buf[:n])
			if _, err := to.Write(b); err != nil || !goOn {
				return
			}
		}
		if err != nil {
			return
		}
	}
}
