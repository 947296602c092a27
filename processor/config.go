package processor

import (
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"github.com/weirstream/weir/barrier"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
)

// Config is everything a job needs to know beside its plan. It is validated by
// whoever makes it.
type Config struct {
	App      string
	Group    string // consumer group
	Instance string // stable name of this process

	Kafka []kgo.Opt // brokers, TLS, SASL, tuning

	KeyGroups   int // fixed for the life of the app's state
	Parallelism int // subtasks of each stage

	Trigger           barrier.TriggerConfig
	CheckpointTimeout time.Duration
	TolerableFailures int
	Unaligned         bool          // checkpoints may be unaligned
	AlignmentTimeout  time.Duration // for how long they are aligned all the same

	Store  checkpoint.Store
	Retain int // committed checkpoints kept

	TakeStore []checkpoint.Owner // from whom the store may be taken over

	BloomBits      int     // of a segment, for each key; 0: the default
	MergeFanIn     int     // segments of one size that become one; 0: the default
	MergeCPU       float64 // share of one core; 0: the default
	MergeBandwidth int64   // bytes a second; 0: no bound

	From SavepointStart // where a job that has committed nothing begins

	Backend pebble.Backend // zero: state is in memory

	HeldBytes int64 // outputs that may wait for an earlier commit, in bytes

	TransactionTimeout time.Duration
	SessionTimeout     time.Duration
	RebalanceTimeout   time.Duration
	HeartbeatInterval  time.Duration

	CommitTopic            string
	CommitTopicReplication int16 // -1: the broker's default

	DeadLetterTopic string
	Skip            map[SkipRecord]bool
	Recovery        Recovery
	AllowDropped    map[string]bool // operator IDs whose state may be dropped

	Drain       bool          // stop at the end offsets seen at start
	StopTimeout time.Duration // for the last checkpoint
	Restart     RestartPolicy

	Clock clock.Clock // nil: the machine's

	Listener event.Listener // every function set
	Logger   *zap.Logger
}

// SkipRecord names one input record.
type SkipRecord struct {
	Partition offsets.Partition
	Offset    int64
}

// ParseSkip parses "topic/partition@offset", several separated by commas.
func ParseSkip(s string) (map[SkipRecord]bool, error) {
	m := map[SkipRecord]bool{}
	for part := range strings.SplitSeq(s, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			continue
		}
		where, off, ok := strings.Cut(part, "@")
		slash := strings.LastIndexByte(where, '/')
		if !ok || slash <= 0 {
			return nil, fmt.Errorf("record %q to skip: want topic/partition@offset, for example payments/3@90211", part)
		}
		p, err := strconv.ParseInt(where[slash+1:], 10, 32)
		if err != nil || p < 0 {
			return nil, fmt.Errorf("record %q to skip: partition %q is no number of 0 or more", part, where[slash+1:])
		}
		o, err := strconv.ParseInt(off, 10, 64)
		if err != nil || o < 0 {
			return nil, fmt.Errorf("record %q to skip: offset %q is no number of 0 or more", part, off)
		}
		m[SkipRecord{offsets.Partition{Topic: where[:slash], Partition: int32(p)}, o}] = true
	}
	return m, nil
}

// RestartPolicy says how often and how fast a failed job begins again.
type RestartPolicy struct {
	Initial time.Duration // delay before the first restart, about
	Max     time.Duration // longest delay; it doubles from Initial, give or take half of it
	// Limit is the number of restarts in a row after which the job gives up; 0
	// means none is allowed, negative means no limit.
	Limit int
	// Quiet is how long an incarnation must live for the count to begin anew.
	Quiet time.Duration
}

// Recovery chooses what to do when the committed offsets and the checkpoint that
// they name disagree. When they agree it has no effect.
type Recovery string

// The ways of recovery.
const (
	// RecoverRefuse stops with an error that says what disagrees.
	RecoverRefuse Recovery = ""
	// RecoverCheckpoint restores the newest checkpoint that a pointer or the commit
	// topic names, and reads from the positions of that checkpoint. It is refused with a
	// [*RecreatedError] if they are those of an input topic that was deleted.
	RecoverCheckpoint Recovery = "checkpoint"
	// RecoverOffsets restores that checkpoint's state, but reads from the offsets
	// that are committed in the group. Without them it reads from the positions of that
	// checkpoint, and an input topic that was created again from its beginning.
	RecoverOffsets Recovery = "offsets"
	// RecoverNothing starts with empty state, from the committed offsets where there
	// are any and from the beginning of the other partitions.
	RecoverNothing Recovery = "nothing"
	// RecoverSavepoint starts from the savepoint that is named for the first start.
	RecoverSavepoint Recovery = "savepoint"
)

// ParseRecovery parses the value of WEIR_RECOVER.
func ParseRecovery(s string) (Recovery, error) {
	switch r := Recovery(s); r {
	case RecoverRefuse, RecoverCheckpoint, RecoverOffsets, RecoverNothing, RecoverSavepoint:
		return r, nil
	}
	return "", fmt.Errorf("recovery %q: want checkpoint, offsets, nothing or savepoint", s)
}

// Plan is the validated topology in the form in which it runs.
type Plan struct {
	Sources *Sources
	// Stages are the keyed stages, each after those that feed it.
	Stages []Stage
	// States lists the state of every operator with its key codec.
	States []DeclaredState
	// WriteAhead lists the write-ahead sinks.
	WriteAhead []WriteAhead
	// OutputTopics are the topics that sinks write to.
	OutputTopics []string
}

// Stage is a group of subtasks behind a hash edge.
type Stage interface {
	StageID() string
	// Build makes the stage's subtasks for one incarnation, after those of every
	// stage that feeds it.
	Build(inc *incarnation) ([]runner, error)
}

// DeclaredState is a state that the topology has.
type DeclaredState struct {
	state.Descriptor
	Stage    string // ID of the keyed stage that the operator belongs to
	KeyCodec string
}
