package state

import (
	"strings"
	"testing"

	"github.com/weirstream/weir/codec"
)

// nothing is a backing that holds nothing.
type nothing struct{ Backing }

func (nothing) Get(dst, key []byte, _ int64) ([]byte, bool, error) { return dst, false, nil }

// What changes before anything was ever encoded has its weight, too.
func TestFirstChangesWeighWhatTheyHold(t *testing.T) {
	const keys, size = 1000, 500
	ks := NewKeyspace(codec.String, Config{Backing: nothing{}, MemoryBytes: 1, Committed: func() int64 { return 0 }})
	scope := NewScope("op")
	v := Value(benchSetup{scope}, "v", codec.String)
	ks.Attach(scope, []uint16{1})
	for i := range keys {
		ks.Use(strings.Repeat("k", 20)+string(rune('a'+i%26))+strings.Repeat("x", i/26), 0)
		v.Set(strings.Repeat("v", size))
	}
	if got, least := ks.Memory(), int64(keys*(size+20)); got < least || got > 3*least {
		t.Errorf("%d keys with values of %d bytes weigh %d bytes, want somewhat more than %d", keys, size, got, least)
	}
}
