package state

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"unsafe"

	"github.com/weirstream/weir/codec"
	"github.com/weirstream/weir/internal/keygroup"
	"github.com/weirstream/weir/state/segment"
)

func TestReach(t *testing.T) {
	type inner struct {
		n    int32
		name string
	}
	type value struct {
		flag   bool
		in     inner
		tags   []string
		counts []int32
		other  *inner
		any    any
		byName map[string]int
		none   []struct{}
	}
	var v value
	want := reach{
		{offset: unsafe.Offsetof(v.in) + unsafe.Offsetof(v.in.name), size: 1},
		{offset: unsafe.Offsetof(v.counts), size: 4},
		{offset: unsafe.Offsetof(v.none)},
	}
	r := reachOf(reflect.TypeFor[value]())
	if !reflect.DeepEqual(r, want) {
		t.Fatalf("%+v, want %+v", r, want)
	}
	if got := r.touch(unsafe.Pointer(&v)); got != 0 {
		t.Errorf("nothing is there, and %d was read", got)
	}
	v.none = make([]struct{}, 5)
	v.in.name = "a"
	v.counts = []int32{0x40}
	if got := r.touch(unsafe.Pointer(&v)); got != 0x40 {
		// The only byte of name is read twice, first and last; of counts the first and the last.
		t.Errorf("%#x was read", got)
	}
}

// BenchmarkEncodeScattered encodes keys and values that lie far apart: those that changed
// at random among a million, which were made in another order than their slots.
func BenchmarkEncodeScattered(b *testing.B) {
	const keys, dirty = 1 << 20, 8 << 10
	ks := NewKeyspace(codec.String, Config{})
	scope := NewScope("op")
	v := Value(benchSetup{scope}, "v", codec.Bytes)
	ks.Attach(scope, []uint16{1})
	names := make([]string, keys)
	for i := range names {
		names[i] = fmt.Sprintf("key-%08d", i)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	update := func(i int) {
		ks.Use(names[i], uint16(keygroup.Of([]byte(names[i]), benchKeyGroups)))
		v.Set(bytes.Clone(v.Get()))
	}
	for _, i := range rng.Perm(keys) {
		ks.Use(names[i], uint16(keygroup.Of([]byte(names[i]), benchKeyGroups)))
		v.Set(make([]byte, 100))
	}
	for _, i := range rng.Perm(keys) {
		update(i)
	}
	var into segment.Builder
	if err := ks.Freeze(&into, 1); err != nil {
		b.Fatal(err)
	}
	into.Finish().Release()
	checkpoint := int64(1)
	b.ReportAllocs()
	b.ResetTimer()
	for n := 0; n < b.N; n += dirty {
		b.StopTimer()
		for range dirty {
			update(rng.IntN(keys))
		}
		for range keys / 8 { // what changed is not in the cache any more
			ks.Use(names[rng.IntN(keys)], 0)
			_ = v.Get()
		}
		checkpoint++
		ks.Cut(&into, checkpoint)
		b.StartTimer()
		for done := false; !done; {
			var err error
			if done, err = ks.Encode(256); err != nil {
				b.Fatal(err)
			}
		}
		b.StopTimer()
		into.Finish().Release()
		b.StartTimer()
	}
}
