package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoregistry"
	"google.golang.org/protobuf/types/descriptorpb"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offline"

	// Schemes of stores.
	_ "github.com/weirstream/weir/checkpoint/blob/azure"
	_ "github.com/weirstream/weir/checkpoint/blob/gcs"
	_ "github.com/weirstream/weir/checkpoint/blob/s3"
)

// clock is what time it is; tests set it.
var clock = time.Now

// storeFlags are the flags of every command that looks into a store.
type storeFlags struct {
	url    string
	output string // text or json
	kafkaFlags
}

func (f *storeFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.url, "store", os.Getenv("WEIR_STORE"), "URL of the checkpoint store, such as file:///var/lib/payments or s3://bucket/payments (default $WEIR_STORE)")
	fs.StringVarP(&f.output, "output", "o", "text", "text for people, json for programs")
	f.kafkaFlags.add(fs)
}

// json tells whether the output is for programs.
func (f *storeFlags) json() bool { return f.output == "json" }

func (f *storeFlags) checkOutput() error {
	if f.output != "text" && f.output != "json" {
		return fmt.Errorf("--output is %q: it takes text or json", f.output)
	}
	return nil
}

func (f *storeFlags) check() error {
	if err := f.checkOutput(); err != nil {
		return err
	}
	if f.url == "" {
		return errors.New("which store? Give its URL with --store or in WEIR_STORE")
	}
	return nil
}

func (f *storeFlags) open() (checkpoint.Store, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	return offline.OpenStore(f.url)
}

// snapshotFlags choose a snapshot and what is shown of it.
type snapshotFlags struct {
	storeFlags
	which       string
	expired     bool
	descriptors string
}

func (f *snapshotFlags) add(fs *pflag.FlagSet) {
	f.storeFlags.add(fs)
	fs.StringVar(&f.which, "checkpoint", offline.Latest, "checkpoint id, name of a savepoint, or latest")
	fs.BoolVar(&f.expired, "expired", false, "show entries that have expired, too")
	fs.StringVar(&f.descriptors, "descriptors", "", "descriptor set (protoc --include_imports --descriptor_set_out) for protobuf messages in state")
}

// open opens the snapshot that the flags choose.
func (f *snapshotFlags) open(cmd *cobra.Command) (*offline.Snapshot, error) {
	store, err := f.storeFlags.open()
	if err != nil {
		return nil, err
	}
	return f.snapshot(cmd, store, f.which)
}

// snapshot opens a snapshot. Which one is the latest is known to Kafka only; without it
// the newest in the store is taken, and said so on standard error.
func (f *storeFlags) snapshot(cmd *cobra.Command, store checkpoint.Store, which string) (*offline.Snapshot, error) {
	ctx := cmd.Context()
	if which != offline.Latest {
		return offline.Open(ctx, store, which)
	}
	infos, err := checkpoint.ListManifests(ctx, store)
	if err != nil {
		return nil, err
	}
	if len(infos) == 0 {
		// A savepoint that was copied out of a store stands alone: no offset points into it.
		return offline.Open(ctx, store, which)
	}
	if !f.asked() {
		s, err := offline.Open(ctx, store, which)
		if err != nil {
			return nil, err
		}
		fmt.Fprintf(cmd.ErrOrStderr(), "checkpoint %d is the newest in the store; may not be committed (--brokers tells)\n", s.Info().Checkpoint)
		return s, nil
	}
	app, err := appOf(ctx, store)
	if err != nil {
		return nil, err
	}
	c, err := f.committed(ctx, app)
	if err != nil {
		return nil, err
	}
	ref, err := c.newest()
	if err != nil {
		return nil, err
	}
	m, err := checkpoint.Load(ctx, store, ref)
	if err != nil {
		return nil, err
	}
	return offline.OpenManifest(store, m, ref), nil
}

// appOf is the app whose checkpoints a store holds. The newest of them may be damaged, and
// one that was never committed.
func appOf(ctx context.Context, store checkpoint.Store) (string, error) {
	infos, err := checkpoint.ListManifests(ctx, store)
	if err != nil {
		return "", err
	}
	for _, info := range slices.Backward(infos) {
		if m, _, err := checkpoint.Inspect(ctx, store, info.Name); err == nil {
			return m.App, nil
		}
	}
	s, err := offline.Open(ctx, store, offline.Latest) // says why there is none
	if err != nil {
		return "", err
	}
	return s.Info().App, nil
}

// options are those of reading.
func (f *snapshotFlags) options() ([]offline.Option, error) {
	opts := []offline.Option{offline.At(clock())}
	if f.expired {
		opts = append(opts, offline.IncludeExpired())
	}
	if f.descriptors != "" {
		files, err := readDescriptors(f.descriptors)
		if err != nil {
			return nil, fmt.Errorf("read descriptor set %s: %w; make one with protoc --include_imports --descriptor_set_out=%s", f.descriptors, err, f.descriptors)
		}
		opts = append(opts, offline.Messages(files))
	}
	return opts, nil
}

func readDescriptors(name string) (*protoregistry.Files, error) {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil, err
	}
	var set descriptorpb.FileDescriptorSet
	if err := proto.Unmarshal(b, &set); err != nil {
		return nil, err
	}
	return protodesc.NewFiles(&set)
}

// stateFlags choose a state.
type stateFlags struct{ operator, name string }

func (f *stateFlags) add(fs *pflag.FlagSet) {
	fs.StringVar(&f.operator, "operator", "", "ID of the operator")
	fs.StringVar(&f.name, "state", "", "name of the state")
}

// resolve completes what was left out if there is only one way to.
func (f *stateFlags) resolve(s *offline.Snapshot) (checkpoint.StateInfo, error) {
	var found []checkpoint.StateInfo
	for _, i := range s.States() {
		if (f.operator == "" || f.operator == i.Operator) && (f.name == "" || f.name == i.Name) {
			found = append(found, i)
		}
	}
	if len(found) == 1 {
		return found[0], nil
	}
	if f.operator != "" && f.name != "" || len(found) == 0 {
		return s.State(f.operator, f.name)
	}
	names := make([]string, len(found))
	for i, s := range found {
		names[i] = s.Operator + "/" + s.Name
	}
	return checkpoint.StateInfo{}, fmt.Errorf("which state? Give --operator and --state of one of (operator/state): %s", strings.Join(names, ", "))
}

// ago is how long ago t was, for people.
func ago(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	d := clock().Sub(t)
	switch {
	case d < 0:
		return t.UTC().Format(time.RFC3339)
	case d < 2*time.Minute:
		return fmt.Sprintf("%ds ago", d/time.Second)
	case d < 2*time.Hour:
		return fmt.Sprintf("%dm ago", d/time.Minute)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh ago", d/time.Hour)
	}
	return fmt.Sprintf("%dd ago", d/(24*time.Hour))
}

// size is a number of bytes, for people.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	f, units := float64(n)/unit, "KMGTPE"
	i := 0
	for ; f >= unit && i < len(units)-1; i++ {
		f /= unit
	}
	return fmt.Sprintf("%.1f %ciB", f, units[i])
}

// plural is a count of things.
func plural(n int64, thing string) string {
	if n == 1 {
		return "1 " + thing
	}
	if s, ok := strings.CutSuffix(thing, "y"); ok {
		thing = s + "ie"
	}
	return fmt.Sprintf("%d %ss", n, thing)
}
