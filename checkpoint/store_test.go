package checkpoint_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
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

func newDir(t testing.TB) checkpoint.Store {
	t.Helper()
	d, err := checkpoint.OpenDir(t.TempDir() + "/store")
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestStoreContract(t *testing.T) {
	t.Run("mem", func(t *testing.T) {
		conformance.Store{Open: func(testing.TB) checkpoint.Store { return checkpoint.NewMem() }}.Run(t)
	})
	t.Run("dir", func(t *testing.T) { conformance.Store{Open: newDir, Reopen: reopen}.Run(t) })
	t.Run("dir without hard links", func(t *testing.T) {
		if runtime.GOOS != "linux" {
			t.Skip("two processes may take a name at once where a file system has no hard links, except on Linux")
		}
		checkpoint.SetNaming(t, refuse(syscall.EPERM), nil)
		conformance.Store{Open: newDir, Reopen: reopen}.Run(t)
	})
}

func reopen(t testing.TB, s checkpoint.Store) checkpoint.Store {
	t.Helper()
	again, err := checkpoint.OpenStore(s.String())
	if err != nil {
		t.Fatal(err)
	}
	return again
}

func refuse(err error) func(from, to string) error { return func(_, _ string) error { return err } }

// File systems without hard links that overwrite what they move to.
func TestNoObjectIsOverwrittenByAMove(t *testing.T) {
	for _, link := range []error{syscall.EPERM, syscall.ENOTSUP, syscall.ENOSYS} {
		for _, move := range []error{syscall.EINVAL, syscall.ENOSYS, syscall.EPERM} {
			checkpoint.SetNaming(t, refuse(link), refuse(move))
			d := newDir(t)
			if err := d.Put(t.Context(), "a", []byte("first")); err != nil {
				t.Fatalf("%v, %v: %v", link, move, err)
			}
			if err := d.Put(t.Context(), "a", []byte("second")); !errors.Is(err, checkpoint.ErrExists) {
				t.Errorf("%v, %v: %v", link, move, err)
			}
			if b, err := d.Get(t.Context(), "a"); string(b) != "first" {
				t.Errorf("%v, %v: %q, %v", link, move, b, err)
			}
		}
	}
}

// The answer of a file server is lost, and its answer to the repeated request is that the
// name is taken, or that there is nothing to move.
func TestObjectWhoseFirstAnswerWasLostIsOurs(t *testing.T) {
	loseFirst := func(do func(from, to string) error, second error) func(from, to string) error {
		return func(from, to string) error {
			if err := do(from, to); err != nil {
				return err
			}
			return &os.LinkError{Op: "name", Old: from, New: to, Err: second}
		}
	}
	for name, set := range map[string]func(){
		"link": func() { checkpoint.SetNaming(t, loseFirst(os.Link, syscall.EEXIST), nil) },
		"move": func() { checkpoint.SetNaming(t, refuse(syscall.EPERM), loseFirst(os.Rename, syscall.ENOENT)) },
	} {
		t.Run(name, func(t *testing.T) {
			set()
			d := newDir(t)
			if err := d.Put(t.Context(), "a", []byte("first")); err != nil {
				t.Fatal(err)
			}
			checkpoint.SetNaming(t, os.Link, nil)
			if err := d.Put(t.Context(), "a", []byte("first")); !errors.Is(err, checkpoint.ErrExists) {
				t.Errorf("somebody else's object of the same content: %v", err)
			}
			if b, err := d.Get(t.Context(), "a"); string(b) != "first" {
				t.Errorf("%q, %v", b, err)
			}
		})
	}
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
	link := func(name string) {
		t.Helper()
		if done, err := d.Link(t.Context(), name, d, "seg/b"); !done || err != nil {
			t.Fatal(done, err)
		}
	}
	link("savepoint/a/seg/b")
	if err := os.RemoveAll(filepath.Join(path, "savepoint")); err != nil {
		t.Fatal(err)
	}
	link("savepoint/a/seg/b")
	if _, err := d.Link(t.Context(), "savepoint/a/seg/c", d, "seg/c"); !errors.Is(err, checkpoint.ErrNotFound) {
		t.Errorf("link of an object that is not there: %v", err)
	}
}

// A desktop or a network file system leaves files of its own in any directory.
func TestHiddenFilesAreNoObjects(t *testing.T) {
	d, err := checkpoint.OpenDir(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	r := newRig(t, d, nil)
	r.commit(1, changes{"0/a": "1"})
	m, _ := r.Base()
	if _, err := checkpoint.CreateSavepoint(t.Context(), d, m, d, "a", nil); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".DS_Store", "seg/.nfs0001"} {
		if err := os.WriteFile(filepath.Join(d.Path(), "savepoint", "a", name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := checkpoint.DeleteSavepoint(t.Context(), d, "a"); err != nil {
		t.Error(err)
	}
	if list, err := checkpoint.ListSavepoints(t.Context(), d); len(list) > 0 || err != nil {
		t.Errorf("after it was deleted there are %v, %v", list, err)
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

var (
	here  = checkpoint.Owner{Group: "counters", Cluster: "here"}
	there = checkpoint.Owner{Group: "counters", Cluster: "there"}
)

func TestAStoreHasOneOwner(t *testing.T) {
	stores(t, func(t *testing.T, s checkpoint.Store) {
		c := t.Context()
		for range 2 {
			if err := checkpoint.ClaimOwner(c, s, app, here); err != nil {
				t.Fatal(err)
			}
		}
		before := names(t, s)
		group := checkpoint.Owner{Group: "others", Cluster: "here"}
		for _, other := range []checkpoint.Owner{there, group} {
			for what, err := range map[string]error{
				"claim":                 checkpoint.ClaimOwner(c, s, app, other),
				"take from another one": checkpoint.ClaimOwner(c, s, app, other, other, checkpoint.Owner{Group: "counters"}),
				"check":                 checkpoint.CheckOwner(c, s, app, other),
			} {
				var owner *checkpoint.OwnerError
				if !errors.As(err, &owner) || owner.App != app || owner.Store != s.String() || owner.Want != other || owner.Got != here {
					t.Errorf("%s by %s: %v", what, other, err)
				}
			}
		}
		if after := names(t, s); !slices.Equal(after, before) {
			t.Errorf("what was refused left %v of %v", after, before)
		}
		for range 2 {
			if err := checkpoint.ClaimOwner(c, s, app, there, here, group); err != nil {
				t.Errorf("take over: %v", err)
			}
		}
		var owner *checkpoint.OwnerError
		if err := checkpoint.ClaimOwner(c, s, app, here); !errors.As(err, &owner) || owner.Got != there {
			t.Errorf("the old owner: %v", err)
		}
		if err := checkpoint.CheckOwner(c, s, app, there); err != nil {
			t.Errorf("the new owner: %v", err)
		}
	})
}

// Each start of an incarnation claims the store, and a request takes its time.
func TestAnOwnerThatIsKnownIsNotReadAgain(t *testing.T) {
	s := faultstore.Wrap(checkpoint.NewMem())
	gets := 0
	s.Before(func(_ ctx.Context, op faultstore.Op, _ string) error {
		if op == faultstore.Get {
			gets++
		}
		return nil
	})
	ours := checkpoint.Ownership{Store: s, App: app, Owner: here}
	claim := func(want int, from ...checkpoint.Owner) error {
		t.Helper()
		gets = 0
		err := ours.Claim(t.Context(), from...)
		if gets != want {
			t.Errorf("%d objects were asked for, want %d", gets, want)
		}
		return err
	}
	for range 3 {
		if err := claim(1); err != nil {
			t.Fatal(err)
		}
	}
	for _, o := range []checkpoint.Owner{there, {Group: "others", Cluster: "here"}} {
		if err := checkpoint.ClaimOwner(t.Context(), s.Store, app, o, here, there); err != nil {
			t.Fatal(err)
		}
	}
	var owner *checkpoint.OwnerError
	if err := claim(3); !errors.As(err, &owner) || owner.Got.Group != "others" {
		t.Errorf("after others took the store: %v", err)
	}
	if err := claim(3, owner.Got); err != nil {
		t.Errorf("taken back: %v", err)
	}
	if err := claim(1); err != nil {
		t.Error(err)
	}
}

func TestAClusterThatIsNotKnownMayBeAny(t *testing.T) {
	s, unknown := checkpoint.NewMem(), checkpoint.Owner{Group: "counters"}
	for _, o := range []checkpoint.Owner{unknown, unknown, here, unknown} {
		if err := checkpoint.ClaimOwner(t.Context(), s, app, o); err != nil {
			t.Errorf("%s: %v", o, err)
		}
	}
	var owner *checkpoint.OwnerError
	if err := checkpoint.ClaimOwner(t.Context(), s, app, there); !errors.As(err, &owner) || owner.Got != here {
		t.Errorf("the id was not noted when it was known: %v", err)
	}
	if err := checkpoint.ClaimOwner(t.Context(), s, app, checkpoint.Owner{Group: "others"}); !errors.As(err, &owner) {
		t.Errorf("another group: %v", err)
	}
}

func TestOwnersThatClaimAtOnceAreDecidedByTheStore(t *testing.T) {
	for name, taken := range map[string]bool{"nobody's": false, "taken over": true} {
		t.Run(name, func(t *testing.T) {
			s := faultstore.Wrap(checkpoint.NewMem())
			old := checkpoint.Owner{Group: "old", Cluster: "here"}
			if taken {
				if err := checkpoint.ClaimOwner(t.Context(), s, app, old); err != nil {
					t.Fatal(err)
				}
			}
			faster := func(o checkpoint.Owner) {
				s.Before(func(c ctx.Context, op faultstore.Op, _ string) error {
					if op == faultstore.Put {
						s.Before(nil)
						return checkpoint.ClaimOwner(c, s.Store, app, o, old)
					}
					return nil
				})
			}
			faster(there)
			var owner *checkpoint.OwnerError
			if err := checkpoint.ClaimOwner(t.Context(), s, app, here, old); !errors.As(err, &owner) || owner.Got != there {
				t.Errorf("the slower one: %v", err)
			}
			old = there
			faster(here) // another instance of the same app
			if err := checkpoint.ClaimOwner(t.Context(), s, app, here, old); err != nil {
				t.Errorf("the slower of one owner: %v", err)
			}
			if n := len(names(t, s.Store)); n != 2 && !taken || n != 3 && taken {
				t.Errorf("the store has %v", names(t, s.Store))
			}
		})
	}
}

// A process dies before or after it put an object, never in the midst.
func TestAClaimThatIsCutShortIsFinishedByTheNext(t *testing.T) {
	s := faultstore.Wrap(checkpoint.NewMem())
	claims := func(o checkpoint.Owner, from ...checkpoint.Owner) {
		for _, set := range []func(faultstore.Hook){s.Before, s.After} {
			set(func(_ ctx.Context, op faultstore.Op, _ string) error {
				if op == faultstore.Put {
					return errors.New("cut short")
				}
				return nil
			})
			if err := checkpoint.ClaimOwner(t.Context(), s, app, o, from...); err == nil {
				t.Errorf("%s: the claim was not cut short", o)
			}
			set(nil)
		}
		if err := checkpoint.ClaimOwner(t.Context(), s, app, o, from...); err != nil {
			t.Errorf("%s: %v", o, err)
		}
	}
	claims(here)
	claims(there, here)
	if got := names(t, s.Store); !slices.Equal(got, []string{"owner/0000000000000001.json", "owner/0000000000000002.json"}) {
		t.Errorf("the store has %v", got)
	}
}

func TestAnOwnerThatCannotBeReadIsNotGuessed(t *testing.T) {
	for _, text := range []string{"", "{", `{"version": 1}`, `{"version": 2, "group": "counters"}`} {
		s := checkpoint.NewMem()
		if err := s.Put(t.Context(), "owner/0000000000000001.json", []byte(text)); err != nil {
			t.Fatal(err)
		}
		var (
			damaged *checkpoint.DamagedError
			version *checkpoint.VersionError
		)
		for _, err := range []error{checkpoint.ClaimOwner(t.Context(), s, app, here), checkpoint.CheckOwner(t.Context(), s, app, here)} {
			if !errors.As(err, &damaged) && !errors.As(err, &version) || !strings.Contains(err.Error(), "owner/0000000000000001.json") {
				t.Errorf("%q: %v", text, err)
			}
		}
	}
}

// TestStoreOfAnOlderBuildGetsAnOwner claims a store that was written before there were owners,
// and compares with what this build wrote first.
func TestStoreOfAnOlderBuildGetsAnOwner(t *testing.T) {
	const golden = "testdata/store-owner"
	dir := t.TempDir()
	if err := os.CopyFS(dir, os.DirFS("testdata/store-v2")); err != nil {
		t.Fatal(err)
	}
	var ref offsets.ManifestRef
	d := readGolden(t, dir, &ref)
	if err := checkpoint.Claim(t.Context(), d, app, keyGroups); err != nil {
		t.Fatal(err)
	}
	claim := func(s checkpoint.Store) {
		t.Helper()
		if err := errors.Join(checkpoint.ClaimOwner(t.Context(), s, app, here), checkpoint.ClaimOwner(t.Context(), s, app, there, here)); err != nil {
			t.Fatal(err)
		}
	}
	claim(d)
	if _, err := checkpoint.Load(t.Context(), d, ref); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(golden); errors.Is(err, os.ErrNotExist) && *update {
		g, err := checkpoint.OpenDir(golden)
		if err != nil {
			t.Fatal(err)
		}
		claim(g)
	}
	g, err := checkpoint.OpenDir(golden)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"owner/0000000000000001.json", "owner/0000000000000002.json"} {
		want, err := g.Get(t.Context(), name)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := d.Get(t.Context(), name); err != nil || string(got) != string(want) {
			t.Errorf("%s is %s, %v, want %s", name, got, err, want)
		}
	}
	var owner *checkpoint.OwnerError
	if err := checkpoint.CheckOwner(t.Context(), g, app, here); !errors.As(err, &owner) || owner.Got != there {
		t.Errorf("golden owner: %v", err)
	}
}

func TestOwnersAreWrittenAsTheyAreParsed(t *testing.T) {
	for _, o := range []checkpoint.Owner{here, {Group: "a@b", Cluster: "c"}, {Group: "counters"}} {
		if got, err := checkpoint.ParseOwner(o.String()); err != nil || got != o {
			t.Errorf("%s is parsed as %+v, %v", o, got, err)
		}
	}
	for _, s := range []string{"", "counters", "@here"} {
		if o, err := checkpoint.ParseOwner(s); err == nil || !strings.Contains(err.Error(), "want group@cluster") {
			t.Errorf("%q is parsed as %+v, %v", s, o, err)
		}
	}
}
