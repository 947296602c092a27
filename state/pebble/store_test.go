package pebble

import (
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func TestStoreFollowsCommitsAndIsReusedAfterARestart(t *testing.T) {
	for _, remote := range []bool{false, true} {
		fs := vfs.NewMem()
		b := newDirBucket(t, fs, "bucket")
		if remote {
			b = newRemoteBucket()
		}
		s := open(t, fs, Options{})
		h := newHistory(t, b, "aa")
		h.commit(set(1, "a", "1"), set(2, "b", "1"))
		if a := h.attach(s); a.How != Rebuilt || a.Segments != 1 {
			t.Fatalf("%+v", a)
		}
		h.holds(s, h.at)
		h.ingest(s, set(1, "a", "2"), del(2, "b"), set(300, "c", ""))
		h.holds(s, h.at)
		h.ingest(s)
		h.holds(s, h.at)
		closeStore(t, s)
		s = open(t, fs, Options{})
		if a := h.attach(s); a.How != Reused {
			t.Fatalf("%+v", a)
		}
		h.holds(s, h.at)
		closeStore(t, s)
	}
}
