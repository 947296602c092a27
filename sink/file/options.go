package file

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
)

// Options say where files go and what they are called.
type Options struct {
	// Dir is the directory. It is made if it is missing. What one instance of the app
	// prepared there another one may have to commit, so all of them need the same one: on a
	// network file system if they run on several machines, which must keep what is synced.
	Dir string
	// Prefix and Suffix of the names of files. Between them stands when the file was
	// prepared, in UTC, and what makes it unique: TIME-SUBTASK-INCARNATION-NUMBER. The number
	// orders the files of one subtask in one incarnation of the app. Where streams are merged
	// in front of the sink, their subtasks are numbered through all of them.
	Prefix, Suffix string
	// Mode is the mode of files, before the process's umask. Default 0o644.
	Mode fs.FileMode
}

const defaultMode fs.FileMode = 0o644

func (o Options) mode() fs.FileMode {
	if o.Mode == 0 {
		return defaultMode
	}
	return o.Mode
}

// check reports everything that is wrong.
func (o Options) check() error {
	var errs []error
	bad := func(format string, args ...any) { errs = append(errs, fmt.Errorf("file: "+format, args...)) }
	if o.Dir == "" {
		bad("no directory: set Options.Dir")
	}
	for what, s := range map[string]string{"Prefix": o.Prefix, "Suffix": o.Suffix} {
		if strings.ContainsAny(s, "/\\\x00") {
			bad("Options.%s %q is part of a file's name and must have no separator: put the folder into Options.Dir", what, s)
		}
		const most = 100 // bytes
		if len(s) > most {
			bad("Options.%s has %d bytes, the most are %d", what, len(s), most)
		}
	}
	if strings.HasPrefix(o.Prefix, ".") {
		bad("Options.Prefix %q begins with a dot, which hides files", o.Prefix)
	}
	if o.Mode&^fs.ModePerm != 0 || o.Mode != 0 && o.Mode&0o200 == 0 {
		bad("Options.Mode %v: want permissions with which the owner may write, such as 0o644", o.Mode)
	}
	return errors.Join(errs...)
}

func (o Options) String() string { return "files " + o.Dir + "/" + o.Prefix + "*" + o.Suffix }
