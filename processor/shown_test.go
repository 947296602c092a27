package processor

import (
	"math/big"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

type linked struct {
	Name string
	Next *linked
	All  map[string]*linked
}

type inner struct{ N []int }

type mixedBag struct {
	inner
	Any    any
	None   any
	Err    error
	At     time.Time
	Zone   *time.Location
	Big    *big.Int
	Do     func()
	Array  [2][]byte
	Nested []map[string]any
	hidden map[string]int
	mu     *sync.Mutex
}

type pointerTo *linked

// Whatever a handler emits can be shown, and is equal to what it emitted.
func TestCopiesAreEqual(t *testing.T) {
	cycle := &linked{Name: "a", All: map[string]*linked{}}
	cycle.Next, cycle.All["self"] = cycle, cycle
	full := mixedBag{
		inner: inner{[]int{1}}, Any: map[string]any{"a": nil, "b": []any{1, nil, &linked{Name: "x"}}}, At: time.Now(), Zone: time.UTC,
		Big: big.NewInt(7), Array: [2][]byte{{1}, nil}, Nested: []map[string]any{nil, {"a": 1.5}}, hidden: map[string]int{"a": 1}, mu: &sync.Mutex{},
	}
	for _, v := range []any{
		1, "text", []byte("bytes"), []byte(nil), map[string]int(nil), (*linked)(nil), cycle, full, &full, pointerTo(&linked{Name: "p"}), [1]any{nil},
		&kgo.Record{Value: []byte("v"), Headers: []kgo.RecordHeader{{Key: "k", Value: []byte("v")}}, Timestamp: time.Now()},
	} {
		got := (&copier{}).of(reflect.ValueOf(v)).Interface()
		if reflect.TypeOf(got) != reflect.TypeOf(v) || !reflect.DeepEqual(got, v) {
			t.Errorf("%T: %+v is copied as %+v", v, v, got)
		}
	}
	c := (&copier{}).of(reflect.ValueOf(cycle)).Interface().(*linked)
	if c == cycle || c.Next != c || c.All["self"] != c {
		t.Errorf("what points to itself is copied as %p, which points to %p and %p", c, c.Next, c.All["self"])
	}
}
