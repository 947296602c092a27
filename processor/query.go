package processor

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
	"github.com/weirstream/weir/state/segment"
)

// What a query may meet beside [ErrNotRunning].
var (
	// ErrNotActive says that this instance does not have the state now: it is starting or
	// restarting, or stands by while another one is active.
	ErrNotActive = errors.New("this instance does not have the state: it is starting, or stands by while another instance is active")
	// ErrNothingCommitted says that the job has not committed a checkpoint yet.
	ErrNothingCommitted = errors.New("nothing is committed yet")
	// ErrNoSuchState says that the topology does not have a state.
	ErrNoSuchState = errors.New("no such state")
	// ErrWrongCodec says that state is kept by another codec.
	ErrWrongCodec = errors.New("the state is kept by another codec")
)

// Query asks for the committed value of one key.
type Query struct {
	Operator, State      string
	Key                  []byte // encoded
	KeyCodec, ValueCodec string // names
}

// Answer is a committed value.
type Answer struct {
	Checkpoint int64  // at which it is what it is
	OK         bool   // there is one
	Version    int    // of the codec that encoded it
	Value      []byte // encoded
}

// Query reads the value of a key as of the last committed checkpoint, or the one before
// while that is just being taken over. It may be called from any goroutine, and does not
// hold up processing.
func (j *Job) Query(ctx context.Context, q Query) (Answer, error) {
	d, err := j.plan.find(q)
	if err != nil {
		return Answer{}, err
	}
	for {
		if err := ctx.Err(); err != nil {
			return Answer{}, err
		}
		inc, err := j.active()
		if err != nil {
			return Answer{}, err
		}
		a, err := inc.query(ctx, d, q.Key)
		if errors.Is(err, errMoved) {
			continue
		}
		if err != nil && inc.ctx.Err() != nil {
			return Answer{}, ErrNotActive // whatever it was, it came of the end
		}
		return a, err
	}
}

// errMoved says that a checkpoint was replaced while it was about to be read.
var errMoved = errors.New("the checkpoint is not retained any more")

// find returns the state that a query is about.
func (p *Plan) find(q Query) (DeclaredState, error) {
	var known []string
	for _, d := range p.States {
		if d.Operator != q.Operator || d.Name != q.State {
			known = append(known, fmt.Sprintf("%s/%s", d.Operator, d.Name))
			continue
		}
		where := fmt.Sprintf("operator %q, state %q", d.Operator, d.Name)
		switch {
		case d.Kind != state.KindValue && d.Kind != state.KindReducing && d.Kind != state.KindAggregating:
			return d, fmt.Errorf("%s is a %s state: only states of one value for each key can be queried: %w", where, d.Kind, errors.ErrUnsupported)
		case d.KeyCodec != q.KeyCodec:
			return d, fmt.Errorf("%s: %w: its keys by %q, the query has %q", where, ErrWrongCodec, d.KeyCodec, q.KeyCodec)
		case d.ValueCodec != q.ValueCodec:
			return d, fmt.Errorf("%s: %w: its values by %q, the query has %q", where, ErrWrongCodec, d.ValueCodec, q.ValueCodec)
		}
		return d, nil
	}
	has := "the app keeps no state"
	if len(known) > 0 {
		slices.Sort(known)
		has = "there are " + strings.Join(known, ", ")
	}
	return DeclaredState{}, fmt.Errorf("operator %q, state %q: %w; %s", q.Operator, q.State, ErrNoSuchState, has)
}

// active returns the incarnation that has the state.
func (j *Job) active() (*incarnation, error) {
	l := j.present()
	if l.over || l.changed == nil {
		return nil, ErrNotRunning
	}
	if l.inc == nil || l.inc.ctx.Err() != nil {
		return nil, ErrNotActive
	}
	if !l.inc.hasStarted() {
		return nil, ErrNotActive
	}
	return l.inc, nil
}

// query reads a key.
func (inc *incarnation) query(ctx context.Context, d DeclaredState, userKey []byte) (Answer, error) {
	i := slices.IndexFunc(inc.states, func(s checkpoint.StateInfo) bool {
		return s.Operator == d.Operator && s.Name == d.Name && s.Kind != kindDropped
	})
	if i < 0 {
		return Answer{}, fmt.Errorf("operator %q, state %q: %w in the registry", d.Operator, d.Name, ErrNoSuchState)
	}
	// One instance is active and has all key-groups, so whoever is active has this one.
	kg := keygroup.Of(userKey, inc.cfg.KeyGroups)
	key := segment.AppendKey(nil, uint16(kg), inc.states[i].ID, userKey)
	ref := inc.head.Load()
	if ref == nil {
		return Answer{}, ErrNothingCommitted
	}
	var (
		a   Answer
		raw []byte
		at  *checkpoint.Manifest // as of which it is
		err error
	)
	if inc.local != nil {
		a.Checkpoint, raw, a.OK, at, err = inc.queryLocal(ctx, key)
	} else {
		a.Checkpoint = ref.Checkpoint
		raw, a.OK, at, err = inc.queryStore(ctx, *ref, key)
	}
	if err != nil || !a.OK {
		return a, err
	}
	h, value, err := segment.CutHeader(raw)
	if err != nil {
		return Answer{}, fmt.Errorf("operator %q, state %q: %w", d.Operator, d.Name, err)
	}
	if h.Domain != segment.Forever && h.Expired(inc.clock.Now().UnixMilli(), at.Watermarks(d.Stage, kg, kg+1)[0]) && !inc.states[i].Spared.Has(h) {
		return Answer{Checkpoint: a.Checkpoint}, nil
	}
	a.Version, a.Value = h.Version, value
	return a, nil
}

// queryStore reads a key of a checkpoint in the store: the tables in memory are ahead of it.
func (inc *incarnation) queryStore(ctx context.Context, ref offsets.ManifestRef, key []byte) (value []byte, ok bool, at *checkpoint.Manifest, err error) {
	m, release, err := inc.writer.Hold(ref)
	if err != nil {
		if now := inc.head.Load(); *now != ref {
			return nil, false, nil, errMoved
		}
		return nil, false, nil, err
	}
	defer release()
	value, ok, err = inc.points.Get(ctx, m, key)
	return value, ok, m, err
}

// queryLocal reads a key from the local store.
func (inc *incarnation) queryLocal(ctx context.Context, key []byte) (id int64, value []byte, ok bool, at *checkpoint.Manifest, err error) {
	s, err := inc.local.Snapshot()
	if err != nil {
		return 0, nil, false, nil, err
	}
	defer s.Close()
	at, err = inc.taken.find(s.ID())
	if err != nil {
		return 0, nil, false, nil, err
	}
	value, ok, err = s.Get(ctx, nil, key)
	return s.ID().Checkpoint, value, ok, at, err
}

// taken are the checkpoints that the local store has taken over: a value that expires by event
// time does so by what the manifest says of that.
type taken struct {
	mu   sync.Mutex
	last []takenAt // oldest first
}

type takenAt struct {
	id        pebble.ID
	committed bool
	at        *checkpoint.Manifest
}

// takenKept is how many checkpoints are remembered. A query that finds another one asks
// again.
const takenKept = 8

func (t *taken) add(a takenAt) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.last) == takenKept {
		t.last = slices.Delete(t.last, 0, 1)
	}
	t.last = append(t.last, a)
}

// find returns the manifest of a checkpoint. Errors are errMoved and
// ErrNothingCommitted.
func (t *taken) find(id pebble.ID) (at *checkpoint.Manifest, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, a := range slices.Backward(t.last) {
		if a.id == id {
			if !a.committed {
				return nil, ErrNothingCommitted
			}
			return a.at, nil
		}
	}
	return nil, errMoved
}

// Phase is what a job is doing.
type Phase string

// The phases of a job.
const (
	Idle       Phase = "not started"
	Starting   Phase = "starting"   // looking at brokers, joining the group
	Standby    Phase = "standby"    // another instance is active
	Restoring  Phase = "restoring"  // loading the state
	Running    Phase = "running"    // processing
	Restarting Phase = "restarting" // after a failure, or a change in the group
	Stopping   Phase = "stopping"   // taking the last checkpoint
	Stopped    Phase = "stopped"
)

// Status is where a job stands.
type Status struct {
	Phase Phase
	// Checkpoint is the last one that this process knows to be committed, 0 for none, and
	// CommittedAt when that was.
	Checkpoint  int64
	CommittedAt time.Time
	// Incarnations is how often the job began: once, and at each restart.
	Incarnations int
	// Restored is how the state of the present incarnation came, or of the last one that
	// had any; nil if there was none.
	Restored *event.Restored
	// Sinks are the write-ahead sinks of the present incarnation that tell how far they
	// are.
	Sinks []SinkStatus
}

// SinkStatus is how far a write-ahead sink is.
type SinkStatus struct {
	Operator string
	sink.Progress
}

// commitInfo is a committed checkpoint as Status tells it.
type commitInfo struct {
	id int64
	at time.Time
}

// duty is what the group wants of an incarnation.
type duty int32

const (
	dutyUnknown duty = iota
	dutyStandby
	dutyActive
)

// Status may be called from any goroutine at any time.
func (j *Job) Status() Status {
	j.mu.Lock()
	l, asked, s := j.now, j.asked != nil && j.asked.Err() != nil, j.status
	j.mu.Unlock()
	if l.inc != nil {
		s = l.inc.report(s)
	}
	switch {
	case l.over:
		s.Phase = Stopped
	case l.changed == nil:
		s.Phase = Idle
	case asked:
		s.Phase = Stopping
	case l.inc == nil && s.Incarnations > 0:
		s.Phase = Restarting
	case l.inc == nil:
		s.Phase = Starting
	default:
		s.Phase = l.inc.phase()
	}
	return s
}

// report adds to s what is known of the incarnation.
func (inc *incarnation) report(s Status) Status {
	s.Incarnations++
	if c := inc.last.Load(); c != nil {
		s.Checkpoint, s.CommittedAt = c.id, c.at
	}
	if r := inc.restored.Load(); r != nil {
		s.Restored = r
	}
	s.Sinks = inc.progress()
	return s
}

func (inc *incarnation) phase() Phase {
	if inc.ctx.Err() != nil {
		return Restarting
	}
	if inc.hasStarted() {
		return Running
	}
	switch duty(inc.duty.Load()) {
	case dutyStandby:
		return Standby
	case dutyActive:
		return Restoring
	}
	return Starting
}
