package main

import (
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirstream/weir/admin"
)

// createByApp asks a running app for a savepoint.
func createByApp(cmd *cobra.Command, f *storeFlags, at, app string, r admin.SavepointRequest) error {
	if err := f.checkOutput(); err != nil {
		return err
	}
	c, err := admin.NewClient(at)
	if err != nil {
		return fmt.Errorf("--admin: %w", err)
	}
	s, err := c.Status(cmd.Context())
	if err != nil {
		return err
	}
	for _, app := range []string{app, f.app} {
		if app != "" && s.App != app {
			return fmt.Errorf("at %s runs app %q, not %q", at, s.App, app)
		}
	}
	made, err := c.Savepoint(cmd.Context(), r)
	if err != nil {
		return err
	}
	if f.json() {
		return printJSON(cmd.OutOrStdout(), savepointJSON{Name: made.Name, Store: made.Store, Complete: true, App: s.App, Objects: made.Objects, Bytes: made.Bytes, Created: &made.Created})
	}
	from := "app " + s.App
	if r.Stop {
		from += ", which stopped"
	}
	_, err = fmt.Fprintf(cmd.OutOrStdout(), "savepoint %s in %s: %s of %s, %s\n", made.Name, made.Store, size(made.Bytes), from, plural(int64(made.Objects), "object"))
	return err
}

func statusCommand() *cobra.Command {
	var f storeFlags
	var at string
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show where a running app stands",
		Long: `Status asks an app at its admin endpoint, which weir.Admin or WEIR_ADMIN opens, what
it is doing and which checkpoint it committed last.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.checkOutput(); err != nil {
				return err
			}
			if at == "" {
				return errors.New("which app? Give the URL of its admin endpoint with --admin, such as http://localhost:8471")
			}
			c, err := admin.NewClient(at)
			if err != nil {
				return fmt.Errorf("--admin: %w", err)
			}
			s, err := c.Status(cmd.Context())
			if err != nil {
				return err
			}
			if f.json() {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return statusTable(s).print(cmd.OutOrStdout())
		},
	}
	cmd.Flags().StringVarP(&f.output, "output", "o", "text", "text for people, json for programs")
	cmd.Flags().StringVar(&at, "admin", "", "URL of the running app's admin endpoint, such as http://localhost:8471")
	return cmd
}

func statusTable(s admin.Status) *table {
	var t table
	t.add("app", s.App)
	t.add("instance", s.Instance)
	t.add("state", s.State)
	switch {
	case s.Checkpoint == 0:
		t.add("committed", "nothing")
	case s.CommittedAt == nil:
		t.add("committed", fmt.Sprintf("checkpoint %d", s.Checkpoint))
	default:
		t.add("committed", fmt.Sprintf("checkpoint %d, %s", s.Checkpoint, ago(clock().Add(-time.Duration(s.Age*float64(time.Second))))))
	}
	switch r := s.Restored; {
	case r == nil:
		t.add("restored", "-")
	case r.Checkpoint == 0:
		t.add("restored", "empty")
	default:
		t.add("restored", fmt.Sprintf("checkpoint %d, %s, %s in %v", r.Checkpoint, r.How, plural(r.Entries, "entry"), time.Duration(r.Took*float64(time.Second)).Round(time.Millisecond)))
	}
	for _, p := range s.Sinks {
		seconds := func(s float64) time.Duration {
			return time.Duration(s * float64(time.Second)).Round(time.Millisecond)
		}
		is := fmt.Sprintf("applied checkpoint %d, %v after it was made", p.Applied, seconds(p.Latency))
		if p.PendingCheckpoints > 0 {
			is += fmt.Sprintf("; %s and %s are pending, for %v", plural(int64(p.PendingCheckpoints), "checkpoint"), size(p.PendingBytes), seconds(p.PendingAge))
		}
		if p.Error != "" {
			is += "; " + p.Error
		}
		t.add("sink "+p.Operator, is)
	}
	t.add("restarts", strconv.Itoa(s.Restarts))
	t.add("parallelism", fmt.Sprintf("%d of %d key-groups", s.Parallelism, s.KeyGroups))
	t.add("state backend", s.Backend)
	t.add("store", s.Store)
	return &t
}
