package redistest

import (
	"strings"
	"testing"

	"github.com/Shopify/toxiproxy/v2"
	"github.com/rs/zerolog"
)

// StartToxiproxy starts a toxiproxy in this process, in front of a server, and returns its
// address. Toxics are JSON as its API takes them, such as
//
//	{"type": "limit_data", "toxicity": 0.5, "attributes": {"bytes": 700}}
//
// which ends half of the connections after 700 bytes of answers. They are there before the
// first connection, and stay: taking one away while connections break may hang, because
// a link that ends and the removal wait for each other. For faults that begin and end
// while connections are open there is [Proxy].
func StartToxiproxy(t testing.TB, server string, toxics ...string) string {
	t.Helper()
	api := toxiproxy.NewServer(toxiproxy.NewMetricsContainer(nil), zerolog.Nop())
	p := toxiproxy.NewProxy(api, t.Name(), "127.0.0.1:0", server)
	for _, toxic := range toxics {
		if _, err := p.Toxics.AddToxicJson(strings.NewReader(toxic)); err != nil {
			t.Fatalf("%s: %v", toxic, err)
		}
	}
	if err := p.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(p.Stop)
	return p.Listen
}
