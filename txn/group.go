package txn

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"go.uber.org/zap"

	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/offsets"
)

// The client calls these in order, one at a time:
//
//	onAssigned   for every new session of the group, also with nothing new
//	onFetched    with the committed offsets; what it returns nil for is fetched next
//	adjust       directly after onFetched
//	onRevoked    when a rebalance takes partitions
//	onLost       when the session of the group ended in an error

// left tells whether Leave or Close was called.
func (s *Session) left() bool {
	select {
	case <-s.gone:
		return true
	default:
		return false
	}
}

// until returns ctx, ended by Close as well.
func (s *Session) until(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(ctx)
	stop := context.AfterFunc(s.ctx, cancel)
	return ctx, func() { stop(); cancel() }
}

// onAssigned runs before the client fetches the committed offsets. It ends the
// transaction that a predecessor with our transactional id left open, which would
// keep those offsets unstable, and waits for those of others with more patience than
// the client, which sleeps for a second between its tries.
func (s *Session) onAssigned(ctx context.Context, _ *kgo.Client, assigned map[string][]int32) {
	<-s.opened
	s.joined.Store(true)
	if s.left() || s.Err() != nil {
		return
	}
	if s.renamed() {
		s.endRenamed(ctx)
		return
	}
	ctx, cancel := s.until(ctx)
	defer cancel()
	parts := flatten(assigned)
	if !s.began.Load() {
		if err := s.takeOver(ctx, len(parts) == 0); err != nil {
			if !s.left() {
				s.fail(err)
			}
			return
		}
	}
	if len(parts) == 0 {
		s.mu.Lock()
		idle := len(s.assigned) == 0
		s.mu.Unlock()
		if idle && s.cfg.Events.Idle != nil {
			s.cfg.Events.Idle()
		}
		return
	}
	s.log.Info("partitions assigned", zap.Stringers("partitions", parts))
	if s.cfg.Events.Assigned != nil {
		s.cfg.Events.Assigned(parts)
	}
	member, _ := s.cl.GroupMetadata()
	s.mu.Lock()
	s.member = member
	for _, p := range parts {
		s.assigned[p] = true
	}
	s.mu.Unlock()
	if err := s.loadTopicIDs(ctx, s.cfg.Topics); err != nil {
		if !s.left() {
			s.fail(err)
		}
		return
	}
	s.mu.Lock()
	rejoin := s.lacksPartitions() && !s.rejoined
	s.rejoined = s.rejoined || rejoin
	s.mu.Unlock()
	if rejoin {
		s.cl.ForceRebalance()
	}
	s.awaitStable(ctx, parts)
}

// takeOver ends what a predecessor left open. A session that stands by does so once and
// takes no producer id of its own: whoever takes partitions over fences the instance that
// had them before, which may be ours, and a producer that was fenced meanwhile would fail
// when its turn comes. One that has partitions opens its first transaction.
func (s *Session) takeOver(ctx context.Context, standby bool) error {
	if !standby {
		return s.begin(ctx)
	}
	if s.cleared.Swap(true) {
		return nil
	}
	if err := s.fence(ctx, s.txnID, time.Now(), s.cfg.TransactionTimeout/2); err != nil {
		return s.errorf("take over transactional id "+s.txnID, err)
	}
	return nil
}

// begin takes the transactional id over and opens the first transaction.
func (s *Session) begin(ctx context.Context) error {
	if err := s.producerID(ctx); err != nil {
		return s.errorf("take over transactional id "+s.txnID, err)
	}
	if err := s.loadFeatures(ctx); err != nil {
		return s.errorf("ask the brokers for their features", err)
	}
	if err := s.cl.BeginTransaction(); err != nil {
		return s.errorf("begin transaction", err)
	}
	s.began.Store(true)
	return nil
}

// producerID has the client get its producer id, which takes the end of the predecessor's
// transaction. The client would wait for that without a limit, and tell nobody.
func (s *Session) producerID(ctx context.Context) error {
	start, wait := time.Now(), s.cfg.TransactionTimeout/2
	limited, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	_, _, err := s.cl.ProducerID(limited)
	if err != nil && limited.Err() != nil && ctx.Err() == nil {
		// Asked once more by ourselves, the brokers say what it waited for.
		return cmp.Or(s.fence(ctx, s.txnID, start, wait), err)
	}
	return err
}

// onFetched hands what is committed to the handler, which restores it.
func (s *Session) onFetched(ctx context.Context, _ *kgo.Client, resp *kmsg.OffsetFetchResponse) error {
	<-s.opened
	if s.left() {
		return context.Canceled // the client takes this for a group that is being left
	}
	if err := s.Err(); err != nil {
		return opaque(err)
	}
	s.stopWatch()
	committed, err := s.parseCommitted(resp)
	if err != nil {
		return opaque(s.fail(err))
	}
	if len(committed) == 0 {
		return nil
	}
	rctx, cancel := s.until(ctx)
	defer cancel()
	// Before Restore, not after it: the handler commits as soon as it has restored, which
	// may be before its answer reached us.
	s.own(committed)
	starts, err := s.h.Restore(rctx, committed)
	if err != nil {
		s.mu.Lock()
		for p := range committed {
			delete(s.owned, p)
		}
		s.mu.Unlock()
	}
	switch {
	case err == nil:
	case ctx.Err() != nil:
		return ctx.Err() // a rebalance: we are called again for what stays
	case s.left():
		return context.Canceled
	default:
		return opaque(s.fail(fmt.Errorf("restore %d partitions of group %s: %w", len(committed), s.cfg.Group, err)))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.starts, starts)
	return nil
}

// own lets positions of the partitions be committed.
func (s *Session) own(committed map[offsets.Partition]offsets.Committed) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for p, c := range committed {
		s.owned[p] = true
		if ptr, err := offsets.ParsePointer(c.Metadata); err == nil {
			s.last.Store(max(s.last.Load(), ptr.Manifest.Checkpoint))
		}
	}
}

// opaque strips err of what it wraps: the client takes any context.Canceled for a
// group that is being left, and goes on without telling anybody.
func opaque(err error) error { return errors.New(err.Error()) }

// adjust replaces the positions to fetch from by those that Restore asked for.
func (s *Session) adjust(_ context.Context, at map[string]map[int32]kgo.Offset) (map[string]map[int32]kgo.Offset, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for topic, ps := range at {
		for p := range ps {
			key := offsets.Partition{Topic: topic, Partition: p}
			if pos, ok := s.starts[key]; ok {
				if pos.LeaderEpoch < 0 {
					// Nothing was read from there yet. The client fetches a position without
					// an epoch at once, but one with an epoch only after a question to the
					// leader, and then the fetch that is under way, of idle partitions alone,
					// holds it up for as long as the broker waits. The epoch of now sends all
					// of them the same way: it ends where the log ends, or where a later one
					// begins, which is never before a position at which nothing was read.
					pos.LeaderEpoch = s.leaderEpoch(key)
				}
				ps[p] = kgo.NewOffset().At(pos.Offset).WithEpoch(pos.LeaderEpoch)
				delete(s.starts, key)
			}
		}
	}
	return at, nil
}

// onRevoked lets the handler commit a last time and hand over.
func (s *Session) onRevoked(ctx context.Context, _ *kgo.Client, revoked map[string][]int32) {
	<-s.opened
	if !s.left() && !s.lost.Load() && s.renamed() {
		s.endRenamed(ctx)
		return
	}
	parts := flatten(revoked)
	if len(parts) > 0 {
		s.revoked.Store(true)
	}
	if s.left() || s.lost.Load() || len(parts) == 0 {
		return
	}
	s.log.Info("partitions revoked", zap.Stringers("partitions", parts))
	if s.cfg.Events.Revoked != nil {
		s.cfg.Events.Revoked(parts)
	}
	s.h.Revoke(s.ctx, parts)
	s.disown(parts)
}

// onLost ends the incarnation. The flag comes first: a Commit that read the
// membership before now is refused by the broker, one that reads it from now on sees
// the flag.
func (s *Session) onLost(_ context.Context, _ *kgo.Client, lost map[string][]int32) {
	s.lost.Store(true)
	<-s.opened
	if s.left() {
		return
	}
	parts := flatten(lost)
	s.stopWatch()
	s.disown(parts)
	s.log.Warn("partitions lost", zap.Stringers("partitions", parts))
	if s.cfg.Events.Lost != nil {
		s.cfg.Events.Lost(parts)
	}
	s.h.Lost(parts)
	if s.cfg.NextGen {
		// This protocol doesn't tell why, and rejoins when we return.
		s.endLost(errors.New("the group ended our membership"))
	}
}

// endLost fails the session and keeps the client from rejoining: as a new member it
// could commit for partitions that are not ours any more.
func (s *Session) endLost(err error) {
	e := s.errorf("stay in group "+s.cfg.Group, err)
	if e.Kind == Transient {
		e.Kind = Lost
	}
	if guard.Broken(guard.LostAfterMember) {
		return // without the guard the client rejoins, and only the order is left
	}
	s.fail(e)
	<-s.gone
}

// renamed tells whether the group knows us by another member id than the one that was
// assigned what we have.
func (s *Session) renamed() bool {
	member, _ := s.cl.GroupMetadata()
	return s.isRenamed(member)
}

func (s *Session) isRenamed(member string) bool {
	if guard.Broken(guard.SameMember) {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.assigned) > 0 && member != s.member
}

// endRenamed ends the incarnation of a member that joined anew. A client whose JoinGroup is
// answered with UNKNOWN_MEMBER_ID does so without telling anybody, and goes on with what it
// had. Meanwhile the group may have given that to others, which may have committed: as a new
// member, of the present generation, we could commit on top of it.
func (s *Session) endRenamed(ctx context.Context) {
	s.mu.Lock()
	lost := map[string][]int32{}
	for p := range s.assigned {
		lost[p.Topic] = append(lost[p.Topic], p.Partition)
	}
	s.mu.Unlock()
	s.onLost(ctx, s.cl, lost)
	if !s.left() {
		s.endLost(fmt.Errorf("the group took us for gone while we joined again: %w", kerr.UnknownMemberID))
	}
}

// groupHook is the Session as a hook of the client, so that the method isn't part of
// the exported API.
type groupHook Session

// OnGroupManageError is called by the classic protocol directly after onLost, with
// the reason, and the client rejoins when it returns.
func (h *groupHook) OnGroupManageError(err error) {
	s := (*Session)(h)
	if s.left() {
		return
	}
	s.endLost(err)
}

// OnBrokerConnect is told of every connection. A client that finds nobody who lets it in
// asks for ever, and tells nobody else: it joins the group once it knows the topics. One that
// has joined fails by its next heartbeat.
func (h *groupHook) OnBrokerConnect(b kgo.BrokerMetadata, _ time.Duration, _ net.Conn, err error) {
	s := (*Session)(h)
	if loginRefused(err) && !s.joined.Load() && !s.left() {
		s.fail(s.errorf("log in to broker "+net.JoinHostPort(b.Host, strconv.Itoa(int(b.Port))), err))
	}
}

// OnBrokerThrottle is told how long a broker made the client wait because of a quota.
func (h *groupHook) OnBrokerThrottle(_ kgo.BrokerMetadata, interval time.Duration, _ bool) {
	h.throttled.Add(int64(interval))
}

func (s *Session) disown(parts []offsets.Partition) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range parts {
		delete(s.owned, p)
		delete(s.assigned, p)
	}
}

// lacksPartitions tells whether the only active instance was not assigned some partition
// that there is. A static member that restarts gets its old assignment back without a
// rebalance: without the topics that its new configuration has, and without the partitions
// that were added meanwhile, of which no client would tell it. It is called with mu held,
// after loadTopicIDs.
func (s *Session) lacksPartitions() bool {
	if !s.cfg.SingleActive || len(s.assigned) == 0 {
		return false
	}
	for p := range s.epochs {
		if !s.assigned[p] && slices.Contains(s.cfg.Topics, p.Topic) {
			return true
		}
	}
	return false
}

// parseCommitted reads a response to an OffsetFetch of our group. Any error in it is
// fatal: a partition that is left out would never be consumed.
func (s *Session) parseCommitted(resp *kmsg.OffsetFetchResponse) (map[offsets.Partition]offsets.Committed, error) {
	const op = "fetch committed offsets"
	parts, err := s.fetchedPartitions(resp)
	if err != nil {
		return nil, s.errorf(op, err)
	}
	committed := make(map[offsets.Partition]offsets.Committed, len(parts))
	for p, r := range parts {
		if err := kerr.ErrorForCode(r.ErrorCode); err != nil {
			return nil, s.errorf(op+" of "+p.String(), err)
		}
		c := offsets.Committed{Exists: r.Offset >= 0}
		c.LeaderEpoch = -1
		if c.Exists {
			c.Position = offsets.Position{Offset: r.Offset, LeaderEpoch: r.LeaderEpoch}
			if r.Metadata != nil {
				c.Metadata = *r.Metadata
			}
		}
		committed[p] = c
	}
	return committed, nil
}

// fetchedPartitions indexes a response by partition.
func (s *Session) fetchedPartitions(resp *kmsg.OffsetFetchResponse) (map[offsets.Partition]kmsg.OffsetFetchResponseGroupTopicPartition, error) {
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil {
		return nil, err
	}
	parts := map[offsets.Partition]kmsg.OffsetFetchResponseGroupTopicPartition{}
	for _, g := range resp.Groups {
		if err := kerr.ErrorForCode(g.ErrorCode); err != nil {
			return nil, err
		}
		for _, t := range g.Topics {
			name := t.Topic
			if name == "" {
				name = s.topicOf(t.TopicID)
			}
			if name == "" {
				return nil, fmt.Errorf("the answer names topic id %x: %w", t.TopicID, kerr.UnknownTopicID)
			}
			for _, p := range t.Partitions {
				parts[offsets.Partition{Topic: name, Partition: p.Partition}] = p
			}
		}
	}
	return parts, nil
}

// loadTopicIDs asks once per session: a topic that is deleted and created again
// while it is consumed must not pass for the old one. A broker that has not heard yet of a
// new topic is asked again for a while.
func (s *Session) loadTopicIDs(ctx context.Context, topics []string) error {
	return untilHeard(ctx, func() error { return s.askTopicIDs(ctx, topics) }, func(err error) {
		s.log.Info("ask for the ids of the topics again", zap.Error(err))
	})
}

func (s *Session) askTopicIDs(ctx context.Context, topics []string) error {
	s.mu.Lock()
	topics = slices.DeleteFunc(slices.Clone(topics), func(t string) bool { _, ok := s.topicID[t]; return ok })
	s.mu.Unlock()
	if len(topics) == 0 {
		return nil
	}
	resp, err := s.metadata(ctx, topics)
	if err != nil {
		return s.errorf("ask for the ids of the topics", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		if err := kerr.ErrorForCode(t.ErrorCode); err != nil {
			return s.errorf(askOp+*t.Topic, err)
		}
		s.topicID[*t.Topic] = t.TopicID
		for _, p := range t.Partitions {
			s.epochs[offsets.Partition{Topic: *t.Topic, Partition: p.Partition}] = p.LeaderEpoch
		}
	}
	return nil
}

// metadata asks a broker for topics, and not the client for what it remembers of them.
func (s *Session) metadata(ctx context.Context, topics []string) (*kmsg.MetadataResponse, error) {
	req := kmsg.NewPtrMetadataRequest()
	for _, t := range topics {
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = kmsg.StringPtr(t)
		req.Topics = append(req.Topics, rt)
	}
	return req.RequestWith(ctx, s.cl)
}

// Gone asks a broker for the topics of the configuration, and returns what it says of those
// that are not there, or are others than when partitions were first assigned. It says
// nothing of a topic that it may not or can't tell about. One broker may not have heard yet
// of a topic that others know.
func (s *Session) Gone(ctx context.Context) (map[string]error, error) {
	resp, err := s.metadata(ctx, s.cfg.Topics)
	if err != nil {
		return nil, s.errorf("ask whether the topics are there", err)
	}
	gone := map[string]error{}
	for _, t := range resp.Topics {
		if t.Topic == nil {
			continue
		}
		var none [16]byte
		have := s.TopicID(*t.Topic)
		err := kerr.ErrorForCode(t.ErrorCode)
		switch {
		case errors.Is(err, kerr.UnknownTopicOrPartition):
			gone[*t.Topic] = err
		case err == nil && have != none && t.TopicID != none && t.TopicID != have:
			gone[*t.Topic] = kerr.InconsistentTopicID
		}
	}
	return gone, nil
}

// TopicID returns the id that a topic of the configuration had when partitions were first
// assigned; zero if the brokers have none for it.
func (s *Session) TopicID(topic string) [16]byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.topicID[topic]
}

// leaderEpoch is the leader epoch that the partition had when the session asked for
// its topic, -1 if it is unknown. mu is held.
func (s *Session) leaderEpoch(p offsets.Partition) int32 {
	if e, ok := s.epochs[p]; ok {
		return e
	}
	return -1
}

func (s *Session) topicOf(id [16]byte) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, have := range s.topicID {
		if have == id {
			return name
		}
	}
	return ""
}

func flatten(m map[string][]int32) []offsets.Partition {
	var parts []offsets.Partition
	for topic, ps := range m {
		for _, p := range ps {
			parts = append(parts, offsets.Partition{Topic: topic, Partition: p})
		}
	}
	slices.SortFunc(parts, offsets.Partition.Compare)
	return parts
}

// group turns parts into topics with their partitions, in order.
func group(parts []offsets.Partition) (topics []string, byTopic map[string][]int32) {
	byTopic = map[string][]int32{}
	for _, p := range parts {
		if byTopic[p.Topic] == nil {
			topics = append(topics, p.Topic)
		}
		byTopic[p.Topic] = append(byTopic[p.Topic], p.Partition)
	}
	slices.Sort(topics)
	return topics, byTopic
}
