// Command weir is the command-line tool of the stream processor weir.
//
//	weir demo         word count against an embedded Kafka, killed again and again
//	weir checkpoint   list, show and verify the checkpoints in a store
//	weir status       where a running app stands
//	weir savepoint    create, list, copy, change and remove savepoints
//	weir state        look into state, take it out and put it in
//	weir gc           delete from a store what no checkpoint needs
//	weir redis        show how far write-ahead sinks are applied in Redis
//	weir version      which build this is
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), heeded(os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)...)
	context.AfterFunc(ctx, stop) // a second one ends what is deaf to contexts
	cmd := newCommand()
	cmd.SetArgs(longFlags(os.Args[1:]))
	err := cmd.ExecuteContext(ctx)
	stop()
	if err == nil {
		return
	}
	// An app's own errors begin with the prefix already.
	fmt.Fprintln(os.Stderr, "weir: "+strings.TrimPrefix(err.Error(), "weir: "))
	code := exitFailure
	var e *exitError
	if errors.As(err, &e) {
		code = e.code
	}
	os.Exit(code)
}

// heeded leaves out signals that whoever started the process had it ignore, as nohup does.
func heeded(signals ...os.Signal) []os.Signal {
	return slices.DeleteFunc(signals, signal.Ignored)
}

// Exit statuses.
const (
	exitFailure     = 1
	exitInterrupted = 130 // as shells count: 128 and the number of SIGINT
)

// exitError is an error with an exit status of its own.
type exitError struct {
	code int
	err  error
}

func (e *exitError) Error() string { return e.err.Error() }
func (e *exitError) Unwrap() error { return e.err }

// newCommand returns the command tree. Each command is made in a file of its own.
func newCommand() *cobra.Command {
	root := &cobra.Command{
		Use:           "weir",
		Short:         "Exactly-once stream processing on Kafka",
		SilenceUsage:  true,
		SilenceErrors: true,
	}
	root.AddCommand(
		checkpointCommand(),
		statusCommand(),
		savepointCommand(),
		stateCommand(),
		gcCommand(),
		redisCommand(),
		demoCommand(),
		demoWorkerCommand(),
		versionCommand(),
	)
	sayArguments(root)
	return root
}

// sayArguments makes an error about the number of arguments say what they are.
func sayArguments(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		sayArguments(c)
	}
	check := cmd.Args
	if check == nil || cmd.HasSubCommands() {
		return
	}
	cmd.Args = func(c *cobra.Command, args []string) error {
		if err := check(c, args); err != nil {
			return fmt.Errorf("%s is given %q: want %s", c.CommandPath(), args, c.UseLine())
		}
		return nil
	}
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if strings.Contains(c.Use, "KEY") && strings.HasPrefix(err.Error(), "unknown ") {
			return fmt.Errorf("%w; what is a key and begins with a dash stands behind --", err)
		}
		return err
	})
}

// group makes a command that only has subcommands, and shows them. Any other word is an
// error: cobra by itself would show the subcommands, too, and be content.
func group(cmd *cobra.Command, subcommands ...*cobra.Command) *cobra.Command {
	cmd.AddCommand(subcommands...)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) == 0 {
			return nil
		}
		return unknownCommand(cmd, args[0])
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
	// A flag of the subcommand that was meant is not the mistake.
	cmd.SetFlagErrorFunc(func(c *cobra.Command, err error) error {
		if args := c.Flags().Args(); c == cmd && len(args) > 0 {
			return unknownCommand(cmd, args[0])
		}
		return err
	})
	return cmd
}

func unknownCommand(cmd *cobra.Command, name string) error {
	cmd.SuggestionsMinimumDistance = 2 // as for the commands of weir
	likely := cmd.SuggestionsFor(name)
	if len(likely) == 0 {
		for _, c := range cmd.Commands() {
			if c.IsAvailableCommand() {
				likely = append(likely, c.Name())
			}
		}
		return fmt.Errorf("%s has no command %q: it has %s", cmd.CommandPath(), name, strings.Join(likely, ", "))
	}
	return fmt.Errorf("%s has no command %q: did you mean %s?", cmd.CommandPath(), name, strings.Join(likely, " or "))
}

// longFlags lets long flags be written with one dash, too, as Go's own tools take
// them: -seed is --seed. A flag of one letter, as -o, stands apart from its value.
func longFlags(args []string) []string {
	out := make([]string, len(args))
	for i, a := range args {
		if a == "--" {
			copy(out[i:], args[i:])
			break
		}
		name, _, _ := strings.Cut(a, "=")
		if len(name) > 2 && a[0] == '-' && isLetter(a[1]) {
			a = "-" + a
		}
		out[i] = a
	}
	return out
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
