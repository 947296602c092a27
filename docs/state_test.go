package docs_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// habits tells with each order what the customer spent, and with the last three.
func habits(app *weir.App) {
	orders := weir.From(app, "orders", source.Values("orders", orderCodec))
	byCustomer := weir.KeyBy(orders, "by-customer", func(o Order) string { return o.Customer }, codec.String)

	told := weir.Process(byCustomer, "habits", func(s *weir.Setup) weir.Handler[string, Order, string] {
		seen := state.Map(s, "seen", codec.String, codec.Unit, state.TTL(24*time.Hour))
		recent := state.List(s, "recent", codec.Int64)
		spent := state.Reducing(s, "spent", func(a, b int64) int64 { return a + b }, codec.Int64)
		return weir.OnRecord(func(c *weir.Context[string, string], o Order) error {
			if seen.Has(o.ID) {
				return nil // a retry by the producer
			}
			seen.Put(o.ID, codec.Nothing)
			spent.Add(o.Cents)
			recent.Append(o.Cents)
			if recent.Len() > 3 {
				recent.PopFront()
			}
			last := int64(0)
			for _, cents := range recent.All() {
				last += cents
			}
			c.Emit(fmt.Sprintf("%s spent %d, %d of it in %d orders", c.Key(), spent.Get(), last, recent.Len()))
			return nil
		})
	})
	weir.To(told, "habits-out", kafka.Values("habits", kafka.NoKey, codec.String))
}

func TestHabits(t *testing.T) {
	brokers := cluster(t, "orders", "habits")
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...), kgo.RecordPartitioner(kgo.ManualPartitioner()))
	if err != nil {
		t.Fatal(err)
	}
	defer cl.Close()
	for _, o := range []struct{ id, cents int }{{1, 100}, {2, 20}, {2, 20}, {3, 3}, {4, 4}} {
		v := fmt.Sprintf(`{"id":"%d","customer":"ada","cents":%d}`, o.id, o.cents)
		// All in partition 0: their order counts.
		if err := cl.ProduceSync(t.Context(), &kgo.Record{Topic: "orders", Value: []byte(v)}).FirstErr(); err != nil {
			t.Fatal(err)
		}
	}
	app := weir.New("habits", weir.Brokers(brokers...), weir.CheckpointStore("mem://"), weir.Drain())
	habits(app)
	if err := app.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	rs := committed(t, brokers, "habits")
	if want := "ada spent 127, 27 of it in 3 orders"; len(rs) != 4 || string(rs[3].Value) != want {
		t.Errorf("%d reports, the last one is %q, want %q", len(rs), rs[len(rs)-1].Value, want)
	}
}
