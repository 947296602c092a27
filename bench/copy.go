package main

import (
	"context"
	"flag"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
)

func init() {
	contenders["copy.weir"] = copyWeir
	contenders["copy.bare"] = copyBare
	register(command{
		name:    "copy",
		summary: "copies records from topic to topic, exactly once, beside a bare transactional loop",
		figures: contestFigures("copy"),
		run: func(ctx context.Context, fs *flag.FlagSet, args []string, r *report) error {
			c := contest{name: "copy", input: input{records: 2_000_000, partitions: 4, keys: 100_000, valueBytes: 200}}
			c.flags(fs)
			if err := parse(fs, args); err != nil {
				return err
			}
			return c.run(ctx, r)
		},
	})
}

func copyWeir(ctx context.Context, j job) error {
	app := newApp(j)
	in := weir.From(app, "in", source.Records(j.In))
	weir.To(in, "out", kafka.Records(j.Out))
	return app.Run(ctx)
}

func copyBare(ctx context.Context, j job) error {
	return bareLoop(ctx, j, func(ins []*kgo.Record, outs []kgo.Record) {
		for i, in := range ins {
			out := &outs[i]
			out.Topic, out.Key, out.Value, out.Headers, out.Timestamp = j.Out, in.Key, in.Value, in.Headers, in.Timestamp
		}
	})
}

// newApp returns an app with a job's settings and otherwise Weir's defaults.
func newApp(j job) *weir.App {
	opts := []weir.Option{
		weir.Brokers(j.Brokers...), weir.CheckpointStore("file://" + j.Dir), weir.InstanceID("bench"),
		weir.CheckpointEvery(j.Interval), weir.Drain(),
	}
	if j.Parallelism > 0 {
		opts = append(opts, weir.Parallelism(j.Parallelism))
	}
	return weir.New(j.Name, opts...)
}
