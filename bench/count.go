package main

import (
	"context"
	"encoding/binary"
	"flag"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
)

func init() {
	contenders["count.weir"] = countWeir
	contenders["count.bare"] = countBare
	register(command{
		name:    "count",
		summary: "counts records by key and emits each count, beside a bare loop with a plain map that is never made durable",
		figures: contestFigures("count"),
		run: func(ctx context.Context, fs *flag.FlagSet, args []string, r *report) error {
			c := contest{name: "count", input: input{records: 2_000_000, partitions: 4, keys: 100_000, valueBytes: 50}}
			c.flags(fs)
			if err := parse(fs, args); err != nil {
				return err
			}
			return c.run(ctx, r)
		},
	})
}

func countWeir(ctx context.Context, j job) error {
	type event = weir.KV[string, []byte]
	app := newApp(j)
	in := weir.From(app, "in", source.KeyValues(j.In, codec.String, codec.Bytes))
	byKey := weir.KeyBy(in, "by-key", func(e event) string { return e.Key }, codec.String)
	counts := weir.Aggregate(byKey, "count", weir.Count[event]())
	weir.To(counts, "out", kafka.Sink(j.Out, codec.String, codec.Int64))
	return app.Run(ctx)
}

func countBare(ctx context.Context, j job) error {
	counts := map[string]*uint64{}
	return bareLoop(ctx, j, func(ins []*kgo.Record, outs []kgo.Record) {
		values := make([]byte, 0, 8*len(ins))
		for i, in := range ins {
			n, ok := counts[string(in.Key)]
			if !ok {
				n = new(uint64)
				counts[string(in.Key)] = n
			}
			*n++
			values = binary.BigEndian.AppendUint64(values, *n)
			out := &outs[i]
			out.Topic, out.Key, out.Value, out.Timestamp = j.Out, in.Key, values[8*i:8*i+8:8*i+8], in.Timestamp
		}
	})
}
