package state

import (
	"github.com/weirstream/weir/state/segment"
)

// span is a range of subkeys.
type span struct {
	from string // the first; "" is the begin
	to   string // the first that is not in it, if bounded
	// bounded says that to counts.
	bounded bool
	desc    bool // from the end to the begin
	peek    bool // nothing counts as read
	all     bool // also what has expired; nothing counts as read
	keys    bool // raw is not asked for; it goes with all
}

// sees tells whether a scan visits an entry that is in memory.
func (h *entryTable[V]) sees(s *span, e *entry[V]) bool {
	switch {
	case s.all:
		return true
	case s.peek:
		return h.opts.domain == segment.Forever || e.expires > h.now(h.opts.domain, e.slot)
	}
	return h.read(e)
}

// scan visits what is set in a range of a slot's entries, in order: e if it is in memory,
// else what the backing holds, header included. Entries may change meanwhile. Each is
// seen as it is when its turn comes: what is set ahead is seen, what is removed ahead is
// not. key and raw are valid until visit returns.
func (h *entryTable[V]) scan(slot uint32, s span, visit func(key string, e *entry[V], raw []byte) bool) {
	if s.bounded && s.from >= s.to {
		return
	}
	mem := memCursor[V]{h: h, slot: slot, span: s}
	if h.back == nil {
		for e := mem.next(); e != nil; e = mem.next() {
			if h.sees(&s, e) && !visit(e.key, e, nil) {
				return
			}
		}
		return
	}
	b := h.seekBacking(slot, s)
	if b == nil {
		return
	}
	defer b.close()
	e := mem.next()
	for !b.failed {
		for b.ok && (e == nil || !b.behind(e.key)) {
			key := b.key()
			if g := h.at(slot); e != nil && key == e.key || g != nil && g.masks.n > 0 && g.masks.find(key) != nil {
				b.skip()
				continue
			}
			break
		}
		switch {
		case b.failed:
			return
		case b.ok && (e == nil || !b.behind(e.key)): // nothing in memory comes before, or has the key
			b.learn()
			if !h.visitStored(slot, s, b, visit) {
				return
			}
			mem.pass(b.key())
			b.move()
			e = mem.next()
		case e == nil:
			b.learn()
			return
		default:
			if h.sees(&s, e) && !visit(e.key, e, nil) {
				return
			}
			e = mem.next()
		}
	}
}

// visitStored visits the entry of the backing on which b stands.
func (h *entryTable[V]) visitStored(slot uint32, s span, b *backingCursor[V], visit func(key string, e *entry[V], raw []byte) bool) bool {
	if s.keys {
		return visit(b.key(), nil, nil)
	}
	raw := b.it.Value()
	if len(raw) == 0 && b.it.Err() != nil {
		return false
	}
	if s.all {
		return visit(b.key(), nil, raw)
	}
	header, _, err := segment.CutHeader(raw)
	switch {
	case err != nil:
		h.keys.fail(h.errorf("%w", err))
		return false
	case h.expired(header, slot):
		return true
	case !s.peek && h.rewrites(header, slot):
		e := h.load(slot, b.key())
		return e == nil || !h.read(e) || visit(e.key, e, nil)
	}
	return visit(b.key(), nil, raw)
}

// rewrites tells whether reading an entry of the backing changes when it expires.
func (h *entryTable[V]) rewrites(header segment.Header, slot uint32) bool {
	return h.opts.outdated(header) ||
		h.opts.domain != segment.Forever && h.opts.moves(h.expiry(header), h.now(h.opts.domain, slot))
}

// backingCursor walks through what the backing holds of a slot's entries.
type backingCursor[V any] struct {
	h      *entryTable[V]
	slot   uint32
	it     Iterator
	prefix int
	desc   bool
	ok     bool
	failed bool

	// While learning, all that it passed is in memory, and nothing before it is not.
	learning bool
	skipped  int
	last     []byte
}

// minSkipped is how many entries have to be skipped for it to be worth remembering.
const minSkipped = 8

// seekBacking returns a cursor at the first entry of the span, or nil after an error.
func (h *entryTable[V]) seekBacking(slot uint32, s span) *backingCursor[V] {
	lo, err := h.appendPrefix(nil, slot)
	if err != nil {
		h.keys.fail(err)
		return nil
	}
	b := &backingCursor[V]{h: h, slot: slot, prefix: len(lo), desc: s.desc}
	hi := append([]byte(nil), lo...)
	if s.bounded {
		hi = append(hi, s.to...)
	} else {
		hi[len(hi)-1]++ // from the byte that ends the key
	}
	from := s.from
	if g := h.at(slot); g != nil {
		b.learning = !s.desc && s.from <= g.known
		from = max(from, g.known)
	} else {
		b.learning = !s.desc && s.from == ""
	}
	if s.bounded && from >= s.to {
		from = s.to // everything is in memory
	}
	if b.it, err = h.back.Iter(append(lo, from...), hi); err != nil {
		h.unreadable(err)
		return nil
	}
	if b.desc {
		b.ok = b.it.Last()
	} else {
		b.ok = b.it.First()
	}
	b.failed = !b.ok && b.it.Err() != nil
	return b
}

// key is the subkey on which the cursor stands, until it moves.
func (b *backingCursor[V]) key() string { return view(b.it.Key()[b.prefix:]) }

// behind tells whether key comes before the one on which the cursor stands.
func (b *backingCursor[V]) behind(key string) bool {
	if b.desc {
		return key > b.key()
	}
	return key < b.key()
}

func (b *backingCursor[V]) move() {
	if b.desc {
		b.ok = b.it.Prev()
	} else {
		b.ok = b.it.Next()
	}
	b.failed = !b.ok && b.it.Err() != nil
}

// skip moves over an entry of which memory knows more.
func (b *backingCursor[V]) skip() {
	if b.learning {
		b.skipped++
		b.last = append(b.last[:0], b.it.Key()[b.prefix:]...)
	}
	b.move()
}

// learn remembers what was found out. The cursor stands on an entry that is not in
// memory, or at the end.
func (b *backingCursor[V]) learn() {
	if b.learning && b.skipped >= minSkipped {
		b.h.ensure(b.slot).known = string(append(b.last, 0)) // the next subkey there could be
	}
	b.learning = false
}

func (b *backingCursor[V]) close() {
	err := b.it.Err()
	if closed := b.it.Close(); err == nil {
		err = closed
	}
	if err != nil {
		b.h.unreadable(err)
	}
}

// memCursor walks through the live entries of a group that may change.
type memCursor[V any] struct {
	h    *entryTable[V]
	slot uint32
	span

	begun   bool
	last    string // the subkey that it passed
	buf     []byte // holds last
	g       *group[V]
	changed uint32
	place   place
}

// pass moves the cursor behind a subkey that is not in memory.
func (c *memCursor[V]) pass(key string) {
	c.buf = append(c.buf[:0], key...)
	c.last, c.begun, c.g = view(c.buf), true, nil
}

// next returns the next entry, which the cursor passes only when next is called again.
// So is the one that it stands on if the backing's turn came first.
func (c *memCursor[V]) next() *entry[V] {
	g := c.h.at(c.slot)
	if g == nil {
		return nil
	}
	var e *entry[V]
	switch same := g == c.g && g.live.changed == c.changed; {
	case same && c.desc:
		e, c.place = g.live.before(c.place)
	case same:
		e, c.place = g.live.from(place{c.place.leaf, c.place.at + 1})
	case c.desc:
		p := g.live.end()
		if c.begun {
			p, _ = g.live.seek(c.last)
		} else if c.bounded {
			p, _ = g.live.seek(c.to)
		}
		e, c.place = g.live.before(p)
	default:
		key := c.from
		if c.begun {
			key = c.last
		}
		p, found := g.live.seek(key)
		if found && c.begun {
			p.at++
		}
		e, c.place = g.live.from(p)
	}
	c.g, c.changed = g, g.live.changed
	if e == nil || c.desc && e.key < c.from || !c.desc && c.bounded && e.key >= c.to {
		c.g = nil
		return nil
	}
	c.last, c.begun = e.key, true
	return e
}
