//go:build !crashpoint

package crashpoint

// Enabled tells whether this build can be armed.
const Enabled = false

// Hit does nothing in this build.
func Hit(Point) {}
