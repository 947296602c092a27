package state

import (
	"reflect"
	"unsafe"
)

// encodeAhead is how many cells are looked at together before they are encoded, so that
// they wait for memory together: what changed lies far apart in a large state.
const encodeAhead = 16

// reach is where values of a type refer to other memory: what encoding them reads there.
type reach []far

// far is a string or a slice, at an offset in a value: a pointer and a length.
type far struct {
	offset uintptr
	size   uintptr // of an element
}

// reachFurthest is how many bytes of a string or a slice are looked at. The processor
// itself reads ahead in what is longer.
const (
	reachFurthest = 256
	cacheLine     = 64
)

// reachOf returns what values of type t refer to. Pointers are left out: what they point
// to may be guarded by a lock that only the codec knows.
func reachOf(t reflect.Type) reach { return reachFrom(nil, t, 0) }

func reachFrom(r reach, t reflect.Type, offset uintptr) reach {
	switch t.Kind() {
	case reflect.String:
		return append(r, far{offset: offset, size: 1})
	case reflect.Slice:
		if flat(t.Elem()) {
			return append(r, far{offset: offset, size: t.Elem().Size()})
		}
	case reflect.Struct:
		for f := range t.Fields() {
			r = reachFrom(r, f.Type, offset+f.Offset)
		}
	}
	return r
}

// touch reads what the value at v refers to, to have it in the cache soon. The result has
// no meaning.
func (r reach) touch(v unsafe.Pointer) (touched uint8) {
	for _, f := range r {
		at := unsafe.Add(v, f.offset)
		p := *(*unsafe.Pointer)(at)
		n := min(uintptr(*(*int)(unsafe.Add(at, unsafe.Sizeof(p))))*f.size, reachFurthest)
		for i := uintptr(0); i < n; i += cacheLine {
			touched ^= *(*uint8)(unsafe.Add(p, i))
		}
		if n > 0 {
			touched ^= *(*uint8)(unsafe.Add(p, n-1))
		}
	}
	return touched
}
