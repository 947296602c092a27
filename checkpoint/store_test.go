package checkpoint_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"

	ctx "context"
)

func TestStoreContract(t *testing.T) {
	stores(t, func(t *testing.T, s checkpoint.Store) {
		c := t.Context()
		if err := s.Put(c, "a/one", []byte("hello")); err != nil {
			t.Fatal(err)
		}
		if err := s.Put(c, "a/one", []byte("other")); !errors.Is(err, checkpoint.ErrExists) {
			t.Errorf("second put: %v", err)
		}
		if err := errors.Join(s.Put(c, "a/two", nil), s.Put(c, "ab", []byte("x")), s.Put(c, "b/c/d", []byte("y"))); err != nil {
			t.Fatal(err)
		}
		if b, err := s.Get(c, "a/one"); err != nil || string(b) != "hello" {
			t.Errorf("get: %q, %v", b, err)
		}
		if b, err := s.GetRange(c, "a/one", 1, 3); err != nil || string(b) != "ell" {
			t.Errorf("get range: %q, %v", b, err)
		}
		for _, r := range [][2]int64{{3, 3}, {6, 0}, {-1, 2}, {0, -1}, {1, 1<<63 - 1}} {
			if _, err := s.GetRange(c, "a/one", r[0], r[1]); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("get range %v: %v", r, err)
			}
		}
		_, err := s.Get(c, "a/three")
		_, err2 := s.GetRange(c, "a/three", 0, 1)
		for _, err := range []error{err, err2} {
			var se *checkpoint.StoreError
			if !errors.Is(err, checkpoint.ErrNotFound) || !errors.As(err, &se) || se.Object != "a/three" {
				t.Errorf("missing object: %v", err)
			}
		}
		for prefix, want := range map[string]string{"": "a/one a/two ab b/c/d", "a": "a/one a/two ab", "a/": "a/one a/two", "a/t": "a/two", "b/c/": "b/c/d", "none/": ""} {
			var got []string
			for o, err := range s.List(c, prefix) {
				if err != nil {
					t.Fatal(err)
				}
				if o.Name == "a/one" && (o.Size != 5 || time.Since(o.Modified) > time.Hour) {
					t.Errorf("list says %+v", o)
				}
				got = append(got, o.Name)
			}
			if strings.Join(got, " ") != want {
				t.Errorf("list %q: %v, want %s", prefix, got, want)
			}
		}
		if err := errors.Join(s.Delete(c, "a/one"), s.Delete(c, "a/one"), s.Delete(c, "none/at/all")); err != nil {
			t.Error(err)
		}
		if _, err := s.Get(c, "a/one"); !errors.Is(err, checkpoint.ErrNotFound) {
			t.Errorf("deleted object: %v", err)
		}
		for _, bad := range []string{"", ".", "../x", "/x", "a//b", "a/../b", ".x", "a/.tmp-1"} {
			if err := s.Put(c, bad, nil); err == nil {
				t.Errorf("put %q was taken", bad)
			}
		}
		done, cancel := ctx.WithCancel(c)
		cancel()
		if err := s.Put(done, "late", nil); !errors.Is(err, ctx.Canceled) {
			t.Errorf("put after the context was done: %v", err)
		}
	})
}

func TestOnlyOnePutOfANameWins(t *testing.T) {
	stores(t, func(t *testing.T, s checkpoint.Store) {
		var won atomic.Int32
		var winner atomic.Value
		var wg sync.WaitGroup
		for i := range 16 {
			wg.Go(func() {
				data := fmt.Sprint("writer ", i)
				switch err := s.Put(t.Context(), "marker", []byte(data)); {
				case err == nil:
					won.Add(1)
					winner.Store(data)
				case !errors.Is(err, checkpoint.ErrExists):
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if b, _ := s.Get(t.Context(), "marker"); won.Load() != 1 || string(b) != winner.Load() {
			t.Errorf("%d writers won, the object is of %q, the winner was %q", won.Load(), b, winner.Load())
		}
	})
}

func TestOpenStore(t *testing.T) {
	dir := t.TempDir()
	for _, url := range []string{dir + "/plain", "file://" + dir + "/url", "mem://", "mem://shared"} {
		s, err := checkpoint.OpenStore(url)
		if err != nil {
			t.Fatal(err)
		}
		if err := checkpoint.Probe(t.Context(), s); err != nil {
			t.Errorf("%s: %v", url, err)
		}
		if left := names(t, s); len(left) > 0 {
			t.Errorf("%s: the probe left %v", url, left)
		}
	}
	a, _ := checkpoint.OpenStore("mem://shared")
	b, _ := checkpoint.OpenStore("mem://shared")
	if a != b {
		t.Error("two stores of one name")
	}
	for url, want := range map[string]string{"s3://bucket/x": `"s3" is not supported`, "": "empty", "file://relative/x": "file:///relative/x"} {
		if s, err := checkpoint.OpenStore(url); err == nil || s != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want it to say %s", url, err, want)
		}
	}
}

func TestUnusableDirectoryIsNamedWithARemedy(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	_, err := checkpoint.OpenStore(file + "/store")
	var se *checkpoint.StoreError
	if !errors.As(err, &se) || !strings.Contains(err.Error(), file+"/store") || !strings.Contains(err.Error(), "choose another path") {
		t.Errorf("store under a file: %v", err)
	}
	for cause, remedy := range map[error]string{
		syscall.EACCES: "permission on the directory", syscall.ENOSPC: "free space", syscall.EROFS: "read-only",
	} {
		s := faultstore.Wrap(checkpoint.NewMem())
		s.Before(func(_ ctx.Context, op faultstore.Op, _ string) error {
			if op == faultstore.Put {
				return &os.PathError{Op: "open", Path: "/x", Err: cause}
			}
			return nil
		})
		err := checkpoint.Probe(t.Context(), s)
		if !errors.Is(err, cause) || !strings.Contains(err.Error(), remedy) || !strings.Contains(err.Error(), "mem://") {
			t.Errorf("%v: the error is %v", cause, err)
		}
	}
}

func TestDirectoryRemadeAfterItWasRemoved(t *testing.T) {
	path := t.TempDir() + "/store"
	d, err := checkpoint.OpenDir(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), "seg/a", nil); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(path); err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), "seg/b", nil); err != nil {
		t.Fatal(err)
	}
}

func TestClaim(t *testing.T) {
	stores(t, func(t *testing.T, s checkpoint.Store) {
		c := t.Context()
		for range 2 {
			if err := checkpoint.Claim(c, s, app, 8); err != nil {
				t.Fatal(err)
			}
		}
		var wrong *checkpoint.WrongAppError
		if err := checkpoint.Claim(c, s, "other", 8); !errors.As(err, &wrong) || wrong.Got != app || wrong.Want != "other" || wrong.Store != s.String() {
			t.Errorf("another app: %v", err)
		}
		var groups *checkpoint.KeyGroupsError
		if err := checkpoint.Claim(c, s, app, 16); !errors.As(err, &groups) || groups.Got != 8 || groups.Want != 16 {
			t.Errorf("other key-group count: %v", err)
		}
		if err := faultstore.Truncate(s, "weir-store.json", 5); err != nil {
			t.Fatal(err)
		}
		var damaged *checkpoint.DamagedError
		if err := checkpoint.Claim(c, s, app, 8); !errors.As(err, &damaged) || damaged.Object != "weir-store.json" {
			t.Errorf("truncated marker: %v", err)
		}
	})
}

func TestClaimOfTwoAtOnceIsDecidedByTheStore(t *testing.T) {
	s := faultstore.Wrap(checkpoint.NewMem())
	s.Before(func(c ctx.Context, op faultstore.Op, _ string) error {
		if op == faultstore.Put {
			s.Before(nil)
			return checkpoint.Claim(c, s.Store, "faster", 8)
		}
		return nil
	})
	var wrong *checkpoint.WrongAppError
	if err := checkpoint.Claim(t.Context(), s, "slower", 8); !errors.As(err, &wrong) || wrong.Got != "faster" {
		t.Errorf("the slower one: %v", err)
	}
}

func TestOldTemporaryFilesAreRemovedAndYoungOnesKept(t *testing.T) {
	d, err := checkpoint.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, d, nil)
	ref := r.commit(1, changes{"0/a": "1"})
	m, _ := r.Base()
	r.close()
	old, young := filepath.Join(d.Path(), "ckpt", ".tmp-old"), filepath.Join(d.Path(), "ckpt", ".tmp-young")
	for _, f := range []string{old, young} {
		if err := os.WriteFile(f, []byte("torn"), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	then := time.Now().Add(-2 * checkpoint.TempAge)
	if err := os.Chtimes(old, then, then); err != nil {
		t.Fatal(err)
	}
	if list := names(t, d); len(list) != 1 {
		t.Errorf("temporary files are listed: %v", list)
	}
	newRig(t, d, func(c *checkpoint.Config) { c.Base, c.BaseRef, c.Incarnation = m, ref, 0xa2 }).Settle()
	if _, err := os.Stat(old); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the old one: %v", err)
	}
	if _, err := os.Stat(young); err != nil {
		t.Errorf("the young one: %v", err)
	}
}
