package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/weirstream/weir/internal/crashpoint"
)

// filesOf returns the outputs in the files of a directory, by key, in the order of the names
// of the files, which begin with a time.
func (w *world) filesOf(dir string) (outputs map[string][]string, files int) {
	w.t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		w.t.Fatal(err)
	}
	outputs = map[string][]string{}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), ".") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err != nil {
			w.t.Fatal(err)
		}
		files++
		for line := range strings.Lines(string(b)) {
			key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
			if !ok || !strings.HasSuffix(line, "\n") {
				w.t.Fatalf("%s has the line %q", e.Name(), line)
			}
			outputs[key] = append(outputs[key], value)
		}
	}
	return outputs, files
}

// judgeFiles demands that each output of the input is in the files, once and in order.
func (w *world) judgeFiles(dir string) {
	w.t.Helper()
	got, files := w.filesOf(dir)
	want := newModel().take(w.input()...).outputs
	n := 0
	for key := range want {
		if err := sameOutputs(got[key], want[key]); err != nil {
			w.t.Errorf("files: key %s: %v", key, err)
		}
		n += len(got[key])
	}
	if len(got) != len(want) {
		w.t.Errorf("files: %d keys, want %d", len(got), len(want))
	}
	if w.t.Failed() {
		w.t.FailNow()
	}
	w.t.Logf("%d outputs in %d files, each once and in order", n, files)
}

// TestS38_KilledBetweenPrepareAndCommitOfFiles kills a service that writes files at each step
// from the barrier to the rename.
func TestS38_KilledBetweenPrepareAndCommitOfFiles(t *testing.T) {
	addr := needBroker(t)
	points := map[alignment][]crashpoint.Point{
		aligned: {
			crashpoint.InFreeze, crashpoint.BeforeManifest, crashpoint.AfterManifest, crashpoint.AfterOffsets,
			crashpoint.AfterCommit, crashpoint.BeforeSinks, crashpoint.AfterSinks, crashpoint.AfterRestore,
		},
		unaligned: {crashpoint.InCapture, crashpoint.AfterManifest, crashpoint.AfterCommit, crashpoint.AfterSinks},
	}
	for _, c := range []alignment{aligned, unaligned} {
		t.Run(string(c), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, []string{addr}, 100)
			dir := filepath.Join(t.TempDir(), "files")
			w.args = append([]string{"-files", dir, "-interval", "30ms"}, c.words()...)
			var pace []string
			if c == unaligned {
				pace = slow
				w.feedNow(2000)
			}
			w.feedOn(30, 20*time.Millisecond)
			for i, point := range points[c] {
				nth := 3
				if point == crashpoint.AfterRestore {
					nth = 1
				}
				p := w.launch(append(pace, "-parallelism", fmt.Sprint(1+i%3), fmt.Sprintf("%s=%s:%d", crashEnv, point, nth))...)
				p.diesOfItself(point, progressTime)
			}
			w.quench()
			w.finish(w.launch())
			w.judgeFiles(dir)
		})
	}
}

// TestS38_FilesThatAreMissingAreALoudStop removes what was prepared and not committed, and
// takes away what was committed.
func TestS38_FilesThatAreMissingAreALoudStop(t *testing.T) {
	t.Parallel()
	w := newWorld(t, []string{embedded(t)}, 50)
	dir := filepath.Join(t.TempDir(), "files")
	w.args = []string{"-files", dir, "-interval", "30ms", "-parallelism", "1"}
	w.feedNow(500)
	p := w.launch()
	p.await("committed", 1, progressTime)
	w.settleWith(p)
	p.stop()
	// The last files are named by the checkpoint, and were taken away by who reads them.
	before, n := w.filesOf(dir)
	taken, err := filepath.Glob(filepath.Join(dir, "20*"))
	if err != nil || len(taken) != n {
		t.Fatalf("%d of %d files, %v", len(taken), n, err)
	}
	for _, name := range taken {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	w.feedNow(500)
	p = w.launch(fmt.Sprintf("%s=%s", crashEnv, crashpoint.BeforeSinks))
	p.diesOfItself(crashpoint.BeforeSinks, progressTime)
	// It is committed, and the files are not.
	prepared, err := filepath.Glob(filepath.Join(dir, ".weir", w.app, "files", "20*"))
	if err != nil || len(prepared) == 0 {
		t.Fatalf("prepared: %q, %v", prepared, err)
	}
	for _, name := range prepared {
		if err := os.Remove(name); err != nil {
			t.Fatal(err)
		}
	}
	var accept string
	for range 2 {
		p = w.launch()
		if st := p.ended(exitTime); st.ExitCode() != 1 {
			t.Fatalf("the service ended with %v\n%s", st, p.story())
		}
		accept = regexp.MustCompile(`WEIR_TWOPHASE_ACCEPT=files@\d+`).FindString(p.story())
		if accept == "" || !strings.Contains(p.story(), filepath.Base(prepared[0])) || p.count("restarting") > 0 {
			t.Fatalf("the error does not say what to do\n%s", p.story())
		}
	}
	p = w.launch(accept)
	p.await("restored", 1, progressTime)
	w.finish(p)
	// All that was not taken away or lost is there, once.
	after, _ := w.filesOf(dir)
	lost := 0
	for key, want := range newModel().take(w.input()...).outputs {
		got := append(before[key], after[key]...)
		i := 0
		for _, v := range want {
			if i < len(got) && got[i] == v {
				i++
			} else {
				lost++
			}
		}
		if i < len(got) {
			t.Errorf("key %s has %q, which is not all in %q in that order", key, got, want)
		}
	}
	if lost == 0 || lost > 500 {
		t.Errorf("%d outputs are missing", lost)
	}
}
