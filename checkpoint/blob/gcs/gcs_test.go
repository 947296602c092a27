package gcs_test

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	_ "github.com/weirstream/weir/checkpoint/blob/gcs"
)

func TestURL(t *testing.T) {
	s, err := checkpoint.OpenStore("gs://bucket/a/b?anonymous=true&universe_domain=example.com")
	if err != nil {
		t.Fatal(err)
	}
	if want := "gs://bucket/a/b?anonymous=true&universe_domain=example.com"; s.String() != want {
		t.Errorf("shown as %s, want %s", s, want)
	}
	for url, want := range map[string]string{
		"gs://bucket?anonymous=true&colour=red&token=hush": "colour",
		"gs://bucket?anonymous=true&zonal=true":            "visible before they are complete",
		"gs://id:hush@bucket":                              "GOOGLE_APPLICATION_CREDENTIALS",
		"gs://":                                            "names no bucket",
		"gs://bucket?anonymous=true&private_key_path=/none/at/all": "/none/at/all",
	} {
		if _, err := checkpoint.OpenStore(url); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v, want it to say %s", url, err, want)
		}
	}
}

func TestMissingCredentialsAreNamedWithARemedy(t *testing.T) {
	none := filepath.Join(t.TempDir(), "none.json")
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", none)
	_, err := checkpoint.OpenStore("gs://bucket/x")
	if err == nil || !strings.Contains(err.Error(), none) || !strings.Contains(err.Error(), "gcloud auth application-default login") {
		t.Errorf("the error is %v", err)
	}
	if err := os.WriteFile(none, []byte(`{"type": "service_account", "private_key": "hush"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := checkpoint.OpenStore("gs://bucket/x")
	if err == nil {
		// What is wrong with the key is no fault that passes: nothing is tried again.
		start := time.Now()
		if _, err = s.Get(t.Context(), "a"); time.Since(start) > 10*time.Second {
			t.Errorf("it took %v to say %v", time.Since(start), err)
		}
	}
	if err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("a key that is none: %v", err)
	}
}

// tokens lets answer decide on each request for a token, which has a number from 1 on.
func tokens(t *testing.T, answer func(n int32, w http.ResponseWriter, r *http.Request)) *atomic.Int32 {
	var n atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { answer(n.Add(1), w, r) }))
	t.Cleanup(server.Close)
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := json.Marshal(map[string]string{
		"type": "service_account", "client_email": "weir@example.com", "token_uri": server.URL,
		"private_key": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "credentials.json")
	if err := os.WriteFile(file, b, 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("GOOGLE_APPLICATION_CREDENTIALS", file)
	return &n
}

func TestTokenIsNotWaitedForWithoutTheContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	end := make(chan struct{})
	tokens(t, func(_ int32, _ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		cancel()
		<-end
	})
	t.Cleanup(func() { close(end) }) // before the server waits for it
	s, err := checkpoint.OpenStore("gs://bucket/x")
	if err != nil {
		t.Fatal(err)
	}
	got := make(chan error, 1)
	go func() {
		_, err := s.Get(ctx, "a")
		got <- err
	}()
	select {
	case err := <-got:
		if !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
	case <-time.After(20 * time.Second):
		t.Error("it still waits for a token")
	}
}

func TestTokenThatIsNotGivenForNowIsAskedForAgain(t *testing.T) {
	for _, status := range []int{429, 500, 503} {
		ctx, cancel := context.WithCancel(t.Context())
		n := tokens(t, func(n int32, w http.ResponseWriter, _ *http.Request) {
			if n == 2 {
				cancel()
			}
			w.WriteHeader(status)
		})
		s, err := checkpoint.OpenStore("gs://bucket/x")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put(ctx, "a", []byte("x")); !errors.Is(err, context.Canceled) {
			t.Errorf("%d: put: %v", status, err)
		}
		if n.Load() != 2 {
			t.Errorf("%d: %d requests for a token", status, n.Load())
		}
		cancel()
	}
	for _, status := range []int{400, 401, 404} {
		n := tokens(t, func(_ int32, w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) })
		s, err := checkpoint.OpenStore("gs://bucket/x")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Put(t.Context(), "a", []byte("x")); err == nil || !strings.Contains(err.Error(), "GOOGLE_APPLICATION_CREDENTIALS") || errors.Is(err, checkpoint.ErrNotFound) {
			t.Errorf("%d: put: %v", status, err)
		}
		if n.Load() != 1 {
			t.Errorf("%d: %d requests for a token", status, n.Load())
		}
	}
}

// kept is what is said of objects that a rule keeps.
const kept = "remove the retention rules"

// service answers all requests alike. It returns how many there were.
func service(t *testing.T, status int, body string) *atomic.Int32 {
	var n atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n.Add(1)
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = w.Write([]byte(body))
	}))
	t.Cleanup(server.Close)
	t.Setenv("STORAGE_EMULATOR_HOST", strings.TrimPrefix(server.URL, "http://"))
	return &n
}

func TestAnswersOfTheServiceAreUnderstood(t *testing.T) {
	for name, c := range map[string]struct {
		status int
		body   string
		want   string
	}{
		"no bucket":    {404, `{"error":{"code":404,"message":"The specified bucket does not exist."}}`, "create the bucket"},
		"no right":     {403, `{"error":{"code":403,"message":"no storage.objects.create access"}}`, "rights to get, put, delete and list"},
		"retention":    {403, `{"error":{"code":403,"message":"subject to the bucket's retention policy","errors":[{"reason":"retentionPolicyNotMet"}]}}`, kept},
		"no such user": {401, `{"error":{"code":401,"message":"Invalid Credentials"}}`, "GOOGLE_APPLICATION_CREDENTIALS"},
	} {
		t.Run(name, func(t *testing.T) {
			n := service(t, c.status, c.body)
			s, err := checkpoint.OpenStore("gs://bucket/x")
			if err != nil {
				t.Fatal(err)
			}
			var list error
			for _, err := range s.List(t.Context(), "") {
				list = err
			}
			_, get := s.GetRange(t.Context(), "a", 0, 0)
			for i, err := range []error{s.Put(t.Context(), "a", []byte("x")), list, s.Delete(t.Context(), "a"), get} {
				if err == nil || errors.Is(err, checkpoint.ErrNotFound) || !strings.Contains(err.Error(), c.want) {
					t.Errorf("operation %d: %v, want it to say %s", i, err, c.want)
				}
			}
			requests := int32(4)
			if c.want == kept {
				requests++ // the put looks what is there
			}
			if n.Load() != requests {
				t.Errorf("%d requests", n.Load())
			}
		})
	}
	for name, c := range map[string]struct {
		status int
		body   string
	}{
		"conflict":       {409, `{"error":{"code":409,"message":"The metadata for object \"a\" was edited during the operation. Please try again.","errors":[{"reason":"conflict"}]}}`},
		"session":        {410, `{"error":{"code":410,"message":"Gone"}}`},
		"rate of writes": {429, `{"error":{"code":429,"message":"The object bucket/x/a exceeded the rate limit","errors":[{"reason":"rateLimitExceeded"}]}}`},
		"rate of calls":  {403, `{"error":{"code":403,"message":"Rate Limit Exceeded","errors":[{"reason":"userRateLimitExceeded"}]}}`},
	} {
		var n atomic.Int32
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			if n.Add(1) == 1 {
				w.WriteHeader(c.status)
				_, _ = w.Write([]byte(c.body))
				return
			}
			w.WriteHeader(http.StatusNoContent)
		}))
		t.Setenv("STORAGE_EMULATOR_HOST", strings.TrimPrefix(server.URL, "http://"))
		s, err := checkpoint.OpenStore("gs://bucket/x")
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Delete(t.Context(), "a"); err != nil || n.Load() != 2 {
			t.Errorf("%s: after %d requests: %v", name, n.Load(), err)
		}
		server.Close()
	}
	service(t, 412, `{"error":{"code":412,"message":"conditionNotMet"}}`)
	s, err := checkpoint.OpenStore("gs://bucket/x")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Put(t.Context(), "a", []byte("x")); !errors.Is(err, checkpoint.ErrExists) {
		t.Errorf("put of a name that is taken: %v", err)
	}
	service(t, 404, `{"error":{"code":404,"message":"No such object: bucket/x/a"}}`)
	if s, err = checkpoint.OpenStore("gs://bucket/x"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Get(t.Context(), "a"); !errors.Is(err, checkpoint.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Errorf("delete: %v", err)
	}
}

// held is what a bucket knows of an object, which is sent in one request.
type held struct {
	Name     string            `json:"name"`
	Bucket   string            `json:"bucket"`
	Size     string            `json:"size"`
	Metadata map[string]string `json:"metadata"`
}

// bucket keeps objects as the service does: the first put of a name, if it is told to. With
// lose the answer to the next put, which has its effect, gets lost.
type bucket struct {
	mu      sync.Mutex
	objects map[string]held
	lose    bool
}

func (b *bucket) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	b.mu.Lock()
	defer b.mu.Unlock()
	fail := func(status int, reason string) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"error":{"code":%d,"message":%q,"errors":[{"reason":%[2]q}]}}`, status, reason)
	}
	if r.Method == http.MethodGet {
		o, ok := b.objects[strings.TrimPrefix(r.URL.Path, "/storage/v1/b/bucket/o/")]
		if !ok {
			fail(404, "notFound")
			return
		}
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(o)
		return
	}
	_, params, err := mime.ParseMediaType(r.Header.Get("Content-Type"))
	if err != nil || r.Method != http.MethodPost {
		fail(400, "invalid")
		return
	}
	parts := multipart.NewReader(r.Body, params["boundary"])
	var o held
	var data []byte
	part, err := parts.NextPart()
	if err == nil {
		err = json.NewDecoder(part).Decode(&o)
	}
	if err == nil {
		part, err = parts.NextPart()
	}
	if err == nil {
		data, err = io.ReadAll(part)
	}
	if err != nil {
		fail(400, "invalid")
		return
	}
	o.Size = strconv.Itoa(len(data))
	_, taken := b.objects[o.Name]
	taken = taken && r.URL.Query().Get("ifGenerationMatch") == "0"
	if !taken {
		b.objects[o.Name] = o
	}
	if b.lose {
		b.lose = false
		panic(http.ErrAbortHandler)
	}
	if taken {
		fail(412, "conditionNotMet")
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(o)
}

func TestPutWhoseAnswerIsLostIsToldFromAnotherOne(t *testing.T) {
	b := &bucket{objects: map[string]held{}, lose: true}
	server := httptest.NewServer(b)
	defer server.Close()
	t.Setenv("STORAGE_EMULATOR_HOST", strings.TrimPrefix(server.URL, "http://"))
	s, err := checkpoint.OpenStore("gs://bucket/x")
	if err != nil {
		t.Fatal(err)
	}
	data := bytes.Repeat([]byte("x"), 100)
	if err := s.Put(t.Context(), "a", data); err != nil || b.lose {
		t.Errorf("an answer to lose: %v; %v", b.lose, err)
	}
	b.lose = true
	if err := s.Put(t.Context(), "a", data); !errors.Is(err, checkpoint.ErrExists) || b.lose {
		t.Errorf("another put; an answer to lose: %v; %v", b.lose, err)
	}
	if o := b.objects["x/a"]; o.Size != "100" || len(b.objects) != 1 {
		t.Errorf("the bucket has %v", b.objects)
	}
}

// Who puts an object back from a backup may have the tool compress it.
func TestObjectThatWasStoredCompressedIsNamed(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Goog-Stored-Content-Encoding", "gzip")
		if strings.Contains(r.Header.Get("Accept-Encoding"), "gzip") {
			w.Header().Set("Content-Encoding", "gzip")
			z := gzip.NewWriter(w)
			_, _ = io.WriteString(z, "hello")
			_ = z.Close()
			return
		}
		// The range is passed over.
		w.Header().Set("Warning", "214 UploadServer gunzipped")
		w.Header().Set("Transfer-Encoding", "chunked")
		_, _ = io.WriteString(w, "hello")
	}))
	defer server.Close()
	t.Setenv("STORAGE_EMULATOR_HOST", strings.TrimPrefix(server.URL, "http://"))
	s, err := checkpoint.OpenStore("gs://bucket/x")
	if err != nil {
		t.Fatal(err)
	}
	_, get := s.Get(t.Context(), "a")
	_, getRange := s.GetRange(t.Context(), "a", 1, 3)
	for _, err := range []error{get, getRange} {
		if err == nil || errors.Is(err, io.ErrUnexpectedEOF) || !strings.Contains(err.Error(), "Content-Encoding: gzip") {
			t.Error(err)
		}
	}
}
