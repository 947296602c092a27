package docs_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"go.uber.org/zap"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/weirtest"
)

// wordcount counts the words of the lines in topic "lines".
func wordcount(app *weir.App) {
	lines := weir.From(app, "lines", source.Values("lines", codec.String))
	words := weir.FlatMap(lines, "split", func(line string, emit func(string)) error {
		for w := range strings.FieldsSeq(line) {
			emit(w)
		}
		return nil
	})
	byWord := weir.KeyBy(words, "by-word", func(w string) string { return w }, codec.String)
	counts := weir.Aggregate(byWord, "count", weir.Count[string]())
	weir.To(counts, "counts", kafka.Sink("counts", codec.String, codec.Int64))
}

func serve(ctx context.Context) error {
	log, err := zap.NewProduction()
	if err != nil {
		return err
	}
	defer log.Sync()
	app := weir.New("wordcount", weir.FromEnv(), weir.Log(log))
	wordcount(app)
	return app.Run(ctx)
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := serve(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

var _ = main // shown in the guide; nothing calls it here

// patience bounds what a test waits for.
const patience = 30 * time.Second

// cluster runs a broker in the test's process until the test ends.
func cluster(t *testing.T, topics ...string) []string {
	t.Helper()
	return weirtest.StartBroker(t, 2, topics...).Addrs()
}

// produce writes values to a topic and waits until they are acknowledged.
func produce(t *testing.T, brokers []string, topic string, values ...string) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for _, v := range values {
		r := &kgo.Record{Topic: topic, Value: []byte(v)}
		if err := cl.ProduceSync(t.Context(), r).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
}

// committed returns what a read_committed reader sees of a topic: all of it.
func committed(t *testing.T, brokers []string, topic string) []*kgo.Record {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()),
		kgo.KeepControlRecords()) // the end of the topic may be a transaction's marker
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	ends, err := kadm.NewClient(cl).ListCommittedOffsets(ctx, topic)
	if err != nil {
		t.Fatal(err)
	}
	left := map[int32]int64{}
	ends.Each(func(o kadm.ListedOffset) {
		if o.Offset > 0 {
			left[o.Partition] = o.Offset
		}
	})
	var rs []*kgo.Record
	for len(left) > 0 {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatal(err)
		}
		fs.EachRecord(func(r *kgo.Record) {
			if r.Offset+1 >= left[r.Partition] {
				delete(left, r.Partition)
			}
			if !r.Attrs.IsControl() {
				rs = append(rs, r)
			}
		})
	}
	return rs
}

func TestServiceStopsCleanlyAndGoesOn(t *testing.T) {
	brokers := cluster(t, "lines", "counts")
	t.Setenv("WEIR_BROKERS", strings.Join(brokers, ","))
	t.Setenv("WEIR_STORE", "file://"+t.TempDir())
	t.Setenv("WEIR_INSTANCE_ID", "one")
	for run := range 2 {
		produce(t, brokers, "lines", "word")
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- serve(ctx) }()
		awaitRecords(t, brokers, "counts", run+1)
		stop()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	rs := committed(t, brokers, "counts")
	if n, _ := codec.Int64.Decode(rs[len(rs)-1].Value); len(rs) != 2 || n != 2 {
		t.Errorf("%d counts, the last one is %d", len(rs), n)
	}
}

// awaitRecords returns when a read_committed reader has seen n records.
func awaitRecords(t *testing.T, brokers []string, topic string, n int) {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.ConsumeTopics(topic),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()), kgo.ConsumeStartOffset(kgo.NewOffset().AtStart()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for seen := 0; seen < n; {
		fs := cl.PollFetches(ctx)
		if err := fs.Err(); err != nil {
			t.Fatalf("saw %d of %d records of %s: %v", seen, n, topic, err)
		}
		seen += fs.NumRecords()
	}
}

// Order is what a customer ordered.
type Order struct {
	ID       string `json:"id"`
	Customer string `json:"customer"`
	Cents    int64  `json:"cents"`
}

var orderCodec = codec.JSON[Order]()

// shop keeps the largest and the average order of each customer.
func shop(app *weir.App) {
	web := weir.From(app, "web", source.Values("orders-web", orderCodec), weir.OnUndecodable(weir.DeadLetter))
	till := weir.From(app, "till", source.Values("orders-till", orderCodec), weir.OnUndecodable(weir.DeadLetter))
	orders := weir.Merge("orders", web, till)

	valid := weir.Map(orders, "validate", func(o Order) (Order, error) {
		if o.Customer == "" {
			return o, weir.DeadLetter(errors.New("order without a customer"))
		}
		return o, nil
	})
	paid := weir.Filter(valid, "paid", func(o Order) bool { return o.Cents > 0 })
	byCustomer := weir.KeyBy(paid, "by-customer", func(o Order) string { return o.Customer }, codec.String)

	largest := weir.Reduce(byCustomer, "largest", func(a, b Order) (Order, error) {
		if b.Cents > a.Cents {
			return b, nil
		}
		return a, nil
	}, orderCodec)
	weir.To(largest, "largest-out", kafka.Sink("largest", codec.String, orderCodec))

	averages := weir.Aggregate(byCustomer, "average", averageCents())
	weir.To(averages, "average-out", kafka.Sink("average", codec.String, codec.Float64))
}

// mean is the accumulator of an average.
type mean struct{ Sum, N int64 }

func averageCents() weir.Aggregator[Order, mean, float64] {
	return weir.Aggregator[Order, mean, float64]{
		Zero:   func() mean { return mean{} },
		Add:    func(m mean, o Order) (mean, error) { return mean{m.Sum + o.Cents, m.N + 1}, nil },
		Result: func(m mean) float64 { return float64(m.Sum) / float64(m.N) },
		Codec:  codec.JSON[mean](),
	}
}

func TestShop(t *testing.T) {
	brokers := cluster(t, "orders-web", "orders-till", "largest", "average", "orders-bad")
	produce(t, brokers, "orders-web", `{"id":"1","customer":"ada","cents":300}`, `{"id":"2","cents":1}`, `{`)
	produce(t, brokers, "orders-till", `{"id":"3","customer":"ada","cents":100}`, `{"id":"4","customer":"ada"}`)
	app := weir.New("shop", weir.Brokers(brokers...), weir.CheckpointStore("mem://"), weir.DeadLetters("orders-bad"), weir.Drain())
	shop(app)
	if err := app.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	last := func(topic string) *kgo.Record {
		rs := committed(t, brokers, topic)
		if len(rs) != 2 {
			t.Fatalf("%d records in %s, want 2", len(rs), topic)
		}
		return rs[1]
	}
	if o, err := orderCodec.Decode(last("largest").Value); err != nil || o.ID != "1" {
		t.Errorf("largest: %+v %v", o, err)
	}
	if f, err := codec.Float64.Decode(last("average").Value); err != nil || f != 200 {
		t.Errorf("average: %v %v", f, err)
	}
	bad := map[string]string{}
	for _, r := range committed(t, brokers, "orders-bad") {
		for _, h := range r.Headers {
			if h.Key == "weir-operator" {
				bad[string(r.Value)] = string(h.Value)
			}
		}
	}
	if len(bad) != 2 || bad["{"] != "web" || bad[`{"id":"2","cents":1}`] != "validate" {
		t.Errorf("dead letters: %v", bad)
	}
}

// goldAt is how many points make a gold customer.
const goldAt = 1000

// loyalty counts points and tells once when a customer becomes gold.
func loyalty(app *weir.App) {
	orders := weir.From(app, "orders", source.Values("orders", orderCodec))
	byCustomer := weir.KeyBy(orders, "by-customer", func(o Order) string { return o.Customer }, codec.String)

	gold := weir.Side[string]("gold")
	points := weir.Process(byCustomer, "points", func(s *weir.Setup) weir.Handler[string, Order, weir.KV[string, int64]] {
		total := state.Value(s, "total", codec.Int64)
		last := state.Value(s, "last-order", codec.String)
		return weir.OnRecord(func(c *weir.Context[string, weir.KV[string, int64]], o Order) error {
			if id, ok := last.Lookup(); ok && id == o.ID {
				return nil // the producer sent it twice
			}
			last.Set(o.ID)
			before := total.Get()
			after := before + o.Cents/100
			total.Set(after)
			if before < goldAt && after >= goldAt {
				gold.Emit(c, c.Key())
			}
			c.Emit(weir.KV[string, int64]{Key: c.Key(), Value: after})
			return nil
		})
	})
	weir.To(points, "points-out", kafka.Sink("points", codec.String, codec.Int64))
	weir.To(gold.From(points), "gold-out", kafka.Values("gold", kafka.NoKey, codec.String))
}

func TestLoyalty(t *testing.T) {
	brokers := cluster(t, "orders", "points", "gold")
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for _, v := range []string{
		`{"id":"1","customer":"ada","cents":90000}`,
		`{"id":"1","customer":"ada","cents":90000}`,
		`{"id":"2","customer":"ada","cents":20000}`,
		`{"id":"3","customer":"ada","cents":100}`,
	} {
		// All in partition 0: their order counts.
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "orders", Value: []byte(v)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	app := weir.New("loyalty", weir.Brokers(brokers...), weir.CheckpointStore("mem://"), weir.Drain())
	loyalty(app)
	if err := app.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	rs := committed(t, brokers, "points")
	if n, _ := codec.Int64.Decode(rs[len(rs)-1].Value); len(rs) != 3 || n != 1101 {
		t.Errorf("%d totals, the last one is %d", len(rs), n)
	}
	if gold := committed(t, brokers, "gold"); len(gold) != 1 || string(gold[0].Value) != "ada" {
		t.Errorf("gold: %v", gold)
	}
}

// Amount was stored as whole euros by version 1 and is stored as cents since
// version 2.
type Amount struct{ Cents int64 }

// amountCodec writes version 2 and reads both.
type amountCodec struct{ codec.Codec[Amount] }

// DecodeVersion implements codec.Migrator.
func (amountCodec) DecodeVersion(version int, b []byte) (Amount, error) {
	if version != 1 {
		return Amount{}, fmt.Errorf("unknown version %d", version)
	}
	euros, err := codec.Int64.Decode(b)
	return Amount{Cents: euros * 100}, err
}

var amounts codec.Codec[Amount] = amountCodec{codec.Func("amount", 2,
	func(dst []byte, a Amount) ([]byte, error) { return codec.Int64.Append(dst, a.Cents) },
	func(b []byte) (Amount, error) {
		cents, err := codec.Int64.Decode(b)
		return Amount{Cents: cents}, err
	})}

// euros is what amounts was in an older release.
var euros = codec.Func("amount", 1,
	func(dst []byte, a Amount) ([]byte, error) { return codec.Int64.Append(dst, a.Cents/100) },
	func(b []byte) (Amount, error) {
		n, err := codec.Int64.Decode(b)
		return Amount{Cents: n * 100}, err
	})

func TestStateOfAnOlderCodecVersionIsReadAfterAnUpgrade(t *testing.T) {
	brokers := cluster(t, "in", "out")
	store := checkpoint.NewMem()
	run := func(c codec.Codec[Amount]) error {
		app := weir.New("amounts", weir.Brokers(brokers...), weir.Store(store), weir.Drain())
		in := weir.From(app, "in", source.Values("in", codec.String))
		byKey := weir.KeyBy(in, "all", func(string) string { return "all" }, codec.String)
		sums := weir.Process(byKey, "sum", func(s *weir.Setup) weir.Handler[string, string, string] {
			sum := state.Value(s, "sum", c)
			return weir.OnRecord(func(ctx *weir.Context[string, string], _ string) error {
				sum.Set(Amount{sum.Get().Cents + 500})
				ctx.Emit(fmt.Sprint(sum.Get().Cents))
				return nil
			})
		})
		weir.To(sums, "out", kafka.Values("out", kafka.NoKey, codec.String))
		return app.Run(t.Context())
	}
	produce(t, brokers, "in", "x")
	if err := run(euros); err != nil {
		t.Fatal(err)
	}
	produce(t, brokers, "in", "x")
	if err := run(amounts); err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, r := range committed(t, brokers, "out") {
		got = append(got, string(r.Value))
	}
	if len(got) != 2 || !(got[0] == "1000" || got[1] == "1000") {
		t.Errorf("sums: %v", got)
	}
	produce(t, brokers, "in", "x")
	if err := run(euros); err == nil || !strings.Contains(err.Error(), "run the newer program") {
		t.Errorf("an older program ran on newer state: %v", err)
	}
}

// errRateLimited is what nameOf says that may work later.
var errRateLimited = errors.New("rate limited")

// nameOf stands for something that fails in several ways.
func nameOf(id string) (string, error) {
	switch id {
	case "busy":
		return "", errRateLimited
	case "":
		return "", errors.New("empty id")
	}
	return "customer " + id, nil
}

func enrich(id string) (string, error) {
	name, err := nameOf(id)
	switch {
	case errors.Is(err, errRateLimited):
		return "", weir.Retry(err) // restart from the last checkpoint, after a pause
	case err != nil:
		return "", weir.DeadLetter(err) // the input record goes to the dead-letter topic
	}
	return name, nil
}

func TestHandlerErrors(t *testing.T) {
	brokers := cluster(t, "ids", "names", "ids-bad")
	produce(t, brokers, "ids", "1", "", "busy")
	app := weir.New("enrich", weir.Brokers(brokers...), weir.CheckpointStore("mem://"), weir.DeadLetters("ids-bad"),
		weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Second, Limit: 2, Quiet: time.Minute}))
	ids := weir.From(app, "ids", source.Values("ids", codec.String))
	weir.To(weir.Map(ids, "enrich", enrich), "names", kafka.Values("names", kafka.NoKey, codec.String))
	err := app.Run(t.Context())

	var he *weir.HandlerError
	if !errors.As(err, &he) || he.Operator != "enrich" || !errors.Is(err, errRateLimited) {
		t.Fatalf("got %v", err)
	}
	if !strings.Contains(err.Error(), "gave up after 2 restarts in a row") {
		t.Error(err)
	}
}

// service is what a production service may set.
func service(ca *tls.Config, user, password string) []weir.Option {
	return []weir.Option{
		weir.CheckpointEvery(500 * time.Millisecond),
		weir.CheckpointTimeout(20 * time.Second),
		weir.TransactionTimeout(3 * time.Minute),
		weir.DeadLetters("orders-bad"),
		weir.KafkaOptions(
			kgo.DialTLSConfig(ca),
			kgo.SASL(plain.Auth{User: user, Pass: password}.AsMechanism()),
		),
		weir.FromEnv(), // later options win: the environment overrides what stands above
	}
}

func TestServiceOptionsAreValid(t *testing.T) {
	t.Setenv("WEIR_BROKERS", "localhost:9092")
	t.Setenv("WEIR_STORE", "mem://")
	t.Setenv("WEIR_INTERVAL", "1s")
	app := weir.New("wordcount", service(&tls.Config{MinVersion: tls.VersionTLS12}, "u", "p")...)
	wordcount(app)
	if err := app.Validate(); err != nil {
		t.Fatal(err)
	}
	if got := app.Describe(); !strings.Contains(got, "every 1s") {
		t.Error(got)
	}
}

// watch counts what an alarm may be set on.
func watch(failed, restarts *atomic.Int64) weir.Option {
	return weir.Listen(weir.Listener{
		CheckpointFailed: func(event.CheckpointFailed) { failed.Add(1) },
		Restarting:       func(event.Restarting) { restarts.Add(1) },
	})
}

func TestListenerHearsOfRestarts(t *testing.T) {
	brokers := cluster(t, "in", "out")
	produce(t, brokers, "in", "x")
	var failed, restarts atomic.Int64
	app := weir.New("watched", weir.Brokers(brokers...), weir.CheckpointStore("mem://"), weir.Drain(), watch(&failed, &restarts),
		weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 1, Quiet: time.Minute}))
	var once atomic.Bool
	in := weir.From(app, "in", source.Values("in", codec.String))
	out := weir.Map(in, "stumble", func(s string) (string, error) {
		if once.CompareAndSwap(false, true) {
			return s, weir.Retry(errors.New("stumbled"))
		}
		return s, nil
	})
	weir.To(out, "out", kafka.Values("out", kafka.NoKey, codec.String))
	if err := app.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	if restarts.Load() != 1 || failed.Load() != 0 {
		t.Errorf("%d restarts, %d failed checkpoints", restarts.Load(), failed.Load())
	}
	if n := len(committed(t, brokers, "out")); n != 1 {
		t.Errorf("%d outputs", n)
	}
}

// serveCounts answers GET /?word=... with what is committed.
func serveCounts(app *weir.App) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		count, err := weir.Query(r.Context(), app, "count", "acc", r.FormValue("word"), codec.String, codec.Int64)
		switch {
		case errors.Is(err, weir.ErrNotActive), errors.Is(err, weir.ErrNotRunning), errors.Is(err, weir.ErrNothingCommitted):
			http.Error(w, err.Error(), http.StatusServiceUnavailable) // another instance may know
		case err != nil:
			http.Error(w, err.Error(), http.StatusInternalServerError)
		default:
			fmt.Fprintf(w, "%d as of checkpoint %d\n", count.Value, count.Checkpoint)
		}
	}
}

// routes are those of the service's own server, which asks who is there.
func routes(app *weir.App, signedIn func(http.Handler) http.Handler) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		if s := app.Status(); s.State != "running" && s.State != "standby" {
			http.Error(w, s.State, http.StatusServiceUnavailable)
		}
	})
	mux.Handle("/weir/", signedIn(http.StripPrefix("/weir", app.AdminHandler())))
	return mux
}

func TestCountsAndStatusAreServed(t *testing.T) {
	brokers := cluster(t, "lines", "counts")
	committed := make(chan int64, 1)
	app := weir.New("wordcount", weir.Brokers(brokers...), weir.CheckpointStore("mem://"),
		weir.Listen(weir.Listener{CheckpointCommitted: func(i event.CheckpointCommitted) {
			select {
			case committed <- i.Checkpoint:
			default:
			}
		}}))
	wordcount(app)
	get := func(h http.Handler, url string) (int, string) {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, httptest.NewRequest("GET", url, nil))
		return w.Code, w.Body.String()
	}
	own := routes(app, func(h http.Handler) http.Handler { return h })
	if code, text := get(own, "/healthz"); code != http.StatusServiceUnavailable || !strings.Contains(text, "not started") {
		t.Errorf("health before Run: %d %s", code, text)
	}
	if code, _ := get(serveCounts(app), "/?word=a"); code != http.StatusServiceUnavailable {
		t.Errorf("a count before Run: %d", code)
	}
	produce(t, brokers, "lines", "a b a")
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- app.Run(ctx) }()
	select {
	case <-committed:
	case err := <-done:
		t.Fatal(err)
	}
	for {
		code, text := get(serveCounts(app), "/?word=a")
		if code == http.StatusServiceUnavailable && ctx.Err() == nil {
			continue // it is committed, and about to be taken over
		}
		if code != http.StatusOK || !strings.HasPrefix(text, "2 as of checkpoint 1") {
			t.Errorf("the count: %d %s", code, text)
		}
		break
	}
	if code, text := get(own, "/healthz"); code != http.StatusOK {
		t.Errorf("health: %d %s", code, text)
	}
	if code, text := get(own, "/weir/status"); code != http.StatusOK || !strings.Contains(text, `"state": "running"`) {
		t.Errorf("status: %d %s", code, text)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// inspect lists the checkpoints in a store. It only reads, and may run beside the app.
func inspect(ctx context.Context, url string, out io.Writer) error {
	store, err := checkpoint.OpenStore(url)
	if err != nil {
		return err
	}
	infos, err := checkpoint.ListManifests(ctx, store)
	if err != nil {
		return err
	}
	for _, info := range infos {
		m, _, err := checkpoint.Inspect(ctx, store, info.Name)
		if err != nil {
			return err
		}
		fmt.Fprintf(out, "%s: checkpoint %d of %s at %s, %d segments of %d bytes\n",
			info.Name, m.Checkpoint, m.App, m.Created.Format(time.RFC3339), len(m.Segments), m.Bytes())
	}
	return nil
}

func TestInspectListsCheckpoints(t *testing.T) {
	brokers := cluster(t, "lines", "counts")
	url := "file://" + filepath.ToSlash(t.TempDir())
	produce(t, brokers, "lines", "word")
	app := weir.New("wordcount", weir.Brokers(brokers...), weir.CheckpointStore(url), weir.Drain())
	wordcount(app)
	if err := app.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := inspect(t.Context(), url, &out); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out.String(), "checkpoint 1 of wordcount at ") {
		t.Error(out.String())
	}
}

func slow(app *weir.App) {
	type order struct{ Customer, Item string }
	orders := weir.From(app, "orders", source.Values("orders", codec.JSON[order]()))
	byCustomer := weir.KeyBy(orders, "by-customer", func(o order) string { return o.Customer }, codec.String,
		weir.ValueCodec(codec.JSON[order]()))
	counts := weir.Aggregate(byCustomer, "count", weir.Count[order]())
	weir.To(counts, "counts", kafka.Sink("counts", codec.String, codec.Int64))
}

func TestSlowHandlersMayBeOvertaken(t *testing.T) {
	for _, o := range []weir.Option{weir.Unaligned(), weir.AlignmentTimeout(time.Second)} {
		brokers := cluster(t, "orders", "counts")
		produce(t, brokers, "orders", `{"Customer":"ann","Item":"a"}`, `{"Customer":"ann","Item":"b"}`)
		app := weir.New("slow", weir.Brokers(brokers...), weir.CheckpointStore("mem://"), weir.Drain(), o)
		slow(app)
		if err := app.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
		rs := committed(t, brokers, "counts")
		if len(rs) != 2 {
			t.Fatalf("%d results, want 2", len(rs))
		}
		if n, err := codec.Int64.Decode(rs[1].Value); n != 2 || err != nil {
			t.Errorf("the count is %d, %v", n, err)
		}
	}
}
