// Payments keeps the balance of every account. It reads JSON such as
//
//	{"seq": 1, "account": "alice", "cents": 500}
//
// from topic "payments" and writes each new balance to "balances", payments that an
// account can't cover to "overdrawn", and what is no payment to "payments-invalid".
//
//	go run ./examples/payments -brokers localhost:9092 -create-topics
//
// Kill it with any signal and start it again: no payment is lost, none counts twice.
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
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"github.com/weirstream/weir"
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

// run runs payments until ctx is cancelled.
func run(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("payments", flag.ContinueOnError)
	brokers := fs.String("brokers", cmp.Or(os.Getenv("WEIR_BROKERS"), "localhost:9092"), "Kafka brokers, separated by commas (also WEIR_BROKERS)")
	store := fs.String("store", cmp.Or(os.Getenv("WEIR_STORE"), "payments-checkpoints"), "checkpoint store, a URL or a directory (also WEIR_STORE)")
	instance := fs.String("instance", "", "name of this process, stable across restarts (also WEIR_INSTANCE_ID; default: the host name)")
	interval := fs.Duration("interval", 0, "time between checkpoints (also WEIR_INTERVAL; default 100ms)")
	create := fs.Bool("create-topics", false, "create the topics that are missing")
	if err := fs.Parse(args); err != nil {
		return err
	}
	seeds := strings.Split(*brokers, ",")
	if *create {
		if err := createTopics(ctx, seeds, paymentsTopic, balancesTopic, overdrawnTopic, invalidTopic); err != nil {
			return err
		}
	}
	log, err := logger()
	if err != nil {
		return err
	}
	defer log.Sync()

	opts := []weir.Option{
		weir.FromEnv(), weir.Brokers(seeds...), weir.CheckpointStore(*store),
		weir.DeadLetters(invalidTopic), weir.Log(log),
	}
	if *instance != "" {
		opts = append(opts, weir.InstanceID(*instance))
	}
	if *interval != 0 {
		opts = append(opts, weir.CheckpointEvery(*interval))
	}
	app := weir.New("payments", opts...)
	Topology(app)
	return app.Run(ctx)
}

// logger writes what an operator wants to know to standard error.
func logger() (*zap.Logger, error) {
	cfg := zap.NewDevelopmentConfig()
	cfg.Level = zap.NewAtomicLevelAt(zap.InfoLevel)
	cfg.DisableStacktrace = true
	return cfg.Build()
}

const (
	newTopicPartitions = 4
	createTimeout      = 30 * time.Second
)

// createTopics creates the topics that don't exist.
func createTopics(ctx context.Context, brokers []string, topics ...string) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	const brokersDefault = -1
	created, err := kadm.NewClient(cl).CreateTopics(ctx, newTopicPartitions, brokersDefault, nil, topics...)
	if err != nil {
		return fmt.Errorf("creating topics on %s: %w", strings.Join(brokers, ","), err)
	}
	for _, t := range created.Sorted() {
		if t.Err != nil && !errors.Is(t.Err, kerr.TopicAlreadyExists) {
			return fmt.Errorf("creating topic %s: %w", t.Topic, t.Err)
		}
	}
	return nil
}
