package main

import (
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	goredis "github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"

	"github.com/weirstream/weir/internal/redistest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m, "cmd/weir")) }

func TestRedisMarkersAreListed(t *testing.T) {
	s := redistest.Shared(t)
	cl := s.Client(t)
	at := time.Date(2026, 11, 21, 18, 0, 0, 0, time.UTC)
	setClock(t, at.Add(14*time.Second))
	for key, value := range map[string]string{
		"shop:weir:marker:shop:totals":       "weir1 lineage=00000000000000a1 checkpoint=4711 operations=256 app=shop sink=totals instance=host-a at=2026-11-21T18:00:00.000Z",
		"shop:weir:marker:{1}:shop:by-slot":  "weir1 lineage=00000000000000a1 checkpoint=4710 operations=2 app=shop sink=by-slot instance=host-a at=2026-11-21T18:00:00.000Z",
		"shop:weir:marker:{2}:shop:by-slot":  "weir1 lineage=00000000000000b2 checkpoint=4712 operations=3 app=shop sink=by-slot instance=host-b at=2026-11-21T18:00:04.000Z",
		"other:weir:marker:shop:totals":      "weir1 lineage=00000000000000a1 checkpoint=1 operations=1 app=shop sink=totals instance=host-a at=2026-11-21T18:00:00.000Z",
		"shop:weir:dead:shop:totals-no-list": "x",
	} {
		if err := cl.Set(t.Context(), key, value, 0).Err(); err != nil {
			t.Fatal(err)
		}
	}
	got := mustRun(t, "redis", "markers", "--addr", s.Addr, "--prefix", "shop:")
	want := `APP   SINK     CHECKPOINT  OPERATIONS  MOVED    BY      LINEAGE                            MARKERS
shop  by-slot  4712        3           10s ago  host-b  00000000000000b2 00000000000000a1  2
shop  totals   4711        256         14s ago  host-a  00000000000000a1                   1
`
	if got != want {
		t.Errorf("printed\n%s\nwant\n%s", got, want)
	}
	if got := mustRun(t, "redis", "markers", "--addr", s.Addr, "--prefix", "shop:", "--all"); strings.Count(got, "\n") != 4 || !strings.Contains(got, "shop:weir:marker:{2}:shop:by-slot") {
		t.Errorf("printed\n%s", got)
	}
	got = mustRun(t, "redis", "markers", "--addr", s.Addr, "--prefix", "other:", "-o", "json")
	if want := `{"app":"shop","sink":"totals","lineage":"00000000000000a1","checkpoint":1,"operations":1,"instance":"host-a","at":"2026-11-21T18:00:00Z","key":"other:weir:marker:shop:totals"}` + "\n"; got != want {
		t.Errorf("printed %s, want %s", got, want)
	}
	if _, said, err := run(t, "redis", "markers", "--addr", s.Addr, "--prefix", "none:"); err != nil || !strings.Contains(said, "--prefix") {
		t.Errorf("%q, %v", said, err)
	}
	refused(t, []string{"redis", "markers", "--addr", "127.0.0.1:1"}, "127.0.0.1:1", "unavailable")
	refused(t, []string{"redis", "markers", "--addr", s.Addr, "--output", "xml"}, "xml")
	refused(t, []string{"redis", "markers", "--addr", s.Addr, "--user", "nobody"}, "WEIR_REDIS_PASSWORD")
	if err := cl.Set(t.Context(), "bad:weir:marker:a:b", "x", 0).Err(); err != nil {
		t.Fatal(err)
	}
	refused(t, []string{"redis", "markers", "--addr", s.Addr, "--prefix", "bad:"}, "bad:weir:marker:a:b")
}

// clientLog is what the Redis client says by itself.
type clientLog struct{ t *testing.T }

func (l clientLog) Printf(_ context.Context, format string, args ...any) {
	l.t.Errorf("the client said %q", fmt.Sprintf(format, args...))
}

func TestRedisThatIsAwayIsOneError(t *testing.T) {
	goredis.SetLogger(clientLog{t})
	t.Cleanup(func() { goredis.SetLogger(&logging.VoidLogger{}) })
	refused(t, []string{"redis", "markers", "--addr", "127.0.0.1:1"}, "127.0.0.1:1", "unavailable")
}
