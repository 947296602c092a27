package processor

import (
	"slices"
	"testing"

	"github.com/weirstream/weir/checkpoint"
)

// TestPartsAreReadByEpochAndThenBySubtask takes acknowledgements in the order in which
// subtasks happen to align, some of a checkpoint that was given up.
func TestPartsAreReadByEpochAndThenBySubtask(t *testing.T) {
	part := func(s string) checkpoint.LogPart { return checkpoint.LogPart{Operator: "x", Bytes: []byte(s)} }
	parts := inOrder([]logged{
		{id: 2, subtask: 3, parts: []checkpoint.LogPart{part("c"), part("d")}},
		{id: 3, subtask: 3, parts: []checkpoint.LogPart{part("f")}},
		{id: 2, subtask: 1, parts: []checkpoint.LogPart{part("b")}},
		{id: 1, subtask: 4, parts: []checkpoint.LogPart{part("a")}},
		{id: 3, subtask: 0, parts: []checkpoint.LogPart{part("e")}},
	})
	var got []string
	for _, p := range parts {
		got = append(got, string(p.Bytes))
	}
	if want := []string{"a", "b", "c", "d", "e", "f"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
}
