package checkpoint

import (
	"bytes"
	"context"
	"fmt"
	"slices"

	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/state/segment"
)

// Merging keeps the chain short. It takes adjacent segments only, because their
// order says which value is the newest, and of about one size, so that a byte is
// written again only as often as the state grows by the fan-in.
//
// The level of a segment says how often the fan-in fits into its size. Where a small
// segment stands before a larger, newer one it counts as being on that one's level:
// so levels never rise along the chain, segments of one level are adjacent, and no
// small one is stuck between large ones for ever. With the fan-in F at most F-1 of
// each level are left when merging has caught up, and the number of levels is the
// logarithm of the state's size.
//
// A merge holds its inputs and its result in memory. That is cheap on the low levels,
// and on the highest one about twice the compressed state of the app, but a merge
// there is rarer by the fan-in than one on the level below.
//
// The result goes into the next manifest in place of its inputs. Only the committer
// changes the chain otherwise, and only at its newer end, so the inputs are still
// there, side by side. A crash in between leaves an object that no manifest names;
// the next incarnation collects it.

// mergeState is guarded by Writer.mu.
type mergeState struct {
	wanted bool
	inputs []SegmentRef // being merged, or merged and not yet replaced in base
	done   bool         // the merge of inputs is complete
	output []SegmentRef // one, or none if all that was in them is deleted
	made   int          // objects made by this incarnation

	failures int // in a row
	skip     int // commits to let pass before the next try
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

// pickMerge returns the range [lo, hi) of the chain to merge: the newest, and with
// that the cheapest level that has fanIn segments.
func pickMerge(chain []SegmentRef, fanIn int) (lo, hi int, ok bool) {
	hi, top := len(chain), 0
	for lo = len(chain); lo > 0; lo-- {
		l := max(top, level(chain[lo-1].Length, fanIn))
		if l > top {
			if hi-lo >= fanIn {
				return lo, hi, true
			}
			hi, top = lo, l
		}
	}
	return 0, hi, hi >= fanIn
}

// chain returns the segments of base with the result of the merge in place of its
// inputs. It is called with w.mu held.
func (w *Writer) chain() []SegmentRef {
	if w.base == nil {
		return nil
	}
	chain := slices.Clone(w.base.Segments)
	if at, ok := w.mergedAt(); ok {
		chain = slices.Replace(chain, at, at+len(w.merge.inputs), w.merge.output...)
	}
	return chain
}

// mergedAt returns where in base the inputs of a complete merge stand.
func (w *Writer) mergedAt() (int, bool) {
	in := w.merge.inputs
	if !w.merge.done || w.base == nil {
		return 0, false
	}
	at := slices.Index(w.base.Segments, in[0])
	if at < 0 || at+len(in) > len(w.base.Segments) || !slices.Equal(w.base.Segments[at:at+len(in)], in) {
		return 0, false
	}
	return at, true
}

// settleMerge forgets a merge whose inputs the base no longer names: its result has
// taken their place. It is called with w.mu held.
func (w *Writer) settleMerge() {
	if !w.merge.done {
		return
	}
	if _, ok := w.mergedAt(); ok {
		return
	}
	for _, s := range w.merge.output {
		if !slices.Contains(w.base.Segments, s) {
			w.collect.garbage[s.Object] = s.LastCheckpoint
		}
	}
	w.merge.inputs, w.merge.output, w.merge.done = nil, nil, false
}

func (w *Writer) runMerger() { w.background(&w.merge.wanted, w.mergeOnce) }

func (w *Writer) mergeOnce(ctx context.Context) {
	w.mu.Lock()
	if w.merge.skip > 0 {
		w.merge.skip--
		w.mu.Unlock()
		return
	}
	lo, hi, ok := pickMerge(w.base.Segments, w.cfg.MergeFanIn)
	if !ok || w.merge.done {
		w.mu.Unlock()
		return
	}
	inputs := slices.Clone(w.base.Segments[lo:hi])
	w.merge.inputs = inputs
	name := mergedObject(w.named(), w.merge.made)
	w.merge.made++
	w.mu.Unlock()

	start := w.cfg.Now()
	output, err := w.mergeSegments(ctx, name, inputs, lo == 0)

	w.mu.Lock()
	if err != nil {
		w.merge.inputs = nil
		w.merge.failures++
		w.merge.skip = min(1<<min(w.merge.failures, 30), maxMergeSkip)
	} else {
		w.merge.failures = 0
		w.merge.output, w.merge.done = output, true
	}
	w.mu.Unlock()
	if ctx.Err() != nil || w.cfg.Listener.Merged == nil {
		return
	}
	info := MergeInfo{App: w.cfg.App, Segments: len(inputs), Took: w.cfg.Now().Sub(start), Err: err}
	for _, s := range inputs {
		info.Bytes += s.Length
	}
	for _, s := range output {
		info.Written += s.Length
	}
	w.cfg.Listener.Merged(info)
}

func (w *Writer) mergeSegments(ctx context.Context, name string, inputs []SegmentRef, oldest bool) ([]SegmentRef, error) {
	readers, err := openSegments(ctx, w.cfg.Store, inputs)
	if err != nil {
		return nil, fmt.Errorf("merge segments: %w", err)
	}
	var buf bytes.Buffer
	info, err := segment.Merge(&buf, oldest, readers...)
	if err != nil {
		return nil, err
	}
	if info.Empty() {
		return nil, nil
	}
	id, _, _ := parseObject(name)
	if err := w.put(ctx, id, object{name, buf.Bytes()}); err != nil {
		return nil, fmt.Errorf("merge segments: %w", err)
	}
	crashpoint.Hit(crashpoint.InMerge)
	out := SegmentRef{
		Object: name, Length: info.Bytes, CRC32C: info.CRC32C, Entries: info.Entries, Tombstones: info.Tombstones,
		MinKG: info.MinKG, MaxKG: info.MaxKG, FirstCheckpoint: inputs[0].FirstCheckpoint, LastCheckpoint: inputs[0].LastCheckpoint,
	}
	for _, s := range inputs {
		out.FirstCheckpoint = min(out.FirstCheckpoint, s.FirstCheckpoint)
		out.LastCheckpoint = max(out.LastCheckpoint, s.LastCheckpoint)
	}
	return []SegmentRef{out}, nil
}
