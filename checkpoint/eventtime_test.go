package checkpoint

import (
	"reflect"
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
			Stages: map[string]int64{"by-user": 7},
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
