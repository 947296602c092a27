package pebble

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/weirstream/weir/state/segment"
)

// bucket is a checkpoint store: a directory of fs if that is set, else remote.
type bucket struct {
	fs  vfs.FS
	dir string

	mu      sync.Mutex
	objects map[string][]byte
	gets    atomic.Int64
	bytes   atomic.Int64
	hook    func(object string, off, n int64) error // before a read
}

func newRemoteBucket() *bucket { return &bucket{objects: map[string][]byte{}} }

func newDirBucket(t testing.TB, fs vfs.FS, dir string) *bucket {
	t.Helper()
	if err := fs.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if d, err := fs.OpenDir(fs.PathDir(dir)); err != nil || d.Sync() != nil || d.Close() != nil {
		t.Fatal(err)
	}
	return &bucket{fs: fs, dir: dir, objects: map[string][]byte{}}
}

func (b *bucket) put(t testing.TB, name string, data []byte) {
	t.Helper()
	b.mu.Lock()
	b.objects[name] = data
	b.mu.Unlock()
	if b.fs == nil {
		return
	}
	f, err := b.fs.Create(b.path(name), vfs.WriteCategoryUnspecified)
	if err == nil {
		_, err = f.Write(slices.Clone(data)) // a file of vfs may overwrite it
	}
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = f.Close()
	}
	if err == nil {
		var d vfs.File
		if d, err = b.fs.OpenDir(b.dir); err == nil {
			err = d.Sync()
			_ = d.Close()
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

// before sets what is called before a read; stores may be reading.
func (b *bucket) before(hook func(object string, off, n int64) error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.hook = hook
}

func (b *bucket) path(name string) string { return b.fs.PathJoin(b.dir, name) }

func (b *bucket) Path(name string) (string, bool) {
	if b.fs == nil {
		return "", false
	}
	return b.path(name), true
}

func (b *bucket) GetRange(ctx context.Context, name string, off, n int64) ([]byte, error) {
	b.mu.Lock()
	o, ok := b.objects[name]
	hook := b.hook
	b.mu.Unlock()
	if hook != nil {
		if err := hook(name, off, n); err != nil {
			return nil, err
		}
	}
	b.gets.Add(1)
	b.bytes.Add(n)
	switch {
	case !ok:
		return nil, fmt.Errorf("object %s not found", name)
	case off+n > int64(len(o)):
		return nil, fmt.Errorf("object %s: %w", name, io.ErrUnexpectedEOF)
	}
	return slices.Clone(o[off : off+n]), ctx.Err()
}

// content is what a state should hold: values by segment key.
type content map[string]string

// change is one entry of a checkpoint; a nil value is a delete.
type change struct {
	kg    uint16
	key   string
	value *string
}

func set(kg uint16, key, value string) change { return change{kg, key, &value} }
func del(kg uint16, key string) change        { return change{kg: kg, key: key} }

func keyOf(kg uint16, key string) []byte { return segment.AppendKey(nil, kg, 1, []byte(key)) }

func (c content) apply(changes []change) content {
	c = maps.Clone(c)
	if c == nil {
		c = content{}
	}
	for _, ch := range changes {
		k := string(keyOf(ch.kg, ch.key))
		if ch.value == nil {
			delete(c, k)
		} else {
			c[k] = *ch.value
		}
	}
	return c
}

// encode returns a segment of changes.
func encode(t testing.TB, changes []change) ([]byte, segment.Info) {
	t.Helper()
	var b segment.Builder
	for _, c := range changes {
		if c.value == nil {
			b.DeleteDone(append(b.BeginDelete(c.kg, 1), c.key...))
			continue
		}
		b.ValueDone(append(b.KeyDone(append(b.BeginPut(c.kg, 1), c.key...)), *c.value...))
	}
	var buf bytes.Buffer
	info, err := segment.Write(&buf, b.Finish())
	if err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), info
}

func refOf(object string, info segment.Info) Segment {
	return Segment{Object: object, Length: info.Bytes, CRC32C: info.CRC32C, MinKG: info.MinKG, MaxKG: info.MaxKG}
}

// history is a line of checkpoints, with the segments that a writer would keep.
type history struct {
	t       testing.TB
	b       *bucket
	lineage string
	at      ID
	chain   []Segment
	states  map[ID]content
	data    map[string][]byte // segments by object
	made    int
	burnt   int64 // IDs of checkpoints that were not committed
	// wrote says for which checkpoint a key may have been written last: the first that is
	// not older than the commit before, or there would be nothing to be written again.
	wrote map[string]int64
}

func newHistory(t testing.TB, b *bucket, lineage string) *history {
	return &history{t: t, b: b, lineage: lineage, states: map[ID]content{{}: {}}, data: map[string][]byte{}, wrote: map[string]int64{}}
}

// commit makes the next checkpoint. It returns its ID and segment; nil if there is no
// change.
func (h *history) commit(changes ...change) (prev, id ID, seg *Segment) {
	h.t.Helper()
	prev = h.at
	id = ID{Lineage: h.lineage, Checkpoint: prev.Checkpoint + 1 + h.burnt, Incarnation: 1}
	id.Hash[0] = byte(id.Checkpoint)
	h.at, h.states[id] = id, h.states[prev].apply(changes)
	for _, c := range changes {
		h.wrote[string(keyOf(c.kg, c.key))] = prev.Checkpoint + 1
	}
	if len(changes) == 0 {
		return prev, id, nil
	}
	data, info := encode(h.t, changes)
	s := refOf(fmt.Sprintf("%s-%d.sst", h.lineage, id.Checkpoint), info)
	h.b.put(h.t, s.Object, data)
	h.data[s.Object] = data
	h.chain = append(h.chain[:len(h.chain):len(h.chain)], s)
	return prev, id, &s
}

// merge makes one segment of chain[lo:hi], as a writer does.
func (h *history) merge(lo, hi int) {
	h.t.Helper()
	var readers []*segment.Reader
	for _, s := range h.chain[lo:hi] {
		r, err := segment.Open(h.data[s.Object])
		if err != nil {
			h.t.Fatal(err)
		}
		readers = append(readers, r)
	}
	var buf bytes.Buffer
	info, err := segment.Merge(&buf, lo == 0, readers...)
	if err != nil {
		h.t.Fatal(err)
	}
	var out []Segment
	if !info.Empty() {
		h.made++
		s := refOf(fmt.Sprintf("%s-m%d.sst", h.lineage, h.made), info)
		h.b.put(h.t, s.Object, buf.Bytes())
		h.data[s.Object] = buf.Bytes()
		out = append(out, s)
	}
	h.chain = slices.Replace(slices.Clone(h.chain), lo, hi, out...)
}

func (h *history) attach(s *Store) Attached {
	h.t.Helper()
	a, err := s.Attach(h.t.Context(), h.at, h.chain, h.b)
	if err != nil {
		h.t.Fatal(err)
	}
	return a
}

func (h *history) ingest(s *Store, changes ...change) {
	h.t.Helper()
	prev, id, seg := h.commit(changes...)
	if err := s.Ingest(h.t.Context(), id, prev, seg, nil, h.chain); err != nil {
		h.t.Fatal(err)
	}
}

// holds makes sure that the store equals the checkpoint that its ID names.
func (h *history) holds(s *Store, id ID) {
	h.t.Helper()
	if got := s.ID(); got != id {
		h.t.Fatalf("the store is at %v, want %v", got, id)
	}
	want, ok := h.states[id]
	if !ok {
		h.t.Fatalf("%v was never committed", id)
	}
	got, err := read(s)
	if err != nil {
		h.t.Fatal(err)
	}
	if !maps.Equal(got, want) {
		h.t.Fatalf("at %v the store holds\n%q, want\n%q", id, got, want)
	}
	for k, v := range want {
		if got, ok, err := s.Get(nil, []byte(k), math.MaxInt64); err != nil || !ok || string(got) != v {
			h.t.Fatalf("get %q: %q %v %v, want %q", k, got, ok, err, v)
		}
	}
	if id != h.at {
		return
	}
	for k, newest := range h.wrote {
		v, some := want[k]
		if got, ok, err := s.Get(nil, []byte(k), newest); err != nil || ok != some || string(got) != v {
			h.t.Fatalf("get %q, written for checkpoint %d: %q %v %v, want %q %v", k, newest, got, ok, err, v, some)
		}
	}
}

func read(s *Store) (content, error) {
	it, err := s.Iter(nil, nil)
	if err != nil {
		return nil, err
	}
	c := content{}
	for ok := it.First(); ok; ok = it.Next() {
		c[string(it.Key())] = string(it.Value())
	}
	return c, it.Close()
}

func open(t testing.TB, fs vfs.FS, opts Options) *Store {
	t.Helper()
	opts.fs = fs
	dir := "store"
	if fs == vfs.Default || fs == nil {
		dir = t.TempDir()
	}
	s, err := Open(dir, "app", opts)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = s.Close() })
	return s
}

func closeStore(t testing.TB, s *Store) {
	t.Helper()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}
