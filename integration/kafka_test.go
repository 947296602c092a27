package integration

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/wait"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/internal/containers"
	"github.com/weirstream/weir/internal/freeport"
)

const kafkaImage = "apache/kafka:4.3.1"

// node is one Kafka process in a container, on the host's network.
type node struct {
	id         int
	port       int // of the brokers' listener; 0: no broker
	container  testcontainers.Container
	controller int // port of the controller's listener; 0: no controller
}

func (n *node) addr() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(n.port)) }

// broker is the shared broker, started by the first test that wants it.
var broker = sync.OnceValues(func() (string, error) {
	n := &node{id: 1, port: freeport.Take(), controller: freeport.Take()}
	err := n.start(voters(n), map[string]string{
		"KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR":         "1",
		"KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": "1",
		"KAFKA_TRANSACTION_STATE_LOG_MIN_ISR":            "1",
		// Nothing that is under test: the first join of each test's group waits less.
		"KAFKA_GROUP_INITIAL_REBALANCE_DELAY_MS": "0",
		"KAFKA_GROUP_MIN_SESSION_TIMEOUT_MS":     "1000",
		// Everybody may do everything but what a test denies.
		"KAFKA_AUTHORIZER_CLASS_NAME":          "org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"KAFKA_ALLOW_EVERYONE_IF_NO_ACL_FOUND": "true",
	})
	return n.addr(), err
})

// needBroker returns the address of the shared broker.
func needBroker(t *testing.T) string {
	t.Helper()
	containers.Need(t)
	addr, err := broker()
	if err != nil {
		t.Fatal(err)
	}
	return addr
}

// embedded starts a broker in this process, for tests of what the service does to itself.
func embedded(t *testing.T) string {
	t.Helper()
	if testing.Short() {
		t.Skip("builds and starts the service; -short was given")
	}
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Close)
	return c.ListenAddrs()[0]
}

// startCluster starts brokers with a controller of their own, which no test kills.
// What two brokers keep survives the death of one.
func startCluster(t *testing.T, brokers int) []*node {
	t.Helper()
	containers.Need(t)
	ctl := &node{id: 100, controller: freeport.Take()}
	nodes := []*node{ctl}
	for i := range brokers {
		nodes = append(nodes, &node{id: 1 + i, port: freeport.Take()})
	}
	rf := strconv.Itoa(brokers)
	env := map[string]string{
		"KAFKA_DEFAULT_REPLICATION_FACTOR":               rf,
		"KAFKA_OFFSETS_TOPIC_REPLICATION_FACTOR":         rf,
		"KAFKA_TRANSACTION_STATE_LOG_REPLICATION_FACTOR": rf,
		"KAFKA_TRANSACTION_STATE_LOG_MIN_ISR":            "1",
		"KAFKA_MIN_INSYNC_REPLICAS":                      "1",
		"KAFKA_BROKER_SESSION_TIMEOUT_MS":                "6000",
		"KAFKA_BROKER_HEARTBEAT_INTERVAL_MS":             "500",
	}
	errs := make([]error, len(nodes))
	var wg sync.WaitGroup
	for i, n := range nodes {
		wg.Go(func() { errs[i] = n.start(voters(ctl), env) })
	}
	wg.Wait()
	t.Cleanup(func() {
		for _, n := range nodes {
			if n.container != nil {
				containers.Remove(n.container)
			}
		}
	})
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	return nodes[1:]
}

func voters(n *node) string { return fmt.Sprintf("%d@127.0.0.1:%d", n.id, n.controller) }

// start runs the node until it says that it is up.
func (n *node) start(voters string, extra map[string]string) error {
	var roles, listeners []string
	env := map[string]string{
		"KAFKA_NODE_ID":                              strconv.Itoa(n.id),
		"KAFKA_CONTROLLER_QUORUM_VOTERS":             voters,
		"KAFKA_CONTROLLER_LISTENER_NAMES":            "CONTROLLER",
		"KAFKA_LISTENER_SECURITY_PROTOCOL_MAP":       "PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT",
		"KAFKA_OFFSETS_TOPIC_NUM_PARTITIONS":         "4",
		"KAFKA_TRANSACTION_STATE_LOG_NUM_PARTITIONS": "4",
		"KAFKA_AUTO_CREATE_TOPICS_ENABLE":            "false",
		"KAFKA_HEAP_OPTS":                            "-Xms384m -Xmx384m",
		// A broker lives for minutes here: compiling it well takes more than it saves.
		"KAFKA_JVM_PERFORMANCE_OPTS": "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC -Djava.awt.headless=true",
	}
	if n.port != 0 {
		roles = append(roles, "broker")
		listeners = append(listeners, "PLAINTEXT://"+n.addr())
		env["KAFKA_ADVERTISED_LISTENERS"] = "PLAINTEXT://" + n.addr()
		env["KAFKA_INTER_BROKER_LISTENER_NAME"] = "PLAINTEXT"
	}
	if n.controller != 0 {
		roles = append(roles, "controller")
		listeners = append(listeners, fmt.Sprintf("CONTROLLER://127.0.0.1:%d", n.controller))
	}
	env["KAFKA_PROCESS_ROLES"] = strings.Join(roles, ",")
	env["KAFKA_LISTENERS"] = strings.Join(listeners, ",")
	maps.Copy(env, extra)
	const up = 5 * time.Minute // it takes seconds, but all tests wait for the shared one
	ctx, cancel := context.WithTimeout(context.Background(), up)
	defer cancel()
	c, err := testcontainers.Run(ctx, kafkaImage, testcontainers.WithEnv(env),
		testcontainers.WithHostConfigModifier(func(hc *container.HostConfig) { hc.NetworkMode = "host" }),
		testcontainers.WithWaitStrategyAndDeadline(up, wait.ForLog("Kafka Server started").WithStartupTimeout(up)))
	if c != nil {
		containers.AtEnd(c)
		n.container = c
	}
	if err != nil {
		return fmt.Errorf("start Kafka node %d: %w", n.id, err)
	}
	return nil
}

// kill ends the broker with SIGKILL.
func (n *node) kill(t *testing.T) {
	t.Helper()
	p, err := testcontainers.NewDockerClientWithOpts(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer p.Close()
	if _, err := p.ContainerKill(t.Context(), n.container.GetContainerID(), client.ContainerKillOptions{}); err != nil {
		t.Fatalf("kill broker %d: %v", n.id, err)
	}
}

// restart starts a killed broker again. It is back when the cluster says so.
func (n *node) restart(t *testing.T) {
	t.Helper()
	if err := n.container.Start(t.Context()); err != nil {
		t.Fatalf("start broker %d again: %v", n.id, err)
	}
}

// admin returns an admin client that is closed with the test.
func admin(t *testing.T, addrs ...string) *kadm.Client {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.MetadataMinAge(200*time.Millisecond))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

// eventually polls until check returns nil.
func eventually(t *testing.T, within time.Duration, check func() error) {
	t.Helper()
	const pause = 20 * time.Millisecond
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

// errNotYet is what eventually polls for where there is nothing more to say.
var errNotYet = errors.New("not yet")
