package sink

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/record"
)

// Sink describes where values of type T go.
type Sink[T any] interface {
	// Check tells what is wrong with the description. It has no side effects.
	Check() error
	// Open makes a writer of one subtask.
	Open(env Env) (Writer[T], error)
	// String says what the sink writes to, for plans and messages.
	String() string
}

// Topics is implemented by sinks that write to topics of the app's own cluster.
// The runtime verifies at start that they exist.
type Topics interface {
	// Topics lists the topics written to.
	Topics() []string
}

// Writer writes the values of one subtask. It is used by one goroutine.
type Writer[T any] interface {
	// Write hands over one value. An error is treated like a handler's error, but for an
	// [Outage].
	Write(v T) error
}

// Env is what a writer may use.
type Env interface {
	// Operator is the sink's operator ID.
	Operator() string
	// Subtask is the index of the subtask within its stage, from 0. Where streams are merged
	// in front of the sink, several of its writers may have the same.
	Subtask() int
	// Meta is the input record being processed. It says nothing in Flush and Log.
	Meta() record.Meta
	// Output takes records for the transaction of the current epoch.
	Output() Output
	// Context ends with the incarnation: for a Write that waits.
	Context() context.Context
	// Applier is the sink's, nil if it is no [WriteAhead]. A Write that waits while too much
	// is to be applied may wait only for what was handed to the applier: what it logs
	// itself is handed over after a barrier that the waiting subtask has yet to see. While
	// it waits, no checkpoint is completed, and one that was begun times out. [Throttler]
	// is the better way.
	Applier() Applier
}

// Output takes records for the Kafka transaction of the current epoch, in order.
type Output interface {
	// Produce hands r over, which must not be touched afterwards. It may block
	// while too many bytes wait for an earlier commit. Failures surface in the
	// commit of the epoch.
	Produce(r *kgo.Record)
}
