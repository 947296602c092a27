package sim

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// nic is the network of one process. Each connection is a pair of pumps that carry whole
// frames between the client and the broker, so faults are about requests and answers.
type nic struct {
	inner   *kfake.VirtualNetwork
	latency time.Duration

	mu     sync.Mutex
	rng    *rand.Rand
	dead   bool
	refuse int  // not 0: no connection is taken
	up     gate // requests wait for it
	down   gate // answers, likewise
	rules  []*rule
	conns  map[*wire]bool
}

// rule is a fault that waits for a request.
type rule struct {
	key    kmsg.Key
	answer bool // acts when the answer comes back: the request was applied
	skip   int  // how many pass before
	left   int  // how often it acts
	act    action
}

// action is what a rule does with a frame. It says whether the connection goes on; a
// request is not delivered, an answer not given if it doesn't.
type action func(w *wire) (goOn bool)

// refusal is how long it takes to learn that there is no network.
const refusal = 5 * time.Millisecond

var errNoNetwork = errors.New("no network")

func newNIC(inner *kfake.VirtualNetwork, latency time.Duration, rng *rand.Rand) *nic {
	return &nic{inner: inner, latency: latency, rng: rng, conns: map[*wire]bool{}}
}

// kill ends every connection, and nothing gets out any more. What the client had written
// before gets to the broker.
func (n *nic) kill() {
	n.mu.Lock()
	n.dead = true
	n.up.release()
	n.down.release()
	n.mu.Unlock()
	n.reset()
}

// reset closes the client's end of every connection.
func (n *nic) reset() {
	n.mu.Lock()
	defer n.mu.Unlock()
	for w := range n.conns {
		w.client.Close()
	}
}

// hold makes requests or answers wait until release is called, or heal.
func (n *nic) hold(requests, answers bool) (release func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead {
		return func() {}
	}
	var ends []func()
	if requests {
		ends = append(ends, n.up.hold())
	}
	if answers {
		ends = append(ends, n.down.hold())
	}
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, end := range ends {
			end()
		}
	}
}

// gate is closed while somebody holds it. Whoever uses it has a lock.
type gate struct {
	open chan struct{} // nil: it is open
	held int
}

func (g *gate) hold() (release func()) {
	if g.held++; g.open == nil {
		g.open = make(chan struct{})
	}
	was := g.open
	return func() {
		if g.open != was {
			return // it was opened for all meanwhile
		}
		if g.held--; g.held == 0 {
			g.release()
		}
	}
}

// release opens it, whoever holds it.
func (g *gate) release() {
	if g.open != nil {
		close(g.open)
	}
	*g = gate{}
}

// refuses ends every connection and takes none until release is called, or heal.
func (n *nic) refuses() (release func()) {
	n.mu.Lock()
	n.refuse++
	n.mu.Unlock()
	n.reset()
	return func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		n.refuse = max(0, n.refuse-1)
	}
}

// heal ends all faults.
func (n *nic) heal() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rules, n.refuse = nil, 0
	n.up.release()
	n.down.release()
}

func (n *nic) addRule(r *rule) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.rules = append(n.rules, r)
}

// match returns what is to be done with a frame; nil: nothing.
func (n *nic) match(key kmsg.Key, answer bool) action {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.dead {
		return nil
	}
	for i, r := range n.rules {
		if r.key != key || r.answer != answer {
			continue
		}
		if r.skip > 0 {
			r.skip--
			continue
		}
		if r.left--; r.left <= 0 {
			n.rules = append(n.rules[:i:i], n.rules[i+1:]...)
		}
		return r.act
	}
	return nil
}

// travel waits for as long as a frame is under way.
func (n *nic) travel(answer bool) {
	n.mu.Lock()
	d := time.Duration(n.rng.Int64N(int64(n.latency) + 1))
	n.mu.Unlock()
	time.Sleep(d)
	for {
		n.mu.Lock()
		c := n.up.open
		if answer {
			c = n.down.open
		}
		n.mu.Unlock()
		if c == nil {
			return
		}
		<-c
	}
}

func (n *nic) isDead() bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.dead
}

// dial implements kgo.Dialer.
func (n *nic) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	for {
		n.mu.Lock()
		up, no := n.up.open, n.dead || n.refuse > 0
		n.mu.Unlock()
		if no {
			time.Sleep(refusal) // or a client that tries again at once would stop time
			return nil, errNoNetwork
		}
		if up == nil {
			break
		}
		select {
		case <-up:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	broker, err := n.inner.DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	near, client := net.Pipe()
	w := &wire{nic: n, broker: broker, client: client, near: near, keys: map[int32]kmsg.Key{}, requests: make(chan []byte, 1024)}
	n.mu.Lock()
	if n.dead || n.refuse > 0 {
		n.mu.Unlock()
		broker.Close()
		near.Close()
		return nil, errNoNetwork
	}
	n.conns[w] = true
	n.mu.Unlock()
	go w.readRequests()
	go w.sendRequests()
	go w.sendAnswers()
	return client, nil
}

// wire is one connection.
type wire struct {
	nic    *nic
	broker net.Conn
	client net.Conn // what the client has
	near   net.Conn // our end of it

	requests chan []byte

	mu   sync.Mutex
	keys map[int32]kmsg.Key // of requests without an answer, by correlation id
}

// readFrame reads what stands behind a size, with the size.
func readFrame(r io.Reader) ([]byte, error) {
	var size [4]byte
	if _, err := io.ReadFull(r, size[:]); err != nil {
		return nil, err
	}
	b := make([]byte, 4+binary.BigEndian.Uint32(size[:]))
	copy(b, size[:])
	_, err := io.ReadFull(r, b[4:])
	return b, err
}

// readRequests takes what the client writes at once, as a kernel's buffer does.
func (w *wire) readRequests() {
	defer func() {
		close(w.requests)
		w.nic.mu.Lock()
		delete(w.nic.conns, w)
		w.nic.mu.Unlock()
	}()
	for {
		b, err := readFrame(w.near)
		if err != nil || w.nic.isDead() {
			w.near.Close()
			return
		}
		w.requests <- b
	}
}

// sendRequests delivers requests, also those of a client that has closed the connection
// meanwhile.
func (w *wire) sendRequests() {
	defer func() {
		w.broker.Close()
		for range w.requests {
		}
	}()
	for b := range w.requests {
		key := kmsg.Key(int16(binary.BigEndian.Uint16(b[4:])))
		w.mu.Lock()
		w.keys[int32(binary.BigEndian.Uint32(b[8:]))] = key
		w.mu.Unlock()
		w.nic.travel(false)
		if act := w.nic.match(key, false); act != nil && !act(w) {
			w.near.Close()
			return
		}
		w.nic.travel(false)
		if _, err := w.broker.Write(b); err != nil {
			w.near.Close()
			return
		}
	}
}

// sendAnswers gives the client its answers.
func (w *wire) sendAnswers() {
	defer w.near.Close()
	for {
		b, err := readFrame(w.broker)
		if err != nil {
			return
		}
		id := int32(binary.BigEndian.Uint32(b[4:]))
		w.mu.Lock()
		key := w.keys[id]
		delete(w.keys, id)
		w.mu.Unlock()
		if act := w.nic.match(key, true); act != nil && !act(w) {
			w.broker.Close()
			return
		}
		w.nic.travel(true)
		if _, err := w.near.Write(b); err != nil {
			// The client is gone; what it had asked for is answered to nobody.
			_, _ = io.Copy(io.Discard, w.broker)
			return
		}
	}
}
