package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/txn"
)

// kafkaTimeout bounds what is asked of Kafka.
const kafkaTimeout = 30 * time.Second

// unstablePause is before offsets that are being committed are asked for again.
const unstablePause = 50 * time.Millisecond

// kafkaFlags say where the truth about commits is.
type kafkaFlags struct {
	brokers []string
	login   loginFlags
	app     string
	group   string
}

func (f *kafkaFlags) add(fs *pflag.FlagSet) {
	var brokers []string
	if env := os.Getenv("WEIR_BROKERS"); env != "" {
		brokers = strings.Split(env, ",")
	}
	fs.StringSliceVar(&f.brokers, "brokers", brokers, "Kafka brokers, host:port, to ask which checkpoint is committed (default $WEIR_BROKERS)")
	f.login.add(fs)
	fs.StringVar(&f.app, "app", "", "name of the app (default: the one that wrote the checkpoints)")
	fs.StringVar(&f.group, "group", os.Getenv("WEIR_GROUP"), "consumer group (default: the app's name)")
}

// asked tells whether there are brokers to ask.
func (f *kafkaFlags) asked() bool { return len(f.brokers) > 0 }

// committed is what Kafka says about an app's commits.
type committed struct {
	app, group string
	cluster    string // its id; empty: the brokers tell none
	opts       []kgo.Opt
	pointers   map[offsets.Partition]offsets.ManifestRef
	// record is the last commit record, which tells if the offsets are gone.
	record *offsets.CommitRecord
}

// committed asks Kafka. app is whose store it is.
func (f *kafkaFlags) committed(ctx context.Context, app string) (*committed, error) {
	if f.app != "" && f.app != app {
		return nil, fmt.Errorf("the checkpoints in the store are those of app %q, not of %q: give the store of %q, or leave --app out", app, f.app, f.app)
	}
	c := &committed{app: app, group: f.group, pointers: map[offsets.Partition]offsets.ManifestRef{}}
	if c.group == "" {
		c.group = app
	}
	opts, err := f.login.options()
	if err != nil {
		return nil, err
	}
	c.opts = append(opts, kgo.SeedBrokers(f.brokers...))
	ctx, cancel := context.WithTimeout(ctx, kafkaTimeout)
	defer cancel()
	err = c.read(ctx)
	for errors.Is(err, kerr.UnstableOffsetCommit) && ctx.Err() == nil {
		// A commit is under way.
		select {
		case <-ctx.Done():
		case <-time.After(unstablePause):
		}
		err = c.read(ctx)
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s which checkpoint of app %q is committed: %w", strings.Join(f.brokers, ","), app, err)
	}
	return c, nil
}

func (c *committed) read(ctx context.Context) error {
	cl, err := kgo.NewClient(c.opts...)
	if err != nil {
		return err
	}
	defer cl.Close()
	if c.cluster, err = txn.ClusterID(ctx, cl); err != nil {
		return fmt.Errorf("%w\n  check --brokers, that they are up, and that --tls, --sasl and --user are as they expect", err)
	}
	resp, err := kadm.NewClient(cl).FetchOffsets(ctx, c.group)
	if errors.Is(err, kerr.GroupIDNotFound) {
		err = nil // it has no offsets
	}
	if err != nil {
		return fmt.Errorf("offsets of group %s: %w", c.group, err)
	}
	var errs []error
	resp.Each(func(o kadm.OffsetResponse) {
		p := offsets.Partition{Topic: o.Topic, Partition: o.Partition}
		if o.Err != nil {
			errs = append(errs, fmt.Errorf("offset of %v: %w", p, o.Err))
			return
		}
		ptr, err := offsets.ParsePointer(o.Metadata)
		switch {
		case errors.Is(err, offsets.ErrNoPointer), errors.Is(err, offsets.ErrForeign):
		case err != nil:
			errs = append(errs, fmt.Errorf("pointer of %v: %w", p, err))
		case ptr.App == c.app:
			c.pointers[p] = ptr.Manifest
		}
	})
	if len(c.pointers) == 0 && len(errs) == 0 {
		rec, ok, err := txn.LastCommitRecord(ctx, c.opts, c.app+"-checkpoints", c.app)
		if err != nil {
			return err
		}
		if ok {
			c.record = &rec
		}
	}
	return errors.Join(errs...)
}

// newest is the newest committed checkpoint.
func (c *committed) newest() (offsets.ManifestRef, error) {
	var newest offsets.ManifestRef
	for _, ref := range c.pointers {
		if ref.Checkpoint > newest.Checkpoint {
			newest = ref
		}
	}
	if newest == (offsets.ManifestRef{}) && c.record != nil {
		newest = c.record.Manifest
	}
	if newest == (offsets.ManifestRef{}) {
		return newest, fmt.Errorf("group %s has no offset with a pointer of app %q, and topic %s-checkpoints no commit record: nothing was ever committed there; is it the right cluster and --group?", c.group, c.app, c.app)
	}
	return newest, nil
}

// allShown makes sure that Kafka left no offset out. It does so, and does not say it, for
// topics that the user may not describe.
func (c *committed) allShown(ctx context.Context, store checkpoint.Store) error {
	infos, err := checkpoint.ListManifests(ctx, store)
	if err != nil {
		return err
	}
	topics := map[string]bool{}
	for _, info := range infos {
		m, _, err := checkpoint.Inspect(ctx, store, info.Name)
		if err != nil {
			continue // it says nothing, and what is committed has to be whole
		}
		for p := range m.Positions {
			topics[p.Topic] = true
		}
	}
	ctx, cancel := context.WithTimeout(ctx, kafkaTimeout)
	defer cancel()
	cl, err := kgo.NewClient(c.opts...)
	if err != nil {
		return err
	}
	defer cl.Close()
	req := kmsg.NewPtrMetadataRequest()
	req.AllowAutoTopicCreation = false
	for _, topic := range slices.Sorted(maps.Keys(topics)) {
		rt := kmsg.NewMetadataRequestTopic()
		rt.Topic = kmsg.StringPtr(topic)
		req.Topics = append(req.Topics, rt)
	}
	resp, err := req.RequestWith(ctx, cl)
	if err != nil {
		return fmt.Errorf("describe the topics that app %q reads: %w", c.app, err)
	}
	var hidden []string
	for _, d := range resp.Topics {
		if d.ErrorCode == kerr.TopicAuthorizationFailed.Code && d.Topic != nil {
			hidden = append(hidden, *d.Topic)
		}
	}
	if len(hidden) > 0 {
		return fmt.Errorf("this user may not describe %s, so Kafka does not show the offsets: grant DESCRIBE", strings.Join(hidden, ", "))
	}
	return nil
}

// live returns the checkpoints that a collection has to keep. Offsets of a topic that the app
// does not read any more stay in the group, and what they name is collected in time. What the
// app reads is what the newest checkpoint has positions of; of other topics a pointer counts
// only while its checkpoint is there.
func (c *committed) live(ctx context.Context, store checkpoint.Store) ([]offsets.ManifestRef, error) {
	newest, err := c.newest()
	if err != nil {
		return nil, err
	}
	m, err := checkpoint.Load(ctx, store, newest)
	if err != nil {
		return nil, err
	}
	read := map[string]bool{}
	for p := range m.Positions {
		read[p.Topic] = true
	}
	live := map[offsets.ManifestRef]bool{} // and whether an offset of what is read names it
	for p, ref := range c.pointers {
		live[ref] = live[ref] || read[p.Topic]
	}
	live[newest] = true
	maps.DeleteFunc(live, func(ref offsets.ManifestRef, counts bool) bool {
		if counts {
			return false
		}
		_, err := checkpoint.Load(ctx, store, ref)
		var missing *checkpoint.MissingError
		return errors.As(err, &missing) // there is nothing to keep
	})
	return slices.Collect(maps.Keys(live)), nil
}

// pointedAt lists the partitions whose committed offset names a manifest, such as
// "payments/0-11 refunds/3".
func (c *committed) pointedAt(ref offsets.ManifestRef) string {
	var ps []offsets.Partition
	for p, r := range c.pointers {
		if r == ref {
			ps = append(ps, p)
		}
	}
	if len(ps) == 0 && c.record != nil && c.record.Manifest == ref {
		return "commit record"
	}
	return ranges(ps)
}

// ranges lists partitions with neighbours together.
func ranges(ps []offsets.Partition) string {
	if len(ps) == 0 {
		return "-"
	}
	slices.SortFunc(ps, offsets.Partition.Compare)
	var out []string
	for i := 0; i < len(ps); {
		j := i + 1
		for j < len(ps) && ps[j].Topic == ps[i].Topic && ps[j].Partition == ps[j-1].Partition+1 {
			j++
		}
		s := ps[i].String()
		if j > i+1 {
			s += fmt.Sprintf("-%d", ps[j-1].Partition)
		}
		out = append(out, s)
		i = j
	}
	return strings.Join(out, " ")
}
