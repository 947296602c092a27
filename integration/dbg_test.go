package integration

import (
	"context"
	"encoding/binary"
	"fmt"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

func (w *world) dump(topic string) {
	cl := w.producer(kgo.ConsumeTopics(topic), kgo.KeepControlRecords(), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()))
	defer cl.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	type run struct {
		pid   int64
		epoch int16
		ctl   string
		from, to int64
		first, last string
		ts0, ts1 time.Time
	}
	runs := map[int32][]run{}
	for ctx.Err() == nil {
		fs := cl.PollFetches(ctx)
		fs.EachRecord(func(r *kgo.Record) {
			ctl := ""
			if r.Attrs.IsControl() {
				ctl = fmt.Sprintf("CTL%d", binary.BigEndian.Uint16(r.Key[2:]))
			}
			rs := runs[r.Partition]
			if n := len(rs); n > 0 && rs[n-1].pid == r.ProducerID && rs[n-1].epoch == r.ProducerEpoch && rs[n-1].ctl == ctl {
				rs[n-1].to = r.Offset
				rs[n-1].last = string(r.Key) + "=" + string(r.Value)
				rs[n-1].ts1 = r.Timestamp
			} else {
				v := string(r.Key) + "=" + string(r.Value)
				if ctl != "" { v = "" }
				runs[r.Partition] = append(rs, run{r.ProducerID, r.ProducerEpoch, ctl, r.Offset, r.Offset, v, v, r.Timestamp, r.Timestamp})
			}
		})
	}
	for p, rs := range runs {
		for _, r := range rs {
			w.t.Logf("DUMP %s/%d pid %d epoch %d %s %d-%d %s .. %s %s %s", topic, p, r.pid, r.epoch, r.ctl, r.from, r.to, r.first, r.last, r.ts0.Format("05.000"), r.ts1.Format("05.000"))
		}
	}
}
