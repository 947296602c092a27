package sim

import (
	"cmp"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/freeze"
	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// The app that is simulated moves money between accounts. In some worlds it looks up the
// branch of each transfer in a registry first. Each input record becomes two
// entries, of two accounts; an account keeps its balance, the number of its entries, the
// last entry by the account that moved the money, and the newest few. Each entry is an
// output, large ones are in a side output as well, and from there in the receiver of a
// write-ahead sink, and in some worlds in the vault of a two-phase sink; bad records are dead letters, and a second keyed stage counts the
// entries of buckets of accounts. In some worlds all subtasks hear rules, and an entry says
// by which one it was booked.
//
// Most transfers set an alarm of the account that they come from, by event time or by the
// clock. It rings once, or it is called off by a later transfer. Some leave a note, which is
// there until a while after the watermark, and a timer for the last millisecond reads it.

const (
	appName     = "ledger"
	inTopic     = "in"
	entryTopic  = "entries"
	largeTopic  = "large"
	bucketTopic = "buckets"
	deadTopic   = "dead"
	alarmTopic  = "alarms"
	// commitTopicSuffix is what the commit topic has behind the name of the app.
	commitTopicSuffix = "-checkpoints"

	keyGroups  = 16
	largeFrom  = 80 // amounts from here on are large
	keptNewest = 3

	alarmAfter = 300 * time.Millisecond
	noteLives  = 200 * time.Millisecond
	outOfOrder = 100 * time.Millisecond
	idleAfter  = 2 * time.Second

	newBallastEvery = 100 // entries of an account
)

// transfer is an input record.
type transfer struct {
	id       int64
	from, to string
	amount   int64
	bad      bool
	branch   int64 // as the registry says; 0: it was not asked
}

// transferOf makes the id-th record. It depends on nothing but seed and id.
func transferOf(seed uint64, accounts int, id int64) transfer {
	rng := rand.New(rand.NewPCG(seed, uint64(id)))
	account := func() string { return fmt.Sprintf("acc-%02d", rng.IntN(accounts)) }
	return transfer{id, account(), account(), 1 + rng.Int64N(100), rng.IntN(20) == 0, 0}
}

func (t transfer) record() *kgo.Record {
	return &kgo.Record{Topic: inTopic, Key: []byte(t.from), Value: fmt.Appendf(nil, "%d %s %s %d %t", t.id, t.from, t.to, t.amount, t.bad)}
}

func parseTransfer(r *kgo.Record) (t transfer, err error) {
	_, err = fmt.Sscanf(string(r.Value), "%d %s %s %d %t", &t.id, &t.from, &t.to, &t.amount, &t.bad)
	return t, err
}

// at is the event time of a transfer.
func (t transfer) at() time.Time { return time.UnixMilli(1_000_000_000_000 + 20*t.id) }

// Kinds of alarms, by the transfer that sets one.
const (
	noAlarm = iota
	byEventTime
	byClock
)

// alarmOf tells which alarm the transfer with that id sets.
func alarmOf(id int64) int { return []int{byEventTime, byClock, byEventTime, byClock, noAlarm}[id%5] }

// callsOff tells whether the transfer with that id calls off the newest alarm.
func callsOff(id int64) bool { return id%7 == 3 }

// leavesNote tells whether the transfer with that id leaves a note.
func leavesNote(id int64) bool { return id%3 == 0 }

// entry is one side of a transfer.
type entry struct {
	id      int64
	account string
	from    string
	amount  int64
	branch  int64
}

func entriesOf(t transfer) []entry {
	return []entry{{t.id, t.from, t.from, -t.amount, t.branch}, {t.id, t.to, t.from, t.amount, t.branch}}
}

// entryCodec encodes entries that are in flight.
var entryCodec = codec.Func("entry", 1,
	func(dst []byte, e entry) ([]byte, error) {
		return fmt.Appendf(dst, "%d %s %s %d %d", e.id, e.account, e.from, e.amount, e.branch), nil
	},
	func(b []byte) (e entry, err error) {
		_, err = fmt.Sscanf(string(b), "%d %s %s %d %d", &e.id, &e.account, &e.from, &e.amount, &e.branch)
		return e, err
	})

// sum is a number that handlers and aggregators change in place.
type sum struct{ n int64 }

var sumCodec = codec.Func("sum", 1,
	func(dst []byte, s *sum) ([]byte, error) { return codec.Int64.Append(dst, s.n) },
	func(b []byte) (*sum, error) {
		n, err := codec.Int64.Decode(b)
		return &sum{n}, err
	})

// slowSumCodec takes its time, so that state is encoded in slices between batches of
// records, as a lot of it is.
var slowSumCodec = codec.Func("sum", 1,
	func(dst []byte, s *sum) ([]byte, error) {
		time.Sleep(300 * time.Microsecond)
		return sumCodec.Append(dst, s)
	},
	sumCodec.Decode)

func init() { freeze.Step = 2 }

// counted counts in place.
func counted[T any](c codec.Codec[*sum]) weir.Aggregator[T, *sum, int64] {
	return weir.Aggregator[T, *sum, int64]{
		Zero:   func() *sum { return &sum{} },
		Add:    func(s *sum, _ T) (*sum, error) { s.n++; return s, nil },
		Result: func(s *sum) int64 { return s.n },
		Codec:  c,
	}
}

func bucketOf(account string) string { return account[len(account)-1:] }

var errOrder = errors.New("out of order")

// noise returns n bytes that don't compress.
func noise(seed uint64, n int) string {
	b := make([]byte, n)
	r := rand.NewPCG(seed, 1)
	for i := range b {
		b[i] = byte(r.Uint64())
	}
	return string(b)
}

// place is where the app runs. What it is called with may take its time.
type place struct {
	read     func()               // for each record
	step     func(account string) // for each entry
	now      func() time.Time
	receiver sink.Sink[weir.KV[string, int64]]
	// vault is the two-phase sink; nil: there is none.
	vault sink.Sink[weir.KV[string, int64]]
	// ballast is how many bytes more an account has, so that segments become so large that
	// merges of small ones leave them alone.
	ballast int
	// slices says that state takes several slices to encode.
	slices bool
	// registry is what transfers are looked up in; nil: they are not.
	registry lookup.Source[string, int64]
	// suffix is what operators with state, and the KeyBys in front of them, have behind their
	// names.
	suffix string
	// rules says that entries are booked by rules that a broadcast stream tells.
	rules bool
	// patience is for how long it may not answer.
	patience time.Duration
}

// ledger builds the topology.
func ledger(app *weir.App, at place) {
	in := weir.From(app, "in", source.Source[transfer]{Topic: inTopic, Decode: parseTransfer},
		weir.EventTime(transfer.at, weir.OutOfOrder(outOfOrder), weir.Idle(idleAfter)))
	if at.registry != nil {
		in = weir.Lookup(in, "branch", at.registry, branchKey, func(t transfer, branch int64, found bool) (transfer, error) {
			if !found {
				return t, weir.DeadLetter(errors.New("no branch"))
			}
			t.branch = branch
			return t, nil
		}, lookup.BatchSize(4), lookup.InFlight(3), lookup.Timeout(at.patience/2), lookup.GiveUpAfter(at.patience))
	}
	entries := weir.FlatMap(in, "split", func(t transfer, emit func(entry)) error {
		at.read()
		if t.bad {
			return weir.DeadLetter(errors.New("bad"))
		}
		for _, e := range entriesOf(t) {
			emit(e)
		}
		return nil
	})
	sums := sumCodec
	if at.slices {
		sums = slowSumCodec
	}
	byAccount := weir.KeyBy(entries, "by-account"+at.suffix, func(e entry) string { return e.account }, codec.String, weir.ValueCodec(entryCodec))
	large := weir.Side[weir.KV[string, int64]]("large")
	rang := weir.Side[weir.KV[string, string]]("alarms")
	var rules weir.BroadcastStream[ruling]
	if at.rules {
		rules = fromRules(app)
	}
	booked := weir.Process(byAccount, "book"+at.suffix, func(s *weir.Setup) weir.Handler[string, entry, weir.KV[string, string]] {
		balance := state.Value(s, "balance", sums)
		count := state.Value(s, "count", codec.Int64)
		last := state.Map(s, "last", codec.String, codec.Int64)
		ballast := state.Value(s, "ballast", codec.String)
		newest := state.List(s, "newest", codec.Int64)
		alarms := state.Map(s, "alarms", codec.Int64, codec.Int64)                                        // by transfer: when
		notes := state.Map(s, "notes", codec.Int64, codec.Int64, state.TTL(noteLives, state.InEventTime)) // by when they are read: the transfer
		noted := state.Map(s, "noted", codec.Int64, codec.Int64)                                          // likewise, those that must be there
		var book *ruleBook
		if at.rules {
			book = hearRules(s, rules, at)
		}
		eventTimers, clockTimers := state.EventTimers(s), state.ProcessingTimers(s)
		timersOf := func(id int64) *state.Timers {
			if alarmOf(id) == byEventTime {
				return eventTimers
			}
			return clockTimers
		}
		alarm := func(c *weir.Context[string, weir.KV[string, string]], id int64) {
			if callsOff(id) {
				newest, due := int64(-1), int64(0)
				for id, ms := range alarms.All() {
					if id > newest {
						newest, due = id, ms
					}
				}
				if newest >= 0 {
					// Another one may be due at the same time of the clock; its timer stays.
					alarms.Delete(newest)
					if alarmOf(newest) == byEventTime && !noted.Has(due) {
						eventTimers.Delete(time.UnixMilli(due))
					}
					rang.Emit(c, weir.KV[string, string]{Key: c.Key(), Value: fmt.Sprint("off ", newest)})
				}
			}
			if alarmOf(id) == noAlarm {
				return
			}
			due := transfer{id: id}.at().Add(alarmAfter)
			if alarmOf(id) == byClock {
				due = at.now().Add(alarmAfter)
			}
			due = time.UnixMilli(due.UnixMilli())
			alarms.Put(id, due.UnixMilli())
			timersOf(id).Set(due)
		}
		note := func(c *weir.Context[string, weir.KV[string, string]], id int64) {
			at, ok := c.Watermark()
			due := at.Add(noteLives - time.Millisecond)
			if !ok || !leavesNote(id) || noted.Has(due.UnixMilli()) {
				return
			}
			notes.Put(due.UnixMilli(), id)
			noted.Put(due.UnixMilli(), id)
			eventTimers.Set(due)
			rang.Emit(c, weir.KV[string, string]{Key: c.Key(), Value: fmt.Sprint("noted ", due.UnixMilli())})
		}
		return weir.OnRecord(func(c *weir.Context[string, weir.KV[string, string]], e entry) error {
			at.step(e.account)
			if e.amount < 0 {
				alarm(c, e.id)
				note(c, e.id)
			}
			// A transfer to itself books twice, so the same id may come again.
			if was, ok := last.Lookup(e.from); ok && was > e.id {
				return fmt.Errorf("%w: account %s: entry %d of %s after %d", errOrder, e.account, e.id, e.from, was)
			}
			last.Put(e.from, e.id)
			sum := cmp.Or(balance.Get(), &sum{})
			sum.n += e.amount
			balance.Set(sum)
			count.Set(count.Get() + 1)
			if at.ballast > 0 && count.Get()%newBallastEvery == 1 {
				ballast.Set(noise(uint64(e.id), at.ballast))
			}
			newest.Append(e.id)
			if newest.Len() > keptNewest {
				newest.PopFront()
			}
			if e.amount >= largeFrom {
				large.Emit(c, weir.KV[string, int64]{Key: e.account, Value: e.id})
			}
			newestRule, heard := book.about(e.id)
			c.Emit(weir.KV[string, string]{Key: e.account, Value: fmt.Sprintf("%d %d %d %d %d %d %d", e.id, e.amount, count.Get(), sum.n, e.branch, newestRule, heard)})
			return nil
		}).OnTimer(func(c *weir.Context[string, weir.KV[string, string]], t weir.Timer) error {
			var due []int64
			for id, ms := range alarms.All() {
				if ms == t.At.UnixMilli() && (alarmOf(id) == byEventTime) == t.EventTime {
					due = append(due, id)
				}
			}
			if ms := t.At.UnixMilli(); t.EventTime && noted.Has(ms) {
				what := "lost "
				if notes.Has(ms) {
					what = "read "
				}
				notes.Delete(ms)
				noted.Delete(ms)
				rang.Emit(c, weir.KV[string, string]{Key: c.Key(), Value: fmt.Sprint(what, ms)})
			}
			for _, id := range due {
				alarms.Delete(id)
				rang.Emit(c, weir.KV[string, string]{Key: c.Key(), Value: fmt.Sprint("rang ", id)})
			}
			return nil
		})
	})
	weir.To(booked, "entries", kafka.Sink(entryTopic, codec.String, codec.String))
	largeOnes := large.From(booked)
	weir.To(largeOnes, "large", kafka.Sink(largeTopic, codec.String, codec.Int64))
	weir.To(largeOnes, "receiver", at.receiver)
	if at.vault != nil {
		weir.To(largeOnes, "vault", at.vault)
	}
	weir.To(rang.From(booked), "alarms", kafka.Sink(alarmTopic, codec.String, codec.String))
	byBucket := weir.KeyBy(booked, "by-bucket"+at.suffix, func(kv weir.KV[string, string]) string { return bucketOf(kv.Key) }, codec.String, weir.ValueCodec(codec.JSON[weir.KV[string, string]]()))
	weir.To(weir.Aggregate(byBucket, "count"+at.suffix, counted[weir.KV[string, string]](sums)), "buckets", kafka.Sink(bucketTopic, codec.String, codec.Int64))
}

// options are those of a life.
func (l settings) options() []weir.Option {
	opts := []weir.Option{
		weir.KeyGroups(keyGroups), weir.Parallelism(l.parallelism), weir.DeadLetters(deadTopic),
		weir.CheckpointEvery(l.every), weir.AfterRecords(l.records), weir.CheckpointTimeout(l.timeout), weir.RetryPause(200 * time.Millisecond),
		weir.TolerableFailures(l.tolerable), weir.TransactionTimeout(l.txn), weir.SessionTimeout(l.session),
		weir.Retain(l.retain), weir.HeldBytes(l.held), weir.StopTimeout(20 * time.Second),
	}
	if l.drain {
		opts = append(opts, weir.Drain())
	}
	switch {
	case l.unaligned && l.align > 0:
		opts = append(opts, weir.AlignmentTimeout(l.align))
	case l.unaligned:
		opts = append(opts, weir.Unaligned())
	}
	return opts
}
