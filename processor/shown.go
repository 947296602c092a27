package processor

import (
	"context"
	"reflect"

	"github.com/twmb/franz-go/pkg/kgo"
)

// shown is the context of a record that shows a value.
type shown struct {
	context.Context
	id  string
	val any
}

// Show lets a value that an operator emits go with the outputs of its epoch, as a record
// that [Shown] reads. For a topology that a [Stepper] runs. It shows a copy, because a sink
// has encoded the value when the handler goes on, and may change what it points to.
func (s *Subtask) Show(operator string, v any) {
	if rv := reflect.ValueOf(v); rv.IsValid() && hasMemory(rv.Type()) {
		v = (&copier{}).of(rv).Interface()
	}
	s.out.Produce(&kgo.Record{Context: shown{context.Background(), operator, v}})
}

// Shown returns what an operator showed.
func Shown(r *kgo.Record) (operator string, v any, ok bool) {
	sh, ok := r.Context.(shown)
	return sh.id, sh.val, ok
}

// copier copies values with what their exported parts point to. Structs with fields that are
// not exported keep what those point to, and are not copied behind a pointer: nobody but
// their package knows how.
type copier struct{ done map[pointee]reflect.Value }

// pointee is a pointer or map that was copied; others may point to the same.
type pointee struct {
	t  reflect.Type
	at uintptr
}

func (c *copier) of(v reflect.Value) reflect.Value {
	switch v.Kind() {
	case reflect.Interface:
		if v.IsNil() {
			return v
		}
		return c.of(v.Elem()).Convert(v.Type())
	case reflect.Pointer:
		if v.IsNil() || hasSecrets(v.Type().Elem()) {
			return v
		}
		return c.once(v, func() reflect.Value { return reflect.New(v.Type().Elem()).Convert(v.Type()) }, func(to reflect.Value) {
			to.Elem().Set(c.of(v.Elem()))
		})
	case reflect.Map:
		if v.IsNil() {
			return v
		}
		return c.once(v, func() reflect.Value { return reflect.MakeMapWithSize(v.Type(), v.Len()) }, func(to reflect.Value) {
			for i := v.MapRange(); i.Next(); {
				to.SetMapIndex(i.Key(), c.of(i.Value()))
			}
		})
	case reflect.Slice, reflect.Array:
		to := reflect.New(v.Type()).Elem()
		if v.Kind() == reflect.Slice {
			if v.IsNil() {
				return v
			}
			to = reflect.MakeSlice(v.Type(), v.Len(), v.Len())
		}
		reflect.Copy(to, v)
		if hasMemory(v.Type().Elem()) {
			for i := range v.Len() {
				to.Index(i).Set(c.of(v.Index(i)))
			}
		}
		return to
	case reflect.Struct:
		to := reflect.New(v.Type()).Elem()
		to.Set(v)
		for i := range v.NumField() {
			if f := v.Type().Field(i); f.IsExported() && hasMemory(f.Type) {
				to.Field(i).Set(c.of(v.Field(i)))
			}
		}
		return to
	}
	return v
}

// once copies what v points to, unless that was done: it may point to itself.
func (c *copier) once(v reflect.Value, make func() reflect.Value, fill func(to reflect.Value)) reflect.Value {
	at := pointee{v.Type(), v.Pointer()}
	if to, ok := c.done[at]; ok {
		return to
	}
	if c.done == nil {
		c.done = map[pointee]reflect.Value{}
	}
	to := make()
	c.done[at] = to
	fill(to)
	return to
}

// hasMemory tells whether values of a type may hold memory that can be changed.
func hasMemory(t reflect.Type) bool {
	switch t.Kind() {
	case reflect.Interface, reflect.Pointer, reflect.Map, reflect.Slice, reflect.Struct, reflect.Array:
		return true
	}
	return false
}

// hasSecrets tells whether a struct has fields that are not exported.
func hasSecrets(t reflect.Type) bool {
	if t.Kind() != reflect.Struct {
		return false
	}
	for i := range t.NumField() {
		if !t.Field(i).IsExported() {
			return true
		}
	}
	return false
}
