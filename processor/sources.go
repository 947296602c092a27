package processor

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/offsets"
)

// Sources is the first stage: its subtasks own the partitions of all input topics
// and run the chains behind them.
type Sources struct {
	ops []sourceOp
}

type sourceOp struct {
	id, topic string
	build     func(s *Subtask) func(*kgo.Record)
	how       *Watermarks // nil: it has no part in event time
}

// SourcesID is the stage ID of the sources.
const SourcesID = "sources"

// Add adds the source of a topic. build makes the chain of one subtask.
func (st *Sources) Add(id, topic string, build func(s *Subtask) func(*kgo.Record)) {
	st.ops = append(st.ops, sourceOp{id: id, topic: topic, build: build})
}

// Topics lists the input topics.
func (st *Sources) Topics() []string {
	var ts []string
	for _, op := range st.ops {
		ts = append(ts, op.topic)
	}
	return ts
}

func (st *Sources) build(inc *incarnation) []*sourceRunner {
	var rs []*sourceRunner
	for i := range inc.cfg.Parallelism {
		s := inc.newSubtask(SourcesID, i)
		r := &sourceRunner{sub: s, queue: make(chan slice, sliceQueue), chains: map[string]*sourceChain{}, timed: st.timed()}
		for _, op := range st.ops {
			begin := len(s.outgoing)
			c := &sourceChain{run: op.build(s), how: op.how}
			c.outgoing = s.outgoing[begin:len(s.outgoing):len(s.outgoing)]
			r.chains[op.topic] = c
			r.mayIdle = r.mayIdle || op.how != nil && op.how.Idle > 0
		}
		rs = append(rs, r)
	}
	return rs
}

const (
	sliceSize  = 512 // records handed to a source subtask at once
	sliceQueue = 4   // slices that wait before a source subtask
)

// slice is a run of polled records of one partition.
type slice struct {
	part    *partition
	records []*kgo.Record
}

// partition is an input partition that this instance owns. The runner that owns
// it is the only one to touch next and epoch.
type partition struct {
	id    offsets.Partition
	owner *sourceRunner
	next  int64 // the offset after the last processed record
	epoch int32 // leader epoch of the last processed record, -1 if unknown

	time partitionTime

	polled  atomic.Int64 // the offset after the last record that the poller has
	end     int64        // drained when next reaches it; -1: no end
	drained bool
}

// position is where a partition stood at a barrier.
type position struct {
	part offsets.Partition
	at   offsets.Position
	time checkpoint.PartitionTime
}

// sourceRunner runs one source subtask.
type sourceRunner struct {
	sub    *Subtask
	queue  chan slice
	chains map[string]*sourceChain
	parts  []*partition // set before run, see incarnation.start

	timed   bool // some source has a part in event time
	mayIdle bool // a partition may become idle
	alarm   alarm
	ended   bool // the input was drained: time is at its end

	want atomic.Int64 // newest barrier that the loop injected
	cut  int64        // newest barrier at which positions were cut

	records int64 // processed since then
}

func (r *sourceRunner) subtask() *Subtask { return r.sub }

// inject asks for a barrier. A newer one replaces one that was not cut yet.
func (r *sourceRunner) inject(id int64) {
	r.want.Store(id)
	r.sub.notify()
}

func (r *sourceRunner) begin() {
	for _, c := range r.chains {
		c.begin(r.timed)
	}
}

func (r *sourceRunner) run(ctx context.Context) error {
	r.begin()
	defer r.silence()
	for {
		r.sub.progress(true)
		r.settle()
		r.barrier()
		if r.sub.err != nil {
			return r.sub.err
		}
		var s slice
		select {
		case s = <-r.queue:
		default:
			r.rest()
			select {
			case s = <-r.queue:
			case <-r.sub.wake:
				continue
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		if err := r.take(s); err != nil {
			return err
		}
	}
}

// step implements [runner].
func (r *sourceRunner) step(context.Context) (worked bool, err error) {
	if r.barrier(); r.sub.err != nil {
		return false, r.sub.err
	}
	select {
	case s := <-r.queue:
		return true, r.take(s)
	default:
		r.rest()
		return false, r.sub.err
	}
}

// rest is called when there is no input.
func (r *sourceRunner) rest() {
	if wait := r.idleness(); wait > 0 {
		r.alarm.set(r.sub.inc.clock, r.sub.inc.clock.Now().Add(wait), r.sub.notify)
	}
	r.sub.idle()
}

// take processes a slice.
func (r *sourceRunner) take(s slice) error {
	if r.ended {
		return nil // what came after the end is for the next run
	}
	r.process(s)
	if r.sub.err == nil {
		r.idleness()
	}
	return r.sub.err
}

// lookEvery is how many records are processed between two looks at what look-ups have
// answered.
const lookEvery = 64

// called tells whether the loop wants something: a barrier, or the end. It is asked before
// each record, since nothing says how long its handlers take.
func (r *sourceRunner) called() bool { return r.want.Load() > r.cut || r.sub.inc.over.Load() }

func (r *sourceRunner) process(s slice) {
	c := r.chains[s.part.id.Topic]
	chain := c.run
	r.sub.part, r.sub.at = s.part, noWatermark
	if c.how != nil {
		r.awake(c, s.part)
	}
	inc := r.sub.inc
	inc.processing.Add(1)
	defer inc.processing.Add(-1)
	if inc.quiet.Load() {
		inc.wakeLoop() // it counts on the slice to be through soon, and looks again
	}
	// Told slice by slice: a burst after a pause is due at once, and goes into one epoch.
	counted, bytes := 0, int64(0)
	count := func(done int) {
		inc.observe(int64(done-counted), bytes)
		counted, bytes = done, 0
	}
	limited := inc.cfg.Trigger.Records > 0 || inc.cfg.Trigger.Bytes > 0
	for done := 0; done < len(s.records) && r.sub.err == nil; {
		r.sub.guarded(func() {
			for done < len(s.records) && r.sub.err == nil {
				if r.sub.crowded {
					return
				}
				if done%lookEvery == lookEvery-1 || r.called() {
					r.sub.progress(false)
					r.barrier()
				}
				rec := s.records[done]
				done++
				if rec.Offset < s.part.next {
					r.sub.err = fatal(fmt.Errorf("%s: record at offset %d came after offset %d was processed: this is a bug in weir or in its Kafka client", s.part.id, rec.Offset, s.part.next-1))
					return
				}
				// The record counts as processed before its chain runs: after a panic
				// that is skipped, the next barrier must not cut before it.
				s.part.next, s.part.epoch = rec.Offset+1, rec.LeaderEpoch
				bytes += int64(len(rec.Key) + len(rec.Value))
				if limited && done%lookEvery == 0 {
					count(done)
				}
				if rec.Attrs.IsControl() {
					continue // a transaction marker: it moves the position, nothing else
				}
				r.records++
				r.sub.raw = rec
				chain(rec)
			}
		})
		r.settle()
	}
	if c.how != nil {
		c.update()
	}
	count(len(s.records))
	if r.sub.err == nil {
		r.drain(s.part)
	}
}

// settle waits until the receivers have room again. Barriers are cut meanwhile.
func (r *sourceRunner) settle() {
	for r.sub.crowded && r.sub.err == nil {
		r.sub.refill()
		r.sub.out.release()
		r.barrier()
	}
}

// drain tells the incarnation when the partition reached the end it is to stop at.
func (r *sourceRunner) drain(p *partition) {
	if !p.drained && p.end >= 0 && p.next >= p.end {
		p.drained = true
		r.sub.inc.partitionDrained()
	}
}

// barrier cuts the positions if a barrier was injected.
func (r *sourceRunner) barrier() {
	if r.sub.inc.over.Load() && r.sub.err == nil {
		r.sub.err = context.Cause(r.sub.inc.ctx)
		return
	}
	id := r.want.Load()
	if id <= r.cut {
		return
	}
	r.cut = id
	if r.sub.inc.inputEnded.Load() && !r.ended {
		r.end()
	}
	for _, c := range r.chains {
		if c.how != nil && !r.ended {
			c.update() // in the middle of a slice it lacks the records in front of the barrier
		}
	}
	ps := make([]position, len(r.parts))
	for i, p := range r.parts {
		ps[i] = position{part: p.id, at: offsets.Position{Offset: p.next, LeaderEpoch: p.epoch},
			time: checkpoint.PartitionTime{Watermark: p.time.watermark, Idle: p.time.idle}}
		if guard.Broken(guard.BarrierPosition) {
			ps[i].at.Offset = max(p.next, p.polled.Load())
		}
	}
	r.sub.barrier(id)
	if r.sub.err == nil {
		r.sub.acked.Store(id)
		r.sub.inc.send(ack{subtask: r.sub.id, id: id, positions: ps, records: r.records, held: r.sub.flushed, logs: r.sub.takeLogged()})
		r.records = 0
	}
}

// poll hands what the client fetched to the source subtasks until ctx is done.
func (inc *incarnation) poll(ctx context.Context) error {
	cl := inc.sess.Client()
	for {
		inc.watch.start()
		fs := cl.PollRecords(ctx, maxPoll)
		inc.watch.stop()
		if ctx.Err() != nil || fs.IsClientClosed() {
			return nil
		}
		for _, e := range fs.Errors() {
			if err := inc.fetchError(ctx, offsets.Partition{Topic: e.Topic, Partition: e.Partition}, e.Err); err != nil {
				return err
			}
		}
		// Told before the first one is handed over, which may take its time: a partition
		// that has records is not idle.
		fs.EachPartition(func(p kgo.FetchTopicPartition) {
			if n := len(p.Records); n > 0 {
				if part := inc.partition(offsets.Partition{Topic: p.Topic, Partition: p.Partition}); part != nil {
					part.polled.Store(p.Records[n-1].Offset + 1)
				}
			}
		})
		stopped := false
		var failed error
		fs.EachPartition(func(p kgo.FetchTopicPartition) {
			if len(p.Records) == 0 || stopped {
				return
			}
			part := inc.partition(offsets.Partition{Topic: p.Topic, Partition: p.Partition})
			if part == nil {
				return // handed over while the fetch was on its way
			}
			for rs := p.Records; len(rs) > 0; {
				n := min(len(rs), sliceSize)
				if failed = inc.waitForRoom(ctx); failed != nil || ctx.Err() != nil {
					stopped = true
					return
				}
				select {
				case part.owner.queue <- slice{part, rs[:n]}:
				case <-ctx.Done():
					stopped = true
					return
				}
				rs = rs[n:]
			}
		})
		if failed != nil {
			return failed
		}
	}
}

// maxPoll is the number of records taken from the client at once.
const maxPoll = 16384

// askInputsEvery is how often a broker is asked whether the input topics are there.
const askInputsEvery = 10 * time.Second

// watchInputs asks for the input topics until ctx is done, and fails when one is gone. The
// client keeps quiet about a topic that is in no metadata any more, and an idle job commits
// nothing that would fail. Two answers in a row have to say so, and no answer says nothing.
func (inc *incarnation) watchInputs(ctx context.Context) error {
	select {
	case <-inc.started: // who stands by reads nothing
	case <-ctx.Done():
		return nil
	}
	tick := time.NewTicker(askInputsEvery)
	defer tick.Stop()
	var before map[string]error
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
		gone, err := inc.goneInputs(ctx)
		if err != nil {
			continue
		}
		for _, topic := range slices.Sorted(maps.Keys(gone)) {
			if before[topic] != nil {
				return inc.inputGone(topic, gone[topic])
			}
		}
		before = gone
	}
}

func (inc *incarnation) goneInputs(ctx context.Context) (map[string]error, error) {
	ctx, cancel := context.WithTimeout(ctx, askInputsEvery)
	defer cancel()
	return inc.sess.Gone(ctx)
}
