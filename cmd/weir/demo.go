package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"

	"github.com/spf13/cobra"

	"github.com/weirstream/weir/cmd/weir/internal/demo"
)

// workerName is the hidden command that the demo starts itself with.
const workerName = "demo-worker"

func demoCommand() *cobra.Command {
	cfg := demo.Defaults()
	cmd := &cobra.Command{
		Use:   "demo",
		Short: "Kill a word count again and again and check every output",
		Long: `Demo starts an embedded Kafka broker and a word count in a process of its own,
kills that process with SIGKILL at random moments, and checks what a
read_committed consumer sees against a count made without weir: for every word
1, 2, 3, ..., each number once and in order. It needs neither Docker nor Kafka.

The exit status is 0 only if nothing was lost, duplicated or reordered.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			exe, err := os.Executable()
			if err != nil {
				return fmt.Errorf("the demo starts itself a second time, but where its own program is cannot be found: %w", err)
			}
			cfg.Worker = func(args ...string) *exec.Cmd {
				return exec.Command(exe, append([]string{workerName}, args...)...)
			}
			report, err := demo.Run(cmd.Context(), cfg, os.Stdout)
			switch {
			case errors.Is(err, context.Canceled):
				return &exitError{exitInterrupted, errors.New("interrupted: the worker is stopped and its files are removed")}
			case err != nil:
				return err
			}
			return report.Err()
		},
	}
	f := cmd.Flags()
	f.Uint64Var(&cfg.Seed, "seed", cfg.Seed, "seed of the text and of the moments of the kills")
	f.IntVar(&cfg.Kills, "kills", cfg.Kills, "how often the word count is killed")
	f.IntVar(&cfg.Records, "records", cfg.Records, "lines of text that go in")
	f.BoolVar(&cfg.Plain, "plain", cfg.Plain, "no live display (also when the output is no terminal)")
	return cmd
}

func demoWorkerCommand() *cobra.Command {
	var w demo.Worker
	cmd := &cobra.Command{
		Use:    workerName,
		Short:  "The word count that demo starts and kills",
		Hidden: true,
		Args:   cobra.NoArgs,
		RunE: func(*cobra.Command, []string) error {
			// The context of the signals is not for us: Ctrl-C reaches the whole
			// process group, and what becomes of this process is the demo's decision.
			return w.Run(context.Background(), os.Stdin, os.Stdout)
		},
	}
	w.Flags(cmd.Flags())
	return cmd
}
