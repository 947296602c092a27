package main

import (
	"fmt"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// entry is one side of a transfer.
type entry struct {
	account string
	amount  int64
}

// transfers is another topology, with -transfers. An input record has the account that
// the money comes from as its key and the value "AMOUNT TO"; an output record an account
// and the value "ENTRIES BALANCE". As both sides of a transfer are part of the same cut, the balances
// of any checkpoint add up to nothing.
func transfers(a *weir.App, in, out string) {
	lines := weir.From(a, "in", source.KeyValues(in, codec.String, codec.String))
	entries := weir.FlatMap(lines, "split", func(kv weir.KV[string, string], emit func(entry)) error {
		var amount int64
		var to string
		if _, err := fmt.Sscan(kv.Value, &amount, &to); err != nil {
			return fmt.Errorf("value %q: want AMOUNT TO: %w", kv.Value, err)
		}
		emit(entry{kv.Key, -amount})
		emit(entry{to, amount})
		return nil
	})
	byAccount := weir.KeyBy(entries, "by-account", func(e entry) string { return e.account }, codec.String)
	booked := weir.Process(byAccount, "book", func(s *weir.Setup) weir.Handler[string, entry, weir.KV[string, string]] {
		balance, count := state.Value(s, "balance", codec.Int64), state.Value(s, "entries", codec.Int64)
		return weir.OnRecord(func(c *weir.Context[string, weir.KV[string, string]], e entry) error {
			balance.Set(balance.Get() + e.amount)
			count.Set(count.Get() + 1)
			c.Emit(weir.KV[string, string]{Key: c.Key(), Value: fmt.Sprint(count.Get(), " ", balance.Get())})
			return nil
		})
	})
	weir.To(booked, "out", kafka.Sink(out, codec.String, codec.String))
}
