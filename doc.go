// Package weir is an exactly-once stream processor for Kafka that a Go service
// imports.
//
// A service describes a topology on an [App] and calls [App.Run]. It is then a
// member of a consumer group that keeps keyed state, survives being killed at any
// instant, and neither loses nor doubles a record: not in its state, not in the
// Kafka topics that it writes.
//
//	app := weir.New("wordcount", weir.Brokers("localhost:9092"), weir.CheckpointStore("file:///var/lib/wordcount"))
//	lines := weir.From(app, "lines", source.Values("lines", codec.String))
//	words := weir.FlatMap(lines, "split", split)
//	byWord := weir.KeyBy(words, "by-word", func(w string) string { return w }, codec.String)
//	counts := weir.Aggregate(byWord, "count", weir.Count[string]())
//	weir.To(counts, "counts", kafka.Sink("counts", codec.String, codec.Int64))
//	err := app.Run(ctx)
//
// [Stream] and [Keyed] are values that describe a part of the topology; operators
// are functions over them. Every operator has an ID that stays the same across
// releases of the service: state is found by it.
//
// The functions that build a topology are not safe for concurrent use. User
// functions are called from several goroutines at once, one for each subtask; what
// they share they must guard themselves. State handles and contexts belong to one
// subtask.
package weir
