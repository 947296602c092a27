package barrier

import (
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
)

// The scripts in testdata tell one story each. The first part of a file's name says
// which machine it drives; the commands are those of alignerScript, triggerScript and
// coordinatorScript. Run with -rewrite to write what the machines do now, then read
// the difference.

// scenarioScripts are run by tests that carry the number of their scenario.
var scenarioScripts = []string{
	"aligner_two_inputs.txt",
	"aligner_end_of_input.txt",
	"aligner_unaligned.txt",
	"aligner_timeout.txt",
	"coordinator_alignment_timeout.txt",
	"coordinator_late_ack.txt",
	"coordinator_late_persist.txt",
	"coordinator_persist_fails.txt",
	"coordinator_persist_hangs.txt",
	"coordinator_drain.txt",
}

func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts in testdata: %v", err)
	}
	for _, file := range files {
		name := filepath.Base(file)
		if slices.Contains(scenarioScripts, name) {
			continue
		}
		t.Run(strings.TrimSuffix(name, ".txt"), func(t *testing.T) { runScript(t, name) })
	}
}

func TestS06_LateAcknowledgementOfCancelledCheckpointIsIgnored(t *testing.T) {
	runScript(t, "coordinator_late_ack.txt")
}

func TestS06_LatePersistResultOfCancelledCheckpointIsIgnored(t *testing.T) {
	runScript(t, "coordinator_late_persist.txt")
}

func TestS08_FailingStoreCountsEveryFailureAndCommitsNothing(t *testing.T) {
	runScript(t, "coordinator_persist_fails.txt")
}

func TestS08_HangingStoreCountsEveryFailureAndCommitsNothing(t *testing.T) {
	runScript(t, "coordinator_persist_hangs.txt")
}

func TestS24_UnalignedSnapshotIsTakenAheadOfEveryBarrier(t *testing.T) {
	runScript(t, "aligner_unaligned.txt")
}

func TestS24_TimeoutRacesTheBarriersOfASubtask(t *testing.T) {
	runScript(t, "aligner_timeout.txt")
}

func TestS24_TimeoutRacesTheAcknowledgements(t *testing.T) {
	runScript(t, "coordinator_alignment_timeout.txt")
}

func TestS24_InputIsHeldUntilBarrierCameOnAll(t *testing.T) {
	runScript(t, "aligner_two_inputs.txt")
}

func TestS26_EndedInputCountsAsEveryLaterBarrier(t *testing.T) {
	runScript(t, "aligner_end_of_input.txt")
}

func TestS26_TailOfFinishedInputIsCommitted(t *testing.T) {
	runScript(t, "coordinator_drain.txt")
}

func runScript(t *testing.T, name string) {
	t.Helper()
	var s interface {
		run(*testing.T, *datadriven.TestData) string
	}
	switch machine, _, _ := strings.Cut(name, "_"); machine {
	case "aligner":
		s = &alignerScript{}
	case "trigger":
		s = &triggerScript{}
	case "coordinator":
		s = &coordinatorScript{}
	default:
		t.Fatalf("%s: the name starts with no machine", name)
	}
	datadriven.RunTest(t, filepath.Join("testdata", name), s.run)
}

// epoch0 is when every script and model starts.
var epoch0 = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// clock is the time of a script, shown as what has passed since its start.
type clock struct{ now time.Time }

func (c *clock) since(at time.Time) string { return at.Sub(epoch0).String() }

func scanDuration(t *testing.T, d *datadriven.TestData, key string) time.Duration {
	t.Helper()
	var text string
	if d.MaybeScanArgs(t, key, &text); text == "" {
		return 0
	}
	v, err := time.ParseDuration(text)
	if err != nil {
		d.Fatalf(t, "%s: %v", key, err)
	}
	return v
}

func scanInt(t *testing.T, d *datadriven.TestData, key string) int64 {
	t.Helper()
	var v int64
	d.MaybeScanArgs(t, key, &v)
	return v
}

func scanReason(t *testing.T, d *datadriven.TestData) Reason {
	t.Helper()
	var name string
	d.ScanArgs(t, "reason", &name)
	i := slices.Index(reasonNames[:], name)
	if i < 1 {
		d.Fatalf(t, "no such reason: %s", name)
	}
	return Reason(i)
}

func scanTrigger(t *testing.T, d *datadriven.TestData) TriggerConfig {
	t.Helper()
	return TriggerConfig{
		Every:      scanDuration(t, d, "every"),
		Records:    scanInt(t, d, "records"),
		Bytes:      scanInt(t, d, "bytes"),
		MinPause:   scanDuration(t, d, "min-pause"),
		RetryPause: scanDuration(t, d, "retry-pause"),
	}
}
