package processor

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/pebble"
	"github.com/weirstream/weir/txn"
)

// Job runs a plan until it is stopped: one incarnation after another, under the
// restart policy.
type Job struct {
	cfg   Config
	plan  *Plan
	local *pebble.Store         // nil: state is in memory
	owner *checkpoint.Ownership // of the store, by the job; set by prepare

	mu     sync.Mutex
	now    life
	stop   context.CancelFunc // nil: Run was not called
	asked  context.Context    // done when the job is asked to stop; nil as stop is
	status Status             // as of the end of the last incarnation
	killed bool
	copies sync.WaitGroup // of StopWithSavepoint; none is added when now.over

	// Set before ended is closed.
	ended  chan struct{}
	result error               // of Run
	head   offsets.ManifestRef // the last committed checkpoint
}

// NewJob returns a job. cfg and plan were validated and must not change.
func NewJob(cfg Config, plan *Plan) *Job {
	return &Job{cfg: cfg, plan: plan, ended: make(chan struct{})}
}

// Run runs the job until ctx is cancelled (which takes a last checkpoint), the
// input is drained, or something fails that a restart cannot mend. It returns nil
// after a clean stop.
func (j *Job) Run(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	j.mu.Lock()
	j.stop, j.asked = stop, ctx
	j.mu.Unlock()
	j.live(nil, false)
	j.result = j.run(ctx)
	j.live(nil, true)
	close(j.ended)
	return j.result
}

func (j *Job) run(ctx context.Context) error {
	if err := j.prepare(ctx); err != nil {
		if ctx.Err() != nil {
			return nil // asked to stop before anything began
		}
		return err
	}
	if err := j.openLocal(); err != nil {
		return err
	}
	if j.local != nil {
		defer j.local.Close()
	}
	ends, err := j.endOffsets(ctx)
	if err != nil {
		return err
	}
	delay := backoff.NewExponentialBackOff()
	delay.InitialInterval, delay.MaxInterval = j.cfg.Restart.Initial, j.cfg.Restart.Max
	delay.Multiplier = 2
	restarts := 0
	var unsettled error // why the last incarnation failed, until another one has started
	var doubt error     // likewise, of the last one that left a commit in doubt
	for {
		begun := time.Now()
		inc := newIncarnation(ctx, &j.cfg, j.plan, j.local, ends)
		inc.owner = j.owner
		j.live(inc, false)
		err := inc.run(ctx)
		j.live(nil, false)
		standby := duty(inc.duty.Load()) == dutyStandby
		if ref := inc.head.Load(); ref != nil {
			j.head = *ref
		} else if standby {
			j.head = offsets.ManifestRef{} // others may have committed since
		}
		if standby || inc.hasStarted() {
			unsettled, doubt = nil, nil // whoever is active has looked, or will
		}
		switch {
		case err == nil && unsettled != nil:
			return stopError(unsettled)
		case err == nil:
			return nil
		case errors.Is(err, ErrKilled):
			return err
		case errors.Is(err, errHandedOver):
			if ctx.Err() != nil {
				return nil
			}
			j.cfg.Listener.Restarting(event.Restarting{App: j.cfg.App})
			continue
		}
		why := err
		if inDoubt(err) {
			doubt = err
		} else if doubt != nil {
			why = errors.Join(doubt, err) // nobody has looked since
		}
		var said *UnappliedError
		if owed := inc.owed.Load(); owed != nil && !inc.hasStarted() && !errors.As(err, &said) {
			why = errors.Join(owed, why) // that is what a stop leaves behind, not a commit
		}
		var te *txn.Error
		if errors.As(err, &te) && te.Kind == txn.Fenced {
			j.cfg.Listener.Fenced(event.Fenced{App: j.cfg.App, Err: err})
		}
		// Who never was active has nothing to commit, and its stop is a clean one; but not if
		// it began with a checkpoint that has something to apply, though it is no head yet.
		idle := unsettled == nil && !inc.hasStarted() && j.head == (offsets.ManifestRef{}) && inc.owed.Load() == nil
		if ctx.Err() != nil && !idle {
			return stopError(why)
		}
		if isFatal(err) {
			return err
		}
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(begun) >= j.cfg.Restart.Quiet {
			restarts = 0
			delay.Reset()
		}
		if restarts++; j.cfg.Restart.Limit >= 0 && restarts > j.cfg.Restart.Limit {
			inc.leaveLate()
			return &RestartsError{Restarts: restarts - 1, Err: err}
		}
		after := min(delay.NextBackOff(), j.cfg.Restart.Max) // the jitter comes on top of it
		j.cfg.Listener.Restarting(event.Restarting{App: j.cfg.App, Attempt: restarts, After: after, Err: err})
		select {
		case <-time.After(after):
		case <-ctx.Done():
			inc.leaveLate()
			if idle {
				return nil
			}
			return stopError(why)
		}
		if !idle {
			unsettled = why
		}
	}
}

// stopError says why a stop was not clean.
func stopError(err error) error {
	var unapplied *UnappliedError
	if errors.As(err, &unapplied) || inDoubt(err) {
		return fmt.Errorf("stopping: %w", err) // it says itself what is known
	}
	return fmt.Errorf("stopping: the last checkpoint was not committed, the next start replays: %w", err)
}

// ErrKilled is what Run returns after [Job.Kill].
var ErrKilled = errors.New("killed")

// Kill ends the job as far as possible as the end of its process would: nothing is
// committed from now on, what is open stays open, and nobody is told. It is for tests, and
// does not wait for Run to return. Any goroutine may call it.
func (j *Job) Kill() {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.killed = true
	if j.now.inc != nil {
		j.now.inc.cancel(ErrKilled)
	}
	if j.stop != nil {
		j.stop()
	}
}

// prepare checks everything that can be checked before the first record.
func (j *Job) prepare(ctx context.Context) error {
	errs := []error{
		checkpoint.Probe(ctx, j.cfg.Store),
		checkpoint.Claim(ctx, j.cfg.Store, j.cfg.App, j.cfg.KeyGroups),
	}
	if errs[0] != nil {
		errs[1] = nil // says the same again
	}
	cl, err := kgo.NewClient(j.cfg.Kafka...)
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	defer cl.Close()
	outputs := j.plan.OutputTopics
	if j.cfg.DeadLetterTopic != "" {
		outputs = append(outputs[:len(outputs):len(outputs)], j.cfg.DeadLetterTopic)
	}
	cfg := sessionConfig(&j.cfg, j.plan)
	if err := txn.Check(ctx, cl, cfg, outputs...); err != nil {
		return errors.Join(append(errs, err)...)
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := j.claimOwner(ctx, cl); err != nil {
		return err
	}
	// Not before: an app that the store refuses makes no topic.
	return txn.EnsureCommitTopic(ctx, kadm.NewClient(cl), cfg.CommitTopic, cfg.CommitTopicReplication)
}

// claimOwner makes sure that no other group and no other cluster has the store.
func (j *Job) claimOwner(ctx context.Context, cl *kgo.Client) error {
	cluster, err := txn.ClusterID(ctx, cl)
	if err != nil {
		return err
	}
	j.owner = &checkpoint.Ownership{Store: j.cfg.Store, App: j.cfg.App, Owner: checkpoint.Owner{Group: j.cfg.Group, Cluster: cluster}}
	return j.owner.Claim(ctx, j.cfg.TakeStore...)
}

// endOffsets returns where a drain stops: what a read_committed reader can reach now.
func (j *Job) endOffsets(ctx context.Context) (map[offsets.Partition]int64, error) {
	if !j.cfg.Drain {
		return nil, nil
	}
	cl, err := kgo.NewClient(j.cfg.Kafka...)
	if err != nil {
		return nil, err
	}
	defer cl.Close()
	listed, err := kadm.NewClient(cl).ListCommittedOffsets(ctx, j.plan.Sources.Topics()...)
	if err != nil {
		return nil, fmt.Errorf("reading the end offsets to drain to: %w", err)
	}
	if err := listed.Error(); err != nil {
		return nil, fmt.Errorf("reading the end offsets to drain to: %w", err)
	}
	ends := map[offsets.Partition]int64{}
	listed.Each(func(o kadm.ListedOffset) {
		ends[offsets.Partition{Topic: o.Topic, Partition: o.Partition}] = o.Offset
	})
	return ends, nil
}

func sessionConfig(cfg *Config, plan *Plan) txn.Config {
	return txn.Config{
		App: cfg.App, Group: cfg.Group, Instance: cfg.Instance, Topics: plan.Sources.Topics(), Opts: cfg.Kafka,
		TransactionTimeout: cfg.TransactionTimeout, SessionTimeout: cfg.SessionTimeout,
		RebalanceTimeout: cfg.RebalanceTimeout, HeartbeatInterval: cfg.HeartbeatInterval,
		CommitTopic: cfg.CommitTopic, CommitTopicReplication: cfg.CommitTopicReplication,
		SingleActive: true, Logger: cfg.Logger,
	}
}

func (inc *incarnation) sessionConfig() txn.Config {
	cfg := sessionConfig(inc.cfg, inc.plan)
	cfg.Events.Idle = func() { inc.duty.CompareAndSwap(int32(dutyUnknown), int32(dutyStandby)) }
	return cfg
}

// isFatal tells whether a restart cannot mend err.
func isFatal(err error) bool {
	var (
		f        fatalError
		te       *txn.Error
		unstable *txn.UnstableError // it was waited for as long as any transaction may be open
	)
	return errors.As(err, &f) || errors.As(err, &unstable) || errors.As(err, &te) && te.Kind == txn.Rejected
}

// classifyStore marks what a restart cannot mend among the errors of the store.
func classifyStore(err error) error {
	var (
		damaged *checkpoint.DamagedError
		missing *checkpoint.MissingError
		version *checkpoint.VersionError
		owner   *checkpoint.OwnerError
	)
	if errors.As(err, &damaged) || errors.As(err, &missing) || errors.As(err, &version) || errors.As(err, &owner) {
		return fatal(err)
	}
	return err
}
