//go:build weirbroken

package guard

import (
	"fmt"
	"os"
	"slices"
)

// Breakable tells whether guards can be taken out in this build.
const Breakable = true

// Env is the environment variable that names the guard to take out.
const Env = "WEIR_BREAK"

var broken Guard

func init() {
	broken = Guard(os.Getenv(Env))
	if broken == "" {
		return
	}
	if !slices.Contains(All, broken) {
		fmt.Fprintf(os.Stderr, "%s=%q: no such guard; the guards are %v\n", Env, broken, All)
		os.Exit(2)
	}
	fmt.Fprintf(os.Stderr, "weir: guard %q is taken out (build tag weirbroken): this process loses or doubles data\n", broken)
}

// Broken tells whether g is taken out.
func Broken(g Guard) bool { return g == broken }

// Break takes out g in this process, and none if g is empty. For tests.
func Break(g Guard) { broken = g }
