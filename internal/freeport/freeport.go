// Package freeport finds ports for the servers that tests start.
package freeport

import (
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
)

// Below high the system gives a port to nobody who doesn't ask for it, so one from here is
// still free while the server that had it is down.
const (
	low  = 10100
	high = 32000
)

var (
	mu     sync.Mutex
	claims []net.PacketConn
)

// Take returns a TCP port on loopback that nobody listens on, and that nobody else was given
// by Take whose process still lives. The server may take it, give it back and take it again.
// Take may be called at any time from any goroutine.
func Take() int { return take(low, high) }

func take(low, high int) int {
	mu.Lock()
	defer mu.Unlock()
	for {
		port := low + rand.IntN(high-low)
		addr := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
		// The servers don't talk UDP: its port of the same number is the claim to this one.
		claim, err := net.ListenPacket("udp", addr)
		if err != nil {
			continue
		}
		l, err := net.Listen("tcp", addr)
		if err != nil {
			claim.Close()
			continue
		}
		l.Close()
		claims = append(claims, claim)
		return port
	}
}
