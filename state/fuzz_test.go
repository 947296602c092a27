package state

import (
	"bytes"
	"math"
	"testing"
	"time"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/state/segment"
)

// What is restored as a timer is refused, or it fires once, at its time and for its key,
// and is encoded as what it was restored from. It is the same for what is read from a
// local store on demand.
func FuzzRestoreTimer(f *testing.F) {
	value := segment.AppendHeader(nil, segment.Header{Version: timerVersion})
	for _, ms := range []int64{0, 1, -1, 1_700_000_000_000, math.MinInt64, NoTimer - 1, NoTimer} {
		f.Add(append(appendTime(nil, ms), "key"...), value)
	}
	f.Add([]byte("short"), value)
	f.Add(appendTime(nil, 5), value)
	f.Add(append(appendTime(nil, 5), "no header"...), []byte{})
	f.Add(append(appendTime(nil, 5), "bad header"...), []byte{0xff})

	const id = 1
	f.Fuzz(func(t *testing.T, userKey, value []byte) {
		keyOf := func() []byte { return userKey[min(timeBytes, len(userKey)):] }
		kg := uint16(keygroup.Of(keyOf(), timerKeyGroups))
		stored := &committedTable{entries: map[string][]byte{string(segment.AppendKey(nil, kg, id, userKey)): value}}
		for _, backed := range []bool{false, true} {
			ks, timers := fuzzTimers(stored, backed)
			if !backed {
				if err := ks.Restore(kg, id, userKey, value); err != nil {
					continue
				}
			}
			var fired []time.Time
			var key string
			timers.Fire(NoTimer-1, func(tm Timer) bool {
				fired = append(fired, tm.At)
				key = ks.Key()
				timers.Set(tm.At.Add(time.Millisecond))
				timers.Delete(tm.At.Add(time.Millisecond))
				return true
			})
			if err := ks.Err(); err != nil {
				if !backed {
					t.Fatalf("restored %x, and it fails when it fires: %v", userKey, err)
				}
				continue
			}
			if len(fired) != 1 || fired[0].UnixMilli() != cutTime(userKey) || key != string(keyOf()) {
				t.Fatalf("backed=%v: %x fired at %v, the last for key %q", backed, userKey, fired, key)
			}

			ks, timers = fuzzTimers(&committedTable{entries: map[string][]byte{}}, backed)
			ks.Use(key, kg)
			timers.Set(fired[0])
			var b segment.Builder
			ks.Cut(&b, 1)
			if done, err := ks.Encode(10); err != nil || !done {
				t.Fatal(done, err)
			}
			n := 0
			for e := range b.Finish().All() {
				if n++; e.Deleted || e.KeyGroup != kg || e.State != id || !bytes.Equal(e.Key, userKey) {
					t.Fatalf("%x is encoded as %+v", userKey, e)
				}
			}
			if n != 1 {
				t.Fatalf("%x is encoded as %d entries", userKey, n)
			}
		}
	})
}

func fuzzTimers(stored *committedTable, backed bool) (*Keyspace[string], *Timers) {
	cfg := Config{}
	if backed {
		cfg = Config{Backing: stored, MemoryBytes: 1, Committed: func() int64 { return 0 }, KeyGroups: timerKeyGroups}
	}
	ks := NewKeyspace(codec.String, cfg)
	scope := NewScope("op")
	timers := EventTimers(benchSetup{scope})
	ks.Attach(scope, []uint16{1})
	return ks, timers
}
