package redis

import (
	"context"
	"fmt"
	"strings"

	goredis "github.com/redis/go-redis/v9"
)

// verify looks whether the servers are what o says, and whether they keep what they are
// given: one that evicts keys under memory pressure evicts markers, too.
func (o Options) verify(ctx context.Context, cl goredis.UniversalClient) error {
	return eachServer(ctx, cl, func(ctx context.Context, c *goredis.Client) error {
		text, err := c.Info(ctx, "cluster", "memory").Result()
		if err != nil {
			return classify(err)
		}
		info := map[string]string{}
		for line := range strings.Lines(text) {
			if k, v, ok := strings.Cut(strings.TrimSpace(line), ":"); ok {
				info[k] = v
			}
		}
		if (info["cluster_enabled"] == "1") != o.Cluster {
			if o.Cluster {
				return &ConfigError{fmt.Sprintf("%s is no cluster: set Options.Cluster to false", c.Options().Addr)}
			}
			return &ConfigError{fmt.Sprintf("%s is part of a cluster: set Options.Cluster", c.Options().Addr)}
		}
		if p := info["maxmemory_policy"]; strings.HasPrefix(p, "allkeys-") {
			return &ConfigError{fmt.Sprintf("%s has maxmemory-policy %s: it may evict the markers that keep operations from being applied twice; set noeviction or a volatile policy", c.Options().Addr, p)}
		}
		return nil
	})
}

// ConfigError says that Redis is not set up as a sink needs it.
type ConfigError struct{ Reason string }

func (e *ConfigError) Error() string { return "redis: " + e.Reason }
