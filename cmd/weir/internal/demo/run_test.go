package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/goleak"
)

// asWorker makes the test binary a worker.
const asWorker = "WEIR_DEMO_TEST_WORKER"

func TestMain(m *testing.M) {
	switch os.Getenv(asWorker) {
	case "":
		goleak.VerifyTestMain(m)
	case "fail":
		fmt.Fprintln(os.Stderr, "cannot work today")
		os.Exit(3)
	default:
		if err := workerMain(os.Args[1:]); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
}

func workerMain(args []string) error {
	var w Worker
	fs := pflag.NewFlagSet("worker", pflag.ContinueOnError)
	w.Flags(fs)
	if err := fs.Parse(args); err != nil {
		return err
	}
	return w.Run(context.Background(), os.Stdin, os.Stdout)
}

// short is a run of a few seconds at most.
func short(t *testing.T, worker string) Config {
	t.Helper()
	t.Setenv("TMPDIR", t.TempDir())
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Config{
		Seed: 3, Kills: 3, Records: 3000, Plain: true,
		maxLife: 200 * time.Millisecond, interval: 20 * time.Millisecond,
		Worker: func(args ...string) *exec.Cmd {
			cmd := exec.Command(exe, args...)
			cmd.Env = append(os.Environ(), asWorker+"="+worker)
			return cmd
		},
	}
}

// wantNoFiles fails if a run left files behind.
func wantNoFiles(t *testing.T) {
	t.Helper()
	if left, err := filepath.Glob(filepath.Join(os.TempDir(), "*")); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v (%v)", left, err)
	}
}

func TestS05_KilledAgainAndAgainEveryOutputComesOnce(t *testing.T) {
	var out strings.Builder
	cfg := short(t, "run")
	r, err := Run(t.Context(), cfg, &out)
	if err != nil {
		t.Fatalf("%v\n%s", err, out.String())
	}
	if err := r.Err(); err != nil {
		t.Errorf("%v\n%s", err, out.String())
	}
	var want int64
	for _, n := range count(cfg.Seed, cfg.Records) {
		want += n
	}
	if r.Inputs != int64(cfg.Records) || r.Outputs != want || r.Kills != cfg.Kills || r.Checkpoints == 0 || len(r.Recoveries) == 0 {
		t.Errorf("report %+v, want %d inputs, %d outputs, %d kills, checkpoints and recoveries", r, cfg.Records, want, cfg.Kills)
	}
	for _, line := range []string{`kill 3 of 3 at`, `lost +0`, `duplicated +0`, `out of order +0`, `kills +3`, `recovery +\d+ ms`, `exactly once`} {
		if !regexp.MustCompile(line).MatchString(out.String()) {
			t.Errorf("the output lacks %q:\n%s", line, out.String())
		}
	}
	if strings.Contains(out.String(), "\x1b") {
		t.Error("the plain output holds terminal tricks")
	}
	wantNoFiles(t)
}

func TestWorkerThatFailsIsQuoted(t *testing.T) {
	_, err := Run(t.Context(), short(t, "fail"), io.Discard)
	if err == nil || !strings.Contains(err.Error(), "cannot work today") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("got %v, want what the worker said", err)
	}
	wantNoFiles(t)
}

// interrupter cancels at the first line that says that a worker was killed.
type interrupter struct{ cancel context.CancelFunc }

func (i interrupter) Write(p []byte) (int, error) {
	if strings.HasPrefix(string(p), "kill ") {
		i.cancel()
	}
	return len(p), nil
}

func TestInterruptStopsEverythingThatWasStarted(t *testing.T) {
	cfg := short(t, "run")
	var workers []*exec.Cmd
	start := cfg.Worker
	cfg.Worker = func(args ...string) *exec.Cmd {
		workers = append(workers, start(args...))
		return workers[len(workers)-1]
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	if _, err := Run(ctx, cfg, interrupter{cancel}); !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want the error of the context", err)
	}
	if len(workers) == 0 || len(workers) > cfg.Kills {
		t.Errorf("%d workers were started", len(workers))
	}
	for _, w := range workers {
		if w.Process != nil && w.ProcessState == nil {
			t.Errorf("worker %d is still running", w.Process.Pid)
		}
	}
	wantNoFiles(t)
}

func TestWorkerDiesWithItsDirector(t *testing.T) {
	cfg := short(t, "run")
	// Nobody listens there: the worker could go on trying for long.
	w := Worker{brokers: "127.0.0.1:1", store: filepath.Join(t.TempDir(), "s"), interval: time.Second}
	cmd := cfg.Worker(w.args()...)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	_ = stdin.Close()
	gone := make(chan error, 1)
	go func() { gone <- cmd.Wait() }()
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		_ = cmd.Process.Kill()
		<-gone
		t.Error("the worker outlived its standard input")
	}
}

func TestMistakesInTheFlagsAreReportedTogether(t *testing.T) {
	_, err := Run(t.Context(), Config{Kills: -1, Records: -2}, io.Discard)
	if err == nil || !strings.Contains(err.Error(), "-kills -1") || !strings.Contains(err.Error(), "-records -2") {
		t.Errorf("got %v", err)
	}
}

func TestStatusLineFitsTheTerminal(t *testing.T) {
	var out strings.Builder
	s := &screen{w: &out, width: func() int { return 10 }}
	s.status("0123456789abc")
	s.line("stays")
	s.close()
	if want := "\r012345678\x1b[K" + "\r\x1b[K" + "stays\n"; out.String() != want {
		t.Errorf("wrote %q, want %q", out.String(), want)
	}
}
