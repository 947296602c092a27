package redistest

import (
	"context"
	"flag"
	"fmt"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
)

// requireEnv makes a missing Docker a failure instead of a reason to skip.
const requireEnv = "WEIR_REQUIRE_CONTAINERS"

var (
	noDocker error // why the tests are skipped, if they are

	mu         sync.Mutex
	containers []testcontainers.Container
)

// Main runs the tests of a package, of that name, and removes their containers.
func Main(m *testing.M, pkg string) int {
	flag.Parse()
	tclog.SetDefault(tclog.NewNoopLogger())
	redis.SetLogger(&logging.VoidLogger{}) // servers that are down are the point
	if testing.Short() {
		noDocker = fmt.Errorf("-short was given")
	} else {
		noDocker = health()
	}
	if noDocker != nil {
		if os.Getenv(requireEnv) == "1" && !testing.Short() {
			fmt.Fprintf(os.Stderr, "%s: %s=1, but the container tests cannot run: %v\n", pkg, requireEnv, noDocker)
			return 1
		}
		announce(fmt.Sprintf("%s: container tests are skipped: %v", pkg, noDocker))
	}
	defer removeContainers()
	return m.Run()
}

// Need skips a test where there is no Docker.
func Need(t testing.TB) {
	t.Helper()
	if noDocker == nil {
		return
	}
	if os.Getenv(requireEnv) == "1" && !testing.Short() { // asked here too: go test caches by what tests ask, not TestMain
		t.Fatalf("%s=1, but the container tests cannot run: %v", requireEnv, noDocker)
	}
	t.Skipf("needs containers: %v", noDocker)
}

// health tells why Docker can't be used, or nil.
func health() (err error) {
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
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.Health(ctx); err != nil {
		return fmt.Errorf("docker does not answer: %w", err)
	}
	return nil
}

func removeContainers() {
	mu.Lock()
	defer mu.Unlock()
	for _, c := range containers {
		_ = testcontainers.TerminateContainer(c, testcontainers.StopTimeout(0)) // what can't be removed is listed by Docker
	}
	containers = nil
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
