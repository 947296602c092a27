package pebble

import (
	"encoding/binary"
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
	pinned  atomic.Pointer[bloomFilter]
	release func() // gives the reservation in the block cache back
}

// pinnedShare is what part of the block cache may give way to filters.
const pinnedShare = 2

var filterPolicy = bloom.FilterPolicy(10) // it reads filters of any size

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
	b, ok := parseBloom(append(make([]byte, 0, n), filter...))
	if !ok {
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
	f.pinned.Store(b)
}

// excludes tells that the table does not have the key with this hash. False says nothing.
func (f *tableFilter) excludes(hash uint32) bool {
	b := f.pinned.Load()
	return b != nil && !b.mayContain(hash)
}

// bloomFilter is a table's filter in the format of RocksDB's full filters: lines of a
// cache line each, of which a key has one, then a byte with the number of probes and four
// with that of lines. It is taken apart here so that a look at many tables hashes the key
// once.
type bloomFilter struct {
	lines  []byte
	n      uint32
	probes uint8
}

const (
	bloomLine    = 64 // bytes
	bloomTrailer = 5
)

// parseBloom refuses what isn't in the format; the table reader then says what it holds.
func parseBloom(b []byte) (*bloomFilter, bool) {
	if len(b) <= bloomTrailer {
		return nil, false
	}
	lines, trailer := b[:len(b)-bloomTrailer], b[len(b)-bloomTrailer:]
	f := &bloomFilter{lines: lines, n: binary.LittleEndian.Uint32(trailer[1:]), probes: trailer[0]}
	return f, uint64(len(lines)) == uint64(f.n)*bloomLine
}

func (f *bloomFilter) mayContain(hash uint32) bool {
	at, delta := int(hash%f.n)*bloomLine, hash>>17|hash<<15
	line := f.lines[at : at+bloomLine]
	for range f.probes {
		bit := hash % (8 * bloomLine)
		if line[bit/8]&(1<<(bit%8)) == 0 {
			return false
		}
		hash += delta
	}
	return true
}

// bloomHash is the hash of the format.
func bloomHash(key []byte) uint32 {
	const m = 0xc6a4a793
	h := uint32(len(key))*m ^ 0xbc9f1d34
	for ; len(key) >= 4; key = key[4:] {
		h = (h + binary.LittleEndian.Uint32(key)) * m
		h ^= h >> 16
	}
	if len(key) == 0 {
		return h
	}
	for i, b := range key {
		h += uint32(int8(b)) << (8 * i) // sign-extended, as the first writer of the format did
	}
	h *= m
	return h ^ h>>24
}
