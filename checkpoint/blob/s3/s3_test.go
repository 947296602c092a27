package s3_test

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	_ "github.com/weirstream/weir/checkpoint/blob/s3"
	"github.com/weirstream/weir/internal/s3server"
	"github.com/weirstream/weir/weirtest/conformance"
)

func TestMain(m *testing.M) {
	code := m.Run()
	s3server.Remove()
	os.Exit(code)
}

func open(t testing.TB, url string) checkpoint.Store {
	t.Helper()
	s, err := checkpoint.OpenStore(url)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func TestStoreContract(t *testing.T) {
	server := s3server.Start(t)
	n := 0
	url := func() string { return server.URL(fmt.Sprintf("contract-%d", n)) }
	conformance.Store{
		Open: func(t testing.TB) checkpoint.Store {
			n++
			return open(t, url())
		},
		Reopen: func(t testing.TB, _ checkpoint.Store) checkpoint.Store { return open(t, url()) },
	}.Run(t)
}

func TestStoreContractWithoutConditionalWrites(t *testing.T) {
	server := s3server.Start(t)
	n := 0
	conformance.Store{Open: func(t testing.TB) checkpoint.Store {
		n++
		return open(t, server.URL(fmt.Sprintf("contract-%d", n))+"&conditional_writes=false")
	}}.Run(t)
}

func TestStoresOfDifferentPrefixesShareNothing(t *testing.T) {
	server := s3server.Start(t)
	a, b, all := open(t, server.URL("a")), open(t, server.URL("ab")), open(t, server.URL(""))
	if err := errors.Join(a.Put(t.Context(), "x", []byte("1")), b.Put(t.Context(), "x", []byte("2"))); err != nil {
		t.Fatal(err)
	}
	for s, want := range map[checkpoint.Store]string{a: "x", b: "x", all: "a/x ab/x"} {
		if got := strings.Join(list(t, s), " "); got != want {
			t.Errorf("%s holds %s, want %s", s, got, want)
		}
	}
}

func list(t *testing.T, s checkpoint.Store) []string {
	t.Helper()
	var names []string
	for o, err := range s.List(t.Context(), "") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, o.Name)
	}
	return names
}

func TestListOfMoreThanAPage(t *testing.T) {
	server := s3server.Start(t)
	s := open(t, server.URL("many"))
	const n = 1100 // a page is 1000
	var wg sync.WaitGroup
	next := make(chan int)
	for range 8 {
		wg.Go(func() {
			for i := range next {
				if err := s.Put(t.Context(), fmt.Sprintf("seg/%04d", i), nil); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		next <- i
	}
	close(next)
	wg.Wait()
	got := list(t, s)
	if len(got) != n {
		t.Fatalf("%d objects are listed, want %d", len(got), n)
	}
	for i, name := range got {
		if want := fmt.Sprintf("seg/%04d", i); name != want {
			t.Fatalf("object %d is %s, want %s", i, name, want)
		}
	}
}

// large is more than an upload in one request takes.
func large() []byte {
	b := make([]byte, 21<<20+12345)
	_, _ = rand.Read(b) // never fails
	return b
}

func TestLargeObjectGoesInParts(t *testing.T) {
	server := s3server.Start(t)
	p := startProxy(t, server.Addr)
	var parts atomic.Int32
	p.set(func(r *http.Request) fault {
		if r.Method == http.MethodPut && r.URL.Query().Has("partNumber") {
			parts.Add(1)
		}
		return pass
	})
	s := open(t, p.url("large")+"&part_size=5242880")
	data := large()
	if err := s.Put(t.Context(), "seg/large", data); err != nil {
		t.Fatal(err)
	}
	if parts.Load() != 5 {
		t.Errorf("it went in %d parts, want 5", parts.Load())
	}
	if b, err := s.Get(t.Context(), "seg/large"); err != nil || !bytes.Equal(b, data) {
		t.Errorf("got %d bytes, %v", len(b), err)
	}
	const off = 5<<20 - 3 // over the end of a part
	if b, err := s.GetRange(t.Context(), "seg/large", off, 10); err != nil || !bytes.Equal(b, data[off:off+10]) {
		t.Errorf("got % x, %v", b, err)
	}
	if err := s.Put(t.Context(), "seg/large", large()); !errors.Is(err, checkpoint.ErrExists) {
		t.Errorf("put again: %v", err)
	}
	if b, err := s.Get(t.Context(), "seg/large"); err != nil || !bytes.Equal(b, data) {
		t.Errorf("after that: got %d bytes, %v", len(b), err)
	}
}

func TestOfLargePutsOfANameOneWins(t *testing.T) {
	server := s3server.Start(t)
	var won atomic.Int32
	var winner atomic.Pointer[[]byte]
	var wg sync.WaitGroup
	for range 3 {
		s := open(t, server.URL("race")) // as different processes
		wg.Go(func() {
			data := large()
			switch err := s.Put(t.Context(), "seg/large", data); {
			case err == nil:
				won.Add(1)
				winner.Store(&data)
			case !errors.Is(err, checkpoint.ErrExists):
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if won.Load() != 1 {
		t.Fatalf("%d won", won.Load())
	}
	if b, err := open(t, server.URL("race")).Get(t.Context(), "seg/large"); err != nil || !bytes.Equal(b, *winner.Load()) {
		t.Errorf("the object is not the winner's: %d bytes, %v", len(b), err)
	}
}

func TestServerKilledInMidPut(t *testing.T) {
	for name, data := range map[string][]byte{"one request": bytes.Repeat([]byte("x"), 4<<20), "parts": large()} {
		t.Run(name, func(t *testing.T) {
			server := s3server.Start(t)
			p := startProxy(t, server.Addr)
			s := open(t, p.url("killed"))
			if err := checkpoint.Probe(t.Context(), s); err != nil {
				t.Fatal(err)
			}
			killed := make(chan struct{})
			var once sync.Once
			p.set(func(r *http.Request) fault {
				if r.Method != http.MethodPut {
					return pass
				}
				return fault{half: func() {
					once.Do(func() {
						server.Kill()
						close(killed)
					})
				}}
			})
			done := make(chan error, 1)
			go func() { done <- s.Put(t.Context(), "seg/x", data) }()
			<-killed
			// Another process looks while nobody but the server's successor serves.
			p.set(nil)
			server.Restart(t)
			other := open(t, server.URL("killed"))
			if b, err := other.Get(t.Context(), "seg/x"); !errors.Is(err, checkpoint.ErrNotFound) && (err != nil || !bytes.Equal(b, data)) {
				t.Errorf("a part is visible: %d of %d bytes, %v", len(b), len(data), err)
			}
			if err := <-done; err != nil {
				t.Fatalf("the put was not tried again: %v", err)
			}
			if b, err := other.Get(t.Context(), "seg/x"); err != nil || !bytes.Equal(b, data) {
				t.Errorf("got %d bytes, %v", len(b), err)
			}
		})
	}
}

func TestServerThatStaysDownEndsWithTheContext(t *testing.T) {
	server := s3server.Start(t)
	s := open(t, server.URL("down"))
	server.Kill()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	err := s.Put(ctx, "a", []byte("x"))
	if !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "connection refused") {
		t.Fatalf("put: %v", err)
	}
	server.Restart(t)
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, checkpoint.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if err := s.Put(t.Context(), "a", []byte("x")); err != nil {
		t.Errorf("put again: %v", err)
	}
}

func TestFaultsOfTheNetworkAreOvercome(t *testing.T) {
	server := s3server.Start(t)
	for name, f := range map[string]fault{
		"503":             {status: http.StatusServiceUnavailable},
		"500":             {status: http.StatusInternalServerError},
		"429":             {status: http.StatusTooManyRequests},
		"cut before":      {cut: true},
		"response lost":   {lost: true},
		"response broken": {broken: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProxy(t, server.Addr)
			// Directly in the bucket: a put fails now and then (409, ExistingObjectIsDirectory) while the
			// server removes a directory above it that a delete has left empty.
			s := open(t, p.url("faults-"+strings.ReplaceAll(name, " ", "-")))
			// More than the SDK tries by itself.
			arm := func() {
				var n atomic.Int32
				p.set(func(*http.Request) fault {
					if n.Add(1) <= 4 {
						return f
					}
					return pass
				})
			}
			data := bytes.Repeat([]byte("0123456789"), 20000)
			arm()
			if err := s.Put(t.Context(), "seg/a", data); err != nil {
				t.Fatal(err)
			}
			arm()
			if b, err := s.Get(t.Context(), "seg/a"); err != nil || !bytes.Equal(b, data) {
				t.Errorf("get: %d bytes, %v", len(b), err)
			}
			arm()
			if b, err := s.GetRange(t.Context(), "seg/a", 7, 100); err != nil || !bytes.Equal(b, data[7:107]) {
				t.Errorf("get range: %q, %v", b, err)
			}
			arm()
			if got := list(t, s); len(got) != 1 {
				t.Errorf("list: %v", got)
			}
			arm()
			if err := s.Delete(t.Context(), "seg/a"); err != nil {
				t.Errorf("delete: %v", err)
			}
			p.set(nil)
			if _, err := s.Get(t.Context(), "seg/a"); !errors.Is(err, checkpoint.ErrNotFound) {
				t.Errorf("after the delete: %v", err)
			}
		})
	}
}

func TestLostResponseToTheEndOfAnUploadInParts(t *testing.T) {
	server := s3server.Start(t)
	p := startProxy(t, server.Addr)
	s := open(t, p.url("lost"))
	var lost atomic.Int32
	p.set(func(r *http.Request) fault {
		if r.Method == http.MethodPost && r.URL.Query().Has("uploadId") && lost.Add(1) == 1 {
			return fault{lost: true}
		}
		return pass
	})
	data := large()
	if err := s.Put(t.Context(), "seg/x", data); err != nil || lost.Load() == 0 {
		t.Fatalf("put: %v, %d responses lost", err, lost.Load())
	}
	if b, err := s.Get(t.Context(), "seg/x"); err != nil || !bytes.Equal(b, data) {
		t.Errorf("got %d bytes, %v", len(b), err)
	}
}

func TestUploadWhoseTimeIsOverLeavesNoParts(t *testing.T) {
	server := s3server.Start(t)
	p := startProxy(t, server.Addr)
	s := open(t, p.url("late"))
	ctx, cancel := context.WithCancel(t.Context())
	var aborted atomic.Int32
	p.set(func(r *http.Request) fault {
		if r.Method == http.MethodPut && r.URL.Query().Get("partNumber") == "2" {
			cancel()
		}
		if r.Method == http.MethodDelete && r.URL.Query().Has("uploadId") {
			aborted.Add(1)
		}
		return pass
	})
	if err := s.Put(ctx, "seg/x", large()); !errors.Is(err, context.Canceled) || aborted.Load() < 1 {
		t.Errorf("the parts were removed %d times; put: %v", aborted.Load(), err)
	}
}

func TestDamageOnTheWayIsFoundByTheChecksum(t *testing.T) {
	server := s3server.Start(t)
	p := startProxy(t, server.Addr)
	s := open(t, p.url("damage"))
	data := bytes.Repeat([]byte("0123456789"), 1000)
	var flipped atomic.Int32
	p.set(func(r *http.Request) fault {
		if r.Method == http.MethodGet && flipped.Add(1) == 1 {
			return fault{flip: true}
		}
		return pass
	})
	if err := s.Put(t.Context(), "seg/x", data); err != nil {
		t.Fatal(err)
	}
	if b, err := s.Get(t.Context(), "seg/x"); err != nil || !bytes.Equal(b, data) || flipped.Load() < 2 {
		t.Errorf("got %d bytes, equal %v, %v, after %d requests", len(b), bytes.Equal(b, data), err, flipped.Load())
	}
}

func TestMistakesAreNamedWithARemedy(t *testing.T) {
	server := s3server.Start(t)
	probe := func(url string) error { return checkpoint.Probe(t.Context(), open(t, url)) }
	check := func(err error, want ...string) {
		t.Helper()
		for _, w := range want {
			if err == nil || !strings.Contains(err.Error(), w) {
				t.Errorf("the error is %v, want it to say %s", err, w)
			}
		}
		if err != nil && (strings.Contains(err.Error(), s3server.SecretKey) || strings.Contains(err.Error(), "\n")) {
			t.Errorf("the error is %v", err)
		}
	}
	nowhere := s3server.URL(server.Addr, "nowhere", "x")
	check(probe(nowhere), "NoSuchBucket", "create the bucket", "s3://nowhere/x?endpoint=http://"+server.Addr)
	_, err := open(t, nowhere).Get(t.Context(), "a")
	check(err, "create the bucket")
	if errors.Is(err, checkpoint.ErrNotFound) {
		t.Error("an object in no bucket is said to be missing")
	}
	for _, err := range open(t, nowhere).List(t.Context(), "") {
		check(err, "create the bucket")
	}
	t.Setenv("AWS_SECRET_ACCESS_KEY", "wrong")
	check(probe(server.URL("x")), "SignatureDoesNotMatch", "credentials come from AWS_ACCESS_KEY_ID")
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	check(probe(server.URL("x")), "credentials come from AWS_ACCESS_KEY_ID")
	_, err = checkpoint.OpenStore(server.URL("x") + "&colour=red&secret_key=hush")
	check(err, "unknown query parameter")
	if strings.Contains(err.Error(), "hush") {
		t.Errorf("the error is %v", err)
	}
}

// endpoint gives out credentials, as that of a machine's role does.
func endpoint(t *testing.T, status int) *atomic.Int32 {
	var now atomic.Int32
	now.Store(int32(status))
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if status := int(now.Load()); status != http.StatusOK {
			w.WriteHeader(status)
			return
		}
		fmt.Fprintf(w, `{"AccessKeyId": %q, "SecretAccessKey": %q}`, s3server.AccessKey, s3server.SecretKey)
	}))
	t.Cleanup(server.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	t.Setenv("AWS_CONTAINER_CREDENTIALS_FULL_URI", server.URL+"/role")
	return &now
}

func TestWithoutCredentialsNothingIsSaidOfObjects(t *testing.T) {
	server := s3server.Start(t)
	if err := open(t, server.URL("x")).Put(t.Context(), "a", []byte("x")); err != nil {
		t.Fatal(err)
	}
	status := endpoint(t, 404) // there is no role
	s := open(t, server.URL("x"))
	_, get := s.Get(t.Context(), "a")
	for i, err := range []error{get, s.Delete(t.Context(), "a"), s.Put(t.Context(), "b", nil)} {
		if err == nil || errors.Is(err, checkpoint.ErrNotFound) || !strings.Contains(err.Error(), "credentials come from AWS_ACCESS_KEY_ID") {
			t.Errorf("operation %d: %v", i, err)
		}
	}
	status.Store(200)
	if b, err := s.Get(t.Context(), "a"); string(b) != "x" || err != nil {
		t.Errorf("with credentials: %q, %v", b, err)
	}
}

// fault is what the proxy does to a request.
type fault struct {
	status int    // answer with it
	cut    bool   // close the connection
	lost   bool   // forward the request, then close the connection
	broken bool   // forward the request, and half of the answer
	flip   bool   // flip a bit of the answer's body
	half   func() // forward half of the body, call it, then close the connection
}

var pass = fault{}

// proxy stands between a store and the server.
type proxy struct {
	addr   string
	target string
	mu     sync.Mutex
	ask    func(*http.Request) fault
}

func startProxy(t *testing.T, target string) *proxy {
	p := &proxy{target: target}
	server := httptest.NewServer(p)
	t.Cleanup(server.Close)
	p.addr = strings.TrimPrefix(server.URL, "http://")
	return p
}

func (p *proxy) url(prefix string) string { return s3server.URL(p.addr, s3server.Bucket, prefix) }

// set says which fault a request meets; nil is none.
func (p *proxy) set(ask func(*http.Request) fault) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ask = ask
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	ask := p.ask
	p.mu.Unlock()
	f := pass
	if ask != nil {
		f = ask(r)
	}
	switch {
	case f.status != 0:
		_, _ = io.Copy(io.Discard, r.Body)
		w.WriteHeader(f.status)
	case f.cut:
		closeConn(w)
	case f.lost:
		p.forward(httptest.NewRecorder(), r)
		closeConn(w)
	case f.broken:
		answer := httptest.NewRecorder()
		p.forward(answer, r)
		half(w, answer)
	case f.flip:
		answer := httptest.NewRecorder()
		p.forward(answer, r)
		answer.Body.Bytes()[answer.Body.Len()/2] ^= 1
		for k, v := range answer.Header() {
			w.Header()[k] = v
		}
		w.WriteHeader(answer.Code)
		_, _ = w.Write(answer.Body.Bytes())
	case f.half != nil:
		p.sendHalf(r)
		f.half()
		closeConn(w)
	default:
		p.forward(w, r)
	}
}

func (p *proxy) forward(w http.ResponseWriter, r *http.Request) {
	(&httputil.ReverseProxy{
		Rewrite: func(pr *httputil.ProxyRequest) {
			pr.SetURL(&url.URL{Scheme: "http", Host: p.target})
			pr.Out.Host = pr.In.Host // it is signed
		},
		// The server is down: so is the connection.
		ErrorHandler: func(w http.ResponseWriter, _ *http.Request, _ error) { closeConn(w) },
	}).ServeHTTP(w, r)
}

// sendHalf sends the request up to the middle of its body and leaves the connection
// open until the test ends.
func (p *proxy) sendHalf(r *http.Request) {
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return
	}
	conn, err := net.Dial("tcp", p.target)
	if err != nil {
		return // it was killed before
	}
	var head bytes.Buffer
	fmt.Fprintf(&head, "%s %s HTTP/1.1\r\nHost: %s\r\nContent-Length: %d\r\n", r.Method, r.URL.RequestURI(), r.Host, len(body))
	_ = r.Header.WriteSubset(&head, map[string]bool{"Content-Length": true, "Host": true})
	head.WriteString("\r\n")
	_, _ = conn.Write(append(head.Bytes(), body[:len(body)/2]...))
	context.AfterFunc(r.Context(), func() { conn.Close() })
}

// half answers with what is promised to be the whole.
func half(w http.ResponseWriter, answer *httptest.ResponseRecorder) {
	for k, v := range answer.Header() {
		w.Header()[k] = v
	}
	w.Header().Set("Content-Length", fmt.Sprint(answer.Body.Len()+1))
	w.WriteHeader(answer.Code)
	_, _ = w.Write(answer.Body.Bytes()[:answer.Body.Len()/2])
	panic(http.ErrAbortHandler)
}

func closeConn(w http.ResponseWriter) {
	if _, ok := w.(http.Hijacker); !ok {
		return // of a recorder
	}
	panic(http.ErrAbortHandler)
}
