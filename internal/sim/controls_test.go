package sim

import (
	"os"
	"os/exec"
	"testing"

	"github.com/weirstream/weir/internal/guard"
)

// TestEveryGuardTakenOutIsFound takes out each guard in turn, in a build that allows it,
// and demands that some seed of the first maxSeeds fails.
func TestEveryGuardTakenOutIsFound(t *testing.T) {
	if testing.Short() {
		t.Skip("compiles another build and runs hundreds of seeds; not in -short")
	}
	if guard.Breakable {
		t.Skip("this is that build")
	}
	cmd := exec.CommandContext(t.Context(), "go", "test", "-tags", "weirbroken", "-count", "1", "-timeout", "20m", "-v", "-run", "^TestGuardTakenOutIsFound$", ".")
	cmd.Env = os.Environ()
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil {
		t.Error(err)
	}
}
