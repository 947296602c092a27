package segment

import (
	"bytes"
	"cmp"
	"fmt"
	"hash/crc32"
	"io"
	"slices"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/sstable"
	"github.com/cockroachdb/pebble/v2/sstable/block"
)

const (
	// TableFormat is the Pebble table format of a segment. A store that ingests
	// segments needs at least Pebble's FormatTableFormatV6. It is the first format
	// whose footer carries a checksum.
	TableFormat = sstable.TableFormatPebblev6

	// blockBytes is the uncompressed size of a data block: large enough that the
	// index of a segment stays small and compresses well, small enough that a
	// point read after a restore does not drag in much.
	blockBytes = 8 << 10
	// indexBlockBytes keeps the index of all but huge segments in one level.
	indexBlockBytes = 256 << 10
	// DefaultBloomBits is how many bits the filter of a segment has for each key: one
	// look in a hundred is in vain.
	DefaultBloomBits = 10
)

// compression tries Snappy on one data block in ten, and on the others as long as it
// saves a fifth: on values that don't compress it would cost a fifth of all writing and
// merging. It was measured on entries of 116 bytes, half of them random: 234 ns and 62 bytes
// an entry, against 155 ns and 110 bytes with none, 286 ns and 61 bytes with MinLZ, 500 ns
// and 61 bytes with Zstandard at its fastest.
var compression = &block.CompressionProfile{
	Name:                           "WeirSegment",
	DataBlocks:                     block.SnappyCompression.DataBlocks,
	ValueBlocks:                    block.SnappyCompression.ValueBlocks,
	OtherBlocks:                    block.NoCompression.OtherBlocks,
	MinReductionPercent:            12,
	AdaptiveReductionCutoffPercent: 20,
}

// castagnoli is the polynomial that processors have an instruction for.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Checksum returns the checksum over a whole segment, as in [Info].
func Checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

// Info describes a written segment.
type Info struct {
	Entries    int64  // keys with a value
	Tombstones int64  // deleted keys
	Bytes      int64  // size of the file
	MinKG      uint16 // lowest key-group; meaningless if the segment is empty
	MaxKG      uint16 // highest key-group, inclusive
	CRC32C     uint32 // over the whole file
}

// Empty tells that the segment says nothing.
func (i Info) Empty() bool { return i.Entries+i.Tombstones == 0 }

// Write writes runs as one segment. They are given oldest first: of several
// entries with one key the one in the newest run counts. It does not release them.
func Write(w io.Writer, runs ...Run) (Info, error) {
	return WriteFiltered(w, DefaultBloomBits, runs...)
}

// WriteFiltered is Write with that many bits for each key in the segment's filter; 0 is
// the default.
func WriteFiltered(w io.Writer, bits int, runs ...Run) (Info, error) {
	live := make([]Run, 0, len(runs))
	for _, r := range runs {
		if r.Len() > 0 {
			live = append(live, r)
		}
	}
	sw := newWriter(w, bits)
	if disjoint, ok := disjointOrder(live); ok {
		// Subtasks own contiguous key-groups: one run after the other, no comparison.
		for _, r := range disjoint {
			for i := range r.d.entries {
				if i%touchAhead == 0 {
					sw.touched ^= r.d.touch(i, min(i+touchAhead, len(r.d.entries)))
				}
				if err := sw.add(r.key(i), r.value(i), r.d.entries[i].vlen == tombstone); err != nil {
					return Info{}, sw.abort(err)
				}
			}
		}
		return sw.finish()
	}
	m := &merger{}
	for _, r := range live {
		m.sources = append(m.sources, source{cursor: &runCursor{run: r}})
	}
	if err := m.open(); err != nil {
		return Info{}, sw.abort(err)
	}
	return sw.drain(m, false)
}

// disjointOrder returns the runs in an order in which each ends before the next
// begins, if there is one.
func disjointOrder(runs []Run) ([]Run, bool) {
	sorted := slices.Clone(runs)
	slices.SortFunc(sorted, func(x, y Run) int { return bytes.Compare(x.key(0), y.key(0)) })
	for i := 1; i < len(sorted); i++ {
		if bytes.Compare(sorted[i-1].key(sorted[i-1].Len()-1), sorted[i].key(0)) >= 0 {
			return nil, false
		}
	}
	return sorted, true
}

// Merge writes what readers, oldest first, say together as one segment. With
// dropTombstones deleted keys vanish; that is right only if no older segment is
// left for them to hide.
func Merge(w io.Writer, dropTombstones bool, readers ...*Reader) (Info, error) {
	sw := newWriter(w, DefaultBloomBits)
	m, err := openMerger(nil, nil, readers)
	if err != nil {
		return Info{}, sw.abort(err)
	}
	defer m.close()
	return sw.drain(m, dropTombstones)
}

// writer writes one table and keeps the account.
type writer struct {
	table *sstable.Writer
	sink  *sink
	info  Info

	touched byte // of no meaning: keeps reads ahead from being optimised away
}

func newWriter(w io.Writer, bits int) *writer {
	s := &sink{w: w}
	return &writer{sink: s, table: sstable.NewWriter(s, sstable.WriterOptions{
		TableFormat:        TableFormat,
		BlockSize:          blockBytes,
		IndexBlockSize:     indexBlockBytes,
		Compression:        compression,
		FilterPolicy:       bloom.FilterPolicy(cmp.Or(bits, DefaultBloomBits)),
		DisableValueBlocks: true,
	})}
}

func (w *writer) add(key, value []byte, deleted bool) error {
	kg := uint16(key[0])<<8 | uint16(key[1])
	if w.info.Empty() {
		w.info.MinKG = kg
	}
	w.info.MaxKG = kg
	if deleted {
		w.info.Tombstones++
		return w.table.Delete(key)
	}
	w.info.Entries++
	return w.table.Set(key, value)
}

func (w *writer) drain(m *merger, dropTombstones bool) (Info, error) {
	for {
		ok, err := m.next()
		if err != nil {
			return Info{}, w.abort(err)
		}
		if !ok {
			return w.finish()
		}
		if m.deleted && dropTombstones {
			continue
		}
		if err := w.add(m.key, m.value, m.deleted); err != nil {
			return Info{}, w.abort(err)
		}
	}
}

func (w *writer) finish() (Info, error) {
	if err := w.table.Close(); err != nil {
		return Info{}, fmt.Errorf("write segment: %w", cmp.Or(w.sink.err, err))
	}
	w.info.Bytes, w.info.CRC32C = w.sink.n.Load(), w.sink.crc
	return w.info, nil
}

// abort closes the table, which has goroutines and buffers, and keeps the cause.
func (w *writer) abort(cause error) error {
	_ = w.table.Close()
	return fmt.Errorf("write segment: %w", cmp.Or(w.sink.err, cause))
}

// sink is the objstorage.Writable that Pebble writes to: it counts, sums and passes
// on. After an error it takes nothing more. Pebble calls it from a goroutine of its own:
// until the table is closed only n may be looked at.
type sink struct {
	w   io.Writer
	n   atomic.Int64
	crc uint32
	err error
}

func (s *sink) Write(p []byte) error {
	if s.err != nil {
		return s.err
	}
	s.crc = crc32.Update(s.crc, castagnoli, p)
	n, err := s.w.Write(p)
	s.n.Add(int64(n))
	if err == nil && n < len(p) {
		err = io.ErrShortWrite
	}
	s.err = err
	return err
}

func (s *sink) Finish() error { return s.err }

func (s *sink) Abort() {}
