package weir_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
)

// certificate makes a self-signed one for 127.0.0.1.
func certificate(t *testing.T) (server, client *tls.Config) {
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
	roots := x509.NewCertPool()
	roots.AddCert(cert)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}}, &tls.Config{RootCAs: roots}
}

func TestTLSAndSASLPassThroughToEveryClient(t *testing.T) {
	server, client := certificate(t)
	c, err := kfake.NewCluster(kfake.NumBrokers(1), kfake.SeedTopics(1, "in", "out"), kfake.TLS(server),
		kfake.EnableSASL(), kfake.Superuser("SCRAM-SHA-256", "weir", "secret"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	auth := func(password string) []kgo.Opt {
		return []kgo.Opt{kgo.DialTLSConfig(client), kgo.SASL(scram.Auth{User: "weir", Pass: password}.AsSha256Mechanism())}
	}
	cl, err := kgo.NewClient(append(auth("secret"), kgo.SeedBrokers(c.ListenAddrs()...))...)
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "in", Value: []byte("a:1")}).FirstErr(); err != nil {
		t.Fatal(err)
	}
	r := start(t, "app", c.ListenAddrs(), sums(same), weir.Store(checkpoint.NewMem()), weir.KafkaOptions(auth("secret")...))
	await(r, 1, any1[event.CheckpointCommitted])
	r.stop()
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	r = start(t, "app", c.ListenAddrs(), sums(same), weir.Store(checkpoint.NewMem()), weir.KafkaOptions(auth("wrong")...))
	wantError(t, r.wait(), "SASL")
}

func TestLogHasOneLineForEachNotableEvent(t *testing.T) {
	brokers := broker(t, 1, "in", "out")
	produce(t, brokers, "in", "a:1", "fail:1")
	core, logs := observer.New(zap.InfoLevel)
	r := start(t, "app", brokers, sums(weir.Skip), weir.Store(checkpoint.NewMem()), weir.Log(zap.New(core)), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	var lines []string
	for _, e := range logs.All() {
		lines = append(lines, e.Message)
	}
	for _, want := range []string{"started empty on 1 partitions", `operator "sum" skipped in/0 at offset 1: asked to`} {
		n := 0
		for _, l := range lines {
			if strings.Contains(l, want) {
				n++
			}
		}
		if n != 1 {
			t.Errorf("%d lines say %q:\n%s", n, want, strings.Join(lines, "\n"))
		}
	}
}
