package weir_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/sink"
	"github.com/weirstream/weir/source"
)

// flushed is an idempotent sink: what is written is on its way until it is flushed.
type flushed struct {
	mu    sync.Mutex
	there []string

	// flush is called with what is about to arrive.
	flush func(ctx context.Context, values []string) error
}

func (*flushed) Check() error   { return nil }
func (*flushed) String() string { return "flushed values" }

func (s *flushed) Open(env sink.Env) (sink.Writer[string], error) {
	return &flushedWriter{sink: s, env: env}, nil
}

// arrived returns the values that are there, each once, sorted.
func (s *flushed) arrived() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Compact(slices.Sorted(slices.Values(s.there)))
}

type flushedWriter struct {
	sink *flushed
	env  sink.Env
	open []string
}

func (w *flushedWriter) Write(v string) error {
	w.open = append(w.open, v)
	return nil
}

func (w *flushedWriter) Flush(ctx context.Context) error {
	if w.sink.flush != nil {
		if err := w.sink.flush(ctx, w.open); err != nil {
			return err
		}
	}
	w.sink.mu.Lock()
	defer w.sink.mu.Unlock()
	w.sink.there = append(w.sink.there, w.open...)
	w.open = nil
	return nil
}

// both writes the input to a sink on the source's subtasks and to one behind a KeyBy.
func both(source1, keyed sink.Sink[string]) func(*weir.App) {
	return func(app *weir.App) {
		in := weir.From(app, "in", source.Values("in", codec.String))
		weir.To(in, "plain", source1)
		byKey := weir.KeyBy(in, "by-key", func(v string) string { return v }, codec.String)
		out := weir.Process(byKey, "pass", func(s *weir.Setup) weir.Handler[string, string, string] {
			return weir.OnRecord(func(c *weir.Context[string, string], v string) error {
				c.Emit(v)
				return nil
			})
		})
		weir.To(out, "keyed", keyed)
	}
}

func TestSinksAreFlushedBeforeACheckpointIsCommitted(t *testing.T) {
	for _, at := range []string{"source", "keyed"} {
		t.Run(at, func(t *testing.T) {
			brokers := broker(t, 4, "in")
			free, held := &flushed{}, &flushed{}
			began, goOn := make(chan struct{}), make(chan struct{})
			var once sync.Once
			held.flush = func(ctx context.Context, values []string) error {
				if len(values) == 0 {
					return nil
				}
				once.Do(func() { close(began) })
				select {
				case <-goOn:
				case <-ctx.Done():
				}
				return nil
			}
			topology := both(free, held)
			if at == "source" {
				topology = both(held, free)
			}
			r := start(t, "flush-"+at, brokers, topology, weir.Store(checkpoint.NewMem()), weir.CheckpointTimeout(100*time.Millisecond), weir.TolerableFailures(1000))
			produce(t, brokers, "in", "a", "b", "c")
			<-began
			// It lacks the acknowledgement of the subtask that flushes, and only that.
			failed := await(r, 1, any1[event.CheckpointFailed])
			for _, e := range r.list() {
				if e, ok := e.(event.CheckpointCommitted); ok && e.Checkpoint >= failed.Checkpoint {
					t.Fatalf("%v while a sink was being flushed", e)
				}
			}
			close(goOn)
			for n, committed := 1, int64(0); committed < 3; n++ {
				committed += await(r, n, any1[event.CheckpointCommitted]).Records
			}
			r.stop()
			if err := r.wait(); err != nil {
				t.Fatal(err)
			}
			for _, s := range []*flushed{free, held} {
				if got := s.arrived(); !slices.Equal(got, []string{"a", "b", "c"}) {
					t.Errorf("%v arrived", got)
				}
			}
		})
	}
}

func TestFlushThatFailsEndsTheAppAsAHandlerDoes(t *testing.T) {
	brokers := broker(t, 1, "in")
	produce(t, brokers, "in", "a")
	bad := errors.New("receiver is full")
	for name, c := range map[string]struct {
		flush func(context.Context, []string) error
		texts []string
	}{
		"error":       {func(context.Context, []string) error { return bad }, []string{`sink "keyed" failed at the barrier of checkpoint 1`, bad.Error()}},
		"skip":        {func(context.Context, []string) error { return weir.Skip(bad) }, []string{`sink "keyed" failed at the barrier`, bad.Error()}},
		"dead letter": {func(context.Context, []string) error { return weir.DeadLetter(bad) }, []string{`sink "keyed" failed at the barrier`, bad.Error()}},
		"panic":       {func(context.Context, []string) error { panic(bad) }, []string{`sink "keyed" panicked at the barrier`, bad.Error(), "sink_test.go"}},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, "flush-fails-"+strings.ReplaceAll(name, " ", "-"), brokers, both(&flushed{}, &flushed{flush: c.flush}), weir.Store(checkpoint.NewMem()))
			err := r.wait()
			wantError(t, err, c.texts...)
			if he, ok := errors.AsType[*weir.HandlerError](err); !ok || he.Barrier != 1 || !errors.Is(err, bad) || strings.Contains(err.Error(), "WEIR_SKIP") {
				t.Errorf("%+v", err)
			}
		})
	}
}

func TestFlushThatMayBeRetriedRestartsTheApp(t *testing.T) {
	brokers := broker(t, 1, "in")
	produce(t, brokers, "in", "a", "b")
	var mu sync.Mutex
	failures := 0
	s := &flushed{flush: func(context.Context, []string) error {
		mu.Lock()
		defer mu.Unlock()
		if failures++; failures == 1 {
			return weir.Retry(errors.New("not now"))
		}
		return nil
	}}
	r := start(t, "flush-again", brokers, both(&flushed{}, s), weir.Store(checkpoint.NewMem()), weir.Drain())
	if err := r.wait(); err != nil {
		t.Fatal(err)
	}
	if got := s.arrived(); !slices.Equal(got, []string{"a", "b"}) {
		t.Errorf("%v arrived", got)
	}
	if again := await(r, 1, any1[event.Restarting]); !strings.Contains(again.Err.Error(), "not now") {
		t.Errorf("restarted because of %v", again.Err)
	}
}
