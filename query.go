package weir

import (
	"context"
	"fmt"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/processor"
)

// Errors of [Query], beside [ErrNotRunning].
var (
	// ErrNotActive says that this instance does not have the state now: it is starting or
	// restarting, or stands by while another one is active.
	ErrNotActive = processor.ErrNotActive
	// ErrNothingCommitted says that the app has not committed a checkpoint yet.
	ErrNothingCommitted = processor.ErrNothingCommitted
	// ErrNoSuchState says that the topology does not have the state; the error names those
	// that it has.
	ErrNoSuchState = processor.ErrNoSuchState
	// ErrWrongCodec says that state is kept by another codec.
	ErrWrongCodec = processor.ErrWrongCodec
)

// Result is what [Query] found.
type Result[V any] struct {
	Value V
	OK    bool // the key has a value, and it has not expired
	// Checkpoint is the committed checkpoint at which the answer is true.
	Checkpoint int64
}

// Query reads the committed value of a key from the state of a running app, in the process
// that has it. operator and name are the IDs of the operator and of its state, as
// [App.Describe] shows them; the state of [Aggregate] and [Reduce] is called "acc". The
// codecs must be those of the app, and the state one of one value for each key.
//
// What the handlers changed since the last checkpoint is not seen, so an answer is never
// taken back: those to one key never go back to an earlier checkpoint. A process that was
// cut off from Kafka answers from the last checkpoint that it knows, until it notices.
//
// With a local store ([StateBackend]) a query is a read of it. Otherwise, and where that has
// not copied everything yet, it reads the checkpoint in the store, of which a part is kept
// in memory: what was not asked lately takes as long as the store does, or until ctx ends.
// Neither holds up processing. It may be called from any goroutine.
//
// Errors are ErrNotRunning, ErrNotActive, ErrNothingCommitted, ErrNoSuchState,
// ErrWrongCodec, errors.ErrUnsupported for another kind of state, and those of reading.
func Query[K comparable, V any](ctx context.Context, app *App, operator, name string, key K, keyCodec codec.Codec[K], valueCodec codec.Codec[V]) (Result[V], error) {
	var r Result[V]
	fail := func(err error) (Result[V], error) {
		return Result[V]{}, fmt.Errorf("weir: %s: query: %w", app.name, err)
	}
	job := app.job.Load()
	if job == nil {
		return fail(ErrNotRunning)
	}
	if err := codec.Check(keyCodec); err != nil {
		return fail(fmt.Errorf("key codec: %w", err))
	}
	if err := codec.Check(valueCodec); err != nil {
		return fail(fmt.Errorf("value codec: %w", err))
	}
	k, err := keyCodec.Append(nil, key)
	if err != nil {
		return fail(fmt.Errorf("encoding the key: %w", err))
	}
	a, err := job.Query(ctx, processor.Query{Operator: operator, State: name, Key: k, KeyCodec: keyCodec.Name(), ValueCodec: valueCodec.Name()})
	if err != nil {
		return fail(err)
	}
	if r.Checkpoint, r.OK = a.Checkpoint, a.OK; !a.OK {
		return r, nil
	}
	if r.Value, err = codec.DecodeVersion(valueCodec, a.Version, a.Value); err != nil {
		return fail(fmt.Errorf("operator %q, state %q, checkpoint %d: decoding the value: %w", operator, name, a.Checkpoint, err))
	}
	return r, nil
}
