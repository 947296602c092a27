package weir_test

import (
	"testing"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
	"github.com/weirstream/weir/weirtest"
)

// cents is stored as whole euros by version 1.
type cents struct{ codec.Codec[int64] }

func (cents) DecodeVersion(_ int, b []byte) (int64, error) {
	v, err := codec.Int64.Decode(b)
	return v * 100, err
}

func TestMaxReadsWhatAnOlderVersionOfItsCodecWrote(t *testing.T) {
	highest := func(c codec.Codec[int64]) func(*weir.App) {
		return func(app *weir.App) {
			in := weir.From(app, "in", source.Values("in", codec.Int64))
			all := weir.KeyBy(in, "all", func(int64) string { return "all" }, codec.String)
			weir.To(weir.Aggregate(all, "max", weir.Max(func(v int64) int64 { return v }, c)), "out", kafka.Sink("out", codec.String, codec.Int64))
		}
	}
	h := weirtest.New(t, highest(codec.Func("amount", 1, codec.Int64.Append, codec.Int64.Decode)))
	weirtest.In[int64](h, "in").Send(5)
	h.Checkpoint()
	h.Upgrade(highest(cents{codec.Func("amount", 2, codec.Int64.Append, codec.Int64.Decode)}))
	weirtest.In[int64](h, "in").Send(7)
	type kv = weir.KV[string, int64]
	weirtest.Out[kv](h, "out").WantNext(kv{Key: "all", Value: 5}, kv{Key: "all", Value: 500})
}

// embedded lacks the method Clone of the codec in it.
type embedded struct{ codec.Codec[string] }

func TestMaxAndMinReportACodecThatCannotBeUsed(t *testing.T) {
	app := weir.New("app", weir.Brokers("b:1"), weir.CheckpointStore("mem://"))
	self := func(s string) string { return s }
	byKey := weir.KeyBy(weir.From(app, "in", source.Values("in", codec.String)), "by-key", self, codec.String)
	weir.Aggregate(byKey, "max", weir.Max(self, codec.Codec[string](embedded{codec.String})))
	weir.Aggregate(byKey, "min", weir.Min(self, codec.Func[string]("lacks functions", 1, nil, nil)))
	wantErrors(t, app.Validate(), `operator "max": state "acc": codec string: weir_test.embedded embeds a codec.stringCodec`, `operator "min": state "acc": `, "(aggregate_test.go:")
}
