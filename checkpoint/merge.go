package checkpoint

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/state/segment"
)

// Merging keeps the chain short. It works on stacks: the segments over one key-group,
// oldest first. It takes neighbours of a stack only, because their order says which
// value is the newest, and of about one size, so that a byte is written again only as
// often as the state grows by the fan-in.
//
// The level of a segment says how often the fan-in fits into its size; a piece counts
// as the whole run that it is a piece of. Where a small segment stands before a larger,
// newer one it counts as being on that one's level: so levels never rise along a stack,
// segments of one level are neighbours, and no small one is stuck between large ones for
// ever. With the fan-in F at most F-1 of each level are left when merging has caught up,
// and the number of levels is the logarithm of the state's size.
//
// Keys that are written again and again make the largest level many times as large as the
// state. So it is merged before it has F segments if what lies over the oldest one is
// maxOverlay times as large. That writes a byte at most once more.
//
// The result is cut into pieces of about Config.MergeTarget bytes. The key-groups are
// divided into a power of two of ranges of equal size, as many as it takes, and no piece
// crosses the border of one. The ranges of a larger level divide those of a smaller one,
// so what has to be merged together ends at the borders of the coarser one: a merge
// rewrites the pieces over one range, not the level, and ranges are merged at different
// times. Borders at arbitrary keys would interlock: a piece overlaps two of the next
// level, each of which overlaps two of the one before, and so on through the whole state.
//
// Inputs are read as streams and a piece is written at a time, so a merge takes memory
// for one piece and a few chunks of each input, however large the state is.
//
// Two merges may run at once, one of them small: a merge of large segments takes long,
// and while it runs, each epoch adds a segment.
//
// The result goes into the next manifest in place of its inputs. Only the committer
// changes the chain otherwise, and only at its newer end, so the inputs are still there,
// in their order. A crash in between leaves objects that no manifest names; the next
// incarnation collects them. So does [Collect], beside a running writer: that is why a
// result is given up that was not named within half the grace period (see collect.go).

// mergeState is guarded by Writer.mu.
type mergeState struct {
	lanes [2]lane
	// merges are under way, or complete and not yet replaced in base. No two have an
	// input in common.
	merges []*merge
	made   int // objects made by this incarnation
	limit  limiter
}

// lane does merges of one kind, one after the other.
type lane struct {
	wanted   bool
	running  bool
	behind   bool // so far that the budget no longer counts
	failures int  // in a row
	skip     int  // commits to let pass before the next try
}

const (
	smallMerges = iota // of up to smallMergeTargets times the target size
	largeMerges
)

const smallMergeTargets = 2

type merge struct {
	inputs []SegmentRef
	names  []string     // objects that it wrote, or is about to write
	begun  time.Time    // when it wrote the first
	done   bool         // output is complete
	output []SegmentRef // none if all that was in the inputs is deleted
}

// levelBase is the size in bytes that separates the lowest two levels: what rides
// inline by default.
const levelBase = DefaultInlineLimit

// maxMergeSkip bounds how many commits a merge that keeps failing waits.
const maxMergeSkip = 1024

func level(bytes int64, fanIn int) int {
	l := 0
	for limit := int64(levelBase); bytes > limit && limit < 1<<60/int64(fanIn); limit *= int64(fanIn) {
		l++
	}
	return l
}

// chain returns the segments of base with the results of merges in place of their
// inputs. It is called with w.mu held.
func (w *Writer) chain() []SegmentRef {
	if w.base == nil {
		return nil
	}
	w.dropStaleMerges()
	chain := slices.Clone(w.base.Segments)
	for _, m := range w.merge.merges {
		if m.done {
			chain = m.apply(chain)
		}
	}
	return chain
}

// apply puts the output in the place of the oldest input.
func (m *merge) apply(chain []SegmentRef) []SegmentRef {
	if !m.appliesTo(chain) {
		return chain
	}
	at := slices.Index(chain, m.inputs[0])
	chain = slices.DeleteFunc(chain, func(s SegmentRef) bool { return slices.Contains(m.inputs, s) })
	return slices.Insert(chain, at, m.output...)
}

func (m *merge) appliesTo(chain []SegmentRef) bool {
	for _, s := range m.inputs {
		if !slices.Contains(chain, s) {
			return false
		}
	}
	return true
}

// dropStaleMerges gives up results that were not named for so long that somebody who
// collects garbage beside us may have taken them for it. It is called with w.mu held.
func (w *Writer) dropStaleMerges() {
	w.merge.merges = slices.DeleteFunc(w.merge.merges, func(m *merge) bool {
		if !m.done || m.begun.IsZero() || w.cfg.Now().Round(0).Sub(m.begun) < w.cfg.Grace/2 {
			return false
		}
		w.forget(m)
		return true
	})
}

// forget makes garbage of what a merge wrote; what a manifest names stays in use. It is
// called with w.mu held.
func (w *Writer) forget(m *merge) {
	for _, name := range m.names {
		if id, _, ok := parseObject(name); ok {
			w.collect.garbage[name] = id
		}
	}
}

// settleMerges forgets merges whose inputs the base no longer names: their results have
// taken their place. It is called with w.mu held.
func (w *Writer) settleMerges() {
	w.merge.merges = slices.DeleteFunc(w.merge.merges, func(m *merge) bool {
		if !m.done || m.appliesTo(w.base.Segments) {
			return false
		}
		w.forget(m)
		return true
	})
}

// wantMerges wakes the mergers. It is called with w.mu held, after a commit.
func (w *Writer) wantMerges() {
	for i := range w.merge.lanes {
		l := &w.merge.lanes[i]
		if l.skip > 0 {
			l.skip--
			continue
		}
		l.wanted = true
	}
}

func (w *Writer) runMerger(kind int) {
	var buffer bytes.Buffer // for the pieces of all its merges
	w.background(&w.merge.lanes[kind].wanted, func(ctx context.Context) {
		for ctx.Err() == nil && w.mergeOnce(ctx, kind, &buffer) {
		}
	})
}

// share returns how much of a core a merge may take now.
func (w *Writer) share() float64 {
	w.mu.Lock()
	defer w.mu.Unlock()
	running := 0.0
	for _, l := range w.merge.lanes {
		if l.behind {
			return 1 // a chain that grows costs more than the merging that it needs
		}
		if l.running {
			running++
		}
	}
	return w.cfg.MergeCPU / max(running, 1)
}

// behindFactor times the fan-in is how many segments of one level, one over the other,
// mean that merging is behind.
const behindFactor = 2

// mergeOnce does one merge and tells whether there may be another to do.
func (w *Writer) mergeOnce(ctx context.Context, kind int, buffer *bytes.Buffer) bool {
	least, limit := int64(-1), smallMergeTargets*w.cfg.MergeTarget
	if kind == largeMerges {
		least, limit = limit, 1<<62
	}
	w.mu.Lock()
	busy := map[segmentID]bool{}
	for _, m := range w.merge.merges {
		for _, s := range m.inputs {
			busy[s.id()] = true
		}
	}
	plan, ok := pickMerge(w.base.Segments, w.cfg.KeyGroups, busy, w.cfg.MergeFanIn, w.cfg.MergeTarget, least, limit)
	l := &w.merge.lanes[kind]
	l.behind = ok && plan.full >= behindFactor*w.cfg.MergeFanIn
	if !ok {
		w.mu.Unlock()
		return false
	}
	m := &merge{}
	for _, at := range plan.inputs {
		m.inputs = append(m.inputs, w.base.Segments[at])
	}
	watermark, spared := w.base.Watermark, Spared(w.base.States)
	w.merge.merges = append(w.merge.merges, m)
	l.running = true
	w.mu.Unlock()

	start := w.cfg.Now()
	info := event.Merged{App: w.cfg.App, Segments: len(m.inputs), Bytes: plan.bytes}
	output, err := w.mergeSegments(ctx, m, plan, watermark, spared, &info, buffer)
	if err != nil {
		*buffer = bytes.Buffer{} // a put that hangs may still be reading the old one
	}

	w.mu.Lock()
	l.running = false
	if err != nil {
		w.merge.merges = slices.DeleteFunc(w.merge.merges, func(o *merge) bool { return o == m })
		w.forget(m)
		l.failures++
		l.skip = min(1<<min(l.failures, 30), maxMergeSkip)
	} else {
		l.failures = 0
		m.output, m.done = output, true
	}
	w.mu.Unlock()
	if ctx.Err() == nil && w.cfg.Listener.Merged != nil {
		info.Took, info.Err, info.Pieces = w.cfg.Now().Sub(start), err, len(output)
		w.cfg.Listener.Merged(info)
	}
	return err == nil
}

// shardsFor returns into how many ranges the result of a merge is cut.
func (w *Writer) shardsFor(m *merge, levels [][]SegmentRef) (coarse, fine int) {
	coarse = 1 << 16
	var largest, sum int64
	for _, s := range m.inputs {
		coarse = min(coarse, max(s.Shards, 1))
	}
	for _, l := range levels {
		var n int64
		for _, s := range l {
			n += s.Length
		}
		largest = max(largest, n)
		sum += n
	}
	// How many keys the inputs have in common nobody knows.
	estimate := largest + (sum-largest)/2
	return coarse, coarse * shardsOf(estimate, w.cfg.MergeTarget, w.cfg.KeyGroups/coarse)
}

// shardsOf returns the power of two, at most limit, of pieces that bytes make.
func shardsOf(bytes, target int64, limit int) int {
	n := 1
	for 2*n <= limit && bytes/int64(n) > target {
		n *= 2
	}
	return n
}

func (w *Writer) mergeSegments(ctx context.Context, m *merge, plan mergePlan, watermark int64, spared map[uint16]segment.Spans, info *event.Merged, buffer *bytes.Buffer) ([]SegmentRef, error) {
	levels := levelsOf(m.inputs)
	coarse, fine := w.shardsFor(m, levels)
	first, last := m.inputs[0].FirstCheckpoint, m.inputs[0].LastCheckpoint
	for _, s := range m.inputs {
		first, last = min(first, s.FirstCheckpoint), max(last, s.LastCheckpoint)
	}
	p := newPacer(ctx, w.share, &w.merge.limit)
	o := newOpener(ctx, w.cfg.Store, p)
	defer o.close()
	// What grows by doubling is cleared and copied as often.
	buffer.Reset()
	buffer.Grow(int(min(plan.bytes, w.cfg.MergeTarget*5/4)))
	var output []SegmentRef
	err := segment.MergeLevels(segment.MergeOptions{
		Base: plan.base, Processing: w.cfg.Now().UnixMilli(), Event: watermark, Spared: spared,
		KeyGroups: w.cfg.KeyGroups, Shards: fine, TargetBytes: w.cfg.MergeTarget, Pace: p.work, Buffer: buffer, BloomBits: w.cfg.BloomBits,
	}, func(piece segment.Merged, data []byte) error {
		w.mu.Lock()
		name := mergedObject(w.named(), w.merge.made)
		w.merge.made++
		m.names = append(m.names, name)
		if m.begun.IsZero() {
			// Without the monotonic clock, which stands still while a machine sleeps.
			m.begun = w.cfg.Now().Round(0)
		}
		id := w.baseRef.Checkpoint
		w.mu.Unlock()
		begin := p.pause()
		err := w.put(ctx, id, object{name, data})
		p.resume(begin)
		if err != nil {
			if errors.Is(err, ErrExists) { // somebody else's object
				w.mu.Lock()
				m.names = slices.DeleteFunc(m.names, func(n string) bool { return n == name })
				w.mu.Unlock()
			}
			return err
		}
		p.transferred(ctx, piece.Bytes)
		crashpoint.Hit(crashpoint.InMerge)
		info.Written += piece.Bytes
		info.Expired += piece.Expired
		s := pieceRef(name, piece)
		s.FirstCheckpoint, s.LastCheckpoint, s.Base = first, last, plan.base
		output = append(output, s)
		return nil
	}, o.levels(levels)...)
	if err != nil {
		return nil, fmt.Errorf("merge segments: %w", err)
	}
	if len(output) > 1 || coarse > 1 {
		run := info.Written
		if coarse > 1 {
			run = run * int64(w.cfg.KeyGroups) / int64(plan.hi-plan.lo)
		}
		markRun(output, run, fine)
	}
	return output, nil
}

// markRun says of pieces which run they are of.
func markRun(pieces []SegmentRef, run int64, shards int) {
	for i := range pieces {
		pieces[i].Run = run
		if shards > 1 {
			pieces[i].Shards = shards
		}
	}
}

// pieceRef returns the reference to a piece that was written as an object.
func pieceRef(name string, p segment.Merged) SegmentRef {
	return SegmentRef{
		Object: name, Length: p.Bytes, CRC32C: p.CRC32C, Entries: p.Entries, Tombstones: p.Tombstones,
		MinKG: p.MinKG, MaxKG: p.MaxKG, MinKey: hex.EncodeToString(p.MinKey), MaxKey: hex.EncodeToString(p.MaxKey),
	}
}
