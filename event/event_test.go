package event_test

import (
	"os"
	"strings"
	"testing"

	"github.com/weirstream/weir/barrier"
)

func TestReasonsAreThoseOfTheTrigger(t *testing.T) {
	var names []string
	for r := barrier.Interval; r <= barrier.Shutdown; r++ {
		names = append(names, r.String())
	}
	b, err := os.ReadFile("event.go")
	if err != nil {
		t.Fatal(err)
	}
	_, said, _ := strings.Cut(string(b), "Reason     string // ")
	said, _, _ = strings.Cut(said, "\n")
	if want := strings.Join(names, ", "); said != want {
		t.Errorf("CheckpointBegun.Reason is documented as %q, and the reasons are %q", said, want)
	}
}
