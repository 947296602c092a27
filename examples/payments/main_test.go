package main

import (
	"context"
	"slices"
	"strings"
	"testing"

	"github.com/weirstream/weir/examples/internal/brokertest"
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
func wantValues(t *testing.T, broker, topic, key string, want ...string) {
	t.Helper()
	var got []string
	for _, r := range brokertest.Committed(t, broker, topic) {
		if string(r.Key) == key {
			got = append(got, string(r.Value))
		}
	}
	if !slices.Equal(got, want) {
		t.Errorf("topic %s, key %q:\n got %s\nwant %s", topic, key, strings.Join(got, " "), strings.Join(want, " "))
	}
}

func TestBalancesAreExactAcrossARestart(t *testing.T) {
	broker := brokertest.Start(t)
	args := []string{"-brokers", broker, "-store", t.TempDir(), "-instance", "a", "-interval", "20ms", "-create-topics"}
	if err := createTopics(t.Context(), []string{broker}, paymentsTopic); err != nil {
		t.Fatal(err)
	}
	pay := func(account string, payments ...string) {
		t.Helper()
		brokertest.Produce(t, broker, paymentsTopic, account, payments...)
	}

	pay("alice", `{"seq":1,"account":"alice","cents":500}`, `{"seq":2,"account":"alice","cents":-200}`)
	pay("bob", `{"seq":1,"account":"bob","cents":-1}`, `{"seq":2,"account":"bob","cents":70}`)
	pay("?", `no payment at all`, `{"seq":1,"cents":5}`)
	stop := start(t, args...)
	brokertest.Await(t, broker, balancesTopic, 3)
	brokertest.Await(t, broker, overdrawnTopic, 1)
	brokertest.Await(t, broker, invalidTopic, 2)
	stop()

	pay("alice",
		`{"seq":2,"account":"alice","cents":-200}`, // a retry, from before the restart
		`{"seq":3,"account":"alice","cents":-301}`, // one cent too much
		`{"seq":4,"account":"alice","cents":-300}`)
	pay("bob", `{"seq":3,"account":"bob","cents":0}`)
	stop = start(t, args...)
	brokertest.Await(t, broker, balancesTopic, 4)
	brokertest.Await(t, broker, overdrawnTopic, 2)
	brokertest.Await(t, broker, invalidTopic, 3)
	stop()

	wantValues(t, broker, balancesTopic, "alice",
		`{"account":"alice","cents":500}`, `{"account":"alice","cents":300}`, `{"account":"alice","cents":0}`)
	wantValues(t, broker, balancesTopic, "bob", `{"account":"bob","cents":70}`)
	wantValues(t, broker, overdrawnTopic, "alice", `{"seq":3,"account":"alice","cents":-301}`)
	wantValues(t, broker, overdrawnTopic, "bob", `{"seq":1,"account":"bob","cents":-1}`)
	wantValues(t, broker, invalidTopic, "?", `no payment at all`, `{"seq":1,"cents":5}`)
	wantValues(t, broker, invalidTopic, "bob", `{"seq":3,"account":"bob","cents":0}`)
}
