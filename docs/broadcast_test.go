package docs_test

import (
	"encoding/binary"
	"testing"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// suspicious reports orders above a limit, which may change while the app runs.
func suspicious(app *weir.App) {
	limits := weir.Broadcast(weir.From(app, "limits", source.Values("limits", codec.Int64)))
	orders := weir.From(app, "orders", source.Values("orders", orderCodec))
	byCustomer := weir.KeyBy(orders, "by-customer", func(o Order) string { return o.Customer }, codec.String)

	found := weir.Process(byCustomer, "suspicious", func(s *weir.Setup) weir.Handler[string, Order, Order] {
		current := state.Broadcast(s, "limit", codec.Unit, codec.Int64)
		limits.On(s, func(cents int64) error {
			current.Put(codec.Nothing, cents)
			return nil
		})
		return weir.OnRecord(func(c *weir.Context[string, Order], o Order) error {
			if limit, ok := current.Lookup(codec.Nothing); ok && o.Cents > limit {
				c.Emit(o)
			}
			return nil
		})
	})
	weir.To(found, "suspicious-out", kafka.Values("suspicious", kafka.NoKey, orderCodec))
}

func TestSuspicious(t *testing.T) {
	brokers := cluster(t, "orders", "limits", "suspicious")
	store := t.TempDir()
	for _, input := range []struct{ topic, value string }{
		{"orders", `{"id":"1","customer":"ada","cents":500}`}, // there is no limit yet
		{"limits", string(binary.BigEndian.AppendUint64(nil, 100))},
		{"orders", `{"id":"2","customer":"ada","cents":101}`},
		{"orders", `{"id":"3","customer":"bob","cents":100}`},
	} {
		produce(t, brokers, input.topic, input.value)
		app := weir.New("suspicious", weir.Brokers(brokers...), weir.CheckpointStore(store), weir.Drain())
		suspicious(app)
		if err := app.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	rs := committed(t, brokers, "suspicious")
	if len(rs) != 1 || string(rs[0].Value) != `{"id":"2","customer":"ada","cents":101}` {
		t.Errorf("found %d orders, want the second one: %v", len(rs), rs)
	}
}
