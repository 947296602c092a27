package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
)

// cluster is what the bench itself needs of the brokers, beside the contenders.
type cluster struct {
	addrs []string
	cl    *kgo.Client
	adm   *kadm.Client
}

func connect(addrs []string) (*cluster, error) {
	cl, err := kgo.NewClient(kgo.SeedBrokers(addrs...), kgo.RecordPartitioner(kgo.StickyKeyPartitioner(nil)),
		kgo.MaxBufferedRecords(1<<18))
	if err != nil {
		return nil, err
	}
	return &cluster{addrs: addrs, cl: cl, adm: kadm.NewClient(cl)}, nil
}

func (c *cluster) close() { c.cl.Close() }

func (c *cluster) create(ctx context.Context, topic string, partitions int32) error {
	if _, err := c.adm.CreateTopic(ctx, partitions, -1, nil, topic); err != nil {
		return fmt.Errorf("create topic %s: %w", topic, err)
	}
	return nil
}

func (c *cluster) delete(ctx context.Context, topics ...string) error {
	resp, err := c.adm.DeleteTopics(ctx, topics...)
	if err == nil {
		err = resp.Error()
	}
	if err != nil {
		return fmt.Errorf("delete topics %v: %w", topics, err)
	}
	return nil
}

// input describes the records that a contest reads.
type input struct {
	records    int
	partitions int
	keys       int // distinct
	valueBytes int
	age        time.Duration // of the oldest record's timestamp
}

// seed makes every run of the bench write the same input.
const seed = 20240229

// key is the record key of number i: 16 bytes of text, as an account number or a
// device name would be.
func key(dst []byte, i int) []byte { return fmt.Appendf(dst, "key-%012d", i) }

// load writes the input to a new topic.
func (c *cluster) load(ctx context.Context, topic string, in input) error {
	if err := c.create(ctx, topic, int32(in.partitions)); err != nil {
		return err
	}
	var failed error
	rng := rand.New(rand.NewPCG(seed, uint64(in.records)))
	start := time.Now().Add(-in.age)
	for i := range in.records {
		r := &kgo.Record{Topic: topic, Key: key(nil, rng.IntN(in.keys)), Value: make([]byte, in.valueBytes), Timestamp: start.Add(time.Duration(i) * time.Microsecond)}
		fill(r.Value, rng)
		c.cl.Produce(ctx, r, func(_ *kgo.Record, err error) {
			if err != nil && failed == nil {
				failed = err // promises run one at a time, Flush waits for them
			}
		})
	}
	if err := c.cl.Flush(ctx); err != nil {
		return fmt.Errorf("load topic %s: %w", topic, err)
	}
	if failed != nil {
		return fmt.Errorf("load topic %s: %w", topic, failed)
	}
	return nil
}

// fill writes random text of 16 letters: four bits of a byte are noise, so that a
// compressor finds something to do, as in most payloads.
func fill(b []byte, rng *rand.Rand) {
	var word [8]byte
	for i := range b {
		if i%len(word) == 0 {
			binary.LittleEndian.PutUint64(word[:], rng.Uint64())
		}
		b[i] = 'a' + word[i%len(word)]&15
	}
}

// committed counts the records of a topic that a read_committed reader sees.
func (c *cluster) committed(ctx context.Context, topic string) (int, error) {
	ends, err := c.adm.ListCommittedOffsets(ctx, topic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return 0, fmt.Errorf("count topic %s: %w", topic, err)
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	cl, err := kgo.NewClient(kgo.SeedBrokers(c.addrs...), kgo.ConsumeTopics(topic), kgo.KeepControlRecords(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return 0, err
	}
	defer cl.Close()
	n := 0
	for len(left) > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			return n, fmt.Errorf("count topic %s: %w", topic, err)
		}
		fs.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				n++
			}
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
		})
	}
	return n, nil
}
