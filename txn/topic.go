package txn

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir/offsets"
)

const (
	// commitSegmentBytes and commitSegmentTime keep the topic short: only closed
	// segments are compacted, and a reader goes through what is left.
	commitSegmentBytes = 4 << 20
	commitSegmentTime  = time.Hour

	// lookBack is how many offsets before the end LastCommitRecord reads first. Every
	// transaction has a record and a marker.
	lookBack = 100

	// fetchBytes is how much one request reads. A larger record is still returned.
	fetchBytes = 1 << 20

	// lookBackFactor is by how much it reads further where that found nothing.
	lookBackFactor = 10
)

// EnsureCommitTopic creates the compacted topic that mirrors an app's commits, with
// one partition, or verifies that the topic that exists is compacted: retention
// would delete the only trace of a group whose offsets expired. replication -1 is
// the broker's default. It returns when a broker has heard of the topic: the controller
// answers before.
func EnsureCommitTopic(ctx context.Context, adm *kadm.Client, topic string, replication int16) error {
	compact := "compact"
	config := map[string]*string{
		"cleanup.policy": &compact,
		"segment.bytes":  kadm.StringPtr(fmt.Sprint(commitSegmentBytes)),
		"segment.ms":     kadm.StringPtr(fmt.Sprint(commitSegmentTime.Milliseconds())),
	}
	_, err := adm.CreateTopic(ctx, 1, replication, config, topic)
	switch {
	case err == nil:
		return untilHeard(ctx, func() error { return heardOf(ctx, adm, topic) }, nil)
	case errors.Is(err, kerr.TopicAlreadyExists): // maybe since just now, by another instance
		return untilHeard(ctx, func() error { return verifyCompacted(ctx, adm, topic) }, nil)
	case errors.Is(err, kerr.TopicAuthorizationFailed), errors.Is(err, kerr.ClusterAuthorizationFailed):
		// It may have been made for us.
		details, lerr := adm.ListTopics(ctx, topic)
		if lerr == nil && details.Has(topic) && details[topic].Err == nil {
			return verifyCompacted(ctx, adm, topic)
		}
		return fmt.Errorf("create commit topic %s: %w: grant Create on it to this principal, or create it: kafka-topics --create --topic %s --partitions 1 --config cleanup.policy=compact", topic, err, topic)
	}
	return fmt.Errorf("create commit topic %s with replication factor %d: %w", topic, replication, err)
}

// heardOf asks a broker for a topic that was just made. It says only whether the broker
// knows it; whoever uses the topic is told the rest.
func heardOf(ctx context.Context, adm *kadm.Client, topic string) error {
	details, err := adm.ListTopics(kadm.WithAuthorizedOps(ctx), topic) // with these a broker is asked, and not what is remembered
	if err != nil {
		return fmt.Errorf("ask for commit topic %s: %w", topic, err)
	}
	if errors.Is(details[topic].Err, kerr.UnknownTopicOrPartition) {
		return fmt.Errorf("commit topic %s was created, and the brokers don't know it: %w", topic, kerr.UnknownTopicOrPartition)
	}
	return nil
}

func verifyCompacted(ctx context.Context, adm *kadm.Client, topic string) error {
	configs, err := adm.DescribeTopicConfigs(ctx, topic)
	if err != nil {
		return fmt.Errorf("describe commit topic %s: %w", topic, err)
	}
	rc, err := configs.On(topic, nil)
	if err == nil {
		err = rc.Err
	}
	if errors.Is(err, kerr.TopicAuthorizationFailed) {
		return nil // not ours to know; whoever created it without us was told how
	}
	if err != nil {
		return fmt.Errorf("describe commit topic %s: %w", topic, err)
	}
	i := slices.IndexFunc(rc.Configs, func(c kadm.Config) bool { return c.Key == "cleanup.policy" })
	if i < 0 {
		return nil
	}
	if policy := rc.Configs[i].MaybeValue(); policy != "compact" {
		return fmt.Errorf("commit topic %s has cleanup.policy=%s, which deletes the last commit: set it with kafka-configs --alter --entity-type topics --entity-name %s --add-config cleanup.policy=compact", topic, policy, topic)
	}
	return nil
}

// LastCommitRecord returns the newest committed commit record of app in any partition of the
// topic, and false if the topic has none or doesn't exist. It reads backwards from the end: few records
// usually, all of a topic only where app has none. opts are the user's client
// options; a client of its own is opened and closed.
func LastCommitRecord(ctx context.Context, opts []kgo.Opt, topic, app string) (offsets.CommitRecord, bool, error) {
	c, err := OpenCommits(opts, topic)
	if err != nil {
		return offsets.CommitRecord{}, false, err
	}
	defer c.Close()
	return c.Last(ctx, app)
}

// Commits reads a commit topic for those who look at it again and again. Its methods may
// not be called at the same time.
type Commits struct {
	cl    *kgo.Client
	topic string
}

// OpenCommits opens a client of its own with the user's client options. Nothing is asked
// of the brokers yet.
func OpenCommits(opts []kgo.Opt, topic string) (*Commits, error) {
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		return nil, fmt.Errorf("read commit topic %s: %w", topic, err)
	}
	return &Commits{cl, topic}, nil
}

// Close closes the client.
func (c *Commits) Close() { c.cl.Close() }

// Last is what [LastCommitRecord] returns.
func (c *Commits) Last(ctx context.Context, app string) (offsets.CommitRecord, bool, error) {
	rec, ok, err := c.last(ctx, app)
	if err != nil {
		err = fmt.Errorf("read last commit record of app %q from %s: %w", app, c.topic, err)
	}
	return rec, ok, err
}

// last takes the newest of all partitions: there is one, unless somebody else made the
// topic, or added some. Then those records of the app that came before are elsewhere.
func (c *Commits) last(ctx context.Context, app string) (last offsets.CommitRecord, found bool, err error) {
	partitions, err := c.partitions(ctx)
	if err != nil {
		return offsets.CommitRecord{}, false, err
	}
	for _, p := range partitions {
		rec, ok, err := p.last(ctx, app)
		if err != nil {
			return offsets.CommitRecord{}, false, fmt.Errorf("partition %d: %w", p.number, err)
		}
		if ok && (!found || rec.Manifest.Checkpoint > last.Manifest.Checkpoint) {
			last, found = rec, true
		}
	}
	return last, found, nil
}

// partitions finds the partitions of the topic; none if it doesn't exist.
func (c *Commits) partitions(ctx context.Context) ([]commitPartition, error) {
	adm := kadm.NewClient(c.cl)
	details, err := adm.ListTopics(ctx, c.topic)
	if err != nil {
		return nil, err
	}
	d := details[c.topic]
	if errors.Is(d.Err, kerr.UnknownTopicOrPartition) {
		return nil, nil
	}
	if d.Err != nil {
		return nil, d.Err
	}
	starts, err := adm.ListStartOffsets(ctx, c.topic)
	if err != nil {
		return nil, err
	}
	ends, err := adm.ListCommittedOffsets(ctx, c.topic)
	if err != nil {
		return nil, err
	}
	var ps []commitPartition
	for _, p := range d.Partitions.Sorted() {
		start, _ := starts.Lookup(c.topic, p.Partition)
		end, _ := ends.Lookup(c.topic, p.Partition)
		if err := errors.Join(p.Err, start.Err, end.Err); err != nil {
			return nil, fmt.Errorf("partition %d: %w", p.Partition, err)
		}
		ps = append(ps, commitPartition{cl: c.cl, topic: c.topic, id: d.ID, number: p.Partition, leader: p.Leader, start: start.Offset, end: end.Offset})
	}
	return ps, nil
}

// commitPartition reads a partition of a commit topic with plain Fetch requests: a
// consumer would wait for ever at an end that compaction removed.
type commitPartition struct {
	cl         *kgo.Client
	topic      string
	id         [16]byte
	number     int32
	leader     int32
	start, end int64 // log start and last stable offset
}

func (p *commitPartition) last(ctx context.Context, app string) (offsets.CommitRecord, bool, error) {
	to := p.end
	for back := int64(lookBack); to > p.start; back *= lookBackFactor {
		from := max(p.end-back, p.start)
		value, err := p.lastValue(ctx, app, from, to)
		if err != nil {
			return offsets.CommitRecord{}, false, err
		}
		if value != nil {
			rec, err := offsets.ParseCommitRecord(value)
			return rec, err == nil, err
		}
		to = from
	}
	return offsets.CommitRecord{}, false, nil
}

// lastValue returns the value of the last committed record with key in [from, to),
// or nil.
func (p *commitPartition) lastValue(ctx context.Context, key string, from, to int64) ([]byte, error) {
	var value []byte
	for from < to {
		fp, next, err := p.fetch(ctx, from)
		if err != nil {
			return nil, err
		}
		for _, r := range fp.Records {
			if r.Offset < to && string(r.Key) == key && r.Value != nil {
				value = slices.Clone(r.Value)
			}
		}
		if next <= from {
			break // compaction left nothing up to the end
		}
		from = next
	}
	return value, nil
}

func (p *commitPartition) fetch(ctx context.Context, from int64) (kgo.FetchPartition, int64, error) {
	req := kmsg.NewPtrFetchRequest()
	req.ReplicaID = -1
	req.MaxWaitMillis = 0
	req.MinBytes = 1
	req.MaxBytes = fetchBytes
	req.IsolationLevel = 1 // read committed
	req.SessionEpoch = -1  // no fetch session
	t := kmsg.NewFetchRequestTopic()
	t.Topic, t.TopicID = p.topic, p.id
	rp := kmsg.NewFetchRequestTopicPartition()
	rp.Partition = p.number
	rp.FetchOffset = from
	rp.PartitionMaxBytes = fetchBytes
	rp.CurrentLeaderEpoch = -1
	t.Partitions = append(t.Partitions, rp)
	req.Topics = append(req.Topics, t)
	var resp *kmsg.FetchResponse
	for {
		raw, err := p.cl.Broker(int(p.leader)).RetriableRequest(ctx, req)
		if err != nil {
			return kgo.FetchPartition{}, 0, err
		}
		resp = raw.(*kmsg.FetchResponse)
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
			return kgo.FetchPartition{}, 0, err
		}
		if len(resp.Topics) > 0 {
			break
		}
		// A quota is used up: the answer is empty, and says for how long.
		if !sleep(ctx, max(commitBackoff, time.Duration(resp.ThrottleMillis)*time.Millisecond)) {
			return kgo.FetchPartition{}, 0, ctx.Err()
		}
	}
	if len(resp.Topics) != 1 || len(resp.Topics[0].Partitions) != 1 {
		return kgo.FetchPartition{}, 0, errors.New("the answer doesn't name the partition")
	}
	opts := kgo.ProcessFetchPartitionOpts{Topic: p.topic, Partition: p.number, Offset: from, IsolationLevel: kgo.ReadCommitted()}
	fp, next := kgo.ProcessFetchPartition(opts, &resp.Topics[0].Partitions[0], kgo.DefaultDecompressor(), nil)
	return fp, next, fp.Err
}
