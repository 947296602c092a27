package offline

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/state/segment"
)

// Entry is an entry of a value, reducing or aggregating state.
type Entry[K, V any] struct {
	Key   K
	Value V
	Meta
}

// MapEntry is an entry of a map state or, with Key as its zero value, of a broadcast
// state.
type MapEntry[K, M, V any] struct {
	Key    K
	MapKey M
	Value  V
	Meta
}

// Element is an element of a list state.
type Element[K, V any] struct {
	Key   K
	Index uint64 // orders the elements of a key; there may be gaps
	Value V
	Meta
}

// Timer is a timer that has not fired.
type Timer[K any] struct {
	Key K
	At  int64 // milliseconds since 1970
	Meta
}

// Values yields the entries of a value, reducing or aggregating state by key-group and
// encoded key. As with everything that yields, an error comes last: an
// *UnknownStateError, a *CodecError, or one of reading the segments.
func Values[K, V any](ctx context.Context, s *Snapshot, operator, name string, keys codec.Codec[K], values codec.Codec[V], opts ...Option) iter.Seq2[Entry[K, V], error] {
	return read(ctx, s, want{operator, name, kindValue, keys.Name(), "", values.Name()}, opts, func(e segment.Entry, m Meta, value []byte) (r Entry[K, V], err error) {
		r.Meta = m
		if r.Key, err = decode(keys, e.Key); err == nil {
			r.Value, err = decodeVersion(values, m.Version, value)
		}
		return r, err
	})
}

// Maps yields the entries of a map state by key-group, encoded key and map key.
func Maps[K, M, V any](ctx context.Context, s *Snapshot, operator, name string, keys codec.Codec[K], mapKeys codec.Codec[M], values codec.Codec[V], opts ...Option) iter.Seq2[MapEntry[K, M, V], error] {
	if err := checkMapKeys(operator, name, mapKeys); err != nil {
		return failed[MapEntry[K, M, V]](err)
	}
	return read(ctx, s, want{operator, name, kindMap, keys.Name(), mapKeys.Name(), values.Name()}, opts, func(e segment.Entry, m Meta, value []byte) (r MapEntry[K, M, V], err error) {
		return mapEntry(keys, mapKeys, values, e, m, value)
	})
}

// Lists yields the elements of a list state by key-group, encoded key and index.
func Lists[K, V any](ctx context.Context, s *Snapshot, operator, name string, keys codec.Codec[K], values codec.Codec[V], opts ...Option) iter.Seq2[Element[K, V], error] {
	return read(ctx, s, want{operator, name, kindList, keys.Name(), "", values.Name()}, opts, func(e segment.Entry, m Meta, value []byte) (Element[K, V], error) {
		return element(keys, values, e, m, value)
	})
}

// Broadcast yields the entries of a broadcast state by map key.
func Broadcast[M, V any](ctx context.Context, s *Snapshot, operator, name string, mapKeys codec.Codec[M], values codec.Codec[V], opts ...Option) iter.Seq2[MapEntry[codec.Empty, M, V], error] {
	if err := checkMapKeys(operator, name, mapKeys); err != nil {
		return failed[MapEntry[codec.Empty, M, V]](err)
	}
	return read(ctx, s, want{operator, name, kindBroadcast, "", mapKeys.Name(), values.Name()}, opts, func(e segment.Entry, m Meta, value []byte) (r MapEntry[codec.Empty, M, V], err error) {
		r.Meta = m
		if r.MapKey, err = decodeOrdered(mapKeys, e.Key); err == nil {
			r.Value, err = decodeVersion(values, m.Version, value)
		}
		return r, err
	})
}

// Timers yields the timers of an operator by key-group and time. name is
// [EventTimers] or [ProcessingTimers].
func Timers[K any](ctx context.Context, s *Snapshot, operator, name string, keys codec.Codec[K], opts ...Option) iter.Seq2[Timer[K], error] {
	return read(ctx, s, want{operator, name, kindTimers, keys.Name(), "", ""}, opts, func(e segment.Entry, m Meta, _ []byte) (r Timer[K], err error) {
		r.Meta = m
		at, key, err := cutTimer(e.Key)
		if err != nil {
			return r, err
		}
		r.At = at
		r.Key, err = decode(keys, key)
		return r, err
	})
}

// Get returns the entry of one key of a value, reducing or aggregating state, and
// whether there is one.
func Get[K, V any](ctx context.Context, s *Snapshot, operator, name string, keys codec.Codec[K], values codec.Codec[V], key K, opts ...Option) (Entry[K, V], bool, error) {
	var none Entry[K, V]
	o := s.options(opts)
	info, err := s.state(want{operator, name, kindValue, keys.Name(), "", values.Name()})
	if err != nil {
		return none, false, err
	}
	enc, err := keys.Append(nil, key)
	if err != nil {
		return none, false, fmt.Errorf("look up a key of state %q of operator %q: %w", name, operator, err)
	}
	for e, err := range s.prefixed(ctx, s.group(enc), info.ID, enc, true) {
		if err != nil {
			return none, false, err
		}
		m, value, err := o.meta(e)
		if err == nil && m.Expired && !o.expired {
			break
		}
		r := Entry[K, V]{Key: key, Meta: m}
		if err == nil {
			r.Value, err = decodeVersion(values, m.Version, value)
		}
		if err != nil {
			return none, false, s.entryError(info, e, err)
		}
		return r, true, nil
	}
	return none, false, nil
}

// GetMap yields the entries of one key of a map state.
func GetMap[K, M, V any](ctx context.Context, s *Snapshot, operator, name string, keys codec.Codec[K], mapKeys codec.Codec[M], values codec.Codec[V], key K, opts ...Option) iter.Seq2[MapEntry[K, M, V], error] {
	if err := checkMapKeys(operator, name, mapKeys); err != nil {
		return failed[MapEntry[K, M, V]](err)
	}
	w := want{operator, name, kindMap, keys.Name(), mapKeys.Name(), values.Name()}
	return readKey(ctx, s, w, opts, keys, key, func(e segment.Entry, m Meta, value []byte) (MapEntry[K, M, V], error) {
		return mapEntry(keys, mapKeys, values, e, m, value)
	})
}

// GetList yields the elements of one key of a list state, in order.
func GetList[K, V any](ctx context.Context, s *Snapshot, operator, name string, keys codec.Codec[K], values codec.Codec[V], key K, opts ...Option) iter.Seq2[Element[K, V], error] {
	w := want{operator, name, kindList, keys.Name(), "", values.Name()}
	return readKey(ctx, s, w, opts, keys, key, func(e segment.Entry, m Meta, value []byte) (Element[K, V], error) {
		return element(keys, values, e, m, value)
	})
}

func mapEntry[K, M, V any](keys codec.Codec[K], mapKeys codec.Codec[M], values codec.Codec[V], e segment.Entry, m Meta, value []byte) (r MapEntry[K, M, V], err error) {
	r.Meta = m
	key, sub, ok := segment.CutEscaped(e.Key)
	if !ok {
		return r, errEscaped
	}
	if r.Key, err = decode(keys, key); err == nil {
		if r.MapKey, err = decodeOrdered(mapKeys, sub); err == nil {
			r.Value, err = decodeVersion(values, m.Version, value)
		}
	}
	return r, err
}

func element[K, V any](keys codec.Codec[K], values codec.Codec[V], e segment.Entry, m Meta, value []byte) (r Element[K, V], err error) {
	r.Meta = m
	key, index, err := cutElement(e.Key)
	if err != nil {
		return r, err
	}
	r.Index = index
	if r.Key, err = decode(keys, key); err == nil {
		r.Value, err = decodeVersion(values, m.Version, value)
	}
	return r, err
}

// want is what a caller takes a state for.
type want struct {
	operator, name, kind           string
	keyCodec, subCodec, valueCodec string
}

// state finds what is wanted and makes sure that it is that.
func (s *Snapshot) state(w want) (checkpoint.StateInfo, error) {
	info, err := s.State(w.operator, w.name)
	if err != nil {
		return info, err
	}
	wrong := func(what, stored, asked string) error {
		return &CodecError{Operator: w.operator, Name: w.name, What: what, Stored: stored, Asked: asked}
	}
	switch {
	case info.Kind != w.kind && !(isValue(info.Kind) && isValue(w.kind)):
		return info, wrong("kind", info.Kind, w.kind)
	case w.kind != kindBroadcast && info.KeyCodec != w.keyCodec:
		return info, wrong("key codec", info.KeyCodec, w.keyCodec)
	case w.subCodec != "" && info.SubCodec != w.subCodec:
		return info, wrong("map key codec", info.SubCodec, w.subCodec)
	case w.kind != kindTimers && info.ValueCodec != w.valueCodec:
		return info, wrong("value codec", info.ValueCodec, w.valueCodec)
	}
	return info, nil
}

// decoder makes a typed entry. Its arguments are valid until it returns.
type decoder[R any] func(e segment.Entry, m Meta, value []byte) (R, error)

// read yields what a decoder makes of all entries of a state.
func read[R any](ctx context.Context, s *Snapshot, w want, opts []Option, dec decoder[R]) iter.Seq2[R, error] {
	return func(yield func(R, error) bool) {
		o := s.options(opts)
		info, err := s.state(w)
		if err != nil {
			var none R
			yield(none, err)
			return
		}
		decodeAll(s, info, o, s.entries(ctx, o, []uint16{info.ID}), dec, yield)
	}
}

// readKey yields what a decoder makes of the entries of one key, of a state that has
// several for each.
func readKey[K, R any](ctx context.Context, s *Snapshot, w want, opts []Option, keys codec.Codec[K], key K, dec decoder[R]) iter.Seq2[R, error] {
	return func(yield func(R, error) bool) {
		var none R
		o := s.options(opts)
		info, err := s.state(w)
		if err != nil {
			yield(none, err)
			return
		}
		enc, err := keys.Append(nil, key)
		if err != nil {
			yield(none, fmt.Errorf("look up a key of state %q of operator %q: %w", w.name, w.operator, err))
			return
		}
		decodeAll(s, info, o, s.prefixed(ctx, s.group(enc), info.ID, segment.AppendEscaped(nil, enc), false), dec, yield)
	}
}

func decodeAll[R any](s *Snapshot, info checkpoint.StateInfo, o *options, entries iter.Seq2[segment.Entry, error], dec decoder[R], yield func(R, error) bool) {
	var none R
	for e, err := range entries {
		if err != nil {
			yield(none, err)
			return
		}
		m, value, err := o.meta(e)
		if err == nil && m.Expired && !o.expired {
			continue
		}
		var r R
		if err == nil {
			r, err = dec(e, m, value)
		}
		if err != nil {
			yield(none, s.entryError(info, e, err))
			return
		}
		if !yield(r, nil) {
			return
		}
	}
}

// group is where an encoded key lives.
func (s *Snapshot) group(key []byte) int { return keygroup.Of(key, s.manifest.KeyGroups) }

// prefixed yields the entries whose user key begins with prefix, or is equal to it if
// exact. An entry is valid until the next step.
func (s *Snapshot) prefixed(ctx context.Context, kg int, id uint16, prefix []byte, exact bool) iter.Seq2[segment.Entry, error] {
	return func(yield func(segment.Entry, error) bool) {
		c := newChain(ctx, stored(s.store, s.manifest.Segments))
		defer c.close()
		err := c.seek(segment.AppendKey(nil, uint16(kg), id, prefix))
		for err == nil {
			e, ok, nerr := c.next()
			if err = nerr; err != nil {
				break
			}
			if !ok || int(e.KeyGroup) != kg || e.State != id || len(e.Key) < len(prefix) || string(e.Key[:len(prefix)]) != string(prefix) {
				return
			}
			if exact && len(e.Key) != len(prefix) {
				return
			}
			if !yield(e, nil) || exact {
				return
			}
		}
		yield(segment.Entry{}, fmt.Errorf("read checkpoint %d: %w", s.manifest.Checkpoint, err))
	}
}

func decode[T any](c codec.Codec[T], b []byte) (T, error) {
	v, err := c.Decode(b)
	if err != nil {
		return v, err
	}
	return codec.Clone(c, v), nil
}

func decodeVersion[T any](c codec.Codec[T], version int, b []byte) (T, error) {
	v, err := codec.DecodeVersion(c, version, b)
	if err != nil {
		return v, err
	}
	return codec.Clone(c, v), nil
}

// checkMapKeys refuses a codec that would read or write other map keys than the app.
func checkMapKeys[M any](operator, name string, c codec.Codec[M]) error {
	if err := codec.CheckMapKeys(c); err != nil {
		return fmt.Errorf("operator %q: state %q: map key: %w", operator, name, err)
	}
	return nil
}

// failed yields an error and nothing else.
func failed[R any](err error) iter.Seq2[R, error] {
	return func(yield func(R, error) bool) {
		var none R
		yield(none, err)
	}
}

func decodeOrdered[T any](c codec.Codec[T], b []byte) (T, error) {
	if o, ok := c.(codec.Ordered[T]); ok {
		v, err := o.DecodeOrdered(b)
		if err != nil {
			return v, err
		}
		return codec.Clone(c, v), nil
	}
	return decode(c, b)
}

func appendOrdered[T any](c codec.Codec[T], dst []byte, v T) ([]byte, error) {
	if o, ok := c.(codec.Ordered[T]); ok {
		return o.AppendOrdered(dst, v)
	}
	return c.Append(dst, v)
}

var (
	errEscaped = errors.New("the key does not tell where it ends and what belongs to the entry begins")
	errTimer   = errors.New("the key is too short for that of a timer")
)

const signBit = 1 << 63

// cutElement takes apart the user key of an element of a list.
func cutElement(b []byte) (key []byte, index uint64, err error) {
	key, rest, ok := segment.CutEscaped(b)
	if !ok || len(rest) != 8 {
		return nil, 0, errEscaped
	}
	return key, binary.BigEndian.Uint64(rest), nil
}

func appendElement(dst, key []byte, index uint64) []byte {
	return binary.BigEndian.AppendUint64(segment.AppendEscaped(dst, key), index)
}

// cutTimer takes apart the user key of a timer.
func cutTimer(b []byte) (at int64, key []byte, err error) {
	if len(b) < 8 {
		return 0, nil, errTimer
	}
	return int64(binary.BigEndian.Uint64(b) ^ signBit), b[8:], nil
}

func appendTimer(dst []byte, at int64, key []byte) []byte {
	return append(binary.BigEndian.AppendUint64(dst, uint64(at)^signBit), key...)
}

// ownerOf returns the encoded key that an entry of a state belongs to, by which its
// key-group is found. A broadcast state has none.
func ownerOf(kind string, userKey []byte) ([]byte, error) {
	switch {
	case isValue(kind):
		return userKey, nil
	case kind == kindMap:
		key, _, ok := segment.CutEscaped(userKey)
		if !ok {
			return nil, errEscaped
		}
		return key, nil
	case kind == kindList:
		key, _, err := cutElement(userKey)
		return key, err
	case kind == kindTimers:
		_, key, err := cutTimer(userKey)
		return key, err
	}
	return nil, fmt.Errorf("a state of kind %q does not say which key an entry belongs to", kind)
}
