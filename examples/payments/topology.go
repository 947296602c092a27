package main

import (
	"errors"
	"fmt"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/state"
)

// The topics that payments reads and writes.
const (
	paymentsTopic  = "payments"
	balancesTopic  = "balances"
	overdrawnTopic = "overdrawn"
	invalidTopic   = "payments-invalid"
)

// Payment moves money into an account, or out of it.
type Payment struct {
	// Seq numbers the payments of an account from 1. A producer that repeats a
	// payment repeats its number.
	Seq     int64  `json:"seq"`
	Account string `json:"account"`
	Cents   int64  `json:"cents"`
}

// check tells what is wrong with a payment.
func (p Payment) check() error {
	switch {
	case p.Account == "":
		return errors.New("payment without an account")
	case p.Seq < 1:
		return fmt.Errorf("payment of account %s has number %d, the first is 1", p.Account, p.Seq)
	case p.Cents == 0:
		return fmt.Errorf("payment %d of account %s moves nothing", p.Seq, p.Account)
	}
	return nil
}

// Balance is what an account holds after a payment.
type Balance struct {
	Account string `json:"account"`
	Cents   int64  `json:"cents"`
}

// Topology keeps a balance for each account. A payment that would overdraw the
// account goes to its own topic and changes nothing, one that makes no sense goes to
// the dead-letter topic as it came, and one that was seen before is dropped.
func Topology(app *weir.App) {
	raw := weir.From(app, "payments", source.Values(paymentsTopic, codec.JSON[Payment]()), weir.OnUndecodable(weir.DeadLetter))
	payments := weir.Map(raw, "check", func(p Payment) (Payment, error) {
		if err := p.check(); err != nil {
			return p, weir.DeadLetter(err)
		}
		return p, nil
	})
	byAccount := weir.KeyBy(payments, "by-account", func(p Payment) string { return p.Account }, codec.String)

	overdrawn := weir.Side[Payment]("overdrawn")
	balances := weir.Process(byAccount, "balance", func(s *weir.Setup) weir.Handler[string, Payment, Balance] {
		total := state.Value(s, "total", codec.Int64)
		last := state.Value(s, "last-seq", codec.Int64)
		return weir.OnRecord(func(c *weir.Context[string, Balance], p Payment) error {
			if p.Seq <= last.Get() {
				return nil // a retry by the producer
			}
			last.Set(p.Seq)
			sum := total.Get() + p.Cents
			if sum < 0 {
				overdrawn.Emit(c, p)
				return nil
			}
			total.Set(sum)
			c.Emit(Balance{c.Key(), sum})
			return nil
		})
	})
	weir.To(balances, "balances", kafka.Values(balancesTopic, kafka.KeyBy(func(b Balance) string { return b.Account }, codec.String), codec.JSON[Balance]()))
	weir.To(overdrawn.From(balances), "overdrawn", kafka.Values(overdrawnTopic, kafka.KeyBy(func(p Payment) string { return p.Account }, codec.String), codec.JSON[Payment]()))
}
