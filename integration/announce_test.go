package integration

import (
	"fmt"
	"os"
	"testing"
)

// announce writes a line where a person sees it. go test shows what a package prints
// only if it fails or with -v, so the line also goes to the terminal; or, where there
// is none, to the standard error of go test itself.
func announce(line string) {
	fmt.Fprintln(os.Stderr, line)
	if testing.Verbose() {
		return
	}
	for _, path := range []string{"/dev/tty", fmt.Sprintf("/proc/%d/fd/2", os.Getppid())} {
		f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
		if err != nil {
			continue
		}
		_, err = fmt.Fprintln(f, line)
		if f.Close() == nil && err == nil {
			return
		}
	}
}
