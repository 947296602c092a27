// Command service is what the integration tests start, kill and start again: a
// keyed count and sum from one topic to another.
//
// An input record has a key and the value "SEQ AMOUNT": the number of the record
// among those of its key, and what to add. A third word is a number of bytes by
// which the output is padded. The value "poison" goes to the dead-letter topic,
// before it reaches state. An output record has the same key and the value
// "COUNT SUM SEQ", of all records of the key so far. With -files it is also a line
// "KEY COUNT SUM SEQ" of a file.
//
// What happens is told on standard output, one JSON object a line. The process
// exits with 0 after a clean stop, else with 1 and the error on standard error.
package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/sink/file"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var (
		app         = flag.String("app", "service", "name of the app")
		in          = flag.String("in", "in", "input topic")
		out         = flag.String("out", "out", "output topic")
		dead        = flag.String("dead", "", "dead-letter topic")
		dial        = flag.String("dial", "", "addresses to dial instead of a broker's, BROKER=PROXY,...")
		replication = flag.Int("commit-replication", -1, "replication of the commit topic")
		parallelism = flag.Int("parallelism", 2, "subtasks of each stage")
		interval    = flag.Duration("interval", 50*time.Millisecond, "from checkpoint to checkpoint")
		session     = flag.Duration("session", weir.DefaultSessionTimeout, "session timeout")
		transaction = flag.Duration("transaction", 0, "transaction timeout")
		tolerable   = flag.Int("tolerable", weir.DefaultTolerableFailures, "checkpoints in a row that may fail")
		restarts    = flag.Int("restarts", 10, "restarts in a row")
		delay       = flag.Duration("restart-delay", time.Second, "the longest wait before a restart")
		memory      = flag.Int64("memory", 0, "bytes of memory for state with WEIR_STATE_DIR; 0: as many as by default")
		ballast     = flag.Int("ballast", 0, "bytes by which the state of each key is larger than it has to be")
		drain       = flag.Bool("drain", false, "stop at the end of the input")
		unaligned   = flag.Bool("unaligned", false, "let barriers overtake records")
		alignment   = flag.Duration("alignment-timeout", 0, "let barriers overtake records after this long; 0: not")
		slow        = flag.Duration("slow", 0, "how long each record takes behind the KeyBy")
		ask         = flag.Duration("look-up", 0, "look up each record in front of the KeyBy and behind it, which takes about that long; 0: don't")
		files       = flag.String("files", "", "directory to which outputs are written as well")
		money       = flag.Bool("transfers", false, "move money between accounts, see transfers")
	)
	flag.Parse()

	log, err := zap.Config{
		Level: zap.NewAtomicLevelAt(zap.InfoLevel), Encoding: "console",
		EncoderConfig: zap.NewDevelopmentEncoderConfig(), OutputPaths: []string{"stderr"},
		DisableStacktrace: true, DisableCaller: true,
	}.Build()
	if err != nil {
		return err
	}
	opts := []weir.Option{
		weir.FromEnv(), weir.Log(log), weir.Listen(tell()),
		weir.Parallelism(*parallelism), weir.CheckpointEvery(*interval), weir.SessionTimeout(*session),
		weir.TolerableFailures(*tolerable), weir.CommitTopicReplication(int16(*replication)),
		weir.MergeFanIn(16), // so that a crash in a merge is not far off
		weir.Restart(weir.RestartPolicy{Initial: 50 * time.Millisecond, Max: *delay, Limit: *restarts, Quiet: time.Minute}),
	}
	if *memory > 0 {
		local := pebble.Dir(os.Getenv("WEIR_STATE_DIR"))
		local.MemoryBytes = *memory
		opts = append(opts, weir.StateBackend(local))
	}
	if *transaction > 0 {
		opts = append(opts, weir.TransactionTimeout(*transaction))
	}
	if *dead != "" {
		opts = append(opts, weir.DeadLetters(*dead))
	}
	if *unaligned {
		opts = append(opts, weir.Unaligned())
	}
	if *alignment > 0 {
		opts = append(opts, weir.AlignmentTimeout(*alignment))
	}
	if *drain {
		opts = append(opts, weir.Drain())
	}
	if *dial != "" {
		opts = append(opts, weir.KafkaOptions(kgo.Dialer(redirected(*dial))))
	}

	a := weir.New(*app, opts...)
	if *money {
		transfers(a, *in, *out)
	} else {
		topology(a, *in, *out, *files, *ballast, *slow, *ask)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	return a.Run(ctx)
}

// redirected returns a dialer that goes to other addresses than it is told.
func redirected(addrs string) func(context.Context, string, string) (net.Conn, error) {
	to := map[string]string{}
	for pair := range strings.SplitSeq(addrs, ",") {
		broker, proxy, _ := strings.Cut(pair, "=")
		to[broker] = proxy
	}
	var d net.Dialer
	return func(ctx context.Context, network, addr string) (net.Conn, error) {
		if proxy, ok := to[addr]; ok {
			addr = proxy
		}
		return d.DialContext(ctx, network, addr)
	}
}

// record is a parsed input record.
type record struct {
	key         string
	seq, amount int64
	pad         int
}

// tally is what is known of a key. The ballast follows from the sum.
type tally struct {
	count, sum, seq int64
	ballast         string
}

// decoded is how many tallies were read from what is committed.
var decoded atomic.Int64

func topology(a *weir.App, in, out, files string, ballast int, slow, ask time.Duration) {
	lines := weir.From(a, "in", source.KeyValues(in, codec.String, codec.String))
	records := weir.Map(lines, "parse", parse)
	if ask > 0 {
		records = lookedUp(records, "look-up", ask, func(r record) string { return r.key })
	}
	byKey := weir.KeyBy(records, "by-key", func(r record) string { return r.key }, codec.String, weir.ValueCodec(recordCodec))
	tallies := weir.Process(byKey, "tally", func(s *weir.Setup) weir.Handler[string, record, weir.KV[string, string]] {
		st := state.Value(s, "tally", tallyCodec)
		return weir.OnRecord(func(c *weir.Context[string, weir.KV[string, string]], r record) error {
			if slow > 0 {
				time.Sleep(slow)
			}
			t := st.Get()
			t.count++
			t.sum += r.amount
			t.seq = r.seq
			t.ballast = string(noise(uint64(t.sum), ballast))
			st.Set(t)
			v := fmt.Sprintf("%d %d %d", t.count, t.sum, t.seq)
			if r.pad > 0 {
				v += " " + string(noise(uint64(r.seq), r.pad))
			}
			c.Emit(weir.KV[string, string]{Key: c.Key(), Value: v})
			return nil
		})
	})
	if ask > 0 {
		tallies = lookedUp(tallies, "look-up-tally", ask, func(kv weir.KV[string, string]) string { return kv.Key })
	}
	weir.To(tallies, "out", kafka.Sink(out, codec.String, codec.String))
	if files != "" {
		weir.To(tallies, "files", file.Lines(file.Options{Dir: files, Suffix: ".txt"}, func(dst []byte, kv weir.KV[string, string]) ([]byte, error) {
			return append(append(append(dst, kv.Key...), ' '), kv.Value...), nil
		}))
	}
}

// lookedUp looks up each value in something that knows everything, takes its time, and
// fails now and then. It passes values on as they are.
func lookedUp[T any](in weir.Stream[T], id string, takes time.Duration, key func(T) string) weir.Stream[T] {
	answer := func(k string) string { return "about " + k }
	from := lookup.Batch("a slow service", func(ctx context.Context, keys []string, answers []lookup.Answer[string]) error {
		select {
		case <-time.After(rand.N(2 * takes)):
		case <-ctx.Done():
			return ctx.Err()
		}
		if rand.IntN(100) == 0 {
			return weir.Retry(errors.New("busy"))
		}
		for i, k := range keys {
			answers[i] = lookup.Answer[string]{Value: answer(k), Found: true}
		}
		return nil
	})
	return weir.Lookup(in, id, from, key, func(v T, about string, found bool) (T, error) {
		if !found || about != answer(key(v)) {
			return v, fmt.Errorf("the look-up of %q gave %q", key(v), about)
		}
		return v, nil
	}, lookup.BatchSize(16))
}

func parse(kv weir.KV[string, string]) (record, error) {
	if kv.Value == "poison" {
		return record{}, weir.DeadLetter(errors.New("the record is poisonous"))
	}
	r := record{key: kv.Key}
	words := strings.Fields(kv.Value)
	if len(words) < 2 {
		return r, fmt.Errorf("value %q: want SEQ AMOUNT", kv.Value)
	}
	var errs [3]error
	r.seq, errs[0] = strconv.ParseInt(words[0], 10, 64)
	r.amount, errs[1] = strconv.ParseInt(words[1], 10, 64)
	if len(words) > 2 {
		r.pad, errs[2] = strconv.Atoi(words[2])
	}
	return r, errors.Join(errs[:]...)
}

// recordCodec encodes a record that is in flight.
var recordCodec = codec.Func("record", 1, func(dst []byte, r record) ([]byte, error) {
	return fmt.Appendf(dst, "%d %d %d %s", r.seq, r.amount, r.pad, r.key), nil
}, func(b []byte) (r record, err error) {
	words := strings.SplitN(string(b), " ", 4)
	if len(words) < 4 {
		return r, fmt.Errorf("record %q in flight: want SEQ AMOUNT PAD KEY", b)
	}
	r.key = words[3]
	var errs [3]error
	r.seq, errs[0] = strconv.ParseInt(words[0], 10, 64)
	r.amount, errs[1] = strconv.ParseInt(words[1], 10, 64)
	r.pad, errs[2] = strconv.Atoi(words[2])
	return r, errors.Join(errs[:]...)
})

// tallyCodec encodes a tally. The ballast is checked when it is read.
var tallyCodec = codec.Func("tally", 1, func(dst []byte, t tally) ([]byte, error) {
	dst = binary.BigEndian.AppendUint64(dst, uint64(t.count))
	dst = binary.BigEndian.AppendUint64(dst, uint64(t.sum))
	dst = binary.BigEndian.AppendUint64(dst, uint64(t.seq))
	return append(dst, t.ballast...), nil
}, func(b []byte) (t tally, err error) {
	if len(b) < 24 {
		return t, fmt.Errorf("tally of %d bytes", len(b))
	}
	decoded.Add(1)
	t.count = int64(binary.BigEndian.Uint64(b))
	t.sum = int64(binary.BigEndian.Uint64(b[8:]))
	t.seq = int64(binary.BigEndian.Uint64(b[16:]))
	t.ballast = string(b[24:])
	if t.ballast != string(noise(uint64(t.sum), len(t.ballast))) {
		return t, errors.New("the ballast of the tally is not what was written")
	}
	return t, nil
})

// noise returns n printable bytes that don't compress well and follow from seed.
func noise(seed uint64, n int) []byte {
	const letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
	b := make([]byte, n)
	rng := rand.NewPCG(seed, 1)
	for i := range b {
		b[i] = letters[rng.Uint64()%uint64(len(letters))]
	}
	return b
}

// tell returns a listener that writes events to standard output.
func tell() event.Listener {
	var mu sync.Mutex
	enc := json.NewEncoder(os.Stdout)
	say := func(name string, checkpoint int64, err error, more ...any) {
		m := map[string]any{"event": name, "checkpoint": checkpoint}
		if err != nil {
			m["error"] = err.Error()
		}
		for i := 0; i < len(more); i += 2 {
			m[more[i].(string)] = more[i+1]
		}
		mu.Lock()
		defer mu.Unlock()
		_ = enc.Encode(m) // a test that went away reads nothing
	}
	inFlight := map[int64]int64{} // by checkpoint that is not committed; the app's loop makes these calls
	return event.Listener{
		CheckpointBegun: func(i event.CheckpointBegun) { say("begun", i.Checkpoint, nil, "reason", i.Reason) },
		CheckpointPersisted: func(i event.CheckpointPersisted) {
			inFlight[i.Checkpoint] = i.InFlight
			say("persisted", i.Checkpoint, nil, "segments", i.Segments, "entries", i.Entries, "inFlight", i.InFlight)
		},
		CheckpointCommitted: func(i event.CheckpointCommitted) {
			say("committed", i.Checkpoint, nil, "records", i.Records, "decoded", decoded.Load(), "goroutines", runtime.NumGoroutine(), "inFlight", inFlight[i.Checkpoint])
			clear(inFlight)
		},
		CheckpointFailed: func(i event.CheckpointFailed) { say("failed", i.Checkpoint, i.Err) },
		Restored: func(i event.Restored) {
			say("restored", i.Checkpoint, nil, "partitions", i.Partitions, "entries", i.Entries, "segments", i.Segments, "how", i.How, "inFlight", i.InFlight)
		},
		Followed:   func(i event.Followed) { say("followed", i.Checkpoint, nil, "segments", i.Attached) },
		Restarting: func(i event.Restarting) { say("restarting", 0, i.Err, "attempt", i.Attempt) },
		Rebalanced: func(i event.Rebalanced) {
			say("rebalanced", 0, nil, "assigned", len(i.Assigned), "revoked", len(i.Revoked), "lost", len(i.Lost))
		},
		Fenced:       func(i event.Fenced) { say("fenced", 0, i.Err) },
		DeadLettered: func(i event.DeadLettered) { say("deadlettered", 0, i.Err, "offset", i.Offset) },
		Collected:    func(i event.Collected) { say("collected", 0, i.Err, "deleted", i.Deleted) },
	}
}
