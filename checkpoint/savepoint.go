package checkpoint

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

// A savepoint is a checkpoint that a person asked for: named, complete in itself, and
// never deleted but by [DeleteSavepoint]. In a store it is
//
//	savepoint/<name>/seg/<attempt>-<n>.sst    its segments
//	savepoint/<name>/log/<attempt>-<n>.log    the logs of its sinks, if there are any
//	savepoint/<name>/inflight/<attempt>.rec   its records in flight, if there are any
//	savepoint/<name>/savepoint.manifest       a manifest whose objects are relative to it
//
// The manifest is written last, and only what has one is a savepoint. A crash before
// leaves segments that nothing names; another attempt at the same name uses other
// names. Nothing in it says where it lies: the directory, or the objects below the
// prefix, can be moved or copied anywhere, by any tool, and opened there.
const (
	savepointPrefix   = "savepoint/"
	savepointManifest = "savepoint.manifest"
)

// ErrSavepointExists says that the name of a savepoint is taken.
var ErrSavepointExists = errors.New("there is a savepoint of this name; choose another one, or delete it first")

// Progress says how far an operation is. Logs count as bytes only.
type Progress struct {
	Segments, SegmentsTotal int
	Bytes, BytesTotal       int64
}

// SavepointInfo describes a savepoint in a store.
type SavepointInfo struct {
	Name     string
	Complete bool // false: what an attempt left behind that failed, or is under way
	Objects  int
	Bytes    int64
	Created  time.Time // when it was completed; zero if it is not complete
}

// Linker is implemented by stores that can take an object from another store without
// its bytes coming here: by a hard link, or a copy made by the service. ok is false if
// that is not possible between these two. It is as durable as Put is, and gives
// ErrExists if the name is taken.
type Linker interface {
	Link(ctx context.Context, name string, from Store, object string) (ok bool, err error)
}

// CheckSavepointName tells what is wrong with a name for a savepoint.
func CheckSavepointName(name string) error {
	ok := name != "" && len(name) <= maxSavepointName && name[0] != '.' && name[0] != '-'
	for _, c := range name {
		ok = ok && (c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || strings.ContainsRune("._-", c))
	}
	if !ok {
		return fmt.Errorf("savepoint name %q: want 1 to %d of the characters a-z A-Z 0-9 . _ -, not beginning with . or -", name, maxSavepointName)
	}
	return nil
}

const maxSavepointName = 100

// CreateSavepoint copies a checkpoint and everything that it needs into a savepoint of
// the store to, which may be the store from. m must stay where it is until that is done:
// see [Writer.Hold]. progress may be nil. Between two directories of one file system
// segments are linked and not read: whether they are sound is for [Verify].
//
// Nothing is called a savepoint before it is complete. Errors are ErrSavepointExists,
// *MissingError, *DamagedError and *StoreError.
func CreateSavepoint(ctx context.Context, from Store, m *Manifest, to Store, name string, progress func(Progress)) (SavepointInfo, error) {
	info, err := createSavepoint(ctx, from, m, to, name, progress)
	if err != nil {
		return SavepointInfo{}, fmt.Errorf("create savepoint %s in %s: %w", name, to, err)
	}
	return info, nil
}

func createSavepoint(ctx context.Context, from Store, m *Manifest, to Store, name string, progress func(Progress)) (SavepointInfo, error) {
	sp, err := beginSavepoint(ctx, to, name)
	if err != nil {
		return SavepointInfo{}, err
	}
	p := Progress{SegmentsTotal: len(m.Segments), BytesTotal: m.Bytes() + m.LogBytes()}
	for _, s := range m.Segments {
		if err := sp.copy(ctx, from, s); err != nil {
			return SavepointInfo{}, sp.giveUp(ctx, err)
		}
		p.Segments++
		p.Bytes += s.Length
		report(progress, p)
	}
	whole := *m
	if err := sp.copyLogs(ctx, from, &whole); err != nil {
		return SavepointInfo{}, sp.giveUp(ctx, err)
	}
	p.Bytes += m.LogBytes()
	report(progress, p)
	if err := sp.copyInFlight(ctx, from, m.InFlight); err != nil {
		return SavepointInfo{}, sp.giveUp(ctx, err)
	}
	return sp.complete(ctx, whole)
}

func report(progress func(Progress), p Progress) {
	if progress != nil {
		progress(p)
	}
}

// savepointWriter makes one savepoint.
type savepointWriter struct {
	view     Store
	name     string
	attempt  string
	segments []SegmentRef // with names relative to view
	logs     []string     // names of objects, relative to view
	inFlight []InFlight   // as segments
	begun    []string     // objects that may have been written
}

// CheckSavepointFree tells whether a savepoint of that name can be begun in a store. Errors are
// those of [CheckSavepointName], ErrSavepointExists and *StoreError.
func CheckSavepointFree(ctx context.Context, to Store, name string) error {
	if err := CheckSavepointName(name); err != nil {
		return err
	}
	_, err := Sub(to, savepointPrefix+name).GetRange(ctx, savepointManifest, 0, 1)
	switch {
	case err == nil:
		return ErrSavepointExists
	case errors.Is(err, ErrNotFound):
		return nil
	}
	return err
}

func beginSavepoint(ctx context.Context, to Store, name string) (*savepointWriter, error) {
	if err := CheckSavepointFree(ctx, to, name); err != nil {
		return nil, err
	}
	var id [4]byte
	_, _ = rand.Read(id[:]) // never fails
	return &savepointWriter{view: Sub(to, savepointPrefix+name), name: name, attempt: hex.EncodeToString(id[:])}, nil
}

func (w *savepointWriter) next() string {
	return w.begin(fmt.Sprintf("%s%s-%06d%s", segmentPrefix, w.attempt, len(w.segments), segmentSuffix))
}

// begin returns the name of an object that is about to be written: it may be there whatever
// the store says.
func (w *savepointWriter) begin(object string) string {
	w.begun = append(w.begun, object)
	return object
}

// copy takes a segment of another store.
func (w *savepointWriter) copy(ctx context.Context, from Store, s SegmentRef) error {
	object := w.next()
	err := copySegment(ctx, from, s, w.view, object)
	if err == nil {
		s.Object, s.Offset = object, 0
		w.segments = append(w.segments, s)
	}
	return err
}

// copyLogs takes the logs of a manifest of another store.
func (w *savepointWriter) copyLogs(ctx context.Context, from Store, m *Manifest) error {
	return copyLogs(ctx, from, m, func(n int, data []byte) (string, error) {
		object := w.begin(fmt.Sprintf("%s%s-%06d%s", logPrefix, w.attempt, n, logSuffix))
		err := w.view.Put(ctx, object, data)
		if err == nil {
			w.logs = append(w.logs, object)
		}
		return object, err
	})
}

// copyInFlight takes the records in flight of another store.
func (w *savepointWriter) copyInFlight(ctx context.Context, from Store, refs []InFlight) (err error) {
	w.inFlight, err = copyInFlight(ctx, from, refs, w.view, w.begin(inFlightPrefix+w.attempt+inFlightSuffix))
	return err
}

// put writes a piece.
func (w *savepointWriter) put(ctx context.Context, p segment.Merged, data []byte) error {
	object := w.next()
	if err := w.view.Put(ctx, object, data); err != nil {
		return err
	}
	w.segments = append(w.segments, pieceRef(object, p))
	return nil
}

// complete writes the manifest, which makes it a savepoint.
func (w *savepointWriter) complete(ctx context.Context, m Manifest) (SavepointInfo, error) {
	m.Segments, m.InFlight, m.Parent = w.segments, w.inFlight, offsets.ManifestRef{}
	b, _, err := m.encode(nil)
	if err != nil {
		return SavepointInfo{}, w.giveUp(ctx, err)
	}
	err = w.view.Put(ctx, savepointManifest, b)
	if errors.Is(err, ErrExists) {
		return SavepointInfo{}, w.giveUp(ctx, ErrSavepointExists)
	}
	if err != nil {
		// It may be there although we were told otherwise: the segments stay.
		return SavepointInfo{}, err
	}
	if err := w.allThere(ctx); err != nil {
		_ = w.view.Delete(context.WithoutCancel(ctx), savepointManifest)
		return SavepointInfo{}, w.giveUp(ctx, err)
	}
	info := SavepointInfo{Name: w.name, Complete: true, Objects: len(w.objects()) + 1, Bytes: m.Bytes() + m.LogBytes() + int64(len(b)), Created: time.Now()}
	return info, nil
}

// allThere looks for what the manifest names: until there was one, this was nothing but what
// a crash might have left, and somebody may have removed it.
func (w *savepointWriter) allThere(ctx context.Context) error {
	listed := map[string]bool{}
	for o, err := range w.view.List(ctx, "") {
		if err != nil {
			return err
		}
		listed[o.Name] = true
	}
	for _, object := range w.objects() {
		if listed[object] {
			continue
		}
		if _, err := w.view.GetRange(ctx, object, 0, 1); errors.Is(err, ErrNotFound) {
			return fmt.Errorf("object %s is gone: somebody removed the savepoint while it was made", object)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// objects returns the names of all objects beside the manifest.
func (w *savepointWriter) objects() []string {
	names := slices.Clone(w.logs)
	for _, s := range w.segments {
		names = append(names, s.Object)
	}
	if len(w.inFlight) > 0 {
		names = append(names, w.inFlight[0].Object)
	}
	return names
}

// giveUpTime bounds how long it takes to delete what was written: the store may hang.
const giveUpTime = 10 * time.Second

// giveUp deletes what was written, as far as possible, before anything named it. The
// context may be done: that may be why.
func (w *savepointWriter) giveUp(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), giveUpTime)
	defer cancel()
	for _, object := range w.begun {
		_ = w.view.Delete(ctx, object)
	}
	return cause
}

// copySegment makes a segment an object of its own in another store, or in the same.
func copySegment(ctx context.Context, from Store, s SegmentRef, to Store, object string) error {
	if l, ok := to.(Linker); ok && !s.Inline() && s.Offset == 0 {
		done, err := l.Link(ctx, object, from, s.Object)
		if errors.Is(err, ErrNotFound) {
			return &MissingError{Object: s.Object, Store: from.String(), Err: err}
		}
		if done || err != nil {
			return err
		}
	}
	b, err := readSegment(ctx, from, s)
	if err != nil {
		return err
	}
	return to.Put(ctx, object, b)
}

// ListSavepoints returns what stands under names of savepoints, by name; what is not
// complete is among it.
func ListSavepoints(ctx context.Context, store Store) ([]SavepointInfo, error) {
	found := map[string]*SavepointInfo{}
	for o, err := range store.List(ctx, savepointPrefix) {
		if err != nil {
			return nil, fmt.Errorf("list savepoints: %w", err)
		}
		name, object, ok := strings.Cut(strings.TrimPrefix(o.Name, savepointPrefix), "/")
		if !ok || CheckSavepointName(name) != nil {
			continue
		}
		i := found[name]
		if i == nil {
			i = &SavepointInfo{Name: name}
			found[name] = i
		}
		i.Objects++
		i.Bytes += o.Size
		if object == savepointManifest {
			i.Complete, i.Created = true, o.Modified
		}
	}
	list := make([]SavepointInfo, 0, len(found))
	for _, name := range slices.Sorted(maps.Keys(found)) {
		list = append(list, *found[name])
	}
	return list, nil
}

// OpenSavepoint reads the manifest of a savepoint. Its segments are read from view, as
// with [Manifest.Scan]. With an empty name the store itself is the savepoint: a
// directory, or a prefix of a bucket, that was copied out of a store. Errors are as with
// [Load]; they don't say that a segment is missing or damaged, which is for [Verify].
func OpenSavepoint(ctx context.Context, store Store, name string) (m *Manifest, view Store, err error) {
	if name != "" {
		if err := CheckSavepointName(name); err != nil {
			return nil, nil, fmt.Errorf("open savepoint: %w", err)
		}
		store = Sub(store, savepointPrefix+name)
	}
	m, err = openSavepoint(ctx, store)
	if err != nil {
		return nil, nil, fmt.Errorf("open savepoint %s: %w", name, err)
	}
	return m, store, nil
}

func openSavepoint(ctx context.Context, view Store) (*Manifest, error) {
	b, err := get(ctx, view, savepointManifest)
	if err != nil {
		return nil, err
	}
	m, err := decodeSavepoint(b)
	var v unknownVersion
	if errors.As(err, &v) {
		return nil, &VersionError{Object: savepointManifest, Store: view.String(), Version: int(v), Known: manifestVersion}
	}
	if err != nil {
		return nil, &DamagedError{Object: savepointManifest, Store: view.String(), What: err.Error(), Err: err}
	}
	return m, nil
}

// decodeSavepoint decodes the manifest of a savepoint: one that needs nothing outside.
func decodeSavepoint(b []byte) (*Manifest, error) {
	m, err := decodeManifest(b, savepointManifest)
	if err != nil {
		return nil, err
	}
	for i, s := range m.Segments {
		if !strings.HasPrefix(s.Object, segmentPrefix) {
			return nil, fmt.Errorf("header: segment %d is in %q, outside of the savepoint", i, s.Object)
		}
	}
	for _, l := range m.logs {
		if !strings.HasPrefix(l.Object, logPrefix) {
			return nil, fmt.Errorf("header: the log of checkpoint %d is in %q, outside of the savepoint", l.Checkpoint, l.Object)
		}
	}
	for i, f := range m.InFlight {
		if !strings.HasPrefix(f.Object, inFlightPrefix) {
			return nil, fmt.Errorf("header: records in flight, number %d, are in %q, outside of the savepoint", i, f.Object)
		}
	}
	return m, nil
}

// CopySavepoint copies a savepoint to another store, or under another name. The name
// from may be empty, as with [OpenSavepoint]. Errors are as with [CreateSavepoint].
func CopySavepoint(ctx context.Context, from Store, name string, to Store, toName string, progress func(Progress)) (SavepointInfo, error) {
	m, view, err := OpenSavepoint(ctx, from, name)
	if err != nil {
		return SavepointInfo{}, err
	}
	return CreateSavepoint(ctx, view, m, to, toName, progress)
}

// DeleteSavepoint deletes a savepoint, or what is left of one: first its manifest, so
// that what remains after a crash is not called one. An error wraps ErrNotFound if there
// is nothing of this name.
func DeleteSavepoint(ctx context.Context, store Store, name string) error {
	if err := CheckSavepointName(name); err != nil {
		return fmt.Errorf("delete savepoint: %w", err)
	}
	prefix := savepointPrefix + name + "/"
	var objects []string
	for o, err := range store.List(ctx, prefix) {
		if err != nil {
			return fmt.Errorf("delete savepoint %s: %w", name, err)
		}
		objects = append(objects, o.Name)
	}
	if len(objects) == 0 {
		return fmt.Errorf("delete savepoint %s in %s: %w", name, store, ErrNotFound)
	}
	if err := store.Delete(ctx, prefix+savepointManifest); err != nil {
		return fmt.Errorf("delete savepoint %s: %w", name, err)
	}
	for _, o := range objects {
		if err := store.Delete(ctx, o); err != nil {
			return fmt.Errorf("delete savepoint %s: its manifest is gone, other objects are left; delete it again: %w", name, err)
		}
	}
	// Somebody may have been making it, and have come to the manifest meanwhile.
	if err := store.Delete(ctx, prefix+savepointManifest); err != nil {
		return fmt.Errorf("delete savepoint %s: %w", name, err)
	}
	return nil
}

// AdoptOptions says what becomes of a savepoint that a job starts from.
type AdoptOptions struct {
	App, Instance string
	KeyGroups     int
	// AnyApp takes a savepoint of an app with another name.
	AnyApp bool
	// Checkpoint is the id of the checkpoint that is made. It must be higher than any
	// that a pointer or a manifest of the store names, or a writer that still runs may
	// take the objects for garbage; and higher than that of the savepoint, or its logs
	// would not be older than those to come.
	Checkpoint  int64
	Incarnation uint32 // a random number, as in Config
	// DropPositions forgets where the input was read to, and with it event time and what was
	// read of the input and in flight: the job starts with this state at positions that are
	// chosen otherwise.
	DropPositions bool
}

// AdoptSavepoint makes a checkpoint of a savepoint: its segments are linked or copied to
// the names that segments of a checkpoint have in store, and the manifest has a lineage
// of its own. Its logs keep the lineage that they have. What it returns is the base of the
// writer. The savepoint isn't changed and
// may be deleted afterwards. A crash leaves objects that the next incarnation collects.
// Errors are *WrongAppError, *KeyGroupsError and as with [CreateSavepoint].
func AdoptSavepoint(ctx context.Context, view Store, sp *Manifest, store Store, o AdoptOptions, progress func(Progress)) (*Manifest, offsets.ManifestRef, error) {
	m, ref, err := adoptSavepoint(ctx, view, sp, store, o, progress)
	if err != nil {
		return nil, offsets.ManifestRef{}, fmt.Errorf("start from savepoint in %s: %w", view, err)
	}
	return m, ref, nil
}

func adoptSavepoint(ctx context.Context, view Store, sp *Manifest, store Store, o AdoptOptions, progress func(Progress)) (*Manifest, offsets.ManifestRef, error) {
	none := offsets.ManifestRef{}
	app := o.App
	if o.AnyApp {
		app = sp.App
	}
	if err := sp.Check(view, app, o.KeyGroups); err != nil {
		return nil, none, err
	}
	if len(sp.Logs) > 0 && o.Checkpoint <= sp.Checkpoint {
		return nil, none, fmt.Errorf("checkpoint %d is not higher than that of the savepoint, %d, whose logs are older", o.Checkpoint, sp.Checkpoint)
	}
	m := *sp
	m.App, m.Instance, m.Checkpoint, m.Incarnation = o.App, o.Instance, o.Checkpoint, o.Incarnation
	m.Parent, m.Lineage, m.Created = none, NewLineage(), time.Now().UTC().Round(0)
	if o.DropPositions {
		m.Positions, m.Watermark, m.EventTime, m.InFlight = nil, NoWatermark, EventTime{}, nil
	}
	m.Segments = slices.Clone(sp.Segments)
	name := offsets.ManifestRef{Checkpoint: o.Checkpoint, Incarnation: o.Incarnation}
	p := Progress{SegmentsTotal: len(m.Segments), BytesTotal: m.Bytes() + m.LogBytes()}
	for i := range m.Segments {
		s := &m.Segments[i]
		object := mergedObject(name, i)
		if err := copySegment(ctx, view, *s, store, object); err != nil {
			return nil, none, err
		}
		s.Object, s.Offset = object, 0
		p.Segments++
		p.Bytes += s.Length
		report(progress, p)
	}
	err := copyLogs(ctx, view, &m, func(n int, data []byte) (string, error) {
		object := logObject(name, n)
		return object, store.Put(ctx, object, data)
	})
	if err != nil {
		return nil, none, err
	}
	if m.InFlight, err = copyInFlight(ctx, view, m.InFlight, store, inFlightObject(name)); err != nil {
		return nil, none, err
	}
	b, ref, err := m.encode(nil)
	if err != nil {
		return nil, none, err
	}
	if err := store.Put(ctx, manifestObject(ref), b); err != nil {
		return nil, none, err
	}
	loaded, err := Load(ctx, store, ref)
	return loaded, ref, err
}

// Sub returns the part of a store whose names begin with dir and a slash, under the
// rest of their names.
func Sub(store Store, dir string) Store { return &sub{store, dir + "/"} }

type sub struct {
	Store
	prefix string
}

func (s *sub) String() string { return s.Store.String() + "/" + strings.TrimSuffix(s.prefix, "/") }

func (s *sub) Put(ctx context.Context, name string, data []byte) error {
	return s.Store.Put(ctx, s.prefix+name, data)
}

func (s *sub) Get(ctx context.Context, name string) ([]byte, error) {
	return s.Store.Get(ctx, s.prefix+name)
}

func (s *sub) GetRange(ctx context.Context, name string, off, n int64) ([]byte, error) {
	return s.Store.GetRange(ctx, s.prefix+name, off, n)
}

func (s *sub) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		for o, err := range s.Store.List(ctx, s.prefix+prefix) {
			o.Name = strings.TrimPrefix(o.Name, s.prefix)
			if !yield(o, err) {
				return
			}
		}
	}
}

func (s *sub) Delete(ctx context.Context, name string) error {
	return s.Store.Delete(ctx, s.prefix+name)
}

// Link implements Linker where the store below does.
func (s *sub) Link(ctx context.Context, name string, from Store, object string) (bool, error) {
	l, ok := s.Store.(Linker)
	if !ok {
		return false, nil
	}
	return l.Link(ctx, s.prefix+name, from, object)
}

// below returns the store that s is a part of, and the name of an object in it.
func below(s Store, object string) (Store, string) {
	for {
		v, ok := s.(*sub)
		if !ok {
			return s, object
		}
		s, object = v.Store, v.prefix+object
	}
}
