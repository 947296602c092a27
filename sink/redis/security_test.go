package redis

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"

	"github.com/weirstream/weir/internal/containers"
	"github.com/weirstream/weir/internal/redistest"
)

// authority signs certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
	pem  []byte
}

func newAuthority(t *testing.T) *authority {
	a := &authority{t: t}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	a.key = newKey(t)
	a.cert, a.pem = a.sign(template, template, a.key)
	return a
}

func newKey(t *testing.T) *ecdsa.PrivateKey {
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func (a *authority) sign(template, parent *x509.Certificate, of *ecdsa.PrivateKey) (*x509.Certificate, []byte) {
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &of.PublicKey, a.key)
	if err != nil {
		a.t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// issue makes a certificate for 127.0.0.1, and its key.
func (a *authority) issue() (cert, key []byte) {
	k := newKey(a.t)
	_, cert = a.sign(&x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"redis.test"},
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
	}, a.cert, k)
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		a.t.Fatal(err)
	}
	return cert, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
}

// config trusts the authority.
func (a *authority) config() *tls.Config {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
}

// identified is config with a certificate of another authority, or of the same.
func (a *authority) identified(by *authority) *tls.Config {
	cert, key := by.issue()
	pair, err := tls.X509KeyPair(cert, key)
	if err != nil {
		a.t.Fatal(err)
	}
	c := a.config()
	c.Certificates = []tls.Certificate{pair}
	return c
}

func TestSinksSpeakTLSAndSayWhatIsWrongWithIt(t *testing.T) {
	containers.Need(t)
	ours, other := newAuthority(t), newAuthority(t)
	cert, key := ours.issue()
	s := redistest.StartTLS(t, cert, key, ours.pem, ours.identified(ours), "--tls-auth-clients", "yes", "--user", "shop", "on", ">pw", "~*", "&*", "+@all")
	o := options(s.Addr)
	o.TLS, o.Username, o.Password = ours.identified(ours), "shop", "pw"
	w := newWorld(t, o, BatchSize(10, 1<<20))
	l := w.mustBegin()
	for range 3 {
		l.checkpoint(w.pushes(100)...)
	}
	l.drain()
	w.verify()
	mustWrite(t, openUpsert(t, t.Context(), Upsert(o, setPair)), pair{"k", "v"})
	wantStrings(t, o, map[string]string{"k": "v"})
	if ms, err := Markers(t.Context(), o); err != nil || len(ms) != 1 {
		t.Errorf("markers %v, %v", ms, err)
	}
	l.kill()

	renamed := ours.identified(ours)
	renamed.ServerName = "elsewhere"
	for _, c := range []struct {
		name   string
		config *tls.Config
	}{
		{"an authority that is not trusted", other.identified(ours)},
		{"another server's name", renamed},
		{"no client certificate", ours.config()},
		{"a client certificate of another authority", ours.identified(other)},
	} {
		t.Run(c.name, func(t *testing.T) {
			o := o
			o.TLS, o.Timeout = c.config, time.Second
			if err := write(t, openUpsert(t, t.Context(), Upsert(o, setPair, GiveUpAfter(50*time.Millisecond))), pair{"k", "v2"}); !errors.Is(err, ErrTLS) || !strings.Contains(err.Error(), "Options.TLS") {
				t.Errorf("the idempotent sink: %v", err)
			}
			was := w.opts
			w.opts = o
			l := w.mustBegin(GiveUpAfter(50 * time.Millisecond)) // a certificate may be mended meanwhile, so it starts
			if err := l.ended(); !errors.Is(err, ErrTLS) || !strings.Contains(err.Error(), "Options.TLS") {
				t.Errorf("the write-ahead sink: %v", err)
			}
			l.kill()
			w.opts = was
		})
	}
	wantStrings(t, o, map[string]string{"k": "v"})
}

// documentedRights reads the rules of a user from docs/operations.md: those behind the
// password, on the line that begins with text.
func documentedRights(t *testing.T, text string) []string {
	t.Helper()
	b, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if rest, ok := strings.CutPrefix(line, text); ok {
			return strings.Fields(rest)
		}
	}
	t.Fatalf("docs/operations.md has no line %q", text)
	return nil
}

// withRights makes a user with the documented rights, whose keys begin with the prefix of
// o, on every server, and has o use it.
func withRights(t *testing.T, o *Options, rights []string) {
	t.Helper()
	rules := []string{"on", ">pw"}
	for _, r := range rights {
		rules = append(rules, strings.Replace(r, "~shop:", "~"+o.Prefix, 1))
	}
	admin := o.client()
	defer admin.Close()
	user := fresh()
	servers := []*goredis.Client{}
	if cluster.nodes != nil && o.Cluster {
		for _, n := range cluster.nodes {
			servers = append(servers, n.Client(t))
		}
	} else {
		servers = append(servers, redisClient(t, o.Addrs[0]))
	}
	for _, s := range servers {
		if err := s.ACLSetUser(t.Context(), user, rules...).Err(); err != nil {
			t.Fatalf("%q: %v", rules, err)
		}
	}
	o.Username, o.Password = user, "pw"
}

// The commands of the documented example.
func boughtAhead(b *Batch, p push) {
	b.HSet("h"+p.key, "f", p.value)
	b.ZAdd("z"+p.key, 1, p.value)
}

func boughtUpsert(u *Upserts, p push) {
	u.HSet("h"+p.key, "f", p.value)
	u.Guard(1)
	u.ZAdd("z"+p.key, 1, p.value)
}

// useRights runs both sinks with all they do, and returns what the first of them says that
// can't.
func useRights(t *testing.T, o Options, admin goredis.UniversalClient) error {
	t.Helper()
	// Each finds the script forgotten and a key of the wrong type.
	if err := eachServer(t.Context(), admin, func(ctx context.Context, c *goredis.Client) error { return c.ScriptFlush(ctx).Err() }); err != nil {
		t.Fatal(err)
	}
	admin.Set(t.Context(), o.Prefix+"hbad", "x", 0)
	u := openUpsert(t, t.Context(), Upsert(o, boughtUpsert, DeadLetters(), GiveUpAfter(50*time.Millisecond)))
	if err := write(t, u, push{"a", "1"}, push{"bad", "2"}); err != nil {
		return fmt.Errorf("idempotent: %w", err)
	}
	w := newWorld(t, o, DeadLetters(), GiveUpAfter(50*time.Millisecond))
	if err := eachServer(t.Context(), admin, func(ctx context.Context, c *goredis.Client) error { return c.ScriptFlush(ctx).Err() }); err != nil {
		t.Fatal(err)
	}
	l, err := w.beginWith(boughtAhead)
	if err != nil {
		return fmt.Errorf("write-ahead: %w", err)
	}
	defer l.kill()
	l.checkpoint(push{"a", "1"}, push{"bad", "2"})
	drained := make(chan error, 1)
	go func() { drained <- l.applier.Drain(l.ctx) }()
	select {
	case err := <-drained:
		if err != nil {
			return fmt.Errorf("write-ahead: %w", err)
		}
	case err := <-l.done:
		l.done <- err
		return fmt.Errorf("write-ahead: %w", err)
	}
	for k, want := range map[string]string{"ha": "1"} {
		if got := admin.HGet(t.Context(), o.Prefix+k, "f").Val(); got != want {
			t.Errorf("%s is %q, want %q", k, got, want)
		}
	}
	if s := l.sink.Status(); s.PutAside != 1 {
		t.Errorf("%d commands were put aside, want 1", s.PutAside)
	}
	return nil
}

func TestDocumentedRightsAreEnoughAndAllAreNeeded(t *testing.T) {
	for _, c := range []struct {
		name, line string
		o          func(t *testing.T) Options
		also       []string // of commands that only a cluster's client sends, whose lack shows otherwise
	}{
		{"server", "ACL SETUSER shop on >PASSWORD ", func(t *testing.T) Options { return options(redistest.Shared(t).Addr) }, nil},
		{"redis7", "ACL SETUSER shop on >PASSWORD ", func(t *testing.T) Options { return options(server(t, redistest.Redis7).Addr) }, nil},
		{"valkey", "ACL SETUSER shop on >PASSWORD ", func(t *testing.T) Options { return options(server(t, redistest.Valkey).Addr) }, nil},
		{"cluster", "ACL SETUSER shop on >PASSWORD ", clusterOptions, []string{"+cluster|slots"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			rights := append(documentedRights(t, c.line), c.also...)
			o := c.o(t)
			admin := rawClient(t, o)
			withRights(t, &o, rights)
			if err := useRights(t, o, admin); err != nil {
				t.Fatalf("with all documented rights: %v", err)
			}
			for i, lacking := range rights {
				if slices.Contains(c.also, lacking) {
					continue
				}
				t.Run("without "+lacking, func(t *testing.T) {
					o := c.o(t)
					withRights(t, &o, slices.Delete(slices.Clone(rights), i, i+1))
					if err := useRights(t, o, admin); !errors.Is(err, ErrPermission) || !strings.Contains(err.Error(), "docs/operations.md") {
						t.Errorf("got %v", err)
					}
				})
			}
		})
	}
}

// TestLackingRightIsNoticedBeforeAnythingIsApplied takes one right after another that the
// script needs behind the commands of the batch.
func TestLackingRightIsNoticedBeforeAnythingIsApplied(t *testing.T) {
	everywhere(t, func(t *testing.T, o Options) {
		admin := rawClient(t, o)
		rights := append(documentedRights(t, "ACL SETUSER shop on >PASSWORD "), "+hincrby", "+cluster|slots")
		add := func(b *Batch, p push) { b.HIncrBy("h", p.key, 1) }
		for _, lacking := range []string{"+set", "+rpop", "+rpush"} {
			o := o
			withRights(t, &o, slices.DeleteFunc(slices.Clone(rights), func(r string) bool { return r == lacking }))
			w := newWorld(t, o)
			l, err := w.beginWith(add)
			if err != nil {
				t.Fatal(err)
			}
			l.checkpoint(push{key: lacking})
			if err := l.ended(); !errors.Is(err, ErrPermission) {
				t.Errorf("without %s: %v", lacking, err)
			}
			l.kill()
			if got := admin.HGet(t.Context(), o.Prefix+"h", lacking).Val(); got != "" {
				t.Errorf("without %s the batch was refused, and yet applied: %s", lacking, got)
			}
			withRights(t, &w.opts, rights)
			if l, err = w.beginWith(add); err != nil {
				t.Fatalf("when %s was given: %v", lacking, err)
			}
			l.drain()
			if got := admin.HGet(t.Context(), o.Prefix+"h", lacking).Val(); got != "1" {
				t.Errorf("when %s was given, it was applied %s times", lacking, got)
			}
			l.kill()
		}
	})
}

func TestRightsThatMarkersAreReadWith(t *testing.T) {
	o := options(redistest.Shared(t).Addr)
	w := newWorld(t, o)
	l := w.mustBegin()
	l.checkpoint(w.pushes(10)...)
	l.drain()
	withRights(t, &o, documentedRights(t, "ACL SETUSER looker on >PASSWORD "))
	if ms, err := Markers(t.Context(), o); err != nil || len(ms) != 1 || ms[0].Checkpoint != 1 {
		t.Errorf("markers %v, %v", ms, err)
	}
	withRights(t, &o, []string{"~shop:*", "+get"})
	if _, err := Markers(t.Context(), o); !errors.Is(err, ErrPermission) {
		t.Errorf("without SCAN: %v", err)
	}
}
