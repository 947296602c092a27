package integration

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"
)

// requireEnv makes a missing Docker a failure instead of a reason to skip.
const requireEnv = "WEIR_REQUIRE_CONTAINERS"

// leastKills is how many SIGKILLs at random instants a run of the package must have
// sent where containers are required.
const leastKills = 100

var (
	noDocker    error // why the tests are skipped, if they are
	workDir     string
	randomKills atomic.Int64
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(runAll(m))
}

func runAll(m *testing.M) int {
	tclog.SetDefault(tclog.NewNoopLogger())
	required := os.Getenv(requireEnv) == "1"
	switch {
	case testing.Short():
		noDocker = fmt.Errorf("-short was given")
	default:
		noDocker = dockerHealth()
	}
	if noDocker != nil {
		if required {
			fmt.Fprintf(os.Stderr, "integration: %s=1, but the container tests cannot run: %v\n", requireEnv, noDocker)
			return 1
		}
		announce(fmt.Sprintf("integration: container tests are skipped: %v", noDocker))
		return m.Run()
	}
	var err error
	if workDir, err = os.MkdirTemp("", "weir-integration-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(workDir)
	defer removeContainers()
	go serviceBinary() // takes as long as a broker's start

	code := m.Run()
	kills := randomKills.Load()
	fmt.Fprintf(os.Stderr, "integration: random kills: %d\n", kills)
	whole := flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.skip").Value.String() == "" && flag.Lookup("test.list").Value.String() == ""
	if code == 0 && required && whole && kills < leastKills {
		fmt.Fprintf(os.Stderr, "integration: want at least %d random kills\n", leastKills)
		return 1
	}
	return code
}

// dockerHealth tells why Docker can't be used, or nil.
func dockerHealth() (err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("Docker does not answer: %v", r)
		}
	}()
	p, err := testcontainers.ProviderDocker.GetProvider()
	if err != nil {
		return fmt.Errorf("Docker does not answer: %w", err)
	}
	defer p.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if err := p.Health(ctx); err != nil {
		return fmt.Errorf("Docker does not answer: %w", err)
	}
	return nil
}

// needDocker skips the test where there is no Docker.
func needDocker(t *testing.T) {
	t.Helper()
	if noDocker != nil {
		if os.Getenv(requireEnv) == "1" { // asked here too: go test caches by what tests ask, not TestMain
			t.Fatalf("%s=1, but the container tests cannot run: %v", requireEnv, noDocker)
		}
		t.Skipf("needs containers: %v", noDocker)
	}
}

// serviceBinary builds the service under test, once.
var serviceBinary = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(workDir, "service")
	out, err := exec.Command("go", "build", "-tags", "crashpoint", "-o", bin, "./service").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the service: %w\n%s", err, out)
	}
	return bin, nil
})
