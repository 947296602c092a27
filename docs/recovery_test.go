package docs_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kgo"

	"github.com/weirstream/weir"
	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/processor"
	"github.com/weirstream/weir/sink/kafka"
	"github.com/weirstream/weir/source"
)

// admin returns an admin client for as long as the test runs.
func admin(t *testing.T, brokers []string) *kadm.Client {
	t.Helper()
	cl, err := kgo.NewClient(kgo.SeedBrokers(brokers...))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(cl.Close)
	return kadm.NewClient(cl)
}

// rewind sets the group's offsets of a topic to the beginning, as
// kafka-consumer-groups --reset-offsets does: without metadata.
func rewind(t *testing.T, brokers []string, group, topic string) {
	t.Helper()
	var os kadm.Offsets
	for p := range int32(2) {
		os.AddOffset(topic, p, 0, -1)
	}
	if err := admin(t, brokers).CommitAllOffsets(t.Context(), group, os); err != nil {
		t.Fatal(err)
	}
}

func deleteGroup(t *testing.T, brokers []string, group string) {
	t.Helper()
	if _, err := admin(t, brokers).DeleteGroup(t.Context(), group); err != nil {
		t.Fatal(err)
	}
}

// leave removes the member that an app which ended in an error leaves behind until
// the session timeout.
func leave(t *testing.T, brokers []string, group, instance string) {
	t.Helper()
	if _, err := admin(t, brokers).LeaveGroup(t.Context(), kadm.LeaveGroup(group).InstanceIDs(instance)); err != nil {
		t.Fatal(err)
	}
}

func deleteOffsets(t *testing.T, brokers []string, group string, topic string, partitions ...int32) {
	t.Helper()
	set := kadm.TopicsSet{}
	set.Add(topic, partitions...)
	r, err := admin(t, brokers).DeleteOffsets(t.Context(), group, set)
	if err == nil {
		err = r.Error()
	}
	if err != nil {
		t.Fatal(err)
	}
}

// countsOf returns the counts of the word "w" that were published, in order.
func countsOf(t *testing.T, brokers []string) []int64 {
	t.Helper()
	var ns []int64
	for _, r := range committed(t, brokers, "counts") {
		n, err := codec.Int64.Decode(r.Value)
		if err != nil {
			t.Fatal(err)
		}
		ns = append(ns, n)
	}
	return ns
}

// TestWaysOnAfterAMismatch does what the tables of operations.md say.
func TestWaysOnAfterAMismatch(t *testing.T) {
	is := func(target any) func(error) bool { return func(err error) bool { return errors.As(err, target) } }
	moved := func(t *testing.T, brokers []string, store checkpoint.Store) checkpoint.Store {
		rewind(t, brokers, "wordcount", "lines")
		return store
	}
	gone := func(t *testing.T, brokers []string, store checkpoint.Store) checkpoint.Store {
		deleteGroup(t, brokers, "wordcount")
		return store
	}
	partly := func(t *testing.T, brokers []string, store checkpoint.Store) checkpoint.Store {
		deleteOffsets(t, brokers, "wordcount", "lines", 0)
		return store
	}
	lost := func(*testing.T, []string, checkpoint.Store) checkpoint.Store { return checkpoint.NewMem() }
	lostAndRewound := func(t *testing.T, brokers []string, _ checkpoint.Store) checkpoint.Store {
		rewind(t, brokers, "wordcount", "lines")
		return checkpoint.NewMem()
	}
	for _, tc := range []struct {
		name    string
		hurt    func(*testing.T, []string, checkpoint.Store) checkpoint.Store
		refused func(error) bool
		recover string
		want    []int64 // counts of the run with the choice, with one word more
		stays   bool    // the way is none: it is refused as before
	}{
		{name: "offsets reset", hurt: moved, refused: is(new(*offsets.NoPointerError)), recover: "checkpoint", want: []int64{4}},
		{name: "offsets reset", hurt: moved, refused: is(new(*offsets.NoPointerError)), recover: "offsets", want: []int64{4, 5, 6, 7}},
		{name: "offsets reset", hurt: moved, refused: is(new(*offsets.NoPointerError)), recover: "nothing", want: []int64{1, 2, 3, 4}},
		{name: "group deleted", hurt: gone, refused: is(new(*processor.ForgottenError)), recover: "checkpoint", want: []int64{4}},
		{name: "group deleted", hurt: gone, refused: is(new(*processor.ForgottenError)), recover: "nothing", want: []int64{1, 2, 3, 4}},
		{name: "one offset deleted", hurt: partly, refused: is(new(*offsets.LostOffsetError)), recover: "checkpoint", want: []int64{4}},
		{name: "store lost", hurt: lost, refused: is(new(*checkpoint.MissingError)), recover: "nothing", stays: true},
		{name: "store lost, offsets reset", hurt: lostAndRewound, refused: is(new(*offsets.NoPointerError)), recover: "nothing", want: []int64{1, 2, 3, 4}},
	} {
		t.Run(tc.name+", "+tc.recover, func(t *testing.T) {
			brokers := cluster(t, "lines", "counts")
			store := checkpoint.Store(checkpoint.NewMem())
			run := func() error {
				app := weir.New("wordcount", weir.Brokers(brokers...), weir.Store(store), weir.Drain())
				wordcount(app)
				return app.Run(t.Context())
			}
			produce(t, brokers, "lines", "w", "w", "w")
			if err := run(); err != nil {
				t.Fatal(err)
			}
			store = tc.hurt(t, brokers, store)
			if err := run(); err == nil || !tc.refused(err) {
				t.Fatalf("without a choice: %v", err)
			}
			produce(t, brokers, "lines", "w")
			t.Setenv("WEIR_RECOVER", tc.recover)
			err := run()
			if tc.stays {
				if err == nil || !tc.refused(err) {
					t.Fatalf("with the choice: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got := countsOf(t, brokers); !slices.Equal(got[3:], tc.want) {
				t.Errorf("counts after the first run: %v, want %v", got[3:], tc.want)
			}
			t.Setenv("WEIR_RECOVER", "")
			produce(t, brokers, "lines", "w")
			if err := run(); err != nil {
				t.Errorf("the choice was committed, and still: %v", err)
			}
		})
	}
}

// TestTheAppGoesBackFromADamagedCheckpoint loses what the last checkpoint needs, and has no
// backup.
func TestTheAppGoesBackFromADamagedCheckpoint(t *testing.T) {
	brokers, dir := cluster(t, "lines", "counts"), t.TempDir()
	run := func() error {
		app := weir.New("wordcount", weir.Brokers(brokers...), weir.CheckpointStore("file://"+dir), weir.Drain(), weir.FromEnv())
		wordcount(app)
		return app.Run(t.Context())
	}
	for range 3 {
		produce(t, brokers, "lines", "w")
		if err := run(); err != nil {
			t.Fatal(err)
		}
	}
	store, err := checkpoint.OpenStore("file://" + dir)
	if err != nil {
		t.Fatal(err)
	}
	infos, err := checkpoint.ListManifests(t.Context(), store)
	if err != nil || len(infos) < 2 {
		t.Fatalf("%d checkpoints, %v", len(infos), err)
	}
	last, before := infos[len(infos)-1], infos[len(infos)-2]
	if err := os.WriteFile(filepath.Join(dir, last.Name), []byte("damage"), 0o600); err != nil {
		t.Fatal(err)
	}
	var damaged *checkpoint.DamagedError
	if err := run(); !errors.As(err, &damaged) {
		t.Fatalf("the last checkpoint is damaged: %v", err)
	}
	sound, err := offline.Open(t.Context(), store, fmt.Sprint(before.Checkpoint))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sound.Save(t.Context(), store, "back", nil); err != nil {
		t.Fatal(err)
	}
	deleteOffsets(t, brokers, "wordcount", "lines", 0, 1)
	t.Setenv("WEIR_FROM", "file://"+dir+"#back")
	t.Setenv("WEIR_RECOVER", "savepoint")
	produce(t, brokers, "lines", "w")
	if err := run(); err != nil {
		t.Fatal(err)
	}
	if got := countsOf(t, brokers); !slices.Equal(got, []int64{1, 2, 3, 3, 4}) {
		t.Errorf("counts %v", got)
	}
}

// TestTheAppMovesToAnotherGroup does what operations.md says of it.
func TestTheAppMovesToAnotherGroup(t *testing.T) {
	brokers, store := cluster(t, "lines", "counts"), checkpoint.NewMem()
	run := func(group string) error {
		app := weir.New("wordcount", weir.Brokers(brokers...), weir.Store(store), weir.Group(group), weir.Drain())
		wordcount(app)
		produce(t, brokers, "lines", "w")
		return app.Run(t.Context())
	}
	if err := run("old"); err != nil {
		t.Fatal(err)
	}
	var owner *checkpoint.OwnerError
	if err := run("new"); !errors.As(err, &owner) {
		t.Fatalf("without a choice: %v", err)
	}
	t.Setenv("WEIR_TAKE_STORE", owner.Got.String())
	t.Setenv("WEIR_RECOVER", "checkpoint")
	for range 2 { // the choices may stay
		if err := run("new"); err != nil {
			t.Fatal(err)
		}
	}
	if got := countsOf(t, brokers); !slices.Equal(got, []int64{1, 2, 3, 4}) {
		t.Errorf("counts %v", got)
	}
	if err := run("old"); err == nil {
		t.Error("the old group has the store again")
	}
}

// TestWaysOnAfterAnInputWasRecreated lets a commit come after the input was deleted and
// created again, as brokers take it that know topics by name in commits.
func TestWaysOnAfterAnInputWasRecreated(t *testing.T) {
	deleted := func(t *testing.T, brokers []string) { deleteOffsets(t, brokers, "wordcount", "lines", 0, 1) }
	reset := func(t *testing.T, brokers []string) { rewind(t, brokers, "wordcount", "lines") }
	for _, tc := range []struct {
		name    string
		offsets func(*testing.T, []string)
		recover string
		want    []int64 // counts of the run with the choice: every word of the new topic is in it
	}{
		{name: "offsets deleted", offsets: deleted, recover: "nothing", want: []int64{1, 2, 3, 4, 5}},
		{name: "offsets deleted", offsets: deleted, recover: "offsets", want: []int64{4, 5, 6, 7, 8}},
		{name: "offsets reset", offsets: reset, recover: "offsets", want: []int64{4, 5, 6, 7, 8}},
	} {
		t.Run(tc.name+", "+tc.recover, func(t *testing.T) {
			brokers := cluster(t, "lines", "counts")
			store := checkpoint.NewMem()
			run := func() error {
				app := weir.New("wordcount", weir.Brokers(brokers...), weir.Store(store), weir.Drain())
				wordcount(app)
				return app.Run(t.Context())
			}
			refused := func(why string) {
				t.Helper()
				var recreated *processor.RecreatedError
				if err := run(); !errors.As(err, &recreated) || recreated.Topic != "lines" || recreated.Was == recreated.Is {
					t.Fatalf("%s: %v", why, err)
				}
			}
			produce(t, brokers, "lines", "w", "w", "w")
			if err := run(); err != nil {
				t.Fatal(err)
			}
			recreate(t, brokers, "wordcount", "lines")
			produce(t, brokers, "lines", "w", "w", "w", "w", "w")
			refused("without a choice")
			t.Setenv("WEIR_RECOVER", "checkpoint")
			refused("offsets as they were")
			tc.offsets(t, brokers)
			refused("the checkpoint's positions are of no use")
			t.Setenv("WEIR_RECOVER", tc.recover)
			if err := run(); err != nil {
				t.Fatal(err)
			}
			if got := countsOf(t, brokers); !slices.Equal(got[3:], tc.want) {
				t.Errorf("counts after the first run: %v, want %v", got[3:], tc.want)
			}
			t.Setenv("WEIR_RECOVER", "")
			if err := run(); err != nil {
				t.Errorf("the choice was committed, and still: %v", err)
			}
		})
	}
}

// recreate deletes a topic and creates it again, and commits what was committed before.
func recreate(t *testing.T, brokers []string, group, topic string) {
	t.Helper()
	adm := admin(t, brokers)
	was, err := adm.FetchOffsets(t.Context(), group)
	if err == nil {
		_, err = adm.DeleteTopics(t.Context(), topic)
	}
	if err == nil {
		_, err = adm.CreateTopic(t.Context(), 2, 1, nil, topic)
	}
	if err != nil {
		t.Fatal(err)
	}
	var again kadm.Offsets
	for _, o := range was[topic] {
		again.Add(kadm.Offset{Topic: topic, Partition: o.Partition, At: o.At, LeaderEpoch: o.LeaderEpoch, Metadata: o.Metadata})
	}
	if err := admin(t, brokers).CommitAllOffsets(t.Context(), group, again); err != nil {
		t.Fatal(err)
	}
}

// TestInputTopicsComeAndGo does what operations.md says of changed topologies.
func TestInputTopicsComeAndGo(t *testing.T) {
	brokers := cluster(t, "lines", "more", "counts")
	store := checkpoint.NewMem()
	run := func(topics ...string) error {
		app := weir.New("inputs", weir.Brokers(brokers...), weir.Store(store), weir.Drain(), weir.InstanceID("a"),
			weir.Restart(weir.RestartPolicy{Initial: time.Millisecond, Max: time.Millisecond, Limit: 5, Quiet: time.Minute}))
		var ins []weir.Stream[string]
		for _, topic := range topics {
			ins = append(ins, weir.From(app, topic, source.Values(topic, codec.String)))
		}
		words := weir.Merge("all", ins[0], ins[1:]...)
		byWord := weir.KeyBy(words, "by-word", func(w string) string { return w }, codec.String)
		weir.To(weir.Aggregate(byWord, "count", weir.Count[string]()), "counts", kafka.Sink("counts", codec.String, codec.Int64))
		return app.Run(t.Context())
	}
	want := func(counts ...int64) {
		t.Helper()
		if got := countsOf(t, brokers); !slices.Equal(got, counts) {
			t.Fatalf("counts: %v, want %v", got, counts)
		}
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	produce(t, brokers, "lines", "w")
	produce(t, brokers, "more", "w")
	must(run("lines"))
	want(1)
	must(run("lines", "more")) // added: from its first offset
	want(1, 2)
	must(run("lines")) // removed
	produce(t, brokers, "lines", "w")
	must(run("lines"))
	want(1, 2, 3)
	produce(t, brokers, "more", "w")
	var split *offsets.SplitError
	if err := run("lines", "more"); !errors.As(err, &split) {
		t.Fatalf("a topic that came back with old offsets: %v", err)
	}
	leave(t, brokers, "inputs", "a")
	deleteOffsets(t, brokers, "inputs", "more", 0, 1)
	must(run("lines", "more")) // a new topic again, from its first offset
	want(1, 2, 3, 4, 5)
	if _, err := admin(t, brokers).DeleteTopics(t.Context(), "more"); err != nil { // and its offsets
		t.Fatal(err)
	}
	produce(t, brokers, "lines", "w")
	must(run("lines")) // removed, and gone before the app was started without it
	want(1, 2, 3, 4, 5, 6)
}
