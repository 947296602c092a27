package integration

import (
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offsets"
)

// world is all that one test has for itself: topics, group, store, input. The input
// follows from a seed, and the oracle computes from the input alone what the output
// must be.
type world struct {
	t       *testing.T
	addrs   []string
	adm     *kadm.Client
	app     string
	in, out string
	dead    string
	store   string
	locals  map[backend]string
	args    []string // of every launch
	runs    int

	rng  *rand.Rand
	keys int

	mu     sync.Mutex
	fed    []fed
	seqs   map[string]int64
	stopIn func() // ends the feeder
}

// fed is an input record that the broker acknowledged.
type fed struct {
	key         string
	seq, amount int64
	poison      bool
	partition   int32
	offset      int64
}

const (
	inPartitions  = 4
	outPartitions = 3
)

var worlds atomic.Int64

// newWorld makes topics on the brokers. keys is the number of keys of the input.
func newWorld(t *testing.T, addrs []string, keys int) *world {
	t.Helper()
	h := fnv.New64a()
	h.Write([]byte(t.Name()))
	seed := h.Sum64()
	app := fmt.Sprintf("%s-%d", strings.ToLower(strings.SplitN(strings.TrimPrefix(t.Name(), "Test"), "_", 2)[0]), worlds.Add(1))
	w := &world{
		t: t, addrs: addrs, adm: admin(t, addrs...), app: app,
		in: app + "-in", out: app + "-out", dead: app + "-dead",
		store: filepath.Join(t.TempDir(), "store"),
		rng:   rand.New(rand.NewPCG(seed, 0)), keys: keys, seqs: map[string]int64{},
	}
	w.topic(w.in, inPartitions, nil)
	w.topic(w.out, outPartitions, nil)
	return w
}

func (w *world) topic(name string, partitions int32, config map[string]*string) {
	w.t.Helper()
	resp, err := w.adm.CreateTopic(w.t.Context(), partitions, -1, config, name)
	if err := errors.Join(err, resp.Err); err != nil {
		w.t.Fatalf("create topic %s: %v", name, err)
	}
	w.elected(name)
}

// elected waits for the leaders of a topic that was made: the broker hears of them a moment
// after the controller did.
func (w *world) elected(name string) {
	w.t.Helper()
	eventually(w.t, progressTime, func() error {
		l, err := w.adm.ListEndOffsets(w.t.Context(), name)
		return errors.Join(err, l.Error())
	})
}

// launch starts the service on this world. Words with "=" are environment variables,
// all others arguments.
func (w *world) launch(words ...string) *process {
	w.t.Helper()
	w.runs++
	env := []string{"WEIR_BROKERS=" + strings.Join(w.addrs, ","), "WEIR_STORE=" + w.store, "WEIR_INSTANCE_ID=one"}
	args := []string{"-app", w.app, "-in", w.in, "-out", w.out}
	for _, word := range append(slices.Clone(w.args), words...) {
		if strings.HasPrefix(word, "WEIR_") {
			env = append(env, word) // the last one counts
		} else {
			args = append(args, word)
		}
	}
	return launch(w.t, fmt.Sprintf("%s run %d", w.app, w.runs), env, args...)
}

// make returns n records of the input that follow those made before.
func (w *world) make(n int) []fed {
	w.mu.Lock()
	defer w.mu.Unlock()
	fs := make([]fed, n)
	for i := range fs {
		key := fmt.Sprintf("key-%d", w.rng.IntN(w.keys))
		w.seqs[key]++
		fs[i] = fed{key: key, seq: w.seqs[key], amount: w.rng.Int64N(2000) - 500}
	}
	return fs
}

// poisoned makes every n-th of fs a poisonous record.
func poisoned(fs []fed, n int) []fed {
	for i := range fs {
		fs[i].poison = i%n == n-1
	}
	return fs
}

func (f fed) record(topic string) *kgo.Record {
	v := fmt.Sprintf("%d %d", f.seq, f.amount)
	if f.poison {
		v = "poison"
	}
	return &kgo.Record{Topic: topic, Key: []byte(f.key), Value: []byte(v)}
}

// producer returns a client that writes to this world.
func (w *world) producer(opts ...kgo.Opt) *kgo.Client {
	w.t.Helper()
	cl, err := kgo.NewClient(append([]kgo.Opt{kgo.SeedBrokers(w.addrs...), kgo.MetadataMinAge(200 * time.Millisecond)}, opts...)...)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(cl.Close)
	return cl
}

// feed writes records and notes where they went.
func (w *world) feed(cl *kgo.Client, fs []fed) error {
	rs := make([]*kgo.Record, len(fs))
	for i, f := range fs {
		rs[i] = f.record(w.in)
	}
	if err := cl.ProduceSync(w.t.Context(), rs...).FirstErr(); err != nil {
		return fmt.Errorf("feed %s: %w", w.in, err)
	}
	for i, r := range rs {
		fs[i].partition, fs[i].offset = r.Partition, r.Offset
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.fed = append(w.fed, fs...)
	return nil
}

// feedNow writes n records and waits for them.
func (w *world) feedNow(n int) {
	w.t.Helper()
	cl := w.producer()
	defer cl.Close()
	if err := w.feed(cl, w.make(n)); err != nil {
		w.t.Fatal(err)
	}
}

// feedOn writes n records every pause in the background, until quench.
func (w *world) feedOn(n int, pause time.Duration) {
	w.t.Helper()
	cl := w.producer()
	stop, done := make(chan struct{}), make(chan struct{})
	var failed error
	go func() {
		defer close(done)
		tick := time.NewTicker(pause)
		defer tick.Stop()
		for failed == nil {
			select {
			case <-stop:
				return
			case <-tick.C:
				fs := w.make(n)
				if w.dead != "" && slices.Contains(w.args, "-dead") {
					fs = poisoned(fs, 20)
				}
				failed = w.feed(cl, fs)
			}
		}
	}()
	var once sync.Once
	w.stopIn = func() {
		once.Do(func() { close(stop) })
		<-done
		if failed != nil {
			w.t.Error(failed)
		}
	}
	w.t.Cleanup(w.stopIn)
}

// quench ends the feeder.
func (w *world) quench() {
	w.t.Helper()
	w.stopIn()
	if w.t.Failed() {
		w.t.FailNow()
	}
}

// input is what was fed so far, in the order of each partition.
func (w *world) input() []fed {
	w.mu.Lock()
	defer w.mu.Unlock()
	fs := slices.Clone(w.fed)
	slices.SortStableFunc(fs, func(a, b fed) int {
		if a.partition != b.partition {
			return int(a.partition - b.partition)
		}
		return int(a.offset - b.offset)
	})
	return fs
}

// model is what the service computes, as a plain loop over the input. It goes
// through some input, and what it emits is collected.
type model struct {
	tallies map[string][3]int64 // count, sum, seq
	outputs map[string][]string // by key, in order
	letters map[string]int      // dead letters, by "partition@offset"
}

func newModel() *model {
	return &model{tallies: map[string][3]int64{}, outputs: map[string][]string{}, letters: map[string]int{}}
}

func (m *model) take(fs ...fed) *model {
	for _, f := range fs {
		if f.poison {
			m.letters[fmt.Sprintf("%d@%d", f.partition, f.offset)]++
			continue
		}
		t := m.tallies[f.key]
		t = [3]int64{t[0] + 1, t[1] + f.amount, f.seq}
		m.tallies[f.key] = t
		m.outputs[f.key] = append(m.outputs[f.key], fmt.Sprintf("%d %d %d", t[0], t[1], t[2]))
	}
	return m
}

// settle waits until the committed offsets are the end of the input.
func (w *world) settle(within time.Duration) {
	w.t.Helper()
	eventually(w.t, within, func() error { return w.behind() })
}

// behind says how far the committed offsets are from the end of the input; nil: they
// are there, in every partition.
func (w *world) behind() error {
	ctx, cancel := context.WithTimeout(w.t.Context(), 5*time.Second)
	defer cancel()
	ends, err := w.adm.ListCommittedOffsets(ctx, w.in)
	if err := errors.Join(err, ends.Error()); err != nil {
		return err
	}
	got, err := w.adm.FetchOffsets(ctx, w.app)
	if err := errors.Join(err, got.Error()); err != nil {
		return err
	}
	var errs []error
	ends.Each(func(e kadm.ListedOffset) {
		if o, ok := got.Lookup(e.Topic, e.Partition); !ok || o.At != e.Offset {
			errs = append(errs, fmt.Errorf("%s/%d: committed %d of %d", e.Topic, e.Partition, o.At, e.Offset))
		}
	})
	return errors.Join(errs...)
}

// judge demands that the committed output is exactly what the model says: each
// output once, in the order of its key, and nothing else.
func (w *world) judge(m *model) {
	w.t.Helper()
	got := map[string][]string{}
	n := 0
	for _, r := range w.committedRecords(w.out) {
		got[string(r.Key)] = append(got[string(r.Key)], tally(string(r.Value)))
		n++
	}
	wrong := 0
	for key, want := range m.outputs {
		if err := sameOutputs(got[key], want); err != nil {
			const told = 5 // the rest is like these
			if wrong++; wrong <= told {
				w.t.Errorf("%s: key %s: %v", w.out, key, err)
			}
		}
	}
	if wrong > 0 {
		w.t.Errorf("%s: %d of %d keys have the wrong output", w.out, wrong, len(m.outputs))
	}
	for key := range got {
		if m.outputs[key] == nil {
			w.t.Errorf("%s: key %s has %d outputs and no input", w.out, key, len(got[key]))
		}
	}
	if slices.Contains(w.args, "-dead") {
		w.judgeLetters(m)
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
	w.t.Logf("%s: %d outputs of %d keys, each once and in order", w.app, n, len(got))
}

// tally cuts the padding off an output.
func tally(v string) string {
	if words := strings.Fields(v); len(words) > 3 {
		return strings.Join(words[:3], " ")
	}
	return v
}

func sameOutputs(got, want []string) error {
	for i := range min(len(got), len(want)) {
		if got[i] != want[i] {
			return fmt.Errorf("output %d of %d is %q, want %q of %d", i+1, len(got), got[i], want[i], len(want))
		}
	}
	if len(got) != len(want) {
		return fmt.Errorf("%d outputs, want %d", len(got), len(want))
	}
	return nil
}

func (w *world) judgeLetters(m *model) {
	w.t.Helper()
	got := map[string]int{}
	for _, r := range w.committedRecords(w.dead) {
		h := map[string]string{}
		for _, kv := range r.Headers {
			h[kv.Key] = string(kv.Value)
		}
		got[h["weir-partition"]+"@"+h["weir-offset"]]++
		if string(r.Value) != "poison" || h["weir-topic"] != w.in || h["weir-app"] != w.app || h["weir-operator"] != "parse" || h["weir-error"] == "" {
			w.t.Errorf("%s: dead letter %q with headers %v", w.dead, r.Value, h)
		}
	}
	for at, n := range m.letters {
		if got[at] != n {
			w.t.Errorf("%s: record %s was dead-lettered %d times, want %d", w.dead, at, got[at], n)
		}
	}
	for at, n := range got {
		if m.letters[at] == 0 {
			w.t.Errorf("%s: record %s was dead-lettered %d times and is not poisonous", w.dead, at, n)
		}
	}
	w.t.Logf("%s: %d dead letters", w.app, len(got))
}

// decided waits until readers can see what the transactions that were ended did: the
// broker says that one is committed before it has told all partitions so.
func (w *world) decided() {
	w.t.Helper()
	eventually(w.t, progressTime, func() error {
		listed, err := w.adm.ListTransactions(w.t.Context(), nil, []string{"PrepareCommit", "PrepareAbort"})
		if err != nil {
			return err
		}
		for _, l := range listed {
			if strings.HasPrefix(l.TxnID, w.app+"/") {
				return fmt.Errorf("transaction %s is %s", l.TxnID, l.State)
			}
		}
		return nil
	})
}

// committedRecords reads what a read_committed reader sees of a topic now.
func (w *world) committedRecords(topic string) []*kgo.Record {
	w.t.Helper()
	w.decided()
	ends, err := w.adm.ListCommittedOffsets(w.t.Context(), topic)
	if err := errors.Join(err, ends.Error()); err != nil {
		w.t.Fatalf("end of %s: %v", topic, err)
	}
	cl := w.producer(kgo.ConsumeTopics(topic), kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.KeepControlRecords(),
		kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer cl.Close()
	open := map[int32]int64{}
	ends.Each(func(e kadm.ListedOffset) {
		if e.Offset > 0 {
			open[e.Partition] = e.Offset
		}
	})
	ctx, cancel := context.WithTimeout(w.t.Context(), progressTime)
	defer cancel()
	var rs []*kgo.Record
	for len(open) > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err0(); err != nil {
			w.t.Fatalf("read %s: %v; %v is left", topic, err, open)
		}
		fs.EachRecord(func(r *kgo.Record) {
			end, ok := open[r.Partition]
			if !ok || r.Offset >= end {
				return // committed since then
			}
			if !r.Attrs.IsControl() {
				rs = append(rs, r)
			}
			if r.Offset == end-1 { // also a marker, and at the end of a topic of transactions it is one
				delete(open, r.Partition)
			}
		})
	}
	return rs
}

// quiet demands that nothing is left open at the broker: no transaction of the app,
// and no partition of its topics in which a reader is held back.
func (w *world) quiet() {
	w.t.Helper()
	eventually(w.t, progressTime, func() error {
		listed, err := w.adm.ListTransactions(w.t.Context(), nil, []string{"Ongoing", "PrepareCommit", "PrepareAbort"})
		if err != nil {
			return err
		}
		for _, l := range listed {
			if strings.HasPrefix(l.TxnID, w.app+"/") {
				return fmt.Errorf("transaction %s is %s", l.TxnID, l.State)
			}
		}
		topics := []string{w.in, w.out, w.app + "-checkpoints"}
		stable, err := w.adm.ListCommittedOffsets(w.t.Context(), topics...)
		if err := errors.Join(err, stable.Error()); err != nil {
			return err
		}
		high, err := w.adm.ListEndOffsets(w.t.Context(), topics...)
		if err := errors.Join(err, high.Error()); err != nil {
			return err
		}
		var pinned []error
		high.Each(func(e kadm.ListedOffset) {
			if s, _ := stable.Lookup(e.Topic, e.Partition); s.Offset != e.Offset {
				pinned = append(pinned, fmt.Errorf("%s/%d: readers are held at %d of %d", e.Topic, e.Partition, s.Offset, e.Offset))
			}
		})
		return errors.Join(pinned...)
	})
}

// finish lets p process the rest, stops it, and has everything judged.
func (w *world) finish(p *process) {
	w.t.Helper()
	w.settleWith(p)
	p.await("restored", 1, progressTime) // where nothing was left to process, it may not even listen to signals yet
	p.stop()
	w.judge(newModel().take(w.input()...))
	w.quiet()
}

// settleWith is settle while p must live.
func (w *world) settleWith(p *process) {
	w.t.Helper()
	const most = 90 * time.Second
	deadline := time.Now().Add(most)
	for {
		err := w.behind()
		if err == nil {
			return
		}
		p.mu.Lock()
		over := p.over
		p.mu.Unlock()
		if over || time.Now().After(deadline) {
			w.t.Fatalf("the input is not processed: %v\n%s", err, p.story())
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// pointer returns the checkpoint that the committed offsets name.
func (w *world) pointer() offsets.ManifestRef {
	w.t.Helper()
	got, err := w.adm.FetchOffsets(w.t.Context(), w.app)
	if err := errors.Join(err, got.Error()); err != nil {
		w.t.Fatal(err)
	}
	o, ok := got.Lookup(w.in, 0)
	if !ok {
		w.t.Fatalf("group %s has no offset of %s/0", w.app, w.in)
	}
	ptr, err := offsets.ParsePointer(o.Metadata)
	if err != nil {
		w.t.Fatal(err)
	}
	return ptr.Manifest
}

// pointed returns the manifest that the committed offsets name, and the name of its
// object in the store, while no app runs.
func (w *world) pointed() (m *checkpoint.Manifest, object string) {
	w.t.Helper()
	w.decided()
	ref := w.pointer()
	st, err := checkpoint.OpenDir(w.store)
	if err != nil {
		w.t.Fatal(err)
	}
	infos, err := checkpoint.ListManifests(w.t.Context(), st)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, i := range infos {
		if i.Checkpoint == ref.Checkpoint && i.Incarnation == ref.Incarnation {
			object = i.Name
		}
	}
	if m, err = checkpoint.Load(w.t.Context(), st, ref); err != nil {
		w.t.Fatal(err)
	}
	return m, object
}
