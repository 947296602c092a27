package weir_test

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/state/pebble"
)

// What is wrong in the checkpoint store a restart cannot mend, so none is tried.
func TestS04_SegmentThatTheLocalStoreLacksIsRefusedByNameAtOnce(t *testing.T) {
	for name, damage := range map[string]func(path string) error{
		"deleted":   os.Remove,
		"truncated": func(path string) error { return os.Truncate(path, 1000) },
	} {
		t.Run(name, func(t *testing.T) {
			brokers := broker(t, 4, "lines", "counts")
			dir, local := t.TempDir(), filepath.Join(t.TempDir(), "state")
			store, err := checkpoint.OpenDir(dir)
			if err != nil {
				t.Fatal(err)
			}
			produce(t, brokers, "lines", words(20_000, 20_000)...)
			life := &keyedLife{brokers: brokers, store: store, backend: pebble.Dir(local), opts: []weir.Option{weir.CheckpointEvery(time.Hour)}}
			life.run(t)
			segments, err := filepath.Glob(filepath.Join(dir, "seg", "*"))
			if err != nil || len(segments) != 1 {
				t.Fatalf("segments %q, %v; want one", segments, err)
			}
			if err := errors.Join(damage(segments[0]), os.RemoveAll(local)); err != nil {
				t.Fatal(err)
			}
			app := weir.New("wordcount", weir.Brokers(brokers...), weir.Store(store), weir.InstanceID("a"), weir.StateBackend(pebble.Dir(local)),
				weir.Drain(), weir.Listen(weir.Listener{Restarting: func(i event.Restarting) { t.Errorf("restarted: %v", i) }}))
			wordCount(app)
			if err := app.Run(t.Context()); err == nil || !strings.Contains(err.Error(), "seg/"+filepath.Base(segments[0])) {
				t.Errorf("the error does not name %s: %v", segments[0], err)
			}
		})
	}
}
