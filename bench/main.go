package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
)

// command is one thing that the bench can do.
type command struct {
	name    string
	summary string // one line
	figures []figure
	hidden  bool // run by the bench itself, in a process of its own
	// run declares its flags on fs, parses args with it and reports to r.
	run func(ctx context.Context, fs *flag.FlagSet, args []string, r *report) error
}

// figure is a number that a command measures.
type figure struct {
	name    string // "command.what"
	unit    string
	meaning string
}

var commands []command

// register adds a command; files call it from init.
func register(c command) { commands = append(commands, c) }

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:])
	stop()
	switch {
	case err == nil:
	case errors.Is(err, flag.ErrHelp):
		os.Exit(2)
	default:
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	if len(args) == 0 || args[0] == "list" {
		list()
		return nil
	}
	i := slices.IndexFunc(commands, func(c command) bool { return c.name == args[0] })
	if i < 0 {
		return fmt.Errorf("no command %q: go run ./bench list tells what there is", args[0])
	}
	c := commands[i]
	r := &report{declared: c.figures}
	if err := c.run(ctx, flag.NewFlagSet(c.name, flag.ContinueOnError), args[1:], r); err != nil {
		return fmt.Errorf("%s: %w", c.name, err)
	}
	return r.print(os.Stdout)
}

// parse parses the flags of a command that people run. Nothing stands behind them, and of
// what is counted or measured there is at least one.
func parse(fs *flag.FlagSet, args []string) error {
	if err := fs.Parse(args); err != nil {
		return err
	}
	if fs.NArg() > 0 {
		return fmt.Errorf("%q is no flag: -h tells which there are", fs.Arg(0))
	}
	var err error
	fs.Visit(func(f *flag.Flag) {
		if n, atoi := strconv.Atoi(f.Value.String()); err == nil && atoi == nil && n < 1 && slices.Contains(counted, f.Name) {
			err = fmt.Errorf("-%s %d: want at least 1", f.Name, n)
		}
	})
	return err
}

// counted are flags that make no sense at zero.
var counted = []string{"records", "rounds", "commands", "keys", "partitions", "batch", "epoch"}

// list prints the commands with their figures.
func list() {
	sorted := slices.SortedFunc(slices.Values(commands), func(a, b command) int { return strings.Compare(a.name, b.name) })
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	defer w.Flush()
	for _, c := range sorted {
		if c.hidden {
			continue
		}
		fmt.Fprintf(w, "%s\t\t%s\n", c.name, c.summary)
		for _, f := range c.figures {
			fmt.Fprintf(w, "  %s\t%s\t%s\n", f.name, f.unit, f.meaning)
		}
	}
}
