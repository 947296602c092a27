package main

import (
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/weirtest"
)

// argsEnv makes the test binary the example, with these arguments.
const argsEnv = "LEADERBOARD_TEST_ARGS"

func TestMain(m *testing.M) {
	if args := os.Getenv(argsEnv); args != "" {
		os.Args = append(os.Args[:1], strings.Fields(args)...)
		main()
		return
	}
	os.Exit(redistest.Main(m, "examples/leaderboard"))
}

func TestLeaderboardIsExactAcrossKillsOfItAndOfRedis(t *testing.T) {
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
	// Now with kill -9.
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	start := func() *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), self)
		cmd.Env = append(os.Environ(), argsEnv+"="+strings.Join(service, " "))
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	kill := func(cmd *exec.Cmd) {
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		_ = cmd.Wait() // it was killed
	}
	const kills = 10
	for range kills {
		cmd := start()
		if err := run(t.Context(), with("-feed", "1000")); err != nil {
			t.Fatal(err)
		}
		time.Sleep(rand.N(300 * time.Millisecond)) // the instant of the kill; nothing waits for it
		kill(cmd)
	}
	cmd := start()
	redistest.Eventually(t, time.Minute, func() error { return run(t.Context(), with("-check")) })
	kill(cmd)
	// The check can fail.
	if err := s.Client(t).ZIncrBy(t.Context(), "leaderboard:board", 1, "player-1").Err(); err != nil {
		t.Fatal(err)
	}
	if err := run(t.Context(), with("-check")); err == nil || !strings.Contains(err.Error(), "player-1 has") {
		t.Errorf("a wrong score is not found: %v", err)
	}
}
