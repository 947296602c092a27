package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"strconv"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/sink/redis"
)

const (
	topicPartitions = 4
	players         = 50
	mostPoints      = 100
	kafkaTimeout    = time.Minute
)

// feed writes scores of random players.
func feed(ctx context.Context, brokers []string, n int) error {
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		return err
	}
	defer cl.Close()
	const brokersDefault = -1
	_, err = kadm.NewClient(cl).CreateTopic(ctx, topicPartitions, brokersDefault, nil, scoresTopic)
	if err != nil && !errors.Is(err, kerr.TopicAlreadyExists) {
		return fmt.Errorf("creating topic %s: %w", scoresTopic, err)
	}
	rs := make([]*kgo.Record, n)
	for i := range rs {
		s := Score{Player: fmt.Sprint("player-", rand.IntN(players)), Points: rand.Int64N(mostPoints)}
		value, err := json.Marshal(s)
		if err != nil {
			return err
		}
		rs[i] = &kgo.Record{Topic: scoresTopic, Key: []byte(s.Player), Value: value}
	}
	return cl.ProduceSync(ctx, rs...).FirstErr()
}

// check compares Redis with what the topic says.
func check(ctx context.Context, brokers []string, where redis.Options) error {
	want, n, err := expected(ctx, brokers)
	if err != nil {
		return err
	}
	cl := goredis.NewUniversalClient(&goredis.UniversalOptions{Addrs: where.Addrs, IsClusterMode: where.Cluster})
	defer cl.Close()
	var errs []error
	for player, points := range want {
		var total int64
		var list []string
		for _, p := range points {
			total += p
			list = append(list, strconv.FormatInt(p, 10))
		}
		score, err := cl.ZScore(ctx, where.Prefix+"board", player).Result()
		if err != nil || score != float64(total) {
			errs = append(errs, fmt.Errorf("%s has %v points on the board (%v), want %d", player, score, err, total))
		}
		games, err := cl.Get(ctx, where.Prefix+"{"+player+"}:games").Int()
		if err != nil || games != len(points) {
			errs = append(errs, fmt.Errorf("%s played %d games (%v), want %d", player, games, err, len(points)))
		}
		got, err := cl.LRange(ctx, where.Prefix+"{"+player+"}:points", 0, -1).Result()
		if err != nil || !slices.Equal(got, list) {
			errs = append(errs, fmt.Errorf("the list of %s, %d elements (%v), is not that of its %d scores", player, len(got), err, len(list)))
		}
	}
	if len(errs) > 0 {
		return errors.Join(errs...)
	}
	fmt.Printf("%d scores of %d players: every counter, score and list in Redis is right\n", n, len(want))
	return nil
}

// expected reads the topic to its end: the points of each player, in order.
func expected(ctx context.Context, brokers []string) (want map[string][]int64, n int, err error) {
	ctx, cancel := context.WithTimeout(ctx, kafkaTimeout)
	defer cancel()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(scoresTopic), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		return nil, 0, err
	}
	defer cl.Close()
	ends, err := kadm.NewClient(cl).ListEndOffsets(ctx, scoresTopic)
	if err == nil {
		err = ends.Error()
	}
	if err != nil {
		return nil, 0, fmt.Errorf("end of topic %s: %w", scoresTopic, err)
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	want = map[string][]int64{}
	for len(left) > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			return nil, 0, fmt.Errorf("reading topic %s: %w", scoresTopic, err)
		}
		for _, r := range fs.Records() {
			if r.Offset >= left[r.Partition] {
				continue
			}
			var s Score
			if err := json.Unmarshal(r.Value, &s); err != nil {
				return nil, 0, fmt.Errorf("%s/%d at offset %d: %w", r.Topic, r.Partition, r.Offset, err)
			}
			want[s.Player] = append(want[s.Player], s.Points)
			n++
			if r.Offset == left[r.Partition]-1 {
				delete(left, r.Partition)
			}
		}
	}
	return want, n, nil
}
