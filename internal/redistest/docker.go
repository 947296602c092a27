package redistest

import (
	"testing"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/weirstream/weir/internal/containers"
)

// Main runs the tests of a package, of that name, and removes their containers.
func Main(m *testing.M, pkg string) int {
	redis.SetLogger(&logging.VoidLogger{}) // servers that are down are the point
	return containers.Main(pkg, m.Run)
}
