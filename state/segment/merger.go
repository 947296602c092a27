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

// merger yields the entries of several cursors in order, of each key the newest. The
// cursors play a tournament for the smallest key, in a tree of losers (Knuth, volume 3,
// 5.4.1): who moves on plays again against those whom it met on its way up, one on each
// level, where a heap would compare two.
type merger struct {
	sources []source // oldest first
	losers  []int    // by node of the tree, from 1: who lost there; at 0 the winner
	pending bool     // the winner was yielded and has not moved on
	last    []byte   // a copy of the key that was yielded

	key     []byte
	value   []byte
	deleted bool
}

type source struct {
	cursor
	k    []byte
	done bool // it has no more entries
}

// before tells whether a plays before b: it has the smaller key, or the same and is newer.
func (m *merger) before(a, b int) bool {
	x, y := &m.sources[a], &m.sources[b]
	if x.done || y.done {
		return y.done
	}
	if c := bytes.Compare(x.k, y.k); c != 0 {
		return c < 0
	}
	if guard.Broken(guard.NewestWins) {
		return a < b
	}
	return a > b
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
	for _, r := range readers {
		c, err := newTableCursor(r, lower, upper)
		if err != nil {
			return m, corrupt("read segment", err)
		}
		m.sources = append(m.sources, source{cursor: c})
	}
	if err := m.open(); err != nil {
		return m, corrupt("read segment", err)
	}
	return m, nil
}

// open puts the sources on their first entry.
func (m *merger) open() error {
	for i := range m.sources {
		if err := m.move(i); err != nil {
			return err
		}
	}
	if len(m.sources) > 0 {
		m.losers = make([]int, len(m.sources))
		m.losers[0] = m.play(1)
	}
	return nil
}

// move puts a source on its next entry.
func (m *merger) move(i int) error {
	s := &m.sources[i]
	ok, err := s.cursor.next()
	if err != nil {
		return err
	}
	s.k, s.done = nil, !ok
	if ok {
		s.k = s.cursor.key()
	}
	return nil
}

// play plays all matches below a node and returns who wins them. The sources are the
// leaves of the tree.
func (m *merger) play(node int) int {
	if n := len(m.sources); node >= n {
		return node - n
	}
	winner, loser := m.play(2*node), m.play(2*node+1)
	if m.before(loser, winner) {
		winner, loser = loser, winner
	}
	m.losers[node] = loser
	return winner
}

// next moves to the next key and tells whether there is one.
func (m *merger) next() (ok bool, err error) {
	defer recovered("read segment", &err)
	if len(m.sources) == 0 {
		return false, nil
	}
	if m.pending {
		m.pending = false
		if err := m.advance(); err != nil {
			return false, corrupt("read segment", err)
		}
		// Older sources on the key that was yielded have nothing to say.
		for len(m.sources) > 1 && !m.first().done && bytes.Equal(m.first().k, m.last) {
			if err := m.advance(); err != nil {
				return false, corrupt("read segment", err)
			}
		}
	}
	top := m.first()
	if top.done {
		return false, nil
	}
	if len(m.sources) > 1 {
		m.last = append(m.last[:0], top.k...)
	}
	m.key, m.value, m.deleted = top.k, top.value(), top.deleted()
	m.pending = true
	return true, nil
}

func (m *merger) first() *source { return &m.sources[m.losers[0]] }

// advance moves the first source on and finds the next first one.
func (m *merger) advance() error {
	winner := m.losers[0]
	if err := m.move(winner); err != nil {
		return err
	}
	for node := (winner + len(m.sources)) / 2; node > 0; node /= 2 {
		if m.before(m.losers[node], winner) {
			winner, m.losers[node] = m.losers[node], winner
		}
	}
	m.losers[0] = winner
	return nil
}

func (m *merger) close() {
	for _, s := range m.sources {
		s.cursor.close()
	}
	m.sources = nil
}
