package conformance

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
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
	// Reopen returns the store at the place of s as another process opens it. Nil: what
	// several processes rely on is not checked.
	Reopen func(t testing.TB, s checkpoint.Store) checkpoint.Store
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
		{"OnePutOfANameWins", func(t testing.TB, s checkpoint.Store) { race(t, s) }},
		{"PutsOfDifferentNamesAtOnce", parallel},
		{"AllOperationsAtOnce", mixed},
		{"APartOfAnObjectIsNeverSeen", whole},
		{"DataIsNotShared", sharing},
		{"RangesAreOfTheObject", ranges},
		{"WhatIsMissingIsNotFound", missing},
		{"NamesAreTakenAsTheyAre", oddNames},
		{"ListIsByNameAndByPrefix", list},
		{"AListOfManyObjectsIsComplete", many},
		{"DeleteTakesWhatIsThereAndWhatIsNot", deletes},
		{"NamesOutsideTheStoreAreRefused", badNames},
		{"NothingHappensOnceTheContextIsDone", doneContext},
		{"ProbeAndClaimWork", probe},
		{"ErrorsNameTheOperationObjectAndTheStore", described},
	} {
		rules = append(rules, rule{r.name, func(t testing.TB) { r.test(t, s.Open(t)) }})
	}
	if s.Reopen != nil {
		two := func(test func(t testing.TB, one, other checkpoint.Store)) func(t testing.TB) {
			return func(t testing.TB) {
				one := s.Open(t)
				test(t, one, s.Reopen(t, one))
			}
		}
		rules = append(rules, rule{"AnotherProcessFindsWhatIsThere", two(shared)},
			rule{"OnePutOfANameWinsAmongProcesses", two(func(t testing.TB, one, other checkpoint.Store) { race(t, one, other) })})
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
			t.Errorf("put %q under a name that is taken: %v, want an error that wraps checkpoint.ErrExists", data, err)
		}
	}
	has(t, s, "a/one", "hello")
}

// races is how often it is tried whether two writers believe that a name is theirs.
const races = 10

// race puts names through all of the stores, which are at one place.
func race(t testing.TB, stores ...checkpoint.Store) {
	for i := range races {
		name := fmt.Sprint("marker/", i)
		var won atomic.Int32
		var winner atomic.Value
		var wg sync.WaitGroup
		begin := make(chan struct{})
		for j := range 16 {
			wg.Go(func() {
				data := fmt.Sprint("writer ", j)
				<-begin
				switch err := stores[j%len(stores)].Put(t.Context(), name, []byte(data)); {
				case err == nil:
					won.Add(1)
					winner.Store(data)
				case !errors.Is(err, checkpoint.ErrExists):
					t.Errorf("put of a name that others put at once: %v, want an error that wraps checkpoint.ErrExists", err)
				}
			})
		}
		close(begin)
		wg.Wait()
		for _, s := range stores {
			if b, _ := s.Get(t.Context(), name); won.Load() != 1 || string(b) != winner.Load() {
				t.Errorf("%d of 16 puts of one name at once succeeded, want one; the object is of %q", won.Load(), b)
				return
			}
		}
	}
}

func shared(t testing.TB, one, other checkpoint.Store) {
	put(t, one, "a/one", "1")
	has(t, other, "a/one", "1")
	put(t, other, "a/two", "2")
	has(t, one, "a/two", "2")
	for _, s := range []checkpoint.Store{one, other} {
		if got := names(t, s, "a/"); got != "a/one a/two" {
			t.Errorf("two processes put a/one and a/two, and one of them finds %s", got)
		}
	}
	if err := other.Put(t.Context(), "a/one", []byte("other")); !errors.Is(err, checkpoint.ErrExists) {
		t.Errorf("put what another process has put: %v", err)
	}
	has(t, one, "a/one", "1")
	if err := other.Delete(t.Context(), "a/one"); err != nil {
		t.Error(err)
	}
	if got := names(t, one, ""); got != "a/two" {
		t.Errorf("after the delete of another process there are %s", got)
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

func mixed(t testing.TB, s checkpoint.Store) {
	put(t, s, "of/there", "hello") // servers that make directories of names never find of/ empty
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 4 {
				name := fmt.Sprintf("of/%d/%d", i, j)
				if err := s.Put(t.Context(), name, []byte(name)); err != nil {
					t.Errorf("put beside other operations: %v", err)
				}
				if b, err := s.Get(t.Context(), name); err != nil || string(b) != name {
					t.Errorf("get beside other operations: %.40q, %v; want %q", b, err, name)
				}
				if b, err := s.GetRange(t.Context(), "of/there", 1, 3); err != nil || string(b) != "ell" {
					t.Errorf("get range beside other operations: %.40q, %v", b, err)
				}
				n := 0
				for o, err := range s.List(t.Context(), fmt.Sprintf("of/%d/", i)) {
					if err != nil || o.Name != name {
						t.Errorf("list beside other operations: %s, %v; want %s", o.Name, err, name)
					}
					n++
				}
				if n != 1 {
					t.Errorf("list beside other operations has %d objects, want that which was just put", n)
				}
				if err := s.Delete(t.Context(), name); err != nil {
					t.Errorf("delete beside other operations: %v", err)
				}
			}
		})
	}
	wg.Wait()
	if got := names(t, s, ""); got != "of/there" {
		t.Errorf("after operations at once there are %s", got)
	}
}

func whole(t testing.TB, s checkpoint.Store) {
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<20/16)
	// look finds all of the object, or nothing.
	look := func(name string) (found bool) {
		b, err := s.Get(t.Context(), name)
		if found = err == nil; found && !bytes.Equal(b, data) {
			t.Errorf("get gives %d bytes of an object that is put with %d", len(b), len(data))
		} else if !found && !errors.Is(err, checkpoint.ErrNotFound) {
			t.Error(err)
		}
		for o, err := range s.List(t.Context(), name) {
			if err != nil {
				t.Error(err)
			} else if o.Name == name && o.Size != int64(len(data)) {
				t.Errorf("list has %d bytes of an object that is put with %d", o.Size, len(data))
			}
		}
		return found
	}
	for i := range 4 {
		name := fmt.Sprint("looked-at/", i)
		var err error
		put := make(chan struct{})
		go func() {
			defer close(put)
			err = s.Put(t.Context(), name, data)
		}()
		for done := false; !done; {
			select {
			case <-put:
				done = true
			default:
			}
			look(name)
		}
		if err != nil || !look(name) {
			t.Errorf("the object is not there after Put, %v", err)
		}
	}
	for i := range 8 {
		name := fmt.Sprint("broken-off/", i)
		ctx, cancel := context.WithCancel(t.Context())
		go cancel()
		if err := s.Put(ctx, name, data); !look(name) && err == nil {
			t.Error("the object is not there, and Put, whose context ended meanwhile, returned nil")
		}
		cancel()
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
			t.Errorf("get range of %s, %d bytes from %d: %q, %v; want %q", r.name, r.n, r.off, b, err, r.want)
		}
	}
	for _, r := range [][2]int64{{3, 3}, {5, 1}, {6, 0}, {6, 1}, {100, 5}, {-1, 2}, {0, -1}, {0, 1<<63 - 1}, {1, 1<<63 - 1}, {1<<63 - 1, 1<<63 - 1}} {
		for _, name := range []string{"a/one", "empty"} {
			if b, err := s.GetRange(t.Context(), name, r[0], r[1]); !errors.Is(err, io.ErrUnexpectedEOF) {
				t.Errorf("get range of %s, %d bytes from %d, which it does not have: %q, %v; want an error that wraps io.ErrUnexpectedEOF", name, r[1], r[0], b, err)
			}
		}
	}
}

func missing(t testing.TB, s checkpoint.Store) {
	put(t, s, "dir/x", "x")
	for _, name := range []string{"a", "dir/y", "dir/x2"} {
		_, get := s.Get(t.Context(), name)
		_, one := s.GetRange(t.Context(), name, 0, 1)
		_, none := s.GetRange(t.Context(), name, 0, 0)
		for op, err := range map[string]error{"get": get, "get range": one, "get range, of no bytes,": none} {
			if !errors.Is(err, checkpoint.ErrNotFound) {
				t.Errorf("%s of %s, which is missing: %v, want an error that wraps checkpoint.ErrNotFound", op, name, err)
			}
		}
	}
	// Whether a directory is found out as one is the store's affair.
	if b, err := s.Get(t.Context(), "dir"); err == nil {
		t.Errorf("read a directory: %q", b)
	}
}

func oddNames(t testing.TB, s checkpoint.Store) {
	odd := []string{"A/Two", "a b", "a%20b", "a%2Fb", "a+b", "a&b=c", "a?b", "a#b", "a..b", "~a", "\"a\"", "ä/€"}
	for _, name := range odd {
		put(t, s, name, "it is "+name)
	}
	slices.Sort(odd)
	if got := names(t, s, ""); got != strings.Join(odd, " ") {
		t.Errorf("put were %s, and there are %s", strings.Join(odd, " "), got)
	}
	for _, name := range odd {
		has(t, s, name, "it is "+name)
		if got := names(t, s, name); got != name {
			t.Errorf("list %q: %s", name, got)
		}
		if err := s.Delete(t.Context(), name); err != nil {
			t.Error(err)
		}
	}
	if got := names(t, s, ""); got != "" {
		t.Errorf("after the deletes there are %s", got)
	}
}

// manyObjects is more than services for objects list at once.
const manyObjects = 1001

func many(t testing.TB, s checkpoint.Store) {
	var want []string
	for i := range manyObjects {
		want = append(want, fmt.Sprintf("seg/%04d", i))
	}
	var wg sync.WaitGroup
	for part := range slices.Chunk(want, manyObjects/16+1) {
		wg.Go(func() {
			for _, name := range part {
				if err := s.Put(t.Context(), name, []byte(name)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	wg.Wait()
	if got := strings.Fields(names(t, s, "seg/")); !slices.Equal(got, want) {
		t.Errorf("list has %d of %d objects, or not by name", len(got), len(want))
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
	// Whoever collects garbage goes by the age of objects.
	modified := map[string]time.Time{}
	for range 2 {
		for o, err := range s.List(t.Context(), "") {
			if err != nil || o.Size != int64(len(o.Name)) || time.Since(o.Modified).Abs() > time.Hour {
				t.Errorf("list says %+v, %v", o, err)
			}
			if was, ok := modified[o.Name]; ok && !o.Modified.Equal(was) {
				t.Errorf("%s was modified at %v, and when it is listed again at %v", o.Name, was, o.Modified)
			}
			modified[o.Name] = o.Modified
		}
	}
	for o, err := range s.List(t.Context(), "a/one") {
		if err != nil || o.Name != "a/one" {
			t.Errorf("list says %+v, %v", o, err)
		}
		break
	}
}

func deletes(t testing.TB, s checkpoint.Store) {
	put(t, s, "a/one", "1")
	put(t, s, "a/two", "2")
	if err := errors.Join(s.Delete(t.Context(), "a/one"), s.Delete(t.Context(), "a/one"), s.Delete(t.Context(), "none/at/all")); err != nil {
		t.Errorf("delete, of what is there and of what is not: %v", err)
	}
	if _, err := s.Get(t.Context(), "a/one"); !errors.Is(err, checkpoint.ErrNotFound) {
		t.Errorf("get of what was deleted: %v, want an error that wraps checkpoint.ErrNotFound", err)
	}
	if got := names(t, s, ""); got != "a/two" {
		t.Errorf("after the delete there are %s", got)
	}
	put(t, s, "a/one", "again")
	has(t, s, "a/one", "again")
}

func badNames(t testing.TB, s checkpoint.Store) {
	for _, bad := range []string{"", ".", "../x", "/x", "a//b", "a/../b", ".x", "a/.tmp-1", "x/"} {
		_, get := s.Get(t.Context(), bad)
		_, part := s.GetRange(t.Context(), bad, 0, 1)
		for op, err := range map[string]error{"put": s.Put(t.Context(), bad, nil), "get": get, "get range": part} {
			if err == nil {
				t.Errorf("%s takes the name %q: see checkpoint.ValidName", op, bad)
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
	errs := map[string]error{"put": s.Put(ctx, "late", nil), "get": get, "get range": getRange, "delete": s.Delete(ctx, "there")}
	yields := 0
	for _, err := range s.List(ctx, "") {
		errs["list"] = err
		yields++
	}
	for op, err := range errs {
		if !errors.Is(err, context.Canceled) {
			t.Errorf("%s with a context that has ended: %v, want an error that wraps context.Canceled", op, err)
		}
	}
	if yields != 1 {
		t.Errorf("list with a context that has ended yields %d times, want once, the error", yields)
	}
	if got := names(t, s, ""); got != "there" {
		t.Errorf("after operations with a context that has ended there are %s, want those before", got)
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
	done, cancel := context.WithCancel(t.Context())
	cancel()
	var listed error
	for _, err := range s.List(done, "tak") {
		listed = err
	}
	for want, err := range map[[2]string]error{
		{"put", "taken"}:       s.Put(t.Context(), "taken", bytes.Repeat([]byte{1}, 3)),
		{"get", "none"}:        get,
		{"get range", "taken"}: short,
		{"put", "bad//name"}:   s.Put(t.Context(), "bad//name", nil),
		{"delete", "taken"}:    s.Delete(done, "taken"),
		{"list", "tak"}:        listed,
	} {
		var se *checkpoint.StoreError
		if !errors.As(err, &se) || se.Op != want[0] || se.Object != want[1] || se.Store != s.String() {
			t.Errorf("%v: the error is %v", want, err)
		}
	}
}
