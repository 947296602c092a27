package redis_test

import (
	"context"
	"fmt"
	"hash/fnv"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
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
	"github.com/weirstream/weir/internal/containers"
	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/sink/redis"
	"github.com/weirstream/weir/source"
)

// serviceEnv makes the test binary the service that a test starts and kills. Its words are
// the broker, a directory, "server", "cluster", or "keeping" for a server with logs that are
// kept for long, and Redis's addresses.
const serviceEnv = "WEIR_REDIS_TEST_SERVICE"

// unalignedEnv makes the checkpoints of the service unaligned, and its handlers slow, so
// that there is something to overtake. Every other life of a trial has it.
const unalignedEnv = "WEIR_REDIS_TEST_UNALIGNED"

const (
	killedPrefix     = "killed:"
	killedPartitions = 4
	killedPlayers    = 20
)

// topology counts points of players in Redis, by commands that must not be repeated.
func topology(app *weir.App, o redis.Options, opts ...redis.Option) {
	in := weir.From(app, "in", source.Values("points", codec.String))
	byPlayer := weir.KeyBy(in, "by-player", func(v string) string { p, _, _ := strings.Cut(v, ":"); return p }, codec.String, weir.ValueCodec(codec.String))
	slow := os.Getenv(unalignedEnv) != ""
	pass := weir.Process(byPlayer, "pass", func(*weir.Setup) weir.Handler[string, string, string] {
		return weir.OnRecord(func(c *weir.Context[string, string], v string) error {
			if slow {
				time.Sleep(100 * time.Microsecond)
			}
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
	}, append(opts, redis.BatchSize(20, 1<<20))...))
}

// serve is the service.
func serve() int {
	where := strings.Fields(os.Getenv(serviceEnv))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	mode := weir.KafkaOptions() // nothing
	if os.Getenv(unalignedEnv) != "" {
		mode = weir.Unaligned()
	}
	app := weir.New("killed", mode, weir.Brokers(where[0]), weir.CheckpointStore("file://"+where[1]), weir.InstanceID("a"),
		weir.CheckpointEvery(20*time.Millisecond), weir.Parallelism(2), weir.KeyGroups(16),
		weir.Restart(weir.RestartPolicy{Limit: 100, Initial: 10 * time.Millisecond, Max: 100 * time.Millisecond, Quiet: time.Minute}))
	var opts []redis.Option
	if where[2] == "keeping" {
		opts = append(opts, redis.Keep(time.Hour, 1<<30))
	}
	topology(app, redis.Options{Addrs: where[3:], Cluster: where[2] == "cluster", Prefix: killedPrefix, Timeout: time.Second}, opts...)
	if err := app.Run(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// trial runs lives of the service, and has the oracle.
type trial struct {
	t       *testing.T
	binary  string
	brokers []string
	dir     string
	where   []string // "server", "cluster" or "keeping", and addresses
	look    goredis.UniversalClient
	feeder  *kgo.Client
	rng     *rand.Rand

	want map[string][]string // of each player, in order
	n    int
	life int
}

// newTrial makes a trial whose service reaches Redis by where; look is a client that nobody
// breaks.
func newTrial(t *testing.T, look goredis.UniversalClient, where ...string) *trial {
	t.Helper()
	brokers := broker(t, killedPartitions, "points")
	feeder, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(feeder.Close)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return &trial{t: t, binary: self, brokers: brokers, dir: t.TempDir(), where: where, look: look, feeder: feeder,
		rng: rand.New(rand.NewPCG(3, 4)), want: map[string][]string{}}
}

// feed writes records: the points of a player are in one partition.
func (tr *trial) feed(records int) {
	tr.t.Helper()
	var rs []*kgo.Record
	for range records {
		player := fmt.Sprint("p", tr.rng.IntN(killedPlayers))
		h := fnv.New32a()
		io.WriteString(h, player)
		rs = append(rs, &kgo.Record{Topic: "points", Partition: int32(h.Sum32() % killedPartitions), Value: fmt.Appendf(nil, "%s:%d", player, tr.n)})
		tr.want[player] = append(tr.want[player], strconv.Itoa(tr.n))
		tr.n++
	}
	if err := tr.feeder.ProduceSync(tr.t.Context(), rs...).FirstErr(); err != nil {
		tr.t.Fatal(err)
	}
}

// applied is how many records Redis has; -1 if it does not say.
func (tr *trial) applied() int { return appliedOn(tr.look) }

func appliedOn(cl goredis.UniversalClient) int {
	zs, err := cl.ZRangeWithScores(context.Background(), killedPrefix+"board", 0, -1).Result()
	if err != nil {
		return -1
	}
	var total float64
	for _, z := range zs {
		total += z.Score
	}
	return int(total)
}

// process is one life of the service.
type process struct {
	tr     *trial
	cmd    *exec.Cmd
	said   *strings.Builder
	exited chan error
}

func (tr *trial) start(env ...string) *process {
	tr.t.Helper()
	tr.life++
	p := &process{tr: tr, cmd: exec.CommandContext(tr.t.Context(), tr.binary), said: &strings.Builder{}, exited: make(chan error, 1)}
	p.cmd.Env = append(append(os.Environ(), env...), serviceEnv+"="+strings.Join(append([]string{tr.brokers[0], tr.dir}, tr.where...), " "))
	if tr.life%2 == 0 {
		p.cmd.Env = append(p.cmd.Env, unalignedEnv+"=1")
	}
	p.cmd.Stderr = p.said
	if err := p.cmd.Start(); err != nil {
		tr.t.Fatal(err)
	}
	go func() { p.exited <- p.cmd.Wait() }()
	return p
}

// await waits until Redis has more than so many records.
func (p *process) await(more int) {
	p.tr.t.Helper()
	redistest.Eventually(p.tr.t, 2*time.Minute, func() error {
		select {
		case err := <-p.exited:
			p.tr.t.Fatalf("life %d ended by itself: %v\n%s", p.tr.life, err, p.said.String())
		default:
		}
		if a := p.tr.applied(); a <= more {
			return fmt.Errorf("%d of %d are applied", a, p.tr.n)
		}
		return nil
	})
}

// kill is kill -9.
func (p *process) kill() {
	p.tr.t.Helper()
	if err := p.cmd.Process.Kill(); err != nil {
		p.tr.t.Fatal(err)
	}
	<-p.exited
}

// finish waits until everything is applied, stops the service and compares Redis with the
// oracle, lists element by element.
func (p *process) finish() {
	tr := p.tr
	tr.t.Helper()
	tr.feed(10) // so that it is known to run
	p.await(tr.n - 1)
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		tr.t.Fatal(err)
	}
	if err := <-p.exited; err != nil {
		tr.t.Errorf("stop: %v\n%s", err, p.said.String())
	}
	ctx := tr.t.Context()
	for player, list := range tr.want {
		compareLists(tr.t, tr.look, killedPrefix+"list:"+player, list)
		reversed := slices.Clone(list)
		slices.Reverse(reversed)
		compareLists(tr.t, tr.look, killedPrefix+"reverse:"+player, reversed)
		if got, err := tr.look.Get(ctx, killedPrefix+"count:"+player).Result(); err != nil || got != strconv.Itoa(len(list)) {
			tr.t.Errorf("count of %s is %s (%v), want %d", player, got, err, len(list))
		}
		if got, err := tr.look.ZScore(ctx, killedPrefix+"board", player).Result(); err != nil || got != float64(len(list)) {
			tr.t.Errorf("score of %s is %v (%v), want %d", player, got, err, len(list))
		}
	}
}

func compareLists(t *testing.T, cl goredis.UniversalClient, key string, want []string) {
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

// TestS34_ServiceAndRedisAreKilledAtRandom: kill -9 of a service, and of Redis, at random
// instants while input flows, over connections of which a third end in the middle of an
// answer.
func TestS34_ServiceAndRedisAreKilledAtRandom(t *testing.T) {
	s := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "everysec")
	const kills = 100
	tr := newTrial(t, s.Client(t), "server", redistest.StartToxiproxy(t, s.Addr, `{"type": "limit_data", "toxicity": 0.35, "attributes": {"bytes": 4003}}`))
	redisKills := 0
	for range kills {
		p := tr.start()
		was := tr.applied()
		tr.feed(50 + tr.rng.IntN(400))
		// Kill it once it moves, or while it starts.
		if tr.rng.IntN(5) > 0 {
			p.await(was)
		}
		time.Sleep(time.Duration(tr.rng.IntN(60)) * time.Millisecond) // the instant of the kill; nothing waits for it
		if tr.rng.IntN(8) == 0 {
			s.Kill(t)
			redisKills++
			time.Sleep(time.Duration(tr.rng.IntN(100)) * time.Millisecond) // what it does meanwhile
			s.Restart(t)
		}
		p.kill()
	}
	tr.start().finish()
	t.Logf("%d kills of the service, %d of Redis, %d records", kills, redisKills, tr.n)
}

// TestS35_AppOnAClusterIsExactWhileNodesDieAndSlotsMove kills the service and nodes of a
// cluster, and moves slots, while input flows.
func TestS35_AppOnAClusterIsExactWhileNodesDieAndSlotsMove(t *testing.T) {
	nodes := redistest.StartCluster(t, "--appendonly", "yes", "--appendfsync", "everysec")
	where := []string{"cluster"}
	for _, n := range nodes {
		where = append(where, n.Addr)
	}
	look := goredis.NewClusterClient(&goredis.ClusterOptions{Addrs: where[1:]})
	t.Cleanup(func() { look.Close() })
	tr := newTrial(t, look, where...)
	const kills, nodeKills = 24, 3
	died, moved := 0, 0
	for k := range kills {
		p := tr.start()
		was := max(tr.applied(), 0)
		tr.feed(50 + tr.rng.IntN(400))
		if tr.rng.IntN(5) > 0 {
			p.await(was)
		}
		tr.feed(50)
		switch {
		case k%(kills/nodeKills) == 3:
			n := nodes[tr.rng.IntN(len(nodes))]
			n.Kill(t)
			died++
			tr.feed(50)
			n.Restart(t)
			redistest.AwaitCluster(t, nodes)
		case k%2 == 0:
			// The slot that has most to do, and one of a list.
			for _, key := range []string{"board", "list:p1"} {
				if err := redistest.MoveSlot(t.Context(), nodes, killedPrefix+key); err != nil {
					t.Fatal(err)
				}
				moved++
			}
		}
		time.Sleep(time.Duration(tr.rng.IntN(60)) * time.Millisecond) // the instant of the kill; nothing waits for it
		p.kill()
	}
	tr.start().finish()
	t.Logf("%d kills of the service, %d of nodes, %d moves of slots, %d records", kills, died, moved, tr.n)
}

// TestS35_AppSurvivesAFailoverToAReplicaThatLacksTheTail promotes a replica that stopped
// hearing a while ago, below a service that runs, and below one that is killed.
func TestS35_AppSurvivesAFailoverToAReplicaThatLacksTheTail(t *testing.T) {
	primary := redistest.Start(t)
	p := redistest.StartProxy(t, primary.Addr)
	look := goredis.NewClient(&goredis.Options{Addr: p.Addr})
	t.Cleanup(func() { look.Close() })
	tr := newTrial(t, look, "server", p.Addr)
	service := tr.start()
	for round := range 4 {
		replica := redistest.Start(t, "--replicaof", strings.Replace(primary.Addr, ":", " ", 1))
		tr.feed(200)
		service.await(tr.n - 1)
		primary.AwaitReplica(t)
		// From here on the replica hears nothing.
		if err := replica.Client(t).ReplicaOf(t.Context(), "NO", "ONE").Err(); err != nil {
			t.Fatal(err)
		}
		tr.feed(300)
		service.await(tr.n - 1)
		lost := tr.n
		if round%2 == 1 {
			service.kill()
		}
		primary.Kill(t)
		if a := appliedOn(replica.Client(t)); a < 0 || a >= lost {
			t.Fatalf("the replica has %d of %d records: it lacks nothing, the test shows nothing", a, lost)
		}
		p.Retarget(replica.Addr)
		if round%2 == 1 {
			service = tr.start()
		}
		tr.feed(100)
		service.await(tr.n - 1)
		primary = replica
	}
	service.finish()
}

// TestS35_AppFillsARedisThatRestartsEmpty kills a Redis that keeps nothing, below a service
// that runs, and below one that is killed.
func TestS35_AppFillsARedisThatRestartsEmpty(t *testing.T) {
	s := redistest.Start(t)
	tr := newTrial(t, s.Client(t), "keeping", s.Addr)
	service := tr.start()
	for round := range 4 {
		tr.feed(300)
		service.await(tr.n - 1)
		if round%2 == 1 {
			service.kill()
		}
		s.Kill(t)
		tr.feed(50)
		s.Restart(t)
		if round%2 == 1 {
			service = tr.start()
		}
		service.await(tr.n - 1)
	}
	service.finish()
}

// TestS03_ServiceIsKilledRightAfterTheCommit kills a service at the points around the hand
// over to its sinks, again and again, so that completions are lost.
func TestS03_ServiceIsKilledRightAfterTheCommit(t *testing.T) {
	containers.Need(t)
	s := redistest.Start(t)
	tr := newTrial(t, s.Client(t), "server", s.Addr)
	tr.binary = filepath.Join(t.TempDir(), "service")
	if out, err := exec.Command("go", "test", "-tags", "crashpoint", "-ldflags=-w", "-c", "-o", tr.binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for round := range 12 {
		point := []crashpoint.Point{crashpoint.AfterOffsets, crashpoint.AfterCommit, crashpoint.BeforeSinks, crashpoint.AfterSinks}[round%4]
		p := tr.start(fmt.Sprintf("WEIR_CRASHPOINT=%s:%d", point, 1+tr.rng.IntN(3)))
		tick := time.NewTicker(20 * time.Millisecond)
		for alive := true; alive; {
			select {
			case <-p.exited:
				alive = false
			case <-tick.C:
				tr.feed(30)
			}
		}
		tick.Stop()
		if status, ok := p.cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
			t.Fatalf("%s: the service ended otherwise: %v\n%s", point, p.cmd.ProcessState, p.said)
		}
	}
	tr.start().finish()
}
