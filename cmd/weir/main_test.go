package main

import (
	"slices"
	"strings"
	"testing"
)

func TestLongFlagsTakeOneDash(t *testing.T) {
	for in, want := range map[string]string{
		"demo -seed 5 -plain":     "demo --seed 5 --plain",
		"demo --seed=5 -kills=3":  "demo --seed=5 --kills=3",
		"demo -h - -1":            "demo -h - -1",
		"demo -plain -- -records": "demo --plain -- -records",
	} {
		if got := longFlags(strings.Fields(in)); !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%q became %q, want %q", in, got, want)
		}
	}
}

func TestVersionNamesTheBuild(t *testing.T) {
	var out strings.Builder
	cmd := newCommand()
	cmd.SetArgs([]string{"version"})
	cmd.SetOut(&out)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.HasPrefix(out.String(), "weir ") || !strings.Contains(out.String(), "go1.") {
		t.Errorf("printed %q", out.String())
	}
}

func TestHelpHidesTheWorker(t *testing.T) {
	var out strings.Builder
	cmd := newCommand()
	cmd.SetArgs([]string{"--help"})
	cmd.SetOut(&out)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "demo") || strings.Contains(out.String(), workerName) {
		t.Errorf("printed %q", out.String())
	}
}
