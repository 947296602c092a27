package txn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
	"unicode/utf16"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"github.com/weirstream/weir/offsets"
)

const (
	// stablePoll is the pause between two looks at offsets that a transaction is about
	// to decide. Usually its markers are on their way.
	stablePoll = 10 * time.Millisecond

	// stableWait bounds the wait in the callback of an assignment, which a rebalance
	// can't interrupt. The client itself goes on asking after that.
	stableWait = 2 * time.Second

	// fenceAfter is how long somebody else's transaction may keep our offsets unstable
	// before we fence it. Fencing is safe but ends that instance's work on all its
	// partitions, so a hand-over in good order must never come near.
	fenceAfter = 500 * time.Millisecond

	// fenceWait bounds the wait for the end of another instance's transaction. To fence it
	// takes one request; its end takes a leader for each partition that it wrote to, which
	// there may not be.
	fenceWait = 10 * time.Second

	// watchPoll is the pause between two looks once stableWait is over.
	watchPoll = 500 * time.Millisecond

	// brokerScan is the period in which a broker looks for expired transactions.
	brokerScan = 10 * time.Second

	// brokerMaxTimeout is the longest time that brokers let a transaction be open for, if
	// nobody configured them otherwise (transaction.max.timeout.ms).
	brokerMaxTimeout = 15 * time.Minute

	// unstableMargin is added to the longest time that offsets can be unstable for.
	unstableMargin = 5 * time.Second

	// inspectTimeout bounds the look at the transactions that block us.
	inspectTimeout = 10 * time.Second

	offsetsTopic = "__consumer_offsets"
)

// UnstableInfo says that committed offsets are not decided yet.
type UnstableInfo struct {
	Partitions []offsets.Partition
	Waited     time.Duration
	// Fenced are the transactional ids that were fenced because of it.
	Fenced []string
}

func (i UnstableInfo) String() string {
	return fmt.Sprintf("offsets of %v undecided for %v, fenced %q", i.Partitions, i.Waited, i.Fenced)
}

// awaitStable returns when the offsets committed for parts are decided, or after about
// stableWait, with a watch left behind that fails the session when no transaction
// can be the reason any more. An answer that fails says nothing about them: it is asked for
// again, and the time until we fence begins with the first one that says undecided.
func (s *Session) awaitStable(ctx context.Context, parts []offsets.Partition) {
	start := time.Now()
	var since time.Time // undecided
	var f fencing
	for {
		unstable, err := s.unstable(ctx, parts)
		switch {
		case err != nil:
			s.log.Info("fetch committed offsets before restoring", zap.Error(err))
			unstable = parts
		case len(unstable) == 0:
			return
		case since.IsZero():
			since = time.Now()
		}
		if err == nil && time.Since(since) >= fenceAfter {
			s.fenceCommitters(ctx, &f, unstable, time.Since(since))
		}
		// A broker may be so slow that the time was over before there was an answer.
		if time.Since(start) >= stableWait && (f.tried() || err != nil) {
			s.startWatch(unstable, start, f)
			return
		}
		if !sleep(ctx, stablePoll) {
			return
		}
	}
}

// startWatch leaves a goroutine that fails the session when parts stay unstable for
// longer than any transaction may last, and goes on with what f could not do yet. It ends
// when the offsets are stable, when the client fetched them, and with the session.
func (s *Session) startWatch(parts []offsets.Partition, since time.Time, f fencing) {
	ctx, cancel := context.WithCancel(s.ctx)
	s.mu.Lock()
	if s.watch != nil {
		s.watch()
	}
	s.watch = cancel
	s.mu.Unlock()
	limit := s.cfg.TransactionTimeout
	s.background.Go(func() {
		defer cancel()
		undecided := f.tried()
		for sleep(ctx, watchPoll) {
			unstable, err := s.unstable(ctx, parts)
			if err != nil {
				continue
			}
			if len(unstable) == 0 {
				return
			}
			waited := time.Since(since)
			// Twice in a row: for watchPoll at least, which is not less than fenceAfter.
			if undecided && s.fenceCommitters(ctx, &f, unstable, waited) {
				continue
			}
			undecided = true
			if waited <= limit+brokerScan+unstableMargin {
				continue
			}
			e := s.unstableError(ctx, unstable, waited)
			longest := e.longest() // another instance may be configured to take more time than we are
			if e.Inspect != nil {
				longest = max(longest, brokerMaxTimeout)
			}
			if longest > limit {
				limit = longest
				continue
			}
			s.fail(e)
			return
		}
	})
}

func (s *Session) stopWatch() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.watch != nil {
		s.watch()
		s.watch = nil
	}
}

// unstable returns those of parts whose committed offset waits for a transaction.
// The request names the partitions: one that asks for all doesn't list a partition
// that has only a pending offset.
func (s *Session) unstable(ctx context.Context, parts []offsets.Partition) ([]offsets.Partition, error) {
	got, err := s.fetchOffsets(ctx, parts, true)
	if err != nil {
		return nil, err
	}
	var unstable []offsets.Partition
	for _, p := range parts {
		if errors.Is(kerr.ErrorForCode(got[p].ErrorCode), kerr.UnstableOffsetCommit) {
			unstable = append(unstable, p)
		}
	}
	return unstable, nil
}

func (s *Session) fetchOffsets(ctx context.Context, parts []offsets.Partition, stable bool) (map[offsets.Partition]kmsg.OffsetFetchResponseGroupTopicPartition, error) {
	req := kmsg.NewPtrOffsetFetchRequest()
	req.RequireStable = stable
	g := kmsg.NewOffsetFetchRequestGroup()
	g.Group = s.cfg.Group
	topics, byTopic := group(parts)
	if err := s.loadTopicIDs(ctx, topics); err != nil {
		return nil, err
	}
	s.mu.Lock()
	for _, topic := range topics {
		t := kmsg.NewOffsetFetchRequestGroupTopic()
		t.Topic = topic
		t.TopicID = s.topicID[topic] // version 10 knows no names
		t.Partitions = byTopic[topic]
		g.Topics = append(g.Topics, t)
	}
	s.mu.Unlock()
	req.Groups = append(req.Groups, g)
	resp, err := req.RequestWith(ctx, s.cl)
	if err != nil {
		return nil, err
	}
	return s.fetchedPartitions(resp)
}

// fencing is how far we are with ending the transactions that hold up what we were assigned.
type fencing struct {
	at    time.Time // when it was tried last
	done  bool
	asked []string // transactional ids that are fenced, or are not ours to fence
}

func (f *fencing) tried() bool { return !f.at.IsZero() }

// fenceCommitters ends the transactions of the instances that committed parts last:
// most likely one of them was paused or killed with offsets staged. Each of them is fenced
// once. If a broker could not say what there is to fence, or do it, the next call goes on.
// It returns whether it fenced one.
func (s *Session) fenceCommitters(ctx context.Context, f *fencing, parts []offsets.Partition, waited time.Duration) bool {
	if f.done || time.Since(f.at) < fenceAfter {
		return false
	}
	first := !f.tried()
	f.at, f.done = time.Now(), true
	ids, err := s.committers(ctx, parts)
	if err != nil {
		s.log.Info("fetch undecided offsets", zap.Error(err))
		f.done = !mayPass(err)
	}
	if s.cfg.SingleActive {
		// Who had the partitions and committed nothing yet has left no pointer.
		open, err := s.openOfApp(ctx)
		if err != nil {
			s.log.Info("list the app's open transactions", zap.Error(err))
			f.done = f.done && !mayPass(err)
		}
		ids = slices.Compact(slices.Sorted(slices.Values(append(ids, open...))))
	}
	info := UnstableInfo{Partitions: parts, Waited: waited}
	for _, id := range ids {
		if id == s.txnID || slices.Contains(f.asked, id) { // ours was ended by InitProducerId
			continue
		}
		err := s.fence(ctx, id, time.Now(), stableWait)
		if err != nil {
			s.log.Warn("fence transactional id", zap.String("transactional_id", id), zap.Error(err))
			// One whose transaction is ending was fenced.
			if mayPass(err) && !errors.Is(err, kerr.ConcurrentTransactions) {
				f.done = false
				continue
			}
		} else {
			info.Fenced = append(info.Fenced, id)
		}
		f.asked = append(f.asked, id)
	}
	fenced := len(info.Fenced) > 0
	if !first && !fenced {
		return false
	}
	s.log.Warn("committed offsets are undecided", zap.Stringers("partitions", parts), zap.Duration("for", waited), zap.Strings("fenced", info.Fenced))
	if s.cfg.Events.Unstable != nil {
		s.cfg.Events.Unstable(info)
	}
	return fenced
}

// mayPass tells whether err is of a broker that is away or is not ready.
func mayPass(err error) bool { return !isKafka(err) || kerr.IsRetriable(err) }

// committers returns the transactional ids in the pointers last committed for parts.
func (s *Session) committers(ctx context.Context, parts []offsets.Partition) ([]string, error) {
	got, err := s.fetchOffsets(ctx, parts, false)
	if err != nil {
		return nil, err
	}
	ids := map[string]bool{}
	for _, r := range got {
		if r.Metadata == nil {
			continue
		}
		// A pointer of another app is none of our business.
		if ptr, err := offsets.ParsePointer(*r.Metadata); err == nil && ptr.App == s.cfg.App {
			ids[TransactionalID(ptr.App, ptr.Instance)] = true
		}
	}
	return slices.Sorted(maps.Keys(ids)), nil
}

// openOfApp returns the transactional ids of the app whose transaction is open and has
// offsets of the group, or may have: not everybody may see the offsets topic.
func (s *Session) openOfApp(ctx context.Context) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	prefix := TransactionalID(s.cfg.App, "")
	// Brokers before 4.1 don't know the pattern, and before 2.8 no states: they list all.
	listed, err := s.adm.ListTransactionsByTxPattern(ctx, nil, []string{"Ongoing"}, regexp.QuoteMeta(prefix)+".*")
	var ids []string
	for _, t := range listed {
		if t.State == "Ongoing" && strings.HasPrefix(t.TxnID, prefix) {
			ids = append(ids, t.TxnID)
		}
	}
	if len(ids) == 0 {
		return nil, err
	}
	at, known, topicsErr := offsetsPartition(ctx, s.adm, s.cfg.Group)
	described, describeErr := s.adm.DescribeTransactions(ctx, ids...)
	ids = slices.DeleteFunc(ids, func(id string) bool {
		parts, ok := described[id].Topics[offsetsTopic]
		_, ours := parts[at]
		return ok && known && !ours
	})
	return ids, errors.Join(err, topicsErr, describeErr)
}

// fence ends the open transaction of another transactional id and makes its producer
// fail. InitProducerId also sets that id's timeout, so it has to be the app's own. It waits
// for the end until wait after start: a decided transaction whose markers can't be written has
// none.
func (s *Session) fence(ctx context.Context, txnID string, start time.Time, wait time.Duration) error {
	req := kmsg.NewPtrInitProducerIDRequest()
	req.TransactionalID = &txnID
	req.TransactionTimeoutMillis = int32(s.cfg.TransactionTimeout.Milliseconds())
	req.ProducerID, req.ProducerEpoch = -1, -1
	for {
		resp, err := req.RequestWith(ctx, s.cl)
		if err != nil {
			return err
		}
		err = kerr.ErrorForCode(resp.ErrorCode)
		if err == nil {
			return nil
		}
		// The abort that the first request started is being written.
		if !errors.Is(err, kerr.ConcurrentTransactions) && !errors.Is(err, kerr.CoordinatorLoadInProgress) {
			return err
		}
		if time.Since(start) >= wait {
			return fmt.Errorf("its last transaction did not end within %v: %w", wait, err)
		}
		if !sleep(ctx, 2*stablePoll) {
			return ctx.Err()
		}
	}
}

// unstableError describes the transactions that block parts, as far as the brokers
// tell.
func (s *Session) unstableError(ctx context.Context, parts []offsets.Partition, waited time.Duration) *UnstableError {
	ctx, cancel := context.WithTimeout(ctx, inspectTimeout)
	defer cancel()
	e := &UnstableError{Group: s.cfg.Group, Partitions: parts, Waited: waited}
	ids, err := s.openOfApp(ctx)
	committed, committedErr := s.committers(ctx, parts)
	e.Blocking, e.Inspect = blocking(ctx, s.adm, s.cfg.Group, append(append(ids, committed...), s.txnID))
	e.Inspect = errors.Join(err, committedErr, e.Inspect)
	return e
}

// blocking returns the open transactions on the group's partition of the offsets
// topic, and those of txnIDs that are not over.
func blocking(ctx context.Context, adm *kadm.Client, groupID string, txnIDs []string) ([]BlockingTransaction, error) {
	found := map[int64]*BlockingTransaction{}
	var errs []error

	at, known, err := offsetsPartition(ctx, adm, groupID)
	if known {
		set := kadm.TopicsSet{}
		set.Add(offsetsTopic, at)
		producers, err := adm.DescribeProducers(ctx, set)
		errs = append(errs, err)
		producers.EachProducer(func(p kadm.DescribedProducer) {
			if p.CurrentTxnStartOffset >= 0 {
				found[p.ProducerID] = &BlockingTransaction{ProducerID: p.ProducerID, Pending: true}
			}
		})
	} else {
		errs = append(errs, err)
	}
	if len(found) > 0 {
		listed, err := adm.ListTransactions(ctx, slices.Collect(maps.Keys(found)), nil)
		errs = append(errs, err)
		txnIDs = slices.AppendSeq(txnIDs, maps.Keys(listed))
	}
	slices.Sort(txnIDs)
	described, err := adm.DescribeTransactions(ctx, slices.Compact(txnIDs)...)
	errs = append(errs, err)
	for _, d := range described {
		if d.Err != nil {
			continue // never used
		}
		t := found[d.ProducerID]
		if t == nil {
			if d.State != "Ongoing" && d.State != "PrepareCommit" && d.State != "PrepareAbort" {
				continue
			}
			t = &BlockingTransaction{ProducerID: d.ProducerID}
			found[d.ProducerID] = t
		}
		t.TransactionalID, t.State, t.Timeout = d.TxnID, d.State, time.Duration(d.TimeoutMillis)*time.Millisecond
	}
	out := []BlockingTransaction{}
	for _, id := range slices.Sorted(maps.Keys(found)) {
		out = append(out, *found[id])
	}
	return out, errors.Join(errs...)
}

// offsetsPartition asks for the partition of the offsets topic that keeps a group. It is not
// known if the brokers don't show that topic.
func offsetsPartition(ctx context.Context, adm *kadm.Client, groupID string) (at int32, known bool, err error) {
	topics, err := adm.ListTopicsWithInternal(ctx, offsetsTopic)
	n := len(topics[offsetsTopic].Partitions)
	if err != nil || n == 0 {
		return 0, false, err
	}
	return groupPartition(groupID, n), true, nil
}

// groupPartition returns the partition of the offsets topic that keeps a group:
// Java's String.hashCode of the group, modulo the number of partitions.
func groupPartition(groupID string, partitions int) int32 {
	var h int32
	for _, r := range utf16.Encode([]rune(groupID)) {
		h = 31*h + int32(r)
	}
	return int32(uint32(h)&0x7fffffff) % int32(partitions)
}

// sleep returns false if ctx ended.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
