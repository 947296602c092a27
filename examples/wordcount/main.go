// Wordcount counts the words of the lines in topic "lines" and writes each word's
// new count to topic "counts": word as the key, count as eight bytes, big endian.
//
//	go run ./examples/wordcount -brokers localhost:9092 -create-topics
//
// Kill it with any signal and start it again: a read_committed reader of "counts"
// sees 1, 2, 3, ... for each word, every number once.
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
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
)

// The topics that wordcount reads and writes.
const (
	linesTopic  = "lines"
	countsTopic = "counts"
)

// Topology counts words.
func Topology(app *weir.App) {
	lines := weir.From(app, "lines", source.Values(linesTopic, codec.String))
	words := weir.FlatMap(lines, "split", func(line string, emit func(string)) error {
		for word := range strings.FieldsSeq(line) {
			emit(word)
		}
		return nil
	})
	byWord := weir.KeyBy(words, "by-word", func(word string) string { return word }, codec.String)
	counts := weir.Aggregate(byWord, "count", weir.Count[string]())
	weir.To(counts, "counts", kafka.Sink(countsTopic, codec.String, codec.Int64))
}

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

// run runs wordcount until ctx is cancelled.
func run(ctx context.Context, args []string) error {
	fs := flag.NewFlagSet("wordcount", flag.ContinueOnError)
	brokers := fs.String("brokers", cmp.Or(os.Getenv("WEIR_BROKERS"), "localhost:9092"), "Kafka brokers, separated by commas (also WEIR_BROKERS)")
	store := fs.String("store", cmp.Or(os.Getenv("WEIR_STORE"), "wordcount-checkpoints"), "checkpoint store, a URL or a directory (also WEIR_STORE)")
	instance := fs.String("instance", "", "name of this process, stable across restarts (also WEIR_INSTANCE_ID; default: the host name)")
	interval := fs.Duration("interval", 0, "time between checkpoints (also WEIR_INTERVAL; default 100ms)")
	create := fs.Bool("create-topics", false, "create the topics that are missing")
	if err := fs.Parse(args); err != nil {
		return err
	}
	seeds := strings.Split(*brokers, ",")
	if *create {
		if err := createTopics(ctx, seeds, linesTopic, countsTopic); err != nil {
			return err
		}
	}
	log, err := logger()
	if err != nil {
		return err
	}
	defer log.Sync()

	opts := []weir.Option{weir.FromEnv(), weir.Brokers(seeds...), weir.CheckpointStore(*store), weir.Log(log)}
	if *instance != "" {
		opts = append(opts, weir.InstanceID(*instance))
	}
	if *interval != 0 {
		opts = append(opts, weir.CheckpointEvery(*interval))
	}
	app := weir.New("wordcount", opts...)
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
