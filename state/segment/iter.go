package segment

import (
	"bytes"
	"context"

	"github.com/cockroachdb/pebble/v2/sstable"
)

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

// Get looks for one key, as [AppendKey] makes it, in this segment alone, and appends its
// value to dst. found tells that the segment says something about the key, deleted that
// this is a tombstone. Most keys that it says nothing about cost a look into its filter.
// An error is as with [Iter.Err].
func (r *Reader) Get(dst, key []byte) (value []byte, found, deleted bool, err error) {
	defer recovered("read segment", &err)
	it, err := r.table.NewPointIter(context.Background(), sstable.IterOptions{
		FilterBlockSizeLimit: sstable.AlwaysUseFilterBlock,
		Env:                  sstable.NoReadEnv,
		ReaderProvider:       sstable.MakeTrivialReaderProvider(r.table),
		BlobContext:          sstable.AssertNoBlobHandles,
	})
	if err != nil {
		return dst, false, false, corrupt("read segment", r.fault(err))
	}
	kv := it.SeekPrefixGE(key, key, 0)
	if kv == nil {
		err = it.Error()
	} else if bytes.Equal(kv.K.UserKey, key) {
		found = true
		if deleted = kv.K.Kind() == sstable.InternalKeyKindDelete; !deleted {
			var v []byte
			if v, _, err = kv.Value(nil); err == nil {
				dst = append(dst, v...)
			}
		}
	}
	if cerr := it.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return dst, false, false, corrupt("read segment", r.fault(err))
	}
	return dst, found, deleted, nil
}
