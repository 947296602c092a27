package weir_test

import (
	"errors"
	"fmt"
	"math"
	"net/netip"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/file"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
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
		weir.KeyGroups(4), weir.Parallelism(8), weir.Retain(0), weir.BloomBits(0), weir.MergeFanIn(1),
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
		"weir.MergeFanIn(1)",
		"weir.CheckpointTimeout(-1s)",
		"TransactionalID", "ConsumerGroup",
		`recovery "guess"`,
		`dead-letter topic "in" is an input of the app`,
		"instance",
	)
}

func TestParallelismThatNobodySetFitsTheKeyGroups(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(8))
	for groups, want := range map[int]string{128: "8 subtasks", 4: "4 subtasks"} {
		app := weir.New("app", weir.Brokers("b:1"), weir.CheckpointStore("mem://"), weir.InstanceID("a"), weir.KeyGroups(groups))
		in := weir.From(app, "in", source.Values("in", codec.String))
		weir.To(in, "out", kafka.Values("out", kafka.NoKey, codec.String))
		if err := app.Validate(); err != nil {
			t.Error(err)
		}
		if plan := app.Describe(); !strings.Contains(plan, want) {
			t.Errorf("%d key-groups: %s", groups, plan)
		}
	}
}

func TestAVariableThatCannotBeReadIsOneMistake(t *testing.T) {
	t.Setenv("WEIR_INTERVAL", "100")
	t.Setenv("WEIR_PARALLELISM", "all")
	app := weir.New("app", weir.FromEnv(), weir.Brokers("b:1"), weir.CheckpointStore("mem://"), weir.InstanceID("a"))
	in := weir.From(app, "in", source.Values("in", codec.String))
	weir.To(in, "out", kafka.Values("out", kafka.NoKey, codec.String))
	err := app.Validate()
	wantErrors(t, err, `WEIR_INTERVAL="100": want a duration such as 100ms`, `WEIR_PARALLELISM="all": want a number`)
	if n := strings.Count(err.Error(), "\n"); n != 2 {
		t.Errorf("want the two and nothing that follows from them: %v", err)
	}
}

func TestFunctionsAndOptionsThatAreNilAreReportedWithTheirPlace(t *testing.T) {
	app := weir.New("app", weir.Brokers("b:1"), weir.CheckpointStore("mem://"), weir.InstanceID("a"))
	read := func(topic string, opts ...weir.SourceOption) weir.Stream[string] {
		return weir.From(app, topic, source.Values(topic, codec.String), opts...)
	}
	out := func(s weir.Stream[string], id string) { weir.To(s, id, kafka.Values("out", kafka.NoKey, codec.String)) }
	in := read("in")
	out(weir.Map[string, string](in, "map", nil), "of-map")
	out(weir.FlatMap[string, string](in, "flatmap", nil), "of-flatmap")
	out(weir.Filter(in, "filter", nil), "of-filter")
	out(read("undecodable", weir.OnUndecodable(nil)), "of-undecodable")
	out(read("option", nil), "of-option")
	out(read("time", weir.RecordTime(weir.OutOfOrder(0), nil)), "of-time")
	out(weir.From(app, "codec", source.Values[string]("codec", nil)), "of-codec")
	weir.To(in, "key", kafka.Values("out", kafka.KeyBy[string, string](nil, codec.String), codec.String))
	self := func(s string) string { return s }
	byKey := weir.KeyBy(in, "edge", self, codec.String, nil)
	var none func(string) int64
	for id, agg := range map[string]weir.Aggregator[string, *int64, int64]{"max": weir.Max(none, codec.Int64), "min": weir.Min(none, codec.Int64)} {
		weir.To(weir.Aggregate(byKey, id, agg), "of-"+id, kafka.Sink("out", codec.String, codec.Int64))
	}
	weir.To(weir.Aggregate(byKey, "sum", weir.Sum(none)), "of-sum", kafka.Sink("out", codec.String, codec.Int64))
	out(weir.Process(byKey, "states", func(s *weir.Setup) weir.Handler[string, string, string] {
		state.Value(s, "value", codec.String, nil)
		state.Map(s, "map", codec.String, codec.String, state.TTL(time.Hour, nil))
		return weir.OnRecord(func(*weir.Context[string, string], string) error { return nil })
	}), "of-states")
	at := "(app_test.go:"
	wantErrors(t, app.Validate(),
		`operator "map": the function is nil `+at, `operator "flatmap": the function is nil `+at, `operator "filter": the function is nil `+at,
		`operator "undecodable": weir.OnUndecodable: the function is nil`,
		`operator "option": option 1 of the source is nil `+at, `operator "time": option 2 of event time is nil `+at, `operator "edge": option 1 is nil `+at,
		`operator "codec": codec for string is nil`, `sink "key": kafka sink for topic "out": the key function is nil`,
		`operator "max": the aggregator needs`, `operator "min": the aggregator needs`, `operator "sum": the aggregator needs`,
		`operator "states": state "value": option 1 is nil `+at, `operator "states": state "map": option 1 of the time to live is nil `+at,
	)
}

func TestTimeToLiveInEventTimeNeedsASourceThatTellsIt(t *testing.T) {
	expiring := func(opts ...weir.SourceOption) error {
		app := weir.New("app", weir.Brokers("b:1"), weir.CheckpointStore("mem://"), weir.InstanceID("a"))
		in := weir.From(app, "in", source.Values("in", codec.String), opts...)
		byKey := weir.KeyBy(in, "by-key", func(s string) string { return s }, codec.String)
		weir.To(weir.Process(byKey, "expiring", func(s *weir.Setup) weir.Handler[string, string, string] {
			state.Value(s, "seen", codec.String, state.TTL(time.Hour, state.InEventTime))
			state.Map(s, "seen-too", codec.String, codec.String, state.TTL(time.Hour, state.InEventTime))
			return weir.OnRecord(func(*weir.Context[string, string], string) error { return nil })
		}), "out", kafka.Values("out", kafka.NoKey, codec.String))
		return app.Validate()
	}
	wantErrors(t, expiring(), `operator "expiring": state "seen" would never expire`, `operator "expiring": state "seen-too" would never expire`, "(app_test.go:")
	if err := expiring(weir.RecordTime()); err != nil {
		t.Error(err)
	}
}

// A commit is given up when its transaction is older than half of the timeout, and one with
// outputs is as old as the interval is long.
func TestIntervalHasToFitIntoHalfOfTheTransactionTimeout(t *testing.T) {
	validate := func(to func(weir.Stream[string]), opts ...weir.Option) error {
		app := weir.New("app", append([]weir.Option{weir.Brokers("b:1"), weir.CheckpointStore("mem://"), weir.InstanceID("a")}, opts...)...)
		to(weir.From(app, "in", source.Values("in", codec.String)))
		return app.Validate()
	}
	toKafka := func(s weir.Stream[string]) { weir.To(s, "out", kafka.Values("out", kafka.NoKey, codec.String)) }
	toFiles := func(s weir.Stream[string]) {
		weir.To(s, "out", file.Lines(file.Options{Dir: t.TempDir()}, func(dst []byte, s string) ([]byte, error) { return append(dst, s...), nil }))
	}
	every, timeout := weir.CheckpointEvery, weir.TransactionTimeout
	for _, c := range []struct {
		name string
		to   func(weir.Stream[string])
		opts []weir.Option
		want []string // none: it is valid
	}{
		{"derived", toKafka, []weir.Option{every(5 * time.Minute)}, nil},
		{"derived, at its most", toKafka, []weir.Option{every(8 * time.Minute)}, []string{
			"weir.CheckpointEvery(8m0s)", "weir.TransactionTimeout, derived as 15m0s", "weir.TransactionTimeout(16m1s)", "transaction.max.timeout.ms"}},
		{"derived, with other triggers", toKafka, []weir.Option{every(8 * time.Minute), weir.AfterRecords(1)}, []string{"weir.CheckpointEvery(8m0s)"}},
		{"derived, without a checkpoint timeout to speak of", toKafka, []weir.Option{every(time.Minute), weir.CheckpointTimeout(time.Millisecond), weir.TolerableFailures(0)}, nil},
		{"set", toKafka, []weir.Option{every(2 * time.Second), timeout(5 * time.Second)}, nil},
		{"set, too short", toKafka, []weir.Option{every(2 * time.Second), timeout(4 * time.Second)}, []string{
			"weir.CheckpointEvery(2s)", "weir.TransactionTimeout(4s)", "weir.TransactionTimeout(5s)"}},
		{"set, long enough", toKafka, []weir.Option{every(8 * time.Minute), timeout(20 * time.Minute)}, nil},
		{"pause", toKafka, []weir.Option{weir.MinPause(8 * time.Minute)}, []string{"weir.MinPause(8m0s)"}},
		{"none", toKafka, []weir.Option{every(0), weir.AfterRecords(1), timeout(time.Second)}, nil},
		{"files", toFiles, []weir.Option{every(time.Hour)}, nil},
		{"files, set", toFiles, []weir.Option{every(time.Hour), timeout(time.Minute)}, nil},
		{"files and dead letters", toFiles, []weir.Option{every(time.Hour), weir.DeadLetters("dead")}, []string{"weir.CheckpointEvery(1h0m0s)"}},
		{"no room for a commit", toFiles, []weir.Option{timeout(time.Millisecond)}, []string{"weir.TransactionTimeout(1ms)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			err := validate(c.to, c.opts...)
			if c.want != nil {
				wantErrors(t, err, c.want...)
			} else if err != nil {
				t.Error(err)
			}
		})
	}
}

func TestStreamsOfNoAppAndOfTwoAreReportedWithTheirPlace(t *testing.T) {
	app := weir.New("app", weir.Brokers("b:1"), weir.CheckpointStore("mem://"))
	in := weir.From(app, "in", source.Values("in", codec.String))
	weir.Merge("none", in, weir.Stream[string]{})
	weir.Merge("two", in, weir.From(weir.New("other"), "in", source.Values("in", codec.String)))
	wantErrors(t, app.Validate(), `operator "none": stream 2 is the zero Stream: want one that weir.From or an operator returned (app_test.go:`,
		`operator "two": merges streams of two apps (app_test.go:`)
	for id, build := range map[string]func(){
		"map":       func() { weir.Map(weir.Stream[string]{}, "map", func(s string) (string, error) { return s, nil }) },
		"aggregate": func() { weir.Aggregate(weir.Keyed[string, string]{}, "aggregate", weir.Count[string]()) },
		"side":      func() { weir.Side[string]("side").From(weir.Stream[string]{}) },
		"broadcast": func() { weir.Broadcast(weir.Stream[string]{}) },
		"from":      func() { weir.From(nil, "from", source.Values("in", codec.String)) },
	} {
		t.Run(id, func(t *testing.T) {
			defer func() {
				if said := fmt.Sprint(recover()); !strings.Contains(said, "weir: "+id+" operator") || !strings.Contains(said, "(app_test.go:") {
					t.Errorf("it panics with %s", said)
				}
			}()
			build()
		})
	}
}

func TestOptionsThatCannotDoWhatTheySayAreRefused(t *testing.T) {
	for want, opts := range map[string][]weir.Option{
		`weir.FromSavepoint("", "last"): want the URL of the store`: {weir.FromSavepoint("", "last")},
		`weir.FromSavepoint: option 2 is nil`:                       {weir.FromSavepoint("mem://", "last", weir.AnyApp(), nil)},
		`weir.Store(nil): want an open store`:                       {weir.Store(nil)},
		`weir.New: option 4 is nil`:                                 {nil},
		`address 2 of ["b:1" "" "c:1"] is empty`:                    {weir.Brokers("b:1", "", "c:1")},
		`weir.StateBackend: the backend has no directory`:           {weir.StateBackend(pebble.Dir(""))},
		`weir.AlignmentTimeout(1m0s): a checkpoint is given up`:     {weir.AlignmentTimeout(time.Minute)},
		`weir.MergeBudget(NaN, 0)`:                                  {weir.MergeBudget(math.NaN(), 0)},
		`weir.MergeBudget(+Inf, 0)`:                                 {weir.MergeBudget(math.Inf(1), 0)},
		`weir.CommitTopicReplication(-7): want 1 or more`:           {weir.CommitTopicReplication(-7)},
		`weir.CommitTopicReplication(0): want 1 or more`:            {weir.CommitTopicReplication(0)},
		`weir.CommitTopic("my commits"): a topic name has only`:     {weir.CommitTopic("my commits")},
		`250 characters, a topic name has at most 249`:              {weir.CommitTopic(strings.Repeat("c", 250))},
		`commit topic "in": the app also has it`:                    {weir.CommitTopic("in")},
		`commit topic "out": the app also has it`:                   {weir.CommitTopic("out")},
		`commit topic "dead": the app also has it`:                  {weir.CommitTopic("dead"), weir.DeadLetters("dead")},
		`weir.TakeStore: owner "here" of a store: want group@`:      {weir.TakeStore("here")},
		`partition "-3" is no number of 0 or more`:                  {weir.SkipRecords("in/-3@4")},
		`offset "-4" is no number of 0 or more`:                     {weir.SkipRecords("in/3@-4")},
	} {
		t.Run(want, func(t *testing.T) {
			app := weir.New("app", append([]weir.Option{weir.Brokers("b:1"), weir.CheckpointStore("mem://"), weir.InstanceID("a")}, opts...)...)
			weir.To(weir.From(app, "in", source.Values("in", codec.String)), "out", kafka.Values("out", kafka.NoKey, codec.String))
			wantErrors(t, app.Validate(), want)
		})
	}
}

func TestAnOwnerThatCannotBeReadIsAMistake(t *testing.T) {
	t.Setenv("WEIR_TAKE_STORE", "@here")
	wantErrors(t, weir.New("app").Validate(), `WEIR_TAKE_STORE: owner "@here" of a store: want group@cluster`)
}

func TestASavepointWithoutItsStoreIsNoReasonToBeginEmpty(t *testing.T) {
	t.Setenv("WEIR_FROM", "#last")
	wantErrors(t, weir.New("app", weir.FromEnv()).Validate(), `WEIR_FROM="#last": want url#name`)
}

func TestAnAppWhoseNameIsNoTopicNameNeedsACommitTopic(t *testing.T) {
	for _, name := range []string{"my app", "shop/orders", "größe"} {
		app := weir.New(name, weir.Brokers("b:1"), weir.CheckpointStore("mem://"), weir.InstanceID("a"))
		wantErrors(t, app.Validate(), fmt.Sprintf("app name %q makes the commit topic", name), "choose another name, or a topic with weir.CommitTopic")
		app = weir.New(name, weir.Brokers("b:1"), weir.CheckpointStore("mem://"), weir.InstanceID("a"), weir.CommitTopic("commits"))
		weir.To(weir.From(app, "in", source.Values("in", codec.String)), "out", kafka.Values("out", kafka.NoKey, codec.String))
		if err := app.Validate(); err != nil {
			t.Errorf("%s with a commit topic: %v", name, err)
		}
	}
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

func TestUnalignedCheckpointsNeedACodecForEachEdge(t *testing.T) {
	topology := func(opts ...weir.Option) *weir.App {
		app := weir.New("slow", append([]weir.Option{weir.Brokers("localhost:1"), weir.CheckpointStore("mem://")}, opts...)...)
		words := weir.From(app, "words", source.Values("words", codec.String))
		self := func(s string) string { return s }
		with := weir.KeyBy(words, "with", self, codec.String, weir.ValueCodec(codec.String))
		without := weir.KeyBy(words, "without", self, codec.String)
		hearing := weir.KeyBy(words, "hearing", self, codec.String, weir.ValueCodec(codec.String))
		weir.KeyBy(words, "unused", self, codec.String)
		out := kafka.Sink("out", codec.String, codec.Int64)
		weir.To(weir.Aggregate(with, "count-with", weir.Count[string]()), "out-with", out)
		weir.To(weir.Aggregate(without, "count-without", weir.Count[string]()), "out-without", out)
		rules := weir.Broadcast(weir.From(app, "rules", source.Values("rules", codec.String)))
		weir.To(weir.Process(hearing, "hear", func(s *weir.Setup) weir.Handler[string, string, weir.KV[string, int64]] {
			state.Broadcast(s, "rules", codec.String, codec.String)
			rules.On(s, func(string) error { return nil })
			return weir.OnRecord(func(*weir.Context[string, weir.KV[string, int64]], string) error { return nil })
		}), "out-hearing", out)
		return app
	}
	if err := topology().Validate(); err == nil || strings.Contains(err.Error(), "unaligned") {
		t.Errorf("aligned: %v", err) // only "unused" is wrong
	}
	for _, o := range []weir.Option{weir.Unaligned(), weir.AlignmentTimeout(time.Second)} {
		err := topology(o).Validate()
		wantErrors(t, err,
			`operator "without": unaligned checkpoints store what is in flight to it, and its values of type string have no codec; pass weir.ValueCodec to weir.KeyBy (app_test.go:`,
			`operator "hearing": unaligned checkpoints store what is in flight to it, and the broadcast stream "rules" that operator "hear" hears has no codec; pass weir.ValueCodec to weir.Broadcast (app_test.go:`,
		)
		if strings.Contains(err.Error(), `"with"`) {
			t.Errorf("the operator with a codec is refused: %v", err)
		}
	}
	wantErrors(t, topology(weir.AlignmentTimeout(0)).Validate(), "weir.AlignmentTimeout(0s): want more than 0")
	broken := codec.Func[string]("broken", 0, nil, nil)
	app := weir.New("slow", weir.Brokers("localhost:1"), weir.CheckpointStore("mem://"))
	weir.KeyBy(weir.From(app, "words", source.Values("words", codec.String)), "by-word", func(s string) string { return s }, codec.String, weir.ValueCodec(broken))
	wantErrors(t, app.Validate(), `operator "by-word": weir.ValueCodec:`)
	for text, opts := range map[string][]weir.Option{
		", aligned, ":            nil,
		", unaligned, ":          {weir.AlignmentTimeout(time.Second), weir.Unaligned()},
		", unaligned after 1s, ": {weir.Unaligned(), weir.AlignmentTimeout(time.Second)},
	} {
		if d := topology(opts...).Describe(); !strings.Contains(d, text) {
			t.Errorf("the description lacks %q:\n%s", text, d)
		}
	}
}

func TestKeysThatAreNotEqualAfterARestoreAreRefused(t *testing.T) {
	app := weir.New("app", weir.Brokers("localhost:1"), weir.CheckpointStore("mem://"), weir.InstanceID("a"))
	in := weir.From(app, "in", source.Values("in", codec.String))
	by[time.Time](in, "time")
	by[*string](in, "pointer")
	by[any](in, "interface")
	by[chan int](in, "channel")
	by[[2]struct{ At time.Time }](in, "nested")
	by[struct {
		Name string
		Addr netip.Addr
		ID   [16]byte
		At   int64
	}](in, "sound")
	err := app.Validate()
	wantErrors(t, err,
		`operator "time": keys of type time.Time: one that was read from a checkpoint is not == to the one that was written, because of time.Time; use what it stands for, such as UnixMilli of a time, a string`,
		`operator "pointer": keys of type *string: one that was read from a checkpoint is not == to the one that was written, because of *string;`,
		`operator "interface": keys of type interface {}: one that was read from a checkpoint is not == to the one that was written, because of interface {};`,
		`operator "channel": keys of type chan int: one that was read from a checkpoint is not == to the one that was written, because of chan int;`,
		`operator "nested": keys of type [2]struct { At time.Time }: one that was read from a checkpoint is not == to the one that was written, because of time.Time;`,
		"(app_test.go:")
	if strings.Contains(err.Error(), `"sound": keys`) {
		t.Errorf("a key that stays equal is refused: %v", err)
	}
}

// by divides a stream by keys of type K.
func by[K comparable](in weir.Stream[string], id string) {
	counts := weir.Aggregate(weir.KeyBy(in, id, func(string) (k K) { return k }, codec.JSON[K]()), id+"-count", weir.Count[string]())
	weir.To(counts, id+"-out", kafka.Sink("out", codec.JSON[K](), codec.Int64))
}
