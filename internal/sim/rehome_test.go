package sim

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/processor"
)

// An app that is rehomed is stopped with a savepoint, or killed and a savepoint made of what
// it committed, and goes on from there: in its group, whose offsets were deleted; under
// another name, so in another group and another store; or in its group with its operators
// renamed. All of the input still counts once across that.

// origin is what the app goes on from.
type origin struct {
	name   string // of a savepoint; empty: its last checkpoint, with another input
	anyApp bool
	from   offsets.CommitRecord // what was committed before
	// choice is what whoever starts first has to be told, as the commit topic knows another way.
	choice   weir.Recovery
	over     atomic.Bool // somebody said that it committed, so the choice is taken back
	followed bool        // a commit after it was seen; world.mu is held
}

// savepoint is one that is complete.
type savepoint struct {
	name   string
	disk   *disk
	suffix string // of the operators
	input  int64  // how many inputs there were before that of its positions
}

// snapshot is one of an app whose operators have a suffix.
type snapshot struct {
	*offline.Snapshot
	suffix string
	input  int64 // as that of a savepoint
}

func (s snapshot) op(name string) string { return name + s.suffix }

// links are stores by the URLs by which lives find them.
var links struct {
	sync.Map
	n atomic.Int64
}

func init() {
	checkpoint.RegisterScheme("sim", func(url string) (checkpoint.Store, error) {
		s, ok := links.LoadAndDelete(url)
		if !ok {
			return nil, fmt.Errorf("no store %s", url)
		}
		return s.(checkpoint.Store), nil
	})
}

// options are those of a life that finds the origin in its store.
func (o *origin) options(store checkpoint.Store) []weir.Option {
	if o == nil {
		return nil
	}
	var opts []weir.Option
	if o.name != "" {
		url := fmt.Sprint("sim://", links.n.Add(1))
		links.Store(url, store)
		var more []weir.SavepointOption
		if o.anyApp {
			more = append(more, weir.AnyApp())
		}
		opts = append(opts, weir.FromSavepoint(url, o.name, more...))
	}
	if !o.over.Load() {
		opts = append(opts, weir.OnMismatch(o.choice))
	}
	return opts
}

// app is the name that the app has by now.
func (w *world) app() string {
	if n := w.renamed.Load(); n > 0 {
		return fmt.Sprint(appName, "-", n)
	}
	return appName
}

// suffix is what the operators with state are called by now, behind their names.
func (w *world) suffix() string {
	if n := w.edited.Load(); n > 0 {
		return fmt.Sprint("-", n)
	}
	return ""
}

// store is where the checkpoints are by now.
func (w *world) store() *disk {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.disk
}

// close makes lives that end have no successor until open is called. It returns those that
// there are.
func (w *world) close() (lives []*life, open func()) {
	gate := make(chan struct{})
	w.mu.Lock()
	w.gate = gate
	w.mu.Unlock()
	for _, in := range w.instances {
		if l := in.current(); l != nil { // who is about to begin holds the lock
			lives = append(lives, l)
		}
	}
	return lives, func() {
		w.mu.Lock()
		w.gate = nil
		w.mu.Unlock()
		close(gate)
	}
}

// closed returns what whoever wants to begin a life has to wait for; nil: nothing.
func (w *world) closed() chan struct{} {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.gate
}

// end makes sure that a life is over.
func (l *life) end() {
	if !isClosed(l.done) {
		l.kill(0)
	}
}

// rehomed waits until nobody moves the app any more.
func (w *world) rehomed() bool {
	select {
	case w.rehoming <- struct{}{}:
		<-w.rehoming
		return true
	case <-time.After(2 * drainWithin):
		return false
	}
}

// rehome moves the app. One at a time does.
func (w *world) rehome(ctx context.Context, s step) {
	lives, open := w.close()
	defer open()
	act, name := w.active().current(), fmt.Sprint("home-", w.homesMade.Add(1))
	for _, l := range lives {
		if l != act || s.on == "kill" {
			l.end()
		}
	}
	err := errors.New("everybody was killed")
	if s.on != "kill" && act != nil {
		act.asked.Store(true)
		within, cancel := context.WithTimeout(ctx, saveWithin)
		if _, err = act.app.StopWithSavepoint(within, "", name); err == nil {
			select {
			case <-act.done:
			case <-within.Done():
			}
		}
		cancel()
		w.note(act.String(), "stop with savepoint %s: %v", name, err)
	}
	for _, l := range lives {
		l.end()
	}
	if !w.settled(ctx) {
		return
	}
	last, ok := w.lastCommit()
	if !ok {
		w.note("", "nothing was committed: the app begins again")
		return
	}
	disk, suffix := w.store(), w.suffix()
	var cut *offline.Snapshot
	if err == nil {
		w.mu.Lock()
		w.savepoints = append(w.savepoints, savepoint{name, disk, suffix, w.reads.Load()})
		w.mu.Unlock()
	} else {
		// From the store, without the app; it may hold records in flight.
		if cut, err = offline.Open(ctx, disk.Mem, last.Manifest.Object()); err == nil {
			name += "-offline"
			_, err = cut.Save(ctx, disk.Mem, name, nil)
		}
	}
	if err == nil {
		cut, err = offline.Open(ctx, disk.Mem, "savepoint:"+name)
	}
	if err == nil && cut.Info().Checkpoint != last.Manifest.Checkpoint {
		w.violate("savepoint %s is of checkpoint %d, checkpoint %d of %s was committed last", name, cut.Info().Checkpoint, last.Manifest.Checkpoint, last.Instance)
	}
	o := &origin{from: last, anyApp: s.mode == "app"}
	if s.mode != "app" {
		o.choice = weir.RecoverSavepoint
	}
	if err == nil {
		err = w.take(ctx, s.mode, disk, cut, name, o)
	}
	if err != nil {
		w.violate("%v: %v", s, err)
		return
	}
	w.mu.Lock()
	w.origin = o
	w.mu.Unlock()
	w.note("", "the app goes on from savepoint %s, checkpoint %d, as %s with operators %q", o.name, last.Manifest.Checkpoint, w.app(), w.suffix())
}

// take prepares what the next lives begin with.
func (w *world) take(ctx context.Context, mode string, disk *disk, cut *offline.Snapshot, name string, o *origin) error {
	o.name = name
	switch mode {
	case "rename":
		was, now := w.suffix(), fmt.Sprint("-", w.edited.Load()+1)
		b := offline.Edit(cut, offline.BuildOptions{})
		defer b.Close()
		for _, op := range []string{"book", "count", "by-account", "by-bucket"} {
			err := b.RenameOperator(op+was, op+now)
			// Of a KeyBy there is event time and what is in flight, or nothing.
			var unknown *offline.UnknownStateError
			if err != nil && !(strings.HasPrefix(op, "by-") && errors.As(err, &unknown)) {
				return err
			}
		}
		o.name += "-renamed"
		if _, err := b.Write(ctx, disk.Mem, o.name); err != nil {
			return err
		}
		w.edited.Add(1)
		return w.deleteOffsets(ctx, w.inputs()...)
	case "app":
		to := newDisk()
		to.archive = disk.archive
		if _, err := checkpoint.CopySavepoint(ctx, disk.Mem, name, to.Mem, name, nil); err != nil {
			return err
		}
		w.mu.Lock()
		w.disk = to
		w.mu.Unlock()
		w.renamed.Add(1)
		w.watcher.AddConsumeTopics(w.app() + commitTopicSuffix)
		return nil
	}
	return w.deleteOffsets(ctx, w.inputs()...)
}

// settled waits until what the dead had under way is decided, and seen: a commit that can
// still happen has its record in the commit topic.
func (w *world) settled(ctx context.Context) bool {
	topic := w.app() + commitTopicSuffix
	return w.within("the transactions of the dead are decided", func() error {
		ends, err := w.adm.ListEndOffsets(ctx, topic)
		stable, err2 := w.adm.ListCommittedOffsets(ctx, topic)
		if err := errors.Join(err, err2); err != nil {
			return err
		}
		end, ok := ends.Lookup(topic, 0)
		if !ok || end.Err != nil {
			return nil // there is no such topic yet
		}
		if s, _ := stable.Lookup(topic, 0); s.Offset != end.Offset {
			return fmt.Errorf("%s is decided up to %d of %d", topic, s.Offset, end.Offset)
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		if seen := w.watched[topic]; seen < end.Offset {
			return fmt.Errorf("%s was read up to %d of %d", topic, seen, end.Offset)
		}
		return nil
	})
}

// within repeats what has to succeed at last.
func (w *world) within(what string, do func() error) bool {
	for begin := time.Now(); ; {
		err := do()
		if err == nil {
			return true
		}
		if time.Since(begin) > drainWithin {
			w.violate("after %v it is not so yet that %s: %v", drainWithin, what, err)
			return false
		}
		select {
		case <-time.After(250 * time.Millisecond):
		case <-w.ending:
			return false
		}
	}
}

// lastCommit returns what was committed last; false if that is nothing, or nothing since the
// app was moved.
func (w *world) lastCommit() (last offsets.CommitRecord, ok bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.commits) == 0 || w.origin != nil && !w.origin.followed {
		return last, false
	}
	return w.commits[len(w.commits)-1], true
}

// deleteOffsets deletes those of the group, once nobody is in it any more.
func (w *world) deleteOffsets(ctx context.Context, topics ...string) error {
	if !w.within("the group's offsets are deleted", func() error {
		for _, in := range w.instances {
			w.evict(ctx, in)
		}
		at, err := w.adm.FetchOffsets(ctx, w.app())
		maps.DeleteFunc(at, func(topic string, _ map[int32]kadm.OffsetResponse) bool { return !slices.Contains(topics, topic) })
		if err != nil || len(at) == 0 {
			return err
		}
		rs, err := w.adm.DeleteOffsets(ctx, w.app(), at.Offsets().TopicsSet())
		return errors.Join(err, rs.Error())
	}) {
		return errors.New("the group's offsets are still there")
	}
	return nil
}

// seam holds the first commit of an app that was rehomed against the savepoint: it is made of
// that, whose positions are those that were committed last. w.mu is not held.
func (w *world) seam(o *origin, r offsets.CommitRecord, m *checkpoint.Manifest) {
	if o.name == "" {
		if m.Parent != o.from.Manifest {
			w.violate("checkpoint %d of %s, the first with another input, is made of checkpoint %d, not of checkpoint %d", r.Manifest.Checkpoint, r.Instance, m.Parent.Checkpoint, o.from.Manifest.Checkpoint)
		}
		return
	}
	made, err := checkpoint.Load(context.Background(), w.store().archive, m.Parent)
	switch {
	case err != nil:
		w.violate("checkpoint %d of %s, the first after savepoint %s, is made of checkpoint %d: %v", r.Manifest.Checkpoint, r.Instance, o.name, m.Parent.Checkpoint, err)
	case m.Parent == o.from.Manifest, made.Checkpoint <= o.from.Manifest.Checkpoint:
		w.violate("checkpoint %d of %s, the first after savepoint %s, is made of checkpoint %d, which was there before", r.Manifest.Checkpoint, r.Instance, o.name, m.Parent.Checkpoint)
	case !maps.Equal(made.Positions, o.from.Positions):
		w.violate("checkpoint %d of %s, the first after savepoint %s, is made of one at %s, the savepoint is at %s", r.Manifest.Checkpoint, r.Instance, o.name, at(made.Positions), at(o.from.Positions))
	}
}

// recreate deletes the input and makes it again while the app runs. It has to refuse to go on;
// then what operations.md says is done: its state is kept, and the new input read from its
// beginning. What was not processed of the old one is gone.
func (w *world) recreate(ctx context.Context, s step) {
	w.rehoming <- struct{}{}
	if _, ok := w.lastCommit(); !ok {
		w.note("", "nothing was committed: the input stays")
		<-w.rehoming
		return
	}
	noticed := make(chan struct{})
	w.mu.Lock()
	w.noticed = noticed
	w.mu.Unlock()
	topics, err := w.adm.ListTopics(ctx, inTopic)
	was := checkpoint.TopicID(topics[inTopic].ID)
	if err == nil {
		_, err = w.adm.DeleteTopics(ctx, inTopic)
	}
	w.feeds.Add(1)
	if err == nil {
		_, err = w.adm.CreateTopics(ctx, int32(w.partitions), 1, nil, inTopic)
	}
	if err != nil {
		w.violate("recreate the input: %v", err)
	}
	w.watching.Go(func() {
		defer func() { <-w.rehoming }()
		begin, group := time.Now(), w.groupWatch()
		for {
			select {
			case <-noticed:
				w.note("", "it was noticed that the input is another one")
				w.renew(ctx, was)
				return
			case <-w.ending:
				return
			case <-time.After(askEvery):
			}
			if group.loosened() {
				begin = time.Now()
			}
			if time.Since(begin) > drainWithin {
				w.violate("%v after the input was deleted and made again nobody has noticed", drainWithin)
				return
			}
		}
	})
}

// renew lets the app go on with its state and the new input.
func (w *world) renew(ctx context.Context, was checkpoint.TopicID) {
	lives, open := w.close()
	defer open()
	for _, l := range lives {
		l.end()
	}
	if !w.settled(ctx) {
		return
	}
	last, _ := w.lastCommit()
	m, err := checkpoint.Load(ctx, w.store().archive, last.Manifest)
	if err == nil && m.TopicIDs[inTopic] != was {
		err = fmt.Errorf("checkpoint %d of %s was committed with positions of the new input", last.Manifest.Checkpoint, last.Instance)
	}
	if err == nil {
		err = w.deleteOffsets(ctx, inTopic)
	}
	if err != nil {
		w.violate("the input was deleted and made again: %v", err)
		return
	}
	w.mu.Lock()
	all := len(w.input)
	w.input = slices.DeleteFunc(w.input, func(t fed) bool {
		return t.input == w.reads.Load() && t.offset >= last.Positions[offsets.Partition{Topic: inTopic, Partition: t.partition}].Offset
	})
	gone := all - len(w.input)
	w.origin = &origin{from: last, choice: weir.RecoverOffsets}
	w.mu.Unlock()
	w.reads.Store(w.feeds.Load())
	w.note("", "the app goes on from checkpoint %d with the new input; %d records of the old one are gone", last.Manifest.Checkpoint, gone)
}

// isOther tells whether the input is another one than that which the life was to read, and
// whether the error says so. world.mu is not held.
func (l *life) isOther() bool {
	w := l.in.w
	if l.input == w.feeds.Load() {
		return false
	}
	var (
		recreated *processor.RecreatedError
		forgotten *processor.ForgottenError
		lost      *offsets.LostOffsetError
	)
	if !errors.As(l.err, &recreated) && !errors.As(l.err, &forgotten) && !errors.As(l.err, &lost) && !strings.Contains(l.err.Error(), "gone or was recreated") {
		return false
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.noticed != nil {
		close(w.noticed)
		w.noticed = nil
	}
	return true
}

// recreates makes the input of every fiftieth world anew.
func (sc *script) recreates(r *rand.Rand, within time.Duration) {
	if r.IntN(50) > 0 {
		return
	}
	at := sc.insert(r, step{verb: verbRecreate, mode: "refused"}, within)
	for range 2 { // one that has nothing to read may not notice
		sc.steps = append(sc.steps, step{at: at + time.Duration(r.IntN(3000))*time.Millisecond, verb: verbFeed, mode: "plain", n: 1 + r.IntN(60)})
	}
}

// rehomes lets the app of every 25th world go on from a savepoint.
func (sc *script) rehomes(r *rand.Rand, within time.Duration) {
	if r.IntN(25) > 0 {
		return
	}
	at := sc.insert(r, step{verb: verbRehome, mode: pick(r, "offsets", "app", "app", "rename", "rename"), on: pick(r, "", "", "kill")}, within)
	// Somebody is often killed as it stops, or as it begins.
	if r.IntN(2) == 0 {
		sc.steps = append(sc.steps, step{at: at, verb: verbKill, who: active, on: pick(r, "put", "EndTxn", "TxnOffsetCommit", "Produce"), mode: pick(r, "before", "after"), n: 1 + r.IntN(2)})
	}
	sc.steps = append(sc.steps, step{at: at + time.Duration(r.IntN(3000))*time.Millisecond, verb: verbFeed, mode: "plain", n: 1 + r.IntN(60)})
}
