package pebble

import (
	"errors"
	"fmt"
	"io/fs"
	"syscall"
)

var (
	// ErrClosed is given by a store that was closed.
	ErrClosed = errors.New("local store is closed")
	// ErrDetached is given by a store that was not attached to a checkpoint yet.
	ErrDetached = errors.New("local store is not attached to a checkpoint")
)

// StoreError says which operation of the local store failed on what.
type StoreError struct {
	Op     string // open, attach, ingest, get, iterate, ...
	Dir    string // of the store
	Object string // the segment, if it is about one
	Err    error
}

func (e *StoreError) Error() string {
	at := "local store " + e.Dir
	if e.Object != "" {
		at = e.Object + " into " + at
	}
	s := fmt.Sprintf("%s %s: %v", e.Op, at, e.Err)
	if h := hint(e.Err); h != "" {
		s += "; " + h
	}
	return s
}

func (e *StoreError) Unwrap() error { return e.Err }

// hint says what an operator can do about a cause.
func hint(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "give the user that runs this process read, write and execute permission on the directory, or choose another one"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "free space or raise the quota; nothing that was committed is lost, it is in the checkpoint store"
	case errors.Is(err, syscall.EROFS):
		return "the file system is mounted read-only: remount it for writing or choose another directory"
	case errors.Is(err, syscall.ENOTDIR):
		return "a part of the path is a file: choose another directory"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "raise the limit of open files: the local store has one open for each segment"
	case errors.Is(err, syscall.EIO):
		return "the disk reports an I/O error: look at the kernel log and replace it"
	}
	return ""
}

// environment tells that err comes from the machine, not from what is in the files:
// the same files may well be fine once it is mended.
func environment(err error) bool {
	return hint(err) != "" || errors.Is(err, syscall.ENOMEM) || errors.Is(err, syscall.EAGAIN) || errors.Is(err, syscall.EINTR)
}

// InUseError says that another store has the directory open.
type InUseError struct {
	Dir   string
	Owner string // who that is, if it left word
	Err   error
}

func (e *InUseError) Error() string {
	owner := "another process, or by this one"
	if e.Owner != "" {
		owner = e.Owner
	}
	return fmt.Sprintf("local store %s is in use by %s: end it, or give each instance a directory of its own", e.Dir, owner)
}

func (e *InUseError) Unwrap() error { return e.Err }

// WrongAppError says that the directory belongs to another app.
type WrongAppError struct {
	Dir       string
	Want, Got string
}

func (e *WrongAppError) Error() string {
	return fmt.Sprintf("local store %s belongs to app %q, this is app %q: give each app a directory of its own, or set the app's name back", e.Dir, e.Got, e.Want)
}

// VersionError says that a later build made the directory.
type VersionError struct {
	Dir     string
	Version int
	Known   int // the newest that this build reads
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("local store %s has format version %d, this build knows up to %d: run the newer build, or delete the directory; it is built again from the checkpoint store", e.Dir, e.Version, e.Known)
}

// DamagedError says that a segment is not what was written. Nothing is served from it,
// and after a read met it nothing at all until the store is attached anew. That takes
// all segments from the checkpoint store again and checks each as a whole, so it tells
// whether the segment is damaged there too.
type DamagedError struct {
	Dir    string // of the store
	Object string // the segment
	File   string // its file in the store; empty if it was read where it is
	Err    error
}

func (e *DamagedError) Error() string {
	if e.File == "" {
		return fmt.Sprintf("segment %s is damaged: %v; restore it from a backup of the checkpoint store", e.Object, e.Err)
	}
	return fmt.Sprintf("segment %s is damaged in local store %s, file %s: %v; the store takes it from the checkpoint store again at the next start", e.Object, e.Dir, e.File, e.Err)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// NotAStoreError says that a directory is not, or not any more, a local store that
// could be told whose it is.
type NotAStoreError struct {
	Dir string
	Err error
}

func (e *NotAStoreError) Error() string {
	return fmt.Sprintf("directory %s is no local store: %v; choose another directory, or delete this one if it was a local store: it is built again from the checkpoint store", e.Dir, e.Err)
}

func (e *NotAStoreError) Unwrap() error { return e.Err }

// MismatchError says that a checkpoint was to be ingested whose parent is not what
// the store equals.
type MismatchError struct {
	Dir  string
	Have ID // what the store equals
	Want ID // what was to be ingested
	Prev ID // its parent
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("ingest %v into local store %s: its parent is %v, the store equals %v; attach it to the checkpoint that the pointer names", e.Want, e.Dir, e.Prev, e.Have)
}
