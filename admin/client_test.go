package admin

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"
)

func TestStatusOfAProcessThatIsStoppedIsNotWaitedForForEver(t *testing.T) {
	defer func(d time.Duration) { statusTimeout = d }(statusTimeout)
	statusTimeout = 20 * time.Millisecond
	l, err := net.Listen("tcp", "127.0.0.1:0") // the kernel accepts, and nobody answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	c, err := NewClient("http://" + l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := c.Status(t.Context()); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}
