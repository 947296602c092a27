package state

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"slices"
	"strings"

	"github.com/weirstream/weir/codec"
)

// ChangedError says that a value that is stored was changed in place, and not set
// afterwards. Whether a checkpoint has the change is a matter of luck.
type ChangedError struct {
	Operator, State string
	Key             any // nil for a broadcast state
	// Was and Is are the value as it was when it was last set or read, and as it is.
	Was, Is any
}

func (e *ChangedError) Error() string {
	of := ""
	if e.Key != nil {
		of = fmt.Sprintf(" of key %v", e.Key)
	}
	was, is := fmt.Sprintf("%+v", e.Was), fmt.Sprintf("%+v", e.Is)
	old, errOld := json.Marshal(e.Was) // shows what is behind pointers
	now, errNow := json.Marshal(e.Is)
	if errOld == nil && errNow == nil && !bytes.Equal(old, now) {
		was, is = string(old), string(now)
	}
	return fmt.Sprintf("operator %q: state %q%s: a value was changed in place after it was set or read: it was %s and is %s, and a checkpoint may have either; Set or Put what you change, or change a copy; of the functions of an aggregate only Add, which returns it, may change the accumulator",
		e.Operator, e.State, of, was, is)
}

// watch keeps an eye on the values that handlers set and get, for [Keyspace.Changed].
type watch struct {
	seen map[any]func() error // by pointer to a cell or an entry
}

// forget is called before the cell or entry changes in a way that is seen.
func (w *watch) forget(cell any) { delete(w.seen, cell) }

// look notes how the value of a cell is encoded, unless it is known. of says what it is a
// value of.
func look[V any](w *watch, cell any, v *V, c codec.Codec[V], of func() ChangedError) {
	if w.seen[cell] != nil {
		return
	}
	was, ok := encoded(c, *v)
	if !ok {
		return
	}
	w.seen[cell] = func() error {
		is, ok := encoded(c, *v)
		if !ok || bytes.Equal(is, was) {
			return nil
		}
		// Equal values may be encoded differently. But what the bytes say is equal then.
		before, errBefore := c.Decode(was)
		now, errNow := c.Decode(is)
		if errBefore != nil || errNow != nil || reflect.DeepEqual(before, now) {
			return nil
		}
		e := of()
		e.Was, e.Is = before, now
		return &e
	}
}

// encoded is what a checkpoint would hold of v, if anything: what is wrong with it the
// next one tells.
func encoded[V any](c codec.Codec[V], v V) (b []byte, ok bool) {
	defer func() { ok = recover() == nil && ok }()
	b, err := c.Append(nil, v)
	return b, err == nil
}

// Changed is a [ChangedError] if a value that was set or read since the last call was changed
// behind the back of its handle. It needs [Config].Watch.
func (ks *Keyspace[K]) Changed() error {
	if ks.seen == nil {
		return nil
	}
	var found []error
	for _, f := range ks.seen.seen {
		if err := f(); err != nil {
			found = append(found, err)
		}
	}
	clear(ks.seen.seen)
	if len(found) == 0 {
		return nil
	}
	return slices.MinFunc(found, func(a, b error) int { return strings.Compare(a.Error(), b.Error()) })
}

func (h *OfValue[V]) look(slot uint32, c *cell[V]) {
	look(h.seen, c, &c.v, h.codec, func() ChangedError {
		return ChangedError{Operator: h.operator, State: h.name, Key: h.keys.keyAt(slot)}
	})
}

func (h *entryTable[V]) look(e *entry[V]) {
	look(h.seen, e, &e.v, h.codec, func() ChangedError {
		c := ChangedError{Operator: h.operator, State: h.name}
		if !h.shared {
			c.Key = h.keys.keyAt(e.slot)
		}
		return c
	})
}
