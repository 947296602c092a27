package state_test

import (
	"bytes"
	"context"
	"fmt"
	"sync/atomic"

	"pgregory.net/rapid"

	"github.com/weirstream/weir/state"
	"github.com/weirstream/weir/state/pebble"
	"github.com/weirstream/weir/state/segment"
)

// localStore is a local store that is given the segments of a line of checkpoints.
type localStore struct {
	db      *pebble.Store
	at      pebble.ID
	chain   []pebble.Segment
	objects map[string][]byte
}

var lineages atomic.Int64

func newLocalStore(db *pebble.Store) *localStore {
	return &localStore{db: db, at: pebble.ID{Lineage: fmt.Sprintf("%016x", lineages.Add(1))}, objects: map[string][]byte{}}
}

// GetRange implements pebble.Objects.
func (l *localStore) GetRange(_ context.Context, object string, off, n int64) ([]byte, error) {
	return bytes.Clone(l.objects[object][off : off+n]), nil
}

// Path implements pebble.Objects.
func (l *localStore) Path(string) (string, bool) { return "", false }

func (l *localStore) Get(dst, key []byte, newest int64) ([]byte, bool, error) {
	return l.db.Get(dst, key, newest)
}

func (l *localStore) Iter(lo, hi []byte) (state.Iterator, error) {
	it, err := l.db.Iter(lo, hi)
	if err != nil {
		return nil, err
	}
	return localIter{it}, nil
}

type localIter struct{ *pebble.Iterator }

func (it localIter) Err() error { return it.Error() }

// attach makes the store equal the last committed checkpoint.
func (l *localStore) attach(t *rapid.T) {
	at := l.at
	if at.Checkpoint == 0 {
		at = pebble.ID{}
	}
	if _, err := l.db.Attach(t.Context(), at, l.chain, l); err != nil {
		t.Fatal(err)
	}
}

func (l *localStore) commit(t *rapid.T, id int64, runs []segment.Run) {
	var buf bytes.Buffer
	info, err := segment.Write(&buf, runs...)
	if err != nil {
		t.Fatal(err)
	}
	prev, want := l.at, l.at
	if prev.Checkpoint == 0 {
		prev = pebble.ID{}
	}
	want.Checkpoint = id
	var own *pebble.Segment
	if !info.Empty() {
		own = &pebble.Segment{Object: fmt.Sprintf("%s-%d", want.Lineage, id), Length: info.Bytes, CRC32C: info.CRC32C, MinKG: info.MinKG, MaxKG: info.MaxKG}
		l.objects[own.Object] = buf.Bytes()
		l.chain = append(l.chain[:len(l.chain):len(l.chain)], *own)
	}
	if err := l.db.Ingest(t.Context(), want, prev, own, buf.Bytes(), l.chain); err != nil {
		t.Fatal(err)
	}
	l.at = want
}
