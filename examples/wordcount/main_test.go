package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/examples/internal/brokertest"
)

// start runs wordcount until the returned function is called, which waits for its end.
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

func TestCountsGoOnAfterARestart(t *testing.T) {
	broker := brokertest.Start(t)
	args := []string{"-brokers", broker, "-store", t.TempDir(), "-instance", "a", "-interval", "20ms", "-create-topics"}
	if err := createTopics(t.Context(), []string{broker}, linesTopic); err != nil {
		t.Fatal(err)
	}

	brokertest.Produce(t, broker, linesTopic, "hamlet", "to be or not", "to be")
	stop := start(t, args...)
	brokertest.Await(t, broker, countsTopic, 6)
	stop()

	brokertest.Produce(t, broker, linesTopic, "hamlet", "be quick", "or not")
	stop = start(t, args...)
	brokertest.Await(t, broker, countsTopic, 10)
	stop()

	got := map[string][]int64{}
	for _, r := range brokertest.Committed(t, broker, countsTopic) {
		n, err := codec.Int64.Decode(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		got[string(r.Key)] = append(got[string(r.Key)], n)
	}
	want := map[string][]int64{"to": {1, 2}, "be": {1, 2, 3}, "or": {1, 2}, "not": {1, 2}, "quick": {1}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("counts are %v, want %v", got, want)
	}
}

func TestMissingTopicsAreNamed(t *testing.T) {
	broker := brokertest.Start(t)
	err := run(t.Context(), []string{"-brokers", broker, "-store", t.TempDir(), "-instance", "a"})
	if err == nil {
		t.Fatal("ran without its topics")
	}
	for _, topic := range []string{linesTopic, countsTopic} {
		if !strings.Contains(err.Error(), topic) {
			t.Errorf("%q does not name topic %s", err, topic)
		}
	}
}
