package sim

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"maps"
	"math/rand/v2"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/clock"
	"github.com/weirstream/weir/internal/localdisk"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/sink/twophase"
	"github.com/weirstream/weir/state/pebble"
)

// realLimit is how long a run may take in real time: a hundred times what it usually
// does. Whoever does something again and again without a pause hardly lets virtual time
// pass.
const realLimit = time.Minute

// Bounds, in virtual time.
const (
	// drainWithin is how long the app may take to be done with its input after the last
	// fault: a session timeout, a transaction timeout with the broker's scan for it, and
	// a few restarts with their delays.
	drainWithin = 5 * time.Minute
	// quiet is how long nothing happens between that and the last input.
	// Its length is that of the longest wait of a client: for a rebalance that the broker
	// has forgotten.
	quiet = 90 * time.Second
	// stopWithin is how long a clean stop may take.
	stopWithin = time.Minute
	// goneWithin is how long what is left of a killed life may take to end.
	goneWithin = 5 * time.Minute
)

// lastFed is how much input there is after all that.
const lastFed = 5

// result is what came of a run.
type result struct {
	violations []string
	history    []string
	took       time.Duration // virtual
	commits    int
	lives      int
	records    int  // of input
	inFlight   int  // checkpoints that captured records in flight
	replays    int  // restores of such
	frozen     bool // given up, see attend
	late       bool // took more than realLimit
}

func (r *result) failed() bool { return len(r.violations) > 0 }

// world is a run of a script.
type world struct {
	sc    script
	begin time.Time
	net   *kfake.VirtualNetwork
	c     *kfake.Cluster
	cl    *kgo.Client // ours, without faults
	adm   *kadm.Client
	disk  *disk // guarded by mu, as the app may get another one
	// receiver is what the write-ahead sink writes to.
	receiver *receiver
	// vault is what the two-phase sink writes to.
	vault *vault
	// registry is what the app looks up in.
	registry *registry

	instances []*instance
	late      atomic.Bool            // the run takes too long in real time
	beat      atomic.Int64           // counts seconds of virtual time
	bubble    atomic.Pointer[string] // its number
	drag      atomic.Int64           // nanoseconds that a handler of any life takes
	healed    chan struct{}          // closed when the faults end
	ending    chan struct{}          // closed when nobody is to be started any more
	refused   chan struct{}          // closed when a life ended as the script expects
	rehoming  chan struct{}          // one may be in it: who moves the app
	homesMade atomic.Int64           // attempts at it
	renamed   atomic.Int64           // how many names the app had before
	edited    atomic.Int64           // how many names its operators had before
	feeds     atomic.Int64           // how many inputs there were before this one
	reads     atomic.Int64           // the same, of what the app is to read
	watcher   *kgo.Client            // reads commit topics
	stopped   sync.Once              // closes refused
	lives     sync.WaitGroup
	watching  sync.WaitGroup

	mu      sync.Mutex
	res     result
	faults  []*kfake.FaultHandle
	input   []fed // in the order in which it was produced
	commits []offsets.CommitRecord
	answers []answer // of queries
	// savepoints are those that are complete.
	savepoints []savepoint
	// watched is up to where commit topics were read.
	watched map[string]int64
	origin  *origin       // that the app goes on from; nil: it never was rehomed
	gate    chan struct{} // no life begins before it is closed; nil: there is none
	noticed chan struct{} // closed when a life ended because the input is another one; nil: it is not
	saved   int           // attempts
	next    int64         // id of the next transfer

	// Of who plays the script.
	partitions int
	accounts   int
	homes      map[string]int32 // partition of each account
	rules      []fedRule        // in the order in which they were produced
	nextRule   int64            // id of the last one
	recreated  bool             // the input is another topic, of which nothing may be processed
}

// fed is an input record that the app has to process.
type fed struct {
	transfer
	partition int32
	offset    int64
	input     int64 // how many inputs there were before
}

// inBubble returns those goroutines of a stack dump that are in a bubble, by its number.
func inBubble(dump, bubble string) (found []string) {
	for g := range strings.SplitSeq(dump, "\n\n") {
		head, _, _ := strings.Cut(g, "\n")
		if !strings.Contains(head, "synctest bubble "+bubble+"]") {
			continue
		}
		// Those of synctest itself wait for the others.
		if !strings.Contains(g, "internal/synctest.Run(") && !strings.Contains(g, "testing/synctest.testingSynctestTest(") {
			found = append(found, g)
		}
	}
	return found
}

func stacks(all bool) string {
	for size := 64 << 10; ; size *= 4 {
		buf := make([]byte, size)
		if n := runtime.Stack(buf, all); n < size || size > 8<<20 {
			return string(buf[:n])
		}
	}
}

// thisBubble returns the number of the bubble that it is called in.
func thisBubble() string {
	head, _, _ := strings.Cut(stacks(false), "\n")
	_, n, _ := strings.Cut(head, "synctest bubble ")
	return strings.TrimSuffix(n, "]:")
}

// processors sets on how many processors a world runs: on one, as nothing takes time in it
// but waiting, and several would mostly look for work; every fourth seed's on all that there
// are, where what is not ordered does happen at the same time.
func processors(seed uint64) (restore func()) {
	if os.Getenv("GOMAXPROCS") != "" || seed%4 == 0 {
		return func() {}
	}
	was := runtime.GOMAXPROCS(1)
	return func() { runtime.GOMAXPROCS(was) }
}

// play runs a script to its end and tells what came of it.
func play(t *testing.T, sc script) *result {
	t.Helper()
	defer processors(sc.seed)()
	w := &world{sc: sc, disk: newDisk(), receiver: newReceiver(), vault: newVault(), registry: &registry{}, partitions: sc.partitions, accounts: sc.accounts, homes: map[string]int32{}, watched: map[string]int64{}}
	w.registry.rng = w.rng("registry", 0)
	done := make(chan struct{})
	go func() {
		defer close(done)
		// A bubble in which nothing can happen any more panics.
		defer func() {
			if p := recover(); p != nil {
				w.violate("the bubble: %v", p)
			}
		}()
		synctest.Test(t, func(t *testing.T) {
			w.rehoming = make(chan struct{}, 1)
			w.begin, w.healed, w.ending, w.refused = time.Now(), make(chan struct{}), make(chan struct{}), make(chan struct{})
			bubble := thisBubble()
			w.bubble.Store(&bubble)
			w.run(t.Context())
		})
	}()
	if w.attend(done) {
		leftBehind.Store(true)
		w.mu.Lock() // it was given up, so nobody holds this for long
		defer w.mu.Unlock()
		res := w.res
		return &res
	}
	return &w.res
}

// attend waits for the end of a run, in real time. It tells whether the run has to be
// given up because virtual time stands still. That happens when a goroutine waits for a
// mutex whose holder waits for time to pass, which the Kafka client lets happen now and
// then: a bubble takes the one who waits for somebody who is at work. Such a run says
// nothing; its goroutines stay as they are.
func (w *world) attend(done <-chan struct{}) (frozen bool) {
	last, since := int64(-1), time.Now()
	// Looks are counted, not time: whoever stops this process for a while wants it to go on.
	for looks := time.Duration(0); ; looks++ {
		select {
		case <-done:
			return false
		case <-time.After(attendEvery):
		}
		if looks*attendEvery > realLimit {
			w.late.Store(true)
		}
		if beat := w.beat.Load(); beat != last {
			last, since = beat, time.Now()
			continue
		}
		bubble := w.bubble.Load()
		if time.Since(since) < frozenAfter || bubble == nil {
			continue
		}
		frozen := true
		for range 3 { // what runs between two looks is not frozen
			waiting, ours := stuck(inBubble(stacks(true), *bubble))
			if ours {
				w.violate("a mutex of ours is held by who waits for something:\n%s", waiting)
				return true
			}
			frozen = frozen && waiting != ""
			time.Sleep(200 * time.Millisecond)
		}
		if frozen {
			w.mu.Lock()
			w.res.frozen = true
			w.mu.Unlock()
			return true
		}
	}
}

// stuck returns a goroutine that waits for a mutex, if none is at work, and whether the
// mutex is one of this module.
func stuck(goroutines []string) (waiting string, ours bool) {
	for _, g := range goroutines {
		head, rest, _ := strings.Cut(g, "\n")
		switch {
		case strings.Contains(head, "(durable)"):
		case strings.Contains(head, "[sync.Mutex.Lock"), strings.Contains(head, "[sync.RWMutex"):
			waiting = g
			for line := range strings.SplitSeq(rest, "\n") {
				if !strings.HasPrefix(line, "\t") && !strings.HasPrefix(line, "sync.") && !strings.HasPrefix(line, "internal/sync.") {
					ours = ours || strings.HasPrefix(line, "github.com/weirstream/")
					break
				}
			}
		default:
			return "", false
		}
	}
	return waiting, ours && waiting != ""
}

// attendEvery is how often somebody looks after a run, in real time.
const attendEvery = 500 * time.Millisecond

// frozenAfter is for how long of real time virtual time must have stood still before
// somebody looks why.
const frozenAfter = 3 * time.Second

func (w *world) rng(what string, n int) *rand.Rand {
	h := uint64(14695981039346656037)
	for _, b := range []byte(fmt.Sprint(what, n)) {
		h = (h ^ uint64(b)) * 1099511628211
	}
	return rand.New(rand.NewPCG(w.sc.seed, h))
}

func (w *world) note(who, format string, args ...any) {
	w.mu.Lock()
	defer w.mu.Unlock()
	text := strings.ReplaceAll(fmt.Sprintf(format, args...), "\n", "\n            ")
	w.res.history = append(w.res.history, fmt.Sprintf("%10.3fs %-3s %s", time.Since(w.begin).Seconds(), who, text))
}

func (w *world) count(f func(*result)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(&w.res)
}

func (w *world) violate(format string, args ...any) {
	w.note("!!", format, args...)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.res.violations = append(w.res.violations, fmt.Sprintf(format, args...))
}

func (w *world) run(ctx context.Context) {
	w.net = &kfake.VirtualNetwork{}
	ports := make([]int, w.sc.brokers)
	for i := range ports {
		ports[i] = 9092 + i
	}
	defer func() {
		// Whatever sleeps for a while may wake up; then nobody is to be left.
		time.Sleep(goneWithin)
		synctest.Wait()
		if left := inBubble(stacks(true), *w.bubble.Load()); len(left) > 1 {
			w.violate("%d goroutines are left:\n%s", len(left), strings.Join(left, "\n\n"))
		}
	}()
	opts := []kfake.Opt{
		kfake.ListenFn(w.net.Listen), kfake.Ports(ports...), kfake.NumBrokers(w.sc.brokers),
		kfake.SeedTopics(int32(w.sc.partitions), inTopic), kfake.SeedTopics(2, entryTopic, largeTopic, bucketTopic, deadTopic, alarmTopic),
	}
	if w.sc.rules {
		opts = append(opts, kfake.SeedTopics(rulePartitions, rulesTopic))
	}
	if w.sc.v1 {
		opts = append(opts, kfake.MaxVersions(kversion.V3_9_0()))
	}
	c, err := kfake.NewCluster(opts...)
	if err != nil {
		w.violate("start the broker: %v", err)
		return
	}
	defer c.Close()
	w.c = c
	w.cl = w.client()
	defer w.cl.Close()
	w.adm = kadm.NewClient(w.cl)
	for i := range w.sc.instances {
		in := &instance{w: w, name: string(rune('a' + i)), index: i, fs: vfs.NewCrashableMem()}
		w.instances = append(w.instances, in)
		w.lives.Go(in.supervise)
	}
	watch, stopWatch := context.WithCancel(ctx)
	w.watching.Go(func() {
		for tick := time.NewTicker(time.Second); watch.Err() == nil; w.beat.Add(1) {
			select {
			case <-tick.C:
			case <-watch.Done():
			}
		}
	})
	w.watcher = w.client(kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.FetchMaxWait(5*time.Second), kgo.ConsumeTopics(appName+commitTopicSuffix), kgo.UnknownTopicRetries(-1), kgo.KeepControlRecords())
	w.watching.Go(func() {
		defer w.watcher.Close()
		w.watchCommits(watch)
	})

	for _, s := range w.sc.steps {
		if w.late.Load() {
			break
		}
		if d := s.at - time.Since(w.begin); d > 0 {
			time.Sleep(d)
		}
		w.apply(ctx, s)
	}
	w.heal()
	fine := false
	if !w.rehomed() {
		w.violate("liveness: %v after the last fault, somebody still moves the app", drainWithin)
	}
	switch {
	case w.sc.expect != "":
		select {
		case <-w.refused:
			w.note("", "it was refused, as expected")
		case <-time.After(drainWithin):
			w.violate("no life ended with an error that says %q", w.sc.expect)
		}
	case w.drained(ctx):
		// What faults left behind, such as a commit that is late already, may still end a
		// life; after that all has to be as if there had been none.
		time.Sleep(quiet)
		w.feed(ctx, step{verb: verbFeed, mode: "plain", n: lastFed})
		fine = w.drained(ctx)
	}
	if fine {
		w.stop()
	} else {
		for _, in := range w.instances {
			in.kill(0)
		}
		close(w.ending)
	}
	gone := make(chan struct{})
	go func() { w.lives.Wait(); close(gone) }()
	select {
	case <-gone:
	case <-time.After(goneWithin):
		w.violate("instances that were stopped or killed still run after %v", goneWithin)
		<-gone
	}
	switch {
	case w.res.failed():
	case fine:
		w.check(ctx)
	default:
		w.checkCommitted(ctx)
	}
	stopWatch()
	w.watching.Wait()
	w.res.took = time.Since(w.begin)
	w.res.commits, w.res.records = len(w.commits), len(w.input)
}

func (w *world) client(opts ...kgo.Opt) *kgo.Client {
	cl, err := kgo.NewClient(append([]kgo.Opt{
		kgo.SeedBrokers(w.c.ListenAddrs()...), kgo.Dialer(w.net.DialContext), kgo.DisableClientMetrics(),
		kgo.FetchMaxWait(100 * time.Millisecond), kgo.MetadataMinAge(100 * time.Millisecond),
	}, opts...)...)
	if err != nil {
		panic(err) // the options are ours
	}
	return cl
}

// feed produces n transfers.
func (w *world) feed(ctx context.Context, s step) {
	opts := []kgo.Opt{kgo.RecordPartitioner(kgo.ManualPartitioner())}
	if s.mode != "plain" {
		opts = append(opts, kgo.TransactionalID("feeder"))
	}
	cl := w.client(opts...)
	defer cl.Close()
	if s.mode != "plain" {
		if err := cl.BeginTransaction(); err != nil {
			w.violate("feed: %v", err)
			return
		}
	}
	var rs []*kgo.Record
	var ts []transfer
	for range s.n {
		t := transferOf(w.sc.seed, w.accounts, w.next)
		w.next++
		r := t.record()
		r.Partition = w.partitionOf(t.from)
		rs, ts = append(rs, r), append(ts, t)
	}
	err := cl.ProduceSync(ctx, rs...).FirstErr()
	if s.mode != "plain" {
		end := kgo.TryCommit
		if s.mode == "abort" {
			end = kgo.TryAbort
		}
		err = errors.Join(err, cl.EndTransaction(ctx, end))
	}
	if err != nil {
		w.violate("feed: %v", err)
		return
	}
	w.note("", "%v", s)
	if s.mode == "abort" || w.recreated {
		return
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, t := range ts {
		w.input = append(w.input, fed{t, rs[i].Partition, rs[i].Offset, w.feeds.Load()})
	}
}

// partitionOf is where the transfers of an account go. It stays when partitions are added.
func (w *world) partitionOf(account string) int32 {
	p, ok := w.homes[account]
	if !ok {
		h := fnv.New32a()
		_, _ = h.Write([]byte(account))
		p = int32(h.Sum32() % uint32(w.partitions))
		w.homes[account] = p
	}
	return p
}

// grow adds partitions to the input, and accounts that may be in them.
func (w *world) grow(ctx context.Context, n int) {
	rs, err := w.adm.CreatePartitions(ctx, n, inTopic)
	if err == nil {
		err = rs.Error()
	}
	if err != nil {
		w.violate("add partitions: %v", err)
		return
	}
	w.partitions += n
	w.accounts += newAccounts
}

// newAccounts is how many accounts come with partitions that are added.
const newAccounts = 5

// trim deletes input: that which is processed for good, as retention may, or all.
func (w *world) trim(ctx context.Context, mode string) {
	if w.feeds.Load() != w.reads.Load() {
		return // what is committed is not of this input
	}
	var to kadm.Offsets
	if mode == "all" {
		ends, err := w.adm.ListEndOffsets(ctx, inTopic)
		if err != nil {
			w.violate("trim: %v", err)
			return
		}
		to = ends.Offsets()
	} else {
		at, err := w.adm.FetchOffsets(ctx, w.app())
		if err != nil {
			w.note("", "trim: %v", err)
			return
		}
		if to, err = w.lastKept(ctx, at.Offsets()); err != nil {
			w.note("", "trim: %v", err)
			return
		}
	}
	if _, err := w.adm.DeleteRecords(ctx, to); err != nil {
		w.note("", "trim: %v", err)
	}
}

// lastKept lowers those offsets behind which nothing is left. kfake says of a log without
// records that it ended at 0 in an epoch before the present one, wherever it was: a consumer
// believes then that records were lost.
func (w *world) lastKept(ctx context.Context, to kadm.Offsets) (kadm.Offsets, error) {
	ends, err := w.adm.ListEndOffsets(ctx, w.inputs()...)
	if err != nil {
		return nil, err
	}
	to.Each(func(o kadm.Offset) {
		if end, _ := ends.Lookup(o.Topic, o.Partition); o.At > 0 && o.At >= end.Offset {
			o.At = end.Offset - 1
			to[o.Topic][o.Partition] = o
		}
	})
	return to, nil
}

// instance is one that its supervisor starts again whenever it ends.
type instance struct {
	w     *world
	name  string
	index int

	mu   sync.Mutex
	life *life
	n    int // lives so far
	dir  string
	// dirOf is whose dir is.
	dirOf string
	fs    *vfs.MemFS // the local disk, with dir
	// ahead is by how much the machine's clock is ahead, in nanoseconds.
	ahead atomic.Int64
	// inherit are the store faults that the next life finds.
	inherit []*storeRule
}

// life is one process of an instance.
type life struct {
	in    *instance
	n     int
	set   settings
	nic   *nic
	store *handle
	app   *weir.App
	slow  atomic.Int64 // nanoseconds that a handler takes
	// slowly is the bucket of the accounts whose handlers take it; nil: all.
	slowly atomic.Pointer[string]
	clock  *wallClock
	asking atomic.Bool // a query is under way

	ctx    context.Context // of Run
	stop   context.CancelFunc
	done   chan struct{} // closed when Run returned
	err    error         // of Run
	over   chan struct{} // closed when it was killed
	once   sync.Once
	killed atomic.Bool
	asked  atomic.Bool // to stop
	// assigned says that it was given partitions, by any of its incarnations.
	assigned atomic.Bool
	stopAt   atomic.Pointer[step] // in the next pause
	suffix   string               // of its operators
	origin   *origin              // as it began
	input    int64                // how many inputs there were before that which it is to read

	mu    sync.Mutex
	again time.Duration // after what time the next life begins
}

func (l *life) String() string { return fmt.Sprint(l.in.name, l.n) }

// supervise starts a life whenever the last one has ended, as an orchestrator does.
func (in *instance) supervise() {
	rng := in.w.rng("supervisor of "+in.name, 0)
	for {
		l := in.start()
		if l == nil {
			return
		}
		select {
		case <-l.done:
			if !l.killed.Load() {
				in.judge(l)
			}
		case <-l.over:
		}
		l.mu.Lock()
		pause := l.again
		l.mu.Unlock()
		if pause == 0 {
			pause = time.Duration(50+rng.IntN(1000)) * time.Millisecond
		}
		select {
		case <-time.After(pause):
		case <-in.w.ending:
			return
		}
	}
}

// start begins the next life; nil if nobody is to be started any more.
func (in *instance) start() *life {
	w := in.w
	in.mu.Lock()
	defer in.mu.Unlock()
	// Both are looked at under the lock: who stops the present life has closed them.
	for gate := w.closed(); gate != nil; gate = w.closed() {
		in.mu.Unlock()
		select {
		case <-gate:
		case <-w.ending:
		}
		in.mu.Lock()
		if w.isEnding() {
			break
		}
	}
	if w.isEnding() {
		return nil
	}
	w.mu.Lock()
	disk, from := w.disk, w.origin
	w.mu.Unlock()
	set := w.sc.lives[(in.n+in.index)%len(w.sc.lives)]
	l := &life{
		in: in, n: in.n, set: set,
		nic:   newNIC(w.net, w.sc.latency, w.rng("network of "+in.name, in.n)),
		store: newHandle(disk, w.healed, w.sc.latency, w.rng("store of "+in.name, in.n)),
		done:  make(chan struct{}), over: make(chan struct{}), clock: &wallClock{ahead: &in.ahead},
		suffix: w.suffix(), origin: from, input: w.reads.Load(),
	}
	l.store.rules, in.inherit = in.inherit, nil
	in.n++
	w.mu.Lock()
	w.res.lives++
	w.mu.Unlock()
	l.ctx, l.stop = context.WithCancel(context.Background())
	fanIn := 16 // a world sees some dozens of checkpoints
	if w.sc.seed%2 > 0 {
		fanIn = 4
	}
	opts := append(append(set.options(), from.options(l.store)...), weir.MergeFanIn(fanIn),
		weir.Brokers(w.c.ListenAddrs()...), weir.InstanceID(in.name), weir.Store(l.store),
		weir.KafkaOptions(kgo.WithLogger(clientLog{l}), kgo.Dialer(l.nic.dial), kgo.DisableClientMetrics(), kgo.MetadataMaxAge(w.sc.metadataAge())), weir.Listen(l.listener()),
		clock.Option(l.clock).(weir.Option))
	if set.backend != "memory" {
		if set.backend == "fresh" || in.dir == "" || in.dirOf != w.app() { // that of another app is refused
			in.dir, in.dirOf = fmt.Sprint("/", in.n), w.app()
		}
		b := pebble.Dir(in.dir)
		// The least there is in one world of three: state comes and goes with each commit.
		if b.MemoryBytes = 1; w.sc.seed%3 > 0 {
			b.MemoryBytes = 64 << 10
		}
		if w.sc.copying > 0 && !w.isHealed() { // it may be too slow for the transaction timeout
			b.DownloadRate, b.MemoryBytes, b.CacheBytes = int64(w.sc.copying), 1, 1
			b = localdisk.ReadInPlace(b).(pebble.Backend)
		}
		opts = append(opts, weir.StateBackend(localdisk.On(b, in.fs).(pebble.Backend)))
	}
	l.app = weir.New(w.app(), opts...)
	read := func() { l.step("") }
	if w.sc.seed%2 == 0 {
		read = l.store.running // so that a slow process has its records in flight
	}
	at := place{read: read, step: l.step, now: l.clock.Now, receiver: ahead{l}, ballast: w.sc.ballast, slices: w.sc.seed%5 < 2, rules: w.sc.rules, suffix: l.suffix}
	if w.sc.lookup {
		at.registry, at.patience = l.lookUp(), set.timeout/2
	}
	if w.sc.vault {
		at.vault = twophase.To(teller{l}, twophase.MaxPending([]int{1, 2, twophase.DefaultMaxPending}[w.sc.seed%3]))
	}
	ledger(l.app, at)
	in.life = l
	w.note(l.String(), "starts: %v", set)
	w.lives.Go(func() {
		defer close(l.done)
		l.err = l.app.Run(l.ctx)
		if !l.killed.Load() {
			w.note(l.String(), "ends: %v", l.err)
		}
	})
	return l
}

func (in *instance) current() *life {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.life
}

// wallClock is the clock of a machine that somebody may set. What waits for a time waits
// for as long as it took when it began to, as with the clock of Go.
type wallClock struct{ ahead *atomic.Int64 }

// Now implements clock.Clock.
func (c *wallClock) Now() time.Time { return time.Now().Add(time.Duration(c.ahead.Load())) }

// At implements clock.Clock.
func (c *wallClock) At(at time.Time, f func()) func() {
	t := time.AfterFunc(at.Sub(c.Now()), f)
	return func() { t.Stop() }
}

// kill ends the present life at once. It is started again after that time, or after one
// that the supervisor chooses.
func (in *instance) kill(again time.Duration) {
	if l := in.current(); l != nil {
		l.kill(again)
	}
}

// kill ends the process: nothing that it does from here on has an effect.
func (l *life) kill(again time.Duration) {
	l.once.Do(func() {
		l.killed.Store(true)
		l.mu.Lock()
		l.again = again
		l.mu.Unlock()
		l.nic.kill()
		l.store.kill()
		l.in.w.note(l.String(), "is killed")
		l.stop()
		l.slow.Store(0)
		if l.set.backend != "memory" {
			l.in.crash(l)
		}
		close(l.over)
	})
}

// crash leaves the next life the local disk as it is at this moment, what was not synced
// in whole, in part or not at all: what is left of the life that was killed goes on with
// the disk as it was.
func (in *instance) crash(l *life) {
	r := in.w.rng("crash of "+in.name, l.n)
	cfg := vfs.CrashCloneCfg{UnsyncedDataPercent: pick(r, 100, 100, 50, 0), RNG: r}
	in.mu.Lock()
	defer in.mu.Unlock()
	in.fs = in.fs.CrashClone(cfg)
}

// ask asks the process to stop. It is started again after that time.
func (l *life) ask(again time.Duration) {
	l.asked.Store(true)
	l.mu.Lock()
	l.again = again
	l.mu.Unlock()
	l.stop()
}

// stopIn stops the process in a pause before a restart, which is after long. There is
// nothing to end, so it takes no longer than to tell the group.
func (l *life) stopIn(after time.Duration, s step) {
	time.Sleep(min(time.Duration(s.n)*time.Millisecond, after/2))
	if l.killed.Load() {
		return
	}
	l.in.w.note(l.String(), "%v", s)
	l.ask(s.dur)
	select {
	case <-l.done:
	case <-l.over:
	case <-time.After(stopWithin):
		l.in.w.violate("%v: a stop in the pause before a restart is not done after %v", l, stopWithin)
	}
}

// step is called by the handlers.
func (l *life) step(account string) {
	l.store.running()
	if d := l.slow.Load(); d > 0 {
		if b := l.slowly.Load(); b == nil || account != "" && bucketOf(account) == *b {
			time.Sleep(time.Duration(d))
		}
	}
	if d := l.in.w.drag.Load(); d > 0 && account != "" && !l.killed.Load() {
		time.Sleep(time.Duration(d))
	}
}

// freeze stops the process for some time.
func (l *life) freeze(d time.Duration) {
	if l.killed.Load() {
		return
	}
	l.in.w.note(l.String(), "is stopped for %v", d)
	thaw := l.store.freeze()
	release := l.nic.hold(true, true)
	l.in.w.watching.Go(func() {
		time.Sleep(d)
		thaw()
		release()
		l.in.w.note(l.String(), "goes on")
	})
}

func (l *life) listener() weir.Listener {
	note := func(i fmt.Stringer) {
		if !l.killed.Load() {
			l.in.w.note(l.String(), "%v", i)
		}
		l.store.running()
	}
	return weir.Listener{
		CheckpointBegun: func(i event.CheckpointBegun) { l.store.running() },
		CheckpointPersisted: func(i event.CheckpointPersisted) {
			l.in.w.ask(l)
			if i.InFlight > 0 {
				l.in.w.count(func(r *result) { r.inFlight++ })
			}
			l.store.running()
		},
		CheckpointCommitted: func(i event.CheckpointCommitted) {
			if l.origin != nil {
				l.origin.over.Store(true)
			}
			note(i)
		},
		CheckpointFailed: func(i event.CheckpointFailed) { note(i) },
		Restored: func(i event.Restored) {
			if i.InFlight > 0 {
				l.in.w.count(func(r *result) { r.replays++ })
			}
			note(i)
		},
		Restarting: func(i event.Restarting) {
			note(i)
			if s := l.stopAt.Load(); s != nil && i.After > 0 && l.stopAt.CompareAndSwap(s, nil) {
				l.in.w.watching.Go(func() { l.stopIn(i.After, *s) })
			}
		},
		Rebalanced: func(i event.Rebalanced) {
			if len(i.Assigned) > 0 {
				l.assigned.Store(true)
			}
			note(i)
		},
		Fenced: func(i event.Fenced) { note(i) },
	}
}

// ask queries the life's committed state while a checkpoint is being committed.
func (w *world) ask(l *life) {
	if l.killed.Load() || !l.asking.CompareAndSwap(false, true) {
		return
	}
	l.in.w.watching.Go(func() {
		defer l.asking.Store(false)
		time.Sleep(w.sc.latency)
		w.query(l)
	})
}

// query asks for the balance of an account.
func (w *world) query(l *life) {
	if l.killed.Load() {
		return
	}
	ctx, cancel := context.WithTimeout(l.ctx, time.Second)
	defer cancel()
	r, err := weir.Query(ctx, l.app, "book"+l.suffix, "balance", "acc-00", codec.String, sumCodec)
	if err != nil {
		return // it may not be active any more
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.answers = append(w.answers, answer{l.String(), r.Checkpoint, time.Since(w.begin)})
}

// answer is what a query got.
type answer struct {
	who        string
	checkpoint int64
	at         time.Duration
}

// save takes a savepoint.
func (w *world) save(l *life) {
	w.watching.Go(func() {
		w.mu.Lock()
		w.saved++
		name := fmt.Sprint("save-", w.saved)
		w.mu.Unlock()
		ctx, cancel := context.WithTimeout(l.ctx, saveWithin)
		defer cancel()
		if _, err := l.app.Savepoint(ctx, "", name); err != nil {
			w.note(l.String(), "savepoint %s: %v", name, err)
			return
		}
		w.note(l.String(), "savepoint %s is complete", name)
		w.mu.Lock()
		defer w.mu.Unlock()
		w.savepoints = append(w.savepoints, savepoint{name, l.store.disk, l.suffix, l.input})
	})
}

// saveWithin is how long a savepoint may take.
const saveWithin = 30 * time.Second

// heal ends all faults.
func (w *world) heal() {
	w.note("", "all faults end")
	close(w.healed)
	w.receiver.heal()
	w.vault.heal()
	w.store().heal()
	w.registry.heal()
	w.drag.Store(0)
	w.mu.Lock()
	for _, h := range w.faults {
		h.Remove()
	}
	w.faults = nil
	w.mu.Unlock()
	for _, in := range w.instances {
		in.ahead.Store(0)
		in.mu.Lock()
		in.inherit = nil
		in.mu.Unlock()
		if l := in.current(); l != nil {
			l.nic.heal()
			l.store.heal()
			l.slow.Store(0)
			if w.sc.copying > 0 {
				l.kill(0) // the next one has a cache and copies faster, see [instance.start]
			}
		}
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// isEnding tells whether nobody is to be started any more.
func (w *world) isEnding() bool { return isClosed(w.ending) }

// isHealed tells whether all faults have ended.
func (w *world) isHealed() bool { return isClosed(w.healed) }

// drained waits until all input is committed.
func (w *world) drained(ctx context.Context) bool {
	begin, group := time.Now(), w.groupWatch()
	for {
		left, err := w.lag(ctx)
		if err == nil && left == "" {
			w.note("", "all input is committed")
			return true
		}
		if time.Since(begin) > drainWithin {
			w.violate("liveness: %v after the last fault, not all input is committed: %s (%v)", drainWithin, left, err)
			return false
		}
		if w.late.Load() {
			w.mu.Lock()
			w.res.late = true
			w.mu.Unlock()
			w.violate("liveness: the run takes more than %v of real time: something is done again and again", realLimit)
			return false
		}
		if group.loosened() {
			begin = time.Now()
		}
		time.Sleep(askEvery)
	}
}

// askEvery is how often somebody who waits for the app asks how far it is.
const askEvery = 250 * time.Millisecond

// groupWatch sees to it that a rebalance that never ends holds up nobody who waits for the
// app.
type groupWatch struct {
	w     *world
	since time.Time // when no rebalance was under way
	times int
}

func (w *world) groupWatch() *groupWatch { return &groupWatch{w: w, since: time.Now()} }

// loosened is to be called every now and then. It tells whether it had to intervene.
func (g *groupWatch) loosened() bool {
	if info := g.w.c.GroupInfo(g.w.app()); info == nil || info.State != "PreparingRebalance" {
		g.since = time.Now()
		return false
	}
	if time.Since(g.since) <= stuckAfter || g.times == maxLoosened {
		return false
	}
	g.times++
	g.since = time.Now()
	g.w.loosen()
	return true
}

const (
	// stuckAfter is longer than any rebalance may take: the rebalance timeout and the time
	// that a client waits beyond it.
	stuckAfter  = 80 * time.Second
	maxLoosened = 3
)

// loosen gets a group of kfake out of a rebalance that never ends. kfake counts the
// members that wait for a rebalance, and counts one too few after a static member was
// replaced or removed while it waited for the answer to a SyncGroup. From then on every
// rebalance takes the rebalance timeout, and each JoinGroup begins it anew: with three
// members, of which each asks again after its own timeout, it never comes. It does when
// nobody asks for a while.
func (w *world) loosen() {
	w.note("", "the broker doesn't count right who joins: everybody is killed and started again later")
	for _, in := range w.instances {
		in.kill(stuckAfter)
	}
}

// inputs are the topics that the app reads.
func (w *world) inputs() []string {
	if w.sc.rules {
		return []string{inTopic, rulesTopic}
	}
	return []string{inTopic}
}

// lag says which partitions are not processed to their end.
func (w *world) lag(ctx context.Context) (string, error) {
	ends, err := w.adm.ListCommittedOffsets(ctx, w.inputs()...)
	if err != nil {
		return "", err
	}
	at, err := w.adm.FetchOffsets(ctx, w.app())
	if err != nil {
		return "", err
	}
	var left []string
	ends.Each(func(e kadm.ListedOffset) {
		o, ok := at.Lookup(e.Topic, e.Partition)
		if e.Offset > 0 && (!ok || o.At < e.Offset) {
			left = append(left, fmt.Sprintf("%s/%d at %d of %d", e.Topic, e.Partition, o.At, e.Offset))
		}
	})
	slices.Sort(left)
	return strings.Join(left, ", "), nil
}

// stop ends every instance in good order.
func (w *world) stop() {
	close(w.ending)
	for _, in := range w.instances {
		l := in.current()
		l.asked.Store(true)
		w.note(l.String(), "is asked to stop")
		l.stop()
		select {
		case <-l.done:
			if l.err != nil && !l.killed.Load() {
				w.violate("%v: a stop without faults: %v", l, l.err)
			}
		case <-time.After(stopWithin):
			w.violate("%v: a stop without faults is not done after %v", l, stopWithin)
			l.kill(0)
		}
	}
}

// watchCommits follows the commit topic and holds each commit against the one before it.
func (w *world) watchCommits(ctx context.Context) {
	for {
		fs := w.watcher.PollFetches(ctx)
		if ctx.Err() != nil || fs.IsClientClosed() {
			return
		}
		fs.EachRecord(func(r *kgo.Record) {
			w.mu.Lock()
			next := w.watched[r.Topic]
			w.mu.Unlock()
			if r.Offset < next {
				return // a new leader made the client begin anew
			}
			defer func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.watched[r.Topic] = r.Offset + 1
			}()
			if r.Attrs.IsControl() {
				return
			}
			rec, err := offsets.ParseCommitRecord(r.Value)
			if err != nil {
				w.violate("commit record at offset %d: %v", r.Offset, err)
				return
			}
			w.committed(rec)
		})
	}
}

// at describes positions.
func at(ps map[offsets.Partition]offsets.Position) string {
	var texts []string
	for _, p := range slices.SortedFunc(maps.Keys(ps), offsets.Partition.Compare) {
		text := fmt.Sprintf("%d@%d", p.Partition, ps[p].Offset)
		if p.Topic != inTopic {
			text = p.Topic + text
		}
		texts = append(texts, text)
	}
	return strings.Join(texts, " ")
}

// is tells whether the request comes from the instance, as far as it says so.
func (in *instance) is(req kmsg.Request) bool {
	txnID := in.w.app() + "/" + in.name
	same := func(p *string, v string) bool { return p != nil && *p == v }
	switch r := req.(type) {
	case *kmsg.ProduceRequest:
		return same(r.TransactionID, txnID)
	case *kmsg.InitProducerIDRequest:
		return same(r.TransactionalID, txnID)
	case *kmsg.TxnOffsetCommitRequest:
		return r.TransactionalID == txnID
	case *kmsg.AddOffsetsToTxnRequest:
		return r.TransactionalID == txnID
	case *kmsg.EndTxnRequest:
		return r.TransactionalID == txnID
	case *kmsg.HeartbeatRequest:
		return same(r.InstanceID, in.name)
	case *kmsg.JoinGroupRequest:
		return same(r.InstanceID, in.name)
	case *kmsg.SyncGroupRequest:
		return same(r.InstanceID, in.name)
	case *kmsg.OffsetFetchRequest:
		return r.RequireStable
	}
	return false
}

// clientLog puts what a Kafka client has to say into the history, see -client.
type clientLog struct{ l *life }

// Level implements kgo.Logger.
func (c clientLog) Level() kgo.LogLevel {
	if *clientFlag != c.l.in.name {
		return kgo.LogLevelNone
	}
	return kgo.LogLevelDebug
}

// Log implements kgo.Logger.
func (c clientLog) Log(_ kgo.LogLevel, msg string, pairs ...any) {
	c.l.in.w.note(c.l.String(), "  %s", strings.TrimSpace(fmt.Sprintln(append([]any{msg}, pairs...)...)))
}
