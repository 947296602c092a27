package sim

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// recordTries is how often each script of the record is run.
const recordTries = 2

// TestRecord runs the scripts that found something again. RECORD.md says what.
func TestRecord(t *testing.T) {
	files, err := filepath.Glob("testdata/record/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("%d scripts: %v", len(files), err)
	}
	record, err := os.ReadFile("RECORD.md")
	if err != nil {
		t.Fatal(err)
	}
	tries := recordTries
	if testing.Short() { // the race detector makes each many times slower
		tries = 1
	}
	for _, file := range files {
		name := filepath.Base(file)
		if !strings.Contains(string(record), "`"+name+"`") {
			t.Errorf("RECORD.md doesn't tell what %s found", name)
		}
		t.Run(name, func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			sc, err := parse(string(text))
			if err != nil {
				t.Fatal(err)
			}
			for range tries {
				simulate(t, sc, "-script="+file)
			}
		})
	}
}
