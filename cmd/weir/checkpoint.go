package main

import (
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/offline"
	"github.com/weirstream/weir/offsets"
)

func checkpointCommand() *cobra.Command {
	return group(&cobra.Command{
		Use:   "checkpoint",
		Short: "List, show and verify the checkpoints in a store",
	}, checkpointLsCommand(), checkpointShowCommand(), checkpointVerifyCommand())
}

// checkpointJSON is a checkpoint for programs.
type checkpointJSON struct {
	Checkpoint  int64          `json:"checkpoint"`
	Incarnation string         `json:"incarnation"`
	Object      string         `json:"object"`
	App         string         `json:"app,omitempty"`
	Instance    string         `json:"instance,omitempty"`
	Lineage     string         `json:"lineage,omitempty"`
	Created     *time.Time     `json:"created,omitempty"`
	KeyGroups   int            `json:"keyGroups,omitempty"`
	StateBytes  int64          `json:"stateBytes"`
	NewBytes    int64          `json:"newBytes"`
	Segments    int            `json:"segments"`
	Watermark   *int64         `json:"watermark,omitempty"`
	Positions   []positionJSON `json:"positions,omitempty"`
	// RecordsInFlight is how many an unaligned checkpoint holds beside state.
	RecordsInFlight int64 `json:"recordsInFlight,omitempty"`
	// Committed is null if it is not known.
	Committed *bool  `json:"committed"`
	PointedAt string `json:"pointedAt,omitempty"`
	Error     string `json:"error,omitempty"`
}

type positionJSON struct {
	Topic     string `json:"topic"`
	Partition int32  `json:"partition"`
	Offset    int64  `json:"offset"`
}

func sortedPositions(m map[offsets.Partition]offsets.Position) []positionJSON {
	var out []positionJSON
	for _, p := range slices.SortedFunc(maps.Keys(m), offsets.Partition.Compare) {
		out = append(out, positionJSON{p.Topic, p.Partition, m[p].Offset})
	}
	return out
}

func describe(m *checkpoint.Manifest, ref offsets.ManifestRef, c *committed) checkpointJSON {
	j := checkpointJSON{
		Checkpoint: m.Checkpoint, Incarnation: fmt.Sprintf("%08x", m.Incarnation), Object: ref.Object(), App: m.App, Instance: m.Instance,
		Lineage: m.Lineage, Created: &m.Created, KeyGroups: m.KeyGroups, StateBytes: m.Bytes(), Segments: len(m.Segments), Positions: sortedPositions(m.Positions),
		RecordsInFlight: m.RecordsInFlight(),
	}
	for _, s := range m.Segments {
		if s.FirstCheckpoint == m.Checkpoint {
			j.NewBytes += s.Length
		}
	}
	if m.Watermark != checkpoint.NoWatermark {
		j.Watermark = &m.Watermark
	}
	if c != nil {
		j.PointedAt = c.pointedAt(ref)
		pointed := j.PointedAt != "-"
		j.Committed = &pointed
	}
	return j
}

func checkpointLsCommand() *cobra.Command {
	var f storeFlags
	cmd := &cobra.Command{
		Use:   "ls",
		Short: "List the checkpoints in a store, newest first",
		Long: `Ls lists the manifests in a store, newest first. Not each of them was committed:
with --brokers the last column tells which partitions' committed offsets point
at one.

STATE is the size of all that the checkpoint refers to, NEW of what it added.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			store, err := f.open()
			if err != nil {
				return err
			}
			infos, err := checkpoint.ListManifests(cmd.Context(), store)
			if err != nil {
				return err
			}
			if len(infos) == 0 {
				return fmt.Errorf("%s has no checkpoints: is this the store that the app writes to?", store)
			}
			list := make([]checkpointJSON, 0, len(infos))
			var c *committed
			var errs []error
			for _, info := range slices.Backward(infos) {
				m, ref, err := checkpoint.Inspect(cmd.Context(), store, info.Name)
				if err != nil {
					if cmd.Context().Err() != nil {
						return err
					}
					if errors.Is(err, checkpoint.ErrNotFound) {
						continue // the app has deleted it since
					}
					// One damaged manifest should not hide the others.
					errs = append(errs, err)
					r := offsets.ManifestRef{Checkpoint: info.Checkpoint, Incarnation: info.Incarnation}
					list = append(list, checkpointJSON{Checkpoint: info.Checkpoint, Incarnation: fmt.Sprintf("%08x", info.Incarnation), Object: r.Object(), Error: err.Error()})
					continue
				}
				if c == nil && f.asked() {
					if c, err = f.committed(cmd.Context(), m.App); err != nil {
						return err
					}
				}
				list = append(list, describe(m, ref, c))
			}
			if f.json() {
				return errors.Join(printJSON(cmd.OutOrStdout(), list), errors.Join(errs...))
			}
			var t table
			t.add("CHECKPOINT", "TAKEN", "STATE", "NEW", "POSITIONS", "POINTED AT")
			for _, j := range list {
				if j.Error != "" {
					t.add(strconv.FormatInt(j.Checkpoint, 10), "-", "-", "-", "-", "damaged")
					continue
				}
				pointed := "?"
				if j.Committed != nil {
					pointed = j.PointedAt
				}
				t.add(strconv.FormatInt(j.Checkpoint, 10), ago(*j.Created), size(j.StateBytes), size(j.NewBytes), plural(int64(len(j.Positions)), "partition"), pointed)
			}
			if err := t.print(cmd.OutOrStdout()); err != nil {
				return err
			}
			if c == nil {
				fmt.Fprintln(cmd.ErrOrStderr(), "which of them is committed, the offsets in Kafka say: give --brokers")
			}
			return errors.Join(errs...)
		},
	}
	f.add(cmd.Flags())
	return cmd
}

func checkpointShowCommand() *cobra.Command {
	var f storeFlags
	cmd := &cobra.Command{
		Use:   "show [CHECKPOINT]",
		Short: "Show what a checkpoint or savepoint consists of",
		Long: `Show prints a manifest: positions, states, segments, and how many records an
unaligned checkpoint holds in flight to which KeyBy. CHECKPOINT is an id, the name of
a savepoint, or latest, which is the default.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := f.open()
			if err != nil {
				return err
			}
			s, err := f.snapshot(cmd, store, argOr(args, offline.Latest))
			if err != nil {
				return err
			}
			m, ref := s.Manifest()
			var c *committed
			if f.asked() {
				if c, err = f.committed(cmd.Context(), m.App); err != nil {
					return err
				}
			}
			j := describe(m, ref, c)
			if f.json() {
				return printJSON(cmd.OutOrStdout(), struct {
					checkpointJSON
					Hash   string                  `json:"hash"`
					States []checkpoint.StateInfo  `json:"states"`
					Chain  []checkpoint.SegmentRef `json:"chain"`
					Flight []checkpoint.InFlight   `json:"inFlight,omitempty"`
				}{j, hex.EncodeToString(ref.Hash[:]), s.States(), m.Segments, m.InFlight})
			}
			return show(cmd, s, j)
		},
	}
	f.add(cmd.Flags())
	return cmd
}

func show(cmd *cobra.Command, s *offline.Snapshot, j checkpointJSON) error {
	out := cmd.OutOrStdout()
	m, _ := s.Manifest()
	var head table
	head.add("checkpoint", fmt.Sprintf("%d (%s)", j.Checkpoint, j.Object))
	if name := s.Info().Savepoint; name != "" {
		head.add("savepoint", name)
	}
	head.add("app", j.App)
	head.add("instance", j.Instance)
	head.add("taken", fmt.Sprintf("%s (%s)", j.Created.UTC().Format(time.RFC3339), ago(*j.Created)))
	head.add("lineage", j.Lineage)
	if m.Parent.Checkpoint != 0 {
		head.add("built on", fmt.Sprintf("checkpoint %d", m.Parent.Checkpoint))
	}
	head.add("key-groups", strconv.Itoa(j.KeyGroups))
	if j.Watermark != nil {
		head.add("watermark", time.UnixMilli(*j.Watermark).UTC().Format(time.RFC3339Nano))
	}
	head.add("state", fmt.Sprintf("%s in %s", size(j.StateBytes), plural(int64(j.Segments), "segment")))
	if j.RecordsInFlight > 0 {
		head.add("in flight", plural(j.RecordsInFlight, "record"))
	}
	if j.Committed != nil {
		head.add("pointed at", j.PointedAt)
	}
	if err := head.print(out); err != nil {
		return err
	}
	var positions, states, segments, logs, flights table
	positions.add("PARTITION", "OFFSET")
	for _, p := range j.Positions {
		positions.add(fmt.Sprintf("%s/%d", p.Topic, p.Partition), strconv.FormatInt(p.Offset, 10))
	}
	states.add(stateHeader...)
	for _, i := range s.States() {
		states.add(stateCells(i)...)
	}
	segments.add("SEGMENT", "SIZE", "ENTRIES", "DELETED", "KEY-GROUPS", "CHECKPOINTS")
	for _, r := range m.Segments {
		name := r.Object
		if r.Inline() {
			name += fmt.Sprintf("@%d", r.Offset)
		}
		segments.add(name, size(r.Length), strconv.FormatInt(r.Entries, 10), strconv.FormatInt(r.Tombstones, 10),
			span(int64(r.MinKG), int64(r.MaxKG)), span(r.FirstCheckpoint, r.LastCheckpoint))
	}
	logs.add("SINK", "LOGS", "SIZE", "CHECKPOINTS")
	for _, s := range m.Logs {
		if n := len(s.Logs); n > 0 {
			var bytes int64
			var count int
			for _, l := range s.Logs {
				of, _, _ := l.Span()
				bytes, count = bytes+l.Length, count+of
			}
			_, first, _ := s.Logs[0].Span()
			logs.add(s.Operator, strconv.Itoa(count), size(bytes), span(max(first, s.From), s.Logs[n-1].Checkpoint))
		}
	}
	flights.add("IN FLIGHT TO", "RECORDS", "SIZE", "KEY-GROUPS")
	for _, f := range m.InFlight {
		groups := span(int64(f.MinKG), int64(f.MaxKG))
		if f.Broadcast() {
			groups = "all"
		}
		flights.add(f.Stage, strconv.FormatInt(f.Records, 10), size(f.Length), groups)
	}
	for _, t := range []table{positions, states, segments, logs, flights} {
		if len(t.rows) == 1 {
			continue
		}
		fmt.Fprintln(out)
		if err := t.print(out); err != nil {
			return err
		}
	}
	return nil
}

// span is a range of which both ends count.
func span(lo, hi int64) string {
	if lo == hi {
		return strconv.FormatInt(lo, 10)
	}
	return fmt.Sprintf("%d-%d", lo, hi)
}

func argOr(args []string, or string) string {
	if len(args) == 0 {
		return or
	}
	return args[0]
}

func checkpointVerifyCommand() *cobra.Command {
	var f storeFlags
	cmd := &cobra.Command{
		Use:   "verify [CHECKPOINT]",
		Short: "Read everything that a checkpoint or savepoint refers to and check it",
		Long: `Verify reads every byte that a checkpoint needs and compares it with the checksums
in its manifest. The exit status is 0 only if all is as it was written. It only
reads, and may run beside the app.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			store, err := f.open()
			if err != nil {
				return err
			}
			s, err := f.snapshot(cmd, store, argOr(args, offline.Latest))
			if err != nil {
				return err
			}
			p := newProgress(cmd.ErrOrStderr(), "verify")
			defer p.close()
			err = s.Verify(cmd.Context(), p.copied)
			p.close()
			if cmd.Context().Err() != nil {
				return err
			}
			i := s.Info()
			if f.json() {
				found := map[string]any{"checkpoint": i.Checkpoint, "segments": i.Segments, "bytes": i.Bytes, "sound": err == nil}
				if err != nil {
					found["error"] = err.Error()
				}
				return errors.Join(printJSON(cmd.OutOrStdout(), found), err)
			}
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%v is sound: %s, %s\n", s, plural(int64(i.Segments), "segment"), size(i.Bytes))
			return err
		},
	}
	f.add(cmd.Flags())
	return cmd
}
