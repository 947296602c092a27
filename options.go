package weir

import (
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"github.com/weirstream/weir/barrier"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/internal/inside"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/processor"
	"github.com/weirstream/weir/state/pebble"
	"github.com/weirstream/weir/txn"
)

// The defaults of the options.
const (
	DefaultCheckpointEvery    = 100 * time.Millisecond
	DefaultCheckpointTimeout  = 60 * time.Second
	DefaultTolerableFailures  = barrier.DefaultTolerableFailures
	DefaultRetryPause         = time.Second
	DefaultKeyGroups          = 128
	DefaultRetain             = 3
	DefaultHeldBytes          = 64 << 20
	DefaultStopTimeout        = 30 * time.Second
	DefaultSessionTimeout     = 45 * time.Second
	DefaultTransactionTimeout = 0 // derived: see TransactionTimeout
)

// Option configures an app. Later options win over earlier ones.
type Option interface{ apply(*options) }

type option func(*options)

func (f option) apply(o *options) { f(o) }

// options is the one place of configuration. Everything is validated by config.
type options struct {
	brokers  []string
	kafka    []kgo.Opt
	group    string
	instance string

	keyGroups, parallelism int

	every             time.Duration
	records, bytes    int64
	minPause          time.Duration
	retryPause        time.Duration
	checkpointTimeout time.Duration
	tolerable         int

	unaligned        bool
	alignmentTimeout time.Duration

	backend pebble.Backend
	from    processor.SavepointStart
	fromURL string

	store  string
	opened checkpoint.Store
	retain int
	take   []checkpoint.Owner // from whom the store may be taken over

	mergeCPU       float64
	mergeFanIn     int
	bloomBits      int
	mergeBandwidth int64

	held int64

	txnTimeout, sessionTimeout time.Duration

	commitTopic       string
	commitReplication int16

	deadLetters string
	skip        string
	recovery    Recovery
	allowed     []string

	drain       bool
	stopTimeout time.Duration
	restart     RestartPolicy

	admin string // address; empty: none

	listeners []event.Listener
	log       *zap.Logger
	clock     clock.Clock // nil: the machine's; set by tests
	test      inside.Settings

	errs []error
}

// rebalanceMargin is by how much the rebalance timeout is above the session timeout: who has
// not rejoined by then may have missed a generation, and must not have a session any more.
const rebalanceMargin = 15 * time.Second

// byCores is the parallelism of an app that was given none.
const byCores = math.MinInt

func defaults() options {
	return options{
		keyGroups: DefaultKeyGroups, parallelism: byCores,
		every: DefaultCheckpointEvery, checkpointTimeout: DefaultCheckpointTimeout, tolerable: DefaultTolerableFailures,
		retryPause: DefaultRetryPause,
		mergeCPU:   checkpoint.DefaultMergeCPU(), mergeFanIn: checkpoint.DefaultMergeFanIn, bloomBits: checkpoint.DefaultBloomBits,
		retain: DefaultRetain, held: DefaultHeldBytes,
		sessionTimeout: DefaultSessionTimeout, commitReplication: -1,
		stopTimeout: DefaultStopTimeout,
		restart:     RestartPolicy{Initial: 100 * time.Millisecond, Max: 10 * time.Second, Limit: 10, Quiet: time.Minute},
	}
}

// Brokers sets the seed brokers, "host:port". Required, here or with [FromEnv] as
// WEIR_BROKERS.
func Brokers(addrs ...string) Option { return option(func(o *options) { o.brokers = addrs }) }

// KafkaOptions passes options to the Kafka client: TLS, SASL, dialer, batch and
// fetch sizes, compression. Options that would break the guarantee are refused by
// name. They add to those of earlier calls.
func KafkaOptions(opts ...kgo.Opt) Option {
	return option(func(o *options) { o.kafka = append(o.kafka, opts...) })
}

// Group sets the consumer group. Default: the app's name.
func Group(name string) Option { return option(func(o *options) { o.group = name }) }

// InstanceID names this process within the app. It must be stable across restarts
// and different for processes that run at the same time: a restarted process takes
// its place in the group back at once instead of after the session timeout.
// Default: WEIR_INSTANCE_ID, else the host name.
func InstanceID(id string) Option { return option(func(o *options) { o.instance = id }) }

// KeyGroups sets into how many key-groups keyed state is divided, which bounds the
// parallelism. It is fixed when the app first runs. Default 128.
func KeyGroups(n int) Option { return option(func(o *options) { o.keyGroups = n }) }

// Parallelism sets the number of subtasks of each stage. It may change at any
// restart. Default: GOMAXPROCS, but no more than there are key-groups.
func Parallelism(n int) Option { return option(func(o *options) { o.parallelism = n }) }

// CheckpointEvery sets the time from one checkpoint to the next, which bounds the
// latency of outputs for read_committed readers. An epoch without input is not
// checkpointed. Twice the time and a second have to be within [TransactionTimeout] if the
// app writes to Kafka, dead letters included. 0: not by time; then [AfterRecords] or
// [AfterBytes] alone has to be reached within half of TransactionTimeout, or the epoch is
// processed again. Default 100ms.
func CheckpointEvery(d time.Duration) Option { return option(func(o *options) { o.every = d }) }

// AfterRecords triggers a checkpoint after n input records, too. 0: not at all.
func AfterRecords(n int64) Option { return option(func(o *options) { o.records = n }) }

// AfterBytes triggers a checkpoint after n bytes of input, too. 0: not at all.
func AfterBytes(n int64) Option { return option(func(o *options) { o.bytes = n }) }

// MinPause sets the least time between the end of a checkpoint and the barrier of
// the next; bounded by [TransactionTimeout] as [CheckpointEvery] is. Default 0.
func MinPause(d time.Duration) Option { return option(func(o *options) { o.minPause = d }) }

// CheckpointTimeout sets how long a checkpoint may take to be aligned and made
// durable; then it is given up and counts as failed. Default 60s.
func CheckpointTimeout(d time.Duration) Option {
	return option(func(o *options) { o.checkpointTimeout = d })
}

// Unaligned makes barriers overtake what is queued in front of operators, so that a
// checkpoint takes no longer when handlers are slow. What was overtaken is stored with the
// checkpoint, so it is larger then; after a failure that is processed before new input.
// Every [KeyBy] needs a [ValueCodec]. Savepoints and the last checkpoint of a clean stop
// are aligned all the same: they have nothing in flight.
//
// Default: barriers keep their place, and a subtask waits until the barrier came on all of
// its inputs.
func Unaligned() Option {
	return option(func(o *options) { o.unaligned, o.alignmentTimeout = true, 0 })
}

// AlignmentTimeout makes checkpoints begin aligned and turn unaligned when they are not
// aligned after d, as with [Unaligned]: what is in flight is stored only where it would
// take too long to wait for it. d has to be less than [CheckpointTimeout].
func AlignmentTimeout(d time.Duration) Option {
	return option(func(o *options) {
		o.unaligned, o.alignmentTimeout = true, d
		if d <= 0 {
			o.errs = append(o.errs, fmt.Errorf("weir.AlignmentTimeout(%v): want more than 0; weir.Unaligned() is unaligned from the begin", d))
		}
	})
}

// TolerableFailures sets how many checkpoints in a row may fail; one more stops the
// app. Nothing is lost by a failed checkpoint: its epoch stays open. Default 3.
func TolerableFailures(n int) Option { return option(func(o *options) { o.tolerable = n }) }

// RetryPause sets how long to wait after a failed checkpoint before the next one, so
// that a store that fails at once does not use up all tolerable failures at once.
// Default 1s.
func RetryPause(d time.Duration) Option { return option(func(o *options) { o.retryPause = d }) }

// CheckpointStore sets where checkpoints are kept: file:///absolute/path, a plain
// path, s3://, gs:// or azblob:// with the driver imported (package checkpoint/blob), or
// mem:// for tests. Required, here or with [FromEnv] as WEIR_STORE. An app that may run
// on several machines needs a store that all of them reach.
func CheckpointStore(url string) Option {
	return option(func(o *options) { o.store, o.opened = url, nil })
}

// Store sets the checkpoint store to one that is already open.
func Store(s checkpoint.Store) Option {
	return option(func(o *options) {
		if s == nil {
			o.errs = append(o.errs, errors.New("weir.Store(nil): want an open store; weir.CheckpointStore takes a URL"))
			return
		}
		o.opened, o.store = s, s.String()
	})
}

// TakeStore lets the app take over a checkpoint store that belongs to an app of its name in
// another consumer group or on another Kafka cluster: "group@cluster", as the
// [checkpoint.OwnerError] has it without which the store is refused. It is for an app that
// has moved and never runs there again, or its checkpoints would be deleted under it. From
// any other owner the store is not taken, and once it is the app's own the option has no
// effect: it may stay. Also: WEIR_TAKE_STORE.
func TakeStore(owner string) Option {
	return option(func(o *options) {
		from, err := checkpoint.ParseOwner(owner)
		if err != nil {
			o.errs = append(o.errs, fmt.Errorf("weir.TakeStore: %w", err))
			return
		}
		o.take = []checkpoint.Owner{from}
	})
}

// StateBackend chooses where keyed state is while the app runs: by default in memory,
// or, for more than fits there, in a local store with a typed cache in memory:
//
//	weir.StateBackend(pebble.Dir("/var/cache/wordcount"))
//
// with package state/pebble. The choice may change at any restart, because checkpoints
// are the same. Also: WEIR_STATE_DIR.
func StateBackend(b pebble.Backend) Option { return option(func(o *options) { o.backend = b }) }

// FromSavepoint makes an app that has committed nothing yet begin with the state of a
// savepoint, and read on from its positions. url is the store that it is in, name what it
// is called there; with an empty name the store itself is the savepoint, as it is when
// its directory was copied. Once the app has committed something the option has no
// effect: it may stay. To go back to a savepoint later see [OnMismatch]. Also: WEIR_FROM,
// as url#name.
func FromSavepoint(url, name string, opts ...SavepointOption) Option {
	return option(func(o *options) {
		o.fromURL, o.from = url, processor.SavepointStart{Name: name}
		if url == "" {
			o.errs = append(o.errs, fmt.Errorf("weir.FromSavepoint(%q, %q): want the URL of the store that the savepoint is in, or the app would begin empty", url, name))
		}
		for i, opt := range opts {
			if opt == nil {
				o.errs = append(o.errs, fmt.Errorf("weir.FromSavepoint: option %d is nil", i+1))
				continue
			}
			opt(&o.from)
		}
	})
}

// SavepointOption says what is taken from a savepoint.
type SavepointOption func(*processor.SavepointStart)

// DropPositions takes the state of a savepoint alone, without event time and records in
// flight: the input is read from its beginning, whatever is committed in the group.
func DropPositions() SavepointOption {
	return func(s *processor.SavepointStart) { s.DropPositions = true }
}

// AnyApp takes a savepoint although an app of another name made it.
func AnyApp() SavepointOption {
	return func(s *processor.SavepointStart) { s.AnyApp = true }
}

// AnyTopics takes the positions of a savepoint although they are of input topics with other
// ids: for copies, such as those on another cluster, in which each record has the offset that
// it had. In a topic that was deleted and created again, records would be left out.
func AnyTopics() SavepointOption {
	return func(s *processor.SavepointStart) { s.AnyTopics = true }
}

// Retain sets how many committed checkpoints are kept in the store. Default 3.
func Retain(n int) Option { return option(func(o *options) { o.retain = n }) }

// MergeBudget bounds the merging of segments in the background: by a share of one core,
// and by the bytes a second that are read and written, where 0 is no bound. Merging that
// has fallen far behind takes a whole core. Default: an eighth of the cores that Go may
// use, at least half a core and at most two.
func MergeBudget(cores float64, bytesPerSecond int64) Option {
	return option(func(o *options) { o.mergeCPU, o.mergeBandwidth = cores, bytesPerSecond })
}

// MergeFanIn sets how many segments of about one size become one. More of them write a byte
// less often; fewer leave fewer segments for a read of a key that is not in memory to ask,
// and for a restart to attach. Default 64.
func MergeFanIn(n int) Option { return option(func(o *options) { o.mergeFanIn = n }) }

// BloomBits sets how many bits the filter of a segment has for each key. More make reads of
// keys that are not in memory cheaper, since fewer segments are looked into in vain, and
// take more memory and store. It counts for segments that are written from now on.
// Default 10: one look in a hundred is in vain.
func BloomBits(n int) Option { return option(func(o *options) { o.bloomBits = n }) }

// HeldBytes bounds the outputs that may wait in memory, in bytes, while the
// checkpoint before them is being committed. At the bound, processing waits.
// Default 64 MiB.
func HeldBytes(n int64) Option { return option(func(o *options) { o.held = n }) }

// TransactionTimeout sets after what time the broker aborts a transaction that was
// not committed. One that is older than half of it is not committed any more, and the app
// restarts: set more than twice interval and checkpoint together. Default: derived from
// interval, checkpoint timeout and tolerable failures, at least 60s and at most 15
// minutes. It must not exceed the broker's transaction.max.timeout.ms, 15 minutes where
// nobody changed it.
func TransactionTimeout(d time.Duration) Option { return option(func(o *options) { o.txnTimeout = d }) }

// SessionTimeout sets after what silence the group gives this process's partitions
// to a standby. Default 45s, as Kafka's own.
func SessionTimeout(d time.Duration) Option { return option(func(o *options) { o.sessionTimeout = d }) }

// CommitTopic sets the compacted topic that mirrors the committed pointer, and that
// nothing else is written to. Default: the app's name and "-checkpoints", so an app needs
// the option if its name has characters that Kafka allows in no topic name. The topic is
// created if it is missing.
func CommitTopic(name string) Option { return option(func(o *options) { o.commitTopic = name }) }

// CommitTopicReplication sets the replication factor of the commit topic when it is
// created. Default: the broker's, which is also -1.
func CommitTopicReplication(n int16) Option {
	return option(func(o *options) { o.commitReplication = n })
}

// DeadLetters sets the topic for input records whose handler returned
// [DeadLetter]. It must exist.
func DeadLetters(topic string) Option { return option(func(o *options) { o.deadLetters = topic }) }

// SkipRecords names input records, as "topic/partition@offset" separated by commas,
// that are dropped when their processing fails. Also: WEIR_SKIP.
func SkipRecords(s string) Option { return option(func(o *options) { o.skip = s }) }

// OnMismatch chooses a way on when committed offsets and checkpoint disagree:
// offsets that were moved by hand, expired, or deleted with their group. Without it
// the app refuses to start. It has no effect while they agree. Also: WEIR_RECOVER.
func OnMismatch(r Recovery) Option { return option(func(o *options) { o.recovery = r }) }

// Recovery is a way on after a mismatch, see [OnMismatch].
type Recovery = processor.Recovery

// The ways on after a mismatch.
const (
	RecoverRefuse     = processor.RecoverRefuse
	RecoverCheckpoint = processor.RecoverCheckpoint
	RecoverOffsets    = processor.RecoverOffsets
	RecoverNothing    = processor.RecoverNothing
	RecoverSavepoint  = processor.RecoverSavepoint
)

// AllowDroppedState lets the app start although the checkpoint holds state of these
// operators, records in flight to them, or logs of these write-ahead sinks, which the
// topology lacks. They are dropped, applied or not.
func AllowDroppedState(ids ...string) Option {
	return option(func(o *options) { o.allowed = append(o.allowed, ids...) })
}

// Drain makes Run process the input that is there when it starts, commit, and
// return: for backfills and tests. Event time comes to its end with the input: all
// event-time timers fire.
func Drain() Option { return option(func(o *options) { o.drain = true }) }

// StopTimeout bounds the last checkpoint of a clean stop, together with what write-ahead
// sinks still have to apply. Default 30s.
func StopTimeout(d time.Duration) Option { return option(func(o *options) { o.stopTimeout = d }) }

func init() {
	clock.Option = func(c clock.Clock) any { return option(func(o *options) { o.clock = c }) }
}

// RestartPolicy says how a failed app begins again inside Run.
type RestartPolicy = processor.RestartPolicy

// Restart sets the restart policy. Default: delays from 100ms to 10s, doubling,
// with jitter; at most 10 in a row; the count begins anew after a quiet minute.
func Restart(p RestartPolicy) Option { return option(func(o *options) { o.restart = p }) }

// Listener receives events, see package event.
type Listener = event.Listener

// Listen adds a listener.
func Listen(l Listener) Option {
	return option(func(o *options) { o.listeners = append(o.listeners, l) })
}

// Log writes one line for each notable event, and the Kafka client's warnings, to l.
// Default: silence.
func Log(l *zap.Logger) Option { return option(func(o *options) { o.log = l }) }

// FromEnv takes what a server needs at run time from the environment:
//
//	WEIR_BROKERS       Brokers, separated by commas
//	WEIR_STORE         CheckpointStore
//	WEIR_FROM          FromSavepoint, as url#name
//	WEIR_STATE_DIR     StateBackend: pebble.Dir with this directory
//	WEIR_GROUP         Group
//	WEIR_INSTANCE_ID   InstanceID (also read without this option; InstanceID wins)
//	WEIR_PARALLELISM   Parallelism
//	WEIR_INTERVAL      CheckpointEvery, a duration such as 100ms
//	WEIR_ADMIN         Admin
//	WEIR_SKIP          SkipRecords (also read without this option, beside what SkipRecords says)
//	WEIR_RECOVER       OnMismatch: checkpoint, offsets, nothing or savepoint (also read without this option; OnMismatch wins)
//	WEIR_TAKE_STORE    TakeStore, beside what the option says (also read without this option)
//
// Variables that are unset change nothing.
func FromEnv() Option {
	return option(func(o *options) {
		env := func(name string, set func(string) error) {
			v := os.Getenv(name)
			if v == "" {
				return
			}
			if err := set(v); err != nil {
				o.errs = append(o.errs, fmt.Errorf("%s=%q: %w", name, v, err))
			}
		}
		env("WEIR_BROKERS", func(v string) error { o.brokers = strings.Split(v, ","); return nil })
		env("WEIR_STORE", func(v string) error { o.store, o.opened = v, nil; return nil })
		env("WEIR_FROM", func(v string) error {
			url, name, _ := strings.Cut(v, "#")
			if url == "" {
				return errors.New("want url#name: without the URL of the store that the savepoint is in the app would begin empty")
			}
			FromSavepoint(url, name).apply(o)
			return nil
		})
		env("WEIR_STATE_DIR", func(v string) error { o.backend = pebble.Dir(v); return nil })
		env("WEIR_GROUP", func(v string) error { o.group = v; return nil })
		env("WEIR_PARALLELISM", func(v string) error {
			n, err := strconv.Atoi(v)
			if err != nil {
				return errors.New("want a number")
			}
			o.parallelism = n
			return nil
		})
		env("WEIR_ADMIN", func(v string) error { o.admin = v; return nil })
		env("WEIR_INTERVAL", func(v string) error {
			d, err := time.ParseDuration(v)
			if err != nil {
				return errors.New("want a duration such as 100ms")
			}
			o.every = d
			return nil
		})
	})
}

// config validates the options and turns them into what the runtime takes.
func (o options) config(app string) (processor.Config, []error) {
	errs := append([]error(nil), o.errs...)
	bad := func(cond bool, format string, args ...any) {
		if cond {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	add := func(err error) {
		if err != nil {
			errs = append(errs, err)
		}
	}
	or := func(v, alt string) string {
		if v == "" {
			return alt
		}
		return v
	}

	cfg := processor.Config{
		App: app, Group: or(o.group, app),
		KeyGroups: o.keyGroups, Parallelism: o.parallelism,
		Trigger:           barrier.TriggerConfig{Every: o.every, Records: o.records, Bytes: o.bytes, MinPause: o.minPause, RetryPause: o.retryPause},
		CheckpointTimeout: o.checkpointTimeout, TolerableFailures: o.tolerable,
		Unaligned: o.unaligned, AlignmentTimeout: o.alignmentTimeout,
		Store: o.opened, Retain: o.retain, MergeCPU: o.mergeCPU, MergeBandwidth: o.mergeBandwidth, MergeFanIn: o.mergeFanIn, BloomBits: o.bloomBits, Backend: o.backend, HeldBytes: o.held,
		SessionTimeout: o.sessionTimeout, RebalanceTimeout: max(o.stopTimeout, time.Minute, o.sessionTimeout+rebalanceMargin),
		HeartbeatInterval: min(3*time.Second, o.sessionTimeout/3),
		CommitTopic:       or(o.commitTopic, app+commitTopicSuffix), CommitTopicReplication: o.commitReplication,
		DeadLetterTopic: o.deadLetters, AllowDropped: dropped(o.allowed),
		Drain: o.drain, StopTimeout: o.stopTimeout, Restart: o.restart,
		Logger: o.log, Clock: o.clock,
	}
	var err error
	cfg.Instance, err = o.instanceID()
	add(err)
	if app != "" && cfg.Instance != "" {
		add(offsets.ValidateNames(app, cfg.Instance))
	}
	if cfg.Logger == nil {
		cfg.Logger = zap.NewNop()
	}
	cfg.Listener = event.Tee(append([]event.Listener{event.Log(cfg.Logger)}, o.listeners...)...)

	bad(len(o.brokers) == 0, "no brokers: set weir.Brokers or WEIR_BROKERS")
	bad(slices.Contains(o.brokers, ""), "weir.Brokers or WEIR_BROKERS: address %d of %q is empty: want host:port", slices.Index(o.brokers, "")+1, o.brokers)
	add(txn.ValidateOptions(o.kafka))
	cfg.Kafka = append([]kgo.Opt{kgo.SeedBrokers(o.brokers...)}, o.kafka...)

	switch {
	case cfg.Store != nil:
	case o.store == "":
		bad(true, "no checkpoint store: set weir.CheckpointStore or WEIR_STORE, for example to file:///var/lib/%s", app)
	default:
		var err error
		cfg.Store, err = checkpoint.OpenStore(o.store)
		add(err)
	}

	if o.fromURL != "" {
		var err error
		cfg.From = o.from
		cfg.From.Store, err = offline.OpenStore(o.fromURL)
		if errors.Is(err, os.ErrNotExist) {
			// The option may stay when the savepoint is not needed any more, and gone.
			cfg.From.Err = err
		} else {
			add(err)
		}
		if o.from.Name != "" {
			add(checkpoint.CheckSavepointName(o.from.Name))
		}
	}
	if o.admin != "" {
		_, _, err := net.SplitHostPort(o.admin)
		bad(err != nil, "weir.Admin(%q): want host:port, for example localhost:8471", o.admin)
	}
	bad(o.recovery == RecoverSavepoint && o.fromURL == "", "weir.OnMismatch(weir.RecoverSavepoint): no savepoint is named: set weir.FromSavepoint")
	bad(o.backend.Dir == "" && o.backend.MemoryBytes != 0, "weir.StateBackend: the backend has no directory: name one, for example pebble.Dir(\"/var/cache/%s\")", app)
	bad(o.backend.Dir != "" && o.backend.MemoryBytes <= 0, "weir.StateBackend: %d bytes of memory for state in %s: want more than 0, for example pebble.DefaultMemoryBytes()", o.backend.MemoryBytes, o.backend.Dir)
	bad(o.keyGroups < 1 || o.keyGroups > keygroup.Max, "weir.KeyGroups(%d): want 1 to %d", o.keyGroups, keygroup.Max)
	bad(o.parallelism < 1, "weir.Parallelism(%d): want at least 1", o.parallelism)
	bad(o.parallelism > o.keyGroups && o.keyGroups >= 1, "weir.Parallelism(%d): there are only %d key-groups to divide; raise weir.KeyGroups before the first run", o.parallelism, o.keyGroups)
	bad(o.every <= 0 && o.records <= 0 && o.bytes <= 0, "no checkpoint is ever due: set weir.CheckpointEvery, AfterRecords or AfterBytes")
	add(cfg.Trigger.Validate())
	bad(o.checkpointTimeout <= 0, "weir.CheckpointTimeout(%v): want more than 0", o.checkpointTimeout)
	bad(o.alignmentTimeout > 0 && o.alignmentTimeout >= o.checkpointTimeout && o.checkpointTimeout > 0, "weir.AlignmentTimeout(%v): a checkpoint is given up after %v, before it would turn unaligned: want less, or a longer weir.CheckpointTimeout", o.alignmentTimeout, o.checkpointTimeout)
	bad(o.tolerable < 0, "weir.TolerableFailures(%d): want 0 or more", o.tolerable)
	bad(o.retain < 1, "weir.Retain(%d): the checkpoint that the pointer names has to be kept: want 1 or more", o.retain)
	bad(o.bloomBits < 1 || o.bloomBits > checkpoint.MaxBloomBits, "weir.BloomBits(%d): want 1 to %d bits for each key", o.bloomBits, checkpoint.MaxBloomBits)
	bad(o.mergeFanIn < 2, "weir.MergeFanIn(%d): want at least 2 segments", o.mergeFanIn)
	bad(!(o.mergeCPU > 0) || math.IsInf(o.mergeCPU, 0) || o.mergeBandwidth < 0, "weir.MergeBudget(%v, %d): want a share of a core above 0, and bytes a second, or 0 for no bound", o.mergeCPU, o.mergeBandwidth)
	bad(o.held < 1, "weir.HeldBytes(%d): want more than 0", o.held)
	bad(o.commitReplication != -1 && o.commitReplication < 1, "weir.CommitTopicReplication(%d): want 1 or more, or -1 for the broker's default", o.commitReplication)
	add(checkCommitTopic(app, o.commitTopic))
	bad(o.stopTimeout <= 0, "weir.StopTimeout(%v): want more than 0", o.stopTimeout)
	bad(o.sessionTimeout <= 0, "weir.SessionTimeout(%v): want more than 0", o.sessionTimeout)
	bad(o.restart.Initial <= 0 || o.restart.Max < o.restart.Initial, "weir.Restart: delays from %v to %v: want a positive first delay that is not above the longest", o.restart.Initial, o.restart.Max)
	bad(o.restart.Limit > 0 && o.restart.Quiet <= 0, "weir.Restart: without a quiet time the count begins anew after every restart, and the limit of %d is never reached; set RestartPolicy.Quiet", o.restart.Limit)
	cfg.TransactionTimeout = o.txnTimeout
	if cfg.TransactionTimeout == 0 {
		cfg.TransactionTimeout = deriveTransactionTimeout(o)
	}
	bad(o.txnTimeout != 0 && o.txnTimeout < commitRoom, "weir.TransactionTimeout(%v): too short for a commit: want at least %v", o.txnTimeout, commitRoom)

	cfg.Skip, err = processor.ParseSkip(strings.Trim(o.skip+","+os.Getenv("WEIR_SKIP"), ","))
	add(err)
	cfg.TakeStore = slices.Clone(o.take)
	if v := os.Getenv("WEIR_TAKE_STORE"); v != "" {
		from, err := checkpoint.ParseOwner(v)
		if err != nil {
			add(fmt.Errorf("WEIR_TAKE_STORE: %w", err))
		}
		cfg.TakeStore = append(cfg.TakeStore, from)
	}
	cfg.Recovery = o.recovery
	if v := os.Getenv("WEIR_RECOVER"); v != "" && o.recovery == RecoverRefuse {
		cfg.Recovery, err = processor.ParseRecovery(v)
		if err != nil {
			add(errors.New("WEIR_RECOVER: " + err.Error()))
		}
	} else {
		_, err = processor.ParseRecovery(string(o.recovery))
		add(err)
	}
	return cfg, errs
}

// commitTopicSuffix makes the name of the commit topic of the app's.
const commitTopicSuffix = "-checkpoints"

// checkCommitTopic reports that Kafka would refuse the name of the commit topic.
func checkCommitTopic(app, topic string) error {
	if app == "" && topic == "" {
		return nil // reported by New
	}
	if topic != "" {
		if why := badTopic(topic); why != "" {
			return fmt.Errorf("weir.CommitTopic(%q): %s", topic, why)
		}
		return nil
	}
	if why := badTopic(app + commitTopicSuffix); why != "" {
		return fmt.Errorf("app name %q makes the commit topic %q: %s; choose another name, or a topic with weir.CommitTopic", app, app+commitTopicSuffix, why)
	}
	return nil
}

// badTopic tells why Kafka takes no such topic name; empty if it does.
func badTopic(name string) string {
	const most = 249
	other := func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || strings.ContainsRune("._-", r))
	}
	switch {
	case name == "." || name == "..":
		return "no topic can have this name"
	case len(name) > most:
		return fmt.Sprintf("%d characters, a topic name has at most %d", len(name), most)
	case strings.ContainsFunc(name, other):
		return "a topic name has only ASCII letters, digits, '.', '_' and '-'"
	}
	return ""
}

// instanceID returns the instance ID.
func (o options) instanceID() (string, error) {
	if o.instance != "" {
		return o.instance, nil
	}
	if id := os.Getenv("WEIR_INSTANCE_ID"); id != "" {
		return id, nil
	}
	host, err := os.Hostname()
	if err != nil {
		return "", fmt.Errorf("no instance ID, and the host name is unknown (%w): set weir.InstanceID or WEIR_INSTANCE_ID", err)
	}
	return host, nil
}

// maxTransactionTimeout is the brokers' transaction.max.timeout.ms where nobody changed it.
const maxTransactionTimeout = 15 * time.Minute

// commitRoom is what a transaction timeout has to be longer than twice the interval, for
// the checkpoint and the commit at its end.
const commitRoom = time.Second

// deriveTransactionTimeout leaves room for an interval, as many failed checkpoints
// as are tolerated, and a commit, which may take half of it.
func deriveTransactionTimeout(o options) time.Duration {
	open := o.every + time.Duration(o.tolerable+1)*o.checkpointTimeout
	return min(max(2*open, 2*o.every+commitRoom, time.Minute), maxTransactionTimeout)
}

// checkOpen reports triggers that keep a transaction with outputs open for so long that no
// commit of it would ever be in time.
func (o options) checkOpen(timeout time.Duration) (errs []error) {
	for _, t := range []struct {
		option string
		d      time.Duration
	}{{"weir.CheckpointEvery", o.every}, {"weir.MinPause", o.minPause}} {
		if t.d <= 0 || t.d <= (timeout-commitRoom)/2 {
			continue
		}
		have, least, brokers := fmt.Sprintf("weir.TransactionTimeout(%v)", timeout), 2*t.d+commitRoom, ""
		if o.txnTimeout == 0 {
			have = fmt.Sprintf("weir.TransactionTimeout, derived as %v", timeout)
		}
		if least > maxTransactionTimeout {
			brokers = ", which the brokers' transaction.max.timeout.ms has to allow"
		}
		errs = append(errs, fmt.Errorf("%s(%v): the transaction of the outputs would be open for as long, and is committed only in the first half of %s: set it lower, or weir.TransactionTimeout(%v) at least%s", t.option, t.d, have, least, brokers))
	}
	return errs
}

func describeAlignment(cfg processor.Config) string {
	switch {
	case !cfg.Unaligned:
		return "aligned"
	case cfg.AlignmentTimeout == 0:
		return "unaligned"
	}
	return fmt.Sprintf("unaligned after %v", cfg.AlignmentTimeout)
}

func describeTrigger(t barrier.TriggerConfig) string {
	var parts []string
	if t.Every > 0 {
		parts = append(parts, "every "+t.Every.String())
	}
	if t.Records > 0 {
		parts = append(parts, fmt.Sprintf("after %d records", t.Records))
	}
	if t.Bytes > 0 {
		parts = append(parts, fmt.Sprintf("after %d bytes", t.Bytes))
	}
	if t.MinPause > 0 {
		parts = append(parts, "at least "+t.MinPause.String()+" apart")
	}
	return strings.Join(parts, ", ")
}
