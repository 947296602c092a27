package main

import (
	"context"
	"fmt"
	"strings"
	"testing"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/weirtest"
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
	b := weirtest.StartBroker(t, 4, linesTopic)
	args := []string{"-brokers", b.Addrs()[0], "-store", t.TempDir(), "-instance", "a", "-interval", "20ms", "-create-topics"}

	weirtest.ProduceValues(b, linesTopic, codec.String, "to be or not", "to be")
	stop := start(t, args...)
	b.Await(countsTopic, 6)
	stop()

	weirtest.ProduceValues(b, linesTopic, codec.String, "be quick", "or not")
	stop = start(t, args...)
	b.Await(countsTopic, 10)
	stop()

	got := map[string][]int64{}
	for _, count := range weirtest.Read(b, countsTopic, codec.String, codec.Int64) {
		got[count.Key] = append(got[count.Key], count.Value)
	}
	want := map[string][]int64{"to": {1, 2}, "be": {1, 2, 3}, "or": {1, 2}, "not": {1, 2}, "quick": {1}}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("counts are %v, want %v", got, want)
	}
}

func TestMissingTopicsAreNamed(t *testing.T) {
	broker := weirtest.StartBroker(t, 0)
	err := run(t.Context(), []string{"-brokers", broker.Addrs()[0], "-store", t.TempDir(), "-instance", "a"})
	if err == nil {
		t.Fatal("ran without its topics")
	}
	for _, topic := range []string{linesTopic, countsTopic} {
		if !strings.Contains(err.Error(), topic) {
			t.Errorf("%q does not name topic %s", err, topic)
		}
	}
}
