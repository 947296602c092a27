package processor

import (
	"fmt"
	"slices"

	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
)

// Hearing describes a handler of broadcast records.
type Hearing struct {
	Operator string      // whose handler it is
	Stream   string      // the operator whose output it hears
	Values   *CastValues // nil: what is in flight can't be stored
}

// CastValues stores broadcast records that are in flight.
type CastValues struct {
	Codec   string
	Version int
	Append  func(dst []byte, v any) ([]byte, error)
	Decode  func(version int, b []byte) (any, error)
}

// NewCastValues returns what stores values of type R with a codec.
func NewCastValues[R any](c codec.Codec[R]) *CastValues {
	return &CastValues{
		Codec: c.Name(), Version: c.Version(),
		Append: func(dst []byte, v any) ([]byte, error) { return c.Append(dst, v.(R)) },
		Decode: func(version int, b []byte) (any, error) { return codec.DecodeVersion(c, version, b) },
	}
}

// cast is one record of a broadcast stream, on its way to every subtask of a stage.
type cast struct {
	raw *kgo.Record
	at  int64 // event time, as in item
	to  int   // which of the stage's handlers
	val any
}

// Hear gives the stage one more handler of broadcast records and returns its number. On
// each subtask it is set by [Operator.Hears].
func (st *KeyedStage[K, T]) Hear(h Hearing) int {
	st.hearings = append(st.hearings, h)
	return len(st.hearings) - 1
}

// Cast returns the function that sends a value of subtask s to the handler with that
// number on every subtask of the stage. All of them get the values of s in one order.
func (st *KeyedStage[K, T]) Cast(s *Subtask, to int) func(any) {
	snd := st.sender(s)
	return func(v any) { snd.cast(to, v) }
}

// nth tells how many hearings before number i are of the same operator and stream.
func nth(hearings []Hearing, i int) (n int) {
	for _, h := range hearings[:i] {
		if h.Operator == hearings[i].Operator && h.Stream == hearings[i].Stream {
			n++
		}
	}
	return n
}

// hear hands broadcast records to their handlers, until there is something else to do.
func (r *keyedRunner[K, T]) hear(casts []cast) {
	r.keys.Broadcasting(true)
	defer r.keys.Broadcasting(false)
	r.sub.guarded(func() {
		for r.done < len(casts) && r.sub.err == nil && !r.sub.attend.Load() && !r.freeze.due() {
			c := &casts[r.done]
			r.done++
			r.sub.raw, r.sub.at = c.raw, c.at
			r.sub.hearing[c.to](c.val)
			if r.keys.Err() != nil {
				r.sub.err = r.storeError()
			}
		}
	})
}

// keepsBroadcast tells whether this subtask is the one that stores the broadcast states,
// which are the same on all of them. So it also stores the broadcast records in flight: what
// it has not heard is what its state lacks, whatever the others have heard by then.
func (r *keyedRunner[K, T]) keepsBroadcast() bool { return r.lo == 0 }

// castWriter encodes broadcast records that are in flight.
type castWriter struct {
	sourceWriter
	scratch []byte
	heard   []int // numbers of the handlers, in order of first use
	records int64
}

func (w *castWriter) add(hearings []Hearing, casts []cast) (err error) {
	for i := range casts {
		c := &casts[i]
		to := slices.Index(w.heard, c.to)
		if to < 0 {
			to = len(w.heard)
			w.heard = append(w.heard, c.to)
		}
		w.begin(c.raw, c.at, uint64(to))
		if w.scratch, err = hearings[c.to].Values.Append(w.scratch[:0], c.val); err != nil {
			return fmt.Errorf("encoding a value of broadcast stream %q: %w", hearings[c.to].Stream, err)
		}
		w.bytes(w.scratch)
	}
	w.records += int64(len(casts))
	return nil
}

// part describes what was written.
func (w *castWriter) part(stage string, hearings []Hearing) checkpoint.InFlightData {
	f := checkpoint.InFlightData{Data: w.buf, InFlight: checkpoint.InFlight{Stage: stage, Records: w.records}}
	for _, i := range w.heard {
		h := hearings[i]
		f.Heard = append(f.Heard, checkpoint.Heard{Operator: h.Operator, Stream: h.Stream, Nth: nth(hearings, i), Codec: h.Values.Codec, Version: h.Values.Version})
	}
	return f
}

// castReader decodes what a castWriter wrote.
type castReader struct {
	sourceReader
	// decode decodes a value for the hearing with that number in the part, and returns the
	// number of its handler. false: nobody hears it any more.
	decode func(hearing uint64, b []byte) (to int, v any, ok bool, err error)
}

func (r *castReader) all() (casts []cast, err error) {
	for len(r.buf) > 0 {
		var hearing uint64
		raw, at, err := r.begin(&hearing)
		if err != nil {
			return nil, err
		}
		b, err := r.bytes()
		if err != nil {
			return nil, err
		}
		to, v, ok, err := r.decode(hearing, b)
		if err != nil {
			return nil, err
		}
		if ok {
			casts = append(casts, cast{raw: raw, at: at, to: to, val: v})
		}
	}
	return casts, nil
}

// heardBy returns the number of the handler that h stands for, or -1.
func (st *KeyedStage[K, T]) heardBy(h checkpoint.Heard) int {
	for i, mine := range st.hearings {
		if mine.Operator == h.Operator && mine.Stream == h.Stream && nth(st.hearings, i) == h.Nth {
			return i
		}
	}
	return -1
}

// castsInFlight decodes the broadcast records of f.
func (st *KeyedStage[K, T]) castsInFlight(f checkpoint.InFlight, data []byte) ([]cast, error) {
	r := castReader{sourceReader: sourceReader{buf: data}, decode: func(hearing uint64, b []byte) (int, any, bool, error) {
		if hearing >= uint64(len(f.Heard)) {
			return 0, nil, false, fmt.Errorf("a broadcast record is for hearing %d of %d", hearing, len(f.Heard))
		}
		h := f.Heard[hearing]
		to := st.heardBy(h)
		if to < 0 {
			return 0, nil, false, nil // as allowed
		}
		v, err := st.hearings[to].Values.Decode(h.Version, b)
		if err != nil {
			return 0, nil, false, fmt.Errorf("decoding a value of broadcast stream %q: %w", h.Stream, err)
		}
		return to, v, true, nil
	}}
	return r.all()
}

// checkCasts tells what keeps broadcast records that were in flight from being heard.
func (st *KeyedStage[K, T]) checkCasts(inc *incarnation, f checkpoint.InFlight) error {
	for _, h := range f.Heard {
		where := fmt.Sprintf("operator %q: checkpoint %d holds broadcast records of operator %q in flight to it", h.Operator, inc.base.Checkpoint, h.Stream)
		const remedy = "go back to that codec, and change it after a clean stop, which leaves nothing in flight"
		i := st.heardBy(h)
		if i < 0 {
			if inc.cfg.AllowDropped[h.Operator] {
				continue
			}
			return fmt.Errorf("%s, and it does not hear them any more; let it hear them, and change that after a clean stop, which leaves nothing in flight; or drop them with weir.AllowDroppedState(%q)", where, h.Operator)
		}
		switch values := st.hearings[i].Values; {
		case values == nil:
			return fmt.Errorf("%s, whose values were written by codec %q: pass it to weir.Broadcast as weir.ValueCodec; it may go after a clean stop, which leaves nothing in flight", where, h.Codec)
		case values.Codec != h.Codec:
			return fmt.Errorf("%s, whose values were written by codec %q, the topology uses %q: %s", where, h.Codec, values.Codec, remedy)
		case h.Version > values.Version:
			return fmt.Errorf("%s, whose values were written by version %d of codec %q, this program knows version %d: run the newer program", where, h.Version, h.Codec, values.Version)
		}
	}
	return nil
}
