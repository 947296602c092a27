package pebble

import (
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/weirstream/weir/internal/localdisk"
)

// Backend says where and how an app keeps state that is larger than memory. It is
// made by [Dir]; the zero Backend keeps all state in memory.
type Backend struct {
	// Dir is the directory of the local store. It is a cache: it may be deleted
	// whenever the app does not run. A process has one of its own.
	Dir string
	// MemoryBytes is what the typed state of all subtasks together may take in memory:
	// what was used lately, and what changed and is not committed. When the latter
	// fills it a checkpoint is taken before its time, and at twice the amount
	// processing waits for it. By default [DefaultMemoryBytes].
	MemoryBytes int64
	Options
}

// Dir returns a backend with its local store in the directory at path, which is made
// if it is missing. Change what it returns to set more than that.
func Dir(path string) Backend { return Backend{Dir: path, MemoryBytes: DefaultMemoryBytes()} }

func init() {
	localdisk.On = func(backend any, fs vfs.FS) any {
		b := backend.(Backend)
		b.fs = fs
		return b
	}
	localdisk.ReadInPlace = func(backend any) any {
		b := backend.(Backend)
		b.copyFirst = -1
		return b
	}
}
