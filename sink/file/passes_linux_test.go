package file

import (
	"errors"
	"syscall"
	"testing"

	"github.com/weirstream/weir/sink"
)

func TestFileServerThatIsOutOfReachIsTriedAgain(t *testing.T) {
	if again := (*sink.Retriable)(nil); !errors.As(passing(syscall.EREMOTEIO), &again) {
		t.Error("an error of a file server's disk is final")
	}
}
