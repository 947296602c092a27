// Package recycle gives memory to Kafka records that are produced, and takes it back
// when they were acknowledged.
//
// A sink's writer takes each record from its [Source]; whoever gives the client a
// record's promise calls [Done] once the promise was called without an error. The
// client touches no record after its promise, so from then on nobody refers to it.
// A record of which nobody says that it is done, because it failed or its client was
// closed, costs nothing but that its slab is left to the garbage collector.
package recycle

import (
	"context"
	"sync"
	"sync/atomic"

	"github.com/twmb/franz-go/pkg/kgo"
)

const (
	// slabRecords is the number of records that are allocated, and freed, together.
	slabRecords = 128
	// slabBytes is what keys and values of a slab begin with, maxSlabBytes what is
	// kept of what they grew to.
	slabBytes    = 4 << 10
	maxSlabBytes = 64 << 10
)

// slab is memory for some records with their keys and values. It is the Context of
// its records, by which Done finds it: a context that says nothing and never ends.
type slab struct {
	context.Context
	records [slabRecords]kgo.Record
	bytes   []byte
	used    int          // records handed out
	left    atomic.Int32 // records not yet done
}

var slabs = sync.Pool{New: func() any { return &slab{Context: context.Background()} }}

// Source hands out records. It is used by one goroutine. The zero Source is ready
// for use.
type Source struct{ slab *slab }

// Record returns a record that is empty but for its Context, which must stay, and a
// copy of b whose memory is the record's. The copy of nothing is empty, not nil: to
// Kafka that is a difference.
func (s *Source) Record(b []byte) (*kgo.Record, []byte) {
	if s.slab == nil {
		s.slab = slabs.Get().(*slab)
		s.slab.left.Store(slabRecords)
	}
	sl := s.slab
	r := &sl.records[sl.used]
	sl.used++
	r.Context = sl
	if sl.used == slabRecords {
		s.slab = nil // once its last record is done it belongs to another
	}
	if sl.bytes == nil || cap(sl.bytes)-len(sl.bytes) < len(b) {
		// What was handed out keeps the old memory alive.
		sl.bytes = make([]byte, 0, max(slabBytes, 2*cap(sl.bytes), len(b)))
	}
	at := len(sl.bytes)
	sl.bytes = append(sl.bytes, b...)
	return r, sl.bytes[at:len(sl.bytes):len(sl.bytes)]
}

// Done says that nobody uses r any more: neither the record nor its key and value. It
// is called once at most. A record that comes from no Source is left alone. Any
// goroutine may call it.
func Done(r *kgo.Record) {
	sl, ok := r.Context.(*slab)
	if !ok || sl.left.Add(-1) > 0 {
		return
	}
	clear(sl.records[:]) // a slab at rest must not keep what its records refer to alive
	sl.used = 0
	if sl.bytes = sl.bytes[:0]; cap(sl.bytes) > maxSlabBytes {
		sl.bytes = nil
	}
	slabs.Put(sl)
}
