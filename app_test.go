package weir_test

import (
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// wantErrors checks that err is a BuildError that contains each of the texts.
func wantErrors(t *testing.T, err error, texts ...string) {
	t.Helper()
	var be *weir.BuildError
	if !errors.As(err, &be) {
		t.Fatalf("got %v, want a BuildError", err)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("the error lacks %q:\n%v", text, err)
		}
	}
}

func TestEveryMistakeOfATopologyIsReportedAtOnce(t *testing.T) {
	app := weir.New("bad", weir.Brokers("localhost:1"), weir.CheckpointStore("mem://"))
	lines := weir.From(app, "lines", source.Values("lines", codec.String))
	same := weir.From(app, "lines-again", source.Values("lines", codec.String))
	kept := weir.Filter(lines, "lines", func(string) bool { return true })
	byWord := weir.KeyBy(kept, "by-word", func(s string) string { return s }, nil)
	weir.Process(byWord, "twice", func(s *weir.Setup) weir.Handler[string, string, string] {
		state.Value(s, "total", codec.Int64)
		state.Value(s, "total", codec.Int64)
		return weir.OnRecord(func(*weir.Context[string, string], string) error { return nil })
	})
	weir.To(same, "out", kafka.Values("", kafka.NoKey, codec.String))
	side := weir.Side[string]("none").From(kept)
	weir.To(side, "nil", nil)
	wantErrors(t, app.Validate(),
		`weir: bad: cannot build:`,
		`operator "lines": ID used twice (app_test.go:`,
		`topic "lines" is read by two sources`,
		`operator "by-word": key type string has no codec`,
		`operator "twice": state name "total" used twice`,
		`operator "twice": nothing uses its output`,
		`sink "out": kafka sink without a topic`,
		`side output "none": operator "lines" is a filter`,
		`sink "nil": is nil`,
	)
}

func TestEveryMistakeOfTheOptionsIsReportedAtOnce(t *testing.T) {
	t.Setenv("WEIR_SKIP", "no-partition@x")
	t.Setenv("WEIR_INTERVAL", "soon")
	app := weir.New(strings.Repeat("long", 30),
		weir.FromEnv(),
		weir.CheckpointStore("ftp://host/path"),
		weir.KeyGroups(4), weir.Parallelism(8), weir.Retain(0), weir.BloomBits(0),
		weir.CheckpointTimeout(-time.Second),
		weir.KafkaOptions(kgo.TransactionalID("mine"), kgo.ConsumerGroup("mine")),
		weir.OnMismatch("guess"),
		weir.DeadLetters("in"),
	)
	in := weir.From(app, "in", source.Values("in", codec.String))
	weir.To(in, "out", kafka.Values("out", kafka.NoKey, codec.String))
	wantErrors(t, app.Validate(),
		"no brokers: set weir.Brokers or WEIR_BROKERS",
		`WEIR_INTERVAL="soon"`,
		`want topic/partition@offset`,
		"ftp",
		"weir.Parallelism(8): there are only 4 key-groups",
		"weir.Retain(0)",
		"weir.BloomBits(0)",
		"weir.CheckpointTimeout(-1s)",
		"TransactionalID", "ConsumerGroup",
		`recovery "guess"`,
		`dead-letter topic "in" is an input of the app`,
		"instance",
	)
}

func TestDescribeShowsOperatorsInputsAndStates(t *testing.T) {
	app := weir.New("wordcount", weir.Brokers("localhost:1"), weir.CheckpointStore("mem://"), weir.InstanceID("a"))
	wordCount(app)
	got := app.Describe()
	for _, want := range []string{
		"app wordcount: group wordcount, instance a, 128 key-groups",
		"every 100ms", "mem://",
		"lines [topic lines]", "split <- lines", "count <- by-word (state: acc int64)", "counts [kafka topic counts] <- count",
	} {
		if !strings.Contains(got, want) {
			t.Errorf("Describe lacks %q:\n%s", want, got)
		}
	}
}
