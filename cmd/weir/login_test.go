package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// identity is a self-signed certificate for 127.0.0.1, and the files that it is in.
type identity struct {
	pair      tls.Certificate
	pool      *x509.CertPool // it alone
	cert, key string
}

func newIdentity(t *testing.T, name string) (id identity) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	write := func(file, kind string, b []byte) string {
		file = filepath.Join(dir, file)
		if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: b}), 0o600); err != nil {
			t.Fatal(err)
		}
		return file
	}
	id = identity{tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, x509.NewCertPool(), write(name+".crt", "CERTIFICATE", der), write(name+".key", "PRIVATE KEY", private)}
	id.pool.AddCert(cert)
	return id
}

// The brokers want a certificate and a user, and have a certificate that the machine does not
// trust.
func TestBrokersThatAskWhoItIsAreAsked(t *testing.T) {
	_, refs := payments(t)
	broker, client := newIdentity(t, "broker"), newIdentity(t, "client")
	login := []kgo.Opt{
		kgo.DialTLSConfig(&tls.Config{RootCAs: broker.pool, Certificates: []tls.Certificate{client.pair}}),
		kgo.SASL(scram.Auth{User: "weir", Pass: "secret"}.AsSha512Mechanism()),
	}
	brokers := guardedCluster(t, &refs[1], login,
		kfake.TLS(&tls.Config{Certificates: []tls.Certificate{broker.pair}, ClientAuth: tls.RequireAndVerifyClientCert, ClientCAs: client.pool}),
		kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-512", "weir", "secret"), kfake.Superuser("PLAIN", "simple", "secret"))
	t.Setenv(secretVariable, "secret")
	get := []string{"state", "get", "--state", "total", "alice", "--brokers", brokers}
	certified := append(get, "--tls-ca", broker.cert, "--tls-cert", client.cert, "--tls-key", client.key)
	for _, args := range [][]string{
		append(certified, "--sasl", "SCRAM-SHA-512", "--user", "weir"),
		append(certified, "--tls", "--sasl", "plain", "--user", "simple"),
	} {
		wantOut(t, mustRun(t, args...), "checkpoint 4710")
	}
	// As it is set for the shell once.
	t.Setenv("WEIR_KAFKA_SASL", "SCRAM-SHA-512")
	t.Setenv("WEIR_KAFKA_USER", "weir")
	wantOut(t, mustRun(t, certified...), "checkpoint 4710")

	refused(t, append(get, "--tls-cert", client.cert, "--tls-key", client.key), "certificate", "--tls, --sasl")
	t.Setenv(secretVariable, "wrong")
	refused(t, certified, "--sasl and --user are as they expect")
}

// Kafka leaves out the offsets of topics that the user may not describe: what they name would
// be taken for garbage.
func TestGCDeletesNothingIfTheUserIsNotShownAllOffsets(t *testing.T) {
	_, refs := payments(t)
	root := []kgo.Opt{kgo.SASL(plain.Auth{User: "root", Pass: "root"}.AsMechanism())}
	brokers := guardedCluster(t, &refs[2], root, kfake.EnableSASL(), kfake.EnableACLs(), kfake.Superuser("PLAIN", "root", "root"), kfake.User("PLAIN", "weir", "secret"))
	cl, err := kgo.NewClient(append(root, kgo.SeedBrokers(brokers))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	grant := func(b *kadm.ACLBuilder) {
		t.Helper()
		b = b.Allow("User:weir").AllowHosts("*").Operations(kadm.OpDescribe).ResourcePatternType(kadm.ACLPatternLiteral)
		if made, err := kadm.NewClient(cl).CreateACLs(t.Context(), b); err != nil || made[0].Err != nil {
			t.Fatal(err, made)
		}
	}
	grant(kadm.NewACLs().Groups("payments"))
	t.Setenv(secretVariable, "secret")
	gc := []string{"gc", "--brokers", brokers, "--sasl", "PLAIN", "--user", "weir", "--grace", "1ns", "--retain", "1"}
	refused(t, gc, "may not describe payments", "DESCRIBE")
	mustRun(t, "checkpoint", "show", "4709")
	grant(kadm.NewACLs().Topics("payments"))
	mustRun(t, gc...)
	refused(t, []string{"checkpoint", "show", "4709"}, "does not have checkpoint 4709")
}

func TestALoginThatCannotBeIsRefusedBeforeAnybodyIsAsked(t *testing.T) {
	payments(t)
	id, other := newIdentity(t, "client"), newIdentity(t, "other")
	for _, c := range []struct {
		flags  []string
		secret string
		want   []string
	}{
		{[]string{"--user", "weir"}, "x", []string{"--user weir", "--sasl", "SCRAM-SHA-512, SCRAM-SHA-256, PLAIN or OAUTHBEARER"}},
		{[]string{"--sasl", "GSSAPI", "--user", "weir"}, "x", []string{"--sasl GSSAPI", "SCRAM-SHA-512"}},
		{[]string{"--sasl", "PLAIN"}, "x", []string{"--user"}},
		{[]string{"--sasl", "PLAIN", "--user", "weir"}, "", []string{"password of user weir", secretVariable}},
		{[]string{"--sasl", "OAUTHBEARER"}, "", []string{"token", secretVariable}},
		{[]string{"--tls-ca", filepath.Join(t.TempDir(), "none")}, "", []string{"--tls-ca", "none"}},
		{[]string{"--tls-ca", id.key}, "", []string{"--tls-ca", id.key, "no PEM certificate"}},
		{[]string{"--tls-cert", id.cert}, "", []string{"--tls-key"}},
		{[]string{"--tls-key", id.key}, "", []string{"--tls-cert"}},
		{[]string{"--tls-cert", id.cert, "--tls-key", other.key}, "", []string{id.cert, other.key, "private key"}},
	} {
		t.Setenv(secretVariable, c.secret)
		refused(t, append([]string{"state", "ls", "--brokers", "127.0.0.1:1"}, c.flags...), c.want...)
	}
}
