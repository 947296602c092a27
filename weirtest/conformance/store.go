package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
)

// Store checks a [checkpoint.Store].
type Store struct {
	// Open returns a store that is empty and used for one rule.
	Open func(t testing.TB) checkpoint.Store
}

// Run runs the suite, each rule as a subtest.
func (s Store) Run(t *testing.T) { run(t, s.rules()) }

func (s Store) rules() []rule {
	var rules []rule
	for _, r := range []struct {
		name string
		test func(t testing.TB, s checkpoint.Store)
	}{
		{"AnObjectIsReadAsItWasPut", objects},
		{"AnObjectIsNeverOverwritten", overwrite},
		{"OnePutOfANameWins", race},
		{"PutsOfDifferentNamesAtOnce", parallel},
		{"DataIsNotShared", sharing},
		{"RangesAreOfTheObject", ranges},
		{"WhatIsMissingIsNotFound", missing},
		{"ListIsByNameAndByPrefix", list},
		{"DeleteTakesWhatIsThereAndWhatIsNot", deletes},
		{"NamesOutsideTheStoreAreRefused", badNames},
		{"NothingHappensOnceTheContextIsDone", doneContext},
		{"ProbeAndClaimWork", probe},
		{"ErrorsNameTheOperationObjectAndTheStore", described},
	} {
		rules = append(rules, rule{r.name, func(t testing.TB) { r.test(t, s.Open(t)) }})
	}
	return rules
}

func put(t testing.TB, s checkpoint.Store, name, data string) {
	t.Helper()
	if err := s.Put(t.Context(), name, []byte(data)); err != nil {
		t.Fatal(err)
	}
}

func has(t testing.TB, s checkpoint.Store, name, want string) {
	t.Helper()
	if b, err := s.Get(t.Context(), name); err != nil || string(b) != want {
		t.Errorf("get %s: %.40q, %v; want %.40q", name, b, err, want)
	}
}

// names lists a prefix.
func names(t testing.TB, s checkpoint.Store, prefix string) string {
	t.Helper()
	var got []string
	for o, err := range s.List(t.Context(), prefix) {
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, o.Name)
	}
	return strings.Join(got, " ")
}

func objects(t testing.TB, s checkpoint.Store) {
	large := strings.Repeat("0123456789abcdef", 3<<20/16)
	for name, data := range map[string]string{"a": "hello", "empty": "", "deep/er/and-deeper/x_1.sst": "\x00\xff", "large": large} {
		put(t, s, name, data)
		has(t, s, name, data)
	}
}

func overwrite(t testing.TB, s checkpoint.Store) {
	put(t, s, "a/one", "hello")
	for _, data := range []string{"other", "hello", ""} {
		if err := s.Put(t.Context(), "a/one", []byte(data)); !errors.Is(err, checkpoint.ErrExists) {
			t.Errorf("put %q again: %v", data, err)
		}
	}
	has(t, s, "a/one", "hello")
}

func race(t testing.TB, s checkpoint.Store) {
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
}

func parallel(t testing.TB, s checkpoint.Store) {
	var wg sync.WaitGroup
	var want []string
	for i := range 24 {
		name := fmt.Sprintf("seg/%02d", i)
		want = append(want, name)
		wg.Go(func() {
			if err := s.Put(t.Context(), name, []byte(name)); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := names(t, s, ""); got != strings.Join(want, " ") {
		t.Errorf("the objects are %s", got)
	}
	for _, name := range want {
		has(t, s, name, name)
	}
}

func sharing(t testing.TB, s checkpoint.Store) {
	data := []byte("before")
	if err := s.Put(t.Context(), "a", data); err != nil {
		t.Fatal(err)
	}
	copy(data, "after!")
	has(t, s, "a", "before")
	got, _ := s.Get(t.Context(), "a")
	copy(got, "after!")
	part, _ := s.GetRange(t.Context(), "a", 0, 3)
	copy(part, "xxx")
	has(t, s, "a", "before")
}

func ranges(t testing.TB, s checkpoint.Store) {
	put(t, s, "a/one", "hello")
	put(t, s, "empty", "")
	for _, r := range []struct {
		name   string
		off, n int64
		want   string
	}{{"a/one", 1, 3, "ell"}, {"a/one", 0, 5, "hello"}, {"a/one", 4, 1, "o"}, {"a/one", 0, 0, ""}, {"a/one", 5, 0, ""}, {"empty", 0, 0, ""}} {
		if b, err := s.GetRange(t.Context(), r.name, r.off, r.n); err != nil || string(b) != r.want {
			t.Errorf("get range of %s, %d from %d: %q, %v", r.name, r.n, r.off, b, err)
		}
	}
	for _, r := range [][2]int64{{3, 3}, {5, 1}, {6, 0}, {6, 1}, {100, 5}, {-1, 2}, {0, -1}, {0, 1<<63 - 1}, {1, 1<<63 - 1}, {1<<63 - 1, 1<<63 - 1}} {
		for _, name := range []string{"a/one", "empty"} {
			if b, err := s.GetRange(t.Context(), name, r[0], r[1]); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("get range of %s, %d from %d: %q, %v", name, r[1], r[0], b, err)
			}
		}
	}
}

func missing(t testing.TB, s checkpoint.Store) {
	put(t, s, "dir/x", "x")
	for _, name := range []string{"a", "dir/y", "dir/x2"} {
		_, err := s.Get(t.Context(), name)
		_, err2 := s.GetRange(t.Context(), name, 0, 1)
		_, err3 := s.GetRange(t.Context(), name, 0, 0)
		for i, err := range []error{err, err2, err3} {
			if !errors.Is(err, checkpoint.ErrNotFound) {
				t.Errorf("read %s (%d): %v", name, i, err)
			}
		}
	}
	// Whether a directory is found out as one is the store's affair.
	if b, err := s.Get(t.Context(), "dir"); err == nil {
		t.Errorf("read a directory: %q", b)
	}
}

func list(t testing.TB, s checkpoint.Store) {
	for _, name := range []string{"ab", "b/c/d", "a/two", "a-b/x", "a/one", "a/one.more", "a.b"} {
		put(t, s, name, name)
	}
	for prefix, want := range map[string]string{
		"":       "a-b/x a.b a/one a/one.more a/two ab b/c/d",
		"a":      "a-b/x a.b a/one a/one.more a/two ab",
		"a/":     "a/one a/one.more a/two",
		"a/t":    "a/two",
		"b/c/":   "b/c/d",
		"b/c/d":  "b/c/d",
		"none/":  "",
		"a/one/": "",
	} {
		if got := names(t, s, prefix); got != want {
			t.Errorf("list %q: %s, want %s", prefix, got, want)
		}
	}
	for o, err := range s.List(t.Context(), "a/one") {
		if err != nil || o.Name != "a/one" || o.Size != 5 || time.Since(o.Modified).Abs() > time.Hour {
			t.Errorf("list says %+v, %v", o, err)
		}
		break
	}
}

func deletes(t testing.TB, s checkpoint.Store) {
	put(t, s, "a/one", "1")
	put(t, s, "a/two", "2")
	if err := errors.Join(s.Delete(t.Context(), "a/one"), s.Delete(t.Context(), "a/one"), s.Delete(t.Context(), "none/at/all")); err != nil {
		t.Error(err)
	}
	if _, err := s.Get(t.Context(), "a/one"); !errors.Is(err, checkpoint.ErrNotFound) {
		t.Errorf("deleted object: %v", err)
	}
	if got := names(t, s, ""); got != "a/two" {
		t.Errorf("after the delete there are %s", got)
	}
	put(t, s, "a/one", "again")
	has(t, s, "a/one", "again")
}

func badNames(t testing.TB, s checkpoint.Store) {
	for _, bad := range []string{"", ".", "../x", "/x", "a//b", "a/../b", ".x", "a/.tmp-1", "x/"} {
		_, err := s.Get(t.Context(), bad)
		_, err2 := s.GetRange(t.Context(), bad, 0, 1)
		for i, err := range []error{s.Put(t.Context(), bad, nil), err, err2} {
			if err == nil {
				t.Errorf("name %q was taken (%d)", bad, i)
			}
		}
	}
	if got := names(t, s, ""); got != "" {
		t.Errorf("there are %s", got)
	}
}

func doneContext(t testing.TB, s checkpoint.Store) {
	put(t, s, "there", "x")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, get := s.Get(ctx, "there")
	_, getRange := s.GetRange(ctx, "there", 0, 1)
	errs := []error{s.Put(ctx, "late", nil), get, getRange, s.Delete(ctx, "there")}
	for _, err := range s.List(ctx, "") {
		errs = append(errs, err)
	}
	for i, err := range errs {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("operation %d: %v", i, err)
		}
	}
	if len(errs) != 5 {
		t.Errorf("the list yielded %d times", len(errs)-4)
	}
	if got := names(t, s, ""); got != "there" {
		t.Errorf("there are %s", got)
	}
}

func probe(t testing.TB, s checkpoint.Store) {
	if err := checkpoint.Probe(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	if got := names(t, s, ""); got != "" {
		t.Errorf("the probe left %s", got)
	}
	for range 2 {
		if err := checkpoint.Claim(t.Context(), s, "app", 8); err != nil {
			t.Fatal(err)
		}
	}
	var wrong *checkpoint.WrongAppError
	if err := checkpoint.Claim(t.Context(), s, "other", 8); !errors.As(err, &wrong) {
		t.Errorf("another app: %v", err)
	}
}

func described(t testing.TB, s checkpoint.Store) {
	put(t, s, "taken", "x")
	_, get := s.Get(t.Context(), "none")
	_, short := s.GetRange(t.Context(), "taken", 0, 2)
	for want, err := range map[[2]string]error{
		{"put", "taken"}:       s.Put(t.Context(), "taken", bytes.Repeat([]byte{1}, 3)),
		{"get", "none"}:        get,
		{"get range", "taken"}: short,
		{"put", "bad//name"}:   s.Put(t.Context(), "bad//name", nil),
	} {
		var se *checkpoint.StoreError
		if !errors.As(err, &se) || se.Op != want[0] || se.Object != want[1] || se.Store != s.String() {
			t.Errorf("%v: the error is %v", want, err)
		}
	}
}
