package pebble

import (
	"context"
	"fmt"
	"time"
)

// Objects is where segments are. The store calls it from many goroutines, also after
// the call that it was given to, until it is closed or attached anew.
type Objects interface {
	// GetRange returns n bytes of an object from offset off. If the object is shorter
	// than that, it is an error.
	GetRange(ctx context.Context, object string, off, n int64) ([]byte, error)
	// Path returns the local file that an object is, if it is one. The store makes
	// hard links to it and neither changes nor removes it.
	Path(object string) (path string, ok bool)
}

// Segment is one element of the chain of a checkpoint.
type Segment struct {
	Object         string
	Offset, Length int64 // bytes
	CRC32C         uint32
	MinKG, MaxKG   uint16 // inclusive
	First, Last    int64  // the checkpoints whose changes it holds
	// Base tells that tombstones were dropped, because nothing older was left in the
	// chain for them to hide. It does not tell of keys that it lacks whether a store
	// which is behind has them.
	Base                bool
	Entries, Tombstones int64
}

func (s Segment) check() error {
	if s.Object == "" || s.Offset < 0 || s.Length <= 0 || s.MinKG > s.MaxKG || s.MaxKG >= reservedKG || s.First > s.Last {
		return fmt.Errorf("segment %+v makes no sense", s)
	}
	return nil
}

// How tells how [Store.Attach] made the store equal a checkpoint.
type How uint8

const (
	Reused   How = iota // it did already
	CaughtUp            // by what changed since
	Rebuilt             // from nothing
)

func (h How) String() string {
	switch h {
	case Reused:
		return "reused"
	case CaughtUp:
		return "caught up"
	case Rebuilt:
		return "rebuilt"
	}
	return fmt.Sprintf("how %d", uint8(h))
}

// Attached says what [Store.Attach] did.
type Attached struct {
	How      How
	Why      string        // it could neither be reused nor caught up; empty if it could
	Segments int           // that were ingested
	Bytes    int64         // of these segments, wherever they are
	Linked   int           // segments taken by hard link
	Remote   int           // segments that are read where they are until they are copied
	Took     time.Duration // until it could be read
}
