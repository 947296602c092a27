package txn

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weirstream/weir/internal/guard"
)

const (
	// slowClient is set in the run of a test in which the client is slow.
	slowClient = "WEIR_TEST_SLOW_CLIENT"

	// noteOfPartitions is how the client ends the function that sends the first records
	// of a topic and takes note of its partitions.
	noteOfPartitions     = "\n\tdefer l.v.Store(lv)\n"
	slowNoteOfPartitions = "\n\tdefer func() { for range 1_000_000 { slow.Gosched() }; l.v.Store(lv) }()\n"
)

// TestFirstCommitIsNoAbortWhenTheClientIsSlow runs in a build whose client takes note of
// a topic's partitions when everybody else has had their turn many times since it sent
// the first records there. In an ordinary build it does so at once, unless the machine has
// other things to do.
func TestFirstCommitIsNoAbortWhenTheClientIsSlow(t *testing.T) {
	if os.Getenv(slowClient) == "" {
		if testing.Short() {
			t.Skip("compiles a client that is slow; not in -short")
		}
		inSlowClient(t)
		return
	}
	inBubble(t, func(t *testing.T, r *rig) {
		w := r.start("a").up()
		w.mustCommit(1)
		if got := r.groupOffsets(); len(got) != 2 {
			t.Errorf("the commit said done, and offsets %v are committed, want those of 2 partitions", got)
		}
		if got := r.committed(commitTopic); len(got) != 1 {
			t.Errorf("the commit said done, and there are %d commit records, want 1", len(got))
		}
		w.mustCommit(2)
	})
}

// inSlowClient runs the test that calls it again, in a build with the slow client.
func inSlowClient(t *testing.T) {
	t.Helper()
	const module = "github.com/twmb/franz-go"
	slow := t.TempDir()
	modfile := filepath.Join(t.TempDir(), "go.mod")
	output := func(args ...string) string {
		t.Helper()
		out, err := exec.CommandContext(t.Context(), "go", args...).Output()
		if err != nil {
			t.Fatalf("go %s: %v", strings.Join(args, " "), err)
		}
		return strings.TrimSpace(string(out))
	}
	if err := os.CopyFS(slow, os.DirFS(output("list", "-m", "-f", "{{.Dir}}", module))); err != nil {
		t.Fatal(err)
	}
	own := filepath.Dir(output("env", "GOMOD"))
	for _, name := range []string{"go.mod", "go.sum"} {
		data, err := os.ReadFile(filepath.Join(own, name))
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(filepath.Dir(modfile), name), data, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	output("mod", "edit", "-replace", module+"="+slow, modfile)

	file := filepath.Join(slow, "pkg", "kgo", "topics_and_partitions.go")
	source, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if strings.Count(string(source), noteOfPartitions) != 1 {
		t.Fatalf("%s doesn't take note of partitions by %q any more: see whether settle is still needed, and how to test it", module, noteOfPartitions)
	}
	text := strings.Replace(string(source), noteOfPartitions, slowNoteOfPartitions, 1)
	text = strings.Replace(text, "import (", "import (\n\tslow \"runtime\"", 1)
	// The copies of read-only files are read-only.
	if err := errors.Join(os.Remove(file), os.WriteFile(file, []byte(text), 0o600)); err != nil {
		t.Fatal(err)
	}

	args := []string{"test", "-count", "1", "-timeout", "5m", "-run", "^" + t.Name() + "$", "-modfile", modfile}
	if guard.Breakable {
		args = append(args, "-tags", "weirbroken")
	}
	cmd := exec.CommandContext(t.Context(), "go", append(args, ".")...)
	cmd.Env = append(os.Environ(), slowClient+"=1")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("with a slow client: %v\n%s", err, out)
	}
}
