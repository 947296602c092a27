package freeport

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"testing"
)

const (
	each = 20 // ports a process takes
	from = 31000
	till = from + 64
	env  = "TAKE_PORTS"
)

// TestMain takes ports and keeps them until standard input ends, where a test asks for it.
func TestMain(m *testing.M) {
	if os.Getenv(env) == "" {
		os.Exit(m.Run())
	}
	for range each {
		fmt.Println(take(from, till))
	}
	_, _ = os.Stdin.Read(make([]byte, 1))
}

func TestNoPortIsTakenTwice(t *testing.T) {
	t.Cleanup(func() {
		for _, c := range claims {
			c.Close()
		}
		claims = nil
	})
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), env+"=1")
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	taken := map[int]bool{}
	lines := bufio.NewScanner(stdout)
	for range each {
		lines.Scan()
		var port int
		if _, err := fmt.Sscan(lines.Text(), &port); err != nil {
			t.Fatal(err)
		}
		taken[port] = true
	}
	for range each {
		taken[take(from, till)] = true
	}
	if len(taken) != 2*each {
		t.Errorf("two processes that took %d ports each have %d", each, len(taken))
	}
	stdin.Close()
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	for range each { // what a process had is free when it is gone
		take(from, till)
	}
}
