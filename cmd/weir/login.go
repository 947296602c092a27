package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/oauth"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// secretVariable has the password of --user, or the token of OAUTHBEARER: what is given as a
// flag is there for all to read in the list of processes.
const secretVariable = "WEIR_KAFKA_PASSWORD"

// mechanisms are the ways to log in, the preferred ones first.
var mechanisms = []struct {
	name  string
	named bool // it needs a user
	make  func(user, secret string) sasl.Mechanism
}{
	{"SCRAM-SHA-512", true, func(user, secret string) sasl.Mechanism {
		return scram.Auth{User: user, Pass: secret}.AsSha512Mechanism()
	}},
	{"SCRAM-SHA-256", true, func(user, secret string) sasl.Mechanism {
		return scram.Auth{User: user, Pass: secret}.AsSha256Mechanism()
	}},
	{"PLAIN", true, func(user, secret string) sasl.Mechanism {
		return plain.Auth{User: user, Pass: secret}.AsMechanism()
	}},
	{"OAUTHBEARER", false, func(user, secret string) sasl.Mechanism {
		return oauth.Auth{Zid: user, Token: secret}.AsMechanism()
	}},
}

// loginFlags say how to connect to the brokers, and as whom.
type loginFlags struct {
	tls           bool
	ca, cert, key string // files
	sasl, user    string
}

// loginFlagNames are the flags that loginFlags adds.
func loginFlagNames() (names []string) {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	new(loginFlags).add(fs)
	fs.VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
	return names
}

func (f *loginFlags) add(fs *pflag.FlagSet) {
	fs.BoolVar(&f.tls, "tls", false, "connect to the brokers with TLS; the other --tls flags say so too")
	fs.StringVar(&f.ca, "tls-ca", "", "file with the PEM certificates that the brokers' are signed by (default: those that the machine trusts)")
	fs.StringVar(&f.cert, "tls-cert", "", "file with the PEM certificate to show to the brokers, and those between it and their root")
	fs.StringVar(&f.key, "tls-key", "", "file with the PEM private key of --tls-cert")
	fs.StringVar(&f.sasl, "sasl", os.Getenv("WEIR_KAFKA_SASL"), "log in to the brokers: "+mechanismNames()+"; the password, or the token, is read from "+secretVariable+" (default $WEIR_KAFKA_SASL)")
	fs.StringVar(&f.user, "user", os.Getenv("WEIR_KAFKA_USER"), "user to log in as (default $WEIR_KAFKA_USER)")
}

func mechanismNames() string {
	names := make([]string, len(mechanisms))
	for i, m := range mechanisms {
		names[i] = m.name
	}
	return strings.Join(names[:len(names)-1], ", ") + " or " + names[len(names)-1]
}

// options returns those of a Kafka client that connects as the flags say.
func (f *loginFlags) options() ([]kgo.Opt, error) {
	var opts []kgo.Opt
	if f.tls || f.ca != "" || f.cert != "" || f.key != "" {
		c, err := f.tlsConfig()
		if err != nil {
			return nil, err
		}
		opts = append(opts, kgo.DialTLSConfig(c))
	}
	if f.sasl == "" && f.user == "" {
		return opts, nil
	}
	m, err := f.mechanism()
	if err != nil {
		return nil, err
	}
	return append(opts, kgo.SASL(m)), nil
}

func (f *loginFlags) tlsConfig() (*tls.Config, error) {
	c := &tls.Config{}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("--tls-ca: %w", err)
		}
		if c.RootCAs = x509.NewCertPool(); !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("--tls-ca: %s has no PEM certificate; one in another form is converted with: openssl x509 -inform der -in FILE", f.ca)
		}
	}
	switch {
	case f.cert != "" && f.key == "":
		return nil, fmt.Errorf("--tls-cert %s: give its private key with --tls-key", f.cert)
	case f.cert == "" && f.key != "":
		return nil, fmt.Errorf("--tls-key %s: give the certificate that it belongs to with --tls-cert", f.key)
	case f.cert != "":
		pair, err := tls.LoadX509KeyPair(f.cert, f.key)
		if err != nil {
			return nil, fmt.Errorf("--tls-cert %s, --tls-key %s: %w", f.cert, f.key, err)
		}
		c.Certificates = []tls.Certificate{pair}
	}
	return c, nil
}

func (f *loginFlags) mechanism() (sasl.Mechanism, error) {
	if f.sasl == "" {
		return nil, fmt.Errorf("--user %s: say with --sasl how to log in: %s", f.user, mechanismNames())
	}
	for _, m := range mechanisms {
		if !strings.EqualFold(m.name, f.sasl) {
			continue
		}
		secret := os.Getenv(secretVariable)
		switch {
		case m.named && f.user == "":
			return nil, fmt.Errorf("--sasl %s: give the user with --user, and the password in %s", m.name, secretVariable)
		case secret == "" && m.named:
			return nil, fmt.Errorf("--sasl %s: set the password of user %s in %s", m.name, f.user, secretVariable)
		case secret == "":
			return nil, fmt.Errorf("--sasl %s: set the token in %s", m.name, secretVariable)
		}
		return m.make(f.user, secret), nil
	}
	return nil, fmt.Errorf("--sasl %s: weir logs in with %s", f.sasl, mechanismNames())
}
