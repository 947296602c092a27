//go:build unix

package main

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// export exports a state of 203 entries into a file.
func export(t *testing.T, file string) {
	t.Helper()
	wantOut(t, mustRun(t, "state", "export", "--state", "total", "--format", "csv", file), "wrote 203 entries")
}

func wantExported(t *testing.T, text string) {
	t.Helper()
	if strings.Count(text, "\n") != 1+203 {
		t.Errorf("%d lines were exported", strings.Count(text, "\n"))
	}
}

func TestAnExportedFileHasTheModeOfAnyOther(t *testing.T) {
	payments(t)
	dir := t.TempDir()
	modes := map[string]os.FileMode{"new": 0o640, "old": 0o604}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "old"), []byte("x"), 0o600), os.Chmod(filepath.Join(dir, "old"), modes["old"])); err != nil {
		t.Fatal(err)
	}
	defer syscall.Umask(syscall.Umask(0o027))
	for name, want := range modes {
		file := filepath.Join(dir, name)
		export(t, file)
		stat, err := os.Stat(file)
		if err != nil {
			t.Fatal(err)
		}
		if got := stat.Mode(); got != want {
			t.Errorf("the %s file has mode %v, not %v", name, got, want)
		}
	}
}

func TestALinkStaysOneWhenItsFileIsExported(t *testing.T) {
	payments(t)
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := errors.Join(os.Mkdir(filepath.Join(dir, "data"), 0o755), os.Symlink("data/again", link), os.Symlink("file", filepath.Join(dir, "data", "again"))); err != nil {
		t.Fatal(err)
	}
	for _, what := range []string{"is not there", "is there"} {
		export(t, link)
		b, err := os.ReadFile(filepath.Join(dir, "data", "file"))
		if err != nil {
			t.Fatalf("the file %s: %v", what, err)
		}
		wantExported(t, string(b))
		if stat, err := os.Lstat(link); err != nil || stat.Mode()&os.ModeSymlink == 0 {
			t.Errorf("the link became %v, %v", stat.Mode(), err)
		}
	}
}

// fifo makes a named pipe.
func fifo(t *testing.T) string {
	t.Helper()
	name := filepath.Join(t.TempDir(), "pipe")
	if err := syscall.Mkfifo(name, 0o600); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestAPipeIsWrittenTo(t *testing.T) {
	payments(t)
	name := fifo(t)
	text := make(chan string)
	go func() {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Error(err)
		}
		text <- string(b)
	}()
	export(t, name)
	if stat, err := os.Lstat(name); err != nil || stat.Mode()&os.ModeNamedPipe == 0 {
		t.Fatalf("the pipe became %v, %v", stat.Mode(), err)
	}
	wantExported(t, <-text)
}

func TestWhoWaitsForAPipeIsInterrupted(t *testing.T) {
	payments(t)
	name := fifo(t)
	start := func(args ...string) (interrupt func(), ended chan error) {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := newCommand()
		cmd.SetArgs(args)
		cmd.SetOut(io.Discard)
		cmd.SetErr(io.Discard)
		ended = make(chan error, 1)
		go func() { ended <- cmd.ExecuteContext(ctx) }()
		return cancel, ended
	}
	importing := []string{"state", "import", name, "--format", "jsonl", "--name", "x", "--from", "4711", "--operator", "balance", "--state", "total"}
	interrupt, ended := start(importing...)
	w, err := os.OpenFile(name, os.O_WRONLY, 0) // waits for the other end
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	// More than the pipe holds: when all is written, it is being read.
	if _, err := w.Write(make([]byte, 1<<20)); err != nil {
		t.Fatal(err)
	}
	interrupt()
	if err := <-ended; !errors.Is(err, context.Canceled) || !strings.Contains(err.Error(), name) {
		t.Errorf("waiting for a line: %v", err)
	}
	for _, args := range [][]string{
		{"state", "import", fifo(t), "--format", "jsonl", "--name", "x", "--app", "a", "--key-groups", "1"},
		{"state", "export", fifo(t), "--format", "jsonl"},
	} {
		interrupt, ended = start(args...)
		interrupt()
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("%q, waiting for the other end: %v", args, err)
		}
	}
}
