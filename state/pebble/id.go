package pebble

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
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

// markerJSON is the value under markerKey.
type markerJSON struct {
	Lineage     string `json:"lineage"`
	Checkpoint  int64  `json:"checkpoint"`
	Incarnation uint32 `json:"incarnation"`
	Hash        string `json:"hash"`
}

// reservedKG is the key-group that state never uses.
const reservedKG = 0xffff

var (
	// reservedStart and reservedEnd are the bounds [start, end) of the reserved
	// key-group, as far as this package uses it.
	reservedStart = []byte{0xff, 0xff}
	reservedEnd   = []byte{0xff, 0xff, 0xff}
	markerKey     = []byte{0xff, 0xff, 0x00, 0x00, 'i', 'd'}
)

// encode returns the value under markerKey. The zero ID is that of a store whose
// content is between two checkpoints.
func (id ID) encode() []byte {
	b, err := json.Marshal(markerJSON{id.Lineage, id.Checkpoint, id.Incarnation, hex.EncodeToString(id.Hash[:])})
	if err != nil {
		panic(err) // strings and numbers
	}
	return b
}

func decodeID(b []byte) (ID, error) {
	var m markerJSON
	if err := json.Unmarshal(b, &m); err != nil {
		return ID{}, fmt.Errorf("decode the marker of the local store: %w", err)
	}
	id := ID{Lineage: m.Lineage, Checkpoint: m.Checkpoint, Incarnation: m.Incarnation}
	if h, err := hex.DecodeString(m.Hash); err != nil || copy(id.Hash[:], h) != len(id.Hash) || len(h) != len(id.Hash) {
		return ID{}, fmt.Errorf("decode the marker of the local store: hash %q", m.Hash)
	}
	return id, nil
}
