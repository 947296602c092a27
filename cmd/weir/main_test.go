package main

import (
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
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

func TestSignalsThatAreIgnoredStayIgnored(t *testing.T) {
	signal.Ignore(syscall.SIGHUP)
	defer signal.Reset(syscall.SIGHUP)
	if got := heeded(os.Interrupt, syscall.SIGHUP); !slices.Equal(got, []os.Signal{os.Interrupt}) {
		t.Errorf("heeds %v", got)
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

func TestAnUnknownSubcommandIsAnErrorThatNamesIt(t *testing.T) {
	for args, want := range map[string]string{
		"checkpoint verfy":                `weir checkpoint has no command "verfy": did you mean verify?`,
		"checkpoint verfy 7 -store x":     `weir checkpoint has no command "verfy": did you mean verify?`,
		"savepoint show":                  `weir savepoint has no command "show": it has copy, create, edit, ls, rm`,
		"state exprot x.csv":              `weir state has no command "exprot": did you mean export?`,
		"redis marker":                    `weir redis has no command "marker": did you mean markers?`,
		"checkpoint --nonsense":           "unknown flag: --nonsense",
		"checkpoint verify --nonsense":    "unknown flag: --nonsense",
		"checkpoint verify 1 2 --store x": `weir checkpoint verify is given ["1" "2"]: want weir checkpoint verify [CHECKPOINT]`,
		"chekpoint":                       `unknown command "chekpoint"`,
	} {
		refused(t, strings.Fields(args), want)
	}
	for _, name := range []string{"checkpoint", "savepoint", "state", "redis"} {
		wantOut(t, mustRun(t, name), "Available Commands:", "weir "+name)
	}
}
