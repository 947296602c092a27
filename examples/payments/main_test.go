package main

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/weirtest"
)

// start runs payments until the returned function is called, which waits for its end.
func start(t *testing.T, args ...string) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- run(ctx, args) }()
	return func() {
		t.Helper()
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
}

// wantValues compares the committed values of a topic whose records all have one key
// or came through one partition.
func wantValues(t *testing.T, b *weirtest.Broker, topic, key string, want ...string) {
	t.Helper()
	var got []string
	for _, kv := range weirtest.Read(b, topic, codec.String, codec.String) {
		if kv.Key == key {
			got = append(got, kv.Value)
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("topic %s, key %q:\n got %s\nwant %s", topic, key, strings.Join(got, " "), strings.Join(want, " "))
	}
}

func TestBalancesAreExactAcrossARestart(t *testing.T) {
	broker := weirtest.StartBroker(t, 4, paymentsTopic)
	args := []string{"-brokers", broker.Addrs()[0], "-store", t.TempDir(), "-instance", "a", "-interval", "20ms", "-create-topics"}
	pay := func(account string, payments ...string) {
		t.Helper()
		for _, p := range payments {
			weirtest.Produce(broker, paymentsTopic, codec.String, codec.String, weir.KV[string, string]{Key: account, Value: p})
		}
	}

	pay("alice", `{"seq":1,"account":"alice","cents":500}`, `{"seq":2,"account":"alice","cents":-200}`)
	pay("bob", `{"seq":1,"account":"bob","cents":-1}`, `{"seq":2,"account":"bob","cents":70}`)
	pay("?", `no payment at all`, `{"seq":1,"cents":5}`)
	stop := start(t, args...)
	broker.Await(balancesTopic, 3)
	broker.Await(overdrawnTopic, 1)
	broker.Await(invalidTopic, 2)
	stop()

	pay("alice",
		`{"seq":2,"account":"alice","cents":-200}`, // a retry, from before the restart
		`{"seq":3,"account":"alice","cents":-301}`, // one cent too much
		`{"seq":4,"account":"alice","cents":-300}`)
	pay("bob", `{"seq":3,"account":"bob","cents":0}`)
	stop = start(t, args...)
	broker.Await(balancesTopic, 4)
	broker.Await(overdrawnTopic, 2)
	broker.Await(invalidTopic, 3)
	stop()

	wantValues(t, broker, balancesTopic, "alice",
		`{"account":"alice","cents":500}`, `{"account":"alice","cents":300}`, `{"account":"alice","cents":0}`)
	wantValues(t, broker, balancesTopic, "bob", `{"account":"bob","cents":70}`)
	wantValues(t, broker, overdrawnTopic, "alice", `{"seq":3,"account":"alice","cents":-301}`)
	wantValues(t, broker, overdrawnTopic, "bob", `{"seq":1,"account":"bob","cents":-1}`)
	wantValues(t, broker, invalidTopic, "?", `no payment at all`, `{"seq":1,"cents":5}`)
	wantValues(t, broker, invalidTopic, "bob", `{"seq":3,"account":"bob","cents":0}`)
}
