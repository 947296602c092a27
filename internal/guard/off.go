//go:build !weirbroken

package guard

// Breakable tells whether guards can be taken out in this build.
const Breakable = false

// Broken is false: no guard can be taken out in this build.
func Broken(Guard) bool { return false }
