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
	// 1970: the least of its subtasks.
	Stages map[string]int64
	// KeyGroups has the key-groups for which it stood later than that.
	KeyGroups []KeyGroupTime
	// Firing has the keyed stages in which the barrier fell between timers of one moment, with
	// the time up to which all timers had fired. Those that are left are to see what had not
	// expired by then.
	Firing map[string]int64
}

// Stage returns the watermark of a keyed stage, NoWatermark if it has none.
func (e *EventTime) Stage(stage string) int64 {
	if at, ok := e.Stages[stage]; ok {
		return at
	}
	return NoWatermark
}

// KeyGroupTime is where event time stood for some key-groups of a keyed stage.
type KeyGroupTime struct {
	Stage     string `json:"stage"`
	MinKG     uint16 `json:"minKG"`
	MaxKG     uint16 `json:"maxKG"`     // inclusive
	Watermark int64  `json:"watermark"` // milliseconds since 1970
}

// PartitionTime is the event time of one input partition.
type PartitionTime struct {
	Watermark int64 // milliseconds since 1970, or NoWatermark
	Idle      bool
}

type eventTimeJSON struct {
	Partitions []partitionTimeJSON `json:"partitions,omitempty"`
	Stages     map[string]int64    `json:"stages,omitempty"`
	KeyGroups  []KeyGroupTime      `json:"keyGroups,omitempty"`
	Firing     map[string]int64    `json:"firing,omitempty"`
}

type partitionTimeJSON struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Watermark *int64 `json:"watermark,omitempty"`
	Idle      bool   `json:"idle,omitempty"`
}

// json returns nil if there is nothing to say.
func (e EventTime) json() *eventTimeJSON {
	if len(e.Partitions) == 0 && len(e.Stages) == 0 && len(e.KeyGroups) == 0 && len(e.Firing) == 0 {
		return nil
	}
	j := &eventTimeJSON{Stages: e.Stages, KeyGroups: e.KeyGroups, Firing: e.Firing}
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
	e.Stages, e.KeyGroups, e.Firing = j.Stages, j.KeyGroups, j.Firing
	for _, t := range e.KeyGroups {
		if t.Stage == "" || t.MinKG > t.MaxKG {
			return e, fmt.Errorf("header: the event time of key-groups %d to %d of stage %q makes no sense", t.MinKG, t.MaxKG, t.Stage)
		}
	}
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

// Watermarks returns where event time stood for each of the key-groups [lo, hi) of a keyed
// stage, in milliseconds since 1970, NoWatermark where nothing was known of it.
func (m *Manifest) Watermarks(stage string, lo, hi int) []int64 {
	at, covered := slices.Repeat([]int64{m.EventTime.Stage(stage)}, hi-lo), make([]bool, hi-lo)
	// All that builds noted which knew no times of key-groups. Key-groups of a savepoint that
	// was rewritten have those of several subtasks.
	for _, f := range m.InFlight {
		if f.Stage != stage || f.Broadcast() {
			continue
		}
		for kg := max(int(f.MinKG), lo); kg < min(int(f.MaxKG)+1, hi); kg++ {
			if i := kg - lo; covered[i] {
				at[i] = min(at[i], f.time())
			} else {
				at[i], covered[i] = f.time(), true
			}
		}
	}
	for _, t := range m.EventTime.KeyGroups {
		if t.Stage != stage {
			continue
		}
		for kg := max(int(t.MinKG), lo); kg < min(int(t.MaxKG)+1, hi); kg++ {
			at[kg-lo] = max(at[kg-lo], t.Watermark)
		}
	}
	return at
}

// Fired returns, of the times that Watermarks returned for a stage, up to where all timers
// had fired.
func (m *Manifest) Fired(stage string, times []int64) []int64 {
	upTo, ok := m.EventTime.Firing[stage]
	if !ok {
		return times
	}
	fired := slices.Clone(times)
	for i, at := range fired {
		fired[i] = min(at, upTo)
	}
	return fired
}
