package azure_test

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azidentity"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/checkpoint/blob"
	"github.com/weirstream/weir/checkpoint/blob/azure"
)

// hush is a key, as it would stand in the environment.
var hush = base64.StdEncoding.EncodeToString([]byte("hush-hush-hush"))

// environment makes the variables those of a test.
func environment(t *testing.T, set map[string]string) {
	for _, name := range []string{"ACCOUNT", "KEY", "SAS_TOKEN", "CONNECTION_STRING", "DOMAIN", "PROTOCOL", "IS_CDN", "IS_LOCAL_EMULATOR"} {
		t.Setenv("AZURE_STORAGE_"+name, set[name])
	}
	t.Setenv("AZURE_STORAGEBLOB_CONNECTIONSTRING", "")
}

func TestURL(t *testing.T) {
	environment(t, map[string]string{"ACCOUNT": "acct", "KEY": hush})
	s, err := checkpoint.OpenStore("azblob://container/a/b?storage_account=other&domain=example.com")
	if err != nil {
		t.Fatal(err)
	}
	if want := "azblob://container/a/b?domain=example.com&storage_account=other"; s.String() != want {
		t.Errorf("shown as %s, want %s", s, want)
	}
	for url, want := range map[string]string{
		"azblob://container?colour=red&sig=hush": "unknown query parameter",
		"azblob://id:hush@container":             "AZURE_STORAGE_KEY",
		"azblob:///x":                            "names no bucket",
		"azblob://container?protocol=gopher":     "gopher",
	} {
		if _, err := checkpoint.OpenStore(url); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "hush") {
			t.Errorf("%s: %v, want it to say %s", url, err, want)
		}
	}
}

func TestMissingCredentialsAreNamedWithARemedy(t *testing.T) {
	environment(t, nil)
	_, err := checkpoint.OpenStore("azblob://container/x")
	if err == nil || !strings.Contains(err.Error(), "AZURE_STORAGE_ACCOUNT") || !strings.Contains(err.Error(), "storage_account") {
		t.Errorf("no account: %v", err)
	}
	environment(t, map[string]string{"ACCOUNT": "acct", "KEY": "no base64: hush"})
	if _, err := checkpoint.OpenStore("azblob://container/x"); err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("a key that is none: %v", err)
	}
	environment(t, map[string]string{"ACCOUNT": "acct", "SAS_TOKEN": "sv=1&sig=hush"})
	if _, err := checkpoint.OpenStore("azblob://container/x?domain=evil.example"); err == nil || strings.Contains(err.Error(), "hush") {
		t.Errorf("a token for another place: %v", err)
	}
}

// The account is in the URL, its key in the environment.
func TestKeyIsOfTheAccountInTheURL(t *testing.T) {
	var signed atomic.Value
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		signed.Store(r.Header.Get("Authorization"))
		w.WriteHeader(http.StatusAccepted)
	}))
	defer server.Close()
	at := map[string]string{"KEY": hush, "PROTOCOL": "http", "DOMAIN": strings.TrimPrefix(server.URL, "http://")}
	environment(t, at)
	s, err := checkpoint.OpenStore("azblob://container/x?storage_account=acct")
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if got, _ := signed.Load().(string); !strings.HasPrefix(got, "SharedKey acct:") {
		t.Errorf("signed by %q", got)
	}
	at["KEY"] = "no base64: hush"
	environment(t, at)
	if _, err := checkpoint.OpenStore("azblob://container/x?storage_account=acct"); err == nil || !strings.Contains(err.Error(), "AZURE_STORAGE_KEY") || strings.Contains(err.Error(), "hush") {
		t.Errorf("a key that is none: %v", err)
	}
}

func TestSecretInAFailedRequestIsNotShown(t *testing.T) {
	server := httptest.NewServer(http.NotFoundHandler())
	addr := strings.TrimPrefix(server.URL, "http://")
	server.Close()
	environment(t, map[string]string{"ACCOUNT": "acct", "SAS_TOKEN": "sv=2024&sp=rwdl&sig=hush%2Bhush", "PROTOCOL": "http", "DOMAIN": addr})
	s, err := checkpoint.OpenStore("azblob://container/x")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(s.String(), "hush") {
		t.Errorf("shown as %s", s)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	_, err = s.Get(ctx, "a")
	if err == nil || strings.Contains(err.Error(), "hush") || strings.Contains(err.Error(), "\n") {
		t.Errorf("the error is %v", err)
	}
}

// Whoever gives out tokens may fail for a while, which is no lack of a right.
func TestIdentityThatIsNotToldForNowIsAskedForAgain(t *testing.T) {
	for status, want := range map[int]blob.Kind{400: blob.Denied, 401: blob.Denied, 404: blob.Denied, 429: blob.Transient, 503: blob.Transient} {
		err := &azidentity.AuthenticationFailedError{RawResponse: &http.Response{StatusCode: status, Body: http.NoBody}}
		if got := azure.Classify(fmt.Errorf("put: %w", err)); got != want {
			t.Errorf("answer %d is of kind %d, want %d", status, got, want)
		}
	}
	gone := httptest.NewServer(http.NotFoundHandler())
	gone.Close()
	t.Setenv("IDENTITY_ENDPOINT", gone.URL)
	t.Setenv("IDENTITY_HEADER", "x")
	c, err := azidentity.NewManagedIdentityCredential(&azidentity.ManagedIdentityCredentialOptions{ClientOptions: policy.ClientOptions{Retry: policy.RetryOptions{MaxRetries: -1}}})
	if err != nil {
		t.Fatal(err)
	}
	_, err = c.GetToken(t.Context(), policy.TokenRequestOptions{Scopes: []string{"https://storage.azure.com/.default"}})
	if got := azure.Classify(err); got != blob.Unreachable {
		t.Errorf("%v is of kind %d", err, got)
	}
}

// kept is what is said of objects that a rule keeps.
const kept = "remove the retention rules"

// service answers all requests alike. It returns how many there were.
func service(t *testing.T, status int, code string) *atomic.Int32 {
	var n atomic.Int32
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		n.Add(1)
		block := r.URL.Query().Get("comp") == "block"
		if r.Method == http.MethodPut && (block && r.Header.Get("x-ms-content-crc64") == "" || !block && r.Header.Get("If-None-Match") != "*") {
			t.Errorf("%s is put with headers %v", r.URL, r.Header)
		}
		w.Header().Set("x-ms-error-code", code)
		w.WriteHeader(status)
	}))
	t.Cleanup(server.Close)
	environment(t, map[string]string{"ACCOUNT": "acct", "KEY": hush, "PROTOCOL": "http", "DOMAIN": strings.TrimPrefix(server.URL, "http://")})
	return &n
}

func TestAnswersOfTheServiceAreUnderstood(t *testing.T) {
	open := func(t *testing.T) checkpoint.Store {
		s, err := checkpoint.OpenStore("azblob://container/x")
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	for code, c := range map[string]struct {
		status int
		want   string
	}{
		"ContainerNotFound":               {404, "create the bucket"},
		"AuthenticationFailed":            {403, "the clock of the machine"},
		"AuthorizationPermissionMismatch": {403, "rights to get, put, delete and list"},
		"BlobImmutableDueToPolicy":        {409, kept},
		"LeaseIdMissing":                  {412, kept},
		"SnapshotsPresent":                {409, kept},
		"InvalidUri":                      {400, "InvalidUri"},
	} {
		t.Run(code, func(t *testing.T) {
			n := service(t, c.status, code)
			s := open(t)
			var list error
			for _, err := range s.List(t.Context(), "") {
				list = err
			}
			_, get := s.GetRange(t.Context(), "a", 0, 0)
			for i, err := range []error{s.Put(t.Context(), "a", []byte("x")), list, s.Delete(t.Context(), "a"), get} {
				if err == nil || errors.Is(err, checkpoint.ErrNotFound) || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), hush) || strings.Contains(err.Error(), "\n") {
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
	for _, code := range []string{"BlobAlreadyExists", "ConditionNotMet"} {
		service(t, 409, code)
		if err := open(t).Put(t.Context(), "a", []byte("x")); !errors.Is(err, checkpoint.ErrExists) {
			t.Errorf("put, %s: %v", code, err)
		}
	}
	service(t, 400, "Crc64Mismatch")
	if err := open(t).Put(t.Context(), "a", bytes.Repeat([]byte("x"), 20<<20)); err == nil || !strings.Contains(err.Error(), "Crc64Mismatch") {
		t.Errorf("put of a large object: %v", err)
	}
	service(t, 404, "BlobNotFound")
	if _, err := open(t).Get(t.Context(), "a"); !errors.Is(err, checkpoint.ErrNotFound) {
		t.Errorf("get: %v", err)
	}
	if err := open(t).Delete(t.Context(), "a"); err != nil {
		t.Errorf("delete: %v", err)
	}
}

// With a hierarchical namespace directories are listed among the objects, and can't be
// deleted while there is something in them.
func TestDirectoriesAreNoObjects(t *testing.T) {
	const item = `<Blob><Name>%s</Name><Properties><Last-Modified>Mon, 30 Nov 2026 04:00:00 GMT</Last-Modified><Content-Length>%d</Content-Length></Properties>%s</Blob>`
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method != http.MethodGet || r.URL.Query().Get("comp") != "list" {
			t.Errorf("%s %s", r.Method, r.URL)
		}
		folder, mine := "", ""
		if strings.Contains(r.URL.Query().Get("include"), "metadata") {
			folder, mine = "<Metadata><hdi_isfolder>true</hdi_isfolder></Metadata>", "<Metadata><weirput>1</weirput></Metadata>"
		}
		w.Header().Set("Content-Type", "application/xml")
		_, _ = fmt.Fprintf(w, `<?xml version="1.0" encoding="utf-8"?><EnumerationResults><Blobs>`+item+item+item+`</Blobs><NextMarker/></EnumerationResults>`,
			"x/savepoint/a", 0, folder, "x/savepoint/a/seg", 0, folder, "x/savepoint/a/seg/1.sst", 7, mine)
	}))
	defer server.Close()
	environment(t, map[string]string{"ACCOUNT": "acct", "KEY": hush, "PROTOCOL": "http", "DOMAIN": strings.TrimPrefix(server.URL, "http://")})
	s, err := checkpoint.OpenStore("azblob://container/x")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for o, err := range s.List(t.Context(), "savepoint/") {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, o.Name)
	}
	if got := strings.Join(names, " "); got != "savepoint/a/seg/1.sst" {
		t.Errorf("listed: %s", got)
	}
}

// account keeps blobs as the service does: blocks become visible together, and not where
// there is a blob.
type account struct {
	mu     sync.Mutex
	blobs  map[string]stored
	blocks map[string][]byte
	// lose tells whether the answer to a request, which has its effect, gets lost.
	lose func(*http.Request) bool
}

type stored struct {
	data []byte
	meta string
}

func startAccount(t *testing.T) *account {
	a := &account{blobs: map[string]stored{}, blocks: map[string][]byte{}}
	server := httptest.NewServer(a)
	t.Cleanup(server.Close)
	environment(t, map[string]string{"ACCOUNT": "acct", "KEY": hush, "PROTOCOL": "http", "DOMAIN": strings.TrimPrefix(server.URL, "http://")})
	return a
}

func (a *account) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.mu.Lock()
	defer a.mu.Unlock()
	body, err := io.ReadAll(r.Body)
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	status, code := a.do(r, body, w.Header())
	if a.lose != nil && a.lose(r) {
		panic(http.ErrAbortHandler)
	}
	if code != "" {
		w.Header().Set("x-ms-error-code", code)
	}
	w.WriteHeader(status)
}

func (a *account) do(r *http.Request, body []byte, h http.Header) (status int, code string) {
	name, q := r.URL.Path, r.URL.Query()
	b, taken := a.blobs[name]
	switch {
	case r.Method == http.MethodHead && taken:
		h.Set("Content-Length", strconv.Itoa(len(b.data)))
		h.Set("Last-Modified", "Mon, 30 Nov 2026 04:00:00 GMT")
		h.Set("x-ms-creation-time", "Mon, 30 Nov 2026 04:00:00 GMT")
		h.Set("x-ms-meta-weirput", b.meta)
		return 200, ""
	case r.Method == http.MethodHead:
		return 404, "BlobNotFound"
	case r.Method != http.MethodPut:
		return 400, "UnsupportedHttpVerb"
	case q.Get("comp") == "block":
		a.blocks[q.Get("blockid")] = body
		return 201, ""
	case r.Header.Get("If-None-Match") == "*" && taken:
		return 409, "BlobAlreadyExists"
	case q.Get("comp") == "blocklist":
		var list struct{ Latest []string }
		if err := xml.Unmarshal(body, &list); err != nil {
			return 400, "InvalidXmlDocument"
		}
		var data []byte
		for _, id := range list.Latest {
			block, ok := a.blocks[id]
			if !ok {
				return 400, "InvalidBlockList"
			}
			data = append(data, block...)
		}
		clear(a.blocks)
		body = data
	}
	a.blobs[name] = stored{body, r.Header.Get("x-ms-meta-weirput")}
	return 201, ""
}

func TestPutWhoseAnswerIsLostIsToldFromAnotherOne(t *testing.T) {
	for _, size := range []int{10, 20 << 20} {
		a := startAccount(t)
		s, err := checkpoint.OpenStore("azblob://container/x")
		if err != nil {
			t.Fatal(err)
		}
		lost := 0
		// The request with which an object becomes visible.
		a.lose = func(r *http.Request) bool {
			if r.Method != http.MethodPut || r.URL.Query().Get("comp") == "block" || lost > 0 {
				return false
			}
			lost++
			return true
		}
		data := bytes.Repeat([]byte("x"), size)
		if err := s.Put(t.Context(), "a", data); err != nil || lost != 1 {
			t.Errorf("%d bytes, %d answers lost: %v", size, lost, err)
		}
		lost = 0
		if err := s.Put(t.Context(), "a", data); !errors.Is(err, checkpoint.ErrExists) || lost != 1 {
			t.Errorf("%d bytes of another put, %d answers lost: %v", size, lost, err)
		}
		if got := a.blobs["/acct/container/x/a"].data; !bytes.Equal(got, data) {
			t.Errorf("%d bytes are kept", len(got))
		}
	}
}
