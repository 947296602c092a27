package processor

import (
	"strings"
	"testing"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/state"
)

// The keys of a map are part of what segments are sorted by, as the keys of a state are.
func TestMapKeysOfAnotherCodecAreRefused(t *testing.T) {
	was := checkpoint.StateInfo{ID: 3, Operator: "count", Name: "seen", Kind: state.KindMap, KeyCodec: "string", SubCodec: "string", ValueCodec: "unit", ValueVersion: 1}
	declared := DeclaredState{KeyCodec: "string", Descriptor: state.Descriptor{
		Operator: "count", Name: "seen", Kind: state.KindMap, SubCodec: "string", ValueCodec: "unit", ValueVersion: 1,
	}}
	register := func(base []checkpoint.StateInfo) (*incarnation, error) {
		inc := newIncarnation(t.Context(), &Config{Parallelism: 1, KeyGroups: 1}, &Plan{States: []DeclaredState{declared}}, nil, nil)
		inc.base.States = base
		return inc, inc.register()
	}
	for _, base := range [][]checkpoint.StateInfo{nil, {was}} {
		inc, err := register(base)
		if err != nil || len(inc.states) != 1 || inc.states[0].SubCodec != "string" {
			t.Errorf("registered %+v, %v", inc.states, err)
		}
	}
	declared.SubCodec = "int64"
	_, err := register([]checkpoint.StateInfo{was})
	if want := `operator "count", state "seen": the map keys of checkpoint 0 were written by codec "string", the topology uses "int64"`; err == nil || !strings.HasPrefix(err.Error(), want) {
		t.Errorf("the error is %v, want %s", err, want)
	}
}

// Savepoints that were built from nothing had timers of version 1.
func TestTimersHaveNoValueWhoseVersionCounts(t *testing.T) {
	was := checkpoint.StateInfo{ID: 3, Operator: "remind", Name: state.EventTimersName, Kind: state.KindTimers, KeyCodec: "string", ValueVersion: 1}
	declared := DeclaredState{KeyCodec: "string", Descriptor: state.Descriptor{Operator: "remind", Name: state.EventTimersName, Kind: state.KindTimers}}
	inc := newIncarnation(t.Context(), &Config{Parallelism: 1, KeyGroups: 1}, &Plan{States: []DeclaredState{declared}}, nil, nil)
	inc.base.States = []checkpoint.StateInfo{was}
	if err := inc.register(); err != nil || len(inc.states) != 1 || inc.states[0].ID != was.ID || inc.states[0].ValueVersion != 0 {
		t.Errorf("registered %+v, %v", inc.states, err)
	}
}
