package lookup_test

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/sink"
)

func TestPassingErrorsAreThoseThatATryLaterMayNotHave(t *testing.T) {
	_, refused := net.Dial("tcp", "127.0.0.1:1")
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&sink.Retriable{Err: errors.New("busy")}, true},
		{fmt.Errorf("asking: %w", &sink.Retriable{Err: errors.New("busy")}), true},
		{context.DeadlineExceeded, true},
		{os.ErrDeadlineExceeded, true},
		{fmt.Errorf("asking: %w", refused), true},
		{errors.New("who are you?"), false},
		{context.Canceled, false},
		{nil, false},
	} {
		if got := lookup.Passing(c.err); got != c.want {
			t.Errorf("%v: passing %v", c.err, got)
		}
	}
}

func TestDecodeTurnsWhatWasFoundIntoAnotherType(t *testing.T) {
	words := lookup.Each("words", func(_ context.Context, k string) (string, bool, error) {
		if k == "bad" {
			return "", false, errors.New("bad")
		}
		return k, k != "", nil
	})
	numbers := lookup.Decode(words, strconv.Atoi)
	if err := numbers.Check(); err != nil || numbers.String() != "words" {
		t.Errorf("%v: %v", numbers, err)
	}
	c, err := numbers.Open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := c.(lookup.Single); !ok {
		t.Error("what is asked for one key at a time is not any more")
	}
	answers := make([]lookup.Answer[int], 4)
	if err := c.Fetch(t.Context(), []string{"7", "", "bad", "x"}, answers); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, a := range answers {
		got = append(got, fmt.Sprint(a.Value, a.Found, a.Err))
	}
	want := []string{"7 true <nil>", "0 false <nil>", "0 false bad", `0 true decoding what was found: strconv.Atoi: parsing "x": invalid syntax`}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}

	failing := lookup.Decode(lookup.Batch("nobody", func(context.Context, []string, []lookup.Answer[string]) error { return errors.New("nobody is there") }), strconv.Atoi)
	if c, err = failing.Open(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, ok := c.(lookup.Single); ok {
		t.Error("what is asked for many keys at once is not any more")
	}
	if err := c.Fetch(t.Context(), []string{"7"}, make([]lookup.Answer[int], 1)); err == nil || !strings.Contains(err.Error(), "nobody is there") {
		t.Errorf("got %v", err)
	}
	for _, bad := range []lookup.Source[string, int]{lookup.Decode[string](lookup.Source[string, string](nil), strconv.Atoi), lookup.Decode[string, string, int](words, nil)} {
		if bad.Check() == nil {
			t.Errorf("%v: nothing is wrong with it", bad)
		}
	}
}
