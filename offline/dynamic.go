package offline

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/dynamicpb"

	"github.com/weirstream/weir/codec"
)

// Datum is a key or a value of which only the codec's name is known.
type Datum struct {
	Raw []byte // as it was encoded
	// Value is what a built-in codec made of Raw: a string, []byte, bool, a number,
	// json.RawMessage for codec json and for a protobuf message whose descriptor is
	// known, nil for codec unit and for what could not be decoded.
	Value any
	// Note says why Raw was not decoded; empty if it was.
	Note string
}

// Text is d for people, and for [AnyCodec.Parse]: bytes are in hexadecimal.
func (d Datum) Text() string {
	switch v := d.Value.(type) {
	case string:
		return v
	case json.RawMessage:
		return string(v)
	case bool:
		return strconv.FormatBool(v)
	case int32:
		return strconv.FormatInt(int64(v), 10)
	case int64:
		return strconv.FormatInt(v, 10)
	case uint32:
		return strconv.FormatUint(uint64(v), 10)
	case uint64:
		return strconv.FormatUint(v, 10)
	case float32:
		return strconv.FormatFloat(float64(v), 'g', -1, 32)
	case float64:
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	return hex.EncodeToString(d.Raw)
}

// Hex tells that Text is hexadecimal: of bytes, or of what could not be decoded.
func (d Datum) Hex() bool {
	if _, ok := d.Value.([]byte); ok {
		return true
	}
	return d.Note != ""
}

// MarshalJSON returns JSON that says the same as Text.
func (d Datum) MarshalJSON() ([]byte, error) {
	switch v := d.Value.(type) {
	case json.RawMessage:
		return v, nil
	case float32:
		return jsonFloat(float64(v), d)
	case float64:
		return jsonFloat(v, d)
	case []byte:
		return json.Marshal(d.Text())
	case nil:
		if d.Note == "" {
			return []byte("null"), nil
		}
		return json.Marshal(d.Text())
	}
	return json.Marshal(d.Value)
}

// jsonFloat has a text for what JSON has no number for.
func jsonFloat(f float64, d Datum) ([]byte, error) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return json.Marshal(d.Text())
	}
	return []byte(d.Text()), nil
}

// AnyCodec encodes and decodes by the name of a codec. The built-in ones are known;
// the bytes of others stay bytes.
type AnyCodec struct {
	Name string
	// Known is false if Name is not that of a built-in codec, nor of a protobuf message
	// whose descriptor is known.
	Known bool

	note    string // if not Known
	decode  func(b []byte, ordered bool) (any, error)
	parse   func(dst []byte, text string, ordered bool) ([]byte, error)
	isBytes bool
}

// builtinVersion is that of all built-in codecs.
const builtinVersion = 1

// protoName is what the name of the codec of a protobuf message begins with.
const protoName = "proto:"

// CodecByName returns the codec of a name. messages may be nil.
func CodecByName(name string, messages *protoregistry.Files) AnyCodec {
	if c, ok := builtin[name]; ok {
		c.Name, c.Known = name, true
		return c
	}
	if message, ok := strings.CutPrefix(name, protoName); ok {
		return protoByName(name, message, messages)
	}
	return bytesOf(name, fmt.Sprintf("codec %q is not built in: bytes in hexadecimal", name))
}

// bytesOf is a codec that leaves bytes as they are.
func bytesOf(name, note string) AnyCodec {
	c := builtin["bytes"]
	c.Name, c.note = name, note
	return c
}

// builtin are the codecs that package codec has.
var builtin = map[string]AnyCodec{
	"string": {
		decode: func(b []byte, _ bool) (any, error) {
			if !utf8.Valid(b) {
				return nil, errors.New("it is not UTF-8")
			}
			return string(b), nil
		},
		parse: func(dst []byte, text string, _ bool) ([]byte, error) { return append(dst, text...), nil },
	},
	"bytes": {
		isBytes: true,
		decode:  func(b []byte, _ bool) (any, error) { return bytes.Clone(b), nil },
		parse: func(dst []byte, text string, _ bool) ([]byte, error) {
			b, err := hex.DecodeString(strings.TrimPrefix(text, "0x"))
			if err != nil {
				return dst, fmt.Errorf("%q is not hexadecimal: %w", text, err)
			}
			return append(dst, b...), nil
		},
	},
	"json": {
		decode: func(b []byte, _ bool) (any, error) {
			if !json.Valid(b) {
				return nil, errors.New("it is not JSON")
			}
			return json.RawMessage(bytes.Clone(b)), nil
		},
		parse: func(dst []byte, text string, _ bool) ([]byte, error) {
			if !json.Valid([]byte(text)) {
				return dst, fmt.Errorf("%q is not JSON", text)
			}
			return append(dst, text...), nil
		},
	},
	"unit": {
		decode: func(b []byte, _ bool) (any, error) {
			_, err := codec.Unit.Decode(b)
			return nil, err
		},
		parse: func(dst []byte, text string, _ bool) ([]byte, error) {
			if text != "" && text != "null" {
				return dst, fmt.Errorf("codec unit has no values, and %q is one", text)
			}
			return dst, nil
		},
	},
	"bool":    fixed(codec.Bool, strconv.ParseBool),
	"int32":   fixed(codec.Int32, func(s string) (int32, error) { n, err := strconv.ParseInt(s, 10, 32); return int32(n), err }),
	"int64":   fixed(codec.Int64, func(s string) (int64, error) { return strconv.ParseInt(s, 10, 64) }),
	"uint32":  fixed(codec.Uint32, func(s string) (uint32, error) { n, err := strconv.ParseUint(s, 10, 32); return uint32(n), err }),
	"uint64":  fixed(codec.Uint64, func(s string) (uint64, error) { return strconv.ParseUint(s, 10, 64) }),
	"float32": fixed(codec.Float32, func(s string) (float32, error) { f, err := strconv.ParseFloat(s, 32); return float32(f), err }),
	"float64": fixed(codec.Float64, func(s string) (float64, error) { return strconv.ParseFloat(s, 64) }),
}

func fixed[T any](c codec.Codec[T], parse func(string) (T, error)) AnyCodec {
	return AnyCodec{
		decode: func(b []byte, ordered bool) (any, error) {
			if ordered {
				return decodeOrdered(c, b)
			}
			return c.Decode(b)
		},
		parse: func(dst []byte, text string, ordered bool) ([]byte, error) {
			v, err := parse(text)
			if err != nil {
				return dst, fmt.Errorf("%q is no %s: %w", text, c.Name(), errors.Unwrap(err))
			}
			if ordered {
				return appendOrdered(c, dst, v)
			}
			return c.Append(dst, v)
		},
	}
}

func protoByName(name, message string, messages *protoregistry.Files) AnyCodec {
	if messages == nil {
		return bytesOf(name, fmt.Sprintf("codec %q: bytes in hexadecimal, because no descriptor set was given", name))
	}
	d, err := messages.FindDescriptorByName(protoreflect.FullName(message))
	md, ok := d.(protoreflect.MessageDescriptor)
	if err != nil || !ok {
		return bytesOf(name, fmt.Sprintf("codec %q: bytes in hexadecimal, because the descriptor set has no message %s", name, message))
	}
	types := dynamicpb.NewTypes(messages)
	return AnyCodec{
		Name: name, Known: true,
		decode: func(b []byte, _ bool) (any, error) {
			m := dynamicpb.NewMessage(md)
			if err := (proto.UnmarshalOptions{Resolver: types}).Unmarshal(b, m); err != nil {
				return nil, err
			}
			text, err := protojson.MarshalOptions{Resolver: types}.Marshal(m)
			if err != nil {
				return nil, err
			}
			// protojson varies its spacing on purpose.
			var tight bytes.Buffer
			if err := json.Compact(&tight, text); err != nil {
				return nil, err
			}
			return json.RawMessage(tight.Bytes()), nil
		},
		parse: func(dst []byte, text string, _ bool) ([]byte, error) {
			m := dynamicpb.NewMessage(md)
			if err := (protojson.UnmarshalOptions{Resolver: types}).Unmarshal([]byte(text), m); err != nil {
				return dst, fmt.Errorf("message %s: %w", message, err)
			}
			return proto.MarshalOptions{Deterministic: true}.MarshalAppend(dst, m)
		},
	}
}

// Decode decodes what version of the codec wrote; ordered says that b is the ordered
// form, as map keys have. What cannot be decoded stays bytes, and the note says why.
func (c AnyCodec) Decode(version int, b []byte, ordered bool) Datum {
	d := Datum{Raw: bytes.Clone(b), Note: c.note}
	if !c.Known {
		return d
	}
	if version != builtinVersion {
		d.Note = fmt.Sprintf("written by version %d of codec %q, which this tool does not know: bytes in hexadecimal", version, c.Name)
		return d
	}
	v, err := c.decode(b, ordered)
	if err != nil {
		d.Note = fmt.Sprintf("not what codec %q writes (%v): bytes in hexadecimal", c.Name, err)
		return d
	}
	d.Value = v
	return d
}

// Parse encodes a text as [Datum.Text] writes it. What it returns is not nil, also if it is
// empty: to [Snapshot.Find] nil is no map key at all.
func (c AnyCodec) Parse(text string, ordered bool) ([]byte, error) {
	b, err := c.parse([]byte{}, text, ordered)
	if err != nil {
		return nil, fmt.Errorf("codec %q: %w", c.Name, err)
	}
	return b, nil
}

// ParseJSON encodes JSON as [Datum.MarshalJSON] writes it.
func (c AnyCodec) ParseJSON(raw json.RawMessage, ordered bool) ([]byte, error) {
	text := string(raw)
	if !c.takesJSON() {
		if len(raw) > 0 && raw[0] == '"' {
			if i := loneSurrogate(raw); i >= 0 {
				return nil, fmt.Errorf("codec %q: %s is half of a character and has no bytes: write the whole of it, or the bytes in hexadecimal", c.Name, raw[i:i+6])
			}
			if err := json.Unmarshal(raw, &text); err != nil {
				return nil, fmt.Errorf("codec %q: %w", c.Name, err)
			}
		} else if c.Name == "string" || c.isBytes {
			return nil, fmt.Errorf("codec %q: %s is no JSON string", c.Name, raw)
		}
	}
	return c.Parse(text, ordered)
}

// loneSurrogate finds an escape in valid JSON that stands for no character, and that
// encoding/json takes for U+FFFD, whichever it is; -1 if there is none.
func loneSurrogate(raw []byte) int {
	escape := func(i int) rune {
		if i+6 > len(raw) || raw[i] != '\\' || raw[i+1] != 'u' {
			return -1
		}
		n, err := strconv.ParseUint(string(raw[i+2:i+6]), 16, 16)
		if err != nil {
			return -1
		}
		return rune(n)
	}
	for i := 0; i < len(raw); i++ {
		if raw[i] != '\\' {
			continue
		}
		r := escape(i)
		if !utf16.IsSurrogate(r) {
			i++ // what is escaped
			continue
		}
		if utf16.DecodeRune(r, escape(i+6)) == utf8.RuneError {
			return i
		}
		i += 11
	}
	return -1
}

// takesJSON tells that the text of a value is JSON.
func (c AnyCodec) takesJSON() bool {
	return c.Name == "json" || c.Known && strings.HasPrefix(c.Name, protoName)
}
