package demo

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// life is one run of the worker process.
type life struct {
	cmd     *exec.Cmd
	stdin   io.WriteCloser
	started time.Time
	stderr  tail
	done    chan struct{} // closed when the process is gone and all it said was heard
	err     error         // set before done is closed

	checkpoint atomic.Int64 // newest restored or committed one
}

// begin starts a worker process. committed counts the checkpoints of all of them.
func begin(cmd *exec.Cmd, committed *atomic.Int64) (*life, error) {
	l := &life{cmd: cmd, done: make(chan struct{})}
	cmd.Stderr = &l.stderr
	var err error
	if l.stdin, err = cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	l.started = time.Now()
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start worker: %w", err)
	}
	go func() {
		defer close(l.done)
		for lines := bufio.NewScanner(stdout); lines.Scan(); {
			var what string
			var id int64
			if n, _ := fmt.Sscan(lines.Text(), &what, &id); n != 2 {
				continue
			}
			l.checkpoint.Store(id)
			if what == saidCommitted {
				committed.Add(1)
			}
		}
		l.err = cmd.Wait()
	}()
	return l, nil
}

// kill kills the process with SIGKILL, where there are signals, and waits until it
// is gone. It tells how long the process lived.
func (l *life) kill() time.Duration {
	lived := time.Since(l.started)
	_ = l.cmd.Process.Kill() // it may be gone already
	<-l.done
	return lived
}

// stop asks the process to end in good order. It is killed if that takes too long.
func (l *life) stop() error {
	_, err := io.WriteString(l.stdin, stopWord+"\n")
	select {
	case <-l.done:
		err = errors.Join(err, l.err)
	case <-time.After(stopPatience):
		l.kill()
		return fmt.Errorf("the worker didn't stop within %v%s", stopPatience, l.stderr.quote())
	}
	if err != nil {
		return fmt.Errorf("stop the worker: %w%s", err, l.stderr.quote())
	}
	return nil
}

// stopPatience is how long an orderly end may take.
const stopPatience = 15 * time.Second

// died is the error of a process that ended by itself.
func (l *life) died() error {
	if l.err == nil {
		return fmt.Errorf("the worker ended by itself%s", l.stderr.quote())
	}
	return fmt.Errorf("the worker ended by itself: %w%s", l.err, l.stderr.quote())
}

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

// tailSize is how many bytes a tail keeps.
const tailSize = 4 << 10

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if over := len(t.b) - tailSize; over > 0 {
		t.b = append(t.b[:0], t.b[over:]...)
	}
	return len(p), nil
}

// quote returns what was written, as lines to append to an error message.
func (t *tail) quote() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	b := bytes.TrimSpace(t.b)
	if len(b) == 0 {
		return ""
	}
	return "; it said:\n  " + strings.ReplaceAll(string(b), "\n", "\n  ")
}
