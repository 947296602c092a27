// Package accept reads the environment variables by which somebody takes a receiver as it
// is: OPERATOR@CHECKPOINT, several separated by commas. Such a word counts for one
// checkpoint only, so it has no effect when it is left set.
package accept

import (
	"os"
	"strconv"
	"strings"
)

// Given tells whether the variable names the operator at the checkpoint. An operator ID may
// have commas and spaces of its own, so the words are not cut out: one is looked for at each
// place where one may begin.
func Given(variable, operator string, checkpoint int64) bool {
	want := strings.TrimSpace(operator + "@" + strconv.FormatInt(checkpoint, 10))
	for rest, more := os.Getenv(variable), true; more; _, rest, more = strings.Cut(rest, ",") {
		after, ok := strings.CutPrefix(strings.TrimSpace(rest), want)
		if after = strings.TrimSpace(after); ok && (after == "" || after[0] == ',') {
			return true
		}
	}
	return false
}
