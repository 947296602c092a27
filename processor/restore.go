package processor

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/txn"
)

// restoring is the one restore of an incarnation. The client may cancel and repeat
// the hook that asks for it; the loading goes on and the next call finds it.
type restoring struct {
	began bool
	from  map[offsets.Partition]offsets.Committed // what was committed when it began
	done  chan struct{}
	state recovered
	err   error
}

// recovered is where an incarnation begins.
type recovered struct {
	manifest  *checkpoint.Manifest                   // nil: empty state
	ref       offsets.ManifestRef                    // of manifest
	last      int64                                  // highest checkpoint id that is known to have been used
	told      int64                                  // to sinks, in place of the id of ref; 0: that one
	spare     int64                                  // highest checkpoint id that may be gone back to while manifest is not committed
	leaves    offsets.ManifestRef                    // the newest committed checkpoint, if it is given up
	positions map[offsets.Partition]offsets.Position // of every assigned partition
	mended    bool                                   // after a mismatch, as the operator asked
}

// Restore implements [txn.Handler]: it is called with the partitions that the
// group assigned and what is committed for them, before anything is fetched.
func (inc *incarnation) Restore(ctx context.Context, committed map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Position, error) {
	<-inc.opened
	inc.cfg.Listener.Rebalanced(event.Rebalanced{App: inc.cfg.App, Assigned: sortedPartitions(committed)})
	if len(committed) == 0 {
		return nil, nil
	}
	inc.duty.Store(int32(dutyActive))
	if inc.hasStarted() {
		return inc.join(ctx, committed)
	}
	inc.stopFollowing()
	<-inc.followed
	r := &inc.restore
	begun := time.Now()
	if !r.began {
		// All of them are this instance's, since one is active. If those that are assigned are
		// at their ends already, nothing else would keep the drain from being over.
		if err := inc.awaitAssigned(ctx, committed, sortedPartitions(inc.ends), "the app is to drain"); err != nil {
			return nil, err
		}
		state, err := inc.recover(ctx, committed)
		if ctx.Err() != nil {
			return nil, ctx.Err()
		}
		if err != nil {
			return nil, inc.overtakenSince(ctx, committed, err)
		}
		if err := inc.prepare(state); err != nil {
			return nil, err
		}
		r.began, r.from, r.state, r.done = true, maps.Clone(committed), state, make(chan struct{})
		inc.spawn(func() error {
			defer close(r.done)
			r.err = inc.load(inc.ctx, state, begun)
			return nil // reported by the hook
		})
	}
	// Between two calls the group may have given the partitions to others and back.
	for p, c := range committed {
		if from, ok := r.from[p]; ok && from != c {
			return nil, fmt.Errorf("others have committed partition %s while state was being restored: restarting from what they committed", p)
		}
	}
	select {
	case <-r.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if r.err != nil {
		return nil, inc.overtakenSince(ctx, committed, r.err)
	}
	if err := inc.awaitAssigned(ctx, committed, sortedPartitions(r.state.positions), "the checkpoint has state of"); err != nil {
		return nil, err
	}
	positions := map[offsets.Partition]offsets.Position{}
	for p := range committed {
		pos, ok := r.state.positions[p]
		if !ok {
			return nil, fmt.Errorf("partition %s was added while state was being restored: restarting to take it up", p)
		}
		positions[p] = pos
	}
	inc.start(positions)
	return positions, nil
}

// rejoinEvery is how often the group is asked for partitions that it did not assign.
const rejoinEvery = time.Second

// awaitAssigned returns when all partitions of a list are assigned, of which why says what is
// to be done with them. A leader of the group that has not seen yet that partitions were added
// assigns the others alone. To begin with those, where state is about the rest, would leave its
// positions behind, in offsets that name an older checkpoint, and let time pass it by. The
// rebalance that brings them ends ctx, and Restore is called again.
func (inc *incarnation) awaitAssigned(ctx context.Context, committed map[offsets.Partition]offsets.Committed, all []offsets.Partition, why string) error {
	if guard.Broken(guard.WholeAssignment) {
		return nil
	}
	topics := inc.plan.Sources.Topics()
	missing := slices.DeleteFunc(all, func(p offsets.Partition) bool {
		_, ok := committed[p]
		return ok || !slices.Contains(topics, p.Topic)
	})
	for warned := false; len(missing) > 0; {
		listed, err := kadm.NewClient(inc.sess.Client()).ListTopics(ctx, topics...)
		if err != nil {
			return fmt.Errorf("asking for the partitions of the input: %w", err)
		}
		for _, p := range missing {
			if _, ok := listed[p.Topic].Partitions[p.Partition]; !ok {
				return fmt.Errorf("%s partition %s, and the broker knows of no such partition: it has not heard of it yet, or the topic was recreated", why, p)
			}
		}
		if !warned {
			inc.cfg.Logger.Sugar().Warnf("%s %v, and the group did not assign them; waiting until it does", why, missing)
			warned = true
		}
		wait := time.NewTimer(rejoinEvery)
		select {
		case <-wait.C:
			inc.sess.Rejoin()
		case <-ctx.Done():
			wait.Stop()
			return ctx.Err()
		}
	}
	return nil
}

// prepare makes all that goes on from at, without state yet.
func (inc *incarnation) prepare(at recovered) error {
	inc.nonce = newNonce()
	inc.lineage = checkpoint.NewLineage()
	if m := at.manifest; m != nil && !at.mended && m.Lineage != "" {
		inc.lineage = m.Lineage
	}
	if err := inc.openAppliers(at); err != nil {
		return err
	}
	return inc.build(at)
}

// newNonce returns what tells checkpoints from those of others with the same id.
func newNonce() uint32 {
	var b [4]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.BigEndian.Uint32(b[:])
}

// overtaken looks why an object is missing. To a process that was stopped, others may have
// committed meanwhile, and what it goes by was garbage since then. A restart reads the offsets
// again. others tells whether an offset is not the one that this process knows.
func (inc *incarnation) overtaken(ctx context.Context, err error, others func(p offsets.Partition, metadata string) bool) error {
	var missing *checkpoint.MissingError
	if !errors.As(err, &missing) {
		return err
	}
	got, ferr := kadm.NewClient(inc.sess.Client()).FetchOffsets(ctx, inc.cfg.Group)
	if ferr != nil {
		return fmt.Errorf("%v; whether others have committed meanwhile, so that it was garbage, can't be told: %w", err, ferr)
	}
	for _, o := range got.Sorted() {
		if p := (offsets.Partition{Topic: o.Topic, Partition: o.Partition}); others(p, o.Metadata) {
			return fmt.Errorf("others have committed partition %s meanwhile, and deleted object %s, which this process was still to read: restarting from what they committed", p, missing.Object)
		}
	}
	return err
}

// overtakenSince is overtaken for a restore that goes by committed.
func (inc *incarnation) overtakenSince(ctx context.Context, committed map[offsets.Partition]offsets.Committed, err error) error {
	return inc.overtaken(ctx, err, func(p offsets.Partition, metadata string) bool {
		c, ok := committed[p]
		return ok && metadata != c.Metadata
	})
}

// overtakenAtWork is overtaken for what failed when state had been restored.
func (inc *incarnation) overtakenAtWork(err error) error {
	head := inc.head.Load()
	if head == nil || !inc.hasStarted() {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	return inc.overtaken(ctx, err, func(_ offsets.Partition, metadata string) bool {
		return goesBeyond(metadata, *head, inc.nonce)
	})
}

// goesBeyond tells whether an offset was committed after head by who isn't the incarnation own.
// The answer to a commit of its own may be under way.
func goesBeyond(metadata string, head offsets.ManifestRef, own uint32) bool {
	at, err := offsets.ParsePointer(metadata)
	return err == nil && at.Manifest.Checkpoint > head.Checkpoint && at.Manifest.Incarnation != own
}

// join takes up partitions that appear while the job runs.
func (inc *incarnation) join(ctx context.Context, committed map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Position, error) {
	for p := range committed {
		if inc.partition(p) == nil {
			// Its owner has to know it before a barrier: the next incarnation, which
			// starts from a checkpoint, does.
			return nil, fmt.Errorf("partition %s was added: restarting from the last checkpoint to take it up", p)
		}
	}
	return nil, nil
}

// recover decides where to begin: the pointer decides, and nothing else.
func (inc *incarnation) recover(ctx context.Context, committed map[offsets.Partition]offsets.Committed) (recovered, error) {
	// An instance may have stood by for long, and the store was taken over meanwhile. It is
	// never taken back here: what it may be taken from was said when the job began.
	if err := inc.owner.Claim(ctx); err != nil {
		return recovered{}, classifyStore(err)
	}
	verdict, err := offsets.Verify(inc.cfg.App, committed)
	if err != nil {
		return inc.recoverAfter(ctx, committed, err)
	}
	if verdict.Fresh {
		last, ok, err := txn.LastCommitRecord(ctx, inc.cfg.Kafka, inc.cfg.CommitTopic, inc.cfg.App)
		if err != nil {
			return recovered{}, err
		}
		if !ok && inc.cfg.From.given() {
			return inc.fromSavepoint(ctx, committed)
		}
		if ok {
			return inc.recoverAfter(ctx, committed, inc.forgotten(last))
		}
		r, err := inc.fromScratch(ctx, committed)
		if err == nil {
			r.last, err = inc.highestStored(ctx)
		}
		return r, err
	}
	inc.fence(ctx, verdict.Instance)
	m, err := checkpoint.Load(ctx, inc.cfg.Store, verdict.Manifest)
	if err != nil {
		return recovered{}, classifyStore(err)
	}
	positions := inc.ofInputs(m.Positions)
	all, err := inc.withUnassigned(ctx, positions, committed)
	if err != nil {
		return recovered{}, err
	}
	if err := errors.Join(offsets.VerifyPositions(positions, all), joined(inc.recreated(m))); err != nil {
		return inc.recoverAfter(ctx, committed, err)
	}
	r := recovered{manifest: m, ref: verdict.Manifest, last: m.Checkpoint, positions: positions}
	return r, inc.addNew(ctx, committed, r.positions)
}

// fence ends the transaction of the instance that committed last, if that is another
// one. It owns nothing any more, since one instance owns everything; but if it was
// killed, what it produced since then would hold up readers of the outputs until the
// transaction timeout.
func (inc *incarnation) fence(ctx context.Context, instance string) {
	if instance == inc.cfg.Instance {
		return
	}
	if err := inc.sess.Fence(ctx, instance); err != nil && ctx.Err() == nil {
		inc.cfg.Logger.Sugar().Warnf("ending the transaction of instance %q, which was active before: %v; readers of its outputs may wait for the transaction timeout", instance, err)
	}
}

// ofInputs returns the positions of topics that the topology reads. Of one that was taken
// out nothing is read any more: it may be deleted, and its offsets with it.
func (inc *incarnation) ofInputs(positions map[offsets.Partition]offsets.Position) map[offsets.Partition]offsets.Position {
	topics := inc.plan.Sources.Topics()
	read := maps.Clone(positions)
	maps.DeleteFunc(read, func(p offsets.Partition, _ offsets.Position) bool { return !slices.Contains(topics, p.Topic) })
	return read
}

// withUnassigned adds what is committed for partitions that the checkpoint names
// and the assignment lacks.
func (inc *incarnation) withUnassigned(ctx context.Context, positions map[offsets.Partition]offsets.Position, committed map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Committed, error) {
	all := maps.Clone(committed)
	var missing []offsets.Partition
	for p := range positions {
		if _, ok := all[p]; !ok {
			missing = append(missing, p)
		}
	}
	if len(missing) == 0 {
		return all, nil
	}
	got, err := kadm.NewClient(inc.sess.Client()).FetchOffsets(ctx, inc.cfg.Group)
	if err != nil {
		return nil, fmt.Errorf("reading the committed offsets of group %s: %w", inc.cfg.Group, err)
	}
	for _, p := range missing {
		o, ok := got.Lookup(p.Topic, p.Partition)
		if !ok || o.At < 0 {
			all[p] = offsets.Committed{}
			continue
		}
		all[p] = offsets.Committed{Position: offsets.Position{Offset: o.At, LeaderEpoch: o.LeaderEpoch}, Metadata: o.Metadata, Exists: true}
	}
	return all, nil
}

// ForgottenError says that the group has no offsets although checkpoints were
// committed: they expired, somebody deleted the group, or the app reads other topics.
type ForgottenError struct {
	Group, Topic string
	Checkpoint   int64
	At           time.Time
	// Was are the topics that the checkpoint was made of, Is those that the app reads. Both
	// are empty if they have one in common.
	Was, Is []string
}

// forgotten returns the error for inputs without offsets although last was committed.
func (inc *incarnation) forgotten(last offsets.CommitRecord) *ForgottenError {
	e := &ForgottenError{Group: inc.cfg.Group, Topic: inc.cfg.CommitTopic, Checkpoint: last.Manifest.Checkpoint, At: last.At}
	if len(last.Positions) > 0 && len(inc.ofInputs(last.Positions)) == 0 {
		was := map[string]bool{}
		for p := range last.Positions {
			was[p.Topic] = true
		}
		e.Was, e.Is = slices.Sorted(maps.Keys(was)), slices.Sorted(slices.Values(inc.plan.Sources.Topics()))
	}
	return e
}

func (e *ForgottenError) Error() string {
	if len(e.Was) > 0 {
		return fmt.Sprintf("group %q has no committed offsets of the topics that the app reads, %q, and topic %q says that checkpoint %d was committed at %s after reading %q: all inputs were replaced by others"+
			"\n  to keep the state and read the new inputs from their beginning: weir.OnMismatch(weir.RecoverCheckpoint) or WEIR_RECOVER=checkpoint"+
			"\n  to start empty from the beginning of the new inputs: weir.OnMismatch(weir.RecoverNothing) or WEIR_RECOVER=nothing"+
			"\n  to go on where the app stopped: let it read the old inputs again",
			e.Group, e.Is, e.Topic, e.Checkpoint, e.At.UTC().Format(time.RFC3339), e.Was)
	}
	return fmt.Sprintf("group %q has no committed offsets, but topic %q says that checkpoint %d was committed at %s: the offsets expired or the group was deleted"+
		"\n  to go on from that checkpoint: weir.OnMismatch(weir.RecoverCheckpoint) or WEIR_RECOVER=checkpoint"+
		"\n  to start empty from the beginning of the input: weir.OnMismatch(weir.RecoverNothing) or WEIR_RECOVER=nothing",
		e.Group, e.Topic, e.Checkpoint, e.At.UTC().Format(time.RFC3339))
}

// RecreatedError says that an input topic is not the one that the checkpoint's positions are
// of: it was deleted and created again. Brokers delete the group's offsets with the topic,
// but a commit that was under way may come after that, and before version 6 of
// TxnOffsetCommit it knows topics by name. A savepoint may be of another topic as well.
type RecreatedError struct {
	Group, Topic string
	Checkpoint   int64
	Was, Is      checkpoint.TopicID
	Savepoint    string // empty: the checkpoint is the app's own
}

func (e *RecreatedError) Error() string {
	if e.Savepoint != "" {
		return fmt.Sprintf("input topic %q has the id %s, and the savepoint in %s was made of one with the id %s: it was deleted and created again, or the cluster is another one; the savepoint's positions are those of the other topic, and to go on there may leave out records of this one"+
			"\n  to take the state alone and read the input from its beginning: weir.DropPositions()"+
			"\n  if the topic is a copy in which each record has the offset that it had: weir.AnyTopics()",
			e.Topic, e.Is, e.Savepoint, e.Was)
	}
	return fmt.Sprintf("input topic %q has the id %s, and checkpoint %d was made of one with the id %s: it was deleted and created again; the checkpoint's positions are those of the old one, and to go on there would leave out the records of the new one before them"+
		"\n  to start empty: stop all processes, delete what offsets of the topic the group has (kafka-consumer-groups --delete-offsets --group %s --topic %s), and choose weir.OnMismatch(weir.RecoverNothing) or WEIR_RECOVER=nothing"+
		"\n  to keep the state: stop all processes, set the group's offsets of the topic to where the new one is to be read from, or delete them to read it from its beginning, and choose weir.OnMismatch(weir.RecoverOffsets) or WEIR_RECOVER=offsets"+
		"\n  what had not been read of the old one is lost",
		e.Topic, e.Is, e.Checkpoint, e.Was, e.Group, e.Topic)
}

// recreated returns an error for each input topic that is not the one that the positions of
// m are of, as far as both are known.
func (inc *incarnation) recreated(m *checkpoint.Manifest) []*RecreatedError {
	var errs []*RecreatedError
	is := inc.topicIDs()
	for _, topic := range slices.Sorted(maps.Keys(is)) {
		if was, ok := m.TopicIDs[topic]; ok && was != is[topic] {
			errs = append(errs, &RecreatedError{Group: inc.cfg.Group, Topic: topic, Checkpoint: m.Checkpoint, Was: was, Is: is[topic]})
		}
	}
	return errs
}

func joined(recreated []*RecreatedError) error {
	var errs []error
	for _, e := range recreated {
		errs = append(errs, e)
	}
	return errors.Join(errs...)
}

// topicIDs returns those of the inputs, as far as the brokers have any.
func (inc *incarnation) topicIDs() map[string]checkpoint.TopicID {
	if inc.sess == nil {
		return nil // a stepper has no brokers
	}
	ids := map[string]checkpoint.TopicID{}
	for _, topic := range inc.plan.Sources.Topics() {
		if id := inc.sess.TopicID(topic); id != [16]byte{} {
			ids[topic] = id
		}
	}
	return ids
}

// recoverAfter goes the way that the operator chose after offsets and checkpoint
// were found to disagree; without a choice it refuses.
func (inc *incarnation) recoverAfter(ctx context.Context, committed map[offsets.Partition]offsets.Committed, mismatch error) (recovered, error) {
	var newer *offsets.VersionError
	if errors.As(mismatch, &newer) {
		return recovered{}, fatal(mismatch) // a newer program's work is not to be undone
	}
	switch inc.cfg.Recovery {
	case RecoverNothing:
		inc.cfg.Logger.Sugar().Warnf("starting empty, as asked (recovery %q), because: %v", inc.cfg.Recovery, mismatch)
		r, err := inc.fromScratch(ctx, committed)
		if err != nil {
			return r, err
		}
		r.mended = true
		if r.leaves, _, err = inc.newestRef(ctx, committed); err != nil {
			return recovered{}, err
		}
		stored, err := inc.highestStored(ctx)
		r.last = max(r.leaves.Checkpoint, stored)
		return r, err
	case RecoverSavepoint:
		if !inc.cfg.From.given() {
			return recovered{}, fatal(fmt.Errorf("recovery %q: no savepoint is named (weir.FromSavepoint, WEIR_FROM): %w", inc.cfg.Recovery, mismatch))
		}
		inc.cfg.Logger.Sugar().Warnf("starting from a savepoint, as asked (recovery %q), because: %v", inc.cfg.Recovery, mismatch)
		return inc.fromSavepoint(ctx, committed)
	case RecoverCheckpoint, RecoverOffsets:
		inc.cfg.Logger.Sugar().Warnf("recovering as asked (recovery %q), because: %v", inc.cfg.Recovery, mismatch)
	default:
		return recovered{}, fatal(mismatch)
	}
	ref, ok, err := inc.newestRef(ctx, committed)
	if err != nil {
		return recovered{}, err
	}
	if !ok {
		return recovered{}, fatal(fmt.Errorf("no pointer and no commit record names a checkpoint to recover; choose WEIR_RECOVER=nothing to start empty: %w", mismatch))
	}
	m, err := checkpoint.Load(ctx, inc.cfg.Store, ref)
	if err != nil {
		return recovered{}, classifyStore(err)
	}
	recreated := inc.recreated(m)
	if len(recreated) > 0 && inc.cfg.Recovery == RecoverCheckpoint {
		return recovered{}, fatal(fmt.Errorf("recovery %q is not possible: %w", inc.cfg.Recovery, joined(recreated)))
	}
	// Also those of partitions that the group did not assign: Restore waits for them.
	r := recovered{manifest: m, ref: ref, last: m.Checkpoint, mended: true, positions: inc.ofInputs(m.Positions)}
	for _, e := range recreated {
		maps.DeleteFunc(r.positions, func(p offsets.Partition, _ offsets.Position) bool { return p.Topic == e.Topic })
	}
	if inc.cfg.Recovery == RecoverOffsets {
		all, err := inc.withUnassigned(ctx, inc.ofInputs(m.Positions), committed)
		if err != nil {
			return recovered{}, err
		}
		for p, c := range all {
			if c.Exists {
				r.positions[p] = c.Position
			}
		}
	}
	return r, inc.addNew(ctx, committed, r.positions)
}

// newestRef is the newest checkpoint that a pointer or the commit topic names.
func (inc *incarnation) newestRef(ctx context.Context, committed map[offsets.Partition]offsets.Committed) (ref offsets.ManifestRef, ok bool, err error) {
	for _, c := range committed {
		if p, err := offsets.ParsePointer(c.Metadata); err == nil && p.App == inc.cfg.App && p.Manifest.Checkpoint > ref.Checkpoint {
			ref, ok = p.Manifest, true
		}
	}
	last, found, err := txn.LastCommitRecord(ctx, inc.cfg.Kafka, inc.cfg.CommitTopic, inc.cfg.App)
	if err != nil {
		return ref, false, err
	}
	if found && last.Manifest.Checkpoint > ref.Checkpoint {
		ref, ok = last.Manifest, true
	}
	return ref, ok, nil
}

// highestStored is the highest id of the checkpoints in the store, committed or not. Ids must
// not fall back behind it where the offsets tell less: the store may have been that of another
// group or cluster, and what is looked for in it is the newest.
func (inc *incarnation) highestStored(ctx context.Context) (int64, error) {
	stored, err := checkpoint.ListManifests(ctx, inc.cfg.Store)
	return highest(stored), classifyStore(err)
}

func highest(stored []checkpoint.ManifestInfo) (id int64) {
	for _, s := range stored {
		id = max(id, s.Checkpoint)
	}
	return id
}

// fromScratch begins with empty state: at the committed offsets if there are any,
// else at the beginning.
func (inc *incarnation) fromScratch(ctx context.Context, committed map[offsets.Partition]offsets.Committed) (recovered, error) {
	r := recovered{positions: map[offsets.Partition]offsets.Position{}}
	for p, c := range committed {
		if c.Exists {
			r.positions[p] = c.Position
		}
	}
	return r, inc.addNew(ctx, committed, r.positions)
}

// addNew gives partitions that nothing was read from yet their first offset, so
// that they take part in every commit from the first one on.
func (inc *incarnation) addNew(ctx context.Context, committed map[offsets.Partition]offsets.Committed, positions map[offsets.Partition]offsets.Position) error {
	topics := map[string]bool{}
	for p := range committed {
		if _, ok := positions[p]; !ok {
			topics[p.Topic] = true
		}
	}
	if len(topics) == 0 {
		return nil
	}
	starts, err := kadm.NewClient(inc.sess.Client()).ListStartOffsets(ctx, keys(topics)...)
	if err != nil {
		return fmt.Errorf("reading the first offsets of new partitions: %w", err)
	}
	for p := range committed {
		if _, ok := positions[p]; ok {
			continue
		}
		o, ok := starts.Lookup(p.Topic, p.Partition)
		if !ok {
			return fmt.Errorf("the broker does not name the first offset of %s", p)
		}
		if o.Err != nil {
			return fmt.Errorf("reading the first offset of %s: %w", p, o.Err)
		}
		positions[p] = offsets.Position{Offset: o.Offset, LeaderEpoch: -1}
	}
	return nil
}

func keys[K comparable, V any](m map[K]V) []K {
	ks := make([]K, 0, len(m))
	for k := range m {
		ks = append(ks, k)
	}
	return ks
}

// build makes the subtasks of the plan, with empty state. What goes wrong is fatal, but
// for a look-up that can't be opened now.
func (inc *incarnation) build(at recovered) error {
	inc.committed.Store(at.last)
	if at.manifest != nil && !at.mended {
		inc.head.Store(&at.ref)
		inc.last.Store(&commitInfo{at.ref.Checkpoint, at.manifest.Created})
	}
	inc.gate = newGate(at.last+1, inc.cfg.HeldBytes)
	if at.manifest != nil {
		inc.base = *at.manifest
	}
	if err := errors.Join(inc.register(), inc.checkInFlight()); err != nil {
		return fatal(err)
	}
	inc.sources = inc.plan.Sources.build(inc)
	for _, r := range inc.sources {
		inc.runners = append(inc.runners, r)
	}
	for _, st := range inc.plan.Stages {
		rs, err := st.Build(inc)
		if err != nil {
			return fatal(err)
		}
		inc.runners = append(inc.runners, rs...)
	}
	inc.findUpstream()
	for _, s := range inc.subtasks {
		if s.err != nil {
			return s.err
		}
	}
	return nil
}

// load opens the writer and fills the subtasks' state.
func (inc *incarnation) load(ctx context.Context, at recovered, begun time.Time) error {
	var pinned func() []string
	if inc.local != nil {
		pinned = inc.local.Needs
	}
	w, err := checkpoint.NewWriter(checkpoint.Config{
		Pinned: pinned, MergeCPU: inc.cfg.MergeCPU, MergeBandwidth: inc.cfg.MergeBandwidth, MergeFanIn: inc.cfg.MergeFanIn, BloomBits: inc.cfg.BloomBits,
		Store: inc.cfg.Store, App: inc.cfg.App, Instance: inc.cfg.Instance,
		KeyGroups: inc.cfg.KeyGroups, Retain: inc.cfg.Retain,
		Base: at.manifest, BaseRef: at.ref, Spare: at.spare,
		Incarnation: inc.nonce, Lineage: inc.lineage, TopicIDs: inc.topicIDs(),
		Listener: checkpoint.Listener{Collected: inc.cfg.Listener.Collected, Merged: inc.cfg.Listener.Merged},
	})
	if err != nil {
		return classifyStore(err)
	}
	inc.writer = w
	info := event.Restored{App: inc.cfg.App, Partitions: len(at.positions), Checkpoint: at.ref.Checkpoint, How: "read"}
	if at.manifest != nil {
		info.Segments = len(at.manifest.Segments)
	}
	if inc.local != nil {
		if err := inc.attach(ctx, at, &info); err != nil {
			return err
		}
	} else {
		inc.points = checkpoint.NewPoints(inc.ctx, inc.cfg.Store)
	}
	if inc.local == nil && at.manifest != nil {
		var reading uint16
		err := inc.blaming(func() (err error) {
			info.Entries, err = inc.fill(ctx, at.manifest, &reading)
			return err
		}, func() (operator, doing string) {
			i := slices.IndexFunc(inc.base.States, func(s checkpoint.StateInfo) bool { return s.ID == reading })
			s := inc.base.States[max(i, 0)]
			return s.Operator, fmt.Sprintf("decoding state %q of checkpoint %d", s.Name, at.manifest.Checkpoint)
		})
		if err != nil {
			return err
		}
	}
	if err := inc.recoverAppliers(ctx, at); err != nil {
		return err
	}
	if at.manifest != nil {
		if err := inc.loadInFlight(ctx, at.manifest); err != nil {
			return err
		}
		info.InFlight = at.manifest.RecordsInFlight()
	}
	crashpoint.Hit(crashpoint.AfterRestore)
	info.Took = time.Since(begun)
	inc.restored.Store(&info)
	inc.cfg.Listener.Restored(info)
	return nil
}

// fill loads every entry of the manifest into the keyspace that owns its key-group. at is
// the state of the entry that it has come to.
func (inc *incarnation) fill(ctx context.Context, m *checkpoint.Manifest, at *uint16) (entries int64, err error) {
	targets := map[uint16][]ownedSpace{} // by state id, the stage's spaces by subtask
	everywhere := map[uint16]bool{}      // states that all subtasks have
	stageOf := map[string]string{}
	for _, d := range inc.plan.States {
		stageOf[d.Operator] = d.Stage
	}
	spaces := map[string][]ownedSpace{}
	for _, sp := range inc.spaces {
		spaces[sp.stage] = append(spaces[sp.stage], sp)
	}
	for _, s := range inc.base.States {
		if stage, ok := stageOf[s.Operator]; ok && s.Kind != kindDropped {
			targets[s.ID] = spaces[stage]
			everywhere[s.ID] = s.Kind == state.KindBroadcast
		}
	}
	var half int64
	for _, sr := range m.Segments {
		half += sr.Entries
	}
	half /= 2
	for e, err := range m.Scan(ctx, inc.cfg.Store, 0, inc.cfg.KeyGroups) {
		if err != nil {
			return entries, classifyStore(err)
		}
		if entries == half {
			crashpoint.Hit(crashpoint.InRestore)
		}
		entries++
		owners, ok := targets[e.State]
		if !ok {
			continue // dropped, as allowed
		}
		*at = e.State
		if !everywhere[e.State] {
			i := keygroup.Subtask(int(e.KeyGroup), len(owners), inc.cfg.KeyGroups)
			owners = owners[i : i+1]
		}
		for _, owner := range owners {
			if err := owner.space.Restore(e.KeyGroup, e.State, e.Key, e.Value); err != nil {
				return entries, fatal(fmt.Errorf("restoring checkpoint %d: %w", m.Checkpoint, err))
			}
		}
	}
	if entries <= half {
		crashpoint.Hit(crashpoint.InRestore)
	}
	return entries, nil
}

// start gives the partitions their owners and lets everything run.
func (inc *incarnation) start(positions map[offsets.Partition]offsets.Position) {
	inc.assign(positions)
	// Without this a subtask would go on to the end of its batch, however slow its
	// handlers are, and the next incarnation, or who takes over, would wait for it.
	context.AfterFunc(inc.ctx, func() {
		inc.over.Store(true)
		inc.callAttention()
	})
	inc.spawn(inc.commitLoop)
	inc.runAppliers()
	for _, r := range inc.runners {
		inc.spawn(func() error { return r.run(inc.ctx) })
	}
	close(inc.started)
}

// runAppliers lets the appliers run.
func (inc *incarnation) runAppliers() {
	for _, a := range inc.appliers {
		inc.spawn(func() error { return inc.runApplier(a) })
	}
}

// assign gives the partitions their owners.
func (inc *incarnation) assign(positions map[offsets.Partition]offsets.Position) {
	inc.mu.Lock()
	defer inc.mu.Unlock()
	undrained := int64(0)
	for _, id := range sortedPartitions(positions) {
		owner := inc.sources[int(id.Partition)%len(inc.sources)]
		p := &partition{id: id, owner: owner, next: positions[id].Offset, epoch: positions[id].LeaderEpoch, end: -1}
		p.polled.Store(p.next)
		if end, ok := inc.ends[id]; ok {
			p.end = end
			p.drained = p.next >= end
			if !p.drained {
				undrained++
			}
		}
		chain := owner.chains[id.Topic]
		// The poller waited before as well, a standby for days: from here on it can hear it.
		p.time = partitionTime{newest: noWatermark, watermark: noWatermark, heard: inc.watch.elapsed()}
		if t, ok := inc.base.EventTime.Partitions[id]; ok {
			// If the source has no idleness any more, nothing would ever wake the partition.
			p.time.watermark, p.time.idle = t.Watermark, t.Idle && chain.how != nil && chain.how.Idle > 0
		}
		owner.parts = append(owner.parts, p)
		chain.parts = append(chain.parts, p)
		inc.parts[id] = p
	}
	inc.undrained.Store(undrained)
	if inc.ends != nil && undrained == 0 {
		close(inc.drainedC)
	}
}

// fetchError classifies an error of the poll loop; nil means that the client
// deals with it.
func (inc *incarnation) fetchError(ctx context.Context, p offsets.Partition, err error) error {
	var loss *kgo.ErrDataLoss
	switch {
	case errors.As(err, &loss):
		return fatal(fmt.Errorf("input %s was truncated: the next one to read is %d, its log now ends at %d or has others from there: an unclean leader election, or the loss of replicas, took records that the state and the outputs may already contain\n  %s",
			p, loss.ConsumedTo, loss.ResetTo, goOnByHand))
	case errors.Is(err, kerr.OffsetOutOfRange):
		return fatal(inc.outOfRange(ctx, p))
	case errors.Is(err, kerr.UnknownTopicOrPartition), errors.Is(err, kerr.UnknownTopicID), errors.Is(err, kerr.InconsistentTopicID):
		return inc.inputGone(p.String(), err)
	case errors.Is(err, kerr.TopicAuthorizationFailed):
		return fatal(fmt.Errorf("reading topic %s: %w\n  grant Read on the topic to this principal", p.Topic, err))
	case kerr.IsRetriable(err):
		return nil
	}
	return fmt.Errorf("reading %s: %w", p, err)
}

// inputGone is the error for an input, a topic or a partition, that is not there any more.
func (inc *incarnation) inputGone(input string, err error) error {
	return fatal(fmt.Errorf("input %s is gone or was recreated: %w\n  the checkpoints refer to offsets of the old topic; restore the topic, or start empty with WEIR_RECOVER=nothing after deleting the offsets of group %q", input, err, inc.cfg.Group))
}

// outOfRange says what is known about a position that the log does not have.
func (inc *incarnation) outOfRange(ctx context.Context, p offsets.Partition) error {
	at := "?"
	if part := inc.partition(p); part != nil {
		at = fmt.Sprint(part.polled.Load())
	}
	first, last := "?", "?"
	adm := kadm.NewClient(inc.sess.Client())
	if l, err := adm.ListStartOffsets(ctx, p.Topic); err == nil {
		if o, ok := l.Lookup(p.Topic, p.Partition); ok {
			first = fmt.Sprint(o.Offset)
		}
	}
	if l, err := adm.ListEndOffsets(ctx, p.Topic); err == nil {
		if o, ok := l.Lookup(p.Topic, p.Partition); ok {
			last = fmt.Sprint(o.Offset)
		}
	}
	return fmt.Errorf("input %s has offsets %s to %s, the next one to read is %s: retention passed the position, or the topic was recreated; the records in between are lost\n  %s",
		p, first, last, at, goOnByHand)
}

const goOnByHand = "to go on with the records that are left, set the group's offset of the partition by hand and start with WEIR_RECOVER=offsets"
