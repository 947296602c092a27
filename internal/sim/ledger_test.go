package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// The app that is simulated moves money between accounts. Each input record becomes two
// entries, of two accounts; an account keeps its balance, the number of its entries, the
// last entry by the account that moved the money, and the newest few. Each entry is an
// output, large ones are in a side output as well, bad records are dead letters, and a
// second keyed stage counts the entries of buckets of accounts.

const (
	appName     = "ledger"
	inTopic     = "in"
	entryTopic  = "entries"
	largeTopic  = "large"
	bucketTopic = "buckets"
	deadTopic   = "dead"
	commitTopic = appName + "-checkpoints"

	keyGroups  = 16
	largeFrom  = 80 // amounts from here on are large
	keptNewest = 3
)

// transfer is an input record.
type transfer struct {
	id       int64
	from, to string
	amount   int64
	bad      bool
}

// transferOf makes the id-th record. It depends on nothing but seed and id.
func transferOf(seed uint64, accounts int, id int64) transfer {
	rng := rand.New(rand.NewPCG(seed, uint64(id)))
	account := func() string { return fmt.Sprintf("acc-%02d", rng.IntN(accounts)) }
	return transfer{id, account(), account(), 1 + rng.Int64N(100), rng.IntN(20) == 0}
}

func (t transfer) record() *kgo.Record {
	return &kgo.Record{Topic: inTopic, Key: []byte(t.from), Value: fmt.Appendf(nil, "%d %s %s %d %t", t.id, t.from, t.to, t.amount, t.bad)}
}

func parseTransfer(r *kgo.Record) (t transfer, err error) {
	_, err = fmt.Sscanf(string(r.Value), "%d %s %s %d %t", &t.id, &t.from, &t.to, &t.amount, &t.bad)
	return t, err
}

// entry is one side of a transfer.
type entry struct {
	id      int64
	account string
	from    string
	amount  int64
}

func entriesOf(t transfer) []entry {
	return []entry{{t.id, t.from, t.from, -t.amount}, {t.id, t.to, t.from, t.amount}}
}

// entryCodec encodes entries that are in flight.
var entryCodec = codec.Func("entry", 1,
	func(dst []byte, e entry) ([]byte, error) {
		return fmt.Appendf(dst, "%d %s %s %d", e.id, e.account, e.from, e.amount), nil
	},
	func(b []byte) (e entry, err error) {
		_, err = fmt.Sscanf(string(b), "%d %s %s %d", &e.id, &e.account, &e.from, &e.amount)
		return e, err
	})

func bucketOf(account string) string { return account[len(account)-1:] }

var errOrder = errors.New("out of order")

// ledger builds the topology. read is called for each record, step for each entry; both
// may take their time.
func ledger(app *weir.App, read, step func()) {
	in := weir.From(app, "in", source.Source[transfer]{Topic: inTopic, Decode: parseTransfer})
	entries := weir.FlatMap(in, "split", func(t transfer, emit func(entry)) error {
		read()
		if t.bad {
			return weir.DeadLetter(errors.New("bad"))
		}
		for _, e := range entriesOf(t) {
			emit(e)
		}
		return nil
	})
	byAccount := weir.KeyBy(entries, "by-account", func(e entry) string { return e.account }, codec.String, weir.ValueCodec(entryCodec))
	large := weir.Side[weir.KV[string, int64]]("large")
	booked := weir.Process(byAccount, "book", func(s *weir.Setup) weir.Handler[string, entry, weir.KV[string, string]] {
		balance := state.Value(s, "balance", codec.Int64)
		count := state.Value(s, "count", codec.Int64)
		last := state.Map(s, "last", codec.String, codec.Int64)
		newest := state.List(s, "newest", codec.Int64)
		return weir.OnRecord(func(c *weir.Context[string, weir.KV[string, string]], e entry) error {
			step()
			// A transfer to itself books twice, so the same id may come again.
			if was, ok := last.Lookup(e.from); ok && was > e.id {
				return fmt.Errorf("%w: account %s: entry %d of %s after %d", errOrder, e.account, e.id, e.from, was)
			}
			last.Put(e.from, e.id)
			balance.Set(balance.Get() + e.amount)
			count.Set(count.Get() + 1)
			newest.Append(e.id)
			if newest.Len() > keptNewest {
				newest.PopFront()
			}
			if e.amount >= largeFrom {
				large.Emit(c, weir.KV[string, int64]{Key: e.account, Value: e.id})
			}
			c.Emit(weir.KV[string, string]{Key: e.account, Value: fmt.Sprintf("%d %d %d %d", e.id, e.amount, count.Get(), balance.Get())})
			return nil
		})
	})
	weir.To(booked, "entries", kafka.Sink(entryTopic, codec.String, codec.String))
	weir.To(large.From(booked), "large", kafka.Sink(largeTopic, codec.String, codec.Int64))
	byBucket := weir.KeyBy(booked, "by-bucket", func(kv weir.KV[string, string]) string { return bucketOf(kv.Key) }, codec.String, weir.ValueCodec(codec.JSON[weir.KV[string, string]]()))
	weir.To(weir.Aggregate(byBucket, "count", weir.Count[weir.KV[string, string]]()), "buckets", kafka.Sink(bucketTopic, codec.String, codec.Int64))
}

// options are those of a life.
func (l settings) options() []weir.Option {
	opts := []weir.Option{
		weir.KeyGroups(keyGroups), weir.Parallelism(l.parallelism), weir.DeadLetters(deadTopic),
		weir.CheckpointEvery(l.every), weir.AfterRecords(l.records), weir.CheckpointTimeout(l.timeout), weir.RetryPause(200 * time.Millisecond),
		weir.TolerableFailures(l.tolerable), weir.TransactionTimeout(l.txn), weir.SessionTimeout(l.session),
		weir.Retain(l.retain), weir.HeldBytes(l.held), weir.StopTimeout(20 * time.Second),
	}
	switch {
	case l.unaligned && l.align > 0:
		opts = append(opts, weir.AlignmentTimeout(l.align))
	case l.unaligned:
		opts = append(opts, weir.Unaligned())
	}
	return opts
}
