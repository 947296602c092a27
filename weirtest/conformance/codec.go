package conformance

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"sync"
	"testing"

	"github.com/weirstream/weir/codec"
)

// Codec checks a [codec.Codec].
type Codec[T any] struct {
	Codec codec.Codec[T]
	// Values are samples: at least two, all different, and among them what is special, such
	// as the zero value, the empty and the very large. They are not changed.
	Values []T
	// Equal tells whether two values are the same. Nil: reflect.DeepEqual.
	Equal func(a, b T) bool
	// Key says that the codec is used for keys, of KeyBy or of maps in state: then equal
	// values must have equal bytes, and different ones different bytes.
	Key bool
	// Compare, if it is set, is the order that the encodings of map keys must have, or the
	// ordered encodings of a [codec.Ordered]: negative if a comes before b, as with
	// cmp.Compare.
	Compare func(a, b T) int
	// Old are values that earlier versions of the codec wrote, see [codec.Migrator].
	Old []Encoded[T]
}

// Encoded is what a version of a codec wrote, and the value that it stands for.
type Encoded[T any] struct {
	Version int
	Bytes   []byte
	Value   T
}

// Run runs the suite, each rule as a subtest.
func (s Codec[T]) Run(t *testing.T) { run(t, s.rules()) }

func (s Codec[T]) rules() []rule {
	if s.Equal == nil {
		s.Equal = func(a, b T) bool { return reflect.DeepEqual(a, b) }
	}
	if s.Codec == nil {
		return []rule{{"NameAndVersionAreFit", s.named}} // it says so
	}
	plain := encoding[T]{"Append", "Decode", s.Codec.Append, s.Codec.Decode}
	rules := []rule{
		{"NameAndVersionAreFit", s.named},
		{"DecodeReturnsWhatWasAppended", func(t testing.TB) { s.roundTrip(t, plain) }},
		{"AppendKeepsWhatIsInFront", func(t testing.TB) { s.appends(t, plain) }},
		{"AppendKeepsNoReference", func(t testing.TB) { s.keepsNone(t, plain) }},
		{"DecodeChangesNothing", func(t testing.TB) { s.readsOnly(t, plain) }},
		{"ValuesAliasBytesOnlyOfACloner", func(t testing.TB) { s.aliases(t, plain) }},
		{"GarbageGivesAValueOrAnError", func(t testing.TB) { s.garbage(t, plain) }},
		{"AnUnknownVersionIsRefused", s.unknownVersion},
		{"OldVersionsAreRead", s.oldVersions},
		{"SeveralGoroutinesMayUseIt", func(t testing.TB) { s.concurrent(t, plain) }},
	}
	if s.Key {
		rules = append(rules, rule{"EqualKeysHaveEqualBytes", func(t testing.TB) { s.deterministic(t, plain) }}, rule{"DifferentKeysHaveDifferentBytes", s.distinct})
	}
	ordered, ok := any(s.Codec).(codec.Ordered[T])
	sorted := plain
	if ok {
		sorted = encoding[T]{"AppendOrdered", "DecodeOrdered", ordered.AppendOrdered, ordered.DecodeOrdered}
		rules = append(rules,
			rule{"DecodeOrderedReturnsWhatWasAppended", func(t testing.TB) { s.roundTrip(t, sorted) }},
			rule{"AppendOrderedKeepsWhatIsInFront", func(t testing.TB) { s.appends(t, sorted) }},
			rule{"AppendOrderedKeepsNoReference", func(t testing.TB) { s.keepsNone(t, sorted) }},
			rule{"DecodeOrderedChangesNothing", func(t testing.TB) { s.readsOnly(t, sorted) }},
			rule{"OrderedValuesAliasBytesOnlyOfACloner", func(t testing.TB) { s.aliases(t, sorted) }},
			rule{"OrderedGarbageGivesAValueOrAnError", func(t testing.TB) { s.garbage(t, sorted) }},
			rule{"SeveralGoroutinesMayUseTheOrderedEncoding", func(t testing.TB) { s.concurrent(t, sorted) }})
		if s.Key {
			rules = append(rules, rule{"EqualKeysHaveEqualOrderedBytes", func(t testing.TB) { s.deterministic(t, sorted) }})
		}
	}
	if s.Compare != nil {
		rules = append(rules, rule{"EncodingsSortAsValuesDo", func(t testing.TB) { s.order(t, sorted) }})
	}
	return rules
}

// encoding is one of the encodings of a codec.
type encoding[T any] struct {
	appends, decodes string // names of the methods
	append           func(dst []byte, v T) ([]byte, error)
	decode           func(b []byte) (T, error)
}

func (e encoding[T]) of(t testing.TB, v T) []byte {
	t.Helper()
	b, err := e.append(nil, v)
	if err != nil {
		t.Fatalf("%s(nil, %+v): %v", e.appends, v, err)
	}
	return b
}

func (e encoding[T]) value(t testing.TB, b []byte) T {
	t.Helper()
	v, err := e.decode(b)
	if err != nil {
		t.Fatalf("%s(%x): %v", e.decodes, b, err)
	}
	return v
}

func (s Codec[T]) named(t testing.TB) {
	if len(s.Values) < 2 {
		t.Fatalf("the suite has %d sample values, and needs at least two", len(s.Values))
	}
	if err := codec.Check(s.Codec); err != nil {
		t.Fatal(err)
	}
	name, version := s.Codec.Name(), s.Codec.Version()
	for range 3 {
		if n, v := s.Codec.Name(), s.Codec.Version(); n != name || v != version {
			t.Errorf("it is %q, version %d, and later %q, version %d", name, version, n, v)
		}
	}
}

func (s Codec[T]) roundTrip(t testing.TB, e encoding[T]) {
	var all []T
	for _, v := range s.Values {
		b := e.of(t, v)
		got := e.value(t, bytes.Clone(b))
		if all = append(all, got); !s.Equal(got, v) {
			t.Errorf("%+v was appended as %x, and decoded as %+v", v, b, got)
		}
	}
	for i, got := range all {
		if v := s.Values[i]; !t.Failed() && !s.Equal(got, v) {
			t.Errorf("%+v was decoded, and is %+v since others were: values must share no memory", v, got)
		}
	}
}

func (s Codec[T]) appends(t testing.TB, e encoding[T]) {
	for _, v := range s.Values {
		alone := e.of(t, v)
		for _, room := range []int{0, len(alone) + 64} {
			front := append(make([]byte, 0, 5+room), "front"...)
			b, err := e.append(front, v)
			if err != nil {
				t.Fatalf("%s after other bytes: %v", e.appends, err)
			}
			if !bytes.HasPrefix(b, []byte("front")) || string(front) != "front" {
				t.Fatalf("%s(%q, %+v) gives %q", e.appends, "front", v, b)
			}
			if got := e.value(t, bytes.Clone(b[5:])); !s.Equal(got, v) {
				t.Errorf("%+v was appended behind other bytes, and decoded as %+v", v, got)
			}
		}
	}
}

func (s Codec[T]) keepsNone(t testing.TB, e encoding[T]) {
	var buf []byte
	for _, v := range s.Values {
		want := e.of(t, v)
		for range 2 {
			b, err := e.append(buf[:0], v)
			if err != nil {
				t.Fatal(err)
			}
			if got := e.value(t, bytes.Clone(b)); !s.Equal(got, v) {
				t.Errorf("%+v was appended into a buffer that had been used before as %x, and is %+v", v, b, got)
			}
			buf = scribble(b)
		}
		if got := e.value(t, bytes.Clone(want)); !s.Equal(got, v) {
			t.Errorf("the bytes of %+v changed when a buffer was used again", v)
		}
	}
}

// scribble overwrites b up to its capacity, as its next user does.
func scribble(b []byte) []byte {
	b = b[:cap(b)]
	for i := range b {
		b[i] ^= 0xa5
	}
	return b
}

func (s Codec[T]) readsOnly(t testing.TB, e encoding[T]) {
	for _, v := range s.Values {
		b := e.of(t, v)
		before := bytes.Clone(b)
		e.value(t, b)
		if !bytes.Equal(b, before) {
			t.Errorf("%s changed its input from %x to %x", e.decodes, before, b)
		}
	}
}

func (s Codec[T]) aliases(t testing.TB, e encoding[T]) {
	cloner, clones := any(s.Codec).(codec.Cloner[T])
	for _, v := range s.Values {
		b := e.of(t, v)
		got := e.value(t, b)
		if clones {
			if c := cloner.Clone(got); !s.Equal(c, got) {
				t.Errorf("the clone of %+v is %+v", got, c)
			} else {
				got = c
			}
		}
		scribble(b)
		if s.Equal(got, v) {
			continue
		}
		if clones {
			t.Errorf("the clone of %+v changed with the bytes that the value was decoded from", v)
		} else {
			t.Errorf("%+v changed with the bytes that it was decoded from: copy them, or implement codec.Cloner", v)
		}
	}
}

// garbageSeeds is how often each encoding is damaged at random.
const garbageSeeds = 200

func (s Codec[T]) garbage(t testing.TB, e encoding[T]) {
	rng := rand.New(rand.NewPCG(1, 2))
	try := func(b []byte) {
		t.Helper()
		in := bytes.Clone(b)
		doing := fmt.Sprintf("%s(%x)", e.decodes, in)
		defer func() {
			if p := recover(); p != nil {
				t.Errorf("%s panics: %v", doing, p)
			}
		}()
		// What comes of it must be as good as any other value.
		if v, err := e.decode(b); err == nil {
			doing = fmt.Sprintf("%s of the value that %s gives", e.appends, doing)
			_, _ = e.append(nil, v)
		}
	}
	try(nil)
	try([]byte{})
	for _, v := range s.Values {
		b := e.of(t, v)
		for n := range min(len(b), 64) {
			try(bytes.Clone(b[:n]))
		}
		try(append(bytes.Clone(b), 0))
		for range garbageSeeds {
			c := bytes.Clone(b)
			for range 1 + rng.IntN(4) {
				switch {
				case len(c) > 0 && rng.IntN(3) > 0:
					c[rng.IntN(len(c))] = byte(rng.Uint32())
				case len(c) > 0 && rng.IntN(2) == 0:
					c = c[:rng.IntN(len(c))]
				default:
					c = append(c, byte(rng.Uint32()))
				}
			}
			try(c)
		}
	}
	for range garbageSeeds {
		c := make([]byte, rng.IntN(48))
		for i := range c {
			c[i] = byte(rng.Uint32())
		}
		try(c)
	}
}

func (s Codec[T]) unknownVersion(t testing.TB) {
	for _, version := range []int{s.Codec.Version() + 1000, -1, 0} {
		for _, v := range s.Values {
			b, err := s.Codec.Append(nil, v)
			if err != nil {
				t.Fatal(err)
			}
			if got, err := codec.DecodeVersion(s.Codec, version, b); err == nil {
				t.Errorf("version %d, which nobody knows, was decoded as %+v: DecodeVersion must return an error for it", version, got)
				break
			}
		}
	}
}

func (s Codec[T]) oldVersions(t testing.TB) {
	for _, old := range s.Old {
		if old.Version == s.Codec.Version() {
			t.Errorf("a value of version %d stands under the old ones, and it is that of the codec", old.Version)
		}
		b := bytes.Clone(old.Bytes)
		got, err := codec.DecodeVersion(s.Codec, old.Version, b)
		switch {
		case err != nil:
			t.Errorf("version %d, %x: %v", old.Version, old.Bytes, err)
		case !s.Equal(got, old.Value):
			t.Errorf("version %d, %x is %+v, want %+v", old.Version, old.Bytes, got, old.Value)
		case !bytes.Equal(b, old.Bytes):
			t.Errorf("DecodeVersion(%d) changed its input from %x to %x", old.Version, old.Bytes, b)
		default:
			got = codec.Clone(s.Codec, got)
			if scribble(b); !s.Equal(got, old.Value) {
				t.Errorf("%+v of version %d changed with the bytes that it was decoded from: copy them, or implement codec.Cloner", old.Value, old.Version)
			}
		}
		decode := func(b []byte) (T, error) { return codec.DecodeVersion(s.Codec, old.Version, b) }
		if err == nil {
			s.migratesGarbage(t, fmt.Sprintf("DecodeVersion(%d)", old.Version), old.Bytes, decode)
		}
	}
}

func (s Codec[T]) migratesGarbage(t testing.TB, name string, b []byte, decode func([]byte) (T, error)) {
	for n := range len(b) {
		func() {
			defer func() {
				if p := recover(); p != nil {
					t.Errorf("%s of %x panics: %v", name, b[:n], p)
				}
			}()
			_, _ = decode(bytes.Clone(b[:n]))
		}()
	}
}

func (s Codec[T]) concurrent(t testing.TB, e encoding[T]) {
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				v := s.Values[(g+i)%len(s.Values)]
				b, err := e.append(nil, v)
				if err != nil {
					t.Errorf("%s beside other goroutines: %v", e.appends, err)
					return
				}
				if got, err := e.decode(b); err != nil || !s.Equal(got, v) {
					t.Errorf("%+v was appended and decoded beside other goroutines, and is %+v, %v", v, got, err)
					return
				}
			}
		})
	}
	wg.Wait()
}

func (s Codec[T]) deterministic(t testing.TB, e encoding[T]) {
	for _, v := range s.Values {
		b := e.of(t, v)
		same := e.value(t, bytes.Clone(b))
		for i, k := range slices.Repeat([]T{v, same}, 8) {
			if again, err := e.append(nil, k); err != nil || !bytes.Equal(again, b) {
				t.Fatalf("%+v was appended as %x, and the same value for the %d. time as %x, %v", v, b, i+2, again, err)
			}
		}
	}
}

func (s Codec[T]) distinct(t testing.TB) {
	seen := map[string]T{}
	for _, v := range s.Values {
		b, err := s.Codec.Append(nil, v)
		if err != nil {
			t.Fatal(err)
		}
		if other, ok := seen[string(b)]; ok && !s.Equal(other, v) {
			t.Errorf("%+v and %+v are both appended as %x: they would share their state", other, v, b)
		}
		seen[string(b)] = v
	}
}

func (s Codec[T]) order(t testing.TB, e encoding[T]) {
	vs := slices.SortedStableFunc(slices.Values(s.Values), s.Compare)
	for i, a := range vs {
		for _, b := range vs[i+1:] {
			if s.Compare(a, b) == 0 {
				continue
			}
			if x, y := e.of(t, a), e.of(t, b); bytes.Compare(x, y) >= 0 {
				t.Errorf("%+v comes before %+v, but %x does not come before %x: see codec.Ordered", a, b, x, y)
			}
		}
	}
}
