package kafka

import (
	"strings"
	"testing"

	"github.com/weirstream/weir/codec"
)

func TestKeyCodecThatIsNoneIsReportedBeforeTheStart(t *testing.T) {
	self := func(s string) string { return s }
	bad := codec.Func[string]("bad", 1, nil, nil)
	for _, key := range []KeyFunc[string]{KeyBy(self, bad), KeyBy[string, string](self, nil), KeyBy[string](nil, codec.String)} {
		if err := Values("out", key, codec.String).Check(); err == nil || !strings.Contains(err.Error(), "one that codec.Check refuses") {
			t.Errorf("got %v", err)
		}
	}
	if err := Values("out", KeyBy(self, codec.String), codec.String).Check(); err != nil {
		t.Error(err)
	}
}
