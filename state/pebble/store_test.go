package pebble

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"math/rand/v2"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("WEIR_TEST_HOLD_STORE"); dir != "" {
		s, err := Open(dir, "app", Options{})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		fmt.Println("held")
		_, _ = os.Stdin.Read(make([]byte, 1)) // until the test ends
		_ = s.Close()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestStoreFollowsCommitsAndIsReusedAfterARestart(t *testing.T) {
	for _, remote := range []bool{false, true} {
		fs := vfs.NewMem()
		b := newDirBucket(t, fs, "bucket")
		if remote {
			b = newRemoteBucket()
		}
		s := open(t, fs, Options{})
		h := newHistory(t, b, "aa")
		h.commit(set(1, "a", "1"), set(2, "b", "1"))
		if a := h.attach(s); a.How != Rebuilt || a.Segments != 1 {
			t.Fatalf("%+v", a)
		}
		h.holds(s, h.at)
		h.ingest(s, set(1, "a", "2"), del(2, "b"), set(300, "c", ""))
		h.holds(s, h.at)
		h.ingest(s)
		h.holds(s, h.at)
		closeStore(t, s)

		s = open(t, fs, Options{})
		gets := b.gets.Load()
		if a := h.attach(s); a.How != Reused || a.Reused != 2 || b.gets.Load() != gets {
			t.Fatalf("%+v", a)
		}
		h.holds(s, h.at)
		closeStore(t, s)

		s = open(t, fs, Options{})
		h.commit(set(1, "a", "3"))
		h.commit(del(1, "a"), set(4, "d", "1"))
		if a := h.attach(s); a.How != CaughtUp || a.Reused != 2 || a.Linked+a.Copied != 2 {
			t.Fatalf("%+v", a)
		}
		h.holds(s, h.at)
		closeStore(t, s)
	}
}

func TestAStoreIsReadFromAttachToClose(t *testing.T) {
	b := newRemoteBucket()
	s := open(t, vfs.NewMem(), Options{})
	if _, _, err := s.Get(nil, keyOf(1, "a"), math.MaxInt64); !errors.Is(err, ErrDetached) {
		t.Fatal(err)
	}
	if _, err := s.Iter(nil, nil); !errors.Is(err, ErrDetached) {
		t.Fatal(err)
	}
	if err := s.Ingest(t.Context(), ID{Lineage: "a", Checkpoint: 1}, ID{}, nil, nil, nil); !errors.Is(err, ErrDetached) {
		t.Fatal(err)
	}
	h := newHistory(t, b, "aa")
	h.attach(s) // a job that starts from nothing
	h.holds(s, ID{})
	h.ingest(s, set(1, "a", "1"))
	h.holds(s, h.at)
	closeStore(t, s)
	if _, _, err := s.Get(nil, keyOf(1, "a"), math.MaxInt64); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if _, err := s.Attach(t.Context(), h.at, h.chain, b); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
	if err := s.Ingest(t.Context(), ID{}, ID{}, nil, nil, nil); !errors.Is(err, ErrClosed) {
		t.Fatal(err)
	}
}

func TestIngestRefusesACheckpointThatIsNotTheChildOfWhatTheStoreEquals(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs, Options{})
	h := newHistory(t, newDirBucket(t, fs, "bucket"), "aa")
	h.attach(s)
	h.ingest(s, set(1, "a", "1"))
	at := h.at
	h.commit(set(1, "a", "2"))
	prev, id, seg := h.commit(set(1, "a", "3"))
	var m *MismatchError
	if err := s.Ingest(t.Context(), id, prev, seg, nil, h.chain); !errors.As(err, &m) || m.Have != at || m.Prev != prev {
		t.Fatal(err)
	}
	if err := s.Ingest(t.Context(), at, at, nil, nil, nil); !errors.As(err, &m) {
		t.Fatal(err)
	}
	h.holds(s, at)
	child := ID{Lineage: "bb", Checkpoint: 1} // begins a lineage
	h.states[child] = h.states[at]
	if err := s.Ingest(t.Context(), child, at, nil, nil, h.chain[:1]); err != nil {
		t.Fatal(err)
	}
	h.holds(s, child)
}

// A merge of the oldest segments drops tombstones. A store that lacks the deletes must
// not keep what they hid, whether the merge left anything or not.
func TestDeletedKeysDoNotComeBackWhenTombstonesWereMergedAway(t *testing.T) {
	for _, all := range []bool{false, true} {
		fs := vfs.NewMem()
		b := newDirBucket(t, fs, "bucket")
		s := open(t, fs, Options{})
		h := newHistory(t, b, "aa")
		h.attach(s)
		h.ingest(s, set(1, "a", "1"), set(200, "z", "1"))
		closeStore(t, s)

		h.commit(del(200, "z"))
		if all {
			h.commit(del(1, "a"))
		}
		h.merge(0, len(h.chain))
		if all != (len(h.chain) == 0) {
			t.Fatal(h.chain)
		}
		h.commit(set(5, "new", "1"))
		s = open(t, fs, Options{})
		h.attach(s)
		h.holds(s, h.at)
		closeStore(t, s)
	}
}

func TestAttachGoesBackAndToAnotherLineage(t *testing.T) {
	fs := vfs.NewMem()
	b := newDirBucket(t, fs, "bucket")
	s := open(t, fs, Options{})
	h := newHistory(t, b, "aa")
	h.attach(s)
	h.ingest(s, set(1, "a", "1"))
	old, chain := h.at, h.chain
	h.ingest(s, set(1, "a", "2"), set(2, "b", "1"))
	if _, err := s.Attach(t.Context(), old, chain, b); err != nil {
		t.Fatal(err)
	}
	h.holds(s, old)
	other := newHistory(t, b, "bb")
	other.commit(set(9, "x", "1"))
	other.attach(s)
	other.holds(s, other.at)
	if _, err := s.Attach(t.Context(), ID{}, nil, b); err != nil {
		t.Fatal(err)
	}
	other.holds(s, ID{})
	if names, err := fs.List("store/" + segmentsName); err != nil || len(names) > 0 {
		t.Fatal(names, err)
	}
}

func TestAStartMakesRoomBeforeItTakesSegments(t *testing.T) {
	fs := vfs.NewMem()
	b := newRemoteBucket()
	s := open(t, fs, Options{})
	old := newHistory(t, b, "aa")
	old.commit(set(1, "a", "1"))
	old.attach(s)
	closeStore(t, s)
	h := newHistory(t, b, "bb")
	h.commit(set(1, "a", "1"))
	s = open(t, fs, Options{})
	b.before(func(string, int64, int64) error {
		if _, err := fs.Stat(fileOf(s, old.chain[0])); !errors.Is(err, os.ErrNotExist) {
			t.Error("the old segment is still there", err)
		}
		return nil
	})
	h.attach(s)
	h.holds(s, h.at)
}

func TestAStartThatFailsKeepsWhatItHasOfTheChain(t *testing.T) {
	fs := vfs.NewMem()
	b := newRemoteBucket()
	s := open(t, fs, Options{})
	h := newHistory(t, b, "aa")
	h.commit(set(1, "a", "1"))
	h.attach(s)
	closeStore(t, s)
	h.commit(set(2, "b", "1"))
	var down atomic.Bool
	down.Store(true)
	b.before(func(object string, _, _ int64) error {
		if object == h.chain[0].Object {
			t.Errorf("%s is read, which is there", object)
		}
		if down.Load() {
			return errors.New("the object store is down")
		}
		return nil
	})
	s = open(t, fs, Options{})
	if _, err := s.Attach(t.Context(), h.at, h.chain, b); err == nil || !strings.Contains(err.Error(), h.chain[1].Object) {
		t.Fatal(err)
	}
	if _, _, err := s.Get(nil, keyOf(1, "a"), math.MaxInt64); !errors.Is(err, ErrDetached) {
		t.Fatal(err)
	}
	down.Store(false)
	// The other one may have been copied since the store is back.
	if a := h.attach(s); a.Reused < 1 || a.Reused+a.Copied != 2 {
		t.Fatalf("%+v", a)
	}
	h.holds(s, h.at)
}

// A checkpoint store that was emptied may give the same names to other objects.
func TestASegmentOfTheSameNameAndAnotherContentIsTakenAgain(t *testing.T) {
	fs := vfs.NewMem()
	b := newDirBucket(t, fs, "bucket")
	s := open(t, fs, Options{})
	h := newHistory(t, b, "aa")
	h.attach(s)
	h.ingest(s, set(1, "a", "1"))
	closeStore(t, s)

	if err := fs.Remove(b.path(h.chain[0].Object)); err != nil {
		t.Fatal(err)
	}
	again := newHistory(t, b, "aa")
	again.commit(set(1, "a", "2"))
	s = open(t, fs, Options{})
	again.attach(s)
	again.holds(s, again.at)
}

func TestAMergeIsTakenOverByLinkAndItsInputsGo(t *testing.T) {
	fs := vfs.NewMem()
	b := newDirBucket(t, fs, "bucket")
	s := open(t, fs, Options{})
	h := newHistory(t, b, "aa")
	h.attach(s)
	for i := range 10 {
		h.ingest(s, set(uint16(i%3), fmt.Sprint(i%4), fmt.Sprint(i)), del(uint16(i%3), fmt.Sprint((i+1)%4)))
	}
	it, err := s.Iter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	was := h.states[h.at]
	h.merge(2, 8)
	h.ingest(s, set(1, "x", "1"))
	if m := s.Metrics(); m.Segments != 6 {
		t.Fatalf("%+v", m)
	}
	h.holds(s, h.at)
	if names, err := fs.List("store/" + segmentsName); err != nil || len(names) != 6 {
		t.Fatal(names, err)
	}
	got := content{}
	for ok := it.First(); ok; ok = it.Next() {
		got[string(it.Key())] = string(it.Value())
	}
	if err := it.Close(); err != nil || !maps.Equal(got, was) {
		t.Fatal(err, got, was)
	}
	h.merge(0, len(h.chain))
	h.ingest(s)
	h.holds(s, h.at)
	if m := s.Metrics(); m.Segments != 1 || m.Depth != 1 {
		t.Fatalf("%+v", m)
	}
}

func TestLinkedObjectsAreNeitherChangedNorRemoved(t *testing.T) {
	b := newDirBucket(t, vfs.Default, t.TempDir())
	s := open(t, vfs.Default, Options{})
	h := newHistory(t, b, "aa")
	h.attach(s)
	h.ingest(s, set(1, "a", "1"))
	object := b.path(h.chain[0].Object)
	mine := filepath.Join(s.dir, segmentsName, h.chain[0].file())
	i1, err1 := os.Stat(object)
	i2, err2 := os.Stat(mine)
	if err1 != nil || err2 != nil || !os.SameFile(i1, i2) {
		t.Fatal("the segment was not linked", err1, err2)
	}
	if _, err := s.Attach(t.Context(), ID{}, nil, b); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(mine); !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(object); err != nil || !bytes.Equal(got, h.data[h.chain[0].Object]) {
		t.Fatal("the object is not what it was", err)
	}
}

func TestSegmentsThatCannotBeLinkedAreCopied(t *testing.T) {
	mem := vfs.NewMem()
	b := newDirBucket(t, mem, "bucket")
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpLink {
			return &os.LinkError{Op: "link", Old: op.Path, Err: syscall.EXDEV}
		}
		return nil
	}))
	s := open(t, fs, Options{})
	h := newHistory(t, b, "aa")
	h.commit(set(1, "a", "1"))
	if a := h.attach(s); a.Copied != 1 {
		t.Fatalf("%+v", a)
	}
	h.ingest(s, set(2, "a", "2"))
	h.holds(s, h.at)
}

func TestASegmentInsideAnObject(t *testing.T) {
	for _, remote := range []bool{false, true} {
		fs := vfs.NewMem()
		b := newDirBucket(t, fs, "bucket")
		if remote {
			b = newRemoteBucket()
		}
		h := newHistory(t, b, "aa")
		data, info := encode(t, []change{set(3, "k", "v")})
		b.put(t, "manifest", slices.Concat([]byte("before"), data, []byte("after")))
		b.put(t, "begin", slices.Concat(data, []byte("after")))
		seg := refOf("manifest", info)
		seg.Offset = int64(len("before"))
		h.at = ID{Lineage: "aa", Checkpoint: 1}
		h.states[h.at] = content{string(keyOf(3, "k")): "v"}
		h.chain = []Segment{seg, refOf("begin", info)}
		s := open(t, fs, Options{})
		if a := h.attach(s); a.Copied != 2 {
			t.Fatalf("%+v", a)
		}
		h.holds(s, h.at)
		closeStore(t, s)
	}
}

func TestACopyIsDurableBeforeItHasItsName(t *testing.T) {
	var ops []string
	fs := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		switch dir := filepath.Dir(op.Path); {
		case filepath.Base(dir) != tmpName:
		case op.Kind == errorfs.OpFileWrite:
			ops = append(ops, "write")
		case op.Kind == errorfs.OpFileSync:
			ops = append(ops, "sync")
		case op.Kind == errorfs.OpRename:
			ops = append(ops, "rename")
		}
		return nil
	}))
	s := open(t, fs, Options{})
	h := newHistory(t, newRemoteBucket(), "aa")
	h.attach(s)
	h.ingest(s, set(1, "a", "1"))
	if want := []string{"write", "sync", "rename"}; !slices.Equal(ops, want) {
		t.Fatalf("%q, want %q", ops, want)
	}
}

func TestCloseWaitsForIterators(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs, Options{})
	h := newHistory(t, newDirBucket(t, fs, "bucket"), "aa")
	h.commit(set(1, "a", "1"), set(1, "b", "1"))
	h.attach(s)
	it, err := s.Iter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	closed := make(chan error, 1)
	go func() { closed <- s.Close() }()
	for err == nil {
		_, _, err = s.Get(nil, keyOf(1, "a"), math.MaxInt64)
	}
	if !errors.Is(err, ErrClosed) {
		t.Error(err)
	}
	if !it.First() || !it.Next() || it.Next() {
		t.Error(it.Error())
	}
	if len(closed) > 0 {
		t.Error("closed under an iterator")
	}
	if err := it.Close(); err != nil {
		t.Error(err)
	}
	if err := <-closed; err != nil {
		t.Error(err)
	}
}

func TestTwoStoresInOneDirectory(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "WEIR_TEST_HOLD_STORE="+dir)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = in.Close(); _ = cmd.Wait() }()
	said := make([]byte, 4)
	if _, err := out.Read(said); err != nil || string(said) != "held" {
		t.Fatal(string(said), err)
	}
	_, err = Open(dir, "app", Options{})
	var e *InUseError
	if !errors.As(err, &e) || !strings.Contains(err.Error(), fmt.Sprintf("process %d on host", cmd.Process.Pid)) || !strings.Contains(err.Error(), dir) {
		t.Fatal(err)
	}
	_ = in.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	s, err := Open(dir, "app", Options{})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(dir, "app", Options{}); !errors.As(err, &e) {
		t.Fatal(err)
	}
	closeStore(t, s)
}

func TestOpenRefusesWhatIsNotItsOwn(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs, Options{})
	closeStore(t, s)
	var app *WrongAppError
	if _, err := Open("store", "other", Options{fs: fs}); !errors.As(err, &app) || app.Got != "app" || app.Want != "other" {
		t.Fatal(err)
	}
	put := func(text string) {
		t.Helper()
		s := &Store{dir: "store", fs: fs}
		if err := s.writeFile(aboutName, []byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	put(`{"format":2,"app":"app"}`)
	var version *VersionError
	if _, err := Open("store", "app", Options{fs: fs}); !errors.As(err, &version) || version.Version != 2 {
		t.Fatal(err)
	}
	var not *NotAStoreError
	put(`{"form`)
	if _, err := Open("store", "app", Options{fs: fs}); !errors.As(err, &not) {
		t.Fatal(err)
	}
	if err := fs.Remove("store/" + aboutName); err != nil {
		t.Fatal(err)
	}
	if _, err := Open("store", "app", Options{fs: fs}); !errors.As(err, &not) {
		t.Fatal(err)
	}
	denied := errorfs.Wrap(fs, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if op.Kind == errorfs.OpMkdirAll {
			return &os.PathError{Op: "mkdir", Path: op.Path, Err: syscall.EACCES}
		}
		return nil
	}))
	var se *StoreError
	if _, err := Open("store", "app", Options{fs: denied}); !errors.As(err, &se) || !strings.Contains(err.Error(), "permission on the directory") {
		t.Fatal(err)
	}
	if _, err := Open("store", "app", Options{CacheBytes: -1}); err == nil {
		t.Fatal("a negative cache")
	}
}

// A directory that has other things in it under the names that the store uses is left as
// it is.
func TestOpenLeavesFilesOfOthersAlone(t *testing.T) {
	for _, name := range []string{"segments/x", "tmp/x", "owner", "damaged"} {
		fs := vfs.NewMem()
		if err := fs.MkdirAll("store/"+fs.PathDir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		rewrite(t, fs, "store/"+name, []byte("of others"))
		var not *NotAStoreError
		if s, err := Open("store", "app", Options{fs: fs}); !errors.As(err, &not) {
			t.Errorf("a directory with %s was opened: %v", name, err)
			closeStore(t, s)
		}
		if b, err := (&Store{dir: "store", fs: fs}).readFile(name); string(b) != "of others" {
			t.Errorf("%s has %q, %v", name, b, err)
		}
	}
}

// fileOf returns the path of a segment in the store.
func fileOf(s *Store, seg Segment) string { return s.path(segmentsName, seg.file()) }

func rewrite(t *testing.T, fs vfs.FS, path string, data []byte) {
	t.Helper()
	f, err := fs.Create(path, vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(slices.Clone(data))
	}
	if err == nil {
		err = f.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
}

func flipped(data []byte, at int) []byte {
	data = slices.Clone(data)
	data[at] ^= 0x40
	return data
}

func TestADamagedCopyIsRefusedByNameAndTakenAgain(t *testing.T) {
	for _, restart := range []bool{false, true} {
		fs := vfs.NewMem()
		b := newRemoteBucket()
		h := newHistory(t, b, "aa")
		h.commit(set(1, "a", "1"))
		h.commit(set(2, "b", "1"))
		s := open(t, fs, Options{})
		h.attach(s)
		closeStore(t, s)
		bad := h.chain[1]
		rewrite(t, fs, fileOf(s, bad), flipped(h.data[bad.Object], 5)) // in the only data block

		s = open(t, fs, Options{})
		if a := h.attach(s); a.How != Reused {
			t.Fatalf("%+v", a)
		}
		var d *DamagedError
		if _, _, err := s.Get(nil, keyOf(2, "b"), math.MaxInt64); !errors.As(err, &d) || d.Object != bad.Object || d.File != bad.file() || !strings.Contains(err.Error(), bad.Object) {
			t.Fatal(err)
		}
		if _, _, err := s.Get(nil, keyOf(1, "a"), math.MaxInt64); !errors.As(err, &d) || d.Object != bad.Object {
			t.Fatal("served from a damaged store", err)
		}
		if _, err := s.Iter(nil, nil); !errors.As(err, &d) {
			t.Fatal(err)
		}
		if err := s.Ingest(t.Context(), ID{Lineage: "aa", Checkpoint: 3}, h.at, nil, nil, h.chain); !errors.As(err, &d) {
			t.Fatal(err)
		}
		if restart {
			closeStore(t, s)
			s = open(t, fs, Options{})
		}
		if a := h.attach(s); a.How != CaughtUp || a.Copied != 1 || a.Reused != 1 {
			t.Fatalf("%+v", a)
		}
		h.holds(s, h.at)
		if _, err := fs.Stat(s.path(damagedName)); !errors.Is(err, os.ErrNotExist) {
			t.Fatal(err)
		}
	}
}

func TestS04_ASegmentDamagedInTheCheckpointStoreIsRefusedByName(t *testing.T) {
	fs := vfs.NewMem()
	b := newDirBucket(t, fs, "bucket")
	h := newHistory(t, b, "aa")
	h.commit(set(1, "a", "1"))
	h.commit(set(2, "b", "1"))
	bad := h.chain[1]
	refused := func(s *Store, err error) {
		t.Helper()
		var d *DamagedError
		if !errors.As(err, &d) || d.Object != bad.Object || !strings.Contains(err.Error(), bad.Object) {
			t.Fatal(err)
		}
		if _, _, err := s.Get(nil, keyOf(1, "a"), math.MaxInt64); err == nil {
			t.Fatal("served from a store that could not be attached")
		}
	}
	t.Run("truncated", func(t *testing.T) {
		b.put(t, bad.Object, h.data[bad.Object][:100])
		s := open(t, fs, Options{})
		defer s.Close()
		_, err := s.Attach(t.Context(), h.at, h.chain, b)
		refused(s, err)
		if !strings.Contains(err.Error(), fmt.Sprintf("100 bytes, %d were written", bad.Length)) {
			t.Fatal(err)
		}
	})
	t.Run("footer", func(t *testing.T) {
		b.put(t, bad.Object, flipped(h.data[bad.Object], len(h.data[bad.Object])-20))
		s := open(t, fs, Options{})
		defer s.Close()
		_, err := s.Attach(t.Context(), h.at, h.chain, b)
		refused(s, err)
	})
	t.Run("block of a linked file", func(t *testing.T) {
		b.put(t, bad.Object, flipped(h.data[bad.Object], 5))
		s := open(t, fs, Options{})
		defer s.Close()
		h.attach(s)
		_, _, err := s.Get(nil, keyOf(2, "b"), math.MaxInt64)
		refused(s, err)
		_, err = s.Attach(t.Context(), h.at, h.chain, b) // the object is as bad as the link
		refused(s, err)
		b.put(t, bad.Object, h.data[bad.Object])
		h.attach(s)
		h.holds(s, h.at)
	})
	t.Run("copied", func(t *testing.T) {
		for _, data := range [][]byte{flipped(h.data[bad.Object], 5), h.data[bad.Object][:50]} {
			r := newRemoteBucket()
			r.put(t, h.chain[0].Object, h.data[h.chain[0].Object])
			r.put(t, bad.Object, data)
			s := open(t, vfs.NewMem(), Options{})
			_, err := s.Attach(t.Context(), h.at, h.chain, r)
			refused(s, err)
		}
	})
	t.Run("given", func(t *testing.T) {
		s := open(t, vfs.NewMem(), Options{})
		if _, err := s.Attach(t.Context(), ID{Lineage: "aa", Checkpoint: 1}, nil, b); err != nil {
			t.Fatal(err)
		}
		err := s.Ingest(t.Context(), h.at, s.ID(), &bad, flipped(h.data[bad.Object], 5), h.chain)
		var d *DamagedError
		if !errors.As(err, &d) || d.Object != bad.Object {
			t.Fatal(err)
		}
	})
}

func TestATornFileIsTakenAgain(t *testing.T) {
	fs := vfs.NewMem()
	b := newRemoteBucket()
	h := newHistory(t, b, "aa")
	h.commit(set(1, "a", "1"))
	s := open(t, fs, Options{})
	h.attach(s)
	closeStore(t, s)
	rewrite(t, fs, fileOf(s, h.chain[0]), h.data[h.chain[0].Object][:64])
	s = open(t, fs, Options{})
	if a := h.attach(s); a.Copied != 1 {
		t.Fatalf("%+v", a)
	}
	h.holds(s, h.at)
}

// bigCommit adds a segment that is too large to be copied before use.
func (h *history) bigCommit(seed uint64) (prev, id ID, seg *Segment) {
	rng := rand.New(rand.NewPCG(seed, 1))
	var changes []change
	for n := range 3000 {
		value := make([]byte, 800)
		for i := range value {
			value[i] = byte(rng.Uint32())
		}
		changes = append(changes, set(uint16(rng.Uint32N(128)), fmt.Sprintf("big-%d", n), string(value)))
	}
	prev, id, seg = h.commit(changes...)
	if seg.Length <= copyBytes {
		h.t.Fatalf("%d bytes are not large", seg.Length)
	}
	return prev, id, seg
}

func TestAScanOfARemoteSegmentReadsAhead(t *testing.T) {
	b := newRemoteBucket()
	h := newHistory(t, b, "aa")
	_, _, big := h.bigCommit(1)
	var reads atomic.Int64
	b.before(func(_ string, _, n int64) error {
		if n > copyBytes {
			return errors.New("no") // it can't be copied
		}
		reads.Add(1)
		return nil
	})
	s := open(t, vfs.NewMem(), Options{CacheBytes: 8 << 20})
	h.attach(s)
	reads.Store(0)
	it, err := s.Iter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	entries := 0
	for ok := it.First(); ok; ok = it.Next() {
		if len(it.Value()) == 0 {
			t.Fatalf("%x: %v", it.Key(), it.Error())
		}
		entries++
	}
	if err := it.Error(); err != nil || entries != 3000 {
		t.Fatalf("%d entries, %v", entries, err)
	}
	// 64 KiB are read ahead at first and twice as much each time, after what stands alone.
	if n := reads.Load(); n > 16 {
		t.Errorf("%d bytes were read in %d requests", big.Length, n)
	}
}

func TestARemoteSegmentIsReadWhereItIsAndReleasedWhenItWasCopied(t *testing.T) {
	fs := vfs.NewMem()
	b := newRemoteBucket()
	h := newHistory(t, b, "aa")
	h.bigCommit(1)
	h.commit(set(1, "a", "1"), del(5, "big-1"))
	big := h.chain[0]

	gate := make(chan struct{})
	var copying atomic.Bool
	b.before(func(object string, off, n int64) error {
		if object == big.Object && n > copyBytes {
			copying.Store(true)
			<-gate // a copy; reads of blocks are smaller
		}
		return nil
	})
	done := make(chan Progress, 1)
	var events []Progress
	s := open(t, fs, Options{Progress: func(p Progress) {
		events = append(events, p)
		if p.Done {
			done <- p
		}
	}})
	read := b.bytes.Load()
	a := h.attach(s)
	if a.Remote != 1 || a.Copied != 1 {
		t.Fatalf("%+v", a)
	}
	if n := b.bytes.Load() - read; !copying.Load() && n > 200<<10 {
		t.Fatalf("attaching %d bytes read %d", a.Bytes, n)
	}
	if got := s.Needs(); !slices.Equal(got, []string{big.Object}) {
		t.Fatal(got)
	}
	h.holds(s, h.at)
	if m := s.Metrics(); m.RemoteBytes != big.Length || m.RemoteRead == 0 {
		t.Fatalf("%+v", m)
	}
	it, err := s.Iter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	if !it.First() {
		t.Fatal(it.Error())
	}
	close(gate)
	if p := <-done; p.Bytes != big.Length || p.Left != 0 || p.Segments != 0 {
		t.Fatalf("%+v", p)
	}
	if events[0].Left != big.Length || events[0].Segments != 1 || events[0].Done {
		t.Fatalf("%+v", events[0])
	}
	// The iterator still reads the object.
	if got := s.Needs(); !slices.Equal(got, []string{big.Object}) {
		t.Fatal(got)
	}
	n := 1
	for it.Next() {
		n++
	}
	if err := it.Close(); err != nil || n != len(h.states[h.at]) {
		t.Fatal(n, err)
	}
	if got := s.Needs(); len(got) > 0 {
		t.Fatal(got)
	}
	b.mu.Lock()
	clear(b.objects)
	b.mu.Unlock()
	h.holds(s, h.at)
	closeStore(t, s)
	s = open(t, fs, Options{})
	if a := h.attach(s); a.How != Reused {
		t.Fatalf("%+v", a)
	}
	h.holds(s, h.at)
}

func TestTheCopyOfARemoteSegmentGoesOnAfterAFailureAndARestart(t *testing.T) {
	fs := vfs.NewMem()
	b := newRemoteBucket()
	h := newHistory(t, b, "aa")
	h.bigCommit(1)
	var down atomic.Bool
	down.Store(true)
	b.before(func(object string, off, n int64) error {
		if n > copyBytes && down.Load() {
			return errors.New("the object store is down")
		}
		return nil
	})
	failed, done := make(chan error, 10), make(chan struct{}, 1)
	opts := Options{Progress: func(p Progress) {
		if p.Err != nil {
			select {
			case failed <- p.Err:
			default:
			}
		}
		if p.Done {
			done <- struct{}{}
		}
	}}
	s := open(t, fs, opts)
	h.attach(s)
	if err := <-failed; !strings.Contains(err.Error(), "the object store is down") || !strings.Contains(err.Error(), h.chain[0].Object) {
		t.Fatal(err)
	}
	h.holds(s, h.at) // reads go on
	closeStore(t, s)
	s = open(t, fs, opts)
	if a := h.attach(s); a.Remote != 1 {
		t.Fatalf("%+v", a)
	}
	<-failed
	down.Store(false)
	<-done
	if got := s.Needs(); len(got) > 0 {
		t.Fatal(got)
	}
	h.holds(s, h.at)
}

func TestTheResultOfARemoteMergeIsTakenOverWhenItWasCopied(t *testing.T) {
	fs := vfs.NewMem()
	b := newRemoteBucket()
	h := newHistory(t, b, "aa")
	gate := make(chan struct{})
	b.before(func(object string, off, n int64) error {
		if strings.Contains(object, "-m") {
			<-gate
		}
		return nil
	})
	done := make(chan struct{}, 10)
	s := open(t, fs, Options{Progress: func(p Progress) {
		if p.Done {
			done <- struct{}{}
		}
	}})
	h.attach(s)
	give := func(prev, id ID, seg *Segment) {
		t.Helper()
		if err := s.Ingest(t.Context(), id, prev, seg, h.data[seg.Object], h.chain); err != nil {
			t.Fatal(err)
		}
		h.holds(s, id)
	}
	give(h.commit(set(1, "a", "1"), set(1, "b", "1")))
	give(h.commit(del(1, "a"), set(2, "c", "1")))
	h.merge(0, 2)
	merged := h.chain[0]
	give(h.commit(set(1, "a", "2")))
	give(h.commit(del(1, "b")))
	if m := s.Metrics(); m.Segments != 4 {
		t.Fatalf("%+v", m)
	}
	if got := s.Needs(); !slices.Equal(got, []string{merged.Object}) {
		t.Fatal(got)
	}
	close(gate)
	<-done
	if m := s.Metrics(); m.Segments != 3 || len(s.Needs()) > 0 {
		t.Fatalf("%+v", m)
	}
	h.holds(s, h.at)
	if names, err := fs.List(s.path(segmentsName)); err != nil || len(names) != 3 {
		t.Fatal(names, err)
	}
	give(h.commit(set(7, "g", "1")))
}

func TestARateBoundsTheCopy(t *testing.T) {
	r := rate{bytesPerSecond: 1 << 20}
	ctx, cancel := context.WithCancel(t.Context())
	if err := r.take(ctx, 1<<30); err != nil { // the first one is on credit
		t.Fatal(err)
	}
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := r.take(ctx, 1); !errors.Is(err, context.Canceled) {
		t.Fatal("the second read did not wait for the first to be paid for", err)
	}
	var unbounded rate
	for range 2 {
		if err := unbounded.take(t.Context(), 1<<40); err != nil {
			t.Fatal("no bound is a bound:", err)
		}
	}
}

func TestReadsWhileSegmentsComeIn(t *testing.T) {
	b := newDirBucket(t, vfs.Default, t.TempDir())
	s := open(t, vfs.Default, Options{CacheBytes: 1 << 20})
	h := newHistory(t, b, "aa")
	h.attach(s)
	const keys, rounds = 50, 60
	// Each checkpoint writes its number under all keys, so that each read, and each
	// walk, has to see one number, and never an older one than before.
	round := func(n int) (changes []change) {
		for k := range keys {
			changes = append(changes, set(uint16(k), "k", fmt.Sprintf("%06d", n)))
		}
		return changes
	}
	h.ingest(s, round(0)...)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			last := ""
			for n := 0; ; n++ {
				select {
				case <-stop:
					return
				default:
				}
				if g%2 == 0 {
					v, ok, err := s.Get(nil, keyOf(uint16(n%keys), "k"), math.MaxInt64)
					if err != nil || !ok || string(v) < last {
						t.Error(err, ok, string(v), last)
						return
					}
					last = string(v)
					continue
				}
				it, err := s.Iter(keyOf(0, ""), nil)
				if err != nil {
					t.Error(err)
					return
				}
				seen, first := 0, ""
				for ok := it.First(); ok; ok = it.Next() {
					if seen++; seen == 1 {
						first = string(it.Value())
					}
					if string(it.Value()) != first || first < last {
						t.Errorf("%q after %q, %q", it.Value(), first, last)
					}
				}
				last = first
				if err := it.Close(); err != nil || seen != keys {
					t.Error(seen, err)
					return
				}
			}
		})
	}
	for n := range rounds {
		h.ingest(s, round(n+1)...)
		if n%7 == 6 {
			h.merge(max(0, len(h.chain)-5), len(h.chain)-1)
		}
		if n%20 == 19 {
			h.merge(0, len(h.chain))
			h.attach(s)
		}
	}
	close(stop)
	wg.Wait()
	h.holds(s, h.at)
}

// Each operation that changes something on the disk fails in turn.
func TestAFailingDiskLosesNothing(t *testing.T) {
	for _, remote := range []bool{false, true} {
		for _, full := range []error{syscall.ENOSPC, syscall.EIO} {
			for n := 0; ; n++ {
				mem := vfs.NewCrashableMem()
				b := newDirBucket(t, mem, "bucket")
				if remote {
					b = newRemoteBucket()
				}
				var left atomic.Int64
				left.Store(1 << 40)
				fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
					if op.Kind.ReadOrWrite() == errorfs.OpIsWrite && left.Add(-1) < 0 {
						return &os.PathError{Op: "write", Path: op.Path, Err: full}
					}
					return nil
				}))
				s := open(t, fs, Options{})
				h := newHistory(t, b, "aa")
				h.attach(s)
				h.ingest(s, set(1, "a", "1"), set(2, "b", "1"))
				prev, id, seg := h.commit(set(1, "a", "2"), del(2, "b"))
				left.Store(int64(n))
				err := s.Ingest(t.Context(), id, prev, seg, h.data[seg.Object], h.chain)
				failed := left.Load() < 0
				left.Store(1 << 40)
				if err != nil {
					var se *StoreError
					if !errors.As(err, &se) || !errors.Is(err, full) || se.Object != seg.Object || hint(err) == "" || !strings.Contains(err.Error(), hint(err)) {
						t.Fatal(err)
					}
					h.holds(s, prev)
					// The same one again, now that there is room.
					if err := s.Ingest(t.Context(), id, prev, seg, h.data[seg.Object], h.chain); err != nil {
						t.Fatal(err)
					}
				}
				h.holds(s, id)
				closeStore(t, s)

				// And the same for an attach.
				h.commit(set(3, "c", "1"))
				s = open(t, fs, Options{})
				left.Store(int64(n))
				_, err = s.Attach(t.Context(), h.at, h.chain, b)
				failed = failed || left.Load() < 0
				left.Store(1 << 40)
				if err != nil {
					if !errors.Is(err, full) {
						t.Fatal(err)
					}
					h.attach(s)
				}
				h.holds(s, h.at)
				closeStore(t, s)
				if !failed {
					break
				}
			}
		}
	}
}

func TestAReadErrorIsNoDamage(t *testing.T) {
	mem := vfs.NewMem()
	b := newDirBucket(t, mem, "bucket")
	var broken atomic.Bool
	fs := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && op.Kind == errorfs.OpFileReadAt {
			return &os.PathError{Op: "read", Path: op.Path, Err: syscall.EIO}
		}
		return nil
	}))
	s := open(t, fs, Options{})
	h := newHistory(t, b, "aa")
	h.commit(set(1, "a", "1"))
	h.attach(s)
	broken.Store(true)
	var se *StoreError
	if _, _, err := s.Get(nil, keyOf(1, "a"), math.MaxInt64); !errors.As(err, &se) || se.Object != h.chain[0].Object || !errors.Is(err, syscall.EIO) {
		t.Fatal(err)
	}
	it, err := s.Iter(nil, nil)
	if err == nil {
		on := it.First()
		if err = it.Close(); on {
			t.Fatal("read from a broken disk")
		}
	}
	if !errors.As(err, &se) {
		t.Fatal(err)
	}
	broken.Store(false)
	h.holds(s, h.at)
}

// Random histories with merges, restarts, crashes, rollbacks and ingestions, on a
// directory and on a remote checkpoint store; the store holds what its ID says.
func TestTheStoreEqualsTheCheckpointThatItsIDNames(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		remote := rapid.Bool().Draw(rt, "remote")
		fs := vfs.NewCrashableMem()
		b := newDirBucket(t, fs, "bucket")
		if remote {
			b = newRemoteBucket()
		}
		h := newHistory(t, b, "aa")
		lineage := 0
		s, err := Open("store", "app", Options{fs: fs, CacheBytes: 1 << 20})
		if err != nil {
			rt.Fatal(err)
		}
		defer func() { _ = s.Close() }()
		h.attach(s)
		rng := rand.New(rand.NewPCG(rapid.Uint64().Draw(rt, "seed"), 1))
		changes := func() (c []change) {
			for range rapid.IntRange(0, 8).Draw(rt, "changes") {
				kg, key := uint16(rng.Uint32N(6)), fmt.Sprint(rng.Uint32N(5))
				if rng.Uint32N(3) == 0 {
					c = append(c, del(kg, key))
				} else {
					c = append(c, set(kg, key, fmt.Sprint(rng.Uint32())))
				}
			}
			return c
		}
		check := func() {
			h.holds(s, h.at)
			walk(rt, s, h.states[h.at], rng)
		}
		for range rapid.IntRange(1, 40).Draw(rt, "steps") {
			switch rapid.SampledFrom([]string{"ingest", "ingest", "ingest", "merge", "restart", "crash", "behind", "lineage", "back"}).Draw(rt, "step") {
			case "ingest":
				prev, id, seg := h.commit(changes()...)
				var data []byte
				if seg != nil && rng.Uint32N(2) == 0 {
					data = h.data[seg.Object]
				}
				if err := s.Ingest(t.Context(), id, prev, seg, data, h.chain); err != nil {
					rt.Fatal(err)
				}
			case "merge":
				if n := len(h.chain); n > 1 {
					lo := int(rng.Uint32N(uint32(n - 1)))
					h.merge(lo, lo+2+int(rng.Uint32N(uint32(n-lo-1))))
				}
				continue // the next checkpoint has it
			case "restart", "crash":
				crash := rng.Uint32N(2) == 0
				if crash {
					clone := fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: int(rng.Uint32N(101)), RNG: rng})
					_ = s.Close()
					fs = clone
					if !remote {
						b.fs = fs
					}
				} else if err := s.Close(); err != nil {
					rt.Fatal(err)
				}
				if s, err = Open("store", "app", Options{fs: fs, CacheBytes: 1 << 20}); err != nil {
					rt.Fatal(err)
				}
				h.attach(s)
			case "behind":
				for range rng.Uint32N(3) {
					h.commit(changes()...)
				}
				h.attach(s)
			case "lineage":
				lineage++
				h = newHistory(t, b, fmt.Sprint("l", lineage))
				h.attach(s)
			case "back":
				// A commit that failed: its segment is in no chain, and its ID is not used
				// again.
				at, chain := h.at, h.chain
				_, id, _ := h.commit(changes()...)
				delete(h.states, id)
				h.at, h.chain = at, chain
				h.burnt++
				h.attach(s)
			}
			check()
		}
	})
}

// walk moves an iterator at random, and a position in the sorted keys with it.
func walk(t *rapid.T, s *Store, want content, rng *rand.Rand) {
	all := slices.Sorted(maps.Keys(want))
	random := func() []byte { return keyOf(uint16(rng.Uint32N(7)), fmt.Sprint(rng.Uint32N(6))) }
	var lo, hi []byte
	if rng.Uint32N(2) == 0 {
		lo = random()
	}
	if rng.Uint32N(2) == 0 {
		hi = random()
	}
	var keys []string
	for _, k := range all {
		if (lo == nil || k >= string(lo)) && (hi == nil || k < string(hi)) {
			keys = append(keys, k)
		}
	}
	it, err := s.Iter(lo, hi)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	at, on := 0, false
	for range 20 {
		op := rng.Uint32N(8)
		if !on {
			op %= 4
		}
		var got bool
		switch op {
		case 0:
			got, at = it.First(), 0
		case 1:
			got, at = it.Last(), len(keys)-1
		case 2:
			k := random()
			got = it.SeekGE(k)
			at, _ = slices.BinarySearch(keys, string(k))
		case 3:
			k := random()
			got = it.SeekLT(k)
			at, _ = slices.BinarySearch(keys, string(k))
			at--
		case 4, 5:
			got, at = it.Next(), at+1
		case 6, 7:
			got, at = it.Prev(), at-1
		}
		on = at >= 0 && at < len(keys)
		if got != on {
			t.Fatalf("step %d in %q to %d of %q: stands on a key: %v", op, [][]byte{lo, hi}, at, keys, got)
		}
		if on && (string(it.Key()) != keys[at] || string(it.Value()) != want[keys[at]]) {
			t.Fatalf("step %d: %q %q, want %q %q", op, it.Key(), it.Value(), keys[at], want[keys[at]])
		}
	}
	if err := it.Close(); err != nil {
		t.Fatal(err)
	}
	for range 5 {
		k := random()
		v, ok, err := s.Get([]byte("x"), k, math.MaxInt64)
		w, has := want[string(k)]
		if err != nil || ok != has || ok && string(v) != "x"+w || !ok && string(v) != "x" {
			t.Fatalf("get %q: %q %v %v, want %q %v", k, v, ok, err, w, has)
		}
	}
}

// What is known to be newer than the last write of a key is not asked for it. The test lies
// about that, to see.
func TestGetAsksNothingThatIsNewerThanTheKey(t *testing.T) {
	fs := vfs.NewMem()
	s := open(t, fs, Options{})
	defer closeStore(t, s)
	h := newHistory(t, newDirBucket(t, fs, "bucket"), "aa")
	h.commit(set(1, "a", "1"))
	h.attach(s)
	expect := func(newest int64, want string) {
		t.Helper()
		if got, _, err := s.Get(nil, keyOf(1, "a"), newest); err != nil || string(got) != want {
			t.Fatalf("as of checkpoint %d: %q %v, want %q", newest, got, err, want)
		}
	}
	h.ingest(s, set(1, "a", "2"))
	expect(1, "1")
	expect(2, "2")
	h.burnt = 2 // what was written for 3 and 4 is in 5
	h.ingest(s, set(1, "a", "5"))
	expect(2, "2")
	expect(3, "5")
	h.burnt = 0
	h.merge(1, 3) // of what is in there nothing is known
	h.ingest(s, set(1, "b", "1"))
	expect(1, "5")
	h.ingest(s, del(1, "a"))
	expect(6, "5")
	expect(7, "")

	// Numbers of checkpoints mean something within a lineage only.
	h.attach(s)
	expect(0, "")
	h.lineage = "bb"
	h.ingest(s, set(1, "a", "8"))
	expect(0, "8")
}

// A store that can't be read is no damage, whatever its error wraps, and nobody waits for it
// for ever: neither at the start, nor in a look, nor in a loop.
func TestStoreThatIsAwayIsNoDamage(t *testing.T) {
	for name, away := range map[string]error{
		"plain":    errors.New("the service is down"),
		"EOF":      fmt.Errorf("store: %w", &url.Error{Op: "Get", URL: "http://store", Err: io.EOF}),
		"deadline": fmt.Errorf("store: %w", context.DeadlineExceeded),
	} {
		t.Run(name, func(t *testing.T) {
			b := newRemoteBucket()
			h := newHistory(t, b, "a")
			h.bigCommit(1)
			down := func(string, int64, int64) error { return away }
			check := func(what string, err error) {
				t.Helper()
				var damaged *DamagedError
				if err == nil || errors.As(err, &damaged) || !errors.Is(err, away) {
					t.Errorf("%s: %v", what, err)
				}
			}
			open := func() *Store {
				s, err := Open(t.TempDir(), "app", Options{})
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { s.Close() })
				return s
			}
			b.before(down)
			_, err := open().Attach(t.Context(), h.at, h.chain, b)
			check("attach", err)

			b.before(func(_ string, _, n int64) error {
				if n > copyBytes {
					return away // nothing is copied, and read from there
				}
				return nil
			})
			s := open()
			if _, err := s.Attach(t.Context(), h.at, h.chain, b); err != nil {
				t.Fatal(err)
			}
			b.before(down)
			for range 2 { // the second one must not wait for the first
				_, _, err := s.Get(nil, keyOf(5, "big-1"), math.MaxInt64)
				check("get", err)
			}
			it, err := s.Iter(nil, nil)
			if err == nil {
				it.First()
				err = errors.Join(it.Error(), it.Close())
			}
			check("iterate", err)
		})
	}
}

// A file that turned out to be damaged when it was opened, and was removed, is copied again.
func TestFileThatWasDamagedIsCopiedAgain(t *testing.T) {
	dir := t.TempDir()
	b := newRemoteBucket()
	h := newHistory(t, b, "aa")
	h.bigCommit(1)
	start := func() (*Store, chan struct{}) {
		done := make(chan struct{}, 10)
		s, err := Open(dir, "app", Options{Progress: func(p Progress) {
			if p.Done {
				done <- struct{}{}
			}
		}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := s.Attach(t.Context(), h.at, h.chain, b); err != nil {
			t.Fatal(err)
		}
		return s, done
	}
	s, done := start()
	<-done
	file := filepath.Join(dir, segmentsName, h.chain[0].file())
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(file, 1000); err != nil {
		t.Fatal(err)
	}
	s, done = start()
	defer s.Close()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatal("it is not copied")
	}
	if _, err := os.Stat(file); err != nil {
		t.Error(err)
	}
}

// Merges are made faster than what they made is copied. Then it is read where it is, before
// the tables of single checkpoints are too many.
func TestTablesDoNotAddUpWhileCopyingIsSlow(t *testing.T) {
	for _, copyFirst := range []int64{-1, 1 << 20} {
		b := newRemoteBucket()
		h := newHistory(t, b, "a")
		s := open(t, vfs.NewMem(), Options{DownloadRate: 1, copyFirst: copyFirst})
		h.attach(s)
		most := 0
		for i := range 5 * spareTables {
			h.ingest(s, set(uint16(i%8), fmt.Sprint("key-", i%50), fmt.Sprint(i)))
			h.merge(0, len(h.chain))
			most = max(most, s.Metrics().Segments)
		}
		h.holds(s, h.at)
		if most <= 4 || most > spareTables+8 {
			t.Errorf("copyFirst %d: there were up to %d tables, want more than a few and not many more than %d", copyFirst, most, spareTables)
		}
		// A store that can't be read ends nothing.
		b.before(func(string, int64, int64) error { return errors.New("away") })
		for i := range 2 * spareTables {
			prev, id, seg := h.commit(set(1, "k", fmt.Sprint(i)))
			if err := s.Ingest(t.Context(), id, prev, seg, h.data[seg.Object], h.chain); err != nil {
				t.Fatal(err)
			}
			h.merge(0, len(h.chain))
		}
		b.before(nil)
		h.holds(s, h.at)
	}
}
