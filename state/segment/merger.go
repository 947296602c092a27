package segment

import (
	"bytes"

	"github.com/weirstream/weir/internal/guard"
)

// cursor walks sorted entries, each key once. What key and value return is valid
// until the next call of next.
type cursor interface {
	next() (bool, error)
	key() []byte
	value() []byte
	deleted() bool
	close()
}

type runCursor struct {
	run Run
	n   int // entries walked
}

func (c *runCursor) next() (bool, error) { c.n++; return c.n <= c.run.Len(), nil }
func (c *runCursor) key() []byte         { return c.run.key(c.n - 1) }
func (c *runCursor) value() []byte       { return c.run.value(c.n - 1) }
func (c *runCursor) deleted() bool       { return c.run.d.entries[c.n-1].vlen == tombstone }
func (c *runCursor) close()              {}

// merger yields the entries of several cursors in order, of each key the newest.
type merger struct {
	heap    []source // the smallest key first; of equal keys the newest first
	cursors []cursor
	pending bool   // heap[0] was yielded and has not moved on
	last    []byte // a copy of the key that was yielded

	key     []byte
	value   []byte
	deleted bool
}

type source struct {
	cursor
	k   []byte
	age int // position among the cursors: higher is newer
}

func (s *source) before(o *source) bool {
	if c := bytes.Compare(s.k, o.k); c != 0 {
		return c < 0
	}
	if guard.Broken(guard.NewestWins) {
		return s.age < o.age
	}
	return s.age > o.age
}

// openMerger opens all readers, oldest first, at the first key >= lower.
func openMerger(lower, upper []byte, readers []*Reader) (m *merger, err error) {
	m = &merger{}
	// Registered first, so that it runs last and sees the error of a panic.
	defer func() {
		if err != nil {
			m.close()
			m = nil
		}
	}()
	defer recovered("read segment", &err)
	cursors := make([]cursor, 0, len(readers))
	for _, r := range readers {
		c, err := newTableCursor(r, lower, upper)
		if err != nil {
			return m, corrupt("read segment", err)
		}
		cursors = append(cursors, c)
		m.cursors = cursors
	}
	if err := m.open(cursors); err != nil {
		return m, corrupt("read segment", err)
	}
	return m, nil
}

// open puts the cursors, oldest first, on their first entry.
func (m *merger) open(cursors []cursor) error {
	m.cursors = cursors
	for age, c := range cursors {
		ok, err := c.next()
		if err != nil {
			return err
		}
		if ok {
			m.heap = append(m.heap, source{c, c.key(), age})
		}
	}
	for i := len(m.heap)/2 - 1; i >= 0; i-- {
		m.down(i)
	}
	return nil
}

// next moves to the next key and tells whether there is one.
func (m *merger) next() (ok bool, err error) {
	defer recovered("read segment", &err)
	if m.pending {
		m.pending = false
		if err := m.advance(); err != nil {
			return false, corrupt("read segment", err)
		}
		// Older sources on the key that was yielded have nothing to say.
		for len(m.heap) > 0 && len(m.cursors) > 1 && bytes.Equal(m.heap[0].k, m.last) {
			if err := m.advance(); err != nil {
				return false, corrupt("read segment", err)
			}
		}
	}
	if len(m.heap) == 0 {
		return false, nil
	}
	top := &m.heap[0]
	if len(m.cursors) > 1 {
		m.last = append(m.last[:0], top.k...)
	}
	m.key, m.value, m.deleted = top.k, top.value(), top.deleted()
	m.pending = true
	return true, nil
}

// advance moves the first source on and restores the order.
func (m *merger) advance() error {
	top := &m.heap[0]
	ok, err := top.cursor.next()
	if err != nil {
		return err
	}
	if ok {
		top.k = top.cursor.key()
	} else {
		n := len(m.heap) - 1
		m.heap[0] = m.heap[n]
		m.heap = m.heap[:n]
	}
	m.down(0)
	return nil
}

func (m *merger) down(i int) {
	for {
		c := 2*i + 1
		if c >= len(m.heap) {
			return
		}
		if c+1 < len(m.heap) && m.heap[c+1].before(&m.heap[c]) {
			c++
		}
		if !m.heap[c].before(&m.heap[i]) {
			return
		}
		m.heap[i], m.heap[c] = m.heap[c], m.heap[i]
		i = c
	}
}

func (m *merger) close() {
	for _, c := range m.cursors {
		c.close()
	}
	m.heap, m.cursors = nil, nil
}
