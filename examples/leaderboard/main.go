// Leaderboard counts the points of players in Redis, by commands that must not be
// repeated. It reads JSON such as
//
//	{"player": "alice", "points": 5}
//
// from topic "scores", whose records have the player as key, and keeps in Redis a sorted
// set of all players, the number of games of each, and a list of each one's points.
//
//	go run ./examples/leaderboard -brokers localhost:9092 -redis localhost:6379 -feed 100000
//	go run ./examples/leaderboard -brokers localhost:9092 -redis localhost:6379
//	go run ./examples/leaderboard -brokers localhost:9092 -redis localhost:6379 -check
//
// Kill it with any signal, and Redis too, and start it again. The check reads the topic from
// its beginning and compares: no score is lost, none counts twice, every list is equal to
// its input, element by element.
package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"

	"go.uber.org/zap"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/sink/redis"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:])
	if errors.Is(err, flag.ErrHelp) {
		return
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// run runs the service until ctx is cancelled, or feeds it, or checks it.
func run(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("leaderboard", flag.ContinueOnError)
	brokers := fs.String("brokers", cmp.Or(os.Getenv("WEIR_BROKERS"), "localhost:9092"), "Kafka brokers, separated by commas (also WEIR_BROKERS)")
	store := fs.String("store", cmp.Or(os.Getenv("WEIR_STORE"), "leaderboard-checkpoints"), "checkpoint store, a URL or a directory (also WEIR_STORE)")
	addrs := fs.String("redis", "localhost:6379", "Redis, host:port; several, separated by commas, with -cluster")
	cluster := fs.Bool("cluster", false, "Redis is a cluster")
	instance := fs.String("instance", "", "name of this process, stable across restarts (also WEIR_INSTANCE_ID; default: the host name)")
	feedN := fs.Int("feed", 0, "write so many `scores` to the topic, which is created if it is missing, and end")
	checkOnly := fs.Bool("check", false, "compare Redis with the topic, and end")
	if err := fs.Parse(args); err != nil {
		return err
	}
	seeds := strings.Split(*brokers, ",")
	where := redis.Options{Addrs: strings.Split(*addrs, ","), Cluster: *cluster, Prefix: "leaderboard:"}
	switch {
	case *feedN > 0:
		return feed(ctx, seeds, *feedN)
	case *checkOnly:
		return check(ctx, seeds, where)
	}
	cfg := zap.NewDevelopmentConfig()
	cfg.Level = zap.NewAtomicLevelAt(zap.InfoLevel)
	cfg.DisableStacktrace = true
	log, err := cfg.Build()
	if err != nil {
		return err
	}
	defer log.Sync()
	opts := []weir.Option{weir.FromEnv(), weir.Brokers(seeds...), weir.CheckpointStore(*store), weir.Log(log)}
	if *instance != "" {
		opts = append(opts, weir.InstanceID(*instance))
	}
	app := weir.New("leaderboard", opts...)
	Topology(app, where)
	return app.Run(ctx)
}
