package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirstream/weir/admin"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offline"
)

func savepointCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "savepoint",
		Short: "Create, list, copy, change and remove savepoints",
		Long: `A savepoint is a checkpoint that a person asked for: named, complete in itself, and
never deleted by weir. An app starts from one, and so can another app.`,
	}, savepointCreateCommand(), savepointLsCommand(), savepointCopyCommand(), savepointEditCommand(), savepointRmCommand())
}

// savepointJSON is a savepoint for programs.
type savepointJSON struct {
	Name       string     `json:"name"`
	Store      string     `json:"store"`
	Complete   bool       `json:"complete"`
	Checkpoint int64      `json:"checkpoint,omitempty"`
	App        string     `json:"app,omitempty"`
	KeyGroups  int        `json:"keyGroups,omitempty"`
	Objects    int        `json:"objects"`
	Bytes      int64      `json:"bytes"`
	Created    *time.Time `json:"created,omitempty"`
	Error      string     `json:"error,omitempty"`
}

func reportSavepoint(cmd *cobra.Command, f *storeFlags, to checkpoint.Store, info checkpoint.SavepointInfo, from string) error {
	if f.json() {
		return printJSON(cmd.OutOrStdout(), savepointJSON{Name: info.Name, Store: to.String(), Complete: info.Complete, Objects: info.Objects, Bytes: info.Bytes, Created: &info.Created})
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "savepoint %s in %s: %s of %s, %s\n", info.Name, to, size(info.Bytes), from, plural(int64(info.Objects), "object"))
	return err
}

// source makes a savepoint from what is in a store. A running app is asked by createByApp.
type source interface {
	// create returns what was created and says of what.
	create(ctx context.Context, to checkpoint.Store, name string, progress func(checkpoint.Progress)) (checkpoint.SavepointInfo, string, error)
}

// storeSource takes a checkpoint that is in a store.
type storeSource struct {
	// open finds the checkpoint. It is called again if that vanished while it was copied.
	open  func() (*offline.Snapshot, error)
	fixed bool // a certain checkpoint was asked for
}

// savepointTries is how often a checkpoint that a running app deletes is followed by
// the next one.
const savepointTries = 5

func (s storeSource) create(ctx context.Context, to checkpoint.Store, name string, progress func(checkpoint.Progress)) (checkpoint.SavepointInfo, string, error) {
	for try := 1; ; try++ {
		snapshot, err := s.open()
		if err != nil {
			return checkpoint.SavepointInfo{}, "", err
		}
		info, err := snapshot.Save(ctx, to, name, progress)
		var missing *checkpoint.MissingError
		if errors.As(err, &missing) && !s.fixed && try < savepointTries {
			continue // the app has gone on and collected it
		}
		return info, snapshot.String(), err
	}
}

// openTarget opens the store that a savepoint goes to, and makes it if it is missing.
func openTarget(to string, from checkpoint.Store) (checkpoint.Store, error) {
	if to == "" {
		return from, nil
	}
	return checkpoint.OpenStore(to)
}

func savepointCreateCommand() *cobra.Command {
	var f storeFlags
	var which, name, to, at string
	var stop bool
	cmd := &cobra.Command{
		Use:   "create [APP]",
		Short: "Make a savepoint of a running app, or of the newest checkpoint",
		Long: `Create makes a savepoint of the newest checkpoint in the store, or of --checkpoint.
The app may run meanwhile. Without --brokers the newest checkpoint may be one that
was not committed; to be sure, stop the app or give --brokers.

APP, if given, must be the app whose checkpoints the store holds, or with --admin the
one that runs there, and so must --app.

With --admin the running app is asked, at its admin endpoint: it takes a checkpoint
and makes a savepoint of that. With --stop it stops, and the savepoint is of its last
checkpoint.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkpoint.CheckSavepointName(name); err != nil {
				return fmt.Errorf("--name: %w", err)
			}
			if at != "" {
				for _, other := range append([]string{"store", "checkpoint", "brokers", "group"}, loginFlagNames()...) {
					if cmd.Flags().Changed(other) {
						return fmt.Errorf("--admin asks the app, which knows its checkpoints: leave --%s out", other)
					}
				}
				return createByApp(cmd, &f, at, argOr(args, ""), admin.SavepointRequest{Name: name, To: to, Stop: stop})
			}
			if stop {
				return errors.New("--stop: who is to be stopped? Give the app's admin endpoint with --admin")
			}
			store, err := f.open()
			if err != nil {
				return err
			}
			target, err := openTarget(to, store)
			if err != nil {
				return err
			}
			src := storeSource{fixed: which != offline.Latest, open: func() (*offline.Snapshot, error) {
				s, err := f.snapshot(cmd, store, which)
				if err != nil {
					return nil, err
				}
				for _, app := range []string{argOr(args, ""), f.app} {
					if app != "" && s.Info().App != app {
						return nil, fmt.Errorf("%s holds the checkpoints of app %q, not of %q", store, s.Info().App, app)
					}
				}
				return s, nil
			}}
			info, from, err := createFrom(cmd, src, target, name)
			if err != nil {
				return err
			}
			return reportSavepoint(cmd, &f, target, info, from)
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&which, "checkpoint", offline.Latest, "checkpoint id, or latest")
	cmd.Flags().StringVar(&name, "name", "", "name of the savepoint")
	cmd.Flags().StringVar(&to, "to", "", "URL of the store to put it into (default: the same store)")
	cmd.Flags().StringVar(&at, "admin", "", "URL of the running app's admin endpoint, such as http://localhost:8471")
	cmd.Flags().BoolVar(&stop, "stop", false, "with --admin: stop the app, and make a savepoint of its last checkpoint")
	_ = cmd.MarkFlagRequired("name")
	return cmd
}

func createFrom(cmd *cobra.Command, src source, to checkpoint.Store, name string) (checkpoint.SavepointInfo, string, error) {
	p := newProgress(cmd.ErrOrStderr(), "copy")
	defer p.close()
	return src.create(cmd.Context(), to, name, p.copied)
}

func savepointLsCommand() *cobra.Command {
	var f storeFlags
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the savepoints in a store",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := f.open()
			if err != nil {
				return err
			}
			infos, err := checkpoint.ListSavepoints(cmd.Context(), store)
			if err != nil {
				return err
			}
			list := []savepointJSON{}
			for _, i := range infos {
				j := savepointJSON{Name: i.Name, Store: store.String(), Complete: i.Complete, Objects: i.Objects, Bytes: i.Bytes}
				if i.Complete {
					m, _, err := checkpoint.OpenSavepoint(cmd.Context(), store, i.Name)
					if cmd.Context().Err() != nil {
						return err
					}
					if err != nil {
						j.Error = err.Error()
					} else {
						j.Checkpoint, j.App, j.KeyGroups, j.Created = m.Checkpoint, m.App, m.KeyGroups, &m.Created
					}
				}
				list = append(list, j)
			}
			if f.json() {
				return printJSON(cmd.OutOrStdout(), list)
			}
			if len(list) == 0 {
				fmt.Fprintf(cmd.ErrOrStderr(), "%s has no savepoints\n", store)
				return nil
			}
			var t table
			t.add("SAVEPOINT", "APP", "CHECKPOINT", "STATE OF", "SIZE")
			for _, j := range list {
				switch {
				case j.Error != "":
					t.add(j.Name, "-", "-", "damaged", size(j.Bytes))
				case !j.Complete:
					t.add(j.Name, "-", "-", "incomplete", size(j.Bytes))
				default:
					t.add(j.Name, j.App, strconv.FormatInt(j.Checkpoint, 10), ago(*j.Created), size(j.Bytes))
				}
			}
			return t.print(cmd.OutOrStdout())
		},
	}
	f.add(cmd.Flags())
	return cmd
}

func savepointCopyCommand() *cobra.Command {
	var f storeFlags
	var to, name string
	cmd := &cobra.Command{
		Use:   "copy NAME",
		Short: "Copy a savepoint to another store, or under another name",
		Long: `Copy copies a savepoint to --to, under --name. NAME may be left out if --store is a
savepoint itself, copied out of a store by other means.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			from := argOr(args, "")
			if name == "" {
				name = from
			}
			if name == "" || to == "" && name == from {
				return errors.New("where to? Give --to, --name, or both")
			}
			store, err := f.open()
			if err != nil {
				return err
			}
			target, err := openTarget(to, store)
			if err != nil {
				return err
			}
			p := newProgress(cmd.ErrOrStderr(), "copy")
			info, err := checkpoint.CopySavepoint(cmd.Context(), store, from, target, name, p.copied)
			p.close()
			if errors.Is(err, checkpoint.ErrNotFound) {
				if _, oerr := offline.Open(cmd.Context(), store, "savepoint:"+from); oerr != nil {
					err = oerr // says what there is
				}
			}
			if err != nil {
				return err
			}
			what := "savepoint " + from
			if from == "" {
				what = store.String()
			}
			return reportSavepoint(cmd, &f, target, info, what)
		},
	}
	f.add(cmd.Flags())
	cmd.Flags().StringVar(&to, "to", "", "URL of the store to copy to (default: the same store)")
	cmd.Flags().StringVar(&name, "name", "", "name of the copy (default: the same name)")
	return cmd
}

func savepointEditCommand() *cobra.Command {
	var f storeFlags
	var name, to, app string
	var keyGroups int
	var drop, renameStates, renameOperators []string
	var noPositions, dropInFlight bool
	cmd := &cobra.Command{
		Use:   "edit SNAPSHOT",
		Short: "Make a savepoint that is a changed copy of a checkpoint or savepoint",
		Long: `Edit writes a new savepoint from SNAPSHOT, which is the name of a savepoint, a
checkpoint id or latest, with operators or states renamed or dropped, or with
another number of key-groups. SNAPSHOT stays as it is. Records that are in flight in
it come along. To change entries, see weir state import.`,
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkpoint.CheckSavepointName(name); err != nil {
				return fmt.Errorf("--name: %w", err)
			}
			store, err := f.open()
			if err != nil {
				return err
			}
			s, err := f.snapshot(cmd, store, args[0])
			if err != nil {
				return err
			}
			target, err := openTarget(to, store)
			if err != nil {
				return err
			}
			p := newProgress(cmd.ErrOrStderr(), "write")
			defer p.close()
			b := offline.Edit(s, offline.BuildOptions{Progress: p.scan, Now: clock})
			defer b.Close()
			if err := changeRegistry(b, drop, renameStates, renameOperators); err != nil {
				return err
			}
			if cmd.Flags().Changed("key-groups") {
				if err := b.SetKeyGroups(keyGroups); err != nil {
					return err
				}
			}
			if app != "" {
				b.SetApp(app)
			}
			if noPositions {
				b.ClearPositions()
			}
			if dropInFlight {
				b.DropInFlight()
			}
			info, err := b.Write(cmd.Context(), target, name)
			p.close()
			if err != nil {
				return err
			}
			return reportSavepoint(cmd, &f, target, info, fmt.Sprintf("%v, changed", s))
		},
	}
	f.add(cmd.Flags())
	fs := cmd.Flags()
	fs.StringVar(&name, "name", "", "name of the new savepoint")
	fs.StringVar(&to, "to", "", "URL of the store to put it into (default: the same store)")
	fs.StringSliceVar(&renameOperators, "rename-operator", nil, "OLD=NEW: give the states of operator OLD to NEW; all are renamed at a time")
	fs.StringSliceVar(&renameStates, "rename-state", nil, "OPERATOR/OLD=NEW: give a state another name")
	fs.StringSliceVar(&drop, "drop", nil, "OPERATOR/STATE: leave a state out")
	fs.IntVar(&keyGroups, "key-groups", 0, "number of key-groups of the new savepoint")
	fs.StringVar(&app, "as", "", "name of the app that the new savepoint is for")
	fs.BoolVar(&noPositions, "no-positions", false, "leave the positions in the input out, and event time")
	fs.BoolVar(&dropInFlight, "drop-in-flight", false, "leave the records out that were in flight in an unaligned checkpoint; they are behind its positions and lost unless these are set back")
	_ = cmd.MarkFlagRequired("name")
	return cmd
}

func savepointRmCommand() *cobra.Command {
	var f storeFlags
	cmd := &cobra.Command{
		Use:   "rm NAME...",
		Short: "Remove savepoints",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := f.open()
			if err != nil {
				return err
			}
			for _, name := range args {
				err := checkpoint.DeleteSavepoint(cmd.Context(), store, name)
				if errors.Is(err, checkpoint.ErrNotFound) {
					if _, oerr := offline.Open(cmd.Context(), store, "savepoint:"+name); oerr != nil {
						err = oerr // says what there is
					}
				}
				if err != nil {
					return err
				}
				if f.json() {
					continue
				}
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "removed savepoint %s from %s\n", name, store); err != nil {
					return err
				}
			}
			if f.json() {
				return printJSON(cmd.OutOrStdout(), map[string]any{"removed": args, "store": store.String()})
			}
			return nil
		},
	}
	f.add(cmd.Flags())
	return cmd
}
