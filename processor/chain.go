package processor

import (
	"context"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/offsets"
)

// Chain builds the chain behind the source of a topic on a subtask that belongs to
// no job, for measuring and testing it without a broker. The returned function
// processes records as a job does, completes their look-ups, and returns what would
// have ended it; what the chain produces goes to out. Offsets may begin anew with each
// call. Keyed stages have no part in it: the chain must not contain a KeyBy.
func (st *Sources) Chain(topic string, out func(*kgo.Record)) func(records []*kgo.Record) error {
	cfg := &Config{Parallelism: 1}
	inc := newIncarnation(context.Background(), cfg, &Plan{Sources: st}, nil, nil)
	inc.gate = newGate(1, 0)
	r := st.build(inc)[0]
	r.sub.out.to = produceFunc(out)
	part := &partition{id: offsets.Partition{Topic: topic}, owner: r, end: -1, time: partitionTime{newest: noWatermark, watermark: noWatermark}}
	return func(records []*kgo.Record) error {
		part.next = 0
		r.process(slice{part, records})
		for _, a := range r.sub.askers {
			a.finish()
		}
		return r.sub.err
	}
}

// produceFunc makes a producer of a function.
type produceFunc func(*kgo.Record)

func (f produceFunc) Produce(r *kgo.Record) { f(r) }
