package redistest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/testcontainers/testcontainers-go"
	tcexec "github.com/testcontainers/testcontainers-go/exec"
	tclog "github.com/testcontainers/testcontainers-go/log"

	"github.com/weirstream/weir/internal/containers"
)

// Images that the tests run. Each has the program of the other under its own name.
const (
	Redis  = "redis:8.0"
	Valkey = "valkey/valkey:8.1"
)

// Server is a Redis process in a container.
type Server struct {
	Addr string
	port int
	c    testcontainers.Container
}

// startTimeout bounds how long a server may take to answer.
const startTimeout = 30 * time.Second

// Start starts a server with these arguments and waits until it answers. Without "--save"
// or "--appendonly" it keeps nothing when it is killed. It goes at the end of the package.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return StartImage(t, Redis, args...)
}

// StartImage starts a server of an image.
func StartImage(t testing.TB, image string, args ...string) *Server {
	t.Helper()
	containers.Need(t)
	s, err := start(image, args)
	if err != nil {
		t.Fatal(err)
	}
	s.AwaitUp(t)
	return s
}

func start(image string, args []string) (*Server, error) {
	program := "redis-server"
	if image == Valkey {
		program = "valkey-server"
	}
	port := freePort()
	return startCommand(image, port, append([]string{program, "--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--save", "", "--repl-diskless-sync-delay", "0"}, args...))
}

// startCommand starts a container whose command listens at a port.
func startCommand(image string, port int, command []string) (*Server, error) {
	s := &Server{port: port, Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := testcontainers.Run(ctx, image, testcontainers.WithCmd(command...),
		testcontainers.WithHostConfigModifier(func(hc *container.HostConfig) { hc.NetworkMode = "host" }))
	if c != nil {
		containers.Remove(c)
		s.c = c
	}
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", image, err)
	}
	return s, nil
}

// StartSentinel starts a sentinel that knows a primary by a name, and fails over when it
// does not answer for half a second.
func StartSentinel(t testing.TB, name string, primary *Server) *Server {
	t.Helper()
	containers.Need(t)
	port := freePort()
	conf := fmt.Sprintf(`port %d\nbind 127.0.0.1\nsentinel monitor %s 127.0.0.1 %d 1\nsentinel down-after-milliseconds %s 500\nsentinel failover-timeout %s 2000\n`,
		port, name, primary.port, name, name)
	s, err := startCommand(Redis, port, []string{"sh", "-c", "printf '" + conf + "' >/tmp/sentinel.conf && exec redis-server /tmp/sentinel.conf --sentinel"})
	if err != nil {
		t.Fatal(err)
	}
	s.AwaitUp(t)
	return s
}

// shared is the server that tests share, each with keys of its own.
var shared = sync.OnceValues(func() (*Server, error) { return start(Redis, nil) })

// Shared returns a server that lives as long as the tests, and that nobody hurts.
func Shared(t testing.TB) *Server {
	t.Helper()
	containers.Need(t)
	s, err := shared()
	if err != nil {
		t.Fatal(err)
	}
	s.AwaitUp(t)
	return s
}

// Client returns a client that is closed with the test.
func (s *Server) Client(t testing.TB) *redis.Client {
	t.Helper()
	cl := redis.NewClient(&redis.Options{Addr: s.Addr})
	t.Cleanup(func() { cl.Close() })
	return cl
}

// AwaitUp waits until the server answers and is done loading.
func (s *Server) AwaitUp(t testing.TB) {
	t.Helper()
	cl := redis.NewClient(&redis.Options{Addr: s.Addr, MaxRetries: -1, DialerRetries: 1})
	defer cl.Close()
	Eventually(t, startTimeout, func() error {
		err := cl.Ping(context.Background()).Err()
		if err != nil && (strings.HasPrefix(err.Error(), "NOAUTH") || strings.HasPrefix(err.Error(), "WRONGPASS")) {
			return nil
		}
		return err
	})
}

// Kill ends the server with SIGKILL.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	p, err := testcontainers.NewDockerClientWithOpts(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.ContainerKill(context.Background(), s.c.GetContainerID(), client.ContainerKillOptions{}); err != nil {
		t.Fatalf("kill %s: %v", s.Addr, err)
	}
}

// Restart starts a killed server again, with the data that it kept on disk.
func (s *Server) Restart(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := s.c.Start(ctx); err != nil {
		t.Fatalf("start %s again: %v", s.Addr, err)
	}
	s.AwaitUp(t)
}

// Exec runs a program in the container and returns its output.
func (s *Server) Exec(t testing.TB, command ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	code, out, err := s.c.Exec(ctx, command, tcexec.Multiplexed())
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(out)
	if err != nil || code != 0 {
		t.Fatalf("%v: status %d, %v\n%s", command, code, err, b)
	}
	return string(b)
}

// StartCluster starts a cluster of three primaries.
func StartCluster(t testing.TB) []*Server {
	t.Helper()
	containers.Need(t)
	nodes := make([]*Server, 3)
	create := []string{"redis-cli", "--cluster", "create"}
	for i := range nodes {
		nodes[i] = Start(t, "--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(freePort()), "--cluster-announce-ip", "127.0.0.1", "--cluster-node-timeout", "2000")
		create = append(create, nodes[i].Addr)
	}
	nodes[0].Exec(t, append(create, "--cluster-yes")...)
	for _, n := range nodes {
		cl := n.Client(t)
		Eventually(t, startTimeout, func() error {
			info, err := cl.ClusterInfo(context.Background()).Result()
			if err == nil && !strings.Contains(info, "cluster_state:ok") {
				err = errors.New("the cluster is not ready")
			}
			return err
		})
	}
	return nodes
}

// Eventually polls until check returns nil.
func Eventually(t testing.TB, within time.Duration, check func() error) {
	t.Helper()
	const pause = 10 * time.Millisecond
	deadline := time.Now().Add(within)
	for {
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %v", within, err)
		}
		time.Sleep(pause)
	}
}

// Run starts a server outside of a test. stop removes it.
func Run(args ...string) (s *Server, stop func(), err error) {
	redis.SetLogger(&logging.VoidLogger{})
	tclog.SetDefault(tclog.NewNoopLogger())
	if s, err = start(Redis, args); err != nil {
		return nil, nil, err
	}
	stop = func() { _ = testcontainers.TerminateContainer(s.c, testcontainers.StopTimeout(0)) } // what can't be removed is listed by Docker
	cl := redis.NewClient(&redis.Options{Addr: s.Addr, DialerRetries: 1})
	defer cl.Close()
	for deadline := time.Now().Add(startTimeout); ; time.Sleep(10 * time.Millisecond) {
		if err = cl.Ping(context.Background()).Err(); err == nil {
			return s, stop, nil
		}
		if time.Now().After(deadline) {
			stop()
			return nil, nil, err
		}
	}
}
