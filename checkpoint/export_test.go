package checkpoint

import (
	"os"
	"testing"
	"time"
)

// Settle waits until the writer has no background work left.
func (w *Writer) Settle() { w.settle() }

var (
	DecodeManifest  = decodeManifest
	ManifestObject  = manifestObject
	DecodeSavepoint = decodeSavepoint
)

// PickMerge returns the part [lo, hi) of a chain whose segments have all to do with
// one key-group that is to be merged next.
func PickMerge(chain []SegmentRef, fanIn int, overlay int64) (lo, hi int, ok bool) {
	p, ok := pickMerge(chain, 8, nil, fanIn, overlay, -1, 1<<62)
	if !ok {
		return 0, 0, false
	}
	return p.inputs[0], p.inputs[len(p.inputs)-1] + 1, true
}

const TempAge = tempAge

var (
	EncodePack = encodePack
	DecodePack = decodePack
)

// EncodeManifest returns the bytes of a manifest without an inline part.
func EncodeManifest(m *Manifest) ([]byte, error) {
	b, _, err := m.encode(nil)
	return b, err
}

// SetLineage gives a writer that has made nothing yet another lineage.
func SetLineage(w *Writer, lineage string) { w.lineage = lineage }

// SetClock sets what time objects are written at.
func (m *Mem) SetClock(now func() time.Time) { m.now = now }

// SetNaming replaces how a store of a directory gives a file its name, until the test ends.
// nil stands for the real one.
func SetNaming(t *testing.T, link, moveNew func(from, to string) error) {
	t.Cleanup(func() { linkFile, moveNewFile = os.Link, renameNoReplace })
	if link != nil {
		linkFile = link
	}
	if moveNew != nil {
		moveNewFile = moveNew
	}
}
