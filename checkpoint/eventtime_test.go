package checkpoint

import (
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/weirstream/weir/offsets"
)

func TestManifestKeepsEventTime(t *testing.T) {
	for name, e := range map[string]EventTime{
		"none": {},
		"all kinds": {
			Partitions: map[offsets.Partition]PartitionTime{
				{Topic: "a", Partition: 1}: {Watermark: -5},
				{Topic: "a", Partition: 0}: {Watermark: 0, Idle: true},
				{Topic: "b", Partition: 0}: {Watermark: NoWatermark, Idle: true},
				{Topic: "b", Partition: 1}: {Watermark: NoWatermark},
			},
			Stages:    map[string]int64{"by-user": 7},
			KeyGroups: []KeyGroupTime{{Stage: "by-item", MaxKG: 0, Watermark: -1}, {Stage: "by-user", MinKG: 3, MaxKG: 5, Watermark: 9}},
			Firing:    map[string]int64{"by-user": 6, "by-item": NoWatermark},
		},
	} {
		m := &Manifest{App: "app", Checkpoint: 1, KeyGroups: 1, Watermark: NoWatermark, EventTime: e}
		b, ref, err := m.encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		got, err := decodeManifest(b, manifestObject(ref))
		if err != nil {
			t.Fatal(err)
		}
		if !reflect.DeepEqual(got.EventTime, e) {
			t.Errorf("%s: got %+v, want %+v", name, got.EventTime, e)
		}
	}
}

func TestEachKeyGroupHasTheTimeOfItsSubtask(t *testing.T) {
	at := func(ms int64) *int64 { return &ms }
	const no = NoWatermark
	m := &Manifest{
		EventTime: EventTime{
			Stages: map[string]int64{"by-user": 5, "by-item": 1},
			KeyGroups: []KeyGroupTime{
				{Stage: "by-user", MinKG: 1, MaxKG: 2, Watermark: 30},
				{Stage: "by-user", MinKG: 5, MaxKG: 9, Watermark: 8},
				{Stage: "by-item", MinKG: 0, MaxKG: 7, Watermark: 99},
				{Stage: "by-name", MinKG: 4, MaxKG: 4, Watermark: 7},
			},
		},
		InFlight: []InFlight{
			{Stage: "by-user", MinKG: 0, MaxKG: 1, Watermark: at(20)},
			{Stage: "by-user", MinKG: 2, MaxKG: 3},                    // of an older build
			{Stage: "by-user", MinKG: 4, MaxKG: 4, Watermark: at(40)}, // likewise, where the number of key-groups was changed
			{Stage: "by-user", MinKG: 4, MaxKG: 4, Watermark: at(10)},
			{Stage: "by-user", MinKG: 0, MaxKG: 7, Heard: []Heard{{}}},
		},
	}
	for stage, want := range map[string][]int64{
		"by-user": {20, 30, 30, no, 10, 8, 8, 8},
		"by-name": {no, no, no, no, 7, no, no, no},
		"other":   {no, no, no, no, no, no, no, no},
	} {
		for lo := range want {
			for hi := lo; hi <= len(want); hi++ {
				if got := m.Watermarks(stage, lo, hi); !slices.Equal(got, want[lo:hi]) {
					t.Errorf("%s: time stood at %v for key-groups %d to %d, want %v", stage, got, lo, hi-1, want[lo:hi])
				}
			}
		}
	}
}

func TestTimersHaveFiredUpToTheTimeBefore(t *testing.T) {
	m := &Manifest{EventTime: EventTime{Firing: map[string]int64{"by-user": 10}}}
	times := []int64{5, 10, 30}
	if got := m.Fired("by-user", times); !slices.Equal(got, []int64{5, 10, 10}) || times[2] != 30 {
		t.Errorf("timers had fired up to %v, want 5, 10 and 10", got)
	}
	if got := m.Fired("by-item", times); !slices.Equal(got, times) {
		t.Errorf("timers had fired up to %v, want all of %v", got, times)
	}
}

func TestTimeOfKeyGroupsThatAreNoneIsRefused(t *testing.T) {
	for _, bad := range []KeyGroupTime{{MaxKG: 1}, {Stage: "by-user", MinKG: 2, MaxKG: 1}} {
		m := &Manifest{App: "app", Checkpoint: 1, KeyGroups: 8, Watermark: NoWatermark, EventTime: EventTime{KeyGroups: []KeyGroupTime{bad}}}
		b, ref, err := m.encode(nil)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeManifest(b, manifestObject(ref)); err == nil || !strings.Contains(err.Error(), "makes no sense") {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}
