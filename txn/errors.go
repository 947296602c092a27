package txn

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir/offsets"
)

// Kind says what sort of failure ended a session, for a caller that decides whether
// a new one has a chance.
type Kind uint8

const (
	// Transient: something in between failed for too long. A new session may work.
	Transient Kind = iota + 1
	// Fenced: another process took over the transactional id or the instance id. A new
	// session would fence that one in turn: only right after a pause, or never if two
	// processes share an instance id.
	Fenced
	// Lost: the group took the partitions away. A new session rejoins.
	Lost
	// Unknown: the request that commits was sent and no answer came. A new session
	// reads the pointer and knows.
	Unknown
	// Expired: the transaction was open for longer than its timeout and the broker
	// aborted it. A new session replays.
	Expired
	// Rejected: the broker refuses for good (authorisation, record too large, topic
	// missing), or the caller asked for something that must not be. A new session
	// would fail in the same way.
	Rejected
)

var kindNames = [...]string{Transient: "transient", Fenced: "fenced", Lost: "lost", Unknown: "outcome unknown", Expired: "expired", Rejected: "rejected"}

func (k Kind) String() string { return kindNames[k] }

// Error says why a session can't go on. Its text says what is known about the commit
// point and what an operator can do.
type Error struct {
	Op              string // what was tried
	Kind            Kind
	TransactionalID string
	Group           string
	Instance        string
	LastCommitted   int64 // checkpoint, -1 if none is known
	// Attempted is the checkpoint whose commit may or may not have happened, -1 if
	// nothing after LastCommitted was published.
	Attempted int64
	Err       error
}

func (e *Error) Unwrap() error { return e.Err }

func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s: %s: %v", e.Op, e.Kind, e.Err)
	b.WriteString("\n  ")
	b.WriteString(known(e.LastCommitted, e.Attempted))
	if r := e.remedy(); r != "" {
		b.WriteString("\n  ")
		b.WriteString(r)
	}
	return b.String()
}

// known says what is known about the commit point.
func known(last, attempted int64) string {
	switch {
	case attempted >= 0:
		return Doubt(attempted)
	case last >= 0:
		return fmt.Sprintf("the last committed checkpoint is %d; nothing after it was published", last)
	}
	return "nothing was published by this session"
}

// Doubt says what is known of a checkpoint whose commit was tried and may have happened.
func Doubt(checkpoint int64) string {
	return fmt.Sprintf("whether checkpoint %d was committed is unknown: the next start reads the committed offsets and knows", checkpoint)
}

func (e *Error) remedy() string {
	if loginRefused(e.Err) {
		return loginRemedy
	}
	switch e.Kind {
	case Transient:
		if errors.Is(e.Err, kerr.ConcurrentTransactions) {
			return "its markers can't be written as long as a partition that it wrote to has no leader: kafka-topics --describe --unavailable-partitions"
		}
	case Fenced:
		return fmt.Sprintf("another process took over instance id %q (transactional id %q): if both are meant to run, give each its own WEIR_INSTANCE_ID; after a pause or a takeover a restart is right", e.Instance, e.TransactionalID)
	case Lost:
		if errors.Is(e.Err, kerr.InconsistentGroupProtocol) {
			return fmt.Sprintf("group %q has members that are no instances of this app, and assign partitions in another way: stop them, or give the app a group of its own; a restart tries again", e.Group)
		}
		return fmt.Sprintf("group %q gave the partitions of instance %q to others, because it was silent for longer than the session timeout or a rebalance took too long: a restart rejoins", e.Group, e.Instance)
	case Expired:
		return "the transaction was open for longer than its timeout: a restart replays it; if this repeats, commit more often or raise the transaction timeout"
	case Rejected:
		switch {
		case errors.Is(e.Err, kerr.TopicAuthorizationFailed):
			if e.produced() {
				return "grant Write on the topic to this principal"
			}
			return "grant Read on the topic to this principal"
		case errors.Is(e.Err, kerr.GroupAuthorizationFailed):
			return fmt.Sprintf("grant Read on group %q to this principal", e.Group)
		case errors.Is(e.Err, kerr.TransactionalIDAuthorizationFailed):
			return fmt.Sprintf("grant Write on transactional id %q to this principal, by the prefix that it has in common with the app's other instances", e.TransactionalID)
		case errors.Is(e.Err, kerr.ClusterAuthorizationFailed):
			return "grant IdempotentWrite on the cluster to this principal"
		case errors.Is(e.Err, kerr.MessageTooLarge), errors.Is(e.Err, kerr.RecordListTooLarge):
			return "raise max.message.bytes of the topic and the client's batch size, or emit smaller records"
		case errors.Is(e.Err, kerr.UnknownTopicID), errors.Is(e.Err, kerr.UnknownTopicOrPartition) && !e.produced() && !strings.HasPrefix(e.Op, askOp):
			return "a topic is gone or was recreated: offsets and checkpoints refer to the old one"
		case errors.Is(e.Err, kerr.UnknownTopicOrPartition):
			return "create the topic: kafka-topics --create --topic NAME --partitions N"
		case errors.Is(e.Err, kerr.InvalidSessionTimeout):
			return "set a session timeout between the brokers' group.min.session.timeout.ms (6s unless changed) and group.max.session.timeout.ms"
		case errors.Is(e.Err, kerr.InvalidTransactionTimeout):
			return "lower the transaction timeout or raise the broker's transaction.max.timeout.ms"
		}
	}
	return ""
}

// What the Op of an Error begins with that is about one topic.
const (
	produceOp = "produce to topic "
	askOp     = "ask for the id of topic "
)

// produced tells whether it is about what the app writes, and not about what it reads.
func (e *Error) produced() bool { return strings.HasPrefix(e.Op, produceOp) }

const loginRemedy = "the brokers refuse this client's SASL mechanism, user or password: check them in kgo.SASL (weir.KafkaOptions); if they were changed, start the app with the new ones"

// loginRefused tells whether a broker answered a client that it does not know who that is.
func loginRefused(err error) bool {
	return errors.Is(err, kerr.SaslAuthenticationFailed) || errors.Is(err, kerr.UnsupportedSaslMechanism)
}

// DeadlineError says that a commit was given up because it took more than half of
// the transaction timeout: past that, the broker may abort the transaction while it
// is being committed. Nothing of it was committed.
type DeadlineError struct {
	Op            string        // what was waited for
	Open          time.Duration // since the first record of the transaction
	Timeout       time.Duration // the transaction timeout
	Checkpoint    int64
	LastCommitted int64
	Err           error // what the last try said, may be nil
	// Throttled is how long the brokers made the client wait since the commit before, for
	// quotas of it, in all connections together.
	Throttled time.Duration
}

func (e *DeadlineError) Unwrap() error { return e.Err }

func (e *DeadlineError) Error() string {
	var last string
	if e.Err != nil {
		last = fmt.Sprintf(" (last try: %v)", e.Err)
	}
	var quota string
	if e.Throttled > 0 {
		quota = fmt.Sprintf("\n  the brokers throttled this client for %v meanwhile: a quota of its user or client id may be too low for what the app writes; raise it (kafka-configs --describe --entity-type users, or clients: producer_byte_rate, request_percentage)", e.Throttled.Round(time.Millisecond))
	}
	return fmt.Sprintf("commit checkpoint %d: given up while waiting to %s, because its transaction is open for %v, which is more than half of the transaction timeout of %v%s\n  %s%s\n  commit more often, make checkpoints faster, or raise the transaction timeout",
		e.Checkpoint, e.Op, e.Open.Round(time.Millisecond), e.Timeout, last, known(e.LastCommitted, -1), quota)
}

// ErrNotOwned is wrapped by an *Error of a Commit with positions of partitions that
// this session doesn't own: a bug of the caller.
var ErrNotOwned = errors.New("partition is not owned by this session")

var errNoPositions = errors.New("a commit without positions would publish outputs that no pointer covers")

// errorf classifies err.
func (s *Session) errorf(op string, err error) *Error {
	return &Error{
		Op: op, Kind: s.kindOf(err), Err: err,
		TransactionalID: s.txnID, Group: s.cfg.Group, Instance: s.cfg.Instance,
		LastCommitted: s.last.Load(), Attempted: -1,
	}
}

// kindOf classifies what a broker or the client said.
func (s *Session) kindOf(err error) Kind {
	is := func(of ...error) bool {
		for _, t := range of {
			if errors.Is(err, t) {
				return true
			}
		}
		return false
	}
	switch {
	case is(kerr.FencedInstanceID, kerr.ProducerFenced, kerr.UnreleasedInstanceID):
		return Fenced
	case is(kerr.InvalidProducerEpoch, kerr.InvalidTxnState, kerr.InvalidProducerIDMapping, kerr.UnknownProducerID):
		// The broker answers the same to a producer that was fenced and to one whose
		// transaction it aborted. Only the age of the transaction tells.
		if s.txnAge() > s.cfg.TransactionTimeout {
			return Expired
		}
		return Fenced
	case is(kerr.UnknownMemberID, kerr.IllegalGeneration, kerr.FencedMemberEpoch, kerr.StaleMemberEpoch, kerr.RebalanceInProgress):
		return Lost
	case is(ErrNotOwned, errNoPositions,
		kerr.TopicAuthorizationFailed, kerr.GroupAuthorizationFailed, kerr.TransactionalIDAuthorizationFailed, kerr.ClusterAuthorizationFailed,
		kerr.MessageTooLarge, kerr.RecordListTooLarge, kerr.OffsetMetadataTooLarge, kerr.InvalidTransactionTimeout,
		kerr.UnknownTopicOrPartition, kerr.UnknownTopicID, kerr.InvalidTopicException, kerr.InvalidRecord,
		kerr.InvalidTimestamp, kerr.PolicyViolation, kerr.UnsupportedVersion, kerr.InvalidGroupID, kerr.InvalidSessionTimeout):
		return Rejected
	}
	return Transient
}

// txnAge returns how long ago the first record of the open transaction was produced.
func (s *Session) txnAge() time.Duration {
	start := s.txnStart.Load()
	if start == 0 {
		return 0
	}
	return time.Since(s.epoch) - time.Duration(start)
}

// retriableCommit tells whether a TxnOffsetCommit or AddOffsetsToTxn that was
// answered with err may be sent again, after the membership was read again.
// Everything else fails the commit.
func retriableCommit(err error) bool {
	for _, t := range []error{
		kerr.IllegalGeneration, kerr.StaleMemberEpoch, kerr.RebalanceInProgress, // a rebalance that we take part in
		kerr.ConcurrentTransactions, // the markers of the last one are still being written
		kerr.CoordinatorNotAvailable, kerr.NotCoordinator, kerr.CoordinatorLoadInProgress,
		kerr.UnknownTopicOrPartition, // a broker that has not heard of it yet; for a while, see unknownTopic
	} {
		if errors.Is(err, t) {
			return true
		}
	}
	return false
}

func leaveError(resp *kmsg.LeaveGroupResponse) error {
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil && !errors.Is(err, kerr.UnknownMemberID) {
		return err
	}
	for _, m := range resp.Members {
		// Unknown: the client had reason to leave by itself.
		if err := kerr.ErrorForCode(m.ErrorCode); err != nil && !errors.Is(err, kerr.UnknownMemberID) {
			return err
		}
	}
	return nil
}

// cancelled tells whether err comes from the end of a context or of the client.
func cancelled(err error) bool {
	return errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, kgo.ErrClientClosed)
}

// BlockingTransaction is a transaction that keeps offsets unstable.
type BlockingTransaction struct {
	TransactionalID string // empty if unknown
	ProducerID      int64
	State           string        // as the transaction coordinator says; empty if it doesn't
	Timeout         time.Duration // after which the coordinator aborts it; 0 if unknown
	// Pending tells that a partition holds an open transaction of this producer.
	Pending bool
}

// UnstableError says that committed offsets stayed undecided for longer than any
// transaction may be open: neither one of this app, nor one that the brokers show.
type UnstableError struct {
	Group      string
	Partitions []offsets.Partition
	Waited     time.Duration
	Blocking   []BlockingTransaction
	Inspect    error // why Blocking is not known, if so
}

func (e *UnstableError) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "fetch committed offsets of group %s for %v: undecided for %v (UNSTABLE_OFFSET_COMMIT), which is longer than any transaction may be open", e.Group, e.Partitions, e.Waited.Round(time.Second))
	b.WriteString("\n  nothing was read or published")
	orphaned := false
	for _, t := range e.Blocking {
		fmt.Fprintf(&b, "\n  transactional id %q, producer id %d, state %q", t.TransactionalID, t.ProducerID, t.State)
		if t.Orphaned() {
			orphaned = true
			b.WriteString(": decided, but its markers were never written")
		}
	}
	if e.Inspect != nil {
		fmt.Fprintf(&b, "\n  the transactions could not be inspected: %v", e.Inspect)
	}
	if orphaned || len(e.Blocking) == 0 {
		b.WriteString("\n  a broker that was killed alone between a decision and its markers can leave this behind (KAFKA-20734)")
	}
	b.WriteString("\n  read the decision of the transaction in __transaction_state and write the missing markers with it (WriteTxnMarkers); do not run 'kafka-transactions abort', it would throw away a committed transaction")
	return b.String()
}

// longest returns the longest time for which one of the transactions may be open.
func (e *UnstableError) longest() time.Duration {
	var d time.Duration
	for _, t := range e.Blocking {
		if !t.Orphaned() {
			d = max(d, t.Timeout)
		}
	}
	return d
}

// Orphaned tells whether the transaction is over for its coordinator while a
// partition still waits for its marker.
func (t BlockingTransaction) Orphaned() bool {
	return t.Pending && (t.State == "Empty" || t.State == "CompleteCommit" || t.State == "CompleteAbort" || t.State == "Dead")
}
