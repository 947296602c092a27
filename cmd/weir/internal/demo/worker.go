package demo

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"github.com/spf13/pflag"
	"go.uber.org/zap"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
)

const (
	linesTopic  = "lines"
	countsTopic = "counts"

	// stopWord on the worker's standard input stops it in an orderly way.
	stopWord = "stop"
)

// Worker is the process that is killed.
type Worker struct {
	brokers, store string
	interval       time.Duration
}

// Flags defines the worker's flags.
func (w *Worker) Flags(fs *pflag.FlagSet) {
	fs.StringVar(&w.brokers, "brokers", "", "Kafka brokers, separated by commas")
	fs.StringVar(&w.store, "store", "", "directory of the checkpoints")
	fs.DurationVar(&w.interval, "interval", weir.DefaultCheckpointEvery, "time between checkpoints")
}

// args are the flags that make another process the same worker.
func (w *Worker) args() []string {
	return []string{"--brokers=" + w.brokers, "--store=" + w.store, "--interval=" + w.interval.String()}
}

// wordCount is the topology that the demo runs.
func wordCount(app *weir.App) {
	lines := weir.From(app, "lines", source.Values(linesTopic, codec.String))
	words := weir.FlatMap(lines, "split", func(line string, emit func(string)) error {
		for w := range strings.FieldsSeq(line) {
			emit(w)
		}
		return nil
	})
	byWord := weir.KeyBy(words, "by-word", func(w string) string { return w }, codec.String)
	counts := weir.Aggregate(byWord, "count", weir.Count[string]())
	weir.To(counts, "counts", kafka.Sink(countsTopic, codec.String, codec.Int64))
}

// Run counts words until stdin says so, and writes what the director wants to know
// to stdout, a line each: "restored ID" and "committed ID". The process exits at once
// when stdin ends: whoever started it is gone, and its broker with it.
func (w *Worker) Run(ctx context.Context, stdin io.Reader, stdout io.Writer) error {
	signal.Ignore(os.Interrupt) // Ctrl-C reaches us, too, but is meant for the director
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		in := bufio.NewScanner(stdin)
		for in.Scan() {
			if in.Text() == stopWord {
				stop()
			}
		}
		os.Exit(1)
	}()

	cfg := zap.NewDevelopmentConfig()
	cfg.Level = zap.NewAtomicLevelAt(zap.WarnLevel)
	cfg.DisableStacktrace = true
	log, err := cfg.Build()
	if err != nil {
		return err
	}
	// One write for a line: a reader never sees a part of one.
	var mu sync.Mutex
	say := func(what string, id int64) {
		mu.Lock()
		defer mu.Unlock()
		fmt.Fprintf(stdout, "%s %d\n", what, id)
	}
	app := weir.New("wordcount",
		weir.Brokers(strings.Split(w.brokers, ",")...),
		weir.CheckpointStore(w.store),
		weir.CheckpointEvery(w.interval),
		weir.InstanceID("demo"),
		weir.Log(log),
		weir.Listen(weir.Listener{
			Restored:            func(i event.Restored) { say(saidRestored, i.Checkpoint) },
			CheckpointCommitted: func(i event.CheckpointCommitted) { say(saidCommitted, i.Checkpoint) },
		}),
	)
	wordCount(app)
	return app.Run(ctx)
}

// What a worker says.
const (
	saidRestored  = "restored"
	saidCommitted = "committed"
)
