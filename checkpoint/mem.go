package checkpoint

import (
	"bytes"
	"context"
	"errors"
	"io"
	"iter"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// Mem is a store in memory, for tests.
type Mem struct {
	url string
	now func() time.Time // time.Now, unless a test has a clock of its own

	mu      sync.RWMutex
	objects map[string]memObject
}

type memObject struct {
	data     []byte
	modified time.Time
}

// NewMem returns an empty store in memory.
func NewMem() *Mem { return newMem("mem://") }

func newMem(url string) *Mem { return &Mem{url: url, now: time.Now, objects: map[string]memObject{}} }

func (m *Mem) String() string { return m.url }

func (m *Mem) err(op, name string, err error) error {
	return &StoreError{Op: op, Object: name, Store: m.url, Err: err}
}

// Put implements Store.
func (m *Mem) Put(ctx context.Context, name string, data []byte) error {
	if err := ctx.Err(); err != nil {
		return m.err("put", name, err)
	}
	if !validName(name) {
		return m.err("put", name, errBadName)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if _, ok := m.objects[name]; ok {
		return m.err("put", name, ErrExists)
	}
	m.objects[name] = memObject{bytes.Clone(data), m.now()}
	return nil
}

// Get implements Store.
func (m *Mem) Get(ctx context.Context, name string) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, m.err("get", name, err)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects[name]
	if !ok {
		return nil, m.err("get", name, ErrNotFound)
	}
	return bytes.Clone(o.data), nil
}

// GetRange implements Store.
func (m *Mem) GetRange(ctx context.Context, name string, off, n int64) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, m.err("get range", name, err)
	}
	m.mu.RLock()
	defer m.mu.RUnlock()
	o, ok := m.objects[name]
	if !ok {
		return nil, m.err("get range", name, ErrNotFound)
	}
	size := int64(len(o.data))
	if off < 0 || n < 0 || off > size || n > size-off {
		return nil, m.err("get range", name, io.ErrUnexpectedEOF)
	}
	return bytes.Clone(o.data[off : off+n]), nil
}

// List implements Store.
func (m *Mem) List(ctx context.Context, prefix string) iter.Seq2[Object, error] {
	return func(yield func(Object, error) bool) {
		if err := ctx.Err(); err != nil {
			yield(Object{}, m.err("list", prefix, err))
			return
		}
		m.mu.RLock()
		var found []Object
		for _, name := range slices.Sorted(maps.Keys(m.objects)) {
			if o := m.objects[name]; strings.HasPrefix(name, prefix) {
				found = append(found, Object{name, int64(len(o.data)), o.modified})
			}
		}
		m.mu.RUnlock()
		for _, o := range found {
			if !yield(o, nil) {
				return
			}
		}
	}
}

// Delete implements Store.
func (m *Mem) Delete(ctx context.Context, name string) error {
	if err := ctx.Err(); err != nil {
		return m.err("delete", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.objects, name)
	return nil
}

// Tamper replaces an object's bytes by what change makes of them, as a failing disk
// would. It tells whether the object was there. For tests.
func (m *Mem) Tamper(name string, change func([]byte) []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[name]
	if ok {
		o.data = change(bytes.Clone(o.data))
		m.objects[name] = o
	}
	return ok
}

var errBadName = errors.New("not a valid object name")
