package txn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/kversion"
	"go.uber.org/zap"

	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/offsets"
)

const (
	commitBackoff    = 20 * time.Millisecond // before the second try of TxnOffsetCommit, then doubled
	commitBackoffMax = 500 * time.Millisecond

	// unknownTopicPatience is how long a broker may say that it doesn't know a topic or a
	// partition before that is believed: one that was just added reaches the brokers one by
	// one.
	unknownTopicPatience = 10 * time.Second

	// implicitGroupVersion is the transaction.version from which TxnOffsetCommit adds
	// the group to the transaction by itself.
	implicitGroupVersion = 2

	// implicitGroupRequest is the version of TxnOffsetCommit that does so.
	implicitGroupRequest = 5

	// bumpingEndRequest is the version of EndTxn that ends the producer's epoch as well.
	bumpingEndRequest = 5

	// implicitPartitionRequest is the version of Produce that adds the partition to the
	// transaction by itself.
	implicitPartitionRequest = 12
)

// Commit says what a checkpoint is.
type Commit struct {
	Manifest offsets.ManifestRef
	// Positions are those at the barrier, of every owned partition.
	Positions map[offsets.Partition]offsets.Position
}

// CommitInfo says how a commit went.
type CommitInfo struct {
	Checkpoint int64
	Partitions int
	Flush      time.Duration // until all records, with the commit record, were acknowledged
	Offsets    time.Duration // TxnOffsetCommit, with its tries
	End        time.Duration // EndTxn
	Tries      int           // of TxnOffsetCommit
}

func (i CommitInfo) String() string {
	return fmt.Sprintf("checkpoint %d committed with %d partitions (flush %v, offsets %v in %d tries, end %v)",
		i.Checkpoint, i.Partitions, i.Flush, i.Offsets, i.Tries, i.End)
}

// Commit publishes what was produced since the last one, together with c's positions
// and the pointer to its manifest, which must be durable already. When it returns
// nil the commit has happened and the next transaction is open. Any error is fatal:
// the session can only be closed, and the next one finds out from the committed
// offsets what happened. One goroutine calls it at a time, and nobody calls Produce
// meanwhile. Cancelling ctx gives the commit up, as an error.
//
// It does, in this order:
//
//  1. Produce the commit record, flush, and check the promise of every record since
//     the transaction began. Without a record in the transaction the client would send
//     no EndTxn, and the staged offsets would dangle until the next commit commits
//     them. Then wait until the client itself knows of the records: see settle.
//  2. Read producer id and epoch, then member and generation, and only then the lost
//     flag. A member that was thrown out rejoins under a new id; read in the other
//     order, the flag could be clear and the new membership good for a commit of
//     partitions that are not ours.
//  3. TxnOffsetCommit with the pointer as metadata. Every partition's code is checked:
//     one that is refused leaves the others staged, and EndTxn would commit them.
//  4. EndTxn.
//
// What can go wrong, and what the session does:
//
//   - A record fails (too large, topic gone, fenced, timed out): nothing is published,
//     Err names the topic.
//   - The commit takes longer than half of the transaction timeout, counted from the
//     first record: *DeadlineError, nothing is published.
//   - TxnOffsetCommit says ILLEGAL_GENERATION, STALE_MEMBER_EPOCH or
//     REBALANCE_IN_PROGRESS: a rebalance that we take part in. Back to step 2.
//   - TxnOffsetCommit says CONCURRENT_TRANSACTIONS, COORDINATOR_NOT_AVAILABLE,
//     NOT_COORDINATOR or COORDINATOR_LOAD_IN_PROGRESS: back to step 2.
//   - TxnOffsetCommit says UNKNOWN_TOPIC_OR_PARTITION: the coordinator may not have
//     heard yet of a partition that was added. Back to step 2, for 10 seconds at most.
//   - FENCED_INSTANCE_ID: another process has our instance id. PRODUCER_FENCED: it, or
//     one that waited for our offsets, has taken our transactional id. Nothing is
//     published.
//   - INVALID_PRODUCER_EPOCH, INVALID_TXN_STATE: the same, or the broker aborted the
//     transaction for its age. Nothing is published before EndTxn.
//   - UNKNOWN_MEMBER_ID, or the lost flag: the group did without us. Nothing is
//     published.
//   - EndTxn gets no answer, or any error: the client may have sent it more than once,
//     so the answer is not about the first. Nothing is believed: Attempted names the
//     checkpoint whose fate the committed offsets tell.
//   - EndTxn was not attempted, because the client's producer failed before: nothing
//     is published.
//   - The process dies: the broker keeps the transaction open until the next
//     incarnation's InitProducerId, or the timeout, aborts it; or it was committed.
func (s *Session) Commit(ctx context.Context, c Commit) error {
	for {
		err := s.commit(ctx, c)
		if guard.Broken(guard.ReadBack) && err != nil && err.believedAborted {
			// What one writes who takes an error of EndTxn for an abort: roll back and do
			// the same again.
			if rerr := s.redo(); rerr == nil {
				continue
			}
		}
		if err != nil {
			return err.error
		}
		return nil
	}
}

// commitError is an error of commit. believedAborted is set only where a test took
// out the guard ReadBack.
type commitError struct {
	error
	believedAborted bool
}

func (s *Session) commit(ctx context.Context, c Commit) *commitError {
	fatal := func(err error) *commitError { return &commitError{error: s.fail(err)} }
	if err := s.Err(); err != nil {
		return &commitError{error: err}
	}
	if !s.began.Load() {
		return fatal(s.commitErrorf(c, "begin", errors.New("no partitions were assigned yet")))
	}
	if err := s.checkOwned(c); err != nil {
		return fatal(s.commitErrorf(c, "check positions", err))
	}
	info := CommitInfo{Checkpoint: c.Manifest.Checkpoint, Partitions: len(c.Positions)}

	// 1. Records.
	start := time.Now()
	s.txnStart.CompareAndSwap(0, int64(time.Since(s.epoch)))
	ctx, cancel := s.until(ctx)
	defer cancel()
	half, cancelHalf := context.WithTimeout(ctx, s.cfg.TransactionTimeout/2-s.txnAge())
	defer cancelHalf()
	if err := s.flush(half, c); err != nil {
		return fatal(s.overdue(half, c, "have all records acknowledged", err))
	}
	crashpoint.Hit(crashpoint.AfterRecord)
	info.Flush = time.Since(start)

	// 2 and 3. Offsets.
	start = time.Now()
	tries, err := s.commitOffsets(half, c)
	if err != nil {
		return fatal(s.overdue(half, c, "commit the offsets", err))
	}
	crashpoint.Hit(crashpoint.AfterOffsets)
	info.Offsets, info.Tries = time.Since(start), tries

	// 4. The commit point. From here on the context is one that ends when the broker's
	// own patience does: an answer that comes late is better than none.
	start = time.Now()
	full, cancelFull := context.WithTimeout(ctx, s.cfg.TransactionTimeout-s.txnAge())
	defer cancelFull()
	s.ending.Store(true)
	if err := s.cl.EndTransaction(full, kgo.TryCommit); err != nil {
		e := s.endError(c, err)
		s.ending.Store(e.Attempted >= 0)
		if guard.Broken(guard.ReadBack) && e.Kind == Unknown {
			return &commitError{error: e, believedAborted: true}
		}
		return fatal(e)
	}
	s.ending.Store(false)
	crashpoint.Hit(crashpoint.AfterCommit)
	info.End = time.Since(start)
	s.last.Store(max(s.last.Load(), c.Manifest.Checkpoint))
	s.kept = s.kept[:0]
	s.txnStart.Store(0)
	s.throttled.Store(0)
	if err := s.cl.BeginTransaction(); err != nil {
		// This commit is done; it is the next one that can't be.
		s.fail(s.errorf("begin transaction", err))
	}
	s.log.Debug("committed", zap.Stringer("info", info))
	if s.cfg.Events.Committed != nil {
		s.cfg.Events.Committed(info)
	}
	return nil
}

func (s *Session) commitErrorf(c Commit, step string, err error) *Error {
	return s.errorf(fmt.Sprintf("commit checkpoint %d: %s", c.Manifest.Checkpoint, step), err)
}

// overdue turns err into a *DeadlineError if the commit's time was up.
func (s *Session) overdue(half context.Context, c Commit, step string, err error) error {
	if errors.Is(half.Err(), context.DeadlineExceeded) && (cancelled(err) || retriableCommit(err)) {
		return &DeadlineError{
			Op: step, Open: s.txnAge(), Timeout: s.cfg.TransactionTimeout, Throttled: time.Duration(s.throttled.Load()),
			Checkpoint: c.Manifest.Checkpoint, LastCommitted: s.last.Load(), Err: err,
		}
	}
	if s.lost.Load() {
		// Why is known a moment after the flag is set.
		select {
		case <-s.failed:
		case <-half.Done():
		}
	}
	if fatal := s.Err(); fatal != nil {
		return fatal // what a promise reported, or the reason why partitions were lost
	}
	if half.Err() != nil && retriableCommit(err) {
		return s.commitErrorf(c, step, fmt.Errorf("%w (last try: %v)", half.Err(), err)) // not the answer ended the tries
	}
	var e *Error
	if errors.As(err, &e) {
		return e // classified where it happened
	}
	return s.commitErrorf(c, step, err)
}

// checkOwned refuses positions of partitions that are not ours. The broker checks
// the member, not what is assigned to it.
func (s *Session) checkOwned(c Commit) error {
	if len(c.Positions) == 0 {
		return errNoPositions
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for p := range c.Positions {
		if !s.owned[p] && !s.lost.Load() { // what was lost fails with the reason, later
			return fmt.Errorf("%v: %w", p, ErrNotOwned)
		}
	}
	return nil
}

// flush produces the commit record and waits for it and all records before it.
func (s *Session) flush(ctx context.Context, c Commit) error {
	acked := make(chan error, 1)
	if guard.Broken(guard.CommitRecord) {
		acked <- nil
	} else {
		value := offsets.CommitRecord{
			App: s.cfg.App, Instance: s.cfg.Instance, Manifest: c.Manifest,
			At: time.Now(), Positions: c.Positions,
		}.Append(nil)
		r := &kgo.Record{Topic: s.cfg.CommitTopic, Key: []byte(s.cfg.App), Value: value}
		// The record's own context: the commit's would cancel it under way.
		s.cl.Produce(s.ctx, r, func(r *kgo.Record, err error) {
			s.onProduced(r, err)
			acked <- err
		})
	}
	if err := s.cl.Flush(ctx); err != nil {
		return err
	}
	// Flush returns after the promises did: a record that failed has failed the session.
	if err := s.Err(); err != nil {
		return err
	}
	select {
	case err := <-acked:
		if err != nil {
			return err
		}
	case <-ctx.Done():
		return ctx.Err()
	}
	return s.settle(ctx)
}

// settle returns when the client knows all partitions that it has produced to.
//
// The client sends the first records to a topic a moment before it takes note of the
// topic's partitions. EndTransaction asks those that it took note of whether anything
// was produced. If the acknowledgement of the first records beats the note, they have
// none: the client aborts the transaction, and returns no error. Both happen under the
// lock that AbortBufferedRecords takes, and there is nothing left that it could abort.
func (s *Session) settle(ctx context.Context) error {
	if guard.Broken(guard.KnownPartitions) {
		return nil
	}
	return s.cl.AbortBufferedRecords(ctx)
}

// commitOffsets stages the offsets in the transaction. It returns how often it tried.
func (s *Session) commitOffsets(ctx context.Context, c Commit) (int, error) {
	topics := slices.Collect(maps.Keys(byTopic(c.Positions)))
	if err := s.loadTopicIDs(ctx, topics); err != nil {
		return 0, err
	}
	backoff := commitBackoff
	added := s.tv.transactionVersion >= implicitGroupVersion
	var unknown unknownTopic
	for try := 1; ; try++ {
		err := s.tryOffsets(ctx, c, &added)
		if err == nil || !retriableCommit(err) || unknown.believed(err) {
			return try, err
		}
		s.log.Info("commit offsets again", zap.Int64("checkpoint", c.Manifest.Checkpoint), zap.Int("try", try), zap.Error(err))
		if !sleep(ctx, backoff) {
			return try, err
		}
		backoff = min(2*backoff, commitBackoffMax)
	}
}

// unknownTopic notes since when brokers don't know a topic or a partition.
type unknownTopic struct{ since time.Time }

// believed tells whether err says so for too long to be a broker that is only behind.
func (u *unknownTopic) believed(err error) bool {
	if !errors.Is(err, kerr.UnknownTopicOrPartition) {
		return false
	}
	if u.since.IsZero() {
		u.since = time.Now()
	}
	return time.Since(u.since) > unknownTopicPatience
}

// untilHeard asks a broker again that doesn't know a topic or a partition, until it is to be
// believed. again, if not nil, is told of each time.
func untilHeard(ctx context.Context, ask func() error, again func(error)) error {
	var unknown unknownTopic
	for backoff := commitBackoff; ; backoff = min(2*backoff, commitBackoffMax) {
		err := ask()
		if !errors.Is(err, kerr.UnknownTopicOrPartition) || unknown.believed(err) || !sleep(ctx, backoff) {
			return err
		}
		if again != nil {
			again(err)
		}
	}
}

func (s *Session) tryOffsets(ctx context.Context, c Commit, added *bool) error {
	req, err := s.offsetsRequest(ctx, c)
	if err != nil {
		return err
	}
	s.staging.Store(true)
	if !*added {
		add := kmsg.NewPtrAddOffsetsToTxnRequest()
		add.TransactionalID, add.ProducerID, add.ProducerEpoch, add.Group = s.txnID, req.ProducerID, req.ProducerEpoch, s.cfg.Group
		resp, err := add.RequestWith(ctx, s.cl)
		if err != nil {
			return err
		}
		if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
			s.staging.Store(false)
			return err
		}
		*added = true
	}
	resp, err := req.RequestWith(ctx, s.cl)
	if err != nil {
		return err
	}
	s.staging.Store(false)
	return checkOffsets(req, resp)
}

// membership returns the identity to commit with. The order matters, see Commit.
func (s *Session) membership() (member string, generation int32, err error) {
	lostBefore := guard.Broken(guard.LostAfterMember) && s.lost.Load()
	if !guard.Broken(guard.LostAfterMember) {
		member, generation = s.cl.GroupMetadata()
	}
	if s.betweenChecks != nil {
		s.betweenChecks()
	}
	if guard.Broken(guard.LostAfterMember) {
		member, generation = s.cl.GroupMetadata()
		if lostBefore {
			return "", 0, errLost
		}
	} else if s.lost.Load() {
		return "", 0, errLost
	}
	if s.isRenamed(member) {
		return "", 0, errLost
	}
	if member == "" {
		// A broker takes an empty member of generation -1 as long as the group is alive.
		return "", 0, fmt.Errorf("not a member of group %s at the moment: %w", s.cfg.Group, kerr.UnknownMemberID)
	}
	return member, generation, nil
}

var errLost = fmt.Errorf("the partitions were lost: %w", kerr.UnknownMemberID)

func (s *Session) offsetsRequest(ctx context.Context, c Commit) (*kmsg.TxnOffsetCommitRequest, error) {
	pid, epoch, err := s.cl.ProducerID(ctx)
	if err != nil {
		return nil, err
	}
	member, generation, err := s.membership()
	if err != nil {
		return nil, err
	}
	req := kmsg.NewPtrTxnOffsetCommitRequest()
	req.TransactionalID, req.Group = s.txnID, s.cfg.Group
	req.ProducerID, req.ProducerEpoch = pid, epoch
	req.MemberID, req.Generation, req.InstanceID = member, generation, s.instanceID()
	if guard.Broken(guard.Membership) {
		req.MemberID, req.Generation, req.InstanceID = "", -1, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for topic, parts := range byTopic(c.Positions) {
		t := kmsg.NewTxnOffsetCommitRequestTopic()
		t.Topic = topic
		t.TopicID = s.topicID[topic]
		for _, p := range parts {
			pos := c.Positions[p]
			pointer, err := offsets.Pointer{App: s.cfg.App, Instance: s.cfg.Instance, Offset: pos.Offset, Manifest: c.Manifest}.Encode()
			if err != nil {
				return nil, fmt.Errorf("position of %v: %w", p, err)
			}
			rp := kmsg.NewTxnOffsetCommitRequestTopicPartition()
			rp.Partition, rp.Offset, rp.LeaderEpoch, rp.Metadata = p.Partition, pos.Offset, pos.LeaderEpoch, &pointer
			t.Partitions = append(t.Partitions, rp)
		}
		req.Topics = append(req.Topics, t)
	}
	return req, nil
}

// checkOffsets returns nil only if every partition that was sent was accepted. An
// error that must not be retried goes before one that may.
func checkOffsets(req *kmsg.TxnOffsetCommitRequest, resp *kmsg.TxnOffsetCommitResponse) error {
	type key struct {
		topic     string
		partition int32
	}
	names := map[[16]byte]string{}
	sent := map[key]bool{}
	for _, t := range req.Topics {
		names[t.TopicID] = t.Topic
		for _, p := range t.Partitions {
			sent[key{t.Topic, p.Partition}] = true
		}
	}
	var again error
	for _, t := range resp.Topics {
		topic := t.Topic
		if topic == "" {
			topic = names[t.TopicID] // from version 6 on
		}
		for _, p := range t.Partitions {
			k := key{topic, p.Partition}
			if !sent[k] {
				return fmt.Errorf("the answer names %s/%d, which was not asked for or is named twice", topic, p.Partition)
			}
			delete(sent, k)
			err := kerr.ErrorForCode(p.ErrorCode)
			if err == nil {
				continue
			}
			err = fmt.Errorf("offset of %s/%d: %w", topic, p.Partition, err)
			if !retriableCommit(err) {
				return err
			}
			again = err
		}
	}
	if again != nil {
		return again
	}
	for k := range sent {
		return fmt.Errorf("the answer leaves out %s/%d and %d more", k.topic, k.partition, len(sent)-1)
	}
	return nil
}

// endError classifies an error of EndTransaction. Unless the request was never sent,
// the outcome is unknown, whatever the answer says: the client repeats a request
// whose answer was lost, so an answer may be about a transaction that the first
// request ended.
func (s *Session) endError(c Commit, err error) *Error {
	e := s.commitErrorf(c, "end the transaction", err)
	switch {
	case errors.Is(err, kerr.OperationNotAttempted):
		// The client's producer failed before; a transaction that expired does that.
		if s.txnAge() > s.cfg.TransactionTimeout {
			e.Kind = Expired
		}
		return e
	case errors.Is(err, kerr.TransactionAbortable) && errors.Is(err, kerr.UnknownTopicID):
		e.Kind = Rejected // the client found an output topic recreated and sent nothing
		return e
	case e.Kind == Transient:
		e.Kind = Unknown
	}
	e.Attempted = c.Manifest.Checkpoint
	return e
}

func byTopic(positions map[offsets.Partition]offsets.Position) map[string][]offsets.Partition {
	m := map[string][]offsets.Partition{}
	for p := range positions {
		m[p.Topic] = append(m[p.Topic], p)
	}
	for _, parts := range m {
		slices.SortFunc(parts, offsets.Partition.Compare)
	}
	return m
}

// features are what the brokers can do.
type features struct{ transactionVersion int16 }

func (s *Session) loadFeatures(ctx context.Context) error {
	req := kmsg.NewPtrApiVersionsRequest()
	req.ClientSoftwareName, req.ClientSoftwareVersion = "weir", "1"
	resp, err := req.RequestWith(ctx, s.cl)
	if err == nil {
		err = kerr.ErrorForCode(resp.ErrorCode)
	}
	if err != nil {
		return err
	}
	// Finalized features are the cluster's, so any broker may answer. One that is not
	// listed is at 0.
	for _, f := range resp.FinalizedFeatures {
		if f.Name == "transaction.version" {
			s.tv.transactionVersion = f.MaxVersionLevel
		}
	}
	if spoken(s.cl, kmsg.TxnOffsetCommit) < implicitGroupRequest {
		s.tv.transactionVersion = min(s.tv.transactionVersion, implicitGroupVersion-1)
	}
	return nil
}

// spoken returns the newest version of a request that the client's options let it send, -1
// if none.
func spoken(cl *kgo.Client, key kmsg.Key) int16 {
	limit, ok := cl.OptValue(kgo.MaxVersions).(*kversion.Versions)
	if !ok || limit == nil {
		return math.MaxInt16
	}
	v, _ := limit.LookupMaxKeyVersion(int16(key))
	return v
}

// keep remembers r for redo. Only reached where a test took out the guard ReadBack.
func (s *Session) keep(r *kgo.Record) {
	s.mu.Lock()
	defer s.mu.Unlock()
	// What an acknowledged record refers to is used again.
	s.kept = append(s.kept, &kgo.Record{
		Topic: r.Topic, Key: bytes.Clone(r.Key), Value: bytes.Clone(r.Value), Headers: r.Headers, Timestamp: r.Timestamp,
	})
}

// redo begins a new transaction with the same records as the last one, which is
// believed to be aborted. Only reached where a test took out the guard ReadBack.
func (s *Session) redo() error {
	if err := s.cl.EndTransaction(s.ctx, kgo.TryAbort); err != nil {
		return err
	}
	if err := s.cl.BeginTransaction(); err != nil {
		return err
	}
	// One goroutine asks for the new producer id, or those of all leaders would.
	if _, _, err := s.cl.ProducerID(s.ctx); err != nil {
		return err
	}
	s.txnStart.Store(0)
	again := s.kept
	s.kept = nil
	for _, r := range again {
		c := *r
		s.Produce(&c)
	}
	return nil
}
