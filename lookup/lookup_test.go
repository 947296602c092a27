package lookup_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/weirstream/weir/lookup"
	"github.com/weirstream/weir/sink"
)

func TestPassingErrorsAreThoseThatATryLaterMayNotHave(t *testing.T) {
	_, refused := net.Dial("tcp", "127.0.0.1:1")
	_, unparsed := url.Parse(strings.Repeat("%zz", 1)) // staticcheck knows that a constant is no URL
	_, missing := os.Open(filepath.Join(t.TempDir(), "none"))
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/closed" {
			panic(http.ErrAbortHandler)
		}
		<-r.Context().Done()
	}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.TLS = &tls.Config{ClientAuth: tls.RequestClientCert}
	server.StartTLS()
	defer server.Close()
	_, untrusted := http.Get(server.URL)
	known := server.Client()
	_, closed := known.Get(server.URL + "/closed")
	known.Timeout = 50 * time.Millisecond
	_, late := known.Get(server.URL)
	_, nobody := http.Get("http://127.0.0.1:1")
	_, scheme := http.Get("none://127.0.0.1:1")
	strict := httptest.NewUnstartedServer(http.NotFoundHandler())
	strict.Config.ErrorLog, strict.TLS = server.Config.ErrorLog, &tls.Config{ClientAuth: tls.RequireAnyClientCert}
	strict.StartTLS()
	defer strict.Close()
	_, anonymous := strict.Client().Get(strict.URL)
	for _, c := range []struct {
		err  error
		want bool
	}{
		{&sink.Retriable{Err: errors.New("busy")}, true},
		{fmt.Errorf("asking: %w", &sink.Retriable{Err: errors.New("busy")}), true},
		{context.DeadlineExceeded, true},
		{os.ErrDeadlineExceeded, true},
		{fmt.Errorf("asking: %w", refused), true},
		{errors.Join(errors.New("asking"), refused), true},
		{&net.OpError{Op: "read", Net: "tcp", Err: os.NewSyscallError("read", syscall.ECONNRESET)}, true},
		{&net.OpError{Op: "read", Net: "tcp", Err: os.ErrDeadlineExceeded}, true},
		{&fs.PathError{Op: "read", Path: "pipe", Err: os.ErrDeadlineExceeded}, true},
		{&net.DNSError{Err: "no such host", Name: "db", IsNotFound: true}, true},
		{nobody, true},
		{closed, true},
		{late, true},
		{&url.Error{Op: "Get", URL: "http://db", Err: context.DeadlineExceeded}, true},
		{unparsed, false},
		{scheme, false},
		{missing, false},
		{syscall.ENOENT, false},
		{untrusted, false},
		{anonymous, false},
		{x509.HostnameError{Certificate: &x509.Certificate{}, Host: "db"}, false},
		{&url.Error{Op: "Get", URL: "http://db", Err: context.Canceled}, false},
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

func TestOptionsHaveUpperBounds(t *testing.T) {
	for want, o := range map[string]lookup.Option{
		"lookup.Waiting(1073741825): want at least 1, and at most 1073741824": lookup.Waiting(1<<30 + 1),
		"lookup.InFlight(1048577): want at least 1, and at most 1048576":      lookup.InFlight(1<<20 + 1),
		"lookup.Cache(2147483648, 1s): want from 1 to 2147483647 entries":     lookup.Cache(math.MaxInt32+1, time.Second),
		"lookup.Waiting(9223372036854775807)":                                 lookup.Waiting(math.MaxInt),
		"lookup.InFlight(9223372036854775807)":                                lookup.InFlight(math.MaxInt),
		"lookup.Cache(9223372036854775807, 1s)":                               lookup.Cache(math.MaxInt, time.Second),
	} {
		if err := lookup.NewSettings([]lookup.Option{o}).Check(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %s", err, want)
		}
	}
	most := []lookup.Option{lookup.Waiting(1 << 30), lookup.InFlight(1 << 20), lookup.Cache(math.MaxInt32, math.MaxInt64), lookup.BatchSize(math.MaxInt), lookup.Timeout(math.MaxInt64), lookup.GiveUpAfter(math.MaxInt64)}
	if err := lookup.NewSettings(most).Check(); err != nil {
		t.Error(err)
	}
}

func TestSettingsSayWhatDiffersFromTheDefaults(t *testing.T) {
	if s := lookup.NewSettings(nil).String(); s != "" {
		t.Errorf("the defaults are %q", s)
	}
	s := lookup.NewSettings([]lookup.Option{lookup.Cache(10, time.Minute), lookup.BatchSize(5), lookup.InFlight(2), lookup.Waiting(7), lookup.Timeout(time.Second), lookup.GiveUpAfter(0)})
	if want := "10 cached for 1m0s, batches of 5, 2 in flight, 7 waiting, timeout 1s, given up after 0s"; s.String() != want {
		t.Errorf("got %q, want %q", s, want)
	}
}
