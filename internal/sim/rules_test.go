package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

const (
	rulesTopic = "rules"
	// ruleKinds is how many rules there are at a time: a new one takes the place of that of
	// its kind.
	ruleKinds = 4
	// rulePartitions is in how many partitions they come.
	rulePartitions = 2
)

// ruling is a record of the stream that every subtask hears.
type ruling struct {
	id    int64
	after int64 // the transfer that comes after it, by which it has its time
}

func (r ruling) kind() int64 { return r.id % ruleKinds }

// bad tells whether it becomes a dead letter.
func (r ruling) bad() bool { return r.id%9 == 4 }

func (r ruling) at() time.Time { return transfer{id: r.after}.at() }

func (r ruling) text() []byte { return fmt.Appendf(nil, "rule %d %d", r.id, r.after) }

func parseRule(b []byte) (r ruling, err error) {
	_, err = fmt.Sscanf(string(b), "rule %d %d", &r.id, &r.after)
	return r, err
}

var ruleCodec = codec.Func("rule", 1, func(dst []byte, r ruling) ([]byte, error) { return append(dst, r.text()...), nil }, parseRule)

// fedRule is a rule that the app has to hear.
type fedRule struct {
	ruling
	partition int32
	offset    int64
}

// ruleBook is what a subtask knows of rules: the newest of each kind, and how many of that
// kind came.
type ruleBook struct {
	newest, heard *state.OfBroadcast[int64, int64]
}

// hearRules makes the operator that is being set up hear rules.
func hearRules(s *weir.Setup, rules weir.BroadcastStream[ruling], at place) *ruleBook {
	b := &ruleBook{state.Broadcast(s, "rules", codec.Int64, codec.Int64), state.Broadcast(s, "heard", codec.Int64, codec.Int64)}
	rules.On(s, func(r ruling) error {
		at.step("rules")
		if r.bad() {
			return weir.DeadLetter(errors.New("bad rule"))
		}
		b.newest.Put(r.kind(), r.id)
		b.heard.Put(r.kind(), b.heard.Get(r.kind())+1)
		return nil
	})
	return b
}

// about returns what is known of the rule that a transfer is booked by. There may be no
// rules at all.
func (b *ruleBook) about(id int64) (newest, heard int64) {
	if b == nil {
		return 0, 0
	}
	return b.newest.Get(id % ruleKinds), b.heard.Get(id % ruleKinds)
}

// fromRules is the broadcast stream.
func fromRules(app *weir.App) weir.BroadcastStream[ruling] {
	in := weir.From(app, "rules", source.Source[ruling]{Topic: rulesTopic, Decode: func(r *kgo.Record) (ruling, error) { return parseRule(r.Value) }},
		weir.EventTime(ruling.at, weir.OutOfOrder(outOfOrder), weir.Idle(idleAfter)))
	return weir.Broadcast(in, weir.ValueCodec(ruleCodec))
}

// rule produces n rules.
func (w *world) rule(ctx context.Context, n int) {
	cl := w.client(kgo.RecordPartitioner(kgo.ManualPartitioner()))
	defer cl.Close()
	var rs []*kgo.Record
	var fed []fedRule
	for range n {
		w.nextRule++
		r := ruling{w.nextRule, w.next}
		rs = append(rs, &kgo.Record{Topic: rulesTopic, Partition: int32(r.kind() % rulePartitions), Value: r.text()})
		fed = append(fed, fedRule{ruling: r})
	}
	if err := cl.ProduceSync(ctx, rs...).FirstErr(); err != nil {
		w.violate("feed rules: %v", err)
		return
	}
	for i, r := range rs {
		fed[i].partition, fed[i].offset = r.Partition, r.Offset
	}
	w.rules = append(w.rules, fed...)
}

// rulings gives every sixth world rules.
func (sc *script) rulings(r *rand.Rand, within time.Duration) {
	if sc.rules = r.IntN(6) == 0; !sc.rules {
		return
	}
	for range 2 + r.IntN(8) {
		at := sc.insert(r, step{verb: verbRule, n: 1 + r.IntN(pick(r, 3, 30))}, within)
		if r.IntN(3) > 0 {
			continue
		}
		kill := at + time.Duration(5+r.IntN(150))*time.Millisecond // while not everybody heard them
		if r.IntN(2) == 0 {
			sc.steps = append(sc.steps,
				step{at: at, verb: verbDrag, n: 5 + r.IntN(20), dur: time.Second},
				step{at: at, verb: verbRule, n: 20 + r.IntN(20)})
			kill = at + time.Duration(50+r.IntN(400))*time.Millisecond
		}
		sc.steps = append(sc.steps, step{at: kill, verb: verbKill, who: active})
	}
}

// rulesUpTo is what must be known of the rules, by a loop over them: the newest of each
// kind, how many of each kind came, and which became dead letters. at bounds what was heard;
// nil: all of it.
func (w *world) rulesUpTo(at map[offsets.Partition]offsets.Position) (newest, heard map[int64]int64, dead map[int64]int) {
	newest, heard, dead = map[int64]int64{}, map[int64]int64{}, map[int64]int{}
	for _, r := range w.rules {
		switch {
		case at != nil && r.offset >= at[offsets.Partition{Topic: rulesTopic, Partition: r.partition}].Offset:
		case r.bad():
			dead[r.id]++
		default:
			newest[r.kind()] = r.id
			heard[r.kind()]++
		}
	}
	return newest, heard, dead
}

// checkRules makes sure that a snapshot with nothing in flight knows the rules up to its
// positions.
func (w *world) checkRules(ctx context.Context, what string, s snapshot) {
	if !w.sc.rules {
		return
	}
	newest, heard, _ := w.rulesUpTo(s.Info().Positions)
	for name, want := range map[string]map[int64]int64{"rules": newest, "heard": heard} {
		got := map[int64]int64{}
		for e, err := range offline.Broadcast(ctx, s.Snapshot, s.op("book"), name, codec.Int64, codec.Int64) {
			if err != nil {
				w.violate("%s: %v", what, err)
				return
			}
			got[e.MapKey] = e.Value
		}
		if !maps.Equal(got, want) {
			w.violate("%s, checkpoint %d: broadcast state %q is %v, want %v", what, s.Info().Checkpoint, name, got, want)
		}
	}
}

// ruled follows what the entries of an account were booked by.
type ruled struct {
	w      *world
	number map[int64]int64 // of each rule that is heard, which of its kind it is
	newest map[int64]int64 // of each kind, in the end
	last   map[int64]int64 // of each kind, that the account was booked by
}

func (w *world) newRuled() *ruled {
	r := &ruled{w: w, number: map[int64]int64{}, last: map[int64]int64{}}
	counts := map[int64]int64{}
	for _, fed := range w.rules {
		if !fed.bad() {
			counts[fed.kind()]++
			r.number[fed.id] = counts[fed.kind()]
		}
	}
	r.newest, _, _ = w.rulesUpTo(nil)
	return r
}

// check looks at an entry: the subtask heard each rule up to the newest one once, the rule is
// not older than one before, and those of the end are booked by the newest.
func (r *ruled) check(account string, id, newest, heard int64) {
	kind := id % ruleKinds
	switch {
	case heard != r.number[newest]:
		r.w.violate("account %s: entry %d was booked by rule %d, which is number %d of its kind, where %d were heard", account, id, newest, r.number[newest], heard)
	case newest < r.last[kind]:
		r.w.violate("account %s: entry %d was booked by rule %d, an entry before it by rule %d", account, id, newest, r.last[kind])
	case id >= r.w.next-lastFed && newest != r.newest[kind]:
		r.w.violate("account %s: entry %d was booked by rule %d, long after rule %d was heard", account, id, newest, r.newest[kind])
	}
	r.last[kind] = newest
}
