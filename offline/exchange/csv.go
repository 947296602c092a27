package exchange

import (
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"strings"

	"github.com/weirstream/weir/offline"
)

type csvWriter struct {
	w    *csv.Writer
	l    offline.Layout
	cols []string
	row  []string
}

func newCSVWriter(w io.Writer, l offline.Layout) (*csvWriter, error) {
	c := &csvWriter{w: csv.NewWriter(w), l: l, cols: columns(l)}
	c.row = make([]string, len(c.cols))
	return c, c.w.Write(c.cols)
}

func (w *csvWriter) Write(r offline.Row) error {
	c := texts(w.l, r)
	for i, name := range w.cols {
		w.row[i] = c[name]
	}
	return w.w.Write(w.row)
}

func (w *csvWriter) Close() error {
	w.w.Flush()
	return w.w.Error()
}

// plain are the columns in which an empty cell says nothing.
var plain = []string{colKeyGroup, colIndex, colTime, colVersion, colClock, colExpires, colHex, colDeleted}

func readCSV(r io.Reader, layouts Layouts) iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		fail := func(err error) { yield(Record{}, err) }
		l, err := layouts("", "")
		if err != nil {
			fail(err)
			return
		}
		in := csv.NewReader(r)
		in.ReuseRecord = true
		header, err := in.Read()
		if errors.Is(err, io.EOF) {
			fail(errors.New("the file is empty: it needs a line with the names of the columns"))
			return
		}
		if err != nil {
			fail(err)
			return
		}
		cols := slices.Clone(header)
		if err := checkColumns(l, cols); err != nil {
			fail(fmt.Errorf("line 1: %w", err))
			return
		}
		c := cells{}
		for {
			row, err := in.Read()
			if errors.Is(err, io.EOF) {
				return
			}
			if err != nil {
				fail(err)
				return
			}
			clear(c)
			for i, name := range cols {
				if row[i] != "" || !slices.Contains(plain, name) {
					c[name] = row[i]
				}
			}
			rec, err := fill(l, c)
			if err != nil {
				n, _ := in.FieldPos(0)
				fail(fmt.Errorf("line %d: %w", n, err))
				return
			}
			if !yield(rec, nil) {
				return
			}
		}
	}
}

// checkColumns refuses columns that say nothing to the state.
func checkColumns(l offline.Layout, cols []string) error {
	known := append(columns(l), colDeleted)
	for i, name := range cols {
		if !slices.Contains(known, name) {
			return fmt.Errorf("column %q is not one of a %s state: %s", name, l.State.Kind, strings.Join(known, ", "))
		}
		if slices.Contains(cols[:i], name) {
			return fmt.Errorf("column %q is there twice", name)
		}
	}
	return nil
}
