package docs_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// Visit is what topic "visits" holds.
type Visit struct {
	Customer string
	At       time.Time
}

// quiet is how long a customer must be away to be missed.
const quiet = 24 * time.Hour

// missed tells of customers who did not come back within a day.
func missed(app *weir.App) {
	visits := weir.From(app, "visits", source.Values("visits", codec.JSON[Visit]()),
		weir.EventTime(func(v Visit) time.Time { return v.At }, weir.OutOfOrder(5*time.Second), weir.Idle(30*time.Second)))
	byCustomer := weir.KeyBy(visits, "by-customer", func(v Visit) string { return v.Customer }, codec.String)

	gone := weir.Process(byCustomer, "missed", func(s *weir.Setup) weir.Handler[string, Visit, string] {
		last := state.Value(s, "last", codec.Int64)
		timers := state.EventTimers(s)
		return weir.OnRecord(func(c *weir.Context[string, string], v Visit) error {
			before, seen := last.Lookup()
			if seen && v.At.UnixMilli() <= before {
				return nil // older than what is known
			}
			if seen {
				timers.Delete(time.UnixMilli(before).Add(quiet))
			}
			last.Set(v.At.UnixMilli())
			timers.Set(time.UnixMilli(v.At.UnixMilli()).Add(quiet))
			return nil
		}).OnTimer(func(c *weir.Context[string, string], t weir.Timer) error {
			last.Clear()
			c.Emit(fmt.Sprintf("%s was not seen for a day until %s", c.Key(), t.At.UTC().Format(time.RFC3339)))
			return nil
		})
	})
	weir.To(gone, "missed-out", kafka.Values("missed", kafka.NoKey, codec.String))
}

func TestMissedCustomersAreToldOfOnce(t *testing.T) {
	brokers := cluster(t, "visits", "missed")
	store := checkpoint.NewMem()
	run := func() {
		app := weir.New("missed", weir.Brokers(brokers...), weir.Store(store), weir.Drain())
		missed(app)
		if err := app.Run(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	produce(t, brokers, "visits", `{"Customer":"ann","At":"2026-03-01T08:00:00Z"}`, `{"Customer":"ann","At":"2026-03-01T20:00:00Z"}`)
	run()
	got := committed(t, brokers, "missed")
	if len(got) != 1 || string(got[0].Value) != "ann was not seen for a day until 2026-03-02T20:00:00Z" {
		t.Errorf("got %d: %s", len(got), got[0].Value)
	}
	run()
	if got := committed(t, brokers, "missed"); len(got) != 1 {
		t.Errorf("after another run there are %d", len(got))
	}
}
