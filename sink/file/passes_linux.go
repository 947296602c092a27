package file

import "syscall"

// A file server that can't reach its disk may say so.
func init() { passes = append(passes, syscall.EREMOTEIO) }
