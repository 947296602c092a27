package checkpoint

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"maps"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/weirstream/weir/event"
	"github.com/weirstream/weir/internal/crashpoint"
	"github.com/weirstream/weir/internal/guard"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

const (
	// DefaultRetain is how many committed checkpoints are kept.
	DefaultRetain = 3
	// DefaultInlineLimit is the size in bytes up to which a segment rides in its
	// manifest: a second object costs more than these bytes do.
	DefaultInlineLimit = 64 << 10
	// DefaultMergeFanIn is how many segments of about one size become one.
	DefaultMergeFanIn = 64
	// DefaultMergeTarget is about how many bytes a piece of a merged level has: large
	// enough that a manifest names few, small enough that a merge touches little, and
	// that the one that a merge holds in memory doesn't matter.
	DefaultMergeTarget = 32 << 20
	// DefaultBloomBits is how many bits the filter of a segment has for each key. With more
	// than MaxBloomBits hardly any look would be in vain.
	DefaultBloomBits = segment.DefaultBloomBits
	MaxBloomBits     = 32
	// DefaultGrace is how old an object must be before somebody who doesn't know its
	// writer calls it garbage.
	DefaultGrace = time.Hour
	// DefaultPackLogs is how many small logs of a sink become one pack: few enough that a
	// manifest stays small, and many enough that packs are seldom written.
	DefaultPackLogs = 64
)

// DefaultMergeCPU is the share of one core that merging may take while it keeps up: an
// eighth of the cores that Go may use, at least half of one, and not more than the two
// that its two goroutines can use. 50,000 changed keys of 100 bytes in each epoch of 100 ms
// need about half of one.
func DefaultMergeCPU() float64 { return max(0.5, min(float64(runtime.GOMAXPROCS(0))/8, 2)) }

// Config says what a Writer works on.
type Config struct {
	Store     Store
	App       string
	Instance  string
	KeyGroups int

	// Base is the manifest that was restored and BaseRef the reference to it; both
	// are zero if there was none.
	Base    *Manifest
	BaseRef offsets.ManifestRef
	// Spare is for a base that is not committed yet, such as a savepoint that was adopted:
	// until the writer has committed something, checkpoints of this id and lower ones are
	// left alone, because they may be what somebody goes back to.
	Spare int64
	// Lineage is that of the checkpoints to come, from [NewLineage], if they are to be one
	// of their own although there is a base: where a job starts from a savepoint, or where
	// a person chose the positions. Default that of the base; a new one if there is none.
	Lineage string
	// Incarnation distinguishes this writer's objects from those of every other
	// that tried the same checkpoint ids: a random number.
	Incarnation uint32
	// TopicIDs are those of the input topics, by name; those that are unknown are left out.
	TopicIDs map[string]TopicID

	Retain      int   // committed checkpoints to keep; default DefaultRetain
	InlineLimit int64 // bytes; default DefaultInlineLimit, negative: never inline
	MergeFanIn  int   // at least 2; default DefaultMergeFanIn

	// BloomBits is how many bits the filter of a segment has for each key; default
	// DefaultBloomBits.
	BloomBits int

	MergeTarget int64 // bytes of a piece; default DefaultMergeTarget
	// MergeCPU is the share of one core that merging may take; 2 or more is all that its two
	// merges can use. Merging that has fallen behind, by a second merge where one is due, takes all
	// of one. Default
	// DefaultMergeCPU.
	MergeCPU float64
	// MergeBandwidth bounds the bytes a second that merging reads and writes; 0 doesn't.
	MergeBandwidth int64

	PackLogs int // small logs of a sink that become one object; at least 2, default DefaultPackLogs

	// Grace is how long [Collect] of another process leaves objects alone that it finds
	// no use for. A result of merging that no checkpoint named within half of it is
	// given up, so it must be the same for both. Default DefaultGrace.
	Grace time.Duration
	// Pinned returns the names of objects that are not to be deleted, whatever
	// retention says, because a local store reads them in place. Nil is none. It is
	// called from the writer's goroutines.
	Pinned func() []string

	Listener Listener
	Now      func() time.Time // default time.Now
}

// Listener hears of the work in the background. Functions may be nil and are called
// from the writer's goroutines.
type Listener struct {
	Collected func(event.Collected)
	Merged    func(event.Merged)
}

// Snapshot is what a barrier cut.
type Snapshot struct {
	Checkpoint int64 // higher than any before
	Positions  map[offsets.Partition]offsets.Position
	// Watermark is the event time by which entries have expired for all who could see them,
	// in milliseconds since 1970; NoWatermark if there is none.
	Watermark int64
	// EventTime is where the watermarks stood.
	EventTime EventTime
	States    []StateInfo
	// Runs are the changes since the last Persist, oldest first where keys overlap.
	// They belong to the writer from the call on, whatever it returns: it releases
	// them once they are part of a committed checkpoint.
	Runs  []segment.Run
	Sinks map[string]json.RawMessage
	// Logs is what the writers of write-ahead sinks logged since the last Persist, those of
	// one sink in the order in which they are to be read. The bytes must not change any
	// more. They belong to the writer as the runs do.
	Logs []LogPart
	// Keep says for each write-ahead sink, by operator ID, which logs of the base it
	// needs: those of that checkpoint and later ones; or KeepNone. A sink that isn't in it
	// keeps all.
	Keep map[string]int64
	// InFlight is what was captured for this checkpoint and for no other, those of a stage
	// in the order in which they are to be processed.
	InFlight []InFlightData
}

// Stats describes what Persist wrote.
type Stats struct {
	Entries       int64
	Tombstones    int64
	SegmentBytes  int64
	ManifestBytes int64 // an inline segment, and records in flight that are inline, included
	InFlightBytes int64 // records in flight that are an object of their own
	Inline        bool  // the segment rides in the manifest
	Segments      int   // length of the chain
	LogBytes      int64 // of logs that were written as objects of their own
	Took          time.Duration
	// Segment is the segment's bytes, nil if nothing changed. It is a Pebble table,
	// to be ingested after the commit, must not be changed, and is valid until the next
	// Persist.
	Segment []byte
	// Manifest is what was written. It must not be changed.
	Manifest *Manifest
	// Parts are the parts of the checkpoint's logs by operator ID, as ReadLog gives them.
	// They must not be changed.
	Parts map[string][][]byte
}

// maxKeptBuffer bounds the memory that is kept for the next segment, in bytes. To write a
// larger one costs so much that new memory doesn't matter.
const maxKeptBuffer = 16 << 20

// Writer makes checkpoints durable, one after the other, and keeps the store tidy.
//
// Persist and Committed are called by one goroutine, the committer. Three goroutines
// run beside it, from NewWriter until Close: two merge segments, small and large ones,
// the third deletes garbage. A Put that hangs beyond its context runs in one of its own
// until it returns.
//
// What must hold, at every instant:
//
//   - base is the last checkpoint known to be committed, and everything that it
//     refers to is in the store.
//   - runs and logs hold, oldest first, every change since base. A Persist encodes all
//     of them, so what it writes is complete whatever became of the ones before it:
//     failed, timed out, or persisted and never committed.
//   - pending is the last one persisted. Only Committed makes it base.
//   - Nothing that retained, pending or a merge refers to is deleted (collect.go).
type Writer struct {
	cfg Config

	lineage string

	mu       sync.Mutex
	cond     *sync.Cond // something below changed that a goroutine waits for
	base     *Manifest  // nil: nothing was ever committed
	baseRef  offsets.ManifestRef
	last     offsets.ManifestRef // highest checkpoint id tried
	runs     []segment.Run
	logs     []LogPart
	small    map[string]map[int64][]byte // inline logs of base that are in no pack, by sink and checkpoint
	pending  *pending
	deferred []object // writes put off because the guard is broken

	compressed float64      // bytes of the last segment for each byte of its runs; Persist's
	buffer     bytes.Buffer // for segments, one after the other; Persist's
	err        error        // misuse; every Persist returns it

	merge   mergeState
	collect collectState

	closed bool
	ctx    context.Context // of the background work
	cancel context.CancelFunc
	wg     sync.WaitGroup  // background goroutines and hanging puts
	busy   int             // pieces of background work being done
	puts   map[string]bool // objects being written
}

type pending struct {
	manifest *Manifest
	ref      offsets.ManifestRef
	objects  []object          // names only
	runs     int               // how many of Writer.runs it holds
	logs     int               // how many of Writer.logs
	small    map[string][]byte // its inline logs, by sink
}

type object struct {
	name string
	data []byte
}

// NewWriter starts a writer. Its background goroutines run until Close.
func NewWriter(cfg Config) (*Writer, error) {
	cfg.Retain = cmp.Or(cfg.Retain, DefaultRetain)
	cfg.InlineLimit = cmp.Or(cfg.InlineLimit, DefaultInlineLimit)
	cfg.MergeFanIn = cmp.Or(cfg.MergeFanIn, DefaultMergeFanIn)
	cfg.MergeTarget = cmp.Or(cfg.MergeTarget, DefaultMergeTarget)
	cfg.MergeCPU = cmp.Or(cfg.MergeCPU, DefaultMergeCPU())
	cfg.BloomBits = cmp.Or(cfg.BloomBits, DefaultBloomBits)
	cfg.Grace = cmp.Or(cfg.Grace, DefaultGrace)
	cfg.PackLogs = cmp.Or(cfg.PackLogs, DefaultPackLogs)
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	var errs []error
	if cfg.Store == nil {
		errs = append(errs, errors.New("the store is missing"))
	}
	if cfg.App == "" {
		errs = append(errs, errors.New("the app's name is missing"))
	}
	if cfg.KeyGroups < 1 {
		errs = append(errs, fmt.Errorf("%d key-groups, want at least 1", cfg.KeyGroups))
	}
	if cfg.Retain < 1 {
		errs = append(errs, fmt.Errorf("retain %d checkpoints, want at least 1", cfg.Retain))
	}
	if cfg.PackLogs < 2 {
		errs = append(errs, fmt.Errorf("packs of %d logs, want at least 2", cfg.PackLogs))
	}
	if cfg.MergeFanIn < 2 {
		errs = append(errs, fmt.Errorf("merge fan-in %d, want at least 2", cfg.MergeFanIn))
	}
	if cfg.MergeTarget < 1 || cfg.MergeCPU <= 0 || cfg.MergeBandwidth < 0 || cfg.Grace < 0 {
		errs = append(errs, fmt.Errorf("merge target %d bytes, %v of a core, %d bytes a second, grace %v: want more than nothing", cfg.MergeTarget, cfg.MergeCPU, cfg.MergeBandwidth, cfg.Grace))
	}
	if (cfg.Base == nil) != (cfg.BaseRef == offsets.ManifestRef{}) {
		errs = append(errs, errors.New("a base manifest and the reference to it come together or not at all"))
	}
	if cfg.Base != nil && cfg.Store != nil {
		errs = append(errs, cfg.Base.Check(cfg.Store, cfg.App, cfg.KeyGroups))
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("checkpoint writer: %w", err)
	}
	w := &Writer{cfg: cfg, base: cfg.Base, baseRef: cfg.BaseRef, last: cfg.BaseRef}
	if w.lineage = cfg.Lineage; w.lineage == "" && cfg.Base != nil {
		w.lineage = cfg.Base.Lineage
	}
	if w.lineage == "" {
		w.lineage = NewLineage()
	}
	w.merge.limit.bytesPerSecond = cfg.MergeBandwidth
	w.cond = sync.NewCond(&w.mu)
	w.ctx, w.cancel = context.WithCancel(context.Background())
	w.collect.garbage, w.puts = map[string]int64{}, map[string]bool{}
	if w.base != nil {
		w.collect.retained = []retained{{w.base, w.baseRef}}
		w.collect.recover = true
		w.collect.wanted = true
	}
	w.wg.Go(func() { w.runMerger(smallMerges) })
	w.wg.Go(func() { w.runMerger(largeMerges) })
	w.wg.Go(w.runCollector)
	return w, nil
}

// NewLineage returns a lineage that no checkpoint has.
func NewLineage() string {
	var id [8]byte
	_, _ = rand.Read(id[:]) // never fails
	return hex.EncodeToString(id[:])
}

// Lineage returns the lineage of the checkpoints that the writer makes.
func (w *Writer) Lineage() string { return w.lineage }

// Base returns the last checkpoint known to be committed, nil and zero if none is.
func (w *Writer) Base() (*Manifest, offsets.ManifestRef) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.base, w.baseRef
}

// Persist makes a checkpoint durable: first its segment and its logs, then its manifest. The
// reference that it returns may be committed.
//
// After an error nothing was lost: runs and logs go into the next Persist, which needs a
// higher checkpoint id. Errors are *StoreError where the store failed or ctx ended.
func (w *Writer) Persist(ctx context.Context, s Snapshot) (offsets.ManifestRef, Stats, error) {
	ref, stats, err := w.persist(ctx, s)
	if err != nil || w.buffer.Cap() > maxKeptBuffer {
		w.buffer = bytes.Buffer{} // after an error, a put that hangs may still be reading the old one
	}
	if err != nil {
		return offsets.ManifestRef{}, Stats{}, fmt.Errorf("persist checkpoint %d: %w", s.Checkpoint, err)
	}
	return ref, stats, nil
}

func (w *Writer) persist(ctx context.Context, s Snapshot) (offsets.ManifestRef, Stats, error) {
	start := w.cfg.Now()
	none := offsets.ManifestRef{}
	w.mu.Lock()
	fresh := 0 // runs of this checkpoint
	for _, r := range s.Runs {
		if r.Len() > 0 {
			fresh++
			w.runs = append(w.runs, r)
		} else {
			r.Release()
		}
	}
	w.logs = append(w.logs, s.Logs...)
	err := w.err
	switch {
	case w.closed:
		err = errors.New("the writer is closed")
	case err == nil && s.Checkpoint <= w.last.Checkpoint:
		err = &SupersededError{Checkpoint: s.Checkpoint, Last: w.last}
	}
	if err != nil {
		w.mu.Unlock()
		return none, Stats{}, err
	}
	w.last = offsets.ManifestRef{Checkpoint: s.Checkpoint, Incarnation: w.cfg.Incarnation}
	w.abandonPending()
	if guard.Broken(guard.CarryOver) {
		w.runs = slices.Clone(w.runs[len(w.runs)-fresh:])
	}
	// Runs and logs are only appended to, and only by this goroutine.
	runs, logs := slices.Clip(w.runs), slices.Clip(w.logs)
	w.mu.Unlock()

	crashpoint.Hit(crashpoint.BeforeSegment)
	var data []byte
	var info segment.Info
	if len(runs) > 0 {
		raw := 0
		for _, r := range runs {
			raw += r.Bytes()
		}
		// Segments of one job compress alike, and a buffer that grows is copied and cleared
		// as often as it doubles.
		w.buffer.Reset()
		w.buffer.Grow(int(float64(raw)*w.compressed*5/4) + bytes.MinRead)
		if info, err = segment.WriteFiltered(&w.buffer, w.cfg.BloomBits, runs...); err != nil {
			return none, Stats{}, err
		}
		if data = w.buffer.Bytes(); raw > 0 {
			w.compressed = min(float64(len(data))/float64(raw), 1)
		}
	}
	flights, flying := lay(s.InFlight, "", 0)
	inline := data != nil && int64(len(data)) <= w.cfg.InlineLimit
	flyInline := len(flying) == 0 || int64(len(flying)) <= w.cfg.InlineLimit
	var written []object
	if data != nil && !inline {
		o := object{segmentObject(w.last), data}
		if err := w.put(ctx, s.Checkpoint, o); err != nil {
			return none, Stats{}, err
		}
		written = append(written, object{name: o.name})
	}
	if !flyInline {
		o := object{inFlightObject(w.last), flying}
		if err := w.put(ctx, s.Checkpoint, o); err != nil {
			w.discard(s.Checkpoint, written...)
			return none, Stats{}, err
		}
		written = append(written, object{name: o.name})
		crashpoint.Hit(crashpoint.AfterInFlight)
	}
	crashpoint.Hit(crashpoint.AfterSegment)
	encodedLogs := encodeLogs(logs)
	var logBytes int64
	for i, l := range encodedLogs {
		if int64(len(l.data)) <= w.cfg.InlineLimit {
			continue
		}
		o := object{logObject(w.last, i), l.data}
		if err := w.put(ctx, s.Checkpoint, o); err != nil {
			w.discard(s.Checkpoint, written...)
			return none, Stats{}, err
		}
		written = append(written, object{name: o.name})
		logBytes += int64(len(l.data))
	}

	m := &Manifest{
		App: w.cfg.App, Instance: w.cfg.Instance, Checkpoint: s.Checkpoint, Incarnation: w.cfg.Incarnation,
		Created: start.UTC().Round(0), KeyGroups: w.cfg.KeyGroups, Lineage: w.lineage, Watermark: s.Watermark, EventTime: s.EventTime,
		Positions: s.Positions, TopicIDs: w.cfg.TopicIDs, States: s.States, Sinks: s.Sinks, InFlight: flights,
	}
	w.mu.Lock()
	m.Parent = w.baseRef
	m.Segments = w.chain()
	if w.base != nil {
		m.Logs = keptLogs(w.base.Logs, s.Keep)
	}
	packs := w.packs(m, len(encodedLogs))
	w.mu.Unlock()
	for _, o := range packs {
		if err := w.put(ctx, s.Checkpoint, o); err != nil {
			w.discard(s.Checkpoint, written...)
			return none, Stats{}, err
		}
		written = append(written, object{name: o.name})
		logBytes += int64(len(o.data))
	}
	if data != nil {
		sr := SegmentRef{
			Length: info.Bytes, CRC32C: info.CRC32C, Entries: info.Entries, Tombstones: info.Tombstones,
			MinKG: info.MinKG, MaxKG: info.MaxKG, FirstCheckpoint: s.Checkpoint, LastCheckpoint: s.Checkpoint,
		}
		if !inline {
			sr.Object = segmentObject(w.last)
		}
		m.Segments = append(m.Segments, sr)
	}
	var body []byte
	if inline {
		body = data
	}
	parts, small := map[string][][]byte{}, map[string][]byte{}
	for i, l := range encodedLogs {
		parts[l.operator] = l.parts
		lr := LogRef{
			Checkpoint: s.Checkpoint, Lineage: w.lineage, Created: m.Created.Truncate(time.Millisecond),
			Length: int64(len(l.data)), CRC32C: crc32.Checksum(l.data, castagnoli), Bytes: l.bytes,
		}
		if int64(len(l.data)) > w.cfg.InlineLimit {
			lr.Object = logObject(w.last, i)
		} else {
			lr.Offset = int64(len(body))
			small[l.operator] = l.data
			body = append(body[:len(body):len(body)], l.data...)
		}
		m.Logs = addLog(m.Logs, l.operator, lr)
	}
	for i := range m.InFlight {
		if flyInline {
			m.InFlight[i].Offset += int64(len(body))
		} else {
			m.InFlight[i].Object = inFlightObject(w.last)
		}
	}
	if flyInline && len(flying) > 0 {
		body = append(body[:len(body):len(body)], flying...)
	}
	encoded, ref, err := m.encode(body)
	if err == nil {
		crashpoint.Hit(crashpoint.BeforeManifest)
		err = w.put(ctx, s.Checkpoint, object{manifestObject(ref), encoded})
	}
	if err != nil {
		w.discard(s.Checkpoint, written...)
		return none, Stats{}, err
	}
	crashpoint.Hit(crashpoint.AfterManifest)

	w.mu.Lock()
	w.pending = &pending{m, ref, append(written, object{name: manifestObject(ref)}), len(runs), len(logs), small}
	w.mu.Unlock()
	return ref, Stats{
		Entries: info.Entries, Tombstones: info.Tombstones, SegmentBytes: info.Bytes, ManifestBytes: int64(len(encoded)),
		InFlightBytes: flownBytes(flyInline, flying), Inline: inline, Segments: len(m.Segments), Took: w.cfg.Now().Sub(start), Segment: data, Manifest: m,
		LogBytes: logBytes, Parts: parts,
	}, nil
}

// packs puts small logs of m together where there are enough, and returns the objects to
// write. n is how many objects for logs the checkpoint has already. It is called with w.mu
// held.
func (w *Writer) packs(m *Manifest, n int) (objects []object) {
	for i := range m.Logs {
		s := &m.Logs[i]
		small := w.small[s.Operator]
		lo, hi, ok := packable(s.Logs, small, w.cfg.PackLogs)
		if !ok {
			continue
		}
		var data [][]byte
		for _, l := range s.Logs[lo:hi] {
			data = append(data, small[l.Checkpoint])
		}
		b, pack := encodePack(s.Logs[lo:hi], data)
		pack.Object = logObject(w.last, n+len(objects))
		objects = append(objects, object{pack.Object, b})
		s.Logs = slices.Replace(s.Logs, lo, hi, pack)
	}
	return objects
}

// shortRow is the part of a pack that a row of small logs must be to become one although it
// grows no more: where large logs are frequent no row gets long, and a receiver that is away
// for an hour would have each of them named, and its manifest kept.
const shortRow = 8

// packable returns the first n or more small logs that follow each other, logs[lo:hi]. What
// is in a pack, or too large for one, ends such a row.
func packable(logs []LogRef, small map[int64][]byte, n int) (lo, hi int, ok bool) {
	for hi := range len(logs) + 1 {
		if hi < len(logs) && !logs[hi].Pack() && small[logs[hi].Checkpoint] != nil {
			continue
		}
		if hi-lo >= n || hi < len(logs) && hi-lo >= max(2, n/shortRow) {
			return lo, hi, true
		}
		lo = hi + 1
	}
	return 0, 0, false
}

// keepSmall keeps the bytes of the small logs of a checkpoint that was committed, to pack
// them later, and forgets those that are packed or not listed any more. It is called with
// w.mu held.
func (w *Writer) keepSmall(p *pending) {
	kept := map[string]map[int64][]byte{}
	for _, s := range p.manifest.Logs {
		of := map[int64][]byte{}
		for _, l := range s.Logs {
			if l.Pack() {
				continue
			}
			if b := w.small[s.Operator][l.Checkpoint]; b != nil {
				of[l.Checkpoint] = b
			}
		}
		if b := p.small[s.Operator]; b != nil {
			of[p.ref.Checkpoint] = b
		}
		kept[s.Operator] = of
	}
	w.small = kept
}

// flownBytes is the size of the object that holds the records in flight.
func flownBytes(inline bool, data []byte) int64 {
	if inline {
		return 0
	}
	return int64(len(data))
}

// abandonPending forgets a checkpoint that was persisted and not committed. Its runs
// are still in w.runs; its objects become garbage. It is called with w.mu held.
func (w *Writer) abandonPending() {
	if w.pending == nil {
		return
	}
	for _, o := range w.pending.objects {
		w.collect.garbage[o.name] = w.pending.ref.Checkpoint
	}
	w.pending = nil
}

func (w *Writer) discard(id int64, objects ...object) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, o := range objects {
		w.collect.garbage[o.name] = id
	}
}

// put writes an object of checkpoint id and returns when it is durable or ctx is
// done. A store that hangs doesn't hold up the caller: the write goes on alone. An
// object that may exist although the caller was told that it doesn't is garbage,
// from the instant at which the store can no longer be about to make it.
func (w *Writer) put(ctx context.Context, id int64, o object) error {
	if guard.Broken(guard.DurableBeforeCommit) {
		w.mu.Lock()
		w.deferred = append(w.deferred, object{o.name, bytes.Clone(o.data)})
		w.mu.Unlock()
		return nil
	}
	result := make(chan error, 1)
	var left, finished bool // under w.mu
	w.mu.Lock()
	w.puts[o.name] = true
	w.mu.Unlock()
	w.wg.Go(func() {
		err := w.cfg.Store.Put(ctx, o.name, o.data)
		w.mu.Lock()
		defer w.mu.Unlock()
		finished = true
		delete(w.puts, o.name)
		// A name that was taken is somebody else's object.
		if left || err != nil && !errors.Is(err, ErrExists) {
			w.collect.garbage[o.name] = id
		}
		result <- err
	})
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if finished {
		return <-result
	}
	left = true
	return &StoreError{Op: "put", Object: o.name, Store: w.cfg.Store.String(), Err: ctx.Err()}
}

// Committed says that the commit point of checkpoint id is behind us: it becomes the
// base of the next one, its runs are released, and in the background segments are
// merged and garbage is deleted. id is that of the last successful Persist.
func (w *Writer) Committed(id int64) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return // the runs are gone, and nobody builds on the base any more
	}
	p := w.pending
	if p == nil || p.ref.Checkpoint != id {
		if id != w.baseRef.Checkpoint {
			w.err = cmp.Or(w.err, fmt.Errorf("checkpoint %d was said to be committed, but it is not the last one persisted", id))
		}
		return
	}
	w.pending = nil
	w.base, w.baseRef = p.manifest, p.ref
	for _, r := range w.runs[:p.runs] {
		r.Release()
	}
	w.runs = slices.Delete(w.runs, 0, p.runs)
	w.logs = slices.Delete(w.logs, 0, p.logs)
	w.keepSmall(p)
	w.settleMerges()
	w.retain(p.manifest, p.ref)
	w.wantMerges()
	w.collect.wanted = true
	w.cond.Broadcast()
}

// Hold keeps everything that a checkpoint refers to until release is called, for one
// who copies it while the writer goes on. It fails if the checkpoint is not pending,
// retained or held any more. It may be called from any goroutine.
func (w *Writer) Hold(ref offsets.ManifestRef) (m *Manifest, release func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.pending != nil && w.pending.ref == ref {
		m = w.pending.manifest
	}
	for _, r := range w.collect.retained {
		if r.ref == ref {
			m = r.manifest
		}
	}
	for _, r := range w.collect.held {
		if r.ref == ref {
			m = r.manifest
		}
	}
	if m == nil {
		return nil, nil, fmt.Errorf("checkpoint %d is not retained any more", ref.Checkpoint)
	}
	held := &retained{m, ref}
	w.collect.held = append(w.collect.held, held)
	return m, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		w.collect.held = slices.DeleteFunc(w.collect.held, func(r *retained) bool { return r == held })
	}, nil
}

// Close stops the background work and waits for it, and for writes that hang, until
// ctx is done. Garbage that is left is found by the next incarnation. Close doesn't
// wait for Persist: the committer has stopped.
//
// A call of the store that is deaf to its context goes on then, and the error says so. It
// does no harm to the next incarnation, also in the same process:
//
//   - What it writes has a name with the number of this incarnation, which no other uses, and
//     no manifest that anybody commits names it: it is garbage.
//   - What it reads from or into is memory that nobody else uses from then on: buffers are
//     left to it after an error, and only given back by reads that have ended.
//   - What it deletes was garbage when it was chosen, and stays it whatever others commit.
//     That is the argument of collect.go for a process that was replaced.
func (w *Writer) Close(ctx context.Context) error {
	w.mu.Lock()
	if !w.closed {
		w.closed = true
		for _, r := range w.runs {
			r.Release()
		}
		w.runs = nil
	}
	w.cancel()
	w.cond.Broadcast()
	deferred := w.deferred
	w.deferred = nil
	w.mu.Unlock()
	errs := []error{w.putDeferred(ctx, deferred)}
	done := make(chan struct{})
	go func() {
		w.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
	case <-ctx.Done():
		errs = append(errs, w.leftBehind(ctx.Err()))
	}
	return errors.Join(errs...)
}

// leftBehind says what Close did not wait for; nil if that is over by now.
func (w *Writer) leftBehind(err error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	var what []string
	if len(w.puts) > 0 {
		what = append(what, "writing "+strings.Join(slices.Sorted(maps.Keys(w.puts)), ", "))
	}
	if w.busy > 0 {
		what = append(what, "merging or collecting garbage")
	}
	if len(what) == 0 {
		return nil
	}
	return fmt.Errorf("close checkpoint writer: store %s does not answer, and is left alone while %s: %w", w.cfg.Store, strings.Join(what, " and "), err)
}

// putDeferred writes what a broken guard let through too early.
func (w *Writer) putDeferred(ctx context.Context, objects []object) error {
	var errs []error
	for _, o := range objects {
		errs = append(errs, w.cfg.Store.Put(ctx, o.name, o.data))
	}
	return errors.Join(errs...)
}

// background runs work, which is one step, whenever wanted says so, until Close.
func (w *Writer) background(wanted *bool, work func(context.Context)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		for !*wanted && !w.closed {
			w.cond.Wait()
		}
		if w.closed {
			return
		}
		*wanted = false
		w.busy++
		w.mu.Unlock()
		work(w.ctx)
		w.mu.Lock()
		w.busy--
		w.cond.Broadcast()
	}
}

// settle waits until there is no background work left to do. For tests.
func (w *Writer) settle() {
	w.mu.Lock()
	defer w.mu.Unlock()
	wanted := func() bool {
		return w.merge.lanes[smallMerges].wanted || w.merge.lanes[largeMerges].wanted || w.collect.wanted
	}
	for w.busy > 0 || wanted() && !w.closed {
		w.cond.Wait()
	}
}
