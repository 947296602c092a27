package docs_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/file"
	"github.com/weirstream/weir/sink/twophase"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/weirtest/conformance"
)

func salesToFiles(sales weir.Stream[Sale], dir string) {
	weir.To(sales, "sales-files", file.Lines(file.Options{Dir: dir, Prefix: "sales-", Suffix: ".jsonl"},
		func(dst []byte, s Sale) ([]byte, error) {
			b, err := json.Marshal(s)
			return append(dst, b...), err
		}))
}

// salesIn reads a file that file.Records wrote.
func salesIn(path string) (sales []Sale, err error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	for s, err := range file.Read(f, codec.JSON[Sale]()) {
		if err != nil {
			return nil, err
		}
		sales = append(sales, s)
	}
	return sales, nil
}

// ledgerConforms checks a participant of one's own.
func ledgerConforms(t *testing.T, open func(testing.TB) conformance.Transactional[Sale], samples []Sale) {
	conformance.TwoPhase[Sale]{New: open, Values: samples}.Run(t)
}

func TestGuidesFilesAreWritten(t *testing.T) {
	brokers := cluster(t, "sales")
	produce(t, brokers, "sales", `{"ID":"1","Shop":"a"}`, `{"ID":"2","Shop":"b"}`)
	lines, records := filepath.Join(t.TempDir(), "lines"), filepath.Join(t.TempDir(), "records")
	app := weir.New("shop", weir.Brokers(brokers...), weir.Store(checkpoint.NewMem()), weir.CheckpointEvery(time.Minute), weir.Drain())
	sales := weir.From(app, "sales-in", source.Values("sales", codec.JSON[Sale]()))
	salesToFiles(sales, lines)
	weir.To(sales, "records", file.Records(file.Options{Dir: records, Prefix: "sales-"}, codec.JSON[Sale](), twophase.MaxPending(2)))
	if err := app.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	var text string
	found, err := filepath.Glob(filepath.Join(lines, "sales-*.jsonl"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		text += read(t, f)
	}
	if n := strings.Count(text, "\n"); n != 2 || !strings.Contains(text, `"ID":"1"`) {
		t.Errorf("lines: %q", text)
	}
	n := 0
	if found, err = filepath.Glob(filepath.Join(records, "sales-*")); err != nil {
		t.Fatal(err)
	}
	for _, f := range found {
		sales, err := salesIn(f)
		if err != nil {
			t.Fatal(err)
		}
		n += len(sales)
	}
	if n != 2 {
		t.Errorf("%d records", n)
	}
}

var _ = ledgerConforms // the guide has it
