package offline

import (
	"context"
	"fmt"
	"iter"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/state/segment"
)

// Row is an entry of any state.
type Row struct {
	State checkpoint.StateInfo
	Meta
	Key    Datum  // nothing in a broadcast state
	MapKey Datum  // in map and broadcast states
	Index  uint64 // in list states
	Time   int64  // when a timer fires, milliseconds since 1970
	Value  Datum  // nothing in timers
}

// HasKey tells whether entries of the row's kind of state have a key.
func (r Row) HasKey() bool { return r.State.Kind != kindBroadcast }

// HasMapKey tells whether entries of the row's kind of state have a map key.
func (r Row) HasMapKey() bool { return r.State.Kind == kindMap || r.State.Kind == kindBroadcast }

// HasIndex tells whether entries of the row's kind of state have an index.
func (r Row) HasIndex() bool { return r.State.Kind == kindList }

// HasTime tells whether entries of the row's kind of state are timers.
func (r Row) HasTime() bool { return r.State.Kind == kindTimers }

// HasValue tells whether entries of the row's kind of state have a value.
func (r Row) HasValue() bool { return r.State.Kind != kindTimers }

// Notes says why parts of the row were not decoded.
func (r Row) Notes() []string {
	var notes []string
	for _, d := range []Datum{r.Key, r.MapKey, r.Value} {
		if d.Note != "" {
			notes = append(notes, d.Note)
		}
	}
	return notes
}

// Layout encodes and decodes rows of one state.
type Layout struct {
	State             checkpoint.StateInfo
	Key, MapKey, Data AnyCodec
}

// LayoutOf returns the layout of a state.
func LayoutOf(info checkpoint.StateInfo, opts ...Option) Layout {
	var o options
	for _, opt := range opts {
		opt(&o)
	}
	return layoutOf(info, &o)
}

func layoutOf(info checkpoint.StateInfo, o *options) Layout {
	return Layout{
		State: info,
		Key:   CodecByName(info.KeyCodec, o.messages), MapKey: CodecByName(info.SubCodec, o.messages), Data: CodecByName(info.ValueCodec, o.messages),
	}
}

// row decodes an entry. Only one that is not laid out as its kind says is an error.
func (l Layout) row(e segment.Entry, o *options) (Row, error) {
	r := Row{State: l.State}
	var value []byte
	var err error
	if r.Meta, value, err = o.meta(e); err != nil {
		return r, err
	}
	switch kind := l.State.Kind; {
	case isValue(kind):
		r.Key = l.Key.Decode(builtinVersion, e.Key, false)
	case kind == kindMap:
		key, sub, ok := segment.CutEscaped(e.Key)
		if !ok {
			return r, errEscaped
		}
		r.Key, r.MapKey = l.Key.Decode(builtinVersion, key, false), l.MapKey.Decode(builtinVersion, sub, true)
	case kind == kindBroadcast:
		r.MapKey = l.MapKey.Decode(builtinVersion, e.Key, true)
	case kind == kindList:
		key, index, err := cutElement(e.Key)
		if err != nil {
			return r, err
		}
		r.Key, r.Index = l.Key.Decode(builtinVersion, key, false), index
	case kind == kindTimers:
		at, key, err := cutTimer(e.Key)
		if err != nil {
			return r, err
		}
		r.Key, r.Time = l.Key.Decode(builtinVersion, key, false), at
		return r, nil
	default:
		r.Key = bytesOf(l.State.KeyCodec, fmt.Sprintf("states of kind %q are shown as bytes in hexadecimal", kind)).Decode(builtinVersion, e.Key, false)
	}
	r.Value = l.Data.Decode(r.Version, value, false)
	return r, nil
}

// userKey encodes the key of a row and tells its key-group among n.
func (l Layout) userKey(r Row, n int) (kg int, key []byte, err error) {
	switch kind := l.State.Kind; {
	case isValue(kind):
		key = r.Key.Raw
	case kind == kindMap:
		key = append(segment.AppendEscaped(nil, r.Key.Raw), r.MapKey.Raw...)
	case kind == kindBroadcast:
		return 0, r.MapKey.Raw, nil
	case kind == kindList:
		key = appendElement(nil, r.Key.Raw, r.Index)
	case kind == kindTimers:
		key = appendTimer(nil, r.Time, r.Key.Raw)
	default:
		return 0, nil, fmt.Errorf("entries of a state of kind %q cannot be written", kind)
	}
	return keygroup.Of(r.Key.Raw, n), key, nil
}

// Rows yields the entries of any state by key-group and stored key, decoded by the
// built-in codecs as far as they can.
func (s *Snapshot) Rows(ctx context.Context, operator, name string, opts ...Option) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		o := s.options(opts)
		info, err := s.State(operator, name)
		if err != nil {
			yield(Row{}, err)
			return
		}
		decodeAll(s, info, o, s.entries(ctx, o, []uint16{info.ID}), s.rowDecoder(info, o), yield)
	}
}

func (s *Snapshot) rowDecoder(info checkpoint.StateInfo, o *options) decoder[Row] {
	l := layoutOf(info, o)
	return func(e segment.Entry, _ Meta, _ []byte) (Row, error) { return l.row(e, o) }
}

// Find yields the entries of one key of any state. key is encoded as [Layout] does it;
// in a broadcast state, it is the map key. mapKey, if not nil, restricts a map to one
// entry. In timers, it goes through all of the key-group.
func (s *Snapshot) Find(ctx context.Context, operator, name string, key, mapKey []byte, opts ...Option) iter.Seq2[Row, error] {
	return func(yield func(Row, error) bool) {
		o := s.options(opts)
		info, err := s.State(operator, name)
		if err != nil {
			yield(Row{}, err)
			return
		}
		kg, prefix, exact := s.group(key), key, false
		switch kind := info.Kind; {
		case isValue(kind):
			exact = true
		case kind == kindBroadcast:
			kg, exact = 0, true
		case kind == kindMap, kind == kindList:
			prefix = segment.AppendEscaped(nil, key)
			if mapKey != nil && kind == kindMap {
				prefix, exact = append(prefix, mapKey...), true
			}
		case kind == kindTimers:
			prefix = nil
		default:
			yield(Row{}, fmt.Errorf("look up a key of state %q of operator %q: states of kind %q can be scanned only", name, operator, kind))
			return
		}
		dec := s.rowDecoder(info, o)
		decodeAll(s, info, o, s.prefixed(ctx, kg, info.ID, prefix, exact), dec, func(r Row, err error) bool {
			if err == nil && info.Kind == kindTimers && string(r.Key.Raw) != string(key) {
				return true
			}
			return yield(r, err)
		})
	}
}
