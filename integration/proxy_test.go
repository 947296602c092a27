package integration

import (
	"encoding/binary"
	"io"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/twmb/franz-go/pkg/kmsg"
)

// proxy stands between the service and one broker. It relays requests as they are
// and asks a test what becomes of each answer.
type proxy struct {
	broker, addr string
	listener     net.Listener
	conns        sync.WaitGroup

	// rule says what becomes of an exchange; nil: relayed. It is called by several
	// goroutines, when the request was read and again when the answer was.
	rule atomic.Pointer[func(x exchange) fate]
}

// exchange is a request, or with body an answer to one.
type exchange struct {
	key     kmsg.Key
	version int16
	answer  []byte // without length and correlation id; nil: this is the request
}

// fate is what becomes of an exchange.
type fate int

const (
	relay     fate = iota
	cut            // the connection breaks: a request doesn't arrive, an answer is lost
	maxFrame  = 128 << 20
	headerLen = 8 // api key, version, correlation id
)

// startProxy starts a proxy for a broker. The service goes through it with the
// arguments of dialArgs.
func startProxy(t *testing.T, broker string) *proxy {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{broker: broker, addr: l.Addr().String(), listener: l}
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
		p.set(func(exchange) fate { return cut })
	})
	return p
}

func (p *proxy) dialArgs() []string { return []string{"-dial", p.broker + "=" + p.addr} }

// set replaces the rule.
func (p *proxy) set(rule func(x exchange) fate) { p.rule.Store(&rule) }

func (p *proxy) judge(x exchange) fate {
	if r := p.rule.Load(); r != nil {
		return (*r)(x)
	}
	return relay
}

// lose returns a rule that lets requests with these keys through and loses every
// answer to them, and counts the answers in lost.
func lose(lost *atomic.Int64, keys ...kmsg.Key) func(exchange) fate {
	return func(x exchange) fate {
		if x.answer == nil || !slices.Contains(keys, x.key) {
			return relay
		}
		lost.Add(1)
		return cut
	}
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.Dial("tcp", p.broker)
	if err != nil {
		return
	}
	defer server.Close()
	var (
		mu   sync.Mutex
		open = map[uint32]exchange{} // by correlation id
		both sync.WaitGroup
	)
	end := func() { client.Close(); server.Close() }
	both.Go(func() {
		defer end()
		for {
			f, err := readFrame(client)
			if err != nil || len(f) < headerLen {
				return
			}
			x := exchange{key: kmsg.Key(binary.BigEndian.Uint16(f)), version: int16(binary.BigEndian.Uint16(f[2:]))}
			if p.judge(x) == cut {
				return
			}
			mu.Lock()
			open[binary.BigEndian.Uint32(f[4:])] = x
			mu.Unlock()
			if writeFrame(server, f) != nil {
				return
			}
		}
	})
	both.Go(func() {
		defer end()
		for {
			f, err := readFrame(server)
			if err != nil || len(f) < 4 {
				return
			}
			id := binary.BigEndian.Uint32(f)
			mu.Lock()
			x := open[id]
			delete(open, id)
			mu.Unlock()
			x.answer = f[4:]
			if p.judge(x) == cut {
				return
			}
			if writeFrame(client, f) != nil {
				return
			}
		}
	})
	both.Wait()
}

func readFrame(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	n := binary.BigEndian.Uint32(size[:])
	if n > maxFrame {
		return nil, io.ErrShortBuffer
	}
	f := make([]byte, n)
	_, err := io.ReadFull(r, f)
	return f, err
}

func writeFrame(w io.Writer, f []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint32(make([]byte, 0, 4+len(f)), uint32(len(f))), f...))
	return err
}

// joined reads the generation from the answer to a JoinGroup request; 0: it is an
// error or doesn't parse.
func joined(x exchange) int32 {
	resp := kmsg.NewPtrJoinGroupResponse()
	resp.SetVersion(x.version)
	b := x.answer
	if resp.IsFlexible() {
		if len(b) == 0 || b[0] != 0 {
			return 0 // tags in the header, which no broker sends
		}
		b = b[1:]
	}
	if err := resp.ReadFrom(b); err != nil || resp.ErrorCode != 0 {
		return 0
	}
	return resp.Generation
}
