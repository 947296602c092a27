package segment

import (
	"bytes"
	"errors"
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

func TestGetFindsValuesAndTombstonesAndNothingElse(t *testing.T) {
	var b Builder
	for n := range 3000 {
		if key := fmt.Sprintf("%05d", 2*n); n%10 == 0 {
			b.DeleteDone(append(b.BeginDelete(3, 1), key...))
		} else {
			b.ValueDone(append(b.KeyDone(append(b.BeginPut(3, 1), key...)), "v"+key...))
		}
	}
	var buf bytes.Buffer
	if _, err := Write(&buf, b.Finish()); err != nil {
		t.Fatal(err)
	}
	whole := open(t, buf.Bytes())
	parts, err := OpenAt(bytes.NewReader(buf.Bytes()), int64(buf.Len()))
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []*Reader{whole, parts} {
		for n := range 6010 {
			key := fmt.Sprintf("%05d", n)
			value, found, deleted, err := r.Get([]byte("x"), AppendKey(nil, 3, 1, []byte(key)))
			want := "x"
			if n%2 == 0 && n%20 != 0 && n < 6000 {
				want += "v" + key
			}
			if err != nil || string(value) != want || found != (n%2 == 0 && n < 6000) || deleted != (found && n%20 == 0) {
				t.Fatalf("%s: %q, found %t, deleted %t, %v", key, value, found, deleted, err)
			}
		}
		if _, found, _, err := r.Get(nil, AppendKey(nil, 3, 2, []byte("00002"))); found || err != nil {
			t.Errorf("a key of another state: found %t, %v", found, err)
		}
	}
	damaged := bytes.Clone(buf.Bytes())
	for i := range len(damaged) / 2 {
		damaged[i] ^= 1
	}
	r, err := Open(damaged)
	if err != nil {
		t.Fatal(err)
	}
	if _, found, _, err := r.Get(nil, AppendKey(nil, 3, 1, []byte("00002"))); found || !errors.Is(err, ErrCorrupt) {
		t.Errorf("of a damaged block: found %t, %v", found, err)
	}
}
