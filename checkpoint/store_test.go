package checkpoint_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/faultstore"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/weirtest/conformance"

	ctx "context"
)

func TestStoreContract(t *testing.T) {
	t.Run("mem", func(t *testing.T) {
		conformance.Store{Open: func(testing.TB) checkpoint.Store { return checkpoint.NewMem() }}.Run(t)
	})
	t.Run("dir", func(t *testing.T) {
		conformance.Store{Open: func(t testing.TB) checkpoint.Store {
			d, err := checkpoint.OpenDir(t.TempDir() + "/store")
			if err != nil {
				t.Fatal(err)
			}
			return d
		}}.Run(t)
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
	for url, want := range map[string]string{"ftp://host/x": `"ftp" is not supported`, "": "empty", "file://relative/x": "file:///relative/x"} {
		if s, err := checkpoint.OpenStore(url); err == nil || s != nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want it to say %s", url, err, want)
		}
	}
}

func TestURLOfADirectoryOpensIt(t *testing.T) {
	for _, name := range []string{"my store", "100%", "a%20b", "why?", "#1"} {
		d, err := checkpoint.OpenDir(filepath.Join(t.TempDir(), name))
		if err != nil {
			t.Fatal(err)
		}
		again, err := checkpoint.OpenStore(d.String())
		if err != nil {
			t.Fatal(err)
		}
		if got := again.(*checkpoint.Dir).Path(); got != d.Path() {
			t.Errorf("%s opens %s", d, got)
		}
	}
}

// The directory of a store, or one in it, is on another disk.
func TestDirectoryThatIsALinkIsListed(t *testing.T) {
	dir := t.TempDir()
	link := func(name string) string {
		path := filepath.Join(dir, name)
		if err := os.Symlink(t.TempDir(), path); err != nil {
			t.Fatal(err)
		}
		return path
	}
	d, err := checkpoint.OpenDir(link("store"))
	if err != nil {
		t.Fatal(err)
	}
	link("store/seg")
	for _, name := range []string{"ckpt/b", "seg/a/c"} {
		if err := d.Put(t.Context(), name, nil); err != nil {
			t.Fatal(err)
		}
	}
	for prefix, want := range map[string]string{"": "ckpt/b seg/a/c", "ckpt/": "ckpt/b", "seg/": "seg/a/c", "seg/a/c": "seg/a/c", "none/": ""} {
		var got []string
		for o, err := range d.List(t.Context(), prefix) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, o.Name)
		}
		if got := strings.Join(got, " "); got != want {
			t.Errorf("below %q there are %q, want %q", prefix, got, want)
		}
	}
}

func TestMissingDriverIsNamedByItsImport(t *testing.T) {
	for scheme, pkg := range map[string]string{"s3": "s3", "gs": "gcs", "azblob": "azure"} {
		_, err := checkpoint.OpenStore(scheme + "://id:hush@bucket/x?token=hush")
		if want := `import _ "github.com/weirstream/weir/checkpoint/blob/` + pkg + `"`; err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), scheme+"://bucket/x:") {
			t.Errorf("%s: %v, want it to say %s", scheme, err, want)
		}
		if strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v shows secrets", scheme, err)
		}
	}
}

// registered counts the runs of the next test: a scheme is registered for good.
var registered atomic.Int32

func TestRegisterScheme(t *testing.T) {
	want := checkpoint.NewMem()
	scheme := fmt.Sprintf("scheme-%d", registered.Add(1))
	open := func(url string) (checkpoint.Store, error) {
		if url != scheme+"://bucket/x?y=z" {
			t.Errorf("opened with %s", url)
		}
		return want, nil
	}
	var panics atomic.Int32
	register := func(scheme string, open func(string) (checkpoint.Store, error)) {
		defer func() {
			if recover() != nil {
				panics.Add(1)
			}
		}()
		checkpoint.RegisterScheme(scheme, open)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() { register(scheme, open) })
		wg.Go(func() { _, _ = checkpoint.OpenStore("scheme-b://") })
	}
	wg.Wait()
	if panics.Load() != 7 {
		t.Errorf("%d of 8 registrations of one scheme panicked", panics.Load())
	}
	register("file", open)
	register("mem", open)
	register("scheme-c", nil)
	if panics.Load() != 10 {
		t.Error("a scheme of this package, or no function, was taken")
	}
	if s, err := checkpoint.OpenStore(scheme + "://bucket/x?y=z"); s != want || err != nil {
		t.Errorf("opened %v, %v", s, err)
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

// A store may be where a file system is mounted, or a directory that is used for other
// things, too: what is beside its own directories is not looked at, and need not be readable.
func TestTemporaryFilesOfOthersAreKept(t *testing.T) {
	d, err := checkpoint.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, d, nil)
	ref := r.commit(1, changes{"0/a": "1"})
	r.close()
	elsewhere := t.TempDir()
	own := []string{filepath.Join(d.Path(), ".tmp-old"), filepath.Join(d.Path(), "ckpt", ".tmp-old")}
	others := []string{filepath.Join(elsewhere, ".tmp-old"), filepath.Join(d.Path(), "other", ".tmp-old")}
	if err := os.Mkdir(filepath.Join(d.Path(), "other"), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range slices.Concat(own, others) {
		if err := os.WriteFile(f, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		then := time.Now().Add(-2 * checkpoint.TempAge)
		if err := os.Chtimes(f, then, then); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{"link": elsewhere, "unreadable": "unreadable"} {
		if err := os.Symlink(to, filepath.Join(d.Path(), link)); err != nil {
			t.Fatal(err)
		}
	}
	report, err := checkpoint.Collect(t.Context(), d, checkpoint.CollectOptions{Live: []offsets.ManifestRef{ref}})
	if err != nil || report.Temps != len(own) {
		t.Errorf("collected %+v, %v; want %d temporary files", report, err, len(own))
	}
	for _, f := range others {
		if _, err := os.Stat(f); err != nil {
			t.Errorf("a file of others: %v", err)
		}
	}
}
