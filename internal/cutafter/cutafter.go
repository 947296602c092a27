package cutafter

import (
	"context"
	"io"
	"net"
	"sync"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// Dialer makes connections that lose the answers to requests of one key. Any goroutine may
// use it.
type Dialer struct {
	dial func(ctx context.Context, network, addr string) (net.Conn, error)
	key  kmsg.Key

	mu   sync.Mutex
	left int // how many answers to lose; negative: all
	lost int
}

// New returns a dialer on top of dial that loses nothing yet.
func New(dial func(ctx context.Context, network, addr string) (net.Conn, error), key kmsg.Key) *Dialer {
	return &Dialer{dial: dial, key: key}
}

// Lose makes the next n answers get lost; all of them if n is negative.
func (d *Dialer) Lose(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.left = n
}

// Lost returns how many requests were sent whose answer was to be lost.
func (d *Dialer) Lost() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.lost
}

// Dial is for kgo.Dialer.
func (d *Dialer) Dial(ctx context.Context, network, addr string) (net.Conn, error) {
	c, err := d.dial(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	return &conn{Conn: c, d: d}, nil
}

// take tells whether the answer to a request that is written now is to be lost.
func (d *Dialer) take() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.left == 0 {
		return false
	}
	d.left--
	d.lost++
	return true
}

type conn struct {
	net.Conn
	d     *Dialer
	mu    sync.Mutex
	armed bool
}

// Write sees whole requests: the client writes each in one piece, with size, key and
// version at its head.
func (c *conn) Write(b []byte) (int, error) {
	if len(b) >= 6 && kmsg.Key(int16(b[4])<<8|int16(b[5])) == c.d.key && c.d.take() {
		c.mu.Lock()
		c.armed = true
		c.mu.Unlock()
	}
	return c.Conn.Write(b)
}

func (c *conn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.armed && n > 0 { // the answer is here, so it was applied
		c.Close()
		return 0, io.ErrUnexpectedEOF
	}
	return n, err
}
