package offline

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/weirstream/weir/checkpoint"
)

// OpenStore opens a store that is there already: unlike checkpoint.OpenStore it does
// not make a directory that is missing; the error is fs.ErrNotExist then.
func OpenStore(at string) (checkpoint.Store, error) {
	if dir, ok := directory(at); ok {
		info, err := os.Stat(dir)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil, &noDirectory{at, dir}
		case err != nil:
			return nil, fmt.Errorf("open store %s: %w", at, err)
		case !info.IsDir():
			return nil, fmt.Errorf("open store %s: %s is a file; a store is a directory", at, dir)
		}
	}
	return checkpoint.OpenStore(at)
}

// noDirectory is fs.ErrNotExist with words of its own.
type noDirectory struct{ at, dir string }

func (e *noDirectory) Error() string {
	return fmt.Sprintf("open store %s: there is no directory %s; is the path right, and is it mounted on this machine?", e.at, e.dir)
}

func (e *noDirectory) Is(target error) bool { return target == os.ErrNotExist }

// directory returns the path of a store in a directory.
func directory(at string) (string, bool) {
	if !strings.Contains(at, "://") {
		return at, at != ""
	}
	return strings.CutPrefix(at, "file://")
}
