package segment

// Iter walks the changes in one segment, tombstones included, in order, and can jump.
// It is for readers that want little of a large segment. It is not safe for
// concurrent use and must be closed.
type Iter struct {
	c   *tableCursor
	err error
}

// Iter returns an iterator that stands nowhere: call [Iter.Seek] first.
func (r *Reader) Iter() (i *Iter, err error) {
	defer recovered("read segment", &err)
	c, err := newTableCursor(r, nil, nil)
	if err != nil {
		return nil, corrupt("read segment", err)
	}
	return &Iter{c: c}, nil
}

// Seek moves to the first entry whose key, as [AppendKey] makes it, is not less than
// key, and tells whether there is one.
func (i *Iter) Seek(key []byte) bool {
	i.c.lower, i.c.started = key, false
	return i.Next()
}

// Next moves to the next entry and tells whether there is one.
func (i *Iter) Next() (ok bool) {
	if i.err != nil {
		return false
	}
	if ok, i.err = i.next(); i.err != nil {
		return false
	}
	return ok
}

func (i *Iter) next() (ok bool, err error) {
	defer recovered("read segment", &err)
	ok, err = i.c.next()
	if err != nil {
		return false, corrupt("read segment", err)
	}
	return ok, nil
}

// Key returns the key of the entry that the iterator stands on, as [AppendKey] makes
// it. It is valid until the next move.
func (i *Iter) Key() []byte { return i.c.k }

// Entry returns the entry that the iterator stands on. It is valid until the next move.
func (i *Iter) Entry() Entry { return entryOf(i.c.k, i.c.v, i.c.del) }

// Err returns why the walk ended before the end. It wraps [ErrCorrupt], unless what the
// segment is read from failed.
func (i *Iter) Err() error { return i.err }

// Close ends the walk. It does not close the reader.
func (i *Iter) Close() { i.c.close() }
