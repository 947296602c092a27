package demo

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/term"
)

const (
	liveEvery  = 100 * time.Millisecond
	plainEvery = 2 * time.Second
	barWidth   = 20 // characters
)

// screen shows lines that stay and, on a terminal, a status line below them that is
// rewritten. It is safe for concurrent use.
type screen struct {
	w     io.Writer
	every time.Duration // between two status lines
	width func() int    // of the terminal; nil: there is none

	mu    sync.Mutex
	shown bool // the cursor stands on a status line
}

func newScreen(w io.Writer, plain bool) *screen {
	s := &screen{w: w, every: plainEvery}
	f, ok := w.(*os.File)
	if plain || !ok || !term.IsTerminal(int(f.Fd())) || os.Getenv("TERM") == "dumb" {
		return s
	}
	s.every = liveEvery
	s.width = func() int {
		width, _, err := term.GetSize(int(f.Fd()))
		if err != nil || width < 1 {
			return 80
		}
		return width
	}
	return s
}

// line prints a line that stays.
func (s *screen) line(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	fmt.Fprintf(s.w, format+"\n", args...)
}

// status shows the status line.
func (s *screen) status(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.width == nil {
		fmt.Fprintln(s.w, line)
		return
	}
	// A line that wraps could not be rewritten.
	if most := s.width() - 1; len(line) > most {
		line = line[:most]
	}
	fmt.Fprint(s.w, "\r"+line+"\x1b[K")
	s.shown = true
}

// close takes the status line away.
func (s *screen) close() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
}

func (s *screen) clear() {
	if s.shown {
		fmt.Fprint(s.w, "\r\x1b[K")
		s.shown = false
	}
}

// bar draws done of total.
func bar(done, total int64) string {
	n := 0
	if total > 0 {
		n = int(min(done*barWidth/total, barWidth))
	}
	return "[" + strings.Repeat("#", n) + strings.Repeat(".", barWidth-n) + "]"
}
