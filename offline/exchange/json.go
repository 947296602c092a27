package exchange

import (
	"bufio"
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"unicode/utf8"

	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/state/segment"
)

// line is one line. A part is either JSON or, under another name, hexadecimal.
type line struct {
	Operator  string          `json:"operator,omitempty"`
	State     string          `json:"state,omitempty"`
	KeyGroup  *int            `json:"keyGroup,omitempty"`
	Key       json.RawMessage `json:"key,omitempty"`
	KeyHex    *string         `json:"keyHex,omitempty"`
	MapKey    json.RawMessage `json:"mapKey,omitempty"`
	MapKeyHex *string         `json:"mapKeyHex,omitempty"`
	Index     *uint64         `json:"index,omitempty"`
	Time      *int64          `json:"time,omitempty"`
	Value     json.RawMessage `json:"value,omitempty"`
	ValueHex  *string         `json:"valueHex,omitempty"`
	Version   int             `json:"version,omitempty"`
	Clock     string          `json:"clock,omitempty"`
	Expires   *int64          `json:"expires,omitempty"`
	Expired   bool            `json:"expired,omitempty"`
	Deleted   bool            `json:"deleted,omitempty"`
}

// Line returns the JSON object of a row, as JSON lines have it. The options are those that
// the row was read with.
func Line(r offline.Row, opts ...offline.Option) (json.RawMessage, error) {
	var out bytes.Buffer
	w := newJSONWriter(&out, opts)
	if err := errors.Join(w.Write(r), w.Close()); err != nil {
		return nil, err
	}
	return bytes.TrimSuffix(out.Bytes(), []byte("\n")), nil
}

type jsonWriter struct {
	w       *bufio.Writer
	enc     *json.Encoder
	opts    []offline.Option
	layouts map[uint16]offline.Layout
}

func newJSONWriter(w io.Writer, opts []offline.Option) *jsonWriter {
	b := bufio.NewWriter(w)
	enc := json.NewEncoder(b)
	enc.SetEscapeHTML(false)
	return &jsonWriter{w: b, enc: enc, opts: opts, layouts: map[uint16]offline.Layout{}}
}

func (w *jsonWriter) Write(r offline.Row) error {
	l, ok := w.layouts[r.State.ID]
	if !ok {
		l = offline.LayoutOf(r.State, w.opts...)
		w.layouts[r.State.ID] = l
	}
	o := line{Operator: r.State.Operator, State: r.State.Name, KeyGroup: &r.KeyGroup, Expired: r.Expired}
	part := func(has, ordered bool, c offline.AnyCodec, d offline.Datum) (json.RawMessage, *string, error) {
		if !has {
			return nil, nil, nil
		}
		if !faithful(c, d, ordered) {
			text := hex.EncodeToString(d.Raw)
			return nil, &text, nil
		}
		raw, err := d.MarshalJSON()
		return raw, nil, err
	}
	var errs [3]error
	o.Key, o.KeyHex, errs[0] = part(r.HasKey(), false, l.Key, r.Key)
	o.MapKey, o.MapKeyHex, errs[1] = part(r.HasMapKey(), true, l.MapKey, r.MapKey)
	o.Value, o.ValueHex, errs[2] = part(r.HasValue(), false, l.Data, r.Value)
	if r.HasIndex() {
		o.Index = &r.Index
	}
	if r.HasTime() {
		o.Time = &r.Time
	}
	if r.HasValue() {
		o.Version = r.Version
	}
	if r.Clock != segment.Forever {
		o.Clock, o.Expires = clocks[r.Clock], &r.Expires
	}
	if err := errors.Join(errs[:]...); err != nil {
		return err
	}
	return w.enc.Encode(o)
}

// faithful tells whether the JSON of a part gives its bytes back.
func faithful(c offline.AnyCodec, d offline.Datum, ordered bool) bool {
	if d.Hex() || forced(c, d, ordered) {
		return false
	}
	if _, ok := d.Value.(json.RawMessage); ok && !c.Known {
		return false // a message that was read with its descriptor, and is written without
	}
	if c.Name != "json" {
		return true
	}
	var tight bytes.Buffer
	return json.Compact(&tight, d.Raw) == nil && bytes.Equal(tight.Bytes(), d.Raw)
}

func (w *jsonWriter) Close() error { return w.w.Flush() }

// maxLine bounds the bytes of a line.
const maxLine = 256 << 20

func readJSON(r io.Reader, layouts Layouts) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		in := bufio.NewScanner(r)
		in.Buffer(make([]byte, 0, 64<<10), maxLine)
		n := 0
		for in.Scan() {
			n++
			if len(bytes.TrimSpace(in.Bytes())) == 0 {
				continue
			}
			rec, err := parseLine(in.Bytes(), layouts)
			if err != nil {
				yield(Record{}, fmt.Errorf("line %d: %w", n, err))
				return
			}
			if !yield(rec, nil) {
				return
			}
		}
		if err := in.Err(); err != nil {
			yield(Record{}, fmt.Errorf("line %d: %w", n+1, err))
		}
	}
}

func parseLine(b []byte, layouts Layouts) (Record, error) {
	var o line
	if !utf8.Valid(b) {
		return Record{}, errors.New(`it is not UTF-8: write what is no text in hexadecimal, as "keyHex", "mapKeyHex" or "valueHex"`)
	}
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&o); err != nil {
		return Record{}, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return Record{}, errors.New("there is more than one JSON object")
	}
	l, err := layouts(o.Operator, o.State)
	if err != nil {
		return Record{}, err
	}
	rec := Record{Layout: l, Row: offline.Row{State: l.State}, Deleted: o.Deleted}
	r := &rec.Row
	part := func(name string, has bool, c offline.AnyCodec, ordered bool, raw json.RawMessage, inHex *string) ([]byte, error) {
		switch {
		case !has && raw == nil && inHex == nil:
			return nil, nil
		case !has:
			return nil, fmt.Errorf("%q: entries of a %s state have none", name, l.State.Kind)
		case inHex != nil && raw != nil:
			return nil, fmt.Errorf("%q and %q are both set", name, name+"Hex")
		case inHex != nil:
			b, err := hex.DecodeString(*inHex)
			if err != nil {
				return nil, fmt.Errorf("%q: %q is not hexadecimal", name+"Hex", *inHex)
			}
			return b, nil
		case raw == nil && c.Name != "unit":
			return nil, fmt.Errorf("%q is missing", name)
		}
		b, err := c.ParseJSON(raw, ordered)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", name, err)
		}
		return b, nil
	}
	if r.Key.Raw, err = part("key", r.HasKey(), l.Key, false, o.Key, o.KeyHex); err != nil {
		return rec, err
	}
	if r.MapKey.Raw, err = part("mapKey", r.HasMapKey(), l.MapKey, true, o.MapKey, o.MapKeyHex); err != nil {
		return rec, err
	}
	switch {
	case r.HasIndex() && o.Index == nil:
		return rec, errors.New(`"index" is missing`)
	case r.HasIndex():
		r.Index = *o.Index
	case r.HasTime() && o.Time == nil:
		return rec, errors.New(`"time" is missing`)
	case r.HasTime():
		r.Time = *o.Time
	}
	if rec.Deleted {
		return rec, nil
	}
	if r.Value.Raw, err = part("value", r.HasValue(), l.Data, false, o.Value, o.ValueHex); err != nil {
		return rec, err
	}
	r.Version = o.Version
	switch {
	case o.Clock != "" && o.Expires != nil:
		r.Expires = *o.Expires
		r.Clock, err = clockByName(o.Clock)
	case o.Clock != "" || o.Expires != nil:
		err = errors.New(`"clock" and "expires" come together or not at all`)
	}
	return rec, err
}
