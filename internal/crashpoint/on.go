//go:build crashpoint

package crashpoint

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
)

// Enabled tells whether this build can be armed.
const Enabled = true

// Env is the environment variable that arms a point: NAME or NAME:N.
const Env = "WEIR_CRASHPOINT"

var (
	armed Point
	left  atomic.Int64
)

func init() {
	v := os.Getenv(Env)
	if v == "" {
		return
	}
	name, nth, ok := strings.Cut(v, ":")
	n := int64(1)
	if ok {
		var err error
		if n, err = strconv.ParseInt(nth, 10, 64); err != nil || n < 1 {
			fmt.Fprintf(os.Stderr, "%s=%q: the count after the colon must be a positive number\n", Env, v)
			os.Exit(2)
		}
	}
	if !slices.Contains(All, Point(name)) {
		fmt.Fprintf(os.Stderr, "%s=%q: no such crash point; the points are %v\n", Env, v, All)
		os.Exit(2)
	}
	armed = Point(name)
	left.Store(n)
}

// Hit kills the process with SIGKILL if p is armed and its count is reached.
func Hit(p Point) {
	if p != armed || left.Add(-1) != 0 {
		return
	}
	_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	select {} // the signal is on its way; nothing may run on
}
