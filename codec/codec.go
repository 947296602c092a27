package codec

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"strings"
	"unicode"
)

// Codec encodes values of type T. It is safe for concurrent use.
//
// A codec of keys must tell them apart as == does: equal keys have equal bytes, different
// keys have different bytes, and Decode gives back a key that is == to the one that was
// encoded. A key of a stream that it does not give back can hold no state: its record fails.
// The keys of a map in state are told apart by their bytes alone.
type Codec[T any] interface {
	// Append appends the encoding of v to dst and returns the extended slice. It
	// keeps no reference to dst. After an error the bytes beyond len(dst) are
	// undefined and the returned slice is not to be used.
	Append(dst []byte, v T) ([]byte, error)
	// Decode returns the value that Append wrote as b, the whole of b. The value
	// may alias b if the codec is also a Cloner. Any b gives a value or an error,
	// never a panic.
	Decode(b []byte) (T, error)
	// Name is what manifests remember: "string", "int64", "json",
	// "proto:pkg.Message". It must never change for data that was written.
	Name() string
	// Version is the version that Append writes and Decode reads, from 1 to
	// 2147483647. It grows when the encoding changes in a way that Decode can't tell.
	// That is for values: what a codec of keys writes must never change, whatever its
	// version.
	Version() int
}

// maxVersion is the highest version that an entry of state can name.
const maxVersion = math.MaxInt32

// Migrator is implemented by a codec that also reads what its other versions wrote. Of
// state and records in flight it is given older versions only: newer ones are refused.
type Migrator[T any] interface {
	// DecodeVersion decodes what Append wrote when Version was version, which is
	// never the present Version. It must return an error for a version that it
	// doesn't know. The value may alias b if the codec is also a [Cloner].
	DecodeVersion(version int, b []byte) (T, error)
}

// Cloner is implemented by a codec whose Decode returns values that alias its input. A
// type that embeds a Codec[T] does not have the methods of what is in it beyond those of
// Codec: if that is a Cloner, such as [String], it needs a Clone of its own.
type Cloner[T any] interface {
	// Clone returns a value equal to v that shares no memory with it.
	Clone(v T) T
}

// Clone detaches v from the bytes that c decoded it from, so that it may be kept
// after they are gone.
func Clone[T any](c Codec[T], v T) T {
	if cl, ok := c.(Cloner[T]); ok {
		return cl.Clone(v)
	}
	return v
}

// DecodeVersion decodes what version of c wrote. The value may alias b, as with
// Decode. For another version than c's own, c must be a [Migrator], else the error
// is a *[VersionError].
func DecodeVersion[T any](c Codec[T], version int, b []byte) (T, error) {
	if version == c.Version() {
		return c.Decode(b)
	}
	if m, ok := c.(Migrator[T]); ok {
		v, err := m.DecodeVersion(version, b)
		if err != nil {
			return v, fmt.Errorf("codec %s: migrate version %d to %d: %w", c.Name(), version, c.Version(), err)
		}
		return v, nil
	}
	var zero T
	return zero, &VersionError{Codec: c.Name(), Written: version, Known: c.Version()}
}

// VersionError says that bytes were written by a version of a codec that this
// build can't read.
type VersionError struct {
	Codec   string // name of the codec
	Written int    // version that wrote the bytes
	Known   int    // version of this build
}

func (e *VersionError) Error() string {
	remedy := "give the codec a method DecodeVersion (codec.Migrator) that reads the old version"
	if e.Written > e.Known {
		remedy = "run the newer build that wrote it, or give the codec a method DecodeVersion (codec.Migrator) that reads the newer version"
	}
	return fmt.Sprintf("codec %s: data was written by version %d, this build has version %d: %s", e.Codec, e.Written, e.Known, remedy)
}

// Check reports everything that makes c unusable: no codec at all, no name, a name
// that a manifest can't carry, a version out of range, a [Cloner] that it embeds without being
// one, and what its own method Check() error reports, or that of a codec that it embeds: such
// as what [Func] and [Proto] found wrong with their arguments.
func Check[T any](c Codec[T]) error {
	if c == nil {
		return fmt.Errorf("codec for %s is nil: pass one, such as codec.String or codec.JSON", reflect.TypeFor[T]())
	}
	if b := within(reflect.ValueOf(c), reflect.TypeFor[checker]()); b.IsValid() && b.CanInterface() {
		if err := b.Interface().(checker).Check(); err != nil {
			return err
		}
	}
	var errs []error
	if name := c.Name(); name == "" {
		errs = append(errs, fmt.Errorf("codec %T: its name is empty: manifests find the codec of stored state by name", c))
	} else if strings.ToValidUTF8(name, "") != name || strings.ContainsFunc(name, unicode.IsControl) {
		errs = append(errs, fmt.Errorf("codec %q: its name must be UTF-8 text without control characters", name))
	}
	if v := c.Version(); v < 1 {
		errs = append(errs, fmt.Errorf("codec %s: its version is %d, the first version is 1", c.Name(), v))
	} else if v > maxVersion {
		errs = append(errs, fmt.Errorf("codec %s: its version is %d, more than %d: count versions from 1", c.Name(), v, maxVersion))
	}
	if _, ok := c.(Cloner[T]); !ok {
		if e := embedded(reflect.ValueOf(c), reflect.TypeFor[Cloner[T]]()); e != nil {
			errs = append(errs, fmt.Errorf("codec %s: %T embeds a %s, whose values alias the bytes that they are decoded from, but not its method Clone, so what is kept would change: give %[2]T a method Clone that returns codec.Clone of the embedded codec and the value", c.Name(), c, e))
		}
	}
	return errors.Join(errs...)
}

// CheckMapKeys reports what makes c unusable for the keys of a map in state: all that
// [Check] reports, and an [Ordered] that it embeds without being one, so that the map would
// not be in the order of its keys.
func CheckMapKeys[T any](c Codec[T]) error {
	if err := Check(c); err != nil {
		return err
	}
	if _, ok := c.(Ordered[T]); ok {
		return nil
	}
	if e := embedded(reflect.ValueOf(c), reflect.TypeFor[Ordered[T]]()); e != nil {
		return fmt.Errorf("codec %s: %T embeds a %s, but not its methods AppendOrdered and DecodeOrdered, so a map would not be in the order of its keys: give %[2]T these methods, which call those of the embedded codec; or, to go on with maps that it wrote already, keep that codec in a field with a name instead", c.Name(), c, e)
	}
	return nil
}

// embedded returns the type of v, or else of what is embedded in it, that implements an
// interface; nil if none does.
func embedded(v reflect.Value, want reflect.Type) reflect.Type {
	if v = within(v, want); !v.IsValid() {
		return nil
	}
	return v.Type()
}

// within returns v, or else what is embedded in it, that implements an interface; no value
// if nothing does.
func within(v reflect.Value, want reflect.Type) reflect.Value {
	for v.Kind() == reflect.Interface {
		v = v.Elem()
	}
	if !v.IsValid() || v.Type().Implements(want) {
		return v
	}
	if v.Kind() == reflect.Pointer {
		return within(v.Elem(), want)
	}
	if v.Kind() != reflect.Struct {
		return reflect.Value{}
	}
	for i := range v.NumField() {
		if !v.Type().Field(i).Anonymous {
			continue
		}
		if in := within(v.Field(i), want); in.IsValid() {
			return in
		}
	}
	return reflect.Value{}
}

// checker is implemented by codecs whose constructor can be given nonsense.
type checker interface{ Check() error }

// wrongSize is the error of a codec with a fixed size.
func wrongSize(name string, want int, b []byte) error {
	unit := "bytes"
	if want == 1 {
		unit = "byte"
	}
	return fmt.Errorf("codec %s: want %d %s, got %d", name, want, unit, len(b))
}
