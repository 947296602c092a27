package offsets

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"
)

// at returns a committed offset with the golden manifest's pointer.
func at(t testing.TB, offset int64) Committed {
	return with(t, Pointer{App: "app", Instance: "i", Offset: offset, Manifest: goldenManifest})
}

func with(t testing.TB, p Pointer) Committed {
	return Committed{Position: Position{Offset: p.Offset}, Metadata: mustEncode(t, p), Exists: true}
}

var (
	none   = Committed{Position: Position{Offset: -1, LeaderEpoch: -1}}
	a0, a1 = Partition{"a", 0}, Partition{"a", 1}
	b0, b1 = Partition{"b", 0}, Partition{"b", 1}
)

func TestVerifyNamesTheManifestOfAllPartitions(t *testing.T) {
	v, err := Verify("app", map[Partition]Committed{b0: none, a1: at(t, 0), a0: at(t, 40), b1: none})
	want := Verdict{Manifest: goldenManifest, Instance: "i", New: []Partition{b0, b1}}
	if err != nil || !reflect.DeepEqual(v, want) {
		t.Errorf("Verify = %+v, %v, want %+v", v, err, want)
	}
}

func TestVerifyIsFreshOnlyWhenNothingIsCommitted(t *testing.T) {
	v, err := Verify("app", map[Partition]Committed{b0: none, a0: none})
	want := Verdict{Fresh: true, New: []Partition{a0, b0}}
	if err != nil || !reflect.DeepEqual(v, want) {
		t.Errorf("Verify = %+v, %v, want %+v", v, err, want)
	}
	v, err = Verify("app", map[Partition]Committed{a0: {Exists: true}, b0: none})
	if err == nil || v.Fresh {
		t.Errorf("Verify = %+v, %v for an offset without pointer, want an error and not fresh", v, err)
	}
}

func TestS18_OffsetMovedByHandIsRefused(t *testing.T) {
	moved := at(t, 40)
	moved.Offset = 7
	v, err := Verify("app", map[Partition]Committed{a0: moved, a1: at(t, 3)})
	wantErrors(t, err, &MovedError{Partition: a0, Committed: 7, Pointer: 40})
	if v.Manifest != goldenManifest || v.Instance != "i" {
		t.Errorf("the verdict %+v lacks the manifest, which the moved pointer still names", v)
	}
}

func TestS18_OffsetResetWithoutPointerIsRefused(t *testing.T) {
	reset := Committed{Position: Position{Offset: 7}, Exists: true}
	other := reset
	other.Metadata = "consumer-1"
	_, err := Verify("app", map[Partition]Committed{a0: reset, a1: other, b0: at(t, 3)})
	errs := wantErrors(t, err,
		&NoPointerError{Partition: a0, Offset: 7},
		&NoPointerError{Partition: a1, Offset: 7, Metadata: "consumer-1"})
	if !errors.Is(errs[0], ErrNoPointer) || !errors.Is(errs[1], ErrForeign) {
		t.Errorf("errors %v do not wrap ErrNoPointer and ErrForeign", errs)
	}
}

func TestDamagedPointerIsRefused(t *testing.T) {
	damaged := at(t, 40)
	damaged.Metadata = strings.Replace(damaged.Metadata, "|40|", "|41|", 1)
	damaged.Offset = 41
	v, err := Verify("app", map[Partition]Committed{a0: damaged})
	wantErrors(t, err, &DamagedPointerError{Partition: a0, Offset: 41, Metadata: damaged.Metadata})
	if !errors.Is(err, ErrDamaged) {
		t.Errorf("%v is not ErrDamaged", err)
	}
	if v.Manifest != (ManifestRef{}) {
		t.Errorf("the verdict %+v believes a damaged pointer", v)
	}
}

func TestPointerOfNewerVersionIsRefusedByPartition(t *testing.T) {
	_, err := Verify("app", map[Partition]Committed{a1: {Position: Position{Offset: 1}, Metadata: "weir2|x", Exists: true}})
	var v *VersionError
	if !errors.As(err, &v) || v.Version != 2 || !strings.Contains(err.Error(), "a/1") || !strings.Contains(err.Error(), "newer build") {
		t.Errorf("Verify = %v, want a VersionError that names a/1 and the remedy", err)
	}
}

func TestPointerOfOtherAppIsRefused(t *testing.T) {
	v, err := Verify("other", map[Partition]Committed{a0: at(t, 1)})
	wantErrors(t, err, &ForeignAppError{Partition: a0, Want: "other", Got: "app"})
	if v.Manifest != (ManifestRef{}) {
		t.Errorf("the verdict %+v names a manifest of another app", v)
	}
}

func TestPartitionsThatNameDifferentManifestsAreRefused(t *testing.T) {
	for name, change := range map[string]func(*Pointer){
		"checkpoint":  func(p *Pointer) { p.Manifest.Checkpoint++ },
		"incarnation": func(p *Pointer) { p.Manifest.Incarnation++ },
		"hash":        func(p *Pointer) { p.Manifest.Hash[15]++ },
		"instance":    func(p *Pointer) { p.Instance = "j" },
	} {
		p := Pointer{App: "app", Instance: "i", Offset: 5, Manifest: goldenManifest}
		change(&p)
		v, err := Verify("app", map[Partition]Committed{b0: at(t, 1), a1: with(t, p), a0: at(t, 1), b1: none})
		want := &SplitError{Named: map[Named][]Partition{
			{"i", goldenManifest}:    {a0, b0},
			{p.Instance, p.Manifest}: {a1},
		}}
		t.Run(name, func(t *testing.T) { wantErrors(t, err, want) })
		if v.Manifest != (ManifestRef{}) || v.Instance != "" {
			t.Errorf("%s: the verdict %+v picks one of two manifests", name, v)
		}
	}
	err := &SplitError{Named: map[Named][]Partition{
		{"i", ManifestRef{Checkpoint: 2}}: {a0, b0},
		{"j", ManifestRef{Checkpoint: 1}}: {a1},
	}}
	want := "committed offsets name 2 checkpoints: manifest 0000000000000002-00000000 of instance i by [a/0 b/0], manifest 0000000000000001-00000000 of instance j by [a/1]: "
	if !strings.HasPrefix(err.Error(), want) {
		t.Errorf("Error() = %q, want it to begin with %q", err, want)
	}
}

func TestVerifyReportsEverythingInOrderOfPartitions(t *testing.T) {
	moved := at(t, 40)
	moved.Offset = 7
	newer := Pointer{App: "app", Instance: "i", Offset: 5, Manifest: ManifestRef{Checkpoint: 5000}}
	_, err := Verify("app", map[Partition]Committed{
		b1: moved,
		b0: {Position: Position{Offset: 7}, Exists: true},
		a1: with(t, Pointer{App: "x", Instance: "i", Offset: 1}),
		a0: with(t, newer),
	})
	wantErrors(t, err,
		&ForeignAppError{Partition: a1, Want: "app", Got: "x"},
		&NoPointerError{Partition: b0, Offset: 7},
		&MovedError{Partition: b1, Committed: 7, Pointer: 40},
		&SplitError{Named: map[Named][]Partition{{"i", goldenManifest}: {b1}, {"i", newer.Manifest}: {a0}}})
}

func TestPositionsThatEqualTheCommittedOffsetsPass(t *testing.T) {
	manifest := map[Partition]Position{a0: {40, 3}, a1: {0, -1}}
	committed := map[Partition]Committed{a0: at(t, 40), a1: at(t, 0), b0: none}
	if err := VerifyPositions(manifest, committed); err != nil {
		t.Errorf("VerifyPositions = %v", err)
	}
	if err := VerifyPositions(nil, map[Partition]Committed{a0: none}); err != nil {
		t.Errorf("VerifyPositions = %v without positions and offsets", err)
	}
}

func TestS18_PositionsThatDifferFromTheCommittedOffsetsAreRefused(t *testing.T) {
	b2 := Partition{"b", 2}
	err := VerifyPositions(
		map[Partition]Position{b2: {2, 0}, b0: {9, 0}, a1: {41, 0}, a0: {40, 0}},
		map[Partition]Committed{a0: at(t, 40), a1: at(t, 40), b0: none, b1: at(t, 5)})
	wantErrors(t, err,
		&MovedError{Partition: a1, Committed: 40, Pointer: 41},
		&LostOffsetError{Partition: b0, Offset: 9},
		&UnknownPartitionError{Partition: b1, Offset: 5},
		&LostOffsetError{Partition: b2, Offset: 2})
}

// TestVerifyFindsExactlyTheSpoiltPartitions spoils some of many partitions in a way
// drawn for each and compares what is reported with what was spoilt.
func TestVerifyFindsExactlyTheSpoiltPartitions(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		committed := map[Partition]Committed{}
		var want []string
		var fresh []Partition
		good := 0
		for i := range rapid.Int32Range(1, 20).Draw(t, "partitions") {
			p := Partition{"t", i}
			ptr := Pointer{App: "app", Instance: "i", Offset: rapid.Int64Range(0, 1<<40).Draw(t, "offset"), Manifest: goldenManifest}
			way := rapid.SampledFrom([]string{"good", "new", "moved", "dropped", "damaged", "other app"}).Draw(t, "way")
			if way == "other app" {
				ptr.App = "other"
			}
			text, err := ptr.Encode()
			if err != nil {
				t.Fatal(err)
			}
			c := Committed{Position: Position{Offset: ptr.Offset}, Metadata: text, Exists: true}
			kind := ""
			switch way {
			case "good":
				good++
			case "new":
				c = none
				fresh = append(fresh, p)
			case "moved":
				c.Offset++
				kind = "*offsets.MovedError"
				good++ // its manifest is legible
			case "dropped":
				c.Metadata = ""
				kind = "*offsets.NoPointerError"
			case "damaged":
				c.Metadata += "0"
				kind = "*offsets.DamagedPointerError"
			case "other app":
				kind = "*offsets.ForeignAppError"
			}
			if kind != "" {
				want = append(want, kind+" "+p.String())
			}
			committed[p] = c
		}
		v, err := Verify("app", committed)
		var got []string
		for _, e := range split(err) {
			got = append(got, fmt.Sprintf("%T %s", e, reflect.ValueOf(e).Elem().FieldByName("Partition").Interface()))
		}
		if !slices.Equal(got, want) {
			t.Fatalf("reported %v, want %v", got, want)
		}
		if v.Fresh != (len(fresh) == len(committed)) || !slices.Equal(v.New, fresh) || (v.Manifest == goldenManifest) != (good > 0) {
			t.Fatalf("verdict %+v of %d good and %d new among %d", v, good, len(fresh), len(committed))
		}
	})
}

// TestEveryErrorSaysWhereAndHowToGoOn goes through all errors of this package that
// an operator may have to act on.
func TestEveryErrorSaysWhereAndHowToGoOn(t *testing.T) {
	p := Partition{"orders", 3}
	for _, c := range []struct {
		err   error
		says  []string
		modes []string // the ways on that it offers
	}{
		{&MovedError{p, 50, 40}, []string{"orders/3", "50", "40"}, []string{"checkpoint", "offsets", "nothing"}},
		{&NoPointerError{p, 50, "", ErrNoPointer}, []string{"orders/3", "50", "no metadata"}, []string{"checkpoint", "offsets", "nothing"}},
		{&NoPointerError{p, 50, "con\x00", ErrForeign}, []string{"orders/3", "50", `"con\x00"`}, []string{"checkpoint", "offsets", "nothing"}},
		{&DamagedPointerError{p, 50, "weir1", ErrDamaged}, []string{"orders/3", "50", "damaged"}, []string{"checkpoint", "offsets", "nothing"}},
		{&ForeignAppError{p, "mine", "theirs"}, []string{"orders/3", `"mine"`, `"theirs"`, "consumer group"}, []string{"nothing"}},
		{&SplitError{map[Named][]Partition{{"i", goldenManifest}: {p}}}, []string{"orders/3", goldenManifest.Object()}, []string{"checkpoint", "nothing"}},
		{&LostOffsetError{p, 40}, []string{"orders/3", "40", "expired"}, []string{"checkpoint", "nothing"}},
		{&UnknownPartitionError{p, 50}, []string{"orders/3", "50"}, []string{"checkpoint", "offsets", "nothing"}},
	} {
		text := c.err.Error()
		for _, want := range append(c.says, "weir.OnMismatch", "WEIR_RECOVER") {
			if !strings.Contains(text, want) {
				t.Errorf("%T does not say %q: %s", c.err, want, text)
			}
		}
		for _, mode := range []string{"checkpoint", "offsets", "nothing"} {
			if offered := strings.Contains(text, `"`+mode+`"`); offered != slices.Contains(c.modes, mode) {
				t.Errorf("%T offers %q: %t: %s", c.err, mode, offered, text)
			}
		}
	}
}

func TestLongForeignMetadataIsClipped(t *testing.T) {
	err := &NoPointerError{Metadata: strings.Repeat("x", 4096), Err: ErrForeign}
	if n := len(err.Error()); n > 1000 {
		t.Errorf("the error has %d bytes", n)
	}
}

// split returns the errors that errors.Join joined.
func split(err error) []error {
	if err == nil {
		return nil
	}
	return err.(interface{ Unwrap() []error }).Unwrap()
}

// wantErrors compares joined errors, without the causes that they wrap, and returns
// them.
func wantErrors(t *testing.T, err error, want ...error) []error {
	t.Helper()
	got := split(err)
	if len(got) != len(want) {
		t.Fatalf("%d errors, want %d: %v", len(got), len(want), err)
	}
	for i := range got {
		switch w := want[i].(type) {
		case *NoPointerError:
			if g, ok := got[i].(*NoPointerError); ok {
				w.Err = g.Err
			}
		case *DamagedPointerError:
			if g, ok := got[i].(*DamagedPointerError); ok {
				w.Err = g.Err
			}
		case *SplitError:
			if g, ok := got[i].(*SplitError); ok && maps.EqualFunc(g.Named, w.Named, slices.Equal) {
				continue
			}
		}
		if !reflect.DeepEqual(got[i], want[i]) {
			t.Errorf("error %d is %T %v, want %T %v", i, got[i], got[i], want[i], want[i])
		}
	}
	return got
}
