package main

import (
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
)

// report collects what a command found.
type report struct {
	declared []figure
	notes    []string
	header   []string
	rows     [][]string
	values   map[string]float64
}

// notef adds a line of text above the table: settings that the figures depend on.
func (r *report) notef(format string, args ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, args...))
}

// columns sets the table's header.
func (r *report) columns(names ...string) { r.header = names }

// row adds a line to the table.
func (r *report) row(cells ...any) {
	var row []string
	for _, c := range cells {
		switch c := c.(type) {
		case float64:
			row = append(row, number(c))
		default:
			row = append(row, fmt.Sprint(c))
		}
	}
	r.rows = append(r.rows, row)
}

// figure sets the value of a declared figure.
func (r *report) figure(name string, v float64) {
	if r.values == nil {
		r.values = map[string]float64{}
	}
	r.values[name] = v
}

// print writes notes, table and figures. A figure that is declared and has no
// value, or the other way round, is an error: whoever collects them relies on the
// list.
func (r *report) print(to io.Writer) error {
	for _, n := range r.notes {
		fmt.Fprintln(to, n)
	}
	if len(r.rows) > 0 {
		w := tabwriter.NewWriter(to, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(w, strings.Join(r.header, "\t")+"\t")
		for _, row := range r.rows {
			fmt.Fprintln(w, strings.Join(row, "\t")+"\t")
		}
		w.Flush()
	}
	for _, f := range r.declared {
		v, ok := r.values[f.name]
		if !ok || math.IsNaN(v) || math.IsInf(v, 0) {
			return fmt.Errorf("figure %s was not measured", f.name)
		}
		fmt.Fprintf(to, "figure %s %s %s\n", f.name, number(v), f.unit)
		delete(r.values, f.name)
	}
	for name := range r.values {
		return fmt.Errorf("figure %s is not declared", name)
	}
	return nil
}

// number prints v with four significant digits, and integers whole.
func number(v float64) string {
	if v == math.Trunc(v) && math.Abs(v) < 1e15 {
		return fmt.Sprintf("%.0f", v)
	}
	digits := 3 - int(math.Floor(math.Log10(math.Abs(v))))
	return fmt.Sprintf("%.*f", min(max(digits, 0), 9), v)
}

// median returns the middle of vs, or the mean of the two in the middle.
func median(vs []float64) float64 {
	if len(vs) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(vs))
	n := len(s)
	return (s[(n-1)/2] + s[n/2]) / 2
}
