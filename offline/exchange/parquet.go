package exchange

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"strconv"
	"strings"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"

	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/state/segment"
)

// rowGroup is how many rows are in memory before they are written.
const rowGroup = 128 << 10

// Columns are optional, so that a part in hexadecimal can stand in the text column of
// its own and leave the typed one empty.
const hexSuffix = "_hex"

// leaf returns the type of the column of a codec.
func leaf(c offline.AnyCodec) parquet.Node {
	var n parquet.Node
	switch {
	case !c.Known || c.Name == "bytes":
		n = parquet.Leaf(parquet.ByteArrayType)
	case c.Name == "int32":
		n = parquet.Int(32)
	case c.Name == "int64":
		n = parquet.Int(64)
	case c.Name == "uint32":
		n = parquet.Uint(32)
	case c.Name == "uint64":
		n = parquet.Uint(64)
	case c.Name == "float32":
		n = parquet.Leaf(parquet.FloatType)
	case c.Name == "float64":
		n = parquet.Leaf(parquet.DoubleType)
	case c.Name == "bool":
		n = parquet.Leaf(parquet.BooleanType)
	case c.Name == "json", strings.HasPrefix(c.Name, "proto:"):
		n = parquet.JSON()
	default:
		n = parquet.String()
	}
	return parquet.Optional(n)
}

type parquetWriter struct {
	w    *parquet.GenericWriter[any]
	l    offline.Layout
	at   map[string]int // number of a column
	row  parquet.Row
	rows int
}

func schema(l offline.Layout) *parquet.Schema {
	g := parquet.Group{}
	for _, name := range columns(l) {
		switch name {
		case colKey:
			g[name], g[name+hexSuffix] = leaf(l.Key), parquet.Optional(parquet.String())
		case colMapKey:
			g[name], g[name+hexSuffix] = leaf(l.MapKey), parquet.Optional(parquet.String())
		case colValue:
			g[name], g[name+hexSuffix] = leaf(l.Data), parquet.Optional(parquet.String())
		case colClock:
			g[name] = parquet.Optional(parquet.String())
		case colHex:
		case colIndex:
			g[name] = parquet.Optional(parquet.Uint(64))
		default:
			g[name] = parquet.Optional(parquet.Int(64))
		}
	}
	return parquet.NewSchema("state", g)
}

func newParquetWriter(w io.Writer, l offline.Layout) *parquetWriter {
	s := schema(l)
	p := &parquetWriter{l: l, at: map[string]int{}}
	p.w = parquet.NewGenericWriter[any](w, s, parquet.Compression(&parquet.Snappy),
		parquet.KeyValueMetadata("weir.operator", l.State.Operator), parquet.KeyValueMetadata("weir.state", l.State.Name),
		parquet.KeyValueMetadata("weir.kind", l.State.Kind))
	for _, path := range s.Columns() {
		leaf, _ := s.Lookup(path...)
		p.at[path[0]] = leaf.ColumnIndex
	}
	p.row = make(parquet.Row, len(p.at))
	return p
}

func (w *parquetWriter) set(name string, v parquet.Value) {
	at := w.at[name]
	w.row[at] = v.Level(0, 1, at)
}

func (w *parquetWriter) Write(r offline.Row) error {
	for i := range w.row {
		w.row[i] = parquet.Value{}.Level(0, 0, i)
	}
	inHex := hexColumns(w.l, r)
	w.set(colKeyGroup, parquet.Int64Value(int64(r.KeyGroup)))
	for _, name := range columns(w.l) {
		d := parts(&r)[name]
		if d == nil {
			continue
		}
		if inHex[name] {
			w.set(name+hexSuffix, parquet.ByteArrayValue([]byte(hex.EncodeToString(d.Raw))))
			continue
		}
		w.set(name, typed(*d))
	}
	if r.HasIndex() {
		w.set(colIndex, parquet.Int64Value(int64(r.Index)))
	}
	if r.HasTime() {
		w.set(colTime, parquet.Int64Value(r.Time))
	}
	if r.HasValue() {
		w.set(colVersion, parquet.Int64Value(int64(r.Version)))
	}
	if r.Clock != segment.Forever {
		w.set(colClock, parquet.ByteArrayValue([]byte(clocks[r.Clock])))
		w.set(colExpires, parquet.Int64Value(r.Expires))
	}
	if _, err := w.w.WriteRows([]parquet.Row{w.row}); err != nil {
		return err
	}
	if w.rows++; w.rows%rowGroup == 0 {
		return w.w.Flush()
	}
	return nil
}

// typed is a part as its column has it.
func typed(d offline.Datum) parquet.Value {
	switch v := d.Value.(type) {
	case int32:
		return parquet.Int32Value(v)
	case int64:
		return parquet.Int64Value(v)
	case uint32:
		return parquet.Int32Value(int32(v))
	case uint64:
		return parquet.Int64Value(int64(v))
	case float32:
		return parquet.FloatValue(v)
	case float64:
		return parquet.DoubleValue(v)
	case bool:
		return parquet.BooleanValue(v)
	case json.RawMessage:
		return parquet.ByteArrayValue(v) // of a protobuf message; Raw is not JSON
	}
	return parquet.ByteArrayValue(d.Raw)
}

func (w *parquetWriter) Close() error { return w.w.Close() }

func readParquet(r io.ReaderAt, size int64, layouts Layouts) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		if err := eachParquet(r, size, layouts, func(rec Record) bool { return yield(rec, nil) }); err != nil {
			yield(Record{}, err)
		}
	}
}

// eachParquet visits the records until visit returns false. The reader panics on some
// files that are damaged; that is an error as any other.
func eachParquet(r io.ReaderAt, size int64, layouts Layouts, visit func(Record) bool) (err error) {
	n, visiting := 0, false
	defer func() {
		if p := recover(); p != nil {
			if visiting {
				panic(p) // not about the file
			}
			err = fmt.Errorf("row %d: the file is damaged: %v", n+1, p)
		}
	}()
	l, err := layouts("", "")
	if err != nil {
		return err
	}
	f, err := parquet.OpenFile(r, size)
	if err != nil {
		return fmt.Errorf("open Parquet file: %w", err)
	}
	var cols []string // by number
	var unsigned []bool
	for i, path := range f.Schema().Columns() {
		if len(path) != 1 {
			return fmt.Errorf("column %q is nested", strings.Join(path, "."))
		}
		leaf, _ := f.Schema().Lookup(path...)
		if leaf.ColumnIndex != i || leaf.MaxRepetitionLevel > 0 {
			return fmt.Errorf("column %q is repeated", path[0])
		}
		cols = append(cols, path[0])
		unsigned = append(unsigned, isUnsigned(leaf.Node.Type().LogicalType()))
	}
	var named []string
	for _, c := range cols {
		if base, ok := strings.CutSuffix(c, hexSuffix); ok && (base == colKey || base == colMapKey || base == colValue) {
			continue
		}
		named = append(named, c)
	}
	if err := checkColumns(l, named); err != nil {
		return err
	}
	raw := map[string]bool{} // columns that hold bytes of a codec that has no text
	for name, c := range map[string]offline.AnyCodec{colKey: l.Key, colMapKey: l.MapKey, colValue: l.Data} {
		raw[name] = !c.Known || c.Name == "bytes"
	}
	for _, name := range cols {
		leaf, _ := f.Schema().Lookup(name)
		if t := leaf.Node.Type(); !readable(name, t, raw[name]) {
			return fmt.Errorf("column %q has the type %v, which may mean another value than its bytes say: cast it to plain integers (times are milliseconds since 1970), floating point numbers, booleans, text or bytes, as the codec has them", name, t)
		}
	}
	in := parquet.NewReader(f)
	defer in.Close()
	buf := make([]parquet.Row, 64)
	c := cells{}
	for {
		got, rerr := in.ReadRows(buf)
		for _, row := range buf[:got] {
			clear(c)
			for _, v := range row {
				if v.IsNull() || v.Column() < 0 || v.Column() >= len(cols) {
					continue
				}
				name := cols[v.Column()]
				if base, ok := strings.CutSuffix(name, hexSuffix); ok {
					c[base] = string(v.ByteArray())
					c[colHex] += " " + base
					continue
				}
				c[name] = textOf(v, unsigned[v.Column()], raw[name])
			}
			rec, err := fill(l, c)
			if err != nil {
				return fmt.Errorf("row %d: %w", n+1, err)
			}
			n++
			visiting = true
			more := visit(rec)
			visiting = false
			if !more {
				return nil
			}
		}
		if errors.Is(rerr, io.EOF) {
			return nil
		}
		if rerr != nil {
			return fmt.Errorf("row %d: %w", n+1, rerr)
		}
	}
}

// readable tells whether the values of a column are what they look like: not the unscaled
// numbers of decimals, nor days or microseconds that would be taken for something else.
func readable(name string, t parquet.Type, raw bool) bool {
	logical := t.LogicalType()
	if logical == nil || logical.Value == nil {
		isBytes := t.Kind() == parquet.ByteArray || t.Kind() == parquet.FixedLenByteArray
		return t.Kind() != parquet.Int96 && (isBytes || !raw)
	}
	switch l := logical.Value.(type) {
	case *format.StringType, *format.JsonType, *format.EnumType, *format.NullType:
		return true
	case *format.IntType:
		return !raw
	case *format.BsonType, *format.UUIDType:
		return raw
	case *format.TimestampType:
		_, ms := l.Unit.Value.(*format.MilliSeconds)
		return ms && l.IsAdjustedToUTC && (name == colTime || name == colExpires)
	}
	return false
}

func isUnsigned(t *format.LogicalType) bool {
	if t == nil {
		return false
	}
	i, ok := t.Value.(*format.IntType)
	return ok && !i.IsSigned
}

// textOf is what the codec of a column parses.
func textOf(v parquet.Value, unsigned, raw bool) string {
	switch v.Kind() {
	case parquet.Boolean:
		return strconv.FormatBool(v.Boolean())
	case parquet.Int32:
		if unsigned {
			return strconv.FormatUint(uint64(v.Uint32()), 10)
		}
		return strconv.FormatInt(int64(v.Int32()), 10)
	case parquet.Int64:
		if unsigned {
			return strconv.FormatUint(v.Uint64(), 10)
		}
		return strconv.FormatInt(v.Int64(), 10)
	case parquet.Float:
		return strconv.FormatFloat(float64(v.Float()), 'g', -1, 32)
	case parquet.Double:
		return strconv.FormatFloat(v.Double(), 'g', -1, 64)
	}
	if raw {
		return hex.EncodeToString(v.ByteArray())
	}
	return string(v.ByteArray())
}
