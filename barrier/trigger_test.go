package barrier

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	"pgregory.net/rapid"
)

// triggerScript drives a Trigger on a clock of its own:
//
//	new [every=D] [records=N] [bytes=N] [min-pause=D] [retry-pause=D]
//	observe [records=N] [bytes=N]
//	dirty
//	request reason=R
//	pass by=D
//	begun | ended | failed
//
// Each prints the time, whether a checkpoint is due, and when time alone makes one due.
type triggerScript struct {
	clock
	tr *Trigger
}

func (s *triggerScript) run(t *testing.T, d *datadriven.TestData) string {
	switch d.Cmd {
	case "new":
		s.now = epoch0
		s.tr = NewTrigger(scanTrigger(t, d), s.now)
	case "observe":
		s.tr.Observe(scanInt(t, d, "records"), scanInt(t, d, "bytes"))
	case "dirty":
		s.tr.MarkDirty()
	case "request":
		s.tr.Request(scanReason(t, d))
	case "pass":
		s.now = s.now.Add(scanDuration(t, d, "by"))
	case "begun":
		s.tr.Begun(s.now)
	case "ended":
		s.tr.Ended(s.now)
	case "failed":
		s.tr.Failed(s.now)
	default:
		d.Fatalf(t, "no such command: %s", d.Cmd)
	}
	out := fmt.Sprintf("at %s: ", s.since(s.now))
	if reason, ok := s.tr.Due(s.now); ok {
		return out + "due by " + reason.String() + "\n"
	}
	if next, ok := s.tr.Next(s.now); ok {
		return out + "due at " + s.since(next) + "\n"
	}
	return out + "not due\n"
}

func TestTriggerConfigReportsEveryNegativeField(t *testing.T) {
	err := TriggerConfig{Every: -1, Records: -1, Bytes: -1, MinPause: -1, RetryPause: -1}.Validate()
	if err == nil {
		t.Fatal("accepted")
	}
	for _, field := range []string{"interval", "record limit", "byte limit", "minimum pause", "retry pause"} {
		if !strings.Contains(err.Error(), field) {
			t.Errorf("%q is missing in: %v", field, err)
		}
	}
	if err := (TriggerConfig{}).Validate(); err != nil {
		t.Errorf("zero configuration: %v", err)
	}
}

// TestTriggerNextIsTheFirstInstantAtWhichItIsDue lets time pass up to Next and no further,
// which is what a driver with one timer does.
func TestTriggerNextIsTheFirstInstantAtWhichItIsDue(t *testing.T) {
	rapid.Check(t, checkTriggerNext)
}

func FuzzTriggerNext(f *testing.F) { f.Fuzz(rapid.MakeFuzz(checkTriggerNext)) }

func checkTriggerNext(t *rapid.T) {
	tr, now, running := NewTrigger(drawTrigger(t), epoch0), epoch0, false
	for range rapid.IntRange(1, 60).Draw(t, "events") {
		switch rapid.IntRange(0, 6).Draw(t, "event") {
		case 0:
			tr.Observe(rapid.Int64Range(0, 20).Draw(t, "records"), rapid.Int64Range(0, 200).Draw(t, "bytes"))
		case 1:
			tr.MarkDirty()
		case 2:
			tr.Request(rapid.SampledFrom([]Reason{Memory, Requested, Revoke, Shutdown}).Draw(t, "reason"))
		case 3, 4:
			now = now.Add(drawDuration(t, "passed"))
		case 5:
			if _, due := tr.Due(now); due {
				tr.Begun(now)
				running = true
			}
		case 6:
			switch {
			case !running:
			case rapid.Bool().Draw(t, "ok"):
				tr.Ended(now)
				running = false
			default:
				tr.Failed(now)
				running = false
			}
		}
		const never = 1000 * time.Hour
		reason, due := tr.Due(now)
		next, ok := tr.Next(now)
		switch {
		case running && (due || ok):
			t.Fatalf("due while a checkpoint is under way")
		case due && (!ok || !next.Equal(now)):
			t.Fatalf("due by %s now, but next is %v, %v", reason, next, ok)
		case !ok:
			if reason, due := tr.Due(now.Add(never)); due {
				t.Fatalf("time alone makes it due by %s, but there is no next", reason)
			}
		case !due:
			if !next.After(now) {
				t.Fatalf("next is %v, which has come, but it is not due", next)
			}
			if reason, due := tr.Due(next.Add(-1)); due {
				t.Fatalf("due by %s before next", reason)
			}
			if _, due := tr.Due(next); !due {
				t.Fatalf("not due at next")
			}
		}
	}
}

func drawDuration(t *rapid.T, label string) time.Duration {
	return time.Duration(rapid.Int64Range(0, 12).Draw(t, label)) * 100 * time.Millisecond
}

func drawTrigger(t *rapid.T) TriggerConfig {
	return TriggerConfig{
		Every:      drawDuration(t, "every"),
		Records:    rapid.Int64Range(0, 50).Draw(t, "record limit"),
		Bytes:      rapid.Int64Range(0, 500).Draw(t, "byte limit"),
		MinPause:   drawDuration(t, "min pause"),
		RetryPause: drawDuration(t, "retry pause"),
	}
}
