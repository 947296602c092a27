package conformance

import (
	"testing"
	"time"
)

// rule is one thing that an implementation promises.
type rule struct {
	name  string
	check func(t testing.TB)
}

func run(t *testing.T, rules []rule) {
	for _, r := range rules {
		t.Run(r.name, func(t *testing.T) { r.check(t) })
	}
}

// patience is how long a call may take that should return.
var patience = 30 * time.Second

// within fails the test if f does not return in time.
func within(t testing.TB, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(patience):
		t.Fatalf("%s has not returned after %v", what, patience)
	}
}
