package containers

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
)

// RequireEnv makes a missing Docker a failure instead of a reason to skip.
const RequireEnv = "WEIR_REQUIRE_CONTAINERS"

const (
	healthTimeout = time.Minute // for Docker to say that it is there

	// stopGrace is what a container is given to stop by itself. Nobody needs what is in it.
	stopGrace = 0
)

var (
	missing error // why the tests are skipped, if they are

	mu    sync.Mutex
	begun []testcontainers.Container
)

// Required tells whether a missing Docker is a failure.
func Required() bool { return os.Getenv(RequireEnv) == "1" }

// Main runs the tests of a package of that name with run, and removes their containers. It
// returns the exit status.
func Main(pkg string, run func() int) int {
	flag.Parse()
	tclog.SetDefault(tclog.NewNoopLogger())
	if missing = health(); testing.Short() {
		missing = errors.New("-short was given")
	}
	if missing != nil {
		if Required() && !testing.Short() {
			fmt.Fprintf(os.Stderr, "%s: %s=1, but the container tests cannot run: %v\n", pkg, RequireEnv, missing)
			return 1
		}
		announce(fmt.Sprintf("%s: container tests are skipped: %v", pkg, missing))
	}
	defer removeAll()
	return run()
}

// Available tells whether there are containers.
func Available() bool { return missing == nil }

// Need skips a test where there are no containers.
func Need(t testing.TB) {
	t.Helper()
	if missing == nil {
		return
	}
	if Required() && !testing.Short() { // asked here too: go test caches by what tests ask, not TestMain
		t.Fatalf("%s=1, but the container tests cannot run: %v", RequireEnv, missing)
	}
	t.Skipf("needs containers: %v", missing)
}

// health tells why Docker can't be used, or nil.
func health() (err error) {
	if testing.Short() {
		return nil // nobody asks
	}
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("docker does not answer: %v", r)
		}
	}()
	p, err := testcontainers.ProviderDocker.GetProvider()
	if err != nil {
		return fmt.Errorf("docker does not answer: %w", err)
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(context.Background(), healthTimeout)
	defer cancel()
	if err := p.Health(ctx); err != nil {
		return fmt.Errorf("docker does not answer: %w", err)
	}
	return nil
}

// AtEnd has a container removed when the package's tests are done. Any goroutine may call
// it.
func AtEnd(c testcontainers.Container) {
	mu.Lock()
	defer mu.Unlock()
	begun = append(begun, c)
}

// Remove removes a container now. Any goroutine may call it.
func Remove(c testcontainers.Container) {
	mu.Lock()
	begun = slices.DeleteFunc(begun, func(b testcontainers.Container) bool { return b == c })
	mu.Unlock()
	_ = testcontainers.TerminateContainer(c, testcontainers.StopTimeout(stopGrace)) // what can't be removed is listed by Docker
}

func removeAll() {
	mu.Lock()
	all := slices.Clone(begun)
	mu.Unlock()
	for _, c := range all {
		Remove(c)
	}
}

// announce writes a line where a person sees it. go test shows what a package prints only
// if it fails or with -v, so the line also goes to the terminal; or, where there is none,
// to the standard error of go test itself.
func announce(line string) {
	fmt.Fprintln(os.Stderr, line)
	if testing.Verbose() {
		return
	}
	for _, path := range []string{"/dev/tty", fmt.Sprintf("/proc/%d/fd/2", os.Getppid())} {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			continue
		}
		_, err = fmt.Fprintln(f, line)
		if f.Close() == nil && err == nil {
			return
		}
	}
}
