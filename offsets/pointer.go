package offsets

import (
	"encoding/hex"
	"errors"
	"fmt"
	"hash/crc32"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf8"
)

// MaxPointer is the most bytes that an encoded pointer may have. Kafka's own limit
// is 4096 characters; a pointer is kept for every partition and sent at every
// commit.
const MaxPointer = 200

const (
	pointerMagic   = "weir"
	pointerVersion = 1
	pointerFields  = 7 // between the bars, without magic and version

	maxDecimal = 19 // digits of the largest int64
	hex32      = 8  // hexadecimal digits of 32 bits
	hexHash    = 32 // hexadecimal digits of a hash
	// fixedPart is the size of the longest pointer whose names are empty.
	fixedPart = len(pointerMagic) + 1 + pointerFields + maxDecimal + maxDecimal + hex32 + hexHash + hex32
)

// Pointer names, in the metadata of a committed offset, the checkpoint that the
// offset belongs to.
type Pointer struct {
	App      string
	Instance string // the instance's part of the transactional id that committed
	Offset   int64  // the offset that it was committed with
	Manifest ManifestRef
}

// What ParsePointer and ParseCommitRecord find instead of what they look for, for
// errors.Is. An unknown version is a *VersionError.
var (
	ErrNoPointer = errors.New("no pointer: the metadata is empty")
	ErrForeign   = errors.New("not written by weir")
	ErrDamaged   = errors.New("damaged")
)

// VersionError says that a pointer or a commit record has a version that this build
// doesn't know.
type VersionError struct {
	What    string // "pointer" or "commit record"
	Version int
	Known   int // the newest version that this build reads
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("%s has version %d, this build reads version %d: run the newer build that wrote it", e.What, e.Version, e.Known)
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// MaxNames returns how many bytes app name and instance id may have together, so
// that every pointer fits into MaxPointer whatever its numbers.
func MaxNames() int { return MaxPointer - fixedPart }

// ValidateNames reports all reasons why app and instance can't stand in a pointer.
func ValidateNames(app, instance string) error {
	errs := []error{validateName("app name", app), validateName("instance id", instance)}
	if n := len(app) + len(instance); n > MaxNames() {
		errs = append(errs, fmt.Errorf("app name (%d bytes) and instance id (%d bytes) have %d bytes together, a pointer has room for %d: choose a shorter app name or instance id",
			len(app), len(instance), n, MaxNames()))
	}
	return errors.Join(errs...)
}

func validateName(what, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%s is empty", what)
	case !utf8.ValidString(name):
		return fmt.Errorf("%s %q is not UTF-8: brokers would change it", what, name)
	case strings.ContainsRune(name, '|'), strings.ContainsFunc(name, unicode.IsControl):
		return fmt.Errorf("%s %q contains '|' or a control character: choose another", what, name)
	}
	return nil
}

// Encode returns p as text for the metadata of a committed offset. It fails only
// for names that ValidateNames refuses and for a negative offset or checkpoint id.
func (p Pointer) Encode() (string, error) {
	if err := ValidateNames(p.App, p.Instance); err != nil {
		return "", fmt.Errorf("encode pointer: %w", err)
	}
	if p.Offset < 0 || p.Manifest.Checkpoint < 0 {
		return "", fmt.Errorf("encode pointer of app %s: offset %d and checkpoint id %d must not be negative", p.App, p.Offset, p.Manifest.Checkpoint)
	}
	return p.encode(), nil
}

func (p Pointer) encode() string {
	body := fmt.Sprintf("%s%d|%s|%s|%d|%d|%08x|%x", pointerMagic, pointerVersion,
		p.App, p.Instance, p.Manifest.Checkpoint, p.Offset, p.Manifest.Incarnation, p.Manifest.Hash)
	return withSum(body)
}

func withSum(body string) string {
	return fmt.Sprintf("%s|%08x", body, crc32.Checksum([]byte(body), castagnoli))
}

// ParsePointer reads what Encode wrote. Otherwise the error is ErrNoPointer for
// empty metadata, ErrForeign for metadata of somebody else, ErrDamaged, or a
// *VersionError for a pointer of another version.
func ParsePointer(metadata string) (Pointer, error) {
	if metadata == "" {
		return Pointer{}, ErrNoPointer
	}
	rest, ok := strings.CutPrefix(metadata, pointerMagic)
	body := strings.TrimLeft(rest, "0123456789")
	version, err := strconv.ParseUint(rest[:len(rest)-len(body)], 10, 31)
	if !ok || err != nil {
		return Pointer{}, fmt.Errorf("parse pointer %q: %w", clip(metadata), ErrForeign)
	}
	if version > pointerVersion {
		return Pointer{}, fmt.Errorf("parse pointer %q: %w", clip(metadata), &VersionError{What: "pointer", Version: int(version), Known: pointerVersion})
	}
	p, err := parseV1(body)
	if err == nil && p.encode() != metadata {
		err = errors.New("its checksum is off or it is not as weir writes it")
	}
	if err == nil {
		err = ValidateNames(p.App, p.Instance)
	}
	if err != nil {
		return Pointer{}, fmt.Errorf("parse pointer %q: %w: %w", clip(metadata), ErrDamaged, err)
	}
	return p, nil
}

// parseV1 reads what stands behind "weir1". It leaves the checksum, and all that
// is not as Encode writes it, to a comparison with what Encode would write.
func parseV1(body string) (Pointer, error) {
	f := strings.Split(strings.TrimPrefix(body, "|"), "|")
	if len(f) != pointerFields {
		return Pointer{}, fmt.Errorf("it has %d fields, want %d", len(f), pointerFields)
	}
	checkpoint, err1 := strconv.ParseUint(f[2], 10, 63)
	offset, err2 := strconv.ParseUint(f[3], 10, 63)
	incarnation, err3 := strconv.ParseUint(f[4], 16, 32)
	hash, err4 := hex.DecodeString(f[5])
	if err := errors.Join(err1, err2, err3, err4); err != nil {
		return Pointer{}, err
	}
	p := Pointer{App: f[0], Instance: f[1], Offset: int64(offset)}
	p.Manifest = ManifestRef{Checkpoint: int64(checkpoint), Incarnation: uint32(incarnation)}
	copy(p.Manifest.Hash[:], hash) // one of another length differs from what Encode writes
	return p, nil
}

// clip shortens metadata for an error message: somebody else's may be 4096
// characters.
func clip(s string) string {
	if len(s) > MaxPointer {
		return s[:MaxPointer] + "..."
	}
	return s
}
