package main

import (
	"encoding/binary"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/weirstream/weir/checkpoint"
	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/offsets"
	"github.com/weirstream/weir/state/segment"
)

// run runs the tool in this process and returns what it printed.
func run(t *testing.T, args ...string) (stdout, stderr string, err error) {
	t.Helper()
	var out, errOut strings.Builder
	cmd := newCommand()
	cmd.SetArgs(longFlags(args))
	cmd.SetOut(&out)
	cmd.SetErr(&errOut)
	err = cmd.ExecuteContext(t.Context())
	return out.String(), errOut.String(), err
}

// mustRun returns standard output.
func mustRun(t *testing.T, args ...string) string {
	t.Helper()
	out, _, err := run(t, args...)
	if err != nil {
		t.Fatalf("weir %s: %v", strings.Join(args, " "), err)
	}
	return out
}

// refused makes sure that the tool refuses, and says all that is wanted.
func refused(t *testing.T, args []string, want ...string) {
	t.Helper()
	_, _, err := run(t, args...)
	if err == nil {
		t.Errorf("weir %s: no error, want %q", strings.Join(args, " "), want)
		return
	}
	for _, w := range want {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("weir %s: error %q lacks %q", strings.Join(args, " "), err, w)
		}
	}
}

const storeGroups = 128

// taken is when the first checkpoint of the test store was taken.
var taken = time.Date(2026, 11, 21, 12, 0, 0, 0, time.UTC)

func setClock(t *testing.T, at time.Time) {
	old := clock
	clock = func() time.Time { return at }
	t.Cleanup(func() { clock = old })
}

// payments makes a store with three checkpoints of an app, sets WEIR_STORE to it and
// the clock to a little later.
func payments(t *testing.T) (dir string, refs []offsets.ManifestRef) {
	t.Helper()
	dir = t.TempDir()
	t.Setenv("WEIR_STORE", "file://"+dir)
	t.Setenv("WEIR_BROKERS", "")
	t.Setenv("WEIR_GROUP", "")
	store, err := checkpoint.OpenDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	now := taken
	w, err := checkpoint.NewWriter(checkpoint.Config{
		Store: store, App: "payments", Instance: "host-a", KeyGroups: storeGroups, Incarnation: 0xa1b2c3d4, InlineLimit: -1, Retain: 10,
		Now: func() time.Time { return now },
	})
	if err != nil {
		t.Fatal(err)
	}
	states := []checkpoint.StateInfo{
		{ID: 1, Operator: "balance", Name: "total", Kind: "value", KeyCodec: "string", ValueCodec: "int64", ValueVersion: 1},
		{ID: 2, Operator: "balance", Name: "limits", Kind: "map", KeyCodec: "string", SubCodec: "string", ValueCodec: "json", ValueVersion: 1},
		{ID: 3, Operator: "balance", Name: "recent", Kind: "list", KeyCodec: "string", ValueCodec: "proto:payments.Payment", ValueVersion: 1},
		{ID: 4, Operator: "balance", Name: "event-timers", Kind: "timers", KeyCodec: "string"},
	}
	var b segment.Builder
	put := func(state uint16, key string, userKey []byte, h segment.Header, value []byte) {
		dst := append(b.BeginPut(uint16(keygroup.Of([]byte(key), storeGroups)), state), userKey...)
		b.ValueDone(append(segment.AppendHeader(b.KeyDone(dst), h), value...))
	}
	v1 := segment.Header{Version: 1}
	total := func(key string, n int64, h segment.Header) {
		value, _ := codec.Int64.Append(nil, n)
		put(1, key, []byte(key), h, value)
	}
	persist := func(id int64) {
		t.Helper()
		positions := map[offsets.Partition]offsets.Position{}
		for p := range int32(4) {
			positions[offsets.Partition{Topic: "payments", Partition: p}] = offsets.Position{Offset: 1000*id + int64(p)}
		}
		ref, _, err := w.Persist(t.Context(), checkpoint.Snapshot{
			Checkpoint: id, Watermark: taken.UnixMilli() - 5000, States: states, Positions: positions, Runs: []segment.Run{b.Finish()},
		})
		if err != nil {
			t.Fatal(err)
		}
		w.Committed(id)
		refs = append(refs, ref)
		now = now.Add(time.Second)
	}
	for n := range 200 {
		total(fmt.Sprintf("user-%03d", n), int64(n), v1)
	}
	total("alice", 500, v1)
	total("bob", 20, v1)
	put(2, "alice", append(segment.AppendEscaped(nil, []byte("alice")), "EUR"...), v1, []byte(`{"daily":1000}`))
	put(2, "alice", append(segment.AppendEscaped(nil, []byte("alice")), "USD"...), v1, []byte(`{"daily":800}`))
	put(3, "alice", binary.BigEndian.AppendUint64(segment.AppendEscaped(nil, []byte("alice")), 0), v1, []byte{0x08, 0x05})
	persist(4709)
	total("alice", 300, v1)
	b.DeleteDone(append(b.BeginDelete(uint16(keygroup.Of([]byte("bob"), storeGroups)), 1), "bob"...))
	total("guest", 7, segment.Header{Version: 1, Domain: segment.ProcessingTime, Expires: taken.Add(time.Hour).UnixMilli()})
	total("stale", 9, segment.Header{Version: 1, Domain: segment.ProcessingTime, Expires: taken.UnixMilli()})
	persist(4710)
	put(4, "alice", append(binary.BigEndian.AppendUint64(nil, uint64(taken.Add(time.Minute).UnixMilli())^1<<63), "alice"...), v1, nil)
	total("carol", -5, v1)
	persist(4711)
	if err := w.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	setClock(t, taken.Add(14*time.Second))
	return dir, refs
}

// damage flips a bit in the middle of an object.
func damage(t *testing.T, file string) {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	b[len(b)/2] ^= 1
	if err := os.WriteFile(file, b, 0o644); err != nil {
		t.Fatal(err)
	}
}
