package weir_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/sink"
)

// receiverFile is a receiver that outlives processes: a file that is replaced as a whole
// by a rename, so that values and marker move in one step.
type receiverFile string

type receiverContent struct {
	Values     []string
	Lineage    string
	Checkpoint int64
}

func (f receiverFile) read() receiverContent {
	var c receiverContent
	b, err := os.ReadFile(string(f))
	if errors.Is(err, fs.ErrNotExist) {
		return c
	}
	if err == nil {
		err = json.Unmarshal(b, &c)
	}
	if err != nil {
		panic(err)
	}
	return c
}

func (f receiverFile) at() marker {
	c := f.read()
	return marker{c.Lineage, c.Checkpoint}
}

func (f receiverFile) list() []string { return f.read().Values }

func (f receiverFile) apply(m marker, values []string) {
	c := f.read()
	if m.checkpoint <= c.Checkpoint {
		return
	}
	b, err := json.Marshal(receiverContent{append(c.Values, values...), m.lineage, m.checkpoint})
	if err == nil {
		err = os.WriteFile(string(f)+".new", b, 0o600)
	}
	if err == nil {
		err = os.Rename(string(f)+".new", string(f))
	}
	if err != nil {
		panic(err)
	}
}

// Variables that make this test binary a process to be killed.
const (
	processBroker = "WEIR_TEST_BROKER"
	processDir    = "WEIR_TEST_DIR"
	processDrain  = "WEIR_TEST_DRAIN"
	processSlow   = "WEIR_TEST_SLOW"  // its checkpoints are unaligned, and its handlers slow
	processFiles  = "WEIR_TEST_FILES" // it writes files to this directory
)

// TestProcessWithAWriteAheadSink is that process.
func TestProcessWithAWriteAheadSink(t *testing.T) {
	addr, dir := os.Getenv(processBroker), os.Getenv(processDir)
	if addr == "" {
		t.Skip("it is run by other tests")
	}
	opts := []weir.Option{
		weir.Brokers(addr), weir.InstanceID("a"), weir.CheckpointStore(filepath.Join(dir, "store")), weir.Parallelism(2),
		weir.CheckpointEvery(5 * time.Millisecond), weir.Retain(1),
	}
	if os.Getenv(processDrain) != "" {
		opts = append(opts, weir.Drain())
	}
	var pause time.Duration
	if os.Getenv(processSlow) != "" {
		opts = append(opts, weir.Unaligned())
		pause = 5 * time.Millisecond
	}
	app := weir.New("app", opts...)
	var to sink.Sink[string] = &ahead{to: receiverFile(filepath.Join(dir, "receiver")), retain: 3}
	if files := os.Getenv(processFiles); files != "" {
		to = directory(files).sink()
	}
	slowSumsTo(to, pause)(app)
	if err := app.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// processBinary is this test binary with crash points. TestMain removes it.
var processBinary = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "weir-test-")
	if err != nil {
		return "", err
	}
	processBinaryDir = dir
	binary := filepath.Join(dir, "weir.test")
	if out, err := exec.Command("go", "test", "-tags", "crashpoint", "-ldflags=-w", "-c", "-o", binary, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("%w\n%s", err, out)
	}
	return binary, nil
})

var processBinaryDir string

func TestMain(m *testing.M) {
	code := m.Run()
	if processBinaryDir != "" {
		_ = os.RemoveAll(processBinaryDir)
	}
	os.Exit(code)
}

// TestS01_WriteAheadSinkIsExactAfterAKillAtEachPoint kills a process at each crash point
// there is, while input comes, and holds the receiver against the input.
func TestS01_WriteAheadSinkIsExactAfterAKillAtEachPoint(t *testing.T) {
	for _, unaligned := range []bool{false, true} {
		t.Run(fmt.Sprintf("unaligned=%v", unaligned), func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			killedAtEachPoint(t, dir, receiverFile(filepath.Join(dir, "receiver")), crashpoint.All, unaligned)
		})
	}
}

// killedAtEachPoint kills processes that write to a receiver at each of these points.
func killedAtEachPoint(t *testing.T, dir string, to interface{ list() []string }, points []crashpoint.Point, unaligned bool, vars ...string) {
	if testing.Short() {
		t.Skip("compiles a test binary with crash points; not in -short")
	}
	binary, err := processBinary()
	if err != nil {
		t.Fatal(err)
	}
	brokers := broker(t, 2, "in")
	process := func(env ...string) (*exec.Cmd, *strings.Builder) {
		var out strings.Builder
		cmd := exec.CommandContext(t.Context(), binary, "-test.run", "^TestProcessWithAWriteAheadSink$", "-test.timeout", "60s")
		cmd.Stdout, cmd.Stderr = &out, &out
		cmd.Env = slices.Concat(os.Environ(), vars, env, []string{processBroker + "=" + brokers[0], processDir + "=" + dir})
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd, &out
	}
	n := 0
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	feed := func() {
		var rs []*kgo.Record
		for _, v := range ones(2, letters...) {
			r := &kgo.Record{Topic: "in", Value: []byte(v), Key: []byte(v)}
			if unaligned { // few of them are large enough in flight for an object of their own
				r.Headers = []kgo.RecordHeader{{Key: "pad", Value: make([]byte, 16<<10)}}
			}
			rs = append(rs, r)
		}
		if err := cl.ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
			t.Fatal(err)
		}
		n += 2
	}
	drain := func() {
		t.Helper()
		cmd, out := process(processDrain + "=1")
		if err := cmd.Wait(); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		wantSums(t, to, n, letters...)
	}
	killedAt := func(point crashpoint.Point, nth int) {
		t.Helper()
		env := []string{fmt.Sprintf("WEIR_CRASHPOINT=%s:%d", point, nth)}
		if unaligned {
			env = append(env, processSlow+"=1")
		}
		cmd, out := process(env...)
		died := make(chan error, 1)
		go func() { died <- cmd.Wait() }()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for alive := true; alive; {
			select {
			case <-died:
				alive = false
			case <-tick.C:
				feed()
			}
		}
		if s, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || s.Signal() != syscall.SIGKILL {
			t.Fatalf("%s: the process ended otherwise: %v\n%s", point, cmd.ProcessState, out)
		}
	}
	feed()
	drain()
	for _, point := range points {
		if !unaligned && slices.Contains(crashpoint.Unaligned, point) {
			continue
		}
		nth := 3
		if slices.Contains(crashpoint.Rare, point) {
			nth = 1
		}
		if point == crashpoint.InReplay {
			killedAt(crashpoint.AfterCommit, 5) // the next life begins with records in flight
		}
		killedAt(point, nth)
		drain()
	}
	t.Logf("%d records", n*len(letters))
}
