package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/weirtest"
)

func TestMain(m *testing.M) { os.Exit(redistest.Main(m, "examples/leaderboard")) }

func TestLeaderboardIsExactAcrossRestartsOfItAndOfRedis(t *testing.T) {
	s := redistest.Start(t, "--appendonly", "yes", "--appendfsync", "everysec")
	broker := weirtest.StartBroker(t, 0).Addrs()[0]
	where := []string{"-brokers", broker, "-redis", s.Addr}
	with := func(more ...string) []string { return append(where[:len(where):len(where)], more...) }
	service := with("-store", t.TempDir(), "-instance", "a")
	for range 3 {
		if err := run(t.Context(), with("-feed", "2000")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- run(ctx, service) }()
		s.Kill(t)
		s.Restart(t)
		redistest.Eventually(t, time.Minute, func() error { return run(t.Context(), with("-check")) })
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	// The check can fail.
	if err := s.Client(t).ZIncrBy(t.Context(), "leaderboard:board", 1, "player-1").Err(); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), with("-check")); err == nil || !strings.Contains(err.Error(), "player-1 has") {
		t.Errorf("a wrong score is not found: %v", err)
	}
}
