package pebble

import (
	"context"
	"crypto/sha256"
	"fmt"
	"path"
	"strings"
	"time"
)

// ID says which committed checkpoint a store equals. The zero ID is that of an empty
// store.
type ID struct {
	// Lineage is the line of checkpoints, each the child of the one before it.
	Lineage     string
	Checkpoint  int64
	Incarnation uint32
	Hash        [16]byte // of the manifest
}

func (id ID) String() string {
	if id == (ID{}) {
		return "nothing"
	}
	return fmt.Sprintf("checkpoint %d-%d of lineage %s (manifest %x)", id.Checkpoint, id.Incarnation, id.Lineage, id.Hash[:4])
}

// Objects is where segments are. The store calls it from several goroutines, also
// after the call that it was given to, until it is closed or attached to another one. A
// call whose context ended it does not wait for.
type Objects interface {
	// GetRange returns n bytes of an object from offset off. If the object is shorter
	// than that, the error wraps io.ErrUnexpectedEOF.
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
}

func (s Segment) check() error {
	if s.Object == "" || s.Offset < 0 || s.Length <= 0 || s.MinKG > s.MaxKG {
		return fmt.Errorf("segment %+v makes no sense", s)
	}
	return nil
}

// file returns the name that the segment has in the store. Objects are never
// overwritten, but a checkpoint store may be emptied and filled again.
func (s Segment) file() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%d %d %d %s", s.Offset, s.Length, s.CRC32C, s.Object))
	const readable = 64
	base := strings.TrimSuffix(path.Base(s.Object), fileSuffix)
	return fmt.Sprintf("%x-%s%s", sum[:12], base[:min(len(base), readable)], fileSuffix)
}

const fileSuffix = ".sst"

// How tells how [Store.Attach] made the store equal a checkpoint.
type How uint8

const (
	Reused   How = iota // it had every segment
	CaughtUp            // it had some segments
	Rebuilt             // it had none
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
	Segments int           // of the chain
	Bytes    int64         // of these segments
	Reused   int           // segments that were there
	Linked   int           // segments taken by hard link
	Copied   int           // segments copied before use
	Remote   int           // segments that are read where they are until they are copied
	Took     time.Duration // until state could be read
}
