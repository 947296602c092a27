package weirtest_test

import (
	"fmt"
	"slices"
	"time"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/weirtest"
)

// printer stands for the *testing.T of a test.
type printer struct{ cleanups []func() }

func (*printer) Helper()                      {}
func (*printer) Errorf(f string, args ...any) { fmt.Printf(f+"\n", args...) }
func (*printer) Fatalf(f string, args ...any) { panic(fmt.Sprintf(f, args...)) }
func (p *printer) Cleanup(f func())           { p.cleanups = append(p.cleanups, f) }

func (p *printer) end() {
	for _, f := range slices.Backward(p.cleanups) {
		f()
	}
}

// A topology that counts words is stepped through a crash and a change of parallelism.
func Example() {
	t := &printer{} // a *testing.T in a test
	defer t.end()

	h := weirtest.New(t, func(app *weir.App) {
		words := weir.From(app, "words", source.Values("words", codec.String))
		byWord := weir.KeyBy(words, "by-word", func(w string) string { return w }, codec.String)
		weir.To(weir.Aggregate(byWord, "count", weir.Count[string]()), "counts", kafka.Sink("counts", codec.String, codec.Int64))
	})
	words, counts := weirtest.In[string](h, "words"), weirtest.Out[weir.KV[string, int64]](h, "counts")

	words.Send("to", "be")
	h.Checkpoint()
	words.Send("be")
	h.Crash()
	fmt.Println("committed:", counts.Committed())
	fmt.Println("processed:", counts.Values())

	h.Rescale(3)
	n, _ := weirtest.Value[int64](h, "count", "acc", "be")
	fmt.Println("be:", n)
	// Output:
	// committed: [{to 1} {be 1}]
	// processed: [{to 1} {be 1} {be 2}]
	// be: 2
}

// What a test says that fails.
func ExampleOutput_Want() {
	t := &printer{} // a *testing.T in a test
	defer t.end()

	h := weirtest.New(t, func(app *weir.App) {
		lines := weir.From(app, "lines", source.Values("lines", codec.String))
		weir.To(lines, "copies", kafka.Values("copies", kafka.NoKey, codec.String))
	})
	weirtest.In[string](h, "lines").Send("one", "two", "three")
	weirtest.Out[string](h, "copies").Want("one", "2", "three", "four")
	// Output:
	// weirtest: output of "copies":
	//   got 3 values, want 4; they differ from number 1 on
	//     0  one
	//   > 1  got two, want 2
	//     2  three
	//   > 3  got -, want four
}

// The app runs on an embedded broker, is killed, and goes on.
func ExampleStartBroker() {
	t := &printer{} // a *testing.T in a test
	defer t.end()

	b := weirtest.StartBroker(t, 1, "lines", "copies")
	weirtest.ProduceValues(b, "lines", codec.String, "one", "two")
	copies := func(app *weir.App) {
		lines := weir.From(app, "lines", source.Values("lines", codec.String))
		weir.To(lines, "copies", kafka.Values("copies", kafka.NoKey, codec.String))
	}
	run := b.Start(copies, weir.CheckpointEvery(10*time.Millisecond))
	run.UntilRecords(2)
	run.Kill()
	weirtest.ProduceValues(b, "lines", codec.String, "three")
	b.Drain(copies)
	fmt.Println(weirtest.ReadValues(b, "copies", codec.String))
	// Output: [one two three]
}
