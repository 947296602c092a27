package redis

import (
	"testing"

	goredis "github.com/redis/go-redis/v9"
)

// ClusterForTest are the options of a cluster that all tests share.
var ClusterForTest = clusterOptions

// FreshForTest returns a name that no other test uses.
var FreshForTest = fresh

// Everywhere runs a test against one server of Redis and of Valkey, and against a cluster,
// with a client to look with.
func Everywhere(t *testing.T, f func(t *testing.T, o Options, cl goredis.UniversalClient)) {
	everywhere(t, func(t *testing.T, o Options) { f(t, o, rawClient(t, o)) })
}
