package sim

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir/txn"
)

// brokerErrors are what a broker may say to each request, rightly or in passing, of which
// the app has to recover by itself or by being started again.
var brokerErrors = map[kmsg.Key][]*kerr.Error{
	kmsg.Produce:         {kerr.NotLeaderForPartition, kerr.RequestTimedOut, kerr.NotEnoughReplicasAfterAppend, kerr.NotEnoughReplicas, kerr.InvalidProducerEpoch},
	kmsg.InitProducerID:  {kerr.ConcurrentTransactions, kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.CoordinatorNotAvailable},
	kmsg.AddOffsetsToTxn: {kerr.ConcurrentTransactions, kerr.CoordinatorLoadInProgress, kerr.NotCoordinator},
	kmsg.TxnOffsetCommit: {kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.RequestTimedOut, kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.RebalanceInProgress, kerr.ConcurrentTransactions},
	kmsg.EndTxn:          {kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.CoordinatorNotAvailable, kerr.ConcurrentTransactions, kerr.InvalidProducerEpoch, kerr.InvalidTxnState, kerr.UnknownServerError},
	kmsg.Heartbeat:       {kerr.RebalanceInProgress, kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.NotCoordinator, kerr.CoordinatorNotAvailable},
	kmsg.JoinGroup:       {kerr.RebalanceInProgress, kerr.UnknownMemberID, kerr.NotCoordinator, kerr.CoordinatorLoadInProgress},
	kmsg.SyncGroup:       {kerr.RebalanceInProgress, kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.NotCoordinator},
	kmsg.OffsetFetch:     {kerr.CoordinatorLoadInProgress, kerr.NotCoordinator, kerr.UnstableOffsetCommit},
	kmsg.Fetch:           {kerr.NotLeaderForPartition, kerr.KafkaStorageError, kerr.UnknownServerError},
}

func brokerError(key kmsg.Key, name string) *kerr.Error {
	for _, e := range brokerErrors[key] {
		if e.Message == name {
			return e
		}
	}
	return nil
}

var (
	// killedAt are requests at which an instance is killed, stopped or cut off: those of a
	// commit most of all.
	killedAt = []kmsg.Key{kmsg.TxnOffsetCommit, kmsg.TxnOffsetCommit, kmsg.EndTxn, kmsg.EndTxn, kmsg.EndTxn, kmsg.Produce,
		kmsg.InitProducerID, kmsg.OffsetFetch, kmsg.JoinGroup, kmsg.SyncGroup, kmsg.Fetch}
	// lostAt are requests that get lost, or whose answers do.
	lostAt   = append(slices.Clone(killedAt), kmsg.Heartbeat, kmsg.FindCoordinator, kmsg.AddOffsetsToTxn)
	storeOps = []string{"put", "put", "put", "get", "list", "delete", "any"}
)

// apply makes a step happen, or waits in the background for what it is to happen at.
func (w *world) apply(ctx context.Context, s step) {
	if s.verb == verbFeed {
		w.feed(ctx, s)
		return
	}
	w.note(s.who, "%v", s)
	switch s.verb {
	case verbReceiver:
		w.receiver.fault(s)
		return
	case verbOutage:
		w.store().outage(s)
		return
	case verbRule:
		w.rule(ctx, s.n)
		return
	case verbVault:
		w.vault.fault(s)
		return
	case verbRegistry:
		w.registry.begin(s)
		return
	case verbMove:
		if s.mode == "leaders" {
			w.c.ShufflePartitionLeaders()
		} else {
			w.c.RehashCoordinators()
		}
		return
	case verbGrow:
		w.grow(ctx, s.n)
		return
	case verbTrim:
		w.trim(ctx, s.mode)
		return
	case verbRecreate:
		if s.mode == "refused" {
			w.recreate(ctx, s)
			return
		}
		w.recreated = true
		_, err := w.adm.DeleteTopics(ctx, inTopic)
		if err == nil {
			_, err = w.adm.CreateTopics(ctx, int32(w.partitions), 1, nil, inTopic)
		}
		if err != nil {
			w.violate("recreate the input: %v", err)
		}
		return
	case verbRehome:
		w.rehoming <- struct{}{}
		w.watching.Go(func() {
			defer func() { <-w.rehoming }()
			w.rehome(ctx, s)
		})
		return
	case verbDrag:
		w.drag.Store(int64(time.Duration(s.n) * time.Millisecond))
		w.watching.Go(func() {
			select {
			case <-time.After(s.dur):
			case <-w.healed:
			}
			w.drag.Store(0)
		})
		return
	case verbStorm:
		w.watching.Go(func() {
			for i := range s.n {
				w.evict(ctx, w.instances[i%len(w.instances)])
				select {
				case <-time.After(s.dur):
				case <-w.healed:
					return
				}
			}
		})
		return
	}
	i := slices.IndexFunc(w.instances, func(in *instance) bool { return in.name == s.who || s.who == active && in == w.active() })
	if i < 0 {
		w.violate("%v: no such instance", s)
		return
	}
	in := w.instances[i]
	l := in.current()
	if l == nil {
		return // it has not begun
	}
	key, isRequest := requestKey(s.on)
	n := max(1, s.n)
	switch s.verb {
	case verbBroker, verbFlaky:
		e := brokerError(key, s.mode)
		if e == nil {
			w.violate("%v: no such error", s)
			return
		}
		if s.verb == verbFlaky {
			rng := w.rng("flaky", int(s.at))
			h := w.fault(kfake.Fault{Keys: []kmsg.Key{key}, Err: e, Count: -1, TopLevel: topLevel(key), When: func(r kmsg.Request) bool {
				return in.is(r) && rng.IntN(100) < s.n
			}})
			w.watching.Go(func() {
				select {
				case <-time.After(s.dur):
				case <-w.healed:
				}
				h.Remove()
			})
			return
		}
		w.fault(kfake.Fault{Keys: []kmsg.Key{key}, Err: e, Count: n, TopLevel: topLevel(key), When: in.is})
	case verbKill:
		l.at(s, func() { l.kill(s.dur) })
	case verbPause:
		l.at(s, func() { l.freeze(s.dur) })
	case verbCut:
		l.at(s, func() { l.cut(s.mode, s.dur) })
	case verbEvict:
		l.at(s, func() {
			w.watching.Go(func() { w.evict(ctx, in) })
		})
	case verbStop:
		if s.on == "restart" {
			l.stopAt.Store(&s)
			return
		}
		l.ask(s.dur)
	case verbLose, verbDrop:
		if isRequest {
			l.nic.addRule(&rule{key: key, answer: s.verb == verbLose, left: n, act: func(*wire) bool {
				w.note(l.String(), "%v", s)
				return false
			}})
		}
	case verbDelay:
		if isRequest {
			l.nic.addRule(&rule{key: key, answer: s.mode == "answer", left: n, act: func(*wire) bool {
				w.note(l.String(), "%v", s)
				select {
				case <-time.After(s.dur):
				case <-w.healed:
				}
				return true
			}})
		}
	case verbSlow:
		l.slowly.Store(nil)
		if s.mode == "one" {
			bucket := fmt.Sprint(int(s.at/time.Millisecond) % min(10, w.accounts))
			l.slowly.Store(&bucket)
		}
		l.slow.Store(int64(time.Duration(n) * time.Millisecond))
		w.watching.Go(func() {
			time.Sleep(s.dur)
			l.slow.Store(0)
		})
	case verbSave:
		w.save(l)
	case verbFence:
		l.at(s, func() { w.watching.Go(func() { w.fence(ctx, in) }) })
	case verbClock:
		d := s.dur
		if s.mode == "back" {
			d = -d
		}
		in.ahead.Add(int64(d))
	case verbStore:
		l.store.addRule(&storeRule{op: s.on, mode: s.mode, left: n, dur: s.dur, act: func() {}})
		if s.mode == "flip" { // most is read when a life begins
			in.mu.Lock()
			in.inherit = append(in.inherit, &storeRule{op: s.on, mode: s.mode, skip: int(w.sc.seed % 4), left: n})
			in.mu.Unlock()
		}
	default:
		w.violate("%v: no such verb", s)
	}
}

// topLevel tells whether the answer to a request has an error of its own.
func topLevel(key kmsg.Key) bool {
	switch key {
	case kmsg.InitProducerID, kmsg.EndTxn, kmsg.Heartbeat, kmsg.JoinGroup, kmsg.SyncGroup, kmsg.AddOffsetsToTxn:
		return true
	}
	return false
}

func (w *world) fault(f kfake.Fault) *kfake.FaultHandle {
	h := w.c.Fault(f)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.faults = append(w.faults, h)
	return h
}

// evict makes the group take an instance for gone.
func (w *world) evict(ctx context.Context, in *instance) {
	if _, err := w.adm.LeaveGroup(ctx, kadm.LeaveGroup(w.app()).InstanceIDs(in.name)); err != nil {
		w.note(in.name, "evict: %v", err)
	}
}

// fence takes over the transactional id of an instance, as a process would that was given
// the same name by mistake and ended.
func (w *world) fence(ctx context.Context, in *instance) {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = kmsg.StringPtr(txn.TransactionalID(w.app(), in.name))
	req.TransactionTimeoutMillis = 10_000
	if _, err := req.RequestWith(ctx, w.cl); err != nil {
		w.note(in.name, "fence: %v", err)
	}
}

// active stands for the instance that committed last.
const active = "active"

func (w *world) active() *instance {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, in := range w.instances {
		if n := len(w.commits); n > 0 && w.commits[n-1].Instance == in.name {
			return in
		}
	}
	return w.instances[0]
}

// at calls do now, or at the n-th request or store operation that s names.
func (l *life) at(s step, do func()) {
	if s.on == "" {
		do()
		return
	}
	noted := func() {
		l.in.w.note(l.String(), "%v", s)
		// It takes no time, unless state is read where it is: then this may be in the midst of
		// a read that the query would wait for.
		if l.set.backend != "memory" && l.in.w.sc.copying == 0 {
			l.in.w.query(l)
		}
		do()
	}
	if key, ok := requestKey(s.on); ok {
		answer := s.mode == "after" || s.mode == "deaf"
		l.nic.addRule(&rule{key: key, answer: answer, skip: max(1, s.n) - 1, left: 1, act: func(*wire) bool {
			noted()
			// A request of one that was killed before it wrote it doesn't get out, an
			// answer doesn't get in; one that was only stopped, or is deaf for a while,
			// finds both later.
			return s.verb == verbPause || s.verb == verbEvict || s.verb == verbFence || s.mode == "deaf" || s.mode == "mute"
		}})
		return
	}
	mode := "before"
	if s.mode == "after" {
		mode = "after"
	}
	l.store.addRule(&storeRule{op: s.on, mode: mode, skip: max(1, s.n) - 1, left: 1, act: noted})
}

// cut takes the network away for some time.
func (l *life) cut(mode string, d time.Duration) {
	var release func()
	switch mode {
	case "reset":
		release = l.nic.refuses()
	case "deaf":
		release = l.nic.hold(false, true)
	case "mute":
		release = l.nic.hold(true, false)
	default:
		release = l.nic.hold(true, true)
	}
	l.in.w.watching.Go(func() {
		time.Sleep(d)
		release()
		l.in.w.note(l.String(), "has its network again")
	})
}

// generate makes the script of a seed with that many steps.
func generate(seed uint64, steps int) script {
	r := rand.New(rand.NewPCG(seed, 1))
	sc := script{
		seed: seed, brokers: 1 + r.IntN(3), partitions: 1 + r.IntN(4), accounts: 2 + r.IntN(12), instances: 1 + r.IntN(3),
		latency: pick(r, 100*time.Microsecond, time.Millisecond, 5*time.Millisecond), v1: r.IntN(4) == 0,
	}
	align := rand.New(rand.NewPCG(seed, 2))
	for range 4 {
		sc.lives = append(sc.lives, settings{
			parallelism: pick(r, 1, 2, 3, 5), backend: pick(r, "memory", "memory", "pebble", "fresh"),
			every: pick[time.Duration](r, 5, 20, 100, 500) * time.Millisecond, records: pick[int64](r, 0, 0, 1, 10),
			timeout: pick[time.Duration](r, 500, 2000, 10000) * time.Millisecond, txn: pick[time.Duration](r, 2, 4, 10, 30) * time.Second, session: pick[time.Duration](r, 6, 10) * time.Second,
			tolerable: r.IntN(4), retain: 1 + r.IntN(3), held: pick[int64](r, 1, 1000, 1<<20),
			unaligned: align.IntN(3) > 0, align: pick[time.Duration](align, 0, 1, 50) * time.Millisecond,
		})
	}
	now := time.Duration(0)
	step1 := func(s step) { s.at = now; sc.steps = append(sc.steps, s) }
	for range steps {
		now += pick[time.Duration](r, 0, 3, 30, 200, 1000, 3000) * time.Millisecond * time.Duration(1+r.IntN(3)) / 2
		if r.IntN(40) == 0 {
			now += time.Duration(10+r.IntN(50)) * time.Second
		}
		if r.IntN(2) == 0 {
			step1(step{verb: verbFeed, mode: pick(r, "plain", "plain", "plain", "commit", "abort"), n: 1 + r.IntN(pick(r, 3, 30, 200))})
			continue
		}
		step1(fault(r, sc.instances))
	}
	now += 100 * time.Millisecond
	step1(step{verb: verbFeed, mode: "plain", n: 20})
	sc.rare(rand.New(rand.NewPCG(seed, 3)), now)
	sc.overload(rand.New(rand.NewPCG(seed, 4)), now)
	sc.lookUps(rand.New(rand.NewPCG(seed, 5)), now)
	sc.vaults(rand.New(rand.NewPCG(seed, 6)), now)
	sc.rulings(rand.New(rand.NewPCG(seed, 7)), now)
	sc.outages(rand.New(rand.NewPCG(seed, 8)), now)
	sc.stops(rand.New(rand.NewPCG(seed, 9)), now)
	sc.rehomes(rand.New(rand.NewPCG(seed, 10)), now)
	sc.recreates(rand.New(rand.NewPCG(seed, 11)), now)
	sc.takeOvers(rand.New(rand.NewPCG(seed, 12)), now)
	slices.SortStableFunc(sc.steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
	return sc
}

// takeOvers stops who is about to commit and has the group take it for gone, so that others
// commit before it wakes up, in every sixth world.
func (sc *script) takeOvers(r *rand.Rand, within time.Duration) {
	if r.IntN(6) > 0 || sc.instances < 2 {
		return
	}
	for range 1 + r.IntN(2) {
		at := sc.insert(r, step{verb: verbPause, who: active, on: kmsg.TxnOffsetCommit.Name(), mode: "before", n: 1, dur: pick[time.Duration](r, 2, 5, 9) * time.Second}, within)
		sc.steps = append(sc.steps,
			step{at: at, verb: verbFeed, mode: "plain", n: 10 + r.IntN(30)},
			step{at: at + 600*time.Millisecond, verb: verbEvict, who: active})
	}
	for i := range sc.lives { // a transaction is not over before its owner wakes up
		sc.lives[i].txn = 30 * time.Second
	}
}

// outages makes local stores of every sixteenth world copy what they have not so slowly that they
// read it where it is, and takes that away.
func (sc *script) outages(r *rand.Rand, within time.Duration) {
	if r.IntN(16) > 0 {
		return
	}
	sc.copying = pick(r, 100, 1000, 20000)
	for i := range sc.lives {
		sc.lives[i].backend = pick(r, "fresh", "fresh", "pebble")
	}
	for range 1 + r.IntN(3) {
		at := sc.insert(r, step{verb: verbKill, who: active, dur: 50 * time.Millisecond}, within)
		// It takes some time until somebody else has restored.
		at += pick[time.Duration](r, 60, 100, 500, 3000, 8000) * time.Millisecond
		sc.steps = append(sc.steps,
			step{at: at, verb: verbOutage, mode: pick(r, "fail", "hang"), dur: pick[time.Duration](r, 50, 1000, 5000, 20000) * time.Millisecond},
			step{at: at, verb: verbFeed, mode: "plain", n: 1 + r.IntN(40)})
	}
}

// stops ends lives in the pause before they restart, in every fourth world.
func (sc *script) stops(r *rand.Rand, within time.Duration) {
	if r.IntN(4) > 0 {
		return
	}
	for range 1 + r.IntN(3) {
		who := pick(r, active, string(rune('a'+r.IntN(sc.instances))))
		at := sc.insert(r, step{verb: verbStop, who: who, on: "restart", n: pick(r, 0, 5, 50), dur: pick[time.Duration](r, 50, 1000, 10000) * time.Millisecond}, within)
		why := step{at: at, verb: verbEvict, who: who}
		if r.IntN(2) == 0 {
			why = step{at: at, verb: verbBroker, who: who, on: kmsg.EndTxn.Name(), mode: kerr.UnknownServerError.Message, n: 1}
			if r.IntN(2) == 0 {
				why.on, why.mode = kmsg.Heartbeat.Name(), kerr.UnknownMemberID.Message
			}
		}
		sc.steps = append(sc.steps, why)
	}
}

// insert puts a step at some time of the script.
func (sc *script) insert(r *rand.Rand, s step, within time.Duration) (at time.Duration) {
	s.at = time.Duration(r.Int64N(int64(within) + 1)).Truncate(time.Millisecond)
	sc.steps = append(sc.steps, s)
	return s.at
}

// lookUps has the app of every third world look something up, with what may happen then.
func (sc *script) lookUps(r *rand.Rand, within time.Duration) {
	if sc.lookup = r.IntN(3) == 0; !sc.lookup {
		return
	}
	for range r.IntN(5) {
		s := step{at: time.Duration(r.Int64N(int64(within) + 1)).Truncate(time.Millisecond), verb: verbRegistry, mode: pick(r, "slow", "slow", "hang", "fail"),
			dur: pick[time.Duration](r, 100, 1000, 10000, 30000) * time.Millisecond}
		switch s.mode {
		case "slow":
			s.n = pick(r, 5, 50, 500)
		case "fail":
			s.n = pick(r, 10, 50, 100)
		}
		sc.steps = append(sc.steps, s)
	}
	slices.SortStableFunc(sc.steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
}

// overload makes everybody slow for a while, gives them more than they can do, and ends
// them while they are at it: so what was in flight is still there when new input comes.
func (sc *script) overload(r *rand.Rand, within time.Duration) {
	if r.IntN(4) > 0 {
		return
	}
	now := time.Duration(r.Int64N(int64(within) + 1)).Truncate(time.Millisecond)
	step1 := func(s step) { s.at = now; sc.steps = append(sc.steps, s) }
	step1(step{verb: verbDrag, n: 1 + r.IntN(20), dur: pick[time.Duration](r, 3, 10, 30) * time.Second})
	for range 1 + r.IntN(3) {
		step1(step{verb: verbFeed, mode: "plain", n: 30 + r.IntN(120)})
		now += time.Duration(20+r.IntN(1000)) * time.Millisecond
		step1(step{verb: pick(r, verbKill, verbKill, verbStop, verbEvict), who: active, dur: time.Duration(5+r.IntN(300)) * time.Millisecond})
		if r.IntN(2) == 0 {
			now += time.Duration(r.IntN(500)) * time.Millisecond
		}
	}
	step1(step{verb: verbFeed, mode: "plain", n: 30})
	slices.SortStableFunc(sc.steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
}

// rare adds a few steps of kinds that take longer or change more than others.
func (sc *script) rare(r *rand.Rand, within time.Duration) {
	if r.IntN(4) == 0 {
		sc.ballast = 16 << 10
	}
	if r.IntN(6) == 0 {
		sc.lives[r.IntN(len(sc.lives))].drain = true
	}
	for range r.IntN(7) {
		s := step{at: time.Duration(r.Int64N(int64(within) + 1)).Truncate(time.Millisecond), verb: pick(r, verbSave, verbSave, verbFence, verbStorm, verbClock, verbFlaky, verbFlaky, verbGrow, verbTrim, verbSlow,
			verbReceiver, verbReceiver, verbReceiver)}
		who := func() { s.who = pick(r, active, active, string(rune('a'+r.IntN(sc.instances)))) }
		long := func() time.Duration { return pick[time.Duration](r, 1, 3, 10, 30) * time.Second }
		switch s.verb {
		case verbSave:
			who()
		case verbFence:
			who()
			if r.IntN(3) > 0 {
				s.on, s.mode, s.n = pick(r, kmsg.Produce, kmsg.TxnOffsetCommit, kmsg.EndTxn).Name(), pick(r, "before", "after"), 1+r.IntN(4)
			}
		case verbStorm:
			s.n, s.dur = 2+r.IntN(8), pick[time.Duration](r, 20, 200, 1000)*time.Millisecond
		case verbClock:
			who()
			s.mode, s.dur = pick(r, "ahead", "back"), pick[time.Duration](r, 100, 5000, 3_600_000)*time.Millisecond
		case verbFlaky:
			who()
			e := pick(r, retriable...)
			s.on, s.mode, s.n, s.dur = e.key.Name(), e.err.Message, pick(r, 30, 30, 100), long()
		case verbGrow:
			s.n = 1 + r.IntN(2)
		case verbTrim:
			s.mode = "committed"
		case verbSlow:
			who()
			s.mode, s.n, s.dur = "one", 1+r.IntN(50), long()
		case verbReceiver:
			s.mode, s.n, s.dur = pick(r, "failover", "failover", "down", "lose", "slow"), 1+r.IntN(6), long()/10
		}
		sc.steps = append(sc.steps, s)
	}
	slices.SortStableFunc(sc.steps, func(a, b step) int { return cmp.Compare(a.at, b.at) })
}

// retriable are errors that a broker may give again and again before things go on.
var retriable = []struct {
	key kmsg.Key
	err *kerr.Error
}{
	{kmsg.EndTxn, kerr.CoordinatorLoadInProgress}, {kmsg.EndTxn, kerr.ConcurrentTransactions}, {kmsg.EndTxn, kerr.CoordinatorNotAvailable},
	{kmsg.TxnOffsetCommit, kerr.CoordinatorLoadInProgress}, {kmsg.TxnOffsetCommit, kerr.ConcurrentTransactions},
	{kmsg.Produce, kerr.NotLeaderForPartition}, {kmsg.Produce, kerr.NotEnoughReplicas}, {kmsg.InitProducerID, kerr.ConcurrentTransactions},
}

func pick[T any](r *rand.Rand, of ...T) T { return of[r.IntN(len(of))] }

// fault makes a fault.
func fault(r *rand.Rand, instances int) step {
	s := step{verb: pick(r, verbKill, verbKill, verbKill, verbPause, verbPause, verbCut, verbCut, verbLose, verbLose, verbDrop, verbDelay, verbSlow, verbStore, verbStore, verbStore, verbBroker, verbBroker, verbMove, verbStop, verbEvict, verbEvict),
		who: string(rune('a' + r.IntN(instances)))}
	if r.IntN(3) > 0 {
		s.who = active // nothing much happens to one that stands by
	}
	long := func() time.Duration {
		return pick[time.Duration](r, 20, 200, 2000, 8000, 15000, 40000) * time.Millisecond * time.Duration(1+r.IntN(4)) / 4
	}
	switch s.verb {
	case verbKill, verbPause:
		if r.IntN(4) > 0 {
			s.on, s.mode, s.n = pick(r, killedAt...).Name(), pick(r, "before", "after"), 1+r.IntN(4)
			if r.IntN(4) == 0 {
				s.on = pick(r, storeOps...)
			}
		}
		s.dur = long()
	case verbCut:
		s.mode, s.dur = pick(r, "silent", "silent", "reset", "deaf", "deaf", "mute"), long()
		if r.IntN(2) == 0 {
			s.on, s.n = pick(r, killedAt...).Name(), 1+r.IntN(4)
		}
	case verbLose, verbDrop:
		s.on, s.n = pick(r, lostAt...).Name(), pick(r, 1, 1, 2, 5, 50)
	case verbDelay:
		s.on, s.mode, s.n, s.dur = pick(r, lostAt...).Name(), pick(r, "request", "answer"), pick(r, 1, 1, 2, 5), long()
	case verbSlow:
		s.n, s.dur = 1+r.IntN(20), long()
	case verbStore:
		s.on, s.mode, s.n, s.dur = pick(r, storeOps...), pick(r, "fail", "unknown", "hang", "stall", "slow", "flip", "flip"), pick(r, 1, 1, 2, 6), long()
		if s.mode == "flip" {
			s.on, s.dur = "get", 0
		}
	case verbBroker:
		key := pick(r, sortedKeys...)
		s.on, s.mode, s.n = key.Name(), pick(r, brokerErrors[key]...).Message, pick(r, 1, 1, 2, 5)
	case verbMove:
		s.who, s.mode = "", pick(r, "leaders", "coordinators")
	case verbStop:
		s.dur = long()
	case verbEvict:
		if r.IntN(3) > 0 {
			s.on, s.mode, s.n = pick(r, kmsg.Produce, kmsg.Produce, kmsg.TxnOffsetCommit, kmsg.EndTxn, kmsg.OffsetFetch, kmsg.Fetch).Name(), "after", 1+r.IntN(4)
		}
	}
	return s
}

var sortedKeys = func() (keys []kmsg.Key) {
	for k := range brokerErrors {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}()
