package docs_test

import (
	"strings"
	"testing"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
)

// Split emits the words of a line.
func Split(line string, emit func(string)) error {
	for w := range strings.FieldsSeq(line) {
		emit(w)
	}
	return nil
}

// Topology is the one that README.md shows.
func Topology(app *weir.App) {
	lines := weir.From(app, "lines", source.Values("lines", codec.String))
	words := weir.FlatMap(lines, "split", Split)
	byWord := weir.KeyBy(words, "by-word", func(w string) string { return w }, codec.String)
	counts := weir.Aggregate(byWord, "count", weir.Count[string]())
	weir.To(counts, "counts", kafka.Sink("counts", codec.String, codec.Int64))
}

func TestTopologyOfTheReadme(t *testing.T) {
	brokers := cluster(t, "lines", "counts")
	produce(t, brokers, "lines", "to be", "be")
	app := weir.New("readme", weir.Brokers(brokers...), weir.CheckpointStore("mem://"), weir.Drain())
	Topology(app)
	if err := app.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := len(committed(t, brokers, "counts")); n != 3 {
		t.Errorf("%d counts, want 3", n)
	}
}
