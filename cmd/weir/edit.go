package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/offline/exchange"
)

// changeRegistry applies the flags that name states: dropped first, operators renamed
// last, so that each flag speaks of the names that the snapshot has.
func changeRegistry(b *offline.Builder, drop, renameStates, renameOperators []string) error {
	for _, d := range drop {
		operator, name, err := splitState("--drop", d)
		if err == nil {
			err = b.Drop(operator, name)
		}
		if err != nil {
			return err
		}
	}
	states, err := renames("--rename-state", renameStates)
	if err != nil {
		return err
	}
	byOperator := map[string]map[string]string{}
	for from, to := range states {
		operator, name, err := splitState("--rename-state", from)
		if err != nil {
			return err
		}
		if byOperator[operator] == nil {
			byOperator[operator] = map[string]string{}
		}
		byOperator[operator][name] = to
	}
	for _, operator := range slices.Sorted(maps.Keys(byOperator)) {
		if err := b.RenameStates(operator, byOperator[operator]); err != nil {
			return err
		}
	}
	operators, err := renames("--rename-operator", renameOperators)
	if err != nil {
		return err
	}
	return b.RenameOperators(operators)
}

// renames takes apart what a flag was given.
func renames(flag string, given []string) (map[string]string, error) {
	names := map[string]string{}
	for _, g := range given {
		from, to, ok := strings.Cut(g, "=")
		if !ok {
			return nil, fmt.Errorf("%s %q: want OLD=NEW", flag, g)
		}
		if other, twice := names[from]; twice {
			return nil, fmt.Errorf("%s: %q cannot become both %q and %q", flag, from, other, to)
		}
		names[from] = to
	}
	return names, nil
}

// splitState takes operator/state apart. States have no slash in their names as a rule,
// operators may.
func splitState(flag, s string) (operator, name string, err error) {
	i := strings.LastIndexByte(s, '/')
	if i <= 0 || i == len(s)-1 {
		return "", "", fmt.Errorf("%s %q: want OPERATOR/STATE", flag, s)
	}
	return s[:i], s[i+1:], nil
}

func stateImportCommand() *cobra.Command {
	var f storeFlags
	var st stateFlags
	var from, name, to, format, kind, keyCodec, mapKeyCodec, valueCodec, descriptors string
	var keyGroups, valueVersion int
	cmd := &cobra.Command{
		Use:   "import FILE",
		Short: "Make a savepoint of state from a file: JSON lines, CSV or Parquet",
		Long: `Import writes a new savepoint: the snapshot --from with the entries of FILE put into
it, or without --from only these. An entry whose "deleted" is true is removed. An
app then starts from the savepoint.

States that --from has keep their codecs. If the file names none, --operator and
--state may be left out where --from has only one. For a new one give --operator, --state,
--kind, --key-codec and --value-codec, and without --from also --app and
--key-groups, which must be the app's.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			format, err := exchange.ParseFormat(format, args[0])
			if err != nil {
				return err
			}
			if err := checkpoint.CheckSavepointName(name); err != nil {
				return fmt.Errorf("--name: %w", err)
			}
			if err := f.check(); err != nil {
				return err
			}
			in, err := openFile(cmd.Context(), args[0], os.O_RDONLY)
			if err != nil {
				return fmt.Errorf("import: %w", err)
			}
			defer in.Close()
			stat, err := in.Stat()
			if err != nil {
				return fmt.Errorf("import: %w", err)
			}
			p := newProgress(cmd.ErrOrStderr(), "write")
			defer p.close()
			var store, target checkpoint.Store
			var snapshot *offline.Snapshot
			var b *offline.Builder
			if from != "" {
				if store, err = f.open(); err != nil {
					return err
				}
				if snapshot, err = f.snapshot(cmd, store, from); err != nil {
					return err
				}
				b = offline.Edit(snapshot, offline.BuildOptions{Progress: p.scan, Now: clock})
			} else {
				if f.app == "" || keyGroups == 0 {
					return errors.New("without --from, --app and --key-groups must be given: they are those that the app is configured with (128 key-groups by default)")
				}
				if store, err = checkpoint.OpenStore(f.url); err != nil {
					return err
				}
				if b, err = offline.New(f.app, keyGroups, offline.BuildOptions{Progress: p.scan, Now: clock}); err != nil {
					return err
				}
			}
			defer b.Close()
			if target, err = openTarget(to, store); err != nil {
				return err
			}
			var opts []offline.Option
			if descriptors != "" {
				sf := snapshotFlags{descriptors: descriptors}
				if opts, err = sf.options(); err != nil {
					return err
				}
			}
			given := checkpoint.StateInfo{Operator: st.operator, Name: st.name, Kind: kind, KeyCodec: keyCodec, SubCodec: mapKeyCodec, ValueCodec: valueCodec, ValueVersion: valueVersion}
			layouts := stateLayouts(b, snapshot, given, opts)
			n, err := exchange.Import(cmd.Context(), b, in, stat.Size(), format, layouts, nil)
			if ctx := cmd.Context(); ctx.Err() != nil {
				err = context.Cause(ctx) // in was closed for it
			}
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			info, err := b.Write(cmd.Context(), target, name)
			p.close()
			if err != nil {
				return err
			}
			if f.json() {
				return printJSON(cmd.OutOrStdout(), map[string]any{"savepoint": info.Name, "store": target.String(), "put": n.Put, "deleted": n.Deleted, "bytes": info.Bytes})
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "savepoint %s in %s: %d put, %d deleted, %s\n", info.Name, target, n.Put, n.Deleted, size(info.Bytes))
			return err
		},
	}
	f.add(cmd.Flags())
	st.add(cmd.Flags())
	fs := cmd.Flags()
	fs.StringVar(&from, "from", "", "checkpoint id, name of a savepoint, or latest, to begin with (default: nothing)")
	fs.StringVar(&name, "name", "", "name of the new savepoint")
	fs.StringVar(&to, "to", "", "URL of the store to put it into (default: the same store)")
	fs.StringVar(&format, "format", "", "jsonl, csv or parquet (default: by the file's name)")
	fs.IntVar(&keyGroups, "key-groups", 0, "without --from: the app's key-group count")
	fs.StringVar(&kind, "kind", "value", "of a new state: value, reducing, aggregating, map, list, timers or broadcast")
	fs.StringVar(&keyCodec, "key-codec", "", "of a new state: string, bytes, int32, int64, uint32, uint64, float32, float64, bool, json, unit, or the name of your own")
	fs.StringVar(&mapKeyCodec, "map-key-codec", "", "of a new map or broadcast state")
	fs.StringVar(&valueCodec, "value-codec", "", "of a new state")
	fs.IntVar(&valueVersion, "value-version", 1, "of a new state: version of the value codec")
	fs.StringVar(&descriptors, "descriptors", "", "descriptor set for protobuf messages")
	_ = cmd.MarkFlagRequired("name")
	return cmd
}

// stateLayouts finds states by the names in the file, or the flags where it has none.
func stateLayouts(b *offline.Builder, s *offline.Snapshot, given checkpoint.StateInfo, opts []offline.Option) exchange.Layouts {
	known := map[[2]string]offline.Layout{}
	return func(operator, name string) (offline.Layout, error) {
		if operator == "" && name == "" {
			operator, name = given.Operator, given.Name
		}
		at := [2]string{operator, name}
		if l, ok := known[at]; ok {
			return l, nil
		}
		l, err := declareState(b, s, operator, name, given, opts)
		if err == nil {
			known[at] = l
		}
		return l, err
	}
}

func declareState(b *offline.Builder, s *offline.Snapshot, operator, name string, given checkpoint.StateInfo, opts []offline.Option) (offline.Layout, error) {
	if (operator == "" || name == "") && s != nil && given.KeyCodec == "" {
		found, err := (&stateFlags{operator, name}).resolve(s)
		if err != nil {
			return offline.Layout{}, fmt.Errorf("the file does not say which state it is: %w", err)
		}
		operator, name = found.Operator, found.Name
	}
	if operator == "" || name == "" {
		return offline.Layout{}, errors.New("the file does not say which state it is: give --operator and --state")
	}
	info := given
	info.Operator, info.Name = operator, name
	if s != nil {
		was, err := s.State(operator, name)
		if err == nil {
			info = was
		} else if given.KeyCodec == "" {
			return offline.Layout{}, fmt.Errorf("%w; for a new state give --kind, --key-codec and --value-codec", err)
		}
	}
	if info.ID == 0 && (info.KeyCodec == "" && info.Kind != "broadcast" || info.ValueCodec == "" && info.Kind != "timers" || info.SubCodec == "" && (info.Kind == "map" || info.Kind == "broadcast")) {
		return offline.Layout{}, fmt.Errorf("state %q of operator %q is new: give its --kind, --key-codec, --value-codec and, for a map, --map-key-codec", name, operator)
	}
	l, err := b.Declare(info)
	if err != nil {
		return l, err
	}
	return offline.LayoutOf(l.State, opts...), nil
}
