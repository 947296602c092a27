package offline

import (
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/weirstream/weir/checkpoint"
)

// OpenStore opens a store that is there already: unlike checkpoint.OpenStore it does
// not make a directory that is missing.
func OpenStore(at string) (checkpoint.Store, error) {
	if dir, ok := directory(at); ok {
		info, err := os.Stat(dir)
		switch {
		case errors.Is(err, os.ErrNotExist):
			return nil, fmt.Errorf("open store %s: there is no directory %s; is the path right, and is it mounted on this machine?", at, dir)
		case err != nil:
			return nil, fmt.Errorf("open store %s: %w", at, err)
		case !info.IsDir():
			return nil, fmt.Errorf("open store %s: %s is a file; a store is a directory", at, dir)
		}
	}
	return checkpoint.OpenStore(at)
}

// directory returns the path of a store in a directory.
func directory(at string) (string, bool) {
	if !strings.Contains(at, "://") {
		return at, at != ""
	}
	return strings.CutPrefix(at, "file://")
}
