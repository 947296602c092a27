package weir

import (
	"fmt"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/internal/inside"
	"github.com/weirstream/weir/source"
)

// What package weirtest needs of an app, and nobody else.
func init() {
	inside.Open = func(app any) (*inside.App, error) {
		a := app.(*App)
		a.shown = true
		cfg, plan, err := a.build()
		if err != nil {
			return nil, err
		}
		in := &inside.App{Config: cfg, Plan: plan, Inputs: a.inputs, Settings: a.opts.test}
		for _, n := range a.nodes {
			if n.values != nil {
				in.Outputs = append(in.Outputs, inside.Output{ID: n.id, Kind: n.kind, Type: n.values})
			}
		}
		return in, nil
	}
	inside.Kill = func(app any) {
		if job := app.(*App).job.Load(); job != nil {
			job.Kill()
		}
	}
	inside.Option = func(set func(*inside.Settings)) any {
		return option(func(o *options) { set(&o.test) })
	}
}

// recordOf makes records of values of a source.
func recordOf[T any](src source.Source[T]) func(any) (*kgo.Record, error) {
	if src.Encode == nil {
		return nil
	}
	return func(v any) (*kgo.Record, error) {
		t, ok := v.(T)
		if !ok {
			return nil, fmt.Errorf("it is a %T", v)
		}
		return src.Encode(t)
	}
}
