package processor

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/barrier"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/internal/keygroup"
)

// What was in flight to a subtask is stored as a sequence of batches; numbers are uvarints
// and varints as in package encoding/binary:
//
//	batch     number of records (uvarint), mark, then the records
//	mark      where event time stands behind them: 1 byte of markIdle and markWatermark;
//	          with the latter the watermark (varint), milliseconds since 1970
//	record    1 byte of sameSource and hasTime; source unless it is that of the record
//	          before it; with hasTime the record's time (varint), milliseconds since
//	          1970; key and value (bytes each) as their codecs wrote them
//	source    the input record: topic, partition and offset (varint each), leader epoch
//	          (varint), timestamp (varint), key and value (optional bytes each), number of
//	          headers (uvarint), name (bytes) and value (optional bytes) of each
//	topic     number (uvarint) of the topic in order of first use; a new one is followed
//	          by its name (bytes)
//	bytes     length (uvarint), bytes
//	optional  0 for none, or length+1 (uvarint), bytes
//
// Broadcast records that were in flight are another part, and a sequence of
//
//	cast      1 byte of sameSource and hasTime; hearing (uvarint), the number of who
//	          hears it in the list that the part has in the manifest; source and time as
//	          in record; value (bytes)
const (
	markIdle      = 1
	markWatermark = 2

	sameSource = 1
	hasTime    = 2
)

// flightWriter encodes what is in flight to one subtask.
type flightWriter[K comparable, T any] struct {
	sourceWriter
	keys    codec.Codec[K]
	values  codec.Codec[T]
	scratch []byte
	records int64
}

// sourceWriter encodes where records in flight came from.
type sourceWriter struct {
	buf    []byte
	raw    *kgo.Record // of the record before
	topics []string
}

// batch appends records and where event time stands behind them.
func (w *flightWriter[K, T]) batch(items []item[K, T], m mark) error {
	w.buf = binary.AppendUvarint(w.buf, uint64(len(items)))
	var flags byte
	if m.idle {
		flags |= markIdle
	}
	if m.watermark != noWatermark {
		flags |= markWatermark
	}
	if w.buf = append(w.buf, flags); flags&markWatermark != 0 {
		w.buf = binary.AppendVarint(w.buf, m.watermark)
	}
	for i := range items {
		if err := w.item(&items[i]); err != nil {
			return err
		}
	}
	w.records += int64(len(items))
	return nil
}

func (w *flightWriter[K, T]) item(it *item[K, T]) (err error) {
	w.begin(it.raw, it.at)
	if w.scratch, err = w.keys.Append(w.scratch[:0], it.key); err != nil {
		return fmt.Errorf("encoding the key: %w", err)
	}
	w.bytes(w.scratch)
	if w.scratch, err = w.values.Append(w.scratch[:0], it.val); err != nil {
		return fmt.Errorf("encoding the value: %w", err)
	}
	w.bytes(w.scratch)
	return nil
}

// begin appends what a record begins with.
func (w *sourceWriter) begin(raw *kgo.Record, at int64, more ...uint64) {
	var flags byte
	if raw == w.raw && w.raw != nil {
		flags |= sameSource
	}
	if at != noWatermark {
		flags |= hasTime
	}
	w.buf = append(w.buf, flags)
	for _, n := range more {
		w.buf = binary.AppendUvarint(w.buf, n)
	}
	if flags&sameSource == 0 {
		w.source(raw)
	}
	if flags&hasTime != 0 {
		w.buf = binary.AppendVarint(w.buf, at)
	}
}

func (w *sourceWriter) source(r *kgo.Record) {
	w.raw = r
	topic := slices.Index(w.topics, r.Topic)
	if topic < 0 {
		topic = len(w.topics)
		w.topics = append(w.topics, r.Topic)
		w.buf = binary.AppendUvarint(w.buf, uint64(topic))
		w.bytes([]byte(r.Topic))
	} else {
		w.buf = binary.AppendUvarint(w.buf, uint64(topic))
	}
	for _, n := range []int64{int64(r.Partition), r.Offset, int64(r.LeaderEpoch), r.Timestamp.UnixMilli()} {
		w.buf = binary.AppendVarint(w.buf, n)
	}
	w.optional(r.Key)
	w.optional(r.Value)
	w.buf = binary.AppendUvarint(w.buf, uint64(len(r.Headers)))
	for _, h := range r.Headers {
		w.bytes([]byte(h.Key))
		w.optional(h.Value)
	}
}

func (w *sourceWriter) bytes(b []byte) {
	w.buf = append(binary.AppendUvarint(w.buf, uint64(len(b))), b...)
}

func (w *sourceWriter) optional(b []byte) {
	if b == nil {
		w.buf = append(w.buf, 0)
		return
	}
	w.buf = append(binary.AppendUvarint(w.buf, uint64(len(b))+1), b...)
}

// flightReader decodes what a flightWriter wrote.
type flightReader[K comparable, T any] struct {
	sourceReader
	keys      codec.Codec[K]
	values    codec.Codec[T]
	version   int // of the codec that wrote the values
	keyGroups int
}

// sourceReader decodes what a sourceWriter wrote.
type sourceReader struct {
	buf    []byte
	raw    *kgo.Record // of the record before
	topics []string
}

var errFlightCut = errors.New("it ends in the midst of a record")

// all returns the batches in order. A record that keep says no to is left out.
func (r *flightReader[K, T]) all(keep func(kg int) bool) (batches []*batch[K, T], err error) {
	for len(r.buf) > 0 {
		n, err := r.uvarint()
		if err != nil {
			return nil, err
		}
		b := &batch[K, T]{restored: true, time: mark{watermark: noWatermark}}
		flags, err := r.byte(markIdle | markWatermark)
		if err != nil {
			return nil, err
		}
		b.time.idle = flags&markIdle != 0
		if flags&markWatermark != 0 {
			if b.time.watermark, err = r.varint(); err != nil {
				return nil, err
			}
		}
		for range n {
			it, err := r.item()
			if err != nil {
				return nil, err
			}
			if keep(int(it.kg)) {
				b.items = append(b.items, it)
			}
		}
		batches = append(batches, b)
	}
	return batches, nil
}

func (r *flightReader[K, T]) item() (it item[K, T], err error) {
	if it.raw, it.at, err = r.begin(); err != nil {
		return it, err
	}
	key, err := r.bytes()
	if err != nil {
		return it, err
	}
	value, err := r.bytes()
	if err != nil {
		return it, err
	}
	if it.key, err = r.keys.Decode(key); err != nil {
		return it, fmt.Errorf("decoding a key: %w", err)
	}
	// The value's codec may take the bytes for its own, and the key outlives the record.
	it.key = codec.Clone(r.keys, it.key)
	if it.val, err = codec.DecodeVersion(r.values, r.version, value); err != nil {
		return it, fmt.Errorf("decoding a value: %w", err)
	}
	it.kg = uint16(keygroup.Of(key, r.keyGroups))
	return it, nil
}

// begin reads what a record begins with.
func (r *sourceReader) begin(more ...*uint64) (raw *kgo.Record, at int64, err error) {
	flags, err := r.byte(sameSource | hasTime)
	if err != nil {
		return nil, 0, err
	}
	for _, n := range more {
		if *n, err = r.uvarint(); err != nil {
			return nil, 0, err
		}
	}
	if flags&sameSource == 0 {
		if err := r.source(); err != nil {
			return nil, 0, err
		}
	} else if r.raw == nil {
		return nil, 0, errors.New("the first record has no input record")
	}
	at = noWatermark
	if flags&hasTime != 0 {
		if at, err = r.varint(); err != nil {
			return nil, 0, err
		}
	}
	return r.raw, at, nil
}

func (r *sourceReader) source() error {
	number, err := r.uvarint()
	if err != nil {
		return err
	}
	switch {
	case number > uint64(len(r.topics)):
		return fmt.Errorf("topic %d is used before it is named", number)
	case number == uint64(len(r.topics)):
		name, err := r.bytes()
		if err != nil {
			return err
		}
		r.topics = append(r.topics, string(name))
	}
	rec := &kgo.Record{Topic: r.topics[number]}
	var ns [4]int64
	for i := range ns {
		if ns[i], err = r.varint(); err != nil {
			return err
		}
	}
	rec.Partition, rec.Offset, rec.LeaderEpoch, rec.Timestamp = int32(ns[0]), ns[1], int32(ns[2]), time.UnixMilli(ns[3])
	if rec.Key, err = r.optional(); err != nil {
		return err
	}
	if rec.Value, err = r.optional(); err != nil {
		return err
	}
	headers, err := r.uvarint()
	if err != nil {
		return err
	}
	for range headers {
		name, err := r.bytes()
		if err != nil {
			return err
		}
		value, err := r.optional()
		if err != nil {
			return err
		}
		rec.Headers = append(rec.Headers, kgo.RecordHeader{Key: string(name), Value: value})
	}
	r.raw = rec
	return nil
}

func (r *sourceReader) uvarint() (uint64, error) {
	v, n := binary.Uvarint(r.buf)
	if n <= 0 {
		return 0, errFlightCut
	}
	r.buf = r.buf[n:]
	return v, nil
}

func (r *sourceReader) varint() (int64, error) {
	v, n := binary.Varint(r.buf)
	if n <= 0 {
		return 0, errFlightCut
	}
	r.buf = r.buf[n:]
	return v, nil
}

// byte returns flags of which only those in known may be set.
func (r *sourceReader) byte(known byte) (byte, error) {
	if len(r.buf) == 0 {
		return 0, errFlightCut
	}
	b := r.buf[0]
	if b&^known != 0 {
		return 0, fmt.Errorf("unknown flags %08b", b)
	}
	r.buf = r.buf[1:]
	return b, nil
}

func (r *sourceReader) bytes() ([]byte, error) {
	n, err := r.uvarint()
	if err != nil {
		return nil, err
	}
	return r.take(n)
}

func (r *sourceReader) optional() ([]byte, error) {
	n, err := r.uvarint()
	if err != nil || n == 0 {
		return nil, err
	}
	return r.take(n - 1)
}

func (r *sourceReader) take(n uint64) ([]byte, error) {
	if n > uint64(len(r.buf)) {
		return nil, errFlightCut
	}
	b := r.buf[:n:n]
	r.buf = r.buf[n:]
	return b, nil
}

// capture is what a subtask captures for an unaligned checkpoint.
type capture[K comparable, T any] struct {
	id     int64 // 0: nothing is being captured
	writer flightWriter[K, T]
	inputs []mark // where event time stands on the inputs behind what was captured
	now    mark   // and on the subtask
	casts  castWriter
}

// attend looks at what the loop or a sender says between two records: that the incarnation
// ends, that a checkpoint is unaligned or was given up, and that barriers came.
func (r *keyedRunner[K, T]) attend() error {
	r.sub.attend.Store(false)
	if r.sub.inc.over.Load() {
		return context.Cause(r.sub.inc.ctx)
	}
	if id := r.capture.id; id != 0 && r.sub.inc.givenUp.Load() >= id {
		if err := r.apply(r.aligner.Cancel(id)); err != nil {
			return err
		}
	}
	if err := r.fill(); err != nil {
		return err
	}
	if id := r.sub.inc.unaligned.Load(); id > r.unaligned && id > r.sub.inc.givenUp.Load() {
		r.unaligned = id
		return r.apply(r.aligner.Unalign(id))
	}
	return nil
}

// fill takes what senders handed over. What a checkpoint lacks of it is captured before
// it is processed.
func (r *keyedRunner[K, T]) fill() error {
	if r.head > len(r.queue)/2 {
		// Under lasting backpressure it never runs empty.
		r.queue, r.head = slices.Delete(r.queue, 0, r.head), 0
	}
	n := len(r.queue)
	r.queue = r.box.drain(r.queue)
	for i := n; i < len(r.queue) && r.capture.id != 0; i++ {
		if err := r.captureBatch(r.queue[i], 0, guard.Broken(guard.LateCapture)); err != nil {
			return err
		}
	}
	return nil
}

// apply carries out what the aligner wants done.
func (r *keyedRunner[K, T]) apply(eff barrier.Effect, err error) error {
	if err != nil {
		return fmt.Errorf("%s/%d: %w", r.sub.stage, r.sub.index, err)
	}
	if eff.Abandoned != 0 && eff.Abandoned == r.capture.id {
		r.capture = capture[K, T]{}
		r.freeze.abandoned = true
		r.acknowledge()
	}
	if eff.Snapshot != 0 {
		if err := r.cut(eff.Snapshot); err != nil {
			return err
		}
		if r.sub.err != nil {
			return r.sub.err
		}
		if id, ok := r.aligner.Pending(); ok && id == eff.Snapshot {
			r.freeze.unaligned = true
			if err := r.captureAll(id); err != nil {
				return err
			}
			crashpoint.Hit(crashpoint.InCapture)
		}
	}
	if eff.Unblock {
		r.queue = slices.Insert(r.queue, r.head, r.stash...)
		clear(r.stash)
		r.stash = r.stash[:0]
	}
	if eff.Captured != 0 {
		r.captured()
	}
	return nil
}

// captureAll begins the capture for checkpoint id with everything that is here and not
// processed.
func (r *keyedRunner[K, T]) captureAll(id int64) error {
	r.capture = capture[K, T]{id: id, writer: r.stage.flightWriter(), inputs: slices.Clone(r.inputs), now: mark{r.finite, r.now.idle}}
	r.capture.writer.buf = make([]byte, 0, r.captureSize+r.captureSize/8)
	if err := r.captureRestored(); err != nil {
		return err
	}
	if r.current != nil && !r.current.restored {
		if err := r.captureBatch(r.current, r.done, false); err != nil {
			return err
		}
	}
	for _, batches := range [][]*batch[K, T]{r.stash, r.queue[r.head:]} {
		for _, bt := range batches {
			if err := r.captureBatch(bt, 0, false); err != nil {
				return err
			}
		}
	}
	return nil
}

// captureRestored captures what is left of the records that were in flight when the job
// was restored. They lie in front of everything else, so they come first, with the time at
// which this subtask would have stood behind them.
func (r *keyedRunner[K, T]) captureRestored() error {
	if guard.Broken(guard.CapturedAgain) {
		return nil
	}
	c, marks := &r.capture, slices.Clone(r.restored)
	left, from := r.replay[r.replayed:], 0
	if r.current != nil && r.current.restored {
		left, from = r.replay[r.replayed-1:], r.done
	}
	for ; len(left) > 0; left, from = left[1:], 0 {
		b := left[0]
		if b.input == castPart {
			if err := r.captureCasts(b.casts[from:]); err != nil {
				return err
			}
			continue
		}
		marks[b.input] = b.time
		m := merge(marks)
		m.watermark = max(m.watermark, c.now.watermark)
		if err := r.storing(func() error { return c.writer.batch(b.items[from:], m) }); err != nil {
			return err
		}
		c.now = m
	}
	return nil
}

// captureBatch captures the items of a batch from the given one on, if its input's barrier
// has not come, and takes note of its barrier.
func (r *keyedRunner[K, T]) captureBatch(bt *batch[K, T], from int, skip bool) error {
	c := &r.capture
	if c.id == 0 || !r.aligner.Capturing(bt.input) {
		return nil
	}
	if bt.barrier > c.id {
		// A sender went on to a newer checkpoint without this one: it was given up.
		return r.apply(r.aligner.Cancel(c.id))
	}
	if bt.time.watermark != endOfTime { // which is never stored
		c.inputs[bt.input] = bt.time
	}
	m := merge(c.inputs)
	m.watermark = max(m.watermark, c.now.watermark)
	items := bt.items[min(from, len(bt.items)):]
	if (len(items) > 0 || m != c.now) && !skip {
		if err := r.storing(func() error { return c.writer.batch(items, m) }); err != nil {
			return err
		}
	}
	c.now = m
	if err := r.captureCasts(bt.casts[min(from, len(bt.casts)):]); err != nil {
		return err
	}
	if id := bt.barrier; id != 0 {
		bt.barrier = 0 // processing must not meet it again
		return r.apply(r.aligner.Barrier(bt.input, id))
	}
	return nil
}

// captureCasts captures broadcast records, on the one subtask that does.
func (r *keyedRunner[K, T]) captureCasts(casts []cast) error {
	if !r.keepsBroadcast() {
		return nil
	}
	return r.storing(func() error { return r.capture.casts.add(r.stage.hearings, casts) })
}

// storing calls f to encode what is in flight.
func (r *keyedRunner[K, T]) storing(f func() error) error {
	return r.sub.inc.blaming(func() error {
		if err := f(); err != nil {
			return fatal(fmt.Errorf("storing a record in flight to operator %q with checkpoint %d: %w", r.sub.stage, r.capture.id, err))
		}
		return nil
	}, func() (operator, doing string) {
		return r.sub.stage, fmt.Sprintf("storing a record in flight to it with checkpoint %d", r.capture.id)
	})
}

// captured ends the capture: the barrier came on every input.
func (r *keyedRunner[K, T]) captured() {
	c := &r.capture
	r.captureSize = len(c.writer.buf)
	r.freeze.inFlight = []checkpoint.InFlightData{r.part(&c.writer, r.freeze.watermark)}
	if c.casts.records > 0 {
		r.freeze.inFlight = append(r.freeze.inFlight, c.casts.part(r.sub.stage, r.stage.hearings))
	}
	r.capture = capture[K, T]{}
	r.acknowledge()
}

// part describes what w wrote.
func (r *keyedRunner[K, T]) part(w *flightWriter[K, T], watermark int64) checkpoint.InFlightData {
	f := checkpoint.InFlightData{Data: w.buf, InFlight: checkpoint.InFlight{
		Stage: r.sub.stage, MinKG: uint16(r.lo), MaxKG: uint16(r.hi - 1), Records: w.records,
		KeyCodec: w.keys.Name(), ValueCodec: w.values.Name(), ValueVersion: w.values.Version(),
	}}
	if watermark != noWatermark {
		f.Watermark = &watermark
	}
	return f
}

// replayer is a runner that takes back what was in flight.
type replayer interface {
	restoreInFlight(f checkpoint.InFlight, data []byte) error
	subtask() *Subtask
}

// castPart is what the input of a batch says that holds broadcast records which were in
// flight. They have no part in event time.
const castPart = -1

// restoreInFlight takes the records of f whose key-groups this subtask owns, or all if
// they are broadcast records. They are processed before everything else: broadcast records
// first, then those of an earlier call.
func (r *keyedRunner[K, T]) restoreInFlight(f checkpoint.InFlight, data []byte) error {
	if f.Broadcast() {
		casts, err := r.stage.castsInFlight(f, data)
		if err != nil || len(casts) == 0 || guard.Broken(guard.ReplayToAll) && !r.keepsBroadcast() {
			return err
		}
		r.replay = slices.Insert(r.replay, 0, &batch[K, T]{restored: true, input: castPart, casts: casts, time: mark{watermark: noWatermark}})
		return nil
	}
	if !f.Overlaps(r.lo, r.hi) && !guard.Broken(guard.RouteByKeyGroup) {
		return nil // time on a subtask that this one does not replace holds nothing back here
	}
	reader := flightReader[K, T]{keys: r.stage.codec, values: r.stage.values, version: f.ValueVersion, keyGroups: r.sub.inc.cfg.KeyGroups, sourceReader: sourceReader{buf: data}}
	keep := func(kg int) bool { return kg >= r.lo && kg < r.hi }
	if guard.Broken(guard.RouteByKeyGroup) {
		keep = func(int) bool { return int(f.MinKG) >= r.lo && int(f.MinKG) < r.hi }
	}
	batches, err := reader.all(keep)
	if err != nil {
		return err
	}
	m := mark{watermark: noWatermark}
	if f.Watermark != nil {
		m.watermark = *f.Watermark
	}
	part := len(r.restored)
	r.restored = append(r.restored, m)
	for _, b := range batches {
		b.input = part
		r.replay = append(r.replay, b)
	}
	return nil
}

// advanceRestored takes up where time stands on a part of what was in flight.
func (r *keyedRunner[K, T]) advanceRestored(part int, m mark) error {
	if part != castPart {
		r.restored[part] = m
		if err := r.rise(merge(r.restored)); err != nil {
			return err
		}
	}
	if r.replayed == len(r.replay) {
		r.replay, r.restored, r.replayed = nil, nil, 0
	}
	return nil
}

// loadInFlight gives the subtasks the records that were in flight when the checkpoint
// was taken.
func (inc *incarnation) loadInFlight(ctx context.Context, m *checkpoint.Manifest) error {
	for _, f := range m.InFlight {
		data, err := checkpoint.ReadInFlight(ctx, inc.cfg.Store, f)
		if err != nil {
			return classifyStore(err)
		}
		for _, r := range inc.runners {
			if r, ok := r.(replayer); ok && r.subtask().stage == f.Stage {
				err := inc.blaming(func() error {
					if err := r.restoreInFlight(f, data); err != nil {
						return fatal(fmt.Errorf("restoring checkpoint %d: records in flight to operator %q: %w", m.Checkpoint, f.Stage, err))
					}
					return nil
				}, func() (operator, doing string) {
					return f.Stage, fmt.Sprintf("decoding a record in flight to it of checkpoint %d", m.Checkpoint)
				})
				if err != nil {
					return err
				}
			}
		}
	}
	return nil
}

// checkInFlight tells what keeps records that were in flight from being processed by this
// topology.
func (inc *incarnation) checkInFlight() error {
	var errs []error
	for _, f := range inc.base.InFlight {
		known := slices.ContainsFunc(inc.plan.Stages, func(st Stage) bool { return st.StageID() == f.Stage })
		if f.Records > 0 && !known && !inc.cfg.AllowDropped[f.Stage] {
			errs = append(errs, fmt.Errorf("checkpoint %d holds %d records in flight to operator %q, which the topology lacks; bring the operator back, and remove it after a clean stop, which leaves nothing in flight; or drop them with weir.AllowDroppedState(%q)", inc.base.Checkpoint, f.Records, f.Stage, f.Stage))
		}
	}
	return errors.Join(errs...)
}

// checkInFlight is the same for the codecs of the stage.
func (st *KeyedStage[K, T]) checkInFlight(inc *incarnation) error {
	for _, f := range inc.base.InFlight {
		if f.Stage != st.id || f.Records == 0 {
			continue
		}
		if f.Broadcast() {
			if err := st.checkCasts(inc, f); err != nil {
				return err
			}
			continue
		}
		where := fmt.Sprintf("operator %q: checkpoint %d holds records in flight to it", st.id, inc.base.Checkpoint)
		const remedy = "go back to that codec, and change it after a clean stop, which leaves nothing in flight"
		switch {
		case st.values == nil:
			return fmt.Errorf("%s, whose values were written by codec %q: pass it to weir.KeyBy as weir.ValueCodec; it may go after a clean stop, which leaves nothing in flight", where, f.ValueCodec)
		case f.KeyCodec != st.codec.Name():
			return fmt.Errorf("%s, whose keys were written by codec %q, the topology uses %q: %s", where, f.KeyCodec, st.codec.Name(), remedy)
		case f.ValueCodec != st.values.Name():
			return fmt.Errorf("%s, whose values were written by codec %q, the topology uses %q: %s", where, f.ValueCodec, st.values.Name(), remedy)
		case f.ValueVersion > st.values.Version():
			return fmt.Errorf("%s, whose values were written by version %d of codec %q, this program knows version %d: run the newer program", where, f.ValueVersion, f.ValueCodec, st.values.Version())
		}
	}
	return nil
}
