package gcs

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"cloud.google.com/go/compute/metadata"
	"gocloud.dev/blob/gcsblob"
	"gocloud.dev/gcp"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/jwt"
	"google.golang.org/api/option"

	"github.com/weirstream/weir/checkpoint/blob"
)

func TestTokensMayBeLateOnceTheServiceWasReached(t *testing.T) {
	var broken atomic.Int32 // requests that get no answer
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		if broken.Add(-1) >= 0 {
			panic(http.ErrAbortHandler)
		}
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.WriteString(w, `{"access_token":"t","token_type":"Bearer","expires_in":1}`) // which is renewed at each request
	}))
	defer tokens.Close()
	service := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Authorization") != "Bearer t" {
			t.Errorf("%s %s has no token", r.Method, r.URL)
		}
		w.WriteHeader(http.StatusNoContent)
	}))
	defer service.Close()

	who := &endpoint{base: transport(pingAfter)}
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, &http.Client{Transport: who})
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		t.Fatal(err)
	}
	pemKey := pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)})
	source := (&jwt.Config{Email: "weir@example.com", PrivateKey: pemKey, TokenURL: tokens.URL}).TokenSource(ctx)
	client := &gcp.HTTPClient{Client: http.Client{Transport: &authorized{source: source, endpoint: who}}}
	bucket, err := gcsblob.OpenBucket(t.Context(), client, "bucket", &gcsblob.Options{ClientOptions: []option.ClientOption{option.WithEndpoint(service.URL + "/storage/v1/")}})
	if err != nil {
		t.Fatal(err)
	}
	s := blob.New(bucket, blob.Options{URL: "gs://bucket", Classify: classify, Credentials: credentials})
	defer s.Close()
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Fatal(err)
	}
	broken.Store(4)
	if err := s.Delete(t.Context(), "a"); err != nil {
		t.Error(err)
	}
	if broken.Load() > 0 {
		t.Errorf("%d requests for a token still to be broken", broken.Load())
	}
}

// A connection that swallows everything is given up for another one.
func TestDeadConnectionIsGivenUp(t *testing.T) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Proto)
	}))
	server.EnableHTTP2 = true
	server.StartTLS()
	defer server.Close()

	var dials atomic.Int32
	var dead atomic.Bool
	const pingAfter = 500 * time.Millisecond // longer than a busy machine holds up the connection that lives
	tr := transport(pingAfter).(*http.Transport)
	defer tr.CloseIdleConnections()
	tr.TLSClientConfig = server.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	tr.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
		if err == nil && dials.Add(1) == 1 {
			c = &swallowing{c, &dead}
		}
		return c, err
	}
	get := func() (string, error) {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		r, _ := http.NewRequestWithContext(ctx, http.MethodGet, server.URL, nil)
		resp, err := (&http.Client{Transport: tr}).Do(r)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		return string(b), err
	}
	if proto, err := get(); proto != "HTTP/2.0" || err != nil {
		t.Fatalf("%q, %v", proto, err)
	}
	dead.Store(true)
	if _, err := get(); err == nil {
		t.Fatal("the dead connection answered")
	}
	if _, err := get(); err != nil {
		t.Error(err)
	}
}

// swallowing is a connection to which writes get lost once it is dead.
type swallowing struct {
	net.Conn
	dead *atomic.Bool
}

func (c *swallowing) Write(b []byte) (int, error) {
	if c.dead.Load() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

func TestMetadataServerThatIsBusyIsAskedAgain(t *testing.T) {
	for status, want := range map[int]blob.Kind{429: blob.Transient, 503: blob.Transient, 403: blob.Denied, 404: blob.Denied} {
		err := (&endpoint{}).explain(&metadata.Error{Code: status})
		if got := classify(err); got != want {
			t.Errorf("%v is of kind %d, want %d", err, got, want)
		}
	}
}
