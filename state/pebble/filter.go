package pebble

import (
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
)

// tableFilter tells which keys a table can't have, for the price of a cache line. What
// the table reader offers for that is an iterator, made and closed, and a look into the
// block cache; and a key that is not in memory is asked of every table over its key-group.
//
// The bytes are those that the reader verified and handed to its filter policy when it
// was first asked. They stay in memory until the table is closed, in place of as much
// block cache, as long as all filters together take no more than pinnedShare of it.
type tableFilter struct {
	sstable.FilterPolicy
	store   *Store
	pinned  atomic.Pointer[[]byte]
	release func() // gives the reservation in the block cache back
}

// pinnedShare is what part of the block cache may give way to filters.
const pinnedShare = 4

var filterPolicy = bloom.FilterPolicy(10) // it reads filters of any size

// excludes tells that the table does not have key. False says nothing.
func (f *tableFilter) excludes(key []byte) bool {
	b := f.pinned.Load()
	return b != nil && !filterPolicy.MayContain(sstable.TableFilter, *b, key)
}

// MayContain is called by the table reader, with what it has verified.
func (f *tableFilter) MayContain(kind sstable.FilterType, filter, key []byte) bool {
	if f.pinned.Load() == nil {
		f.pin(filter)
	}
	return f.FilterPolicy.MayContain(kind, filter, key)
}

func (f *tableFilter) pin(filter []byte) {
	c, n := f.store.cache, int64(len(filter))
	c.mu.Lock()
	defer c.mu.Unlock()
	if f.release != nil || (c.pinned+n)*pinnedShare > f.store.opts.CacheBytes {
		return
	}
	c.pinned += n
	unreserve := c.cache.Reserve(int(n))
	f.release = func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.pinned -= n
		unreserve()
	}
	b := append(make([]byte, 0, n), filter...)
	f.pinned.Store(&b)
}
