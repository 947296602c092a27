package s3server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirstream/weir/internal/freeport"
)

const (
	module = "github.com/versity/versitygw/cmd/versitygw@v1.8.0"

	// Bucket exists from the start.
	Bucket = "weir"
	// AccessKey and SecretKey are those of the root user. Start puts them into the
	// environment, where the AWS SDK finds them.
	AccessKey = "weir-test-access"
	SecretKey = "weir-test-secret"
	// Region is the server's.
	Region = "us-east-1"

	requireEnv = "WEIR_REQUIRE_CONTAINERS"

	buildTimeout = 20 * time.Minute
	startTimeout = 20 * time.Second
	startPoll    = 20 * time.Millisecond
	starts       = 3 // somebody else may take the port
)

var built struct {
	sync.Mutex
	done bool
	dir  string
	err  error
}

// build returns the path of the server's program.
func build() (string, error) {
	built.Lock()
	defer built.Unlock()
	if !built.done {
		built.done = true
		built.dir, built.err = install()
	}
	return filepath.Join(built.dir, "versitygw"), built.err
}

func install() (dir string, err error) {
	if dir, err = os.MkdirTemp("", "weir-s3server-"); err != nil {
		return "", err
	}
	ctx, cancel := context.WithTimeout(context.Background(), buildTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, "go", "install", module)
	cmd.Dir = dir // outside of any module
	cmd.Env = append(os.Environ(), "GOBIN="+dir, "GOFLAGS=", "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("go install %s: %w: %s", module, err, lastLines(out))
	}
	return dir, nil
}

func lastLines(out []byte) string {
	lines := strings.Split(strings.TrimSpace(string(out)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], "; ")
}

// Remove removes the program. No server may run.
func Remove() {
	built.Lock()
	defer built.Unlock()
	_ = os.RemoveAll(built.dir)
	built.done = false
}

// Server is a server that runs, or was killed.
type Server struct {
	// Addr is the host and port that it listens on.
	Addr string

	program string
	dir     string
	cmd     *exec.Cmd
	gone    chan struct{} // closed when cmd has ended
	output  *bytes.Buffer // complete when gone is closed
}

// Start starts a server that has one bucket. It ends with the test.
func Start(t testing.TB) *Server {
	t.Helper()
	program, err := build()
	if err != nil {
		if os.Getenv(requireEnv) == "1" {
			t.Fatalf("no S3 server to test with: %v", err)
		}
		t.Skipf("SKIPPED: no S3 server to test with (set %s=1 to make this a failure): %v", requireEnv, err)
	}
	t.Setenv("AWS_ACCESS_KEY_ID", AccessKey)
	t.Setenv("AWS_SECRET_ACCESS_KEY", SecretKey)
	t.Setenv("AWS_SESSION_TOKEN", "")
	t.Setenv("AWS_PROFILE", "")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	t.Setenv("AWS_CONFIG_FILE", os.DevNull)
	t.Setenv("AWS_SHARED_CREDENTIALS_FILE", os.DevNull)
	s := &Server{program: program, dir: t.TempDir()}
	if err := os.MkdirAll(filepath.Join(s.dir, "data", Bucket), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Kill)
	for range starts {
		s.Addr = net.JoinHostPort("127.0.0.1", strconv.Itoa(freeport.Take()))
		if err = s.run(); err == nil {
			return s
		}
	}
	t.Fatalf("start %s: %v", module, err)
	return nil
}

// run starts the process and waits until it serves.
func (s *Server) run() error {
	s.output = new(bytes.Buffer)
	s.cmd = exec.Command(s.program, "--port", s.Addr, "--region", Region, "--health", "/health", "--quiet",
		"posix", filepath.Join(s.dir, "data"))
	s.cmd.Env = append(slices.DeleteFunc(os.Environ(), func(e string) bool { return strings.HasPrefix(e, "VGW_") }),
		"ROOT_ACCESS_KEY="+AccessKey, "ROOT_SECRET_KEY="+SecretKey)
	s.cmd.Stdout, s.cmd.Stderr = s.output, s.output
	s.cmd.Dir = s.dir
	if err := s.cmd.Start(); err != nil {
		return err
	}
	gone := make(chan struct{})
	s.gone = gone
	go func() {
		_ = s.cmd.Wait()
		close(gone)
	}()
	ctx, cancel := context.WithTimeout(context.Background(), startTimeout)
	defer cancel()
	tick := time.NewTicker(startPoll)
	defer tick.Stop()
	for {
		if serves(ctx, s.Addr) {
			return nil
		}
		select {
		case <-tick.C:
		case <-s.gone:
			return fmt.Errorf("it ended: %s", lastLines(s.output.Bytes()))
		case <-ctx.Done():
			s.Kill()
			return errors.New("it does not serve: " + lastLines(s.output.Bytes()))
		}
	}
}

func serves(ctx context.Context, addr string) bool {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+addr+"/health", nil)
	if err != nil {
		return false
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return false
	}
	resp.Body.Close()
	return resp.StatusCode == http.StatusOK
}

// Kill ends the process as kill -9 does, and waits for it. It may be called again.
func (s *Server) Kill() {
	if s.gone == nil {
		return
	}
	_ = s.cmd.Process.Kill() // it may have ended
	<-s.gone
}

// Restart starts the server that was killed again, at the same address and with the
// same objects.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	s.Kill()
	if err := s.run(); err != nil {
		t.Fatalf("restart %s: %v", module, err)
	}
}

// URL is the checkpoint store with a prefix in Bucket.
func (s *Server) URL(prefix string) string { return URL(s.Addr, Bucket, prefix) }

// URL is the checkpoint store with a prefix in a bucket of the server at addr, which
// may be a proxy.
func URL(addr, bucket, prefix string) string {
	q := url.Values{"region": {Region}, "endpoint": {"http://" + addr}, "use_path_style": {"true"}}
	u := url.URL{Scheme: "s3", Host: bucket, Path: "/" + prefix, RawQuery: q.Encode()}
	return u.String()
}
