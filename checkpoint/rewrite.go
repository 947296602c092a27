package checkpoint

import (
	"cmp"
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"

	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/state/segment"
)

// RewriteOptions says how a savepoint is rewritten.
type RewriteOptions struct {
	KeyGroups int
	// TempDir is where entries are sorted; it takes about the size of the state. Default
	// os.TempDir().
	TempDir string
	// MemoryBytes is how many bytes of entries are sorted at a time. Default 64 MiB.
	MemoryBytes int
	// TargetBytes is about the size of a segment. Default DefaultMergeTarget.
	TargetBytes int64
	Progress    func(Progress) // of the reading, which is about half of the work; may be nil
}

const defaultSortBytes = 64 << 20

// RewriteSavepoint writes a savepoint anew with another key-group count: every entry goes
// to the key-group that its key has now. view and m are as from [OpenSavepoint]. Entries
// of states whose operator left the topology, of which nobody knows any more where in
// them the key is, are left out. So is the event time of key-groups, see [EventTime]. Errors
// are as with [CreateSavepoint].
func RewriteSavepoint(ctx context.Context, view Store, m *Manifest, to Store, name string, o RewriteOptions) (SavepointInfo, error) {
	info, err := rewriteSavepoint(ctx, view, m, to, name, o)
	if err != nil {
		return SavepointInfo{}, fmt.Errorf("rewrite savepoint as %s in %s: %w", name, to, err)
	}
	return info, nil
}

func rewriteSavepoint(ctx context.Context, view Store, m *Manifest, to Store, name string, o RewriteOptions) (SavepointInfo, error) {
	if o.KeyGroups < 1 || o.KeyGroups > keygroup.Max {
		return SavepointInfo{}, fmt.Errorf("%d key-groups, want 1 to %d", o.KeyGroups, keygroup.Max)
	}
	sp, err := beginSavepoint(ctx, to, name)
	if err != nil {
		return SavepointInfo{}, err
	}
	dir, err := os.MkdirTemp(o.TempDir, "weir-rewrite-")
	if err != nil {
		return SavepointInfo{}, err
	}
	defer os.RemoveAll(dir)
	runs, err := sortByKeyGroup(ctx, view, m, dir, o)
	if err != nil {
		return SavepointInfo{}, err
	}
	target := cmp.Or(o.TargetBytes, DefaultMergeTarget)
	shards := shardsOf(m.Bytes(), target, o.KeyGroups)
	err = segment.MergeLevels(segment.MergeOptions{
		Base: true, Processing: math.MinInt64, Event: math.MinInt64,
		KeyGroups: o.KeyGroups, Shards: shards, TargetBytes: target, Pace: ctx.Err,
	}, func(p segment.Merged, data []byte) error {
		if err := sp.put(ctx, p, data); err != nil {
			return err
		}
		s := &sp.segments[len(sp.segments)-1]
		s.FirstCheckpoint, s.LastCheckpoint, s.Base = m.Checkpoint, m.Checkpoint, true
		return nil
	}, runs...)
	if err != nil {
		return SavepointInfo{}, sp.giveUp(ctx, err)
	}
	if len(sp.segments) > 1 {
		var run int64
		for _, s := range sp.segments {
			run += s.Length
		}
		markRun(sp.segments, run, shards)
	}
	if err := sp.copyInFlight(ctx, view, wholeRange(m.InFlight, o.KeyGroups, m.EventTime)); err != nil {
		return SavepointInfo{}, sp.giveUp(ctx, err)
	}
	out := *m
	out.KeyGroups = o.KeyGroups
	out.EventTime.KeyGroups = nil // keys of several are together now
	if err := sp.copyLogs(ctx, view, &out); err != nil {
		return SavepointInfo{}, sp.giveUp(ctx, err)
	}
	return sp.complete(ctx, out)
}

// sortByKeyGroup writes the entries as segments in dir, each sorted by the new
// key-groups.
func sortByKeyGroup(ctx context.Context, view Store, m *Manifest, dir string, o RewriteOptions) ([]segment.Level, error) {
	keys := map[uint16]func([]byte) ([]byte, bool){}
	for _, s := range m.States {
		cut, ok := keyOfKind[s.Kind]
		if !ok {
			return nil, fmt.Errorf("state %s of operator %s is of kind %q, which this build does not know: run a newer one", s.Name, s.Operator, s.Kind)
		}
		keys[s.ID] = cut
	}
	var b segment.Builder
	var levels []segment.Level
	flush := func() error {
		run := b.Finish()
		defer run.Release()
		if run.Len() == 0 {
			return nil
		}
		file := filepath.Join(dir, fmt.Sprintf("%06d.sst", len(levels)))
		f, err := os.Create(file)
		if err != nil {
			return err
		}
		info, err := segment.Write(f, run)
		if err = cmp.Or(err, f.Close()); err != nil {
			return err
		}
		levels = append(levels, segment.Level{{MinKG: info.MinKG, MaxKG: info.MaxKG, Entries: info.Entries, Open: func() (*segment.Reader, error) {
			f, err := os.Open(file)
			if err != nil {
				return nil, err
			}
			r, err := segment.OpenAt(f, info.Bytes)
			if err != nil {
				_ = f.Close()
			}
			return r, err
		}}})
		return nil
	}
	memory := cmp.Or(o.MemoryBytes, defaultSortBytes)
	var total, done int64
	for _, s := range m.Segments {
		total += s.Entries
	}
	for e, err := range m.Scan(ctx, view, 0, m.KeyGroups) {
		if err != nil {
			return nil, err
		}
		cut, ok := keys[e.State]
		if !ok {
			return nil, fmt.Errorf("an entry of key-group %d is of state %d, which the savepoint does not describe", e.KeyGroup, e.State)
		}
		done++
		if done%segment.PaceEntries == 0 {
			report(o.Progress, Progress{Bytes: int64(float64(m.Bytes()) * float64(done) / float64(total)), BytesTotal: m.Bytes(), SegmentsTotal: len(m.Segments)})
		}
		if cut == nil {
			continue // dropped
		}
		kg := e.KeyGroup
		if key, keyed := cut(e.Key); keyed {
			if key == nil {
				return nil, fmt.Errorf("an entry of state %d in key-group %d has the key %x, which does not fit the kind of the state", e.State, e.KeyGroup, e.Key)
			}
			if want := keygroup.Of(key, m.KeyGroups); want != int(kg) {
				return nil, fmt.Errorf("an entry of state %d stands in key-group %d, its key %x belongs to %d", e.State, kg, key, want)
			}
			kg = uint16(keygroup.Of(key, o.KeyGroups))
		}
		dst := b.KeyDone(append(b.BeginPut(kg, e.State), e.Key...))
		b.ValueDone(append(dst, e.Value...))
		if b.Bytes() >= memory {
			if err := flush(); err != nil {
				return nil, err
			}
		}
	}
	return levels, flush()
}

// keyOfKind says for each kind of state how the encoded key is cut from the user key of
// an entry: nil and true if it isn't there, false if the state has no keys. No function
// at all is for states whose entries are dead.
var keyOfKind = map[string]func([]byte) ([]byte, bool){
	"value": wholeKey, "reducing": wholeKey, "aggregating": wholeKey,
	"map": escapedKey, "list": escapedKey,
	"timers": func(b []byte) ([]byte, bool) {
		if len(b) < timerTimeBytes {
			return nil, true
		}
		return b[timerTimeBytes:], true
	},
	"broadcast": func([]byte) ([]byte, bool) { return nil, false },
	"dropped":   nil,
}

const timerTimeBytes = 8

func wholeKey(b []byte) ([]byte, bool) {
	if b == nil {
		b = []byte{}
	}
	return b, true
}

func escapedKey(b []byte) ([]byte, bool) {
	key, _, ok := segment.CutEscaped(b)
	if !ok {
		return nil, true
	}
	return wholeKey(key)
}
