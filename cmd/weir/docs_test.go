package main

import (
	"flag"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write what the commands print into docs/operations.md")

var console = regexp.MustCompile("(?ms)^```console\n(.*?)^```$")

// TestDocsShowWhatTheToolPrints runs the commands of the section about looking into a
// store and compares what they print, standard error included, with the page.
func TestDocsShowWhatTheToolPrints(t *testing.T) {
	page, err := filepath.Abs("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	text := string(b)
	begin := strings.Index(text, "### Looking inside a store\n")
	end := begin + strings.Index(text[begin:], "\n### Backup\n")
	if begin < 0 || end <= begin {
		t.Fatal("docs/operations.md has no section about looking inside a store")
	}
	dir, _ := payments(t)
	backups := filepath.Join(t.TempDir(), "payments")
	t.Chdir(t.TempDir())
	// The places that the page speaks of, and where they are here.
	lineage := parse[map[string]any](t, mustRun(t, "checkpoint", "show", "-o", "json"))["lineage"].(string)
	here := strings.NewReplacer("file:///var/lib/payments", "file://"+dir, "file:///backups/payments", "file://"+backups)
	there := strings.NewReplacer("file://"+dir, "file:///var/lib/payments", "file://"+backups, "file:///backups/payments", lineage, "5fe0c1d4a7b39826")
	ran := 0
	section := console.ReplaceAllStringFunc(text[begin:end], func(block string) string {
		var out strings.Builder
		out.WriteString("```console\n")
		for line := range strings.Lines(strings.TrimSuffix(strings.TrimPrefix(block, "```console\n"), "```")) {
			command, ok := strings.CutPrefix(line, "$ ")
			if !ok {
				continue
			}
			out.WriteString(line)
			ran++
			out.WriteString(there.Replace(shell(t, here.Replace(strings.TrimSpace(command)))))
		}
		return out.String() + "```"
	})
	if ran < 15 {
		t.Errorf("%d commands were run: is the pattern right?", ran)
	}
	if section == text[begin:end] {
		return
	}
	if *update {
		if err := os.WriteFile(page, []byte(text[:begin]+section+text[end:]), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	was, is := strings.Split(text[begin:end], "\n"), strings.Split(section, "\n")
	for i := range min(len(was), len(is)) {
		if was[i] != is[i] {
			t.Fatalf("docs/operations.md, line %d of the section, is\n%s\nand the tool prints\n%s\nrun this test with -update and look at the change", i+1, was[i], is[i])
		}
	}
	t.Errorf("docs/operations.md: the section has %d lines, not %d; run this test with -update", len(was), len(is))
}

// shell runs one line: of this tool, of export and of echo with a redirection.
func shell(t *testing.T, line string) string {
	t.Helper()
	args := strings.Fields(line)
	switch args[0] {
	case "export":
		name, value, _ := strings.Cut(args[1], "=")
		t.Setenv(name, value)
		return ""
	case "echo":
		text, file, ok := strings.Cut(strings.TrimPrefix(line, "echo "), " > ")
		if !ok {
			t.Fatalf("cannot run %q", line)
		}
		if err := os.WriteFile(file, []byte(strings.Trim(text, "'")+"\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		return ""
	case "weir":
		out, stderr, err := run(t, args[1:]...)
		out = stderr + out
		if err != nil {
			out += "weir: " + err.Error() + "\n"
		}
		return out
	}
	t.Fatalf("cannot run %q", line)
	return ""
}
