// Package localdisk lets tests that stand outside of package pebble put a file system of
// their own under a local store: one in memory, of which a crash takes what was not synced.
package localdisk
