package main

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"

	"github.com/twmb/franz-go/pkg/kfake"
)

func init() {
	register(command{name: brokerCommand, hidden: true, run: serveBroker})
}

const brokerCommand = "broker"

// serveBroker runs kfake, prints its addresses and serves until its standard input
// ends, which it does at the latest when the parent is gone.
func serveBroker(_ context.Context, fs *flag.FlagSet, args []string, _ *report) error {
	if err := fs.Parse(args); err != nil {
		return err
	}
	c, err := kfake.NewCluster(kfake.NumBrokers(1))
	if err != nil {
		return fmt.Errorf("start kfake: %w", err)
	}
	defer c.Close()
	fmt.Println(strings.Join(c.ListenAddrs(), ","))
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// brokersFlag declares -brokers.
func brokersFlag(fs *flag.FlagSet, to *string) {
	fs.StringVar(to, "brokers", "", "`addresses` of the brokers, separated by commas (default: kfake in a process of its own)")
}

// aside is the niceness of a broker that must not take the processor from who is measured
// in the middle of what takes a fraction of the kernel's time slice. Brokers run elsewhere.
const aside = 10

// brokersOf returns the addresses to use. For an empty flag it starts kfake, with a
// niceness; stop ends it.
func brokersOf(flag string, niceness int) (addrs []string, stop func(), err error) {
	if flag != "" {
		return strings.Split(flag, ","), func() {}, nil
	}
	self, err := os.Executable()
	if err != nil {
		return nil, nil, fmt.Errorf("start kfake: %w", err)
	}
	cmd := exec.Command(self, brokerCommand)
	if niceness > 0 {
		cmd = exec.Command("nice", "-n", strconv.Itoa(niceness), self, brokerCommand)
	}
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		return nil, nil, fmt.Errorf("start kfake: %w", err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		return nil, nil, fmt.Errorf("start kfake: %w", err)
	}
	if err := cmd.Start(); err != nil {
		return nil, nil, fmt.Errorf("start kfake: %w", err)
	}
	stop = func() {
		in.Close()
		_ = cmd.Wait() // its work is done; how it ended changes nothing
	}
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		stop()
		return nil, nil, fmt.Errorf("start kfake: it told no address: %w", err)
	}
	return strings.Split(strings.TrimSpace(line), ","), stop, nil
}
