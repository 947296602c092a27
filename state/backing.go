package state

import "fmt"

// Backing is the state of the last committed checkpoint, kept outside of the
// keyspace: what is not in memory is read from it. Get and Iter may be called from
// many goroutines at once.
type Backing interface {
	// Get appends the value that is stored under key, which has the form of
	// segment.AppendKey, to dst. ok is false if there is none. Nothing was written under
	// the key for a checkpoint after newest: what is known to be of later ones only need
	// not be asked.
	Get(dst, key []byte, newest int64) (value []byte, ok bool, err error)
	// Iter returns an iterator over the keys in [lo, hi). It sees the checkpoint that
	// was the last one when it was made.
	Iter(lo, hi []byte) (Iterator, error)
}

// Iterator walks the entries of a Backing in the order of their keys. The methods
// that move it tell whether it stands on an entry. It is used by one goroutine.
type Iterator interface {
	First() bool
	Last() bool
	SeekGE(key []byte) bool
	SeekLT(key []byte) bool
	Next() bool
	Prev() bool
	// Key and Value are valid until the iterator moves.
	Key() []byte
	Value() []byte
	// Err tells why a move ended early.
	Err() error
	Close() error
}

// ReadError says that committed state could not be read.
type ReadError struct {
	Operator, State string
	Err             error
}

func (e *ReadError) Error() string {
	return fmt.Sprintf("operator %q: state %q: reading what is committed: %v", e.Operator, e.State, e.Err)
}

func (e *ReadError) Unwrap() error { return e.Err }
