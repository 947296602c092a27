package file

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/zap"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/record"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/sink/twophase"
)

// connect starts a process that writes lines.
func connect(t *testing.T, o Options) *receiver[string] {
	t.Helper()
	p := lines(o, line)
	if err := p.Check(); err != nil {
		t.Fatal(err)
	}
	r, err := p.Connect(twophase.Env{App: "app", Operator: "out", Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = r.Close() })
	return r.(*receiver[string])
}

// prepare prepares a file with these lines.
func prepare(t *testing.T, r *receiver[string], subtask int, vs ...string) []byte {
	t.Helper()
	tx, err := r.Begin(t.Context(), subtask)
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range vs {
		if err := tx.Write(v); err != nil {
			t.Fatal(err)
		}
	}
	h, err := tx.Prepare(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func commit(t *testing.T, r *receiver[string], handles ...[]byte) {
	t.Helper()
	for _, h := range handles {
		if err := r.Commit(t.Context(), h); err != nil {
			t.Fatal(err)
		}
	}
}

// inside lists the hidden folder.
func inside(t *testing.T, r *receiver[string]) []string {
	t.Helper()
	entries, err := os.ReadDir(r.folder())
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func take(t *testing.T, dir string) {
	t.Helper()
	for name := range visible(t, dir) {
		if err := os.Remove(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
	}
}

func TestFilesThatWereTakenAwayAreNotGone(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	r := connect(t, o)
	var hs [][]byte
	for i := range 5 {
		hs = append(hs, prepare(t, r, i%2, fmt.Sprint(i)))
		commit(t, r, hs[i])
		take(t, o.Dir)
	}
	commit(t, r, hs...)
	if marks := inside(t, r); len(marks) != 2 {
		t.Errorf("%d subtasks left %q", 2, marks)
	}
	// The next process is told of the last ones, and its start leaves what it needs.
	for range 2 {
		r = connect(t, o)
		commit(t, r, hs[3:]...)
		left, err := r.Leftovers(t.Context(), hs[3:])
		if err != nil || len(left) != 0 {
			t.Fatalf("left over: %q, %v", left, err)
		}
	}
	// Starts that are told of none leave it, too: an app may begin from a savepoint that has
	// them after that.
	for range 2 {
		r = connect(t, o)
		left, err := r.Leftovers(t.Context(), nil)
		if err != nil || len(left) != 0 {
			t.Fatalf("left over: %q, %v", left, err)
		}
	}
	commit(t, r, hs...)
	if files := visible(t, o.Dir); len(files) != 0 {
		t.Errorf("files came again: %q", files)
	}
}

// A process that is killed inside of a commit leaves the mark of the file before it, and so
// does one that goes on without a file that is gone.
func TestMarkThatIsReplacedIsLeftOver(t *testing.T) {
	r := connect(t, Options{Dir: t.TempDir()})
	var marks []string
	for i := range 3 {
		d, err := decode(prepare(t, r, 0, fmt.Sprint(i)))
		if err == nil {
			err = mark(r.folder(), d)
		}
		if err == nil {
			err = os.Remove(filepath.Join(r.folder(), d.File))
		}
		if err != nil {
			t.Fatal(err)
		}
		marks = append(marks, d.mark())
	}
	left, err := r.Leftovers(t.Context(), nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range left {
		if err := r.Abort(t.Context(), l); err != nil {
			t.Fatal(err)
		}
	}
	if got := inside(t, r); !slices.Equal(got, marks[2:]) {
		t.Errorf("%q is left of %q", got, marks)
	}
}

func TestPreparedFileThatIsMissingOrDamagedIsGone(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	r := connect(t, o)
	first := prepare(t, r, 0, "first")
	commit(t, r, first)
	for what, hurt := range map[string]func(path string) error{
		"removed":   os.Remove,
		"truncated": func(path string) error { return os.Truncate(path, 3) },
	} {
		h := prepare(t, r, 0, "second")
		d, err := decode(h)
		if err != nil {
			t.Fatal(err)
		}
		if err := hurt(filepath.Join(r.folder(), d.File)); err != nil {
			t.Fatal(err)
		}
		err = r.Commit(t.Context(), h)
		if !errors.Is(err, twophase.ErrGone) || !strings.Contains(err.Error(), d.File) {
			t.Errorf("%s: %v", what, err)
		}
	}
	commit(t, r, first)
	if got := texts(visible(t, o.Dir)); !slices.Equal(got, []string{"first\n"}) {
		t.Errorf("visible: %q", got)
	}
}

// process is an incarnation of the sink.
type process struct {
	t       *testing.T
	applier sink.Applier
	writer  sink.Writer[string]
}

// launch starts an incarnation that writes lines, up to Recover.
func launch(t *testing.T, o Options) *process {
	t.Helper()
	p := &process{t: t}
	s := Lines(o, line)
	var err error
	if p.applier, err = s.Applier(processEnv{p}); err != nil {
		t.Fatal(err)
	}
	if p.writer, err = s.Open(processWriterEnv{processEnv{p}}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = p.applier.Close() })
	return p
}

// barrier writes a line and returns what is logged of it.
func (p *process) barrier(line string) []byte {
	p.t.Helper()
	err := p.writer.Write(line)
	if err == nil {
		err = p.writer.(sink.Flusher).Flush(p.t.Context())
	}
	var part []byte
	if err == nil {
		part, err = p.writer.(sink.Logger).Log()
	}
	if err != nil {
		p.t.Fatal(err)
	}
	return part
}

type processEnv struct{ p *process }

func (e processEnv) App() string                   { return "app" }
func (e processEnv) Operator() string              { return "out" }
func (e processEnv) Instance() string              { return "a" }
func (e processEnv) Lineage() string               { return "00000000000000a1" }
func (e processEnv) Context() context.Context      { return e.p.t.Context() }
func (e processEnv) Logger() *zap.Logger           { return zap.NewNop() }
func (e processEnv) Confirm(context.Context) error { return nil }
func (e processEnv) Applied(event.Applied)         {}

type processWriterEnv struct{ processEnv }

func (e processWriterEnv) Subtask() int          { return 0 }
func (e processWriterEnv) Meta() record.Meta     { return record.Meta{} }
func (e processWriterEnv) Output() sink.Output   { return nil }
func (e processWriterEnv) Applier() sink.Applier { return e.p.applier }

// TestFileThatIsGoneIsGoneAtEachStart has two files of a subtask in one checkpoint: the one
// before it was given up. The mark of the second one would say that the first is committed.
func TestFileThatIsGoneIsGoneAtEachStart(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	p := launch(t, o)
	parts := [][]byte{p.barrier("first"), p.barrier("second")}
	log := sink.Log{Checkpoint: 6, Bytes: int64(len(parts[0]) + len(parts[1])), Read: func(context.Context) ([][]byte, error) { return parts, nil }}
	first, err := filepath.Glob(filepath.Join(o.Dir, hidden, "app", "out", "*-000001"))
	if err != nil || len(first) != 1 {
		t.Fatalf("the first file is %q, %v", first, err)
	}
	if err := os.Remove(first[0]); err != nil {
		t.Fatal(err)
	}
	for start := range 3 {
		err := launch(t, o).applier.Recover(t.Context(), 6, []sink.Log{log})
		if g := (*twophase.GoneError)(nil); !errors.As(err, &g) || g.Checkpoint != 6 || !strings.Contains(string(g.Handle), filepath.Base(first[0])) {
			t.Fatalf("start %d: %v", start, err)
		}
	}
	t.Setenv("WEIR_TWOPHASE_ACCEPT", "out@6")
	if err := launch(t, o).applier.Recover(t.Context(), 6, []sink.Log{log}); err != nil {
		t.Fatal(err)
	}
	if got := texts(visible(t, o.Dir)); !slices.Equal(got, []string{"second\n"}) {
		t.Errorf("visible: %q", got)
	}
}

// TestKilledInsideOfACommit repeats a commit after each of its steps.
func TestKilledInsideOfACommit(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	r := connect(t, o)
	for step := range 3 {
		h := prepare(t, r, 0, fmt.Sprint(step))
		d, err := decode(h)
		if err != nil {
			t.Fatal(err)
		}
		if step >= 1 {
			if err := mark(r.folder(), d); err != nil {
				t.Fatal(err)
			}
		}
		if step >= 2 {
			if err := os.Rename(filepath.Join(r.folder(), d.File), filepath.Join(o.Dir, d.File)); err != nil {
				t.Fatal(err)
			}
		}
		next := connect(t, o)
		commit(t, next, h, h)
	}
	if got := texts(visible(t, o.Dir)); !slices.Equal(got, []string{"0\n", "1\n", "2\n"}) {
		t.Errorf("visible: %q", got)
	}
}

// The answer of a file server is lost, and the repeated request finds nothing to rename.
func TestFileWhoseRenameWasAnsweredLateIsThere(t *testing.T) {
	defer func() { rename = os.Rename }()
	lost := 0
	rename = func(from, to string) error {
		if err := os.Rename(from, to); err != nil {
			return err
		}
		lost++
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.ENOENT}
	}
	o := Options{Dir: t.TempDir()}
	r := connect(t, o)
	h := prepare(t, r, 0, "a")
	commit(t, r, h, h)
	if got := texts(visible(t, o.Dir)); !slices.Equal(got, []string{"a\n"}) || lost != 2 {
		t.Errorf("visible: %q, after %d answers were lost", got, lost)
	}
	rename = func(from, to string) error {
		return &os.LinkError{Op: "rename", Old: from, New: to, Err: syscall.ENOENT}
	}
	tx, err := r.Begin(t.Context(), 0)
	if err == nil {
		err = tx.Write("b")
	}
	if err != nil {
		t.Fatal(err)
	}
	if _, err := tx.Prepare(t.Context()); !errors.Is(err, syscall.ENOENT) {
		t.Errorf("a file that is gone: %v", err)
	}
}

// full makes the file system refuse renames into a directory.
func full(t *testing.T, dir string, err error) (over func()) {
	real := rename
	rename = func(from, to string) error {
		if filepath.Dir(to) == dir {
			return &os.LinkError{Op: "rename", Old: from, New: to, Err: err}
		}
		return real(from, to)
	}
	over = func() { rename = real }
	t.Cleanup(over)
	return over
}

// A mark is made before the rename. If that fails, the mark would say of a file that is lost
// afterwards that it is committed.
func TestFileThatIsLostAfterItsRenameFailedIsGone(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	r := connect(t, o)
	for i := range 3 { // without a mark before, and with one
		h := prepare(t, r, 0, fmt.Sprint(i))
		d, err := decode(h)
		if err != nil {
			t.Fatal(err)
		}
		over := full(t, o.Dir, syscall.ENOSPC)
		for range 2 {
			err := r.Commit(t.Context(), h)
			if again := (*sink.Retriable)(nil); !errors.As(err, &again) || !errors.Is(err, syscall.ENOSPC) {
				t.Fatalf("the file system is full: %v", err)
			}
		}
		path := filepath.Join(r.folder(), d.File)
		aside := filepath.Join(t.TempDir(), d.File)
		if err := os.Rename(path, aside); err != nil {
			t.Fatal(err)
		}
		for _, r := range []*receiver[string]{r, connect(t, o)} {
			if err := r.Commit(t.Context(), h); !errors.Is(err, twophase.ErrGone) {
				t.Errorf("file %d is lost: %v", i, err)
			}
		}
		if err := os.Rename(aside, path); err != nil {
			t.Fatal(err)
		}
		over()
		commit(t, r, h)
		take(t, o.Dir)
		commit(t, r, h)
	}
	if marks := inside(t, r); len(marks) != 1 {
		t.Errorf("marks: %q", marks)
	}
}

// So it is if the mark was made, and could not be made durable.
func TestFileThatIsLostAfterItsMarkFailedIsGone(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	r := connect(t, o)
	h := prepare(t, r, 0, "a")
	d, err := decode(h)
	if err != nil {
		t.Fatal(err)
	}
	real, failing := syncDir, true
	defer func() { syncDir = real }()
	syncDir = func(dir string) error {
		if failing && dir == r.folder() {
			failing = false
			return syscall.EIO
		}
		return real(dir)
	}
	if err := r.Commit(t.Context(), h); !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	if err := os.Remove(filepath.Join(r.folder(), d.File)); err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(t.Context(), h); !errors.Is(err, twophase.ErrGone) {
		t.Errorf("%v", err)
	}
}

// The rename of one process fails while another one does it, and readers are fast.
func TestMarkStaysIfTwoProcessesCommitAndOneOfThemFails(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	r, other := connect(t, o), connect(t, o)
	defer func() { rename = os.Rename }()
	for name, hinder := range map[string]func(h []byte, from, to string) error{
		"before the mark is taken back": func(h []byte, from, to string) error {
			if filepath.Dir(to) == o.Dir {
				return syscall.ENOSPC
			}
			rename = os.Rename
			commit(t, other, h)
			take(t, o.Dir)
			return os.Rename(from, to)
		},
		"after the mark is taken back": func(h []byte, from, to string) error {
			rename = os.Rename
			over := full(t, o.Dir, syscall.ENOSPC)
			if err := other.Commit(t.Context(), h); !errors.Is(err, syscall.ENOSPC) {
				t.Error(err)
			}
			over()
			return os.Rename(from, to)
		},
	} {
		first, h := prepare(t, r, 0, "first"), prepare(t, r, 0, name)
		commit(t, r, first)
		rename = func(from, to string) error { return hinder(h, from, to) }
		_ = r.Commit(t.Context(), h)
		take(t, o.Dir)
		for _, h := range [][]byte{first, h} {
			if err := r.Commit(t.Context(), h); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
	}
}

// The process dies between mark and rename, and a start from an older checkpoint rolls the
// file back. Then the app is set to the newer one again.
func TestFileThatIsRolledBackIsNotCommittedWhateverItsMarkSays(t *testing.T) {
	for name, o := range map[string]Options{"plain": {}, "parts of names that look alike": {Prefix: "T000000.000Z-0-0123456789abcdef-000001", Suffix: "7.txt"}} {
		t.Run(name, func(t *testing.T) {
			o.Dir = t.TempDir()
			r := connect(t, o)
			var hs [][]byte
			for i := range 3 {
				hs = append(hs, prepare(t, r, 0, fmt.Sprint(i)))
			}
			done := prepare(t, r, 1, "done")
			commit(t, r, hs[0], done)
			take(t, o.Dir)
			d, err := decode(hs[1])
			if err == nil {
				err = mark(r.folder(), d)
			}
			if err != nil {
				t.Fatal(err)
			}
			r = connect(t, o)
			left, err := r.Leftovers(t.Context(), nil)
			if err != nil || len(left) != 2 {
				t.Fatalf("left over: %q, %v", left, err)
			}
			for _, l := range slices.Concat(left, left) {
				if err := r.Abort(t.Context(), l); err != nil {
					t.Fatal(err)
				}
			}
			commit(t, r, hs[0], done)
			for _, h := range hs[1:] {
				if err := r.Commit(t.Context(), h); !errors.Is(err, twophase.ErrGone) {
					t.Errorf("a file that was rolled back: %v", err)
				}
			}
			if marks := inside(t, r); len(marks) != 2 {
				t.Errorf("marks: %q", marks)
			}
		})
	}
}

func TestDirectoryMayBeAnotherAtTheNextStart(t *testing.T) {
	was := Options{Dir: filepath.Join(t.TempDir(), "was")}
	r := connect(t, was)
	done, open := prepare(t, r, 0, "done"), prepare(t, r, 1, "open")
	commit(t, r, done)
	// Another directory is configured: what was prepared is committed where it is.
	r = connect(t, Options{Dir: t.TempDir()})
	commit(t, r, done, open)
	if got := texts(visible(t, was.Dir)); !slices.Equal(got, []string{"done\n", "open\n"}) {
		t.Errorf("visible: %q", got)
	}
	// The directory is moved, and the configuration with it.
	r = connect(t, was)
	done, open = prepare(t, r, 0, "done2"), prepare(t, r, 1, "open2")
	commit(t, r, done)
	is := Options{Dir: filepath.Join(t.TempDir(), "is")}
	if err := os.Rename(was.Dir, is.Dir); err != nil {
		t.Fatal(err)
	}
	r = connect(t, is)
	commit(t, r, done, open)
	if got := texts(visible(t, is.Dir)); !slices.Equal(got, []string{"done\n", "done2\n", "open\n", "open2\n"}) {
		t.Errorf("visible: %q", got)
	}
}

// TestDirectoryMayBeACopyAtTheNextStart has both directories: readers look into the one that
// is configured.
func TestDirectoryMayBeACopyAtTheNextStart(t *testing.T) {
	was, is := Options{Dir: t.TempDir()}, Options{Dir: filepath.Join(t.TempDir(), "is")}
	r := connect(t, was)
	done, open := prepare(t, r, 0, "done"), prepare(t, r, 1, "open")
	commit(t, r, done)
	if err := os.CopyFS(is.Dir, os.DirFS(was.Dir)); err != nil {
		t.Fatal(err)
	}
	r = connect(t, is)
	commit(t, r, done, open)
	if got := texts(visible(t, is.Dir)); !slices.Equal(got, []string{"done\n", "open\n"}) {
		t.Errorf("visible: %q", got)
	}
}

// A file that somebody has open and that is removed stays under a name like that on NFS.
func TestWhatIsNotOursIsNotLeftOver(t *testing.T) {
	r := connect(t, Options{Dir: t.TempDir()})
	sub := filepath.Join(r.folder(), "sub")
	if err := errors.Join(os.Mkdir(sub, 0o755), os.WriteFile(filepath.Join(sub, "a"), nil, 0o600), os.WriteFile(filepath.Join(r.folder(), ".nfs0001"), nil, 0o600)); err != nil {
		t.Fatal(err)
	}
	left, err := r.Leftovers(t.Context(), nil)
	if err != nil || len(left) != 0 {
		t.Errorf("left over: %q, %v", left, err)
	}
}

func TestPreparedFileWithThePrefixOfAMarkIsLeftOver(t *testing.T) {
	r := connect(t, Options{Dir: t.TempDir(), Prefix: marked})
	prepare(t, r, 0, "a")
	left, err := r.Leftovers(t.Context(), nil)
	if err != nil || len(left) != 1 {
		t.Errorf("left over: %q, %v", left, err)
	}
}

func TestNamesOfFiles(t *testing.T) {
	o := Options{Dir: t.TempDir(), Prefix: "orders-", Suffix: ".jsonl", Mode: 0o600}
	r := connect(t, o)
	commit(t, r, prepare(t, r, 3, "a"), prepare(t, r, 3, "b"))
	names := []string{}
	for name := range visible(t, o.Dir) {
		names = append(names, name)
		if ok, _ := filepath.Match("orders-20*T*.???Z-3-????????????????-00000[12].jsonl", name); !ok {
			t.Errorf("name %s", name)
		}
		if info, err := os.Stat(filepath.Join(o.Dir, name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v", name, info.Mode(), err)
		}
	}
	if len(names) != 2 {
		t.Errorf("files: %q", names)
	}
	for _, c := range [][3]string{{"a/b", "c", ".weir/a%2Fb/c"}, {"..", ".", ".weir/%2E%2E/%2E"}, {"ö", "x y", ".weir/%C3%B6/x%20y"}} {
		if got := folder(c[0], c[1]); got != filepath.FromSlash(c[2]) {
			t.Errorf("app %q, operator %q: %s", c[0], c[1], got)
		}
	}
}

func TestDescriptionIsChecked(t *testing.T) {
	for want, s := range map[string]*twophase.Sink[string]{
		"set Options.Dir":          Lines(Options{}, line),
		`Options.Prefix "a/b"`:     Lines(Options{Dir: "d", Prefix: "a/b"}, line),
		`Options.Suffix "/x"`:      Lines(Options{Dir: "d", Suffix: "/x"}, line),
		"begins with a dot":        Lines(Options{Dir: "d", Prefix: ".a"}, line),
		"has 101 bytes":            Lines(Options{Dir: "d", Prefix: strings.Repeat("a", 101)}, line),
		"Options.Mode":             Lines(Options{Dir: "d", Mode: 0o444}, line),
		"a line of a value is nil": Lines[string](Options{Dir: "d"}, nil),
		"codec for string is nil":  Records[string](Options{Dir: "d"}, nil),
		"MaxPending is -1":         Lines(Options{Dir: "d"}, line, twophase.MaxPending(-1)),
	} {
		if err := s.Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	if err := Lines(Options{Dir: "d", Prefix: "a", Suffix: ".b", Mode: 0o640}, line).Check(); err != nil {
		t.Error(err)
	}
	if got := Records(Options{Dir: "d", Prefix: "a", Suffix: ".b"}, codec.String).String(); got != "files d/a*.b, records" {
		t.Error(got)
	}
}

// The disk fails, or the process dies, after a directory was made. That it is there later does
// not say that its entry is on disk.
func TestDirectoryThatWasNotSyncedIsSyncedLater(t *testing.T) {
	o := Options{Dir: filepath.Join(t.TempDir(), "a", "out")}
	synced, failing := map[string]bool{}, ""
	defer func() { syncDir = fsyncDir }()
	syncDir = func(dir string) error {
		if dir == failing {
			return syscall.EIO
		}
		synced[dir] = true
		return fsyncDir(dir)
	}
	begin := func() error {
		_, err := lines(o, line).Connect(twophase.Env{App: "app", Operator: "out"})
		return err
	}
	top := filepath.Dir(filepath.Dir(o.Dir))
	for dir := filepath.Join(o.Dir, hidden, "app"); len(dir) >= len(top); dir = filepath.Dir(dir) {
		failing = dir
		if err := begin(); !errors.Is(err, syscall.EIO) {
			t.Errorf("%s can't be synced: %v", dir, err)
		}
		if err := begin(); len(dir) >= len(o.Dir) && !errors.Is(err, syscall.EIO) {
			t.Errorf("%s can't be synced at the next start: %v", dir, err)
		}
		failing = ""
		if err := begin(); err != nil || len(dir) >= len(o.Dir) && !synced[dir] {
			t.Errorf("%s was not synced: %v", dir, err)
		}
		if err := os.RemoveAll(filepath.Join(top, "a")); err != nil {
			t.Fatal(err)
		}
		clear(synced)
	}
	if err := os.MkdirAll(o.Dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := begin(); err != nil || !synced[filepath.Dir(o.Dir)] {
		t.Errorf("the directory's own entry was not synced: %v", err)
	}
	if err := os.RemoveAll(filepath.Join(o.Dir, hidden)); err != nil {
		t.Fatal(err)
	}
	failing = filepath.Dir(o.Dir)
	if err := begin(); err != nil {
		t.Errorf("a directory above ours, which is not ours to open: %v", err)
	}
}

func TestDirectoryThatCannotBeMadeStopsTheApp(t *testing.T) {
	f := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(f, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := lines(Options{Dir: filepath.Join(f, "dir")}, line).Connect(twophase.Env{App: "a", Operator: "o"})
	if err == nil || !strings.Contains(err.Error(), f) {
		t.Errorf("%v", err)
	}
}

func TestValuesThatCannotBeWrittenLeaveTheFileAsItIs(t *testing.T) {
	o := Options{Dir: t.TempDir()}
	bad := errors.New("no")
	p := lines(o, func(dst []byte, v string) ([]byte, error) {
		if v == "bad" {
			return append(dst, "half"...), bad
		}
		return append(dst, v...), nil
	})
	r, err := p.Connect(twophase.Env{App: "a", Operator: "o"})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	tx, err := r.Begin(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	for v, want := range map[string]string{"bad": "no", "a\nb": "line break"} {
		if err := tx.Write(v); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", v, err)
		}
	}
	h, err := tx.Prepare(t.Context())
	if h != nil || err != nil {
		t.Errorf("an empty file is prepared: %q, %v", h, err)
	}
	if tx, err = r.Begin(t.Context(), 0); err != nil {
		t.Fatal(err)
	}
	for _, v := range []string{"a", "bad", "", "b\nc", "d"} {
		_ = tx.Write(v) // those that can't be written are skipped
	}
	if h, err = tx.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := r.Commit(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	if got := texts(visible(t, o.Dir)); !slices.Equal(got, []string{"a\n\nd\n"}) {
		t.Errorf("visible: %q", got)
	}
}

func TestErrorOfTheDiskIsNotTheRecords(t *testing.T) {
	r := connect(t, Options{Dir: t.TempDir()})
	tx, err := r.Begin(t.Context(), 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.(*transaction[string]).f.Close(); err != nil {
		t.Fatal(err)
	}
	err = tx.Write(strings.Repeat("more than is buffered", 1<<16))
	if outage := (*sink.Outage)(nil); !errors.As(err, &outage) || !errors.Is(err, os.ErrClosed) {
		t.Errorf("%v", err)
	}
}

func TestFileSystemThatIsFullIsTriedAgain(t *testing.T) {
	for err, want := range map[error]bool{syscall.ENOSPC: true, syscall.ESTALE: true, syscall.EMFILE: true, syscall.ENOTCONN: true, syscall.EHOSTDOWN: true, syscall.EHOSTUNREACH: true, syscall.ENETUNREACH: true, syscall.ECONNREFUSED: true, syscall.ECONNRESET: true, syscall.EACCES: false, syscall.EIO: false} {
		var again *sink.Retriable
		if got := errors.As(passing(&os.PathError{Op: "write", Path: "p", Err: err}), &again); got != want {
			t.Errorf("%v: retriable %v", err, got)
		}
	}
	if passing(nil) != nil {
		t.Error("no error is an error")
	}
}

func TestTransactionsOfAnotherFormatAreRefused(t *testing.T) {
	r := connect(t, Options{Dir: t.TempDir()})
	for _, h := range []string{"", "x", `{"xid":7}`, `{"in":"a","file":""}`, `{"in":"","file":"b"}`, strings.Repeat("long", 1<<10), `{"in":"a","file":"../b"}`, `{"in":"../a","file":"b"}`} {
		err := r.Commit(t.Context(), []byte(h))
		if err == nil || errors.Is(err, twophase.ErrGone) {
			t.Errorf("Commit of %q: %v", h, err)
		}
		for _, want := range []string{"another kind of sink", `weir.AllowDroppedState("out")`} {
			if !strings.Contains(err.Error(), want) || len(err.Error()) > 500 {
				t.Errorf("the error lacks %q, or is too long: %v", want, err)
			}
		}
		if err := r.Abort(context.Background(), []byte(h)); err == nil {
			t.Errorf("Abort of %q succeeds", h)
		}
		if _, err := r.Leftovers(t.Context(), [][]byte{[]byte(h)}); err == nil {
			t.Errorf("%q may be named", h)
		}
	}
}

func TestS30_GoldenHandleStaysReadable(t *testing.T) {
	b, err := os.ReadFile("testdata/handle-v1.json")
	if err != nil {
		t.Fatal(err)
	}
	golden := strings.TrimSpace(string(b))
	h, err := decode([]byte(golden))
	if want := (handle{"/data/out", ".weir/app/out", "p-20261122T001500.123Z-2-9f3c51d07a6be024-000017.txt", 42, "9f3c51d07a6be024-2", 17}); err != nil || h != want {
		t.Fatalf("%+v, %v", h, err)
	}
	if b, err := h.encode(); err != nil || string(b) != golden {
		t.Errorf("it is written as %s now, %v", b, err)
	}
}
