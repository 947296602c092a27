package main

import (
	"cmp"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/spf13/cobra"

	"github.com/weirstream/weir/sink/redis"
)

func redisCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "redis",
		Short: "Look at what Redis sinks keep in Redis",
	}, redisMarkersCommand())
}

func redisMarkersCommand() *cobra.Command {
	var (
		o      redis.Options
		useTLS bool
		all    bool
		format string
	)
	cmd := &cobra.Command{
		Use:   "markers",
		Short: "Show how far write-ahead sinks are applied in Redis",
		Long: `Markers lists the markers of write-ahead sinks. On a cluster a sink has one for each
hash slot with data; one line sums them up, --all shows each.

It looks at all keys of the server, a thousand at a time. The password is read from
WEIR_REDIS_PASSWORD.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if format != "" && format != "json" {
				return fmt.Errorf("output format %q: it is json, or left out for a table", format)
			}
			if useTLS {
				o.TLS = &tls.Config{}
			}
			o.Password = os.Getenv("WEIR_REDIS_PASSWORD")
			if o.Username != "" && o.Password == "" {
				return fmt.Errorf("--user %s: set the user's password in WEIR_REDIS_PASSWORD; one that needs none takes any", o.Username)
			}
			goredis.SetLogger(&logging.VoidLogger{}) // the error says it
			ms, err := redis.Markers(cmd.Context(), o)
			if err != nil {
				return fmt.Errorf("markers of %v: %w", o, err)
			}
			slices.SortFunc(ms, func(a, b redis.Marker) int {
				return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Sink, b.Sink), cmp.Compare(b.Checkpoint, a.Checkpoint), cmp.Compare(a.Key, b.Key))
			})
			if format == "json" {
				enc := json.NewEncoder(cmd.OutOrStdout())
				for _, m := range ms {
					if err := enc.Encode(markerJSON{m.App, m.Sink, m.Lineage, m.Checkpoint, m.Operations, m.Instance, m.At, m.Key}); err != nil {
						return err
					}
				}
				return nil
			}
			return printMarkers(cmd, ms, all)
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&o.Addrs, "addr", []string{"localhost:6379"}, "addresses, host:port, of the server, the sentinels or some nodes of the cluster")
	fs.BoolVar(&o.Cluster, "cluster", false, "it is a cluster")
	fs.StringVar(&o.Master, "master", "", "name that the sentinels know the primary by")
	fs.StringVar(&o.Username, "user", "", "ACL user")
	fs.IntVar(&o.DB, "db", 0, "database")
	fs.BoolVar(&useTLS, "tls", false, "connect with TLS")
	fs.StringVar(&o.Prefix, "prefix", "", "prefix of the keys, as in the sink's options")
	fs.BoolVar(&all, "all", false, "show each marker of a cluster")
	fs.StringVarP(&format, "output", "o", "", "json: one object a line, each marker")
	return cmd
}

type markerJSON struct {
	App        string    `json:"app"`
	Sink       string    `json:"sink"`
	Lineage    string    `json:"lineage"`
	Checkpoint int64     `json:"checkpoint"`
	Operations int64     `json:"operations"`
	Instance   string    `json:"instance"`
	At         time.Time `json:"at"`
	Key        string    `json:"key"`
}

// printMarkers prints markers, which are sorted. Of those of a sink the newest stands for
// all, unless each is wanted.
func printMarkers(cmd *cobra.Command, ms []redis.Marker, all bool) error {
	if len(ms) == 0 {
		fmt.Fprintln(cmd.ErrOrStderr(), "no markers: no write-ahead sink has applied anything there; is it the right --prefix and --db?")
		return nil
	}
	var t table
	last := "MARKERS"
	if all {
		last = "KEY"
	}
	t.add("APP", "SINK", "CHECKPOINT", "OPERATIONS", "MOVED", "BY", "LINEAGE", last)
	for i := 0; i < len(ms); {
		n := i + 1
		m := ms[i]
		lineages := []string{m.Lineage}
		shown := m.Key
		if !all {
			for n < len(ms) && ms[n].App == m.App && ms[n].Sink == m.Sink {
				if !slices.Contains(lineages, ms[n].Lineage) {
					lineages = append(lineages, ms[n].Lineage)
				}
				if ms[n].At.After(m.At) {
					m.At, m.Instance = ms[n].At, ms[n].Instance
				}
				n++
			}
			shown = strconv.Itoa(n - i)
		}
		t.add(m.App, m.Sink, strconv.FormatInt(m.Checkpoint, 10), strconv.FormatInt(m.Operations, 10), ago(m.At), m.Instance, strings.Join(lineages, " "), shown)
		i = n
	}
	return t.print(cmd.OutOrStdout())
}
