package segment

import (
	"bytes"
	"fmt"
	"testing"
)

func TestIterJumpsForwardAndBack(t *testing.T) {
	var b Builder
	for kg := range uint16(4) {
		for n := range 1000 {
			b.ValueDone(append(b.KeyDone(fmt.Appendf(b.BeginPut(kg, 1), "%04d", n)), 'v'))
		}
		b.DeleteDone(append(b.BeginDelete(kg, 2), 'x'))
	}
	var buf bytes.Buffer
	if _, err := Write(&buf, b.Finish()); err != nil {
		t.Fatal(err)
	}
	r, err := OpenAt(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	if err != nil {
		t.Fatal(err)
	}
	it, err := r.Iter()
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	for _, c := range []struct {
		kg, state uint16
		key, want string
	}{{2, 1, "0500", "2/1/0500"}, {2, 2, "", "2/2/x"}, {0, 0, "", "0/1/0000"}, {3, 1, "0999z", "3/2/x"}, {1, 1, "0998a", "1/1/0999"}} {
		if !it.Seek(AppendKey(nil, c.kg, c.state, []byte(c.key))) {
			t.Fatalf("seek to %v: nothing (%v)", c, it.Err())
		}
		e := it.Entry()
		if got := fmt.Sprintf("%d/%d/%s", e.KeyGroup, e.State, e.Key); got != c.want || e.Deleted != (e.State == 2) {
			t.Errorf("seek to %v: stands on %s, deleted %t", c, got, e.Deleted)
		}
	}
	it.Seek(AppendKey(nil, 1, 1, []byte("0999")))
	if !it.Next() || it.Entry().State != 2 || !it.Next() || it.Entry().KeyGroup != 2 {
		t.Errorf("after the last key of a state stands %v", it.Entry())
	}
	if it.Seek(AppendKey(nil, 9, 0, nil)) || it.Err() != nil {
		t.Errorf("beyond the end: %v", it.Err())
	}
	if !it.Seek(AppendKey(nil, 0, 0, nil)) {
		t.Error("no way back from the end")
	}
}
