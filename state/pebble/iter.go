package pebble

import (
	"bytes"

	"github.com/cockroachdb/pebble/v2"
)

// Iterator walks keys in order. It sees the store as it was when it was made, however
// often Ingest is called. It is for one goroutine; Close it, or the store cannot be
// closed.
type Iterator struct {
	it  *pebble.Iterator
	h   *handle
	err error
}

// Iter returns an iterator over the keys [lo, hi), which are as segment.AppendKey
// makes them; nil is the begin, or the end. It stands nowhere yet.
//
// Errors are those of [Store.Get].
func (s *Store) Iter(lo, hi []byte) (*Iterator, error) {
	h, err := s.acquire()
	if err != nil {
		return nil, err
	}
	if hi == nil || bytes.Compare(hi, reservedStart) > 0 {
		hi = reservedStart
	}
	it, err := h.db.NewIter(&pebble.IterOptions{LowerBound: lo, UpperBound: hi})
	if err != nil {
		err = h.failed("read", err)
		h.release()
		return nil, err
	}
	return &Iterator{it: it, h: h}, nil
}

// First, Last, SeekGE (the first key >= key), SeekLT (the last key < key), Next and
// Prev move the iterator and tell whether it stands on a key. If it does not, Error
// tells whether that was the end.

func (i *Iterator) First() bool            { return i.it.First() }
func (i *Iterator) Last() bool             { return i.it.Last() }
func (i *Iterator) SeekGE(key []byte) bool { return i.it.SeekGE(key) }
func (i *Iterator) SeekLT(key []byte) bool { return i.it.SeekLT(key) }
func (i *Iterator) Next() bool             { return i.it.Next() }
func (i *Iterator) Prev() bool             { return i.it.Prev() }

// Key returns the key that the iterator stands on. It is valid until it moves.
func (i *Iterator) Key() []byte { return i.it.Key() }

// Value returns the value there. It is valid until the iterator moves; nil if it
// could not be read, which Error tells.
func (i *Iterator) Value() []byte {
	v, err := i.it.ValueAndErr()
	if err != nil && i.err == nil {
		i.err = i.h.failed("read", err)
	}
	return v
}

// Error returns what went wrong, as with [Store.Get].
func (i *Iterator) Error() error {
	if i.err == nil {
		if err := i.it.Error(); err != nil {
			i.err = i.h.failed("read", err)
		}
	}
	if i.err == nil {
		return i.h.failure()
	}
	return i.err
}

// Close ends the use of the iterator and returns what Error does.
func (i *Iterator) Close() error {
	if i.it == nil {
		return i.err
	}
	err := i.Error()
	_ = i.it.Close() // gives the error again
	i.it, i.err = nil, err
	i.h.release()
	return err
}
