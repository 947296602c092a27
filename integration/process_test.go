package integration

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/weirstream/weir/internal/crashpoint"
)

// happened is a line that the service printed.
type happened struct {
	Event      string `json:"event"`
	Checkpoint int64  `json:"checkpoint"`
	Error      string `json:"error"`
	Records    int64  `json:"records"`
	Partitions int    `json:"partitions"`
	Entries    int64  `json:"entries"`
	Segments   int    `json:"segments"`
	Assigned   int    `json:"assigned"`
	Revoked    int    `json:"revoked"`
	Lost       int    `json:"lost"`
	Attempt    int    `json:"attempt"`
	Offset     int64  `json:"offset"`
	How        string `json:"how"`
	Reason     string `json:"reason"`
	Decoded    int64  `json:"decoded"`
	Goroutines int    `json:"goroutines"`
	InFlight   int64  `json:"inFlight"`

	at time.Time // when the test read it
}

// process is one run of the service.
type process struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	begun time.Time

	mu      sync.Mutex
	changed chan struct{} // closed and replaced with every event and at the end
	events  []happened
	stderr  bytes.Buffer
	over    bool
	state   *os.ProcessState
}

// launch starts the service. It is killed with the test, and what it said is printed
// if the test failed.
func launch(t *testing.T, name string, env []string, args ...string) *process {
	t.Helper()
	bin, err := serviceBinary()
	if err != nil {
		t.Fatal(err)
	}
	p := &process{t: t, name: name, cmd: exec.Command(bin, args...), changed: make(chan struct{})}
	// What tunes the test's own memory is not meant for the service, whose memory is judged.
	p.cmd.Env = append(slices.DeleteFunc(os.Environ(), func(kv string) bool {
		return strings.HasPrefix(kv, "WEIR_") || strings.HasPrefix(kv, "GOGC=") || strings.HasPrefix(kv, "GOMEMLIMIT=")
	}), env...)
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.Stderr = lockedWriter{p}
	p.begun = time.Now()
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		lines := bufio.NewScanner(stdout)
		for lines.Scan() {
			h := happened{at: time.Now()}
			if err := json.Unmarshal(lines.Bytes(), &h); err != nil {
				h = happened{Event: "garbage", Error: lines.Text(), at: time.Now()} // torn by a SIGKILL
			}
			p.mu.Lock()
			p.events = append(p.events, h)
			p.tellLocked()
			p.mu.Unlock()
		}
		_ = p.cmd.Wait() // the state says it
		p.mu.Lock()
		p.over, p.state = true, p.cmd.ProcessState
		p.tellLocked()
		p.mu.Unlock()
	}()
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // it may be over
		<-ended
		if t.Failed() {
			t.Log(p.story())
		}
	})
	return p
}

type lockedWriter struct{ p *process }

func (w lockedWriter) Write(b []byte) (int, error) {
	w.p.mu.Lock()
	defer w.p.mu.Unlock()
	return w.p.stderr.Write(b)
}

func (p *process) tellLocked() {
	close(p.changed)
	p.changed = make(chan struct{})
}

// story is what the process said.
func (p *process) story() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	most := 30 // lines of each kind
	if p.over && p.state.Success() {
		most = 5 // the test has more to say
	}
	var b strings.Builder
	fmt.Fprintf(&b, "%s (%v), the last events:\n", p.name, p.state)
	events := slices.DeleteFunc(slices.Clone(p.events), func(h happened) bool { return h.Event == "deadlettered" })
	for _, e := range events[max(0, len(events)-most):] {
		fmt.Fprintf(&b, "  %8.3f %s %d %s\n", e.at.Sub(p.begun).Seconds(), e.Event, e.Checkpoint, e.Error)
	}
	lines := slices.DeleteFunc(strings.Split(p.stderr.String(), "\n"), func(l string) bool { return strings.Contains(l, "to the dead-letter topic") })
	fmt.Fprintf(&b, "standard error, the last lines:\n%s", strings.Join(lines[max(0, len(lines)-most):], "\n"))
	return b.String()
}

// until waits for done, which is called with p.mu held.
func (p *process) until(what string, within time.Duration, done func() bool) {
	p.t.Helper()
	timeout := time.After(within)
	for late := false; ; {
		p.mu.Lock()
		ok, over, changed := done(), p.over, p.changed
		p.mu.Unlock()
		switch {
		case ok:
			return
		case over:
			p.t.Fatalf("%s ended while the test waited for %s\n%s", p.name, what, p.story())
		case late:
			p.t.Fatalf("%s: no %s within %v\n%s\n%s", p.name, what, within, p.story(), p.goroutines())
		}
		select {
		case <-changed:
		case <-timeout:
			late = true // but the test may have been held up itself
		}
	}
}

// goroutines ends the process and returns where its goroutines were.
func (p *process) goroutines() string {
	_ = p.cmd.Process.Signal(syscall.SIGQUIT) // it may be over
	gone := time.After(reapTime)
	for {
		p.mu.Lock()
		over, changed, said := p.over, p.changed, p.stderr.String()
		p.mu.Unlock()
		if !over {
			select {
			case <-changed:
				continue
			case <-gone:
			}
		}
		if i := strings.Index(said, "SIGQUIT: quit"); i >= 0 {
			return said[i:]
		}
		return "no goroutines were told"
	}
}

// await waits for the n-th event with that name since the process began.
func (p *process) await(event string, n int, within time.Duration) happened {
	p.t.Helper()
	var h happened
	p.until(fmt.Sprintf("event %q number %d", event, n), within, func() bool {
		left := n
		for _, e := range p.events {
			if e.Event == event {
				if left--; left == 0 {
					h = e
					return true
				}
			}
		}
		return false
	})
	return h
}

// next waits for an event with that name after those that came so far.
func (p *process) next(event string, within time.Duration) happened {
	p.t.Helper()
	return p.await(event, p.count(event)+1, within)
}

// untilCommitted waits for a commit for which done holds.
func (p *process) untilCommitted(what string, within time.Duration, done func(c happened) bool) {
	p.t.Helper()
	p.until("commit with "+what, within, func() bool {
		return slices.ContainsFunc(p.events, func(e happened) bool { return e.Event == "committed" && done(e) })
	})
}

// inFlight waits for a commit of a checkpoint with records in flight.
func (p *process) inFlight(within time.Duration) {
	p.t.Helper()
	p.untilCommitted("records in flight", within, func(c happened) bool { return c.InFlight > 0 })
}

func (p *process) count(event string) int { return len(p.all(event)) }

func (p *process) all(event string) []happened {
	p.mu.Lock()
	defer p.mu.Unlock()
	var hs []happened
	for _, e := range p.events {
		if e.Event == event {
			hs = append(hs, e)
		}
	}
	return hs
}

func (p *process) signal(s syscall.Signal) {
	p.t.Helper()
	if err := p.cmd.Process.Signal(s); err != nil && !errors.Is(err, os.ErrProcessDone) {
		p.t.Fatalf("%s: %v: %v", p.name, s, err)
	}
}

// ended waits for the end of the process.
func (p *process) ended(within time.Duration) *os.ProcessState {
	p.t.Helper()
	p.until("end", within, func() bool { return p.over })
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// kill sends SIGKILL and waits for the end.
func (p *process) kill() {
	p.t.Helper()
	p.signal(syscall.SIGKILL)
	p.ended(reapTime)
}

// killAtRandom is kill, at an instant within that time which nobody chose. The instant
// is the test's input; nothing waits for it.
func (p *process) killAtRandom(within time.Duration) {
	p.t.Helper()
	<-time.After(rand.N(within))
	p.kill()
	randomKills.Add(1)
}

// stop asks for a clean end.
func (p *process) stop() {
	p.t.Helper()
	p.signal(syscall.SIGTERM)
	p.exits(0)
}

// exits waits for the end and wants that status.
func (p *process) exits(code int) {
	p.t.Helper()
	if st := p.ended(exitTime); st.ExitCode() != code {
		p.t.Fatalf("%s: %v, want exit status %d\n%s", p.name, st, code, p.story())
	}
}

// refuses waits for the end with an error that says all of these, and returns what
// was said.
func (p *process) refuses(says ...string) string {
	p.t.Helper()
	p.exits(1)
	p.mu.Lock()
	text := p.stderr.String()
	p.mu.Unlock()
	// The error is what follows the log.
	if i := strings.LastIndex(text, "weir: "); i >= 0 {
		text = text[i:]
	}
	for _, s := range says {
		if !strings.Contains(text, s) {
			p.t.Fatalf("%s ended with an error that doesn't say %q:\n%s", p.name, s, text)
		}
	}
	return text
}

// diesOfItself waits until an armed crash point killed the process.
func (p *process) diesOfItself(point crashpoint.Point, within time.Duration) {
	p.t.Helper()
	st := p.ended(within)
	ws, ok := st.Sys().(syscall.WaitStatus)
	if !ok || !ws.Signaled() || ws.Signal() != syscall.SIGKILL {
		p.t.Fatalf("%s: %v, want a SIGKILL at crash point %s\n%s", p.name, st, point, p.story())
	}
}

const (
	reapTime = 60 * time.Second
	// exitTime is what a process may take to come to its own end.
	exitTime = 40 * time.Second
	// progressTime is what it may take to the next event on a slow machine.
	progressTime = 40 * time.Second
)
