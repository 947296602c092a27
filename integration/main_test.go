package integration

import (
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/weirstream/weir/internal/containers"
)

// leastKills is how many SIGKILLs at random instants a run of the package must have
// sent where containers are required.
const leastKills = 100

var (
	workDir     string
	randomKills atomic.Int64
)

func TestMain(m *testing.M) {
	os.Exit(containers.Main("integration", func() int { return runAll(m) }))
}

func runAll(m *testing.M) int {
	if testing.Short() {
		return m.Run()
	}
	var err error
	if workDir, err = os.MkdirTemp("", "weir-integration-"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(workDir)
	go serviceBinary() // takes as long as a broker's start

	code := m.Run()
	kills := randomKills.Load()
	fmt.Fprintf(os.Stderr, "integration: random kills: %d\n", kills)
	whole := flag.Lookup("test.run").Value.String() == "" && flag.Lookup("test.skip").Value.String() == "" && flag.Lookup("test.list").Value.String() == ""
	if code == 0 && containers.Required() && whole && kills < leastKills {
		fmt.Fprintf(os.Stderr, "integration: want at least %d random kills\n", leastKills)
		return 1
	}
	return code
}

// serviceBinary builds the service under test, once.
var serviceBinary = sync.OnceValues(func() (string, error) {
	bin := filepath.Join(workDir, "service")
	out, err := exec.Command("go", "build", "-tags", "crashpoint", "-ldflags=-w", "-o", bin, "./service").CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("build the service: %w\n%s", err, out)
	}
	return bin, nil
})
