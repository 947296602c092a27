package redis

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/weirstream/weir/internal/redistest"
)

// TestCommandsThatNoServerRunsInAScriptAreKnown asks each kind of server which commands
// those are.
func TestCommandsThatNoServerRunsInAScriptAreKnown(t *testing.T) {
	for _, image := range []string{redistest.Redis, redistest.Redis7, redistest.Valkey} {
		t.Run(image, func(t *testing.T) {
			cl := redisClient(t, server(t, image).Addr)
			commands, err := cl.Command(t.Context()).Result()
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for name, info := range commands {
				if !slices.Contains(info.Flags, "noscript") {
					continue
				}
				n++
				if !slices.Contains(unscripted, strings.ToUpper(name)) {
					t.Errorf("%s is not allowed in scripts", name)
				}
				w := &Batch{}
				if err := w.record(func() { w.Do(name, Key("k")) }); !errors.Is(err, ErrNotInScript) {
					t.Errorf("%s: %v", name, err)
				}
			}
			if n < 10 {
				t.Errorf("only %d such commands", n)
			}
		})
	}
}
