package localdisk

import "github.com/cockroachdb/pebble/v2/vfs"

// On returns a pebble.Backend like the one that it gets, with its directory in fs. Package
// pebble sets it when it is initialised: it is nothing that a user could come by.
var On func(backend any, fs vfs.FS) any

// ReadInPlace returns a pebble.Backend like the one that it gets, which reads segments of any
// size where they are until they are copied, as only large ones are otherwise.
var ReadInPlace func(backend any) any
