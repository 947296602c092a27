package offsets

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
)

// Verdict is what the committed offsets say about the checkpoint to restore.
type Verdict struct {
	Fresh    bool        // nothing is committed for the partitions that were passed in
	Manifest ManifestRef // the manifest to restore; zero if Fresh
	Instance string      // the instance that committed it
	New      []Partition // partitions without a committed offset, sorted
}

// Verify decides from the committed offsets of all assigned partitions what app has
// to restore. All partitions that have a committed offset must name one and the
// same manifest.
//
// It reports all violations, sorted by partition and joined; find them with
// errors.As: *MovedError, *NoPointerError, *DamagedPointerError, *ForeignAppError,
// *SplitError, and *VersionError, which no recovery mode should pass over. With an
// error the Verdict holds what could still be read: Manifest and Instance are set
// if all legible pointers of app name the same, whether or not their offsets match.
func Verify(app string, committed map[Partition]Committed) (Verdict, error) {
	var (
		v    Verdict
		errs []error
		refs = map[Named][]Partition{}
	)
	for _, p := range sorted(committed) {
		c := committed[p]
		if !c.Exists {
			v.New = append(v.New, p)
			continue
		}
		ptr, err := ParsePointer(c.Metadata)
		switch {
		case errors.Is(err, ErrNoPointer), errors.Is(err, ErrForeign):
			errs = append(errs, &NoPointerError{Partition: p, Offset: c.Offset, Metadata: c.Metadata, Err: err})
			continue
		case errors.Is(err, ErrDamaged):
			errs = append(errs, &DamagedPointerError{Partition: p, Offset: c.Offset, Metadata: c.Metadata, Err: err})
			continue
		case err != nil:
			errs = append(errs, fmt.Errorf("committed offset %d of %s: %w", c.Offset, p, err))
			continue
		case ptr.App != app:
			errs = append(errs, &ForeignAppError{Partition: p, Want: app, Got: ptr.App})
			continue
		}
		named := Named{Instance: ptr.Instance, Manifest: ptr.Manifest}
		refs[named] = append(refs[named], p)
		if ptr.Offset != c.Offset {
			errs = append(errs, &MovedError{Partition: p, Committed: c.Offset, Pointer: ptr.Offset})
		}
	}
	v.Fresh = len(v.New) == len(committed)
	switch len(refs) {
	case 0:
	case 1:
		for named := range refs {
			v.Manifest, v.Instance = named.Manifest, named.Instance
		}
	default:
		errs = append(errs, &SplitError{Named: refs})
	}
	return v, errors.Join(errs...)
}

// VerifyPositions compares the positions of the manifest that Verify named with the
// committed offsets. Both must speak of the same partitions: committed must hold
// every partition of the manifest, and partitions of topics that the app no longer
// reads must have been taken out of manifest. Leader epochs are not compared.
//
// It reports all violations, sorted by partition and joined: *LostOffsetError,
// *MovedError and *UnknownPartitionError.
func VerifyPositions(manifest map[Partition]Position, committed map[Partition]Committed) error {
	all := map[Partition]bool{}
	for p := range manifest {
		all[p] = true
	}
	for p, c := range committed {
		if c.Exists {
			all[p] = true
		}
	}
	var errs []error
	for _, p := range sorted(all) {
		pos, named := manifest[p]
		c := committed[p]
		switch {
		case !c.Exists:
			errs = append(errs, &LostOffsetError{Partition: p, Offset: pos.Offset})
		case !named:
			errs = append(errs, &UnknownPartitionError{Partition: p, Offset: c.Offset})
		case c.Offset != pos.Offset:
			errs = append(errs, &MovedError{Partition: p, Committed: c.Offset, Pointer: pos.Offset})
		}
	}
	return errors.Join(errs...)
}

func sorted[V any](m map[Partition]V) []Partition {
	return slices.SortedFunc(maps.Keys(m), Partition.Compare)
}

// How an operator chooses a way on. The words are the values of weir.OnMismatch and
// of WEIR_RECOVER.
const (
	choose       = "choose with weir.OnMismatch or the environment variable WEIR_RECOVER: "
	orCheckpoint = `"checkpoint" restores the checkpoint and its own positions`
	orOffsets    = `"offsets" restores its state but reads from the committed offsets`
	orNothing    = `"nothing" starts empty`

	anyWay      = choose + orCheckpoint + ", " + orOffsets + ", " + orNothing
	withoutSeek = choose + orCheckpoint + ", " + orNothing
)

// MovedError says that a committed offset is not the one that the checkpoint ended at.
type MovedError struct {
	Partition Partition
	Committed int64 // the committed offset
	Pointer   int64 // the offset in its pointer or in the manifest
}

func (e *MovedError) Error() string {
	return fmt.Sprintf("committed offset of %s is %d, but its checkpoint ended at %d: it was moved by hand, or another consumer of the group committed; %s",
		e.Partition, e.Committed, e.Pointer, anyWay)
}

// NoPointerError says that somebody other than Weir committed an offset, or reset it
// with a tool that drops the metadata. It wraps ErrNoPointer or ErrForeign.
type NoPointerError struct {
	Partition Partition
	Offset    int64
	Metadata  string
	Err       error
}

func (e *NoPointerError) Error() string {
	found := "has no metadata"
	if e.Metadata != "" {
		found = fmt.Sprintf("has the metadata %q", clip(e.Metadata))
	}
	return fmt.Sprintf("committed offset %d of %s names no checkpoint, it %s: it was reset by hand, or another kind of consumer used the group; %s",
		e.Offset, e.Partition, found, anyWay)
}

func (e *NoPointerError) Unwrap() error { return e.Err }

// DamagedPointerError says that the pointer of a committed offset can't be trusted.
// It wraps ErrDamaged.
type DamagedPointerError struct {
	Partition Partition
	Offset    int64
	Metadata  string
	Err       error
}

func (e *DamagedPointerError) Error() string {
	return fmt.Sprintf("committed offset %d of %s has a damaged pointer (%v): something rewrote its metadata; %s", e.Offset, e.Partition, e.Err, anyWay)
}

func (e *DamagedPointerError) Unwrap() error { return e.Err }

// ForeignAppError says that another app committed the offset.
type ForeignAppError struct {
	Partition Partition
	Want, Got string // app names
}

func (e *ForeignAppError) Error() string {
	return fmt.Sprintf("committed offset of %s belongs to app %q, this is app %q: give each app its own consumer group, or take the old name back if the app was renamed; otherwise %s",
		e.Partition, e.Got, e.Want, choose+orNothing)
}

// Named is a manifest as a pointer names it.
type Named struct {
	Instance string
	Manifest ManifestRef
}

// SplitError says that the partitions name more than one manifest, which one
// instance that owns all of them never commits.
type SplitError struct {
	Named map[Named][]Partition // sorted partitions of each manifest
}

func (e *SplitError) Error() string {
	byFirst := slices.SortedFunc(maps.Keys(e.Named), func(a, b Named) int { return e.Named[a][0].Compare(e.Named[b][0]) })
	var list []string
	for _, n := range byFirst {
		list = append(list, fmt.Sprintf("manifest %s of instance %s by %v", n.Manifest.Object(), n.Instance, e.Named[n]))
	}
	return fmt.Sprintf("committed offsets name %d checkpoints: %s: some offsets were committed by another run; %s",
		len(e.Named), strings.Join(list, ", "), withoutSeek)
}

// LostOffsetError says that a partition of the checkpoint has no committed offset.
type LostOffsetError struct {
	Partition Partition
	Offset    int64 // where the checkpoint ended
}

func (e *LostOffsetError) Error() string {
	return fmt.Sprintf("%s has no committed offset, but the checkpoint ended at %d: the offset expired or was deleted; %s",
		e.Partition, e.Offset, withoutSeek)
}

// UnknownPartitionError says that a partition has a committed offset but no position
// in the checkpoint that the offsets name.
type UnknownPartitionError struct {
	Partition Partition
	Offset    int64 // the committed offset
}

func (e *UnknownPartitionError) Error() string {
	return fmt.Sprintf("%s has the committed offset %d, but the checkpoint knows nothing of the partition: another run or another consumer of the group committed it; %s",
		e.Partition, e.Offset, anyWay)
}
