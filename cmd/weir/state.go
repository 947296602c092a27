package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/offline/exchange"
	"github.com/weirstream/weir/state/segment"
)

func stateCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "state",
		Short: "Look into the state in a store, take it out and put it in",
		Long: `State reads what operators keep by key, from a checkpoint or savepoint, without
the app. Keys and values of built-in codecs are shown as they are; those of other
codecs as hexadecimal bytes, with a note.`,
	}, stateLsCommand(), stateGetCommand(), stateScanCommand(), stateExportCommand(), stateImportCommand(), stateDiffCommand())
}

var stateHeader = []string{"OPERATOR", "STATE", "KIND", "KEY", "VALUE"}

func stateCells(i checkpoint.StateInfo) []string {
	key := i.KeyCodec
	switch {
	case i.SubCodec != "" && key != "":
		key += ", " + i.SubCodec
	case i.SubCodec != "":
		key = i.SubCodec
	}
	value := "-"
	if i.ValueCodec != "" {
		value = fmt.Sprintf("%s v%d", i.ValueCodec, i.ValueVersion)
	}
	return []string{i.Operator, i.Name, i.Kind, key, value}
}

func stateLsCommand() *cobra.Command {
	var f snapshotFlags
	var quick, groups bool
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the states of a checkpoint with their sizes",
		Long: `Ls lists the states of all operators. It reads all of the state to count entries
and bytes, which are those of encoded keys and values before compression; with
--quick it only reads the registry.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.open(cmd)
			if err != nil {
				return err
			}
			var sizes []offline.Size
			if quick {
				for _, i := range s.States() {
					sizes = append(sizes, offline.Size{StateInfo: i})
				}
			} else {
				opts, err := f.options()
				if err != nil {
					return err
				}
				p := newProgress(cmd.ErrOrStderr(), "read")
				sizes, err = s.Measure(cmd.Context(), append(opts, offline.OnProgress(p.scan))...)
				p.close()
				if err != nil {
					return err
				}
			}
			if f.json() {
				return printJSON(cmd.OutOrStdout(), sizesJSON(sizes, quick))
			}
			var t table
			t.add(append(stateHeader[:len(stateHeader):len(stateHeader)], measured(quick, "ENTRIES", "BYTES", "EXPIRED", "LARGEST KEY-GROUP")...)...)
			for _, z := range sizes {
				largest := offline.GroupSize{KeyGroup: -1}
				for _, g := range z.KeyGroups {
					if g.Bytes > largest.Bytes {
						largest = g
					}
				}
				at := "-"
				if largest.KeyGroup >= 0 {
					at = fmt.Sprintf("%d: %s", largest.KeyGroup, size(largest.Bytes))
				}
				t.add(append(stateCells(z.StateInfo), measured(quick, strconv.FormatInt(z.Entries, 10), size(z.Bytes), strconv.FormatInt(z.Expired, 10), at)...)...)
			}
			if err := t.print(cmd.OutOrStdout()); err != nil || !groups {
				return err
			}
			var g table
			g.add("OPERATOR", "STATE", "KEY-GROUP", "ENTRIES", "BYTES")
			for _, z := range sizes {
				for _, k := range z.KeyGroups {
					g.add(z.Operator, z.Name, strconv.Itoa(k.KeyGroup), strconv.FormatInt(k.Entries, 10), size(k.Bytes))
				}
			}
			fmt.Fprintln(cmd.OutOrStdout())
			return g.print(cmd.OutOrStdout())
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().BoolVar(&quick, "quick", false, "read the registry only, no sizes")
	cmd.Flags().BoolVar(&groups, "key-groups", false, "list the key-groups of each state, too")
	return cmd
}

// measured are cells that are left out if nothing was measured.
func measured(quick bool, cells ...string) []string {
	if quick {
		return nil
	}
	return cells
}

func sizesJSON(sizes []offline.Size, quick bool) any {
	type groupJSON struct {
		KeyGroup int   `json:"keyGroup"`
		Entries  int64 `json:"entries"`
		Bytes    int64 `json:"bytes"`
	}
	type sizeJSON struct {
		checkpoint.StateInfo
		Entries   *int64      `json:"entries,omitempty"`
		Bytes     *int64      `json:"bytes,omitempty"`
		Expired   *int64      `json:"expired,omitempty"`
		KeyGroups []groupJSON `json:"keyGroups,omitempty"`
	}
	out := []sizeJSON{}
	for _, z := range sizes {
		j := sizeJSON{StateInfo: z.StateInfo}
		if !quick {
			j.Entries, j.Bytes, j.Expired = &z.Entries, &z.Bytes, &z.Expired
		}
		for _, g := range z.KeyGroups {
			j.KeyGroups = append(j.KeyGroups, groupJSON(g))
		}
		out = append(out, j)
	}
	return out
}

// provenance says where a row came from.
func provenance(s *offline.Snapshot, r offline.Row) string {
	parts := []string{s.String(), fmt.Sprintf("key-group %d", r.KeyGroup)}
	if r.HasValue() {
		parts = append(parts, fmt.Sprintf("codec %s v%d", r.State.ValueCodec, r.Version))
	}
	if e := expiry(r); e != "" {
		parts = append(parts, e)
	}
	return "(" + strings.Join(parts, ", ") + ")"
}

// expiry says when an entry expires, or that it has.
func expiry(r offline.Row) string {
	if r.Clock == segment.Forever {
		return ""
	}
	verb := "expires"
	if r.Expired {
		verb = "expired"
	}
	return fmt.Sprintf("%s %s in %v", verb, millis(r.Expires), r.Clock)
}

// millis is a time in milliseconds since 1970.
func millis(ms int64) string { return time.UnixMilli(ms).UTC().Format("2006-01-02T15:04:05.000Z") }

// subject is what comes between the key and the value of a row.
func subject(r offline.Row) string {
	switch {
	case r.HasMapKey():
		return r.MapKey.Text()
	case r.HasIndex():
		return strconv.FormatUint(r.Index, 10)
	case r.HasTime():
		return millis(r.Time)
	}
	return ""
}

// notes prints each note once.
type notes map[string]bool

func (n notes) print(w io.Writer, r offline.Row) {
	for _, note := range r.Notes() {
		if !n[note] {
			n[note] = true
			fmt.Fprintf(w, "%s/%s: %s\n", r.State.Operator, r.State.Name, note)
		}
	}
}

func stateGetCommand() *cobra.Command {
	var f snapshotFlags
	var st stateFlags
	var inHex bool
	cmd := &cobra.Command{
		Use:   "get KEY [MAP-KEY]",
		Short: "Show what a state holds for a key",
		Long: `Get prints the value of a key, or all that a map, a list or the timers hold for it.
KEY is written as the key codec's text: a number, a string, JSON, hexadecimal for
bytes and for codecs that are not built in. One that begins with a dash, such as a
negative number, stands behind "--". The exit status is 1 if there is nothing.

--operator and --state may be left out where there is only one.`,
		Args: cobra.RangeArgs(1, 2),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := f.open(cmd)
			if err != nil {
				return err
			}
			opts, err := f.options()
			if err != nil {
				return err
			}
			info, err := st.resolve(s)
			if err != nil {
				return err
			}
			key, mapKey, err := parseKeys(offline.LayoutOf(info, opts...), args, inHex)
			if err != nil {
				return err
			}
			said, found := notes{}, 0
			for r, err := range s.Find(cmd.Context(), info.Operator, info.Name, key, mapKey, opts...) {
				if err != nil {
					return err
				}
				found++
				if err := printEntry(cmd, &f, s, r, opts); err != nil {
					return err
				}
				said.print(cmd.ErrOrStderr(), r)
			}
			if found == 0 {
				what := args[0]
				if len(args) > 1 {
					what += fmt.Sprintf(" and map key %q", args[1])
				}
				return fmt.Errorf("state %q of operator %q holds nothing for key %s at %v", info.Name, info.Operator, what, s)
			}
			return nil
		},
	}
	f.add(cmd.Flags())
	st.add(cmd.Flags())
	cmd.Flags().BoolVar(&inHex, "hex", false, "KEY and MAP-KEY are encoded bytes in hexadecimal, whatever the codec")
	return cmd
}

func printEntry(cmd *cobra.Command, f *snapshotFlags, s *offline.Snapshot, r offline.Row, opts []offline.Option) error {
	if f.json() {
		line, err := exchange.Line(r, opts...)
		if err == nil {
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s\n", line)
		}
		return err
	}
	shown := []string{}
	if sub := subject(r); sub != "" && r.State.Kind != "broadcast" {
		shown = append(shown, oneLine(sub))
	}
	if r.HasValue() {
		shown = append(shown, oneLine(r.Value.Text()))
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%-10s %s\n", strings.Join(shown, "  "), provenance(s, r))
	return err
}

// parseKeys encodes what stands on the command line.
func parseKeys(l offline.Layout, args []string, inHex bool) (key, mapKey []byte, err error) {
	row := offline.Row{State: l.State}
	parse := func(c offline.AnyCodec, text string, ordered bool) ([]byte, error) {
		if inHex {
			c, ordered = offline.CodecByName("bytes", nil), false
		}
		b, err := c.Parse(text, ordered)
		if err != nil {
			return nil, fmt.Errorf("the key of state %q of operator %q: %w", l.State.Name, l.State.Operator, err)
		}
		return b, nil
	}
	if !row.HasKey() {
		if len(args) > 1 {
			return nil, nil, fmt.Errorf("state %q of operator %q is a %s state: it takes one key", l.State.Name, l.State.Operator, l.State.Kind)
		}
		key, err = parse(l.MapKey, args[0], true)
		return key, nil, err
	}
	if key, err = parse(l.Key, args[0], false); err != nil || len(args) == 1 {
		return key, nil, err
	}
	if !row.HasMapKey() {
		return nil, nil, fmt.Errorf("state %q of operator %q is a %s state: it has no map keys", l.State.Name, l.State.Operator, l.State.Kind)
	}
	mapKey, err = parse(l.MapKey, args[1], true)
	return key, mapKey, err
}

// defaultScanLimit is how many entries scan shows to people.
const defaultScanLimit = 100

func stateScanCommand() *cobra.Command {
	var f snapshotFlags
	var st stateFlags
	var limit, group int
	cmd := &cobra.Command{
		Use:   "scan",
		Short: "Show the entries of a state",
		Long: `Scan prints the entries of a state by key-group and stored key: the first 100, or
--limit of them, 0 for all. With -o json it prints a JSON object a line, in the
form that import reads.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			s, err := f.open(cmd)
			if err != nil {
				return err
			}
			opts, err := f.options()
			if err != nil {
				return err
			}
			info, err := st.resolve(s)
			if err != nil {
				return err
			}
			if limit < 0 {
				return fmt.Errorf("--limit %d: want 0 for all, or more", limit)
			}
			if group >= s.Info().KeyGroups || group < 0 && cmd.Flags().Changed("key-group") {
				return fmt.Errorf("key-group %d: the app has %d, from 0 on", group, s.Info().KeyGroups)
			}
			if group >= 0 {
				opts = append(opts, offline.KeyGroups(group, group+1))
			}
			return scan(cmd, &f, s, info, limit, opts)
		},
	}
	f.add(cmd.Flags())
	st.add(cmd.Flags())
	cmd.Flags().IntVar(&limit, "limit", defaultScanLimit, "show this many entries, 0 for all")
	cmd.Flags().IntVar(&group, "key-group", -1, "show this key-group only")
	return cmd
}

func scan(cmd *cobra.Command, f *snapshotFlags, s *offline.Snapshot, info checkpoint.StateInfo, limit int, opts []offline.Option) error {
	shape := offline.Row{State: info}
	header := []string{"KEY-GROUP"}
	add := func(has bool, name string) {
		if has {
			header = append(header, name)
		}
	}
	add(shape.HasKey(), "KEY")
	add(shape.HasMapKey(), "MAP KEY")
	add(shape.HasIndex(), "INDEX")
	add(shape.HasTime(), "TIME")
	add(shape.HasValue(), "VALUE")
	add(true, "EXPIRES")
	said, n, more := notes{}, 0, false
	// A table knows its widths when it has a page of rows.
	const page = 1000
	var t table
	if !f.json() {
		t.add(header...)
	}
	for r, err := range s.Rows(cmd.Context(), info.Operator, info.Name, opts...) {
		if err != nil {
			return errors.Join(t.print(cmd.OutOrStdout()), err)
		}
		if limit > 0 && n == limit {
			more = true
			break
		}
		n++
		said.print(cmd.ErrOrStderr(), r)
		if f.json() {
			if err := printEntry(cmd, f, s, r, opts); err != nil {
				return err
			}
			continue
		}
		cells := []string{strconv.Itoa(r.KeyGroup)}
		if r.HasKey() {
			cells = append(cells, r.Key.Text())
		}
		if sub := subject(r); sub != "" || r.HasMapKey() {
			cells = append(cells, sub)
		}
		if r.HasValue() {
			cells = append(cells, r.Value.Text())
		}
		expires := "-"
		if e := expiry(r); e != "" {
			expires = strings.TrimPrefix(e, "expires ")
		}
		t.add(append(cells, expires)...)
		if len(t.rows) > page {
			if err := t.print(cmd.OutOrStdout()); err != nil {
				return err
			}
			t.rows = t.rows[:0]
		}
	}
	if err := t.print(cmd.OutOrStdout()); err != nil {
		return err
	}
	if more {
		fmt.Fprintf(cmd.ErrOrStderr(), "there is more; --limit 0 shows all\n")
	}
	return nil
}

func stateExportCommand() *cobra.Command {
	var f snapshotFlags
	var st stateFlags
	var format string
	cmd := &cobra.Command{
		Use:   "export FILE",
		Short: "Write state to a file: JSON lines, CSV or Parquet",
		Long: `Export writes a state to FILE, or to standard output for "-". Its format is that
of the file's name (.jsonl, .csv, .parquet) or of --format. JSON lines hold all
states unless --operator or --state choose; CSV and Parquet hold one.

What import reads again is the same, byte for byte.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			format, err := exchange.ParseFormat(format, args[0])
			if err != nil {
				return err
			}
			s, err := f.open(cmd)
			if err != nil {
				return err
			}
			opts, err := f.options()
			if err != nil {
				return err
			}
			var states []checkpoint.StateInfo
			if format != exchange.JSONLines || st != (stateFlags{}) {
				info, err := st.resolve(s)
				if err != nil {
					return err
				}
				states = append(states, info)
			}
			p := newProgress(cmd.ErrOrStderr(), "export")
			defer p.close()
			opts = append(opts, offline.OnProgress(p.scan))
			if args[0] == "-" {
				_, err := exchange.Export(cmd.Context(), cmd.OutOrStdout(), format, s, states, opts...)
				return err
			}
			var n int64
			err = writeFile(cmd.Context(), args[0], func(w io.Writer) error {
				var err error
				n, err = exchange.Export(cmd.Context(), w, format, s, states, opts...)
				return err
			})
			p.close()
			if err != nil {
				return err
			}
			if f.json() {
				return printJSON(cmd.OutOrStdout(), map[string]any{"checkpoint": s.Info().Checkpoint, "entries": n, "file": args[0], "format": format})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "wrote %s of %v to %s\n", plural(n, "entry"), s, args[0])
			return err
		},
	}
	f.add(cmd.Flags())
	st.add(cmd.Flags())
	cmd.Flags().StringVar(&format, "format", "", "jsonl, csv or parquet (default: by the file's name)")
	return cmd
}

func stateDiffCommand() *cobra.Command {
	var f snapshotFlags
	var st stateFlags
	var against string
	var limit int
	cmd := &cobra.Command{
		Use:   "diff BEFORE AFTER",
		Short: "Show what changed between two checkpoints or savepoints",
		Long: `Diff compares two snapshots of one store, or with --against of two, entry by
entry: "+" was added, "-" removed, "~" changed. The exit status is 0 whether they
differ or not.`,
		Args: cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := f.storeFlags.open()
			if err != nil {
				return err
			}
			other := store
			if against != "" {
				if other, err = offline.OpenStore(against); err != nil {
					return err
				}
			}
			opts, err := f.options()
			if err != nil {
				return err
			}
			before, err := f.snapshot(cmd, store, args[0])
			if err != nil {
				return err
			}
			after, err := f.snapshot(cmd, other, args[1])
			if err != nil {
				return err
			}
			want := func(i checkpoint.StateInfo) bool {
				return (st.operator == "" || st.operator == i.Operator) && (st.name == "" || st.name == i.Name)
			}
			if !slices.ContainsFunc(append(before.States(), after.States()...), want) && st != (stateFlags{}) {
				_, err := after.State(st.operator, st.name)
				return err
			}
			return diff(cmd, &f, before, after, want, limit, opts)
		},
	}
	f.add(cmd.Flags())
	_ = cmd.Flags().MarkHidden("checkpoint")
	st.add(cmd.Flags())
	cmd.Flags().StringVar(&against, "against", "", "URL of the store that AFTER is in (default: the same)")
	cmd.Flags().IntVar(&limit, "limit", defaultScanLimit, "show this many changes, 0 for all")
	return cmd
}

func diff(cmd *cobra.Command, f *snapshotFlags, before, after *offline.Snapshot, want func(checkpoint.StateInfo) bool, limit int, opts []offline.Option) error {
	out := cmd.OutOrStdout()
	counts := map[offline.What]int64{}
	marks := map[offline.What]string{offline.Added: "+", offline.Removed: "-", offline.Changed: "~"}
	n := 0
	for c, err := range offline.Diff(cmd.Context(), before, after, want, opts...) {
		if err != nil {
			return err
		}
		counts[c.What]++
		if n++; limit > 0 && n > limit && !f.json() {
			continue // they are counted
		}
		if f.json() {
			if err := printChange(out, c, opts); err != nil {
				return err
			}
			continue
		}
		r := c.Row()
		name := r.State.Operator + "/" + r.State.Name
		if r.HasKey() {
			name += "  " + r.Key.Text()
		}
		if sub := subject(r); sub != "" {
			name += "  " + sub
		}
		value := ""
		switch {
		case !r.HasValue():
		case c.What == offline.Changed:
			value = fmt.Sprintf("  %s -> %s", c.Before.Value.Text(), c.After.Value.Text())
			if c.Before.Value.Text() == c.After.Value.Text() {
				value += fmt.Sprintf("  (%s -> %s)", orNever(c.Before), orNever(c.After))
			}
		default:
			value = "  " + r.Value.Text()
		}
		if _, err := fmt.Fprintf(out, "%s %s%s\n", marks[c.What], oneLine(name), oneLine(value)); err != nil {
			return err
		}
	}
	if f.json() {
		return nil
	}
	if _, err := fmt.Fprintf(out, "%d added, %d removed, %d changed from %v to %v\n", counts[offline.Added], counts[offline.Removed], counts[offline.Changed], before, after); err != nil {
		return err
	}
	if limit > 0 && n > limit {
		fmt.Fprintf(cmd.ErrOrStderr(), "the first %d are shown; --limit 0 shows all\n", limit)
	}
	return nil
}

func orNever(r offline.Row) string {
	if e := expiry(r); e != "" {
		return e
	}
	return fmt.Sprintf("v%d, never expires", r.Version)
}

func printChange(w io.Writer, c offline.Change, opts []offline.Option) error {
	var err error
	o := struct {
		Change string `json:"change"`
		Before any    `json:"before,omitempty"`
		After  any    `json:"after,omitempty"`
	}{Change: string(c.What)}
	if c.What != offline.Added {
		if o.Before, err = exchange.Line(c.Before, opts...); err != nil {
			return err
		}
	}
	if c.What != offline.Removed {
		if o.After, err = exchange.Line(c.After, opts...); err != nil {
			return err
		}
	}
	return encodeLine(w, o)
}
