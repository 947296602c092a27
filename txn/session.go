package txn

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/plugin/kzap"
	"go.uber.org/zap"

	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/internal/recycle"
	"github.com/weirstream/weir/offsets"
)

// The defaults of Config.
const (
	DefaultTransactionTimeout = 60 * time.Second
	DefaultSessionTimeout     = 45 * time.Second // Kafka's own
	DefaultRebalanceTimeout   = 60 * time.Second // Kafka's own
	DefaultHeartbeatInterval  = 3 * time.Second  // Kafka's own
)

const (
	// producerLinger is how long a record may wait for others to fill its batch. A
	// commit ends it early, so it never adds to the latency of a short interval.
	producerLinger = 5 * time.Millisecond

	// maxBufferedRecords and maxBufferedBytes bound what Produce takes before it
	// blocks: enough that a stall of a broker of some ten milliseconds doesn't stop
	// processing.
	maxBufferedRecords = 1 << 18
	maxBufferedBytes   = 64 << 20

	// metadataMinAge is how soon after one question for the leaders the next may follow.
	// With the client's own 5 s a moved leader would eat up a commit's deadline.
	metadataMinAge = 500 * time.Millisecond

	// fetchMaxWait is how long a broker may sit on a fetch that finds nothing. The client
	// has one fetch at a time in flight for each broker, and a partition that joins in
	// waits for it to come back: with the client's own 5 s a partition that is taken up
	// late, or whose leader moved, could stand still for that long.
	fetchMaxWait = 250 * time.Millisecond

	// leaveTimeout bounds the goodbye of Close and the question why we were thrown
	// out of the group.
	leaveTimeout = 2 * time.Second
)

// Config describes a session. App, Group, Instance, Topics and CommitTopic are
// required, everything else has a default.
type Config struct {
	App      string   // names the app in pointers and commit records
	Group    string   // consumer group
	Instance string   // stable name of this process; no two live ones may share it
	Topics   []string // consumed

	// Opts are the user's client options: seed brokers, TLS, SASL, dialer, logger,
	// batch and fetch sizes. They must have passed ValidateOptions. The session's own
	// options come after them.
	Opts []kgo.Opt

	TransactionTimeout time.Duration // the broker aborts what is open for longer
	SessionTimeout     time.Duration // the group forgets who is silent for longer
	RebalanceTimeout   time.Duration // a final commit must fit (classic protocol)
	HeartbeatInterval  time.Duration // classic protocol

	CommitTopic            string // compacted, see EnsureCommitTopic
	CommitTopicReplication int16  // 0 or -1: the broker's default

	// NextGen uses the KIP-848 group protocol instead of classic static membership.
	NextGen bool
	// SingleActive assigns all partitions to one member; the others stand by. Classic
	// protocol only.
	SingleActive bool

	Logger *zap.Logger // nil: none
	Events Events
}

// Events are optional funcs that are told what happens. They are called from the
// session's goroutines, must be quick and must not call the session.
type Events struct {
	Assigned  func(parts []offsets.Partition)
	Idle      func() // the group has no partition for this member now
	Revoked   func(parts []offsets.Partition)
	Lost      func(parts []offsets.Partition)
	Unstable  func(UnstableInfo)
	Committed func(CommitInfo)
	Failed    func(err error)
}

func (c Config) withDefaults() Config {
	set := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	set(&c.TransactionTimeout, DefaultTransactionTimeout)
	set(&c.SessionTimeout, DefaultSessionTimeout)
	set(&c.RebalanceTimeout, DefaultRebalanceTimeout)
	set(&c.HeartbeatInterval, DefaultHeartbeatInterval)
	if c.CommitTopicReplication == 0 {
		c.CommitTopicReplication = -1
	}
	if c.Logger == nil {
		c.Logger = zap.NewNop()
	}
	return c
}

func (c Config) validate() error {
	errs := []error{offsets.ValidateNames(c.App, c.Instance)}
	need := func(ok bool, what string) {
		if !ok {
			errs = append(errs, errors.New(what))
		}
	}
	need(c.Group != "", "group is empty")
	need(len(c.Topics) > 0, "no topics to consume")
	need(c.CommitTopic != "", "commit topic is empty")
	need(!c.NextGen || !c.SingleActive, "one active instance needs the classic group protocol: the next-generation one assigns on the broker")
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("configure transactions of app %q: %w", c.App, err)
	}
	return nil
}

// TransactionalID returns the transactional id of an app's instance.
func TransactionalID(app, instance string) string { return app + "/" + instance }

// Handler is the runtime's side of a session. Its methods are called from the
// client's goroutines, never two at a time, and not after Close was called. They may be called
// before the caller of Open has its *Session.
type Handler interface {
	// Restore is given newly assigned partitions with what is committed for them, and
	// loads their state. Nothing of them is fetched before it returned. ctx is
	// cancelled when a rebalance or Close comes in between: Restore then returns
	// ctx.Err() at once, and is called again for the partitions that stay, so what was
	// loaded should be kept. The positions it returns replace the committed ones for
	// the partitions that they name; nil replaces none. An error fails the session.
	Restore(ctx context.Context, committed map[offsets.Partition]offsets.Committed) (map[offsets.Partition]offsets.Position, error)

	// Revoke blocks until a last Commit that covers these partitions is done and their
	// state is handed over. ctx is cancelled by Close. A partition may be revoked
	// whose Restore was cancelled.
	Revoke(ctx context.Context, parts []offsets.Partition)

	// Lost says that the partitions are not ours any more: no commit may follow, and
	// the session fails. It must not block.
	Lost(parts []offsets.Partition)
}

// Session is one incarnation of a client that is group member and transactional
// producer in one. The package's documentation says who calls what in which order.
type Session struct {
	cfg   Config
	txnID string
	h     Handler
	log   *zap.Logger
	cl    *kgo.Client
	adm   *kadm.Client

	ctx        context.Context // of callbacks and own goroutines; ended by Close first
	cancel     context.CancelFunc
	clCancel   context.CancelFunc // ends the client's own context
	opened     chan struct{}      // closed when cl is set
	background sync.WaitGroup     // the watch of unstable offsets
	closeOnce  sync.Once

	// gone is closed by Leave and Close: partitions that come or go from then on are
	// nobody's business.
	gone     chan struct{}
	goneOnce sync.Once
	// lost is set before anybody is told that partitions were lost, and never unset.
	// Commit reads it after the membership that it commits with.
	lost atomic.Bool
	// revoked is set when the group took partitions back, before it can give them away, and
	// never unset.
	revoked atomic.Bool
	// aborting is set by Abort: records that fail from then on were to fail.
	aborting atomic.Bool
	// ending is set while it is not known whether EndTxn was sent to commit the open
	// transaction: then nobody may abort it.
	ending atomic.Bool
	// staging is set while a request that adds offsets to the open transaction is not answered.
	staging atomic.Bool
	// joined is set when the group has assigned something, if only nothing.
	joined atomic.Bool

	failOnce sync.Once
	failed   chan struct{}
	err      error // set before failed is closed

	promise   func(*kgo.Record, error) // onProduced, bound once: Produce allocates no closure
	epoch     time.Time                // what txnStart counts from
	txnStart  atomic.Int64             // nanoseconds since epoch, of the first Produce of the open transaction; 0: none yet
	throttled atomic.Int64             // nanoseconds, by quotas of the brokers, since the last commit
	began     atomic.Bool              // a transaction is open at the client
	cleared   atomic.Bool              // what a predecessor left open was ended while standing by

	// last is the newest checkpoint that is known to be committed, -1 if none is.
	last atomic.Int64

	mu       sync.Mutex
	assigned map[offsets.Partition]bool // by the group, restored or not
	member   string                     // id of the member that assigned was given to
	rejoined bool                       // once for what an old assignment lacks
	owned    map[offsets.Partition]bool // being restored or restored, not yet revoked
	topicID  map[string][16]byte
	epochs   map[offsets.Partition]int32            // leader epochs, learnt with the topic ids
	starts   map[offsets.Partition]offsets.Position // positions that Restore asked for, until the client took them
	watch    context.CancelFunc                     // of the watch of unstable offsets, nil if none

	tv features

	// betweenChecks is called by tests between the two reads whose order guards
	// against a late commit.
	betweenChecks func()
	// kept holds the records of the open transaction where a test took out the guard
	// ReadBack; otherwise it stays empty.
	kept []*kgo.Record
}

// Open validates cfg, creates the client and joins the group. It doesn't wait for
// the group: h.Restore is called when partitions were assigned. The session works
// until Failed is closed or Close is called, not until ctx ends; ctx bounds Open.
func Open(ctx context.Context, cfg Config, h Handler) (*Session, error) {
	cfg = cfg.withDefaults()
	if err := errors.Join(cfg.validate(), ctx.Err()); err != nil {
		return nil, err
	}
	s := &Session{
		cfg: cfg, h: h,
		txnID:    TransactionalID(cfg.App, cfg.Instance),
		log:      cfg.Logger.With(zap.String("group", cfg.Group), zap.String("instance", cfg.Instance)),
		opened:   make(chan struct{}),
		gone:     make(chan struct{}),
		failed:   make(chan struct{}),
		epoch:    time.Now().Add(-1), // so that the first instant is not 0
		assigned: map[offsets.Partition]bool{},
		owned:    map[offsets.Partition]bool{},
		topicID:  map[string][16]byte{},
		epochs:   map[offsets.Partition]int32{},
		starts:   map[offsets.Partition]offsets.Position{},
	}
	s.last.Store(-1)
	s.promise = s.onProduced
	s.ctx, s.cancel = context.WithCancel(context.Background())
	var clCtx context.Context
	clCtx, s.clCancel = context.WithCancel(context.Background())

	opts := slices.Concat(s.tunable(), cfg.Opts, s.mandatory(clCtx))
	cl, err := kgo.NewClient(opts...)
	if err != nil {
		s.cancel()
		s.clCancel()
		return nil, fmt.Errorf("open Kafka client of instance %q: %w", cfg.Instance, err)
	}
	s.cl, s.adm = cl, kadm.NewClient(cl)
	close(s.opened)
	return s, nil
}

// tunable are options that the user's own may replace.
func (s *Session) tunable() []kgo.Opt {
	opts := []kgo.Opt{
		kgo.ProducerLinger(producerLinger),
		kgo.MaxBufferedRecords(maxBufferedRecords),
		kgo.MaxBufferedBytes(maxBufferedBytes),
		kgo.MetadataMinAge(metadataMinAge),
		kgo.FetchMaxWait(fetchMaxWait),
		kgo.ClientID("weir-" + s.cfg.App),
	}
	if s.cfg.Logger.Core().Enabled(zap.ErrorLevel) {
		// What the client retries on its own is a warning to nobody but its authors.
		opts = append(opts, kgo.WithLogger(kzap.New(s.cfg.Logger.Named("kafka"), kzap.Level(kgo.LogLevelWarn))))
	}
	return opts
}

// mandatory are the options that the guarantee stands on.
func (s *Session) mandatory(ctx context.Context) []kgo.Opt {
	opts := []kgo.Opt{
		kgo.WithContext(ctx),
		kgo.ConsumerGroup(s.cfg.Group),
		kgo.ConsumeTopics(s.cfg.Topics...),
		kgo.TransactionalID(s.txnID),
		kgo.TransactionTimeout(s.cfg.TransactionTimeout),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		// No RecordDeliveryTimeout: the client counts it from the record's own
		// timestamp, and an output has that of its input, which may be years old. What
		// bounds the wait is the deadline of the commit.
		kgo.StopProducerOnDataLossDetected(),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Without the markers the position of a transactional input stops before the
		// last one, and it never looks drained.
		kgo.KeepControlRecords(),
		kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		// Retention that passed the position is data loss: it must stop us, not move us.
		kgo.ConsumeResetOffset(kgo.NoResetOffset()),
		kgo.DisableAutoCommit(),
		kgo.SessionTimeout(s.cfg.SessionTimeout),
		kgo.RebalanceTimeout(s.cfg.RebalanceTimeout),
		kgo.HeartbeatInterval(s.cfg.HeartbeatInterval),
		kgo.OnPartitionsAssigned(s.onAssigned),
		kgo.OnOffsetsFetched(s.onFetched),
		kgo.AdjustFetchOffsetsFn(s.adjust),
		kgo.OnPartitionsRevoked(s.onRevoked),
		kgo.OnPartitionsLost(s.onLost),
		kgo.WithHooks((*groupHook)(s)),
	}
	switch {
	case s.cfg.NextGen:
		// Sticky must be first, else the client silently runs the classic protocol. No
		// instance id: a static member of this protocol that was killed waits for its
		// own session to expire, as a dynamic one does.
		opts = append(opts, kgo.ServerSideBalancer(), kgo.Balancers(kgo.StickyBalancer()))
	case s.cfg.SingleActive:
		opts = append(opts, kgo.InstanceID(s.cfg.Instance), kgo.Balancers(newSingleActive(func() { <-s.opened; s.cl.ForceMetadataRefresh() })))
	default:
		opts = append(opts, kgo.InstanceID(s.cfg.Instance), kgo.Balancers(kgo.CooperativeStickyBalancer()))
	}
	return opts
}

// instanceID is the group instance id that requests carry.
func (s *Session) instanceID() *string {
	if s.cfg.NextGen {
		return nil
	}
	return &s.cfg.Instance
}

// Client returns the client, to poll with. Never begin, end or produce in a
// transaction with it, and never commit, pause or seek.
func (s *Session) Client() *kgo.Client { return s.cl }

// TransactionalID returns the session's transactional id.
func (s *Session) TransactionalID() string { return s.txnID }

// Owned returns the partitions that were handed to Restore and not revoked, sorted. Any
// goroutine may call it.
func (s *Session) Owned() []offsets.Partition {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.SortedFunc(maps.Keys(s.owned), offsets.Partition.Compare)
}

// Failed is closed when the session can't commit any more.
func (s *Session) Failed() <-chan struct{} { return s.failed }

// Err returns why Failed was closed, or nil: an *Error, an *UnstableError, a
// *DeadlineError, or what Restore returned, wrapped.
func (s *Session) Err() error {
	select {
	case <-s.failed:
		return s.err
	default:
		return nil
	}
}

// fail records the first fatal error and returns it.
func (s *Session) fail(err error) error {
	s.failOnce.Do(func() {
		s.err = err
		close(s.failed)
		s.log.Error("session failed", zap.Error(err))
		if s.cfg.Events.Failed != nil {
			s.cfg.Events.Failed(err)
		}
	})
	return err
}

// Produce sends r in the open transaction and returns before it is acknowledged. It
// blocks while the client's buffer is full. Any goroutine may call it between two
// commits; the caller sees to it that none runs beside Commit. r belongs to the
// client until the next Commit returned. An error of the record fails the next
// Commit and the session.
func (s *Session) Produce(r *kgo.Record) {
	if s.txnStart.Load() == 0 {
		s.txnStart.CompareAndSwap(0, int64(time.Since(s.epoch)))
	}
	if guard.Broken(guard.ReadBack) {
		s.keep(r)
	}
	s.cl.Produce(s.ctx, r, s.promise)
}

// onProduced is the promise of every record.
func (s *Session) onProduced(r *kgo.Record, err error) {
	if err == nil {
		recycle.Done(r)
		return
	}
	if s.ctx.Err() != nil || s.aborting.Load() {
		return
	}
	e := s.errorf(produceOp+r.Topic, err)
	if e.Kind == Transient && s.lost.Load() {
		e.Kind = Lost
	}
	s.fail(e)
}

// Leave tells the group that this instance is gone for good, so that others take
// its partitions over at once instead of after the session timeout. The client
// alone doesn't do that for a static member. The caller has taken its last
// checkpoint; after Leave there is only Close. An error means that the others wait
// for the session timeout; nothing else is wrong.
func (s *Session) Leave(ctx context.Context) error {
	s.goneOnce.Do(func() { close(s.gone) })
	member, _ := s.cl.GroupMetadata()
	if err := s.cl.LeaveGroupContext(ctx); err != nil {
		return fmt.Errorf("leave group %s as instance %q: %w", s.cfg.Group, s.cfg.Instance, err)
	}
	if s.cfg.NextGen || member == "" {
		return nil
	}
	if now, _ := s.cl.GroupMetadata(); now != "" {
		member = now // the rebalance that the leave waited for may have changed it
	}
	return leave(ctx, s.cl, s.cfg, member)
}

// Leave is [Session.Leave] for a session that was closed, whose member ID was member. It is
// for the classic protocol. If the group has given the place to another process since then,
// that one keeps it, and an error says so.
func Leave(ctx context.Context, cfg Config, member string) error {
	cl, err := kgo.NewClient(cfg.Opts...)
	if err != nil {
		return err
	}
	defer cl.Close()
	return leave(ctx, cl, cfg, member)
}

func leave(ctx context.Context, cl *kgo.Client, cfg Config, member string) error {
	req := kmsg.NewPtrLeaveGroupRequest()
	req.Group = cfg.Group
	req.MemberID = member
	m := kmsg.NewLeaveGroupRequestMember()
	m.MemberID = member
	m.InstanceID = &cfg.Instance
	reason := "weir instance stops"
	m.Reason = &reason
	req.Members = append(req.Members, m)
	resp, err := req.RequestWith(ctx, cl)
	if err == nil {
		err = leaveError(resp)
	}
	if err != nil {
		return fmt.Errorf("leave group %s as instance %q: %w", cfg.Group, cfg.Instance, err)
	}
	return nil
}

// InDoubt is the error for a commit that the caller no longer waits for.
func (s *Session) InDoubt(checkpoint int64, why error) *Error {
	e := s.errorf(fmt.Sprintf("commit checkpoint %d", checkpoint), why)
	e.Kind, e.Attempted = Unknown, checkpoint
	return e
}

// Rejoin asks the group for a rebalance: for the only active instance, when it was not
// assigned all partitions. It does not wait for it.
func (s *Session) Rejoin() { s.cl.ForceRebalance() }

// Fence ends the open transaction of another instance of the app and makes its
// producer fail, which restarts it if it is alive. It is for an instance that owns
// nothing any more. An error after ten seconds may mean that the transaction was ended, but
// that the brokers can't write its markers.
func (s *Session) Fence(ctx context.Context, instance string) error {
	return s.fence(ctx, TransactionalID(s.cfg.App, instance), time.Now(), fenceWait)
}

// Confirm asks the group whether this session still has what it was assigned. If it returns
// nil, nobody else had been assigned anything of it when Confirm was called: what was there
// before the call is not a successor's. The transactional id can't tell that, since a
// successor may have another one. An *[Error] says that others may have it now, or that the
// group can't be asked. It may be called while Restore runs. It is for the classic protocol.
func (s *Session) Confirm(ctx context.Context) error {
	if err := s.confirm(ctx); err != nil {
		return s.errorf(fmt.Sprintf("confirm that instance %q still has its partitions of group %s", s.cfg.Instance, s.cfg.Group), err)
	}
	return nil
}

// confirm does it in this order: a coordinator that knows member and generation has not
// given to others what the member had in that generation, unless the member gave it up
// itself, which is noted before.
func (s *Session) confirm(ctx context.Context) error {
	if s.cfg.NextGen {
		return errors.New("the next-generation group protocol has no request that asks without changing something")
	}
	member, generation, err := s.membership()
	if err != nil {
		return err
	}
	req := kmsg.NewPtrHeartbeatRequest()
	req.Group, req.MemberID, req.Generation, req.InstanceID = s.cfg.Group, member, generation, s.instanceID()
	resp, err := req.RequestWith(ctx, s.cl)
	if err != nil {
		return err
	}
	// A rebalance that has begun ends with another generation, and gives nothing away before.
	if err := kerr.ErrorForCode(resp.ErrorCode); err != nil && !errors.Is(err, kerr.RebalanceInProgress) {
		return err
	}
	if s.revoked.Load() || s.lost.Load() {
		return errLost
	}
	return nil
}

// Abort ends the open transaction without committing it, so that what was produced in
// it doesn't hold up readers until the broker's timeout. It is for a session that
// ends in good order, through its caller's own error, or because something of a commit
// failed. It does nothing if only recovery may decide: when the request that commits may have
// been sent, and when others took over. Nobody may be inside Produce or Commit, and after
// Abort there is only Close. An error means that the transaction stays open until the next
// incarnation or the broker ends it.
func (s *Session) Abort(ctx context.Context) error {
	if !s.mayAbort() {
		return nil
	}
	s.aborting.Store(true)
	if err := s.cl.AbortBufferedRecords(ctx); err != nil {
		return fmt.Errorf("abort the transaction of %s: drop buffered records: %w", s.txnID, err)
	}
	if err := s.cl.EndTransaction(ctx, kgo.TryAbort); err != nil {
		return fmt.Errorf("abort the transaction of %s: %w", s.txnID, err)
	}
	return nil
}

// mayAbort tells whether the open transaction is surely ours and undecided.
func (s *Session) mayAbort() bool {
	if !s.began.Load() || s.ending.Load() {
		return false
	}
	if s.staging.Load() && !s.bumpsEpoch() {
		// Offsets that come to their coordinator after the end of the transaction would stay
		// undecided: they have the epoch of the next one, and old brokers take them.
		return false
	}
	var e *Error
	if errors.As(s.Err(), &e) {
		return e.Kind != Fenced && e.Kind != Lost && e.Kind != Expired
	}
	return true
}

// bumpsEpoch tells whether each transaction has an epoch of its own. The client has it so only
// if it may send all the requests that go with it.
func (s *Session) bumpsEpoch() bool {
	return s.tv.transactionVersion >= implicitGroupVersion &&
		spoken(s.cl, kmsg.EndTxn) >= bumpingEndRequest && spoken(s.cl, kmsg.Produce) >= implicitPartitionRequest
}

// Close ends the session: handlers that run are cancelled, buffered records fail,
// nothing is committed or aborted, and no goroutine remains. The transaction that is
// open stays open until the next incarnation, or the broker's timeout, ends it.
// Nobody may be inside Commit. It may be called more than once.
func (s *Session) Close() {
	s.closeOnce.Do(func() {
		s.goneOnce.Do(func() { close(s.gone) })
		s.cancel()
		// A static member says nothing here and finds its place again. A member of the
		// next-generation protocol has to say goodbye, or its successor waits for its
		// session to expire.
		ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
		_ = s.cl.LeaveGroupContext(ctx)
		cancel()
		s.clCancel()
		s.cl.Close()
		s.background.Wait()
	})
}
