package main

import (
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"
	"github.com/twmb/franz-go/pkg/kadm"

	"github.com/weirstream/weir/checkpoint"
)

func gcCommand() *cobra.Command {
	var f storeFlags
	var o checkpoint.CollectOptions
	cmd := &cobra.Command{
		Use:   "gc",
		Short: "Delete from a store what no checkpoint needs",
		Long: `Gc deletes what crashes left behind of instances that never came back. An app
deletes its own garbage; gc may run beside it. Savepoints are never touched.

Which checkpoints are live, the committed offsets say, so --brokers must be given.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := f.open()
			if err != nil {
				return err
			}
			if !f.asked() {
				return errors.New("gc must know which checkpoints are committed, or it might delete one: give --brokers or set WEIR_BROKERS")
			}
			app, err := appOf(cmd.Context(), store)
			if err != nil {
				return err
			}
			// An offset that is staged names a checkpoint that may become the live one.
			c, err := f.committed(kadm.RequireStable(cmd.Context()), app)
			if err != nil {
				return err
			}
			// The checkpoints of another owner may be lower than those that this one retains.
			if err := checkpoint.CheckOwner(cmd.Context(), store, app, checkpoint.Owner{Group: c.group, Cluster: c.cluster}); err != nil {
				return fmt.Errorf("is it the right cluster and --group? %w", err)
			}
			if err := c.allShown(cmd.Context(), store); err != nil {
				return fmt.Errorf("what is garbage cannot be told: %w", err)
			}
			if len(c.pointers) == 0 {
				return fmt.Errorf("group %s has no offset with a pointer of app %q: what is garbage cannot be told; is it the right cluster and --group?", c.group, c.app)
			}
			if o.Live, err = c.live(cmd.Context(), store); err != nil {
				return fmt.Errorf("what is garbage cannot be told: %w", err)
			}
			r, failed := checkpoint.Collect(cmd.Context(), store, o)
			if failed != nil && len(r.Deleted) == 0 {
				return failed
			}
			if f.json() {
				type objectJSON struct {
					Name     string    `json:"name"`
					Bytes    int64     `json:"bytes"`
					Modified time.Time `json:"modified"`
				}
				objects := []objectJSON{}
				for _, d := range r.Deleted {
					objects = append(objects, objectJSON{d.Name, d.Size, d.Modified})
				}
				return errors.Join(failed, printJSON(cmd.OutOrStdout(), map[string]any{"dryRun": o.DryRun, "deleted": objects, "bytes": r.Bytes, "kept": r.Kept, "temporaryFiles": r.Temps}))
			}
			verb := "deleted"
			if o.DryRun {
				verb = "would delete"
			}
			for _, d := range r.Deleted {
				if _, err := fmt.Fprintf(cmd.OutOrStdout(), "%s %s (%s, %s)\n", verb, d.Name, size(d.Size), ago(d.Modified)); err != nil {
					return errors.Join(failed, err)
				}
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s %s of %s and %s; %d kept\n", verb, plural(int64(len(r.Deleted)), "object"), size(r.Bytes), plural(int64(r.Temps), "temporary file"), r.Kept)
			return errors.Join(failed, err)
		},
	}
	f.add(cmd.Flags())
	fs := cmd.Flags()
	fs.BoolVar(&o.DryRun, "dry-run", false, "say what would be deleted, and delete nothing")
	fs.IntVar(&o.Retain, "retain", checkpoint.DefaultRetain, "committed checkpoints to keep, at least as many as the app keeps")
	fs.DurationVar(&o.Grace, "grace", checkpoint.DefaultGrace, "how old an object must be, at least as the app has it")
	return cmd
}
