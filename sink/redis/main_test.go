package redis

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"

	goredis "github.com/redis/go-redis/v9"

	"github.com/weirstream/weir/internal/containers"
	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/record"
	"github.com/weirstream/weir/sink"
)

// writerEnv is what the runtime gives a writer.
type writerEnv struct {
	ctx     context.Context
	name    string
	applier sink.Applier
}

func (e writerEnv) Operator() string         { return e.name }
func (e writerEnv) Subtask() int             { return 0 }
func (e writerEnv) Meta() record.Meta        { return record.Meta{} }
func (e writerEnv) Output() sink.Output      { return nil }
func (e writerEnv) Context() context.Context { return e.ctx }
func (e writerEnv) Applier() sink.Applier    { return e.applier }

var names atomic.Int64

// fresh returns a name that no other test uses.
func fresh() string { return fmt.Sprintf("t%d", names.Add(1)) }

// options are those of a server, with a prefix that no other test uses.
func options(addr string) Options { return Options{Addrs: []string{addr}, Prefix: fresh() + ":"} }

// rawClient is a client to look with.
func rawClient(t *testing.T, o Options) goredis.UniversalClient {
	t.Helper()
	o.Timeout = soon // however soon the sink gives up
	cl := o.client()
	t.Cleanup(func() { cl.Close() })
	return cl
}

var cluster struct {
	once  sync.Once
	nodes []*redistest.Server
}

// clusterOptions are those of a cluster that all tests share.
func clusterOptions(t *testing.T) Options {
	t.Helper()
	containers.Need(t)
	cluster.once.Do(func() { cluster.nodes = redistest.StartCluster(t) })
	if cluster.nodes == nil {
		t.Fatal("the cluster did not start")
	}
	o := Options{Cluster: true, Prefix: fresh() + ":"}
	for _, n := range cluster.nodes {
		o.Addrs = append(o.Addrs, n.Addr)
	}
	return o
}

// clusterOptionsOffline are those of a cluster that is not there.
func clusterOptionsOffline() Options {
	return Options{Cluster: true, Addrs: []string{"127.0.0.1:1"}}
}

var images struct {
	sync.Mutex
	servers map[string]*redistest.Server
}

// server is a server of an image that all tests share.
func server(t *testing.T, image string) *redistest.Server {
	t.Helper()
	images.Lock()
	defer images.Unlock()
	s, ok := images.servers[image]
	if !ok {
		s = redistest.StartImage(t, image)
		if images.servers == nil {
			images.servers = map[string]*redistest.Server{}
		}
		images.servers[image] = s
	}
	return s
}
