package redis_test

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/sink/redis"
	"github.com/weirstream/weir/source"
)

// serviceEnv makes the test binary the service that a test starts and kills.
const serviceEnv = "WEIR_REDIS_TEST_SERVICE"

// topology counts points of players in Redis, by commands that must not be repeated.
func topology(app *weir.App, o redis.Options) {
	in := weir.From(app, "in", source.Values("points", codec.String))
	byPlayer := weir.KeyBy(in, "by-player", func(v string) string { p, _, _ := strings.Cut(v, ":"); return p }, codec.String)
	pass := weir.Process(byPlayer, "pass", func(*weir.Setup) weir.Handler[string, string, string] {
		return weir.OnRecord(func(c *weir.Context[string, string], v string) error {
			c.Emit(v)
			return nil
		})
	})
	weir.To(pass, "board", redis.WriteAhead(o, func(b *redis.Batch, v string) {
		player, n, _ := strings.Cut(v, ":")
		b.RPush("list:"+player, n)
		b.IncrBy("count:"+player, 1)
		b.ZIncrBy("board", 1, player)
		b.LPush("reverse:"+player, n)
	}, redis.BatchSize(20, 1<<20)))
}

// serve is the service.
func serve() int {
	var where []string
	for w := range strings.SplitSeq(os.Getenv(serviceEnv), " ") {
		where = append(where, w)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	app := weir.New("killed", weir.Brokers(where[0]), weir.CheckpointStore("file://"+where[1]), weir.InstanceID("a"),
		weir.CheckpointEvery(20*time.Millisecond), weir.Parallelism(2), weir.KeyGroups(16))
	topology(app, redis.Options{Addrs: []string{where[2]}, Prefix: "killed:", Timeout: time.Second})
	if err := app.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestS34_ServiceAndRedisAreKilledAtRandom: kill -9 of a service, and of Redis, at random
// instants while input flows. Lists are compared element by element.
func TestS34_ServiceAndRedisAreKilledAtRandom(t *testing.T) {
	s := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "everysec")
	const kills, partitions, players = 100, 4, 20
	brokers := broker(t, partitions, "points")
	dir := t.TempDir()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	rng := rand.New(rand.NewPCG(3, 4))
	want := map[string][]string{}
	n := 0
	feed := func(records int) {
		var rs []*kgo.Record
		for range records {
			player := fmt.Sprint("p", rng.IntN(players))
			h := fnv.New32a()
			io.WriteString(h, player)
			rs = append(rs, &kgo.Record{Topic: "points", Partition: int32(h.Sum32() % partitions), Value: fmt.Appendf(nil, "%s:%d", player, n)})
			want[player] = append(want[player], strconv.Itoa(n))
			n++
		}
		if err := cl.ProduceSync(t.Context(), rs...).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	var said strings.Builder
	start := func() *exec.Cmd {
		cmd := exec.Command(self)
		cmd.Env = append(os.Environ(), serviceEnv+"="+strings.Join([]string{brokers[0], dir, s.Addr}, " "))
		said.Reset()
		cmd.Stderr = &said
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	rc := s.Client(t)
	applied := func() int64 {
		var total float64
		for _, z := range rc.ZRangeWithScores(context.Background(), "killed:board", 0, -1).Val() {
			total += z.Score
		}
		return int64(total)
	}
	redisKills := 0
	for k := range kills {
		cmd := start()
		exited := make(chan error, 1)
		go func() { exited <- cmd.Wait() }()
		was := applied()
		feed(50 + rng.IntN(400))
		// Kill it once it moves, or while it starts.
		if rng.IntN(5) > 0 {
			redistest.Eventually(t, time.Minute, func() error {
				select {
				case err := <-exited:
					t.Fatalf("life %d ended by itself: %v\n%s", k, err, said.String())
				default:
				}
				if applied() <= was {
					return errors.New("nothing is applied")
				}
				return nil
			})
		}
		time.Sleep(time.Duration(rng.IntN(60)) * time.Millisecond) // the instant of the kill; nothing waits for it
		if rng.IntN(8) == 0 {
			s.Kill(t)
			redisKills++
			time.Sleep(time.Duration(rng.IntN(100)) * time.Millisecond) // what it does meanwhile
			s.Restart(t)
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		<-exited
	}
	cmd := start()
	exited := make(chan error, 1)
	go func() { exited <- cmd.Wait() }()
	redistest.Eventually(t, time.Minute, func() error {
		select {
		case err := <-exited:
			t.Fatalf("the last life ended by itself: %v\n%s", err, said.String())
		default:
		}
		if a := applied(); a != int64(n) {
			return fmt.Errorf("%d of %d are applied", a, n)
		}
		return nil
	})
	// A clean stop.
	if err := cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := <-exited; err != nil {
		t.Errorf("stop: %v\n%s", err, said.String())
	}
	for p, list := range want {
		compareLists(t, rc, "killed:list:"+p, list)
		reversed := slices.Clone(list)
		slices.Reverse(reversed)
		compareLists(t, rc, "killed:reverse:"+p, reversed)
		if got := rc.Get(t.Context(), "killed:count:"+p).Val(); got != strconv.Itoa(len(list)) {
			t.Errorf("count of %s is %s, want %d", p, got, len(list))
		}
		if got := rc.ZScore(t.Context(), "killed:board", p).Val(); got != float64(len(list)) {
			t.Errorf("score of %s is %v, want %d", p, got, len(list))
		}
	}
	t.Logf("%d kills of the service, %d of Redis, %d records", kills, redisKills, n)
}

func compareLists(t *testing.T, cl *goredis.Client, key string, want []string) {
	t.Helper()
	got, err := cl.LRange(t.Context(), key, 0, -1).Result()
	if err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		t.Errorf("list %s has %d elements, want %d; element %d differs", key, len(got), len(want), i)
	}
}
