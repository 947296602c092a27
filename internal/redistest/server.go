package redistest

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
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
	"github.com/weirstream/weir/internal/freeport"
)

// Images that the tests run. Each has the program of the other under its own name.
const (
	Redis  = "redis:8.0"
	Redis7 = "redis:7.0" // .ci/run makes it where it can't be pulled
	Valkey = "valkey/valkey:8.1"
)

// Server is a Redis process in a container.
type Server struct {
	Addr string
	port int
	tls  *tls.Config // nil: none
	c    testcontainers.Container
}

// startTimeout bounds how long a server may take to answer.
const startTimeout = 30 * time.Second

// Start starts a server with these arguments and waits until it answers. Without "--save"
// or "--appendonly" it keeps nothing when it is killed. It goes at the end of the package.
//
// With "--appendonly" the file is checked before each start, as docs/operations.md wants it:
// a server that was killed while it wrote may find half of a transaction there, and with
// "--aof-load-truncated", "yes", which is its default, it would do that half later. Whoever
// gives this argument gets just that.
func Start(t testing.TB, args ...string) *Server {
	t.Helper()
	return StartImage(t, Redis, args...)
}

// Full are arguments for a server that is out of memory whatever it holds. One that was
// filled up to a limit is below it again as soon as buffers of its clients are freed.
var Full = []string{"--maxmemory", "1", "--maxmemory-policy", "noeviction"}

// StartImage starts a server of an image.
func StartImage(t testing.TB, image string, args ...string) *Server {
	t.Helper()
	containers.Need(t)
	s, err := start(image, args)
	switch {
	case err == nil:
	case image == Redis7 && s == nil && !containers.Required():
		t.Skipf("needs %s, which is a failure with %s=1: %v", image, containers.RequireEnv, err)
	default:
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
	port := freeport.Take()
	var command []string
	if slices.Contains(args, "--appendonly") && !slices.Contains(args, "--aof-load-truncated") {
		command = []string{"sh", "-c", checkAppendOnlyFile, strings.Replace(program, "-server", "-check-aof", 1)}
		args = append(args[:len(args):len(args)], "--aof-load-truncated", "no")
	}
	return startCommand(image, port, append(append(command, program, "--bind", "127.0.0.1", "--port", strconv.Itoa(port), "--save", "", "--repl-diskless-sync-delay", "0"), args...))
}

// checkAppendOnlyFile takes half a transaction from the end of the append-only file by the
// program that it is named for, and then runs what it is given.
const checkAppendOnlyFile = `
manifest=appendonlydir/appendonly.aof.manifest
if [ -s $manifest ]; then yes | $0 --fix $manifest || exit; fi
exec "$@"`

// StartTLS starts a server that takes TLS only, with a certificate that it presents, its
// key, and the authority that clients' certificates must come from, all in PEM. config is
// that of clients.
func StartTLS(t testing.TB, cert, key, authority []byte, config *tls.Config, args ...string) *Server {
	t.Helper()
	containers.Need(t)
	port := freeport.Take()
	var files []testcontainers.ContainerFile
	const readable = 0o644
	for name, content := range map[string][]byte{"cert": cert, "key": key, "ca": authority} {
		files = append(files, testcontainers.ContainerFile{Reader: bytes.NewReader(content), ContainerFilePath: "/tmp/" + name + ".pem", FileMode: readable})
	}
	s, err := startCommand(Redis, port, append([]string{"redis-server", "--bind", "127.0.0.1", "--port", "0", "--tls-port", strconv.Itoa(port), "--save", "",
		"--tls-cert-file", "/tmp/cert.pem", "--tls-key-file", "/tmp/key.pem", "--tls-ca-cert-file", "/tmp/ca.pem"}, args...), testcontainers.WithFiles(files...))
	if err != nil {
		t.Fatal(err)
	}
	s.tls = config
	s.AwaitUp(t)
	return s
}

// startCommand starts a container whose command listens at a port.
func startCommand(image string, port int, command []string, more ...testcontainers.ContainerCustomizer) (*Server, error) {
	s := &Server{port: port, Addr: net.JoinHostPort("127.0.0.1", strconv.Itoa(port))}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c, err := testcontainers.Run(ctx, image, append(more, testcontainers.WithCmd(command...),
		testcontainers.WithHostConfigModifier(func(hc *container.HostConfig) { hc.NetworkMode = "host" }))...)
	if c != nil {
		containers.AtEnd(c)
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
	port := freeport.Take()
	conf := fmt.Sprintf(`port %d\nbind 127.0.0.1\nsentinel monitor %s 127.0.0.1 %d 1\nsentinel down-after-milliseconds %s 500\nsentinel failover-timeout %s 2000\n`,
		port, name, primary.port, name, name)
	// In memory: it writes the file at each step, and does nothing for half a minute if that took
	// two seconds.
	s, err := startCommand(Redis, port, []string{"sh", "-c", "printf '" + conf + "' >/dev/shm/sentinel.conf && exec redis-server /dev/shm/sentinel.conf --sentinel"})
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
	cl := redis.NewClient(&redis.Options{Addr: s.Addr, TLSConfig: s.tls})
	t.Cleanup(func() { cl.Close() })
	return cl
}

// AwaitUp waits until the server answers and is done loading.
func (s *Server) AwaitUp(t testing.TB) {
	t.Helper()
	cl := redis.NewClient(&redis.Options{Addr: s.Addr, TLSConfig: s.tls, MaxRetries: -1, DialerRetries: 1})
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

// StartCluster starts a cluster of three primaries, with these arguments each.
func StartCluster(t testing.TB, args ...string) []*Server {
	t.Helper()
	containers.Need(t)
	nodes := make([]*Server, 3)
	create := []string{"redis-cli", "--cluster", "create"}
	for i := range nodes {
		nodes[i] = Start(t, append([]string{"--cluster-enabled", "yes", "--cluster-port", strconv.Itoa(freeport.Take()), "--cluster-announce-ip", "127.0.0.1", "--cluster-node-timeout", "15000"}, args...)...)
		create = append(create, nodes[i].Addr)
	}
	nodes[0].Exec(t, append(create, "--cluster-yes")...)
	AwaitCluster(t, nodes)
	return nodes
}

// AwaitCluster waits until every node says that the cluster is well.
func AwaitCluster(t testing.TB, nodes []*Server) {
	t.Helper()
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
}

// MoveSlot moves the slot of a key from the node that has it to the next one, a key at a
// time. It may be called from any goroutine.
func MoveSlot(ctx context.Context, nodes []*Server, key string) error {
	const (
		migrateTimeout = 30 * time.Second
		stays          = 5 * time.Millisecond // the slot stays half moved for a while, as with a large one
	)
	cls := make([]*redis.Client, len(nodes))
	ids := make([]string, len(nodes))
	for i, n := range nodes {
		cls[i] = redis.NewClient(&redis.Options{Addr: n.Addr})
		defer cls[i].Close()
		id, err := cls[i].ClusterMyID(ctx).Result()
		if err != nil {
			return err
		}
		ids[i] = id
	}
	slot, err := cls[0].ClusterKeySlot(ctx, key).Result()
	if err != nil {
		return err
	}
	shards, err := cls[0].ClusterShards(ctx).Result()
	if err != nil {
		return err
	}
	from := -1
	for _, s := range shards {
		for _, r := range s.Slots {
			if slot >= r.Start && slot <= r.End {
				from = slices.Index(ids, s.Nodes[0].ID)
			}
		}
	}
	if from < 0 {
		return fmt.Errorf("nobody has slot %d", slot)
	}
	to := (from + 1) % len(nodes)
	host, port, _ := strings.Cut(nodes[to].Addr, ":")
	if err := errors.Join(cls[to].Do(ctx, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[from]).Err(), cls[from].Do(ctx, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[to]).Err()); err != nil {
		return err
	}
	for {
		keys, err := cls[from].ClusterGetKeysInSlot(ctx, int(slot), 1).Result()
		if err != nil {
			return err
		}
		if len(keys) == 0 {
			break
		}
		if err := cls[from].Migrate(ctx, host, port, keys[0], 0, migrateTimeout).Err(); err != nil {
			return err
		}
		time.Sleep(stays)
	}
	// The new owner first, then the old one: in between both take it for theirs, which
	// nobody sees, because the old one has no key left and sends everybody on.
	order := []int{to, from}
	for i := range nodes {
		if i != to && i != from {
			order = append(order, i)
		}
	}
	for _, i := range order {
		if err := cls[i].Do(ctx, "CLUSTER", "SETSLOT", slot, "NODE", ids[to]).Err(); err != nil {
			return err
		}
	}
	return nil
}

// AwaitReplica waits until a replica of the server has all that was written so far.
func (s *Server) AwaitReplica(t testing.TB) {
	t.Helper()
	// WAIT counts what its own connection wrote, so it has to write something.
	cl := s.Client(t).Conn()
	defer cl.Close()
	Eventually(t, startTimeout, func() error {
		if err := cl.Set(context.Background(), "redistest:await", "", 0).Err(); err != nil {
			return err
		}
		n, err := cl.Wait(context.Background(), 1, time.Second).Result()
		if err == nil && n < 1 {
			err = errors.New("no replica has everything")
		}
		return err
	})
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
