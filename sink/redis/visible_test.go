package redis_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/redistest"
	"github.com/weirstream/weir/sink/redis"
	"github.com/weirstream/weir/source"
)

func TestStatusEventsAndLogTellHowFarTheSinkIs(t *testing.T) {
	s := redistest.Shared(t)
	p := redistest.StartProxy(t, s.Addr)
	n := newNumbered(t)
	core, logged := observer.New(zapcore.DebugLevel)
	applied := make(chan event.Applied, 1000)
	app := weir.New(n.name, weir.Brokers(n.brokers...), weir.Store(n.store), weir.InstanceID("a"), weir.CheckpointEvery(5*time.Millisecond), weir.Parallelism(2),
		weir.Log(zap.New(core)), weir.Listen(weir.Listener{Applied: func(i event.Applied) { applied <- i }}))
	o := n.at(p.Addr)
	o.Timeout = 3 * time.Second // what is applied and not answered in time is not counted
	to := redis.WriteAhead(o, lists, redis.DeadLetters())
	weir.To(weir.From(app, "in", source.Values("in", codec.String)), "out", to)
	if sinks := app.Status().Sinks; sinks != nil {
		t.Errorf("before it runs: %+v", sinks)
	}
	s.Client(t).Set(t.Context(), n.prefix()+"of:k4", "x", 0) // of another type
	p.Deaf(true)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- app.Run(ctx) }()
	redistest.Eventually(t, time.Minute, func() error {
		sinks := app.Status().Sinks
		if len(sinks) != 1 {
			return fmt.Errorf("%d sinks", len(sinks))
		}
		if is := sinks[0]; is.Operator != "out" || is.PendingCheckpoints == 0 || is.PendingBytes == 0 || is.PendingAge < 0.2 || !strings.Contains(is.Error, "redis is unavailable") {
			return fmt.Errorf("while Redis does not answer: %+v", is)
		}
		return nil
	})
	p.Deaf(false)
	p.Break()
	const operations = 2 * numberedRecords
	var total event.Applied
	for total.Operations < operations {
		select {
		case i := <-applied:
			if i.App != n.name || i.Operator != "out" || i.Checkpoint <= total.Checkpoint || i.Logs < 1 || i.Bytes < 1 || i.Took <= 0 || i.Latency < i.Took {
				t.Errorf("%+v after checkpoint %d", i, total.Checkpoint)
			}
			total.Checkpoint = i.Checkpoint
			total.Operations += i.Operations
			total.PutAside += i.PutAside
			total.Logs += i.Logs
			total.Latency = max(total.Latency, i.Latency)
			total.Pending = i.Pending
		case err := <-done:
			t.Fatalf("the app ended: %v", err)
		case <-time.After(time.Minute):
			t.Fatalf("only %+v; the app says %+v", total, app.Status())
		}
	}
	if total.Operations != operations || total.PutAside != int64(len(n.want["k4"])) || total.Pending != 0 || total.Latency < 200*time.Millisecond {
		t.Errorf("in all %+v", total)
	}
	redistest.Eventually(t, time.Minute, func() error {
		if is := app.Status().Sinks[0]; is.Applied < total.Checkpoint || is.PendingCheckpoints != 0 || is.PendingBytes != 0 || is.PendingAge != 0 || is.Latency <= 0 || is.Error != "" {
			return fmt.Errorf("when all is applied: %+v after %+v", is, total)
		}
		return nil
	})
	if n := logged.FilterMessageSnippet(fmt.Sprintf(`sink "out" applied checkpoint %d:`, total.Checkpoint)).Len(); n != 1 {
		t.Errorf("%d lines about the last checkpoint", n)
	}
	for _, want := range []string{"Redis refused commands", "waiting"} {
		if lines := logged.FilterMessageSnippet(want); lines.Len() == 0 || lines.All()[0].Level != zapcore.WarnLevel {
			t.Errorf("no warning says %q", want)
		}
	}
	stop()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
	if sinks := app.Status().Sinks; sinks != nil {
		t.Errorf("after it ran: %+v", sinks)
	}
}
