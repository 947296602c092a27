package conformance

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"go.uber.org/zap"

	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/record"
	"github.com/weirstream/weir/sink"
)

// operator is the ID of the sink under test.
const operator = "sink"

// writerEnv is what the suites give a writer.
type writerEnv struct {
	ctx      context.Context
	operator string
	subtask  int
	meta     record.Meta
	out      *outbox
	applier  sink.Applier
}

func (e *writerEnv) Operator() string         { return e.operator }
func (e *writerEnv) Subtask() int             { return e.subtask }
func (e *writerEnv) Meta() record.Meta        { return e.meta }
func (e *writerEnv) Output() sink.Output      { return e.out }
func (e *writerEnv) Context() context.Context { return e.ctx }
func (e *writerEnv) Applier() sink.Applier    { return e.applier }

func newWriterEnv(ctx context.Context, operator string, subtask int, a sink.Applier) *writerEnv {
	return &writerEnv{ctx: ctx, operator: operator, subtask: subtask, out: &outbox{}, applier: a,
		meta: record.MetaOf(&kgo.Record{Topic: "input", Key: []byte("k"), Value: []byte("v"), Timestamp: time.UnixMilli(1767225600000)})}
}

// outbox keeps what was produced, and how it was at that moment.
type outbox struct{ produced, asProduced []*kgo.Record }

func (o *outbox) Produce(r *kgo.Record) {
	o.produced = append(o.produced, r)
	o.asProduced = append(o.asProduced, copyOf(r))
}

func copyOf(r *kgo.Record) *kgo.Record {
	c := &kgo.Record{Topic: r.Topic, Partition: r.Partition, Timestamp: r.Timestamp, Key: bytes.Clone(r.Key), Value: bytes.Clone(r.Value)}
	for _, h := range r.Headers {
		c.Headers = append(c.Headers, kgo.RecordHeader{Key: h.Key, Value: bytes.Clone(h.Value)})
	}
	return c
}

// unchanged fails the test if a record changed since it was produced.
func (o *outbox) unchanged(t testing.TB) {
	t.Helper()
	for i, r := range o.produced {
		was := o.asProduced[i]
		same := r.Topic == was.Topic && r.Timestamp.Equal(was.Timestamp) && bytes.Equal(r.Key, was.Key) && bytes.Equal(r.Value, was.Value) &&
			slices.EqualFunc(r.Headers, was.Headers, func(a, b kgo.RecordHeader) bool { return a.Key == b.Key && bytes.Equal(a.Value, b.Value) })
		if !same {
			t.Fatalf("record %d to topic %q was touched after it was produced: it was %q: %q, and is %q: %q", i, was.Topic, was.Key, was.Value, r.Key, r.Value)
		}
	}
}

// applierEnv is what the suites give an applier.
type applierEnv struct {
	ctx           context.Context
	app, operator string
	lineage       string
	instance      string
}

// instance is the name of the nth process. Each takes over from one with another name, and
// some had their name before.
func instance(n int) string { return fmt.Sprint("instance-", n%2) }

func (e applierEnv) App() string              { return e.app }
func (e applierEnv) Operator() string         { return e.operator }
func (e applierEnv) Instance() string         { return e.instance }
func (e applierEnv) Lineage() string          { return e.lineage }
func (e applierEnv) Context() context.Context { return e.ctx }
func (e applierEnv) Logger() *zap.Logger      { return zap.NewNop() }
func (e applierEnv) Applied(event.Applied)    {}

func (e applierEnv) Confirm(context.Context) error { return nil }
