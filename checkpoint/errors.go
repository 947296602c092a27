package checkpoint

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"syscall"

	"github.com/weirstream/weir/offsets"
)

// What a store says about a name; test with errors.Is.
var (
	ErrNotFound = errors.New("object not found")
	ErrExists   = errors.New("object exists already")
)

// StoreError says which operation of a store failed on which object.
type StoreError struct {
	Op     string // put, get, get range, list, delete, open
	Object string // empty if the operation is about the whole store
	Store  string // URL
	Err    error
}

func (e *StoreError) Error() string {
	at := e.Store
	if e.Object != "" {
		at = e.Object + " in " + e.Store
	}
	s := fmt.Sprintf("%s %s: %v", e.Op, at, e.Err)
	if h := storeHint(e.Err); h != "" {
		s += "; " + h
	}
	return s
}

func (e *StoreError) Unwrap() error { return e.Err }

// storeHint says what an operator can do about a cause.
func storeHint(err error) string {
	switch {
	case errors.Is(err, fs.ErrPermission):
		return "give the user that runs this process read, write and execute permission on the directory, or choose another checkpoint store"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		return "free space or raise the quota; nothing is lost, the next checkpoint carries these changes"
	case errors.Is(err, syscall.EROFS):
		return "the file system is mounted read-only: remount it for writing or choose another checkpoint store"
	case errors.Is(err, syscall.ENOTDIR):
		return "a part of the path is a file: choose another path for the checkpoint store"
	case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE):
		return "raise the limit of open files"
	case errors.Is(err, syscall.EIO):
		return "the disk reports an I/O error: look at the kernel log and replace it"
	case errors.Is(err, context.DeadlineExceeded):
		return "the store is slow or hangs: raise the checkpoint timeout or look at the store"
	}
	return ""
}

// remedy is what an operator can do about a checkpoint that cannot be restored.
const remedy = "restore the object from a backup of the store; there is no going back to an older checkpoint by itself, because the committed offsets say that what came since then was processed. \"Recovery\" in docs/operations.md tells how to go back to one that is retained. To start empty instead: delete the offsets of the group and set WEIR_RECOVER=nothing"

// DamagedError says that an object is not what was written. Nothing is served from
// it.
type DamagedError struct {
	Object string
	Store  string
	What   string // what is wrong, e.g. "truncated: 120 of 300 bytes"
	Err    error  // the cause, if another error told
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("object %s in checkpoint store %s is damaged: %s; %s", e.Object, e.Store, e.What, remedy)
}

func (e *DamagedError) Unwrap() error { return e.Err }

// MissingError says that an object which a checkpoint needs is not in the store.
type MissingError struct {
	Object string
	Store  string
	Err    error
}

func (e *MissingError) Error() string {
	return fmt.Sprintf("object %s is missing in checkpoint store %s: is this the store that the app wrote to? If it is, %s", e.Object, e.Store, remedy)
}

func (e *MissingError) Unwrap() error { return e.Err }

// VersionError says that an object was written by a build that knows a later format.
type VersionError struct {
	Object  string
	Store   string
	Version int
	Known   int // the newest version that this build reads
}

func (e *VersionError) Error() string {
	return fmt.Sprintf("object %s in checkpoint store %s has format version %d, this build reads up to %d: run the newer build that wrote it", e.Object, e.Store, e.Version, e.Known)
}

// WrongAppError says that a store, or a checkpoint, belongs to another app.
type WrongAppError struct {
	Store string
	Want  string // this app
	Got   string // the app that owns it
}

func (e *WrongAppError) Error() string {
	return fmt.Sprintf("checkpoint store %s belongs to app %q, this is app %q: give each app a store of its own, or set the app's name back", e.Store, e.Got, e.Want)
}

// OwnerError says that a store holds the checkpoints of an app of this name in another
// consumer group or on another Kafka cluster. Nothing was changed in it.
type OwnerError struct {
	App   string
	Store string
	Want  Owner // this app
	Got   Owner // the one that owns it
}

func (e *OwnerError) Error() string {
	return fmt.Sprintf("checkpoint store %s belongs to app %q in group %q on %s, this is group %q on %s, and each would delete the checkpoints of the other: give this one a store or a prefix of its own; or, if the app has moved here and will never run there again, take the store over with weir.TakeStore(%q) or WEIR_TAKE_STORE='%s'",
		e.Store, e.App, e.Got.Group, clusterName(e.Got.Cluster), e.Want.Group, clusterName(e.Want.Cluster), e.Got, e.Got)
}

func clusterName(id string) string {
	if id == "" {
		return "a Kafka cluster without an id"
	}
	return "Kafka cluster " + id
}

// KeyGroupsError says that the key-group count differs from the one that the state
// was written with. It is fixed at the first run, because it says where a key lives.
type KeyGroupsError struct {
	Store string
	Want  int // what the app is configured with
	Got   int // what the state was written with
}

func (e *KeyGroupsError) Error() string {
	return fmt.Sprintf("checkpoint store %s holds state in %d key-groups, the app is configured with %d: set the key-group count back to %d, or start with an empty store and no committed offsets", e.Store, e.Got, e.Want, e.Got)
}

// SupersededError says that a checkpoint id was used before by this writer, or is
// older than the checkpoint that was restored. Ids only grow.
type SupersededError struct {
	Checkpoint int64
	Last       offsets.ManifestRef
}

func (e *SupersededError) Error() string {
	return fmt.Sprintf("persist checkpoint %d: its id is not higher than that of checkpoint %d, which came before", e.Checkpoint, e.Last.Checkpoint)
}
