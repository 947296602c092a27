package weirtest

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/inside"
	"github.com/weirstream/weir/processor"
)

// Patience is how long the functions of a [Broker] wait for what has to happen before they
// fail the test.
const Patience = 30 * time.Second

// Broker is a Kafka broker in the test's process, with a checkpoint store in memory for the
// apps that run on it. Any goroutine may use it.
type Broker struct {
	t       TB
	cluster *kfake.Cluster
	store   checkpoint.Store

	mu  sync.Mutex
	run *Run // the last one that was started; nil: none
}

// StartBroker starts a broker with topics of that many partitions. It ends with the test.
func StartBroker(t TB, partitions int32, topics ...string) *Broker {
	t.Helper()
	opts := []kfake.Opt{kfake.NumBrokers(1)}
	if len(topics) > 0 {
		opts = append(opts, kfake.SeedTopics(partitions, topics...))
	}
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		t.Fatalf("weirtest: starting a broker: %v", err)
		return nil
	}
	t.Cleanup(c.Close)
	return &Broker{t: t, cluster: c, store: checkpoint.NewMem()}
}

// Addrs are the addresses of the broker, for weir.Brokers and other clients.
func (b *Broker) Addrs() []string { return b.cluster.ListenAddrs() }

// CreateTopic adds a topic.
func (b *Broker) CreateTopic(partitions int32, name string) {
	b.t.Helper()
	b.with(func(ctx context.Context, cl *kgo.Client) error {
		_, err := kadm.NewClient(cl).CreateTopic(ctx, partitions, 1, nil, name)
		return err
	}, "creating topic %s", name)
}

// with does something with a client.
func (b *Broker) with(f func(ctx context.Context, cl *kgo.Client) error, what string, args ...any) bool {
	b.t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs()...), kgo.DisableClientMetrics())
	if err == nil {
		defer cl.Close()
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		err = f(ctx, cl)
	}
	if err != nil {
		b.t.Fatalf("weirtest: %s: %v", fmt.Sprintf(what, args...), err)
	}
	return err == nil
}

// ProduceRecords writes records to their topics and waits until the broker has them. Those
// of one partition keep their order.
func (b *Broker) ProduceRecords(records ...*kgo.Record) {
	b.t.Helper()
	b.with(func(ctx context.Context, cl *kgo.Client) error {
		return cl.ProduceSync(ctx, records...).FirstErr()
	}, "producing %d records", len(records))
}

// Produce writes values with their keys to a topic, as [Broker.ProduceRecords] does.
func Produce[K, V any](b *Broker, topic string, keys codec.Codec[K], values codec.Codec[V], records ...weir.KV[K, V]) {
	b.t.Helper()
	var rs []*kgo.Record
	for _, r := range records {
		k, err := keys.Append(nil, r.Key)
		if err != nil {
			b.t.Fatalf("weirtest: encoding key %+v for topic %s: %v", r.Key, topic, err)
			return
		}
		v, err := values.Append(nil, r.Value)
		if err != nil {
			b.t.Fatalf("weirtest: encoding value %+v for topic %s: %v", r.Value, topic, err)
			return
		}
		rs = append(rs, &kgo.Record{Topic: topic, Key: k, Value: v})
	}
	b.ProduceRecords(rs...)
}

// ProduceValues writes values without keys to a topic, as [Broker.ProduceRecords] does.
func ProduceValues[V any](b *Broker, topic string, values codec.Codec[V], vs ...V) {
	b.t.Helper()
	var rs []*kgo.Record
	for _, v := range vs {
		enc, err := values.Append(nil, v)
		if err != nil {
			b.t.Fatalf("weirtest: encoding value %+v for topic %s: %v", v, topic, err)
			return
		}
		rs = append(rs, &kgo.Record{Topic: topic, Value: enc})
	}
	b.ProduceRecords(rs...)
}

// Records returns what a read_committed reader finds in a topic now: by partition, in the
// order of offsets.
func (b *Broker) Records(topic string) (rs []*kgo.Record) {
	b.t.Helper()
	b.with(func(ctx context.Context, cl *kgo.Client) error {
		adm := kadm.NewClient(cl)
		ends, err := adm.ListCommittedOffsets(ctx, topic)
		if err == nil {
			err = ends.Error()
		}
		if err != nil {
			return err
		}
		starts, err := adm.ListStartOffsets(ctx, topic)
		if err != nil {
			return err
		}
		details, err := adm.ListTopics(ctx, topic)
		if err != nil {
			return err
		}
		for _, end := range ends.Offsets().Sorted() {
			d := details[topic]
			at := partitionReader{cl: cl, topic: topic, id: d.ID, partition: end.Partition, leader: d.Partitions[end.Partition].Leader}
			start, _ := starts.Lookup(topic, end.Partition)
			found, err := at.read(ctx, start.Offset, end.At)
			if err != nil {
				return err
			}
			rs = append(rs, found...)
		}
		return nil
	}, "reading topic %s", topic)
	return rs
}

// partitionReader reads a partition with plain Fetch requests: a consumer would wait for
// ever at an end that is part of an aborted transaction.
type partitionReader struct {
	cl                *kgo.Client
	topic             string
	id                [16]byte
	partition, leader int32
}

// fetchBytes is how much is asked for at once.
const fetchBytes = 1 << 20

// read returns what is committed in [from, to).
func (p partitionReader) read(ctx context.Context, from, to int64) (rs []*kgo.Record, err error) {
	for from < to {
		part := kmsg.NewFetchRequestTopicPartition()
		part.Partition, part.FetchOffset, part.PartitionMaxBytes, part.CurrentLeaderEpoch = p.partition, from, fetchBytes, -1
		t := kmsg.NewFetchRequestTopic()
		t.Topic, t.TopicID, t.Partitions = p.topic, p.id, []kmsg.FetchRequestTopicPartition{part}
		req := kmsg.NewPtrFetchRequest()
		req.ReplicaID, req.MinBytes, req.MaxBytes, req.SessionEpoch = -1, 1, fetchBytes, -1
		req.IsolationLevel = 1 // read committed
		req.Topics = []kmsg.FetchRequestTopic{t}
		resp, err := req.RequestWith(ctx, p.cl.Broker(int(p.leader)))
		if err != nil {
			return nil, err
		}
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
			return nil, err
		}
		if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
			return nil, errors.New("the answer does not name the partition")
		}
		opts := kgo.ProcessFetchPartitionOpts{Topic: p.topic, Partition: p.partition, Offset: from, IsolationLevel: kgo.ReadCommitted()}
		fp, next := kgo.ProcessFetchPartition(opts, &resp.Topics[0].Partitions[0], kgo.DefaultDecompressor(), nil)
		if fp.Err != nil {
			return nil, fp.Err
		}
		for _, r := range fp.Records {
			if r.Offset < to {
				rs = append(rs, r)
			}
		}
		if next <= from {
			break
		}
		from = next
	}
	return rs, nil
}

// Await returns when a read_committed reader finds n records in a topic, or more. That it
// takes longer than [Patience], or that the app that was started last ends with an error
// meanwhile, fails the test.
func (b *Broker) Await(topic string, n int) {
	b.t.Helper()
	seen := 0
	ok := false
	defer func() {
		if !ok {
			b.t.Errorf("weirtest: %d of %d records came to topic %s", seen, n, topic)
		}
	}()
	ok = b.with(func(ctx context.Context, _ *kgo.Client) error {
		reader, err := kgo.NewClient(kgo.SeedBrokers(b.Addrs()...), kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
			kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()), kgo.DisableClientMetrics())
		if err != nil {
			return err
		}
		defer reader.Close()
		ctx, cancel := context.WithCancelCause(ctx)
		defer cancel(nil)
		b.mu.Lock()
		run := b.run
		b.mu.Unlock()
		if run != nil {
			go func() {
				select {
				case <-run.done:
					if run.err != nil && !errors.Is(run.err, processor.ErrKilled) {
						cancel(fmt.Errorf("the app has ended: %w", run.err))
					}
				case <-ctx.Done():
				}
			}()
		}
		for seen < n {
			fs := reader.PollFetches(ctx)
			if err := context.Cause(ctx); err != nil {
				if seen = max(seen, len(b.Records(topic))); seen < n {
					return err
				}
				return nil
			}
			if err := fs.Err(); err != nil {
				return err
			}
			seen += fs.NumRecords()
		}
		return nil
	}, "waiting for %d records in topic %s", n, topic)
}

// Read returns keys and values of [Broker.Records].
func Read[K, V any](b *Broker, topic string, keys codec.Codec[K], values codec.Codec[V]) []weir.KV[K, V] {
	b.t.Helper()
	var kvs []weir.KV[K, V]
	for _, r := range b.Records(topic) {
		k, err := keys.Decode(r.Key)
		if err != nil {
			b.t.Fatalf("weirtest: topic %s, partition %d, offset %d: decoding the key: %v", topic, r.Partition, r.Offset, err)
			return nil
		}
		v, err := values.Decode(r.Value)
		if err != nil {
			b.t.Fatalf("weirtest: topic %s, partition %d, offset %d: decoding the value: %v", topic, r.Partition, r.Offset, err)
			return nil
		}
		kvs = append(kvs, weir.KV[K, V]{Key: k, Value: v})
	}
	return kvs
}

// ReadValues returns the values of [Broker.Records].
func ReadValues[V any](b *Broker, topic string, values codec.Codec[V]) []V {
	b.t.Helper()
	var vs []V
	for _, r := range b.Records(topic) {
		v, err := values.Decode(r.Value)
		if err != nil {
			b.t.Fatalf("weirtest: topic %s, partition %d, offset %d: decoding the value: %v", topic, r.Partition, r.Offset, err)
			return nil
		}
		vs = append(vs, v)
	}
	return vs
}

// Run is one process that runs an app on a [Broker].
type Run struct {
	t    TB
	app  *weir.App
	stop context.CancelFunc
	done chan struct{}
	err  error // after done

	mu        sync.Mutex
	records   int64
	committed chan struct{} // capacity 1
}

// Start runs a topology on the broker in a goroutine, until the test ends or it is stopped.
// All runs of a broker are the same app, [AppName], with the same store and instance ID, so
// one goes on where the one before it ended; there may be one at a time. It takes a
// checkpoint every 20 milliseconds. Options change all of that.
func (b *Broker) Start(topology func(*weir.App), opts ...weir.Option) *Run {
	b.t.Helper()
	r := &Run{t: b.t, done: make(chan struct{}), committed: make(chan struct{}, 1)}
	r.app = weir.New(AppName, append([]weir.Option{
		weir.Brokers(b.Addrs()...), weir.Store(b.store), weir.InstanceID("test"), weir.CheckpointEvery(20 * time.Millisecond),
		weir.Listen(weir.Listener{CheckpointCommitted: r.count}),
	}, opts...)...)
	topology(r.app)
	var ctx context.Context
	ctx, r.stop = context.WithCancel(context.Background())
	go func() {
		defer close(r.done)
		r.err = r.app.Run(ctx)
	}()
	b.mu.Lock()
	b.run = r
	b.mu.Unlock()
	b.t.Cleanup(r.Kill)
	return r
}

// Drain runs a topology over all that is in its input, and returns when that is committed.
func (b *Broker) Drain(topology func(*weir.App), opts ...weir.Option) {
	b.t.Helper()
	r := b.Start(topology, append(slices.Clone(opts), weir.Drain())...)
	if err := r.Wait(); err != nil {
		b.t.Fatalf("%v", err)
	}
}

func (r *Run) count(i event.CheckpointCommitted) {
	r.mu.Lock()
	r.records += i.Records
	r.mu.Unlock()
	select {
	case r.committed <- struct{}{}:
	default:
	}
}

// App is the app that runs, for weir.Query, savepoints and its status.
func (r *Run) App() *weir.App { return r.app }

// Records is how many input records this run has processed and committed.
func (r *Run) Records() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.records
}

// Until returns when ok does so after a commit, or at once if it does now. That the app
// ends, or that it takes longer than [Patience], fails the test.
func (r *Run) Until(ok func() bool) {
	r.t.Helper()
	late := time.After(Patience)
	for !ok() {
		select {
		case <-r.committed:
		case <-r.done:
			if ok() {
				return
			}
			r.t.Fatalf("weirtest: the app has ended, and what was waited for has not come: %v", r.err)
			return
		case <-late:
			r.t.Fatalf("weirtest: what was waited for has not come in %v; %d records are committed", Patience, r.Records())
			return
		}
	}
}

// UntilRecords returns when that many input records are processed and committed in this
// run, as Until does.
func (r *Run) UntilRecords(n int64) {
	r.t.Helper()
	r.Until(func() bool { return r.Records() >= n })
}

// Stop stops the app as a service is stopped, with a last checkpoint. An error of its run
// fails the test.
func (r *Run) Stop() {
	r.t.Helper()
	r.stop()
	if err := r.Wait(); err != nil {
		r.t.Fatalf("%v", err)
	}
}

// Kill ends the app where it stands, as far as a process can be killed from within: nothing
// is committed any more, and it says goodbye to nobody. A transaction that is open stays so.
// It returns when all goroutines of the app have ended.
func (r *Run) Kill() {
	inside.Kill(r.app)
	r.stop()
	<-r.done
}

// Wait returns what weir.App.Run returned, when it has. If that takes longer than
// [Patience] it fails the test.
func (r *Run) Wait() error {
	r.t.Helper()
	select {
	case <-r.done:
	case <-time.After(Patience):
		r.t.Fatalf("weirtest: the app still runs after %v", Patience)
		return fmt.Errorf("weirtest: the app still runs after %v", Patience)
	}
	return r.err
}
