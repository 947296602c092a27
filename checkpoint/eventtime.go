package checkpoint

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/weirstream/weir/offsets"
)

// EventTime is where event time stood at the barrier, so that late records are judged
// after a restore as they were before it.
type EventTime struct {
	// Partitions has the input partitions that have a watermark or are idle.
	Partitions map[offsets.Partition]PartitionTime
	// Stages has the watermark of each keyed stage that has one, in milliseconds since
	// 1970. At a barrier it is the same on all subtasks of the stage.
	Stages map[string]int64
}

// PartitionTime is the event time of one input partition.
type PartitionTime struct {
	Watermark int64 // milliseconds since 1970, or NoWatermark
	Idle      bool
}

type eventTimeJSON struct {
	Partitions []partitionTimeJSON `json:"partitions,omitempty"`
	Stages     map[string]int64    `json:"stages,omitempty"`
}

type partitionTimeJSON struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Watermark *int64 `json:"watermark,omitempty"`
	Idle      bool   `json:"idle,omitempty"`
}

// json returns nil if there is nothing to say.
func (e EventTime) json() *eventTimeJSON {
	if len(e.Partitions) == 0 && len(e.Stages) == 0 {
		return nil
	}
	j := &eventTimeJSON{Stages: e.Stages}
	for p, t := range e.Partitions {
		pj := partitionTimeJSON{Topic: p.Topic, Partition: p.Partition, Idle: t.Idle}
		if t.Watermark != NoWatermark {
			pj.Watermark = &t.Watermark
		}
		j.Partitions = append(j.Partitions, pj)
	}
	slices.SortFunc(j.Partitions, func(a, b partitionTimeJSON) int {
		return cmp.Or(cmp.Compare(a.Topic, b.Topic), cmp.Compare(a.Partition, b.Partition))
	})
	return j
}

func (j *eventTimeJSON) decode() (e EventTime, err error) {
	if j == nil {
		return e, nil
	}
	e.Stages = j.Stages
	for _, pj := range j.Partitions {
		p := offsets.Partition{Topic: pj.Topic, Partition: pj.Partition}
		if _, dup := e.Partitions[p]; dup {
			return e, fmt.Errorf("header: two watermarks of %s", p)
		}
		t := PartitionTime{Watermark: NoWatermark, Idle: pj.Idle}
		if pj.Watermark != nil {
			t.Watermark = *pj.Watermark
		}
		if e.Partitions == nil {
			e.Partitions = map[offsets.Partition]PartitionTime{}
		}
		e.Partitions[p] = t
	}
	return e, nil
}
