//go:build !linux

package checkpoint

import "syscall"

func renameNoReplace(_, _ string) error { return syscall.ENOSYS }
