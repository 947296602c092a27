package exchange

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"io"
	"iter"
	"path/filepath"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/state/segment"
)

// Format is a file format.
type Format string

// The formats.
const (
	JSONLines Format = "jsonl"   // one object a line; may hold several states
	CSV       Format = "csv"     // with a header; one state
	Parquet   Format = "parquet" // typed columns, Snappy; one state
)

// ParseFormat returns the format of a name, or that of a file if name is empty. The file
// "-" has JSON lines.
func ParseFormat(name, file string) (Format, error) {
	if name == "" && file == "-" {
		return JSONLines, nil
	}
	if name == "" {
		name = strings.TrimPrefix(strings.ToLower(filepath.Ext(file)), ".")
	}
	switch name {
	case "jsonl", "json", "ndjson":
		return JSONLines, nil
	case "csv":
		return CSV, nil
	case "parquet":
		return Parquet, nil
	}
	return "", fmt.Errorf("format %q of %q is not one of jsonl, csv, parquet", name, file)
}

// Writer writes rows. It is not safe for concurrent use.
type Writer interface {
	Write(offline.Row) error
	// Close completes the file. It does not close the io.Writer.
	Close() error
}

// NewWriter writes to w. l is the state that is written; JSON lines take rows of any, and
// the options that they were read with.
func NewWriter(w io.Writer, f Format, l offline.Layout, opts ...offline.Option) (Writer, error) {
	switch f {
	case JSONLines:
		return newJSONWriter(w, opts), nil
	case CSV:
		return newCSVWriter(w, l)
	case Parquet:
		return newParquetWriter(w, l), nil
	}
	return nil, fmt.Errorf("unknown format %q", f)
}

// Record is a row of a file. Only Raw of the row's parts is set, and its Meta.
type Record struct {
	Layout  offline.Layout
	Row     offline.Row
	Deleted bool // the entry is to be removed
}

// Layouts returns the layout of a state, or that of the file's only state if both names
// are empty: CSV and Parquet have none, and in JSON lines they may be left out.
type Layouts func(operator, state string) (offline.Layout, error)

// ReaderAt is what [Read] reads from. JSON lines and CSV are read from begin to end.
type ReaderAt interface {
	io.Reader
	io.ReaderAt
}

// Read yields the records of a file of size bytes, which only Parquet needs to know.
// An error says at which line or row it is, and comes last.
func Read(r ReaderAt, size int64, f Format, layouts Layouts) iter.Seq2[Record, error] {
	switch f {
	case JSONLines:
		return readJSON(r, layouts)
	case CSV:
		return readCSV(r, layouts)
	case Parquet:
		return readParquet(r, size, layouts)
	}
	return func(yield func(Record, error) bool) { yield(Record{}, fmt.Errorf("unknown format %q", f)) }
}

// Names of columns, and of the members of JSON lines where they are one word.
const (
	colKeyGroup = "key_group" // information only: it is computed when read
	colKey      = "key"
	colMapKey   = "map_key"
	colIndex    = "index"
	colTime     = "time" // milliseconds since 1970
	colValue    = "value"
	colVersion  = "version" // of the codec that wrote the value
	colClock    = "clock"   // "processing" or "event", empty if the entry never expires
	colExpires  = "expires" // milliseconds since 1970
	colHex      = "hex"     // which of key, map_key and value are in hexadecimal, though their codec has a text
	colDeleted  = "deleted" // read only
)

// columns returns the names of a table's columns for a state.
func columns(l offline.Layout) []string {
	r := offline.Row{State: l.State}
	cols := []string{colKeyGroup}
	add := func(has bool, name string) {
		if has {
			cols = append(cols, name)
		}
	}
	add(r.HasKey(), colKey)
	add(r.HasMapKey(), colMapKey)
	add(r.HasIndex(), colIndex)
	add(r.HasTime(), colTime)
	add(r.HasValue(), colValue)
	add(r.HasValue(), colVersion)
	add(r.HasValue(), colClock)
	add(r.HasValue(), colExpires)
	return append(cols, colHex)
}

// cells are the texts of a row by column. What is not there is null.
type cells map[string]string

// parts are the columns that codecs encode.
func parts(r *offline.Row) map[string]*offline.Datum {
	return map[string]*offline.Datum{colKey: &r.Key, colMapKey: &r.MapKey, colValue: &r.Value}
}

// clocks are the names of the clocks that make entries expire.
var clocks = map[segment.Domain]string{segment.ProcessingTime: "processing", segment.EventTime: "event"}

func clockByName(name string) (segment.Domain, error) {
	for d, n := range clocks {
		if n == name {
			return d, nil
		}
	}
	return 0, fmt.Errorf("clock %q is neither processing nor event", name)
}

// forced tells whether a part has to be written in hexadecimal although its codec has
// a text: what is there could not be decoded, or the text would not give it back.
func forced(c offline.AnyCodec, d offline.Datum, ordered bool) bool {
	if !c.Known || c.Name == "bytes" {
		return false // hexadecimal is its text
	}
	if d.Note != "" {
		return true
	}
	text := d.Text()
	if d.Value == nil {
		text = ""
	}
	if !utf8.ValidString(text) {
		return true // JSON of any bytes
	}
	b, err := c.Parse(text, ordered)
	return err != nil || !bytes.Equal(b, d.Raw)
}

// hexColumns returns the columns of a row that have to be in hexadecimal.
func hexColumns(l offline.Layout, r offline.Row) map[string]bool {
	m := map[string]bool{}
	if r.HasKey() && forced(l.Key, r.Key, false) {
		m[colKey] = true
	}
	if r.HasMapKey() && forced(l.MapKey, r.MapKey, true) {
		m[colMapKey] = true
	}
	if r.HasValue() && forced(l.Data, r.Value, false) {
		m[colValue] = true
	}
	return m
}

// fill makes a record of cells.
func fill(l offline.Layout, c cells) (Record, error) {
	rec := Record{Layout: l, Row: offline.Row{State: l.State}}
	r := &rec.Row
	inHex := map[string]bool{}
	for _, name := range strings.Fields(c[colHex]) {
		inHex[name] = true
	}
	if d, ok := c[colDeleted]; ok && d != "" {
		var err error
		if rec.Deleted, err = strconv.ParseBool(d); err != nil {
			return rec, fmt.Errorf("column %s: %q is neither true nor false", colDeleted, d)
		}
	}
	parse := func(name string, has bool, codec offline.AnyCodec, ordered bool) error {
		if !has {
			return nil
		}
		text, ok := c[name]
		if !ok && codec.Name != "unit" {
			return fmt.Errorf("column %s is missing", name)
		}
		var err error
		var raw []byte
		if inHex[name] {
			if raw, err = hex.DecodeString(text); err != nil {
				return fmt.Errorf("column %s: %q is not hexadecimal", name, text)
			}
		} else if raw, err = codec.Parse(text, ordered); err != nil {
			return fmt.Errorf("column %s: %w", name, err)
		}
		parts(r)[name].Raw = raw
		return nil
	}
	number := func(name string, has bool) (int64, error) {
		text, ok := c[name]
		if !has || !ok {
			if has {
				return 0, fmt.Errorf("column %s is missing", name)
			}
			return 0, nil
		}
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("column %s: %q is no whole number of 64 bits", name, text)
		}
		return n, nil
	}
	if err := parse(colKey, r.HasKey(), l.Key, false); err != nil {
		return rec, err
	}
	if err := parse(colMapKey, r.HasMapKey(), l.MapKey, true); err != nil {
		return rec, err
	}
	var err error
	if r.HasIndex() {
		if r.Index, err = strconv.ParseUint(c[colIndex], 10, 64); err != nil {
			return rec, fmt.Errorf("column %s: %q is no index", colIndex, c[colIndex])
		}
	}
	if r.Time, err = number(colTime, r.HasTime()); err != nil || rec.Deleted {
		return rec, err
	}
	if err := parse(colValue, r.HasValue(), l.Data, false); err != nil {
		return rec, err
	}
	if version, err := number(colVersion, c[colVersion] != ""); err != nil || version < 0 || version > 1<<30 {
		return rec, fmt.Errorf("column %s: %q is no version", colVersion, c[colVersion])
	} else {
		r.Version = int(version)
	}
	if clock := c[colClock]; clock != "" {
		if r.Clock, err = clockByName(clock); err != nil {
			return rec, fmt.Errorf("column %s: %w", colClock, err)
		}
		if r.Expires, err = number(colExpires, true); err != nil {
			return rec, err
		}
	} else if c[colExpires] != "" {
		return rec, fmt.Errorf("column %s is set, column %s is not: say which clock it is", colExpires, colClock)
	}
	return rec, nil
}

// texts makes cells of a row: the other way round.
func texts(l offline.Layout, r offline.Row) cells {
	c := cells{colKeyGroup: strconv.Itoa(r.KeyGroup)}
	inHex := hexColumns(l, r)
	var names []string
	for _, name := range columns(l) {
		d := parts(&r)[name]
		switch {
		case d == nil:
		case inHex[name] || strings.Contains(d.Text(), "\r"):
			// Readers of CSV take \r\n for \n.
			c[name] = hex.EncodeToString(d.Raw)
			names = append(names, name)
		case d.Value == nil && d.Note == "":
			c[name] = ""
		default:
			c[name] = d.Text()
		}
	}
	if r.HasIndex() {
		c[colIndex] = strconv.FormatUint(r.Index, 10)
	}
	if r.HasTime() {
		c[colTime] = strconv.FormatInt(r.Time, 10)
	}
	if r.HasValue() {
		c[colVersion] = strconv.Itoa(r.Version)
	}
	if r.Clock != segment.Forever {
		c[colClock], c[colExpires] = clocks[r.Clock], strconv.FormatInt(r.Expires, 10)
	}
	if len(names) > 0 {
		c[colHex] = strings.Join(names, " ")
	}
	return c
}
