package main

import (
	"encoding/json"
	"io"
	"os"
	"strings"
	"unicode"
	"unicode/utf8"

	"golang.org/x/term"
)

// table prints rows in columns. On a terminal that is too narrow the widest cells are
// cut.
type table struct {
	rows [][]string
}

// minCell is the width to which cells are not cut below.
const minCell = 8

func (t *table) add(cells ...string) {
	for i, c := range cells {
		cells[i] = oneLine(c)
	}
	t.rows = append(t.rows, cells)
}

// oneLine replaces what would break a line or command the terminal.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || r == utf8.RuneError {
			return '\uFFFD'
		}
		return r
	}, s)
}

func (t *table) print(w io.Writer) error {
	_, err := io.WriteString(w, t.text(terminalWidth(w)))
	return err
}

// text cuts cells so that a row is at most limit columns wide, if that is possible; 0
// is no limit.
func (t *table) text(limit int) string {
	var widths []int
	for _, row := range t.rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], utf8.RuneCountInString(c))
		}
	}
	const gap = 2
	if limit > 0 {
		for {
			total, widest := -gap, 0
			for i, n := range widths {
				total += n + gap
				if n > widths[widest] {
					widest = i
				}
			}
			if total <= limit || widths[widest] <= minCell {
				break
			}
			widths[widest] = max(minCell, widths[widest]-(total-limit))
		}
	}
	var b strings.Builder
	for _, row := range t.rows {
		for i, c := range row {
			n := utf8.RuneCountInString(c)
			if n > widths[i] {
				c, n = string([]rune(c)[:widths[i]-1])+"…", widths[i]
			}
			b.WriteString(c)
			if i < len(row)-1 {
				b.WriteString(strings.Repeat(" ", widths[i]-n+gap))
			}
		}
		b.WriteByte('\n')
	}
	return b.String()
}

// terminalWidth is 0 if w is no terminal.
func terminalWidth(w io.Writer) int {
	f, ok := w.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0
	}
	return width
}

// printJSON prints one value for programs.
func printJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

// encodeLine prints one value on one line, for programs.
func encodeLine(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}
