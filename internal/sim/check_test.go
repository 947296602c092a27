package sim

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/processor"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/twophase"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/txn"
)

// judge looks at why a life ended by itself. Anything may fail while faults go on, but
// there are errors that no fault of these may lead to: they say that state, offsets and
// input don't fit together, or that the app was given what it must not be given.
func (in *instance) judge(l *life) {
	if l.err == nil {
		if !l.asked.Load() && !l.set.drain {
			in.w.violate("%v: Run returned without having been asked to stop", l)
		}
		return
	}
	var (
		build     *weir.BuildError
		handler   *weir.HandlerError
		damaged   *checkpoint.DamagedError
		missing   *checkpoint.MissingError
		version   *checkpoint.VersionError
		forgotten *processor.ForgottenError
		unstable  *txn.UnstableError
		moved     *offsets.MovedError
		bare      *offsets.NoPointerError
		pointer   *offsets.DamagedPointerError
		foreign   *offsets.ForeignAppError
		split     *offsets.SplitError
		lost      *offsets.LostOffsetError
		unknown   *offsets.UnknownPartitionError
	)
	if expect := in.w.sc.expect; expect != "" && strings.Contains(l.err.Error(), expect) {
		in.w.stopped.Do(func() { close(in.w.refused) })
		return
	}
	if l.isOther() {
		return
	}
	l.store.mu.Lock()
	flipped := l.store.flipped
	l.store.mu.Unlock()
	if flipped && (errors.As(l.err, &damaged) || errors.As(l.err, &version)) {
		return // as it has to be
	}
	if l.asked.Load() && !l.assigned.Load() && strings.Contains(l.err.Error(), "the last checkpoint was not committed") {
		in.w.violate("%v was never active, and says at its stop that it lost a commit: %v", l, l.err)
	}
	var gone *twophase.GoneError
	if errors.As(l.err, &gone) {
		in.w.gone(l, gone)
		return
	}
	var again *sink.Retriable
	if errors.As(l.err, &handler) && errors.As(handler, &again) {
		return // a receiver was out of reach
	}
	switch err := l.err; {
	case errors.As(err, &build), errors.As(err, &handler), errors.As(err, &damaged), errors.As(err, &missing), errors.As(err, &version),
		errors.As(err, &forgotten), errors.As(err, &unstable), errors.As(err, &moved), errors.As(err, &bare), errors.As(err, &pointer),
		errors.As(err, &foreign), errors.As(err, &split), errors.As(err, &lost), errors.As(err, &unknown),
		errors.Is(err, txn.ErrNotOwned), strings.Contains(err.Error(), "bug in weir"):
		in.w.violate("%v ended with an error that none of the faults explains: %v", l, err)
	}
}

// committed holds a commit against the one before it: there is one line of checkpoints,
// each made of the one before, and positions only grow. So nobody commits for a
// key-group that somebody else went on with.
func (w *world) committed(r offsets.CommitRecord) {
	w.note(r.Instance, "committed checkpoint %d at %s", r.Manifest.Checkpoint, at(r.Positions))
	w.mu.Lock()
	var last *offsets.CommitRecord
	if n := len(w.commits); n > 0 {
		last = &w.commits[n-1]
	}
	w.commits = append(w.commits, r)
	w.mu.Unlock()
	m, err := checkpoint.Load(context.Background(), w.store().archive, r.Manifest)
	if err != nil {
		w.violate("checkpoint %d of %s was committed: %v", r.Manifest.Checkpoint, r.Instance, err)
		return
	}
	if !maps.Equal(m.Positions, r.Positions) {
		w.violate("checkpoint %d of %s: the manifest is at %s, %s was committed", r.Manifest.Checkpoint, r.Instance, at(m.Positions), at(r.Positions))
	}
	if last == nil {
		return
	}
	w.mu.Lock()
	from := w.origin
	first := from != nil && !from.followed
	if first {
		from.followed = true
	}
	w.mu.Unlock()
	if r.Manifest.Checkpoint <= last.Manifest.Checkpoint {
		w.violate("checkpoint %d of %s was committed after checkpoint %d of %s", r.Manifest.Checkpoint, r.Instance, last.Manifest.Checkpoint, last.Instance)
	}
	if first {
		w.seam(from, r, m)
	} else if m.Parent != last.Manifest {
		w.violate("checkpoint %d of %s was committed after checkpoint %d of %s, but made of checkpoint %d", r.Manifest.Checkpoint, r.Instance, last.Manifest.Checkpoint, last.Instance, m.Parent.Checkpoint)
	}
	for p, pos := range last.Positions {
		if first && from.name == "" && p.Topic == inTopic {
			continue // of an input that is gone
		}
		if now, ok := r.Positions[p]; !ok || now.Offset < pos.Offset {
			w.violate("checkpoint %d of %s: the position of %v fell from %d to %d (%v)", r.Manifest.Checkpoint, r.Instance, p, pos.Offset, now.Offset, ok)
		}
	}
}

// account is what the model knows of one.
type account struct {
	balance, count int64
	entries        map[string]int     // "id amount", of which there may be two
	last           map[string]int64   // newest entry by the account that it came from
	order          map[string][]int64 // the ids by the account that they came from
	large          map[int64]int
}

// isDeadLetter tells what becomes of a transfer.
func (w *world) isDeadLetter(t transfer) bool {
	if _, known := branchOf(branchKey(t)); w.sc.lookup && !known {
		return true
	}
	return t.bad
}

// model is what must come of the input, by a loop over it.
func (w *world) model(input []fed) (accounts map[string]*account, dead map[int64]int, from map[int64]string) {
	accounts, dead, from = map[string]*account{}, map[int64]int{}, map[int64]string{}
	for _, t := range input {
		from[t.id] = t.from
		if w.isDeadLetter(t.transfer) {
			dead[t.id]++
			continue
		}
		for _, e := range entriesOf(t.transfer) {
			a := accounts[e.account]
			if a == nil {
				a = &account{entries: map[string]int{}, last: map[string]int64{}, order: map[string][]int64{}, large: map[int64]int{}}
				accounts[e.account] = a
			}
			a.balance += e.amount
			a.count++
			a.entries[fmt.Sprint(e.id, e.amount)]++
			a.last[e.from] = e.id
			a.order[e.from] = append(a.order[e.from], e.id)
			if e.amount >= largeFrom {
				a.large[e.id]++
			}
		}
	}
	return accounts, dead, from
}

// check compares state and outputs with the model.
func (w *world) check(ctx context.Context) {
	accounts, dead, from := w.model(w.input)
	newest := w.checkEntries(ctx, accounts, from)
	w.checkSides(ctx, accounts, dead)
	w.checkState(ctx, accounts, newest, w.checkAlarms(ctx))
	w.checkAnswers()
	for _, s := range w.savepoints {
		w.checkSavepoint(ctx, s)
	}
}

// checkAnswers makes sure that queries were answered from checkpoints that were
// committed, and that each life's answers went forward.
func (w *world) checkAnswers() {
	committed := map[int64]bool{}
	for _, c := range w.commits {
		committed[c.Manifest.Checkpoint] = true
	}
	last := map[string]int64{}
	for _, a := range w.answers {
		if !committed[a.checkpoint] {
			w.violate("at %v %s answered a query from checkpoint %d, which nobody committed", a.at, a.who, a.checkpoint)
		}
		if a.checkpoint < last[a.who] {
			w.violate("at %v %s answered a query from checkpoint %d, after one from %d", a.at, a.who, a.checkpoint, last[a.who])
		}
		last[a.who] = a.checkpoint
	}
}

// checkSavepoint makes sure that a savepoint is what a loop over the input up to its
// positions gives.
func (w *world) checkSavepoint(ctx context.Context, sp savepoint) {
	s, err := offline.Open(ctx, sp.disk, "savepoint:"+sp.name)
	if err != nil {
		w.violate("savepoint %s: %v", sp.name, err)
		return
	}
	w.checkCut(ctx, "savepoint "+sp.name, snapshot{s, sp.suffix, sp.input})
}

// checkCommitted makes sure of the same for the last checkpoint that was committed, of an
// app that can't go on.
func (w *world) checkCommitted(ctx context.Context) {
	if len(w.commits) == 0 {
		w.violate("nothing was ever committed")
		return
	}
	ref := w.commits[len(w.commits)-1].Manifest
	s, err := offline.Open(ctx, w.store(), ref.Object())
	if err != nil {
		w.violate("%v", err)
		return
	}
	w.checkCut(ctx, "the last checkpoint", snapshot{s, w.suffix(), w.reads.Load()})
}

// checkCut makes sure that a snapshot with nothing in flight is what a loop over the
// input up to its positions gives.
func (w *world) checkCut(ctx context.Context, what string, s snapshot) {
	w.checkRules(ctx, what, s)
	at := s.Info().Positions
	var input []fed
	for _, t := range w.input {
		if t.input < s.input || t.input == s.input && t.offset < at[offsets.Partition{Topic: inTopic, Partition: t.partition}].Offset {
			input = append(input, t)
		}
	}
	accounts, _, _ := w.model(input)
	got := map[string]int64{}
	set := func(err error, v int64, path ...any) {
		if err != nil {
			w.violate("%s: %v", what, err)
		}
		got[fmt.Sprint(path...)] = v
	}
	readSums(ctx, s, set)
	want := map[string]int64{}
	for name, a := range accounts {
		want["balance of "+name], want["count of "+name] = a.balance, a.count
		want["bucket "+bucketOf(name)] += a.count
	}
	if !maps.Equal(got, want) {
		w.violate("%s, checkpoint %d: want %v, it has %v", what, s.Info().Checkpoint, want, got)
	}
}

// overdue is for how long an alarm by the clock may not have rung in the end, when clocks
// are right.
const overdue = 30 * time.Second

// checkAlarms makes sure that each alarm rang once, was called off once, or is still set.
// It returns those that are still set, by account.
func (w *world) checkAlarms(ctx context.Context) map[string]map[int64]bool {
	pending := map[string]map[int64]bool{}
	for _, t := range w.input {
		if w.isDeadLetter(t.transfer) || alarmOf(t.id) == noAlarm {
			continue
		}
		if pending[t.from] == nil {
			pending[t.from] = map[int64]bool{}
		}
		pending[t.from][t.id] = true
	}
	ended := map[string]int{}
	defer func() {
		left := 0
		for _, ids := range pending {
			left += len(ids)
		}
		w.note("", "alarms: %d rang, %d were called off, %d are set; %d notes were read", ended["rang"], ended["off"], left, ended["read"])
	}()
	for account, vs := range w.read(ctx, alarmTopic) {
		noted := map[int64]bool{}
		for _, v := range vs {
			var what string
			var id int64
			if _, err := fmt.Sscan(string(v), &what, &id); err != nil {
				w.violate("alarm %q of account %s: %v", v, account, err)
			}
			switch what {
			case "noted":
				if noted[id] {
					w.violate("account %s: a note to be read at %d was left twice", account, id)
				}
				noted[id] = true
				continue
			case "read", "lost":
				if !noted[id] || what == "lost" {
					w.violate("account %s: a note was %s at %d, and it was left: %v", account, what, id, noted[id])
				}
				delete(noted, id)
				ended[what]++
				continue
			}
			if !pending[account][id] {
				w.violate("account %s: alarm %q, which was not set or came before", account, v)
			}
			delete(pending[account], id)
			ended[what]++
		}
	}
	return pending
}

// read returns what a read_committed reader finds, by key in the order of the log.
func (w *world) read(ctx context.Context, topic string) map[string][][]byte {
	ends, err := w.adm.ListEndOffsets(ctx, topic)
	stable, err2 := w.adm.ListCommittedOffsets(ctx, topic)
	if err := errors.Join(err, err2); err != nil {
		w.violate("read %s: %v", topic, err)
		return nil
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if s, _ := stable.Lookup(o.Topic, o.Partition); s.Offset != o.Offset {
			w.violate("a transaction was left open: readers of %s/%d get to offset %d of %d", o.Topic, o.Partition, s.Offset, o.Offset)
		} else if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	cl := w.client(kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()), kgo.KeepControlRecords())
	defer cl.Close()
	m := map[string][][]byte{}
	for len(left) > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			w.violate("read %s: %v", topic, err)
			return nil
		}
		fs.EachRecord(func(r *kgo.Record) {
			if !r.Attrs.IsControl() {
				m[string(r.Key)] = append(m[string(r.Key)], r.Value)
			}
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
		})
	}
	return m
}

// readSums reads balances and counts from a snapshot.
func readSums(ctx context.Context, s snapshot, set func(err error, v int64, path ...any)) {
	for e, err := range offline.Values(ctx, s.Snapshot, s.op("book"), "balance", codec.String, sumCodec) {
		set(err, cmp.Or(e.Value, &sum{}).n, "balance of ", e.Key)
	}
	for e, err := range offline.Values(ctx, s.Snapshot, s.op("book"), "count", codec.String, codec.Int64) {
		set(err, e.Value, "count of ", e.Key)
	}
	for e, err := range offline.Values(ctx, s.Snapshot, s.op("count"), "acc", codec.String, sumCodec) {
		set(err, cmp.Or(e.Value, &sum{}).n, "bucket ", e.Key)
	}
}

// checkEntries follows each account through its outputs: every entry once, the running
// number and balance without a step missing, and the entries of one sender in their
// order. Entries of several senders have none among each other. It returns the ids in the
// order in which they were booked.
func (w *world) checkEntries(ctx context.Context, accounts map[string]*account, from map[int64]string) map[string][]int64 {
	got := w.read(ctx, entryTopic)
	booked := map[string][]int64{}
	for name := range got {
		if accounts[name] == nil {
			w.violate("outputs of account %s, which has none", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(accounts)) {
		a := accounts[name]
		seen := map[string]int{}
		order := map[string][]int64{}
		var count, balance int64
		rules := w.newRuled()
		for _, v := range got[name] {
			var id, amount, n, b, branch, newest, heard int64
			if _, err := fmt.Sscan(string(v), &id, &amount, &n, &b, &branch, &newest, &heard); err != nil {
				w.violate("output %q of account %s: %v", v, name, err)
				continue
			}
			var known int64
			if w.sc.lookup {
				known, _ = branchOf(branchKey(transfer{id: id, from: from[id]}))
			}
			if branch != known {
				w.violate("account %s: output %q, want branch %d", name, v, known)
			}
			if w.sc.rules {
				rules.check(name, id, newest, heard)
			}
			count++
			balance += amount
			if n != count || b != balance {
				w.violate("account %s: output %q, want number %d and balance %d there", name, v, count, balance)
			}
			seen[fmt.Sprint(id, amount)]++
			order[from[id]] = append(order[from[id]], id)
			booked[name] = append(booked[name], id)
		}
		if !maps.Equal(seen, a.entries) {
			w.violate("account %s: outputs are not those of the input: %s", name, differ(seen, a.entries))
		}
		for sender, ids := range a.order {
			if !slices.Equal(order[sender], ids) {
				w.violate("account %s: entries of %s came out as %v, went in as %v", name, sender, order[sender], ids)
			}
		}
	}
	return booked
}

// differ says what is there too often or not often enough.
func differ[K comparable](got, want map[K]int) string {
	var texts []string
	for k, n := range want {
		if got[k] != n {
			texts = append(texts, fmt.Sprintf("%v %d times instead of %d", k, got[k], n))
		}
	}
	for k, n := range got {
		if _, ok := want[k]; !ok {
			texts = append(texts, fmt.Sprintf("%v %d times instead of never", k, n))
		}
	}
	slices.Sort(texts)
	if len(texts) > 5 {
		texts = append(texts[:5], fmt.Sprintf("and %d more", len(texts)-5))
	}
	return strings.Join(texts, ", ")
}

func (w *world) checkSides(ctx context.Context, accounts map[string]*account, dead map[int64]int) {
	ints := func(topic string) map[string][]int64 {
		m := map[string][]int64{}
		for k, vs := range w.read(ctx, topic) {
			for _, v := range vs {
				n, err := codec.Int64.Decode(v)
				if err != nil {
					w.violate("%s: %v", topic, err)
				}
				m[k] = append(m[k], n)
			}
		}
		return m
	}
	large := ints(largeTopic)
	buckets := map[string]int64{}
	for name, a := range accounts {
		seen := map[int64]int{}
		for _, id := range large[name] {
			seen[id]++
		}
		if !maps.Equal(seen, a.large) {
			w.violate("account %s: large entries: %s", name, differ(seen, a.large))
		}
		buckets[bucketOf(name)] += a.count
	}
	received := w.receiver.values()
	for _, name := range slices.Sorted(maps.Keys(accounts)) {
		if !slices.Equal(received[name], large[name]) {
			w.violate("account %s: the receiver has %v, the topic of large entries %v", name, received[name], large[name])
		}
	}
	if w.sc.vault {
		w.checkVault(accounts, large)
	}
	counts := ints(bucketTopic)
	for b, want := range buckets {
		for i, n := range counts[b] {
			if n != int64(i+1) {
				w.violate("bucket %s: count %d at place %d", b, n, i+1)
				break
			}
		}
		if got := int64(len(counts[b])); got != want {
			w.violate("bucket %s was counted %d times, want %d", b, got, want)
		}
	}
	seen := map[int64]int{}
	rulesSeen := map[int64]int{}
	_, _, deadRules := w.rulesUpTo(nil)
	for _, vs := range w.read(ctx, deadTopic) {
		for _, v := range vs {
			if r, err := parseRule(v); err == nil {
				rulesSeen[r.id]++
				continue
			}
			t, err := parseTransfer(&kgo.Record{Value: v})
			if err != nil {
				w.violate("dead letter %q: %v", v, err)
			}
			seen[t.id]++
		}
	}
	if !maps.Equal(seen, dead) {
		w.violate("dead letters: %s", differ(seen, dead))
	}
	if w.sc.rules && !maps.Equal(rulesSeen, deadRules) {
		w.violate("dead letters of rules: %s", differ(rulesSeen, deadRules))
	}
}

// checkState reads the checkpoint that the committed offsets name.
func (w *world) checkState(ctx context.Context, accounts map[string]*account, newest map[string][]int64, alarms map[string]map[int64]bool) {
	at, err := w.adm.FetchOffsets(ctx, w.app())
	if err != nil {
		w.violate("read the committed offsets: %v", err)
		return
	}
	refs := map[offsets.ManifestRef]bool{}
	at.Each(func(o kadm.OffsetResponse) {
		p, err := offsets.ParsePointer(o.Metadata)
		if err != nil || p.Offset != o.At {
			w.violate("pointer of %s/%d: %+v at %d: %v", o.Topic, o.Partition, p, o.At, err)
		}
		refs[p.Manifest] = true
	})
	if len(refs) != 1 {
		w.violate("the committed offsets name %d checkpoints", len(refs))
		return
	}
	for ref := range refs {
		open, err := offline.Open(ctx, w.store(), ref.Object())
		if err != nil {
			w.violate("%v", err)
			return
		}
		s := snapshot{open, w.suffix(), w.reads.Load()}
		w.compareState(ctx, s, accounts, newest, alarms)
		w.checkRules(ctx, "state", s)
	}
}

func (w *world) compareState(ctx context.Context, s snapshot, accounts map[string]*account, newest map[string][]int64, alarms map[string]map[int64]bool) {
	got, want := map[string]int64{}, map[string]int64{}
	set := func(err error, v int64, path ...any) {
		if err != nil {
			w.violate("read state: %v", err)
		}
		k := fmt.Sprint(path...)
		if _, twice := got[k]; twice {
			w.violate("state %s is there twice", k)
		}
		got[k] = v
	}
	readSums(ctx, s, set)
	for e, err := range offline.Maps(ctx, s.Snapshot, s.op("book"), "last", codec.String, codec.String, codec.Int64) {
		set(err, e.Value, "last of ", e.Key, " by ", e.MapKey)
	}
	n := map[string]int{}
	for e, err := range offline.Lists(ctx, s.Snapshot, s.op("book"), "newest", codec.String, codec.Int64) {
		set(err, e.Value, "newest of ", e.Key, " at ", n[e.Key])
		n[e.Key]++
	}
	due := map[string]bool{} // there has to be a timer
	for e, err := range offline.Maps(ctx, s.Snapshot, s.op("book"), "alarms", codec.String, codec.Int64, codec.Int64) {
		set(err, 0, "alarm of ", e.Key, " by ", e.MapKey)
		over := alarmOf(e.MapKey) == byEventTime && e.Value <= s.Info().Watermark ||
			alarmOf(e.MapKey) == byClock && time.Since(time.UnixMilli(e.Value)) > overdue
		if over {
			w.violate("state: the alarm of %s by %d should have rung at %d, and event time is %d", e.Key, e.MapKey, e.Value, s.Info().Watermark)
		}
		due[fmt.Sprint(e.Key, alarmOf(e.MapKey) == byEventTime, e.Value)] = true
	}
	for e, err := range offline.Maps(ctx, s.Snapshot, s.op("book"), "noted", codec.String, codec.Int64, codec.Int64) {
		if err != nil {
			w.violate("read state: %v", err)
		}
		if e.MapKey <= s.Info().Watermark {
			w.violate("state: the note of %s should have been read at %d, and event time is %d", e.Key, e.MapKey, s.Info().Watermark)
		}
		due[fmt.Sprint(e.Key, true, e.MapKey)] = true
	}
	for _, name := range []string{state.EventTimersName, state.ProcessingTimersName} {
		for e, err := range offline.Timers(ctx, s.Snapshot, s.op("book"), name, codec.String) {
			if err != nil {
				w.violate("read state: %v", err)
			}
			delete(due, fmt.Sprint(e.Key, name == state.EventTimersName, e.At))
		}
	}
	for k := range due {
		w.violate("state: an alarm is set and its timer is not: %s", k)
	}
	for name, a := range accounts {
		want[fmt.Sprint("balance of ", name)], want[fmt.Sprint("count of ", name)] = a.balance, a.count
		for by, id := range a.last {
			want[fmt.Sprint("last of ", name, " by ", by)] = id
		}
		ids := newest[name]
		for i, id := range ids[max(0, len(ids)-keptNewest):] {
			want[fmt.Sprint("newest of ", name, " at ", i)] = id
		}
		want[fmt.Sprint("bucket ", bucketOf(name))] += a.count
	}
	for name, ids := range alarms {
		for id := range ids {
			want[fmt.Sprint("alarm of ", name, " by ", id)] = 0
		}
	}
	for _, k := range slices.Sorted(maps.Keys(want)) {
		if v, ok := got[k]; !ok || v != want[k] {
			w.violate("state: %s is %d (%v), want %d", k, v, ok, want[k])
		}
	}
	for _, k := range slices.Sorted(maps.Keys(got)) {
		if _, ok := want[k]; !ok {
			w.violate("state: %s is %d, want none", k, got[k])
		}
	}
}
