package main

import (
	"testing"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/weirtest"
)

func TestOverdraft(t *testing.T) {
	h := weirtest.New(t, Topology, weir.DeadLetters(invalidTopic)) // no Kafka, no clock, no waiting
	payments := weirtest.In[Payment](h, "payments")
	balances := weirtest.Out[Balance](h, "balances")

	payments.Send(Payment{1, "alice", 500})
	h.Checkpoint()
	payments.Send(Payment{2, "alice", -200})
	h.Crash()    // back to the checkpoint, and on with what came after it
	h.Rescale(4) // with four subtasks for each stage
	payments.Send(Payment{2, "alice", -200}, Payment{3, "alice", -400})

	balances.Want(Balance{"alice", 500}, Balance{"alice", 300})
	weirtest.Side[Payment](h, "overdrawn").Want(Payment{3, "alice", -400})
	if total, _ := weirtest.Value[int64](h, "balance", "total", "alice"); total != 300 {
		t.Errorf("alice has %d cents", total)
	}
}

func TestPaymentsThatMakeNoSenseAreDeadLettered(t *testing.T) {
	h := weirtest.New(t, Topology, weir.DeadLetters(invalidTopic))
	weirtest.In[Payment](h, "payments").Send(Payment{1, "", 5}, Payment{0, "bob", 5}, Payment{1, "bob", 0}, Payment{1, "bob", 5})
	if n := len(h.DeadLetters()); n != 3 {
		t.Errorf("%d dead letters", n)
	}
	weirtest.Out[Balance](h, "balances").Want(Balance{"bob", 5})
}
